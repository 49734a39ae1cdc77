//! Commands on their way into the log: those that come while others are under way share one log entry, and on a
//! follower one question to the leader.
//!
//! Invariant: whoever waits is told when this member has applied the command, or why that is not known.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use keelson_store::{Applied, KvError};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::codec;
use crate::limits::{
    CHEAP_GROUP_WORTH_COMMANDS, GROUP_BYTES, GROUP_COMMANDS, GROUP_WORTH_COMMANDS, GROUPS, HOLD_ALL_COMMANDS,
    HOLD_MILLIS, HOLD_WORTH_COMMANDS, MOST_MISSED,
};
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

/// Where commands were written, and what they answered.
type Done = (u64, Vec<Result<Applied, KvError>>);

/// Commands that came together: one of this member's own, or a follower's group.
struct Waiting {
    parts: Vec<Part>,
    /// Whether they must not share their entry.
    alone: bool,
    /// Whether another member sent them: they are not sent on.
    foreign: bool,
    answer: oneshot::Sender<Result<Done, NotWritten>>,
}

impl Waiting {
    fn size_bytes(&self) -> usize {
        self.parts.iter().map(|part| part.encoded.len()).sum()
    }

    /// Whoever asked may have gone.
    fn tell(self, answer: Result<Done, NotWritten>) {
        let _ = self.answer.send(answer);
    }
}

/// Gathers commands. How many wait is bounded by who admits them.
#[derive(Default)]
pub struct Proposer(Mutex<Gathered>);

#[derive(Default)]
struct Gathered {
    waiting: VecDeque<Waiting>,
    /// Commands in them.
    commands: usize,
    /// Groups under way.
    running: usize,
    /// Commands of the latest group.
    latest: usize,
    /// Commands that are to be expected: of clients that were answered last, or wait.
    expected: usize,
    /// How often commands were held back.
    held: u64,
    /// Whether they are at present.
    holds: bool,
    /// Entries that are begun without all that are expected, since some did not come in time.
    doubtful: u32,
    /// How often in succession some did not come.
    missed: u32,
}

/// What is to be done with the commands that wait.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// They go.
    Begin,
    /// They wait for those under way, or for a hold that has begun.
    Wait,
    /// More are expected: they wait for them, but not long.
    Hold(u64),
}

impl Gathered {
    /// What to do now. Where an entry is `dear`, all clients that are there are gathered into one: those whose commands
    /// shared the latest one are given the time to come with their next ones, beside those that wait already. Each would
    /// otherwise begin an entry of its own whose answer the others wait for.
    fn next(&mut self, dear: bool) -> Next {
        let beside = if dear { GROUP_WORTH_COMMANDS } else { CHEAP_GROUP_WORTH_COMMANDS };
        let needed = if self.running == 0 { self.wanted(dear) } else { self.latest.clamp(beside, GROUP_COMMANDS) };
        if self.waiting.is_empty() || self.running >= GROUPS {
            return Next::Wait;
        }
        if self.commands >= needed {
            self.came();
            self.running += 1;
            self.holds = false;
            return Next::Begin;
        }
        if self.running > 0 || self.holds {
            return Next::Wait;
        }
        self.held += 1;
        self.holds = true;
        Next::Hold(self.held)
    }

    /// Commands that an entry is begun with where none is under way: those of all clients that are there, if they are few:
    /// of many, some are always late. One that stays away would have all others wait until the hold ends, so half of them do
    /// after that for a while, longer each time. Commands that come at their own times, which nobody's answer calls forth, are
    /// half of those expected when an entry ends.
    fn wanted(&self, dear: bool) -> usize {
        match self.expected {
            few if !dear || few < HOLD_WORTH_COMMANDS => 1,
            many if many > HOLD_ALL_COMMANDS => many * 3 / 4,
            expected if self.doubtful > 0 => expected / 2,
            expected => expected,
        }
    }

    /// All that an entry waited for have come.
    fn came(&mut self) {
        if self.running > 0 {
            return;
        }
        if self.doubtful > 0 {
            self.doubtful -= 1;
        } else if self.holds {
            self.missed = self.missed.saturating_sub(1);
        }
    }

    /// A group has been answered.
    fn done(&mut self, dear: bool) -> Next {
        self.running -= 1;
        if self.running == 0 {
            self.expected = (self.latest + self.commands).min(GROUP_COMMANDS);
        }
        self.next(dear)
    }

