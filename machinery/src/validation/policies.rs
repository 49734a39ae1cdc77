//! Small kinds: disruption budgets, priority classes, leases, runtime classes.

use serde_json::{Value, json};

use super::check::Problems;
use super::{entries, has, meta, selectors, text};
use crate::shown;

/// Highest priority that users may give.
const MAX_USER_PRIORITY: i64 = 1_000_000_000;
/// Classes that the system has, with their values.
const SYSTEM_CLASSES: &[(&str, i64)] =
    &[("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];

/// An object of one of the groups, or a change of it.
pub fn validate(plural: &str, subresource: &str, new: &Value, old: Option<&Value>, p: &mut Problems) {
    match plural {
        "poddisruptionbudgets" => budget(subresource, new, p),
        "priorityclasses" => priority_class(new, old, p),
        "leases" => lease(new, p),
        "runtimeclasses" => runtime_class(new, old, p),
        _ => {}
    }
}

fn budget(subresource: &str, new: &Value, p: &mut Problems) {
    if subresource == "status" {
        for field in ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"] {
            p.not_negative(format!("status.{field}"), &new["status"][field]);
        }
        meta::conditions(&new["status"]["conditions"], "status.conditions", p);
        return;
    }
    let spec = &new["spec"];
    if has(spec, "minAvailable") && has(spec, "maxUnavailable") {
        let why = "minAvailable and maxUnavailable cannot be both set";
        p.invalid_shown("spec", &shown::compact("PDBSpec", spec), why);
    }
    for field in ["minAvailable", "maxUnavailable"] {
        if has(spec, field) {
            p.int_or_percent(&format!("spec.{field}"), &spec[field]);
            p.at_most_100_percent(&format!("spec.{field}"), &spec[field]);
        }
    }
    if spec["selector"].is_object() {
        selectors::label_selector(&spec["selector"], "spec.selector", p);
    }
    let policies = ["AlwaysAllow", "IfHealthyBudget"];
    p.one_of_if_set("spec.unhealthyPodEvictionPolicy", &spec["unhealthyPodEvictionPolicy"], &policies);
}

fn priority_class(new: &Value, old: Option<&Value>, p: &mut Problems) {
    let (name, value) = (text(&new["metadata"], "name"), new["value"].as_i64().unwrap_or(0));
    if let Some(old) = old {
        if old["value"] != new["value"] {
            p.forbidden("value", "may not be changed in an update.");
        }
        p.immutable("preemptionPolicy", &new["preemptionPolicy"], &old["preemptionPolicy"]);
        return;
    }
    if name.starts_with("system-") {
        let prefix = "priority class names with 'system-' prefix are reserved for system use only. error: ";
        match SYSTEM_CLASSES.iter().find(|(n, _)| *n == name) {
            None => p.forbidden("metadata.name", &format!("{prefix}{name} is not a known system priority class")),
            Some((_, expected)) if *expected != value => {
                p.forbidden("metadata.name", &format!("{prefix}value of {name} PriorityClass must be {expected}"));
            }
            Some(_) if new["globalDefault"] == true => {
                p.forbidden("metadata.name", &format!("{prefix}globalDefault of {name} PriorityClass must be false"));
            }
            Some(_) => {}
        }
    } else if value > MAX_USER_PRIORITY {
        let why = format!("maximum allowed value of a user defined priority is {MAX_USER_PRIORITY}");
        p.forbidden("value", &why);
    }
    p.one_of_if_set("preemptionPolicy", &new["preemptionPolicy"], &["PreemptLowerPriority", "Never"]);
}

fn lease(new: &Value, p: &mut Problems) {
    let spec = &new["spec"];
    if spec["leaseDurationSeconds"].as_i64().is_some_and(|n| n <= 0) {
        p.invalid("spec.leaseDurationSeconds", &spec["leaseDurationSeconds"], "must be greater than 0");
    }
    p.not_negative("spec.leaseTransitions", &spec["leaseTransitions"]);
}

fn runtime_class(new: &Value, old: Option<&Value>, p: &mut Problems) {
    if text(new, "handler").is_empty() {
        p.required("handler", "");
    } else {
        p.label("handler", &new["handler"]);
    }
    for (name, amount) in entries(&new["overhead"]["podFixed"]) {
        let at = format!("overhead.limits[{name}]");
        super::container::resource_name(name, &at, p);
        p.not_negative_quantity(at, amount);
    }
    let scheduling = &new["scheduling"];
    meta::labels(&scheduling["nodeSelector"], "scheduling.nodeSelector", p);
    selectors::tolerations(&scheduling["tolerations"], "scheduling.tolerations", p);
    for (index, toleration) in super::items(&scheduling["tolerations"]).enumerate() {
        if super::items(&scheduling["tolerations"]).take(index).any(|other| other == toleration) {
            let message = format!("Duplicate value: {}", json!(toleration));
            let field = format!("scheduling.tolerations[{index}]");
            p.0.push(crate::status::Cause { reason: "FieldValueDuplicate".into(), message, field });
        }
    }
    if let Some(old) = old {
        p.immutable("handler", &new["handler"], &old["handler"]);
    }
}
