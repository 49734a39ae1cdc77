//! How long the latest writes to the log's disk took.

use std::time::Duration;

use keelson_metrics::Histogram;
use parking_lot::Mutex;

use crate::figures::DISK_BOUNDS;

/// Writes that are remembered.
const REMEMBERED: usize = 512;

/// The latest times, in a ring, and how many of all were how long.
#[derive(Debug)]
pub struct SyncTimes {
    latest: Mutex<Ring>,
    all: Histogram,
}

impl Default for SyncTimes {
    fn default() -> Self {
        Self { latest: Mutex::default(), all: Histogram::new(DISK_BOUNDS) }
    }
}

#[derive(Debug, Default)]
struct Ring {
    micros: Vec<u32>,
    next: usize,
}

/// What they come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SyncSummary {
    /// Half of the writes were faster.
    pub median_micros: u32,
    /// One in a hundred was slower.
    pub slow_micros: u32,
    /// How many were looked at.
    pub count: usize,
}

impl SyncTimes {
    /// Remembers one.
    pub fn add(&self, time: Duration) {
        let micros = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        self.all.took(time);
        let mut ring = self.latest.lock();
        if ring.micros.len() < REMEMBERED {
            ring.micros.push(micros);
            return;
        }
        let at = ring.next;
        ring.micros[at] = micros;
        ring.next = (at + 1) % REMEMBERED;
    }

    /// All of them.
    pub fn all(&self) -> &Histogram {
        &self.all
    }

    /// Looks at all that are remembered.
    pub fn summary(&self) -> SyncSummary {
        let mut micros = self.latest.lock().micros.clone();
        micros.sort_unstable();
        let at = |part: usize| micros.get((micros.len() * part / 100).min(micros.len().saturating_sub(1))).copied();
        SyncSummary {
            median_micros: at(50).unwrap_or_default(),
            slow_micros: at(99).unwrap_or_default(),
            count: micros.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_count() {
        let times = SyncTimes::default();
        assert_eq!(times.summary(), SyncSummary::default());
        for _ in 0..REMEMBERED {
            times.add(Duration::from_secs(9));
        }
        for micros in 0..REMEMBERED as u64 {
            times.add(Duration::from_micros(micros));
        }
        let summary = times.summary();
        assert_eq!((summary.median_micros, summary.slow_micros, summary.count), (256, 506, REMEMBERED));
        assert_eq!(times.all().count(), 2 * REMEMBERED as u64);
    }
}
