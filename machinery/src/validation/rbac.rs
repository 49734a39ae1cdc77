//! Roles and their bindings.

use serde_json::Value;

use super::check::{Problems, or_empty};
use super::{items, selectors, text};
use crate::shown;

/// An object of the group, or a change of it.
pub fn validate(plural: &str, new: &Value, old: Option<&Value>, p: &mut Problems) {
    match plural {
        "roles" => rules(&new["rules"], true, p),
        "clusterroles" => {
            rules(&new["rules"], false, p);
            if new["aggregationRule"].is_object() {
                aggregation(&new["aggregationRule"], p);
            }
        }
        _ => {
            binding(plural == "rolebindings", new, p);
            if let Some(old) = old
                && old["roleRef"] != new["roleRef"]
            {
                p.invalid_shown("roleRef", &shown::compact("RoleRef", &new["roleRef"]), "cannot change roleRef");
            }
        }
    }
}

fn aggregation(rule: &Value, p: &mut Problems) {
    let path = "aggregationRule.clusterRoleSelectors";
    if items(&rule["clusterRoleSelectors"]).next().is_none() {
        p.required(path, "at least one clusterRoleSelector required if aggregationRule is non-nil");
    }
    for (index, selector) in items(&rule["clusterRoleSelectors"]).enumerate() {
        let at = format!("{path}[{index}]");
        let before = p.0.len();
        selectors::label_selector(selector, &at, p);
        if p.0.len() != before {
            p.invalid(at, &Value::Null, "invalid label selector.");
        }
    }
}

fn rules(list: &Value, namespaced: bool, p: &mut Problems) {
    for (index, rule) in items(list).enumerate() {
        let at = format!("rules[{index}]");
        let any = |field: &str| items(&rule[field]).next().is_some();
        if !any("verbs") {
            p.required(format!("{at}.verbs"), "verbs must contain at least one value");
        }
        if any("nonResourceURLs") {
            let field = format!("{at}.nonResourceURLs");
            if namespaced {
                let why = "namespaced rules cannot apply to non-resource URLs";
                p.invalid(&field, &rule["nonResourceURLs"], why);
            }
            if any("apiGroups") || any("resources") || any("resourceNames") {
                let why = "rules cannot apply to both regular resources and non-resource URLs";
                p.invalid(&field, &rule["nonResourceURLs"], why);
            }
            continue;
        }
        if !any("apiGroups") {
            p.required(format!("{at}.apiGroups"), "resource rules must supply at least one api group");
        }
        if !any("resources") {
            p.required(format!("{at}.resources"), "resource rules must supply at least one resource");
        }
    }
}

fn binding(namespaced: bool, new: &Value, p: &mut Problems) {
    const GROUP: &str = "rbac.authorization.k8s.io";
    let role = &new["roleRef"];
    if text(role, "apiGroup") != GROUP {
        p.not_supported("roleRef.apiGroup", &or_empty(&role["apiGroup"]), &[GROUP]);
    }
    let kinds: &[&str] = if namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    p.one_of("roleRef.kind", &role["kind"], kinds);
    if text(role, "name").is_empty() {
        p.required("roleRef.name", "");
    } else {
        p.named("roleRef.name", &role["name"], crate::names::path_segment(text(role, "name")));
    }
    for (index, subject) in items(&new["subjects"]).enumerate() {
        let at = format!("subjects[{index}]");
        let group = |expected: &str, p: &mut Problems| {
            if text(subject, "apiGroup") != expected {
                p.not_supported(format!("{at}.apiGroup"), &or_empty(&subject["apiGroup"]), &[expected]);
            }
        };
        if text(subject, "name").is_empty() {
            p.required(format!("{at}.name"), "");
        }
        match text(subject, "kind") {
            "ServiceAccount" => {
                if !text(subject, "name").is_empty() {
                    p.subdomain(format!("{at}.name"), &subject["name"]);
                }
                group("", p);
                if !namespaced && text(subject, "namespace").is_empty() {
                    p.required(format!("{at}.namespace"), "");
                }
            }
            "User" | "Group" => group(GROUP, p),
            _ => p.one_of(format!("{at}.kind"), &subject["kind"], &["ServiceAccount", "User", "Group"]),
        }
    }
}
