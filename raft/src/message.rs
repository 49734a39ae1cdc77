//! Questions between members, and their answers.

use bytes::Bytes;
use keelson_proto::peer;
use keelson_store::{Applied, KvError, LeaseId};
use openraft::raft::{
    AppendEntriesRequest, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use serde::{Deserialize, Serialize};

use crate::cluster::ClusterError;
use crate::codec;
use crate::types::{Entry, LogId, Node, SnapshotMeta, TypeConfig, Vote};

/// A question to another member.
#[derive(Serialize, Deserialize)]
pub enum Ask {
    /// Raft's RequestVote.
    Vote(VoteRequest<TypeConfig>),
    /// Whether it would grant a vote.
    PreVote(VoteRequest<TypeConfig>),
    /// Leadership goes to another member.
    Transfer(TransferLeaderRequest<TypeConfig>),
    /// To the leader: an index that a linearizable read must have applied.
    ReadIndex,
    /// To the leader: renew a lease.
    KeepAlive(LeaseId),
    /// To the leader: how much time a lease has left.
    RemainingTtl(LeaseId),
    /// To the leader: change the membership.
    Change(Change),
    /// The chain hash at a revision, for comparison.
    Hash(i64),
    /// How this member stands.
    Status,
    /// Who belongs to the cluster.
    Members,
    /// To the leader: write these commands; they are the frame's body, each with its length.
    ProposeMany,
    /// What the program around this crate asks its like; a member that does not know the question says so.
    Other(Vec<u8>),
    /// To the leader: as `ReadIndex`, from a member that follows it; with its id and what it has voted for.
    ReadIndexOf(u64, Vote),
    /// Whether this member has voted for nobody after this.
    Confirm(Vote),
    /// Which files of a snapshot from this source are here already.
    SnapshotFiles(u64),
    /// Whether a majority has been found to have what this member found at its start.
    Affirmed,
}

/// A change of the membership.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A new member as a learner; it is promoted when it has caught up. One of the same name is replaced.
    Join(u64, Node),
    /// A new learner that stays one until promoted by hand.
    AddLearner(u64, Node),
    /// A learner becomes a voter.
    Promote(u64),
    /// A member leaves.
    Remove(u64),
    /// A member's addresses.
    Update(u64, Node),
    /// Leadership goes to this member.
    Transfer(u64),
}

/// How a member stands, as others ask.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its leader, 0 if none.
    pub leader_id: u64,
    /// Its term.
    pub term: u64,
    /// Last applied index.
    pub applied_index: u64,
    /// Its revision.
    pub revision: i64,
    /// Bytes on disk.
    pub db_size: u64,
    /// Version of its program.
    pub version: String,
}

/// Why the leader did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// Not the leader; nothing was done. Carries who leads, if known.
    #[error("this member does not lead")]
    NotLeader(Option<u64>),
    /// The outcome is unknown or the member is not able.
    #[error("{0}")]
    Failed(KvError),
    /// A membership change that is not possible, and why.
    #[error(transparent)]
    Membership(ClusterError),
}

/// What became of a command that the leader was asked to write: the entry's index and what applying it answered.
pub type Proposed = Result<(u64, Result<Applied, KvError>), Refusal>;

/// An answer.
#[derive(Serialize, Deserialize)]
pub enum Answer {
    /// To `Vote` and `PreVote`.
    Vote(VoteResponse<TypeConfig>),
    /// To `Transfer`.
    Transfer(TransferLeaderResponse<TypeConfig>),
    /// To `ReadIndex`.
    ReadIndex(Result<u64, Refusal>),
    /// To `KeepAlive` and `RemainingTtl`: seconds.
    Seconds(Result<i64, Refusal>),
    /// To `Change`: the index after which it holds.
    Changed(Result<u64, Refusal>),
    /// To `Hash`.
    Hash(Result<[u8; 32], KvError>),
    /// To `Status`.
    Status(PeerStatus),
    /// To a snapshot.
    Installed(SnapshotResponse<TypeConfig>),
    /// To `Members`.
    Members(Roll),
    /// To `ProposeMany`: what became of each.
    ProposedMany(Vec<Proposed>),
    /// To `Other`: the answer, or why there is none.
    Other(Result<Vec<u8>, String>),
    /// To `ReadIndexOf`; none if the leader cannot tell at once.
    ReadIndexOf(Option<u64>),
    /// To `Confirm`.
    Confirmed(bool),
    /// To `SnapshotFiles`.
    SnapshotFiles(Vec<String>),
    /// To `Affirmed`.
    Affirmed(bool),
}

/// Who belongs to a cluster, as one of its members knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roll {
    /// The cluster's id.
    pub cluster_id: u64,
    /// Last index that the member has applied.
    pub applied_index: u64,
    /// Id, record, and whether it votes.
    pub members: Vec<(u64, Node, bool)>,
}

/// The head of an append: all but the entries, which are the frame's body.
#[derive(Serialize, Deserialize)]
struct AppendHead {
    vote: Vote,
    prev_log_id: Option<LogId>,
    leader_commit: Option<LogId>,
}

/// The head of a snapshot.
#[derive(Serialize, Deserialize)]
pub struct SnapshotHead {
    /// The sender's vote.
    pub vote: Vote,
    /// What the snapshot holds.
    pub meta: SnapshotMeta,
}

/// Frames an append.
pub fn append_frame(to: u64, request: &AppendEntriesRequest<TypeConfig>) -> Result<peer::Frame, codec::Error> {
    let AppendEntriesRequest { vote, prev_log_id, entries, leader_commit } = request;
    let head = AppendHead { vote: *vote, prev_log_id: *prev_log_id, leader_commit: *leader_commit };
    let size: usize = entries.iter().map(|entry| codec::entry_size_bytes(entry) + 4).sum();
    let mut body = bytes::BytesMut::with_capacity(size);
    codec::put_entries(entries, &mut body)?;
    Ok(peer::Frame { to, head: codec::encode(&head)?.into(), body: body.freeze() })
}

/// Reads an append.
pub fn read_append(frame: peer::Frame) -> Result<AppendEntriesRequest<TypeConfig>, codec::Error> {
    let AppendHead { vote, prev_log_id, leader_commit } = codec::decode(&frame.head)?;
    let entries: Vec<Entry> = codec::entries(frame.body)?;
    Ok(AppendEntriesRequest { vote, prev_log_id, entries, leader_commit })
}

/// Frames a question.
pub fn frame<T: Serialize>(to: u64, head: &T, body: Bytes) -> Result<peer::Frame, codec::Error> {
    Ok(peer::Frame { to, head: codec::encode(head)?.into(), body })
}
