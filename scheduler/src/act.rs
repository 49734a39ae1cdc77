//! What the decisions write: bindings, conditions, events, deletions of victims.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::resource::v1::{AllocationResult, ResourceClaim, ResourceClaimConsumerReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keelson_client::{Client, Error, PatchType};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tracing::{debug, warn};

use crate::core::Act;
use crate::events::{Events, Note};
use crate::extender::{Advice, Extender, Victims, ask, consult};
use crate::plugins::devices::Reservation;
use crate::plugins::volumes::Promise;
use crate::view::PodInfo;
use crate::volumes::{ClaimKey, SELECTED_NODE};

/// Longest wait for volumes to be bound.
const VOLUME_TIMEOUT: Duration = Duration::from_secs(600);
/// How often claims are looked at while they are bound.
const VOLUME_POLL: Duration = Duration::from_millis(500);
/// Says that a volume was bound by its claim's controller.
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// Keeps a claim that has devices from going.
const CLAIM_FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// How often a claim is written when others write to it at the same moment.
const CLAIM_TRIES: u32 = 5;
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
}

/// Writes decisions to an API server.
#[derive(Clone)]
pub struct Writer {
    client: Client,
    events: Events,
    /// The server takes one binding at a time only.
    one_by_one: Arc<AtomicBool>,
    extenders: Arc<[Extender]>,
}

/// What an item of the answer to many bindings may be.
#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    message: String,
}

impl Writer {
    /// A writer as `client`.
    pub fn new(client: Client, extenders: Arc<[Extender]>) -> Self {
        let events = Events::start(&client);
        Self { client, events, one_by_one: Arc::default(), extenders }
    }

    /// The extender that binds a pod.
    fn binder(&self, pod: &PodInfo) -> Option<&Extender> {
        self.extenders.iter().find(|e| e.binds() && e.concerns(pod))
    }

