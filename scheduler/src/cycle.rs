//! One cycle: filter the nodes, score those left, choose.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, PodSpec, Taint, Toleration};
use rand::seq::IndexedRandom;

use crate::resources::{Amounts, add, milli, occupies, requests};

/// What became of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It goes to this node.
    Node(String),
    /// It fits nowhere; why, as upstream words it.
    Nowhere(String),
}

/// A node as filters and scores see it.
struct Place<'a> {
    node: &'a Node,
    name: &'a str,
    free: Amounts,
    total: Amounts,
    ports: HashSet<(String, i32)>,
    /// Pods per owner: pods of one owner are spread.
    owners: HashMap<String, usize>,
}

/// Places the waiting pods in order. `random` breaks ties.
pub fn decide(
    waiting: &[Arc<Pod>],
    nodes: &[Arc<Node>],
    pods: &[Arc<Pod>],
    random: &mut impl rand::Rng,
) -> Vec<(Arc<Pod>, Decision)> {
    let mut places: Vec<Place<'_>> = nodes.iter().map(|node| place(node)).collect();
    places.sort_by_key(|p| p.name);
    let index: HashMap<&str, usize> = places.iter().enumerate().map(|(i, p)| (p.name, i)).collect();
    for pod in pods.iter().filter(|p| occupies(p)) {
        let Some(spec) = &pod.spec else { continue };
        if let Some(at) = spec.node_name.as_deref().and_then(|n| index.get(n)) {
            take(&mut places[*at], pod, spec);
        }
    }
    let mut decisions = Vec::with_capacity(waiting.len());
    for pod in waiting {
        let Some(spec) = &pod.spec else { continue };
        let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
        let mut best: Vec<usize> = Vec::new();
        let mut best_score = i64::MIN;
        for (i, place) in places.iter().enumerate() {
            let refusals = filter(place, spec);
            if !refusals.is_empty() {
                for reason in refusals {
                    *reasons.entry(reason).or_default() += 1;
                }
                continue;
            }
            let score = score(place, pod, spec);
            if score > best_score {
                best_score = score;
                best.clear();
            }
            if score == best_score {
                best.push(i);
            }
        }
        let decision = match best.choose(random) {
            Some(&i) => {
                take(&mut places[i], pod, spec);
                Decision::Node(places[i].name.to_owned())
            }
            None => Decision::Nowhere(message(places.len(), &reasons)),
        };
        decisions.push((pod.clone(), decision));
    }
    decisions
}

fn message(nodes: usize, reasons: &BTreeMap<String, usize>) -> String {
    if nodes == 0 {
        return "no nodes available to schedule pods".into();
    }
    let mut parts: Vec<String> = reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    parts.sort();
    format!("0/{nodes} nodes are available: {}.", parts.join(", "))
}

fn place(node: &Node) -> Place<'_> {
    let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref());
    let total: Amounts =
        allocatable.into_iter().flatten().map(|(name, quantity)| (name.clone(), milli(quantity))).collect();
    let name = node.metadata.name.as_deref().unwrap_or_default();
    Place { node, name, free: total.clone(), total, ports: HashSet::new(), owners: HashMap::new() }
}

fn wanted(spec: &PodSpec) -> Amounts {
    let mut wanted = requests(spec);
    add(&mut wanted, &Amounts::from([("pods".to_owned(), 1000)]));
    wanted
}

fn host_ports(spec: &PodSpec) -> impl Iterator<Item = (String, i32)> + '_ {
    let ports = spec.containers.iter().flat_map(|c| c.ports.iter().flatten());
    ports
        .filter_map(|p| p.host_port.filter(|n| *n > 0).map(|n| (p.protocol.clone().unwrap_or_else(|| "TCP".into()), n)))
}

fn owner(pod: &Pod) -> Option<String> {
    let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
    owners.iter().find(|o| o.controller == Some(true)).map(|o| o.uid.clone())
}

