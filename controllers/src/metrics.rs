//! What the controllers do, in numbers under upstream's names.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use keelson_metrics::{Histogram, Source, family, sample};
use parking_lot::Mutex;

use crate::runtime::Keys;

/// Upper bounds of the buckets of times, seconds.
const BOUNDS: &[f64] = &[1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0];

/// The numbers of one controller.
pub struct Stats {
    name: &'static str,
    /// None of a controller that is a loop.
    queue: Option<Keys>,
    waited: Histogram,
    worked: Histogram,
    /// Since when each worker is at work.
    under_way: Mutex<HashMap<usize, Instant>>,
    panics: AtomicU64,
}

impl Stats {
    /// Of a controller that has done nothing yet.
    pub fn new(name: &'static str, queue: Option<Keys>) -> Arc<Self> {
        Arc::new(Self {
            name,
            queue,
            waited: Histogram::new(BOUNDS),
            worked: Histogram::new(BOUNDS),
            under_way: Mutex::default(),
            panics: AtomicU64::new(0),
        })
    }

    /// A worker begins with a key that waited for it.
    pub fn begin(&self, worker: usize, waited: Duration) {
        self.waited.took(waited);
        self.under_way.lock().insert(worker, Instant::now());
    }

    /// A worker is done with its key.
    pub fn end(&self, worker: usize) {
        if let Some(since) = self.under_way.lock().remove(&worker) {
            self.worked.took(since.elapsed());
        }
    }

    /// Counts a panic.
    pub fn panicked(&self) {
        self.panics.fetch_add(1, Relaxed);
    }

    fn label(&self) -> String {
        // Upstream's queues have the names of what they are about.
        format!("name=\"{}\"", self.name.trim_end_matches("-controller"))
    }
}

/// The numbers of all controllers.
pub struct Table(pub Vec<Arc<Stats>>);

impl Table {
    fn family(&self, out: &mut String, (name, kind, help): (&str, &str, &str), of: impl Fn(&Stats) -> Option<f64>) {
        family(out, name, kind, help);
        for stats in &self.0 {
            if let Some(value) = of(stats) {
                sample(out, name, &stats.label(), value);
            }
        }
    }

    fn histograms(&self, out: &mut String, name: &str, help: &str, of: impl Fn(&Stats) -> &Histogram) {
        family(out, name, "histogram", help);
        for stats in self.0.iter().filter(|s| s.queue.is_some()) {
            of(stats).write(name, &stats.label(), out);
        }
    }
}

impl Source for Table {
    fn write(&self, out: &mut String) {
        let counts = |stats: &Stats| stats.queue.as_ref().map(|q| q.counts());
        let now = Instant::now();
        let ages = |stats: &Stats| -> Option<Vec<f64>> {
            stats.queue.as_ref()?;
            Some(stats.under_way.lock().values().map(|s| now.saturating_duration_since(*s).as_secs_f64()).collect())
        };
        let depth = ("workqueue_depth", "gauge", "Current depth of workqueue");
        self.family(out, depth, |s| counts(s).map(|c| c.0 as f64));
        let adds = ("workqueue_adds_total", "counter", "Total number of adds handled by workqueue");
        self.family(out, adds, |s| counts(s).map(|c| c.1 as f64));
        let retries = ("workqueue_retries_total", "counter", "Total number of retries handled by workqueue");
        self.family(out, retries, |s| counts(s).map(|c| c.2 as f64));
        let unfinished = ("workqueue_unfinished_work_seconds", "gauge", "How long the work under way takes, in sum.");
        self.family(out, unfinished, |s| ages(s).map(|a| a.iter().sum()));
        let longest = ("workqueue_longest_running_processor_seconds", "gauge", "How long the longest work takes.");
        self.family(out, longest, |s| ages(s).map(|a| a.into_iter().fold(0.0, f64::max)));
        let panics = ("keelson_controller_panics_total", "counter", "Panics, each of which restarted its work.");
        self.family(out, panics, |s| Some(s.panics.load(Relaxed) as f64));
        let waited = "How long in seconds an item stays in workqueue before being requested.";
        self.histograms(out, "workqueue_queue_duration_seconds", waited, |s| &s.waited);
        let worked = "How long in seconds processing an item from workqueue takes.";
        self.histograms(out, "workqueue_work_duration_seconds", worked, |s| &s.worked);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_a_queue_and_of_a_loop() {
        let queue = Keys::default();
        queue.add(("d".into(), "a".into()));
        let (keyed, looped) = (Stats::new("job-controller", Some(queue)), Stats::new("pod-garbage", None));
        keyed.begin(0, Duration::from_millis(5));
        keyed.end(0);
        looped.panicked();
        let mut out = String::new();
        Table(vec![keyed, looped]).write(&mut out);
        for line in [
            "workqueue_depth{name=\"job\"} 1",
            "workqueue_adds_total{name=\"job\"} 1",
            "workqueue_queue_duration_seconds_bucket{name=\"job\",le=\"0.01\"} 1",
            "workqueue_work_duration_seconds_count{name=\"job\"} 1",
            "keelson_controller_panics_total{name=\"pod-garbage\"} 1",
        ] {
            assert!(out.lines().any(|l| l == line), "{line} is not in {out}");
        }
        assert!(!out.contains("workqueue_depth{name=\"pod-garbage\"}"));
    }
}
