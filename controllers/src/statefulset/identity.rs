//! The identity of a StatefulSet's pods: name, labels, host name and claims follow from the ordinal.

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::{
    self as core, PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, PodTemplateSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use keelson_client::Object;

use crate::history::REVISION_LABEL;
use crate::kept::Pod;
use crate::owners::{controller_of, controller_reference};
use crate::pods;

const NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
const INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";

pub fn name_of(set: &StatefulSet) -> &str {
    set.metadata.name.as_deref().unwrap_or_default()
}

/// The ordinal of a pod of the set; `None` for a pod with another kind of name.
pub fn ordinal(set: &StatefulSet, pod: &ObjectMeta) -> Option<i32> {
    let rest = pod.name.as_deref()?.strip_prefix(name_of(set))?.strip_prefix('-')?;
    (rest.bytes().all(|b| b.is_ascii_digit()) && (rest == "0" || !rest.starts_with('0'))).then(|| rest.parse().ok())?
}

/// The revision that a pod is of.
pub fn revision(pod: &Pod) -> &str {
    pod.metadata.labels.as_ref().and_then(|l| l.get(REVISION_LABEL)).map_or("", String::as_str)
}

pub fn pod_name(set: &StatefulSet, ordinal: i32) -> String {
    format!("{}-{ordinal}", name_of(set))
}

fn templates(set: &StatefulSet) -> &[PersistentVolumeClaim] {
    set.spec.as_ref().and_then(|s| s.volume_claim_templates.as_deref()).unwrap_or_default()
}

fn claim_name(set: &StatefulSet, template: &PersistentVolumeClaim, ordinal: i32) -> String {
    format!("{}-{}", template.metadata.name.as_deref().unwrap_or_default(), pod_name(set, ordinal))
}

/// Names of the claims of a pod.
pub fn claim_names(set: &StatefulSet, ordinal: i32) -> Vec<String> {
    templates(set).iter().map(|t| claim_name(set, t, ordinal)).collect()
}

/// The claims that a pod needs.
pub fn claims(set: &StatefulSet, ordinal: i32) -> Vec<PersistentVolumeClaim> {
    let selector = set.spec.as_ref().and_then(|s| s.selector.match_labels.clone()).unwrap_or_default();
    let claim = |template: &PersistentVolumeClaim| {
        let mut labels = template.metadata.labels.clone().unwrap_or_default();
        labels.extend(selector.clone());
        PersistentVolumeClaim {
            metadata: ObjectMeta {
                name: Some(claim_name(set, template, ordinal)),
                namespace: set.metadata.namespace.clone(),
                labels: (!labels.is_empty()).then_some(labels),
                annotations: template.metadata.annotations.clone(),
                owner_references: claim_owner(set, None).map(|o| vec![o]),
                ..ObjectMeta::default()
            },
            spec: template.spec.clone(),
            status: None,
        }
    };
    templates(set).iter().map(claim).collect()
}

fn deletes(spec: &StatefulSetSpec) -> (bool, bool) {
    let policy = spec.persistent_volume_claim_retention_policy.as_ref();
    let is_delete = |value: Option<&String>| value.is_some_and(|v| v == "Delete");
    (is_delete(policy.and_then(|p| p.when_deleted.as_ref())), is_delete(policy.and_then(|p| p.when_scaled.as_ref())))
}

/// Who owns the claims of a pod by the retention policy: nobody, the set, or the pod itself once it is `condemned`.
pub fn claim_owner(set: &StatefulSet, condemned: Option<&Pod>) -> Option<OwnerReference> {
    let (when_deleted, when_scaled) = set.spec.as_ref().map(deletes).unwrap_or_default();
    match condemned {
        Some(pod) if when_scaled => Some(controller_reference(pod)),
        _ if when_deleted => Some(controller_reference(set)),
        _ => None,
    }
}

/// Whether a claim is owned by a pod of this name that is not `live`, the one that is there now.
pub fn goes_with_another(claim: &PersistentVolumeClaim, pod: &str, live: Option<&str>) -> bool {
    let owners = claim.metadata.owner_references.iter().flatten();
    owners.into_iter().any(|o| o.kind == "Pod" && o.name == pod && Some(o.uid.as_str()) != live)
}

/// The owner references that a claim should have; `None` if it has them. Only references to the set and to the pod change,
/// and none is added where somebody else is the controller.
pub fn claim_owners(
    set: &StatefulSet,
    pod: &Pod,
    condemned: bool,
    claim: &PersistentVolumeClaim,
) -> Option<Vec<OwnerReference>> {
    let uid = |metadata: &ObjectMeta| metadata.uid.clone().unwrap_or_default();
    let ours = [uid(&set.metadata), uid(&pod.metadata)];
    let before = claim.metadata.owner_references.clone().unwrap_or_default();
    let wanted = claim_owner(set, condemned.then_some(pod));
    let foreign = controller_of(&claim.metadata).is_some_and(|o| !ours.contains(&o.uid));
    let mut after: Vec<OwnerReference> = before.iter().filter(|o| !ours.contains(&o.uid)).cloned().collect();
    if !foreign {
        after.extend(wanted);
    }
    let uids = |list: &[OwnerReference]| list.iter().map(|o| o.uid.clone()).collect::<Vec<_>>();
    (uids(&after) != uids(&before)).then_some(after)
}

/// Gives a pod the identity of an ordinal; tells whether anything changed.
pub fn identify(set: &StatefulSet, pod: &mut ObjectMeta, ordinal: i32) -> bool {
    let name = pod_name(set, ordinal);
    let labels = pod.labels.get_or_insert_default();
    let mut changed = labels.insert(NAME_LABEL.into(), name.clone()).as_ref() != Some(&name);
    let index = ordinal.to_string();
    changed |= labels.insert(INDEX_LABEL.into(), index.clone()).as_ref() != Some(&index);
    changed |= pod.name.as_ref() != Some(&name);
    pod.name = Some(name);
    changed
}

/// A new pod of the set.
pub fn pod(set: &StatefulSet, template: &PodTemplateSpec, ordinal: i32, revision: &str) -> core::Pod {
    let mut pod = pods::of_template(set, template);
    pod.metadata.generate_name = None;
    identify(set, &mut pod.metadata, ordinal);
    pod.metadata.labels.get_or_insert_default().insert(REVISION_LABEL.into(), revision.into());
    let name = pod.metadata.name.clone();
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = name;
    spec.subdomain = set.spec.as_ref().and_then(|s| s.service_name.clone()).filter(|s| !s.is_empty());
    let claimed: Vec<Volume> = templates(set)
        .iter()
        .map(|template| Volume {
            name: template.metadata.name.clone().unwrap_or_default(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim_name(set, template, ordinal),
                read_only: None,
            }),
            ..Volume::default()
        })
        .collect();
    let others = spec.volumes.take().unwrap_or_default();
    let mut volumes = claimed.clone();
    volumes.extend(others.into_iter().filter(|v| !claimed.iter().any(|c| c.name == v.name)));
    spec.volumes = (!volumes.is_empty()).then_some(volumes);
    pod
}

