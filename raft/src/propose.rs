//! Commands on their way into the log: those that come while others are under way share one log entry, and on a
//! follower one question to the leader.
//!
//! Invariant: whoever waits is told when this member has applied the command, or why that is not known.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use keelson_store::{Applied, KvError};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::codec;
use crate::limits::{GROUP_BYTES, GROUP_COMMANDS, GROUP_WORTH_COMMANDS, GROUPS};
use crate::message::{Answer, Ask, Proposed, Refusal};
use crate::network::AskError;
use crate::replica::{Inner, odd_answer, refused, unavailable};
use crate::types::{Outcome, Part, Proposal};

/// What became of a command.
pub type Written = Result<Result<Applied, KvError>, NotWritten>;

/// Why a command was not done, or may not have been.
#[derive(Clone)]
pub enum NotWritten {
    /// It was not done; it may be tried again.
    NotDone(String),
    /// It may have been done.
    Unknown(KvError),
}

impl From<Refusal> for NotWritten {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotLeader(_) => Self::NotDone("the leader has changed".into()),
            refusal => Self::Unknown(unavailable(refusal)),
        }
    }
}

impl From<AskError> for NotWritten {
    fn from(error: AskError) -> Self {
        match error {
            AskError::NotSent(why) => Self::NotDone(why),
            AskError::Unknown(why) => Self::Unknown(KvError::Unavailable(why)),
        }
    }
}

struct Waiting {
    part: Part,
    /// Whether it must not share its entry.
    alone: bool,
    answer: oneshot::Sender<Written>,
}

/// Gathers commands. How many wait is bounded by who admits them.
#[derive(Default)]
pub struct Proposer(Mutex<Gathered>);

#[derive(Default)]
struct Gathered {
    waiting: VecDeque<Waiting>,
    /// Groups under way.
    running: usize,
}

impl Gathered {
    /// What goes together next.
    fn group(&mut self) -> Vec<Waiting> {
        let (mut bytes, mut count) = (0, 0);
        for one in &self.waiting {
            let fits = !one.alone && count < GROUP_COMMANDS && bytes + one.part.encoded.len() <= GROUP_BYTES;
            if count > 0 && !fits {
                break;
            }
            bytes += one.part.encoded.len();
            count += 1;
            if one.alone {
                break;
            }
        }
        self.waiting.drain(..count).collect()
    }
}

impl Inner {
    /// Has a command written, by this member if it leads or else by the one that does. A command that must be `alone`
    /// shares its log entry with no other.
    pub(crate) async fn write(self: &Arc<Self>, part: Part, alone: bool) -> Written {
        let (answer, answered) = oneshot::channel();
        let begins = {
            let mut gathered = self.proposer.0.lock();
            gathered.waiting.push_back(Waiting { part, alone, answer });
            // Each group costs as much as many commands in it do: a few wait for the next one.
            let worth = gathered.running == 0 || gathered.waiting.len() >= GROUP_WORTH_COMMANDS;
            let begins = worth && gathered.running < GROUPS;
            gathered.running += usize::from(begins);
            begins
        };
        if begins {
            // A task of its own: it goes on for the others when the first one loses patience.
            crate::task::spawn(run(self.clone()));
        }
        answered.await.unwrap_or_else(|_| Err(NotWritten::Unknown(KvError::Stopped("this member stops".into()))))
    }

    /// Writes a group that another member sent, as the leader.
    pub(crate) async fn propose_many_here(&self, body: Bytes) -> Result<Vec<Proposed>, codec::Error> {
        let parts: Vec<_> = codec::split(body)?.into_iter().map(Part::from_encoded).collect();
        let count = parts.len();
        Ok(match self.write_here(Proposal(parts.into())).await {
            Ok((index, answers)) => answers.into_iter().map(|answer| Ok((index, answer))).collect(),
            Err(refusal) => vec![Err(refusal); count],
        })
    }

