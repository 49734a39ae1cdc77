//! Whether a pod may be on a node: its node selector and required node affinity, and the taints that it tolerates.

use k8s_openapi::api::core::v1::{Node, NodeSelector, NodeSelectorRequirement, PodSpec, Taint, Toleration};

/// Whether a toleration is one for this taint.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    if !effect.is_empty() && effect != taint.effect || !key.is_empty() && key != taint.key {
        return false;
    }
    let (value, taint_value) = (toleration.value.as_deref().unwrap_or(""), taint.value.as_deref().unwrap_or(""));
    let numbers = || Some((value.parse::<i64>().ok()?, taint_value.parse::<i64>().ok()?));
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => true,
        "Equal" | "" => !key.is_empty() && value == taint_value,
        "Lt" => numbers().is_some_and(|(bound, n)| n < bound),
        "Gt" => numbers().is_some_and(|(bound, n)| n > bound),
        _ => false,
    }
}

fn holds(requirement: &NodeSelectorRequirement, found: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let number = |text: Option<&str>| text.and_then(|t| t.parse::<i64>().ok());
    let compared = || Some((number(found)?, number(values.first().map(String::as_str))?));
    match requirement.operator.as_str() {
        "In" => found.is_some_and(|f| values.iter().any(|v| v == f)),
        "NotIn" => found.is_none_or(|f| values.iter().all(|v| v != f)),
        "Exists" => found.is_some(),
        "DoesNotExist" => found.is_none(),
        "Gt" => compared().is_some_and(|(n, bound)| n > bound),
        "Lt" => compared().is_some_and(|(n, bound)| n < bound),
        _ => false,
    }
}

/// Whether one of the terms holds; a term that requires nothing holds for no node.
pub fn selects(selector: &NodeSelector, node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    selector.node_selector_terms.iter().any(|term| {
        let expressions = term.match_expressions.as_deref().unwrap_or_default();
        let fields = term.match_fields.as_deref().unwrap_or_default();
        let named = |key: &str| node.metadata.name.as_deref().filter(|_| key == "metadata.name");
        !(expressions.is_empty() && fields.is_empty())
            && expressions.iter().all(|r| holds(r, labels.and_then(|l| l.get(&r.key)).map(String::as_str)))
            && fields.iter().all(|r| holds(r, named(&r.key)))
    })
}

/// Whether node selector and required affinity choose the node.
pub fn chooses(spec: &PodSpec, node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    let has = |(key, value): (&String, &String)| labels.is_some_and(|l| l.get(key) == Some(value));
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    spec.node_selector.iter().flatten().all(has) && required.is_none_or(|s| selects(s, node))
}

/// Whether all taints with one of these effects are tolerated.
pub fn tolerates_all(tolerations: &[Toleration], node: &Node, effects: &[&str]) -> bool {
    let taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    taints.filter(|t| effects.contains(&t.effect.as_str())).all(|t| tolerations.iter().any(|l| tolerates(l, t)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn selectors_and_affinity() {
        let node: Node =
            serde_json::from_value(json!({"metadata": {"name": "n", "labels": {"zone": "a", "cpus": "8"}}})).unwrap();
        let affinity = |terms: Value| json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}});
        let expression = |key: &str, operator: &str, values: &[&str]| {
            affinity(json!([{"matchExpressions": [{"key": key, "operator": operator, "values": values}]}]))
        };
        for (spec, expected) in [
            (json!({}), true),
            (json!({"nodeSelector": {"zone": "a"}}), true),
            (json!({"nodeSelector": {"zone": "b"}}), false),
            (expression("zone", "In", &["a", "b"]), true),
            (expression("zone", "NotIn", &["a"]), false),
            (expression("other", "NotIn", &["a"]), true),
            (expression("other", "DoesNotExist", &[]), true),
            (expression("zone", "Exists", &[]), true),
            (expression("cpus", "Gt", &["4"]), true),
            (expression("cpus", "Lt", &["4"]), false),
            (expression("zone", "Gt", &["4"]), false),
            (affinity(json!([{}])), false),
            (affinity(json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]}])), true),
            (affinity(json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["m"]}]}])), false),
        ] {
            let mut whole = json!({"containers": []});
            keelson_machinery::patch::merge(&mut whole, &spec);
            assert_eq!(chooses(&serde_json::from_value(whole).unwrap(), &node), expected, "{spec}");
        }
    }
}
