//! Events of pods and the node, as `kubectl describe` shows them: the same event again raises a count instead of making
//! a new object.

use std::collections::HashMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, Pod};
use keelson_client::{Client, Error, PatchType};
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// Events that wait to be written; beyond, they are dropped: events are for people and never hold up a pod.
const PENDING: usize = 256;
/// Different events that are remembered for counting.
const REMEMBERED: usize = 1024;
/// Longest message that is written, bytes.
const MAX_MESSAGE: usize = 1000;

/// The reason of an event or a failure: one of ours, or one that names a resource.
pub type Reason = std::borrow::Cow<'static, str>;

/// Takes events; cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    sender: mpsc::Sender<Noted>,
}

struct Noted {
    namespace: String,
    object: Value,
    warning: bool,
    reason: Reason,
    message: String,
}

/// What makes two events the same.
type Key = (String, String, Reason, String);

impl Recorder {
    /// A recorder that writes as the kubelet of `node`.
    pub fn start(client: Client, node: String) -> Self {
        let (sender, receiver) = mpsc::channel(PENDING);
        tokio::spawn(write_all(client, node, receiver));
        Self { sender }
    }

    /// Something that goes as it should.
    pub fn normal(&self, pod: &Pod, container: Option<&str>, reason: impl Into<Reason>, message: impl Into<String>) {
        self.note(pod, container, false, reason.into(), message.into());
    }

    /// Something that does not.
    pub fn warning(&self, pod: &Pod, container: Option<&str>, reason: impl Into<Reason>, message: impl Into<String>) {
        self.note(pod, container, true, reason.into(), message.into());
    }

    fn note(&self, pod: &Pod, container: Option<&str>, warning: bool, reason: Reason, message: String) {
        let meta = &pod.metadata;
        let mut object = json!({"apiVersion": "v1", "kind": "Pod", "name": meta.name, "namespace": meta.namespace,
            "uid": meta.uid, "resourceVersion": meta.resource_version});
        if let Some(container) = container {
            object["fieldPath"] = field_path(pod, container).into();
        }
        let namespace = meta.namespace.clone().unwrap_or_default();
        self.push(Noted { namespace, object, warning, reason, message });
    }

    /// Something about the node itself.
    pub fn node(&self, node: &str, warning: bool, reason: impl Into<Reason>, message: impl Into<String>) {
        let object = json!({"apiVersion": "v1", "kind": "Node", "name": node, "uid": node});
        self.push(Noted {
            namespace: "default".into(),
            object,
            warning,
            reason: reason.into(),
            message: message.into(),
        });
    }

    fn push(&self, mut noted: Noted) {
        if noted.message.len() > MAX_MESSAGE {
            let end = (0..=MAX_MESSAGE).rev().find(|i| noted.message.is_char_boundary(*i)).unwrap_or(0);
            noted.message.truncate(end);
        }
        if self.sender.try_send(noted).is_err() {
            tracing::debug!("an event was dropped: too many wait");
        }
    }
}

fn field_path(pod: &Pod, container: &str) -> String {
    let spec = pod.spec.as_ref();
    let init = spec.and_then(|s| s.init_containers.as_ref()).is_some_and(|l| l.iter().any(|c| c.name == container));
    let ephemeral =
        spec.and_then(|s| s.ephemeral_containers.as_ref()).is_some_and(|l| l.iter().any(|c| c.name == container));
    let list = if init { "spec.initContainers" } else { "spec.containers" };
    format!("{}{{{container}}}", if ephemeral { "spec.ephemeralContainers" } else { list })
}

async fn write_all(client: Client, node: String, mut receiver: mpsc::Receiver<Noted>) {
    // The object's name and how often it happened.
    let mut known: HashMap<Key, (String, i64)> = HashMap::new();
    while let Some(noted) = receiver.recv().await {
        let text = |key: &str| noted.object[key].as_str().unwrap_or_default().to_owned();
        let key: Key = (text("uid"), text("fieldPath"), noted.reason.clone(), noted.message.clone());
        if known.len() >= REMEMBERED {
            known.clear();
        }
        let again = known.get(&key).cloned();
        let written = match again {
            Some((name, count)) => raise(&client, &noted, &name, count + 1).await.map(|()| (name, count + 1)),
            None => create(&client, &node, &noted).await.map(|name| (name, 1)),
        };
        match written {
            Ok(entry) => {
                known.insert(key, entry);
            }
            Err(error) => {
                tracing::debug!(%error, reason = %noted.reason, "an event could not be written");
                known.remove(&key);
            }
        }
    }
}

fn now() -> String {
    format!("{:.0}", Timestamp::now())
}

async fn create(client: &Client, node: &str, noted: &Noted) -> Result<String, Error> {
    let object = noted.object["name"].as_str().unwrap_or_default();
    let unique: u64 = rand::random();
    let event: Event = serde_json::from_value(json!({
        "metadata": {"name": format!("{object}.{unique:016x}"), "namespace": noted.namespace},
        "involvedObject": noted.object, "reason": noted.reason, "message": noted.message,
        "type": if noted.warning { "Warning" } else { "Normal" },
        "source": {"component": "kubelet", "host": node},
        "reportingComponent": "kubelet", "reportingInstance": node,
        "firstTimestamp": now(), "lastTimestamp": now(), "count": 1,
    }))?;
    let made = client.namespaced::<Event>(&noted.namespace).create(&event).await?;
    Ok(made.metadata.name.unwrap_or_default())
}

async fn raise(client: &Client, noted: &Noted, name: &str, count: i64) -> Result<(), Error> {
    let patch = json!({"count": count, "lastTimestamp": now()});
    let api = client.namespaced::<Event>(&noted.namespace);
    api.patch(name, None, PatchType::Merge, &patch).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_have_their_list_in_the_path() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [{"name": "a"}],
            "initContainers": [{"name": "b"}], "ephemeralContainers": [{"name": "c"}]}}))
        .unwrap();
        for (name, wanted) in
            [("a", "spec.containers{a}"), ("b", "spec.initContainers{b}"), ("c", "spec.ephemeralContainers{c}")]
        {
            assert_eq!(field_path(&pod, name), wanted);
        }
    }
}
