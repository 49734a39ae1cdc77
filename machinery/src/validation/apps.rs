//! Deployments and the other kinds that keep pods running.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::check::{Problems, percent};
use super::{has, items, pod, selectors, storage, text};
use crate::selector::LabelSelector;
use crate::shown;
use crate::status::Cause;

const STATEFUL_UPDATE: &str = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', \
     'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
/// Parts of a StatefulSet's spec that may change.
const STATEFUL_MUTABLE: &[&str] = &[
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

/// An object of the group, or a change of it.
pub fn validate(plural: &str, subresource: &str, new: &Value, old: Option<&Value>, p: &mut Problems) {
    if subresource == "status" {
        status(plural, &new["status"], p);
        if matches!(plural, "deployments" | "daemonsets" | "statefulsets") {
            collisions(&new["status"], &old.unwrap_or(&Value::Null)["status"], p);
        }
        return;
    }
    let spec = &new["spec"];
    match plural {
        "deployments" => deployment(spec, p),
        // Upstream names the other kind here too.
        "replicasets" => replicas(spec, p),
        "daemonsets" => daemon_set(spec, p),
        "statefulsets" => stateful_set(spec, old.is_none(), p),
        "controllerrevisions" => revision(new, old, p),
        _ => {}
    }
    let Some(old) = old else { return };
    let before = &old["spec"];
    match plural {
        "deployments" | "replicasets" | "daemonsets" if spec["selector"] != before["selector"] => {
            p.invalid_shown("spec.selector", &shown_selector(&spec["selector"]), "field is immutable");
        }
        "statefulsets" => {
            let fixed = |spec: &Value| {
                let mut map = spec.as_object().cloned().unwrap_or_default();
                map.retain(|key, _| !STATEFUL_MUTABLE.contains(&key.as_str()));
                map
            };
            if fixed(spec) != fixed(before) {
                p.forbidden("spec", STATEFUL_UPDATE);
            }
        }
        _ => {}
    }
}

/// A selector as messages show it.
pub fn shown_selector(selector: &Value) -> String {
    if selector.is_null() {
        return "null".into();
    }
    let mut out = String::new();
    shown::selector(selector).write(&mut out);
    out
}

fn status(plural: &str, status: &Value, p: &mut Problems) {
    let fields: &[&str] = match plural {
        "deployments" => &[
            "observedGeneration",
            "replicas",
            "updatedReplicas",
            "readyReplicas",
            "availableReplicas",
            "unavailableReplicas",
            "terminatingReplicas",
        ],
        "daemonsets" => &[
            "currentNumberScheduled",
            "numberMisscheduled",
            "desiredNumberScheduled",
            "numberReady",
            "observedGeneration",
            "updatedNumberScheduled",
            "numberAvailable",
            "numberUnavailable",
        ],
        _ => &[
            "replicas",
            "fullyLabeledReplicas",
            "readyReplicas",
            "availableReplicas",
            "currentReplicas",
            "updatedReplicas",
            "observedGeneration",
            "terminatingReplicas",
        ],
    };
    for field in fields {
        p.not_negative(format!("status.{field}"), &status[*field]);
    }
    p.not_negative("status.collisionCount", &status["collisionCount"]);
    at_most_replicas(plural, status, p);
}

/// How often a name was taken already is only counted up.
fn collisions(new: &Value, old: &Value, p: &mut Problems) {
    let count = |status: &Value| status["collisionCount"].as_i64();
    if count(old).is_some_and(|before| count(new).is_none_or(|now| now < before)) {
        p.invalid("status.collisionCount", &json!(count(new).unwrap_or(0)), "cannot be decremented");
    }
}

/// Parts of the replicas are not more than all.
pub fn at_most_replicas(plural: &str, status: &Value, p: &mut Problems) {
    let number = |key: &str| status[key].as_i64().unwrap_or(0);
    let fields: &[&str] = match plural {
        "deployments" => &["updatedReplicas", "readyReplicas", "availableReplicas"],
        "statefulsets" => &["readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"],
        "replicasets" | "replicationcontrollers" => &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"],
        _ => return,
    };
    let (what, last) = match plural {
        "statefulsets" => ("cannot be greater than status.replicas", "cannot be greater than status.readyReplicas"),
        _ => ("cannot be greater than status.replicas", "cannot be greater than readyReplicas"),
    };
    for field in fields {
        if number(field) > number("replicas") {
            p.invalid(format!("status.{field}"), &json!(number(field)), what);
        }
    }
    if number("availableReplicas") > number("readyReplicas") {
        p.invalid("status.availableReplicas", &status["availableReplicas"], last);
    }
}

/// Whether a selector and a template's labels fit; an absent selector fits nothing. Returns whether the selector can be
/// read: else most kinds look no further at their template.
fn check_selector(spec: &Value, kind: &str, p: &mut Problems) -> bool {
    let selector = &spec["selector"];
    if selector.is_null() {
        if kind != "daemonset" {
            p.required("spec.selector", "");
        }
    } else {
        selectors::label_selector(selector, "spec.selector", p);
        if selectors::is_empty(selector) {
            let why = format!("empty selector is invalid for {kind}");
            p.invalid_shown("spec.selector", &shown_selector(selector), &why);
        }
    }
    let parsed = LabelSelector::from_object(selector);
    match (&parsed, kind) {
        (Ok(parsed), _) => match_labels(parsed, selector, &spec["template"], p),
        (Err(_), "daemonset") => {}
        (Err(_), "statefulset") => {
            let message = format!("Invalid value: {}", shown_selector(selector));
            p.0.push(Cause { reason: "FieldValueInvalid".into(), message, field: "spec.selector".into() });
        }
        (Err(_), _) => p.invalid_shown("spec.selector", &shown_selector(selector), "invalid label selector"),
    }
    parsed.is_ok()
}

fn match_labels(parsed: &LabelSelector, selector: &Value, template: &Value, p: &mut Problems) {
    let labels = &template["metadata"]["labels"];
    let fits = !selector.is_null() && parsed.matches(|key| labels[key].as_str());
    if !fits && (!selectors::is_empty(selector) || selector.is_null()) {
        p.invalid("spec.template.metadata.labels", labels, "`selector` does not match template `labels`");
    }
}

fn always(spec: &Value, p: &mut Problems) {
    let policy = &spec["template"]["spec"]["restartPolicy"];
    if policy != "Always" {
        p.not_supported("spec.template.spec.restartPolicy", &super::check::or_empty(policy), &["Always"]);
    }
    if has(&spec["template"]["spec"], "activeDeadlineSeconds") {
        let why = "activeDeadlineSeconds in ReplicaSet is not Supported";
        p.forbidden("spec.template.spec.activeDeadlineSeconds", why);
    }
}

fn replicas(spec: &Value, p: &mut Problems) {
    for field in ["replicas", "minReadySeconds"] {
        p.not_negative(format!("spec.{field}"), &spec[field]);
    }
    if check_selector(spec, "deployment", p) {
        pod::template(&spec["template"], "spec.template", p);
        always(spec, p);
    }
}

fn deployment(spec: &Value, p: &mut Problems) {
    replicas(spec, p);
    p.not_negative("spec.revisionHistoryLimit", &spec["revisionHistoryLimit"]);
    p.not_negative("spec.progressDeadlineSeconds", &spec["progressDeadlineSeconds"]);
    if let Some(deadline) = spec["progressDeadlineSeconds"].as_i64()
        && deadline <= spec["minReadySeconds"].as_i64().unwrap_or(0)
    {
        p.invalid("spec.progressDeadlineSeconds", &json!(deadline), "must be greater than minReadySeconds");
    }
    let (strategy, rolling) = (&spec["strategy"], &spec["strategy"]["rollingUpdate"]);
    match text(strategy, "type") {
        "Recreate" if has(strategy, "rollingUpdate") => {
            let why = "may not be specified when strategy `type` is 'Recreate'";
            p.forbidden("spec.strategy.rollingUpdate", why);
        }
        "Recreate" => {}
        "RollingUpdate" if !has(strategy, "rollingUpdate") => {
            p.required("spec.strategy.rollingUpdate", "this should be defaulted and never be nil");
        }
        "RollingUpdate" => {
            let at = |field: &str| format!("spec.strategy.rollingUpdate.{field}");
            for field in ["maxUnavailable", "maxSurge"] {
                p.int_or_percent(&at(field), &rolling[field]);
            }
            if is_zero(&rolling["maxUnavailable"]) && is_zero(&rolling["maxSurge"]) {
                let why = "may not be 0 when `maxSurge` is 0";
                p.invalid(at("maxUnavailable"), &rolling["maxUnavailable"], why);
            }
            p.at_most_100_percent(&at("maxUnavailable"), &rolling["maxUnavailable"]);
        }
        _ => {
            let shown = shown::compact("DeploymentStrategy", strategy);
            p.not_supported_shown("spec.strategy", &shown, &["Recreate", "RollingUpdate"]);
        }
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::String(text) => percent(value).or_else(|| text.parse().ok()).unwrap_or(0) == 0,
        other => other.as_i64().unwrap_or(0) == 0,
    }
}

fn daemon_set(spec: &Value, p: &mut Problems) {
    check_selector(spec, "daemonset", p);
    pod::template(&spec["template"], "spec.template", p);
    let policy = &spec["template"]["spec"]["restartPolicy"];
    if policy != "Always" {
        p.not_supported("spec.template.spec.restartPolicy", &super::check::or_empty(policy), &["Always"]);
    }
    if has(&spec["template"]["spec"], "activeDeadlineSeconds") {
        let why = "activeDeadlineSeconds in DaemonSet is not Supported";
        p.forbidden("spec.template.spec.activeDeadlineSeconds", why);
    }
    for field in ["minReadySeconds", "revisionHistoryLimit"] {
        p.not_negative(format!("spec.{field}"), &spec[field]);
    }
    let (strategy, rolling) = (&spec["updateStrategy"], &spec["updateStrategy"]["rollingUpdate"]);
    let at = |field: &str| format!("spec.updateStrategy.rollingUpdate.{field}");
    match text(strategy, "type") {
        "OnDelete" => {}
        "RollingUpdate" if !rolling.is_object() => p.required("spec.updateStrategy.rollingUpdate", ""),
        "RollingUpdate" => {
            for field in ["maxUnavailable", "maxSurge"] {
                p.int_or_percent(&at(field), &rolling[field]);
                p.at_most_100_percent(&at(field), &rolling[field]);
            }
            match (is_zero(&rolling["maxUnavailable"]), is_zero(&rolling["maxSurge"])) {
                (true, true) => p.required(at("maxUnavailable"), "cannot be 0 when maxSurge is 0"),
                (false, false) => {
                    p.invalid(at("maxSurge"), &rolling["maxSurge"], "may not be set when maxUnavailable is non-zero");
                }
                _ => {}
            }
        }
        _ => {
            let shown = shown::compact("DaemonSetUpdateStrategy", strategy);
            p.not_supported_shown("spec.updateStrategy", &shown, &["RollingUpdate", "OnDelete"]);
        }
    }
}

fn stateful_set(spec: &Value, new: bool, p: &mut Problems) {
    match text(spec, "podManagementPolicy") {
        "" => p.required("spec.podManagementPolicy", ""),
        "OrderedReady" | "Parallel" => {}
        _ => {
            let why = "must be 'OrderedReady' or 'Parallel'";
            p.invalid("spec.podManagementPolicy", &spec["podManagementPolicy"], why);
        }
    }
    update_strategy(&spec["updateStrategy"], p);
    for field in ["whenDeleted", "whenScaled"] {
        let at = format!("spec.persistentVolumeClaimRetentionPolicy.{field}");
        p.one_of_if_set(at, &spec["persistentVolumeClaimRetentionPolicy"][field], &["Retain", "Delete"]);
    }
    // Later, the claims' templates cannot be changed any more.
    for (index, claim) in items(&spec["volumeClaimTemplates"]).enumerate().filter(|_| new) {
        storage::claim_spec(&claim["spec"], &format!("spec.volumeClaimTemplates[{index}].spec"), p);
    }
    for field in ["replicas", "minReadySeconds", "revisionHistoryLimit"] {
        p.not_negative(format!("spec.{field}"), &spec[field]);
    }
    p.not_negative("spec.ordinals.start", &spec["ordinals"]["start"]);
    if new && !text(spec, "serviceName").is_empty() {
        p.label("spec.serviceName", &spec["serviceName"]);
    }
    if check_selector(spec, "statefulset", p) {
        pod::template(&with_claims(spec), "spec.template", p);
    }
    let policy = &spec["template"]["spec"]["restartPolicy"];
    if policy != "Always" {
        p.not_supported("spec.template.spec.restartPolicy", &super::check::or_empty(policy), &["Always"]);
    }
    if has(&spec["template"]["spec"], "activeDeadlineSeconds") {
        let why = "activeDeadlineSeconds in StatefulSet is not Supported";
        p.forbidden("spec.template.spec.activeDeadlineSeconds", why);
    }
}

/// The template of a StatefulSet's pods as they will be: each name of a claim template is a volume of them, before
/// those that the template has.
fn with_claims(spec: &Value) -> Value {
    let mut template = spec["template"].clone();
    let claimed = items(&spec["volumeClaimTemplates"]).map(|claim| text(&claim["metadata"], "name"));
    let claimed: BTreeSet<&str> = claimed.filter(|name| !name.is_empty()).collect();
    if claimed.is_empty() || !template["spec"].is_object() {
        return template;
    }
    let own = items(&template["spec"]["volumes"]).filter(|v| !claimed.contains(text(v, "name"))).cloned();
    let claims = claimed.iter().map(|name| json!({"name": name, "persistentVolumeClaim": {"claimName": name}}));
    template["spec"]["volumes"] = claims.chain(own).collect();
    template
}

fn update_strategy(strategy: &Value, p: &mut Problems) {
    let rolling = &strategy["rollingUpdate"];
    let shown = || shown::compact("StatefulSetUpdateStrategy", strategy);
    match text(strategy, "type") {
        "" => p.required("spec.updateStrategy", ""),
        "OnDelete" if rolling.is_object() => {
            let shown = shown::compact("RollingUpdateStatefulSet", rolling);
            let why = "only allowed for updateStrategy 'RollingUpdate'";
            p.invalid_shown("spec.updateStrategy.rollingUpdate", &shown, why);
        }
        "OnDelete" => {}
        "RollingUpdate" => {
            let at = "spec.updateStrategy.rollingUpdate";
            p.not_negative(format!("{at}.partition"), &rolling["partition"]);
            let unavailable = &rolling["maxUnavailable"];
            if !unavailable.is_null() {
                p.int_or_percent(&format!("{at}.maxUnavailable"), unavailable);
                if is_zero(unavailable) {
                    p.invalid(format!("{at}.maxUnavailable"), unavailable, "cannot be 0");
                }
                p.at_most_100_percent(&format!("{at}.maxUnavailable"), unavailable);
            }
        }
        _ => p.invalid_shown("spec.updateStrategy", &shown(), "must be 'RollingUpdate' or 'OnDelete'"),
    }
}

fn revision(new: &Value, old: Option<&Value>, p: &mut Problems) {
    p.not_negative("revision", &new["revision"]);
    if !new["data"].is_object() {
        p.required("data", "data must be a valid JSON object");
    }
    if let Some(old) = old
        && old["data"] != new["data"]
    {
        p.invalid("data", &new["data"], "field is immutable");
    }
}

/// A ReplicationController: its selector is a map, its template must be there. An update is looked at by two, but for the
/// numbers, whose limits stand in the schema.
pub fn replication_controller(new: &Value, is_update: bool, p: &mut Problems) {
    let spec = &new["spec"];
    for field in ["replicas", "minReadySeconds"] {
        p.not_negative(format!("spec.{field}"), &spec[field]);
    }
    for _ in 0..1 + usize::from(is_update) {
        controlled(spec, p);
    }
}

fn controlled(spec: &Value, p: &mut Problems) {
    if !super::entries(&spec["selector"]).any(|_| true) {
        p.required("spec.selector", "");
    }
    if !spec["template"].is_object() {
        return p.required("spec.template", "");
    }
    let labels = &spec["template"]["metadata"]["labels"];
    let fits = super::entries(&spec["selector"]).all(|(key, value)| labels.get(key) == Some(value));
    if !fits {
        p.invalid("spec.template.metadata.labels", labels, "`selector` does not match template `labels`");
    }
    pod::template(&spec["template"], "spec.template", p);
    let policy = &spec["template"]["spec"]["restartPolicy"];
    if policy != "Always" {
        p.not_supported("spec.template.spec.restartPolicy", &super::check::or_empty(policy), &["Always"]);
    }
    if has(&spec["template"]["spec"], "activeDeadlineSeconds") {
        let why = "activeDeadlineSeconds in ReplicationController is not Supported";
        p.forbidden("spec.template.spec.activeDeadlineSeconds", why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_of_a_stateful_set_mount_what_its_claims_give() {
        for (mounted, claims, allowed) in
            [("data", &["data"][..], true), ("data", &["log"], false), ("log", &[], false)]
        {
            let claims: Vec<Value> = claims.iter().map(|name| json!({"metadata": {"name": name}})).collect();
            let spec = json!({
                "selector": {"matchLabels": {"a": "b"}}, "serviceName": "s", "volumeClaimTemplates": claims,
                "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"restartPolicy": "Always", "containers": [
                    {"name": "c", "image": "i", "volumeMounts": [{"name": mounted, "mountPath": "/d"}]}]}},
            });
            let mut problems = Problems::default();
            stateful_set(&spec, true, &mut problems);
            let unknown = problems.0.iter().any(|c| c.field.ends_with("volumeMounts[0].name"));
            assert_eq!(!unknown, allowed, "{spec}");
        }
    }
}
