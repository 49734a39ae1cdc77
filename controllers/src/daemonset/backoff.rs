//! How long daemons that failed are left on their nodes: longer with each that fails, so that one which always fails is
//! not made anew without a pause.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The first pause.
const FIRST: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(15 * 60);
/// A node without a failure for so long starts anew.
const FORGOTTEN: Duration = Duration::from_secs(2 * 15 * 60);
/// So many entries are kept before forgotten ones are looked for.
const SWEEP: usize = 1024;

/// One node of one generation of a set.
type Place = (String, i64, String);

struct Entry {
    pause: Duration,
    since: Instant,
}

/// Since when, and for how long, failed daemons are left alone.
#[derive(Default)]
pub struct Backoff {
    entries: Mutex<(HashMap<Place, Entry>, usize)>,
}

impl Backoff {
    /// How long the failed pod has to stay; `None`: it goes now, and the next one stays longer.
    pub fn pause(&self, uid: &str, generation: i64, node: &str, now: Instant) -> Option<Duration> {
        let mut guard = self.entries.lock();
        let (entries, swept) = &mut *guard;
        if entries.len() > SWEEP.max(*swept * 2) {
            entries.retain(|_, entry| now.duration_since(entry.since) < FORGOTTEN);
            *swept = entries.len();
        }
        let place = (uid.to_owned(), generation, node.to_owned());
        let pause = match entries.get(&place) {
            Some(entry) if now.duration_since(entry.since) < entry.pause => return Some(entry.pause),
            Some(entry) if now.duration_since(entry.since) < FORGOTTEN => (entry.pause * 2).min(LONGEST),
            _ => FIRST,
        };
        entries.insert(place, Entry { pause, since: now });
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_by_node_and_are_forgotten() {
        let (backoff, start) = (Backoff::default(), Instant::now());
        for (what, node, generation, at, expected) in [
            ("the first goes at once", "a", 1, 0, None),
            ("the next waits", "a", 1, 0, Some(1)),
            ("another node does not", "b", 1, 0, None),
            ("nor another generation", "a", 2, 0, None),
            ("after its pause", "a", 1, 1, None),
            ("it is longer now", "a", 1, 2, Some(2)),
            ("and over", "a", 1, 3, None),
            ("longer again", "a", 1, 6, Some(4)),
            ("a long time without failures", "a", 1, 3 + 1800, None),
            ("begins anew", "a", 1, 4 + 1800, None),
            ("with the second pause", "a", 1, 5 + 1800, Some(2)),
        ] {
            let pause = backoff.pause("u", generation, node, start + Duration::from_secs(at));
            assert_eq!(pause, expected.map(Duration::from_secs), "{what}");
        }
    }

    #[test]
    fn the_longest_pause_is_a_quarter_of_an_hour() {
        let backoff = Backoff::default();
        let mut now = Instant::now();
        for _ in 0..20 {
            while let Some(pause) = backoff.pause("u", 1, "n", now) {
                assert!(pause <= LONGEST);
                now += pause;
            }
        }
        assert_eq!(backoff.pause("u", 1, "n", now), Some(LONGEST));
    }

    #[test]
    fn what_is_forgotten_is_not_kept() {
        let (backoff, start) = (Backoff::default(), Instant::now());
        for node in 0..=SWEEP {
            backoff.pause("u", 1, &node.to_string(), start);
        }
        backoff.pause("u", 1, "late", start + FORGOTTEN);
        assert_eq!(backoff.entries.lock().0.len(), 1);
    }
}
