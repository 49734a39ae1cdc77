//! Why each node does or does not take a pod, from what the API shows.

use std::collections::BTreeMap;

use keelson_machinery::quantity::Quantity;
use serde_json::Value;

use super::Answer;
use crate::describe::requests_of;
use crate::failure::Outcome;
use crate::session::Session;
use crate::value::{Read, quantity};

/// Nodes that are listed; of more only the numbers by reason.
const SHOWN_NODES: usize = 20;

/// Says of each node what speaks against it.
pub async fn nodes(session: &Session, pod: &Value, level: usize, answer: &mut Answer) -> Outcome {
    let nodes = session.get("/api/v1/nodes").await?;
    let pods = session.get("/api/v1/pods?fieldSelector=status.phase!%3DSucceeded,status.phase!%3DFailed").await?;
    let nodes = nodes["items"].items();
    if nodes.is_empty() {
        answer.say(level, "there are no nodes");
        answer.advise("add a node");
        return Ok(());
    }
    let mut by_reason: BTreeMap<String, usize> = BTreeMap::new();
    answer.say(level, format!("nodes ({}):", nodes.len()));
    for (at, node) in nodes.iter().enumerate() {
        let reasons = against(pod, node, pods["items"].items());
        let name = node["metadata"]["name"].text();
        if at < SHOWN_NODES {
            let text = if reasons.is_empty() { "nothing speaks against it".to_owned() } else { reasons.join("; ") };
            answer.say(level + 1, format!("{name}: {text}"));
        }
        for reason in reasons {
            *by_reason.entry(reason.split(':').next().unwrap_or(&reason).to_owned()).or_default() += 1;
        }
    }
    if nodes.len() > SHOWN_NODES {
        answer.say(level + 1, format!("and {} more", nodes.len() - SHOWN_NODES));
        by_reason.iter().for_each(|(reason, count)| answer.say(level + 1, format!("{count} of all: {reason}")));
    }
    for reason in by_reason.keys() {
        match reason.as_str() {
            "cpu" | "memory" | "ephemeral-storage" => {
                answer.advise(format!("ask for less {reason}, add nodes, or take pods off the nodes"));
            }
            "labels" => answer.advise("correct the pod's nodeSelector or node affinity, or label a node"),
            "taint" => answer.advise("give the pod a toleration, or take the taint off a node"),
            "cordoned" => answer.advise("kubectl uncordon a node"),
            _ => {}
        }
    }
    Ok(())
}

fn against(pod: &Value, node: &Value, pods: &[Value]) -> Vec<String> {
    let mut reasons = Vec::new();
    let spec = &pod["spec"];
    let name = node["metadata"]["name"].text();
    if node["spec"]["unschedulable"].is_true() {
        reasons.push("cordoned".to_owned());
    }
    for taint in node["spec"]["taints"].items() {
        let effect = taint["effect"].text();
        if taint["key"] == "node.kubernetes.io/unschedulable" || effect == "PreferNoSchedule" {
            continue;
        }
        if !spec["tolerations"].items().iter().any(|t| tolerates(t, taint)) {
            let value = taint["value"].text();
            let sign = if value.is_empty() { "" } else { "=" };
            reasons.push(format!("taint: {}{sign}{value}:{effect} is not tolerated", taint["key"].text()));
        }
    }
    let labels = &node["metadata"]["labels"];
    for (key, value) in spec["nodeSelector"].pairs() {
        if labels[key] != value {
            reasons.push(format!("labels: {key}={value} is wanted, it has {}", or_none(labels[key].text())));
        }
    }
    let terms =
        spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"].items();
    if !terms.is_empty() && !terms.iter().any(|t| term_fits(t, labels, name)) {
        reasons.push("labels: no term of the required node affinity fits".to_owned());
    }
    reasons.extend(room(pod, node, pods));
    reasons
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "none" } else { text }
}

