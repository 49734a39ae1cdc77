//! What a data directory says of its member: which cluster, which member, which name. Written once.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// The member that a data directory belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Random id of the cluster.
    pub cluster_id: u64,
    /// Random id of the member in the Raft group.
    pub member_id: u64,
    /// Its name.
    pub name: String,
    /// Addresses of Services, the same on all members.
    pub service_cidr: String,
    /// Addresses of pods, the same on all members.
    pub cluster_cidr: String,
    /// Peer addresses of the members that let this one join; empty for the first.
    #[serde(default)]
    pub peers: Vec<String>,
}

/// A data directory that no other process uses.
pub struct DataDir {
    path: PathBuf,
    _lock: nix::fcntl::Flock<File>,
}

impl DataDir {
    /// Creates the directory (0700) if it is not there, and locks it.
    pub fn open(path: &Path) -> Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).with_context(|| {
            format!("cannot create the data directory {}: choose another with --data-dir", path.display())
        })?;
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join("lock"))
            .with_context(|| format!("cannot write in the data directory {}", path.display()))?;
        match nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => bail!(
                "the data directory {} is in use by another keelson: stop that one, or choose another with --data-dir",
                path.display()
            ),
            Err((_, error)) => Err(error).context("lock the data directory"),
        }
    }

    /// A path in the directory.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The member that lives here, if one does.
    pub fn identity(&self) -> Result<Option<Identity>> {
        let file = self.join("member.json");
        match fs::read(&file) {
            Ok(bytes) => {
                Ok(Some(serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", file.display()))?))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| file.display().to_string()),
        }
    }

    /// Records the member; done last, so that a start cut short begins anew.
    pub fn record(&self, identity: &Identity) -> Result<()> {
        write_private(&self.join("member.json"), &serde_json::to_vec_pretty(identity)?)
    }
}

/// Writes a file of mode 0600 so that it is there whole or not at all.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    let part = path.with_extension("part");
    let write = || -> std::io::Result<()> {
        match fs::remove_file(&part) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&part)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&part, path)?;
        // A bare name lies in the working directory.
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent)?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_bare_name_lies_in_the_working_directory() {
        let name = format!("keelson-test-{}.json", std::process::id());
        write_private(Path::new(&name), b"{}").unwrap();
        assert_eq!(fs::read(&name).unwrap(), b"{}");
        fs::remove_file(&name).unwrap();
    }

    #[test]
    fn a_directory_serves_one_process_and_keeps_its_member() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        assert!(DataDir::open(dir.path()).is_err_and(|e| e.to_string().contains("in use")));
        assert_eq!(data.identity().unwrap(), None);
        let identity = Identity {
            cluster_id: 1,
            member_id: 2,
            name: "a".into(),
            service_cidr: "10.96.0.0/16".into(),
            cluster_cidr: "10.244.0.0/16".into(),
            peers: vec!["10.0.0.1:2380".into()],
        };
        data.record(&identity).unwrap();
        assert_eq!(data.identity().unwrap(), Some(identity));
        assert_eq!(fs::metadata(data.join("member.json")).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
