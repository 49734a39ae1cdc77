//! Watches against the log of what was committed: ordered, unique, atomic, reliable, filtered, resumable, bookmarkable,
//! with the right previous values.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Fault, Verdict};

/// A change of a key, as a watch delivers it and as the log has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Event {
    /// The revision of the change.
    pub revision: i64,
    /// The key.
    pub key: String,
    /// The new value; `None` is a deletion.
    pub value: Option<String>,
    /// The revision at which the key was created.
    pub created: i64,
    /// How often the key was written since.
    pub version: i64,
    /// The value before, if the watch asked for it and there was one.
    pub previous: Option<String>,
}

/// What a watch said, in the order in which it was said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    /// The watch was made, or made again after its connection was lost, to begin at this revision.
    Began(i64),
    /// Events of one message.
    Events(Vec<Event>),
    /// All events up to this revision have been delivered.
    Progress(i64),
    /// The watch ended since this revision is compacted.
    Compacted(i64),
}

/// A watch by one client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watched {
    /// Whose it is, and at which member it was: for messages.
    pub name: String,
    /// Keys that begin with this.
    pub prefix: String,
    /// Whether it asked for previous values.
    pub with_previous: bool,
    /// What it said.
    pub said: Vec<Said>,
}

/// Checks watches against the log, which has every change of the watched keys in order.
pub fn check(watches: &[Watched], log: &[Event]) -> Verdict {
    let mut faults = Vec::new();
    for watch in watches {
        one(watch, log, &mut faults);
    }
    Verdict::of(faults)
}

/// The part of a log, which is in order, from one revision up to and with another.
fn between<'l, 'e>(log: &'l [&'e Event], from: i64, to: i64) -> &'l [&'e Event] {
    let begin = log.partition_point(|event| event.revision < from);
    let end = log.partition_point(|event| event.revision <= to);
    log.get(begin..end).unwrap_or_default()
}

fn one(watch: &Watched, log: &[Event], faults: &mut Vec<Fault>) {
    let mut fault = |kind: &str, what: String| faults.push(Fault::new(kind, format!("{}: {what}", watch.name)));
    let wanted: Vec<&Event> = log.iter().filter(|event| event.key.starts_with(&watch.prefix)).collect();
    // Everything before this revision was delivered or not asked for; of the revision before it, all.
    let (mut next, mut first) = (0, true);
    for said in &watch.said {
        match said {
            Said::Began(revision) => {
                // Resuming where it stood is the client's part; beginning earlier would deliver twice.
                if first || *revision > next {
                    next = *revision;
                }
                first = false;
            }
            Said::Progress(revision) => {
                if let Some(missed) = between(&wanted, next, *revision).first() {
                    let at = missed.revision;
                    fault("bookmark-too-far", format!("progress to {revision}, but {at} was not delivered"));
                }
                next = next.max(*revision + 1);
            }
            Said::Compacted(revision) => next = next.max(*revision),
            Said::Events(events) => {
                let Some(last) = events.last() else { continue };
                if let Some(why) = misplaced(events, next) {
                    fault(why.0, why.1);
                }
                differences(watch, between(&wanted, next, last.revision), events, &mut fault);
                next = next.max(last.revision + 1);
            }
        }
    }
}

/// Events out of order, twice, or before where the watch stands.
fn misplaced(events: &[Event], next: i64) -> Option<(&'static str, String)> {
    if let Some(early) = events.iter().find(|event| event.revision < next) {
        return Some(("went-back", format!("revision {} after {}", early.revision, next - 1)));
    }
    for pair in events.windows(2) {
        if pair[0].revision > pair[1].revision {
            return Some(("unordered", format!("revision {} after {}", pair[1].revision, pair[0].revision)));
        }
    }
    None
}

