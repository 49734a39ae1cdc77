//! Decides how many pods of a PodDisruptionBudget may go now.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::SignedDuration;

use crate::kept::Pod;
use crate::pods;

/// An eviction that was allowed but did not happen is forgotten after this.
pub const EVICTION_TIMEOUT: SignedDuration = SignedDuration::from_secs(120);

const ALLOWED: &str = "DisruptionAllowed";

/// A share of `total`, rounded up.
fn share(text: &str, total: i32) -> i32 {
    let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
    ((percent * i64::from(total) + 99) / 100) as i32
}

/// Whether the pods' controllers must be asked how many pods there should be.
pub fn needs_scale(spec: &PodDisruptionBudgetSpec) -> bool {
    spec.max_unavailable.is_some() || matches!(spec.min_available, Some(IntOrString::String(_)))
}

/// How many pods are expected, and how many of them must be healthy. `scale` is what the controllers want, `count` are the
/// pods that are there.
pub fn expected(spec: &PodDisruptionBudgetSpec, scale: i32, count: i32) -> (i32, i32) {
    match (&spec.max_unavailable, &spec.min_available) {
        (Some(IntOrString::Int(n)), _) => (scale, (scale - n).max(0)),
        (Some(IntOrString::String(text)), _) => (scale, (scale - share(text, scale)).max(0)),
        (None, Some(IntOrString::Int(n))) => (count, *n),
        (None, Some(IntOrString::String(text))) => (scale, share(text, scale)),
        (None, None) => (count, 0),
    }
}

/// The status, and the pods whose allowed eviction did not happen.
pub fn status(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    (expected, desired): (i32, i32),
    now: &Time,
) -> (PodDisruptionBudgetStatus, Vec<String>) {
    let before = budget.status.clone().unwrap_or_default();
    let (mut disrupted, mut given_up) = (BTreeMap::new(), Vec::new());
    for (name, at) in before.disrupted_pods.iter().flatten() {
        let there = pods.iter().find(|p| p.metadata.name.as_ref() == Some(name));
        if there.is_none_or(|p| pods::is_going(p)) {
            continue;
        }
        if at.0.checked_add(EVICTION_TIMEOUT).is_ok_and(|end| end < now.0) {
            given_up.push(name.clone());
        } else {
            disrupted.insert(name.clone(), at.clone());
        }
    }
    let counts = |p: &Pod| {
        let name = p.metadata.name.as_deref().unwrap_or_default();
        !pods::is_going(p) && !disrupted.contains_key(name) && pods::is_ready(p)
    };
    let healthy = pods.iter().filter(|p| counts(p)).count() as i32;
    let allowed = if expected <= 0 { 0 } else { (healthy - desired).max(0) };
    let (state, reason) = if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    let status = PodDisruptionBudgetStatus {
        current_healthy: Some(healthy),
        desired_healthy: Some(desired),
        expected_pods: Some(expected),
        disruptions_allowed: Some(allowed),
        disrupted_pods: (!disrupted.is_empty()).then_some(disrupted),
        observed_generation: budget.metadata.generation,
        conditions: Some(conditions(budget, state, reason, "", now)),
    };
    (status, given_up)
}

/// The status where it cannot be told how many pods there should be: rather no eviction than one too many. Of which
/// generation the other numbers are stays as it was, and the condition says so too.
pub fn failed(budget: &PodDisruptionBudget, why: &str, now: &Time) -> PodDisruptionBudgetStatus {
    let before = budget.status.clone().unwrap_or_default();
    let mut conditions = conditions(budget, "False", "SyncFailed", why, now);
    for condition in conditions.iter_mut().filter(|c| c.type_ == ALLOWED) {
        condition.observed_generation = before.observed_generation;
    }
    // Numbers that have no value yet are not left out.
    let known = |n: Option<i32>| n.or(Some(0));
    PodDisruptionBudgetStatus {
        disruptions_allowed: Some(0),
        current_healthy: known(before.current_healthy),
        desired_healthy: known(before.desired_healthy),
        expected_pods: known(before.expected_pods),
        conditions: Some(conditions),
        ..before
    }
}

