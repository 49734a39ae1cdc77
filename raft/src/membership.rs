//! Changes of the membership, carried out by the leader.
//!
//! Invariant: a member that joins becomes a voter only after its log has caught up, so that a change of membership
//! never costs availability.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use keelson_store::{ChainHash, Command, Kv, KvError, Revision, SettingsChange};
use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::raft::ClientWriteResponse;

use tokio::time::Instant;

use crate::cluster::{Cluster, ClusterError, Member, Standing, is_member_url, wait_compacted};
use crate::limits::{COMPARE_MILLIS, LEADER_WAIT_MILLIS, PROMOTION_LAG_ENTRIES, PROMOTION_MILLIS};
use crate::message::{Answer, Ask, Change, Refusal};
use crate::replica::{Inner, Replica, odd_answer, refused};
use crate::types::{Node, Part, TypeConfig};

type Written = Result<ClientWriteResponse<TypeConfig>, RaftError<TypeConfig, ClientWriteError<TypeConfig>>>;

/// How long a change waits for the one before it.
const CHANGE_WAIT: Duration = Duration::from_millis(LEADER_WAIT_MILLIS);

fn in_progress(written: &Written) -> bool {
    use openraft::errors::ChangeMembershipError::InProgress;
    matches!(written, Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(InProgress(_)))))
}

impl Inner {
    /// Tries a change until the one before it is done.
    async fn try_change(&self, change: ChangeMembers<u64, Node>, retain: bool) -> Result<u64, Refusal> {
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
        if let Change::Transfer(id) = change {
            return self.transfer_here(id).await;
        }
        // One at a time: the second step of one must not be taken by somebody else.
        let _changing = self.changing.lock().await;
        if self.is_joint() {
            self.finish_change().await;
        }
        match change {
            Change::Join(id, member) => self.join_here(id, Node { joining: true, ..member }).await,
            Change::AddLearner(id, member) => self.join_here(id, Node { joining: false, ..member }).await,
            Change::Promote(id) => self.promote_here(id).await,
            Change::Remove(id) => self.remove_here(id).await,
            Change::Update(id, member) => {
                let Some((_, old, _)) = self.members().into_iter().find(|(found, ..)| *found == id) else {
                    return Err(Refusal::Membership(ClusterError::MemberNotFound));
                };
                let node = Node { joining: old.joining, ..member };
                let change = ChangeMembers::SetNodes(BTreeMap::from([(id, node)]));
                self.try_change(change, true).await
            }
            Change::Transfer(id) => self.transfer_here(id).await,
        }
    }

    async fn join_here(&self, id: u64, member: Node) -> Result<u64, Refusal> {
        let members = self.members();
        if members.iter().any(|(found, ..)| *found == id) {
            let change = ChangeMembers::SetNodes(BTreeMap::from([(id, member)]));
            return self.try_change(change, true).await;
        }
        let named = |found: &Node| !member.name.is_empty() && found.name == member.name;
        if let Some((old, ..)) = members.iter().find(|(_, found, _)| named(found)) {
            tracing::warn!(name = member.name, old = format!("{old:x}"), "a member is replaced: it lost its data");
            return self.replace_here(*old, id, member).await.map_err(|refusal| match refusal {
                // Whoever hears that nothing was done takes the old member's absence for somebody else's wish.
                Refusal::NotLeader(_) => {
                    Refusal::Failed(KvError::Unavailable("the leader changed while a member was replaced".into()))
                }
                refusal => refusal,
            });
        }
        self.try_change(ChangeMembers::AddNodes(BTreeMap::from([(id, member)])), true).await
    }

    async fn replace_here(&self, old: u64, id: u64, member: Node) -> Result<u64, Refusal> {
        self.remove_here(old).await?;
        self.try_change(ChangeMembers::AddNodes(BTreeMap::from([(id, member)])), true).await
    }

