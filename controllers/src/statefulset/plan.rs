//! Decides the next steps of a StatefulSet: which pods are made, deleted or corrected, in the order of ordinals.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetStatus};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;

use super::identity::revision;
use crate::kept::Pod;
use crate::pods;

/// A step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make the pod of this ordinal, of the current revision or of the update's.
    Create(i32, Revision),
    /// Delete the pod of this ordinal: it is beyond the size, or of an old revision.
    Delete(i32),
    /// Delete the pod of this ordinal, which has ended, so that it is made anew.
    Restart(i32),
    /// Correct identity and claims of the pod of this ordinal.
    Check(i32),
}

/// Which template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revision {
    Current,
    Update,
}

/// The set as the plan sees it.
#[derive(Clone, Debug)]
pub struct Shape {
    pub start: i32,
    pub replicas: i32,
    pub ordered: bool,
    pub on_delete: bool,
    pub partition: i32,
    pub max_unavailable: i32,
    pub min_ready: i32,
}

impl Shape {
    pub fn of(set: &StatefulSet) -> Self {
        let spec = set.spec.clone().unwrap_or_default();
        let strategy = spec.update_strategy.unwrap_or_default();
        let rolling = strategy.rolling_update.unwrap_or_default();
        let replicas = spec.replicas.unwrap_or(1);
        let unavailable = match rolling.max_unavailable {
            Some(IntOrString::Int(n)) => n,
            Some(IntOrString::String(text)) => {
                let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
                (percent * i64::from(replicas) / 100) as i32
            }
            None => 1,
        };
        Self {
            start: spec.ordinals.and_then(|o| o.start).unwrap_or(0),
            replicas,
            ordered: spec.pod_management_policy.as_deref() != Some("Parallel"),
            on_delete: strategy.type_.as_deref() == Some("OnDelete"),
            partition: rolling.partition.unwrap_or(0),
            max_unavailable: unavailable.max(1),
            min_ready: spec.min_ready_seconds.unwrap_or(0),
        }
    }

    /// Whether the ordinal is one that the set should have.
    pub fn holds(&self, ordinal: i32) -> bool {
        ordinal >= self.start && ordinal < self.start.saturating_add(self.replicas)
    }

    /// A pod made now is of the old revision below the partition.
    fn revision(&self, ordinal: i32) -> Revision {
        let old = !self.on_delete && ordinal < self.start.saturating_add(self.partition);
        if old { Revision::Current } else { Revision::Update }
    }

    fn is_available(&self, pod: &Pod, now: Timestamp) -> bool {
        pods::phase(pod) == "Running" && !pods::is_going(pod) && pods::is_available(pod, self.min_ready, now)
    }
}

/// Pods by ordinal.
pub type Pods = BTreeMap<i32, Arc<Pod>>;

/// The next steps. A pod that needs a check is checked whatever else happens.
pub fn steps(shape: &Shape, pods: &Pods, update: &str, now: Timestamp) -> Vec<Step> {
    let mut steps = Vec::new();
    if !fill(shape, pods, now, &mut steps) {
        return steps;
    }
    if !shrink(shape, pods, now, &mut steps) {
        return steps;
    }
    if !shape.on_delete && !steps.iter().any(|s| matches!(s, Step::Create(..) | Step::Delete(_) | Step::Restart(_))) {
        roll(shape, pods, update, now, &mut steps);
    }
    steps
}

/// Makes what is missing, upwards; an ordered set waits for each pod before the next. False if it waits.
fn fill(shape: &Shape, pods: &Pods, now: Timestamp, steps: &mut Vec<Step>) -> bool {
    for ordinal in shape.start..shape.start.saturating_add(shape.replicas) {
        let waits = match pods.get(&ordinal) {
            None => {
                steps.push(Step::Create(ordinal, shape.revision(ordinal)));
                true
            }
            Some(pod) if pods::is_finished(pod) => {
                if !pods::is_going(pod) {
                    steps.push(Step::Restart(ordinal));
                }
                true
            }
            Some(pod) => {
                if !pods::is_going(pod) {
                    steps.push(Step::Check(ordinal));
                }
                !shape.is_available(pod, now)
            }
        };
        if waits && shape.ordered {
            return false;
        }
    }
    true
}

