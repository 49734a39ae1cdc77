//! Events: what a component tells people about an object. A repeated event counts up instead of being written anew, and an
//! object that causes too many is limited, as upstream's correlator does.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use k8s_openapi::Resource;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::debug;

use crate::api::{Client, Object, PatchType};

/// Events that may wait to be written; further ones are dropped.
const QUEUE_EVENTS: usize = 4096;
/// Events remembered for counting.
const REMEMBERED_EVENTS: usize = 4096;
/// Events that one object may cause at once, and how often one more.
const BURST_EVENTS: f64 = 25.0;
const REFILL: Duration = Duration::from_secs(300);
/// So many different messages of one reason about one object are told; further ones are put together.
const SIMILAR_EVENTS: usize = 10;
/// As long as no more than this passes from one to the next.
const SIMILAR_WITHIN: Duration = Duration::from_secs(600);
/// What precedes the newest of those that are put together.
const COMBINED: &str = "(combined from similar events): ";

/// Writes events of one component.
#[derive(Clone)]
pub struct Recorder {
    sender: mpsc::Sender<Told>,
}

struct Told {
    about: ObjectReference,
    kind: &'static str,
    reason: String,
    message: String,
}

/// What makes an event the same as an earlier one.
#[derive(PartialEq, Eq, Hash, Clone)]
struct Sameness {
    similar: Similarity,
    /// None for those that are put together.
    message: Option<String>,
}

/// What makes events alike that differ in their messages.
#[derive(PartialEq, Eq, Hash, Clone)]
struct Similarity {
    uid: String,
    name: String,
    kind: &'static str,
    reason: String,
}

/// Messages of events that are alike.
struct Messages {
    told: HashSet<String>,
    at: Instant,
}

struct Written {
    name: String,
    count: i32,
    at: Instant,
}

/// What an event is about.
pub fn reference<K: Object>(object: &K) -> ObjectReference {
    let metadata = object.metadata();
    ObjectReference {
        api_version: Some(K::API_VERSION.into()),
        kind: Some(<K as Resource>::KIND.into()),
        namespace: metadata.namespace.clone(),
        name: metadata.name.clone(),
        uid: metadata.uid.clone(),
        resource_version: metadata.resource_version.clone(),
        field_path: None,
    }
}

impl Recorder {
    /// A recorder whose events say that they come from `component`; its task ends with the last clone of it.
    pub fn start(client: &Client, component: &str) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE_EVENTS);
        let writer = Writer {
            client: client.clone(),
            component: component.to_owned(),
            written: HashMap::new(),
            budget: HashMap::new(),
            similar: HashMap::new(),
        };
        tokio::spawn(writer.run(receiver));
        Self { sender }
    }

    /// Tells of something ordinary.
    pub fn normal<K: Object>(&self, object: &K, reason: &str, message: impl Into<String>) {
        self.tell(reference(object), "Normal", reason, message.into());
    }

    /// Tells of something that went wrong.
    pub fn warning<K: Object>(&self, object: &K, reason: &str, message: impl Into<String>) {
        self.tell(reference(object), "Warning", reason, message.into());
    }

    /// Tells of an object that is only referred to.
    pub fn tell(&self, about: ObjectReference, kind: &'static str, reason: &str, message: String) {
        // Events are best effort: rather one fewer than a controller that waits.
        if self.sender.try_send(Told { about, kind, reason: reason.into(), message }).is_err() {
            debug!(reason, "too many events wait; one is dropped");
        }
    }
}

struct Writer {
    client: Client,
    component: String,
    written: HashMap<Sameness, Written>,
    budget: HashMap<String, (f64, Instant)>,
    similar: HashMap<Similarity, Messages>,
}

impl Writer {
    async fn run(mut self, mut receiver: mpsc::Receiver<Told>) {
        while let Some(mut told) = receiver.recv().await {
            let same = self.combine(&mut told, Instant::now());
            if !self.within_budget(told.about.uid.as_deref().unwrap_or_default(), Instant::now()) {
                continue;
            }
            if let Err(error) = self.write(told, same).await {
                debug!(%error, "an event could not be written");
            }
        }
    }

