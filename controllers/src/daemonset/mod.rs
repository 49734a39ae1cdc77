//! DaemonSets: one pod on each node that its template chooses.

mod backoff;
mod plan;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{
    self as core, Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm,
};
use keelson_client::informer::key;
use keelson_client::{Change, Error, Key};
use tokio::time::Instant;

use crate::context::{Context, ORPHANS};
use crate::history::{self, REVISION_LABEL};
use crate::kept::Pod;
use crate::owners::{self, Selector, controller_of};
use crate::pods;
use crate::runtime::{Keys, Outcome, watch_own, watch_owned, watch_with};
pub use backoff::Backoff;
use plan::{Place, Plan, Rolling, Why};

const COMPONENT: &str = "daemonset-controller";
/// Annotation of a set: a number that its pods are labeled with, for old clients.
const TEMPLATE_GENERATION: (&str, &str) = ("deprecated.daemonset.template.generation", "pod-template-generation");
/// Most pods that one look creates or deletes.
const BURST: usize = 250;

pub(crate) fn watch(context: &Arc<Context>, queue: &Keys) {
    watch_own(&context.cache.daemon_sets, queue);
    watch_owned(&context.cache.pods, "DaemonSet", queue);
    let weak = Arc::downgrade(context);
    watch_with(&context.cache.nodes, queue, move |change: &Change<Node>| {
        let judged = |node: &Option<Arc<Node>>| {
            node.as_ref().map(|n| (n.metadata.labels.clone(), n.spec.as_ref().and_then(|s| s.taints.clone())))
        };
        let Some(context) = weak.upgrade().filter(|_| judged(&change.old) != judged(&change.new)) else {
            return Vec::new();
        };
        context.cache.daemon_sets.list_all().iter().map(|s| key(&**s)).collect()
    });
    let weak = Arc::downgrade(context);
    watch_with(&context.cache.pods, queue, move |change: &Change<Pod>| {
        let (Some(pod), Some(context)) = (&change.new, weak.upgrade()) else { return Vec::new() };
        if controller_of(&pod.metadata).is_some() {
            return Vec::new();
        }
        let sets = context.cache.daemon_sets.in_namespace(pod.metadata.namespace.as_deref().unwrap_or_default());
        sets.iter().filter(|s| selector(s).matches(&pod.metadata)).map(|s| key(&**s)).collect()
    });
}

fn selector(set: &DaemonSet) -> Selector {
    Selector::new(&set.spec.as_ref().map(|s| s.selector.clone()).unwrap_or_default())
}

/// The node that a pod is on or is for.
fn node_of(pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    if let Some(name) = spec.node_name.as_ref().filter(|n| !n.is_empty()) {
        return Some(name.clone());
    }
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
    let fields = required.node_selector_terms.iter().flat_map(|t| t.match_fields.iter().flatten());
    fields.filter(|f| f.key == "metadata.name").find_map(|f| f.values.as_ref()?.first().cloned())
}

/// The places of a set: each node, and each name that a pod is on though there is no such node.
fn places(context: &Context, set: &DaemonSet, pods: &[Arc<Pod>]) -> Vec<Place> {
    let mut spec = set.spec.as_ref().and_then(|s| s.template.spec.clone()).unwrap_or_default();
    plan::tolerate(&mut spec);
    let mut places: BTreeMap<String, Place> = BTreeMap::new();
    for node in context.cache.nodes.list_all() {
        let name = node.metadata.name.clone().unwrap_or_default();
        let (wanted, may_stay) = plan::belongs(&spec, &node);
        places.insert(name.clone(), Place { name, wanted, may_stay, pods: Vec::new(), going: Vec::new() });
    }
    let mut sorted: Vec<&Arc<Pod>> = pods.iter().collect();
    sorted
        .sort_by_key(|p| (!is_placed(p), p.metadata.creation_timestamp.as_ref().map(|t| t.0), p.metadata.name.clone()));
    for pod in sorted {
        let Some(name) = node_of(pod) else { continue };
        // Pods of a node that is gone are not the plan's matter.
        let Some(place) = places.get_mut(&name) else { continue };
        if !pods::is_going(pod) {
            place.pods.push(pod.clone());
        } else if !pods::is_finished(pod) {
            place.going.push(pod.clone());
        }
    }
    places.into_values().collect()
}

