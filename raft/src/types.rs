//! The types that openraft is used with.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use keelson_store::{Applied, Command, KvError};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::codec;

openraft::declare_raft_types!(
    /// Keelson's choice of openraft's types.
    pub TypeConfig:
        D = Proposal,
        R = Outcome,
        NodeId = u64,
        Node = Node,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>,
        AsyncRuntime = crate::task::Executor,
);

/// A log entry.
pub type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
/// A log entry's identity.
pub type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
/// A vote.
pub type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
/// A membership and the log entry it came with.
pub type StoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
/// What a snapshot contains.
pub type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;
/// The Raft node.
pub type Raft = openraft::Raft<TypeConfig, crate::machine::Machine>;

/// Who a member is and where it is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its name, unique in the cluster.
    pub name: String,
    /// `host:port` of its peer service, or its peer URLs with commas between them.
    pub peer_address: String,
    /// URLs at which clients reach it; empty until it has told them.
    pub client_urls: Vec<String>,
    /// Whether it is to be promoted as soon as it has caught up.
    pub joining: bool,
}

/// A command on its way through the log: encoded once by its proposer, decoded once on each other member.
#[derive(Serialize, Deserialize)]
pub struct Part {
    /// The command in the codec's form.
    pub encoded: Bytes,
    /// Until it is applied. The log keeps its latest entries for other members, who are sent the codec's form.
    #[serde(skip)]
    command: Mutex<Option<Arc<Command>>>,
}

impl Clone for Part {
    fn clone(&self) -> Self {
        Self { encoded: self.encoded.clone(), command: Mutex::new(self.command.lock().clone()) }
    }
}

/// What one log entry does: commands that came together, applied in order and in one step.
#[derive(Clone, Serialize, Deserialize)]
pub struct Proposal(pub Arc<[Part]>);

/// More than what a command takes besides its operations.
const COMMAND_HEAD_BYTES: usize = 32;

impl Part {
    /// Encodes a command.
    pub fn new(command: Command) -> Result<Self, codec::Error> {
        // The size of a transaction's operations in memory is more than that of their fields.
        let encoded = codec::encode_sized(&command, command.size_bytes() + COMMAND_HEAD_BYTES)?;
        Ok(Self { encoded: encoded.into(), command: Mutex::new(Some(Arc::new(command))) })
    }

    /// A command as another member sent it, read at once.
    pub fn decode(encoded: Bytes) -> Result<Self, codec::Error> {
        let command = Mutex::new(Some(Arc::new(codec::command(&encoded)?)));
        Ok(Self { encoded, command })
    }

    /// A command as it came from the log.
    pub fn from_encoded(encoded: Bytes) -> Self {
        Self { encoded, command: Mutex::default() }
    }

    /// The command.
    pub fn command(&self) -> Result<Arc<Command>, codec::Error> {
        let kept = self.command.lock().clone();
        kept.map_or_else(|| self.read(), Ok)
    }

    /// The command, for who needs it last: it is not kept beside its encoded form any longer.
    pub fn last_command(&self) -> Result<Arc<Command>, codec::Error> {
        let kept = self.command.lock().take();
        kept.map_or_else(|| self.read(), Ok)
    }

    fn read(&self) -> Result<Arc<Command>, codec::Error> {
        Ok(Arc::new(codec::command(&self.encoded)?))
    }
}

impl Proposal {
    /// Bytes of the commands.
    pub fn size_bytes(&self) -> usize {
        self.0.iter().map(|part| part.encoded.len()).sum()
    }
}

impl From<Part> for Proposal {
    fn from(part: Part) -> Self {
        Self([part].into())
    }
}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Proposal {
    // Values may be secrets: only the size is told.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} commands of {} bytes", self.0.len(), self.size_bytes())
    }
}

/// What applying an entry answered, one answer to each command in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome(pub Vec<Result<Applied, KvError>>);
