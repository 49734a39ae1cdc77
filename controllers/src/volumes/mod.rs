//! Volumes: binding claims, making and protecting volumes, and the claims of ephemeral volumes.

pub mod attachment;
pub mod binder;
pub mod ephemeral;
pub mod expansion;
pub mod inline;
pub mod local_path;
mod migration;
mod plan;
pub mod protection;

use crate::kept::Pod;
use crate::owners::is_controlled_by;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Volume};

/// Index of pods by the claims that they use, as `namespace/name`, and by volumes that they name themselves.
pub const BY_CLAIM: &str = "claim";

/// Index of claims that are not bound yet by their class.
pub const WAITING: &str = "waiting";
/// Index of volumes by the claim that they are reserved for, as `namespace/name`.
pub const RESERVED: &str = "reserved";
/// Index of volumes that are reserved for no claim by their class.
pub const FREE: &str = "free";

/// A claim as the indexes name it: `namespace/name`.
pub fn full_name(claim: &PersistentVolumeClaim) -> String {
    let part = |text: &Option<String>| text.as_deref().unwrap_or_default().to_owned();
    format!("{}/{}", part(&claim.metadata.namespace), part(&claim.metadata.name))
}

/// For the index [`WAITING`].
pub fn waiting_index(claim: &PersistentVolumeClaim) -> Vec<String> {
    let waits = !plan::has_annotation(&claim.metadata, plan::BIND_COMPLETED);
    waits.then(|| plan::class_of(claim).to_owned()).into_iter().collect()
}

/// For the index [`RESERVED`].
pub fn reserved_index(volume: &PersistentVolume) -> Vec<String> {
    let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    let part = |text: &Option<String>| text.as_deref().unwrap_or_default().to_owned();
    reference.map(|r| format!("{}/{}", part(&r.namespace), part(&r.name))).into_iter().collect()
}

/// For the index [`FREE`].
pub fn free_index(volume: &PersistentVolume) -> Vec<String> {
    let free = volume.spec.as_ref().is_none_or(|s| s.claim_ref.is_none());
    free.then(|| plan::class_of_volume(volume).to_owned()).into_iter().collect()
}

/// Names of the claims that a pod uses.
pub fn claims_of(pod: &Pod) -> impl Iterator<Item = String> + '_ {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()).filter_map(move |volume| {
        let ephemeral = volume.ephemeral.as_ref().map(|_| format!("{name}-{}", volume.name));
        volume.persistent_volume_claim.as_ref().map(|c| c.claim_name.clone()).or(ephemeral)
    })
}

/// Whether a claim of this name, as it is there, is one that a pod may use: that of an ephemeral volume was made for the pod.
pub fn is_for(claim: Option<&PersistentVolumeClaim>, name: &str, pod: &Pod) -> bool {
    let volumes = || pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    let named = |v: &Volume| v.persistent_volume_claim.as_ref().is_some_and(|c| c.claim_name == name);
    volumes().any(named) || claim.is_some_and(|c| is_controlled_by(&c.metadata, pod.metadata.uid.as_deref()))
}

/// For the index.
pub fn claims_index(pod: &Pod) -> Vec<String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let inline = inline::volumes_of(pod).filter_map(|(_, spec)| inline::key(&spec));
    claims_of(pod).map(|name| format!("{namespace}/{name}")).chain(inline).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn claims_of_ephemeral_volumes_are_their_pods_own() {
        let pod = json!({"metadata": {"name": "p", "uid": "u"}, "spec": {"containers": [], "volumes": [
            {"name": "named", "persistentVolumeClaim": {"claimName": "c"}},
            {"name": "own", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}}]}});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let claim = |owner: &str| -> PersistentVolumeClaim {
            let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": owner, "controller": true});
            serde_json::from_value(json!({"metadata": {"ownerReferences": [owner]}})).unwrap()
        };
        for (name, claim, expected) in [
            ("c", None, true),
            ("c", Some(claim("w")), true),
            ("p-own", Some(claim("u")), true),
            ("p-own", Some(claim("w")), false),
            ("p-own", None, false),
        ] {
            assert_eq!(is_for(claim.as_ref(), name, &pod), expected, "{name}");
        }
    }
}