/// Whether the pod is on a node, not only meant for one.
fn is_placed(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).is_some_and(|n| !n.is_empty())
}

/// Pods that are meant for a node that is gone before they came there: none but the set takes them away. Those that were
/// there are for the pod garbage collector.
fn lost(context: &Context, pods: &[Arc<Pod>]) -> Vec<(Arc<Pod>, Why)> {
    let is_lost = |p: &&Arc<Pod>| {
        let node = node_of(p).filter(|_| !is_placed(p) && !pods::is_going(p));
        node.is_some_and(|n| context.cache.nodes.get(&(String::new(), n)).is_none())
    };
    pods.iter().filter(is_lost).map(|p| (p.clone(), Why::Misplaced)).collect()
}

pub(crate) async fn reconcile(context: Arc<Context>, key: Key) -> Outcome {
    let Some(set) = context.cache.daemon_sets.get(&key) else { return Ok(None) };
    let Some(spec) = set.spec.as_ref() else { return Ok(None) };
    if owners::is_empty_selector(&spec.selector) {
        let message = "This daemon set is selecting all pods. A non-empty selector is required.";
        context.recorder(COMPONENT).warning(&*set, "SelectingAll", message);
        return Ok(None);
    }
    if set.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let selector = selector(&set);
    let collisions = set.status.as_ref().and_then(|s| s.collision_count);
    let subject =
        history::Subject { template: &spec.template, hash_label: REVISION_LABEL, collisions: collisions.unwrap_or(0) };
    let history = history::settle(&context, &*set, &selector, subject).await?;
    let labels = history.update.metadata.labels.as_ref();
    let hash = labels.and_then(|l| l.get(REVISION_LABEL)).cloned().unwrap_or_default();
    let uid = set.metadata.uid.clone().unwrap_or_default();
    let mut candidates = context.cache.pods.owned_by(&uid);
    candidates.extend(context.cache.pods.by(ORPHANS, &key.0).into_iter().filter(|p| selector.matches(&p.metadata)));
    let pods = owners::claim(&context.client, &*set, |o| selector.matches(&o.metadata), candidates).await?;
    let now = context.now().0;
    let places = places(&context, &set, &pods);
    let rolling = Rolling::of(&set, places.iter().filter(|p| p.wanted).count());
    let mut plan = plan::manage(&places, &rolling, &hash, now);
    plan.delete.extend(lost(&context, &pods));
    if plan.create.is_empty() && plan.delete.is_empty() {
        plan::roll(&places, &rolling, &hash, now, &mut plan);
    }
    let more = plan.create.len() > BURST || plan.delete.len() > BURST;
    let failed = leave_failed(&context, &set, &mut plan);
    let result = act(&context, &set, &hash, plan).await;
    let status_collisions = (history.collisions > 0).then_some(history.collisions).or(collisions);
    write_status(&context, &set, &hash, status_collisions).await?;
    result?;
    let in_use = |name: &str| {
        name == history::name(&history.update)
            || history.all.iter().filter(|r| history::name(r) == name).any(|r| {
                let hash = r.metadata.labels.as_ref().and_then(|l| l.get(REVISION_LABEL));
                hash.is_some_and(|h| pods.iter().any(|p| plan::is_of(p, h)))
            })
    };
    let surplus = history::beyond(&history.all, in_use, spec.revision_history_limit.unwrap_or(10));
    history::trim(&context, &key.0, surplus).await?;
    let next = pods::next_available(pods.iter().map(|p| &**p), rolling.min_ready, now);
    Ok(if more { Some(Duration::from_millis(1)) } else { failed.into_iter().chain(next).min() })
}