    /// Whether commands that were held back for long enough go now.
    fn release(&mut self, held: u64) -> bool {
        let releases = self.holds && self.held == held && self.running == 0 && !self.waiting.is_empty();
        if releases {
            if self.doubtful == 0 && self.expected <= HOLD_ALL_COMMANDS {
                self.missed = (self.missed + 2).min(MOST_MISSED);
                self.doubtful = 1 << self.missed;
            }
            self.holds = false;
            self.running += 1;
        }
        releases
    }

    /// What goes together next.
    fn group(&mut self) -> Vec<Waiting> {
        let (mut bytes, mut commands, mut count) = (0, 0, 0);
        for one in &self.waiting {
            let (more, length) = (one.parts.len(), one.size_bytes());
            let fits = !one.alone && commands + more <= GROUP_COMMANDS && bytes + length <= GROUP_BYTES;
            if count > 0 && !fits {
                break;
            }
            bytes += length;
            commands += more;
            count += 1;
            if one.alone {
                break;
            }
        }
        self.commands -= commands;
        self.latest = if count > 0 { commands } else { self.latest };
        self.waiting.drain(..count).collect()
    }
}

impl Inner {
    /// Has a command written, by this member if it leads or else by the one that does. A command that must be `alone`
    /// shares its log entry with no other.
    pub(crate) async fn write(self: &Arc<Self>, part: Part, alone: bool) -> Written {
        let (_, mut answers) = self.gather(vec![part], alone, false).await?;
        answers.pop().ok_or_else(|| NotWritten::Unknown(odd_answer()))
    }

    async fn gather(self: &Arc<Self>, parts: Vec<Part>, alone: bool, foreign: bool) -> Result<Done, NotWritten> {
        let (answer, answered) = oneshot::channel();
        let next = {
            let mut gathered = self.proposer.0.lock();
            gathered.commands += parts.len();
            gathered.waiting.push_back(Waiting { parts, alone, foreign, answer });
            gathered.next(self.is_replicated())
        };
        match next {
            // Tasks of their own: they go on for the others when the first one loses patience.
            Next::Begin => drop(crate::task::spawn(run(self.clone()))),
            Next::Hold(held) => drop(crate::task::spawn(release(self.clone(), held))),
            Next::Wait => {}
        }
        answered.await.unwrap_or_else(|_| Err(NotWritten::Unknown(KvError::Stopped("this member stops".into()))))
    }

    /// Writes a group that another member sent, as the leader.
    pub(crate) async fn propose_many_here(self: &Arc<Self>, body: Bytes) -> Result<Vec<Proposed>, codec::Error> {
        let parts = codec::split(body)?.into_iter().map(Part::decode).collect::<Result<Vec<_>, _>>()?;
        let count = parts.len();
        let mut alone = false;
        for part in &parts {
            alone |= part.command()?.reads_history();
        }
        let bytes = parts.iter().map(|part| part.encoded.len()).sum();
        let written = match self.admit(bytes) {
            Ok(_admitted) => self.gather(parts, alone, true).await,
            Err(error) => Err(NotWritten::Unknown(error)),
        };
        Ok(match written {
            Ok((index, answers)) => answers.into_iter().map(|answer| Ok((index, answer))).collect(),
            Err(NotWritten::NotDone(_)) => vec![Err(Refusal::NotLeader(self.leader())); count],
            Err(NotWritten::Unknown(error)) => vec![Err(Refusal::Failed(error)); count],
        })
    }

    /// Writes one log entry as the leader; returns its index and what its commands answered.
    pub(crate) async fn write_here(&self, proposal: Proposal) -> Result<Done, Refusal> {
        let count = proposal.0.len();
        let written = self.raft.client_write(proposal).await.map_err(refused)?;
        let Outcome(answers) = written.data;
        if answers.len() != count {
            return Err(Refusal::Failed(KvError::Stopped("a command was applied without an answer".into())));
        }
        Ok((written.log_id.index, answers))
    }
}

/// Writes one group after the other for as long as enough commands wait.
async fn run(inner: Arc<Inner>) {
    loop {
        let group = inner.proposer.0.lock().group();
        // Another one may have taken them all.
        if !group.is_empty() {
            write_group(&inner, group).await;
        }
        let next = {
            let mut gathered = inner.proposer.0.lock();
            gathered.done(inner.is_replicated())
        };
        match next {
            Next::Begin => {}
            Next::Wait => return,
            Next::Hold(held) => {
                if !held_back(&inner, held).await {
                    return;
                }
            }
        }
    }
}

