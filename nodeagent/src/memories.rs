//! The machine's memories (NUMA nodes): how much of each pods may have, and from which a container gets its own. Pure but for
//! the reading of the machine.
//!
//! Invariant: memories that were given together are only given together again until all of it is back: a container that
//! was promised one memory must not find it filled by those that may use several.

use std::collections::BTreeMap;
use std::path::Path;

use crate::spec::resources::millis;
use crate::topology::{self, Hint, Mask};

/// Where the kernel tells of memories.
const SYS: &str = "/sys/devices/system/node";

/// Bytes by the numbers of memories.
pub type Amounts = BTreeMap<u32, u64>;

/// Who may use which memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum MemoryPolicy {
    /// Everybody all of it.
    #[default]
    None,
    /// Containers of guaranteed pods get theirs from memories that are chosen for them. So much of each is kept for the
    /// system and for everybody else.
    Static(Amounts),
}

/// Reads `0:memory=1Gi;1:memory=512Mi`.
pub fn parse_reserved(text: &str) -> Result<Amounts, String> {
    let mut reserved = Amounts::new();
    for part in text.split(';').map(str::trim).filter(|part| !part.is_empty()) {
        let (node, kinds) = part.split_once(':').ok_or_else(|| format!("{part:?} is not NUMA-NODE:memory=AMOUNT"))?;
        let node: u32 = node.trim().parse().map_err(|_| format!("{node:?} is not the number of a NUMA node"))?;
        for kind in kinds.split(',') {
            let (kind, amount) = kind.split_once('=').ok_or_else(|| format!("{kind:?} is not memory=AMOUNT"))?;
            if kind.trim() != "memory" {
                return Err(format!("{kind:?} cannot be reserved: memory can"));
            }
            let bytes = millis(amount.trim()).and_then(|m| u64::try_from(m / 1000).ok());
            let bytes = bytes.ok_or_else(|| format!("{amount:?} is not an amount of memory, such as 1Gi"))?;
            if reserved.insert(node, bytes).is_some() {
                return Err(format!("memory of NUMA node {node} is reserved twice"));
            }
        }
    }
    Ok(reserved)
}

/// The machine's memories with their bytes.
pub fn read() -> Amounts {
    of(Path::new(SYS))
}

fn of(root: &Path) -> Amounts {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    let one = |entry: std::fs::DirEntry| {
        let number = entry.file_name().to_str()?.strip_prefix("node")?.parse::<u32>().ok()?;
        let text = std::fs::read_to_string(entry.path().join("meminfo")).ok()?;
        let total = text.lines().find_map(|line| line.split_once("MemTotal:"))?.1;
        let kib: u64 = total.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some((number, kib * 1024))
    };
    entries.filter_map(one).collect()
}

/// What pods may have, and what containers have of it.
pub struct Memories<'a> {
    /// The numbers of the machine's memories, in the order of masks.
    pub nodes: &'a [u32],
    /// What pods may have of each.
    pub usable: &'a Amounts,
    /// What each container has that has any.
    pub given: Vec<&'a Amounts>,
}

