//! What a member counts of its own work, shown under etcd's names where the meaning is the same.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use keelson_metrics::{Histogram, family, sample};
use parking_lot::RwLock;

use crate::replica::Inner;

/// Seconds: etcd's buckets of writes to the disk.
pub const DISK_BOUNDS: &[f64] =
    &[0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192];
/// Seconds: etcd's buckets of the way to another member and back.
const TRIP_BOUNDS: &[f64] = &[
    0.0001, 0.0002, 0.0004, 0.0008, 0.0016, 0.0032, 0.0064, 0.0128, 0.0256, 0.0512, 0.1024, 0.2048, 0.4096, 0.8192,
    1.6384, 3.2768,
];
/// From here on applying a batch counts as slow, as etcd's `--warning-apply-duration` has it.
const SLOW_APPLY: Duration = Duration::from_millis(100);
/// From here on a read that waits for the leader counts as slow.
const SLOW_READ: Duration = Duration::from_millis(500);

/// The way to one member.
#[derive(Debug)]
pub struct Way {
    trips: Histogram,
    failures: AtomicU64,
}

/// The numbers of one member.
#[derive(Debug)]
pub struct Figures {
    applies: Histogram,
    slow_applies: AtomicU64,
    leaders: AtomicU64,
    failed_proposals: AtomicU64,
    renewals: AtomicU64,
    failed_reads: AtomicU64,
    slow_reads: AtomicU64,
    heartbeat_failures: AtomicU64,
    ways: RwLock<BTreeMap<u64, Arc<Way>>>,
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            applies: Histogram::new(DISK_BOUNDS),
            slow_applies: AtomicU64::default(),
            leaders: AtomicU64::default(),
            failed_proposals: AtomicU64::default(),
            renewals: AtomicU64::default(),
            failed_reads: AtomicU64::default(),
            slow_reads: AtomicU64::default(),
            heartbeat_failures: AtomicU64::default(),
            ways: RwLock::default(),
        }
    }
}

impl Figures {
    /// A batch of entries was written to the tables.
    pub fn applied(&self, took: Duration) {
        self.applies.took(took);
        if took >= SLOW_APPLY {
            self.slow_applies.fetch_add(1, Relaxed);
        }
    }

    /// Another member leads than before.
    pub fn leader_changed(&self) {
        self.leaders.fetch_add(1, Relaxed);
    }

    /// A command was refused, or nobody knows what became of it.
    pub fn proposal_failed(&self) {
        self.failed_proposals.fetch_add(1, Relaxed);
    }

    /// A lease was renewed by this member.
    pub fn renewed(&self) {
        self.renewals.fetch_add(1, Relaxed);
    }

    /// A linearizable read has waited for the leader.
    pub fn read(&self, took: Duration, failed: bool) {
        self.failed_reads.fetch_add(u64::from(failed), Relaxed);
        self.slow_reads.fetch_add(u64::from(failed || took >= SLOW_READ), Relaxed);
    }

    /// A heartbeat to a member was answered, or not.
    pub fn heartbeat(&self, to: u64, took: Duration, answered: bool) {
        let known = self.ways.read().get(&to).cloned();
        let way = known.unwrap_or_else(|| {
            let fresh = || Arc::new(Way { trips: Histogram::new(TRIP_BOUNDS), failures: AtomicU64::default() });
            self.ways.write().entry(to).or_insert_with(fresh).clone()
        });
        if answered {
            way.trips.took(took);
        } else {
            way.failures.fetch_add(1, Relaxed);
            self.heartbeat_failures.fetch_add(1, Relaxed);
        }
    }

    fn write_ways(&self, own: u64, members: &[u64], out: &mut String) {
        let ways = self.ways.read();
        // Of members that have gone nothing is told.
        let ways: Vec<_> = ways.iter().filter(|(to, _)| members.contains(to)).collect();
        let name = "etcd_network_peer_round_trip_time_seconds";
        family(out, name, "histogram", "Time until another member answers a heartbeat.");
        for (to, way) in &ways {
            way.trips.write(name, &format!("To=\"{to:x}\""), out);
        }
        let name = "etcd_network_peer_sent_failures_total";
        family(out, name, "counter", "Heartbeats that another member did not answer.");
        for (to, way) in &ways {
            sample(out, name, &format!("To=\"{to:x}\""), way.failures.load(Relaxed) as f64);
        }
        let name = "etcd_network_active_peers";
        family(out, name, "gauge", "Members that this one sends to.");
        for (to, _) in &ways {
            sample(out, name, &format!("Local=\"{own:x}\",Remote=\"{to:x}\""), 1.0);
        }
    }
}

