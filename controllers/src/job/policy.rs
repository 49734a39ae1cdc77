//! A Job's policies: what a failed pod means, and when the Job has succeeded though indexes are missing.

use k8s_openapi::api::batch::v1::{Job, JobSpec, PodFailurePolicyRule};

use super::indexes::{self, Indexes};
use crate::kept::{ContainerStatus, Pod};
use crate::pods;

/// What a failed pod means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// It counts towards the limit.
    Count,
    /// It does not count.
    Ignore,
    /// Its index has failed.
    FailIndex,
    /// The Job has failed, with this message.
    FailJob(String),
}

/// Whether a pod counts as failed: one that is going counts too, unless the Job waits until it has ended.
pub fn is_failed(pod: &Pod, job: &Job) -> bool {
    match pods::phase(pod) {
        "Failed" => true,
        "Succeeded" => false,
        _ => pods::is_going(pod) && !only_replaces_failed(job),
    }
}

/// Whether pods that are going are replaced only once they have ended.
pub fn only_replaces_failed(job: &Job) -> bool {
    let Some(spec) = &job.spec else { return false };
    spec.pod_replacement_policy.as_deref() == Some("Failed") || spec.pod_failure_policy.is_some()
}

fn exit_code<'a>(rule: &PodFailurePolicyRule, pod: &'a Pod) -> Option<(&'a ContainerStatus, i32)> {
    let wanted = rule.on_exit_codes.as_ref()?;
    let status = pod.status.as_ref()?;
    let all = status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten());
    let named = all.filter(|c| wanted.container_name.as_ref().is_none_or(|n| *n == c.name));
    for container in named {
        let code = container.state.as_ref().and_then(|s| s.terminated.as_ref()).map(|t| t.exit_code);
        let Some(code) = code.filter(|c| *c != 0) else { continue };
        let listed = wanted.values.contains(&code);
        if (wanted.operator == "In" && listed) || (wanted.operator == "NotIn" && !listed) {
            return Some((container, code));
        }
    }
    None
}

/// The first of the pod's conditions, in their order, that the rule names.
fn condition<'a>(rule: &PodFailurePolicyRule, pod: &'a Pod) -> Option<&'a str> {
    let patterns = rule.on_pod_conditions.as_deref()?;
    let named = |kind: &str, status: &str| {
        patterns.iter().any(|p| p.type_ == kind && p.status.as_deref().unwrap_or("True") == status)
    };
    let conditions = pod.status.as_ref()?.conditions.iter().flatten();
    conditions.into_iter().find(|c| named(&c.type_, &c.status)).map(|c| c.type_.as_str())
}

/// What a failed pod means by the first rule that matches it.
pub fn meaning(spec: &JobSpec, pod: &Pod) -> Meaning {
    let rules = spec.pod_failure_policy.as_ref().map_or(&[][..], |p| &p.rules);
    let metadata = &pod.metadata;
    let name = format!(
        "{}/{}",
        metadata.namespace.as_deref().unwrap_or_default(),
        metadata.name.as_deref().unwrap_or_default()
    );
    for (i, rule) in rules.iter().enumerate() {
        let what = match (exit_code(rule, pod), condition(rule, pod)) {
            (Some((container, code)), _) => {
                let container = &container.name;
                format!(
                    "Container {container} for pod {name} failed with exit code {code} matching {} rule at index {i}",
                    rule.action
                )
            }
            (None, Some(kind)) => format!("Pod {name} has condition {kind} matching {} rule at index {i}", rule.action),
            (None, None) => continue,
        };
        return match rule.action.as_str() {
            "FailJob" => Meaning::FailJob(what),
            "FailIndex" if spec.backoff_limit_per_index.is_some() => Meaning::FailIndex,
            "Ignore" => Meaning::Ignore,
            _ => Meaning::Count,
        };
    }
    Meaning::Count
}

