//! One member's replica: opens the log and the state, runs Raft, and tells how it stands.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use keelson_store::{KvError, LeaseClock, Revision, StateMachine};
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::metrics::RaftServerMetrics;
use openraft::type_config::alias::WatchReceiverOf;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::barrier::Barrier;
use crate::compare::Standing;
use crate::figures::Figures;
use crate::limits::*;
use crate::log::{Log, Reader};
use crate::machine::{Incoming, Machine};
use crate::message::{Answer, Ask, Change, PeerStatus, Refusal, Roll};
use crate::network::Network;
use crate::propose::Proposer;
use crate::read_index::Confirmed;
use crate::setup::{OpenError, Setup, Tuning, config};
use crate::suspicion::Suspicion;
use crate::sync_times::{SyncSummary, SyncTimes};
use crate::task::Scope;
use crate::types::{Node, Raft, TypeConfig};
use crate::wal::files::Files;
use crate::wire::World;

/// A replicated store. Dropping it stops nothing: see [`Replica::shutdown`].
#[derive(Clone)]
pub struct Replica(pub(crate) Arc<Inner>);

/// What the tasks of a replica share.
pub struct Inner {
    pub(crate) cluster_id: u64,
    pub(crate) id: u64,
    /// Where its log and state are.
    pub(crate) home: PathBuf,
    pub(crate) version: String,
    pub(crate) raft: Raft,
    /// Who belongs to the cluster and leads it: asked with each request, and a receiver of its own costs more than a look.
    /// Raft tells this before all its metrics: who waits for the one and reads the other sees what was before.
    pub(crate) server: WatchReceiverOf<TypeConfig, RaftServerMetrics<TypeConfig>>,
    pub(crate) store: Arc<StateMachine>,
    pub(crate) incoming: Incoming,
    pub(crate) partial: crate::transfer::Partial,
    pub(crate) network: Network,
    pub(crate) leases: LeaseClock,
    /// Held while leases' remaining times are on their way into the log, so that they come in the order of the clock.
    pub(crate) checkpointing: tokio::sync::Mutex<()>,
    /// Held while the membership changes.
    pub(crate) changing: tokio::sync::Mutex<()>,
    pub(crate) applied: watch::Receiver<u64>,
    pub(crate) leading: watch::Sender<bool>,
    pub(crate) barrier: Barrier,
    /// Tells what this member has voted for, as it is on disk.
    pub(crate) log: Reader,
    pub(crate) confirmed: Confirmed,
    pub(crate) proposed_bytes: AtomicUsize,
    pub(crate) proposed: AtomicUsize,
    pub(crate) stop: CancellationToken,
    pub(crate) tuning: Tuning,
    pub(crate) suspicion: Suspicion,
    handler: OnceLock<Handler>,
    sync_times: Arc<SyncTimes>,
    pub(crate) figures: Arc<Figures>,
    pub(crate) standing: Arc<Standing>,
    pub(crate) proposer: Proposer,
}

/// Answers what other members' programs ask this one's ([`Replica::ask_other`]).
pub type Handler = Box<dyn Fn(Vec<u8>) -> BoxFuture<'static, Result<Vec<u8>, String>> + Send + Sync>;
impl Replica {
    /// Opens or creates this member's part. A new one waits until [`Replica::initialize`] or until it is added by
    /// a member of a cluster ([`Replica::join`]).
    pub async fn open(setup: impl Into<Setup>) -> Result<Self, OpenError> {
        Self::open_in(setup, World::default()).await
    }

    /// Opens it in a simulated world.
    pub async fn open_in(setup: impl Into<Setup>, world: World) -> Result<Self, OpenError> {
        let setup = setup.into();
        let dir = setup.dir.clone();
        let opened = Self::open_whole(setup, world).await;
        opened.inspect_err(|error| {
            if crate::heal::is_damage(error) {
                crate::heal::pronounce_or_tell(&dir, &error.to_string());
            }
        })
    }

