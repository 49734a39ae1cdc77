//! The Kubernetes API as the harness asks it: one client for each server, answers as JSON, and what their lack means.

pub mod observe;
pub mod reduce;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::Method;
use keelson_client::{Client, Error};
use parking_lot::{Mutex, RwLock};
use serde_json::Value;

use crate::etcd::{Answer, Failure};
use observe::{Observers, Seen};

/// How long an answer is awaited.
const TIMEOUT: Duration = Duration::from_secs(10);
/// What the harness calls itself, which is also the manager of the fields that it writes.
const AGENT: &str = "chaos";

/// One server's API.
#[derive(Clone)]
pub struct Kube {
    kubeconfig: Arc<PathBuf>,
    client: Arc<RwLock<Client>>,
}

/// A cluster: its servers, and what informers at them saw.
pub struct Cluster {
    servers: Vec<Kube>,
    observers: Mutex<Option<Arc<Observers>>>,
    seen: Mutex<Option<Arc<Seen>>>,
}

impl Cluster {
    /// A cluster that nobody observes yet.
    pub fn new(servers: Vec<Kube>) -> Self {
        Self { servers, observers: Mutex::default(), seen: Mutex::default() }
    }

    /// The API of every server.
    pub fn servers(&self) -> &[Kube] {
        &self.servers
    }

    /// Starts informers at every server.
    pub fn observe(&self) {
        *self.observers.lock() = Some(Arc::new(Observers::start(&self.servers)));
    }

    /// Waits until informers have caught up, and ends them.
    pub async fn finish(&self) -> anyhow::Result<()> {
        let observers = self.observers.lock().take();
        if let Some(observers) = observers {
            let seen = observers.finish().await?;
            *self.seen.lock() = Some(Arc::new(seen));
        }
        Ok(())
    }

    /// What they saw, once they have ended.
    pub fn seen(&self) -> Option<Arc<Seen>> {
        self.seen.lock().clone()
    }
}

/// A kind of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Its plural name.
    pub plural: &'static str,
    /// Group and version as the API's paths have them.
    pub root: &'static str,
    /// Whether its objects are in namespaces.
    pub namespaced: bool,
}

impl Kind {
    const fn new(plural: &'static str, root: &'static str, namespaced: bool) -> Self {
        Self { plural, root, namespaced }
    }

    /// The path of all its objects, those of a namespace, or one of them.
    pub fn path(&self, namespace: &str, name: &str) -> String {
        let mut path = format!("/{}", self.root);
        if self.namespaced && !namespace.is_empty() {
            path += &format!("/namespaces/{namespace}");
        }
        path += &format!("/{}", self.plural);
        if name.is_empty() { path } else { format!("{path}/{name}") }
    }
}

/// Pods.
pub const PODS: Kind = Kind::new("pods", "api/v1", true);
/// Nodes.
pub const NODES: Kind = Kind::new("nodes", "api/v1", false);
/// Namespaces.
pub const NAMESPACES: Kind = Kind::new("namespaces", "api/v1", false);
/// ConfigMaps.
pub const CONFIG_MAPS: Kind = Kind::new("configmaps", "api/v1", true);
/// ResourceQuotas.
pub const QUOTAS: Kind = Kind::new("resourcequotas", "api/v1", true);
/// Leases.
pub const LEASES: Kind = Kind::new("leases", "apis/coordination.k8s.io/v1", true);
/// Deployments.
pub const DEPLOYMENTS: Kind = Kind::new("deployments", "apis/apps/v1", true);
/// ReplicaSets.
pub const REPLICA_SETS: Kind = Kind::new("replicasets", "apis/apps/v1", true);
/// StatefulSets.
pub const STATEFUL_SETS: Kind = Kind::new("statefulsets", "apis/apps/v1", true);
/// Jobs.
pub const JOBS: Kind = Kind::new("jobs", "apis/batch/v1", true);
/// CustomResourceDefinitions.
pub const DEFINITIONS: Kind = Kind::new("customresourcedefinitions", "apis/apiextensions.k8s.io/v1", false);

/// Kinds that are observed on every server.
pub const OBSERVED: &[Kind] = &[
    PODS,
    NODES,
    NAMESPACES,
    CONFIG_MAPS,
    QUOTAS,
    LEASES,
    DEPLOYMENTS,
    REPLICA_SETS,
    STATEFUL_SETS,
    JOBS,
    DEFINITIONS,
];

