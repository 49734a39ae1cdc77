//! The config maps and secrets that pods of this node refer to: each is read once and then watched by its name, for as
//! long as somebody asks for it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use keelson_client::{Client, Error, ListParams, Object, WatchEvent};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// An object nobody asked for this long is watched no more.
const FORGET: Duration = Duration::from_secs(600);
/// Pause before a watch that failed is opened again.
const RETRY: Duration = Duration::from_secs(2);

/// Namespace and name.
type Key = (String, String);
/// An object's keys and values.
pub type Data = BTreeMap<String, Vec<u8>>;

/// Kinds whose objects are keys with values.
pub trait Keyed: Object + k8s_openapi::Resource<Scope = NamespaceResourceScope> {
    /// The data.
    fn data(self) -> Data;
}

impl Keyed for ConfigMap {
    fn data(self) -> Data {
        let text = self.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.into_bytes()));
        text.chain(self.binary_data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0))).collect()
    }
}

impl Keyed for Secret {
    fn data(self) -> Data {
        self.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0)).collect()
    }
}

struct Entry {
    data: Option<Arc<Data>>,
    asked: Instant,
    stop: CancellationToken,
}

/// The objects of one kind.
pub struct Watched<K> {
    client: Client,
    entries: Arc<Mutex<HashMap<Key, Entry>>>,
    /// Told when any of them changed.
    changed: Arc<Notify>,
    kind: std::marker::PhantomData<fn() -> K>,
}

impl<K: Keyed> Watched<K> {
    /// Nothing is watched yet.
    pub fn new(client: Client, changed: Arc<Notify>) -> Self {
        Self { client, entries: Arc::default(), changed, kind: std::marker::PhantomData }
    }

    /// The object's data; `None` if it does not exist.
    pub async fn get(&self, namespace: &str, name: &str) -> Result<Option<Arc<Data>>, Error> {
        let key = (namespace.to_owned(), name.to_owned());
        if let Some(entry) = self.entries.lock().get_mut(&key) {
            entry.asked = Instant::now();
            return Ok(entry.data.clone());
        }
        let found = self.client.namespaced::<K>(namespace).get_opt(name).await?;
        let version = found.as_ref().and_then(|o| o.metadata().resource_version.clone());
        let data = found.map(|o| Arc::new(o.data()));
        let stop = CancellationToken::new();
        let mut entries = self.entries.lock();
        if let Some(entry) = entries.get(&key) {
            return Ok(entry.data.clone());
        }
        entries.insert(key.clone(), Entry { data: data.clone(), asked: Instant::now(), stop: stop.clone() });
        drop(entries);
        let watcher = Watcher::<K> {
            client: self.client.clone(),
            entries: self.entries.clone(),
            changed: self.changed.clone(),
            key,
            kind: std::marker::PhantomData,
        };
        tokio::spawn(watcher.run(version, stop));
        Ok(data)
    }

    /// Ends the watches of what nobody asked for lately.
    pub fn forget_old(&self) {
        self.entries.lock().retain(|_, entry| {
            let keep = entry.asked.elapsed() < FORGET;
            if !keep {
                entry.stop.cancel();
            }
            keep
        });
    }
}

struct Watcher<K> {
    client: Client,
    entries: Arc<Mutex<HashMap<Key, Entry>>>,
    changed: Arc<Notify>,
    key: Key,
    kind: std::marker::PhantomData<fn() -> K>,
}

impl<K: Keyed> Watcher<K> {
    async fn run(self, mut version: Option<String>, stop: CancellationToken) {
        loop {
            let result = tokio::select! {
                () = stop.cancelled() => return,
                result = self.follow(version.take()) => result,
            };
            if let Err(error) = result {
                tracing::debug!(object = ?self.key, kind = K::KIND, %error, "watch failed; it is opened again");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    fn set(&self, object: Option<K>) {
        let data = object.map(|o| Arc::new(o.data()));
        let mut entries = self.entries.lock();
        let Some(entry) = entries.get_mut(&self.key) else { return };
        if entry.data != data {
            entry.data = data;
            self.changed.notify_one();
        }
    }

    async fn follow(&self, version: Option<String>) -> Result<(), Error> {
        let api = self.client.namespaced::<K>(&self.key.0);
        let selector = Some(format!("metadata.name={}", self.key.1));
        let mut params = ListParams { field_selector: selector, ..ListParams::default() };
        params.resource_version = match version {
            Some(version) => Some(version),
            None => {
                let mut list = api.list(&params).await?;
                self.set(list.items.pop());
                Some(list.resource_version)
            }
        };
        let mut events = std::pin::pin!(api.watch(&params).await?);
        while let Some(event) = events.try_next().await? {
            match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => self.set(Some(object)),
                WatchEvent::Deleted(_) => self.set(None),
                WatchEvent::Bookmark(_) => {}
                WatchEvent::Error(status) => return Err(Error::Status(status)),
            }
        }
        Ok(())
    }
}

/// What pods of this node refer to.
pub struct Objects {
    /// Config maps.
    pub config_maps: Watched<ConfigMap>,
    /// Secrets.
    pub secrets: Watched<Secret>,
}

impl Objects {
    /// Each change tells `changed`.
    pub fn new(client: &Client, changed: &Arc<Notify>) -> Self {
        Self {
            config_maps: Watched::new(client.clone(), changed.clone()),
            secrets: Watched::new(client.clone(), changed.clone()),
        }
    }

    /// Ends the watches that nobody needs any more.
    pub fn forget_old(&self) {
        self.config_maps.forget_old();
        self.secrets.forget_old();
    }
}