    /// Writes one log entry as the leader; returns its index and what its commands answered.
    pub(crate) async fn write_here(
        &self,
        proposal: Proposal,
    ) -> Result<(u64, Vec<Result<Applied, KvError>>), Refusal> {
        let count = proposal.0.len();
        let written = self.raft.client_write(proposal).await.map_err(refused)?;
        let Outcome(answers) = written.data;
        if answers.len() != count {
            return Err(Refusal::Failed(KvError::Stopped("a command was applied without an answer".into())));
        }
        Ok((written.log_id.index, answers))
    }
}

/// Writes one group after the other for as long as any command waits.
async fn run(inner: Arc<Inner>) {
    loop {
        let group = {
            let mut gathered = inner.proposer.0.lock();
            if gathered.waiting.is_empty() {
                gathered.running -= 1;
                return;
            }
            gathered.group()
        };
        write_group(&inner, group).await;
    }
}

async fn write_group(inner: &Inner, group: Vec<Waiting>) {
    let (parts, waiting): (Vec<_>, Vec<_>) = group.into_iter().map(|one| (one.part, one.answer)).unzip();
    let answers = match inner.leader() {
        Some(leader) if leader == inner.id => match inner.write_here(Proposal(parts.into())).await {
            Ok((_, answers)) => Ok(answers.into_iter().map(Ok).collect()),
            Err(refusal) => Err(refusal.into()),
        },
        Some(leader) => forward(inner, leader, &parts).await,
        None => Err(NotWritten::NotDone("no member has been elected".into())),
    };
    match answers {
        Ok(answers) => {
            for (waiting, answer) in waiting.into_iter().zip(answers) {
                // Whoever asked may have gone, here and below.
                let _ = waiting.send(answer);
            }
        }
        Err(error) => {
            for waiting in waiting {
                let _ = waiting.send(Err(error.clone()));
            }
        }
    }
}

/// Has the leader write a group, and waits until this member has applied it.
async fn forward(inner: &Inner, leader: u64, parts: &[Part]) -> Result<Vec<Written>, NotWritten> {
    let encoded: Vec<_> = parts.iter().map(|part| part.encoded.clone()).collect();
    let body = codec::join(&encoded).map_err(AskError::from)?;
    let told = match inner.forward(leader, &Ask::ProposeMany, body).await? {
        Answer::ProposedMany(told) if told.len() == parts.len() => told,
        _ => return Err(NotWritten::Unknown(odd_answer())),
    };
    let last = told.iter().filter_map(|answer| answer.as_ref().ok()).map(|(index, _)| *index).max();
    let applied = match last {
        Some(last) => inner.wait_applied(last).await,
        None => Ok(()),
    };
    let answer = |told: Proposed| match (told, &applied) {
        (Ok((_, Ok(_))), Err(error)) => Err(NotWritten::Unknown(error.clone())),
        (Ok((_, done)), _) => Ok(done),
        (Err(refusal), _) => Err(refusal.into()),
    };
    Ok(told.into_iter().map(answer).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_end_at_limits_and_at_those_that_are_alone() {
        let waiting = |bytes: usize, alone| {
            let part = Part::from_encoded(vec![0; bytes].into());
            Waiting { part, alone, answer: oneshot::channel().0 }
        };
        let few = |sizes: &[(usize, bool)]| sizes.iter().map(|(bytes, alone)| waiting(*bytes, *alone)).collect();
        for (name, sizes, want) in [
            ("all", vec![(1, false), (1, false), (1, false)], vec![3]),
            ("alone", vec![(1, false), (1, true), (1, false)], vec![1, 1, 1]),
            ("alone twice", vec![(1, true), (1, true)], vec![1, 1]),
            ("bytes", vec![(GROUP_BYTES, false), (1, false)], vec![1, 1]),
            ("one too large", vec![(GROUP_BYTES + 1, false), (1, false), (1, false)], vec![1, 2]),
            ("many", vec![(1, false); GROUP_COMMANDS + 1], vec![GROUP_COMMANDS, 1]),
        ] {
            let mut gathered = Gathered { waiting: few(&sizes), running: 0 };
            let mut found = Vec::new();
            while !gathered.waiting.is_empty() {
                found.push(gathered.group().len());
            }
            assert_eq!(found, want, "{name}");
        }
    }
}
