//! Pods as controllers see them, and making and deleting many of them: in batches that grow as long as all goes well.

use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{self as core, PodCondition, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use keelson_client::{Error, Object, PatchType};
use serde_json::json;

use crate::context::Context;
use crate::kept::Pod;
use crate::owners::controller_reference;

/// Most pods that one look creates or deletes.
pub const BURST: usize = 500;
/// Writes of one look at a time.
const PARALLEL_WRITES: usize = 64;

/// `status.phase`.
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

/// Whether the pod has ended.
pub fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether the pod is being deleted.
pub fn is_going(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Whether the pod counts as one that runs or will.
pub fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && !is_going(pod)
}

/// A condition of the pod.
pub fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.iter().flatten().find(|c| c.type_ == kind)
}

/// Whether the pod's Ready condition holds.
pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

/// When the pod will have been ready for `seconds`; `None` if it is not ready.
pub fn available_at(pod: &Pod, seconds: i32) -> Option<Timestamp> {
    let ready = condition(pod, "Ready").filter(|c| c.status == "True")?;
    let Some(since) = &ready.last_transition_time else {
        return (seconds == 0).then_some(Timestamp::UNIX_EPOCH);
    };
    since.0.checked_add(k8s_openapi::jiff::SignedDuration::from_secs(seconds.into())).ok()
}

/// Whether the pod has been ready for `seconds`.
pub fn is_available(pod: &Pod, seconds: i32, now: Timestamp) -> bool {
    match available_at(pod, seconds) {
        Some(at) => seconds == 0 || at <= now,
        None => false,
    }
}

/// How long until the next of `pods` that are ready becomes available.
pub fn next_available<'a>(
    pods: impl Iterator<Item = &'a Pod>,
    seconds: i32,
    now: Timestamp,
) -> Option<std::time::Duration> {
    if seconds == 0 {
        return None;
    }
    let times = pods.filter_map(|p| available_at(p, seconds)).filter(|at| *at > now);
    times.min().and_then(|at| until(at, now))
}

/// How long until `at`, zero if it is past.
pub fn until(at: Timestamp, now: Timestamp) -> Option<std::time::Duration> {
    std::time::Duration::try_from(at.duration_since(now)).ok().or(Some(std::time::Duration::ZERO))
}