    /// Puts an event together with others of its reason once there are many of them; tells which event it repeats then.
    fn combine(&mut self, told: &mut Told, now: Instant) -> Sameness {
        let similar = Similarity {
            uid: told.about.uid.clone().unwrap_or_default(),
            name: told.about.name.clone().unwrap_or_default(),
            kind: told.kind,
            reason: told.reason.clone(),
        };
        if self.similar.len() >= REMEMBERED_EVENTS {
            self.similar.retain(|_, messages| now.duration_since(messages.at) <= SIMILAR_WITHIN);
            if self.similar.len() >= REMEMBERED_EVENTS {
                self.similar.clear();
            }
        }
        let fresh = || Messages { told: HashSet::new(), at: now };
        let messages = self.similar.entry(similar.clone()).or_insert_with(fresh);
        if now.duration_since(messages.at) > SIMILAR_WITHIN {
            *messages = fresh();
        }
        messages.at = now;
        messages.told.insert(told.message.clone());
        if messages.told.len() < SIMILAR_EVENTS {
            return Sameness { similar, message: Some(told.message.clone()) };
        }
        messages.told.remove(&told.message);
        told.message.insert_str(0, COMBINED);
        Sameness { similar, message: None }
    }

    /// A token bucket for each object.
    fn within_budget(&mut self, uid: &str, now: Instant) -> bool {
        if self.budget.len() >= REMEMBERED_EVENTS {
            let whole = REFILL.mul_f64(BURST_EVENTS);
            self.budget.retain(|_, (_, at)| now.duration_since(*at) < whole);
            if self.budget.len() >= REMEMBERED_EVENTS {
                self.budget.clear();
            }
        }
        let (tokens, at) = self.budget.entry(uid.to_owned()).or_insert((BURST_EVENTS, now));
        let refilled = now.duration_since(*at).as_secs_f64() / REFILL.as_secs_f64();
        *tokens = (*tokens + refilled).min(BURST_EVENTS);
        *at = now;
        if *tokens < 1.0 {
            return false;
        }
        *tokens -= 1.0;
        true
    }

