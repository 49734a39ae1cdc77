//! A replicated [`keelson_store::Kv`]: openraft over a write-ahead log, the peers' network and the store's state machine;
//! the [`Cluster`] that a store belongs to; the etcd v3 API in front of both.
//!
//! Invariants: a write is acknowledged when a majority has it on disk and this member has applied it; a barrier
//! confirms leadership with a majority; time of leases is kept by the leader only.

mod barrier;
pub mod cluster;
mod codec;
mod compare;
pub mod etcd;
mod figures;
pub mod heal;
mod inline;
mod kv;
mod leader;
pub mod limits;
mod log;
mod machine;
mod membership;
mod message;
mod network;
mod offline;
mod peer_tls;
mod propose;
mod read_index;
mod replica;
mod roll;
mod service;
mod setup;
mod suspicion;
mod sync_times;
pub mod task;
mod tend;
mod transfer;
mod types;
mod wal;
pub mod wire;

pub use cluster::{Cluster, ClusterError, Member, SingleMember};
pub use message::{Change, PeerStatus, Roll};
pub use network::PEER_NAME;
pub use offline::{force_new_cluster, seed};
pub use peer_tls::PeerTls;
pub use replica::{Handler, Replica};
pub use roll::ask_roll;
pub use setup::{OpenError, Options, Setup, Tuning};
pub use sync_times::SyncSummary;
pub use types::Node;
pub use wal::files::{Directory, Files, LogFile};
