//! The ReplicaSets of a Deployment: which is of its template, their revisions, and the annotations that they carry.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::owners::controller_reference;

pub const HASH_LABEL: &str = "pod-template-hash";
pub const REVISION: &str = "deployment.kubernetes.io/revision";
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations of a Deployment that its ReplicaSets do not take over.
const OWN_ANNOTATIONS: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];
/// Whether an annotation of a Deployment is not taken over by its ReplicaSets.
pub fn is_own_annotation(key: &str) -> bool {
    OWN_ANNOTATIONS.contains(&key)
}

/// Longest revision history that is kept.
const HISTORY_BYTES: usize = 2000;

pub fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0)
}

pub fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0)
}

pub fn actual(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |s| s.replicas)
}

pub fn name(set: &ReplicaSet) -> &str {
    set.metadata.name.as_deref().unwrap_or_default()
}

fn annotation<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// The revision of a set, 0 if it has none.
pub fn revision(metadata: &ObjectMeta) -> i64 {
    annotation(metadata, REVISION).and_then(|r| r.parse().ok()).unwrap_or(0)
}

/// The size of the Deployment when the set was last scaled.
pub fn desired(set: &ReplicaSet) -> Option<i32> {
    annotation(&set.metadata, DESIRED)?.parse().ok()
}

/// The most pods of the Deployment when the set was last scaled.
pub fn max_before(set: &ReplicaSet) -> Option<i32> {
    annotation(&set.metadata, MAX)?.parse().ok()
}

/// Size and limits of a roll-out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub wanted: i32,
    pub surge: i32,
    pub unavailable: i32,
    pub recreate: bool,
}

/// A number or a share of `total`; surge is rounded up, unavailability down.
fn share(value: Option<&IntOrString>, total: i32, up: bool) -> i32 {
    match value {
        Some(IntOrString::Int(n)) => *n,
        Some(IntOrString::String(text)) => {
            let percent: i32 = text.trim_end_matches('%').parse().unwrap_or(0);
            let product = i64::from(percent) * i64::from(total);
            (if up { (product + 99) / 100 } else { product / 100 }) as i32
        }
        None => 0,
    }
}

impl Bounds {
    pub fn of(spec: &DeploymentSpec) -> Self {
        let wanted = spec.replicas.unwrap_or(1);
        let strategy = spec.strategy.as_ref();
        if strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate") {
            return Self { wanted, surge: 0, unavailable: 0, recreate: true };
        }
        let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
        let surge = share(rolling.and_then(|r| r.max_surge.as_ref()), wanted, true);
        let mut unavailable = share(rolling.and_then(|r| r.max_unavailable.as_ref()), wanted, false);
        if surge == 0 && unavailable == 0 {
            // Both round to nothing: without one of them there is no progress.
            unavailable = 1;
        }
        Self { wanted, surge, unavailable: unavailable.min(wanted), recreate: false }
    }

    pub fn maximum(&self) -> i32 {
        self.wanted + self.surge
    }
}

/// A name for a template: the same template always has the same, until a collision is counted.
fn template_hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    crate::history::hash(&serde_json::to_vec(template).unwrap_or_default(), collisions)
}

/// Whether a set is of the Deployment's template; the label with the hash does not count.
pub fn is_of_template(set: &ReplicaSet, template: &PodTemplateSpec) -> bool {
    let Some(theirs) = set.spec.as_ref().and_then(|s| s.template.as_ref()) else { return false };
    let without_hash = |template: &PodTemplateSpec| {
        let mut template = template.clone();
        let metadata = template.metadata.get_or_insert_default();
        if let Some(labels) = &mut metadata.labels {
            labels.remove(HASH_LABEL);
        }
        metadata.labels = metadata.labels.take().filter(|l| !l.is_empty());
        template
    };
    without_hash(theirs) == without_hash(template)
}

/// Splits the sets into the one of the template (the oldest, should there be several) and the others, oldest first.
pub fn split(
    mut sets: Vec<Arc<ReplicaSet>>,
    template: &PodTemplateSpec,
) -> (Option<Arc<ReplicaSet>>, Vec<Arc<ReplicaSet>>) {
    sets.sort_by_key(|s| (s.metadata.creation_timestamp.as_ref().map(|t| t.0), s.metadata.name.clone()));
    let new = sets.iter().position(|s| is_of_template(s, template)).map(|i| sets.remove(i));
    (new, sets)
}

