//! Claims and volumes that are in use are not deleted: a finalizer holds them until nobody needs them.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::{Change, Client, Error, Key, ListParams, PatchType};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{BY_CLAIM, claims_of};
use crate::context::Context;
use crate::kept::Pod;
use crate::owners::is_controlled_by;
use crate::pods;
use crate::runtime::{Keys, Outcome, watch_own, watch_with};

const CLAIM: &str = "kubernetes.io/pvc-protection";
const VOLUME: &str = "kubernetes.io/pv-protection";
const CLASS: &str = "kubernetes.io/vac-protection";

/// The patch that puts the finalizer on what lives, or takes it off what goes and is not used.
pub(crate) fn plan(metadata: &ObjectMeta, finalizer: &str, used: bool) -> Option<Value> {
    let mut finalizers = metadata.finalizers.clone().unwrap_or_default();
    let held = finalizers.iter().any(|f| f == finalizer);
    match (metadata.deletion_timestamp.is_some(), held) {
        (false, false) => finalizers.push(finalizer.into()),
        (true, true) if !used => finalizers.retain(|f| f != finalizer),
        _ => return None,
    }
    let finalizers = if finalizers.is_empty() { Value::Null } else { json!(finalizers) };
    Some(
        json!({"metadata": {"uid": metadata.uid, "resourceVersion": metadata.resource_version, "finalizers": finalizers}}),
    )
}

pub(crate) fn watch_claims(context: &Arc<Context>, queue: &Keys) {
    watch_own(&context.cache.claims, queue);
    watch_with(&context.cache.pods, queue, |change: &Change<Pod>| {
        let ended = change.new.as_ref().is_none_or(|p| pods::is_finished(p) || is_shut_down(p));
        let Some(pod) = change.object().filter(|_| ended) else { return Vec::new() };
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        claims_of(pod).map(|name| (namespace.clone(), name)).collect()
    });
}

/// Whether nothing of the pod runs any more: the kubelet is done with it, or it was deleted by force.
fn is_shut_down(pod: &Pod) -> bool {
    pods::is_going(pod) && pod.metadata.deletion_grace_period_seconds == Some(0)
}

/// A pod uses a claim from when it has a node until it is gone; one that was made for it only until it is shut down.
fn uses(pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    let Some(spec) = pod.spec.as_ref().filter(|s| s.node_name.as_ref().is_some_and(|n| !n.is_empty())) else {
        return false;
    };
    let name = claim.metadata.name.as_deref();
    let named = spec.volumes.iter().flatten().filter_map(|v| v.persistent_volume_claim.as_ref());
    named.into_iter().any(|c| Some(c.claim_name.as_str()) == name)
        || (!is_shut_down(pod)
            && is_controlled_by(&claim.metadata, pod.metadata.uid.as_deref())
            && claims_of(pod).any(|c| Some(c.as_str()) == name))
}

/// Who may use claims, as the API has it.
#[derive(Default)]
pub struct Live(Mutex<Option<Listed>>);

/// The pods of a namespace that have claims and a node, at a version.
struct Listed {
    namespace: String,
    version: u64,
    pods: Arc<Vec<Pod>>,
}

impl Live {
    /// What is known of a namespace since a claim is as it is: nothing that came later may use a claim that goes.
    fn known(&self, namespace: &str, claim: &PersistentVolumeClaim) -> Option<Arc<Vec<Pod>>> {
        let since: u64 = claim.metadata.resource_version.as_ref()?.parse().ok()?;
        let known = self.0.lock();
        let listed = known.as_ref().filter(|listed| listed.namespace == namespace && listed.version >= since)?;
        Some(listed.pods.clone())
    }