/// A pod of `template` that `owner` controls. Without a name of its own it gets one that begins with the owner's.
pub fn of_template<K: Object>(owner: &K, template: &PodTemplateSpec) -> core::Pod {
    let given = template.metadata.clone().unwrap_or_default();
    let metadata = owner.metadata();
    core::Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", metadata.name.as_deref().unwrap_or_default())),
            namespace: metadata.namespace.clone(),
            labels: given.labels,
            annotations: given.annotations,
            finalizers: given.finalizers,
            owner_references: Some(vec![controller_reference(owner)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// Makes pods for `owner`: one, then two, then four at a time and so on, and no more once one fails. Tells of each.
/// Returns once the cache shows them.
pub async fn create<K: Object>(
    context: &Context,
    component: &'static str,
    owner: &K,
    pods: Vec<core::Pod>,
) -> Result<usize, Error> {
    let recorder = context.recorder(component);
    let namespace = owner.metadata().namespace.as_deref().unwrap_or_default();
    let api = context.client.namespaced::<core::Pod>(namespace);
    let (mut rest, mut size, mut made) = (pods.into_iter().peekable(), 1_usize, 0);
    let mut failure = None;
    let mut newest = (0, None);
    while rest.peek().is_some() && failure.is_none() {
        let batch: Vec<core::Pod> = rest.by_ref().take(size).collect();
        let results: Vec<Result<core::Pod, Error>> = futures::stream::iter(batch)
            .map(|pod| {
                let api = &api;
                async move { api.create(&pod).await }
            })
            .buffer_unordered(PARALLEL_WRITES)
            .collect()
            .await;
        for result in results {
            match result {
                Ok(pod) => {
                    let name = pod.metadata.name.as_deref().unwrap_or_default();
                    recorder.normal(owner, "SuccessfulCreate", format!("Created pod: {name}"));
                    made += 1;
                    let version = pod.metadata.resource_version;
                    let number = version.as_ref().and_then(|v| v.parse::<u64>().ok()).unwrap_or(0);
                    if number > newest.0 {
                        newest = (number, version);
                    }
                }
                Err(error) => {
                    if !error.is_namespace_terminating() {
                        recorder.warning(owner, "FailedCreate", format!("Error creating: {error}"));
                    }
                    failure = Some(error);
                }
            }
        }
        size *= 2;
    }
    if let Some(newest) = newest.1 {
        context.settle_at(&context.cache.pods, &newest).await;
    }
    match failure {
        // Nothing can be made there any more; the end of the namespace ends the owner too.
        Some(error) if error.is_namespace_terminating() => Ok(made),
        Some(error) => Err(error),
        None => Ok(made),
    }
}

/// Deletes pods of `owner` and tells of each. Returns once the cache shows them going.
pub async fn delete<K: Object>(
    context: &Context,
    component: &'static str,
    owner: &K,
    pods: &[Arc<Pod>],
) -> Result<(), Error> {
    let recorder = context.recorder(component);
    let namespace = owner.metadata().namespace.as_deref().unwrap_or_default();
    let api = context.client.namespaced::<Pod>(namespace);
    let results: Vec<(Arc<Pod>, Result<(), Error>)> = futures::stream::iter(pods.iter().cloned())
        .map(|pod| {
            let api = &api;
            async move {
                let options = json!({"preconditions": {"uid": pod.metadata.uid}});
                let result = api.delete(pod.metadata.name.as_deref().unwrap_or_default(), &options).await;
                (pod, result)
            }
        })
        .buffer_unordered(PARALLEL_WRITES)
        .collect()
        .await;
    let mut failure = None;
    for (pod, result) in results {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        match result {
            Ok(()) => {
                recorder.normal(owner, "SuccessfulDelete", format!("Deleted pod: {name}"));
                context.settle_gone(&context.cache.pods, &*pod).await;
            }
            // Gone, or another of that name by now.
            Err(error) if error.is_not_found() || error.is_conflict() => {}
            Err(error) => {
                recorder.warning(owner, "FailedDelete", format!("Error deleting: {error}"));
                failure = Some(error);
            }
        }
    }
    failure.map_or(Ok(()), Err)
}

/// Containers' restarts, the most of one container.
fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    statuses.map(|c| c.restart_count).max().unwrap_or(0)
}

/// The cost that a pod's annotation gives to deleting it.
fn deletion_cost(pod: &Pod) -> i32 {
    let annotations = pod.metadata.annotations.as_ref();
    annotations.and_then(|a| a.get("controller.kubernetes.io/pod-deletion-cost")?.parse().ok()).unwrap_or(0)
}

/// Ages are compared in powers of two of seconds, so that which of several pods goes is not always the youngest.
fn age_class(at: Option<Timestamp>, now: Timestamp) -> Option<u32> {
    let seconds = now.duration_since(at?).as_secs();
    Some(u64::try_from(seconds).unwrap_or(0).checked_ilog2().map_or(0, |log| log + 1))
}

fn phase_rank(pod: &Pod) -> u8 {
    match phase(pod) {
        "Pending" | "" => 0,
        "Unknown" => 1,
        _ => 2,
    }
}

/// Sorts pods so that those come first that are to go first. `neighbours` is how many pods of the same kind run beside one.
pub fn sort_for_deletion(pods: &mut [Arc<Pod>], neighbours: impl Fn(&Pod) -> usize, now: Timestamp) {
    let ready_since = |p: &Pod| {
        let ready = condition(p, "Ready").filter(|c| c.status == "True")?;
        ready.last_transition_time.as_ref().map(|t| t.0)
    };
    pods.sort_by_cached_key(|p| {
        let ready = is_ready(p);
        (
            p.spec.as_ref().and_then(|s| s.node_name.as_deref()).is_some_and(|n| !n.is_empty()),
            phase_rank(p),
            ready,
            deletion_cost(p),
            std::cmp::Reverse(neighbours(p)),
            // Ready for a shorter time goes first; no time counts as long ago.
            if ready { age_class(ready_since(p), now).unwrap_or(u32::MAX) } else { 0 },
            std::cmp::Reverse(restarts(p)),
            age_class(p.metadata.creation_timestamp.as_ref().map(|t| t.0), now).unwrap_or(0),
            p.metadata.uid.clone(),
        )
    });
}

/// Sorts pods of a Job so that those come first that are to go first: those that are least far, then the newest.
pub fn sort_active(pods: &mut [Arc<Pod>]) {
    let ready_since = |p: &Pod| {
        let ready = condition(p, "Ready").filter(|c| c.status == "True")?;
        ready.last_transition_time.as_ref().map(|t| t.0)
    };
    pods.sort_by_cached_key(|p| {
        (
            p.spec.as_ref().and_then(|s| s.node_name.as_deref()).is_some_and(|n| !n.is_empty()),
            phase_rank(p),
            is_ready(p),
            // No time counts as the newest.
            std::cmp::Reverse(ready_since(p).unwrap_or(Timestamp::MAX)),
            std::cmp::Reverse(restarts(p)),
            std::cmp::Reverse(p.metadata.creation_timestamp.as_ref().map_or(Timestamp::MAX, |t| t.0)),
            p.metadata.name.clone(),
        )
    });
}

/// What a condition of a pod becomes; none if it says that already.
fn changed_condition(pod: &Pod, new: PodCondition) -> Option<PodCondition> {
    let Some(old) = condition(pod, &new.type_) else { return Some(new) };
    if old.status == new.status && old.reason == new.reason && old.message == new.message {
        return None;
    }
    let kept = (old.status == new.status).then(|| old.last_transition_time.clone()).flatten();
    let time = kept.or_else(|| new.last_transition_time.clone());
    Some(PodCondition { last_transition_time: time, ..new })
}

/// Writes a pod's phase, if one is given, and one of its conditions, if that changes. The pod must be the one that was looked
/// at, as it was then.
pub async fn write_status(
    context: &Context,
    pod: &Pod,
    phase: Option<&str>,
    condition: Option<PodCondition>,
) -> Result<(), Error> {
    let conditions: Vec<PodCondition> = condition.into_iter().filter_map(|new| changed_condition(pod, new)).collect();
    if conditions.is_empty() && phase.is_none() {
        return Ok(());
    }
    let metadata = &pod.metadata;
    let mut status = json!({"conditions": conditions});
    if let Some(phase) = phase {
        status["phase"] = phase.into();
    }
    let patch =
        json!({"metadata": {"uid": metadata.uid, "resourceVersion": metadata.resource_version}, "status": status});
    let api = context.client.namespaced::<Pod>(metadata.namespace.as_deref().unwrap_or_default());
    let name = metadata.name.as_deref().unwrap_or_default();
    api.patch(name, Some("status"), PatchType::Strategic, &patch).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, value: serde_json::Value) -> Arc<Pod> {
        let mut whole = json!({"metadata": {"name": name, "uid": name}, "spec": {"containers": []}});
        keelson_machinery::patch::merge(&mut whole, &value);
        Arc::new(serde_json::from_value(whole).unwrap())
    }

    #[test]
    fn those_go_first_that_are_missed_least() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let running = |since: &str, restarts: i32| {
            json!({"spec": {"nodeName": "n"}, "status": {"phase": "Running",
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": since}],
                "containerStatuses": [{"name": "c", "ready": true, "image": "", "imageID": "", "restartCount": restarts}]}})
        };
        let mut cheap = running("2026-01-01T00:00:00Z", 0);
        cheap["metadata"] = json!({"annotations": {"controller.kubernetes.io/pod-deletion-cost": "-5"}});
        let order = [
            pod("unscheduled", json!({"status": {"phase": "Pending"}})),
            pod("pending", json!({"spec": {"nodeName": "n"}, "status": {"phase": "Pending"}})),
            pod("not-ready", json!({"spec": {"nodeName": "n"}, "status": {"phase": "Running"}})),
            pod("cheap", cheap),
            pod("young", running("2026-01-01T23:59:00Z", 0)),
            pod("restarted", running("2026-01-01T00:00:00Z", 3)),
            pod("old", running("2026-01-01T00:00:00Z", 0)),
        ];
        let mut pods: Vec<Arc<Pod>> = order.iter().rev().cloned().collect();
        sort_for_deletion(&mut pods, |_| 1, now);
        let names = |pods: &[Arc<Pod>]| pods.iter().filter_map(|p| p.metadata.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&pods), names(&order));
    }

    #[test]
    fn of_a_jobs_pods_the_newest_goes_first() {
        let made = |name: &str, node: Option<&str>, second: u8| {
            pod(
                name,
                json!({"metadata": {"creationTimestamp": format!("2026-01-01T00:00:0{second}Z"),
                "annotations": {"controller.kubernetes.io/pod-deletion-cost": "9"}},
                "spec": {"nodeName": node}, "status": {"phase": "Pending"}}),
            )
        };
        let order = [made("new", None, 5), made("old", None, 1), made("placed", Some("n"), 7)];
        let mut pods: Vec<Arc<Pod>> = order.iter().rev().cloned().collect();
        sort_active(&mut pods);
        let names: Vec<&str> = pods.iter().filter_map(|p| p.metadata.name.as_deref()).collect();
        assert_eq!(names, ["new", "old", "placed"]);
    }

    #[test]
    fn availability_needs_time() {
        let at = |text: &str| -> Timestamp { text.parse().unwrap() };
        let ready = pod(
            "a",
            json!({"status": {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}),
        );
        let not = pod("b", json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}));
        for (pod, seconds, now, expected) in [
            (&ready, 0, "2025-12-31T00:00:00Z", true),
            (&ready, 10, "2026-01-01T00:00:09Z", false),
            (&ready, 10, "2026-01-01T00:00:10Z", true),
            (&not, 0, "2026-01-01T00:00:10Z", false),
        ] {
            assert_eq!(is_available(pod, seconds, at(now)), expected, "{seconds} {now}");
        }
        let wait = next_available([&*ready, &*not].into_iter(), 10, at("2026-01-01T00:00:04Z"));
        assert_eq!(wait, Some(std::time::Duration::from_secs(6)));
        assert_eq!(next_available([&*ready].into_iter(), 10, at("2026-01-01T00:01:00Z")), None);
    }
}
