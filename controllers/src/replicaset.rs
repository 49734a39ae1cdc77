//! ReplicaSets and ReplicationControllers: a number of pods of one template.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{
    PodTemplateSpec, ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keelson_client::{Change, Informer, Key, Object};

use crate::context::{Context, ORPHANS};
use crate::kept::Pod;
use crate::owners::{self, Selector, controller_of};
use crate::pods::{self, BURST};
use crate::runtime::{Keys, Outcome, watch_own, watch_owned, watch_with};

/// What a look found, as both kinds write it into their status.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Counts {
    replicas: i32,
    labeled: i32,
    ready: i32,
    available: i32,
    terminating: i32,
}

/// A kind that keeps a number of pods.
pub(crate) trait Replicated: Object + k8s_openapi::Resource<Scope = NamespaceResourceScope> {
    const COMPONENT: &'static str;
    fn informer(context: &Context) -> &Arc<Informer<Self>>;
    fn wanted(&self) -> i32;
    fn selector(&self) -> Selector;
    fn template(&self) -> PodTemplateSpec;
    fn min_ready_seconds(&self) -> i32;
    /// The object with a status of these counts and this failure (reason and message), if that differs from its own.
    fn with_status(&self, counts: &Counts, failure: Option<(&str, String)>, now: Time) -> Option<Self>;
}

fn positive(n: i32) -> Option<i32> {
    (n > 0).then_some(n)
}

impl Replicated for ReplicaSet {
    const COMPONENT: &'static str = "replicaset-controller";

    fn informer(context: &Context) -> &Arc<Informer<Self>> {
        &context.cache.replica_sets
    }
    fn wanted(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
    }
    fn selector(&self) -> Selector {
        Selector::new(&self.spec.as_ref().map(|s| s.selector.clone()).unwrap_or_default())
    }
    fn template(&self) -> PodTemplateSpec {
        self.spec.as_ref().and_then(|s| s.template.clone()).unwrap_or_default()
    }
    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0)
    }
    fn with_status(&self, counts: &Counts, failure: Option<(&str, String)>, now: Time) -> Option<Self> {
        let before = self.status.clone().unwrap_or_default();
        let mut conditions = before.conditions.clone().unwrap_or_default();
        match failure {
            Some(_) if conditions.iter().any(|c| c.type_ == "ReplicaFailure") => {}
            Some((reason, message)) => conditions.push(ReplicaSetCondition {
                type_: "ReplicaFailure".into(),
                status: "True".into(),
                reason: Some(reason.into()),
                message: Some(message),
                last_transition_time: Some(now),
            }),
            None => conditions.retain(|c| c.type_ != "ReplicaFailure"),
        }
        let status = ReplicaSetStatus {
            replicas: counts.replicas,
            fully_labeled_replicas: positive(counts.labeled),
            ready_replicas: positive(counts.ready),
            available_replicas: positive(counts.available),
            terminating_replicas: Some(counts.terminating),
            observed_generation: self.metadata.generation,
            conditions: (!conditions.is_empty()).then_some(conditions),
        };
        (status != before).then(|| Self { status: Some(status), ..self.clone() })
    }
}

impl Replicated for ReplicationController {
    const COMPONENT: &'static str = "replication-controller";

    fn informer(context: &Context) -> &Arc<Informer<Self>> {
        &context.cache.replication_controllers
    }
    fn wanted(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
    }
    fn selector(&self) -> Selector {
        Selector::of_labels(&self.spec.as_ref().and_then(|s| s.selector.clone()).unwrap_or_default())
    }
    fn template(&self) -> PodTemplateSpec {
        self.spec.as_ref().and_then(|s| s.template.clone()).unwrap_or_default()
    }
    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0)
    }
    fn with_status(&self, counts: &Counts, failure: Option<(&str, String)>, now: Time) -> Option<Self> {
        let before = self.status.clone().unwrap_or_default();
        let mut conditions = before.conditions.clone().unwrap_or_default();
        match failure {
            Some(_) if conditions.iter().any(|c| c.type_ == "ReplicaFailure") => {}
            Some((reason, message)) => conditions.push(ReplicationControllerCondition {
                type_: "ReplicaFailure".into(),
                status: "True".into(),
                reason: Some(reason.into()),
                message: Some(message),
                last_transition_time: Some(now),
            }),
            None => conditions.retain(|c| c.type_ != "ReplicaFailure"),
        }
        let status = ReplicationControllerStatus {
            replicas: counts.replicas,
            fully_labeled_replicas: positive(counts.labeled),
            ready_replicas: positive(counts.ready),
            available_replicas: positive(counts.available),
            observed_generation: self.metadata.generation,
            conditions: (!conditions.is_empty()).then_some(conditions),
        };
        (status != before).then(|| Self { status: Some(status), ..self.clone() })
    }
}

