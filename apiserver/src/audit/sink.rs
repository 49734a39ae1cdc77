//! Where events go: a log that a thread of its own writes, a webhook that a task posts to, each behind a bounded buffer.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use super::event::Event;
use super::log::Target;
use crate::remote::Remote;

/// Events that may wait to be written.
const BUFFER: usize = 10_000;
/// Tries to post a batch.
const POST_TRIES: u32 = 5;
/// How long one try may take.
const POST_PATIENCE: Duration = Duration::from_secs(30);

/// How events are handed over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// A request does not wait; when the buffer is full events are lost and counted.
    Batch,
    /// A request waits until its events are written.
    #[default]
    Blocking,
    /// The same, and a request whose beginning cannot be written fails.
    BlockingStrict,
}

impl Mode {
    /// As flags name it.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "batch" => Ok(Self::Batch),
            "blocking" => Ok(Self::Blocking),
            "blocking-strict" => Ok(Self::BlockingStrict),
            other => Err(format!("invalid audit mode {other:?}: must be one of batch, blocking, blocking-strict")),
        }
    }
}

/// The webhook, and how it is used.
#[derive(Clone, Debug)]
pub struct WebhookSettings {
    /// kubeconfig of the service.
    pub kubeconfig: PathBuf,
    /// How events are handed over.
    pub mode: Mode,
    /// Pause before a failed post is tried again; it grows by half each time.
    pub backoff: Duration,
    /// Most events of a batch.
    pub max_batch: usize,
    /// Longest that an event waits for others.
    pub max_wait: Duration,
}

/// An event on its way; who waits for it is told how it went.
struct Item {
    text: Arc<Value>,
    line: String,
    done: Option<oneshot::Sender<Result<(), String>>>,
}

/// A place that events go to.
pub struct Sink {
    mode: Mode,
    /// Whether the place takes lines, and in which form.
    lines: Option<bool>,
    queue: mpsc::Sender<Item>,
    lost: AtomicU64,
}

impl Sink {
    /// A log.
    pub fn log(mut target: Target, legacy: bool, mode: Mode) -> Self {
        let (queue, mut items) = mpsc::channel::<Item>(BUFFER);
        std::thread::spawn(move || {
            while let Some(item) = items.blocking_recv() {
                // The mark of a flush has no line.
                let result = if item.line.is_empty() { Ok(()) } else { target.line(&item.line) };
                let result = result.map_err(|e| e.to_string());
                if let Err(why) = &result {
                    tracing::error!(%why, "an audit event could not be written");
                }
                if let Some(done) = item.done {
                    let _ = done.send(result);
                }
            }
        });
        Self { mode, lines: Some(legacy), queue, lost: AtomicU64::new(0) }
    }

    /// A webhook; to be called inside a runtime.
    pub fn webhook(settings: &WebhookSettings) -> Result<Self, String> {
        let remote = Remote::load(&settings.kubeconfig).map_err(|why| format!("audit webhook: {why}"))?;
        let (queue, items) = mpsc::channel(BUFFER);
        tokio::spawn(post_all(remote, items, settings.clone()));
        Ok(Self { mode: settings.mode, lines: None, queue, lost: AtomicU64::new(0) })
    }

    fn item(&self, event: &Event, done: Option<oneshot::Sender<Result<(), String>>>) -> Item {
        match self.lines {
            Some(legacy) => {
                Item { text: Arc::default(), line: if legacy { event.legacy() } else { event.json() }, done }
            }
            None => Item { text: Arc::new(json!(event)), line: String::new(), done },
        }
    }

    /// Hands an event over without waiting.
    pub fn offer(&self, event: &Event) {
        if self.queue.try_send(self.item(event, None)).is_err() {
            let lost = self.lost.fetch_add(1, Ordering::Relaxed) + 1;
            // Told for the 1st, 2nd, 4th, 8th ...: the log is not flooded too.
            if lost.is_power_of_two() {
                tracing::error!(lost, "the audit buffer is full: events are lost");
            }
        }
    }

    /// Hands an event over as the mode says. An error means that the request must not go on.
    pub async fn write(&self, event: &Event) -> Result<(), String> {
        if self.mode == Mode::Batch {
            self.offer(event);
            return Ok(());
        }
        let (done, result) = oneshot::channel();
        let gone = || "the audit log's writer has ended".to_owned();
        let sent = self.queue.send(self.item(event, Some(done))).await.map_err(|_| gone());
        let result = match sent {
            Ok(()) => result.await.unwrap_or_else(|_| Err(gone())),
            Err(why) => Err(why),
        };
        match self.mode {
            Mode::BlockingStrict => result,
            _ => Ok(()),
        }
    }

    /// Waits until what was handed over is written.
    pub async fn flush(&self, patience: Duration) {
        let (done, result) = oneshot::channel();
        let mark = Item { text: Arc::default(), line: String::new(), done: Some(done) };
        let flushed = async {
            if self.queue.send(mark).await.is_ok() {
                let _ = result.await;
            }
        };
        if tokio::time::timeout(patience, flushed).await.is_err() {
            tracing::warn!("audit events were left unwritten");
        }
    }
}

async fn post_all(remote: Remote, mut items: mpsc::Receiver<Item>, settings: WebhookSettings) {
    while let Some(first) = items.recv().await {
        let mut batch = vec![first];
        let deadline = tokio::time::Instant::now() + settings.max_wait;
        // Who waits for an event is not kept waiting for others.
        while batch.len() < settings.max_batch && batch.iter().all(|item| item.done.is_none()) {
            match tokio::time::timeout_at(deadline, items.recv()).await {
                Ok(Some(item)) => batch.push(item),
                _ => break,
            }
        }
        let events: Vec<&Value> = batch.iter().map(|item| &*item.text).filter(|text| !text.is_null()).collect();
        let result = if events.is_empty() { Ok(()) } else { post(&remote, &events, &settings).await };
        if let Err(why) = &result {
            tracing::error!(%why, events = events.len(), "audit events could not be posted and are lost");
        }
        for done in batch.into_iter().filter_map(|item| item.done) {
            let _ = done.send(result.clone());
        }
    }
}

async fn post(remote: &Remote, events: &[&Value], settings: &WebhookSettings) -> Result<(), String> {
    let list = json!({"kind": "EventList", "apiVersion": "audit.k8s.io/v1", "metadata": {}, "items": events});
    let mut pause = settings.backoff;
    let mut last = String::new();
    for attempt in 0..POST_TRIES {
        if attempt > 0 {
            tokio::time::sleep(pause).await;
            pause = pause.mul_f32(1.5);
        }
        match remote.post(&list, POST_PATIENCE).await {
            Ok(_) => return Ok(()),
            Err(why) => last = why,
        }
    }
    Err(last)
}
