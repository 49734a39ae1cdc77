//! Processors: sets of them as the kernel writes them, how they belong together, and which are given to a container alone.
//! Pure but for the reading of the topology.

use std::collections::BTreeSet;
use std::path::Path;

/// Where the kernel tells of processors.
const SYS: &str = "/sys/devices/system/cpu";
/// The largest number of a processor that is believed: a set is not made larger by a file that is not understood.
const MAX_CPU: u32 = 8191;

/// Who may use which processors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CpuPolicy {
    /// Everybody all of them.
    #[default]
    None,
    /// Containers of guaranteed pods that ask for whole processors get them alone. Those that are named here are kept for
    /// the system and for everybody else.
    Static(CpuSet),
}

/// A set of processors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuSet(pub BTreeSet<u32>);

impl std::str::FromStr for CpuSet {
    type Err = String;

    /// Reads `0-3,8`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut set = BTreeSet::new();
        for part in text.trim().split(',').filter(|p| !p.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |text: &str| text.trim().parse::<u32>().ok().filter(|n| *n <= MAX_CPU);
            match (number(first), number(last)) {
                (Some(first), Some(last)) if first <= last => set.extend(first..=last),
                _ => return Err(format!("{part:?} is neither a processor nor a range of them, such as 0-3")),
            }
        }
        Ok(Self(set))
    }
}

