//! ReplicaSets: as many pods as asked for.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use keelson_client::{Error, Key};
use serde_json::Value;

use crate::Context;

/// Most pods that one look creates or deletes (upstream's burst).
const BURST: usize = 500;

/// Name of the ReplicaSet that controls an object.
pub(crate) fn owner(metadata: &ObjectMeta) -> Option<String> {
    let owners = metadata.owner_references.as_deref().unwrap_or_default();
    owners.iter().find(|o| o.kind == "ReplicaSet" && o.controller == Some(true)).map(|o| o.name.clone())
}

fn controlled_by(metadata: &ObjectMeta, uid: &str) -> bool {
    metadata.owner_references.iter().flatten().any(|o| o.uid == uid && o.controller == Some(true))
}

/// A reference that makes `owner` the controller.
pub(crate) fn controller_reference(api_version: &str, kind: &str, owner: &ObjectMeta) -> OwnerReference {
    OwnerReference {
        api_version: api_version.into(),
        kind: kind.into(),
        name: owner.name.clone().unwrap_or_default(),
        uid: owner.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Whether a pod's Ready condition holds.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

/// What is to be done.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    create: usize,
    delete: Vec<String>,
    status: ReplicaSetStatus,
}

/// Compares what is asked for with the pods that are there.
fn plan(set: &ReplicaSet, pods: &[Arc<Pod>]) -> Plan {
    let active: Vec<&Arc<Pod>> = pods
        .iter()
        .filter(|p| p.metadata.deletion_timestamp.is_none() && !matches!(phase(p), "Succeeded" | "Failed"))
        .collect();
    let wanted = set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1).max(0) as usize;
    let ready = active.iter().filter(|p| is_ready(p)).count() as i32;
    let mut plan = Plan {
        create: wanted.saturating_sub(active.len()).min(BURST),
        status: ReplicaSetStatus {
            replicas: active.len() as i32,
            fully_labeled_replicas: Some(active.len() as i32),
            ready_replicas: Some(ready),
            available_replicas: Some(ready),
            observed_generation: set.metadata.generation,
            ..ReplicaSetStatus::default()
        },
        ..Plan::default()
    };
    if active.len() > wanted {
        let mut ranked = active;
        // Upstream's order: not scheduled first, then not ready, then the youngest.
        ranked.sort_by_key(|p| {
            let scheduled = p.spec.as_ref().is_some_and(|s| s.node_name.is_some());
            let created = p.metadata.creation_timestamp.as_ref().map(|t| t.0.as_second()).unwrap_or(i64::MAX);
            (scheduled, is_ready(p), std::cmp::Reverse(created), p.metadata.name.clone())
        });
        let surplus = (ranked.len() - wanted).min(BURST);
        plan.delete = ranked[..surplus].iter().filter_map(|p| p.metadata.name.clone()).collect();
    }
    plan
}

fn new_pod(set: &ReplicaSet) -> Pod {
    let template = set.spec.as_ref().and_then(|s| s.template.clone()).unwrap_or_default();
    let given = template.metadata.unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", set.metadata.name.as_deref().unwrap_or_default())),
            namespace: set.metadata.namespace.clone(),
            labels: given.labels,
            annotations: given.annotations,
            finalizers: given.finalizers,
            owner_references: Some(vec![controller_reference("apps/v1", "ReplicaSet", &set.metadata)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

pub(crate) async fn reconcile(context: &Context, key: &Key) -> Result<(), Error> {
    let Some(set) = context.replica_sets.get(key) else { return collect_orphans(context, key).await };
    let uid = set.metadata.uid.clone().unwrap_or_default();
    // The cache may not show pods made a moment ago; the store does, and its read costs no socket.
    let pods_api = context.client.namespaced::<Pod>(&key.0);
    let pods: Vec<Arc<Pod>> = pods_api
        .list(&Default::default())
        .await?
        .items
        .into_iter()
        .filter(|p| controlled_by(&p.metadata, &uid))
        .map(Arc::new)
        .collect();
    let plan = plan(&set, &pods);
    if set.metadata.deletion_timestamp.is_none() {
        for _ in 0..plan.create {
            pods_api.create(&new_pod(&set)).await?;
        }
        for name in &plan.delete {
            pods_api.delete(name, &Value::Null).await?;
        }
    }
    if set.status.as_ref() != Some(&plan.status) {
        let changed = ReplicaSet { status: Some(plan.status), ..(*set).clone() };
        context.client.namespaced::<ReplicaSet>(&key.0).replace_status(&key.1, &changed).await?;
    }
    Ok(())
}

/// Deletes the pods of a ReplicaSet that is gone.
async fn collect_orphans(context: &Context, key: &Key) -> Result<(), Error> {
    let api = context.client.namespaced::<Pod>(&key.0);
    for pod in context.pods.list() {
        let theirs =
            pod.metadata.namespace.as_deref() == Some(&key.0) && owner(&pod.metadata).as_deref() == Some(&key.1);
        if theirs && pod.metadata.deletion_timestamp.is_none() {
            api.delete(pod.metadata.name.as_deref().unwrap_or_default(), &Value::Null).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, node: &str, ready: bool, phase: &str) -> Arc<Pod> {
        let mut value = json!({"metadata": {"name": name}, "spec": {"containers": []}, "status": {"phase": phase,
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}});
        if !node.is_empty() {
            value["spec"]["nodeName"] = node.into();
        }
        Arc::new(serde_json::from_value(value).unwrap())
    }

    #[test]
    fn plans() {
        let set = |replicas: i32| -> ReplicaSet {
            serde_json::from_value(json!({"metadata": {"name": "r"}, "spec": {"replicas": replicas, "selector": {}}}))
                .unwrap()
        };
        let pods = [
            pod("a", "n", true, "Running"),
            pod("b", "n", false, "Running"),
            pod("c", "", false, "Pending"),
            pod("d", "n", false, "Failed"),
        ];
        for (replicas, create, delete) in
            [(5, 2, vec![]), (3, 0, vec![]), (2, 0, vec!["c"]), (1, 0, vec!["c", "b"]), (0, 0, vec!["c", "b", "a"])]
        {
            let plan = plan(&set(replicas), &pods);
            assert_eq!(
                (plan.create, plan.delete.iter().map(String::as_str).collect::<Vec<_>>()),
                (create, delete),
                "{replicas}"
            );
            assert_eq!((plan.status.replicas, plan.status.ready_replicas), (3, Some(1)));
        }
    }
}
