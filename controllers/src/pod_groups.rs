//! A group of pods does not go while pods are scheduled with it: a finalizer holds it until all that name it have ended.

use std::sync::Arc;

use k8s_openapi::api::scheduling::v1alpha2::PodGroup;
use keelson_client::{Change, Key, PatchType};

use crate::context::Context;
use crate::kept::Pod;
use crate::pods;
use crate::runtime::{Keys, Outcome, watch_own, watch_with};
use crate::volumes::protection::plan;

/// Pods by namespace and name of the group that they name.
pub const BY_GROUP: &str = "group";
const FINALIZER: &str = "scheduling.k8s.io/podgroup-protection";

fn key_of(pod: &Pod) -> Option<Key> {
    let name = pod.spec.as_ref()?.scheduling_group.as_ref()?.pod_group_name.clone()?;
    Some((pod.metadata.namespace.clone().unwrap_or_default(), name))
}

/// See [`BY_GROUP`].
pub fn group_index(pod: &Pod) -> Vec<String> {
    key_of(pod).map(|(namespace, name)| format!("{namespace}/{name}")).into_iter().collect()
}

pub(crate) fn watch(context: &Arc<Context>, queue: &Keys) {
    let Some(groups) = &context.pod_groups else { return };
    watch_own(groups, queue);
    watch_with(&context.cache.pods, queue, |change: &Change<Pod>| {
        let ended = change.new.as_ref().is_none_or(|pod| pods::is_finished(pod));
        change.object().filter(|_| ended).and_then(|pod| key_of(pod)).into_iter().collect()
    });
}

pub(crate) async fn reconcile(context: Arc<Context>, key: Key) -> Outcome {
    let Some(group) = context.pod_groups.as_ref().and_then(|groups| groups.get(&key)) else { return Ok(None) };
    let users = context.cache.pods.by(BY_GROUP, &format!("{}/{}", key.0, key.1));
    let used = users.iter().any(|pod| !pods::is_finished(pod));
    let Some(patch) = plan(&group.metadata, FINALIZER, used) else { return Ok(None) };
    match context.client.namespaced::<PodGroup>(&key.0).patch(&key.1, None, PatchType::Merge, &patch).await {
        Err(error) if error.is_not_found() => Ok(None),
        result => result.map(|_| None),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_are_found_by_the_group_that_they_name() {
        for (spec, expected) in [
            (json!({"containers": []}), &[][..]),
            (json!({"containers": [], "schedulingGroup": {"podGroupName": "g"}}), &["d/g"]),
        ] {
            let pod = json!({"metadata": {"name": "p", "namespace": "d"}, "spec": spec});
            assert_eq!(group_index(&serde_json::from_value(pod).unwrap()), expected);
        }
    }
}