    /// Whether a binding goes the usual way, so that it can be written together with others.
    pub fn is_usual(&self, pod: &PodInfo, promise: &Promise) -> bool {
        *promise == Promise::default() && self.binder(pod).is_none()
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
        futures::future::join_all(bindings.into_iter().map(one)).await
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

    /// Carries out one decision.
    pub async fn carry_out(&self, act: Act) -> Done {
        match act {
            Act::Bind { pod, node, promise } => {
                let ready = match volumes(&self.client, &node, &promise).await {
                    Ok(()) => reserve(&self.client, &pod, &promise.devices).await,
                    failed => failed,
                };
                let result = match (ready, self.binder(&pod)) {
                    (Ok(()), Some(extender)) => extender.bind(&pod, &node).await.map_err(Error::from),
                    (Ok(()), None) => bind(&self.client, &pod, &node).await,
                    (Err(error), _) => Err(error),
                };
                self.bound(&Bind { pod, node }, result.map_err(|e| e.to_string()))
            }
            Act::Ask { pod, nodes } => {
                let advice = ask(&self.client, &self.extenders, &pod, &nodes).await;
                Done::Advised(pod.uid.clone(), advice)
            }
            Act::Consult { pod, candidates } => {
                let answer = consult(&self.client, &self.extenders, &pod, candidates).await;
                Done::Consulted(pod.uid.clone(), answer)
            }
            Act::Fail { pod, message, nominate, victims, unseated } => {
                for victim in &victims {
                    self.push_out(victim, &pod, nominate.as_deref().unwrap_or_default()).await;
                }
                for other in &unseated {
                    let patch = json!({"status": {"nominatedNodeName": null}});
                    if let Err(error) = patch_status(&self.client, other, &patch).await {
                        complain(other, "cannot clear the nominated node", &error);
                    }
                }
                if let Err(error) = self.fail(&pod, &message, nominate.as_deref()).await {
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

    /// Says on the pod why it is not scheduled. What it says already is not written again.
    async fn fail(&self, pod: &Arc<PodInfo>, message: &str, nominate: Option<&str>) -> Result<(), Error> {
        let mut status = json!({});
        let known = pod.condition.as_deref() == Some(message);
        if !known {
            status["conditions"] = json!([{
                "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
                "lastProbeTime": null, "lastTransitionTime": now(),
            }]);
            self.tell(pod, None, ("Warning", "FailedScheduling", "Scheduling"), message.to_owned());
        }
        if let Some(node) = nominate {
            status["nominatedNodeName"] = if node.is_empty() { Value::Null } else { node.into() };
        }
        if known && nominate.is_none() {
            return Ok(());
        }
        // The uid makes sure that a pod of the same name that came later is left alone.
        patch_status(&self.client, pod, &json!({"metadata": {"uid": &*pod.uid}, "status": status})).await
    }

    /// Deletes a pod to make room.
    async fn push_out(&self, victim: &Arc<PodInfo>, by: &Arc<PodInfo>, node: &str) {
        if victim.terminating {
            return;
        }
        let patch = json!({"metadata": {"uid": &*victim.uid}, "status": {"conditions": [{
            "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
            "message": format!("{}: preempting to accommodate a higher priority pod", by.class.scheduler),
            "lastProbeTime": null, "lastTransitionTime": now(),
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

fn complain(pod: &PodInfo, what: &str, error: &Error) {
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

/// Gives claims their volumes, or has volumes made, and waits until they are bound.
async fn volumes(client: &Client, node: &str, promise: &Promise) -> Result<(), Error> {
    for (volume, (namespace, name)) in &promise.bind {
        let claim = client.namespaced::<PersistentVolumeClaim>(namespace).get(name).await?;
        let reference = json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": &**namespace, "name": &**name,
            "uid": claim.metadata.uid, "resourceVersion": claim.metadata.resource_version,
        });
        let patch = json!({
            "metadata": {"annotations": {BOUND_BY_CONTROLLER: "yes"}}, "spec": {"claimRef": reference},
        });
        client.cluster::<PersistentVolume>().patch(volume, None, PatchType::Merge, &patch).await?;
    }
    for (namespace, name) in &promise.provision {
        let patch = json!({"metadata": {"annotations": {SELECTED_NODE: node}}});
        client.namespaced::<PersistentVolumeClaim>(namespace).patch(name, None, PatchType::Merge, &patch).await?;
    }
    let claims: Vec<&ClaimKey> = promise.bind.iter().map(|(_, claim)| claim).chain(&promise.provision).collect();
    let bound = async {
        for (namespace, name) in claims {
            loop {
                let claim = client.namespaced::<PersistentVolumeClaim>(namespace).get(name).await?;
                if claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound") {
                    break;
                }
                tokio::time::sleep(VOLUME_POLL).await;
            }
        }
        Ok(())
    };
    let late = || std::io::Error::other("binding volumes: context deadline exceeded");
    tokio::time::timeout(VOLUME_TIMEOUT, bound).await.map_err(|_| late())?
}

/// Gives claims their devices and says that the pod uses them.
async fn reserve(client: &Client, pod: &PodInfo, reservations: &[Reservation]) -> Result<(), Error> {
    for reservation in reservations {
        let mut tries = 1;
        // Others write to a claim too: its controller, drivers, users.
        while let Err(error) = reserve_one(client, pod, reservation).await {
            if !error.is_conflict() || tries == CLAIM_TRIES {
                return Err(error);
            }
            tries += 1;
        }
    }
    Ok(())
}

async fn reserve_one(client: &Client, pod: &PodInfo, reservation: &Reservation) -> Result<(), Error> {
    let Reservation { key: (namespace, name), uid, allocation } = reservation;
    let api = client.namespaced::<ResourceClaim>(namespace);
    let mut claim = api.get(name).await?;
    let changed = |why: &str| Error::from(std::io::Error::other(format!("resourceclaim {namespace}/{name} {why}")));
    if claim.metadata.uid.as_ref() != Some(uid) {
        return Err(changed("is another one now"));
    }
    let finalizers = claim.metadata.finalizers.get_or_insert_default();
    if !finalizers.iter().any(|finalizer| finalizer == CLAIM_FINALIZER) {
        finalizers.push(CLAIM_FINALIZER.into());
        claim = api.replace(name, &claim).await?;
    }
    let status = claim.status.get_or_insert_default();
    if status.allocation.is_none() {
        let allocation = allocation.as_ref().ok_or_else(|| changed("has lost its devices"))?;
        let mut allocation = (**allocation).clone();
        allocation.allocation_timestamp = Some(Time(jiff::Timestamp::now()));
        status.allocation = Some(allocation);
    } else if allocation.as_ref().is_some_and(|ours| !same_devices(ours, status.allocation.as_ref())) {
        return Err(changed("got other devices meanwhile"));
    }
    let users = status.reserved_for.get_or_insert_default();
    if users.iter().any(|user| *user.uid == *pod.uid) {
        return Ok(());
    }
    users.push(ResourceClaimConsumerReference {
        api_group: None,
        name: pod.name.to_string(),
        resource: "pods".into(),
        uid: pod.uid.to_string(),
    });
    api.replace_status(name, &claim).await.map(drop)
}

fn same_devices(ours: &AllocationResult, stored: Option<&AllocationResult>) -> bool {
    stored.is_some_and(|stored| stored.devices == ours.devices)
}

async fn patch_status(client: &Client, pod: &PodInfo, patch: &Value) -> Result<(), Error> {
    let api = client.namespaced::<Pod>(&pod.class.namespace);
    api.patch(&pod.name, Some("status"), PatchType::Strategic, patch).await.map(drop)
}

fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
