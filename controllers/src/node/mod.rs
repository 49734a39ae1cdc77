//! Nodes: their ranges of pod addresses, their health, and the eviction of pods by taints.

pub mod eviction;
pub mod fit;
pub mod health;
pub mod lifecycle;
pub mod ranges;
mod signs;
pub mod ttl;
pub mod zones;
