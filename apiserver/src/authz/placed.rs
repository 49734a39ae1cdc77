//! Which pods are on which node, followed from the store: what an agent may read is looked for among its own node's pods
//! first. A moment behind, so a pod that is not found here is looked for in the store.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use keelson_machinery::resource::ResourceDef;
use keelson_machinery::resources::find;
use keelson_store::{EventKind, KeyRange, KeyValue, WatchRequest};
use parking_lot::RwLock;

use super::Authorization;
use crate::{ApiServer, encryption};

/// Pause before the pods are followed anew after their watch broke.
const RETRY: Duration = Duration::from_millis(500);

/// Keys of pods by their node.
#[derive(Default)]
pub struct Placed(RwLock<HashMap<String, HashSet<Bytes>>>);

/// The node of a stored pod, "" for none.
pub(super) fn node_of_pod(def: &ResourceDef, pod: &KeyValue) -> String {
    let field = def.selectable_fields.iter().position(|field| *field == "spec.nodeName");
    let head = encryption::stored(pod).map(|stored| stored.head);
    field.zip(head.ok()).and_then(|(at, head)| head.fields.get(at).cloned()).unwrap_or_default()
}

impl Placed {
    /// Keys of the pods on a node.
    pub fn on(&self, node: &str) -> Vec<Bytes> {
        self.0.read().get(node).map(|keys| keys.iter().cloned().collect()).unwrap_or_default()
    }

    fn put(&self, node: String, key: Bytes) {
        if !node.is_empty() {
            self.0.write().entry(node).or_default().insert(key);
        }
    }

    /// Forgets a pod that was on `node` ("": not known where).
    fn remove(&self, node: &str, key: &Bytes) {
        let mut nodes = self.0.write();
        match nodes.get_mut(node) {
            Some(keys) => {
                keys.remove(key);
                if keys.is_empty() {
                    nodes.remove(node);
                }
            }
            None => nodes.retain(|_, keys| !keys.remove(key) || !keys.is_empty()),
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
        placed.0.write().clear();
        for pod in view.range(&range) {
            placed.put(node_of_pod(def, pod), pod.key.clone());
        }
        let request = WatchRequest { range: range.clone(), start_revision: view.revision() + 1 };
        drop(view);
        if let Ok(mut watch) = kv.watch(request) {
            while let Some(Ok(batch)) = watch.next().await {
                for event in &batch.events {
                    match event.kind {
                        EventKind::Put => placed.put(node_of_pod(def, &event.kv), event.kv.key.clone()),
                        EventKind::Delete => {
                            let node = event.prev.as_ref().map(|pod| node_of_pod(def, pod)).unwrap_or_default();
                            placed.remove(&node, &event.kv.key);
                        }
                    }
                }
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
        let placed = Placed::default();
        for (node, key) in [("one", "a"), ("one", "b"), ("two", "c"), ("", "d")] {
            placed.put(node.into(), key.into());
        }
        assert_eq!((placed.on("one").len(), placed.on("two").len(), placed.on("").len()), (2, 1, 0));
        placed.remove("one", &"a".into());
        // Its node is not told any more.
        placed.remove("", &"c".into());
        assert_eq!((placed.on("one"), placed.on("two")), (vec![Bytes::from("b")], vec![]));
        assert_eq!(placed.0.read().len(), 1, "nodes without pods are not kept");
    }
}
