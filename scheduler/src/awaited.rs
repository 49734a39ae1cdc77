//! Claims that bindings wait for: a change of one wakes those who wait for it, so that nobody asks again and again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::core::Change;
use crate::volumes::ClaimKey;

/// How often an awaited claim is looked at although nobody told of a change: a watch may be behind.
const POLL: Duration = Duration::from_secs(5);

/// Bindings that may wait beside those that are being written.
const MAX_WAITING: usize = 16_384;

/// What is claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A volume.
    Volume,
    /// Devices.
    Devices,
}

/// Whether a claim has its volume, or lost it, or goes.
fn is_settled(claim: &PersistentVolumeClaim) -> bool {
    let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Bound" | "Lost")) || claim.metadata.deletion_timestamp.is_some()
}

/// Who waits for which claim.
pub struct Awaited {
    waiting: Mutex<HashMap<(Kind, ClaimKey), Arc<Notify>>>,
    places: Arc<Semaphore>,
}

impl Default for Awaited {
    fn default() -> Self {
        Self { waiting: Mutex::default(), places: Arc::new(Semaphore::new(MAX_WAITING)) }
    }
}

impl Awaited {
    /// Changes the right to write for one to wait, so that others can write meanwhile; with too many who wait it is kept.
    pub fn park(&self, turn: Option<OwnedSemaphorePermit>) -> Option<OwnedSemaphorePermit> {
        self.places.clone().try_acquire_owned().ok().or(turn)
    }

    /// Wakes those who wait for what changed.
    pub fn see(&self, change: &Change) {
        let (kind, meta) = match change {
            // What happens to a claim before it has its volume interests nobody here.
            Change::Claim(claim) if is_settled(claim) => (Kind::Volume, &claim.metadata),
            Change::ResourceClaim(claim) => (Kind::Devices, &claim.metadata),
            _ => return,
        };
        let mut waiting = self.waiting.lock();
        if waiting.is_empty() {
            return;
        }
        let name = |text: &Option<String>| text.as_deref().unwrap_or_default().into();
        if let Some(notify) = waiting.remove(&(kind, (name(&meta.namespace), name(&meta.name)))) {
            notify.notify_waiters();
        }
    }

    /// Looks at a claim until it is as wanted, at first, after each of its changes and now and then.
    pub async fn until<T, E, F: Future<Output = Result<Option<T>, E>>>(
        &self,
        kind: Kind,
        key: &ClaimKey,
        mut look: impl FnMut() -> F,
    ) -> Result<T, E> {
        loop {
            // Who waits is known before the claim is read: no change in between is lost.
            let notify = self.waiting.lock().entry((kind, key.clone())).or_default().clone();
            let changed = notify.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let found = look().await;
            if !matches!(found, Ok(None)) {
                self.leave(kind, key, &notify);
            }
            if let Some(found) = found? {
                return Ok(found);
            }
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep(POLL) => {}
            }
        }
    }

    /// Forgets a claim that nobody else waits for.
    fn leave(&self, kind: Kind, key: &ClaimKey, mine: &Arc<Notify>) {
        let mut waiting = self.waiting.lock();
        // One reference is the map's, one is ours.
        if Arc::strong_count(mine) <= 2 {
            waiting.remove(&(kind, key.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_change_wakes_those_who_wait() {
        let awaited = Arc::new(Awaited::default());
        let looks = Arc::new(AtomicU32::new(0));
        let key: ClaimKey = ("d".into(), "c".into());
        let (inner, counter, waited) = (awaited.clone(), looks.clone(), key.clone());
        let task = tokio::spawn(async move {
            let look = || async { Ok::<_, ()>((counter.fetch_add(1, Ordering::SeqCst) == 1).then_some(7)) };
            inner.until(Kind::Volume, &waited, look).await
        });
        while looks.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let claim = |phase: &str| {
            let claim = serde_json::json!({"metadata": {"namespace": "d", "name": "c"}, "spec": {},
                "status": {"phase": phase}});
            Change::Claim(serde_json::from_value(claim).unwrap())
        };
        awaited.see(&claim("Pending"));
        assert_eq!(awaited.waiting.lock().len(), 1, "a claim that is not bound yet is waited for");
        awaited.see(&claim("Bound"));
        assert_eq!(task.await.unwrap().unwrap(), 7);
        assert!(awaited.waiting.lock().is_empty());
    }
}
