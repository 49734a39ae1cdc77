//! Judges one node: its conditions when it has been silent for too long, and the taints that follow from conditions.
//!
//! All of this is pure; [`super::lifecycle`] brings the time and the last sign of life.

use std::borrow::Cow;

use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Conditions that become unknown when nothing is heard.
const JUDGED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// Condition, status, and the taint that keeps new pods away while it holds.
const SCHEDULE_TAINTS: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
];

/// Status of the Ready condition: "True", "False" or "Unknown".
pub fn ready_status(node: &Node) -> &str {
    let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().find(|c| c.type_ == "Ready").map_or("Unknown", |c| c.status.as_str())
}

/// The node with its conditions unknown, because it has been silent; `None` if they say so already.
pub fn silenced(node: &Node, now: &Time) -> Option<Node> {
    let known = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let is_unknown = |kind: &str| known.iter().find(|c| c.type_ == kind).is_some_and(|c| c.status == "Unknown");
    // A node that stays silent is looked at again and again.
    if JUDGED.into_iter().all(is_unknown) {
        return None;
    }
    let mut new = node.clone();
    let conditions = new.status.get_or_insert_default().conditions.get_or_insert_default();
    for kind in JUDGED {
        match conditions.iter_mut().find(|c| c.type_ == kind) {
            None => {
                conditions.push(NodeCondition {
                    type_: kind.into(),
                    status: "Unknown".into(),
                    reason: Some("NodeStatusNeverUpdated".into()),
                    message: Some("Kubelet never posted node status.".into()),
                    last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                    last_transition_time: Some(now.clone()),
                });
            }
            Some(condition) if condition.status != "Unknown" => {
                condition.status = "Unknown".into();
                condition.reason = Some("NodeStatusUnknown".into());
                condition.message = Some("Kubelet stopped posting node status.".into());
                condition.last_transition_time = Some(now.clone());
            }
            Some(_) => {}
        }
    }
    Some(new)
}

fn taint(key: &str, effect: &str, now: &Time) -> Taint {
    // A NoSchedule taint says nothing of time; for NoExecute tolerations are counted from it.
    let added = (effect == "NoExecute").then(|| now.clone());
    Taint { key: key.into(), effect: effect.into(), time_added: added, ..Taint::default() }
}

/// The taints that the node should have. `evict` says whether a NoExecute taint may be put on now: its zone allows it.
/// Those of others are left as they are. `None` if nothing changes.
pub fn taints(node: &Node, evict: bool, now: &Time) -> Option<Vec<Taint>> {
    let before = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    // Most looks change nothing, and copy nothing.
    let mut after = Cow::Borrowed(before);
    let mut settle = |key: &str, effect: &str, wanted: bool| {
        let there = after.iter().any(|t| t.key == key && t.effect == effect);
        if wanted && !there {
            after.to_mut().push(taint(key, effect, now));
        } else if !wanted && there {
            after.to_mut().retain(|t| t.key != key || t.effect != effect);
        }
    };
    for (kind, status, key) in SCHEDULE_TAINTS {
        // A node that never said anything is not ready.
        let holds = conditions.iter().any(|c| c.type_ == kind && c.status == status);
        settle(key, "NoSchedule", holds || (key == NOT_READY && !conditions.iter().any(|c| c.type_ == "Ready")));
    }
    settle(UNSCHEDULABLE, "NoSchedule", node.spec.as_ref().is_some_and(|s| s.unschedulable == Some(true)));
    let ready = conditions.iter().find(|c| c.type_ == "Ready").map(|c| c.status.as_str());
    let has = |key: &str| before.iter().any(|t| t.key == key && t.effect == "NoExecute");
    for (key, holds) in [(NOT_READY, ready == Some("False")), (UNREACHABLE, ready == Some("Unknown"))] {
        settle(key, "NoExecute", holds && (evict || has(key) || has(other(key))));
    }
    match after {
        Cow::Owned(after) if after != before => Some(after),
        _ => None,
    }
}

/// A node that goes from one to the other is not spared in between.
fn other(key: &str) -> &'static str {
    if key == NOT_READY { UNREACHABLE } else { NOT_READY }
}

/// The taints without the NoExecute ones for health; `None` if it has none.
pub fn spared(node: &Node) -> Option<Vec<Taint>> {
    let before = node.spec.as_ref()?.taints.as_ref()?;
    let ours = |t: &Taint| t.effect == "NoExecute" && (t.key == NOT_READY || t.key == UNREACHABLE);
    before.iter().any(ours).then(|| before.iter().filter(|t| !ours(t)).cloned().collect())
}

