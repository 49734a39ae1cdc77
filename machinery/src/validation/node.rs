//! Nodes.

use serde_json::{Value, json};

use super::check::Problems;
use super::{entries, items, networking, selectors, text};
use crate::shown;

/// Longest name of a feature, characters.
const MAX_FEATURE_NAME: usize = 253;

/// A node, or a change of it.
pub fn validate(subresource: &str, new: &Value, old: Option<&Value>, p: &mut Problems) {
    let of_status = subresource == "status";
    // An update of the node itself is looked at by two, who both look at these.
    for _ in 0..if old.is_some() && !of_status { 2 } else { 1 } {
        annotations(&new["metadata"]["annotations"], p);
        taints(&new["spec"]["taints"], "metadata.taints", p);
        for field in ["capacity", "allocatable"] {
            for (name, amount) in entries(&new["status"][field]) {
                super::container::amount(name, amount, &format!("status.{field}.{name}"), p);
            }
        }
        declared_features(&new["status"]["declaredFeatures"], p);
    }
    if !of_status {
        cidrs(&new["spec"], p);
        let swap = &new["status"]["nodeInfo"]["swap"]["capacity"];
        if swap.as_i64().is_some_and(|bytes| bytes <= 0) {
            p.invalid("metadata.nodeSwapStatus.capacity", swap, "must be greater than zero");
        }
    }
    let mut seen = Vec::new();
    for (index, address) in items(&new["status"]["addresses"]).enumerate() {
        if old.is_some() && seen.contains(&address) {
            p.duplicate_shown(format!("status.addresses[{index}]"), &shown::compact("NodeAddress", address));
        }
        seen.push(address);
    }
    let Some(old) = old else { return };
    let (spec, before) = (&new["spec"], &old["spec"]);
    let (now, was): (Vec<_>, Vec<_>) = (items(&spec["podCIDRs"]).collect(), items(&before["podCIDRs"]).collect());
    // Each that differs is told of, or once that there are more or fewer.
    let differing = if now.len() == was.len() {
        now.iter().zip(&was).filter(|(now, was)| now != was).count()
    } else {
        usize::from(!was.is_empty())
    };
    for _ in 0..differing {
        p.forbidden("spec.podCIDRs", "node updates may not change podCIDR except from \"\" to valid");
    }
    if text(spec, "externalID") != text(before, "externalID") {
        p.forbidden("spec.externalID", "may not be updated");
    }
    if !text(before, "providerID").is_empty() && spec["providerID"] != before["providerID"] {
        p.forbidden("spec.providerID", "node updates may not change providerID except from \"\" to valid");
    }
}

/// What older schedulers read of a node from its annotations.
fn annotations(annotations: &Value, p: &mut Problems) {
    const TAINTS: &str = "scheduler.alpha.kubernetes.io/taints";
    const AVOID: &str = "scheduler.alpha.kubernetes.io/preferAvoidPods";
    let at = "metadata.annotations";
    match super::noted(annotations, TAINTS) {
        Some(Ok(list)) => taints(&list, &format!("{at}.{TAINTS}"), p),
        Some(Err(why)) => p.invalid(at, &json!(TAINTS), &why),
        None => {}
    }
    let avoided = match super::noted(annotations, AVOID) {
        Some(Ok(avoided)) => avoided,
        Some(Err(why)) => return p.invalid(format!("{at}.AvoidPods"), &json!(AVOID), &why),
        None => return,
    };
    for (index, entry) in items(&avoided["preferAvoidPods"]).enumerate() {
        let (at, owner) = (format!("{at}.{AVOID}[{index}].PodSignature"), &entry["podSignature"]["podController"]);
        if owner.is_null() {
            p.required(at, "");
        } else if owner["controller"] != true {
            let shown = json!(owner["controller"] == true);
            p.invalid(format!("{at}.PodController.Controller"), &shown, "must point to a controller");
        }
    }
}

fn taints(list: &Value, path: &str, p: &mut Problems) {
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for (index, taint) in items(list).enumerate() {
        let at = format!("{path}[{index}]");
        p.qualified_name(&format!("{at}.key"), text(taint, "key"));
        let value = text(taint, "value");
        let problems = crate::names::label_value_problems(value);
        if !problems.is_empty() {
            p.invalid(format!("{at}.value"), &taint["value"], &problems.join(";"));
        }
        selectors::taint_effect(taint, &format!("{at}.effect"), p);
        let pair = (text(taint, "key"), text(taint, "effect"));
        if seen.contains(&pair) {
            let message = format!(
                "Duplicate value: {}: taints must be unique by key and effect pair",
                shown::compact("Taint", taint)
            );
            p.0.push(crate::status::Cause { reason: "FieldValueDuplicate".into(), message, field: at });
        }
        seen.push(pair);
    }
}

fn cidrs(spec: &Value, p: &mut Problems) {
    let list: Vec<&Value> = items(&spec["podCIDRs"]).collect();
    for (index, cidr) in list.iter().enumerate() {
        networking::cidr(cidr, &format!("spec.podCIDRs[{index}]"), p);
    }
    if list.len() < 2 {
        return;
    }
    let mut families = std::collections::BTreeSet::new();
    for (index, cidr) in list.iter().enumerate() {
        let text = cidr.as_str().unwrap_or_default();
        let Some((ip, _)) = networking::loose_cidr(text) else {
            let why = format!("invalid CIDR[{index}]: <nil> (invalid CIDR address: {text})");
            p.internal("spec.podCIDRs", &format!("invalid PodCIDRs. failed to check with dual stack with error:{why}"));
            families.clear();
            break;
        };
        families.insert(ip.is_ipv4());
    }
    if families.len() < 2 || list.len() > 2 {
        p.invalid("spec.podCIDRs", &spec["podCIDRs"], "may specify no more than one CIDR for each IP family");
    }
}

/// What a node says it can do: names in order, `Feature` or `Feature/part`.
fn declared_features(list: &Value, p: &mut Problems) {
    let names: Vec<&str> = items(list).map(|name| name.as_str().unwrap_or_default()).collect();
    for (index, name) in names.iter().enumerate() {
        let field = |index: usize| format!("status.declaredFeatures[{index}]");
        if let Some(why) = feature_problem(name) {
            p.invalid(field(index), &json!(name), &format!("invalid feature name {name:?}: {why}"));
        }
        match names.get(index + 1) {
            Some(next) if next == name => p.duplicate(field(index + 1), &json!(next)),
            Some(next) if name > next => {
                p.invalid(field(index + 1), &json!(next), "list must be sorted alphabetically");
            }
            _ => {}
        }
    }
}

fn feature_problem(name: &str) -> Option<String> {
    const FORM: &str = "must start with an UpperCamelCase segment, with subsequent segments separated by '/' (e.g., \
                        MyFeature or MyFeature/mySubFeature), and contain only alphanumeric characters and slashes";
    let word = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric());
    if name.len() > MAX_FEATURE_NAME {
        return Some(format!("must be no more than {MAX_FEATURE_NAME} characters"));
    }
    let good = name.starts_with(|c: char| c.is_ascii_uppercase()) && name.split('/').all(word);
    (!good).then(|| FORM.to_owned())
}
