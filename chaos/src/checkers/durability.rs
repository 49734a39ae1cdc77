//! What was acknowledged is still there at the end, on every member, and all members have the same history.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Fault, Verdict};

/// A write that was acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledged {
    /// The key.
    pub key: String,
    /// What was written; `None` is a deletion.
    pub value: Option<String>,
    /// The revision in the answer.
    pub revision: i64,
}

/// What one member has at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// The revision of what follows.
    pub revision: i64,
    /// Every key with its value and the revision of its last write.
    pub keys: BTreeMap<String, (String, i64)>,
    /// The hash over all history since the compaction, up to `revision`, with the revision of that compaction.
    pub hash: Option<(u32, i64)>,
}

/// Checks that every member has what was acknowledged, or something newer, and that equal revisions have equal content.
/// `deletions` has each key's last deletion that the log of all changes shows: it may not have been acknowledged.
pub fn check(acknowledged: &[Acknowledged], members: &[Member], deletions: &BTreeMap<String, i64>) -> Verdict {
    let mut latest: BTreeMap<&str, &Acknowledged> = BTreeMap::new();
    for write in acknowledged {
        let known = latest.entry(&write.key).or_insert(write);
        if write.revision >= known.revision {
            *known = write;
        }
    }
    let mut faults = Vec::new();
    for member in members {
        let highest = acknowledged.iter().map(|write| write.revision).max().unwrap_or(0);
        if member.revision < highest {
            let what = format!("{} is at revision {}, {highest} was acknowledged", member.name, member.revision);
            faults.push(Fault::new("revision-lost", what));
        }
        for write in latest.values() {
            let found = member.keys.get(&write.key);
            let at = found.map_or(0, |(_, revision)| *revision);
            let lost = match (&write.value, found) {
                (Some(_), None) => deletions.get(&write.key).is_none_or(|deleted| *deleted < write.revision),
                (Some(value), Some((there, _))) => at < write.revision || (at == write.revision && value != there),
                (None, Some(_)) => at < write.revision,
                (None, None) => false,
            };
            if lost {
                faults.push(Fault::new("lost", format!("{} has {found:?} instead of {write:?}", member.name)));
            }
        }
    }
    faults.extend(apart(members));
    Verdict::of(faults)
}

fn apart(members: &[Member]) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (i, one) in members.iter().enumerate() {
        for other in members[i + 1..].iter().filter(|other| other.revision == one.revision) {
            let names = format!("{} and {} at revision {}", one.name, other.name, one.revision);
            if one.keys != other.keys {
                let keys: BTreeSet<&String> = one.keys.keys().chain(other.keys.keys()).collect();
                let differs = keys.into_iter().find(|key| one.keys.get(*key) != other.keys.get(*key));
                faults.push(Fault::new("members-differ", format!("{names} have different {differs:?}")));
            } else if let (Some(a), Some(b)) = (one.hash, other.hash)
                && a.1 == b.1
                && a.0 != b.0
            {
                faults.push(Fault::new("hashes-differ", format!("{names}: {:08x} and {:08x}", a.0, b.0)));
            }
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, revision: i64, keys: &[(&str, &str, i64)], hash: u32) -> Member {
        let keys = keys.iter().map(|(key, value, at)| (key.to_string(), (value.to_string(), *at))).collect();
        Member { name: name.into(), revision, keys, hash: Some((hash, 1)) }
    }

    #[test]
    fn ends() {
        let write =
            |value: Option<&str>, revision| Acknowledged { key: "a".into(), value: value.map(str::to_owned), revision };
        let wrote = vec![write(Some("x"), 2), write(Some("y"), 3)];
        for (name, acknowledged, members, kinds) in [
            ("there", wrote.clone(), vec![member("1", 3, &[("a", "y", 3)], 7)], vec![]),
            ("newer, of an unknown outcome", wrote.clone(), vec![member("1", 5, &[("a", "z", 5)], 7)], vec![]),
            ("older", wrote.clone(), vec![member("1", 3, &[("a", "x", 2)], 7)], vec!["lost"]),
            ("gone", wrote.clone(), vec![member("1", 3, &[], 7)], vec!["lost"]),
            ("another value", wrote.clone(), vec![member("1", 3, &[("a", "q", 3)], 7)], vec!["lost"]),
            ("behind", wrote.clone(), vec![member("1", 2, &[("a", "x", 2)], 7)], vec!["revision-lost", "lost"]),
            ("deleted", vec![write(None, 4)], vec![member("1", 4, &[], 7)], vec![]),
            ("deletion lost", vec![write(None, 4)], vec![member("1", 4, &[("a", "y", 3)], 7)], vec!["lost"]),
            (
                "same",
                wrote.clone(),
                vec![member("1", 3, &[("a", "y", 3)], 7), member("2", 3, &[("a", "y", 3)], 7)],
                vec![],
            ),
            (
                "different",
                wrote.clone(),
                vec![member("1", 5, &[("a", "z", 5)], 7), member("2", 5, &[("a", "y", 4)], 7)],
                vec!["members-differ"],
            ),
            (
                "history",
                wrote.clone(),
                vec![member("1", 3, &[("a", "y", 3)], 7), member("2", 3, &[("a", "y", 3)], 8)],
                vec!["hashes-differ"],
            ),
        ] {
            let verdict = check(&acknowledged, &members, &BTreeMap::new());
            assert_eq!(verdict.kinds(), kinds, "{name}: {verdict:?}");
        }
        let gone = [member("1", 5, &[], 7)];
        for (name, deleted, kinds) in
            [("a later deletion without an answer", 4, vec![]), ("an earlier one", 2, vec!["lost"])]
        {
            let verdict = check(&wrote, &gone, &BTreeMap::from([("a".into(), deleted)]));
            assert_eq!(verdict.kinds(), kinds, "{name}: {verdict:?}");
        }
    }
}
