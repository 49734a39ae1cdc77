//! Decides what a DaemonSet does on each node, and which old pods a rolling update takes away.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, PodSpec, Toleration};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;

use crate::history::REVISION_LABEL;
use crate::kept::Pod;
use crate::node::fit;
use crate::pods;

/// Taints that every daemon tolerates: key and effect.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
const NETWORK_UNAVAILABLE: (&str, &str) = ("node.kubernetes.io/network-unavailable", "NoSchedule");

/// Gives a pod the tolerations of daemons.
pub fn tolerate(spec: &mut PodSpec) {
    let host = spec.host_network == Some(true);
    let list = spec.tolerations.get_or_insert_default();
    for (key, effect) in TOLERATED.iter().chain(host.then_some(&NETWORK_UNAVAILABLE)) {
        let new = Toleration {
            key: Some((*key).into()),
            operator: Some("Exists".into()),
            effect: Some((*effect).into()),
            ..Toleration::default()
        };
        let same = |t: &Toleration| {
            (&t.key, &t.operator, &t.effect, &t.value) == (&new.key, &new.operator, &new.effect, &None)
        };
        if !list.iter().any(same) {
            list.push(new);
        }
    }
}

/// Whether a daemon is to be made on a node, and whether one that is there may stay. `spec` tolerates what daemons do.
pub fn belongs(spec: &PodSpec, node: &Node) -> (bool, bool) {
    let name = spec.node_name.as_deref().filter(|n| !n.is_empty());
    if name.is_some_and(|n| node.metadata.name.as_deref() != Some(n)) || !fit::chooses(spec, node) {
        return (false, false);
    }
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    if fit::tolerates_all(tolerations, node, &["NoSchedule", "NoExecute"]) {
        return (true, true);
    }
    (false, fit::tolerates_all(tolerations, node, &["NoExecute"]))
}

/// How a rolling update goes.
#[derive(Clone, Copy, Debug)]
pub struct Rolling {
    pub on_delete: bool,
    pub surge: usize,
    pub unavailable: usize,
    pub min_ready: i32,
}

impl Rolling {
    /// Of a set that is wanted on so many nodes.
    pub fn of(set: &DaemonSet, desired: usize) -> Self {
        let spec = set.spec.clone().unwrap_or_default();
        let strategy = spec.update_strategy.unwrap_or_default();
        let rolling = strategy.rolling_update.unwrap_or_default();
        // Both are rounded up.
        let share = |value: Option<IntOrString>, default: usize| match value {
            Some(IntOrString::Int(n)) => usize::try_from(n).unwrap_or(0),
            Some(IntOrString::String(text)) => {
                let percent: usize = text.trim_end_matches('%').parse().unwrap_or(0);
                (percent * desired).div_ceil(100)
            }
            None => default,
        };
        let surge = share(rolling.max_surge, 0);
        let unavailable = share(rolling.max_unavailable, usize::from(surge == 0));
        Self {
            on_delete: strategy.type_.as_deref() == Some("OnDelete"),
            surge,
            unavailable: if surge == 0 { unavailable.max(1) } else { unavailable },
            min_ready: spec.min_ready_seconds.unwrap_or(0),
        }
    }
}

/// A node and what the set has there.
pub struct Place {
    pub name: String,
    pub wanted: bool,
    pub may_stay: bool,
    /// The set's pods there that are not going, the oldest first.
    pub pods: Vec<Arc<Pod>>,
    /// Those that are going and have not ended.
    pub going: Vec<Arc<Pod>>,
}

impl Place {
    /// All that are there: those that are on the node before those that are meant for it, the oldest first.
    pub fn there(self) -> Vec<Arc<Pod>> {
        let mut all = self.pods;
        all.extend(self.going);
        all.sort_by_key(|p| {
            let placed = p.spec.as_ref().and_then(|s| s.node_name.as_deref()).is_some_and(|n| !n.is_empty());
            (!placed, p.metadata.creation_timestamp.as_ref().map(|t| t.0), p.metadata.name.clone())
        });
        all
    }
}

