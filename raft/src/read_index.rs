//! Read indexes in one round trip, past Raft's own task.
//!
//! A member that has voted for nobody after the leader was in no majority that elected another one. A majority of such
//! members, each asked after the read began, shows that all that was acknowledged before the read came from this leader
//! or from before it. Who asks is one of them, so that in a cluster of three a follower's question needs nobody else.
//!
//! Invariant: the index is at least that of every entry which any member had applied when the read began: what this
//! member has applied itself, and what it has told the others is committed, whichever is more; and not before all that
//! former leaders wrote is applied here. Where this is not sure, Raft's own round decides.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use keelson_store::KvError;
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use parking_lot::Mutex;

use crate::limits::CONFIRM_HEDGE_MILLIS;
use crate::message::{Answer, Ask};
use crate::replica::{Inner, odd_answer, unavailable};
use crate::types::Vote;

/// The vote with which this member leads, once all that former leaders wrote is applied here; and who confirmed it last.
#[derive(Default)]
pub struct Confirmed(Mutex<(Option<Vote>, Option<u64>)>);

impl Confirmed {
    /// This member leads with this vote.
    pub fn set(&self, vote: Option<Vote>) {
        self.0.lock().0 = vote;
    }

    /// The vote it leads with.
    pub fn vote(&self) -> Option<Vote> {
        self.0.lock().0
    }
}

/// Whether two votes are for the same leader of the same term.
pub fn same(one: &Vote, other: &Vote) -> bool {
    one.leader_id == other.leader_id
}

/// Whether those are a majority of each of these sets of voters.
fn is_majority(config: &[BTreeSet<u64>], those: &BTreeSet<u64>) -> bool {
    !config.is_empty() && config.iter().all(|voters| voters.intersection(those).count() > voters.len() / 2)
}

impl Inner {
    /// Whether this member has voted for nobody after this vote.
    pub(crate) fn confirms(&self, vote: &Vote) -> bool {
        // Votes of one term for different members do not compare: such a one is no confirmation.
        self.log.vote().is_some_and(|own| own.leader_id.term < vote.leader_id.term || same(&own, vote))
    }

    fn voters(&self) -> Vec<BTreeSet<u64>> {
        self.server.borrow_watched().membership_config.membership().get_joint_config().clone()
    }

    /// An index that a linearizable read must have applied, as the leader; none if Raft has to be asked.
    pub(crate) async fn read_index_fast(&self) -> Option<u64> {
        let vote = self.confirmed.vote()?;
        self.read_index_with(vote, BTreeSet::from([self.id])).await
    }

    /// The same for a member that has told its vote.
    pub(crate) async fn read_index_for(&self, id: u64, vote: Vote) -> Option<u64> {
        let own = self.confirmed.vote()?;
        let mut those = BTreeSet::from([self.id]);
        if same(&own, &vote) {
            those.insert(id);
        }
        self.read_index_with(own, those).await
    }

    async fn read_index_with(&self, vote: Vote, those: BTreeSet<u64>) -> Option<u64> {
        if !self.confirms(&vote) {
            return None;
        }
        // Taken after the question came and before others are asked. What the view shows is applied; what others were
        // told they may show.
        let index = self.store.view().applied_index().max(self.network.told());
        let voters = self.voters();
        if is_majority(&voters, &those) || self.is_confirmed(&vote, &voters, those).await {
            return Some(index);
        }
        None
    }

    /// Asks other voters until a majority confirms: first as many as are needed, then, after a moment, all.
    async fn is_confirmed(&self, vote: &Vote, voters: &[BTreeSet<u64>], mut those: BTreeSet<u64>) -> bool {
        let latest = self.confirmed.0.lock().1;
        let mut others: Vec<u64> = voters.iter().flatten().copied().collect::<BTreeSet<_>>().into_iter().collect();
        others.retain(|id| !those.contains(id));
        // The one that answered last comes first.
        others.sort_by_key(|id| latest != Some(*id));
        let mut needed = those.clone();
        let mut first = 0;
        while !is_majority(voters, &needed) && first < others.len() {
            needed.insert(others[first]);
            first += 1;
        }
        let ask = |id: u64| async move { (id, self.ask_member(id, &Ask::Confirm(*vote)).await) };
        let (now, later) = others.split_at(first);
        let mut asked: FuturesUnordered<_> = now.iter().map(|id| ask(*id)).collect();
        let mut later = later.iter();
        let hedge = tokio::time::sleep(Duration::from_millis(CONFIRM_HEDGE_MILLIS));
        tokio::pin!(hedge);
        loop {
            let answered = tokio::select! {
                answered = asked.next() => answered,
                () = &mut hedge, if !later.as_slice().is_empty() => {
                    asked.extend(later.by_ref().map(|id| ask(*id)));
                    continue;
                }
            };
            match answered {
                Some((id, Ok(Answer::Confirmed(true)))) => {
                    those.insert(id);
                    if is_majority(voters, &those) {
                        self.confirmed.0.lock().1 = Some(id);
                        return true;
                    }
                }
                // Refused, or not to be reached: the next one.
                Some(_) => asked.extend(later.next().map(|id| ask(*id))),
                None => return false,
            }
        }
    }

    /// An index that a linearizable read here must have applied, wherever the leader is.
    async fn read_index(&self) -> Result<u64, KvError> {
        let leader = self.leader();
        let fast = match (leader, self.log.vote()) {
            (Some(leader), _) if leader == self.id => self.read_index_fast().await,
            (Some(leader), Some(vote)) if vote.leader_id.voted_for == leader => {
                match self.forward(leader, &Ask::ReadIndexOf(self.id, vote), Bytes::new()).await {
                    Ok(Answer::ReadIndexOf(index)) => index,
                    _ => None,
                }
            }
            _ => None,
        };
        match fast {
            Some(index) => Ok(index),
            None => match self.ask_leader(Ask::ReadIndex, Bytes::new()).await? {
                Answer::ReadIndex(index) => index.map_err(unavailable),
                _ => Err(odd_answer()),
            },
        }
    }

    /// Waits until this member shows all that was acknowledged before the call.
    pub(crate) async fn settle(self: Arc<Self>) -> Result<(), KvError> {
        let index = self.read_index().await?;
        self.wait_applied(index).await
    }

    /// Notes that this member leads, after a barrier that began when it led with `vote`.
    pub(crate) fn confirm_leading(&self, vote: Vote) {
        let metrics = self.server.borrow_watched();
        // Votes only rise: if it is the same afterwards, it was while the barrier was waited for.
        let holds = metrics.state == ServerState::Leader && self.log.vote().is_some_and(|own| same(&own, &vote));
        self.confirmed.set((holds && vote.committed).then_some(vote));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_majority_is_one_of_both_sets_while_members_change() {
        let set = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<_>>();
        for (name, config, those, want) in [
            ("alone", vec![set(&[1])], set(&[1]), true),
            ("two of three", vec![set(&[1, 2, 3])], set(&[1, 3]), true),
            ("one of three", vec![set(&[1, 2, 3])], set(&[1]), false),
            ("one and a learner", vec![set(&[1, 2, 3])], set(&[1, 9]), false),
            ("half", vec![set(&[1, 2])], set(&[1]), false),
            ("joint, the old ones", vec![set(&[1, 2, 3]), set(&[1, 4, 5])], set(&[1, 2]), false),
            ("joint, both", vec![set(&[1, 2, 3]), set(&[1, 4, 5])], set(&[1, 2, 5]), true),
            ("no voters", vec![], set(&[1]), false),
        ] {
            assert_eq!(is_majority(&config, &those), want, "{name}");
        }
    }
}
