//! Mounts under a pod's directory, and the removal of the whole directory.

use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Mount points as the kernel lists them: `\040` and its like stand for blanks.
fn points() -> io::Result<Vec<PathBuf>> {
    let text = std::fs::read_to_string("/proc/self/mountinfo")?;
    Ok(text.lines().filter_map(|line| line.split(' ').nth(4)).map(|p| PathBuf::from(unescape(p))).collect())
}

fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4).and_then(|octal| u8::from_str_radix(octal, 8).ok());
        match code {
            Some(code) => {
                out.push(char::from(code));
                rest = &rest[at + 4..];
            }
            None => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out + rest
}

/// Whether something is mounted at exactly this path.
pub fn is_mounted(path: &Path) -> io::Result<bool> {
    Ok(points()?.iter().any(|point| point == path))
}

/// Mounts a file system in memory at `path`, unless one is there.
pub fn memory(path: &Path, size: Option<i64>, mode: u32) -> io::Result<()> {
    std::fs::create_dir_all(path)?;
    if is_mounted(path)? {
        return Ok(());
    }
    let mut options = format!("mode={mode:o}");
    if let Some(size) = size {
        options += &format!(",size={size}");
    }
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))?;
    Ok(())
}

/// Mounts a file system in huge pages of a size at `path`, unless one is there.
pub fn huge_pages(path: &Path, size: i64, mode: u32) -> io::Result<()> {
    std::fs::create_dir_all(path)?;
    if is_mounted(path)? {
        return Ok(());
    }
    let options = format!("pagesize={size},mode={mode:o}");
    mount(Some("nodev"), path, Some("hugetlbfs"), MsFlags::empty(), Some(options.as_str()))?;
    Ok(())
}

/// Unmounts all that is mounted below `dir` and removes it. Nothing is removed while a mount is left: it might be the
/// node's own files.
pub fn remove(dir: &Path) -> io::Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    let below = |points: Vec<PathBuf>| points.into_iter().filter(|p| p.starts_with(dir)).collect::<Vec<_>>();
    // The last mounted comes off first.
    for point in below(points()?).iter().rev() {
        umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?;
    }
    if let Some(left) = below(points()?).first() {
        return Err(io::Error::other(format!("{} is still mounted", left.display())));
    }
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_blanks() {
        assert_eq!(unescape(r"/a\040b\134c"), r"/a b\c");
        assert_eq!(unescape(r"/a\x"), r"/a\x");
    }

    #[test]
    fn removal_takes_the_mounts_off_first() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: not root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let pod = dir.path().join("pod");
        memory(&pod.join("v"), Some(1 << 20), 0o1777).unwrap();
        memory(&pod.join("v"), Some(1 << 20), 0o1777).unwrap();
        assert!(is_mounted(&pod.join("v")).unwrap());
        std::fs::write(pod.join("v/file"), "x").unwrap();
        remove(&pod).unwrap();
        assert!(!pod.exists());
        remove(&pod).unwrap();
    }
}
