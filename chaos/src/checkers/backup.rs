//! Backups: each holds exactly what was committed at its revision, and a store that is made from it holds the same.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Fault, Verdict};
use crate::history::Outcome;

/// A transaction that gives both keys of a pair the same value, which no other one does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Write {
    /// The pair.
    pub pair: u64,
    /// The value.
    pub value: u64,
    /// When it was sent, nanoseconds since the run began.
    pub start: u64,
    /// Its revision.
    pub outcome: Outcome<i64>,
}

/// A value and the revision at which it was written.
pub type Found = (u64, i64);

/// What a store held that was made from a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    /// When the backup was there, nanoseconds since the run began.
    pub end: u64,
    /// Its revision.
    pub revision: i64,
    /// Both keys of each pair.
    pub found: BTreeMap<u64, [Option<Found>; 2]>,
}

/// Checks backups against the writes of a run.
pub fn check(writes: &[Write], backups: &[Backup]) -> Verdict {
    let by_value: BTreeMap<u64, &Write> = writes.iter().map(|write| (write.value, write)).collect();
    let mut pairs: BTreeMap<u64, Vec<i64>> = BTreeMap::new();
    for write in writes {
        let revisions = pairs.entry(write.pair).or_default();
        revisions.extend(write.outcome.ok());
    }
    let mut faults = Vec::new();
    for backup in backups {
        for (pair, revisions) in &pairs {
            let newest = revisions.iter().copied().filter(|revision| *revision <= backup.revision).max();
            let found = backup.found.get(pair).copied().unwrap_or_default();
            if let Some((kind, what)) = wrong(backup, found, newest, &by_value) {
                faults.push(Fault::new(kind, format!("pair {pair} in a backup at {}: {what}", backup.revision)));
            }
        }
    }
    Verdict::of(faults)
}

fn wrong(
    backup: &Backup,
    [one, other]: [Option<Found>; 2],
    newest: Option<i64>,
    writes: &BTreeMap<u64, &Write>,
) -> Option<(&'static str, String)> {
    if one != other {
        return Some(("torn-backup", format!("its keys hold {one:?} and {other:?}")));
    }
    let Some((value, revision)) = one else {
        return newest.map(|newest| ("lost-from-backup", format!("what was written at {newest} is not there")));
    };
    let Some(write) = writes.get(&value) else {
        return Some(("invented-in-backup", format!("{value} was never written")));
    };
    if write.start > backup.end || revision > backup.revision {
        return Some(("backup-of-the-future", format!("{value}, of {revision}, was written later")));
    }
    match write.outcome {
        Outcome::Failed => Some(("undone-in-backup", format!("{value} was refused"))),
        Outcome::Ok(told) if told != revision => {
            Some(("moved-in-backup", format!("{value} was written at {told}, not at {revision}")))
        }
        _ => newest.filter(|newest| *newest > revision).map(|newest| {
            ("lost-from-backup", format!("{value} is from {revision}, but there was a write at {newest}"))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backups() {
        let write = |value, start, outcome| Write { pair: 1, value, start, outcome };
        let writes = [
            write(10, 0, Outcome::Ok(5)),
            write(11, 20, Outcome::Ok(7)),
            write(12, 40, Outcome::Unknown),
            write(13, 60, Outcome::Failed),
            write(14, 80, Outcome::Ok(30)),
        ];
        let both = |found| [Some(found), Some(found)];
        for (name, revision, found, kinds) in [
            ("nothing yet", 4, [None, None], vec![]),
            ("the first", 5, both((10, 5)), vec![]),
            ("the newest", 8, both((11, 7)), vec![]),
            ("one whose answer was lost", 9, both((12, 9)), vec![]),
            ("none", 5, [None, None], vec!["lost-from-backup"]),
            ("an old one", 8, both((10, 5)), vec!["lost-from-backup"]),
            ("half of one", 8, [Some((11, 7)), Some((10, 5))], vec!["torn-backup"]),
            ("half of the first", 5, [Some((10, 5)), None], vec!["torn-backup"]),
            ("one that nobody wrote", 8, both((99, 8)), vec!["invented-in-backup"]),
            ("one that was refused", 12, both((13, 12)), vec!["undone-in-backup"]),
            ("one of another revision", 8, both((11, 6)), vec!["moved-in-backup"]),
            ("one of a later revision", 8, both((11, 9)), vec!["backup-of-the-future"]),
            ("one that was sent later", 30, both((14, 30)), vec!["backup-of-the-future"]),
        ] {
            let backup = Backup { end: 70, revision, found: BTreeMap::from([(1, found)]) };
            assert_eq!(check(&writes, &[backup]).kinds(), kinds, "{name}");
        }
    }
}
