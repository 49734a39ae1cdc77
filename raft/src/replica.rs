//! One member's replica: opens the log and the state, runs Raft, and gives them out as a [`Kv`].

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, Stream, StreamExt};
use keelson_store::{
    Applied, Clock, Command, Guards, Kv, KvError, KvStatus, LeaseClock, LeaseId, LeaseStatus, RangeRequest,
    RangeResponse, Revision, SettingsChange, StateMachine, Txn, TxnResponse, View, Watch, WatchRequest,
    choose_lease_id,
};
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, LinearizableReadError, RaftError};
use openraft::type_config::alias::WatchReceiverOf;
use openraft::{Config, RaftMetrics, ReadPolicy, ServerState, SnapshotPolicy};
use rustls::{ClientConfig, ServerConfig};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::CancellationToken;

use crate::barrier::Barrier;
use crate::limits::*;
use crate::log::Log;
use crate::machine::{Incoming, Machine};
use crate::message::{Answer, Ask, Change, PeerStatus, Refusal, Roll};
use crate::network::{AskError, Network, PEER_NAME};
use crate::peer_tls::PeerTls;
use crate::propose::{NotWritten, Proposer};
use crate::suspicion::Suspicion;
use crate::sync_times::{SyncSummary, SyncTimes};
use crate::task::Scope;
use crate::types::{Node, Part, Raft, TypeConfig};
use crate::wire::World;

/// How a replica is opened.
pub struct Options {
    /// The cluster's id.
    pub cluster_id: u64,
    /// This member's id, never 0, never used before by another.
    pub id: u64,
    /// Where log, state and snapshots are.
    pub dir: PathBuf,
    /// Shown by [`PeerStatus`].
    pub version: String,
    /// Tells the time to leases.
    pub clock: Arc<dyn Clock>,
    /// Where peers connect.
    pub listener: TcpListener,
    /// Identity towards peers that connect.
    pub server_tls: Arc<ServerConfig>,
    /// Identity towards peers that this member connects to.
    pub client_tls: Arc<ClientConfig>,
}

/// How a replica keeps time and its log.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// How often the leader tells that it lives.
    pub heartbeat_millis: u64,
    /// Shortest silence of the leader after which a member stands for election.
    pub election_min_millis: u64,
    /// Longest such silence.
    pub election_max_millis: u64,
    /// Commands after which a snapshot is taken and the log before it may go.
    pub snapshot_commands: u64,
    /// Entries kept before the last snapshot for members that lag a little.
    pub kept_entries: u64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            heartbeat_millis: HEARTBEAT_MILLIS,
            election_min_millis: ELECTION_MIN_MILLIS,
            election_max_millis: ELECTION_MAX_MILLIS,
            snapshot_commands: SNAPSHOT_COMMANDS,
            kept_entries: KEPT_ENTRIES,
        }
    }
}

/// All that a replica can be opened with; [`Options`] where the defaults suit.
pub struct Setup {
    /// The cluster's id.
    pub cluster_id: u64,
    /// This member's id, never 0, never used before by another.
    pub id: u64,
    /// Where log, state and snapshots are.
    pub dir: PathBuf,
    /// Shown by [`PeerStatus`].
    pub version: String,
    /// Tells the time to leases.
    pub clock: Arc<dyn Clock>,
    /// Where peers connect, and whether they speak TLS there.
    pub listeners: Vec<(TcpListener, bool)>,
    /// What secures connections between members; without it they are in the clear.
    pub tls: Option<PeerTls>,
    /// Times and sizes.
    pub tuning: Tuning,
}

impl From<Options> for Setup {
    fn from(options: Options) -> Self {
        let Options { cluster_id, id, dir, version, clock, listener, server_tls, client_tls } = options;
        let tls = Some(PeerTls::fixed(server_tls, client_tls, PEER_NAME));
        let listeners = vec![(listener, true)];
        Self { cluster_id, id, dir, version, clock, listeners, tls, tuning: Tuning::default() }
    }
}

