//! Members compare the hashes of their histories all the time. One whose history is not that of the others stops
//! serving: it says so, raises an alarm and ends, before anybody reads more from it; at its next start it begins anew
//! ([`crate::heal`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use keelson_store::{ChainHash, Command, KvError, Revision, SettingsChange};

use crate::limits::{COMPARE_AGAIN_MILLIS, COMPARE_MILLIS};
use crate::message::{Answer, Ask};
use crate::replica::Inner;

/// What comparing found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// More than half have this history, and nobody differs.
    Same,
    /// Nobody differs, but too few have answered.
    Unknown,
    /// Somebody else differs.
    OthersDiffer,
    /// This member differs from the others.
    Diverged,
}

/// Judges the hashes that others have at one revision. Of `all` members more than half must agree; who has not answered may
/// agree with anybody, so that two of three that differ wait for the third. Where all have answered and there is no
/// majority the leader is believed.
fn judge(own: &ChainHash, others: &BTreeMap<u64, ChainHash>, leader: u64, all: usize) -> Verdict {
    if others.values().all(|hash| hash == own) {
        return if (others.len() + 1) * 2 > all { Verdict::Same } else { Verdict::Unknown };
    }
    let mut counts: BTreeMap<&ChainHash, usize> = BTreeMap::from([(own, 1)]);
    for hash in others.values() {
        *counts.entry(hash).or_default() += 1;
    }
    let all = all.max(others.len() + 1);
    let majority = counts.iter().find(|(_, count)| **count * 2 > all).map(|(hash, _)| **hash);
    let complete = others.len() + 1 == all;
    let right = majority.or_else(|| others.get(&leader).copied().filter(|_| complete));
    match right {
        Some(right) if right != *own => Verdict::Diverged,
        _ => Verdict::OthersDiffer,
    }
}

/// Compares until the member stops: again soon while it is not known that a majority has this history. What a member finds on
/// its disk at its start may be wrong, and it should not lead with that, or give it to others, for long.
pub async fn run(inner: Arc<Inner>) {
    let mut last = Verdict::Unknown;
    loop {
        let pause = if last == Verdict::Same { COMPARE_MILLIS } else { COMPARE_AGAIN_MILLIS };
        tokio::select! {
            () = inner.stopping().cancelled() => return,
            () = tokio::time::sleep(Duration::from_millis(pause)) => {}
        }
        let (revision, verdict) = compare(&inner).await;
        match verdict {
            Verdict::OthersDiffer if last != verdict => {
                tracing::error!(revision, "a member has another history than this one: it will stop");
            }
            Verdict::Same | Verdict::Unknown | Verdict::OthersDiffer => {}
            Verdict::Diverged => return condemn(&inner, revision).await,
        }
        last = verdict;
    }
}

/// Compares once, at the last revision that all who answer have reached.
async fn compare(inner: &Inner) -> (Revision, Verdict) {
    let mut revision = inner.store.view().revision();
    let mut answering = Vec::new();
    let members = inner.members();
    let all = members.len();
    for (id, ..) in members.into_iter().filter(|(id, ..)| *id != inner.id) {
        if let Ok(Answer::Status(status)) = inner.ask_member(id, &Ask::Status).await {
            revision = revision.min(status.revision);
            answering.push(id);
        }
    }
    // Compacted here: the next round looks at a later one.
    let Ok(own) = inner.store.hash_at(revision) else { return (revision, Verdict::Unknown) };
    let mut others = BTreeMap::new();
    for id in answering {
        if let Ok(Answer::Hash(Ok(hash))) = inner.ask_member(id, &Ask::Hash(revision)).await {
            others.insert(id, hash);
        }
    }
    let leader = inner.leader().unwrap_or(0);
    (revision, judge(&own, &others, leader, all))
}

/// Raises the alarm, and stops this member.
async fn condemn(inner: &Arc<Inner>, revision: Revision) {
    let name = crate::etcd::alarm::corrupt_name(inner.id);
    let change = SettingsChange { guards: Vec::new(), writes: vec![(name, Some(Default::default()))] };
    if let Err(error) = inner.propose(Command::Settings(change)).await {
        let told: KvError = error;
        tracing::warn!(error = %told, "the alarm could not be raised");
    }
    let why = format!("this member's history differs from the other members' at revision {revision}");
    crate::heal::pronounce_or_tell(&inner.home, &why);
    inner.store.condemn(&format!("{why}: it begins anew at its next start, or is to be replaced"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_minority_is_wrong_and_the_leader_is_believed_in_a_tie() {
        let hash = |byte: u8| [byte; 32];
        for (own, others, leader, all, want) in [
            (1, &[(2, 1), (3, 1)][..], 2, 3, Verdict::Same),
            (1, &[(2, 2), (3, 2)], 1, 3, Verdict::Diverged),
            (1, &[(2, 1), (3, 2)], 3, 3, Verdict::OthersDiffer),
            (1, &[(2, 2)], 2, 2, Verdict::Diverged),
            (1, &[(2, 2)], 1, 2, Verdict::OthersDiffer),
            // The third has not answered: it may be that the leader is wrong.
            (1, &[(2, 2)], 2, 3, Verdict::OthersDiffer),
            (1, &[(2, 2), (3, 2)], 2, 5, Verdict::OthersDiffer),
            (1, &[(2, 2), (3, 2), (4, 2)], 1, 5, Verdict::Diverged),
            (1, &[(2, 2), (3, 3)], 2, 3, Verdict::Diverged),
            (1, &[(2, 2), (3, 3)], 9, 3, Verdict::OthersDiffer),
            (1, &[], 2, 3, Verdict::Unknown),
            (1, &[(2, 1)], 2, 3, Verdict::Same),
            (1, &[(2, 1)], 2, 5, Verdict::Unknown),
            (1, &[], 1, 1, Verdict::Same),
        ] {
            let others = others.iter().map(|(id, byte)| (*id, hash(*byte))).collect();
            assert_eq!(judge(&hash(own), &others, leader, all), want, "{own} {others:?} {leader} {all}");
        }
    }
}
