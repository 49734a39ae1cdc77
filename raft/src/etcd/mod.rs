//! The etcd v3 API over a [`Kv`] and its [`Cluster`]: one file a service.
//!
//! Invariant: what is answered with a revision was visible here at that revision; a linearizable read runs after a
//! barrier.

pub mod alarm;
pub mod auth;
mod authority;
pub mod bolt;
mod calls;
pub mod convert;
pub mod election;
pub mod error;
pub mod health;
pub mod http;
pub mod kv;
pub mod lease;
pub mod limits;
pub mod lock;
pub mod maintenance;
pub mod members;
mod metrics;
pub mod quota;
pub mod reflection;
pub mod restore;
pub mod serve;
pub mod session;
pub mod snapshot;
pub mod tls;
mod unary;
pub mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use keelson_proto::etcd::etcdserverpb as pb;
use keelson_store::{Kv, Revision};

use crate::Cluster;

/// The etcd version whose API this is, told to clients.
pub const API_VERSION: &str = "3.7.0";

/// How the API is served.
#[derive(Clone)]
pub struct Options {
    /// Most operations in one branch of a transaction.
    pub max_txn_ops: usize,
    /// Largest request.
    pub max_request_bytes: usize,
    /// Size from which writes are refused; 0 is no limit.
    pub quota_bytes: u64,
    /// How often an idle watch that asked for it is told of progress.
    pub progress_interval: Duration,
    /// Shortest TTL that is granted.
    pub min_lease_ttl_seconds: i64,
    /// Where snapshots are put together before they are sent.
    pub spool_dir: PathBuf,
    /// How users' tokens are made.
    pub tokens: auth::token::TokenKind,
    /// What a password's hash costs to compute, as a power of two.
    pub bcrypt_cost: u32,
    /// Most requests of one connection at once.
    pub streams_per_connection: u32,
    /// How often a silent client is asked whether it lives (zero for never), and how long its answer may take.
    pub keep_alive: (Duration, Duration),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_txn_ops: limits::MAX_TXN_OPS,
            max_request_bytes: limits::MAX_REQUEST_BYTES,
            quota_bytes: 0,
            progress_interval: limits::PROGRESS_INTERVAL,
            min_lease_ttl_seconds: limits::MIN_LEASE_TTL_SECONDS,
            spool_dir: std::env::temp_dir(),
            tokens: auth::token::TokenKind::default(),
            bcrypt_cost: limits::BCRYPT_COST,
            streams_per_connection: limits::STREAMS_PER_CONNECTION,
            keep_alive: limits::KEEP_ALIVE,
        }
    }
}

/// What all services share.
pub struct Front {
    /// The keys.
    pub kv: Arc<dyn Kv>,
    /// The members.
    pub cluster: Arc<dyn Cluster>,
    /// How to serve.
    pub options: Options,
    progress: watch::ProgressRequests,
    auth: auth::Cache,
    quota: quota::Quota,
    calls: Arc<calls::Calls>,
}

impl Front {
    /// A front of a store. To be called in a runtime, where it follows the size of the data.
    pub fn new(kv: Arc<dyn Kv>, cluster: Arc<dyn Cluster>, options: Options) -> Arc<Self> {
        let progress = watch::ProgressRequests::default();
        let (auth, quota) = (auth::Cache::default(), quota::Quota::default());
        let front = Arc::new(Self { kv, cluster, options, progress, auth, quota, calls: Arc::default() });
        crate::task::spawn(quota::follow(Arc::downgrade(&front)));
        front
    }

    /// The header of an answer at `revision`.
    pub fn header(&self, revision: Revision) -> Option<pb::ResponseHeader> {
        Some(pb::ResponseHeader {
            cluster_id: self.cluster.cluster_id(),
            member_id: self.cluster.member_id(),
            revision,
            raft_term: self.cluster.term(),
        })
    }

    /// The header of an answer at the current revision.
    pub fn header_now(&self) -> Option<pb::ResponseHeader> {
        self.header(self.kv.view().revision())
    }
}
