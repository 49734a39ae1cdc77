//! Whoever leads: what it answers, and how other members find it.

use std::time::Duration;

use bytes::Bytes;
use keelson_store::{Command, KvError, LeaseId};
use openraft::ReadPolicy;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{LinearizableReadError, RaftError};
use tokio::time::Instant;

use crate::limits::LEADER_WAIT_MILLIS;
use crate::message::{Answer, Ask, Refusal};
use crate::network::AskError;
use crate::replica::Inner;
use crate::types::{Part, TypeConfig};

impl Inner {
    /// An index that a linearizable read must have applied, as the leader.
    pub(crate) async fn read_index_here(&self) -> Result<u64, Refusal> {
        match self.raft.get_read_log_id(ReadPolicy::ReadIndex).await {
            Ok((read, _)) => Ok(read.index()),
            Err(error) => Err(read_refused(error)),
        }
    }

    /// Whether a majority has heard of this leader within its lease.
    pub(crate) async fn lease_here(&self) -> Result<(), Refusal> {
        self.raft.get_read_log_id(ReadPolicy::LeaseRead).await.map(|_| ()).map_err(read_refused)
    }

    pub(crate) async fn keep_alive_here(&self, id: LeaseId) -> Result<i64, Refusal> {
        self.lease_here().await?;
        let renewed = self.leases.renew(&self.store.view(), id).map_err(Refusal::Failed)?;
        self.figures.renewed();
        if renewed.take_back {
            // After any checkpoint that is under way, and before anybody is told.
            let _order = self.checkpointing.lock().await;
            let command = Command::LeaseCheckpoint(vec![(id, 0)]);
            let part = Part::new(command).map_err(|_| Refusal::Failed(KvError::TooLarge))?;
            self.write_here(part.into()).await?;
            self.leases.taken_back(id);
        }
        Ok(renewed.ttl)
    }

    pub(crate) async fn remaining_here(&self, id: LeaseId) -> Result<i64, Refusal> {
        self.lease_here().await?;
        let status = self.leases.status(&self.store.view(), id).map_err(Refusal::Failed)?;
        Ok(status.remaining_ttl)
    }
    /// Answers as the leader what [`Inner::ask_leader`] asks.
    async fn answer_here(&self, question: &Ask) -> Result<Answer, KvError> {
        Ok(match question {
            Ask::ReadIndex => Answer::ReadIndex(self.read_index_here().await),
            Ask::KeepAlive(id) => Answer::Seconds(self.keep_alive_here(*id).await),
            Ask::RemainingTtl(id) => Answer::Seconds(self.remaining_here(*id).await),
            Ask::Change(change) => Answer::Changed(self.change_here(change.clone()).await),
            _ => return Err(KvError::Stopped("a question that is not for the leader".into())),
        })
    }

    /// Asks whoever leads, for as long as nobody does or the one asked says that it does not.
    pub(crate) async fn ask_leader(&self, question: Ask, body: Bytes) -> Result<Answer, KvError> {
        let mut patience = Patience::new(self);
        loop {
            let leader = patience.leader().await?;
            let answer = if leader == self.id {
                self.answer_here(&question).await?
            } else {
                match self.forward(leader, &question, body.clone()).await {
                    Ok(answer) => answer,
                    Err(AskError::NotSent(why)) => {
                        patience.wait(why).await?;
                        continue;
                    }
                    Err(AskError::Unknown(why)) => return Err(KvError::Unavailable(why)),
                }
            };
            let why = match &answer {
                Answer::ReadIndex(Err(Refusal::NotLeader(_)))
                | Answer::Seconds(Err(Refusal::NotLeader(_)))
                | Answer::Changed(Err(Refusal::NotLeader(_))) => "the leader has changed".to_owned(),
                // A read changes nothing, and a majority that was too slow may answer in a moment.
                Answer::ReadIndex(Err(Refusal::Failed(KvError::Unavailable(why)))) => why.clone(),
                _ => return Ok(answer),
            };
            patience.wait(why).await?;
        }
    }

    pub(crate) async fn forward(&self, leader: u64, question: &Ask, body: Bytes) -> Result<Answer, AskError> {
        let address = self.address_of(leader);
        let Some(address) = address else {
            return Err(AskError::NotSent(format!("the leader {leader:x} is no member")));
        };
        tokio::select! {
            answer = self.network.ask(leader, &address, question, body) => answer,
            () = self.replaced(leader) => {
                let why = "the leader was replaced before it answered".to_owned();
                // What changes nothing can be asked of the next one.
                match question {
                    Ask::ReadIndex | Ask::KeepAlive(_) | Ask::RemainingTtl(_) => Err(AskError::NotSent(why)),
                    _ => Err(AskError::Unknown(why)),
                }
            }
        }
    }

    /// Waits until another member leads: one that is cut off does not answer, and does not break the connection either.
    async fn replaced(&self, leader: u64) {
        // Not all metrics: those change with every write.
        let mut metrics = self.raft.server_metrics();
        while metrics.borrow_and_update().current_leader.is_none_or(|now| now == leader) {
            if metrics.changed().await.is_err() {
                // Raft has stopped, which others notice.
                std::future::pending::<()>().await;
            }
        }
    }
}

fn read_refused(error: RaftError<TypeConfig, LinearizableReadError<TypeConfig>>) -> Refusal {
    match error {
        RaftError::APIError(LinearizableReadError::ForwardToLeader(to)) => Refusal::NotLeader(to.leader_id),
        RaftError::APIError(error) => Refusal::Failed(KvError::Unavailable(error.to_string())),
        RaftError::Fatal(fatal) => Refusal::Failed(KvError::Stopped(fatal.to_string())),
    }
}
/// How long a request waits for a leader.
pub(crate) struct Patience<'a> {
    inner: &'a Inner,
    deadline: Instant,
}

impl<'a> Patience<'a> {
    pub(crate) fn new(inner: &'a Inner) -> Self {
        Self { inner, deadline: Instant::now() + Duration::from_millis(LEADER_WAIT_MILLIS) }
    }

    /// Who leads; waits while nobody does.
    pub(crate) async fn leader(&mut self) -> Result<u64, KvError> {
        if let Some(leader) = self.inner.leader() {
            return Ok(leader);
        }
        let mut metrics = self.inner.raft.metrics();
        loop {
            let (leader, state) = {
                let metrics = metrics.borrow_and_update();
                (metrics.current_leader, metrics.running_state.clone())
            };
            match (leader, state) {
                (_, Err(fatal)) => return Err(KvError::Stopped(fatal.to_string())),
                (Some(leader), _) => return Ok(leader),
                (None, _) => {}
            }
            match tokio::time::timeout_at(self.deadline, metrics.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(KvError::Stopped("Raft has stopped".into())),
                Err(_) => return Err(KvError::Unavailable("no member has been elected".into())),
            }
        }
    }

    /// Waits a little for things to change.
    pub(crate) async fn wait(&mut self, why: String) -> Result<(), KvError> {
        if Instant::now() >= self.deadline {
            return Err(KvError::Unavailable(why));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        Ok(())
    }
}
