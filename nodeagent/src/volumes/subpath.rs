//! Parts of volumes: a path inside a volume is opened without ever leaving it and bound to a place that its pod cannot
//! change, so that a link planted in the volume leads nowhere.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, mkdirat};

fn open(root: impl AsFd, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_BENEATH);
    openat2(root, path, how)
}

/// Opens `sub` inside `volume`; directories that are missing are made.
fn descend(volume: &Path, sub: &Path) -> io::Result<OwnedFd> {
    let mut at = nix::fcntl::open(volume, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    match open(&at, sub, OFlag::O_PATH) {
        Ok(found) => return Ok(found),
        Err(nix::errno::Errno::ENOENT) => {}
        Err(error) => return Err(error.into()),
    }
    for component in sub.components() {
        let name = Path::new(component.as_os_str());
        at = match open(&at, name, OFlag::O_PATH | OFlag::O_DIRECTORY) {
            Err(nix::errno::Errno::ENOENT) => {
                mkdirat(&at, name, Mode::from_bits_truncate(0o750))?;
                open(&at, name, OFlag::O_PATH | OFlag::O_DIRECTORY)?
            }
            result => result?,
        };
    }
    Ok(at)
}

/// Whether the path is one that a subPath may be.
pub fn is_plain(sub: &Path) -> bool {
    sub.components().all(|c| matches!(c, Component::Normal(_))) && sub.components().next().is_some()
}

/// Binds `sub` of `volume` to `target`, unless something is bound there already.
pub fn bind(volume: &Path, sub: &Path, target: &Path) -> io::Result<()> {
    if super::mounts::is_mounted(target)? {
        return Ok(());
    }
    let found = descend(volume, sub)?;
    let path = format!("/proc/self/fd/{}", found.as_raw_fd());
    if let Some(parent) = target.parent() {
        std::fs::create_dir_all(parent)?;
    }
    if std::fs::metadata(&path)?.is_dir() {
        std::fs::create_dir_all(target)?;
    } else if !target.exists() {
        std::fs::write(target, "")?;
    }
    mount(Some(path.as_str()), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside() {
        for (path, good) in [("a", true), ("a/b", true), ("../a", false), ("/a", false), ("a/../b", false), ("", false)]
        {
            assert_eq!(is_plain(Path::new(path)), good, "{path}");
        }
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        std::fs::create_dir(&volume).unwrap();
        std::os::unix::fs::symlink("/etc", volume.join("link")).unwrap();
        std::os::unix::fs::symlink("..", volume.join("up")).unwrap();
        assert!(descend(&volume, Path::new("link/passwd")).is_err());
        assert!(descend(&volume, Path::new("up/x")).is_err());
        descend(&volume, Path::new("new/deep")).unwrap();
        assert!(volume.join("new/deep").is_dir());
    }
}
