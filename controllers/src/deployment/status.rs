//! A Deployment's status: counts over its ReplicaSets and the conditions Available, Progressing and ReplicaFailure.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::sets::{Bounds, actual, available, name, replicas};
use crate::pods::until;

/// Reason of Progressing when all is done.
const AVAILABLE: &str = "NewReplicaSetAvailable";
/// Reason of Progressing when it took too long.
const TIMED_OUT: &str = "ProgressDeadlineExceeded";

/// The condition with this status, reason and message, now.
pub fn condition(kind: &str, status: &str, reason: &str, message: String, now: &Time) -> DeploymentCondition {
    DeploymentCondition {
        type_: kind.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_update_time: Some(now.clone()),
        last_transition_time: Some(now.clone()),
    }
}

/// Puts a condition in unless it says the same already; the time of transition is kept while the status stays.
pub fn set_condition(conditions: &mut Vec<DeploymentCondition>, mut new: DeploymentCondition) {
    if let Some(old) = conditions.iter().find(|c| c.type_ == new.type_) {
        if old.status == new.status && old.reason == new.reason {
            return;
        }
        if old.status == new.status {
            new.last_transition_time = old.last_transition_time.clone();
        }
    }
    conditions.retain(|c| c.type_ != new.type_);
    conditions.push(new);
}

/// The condition of a kind.
pub fn find<'a>(conditions: &'a [DeploymentCondition], kind: &str) -> Option<&'a DeploymentCondition> {
    conditions.iter().find(|c| c.type_ == kind)
}

/// Seconds that a roll-out may make no progress; none for those that never give up.
pub fn deadline(deployment: &Deployment) -> Option<i32> {
    deployment.spec.as_ref()?.progress_deadline_seconds.filter(|s| *s != i32::MAX)
}

fn progressed(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let n = |value: Option<i32>| value.unwrap_or(0);
    n(new.updated_replicas) > n(old.updated_replicas)
        || n(new.replicas) - n(new.updated_replicas) < n(old.replicas) - n(old.updated_replicas)
        || n(new.ready_replicas) > n(old.ready_replicas)
        || n(new.available_replicas) > n(old.available_replicas)
}

/// Whether the roll-out is done.
pub fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
    [status.updated_replicas, status.replicas, status.available_replicas].iter().all(|n| n.unwrap_or(0) == wanted)
        && status.observed_generation >= deployment.metadata.generation
}

/// Whether the roll-out made no progress for too long.
fn timed_out(deployment: &Deployment, now: &Time) -> bool {
    let conditions = deployment.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let Some(progressing) = conditions.into_iter().find(|c| c.type_ == "Progressing") else { return false };
    match progressing.reason.as_deref() {
        Some(AVAILABLE) => false,
        Some(TIMED_OUT) => true,
        _ => time_left(deployment, progressing, now).is_some_and(|left| left.is_zero()),
    }
}

fn time_left(deployment: &Deployment, progressing: &DeploymentCondition, now: &Time) -> Option<Duration> {
    let seconds = deadline(deployment)?;
    let from = progressing.last_update_time.as_ref()?.0;
    until(from.checked_add(k8s_openapi::jiff::SignedDuration::from_secs(seconds.into())).ok()?, now.0)
}

