//! Members compare the hashes of their histories all the time. One whose history is not that of the others stops
//! serving: it says so, raises an alarm and ends, before anybody reads more from it; at its next start it begins anew
//! ([`crate::heal`]). Until a member knows that a majority has its history it gives it to nobody.
//!
//! Invariant: while less than half of the voting members are wrong, and no others are away for longer than
//! [`COMPARE_PATIENCE_MILLIS`], a wrong history is never affirmed, so it is neither sent nor believed.
//! docs/decisions/0012-whose-history-is-right.md has the reasons.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::join_all;
use keelson_store::{ChainHash, Command, KvError, Revision, SettingsChange};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::limits::{
    COMPARE_AGAIN_MILLIS, COMPARE_ANSWER_MILLIS, COMPARE_HEARING_MILLIS, COMPARE_MILLIS, COMPARE_PATIENCE_MILLIS,
};
use crate::message::{Answer, Ask};
use crate::replica::Inner;

/// How long whoever could affirm a history, but is away, is waited for.
const PATIENCE: Duration = Duration::from_millis(COMPARE_PATIENCE_MILLIS);
/// How long a majority is waited for where members differ.
const HEARING: Duration = Duration::from_millis(COMPARE_HEARING_MILLIS);

/// How far a member's history may be relied on.
#[derive(Default)]
pub struct Standing {
    affirmed: AtomicBool,
    trusted: watch::Sender<bool>,
}

impl Standing {
    /// Whether a majority has been found to have what this process found at its start.
    pub fn is_affirmed(&self) -> bool {
        self.affirmed.load(Ordering::SeqCst)
    }

    /// Waits until this member's history may be given to others, and its log may be cut.
    pub async fn trusted(&self) {
        let mut trusted = self.trusted.subscribe();
        // The sender is here.
        let _ = trusted.wait_for(|trusted| *trusted).await;
    }
}

/// What one member has at the revisions that are compared, as far as it has come and has not compacted them.
struct Witness {
    id: u64,
    votes: bool,
    hashes: BTreeMap<Revision, ChainHash>,
}

impl Witness {
    fn has(&self, revision: Revision, hash: &ChainHash) -> bool {
        self.hashes.get(&revision) == Some(hash)
    }
}

/// What the hashes say to one of the members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Finding {
    /// The last revision at which a majority has the history of this member.
    agreed: Option<Revision>,
    /// Where somebody, the last of those that do, begins to have another.
    differs: Option<Revision>,
    /// One at which a majority has another.
    outvoted: Option<Revision>,
}

impl Finding {
    /// Where members differ and no majority has said who is right.
    fn open(&self) -> Option<Revision> {
        self.differs.filter(|differs| self.agreed.is_none_or(|agreed| agreed < *differs))
    }
}

/// Counts who has what. Whoever has not said what it has at a revision may agree with anybody, so a majority is one of all
/// `voters`; and histories that differ at one revision differ at all later ones, whoever lags.
fn count(own: &Witness, others: &[Witness], voters: usize) -> Finding {
    let mut found = Finding::default();
    for (revision, own_hash) in &own.hashes {
        let mut counts: BTreeMap<&ChainHash, usize> = BTreeMap::new();
        for witness in others.iter().chain([own]) {
            if let Some(hash) = witness.hashes.get(revision) {
                *counts.entry(hash).or_default() += usize::from(witness.votes);
            }
        }
        match counts.into_iter().find(|(_, count)| *count * 2 > voters) {
            Some((hash, _)) if hash == own_hash => found.agreed = Some(*revision),
            Some(_) => found.outvoted = Some(*revision),
            None => {}
        }
    }
    // Whoever differs does so from one revision on: it is the first that has to be decided.
    let parts = |other: &Witness| {
        let mut common = own.hashes.iter().filter(|(revision, _)| other.hashes.contains_key(revision));
        common.find(|(revision, hash)| !other.has(**revision, hash)).map(|(revision, _)| *revision)
    };
    found.differs = others.iter().filter_map(parts).max();
    found
}

