//! A cache of one kind whose consumer drains the keys that changed: an [`Informer`] with one set of changed keys.
//!
//! Invariant: a key whose object changed is in the set of changed keys until the consumer takes it; nothing is lost, and
//! the set is never larger than the number of objects seen.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::api::{Client, Object};
use crate::informer::{Informer, Key, key};

/// The cache.
pub struct Cache<K> {
    informer: Arc<Informer<K>>,
    changed: Arc<Mutex<HashSet<Key>>>,
    notify: Arc<Notify>,
}

impl<K: Object> Cache<K> {
    /// Starts a cache of all objects of the kind. Each change wakes `notify`.
    pub fn start(client: &Client, notify: Arc<Notify>, stop: CancellationToken) -> Arc<Self> {
        let informer = Informer::start(client, &[], stop);
        let changed: Arc<Mutex<HashSet<Key>>> = Arc::default();
        let (set, wake) = (changed.clone(), notify.clone());
        informer.subscribe(move |change| {
            if let Some(object) = change.object() {
                set.lock().insert(key(&**object));
                wake.notify_one();
            }
        });
        Arc::new(Self { informer, changed, notify })
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
        self.informer.get(key)
    }

    /// All objects.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.informer.list_all()
    }

    /// Waits until the first list is in.
    pub async fn synced(&self) {
        self.informer.synced().await;
    }
}
