//! A replica as a [`Kv`], and how its commands are proposed.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, Stream, StreamExt};
use keelson_store::{
    Applied, Command, Guards, Kv, KvError, KvStatus, LeaseId, LeaseStatus, RangeRequest, RangeResponse, Revision,
    SettingsChange, Txn, TxnResponse, View, Watch, WatchRequest, choose_lease_id,
};
use tokio::time::Instant;
use tokio_stream::wrappers::WatchStream;

use crate::leader::Patience;
use crate::limits::{PROPOSED_BYTES, PROPOSED_COMMANDS};
use crate::message::{Answer, Ask};
use crate::propose::NotWritten;
use crate::replica::{Inner, Replica, odd_answer, unavailable};
use crate::types::Part;

impl Inner {
    /// Replicates a command, wherever the leader is.
    pub(crate) async fn propose(self: &Arc<Self>, command: Command) -> Result<Applied, KvError> {
        let answer = self.proposed(command).await;
        if matches!(answer, Err(KvError::Unavailable(_) | KvError::Stopped(_) | KvError::Overloaded)) {
            self.figures.proposal_failed();
        }
        answer
    }

    async fn proposed(self: &Arc<Self>, command: Command) -> Result<Applied, KvError> {
        let alone = command.reads_history();
        let part = Part::new(command).map_err(|_| KvError::TooLarge)?;
        let _admitted = self.admit(part.encoded.len())?;
        let mut patience = Patience::new(self);
        loop {
            patience.leader().await?;
            match self.write(part.clone(), alone).await {
                Ok(answer) => return answer,
                Err(NotWritten::NotDone(why)) => patience.wait(why).await?,
                Err(NotWritten::Unknown(error)) => return Err(error),
            }
        }
    }

    /// Counts a proposal while it is under way.
    pub(crate) fn admit(&self, bytes: usize) -> Result<Admitted<'_>, KvError> {
        let admitted = Admitted { inner: self, bytes };
        let before = self.proposed_bytes.fetch_add(bytes, Ordering::Relaxed);
        let count = self.proposed.fetch_add(1, Ordering::Relaxed);
        if before > PROPOSED_BYTES || count > PROPOSED_COMMANDS { Err(KvError::Overloaded) } else { Ok(admitted) }
    }
}

pub(crate) struct Admitted<'a> {
    inner: &'a Inner,
    bytes: usize,
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        self.inner.proposed_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.inner.proposed.fetch_sub(1, Ordering::Relaxed);
    }
}
impl Replica {
    fn command(&self, command: Command) -> BoxFuture<'_, Result<(), KvError>> {
        async move { self.0.propose(command).await.map(|_| ()) }.boxed()
    }
}

impl Kv for Replica {
    fn view(&self) -> View {
        self.0.store.view()
    }

    fn barrier(&self) -> BoxFuture<'_, Result<Revision, KvError>> {
        let inner = self.0.clone();
        let round = self.0.barrier.join(move || {
            async move {
                if keelson_store::bugs::is_on("stale-read") {
                    return Ok(());
                }
                let begun = Instant::now();
                let figures = inner.figures.clone();
                let settled = inner.settle().await;
                figures.read(begun.elapsed(), settled.is_err());
                settled
            }
            .boxed()
        });
        async move {
            round.await?;
            Ok(self.0.store.view().revision())
        }
        .boxed()
    }

    fn range(&self, request: &RangeRequest) -> Result<RangeResponse, KvError> {
        self.0.store.view().query(request)
    }

    fn txn_if(&self, guards: Guards, txn: Txn) -> BoxFuture<'_, Result<TxnResponse, KvError>> {
        async move {
            keelson_store::check(&txn)?;
            let command = if guards.is_empty() { Command::Txn(txn) } else { Command::TxnIf(guards, txn) };
            match self.0.propose(command).await? {
                Applied::Txn(response) => Ok(response),
                Applied::Done(_) => Err(KvError::Stopped("a transaction got another command's answer".into())),
            }
        }
        .boxed()
    }

    fn watch(&self, request: WatchRequest) -> Result<Watch, KvError> {
        self.0.store.watch(request)
    }

    fn progress(&self) {
        self.0.store.progress();
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), KvError>> {
        self.command(Command::Compact(revision))
    }

    fn change_settings(&self, change: SettingsChange) -> BoxFuture<'_, Result<(), KvError>> {
        self.command(Command::Settings(change))
    }

    fn lease_grant(&self, id: LeaseId, ttl: i64) -> BoxFuture<'_, Result<LeaseId, KvError>> {
        async move {
            let chosen = if id == 0 { choose_lease_id(&self.0.store.view()) } else { id };
            self.0.propose(Command::LeaseGrant { id: chosen, ttl }).await?;
            Ok(chosen)
        }
        .boxed()
    }

    fn lease_revoke_if(&self, guards: Guards, id: LeaseId) -> BoxFuture<'_, Result<(), KvError>> {
        let free = guards.is_empty();
        self.command(if free { Command::LeaseRevoke { id } } else { Command::LeaseRevokeIf(guards, id) })
    }

    fn lease_keep_alive(&self, id: LeaseId) -> BoxFuture<'_, Result<i64, KvError>> {
        async move {
            match self.0.ask_leader(Ask::KeepAlive(id), Bytes::new()).await? {
                Answer::Seconds(seconds) => seconds.map_err(unavailable),
                _ => Err(odd_answer()),
            }
        }
        .boxed()
    }

    fn lease_status(&self, id: LeaseId) -> BoxFuture<'_, Result<LeaseStatus, KvError>> {
        async move {
            let Answer::Seconds(seconds) = self.0.ask_leader(Ask::RemainingTtl(id), Bytes::new()).await? else {
                return Err(odd_answer());
            };
            let remaining_ttl = seconds.map_err(unavailable)?;
            self.barrier().await?;
            let view = self.0.store.view();
            let lease = view.lease(id).ok_or(KvError::LeaseNotFound)?;
            let keys = lease.keys().cloned().collect();
            Ok(LeaseStatus { id, granted_ttl: lease.granted_ttl, remaining_ttl, keys })
        }
        .boxed()
    }

    fn leases(&self) -> Vec<LeaseId> {
        self.0.store.view().leases().map(|lease| lease.id).collect()
    }

    fn status(&self) -> KvStatus {
        let status = self.0.peer_status();
        KvStatus {
            member_id: self.0.id,
            leader_id: status.leader_id,
            is_leader: self.0.is_leading(),
            term: status.term,
            applied_index: status.applied_index,
            revision: status.revision,
            db_size: status.db_size,
        }
    }

    fn leadership(&self) -> Pin<Box<dyn Stream<Item = bool> + Send>> {
        WatchStream::new(self.0.leading.subscribe()).boxed()
    }
}
