//! Decides which volume a claim gets, and what becomes of volumes whose claims are gone.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimSpec};
use k8s_openapi::api::storage::v1::StorageClass;
use keelson_machinery::csi_migration;
use keelson_machinery::quantity::Quantity;

use crate::owners::Selector;

/// Annotation of a claim: it has been bound.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// Annotation of claim and volume: a controller made the reference.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// Annotations of a class that claims without one get.
const DEFAULT_CLASS: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
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
    // Who reserves a volume need not care for its class.
    if let Some(reserved) = suitable().find(|v| refers_to(v, claim)) {
        return Some(reserved.clone());
    }
    if delayed {
        return None;
    }
    let selector = spec.selector.as_ref().map(Selector::new);
    suitable()
        .filter(|v| class_of_volume(v) == class_of(claim))
        .filter(|v| v.spec.as_ref().is_none_or(|s| s.claim_ref.is_none()))
        .filter(|v| v.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Available"))
        .filter(|v| selector.as_ref().is_none_or(|s| s.matches(&v.metadata)))
        .min_by_key(|v| (capacity(v), v.metadata.name.clone()))
        .cloned()
}

/// Why a claim cannot have the volume that it names.
fn mismatch(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<String> {
    let (has, wants) = (volume.spec.as_ref()?, claim.spec.as_ref()?);
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let attributes = |name: Option<&String>| name.cloned().unwrap_or_default();
    let offered = has.access_modes.as_deref().unwrap_or_default();
    let why = if volume.metadata.deletion_timestamp.is_some() {
        return Some(format!("the volume is marked for deletion {name:?}"));
    } else if capacity(volume) < request(claim) {
        "requested PV is too small"
    } else if class_of_volume(volume) != class_of(claim) {
        "storageClassName does not match"
    } else if attributes(has.volume_attributes_class_name.as_ref())
        != attributes(wants.volume_attributes_class_name.as_ref())
    {
        "volumeAttributesClassName does not match"
    } else if mode(has.volume_mode.as_ref()) != mode(wants.volume_mode.as_ref()) {
        "incompatible volumeMode"
    } else if !wants.access_modes.iter().flatten().all(|m| offered.contains(m)) {
        "incompatible accessMode"
    } else {
        return None;
    };
    Some(why.to_owned())
}

/// The class that claims without one get: the newest that is marked so.
pub fn default_class<'a>(classes: impl Iterator<Item = &'a StorageClass>) -> Option<&'a StorageClass> {
    let marked =
        |class: &&StorageClass| DEFAULT_CLASS.iter().any(|key| annotation(&class.metadata, key) == Some("true"));
    classes.filter(marked).min_by_key(|class| {
        let made = class.metadata.creation_timestamp.as_ref().map(|t| t.0);
        (std::cmp::Reverse(made), class.metadata.name.clone())
    })
}

/// Whether a claim says nothing of a class, not even that it wants none.
pub fn is_without_class(claim: &PersistentVolumeClaim) -> bool {
    claim.spec.as_ref().is_none_or(|s| s.storage_class_name.is_none())
        && !has_annotation(&claim.metadata, CLASS_ANNOTATION)
}

