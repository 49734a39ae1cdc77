//! A cgroup for each host, so that what its container runtime makes is below one directory that can be removed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::until;

/// How long the kernel may take to let go of a cgroup whose processes have ended.
const RELEASE: Duration = Duration::from_secs(10);

/// A hierarchy of cgroups as this machine mounts it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// What to mount: `cgroup` (version 1) or `cgroup2`.
    pub kind: String,
    /// The controllers of a version 1 hierarchy, as a mount option.
    pub options: String,
}

/// The hierarchies of this machine.
pub fn hierarchies() -> Result<Vec<Hierarchy>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
    Ok(parse(&mounts))
}

fn parse(mounts: &str) -> Vec<Hierarchy> {
    /// Mount options that say nothing of controllers.
    const GENERAL: &[&str] = &["rw", "ro", "nosuid", "nodev", "noexec", "relatime", "noatime", "xattr"];
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        let (Some(mount), Some(kind), Some(options)) = (fields.next(), fields.next(), fields.next()) else { continue };
        if !mount.starts_with("/sys/fs/cgroup") || !(kind == "cgroup" || kind == "cgroup2") {
            continue;
        }
        let mut controllers: Vec<&str> =
            options.split(',').filter(|o| !GENERAL.contains(o) && !o.starts_with("release_agent")).collect();
        if kind == "cgroup2" {
            controllers.clear();
        } else if controllers.iter().any(|c| c.starts_with("name=")) {
            controllers.insert(0, "none");
        }
        found.push(Hierarchy { mount: mount.into(), kind: kind.into(), options: controllers.join(",") });
    }
    found.dedup_by(|a, b| a.mount == b.mount);
    found
}

impl Hierarchy {
    /// The host's cgroup in this hierarchy.
    pub fn cgroup(&self, host: &str) -> PathBuf {
        self.mount.join(host)
    }

    /// Where the host's own processes are: with version 2 only leaves may have processes.
    pub fn processes(&self, host: &str) -> PathBuf {
        let cgroup = self.cgroup(host);
        if self.kind == "cgroup2" { cgroup.join("init") } else { cgroup }
    }

    /// Creates the host's cgroup.
    pub fn create(&self, host: &str) -> Result<()> {
        let cgroup = self.cgroup(host);
        fs::create_dir_all(self.processes(host)).with_context(|| cgroup.display().to_string())?;
        // A version 1 cpuset takes no process until it has processors and memory.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let (from, to) = (self.mount.join(file), cgroup.join(file));
            if self.kind == "cgroup" && to.exists() {
                fs::write(&to, fs::read(&from)?).with_context(|| to.display().to_string())?;
            }
        }
        if self.kind == "cgroup2" {
            delegate(&self.mount);
            delegate(&cgroup);
        }
        Ok(())
    }
}

/// Hands a version 2 cgroup's controllers down. One that cannot be handed down is in use otherwise, and is not needed
/// for containers to run.
fn delegate(cgroup: &Path) {
    let controllers = fs::read_to_string(cgroup.join("cgroup.controllers")).unwrap_or_default();
    for controller in controllers.split_whitespace() {
        let _ = fs::write(cgroup.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// Removes a cgroup and all below it; its processes have ended or are ending.
pub fn remove(cgroup: &Path) -> Result<()> {
    until(&format!("remove {}", cgroup.display()), RELEASE, || {
        if !cgroup.exists() {
            return Ok(Some(()));
        }
        remove_tree(cgroup)?;
        Ok(Some(()))
    })
}

fn remove_tree(cgroup: &Path) -> Result<()> {
    for entry in fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(cgroup).with_context(|| cgroup.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn hierarchies_of_both_versions() {
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
            cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,cpu,cpuacct 0 0\n\
            cgroup /sys/fs/cgroup/systemd cgroup rw,relatime,xattr,name=systemd 0 0\n\
            cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime,nsdelegate 0 0\n";
        let options: Vec<_> = parse(hybrid).into_iter().map(|h| (h.kind, h.options)).collect();
        let expected = [("cgroup", "cpu,cpuacct"), ("cgroup", "none,name=systemd"), ("cgroup2", "")];
        assert_eq!(options, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
        let unified = parse("cgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n");
        assert!(unified.len() == 1 && unified[0].kind == "cgroup2");
        assert!(parse("/dev/vda / ext4 rw 0 0\n").is_empty());
    }
}
