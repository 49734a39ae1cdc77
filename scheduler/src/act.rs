//! What the decisions write: bindings, conditions, events, deletions of victims.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::scheduling::v1alpha2::PodGroup;
use keelson_client::{Client, Error, PatchType};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;
use tracing::{debug, warn};

use crate::awaited::Awaited;
use crate::core::Act;
use crate::events::{Events, Note};
use crate::extender::{Advice, Extender, Victims, ask, consult};
use crate::plugins::volumes::Promise;
use crate::pod_groups::{CONDITION, GroupKey, Told};
use crate::prepare::{Preparation, let_go};
use crate::view::{PodInfo, Unscheduled};

/// Where keelson's API server takes many bindings at once.
const BINDINGS: &str = "/keelson/v1/bindings";

/// A placement to be written.
#[derive(Clone, Debug)]
pub struct Bind {
    /// The pod.
    pub pod: Arc<PodInfo>,
    /// The node.
    pub node: Arc<str>,
}

/// What was written.
#[derive(Clone, Debug)]
pub enum Done {
    /// A binding, or not.
    Bound(Arc<str>, bool),
    /// A failure.
    Told(Arc<str>),
    /// What extenders say of a pod; nothing was written.
    Advised(Arc<str>, Result<Advice, String>),
    /// What extenders say of who may be pushed out for a pod.
    Consulted(Arc<str>, Result<Vec<Victims>, String>),
    /// What a group was told.
    Noted,
}

/// Writes decisions to an API server.
#[derive(Clone)]
pub struct Writer {
    client: Client,
    events: Events,
    /// The server takes one binding at a time only.
    one_by_one: Arc<AtomicBool>,
    extenders: Arc<[Extender]>,
    awaited: Arc<Awaited>,
}

/// What an item of the answer to many bindings may be.
#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    message: String,
}

impl Writer {
    /// A writer as `client`.
    pub fn new(client: Client, extenders: Arc<[Extender]>, awaited: Arc<Awaited>) -> Self {
        let events = Events::start(&client);
        Self { client, events, one_by_one: Arc::default(), extenders, awaited }
    }

    /// The extender that binds a pod.
    fn binder(&self, pod: &PodInfo) -> Option<&Extender> {
        self.extenders.iter().find(|e| e.binds() && e.concerns(pod))
    }

    /// Whether a binding goes the usual way, so that it can be written together with others.
    pub fn is_usual(&self, pod: &PodInfo, promise: &Promise) -> bool {
        promise.is_empty() && self.binder(pod).is_none()
    }

    /// Writes many bindings in one request, if the server takes them so.
    pub async fn bind_many(&self, bindings: Vec<Bind>) -> Vec<Done> {
        if !self.one_by_one.load(Ordering::Relaxed) {
            match self.post_many(&bindings).await {
                Ok(results) => {
                    let each = bindings.iter().zip(results);
                    return each.map(|(binding, result)| self.bound(binding, result)).collect();
                }
                Err(error) if error.code() == 404 => self.one_by_one.store(true, Ordering::Relaxed),
                Err(error) => {
                    let why = error.to_string();
                    return bindings.iter().map(|binding| self.bound(binding, Err(why.clone()))).collect();
                }
            }
        }
        let one = |binding: Bind| async move {
            let result = bind(&self.client, &binding.pod, &binding.node).await.map_err(|e| e.to_string());
            self.bound(&binding, result)
        };
        join_all(bindings.into_iter().map(one)).await
    }

    async fn post_many(&self, bindings: &[Bind]) -> Result<Vec<Result<(), String>>, Error> {
        let item = |b: &Bind| json!({"namespace": &*b.pod.class.namespace, "name": &*b.pod.name, "uid": &*b.pod.uid, "node": &*b.node});
        let body = Value::from_iter(bindings.iter().map(item)).to_string().into();
        let answer: Vec<Option<Refusal>> =
            self.client.request(http::Method::POST, BINDINGS, Some("application/json"), body).await?;
        if answer.len() != bindings.len() {
            return Err(std::io::Error::other("the answer to bindings has another length").into());
        }
        Ok(answer.into_iter().map(|refusal| refusal.map_or(Ok(()), |r| Err(r.message))).collect())
    }

