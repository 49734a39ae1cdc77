//! The flow schemas and priority levels of every cluster. Clients and tools read them; requests here share one limit.

use serde_json::{Value, json};

/// A priority level: its name, shares, percentage that it lends, and queues (number, hand, length; 0: it rejects).
type Level = (&'static str, i64, i64, [i64; 3]);

const LEVELS: &[Level] = &[
    ("catch-all", 5, 0, [0, 0, 0]),
    ("global-default", 20, 50, [128, 6, 50]),
    ("leader-election", 10, 0, [16, 4, 50]),
    ("node-high", 40, 25, [64, 6, 50]),
    ("system", 30, 33, [64, 6, 50]),
    ("workload-high", 40, 50, [128, 6, 50]),
    ("workload-low", 100, 90, [128, 6, 50]),
];

/// What the requests of a flow schema are about.
#[derive(Clone, Copy)]
enum Rules {
    Everything,
    Probes,
    Leases,
    Nodes,
}

/// A flow schema: its name, priority level, precedence, what tells its flows apart, its subjects
/// (`user:`, `group:`, `account:namespace/name`) and its rules.
type Schema = (&'static str, &'static str, i64, &'static str, &'static [&'static str], Rules);

const EVERYBODY: &[&str] = &["group:system:unauthenticated", "group:system:authenticated"];

const SCHEMAS: &[Schema] = &[
    ("exempt", "exempt", 1, "", &["group:system:masters"], Rules::Everything),
    ("probes", "exempt", 2, "", EVERYBODY, Rules::Probes),
    (
        "system-leader-election",
        "leader-election",
        100,
        "ByUser",
        &["user:system:kube-controller-manager", "user:system:kube-scheduler", "account:kube-system/*"],
        Rules::Leases,
    ),
    ("system-node-high", "node-high", 400, "ByUser", &["group:system:nodes"], Rules::Nodes),
    ("system-nodes", "system", 500, "ByUser", &["group:system:nodes"], Rules::Everything),
    (
        "kube-controller-manager",
        "workload-high",
        800,
        "ByNamespace",
        &["user:system:kube-controller-manager"],
        Rules::Everything,
    ),
    ("kube-scheduler", "workload-high", 800, "ByNamespace", &["user:system:kube-scheduler"], Rules::Everything),
    (
        "kube-system-service-accounts",
        "workload-high",
        900,
        "ByNamespace",
        &["account:kube-system/*"],
        Rules::Everything,
    ),
    ("service-accounts", "workload-low", 9000, "ByUser", &["group:system:serviceaccounts"], Rules::Everything),
    ("global-default", "global-default", 9900, "ByUser", EVERYBODY, Rules::Everything),
    ("catch-all", "catch-all", 10_000, "ByUser", EVERYBODY, Rules::Everything),
];

/// The objects.
pub fn objects() -> Vec<Value> {
    let exempt = json!({"type": "Exempt", "exempt": {"lendablePercent": 0, "nominalConcurrencyShares": 0}});
    let levels = LEVELS.iter().map(level).chain([object("PriorityLevelConfiguration", "exempt", exempt, json!({}))]);
    levels.chain(SCHEMAS.iter().map(schema)).collect()
}

fn object(kind: &str, name: &str, spec: Value, status: Value) -> Value {
    json!({
        "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": kind,
        "metadata": {"name": name, "generation": 1, "annotations": {"apf.kubernetes.io/autoupdate-spec": "true"}},
        "spec": spec, "status": status,
    })
}

fn level((name, shares, lendable, [queues, hand, length]): &Level) -> Value {
    let response = match queues {
        0 => json!({"type": "Reject"}),
        _ => json!({"type": "Queue", "queuing": {"queues": queues, "handSize": hand, "queueLengthLimit": length}}),
    };
    let limited = json!({"nominalConcurrencyShares": shares, "lendablePercent": lendable, "limitResponse": response});
    object("PriorityLevelConfiguration", name, json!({"type": "Limited", "limited": limited}), json!({}))
}

fn subject(text: &&str) -> Value {
    match text.split_once(':') {
        Some(("group", name)) => json!({"kind": "Group", "group": {"name": name}}),
        Some(("account", place)) => {
            let (namespace, name) = place.split_once('/').unwrap_or((place, "*"));
            json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": namespace, "name": name}})
        }
        Some((_, name)) => json!({"kind": "User", "user": {"name": name}}),
        None => json!({"kind": "User", "user": {"name": text}}),
    }
}

fn schema((name, level, precedence, distinguisher, subjects, rules): &Schema) -> Value {
    let mut rule = match rules {
        Rules::Everything => json!({
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true, "namespaces": ["*"]}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
        }),
        Rules::Probes => {
            json!({"nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz", "/livez"]}]})
        }
        Rules::Leases => json!({"resourceRules": [
            {"verbs": ["get", "create", "update"], "apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "namespaces": ["*"]},
        ]}),
        Rules::Nodes => json!({"resourceRules": [
            {"verbs": ["*"], "apiGroups": [""], "resources": ["nodes", "nodes/status"], "clusterScope": true, "namespaces": ["*"]},
            {"verbs": ["*"], "apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "namespaces": ["*"]},
        ]}),
    };
    rule["subjects"] = subjects.iter().map(subject).collect();
    let mut spec =
        json!({"priorityLevelConfiguration": {"name": level}, "matchingPrecedence": precedence, "rules": [rule]});
    if !distinguisher.is_empty() {
        spec["distinguisherMethod"] = json!({"type": distinguisher});
    }
    object("FlowSchema", name, spec, json!({}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemas_name_levels_that_exist() {
        let all = objects();
        let names = |kind: &str| -> Vec<Value> {
            all.iter().filter(|o| o["kind"] == kind).map(|o| o["metadata"]["name"].clone()).collect()
        };
        let levels = names("PriorityLevelConfiguration");
        assert_eq!((levels.len(), names("FlowSchema").len()), (8, 11));
        for object in all.iter().filter(|o| o["kind"] == "FlowSchema") {
            let level = &object["spec"]["priorityLevelConfiguration"]["name"];
            assert!(levels.contains(level), "{level}");
        }
    }
}