/// What is to be done.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    create: usize,
    delete: usize,
    counts: Counts,
}

/// Compares what is asked for with the pods that are there.
fn plan(
    wanted: i32,
    template_labels: &BTreeMap<String, String>,
    min_ready: i32,
    pods: &[Arc<Pod>],
    now: &Time,
) -> Plan {
    let labeled = |pod: &Pod| {
        let labels = pod.metadata.labels.as_ref();
        template_labels.iter().all(|(k, v)| labels.is_some_and(|l| l.get(k) == Some(v)))
    };
    let active: Vec<&Arc<Pod>> = pods.iter().filter(|p| pods::is_active(p)).collect();
    let count = |test: &dyn Fn(&Pod) -> bool| active.iter().filter(|p| test(p)).count() as i32;
    let wanted = wanted.max(0) as usize;
    Plan {
        create: wanted.saturating_sub(active.len()).min(BURST),
        delete: active.len().saturating_sub(wanted).min(BURST),
        counts: Counts {
            replicas: active.len() as i32,
            labeled: count(&labeled),
            ready: count(&pods::is_ready),
            available: count(&|p| pods::is_available(p, min_ready, now.0)),
            terminating: pods.iter().filter(|p| pods::is_going(p) && !pods::is_finished(p)).count() as i32,
        },
    }
}

/// Pods of all sets with the same controller, by node: of those on a crowded node one goes first.
fn neighbours(context: &Context, set: &ReplicaSet) -> HashMap<String, usize> {
    let Some(owner) = controller_of(&set.metadata) else { return HashMap::new() };
    let mut counts = HashMap::new();
    for sibling in context.cache.replica_sets.owned_by(&owner.uid) {
        for pod in context.cache.pods.owned_by(sibling.metadata.uid.as_deref().unwrap_or_default()) {
            if pods::is_active(&pod)
                && let Some(node) = pod.spec.as_ref().and_then(|s| s.node_name.clone())
            {
                *counts.entry(node).or_default() += 1;
            }
        }
    }
    counts
}

pub(crate) fn watch<S: Replicated>(context: &Arc<Context>, queue: &Keys) {
    watch_own(S::informer(context), queue);
    watch_owned(&context.cache.pods, <S as k8s_openapi::Resource>::KIND, queue);
    // A pod that nobody owns may match a set that is to adopt it.
    let weak = Arc::downgrade(context);
    watch_with(&context.cache.pods, queue, move |change: &Change<Pod>| {
        let (Some(pod), Some(context)) = (&change.new, weak.upgrade()) else { return Vec::new() };
        if controller_of(&pod.metadata).is_some() || pods::is_going(pod) {
            return Vec::new();
        }
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let sets = S::informer(&context).in_namespace(namespace);
        let matching = sets.iter().filter(|s| s.selector().matches(&pod.metadata));
        matching.map(|s| keelson_client::informer::key(&**s)).collect()
    });
}

/// Looks at one set.
pub(crate) async fn reconcile<S: Replicated>(context: Arc<Context>, key: Key) -> Outcome {
    let Some(set) = S::informer(&context).get(&key) else { return Ok(None) };
    let uid = set.metadata().uid.clone().unwrap_or_default();
    let selector = set.selector();
    let mut candidates = context.cache.pods.owned_by(&uid);
    let orphans = context.cache.pods.by(ORPHANS, &key.0);
    candidates.extend(orphans.into_iter().filter(|p| pods::is_active(p) && selector.matches(&p.metadata)));
    let all = owners::claim(&context.client, &*set, |o| selector.matches(&o.metadata), candidates).await?;
    let (template, now) = (set.template(), context.now());
    let labels = template.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
    let mut plan = plan(set.wanted(), &labels, set.min_ready_seconds(), &all, &now);
    let mut failure = None;
    let mut error = None;
    if set.metadata().deletion_timestamp.is_none() {
        let result = act(&context, &set, &template, &plan, &all).await;
        if let Err(refused) = result {
            failure = Some((if plan.create > 0 { "FailedCreate" } else { "FailedDelete" }, refused.to_string()));
            error = Some(refused);
        }
    }
    if plan.create + plan.delete > 0 {
        // What was done is in the cache by now; the status says so at once.
        let all = context.cache.pods.owned_by(&uid);
        plan.counts = self::plan(set.wanted(), &labels, set.min_ready_seconds(), &all, &now).counts;
    }
    if let Some(changed) = set.with_status(&plan.counts, failure, now.clone()) {
        let written = context.client.namespaced::<S>(&key.0).replace_status(&key.1, &changed).await?;
        context.settle(S::informer(&context), &written).await;
    }
    if let Some(error) = error {
        return Err(error);
    }
    let more = plan.create.max(plan.delete) == BURST;
    let next = pods::next_available(all.iter().map(|p| &**p), set.min_ready_seconds(), now.0);
    Ok(if more { Some(Duration::from_millis(1)) } else { next })
}