/// One of those that differ where no majority can be had.
struct Party {
    hash: ChainHash,
    affirmed: bool,
    leads: bool,
}

/// Whose history is believed then: that of members whose own was affirmed since their start. Nobody's where that says nothing,
/// but of two that are all there is the leader's: who goes stops, and loses nothing.
fn believed(parties: &[Party], voters: usize) -> Option<ChainHash> {
    let any = |wanted: fn(&Party) -> bool| parties.iter().any(wanted).then_some(wanted);
    let wanted = any(|party| party.affirmed).or_else(|| any(|party| party.leads).filter(|_| voters == 2))?;
    let mut hashes = parties.iter().filter(|party| wanted(party)).map(|party| party.hash);
    let first = hashes.next()?;
    hashes.all(|hash| hash == first).then_some(first)
}

/// How long a member has to doubt its own history.
struct Doubt {
    /// Agreement shows something only after this revision: what is there was found at the start, or somebody differs there.
    base: Revision,
    /// Until when, if nobody says anything more.
    until: Instant,
    /// Since when members differ without a majority for anybody.
    open: Option<Instant>,
    /// Who differed, when that was last open.
    against: BTreeSet<u64>,
}

impl Doubt {
    fn new(base: Revision, now: Instant) -> Self {
        Self { base, until: now + PATIENCE, open: None, against: BTreeSet::new() }
    }

    /// Takes what was found by a member that is at the revision `latest`; whether that affirms what it has.
    fn weigh(&mut self, found: &Finding, latest: Revision, now: Instant) -> bool {
        if let Some(open) = found.open() {
            (self.base, self.until) = (self.base.max(open), now + PATIENCE);
            self.open.get_or_insert(now);
            return false;
        }
        self.open = None;
        let affirmed = found.agreed.is_some_and(|agreed| agreed > self.base || agreed == latest);
        if affirmed {
            self.until = now;
        }
        affirmed
    }

    /// Ends the doubt if all that differed are wrong, as they say themselves, or are members no more.
    fn settle(&mut self, over: impl Fn(u64) -> bool, now: Instant) {
        if !self.against.is_empty() && self.against.iter().all(|id| over(*id)) {
            self.against.clear();
            self.until = now;
        }
    }

    /// Whether a difference is to be decided without a majority: whoever answers and has come as far has spoken by then.
    fn is_heard(&self, now: Instant) -> bool {
        self.open.is_some_and(|since| now >= since + HEARING)
    }
}

/// Compares until the member stops: again soon while it is not known that a majority has this history.
pub async fn run(inner: Arc<Inner>) {
    let mut doubt = Doubt::new(inner.store.view().revision(), Instant::now());
    let mut differed = false;
    loop {
        let round = Round::hold(&inner).await;
        let found = count(&round.own, &round.others, round.voters);
        let now = Instant::now();
        if let Some(revision) = found.outvoted {
            return condemn(&inner, revision).await;
        }
        let affirmed = doubt.weigh(&found, round.latest, now);
        inner.standing.affirmed.fetch_or(affirmed, Ordering::SeqCst);
        if let Some(revision) = found.open() {
            doubt.against = round.against(revision);
            let right = if doubt.is_heard(now) { round.right(&inner, revision).await } else { None };
            match right {
                Some(right) if !round.own.has(revision, &right) => return condemn(&inner, revision).await,
                Some(_) => doubt.until = now,
                None => {}
            }
        } else if inner.standing.is_affirmed() {
            doubt.settle(|id| is_over(&inner, id), now);
        }
        if let Some(revision) = found.differs.filter(|_| !differed) {
            tracing::error!(
                revision,
                "a member has another history than this one: if neither ends, the wrong one is to be removed"
            );
        }
        differed = found.differs.is_some();
        inner.standing.trusted.send_replace(now >= doubt.until);
        let pause = if affirmed && !differed { COMPARE_MILLIS } else { COMPARE_AGAIN_MILLIS };
        tokio::select! {
            () = inner.stopping().cancelled() => return,
            () = tokio::time::sleep(Duration::from_millis(pause)) => {}
        }
    }
}

