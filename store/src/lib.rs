//! The MVCC state machine on RocksDB, its current state in memory, watches, leases, and the [`Kv`] trait with
//! its single-member implementation [`LocalKv`].
//!
//! Invariants: state changes only by applying [`Command`]s in order, and depends on nothing else (no clock, no
//! randomness); a revision is published to views before its events reach watchers; history below the compact
//! revision is never answered, history at or above it always can be.

pub mod bugs;
mod compact;
#[cfg(feature = "contract")]
pub mod contract;
mod counts;
#[cfg(test)]
mod crash_tests;
#[cfg(feature = "damage")]
pub mod damage;
mod disk;
mod error;
mod generation;
mod hub;
mod import;
pub mod kv;
mod lease;
pub mod limits;
mod local;
mod machine;
mod record;
mod snapshot;
mod steps;
#[cfg(test)]
mod tests;
mod tree;
mod txn;
mod view;
pub mod wake;

pub use counts::Counts;
pub use error::Fatal;
pub use import::{Import, Imported};
pub use kv::*;
pub use lease::{Clock, Due, LeaseClock, MonotonicClock, Renewed};
pub use local::{LocalKv, choose_lease_id};
pub use machine::{Entry, Options, StateMachine};
pub use record::ChainHash;
pub use snapshot::{CheckpointInfo, inspect_checkpoint};
pub use txn::{check, only_reads};
pub use view::{Lease, View};
