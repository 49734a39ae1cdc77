//! Eviction by taints: a pod that does not tolerate a NoExecute taint of its node is deleted, one that tolerates it for a
//! while when that is over.

use std::collections::HashSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PodCondition, Taint, Toleration};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use keelson_client::informer::key;
use keelson_client::{Change, Key};
use parking_lot::Mutex;
use serde_json::json;

use super::fit::tolerates;
use crate::context::{BY_NODE, Context};
use crate::kept::Pod;
use crate::pods;
use crate::runtime::{Keys, Outcome, watch_with};

const COMPONENT: &str = "taint-eviction-controller";

/// What becomes of a pod.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    /// It stays.
    Keep,
    /// It goes at this time, or now if that is past.
    EvictAt(Timestamp),
}

/// Decides for a pod on a node with these taints; `bound` is since when the pod is there.
fn plan(pod: &Pod, taints: &[Taint], bound: Timestamp, now: Timestamp) -> Plan {
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
    let mut first: Option<Timestamp> = None;
    for taint in taints.iter().filter(|t| t.effect == "NoExecute") {
        let matching: Vec<&Toleration> = tolerations.iter().filter(|t| tolerates(t, taint)).collect();
        if matching.is_empty() {
            return Plan::EvictAt(now);
        }
        // Of several the shortest counts; one without seconds lasts for ever.
        let Some(seconds) = matching.iter().filter_map(|t| t.toleration_seconds).min() else { continue };
        let since = taint.time_added.as_ref().map_or(bound, |t| t.0.max(bound));
        let at = since.checked_add(SignedDuration::from_secs(seconds.max(0))).unwrap_or(Timestamp::MAX);
        first = Some(first.map_or(at, |f| f.min(at)));
    }
    first.map_or(Plan::Keep, Plan::EvictAt)
}

pub(crate) fn watch(context: &Arc<Context>, queue: &Keys) {
    watch_with(&context.cache.pods, queue, |change: &Change<Pod>| {
        let place = |pod: &Option<Arc<Pod>>| {
            pod.as_ref().and_then(|p| p.spec.as_ref()).map(|s| (s.node_name.clone(), s.tolerations.clone()))
        };
        let Some(new) = &change.new else { return Vec::new() };
        if place(&change.old) == place(&change.new) || new.spec.as_ref().is_none_or(|s| s.node_name.is_none()) {
            return Vec::new();
        }
        vec![key(&**new)]
    });
    let weak = Arc::downgrade(context);
    watch_with(&context.cache.nodes, queue, move |change: &Change<Node>| {
        let taints = |node: &Option<Arc<Node>>| {
            let taints = node.as_ref().and_then(|n| n.spec.as_ref()?.taints.clone()).unwrap_or_default();
            taints.into_iter().filter(|t| t.effect == "NoExecute").collect::<Vec<_>>()
        };
        let (Some(node), Some(context)) = (&change.new, weak.upgrade()) else { return Vec::new() };
        if taints(&change.old) == taints(&change.new) {
            return Vec::new();
        }
        let pods = context.cache.pods.by(BY_NODE, node.metadata.name.as_deref().unwrap_or_default());
        pods.iter().map(|p| key(&**p)).collect()
    });
}

/// Looks at one pod.
pub(crate) async fn reconcile(context: Arc<Context>, key: Key) -> Outcome {
    let Some(pod) = context.cache.pods.get(&key) else {
        forget(&context, COMPONENT, key);
        return Ok(None);
    };
    let Some(node) = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()) else { return Ok(None) };
    let Some(node) = context.cache.nodes.named("", node) else { return Ok(None) };
    if pods::is_going(&pod) {
        return Ok(None);
    }
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let bound = pods::condition(&pod, "PodScheduled").and_then(|c| c.last_transition_time.as_ref());
    let bound = bound.or(pod.metadata.creation_timestamp.as_ref()).map_or(Timestamp::UNIX_EPOCH, |t| t.0);
    let now = Timestamp::now();
    let at = match plan(&pod, taints, bound, now) {
        Plan::Keep => None,
        Plan::EvictAt(at) => Some(at),
    };
    evict_at(&context, &pod, at, &BY_NODE_TAINT).await
}

/// Who evicts a pod, and what it is told.
pub struct Reason {
    /// The source of the event.
    pub component: &'static str,
    /// The event's reason.
    pub event: &'static str,
    /// Whether the event says which pod.
    pub named: bool,
    /// The condition's reason and message.
    pub condition: (&'static str, &'static str),
}

const BY_NODE_TAINT: Reason = Reason {
    component: COMPONENT,
    event: "TaintManagerEviction",
    named: true,
    condition: ("DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint"),
};

