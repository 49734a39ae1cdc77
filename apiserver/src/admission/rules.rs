//! What webhooks and policies may say of the requests that they are for: resources, selectors, names of versions and kinds.

use std::collections::BTreeSet;

use keelson_machinery::names;
use keelson_machinery::status::Cause;
use keelson_machinery::validation::{Problems, selectors};
use serde_json::Value;

use super::registration::{list, text};

const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
/// Versions of reviews that this server sends.
const REVIEWS: [&str; 2] = ["v1", "v1beta1"];

/// Problems of a rule.
pub(super) fn rule(rule: &Value, at: &str) -> Vec<Cause> {
    let mut out = Vec::new();
    resource_names(&rule["resourceNames"], &format!("{at}.resourceNames"), &mut out);
    some_or_all(rule, "operations", "operations", at, &mut out);
    for (index, operation) in list(&rule["operations"]) {
        if !operation.as_str().is_some_and(|operation| OPERATIONS.contains(&operation)) {
            out.push(Cause::not_supported(format!("{at}.operations[{index}]"), operation, &OPERATIONS));
        }
    }
    some_or_all(rule, "apiGroups", "API groups", at, &mut out);
    some_or_all(rule, "apiVersions", "API versions", at, &mut out);
    for (index, _) in list(&rule["apiVersions"]).filter(|(_, version)| *version == "") {
        out.push(Cause::required(format!("{at}.apiVersions[{index}]"), ""));
    }
    resources(&rule["resources"], &format!("{at}.resources"), &mut out);
    if rule["scope"].as_str().is_some_and(|scope| !matches!(scope, "*" | "Cluster" | "Namespaced")) {
        out.push(Cause::not_supported(format!("{at}.scope"), &rule["scope"], &["*", "Cluster", "Namespaced"]));
    }
    out
}

/// A list that names at least one thing, or all things and nothing else.
fn some_or_all(rule: &Value, key: &str, what: &str, at: &str, out: &mut Vec<Cause>) {
    let count = list(&rule[key]).count();
    if count == 0 {
        out.push(Cause::required(format!("{at}.{key}"), ""));
    } else if count > 1 && list(&rule[key]).any(|(_, v)| v == "*") {
        let why = format!("if '*' is present, must not specify other {what}");
        out.push(Cause::invalid(format!("{at}.{key}"), &rule[key], &why));
    }
}

fn resource_names(values: &Value, at: &str, out: &mut Vec<Cause>) {
    let mut seen = BTreeSet::new();
    for (index, value) in list(values) {
        let name = value.as_str().unwrap_or_default();
        if let Some(problem) = names::path_segment(name) {
            out.push(Cause::invalid(format!("{at}[{index}]"), value, &problem));
        }
        if !seen.insert(name) {
            out.push(Cause::duplicate(format!("{at}[{index}]"), value));
        }
    }
}

/// Resources with their subresources: none that another covers already.
fn resources(values: &Value, at: &str, out: &mut Vec<Cause>) {
    let all: Vec<&str> = list(values).map(|(_, value)| value.as_str().unwrap_or_default()).collect();
    if all.is_empty() {
        out.push(Cause::required(at, ""));
    }
    // The last one without a subresource says whether there is one.
    let mut whole = false;
    let (mut any_sub, mut of_any): (BTreeSet<&str>, BTreeSet<&str>) = (BTreeSet::new(), BTreeSet::new());
    for (index, both) in all.iter().enumerate() {
        let field = format!("{at}[{index}]");
        let (resource, sub) = match both.split_once('/') {
            _ if both.is_empty() => {
                out.push(Cause::required(field, ""));
                continue;
            }
            None => {
                whole = *both != "*";
                continue;
            }
            Some(parts) => parts,
        };
        let mut told = |covers: String| {
            let why = format!("if '{covers}' is present, must not specify {both}");
            out.push(Cause::invalid(field.as_str(), &Value::from(*both), &why));
        };
        if any_sub.contains(resource) {
            told(format!("{resource}/*"));
        }
        if of_any.contains(sub) {
            told(format!("*/{sub}"));
        }
        if sub == "*" {
            any_sub.insert(resource);
        }
        if resource == "*" {
            of_any.insert(sub);
        }
    }
    if all.len() > 1 && all.contains(&"*/*") {
        out.push(Cause::invalid(at, values, "if '*/*' is present, must not specify other resources"));
    }
    if all.contains(&"*") && whole {
        let why = "if '*' is present, must not specify other resources without subresources";
        out.push(Cause::invalid(at, values, why));
    }
}

/// Problems of the selectors among these fields of an object.
pub(super) fn selected(of: &Value, keys: &[&str], at: &str) -> Vec<Cause> {
    let mut problems = Problems::default();
    for key in keys.iter().filter(|key| of[**key].is_object()) {
        selectors::label_selector(&of[*key], &format!("{at}.{key}"), &mut problems);
    }
    problems.0
}

/// Problems of the versions of reviews that a webhook reads.
pub(super) fn review_versions(versions: &Value, at: &str) -> Vec<Cause> {
    let known = REVIEWS.join(", ");
    if list(versions).next().is_none() {
        return vec![Cause::required(at, &format!("must specify one of {known}"))];
    }
    let mut out = Vec::new();
    let mut seen = BTreeSet::new();
    for (index, version) in list(versions) {
        let (name, field) = (version.as_str().unwrap_or_default(), format!("{at}[{index}]"));
        if !seen.insert(name) {
            out.push(Cause::invalid(field, version, "duplicate version"));
        } else if let Some(problem) = names::dns_label_1035(name) {
            out.push(Cause::invalid(field, version, &problem));
        }
    }
    if !REVIEWS.iter().any(|version| seen.contains(version)) {
        out.push(Cause::invalid(at, versions, &format!("must include at least one of {known}")));
    }
    out
}

