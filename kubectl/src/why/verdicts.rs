//! What the scheduler itself says of each node for a pod, as a table.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;

use crate::value::Read;

/// Nodes that are shown one by one; what the others say is counted.
const SHOWN_NODES: usize = 50;

/// The server's explanation of where a pod goes, for people.
pub fn table(answer: &Value) -> String {
    let mut out = format!("pod {} (scheduler {})", answer["pod"].text(), answer["scheduler"].text());
    out += &match answer["currentNode"].text() {
        "" => ", not on a node\n".to_owned(),
        node => format!(", on {node}; below as if it were not placed\n"),
    };
    if let Some(why) = answer["blocked"].as_str() {
        let _ = writeln!(out, "blocked: {why}");
    }
    if answer["group"].is_object() {
        let _ = writeln!(out, "{}", group(&answer["group"]));
    }
    let nodes = answer["nodes"].items();
    let best = answer["best"].items();
    match best {
        [] => out += "no node can take it now\n",
        [one] => {
            let _ = writeln!(out, "would go to {}", one.text());
        }
        [first, ..] => {
            let _ =
                writeln!(out, "would go to one of {} nodes with the same score, such as {}", best.len(), first.text());
        }
    }
    if nodes.is_empty() {
        return out;
    }
    let shown = &nodes[..nodes.len().min(SHOWN_NODES)];
    let width = shown.iter().map(|node| node["node"].text().len()).max().unwrap_or(0).max(4);
    let _ = writeln!(out, "\n{:<width$}  {:>5}  WHY", "NODE", "SCORE");
    for node in shown {
        let score = node["score"].as_i64().map_or("-".to_owned(), |score| score.to_string());
        let _ = writeln!(out, "{:<width$}  {score:>5}  {}", node["node"].text(), why(node));
    }
    out + &rest(&nodes[shown.len()..])
}

/// How the group of pods stands that a pod is scheduled with.
fn group(group: &Value) -> String {
    let number = |key: &str| group[key].as_u64().unwrap_or(0);
    let (name, pods, scheduled, fits) = (group["name"].text(), number("pods"), number("scheduled"), number("wouldFit"));
    let stands = format!("{pods} pods are there, {scheduled} have nodes, {fits} more would have them now");
    match group["policy"].text() {
        "" => format!("pod group {name} does not exist"),
        "gang" => format!("pod group {name}: at least {} pods together; {stands}", number("minCount")),
        policy => format!("pod group {name} ({policy}): {stands}"),
    }
}

/// Which plugin refuses a node and why, or how its score adds up.
fn why(node: &Value) -> String {
    if let Some(plugin) = node["refusedBy"].as_str() {
        let reasons: Vec<&str> = node["reasons"].items().iter().map(Read::text).collect();
        return format!("{plugin}: {}", reasons.join(", "));
    }
    let scores = node["scores"].as_object().into_iter().flatten();
    scores.map(|(plugin, score)| format!("{plugin}={score}")).collect::<Vec<_>>().join(" ")
}

/// What nodes say that are not shown.
fn rest(nodes: &[Value]) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for node in nodes {
        let said = if node["refusedBy"].is_string() { why(node) } else { "can take it".to_owned() };
        *counts.entry(said).or_default() += 1;
    }
    let lines = counts.iter().map(|(said, count)| format!("and {count} more: {said}\n"));
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nodes_are_shown_or_counted() {
        let refusing = |i: usize| json!({"node": format!("n{i}"), "refusedBy": "NodeResourcesFit", "reasons": ["Insufficient cpu"]});
        let mut nodes =
            vec![json!({"node": "best", "score": 310, "scores": {"TaintToleration": 300, "ImageLocality": 10}})];
        nodes.extend((0..60).map(refusing));
        let answer = json!({"pod": "d/p", "scheduler": "s", "best": ["best"], "nodes": nodes});
        let text = table(&answer);
        assert!(text.starts_with("pod d/p (scheduler s), not on a node\nwould go to best\n"), "{text}");
        assert!(text.contains("best    310  ImageLocality=10 TaintToleration=300\n"), "{text}");
        assert!(text.contains("n0        -  NodeResourcesFit: Insufficient cpu\n"), "{text}");
        assert!(text.ends_with("and 11 more: NodeResourcesFit: Insufficient cpu\n"), "{text}");
        for (group, expected) in [
            (json!({"name": "g", "pods": 1}), "pod group g does not exist\n"),
            (
                json!({"name": "g", "policy": "gang", "minCount": 4, "pods": 4, "scheduled": 0, "wouldFit": 3}),
                "pod group g: at least 4 pods together; 4 pods are there, 0 have nodes, 3 more would have them now\n",
            ),
            (
                json!({"name": "g", "policy": "basic", "pods": 2, "scheduled": 1, "wouldFit": 0}),
                "pod group g (basic): 2 pods are there, 1 have nodes, 0 more would have them now\n",
            ),
        ] {
            let text = table(&json!({"pod": "d/p", "scheduler": "s", "group": group}));
            assert!(text.contains(expected), "{text}");
        }
        let blocked = table(&json!({"pod": "d/p", "scheduler": "s", "currentNode": "n", "blocked": "gated"}));
        assert!(
            blocked.contains("on n; below") && blocked.contains("blocked: gated\nno node can take it now\n"),
            "{blocked}"
        );
    }
}
