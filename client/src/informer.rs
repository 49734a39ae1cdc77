//! An informer of one kind: listed in pages, then kept up to date by a watch; all readers share one decoded object.
//! Indexes answer by namespace, by controller and by what the kind's user declares; handlers hear of every change.
//!
//! Invariants: the indexes hold exactly the keys of the stored objects; a handler hears of each object at least once and
//! of every change after that, in the order of revisions; [`Informer::revision`] never passes an event not yet stored.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use parking_lot::RwLock;
use rand::RngExt;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::api::{Client, Error, ListParams, Object};
use crate::lean::without_managed_fields;
use crate::revisions::Revisions;

/// Namespace (empty for cluster-scoped kinds) and name.
pub type Key = (String, String);

/// Pause after a failed list or watch: between the first and twice that.
const RETRY: Duration = Duration::from_millis(200);
/// Pause before a kind is asked for again that the server does not serve (`--runtime-config`).
const NOT_SERVED_RETRY: Duration = Duration::from_secs(10);
/// Pause after a watch that ended in order.
const REWATCH: Duration = Duration::from_millis(50);
/// Objects of one page of the first list.
const PAGE_OBJECTS: u32 = 1000;

/// Under which values an object is found.
pub type IndexFn<K> = fn(&K) -> Vec<String>;
/// Hears of a change.
type Handler<K> = Box<dyn Fn(&Change<K>) + Send + Sync>;

/// One change: an object came (`old` is none), changed, or went (`new` is none).
pub struct Change<K> {
    /// As it was.
    pub old: Option<Arc<K>>,
    /// As it is.
    pub new: Option<Arc<K>>,
}

impl<K> Change<K> {
    /// The object as it is, or as it last was.
    pub fn object(&self) -> Option<&Arc<K>> {
        self.new.as_ref().or(self.old.as_ref())
    }
}

struct Index<K> {
    name: &'static str,
    of: IndexFn<K>,
    keys: HashMap<String, HashSet<Key>>,
}

struct Store<K> {
    objects: HashMap<Key, Arc<K>>,
    indexes: Vec<Index<K>>,
}

impl<K: Object> Store<K> {
    fn insert(&mut self, key: &Key, object: Arc<K>) -> Option<Arc<K>> {
        let old = self.remove(key);
        for index in &mut self.indexes {
            for value in (index.of)(&object) {
                index.keys.entry(value).or_default().insert(key.clone());
            }
        }
        self.objects.insert(key.clone(), object);
        old
    }

    fn remove(&mut self, key: &Key) -> Option<Arc<K>> {
        let old = self.objects.remove(key)?;
        for index in &mut self.indexes {
            for value in (index.of)(&old) {
                if let Some(keys) = index.keys.get_mut(&value) {
                    keys.remove(key);
                    if keys.is_empty() {
                        index.keys.remove(&value);
                    }
                }
            }
        }
        Some(old)
    }

    fn find(&self, index: &str, value: &str) -> Vec<Arc<K>> {
        let Some(index) = self.indexes.iter().find(|i| i.name == index) else { return Vec::new() };
        let keys = index.keys.get(value).into_iter().flatten();
        keys.filter_map(|key| self.objects.get(key).cloned()).collect()
    }
}

/// Index of the uid of an object's controller.
const OWNER: &str = "owner";
/// Index of the namespace.
const NAMESPACE: &str = "namespace";

/// The informer.
pub struct Informer<K> {
    store: RwLock<Store<K>>,
    handlers: RwLock<Vec<Handler<K>>>,
    revisions: Revisions,
    /// Tells of every change of the newest revision.
    changed: watch::Sender<()>,
    synced: watch::Sender<bool>,
    trim: Option<fn(&mut K)>,
}

/// A list or watch event with objects not yet decoded: one object that cannot be read must not stop the others.
#[derive(Deserialize)]
struct RawEvent<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

/// What every object and bookmark has.
#[derive(Deserialize)]
struct Head {
    metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
}

