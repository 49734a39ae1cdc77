//! Claims that bindings wait for: a change of one wakes those who wait for it, so that nobody asks again and again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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

/// Whether a claim has its volume.
fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound")
}

/// Whether a claim has its volume, or lost it, or goes.
fn is_settled(claim: &PersistentVolumeClaim) -> bool {
    let lost = claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Lost");
    is_bound(claim) || lost || claim.metadata.deletion_timestamp.is_some()
}

/// What those who wait for one claim are told.
#[derive(Default)]
struct Waiter {
    changed: Notify,
    /// The claim was seen bound to its volume.
    bound: AtomicBool,
}

/// Who waits for which claim.
pub struct Awaited {
    waiting: Mutex<HashMap<(Kind, ClaimKey), Arc<Waiter>>>,
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
        let (kind, meta, bound) = match change {
            // What happens to a claim before it has its volume interests nobody here.
            Change::Claim(claim) if is_settled(claim) => (Kind::Volume, &claim.metadata, is_bound(claim)),
            Change::ResourceClaim(claim) => (Kind::Devices, &claim.metadata, false),
            _ => return,
        };
        let mut waiting = self.waiting.lock();
        if waiting.is_empty() {
            return;
        }
        let name = |text: &Option<String>| text.as_deref().unwrap_or_default().into();
        if let Some(waiter) = waiting.remove(&(kind, (name(&meta.namespace), name(&meta.name)))) {
            waiter.bound.store(bound, Ordering::Release);
            waiter.changed.notify_waiters();
        }
    }

    /// From now on it is known when a claim has its volume: asked for before the volume is, so that nothing is missed.
    pub fn expect_volume(self: &Arc<Self>, key: &ClaimKey) -> Expected {
        let waiter = self.waiting.lock().entry((Kind::Volume, key.clone())).or_default().clone();
        Expected { awaited: self.clone(), key: key.clone(), waiter }
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
            let waiter = self.waiting.lock().entry((kind, key.clone())).or_default().clone();
            let changed = waiter.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let found = look().await;
            if !matches!(found, Ok(None)) {
                self.leave(kind, key, &waiter);
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
    fn leave(&self, kind: Kind, key: &ClaimKey, mine: &Arc<Waiter>) {
        let mut waiting = self.waiting.lock();
        // One reference is the map's, one is ours; the claim may have been settled and be waited for anew.
        let key = (kind, key.clone());
        if Arc::strong_count(mine) <= 2 && waiting.get(&key).is_some_and(|there| Arc::ptr_eq(there, mine)) {
            waiting.remove(&key);
        }
    }
}

/// A claim that gets its volume.
pub struct Expected {
    awaited: Arc<Awaited>,
    key: ClaimKey,
    waiter: Arc<Waiter>,
}

impl Expected {
    /// The claim.
    pub fn key(&self) -> &ClaimKey {
        &self.key
    }

    /// Waits until it has its volume. The watch says so; the claim is only looked at if that says something else, or nothing
    /// for a while.
    pub async fn bound<E, F: Future<Output = Result<Option<()>, E>>>(self, look: impl FnMut() -> F) -> Result<(), E> {
        let changed = self.waiter.changed.notified();
        tokio::pin!(changed);
        changed.as_mut().enable();
        if !self.waiter.bound.load(Ordering::Acquire) {
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep(POLL) => {}
            }
        }
        if self.waiter.bound.load(Ordering::Acquire) {
            return Ok(());
        }
        self.awaited.until(Kind::Volume, &self.key, look).await
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.awaited.leave(Kind::Volume, &self.key, &self.waiter);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

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

    #[tokio::test(start_paused = true)]
    async fn what_the_watch_says_is_not_asked_for() {
        let awaited = Arc::new(Awaited::default());
        let key: ClaimKey = ("d".into(), "c".into());
        let claim = |status: serde_json::Value| {
            let claim = serde_json::json!({"metadata": {"namespace": "d", "name": "c"}, "spec": {}, "status": status});
            Change::Claim(serde_json::from_value(claim).unwrap())
        };
        let looks = AtomicU32::new(0);
        let look = || async {
            looks.fetch_add(1, Ordering::SeqCst);
            Err::<Option<()>, _>("lost")
        };
        // It is bound before anybody waits.
        let expected = awaited.expect_volume(&key);
        awaited.see(&claim(serde_json::json!({"phase": "Bound"})));
        assert_eq!(expected.bound(look).await, Ok(()));
        // It is lost: the claim says why.
        let expected = awaited.expect_volume(&key);
        awaited.see(&claim(serde_json::json!({"phase": "Lost"})));
        assert_eq!((expected.bound(look).await, looks.load(Ordering::SeqCst)), (Err("lost"), 1));
        // Nobody says anything: it is looked at after a while.
        assert_eq!(awaited.expect_volume(&key).bound(look).await, Err("lost"));
        drop(awaited.expect_volume(&key));
        assert!(awaited.waiting.lock().is_empty());
    }
}