/// Why a replica cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The log cannot be read.
    #[error("cannot open the Raft log: {0}")]
    Log(std::io::Error),
    /// The state cannot be read.
    #[error("cannot open the store: {0}")]
    Store(#[from] keelson_store::Fatal),
    /// Raft does not start.
    #[error("cannot start Raft: {0}")]
    Raft(String),
}

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
    /// Asked with each request: a receiver of its own costs more than a look.
    metrics: WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>,
    pub(crate) store: Arc<StateMachine>,
    pub(crate) incoming: Incoming,
    pub(crate) network: Network,
    leases: LeaseClock,
    /// Held while leases' remaining times are on their way into the log, so that they come in the order of the clock.
    checkpointing: tokio::sync::Mutex<()>,
    applied: watch::Receiver<u64>,
    leading: watch::Sender<bool>,
    barrier: Barrier,
    proposed_bytes: AtomicUsize,
    proposed: AtomicUsize,
    stop: CancellationToken,
    tuning: Tuning,
    pub(crate) suspicion: Suspicion,
    handler: OnceLock<Handler>,
    sync_times: Arc<SyncTimes>,
    pub(crate) proposer: Proposer,
}

/// Answers what other members' programs ask this one's ([`Replica::ask_other`]).
pub type Handler = Box<dyn Fn(Vec<u8>) -> BoxFuture<'static, Result<Vec<u8>, String>> + Send + Sync>;

