//! Changes of the membership, carried out by the leader.
//!
//! Invariant: a member that joins becomes a voter only after its log has caught up, so that a change of membership
//! never costs availability.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::raft::ClientWriteResponse;

use tokio::time::Instant;

use crate::limits::{LEADER_WAIT_MILLIS, PROMOTION_LAG_ENTRIES, PROMOTION_MILLIS};
use crate::message::{Change, Refusal};
use crate::replica::{Inner, refused};
use crate::types::{Member, TypeConfig};

type Written = Result<ClientWriteResponse<TypeConfig>, RaftError<TypeConfig, ClientWriteError<TypeConfig>>>;

/// How long a change waits for the one before it.
const CHANGE_WAIT: Duration = Duration::from_millis(LEADER_WAIT_MILLIS);

fn in_progress(written: &Written) -> bool {
    use openraft::errors::ChangeMembershipError::InProgress;
    matches!(written, Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(InProgress(_)))))
}

impl Inner {
    /// Tries a change until the one before it is done.
    async fn try_change(&self, change: ChangeMembers<u64, Member>, retain: bool) -> Result<u64, Refusal> {
        let deadline = Instant::now() + CHANGE_WAIT;
        loop {
            let written = self.raft.change_membership(change.clone(), retain).await;
            if in_progress(&written) && Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
            return Ok(written.map_err(refused)?.log_id.index);
        }
    }

    /// Changes the membership as the leader; returns the index after which the change holds.
    pub(crate) async fn change_here(&self, change: Change) -> Result<u64, Refusal> {
        if !self.is_leading() {
            return Err(Refusal::NotLeader(None));
        }
        tracing::info!(?change, "the membership changes");
        match change {
            Change::Join(id, member) => self.join_here(id, Member { joining: true, ..member }).await,
            Change::AddLearner(id, member) => self.join_here(id, Member { joining: false, ..member }).await,
            Change::Promote(id) => self.promote_here(id).await,
            Change::Remove(id) => self.remove_here(id).await,
            Change::Update(id, member) => {
                let Some((_, old, _)) = self.members().into_iter().find(|(found, ..)| *found == id) else {
                    return Err(Refusal::Membership(format!("there is no member {id:x}")));
                };
                let node = Member { joining: old.joining, ..member };
                let change = ChangeMembers::SetNodes(BTreeMap::from([(id, node)]));
                self.try_change(change, true).await
            }
            Change::Transfer(id) => self.transfer_here(id).await,
        }
    }

    async fn join_here(&self, id: u64, member: Member) -> Result<u64, Refusal> {
        let members = self.members();
        if members.iter().any(|(found, ..)| *found == id) {
            let change = ChangeMembers::SetNodes(BTreeMap::from([(id, member)]));
            return self.try_change(change, true).await;
        }
        if let Some((old, ..)) = members.iter().find(|(_, found, _)| found.name == member.name) {
            tracing::warn!(name = member.name, old = format!("{old:x}"), "a member is replaced: it lost its data");
            self.remove_here(*old).await?;
        }
        self.try_change(ChangeMembers::AddNodes(BTreeMap::from([(id, member)])), true).await
    }

    async fn promote_here(&self, id: u64) -> Result<u64, Refusal> {
        match self.members().into_iter().find(|(found, ..)| *found == id) {
            None => Err(Refusal::Membership("etcdserver: member not found".into())),
            Some((_, _, true)) => Err(Refusal::Membership("etcdserver: can only promote a learner member".into())),
            Some(_) if !self.caught_up(id) => Err(Refusal::Membership(
                "etcdserver: can only promote a learner member which is in sync with leader".into(),
            )),
            Some(_) => {
                let change = ChangeMembers::AddVoterIds(BTreeSet::from([id]));
                self.try_change(change, true).await
            }
        }
    }

    async fn remove_here(&self, id: u64) -> Result<u64, Refusal> {
        let members = self.members();
        let voters = members.iter().filter(|(_, _, votes)| *votes).count();
        let change = match members.iter().find(|(found, ..)| *found == id) {
            None => return Err(Refusal::Membership("etcdserver: member not found".into())),
            Some((_, _, true)) if voters == 1 => {
                return Err(Refusal::Membership("the only voting member cannot be removed".into()));
            }
            Some((_, _, true)) => ChangeMembers::RemoveVoters(BTreeSet::from([id])),
            Some(_) => ChangeMembers::RemoveNodes(BTreeSet::from([id])),
        };
        self.try_change(change, false).await
    }

    async fn transfer_here(&self, id: u64) -> Result<u64, Refusal> {
        if !self.members().iter().any(|(found, _, votes)| *found == id && *votes) {
            return Err(Refusal::Membership("etcdserver: bad leader transferee".into()));
        }
        let failed = |error: openraft::errors::Fatal<TypeConfig>| {
            Refusal::Failed(keelson_store::KvError::Stopped(error.to_string()))
        };
        self.raft.trigger().transfer_leader(id).await.map_err(failed)?;
        let metrics = self.raft.metrics();
        let last = metrics.borrow_watched().last_applied;
        Ok(last.map_or(0, |last| last.index))
    }

    /// Whether a learner's log is nearly as long as the leader's.
    fn caught_up(&self, id: u64) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let matched = metrics.replication.as_ref().and_then(|progress| progress.get(&id)).copied().flatten();
        let last = metrics.last_log_index.unwrap_or(0);
        matched.is_some_and(|matched| matched.index + PROMOTION_LAG_ENTRIES >= last)
    }
}

/// Promotes joining learners that have caught up, while this member leads.
pub async fn promote(inner: Arc<Inner>) {
    let mut tick = tokio::time::interval(Duration::from_millis(PROMOTION_MILLIS));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = inner.stopping().cancelled() => return,
            _ = tick.tick() => {}
        }
        if !inner.is_leading() {
            continue;
        }
        for (id, member, votes) in inner.members() {
            if votes || !member.joining || !inner.caught_up(id) {
                continue;
            }
            match inner.promote_here(id).await {
                Ok(_) => tracing::info!(name = member.name, "a new member has caught up and votes now"),
                Err(error) => tracing::warn!(name = member.name, %error, "a new member cannot be promoted yet"),
            }
        }
    }
}