    /// What was wrong with members that are no more is over.
    async fn clear_alarms(&self) {
        let (view, members) = (self.store.view(), self.members());
        let gone = |id: u64| members.iter().all(|(found, ..)| *found != id);
        let names = crate::etcd::alarm::names(&view).into_iter().filter(|(_, id)| gone(*id));
        let writes: Vec<_> = names.map(|(name, _)| (name, None)).collect();
        if writes.is_empty() {
            return;
        }
        let change = SettingsChange { guards: Vec::new(), writes };
        let written = match Part::new(Command::Settings(change)) {
            Ok(part) => self.write_here(part.into()).await.map(drop).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = written {
            tracing::debug!(error, "the alarms of a member that is no more stay for now");
        }
    }

    async fn promote_here(&self, id: u64) -> Result<u64, Refusal> {
        match self.members().into_iter().find(|(found, ..)| *found == id) {
            None => Err(Refusal::Membership(ClusterError::MemberNotFound)),
            Some((_, _, true)) => Err(Refusal::Membership(ClusterError::NotLearner)),
            Some(_) if !self.caught_up(id) => Err(Refusal::Membership(ClusterError::LearnerNotReady)),
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
            None => return Err(Refusal::Membership(ClusterError::MemberNotFound)),
            Some((_, _, true)) if voters == 1 => {
                return Err(Refusal::Membership(ClusterError::NotEnoughStarted));
            }
            Some((_, _, true)) => ChangeMembers::RemoveVoters(BTreeSet::from([id])),
            Some(_) => ChangeMembers::RemoveNodes(BTreeSet::from([id])),
        };
        self.try_change(change, false).await
    }

    async fn transfer_here(&self, id: u64) -> Result<u64, Refusal> {
        if !self.members().iter().any(|(found, _, votes)| *found == id && *votes) {
            return Err(Refusal::Membership(ClusterError::BadTransferee));
        }
        let failed = |error: openraft::errors::Fatal<TypeConfig>| Refusal::Failed(KvError::Stopped(error.to_string()));
        self.raft.trigger().transfer_leader(id).await.map_err(failed)?;
        let metrics = self.raft.metrics();
        let last = metrics.borrow_watched().last_applied;
        Ok(last.map_or(0, |last| last.index))
    }

    /// Whether a change of voters has made its first step only: then the old ones and the new ones must agree.
    pub(crate) fn is_joint(&self) -> bool {
        self.server.borrow_watched().membership_config.membership().get_joint_config().len() > 1
    }

    /// Makes the second step of a change whose leader died after the first: until then fewer members may fail than should.
    async fn finish_change(&self) {
        // Voters that leave are no learners afterwards, as in every change that removes one.
        let written = self.raft.change_membership(ChangeMembers::AddVoterIds(BTreeSet::new()), false).await;
        match written {
            Ok(_) => tracing::info!("a change of the membership that another leader began is finished"),
            // Whoever began it is still at it.
            Err(_) if in_progress(&written) => {}
            Err(error) => tracing::debug!(%error, "a change of the membership cannot be finished yet"),
        }
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

/// Promotes joining learners that have caught up, and finishes what former leaders began, while this member leads.
pub async fn promote(inner: Arc<Inner>) {
    let (mut members, mut leading) = (inner.raft.server_metrics(), inner.leading.subscribe());
    loop {
        // What is not finished is looked at again soon; otherwise there is nothing to do until members change.
        let pause = if inner.is_leading() && inner.further_members().await { PROMOTION_MILLIS } else { COMPARE_MILLIS };
        let changed = tokio::select! {
            () = inner.stopping().cancelled() => return,
            changed = members.changed() => changed.is_ok(),
            changed = leading.changed() => changed.is_ok(),
            () = tokio::time::sleep(Duration::from_millis(pause)) => true,
        };
        if !changed {
            return;
        }
    }
}

impl Inner {
    /// One step on with what is not finished; whether something is left.
    async fn further_members(&self) -> bool {
        let _changing = self.changing.lock().await;
        if self.is_joint() {
            self.finish_change().await;
            return true;
        }
        self.clear_alarms().await;
        let mut left = false;
        for (id, member, votes) in self.members() {
            if votes || !member.joining {
                continue;
            }
            left = true;
            if !self.caught_up(id) {
                continue;
            }
            match self.promote_here(id).await {
                Ok(_) => tracing::info!(name = member.name, "a new member has caught up and votes now"),
                Err(error) => tracing::warn!(name = member.name, %error, "a new member cannot be promoted yet"),
            }
        }
        left
    }
}

/// A failed change as the cluster's users see it.
fn cluster_error(refusal: Refusal) -> ClusterError {
    match refusal {
        Refusal::Membership(error) => error,
        Refusal::NotLeader(_) => ClusterError::NotLeader,
        Refusal::Failed(error) => error.into(),
    }
}

/// Peer URLs as a member's record has them.
fn peer_address(urls: &[String]) -> Result<String, ClusterError> {
    if urls.is_empty() || !urls.iter().all(|url| is_member_url(url)) {
        return Err(ClusterError::BadUrls);
    }
    let mut urls: Vec<_> = urls.iter().map(|url| url.trim_end_matches('/')).collect();
    urls.sort_unstable();
    Ok(urls.join(","))
}

impl Node {
    /// A member that is reached at these peer URLs.
    pub fn at(name: &str, peer_urls: &[String]) -> Result<Self, ClusterError> {
        Ok(Self { name: name.to_owned(), peer_address: peer_address(peer_urls)?, ..Self::default() })
    }

    /// Where it is reached, as URLs.
    pub fn peer_urls(&self) -> Vec<String> {
        let url = |text: &str| if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
        self.peer_address.split(',').map(url).collect()
    }
}

fn listed((id, node, votes): (u64, Node, bool)) -> Member {
    let (peer_urls, is_learner) = (node.peer_urls(), !votes && !node.joining);
    Member { id, name: node.name, peer_urls, client_urls: node.client_urls, is_learner }
}

/// Whether so many started of so many voting members can go on deciding.
fn enough(started: usize, members: usize) -> bool {
    started > members / 2
}

impl Replica {
    /// Changes the membership, wherever the leader is; this member knows of the change when this returns.
    pub async fn change(&self, change: Change) -> Result<(), ClusterError> {
        // A member that removes itself hears no more of the log.
        let leaves = change == Change::Remove(self.0.id);
        let is_membership = !matches!(change, Change::Transfer(_));
        let answer = self.0.ask_leader(Ask::Change(change), Bytes::new()).await?;
        let Answer::Changed(changed) = answer else { return Err(odd_answer().into()) };
        let index = changed.map_err(cluster_error)?;
        if !leaves {
            self.0.wait_applied(index).await?;
            if is_membership {
                self.wait_known(index).await;
            }
        }
        Ok(())
    }

    /// Waits until the members listed here are those of the entry `index`, or later ones.
    async fn wait_known(&self, index: u64) {
        let mut metrics = self.0.raft.metrics();
        let deadline = Instant::now() + CHANGE_WAIT;
        while metrics.borrow_and_update().membership_config.log_id().as_ref().is_none_or(|known| known.index < index) {
            if !matches!(tokio::time::timeout_at(deadline, metrics.changed()).await, Ok(Ok(()))) {
                return;
            }
        }
    }

    /// Refuses peer URLs that another member than `id` has.
    fn unused(&self, id: u64, node: &Node) -> Result<(), ClusterError> {
        let urls = node.peer_urls();
        let has = |other: &Node| other.peer_urls().iter().any(|url| urls.contains(url));
        let taken = self.nodes().iter().any(|(found, other, _)| *found != id && has(other));
        if taken { Err(ClusterError::PeerUrlExists) } else { Ok(()) }
    }

    /// How many members vote, or will as soon as they can, and how many of these have started; all but `id`.
    fn started_and_voting(&self, id: u64) -> (usize, usize) {
        let nodes = self.nodes();
        let voting = nodes.iter().filter(|(found, node, votes)| *found != id && (*votes || node.joining));
        let started = voting.clone().filter(|(_, node, _)| !node.name.is_empty());
        (started.count(), voting.count())
    }

    /// Whether no change of the membership is under way, as this member knows, and all that shall vote do.
    pub fn is_settled(&self) -> bool {
        self.0.is_settled()
    }

    /// The members: id, who it is, and whether it votes. As this member knows; [`Kv::barrier`] makes it current.
    pub fn nodes(&self) -> Vec<(u64, Node, bool)> {
        self.0.members()
    }
}

impl Cluster for Replica {
    fn cluster_id(&self) -> u64 {
        self.0.cluster_id
    }

    fn member_id(&self) -> u64 {
        self.0.id
    }

    fn standing(&self) -> Standing {
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow_watched();
        let raft = metrics.running_state.as_ref().err().map(ToString::to_string);
        let store = self.machine().failure().map(|fatal| fatal.to_string());
        let errors = store.or(raft).into_iter().collect();
        Standing {
            term: metrics.current_term,
            leader: metrics.current_leader.unwrap_or(0),
            committed: metrics.cluster_committed.map_or(0, |log_id| log_id.index),
            applied: metrics.last_applied.map_or(0, |log_id| log_id.index),
            is_learner: metrics.membership_config.nodes().any(|(id, node)| *id == self.0.id && !node.joining)
                && !metrics.membership_config.voter_ids().any(|id| id == self.0.id),
            errors,
        }
    }

    fn term(&self) -> u64 {
        self.0.term()
    }

    fn write_figures(&self, out: &mut String) {
        crate::figures::write(&self.0, out);
    }

    fn members(&self, linearizable: bool) -> BoxFuture<'_, Result<Vec<Member>, ClusterError>> {
        async move {
            if linearizable {
                self.barrier().await?;
            }
            Ok(self.nodes().into_iter().map(listed).collect())
        }
        .boxed()
    }

    fn add(&self, peer_urls: Vec<String>, learner: bool) -> BoxFuture<'_, Result<Member, ClusterError>> {
        async move {
            let node = Node::at("", &peer_urls)?;
            self.unused(0, &node)?;
            let nodes = self.nodes();
            if learner && nodes.iter().any(|(_, node, votes)| !votes && !node.joining) {
                return Err(ClusterError::TooManyLearners);
            }
            let (started, voting) = self.started_and_voting(0);
            // A second member may always come: without it the first stays alone for ever.
            if !learner && voting > 1 && !enough(started, voting + 1) {
                return Err(ClusterError::NotEnoughStarted);
            }
            let id = choose_member_id(&nodes);
            let change = if learner { Change::AddLearner(id, node) } else { Change::Join(id, node) };
            self.change(change).await?;
            Ok(Member { id, peer_urls, is_learner: learner, ..Member::default() })
        }
        .boxed()
    }

    fn remove(&self, id: u64) -> BoxFuture<'_, Result<(), ClusterError>> {
        async move {
            let votes = self.nodes().into_iter().any(|(found, node, votes)| found == id && (votes || node.joining));
            let (started, voting) = self.started_and_voting(id);
            if votes && !enough(started, voting) {
                return Err(ClusterError::NotEnoughStarted);
            }
            self.change(Change::Remove(id)).await
        }
        .boxed()
    }

