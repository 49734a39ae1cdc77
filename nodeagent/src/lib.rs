//! The node agent: registers a node, keeps its lease and runs its pods; also hollow nodes for tests and trials.
//!
//! Invariant: all that an agent knows can be had again from the API and the container runtime, so it may die any time.

pub mod agent;
mod cni;
mod cri;
pub mod hollow;
mod hollow_status;
pub mod join;
mod machine;
pub mod node;
mod pod_config;
mod pod_status;
mod pod_worker;
mod server;

pub use agent::{Agent, AgentConfig, AgentError};
