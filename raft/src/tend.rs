//! What a replica does by itself: takes snapshots that are due; while it leads, keeps the time of leases; rests where it is
//! alone.

use std::sync::Arc;
use std::time::Duration;

use keelson_store::Command;
use openraft::async_runtime::WatchReceiver;
use openraft::{ReadPolicy, ServerState};

use crate::limits::LEASE_TICK_MILLIS;
use crate::read_index::same;
use crate::replica::Inner;
use crate::types::{Part, Vote};

/// Begins with all of it; snapshots whenever one is `due`.
pub(crate) fn begin(inner: &Arc<Inner>, due: Arc<tokio::sync::Notify>) {
    crate::task::spawn(lead(inner.clone()));
    crate::task::spawn(rest(inner.clone()));
    crate::task::spawn(snapshots(inner.clone(), due));
}

/// Takes a snapshot whenever one is due; the log before it may go then. Not while it is not known whose history is right:
/// with entries of the log a member that lags can say it, with a snapshot it can only believe.
async fn snapshots(inner: Arc<Inner>, due: Arc<tokio::sync::Notify>) {
    loop {
        tokio::select! {
            () = inner.stop.cancelled() => return,
            () = due.notified() => {}
        }
        tokio::select! {
            () = inner.stop.cancelled() => return,
            () = inner.standing.trusted() => {}
        }
        if let Err(error) = inner.raft.trigger().snapshot().await {
            tracing::warn!(%error, "no snapshot can be taken");
            return;
        }
    }
}

/// Stops Raft's clock, fifty ticks a second, while it has nothing to tell: a leader without any other member sends no
/// heartbeats and waits for no election. It leads for as long as it is alone, whatever the time.
async fn rest(inner: Arc<Inner>) {
    // Not all metrics: those change with every write.
    let mut metrics = inner.raft.server_metrics();
    loop {
        let alone = {
            let metrics = metrics.borrow_and_update();
            metrics.state == ServerState::Leader && metrics.membership_config.nodes().all(|(id, _)| *id == inner.id)
        };
        inner.raft.runtime_config().tick(!alone);
        tokio::select! {
            () = inner.stop.cancelled() => return,
            changed = metrics.changed() => if changed.is_err() { return },
        }
    }
}

/// Follows whether this member leads; while it does, keeps the time of leases.
async fn lead(inner: Arc<Inner>) {
    // Not all metrics: those change with every write.
    let mut metrics = inner.raft.server_metrics();
    let mut tick = tokio::time::interval(Duration::from_millis(LEASE_TICK_MILLIS));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // The vote with which this member leads. It may have lost the lead and won it again between two looks.
    let mut led: Option<Vote> = None;
    let mut leader = None;
    loop {
        let (elected, vote, leads) = {
            let metrics = metrics.borrow_and_update();
            (metrics.state == ServerState::Leader, metrics.vote, metrics.current_leader)
        };
        if leads.is_some() && leads != leader {
            leader = leads;
            inner.figures.leader_changed();
        }
        if elected && !led.is_some_and(|led| same(&led, &vote)) {
            // Leases may have been renewed with the former leader: they run only once all it wrote is here.
            if inner.raft.ensure_linearizable(ReadPolicy::ReadIndex).await.is_ok() {
                inner.leases.lead(&inner.store.view(), inner.tuning.election_max_millis);
                inner.confirm_leading(vote);
                led = Some(vote);
                inner.leading.send_replace(true);
                tracing::info!(member = format!("{:x}", inner.id), "this member leads");
            }
        } else if !elected && led.is_some() {
            inner.leases.resign();
            inner.confirmed.set(None);
            led = None;
            inner.leading.send_replace(false);
            tracing::info!(member = format!("{:x}", inner.id), "this member no longer leads");
        }
        tokio::select! {
            () = inner.stop.cancelled() => break,
            changed = metrics.changed() => if changed.is_err() { break },
            _ = tick.tick(), if elected => expire(&inner).await,
        }
    }
    inner.leases.resign();
    inner.confirmed.set(None);
    inner.leading.send_replace(false);
}

/// Revokes expired leases and records the remaining time of long ones.
async fn expire(inner: &Inner) {
    let _order = inner.checkpointing.lock().await;
    let due = inner.leases.tick(&inner.store.view());
    if due.expired.is_empty() && due.checkpoints.is_empty() {
        return;
    }
    if inner.lease_here().await.is_err() {
        return;
    }
    let mut commands: Vec<_> = due.expired.into_iter().map(|id| Command::LeaseRevoke { id }).collect();
    if !due.checkpoints.is_empty() {
        commands.push(Command::LeaseCheckpoint(due.checkpoints));
    }
    let parts = commands.into_iter().filter_map(|command| Part::new(command).ok());
    for written in futures::future::join_all(parts.map(|part| inner.write_here(part.into()))).await {
        // The next ticks try again.
        if let Err(error) = written {
            tracing::debug!(%error, "an expired lease is still there");
        }
    }
}
