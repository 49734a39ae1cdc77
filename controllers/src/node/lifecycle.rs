//! The node lifecycle: a node that gives no sign of life for the grace period becomes unknown, its pods count as not
//! ready, and taints keep new pods away and evict those that are there.
//!
//! Invariant: a sign of life is a change of the node's Lease or of its Ready condition's heartbeat, measured by this
//! process's own clock: a node whose clock is wrong is judged right.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, PodCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keelson_client::{Error, PatchType};
use serde_json::json;
use tokio::time::Instant;
use tracing::{info, warn};

use super::health::{self, ready_status};
use super::signs::{LEASES, QUICK, Signs};
use super::zones::{self, Limiter, zone_of};
use crate::context::{BY_NODE, Context};
use crate::kept::Pod;
use crate::pods;

const COMPONENT: &str = "node-controller";
/// How often all nodes are looked at, at most and at least.
const PERIOD: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// Nodes and pods that are written at a time.
const PARALLEL_WRITES: usize = 32;

/// What this leader knows.
struct Monitor {
    context: Arc<Context>,
    grace: Duration,
    start: Instant,
    signs: Signs,
    /// Whether the last look left nothing to be done: nodes may be down, but all of that is written.
    calm: bool,
    /// What Ready was at the last look.
    readiness: HashMap<String, String>,
    limiters: BTreeMap<String, Limiter>,
    all_down: bool,
}

/// Watches all nodes.
pub(crate) fn run(context: Arc<Context>) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let mut monitor = Monitor::new(context);
        let grace = monitor.grace;
        let changed = Arc::new(tokio::sync::Notify::new());
        let (signs, wake) = (monitor.signs.clone(), changed.clone());
        monitor.context.cache.nodes.subscribe(move |change| {
            if signs.node(change, Instant::now()) {
                wake.notify_one();
            }
        });
        let signs = monitor.signs.clone();
        monitor.context.cache.leases.subscribe(move |change| signs.lease(change, Instant::now()));
        let period = (grace / 8).clamp(PERIOD.0, PERIOD.1);
        loop {
            monitor.look().await;
            monitor.hurry().await;
            let asleep = Instant::now();
            tokio::select! {
                () = tokio::time::sleep(period) => {}
                () = changed.notified() => tokio::time::sleep(PERIOD.0 / 10).await,
            }
            // Who overslept could not hear either: this process stood still, or was too busy.
            if grace < QUICK && asleep.elapsed() > period + grace / 4 {
                monitor.signs.forgive(Instant::now());
            }
        }
    })
}

impl Monitor {
    /// That has looked at nothing yet.
    fn new(context: Arc<Context>) -> Self {
        Self {
            grace: context.config.node_monitor_grace_period,
            start: Instant::now(),
            signs: Signs::default(),
            calm: false,
            readiness: HashMap::new(),
            limiters: BTreeMap::new(),
            all_down: false,
            context,
        }
    }

    /// Asks nodes to renew their leases as often as a quick grace period needs.
    async fn hurry(&self) {
        if self.grace >= QUICK {
            return;
        }
        let seconds = (self.grace * 3 / 2).as_secs_f64().ceil().max(1.0) as u64;
        let (context, signs, patch) = (&self.context, &self.signs, json!({"spec": {"leaseDurationSeconds": seconds}}));
        futures::stream::iter(self.signs.slow(Duration::from_secs(seconds)))
            .for_each_concurrent(PARALLEL_WRITES, |name| {
                let patch = &patch;
                async move {
                    let leases = context.client.namespaced::<Lease>(LEASES);
                    if let Err(error) = leases.patch(&name, None, PatchType::Merge, patch).await
                        && !error.is_not_found()
                    {
                        warn!(node = name, %error, "cannot ask a node to renew its lease more often; trying again");
                        signs.ask_again(&name);
                    }
                }
            })
            .await;
    }

