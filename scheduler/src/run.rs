//! The scheduler on an API server: sources in, writes out.

use std::sync::Arc;
use std::time::Instant;

use keelson_client::Client;
use rand::RngExt;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use crate::act::carry_out;
use crate::config::{Config, ConfigError};
use crate::core::Core;
use crate::queue::Millis;
use crate::source::{News, SOURCES, follow};

/// Changes that wait to be taken over.
const MAX_NEWS: usize = 8192;
/// Changes that are taken over at once.
const NEWS_PER_TURN: usize = 2048;
/// Writes under way.
const MAX_WRITES: usize = 256;
/// Pods that are decided on between looks at the news.
const PODS_PER_TURN: usize = 64;
/// Longest sleep; a clock that jumps must not stop the queue, milliseconds.
const MAX_SLEEP: Millis = 1000;

/// Schedules until `stop` is cancelled.
pub async fn run(client: Client, stop: CancellationToken) {
    let core = Core::new(|syms| Ok::<_, ConfigError>(Config::standard(syms)), rand::rng().random());
    match core {
        Ok(core) => drive(core, client, stop).await,
        Err(error) => error!(%error, "the scheduler cannot start"),
    }
}

/// Drives a scheduler until `stop` is cancelled.
async fn drive(mut core: Core, client: Client, stop: CancellationToken) {
    let started = Instant::now();
    let now = || started.elapsed().as_millis() as Millis;
    let (sender, mut news) = mpsc::channel(MAX_NEWS);
    for source in SOURCES {
        tokio::spawn(follow(source, client.clone(), sender.clone(), stop.clone()));
    }
    drop(sender);
    let writes = Arc::new(Semaphore::new(MAX_WRITES));
    let (done, mut results) = mpsc::channel(MAX_WRITES);
    let mut listed = std::collections::HashSet::new();
    let (mut taken, mut finished) = (Vec::new(), Vec::new());
    let mut busy = false;
    loop {
        let sleep = if busy { 0 } else { core.queue.next_change().map_or(MAX_SLEEP, |at| at.saturating_sub(now())) };
        tokio::select! {
            () = stop.cancelled() => return,
            count = news.recv_many(&mut taken, NEWS_PER_TURN) => if count == 0 { return },
            _ = results.recv_many(&mut finished, MAX_WRITES) => {}
            () = tokio::time::sleep(std::time::Duration::from_millis(sleep.min(MAX_SLEEP))), if !busy => {}
            () = tokio::task::yield_now(), if busy => {}
        }
        for one in taken.drain(..) {
            match one {
                News::Change(change) => core.apply(change, now()),
                News::Listed(path) => {
                    if listed.insert(path) && listed.len() == SOURCES.len() {
                        info!(pods = core.view.placed_count(), nodes = core.view.node_count(), "the cluster is known");
                    }
                }
            }
        }
        for (uid, success) in finished.drain(..) {
            let uid: Arc<str> = uid;
            core.finished(&uid, success, now());
        }
        // Before all is known, decisions would be wrong.
        busy = listed.len() == SOURCES.len() && turn(&mut core, &client, &writes, &done, now());
    }
}

/// Decides on some pods. Whether there may be more to do at once.
fn turn(
    core: &mut Core,
    client: &Client,
    writes: &Arc<Semaphore>,
    done: &mpsc::Sender<(Arc<str>, bool)>,
    now: Millis,
) -> bool {
    for _ in 0..PODS_PER_TURN {
        // Without room for its write, a decision would only grow old; the next result brings us back.
        let Ok(permit) = writes.clone().try_acquire_owned() else { return false };
        let Some(act) = core.next(now) else { return false };
        debug!(?act, "decided");
        let (client, done) = (client.clone(), done.clone());
        tokio::spawn(async move {
            let result = carry_out(&client, act).await;
            drop(permit);
            if let Some(result) = result {
                // The receiver is gone only when the scheduler stops.
                let _ = done.send(result).await;
            }
        });
    }
    true
}
