//! The chaos harness: workloads that note what they did and saw, faults from a seed, and checkers that judge the history.

pub mod checkers;
pub mod history;