/// The conditions with DisruptionAllowed saying this.
fn conditions(budget: &PodDisruptionBudget, state: &str, reason: &str, message: &str, now: &Time) -> Vec<Condition> {
    let mut all = budget.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    let mut new = Condition {
        type_: ALLOWED.into(),
        status: state.into(),
        reason: reason.into(),
        message: message.into(),
        observed_generation: budget.metadata.generation,
        last_transition_time: now.clone(),
    };
    match all.iter_mut().find(|c| c.type_ == new.type_) {
        Some(old) => {
            if old.status == new.status {
                new.last_transition_time = old.last_transition_time.clone();
            }
            *old = new;
        }
        None => all.push(new),
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn budget(spec: Value, disrupted: Value) -> PodDisruptionBudget {
        serde_json::from_value(json!({"metadata": {"generation": 1}, "spec": spec, "status": {"disruptionsAllowed": 0,
            "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0, "disruptedPods": disrupted}}))
        .unwrap()
    }

    fn pods(count: usize, ready: usize) -> Vec<Arc<Pod>> {
        let pod = |i: usize| {
            let state = if i < ready { "True" } else { "False" };
            Arc::new(
                serde_json::from_value(json!({"metadata": {"name": format!("p{i}")}, "spec": {"containers": []},
                    "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": state}]}}))
                .unwrap(),
            )
        };
        (0..count).map(pod).collect()
    }

    #[test]
    fn a_failure_says_which_generation_the_numbers_are_of() {
        let now = Time("2026-01-01T00:10:00Z".parse().unwrap());
        for observed in [None, Some(3)] {
            let mut budget = budget(json!({"maxUnavailable": 1}), json!({}));
            budget.metadata.generation = Some(4);
            let status = budget.status.as_mut().unwrap();
            (status.observed_generation, status.disruptions_allowed) = (observed, Some(2));
            let status = failed(&budget, "why", &now);
            assert_eq!((status.disruptions_allowed, status.observed_generation), (Some(0), observed));
            let condition = &status.conditions.unwrap()[0];
            assert_eq!((condition.reason.as_str(), condition.observed_generation), ("SyncFailed", observed));
        }
    }

    #[test]
    fn budgets() {
        let now = Time("2026-01-01T00:10:00Z".parse().unwrap());
        for (spec, scale, ready, expected) in [
            (json!({"minAvailable": 2}), 0, 3, [3, 2, 1]),
            (json!({"minAvailable": 2}), 0, 1, [3, 2, 0]),
            (json!({"minAvailable": "50%"}), 3, 3, [3, 2, 1]),
            (json!({"maxUnavailable": 1}), 3, 3, [3, 2, 1]),
            (json!({"maxUnavailable": "34%"}), 3, 3, [3, 1, 2]),
            (json!({"maxUnavailable": 5}), 3, 3, [3, 0, 3]),
            (json!({"maxUnavailable": 1}), 0, 3, [0, 0, 0]),
        ] {
            let budget = budget(spec.clone(), json!({}));
            let pods = pods(3, ready);
            let numbers = self::expected(budget.spec.as_ref().unwrap(), scale, 3);
            let (status, _) = status(&budget, &pods, numbers, &now);
            assert_eq!(
                (status.expected_pods, status.desired_healthy, status.disruptions_allowed),
                expected.map(Some).into(),
                "{spec}"
            );
        }
    }

    #[test]
    fn an_allowed_eviction_counts_until_it_happened_or_is_given_up() {
        let now = Time("2026-01-01T00:10:00Z".parse().unwrap());
        let disrupted =
            json!({"p0": "2026-01-01T00:09:00Z", "p1": "2026-01-01T00:00:00Z", "gone": "2026-01-01T00:09:00Z"});
        let budget = budget(json!({"minAvailable": 1}), disrupted);
        let (status, given_up) = status(&budget, &pods(3, 3), (3, 1), &now);
        assert_eq!(
            (status.current_healthy, status.disruptions_allowed, given_up),
            (Some(2), Some(1), vec!["p1".to_owned()])
        );
        assert_eq!(status.disrupted_pods.map(|d| d.into_keys().collect::<Vec<_>>()), Some(vec!["p0".to_owned()]));
    }
}
