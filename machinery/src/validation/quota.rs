//! Resource quotas and limit ranges.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::check::{Problems, quantity};
use super::{entries, has, items, text};
use crate::shown;

/// Objects that are counted: whole numbers.
const COUNTED: &[&str] = &[
    "pods",
    "services",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];
/// Amounts of pods that quotas know.
const AMOUNTS: &[&str] = &["cpu", "memory", "ephemeral-storage"];
/// Scopes that are about pods.
const POD_SCOPES: &[&str] =
    &["Terminating", "NotTerminating", "BestEffort", "NotBestEffort", "PriorityClass", "CrossNamespacePodAffinity"];

/// A quota, or a change of it.
pub fn quota(subresource: &str, new: &Value, old: Option<&Value>, p: &mut Problems) {
    if subresource == "status" {
        for field in ["hard", "used"] {
            for (name, amount) in entries(&new["status"][field]) {
                resource(name, amount, &format!("status.{field}[{name}]"), p);
            }
        }
        return;
    }
    let spec = &new["spec"];
    let hard: BTreeSet<&str> = entries(&spec["hard"]).map(|(name, _)| name.as_str()).collect();
    for (name, amount) in entries(&spec["hard"]) {
        resource(name, amount, &format!("spec.hard[{name}]"), p);
    }
    scopes(spec, &hard, p);
    scope_selector(spec, &hard, p);
    if let Some(old) = old
        && sorted(&old["spec"]["scopes"]) != sorted(&spec["scopes"])
    {
        p.invalid("spec.scopes", &spec["scopes"], "field is immutable");
    }
}

fn sorted(list: &Value) -> BTreeSet<&str> {
    items(list).filter_map(Value::as_str).collect()
}

fn resource(name: &str, amount: &Value, at: &str, p: &mut Problems) {
    super::container::resource_name(name, at, p);
    if !name.contains('/') && !is_standard(name) {
        p.invalid(at, &json!(name), "must be a standard resource for quota");
    }
    super::container::amount(name, amount, at, p);
}

/// Whether a quota knows a name without a domain.
fn is_standard(name: &str) -> bool {
    let amount = name.strip_prefix("requests.").or_else(|| name.strip_prefix("limits.")).unwrap_or(name);
    COUNTED.contains(&name)
        || AMOUNTS.contains(&amount)
        || name == "requests.storage"
        || super::container::is_huge_pages(name)
}

/// Whether a scope says anything about a resource.
fn applies(scope: &str, resource: &str) -> bool {
    match scope {
        "BestEffort" => resource == "pods",
        "VolumeAttributesClass" => {
            matches!(resource, "persistentvolumeclaims" | "requests.storage")
                || resource.contains(".storageclass.storage.k8s.io/")
        }
        _ if !POD_SCOPES.contains(&scope) => true,
        _ => {
            let amount =
                resource.strip_prefix("requests.").or_else(|| resource.strip_prefix("limits.")).unwrap_or(resource);
            resource == "pods" || matches!(amount, "cpu" | "memory")
        }
    }
}

fn scopes(spec: &Value, hard: &BTreeSet<&str>, p: &mut Problems) {
    let (list, field) = (&spec["scopes"], "spec.scopes");
    let set = sorted(list);
    for scope in items(list).filter_map(Value::as_str) {
        if !POD_SCOPES.contains(&scope) && scope != "VolumeAttributesClass" {
            p.invalid(field, list, "unsupported scope");
        }
        for _ in hard.iter().filter(|resource| is_standard(resource) && !applies(scope, resource)) {
            p.invalid(field, list, "unsupported scope applied to resource");
        }
    }
    conflicts(&set, field, list, p);
}

/// Scopes that exclude each other.
fn conflicts(set: &BTreeSet<&str>, field: &str, list: &Value, p: &mut Problems) {
    for pair in [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]] {
        if pair.iter().all(|scope| set.contains(scope)) {
            p.invalid(field, list, "conflicting scopes");
        }
    }
}

