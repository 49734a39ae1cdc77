//! Which pods are on which node, followed from the store: what an agent may read is looked for among its own node's pods.
//! It is a moment behind: pods that changed later than what is known here are looked at in the store.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use keelson_machinery::resource::ResourceDef;
use keelson_machinery::resources::find;
use keelson_store::{Event, EventKind, KeyRange, KeyValue, WatchRequest};
use parking_lot::RwLock;

use super::Authorization;
use crate::{ApiServer, encryption};

/// Pause before the pods are followed anew after their watch broke.
const RETRY: Duration = Duration::from_millis(500);

/// A key of its own bytes: a stored one is one with its value's, which it would keep alive.
type Key = Box<[u8]>;

/// Keys of pods by their node.
#[derive(Default)]
pub struct Placed(RwLock<Index>);

#[derive(Default)]
struct Index {
    nodes: HashMap<String, HashSet<Key>>,
    /// The revision up to which pods are known.
    revision: i64,
}

/// The node of a stored pod, "" for none.
pub(super) fn node_of_pod(def: &ResourceDef, pod: &KeyValue) -> String {
    let field = def.selectable_fields.iter().position(|field| *field == "spec.nodeName");
    let head = encryption::stored(pod).map(|stored| stored.head);
    field.zip(head.ok()).and_then(|(at, head)| head.fields.get(at).cloned()).unwrap_or_default()
}

impl Placed {
    /// Keys of the pods on a node, and the revision that this is of.
    pub fn on(&self, node: &str) -> (Vec<Key>, i64) {
        let index = self.0.read();
        (index.nodes.get(node).map(|keys| keys.iter().cloned().collect()).unwrap_or_default(), index.revision)
    }
}

impl Index {
    fn put(&mut self, node: String, key: &[u8]) {
        if node.is_empty() {
            return;
        }
        let keys = self.nodes.entry(node).or_default();
        if !keys.contains(key) {
            keys.insert(key.into());
        }
    }

    /// Forgets a pod that was on `node` ("": not known where).
    fn remove(&mut self, node: &str, key: &[u8]) {
        match self.nodes.get_mut(node) {
            Some(keys) => {
                keys.remove(key);
                if keys.is_empty() {
                    self.nodes.remove(node);
                }
            }
            None => self.nodes.retain(|_, keys| !keys.remove(key) || !keys.is_empty()),
        }
    }

    /// Takes over what happened, in order.
    fn apply(&mut self, def: &ResourceDef, events: &[Arc<Event>]) {
        for event in events {
            match event.kind {
                EventKind::Put => self.put(node_of_pod(def, &event.kv), &event.kv.key),
                EventKind::Delete => {
                    let node = event.prev.as_ref().map(|pod| node_of_pod(def, pod)).unwrap_or_default();
                    self.remove(&node, &event.kv.key);
                }
            }
            self.revision = self.revision.max(event.kv.mod_revision);
        }
    }
}

/// Starts to follow the pods.
pub fn start(server: &Arc<ApiServer>) {
    let (stop, authorization) = (server.stop.clone(), server.authorizer.clone());
    tokio::spawn(async move { stop.run_until_cancelled(follow(authorization)).await });
}

async fn follow(authorization: Arc<Authorization>) {
    let Some(def) = find("", "v1", "pods") else { return };
    let (kv, placed) = (&authorization.objects.kv, &authorization.placed);
    let range = KeyRange::prefix(def.prefix());
    loop {
        let view = kv.view();
        let mut index = Index { revision: view.revision(), ..Index::default() };
        for pod in view.range(&range) {
            index.put(node_of_pod(def, pod), &pod.key);
        }
        *placed.0.write() = index;
        let request = WatchRequest::new(range.clone(), view.revision() + 1);
        drop(view);
        if let Ok(mut watch) = kv.watch(request) {
            while let Some(Ok(batch)) = watch.next().await {
                placed.0.write().apply(def, &batch.events);
            }
        }
        // Too far behind, or another store: begin anew.
        tokio::time::sleep(RETRY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_known_while_they_are_there() {
        let mut index = Index::default();
        for (node, key) in [("one", "a"), ("one", "b"), ("two", "c"), ("", "d")] {
            index.put(node.into(), key.as_bytes());
        }
        index.remove("one", b"a");
        // Its node is not told any more.
        index.remove("", b"c");
        assert_eq!(index.nodes.len(), 1, "nodes without pods are not kept");
        index.revision = 7;
        let placed = Placed(RwLock::new(index));
        assert_eq!(placed.on("one"), (vec![Box::from(*b"b")], 7));
        assert_eq!(placed.on("two"), (vec![], 7));
    }
}
