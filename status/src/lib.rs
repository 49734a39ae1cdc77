//! How a cluster is: one report, what it means and what to do, and the ways in which people look at it (text, a terminal
//! page, a page for browsers).
//!
//! Invariants: nothing here asks anybody for anything; what is shown is in the report, and findings follow from it alone.

pub mod judge;
pub mod model;
pub mod page;
pub mod plain;
pub mod terminal;
pub mod words;

pub use judge::judge;
pub use model::*;