fn take(place: &mut Place<'_>, pod: &Pod, spec: &PodSpec) {
    for (name, amount) in wanted(spec) {
        *place.free.entry(name).or_default() -= amount;
    }
    place.ports.extend(host_ports(spec));
    if let Some(owner) = owner(pod) {
        *place.owners.entry(owner).or_default() += 1;
    }
}

/// Why a node does not take a pod; empty if it does.
fn filter(place: &Place<'_>, spec: &PodSpec) -> Vec<String> {
    let node_spec = place.node.spec.as_ref();
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let unschedulable =
        Taint { key: "node.kubernetes.io/unschedulable".into(), effect: "NoSchedule".into(), ..Taint::default() };
    if node_spec.and_then(|s| s.unschedulable).unwrap_or(false)
        && !tolerations.iter().any(|t| tolerates(t, &unschedulable))
    {
        return vec!["node(s) were unschedulable".into()];
    }
    for taint in node_spec.and_then(|s| s.taints.as_deref()).unwrap_or_default() {
        if matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute")
            && !tolerations.iter().any(|t| tolerates(t, taint))
        {
            return vec![format!(
                "node(s) had untolerated taint {{{}: {}}}",
                taint.key,
                taint.value.as_deref().unwrap_or_default()
            )];
        }
    }
    let labels = place.node.metadata.labels.as_ref();
    let chosen = spec.node_selector.iter().flatten().all(|(k, v)| labels.and_then(|l| l.get(k)) == Some(v));
    if !chosen || !affine(place, spec) {
        return vec!["node(s) didn't match Pod's node affinity/selector".into()];
    }
    if host_ports(spec).any(|port| place.ports.contains(&port)) {
        return vec!["node(s) didn't have free ports for the requested pod ports".into()];
    }
    let lacking =
        |(name, amount): (&String, &i128)| *amount > place.free.get(name).copied().unwrap_or(0) && *amount > 0;
    wanted(spec)
        .iter()
        .filter(|x| lacking(*x))
        .map(|(name, _)| if name == "pods" { "Too many pods".into() } else { format!("Insufficient {name}") })
        .collect()
}

/// Required node affinity: one of the terms must hold.
fn affine(place: &Place<'_>, spec: &PodSpec) -> bool {
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let Some(required) = affinity.and_then(|n| n.required_during_scheduling_ignored_during_execution.as_ref()) else {
        return true;
    };
    let labels = place.node.metadata.labels.as_ref();
    required.node_selector_terms.iter().any(|term| {
        let expressions = term.match_expressions.as_deref().unwrap_or_default();
        let fields = term.match_fields.as_deref().unwrap_or_default();
        let holds = |operator: &str, values: &[String], actual: Option<&str>| {
            let listed = actual.is_some_and(|a| values.iter().any(|v| v == a));
            let numbers = || Some((actual?.parse::<i64>().ok()?, values.first()?.parse::<i64>().ok()?));
            match operator {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => actual.is_some(),
                "DoesNotExist" => actual.is_none(),
                "Gt" => numbers().is_some_and(|(a, v)| a > v),
                "Lt" => numbers().is_some_and(|(a, v)| a < v),
                _ => false,
            }
        };
        // A term without requirements selects nothing.
        !(expressions.is_empty() && fields.is_empty())
            && expressions.iter().all(|e| {
                let actual = labels.and_then(|l| l.get(&e.key)).map(String::as_str);
                holds(&e.operator, e.values.as_deref().unwrap_or_default(), actual)
            })
            && fields.iter().all(|e| {
                e.key == "metadata.name"
                    && holds(&e.operator, e.values.as_deref().unwrap_or_default(), Some(place.name))
            })
    })
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    let exists = toleration.operator.as_deref() == Some("Exists");
    (effect.is_empty() || effect == taint.effect)
        && (key == taint.key || (key.is_empty() && exists))
        && (exists || toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default())
}