    async fn write(&mut self, told: Told, same: Sameness) -> Result<(), crate::Error> {
        let namespace = told.about.namespace.clone().filter(|n| !n.is_empty()).unwrap_or_else(|| "default".into());
        let now = jiff::Timestamp::now();
        let api = self.client.namespaced::<Event>(&namespace);
        let time = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        if let Some(before) = self.written.get_mut(&same) {
            let mut patch = json!({"count": before.count + 1, "lastTimestamp": time});
            if same.message.is_none() {
                patch["message"] = told.message.as_str().into();
            }
            match api.patch(&before.name, None, PatchType::Strategic, &patch).await {
                Ok(_) => {
                    before.count += 1;
                    before.at = Instant::now();
                    return Ok(());
                }
                // It expired: a new one is written.
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        let name = format!("{}.{:x}", same.similar.name, now.as_nanosecond());
        api.create(&self.event(told, &namespace, &name, now)).await?;
        if self.written.len() >= REMEMBERED_EVENTS {
            let oldest = self.written.iter().min_by_key(|(_, w)| w.at).map(|(key, _)| key.clone());
            oldest.map(|key| self.written.remove(&key));
        }
        self.written.insert(same, Written { name, count: 1, at: Instant::now() });
        Ok(())
    }

    fn event(&self, told: Told, namespace: &str, name: &str, now: jiff::Timestamp) -> Event {
        let time = Time(jiff::Timestamp::from_second(now.as_second()).unwrap_or(now));
        Event {
            metadata: ObjectMeta {
                name: Some(name.into()),
                namespace: Some(namespace.into()),
                ..ObjectMeta::default()
            },
            involved_object: told.about,
            reason: Some(told.reason),
            message: Some(told.message),
            type_: Some(told.kind.into()),
            count: Some(1),
            first_timestamp: Some(time.clone()),
            last_timestamp: Some(time),
            source: Some(EventSource { component: Some(self.component.clone()), host: None }),
            reporting_component: Some(self.component.clone()),
            reporting_instance: Some(String::new()),
            ..Event::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::{Body, Transport};
    use bytes::Bytes;
    use futures::future::BoxFuture;
    use http_body_util::{BodyExt, Full};
    use parking_lot::Mutex;
    use std::sync::Arc;

    /// Answers every request with its body and remembers it.
    #[derive(Default)]
    struct Echo(Mutex<Vec<(http::Method, serde_json::Value)>>);

    impl Transport for Echo {
        fn call(&self, request: http::Request<Bytes>) -> BoxFuture<'_, std::io::Result<http::Response<Body>>> {
            Box::pin(async move {
                let (parts, body) = request.into_parts();
                let value: serde_json::Value = serde_json::from_slice(&body).unwrap();
                self.0.lock().push((parts.method, value));
                let answer = Bytes::from_static(br#"{"metadata":{},"involvedObject":{}}"#);
                Ok(http::Response::new(Full::new(answer).map_err(|e| match e {}).boxed_unsync()))
            })
        }
    }

    fn told(message: &str) -> Told {
        let about = ObjectReference {
            namespace: Some("d".into()),
            name: Some("p".into()),
            uid: Some("u".into()),
            ..ObjectReference::default()
        };
        Told { about, kind: "Normal", reason: "R".into(), message: message.into() }
    }

    fn writer(client: Client) -> Writer {
        let (written, budget, similar) = Default::default();
        Writer { client, component: "c".into(), written, budget, similar }
    }

    async fn tell(writer: &mut Writer, message: &str) {
        let mut told = told(message);
        let same = writer.combine(&mut told, Instant::now());
        writer.write(told, same).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn many_of_one_reason_are_put_together() {
        let echo = Arc::new(Echo::default());
        let mut writer = writer(Client::new(echo.clone(), "test"));
        for number in 0..SIMILAR_EVENTS + 2 {
            tell(&mut writer, &number.to_string()).await;
        }
        tokio::time::advance(SIMILAR_WITHIN * 2).await;
        tell(&mut writer, "later").await;
        let seen = echo.0.lock();
        let shown: Vec<(&str, &str, i64)> = seen
            .iter()
            .skip(SIMILAR_EVENTS - 2)
            .map(|(m, body)| (m.as_str(), body["message"].as_str().unwrap(), body["count"].as_i64().unwrap()))
            .collect();
        let combined = |n: usize| format!("{COMBINED}{n}");
        let (first, second, third) =
            (combined(SIMILAR_EVENTS - 1), combined(SIMILAR_EVENTS), combined(SIMILAR_EVENTS + 1));
        let last = (SIMILAR_EVENTS - 2).to_string();
        let expected = [
            ("POST", last.as_str(), 1),
            ("POST", first.as_str(), 1),
            ("PATCH", second.as_str(), 2),
            ("PATCH", third.as_str(), 3),
            ("POST", "later", 1),
        ];
        assert_eq!(shown, expected);
    }

    #[tokio::test]
    async fn a_repeated_event_counts() {
        let echo = Arc::new(Echo::default());
        let client = Client::new(echo.clone(), "test");
        let mut writer = writer(client);
        for message in ["a", "a", "b", "a"] {
            tell(&mut writer, message).await;
        }
        let seen: Vec<(String, i64)> =
            echo.0.lock().iter().map(|(method, body)| (method.to_string(), body["count"].as_i64().unwrap())).collect();
        let expected = [("POST", 1), ("PATCH", 2), ("POST", 1), ("PATCH", 3)].map(|(m, c)| (m.to_owned(), c));
        assert_eq!(seen, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn an_object_has_a_budget() {
        let client = Client::new(Arc::new(Echo::default()), "test");
        let mut writer = writer(client);
        let now = Instant::now();
        let spent = (0..100).filter(|_| writer.within_budget("u", now)).count();
        assert_eq!(spent, BURST_EVENTS as usize);
        assert!(writer.within_budget("another", now));
        assert!(writer.within_budget("u", now + REFILL) && !writer.within_budget("u", now + REFILL));
    }
}
