//! Pod garbage collection: pods of nodes that are gone, pods that end on nodes out of service, pods that were deleted
//! before they had a node, and ended pods beyond a limit.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Node, PodCondition};
use keelson_client::Error;
use serde_json::json;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::context::Context;
use crate::kept::Pod;
use crate::node::health::ready_status;
use crate::pods;

/// How often.
const PERIOD: Duration = Duration::from_secs(20);
/// A node must be gone for this long before its pods are collected: it may just be made anew.
const QUARANTINE: Duration = Duration::from_secs(40);
/// Ended pods that are kept.
const TERMINATED_PODS: usize = 12_500;
/// Taint of nodes that are known to be off.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// Why a pod is collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    NodeGone,
    OutOfService,
    NeverScheduled,
    Terminated,
}

impl Why {
    /// What the pod's DisruptionTarget condition says, if it says anything.
    fn message(self) -> Option<&'static str> {
        match self {
            Self::NodeGone => Some("PodGC: node no longer exists"),
            Self::OutOfService => Some("PodGC: node is out of service"),
            Self::NeverScheduled | Self::Terminated => None,
        }
    }
}

fn is_out_of_service(node: &Node) -> bool {
    ready_status(node) != "True"
        && node.spec.iter().flat_map(|s| s.taints.iter().flatten()).any(|t| t.key == OUT_OF_SERVICE)
}

/// Chooses the pods to collect. `node` finds a node by name; `gone` says whether one is known to be gone for long enough.
fn plan(
    pods: &[Arc<Pod>],
    node: impl Fn(&str) -> Option<Arc<Node>>,
    gone: impl Fn(&str) -> bool,
    limit: usize,
) -> Vec<(Arc<Pod>, Why)> {
    let mut chosen = Vec::new();
    let mut ended: Vec<&Arc<Pod>> = Vec::new();
    for pod in pods {
        let name = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).filter(|n| !n.is_empty());
        match name {
            None if pods::is_going(pod) => chosen.push((pod.clone(), Why::NeverScheduled)),
            Some(name) if node(name).is_none() && gone(name) => chosen.push((pod.clone(), Why::NodeGone)),
            Some(name) if pods::is_going(pod) && node(name).is_some_and(|n| is_out_of_service(&n)) => {
                chosen.push((pod.clone(), Why::OutOfService));
            }
            _ if pods::is_finished(pod) => ended.push(pod),
            _ => {}
        }
    }
    let surplus = ended.len().saturating_sub(limit);
    ended.sort_by_key(|p| (p.metadata.creation_timestamp.as_ref().map(|t| t.0), p.metadata.name.clone()));
    chosen.extend(ended.into_iter().take(surplus).map(|p| (p.clone(), Why::Terminated)));
    chosen
}

pub(crate) fn run(context: Arc<Context>) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let mut missing: HashMap<String, Instant> = HashMap::new();
        loop {
            tokio::time::sleep(PERIOD).await;
            let pods = context.cache.pods.list_all();
            let gone = gone_nodes(&context, &pods, &mut missing).await;
            let node = |name: &str| context.cache.nodes.named("", name);
            for (pod, why) in plan(&pods, node, |name| gone.contains(&name.to_owned()), TERMINATED_PODS) {
                if let Err(error) = collect(&context, &pod, why).await {
                    warn!(namespace = pod.metadata.namespace, name = pod.metadata.name, %error, "cannot collect a pod");
                }
            }
        }
    })
}

/// Nodes that pods name and that have been gone for the quarantine; the API is asked once more.
async fn gone_nodes(context: &Context, pods: &[Arc<Pod>], missing: &mut HashMap<String, Instant>) -> Vec<String> {
    let named = pods.iter().filter_map(|p| p.spec.as_ref()?.node_name.clone());
    let absent: std::collections::HashSet<String> =
        named.filter(|n| context.cache.nodes.named("", n).is_none()).collect();
    missing.retain(|name, _| absent.contains(name));
    for name in absent {
        missing.entry(name).or_insert_with(Instant::now);
    }
    let mut gone = Vec::new();
    for (name, since) in missing.iter() {
        if since.elapsed() >= QUARANTINE && matches!(context.client.cluster::<Node>().get_opt(name).await, Ok(None)) {
            gone.push(name.clone());
        }
    }
    gone
}

async fn collect(context: &Context, pod: &Pod, why: Why) -> Result<(), Error> {
    let (namespace, name) =
        (pod.metadata.namespace.as_deref().unwrap_or_default(), pod.metadata.name.as_deref().unwrap_or_default());
    info!(namespace, name, ?why, "collecting a pod");
    let api = context.client.namespaced::<Pod>(namespace);
    if !pods::is_finished(pod) && why != Why::Terminated {
        let condition = why.message().map(|message| PodCondition {
            type_: "DisruptionTarget".into(),
            status: "True".into(),
            reason: Some("DeletionByPodGC".into()),
            message: Some(message.into()),
            last_transition_time: Some(context.now()),
            observed_generation: pod.metadata.generation,
            ..PodCondition::default()
        });
        pods::write_status(context, pod, Some("Failed"), condition).await?;
    }
    let options = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": pod.metadata.uid}});
    match api.delete(name, &options).await {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chooses() {
        let pod = |name: &str, node: &str, phase: &str, going: bool| -> Arc<Pod> {
            let mut value = json!({"metadata": {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"containers": []}, "status": {"phase": phase}});
            if !node.is_empty() {
                value["spec"]["nodeName"] = node.into();
            }
            if going {
                value["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            }
            Arc::new(serde_json::from_value(value).unwrap())
        };
        let node = |name: &str| -> Option<Arc<Node>> {
            let taints =
                if name == "off" { json!([{"key": OUT_OF_SERVICE, "effect": "NoExecute"}]) } else { json!([]) };
            let ready = if name == "off" { "Unknown" } else { "True" };
            matches!(name, "on" | "off").then(|| {
                Arc::new(
                    serde_json::from_value(json!({"spec": {"taints": taints},
                        "status": {"conditions": [{"type": "Ready", "status": ready}]}}))
                    .unwrap(),
                )
            })
        };
        let pods = [
            pod("runs", "on", "Running", false),
            pod("ends", "on", "Running", true),
            pod("never", "", "Pending", true),
            pod("waits", "", "Pending", false),
            pod("lost", "gone", "Running", false),
            pod("quarantined", "missing", "Running", false),
            pod("off", "off", "Running", true),
            pod("off-but-not-going", "off", "Running", false),
            pod("done-a", "on", "Succeeded", false),
            pod("done-b", "on", "Failed", false),
        ];
        let chosen = plan(&pods, node, |name| name == "gone", 1);
        let shown: Vec<(&str, Why)> =
            chosen.iter().map(|(p, why)| (p.metadata.name.as_deref().unwrap(), *why)).collect();
        let expected = [
            ("never", Why::NeverScheduled),
            ("lost", Why::NodeGone),
            ("off", Why::OutOfService),
            ("done-a", Why::Terminated),
        ];
        assert_eq!(shown, expected);
    }
}
