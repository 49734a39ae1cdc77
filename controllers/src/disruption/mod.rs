//! PodDisruptionBudgets: how many pods may go now, so that evictions stop in time.

mod plan;
pub mod stale;

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use keelson_client::discovery;
use keelson_client::informer::key;
use keelson_client::{Change, Error, Key};
use serde::Deserialize;

use crate::context::Context;
use crate::kept::Pod;
use crate::owners::{Selector, controller_of};
use crate::pods;
use crate::runtime::{Keys, Outcome, watch_own, watch_with};

const COMPONENT: &str = "controllermanager";

pub(crate) fn watch(context: &Arc<Context>, queue: &Keys) {
    watch_own(&context.cache.budgets, queue);
    let weak = Arc::downgrade(context);
    watch_with(&context.cache.pods, queue, move |change: &Change<Pod>| {
        let Some(context) = weak.upgrade() else { return Vec::new() };
        let judged = |pod: &Option<Arc<Pod>>| {
            let pod = pod.as_ref()?;
            let owner = controller_of(&pod.metadata).map(|o| o.uid.clone());
            Some((pods::is_ready(pod), pods::is_going(pod), pod.metadata.labels.clone(), owner))
        };
        let Some(pod) = change.object().filter(|_| judged(&change.old) != judged(&change.new)) else {
            return Vec::new();
        };
        let budgets = context.cache.budgets.in_namespace(pod.metadata.namespace.as_deref().unwrap_or_default());
        let versions = [&change.old, &change.new];
        let chosen = |budget: &Arc<PodDisruptionBudget>| {
            let selector = selector(budget);
            versions
                .iter()
                .filter_map(|p| p.as_ref())
                .any(|p| selector.as_ref().is_some_and(|s| s.matches(&p.metadata)))
        };
        budgets.iter().filter(|b| chosen(b)).map(|b| key(&**b)).collect()
    });
}

/// What a budget chooses: nothing without a selector, everything with an empty one.
fn selector(budget: &PodDisruptionBudget) -> Option<Selector> {
    budget.spec.as_ref()?.selector.as_ref().map(Selector::new)
}

pub(crate) async fn reconcile(context: Arc<Context>, key: Key) -> Outcome {
    let Some(budget) = context.cache.budgets.get(&key) else { return Ok(None) };
    let Some(spec) = budget.spec.as_ref() else { return Ok(None) };
    let selector = selector(&budget);
    if budget.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let mut pods = context.cache.pods.in_namespace(&key.0);
    pods.retain(|p| selector.as_ref().is_some_and(|s| s.matches(&p.metadata)));
    let recorder = context.recorder(COMPONENT);
    let now = context.now();
    if pods.is_empty() {
        recorder.normal(&*budget, "NoPods", "No matching pods found");
    }
    let scale = if plan::needs_scale(spec) { scale(&context, &budget, &pods).await } else { Ok(0) };
    let status = match scale {
        Ok(scale) => {
            let expected = plan::expected(spec, scale, pods.len() as i32);
            let (status, given_up) = plan::status(&budget, &pods, expected, &now);
            for name in given_up {
                let there = pods.iter().find(|p| p.metadata.name.as_ref() == Some(&name));
                if let Some(pod) = there {
                    let message = format!("Pod was expected by PDB {}/{} to be deleted but it wasn't", key.0, key.1);
                    recorder.warning(&**pod, "NotDeleted", message);
                }
            }
            status
        }
        Err(error) => {
            let message = format!("Failed to calculate the number of expected pods: {error}");
            recorder.warning(&*budget, "CalculateExpectedPodCountFailed", message);
            plan::failed(&budget, &error, &now)
        }
    };
    let again = status.disrupted_pods.iter().flatten().filter_map(|(_, at)| {
        pods::until(at.0.checked_add(plan::EVICTION_TIMEOUT).ok()?, now.0)
            .map(|d| d + std::time::Duration::from_secs(1))
    });
    let again = again.min();
    if budget.status.as_ref() != Some(&status) {
        let changed = PodDisruptionBudget { status: Some(status), ..(*budget).clone() };
        let written = context.client.namespaced::<PodDisruptionBudget>(&key.0).replace_status(&key.1, &changed).await?;
        context.settle(&context.cache.budgets, &written).await;
    }
    Ok(again)
}

