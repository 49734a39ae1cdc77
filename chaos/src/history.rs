//! What clients did and saw: operations with the times between which they took effect, if they did.

use serde::{Deserialize, Serialize};

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome<T> {
    /// It took effect, and this is what the client was told.
    Ok(T),
    /// It certainly took no effect.
    Failed,
    /// It may have taken effect, or may do so at any later time.
    Unknown,
}

impl<T> Outcome<T> {
    /// What the client was told.
    pub fn ok(&self) -> Option<&T> {
        match self {
            Outcome::Ok(value) => Some(value),
            _ => None,
        }
    }
}

/// One operation of one client. Times are nanoseconds since the run began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation<I, O> {
    /// The client, which does one operation at a time.
    pub process: u32,
    /// When it was sent.
    pub start: u64,
    /// When the answer was there, or the client gave up.
    pub end: u64,
    /// What was asked.
    pub input: I,
    /// What came of it.
    pub outcome: Outcome<O>,
}

impl<I, O> Operation<I, O> {
    /// The time before which it took effect, if it did: without an answer there is no such time.
    pub fn latest(&self) -> u64 {
        if matches!(self.outcome, Outcome::Ok(_)) { self.end } else { u64::MAX }
    }
}
