//! Keys as registers: each key's operations are linearizable, and revisions follow real time over all keys.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::linear::{self, Found, Model};
use super::{Fault, Verdict};
use crate::history::{Operation, Outcome};

/// Steps of a key's search: some seconds at most.
const BUDGET: usize = 2_000_000;
/// Steps of each search while a bad history is shortened.
const SHORTEN_BUDGET: usize = 100_000;

/// What is done to one key. Every written value is written once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Read it.
    Read,
    /// Write a value.
    Write(u64),
    /// Write the second value if the first is there.
    Swap(u64, u64),
    /// Delete it.
    Delete,
}

/// An action on a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// Which key.
    pub key: u64,
    /// What is done.
    pub action: Action,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// The value that was there when it was read (for reads).
    pub value: Option<u64>,
    /// Whether the swap or the deletion did something.
    pub done: bool,
    /// The store's revision in the answer.
    pub revision: i64,
}

/// An operation of this workload.
pub type Op = Operation<Input, Output>;

/// A key that holds a value or none.
pub struct Register;

impl Model for Register {
    type Input = Input;
    type Output = Output;
    type State = Option<u64>;

    fn step(state: &Option<u64>, input: &Input, output: Option<&Output>) -> Option<Option<u64>> {
        let (value, done) = match input.action {
            Action::Read => return output.is_none_or(|o| o.value == *state).then_some(*state),
            Action::Write(value) => return Some(Some(value)),
            Action::Swap(from, to) if *state == Some(from) => (Some(to), true),
            Action::Swap(..) => (*state, false),
            Action::Delete => (None, state.is_some()),
        };
        output.is_none_or(|o| o.done == done).then_some(value)
    }

    fn changes(input: &Input) -> bool {
        input.action != Action::Read
    }
}

/// Checks every key for itself, and the revisions of all.
pub fn check(history: &[Op]) -> Verdict {
    revisions(history).and(linearizable(history))
}

fn linearizable(history: &[Op]) -> Verdict {
    let mut keys: BTreeMap<u64, Vec<Op>> = BTreeMap::new();
    for operation in history {
        keys.entry(operation.input.key).or_default().push(operation.clone());
    }
    let mut verdict = Verdict::Valid;
    for (key, operations) in keys {
        let found = match linear::search::<Register>(&operations, BUDGET) {
            Found::Order => continue,
            Found::GaveUp => Verdict::Undecided { about: format!("key {key}: {} operations", operations.len()) },
            Found::None => {
                let part = linear::shorten::<Register>(&operations, SHORTEN_BUDGET);
                let what = format!("key {key}: no order of these operations explains what was answered");
                Verdict::Invalid {
                    faults: vec![Fault {
                        kind: "not-linearizable".into(),
                        what,
                        history: part.iter().map(line).collect(),
                    }],
                }
            }
        };
        verdict = verdict.and(found);
    }
    verdict
}

fn line(operation: &Op) -> String {
    let (start, end) = (operation.start / 1000, operation.end / 1000);
    format!("client {} {start}..{end} us: {:?} -> {:?}", operation.process, operation.input.action, operation.outcome)
}