fn config(tuning: &Tuning) -> Result<Arc<Config>, OpenError> {
    // The library waits until the leader's lease, which is as long as its longest timeout, is over, and then for its
    // timeout as well: the silence is the sum of both.
    let lease = tuning.election_max_millis / 2;
    let config = Config {
        cluster_name: "keelson".into(),
        heartbeat_interval: tuning.heartbeat_millis,
        election_timeout_min: tuning.election_min_millis.saturating_sub(lease),
        election_timeout_max: lease,
        install_snapshot_timeout: SNAPSHOT_TRANSFER_MILLIS,
        max_payload_entries: APPEND_ENTRIES,
        replication_lag_threshold: tuning.snapshot_commands.saturating_mul(4),
        // An entry holds one command or a thousand: see `snapshots`.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: tuning.kept_entries,
        purge_batch_size: 256,
        enable_pre_vote: Some(true),
        // Entries reach a majority of the others before they reach this member's own disk. A leader that was killed in
        // between and went on in the same term would give the place of an acknowledged entry to another one.
        enable_leader_restore: Some(keelson_store::bugs::is_on("leader-restore")),
        ..Config::default()
    };
    config.validate().map(Arc::new).map_err(|error| OpenError::Raft(error.to_string()))
}

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
        let options = keelson_store::Options { inline: Scope::is_simulated(), ..Default::default() };
        let (store, log, machine) = crate::task::blocking(move || {
            let store = Arc::new(StateMachine::open(&dir.join("state"), options)?);
            let log = match files {
                Some(files) => Log::open_in(files),
                None => Log::open(&dir.join("log")),
            };
            let log = log.map_err(OpenError::Log)?;
            let machine = Machine::new(store.clone(), &dir.join("snapshots")).map_err(OpenError::Log)?;
            Ok::<_, OpenError>((store, log, machine))
        })
        .await
        .map_err(|error| OpenError::Raft(error.to_string()))??;
        let sync_times = log.sync_times();
        let (incoming, applied) = (machine.incoming(), machine.applied());
        let due = machine.snapshot_due(tuning.snapshot_commands);
        let network = Network::new(tls.clone()).over(wire);
        let raft = Raft::new(id, config(&tuning)?, network.clone(), log, machine)
            .await
            .map_err(|error| OpenError::Raft(error.to_string()))?;
        let stop = CancellationToken::new();
        let inner = Arc::new(Inner {
            cluster_id,
            id,
            home: home.clone(),
            version,
            metrics: raft.metrics(),
            raft,
            store,
            incoming,
            network,
            leases: LeaseClock::new(clock),
            checkpointing: tokio::sync::Mutex::default(),
            applied,
            leading: watch::Sender::new(false),
            barrier: Barrier::default(),
            proposed_bytes: AtomicUsize::new(0),
            proposed: AtomicUsize::new(0),
            stop: stop.clone(),
            tuning,
            suspicion: Suspicion::default(),
            handler: OnceLock::new(),
            sync_times,
            proposer: Proposer::default(),
        });
        for (listener, secure) in listeners {
            let tls = tls.clone().filter(|_| secure);
            crate::task::spawn(crate::service::serve(inner.clone(), listener, tls, stop.clone()));
        }
        crate::task::spawn(crate::compare::run(inner.clone()));
        crate::task::spawn(crate::heal::remember(inner.clone(), home));
        crate::task::spawn(lead(inner.clone()));
        crate::task::spawn(snapshots(inner.clone(), due));
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
        let metrics = self.0.raft.metrics();
        let stop = self.0.stop.clone();
        let (store, home) = (self.0.store.clone(), self.0.home.clone());
        async move {
            loop {
                let damage = store.failure().filter(|_| !stop.is_cancelled());
                if let Some(damage) = &damage
                    && matches!(damage, keelson_store::Fatal::Corrupt(_))
                {
                    crate::heal::pronounce_or_tell(&home, &damage.to_string());
                }
                let state = metrics.borrow_watched().running_state.clone();
                match (state, damage) {
                    (Err(fatal), _) if !stop.is_cancelled() => return fatal.to_string(),
                    // Raft notices only when it has something to apply; until then nobody must read from here.
                    (Ok(()), Some(damage)) => return damage.to_string(),
                    (Err(_), _) => std::future::pending::<()>().await,
                    // Looked at now and then: the metrics change with every write.
                    (Ok(()), None) => tokio::time::sleep(Duration::from_millis(FAILURE_LOOK_MILLIS)).await,
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
    pub(crate) fn members(&self) -> Vec<(u64, Node, bool)> {
        let metrics = self.raft.metrics();
        let membership = metrics.borrow_watched().membership_config.clone();
        let voters: std::collections::BTreeSet<u64> = membership.voter_ids().collect();
        membership.nodes().map(|(id, member)| (*id, member.clone(), voters.contains(id))).collect()
    }

    pub(crate) async fn answer_other(&self, question: Vec<u8>) -> Result<Vec<u8>, String> {
        match self.handler.get() {
            Some(handler) => handler(question).await,
            None => Err("this member does not answer such questions yet".into()),
        }
    }

    pub(crate) fn leader(&self) -> Option<u64> {
        self.metrics.borrow_watched().current_leader
    }

    /// Whether entries go to other members.
    pub(crate) fn is_replicated(&self) -> bool {
        self.metrics.borrow_watched().membership_config.nodes().nth(1).is_some()
    }

    pub(crate) fn term(&self) -> u64 {
        self.metrics.borrow_watched().current_term
    }

    pub(crate) fn is_leading(&self) -> bool {
        *self.leading.borrow()
    }

    pub(crate) fn stopping(&self) -> &CancellationToken {
        &self.stop
    }

    pub(crate) fn peer_status(&self) -> PeerStatus {
        let metrics = self.raft.metrics();
        let (leader, term) = {
            let metrics = metrics.borrow_watched();
            (metrics.current_leader, metrics.current_term)
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
        let mut applied = self.applied.clone();
        let reached = applied.wait_for(|applied| *applied >= index);
        let limit = Duration::from_millis(PEER_REQUEST_MILLIS);
        match tokio::time::timeout(limit, reached).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(KvError::Stopped("the state machine has stopped".into())),
            Err(_) => Err(KvError::Unavailable(format!("this member did not apply entry {index} within {limit:?}"))),
        }
    }

    /// An index that a linearizable read must have applied, as the leader.
    pub(crate) async fn read_index_here(&self) -> Result<u64, Refusal> {
        match self.raft.get_read_log_id(ReadPolicy::ReadIndex).await {
            Ok((read, _)) => Ok(read.index()),
            Err(error) => Err(read_refused(error)),
        }
    }

    /// Whether a majority has heard of this leader within its lease.
    async fn lease_here(&self) -> Result<(), Refusal> {
        self.raft.get_read_log_id(ReadPolicy::LeaseRead).await.map(|_| ()).map_err(read_refused)
    }

    pub(crate) async fn keep_alive_here(&self, id: LeaseId) -> Result<i64, Refusal> {
        self.lease_here().await?;
        let renewed = self.leases.renew(&self.store.view(), id).map_err(Refusal::Failed)?;
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

    pub(crate) async fn ask_member(&self, id: u64, question: &Ask) -> Result<Answer, KvError> {
        let Some((_, member, _)) = self.members().into_iter().find(|(found, ..)| *found == id) else {
            return Err(KvError::Unavailable(format!("there is no member {id:x}")));
        };
        let asked = self.network.ask(id, &member.peer_address, question, Bytes::new()).await;
        asked.map_err(|error| KvError::Unavailable(format!("member {}: {error}", member.name)))
    }

    /// Who belongs to the cluster.
    pub(crate) fn roll(&self) -> Roll {
        let applied_index = self.store.view().applied_index();
        Roll { cluster_id: self.cluster_id, applied_index, members: self.members() }
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
        let address = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            metrics.membership_config.nodes().find(|(id, _)| **id == leader).map(|(_, node)| node.peer_address.clone())
        };
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

    /// Replicates a command, wherever the leader is.
    pub(crate) async fn propose(self: &Arc<Self>, command: Command) -> Result<Applied, KvError> {
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

fn read_refused(error: RaftError<TypeConfig, LinearizableReadError<TypeConfig>>) -> Refusal {
    match error {
        RaftError::APIError(LinearizableReadError::ForwardToLeader(to)) => Refusal::NotLeader(to.leader_id),
        RaftError::APIError(error) => Refusal::Failed(KvError::Unavailable(error.to_string())),
        RaftError::Fatal(fatal) => Refusal::Failed(KvError::Stopped(fatal.to_string())),
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

/// How long a request waits for a leader.
struct Patience<'a> {
    inner: &'a Inner,
    deadline: Instant,
}

impl<'a> Patience<'a> {
    fn new(inner: &'a Inner) -> Self {
        Self { inner, deadline: Instant::now() + Duration::from_millis(LEADER_WAIT_MILLIS) }
    }

    /// Who leads; waits while nobody does.
    async fn leader(&mut self) -> Result<u64, KvError> {
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
    async fn wait(&mut self, why: String) -> Result<(), KvError> {
        if Instant::now() >= self.deadline {
            return Err(KvError::Unavailable(why));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        Ok(())
    }
}

/// Takes a snapshot whenever one is due.
async fn snapshots(inner: Arc<Inner>, due: Arc<tokio::sync::Notify>) {
    loop {
        tokio::select! {
            () = inner.stop.cancelled() => return,
            () = due.notified() => {}
        }
        if let Err(error) = inner.raft.trigger().snapshot().await {
            tracing::warn!(%error, "no snapshot can be taken");
            return;
        }
    }
}

/// Follows whether this member leads; while it does, keeps the time of leases.
async fn lead(inner: Arc<Inner>) {
    // Not all metrics: those change with every write.
    let mut metrics = inner.raft.server_metrics();
    let mut tick = tokio::time::interval(Duration::from_millis(LEASE_TICK_MILLIS));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut leading = false;
    loop {
        let elected = {
            let metrics = metrics.borrow_and_update();
            metrics.state == ServerState::Leader
        };
        if elected && !leading {
            // Leases may have been renewed with the former leader: they run only once all it wrote is here.
            if inner.raft.ensure_linearizable(ReadPolicy::ReadIndex).await.is_ok() {
                inner.leases.lead(&inner.store.view(), inner.tuning.election_max_millis);
                leading = true;
                inner.leading.send_replace(true);
                tracing::info!(member = format!("{:x}", inner.id), "this member leads");
            }
        } else if !elected && leading {
            inner.leases.resign();
            leading = false;
            inner.leading.send_replace(false);
            tracing::info!(member = format!("{:x}", inner.id), "this member no longer leads");
        }
        tokio::select! {
            () = inner.stop.cancelled() => break,
            changed = metrics.changed() => if changed.is_err() { break },
            _ = tick.tick() => if leading { expire(&inner).await },
        }
    }
    inner.leases.resign();
    inner.leading.send_replace(false);
}

/// Revokes expired leases and records the remaining time of long ones.
async fn expire(inner: &Inner) {
    let _order = inner.checkpointing.lock().await;
    let due = inner.leases.tick(&inner.store.view());
    if due.expired.is_empty() && due.checkpoints.is_empty() {
        return;
    }
    if inner.lease_here().await.is_err() {
        return;
    }
    let mut commands: Vec<_> = due.expired.into_iter().map(|id| Command::LeaseRevoke { id }).collect();
    if !due.checkpoints.is_empty() {
        commands.push(Command::LeaseCheckpoint(due.checkpoints));
    }
    let parts = commands.into_iter().filter_map(|command| Part::new(command).ok());
    for written in futures::future::join_all(parts.map(|part| inner.write_here(part.into()))).await {
        // The next ticks try again.
        if let Err(error) = written {
            tracing::debug!(%error, "an expired lease is still there");
        }
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
                let Answer::ReadIndex(index) = inner.ask_leader(Ask::ReadIndex, Bytes::new()).await? else {
                    return Err(odd_answer());
                };
                inner.wait_applied(index.map_err(unavailable)?).await
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
