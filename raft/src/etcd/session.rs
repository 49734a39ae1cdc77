//! What locks and elections share: a lease that is kept alive while a client waits, keys that queue by their creation,
//! and waiting for those before.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use keelson_store::{
    Compare, DeleteRequest, EventKind, Guards, KeyRange, KeyValue, Kv, KvError, LeaseId, Op, OpResponse, PutRequest,
    RangeRequest, Revision, Txn, WatchRequest,
};
use tokio::task::AbortHandle;
use tonic::Status;

use super::Front;
use super::auth::Caller;
use super::error::{of_guarded, of_kv};
use super::limits::SESSION_TTL_SECONDS;

/// A lease under which a client queues.
pub(super) struct Session {
    /// The lease.
    pub lease: LeaseId,
    renewing: AbortHandle,
}

impl Session {
    /// Takes the client's lease, or grants one, and keeps it alive until the session is dropped.
    pub async fn open(front: &Arc<Front>, lease: LeaseId) -> Result<Self, Status> {
        let kv = &front.kv;
        let lease = if lease == 0 { kv.lease_grant(0, SESSION_TTL_SECONDS).await.map_err(of_kv)? } else { lease };
        let ttl = kv.lease_keep_alive(lease).await.map_err(of_kv)?;
        let kv = front.kv.clone();
        let every = Duration::from_secs(u64::try_from(ttl / 3).unwrap_or(1).max(1));
        let renewing = crate::task::spawn(async move {
            loop {
                tokio::time::sleep(every).await;
                if let Err(KvError::LeaseNotFound) = kv.lease_keep_alive(lease).await {
                    return;
                }
            }
        });
        Ok(Self { lease, renewing: renewing.abort_handle() })
    }

    /// The client's key under `name`.
    pub fn key(&self, name: &[u8]) -> Bytes {
        [name, format!("/{:x}", self.lease).as_bytes()].concat().into()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}

/// The interval of all keys that queue under `name`.
pub(super) fn queue(name: &[u8]) -> KeyRange {
    KeyRange::prefix([name, b"/"].concat())
}

/// `Ok` if a caller may queue there.
pub(super) fn queue_is(caller: &Caller, queue: &KeyRange) -> Result<(), Status> {
    caller.read(queue)?;
    caller.write(queue)?;
    Ok(())
}

/// A key's place in the queue.
pub(super) struct Place {
    /// When it joined.
    pub joined: Revision,
    /// What the key was, if it had joined before.
    pub before: Option<Arc<KeyValue>>,
}

/// Joins the queue with a key under a lease, unless it is there already.
pub(super) async fn join(
    kv: &dyn Kv,
    caller: &Caller,
    key: &Bytes,
    value: Bytes,
    lease: LeaseId,
) -> Result<Place, Status> {
    let put = PutRequest { lease, ..PutRequest::new(key.clone(), value) };
    // The lease may be another one's, with keys that the caller may not touch.
    caller.put(&kv.view(), &put)?;
    let txn = Txn {
        compare: vec![Compare::create_revision(key.clone(), 0)],
        success: vec![Op::Put(put)],
        failure: vec![Op::Range(RangeRequest::new(KeyRange::Key(key.clone())))],
    };
    let answer = kv.txn_if(caller.guards(), txn).await.map_err(of_guarded)?;
    if answer.succeeded {
        return Ok(Place { joined: answer.revision, before: None });
    }
    let before = match answer.responses.into_iter().next() {
        Some(OpResponse::Range(found)) => found.kvs.into_iter().next(),
        _ => None,
    };
    let joined = before.as_ref().map_or(answer.revision, |kv| kv.create_revision);
    Ok(Place { joined, before })
}

/// Leaves the queue, if these guards hold.
pub(super) async fn leave(kv: &dyn Kv, guards: Guards, key: Bytes) -> Result<Revision, Status> {
    let delete = DeleteRequest { range: KeyRange::Key(key), prev_kv: false };
    let txn = Txn { success: vec![Op::Delete(delete)], ..Txn::default() };
    Ok(kv.txn_if(guards, txn).await.map_err(of_guarded)?.revision)
}

/// Waits until no key of the queue is older than `joined`; returns the revision at which that was seen.
pub(super) async fn wait_turn(kv: &dyn Kv, queue: &KeyRange, joined: Revision) -> Result<Revision, Status> {
    loop {
        kv.barrier().await.map_err(of_kv)?;
        let view = kv.view();
        let before = view.range(queue).filter(|kv| kv.create_revision < joined);
        // The youngest of those before is the last to go, as a rule.
        let Some(blocker) = before.max_by_key(|kv| kv.create_revision).cloned() else {
            return Ok(view.revision());
        };
        let request = WatchRequest::new(KeyRange::Key(blocker.key.clone()), view.revision() + 1);
        drop(view);
        wait_deleted(kv, request).await?;
    }
}

async fn wait_deleted(kv: &dyn Kv, request: WatchRequest) -> Result<(), Status> {
    let mut watch = match kv.watch(request) {
        Ok(watch) => watch,
        // History went on without us: look again.
        Err(KvError::Compacted(_)) => return Ok(()),
        Err(error) => return Err(of_kv(error)),
    };
    while let Some(batch) = watch.next().await {
        match batch {
            Ok(batch) if batch.events.iter().any(|event| event.kind == EventKind::Delete) => return Ok(()),
            Ok(_) => {}
            Err(KvError::Compacted(_)) => return Ok(()),
            Err(error) => return Err(of_kv(error)),
        }
    }
    Ok(())
}

/// Leaves the queue when it is dropped before [`Waiting::done`]: the client has gone.
pub(super) struct Waiting {
    kv: Arc<dyn Kv>,
    key: Option<Bytes>,
}

impl Waiting {
    /// Begins to wait with a key.
    pub fn new(kv: Arc<dyn Kv>, key: Bytes) -> Self {
        Self { kv, key: Some(key) }
    }

    /// The key stays.
    pub fn done(mut self) {
        self.key = None;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some(key) = self.key.take() else { return };
        let kv = self.kv.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(status) = leave(kv.as_ref(), Guards::default(), key).await {
                    tracing::debug!(%status, "a key stays in its queue until its lease ends");
                }
            });
        }
    }
}
