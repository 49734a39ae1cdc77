//! The answer to `keelson what-if`, for people: pods by node, and those that find none by reason.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;

/// Pods that are named of those that share a line.
const NAMED: usize = 4;

/// An answer as a table.
pub fn table(answer: &Value) -> String {
    let pairs = |key: &str| -> Vec<(String, String)> {
        let entries = answer[key].as_object().into_iter().flatten();
        entries.map(|(pod, what)| (pod.clone(), what.as_str().unwrap_or_default().to_owned())).collect()
    };
    let list = |key: &str| -> Vec<String> {
        let entries = answer[key].as_array().into_iter().flatten();
        entries.map(|pod| pod.as_str().unwrap_or_default().to_owned()).collect()
    };
    let (placed, refused) = (pairs("placed"), pairs("unschedulable"));
    let (preempted, lost) = (list("preempted"), list("lost"));
    if placed.len() + refused.len() + preempted.len() + lost.len() == 0 {
        return "nothing would change\n".into();
    }
    let waiting = list("waiting");
    let new = refused.len().saturating_sub(waiting.len());
    let mut out = format!("{} would find a node, {new} would not", pods(placed.len()));
    if !waiting.is_empty() {
        let _ = write!(out, ", {} more that find none now still would not", waiting.len());
    }
    for (some, what) in [(&preempted, "pushed out"), (&lost, "gone for good: no controller makes them anew")] {
        if !some.is_empty() {
            let _ = write!(out, ", {} would be {what}", some.len());
        }
    }
    out.push('\n');
    let nodes = grouped(placed);
    if !nodes.is_empty() {
        let width = nodes.keys().map(String::len).max().unwrap_or(0).max(4);
        let _ = writeln!(out, "\n{:<width$}  {:>5}  WHICH", "NODE", "PODS");
        for (node, pods) in &nodes {
            let _ = writeln!(out, "{node:<width$}  {:>5}  {}", pods.len(), names(pods));
        }
    }
    for (why, pods) in grouped(refused) {
        let _ = writeln!(out, "\nno node for {}: {why}", names(&pods));
    }
    for (some, what) in [(preempted, "pushed out"), (lost, "gone")] {
        if !some.is_empty() {
            let _ = writeln!(out, "\n{what}: {}", names(&some));
        }
    }
    out
}

fn pods(count: usize) -> String {
    if count == 1 { "1 pod".into() } else { format!("{count} pods") }
}

/// Pods by what is said of them, in the order of their names with numbers as numbers.
fn grouped(pairs: Vec<(String, String)>) -> BTreeMap<String, Vec<String>> {
    let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (pod, what) in pairs {
        groups.entry(what).or_default().push(pod);
    }
    for pods in groups.values_mut() {
        pods.sort_by(|a, b| (a.len(), a).cmp(&(b.len(), b)));
    }
    groups
}

fn names(pods: &[String]) -> String {
    let shown = pods[..pods.len().min(NAMED)].join(", ");
    match pods.len().checked_sub(NAMED) {
        None | Some(0) => shown,
        Some(more) => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pods_are_grouped() {
        assert_eq!(table(&json!({"placed": {}, "unschedulable": {}, "preempted": []})), "nothing would change\n");
        let many: BTreeMap<String, &str> = (0..12).map(|i| (format!("d/p-{i}"), "no room")).collect();
        let text = table(&json!({"placed": {"d/a": "n1", "d/b": "n1", "d/c": "node-2"}, "unschedulable": many,
            "preempted": ["d/low"], "lost": ["d/bare"], "waiting": ["d/p-1", "d/p-2"]}));
        let expected = "3 pods would find a node, 10 would not, 2 more that find none now still would not, 1 would be pushed out, 1 would be gone for good: no \
            controller makes them anew\n\nNODE     PODS  WHICH\nn1          2  d/a, d/b\nnode-2      1  d/c\n\nno node for \
            d/p-0, d/p-1, d/p-2, d/p-3 and 8 more: no room\n\npushed out: d/low\n\ngone: d/bare\n";
        assert_eq!(text, expected);
    }
}