/// Begins a group with commands that were held back, unless more have come meanwhile and begun it.
async fn release(inner: Arc<Inner>, held: u64) {
    if held_back(&inner, held).await {
        run(inner).await;
    }
}

/// Waits for as long as commands are held back; whether they have to be written then.
async fn held_back(inner: &Inner, held: u64) -> bool {
    tokio::time::sleep(Duration::from_millis(HOLD_MILLIS)).await;
    inner.proposer.0.lock().release(held)
}

async fn write_group(inner: &Inner, group: Vec<Waiting>) {
    match inner.leader() {
        Some(leader) if leader == inner.id => write_as_leader(inner, group).await,
        leader => {
            let changed = || NotWritten::NotDone("the leader has changed".into());
            let (foreign, own): (Vec<_>, Vec<_>) = group.into_iter().partition(|waiting| waiting.foreign);
            foreign.into_iter().for_each(|waiting| waiting.tell(Err(changed())));
            match leader {
                Some(leader) => forward(inner, leader, own).await,
                None => own.into_iter().for_each(|waiting| waiting.tell(Err(changed()))),
            }
        }
    }
}

async fn write_as_leader(inner: &Inner, group: Vec<Waiting>) {
    let parts = group.iter().flat_map(|waiting| waiting.parts.iter().cloned()).collect();
    match inner.write_here(Proposal(parts)).await {
        Ok((index, answers)) => {
            let mut answers = answers.into_iter();
            for waiting in group {
                let own = answers.by_ref().take(waiting.parts.len()).collect();
                waiting.tell(Ok((index, own)));
            }
        }
        Err(refusal) => {
            let error = NotWritten::from(refusal);
            group.into_iter().for_each(|waiting| waiting.tell(Err(error.clone())));
        }
    }
}

/// Has the leader write a group, and waits until this member has applied it.
async fn forward(inner: &Inner, leader: u64, group: Vec<Waiting>) {
    let told = match ask(inner, leader, &group).await {
        Ok(told) => told,
        Err(error) => return group.into_iter().for_each(|waiting| waiting.tell(Err(error.clone()))),
    };
    let last = told.iter().filter_map(|answer| answer.as_ref().ok()).map(|(index, _)| *index).max();
    let applied = match last {
        Some(last) => inner.wait_applied(last).await,
        None => Ok(()),
    };
    // This member's own commands come one by one.
    for (waiting, told) in group.into_iter().zip(told) {
        waiting.tell(match (told, &applied) {
            (Ok((_, Ok(_))), Err(error)) => Err(NotWritten::Unknown(error.clone())),
            (Ok((index, done)), _) => Ok((index, vec![done])),
            (Err(refusal), _) => Err(refusal.into()),
        });
    }
}

