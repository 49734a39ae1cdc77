//! An API in memory: pods that are listed, watched and reported on, config maps, and nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;

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

/// The API.
pub struct Api {
    pods: Mutex<(u64, BTreeMap<String, Value>)>,
    config_maps: Mutex<BTreeMap<String, Value>>,
    /// Anything else, by its path below the group's version.
    others: Mutex<BTreeMap<String, Value>>,
    events: broadcast::Sender<Value>,
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
        })
    }

    /// A pod; `null` if there is none.
    pub fn pod(&self, name: &str) -> Value {
        self.pods.lock().1.get(name).cloned().unwrap_or_default()
    }

    /// Creates or changes a pod.
    pub fn change(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut pods = self.pods.lock();
        pods.0 += 1;
        let version = pods.0;
        let known = pods.1.contains_key(name);
        let pod = pods.1.entry(name.to_owned()).or_default();
        change(pod);
        pod["metadata"]["resourceVersion"] = version.to_string().into();
        let kind = if known { "MODIFIED" } else { "ADDED" };
        // Nobody may be watching.
        let _ = self.events.send(json!({"type": kind, "object": pod}));
    }

    /// Creates a pod on the node `n` from its spec.
    pub fn create(&self, name: &str, mut spec: Value) {
        spec["nodeName"] = "n".into();
        let uid = format!("uid-{name}");
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
        self.pods.lock().1.remove(name);
    }

    fn remove(&self, name: &str) {
        if let Some(pod) = self.pods.lock().1.remove(name) {
            let _ = self.events.send(json!({"type": "DELETED", "object": pod}));
        }
    }

    fn pods(&self, method: &str, path: &str, sent: &Value) -> http::Response<Body> {
        let name = path.split(['?', '/']).skip_while(|p| *p != "pods").nth(1).unwrap_or_default().to_owned();
        match method {
            "GET" if path.contains("watch=true") => {
                let receiver = self.events.subscribe();
                stream(futures::stream::unfold(receiver, |mut receiver| async {
                    let event = receiver.recv().await.ok()?;
                    Some((event, receiver))
                }))
            }
            "GET" => {
                let pods = self.pods.lock();
                let items: Vec<&Value> = pods.1.values().collect();
                answer(200, &json!({"metadata": {"resourceVersion": pods.0.to_string()}, "items": items}))
            }
            "POST" => {
                let name = sent["metadata"]["name"].as_str().unwrap_or_default();
                self.change(name, |pod| {
                    *pod = sent.clone();
                    pod["metadata"]["uid"] = format!("api-{name}").into();
                });
                answer(201, &self.pod(name))
            }
            "PUT" if self.pod(&name).is_null() => answer(404, &json!({"kind": "Status", "code": 404})),
            "PUT" if self.pod(&name)["metadata"]["resourceVersion"] != sent["metadata"]["resourceVersion"] => {
                answer(409, &json!({"kind": "Status", "code": 409}))
            }
            "PUT" => {
                self.change(&name, |pod| pod["status"] = sent["status"].clone());
                answer(200, &self.pod(&name))
            }
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
