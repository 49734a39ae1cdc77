//! What an object uses of a ResourceQuota: names of what is limited, and how much of each. Admission charges by it and the
//! quota controller counts by it, so that both agree.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::quantity::{Format, Quantity};
use crate::selector::LabelOp;

/// Amounts by the name of what is limited.
pub type Usage = BTreeMap<String, Quantity>;

/// Kinds of the core group that are counted under their plain name too.
const PLAIN: [&str; 7] =
    ["configmaps", "persistentvolumeclaims", "replicationcontrollers", "resourcequotas", "secrets", "services", "pods"];

fn one() -> Quantity {
    Quantity::from_units(1, Format::DecimalSi)
}

fn amount(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => Quantity::parse(text).ok(),
        Value::Number(n) => Quantity::parse(&n.to_string()).ok(),
        _ => None,
    }
}

/// Adds amounts.
pub fn add(total: &mut Usage, part: &Usage) {
    for (name, amount) in part {
        let sum = total.get(name).copied().map_or(*amount, |t| t + *amount);
        total.insert(name.clone(), sum);
    }
}

/// The name under which objects of a kind are counted.
pub fn count_name(group: &str, plural: &str) -> String {
    if group.is_empty() { format!("count/{plural}") } else { format!("count/{plural}.{group}") }
}

/// What an object uses.
pub fn usage(group: &str, plural: &str, object: &Value) -> Usage {
    let mut usage = Usage::from([(count_name(group, plural), one())]);
    if !group.is_empty() {
        return usage;
    }
    // A pod that has ended only counts as an object.
    if plural == "pods" {
        if !pod_has_ended(object) {
            usage.insert("pods".into(), one());
            add(&mut usage, &pod_resources(object));
        }
        return usage;
    }
    if PLAIN.contains(&plural) {
        usage.insert(plural.into(), one());
    }
    match plural {
        "services" => add(&mut usage, &service(object)),
        "persistentvolumeclaims" => add(&mut usage, &claim(object)),
        _ => {}
    }
    usage
}

fn pod_has_ended(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}

fn service(object: &Value) -> Usage {
    let kind = object["spec"]["type"].as_str().unwrap_or("ClusterIP");
    let ports = object["spec"]["ports"].as_array().map_or(0, Vec::len) as i64;
    let zero = Quantity::from_units(0, Format::DecimalSi);
    let mut usage = Usage::from([("services.loadbalancers".to_owned(), zero), ("services.nodeports".to_owned(), zero)]);
    let nodeports = match kind {
        "NodePort" => ports,
        "LoadBalancer" if object["spec"]["allocateLoadBalancerNodePorts"] == false => {
            let given = object["spec"]["ports"].as_array().into_iter().flatten();
            given.filter(|p| p["nodePort"].as_i64().unwrap_or(0) != 0).count() as i64
        }
        "LoadBalancer" => ports,
        _ => 0,
    };
    if kind == "LoadBalancer" {
        usage.insert("services.loadbalancers".into(), one());
    }
    usage.insert("services.nodeports".into(), Quantity::from_units(nodeports, Format::DecimalSi));
    usage
}

fn claim(object: &Value) -> Usage {
    let mut usage = Usage::new();
    let storage = amount(&object["spec"]["resources"]["requests"]["storage"]);
    let class = object["spec"]["storageClassName"]
        .as_str()
        .or_else(|| object["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"].as_str())
        .filter(|c| !c.is_empty());
    if let Some(class) = class {
        usage.insert(format!("{class}.storageclass.storage.k8s.io/persistentvolumeclaims"), one());
    }
    if let Some(storage) = storage {
        usage.insert("requests.storage".into(), storage);
        if let Some(class) = class {
            usage.insert(format!("{class}.storageclass.storage.k8s.io/requests.storage"), storage);
        }
    }
    usage
}

