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

use k8s_openapi::api::core::v1::Pod;

/// Index of pods by the claims that they use, as `namespace/name`, and by volumes that they name themselves.
pub const BY_CLAIM: &str = "claim";

/// Names of the claims that a pod uses.
pub fn claims_of(pod: &Pod) -> impl Iterator<Item = String> + '_ {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()).filter_map(move |volume| {
        let ephemeral = volume.ephemeral.as_ref().map(|_| format!("{name}-{}", volume.name));
        volume.persistent_volume_claim.as_ref().map(|c| c.claim_name.clone()).or(ephemeral)
    })
}

/// For the index.
pub fn claims_index(pod: &Pod) -> Vec<String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let inline = inline::volumes_of(pod).filter_map(|(_, spec)| inline::key(&spec));
    claims_of(pod).map(|name| format!("{namespace}/{name}")).chain(inline).collect()
}