/// The rule of the success policy that these indexes meet.
pub fn success(spec: &JobSpec, succeeded: &Indexes) -> Option<String> {
    let completions = spec.completions.unwrap_or(0);
    let rules = spec.success_policy.as_ref()?.rules.iter();
    let met = rules.enumerate().find(|(_, rule)| {
        let wanted = rule.succeeded_indexes.as_deref().map(|text| indexes::parse(text, completions));
        let done = wanted.as_ref().map_or(succeeded.len(), |wanted| wanted.intersection(succeeded).count());
        match (rule.succeeded_count, &wanted) {
            (Some(count), _) => done >= usize::try_from(count).unwrap_or(usize::MAX),
            (None, Some(wanted)) => done == wanted.len(),
            (None, None) => false,
        }
    })?;
    Some(format!("Matched rules at index {}", met.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(value: Value) -> JobSpec {
        let mut whole = json!({"completions": 5, "template": {}});
        keelson_machinery::patch::merge(&mut whole, &value);
        serde_json::from_value(whole).unwrap()
    }

    #[test]
    fn rules_give_failures_a_meaning() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"namespace": "d", "name": "p"}, "spec": {"containers": []},
            "status": {"phase": "Failed", "conditions": [{"type": "DisruptionTarget", "status": "True"},
                {"type": "Own", "status": "False"}], "containerStatuses":
                [{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 42}}}]}}))
        .unwrap();
        let codes = |action: &str, operator: &str, code: i32| json!({"action": action, "onExitCodes": {"operator": operator, "values": [code]}});
        let disrupted = |action: &str| json!({"action": action, "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]});
        for (rules, expected) in [
            (json!([]), Meaning::Count),
            (
                json!([codes("FailJob", "In", 42)]),
                Meaning::FailJob(
                    "Container c for pod d/p failed with exit code 42 matching FailJob rule at index 0".into(),
                ),
            ),
            (json!([codes("FailJob", "In", 1), codes("Ignore", "NotIn", 1)]), Meaning::Ignore),
            (json!([codes("FailIndex", "In", 42)]), Meaning::Count),
            (json!([codes("Count", "In", 42), disrupted("Ignore")]), Meaning::Count),
            (
                json!([codes("Count", "In", 1), disrupted("FailJob")]),
                Meaning::FailJob("Pod d/p has condition DisruptionTarget matching FailJob rule at index 1".into()),
            ),
            (
                // The pod's order counts, not the rule's.
                json!([{"action": "FailJob", "onPodConditions": [{"type": "Own", "status": "False"},
                    {"type": "DisruptionTarget", "status": "True"}]}]),
                Meaning::FailJob("Pod d/p has condition DisruptionTarget matching FailJob rule at index 0".into()),
            ),
        ] {
            assert_eq!(meaning(&spec(json!({"podFailurePolicy": {"rules": rules}})), &pod), expected);
        }
        let per_index =
            json!({"backoffLimitPerIndex": 1, "podFailurePolicy": {"rules": [codes("FailIndex", "In", 42)]}});
        assert_eq!(meaning(&spec(per_index), &pod), Meaning::FailIndex);
    }

    #[test]
    fn success_needs_indexes_or_a_count() {
        for (rule, succeeded, expected) in [
            (json!({"succeededIndexes": "0,2"}), "0,2,4", true),
            (json!({"succeededIndexes": "0,2"}), "0,4", false),
            (json!({"succeededCount": 2}), "3,4", true),
            (json!({"succeededCount": 3}), "3,4", false),
            (json!({"succeededIndexes": "0-3", "succeededCount": 1}), "3", true),
            (json!({"succeededIndexes": "0-3", "succeededCount": 1}), "4", false),
        ] {
            let spec = spec(json!({"successPolicy": {"rules": [rule]}}));
            assert_eq!(success(&spec, &indexes::parse(succeeded, 5)).is_some(), expected, "{rule} {succeeded}");
        }
        assert_eq!(success(&spec(json!({})), &indexes::parse("0-4", 5)), None);
    }
}
