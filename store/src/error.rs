//! Errors after which this member must stop.

use crate::KvError;

/// An error that must stop the member: the state on disk is not what it should be, and trying again could lose
/// acknowledged writes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fatal {
    /// The disk refused a read, a write or a sync.
    #[error("store: input/output error: {0}")]
    Io(String),
    /// What was read is not what was written.
    #[error("store: corruption: {0}")]
    Corrupt(String),
}

impl From<Fatal> for KvError {
    fn from(fatal: Fatal) -> Self {
        Self::Stopped(fatal.to_string())
    }
}
