//! An API in memory: pods that are listed, watched and reported on, config maps, and nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use http_body_util::{BodyExt, Full, StreamBody};
use keelson_client::{Body, Transport};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::broadcast;

/// Events that a slow watch may be behind.
const BACKLOG: usize = 10_000;

/// The pods with all that happened to them: a watch from a revision must not miss what came between it and its list.
#[derive(Default)]
struct Pods {
    revision: u64,
    known: BTreeMap<String, Value>,
    happened: Vec<(u64, Value)>,
}

impl Pods {
    /// Notes an event at the next revision, and tells it. Under the lock: watches hear of events in their order.
    fn happens(&mut self, kind: &str, mut object: Value, watches: &broadcast::Sender<Value>) {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = self.revision.to_string().into();
        let event = json!({"type": kind, "object": object});
        self.happened.push((self.revision, event.clone()));
        // Nobody may be watching.
        let _ = watches.send(event);
    }
}

/// How many there were in this process.
static MADE: AtomicU32 = AtomicU32::new(0);

/// The API.
pub struct Api {
    pods: Mutex<Pods>,
    config_maps: Mutex<BTreeMap<String, Value>>,
    /// Anything else, by its path below the group's version.
    others: Mutex<BTreeMap<String, Value>>,
    events: broadcast::Sender<Value>,
    /// Requests for what Kubernetes' API does not have.
    private: Mutex<Vec<String>>,
    /// Which one it is of this process.
    number: u32,
}

/// Resources of Kubernetes' API that are off by default.
const OPTIONAL: [&str; 1] = ["podcertificaterequests"];

/// Whether a path is one of a resource that Kubernetes' API has.
fn is_public(path: &str) -> bool {
    let path = path.split('?').next().unwrap_or_default();
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return false,
    };
    let plural = match rest {
        ["namespaces", _, plural, ..] => plural,
        [plural, ..] => plural,
        [] => return false,
    };
    let kubernetes = ["", "apps", "batch", "policy", "autoscaling"].contains(&group) || group.ends_with(".k8s.io");
    kubernetes && (keelson_machinery::resources::find(group, version, plural).is_some() || OPTIONAL.contains(plural))
}

fn answer(code: u16, value: &Value) -> http::Response<Body> {
    let body = Full::new(Bytes::from(value.to_string())).map_err(|e| match e {}).boxed_unsync();
    http::Response::builder().status(code).body(body).unwrap()
}

fn stream(frames: impl futures::Stream<Item = Value> + Send + 'static) -> http::Response<Body> {
    let lines = frames.map(|event| Ok(http_body::Frame::data(Bytes::from(event.to_string() + "\n"))));
    http::Response::new(StreamBody::new(lines).boxed_unsync())
}