impl<K: Object> Informer<K> {
    /// Starts an informer of all objects of the kind; `indexes` are beyond those of namespace and owner.
    pub fn start(client: &Client, indexes: &[(&'static str, IndexFn<K>)], stop: CancellationToken) -> Arc<Self> {
        Self::start_selected(client, ListParams::default(), indexes, stop)
    }

    /// Starts an informer of the objects that the selectors of `params` choose.
    pub fn start_selected(
        client: &Client,
        params: ListParams,
        indexes: &[(&'static str, IndexFn<K>)],
        stop: CancellationToken,
    ) -> Arc<Self> {
        Self::start_trimmed(client, params, indexes, None, stop)
    }

    /// The same, of objects without what `trim` takes off: what nobody reads need not be kept in memory.
    pub fn start_trimmed(
        client: &Client,
        params: ListParams,
        indexes: &[(&'static str, IndexFn<K>)],
        trim: Option<fn(&mut K)>,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let informer = Arc::new(Self { trim, ..Self::empty(indexes) });
        let (this, client) = (informer.clone(), client.clone());
        tokio::spawn(async move {
            while !stop.is_cancelled() {
                let mut pause = RETRY;
                tokio::select! {
                    () = stop.cancelled() => return,
                    result = this.follow(&client, &params) => match result {
                        Ok(()) => debug!(kind = K::KIND, "watch ended; listing again"),
                        // Nothing of it is there, and others must not wait for it.
                        Err(error) if error.is_not_found() => {
                            if !this.synced.send_replace(true) {
                                warn!(kind = K::KIND, "the server does not serve this kind");
                            }
                            pause = NOT_SERVED_RETRY;
                        }
                        Err(error) => warn!(kind = K::KIND, %error, "cannot list or watch; trying again"),
                    }
                }
                let jitter = rand::rng().random_range(1.0..2.0);
                tokio::time::sleep(pause.mul_f64(jitter)).await;
            }
        });
        informer
    }

    fn empty(indexes: &[(&'static str, IndexFn<K>)]) -> Self {
        let standard: [(&'static str, IndexFn<K>); 2] = [
            (NAMESPACE, |o| vec![o.metadata().namespace.clone().unwrap_or_default()]),
            (OWNER, |o| {
                let owners = o.metadata().owner_references.iter().flatten();
                owners.filter(|r| r.controller == Some(true)).map(|r| r.uid.clone()).collect()
            }),
        ];
        let indexes = standard.iter().chain(indexes);
        let indexes = indexes.map(|(name, of)| Index { name, of: *of, keys: HashMap::new() }).collect();
        Self {
            store: RwLock::new(Store { objects: HashMap::new(), indexes }),
            handlers: RwLock::default(),
            revisions: Revisions::default(),
            changed: watch::Sender::new(()),
            synced: watch::Sender::new(false),
            trim: None,
        }
    }

    /// An informer of given objects that follows nothing: for tests of plans.
    pub fn of(objects: Vec<K>, indexes: &[(&'static str, IndexFn<K>)]) -> Arc<Self> {
        let informer = Self::empty(indexes);
        for object in objects {
            informer.set(object);
        }
        informer.synced.send_replace(true);
        Arc::new(informer)
    }

    /// Holds an object as if the watch had brought it: for tests of plans.
    pub fn hold(&self, object: K) {
        self.set(object);
    }

    /// Lists, then watches until the watch breaks.
    async fn follow(&self, client: &Client, base: &ListParams) -> Result<(), Error> {
        let api = client.all::<K>();
        let mut version = self.list(&api, base).await?;
        self.synced.send_replace(true);
        loop {
            let params = ListParams { resource_version: Some(version.clone()), ..base.clone() };
            let events = api.watch_lines(&params).await?;
            futures::pin_mut!(events);
            while let Some(line) = events.next().await {
                let line = line?;
                let event: RawEvent<'_> = serde_json::from_str(&line)?;
                if event.kind == "ERROR" {
                    // Most often 410: the revision is compacted.
                    return Err(Error::Status(Box::new(serde_json::from_str(event.object.get())?)));
                }
                if let Some(newer) = self.take_over(&event)? {
                    version = newer;
                }
                self.advance(&version);
            }
            // A server that stops ends watches at once; asking again without a pause would never yield.
            tokio::time::sleep(REWATCH).await;
        }
    }

    /// Takes over an event; tells the version of its object.
    fn take_over(&self, event: &RawEvent<'_>) -> Result<Option<String>, Error> {
        let text = without_managed_fields(event.object.get());
        let changed = matches!(event.kind, "ADDED" | "MODIFIED");
        let unread = match changed.then(|| serde_json::from_str::<K>(&text)) {
            Some(Ok(object)) => {
                let version = object.metadata().resource_version.clone();
                self.set(object);
                return Ok(version);
            }
            Some(Err(error)) => Some(error),
            None => None,
        };
        let head: Head = serde_json::from_str(&text)?;
        if let Some(error) = unread {
            unreadable::<K>(&key_of(&head.metadata), &error);
        } else if event.kind == "DELETED" {
            self.remove(&key_of(&head.metadata));
        }
        Ok(head.metadata.resource_version)
    }

    /// Lists in pages and replaces what is stored.
    async fn list(&self, api: &crate::Api<K>, base: &ListParams) -> Result<String, Error> {
        let mut params = ListParams { limit: PAGE_OBJECTS, ..base.clone() };
        let mut fresh = HashSet::new();
        loop {
            let page = api.list_raw(&params).await?;
            for item in page.items {
                match serde_json::from_str::<K>(&without_managed_fields(item.get())) {
                    Ok(object) => {
                        fresh.insert(key(&object));
                        self.set(object);
                    }
                    Err(error) => {
                        let head = serde_json::from_str::<Head>(item.get()).ok();
                        unreadable::<K>(&head.map(|h| key_of(&h.metadata)).unwrap_or_default(), &error);
                    }
                }
            }
            if page.continue_token.is_none() {
                let gone: Vec<Key> =
                    self.store.read().objects.keys().filter(|k| !fresh.contains(*k)).cloned().collect();
                for key in gone {
                    self.remove(&key);
                }
                self.advance(&page.resource_version);
                return Ok(page.resource_version);
            }
            params.continue_token = page.continue_token;
        }
    }

    fn advance(&self, version: &str) {
        if version.parse().is_ok_and(|version| self.revisions.advance(version)) {
            self.changed.send_replace(());
        }
    }

    fn set(&self, mut object: K) {
        // Nobody here reads them, and a write without them keeps those that are stored.
        object.metadata_mut().managed_fields = None;
        if let Some(trim) = self.trim {
            trim(&mut object);
        }
        let (key, object) = (key(&object), Arc::new(object));
        let old = self.store.write().insert(&key, object.clone());
        if old.as_ref().is_some_and(|o| o.metadata().resource_version == object.metadata().resource_version) {
            return;
        }
        self.tell(&Change { old, new: Some(object) });
    }

    fn remove(&self, key: &Key) {
        let old = self.store.write().remove(key);
        if old.is_some() {
            self.tell(&Change { old, new: None });
        }
    }

    fn tell(&self, change: &Change<K>) {
        for handler in self.handlers.read().iter() {
            handler(change);
        }
    }

    /// Calls `handler` for every object that is there and from now on for every change. It must be quick and must not
    /// block: it runs on the way of all events.
    pub fn subscribe(&self, handler: impl Fn(&Change<K>) + Send + Sync + 'static) {
        let mut handlers = self.handlers.write();
        for object in self.list_all() {
            handler(&Change { old: None, new: Some(object) });
        }
        handlers.push(Box::new(handler));
    }

    /// One object.
    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.store.read().objects.get(key).cloned()
    }

    /// One object of a namespace ("" for cluster-scoped kinds).
    pub fn named(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// All objects.
    pub fn list_all(&self) -> Vec<Arc<K>> {
        self.store.read().objects.values().cloned().collect()
    }

    /// Number of objects.
    pub fn count(&self) -> usize {
        self.store.read().objects.len()
    }

    /// The objects of a namespace.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        self.store.read().find(NAMESPACE, namespace)
    }

    /// The objects whose controller has this uid.
    pub fn owned_by(&self, uid: &str) -> Vec<Arc<K>> {
        self.store.read().find(OWNER, uid)
    }

    /// The objects that a declared index finds.
    pub fn by(&self, index: &str, value: &str) -> Vec<Arc<K>> {
        self.store.read().find(index, value)
    }

    /// The newest revision of the kind that is stored here.
    pub fn revision(&self) -> u64 {
        self.revisions.newest()
    }

    /// Waits until what `written` answered to a write is stored here, so that the next look does not act twice. Gives up
    /// after `patience`: the watch may be broken, and the next event brings another look anyway.
    pub async fn caught_up(&self, written: &str, patience: Duration) -> bool {
        let Ok(version) = written.parse::<u64>() else { return false };
        tokio::time::timeout(patience, self.revisions.reached(version)).await.is_ok()
    }

    /// Waits until the object `key` with this uid is gone here or is marked as going.
    pub async fn going(&self, key: &Key, uid: &str, patience: Duration) -> bool {
        let is_going = || {
            self.get(key)
                .is_none_or(|o| o.metadata().uid.as_deref() != Some(uid) || o.metadata().deletion_timestamp.is_some())
        };
        let mut changed = self.changed.subscribe();
        tokio::time::timeout(patience, changed.wait_for(|()| is_going())).await.is_ok()
    }

    /// Waits until the first list is in.
    pub async fn synced(&self) {
        // The sender lives in self, so waiting cannot fail.
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
    }
}

fn unreadable<K: Object>(key: &Key, error: &serde_json::Error) {
    error!(kind = K::KIND, namespace = key.0, name = key.1, %error, "an object cannot be read; it is left out");
}

/// The key of an object.
pub fn key<K: Object>(object: &K) -> Key {
    key_of(object.metadata())
}

fn key_of(metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> Key {
    (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use parking_lot::Mutex;
    use serde_json::json;

    fn pod(name: &str, version: &str, owner: &str, node: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"namespace": "d", "name": name, "resourceVersion": version, "uid": name,
                "ownerReferences": [{"uid": owner, "controller": true, "kind": "R", "name": "r", "apiVersion": "v1"}]},
            "spec": {"nodeName": node, "containers": []},
        }))
        .unwrap()
    }

    fn by_node(pod: &Pod) -> Vec<String> {
        pod.spec.iter().filter_map(|s| s.node_name.clone()).collect()
    }

    #[test]
    fn indexes_follow_the_objects() {
        let pods = Informer::of(vec![pod("a", "1", "x", "n1"), pod("b", "2", "x", "n2")], &[("node", by_node)]);
        let names = |found: Vec<Arc<Pod>>| {
            let mut names: Vec<String> = found.iter().filter_map(|p| p.metadata.name.clone()).collect();
            names.sort();
            names.join(" ")
        };
        assert_eq!(names(pods.owned_by("x")), "a b");
        assert_eq!(names(pods.by("node", "n1")), "a");
        pods.set(pod("a", "3", "y", "n2"));
        assert_eq!(
            (names(pods.owned_by("x")), names(pods.owned_by("y")), names(pods.by("node", "n1"))),
            ("b".into(), "a".into(), "".into())
        );
        pods.remove(&("d".into(), "b".into()));
        assert_eq!(
            (names(pods.by("node", "n2")), names(pods.in_namespace("d")), pods.count()),
            ("a".into(), "a".into(), 1)
        );
        assert_eq!(pods.store.read().indexes.iter().map(|i| i.keys.len()).sum::<usize>(), 3);
    }

    #[test]
    fn handlers_hear_what_was_there_and_what_comes_once() {
        let pods = Informer::of(vec![pod("a", "1", "x", "n")], &[]);
        let heard = Arc::new(Mutex::new(Vec::new()));
        let log = heard.clone();
        pods.subscribe(move |change| log.lock().push((change.old.is_some(), change.new.is_some())));
        pods.set(pod("a", "1", "x", "n"));
        pods.set(pod("a", "2", "x", "n"));
        pods.remove(&("d".into(), "a".into()));
        pods.remove(&("d".into(), "a".into()));
        assert_eq!(*heard.lock(), [(false, true), (true, true), (true, false)]);
    }

    #[tokio::test]
    async fn waiting_ends_with_the_revision_or_the_patience() {
        let pods = Informer::of(vec![pod("a", "1", "x", "n")], &[]);
        pods.advance("7");
        assert!(pods.caught_up("7", Duration::from_secs(60)).await);
        assert!(!pods.caught_up("8", Duration::from_millis(1)).await);
        assert!(!pods.caught_up("nonsense", Duration::from_secs(60)).await);
        let key = ("d".to_owned(), "a".to_owned());
        assert!(!pods.going(&key, "a", Duration::from_millis(1)).await);
        assert!(pods.going(&key, "another", Duration::from_secs(60)).await);
    }

    /// Answers lists and watches in order; a watch without an answer stays open.
    struct Scripted(Mutex<std::collections::VecDeque<(bool, String)>>);

    impl crate::Transport for Scripted {
        fn call(
            &self,
            request: http::Request<bytes::Bytes>,
        ) -> futures::future::BoxFuture<'_, std::io::Result<http::Response<crate::Body>>> {
            use http_body_util::BodyExt;
            let watches = request.uri().query().is_some_and(|q| q.contains("watch=true") || q.contains("watch=1"));
            let next = {
                let mut script = self.0.lock();
                let fits = script.front().is_some_and(|(watch, _)| *watch == watches);
                fits.then(|| script.pop_front()).flatten()
            };
            Box::pin(async move {
                let Some((_, text)) = next else { return std::future::pending().await };
                let body = http_body_util::Full::new(bytes::Bytes::from(text));
                Ok(http::Response::new(body.map_err(|never| match never {}).boxed_unsync()))
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_watch_missed_is_made_up_for() {
        let list = |version: &str, pods: Vec<Pod>| {
            (false, json!({"metadata": {"resourceVersion": version}, "items": pods}).to_string())
        };
        let event = |kind: &str, object: serde_json::Value| json!({"type": kind, "object": object}).to_string() + "\n";
        let remade = |name: &str, version: &str| {
            let mut made = pod(name, version, "x", "n");
            made.metadata.uid = Some(format!("{name}-anew"));
            made
        };
        let gone = event("ERROR", json!({"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}));
        let changed = event("MODIFIED", json!(pod("b", "6", "x", "n")));
        let script = [
            list("5", vec![pod("a", "1", "x", "n"), pod("b", "2", "x", "n")]),
            (true, changed + &gone),
            list("9", vec![remade("a", "7"), pod("c", "8", "x", "n")]),
            // A server that breaks off in the middle of an event.
            (true, event("ADDED", json!(pod("d", "10", "x", "n"))) + "{\"type\":\"ADD"),
            list("12", vec![remade("a", "7"), pod("d", "10", "x", "n")]),
        ];
        let client = Client::new(Arc::new(Scripted(Mutex::new(script.into()))), "test");
        let stop = CancellationToken::new();
        let pods = Informer::<Pod>::start(&client, &[], stop.clone());
        let heard = Arc::new(Mutex::new(Vec::new()));
        let log = heard.clone();
        pods.subscribe(move |change| {
            let uid =
                |object: &Option<Arc<Pod>>| object.as_ref().and_then(|o| o.metadata.uid.clone()).unwrap_or_default();
            log.lock().push(format!("{}>{}", uid(&change.old), uid(&change.new)));
        });
        assert!(pods.caught_up("12", Duration::from_secs(60)).await);
        stop.cancel();
        let mut heard = heard.lock().clone();
        // Objects of one list come in its order, those that are gone in any.
        heard.sort();
        assert_eq!(heard, [">a", ">b", ">c", ">d", "a>a-anew", "b>", "b>b", "c>"]);
    }
}
