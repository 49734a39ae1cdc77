//! Label and node selectors, affinity, tolerations and taints.

use serde_json::{Value, json};

use super::check::{Problems, or_empty};
use super::{has, items, meta, text};
use crate::names;
use crate::status::Cause;

const IN_NEEDS_VALUES: &str = "must be specified when `operator` is 'In' or 'NotIn'";
const EXISTS_HAS_NO_VALUES: &str = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
const NOT_AN_OPERATOR: &str = "not a valid selector operator";

/// A label selector.
pub fn label_selector(selector: &Value, path: &str, p: &mut Problems) {
    meta::labels(&selector["matchLabels"], &format!("{path}.matchLabels"), p);
    for (index, requirement) in items(&selector["matchExpressions"]).enumerate() {
        let at = format!("{path}.matchExpressions[{index}]");
        values_fit_operator(requirement, &at, p);
        if !matches!(text(requirement, "operator"), "In" | "NotIn" | "Exists" | "DoesNotExist") {
            p.invalid(format!("{at}.operator"), &or_empty(&requirement["operator"]), NOT_AN_OPERATOR);
        }
        label_requirement(requirement, &at, p);
    }
}

/// Whether there are values where an operator wants them, and none where it does not.
fn values_fit_operator(requirement: &Value, at: &str, p: &mut Problems) {
    let count = items(&requirement["values"]).count();
    match text(requirement, "operator") {
        "In" | "NotIn" if count == 0 => p.required(format!("{at}.values"), IN_NEEDS_VALUES),
        "Exists" | "DoesNotExist" if count > 0 => p.forbidden(format!("{at}.values"), EXISTS_HAS_NO_VALUES),
        _ => {}
    }
}

/// The key and the values of a requirement on a label.
fn label_requirement(requirement: &Value, at: &str, p: &mut Problems) {
    p.qualified_name(&format!("{at}.key"), text(requirement, "key"));
    for (i, value) in items(&requirement["values"]).enumerate() {
        for problem in names::label_value_problems(value.as_str().unwrap_or_default()) {
            p.invalid(format!("{at}.values[{i}]"), value, &problem);
        }
    }
}

/// The selectors of an access review's `resourceAttributes`. Operators that nobody knows are let through, so that newer
/// clients may ask.
pub fn review_selectors(resource: &Value) -> Vec<Cause> {
    let p = &mut Problems::default();
    for key in ["fieldSelector", "labelSelector"].into_iter().filter(|key| resource[*key].is_object()) {
        let (selector, at) = (&resource[key], format!("spec.resourceAttributes.{key}"));
        let asked = items(&selector["requirements"]).next().is_some();
        match (text(selector, "rawSelector"), asked) {
            ("", false) => {
                let why = format!("when {at} is specified, requirements or rawSelector is required");
                p.required(format!("{at}.requirements"), &why);
            }
            (raw, true) if !raw.is_empty() => {
                let why = "may not specified at the same time as requirements";
                p.invalid(format!("{at}.rawSelector"), &selector["rawSelector"], why);
            }
            _ => {}
        }
        for (index, requirement) in items(&selector["requirements"]).enumerate() {
            let at = format!("{at}.requirements[{index}]");
            if key == "fieldSelector" && text(requirement, "key").is_empty() {
                p.required(format!("{at}.key"), "must be specified");
            }
            values_fit_operator(requirement, &at, p);
            if key == "labelSelector" {
                label_requirement(requirement, &at, p);
            }
        }
    }
    std::mem::take(&mut p.0)
}

/// Whether a selector selects everything.
pub fn is_empty(selector: &Value) -> bool {
    let none = |key: &str| match &selector[key] {
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => true,
    };
    none("matchLabels") && none("matchExpressions")
}

/// A node selector.
pub fn node_selector(selector: &Value, path: &str, p: &mut Problems) {
    if items(&selector["nodeSelectorTerms"]).next().is_none() {
        p.required(format!("{path}.nodeSelectorTerms"), "must have at least one node selector term");
    }
    for (index, term) in items(&selector["nodeSelectorTerms"]).enumerate() {
        node_selector_term(term, true, &format!("{path}.nodeSelectorTerms[{index}]"), p);
    }
}

