//! What the kernel counts of a control group beyond memory and processor time: faults, throttling, limits, processes.

use std::collections::HashMap;
use std::path::Path;

use crate::cgroup::{ROOT, below, is_v2};

/// Ticks of the kernel's clock per second, in version 1's `cpuacct.stat`.
const NANOSECONDS_PER_TICK: u64 = 10_000_000;
/// Version 1 writes "no limit" as a number near the largest.
const NO_LIMIT: u64 = 1 << 62;

/// The counts; what the kernel does not tell is 0, a limit that is not set is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Memory that is no file's, bytes.
    pub rss: u64,
    /// Memory of files, bytes.
    pub cache: u64,
    /// Memory of files that are mapped, bytes.
    pub mapped: u64,
    /// Memory on the disk, bytes.
    pub swap: u64,
    /// Page faults, and those for which a disk was read.
    pub faults: (u64, u64),
    /// The most memory that was used at once, bytes.
    pub most: u64,
    /// How often the limit of memory was met.
    pub failures: u64,
    /// Limit of memory, bytes.
    pub limit: Option<u64>,
    /// Processor time in programs and in the kernel, nanoseconds.
    pub times: (u64, u64),
    /// Periods of the quota: all, and those in which it was used up.
    pub periods: (u64, u64),
    /// How long that held the group up, nanoseconds.
    pub throttled: u64,
    /// Quota of each period, microseconds.
    pub quota: Option<u64>,
    /// The period, microseconds.
    pub period: u64,
    /// Share of the processors: shares in version 1, weight in version 2.
    pub shares: u64,
    /// Processes and threads.
    pub tasks: u64,
    /// Processes that were ended for want of memory.
    pub killed: u64,
}

type Fields = HashMap<String, u64>;

/// Lines of `key value`.
fn fields(path: &Path) -> Fields {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = |l: &str| l.split_once(' ').and_then(|(key, value)| Some((key.to_owned(), value.trim().parse().ok()?)));
    text.lines().filter_map(line).collect()
}

fn number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The counts of a group, given by its path below the hierarchies' roots.
pub fn counts(path: &str) -> Counts {
    let (root, path) = (Path::new(ROOT), below(path));
    if is_v2() {
        return v2(&root.join(path));
    }
    v1(&|controller| root.join(controller).join(path))
}

fn v1(group: &dyn Fn(&str) -> std::path::PathBuf) -> Counts {
    let (memory, cpu) = (group("memory"), group("cpu"));
    let (of, oom) = (fields(&memory.join("memory.stat")), fields(&memory.join("memory.oom_control")));
    let (stat, times) = (fields(&cpu.join("cpu.stat")), fields(&group("cpuacct").join("cpuacct.stat")));
    let get = |fields: &Fields, key: &str| fields.get(key).copied().unwrap_or(0);
    let of_memory = |file: &str| number(&memory.join(file));
    Counts {
        rss: get(&of, "total_rss"),
        cache: get(&of, "total_cache"),
        mapped: get(&of, "total_mapped_file"),
        swap: get(&of, "total_swap"),
        faults: (get(&of, "total_pgfault"), get(&of, "total_pgmajfault")),
        most: of_memory("memory.max_usage_in_bytes").unwrap_or(0),
        failures: of_memory("memory.failcnt").unwrap_or(0),
        limit: of_memory("memory.limit_in_bytes").filter(|limit| *limit < NO_LIMIT),
        times: (get(&times, "user") * NANOSECONDS_PER_TICK, get(&times, "system") * NANOSECONDS_PER_TICK),
        periods: (get(&stat, "nr_periods"), get(&stat, "nr_throttled")),
        throttled: get(&stat, "throttled_time"),
        // No quota is -1, which is no number here.
        quota: number(&cpu.join("cpu.cfs_quota_us")),
        period: number(&cpu.join("cpu.cfs_period_us")).unwrap_or(0),
        shares: number(&cpu.join("cpu.shares")).unwrap_or(0),
        tasks: number(&group("pids").join("pids.current")).unwrap_or(0),
        killed: get(&oom, "oom_kill"),
    }
}

