//! The MVCC state machine and the [`Kv`] trait.

pub mod kv;
pub use kv::*;

/// placeholder
#[derive(Clone)]
pub struct View;