fn tolerates(toleration: &Value, taint: &Value) -> bool {
    let effect = toleration["effect"].text();
    let key = toleration["key"].text();
    (effect.is_empty() || taint["effect"] == effect)
        && (key.is_empty() || taint["key"] == key)
        && (toleration["operator"] == "Exists" || toleration["value"].text() == taint["value"].text())
}

fn term_fits(term: &Value, labels: &Value, name: &str) -> bool {
    let by = |rule: &Value, have: Option<&str>| {
        let values = rule["values"].texts();
        let number = |text: &str| text.parse::<i64>().ok();
        match rule["operator"].text() {
            "In" => have.is_some_and(|h| values.contains(&h)),
            "NotIn" => have.is_none_or(|h| !values.contains(&h)),
            "Exists" => have.is_some(),
            "DoesNotExist" => have.is_none(),
            "Gt" => have.and_then(number) > values.first().and_then(|v| number(v)),
            "Lt" => have.and_then(number).is_some() && have.and_then(number) < values.first().and_then(|v| number(v)),
            _ => false,
        }
    };
    let expressions = term["matchExpressions"].items().iter().all(|rule| by(rule, labels[rule["key"].text()].as_str()));
    expressions && term["matchFields"].items().iter().all(|rule| by(rule, Some(name)))
}

/// What of the node's resources is missing.
fn room(pod: &Value, node: &Value, pods: &[Value]) -> Vec<String> {
    let name = &node["metadata"]["name"];
    let own = &pod["metadata"]["uid"];
    let on_node: Vec<&Value> =
        pods.iter().filter(|p| p["spec"]["nodeName"] == *name && p["metadata"]["uid"] != *own).collect();
    let whole = &node["status"]["allocatable"];
    let mut reasons = Vec::new();
    for (resource, asked) in requests_of(pod) {
        let all = quantity(&whole[&resource]);
        let none = Quantity::from_millis(0);
        let taken = on_node.iter().filter_map(|p| requests_of(p).remove(&resource)).fold(none, |sum, q| sum + q);
        let free = all - taken;
        if asked > free {
            let free = if free.is_negative() { "nothing".to_owned() } else { free.to_string() };
            reasons.push(format!("{resource}: {asked} is asked for, {free} of {all} is free"));
        }
    }
    let most = quantity(&whole["pods"]).units();
    if most > 0 && on_node.len() as i64 >= most {
        reasons.push(format!("pods: it has {} of at most {most}", on_node.len()));
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_speaks_against_a_node() {
        let node = |spec: Value| {
            json!({"metadata": {"name": "n", "labels": {"a": "b"}}, "spec": spec,
            "status": {"allocatable": {"cpu": "1", "pods": "10"}}})
        };
        let pod = |spec: Value| json!({"metadata": {"uid": "1"}, "spec": spec});
        let asks = |cpu: &str| json!({"containers": [{"resources": {"requests": {"cpu": cpu}}}]});
        let mut other = pod(asks("600m"));
        other["metadata"]["uid"] = "2".into();
        other["spec"]["nodeName"] = "n".into();
        let tainted = json!({"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]});
        for (pod, node, expected) in [
            (pod(asks("400m")), node(json!({})), vec![]),
            (pod(asks("500m")), node(json!({})), vec!["cpu: 500m is asked for, 400m of 1 is free"]),
            (pod(json!({"nodeSelector": {"a": "c"}})), node(json!({})), vec!["labels: a=c is wanted, it has b"]),
            (pod(json!({})), node(tainted.clone()), vec!["taint: k=v:NoSchedule is not tolerated"]),
            (pod(json!({"tolerations": [{"operator": "Exists"}]})), node(tainted), vec![]),
            (pod(json!({})), node(json!({"unschedulable": true})), vec!["cordoned"]),
        ] {
            assert_eq!(against(&pod, &node, std::slice::from_ref(&other)), expected);
        }
    }
}
