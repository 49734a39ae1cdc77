//! HorizontalPodAutoscalers, looked at in their second version.

use serde_json::{Value, json};

use super::check::{Problems, or_empty, quantity};
use super::{has, items, selectors, text};
use crate::names::path_segment;

/// Kinds of metrics with the field that holds each.
const KINDS: &[(&str, &str)] = &[
    ("ContainerResource", "containerResource"),
    ("External", "external"),
    ("Object", "object"),
    ("Pods", "pods"),
    ("Resource", "resource"),
];
/// The same fields in the order in which the first that is there is looked at.
const LOOKED_AT: &[&str] = &["object", "external", "pods", "resource", "containerResource"];
/// Most seconds that scaling waits, and that a policy counts.
const MAX_STABILIZATION_SECONDS: i64 = 3600;
const MAX_PERIOD_SECONDS: i64 = 1800;

/// An autoscaler of the second version.
pub fn validate(subresource: &str, new: &Value, old: Option<&Value>, p: &mut Problems) {
    if subresource == "status" {
        for field in ["currentReplicas", "desiredReplicas"] {
            p.not_negative(format!("status.{field}"), &new["status"][field]);
        }
        return;
    }
    let spec = &new["spec"];
    let (least, most) = (spec["minReplicas"].as_i64(), spec["maxReplicas"].as_i64().unwrap_or(0));
    if least.is_some_and(|least| least < 1) {
        p.invalid("spec.minReplicas", &spec["minReplicas"], "must be greater than or equal to 1");
    }
    match most {
        0 => p.required("spec.maxReplicas", "must be set and greater than 0"),
        n if n < 1 => p.invalid("spec.maxReplicas", &json!(n), "must be greater than or equal to 1"),
        _ => {}
    }
    if least.is_some_and(|least| most < least) {
        p.invalid("spec.maxReplicas", &json!(most), "must be greater than or equal to `minReplicas`");
    }
    let target = &spec["scaleTargetRef"];
    let kind_of = |target: &'_ Value| [text(target, "apiVersion"), text(target, "kind")].map(str::to_owned);
    let version = if old.is_some_and(|old| kind_of(&old["spec"]["scaleTargetRef"]) == kind_of(target)) {
        Version::Any
    } else if text(target, "kind") == "ReplicationController" {
        Version::Good
    } else {
        Version::OfGroup
    };
    reference(target, version, "spec.scaleTargetRef", p);
    let described = |metric: &Value| version_problem(&metric["object"]["describedObject"], Version::Good);
    let before = old.into_iter().flat_map(|old| items(&old["spec"]["metrics"]));
    let was_bad = before.into_iter().any(|metric| metric["type"] == "Object" && described(metric).is_some());
    let version = if was_bad { Version::Any } else { Version::Good };
    for (index, metric) in items(&spec["metrics"]).enumerate() {
        self::metric(metric, version, &format!("spec.metrics[{index}]"), p);
    }
    let wakes = |metric: &Value| matches!(text(metric, "type"), "Object" | "External");
    if least == Some(0) && !items(&spec["metrics"]).any(wakes) {
        let why = "must specify at least one Object or External metric to support scaling to zero replicas";
        p.forbidden("spec.metrics", why);
    }
    for direction in ["scaleUp", "scaleDown"] {
        if spec["behavior"][direction].is_object() {
            rules(&spec["behavior"][direction], &format!("spec.behavior.{direction}"), p);
        }
    }
}

/// What the version of something that is referred to must be. What was wrong before may stay so.
#[derive(Clone, Copy)]
enum Version {
    Any,
    Good,
    OfGroup,
}

fn version_problem(target: &Value, wanted: Version) -> Option<String> {
    let version = text(target, "apiVersion");
    match (wanted, version.matches('/').count()) {
        (Version::Any, _) => None,
        (_, 2..) => Some(format!("unexpected GroupVersion string: {version}")),
        (Version::OfGroup, _) if version.split_once('/').is_none_or(|(group, _)| group.is_empty()) => {
            Some("apiVersion must specify API group".into())
        }
        _ => None,
    }
}

fn reference(target: &Value, wanted: Version, at: &str, p: &mut Problems) {
    for field in ["kind", "name"] {
        if p.present(target, field, at) {
            p.named(format!("{at}.{field}"), &target[field], path_segment(text(target, field)));
        }
    }
    p.named(format!("{at}.apiVersion"), &or_empty(&target["apiVersion"]), version_problem(target, wanted));
}