/// Deletes what is beyond the size, downwards. An ordered set waits for each to be gone; it comes here only when all that
/// stay are well. False if it waits.
fn shrink(shape: &Shape, pods: &Pods, now: Timestamp, steps: &mut Vec<Step>) -> bool {
    let condemned: Vec<(&i32, &Arc<Pod>)> = pods.iter().rev().filter(|(o, _)| !shape.holds(**o)).collect();
    let unwell = |pod: &Pod| pods::is_going(pod) || !shape.is_available(pod, now);
    let first_unwell = condemned.iter().rev().find(|(_, p)| unwell(p)).map(|(o, _)| **o);
    for (ordinal, pod) in condemned {
        if pods::is_going(pod) {
            if shape.ordered {
                return false;
            }
            continue;
        }
        // An ordered set takes one that is not well only if it is the first such.
        if shape.ordered && !shape.is_available(pod, now) && first_unwell != Some(*ordinal) {
            return false;
        }
        steps.push(Step::Delete(*ordinal));
        if shape.ordered {
            return false;
        }
    }
    true
}

/// Deletes pods of old revisions, downwards to the partition, well or not: one that is not well is in nobody's way below.
/// It waits for those of the new revision, and no more than allowed are away at a time.
fn roll(shape: &Shape, pods: &Pods, update: &str, now: Timestamp, steps: &mut Vec<Step>) {
    let lowest = shape.start.saturating_add(shape.partition);
    let mut left = usize::try_from(shape.max_unavailable).unwrap_or(1);
    for (ordinal, pod) in pods.iter().rev().filter(|(o, _)| shape.holds(**o) && **o >= lowest) {
        let old = revision(pod) != update && !pods::is_going(pod);
        if old {
            steps.push(Step::Delete(*ordinal));
        }
        if old || !shape.is_available(pod, now) {
            left -= 1;
        }
        if left == 0 {
            return;
        }
    }
}

