//! Groups of pods (`PodGroup` of KEP-4671) as the scheduler knows them: their policy, who belongs to them, and what their status
//! says. Empty where no pod names a group.
//!
//! Invariant: a pod belongs to the group that it names from when it is first seen until it is gone or has ended.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::view::PodInfo;
use crate::wire;

/// The condition of a group that says whether it is scheduled.
pub const CONDITION: &str = "PodGroupScheduled";
/// What pods of a gang wait for whose group lacks some.
const TOO_FEW: &str = "waiting for minCount pods from a gang to appear in scheduling queue";

/// Namespace and name of a group.
pub type GroupKey = (Arc<str>, Arc<str>);

/// The group that a pod names.
pub fn key_of(pod: &PodInfo) -> Option<GroupKey> {
    pod.class.group.clone().map(|name| (pod.class.namespace.clone(), name))
}

/// How the pods of a group are scheduled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Each for itself.
    Basic,
    /// This many together, or none.
    Gang(usize),
}

/// What a group's status says of its scheduling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Its pods have nodes.
    pub scheduled: bool,
    /// One word.
    pub reason: Arc<str>,
    /// For people.
    pub message: Arc<str>,
    /// The generation of the group that it is about.
    pub generation: i64,
    /// Since when it is so, if that is known.
    pub since: Option<Arc<str>>,
}

/// A group.
#[derive(Debug, Default)]
struct Group {
    /// None: the object is not there.
    policy: Option<Policy>,
    uid: Arc<str>,
    generation: i64,
    told: Option<Told>,
    /// Uids of its pods, waiting or with a node.
    pods: BTreeSet<Arc<str>>,
}

/// All groups.
#[derive(Debug, Default)]
pub struct PodGroups {
    groups: HashMap<GroupKey, Group>,
    /// The groups of pods, by uid.
    of: HashMap<Arc<str>, GroupKey>,
}

impl PodGroups {
    /// Takes over an object.
    pub fn set(&mut self, object: &wire::PodGroup) -> GroupKey {
        let (meta, policy) = (&object.metadata, &object.spec.scheduling_policy);
        let key: GroupKey = (meta.namespace.as_str().into(), meta.name.as_str().into());
        let group = self.groups.entry(key.clone()).or_default();
        let gang = policy.gang.as_ref().map(|gang| Policy::Gang(usize::try_from(gang.min_count).unwrap_or(0)));
        group.policy = Some(gang.unwrap_or(Policy::Basic));
        (group.uid, group.generation) = (meta.uid.as_str().into(), meta.generation);
        let condition = object.status.conditions.iter().find(|condition| condition.kind == CONDITION);
        group.told = condition.map(|condition| Told {
            scheduled: condition.status == "True",
            reason: condition.reason.as_str().into(),
            message: condition.message.as_str().into(),
            generation: condition.observed_generation,
            since: condition.last_transition_time.as_deref().map(Into::into),
        });
        key
    }

    /// The object is gone.
    pub fn remove(&mut self, namespace: &str, name: &str) {
        let key: GroupKey = (namespace.into(), name.into());
        if let Some(group) = self.groups.get_mut(&key) {
            *group = Group { pods: std::mem::take(&mut group.pods), ..Group::default() };
        }
        self.forget_if_empty(&key);
    }

    /// A pod is there. Whether it is new to its group.
    pub fn join(&mut self, pod: &PodInfo, key: &GroupKey) -> bool {
        let new = self.groups.entry(key.clone()).or_default().pods.insert(pod.uid.clone());
        if new {
            self.of.insert(pod.uid.clone(), key.clone());
        }
        new
    }

    /// A pod is gone.
    pub fn leave(&mut self, uid: &str) {
        let Some(key) = self.of.remove(uid) else { return };
        if let Some(group) = self.groups.get_mut(&key) {
            group.pods.remove(uid);
        }
        self.forget_if_empty(&key);
    }

    fn forget_if_empty(&mut self, key: &GroupKey) {
        if self.groups.get(key).is_some_and(|group| group.policy.is_none() && group.pods.is_empty()) {
            self.groups.remove(key);
        }
    }

    /// The group of a pod by its uid.
    pub fn of(&self, uid: &str) -> Option<&GroupKey> {
        self.of.get(uid)
    }

    /// Uids of a group's pods, in an order that is always the same.
    pub fn pods(&self, key: &GroupKey) -> impl Iterator<Item = &Arc<str>> {
        self.groups.get(key).into_iter().flat_map(|group| &group.pods)
    }