fn connect(kubeconfig: &Path) -> anyhow::Result<Client> {
    Ok(keelson_client::https::from_kubeconfig(kubeconfig, AGENT)?)
}

impl Kube {
    /// The API of the server whose admin's kubeconfig this is.
    pub fn new(kubeconfig: PathBuf) -> anyhow::Result<Self> {
        let client = connect(&kubeconfig)?;
        Ok(Self { kubeconfig: Arc::new(kubeconfig), client: Arc::new(RwLock::new(client)) })
    }

    fn client(&self) -> Client {
        self.client.read().clone()
    }

    /// Sends a request and waits for its answer for a limited time.
    pub async fn ask(&self, method: Method, path: &str, kind: Option<&str>, body: Option<&Value>) -> Answer<Value> {
        let bytes = body.map_or_else(Bytes::new, |body| body.to_string().into());
        let client = self.client();
        let call = client.request::<Value>(method, path, kind, bytes);
        match tokio::time::timeout(TIMEOUT, call).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                let failure = failure(&error);
                // Certificates may have been made anew.
                if matches!(error, Error::Transport(_)) || error.code() == 401 {
                    self.reconnect();
                }
                Err(failure)
            }
            Err(_) => Err(Failure::Unknown("no answer in time".into())),
        }
    }

    fn reconnect(&self) {
        if let Ok(client) = connect(&self.kubeconfig) {
            *self.client.write() = client;
        }
    }

    /// Reads an object or a list.
    pub async fn get(&self, path: &str) -> Answer<Value> {
        self.ask(Method::GET, path, None, None).await
    }

    /// Creates an object.
    pub async fn create(&self, path: &str, object: &Value) -> Answer<Value> {
        self.ask(Method::POST, path, Some("application/json"), Some(object)).await
    }

    /// Replaces an object, if it is still of the version that it names.
    pub async fn replace(&self, path: &str, object: &Value) -> Answer<Value> {
        self.ask(Method::PUT, path, Some("application/json"), Some(object)).await
    }

    /// Changes parts of an object.
    pub async fn patch(&self, path: &str, patch: &Value) -> Answer<Value> {
        self.ask(Method::PATCH, path, Some("application/merge-patch+json"), Some(patch)).await
    }

    /// Deletes an object.
    pub async fn delete(&self, path: &str) -> Answer<Value> {
        self.ask(Method::DELETE, path, Some("application/json"), Some(&serde_json::json!({}))).await
    }

    /// Events of a kind after a version: a line of JSON each.
    pub async fn watch(
        &self,
        path: &str,
        after: &str,
    ) -> Answer<impl Stream<Item = Result<Value, String>> + Send + Unpin + use<>> {
        let query = format!("{path}?watch=1&allowWatchBookmarks=true&resourceVersion={after}");
        let client = self.client();
        let lines = match tokio::time::timeout(TIMEOUT, client.lines(&query, "application/json")).await {
            Ok(Ok(lines)) => lines,
            Ok(Err(error)) => {
                if matches!(error, Error::Transport(_)) || error.code() == 401 {
                    self.reconnect();
                }
                return Err(failure(&error));
            }
            Err(_) => return Err(Failure::Unknown("no answer in time".into())),
        };
        let parsed = lines.map(|line| {
            let line = line.map_err(|error| error.to_string())?;
            serde_json::from_str(&line).map_err(|error| format!("{error}: {line}"))
        });
        Ok(parsed.boxed())
    }
}

/// Only what a server decides before it writes is a refusal.
fn failure(error: &Error) -> Failure {
    let text = format!("{} {error}", error.code());
    match error.code() {
        400..=499 => Failure::Refused(text),
        _ => Failure::Unknown(text),
    }
}

/// The code with which a request was refused; 0 if it was not.
pub fn code(failure: &Failure) -> u16 {
    match failure {
        Failure::Refused(text) => text.split(' ').next().and_then(|code| code.parse().ok()).unwrap_or(0),
        Failure::Unknown(_) => 0,
    }
}

/// A place in an object as text.
pub fn text<'v>(object: &'v Value, pointer: &str) -> &'v str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The version of an object or list.
pub fn version(object: &Value) -> i64 {
    text(object, "/metadata/resourceVersion").parse().unwrap_or(0)
}