/// Whether an object of the set's kind of name belongs to it.
pub fn is_member<K: Object>(set: &StatefulSet, object: &K) -> bool {
    ordinal(set, object.metadata()).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn set(policy: Value) -> StatefulSet {
        serde_json::from_value(json!({"metadata": {"name": "db", "namespace": "d", "uid": "s"}, "spec": {
            "serviceName": "svc", "selector": {"matchLabels": {"app": "db"}}, "persistentVolumeClaimRetentionPolicy": policy,
            "template": {"metadata": {"labels": {"app": "db"}},
                "spec": {"containers": [], "volumes": [{"name": "data", "emptyDir": {}}, {"name": "x", "emptyDir": {}}]}},
            "volumeClaimTemplates": [{"metadata": {"name": "data", "labels": {"c": "d"}}}]}}))
        .unwrap()
    }

    #[test]
    fn a_pod_has_the_identity_of_its_ordinal() {
        let set = set(json!({}));
        let mut pod = pod(&set, &set.spec.as_ref().unwrap().template, 3, "db-1");
        let spec = pod.spec.as_ref().unwrap();
        assert_eq!((spec.hostname.as_deref(), spec.subdomain.as_deref()), (Some("db-3"), Some("svc")));
        let volumes: Vec<&str> = spec.volumes.iter().flatten().map(|v| v.name.as_str()).collect();
        assert_eq!(volumes, ["data", "x"], "the claim takes the place of the template's volume");
        let made = Pod { metadata: pod.metadata.clone().into(), ..Pod::default() };
        assert_eq!((ordinal(&set, &pod.metadata), revision(&made)), (Some(3), "db-1"));
        assert!(!identify(&set, &mut pod.metadata, 3) && identify(&set, &mut pod.metadata, 4));
        assert_eq!(claims(&set, 3)[0].metadata.name.as_deref(), Some("data-db-3"));
        assert_eq!(claims(&set, 3)[0].metadata.labels.as_ref().unwrap().len(), 2);
        for (name, expected) in [("db-0", Some(0)), ("db-01", None), ("db-x", None), ("db", None), ("dbx-1", None)] {
            let metadata = ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() };
            assert_eq!(ordinal(&set, &metadata), expected, "{name}");
        }
    }

    #[test]
    fn claims_of_a_pod_that_was_there_before_are_stale() {
        let claim = |kind: &str, name: &str, uid: &str| -> PersistentVolumeClaim {
            serde_json::from_value(json!({"metadata": {"ownerReferences": [
                {"apiVersion": "v1", "kind": kind, "name": name, "uid": uid}]}}))
            .unwrap()
        };
        for (claim, live, expected) in [
            (claim("Pod", "db-0", "old"), None, true),
            (claim("Pod", "db-0", "old"), Some("new"), true),
            (claim("Pod", "db-0", "new"), Some("new"), false),
            (claim("Pod", "db-1", "old"), None, false),
            (claim("StatefulSet", "db-0", "s"), None, false),
            (PersistentVolumeClaim::default(), None, false),
        ] {
            assert_eq!(goes_with_another(&claim, "db-0", live), expected, "{claim:?} {live:?}");
        }
    }

    #[test]
    fn the_retention_policy_says_who_owns_the_claims() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "db-0", "uid": "p"}})).unwrap();
        for (deleted, scaled, condemned, owner) in [
            ("Retain", "Retain", false, ""),
            ("Retain", "Retain", true, ""),
            ("Delete", "Retain", false, "s"),
            ("Delete", "Retain", true, "s"),
            ("Retain", "Delete", false, ""),
            ("Retain", "Delete", true, "p"),
            ("Delete", "Delete", false, "s"),
            ("Delete", "Delete", true, "p"),
        ] {
            let set = set(json!({"whenDeleted": deleted, "whenScaled": scaled}));
            let mut claim = PersistentVolumeClaim::default();
            let owners = claim_owners(&set, &pod, condemned, &claim);
            let uids = owners.iter().flatten().map(|o| o.uid.as_str()).collect::<String>();
            assert_eq!(uids, owner, "{deleted} {scaled} {condemned}");
            claim.metadata.owner_references = owners;
            assert_eq!(claim_owners(&set, &pod, condemned, &claim), None);
        }
    }
}
