//! The size from which writes are refused. Reads, deletions and compaction go on; the alarm clears itself when there is
//! room again.

use std::sync::Weak;
use std::sync::atomic::{AtomicBool, Ordering};

use keelson_proto::etcd::etcdserverpb::AlarmType;
use keelson_store::{Op, Txn};

use super::error::Refusal;
use super::limits::QUOTA_LOOK;
use super::{Front, alarm};

/// Percent of the quota below which the alarm ends.
const CLEAR_PERCENT: u64 = 90;

/// Whether there is room.
#[derive(Default)]
pub struct Quota(AtomicBool);

impl Quota {
    /// Refuses what needs room when there is none.
    pub fn check(&self) -> Result<(), Refusal> {
        if self.0.load(Ordering::Relaxed) { Err(Refusal::NoSpace) } else { Ok(()) }
    }

    /// Refuses a transaction that puts when there is no room.
    pub fn check_txn(&self, txn: &Txn) -> Result<(), Refusal> {
        if puts(txn) { self.check() } else { Ok(()) }
    }
}

fn puts(txn: &Txn) -> bool {
    txn.success.iter().chain(&txn.failure).any(|op| match op {
        Op::Put(_) => true,
        Op::Txn(inner) => puts(inner),
        Op::Range(_) | Op::Delete(_) => false,
    })
}

/// Looks at the size for as long as there is a front; raises this member's alarm and clears it.
pub async fn follow(front: Weak<Front>) {
    let mut raised = false;
    loop {
        tokio::time::sleep(QUOTA_LOOK).await;
        let Some(front) = front.upgrade() else { return };
        let (own, quota) = (front.cluster.member_id(), front.options.quota_bytes);
        let size = front.kv.status().db_size;
        let over = quota > 0 && size > quota;
        let clear = quota == 0 || size < quota / 100 * CLEAR_PERCENT;
        let active = !alarm::list(&front, own, AlarmType::Nospace).is_empty();
        let anywhere = !alarm::list(&front, 0, AlarmType::Nospace).is_empty();
        front.quota.0.store(over || anywhere, Ordering::Relaxed);
        let changed = if over && !active {
            tracing::warn!(size, quota, "the data has reached its quota: writes are refused until there is room");
            raised = true;
            alarm::activate(&front, own, AlarmType::Nospace).await.map(drop)
        } else if active && raised && clear {
            tracing::info!(size, quota, "there is room again");
            alarm::deactivate(&front, own, AlarmType::Nospace).await.map(drop)
        } else {
            raised |= active && quota > 0;
            Ok(())
        };
        if let Err(status) = changed {
            tracing::debug!(%status, "the alarm could not be changed; it is tried again");
        }
    }
}
