//! Accounts between which money is moved: every read of all of them, at any revision, shows the same sum, and no account
//! is overdrawn.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Fault, Verdict};
use crate::history::Operation;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// Read all accounts at once.
    Read,
    /// Move an amount from one account to another, if there is enough.
    Move {
        /// From this account.
        from: u64,
        /// To this one.
        to: u64,
        /// How much.
        amount: i64,
    },
}

/// An operation; reads answer with all balances.
pub type Op = Operation<Input, BTreeMap<u64, i64>>;

/// Checks all reads against the sum that the accounts began with.
pub fn check(history: &[Op], sum: i64) -> Verdict {
    let mut faults = Vec::new();
    for operation in history.iter().filter(|operation| operation.input == Input::Read) {
        let Some(balances) = operation.outcome.ok() else { continue };
        let found: i64 = balances.values().sum();
        if found != sum {
            faults.push(Fault::new("wrong-sum", format!("{found} instead of {sum}: {balances:?}")));
        }
        if let Some((account, balance)) = balances.iter().find(|(_, balance)| **balance < 0) {
            faults.push(Fault::new("overdrawn", format!("account {account} has {balance}")));
        }
    }
    Verdict::of(faults)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Outcome;

    #[test]
    fn sums() {
        for (balances, kinds) in [
            (&[(1, 5), (2, 5)][..], vec![]),
            (&[(1, 10), (2, 0)], vec![]),
            (&[(1, 5), (2, 4)], vec!["wrong-sum"]),
            (&[(1, 5)], vec!["wrong-sum"]),
            (&[(1, -1), (2, 11)], vec!["overdrawn"]),
            (&[(1, -1), (2, 12)], vec!["wrong-sum", "overdrawn"]),
        ] {
            let outcome = Outcome::Ok(balances.iter().copied().collect());
            let read = Operation { process: 0, start: 1, end: 2, input: Input::Read, outcome };
            assert_eq!(check(&[read], 10).kinds(), kinds, "{balances:?}");
        }
        let lost = Operation { process: 0, start: 1, end: 2, input: Input::Read, outcome: Outcome::Unknown };
        assert_eq!(check(&[lost], 10), Verdict::Valid);
    }
}