/// Requests or limits of a pod: the sum of its containers and of the init containers that go on running, or what an init
/// container needs beside those before it, whichever is more; then its overhead.
fn pod_amounts(pod: &Value, which: &str) -> Usage {
    let read = |value: &Value| -> Usage {
        let map = value.as_object().into_iter().flatten();
        map.filter_map(|(name, value)| Some((name.clone(), amount(value)?))).collect()
    };
    let raise = |most: &mut Usage, part: &Usage| {
        for (name, amount) in part {
            if most.get(name).is_none_or(|m| m < amount) {
                most.insert(name.clone(), *amount);
            }
        }
    };
    let spec = &pod["spec"];
    let (mut running, mut most, mut sidecars) = (Usage::new(), Usage::new(), Usage::new());
    for container in spec["containers"].as_array().into_iter().flatten() {
        add(&mut running, &read(&container["resources"][which]));
    }
    for container in spec["initContainers"].as_array().into_iter().flatten() {
        let mut part = read(&container["resources"][which]);
        if container["restartPolicy"] == "Always" {
            add(&mut running, &part);
            add(&mut sidecars, &part);
            part = sidecars.clone();
        } else {
            add(&mut part, &sidecars);
        }
        raise(&mut most, &part);
    }
    raise(&mut running, &most);
    // What the pod itself asks for takes the place of what its containers do.
    running.extend(read(&spec["resources"][which]));
    let overhead = read(&spec["overhead"]);
    let counted: Usage =
        overhead.into_iter().filter(|(name, _)| which == "requests" || running.contains_key(name)).collect();
    add(&mut running, &counted);
    running
}

fn pod_resources(pod: &Value) -> Usage {
    let mut usage = Usage::new();
    for (which, plain) in [("requests", true), ("limits", false)] {
        for (name, amount) in pod_amounts(pod, which) {
            let compute = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage");
            let extended = !compute && name.contains('/');
            let pages = name.starts_with("hugepages-");
            if plain && (compute || pages) {
                usage.insert(name.clone(), amount);
            }
            if compute || (extended || pages) && plain {
                usage.insert(format!("{which}.{name}"), amount);
            }
        }
    }
    usage
}

/// Whether the kind may be limited by a quota with scopes; only pods, and claims by class, have any.
fn has_scope(plural: &str, object: &Value, scope: &str, operator: &LabelOp) -> bool {
    if plural != "pods" {
        return false;
    }
    let spec = &object["spec"];
    let terminating = spec["activeDeadlineSeconds"].as_i64().is_some_and(|s| s >= 0);
    match scope {
        "Terminating" => terminating,
        "NotTerminating" => !terminating,
        "BestEffort" => best_effort(object),
        "NotBestEffort" => !best_effort(object),
        "CrossNamespacePodAffinity" => crosses_namespaces(&spec["affinity"]),
        "PriorityClass" => {
            let class = spec["priorityClassName"].as_str().filter(|c| !c.is_empty());
            match operator {
                LabelOp::In(values) => class.is_some_and(|c| values.iter().any(|v| v == c)),
                LabelOp::NotIn(values) => class.is_none_or(|c| values.iter().all(|v| v != c)),
                LabelOp::Exists => class.is_some(),
                LabelOp::DoesNotExist => class.is_none(),
                _ => false,
            }
        }
        _ => false,
    }
}

fn best_effort(pod: &Value) -> bool {
    let compute =
        |usage: Usage| usage.iter().any(|(name, n)| matches!(name.as_str(), "cpu" | "memory") && !n.is_zero());
    !compute(pod_amounts(pod, "requests")) && !compute(pod_amounts(pod, "limits"))
}

fn crosses_namespaces(affinity: &Value) -> bool {
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let required =
            affinity[*kind]["requiredDuringSchedulingIgnoredDuringExecution"].as_array().into_iter().flatten();
        let preferred =
            affinity[*kind]["preferredDuringSchedulingIgnoredDuringExecution"].as_array().into_iter().flatten();
        let mut terms = required.chain(preferred.map(|p| &p["podAffinityTerm"]));
        terms.any(|t| t["namespaces"].as_array().is_some_and(|n| !n.is_empty()) || t["namespaceSelector"].is_object())
    })
}