/// Writes a member's numbers.
pub fn write(inner: &Inner, out: &mut String) {
    let (figures, store) = (&inner.figures, inner.store.counts());
    let load = |number: &AtomicU64| number.load(Relaxed);
    for (name, help, value) in [
        ("etcd_server_leader_changes_seen_total", "Changes of leader.", load(&figures.leaders)),
        ("etcd_server_proposals_failed_total", "Commands that failed.", load(&figures.failed_proposals)),
        ("etcd_server_slow_apply_total", "Batches that took long to apply.", load(&figures.slow_applies)),
        ("etcd_server_read_indexes_failed_total", "Failed linearizable reads.", load(&figures.failed_reads)),
        ("etcd_server_slow_read_indexes_total", "Slow linearizable reads.", load(&figures.slow_reads)),
        ("etcd_server_heartbeat_send_failures_total", "Failed heartbeats.", load(&figures.heartbeat_failures)),
        ("etcd_mvcc_put_total", "Puts applied.", store.puts),
        ("etcd_mvcc_delete_total", "Deletions of keys applied.", store.deletes),
        ("etcd_mvcc_txn_total", "Revisions applied.", store.revisions),
        ("etcd_debugging_mvcc_total_put_size_in_bytes", "Size of keys and values put.", store.put_bytes),
        ("etcd_debugging_lease_granted_total", "Leases granted.", store.granted),
        ("etcd_debugging_lease_renewed_total", "Leases renewed while this member led.", load(&figures.renewals)),
        ("etcd_debugging_lease_revoked_total", "Leases that ended.", store.revoked),
        ("etcd_debugging_mvcc_db_compaction_total", "Compactions applied.", store.compactions),
    ] {
        family(out, name, "counter", help);
        sample(out, name, "", value as f64);
    }
    for (name, help, value) in [
        ("etcd_server_proposals_pending", "Commands under way.", inner.proposed.load(Relaxed) as u64),
        ("etcd_debugging_mvcc_watcher_total", "Watchers.", inner.store.watchers() as u64),
        (
            "keelson_membership_changing",
            "1 while members come or go or a new one catches up: fewer may fail until that is over.",
            u64::from(!inner.is_settled()),
        ),
    ] {
        family(out, name, "gauge", help);
        sample(out, name, "", value as f64);
    }
    let name = "etcd_disk_wal_fsync_duration_seconds";
    family(out, name, "histogram", "Time to write and sync the log.");
    inner.write_sync_times(name, out);
    let name = "etcd_disk_backend_commit_duration_seconds";
    family(out, name, "histogram", "Time to apply a batch of entries to the tables.");
    figures.applies.write(name, "", out);
    figures.write_ways(inner.id, &inner.member_ids(), out);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_to_each_member_is_told_while_it_is_one() {
        let figures = Figures::default();
        figures.heartbeat(2, Duration::from_millis(3), true);
        figures.heartbeat(2, Duration::from_secs(1), false);
        figures.heartbeat(3, Duration::from_millis(1), true);
        let mut out = String::new();
        figures.write_ways(1, &[1, 2], &mut out);
        for line in [
            "etcd_network_peer_round_trip_time_seconds_bucket{To=\"2\",le=\"0.0016\"} 0",
            "etcd_network_peer_round_trip_time_seconds_bucket{To=\"2\",le=\"0.0032\"} 1",
            "etcd_network_peer_round_trip_time_seconds_count{To=\"2\"} 1",
            "etcd_network_peer_sent_failures_total{To=\"2\"} 1",
            "etcd_network_active_peers{Local=\"1\",Remote=\"2\"} 1",
        ] {
            assert!(out.lines().any(|found| found == line), "{line} in {out}");
        }
        assert!(!out.contains("\"3\""), "{out}");
    }

    #[test]
    fn what_is_slow_counts() {
        let figures = Figures::default();
        figures.applied(SLOW_APPLY / 2);
        figures.applied(SLOW_APPLY);
        figures.read(SLOW_READ / 2, false);
        figures.read(SLOW_READ, false);
        figures.read(Duration::ZERO, true);
        assert_eq!((figures.applies.count(), figures.slow_applies.load(Relaxed)), (2, 1));
        assert_eq!((figures.slow_reads.load(Relaxed), figures.failed_reads.load(Relaxed)), (2, 1));
    }
}