/// The annotations that a set has when the Deployment is at `revision` and has this size.
fn annotations(
    deployment: &Deployment,
    before: Option<&BTreeMap<String, String>>,
    revision: i64,
) -> BTreeMap<String, String> {
    let mut wanted = before.cloned().unwrap_or_default();
    for (key, value) in deployment.metadata.annotations.iter().flatten() {
        if !is_own_annotation(key) {
            wanted.insert(key.clone(), value.clone());
        }
    }
    let old: i64 = wanted.get(REVISION).and_then(|r| r.parse().ok()).unwrap_or(0);
    if old < revision {
        if old > 0 {
            let mut history: Vec<String> =
                wanted.get(HISTORY).into_iter().flat_map(|h| h.split(',')).map(str::to_owned).collect();
            history.retain(|h| *h != old.to_string());
            history.push(old.to_string());
            while history.len() > 1 && history.iter().map(|h| h.len() + 1).sum::<usize>() > HISTORY_BYTES {
                history.remove(0);
            }
            wanted.insert(HISTORY.into(), history.join(","));
        }
        wanted.insert(REVISION.into(), revision.to_string());
    }
    wanted
}

/// The set with another size, and what it notes of the Deployment's size; `None` if nothing changes.
pub fn resized(set: &ReplicaSet, size: i32, bounds: &Bounds) -> Option<ReplicaSet> {
    let mut new = set.clone();
    new.spec.get_or_insert_default().replicas = Some(size);
    let notes = new.metadata.annotations.get_or_insert_default();
    notes.insert(DESIRED.into(), bounds.wanted.to_string());
    notes.insert(MAX.into(), bounds.maximum().to_string());
    (new != *set).then_some(new)
}

/// The set of the template as it should be but for its size; `None` if it is.
pub fn refreshed(deployment: &Deployment, set: &ReplicaSet, latest_old: i64) -> Option<ReplicaSet> {
    let mut new = set.clone();
    new.metadata.annotations = Some(annotations(deployment, set.metadata.annotations.as_ref(), latest_old + 1));
    let seconds = deployment.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
    let spec = new.spec.get_or_insert_default();
    if spec.min_ready_seconds.unwrap_or(0) != seconds {
        spec.min_ready_seconds = Some(seconds);
    }
    (new != *set).then_some(new)
}

/// A new set for the Deployment's template.
pub fn fresh(deployment: &Deployment, size: i32, bounds: &Bounds, revision: i64) -> ReplicaSet {
    let spec = deployment.spec.clone().unwrap_or_default();
    let collisions = deployment.status.as_ref().and_then(|s| s.collision_count);
    let hash = template_hash(&spec.template, collisions);
    let mut template = spec.template;
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH_LABEL.into(), hash.clone());
    let labels = labels.clone();
    let mut selector = spec.selector;
    selector.match_labels.get_or_insert_default().insert(HASH_LABEL.into(), hash.clone());
    let set = ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", deployment.metadata.name.as_deref().unwrap_or_default())),
            namespace: deployment.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: Some(annotations(deployment, None, revision)),
            owner_references: Some(vec![controller_reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(size),
            selector,
            template: Some(template),
            min_ready_seconds: spec.min_ready_seconds,
        }),
        status: None,
    };
    resized(&set, size, bounds).unwrap_or(set)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn deployment(annotations: serde_json::Value) -> Deployment {
        serde_json::from_value(json!({"metadata": {"name": "d", "namespace": "n", "annotations": annotations},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "a"}},
                "template": {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": []}}}}))
        .unwrap()
    }

    #[test]
    fn a_fresh_set_is_of_the_template_and_notes_sizes() {
        let deployment = deployment(json!({"note": "x", REVISION: "7"}));
        let bounds = Bounds { wanted: 3, surge: 1, unavailable: 0, recreate: false };
        let set = fresh(&deployment, 2, &bounds, 4);
        assert!(is_of_template(&set, &deployment.spec.as_ref().unwrap().template));
        assert_eq!((revision(&set.metadata), desired(&set), max_before(&set)), (4, Some(3), Some(4)));
        assert_eq!(annotation(&set.metadata, "note"), Some("x"));
        assert!(resized(&set, 2, &bounds).is_none());
        assert!(refreshed(&deployment, &set, 3).is_none());
        let again = refreshed(&deployment, &set, 5).unwrap();
        assert_eq!((revision(&again.metadata), annotation(&again.metadata, HISTORY)), (6, Some("4")));
        let mut collided = deployment.clone();
        collided.status.get_or_insert_default().collision_count = Some(1);
        assert_ne!(name(&fresh(&collided, 2, &bounds, 4)), name(&set));
    }

    #[test]
    fn shares_are_rounded_for_safety() {
        for (value, total, up, expected) in
            [("25%", 10, true, 3), ("25%", 10, false, 2), ("100%", 7, true, 7), ("0%", 7, true, 0), ("1%", 1, true, 1)]
        {
            assert_eq!(share(Some(&IntOrString::String(value.into())), total, up), expected, "{value} of {total}");
        }
        assert_eq!(share(Some(&IntOrString::Int(4)), 2, false), 4);
    }
}
