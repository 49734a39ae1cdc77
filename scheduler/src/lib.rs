//! The scheduler: gives each pod that has none a node, as upstream's scheduler framework would.
//!
//! [`core::Core`] is the scheduler without its surroundings: changes in, decisions out, no clock, no chance. [`run`] connects
//! it to an API server. Within a cycle ([`cycle`]) the cluster ([`view`]) stands still; it is kept up to date change by change
//! with counters, so that a cycle's cost does not grow with the number of pods.
//!
//! Invariants: a placement counts from the moment it is decided, before it is written; a pod is bound only by its uid and only
//! while the leader's lease holds; what is not understood in a configuration is refused.

pub mod act;
pub mod awaited;
pub mod class;
pub mod classes;
pub mod config;
pub mod core;
pub mod cycle;
pub mod devices;
pub mod events;
pub mod explain;
pub mod extender;
pub mod groups;
pub mod intern;
pub mod matchers;
pub mod metrics;
pub mod owners;
pub mod plugins;
pub mod pod_groups;
mod prepare;
pub mod queue;
pub mod resources;
mod run;
pub mod selector;
pub mod series;
pub mod source;
pub mod topology;
pub mod view;
pub mod volumes;
pub mod wire;
pub mod workloads;

pub use config::Config;
pub use run::run;
