//! Decides which volume a claim gets, and what becomes of volumes whose claims are gone.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimSpec};
use keelson_machinery::csi_migration;
use keelson_machinery::quantity::Quantity;

use crate::owners::Selector;

/// Annotation of a claim: it has been bound.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// Annotation of claim and volume: a controller made the reference.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// Annotation of old clients for the class.
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

fn annotation<'a>(
    metadata: &'a k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    key: &str,
) -> Option<&'a str> {
    metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

pub fn has_annotation(metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta, key: &str) -> bool {
    annotation(metadata, key).is_some()
}

/// The class of a claim, "" for none.
pub fn class_of(claim: &PersistentVolumeClaim) -> &str {
    let named = claim.spec.as_ref().and_then(|s| s.storage_class_name.as_deref());
    annotation(&claim.metadata, CLASS_ANNOTATION).or(named).unwrap_or_default()
}

/// The class of a volume, "" for none.
pub fn class_of_volume(volume: &PersistentVolume) -> &str {
    let named = volume.spec.as_ref().and_then(|s| s.storage_class_name.as_deref());
    annotation(&volume.metadata, CLASS_ANNOTATION).or(named).unwrap_or_default()
}

/// What a volume holds.
pub fn capacity(volume: &PersistentVolume) -> Quantity {
    let text = volume.spec.as_ref().and_then(|s| s.capacity.as_ref()?.get("storage"));
    text.and_then(|t| Quantity::parse(&t.0).ok()).unwrap_or_default()
}

/// What a claim asks for.
pub fn request(claim: &PersistentVolumeClaim) -> Quantity {
    let requests = claim.spec.as_ref().and_then(|s| s.resources.as_ref()?.requests.as_ref()?.get("storage"));
    requests.and_then(|t| Quantity::parse(&t.0).ok()).unwrap_or_default()
}

/// Whether the volume's reference is to this claim: by name, and by uid if it has one.
pub fn refers_to(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let Some(reference) = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) else { return false };
    reference.name == claim.metadata.name
        && reference.namespace == claim.metadata.namespace
        && reference.uid.as_ref().is_none_or(|uid| uid.is_empty() || Some(uid) == claim.metadata.uid.as_ref())
}

fn mode(mode: Option<&String>) -> &str {
    mode.map_or("Filesystem", String::as_str)
}

/// Whether a volume is of the kind that a claim wants, whatever its size.
fn is_suitable(volume: &PersistentVolume, claim: &PersistentVolumeClaim, spec: &PersistentVolumeClaimSpec) -> bool {
    let Some(has) = volume.spec.as_ref() else { return false };
    let modes = has.access_modes.as_deref().unwrap_or_default();
    let attributes = |name: Option<&String>| name.cloned().unwrap_or_default();
    volume.metadata.deletion_timestamp.is_none()
        && mode(has.volume_mode.as_ref()) == mode(spec.volume_mode.as_ref())
        && class_of_volume(volume) == class_of(claim)
        && attributes(has.volume_attributes_class_name.as_ref())
            == attributes(spec.volume_attributes_class_name.as_ref())
        && spec.access_modes.iter().flatten().all(|m| modes.contains(m))
        && capacity(volume) >= request(claim)
}

/// The volume for a claim: one that is reserved for it, or else the smallest that is large enough.
pub fn best(
    claim: &PersistentVolumeClaim,
    volumes: &[Arc<PersistentVolume>],
    delayed: bool,
) -> Option<Arc<PersistentVolume>> {
    let spec = claim.spec.as_ref()?;
    let suitable = || volumes.iter().filter(|v| is_suitable(v, claim, spec));
    if let Some(reserved) = suitable().find(|v| refers_to(v, claim)) {
        return Some(reserved.clone());
    }
    if delayed {
        return None;
    }
    let selector = spec.selector.as_ref().map(Selector::new);
    suitable()
        .filter(|v| v.spec.as_ref().is_none_or(|s| s.claim_ref.is_none()))
        .filter(|v| v.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Available"))
        .filter(|v| selector.as_ref().is_none_or(|s| s.matches(&v.metadata)))
        .min_by_key(|v| (capacity(v), v.metadata.name.clone()))
        .cloned()
}

/// What becomes of a claim.
#[derive(Debug, PartialEq)]
pub enum Fate {
    /// It is or is to be bound to this volume.
    Bind(Arc<PersistentVolume>),
    /// It waits.
    Wait,
    /// There is no volume for it: one may be made.
    Provision,
    /// It has lost its volume: reason and message.
    Lost(&'static str, &'static str),
}

/// Decides for a claim. `delayed` says that its class waits for a pod and none has a node yet.
pub fn fate(claim: &PersistentVolumeClaim, volumes: &[Arc<PersistentVolume>], delayed: bool) -> Fate {
    let wanted = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).filter(|n| !n.is_empty());
    let named = wanted.and_then(|name| volumes.iter().find(|v| v.metadata.name.as_deref() == Some(name)));
    let free = |v: &Arc<PersistentVolume>| v.spec.as_ref().is_none_or(|s| s.claim_ref.is_none());
    if !has_annotation(&claim.metadata, BIND_COMPLETED) {
        return match (wanted, named) {
            (None, _) => match best(claim, volumes, delayed) {
                Some(volume) => Fate::Bind(volume),
                None if delayed => Fate::Wait,
                None => Fate::Provision,
            },
            (Some(_), Some(volume)) if free(volume) || refers_to(volume, claim) => Fate::Bind(volume.clone()),
            (Some(_), _) => Fate::Wait,
        };
    }
    match (wanted, named) {
        (None, _) => {
            Fate::Lost("ClaimLost", "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!")
        }
        (Some(_), None) => {
            Fate::Lost("ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!")
        }
        (Some(_), Some(volume)) if free(volume) || refers_to(volume, claim) => Fate::Bind(volume.clone()),
        (Some(_), Some(_)) => {
            Fate::Lost("ClaimMisbound", "Two claims are bound to the same volume, this one is bound incorrectly")
        }
    }
}

