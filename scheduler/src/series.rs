//! Events that repeat: the second of a kind makes a series of the first, further ones only count. The count is written again
//! when the series has been still for a while, and now and then so that the event does not expire. As upstream's broadcaster
//! for `events.k8s.io` does it.
//!
//! Invariant: no more than [`MAX_REMEMBERED`] events are remembered; what does not fit is written as an event of its own.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::events::Note;

/// Events that are remembered.
const MAX_REMEMBERED: usize = 16_384;
/// An event that has not repeated for this long is over.
const OVER_AFTER: SignedDuration = SignedDuration::from_mins(6);

/// What makes an event the same as an earlier one. The pod's version is part of it: what is told of a pod that has changed
/// since is another event, and so is another message, which the pod's condition shows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    uid: Arc<str>,
    version: Arc<str>,
    kind: &'static str,
    reason: &'static str,
    action: &'static str,
}

impl Key {
    fn of(note: &Note) -> Self {
        let Note { pod, kind, reason, action, .. } = note;
        Self { uid: pod.uid.clone(), version: pod.version.clone(), kind, reason, action }
    }
}

/// An event that was written.
#[derive(Clone, Debug)]
struct Event {
    namespace: Arc<str>,
    name: Arc<str>,
    /// How often it happened.
    count: u32,
    last: Timestamp,
    /// What was written of the count.
    written: u32,
}

/// What is to be written of something that happened.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    /// An event of this name.
    New(Arc<str>),
    /// The series of an event that is there.
    Series(Update),
    /// Nothing: it is counted.
    Nothing,
}

/// A series to be written to an event that is there.
#[derive(Debug, PartialEq, Eq)]
pub struct Update {
    /// Namespace of the event.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// What is patched.
    pub patch: Value,
}

/// Events that may repeat.
#[derive(Debug, Default)]
pub struct Series {
    events: HashMap<Key, Event>,
}

/// A time with microseconds, as events have it.
pub fn micro_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

impl Event {
    fn update(&mut self) -> Update {
        self.written = self.count;
        let patch = json!({"series": {"count": self.count, "lastObservedTime": micro_time(self.last)}});
        Update { namespace: self.namespace.clone(), name: self.name.clone(), patch }
    }
}

impl Series {
    /// Takes note of something that happened.
    pub fn happened(&mut self, note: &Note) -> Decision {
        let Note { pod, time, kind, .. } = note;
        let name = || Arc::from(format!("{}.{:x}", pod.name, time.as_nanosecond()));
        // What goes well happens once.
        if *kind == "Normal" {
            return Decision::New(name());
        }
        let key = Key::of(note);
        if let Some(event) = self.events.get_mut(&key) {
            (event.count, event.last) = (event.count + 1, *time);
            return if event.count == 2 { Decision::Series(event.update()) } else { Decision::Nothing };
        }
        let name = name();
        if self.events.len() < MAX_REMEMBERED {
            let (namespace, name) = (pod.class.namespace.clone(), name.clone());
            self.events.insert(key, Event { namespace, name, count: 1, last: *time, written: 1 });
        }
        Decision::New(name)
    }

    /// Forgets an event that could not be written, or is not there any more: the next is a new one.
    pub fn lost(&mut self, note: &Note) {
        self.events.remove(&Key::of(note));
    }

    /// Forgets events that are over. Returns what is left to be written of them.
    pub fn finish(&mut self, now: Timestamp) -> Vec<Update> {
        let mut updates = Vec::new();
        self.events.retain(|_, event| {
            let over = now.duration_since(event.last) > OVER_AFTER;
            if over && event.written != event.count {
                updates.push(event.update());
            }
            !over
        });
        updates
    }

    /// The series as they are: what is written again so that they do not expire.
    pub fn refresh(&mut self) -> Vec<Update> {
        self.events.values_mut().filter(|event| event.count > 1).map(Event::update).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::View;
    use crate::wire::Pod;

    fn note(view: &mut View, version: &str, kind: &'static str, seconds: i64) -> Note {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"namespace": "d", "name": "p", "uid": "u",
            "resourceVersion": version}, "spec": {"containers": []}}))
        .unwrap();
        let time = Timestamp::from_second(seconds).unwrap();
        let (reason, action) = ("FailedScheduling", "Scheduling");
        Note { pod: view.compile(&pod), related: None, kind, reason, action, message: "why".into(), time }
    }

    fn counts(updates: &[Update]) -> Vec<u64> {
        updates.iter().filter_map(|update| update.patch["series"]["count"].as_u64()).collect()
    }

    #[test]
    fn the_second_makes_a_series_and_further_ones_count() {
        let (mut view, mut series) = (View::default(), Series::default());
        let minutes = OVER_AFTER.as_secs();
        let Decision::New(first) = series.happened(&note(&mut view, "1", "Warning", 0)) else {
            panic!("the first is new")
        };
        assert_eq!(&*first, "p.0");
        let second = series.happened(&note(&mut view, "1", "Warning", 1));
        let patch = json!({"series": {"count": 2, "lastObservedTime": "1970-01-01T00:00:01.000000Z"}});
        assert_eq!(second, Decision::Series(Update { namespace: "d".into(), name: first, patch }));
        assert_eq!(series.happened(&note(&mut view, "1", "Warning", 2)), Decision::Nothing);
        // A pod that has changed has an event of its own.
        assert!(matches!(series.happened(&note(&mut view, "2", "Warning", 3)), Decision::New(_)));
        assert_eq!(counts(&series.refresh()), [3], "the series is written again, the single event is not");
        assert_eq!(series.happened(&note(&mut view, "1", "Warning", 4)), Decision::Nothing);
        let at = |seconds: i64| Timestamp::from_second(seconds).unwrap();
        assert!(series.finish(at(minutes)).is_empty() && series.events.len() == 2);
        assert_eq!(counts(&series.finish(at(minutes + 5))), [4], "what was only counted is written at the end");
        assert!(series.events.is_empty());
        assert!(matches!(series.happened(&note(&mut view, "1", "Warning", minutes + 6)), Decision::New(_)));
    }

    #[test]
    fn what_is_not_remembered_is_new() {
        let (mut view, mut series) = (View::default(), Series::default());
        for time in 0..3 {
            assert!(matches!(series.happened(&note(&mut view, "1", "Normal", time)), Decision::New(_)));
        }
        assert!(series.events.is_empty());
        let warning = note(&mut view, "1", "Warning", 0);
        series.happened(&warning);
        series.lost(&warning);
        assert!(matches!(series.happened(&warning), Decision::New(_)));
        for version in 0..MAX_REMEMBERED + 2 {
            series.happened(&note(&mut view, &format!("v{version}"), "Warning", 0));
        }
        assert_eq!(series.events.len(), MAX_REMEMBERED);
    }
}