impl Api {
    /// An empty one.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            pods: Mutex::default(),
            config_maps: Mutex::default(),
            others: Mutex::default(),
            events: broadcast::Sender::new(BACKLOG),
            private: Mutex::default(),
            number: MADE.fetch_add(1, Ordering::Relaxed),
        })
    }

    /// The agent is for any API server: what only this one has it must not ask for.
    pub fn was_asked_in_public(&self) {
        let private = self.private.lock();
        assert!(private.is_empty(), "no API server of Kubernetes knows {private:?}");
    }

    /// The uid of a pod that is created by this name. Control groups of pods are named after it, and whoever ends a pod
    /// ends all that is in its group: tests that run beside each other must not share any.
    pub fn uid(&self, name: &str) -> String {
        format!("uid-{name}-{}-{}", std::process::id(), self.number)
    }

    /// A pod; `null` if there is none.
    pub fn pod(&self, name: &str) -> Value {
        self.pods.lock().known.get(name).cloned().unwrap_or_default()
    }

    /// Creates or changes a pod.
    pub fn change(&self, name: &str, change: impl FnOnce(&mut Value)) {
        self.change_locked(&mut self.pods.lock(), name, change);
    }

    fn change_locked(&self, pods: &mut Pods, name: &str, change: impl FnOnce(&mut Value)) -> Value {
        let kind = if pods.known.contains_key(name) { "MODIFIED" } else { "ADDED" };
        let mut pod = pods.known.get(name).cloned().unwrap_or_default();
        change(&mut pod);
        pod["metadata"]["resourceVersion"] = (pods.revision + 1).to_string().into();
        pods.known.insert(name.to_owned(), pod.clone());
        pods.happens(kind, pod.clone(), &self.events);
        pod
    }

    /// Creates a pod on the node `n` from its spec.
    pub fn create(&self, name: &str, mut spec: Value) {
        spec["nodeName"] = "n".into();
        let uid = self.uid(name);
        self.change(name, |pod| {
            *pod = json!({"apiVersion": "v1", "kind": "Pod", "spec": spec,
                "metadata": {"name": name, "namespace": "default", "uid": uid, "labels": {"app": name}}});
        });
    }

    /// Asks for the deletion of a pod.
    pub fn delete(&self, name: &str, grace: i64) {
        self.change(name, |pod| {
            pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            pod["metadata"]["deletionGracePeriodSeconds"] = grace.into();
        });
    }

    /// Sets a config map's data.
    pub fn config_map(&self, name: &str, data: Value) {
        let object = json!({"metadata": {"name": name, "namespace": "default"}, "data": data});
        self.config_maps.lock().insert(name.to_owned(), object);
    }

    /// Sets an object of another kind, such as `nodes/n` or `namespaces/default/persistentvolumeclaims/c`.
    pub fn set(&self, path: &str, object: Value) {
        self.others.lock().insert(path.to_owned(), object);
    }

    /// Such an object; `null` if there is none.
    pub fn other(&self, path: &str) -> Value {
        self.others.lock().get(path).cloned().unwrap_or_default()
    }

    /// Answers a request for one of those, if it is there or is put there.
    fn kept(&self, method: &str, path: &str, sent: &Value) -> Option<http::Response<Body>> {
        let path = path.split('?').next().unwrap_or_default();
        let path = path.split('/').skip_while(|p| !p.starts_with('v')).skip(1).collect::<Vec<_>>().join("/");
        let mut others = self.others.lock();
        match method {
            "GET" => others.get(&path).map(|object| answer(200, object)),
            "POST" if path == "csinodes" => {
                let name = sent["metadata"]["name"].as_str().unwrap_or_default();
                others.insert(format!("{path}/{name}"), sent.clone());
                Some(answer(201, sent))
            }
            "POST" if path.ends_with("/podcertificaterequests") => {
                let name = sent["metadata"]["name"].as_str().unwrap_or_default();
                others.insert(format!("{path}/{name}"), sent.clone());
                others.insert("last podcertificaterequest".into(), format!("{path}/{name}").into());
                Some(answer(201, sent))
            }
            "PUT" if path.strip_suffix("/status").is_some_and(|base| others.contains_key(base)) => {
                let object = others.get_mut(path.trim_end_matches("/status"))?;
                object["status"] = sent["status"].clone();
                Some(answer(200, object))
            }
            "PUT" if others.contains_key(&path) => {
                others.insert(path, sent.clone());
                Some(answer(200, sent))
            }
            "PATCH" if others.contains_key(&path) => {
                let object = others.get_mut(&path)?;
                for part in ["labels", "annotations"] {
                    for (key, value) in sent["metadata"][part].as_object().into_iter().flatten() {
                        object["metadata"][part][key] = value.clone();
                    }
                }
                Some(answer(200, object))
            }
            _ => None,
        }
    }

    /// Removes a pod as if it had never been.
    pub fn forget(&self, name: &str) {
        self.pods.lock().known.remove(name);
    }

    fn remove(&self, name: &str) {
        let mut pods = self.pods.lock();
        if let Some(pod) = pods.known.remove(name) {
            pods.happens("DELETED", pod, &self.events);
        }
    }

    /// What happens after a revision: first what already has.
    fn watch(&self, path: &str) -> http::Response<Body> {
        let from = path.split(['?', '&']).find_map(|p| p.strip_prefix("resourceVersion=")).and_then(|v| v.parse().ok());
        let (before, receiver) = {
            let pods = self.pods.lock();
            let from: u64 = from.unwrap_or(pods.revision);
            let before: Vec<Value> =
                pods.happened.iter().filter(|(at, _)| *at > from).map(|(_, e)| e.clone()).collect();
            (before, self.events.subscribe())
        };
        let live = futures::stream::unfold(receiver, |mut receiver| async {
            let event = receiver.recv().await.ok()?;
            Some((event, receiver))
        });
        stream(futures::stream::iter(before).chain(live))
    }

    /// A new status. Looked at and written under one lock: a pod that goes meanwhile must not come back without a spec.
    fn put(&self, name: &str, sent: &Value) -> http::Response<Body> {
        let mut pods = self.pods.lock();
        let Some(present) = pods.known.get(name) else {
            return answer(404, &json!({"kind": "Status", "code": 404}));
        };
        if present["metadata"]["resourceVersion"] != sent["metadata"]["resourceVersion"] {
            return answer(409, &json!({"kind": "Status", "code": 409}));
        }
        let written = self.change_locked(&mut pods, name, |pod| pod["status"] = sent["status"].clone());
        answer(200, &written)
    }

    fn pods(&self, method: &str, path: &str, sent: &Value) -> http::Response<Body> {
        let name = path.split(['?', '/']).skip_while(|p| *p != "pods").nth(1).unwrap_or_default().to_owned();
        match method {
            "GET" if path.contains("watch=true") => self.watch(path),
            "GET" => {
                let pods = self.pods.lock();
                let items: Vec<&Value> = pods.known.values().collect();
                answer(200, &json!({"metadata": {"resourceVersion": pods.revision.to_string()}, "items": items}))
            }
            "POST" => {
                let name = sent["metadata"]["name"].as_str().unwrap_or_default();
                self.change(name, |pod| {
                    *pod = sent.clone();
                    pod["metadata"]["uid"] = format!("api-{name}").into();
                });
                answer(201, &self.pod(name))
            }
            "PUT" => self.put(&name, sent),
            _ => {
                self.remove(&name);
                answer(200, &json!({}))
            }
        }
    }
}

