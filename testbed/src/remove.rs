//! Takes away all that a testbed's journal names.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, umount2};

use crate::journal::{Journal, Made};
use crate::network::link_exists;
use crate::run::ip;
use crate::{cgroup, host};

/// Removes the testbed of `dir`; tells whether there was one.
pub fn remove(dir: &Path) -> Result<bool> {
    let Some(journal) = Journal::open(dir)? else {
        // A creation that was cut short before its journal left an empty directory at most.
        return match fs::remove_dir(dir) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(_) => bail!("{} was not made by a testbed: nothing is removed", dir.display()),
        };
    };
    let entries = journal.entries();
    for entry in &entries {
        if let Made::Namespace(name) = entry {
            host::end(name)?;
        }
    }
    for entry in entries.iter().rev() {
        match entry {
            Made::Namespace(name) => {
                if Path::new(host::NAMESPACES).join(name).exists() {
                    ip(&format!("netns delete {name}"))?;
                }
            }
            Made::NamespacesMount => remove_namespaces_mount()?,
            Made::Link(name) => remove_link(name)?,
            Made::Cgroup(path) => cgroup::remove(path)?,
        }
    }
    for mount in mounts_below(dir, &fs::read_to_string("/proc/self/mountinfo")?) {
        umount2(&mount, MntFlags::MNT_DETACH).with_context(|| format!("unmount {}", mount.display()))?;
    }
    remove_files(dir)?;
    Ok(true)
}

/// Unless others keep namespaces there by now.
fn remove_namespaces_mount() -> Result<()> {
    let dir = Path::new(host::NAMESPACES);
    let _lock = host::lock_namespaces()?;
    if fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) {
        return Ok(());
    }
    while host::is_mounted(host::NAMESPACES)? {
        umount2(dir, MntFlags::MNT_DETACH).with_context(|| format!("unmount {}", dir.display()))?;
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// The other end of a pair goes with its namespace, and this one with that: it may vanish while we look.
fn remove_link(name: &str) -> Result<()> {
    match ip(&format!("link delete {name}")) {
        Err(error) if link_exists(name) => Err(error),
        _ => Ok(()),
    }
}

/// The journal goes last, so that a removal cut short can be taken up again.
fn remove_files(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name() == "journal" {
            continue;
        }
        let (path, is_dir) = (entry.path(), entry.file_type()?.is_dir());
        if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }
            .with_context(|| format!("remove {}", path.display()))?;
    }
    fs::remove_dir_all(dir).with_context(|| format!("remove {}", dir.display()))
}

/// Mounts on or below `dir`, innermost first.
fn mounts_below(dir: &Path, mountinfo: &str) -> Vec<PathBuf> {
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let mut below: Vec<PathBuf> = points.filter(|point| point.starts_with(dir)).collect();
    below.reverse();
    below
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_testbed_made_is_removed() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("t");
        assert!(!remove(&dir).unwrap(), "nothing there");
        fs::create_dir(&dir).unwrap();
        assert!(remove(&dir).unwrap(), "a creation cut short");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("thesis.txt"), "x").unwrap();
        assert!(remove(&dir).is_err());
        assert!(dir.join("thesis.txt").exists());
    }

    #[test]
    fn mounts_are_found_innermost_first() {
        let info = "1 0 8:1 / / rw - ext4 a rw\n2 1 0:1 / /d rw - tmpfs a rw\n3 2 0:2 / /d/e rw - tmpfs a rw\n\
                    4 1 0:3 / /dd rw - tmpfs a rw\n";
        assert_eq!(mounts_below(Path::new("/d"), info), [PathBuf::from("/d/e"), "/d".into()]);
    }
}