    async fn open_whole(setup: Setup, world: World) -> Result<Self, OpenError> {
        let Setup { cluster_id, id, dir, version, clock, listeners, tls, tuning } = setup;
        let World { wire, files } = world;
        let home = dir.clone();
        let inline = Scope::is_simulated();
        let (store, log, machine) = crate::task::blocking(move || opened(&dir, files, inline))
            .await
            .map_err(|error| OpenError::Raft(error.to_string()))??;
        let (sync_times, reader) = (log.sync_times(), log.reader());
        let (incoming, applied) = (machine.incoming(), machine.applied());
        let due = machine.snapshot_due(tuning.snapshot_commands);
        let figures = Arc::new(Figures::default());
        let machine = machine.counted(figures.clone());
        let standing = Arc::new(Standing::default());
        let network = Network::new(tls.clone()).over(wire).counted(figures.clone()).judged(standing.clone());
        let raft = Raft::new(id, config(&tuning)?, network.clone(), log, machine).await.map_err(|error| {
            // What is applied as it starts may be the first to read a damaged table.
            store.failure().map_or_else(|| OpenError::Raft(error.to_string()), OpenError::Store)
        })?;
        let stop = CancellationToken::new();
        let inner = Arc::new(Inner {
            cluster_id,
            id,
            home: home.clone(),
            version,
            server: raft.server_metrics(),
            raft,
            store,
            incoming,
            partial: Default::default(),
            network,
            leases: LeaseClock::new(clock),
            checkpointing: tokio::sync::Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            applied,
            leading: watch::Sender::new(false),
            barrier: Barrier::default(),
            log: reader,
            confirmed: Confirmed::default(),
            proposed_bytes: AtomicUsize::new(0),
            proposed: AtomicUsize::new(0),
            stop: stop.clone(),
            tuning,
            suspicion: Suspicion::default(),
            handler: OnceLock::new(),
            sync_times,
            figures,
            standing,
            proposer: Proposer::default(),
        });
        for (listener, secure) in listeners {
            let tls = tls.clone().filter(|_| secure);
            crate::task::spawn(crate::service::serve(inner.clone(), listener, tls, stop.clone()));
        }
        crate::task::spawn(crate::compare::run(inner.clone()));
        crate::task::spawn(crate::heal::remember(inner.clone(), home));
        crate::tend::begin(&inner, due);
        crate::task::spawn(crate::membership::promote(inner.clone()));
        Ok(Self(inner))
    }

    /// Makes a new cluster of this member alone; nothing if it already belongs to one.
    pub async fn initialize(&self, member: Node) -> Result<(), OpenError> {
        self.form(BTreeMap::from([(self.0.id, member)])).await
    }

