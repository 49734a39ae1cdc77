//! What a replica is opened with, and how Raft is set up for it.

use std::path::PathBuf;
use std::sync::Arc;

use keelson_store::Clock;
use openraft::{Config, SnapshotPolicy};
use rustls::{ClientConfig, ServerConfig};
use tokio::net::TcpListener;

use crate::limits::*;
use crate::network::PEER_NAME;
use crate::peer_tls::PeerTls;

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
/// Raft's configuration.
pub(crate) fn config(tuning: &Tuning) -> Result<Arc<Config>, OpenError> {
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
