//! What a state machine has applied since it was opened, for metrics.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::hub::RevisionEvents;
use crate::{Command, EventKind};

/// Numbers of one state machine.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    revisions: AtomicU64,
    puts: AtomicU64,
    deletes: AtomicU64,
    put_bytes: AtomicU64,
    compactions: AtomicU64,
    granted: AtomicU64,
    revoked: AtomicU64,
}

/// What was applied since the state machine was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Revisions: transactions that changed something.
    pub revisions: u64,
    /// Keys put.
    pub puts: u64,
    /// Keys deleted.
    pub deletes: u64,
    /// Size of keys and values put.
    pub put_bytes: u64,
    /// Compactions asked for.
    pub compactions: u64,
    /// Leases granted.
    pub granted: u64,
    /// Leases that ended.
    pub revoked: u64,
}

impl Counters {
    /// Counts a batch.
    pub fn add(&self, revisions: &[RevisionEvents], compacts: bool) {
        let (mut puts, mut deletes, mut put_bytes) = (0, 0, 0);
        for event in revisions.iter().flat_map(|(_, events)| events) {
            if event.kind == EventKind::Put {
                puts += 1;
                put_bytes += (event.kv.key.len() + event.kv.value.len()) as u64;
            } else {
                deletes += 1;
            }
        }
        self.revisions.fetch_add(revisions.len() as u64, Relaxed);
        self.puts.fetch_add(puts, Relaxed);
        self.deletes.fetch_add(deletes, Relaxed);
        self.put_bytes.fetch_add(put_bytes, Relaxed);
        self.compactions.fetch_add(u64::from(compacts), Relaxed);
    }

    /// Counts a command that was applied.
    pub fn command(&self, command: &Command) {
        match command {
            Command::LeaseGrant { .. } => self.granted.fetch_add(1, Relaxed),
            Command::LeaseRevoke { .. } | Command::LeaseRevokeIf(..) => self.revoked.fetch_add(1, Relaxed),
            _ => return,
        };
    }

    /// The numbers now.
    pub fn counts(&self) -> Counts {
        Counts {
            revisions: self.revisions.load(Relaxed),
            puts: self.puts.load(Relaxed),
            deletes: self.deletes.load(Relaxed),
            put_bytes: self.put_bytes.load(Relaxed),
            compactions: self.compactions.load(Relaxed),
            granted: self.granted.load(Relaxed),
            revoked: self.revoked.load(Relaxed),
        }
    }
}
