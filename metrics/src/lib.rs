//! Numbers of components as text for Prometheus: who has some adds a source, who serves them asks all sources.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::RwLock;

/// Something with numbers to show.
pub trait Source: Send + Sync {
    /// Writes them, each family once.
    fn write(&self, out: &mut String);
}

/// Sources of one process. One that nobody else holds any more is forgotten.
#[derive(Clone, Default)]
pub struct Sources(Arc<RwLock<Vec<Weak<dyn Source>>>>);

impl Sources {
    /// Adds a source.
    pub fn add(&self, source: &Arc<dyn Source>) {
        let mut sources = self.0.write();
        sources.retain(|s| s.strong_count() > 0);
        sources.push(Arc::downgrade(source));
    }

    /// What all sources say.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for source in self.0.read().iter().filter_map(Weak::upgrade) {
            source.write(&mut out);
        }
        out
    }
}

/// The head of a family.
pub fn family(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// A plain number. `labels` without braces.
pub fn sample(out: &mut String, name: &str, labels: &str, value: f64) {
    let _ =
        if labels.is_empty() { writeln!(out, "{name} {value}") } else { writeln!(out, "{name}{{{labels}}} {value}") };
}

/// How many were how large: for times, in seconds.
#[derive(Debug)]
pub struct Histogram {
    /// Upper bounds of the buckets, ascending.
    bounds: &'static [f64],
    buckets: Box<[AtomicU64]>,
    count: AtomicU64,
    /// In millionths.
    sum: AtomicU64,
}

impl Histogram {
    /// With these upper bounds, ascending.
    pub fn new(bounds: &'static [f64]) -> Self {
        let buckets = bounds.iter().map(|_| AtomicU64::new(0)).collect();
        Self { bounds, buckets, count: AtomicU64::new(0), sum: AtomicU64::new(0) }
    }

    /// Counts one.
    pub fn observe(&self, value: f64) {
        if let Some(bucket) = self.bounds.iter().position(|bound| value <= *bound) {
            self.buckets[bucket].fetch_add(1, Relaxed);
        }
        self.count.fetch_add(1, Relaxed);
        self.sum.fetch_add((value.max(0.0) * 1e6) as u64, Relaxed);
    }

    /// Counts a time.
    pub fn took(&self, time: Duration) {
        self.observe(time.as_secs_f64());
    }

    /// Forgets what was counted.
    pub fn reset(&self) {
        self.buckets.iter().chain([&self.count, &self.sum]).for_each(|number| number.store(0, Relaxed));
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.count.load(Relaxed)
    }

    /// Writes its samples. `labels` without braces.
    pub fn write(&self, name: &str, labels: &str, out: &mut String) {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut total = 0;
        for (bound, bucket) in self.bounds.iter().zip(&self.buckets) {
            total += bucket.load(Relaxed);
            let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {total}");
        }
        let count = self.count.load(Relaxed);
        let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}");
        sample(out, &format!("{name}_sum"), labels, self.sum.load(Relaxed) as f64 / 1e6);
        sample(out, &format!("{name}_count"), labels, count as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct One;
    impl Source for One {
        fn write(&self, out: &mut String) {
            family(out, "ones", "counter", "Ones.");
            sample(out, "ones", "a=\"b\"", 1.0);
        }
    }

    #[test]
    fn a_source_that_is_gone_says_nothing() {
        let sources = Sources::default();
        let one: Arc<dyn Source> = Arc::new(One);
        sources.add(&one);
        assert_eq!(sources.text(), "# HELP ones Ones.\n# TYPE ones counter\nones{a=\"b\"} 1\n");
        drop(one);
        assert_eq!(sources.text(), "");
    }

    #[test]
    fn buckets_are_cumulative() {
        let histogram = Histogram::new(&[0.1, 1.0]);
        for value in [0.05, 0.1, 0.5, 7.0] {
            histogram.observe(value);
        }
        let mut out = String::new();
        histogram.write("h", "", &mut out);
        assert_eq!(
            out,
            "h_bucket{le=\"0.1\"} 2\nh_bucket{le=\"1\"} 3\nh_bucket{le=\"+Inf\"} 4\nh_sum 7.65\nh_count 4\n"
        );
        histogram.reset();
        out.clear();
        histogram.write("h", "a=\"b\"", &mut out);
        assert!(out.lines().count() == 5 && out.lines().all(|line| line.ends_with(" 0")), "{out}");
    }
}