/// Whether the node waits for a NoExecute taint.
pub fn wants_eviction(node: &Node) -> bool {
    let key = match ready_status(node) {
        "False" => NOT_READY,
        "Unknown" if node.status.as_ref().is_some_and(|s| s.conditions.is_some()) => UNREACHABLE,
        _ => return false,
    };
    !node.spec.iter().flat_map(|s| s.taints.iter().flatten()).any(|t| t.effect == "NoExecute" && t.key == key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn node(conditions: Value, taints: Value, unschedulable: bool) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"taints": taints, "unschedulable": unschedulable}, "status": {"conditions": conditions}}))
        .unwrap()
    }

    fn shown(taints: Option<Vec<Taint>>) -> String {
        let Some(taints) = taints else { return "same".into() };
        let mut shown: Vec<String> = taints
            .iter()
            .map(|t| format!("{}:{}", t.key.trim_start_matches("node.kubernetes.io/"), t.effect))
            .collect();
        shown.sort();
        shown.join(" ")
    }

    #[test]
    fn silence_makes_conditions_unknown_once() {
        let now = Time("2026-01-01T00:01:00Z".parse().unwrap());
        let quiet = silenced(&node(json!([{"type": "Ready", "status": "True"}]), json!([]), false), &now).unwrap();
        let conditions = quiet.status.as_ref().unwrap().conditions.as_ref().unwrap();
        let reasons: Vec<(&str, &str)> =
            conditions.iter().map(|c| (c.status.as_str(), c.reason.as_deref().unwrap())).collect();
        assert_eq!(reasons[0], ("Unknown", "NodeStatusUnknown"));
        assert!(reasons[1..].iter().all(|r| *r == ("Unknown", "NodeStatusNeverUpdated")) && reasons.len() == 4);
        assert_eq!(silenced(&quiet, &now), None);
    }

    #[test]
    fn taints_follow_the_conditions() {
        let now = Time("2026-01-01T00:01:00Z".parse().unwrap());
        let ready = |status: &str| json!([{"type": "Ready", "status": status}]);
        let unreachable =
            json!([{"key": UNREACHABLE, "effect": "NoSchedule"}, {"key": UNREACHABLE, "effect": "NoExecute"}]);
        let mine = json!([{"key": "mine", "effect": "NoExecute"}]);
        for (what, node, evict, expected) in [
            ("new", node(Value::Null, json!([]), false), true, "not-ready:NoSchedule"),
            ("ready", node(ready("True"), unreachable.clone(), false), true, ""),
            ("not ready", node(ready("False"), json!([]), false), true, "not-ready:NoExecute not-ready:NoSchedule"),
            ("zone is down", node(ready("Unknown"), json!([]), false), false, "unreachable:NoSchedule"),
            ("unreachable", node(ready("Unknown"), unreachable.clone(), false), false, "same"),
            (
                "is back but sick",
                node(ready("False"), unreachable, false),
                false,
                "not-ready:NoExecute not-ready:NoSchedule",
            ),
            ("others stay", node(ready("True"), mine.clone(), true), true, "mine:NoExecute unschedulable:NoSchedule"),
            ("nothing to do", node(ready("True"), mine, false), true, "same"),
            (
                "pressure",
                node(
                    json!([{"type": "Ready", "status": "True"}, {"type": "DiskPressure", "status": "True"}]),
                    json!([]),
                    false,
                ),
                true,
                "disk-pressure:NoSchedule",
            ),
        ] {
            assert_eq!(shown(taints(&node, evict, &now)), expected, "{what}");
        }
    }

    #[test]
    fn a_zone_that_is_down_spares_its_nodes() {
        let taints = json!([{"key": UNREACHABLE, "effect": "NoSchedule"}, {"key": UNREACHABLE, "effect": "NoExecute"}]);
        let tainted = node(json!([{"type": "Ready", "status": "Unknown"}]), taints, false);
        assert_eq!(shown(spared(&tainted)), "unreachable:NoSchedule");
        assert!(!wants_eviction(&tainted));
        let untainted = node(json!([{"type": "Ready", "status": "Unknown"}]), json!([]), false);
        assert!(wants_eviction(&untainted) && spared(&untainted).is_none());
    }
}