impl std::fmt::Display for CpuSet {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut rest = self.0.iter().copied().peekable();
        let mut first_part = true;
        while let Some(first) = rest.next() {
            let mut last = first;
            while rest.next_if_eq(&(last + 1)).is_some() {
                last += 1;
            }
            let comma = if std::mem::take(&mut first_part) { "" } else { "," };
            match last == first {
                true => write!(out, "{comma}{first}")?,
                false => write!(out, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

impl CpuSet {
    /// What is here and not there.
    pub fn without(&self, other: &Self) -> Self {
        Self(self.0.difference(&other.0).copied().collect())
    }
}

/// Where a processor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// The memory that is near it.
    numa: u32,
    socket: u32,
    core: u32,
}

/// The machine's processors.
#[derive(Clone, Debug, Default)]
pub struct Topology {
    /// In the order in which they are given.
    cpus: Vec<(Place, u32)>,
}

impl Topology {
    /// What the kernel tells.
    pub fn read() -> Self {
        Self::of(Path::new(SYS))
    }

    fn of(root: &Path) -> Self {
        let text = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
        let online: CpuSet = text(&root.join("online")).parse().unwrap_or_default();
        let place = |cpu: u32| {
            let dir = root.join(format!("cpu{cpu}"));
            let number = |name: &str| text(&dir.join("topology").join(name)).trim().parse().unwrap_or(0);
            let nodes = std::fs::read_dir(&dir).into_iter().flatten().flatten();
            let mut nodes = nodes.filter_map(|e| e.file_name().to_str()?.strip_prefix("node")?.parse().ok());
            Place { numa: nodes.next().unwrap_or(0), socket: number("physical_package_id"), core: number("core_id") }
        };
        let mut cpus: Vec<(Place, u32)> = online.0.iter().map(|cpu| (place(*cpu), *cpu)).collect();
        cpus.sort_unstable();
        Self { cpus }
    }

    /// All of them.
    pub fn all(&self) -> CpuSet {
        CpuSet(self.cpus.iter().map(|(_, cpu)| *cpu).collect())
    }

    /// The memories that are near processors.
    pub fn numas(&self) -> BTreeSet<u32> {
        self.cpus.iter().map(|(place, _)| place.numa).collect()
    }

    /// Those of a set that are near one of these memories.
    pub fn at(&self, set: &CpuSet, numas: &BTreeSet<u32>) -> CpuSet {
        let here = self.cpus.iter().filter(|(place, cpu)| numas.contains(&place.numa) && set.0.contains(cpu));
        CpuSet(here.map(|(_, cpu)| *cpu).collect())
    }

    /// Takes so many of the free ones from these memories, and only what these do not have from others.
    pub fn take_at(&self, count: usize, free: &CpuSet, numas: &BTreeSet<u32>) -> Option<CpuSet> {
        let here = self.at(free, numas);
        if here.0.len() >= count {
            return self.take(count, &here, numas);
        }
        let mut rest = self.take(count - here.0.len(), &free.without(&here), numas)?;
        rest.0.extend(here.0);
        Some(rest)
    }

    /// Takes so many of the free ones: near one memory if they fit there (first where `near` says, for the sake of
    /// devices), whole cores before parts.
    pub fn take(&self, count: usize, free: &CpuSet, near: &BTreeSet<u32>) -> Option<CpuSet> {
        let free: Vec<(Place, u32)> = self.cpus.iter().filter(|(_, cpu)| free.0.contains(cpu)).copied().collect();
        if free.len() < count {
            return None;
        }
        let numas: BTreeSet<u32> = free.iter().map(|(place, _)| place.numa).collect();
        let of = |numa: u32| free.iter().filter(move |(place, _)| place.numa == numa);
        let mut fitting: Vec<u32> = numas.iter().copied().filter(|numa| of(*numa).count() >= count).collect();
        // The fullest that still has room, so that large requests find room later.
        fitting.sort_by_key(|numa| (!near.contains(numa), of(*numa).count(), *numa));
        let candidates: Vec<(Place, u32)> = match fitting.first() {
            Some(numa) => of(*numa).copied().collect(),
            None => free.clone(),
        };
        Some(self.choose(count, &candidates))
    }

    fn choose(&self, count: usize, candidates: &[(Place, u32)]) -> CpuSet {
        let whole = |place: &Place| {
            let all = self.cpus.iter().filter(|(p, _)| p == place).count();
            (all, candidates.iter().filter(|(p, _)| p == place).count() == all)
        };
        let mut chosen = BTreeSet::new();
        let mut places: Vec<Place> = candidates.iter().map(|(place, _)| *place).collect();
        places.dedup();
        for place in &places {
            let (size, free) = whole(place);
            if free && chosen.len() + size <= count {
                chosen.extend(candidates.iter().filter(|(p, _)| p == place).map(|(_, cpu)| *cpu));
            }
        }
        // The rest from cores that are in use already, then from whole ones.
        let mut rest: Vec<&(Place, u32)> = candidates.iter().filter(|(_, cpu)| !chosen.contains(cpu)).collect();
        rest.sort_by_key(|(place, cpu)| (whole(place).1, *place, *cpu));
        let missing = count.saturating_sub(chosen.len());
        chosen.extend(rest.into_iter().take(missing).map(|(_, cpu)| *cpu));
        CpuSet(chosen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str) -> CpuSet {
        text.parse().unwrap()
    }

    #[test]
    fn sets_are_read_and_written() {
        for (text, written) in [("", ""), ("3", "3"), ("0-3,8", "0-3,8"), ("1,0,2,5", "0-2,5"), ("7-7\n", "7")] {
            assert_eq!(set(text).to_string(), written, "{text:?}");
        }
        for bad in ["x", "3-1", "0-99999999", "1-"] {
            assert!(bad.parse::<CpuSet>().is_err(), "{bad:?}");
        }
    }

    /// Two memories with two cores each, and two processors a core: 0 and 4 are one core, and so on.
    fn machine() -> Topology {
        let place = |cpu: u32| Place { numa: cpu % 4 / 2, socket: cpu % 4 / 2, core: cpu % 2 };
        let mut cpus: Vec<(Place, u32)> = (0..8).map(|cpu| (place(cpu), cpu)).collect();
        cpus.sort_unstable();
        Topology { cpus }
    }

    #[test]
    fn whole_cores_near_one_memory() {
        let (all, anywhere) = (machine().all(), BTreeSet::new());
        for (count, free, near, taken) in [
            (2, all.clone(), anywhere.clone(), Some("0,4")),
            (4, all.clone(), anywhere.clone(), Some("0-1,4-5")),
            (2, all.clone(), BTreeSet::from([1]), Some("2,6")),
            // One of a core that is in use, not half of a free one.
            (1, set("1-3,5-7"), anywhere.clone(), Some("1")),
            (1, set("4-5,1,2-3,6-7"), anywhere.clone(), Some("4")),
            (3, all.clone(), anywhere.clone(), Some("0-1,4")),
            // No memory has room for all: they come from both.
            (6, all.clone(), anywhere.clone(), Some("0-2,4-6")),
            (9, all, anywhere.clone(), None),
            (1, set(""), anywhere, None),
        ] {
            let got = machine().take(count, &free, &near).map(|set| set.to_string());
            assert_eq!(got.as_deref(), taken, "{count} of {free}");
        }
    }

    #[test]
    fn processors_of_some_memories_come_first() {
        for (count, numas, taken) in [(2, vec![1], "2,6"), (5, vec![1], "0,2-3,6-7"), (2, vec![0, 1], "0,4")] {
            let got = machine().take_at(count, &machine().all(), &numas.iter().copied().collect()).unwrap();
            assert_eq!(got.to_string(), taken, "{count} {numas:?}");
        }
        assert!(machine().take_at(9, &machine().all(), &[1].into()).is_none());
        assert_eq!(machine().at(&set("0-3"), &[1].into()).to_string(), "2-3");
    }

    #[test]
    fn the_kernels_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("online"), "0-1\n").unwrap();
        for cpu in 0..2 {
            let topology = dir.path().join(format!("cpu{cpu}/topology"));
            std::fs::create_dir_all(&topology).unwrap();
            std::fs::create_dir(dir.path().join(format!("cpu{cpu}/node{cpu}"))).unwrap();
            std::fs::write(topology.join("physical_package_id"), "0\n").unwrap();
            std::fs::write(topology.join("core_id"), format!("{cpu}\n")).unwrap();
        }
        let read = Topology::of(dir.path());
        assert_eq!((read.all().to_string(), read.cpus[1].0), ("0-1".into(), Place { numa: 1, socket: 0, core: 1 }));
        assert!(!Topology::read().all().0.is_empty());
    }
}