/// The counts, and the condition Available.
fn counted(
    deployment: &Deployment,
    new: Option<&Arc<ReplicaSet>>,
    all: &[Arc<ReplicaSet>],
    bounds: &Bounds,
    now: &Time,
) -> DeploymentStatus {
    let sum = |of: &dyn Fn(&ReplicaSet) -> i32| all.iter().map(|s| of(s)).sum::<i32>();
    let ready = sum(&|s| s.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0));
    let terminating = sum(&|s| s.status.as_ref().and_then(|s| s.terminating_replicas).unwrap_or(0));
    let (total, usable) = (sum(&actual), sum(&available));
    let some = |n: i32| (n > 0).then_some(n);
    let before = deployment.status.as_ref();
    let mut conditions = before.and_then(|s| s.conditions.clone()).unwrap_or_default();
    set_condition(
        &mut conditions,
        if usable >= bounds.wanted - bounds.unavailable {
            let message = "Deployment has minimum availability.".to_owned();
            condition("Available", "True", "MinimumReplicasAvailable", message, now)
        } else {
            let message = "Deployment does not have minimum availability.".to_owned();
            condition("Available", "False", "MinimumReplicasUnavailable", message, now)
        },
    );
    DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: some(total),
        updated_replicas: some(new.map_or(0, |s| actual(s))),
        ready_replicas: some(ready),
        available_replicas: some(usable),
        unavailable_replicas: some(sum(&replicas) - usable),
        terminating_replicas: Some(terminating),
        collision_count: before.and_then(|s| s.collision_count),
        conditions: Some(conditions),
    }
}

/// The whole status; while it is `rolling` (not paused, not just scaled) with its progress judged.
pub fn status(
    deployment: &Deployment,
    new: Option<&Arc<ReplicaSet>>,
    all: &[Arc<ReplicaSet>],
    rolling: bool,
    now: &Time,
) -> DeploymentStatus {
    let bounds = deployment.spec.as_ref().map(Bounds::of).unwrap_or(Bounds {
        wanted: 0,
        surge: 0,
        unavailable: 0,
        recreate: false,
    });
    let mut status = counted(deployment, new, all, &bounds, now);
    if !rolling {
        return status;
    }
    let mut conditions = status.conditions.take().unwrap_or_default();
    if deadline(deployment).is_none() {
        conditions.retain(|c| c.type_ != "Progressing");
    } else {
        let current = find(&conditions, "Progressing").cloned();
        let done = status.replicas == status.updated_replicas
            && current.as_ref().is_some_and(|c| c.reason.as_deref() == Some(AVAILABLE));
        if !done {
            judge(deployment, new, &status, current, &mut conditions, now);
        }
    }
    // The new set's failure comes before those of others.
    let mut failures = new.into_iter().chain(all).filter_map(|s| {
        s.status.as_ref()?.conditions.iter().flatten().find(|c| c.type_ == "ReplicaFailure" && c.status == "True")
    });
    match failures.next() {
        Some(failure) => {
            let (reason, message) = (failure.reason.as_deref().unwrap_or_default(), failure.message.clone());
            set_condition(
                &mut conditions,
                condition("ReplicaFailure", "True", reason, message.unwrap_or_default(), now),
            );
        }
        None => conditions.retain(|c| c.type_ != "ReplicaFailure"),
    }
    status.conditions = Some(conditions);
    status
}

/// Sets Progressing: done, going on, or stuck.
fn judge(
    deployment: &Deployment,
    new: Option<&Arc<ReplicaSet>>,
    status: &DeploymentStatus,
    current: Option<DeploymentCondition>,
    conditions: &mut Vec<DeploymentCondition>,
    now: &Time,
) {
    let what = match new {
        Some(set) => format!("ReplicaSet {:?}", name(set)),
        None => format!("Deployment {:?}", deployment.metadata.name.as_deref().unwrap_or_default()),
    };
    let before = deployment.status.clone().unwrap_or_default();
    if is_complete(deployment, status) {
        let message = format!("{what} has successfully progressed.");
        set_condition(conditions, condition("Progressing", "True", AVAILABLE, message, now));
    } else if progressed(&before, status) {
        let mut going = condition("Progressing", "True", "ReplicaSetUpdated", format!("{what} is progressing."), now);
        if let Some(current) = current.filter(|c| c.status == "True") {
            going.last_transition_time = current.last_transition_time;
        }
        // Each progress starts the deadline anew.
        conditions.retain(|c| c.type_ != "Progressing");
        conditions.push(going);
    } else if timed_out(deployment, now) {
        let message = format!("{what} has timed out progressing.");
        set_condition(conditions, condition("Progressing", "False", TIMED_OUT, message, now));
    }
}