    /// Tells how a binding went.
    fn bound(&self, binding: &Bind, result: Result<(), String>) -> Done {
        let Bind { pod, node } = binding;
        match &result {
            Ok(()) => {
                let message = format!("Successfully assigned {} to {node}", pod.full_name());
                self.tell(pod, None, ("Normal", "Scheduled", "Binding"), message);
            }
            Err(why) => {
                debug!(pod = pod.full_name(), why, "the binding was refused");
                let message = format!("Binding rejected: {why}");
                self.tell(pod, None, ("Warning", "FailedScheduling", "Binding"), message);
            }
        }
        Done::Bound(pod.uid.clone(), result.is_ok())
    }

    /// Volumes and devices first, then the binding.
    async fn bind_prepared(&self, binding: Bind, promise: &Promise, turn: Option<OwnedSemaphorePermit>) -> Done {
        let Bind { pod, node } = &binding;
        let mut preparation = Preparation::new(&self.client, &self.events, &self.awaited, pod, node, turn);
        if let Err((plugin, why)) = preparation.run(promise).await {
            preparation.undo().await;
            let message = format!("running PreBind plugin {plugin:?}: {why}");
            if let Err(error) = self.in_error(pod, &message).await {
                complain(pod, "cannot write why it is not bound", &error);
            }
            return Done::Bound(pod.uid.clone(), false);
        }
        let result = match self.binder(pod) {
            Some(extender) => extender.bind(pod, node).await.map_err(Error::from),
            None => bind(&self.client, pod, node).await,
        };
        if result.is_err() {
            preparation.undo().await;
        }
        self.bound(&binding, result.map_err(|e| e.to_string()))
    }

    /// Says that the scheduler failed, not the pod.
    async fn in_error(&self, pod: &Arc<PodInfo>, message: &str) -> Result<(), Error> {
        self.tell(pod, None, ("Warning", "FailedScheduling", "Scheduling"), message.to_owned());
        let status = json!({"conditions": [unscheduled(pod, "SchedulerError", message)], "nominatedNodeName": null});
        patch_status(&self.client, pod, &json!({"metadata": {"uid": &*pod.uid}, "status": status})).await
    }

    /// Carries out one decision. `turn` is given back early if it has to wait for others.
    pub async fn carry_out(&self, act: Act, turn: Option<OwnedSemaphorePermit>) -> Done {
        match act {
            Act::Bind { pod, node, promise } => self.bind_prepared(Bind { pod, node }, &promise, turn).await,
            Act::Ask { pod, nodes } => {
                let advice = ask(&self.client, &self.extenders, &pod, &nodes).await;
                Done::Advised(pod.uid.clone(), advice)
            }
            Act::Group { key, uid, told } => {
                self.note(&key, &uid, &told).await;
                Done::Noted
            }
            Act::Consult { pod, candidates } => {
                let answer = consult(&self.client, &self.extenders, &pod, candidates).await;
                Done::Consulted(pod.uid.clone(), answer)
            }
            Act::Fail { pod, message, nominate, victims, unseated, release } => {
                if let Some(release) = &release
                    && let Err(error) = let_go(&self.client, &pod, release).await
                {
                    complain(&pod, "cannot take the devices back from its claim", &error);
                }
                // Room is made while the pod is told: it is not tried again before both are done.
                let node = nominate.as_deref();
                let room = victims.iter().map(|victim| self.push_out(victim, &pod, node.unwrap_or_default()));
                let unseated = unseated.iter().map(|other| self.unseat(other));
                let (told, ..) = futures::join!(self.fail(&pod, &message, node), join_all(room), join_all(unseated));
                if let Err(error) = told {
                    complain(&pod, "cannot write why it is not scheduled", &error);
                }
                Done::Told(pod.uid.clone())
            }
        }
    }

