//! A set to which unique elements are added: none is lost, none is invented, and none goes missing for a while.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Fault, Verdict};
use crate::history::{Operation, Outcome};

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// Add an element; each is added once.
    Add(u64),
    /// Read all.
    Read,
}

/// An operation; reads answer with all elements.
pub type Op = Operation<Input, BTreeSet<u64>>;

/// Checks a history whose reads are linearizable.
pub fn check(history: &[Op]) -> Verdict {
    let mut adds: BTreeMap<u64, &Op> = BTreeMap::new();
    for operation in history {
        if let Input::Add(element) = operation.input {
            adds.insert(element, operation);
        }
    }
    let mut faults = Vec::new();
    // When each element was first seen for certain: its addition was answered, or a read that has it was.
    let mut there: BTreeMap<u64, u64> =
        adds.iter().filter(|(_, add)| add.outcome.ok().is_some()).map(|(element, add)| (*element, add.end)).collect();
    let mut reads: Vec<(&Op, &BTreeSet<u64>)> = history.iter().filter_map(read).collect();
    for (operation, elements) in &reads {
        for element in *elements {
            let at = there.entry(*element).or_insert(operation.end);
            *at = (*at).min(operation.end);
            match adds.get(element) {
                Some(add) if add.outcome == Outcome::Failed => {
                    faults.push(Fault::new("failed-but-there", format!("{element} is there, though adding it failed")));
                }
                Some(add) if add.start > operation.end => {
                    faults.push(Fault::new("invented", format!("{element} was read before it was added")));
                }
                Some(_) => {}
                None => faults.push(Fault::new("invented", format!("{element} was read, and nobody added it"))),
            }
        }
    }
    reads.sort_by_key(|(operation, _)| operation.start);
    let last = reads.last().map(|(_, elements)| *elements);
    for (operation, elements) in &reads {
        for (element, _) in there.iter().filter(|(_, at)| **at < operation.start) {
            if elements.contains(element) {
                continue;
            }
            let kind = if last.is_some_and(|last| last.contains(element)) { "stale-read" } else { "lost" };
            let what = format!("{element} was there, and client {} did not read it", operation.process);
            faults.push(Fault::new(kind, what));
        }
    }
    Verdict::of(faults)
}

fn read(operation: &Op) -> Option<(&Op, &BTreeSet<u64>)> {
    if operation.input != Input::Read {
        return None;
    }
    Some((operation, operation.outcome.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(start: u64, end: u64, input: Input, outcome: Outcome<&[u64]>) -> Op {
        let outcome = match outcome {
            Outcome::Ok(elements) => Outcome::Ok(elements.iter().copied().collect()),
            Outcome::Failed => Outcome::Failed,
            Outcome::Unknown => Outcome::Unknown,
        };
        Operation { process: 0, start, end, input, outcome }
    }

    #[test]
    fn sets() {
        use Input::{Add, Read};
        use Outcome::{Failed, Ok, Unknown};
        let add = |outcome| op(1, 2, Add(7), outcome);
        let read = |start, elements| op(start, start + 1, Read, Ok(elements));
        for (name, history, kinds) in [
            ("there", vec![add(Ok(&[])), read(3, &[7])], vec![]),
            ("lost", vec![add(Ok(&[])), read(3, &[])], vec!["lost"]),
            ("stale", vec![add(Ok(&[])), read(3, &[]), read(5, &[7])], vec!["stale-read"]),
            ("read and then gone", vec![add(Unknown), read(3, &[7]), read(5, &[])], vec!["lost"]),
            ("unknown, not there", vec![add(Unknown), read(3, &[])], vec![]),
            ("unknown, later there", vec![add(Unknown), read(3, &[]), read(5, &[7])], vec![]),
            ("failed, there", vec![add(Failed), read(3, &[7])], vec!["failed-but-there"]),
            ("nobody's", vec![read(3, &[9])], vec!["invented"]),
            ("too early", vec![op(9, 10, Add(7), Unknown), read(3, &[7])], vec!["invented"]),
        ] {
            assert_eq!(check(&history).kinds(), kinds, "{name}");
        }
    }
}