/// What the agent calls.
pub struct Calls(pub Arc<Api>);

impl Transport for Calls {
    fn call(&self, request: http::Request<Bytes>) -> BoxFuture<'_, std::io::Result<http::Response<Body>>> {
        let path = request.uri().to_string();
        let sent: Value = serde_json::from_slice(request.body()).unwrap_or_default();
        if !is_public(&path) {
            self.0.private.lock().push(format!("{} {path}", request.method()));
        }
        async move {
            let method = request.method().as_str();
            if path.contains("/pods") {
                return Ok(self.0.pods(method, &path, &sent));
            }
            if let Some(kept) = self.0.kept(method, &path, &sent) {
                return Ok(kept);
            }
            let list = path.split('?').next().is_some_and(|p| p.ends_with('s') && !p.contains("/configmaps/"));
            let map = path.split(['?', '/']).skip_while(|p| *p != "configmaps").nth(1);
            Ok(match (method, map) {
                ("GET", _) if path.contains("watch=true") => stream(futures::stream::pending()),
                ("GET", Some(name)) => match self.0.config_maps.lock().get(name) {
                    Some(object) => answer(200, object),
                    None => answer(404, &json!({"kind": "Status", "code": 404})),
                },
                ("GET", None) if list => answer(200, &json!({"metadata": {"resourceVersion": "1"}, "items": []})),
                ("GET", None) => answer(404, &json!({"kind": "Status", "code": 404})),
                ("POST", _) => {
                    let mut made = sent.clone();
                    made["metadata"]["uid"] = "uid".into();
                    answer(201, &made)
                }
                _ => answer(200, &sent),
            })
        }
        .boxed()
    }
}