/// Why a pod is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    Misplaced,
    Surplus,
    Failed,
    Succeeded,
    Old,
}

/// What is to be done.
#[derive(Default)]
pub struct Plan {
    /// Nodes that get a pod.
    pub create: Vec<String>,
    /// Pods that go.
    pub delete: Vec<(Arc<Pod>, Why)>,
}

pub fn is_of(pod: &Pod, hash: &str) -> bool {
    pod.metadata.labels.as_ref().and_then(|l| l.get(REVISION_LABEL)).is_some_and(|h| h == hash)
}

/// Brings each node to what it should have, without regard to revisions.
pub fn manage(places: &[Place], rolling: &Rolling, hash: &str, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    for place in places {
        if !place.may_stay {
            plan.delete.extend(place.pods.iter().map(|p| (p.clone(), Why::Misplaced)));
            continue;
        }
        let mut running: Vec<&Arc<Pod>> = Vec::new();
        for pod in &place.pods {
            match pods::phase(pod) {
                "Failed" => plan.delete.push((pod.clone(), Why::Failed)),
                "Succeeded" => plan.delete.push((pod.clone(), Why::Succeeded)),
                _ => running.push(pod),
            }
        }
        let missing = match rolling.surge > 0 {
            // One that goes is no reason to wait.
            true => running.is_empty(),
            false => place.pods.is_empty() && place.going.is_empty(),
        };
        if place.wanted && missing {
            plan.create.push(place.name.clone());
        }
        if running.len() > 1 {
            plan.delete.extend(surplus(&running, rolling, hash, now));
        }
    }
    plan
}

/// Of several pods on a node one stays: the oldest; while one surges the oldest of the old and the oldest of the new, until
/// the new one is available.
fn surplus(running: &[&Arc<Pod>], rolling: &Rolling, hash: &str, now: Timestamp) -> Vec<(Arc<Pod>, Why)> {
    let mut keep: Vec<&Arc<Pod>> = Vec::new();
    let new = running.iter().find(|p| is_of(p, hash));
    let old = running.iter().find(|p| !is_of(p, hash));
    match (new, old) {
        (Some(new), Some(old)) if rolling.surge > 0 => {
            keep.push(new);
            if !pods::is_available(new, rolling.min_ready, now) && pods::is_available(old, rolling.min_ready, now) {
                keep.push(old);
            }
        }
        _ => keep.extend(running.first()),
    }
    let kept = |p: &Arc<Pod>| keep.iter().any(|k| k.metadata.uid == p.metadata.uid);
    running.iter().filter(|p| !kept(p)).map(|p| ((*p).clone(), Why::Surplus)).collect()
}

/// Takes old pods away, or makes new ones beside them, as far as surge and unavailability allow. `plan` is what is done
/// anyway.
pub fn roll(places: &[Place], rolling: &Rolling, hash: &str, now: Timestamp, plan: &mut Plan) {
    if rolling.on_delete {
        return;
    }
    let available = |p: &Arc<Pod>| pods::is_available(p, rolling.min_ready, now);
    let (mut unavailable, mut surging) = (0, 0);
    let (mut free, mut candidates) = (Vec::new(), Vec::new());
    for place in places.iter().filter(|p| p.wanted) {
        let running: Vec<&Arc<Pod>> = place.pods.iter().filter(|p| !pods::is_finished(p)).collect();
        let new = running.iter().find(|p| is_of(p, hash));
        let old = running.iter().find(|p| !is_of(p, hash));
        match (old, new) {
            (Some(old), None) if !place.going.is_empty() && rolling.surge == 0 => {
                let _ = old;
                unavailable += 1;
            }
            (Some(old), None) if !available(old) => {
                free.push((place, *old));
                unavailable += 1;
            }
            (Some(old), None) => candidates.push((place, *old)),
            (Some(_), Some(new)) if !available(new) => surging += 1,
            (None, Some(new)) if available(new) => {}
            (Some(_), Some(_)) => {}
            (None, _) => unavailable += 1,
        }
    }
    if rolling.surge == 0 {
        candidates.truncate(rolling.unavailable.saturating_sub(unavailable));
        let old = free.into_iter().chain(candidates).map(|(_, pod)| (pod.clone(), Why::Old));
        let taken: Vec<Option<String>> = plan.delete.iter().map(|(p, _)| p.metadata.uid.clone()).collect();
        plan.delete.extend(old.filter(|(p, _)| !taken.contains(&p.metadata.uid)));
    } else {
        candidates.truncate(rolling.surge.saturating_sub(surging));
        plan.create.extend(free.into_iter().chain(candidates).map(|(place, _)| place.name.clone()));
    }
}