impl Reason {
    fn tell(&self, context: &Context, pod: &Pod, what: &str, of: &str) {
        let (namespace, name) = key(pod);
        let pod_name = if self.named { format!("{of} Pod {namespace}/{name}") } else { String::new() };
        context.recorder(self.component).normal(pod, self.event, format!("{what}{pod_name}"));
    }
}

/// Pods that are to be evicted later, by who evicts them.
#[derive(Default)]
pub struct Pending(Mutex<HashSet<(&'static str, Key)>>);

/// When a pod is to be evicted: now, later, or not at all, which ends what was to be.
pub async fn evict_at(context: &Context, pod: &Pod, at: Option<Timestamp>, reason: &Reason) -> Outcome {
    let entry = (reason.component, key(pod));
    let now = Timestamp::now();
    match at {
        Some(at) if at > now => {
            context.evictions.0.lock().insert(entry);
            Ok(pods::until(at, now))
        }
        Some(_) => {
            evict(context, pod, reason).await?;
            context.evictions.0.lock().remove(&entry);
            Ok(None)
        }
        None => {
            if context.evictions.0.lock().remove(&entry) {
                reason.tell(context, pod, "Cancelling deletion", " of");
            }
            Ok(None)
        }
    }
}

/// Forgets a pod that is gone.
pub fn forget(context: &Context, component: &'static str, pod: Key) {
    context.evictions.0.lock().remove(&(component, pod));
}

/// Tells a pod that it has to go, and deletes it.
async fn evict(context: &Context, pod: &Pod, reason: &Reason) -> Outcome {
    let (namespace, name) =
        (pod.metadata.namespace.as_deref().unwrap_or_default(), pod.metadata.name.as_deref().unwrap_or_default());
    reason.tell(context, pod, "Marking for deletion", "");
    let api = context.client.namespaced::<Pod>(namespace);
    let why = PodCondition {
        type_: "DisruptionTarget".into(),
        status: "True".into(),
        reason: Some(reason.condition.0.into()),
        message: Some(reason.condition.1.into()),
        last_transition_time: Some(context.now()),
        observed_generation: pod.metadata.generation,
        ..PodCondition::default()
    };
    pods::write_status(context, pod, None, Some(why)).await?;
    match api.delete(name, &json!({"preconditions": {"uid": pod.metadata.uid}})).await {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerations_decide_when() {
        let at = |text: &str| -> Timestamp { text.parse().unwrap() };
        let (bound, now) = (at("2026-01-01T00:00:00Z"), at("2026-01-01T01:00:00Z"));
        let taint: Taint = serde_json::from_value(
            json!({"key": "k", "value": "v", "effect": "NoExecute", "timeAdded": "2026-01-01T00:59:00Z"}),
        )
        .unwrap();
        let early = Taint { time_added: None, ..taint.clone() };
        let soft = Taint { effect: "NoSchedule".into(), ..taint.clone() };
        for (what, tolerations, taints, expected) in [
            ("none", json!([]), vec![taint.clone()], Plan::EvictAt(now)),
            ("no taint that evicts", json!([]), vec![soft], Plan::Keep),
            ("for ever", json!([{"key": "k", "operator": "Exists"}]), vec![taint.clone()], Plan::Keep),
            ("everything", json!([{"operator": "Exists"}]), vec![taint.clone()], Plan::Keep),
            ("another value", json!([{"key": "k", "value": "w"}]), vec![taint.clone()], Plan::EvictAt(now)),
            (
                "another effect",
                json!([{"key": "k", "value": "v", "effect": "NoSchedule"}]),
                vec![taint.clone()],
                Plan::EvictAt(now),
            ),
            (
                "for a while",
                json!([{"key": "k", "value": "v", "tolerationSeconds": 300}]),
                vec![taint.clone()],
                Plan::EvictAt(at("2026-01-01T01:04:00Z")),
            ),
            (
                "no longer",
                json!([{"key": "k", "operator": "Exists", "tolerationSeconds": 60}]),
                vec![early],
                Plan::EvictAt(at("2026-01-01T00:01:00Z")),
            ),
            (
                "the shortest",
                json!([{"key": "k", "operator": "Exists"}, {"key": "k", "operator": "Exists", "tolerationSeconds": 120}]),
                vec![taint],
                Plan::EvictAt(at("2026-01-01T01:01:00Z")),
            ),
        ] {
            let pod = serde_json::from_value(json!({"spec": {"containers": [], "tolerations": tolerations}})).unwrap();
            assert_eq!(plan(&pod, &taints, bound, now), expected, "{what}");
        }
    }
}
