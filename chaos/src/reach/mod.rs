//! How the harness reaches members: what it asks them beside what clients do.

#[cfg(feature = "api")]
mod server;
mod store;

use anyhow::Result;
use async_trait::async_trait;

use crate::nemesis::Ask;

#[cfg(feature = "api")]
pub use server::Servers;
pub use store::Stores;

/// The members of what is tested.
#[async_trait]
pub trait Reach: Send + Sync {
    /// The member that says it leads, in the highest term in which one says so.
    async fn leader(&self) -> Option<usize>;

    /// Which members the cluster counts as its own, as its leader says.
    async fn listed(&self) -> Option<Vec<bool>>;

    /// The ids of all members, if all answer and vote.
    async fn whole(&self) -> Option<Vec<u64>>;

    /// Has a member do something.
    async fn ask(&self, ask: Ask) -> Result<()>;

    /// Has a member take a write.
    async fn serves(&self, member: usize) -> Result<()>;
}
