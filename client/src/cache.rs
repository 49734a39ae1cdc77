//! A cache of one kind: listed, then kept up to date by a watch. Readers share decoded objects; a consumer drains the keys
//! that changed.
//!
//! Invariant: a key whose object changed is in the set of changed keys until the consumer takes it; nothing is lost, and
//! the set is never larger than the number of objects seen.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use parking_lot::{Mutex, RwLock};
use rand::RngExt;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::api::{Client, Error, ListParams, Object, WatchEvent};

/// Namespace (empty for cluster-scoped kinds) and name.
pub type Key = (String, String);

/// Pause after a failed list or watch: between the first and twice that.
const RETRY: Duration = Duration::from_millis(200);

/// Pause after a watch that ended in order.
const REWATCH: Duration = Duration::from_millis(50);

/// The cache.
pub struct Cache<K> {
    objects: RwLock<HashMap<Key, Arc<K>>>,
    changed: Mutex<HashSet<Key>>,
    notify: Arc<Notify>,
    synced: watch::Sender<bool>,
}

impl<K: Object> Cache<K> {
    /// Starts a cache of all objects of the kind. Each change wakes `notify`.
    pub fn start(client: &Client, notify: Arc<Notify>, stop: CancellationToken) -> Arc<Self> {
        let cache = Arc::new(Self {
            objects: RwLock::default(),
            changed: Mutex::default(),
            notify,
            synced: watch::Sender::new(false),
        });
        let (this, client) = (cache.clone(), client.clone());
        tokio::spawn(async move {
            while !stop.is_cancelled() {
                tokio::select! {
                    () = stop.cancelled() => return,
                    result = this.follow(&client) => match result {
                        Ok(()) => debug!(kind = K::KIND, "watch ended; listing again"),
                        Err(error) => warn!(kind = K::KIND, %error, "cannot list or watch; trying again"),
                    }
                }
                let jitter = rand::rng().random_range(1.0..2.0);
                tokio::time::sleep(RETRY.mul_f64(jitter)).await;
            }
        });
        cache
    }

    /// Lists, then watches until the watch ends.
    async fn follow(&self, client: &Client) -> Result<(), Error> {
        let api = client.all::<K>();
        let list = api.list(&ListParams::default()).await?;
        let mut version = list.resource_version.clone();
        self.replace(list.items);
        self.synced.send_replace(true);
        loop {
            let params = ListParams { resource_version: Some(version.clone()), ..ListParams::default() };
            let events = api.watch(&params).await?;
            futures::pin_mut!(events);
            while let Some(event) = events.next().await {
                match event? {
                    WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                        version = object.metadata().resource_version.clone().unwrap_or(version);
                        self.set(object);
                    }
                    WatchEvent::Deleted(object) => {
                        version = object.metadata().resource_version.clone().unwrap_or(version);
                        self.remove(&key(&object));
                    }
                    WatchEvent::Bookmark(object) => {
                        version = object["metadata"]["resourceVersion"].as_str().map_or(version, str::to_owned);
                    }
                    // Most often 410: the revision is compacted.
                    WatchEvent::Error(status) => return Err(Error::Status(status)),
                }
            }
            // A server that stops ends watches at once; asking again without a pause would never yield.
            tokio::time::sleep(REWATCH).await;
        }
    }

    fn replace(&self, items: Vec<K>) {
        let fresh: HashMap<Key, Arc<K>> = items.into_iter().map(|o| (key(&o), Arc::new(o))).collect();
        let old = std::mem::replace(&mut *self.objects.write(), fresh);
        let mut changed = self.changed.lock();
        changed.extend(old.into_keys());
        changed.extend(self.objects.read().keys().cloned());
        drop(changed);
        self.notify.notify_one();
    }

    fn set(&self, object: K) {
        let key = key(&object);
        self.objects.write().insert(key.clone(), Arc::new(object));
        self.touch(key);
    }

    fn remove(&self, key: &Key) {
        self.objects.write().remove(key);
        self.touch(key.clone());
    }

    /// Counts a key as changed, for another look at it.
    pub fn touch(&self, key: Key) {
        self.changed.lock().insert(key);
        self.notify.notify_one();
    }

    /// Takes the keys that changed.
    pub fn drain(&self) -> HashSet<Key> {
        std::mem::take(&mut *self.changed.lock())
    }

    /// One object.
    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.objects.read().get(key).cloned()
    }

    /// All objects.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.objects.read().values().cloned().collect()
    }

    /// Waits until the first list is in.
    pub async fn synced(&self) {
        // The sender lives in self, so waiting cannot fail.
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
    }
}

/// The key of an object.
pub fn key<K: Object>(object: &K) -> Key {
    let metadata = object.metadata();
    (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}
