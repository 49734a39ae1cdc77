//! Where a container's processors, devices and memory should be: those who give them say by hints on which of the machine's
//! memories (NUMA nodes) they could, and a policy joins the hints to one. Pure.

use std::collections::BTreeSet;

/// Memories of a machine at most, if they are to be joined (upstream's limit): hints are sets of them.
pub const MAX_NODES: usize = 8;

/// How hints are joined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TopologyPolicy {
    /// Not at all.
    #[default]
    None,
    /// As well as it can be.
    BestEffort,
    /// A pod whose hints do not fit is refused.
    Restricted,
    /// A pod that does not fit on one memory is refused.
    SingleNumaNode,
}

impl std::str::FromStr for TopologyPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            "best-effort" => Ok(Self::BestEffort),
            "restricted" => Ok(Self::Restricted),
            "single-numa-node" => Ok(Self::SingleNumaNode),
            other => Err(format!("{other:?} is none of none, best-effort, restricted and single-numa-node")),
        }
    }
}

/// What hints are joined for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TopologyScope {
    /// Each container.
    #[default]
    Container,
    /// All containers of a pod together.
    Pod,
}

impl std::str::FromStr for TopologyScope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "container" => Ok(Self::Container),
            "pod" => Ok(Self::Pod),
            other => Err(format!("{other:?} is neither container nor pod")),
        }
    }
}

/// A set of memories by their places in the machine's list, at most [`MAX_NODES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mask(u32);

impl Mask {
    /// The first so many.
    pub fn all(count: usize) -> Self {
        Self(if count >= MAX_NODES { (1 << MAX_NODES) - 1 } else { (1 << count) - 1 })
    }

    /// Every set of some of the first so many.
    pub fn every(count: usize) -> impl Iterator<Item = Self> {
        (1..=Self::all(count).0).map(Self)
    }

    /// How many there are.
    pub fn count(self) -> u32 {
        self.0.count_ones()
    }

    /// Whether one is among them.
    pub fn has(self, place: usize) -> bool {
        place < MAX_NODES && self.0 & (1 << place) != 0
    }

    /// What is in both.
    fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether all of another set are among them.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Fewer, or as many with lower numbers.
    fn is_narrower(self, than: Self) -> bool {
        (self.count(), self.0) < (than.count(), than.0)
    }
}

/// What one giver says, or all of them together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hint {
    /// The memories; `None` for any.
    pub nodes: Option<Mask>,
    /// Whether it is as good as can be.
    pub preferred: bool,
}

/// The hints for one resource: `None` if it does not matter where it is, an empty list if it cannot be given.
pub type Hints = Option<Vec<Hint>>;

/// Hints for an amount: every set of memories that has it free; preferred are those that are as small as they could be on
/// an empty machine.
pub fn hints(count: usize, wanted: u64, all: impl Fn(Mask) -> u64, free: impl Fn(Mask) -> u64) -> Vec<Hint> {
    let fitting = Mask::every(count).filter(|mask| all(*mask) >= wanted);
    let smallest = fitting.map(Mask::count).min().unwrap_or(0);
    let having = Mask::every(count).filter(|mask| free(*mask) >= wanted);
    having.map(|mask| Hint { nodes: Some(mask), preferred: mask.count() == smallest }).collect()
}

/// Joins the hints for all resources on a machine with so many memories. `None` if the policy refuses the container.
pub fn join(policy: TopologyPolicy, count: usize, resources: &[Hints]) -> Option<Hint> {
    let all = Mask::all(count);
    let one = policy == TopologyPolicy::SingleNumaNode;
    let lists: Vec<Vec<Hint>> = (resources.iter())
        .map(|hints| match hints {
            None => vec![Hint { nodes: None, preferred: true }],
            Some(list) if list.is_empty() => vec![Hint { nodes: None, preferred: false }],
            Some(list) => list.clone(),
        })
        .map(|mut list| {
            list.retain(|hint| !one || (hint.preferred && hint.nodes.is_none_or(|mask| mask.count() == 1)));
            list
        })
        .collect();
    // What can be had by taking one hint of each list; equal results are one.
    let mut joined = BTreeSet::from([(all, true)]);
    for list in &lists {
        let with = |(mask, good): &(Mask, bool)| {
            let (mask, good) = (*mask, *good);
            list.iter().map(move |hint| (mask.and(hint.nodes.unwrap_or(all)), good && hint.preferred))
        };
        joined = joined.iter().flat_map(with).filter(|(mask, _)| mask.count() > 0).collect();
    }
    let enough = least(&lists);
    let best = joined.into_iter().reduce(|best, next| if is_better(next, best, enough) { next } else { best });
    let (mask, preferred) = best.unwrap_or((all, false));
    if !preferred && matches!(policy, TopologyPolicy::Restricted | TopologyPolicy::SingleNumaNode) {
        return None;
    }
    Some(Hint { nodes: (mask != all || !one).then_some(mask), preferred })
}

