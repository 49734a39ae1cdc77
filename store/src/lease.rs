//! When leases expire. The state machine knows durations only; the member that leads keeps their deadlines here.
//!
//! Invariant: a lease is never reported as expired before its TTL has passed since it was granted, renewed, or
//! taken over by this leader with what its checkpoint left; a renewal is answered only when no checkpoint from before it
//! is left.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use crate::{KvError, Lease, LeaseId, LeaseStatus, View, bugs};

/// How often at least the remaining time of a lease that nobody renews is recorded.
pub const CHECKPOINT_MOST_MILLIS: u64 = 300_000;
/// How often at most: a lease that is shorter than this has all of its time again after a change of leader.
pub const CHECKPOINT_LEAST_MILLIS: u64 = 5_000;
/// Most leases whose remaining time one tick records.
pub const CHECKPOINTS_PER_TICK_LEASES: usize = 2_000;
/// Most leases reported as expired by one tick.
pub const EXPIRED_PER_TICK_LEASES: usize = 1_000;
/// How long an expired lease is not reported again, while its revocation is under way.
const REVOKE_RETRY_MILLIS: u64 = 3_000;

/// A clock that never goes back.
pub trait Clock: Send + Sync + 'static {
    /// Milliseconds since an arbitrary point.
    fn now_millis(&self) -> u64;
}

/// The machine's monotonic clock.
#[derive(Debug)]
pub struct MonotonicClock(Instant);

impl Default for MonotonicClock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock for MonotonicClock {
    fn now_millis(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

struct Deadline {
    expires: u64,
    /// When its remaining time is recorded next.
    checkpoint: u64,
    /// A checkpoint is recorded or under way: it must be taken back before a renewal is answered.
    checkpointed: bool,
    /// Not to be reported as expired before this.
    quiet_until: u64,
}

/// What is due now.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// Leases to revoke.
    pub expired: Vec<LeaseId>,
    /// Remaining seconds to record.
    pub checkpoints: Vec<(LeaseId, i64)>,
}

/// A lease that was renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewed {
    /// Its TTL in seconds.
    pub ttl: i64,
    /// A checkpoint from before must be taken back (0 seconds recorded) before anybody is told: the next leader would
    /// cut the lease short. Whoever has done it calls [`LeaseClock::taken_back`].
    pub take_back: bool,
}

/// Deadlines of all leases while this member leads.
pub struct LeaseClock {
    clock: Arc<dyn Clock>,
    deadlines: Mutex<Option<HashMap<LeaseId, Deadline>>>,
}

fn millis(seconds: i64) -> u64 {
    u64::try_from(seconds).unwrap_or(0).saturating_mul(1000)
}

fn seconds(millis: u64) -> i64 {
    i64::try_from(millis.div_ceil(1000)).unwrap_or(i64::MAX)
}

/// How long after a grant or a renewal the remaining time is recorded: one that is renewed in time never is.
fn first_checkpoint(granted: i64) -> u64 {
    (millis(granted) / 2).clamp(CHECKPOINT_LEAST_MILLIS, CHECKPOINT_MOST_MILLIS)
}

/// How long after that, or after a leader took over, it is recorded again.
fn next_checkpoint(granted: i64) -> u64 {
    (millis(granted) / 10).clamp(CHECKPOINT_LEAST_MILLIS, CHECKPOINT_MOST_MILLIS)
}

impl Deadline {
    fn new(now: u64, granted: i64) -> Self {
        Self {
            expires: now.saturating_add(millis(granted)),
            checkpoint: now.saturating_add(first_checkpoint(granted)),
            checkpointed: false,
            quiet_until: 0,
        }
    }

    /// As the one before this leader left it.
    fn taken_over(now: u64, lease: &Lease) -> Self {
        let mut left = if lease.checkpointed_ttl > 0 { lease.checkpointed_ttl } else { lease.granted_ttl };
        if bugs::is_on("early-lease") {
            left = 0;
        }
        if bugs::is_on("lease-reset") {
            left = lease.granted_ttl;
        }
        Self {
            expires: now.saturating_add(millis(left)),
            checkpoint: now.saturating_add(next_checkpoint(lease.granted_ttl)),
            checkpointed: lease.checkpointed_ttl > 0,
            quiet_until: 0,
        }
    }
}

