//! Control groups of pods: `kubepods/<class>/pod<uid>` with the pod's limits, so that its containers together keep to them.
//! Works on version 1 (a hierarchy for each controller) and version 2. What cannot be set is left to the containers' own.

use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;

use crate::spec::pod;
use crate::spec::resources::{PodLimits, Qos, pod_limits, qos};

/// Where the hierarchies are mounted.
pub const ROOT: &str = "/sys/fs/cgroup";
/// The period of quotas, microseconds.
const PERIOD: i64 = 100_000;
/// The group of all pods.
const PODS: &str = "kubepods";

/// The group of a pod, as the runtime is told: an absolute path below the hierarchies' roots.
pub fn path(of: &Pod) -> String {
    let name = format!("pod{}", pod::uid(of));
    match qos(of) {
        Qos::Guaranteed => format!("/{PODS}/{name}"),
        Qos::Burstable => format!("/{PODS}/burstable/{name}"),
        Qos::BestEffort => format!("/{PODS}/besteffort/{name}"),
    }
}

/// Whether version 2 is the one in use.
pub fn is_v2() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

/// The roots of the hierarchies: one in version 2.
fn hierarchies() -> Vec<PathBuf> {
    if is_v2() {
        return vec![ROOT.into()];
    }
    let entries = std::fs::read_dir(ROOT).into_iter().flatten().flatten();
    let named = |p: &PathBuf| p.file_name().is_some_and(|n| n != "unified");
    entries.map(|e| e.path()).filter(|p| p.is_dir() && !p.is_symlink()).filter(named).collect()
}

/// A group's path without its leading slash.
pub fn below(path: &str) -> &Path {
    Path::new(path.trim_start_matches('/'))
}

/// Makes the pod's group and sets its limits.
pub fn create(of: &Pod) -> io::Result<()> {
    let (path, limits) = (path(of), pod_limits(of));
    if is_v2() {
        return create_v2(&Path::new(ROOT).join(below(&path)), &limits);
    }
    for root in hierarchies() {
        let group = root.join(below(&path));
        if !root.join("tasks").exists() {
            continue;
        }
        std::fs::create_dir_all(&group)?;
        set_v1(&group, &limits)?;
        if group.join("cpuset.cpus").exists() {
            inherit_cpuset(&root, below(&path))?;
        }
    }
    Ok(())
}

/// Sets the limits of a group in one hierarchy; each has its own files.
fn set_v1(group: &Path, limits: &PodLimits) -> io::Result<()> {
    for (file, value) in [
        ("cpu.shares", limits.shares),
        ("cpu.cfs_period_us", PERIOD),
        ("cpu.cfs_quota_us", limits.quota.unwrap_or(-1)),
        ("memory.limit_in_bytes", limits.memory.unwrap_or(-1)),
    ] {
        let file = group.join(file);
        if file.exists() {
            std::fs::write(file, value.to_string())?;
        }
    }
    Ok(())
}

fn set_v2(group: &Path, limits: &PodLimits) -> io::Result<()> {
    // The weight of so many shares, as the runtimes compute it.
    let weight = 1 + ((limits.shares - 2) * 9999) / 262_142;
    let text = |value: Option<i64>| value.map_or("max".to_owned(), |v| v.to_string());
    std::fs::write(group.join("cpu.weight"), weight.to_string())?;
    std::fs::write(group.join("cpu.max"), format!("{} {PERIOD}", text(limits.quota)))?;
    std::fs::write(group.join("memory.max"), text(limits.memory))
}

/// Sets the limits of a group that is there.
pub fn set(path: &str, limits: &PodLimits) -> io::Result<()> {
    if is_v2() {
        let group = Path::new(ROOT).join(below(path));
        return if group.exists() { set_v2(&group, limits) } else { Ok(()) };
    }
    hierarchies().iter().try_for_each(|root| set_v1(&root.join(below(path)), limits))
}

