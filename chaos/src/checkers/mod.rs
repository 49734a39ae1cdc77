//! Judges of histories. They are pure: the same history gives the same verdict, whichever world it came from.
//!
//! Invariant: a checker that finds a fault is right about it. Where it cannot know (an outcome that no client saw, a
//! search that takes too long) it says [`Verdict::Undecided`] or lets the history pass.

pub mod append;
pub mod backup;
pub mod bank;
#[cfg(feature = "api")]
pub mod cluster;
pub mod compaction;
pub mod durability;
pub mod lease;
pub mod linear;
pub mod register;
pub mod set;
pub mod watch;

use serde::{Deserialize, Serialize};

/// What a checker says of a history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "verdict")]
pub enum Verdict {
    /// Nothing is wrong with it.
    Valid,
    /// The search was given up; nothing wrong was found until then.
    Undecided {
        /// Where it was given up.
        about: String,
    },
    /// It cannot have come from a correct system.
    Invalid {
        /// Each fault, in words, with the operations that show it.
        faults: Vec<Fault>,
    },
}

/// Something that a correct system does not do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// What kind of fault: `lost`, `stale-read`, `cycle`, ...
    pub kind: String,
    /// What happened, in words.
    pub what: String,
    /// The shortest part of the history that shows it, a line each.
    pub history: Vec<String>,
}

impl Fault {
    /// A fault without a history of its own.
    pub fn new(kind: &str, what: String) -> Self {
        Self { kind: kind.into(), what, history: Vec::new() }
    }
}

/// Faults that a verdict keeps; the first ones tell most.
pub const MAX_FAULTS: usize = 20;

impl Verdict {
    /// Valid if there are no faults.
    pub fn of(mut faults: Vec<Fault>) -> Self {
        faults.truncate(MAX_FAULTS);
        if faults.is_empty() { Verdict::Valid } else { Verdict::Invalid { faults } }
    }

    /// Both verdicts as one: any fault counts, then any doubt.
    pub fn and(self, other: Verdict) -> Self {
        match (self, other) {
            (Verdict::Invalid { mut faults }, Verdict::Invalid { faults: more }) => {
                faults.extend(more);
                Verdict::of(faults)
            }
            (invalid @ Verdict::Invalid { .. }, _) | (_, invalid @ Verdict::Invalid { .. }) => invalid,
            (undecided @ Verdict::Undecided { .. }, _) | (_, undecided @ Verdict::Undecided { .. }) => undecided,
            _ => Verdict::Valid,
        }
    }

    /// Whether something is wrong.
    pub fn is_invalid(&self) -> bool {
        matches!(self, Verdict::Invalid { .. })
    }

    /// The kinds of its faults, in order.
    pub fn kinds(&self) -> Vec<&str> {
        match self {
            Verdict::Invalid { faults } => faults.iter().map(|fault| fault.kind.as_str()).collect(),
            _ => Vec::new(),
        }
    }
}
