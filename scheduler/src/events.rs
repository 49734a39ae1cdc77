//! Events about pods. They are written behind the decisions, a few at a time; what does not fit is lost and counted, since an
//! event must not hold up what it tells of.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use k8s_openapi::api::core::v1::Event;
use keelson_client::{Client, Error, PatchType};
use parking_lot::Mutex;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use crate::config::DEFAULT_NAME;
use crate::series::{Decision, Series, Update, micro_time};
use crate::view::PodInfo;

/// Events that wait to be written.
const MAX_WAITING: usize = 32_768;
/// Events that are written at once.
const WRITERS: usize = 8;
/// How often events that are over are forgotten.
const FINISH: Duration = Duration::from_secs(6 * 60);
/// How often series are written again: events expire after an hour.
const REFRESH: Duration = Duration::from_secs(30 * 60);
/// Longest message of an event, bytes.
const MAX_MESSAGE_BYTES: usize = 1024;
/// Where a message was cut.
const CUT: &str = " ...";

/// What is told of a pod.
pub struct Note {
    /// The pod it is about.
    pub pod: Arc<PodInfo>,
    /// The pod that made it happen, if that is another.
    pub related: Option<Arc<PodInfo>>,
    /// `Normal` or `Warning`.
    pub kind: &'static str,
    /// Reason, one word.
    pub reason: &'static str,
    /// What was tried.
    pub action: &'static str,
    /// For people.
    pub message: String,
    /// When it happened.
    pub time: jiff::Timestamp,
}

/// Takes events.
#[derive(Clone)]
pub struct Events {
    sender: mpsc::Sender<Note>,
    /// What keeps the series going: it ends with the last copy.
    _series: Arc<Mutex<Series>>,
    lost: Arc<AtomicU64>,
}

impl Events {
    /// Starts writing; ends when all copies of the result are gone.
    pub fn start(client: &Client) -> Self {
        let (sender, receiver) = mpsc::channel(MAX_WAITING);
        let receiver = Arc::new(tokio::sync::Mutex::new(receiver));
        let series: Arc<Mutex<Series>> = Arc::default();
        for _ in 0..WRITERS {
            // The series are those of who tells: they end with the last copy of the result.
            tokio::spawn(write(client.clone(), receiver.clone(), Arc::downgrade(&series)));
        }
        tokio::spawn(keep(client.clone(), Arc::downgrade(&series), FINISH, |series| {
            series.finish(jiff::Timestamp::now())
        }));
        tokio::spawn(keep(client.clone(), Arc::downgrade(&series), REFRESH, Series::refresh));
        Self { sender, _series: series, lost: Arc::default() }
    }

    /// Tells of a pod.
    pub fn tell(&self, note: Note) {
        if self.sender.try_send(note).is_err() && self.lost.fetch_add(1, Ordering::Relaxed) == 0 {
            warn!(MAX_WAITING, "events come faster than they are written; some are lost");
        }
    }
}

async fn write(client: Client, receiver: Arc<tokio::sync::Mutex<mpsc::Receiver<Note>>>, series: Weak<Mutex<Series>>) {
    loop {
        let Some(note) = receiver.lock().await.recv().await else { return };
        let Some(series) = series.upgrade() else { return };
        let decision = series.lock().happened(&note);
        let result = match decision {
            Decision::Nothing => continue,
            Decision::New(name) => create(&client, &note, &name).await,
            Decision::Series(update) => match patch(&client, &update).await {
                // It expired: it is written anew.
                Err(error) if error.is_not_found() => create(&client, &note, &update.name).await,
                result => result,
            },
        };
        if let Err(error) = result {
            series.lock().lost(&note);
            debug!(pod = note.pod.full_name(), %error, note.reason, "the event is lost");
        }
    }
}

async fn create(client: &Client, note: &Note, name: &str) -> Result<(), Error> {
    let path = format!("/api/v1/namespaces/{}/events", note.pod.class.namespace);
    let body = object(note, name).to_string().into();
    client.request::<IgnoredAny>(http::Method::POST, &path, Some("application/json"), body).await.map(drop)
}

async fn patch(client: &Client, update: &Update) -> Result<(), Error> {
    let path = format!("/api/v1/namespaces/{}/events/{}", update.namespace, update.name);
    let (kind, body) = (PatchType::Strategic.content_type(), update.patch.to_string().into());
    client.request::<IgnoredAny>(http::Method::PATCH, &path, Some(kind), body).await.map(drop)
}

/// Writes from time to time what `due` says of the series, until nobody tells any more.
async fn keep(client: Client, series: Weak<Mutex<Series>>, every: Duration, due: fn(&mut Series) -> Vec<Update>) {
    loop {
        tokio::time::sleep(every).await;
        let Some(series) = series.upgrade() else { return };
        let updates = due(&mut series.lock());
        for update in updates {
            if let Err(error) = patch(&client, &update).await {
                debug!(%error, event = &*update.name, "the series is not written");
            }
        }
    }
}

fn reference(pod: &PodInfo) -> Value {
    json!({
        "kind": "Pod", "apiVersion": "v1", "namespace": &*pod.class.namespace, "name": &*pod.name,
        "uid": &*pod.uid, "resourceVersion": &*pod.version,
    })
}

/// A message that is not too long for an event.
fn shortened(message: &str) -> std::borrow::Cow<'_, str> {
    if message.len() <= MAX_MESSAGE_BYTES {
        return message.into();
    }
    let mut end = MAX_MESSAGE_BYTES - CUT.len();
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{CUT}", &message[..end]).into()
}

fn object(note: &Note, name: &str) -> Value {
    let Note { pod, message, time, .. } = note;
    let message = shortened(message);
    let reporter = if pod.class.scheduler.is_empty() { DEFAULT_NAME } else { &*pod.class.scheduler };
    let mut value = json!({
        "apiVersion": "v1", "kind": <Event as k8s_openapi::Resource>::KIND,
        "metadata": {"name": name, "namespace": &*pod.class.namespace},
        "involvedObject": reference(pod), "type": note.kind, "reason": note.reason, "message": message,
        "action": note.action, "eventTime": micro_time(*time),
        "reportingComponent": reporter, "reportingInstance": reporter,
        "source": {}, "firstTimestamp": null, "lastTimestamp": null,
    });
    if let Some(related) = &note.related {
        value["related"] = reference(related);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_messages_are_cut() {
        let whole = "x".repeat(MAX_MESSAGE_BYTES);
        assert_eq!(shortened(&whole), whole);
        let long = "\u{e4}".repeat(MAX_MESSAGE_BYTES);
        let cut = shortened(&long);
        assert!(cut.ends_with("\u{e4} ...") && (1023..=1024).contains(&cut.len()), "{}", cut.len());
    }
}
