//! The form in which the default roles are written down, and its translation into objects.

use serde_json::{Value, json};

/// A policy rule; every list is words in one string.
pub(super) struct Rule {
    groups: &'static str,
    resources: &'static str,
    names: &'static str,
    urls: &'static str,
    verbs: &'static str,
}

/// A role and its aggregation.
pub(super) struct Role {
    pub(super) name: &'static str,
    aggregate_to: &'static str,
    aggregates: &'static str,
    rules: &'static [Rule],
}

pub(super) const fn rule(groups: &'static str, resources: &'static str, verbs: &'static str) -> Rule {
    Rule { groups, resources, names: "", urls: "", verbs }
}

pub(super) const fn named(
    groups: &'static str,
    resources: &'static str,
    names: &'static str,
    verbs: &'static str,
) -> Rule {
    Rule { groups, resources, names, urls: "", verbs }
}

pub(super) const fn urls(urls: &'static str, verbs: &'static str) -> Rule {
    Rule { groups: "", resources: "", names: "", urls, verbs }
}

pub(super) const fn role(
    name: &'static str,
    aggregate_to: &'static str,
    aggregates: &'static str,
    rules: &'static [Rule],
) -> Role {
    Role { name, aggregate_to, aggregates, rules }
}

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

impl Rule {
    fn to_value(&self) -> Value {
        let mut rule = json!({ "verbs": words(self.verbs) });
        if !self.groups.is_empty() {
            let groups: Vec<&str> = self.groups.split(' ').map(|g| if g == "core" { "" } else { g }).collect();
            rule["apiGroups"] = json!(groups);
        }
        for (key, list) in
            [("resources", self.resources), ("resourceNames", self.names), ("nonResourceURLs", self.urls)]
        {
            if !list.is_empty() {
                rule[key] = json!(words(list));
            }
        }
        rule
    }
}

/// Metadata of every default RBAC object.
pub(super) fn metadata(namespace: &str, name: &str) -> Value {
    let mut metadata = json!({
        "name": name,
        "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
    });
    if !namespace.is_empty() {
        metadata["namespace"] = namespace.into();
    }
    metadata
}

impl Role {
    /// The Role or ClusterRole.
    pub(super) fn to_value(&self, namespace: &str) -> Value {
        let label = |to: &str| format!("rbac.authorization.k8s.io/aggregate-to-{to}");
        let kind = if namespace.is_empty() { "ClusterRole" } else { "Role" };
        let mut object = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": kind,
            "metadata": metadata(namespace, self.name),
            "rules": self.rules.iter().map(Rule::to_value).collect::<Vec<_>>(),
        });
        if !self.aggregate_to.is_empty() {
            object["metadata"]["labels"][label(self.aggregate_to)] = "true".into();
        }
        if !self.aggregates.is_empty() {
            object["aggregationRule"] =
                json!({"clusterRoleSelectors": [{"matchLabels": {label(self.aggregates): "true"}}]});
        }
        object
    }
}