    fn update(&self, id: u64, peer_urls: Vec<String>) -> BoxFuture<'_, Result<(), ClusterError>> {
        async move {
            let peer_address = peer_address(&peer_urls)?;
            let Some((_, node, _)) = self.nodes().into_iter().find(|(found, ..)| *found == id) else {
                return Err(ClusterError::MemberNotFound);
            };
            self.unused(id, &Node::at("", &peer_urls)?)?;
            self.change(Change::Update(id, Node { peer_address, ..node })).await
        }
        .boxed()
    }

    fn promote(&self, id: u64) -> BoxFuture<'_, Result<(), ClusterError>> {
        self.change(Change::Promote(id)).boxed()
    }

    fn move_leader(&self, to: u64) -> BoxFuture<'_, Result<(), ClusterError>> {
        async move {
            if !self.0.is_leading() {
                return Err(ClusterError::NotLeader);
            }
            if to == self.0.id {
                return Ok(());
            }
            self.change(Change::Transfer(to)).await?;
            let mut metrics = self.0.raft.metrics();
            let deadline = Instant::now() + CHANGE_WAIT;
            while metrics.borrow_and_update().current_leader != Some(to) {
                let moved = tokio::time::timeout_at(deadline, metrics.changed()).await;
                if !matches!(moved, Ok(Ok(()))) {
                    return Err(KvError::Unavailable("leadership has not moved in time".into()).into());
                }
            }
            Ok(())
        }
        .boxed()
    }

    fn hash_at(&self, revision: Revision) -> Result<(Revision, ChainHash), KvError> {
        let view = self.view();
        if revision <= 0 || revision == view.revision() {
            return Ok((view.revision(), view.hash()));
        }
        Ok((revision, self.machine().hash_at(revision)?))
    }

    fn compacted(&self, revision: Revision) -> BoxFuture<'_, Result<(), KvError>> {
        wait_compacted(self.machine(), revision).boxed()
    }
}

/// A random id that no member has.
fn choose_member_id(nodes: &[(u64, Node, bool)]) -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    loop {
        let id = RandomState::new().build_hasher().finish();
        if id != 0 && !nodes.iter().any(|(found, ..)| *found == id) {
            return id;
        }
    }
}
