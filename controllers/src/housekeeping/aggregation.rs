//! Aggregated roles: a ClusterRole with an aggregation rule has the rules of all that its selectors choose.

use std::sync::Arc;

use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use keelson_client::informer::key;
use keelson_client::{Change, Key};
use serde_json::{Value, json};

use crate::context::Context;
use crate::owners::Selector;
use crate::runtime::{Keys, Outcome, watch_with};

/// Who applies the rules.
const MANAGER: &str = "clusterrole-aggregation-controller";

/// The rules that the role should have: those of the chosen roles in the order of their names, none twice.
fn plan(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Option<Vec<PolicyRule>> {
    let aggregation = role.aggregation_rule.as_ref()?;
    let mut chosen: Vec<&Arc<ClusterRole>> = Vec::new();
    for selector in aggregation.cluster_role_selectors.iter().flatten().map(Selector::new) {
        let mut matching: Vec<&Arc<ClusterRole>> =
            all.iter().filter(|r| r.metadata.name != role.metadata.name && selector.matches(&r.metadata)).collect();
        matching.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        chosen.extend(matching);
    }
    let mut rules: Vec<PolicyRule> = Vec::new();
    for rule in chosen.iter().flat_map(|r| r.rules.iter().flatten()) {
        if !rules.contains(rule) {
            rules.push(rule.clone());
        }
    }
    (rules != role.rules.clone().unwrap_or_default()).then_some(rules)
}

pub(crate) fn watch(context: &Arc<Context>, queue: &Keys) {
    let weak = Arc::downgrade(context);
    // Any change may be one to what an aggregated role chooses; there are few of those.
    watch_with(&context.cache.cluster_roles, queue, move |change: &Change<ClusterRole>| {
        let Some(context) = weak.upgrade() else { return Vec::new() };
        let all = context.cache.cluster_roles.list_all();
        let aggregated = all.iter().filter(|r| r.aggregation_rule.is_some()).map(|r| key(&**r));
        aggregated.chain(change.new.as_ref().map(|r| key(&**r))).collect()
    });
}

/// What is applied: the rules, none if there are none.
fn fields(role: &ClusterRole, rules: &[PolicyRule]) -> Value {
    let metadata = &role.metadata;
    let mut fields = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": metadata.name, "uid": metadata.uid}});
    if !rules.is_empty() {
        fields["rules"] = json!(rules);
    }
    fields
}

pub(crate) async fn reconcile(context: Arc<Context>, key: Key) -> Outcome {
    let Some(role) = context.cache.cluster_roles.get(&key) else { return Ok(None) };
    let Some(rules) = plan(&role, &context.cache.cluster_roles.list_all()) else { return Ok(None) };
    let fields = fields(&role, &rules);
    let written = context.client.cluster::<ClusterRole>().apply(&key.1, None, MANAGER, &fields).await?;
    context.settle(&context.cache.cluster_roles, &written).await;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_joined_once() {
        let role = |name: &str, label: &str, rules: Value| -> Arc<ClusterRole> {
            Arc::new(
                serde_json::from_value(json!({"metadata": {"name": name, "labels": {label: "1"}}, "rules": rules}))
                    .unwrap(),
            )
        };
        let rule = |resource: &str| json!({"apiGroups": [""], "resources": [resource], "verbs": ["get"]});
        let all = [
            role("b", "agg", json!([rule("x"), rule("y")])),
            role("a", "agg", json!([rule("y")])),
            role("c", "other", json!([rule("z")])),
        ];
        let mut target: ClusterRole = serde_json::from_value(json!({"metadata": {"name": "t"},
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"agg": "1"}}]}}))
        .unwrap();
        let rules = plan(&target, &all).unwrap();
        let resources: Vec<&str> =
            rules.iter().flat_map(|r| r.resources.iter().flatten()).map(String::as_str).collect();
        assert_eq!(resources, ["y", "x"]);
        assert_eq!(fields(&target, &rules)["rules"][0]["resources"], json!(["y"]));
        assert!(fields(&target, &[]).get("rules").is_none(), "what is not applied any more goes");
        target.rules = Some(rules);
        assert_eq!(plan(&target, &all), None);
        assert_eq!(plan(&all[0], &all), None);
    }
}