    /// Makes a new cluster of these members, each of which does the same; nothing if it already belongs to one.
    pub async fn form(&self, members: BTreeMap<u64, Node>) -> Result<(), OpenError> {
        if self.is_initialized().await? {
            return Ok(());
        }
        match self.0.raft.initialize(members).await {
            Ok(()) => Ok(()),
            // Another member was faster and has written to this one's log.
            Err(RaftError::APIError(openraft::errors::InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(OpenError::Raft(error.to_string())),
        }
    }

    /// Whether this member has ever belonged to a cluster.
    pub async fn is_initialized(&self) -> Result<bool, OpenError> {
        self.0.raft.is_initialized().await.map_err(|error| OpenError::Raft(error.to_string()))
    }

    /// Asks the members at these addresses to add this one, which they promote when it has caught up.
    pub async fn join(&self, member: Node, addresses: &[String]) -> Result<(), KvError> {
        let change = Change::Join(self.0.id, member);
        let deadline = Instant::now() + Duration::from_millis(LEADER_WAIT_MILLIS * 4);
        let mut why = String::from("no address of a member is known");
        loop {
            for address in addresses {
                let asked = self.0.network.ask(0, address, &Ask::Change(change.clone()), Bytes::new()).await;
                match asked {
                    Ok(Answer::Changed(Ok(_))) => return Ok(()),
                    Ok(Answer::Changed(Err(Refusal::Membership(refused)))) => {
                        return Err(KvError::Unavailable(refused.to_string()));
                    }
                    Ok(Answer::Changed(Err(refusal))) => why = format!("{address}: {refusal}"),
                    Ok(_) => why = format!("{address} gave an answer to another question"),
                    Err(error) => why = format!("{address}: {error}"),
                }
            }
            if Instant::now() > deadline {
                return Err(KvError::Unavailable(why));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Asks a member how it stands; itself without the network.
    pub async fn status_of(&self, id: u64) -> Result<PeerStatus, KvError> {
        if id == self.0.id {
            return Ok(self.0.peer_status());
        }
        match self.0.ask_member(id, &Ask::Status).await? {
            Answer::Status(status) => Ok(status),
            _ => Err(odd_answer()),
        }
    }

    /// Asks a member for its chain hash at a revision.
    pub async fn hash_of(&self, id: u64, revision: Revision) -> Result<[u8; 32], KvError> {
        if id == self.0.id {
            return self.0.store.hash_at(revision);
        }
        match self.0.ask_member(id, &Ask::Hash(revision)).await? {
            Answer::Hash(hash) => hash,
            _ => Err(odd_answer()),
        }
    }

    /// Sets who answers [`Replica::ask_other`]; the first one stays.
    pub fn answer_others(&self, handler: Handler) {
        let _ = self.0.handler.set(handler);
    }

    /// Asks a member's program; this member's own without the network.
    pub async fn ask_other(&self, id: u64, question: Vec<u8>) -> Result<Vec<u8>, KvError> {
        let answer = if id == self.0.id {
            self.0.answer_other(question).await
        } else {
            match self.0.ask_member(id, &Ask::Other(question)).await? {
                Answer::Other(answer) => answer,
                _ => return Err(odd_answer()),
            }
        };
        answer.map_err(KvError::Unavailable)
    }

    /// How long the latest writes to this member's log took.
    pub fn sync_times(&self) -> SyncSummary {
        self.0.sync_times.summary()
    }

    /// What other members ask this one, for a network that is not the machine's.
    pub fn peer_service(&self) -> crate::wire::Line {
        crate::service::line(self.0.clone())
    }

    /// To be called where another member's process may have ended: if it was the leader, there is an election.
    pub async fn connection_ended(&self) {
        crate::suspicion::connection_ended(self.0.clone()).await;
    }

    /// The state machine underneath.
    pub fn machine(&self) -> &Arc<StateMachine> {
        &self.0.store
    }

    /// Resolves with the reason when Raft has stopped on an error: the process must then end. If the reason is damage, the
    /// member begins anew at its next start ([`crate::heal`]).
    pub fn failed(&self) -> impl Future<Output = String> + Send + 'static {
        let (metrics, mut server) = (self.0.raft.metrics(), self.0.raft.server_metrics());
        let stop = self.0.stop.clone();
        let (store, home) = (self.0.store.clone(), self.0.home.clone());
        async move {
            loop {
                // The state first: damage is there before Raft stops because of it.
                let state = metrics.borrow_watched().running_state.clone();
                let damage = store.failure().filter(|_| !stop.is_cancelled());
                if let Some(damage) = &damage
                    && matches!(damage, keelson_store::Fatal::Corrupt(_))
                {
                    crate::heal::pronounce_or_tell(&home, &damage.to_string());
                }
                match (state, damage) {
                    (Err(fatal), _) if !stop.is_cancelled() => return fatal.to_string(),
                    // Raft notices only when it has something to apply; until then nobody must read from here.
                    (Ok(()), Some(damage)) => return damage.to_string(),
                    (Err(_), _) => std::future::pending::<()>().await,
                    (Ok(()), None) => {}
                }
                // Not all metrics: those change with every write. These end when Raft does.
                let ended = tokio::select! {
                    _ = store.clone().failed(), if !stop.is_cancelled() => false,
                    changed = server.changed() => changed.is_err(),
                };
                if ended {
                    tokio::time::sleep(Duration::from_millis(FAILURE_LOOK_MILLIS)).await;
                }
            }
        }
    }

    /// Stops: hands leadership over if there is somebody to take it, ends watches, makes the state durable.
    pub async fn shutdown(&self) {
        if *self.0.leading.borrow()
            && let Some((id, ..)) = self.0.members().into_iter().find(|(id, _, votes)| *votes && *id != self.0.id)
            && self.0.raft.trigger().transfer_leader(id).await.is_ok()
        {
            let mut leading = self.0.leading.subscribe();
            let gone = leading.wait_for(|leading| !leading);
            let _ = tokio::time::timeout(Duration::from_millis(self.0.tuning.election_max_millis), gone).await;
        }
        self.0.stop.cancel();
        if let Err(error) = self.0.raft.shutdown().await {
            tracing::warn!(%error, "Raft did not stop in order");
        }
        let store = self.0.store.clone();
        let flushed = crate::task::blocking(move || {
            store.stop("the member stops");
            store.flush()
        });
        if let Ok(Err(error)) = flushed.await {
            tracing::warn!(%error, "the state was not flushed; the log has what is missing");
        }
    }
}

/// What is on a member's disk: its state, its log, and what applies one to the other. `inline` does the store's work in
/// the caller's thread.
fn opened(
    dir: &Path,
    files: Option<Arc<dyn Files>>,
    inline: bool,
) -> Result<(Arc<StateMachine>, Log, Machine), OpenError> {
    let options = keelson_store::Options { inline, ..Default::default() };
    let store = Arc::new(StateMachine::open(&dir.join("state"), options)?);
    let log = match files {
        Some(files) => Log::open_in(files),
        None => Log::open(&dir.join("log")),
    };
    let log = log.map_err(OpenError::Log)?;
    crate::heal::whole(store.applied().0, log.reader().purged().map_or(0, |purged| purged.index))?;
    let machine = Machine::new(store.clone(), &dir.join("snapshots")).map_err(OpenError::Log)?;
    log.has_others(machine.members() > 1);
    Ok((store, log, machine))
}

pub(crate) fn odd_answer() -> KvError {
    KvError::Unavailable("a member gave an answer to another question".into())
}

pub(crate) fn unavailable(refusal: Refusal) -> KvError {
    match refusal {
        Refusal::Failed(error) => error,
        other => KvError::Unavailable(other.to_string()),
    }
}

/// What Raft's refusal means for whoever asked the leader.
pub(crate) fn refused(error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> Refusal {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => Refusal::NotLeader(to.leader_id),
        RaftError::APIError(error @ ClientWriteError::ChangeMembershipError(_)) => {
            Refusal::Membership(crate::cluster::ClusterError::Unsupported(error.to_string()))
        }
        RaftError::APIError(error) => Refusal::Failed(KvError::Unavailable(error.to_string())),
        RaftError::Fatal(fatal) => Refusal::Failed(KvError::Stopped(fatal.to_string())),
    }
}

impl Inner {
    /// Writes how long all writes to the log took.
    pub(crate) fn write_sync_times(&self, name: &str, out: &mut String) {
        self.sync_times.all().write(name, "", out);
    }

    /// The members, this one too.
    pub(crate) fn member_ids(&self) -> Vec<u64> {
        self.server.borrow_watched().membership_config.nodes().map(|(id, _)| *id).collect()
    }

    /// Each member, and whether it votes: in the middle of a change, whether it did before and will.
    pub(crate) fn members(&self) -> Vec<(u64, Node, bool)> {
        let membership = self.server.borrow_watched().membership_config.clone();
        let votes = |id: &u64| membership.membership().get_joint_config().iter().all(|voters| voters.contains(id));
        membership.nodes().map(|(id, member)| (*id, member.clone(), votes(id))).collect()
    }

    /// Whether no change of the membership is under way, as this member knows, and all that shall vote do.
    pub(crate) fn is_settled(&self) -> bool {
        let joins = |(_, member, votes): &(u64, Node, bool)| member.joining && !votes;
        if self.members().iter().any(joins) {
            return false;
        }
        let metrics = self.server.borrow_watched();
        let config = &metrics.membership_config;
        config == &metrics.committed_membership_config && config.membership().get_joint_config().len() == 1
    }

    pub(crate) async fn answer_other(&self, question: Vec<u8>) -> Result<Vec<u8>, String> {
        match self.handler.get() {
            Some(handler) => handler(question).await,
            None => Err("this member does not answer such questions yet".into()),
        }
    }

    pub(crate) fn leader(&self) -> Option<u64> {
        self.server.borrow_watched().current_leader
    }

    /// Whether entries go to other members.
    pub(crate) fn is_replicated(&self) -> bool {
        self.server.borrow_watched().membership_config.nodes().nth(1).is_some()
    }

    pub(crate) fn term(&self) -> u64 {
        self.server.borrow_watched().vote.leader_id.term
    }

    pub(crate) fn is_leading(&self) -> bool {
        *self.leading.borrow()
    }

    pub(crate) fn stopping(&self) -> &CancellationToken {
        &self.stop
    }

    pub(crate) fn peer_status(&self) -> PeerStatus {
        let (leader, term) = {
            let metrics = self.server.borrow_watched();
            (metrics.current_leader, metrics.vote.leader_id.term)
        };
        let view = self.store.view();
        PeerStatus {
            leader_id: leader.unwrap_or(0),
            term,
            applied_index: view.applied_index(),
            revision: view.revision(),
            db_size: self.store.size_bytes(),
            version: self.version.clone(),
        }
    }

    /// Waits until this member has applied an index.
    pub(crate) async fn wait_applied(&self, index: u64) -> Result<(), KvError> {
        if *self.applied.borrow() >= index {
            return Ok(());
        }
        let mut applied = self.applied.clone();
        let reached = applied.wait_for(|applied| *applied >= index);
        let limit = Duration::from_millis(PEER_REQUEST_MILLIS);
        match tokio::time::timeout(limit, reached).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(KvError::Stopped("the state machine has stopped".into())),
            Err(_) => Err(KvError::Unavailable(format!("this member did not apply entry {index} within {limit:?}"))),
        }
    }

    pub(crate) async fn ask_member(&self, id: u64, question: &Ask) -> Result<Answer, KvError> {
        let Some(address) = self.address_of(id) else {
            return Err(KvError::Unavailable(format!("there is no member {id:x}")));
        };
        let asked = self.network.ask(id, &address, question, Bytes::new()).await;
        asked.map_err(|error| KvError::Unavailable(format!("the member at {address}: {error}")))
    }

    /// Where a member is reached.
    pub(crate) fn address_of(&self, id: u64) -> Option<String> {
        let metrics = self.server.borrow_watched();
        metrics.membership_config.nodes().find(|(found, _)| **found == id).map(|(_, node)| node.peer_address.clone())
    }

    /// Who belongs to the cluster.
    pub(crate) fn roll(&self) -> Roll {
        let applied_index = self.store.view().applied_index();
        Roll { cluster_id: self.cluster_id, applied_index, members: self.members() }
    }
}
