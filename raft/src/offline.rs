//! What is done to a member's directory while the member is stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use keelson_store::StateMachine;
use openraft::Membership;
use openraft::storage::RaftLogStorage;

use crate::codec;
use crate::limits::APPLY_BYTES;
use crate::log::Log;
use crate::machine::{Machine, write_meta};
use crate::setup::OpenError;
use crate::types::{LogId, Node, StoredMembership, Vote};

fn raft(error: impl std::fmt::Display) -> OpenError {
    OpenError::Raft(error.to_string())
}

/// A membership in which all of these vote.
fn voters(members: BTreeMap<u64, Node>) -> Result<Membership<u64, Node>, OpenError> {
    let ids: BTreeSet<u64> = members.keys().copied().collect();
    Membership::new(vec![ids], members).map_err(raft)
}

/// Makes a member that was stopped the only one of its cluster. Everything in its log is applied, also what no majority
/// has confirmed: the others are gone for good.
pub async fn force_new_cluster(dir: &Path, id: u64, node: Node) -> Result<(), OpenError> {
    let store = Arc::new(StateMachine::open(&dir.join("state"), keelson_store::Options::default())?);
    let mut log = Log::open(&dir.join("log")).map_err(OpenError::Log)?;
    let mut machine = Machine::new(store.clone(), &dir.join("snapshots")).map_err(OpenError::Log)?;
    let reader = log.get_log_reader().await;
    loop {
        let entries = reader.entries(store.applied().0 + 1.., APPLY_BYTES).map_err(OpenError::Log)?;
        if entries.is_empty() {
            break;
        }
        machine.replay(entries).map_err(OpenError::Log)?;
    }
    let last = log.get_log_state().await.map_err(OpenError::Log)?.last_log_id;
    let Some(last) = last else { return Err(raft("this member has never belonged to a cluster")) };
    let next = LogId::new(last.leader_id, last.index + 1);
    settle(&store, &mut log, next, voters(BTreeMap::from([(id, node)]))?).await
}

/// Makes the state in a member's directory the beginning of a new cluster of these members, each of which is seeded with
/// the same state.
pub async fn seed(dir: &Path, members: BTreeMap<u64, Node>) -> Result<(), OpenError> {
    let store = StateMachine::open(&dir.join("state"), keelson_store::Options::default())?;
    let mut log = Log::open(&dir.join("log")).map_err(OpenError::Log)?;
    let first = codec::log_id(1, store.applied().0 + 1);
    let vote = Vote::new(1, *members.keys().next().ok_or_else(|| raft("a cluster needs a member"))?);
    log.save_vote(&vote).await.map_err(OpenError::Log)?;
    settle(&store, &mut log, first, voters(members)?).await
}

/// Records that everything up to `log_id` is applied, with this membership, and empties the log.
async fn settle(
    store: &StateMachine,
    log: &mut Log,
    log_id: LogId,
    membership: Membership<u64, Node>,
) -> Result<(), OpenError> {
    let meta = write_meta(log_id, &StoredMembership::new(Some(log_id), membership)).map_err(OpenError::Log)?;
    store.apply(&[keelson_store::Entry { index: log_id.index, meta, commands: Vec::new() }])?;
    store.flush()?;
    log.purge(log_id).await.map_err(OpenError::Log)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A seeded directory opens with its members, and can be made one member's own.
    #[tokio::test]
    async fn a_seeded_directory_is_a_cluster() -> Result<(), OpenError> {
        let dir = tempfile::tempdir().map_err(raft)?;
        let members = BTreeMap::from([(1, Node::default()), (2, Node::default())]);
        seed(dir.path(), members).await?;
        let alone = Node { name: "alone".into(), ..Node::default() };
        force_new_cluster(dir.path(), 2, alone).await?;
        let store = StateMachine::open(&dir.path().join("state"), keelson_store::Options::default())?;
        assert_eq!(store.applied().0, 2);
        let mut log = Log::open(&dir.path().join("log")).map_err(OpenError::Log)?;
        let state = log.get_log_state().await.map_err(OpenError::Log)?;
        assert_eq!(state.last_log_id.map(|log_id| log_id.index), Some(2));
        assert!(log.get_log_reader().await.entries(0.., 1).map_err(OpenError::Log)?.is_empty());
        Ok(())
    }

    #[tokio::test]
    async fn an_empty_directory_is_no_cluster() -> Result<(), OpenError> {
        let dir = tempfile::tempdir().map_err(raft)?;
        assert!(force_new_cluster(dir.path(), 1, Node::default()).await.is_err());
        Ok(())
    }
}
