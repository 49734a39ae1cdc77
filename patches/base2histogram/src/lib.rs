//! Counts of values in buckets whose width grows with the value: the part of the crate `base2histogram` that openraft
//! uses, in its place.
//!
//! The original computes the bounds of buckets for all sixteen precisions when the first histogram is made and keeps
//! them: 27 MiB, of which openraft uses 2 KiB. Here bounds are computed when somebody asks for a percentile.
//!
//! Invariant: `total` is the sum of the counts.

use std::fmt;
use std::marker::PhantomData;

/// Buckets between one power of two and the next.
const GROUP: usize = 4;
/// Buckets for all of `u64`: each value below 4 has its own, each further power of two has four.
const BUCKETS: usize = 252;

/// How often values were seen. A value is known to a quarter of the power of two below it.
///
/// `T` is here for openraft's signatures alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    counts: Box<[u64]>,
    total: u64,
    marker: PhantomData<T>,
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Histogram<T> {
    /// No values.
    pub fn new() -> Self {
        Self { counts: vec![0; BUCKETS].into(), total: 0, marker: PhantomData }
    }

    /// Counts a value.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Counts a value several times.
    pub fn record_n(&mut self, value: u64, times: u64) {
        self.counts[bucket(value)] += times;
        self.total += times;
    }

    /// The least value of the bucket below which the given share of the values lies, 0 if there are none.
    pub fn percentile(&self, share: f64) -> u64 {
        let wanted = (self.total as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        let found = self.counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        found.map_or(0, least)
    }

    /// The usual percentiles.
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats {
            samples: self.total,
            p0_1: self.percentile(0.001),
            p1: self.percentile(0.01),
            p5: self.percentile(0.05),
            p10: self.percentile(0.1),
            p50: self.percentile(0.5),
            p90: self.percentile(0.9),
            p99: self.percentile(0.99),
            p99_9: self.percentile(0.999),
        }
    }
}

/// The bucket of a value.
fn bucket(value: u64) -> usize {
    if value < GROUP as u64 {
        return value as usize;
    }
    // The two bits below the highest choose within the group.
    let shift = 61 - value.leading_zeros() as usize;
    GROUP + shift * GROUP + ((value >> shift) as usize & (GROUP - 1))
}

/// The least value of a bucket.
fn least(bucket: usize) -> u64 {
    if bucket < GROUP {
        return bucket as u64;
    }
    let (shift, within) = ((bucket - GROUP) / GROUP, bucket % GROUP);
    ((GROUP + within) as u64) << shift
}

/// Percentiles of a histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PercentileStats {
    /// How many values there are.
    pub samples: u64,
    /// A thousandth of the values lies below.
    pub p0_1: u64,
    /// A hundredth lies below.
    pub p1: u64,
    /// A twentieth lies below.
    pub p5: u64,
    /// A tenth lies below.
    pub p10: u64,
    /// Half lies below.
    pub p50: u64,
    /// Nine tenths lie below.
    pub p90: u64,
    /// All but a hundredth lie below.
    pub p99: u64,
    /// All but a thousandth lie below.
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { samples, p50, p90, p99, p99_9, .. } = self;
        write!(f, "{samples} values, half below {p50}, 90 % below {p90}, 99 % below {p99}, 99.9 % below {p99_9}")
    }
}

/// Several histograms to be shown together, a line each.
#[derive(Debug, Clone, Default)]
pub struct AsciiChart {
    rows: Vec<(String, PercentileStats)>,
}

impl AsciiChart {
    /// Shows nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a histogram under a name.
    #[must_use]
    pub fn add(mut self, name: impl Into<String>, histogram: Histogram) -> Self {
        self.rows.push((name.into(), histogram.percentile_stats()));
        self
    }
}

impl fmt::Display for AsciiChart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, stats) in &self.rows {
            writeln!(f, "{name}: {stats}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_is_in_the_bucket_that_begins_at_or_below_it() {
        let near = (0..64).flat_map(|bits| [(1u64 << bits) - 1, 1 << bits, (1 << bits) + 1]);
        for value in (0..5_000).chain(near).chain([u64::MAX]) {
            let at = bucket(value);
            assert!(least(at) <= value, "{value} in {at}");
            assert!(at + 1 == BUCKETS || value < least(at + 1), "{value} in {at}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn percentiles() {
        let mut histogram = Histogram::<()>::new();
        assert_eq!(histogram.percentile_stats().p99, 0);
        histogram.record_n(3, 90);
        histogram.record_n(100, 9);
        histogram.record(5_000);
        let stats = histogram.percentile_stats();
        assert_eq!((stats.samples, stats.p50, stats.p90, stats.p99, stats.p99_9), (100, 3, 3, 96, 4096));
        assert_eq!(AsciiChart::new().add("a", histogram).to_string().lines().count(), 1);
    }
}