fn v2(group: &Path) -> Counts {
    let (of, events) = (fields(&group.join("memory.stat")), fields(&group.join("memory.events")));
    let stat = fields(&group.join("cpu.stat"));
    let get = |fields: &Fields, key: &str| fields.get(key).copied().unwrap_or(0);
    let limits = std::fs::read_to_string(group.join("cpu.max")).unwrap_or_default();
    let mut limits = limits.split_whitespace().map(|word| word.parse().ok());
    Counts {
        rss: get(&of, "anon"),
        cache: get(&of, "file"),
        mapped: get(&of, "file_mapped"),
        swap: number(&group.join("memory.swap.current")).unwrap_or(0),
        faults: (get(&of, "pgfault"), get(&of, "pgmajfault")),
        most: number(&group.join("memory.peak")).unwrap_or(0),
        failures: get(&events, "max"),
        limit: number(&group.join("memory.max")),
        times: (get(&stat, "user_usec") * 1000, get(&stat, "system_usec") * 1000),
        periods: (get(&stat, "nr_periods"), get(&stat, "nr_throttled")),
        throttled: get(&stat, "throttled_usec") * 1000,
        quota: limits.next().flatten(),
        period: limits.next().flatten().unwrap_or(0),
        shares: number(&group.join("cpu.weight")).unwrap_or(0),
        tasks: number(&group.join("pids.current")).unwrap_or(0),
        killed: get(&events, "oom_kill"),
    }
}

/// A process of the group or of one below it, to look at what all of them share.
pub fn process(path: &str) -> Option<i32> {
    let root = Path::new(ROOT);
    let group = if is_v2() { root.join(below(path)) } else { root.join("memory").join(below(path)) };
    let below = std::fs::read_dir(&group).ok()?.flatten().map(|e| e.path()).filter(|p| p.is_dir());
    let mut groups = std::iter::once(group.clone()).chain(below);
    groups.find_map(|g| std::fs::read_to_string(g.join("cgroup.procs")).ok()?.lines().next()?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        dir
    }

    #[test]
    fn both_versions_tell_the_same() {
        let old = with(&[
            ("memory/memory.stat", "cache 1\ntotal_cache 20\ntotal_rss 10\ntotal_pgfault 5\ntotal_pgmajfault 2\n"),
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory/memory.failcnt", "3\n"),
            ("memory/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"),
            ("cpuacct/cpuacct.stat", "user 100\nsystem 50\n"),
            ("cpu/cpu.stat", "nr_periods 8\nnr_throttled 4\nthrottled_time 7000\n"),
            ("cpu/cpu.cfs_quota_us", "-1\n"),
            ("cpu/cpu.cfs_period_us", "100000\n"),
            ("pids/pids.current", "6\n"),
        ]);
        let new = with(&[
            ("memory.stat", "anon 10\nfile 20\npgfault 5\npgmajfault 2\n"),
            ("memory.max", "max\n"),
            ("memory.events", "max 3\noom_kill 1\n"),
            ("cpu.stat", "user_usec 1000000\nsystem_usec 500000\nnr_periods 8\nnr_throttled 4\nthrottled_usec 7\n"),
            ("cpu.max", "max 100000\n"),
            ("pids.current", "6\n"),
        ]);
        let wanted = Counts {
            rss: 10,
            cache: 20,
            faults: (5, 2),
            failures: 3,
            times: (1_000_000_000, 500_000_000),
            periods: (8, 4),
            throttled: 7000,
            period: 100_000,
            tasks: 6,
            killed: 1,
            ..Counts::default()
        };
        assert_eq!(v1(&|controller| old.path().join(controller)), wanted);
        assert_eq!(v2(new.path()), wanted);
        assert_eq!(v2(Path::new("/none")), Counts::default());
    }
}