/// The most of what the resources need at least: with fewer memories one of them cannot be had from these alone.
fn least(lists: &[Vec<Hint>]) -> u32 {
    let smallest = |list: &Vec<Hint>| list.iter().filter_map(|hint| hint.nodes).map(Mask::count).min();
    lists.iter().filter_map(smallest).max().unwrap_or(1)
}

fn is_better((mask, preferred): (Mask, bool), (than, than_preferred): (Mask, bool), enough: u32) -> bool {
    if preferred != than_preferred {
        return preferred;
    }
    if preferred {
        return mask.is_narrower(than);
    }
    // Neither is good: as near as can be to what is enough, rather too many than too few only if none is exact.
    let (new, old) = (mask.count(), than.count());
    match old.cmp(&enough) {
        std::cmp::Ordering::Greater => mask.is_narrower(than),
        std::cmp::Ordering::Equal => new == enough && mask.is_narrower(than),
        std::cmp::Ordering::Less if new > enough => false,
        std::cmp::Ordering::Less => new > old || (new == old && mask.is_narrower(than)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use TopologyPolicy::{BestEffort, Restricted, SingleNumaNode};

    fn mask(bits: u32) -> Mask {
        Mask(bits)
    }

    fn hint(bits: u32, preferred: bool) -> Hint {
        Hint { nodes: Some(mask(bits)), preferred }
    }

    #[test]
    fn amounts_give_hints() {
        // Two memories with four each; one of the second is taken.
        let all = |m: Mask| 4 * u64::from(m.count());
        let free = |m: Mask| all(m) - u64::from(m.has(1));
        for (wanted, expected) in [
            (3, vec![hint(1, true), hint(2, true), hint(3, false)]),
            (4, vec![hint(1, true), hint(3, false)]),
            (5, vec![hint(3, true)]),
            (8, vec![]),
            (9, vec![]),
        ] {
            assert_eq!(hints(2, wanted, all, free), expected, "{wanted}");
        }
    }

    #[test]
    fn policies_join_hints() {
        let either = || Some(vec![hint(1, true), hint(2, true), hint(3, false)]);
        let first = || Some(vec![hint(1, true), hint(3, false)]);
        let second = || Some(vec![hint(2, true), hint(3, false)]);
        let both = || Some(vec![hint(3, true)]);
        let cramped = || Some(vec![hint(3, false)]);
        let impossible = || Some(vec![]);
        let nothing = Hint { nodes: Some(mask(3)), preferred: true };
        for (what, resources, best_effort, restricted, single) in [
            ("nothing asked", vec![], nothing, true, true),
            ("no opinion", vec![None, None], nothing, true, true),
            ("both fit on the first", vec![either(), first()], hint(1, true), true, true),
            ("both fit on the second", vec![either(), second()], hint(2, true), true, true),
            ("they disagree", vec![first(), second()], hint(1, false), false, false),
            ("needs both memories", vec![both()], hint(3, true), true, false),
            ("one beside what needs both", vec![both(), either()], hint(1, true), true, false),
            ("room on both together only", vec![cramped()], hint(3, false), false, false),
            ("one cannot be had", vec![either(), impossible()], hint(1, false), false, false),
            ("no opinion beside one", vec![None, second()], hint(2, true), true, true),
        ] {
            assert_eq!(join(BestEffort, 2, &resources), Some(best_effort), "{what}");
            assert_eq!(join(Restricted, 2, &resources).is_some(), restricted, "{what}");
            assert_eq!(join(SingleNumaNode, 2, &resources).is_some(), single, "{what}");
        }
        assert_eq!(join(SingleNumaNode, 2, &[None]), Some(Hint { nodes: None, preferred: true }));
        assert_eq!(join(SingleNumaNode, 2, &[either(), first()]), Some(hint(1, true)));
    }

    #[test]
    fn bad_hints_are_as_near_as_can_be() {
        // One resource needs two memories at least: of what is not preferred, a pair is taken and not a single one.
        let wide = Some(vec![hint(0b0011, false), hint(0b1100, false), hint(0b1111, false)]);
        let any = Some(Mask::every(4).map(|m| Hint { nodes: Some(m), preferred: m.count() == 1 }).collect());
        assert_eq!(join(BestEffort, 4, &[wide, any]), Some(hint(0b0011, false)));
        assert_eq!(Mask::every(3).count(), 7);
        assert!(mask(0b110).contains(mask(0b100)) && !mask(0b100).contains(mask(0b110)));
    }
}