/// What ended before another began has no later revision; no two writes have the same.
fn revisions(history: &[Op]) -> Verdict {
    let mut faults = Vec::new();
    let mut answered: Vec<&Op> = history.iter().filter(|o| matches!(o.outcome, Outcome::Ok(_))).collect();
    let mut writes = BTreeSet::new();
    for operation in &answered {
        let output = operation.outcome.ok();
        let wrote = match operation.input.action {
            Action::Read => false,
            Action::Write(_) => true,
            Action::Swap(..) | Action::Delete => output.is_some_and(|o| o.done),
        };
        let revision = output.map_or(0, |o| o.revision);
        if wrote && !writes.insert(revision) {
            faults.push(Fault::new("revision-reused", format!("two writes have revision {revision}")));
        }
    }
    answered.sort_by_key(|o| o.start);
    let mut ended: Vec<&Op> = answered.clone();
    ended.sort_by_key(|o| o.end);
    let (mut next, mut highest): (usize, Option<&Op>) = (0, None);
    let revision = |o: &Op| o.outcome.ok().map_or(0, |output| output.revision);
    for operation in answered {
        while let Some(earlier) = ended.get(next).filter(|earlier| earlier.end < operation.start) {
            if highest.is_none_or(|h| revision(h) < revision(earlier)) {
                highest = Some(earlier);
            }
            next += 1;
        }
        if let Some(before) = highest.filter(|h| revision(h) > revision(operation)) {
            let what = format!("revision {} was seen, then {}", revision(before), revision(operation));
            let history = vec![line(before), line(operation)];
            faults.push(Fault { kind: "revision-went-back".into(), what, history });
        }
    }
    Verdict::of(faults)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An operation on key 0: start, end, action, answer (`None` is an unknown outcome).
    fn op(start: u64, end: u64, action: Action, answer: Option<(Option<u64>, bool)>) -> Op {
        let outcome = match answer {
            Some((value, done)) => Outcome::Ok(Output { value, done, revision: 0 }),
            None => Outcome::Unknown,
        };
        Operation { process: 0, start, end, input: Input { key: 0, action }, outcome }
    }

    fn write(start: u64, end: u64, value: u64) -> Op {
        op(start, end, Action::Write(value), Some((None, true)))
    }

    fn read(start: u64, end: u64, value: Option<u64>) -> Op {
        op(start, end, Action::Read, Some((value, false)))
    }

    #[test]
    fn orders() {
        use Action::{Delete, Swap, Write};
        let lost = |value| op(10, 20, Write(value), None);
        for (name, history, good) in [
            ("nothing", vec![], true),
            ("read your write", vec![write(1, 2, 7), read(3, 4, Some(7))], true),
            ("a lost write", vec![write(1, 2, 7), read(3, 4, None)], false),
            ("a stale read", vec![write(1, 2, 7), write(3, 4, 8), read(5, 6, Some(7))], false),
            ("concurrent: either", vec![write(1, 9, 7), read(2, 3, None), read(4, 5, Some(7))], true),
            ("concurrent: not back", vec![write(1, 9, 7), read(2, 3, Some(7)), read(4, 5, None)], false),
            ("unknown: applied", vec![lost(7), read(30, 31, Some(7))], true),
            ("unknown: never", vec![lost(7), read(30, 31, None)], true),
            ("unknown: later", vec![lost(7), read(30, 31, None), read(40, 41, Some(7))], true),
            ("unknown: not undone", vec![lost(7), read(30, 31, Some(7)), read(40, 41, None)], false),
            ("unknown: not before its start", vec![read(1, 2, Some(7)), lost(7)], false),
            ("a value nobody wrote", vec![write(1, 2, 7), read(3, 4, Some(9))], false),
            ("swap", vec![write(1, 2, 7), op(3, 4, Swap(7, 8), Some((None, true))), read(5, 6, Some(8))], true),
            ("swap of another", vec![write(1, 2, 7), op(3, 4, Swap(6, 8), Some((None, true)))], false),
            (
                "both swaps won",
                vec![
                    write(1, 2, 7),
                    op(3, 9, Swap(7, 8), Some((None, true))),
                    op(3, 9, Swap(7, 9), Some((None, true))),
                ],
                false,
            ),
            (
                "one swap won",
                vec![
                    write(1, 2, 7),
                    op(3, 9, Swap(7, 8), Some((None, true))),
                    op(3, 9, Swap(7, 9), Some((None, false))),
                ],
                true,
            ),
            ("deleted", vec![write(1, 2, 7), op(3, 4, Delete, Some((None, true))), read(5, 6, None)], true),
            (
                "deleted twice",
                vec![write(1, 2, 7), op(3, 4, Delete, Some((None, true))), op(5, 6, Delete, Some((None, true)))],
                false,
            ),
            (
                "a failure that took effect",
                vec![Operation { outcome: Outcome::Failed, ..write(1, 2, 7) }, read(3, 4, Some(7))],
                false,
            ),
        ] {
            assert_eq!(linearizable(&history) == Verdict::Valid, good, "{name}: {:?}", linearizable(&history));
        }
    }

    #[test]
    fn a_fault_is_shown_by_few_operations() {
        let mut history: Vec<Op> = (0..200).map(|i| write(10 * i, 10 * i + 5, i)).collect();
        history.extend((1..200).map(|i| read(10 * i + 6, 10 * i + 9, Some(i))));
        assert_eq!(linearizable(&history), Verdict::Valid);
        history.push(read(1507, 1508, Some(149)));
        let Verdict::Invalid { faults } = linearizable(&history) else { panic!("not found") };
        let lines = &faults[0].history;
        assert!(lines.iter().filter(|line| line.contains("Read")).count() == 1, "{lines:?}");
        assert!(lines.iter().any(|line| line.contains("value: Some(149)")));
    }

    #[test]
    fn revisions_follow_time() {
        let with = |mut op: Op, at: i64| {
            if let Outcome::Ok(output) = &mut op.outcome {
                output.revision = at;
            }
            op
        };
        let kinds = |history: &[Op]| check(history).kinds().iter().map(|k| k.to_string()).collect::<Vec<_>>();
        let good = [with(write(1, 2, 7), 5), with(write(3, 4, 8), 6), with(read(5, 6, Some(8)), 6)];
        assert!(kinds(&good).is_empty());
        assert_eq!(kinds(&[with(write(1, 2, 7), 5), with(write(1, 3, 8), 5)]), ["revision-reused"]);
        let back = [with(write(1, 2, 7), 5), with(read(3, 4, Some(7)), 4)];
        assert_eq!(kinds(&back), ["revision-went-back"]);
        let concurrent = [with(write(1, 5, 7), 5), with(read(3, 4, Some(7)), 4)];
        assert!(kinds(&concurrent).is_empty());
    }
}
