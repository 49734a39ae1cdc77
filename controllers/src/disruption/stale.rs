//! Takes the DisruptionTarget condition back from pods that were to be disrupted but are still there.

use std::sync::Arc;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use keelson_client::informer::key;
use keelson_client::{Change, Key, PatchType};
use serde_json::json;

use crate::context::Context;
use crate::kept::Pod;
use crate::pods;
use crate::runtime::{Keys, Outcome, watch_with};

const CONDITION: &str = "DisruptionTarget";
/// The kubelet's own reason: it may take any time to end a pod.
const BY_KUBELET: &str = "TerminationByKubelet";
/// A pod that is not going after so long is not going to.
const STALE_AFTER: SignedDuration = SignedDuration::from_secs(120);

/// When the condition of a pod becomes stale.
fn stale_at(pod: &Pod) -> Option<Timestamp> {
    let condition = pods::condition(pod, CONDITION).filter(|c| c.status == "True")?;
    if pods::is_going(pod) || pods::is_finished(pod) || condition.reason.as_deref() == Some(BY_KUBELET) {
        return None;
    }
    let since = condition.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0);
    since.checked_add(STALE_AFTER).ok()
}

pub(crate) fn watch(context: &Arc<Context>, queue: &Keys) {
    watch_with(&context.cache.pods, queue, |change: &Change<Pod>| {
        change.new.iter().filter(|p| stale_at(p).is_some()).map(|p| key(&**p)).collect()
    });
}

pub(crate) async fn reconcile(context: Arc<Context>, key: Key) -> Outcome {
    let Some(pod) = context.cache.pods.get(&key) else { return Ok(None) };
    let Some(at) = stale_at(&pod) else { return Ok(None) };
    let now = context.now();
    if at > now.0 {
        return Ok(pods::until(at, now.0));
    }
    let condition = json!({"type": CONDITION, "status": "False", "reason": null, "message": null,
        "lastTransitionTime": now});
    let patch = json!({"metadata": {"uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version},
        "status": {"conditions": [condition]}});
    let api = context.client.namespaced::<Pod>(&key.0);
    match api.patch(&key.1, Some("status"), PatchType::Strategic, &patch).await {
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
        Ok(written) => {
            context.settle(&context.cache.pods, &written).await;
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pods_that_stay_have_a_stale_condition() {
        for (what, phase, going, status, reason, expected) in [
            ("evicted but there", "Running", false, "True", "EvictionByEvictionAPI", true),
            ("preempted but there", "Pending", false, "True", "PreemptionByScheduler", true),
            ("going", "Running", true, "True", "EvictionByEvictionAPI", false),
            ("ended", "Failed", false, "True", "EvictionByEvictionAPI", false),
            ("taken back", "Running", false, "False", "", false),
            ("the kubelet's", "Running", false, "True", BY_KUBELET, false),
        ] {
            let mut pod = json!({"spec": {"containers": []}, "status": {"phase": phase, "conditions": [
                {"type": CONDITION, "status": status, "reason": reason, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
            if going {
                pod["metadata"] = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
            }
            let pod: Pod = serde_json::from_value(pod).unwrap();
            let at = expected.then(|| "2026-01-01T00:02:00Z".parse().unwrap());
            assert_eq!(stale_at(&pod), at, "{what}");
        }
        assert_eq!(stale_at(&Pod::default()), None);
    }
}