    /// Looks at all nodes.
    async fn look(&mut self) {
        let time = self.context.now();
        let silent = self.signs.silent(self.grace, Instant::now());
        let silent: Vec<Node> = silent
            .iter()
            .filter_map(|name| self.context.cache.nodes.named("", name))
            .filter(|n| n.metadata.deletion_timestamp.is_none())
            .filter_map(|n| health::silenced(&n, &time))
            .collect();
        if !self.signs.take_changed() && self.calm && silent.is_empty() {
            return;
        }
        let context = &self.context;
        let written: Vec<Node> = futures::stream::iter(silent)
            .map(|node| async move { silence(context, node).await })
            .buffer_unordered(PARALLEL_WRITES)
            .filter_map(|node| async { node })
            .collect()
            .await;
        if let Some(last) = written.last() {
            context.settle(&context.cache.nodes, last).await;
        }
        let nodes = self.context.cache.nodes.list_all();
        let names: HashSet<&str> = nodes.iter().filter_map(|n| n.metadata.name.as_deref()).collect();
        self.readiness.retain(|name, _| names.contains(name.as_str()));
        let untouched = self.taint(&nodes, &time).await;
        let marked = self.mark_pods(&nodes, &time).await;
        // Who waits for an eviction gets it as time passes; with all down nobody does.
        let waits = |node: &Arc<Node>| node.metadata.deletion_timestamp.is_none() && health::wants_eviction(node);
        self.calm = untouched && marked && (self.all_down || !nodes.iter().any(waits));
    }

    /// Brings the taints of all nodes up to date, as fast as their zones allow. Tells whether all were.
    async fn taint(&mut self, nodes: &[Arc<Node>], time: &Time) -> bool {
        let states = zones::states(nodes.iter().map(|n| &**n));
        let since_start = self.start.elapsed();
        let rates = zones::rates(&states);
        if rates.is_none() != self.all_down {
            self.all_down = rates.is_none();
            if self.all_down {
                warn!(nodes = nodes.len(), "no node is ready: the view may be wrong, so no pod is evicted");
            } else {
                info!("some nodes are ready again: evictions go on");
                // Nobody is blamed for the time in which all seemed down.
                self.signs.forgive(Instant::now());
            }
        }
        let mut changes: Vec<(Arc<Node>, Vec<Taint>)> = Vec::new();
        for node in nodes.iter().filter(|n| n.metadata.deletion_timestamp.is_none()) {
            let zone = zone_of(node);
            let evict = health::wants_eviction(node)
                && rates.as_ref().and_then(|r| r.get(&zone)).is_some_and(|rate| {
                    self.limiters
                        .entry(zone.clone())
                        .or_insert_with(|| Limiter::new(since_start))
                        .allow(*rate, since_start)
                });
            let wanted = health::taints(node, evict, time);
            let wanted = match rates {
                Some(_) => wanted,
                None => {
                    let mut view = (**node).clone();
                    if let Some(taints) = wanted.clone() {
                        view.spec.get_or_insert_default().taints = Some(taints);
                    }
                    health::spared(&view).or(wanted)
                }
            };
            changes.extend(wanted.map(|taints| (node.clone(), taints)));
        }
        let (context, untouched) = (&self.context, changes.is_empty());
        futures::stream::iter(changes)
            .for_each_concurrent(PARALLEL_WRITES, |(node, taints)| async move {
                if let Err(error) = write_taints(context, &node, &taints).await
                    && !error.is_conflict()
                    && !error.is_not_found()
                {
                    warn!(node = node.metadata.name, %error, "cannot taint a node; trying again");
                }
            })
            .await;
        untouched
    }

    /// Pods of nodes that are no longer ready are not ready either. Tells whether all are marked.
    async fn mark_pods(&mut self, nodes: &[Arc<Node>], time: &Time) -> bool {
        let (mut marked, mut all) = (Vec::new(), true);
        for node in nodes {
            let (name, status) = (node.metadata.name.clone().unwrap_or_default(), ready_status(node));
            if status == "True" || node.status.as_ref().is_none_or(|s| s.conditions.is_none()) {
                self.readiness.insert(name, status.to_owned());
                continue;
            }
            let before = self.readiness.get(&name).map(String::as_str);
            if before == Some("True") {
                let message = format!("Node {name} status is now: NodeNotReady");
                self.context.recorder(COMPONENT).normal(&**node, "NodeNotReady", message);
            }
            let context = &self.context;
            let pods: Vec<Arc<Pod>> =
                context.cache.pods.by(BY_NODE, &name).into_iter().filter(|p| pods::is_ready(p)).collect();
            let results = futures::stream::iter(pods)
                .map(|pod| async move { mark_not_ready(context, &pod, time).await })
                .buffer_unordered(PARALLEL_WRITES)
                .collect::<Vec<_>>();
            if results.await.into_iter().all(|done| done) {
                marked.push((name, status.to_owned()));
            } else {
                all = false;
            }
        }
        self.readiness.extend(marked);
        all
    }
}