/// One term of a node selector; of a preference the values may be anything (`strict` false).
fn node_selector_term(term: &Value, strict: bool, path: &str, p: &mut Problems) {
    for (index, requirement) in items(&term["matchExpressions"]).enumerate() {
        let at = format!("{path}.matchExpressions[{index}]");
        let count = items(&requirement["values"]).count();
        match text(requirement, "operator") {
            "In" | "NotIn" if count == 0 => p.required(format!("{at}.values"), IN_NEEDS_VALUES),
            "Exists" | "DoesNotExist" if count > 0 => p.forbidden(format!("{at}.values"), EXISTS_HAS_NO_VALUES),
            "Gt" | "Lt" if count != 1 => {
                p.required(format!("{at}.values"), "must be specified single value when `operator` is 'Lt' or 'Gt'");
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            _ => p.invalid(format!("{at}.operator"), &or_empty(&requirement["operator"]), NOT_AN_OPERATOR),
        }
        p.qualified_name(&format!("{at}.key"), text(requirement, "key"));
        for (i, value) in items(&requirement["values"]).enumerate().filter(|_| strict) {
            for problem in names::label_value_problems(value.as_str().unwrap_or_default()) {
                p.invalid(format!("{at}.values[{i}]"), value, &problem);
            }
        }
    }
    for (index, requirement) in items(&term["matchFields"]).enumerate() {
        match_field(requirement, &format!("{path}.matchFields[{index}]"), p);
    }
}

fn match_field(requirement: &Value, at: &str, p: &mut Problems) {
    match text(requirement, "operator") {
        "In" | "NotIn" if items(&requirement["values"]).count() == 1 => {}
        "In" | "NotIn" => {
            let why = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
            p.required(format!("{at}.values"), why);
        }
        _ => p.invalid(format!("{at}.operator"), &or_empty(&requirement["operator"]), NOT_AN_OPERATOR),
    }
    if text(requirement, "key") == "metadata.name" {
        for (i, value) in items(&requirement["values"]).enumerate() {
            p.subdomain(format!("{at}.values[{i}]"), value);
        }
    } else {
        p.invalid(format!("{at}.key"), &or_empty(&requirement["key"]), "not a valid field selector key");
    }
}

/// `spec.affinity` of a pod.
pub fn affinity(affinity: &Value, path: &str, p: &mut Problems) {
    let (required, preferred) =
        ("requiredDuringSchedulingIgnoredDuringExecution", "preferredDuringSchedulingIgnoredDuringExecution");
    let node = &affinity["nodeAffinity"];
    if has(node, required) {
        node_selector(&node[required], &format!("{path}.nodeAffinity.{required}"), p);
    }
    for (index, term) in items(&node[preferred]).enumerate() {
        let at = format!("{path}.nodeAffinity.{preferred}[{index}]");
        weight(term, &at, p);
        node_selector_term(&term["preference"], false, &format!("{at}.preference"), p);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        for (index, term) in items(&affinity[kind][required]).enumerate() {
            pod_affinity_term(term, &format!("{path}.{kind}.{required}[{index}]"), p);
        }
        for (index, term) in items(&affinity[kind][preferred]).enumerate() {
            let at = format!("{path}.{kind}.{preferred}[{index}]");
            weight(term, &at, p);
            pod_affinity_term(&term["podAffinityTerm"], &format!("{at}.podAffinityTerm"), p);
        }
    }
}

fn weight(term: &Value, at: &str, p: &mut Problems) {
    if !term["weight"].as_i64().is_some_and(|w| (1..=100).contains(&w)) {
        let shown = if term["weight"].is_null() { json!(0) } else { term["weight"].clone() };
        p.invalid(format!("{at}.weight"), &shown, "must be in the range 1-100");
    }
}

fn pod_affinity_term(term: &Value, path: &str, p: &mut Problems) {
    label_selector(&term["labelSelector"], &format!("{path}.labelSelector"), p);
    label_selector(&term["namespaceSelector"], &format!("{path}.namespaceSelector"), p);
    for namespace in items(&term["namespaces"]) {
        p.label(format!("{path}.namespace"), namespace);
    }
    label_keys(term, path, p);
    let field = format!("{path}.topologyKey");
    if text(term, "topologyKey").is_empty() {
        p.required(&field, "can not be empty");
    }
    p.qualified_name(&field, text(term, "topologyKey"));
}

/// `matchLabelKeys` and `mismatchLabelKeys`: different names, only beside a label selector, and not what it says already
/// (the values of the first are in it by now).
pub fn label_keys(term: &Value, path: &str, p: &mut Problems) {
    for field in ["matchLabelKeys", "mismatchLabelKeys"] {
        let count = items(&term[field]).count();
        if count > 0 && !has(term, "labelSelector") {
            p.forbidden(format!("{path}.{field}"), "must not be specified when labelSelector is not set");
            continue;
        }
        for (i, key) in items(&term[field]).enumerate() {
            p.qualified_name(&format!("{path}.{field}[{i}]"), key.as_str().unwrap_or_default());
        }
    }
    let selector = &term["labelSelector"];
    let mut said: Vec<&str> = super::entries(&selector["matchLabels"]).map(|(key, _)| key.as_str()).collect();
    for requirement in items(&selector["matchExpressions"]) {
        let key = text(requirement, "key");
        let position = items(&term["matchLabelKeys"]).enumerate().filter(|(_, k)| **k == key).last();
        if let Some((i, _)) = position.filter(|_| said.contains(&key)) {
            p.invalid(format!("{path}[{i}]"), &json!(key), "exists in both matchLabelKeys and labelSelector");
        }
        said.push(key);
    }
    for (i, key) in items(&term["matchLabelKeys"]).enumerate() {
        if items(&term["mismatchLabelKeys"]).any(|other| other == key) {
            let why = "exists in both matchLabelKeys and mismatchLabelKeys";
            p.invalid(format!("{path}.matchLabelKeys[{i}]"), key, why);
        }
    }
}

/// Tolerations of a pod or of a runtime class.
pub fn tolerations(list: &Value, path: &str, p: &mut Problems) {
    for (index, toleration) in items(list).enumerate() {
        let at = format!("{path}[{index}]");
        let (key, operator, value) =
            (text(toleration, "key"), text(toleration, "operator"), or_empty(&toleration["value"]));
        if !key.is_empty() {
            p.qualified_name(&format!("{at}.key"), key);
        } else if operator != "Exists" {
            let why = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            p.invalid(format!("{at}.operator"), &or_empty(&toleration["operator"]), why);
        }
        if has(toleration, "tolerationSeconds") && text(toleration, "effect") != "NoExecute" {
            let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            p.invalid(format!("{at}.effect"), &or_empty(&toleration["effect"]), why);
        }
        match operator {
            "" | "Equal" => {
                let problems = names::label_value_problems(value.as_str().unwrap_or_default());
                if !problems.is_empty() {
                    p.invalid(format!("{at}.operator"), &value, &problems.join(";"));
                }
            }
            "Exists" if value != "" => {
                p.invalid(format!("{at}.operator"), &value, "value must be empty when `operator` is 'Exists'");
            }
            "Exists" => {}
            // These compare numbers, behind a closed gate, but are told of as if one could have them.
            "Lt" | "Gt" => {
                let known = ["Equal", "Exists", "Lt", "Gt"];
                p.not_supported(format!("{at}.operator"), &toleration["operator"], &known);
            }
            _ => p.not_supported(format!("{at}.operator"), &toleration["operator"], &["Equal", "Exists"]),
        }
        if !text(toleration, "effect").is_empty() {
            taint_effect(toleration, &format!("{at}.effect"), p);
        }
    }
}

/// The effect of a taint or toleration.
pub fn taint_effect(holder: &Value, field: &str, p: &mut Problems) {
    if text(holder, "effect").is_empty() {
        p.required(field, "");
    } else {
        p.one_of(field, &holder["effect"], &["NoSchedule", "PreferNoSchedule", "NoExecute"]);
    }
}