/// The status; `current` and `update` are names of revisions.
pub fn status(
    shape: &Shape,
    set: &StatefulSet,
    pods: &Pods,
    (current, update): (&str, &str),
    collisions: i32,
    now: Timestamp,
) -> StatefulSetStatus {
    let all: Vec<&Arc<Pod>> = pods.values().collect();
    let count = |test: &dyn Fn(&Pod) -> bool| all.iter().filter(|p| test(p)).count() as i32;
    let some = |n: i32| (n > 0).then_some(n);
    let running = |p: &Pod| pods::phase(p) == "Running" && pods::is_ready(p);
    let replicas = all.len() as i32;
    let ready = count(&running);
    let available = count(&|p| running(p) && pods::is_available(p, shape.min_ready, now));
    let of = |name: &str| count(&|p: &Pod| !pods::is_going(p) && revision(p) == name);
    let (mut current_replicas, updated) = (of(current), of(update));
    let mut current = current.to_owned();
    // The roll-out is done when every pod is of the new revision and ready.
    if !shape.on_delete && updated == shape.replicas && ready == shape.replicas {
        (current, current_replicas) = (update.to_owned(), updated);
    }
    StatefulSetStatus {
        observed_generation: set.metadata.generation,
        replicas,
        ready_replicas: some(ready),
        available_replicas: Some(available),
        current_replicas: some(current_replicas),
        updated_replicas: some(updated),
        current_revision: Some(current),
        update_revision: Some(update.to_owned()),
        collision_count: Some(collisions),
        conditions: set.status.as_ref().and_then(|s| s.conditions.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// `r`eady, `p`ending, `g`oing, `f`ailed; a capital letter is of the new revision.
    fn pods(text: &str) -> Pods {
        let pod = |c: char| {
            let ready = matches!(c.to_ascii_lowercase(), 'r' | 'g');
            let phase = match c.to_ascii_lowercase() {
                'p' => "Pending",
                'f' => "Failed",
                _ => "Running",
            };
            let mut value = json!({"metadata": {"labels": {"controller-revision-hash": if c.is_uppercase() { "new" } else { "old" }}},
                "spec": {"containers": []}, "status": {"phase": phase, "conditions":
                    [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}});
            if c.eq_ignore_ascii_case(&'g') {
                value["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            }
            Arc::new(serde_json::from_value(value).unwrap())
        };
        text.chars().enumerate().filter(|(_, c)| *c != '-').map(|(i, c)| (i as i32, pod(c))).collect()
    }

    fn shape(replicas: i32) -> Shape {
        Shape { start: 0, replicas, ordered: true, on_delete: false, partition: 0, max_unavailable: 1, min_ready: 0 }
    }

    fn shown(shape: &Shape, text: &str) -> String {
        let steps = steps(shape, &pods(text), "new", Timestamp::UNIX_EPOCH);
        let show = |step: &Step| match step {
            Step::Create(o, Revision::Current) => Some(format!("+{o}old")),
            Step::Create(o, Revision::Update) => Some(format!("+{o}")),
            Step::Delete(o) => Some(format!("-{o}")),
            Step::Restart(o) => Some(format!("!{o}")),
            Step::Check(_) => None,
        };
        steps.iter().filter_map(show).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn ordered_sets_go_one_by_one() {
        for (what, replicas, pods, expected) in [
            ("the first", 3, "", "+0"),
            ("waits for the first", 3, "P", ""),
            ("the second", 3, "R", "+1"),
            ("a gap is filled first", 3, "R-R", "+1"),
            ("a failed one is made anew", 2, "RF", "!1"),
            ("shrinks from the top", 1, "RRR", "-2"),
            ("waits for what goes", 1, "RRG", ""),
            ("from the top whatever is below", 1, "RPR", "-2"),
            ("one that is not well may go", 1, "RRP", "-2"),
            ("a sick one below stops it", 1, "PRR", ""),
            ("of several sick ones only the lowest may go", 1, "RPP", ""),
            ("rolls from the top", 3, "rrr", "-2"),
            ("waits for the new one", 3, "rrP", ""),
            ("rolls on", 3, "rrR", "-1"),
            ("is done", 3, "RRR", ""),
            ("to nothing", 0, "R", "-0"),
        ] {
            assert_eq!(shown(&shape(replicas), pods), expected, "{what}");
        }
    }

    #[test]
    fn variants() {
        let parallel = |n| Shape { ordered: false, ..shape(n) };
        assert_eq!(shown(&parallel(3), "P"), "+1 +2");
        assert_eq!(shown(&parallel(1), "RPR"), "-2 -1");
        assert_eq!(shown(&parallel(3), "rrr"), "-2");
        assert_eq!(shown(&parallel(3), "rrP"), "");
        assert_eq!(shown(&parallel(3), "rrp"), "-2");
        assert_eq!(shown(&parallel(3), "prr"), "-2", "a sick one below stops nothing");
        assert_eq!(shown(&parallel(3), "prG"), "", "one that goes is waited for");
        assert_eq!(shown(&parallel(3), "prR"), "-1");
        assert_eq!(shown(&Shape { max_unavailable: 2, ..shape(4) }, "rrrr"), "-3 -2");
        assert_eq!(shown(&Shape { partition: 2, ..shape(3) }, "rrr"), "-2");
        assert_eq!(shown(&Shape { partition: 2, ..shape(3) }, "rrR"), "");
        assert_eq!(shown(&Shape { partition: 2, ..shape(3) }, "r"), "+1old");
        assert_eq!(shown(&Shape { on_delete: true, ..shape(2) }, "rr"), "");
        assert_eq!(shown(&Shape { start: 2, ..shape(1) }, "R"), "+2");
        assert_eq!(shown(&Shape { start: 1, ..shape(1) }, "RR"), "-0");
    }

    #[test]
    fn counts_and_the_end_of_a_rollout() {
        let set = StatefulSet::default();
        for (text, expected) in [
            ("rr", (2, Some(2), Some(2), None, "old")),
            ("rR", (2, Some(2), Some(1), Some(1), "old")),
            ("rP", (2, Some(1), Some(1), Some(1), "old")),
            ("RR", (2, Some(2), Some(2), Some(2), "new")),
            ("RG", (2, Some(2), None, Some(1), "old")),
            ("", (0, None, None, None, "old")),
        ] {
            let s = status(&shape(2), &set, &pods(text), ("old", "new"), 0, Timestamp::UNIX_EPOCH);
            let found = (
                s.replicas,
                s.ready_replicas,
                s.current_replicas,
                s.updated_replicas,
                s.current_revision.as_deref().unwrap(),
            );
            assert_eq!(found, expected, "{text}");
        }
    }
}