    /// Whether a pod uses a claim that goes, though the cache may not show it yet. One list answers for all claims that went
    /// before it.
    async fn uses(&self, client: &Client, namespace: &str, claim: &PersistentVolumeClaim) -> Result<bool, Error> {
        let pods = match self.known(namespace, claim) {
            Some(pods) => pods,
            None => {
                let list = client.namespaced::<Pod>(namespace).list(&ListParams::default()).await?;
                let mut pods = list.items;
                let placed = |pod: &Pod| pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
                pods.retain(|pod| placed(pod) && claims_of(pod).next().is_some());
                let pods = Arc::new(pods);
                if let Ok(version) = list.resource_version.parse() {
                    let namespace = namespace.to_owned();
                    *self.0.lock() = Some(Listed { namespace, version, pods: pods.clone() });
                }
                pods
            }
        };
        Ok(pods.iter().any(|pod| uses(pod, claim)))
    }
}

pub(crate) async fn reconcile_claim(context: Arc<Context>, key: Key) -> Outcome {
    let Some(claim) = context.cache.claims.get(&key) else { return Ok(None) };
    let users = context.cache.pods.by(BY_CLAIM, &format!("{}/{}", key.0, key.1));
    let mut used = users.iter().any(|p| uses(p, &claim));
    if !used && plan(&claim.metadata, CLAIM, false).is_some() && claim.metadata.deletion_timestamp.is_some() {
        used = context.claim_users.uses(&context.client, &key.0, &claim).await?;
    }
    let Some(patch) = plan(&claim.metadata, CLAIM, used) else { return Ok(None) };
    let api = context.client.namespaced::<PersistentVolumeClaim>(&key.0);
    match api.patch(&key.1, None, PatchType::Merge, &patch).await {
        Err(error) if error.is_not_found() => Ok(None),
        result => result.map(|_| None),
    }
}

pub(crate) fn watch_volumes(context: &Arc<Context>, queue: &Keys) {
    watch_own(&context.cache.volumes, queue);
}

pub(crate) async fn reconcile_volume(context: Arc<Context>, key: Key) -> Outcome {
    let Some(volume) = context.cache.volumes.get(&key) else { return Ok(None) };
    let bound = volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
    let Some(patch) = plan(&volume.metadata, VOLUME, bound) else { return Ok(None) };
    match context.client.cluster::<PersistentVolume>().patch(&key.1, None, PatchType::Merge, &patch).await {
        Err(error) if error.is_not_found() => Ok(None),
        result => result.map(|_| None),
    }
}

/// The classes that a claim has, had last, or is changed to.
fn classes_of(claim: &PersistentVolumeClaim) -> impl Iterator<Item = &String> {
    let asked = claim.spec.as_ref().and_then(|s| s.volume_attributes_class_name.as_ref());
    let status = claim.status.as_ref();
    let current = status.and_then(|s| s.current_volume_attributes_class_name.as_ref());
    let target = status.and_then(|s| s.modify_volume_status.as_ref()?.target_volume_attributes_class_name.as_ref());
    asked.into_iter().chain(current).chain(target)
}

fn class_of(volume: &PersistentVolume) -> Option<&String> {
    volume.spec.as_ref()?.volume_attributes_class_name.as_ref()
}

pub(crate) fn watch_classes(context: &Arc<Context>, queue: &Keys) {
    watch_own(&context.cache.attributes_classes, queue);
    watch_with(&context.cache.claims, queue, |change: &Change<PersistentVolumeClaim>| {
        let old = change.old.iter().flat_map(|c| classes_of(c));
        old.map(|name| (String::new(), name.clone())).collect()
    });
    watch_with(&context.cache.volumes, queue, |change: &Change<PersistentVolume>| {
        change.old.iter().filter_map(|v| class_of(v)).map(|name| (String::new(), name.clone())).collect()
    });
}