/// Higher is better: free resources (LeastAllocated over cpu and memory), few pods of the same owner.
fn score(place: &Place<'_>, pod: &Pod, spec: &PodSpec) -> i64 {
    let wanted = wanted(spec);
    let free_share = |name: &str| {
        let total = place.total.get(name).copied().unwrap_or(0);
        if total <= 0 {
            return 0;
        }
        let left = place.free.get(name).copied().unwrap_or(0) - wanted.get(name).copied().unwrap_or(0);
        (left.max(0) * 100 / total) as i64
    };
    let least_allocated = (free_share("cpu") + free_share("memory")) / 2;
    let same = owner(pod).and_then(|o| place.owners.get(&o).copied()).unwrap_or(0);
    // Spreading weighs twice as much as resources, as PodTopologySpread does upstream.
    least_allocated + 2 * (100 - 10 * (same.min(10) as i64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use serde_json::{Value, json};

    fn node(name: &str, spec: Value) -> Arc<Node> {
        let value = json!({"metadata": {"name": name, "labels": {"host": name}}, "spec": spec,
            "status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "3"}}});
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn pod(name: &str, spec: Value) -> Arc<Pod> {
        let mut spec = spec;
        if spec["containers"].is_null() {
            spec["containers"] = json!([{"name": "c"}]);
        }
        let owner =
            json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true}]);
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "ownerReferences": owner}, "spec": spec}))
                .unwrap(),
        )
    }

    #[test]
    fn decisions() {
        let cpu = |n: &str| json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": n}}}]});
        let port = json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]});
        let tainted = json!({"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]});
        let plain = || vec![node("a", json!({})), node("b", json!({}))];
        for (what, nodes, pods, expected) in [
            ("pods of one owner are spread", plain(), vec![json!({}), json!({})], vec!["a|b", "a|b"]),
            (
                "resources run out",
                vec![node("a", json!({}))],
                vec![cpu("1500m"), cpu("1")],
                vec!["a", "0/1 nodes are available: 1 Insufficient cpu."],
            ),
            (
                "a taint",
                vec![node("a", tainted.clone())],
                vec![json!({})],
                vec!["0/1 nodes are available: 1 node(s) had untolerated taint {k: v}."],
            ),
            (
                "a toleration",
                vec![node("a", tainted)],
                vec![json!({"tolerations": [{"key": "k", "operator": "Exists"}]})],
                vec!["a"],
            ),
            ("a selector", plain(), vec![json!({"nodeSelector": {"host": "b"}})], vec!["b"]),
            (
                "a host port",
                plain(),
                vec![port.clone(), port.clone(), port],
                vec![
                    "a|b",
                    "a|b",
                    "0/2 nodes are available: 2 node(s) didn't have free ports for the requested pod ports.",
                ],
            ),
            (
                "cordoned",
                vec![node("a", json!({"unschedulable": true}))],
                vec![json!({})],
                vec!["0/1 nodes are available: 1 node(s) were unschedulable."],
            ),
            ("no nodes", vec![], vec![json!({})], vec!["no nodes available to schedule pods"]),
        ] {
            let pods: Vec<Arc<Pod>> =
                pods.into_iter().enumerate().map(|(i, spec)| pod(&format!("p{i}"), spec)).collect();
            let mut random = rand::rngs::StdRng::seed_from_u64(1);
            let got = decide(&pods, &nodes, &[], &mut random);
            let texts: Vec<String> = got
                .into_iter()
                .map(|(_, d)| match d {
                    Decision::Node(n) => n,
                    Decision::Nowhere(m) => m,
                })
                .collect();
            assert_eq!(texts.len(), expected.len());
            for (text, expected) in texts.iter().zip(&expected) {
                assert!(
                    text == expected || (expected.contains('|') && expected.split('|').any(|e| e == text)),
                    "{what}: {texts:?}"
                );
            }
            if what.contains("spread") {
                assert_ne!(texts[0], texts[1], "{what}");
            }
        }
    }
}
