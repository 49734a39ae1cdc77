//! A leader whose process has ended is replaced at once: its connections break, and nobody listens at its address any
//! more. A leader that is only silent is left to the timers.
//!
//! Invariant: this only begins elections earlier. Who may win them is Raft's matter, and a leader that still runs refuses
//! no connections.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::raft::TransferLeaderRequest;
use tokio::net::TcpStream;

use crate::limits::{SUSPICION_PROBE_MILLIS, SUSPICION_PROBES, SUSPICION_STAGGER_MILLIS};
use crate::peer_tls::Target;
use crate::replica::Inner;

/// Looks at one suspicion at a time.
#[derive(Default)]
pub struct Suspicion(AtomicBool);

/// A connection from a member has ended: if it was the leader's and its process is gone, there is an election.
pub async fn connection_ended(inner: Arc<Inner>) {
    if inner.stopping().is_cancelled() || inner.suspicion.0.swap(true, Ordering::AcqRel) {
        return;
    }
    replace(&inner).await;
    inner.suspicion.0.store(false, Ordering::Release);
}

async fn replace(inner: &Inner) {
    let (leader, vote) = {
        let metrics = inner.server.borrow_watched();
        (metrics.current_leader, metrics.vote)
    };
    let Some(leader) = leader.filter(|leader| *leader != inner.id) else { return };
    let members = inner.members();
    let Some((_, node, _)) = members.iter().find(|(id, ..)| *id == leader) else { return };
    let gone = match inner.network.wire() {
        Some(wire) => wire.refuses(&node.peer_address).await,
        None => gone(&Target::list(&node.peer_address)).await,
    };
    if !gone {
        return;
    }
    let heirs: Vec<u64> = members.iter().filter(|(id, _, votes)| *votes && *id != leader).map(|(id, ..)| *id).collect();
    let (Some(first), Some(rank)) = (heirs.first(), heirs.iter().position(|id| *id == inner.id)) else { return };
    tracing::info!(leader = format!("{leader:x}"), "the leader's process has ended");
    // Ends the lease here, so that the first heir gets this member's vote; and lets that one stand.
    let request = TransferLeaderRequest::new(vote, *first, None);
    if let Err(error) = inner.raft.handle_transfer_leader(request).await {
        tracing::warn!(%error, "no election can be held");
    }
    // The first one may lack entries that another has.
    for _ in 0..rank + 1 {
        tokio::time::sleep(Duration::from_millis(SUSPICION_STAGGER_MILLIS)).await;
    }
    let led = inner.server.borrow_watched().current_leader.is_some_and(|now| now != leader);
    if !led && let Err(error) = inner.raft.trigger().elect(true).await {
        tracing::warn!(%error, "no election can be held");
    }
}

/// Whether nobody listens at a member's addresses, though their host answers.
async fn gone(targets: &[Target]) -> bool {
    for probe in 0..SUSPICION_PROBES {
        let limit = Duration::from_millis(SUSPICION_PROBE_MILLIS);
        if probe > 0 {
            // A process that ends closes one socket after the other.
            tokio::time::sleep(limit / 10).await;
        }
        let mut refused = !targets.is_empty();
        for target in targets {
            let tried = tokio::time::timeout(limit, TcpStream::connect(&target.authority)).await;
            refused &= matches!(&tried, Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused);
        }
        if refused {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_refusing_host_is_gone() -> std::io::Result<()> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        assert!(!gone(&Target::list(&address)).await, "somebody listens");
        drop(listener);
        assert!(gone(&Target::list(&address)).await);
        assert!(!gone(&[]).await);
        Ok(())
    }
}
