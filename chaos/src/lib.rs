//! The chaos harness: workloads that note what they did and saw, faults from a seed, and checkers that judge the history.
//!
//! Invariant: the faults and what clients attempt follow from the seed alone; times do not, since the world is real.

#[cfg(feature = "api")]
mod bring_up;
pub mod checkers;
pub mod context;
pub mod etcd;
pub mod history;
#[cfg(feature = "api")]
pub mod kube;
pub mod nemesis;
mod plot;
mod reach;
pub mod report;
mod run;
mod selftest;
mod simulated;
pub mod system;
pub mod workloads;

pub use run::{ChaosArgs, list, run};
pub use selftest::self_test;
pub use simulated::{World, hand_over};
