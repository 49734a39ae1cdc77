//! Claims of pods' ephemeral volumes: made with the pod, gone with it.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::informer::key;
use keelson_client::{Change, Key};

use super::{BY_CLAIM, full_name};
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
    // Whoever's it was: a pod may have waited for the name.
    let pods = context.cache.pods.clone();
    watch_with(&context.cache.claims, queue, move |change: &Change<PersistentVolumeClaim>| {
        let gone = change.old.as_ref().filter(|_| change.new.is_none());
        let users = gone.map(|claim| pods.by(BY_CLAIM, &full_name(claim))).unwrap_or_default();
        users.iter().filter(|pod| ephemeral(pod).next().is_some()).map(|pod| key(&**pod)).collect()
    });
}

pub(crate) async fn reconcile(context: Arc<Context>, key: Key) -> Outcome {
    let Some(pod) = context.cache.pods.get(&key) else { return Ok(None) };
    if pods::is_going(&pod) {
        return Ok(None);
    }
    for volume in ephemeral(&pod) {
        let Some(wanted) = claim(&pod, volume) else { continue };
        let Err((why, error)) = provide(&context, &pod, &wanted).await else { continue };
        let message = format!("ephemeral volume {}: {why}", volume.name);
        context.recorder(COMPONENT).warning(&*pod, "FailedBinding", message);
        return Err(error);
    }
    Ok(None)
}

/// Sees to it that a claim is there for its pod; tells why it is not.
async fn provide(
    context: &Context,
    pod: &Pod,
    wanted: &PersistentVolumeClaim,
) -> Result<(), (String, keelson_client::Error)> {
    let part = |text: &Option<String>| text.clone().unwrap_or_default();
    let (namespace, name) = (part(&wanted.metadata.namespace), part(&wanted.metadata.name));
    if let Some(there) = context.cache.claims.named(&namespace, &name) {
        if is_controlled_by(&there.metadata, pod.metadata.uid.as_deref()) {
            return Ok(());
        }
        let pod = part(&pod.metadata.name);
        let why = format!("PVC {namespace}/{name} was not created for pod {namespace}/{pod} (pod is not owner)");
        return Err((why.clone(), keelson_client::Error::Transport(std::io::Error::other(why))));
    }
    let created = context.client.namespaced::<PersistentVolumeClaim>(&namespace).create(wanted).await;
    let written = created.map_err(|error| (format!("create PVC {name}: {error}"), error))?;
    context.settle(&context.cache.claims, &written).await;
    Ok(())
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