/// What members have said once.
struct Round {
    own: Witness,
    /// Those that have answered.
    others: Vec<Witness>,
    /// How many members vote, whether they have answered or not.
    voters: usize,
    /// This member's revision.
    latest: Revision,
}

impl Round {
    /// Compares with each other member at the last revision that both have.
    async fn hold(inner: &Inner) -> Self {
        let view = inner.store.view();
        let latest = view.revision();
        let members = inner.members();
        let voters = members.iter().filter(|(.., votes)| *votes).count();
        let votes = members.iter().any(|(id, _, votes)| *id == inner.id && *votes);
        let others = members.into_iter().filter(|(id, ..)| *id != inner.id);
        let asked = others.map(|(id, _, votes)| async move {
            match ask(inner, id, &Ask::Status).await {
                Some(Answer::Status(status)) => Some((id, votes, status.revision.min(latest))),
                _ => None,
            }
        });
        let answered: Vec<_> = join_all(asked).await.into_iter().flatten().collect();
        let common: BTreeSet<Revision> = answered.iter().map(|(.., common)| *common).chain([latest]).collect();
        let mut own = Witness { id: inner.id, votes, hashes: BTreeMap::from([(latest, view.hash())]) };
        for revision in common.range(..latest) {
            // Compacted here: the next round looks at a later one.
            own.hashes.extend(inner.store.hash_at(*revision).ok().map(|hash| (*revision, hash)));
        }
        let others = join_all(answered.into_iter().map(|(id, votes, last)| {
            let revisions: Vec<Revision> = own.hashes.range(..=last).map(|(revision, _)| *revision).collect();
            async move {
                let hashes = join_all(revisions.into_iter().map(|revision| hash_of(inner, id, revision))).await;
                Witness { id, votes, hashes: hashes.into_iter().flatten().collect() }
            }
        }));
        Self { others: others.await, own, voters, latest }
    }

    /// Who has another history at a revision than this member.
    fn against(&self, revision: Revision) -> BTreeSet<u64> {
        let Some(own) = self.own.hashes.get(&revision) else { return BTreeSet::new() };
        let differs = |other: &&Witness| other.hashes.contains_key(&revision) && !other.has(revision, own);
        self.others.iter().filter(differs).map(|other| other.id).collect()
    }

    /// Whose history is believed at a revision.
    async fn right(&self, inner: &Inner, revision: Revision) -> Option<ChainHash> {
        let leader = inner.leader();
        let voting = self.others.iter().chain([&self.own]).filter(|witness| witness.votes);
        let speaking = voting.filter_map(|witness| Some((witness.id, *witness.hashes.get(&revision)?)));
        let speaking: Vec<_> = speaking.collect();
        let parties = join_all(speaking.into_iter().map(|(id, hash)| async move {
            let affirmed = if id == inner.id {
                inner.standing.is_affirmed()
            } else {
                matches!(ask(inner, id, &Ask::Affirmed).await?, Answer::Affirmed(true))
            };
            Some(Party { hash, affirmed, leads: leader == Some(id) })
        }));
        // Who does not answer this may be right: the next round asks again.
        let parties: Option<Vec<Party>> = parties.await.into_iter().collect();
        believed(&parties?, self.voters)
    }
}

/// Whether nothing is to be said any more about a member's history: it has said that it is wrong, or is a member no more.
fn is_over(inner: &Inner, id: u64) -> bool {
    let (alarm, view) = (crate::etcd::alarm::corrupt_name(id), inner.store.view());
    !inner.member_ids().contains(&id) || view.settings(&alarm).any(|(name, _)| *name == alarm)
}

/// Asks a member that should answer soon.
async fn ask(inner: &Inner, id: u64, question: &Ask) -> Option<Answer> {
    let limit = Duration::from_millis(COMPARE_ANSWER_MILLIS);
    timeout(limit, inner.ask_member(id, question)).await.ok()?.ok()
}