/// How many pods the controllers of these pods want together.
async fn scale(context: &Context, budget: &PodDisruptionBudget, pods: &[Arc<Pod>]) -> Result<i32, String> {
    let mut wanted: BTreeMap<String, i32> = BTreeMap::new();
    let mut unmanaged = 0;
    for pod in pods {
        let Some(owner) = controller_of(&pod.metadata) else {
            unmanaged += 1;
            continue;
        };
        if wanted.contains_key(&owner.uid) {
            continue;
        }
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let found = size_of(context, namespace, owner).await?;
        let Some((uid, size)) = found else {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            return Err(format!("found no controllers for pod {name:?}"));
        };
        wanted.insert(owner.uid.clone(), if uid == owner.uid { size } else { 0 });
        // Several ReplicaSets of one Deployment count once.
        wanted.insert(uid, size);
    }
    if unmanaged > 0 {
        let selector = crate::owners::shown(budget.spec.as_ref().and_then(|s| s.selector.as_ref()));
        let message = format!(
            "Pods selected by this PodDisruptionBudget (selector: {selector}) were found to be unmanaged. As a result, the \
             status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account for these \
             pods please set \".spec.minAvailable\" field of the PDB to an integer value."
        );
        context.recorder(COMPONENT).warning(budget, "UnmanagedPods", message);
    }
    Ok(wanted.into_values().sum())
}

/// The controller that has a size, and its size; `None` if it is not there.
async fn size_of(context: &Context, namespace: &str, owner: &OwnerReference) -> Result<Option<(String, i32)>, String> {
    let cache = &context.cache;
    let here = match owner.kind.as_str() {
        "ReplicaSet" => cache.replica_sets.named(namespace, &owner.name).and_then(|set| {
            let above = controller_of(&set.metadata).filter(|o| o.kind == "Deployment");
            let Some(above) = above else {
                return Some((set.metadata.uid.clone(), set.spec.as_ref().and_then(|s| s.replicas)));
            };
            let deployment = cache.deployments.named(namespace, &above.name);
            deployment.map(|d| (d.metadata.uid.clone(), d.spec.as_ref().and_then(|s| s.replicas)))
        }),
        "StatefulSet" => cache
            .stateful_sets
            .named(namespace, &owner.name)
            .map(|s| (s.metadata.uid.clone(), s.spec.as_ref().and_then(|s| s.replicas))),
        "ReplicationController" => cache
            .replication_controllers
            .named(namespace, &owner.name)
            .map(|s| (s.metadata.uid.clone(), s.spec.as_ref().and_then(|s| s.replicas))),
        _ => None,
    };
    match here {
        Some((uid, replicas)) => Ok(Some((uid.unwrap_or_default(), replicas.unwrap_or(1)))),
        None => asked(context, namespace, owner).await,
    }
}

#[derive(Deserialize)]
struct Scale {
    #[serde(default)]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: ScaleSpec,
}

#[derive(Deserialize, Default)]
struct ScaleSpec {
    #[serde(default)]
    replicas: i32,
}

/// Of a resource that is known: whether it has a scale subresource.
fn without_scale(resource: &discovery::ApiResource, group: &str) -> String {
    let dot = if group.is_empty() { "" } else { "." };
    format!("{}{dot}{group} does not implement the scale subresource", resource.plural)
}

/// The size of a controller of any kind, by its scale subresource.
async fn asked(context: &Context, namespace: &str, owner: &OwnerReference) -> Result<Option<(String, i32)>, String> {
    let (group, _) = owner.api_version.rsplit_once('/').unwrap_or(("", &owner.api_version));
    let (resources, _) = discovery::resources(&context.client).await.map_err(|e| e.to_string())?;
    let resource = resources.iter().find(|r| r.group == group && r.kind == owner.kind);
    let Some(resource) = resource else {
        return Err(format!("no matches for kind {:?} in version {:?}", owner.kind, owner.api_version));
    };
    let path = resource.path(namespace, &owner.name);
    match context.client.read::<Scale>(&format!("{path}/scale"), "application/json").await {
        Ok(scale) if scale.metadata.uid.as_ref() == Some(&owner.uid) => {
            Ok(Some((owner.uid.clone(), scale.spec.replicas)))
        }
        Ok(_) => Ok(None),
        // Either there is no such object, or its kind has no scale.
        Err(error) if error.is_not_found() && names_object(&error) => Ok(None),
        Err(error) if error.is_not_found() => Err(without_scale(resource, group)),
        Err(error) => Err(error.to_string()),
    }
}

/// Whether what was not found is an object, not a path.
fn names_object(error: &Error) -> bool {
    matches!(error, Error::Status(status) if status.details.as_ref().is_some_and(|d| d.name.is_some()))
}