async fn silence(context: &Context, node: Node) -> Option<Node> {
    let name = node.metadata.name.clone().unwrap_or_default();
    match context.client.cluster::<Node>().replace_status(&name, &node).await {
        Ok(written) => {
            warn!(node = name, "gave no sign of life for the grace period");
            Some(written)
        }
        // It changed: that is a sign of life, or the next look judges anew.
        Err(error) if error.is_conflict() || error.is_not_found() => None,
        Err(error) => {
            warn!(node = name, %error, "cannot write that a node is silent; trying again");
            None
        }
    }
}

async fn write_taints(context: &Context, node: &Node, taints: &[Taint]) -> Result<(), Error> {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let patch = json!({
        "metadata": {"uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version},
        "spec": {"taints": if taints.is_empty() { serde_json::Value::Null } else { json!(taints) }},
    });
    let written = context.client.cluster::<Node>().patch(name, None, PatchType::Merge, &patch).await?;
    context.settle(&context.cache.nodes, &written).await;
    Ok(())
}

/// Writes that a pod is not ready; true if that is so now.
async fn mark_not_ready(context: &Context, pod: &Pod, time: &Time) -> bool {
    let (namespace, name) =
        (pod.metadata.namespace.as_deref().unwrap_or_default(), pod.metadata.name.as_deref().unwrap_or_default());
    let old = pods::condition(pod, "Ready").cloned().unwrap_or_default();
    let not_ready = PodCondition {
        status: "False".into(),
        last_transition_time: Some(time.clone()),
        observed_generation: pod.metadata.generation,
        ..old
    };
    context.recorder(COMPONENT).warning(pod, "NodeNotReady", "Node is not ready");
    match pods::write_status(context, pod, None, Some(not_ready)).await {
        Ok(()) => true,
        Err(error) if error.is_not_found() => true,
        Err(error) => {
            if !error.is_conflict() {
                warn!(namespace, name, %error, "cannot mark a pod as not ready; trying again");
            }
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn node(name: &str, status: &str, effects: &[&str]) -> Node {
        let conditions: Vec<Value> = (["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"].iter())
            .map(|kind| json!({"type": kind, "status": if *kind == "Ready" || status == "Unknown" { status } else { "False" }}))
            .collect();
        let taints: Vec<Value> =
            effects.iter().map(|effect| json!({"key": health::UNREACHABLE, "effect": effect})).collect();
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"taints": taints},
            "status": {"conditions": conditions}}))
        .unwrap()
    }

    #[tokio::test]
    async fn what_is_written_of_nodes_that_are_down_needs_no_further_look() {
        let (both, mild) = (&["NoSchedule", "NoExecute"][..], &["NoSchedule"][..]);
        for (what, nodes, calm) in [
            ("all are ready", vec![node("a", "True", &[])], true),
            ("one is down", vec![node("a", "True", &[]), node("b", "Unknown", both)], true),
            ("one waits for its eviction", vec![node("a", "True", &[]), node("b", "Unknown", mild)], false),
            ("one is back", vec![node("a", "True", both), node("b", "True", &[])], false),
            ("all are down", vec![node("a", "Unknown", mild), node("b", "Unknown", mild)], true),
        ] {
            let context = Context::for_tests();
            nodes.into_iter().for_each(|node| context.cache.nodes.hold(node));
            let mut monitor = Monitor::new(context);
            monitor.look().await;
            assert_eq!(monitor.calm, calm, "{what}");
        }
    }
}