impl LeaseClock {
    /// A clock that does not lead yet.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, deadlines: Mutex::new(None) }
    }

    /// Begins to lead: each lease has what its checkpoint left, or all of its TTL, and `grace_millis` for the time
    /// in which nobody could renew it.
    pub fn lead(&self, view: &View, grace_millis: u64) {
        let now = self.clock.now_millis().saturating_add(grace_millis);
        let take_over = |lease: &Arc<Lease>| (lease.id, Deadline::taken_over(now, lease));
        *self.deadlines.lock() = Some(view.leases().map(take_over).collect());
    }

    /// Stops to lead: nothing expires here any more.
    pub fn resign(&self) {
        *self.deadlines.lock() = None;
    }

    /// Renews a lease. Refused when this member does not lead or the lease has expired.
    pub fn renew(&self, view: &View, id: LeaseId) -> Result<Renewed, KvError> {
        let now = self.clock.now_millis();
        let mut deadlines = self.deadlines.lock();
        let Some(deadlines) = deadlines.as_mut() else { return Err(not_leading()) };
        let lease = view.lease(id).ok_or(KvError::LeaseNotFound)?;
        let before = deadlines.get(&id);
        if before.is_some_and(|deadline| deadline.expires <= now) {
            return Err(KvError::LeaseNotFound);
        }
        let mut take_back = lease.checkpointed_ttl > 0 || before.is_some_and(|deadline| deadline.checkpointed);
        deadlines.insert(id, Deadline { checkpointed: take_back, ..Deadline::new(now, lease.granted_ttl) });
        if bugs::is_on("stale-checkpoint") {
            take_back = false;
        }
        Ok(Renewed { ttl: lease.granted_ttl, take_back })
    }

    /// A checkpoint that [`LeaseClock::renew`] spoke of is gone.
    pub fn taken_back(&self, id: LeaseId) {
        if let Some(deadline) = self.deadlines.lock().as_mut().and_then(|deadlines| deadlines.get_mut(&id)) {
            deadline.checkpointed = false;
        }
    }

    /// A lease as seen from outside. Refused when this member does not lead.
    pub fn status(&self, view: &View, id: LeaseId) -> Result<LeaseStatus, KvError> {
        let now = self.clock.now_millis();
        let deadlines = self.deadlines.lock();
        let Some(deadlines) = deadlines.as_ref() else { return Err(not_leading()) };
        let lease = view.lease(id).ok_or(KvError::LeaseNotFound)?;
        // Whole seconds that are left: the lease ends less than one second after them.
        let left = |found: &Deadline| i64::try_from(found.expires.saturating_sub(now) / 1000).unwrap_or(i64::MAX);
        let left = deadlines.get(&id).map_or(lease.granted_ttl, left);
        Ok(LeaseStatus {
            id,
            granted_ttl: lease.granted_ttl,
            remaining_ttl: left,
            keys: lease.keys().cloned().collect(),
        })
    }

    /// What is due now; to be called a few times per second with the current view. Leases granted since the last
    /// call begin to run, revoked ones are forgotten.
    pub fn tick(&self, view: &View) -> Due {
        let now = self.clock.now_millis();
        let mut guard = self.deadlines.lock();
        let mut due = Due::default();
        let Some(deadlines) = guard.as_mut() else { return due };
        deadlines.retain(|id, _| view.lease(*id).is_some());
        for lease in view.leases() {
            let deadline = deadlines.entry(lease.id).or_insert_with(|| Deadline::new(now, lease.granted_ttl));
            if deadline.expires <= now {
                if deadline.quiet_until <= now && due.expired.len() < EXPIRED_PER_TICK_LEASES {
                    deadline.quiet_until = now.saturating_add(REVOKE_RETRY_MILLIS);
                    due.expired.push(lease.id);
                }
            } else if deadline.checkpoint <= now && due.checkpoints.len() < CHECKPOINTS_PER_TICK_LEASES {
                deadline.checkpoint = now.saturating_add(next_checkpoint(lease.granted_ttl));
                deadline.checkpointed = true;
                due.checkpoints.push((lease.id, seconds(deadline.expires - now)));
            }
        }
        due
    }
}

fn not_leading() -> KvError {
    KvError::Unavailable("this member does not keep the leases' time".into())
}
