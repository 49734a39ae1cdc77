//! Claims of pods' ephemeral volumes: made with the pod, gone with it.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::informer::key;
use keelson_client::{Change, Key};

use crate::context::Context;
use crate::kept::Pod;
use crate::owners::{controller_reference, is_controlled_by};
use crate::pods;
use crate::runtime::{Keys, Outcome, watch_with};

const COMPONENT: &str = "ephemeral_volume";

fn ephemeral(pod: &Pod) -> impl Iterator<Item = &Volume> {
    pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()).filter(|v| v.ephemeral.is_some())
}

/// The claim for a volume of a pod.
fn claim(pod: &Pod, volume: &Volume) -> Option<PersistentVolumeClaim> {
    let template = volume.ephemeral.as_ref()?.volume_claim_template.as_ref()?;
    let given = template.metadata.clone().unwrap_or_default();
    Some(PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(format!("{}-{}", pod.metadata.name.as_deref().unwrap_or_default(), volume.name)),
            namespace: pod.metadata.namespace.clone(),
            labels: given.labels,
            annotations: given.annotations,
            owner_references: Some(vec![controller_reference(pod)]),
            ..ObjectMeta::default()
        },
        spec: Some(template.spec.clone()),
        status: None,
    })
}

pub(crate) fn watch(context: &Arc<Context>, queue: &Keys) {
    watch_with(&context.cache.pods, queue, |change: &Change<Pod>| {
        let new = change.new.as_ref().filter(|p| change.old.is_none() && ephemeral(p).next().is_some());
        new.map(|p| key(&**p)).into_iter().collect()
    });
    watch_with(&context.cache.claims, queue, |change: &Change<PersistentVolumeClaim>| {
        let gone = change.old.as_ref().filter(|_| change.new.is_none());
        let owner = gone.and_then(|c| crate::owners::controller_of(&c.metadata).filter(|o| o.kind == "Pod").cloned());
        let namespace = gone.and_then(|c| c.metadata.namespace.clone()).unwrap_or_default();
        owner.map(|o| (namespace, o.name)).into_iter().collect()
    });
}

pub(crate) async fn reconcile(context: Arc<Context>, key: Key) -> Outcome {
    let Some(pod) = context.cache.pods.get(&key) else { return Ok(None) };
    if pods::is_going(&pod) || pods::is_finished(&pod) {
        return Ok(None);
    }
    for volume in ephemeral(&pod) {
        let Some(wanted) = claim(&pod, volume) else { continue };
        let name = wanted.metadata.name.clone().unwrap_or_default();
        if let Some(there) = context.cache.claims.named(&key.0, &name) {
            if !is_controlled_by(&there.metadata, pod.metadata.uid.as_deref()) {
                let message = format!("PVC {name:?} was not created for the pod");
                context.recorder(COMPONENT).warning(&*pod, "EphemeralVolumeFailed", message);
            }
            continue;
        }
        match context.client.namespaced::<PersistentVolumeClaim>(&key.0).create(&wanted).await {
            Ok(written) => context.settle(&context.cache.claims, &written).await,
            Err(error) if error.is_already_exists() => {}
            Err(error) => {
                let message = format!("ephemeral volume controller failed to create PVC {name}: {error}");
                context.recorder(COMPONENT).warning(&*pod, "EphemeralVolumeFailed", message);
                return Err(error);
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_claim_is_named_for_pod_and_volume() {
        let pod: Pod = serde_json::from_value(
            json!({"metadata": {"namespace": "d", "name": "p", "uid": "u"}, "spec": {"containers": [],
            "volumes": [{"name": "a", "emptyDir": {}}, {"name": "v", "ephemeral": {"volumeClaimTemplate":
                {"metadata": {"labels": {"l": "m"}}, "spec": {"accessModes": ["ReadWriteOnce"]}}}}]}}),
        )
        .unwrap();
        let claims: Vec<PersistentVolumeClaim> = ephemeral(&pod).filter_map(|v| claim(&pod, v)).collect();
        assert_eq!(claims.len(), 1);
        assert_eq!(claims[0].metadata.name.as_deref(), Some("p-v"));
        assert!(is_controlled_by(&claims[0].metadata, Some("u")));
        assert_eq!(claims[0].metadata.labels.as_ref().map(|l| l.len()), Some(1));
    }
}
