//! The replicated `Kv` over openraft, the [`Cluster`] it belongs to, and the etcd v3 API in front of both.

pub mod cluster;
pub mod etcd;

pub use cluster::{Cluster, ClusterError, Member, SingleMember};