/// Takes those failed pods out of the plan that have to stay for a while; tells for how long.
fn leave_failed(context: &Context, set: &DaemonSet, plan: &mut Plan) -> Option<Duration> {
    let uid = set.metadata.uid.as_deref().unwrap_or_default();
    let generation = set.status.as_ref().and_then(|s| s.observed_generation).unwrap_or(0);
    let now = Instant::now();
    let mut shortest: Option<Duration> = None;
    plan.delete.retain(|(pod, why)| {
        let node = node_of(pod).filter(|_| *why == Why::Failed);
        let Some(pause) = node.and_then(|node| context.failed_daemons.pause(uid, generation, &node, now)) else {
            return true;
        };
        shortest = Some(shortest.map_or(pause, |s| s.min(pause)));
        false
    });
    shortest
}

/// A pod of the set for a node.
fn pod(set: &DaemonSet, hash: &str, node: &str) -> core::Pod {
    let template = set.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
    let mut pod = pods::of_template(set, &template);
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(REVISION_LABEL.into(), hash.into());
    let annotations = set.metadata.annotations.as_ref();
    if let Some(generation) =
        annotations.and_then(|a| a.get(TEMPLATE_GENERATION.0)).filter(|g| g.parse::<i64>().is_ok())
    {
        labels.insert(TEMPLATE_GENERATION.1.into(), generation.clone());
    }
    let spec = pod.spec.get_or_insert_default();
    plan::tolerate(spec);
    pin(spec.affinity.get_or_insert_default(), node);
    pod
}

/// Requires the node by name, in place of whatever node was required: the set chose it by that already.
fn pin(affinity: &mut Affinity, node: &str) {
    let requirement =
        NodeSelectorRequirement { key: "metadata.name".into(), operator: "In".into(), values: Some(vec![node.into()]) };
    let term = NodeSelectorTerm { match_fields: Some(vec![requirement]), match_expressions: None };
    let nodes: &mut NodeAffinity = affinity.node_affinity.get_or_insert_default();
    let required = nodes.required_during_scheduling_ignored_during_execution.get_or_insert(NodeSelector::default());
    required.node_selector_terms = vec![term];
}

async fn act(context: &Context, set: &Arc<DaemonSet>, hash: &str, mut plan: Plan) -> Result<(), Error> {
    let recorder = context.recorder(COMPONENT);
    plan.create.truncate(BURST);
    plan.delete.truncate(BURST);
    for (pod, why) in &plan.delete {
        let (namespace, name) = (pod.metadata.namespace.as_deref().unwrap_or_default(), pod.metadata.name.as_deref());
        let (name, node) = (name.unwrap_or_default(), node_of(pod).unwrap_or_default());
        match why {
            Why::Failed => {
                let message = format!("Found failed daemon pod {namespace}/{name} on node {node}, will try to kill it");
                recorder.warning(&**set, "FailedDaemonPod", message);
            }
            Why::Succeeded => {
                let message =
                    format!("Found succeeded daemon pod {namespace}/{name} on node {node}, will try to delete it");
                recorder.normal(&**set, "SucceededDaemonPod", message);
            }
            Why::Misplaced | Why::Surplus | Why::Old => {}
        }
    }
    let gone: Vec<Arc<Pod>> = plan.delete.into_iter().map(|(pod, _)| pod).collect();
    let made = plan.create.iter().map(|node| pod(set, hash, node)).collect();
    pods::create(context, COMPONENT, &**set, made).await?;
    pods::delete(context, COMPONENT, &**set, &gone).await
}

async fn write_status(context: &Context, set: &DaemonSet, hash: &str, collisions: Option<i32>) -> Result<(), Error> {
    let uid = set.metadata.uid.as_deref().unwrap_or_default();
    let places = places(context, set, &context.cache.pods.owned_by(uid));
    let by_node = places.into_iter().map(|p| (p.name.clone(), (p.wanted, p.there()))).collect();
    let status = plan::status(set, &by_node, hash, collisions, context.now().0);
    if set.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let changed = DaemonSet { status: Some(status), ..set.clone() };
    let (namespace, name) = key(set);
    let written = context.client.namespaced::<DaemonSet>(&namespace).replace_status(&name, &changed).await?;
    context.settle(&context.cache.daemon_sets, &written).await;
    Ok(())
}