async fn hash_of(inner: &Inner, id: u64, revision: Revision) -> Option<(Revision, ChainHash)> {
    match ask(inner, id, &Ask::Hash(revision)).await {
        Some(Answer::Hash(Ok(hash))) => Some((revision, hash)),
        _ => None,
    }
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

    /// A member that votes, or does not (id 9), from what it has at revisions.
    fn witness(id: u64, hashes: &[(Revision, u8)]) -> Witness {
        let hashes = hashes.iter().map(|(revision, byte)| (*revision, [*byte; 32])).collect();
        Witness { id, votes: id != 9, hashes }
    }

    #[test]
    fn a_majority_of_all_that_vote_is_right() {
        for (why, own, others, voters, (agreed, differs, outvoted)) in [
            ("alone", &[(7, 1)][..], &[][..], 1, (Some(7), None, None)),
            ("one of three answers", &[(7, 1)], &[(2, &[(7, 1)][..])], 3, (Some(7), None, None)),
            ("nobody answers", &[(7, 1)], &[], 3, (None, None, None)),
            ("one of five answers", &[(7, 1)], &[(2, &[(7, 1)])], 5, (None, None, None)),
            ("one against two", &[(7, 1)], &[(2, &[(7, 2)]), (3, &[(7, 2)])], 3, (None, Some(7), Some(7))),
            ("two against one", &[(7, 1)], &[(2, &[(7, 1)]), (3, &[(7, 2)])], 3, (Some(7), Some(7), None)),
            ("the third is away", &[(7, 1)], &[(2, &[(7, 2)])], 3, (None, Some(7), None)),
            ("two of five, two away", &[(7, 1)], &[(2, &[(7, 2)]), (3, &[(7, 2)])], 5, (None, Some(7), None)),
            (
                "three of five",
                &[(7, 1)],
                &[(2, &[(7, 2)]), (3, &[(7, 2)]), (4, &[(7, 2)])],
                5,
                (None, Some(7), Some(7)),
            ),
            ("one of two", &[(7, 1)], &[(2, &[(7, 2)])], 2, (None, Some(7), None)),
            ("three histories", &[(7, 1)], &[(2, &[(7, 2)]), (3, &[(7, 3)])], 3, (None, Some(7), None)),
            // All agree where the third is: what came later differs all the same.
            (
                "the third lags",
                &[(5, 1), (9, 1)],
                &[(2, &[(5, 1), (9, 2)]), (3, &[(5, 1)])],
                3,
                (Some(5), Some(9), None),
            ),
            (
                "the third has come to where they part, with the others",
                &[(6, 2), (9, 2)],
                &[(2, &[(6, 1), (9, 1)]), (3, &[(6, 1)])],
                3,
                (None, Some(6), Some(6)),
            ),
            (
                "the third has come to where they part, with this one",
                &[(6, 1), (9, 1)],
                &[(2, &[(6, 2), (9, 2)]), (3, &[(6, 1)])],
                3,
                (Some(6), Some(6), None),
            ),
            ("compacted there", &[(5, 1), (9, 1)], &[(2, &[(9, 1)]), (3, &[])], 3, (Some(9), None, None)),
            // Who does not vote says nothing about others.
            ("a learner differs", &[(7, 1)], &[(2, &[(7, 1)]), (9, &[(7, 2)])], 2, (Some(7), Some(7), None)),
            ("a learner makes no majority", &[(7, 1)], &[(9, &[(7, 1)])], 2, (None, None, None)),
        ] {
            let others: Vec<_> = others.iter().map(|(id, hashes)| witness(*id, hashes)).collect();
            let found = count(&witness(1, own), &others, voters);
            assert_eq!(found, Finding { agreed, differs, outvoted }, "{why}");
        }
        let learner = count(&witness(9, &[(7, 1)]), &[witness(1, &[(7, 2)])], 1);
        assert_eq!(learner.outvoted, Some(7), "a learner that differs from the only one that votes");
    }

    #[test]
    fn agreement_on_what_was_found_at_the_start_affirms_nothing_yet() {
        let now = Instant::now();
        let found = |agreed, differs| Finding { agreed, differs, outvoted: None };
        for (why, agreed, differs, latest, want) in [
            ("nothing has changed since", Some(10), None, 10, true),
            ("they agree on what came after it", Some(11), None, 15, true),
            ("they agree on what was before", Some(10), None, 15, false),
            ("nobody answers", None, None, 15, false),
            ("one differs, and a majority does not", Some(15), Some(15), 15, true),
            ("they agreed, and differ later", Some(12), Some(15), 15, false),
        ] {
            let mut doubt = Doubt::new(10, now);
            assert_eq!(doubt.weigh(&found(agreed, differs), latest, now), want, "{why}");
            assert_eq!(doubt.until == now, want, "{why}");
        }
        let mut doubt = Doubt::new(10, now);
        assert!(doubt.weigh(&found(Some(12), None), 12, now));
        assert!(!doubt.weigh(&found(Some(12), Some(20)), 20, now) && doubt.until == now + PATIENCE);
        assert!(!doubt.weigh(&found(Some(15), None), 21, now), "who differed at 20 is away, a third lags");
        assert!(!doubt.weigh(&found(None, None), 21, now) && doubt.until == now + PATIENCE);
        assert!(doubt.weigh(&found(Some(21), None), 22, now) && doubt.until == now);
    }

    #[test]
    fn doubt_ends_when_those_that_differed_are_no_more() {
        let now = Instant::now();
        let differs = Finding { agreed: Some(12), differs: Some(20), outvoted: None };
        for (against, over, want) in
            [(&[][..], &[][..], false), (&[2], &[], false), (&[2], &[2], true), (&[2, 3], &[2], false)]
        {
            let mut doubt = Doubt::new(10, now);
            doubt.weigh(&differs, 20, now);
            doubt.against = against.iter().copied().collect();
            doubt.settle(|id| over.contains(&id), now);
            assert_eq!(doubt.until == now, want, "{against:?} {over:?}");
        }
    }

    #[test]
    fn a_majority_is_waited_for_where_members_differ() {
        let now = Instant::now();
        let differs = Finding { agreed: Some(12), differs: Some(20), outvoted: None };
        let mut doubt = Doubt::new(10, now);
        assert!(!doubt.is_heard(now + HEARING), "nobody differs");
        doubt.weigh(&differs, 20, now);
        doubt.weigh(&differs, 21, now + HEARING / 2);
        assert!(!doubt.is_heard(now + HEARING / 2) && doubt.is_heard(now + HEARING));
        doubt.weigh(&Finding { agreed: Some(21), ..differs }, 22, now);
        assert!(!doubt.is_heard(now + HEARING), "a majority has spoken");
    }

    #[test]
    fn without_a_majority_who_was_affirmed_is_believed() {
        let party = |(byte, affirmed, leads): &(u8, bool, bool)| Party {
            hash: [*byte; 32],
            affirmed: *affirmed,
            leads: *leads,
        };
        for (why, parties, voters, want) in [
            ("a forged leader that was just started", &[(1, true, false), (2, false, true)][..], 3, Some(1)),
            ("a forged follower that was just started", &[(1, true, true), (2, false, false)], 3, Some(1)),
            ("both were started", &[(1, false, false), (2, false, true)], 3, None),
            ("both ran", &[(1, true, false), (2, true, true)], 3, None),
            (
                "two that ran differ, and a third did not",
                &[(1, true, false), (2, true, false), (3, false, true)],
                3,
                None,
            ),
            ("two alike", &[(1, true, false), (1, true, false), (3, false, true)], 5, Some(1)),
            ("of two, both were started", &[(1, false, false), (2, false, true)], 2, Some(2)),
            ("of two, one ran", &[(1, true, false), (2, false, true)], 2, Some(1)),
            ("of two, nobody leads", &[(1, false, false), (2, false, false)], 2, None),
            ("nobody", &[], 3, None),
        ] {
            let parties: Vec<_> = parties.iter().map(party).collect();
            assert_eq!(believed(&parties, voters), want.map(|byte| [byte; 32]), "{why}");
        }
    }
}