pub(crate) async fn reconcile_class(context: Arc<Context>, key: Key) -> Outcome {
    let Some(class) = context.cache.attributes_classes.get(&key) else { return Ok(None) };
    // Only what goes is worth the search.
    let used = class.metadata.deletion_timestamp.is_some()
        && (context.cache.claims.list_all().iter().any(|c| classes_of(c).any(|name| *name == key.1))
            || context.cache.volumes.list_all().iter().any(|v| class_of(v) == Some(&key.1)));
    let Some(patch) = plan(&class.metadata, CLASS, used) else { return Ok(None) };
    match context.client.cluster::<VolumeAttributesClass>().patch(&key.1, None, PatchType::Merge, &patch).await {
        Err(error) if error.is_not_found() => Ok(None),
        result => result.map(|_| None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_holds_every_class_that_it_has_to_do_with() {
        let claim: PersistentVolumeClaim = serde_json::from_value(json!({
            "spec": {"volumeAttributesClassName": "asked"},
            "status": {"currentVolumeAttributesClassName": "current",
                "modifyVolumeStatus": {"status": "Pending", "targetVolumeAttributesClassName": "target"}},
        }))
        .unwrap();
        assert_eq!(classes_of(&claim).collect::<Vec<_>>(), ["asked", "current", "target"]);
        assert_eq!(classes_of(&PersistentVolumeClaim::default()).count(), 0);
    }

    #[test]
    fn pods_hold_claims_while_they_are_there() {
        let claim: PersistentVolumeClaim =
            serde_json::from_value(json!({"metadata": {"name": "p-v", "ownerReferences": [
            {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u", "controller": true}]}}))
            .unwrap();
        let named = json!({"name": "v", "persistentVolumeClaim": {"claimName": "p-v"}});
        let made = json!({"name": "v", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}});
        for (what, uid, node, volume, phase, grace, expected) in [
            ("runs", "u", "n", &named, "Running", None, true),
            ("has no node", "u", "", &named, "Pending", None, false),
            ("has ended but is there", "u", "n", &named, "Succeeded", None, true),
            ("goes", "u", "n", &named, "Running", Some(0), true),
            ("its own", "u", "n", &made, "Running", None, true),
            ("its own, goes", "u", "n", &made, "Running", Some(30), true),
            ("its own, is shut down", "u", "n", &made, "Running", Some(0), false),
            ("another pod's", "w", "n", &made, "Running", None, false),
        ] {
            let mut pod = json!({"metadata": {"name": "p", "uid": uid}, "status": {"phase": phase},
                "spec": {"containers": [], "nodeName": node, "volumes": [volume]}});
            if let Some(grace) = grace {
                pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
                pod["metadata"]["deletionGracePeriodSeconds"] = grace.into();
            }
            assert_eq!(uses(&serde_json::from_value(pod).unwrap(), &claim), expected, "{what}");
        }
    }

    #[test]
    fn a_list_answers_for_the_claims_that_went_before_it() {
        let live = Live(Mutex::new(Some(Listed { namespace: "d".into(), version: 7, pods: Arc::default() })));
        for (namespace, version, known) in
            [("d", Some("7"), true), ("d", Some("6"), true), ("d", Some("8"), false), ("e", Some("6"), false)]
                .into_iter()
                .chain([("d", None, false), ("d", Some("x"), false)])
        {
            let mut claim = PersistentVolumeClaim::default();
            claim.metadata.resource_version = version.map(str::to_owned);
            assert_eq!(live.known(namespace, &claim).is_some(), known, "{namespace} {version:?}");
        }
    }

    #[test]
    fn what_is_used_stays() {
        let metadata = |going: bool, held: bool| -> ObjectMeta {
            let mut value = json!({"finalizers": if held { vec!["other", CLAIM] } else { vec!["other"] }});
            if going {
                value["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            }
            serde_json::from_value(value).unwrap()
        };
        let shown = |patch: Option<Value>| patch.map(|p| p["metadata"]["finalizers"].as_array().map_or(0, Vec::len));
        for (going, held, used, expected) in [
            (false, false, false, Some(2)),
            (false, true, false, None),
            (true, true, true, None),
            (true, true, false, Some(1)),
            (true, false, false, None),
        ] {
            assert_eq!(shown(plan(&metadata(going, held), CLAIM, used)), expected, "{going} {held} {used}");
        }
    }
}