fn metric(metric: &Value, version: Version, at: &str, p: &mut Problems) {
    let names: Vec<&str> = KINDS.iter().map(|(kind, _)| *kind).collect();
    let kind = text(metric, "type");
    let own = KINDS.iter().find(|(k, _)| *k == kind).map(|(_, field)| *field);
    if kind.is_empty() {
        p.required(format!("{at}.type"), "must specify a metric source type");
    }
    if own.is_none() {
        // It is looked at in two places.
        p.not_supported(format!("{at}.type"), &or_empty(&metric["type"]), &names);
        p.not_supported(format!("{at}.type"), &or_empty(&metric["type"]), &names);
    }
    let present: Vec<&str> = LOOKED_AT.iter().copied().filter(|field| has(metric, field)).collect();
    if let Some(first) = present.first() {
        source(first, &metric[*first], version, &format!("{at}.{first}"), p);
    }
    if present.len() > 1 {
        for field in present.iter().filter(|field| own != Some(**field)) {
            p.forbidden(format!("{at}.{field}"), "must populate the given metric source only");
        }
    }
    if let Some(own) = own
        && !has(metric, own)
    {
        p.required(format!("{at}.{own}"), "must populate information for the given metric source");
    }
}

fn source(kind: &str, source: &Value, version: Version, at: &str, p: &mut Problems) {
    let target = &source["target"];
    self::target(target, &format!("{at}.target"), p);
    let (value, average, percent) =
        (has(target, "value"), has(target, "averageValue"), has(target, "averageUtilization"));
    match kind {
        "resource" | "containerResource" => {
            if text(source, "name").is_empty() {
                p.required(format!("{at}.name"), "must specify a resource name");
            }
            if kind == "containerResource" && !text(source, "name").is_empty() {
                super::container::container_resource_name(text(source, "name"), &format!("{at}.name"), p);
            }
            if kind == "containerResource" && text(source, "container").is_empty() {
                p.required(format!("{at}.container"), "must specify a container");
            } else if kind == "containerResource" {
                p.label(format!("{at}.container"), &source["container"]);
            }
            let field = format!("{at}.target.averageUtilization");
            if percent && average {
                p.forbidden(
                    format!("{at}.target.averageValue"),
                    "may not set both a target raw value and a target utilization",
                );
            } else if !percent && !average {
                p.required(field, "must set either a target raw value or a target utilization");
            }
        }
        "pods" => {
            identifier(&source["metric"], at, p);
            if !average || quantity(&target["averageValue"]).is_some_and(|q| q.is_zero() || q.is_negative()) {
                p.required(format!("{at}.target.averageValue"), "must specify a positive target averageValue");
            }
        }
        "object" => {
            reference(&source["describedObject"], version, &format!("{at}.describedObject"), p);
            identifier(&source["metric"], at, p);
            if !value && !average {
                let why = "must set either a target value or averageValue";
                p.required(format!("{at}.target.averageValue"), why);
            }
        }
        _ => {
            identifier(&source["metric"], at, p);
            if !value && !average {
                let why = "must set either a target value for metric or a per-pod target";
                p.required(format!("{at}.target.averageValue"), why);
            } else if value && average {
                let why = "may not set both a target value for metric and a per-pod target";
                p.forbidden(format!("{at}.target.value"), why);
            }
        }
    }
}

fn identifier(metric: &Value, at: &str, p: &mut Problems) {
    let at = format!("{at}.metric");
    if text(metric, "name").is_empty() {
        p.required(format!("{at}.name"), "must specify a metric name");
    } else {
        p.named(format!("{at}.name"), &metric["name"], path_segment(text(metric, "name")));
    }
    if metric["selector"].is_object() {
        selectors::label_selector(&metric["selector"], &format!("{at}.selector"), p);
    }
}

fn target(target: &Value, at: &str, p: &mut Problems) {
    let kind = text(target, "type");
    if kind.is_empty() {
        p.required(format!("{at}.type"), "must specify a metric target type");
    }
    if !matches!(kind, "Utilization" | "Value" | "AverageValue") {
        let why = "must be either Utilization, Value, or AverageValue";
        p.invalid(format!("{at}.type"), &json!(kind), why);
    }
    for field in ["value", "averageValue"] {
        if quantity(&target[field]).is_some_and(|q| q.is_zero() || q.is_negative()) {
            p.invalid(format!("{at}.{field}"), &target[field], "must be positive");
        }
    }
    if target["averageUtilization"].as_i64().is_some_and(|n| n < 1) {
        p.invalid(format!("{at}.averageUtilization"), &target["averageUtilization"], "must be greater than 0");
    }
}

