//! Fenced leadership: runs the controllers and the scheduler on the member that leads the Raft group.
//!
//! Invariant: a component runs with a [`Fence`] whose store key was created by this member after it became the leader.
//! A new leader deletes the old key first, so every write of a deposed leader fails its comparison, however late it comes.
//! One that was deposed while it took the key takes it from its successor: who leads watches the key and takes it again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use keelson_client::Fence;
use keelson_store::{Compare, DeleteRequest, KeyRange, Kv, KvError, LeaseId, Op, PutRequest, Txn, WatchRequest};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// The lease's time to live in seconds: the longest that the key outlives a leader that vanished.
const LEASE_TTL_SECONDS: i64 = 10;
/// How often it is renewed.
const RENEW_INTERVAL: Duration = Duration::from_secs(3);
/// Pause after a failed attempt to take the key.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// What runs while this member leads; it must end when the token is cancelled.
pub type Task = Box<dyn Fn(Fence, CancellationToken) -> BoxFuture<'static, ()> + Send + Sync>;

/// Runs `task` whenever this member leads, until `stop` is cancelled.
pub async fn run(kv: Arc<dyn Kv>, name: &'static str, holder: String, task: Task, stop: CancellationToken) {
    let mut leadership = kv.leadership();
    let mut leads = false;
    while !stop.is_cancelled() {
        if !leads {
            tokio::select! {
                next = leadership.next() => match next { Some(now) => leads = now, None => return },
                () = stop.cancelled() => return,
            }
            continue;
        }
        let taken = tokio::select! {
            taken = take(kv.as_ref(), name, &holder) => taken,
            next = leadership.next() => match next { Some(now) => { leads = now; continue } None => return },
        };
        let (fence, lease) = match taken {
            Ok(taken) => taken,
            Err(error) => {
                warn!(component = name, %error, "cannot take the leader key yet");
                tokio::select! {
                    next = leadership.next() => match next { Some(now) => leads = now, None => return },
                    () = tokio::time::sleep(RETRY_INTERVAL) => {}
                    () = stop.cancelled() => return,
                }
                continue;
            }
        };
        info!(component = name, "leading");
        let running = stop.child_token();
        let lost = replaced(kv.clone(), fence.clone());
        tokio::pin!(lost);
        let mut work = tokio::spawn(task(fence, running.clone()));
        loop {
            tokio::select! {
                next = leadership.next() => {
                    leads = next.unwrap_or(false);
                    if !leads { break }
                }
                () = tokio::time::sleep(RENEW_INTERVAL) => {
                    if let Err(error) = kv.lease_keep_alive(lease).await {
                        warn!(component = name, %error, "lost the leader lease");
                        break;
                    }
                }
                () = &mut lost => {
                    warn!(component = name, "another member took the leader key; taking it again");
                    tokio::time::sleep(RETRY_INTERVAL).await;
                    break;
                }
                _ = &mut work => break,
                () = stop.cancelled() => break,
            }
        }
        running.cancel();
        if !work.is_finished() {
            work.abort();
        }
        info!(component = name, "no longer leading");
    }
}

/// Returns once the key is no longer the one of this fence, or nothing more is heard of it.
async fn replaced(kv: Arc<dyn Kv>, fence: Fence) {
    let range = KeyRange::Key(fence.key);
    let Ok(mut watch) = kv.watch(WatchRequest::new(range, fence.create_revision + 1)) else { return };
    while let Some(Ok(batch)) = watch.next().await {
        if !batch.events.is_empty() {
            return;
        }
    }
}

/// Creates the leader key anew; its create revision is the fence.
async fn take(kv: &dyn Kv, name: &str, holder: &str) -> Result<(Fence, LeaseId), KvError> {
    let key = Bytes::from(format!("/keelson/leader/{name}"));
    let delete = Op::Delete(DeleteRequest { range: KeyRange::Key(key.clone()), prev_kv: false });
    let delete = kv.txn(Txn { success: vec![delete], ..Txn::default() });
    // At once: each is a round to the other members, while nobody controls anything.
    let (lease, _) = tokio::try_join!(kv.lease_grant(0, LEASE_TTL_SECONDS), delete)?;
    let put = Op::Put(PutRequest { lease, ..PutRequest::new(key.clone(), holder.to_owned()) });
    let created = kv
        .txn(Txn { compare: vec![Compare::create_revision(key.clone(), 0)], success: vec![put], failure: vec![] })
        .await?;
    if !created.succeeded {
        return Err(KvError::Unavailable("another member took the leader key".into()));
    }
    Ok((Fence { key, create_revision: created.revision }, lease))
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_store::LocalKv;
    use tokio::sync::mpsc;

    #[tokio::test]
    async fn a_leader_whose_key_was_taken_takes_it_again() {
        let dir = tempfile::tempdir().unwrap();
        let kv: Arc<dyn Kv> = Arc::new(LocalKv::open(dir.path()).unwrap());
        let (said, mut heard) = mpsc::channel(8);
        let task: Task = Box::new(move |fence, running| {
            let said = said.clone();
            Box::pin(async move {
                said.send(fence).await.unwrap();
                running.cancelled().await;
            })
        });
        let stop = CancellationToken::new();
        let running = tokio::spawn(run(kv.clone(), "test", "a".into(), task, stop.clone()));
        let first = heard.recv().await.unwrap();
        let (thief, _) = take(kv.as_ref(), "test", "b").await.unwrap();
        assert!(thief.create_revision > first.create_revision);
        let again = heard.recv().await.unwrap();
        assert!(again.create_revision > thief.create_revision, "the new fence keeps out who took the key");
        let key = kv.view().get(&again.key).cloned().unwrap();
        assert_eq!((key.create_revision, key.value.as_ref()), (again.create_revision, b"a".as_slice()));
        stop.cancel();
        running.await.unwrap();
    }
}