    /// How the pods of a group are scheduled; `None`: the group is not there.
    pub fn policy(&self, key: &GroupKey) -> Option<Policy> {
        self.groups.get(key)?.policy
    }

    /// What keeps all pods of a group from being tried.
    pub fn blocked(&self, key: &GroupKey) -> Option<String> {
        let group = self.groups.get(key);
        match group.and_then(|group| group.policy) {
            None => Some(format!("waiting for pods's pod group {:?} to appear in scheduling queue", key.1)),
            Some(Policy::Gang(least)) if group.map_or(0, |group| group.pods.len()) < least => Some(TOO_FEW.into()),
            Some(_) => None,
        }
    }

    /// Notes what is to be said of a group, unless its status says it already or says that it was scheduled once: that stays.
    /// Returns the group's uid and what to write.
    pub fn tell(&mut self, key: &GroupKey, scheduled: bool, reason: &str, message: &str) -> Option<(Arc<str>, Told)> {
        let group = self.groups.get_mut(key).filter(|group| group.policy.is_some())?;
        let known = group.told.as_ref();
        if known.is_some_and(|known| known.scheduled && !scheduled) {
            return None;
        }
        let since = known.filter(|known| known.scheduled == scheduled).and_then(|known| known.since.clone());
        let told =
            Told { scheduled, reason: reason.into(), message: message.into(), generation: group.generation, since };
        if known.is_some_and(|known| Told { since: known.since.clone(), ..told.clone() } == *known) {
            return None;
        }
        group.told = Some(told.clone());
        Some((group.uid.clone(), told))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn group(name: &str, policy: Value, conditions: Value) -> wire::PodGroup {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "d", "uid": "u"},
            "spec": {"schedulingPolicy": policy}, "status": {"conditions": conditions}}))
        .unwrap()
    }

    #[test]
    fn what_keeps_pods_waiting() {
        let key: GroupKey = ("d".into(), "g".into());
        let pod = |uid: &str| {
            crate::view::View::default().compile(&serde_json::from_value(json!({"metadata": {"uid": uid}})).unwrap())
        };
        for (policy, pods, expected) in [
            (None, 3, Some("waiting for pods's pod group \"g\" to appear in scheduling queue")),
            (Some(json!({"basic": {}})), 1, None),
            (Some(json!({"gang": {"minCount": 3}})), 2, Some(TOO_FEW)),
            (Some(json!({"gang": {"minCount": 3}})), 3, None),
        ] {
            let mut groups = PodGroups::default();
            for i in 0..pods {
                assert!(groups.join(&pod(&i.to_string()), &key));
                assert!(!groups.join(&pod(&i.to_string()), &key), "it is known");
            }
            if let Some(policy) = policy.clone() {
                assert_eq!(groups.set(&group("g", policy, json!([]))), key);
            }
            assert_eq!(groups.blocked(&key).as_deref(), expected, "{policy:?}");
            for i in 0..pods {
                groups.leave(&i.to_string());
            }
            groups.remove("d", "g");
            assert!(groups.groups.is_empty() && groups.of.is_empty(), "nothing is kept");
        }
    }

    #[test]
    fn conditions_are_written_when_they_change() {
        let condition = |status: &str, reason: &str, message: &str| {
            json!([{"type": CONDITION, "status": status, "reason": reason, "message": message,
                "lastTransitionTime": "2026-01-01T00:00:00Z"}])
        };
        let key: GroupKey = ("d".into(), "g".into());
        for (is, (scheduled, reason), written, keeps_time) in [
            (json!([]), (false, "Unschedulable"), true, false),
            (json!([]), (true, "Scheduled"), true, false),
            (condition("False", "Unschedulable", "m"), (false, "Unschedulable"), false, false),
            (condition("False", "Unschedulable", "other"), (false, "Unschedulable"), true, true),
            (condition("False", "Unschedulable", "m"), (true, "Scheduled"), true, false),
            (condition("True", "Scheduled", "m"), (true, "Scheduled"), false, false),
            (condition("True", "Scheduled", "m"), (false, "Unschedulable"), false, false),
        ] {
            let mut groups = PodGroups::default();
            groups.set(&group("g", json!({"basic": {}}), is.clone()));
            let told = groups.tell(&key, scheduled, reason, "m");
            assert_eq!(told.is_some(), written, "{is} {scheduled}");
            assert_eq!(told.is_some_and(|(_, told)| told.since.is_some()), keeps_time, "{is} {scheduled}");
            assert!(groups.tell(&key, scheduled, reason, "m").is_none(), "once");
        }
        assert!(PodGroups::default().tell(&key, true, "Scheduled", "").is_none(), "there is no object to say it of");
    }
}