/// The status.
pub fn status(
    set: &DaemonSet,
    places: &BTreeMap<String, (bool, Vec<Arc<Pod>>)>,
    hash: &str,
    collisions: Option<i32>,
    now: Timestamp,
) -> DaemonSetStatus {
    let min_ready = set.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
    let mut status = DaemonSetStatus::default();
    let (mut available, mut updated) = (0, 0);
    for (wanted, there) in places.values() {
        if !wanted {
            status.number_misscheduled += i32::from(!there.is_empty());
            continue;
        }
        status.desired_number_scheduled += 1;
        let Some(oldest) = there.first() else { continue };
        status.current_number_scheduled += 1;
        if pods::is_ready(oldest) {
            status.number_ready += 1;
            available += i32::from(pods::is_available(oldest, min_ready, now));
        }
        updated += i32::from(is_of(oldest, hash));
    }
    let some = |n: i32| (n > 0).then_some(n);
    status.observed_generation = set.metadata.generation;
    status.number_available = some(available);
    status.updated_number_scheduled = some(updated);
    status.number_unavailable = some(status.desired_number_scheduled - available);
    status.collision_count = collisions;
    status.conditions = set.status.as_ref().and_then(|s| s.conditions.clone());
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    /// `r`eady, `p`ending, `f`ailed, `s`ucceeded; a capital letter is of the new revision.
    fn place(name: &str, text: &str, wanted: bool, may_stay: bool) -> Place {
        let pod = |(i, c): (usize, char)| {
            let lower = c.to_ascii_lowercase();
            let phase = match lower {
                'p' => "Pending",
                'f' => "Failed",
                's' => "Succeeded",
                _ => "Running",
            };
            let ready = if lower == 'r' { "True" } else { "False" };
            let hash = if c.is_uppercase() { "new" } else { "old" };
            Arc::new(
                serde_json::from_value(json!({"metadata": {"uid": format!("{name}{i}{c}"), "labels": {REVISION_LABEL: hash}},
                    "spec": {"containers": []}, "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]}}))
                .unwrap(),
            )
        };
        Place {
            name: name.into(),
            wanted,
            may_stay,
            pods: text.chars().enumerate().map(pod).collect(),
            going: Vec::new(),
        }
    }

    fn shown(plan: &Plan) -> String {
        let gone = plan.delete.iter().map(|(p, _)| format!("-{}", p.metadata.uid.as_deref().unwrap()));
        plan.create.iter().map(|n| format!("+{n}")).chain(gone).collect::<Vec<_>>().join(" ")
    }

    fn rolling(surge: usize, unavailable: usize) -> Rolling {
        Rolling { on_delete: false, surge, unavailable, min_ready: 0 }
    }

    #[test]
    fn nodes_get_what_they_should_have() {
        for (what, place, surge, expected) in [
            ("missing", place("a", "", true, true), 0, "+a"),
            ("there", place("a", "R", true, true), 0, ""),
            ("not for it", place("a", "R", false, false), 0, "-a0R"),
            ("tolerated once there", place("a", "R", false, true), 0, ""),
            ("failed", place("a", "F", true, true), 0, "-a0F"),
            ("ended", place("a", "S", true, true), 0, "-a0S"),
            ("two", place("a", "RR", true, true), 0, "-a1R"),
            ("surging", place("a", "rP", true, true), 1, ""),
            ("surged", place("a", "rR", true, true), 1, "-a0r"),
        ] {
            assert_eq!(shown(&manage(&[place], &rolling(surge, 1), "new", NOW)), expected, "{what}");
        }
        let going = || Place { going: place("a", "r", true, true).pods, ..place("a", "", true, true) };
        assert_eq!(shown(&manage(&[going()], &rolling(0, 1), "new", NOW)), "", "the old one must be gone first");
        assert_eq!(shown(&manage(&[going()], &rolling(1, 0), "new", NOW)), "+a", "two may be there at once");
    }

    #[test]
    fn one_that_goes_is_counted_until_it_is_gone() {
        for (text, going, expected) in
            [("", "R", (1, 1, 1)), ("", "P", (1, 0, 1)), ("P", "", (1, 0, 1)), ("", "", (0, 0, 0))]
        {
            let place = Place { going: place("a", going, true, true).pods, ..place("a", text, true, true) };
            let places = BTreeMap::from([(place.name.clone(), (true, place.there()))]);
            let status = status(&DaemonSet::default(), &places, "new", None, NOW);
            let updated = status.updated_number_scheduled.unwrap_or(0);
            assert_eq!((status.current_number_scheduled, status.number_ready, updated), expected, "{text} {going}");
        }
    }

    #[test]
    fn updates_keep_their_bounds() {
        for (what, texts, rolling, expected) in [
            ("one at a time", ["r", "r", "r"], rolling(0, 1), "-a0r"),
            ("two at a time", ["r", "r", "r"], rolling(0, 2), "-a0r -b0r"),
            ("waits", ["P", "r", "r"], rolling(0, 1), ""),
            ("sick ones are free", ["P", "p", "r"], rolling(0, 1), "-b0p"),
            ("but count", ["p", "r", "r"], rolling(0, 1), "-a0p"),
            ("and leave the rest", ["p", "r", "r"], rolling(0, 2), "-a0p -b0r"),
            ("done", ["R", "R", "R"], rolling(0, 1), ""),
            ("surges", ["r", "r", "r"], rolling(1, 0), "+a"),
            ("surge is full", ["rP", "r", "r"], rolling(1, 0), ""),
        ] {
            let places: Vec<Place> =
                ["a", "b", "c"].iter().zip(texts).map(|(name, text)| place(name, text, true, true)).collect();
            let mut plan = Plan::default();
            roll(&places, &rolling, "new", NOW, &mut plan);
            assert_eq!(shown(&plan), expected, "{what}");
        }
    }

    #[test]
    fn taints_and_tolerations() {
        let node = |taints: Value| -> Node {
            serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": {"taints": taints}})).unwrap()
        };
        let mut spec = PodSpec::default();
        tolerate(&mut spec);
        tolerate(&mut spec);
        assert_eq!(spec.tolerations.as_ref().map(Vec::len), Some(6));
        for (taints, expected) in [
            (json!([]), (true, true)),
            (json!([{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]), (true, true)),
            (json!([{"key": "x", "effect": "NoSchedule"}]), (false, true)),
            (json!([{"key": "x", "effect": "NoExecute"}]), (false, false)),
            (json!([{"key": "x", "effect": "PreferNoSchedule"}]), (true, true)),
        ] {
            assert_eq!(belongs(&spec, &node(taints.clone())), expected, "{taints}");
        }
        spec.node_name = Some("other".into());
        assert_eq!(belongs(&spec, &node(json!([]))), (false, false));
    }
}