async fn ask(inner: &Inner, leader: u64, group: &[Waiting]) -> Result<Vec<Proposed>, NotWritten> {
    let encoded: Vec<_> = group.iter().flat_map(|waiting| &waiting.parts).map(|part| part.encoded.clone()).collect();
    let body = codec::join(&encoded).map_err(AskError::from)?;
    match inner.forward(leader, &Ask::ProposeMany, body).await? {
        Answer::ProposedMany(told) if told.len() == encoded.len() => Ok(told),
        _ => Err(NotWritten::Unknown(odd_answer())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_end_at_limits_and_at_those_that_are_alone() {
        let waiting = |bytes: usize, alone| {
            let parts = vec![Part::from_encoded(vec![0; bytes].into())];
            Waiting { parts, alone, foreign: false, answer: oneshot::channel().0 }
        };
        for (name, sizes, want) in [
            ("all", vec![(1, false), (1, false), (1, false)], vec![3]),
            ("alone", vec![(1, false), (1, true), (1, false)], vec![1, 1, 1]),
            ("alone twice", vec![(1, true), (1, true)], vec![1, 1]),
            ("bytes", vec![(GROUP_BYTES, false), (1, false)], vec![1, 1]),
            ("one too large", vec![(GROUP_BYTES + 1, false), (1, false), (1, false)], vec![1, 2]),
            ("many", vec![(1, false); GROUP_COMMANDS + 1], vec![GROUP_COMMANDS, 1]),
        ] {
            let waiting = sizes.iter().map(|(bytes, alone)| waiting(*bytes, *alone)).collect();
            let mut gathered = Gathered { waiting, commands: sizes.len(), ..Gathered::default() };
            let mut found = Vec::new();
            while !gathered.waiting.is_empty() {
                found.push(gathered.group().len());
            }
            assert_eq!(found, want, "{name}");
            assert_eq!(gathered.commands, 0);
        }
    }

    fn come(gathered: &mut Gathered, count: usize) {
        for _ in 0..count {
            let parts = vec![Part::from_encoded(vec![0].into())];
            let waiting = Waiting { parts, alone: false, foreign: false, answer: oneshot::channel().0 };
            gathered.waiting.push_back(waiting);
            gathered.commands += 1;
        }
    }

    #[test]
    fn commands_wait_for_those_that_are_expected_but_not_long() {
        let gathered = &mut Gathered::default();
        come(gathered, 1);
        assert_eq!(gathered.next(true), Next::Begin, "the first one");
        gathered.group();
        come(gathered, 20);
        assert_eq!(gathered.next(true), Next::Wait, "too few beside the one under way");
        assert_eq!(gathered.done(true), Next::Hold(1), "the one that was answered comes again");
        assert_eq!(gathered.next(true), Next::Wait, "they are held back already");
        come(gathered, 1);
        assert_eq!(gathered.next(true), Next::Begin);
        assert!(!gathered.release(1), "they have gone");
        assert_eq!(gathered.group().len(), 21);
        assert_eq!(gathered.done(true), Next::Wait, "nobody waits");
        come(gathered, 14);
        assert_eq!(gathered.next(false), Next::Begin, "an entry is cheap");
        gathered.running -= 1;
        assert_eq!(gathered.next(true), Next::Hold(2), "21 are expected");
        assert!(!gathered.release(1) && gathered.release(2));
        assert_eq!(gathered.group().len(), 14);
        come(gathered, 9);
        assert_eq!(gathered.done(true), Next::Hold(3), "half of 23 are waited for: some did not come before");
        come(gathered, 2);
        assert_eq!(gathered.next(true), Next::Begin);
        gathered.group();
        come(gathered, GROUP_WORTH_COMMANDS);
        assert_eq!(gathered.next(true), Next::Begin, "enough beside the one under way");
        gathered.group();
        assert_eq!(gathered.running, 2);
        come(gathered, 3);
        assert_eq!((gathered.done(true), gathered.done(true)), (Next::Wait, Next::Hold(4)));
    }

    #[test]
    fn whoever_stays_away_is_waited_for_less_and_less_often() {
        // Ten clients, of which one never comes again.
        let gathered = &mut Gathered { expected: 10, ..Gathered::default() };
        let mut entries_between = Vec::new();
        for _ in 0..5 {
            let mut entries = 0;
            loop {
                gathered.expected = 10;
                come(gathered, 9);
                let next = gathered.next(true);
                if let Next::Hold(held) = next {
                    assert!(gathered.release(held));
                }
                gathered.group();
                gathered.running = 0;
                entries += 1;
                if next == Next::Begin {
                    continue;
                }
                entries_between.push(entries);
                break;
            }
        }
        assert_eq!(entries_between, [1, 5, 17, 65, 65]);
        gathered.doubtful = 0;
        for _ in 0..MOST_MISSED {
            gathered.expected = 10;
            come(gathered, 9);
            assert!(matches!(gathered.next(true), Next::Hold(_)));
            come(gathered, 1);
            assert_eq!(gathered.next(true), Next::Begin, "all have come again");
            gathered.group();
            gathered.running = 0;
        }
        assert_eq!(gathered.missed, 0);
    }

    #[test]
    fn few_commands_wait_for_nobody_and_many_not_for_all() {
        for (dear, expected, doubtful, want) in [
            (true, 0, 0, 1),
            (true, HOLD_WORTH_COMMANDS - 1, 0, 1),
            (true, HOLD_WORTH_COMMANDS, 0, HOLD_WORTH_COMMANDS),
            (true, HOLD_ALL_COMMANDS, 0, HOLD_ALL_COMMANDS),
            (true, HOLD_ALL_COMMANDS, 1, HOLD_ALL_COMMANDS / 2),
            (false, HOLD_ALL_COMMANDS, 0, 1),
            (true, HOLD_ALL_COMMANDS * 2, 0, HOLD_ALL_COMMANDS * 3 / 2),
            (true, HOLD_ALL_COMMANDS * 2, 1, HOLD_ALL_COMMANDS * 3 / 2),
        ] {
            let gathered = Gathered { expected, doubtful, ..Gathered::default() };
            assert_eq!(gathered.wanted(dear), want, "{dear} {expected} {doubtful}");
        }
    }
}