/// In version 1 a new cpuset is empty, and nothing can run in it.
fn inherit_cpuset(root: &Path, path: &Path) -> io::Result<()> {
    let mut parent = root.to_owned();
    for part in path {
        let group = parent.join(part);
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if std::fs::read_to_string(group.join(file))?.trim().is_empty() {
                std::fs::write(group.join(file), std::fs::read_to_string(parent.join(file))?)?;
            }
        }
        parent = group;
    }
    Ok(())
}

fn create_v2(group: &Path, limits: &PodLimits) -> io::Result<()> {
    let mut parent = PathBuf::from(ROOT);
    for part in group.strip_prefix(ROOT).unwrap_or(group) {
        let controllers = std::fs::read_to_string(parent.join("cgroup.controllers")).unwrap_or_default();
        let wanted = controllers.split_whitespace().filter(|c| ["cpu", "memory", "cpuset", "io", "pids"].contains(c));
        let wanted: Vec<String> = wanted.map(|c| format!("+{c}")).collect();
        std::fs::write(parent.join("cgroup.subtree_control"), wanted.join(" "))?;
        parent.push(part);
        std::fs::create_dir_all(&parent)?;
    }
    set_v2(group, limits)
}

/// Ends what is left in a group: a runtime that was killed in the middle of a start forgets the process that it made.
fn end_processes(group: &Path) {
    let text = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    for pid in text.lines().filter_map(|line| line.trim().parse::<i32>().ok()).filter(|pid| *pid > 1) {
        tracing::info!(group = %group.display(), pid, "a process of a pod that is gone is ended");
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
}

/// Removes the groups of a pod of which only the uid is known, with what no runtime knows of any more.
pub fn remove(uid: &str) {
    for root in hierarchies() {
        for class in ["", "burstable", "besteffort"] {
            let group = root.join(PODS).join(class).join(format!("pod{uid}"));
            let inner = std::fs::read_dir(&group).into_iter().flatten().flatten().map(|e| e.path());
            end_processes(&group);
            for child in inner.filter(|p| p.is_dir()) {
                end_processes(&child);
                let _ = std::fs::remove_dir(child); // the runtime removes its own; this is for what it forgot
            }
            match std::fs::remove_dir(&group) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    tracing::debug!(group = %group.display(), error = %e, "a control group stays");
                }
                _ => {}
            }
        }
    }
}

/// A pod's use of memory and processors, as its group counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time, nanoseconds.
    pub cpu_nanoseconds: u64,
    /// Memory that is not cache which could be dropped at once, bytes.
    pub working_set: u64,
    /// All memory, bytes.
    pub memory: u64,
}

fn number(path: PathBuf) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The value of `key` in lines of `key value`.
fn field(path: PathBuf, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    text.lines().find_map(|l| l.strip_prefix(key)?.trim().parse().ok())
}

/// The use of a group, given by its path below the hierarchies' roots.
pub fn usage(path: &str) -> Option<Usage> {
    let root = Path::new(ROOT);
    let (cpu_nanoseconds, memory, inactive) = if is_v2() {
        let group = root.join(below(path));
        let cpu = field(group.join("cpu.stat"), "usage_usec")? * 1000;
        let memory = number(group.join("memory.current"))?;
        (cpu, memory, field(group.join("memory.stat"), "inactive_file ")?)
    } else {
        let memory = root.join("memory").join(below(path));
        (
            number(root.join("cpuacct").join(below(path)).join("cpuacct.usage"))?,
            number(memory.join("memory.usage_in_bytes"))?,
            field(memory.join("memory.stat"), "total_inactive_file ")?,
        )
    };
    Some(Usage { cpu_nanoseconds, memory, working_set: memory.saturating_sub(inactive) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn groups_by_class() {
        for (resources, wanted) in [
            (json!({}), "/kubepods/besteffort/podu"),
            (json!({"requests": {"cpu": "1"}}), "/kubepods/burstable/podu"),
            (json!({"limits": {"cpu": "1", "memory": "1Gi"}}), "/kubepods/podu"),
        ] {
            let of: Pod = serde_json::from_value(json!({"metadata": {"uid": "u"},
                "spec": {"containers": [{"name": "c", "resources": resources}]}}))
            .unwrap();
            assert_eq!(path(&of), wanted);
        }
    }
}
