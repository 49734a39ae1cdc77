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
    reference(&spec["scaleTargetRef"], "spec.scaleTargetRef", p);
    let target = &spec["scaleTargetRef"];
    let core = !text(target, "apiVersion").contains('/') && text(target, "kind") != "ReplicationController";
    if old.is_none() && core {
        let why = "apiVersion must specify API group";
        p.invalid("spec.scaleTargetRef.apiVersion", &or_empty(&target["apiVersion"]), why);
    }
    for (index, metric) in items(&spec["metrics"]).enumerate() {
        self::metric(metric, &format!("spec.metrics[{index}]"), p);
    }
    for direction in ["scaleUp", "scaleDown"] {
        if spec["behavior"][direction].is_object() {
            rules(&spec["behavior"][direction], &format!("spec.behavior.{direction}"), p);
        }
    }
}

fn reference(target: &Value, at: &str, p: &mut Problems) {
    for field in ["kind", "name"] {
        if p.present(target, field, at) {
            p.named(format!("{at}.{field}"), &target[field], path_segment(text(target, field)));
        }
    }
    let version = text(target, "apiVersion");
    if version.matches('/').count() > 1 {
        let why = format!("unexpected GroupVersion string: {version}");
        p.invalid(format!("{at}.apiVersion"), &target["apiVersion"], &why);
    }
}

fn metric(metric: &Value, at: &str, p: &mut Problems) {
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
        source(first, &metric[*first], &format!("{at}.{first}"), p);
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

fn source(kind: &str, source: &Value, at: &str, p: &mut Problems) {
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
            reference(&source["describedObject"], &format!("{at}.describedObject"), p);
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
