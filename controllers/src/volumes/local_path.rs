//! Volumes that are directories of a node, made for claims of the built-in class: so that claims work on a new cluster.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{
    HostPathVolumeSource, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, ObjectReference, PersistentVolume,
    PersistentVolumeClaim, PersistentVolumeSpec, VolumeNodeAffinity,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::Error;
use serde_json::json;
use tracing::{info, warn};

use crate::context::Context;

/// Name of the provisioner.
pub const PROVISIONER: &str = "keelson.dev/local-path";
/// Name of the class.
const CLASS: &str = "local-path";
/// Annotation of a class that claims without one get.
const DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// Where the directories are, unless the class says so in its parameter `path`.
const ROOT: &str = "/var/lib/keelson/volumes";
/// Pause after the class could not be made.
const RETRY: Duration = Duration::from_secs(5);

/// Makes the class on a cluster that has none at all.
pub(crate) fn run(context: Arc<Context>) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        if !context.config.local_path {
            return context.stop.cancelled().await;
        }
        while context.cache.storage_classes.count() == 0 {
            match context.client.cluster::<StorageClass>().create(&class()).await {
                Ok(written) => {
                    info!(class = CLASS, "made the storage class of node directories");
                    context.settle(&context.cache.storage_classes, &written).await;
                }
                Err(error) if error.is_already_exists() => break,
                Err(error) => {
                    warn!(%error, "cannot make the storage class; trying again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
        context.stop.cancelled().await;
    })
}

fn class() -> StorageClass {
    StorageClass {
        metadata: ObjectMeta {
            name: Some(CLASS.into()),
            annotations: Some([(DEFAULT.to_owned(), "true".to_owned())].into()),
            ..ObjectMeta::default()
        },
        provisioner: PROVISIONER.into(),
        reclaim_policy: Some("Delete".into()),
        volume_binding_mode: Some("WaitForFirstConsumer".into()),
        ..StorageClass::default()
    }
}

/// Whether a volume was made here.
pub fn is_ours(volume: &PersistentVolume) -> bool {
    volume.metadata.annotations.as_ref().and_then(|a| a.get(PROVISIONED_BY)).is_some_and(|by| by == PROVISIONER)
}

/// The volume for a claim on a node.
fn volume(claim: &PersistentVolumeClaim, class: &StorageClass, node: &str) -> PersistentVolume {
    let name = format!("pvc-{}", claim.metadata.uid.as_deref().unwrap_or_default());
    let spec = claim.spec.clone().unwrap_or_default();
    let root = class.parameters.as_ref().and_then(|p| p.get("path")).map_or(ROOT, String::as_str);
    let requirement =
        NodeSelectorRequirement { key: "metadata.name".into(), operator: "In".into(), values: Some(vec![node.into()]) };
    let term = NodeSelectorTerm { match_fields: Some(vec![requirement]), match_expressions: None };
    PersistentVolume {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            annotations: Some([(PROVISIONED_BY.to_owned(), PROVISIONER.to_owned())].into()),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            access_modes: spec.access_modes,
            capacity: spec.resources.and_then(|r| r.requests),
            claim_ref: Some(ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("PersistentVolumeClaim".into()),
                namespace: claim.metadata.namespace.clone(),
                name: claim.metadata.name.clone(),
                uid: claim.metadata.uid.clone(),
                ..ObjectReference::default()
            }),
            host_path: Some(HostPathVolumeSource {
                path: format!("{root}/{name}"),
                type_: Some("DirectoryOrCreate".into()),
            }),
            node_affinity: Some(VolumeNodeAffinity {
                required: Some(NodeSelector { node_selector_terms: vec![term] }),
            }),
            persistent_volume_reclaim_policy: class.reclaim_policy.clone().or(Some("Delete".into())),
            storage_class_name: class.metadata.name.clone(),
            volume_mode: spec.volume_mode,
            ..PersistentVolumeSpec::default()
        }),
        status: None,
    }
}

/// Makes the volume, if it can be made and is not there yet; the node's agent makes the directory when a pod first uses it.
pub async fn provision(
    context: &Context,
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    node: Option<String>,
) -> Result<Option<PersistentVolume>, Error> {
    let recorder = context.recorder(PROVISIONER);
    let shared = claim.spec.iter().flat_map(|s| s.access_modes.iter().flatten()).any(|m| m.ends_with("Many"));
    if shared || claim.spec.as_ref().is_some_and(|s| s.volume_mode.as_deref() == Some("Block")) {
        let message =
            "a directory of a node can only be a file system that is used on that node: ask for ReadWriteOnce";
        recorder.warning(claim, "ProvisioningFailed", message);
        return Ok(None);
    }
    let Some(node) = node else {
        let message = "the class must wait for the first consumer: the volume is a directory of the consumer's node";
        recorder.warning(claim, "ProvisioningFailed", message);
        return Ok(None);
    };
    let wanted = volume(claim, class, &node);
    match context.client.cluster::<PersistentVolume>().create(&wanted).await {
        Ok(written) => {
            let name = written.metadata.name.as_deref().unwrap_or_default();
            recorder.normal(claim, "ProvisioningSucceeded", format!("Successfully provisioned volume {name}"));
            Ok(Some(written))
        }
        Err(error) if error.is_already_exists() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Deletes the volume. The directory stays until the node's administrator removes it: nothing here reaches the node.
pub async fn delete(context: &Context, volume: &PersistentVolume) -> Result<(), Error> {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let options = json!({"preconditions": {"uid": volume.metadata.uid}});
    match context.client.cluster::<PersistentVolume>().delete(name, &options).await {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_a_directory_of_the_node() {
        let claim: PersistentVolumeClaim =
            serde_json::from_value(json!({"metadata": {"namespace": "d", "name": "c", "uid": "u"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}))
            .unwrap();
        let made = volume(&claim, &class(), "n1");
        assert!(is_ours(&made) && super::super::plan::refers_to(&made, &claim));
        let spec = made.spec.unwrap();
        assert_eq!(spec.host_path.unwrap().path, "/var/lib/keelson/volumes/pvc-u");
        let node: k8s_openapi::api::core::v1::Node =
            serde_json::from_value(json!({"metadata": {"name": "n1"}})).unwrap();
        assert!(crate::node::fit::selects(&spec.node_affinity.unwrap().required.unwrap(), &node));
    }
}
