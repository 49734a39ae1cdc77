//! What the decisions write: bindings, conditions, events, deletions of victims.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, PersistentVolume, PersistentVolumeClaim, Pod};
use keelson_client::{Client, Error, PatchType};
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tracing::{debug, warn};

use crate::config::DEFAULT_NAME;
use crate::core::Act;
use crate::plugins::volumes::Promise;
use crate::view::PodInfo;
use crate::volumes::{ClaimKey, SELECTED_NODE};

/// Longest wait for volumes to be bound.
const VOLUME_TIMEOUT: Duration = Duration::from_secs(600);
/// How often claims are looked at while they are bound.
const VOLUME_POLL: Duration = Duration::from_millis(500);
/// Longest message of an event, bytes.
const MAX_EVENT_MESSAGE_BYTES: usize = 1024;
/// Says that a volume was bound by its claim's controller.
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";

/// Carries out one decision. For a binding: whether it succeeded.
pub async fn carry_out(client: &Client, act: Act) -> Option<(Arc<str>, bool)> {
    match act {
        Act::Bind { pod, node, promise } => {
            let bound = bind(client, &pod, &node, &promise).await;
            if let Err(error) = &bound {
                complain(&pod, "cannot bind", error);
                let message = format!("Binding rejected: {error}");
                event(client, &pod, &pod, "Warning", "FailedScheduling", "Binding", &message).await;
            } else {
                let message = format!("Successfully assigned {} to {node}", pod.full_name());
                event(client, &pod, &pod, "Normal", "Scheduled", "Binding", &message).await;
            }
            Some((pod.uid.clone(), bound.is_ok()))
        }
        Act::Fail { pod, message, nominate, victims, unseated } => {
            for victim in &victims {
                push_out(client, victim, &pod, nominate.as_deref().unwrap_or_default()).await;
            }
            for other in &unseated {
                let patch = json!({"status": {"nominatedNodeName": null}});
                if let Err(error) = patch_status(client, other, &patch).await {
                    complain(other, "cannot clear the nominated node", &error);
                }
            }
            if let Err(error) = fail(client, &pod, &message, nominate.as_deref()).await {
                complain(&pod, "cannot write why it is not scheduled", &error);
            }
            None
        }
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

async fn bind(client: &Client, pod: &PodInfo, node: &str, promise: &Promise) -> Result<(), Error> {
    volumes(client, node, promise).await?;
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

async fn patch_status(client: &Client, pod: &PodInfo, patch: &Value) -> Result<(), Error> {
    let api = client.namespaced::<Pod>(&pod.class.namespace);
    api.patch(&pod.name, Some("status"), PatchType::Strategic, patch).await.map(drop)
}

/// Says on the pod why it is not scheduled. What it says already is not written again.
async fn fail(client: &Client, pod: &PodInfo, message: &str, nominate: Option<&str>) -> Result<(), Error> {
    let mut status = json!({});
    let known = pod.condition.as_deref() == Some(message);
    if !known {
        status["conditions"] = json!([{
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
            "lastProbeTime": null, "lastTransitionTime": now(0),
        }]);
    }
    if let Some(node) = nominate {
        status["nominatedNodeName"] = if node.is_empty() { Value::Null } else { node.into() };
    }
    if !known {
        event(client, pod, pod, "Warning", "FailedScheduling", "Scheduling", message).await;
    }
    if !known || nominate.is_some() {
        // The uid makes sure that a pod of the same name that came later is left alone.
        patch_status(client, pod, &json!({"metadata": {"uid": &*pod.uid}, "status": status})).await?;
    }
    Ok(())
}

/// Deletes a pod to make room.
async fn push_out(client: &Client, victim: &PodInfo, by: &PodInfo, node: &str) {
    if victim.terminating {
        return;
    }
    let patch = json!({"metadata": {"uid": &*victim.uid}, "status": {"conditions": [{
        "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
        "message": format!("{}: preempting to accommodate a higher priority pod", by.class.scheduler),
        "lastProbeTime": null, "lastTransitionTime": now(0),
    }]}});
    let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": &*victim.uid}});
    let deleted = match patch_status(client, victim, &patch).await {
        Ok(()) => client.namespaced::<Pod>(&victim.class.namespace).delete(&victim.name, &options).await,
        Err(error) => Err(error),
    };
    if let Err(error) = deleted {
        return complain(victim, "cannot delete to make room", &error);
    }
    let message = format!("Preempted by pod {} on node {node}", by.uid);
    event(client, victim, by, "Normal", "Preempted", "Preempting", &message).await;
}

fn now(decimals: usize) -> String {
    let now = k8s_openapi::jiff::Timestamp::now();
    let format = if decimals == 0 { "%Y-%m-%dT%H:%M:%SZ" } else { "%Y-%m-%dT%H:%M:%S.%6fZ" };
    now.strftime(format).to_string()
}

/// Records an event about a pod. One that cannot be written is lost: it must not hold up what it tells of.
async fn event(
    client: &Client,
    pod: &PodInfo,
    related: &PodInfo,
    kind: &str,
    reason: &str,
    action: &str,
    message: &str,
) {
    let mut end = message.len().min(MAX_EVENT_MESSAGE_BYTES);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    let reference = |pod: &PodInfo| {
        json!({
            "kind": "Pod", "apiVersion": "v1", "namespace": &*pod.class.namespace, "name": &*pod.name,
            "uid": &*pod.uid, "resourceVersion": &*pod.version,
        })
    };
    let reporter = if pod.class.scheduler.is_empty() { DEFAULT_NAME } else { &*pod.class.scheduler };
    let time = k8s_openapi::jiff::Timestamp::now();
    let name = format!("{}.{:x}", pod.name, time.as_nanosecond());
    let mut value = json!({
        "metadata": {"name": name, "namespace": &*pod.class.namespace},
        "involvedObject": reference(pod), "type": kind, "reason": reason, "message": &message[..end],
        "action": action, "eventTime": now(6), "reportingComponent": reporter, "reportingInstance": reporter,
        "source": {}, "firstTimestamp": null, "lastTimestamp": null,
    });
    if related.uid != pod.uid {
        value["related"] = reference(related);
    }
    let namespace = &*pod.class.namespace;
    let result = match serde_json::from_value::<Event>(value) {
        Ok(event) => client.namespaced::<Event>(namespace).create(&event).await.map(drop),
        Err(error) => Err(error.into()),
    };
    if let Err(error) = result {
        debug!(pod = pod.full_name(), %error, reason, "the event is lost");
    }
}