/// When to look again for a roll-out that may get stuck.
pub fn stuck_check(deployment: &Deployment, status: &DeploymentStatus, now: &Time) -> Option<Duration> {
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let progressing = find(conditions, "Progressing")?;
    if is_complete(deployment, status) || progressing.reason.as_deref() == Some(TIMED_OUT) {
        return None;
    }
    Some(time_left(deployment, progressing, now)? + Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn deployment(status: Value) -> Deployment {
        serde_json::from_value(json!({"metadata": {"name": "d", "generation": 2},
            "spec": {"replicas": 2, "progressDeadlineSeconds": 60, "selector": {}, "template": {},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}},
            "status": status}))
        .unwrap()
    }

    fn set(size: i32, available: i32) -> Arc<ReplicaSet> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": "d-x"}, "spec": {"replicas": size, "selector": {}},
                "status": {"replicas": size, "availableReplicas": available, "readyReplicas": available}}))
            .unwrap(),
        )
    }

    fn reasons(status: &DeploymentStatus) -> String {
        let mut reasons: Vec<String> = status
            .conditions
            .iter()
            .flatten()
            .map(|c| format!("{}={}", c.reason.as_deref().unwrap_or_default(), c.status))
            .collect();
        reasons.sort();
        reasons.join(" ")
    }

    #[test]
    fn conditions_follow_the_rollout() {
        let now = Time("2026-01-01T00:10:00Z".parse().unwrap());
        let progressing = |reason: &str, at: &str| {
            json!({"replicas": 2, "updatedReplicas": 2, "conditions":
                [{"type": "Progressing", "status": "True", "reason": reason, "lastUpdateTime": at, "lastTransitionTime": at}]})
        };
        for (what, before, set, expected) in [
            ("begins", json!({}), set(2, 0), "MinimumReplicasUnavailable=False ReplicaSetUpdated=True"),
            ("is done", json!({}), set(2, 2), "MinimumReplicasAvailable=True NewReplicaSetAvailable=True"),
            (
                "waits",
                progressing("ReplicaSetUpdated", "2026-01-01T00:09:30Z"),
                set(2, 0),
                "MinimumReplicasUnavailable=False ReplicaSetUpdated=True",
            ),
            (
                "is stuck",
                progressing("ReplicaSetUpdated", "2026-01-01T00:08:00Z"),
                set(2, 0),
                "MinimumReplicasUnavailable=False ProgressDeadlineExceeded=False",
            ),
            (
                "was done",
                progressing("NewReplicaSetAvailable", "2026-01-01T00:00:00Z"),
                set(2, 1),
                "MinimumReplicasUnavailable=False NewReplicaSetAvailable=True",
            ),
        ] {
            let deployment = deployment(before);
            let status = status(&deployment, Some(&set), std::slice::from_ref(&set), true, &now);
            assert_eq!(reasons(&status), expected, "{what}");
            assert_eq!(
                stuck_check(&deployment, &status, &now).is_some(),
                matches!(what, "begins" | "waits" | "was done"),
                "{what}"
            );
        }
    }

    #[test]
    fn a_failure_of_a_set_is_the_deployments() {
        let mut failing = (*set(1, 0)).clone();
        failing.status.get_or_insert_default().conditions = serde_json::from_value(
            json!([{"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "quota"}]),
        )
        .unwrap();
        let all = [Arc::new(failing)];
        let now = Time("2026-01-01T00:10:00Z".parse().unwrap());
        let status = status(&deployment(json!({})), all.first(), &all, true, &now);
        assert!(reasons(&status).contains("FailedCreate=True"), "{}", reasons(&status));
        assert_eq!((status.unavailable_replicas, status.replicas), (Some(1), Some(1)));
    }
}