fn scope_selector(spec: &Value, hard: &BTreeSet<&str>, p: &mut Problems) {
    let (selector, field) = (&spec["scopeSelector"], "spec.scopeSelector.matchExpressions");
    if !selector.is_object() {
        return;
    }
    let shown = || shown::compact("ScopeSelector", selector);
    let mut seen = BTreeSet::new();
    for requirement in items(&selector["matchExpressions"]) {
        let (scope, operator) = (text(requirement, "scopeName"), text(requirement, "operator"));
        let known = POD_SCOPES.contains(&scope) || scope == "VolumeAttributesClass";
        if !known {
            p.invalid(format!("{field}.scopeName"), &requirement["scopeName"], "unsupported scope");
        }
        for _ in hard.iter().filter(|resource| is_standard(resource) && !applies(scope, resource)) {
            p.invalid_shown(field, &shown(), "unsupported scope applied to resource");
        }
        let by_value = matches!(scope, "PriorityClass" | "VolumeAttributesClass");
        if known && !by_value && operator != "Exists" {
            let why = "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, \
                       ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, \
                       ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
            p.invalid(format!("{field}.operator"), &requirement["operator"], why);
        }
        let count = items(&requirement["values"]).count();
        match operator {
            "In" | "NotIn" if count == 0 => {
                let why = "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
                p.required(format!("{field}.values"), why);
            }
            "Exists" | "DoesNotExist" if count > 0 => {
                let why = "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
                p.invalid(format!("{field}.values"), &requirement["values"], why);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => p.invalid(format!("{field}.operator"), &requirement["operator"], "not a valid selector operator"),
        }
        seen.insert(scope);
    }
    conflicts(&seen, field, &spec["scopes"], p);
}

/// A limit range.
pub fn limit_range(new: &Value, p: &mut Problems) {
    let mut seen: Vec<&str> = Vec::new();
    for (index, limit) in items(&new["spec"]["limits"]).enumerate() {
        let at = format!("spec.limits[{index}]");
        let kind = text(limit, "type");
        let before = p.0.len();
        p.qualified_name(&format!("{at}.type"), kind);
        if p.0.len() == before && !kind.contains('/') && !matches!(kind, "Pod" | "Container" | "PersistentVolumeClaim")
        {
            let why = "must be a standard limit type or fully qualified";
            p.invalid(format!("{at}.type"), &limit["type"], why);
        }
        if seen.contains(&kind) {
            p.duplicate(format!("{at}.type"), &limit["type"]);
        }
        seen.push(kind);
        one_limit(limit, kind, &at, p);
    }
}

fn one_limit(limit: &Value, kind: &str, at: &str, p: &mut Problems) {
    let mut names: BTreeSet<&str> = BTreeSet::new();
    for field in ["max", "min"] {
        for (name, _) in entries(&limit[field]) {
            limited_name(kind, name, &format!("{at}.{field}[{name}]"), p);
            names.insert(name);
        }
    }
    if kind == "Pod" {
        for field in ["default", "defaultRequest"] {
            if entries(&limit[field]).next().is_some() {
                p.forbidden(format!("{at}.{field}"), "may not be specified when `type` is 'Pod'");
            }
        }
    } else {
        for field in ["default", "defaultRequest"] {
            for (name, _) in entries(&limit[field]) {
                limited_name(kind, name, &format!("{at}.{field}[{name}]"), p);
                names.insert(name);
            }
        }
    }
    if kind == "PersistentVolumeClaim" && !has(&limit["min"], "storage") && !has(&limit["max"], "storage") {
        let why = "either minimum or maximum storage value is required, but neither was provided";
        p.required(format!("{at}.limits"), why);
    }
    for (name, _) in entries(&limit["maxLimitRequestRatio"]) {
        limited_name(kind, name, &format!("{at}.maxLimitRequestRatio[{name}]"), p);
        names.insert(name);
    }
    for name in names {
        amounts(limit, name, at, p);
    }
}

fn limited_name(kind: &str, name: &str, at: &str, p: &mut Problems) {
    if matches!(kind, "Pod" | "Container") {
        super::container::container_resource_name(name, at, p);
    } else {
        super::container::resource_name(name, at, p);
    }
}

fn amounts(limit: &Value, name: &str, at: &str, p: &mut Problems) {
    // Pods have no defaults; what is said of them was refused.
    let read = |field: &str| !(limit["type"] == "Pod" && field.starts_with("default"));
    let get = |field: &str| quantity(&limit[field][name]).filter(|_| read(field));
    let (max, min, default, request, ratio) =
        (get("max"), get("min"), get("default"), get("defaultRequest"), get("maxLimitRequestRatio"));
    let mut check = |low: Option<crate::quantity::Quantity>,
                     high: Option<crate::quantity::Quantity>,
                     field: &str,
                     shown: &Value,
                     words: (&str, &str)| {
        if let (Some(low), Some(high)) = (low, high)
            && low > high
        {
            p.invalid(
                format!("{at}.{field}[{name}]"),
                shown,
                &format!("{} {low} is greater than {} {high}", words.0, words.1),
            );
        }
    };
    let of = |field: &str| limit[field][name].clone();
    check(min, max, "min", &of("min"), ("min value", "max value"));
    check(min, request, "defaultRequest", &of("defaultRequest"), ("min value", "default request value"));
    check(request, max, "defaultRequest", &of("defaultRequest"), ("default request value", "max value"));
    check(request, default, "defaultRequest", &of("defaultRequest"), ("default request value", "default limit value"));
    check(min, default, "default", &of("min"), ("min value", "default value"));
    check(default, max, "default", &of("max"), ("default value", "max value"));
    if let Some(ratio) = ratio {
        let field = format!("{at}.maxLimitRequestRatio[{name}]");
        if ratio.millis() < 1000 {
            p.invalid(&field, &of("maxLimitRequestRatio"), &format!("ratio {ratio} is less than 1"));
        }
        if let (Some(max), Some(min)) = (max, min)
            && min.millis() > 0
        {
            let most = max.millis() as f64 / min.millis() as f64;
            if ratio.millis() as f64 / 1000.0 > most {
                let why = format!("ratio {ratio} is greater than max/min = {most:.6}");
                p.invalid(&field, &of("maxLimitRequestRatio"), &why);
            }
        }
    }
    // What may not be overcommitted has one amount for both.
    let fixed = !super::container::is_native(name) || name.starts_with("hugepages-");
    if fixed && default.is_some() && request.is_some() && default != request {
        let why = format!(
            "default value {} must equal to defaultRequest value {} in {name}",
            of("default"),
            of("defaultRequest")
        );
        p.invalid(format!("{at}.defaultRequest[{name}]"), &of("defaultRequest"), &why.replace('"', ""));
    }
}