/// Whether a quota is about an object: all its scopes hold.
pub fn applies(quota: &Value, plural: &str, object: &Value) -> bool {
    let scopes = quota["spec"]["scopes"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let mut scopes = scopes.map(|s| (s, LabelOp::Exists));
    let selected = quota["spec"]["scopeSelector"]["matchExpressions"].as_array().into_iter().flatten();
    let mut selected = selected.map(|e| {
        let values =
            || e["values"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
        let operator = match e["operator"].as_str() {
            Some("In") => LabelOp::In(values()),
            Some("NotIn") => LabelOp::NotIn(values()),
            Some("DoesNotExist") => LabelOp::DoesNotExist,
            _ => LabelOp::Exists,
        };
        (e["scopeName"].as_str().unwrap_or_default(), operator)
    });
    scopes.all(|(scope, op)| has_scope(plural, object, scope, &op))
        && selected.all(|(scope, op)| has_scope(plural, object, scope, &op))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn shown(usage: &Usage) -> String {
        usage.iter().map(|(name, amount)| format!("{name}={amount}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn objects_use_what_they_are() {
        let container = |requests: Value| json!({"resources": {"requests": requests}});
        for (plural, object, expected) in [
            ("secrets", json!({}), "count/secrets=1 secrets=1"),
            ("events", json!({}), "count/events=1"),
            ("pods", json!({"status": {"phase": "Failed"}}), "count/pods=1"),
            (
                "pods",
                json!({"spec": {"containers": [{"resources": {"requests": {"cpu": "250m"}, "limits": {"memory": "128Mi"}}}]}}),
                "count/pods=1 cpu=250m limits.memory=128Mi pods=1 requests.cpu=250m",
            ),
            (
                "pods",
                json!({"spec": {"containers": [container(json!({"cpu": 1}))], "initContainers": [container(json!({"cpu": "3"}))]}}),
                "count/pods=1 cpu=3 pods=1 requests.cpu=3",
            ),
            (
                "pods",
                json!({"spec": {"containers": [container(json!({"a.example/gpu": "2"}))], "overhead": {"cpu": "1"}}}),
                "count/pods=1 cpu=1 pods=1 requests.a.example/gpu=2 requests.cpu=1",
            ),
            (
                "services",
                json!({"spec": {"type": "NodePort", "ports": [{}, {}]}}),
                "count/services=1 services=1 services.loadbalancers=0 services.nodeports=2",
            ),
            (
                "services",
                json!({"spec": {"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": [{}, {"nodePort": 1}]}}),
                "count/services=1 services=1 services.loadbalancers=1 services.nodeports=1",
            ),
            (
                "persistentvolumeclaims",
                json!({"spec": {"storageClassName": "s", "resources": {"requests": {"storage": "1Gi"}}}}),
                "count/persistentvolumeclaims=1 persistentvolumeclaims=1 requests.storage=1Gi \
                 s.storageclass.storage.k8s.io/persistentvolumeclaims=1 s.storageclass.storage.k8s.io/requests.storage=1Gi",
            ),
        ] {
            assert_eq!(shown(&usage("", plural, &object)), expected, "{plural} {object}");
        }
        assert_eq!(shown(&usage("apps", "deployments", &json!({}))), "count/deployments.apps=1");
    }

    #[test]
    fn scopes_choose_pods() {
        let quota = |scopes: Value| json!({"spec": {"scopes": scopes}});
        let class = |operator: &str, values: Value| json!({"spec": {"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": operator, "values": values}]}}});
        let plain = json!({"spec": {"containers": [{}]}});
        let busy = json!({"spec": {"activeDeadlineSeconds": 5, "priorityClassName": "high",
            "containers": [{"resources": {"limits": {"cpu": "1"}}}]}});
        for (quota, of_plain, of_busy) in [
            (quota(json!([])), true, true),
            (quota(json!(["Terminating"])), false, true),
            (quota(json!(["NotTerminating"])), true, false),
            (quota(json!(["BestEffort"])), true, false),
            (quota(json!(["NotBestEffort", "Terminating"])), false, true),
            (class("In", json!(["high"])), false, true),
            (class("NotIn", json!(["high"])), true, false),
            (class("Exists", json!([])), false, true),
        ] {
            assert_eq!(
                (applies(&quota, "pods", &plain), applies(&quota, "pods", &busy)),
                (of_plain, of_busy),
                "{quota}"
            );
        }
        assert!(!applies(&quota(json!(["BestEffort"])), "secrets", &json!({})));
    }
}
