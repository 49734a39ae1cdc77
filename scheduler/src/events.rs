//! Events about pods. They are written behind the decisions, a few at a time; what does not fit is lost and counted, since an
//! event must not hold up what it tells of.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use k8s_openapi::api::core::v1::Event;
use keelson_client::Client;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use crate::config::DEFAULT_NAME;
use crate::view::PodInfo;

/// Events that wait to be written.
const MAX_WAITING: usize = 32_768;
/// Events that are written at once.
const WRITERS: usize = 8;
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
    lost: Arc<AtomicU64>,
}

impl Events {
    /// Starts writing; ends when all copies of the result are gone.
    pub fn start(client: &Client) -> Self {
        let (sender, receiver) = mpsc::channel(MAX_WAITING);
        let receiver = Arc::new(tokio::sync::Mutex::new(receiver));
        for _ in 0..WRITERS {
            tokio::spawn(write(client.clone(), receiver.clone()));
        }
        Self { sender, lost: Arc::default() }
    }

    /// Tells of a pod.
    pub fn tell(&self, note: Note) {
        if self.sender.try_send(note).is_err() && self.lost.fetch_add(1, Ordering::Relaxed) == 0 {
            warn!(MAX_WAITING, "events come faster than they are written; some are lost");
        }
    }
}

async fn write(client: Client, receiver: Arc<tokio::sync::Mutex<mpsc::Receiver<Note>>>) {
    loop {
        let Some(note) = receiver.lock().await.recv().await else { return };
        let path = format!("/api/v1/namespaces/{}/events", note.pod.class.namespace);
        let body = object(&note).to_string().into();
        let result = client.request::<IgnoredAny>(http::Method::POST, &path, Some("application/json"), body).await;
        if let Err(error) = result {
            debug!(pod = note.pod.full_name(), %error, note.reason, "the event is lost");
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

fn object(note: &Note) -> Value {
    let Note { pod, message, time, .. } = note;
    let message = shortened(message);
    let reporter = if pod.class.scheduler.is_empty() { DEFAULT_NAME } else { &*pod.class.scheduler };
    let mut value = json!({
        "apiVersion": "v1", "kind": <Event as k8s_openapi::Resource>::KIND,
        "metadata": {"name": format!("{}.{:x}", pod.name, time.as_nanosecond()), "namespace": &*pod.class.namespace},
        "involvedObject": reference(pod), "type": note.kind, "reason": note.reason, "message": message,
        "action": note.action, "eventTime": time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string(),
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