/// What a claim that waits for a pod is told; `pods` are those that use it and have no node yet.
pub fn waiting_for(pods: &[String]) -> (&'static str, String) {
    let message = match pods {
        [] => return ("WaitForFirstConsumer", "waiting for first consumer to be created before binding".into()),
        [pod] => format!("waiting for pod {pod} to be scheduled"),
        many => format!("waiting for pods {} to be scheduled", many.join(",")),
    };
    ("WaitForPodScheduled", message)
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
    /// It cannot have the volume that it names, now: reason and message.
    Refused(&'static str, String),
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
            (Some(_), Some(volume)) if refers_to(volume, claim) => Fate::Bind(volume.clone()),
            (Some(name), Some(volume)) if free(volume) => match mismatch(volume, claim) {
                None => Fate::Bind(volume.clone()),
                Some(why) => {
                    Fate::Refused("VolumeMismatch", format!("Cannot bind to requested volume {name:?}: {why}"))
                }
            },
            (Some(name), Some(_)) => {
                Fate::Refused("FailedBinding", format!("volume {name:?} already bound to a different claim."))
            }
            (Some(_), None) => Fate::Wait,
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
    /// It is deleted; what is in its directory stays on the node.
    Forget,
    /// It was to be deleted or emptied but nobody can: reason and message.
    Fail(&'static str, String),
}

/// Annotation of a volume: who made it.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";

/// The directory of a node that a volume is.
fn host_path(volume: &PersistentVolume) -> Option<&str> {
    volume.spec.as_ref()?.host_path.as_ref().map(|source| source.path.as_str())
}

/// Whether a directory is one of those that need not be kept.
fn is_temporary(path: &str) -> bool {
    path.split_once("/tmp/").is_some_and(|(_, rest)| !rest.is_empty())
}

/// Decides what becomes of a volume whose claim is gone. Nothing here empties volumes, and only drivers delete them.
fn reclaim(volume: &PersistentVolume) -> Reclaim {
    let policy = volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
    let maker = annotation(&volume.metadata, PROVISIONED_BY).filter(|by| !by.is_empty());
    let theirs = maker.is_some_and(|by| !by.starts_with("kubernetes.io/") || csi_migration::driver_of(by).is_some());
    match policy {
        Some("Recycle") => Reclaim::Fail("VolumeFailedRecycle", "No recycler plugin found for the volume!".into()),
        Some("Delete") if theirs => Reclaim::Delete,
        Some("Delete") if let Some(path) = host_path(volume) => match is_temporary(path) {
            true => Reclaim::Forget,
            false => {
                let message = format!("host_path deleter only supports /tmp/.+ but received provided {path}");
                Reclaim::Fail("VolumeFailedDelete", message)
            }
        },
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
    /// It was reserved for a claim that took another one: the reservation ends, or if it is somebody else's, is only by name
    /// again.
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
        // It was made for a claim that took another one.
        Some(_)
            if has_annotation(&volume.metadata, PROVISIONED_BY)
                && spec.persistent_volume_reclaim_policy.as_deref() == Some("Delete") =>
        {
            Phase::Released(reclaim(volume))
        }
        Some(_) => Phase::Unbind,
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
            (
                "taken by another",
                claim(json!({"spec": {"volumeName": "taken"}})),
                false,
                "Refused(\"FailedBinding\", \"volume \\\"taken\\\" already bound to a different claim.\")",
            ),
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
    fn a_claim_gets_the_volume_that_it_names_only_if_it_fits() {
        let asks = |rest: Value| {
            let mut whole = json!({"spec": {"volumeName": "v"}});
            keelson_machinery::patch::merge(&mut whole, &rest);
            claim(whole)
        };
        for (volume_part, claim_part, expected) in [
            (json!({}), json!({}), None),
            (
                json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
                json!({}),
                Some("the volume is marked for deletion \"v\""),
            ),
            (
                json!({}),
                json!({"spec": {"resources": {"requests": {"storage": "9Gi"}}}}),
                Some("requested PV is too small"),
            ),
            (json!({"spec": {"storageClassName": "d"}}), json!({}), Some("storageClassName does not match")),
            (
                json!({}),
                json!({"spec": {"volumeAttributesClassName": "a"}}),
                Some("volumeAttributesClassName does not match"),
            ),
            (json!({"spec": {"volumeMode": "Block"}}), json!({}), Some("incompatible volumeMode")),
            (json!({}), json!({"spec": {"accessModes": ["ReadWriteMany"]}}), Some("incompatible accessMode")),
        ] {
            let volumes = [volume("v", "2Gi", volume_part)];
            let expected = match expected {
                None => Fate::Bind(volumes[0].clone()),
                Some(why) => Fate::Refused("VolumeMismatch", format!("Cannot bind to requested volume \"v\": {why}")),
            };
            assert_eq!(fate(&asks(claim_part), &volumes, false), expected);
        }
        // One that is reserved for the claim may have another class.
        let mut mine = reserved("", "x");
        mine["spec"]["storageClassName"] = "d".into();
        let volumes = [volume("v", "2Gi", mine)];
        assert_eq!(fate(&claim(json!({})), &volumes, false), Fate::Bind(volumes[0].clone()));
    }

    #[test]
    fn the_newest_default_class_is_chosen() {
        let class = |name: &str, second: u8, annotations: Value| -> StorageClass {
            serde_json::from_value(json!({"metadata": {"name": name, "annotations": annotations,
                "creationTimestamp": format!("2026-01-01T00:00:0{second}Z")}, "provisioner": "p"}))
            .unwrap()
        };
        let ga = || json!({"storageclass.kubernetes.io/is-default-class": "true"});
        let beta = json!({"storageclass.beta.kubernetes.io/is-default-class": "true"});
        let no = json!({"storageclass.kubernetes.io/is-default-class": "false"});
        let all = [class("a", 1, ga()), class("c", 5, beta), class("b", 5, ga()), class("d", 9, no)];
        let chosen = |count: usize| default_class(all[..count].iter()).and_then(|c| c.metadata.name.clone());
        assert_eq!([chosen(0), chosen(1), chosen(2), chosen(4)].map(Option::unwrap_or_default), ["", "a", "c", "b"]);
        for (rest, expected) in [
            (json!({"spec": {"storageClassName": null}}), true),
            (json!({"spec": {"storageClassName": ""}}), false),
            (json!({"metadata": {"annotations": {CLASS_ANNOTATION: ""}}, "spec": {"storageClassName": null}}), false),
        ] {
            assert_eq!(is_without_class(&claim(rest.clone())), expected, "{rest}");
        }
    }

    #[test]
    fn claims_that_wait_are_told_for_what() {
        for (pods, reason, message) in [
            (vec![], "WaitForFirstConsumer", "waiting for first consumer to be created before binding"),
            (vec!["a"], "WaitForPodScheduled", "waiting for pod a to be scheduled"),
            (vec!["a", "b"], "WaitForPodScheduled", "waiting for pods a,b to be scheduled"),
        ] {
            let pods: Vec<String> = pods.into_iter().map(str::to_owned).collect();
            assert_eq!(waiting_for(&pods), (reason, message.to_owned()));
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
        let directory = |path: &str| {
            json!({"spec": {"persistentVolumeReclaimPolicy": "Delete", "hostPath": {"path": path},
                "claimRef": {"namespace": "d", "name": "x", "uid": "u"}}})
        };
        let not_temporary = |path: &str| {
            let why = format!("host_path deleter only supports /tmp/.+ but received provided {path}");
            Phase::Released(Reclaim::Fail("VolumeFailedDelete", why))
        };
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
            ("not taken, reserved by others", reserved("u", "x"), Some(&elsewhere), Phase::Unbind),
            ("made for it", with("Delete", "example.com/d"), Some(&elsewhere), Phase::Released(Reclaim::Delete)),
            ("a temporary directory", directory("/tmp/x"), None, Phase::Released(Reclaim::Forget)),
            ("the one of all", directory("/tmp/"), None, not_temporary("/tmp/")),
            ("another directory", directory("/data"), None, not_temporary("/data")),
        ] {
            assert_eq!(phase(&volume("v", "1Gi", rest), claim), expected, "{what}");
        }
    }
}
