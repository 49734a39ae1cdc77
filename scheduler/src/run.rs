//! The scheduler on an API server: sources in, writes out.

use std::sync::Arc;
use std::time::Instant;

use keelson_client::Client;
use keelson_metrics::{Source, Sources};
use rand::RngExt;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::act::{Bind, Done, Writer};
use crate::awaited::Awaited;
use crate::config::Config;
use crate::core::{Act, Core};
use crate::intern::Interner;
use crate::metrics::Numbers;
use crate::queue::Millis;
use crate::source::{News, follow, sources};

/// Changes that wait to be taken over.
const MAX_NEWS: usize = 8192;
/// Changes that are taken over at once.
const NEWS_PER_TURN: usize = 1024;
/// Writes under way; bindings of one batch are one write.
const MAX_WRITES: usize = 64;
/// Bindings of one request; the server takes no more.
const MAX_BATCH: usize = 1000;
/// Pods that are decided on between looks at the news; the bindings among them are one batch.
const PODS_PER_TURN: usize = 128;
/// Longest sleep; a clock that jumps must not stop the queue, milliseconds.
const MAX_SLEEP: Millis = 1000;

/// Schedules until `stop` is cancelled, as a KubeSchedulerConfiguration says or by upstream's defaults.
/// Its numbers are shown by `metrics`.
pub async fn run(client: Client, config: Option<Value>, metrics: Sources, stop: CancellationToken) {
    let config = |syms: &mut Interner| match config {
        Some(value) => Config::parse(value, syms).inspect(|config| {
            if !config.idle.is_empty() {
                warn!(fields = config.idle.join(","), "fields of the scheduler configuration that change nothing here");
            }
        }),
        None => Ok(Config::standard(syms)),
    };
    let core = Core::new(config, rand::rng().random());
    match core {
        Ok(core) => drive(core, client, &metrics, stop).await,
        Err(error) => error!(%error, "the scheduler cannot start"),
    }
}

/// Drives a scheduler until `stop` is cancelled.
async fn drive(mut core: Core, client: Client, metrics: &Sources, stop: CancellationToken) {
    let numbers: Arc<Numbers> = Arc::default();
    let shown: Arc<dyn Source> = numbers.clone();
    metrics.add(&shown);
    let started = Instant::now();
    let now = || started.elapsed().as_millis() as Millis;
    let (sender, mut news) = mpsc::channel(MAX_NEWS);
    let sources = follow_all(core.looks_at_groups(), &client, sender, &stop);
    let awaited: Arc<Awaited> = Arc::default();
    let (done, mut results) = mpsc::channel(MAX_WRITES);
    let out = Out {
        writer: Writer::new(client, core.extenders().clone(), awaited.clone()),
        writes: Arc::new(Semaphore::new(MAX_WRITES)),
        done,
        numbers: numbers.clone(),
    };
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
        core.view.now = jiff::Timestamp::now().as_second();
        for one in taken.drain(..) {
            match one {
                News::Change(change) => {
                    awaited.see(&change);
                    core.apply(change, now());
                }
                News::Listed(path) => {
                    if listed.insert(path) && listed.len() == sources {
                        info!(pods = core.view.placed_count(), nodes = core.view.node_count(), "the cluster is known");
                    }
                }
            }
        }
        for one in finished.drain(..).flatten() {
            match one {
                Done::Bound(uid, success) => core.finished(&uid, success, now()),
                Done::Told(uid) => core.told(&uid, now()),
                Done::Noted => {}
                Done::Advised(uid, advice) => {
                    let began = Instant::now();
                    if let Some(act) = core.advised(&uid, advice, now()) {
                        numbers.attempted(&act, began.elapsed());
                        out.carry_out(act);
                    }
                }
                Done::Consulted(uid, answer) => {
                    let began = Instant::now();
                    if let Some(act) = core.consulted(&uid, answer, now()) {
                        numbers.attempted(&act, began.elapsed());
                        out.carry_out(act);
                    }
                }
            }
        }
        // Before all is known, decisions would be wrong.
        busy = listed.len() == sources && turn(&mut core, &out, now());
        numbers.update(&mut core);
    }
}

/// Follows all kinds; returns how many they are.
fn follow_all(groups: bool, client: &Client, sender: mpsc::Sender<News>, stop: &CancellationToken) -> usize {
    let all = sources(groups);
    for source in all {
        tokio::spawn(follow(source, client.clone(), sender.clone(), stop.clone()));
    }
    all.len()
}

/// Where decisions go.
struct Out {
    writer: Writer,
    writes: Arc<Semaphore>,
    done: mpsc::Sender<Vec<Done>>,
    numbers: Arc<Numbers>,
}

impl Out {
    /// Whether a decision can be written at once, and the bindings made so far too.
    fn has_room(&self) -> bool {
        self.writes.available_permits() > 1
    }

    fn carry_out(&self, act: Act) {
        let writer = self.writer.clone();
        self.write(|turn| async move { vec![writer.carry_out(act, turn).await] });
    }

    fn write<F: Future<Output = Vec<Done>> + Send>(
        &self,
        work: impl FnOnce(Option<OwnedSemaphorePermit>) -> F + Send + 'static,
    ) {
        let (turn, done) = (self.writes.clone().try_acquire_owned().ok(), self.done.clone());
        tokio::spawn(async move {
            let results = work(turn).await;
            // The receiver is gone only when the scheduler stops.
            let _ = done.send(results).await;
        });
    }
}

/// Decides on some pods. Whether there may be more to do at once.
fn turn(core: &mut Core, out: &Out, now: Millis) -> bool {
    let mut batch = Vec::new();
    let mut more = true;
    // Without room for its write a decision would only grow old; the next result brings us back.
    let mut decided = 0;
    // What was decided on a group together is written together.
    while decided < PODS_PER_TURN || core.has_pending() {
        decided += 1;
        let began = Instant::now();
        let next = if core.has_pending() || out.has_room() { core.next(now) } else { None };
        let Some(act) = next else {
            more = false;
            break;
        };
        out.numbers.attempted(&act, began.elapsed());
        debug!(?act, "decided");
        match act {
            Act::Bind { pod, node, promise } if out.writer.is_usual(&pod, &promise) => batch.push(Bind { pod, node }),
            act => out.carry_out(act),
        }
    }
    while !batch.is_empty() {
        let rest = batch.split_off(batch.len().min(MAX_BATCH));
        let (writer, batch) = (out.writer.clone(), std::mem::replace(&mut batch, rest));
        out.write(|turn| async move {
            let done = writer.bind_many(batch).await;
            drop(turn);
            done
        });
    }
    more
}
