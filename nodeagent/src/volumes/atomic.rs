//! Files that change all at once: they lie in a directory with a time in its name, to which the link `..data` points; the
//! names that a pod sees are links through it, as kubelets have it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

/// The link to the present files.
const DATA: &str = "..data";
/// What the link is called before it replaces the old one.
const NEW_DATA: &str = "..data_tmp";

/// A file's content, mode and group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Owning user, if not root.
    pub user: Option<u32>,
    /// Owning group, if not root.
    pub group: Option<u32>,
}

/// The files of a volume by their path in it.
pub type Files = BTreeMap<String, Content>;

/// Whether a path stays in its volume and leaves our own names alone.
fn check(path: &str) -> io::Result<()> {
    let wrong = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, format!("path {path:?} {why}")));
    let mut components = Path::new(path).components();
    if path.is_empty() || !components.clone().all(|c| matches!(c, Component::Normal(_))) {
        return wrong("leaves its volume");
    }
    let first = components.next().map(|c| c.as_os_str().to_string_lossy().into_owned()).unwrap_or_default();
    if first.starts_with("..") {
        return wrong("begins with \"..\"");
    }
    Ok(())
}

/// Makes `dir` hold exactly `files`. Returns whether anything changed.
pub fn write(dir: &Path, files: &Files) -> io::Result<bool> {
    files.keys().try_for_each(|path| check(path))?;
    std::fs::create_dir_all(dir)?;
    let old = std::fs::read_link(dir.join(DATA)).ok();
    if old.as_ref().is_some_and(|old| same(&dir.join(old), files)) {
        return Ok(false);
    }
    let stamp = jiff::Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S");
    let name = PathBuf::from(format!("..{stamp}.{}", rand::random::<u32>()));
    let fresh = dir.join(&name);
    std::fs::create_dir(&fresh)?;
    std::fs::set_permissions(&fresh, PermissionsExt::from_mode(0o755))?;
    for (path, content) in files {
        write_one(&fresh.join(path), content)?;
    }
    let new_link = dir.join(NEW_DATA);
    let _ = std::fs::remove_file(&new_link); // left by a crash
    symlink(&name, &new_link)?;
    std::fs::rename(&new_link, dir.join(DATA))?;
    links(dir, files)?;
    remove_others(dir, &name)?;
    Ok(true)
}

fn write_one(path: &Path, content: &Content) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(path, &content.bytes)?;
    // The mask of the process must not take bits away.
    std::fs::set_permissions(path, PermissionsExt::from_mode(content.mode))?;
    if content.user.is_some() || content.group.is_some() {
        std::os::unix::fs::chown(path, content.user, content.group)?;
    }
    Ok(())
}

fn same(dir: &Path, files: &Files) -> bool {
    let mut present = BTreeSet::new();
    if walk(dir, Path::new(""), &mut present).is_err() || present.len() != files.len() {
        return false;
    }
    files.iter().all(|(path, content)| {
        let path = dir.join(path);
        let mode = std::fs::metadata(&path).map(|m| m.permissions().mode() & 0o7777);
        mode.is_ok_and(|mode| mode == content.mode) && std::fs::read(&path).is_ok_and(|bytes| bytes == content.bytes)
    })
}

fn walk(dir: &Path, below: &Path, found: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    for entry in std::fs::read_dir(dir.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            walk(dir, &path, found)?;
        } else {
            found.insert(path);
        }
    }
    Ok(())
}

/// The first components of all paths, which are what a pod sees in the volume's directory.
fn tops(files: &Files) -> BTreeSet<OsString> {
    files.keys().filter_map(|p| Path::new(p).components().next()).map(|c| c.as_os_str().to_owned()).collect()
}

fn links(dir: &Path, files: &Files) -> io::Result<()> {
    for top in tops(files) {
        let link = dir.join(&top);
        if std::fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(&top), &link)?;
        }
    }
    let tops = tops(files);
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        if !name.to_string_lossy().starts_with("..") && !tops.contains(&name) {
            std::fs::remove_file(dir.join(name))?;
        }
    }
    Ok(())
}

fn remove_others(dir: &Path, keep: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_string_lossy().starts_with("..") && entry.file_type()?.is_dir() && Path::new(&name) != keep {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> Files {
        let content = |text: &str| Content { bytes: text.into(), mode: 0o640, user: None, group: None };
        list.iter().map(|(path, text)| ((*path).to_owned(), content(text))).collect()
    }

    #[test]
    fn files_change_together() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert!(write(dir, &files(&[("a", "1"), ("sub/b", "2")])).unwrap());
        assert_eq!(std::fs::read_to_string(dir.join("sub/b")).unwrap(), "2");
        assert!(!write(dir, &files(&[("a", "1"), ("sub/b", "2")])).unwrap());
        let before = std::fs::read_link(dir.join(DATA)).unwrap();
        assert!(write(dir, &files(&[("a", "3"), ("c", "4")])).unwrap());
        assert_eq!(std::fs::read_to_string(dir.join("a")).unwrap(), "3");
        assert!(std::fs::symlink_metadata(dir.join("sub")).is_err());
        assert!(!dir.join(before).exists());
        assert_eq!(std::fs::read_dir(dir).unwrap().count(), 4, "..data, its directory and two links");
    }

    #[test]
    fn paths_that_leave_the_volume() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["../x", "/x", "a/../../x", "", "..data"] {
            assert!(write(dir.path(), &files(&[(path, "")])).is_err(), "{path}");
        }
        assert!(!dir.path().join("..data").exists());
    }
}
