//! Fenced leadership: runs the controllers and the scheduler on the member that leads the Raft group.
//!
//! Invariant: a component runs with a [`Fence`] whose store key was created by this member after it became the leader.
//! A new leader deletes the old key first, so every write of a deposed leader fails its comparison, however late it comes.
//!
//! A deposed leader that does not know it yet may take the key from the new one, whose requests go to the same store. So who
//! leads looks whether the key is still its own, and takes it again if not.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use keelson_client::Fence;
use keelson_store::{Compare, DeleteRequest, KeyRange, Kv, KvError, LeaseId, Op, PutRequest, Txn};
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
        let (fence, lease) = match take(kv.as_ref(), name, &holder).await {
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
        let mut work = tokio::spawn(task(fence.clone(), running.clone()));
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
                    if !is_held(kv.as_ref(), &fence) {
                        warn!(component = name, "another member took the leader key; it is taken again");
                        break;
                    }
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

/// Whether the key is still the one that was created for this fence.
fn is_held(kv: &dyn Kv, fence: &Fence) -> bool {
    let view = kv.view();
    // A view from before the fence knows nothing of it.
    view.revision() < fence.create_revision
        || view.get(&fence.key).is_some_and(|found| found.create_revision == fence.create_revision)
}

/// Creates the leader key anew; its create revision is the fence.
async fn take(kv: &dyn Kv, name: &str, holder: &str) -> Result<(Fence, LeaseId), KvError> {
    let key = Bytes::from(format!("/keelson/leader/{name}"));
    let lease = kv.lease_grant(0, LEASE_TTL_SECONDS).await?;
    let delete = Op::Delete(DeleteRequest { range: KeyRange::Key(key.clone()), prev_kv: false });
    kv.txn(Txn { success: vec![delete], ..Txn::default() }).await?;
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
    use keelson_store::LocalKv;

    use super::*;

    /// What a member does that was deposed and does not know it yet.
    async fn steal(kv: &dyn Kv, name: &str) {
        take(kv, name, "a member that was deposed").await.expect("taken");
    }

    #[tokio::test]
    async fn a_key_that_another_took_is_taken_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let kv: Arc<dyn Kv> = Arc::new(LocalKv::open(dir.path()).expect("opens"));
        let (told, mut fences) = tokio::sync::mpsc::channel(4);
        let task: Task = Box::new(move |fence, running| {
            let told = told.clone();
            Box::pin(async move {
                let _ = told.send(fence).await;
                running.cancelled().await;
            })
        });
        let stop = CancellationToken::new();
        let leading = tokio::spawn(run(kv.clone(), "test", "this member".into(), task, stop.clone()));
        let first = fences.recv().await.expect("leads");
        assert!(is_held(kv.as_ref(), &first));
        steal(kv.as_ref(), "test").await;
        assert!(!is_held(kv.as_ref(), &first));
        let second = fences.recv().await.expect("leads again");
        assert!(second.create_revision > first.create_revision && is_held(kv.as_ref(), &second));
        stop.cancel();
        leading.await.expect("ends");
    }
}