/// Problems of the kind that a policy's parameters are of.
pub(super) fn param_kind(of: &Value, at: &str) -> Vec<Cause> {
    let mut out = Vec::new();
    let (version, field) = (text(of, "apiVersion"), format!("{at}.apiVersion"));
    let mut told = |value: &str, why: &str| out.push(Cause::invalid(field.as_str(), &Value::from(value), why));
    match version.matches('/').count() {
        _ if version.is_empty() => out.push(Cause::required(field, "")),
        0 | 1 => {
            let (group, name) =
                if version == "/" { ("", "") } else { version.split_once('/').unwrap_or(("", version)) };
            let problems = names::subdomain_problems(group);
            if !group.is_empty() && !problems.is_empty() {
                told(group, &problems.join(","));
            }
            match names::dns_label_1035(name) {
                _ if name.is_empty() => told(version, "version must be specified"),
                Some(problem) => told(name, &problem),
                None => {}
            }
        }
        _ => told(version, &format!("unexpected GroupVersion string: {version}")),
    }
    let kind = text(of, "kind");
    if kind.is_empty() {
        out.push(Cause::required(format!("{at}.kind"), ""));
    } else if let Some(problem) = names::dns_label_1035(&kind.to_lowercase()) {
        let why = format!("may have mixed case, but should otherwise match: {problem}");
        out.push(Cause::invalid(format!("{at}.kind"), &of["kind"], &why));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn told(causes: &[Cause]) -> Vec<String> {
        causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
    }

    /// Each row: resources of a rule, and where something is told of them with what it begins with.
    #[test]
    fn no_resource_is_named_that_another_covers() {
        for (named, expected) in [
            (json!(["pods", "pods/status"]), &[][..]),
            (json!(["*", "*/scale"]), &[]),
            (json!([]), &["r.resources: Required value"]),
            (json!([""]), &["r.resources[0]: Required value"]),
            (
                json!(["pods/*", "pods/log"]),
                &["r.resources[1]: Invalid value: \"pods/log\": if 'pods/*' is present, must not specify pods/log"],
            ),
            (
                json!(["*/scale", "pods/scale"]),
                &[
                    "r.resources[1]: Invalid value: \"pods/scale\": if '*/scale' is present, must not specify pods/scale",
                ],
            ),
            (
                json!(["*/*", "pods"]),
                &[
                    "r.resources: Invalid value: [\"*/*\",\"pods\"]: if '*/*' is present, must not specify other resources",
                ],
            ),
            (
                json!(["*", "pods"]),
                &["r.resources: Invalid value: [\"*\",\"pods\"]: if '*' is present, must not specify other resources \
                   without subresources"],
            ),
        ] {
            let whole = json!({"apiGroups": [""], "apiVersions": ["v1"], "operations": ["*"], "resources": named});
            assert_eq!(told(&rule(&whole, "r")), expected, "{named}");
        }
    }

    #[test]
    fn versions_and_kinds_are_names() {
        for (of, expected) in [
            (json!({"apiVersion": "v1", "kind": "ConfigMap"}), &[][..]),
            (json!({}), &["p.apiVersion: Required value", "p.kind: Required value"]),
            (
                json!({"apiVersion": "a/b/c", "kind": "K"}),
                &["p.apiVersion: Invalid value: \"a/b/c\": unexpected GroupVersion string: a/b/c"],
            ),
            (
                json!({"apiVersion": "a/", "kind": "K"}),
                &["p.apiVersion: Invalid value: \"a/\": version must be specified"],
            ),
        ] {
            assert_eq!(told(&param_kind(&of, "p")), expected, "{of}");
        }
        for (versions, expected) in [
            (json!(["v1", "v9"]), &[][..]),
            (json!(["v1", "v1"]), &["v[1]: Invalid value: \"v1\": duplicate version"]),
            (json!(["v9"]), &["v: Invalid value: [\"v9\"]: must include at least one of v1, v1beta1"]),
        ] {
            assert_eq!(told(&review_versions(&versions, "v")), expected, "{versions}");
        }
    }

    #[test]
    fn names_are_told_twice_and_selectors_are_read() {
        let rule = json!({"apiGroups": [""], "apiVersions": [""], "operations": ["*"], "resources": ["pods"],
            "resourceNames": ["a", "a", "a/b"], "scope": "Some"});
        assert_eq!(
            told(&super::rule(&rule, "r")),
            [
                "r.resourceNames[1]: Duplicate value: \"a\"",
                "r.resourceNames[2]: Invalid value: \"a/b\": may not contain '/'",
                "r.apiVersions[0]: Required value",
                "r.scope: Unsupported value: \"Some\": supported values: \"*\", \"Cluster\", \"Namespaced\"",
            ]
        );
        let of = json!({"objectSelector": {"matchExpressions": [{"key": "k", "operator": "Near"}]}});
        let found = told(&selected(&of, &["namespaceSelector", "objectSelector"], "s"));
        assert_eq!(
            found,
            ["s.objectSelector.matchExpressions[0].operator: Invalid value: \"Near\": not a valid selector operator"]
        );
    }
}