fn rules(rules: &Value, at: &str, p: &mut Problems) {
    let seconds = &rules["stabilizationWindowSeconds"];
    let field = format!("{at}.stabilizationWindowSeconds");
    match seconds.as_i64() {
        Some(n) if n < 0 => p.invalid(field, seconds, "must be greater than or equal to zero"),
        Some(n) if n > MAX_STABILIZATION_SECONDS => {
            p.invalid(field, seconds, &format!("must be less than or equal to {MAX_STABILIZATION_SECONDS}"));
        }
        _ => {}
    }
    p.one_of_if_set(format!("{at}.selectPolicy"), &rules["selectPolicy"], &["Disabled", "Max", "Min"]);
    if items(&rules["policies"]).next().is_none() {
        p.required(format!("{at}.policies"), "must specify at least one Policy");
    }
    for (index, policy) in items(&rules["policies"]).enumerate() {
        let at = format!("{at}.policies[{index}]");
        p.one_of(format!("{at}.type"), &policy["type"], &["Percent", "Pods"]);
        if policy["value"].as_i64().unwrap_or(0) <= 0 {
            p.invalid(
                format!("{at}.value"),
                &json!(policy["value"].as_i64().unwrap_or(0)),
                "must be greater than zero",
            );
        }
        let period = policy["periodSeconds"].as_i64().unwrap_or(0);
        if period <= 0 {
            p.invalid(format!("{at}.periodSeconds"), &json!(period), "must be greater than zero");
        } else if period > MAX_PERIOD_SECONDS {
            let why = format!("must be less than or equal to {MAX_PERIOD_SECONDS}");
            p.invalid(format!("{at}.periodSeconds"), &json!(period), &why);
        }
    }
    let tolerance = &rules["tolerance"];
    if quantity(tolerance).is_some_and(|q| q.is_negative()) {
        p.invalid(format!("{at}.tolerance"), tolerance, "must be greater than or equal to 0");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_scaled_to_zero_without_what_could_wake_it() {
        for (kind, fields) in
            [("Resource", &["spec.minReplicas", "spec.metrics"][..]), ("External", &["spec.minReplicas"])]
        {
            let source = match kind {
                "Resource" => json!({"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}),
                _ => json!({"metric": {"name": "m"}, "target": {"type": "AverageValue", "averageValue": "1"}}),
            };
            let scaler = json!({"spec": {"minReplicas": 0, "maxReplicas": 1,
                "metrics": [{"type": kind, kind.to_lowercase(): source}],
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "n"}}});
            let mut p = Problems::default();
            validate("", &scaler, None, &mut p);
            let told: Vec<&str> = p.0.iter().map(|cause| cause.field.as_str()).collect();
            assert_eq!(told, fields, "{kind}");
        }
    }

    #[test]
    fn versions_of_targets_are_asked_for_when_they_change() {
        let scaler = |version: &str, kind: &str| json!({"spec": {"maxReplicas": 1, "scaleTargetRef": {"apiVersion": version, "kind": kind, "name": "n"}}});
        let (core, bad) = ("apiVersion must specify API group", "unexpected GroupVersion string: a/b/c");
        for (old, new, expected) in [
            (None, scaler("apps/v1", "Deployment"), None),
            (None, scaler("v1", "Deployment"), Some(core)),
            (None, scaler("/v1", "Deployment"), Some(core)),
            (None, scaler("", "ReplicationController"), None),
            (None, scaler("a/b/c", "ReplicationController"), Some(bad)),
            (Some(scaler("v1", "Deployment")), scaler("v1", "Deployment"), None),
            (Some(scaler("a/b/c", "Deployment")), scaler("a/b/c", "Deployment"), None),
            (Some(scaler("v1", "Deployment")), scaler("v1", "ReplicaSet"), Some(core)),
            (Some(scaler("apps/v1", "Deployment")), scaler("a/b/c", "Deployment"), Some(bad)),
        ] {
            let mut p = Problems::default();
            validate("", &new, old.as_ref(), &mut p);
            let told = p.0.first().map(|cause| cause.message.as_str());
            assert_eq!(told.is_some(), expected.is_some(), "{new}");
            assert!(expected.is_none_or(|why| told.is_some_and(|told| told.ends_with(why))), "{told:?}");
        }
    }
}
