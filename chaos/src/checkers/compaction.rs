//! Compaction: what lies at and after the compacted revision is all there, for reads and for watches; what lies before is
//! refused.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Fault, Verdict};

/// An answered change of a key that only one client writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Its revision.
    pub revision: i64,
    /// The key.
    pub key: String,
    /// What was written; nothing for a deletion.
    pub value: Option<String>,
}

/// What the client saw when no change of its own was under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Look {
    /// A watch from a revision on delivered these, and perhaps would have gone on.
    Watched(i64, Vec<Change>),
    /// A read at a revision showed these keys and values.
    Read(i64, BTreeMap<String, String>),
    /// A read at the first revision was answered though history below the second was forgotten before.
    Unforgotten(i64, i64),
}

/// All that one client did, in order, and what it saw.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Its changes.
    pub changes: Vec<Change>,
    /// What it saw, each with how many of the changes were made by then.
    pub looks: Vec<(usize, Look)>,
}

/// Checks what clients saw against what they did.
pub fn check(told: &[Told]) -> Verdict {
    let faults = told.iter().flat_map(|told| {
        told.looks
            .iter()
            .filter_map(|(made, look)| check_look(told.changes.get(..*made).unwrap_or(&told.changes), look))
    });
    Verdict::of(faults.collect())
}

fn check_look(changes: &[Change], look: &Look) -> Option<Fault> {
    match look {
        Look::Watched(from, events) => {
            let expected: Vec<&Change> = changes.iter().filter(|change| change.revision >= *from).collect();
            for (at, event) in events.iter().enumerate() {
                match expected.get(at) {
                    Some(change) if *change == event => {}
                    Some(change) if change.revision < event.revision => {
                        let what = format!("a watch from {from} brought {event:?} and not {change:?}");
                        return Some(Fault::new("lost-event", what));
                    }
                    other => {
                        let what = format!("a watch from {from} brought {event:?} where {other:?} was made");
                        return Some(Fault::new("wrong-event", what));
                    }
                }
            }
            None
        }
        Look::Read(at, found) => {
            let mut state = BTreeMap::new();
            for change in changes.iter().filter(|change| change.revision <= *at) {
                match &change.value {
                    Some(value) => drop(state.insert(change.key.clone(), value.clone())),
                    None => drop(state.remove(&change.key)),
                }
            }
            let what = format!("at revision {at} there was {found:?} where {state:?} was made");
            (state != *found).then(|| Fault::new("wrong-past", what))
        }
        Look::Unforgotten(at, compacted) => {
            let what = format!("revision {at} was readable after history below {compacted} was forgotten");
            Some(Fault::new("not-forgotten", what))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(revision: i64, key: &str, value: Option<&str>) -> Change {
        Change { revision, key: key.into(), value: value.map(str::to_owned) }
    }

    #[test]
    fn looks_follow_from_changes() {
        let changes =
            vec![change(3, "a", Some("1")), change(5, "a", None), change(6, "b", Some("2")), change(9, "a", Some("3"))];
        let read = |at, pairs: &[(&str, &str)]| {
            Look::Read(at, pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect())
        };
        let from = |start: usize, count: usize| changes[start..start + count].to_vec();
        for (name, made, look, kinds) in [
            ("from a deletion", 4, Look::Watched(5, from(1, 3)), vec![]),
            ("from between", 4, Look::Watched(4, from(1, 2)), vec![]),
            ("nothing yet", 4, Look::Watched(5, vec![]), vec![]),
            ("the deletion is lost", 4, Look::Watched(5, from(2, 2)), vec!["lost-event"]),
            (
                "one in the middle is lost",
                4,
                Look::Watched(5, vec![changes[1].clone(), changes[3].clone()]),
                vec!["lost-event"],
            ),
            ("from before", 4, Look::Watched(6, from(1, 3)), vec!["wrong-event"]),
            ("another value", 4, Look::Watched(6, vec![change(6, "b", Some("x"))]), vec!["wrong-event"]),
            ("not made yet", 2, Look::Watched(5, from(1, 2)), vec!["wrong-event"]),
            ("the past", 4, read(4, &[("a", "1")]), vec![]),
            ("after the deletion", 4, read(6, &[("b", "2")]), vec![]),
            ("now", 4, read(20, &[("a", "3"), ("b", "2")]), vec![]),
            ("a key is gone", 4, read(20, &[("a", "3")]), vec!["wrong-past"]),
            ("a key is back", 4, read(6, &[("a", "1"), ("b", "2")]), vec!["wrong-past"]),
            ("still readable", 4, Look::Unforgotten(4, 6), vec!["not-forgotten"]),
        ] {
            let told = Told { changes: changes.clone(), looks: vec![(made, look)] };
            assert_eq!(check(&[told]).kinds(), kinds, "{name}");
        }
    }
}