async fn act<S: Replicated>(
    context: &Arc<Context>,
    set: &Arc<S>,
    template: &PodTemplateSpec,
    plan: &Plan,
    all: &[Arc<Pod>],
) -> Result<(), keelson_client::Error> {
    if plan.create > 0 {
        let pods = (0..plan.create).map(|_| pods::of_template(&**set, template)).collect();
        pods::create(context, S::COMPONENT, &**set, pods).await?;
    }
    if plan.delete > 0 {
        let any: &dyn std::any::Any = &**set;
        let crowd = any.downcast_ref::<ReplicaSet>().map(|s| neighbours(context, s)).unwrap_or_default();
        let beside = |pod: &Pod| {
            let node = pod.spec.as_ref().and_then(|s| s.node_name.as_ref());
            node.and_then(|n| crowd.get(n)).copied().unwrap_or(0)
        };
        let mut active: Vec<Arc<Pod>> = all.iter().filter(|p| pods::is_active(p)).cloned().collect();
        pods::sort_for_deletion(&mut active, beside, context.now().0);
        active.truncate(plan.delete);
        pods::delete(context, S::COMPONENT, &**set, &active).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(ready: bool, phase: &str, labels: &[(&str, &str)], going: bool) -> Arc<Pod> {
        let mut value = json!({"metadata": {"labels": BTreeMap::from_iter(labels.iter().copied())},
            "spec": {"containers": []}, "status": {"phase": phase, "conditions": [
                {"type": "Ready", "status": if ready { "True" } else { "False" }, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
        if going {
            value["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        Arc::new(serde_json::from_value(value).unwrap())
    }

    #[test]
    fn plans() {
        let labels = BTreeMap::from([("app".to_owned(), "a".to_owned())]);
        let pods = [
            pod(true, "Running", &[("app", "a")], false),
            pod(false, "Running", &[], false),
            pod(false, "Pending", &[("app", "a"), ("b", "c")], false),
            pod(false, "Failed", &[("app", "a")], false),
            pod(true, "Running", &[("app", "a")], true),
        ];
        let now = Time("2026-01-01T00:00:05Z".parse().unwrap());
        for (wanted, min_ready, create, delete, available) in
            [(5, 0, 2, 0, 1), (3, 5, 0, 0, 1), (3, 6, 0, 0, 0), (0, 0, 0, 3, 1), (-1, 0, 0, 3, 1), (1000, 0, 500, 0, 1)]
        {
            let plan = plan(wanted, &labels, min_ready, &pods, &now);
            let counts = Counts { replicas: 3, labeled: 2, ready: 1, available, terminating: 1 };
            assert_eq!(plan, Plan { create, delete, counts }, "{wanted} {min_ready}");
        }
    }

    #[test]
    fn a_failure_is_told_until_it_is_over() {
        let set: ReplicaSet = serde_json::from_value(json!({"metadata": {"name": "r", "generation": 2},
            "spec": {"selector": {}}, "status": {"replicas": 1, "terminatingReplicas": 0, "observedGeneration": 2}}))
        .unwrap();
        let (counts, now) =
            (Counts { replicas: 1, ..Counts::default() }, Time("2026-01-01T00:00:00Z".parse().unwrap()));
        assert!(set.with_status(&counts, None, now.clone()).is_none());
        let failed = set.with_status(&counts, Some(("FailedCreate", "quota".into())), now.clone()).unwrap();
        let conditions = failed.status.as_ref().and_then(|s| s.conditions.clone()).unwrap();
        assert_eq!(
            (conditions[0].type_.as_str(), conditions[0].reason.as_deref()),
            ("ReplicaFailure", Some("FailedCreate"))
        );
        assert!(failed.with_status(&counts, Some(("FailedCreate", "other".into())), now.clone()).is_none());
        assert_eq!(failed.with_status(&counts, None, now).unwrap().status.unwrap().conditions, None);
    }
}
