//! The node agent: registers a node, keeps its lease and runs its pods; also hollow nodes for tests and trials.
//!
//! Invariant: all that an agent knows can be had again from the API and the container runtime, so it may die any time.

pub mod hollow;
mod hollow_status;
pub mod join;
pub mod node;
