//! The scheduler: gives each pod that has none a node.
//!
//! A cycle is pure: pods waiting and a view of the nodes in, placements and reasons out ([`cycle`]). Resources of pods that
//! were placed in the same cycle count at once.

mod cycle;
mod resources;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, Node, Pod};
use keelson_client::{Cache, Client, Error};
use rand::SeedableRng;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

pub use cycle::{Decision, decide};

/// The name that pods ask for in `spec.schedulerName`.
const NAME: &str = "default-scheduler";
/// A pod that fits nowhere is looked at again when something changes, and after this at the latest.
const RETRY: Duration = Duration::from_secs(5);

/// Schedules until `stop` is cancelled.
pub async fn run(client: Client, stop: CancellationToken) {
    let notify = Arc::new(Notify::new());
    let nodes = Cache::<Node>::start(&client, notify.clone(), stop.clone());
    let pods = Cache::<Pod>::start(&client, notify.clone(), stop.clone());
    tokio::join!(nodes.synced(), pods.synced());
    let mut random = rand::rngs::StdRng::from_rng(&mut rand::rng());
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = notify.notified() => {}
            () = tokio::time::sleep(RETRY) => {}
        }
        nodes.drain();
        pods.drain();
        let (nodes, all) = (nodes.list(), pods.list());
        let mut waiting: Vec<Arc<Pod>> = all.iter().filter(|p| waits(p)).cloned().collect();
        // Queue order: the more important first, then the older.
        waiting.sort_by_key(|p| {
            let priority = p.spec.as_ref().and_then(|s| s.priority).unwrap_or(0);
            let created = p.metadata.creation_timestamp.as_ref().map(|t| t.0.as_second()).unwrap_or(i64::MAX);
            (std::cmp::Reverse(priority), created, p.metadata.name.clone())
        });
        for (pod, decision) in decide(&waiting, &nodes, &all, &mut random) {
            if let Err(error) = act(&client, &pod, &decision).await {
                let name = pod.metadata.name.as_deref().unwrap_or_default();
                if error.is_conflict() || error.is_not_found() {
                    debug!(name, %error, "the cache was behind");
                } else {
                    warn!(name, %error, "cannot bind");
                }
            }
        }
    }
}

fn waits(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref();
    pod.metadata.deletion_timestamp.is_none()
        && spec.is_some_and(|s| {
            s.node_name.is_none()
                && s.scheduler_name.as_deref() == Some(NAME)
                && s.scheduling_gates.as_ref().is_none_or(Vec::is_empty)
        })
}

async fn act(client: &Client, pod: &Pod, decision: &Decision) -> Result<(), Error> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let api = client.namespaced::<Pod>(namespace);
    match decision {
        Decision::Node(node) => {
            let binding = json!({
                "apiVersion": "v1", "kind": "Binding",
                "metadata": {"name": name, "namespace": namespace, "uid": pod.metadata.uid},
                "target": {"kind": "Node", "name": node},
            });
            let _: Value = api.create_subresource(name, "binding", &binding).await?;
            let message = format!("Successfully assigned {namespace}/{name} to {node}");
            event(client, pod, "Normal", "Scheduled", &message).await
        }
        Decision::Nowhere(message) => {
            let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
            let known = conditions.iter().any(|c| c.type_ == "PodScheduled" && c.message.as_deref() == Some(message));
            if known {
                return Ok(());
            }
            let patch = json!({"status": {"conditions": [{
                "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
                "lastTransitionTime": k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            }]}});
            api.patch(name, Some("status"), keelson_client::PatchType::Strategic, &patch).await?;
            event(client, pod, "Warning", "FailedScheduling", message).await
        }
    }
}

async fn event(client: &Client, pod: &Pod, kind: &str, reason: &str, message: &str) -> Result<(), Error> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let now = k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let event: Event = serde_json::from_value(json!({
        "metadata": {"generateName": format!("{name}."), "namespace": namespace},
        "involvedObject": {"kind": "Pod", "apiVersion": "v1", "namespace": namespace, "name": name, "uid": pod.metadata.uid,
            "resourceVersion": pod.metadata.resource_version},
        "type": kind, "reason": reason, "message": message, "count": 1, "firstTimestamp": now, "lastTimestamp": now,
        "source": {"component": NAME}, "reportingComponent": NAME, "reportingInstance": "",
    }))?;
    client.namespaced::<Event>(namespace).create(&event).await?;
    Ok(())
}