impl Memories<'_> {
    fn sum(&self, mask: Mask, of: impl Fn(u32) -> u64) -> u64 {
        self.nodes.iter().enumerate().filter(|(at, _)| mask.has(*at)).map(|(_, node)| of(*node)).sum()
    }

    fn all(&self, node: u32) -> u64 {
        self.usable.get(&node).copied().unwrap_or(0)
    }

    fn free(&self, node: u32) -> u64 {
        let given: u64 = self.given.iter().filter_map(|amounts| amounts.get(&node)).sum();
        self.all(node).saturating_sub(given)
    }

    /// Whether those of the memories that are given already were given together.
    fn may_be_joined(&self, mask: Mask) -> bool {
        let same = |amounts: &Amounts| {
            self.nodes.iter().enumerate().all(|(at, node)| mask.has(at) == amounts.contains_key(node))
        };
        let touched = |amounts: &Amounts| {
            self.nodes.iter().enumerate().any(|(at, node)| mask.has(at) && amounts.contains_key(node))
        };
        self.given.iter().all(|amounts| !touched(amounts) || same(amounts))
    }

    /// Where so many bytes could be.
    pub fn hints(&self, bytes: u64) -> Vec<Hint> {
        let free = |mask: Mask| if self.may_be_joined(mask) { self.sum(mask, |node| self.free(node)) } else { 0 };
        topology::hints(self.nodes.len(), bytes, |mask| self.sum(mask, |node| self.all(node)), free)
    }

    /// Takes so many bytes: where the joined hint says if they are there, or on as few memories as can be.
    pub fn take(&self, bytes: u64, at: Option<Mask>) -> Option<Amounts> {
        let mut fitting: Vec<Hint> = self.hints(bytes);
        let wanted = |mask: Mask| at.is_some_and(|at| mask.contains(at));
        fitting.sort_by_key(|hint| {
            let mask = hint.nodes.unwrap_or(Mask::all(self.nodes.len()));
            (at != Some(mask), !wanted(mask), mask.count(), mask)
        });
        let mask = fitting.first()?.nodes?;
        let mut left = bytes;
        let mut taken = Amounts::new();
        for (_, node) in self.nodes.iter().enumerate().filter(|(at, _)| mask.has(*at)) {
            let part = left.min(self.free(*node));
            left -= part;
            // All of the group are written down, or others could take one of it alone.
            taken.insert(*node, part);
        }
        (left == 0).then_some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn what_is_reserved() {
        assert_eq!(parse_reserved("0:memory=1Gi;1:memory=512Mi").unwrap(), Amounts::from([(0, GIB), (1, GIB / 2)]));
        assert_eq!(parse_reserved("").unwrap(), Amounts::new());
        for bad in ["0", "x:memory=1Gi", "0:memory", "0:memory=x", "0:hugepages-1Gi=1Gi", "0:memory=1;0:memory=2"] {
            assert!(parse_reserved(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn memories_are_given() {
        let usable = Amounts::from([(0, 4 * GIB), (1, 4 * GIB)]);
        let nodes = [0, 1];
        let first = Amounts::from([(0, GIB)]);
        let both = Amounts::from([(0, 4 * GIB), (1, GIB)]);
        let second = Mask::every(2).nth(1).unwrap();
        for (given, bytes, at, taken) in [
            (vec![], GIB, None, Some(Amounts::from([(0, GIB)]))),
            (vec![], GIB, Some(second), Some(Amounts::from([(1, GIB)]))),
            (vec![&first], 4 * GIB, None, Some(Amounts::from([(1, 4 * GIB)]))),
            (vec![&first], 3 * GIB, None, Some(Amounts::from([(0, 3 * GIB)]))),
            (vec![], 5 * GIB, None, Some(Amounts::from([(0, 4 * GIB), (1, GIB)]))),
            // One of them was promised to somebody alone.
            (vec![&first], 5 * GIB, None, None),
            // Both were given together: nobody gets one alone.
            (vec![&both], GIB, None, Some(Amounts::from([(0, 0), (1, GIB)]))),
            (vec![&both], 4 * GIB, None, None),
            (vec![], 9 * GIB, None, None),
        ] {
            let memories = Memories { nodes: &nodes, usable: &usable, given: given.clone() };
            assert_eq!(memories.take(bytes, at), taken, "{given:?} {bytes} {at:?}");
        }
    }

    #[test]
    fn the_kernels_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        for node in 0..2 {
            let at = dir.path().join(format!("node{node}"));
            std::fs::create_dir(&at).unwrap();
            let text = format!("Node {node} MemTotal:       {} kB\nNode {node} MemFree: 1 kB\n", 1024 * (node + 1));
            std::fs::write(at.join("meminfo"), text).unwrap();
        }
        std::fs::create_dir(dir.path().join("power")).unwrap();
        assert_eq!(of(dir.path()), Amounts::from([(0, 1 << 20), (1, 2 << 20)]));
    }
}