/// What becomes of a volume whose claim is gone.
#[derive(Debug, PartialEq, Eq)]
pub enum Reclaim {
    /// It stays.
    Retain,
    /// Who made it deletes it.
    Delete,
    /// It was to be deleted or emptied but nobody can: reason and message.
    Fail(&'static str, String),
}

/// Annotation of a volume: who made it.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";

/// Decides what becomes of a volume whose claim is gone. Nothing here empties volumes, and only drivers delete them.
fn reclaim(volume: &PersistentVolume) -> Reclaim {
    let policy = volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
    let maker = annotation(&volume.metadata, PROVISIONED_BY).filter(|by| !by.is_empty());
    let theirs = maker.is_some_and(|by| !by.starts_with("kubernetes.io/") || csi_migration::driver_of(by).is_some());
    match policy {
        Some("Recycle") => Reclaim::Fail("VolumeFailedRecycle", "No recycler plugin found for the volume!".into()),
        Some("Delete") if theirs => Reclaim::Delete,
        Some("Delete") => {
            let name = volume.metadata.name.as_deref().unwrap_or_default();
            let why = "no deletable volume plugin matched";
            let message = format!("error getting deleter volume plugin for volume {name:?}: {why}");
            Reclaim::Fail("VolumeFailedDelete", message)
        }
        _ => Reclaim::Retain,
    }
}

/// What becomes of a volume.
#[derive(Debug, PartialEq, Eq)]
pub enum Phase {
    Available,
    Bound,
    /// Its claim is gone, and with it perhaps the volume.
    Released(Reclaim),
    /// It was reserved for a claim that took another one: the reservation ends.
    Unbind,
    /// Its claim is looked at next.
    Leave,
}

/// Decides for a volume; `claim` is the one that it refers to, if that is there.
pub fn phase(volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>) -> Phase {
    let Some(spec) = volume.spec.as_ref() else { return Phase::Leave };
    let Some(reference) = spec.claim_ref.as_ref() else { return Phase::Available };
    if reference.uid.as_ref().is_none_or(String::is_empty) {
        return Phase::Available;
    }
    let Some(claim) = claim.filter(|c| c.metadata.uid == reference.uid) else {
        return Phase::Released(reclaim(volume));
    };
    match claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()) {
        Some(name) if volume.metadata.name.as_deref() == Some(name) => Phase::Bound,
        None | Some("") => Phase::Leave,
        Some(_) if has_annotation(&volume.metadata, BOUND_BY_CONTROLLER) => Phase::Unbind,
        Some(_) => Phase::Available,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn volume(name: &str, size: &str, rest: Value) -> Arc<PersistentVolume> {
        let mut whole = json!({"metadata": {"name": name}, "spec": {"capacity": {"storage": size},
            "accessModes": ["ReadWriteOnce"], "storageClassName": "c"}, "status": {"phase": "Available"}});
        keelson_machinery::patch::merge(&mut whole, &rest);
        Arc::new(serde_json::from_value(whole).unwrap())
    }

    fn claim(rest: Value) -> PersistentVolumeClaim {
        let mut whole = json!({"metadata": {"namespace": "d", "name": "x", "uid": "u"}, "spec": {"storageClassName": "c",
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
        keelson_machinery::patch::merge(&mut whole, &rest);
        serde_json::from_value(whole).unwrap()
    }

    fn reserved(uid: &str, claim: &str) -> Value {
        json!({"spec": {"claimRef": {"namespace": "d", "name": claim, "uid": uid}}})
    }

    #[test]
    fn claims_get_the_smallest_volume_that_fits() {
        let volumes = [
            volume("big", "10Gi", json!({})),
            volume("small", "2Gi", json!({})),
            volume("tiny", "1Mi", json!({})),
            volume("other-class", "1Gi", json!({"spec": {"storageClassName": "d"}})),
            volume("taken", "1Gi", reserved("v", "y")),
            volume("block", "1Gi", json!({"spec": {"volumeMode": "Block"}})),
            volume("going", "1Gi", json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})),
            volume("labeled", "20Gi", json!({"metadata": {"labels": {"l": "1"}}})),
        ];
        let name = |fate: Fate| match fate {
            Fate::Bind(volume) => volume.metadata.name.clone().unwrap(),
            other => format!("{other:?}"),
        };
        for (what, claim, delayed, expected) in [
            ("smallest", claim(json!({})), false, "small"),
            ("large enough", claim(json!({"spec": {"resources": {"requests": {"storage": "3Gi"}}}})), false, "big"),
            ("too large", claim(json!({"spec": {"resources": {"requests": {"storage": "1Ti"}}}})), false, "Provision"),
            ("another mode", claim(json!({"spec": {"accessModes": ["ReadWriteMany"]}})), false, "Provision"),
            ("selected", claim(json!({"spec": {"selector": {"matchLabels": {"l": "1"}}}})), false, "labeled"),
            ("by name", claim(json!({"spec": {"volumeName": "big"}})), false, "big"),
            ("taken by another", claim(json!({"spec": {"volumeName": "taken"}})), false, "Wait"),
            ("not there", claim(json!({"spec": {"volumeName": "none"}})), false, "Wait"),
            ("waits for a pod", claim(json!({})), true, "Wait"),
        ] {
            assert_eq!(name(fate(&claim, &volumes, delayed)), expected, "{what}");
        }
        let mine = volume("mine", "5Gi", reserved("", "x"));
        assert_eq!(name(fate(&claim(json!({})), &[volumes[1].clone(), mine], true)), "mine");
        let bound = |rest: Value| {
            let mut whole = json!({"metadata": {"annotations": {BIND_COMPLETED: "yes"}}});
            keelson_machinery::patch::merge(&mut whole, &rest);
            claim(whole)
        };
        for (claim, expected) in [
            (bound(json!({})), "ClaimLost"),
            (bound(json!({"spec": {"volumeName": "none"}})), "ClaimLost"),
            (bound(json!({"spec": {"volumeName": "taken"}})), "ClaimMisbound"),
        ] {
            assert!(matches!(fate(&claim, &volumes, false), Fate::Lost(reason, _) if reason == expected), "{expected}");
        }
    }

    #[test]
    fn volumes_follow_their_claims() {
        let there = claim(json!({"spec": {"volumeName": "v"}}));
        let elsewhere = claim(json!({"spec": {"volumeName": "w"}}));
        let by_us = json!({"metadata": {"annotations": {BOUND_BY_CONTROLLER: "yes"}}, "spec": {"claimRef": {"namespace": "d", "name": "x", "uid": "u"}}});
        let with = |policy: &str, by: &str| {
            json!({"metadata": {"annotations": {PROVISIONED_BY: by}}, "spec": {"persistentVolumeReclaimPolicy": policy,
                "claimRef": {"namespace": "d", "name": "x", "uid": "u"}}})
        };
        let nobody = "error getting deleter volume plugin for volume \"v\": no deletable volume plugin matched";
        let cannot = || Phase::Released(Reclaim::Fail("VolumeFailedDelete", nobody.into()));
        let full =
            Phase::Released(Reclaim::Fail("VolumeFailedRecycle", "No recycler plugin found for the volume!".into()));
        for (what, rest, claim, expected) in [
            ("free", json!({}), None, Phase::Available),
            ("reserved", reserved("", "x"), None, Phase::Available),
            ("bound", reserved("u", "x"), Some(&there), Phase::Bound),
            ("claim gone", reserved("u", "x"), None, Phase::Released(Reclaim::Retain)),
            ("claim made anew", reserved("old", "x"), Some(&there), Phase::Released(Reclaim::Retain)),
            ("to delete", with("Delete", "example.com/d"), None, Phase::Released(Reclaim::Delete)),
            ("its plugin moved", with("Delete", "kubernetes.io/aws-ebs"), None, Phase::Released(Reclaim::Delete)),
            ("its plugin is gone", with("Delete", "kubernetes.io/glusterfs"), None, cannot()),
            ("nobody deletes it", with("Delete", ""), None, cannot()),
            ("nobody empties it", with("Recycle", ""), None, full),
            ("not taken", by_us, Some(&elsewhere), Phase::Unbind),
        ] {
            assert_eq!(phase(&volume("v", "1Gi", rest), claim), expected, "{what}");
        }
    }
}
