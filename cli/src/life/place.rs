//! Where the parts of an installation are, below the root that `--root` names. What is not named here is never removed.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::ValueEnum;

/// What a machine is in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// `keelson server`
    Server,
    /// `keelson agent`
    Agent,
}

impl Role {
    /// Both, in the order in which they are taken away.
    pub const ALL: [Self; 2] = [Self::Agent, Self::Server];

    /// The name of the command that it runs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Agent => "agent",
        }
    }

    /// The name of its systemd unit.
    pub fn unit(self) -> String {
        format!("keelson-{}.service", self.name())
    }
}

/// A file system in which Keelson is installed: the machine's own, or one below a directory.
#[derive(Clone, Debug)]
pub struct Place {
    root: PathBuf,
}

impl Place {
    /// The one below `root`.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Whether it is the one of the machine that runs.
    pub fn is_live(&self) -> bool {
        self.root == Path::new("/")
    }

    /// A path of the installed system as this process reaches it.
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Where a role's unit is.
    pub fn unit(&self, role: Role) -> PathBuf {
        self.at("/etc/systemd/system").join(role.unit())
    }

    /// The link by which systemd starts it with the machine.
    pub fn enabled(&self, role: Role) -> PathBuf {
        self.at("/etc/systemd/system/multi-user.target.wants").join(role.unit())
    }

    /// Where a role's flags are.
    pub fn config(&self, role: Role) -> PathBuf {
        self.at(config_path(role))
    }
}

/// Where a role's flags are on the installed system.
pub fn config_path(role: Role) -> PathBuf {
    format!("/etc/keelson/{}.yaml", role.name()).into()
}

/// Creates the directories above a path; tells which of them were missing, the outermost first.
pub fn make_parents(path: &Path) -> Result<Vec<PathBuf>> {
    let parent = path.parent().unwrap_or(path);
    let mut missing: Vec<PathBuf> = parent.ancestors().take_while(|dir| !dir.exists()).map(Path::to_owned).collect();
    missing.reverse();
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    Ok(missing)
}

/// Writes a file with this mode, whole or not at all.
pub fn write(path: &Path, text: &[u8], mode: u32) -> Result<()> {
    let part = path.with_extension("keelson-part");
    let written = || -> std::io::Result<()> {
        remove_file(&part)?;
        let mut file = fs::OpenOptions::new().create_new(true).write(true).mode(mode).open(&part)?;
        std::io::Write::write_all(&mut file, text)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&part, path)
    };
    written().with_context(|| format!("cannot write {}", path.display()))
}

/// Removes a file; whether it was there.
pub fn remove_file(path: &Path) -> std::io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes a directory with all that is in it; whether it was there.
pub fn remove_tree(path: &Path) -> std::io::Result<bool> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes a directory if nothing is in it.
pub fn remove_empty(path: &Path) -> std::io::Result<bool> {
    match fs::remove_dir(path) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below_the_root() {
        let place = Place::new(Path::new("/x"));
        assert_eq!(place.at("/etc/a"), Path::new("/x/etc/a"));
        assert_eq!(place.at("etc/a"), Path::new("/x/etc/a"));
        assert_eq!(place.unit(Role::Agent), Path::new("/x/etc/systemd/system/keelson-agent.service"));
        assert!(!place.is_live());
        assert!(Place::new(Path::new("/")).is_live());
    }

    #[test]
    fn missing_parents_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a/b/c");
        assert_eq!(make_parents(&file).unwrap(), [dir.path().join("a"), dir.path().join("a/b")]);
        assert!(make_parents(&file).unwrap().is_empty());
        write(&file, b"x", 0o600).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!remove_empty(&dir.path().join("a/b")).unwrap());
        assert!(remove_file(&file).unwrap() && !remove_file(&file).unwrap());
        assert!(remove_empty(&dir.path().join("a/b")).unwrap());
    }
}