fn differences(watch: &Watched, expected: &[&Event], events: &[Event], fault: &mut impl FnMut(&str, String)) {
    let by_place = |event: &Event| (event.revision, event.key.clone());
    let mut left: BTreeMap<(i64, String), &Event> = expected.iter().map(|event| (by_place(event), *event)).collect();
    let mut delivered = BTreeSet::new();
    for event in events {
        let place = by_place(event);
        if !delivered.insert(place.clone()) {
            fault("duplicate", format!("{} at {} was delivered twice", event.key, event.revision));
            continue;
        }
        let Some(truth) = left.remove(&place) else {
            fault("not-in-log", format!("{} at {} is not a change of what was asked for", event.key, event.revision));
            continue;
        };
        let mut truth = truth.clone();
        if !watch.with_previous {
            truth.previous = None;
        }
        if truth.previous != event.previous {
            let (key, at) = (&event.key, event.revision);
            fault("wrong-previous", format!("{key} at {at}: {:?} instead of {:?}", event.previous, truth.previous));
        } else if truth != *event {
            fault("wrong-event", format!("{event:?} instead of {truth:?}"));
        }
    }
    let last = events.last().map_or(0, |event| event.revision);
    for missed in left.values() {
        let kind = if missed.revision == last { "torn-revision" } else { "missed" };
        fault(kind, format!("{} at {} was not delivered", missed.key, missed.revision));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(revision: i64, key: &str, value: &str) -> Event {
        let value = Some(value.to_owned());
        Event { revision, key: key.into(), value, created: revision, version: 1, previous: None }
    }

    fn log() -> Vec<Event> {
        let again = Event { created: 2, version: 2, previous: Some("x".into()), ..event(5, "a/1", "w") };
        vec![event(2, "a/1", "x"), event(3, "b/1", "y"), event(4, "a/2", "z"), event(4, "a/3", "z"), again]
    }

    #[test]
    fn watches() {
        use Said::{Began, Compacted, Events, Progress};
        let log = log();
        let (one, two, three, again) = (log[0].clone(), log[2].clone(), log[3].clone(), log[4].clone());
        let both = || Events(vec![two.clone(), three.clone()]);
        let e = |event: &Event| Events(vec![event.clone()]);
        for (name, said, kinds) in [
            ("all", vec![Began(1), e(&one), both(), e(&again)], vec![]),
            (
                "in one message",
                vec![Began(1), Events(vec![one.clone(), two.clone(), three.clone(), again.clone()])],
                vec![],
            ),
            ("not the end yet", vec![Began(1), e(&one)], vec![]),
            ("from the middle", vec![Began(4), both()], vec![]),
            ("resumed", vec![Began(1), e(&one), Began(3), both()], vec![]),
            ("resumed, again the first", vec![Began(1), e(&one), Began(3), e(&one)], vec!["went-back", "not-in-log"]),
            ("one is missing", vec![Began(1), both()], vec!["missed"]),
            ("half a revision", vec![Began(1), e(&one), e(&two), e(&again)], vec!["torn-revision"]),
            ("twice in a message", vec![Began(1), Events(vec![one.clone(), one.clone()])], vec!["duplicate"]),
            (
                "out of order",
                vec![Began(1), Events(vec![again.clone(), one.clone(), two.clone(), three.clone()])],
                vec!["unordered", "not-in-log"],
            ),
            ("of another prefix", vec![Began(1), e(&one), e(&log[1])], vec!["not-in-log"]),
            ("wrong value", vec![Began(1), e(&event(2, "a/1", "q"))], vec!["wrong-event"]),
            (
                "wrong previous",
                vec![Began(5), e(&Event { previous: Some("q".into()), ..again.clone() })],
                vec!["wrong-previous"],
            ),
            ("progress", vec![Began(1), e(&one), Progress(3), both(), Progress(9)], vec!["bookmark-too-far"]),
            ("progress in order", vec![Began(1), e(&one), Progress(3), both(), e(&again), Progress(9)], vec![]),
            ("compacted", vec![Began(1), Compacted(5), Began(5), e(&again)], vec![]),
        ] {
            let watch = Watched { name: "w".into(), prefix: "a/".into(), with_previous: true, said };
            let verdict = check(&[watch], &log);
            assert_eq!(verdict.kinds(), kinds, "{name}: {verdict:?}");
        }
    }

    #[test]
    fn previous_values_only_where_asked_for() {
        let log = log();
        let said = vec![Said::Began(5), Said::Events(vec![Event { previous: None, ..log[4].clone() }])];
        let watch = Watched { name: "w".into(), prefix: "a/".into(), with_previous: false, said };
        assert_eq!(check(&[watch], &log), Verdict::Valid);
    }
}
