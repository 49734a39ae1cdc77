//! What is accepted and yet told: deprecated fields and values that do not do what they seem to. Pods are in a file of
//! their own, the other kinds here and in `others`.

mod others;
mod pair;
pub(crate) mod pod;

use serde_json::Value;

use crate::names;
use crate::resource::ResourceDef;
use crate::shown::quoted;
use crate::validation::{STANDARD_FINALIZERS, entries, items, text};

/// Labels of nodes that have other names by now.
const OLD_LABELS: &[(&str, &str)] = &[
    ("app.kubernetes.io/created-by", "deprecated since v1.9"),
    ("beta.kubernetes.io/arch", "deprecated since v1.14; use \"kubernetes.io/arch\" instead"),
    ("beta.kubernetes.io/instance-type", "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead"),
    ("beta.kubernetes.io/os", "deprecated since v1.14; use \"kubernetes.io/os\" instead"),
    (
        "failure-domain.beta.kubernetes.io/region",
        "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead",
    ),
    ("failure-domain.beta.kubernetes.io/zone", "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead"),
    ("node-role.kubernetes.io/master", "use \"node-role.kubernetes.io/control-plane\" instead"),
    ("scheduler.alpha.kubernetes.io/preferAvoidPods", "deprecated since v1.22; use Taints and Tolerations instead"),
];

/// Finalizers of a custom resource may be without a domain, but should not.
fn bare_finalizers(new: &Value, old: Option<&Value>, out: &mut Vec<String>) {
    let names = |object: &'_ Value| -> Vec<String> {
        items(&object["metadata"]["finalizers"]).filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let before = old.map(names).unwrap_or_default();
    let mut added = names(new);
    added.retain(|name| !before.contains(name) && !name.contains('/') && !STANDARD_FINALIZERS.contains(&name.as_str()));
    added.sort_unstable();
    added.dedup();
    out.extend(added.iter().map(|name| {
        format!(
            "metadata.finalizers: {}: prefer a domain-qualified finalizer name including a path (/) to avoid accidental \
             conflicts with other finalizer writers",
            quoted(name)
        )
    }));
}

/// What is to be told of a new or changed object.
pub fn of(def: &ResourceDef, subresource: &str, new: &Value, old: Option<&Value>) -> Vec<String> {
    let mut out = Vec::new();
    if def.custom {
        if subresource.is_empty() {
            bare_finalizers(new, old, &mut out);
        }
        return out;
    }
    if !subresource.is_empty() {
        others::status(def, subresource, new, &mut out);
        return out;
    }
    // Of a template that stayed as it was nothing is told again.
    let generation = |object: &Value| object["metadata"]["generation"].as_i64().unwrap_or(0);
    let unchanged = old.is_some_and(|old| generation(old) == generation(new));
    match (def.group, def.plural) {
        // Programs change pods; people who would read this do not.
        ("", "pods") if old.is_some() => {}
        ("", "pods") => pod::pod(&new["metadata"], &new["spec"], &mut out),
        ("", "podtemplates") if unchanged => {}
        ("", "podtemplates") => pod::template(&new["template"], "template", &mut out),
        ("apps", "controllerrevisions") => {}
        ("apps" | "batch", _) | ("", "replicationcontrollers") => {
            others::workload(def.plural, new, old.is_some(), unchanged, &mut out);
        }
        _ => others::of(def, new, old, &mut out),
    }
    out
}

fn old_label(key: &str) -> Option<&'static str> {
    OLD_LABELS.iter().find(|(old, _)| *old == key).map(|(_, why)| *why)
}

/// Labels that have other names by now, and values (of preferences, where they are no mistake) that no label has.
fn node_term(term: &Value, check_values: bool, path: &str, out: &mut Vec<String>) {
    for (index, expression) in items(&term["matchExpressions"]).enumerate() {
        let at = format!("{path}.matchExpressions[{index}]");
        let key = text(expression, "key");
        out.extend(old_label(key).map(|why| format!("{at}.key: {key} is {why}")));
        for (i, value) in items(&expression["values"]).enumerate().filter(|_| check_values) {
            let value = value.as_str().unwrap_or_default();
            for problem in names::label_value_problems(value) {
                out.push(format!("{at}.values[{i}]: {value} is invalid, {problem}"));
            }
        }
    }
}

/// An address that others write in another way.
fn address(text: &str, path: &str, out: &mut Vec<String>) {
    if let Some(canonical) = pod::other_form(text) {
        out.push(format!("{path}: IPv6 address {text:?} should be in RFC 5952 canonical format ({canonical:?})"));
    }
}

/// A range of addresses that others write in another way.
fn range(text: &str, path: &str, out: &mut Vec<String>) {
    let Some((ip, bits)) = text.split_once('/') else { return };
    if let Some(canonical) = pod::other_form(ip) {
        let canonical = format!("{canonical}/{bits}");
        out.push(format!("{path}: IPv6 CIDR value {text:?} should be in RFC 5952 canonical format ({canonical:?})"));
    }
}

/// Why an amount of bytes is none.
fn fraction(amount: &Value) -> Option<String> {
    let text = amount.as_str()?;
    (!pod::is_whole(text)).then(|| format!("fractional byte value {text:?} is invalid, must be an integer"))
}

/// What a claim asks for.
fn claim_amounts(spec: &Value, path: &str, out: &mut Vec<String>) {
    for list in ["requests", "limits"] {
        let at = format!("{path}.resources.{list}[storage]");
        out.extend(fraction(&spec["resources"][list]["storage"]).map(|why| format!("{at}: {why}")));
    }
}

/// What is told of a selector of nodes by their labels.
fn node_selector(selector: &Value, path: &str, out: &mut Vec<String>) {
    node_term(selector, false, path, out);
    for (label, _) in entries(&selector["matchLabels"]) {
        out.extend(old_label(label).map(|why| format!("{path}.matchLabels.{label}: {why}")));
    }
}

#[cfg(test)]
mod tests;