    fn tell(
        &self,
        pod: &Arc<PodInfo>,
        related: Option<&Arc<PodInfo>>,
        (kind, reason, action): (&'static str, &'static str, &'static str),
        message: String,
    ) {
        let (pod, related, time) = (pod.clone(), related.cloned(), jiff::Timestamp::now());
        self.events.tell(Note { pod, related, kind, reason, action, message, time });
    }

    /// Says on the pod why it is not scheduled. What it says already is not written again; the event of it counts.
    async fn fail(&self, pod: &Arc<PodInfo>, message: &str, nominate: Option<&str>) -> Result<(), Error> {
        let mut status = json!({});
        let is_known = |c: &Arc<Unscheduled>| {
            (&*c.reason, &*c.message, c.generation) == ("Unschedulable", message, pod.generation)
        };
        let known = pod.condition.as_ref().is_some_and(is_known);
        if !known {
            status["conditions"] = json!([unscheduled(pod, "Unschedulable", message)]);
        }
        self.tell(pod, None, ("Warning", "FailedScheduling", "Scheduling"), message.to_owned());
        if let Some(node) = nominate {
            status["nominatedNodeName"] = if node.is_empty() { Value::Null } else { node.into() };
        }
        if known && nominate.is_none() {
            return Ok(());
        }
        // The uid makes sure that a pod of the same name that came later is left alone.
        patch_status(&self.client, pod, &json!({"metadata": {"uid": &*pod.uid}, "status": status})).await
    }

    /// Says of a group whether it is scheduled.
    async fn note(&self, (namespace, name): &GroupKey, uid: &str, told: &Told) {
        let mut condition = json!({
            "type": CONDITION, "status": if told.scheduled { "True" } else { "False" }, "reason": &*told.reason,
            "message": &*told.message,
            "lastTransitionTime": told.since.as_deref().map_or_else(now, str::to_owned),
        });
        if told.generation != 0 {
            condition["observedGeneration"] = told.generation.into();
        }
        let patch = json!({"metadata": {"uid": uid}, "status": {"conditions": [condition]}});
        let groups = self.client.namespaced::<PodGroup>(namespace);
        match groups.patch_unread(name, Some("status"), PatchType::Strategic, &patch).await {
            Err(error) if error.is_conflict() || error.is_not_found() => {
                debug!(%namespace, %name, %error, "the group is another one now");
            }
            Err(error) => warn!(%namespace, %name, %error, "cannot write whether a pod group is scheduled"),
            Ok(()) => {}
        }
    }

    /// Says on a pod that no node is kept for it any more.
    async fn unseat(&self, pod: &Arc<PodInfo>) {
        let patch = json!({"metadata": {"uid": &*pod.uid}, "status": {"nominatedNodeName": null}});
        if let Err(error) = patch_status(&self.client, pod, &patch).await {
            complain(pod, "cannot take the node from it that was kept for it", &error);
        }
    }

    /// Deletes a pod to make room.
    async fn push_out(&self, victim: &Arc<PodInfo>, by: &Arc<PodInfo>, node: &str) {
        if victim.terminating {
            return;
        }
        let patch = json!({"metadata": {"uid": &*victim.uid}, "status": {"conditions": [{
            "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
            "message": format!("{}: preempting to accommodate a higher priority pod", by.class.scheduler),
            "lastProbeTime": null, "lastTransitionTime": now(), "observedGeneration": victim.generation,
        }]}});
        let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": &*victim.uid}});
        let deleted = match patch_status(&self.client, victim, &patch).await {
            Ok(()) => self.client.namespaced::<Pod>(&victim.class.namespace).delete(&victim.name, &options).await,
            Err(error) => Err(error),
        };
        if let Err(error) = deleted {
            return complain(victim, "cannot delete to make room", &error);
        }
        let message = format!("Preempted by pod {} on node {node}", by.uid);
        self.tell(victim, Some(by), ("Normal", "Preempted", "Preempting"), message);
    }
}

/// The condition of a pod that is not scheduled. It was not before either: the time of the last change stays.
fn unscheduled(pod: &PodInfo, reason: &str, message: &str) -> Value {
    let since = pod.condition.as_ref().and_then(|c| c.since.as_deref());
    json!({"type": "PodScheduled", "status": "False", "reason": reason, "message": message, "lastProbeTime": null,
        "lastTransitionTime": since.map_or_else(now, str::to_owned), "observedGeneration": pod.generation})
}

pub(crate) fn complain(pod: &PodInfo, what: &str, error: &Error) {
    let name = pod.full_name();
    if error.is_conflict() || error.is_not_found() {
        debug!(pod = name, %error, what, "the view was behind");
    } else {
        warn!(pod = name, %error, "{what}");
    }
}

async fn bind(client: &Client, pod: &PodInfo, node: &str) -> Result<(), Error> {
    let namespace = &*pod.class.namespace;
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding",
        "metadata": {"name": &*pod.name, "namespace": namespace, "uid": &*pod.uid},
        "target": {"kind": "Node", "name": node},
    });
    let _: IgnoredAny = client.namespaced::<Pod>(namespace).create_subresource(&pod.name, "binding", &binding).await?;
    Ok(())
}

pub(crate) async fn patch_status(client: &Client, pod: &PodInfo, patch: &Value) -> Result<(), Error> {
    let api = client.namespaced::<Pod>(&pod.class.namespace);
    api.patch_unread(&pod.name, Some("status"), PatchType::Strategic, patch).await
}

pub(crate) fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
