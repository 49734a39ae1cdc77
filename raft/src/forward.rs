//! Commands on their way from a follower to the leader: those that come while others are under way share one question.
//!
//! Invariant: whoever waits is told when this member has applied the command, or why that is not known.

use std::sync::Weak;

use bytes::Bytes;
use keelson_store::{Applied, KvError};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::codec;
use crate::limits::{FORWARD_BATCHES, FORWARD_BYTES, FORWARD_COMMANDS, FORWARD_QUEUE_COMMANDS};
use crate::message::{Answer, Ask, Proposed, Refusal};
use crate::network::AskError;
use crate::replica::{Inner, odd_answer};

/// What became of a forwarded command.
pub type Forwarded = Result<Result<Applied, KvError>, NotForwarded>;

/// Why a command was not done, or may not have been.
pub enum NotForwarded {
    /// It was not done; it may be tried again.
    NotDone(String),
    /// It may have been done.
    Unknown(KvError),
}

struct Waiting {
    encoded: Bytes,
    answer: oneshot::Sender<Forwarded>,
}

/// Gathers commands.
pub struct Forwarder {
    queue: mpsc::Sender<Waiting>,
}

/// The other end of a [`Forwarder`], until it is run.
pub struct Queue(mpsc::Receiver<Waiting>);

impl Forwarder {
    /// A forwarder and what [`run`] takes.
    pub fn new() -> (Self, Queue) {
        let (queue, receiver) = mpsc::channel(FORWARD_QUEUE_COMMANDS);
        (Self { queue }, Queue(receiver))
    }

    /// Has a command written by the leader.
    pub async fn write(&self, encoded: Bytes) -> Forwarded {
        let stopped = || NotForwarded::Unknown(KvError::Stopped("this member stops".into()));
        let (answer, answered) = oneshot::channel();
        self.queue.send(Waiting { encoded, answer }).await.map_err(|_| stopped())?;
        answered.await.map_err(|_| stopped())?
    }
}

/// Sends what is gathered for as long as there is a member.
pub async fn run(inner: Weak<Inner>, Queue(mut queue): Queue) {
    let room = std::sync::Arc::new(Semaphore::new(FORWARD_BATCHES));
    loop {
        // What comes while there is no room makes the next batch larger.
        let Ok(place) = room.clone().acquire_owned().await else { return };
        let Some(first) = queue.recv().await else { return };
        let Some(inner) = inner.upgrade() else { return };
        let mut bytes = first.encoded.len();
        let mut batch = vec![first];
        while batch.len() < FORWARD_COMMANDS
            && bytes < FORWARD_BYTES
            && let Ok(next) = queue.try_recv()
        {
            bytes += next.encoded.len();
            batch.push(next);
        }
        crate::task::spawn(async move {
            send(&inner, batch).await;
            drop(place);
        });
    }
}

async fn send(inner: &Inner, batch: Vec<Waiting>) {
    let (commands, waiting): (Vec<_>, Vec<_>) = batch.into_iter().map(|one| (one.encoded, one.answer)).unzip();
    let answers = match ask(inner, &commands).await {
        Ok(answers) => answers,
        Err(error) => {
            for answer in waiting {
                // Whoever asked may have gone, here and below.
                let _ = answer.send(Err(match &error {
                    AskError::NotSent(why) => NotForwarded::NotDone(why.clone()),
                    AskError::Unknown(why) => NotForwarded::Unknown(KvError::Unavailable(why.clone())),
                }));
            }
            return;
        }
    };
    let last = answers.iter().filter_map(|answer| answer.as_ref().ok()).map(|(index, _)| *index).max();
    let applied = match last {
        Some(last) => inner.wait_applied(last).await,
        None => Ok(()),
    };
    for (answer, told) in waiting.into_iter().zip(answers) {
        let _ = answer.send(match told {
            Ok((_, Ok(_))) if applied.is_err() => {
                Err(NotForwarded::Unknown(applied.clone().err().unwrap_or_else(odd_answer)))
            }
            Ok((_, done)) => Ok(done),
            Err(Refusal::NotLeader(_)) => Err(NotForwarded::NotDone("the leader has changed".into())),
            Err(refusal) => Err(NotForwarded::Unknown(crate::replica::unavailable(refusal))),
        });
    }
}

type Told = Vec<Proposed>;

async fn ask(inner: &Inner, commands: &[Bytes]) -> Result<Told, AskError> {
    let Some(leader) = inner.leader().filter(|leader| *leader != inner.id) else {
        return Err(AskError::NotSent("the leader has changed".into()));
    };
    let body = codec::join(commands)?;
    match inner.forward(leader, &Ask::ProposeMany, body).await? {
        Answer::ProposedMany(told) if told.len() == commands.len() => Ok(told),
        _ => Err(AskError::Unknown("a member gave an answer to another question".into())),
    }
}

impl Inner {
    /// Writes a batch as the leader.
    pub(crate) async fn propose_many_here(&self, body: Bytes) -> Result<Told, codec::Error> {
        let commands = codec::split(body)?;
        Ok(futures::future::join_all(commands.into_iter().map(|encoded| self.propose_here(encoded))).await)
    }
}
