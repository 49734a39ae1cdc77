//! The endpoints of Services, as their slices say, found by Service.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use keelson_client::{Cache, Client, Key};
use parking_lot::RwLock;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The label of a slice that names its Service.
const SERVICE: &str = "kubernetes.io/service-name";

/// All slices.
pub struct Endpoints {
    slices: Arc<Cache<EndpointSlice>>,
    /// Told when any changed.
    pub changed: Arc<Notify>,
    index: RwLock<Index>,
}

#[derive(Default)]
struct Index {
    /// The slices of each Service.
    of_service: HashMap<Key, HashSet<Key>>,
    /// The Service of each slice.
    service_of: HashMap<Key, Key>,
}

impl Endpoints {
    /// Follows all slices.
    pub fn start(client: &Client, stop: CancellationToken) -> Self {
        let changed = Arc::new(Notify::new());
        Self { slices: Cache::start(client, changed.clone(), stop), changed, index: RwLock::default() }
    }

    /// Waits until the first list is in.
    pub async fn synced(&self) {
        self.slices.synced().await;
    }

    /// The slices of a Service.
    pub fn of(&self, service: &Key) -> Vec<Arc<EndpointSlice>> {
        let index = self.index.read();
        index.of_service.get(service).into_iter().flatten().filter_map(|slice| self.slices.get(slice)).collect()
    }

    /// Host name, Service and namespace of the endpoint that has this address and a name.
    pub fn named(&self, ip: &str) -> Option<(String, String, String)> {
        for slice in self.slices.list() {
            let endpoints = slice.endpoints.iter().flatten();
            let mut at = endpoints.filter(|e| e.addresses.iter().any(|a| a == ip));
            if let Some(host) = at.find_map(|e| e.hostname.clone()) {
                let service = slice.metadata.labels.as_ref()?.get(SERVICE)?.clone();
                return Some((host, service, slice.metadata.namespace.clone()?));
            }
        }
        None
    }

    /// The Services whose endpoints changed since this was last asked.
    pub fn drain(&self) -> HashSet<Key> {
        let mut dirty = HashSet::new();
        let mut index = self.index.write();
        for slice in self.slices.drain() {
            let found = self.slices.get(&slice);
            let label = found.as_ref().and_then(|s| s.metadata.labels.as_ref()?.get(SERVICE).cloned());
            index.place(&slice, label.map(|name| (slice.0.clone(), name)), &mut dirty);
        }
        dirty
    }
}

impl Index {
    fn place(&mut self, slice: &Key, service: Option<Key>, dirty: &mut HashSet<Key>) {
        let before = match &service {
            Some(service) => self.service_of.insert(slice.clone(), service.clone()),
            None => self.service_of.remove(slice),
        };
        if let Some(before) = before.filter(|b| Some(b) != service.as_ref()) {
            if let Some(list) = self.of_service.get_mut(&before) {
                list.remove(slice);
                if list.is_empty() {
                    self.of_service.remove(&before);
                }
            }
            dirty.insert(before);
        }
        if let Some(service) = service {
            self.of_service.entry(service.clone()).or_default().insert(slice.clone());
            dirty.insert(service);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_move_between_services() {
        let key = |name: &str| ("n".to_owned(), name.to_owned());
        let mut index = Index::default();
        for (service, changed, left) in [
            (Some("a"), vec!["a"], vec!["a"]),
            (Some("a"), vec!["a"], vec!["a"]),
            (Some("b"), vec!["a", "b"], vec!["b"]),
            (None, vec!["b"], vec![]),
        ] {
            let mut dirty = HashSet::new();
            index.place(&key("slice"), service.map(key), &mut dirty);
            assert_eq!(dirty, changed.into_iter().map(key).collect(), "{service:?}");
            assert_eq!(
                index.of_service.keys().cloned().collect::<Vec<_>>(),
                left.into_iter().map(key).collect::<Vec<_>>()
            );
        }
    }
}
