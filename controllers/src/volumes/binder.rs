//! Binds claims to volumes, and has volumes made for claims that find none.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use keelson_client::informer::key;
use keelson_client::{Change, Error, Key};
use keelson_machinery::csi_migration;
use serde_json::json;

use super::local_path;
use super::migration;
use super::plan::{self, BIND_COMPLETED, BOUND_BY_CONTROLLER, Fate, Phase, Reclaim};
use crate::context::Context;
use crate::kept::Pod;
use crate::pods;
use crate::runtime::{Keys, Outcome, watch_own, watch_with};

const COMPONENT: &str = "persistentvolume-controller";
/// Annotations of a claim: who is to make its volume, and for which node.
const PROVISIONER: [&str; 2] =
    ["volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner"];
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// Provisioners that were once part of Kubernetes begin with this.
const IN_TREE: &str = "kubernetes.io/";
/// A claim that nothing can be made for is looked at again after this.
const AGAIN: Duration = Duration::from_secs(15);

pub(crate) fn watch_claims(context: &Arc<Context>, queue: &Keys) {
    watch_own(&context.cache.claims, queue);
    // A volume that became free or reserved may be what a claim waits for.
    let weak = Arc::downgrade(context);
    watch_with(&context.cache.volumes, queue, move |change: &Change<PersistentVolume>| {
        let (Some(volume), Some(context)) = (change.object(), weak.upgrade()) else { return Vec::new() };
        let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
        if let Some(reference) = reference {
            let part = |text: &Option<String>| text.clone().unwrap_or_default();
            return vec![(part(&reference.namespace), part(&reference.name))];
        }
        let waiting = context.cache.claims.by(super::WAITING, plan::class_of_volume(volume));
        waiting.iter().map(|c| key(&**c)).collect()
    });
    // A pod with a node ends the wait of claims that wait for one.
    let weak = Arc::downgrade(context);
    watch_with(&context.cache.pods, queue, move |change: &Change<Pod>| {
        let node = |pod: &Option<Arc<Pod>>| pod.as_ref().and_then(|p| p.spec.as_ref()?.node_name.clone());
        let Some(pod) = change.new.as_ref().filter(|_| node(&change.old) != node(&change.new)) else {
            return Vec::new();
        };
        let Some(context) = weak.upgrade() else { return Vec::new() };
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let claims = super::claims_of(pod).map(|name| (namespace.clone(), name));
        claims.filter(|key| context.cache.claims.get(key).is_some()).collect()
    });
}

/// The class of a claim.
fn class(context: &Context, claim: &PersistentVolumeClaim) -> Option<Arc<StorageClass>> {
    context.cache.storage_classes.named("", plan::class_of(claim))
}

/// The node for which the claim's volume is made: the scheduler's choice, or that of a pod which has one.
fn selected_node(context: &Context, claim: &PersistentVolumeClaim) -> Option<String> {
    let chosen = claim.metadata.annotations.as_ref().and_then(|a| a.get(SELECTED_NODE)).cloned();
    let (namespace, name) = key(claim);
    chosen.or_else(|| {
        let users = context.cache.pods.by(super::BY_CLAIM, &format!("{namespace}/{name}"));
        users.iter().find_map(|p| p.spec.as_ref()?.node_name.clone().filter(|n| !n.is_empty()))
    })
}

/// The volumes that a claim may get: the one that it names, or else those that are reserved for it and the free ones of its
/// class.
fn candidates(context: &Context, claim: &PersistentVolumeClaim) -> Vec<Arc<PersistentVolume>> {
    let volumes = &context.cache.volumes;
    match claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).filter(|name| !name.is_empty()) {
        Some(name) => volumes.named("", name).into_iter().collect(),
        None => {
            let mut found = volumes.by(super::RESERVED, &super::full_name(claim));
            found.extend(volumes.by(super::FREE, plan::class_of(claim)));
            found
        }
    }
}

pub(crate) async fn reconcile_claim(context: Arc<Context>, key: Key) -> Outcome {
    let Some(claim) = context.cache.claims.get(&key) else { return Ok(None) };
    let mut migrated = (*claim).clone();
    if migration::annotate(&mut migrated.metadata.annotations, &PROVISIONER) {
        let written = context.client.namespaced::<PersistentVolumeClaim>(&key.0).replace(&key.1, &migrated).await?;
        context.settle(&context.cache.claims, &written).await;
        return Ok(None);
    }
    let volumes = candidates(&context, &claim);
    let class = class(&context, &claim);
    let waits = class.as_ref().is_some_and(|c| c.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"));
    let node = selected_node(&context, &claim);
    match plan::fate(&claim, &volumes, waits && node.is_none()) {
        Fate::Bind(volume) => bind(&context, &claim, &volume).await.map(|()| None),
        Fate::Lost(reason, message) => {
            if phase_of(&claim) != "Lost" {
                context.recorder(COMPONENT).warning(&*claim, reason, message);
                set_phase(&context, &claim, "Lost").await?;
            }
            Ok(None)
        }
        Fate::Refused(reason, message) => {
            context.recorder(COMPONENT).warning(&*claim, reason, message);
            set_phase(&context, &claim, "Pending").await?;
            Ok(Some(AGAIN))
        }
        Fate::Wait => {
            if waits && claim.spec.as_ref().is_none_or(|s| s.volume_name.is_none()) {
                let (reason, message) = plan::waiting_for(&unplaced_users(&context, &claim));
                context.recorder(COMPONENT).normal(&*claim, reason, message);
            }
            set_phase(&context, &claim, "Pending").await?;
            Ok(Some(AGAIN))
        }
        Fate::Provision if plan::is_without_class(&claim) && give_default_class(&context, &claim).await? => Ok(None),
        Fate::Provision => {
            set_phase(&context, &claim, "Pending").await?;
            provision(&context, &claim, class.as_deref(), node).await
        }
    }
}

/// Pods that use a claim, have no node and have not ended.
fn unplaced_users(context: &Context, claim: &PersistentVolumeClaim) -> Vec<String> {
    let users = context.cache.pods.by(super::BY_CLAIM, &super::full_name(claim));
    let is_placed = |p: &Pod| p.spec.as_ref().and_then(|s| s.node_name.as_deref()).is_some_and(|n| !n.is_empty());
    let waiting = users.iter().filter(|p| !is_placed(p) && !pods::is_finished(p));
    let mut names: Vec<String> = waiting.filter_map(|p| p.metadata.name.clone()).collect();
    names.sort();
    names
}

/// Gives a claim the class that those without one get, if there is one by now.
async fn give_default_class(context: &Context, claim: &PersistentVolumeClaim) -> Result<bool, Error> {
    let classes = context.cache.storage_classes.list_all();
    let Some(class) = plan::default_class(classes.iter().map(|c| &**c)) else { return Ok(false) };
    let mut changed = claim.clone();
    changed.spec.get_or_insert_default().storage_class_name.clone_from(&class.metadata.name);
    let (namespace, name) = key(claim);
    let written = context.client.namespaced::<PersistentVolumeClaim>(&namespace).replace(&name, &changed).await?;
    context.settle(&context.cache.claims, &written).await;
    Ok(true)
}

fn phase_of(claim: &PersistentVolumeClaim) -> &str {
    claim.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

async fn set_phase(context: &Context, claim: &PersistentVolumeClaim, phase: &str) -> Result<(), Error> {
    if phase_of(claim) == phase {
        return Ok(());
    }
    let mut changed = claim.clone();
    let status = changed.status.get_or_insert_default();
    status.phase = Some(phase.into());
    if phase != "Bound" {
        (status.access_modes, status.capacity) = (None, None);
    }
    write_claim_status(context, &changed).await.map(|_| ())
}

async fn write_claim_status(
    context: &Context,
    changed: &PersistentVolumeClaim,
) -> Result<PersistentVolumeClaim, Error> {
    let (namespace, name) = key(changed);
    let written = context.client.namespaced::<PersistentVolumeClaim>(&namespace).replace_status(&name, changed).await?;
    context.settle(&context.cache.claims, &written).await;
    Ok(written)
}

/// Makes volume and claim refer to each other, then says so in both statuses. The next look waits until the caches show it.
async fn bind(context: &Context, claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Result<(), Error> {
    let reserved = reserve(context, claim, volume).await?;
    let tell = async {
        match with_phase(context, &reserved, "Bound") {
            Some(changed) => write_volume_status(context, &changed).await,
            None => Ok(reserved.clone()),
        }
    };
    // Neither needs the other: whoever finds only one of them done does the rest.
    let (volume, mut bound) = futures::try_join!(tell, refer(context, claim, &reserved))?;
    let mut status = bound.status.clone().unwrap_or_default();
    if status.phase.as_deref() == Some("Pending") {
        // Later it is told by who changes the attributes.
        status.current_volume_attributes_class_name =
            volume.spec.as_ref().and_then(|s| s.volume_attributes_class_name.clone());
    }
    status.phase = Some("Bound".into());
    status.access_modes = volume.spec.as_ref().and_then(|s| s.access_modes.clone());
    // What grows later is told by who makes it grow.
    if status.capacity.is_none() {
        status.capacity = volume.spec.as_ref().and_then(|s| s.capacity.clone());
    }
    if bound.status.as_ref() != Some(&status) {
        bound.status = Some(status);
        let (namespace, name) = key(&bound);
        bound = context.client.namespaced::<PersistentVolumeClaim>(&namespace).replace_status(&name, &bound).await?;
    }
    context.settle(&context.cache.volumes, &volume).await;
    context.settle(&context.cache.claims, &bound).await;
    Ok(())
}

async fn reserve(
    context: &Context,
    claim: &PersistentVolumeClaim,
    volume: &PersistentVolume,
) -> Result<PersistentVolume, Error> {
    let mut changed = volume.clone();
    let spec = changed.spec.get_or_insert_default();
    let full = spec.claim_ref.as_ref().is_some_and(|r| r.uid == claim.metadata.uid);
    if full {
        return Ok(changed);
    }
    let by_us = spec.claim_ref.is_none();
    spec.claim_ref = Some(ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("PersistentVolumeClaim".into()),
        namespace: claim.metadata.namespace.clone(),
        name: claim.metadata.name.clone(),
        uid: claim.metadata.uid.clone(),
        resource_version: claim.metadata.resource_version.clone(),
        field_path: None,
    });
    if by_us {
        changed.metadata.annotations.get_or_insert_default().insert(BOUND_BY_CONTROLLER.into(), "yes".into());
    }
    let name = changed.metadata.name.clone().unwrap_or_default();
    context.client.cluster::<PersistentVolume>().replace(&name, &changed).await
}

async fn refer(
    context: &Context,
    claim: &PersistentVolumeClaim,
    volume: &PersistentVolume,
) -> Result<PersistentVolumeClaim, Error> {
    let mut changed = claim.clone();
    let spec = changed.spec.get_or_insert_default();
    let annotations = changed.metadata.annotations.get_or_insert_default();
    if spec.volume_name != volume.metadata.name {
        spec.volume_name = volume.metadata.name.clone();
        annotations.insert(BOUND_BY_CONTROLLER.into(), "yes".into());
    }
    annotations.entry(BIND_COMPLETED.into()).or_insert_with(|| "yes".into());
    if changed == *claim {
        return Ok(changed);
    }
    let (namespace, name) = key(claim);
    context.client.namespaced::<PersistentVolumeClaim>(&namespace).replace(&name, &changed).await
}

/// Has a volume made for the claim.
async fn provision(
    context: &Context,
    claim: &PersistentVolumeClaim,
    class: Option<&StorageClass>,
    node: Option<String>,
) -> Outcome {
    let recorder = context.recorder(COMPONENT);
    let name = plan::class_of(claim);
    if name.is_empty() {
        let message = "no persistent volumes available for this claim and no storage class is set";
        recorder.normal(claim, "FailedBinding", message);
        return Ok(Some(AGAIN));
    }
    let Some(class) = class else {
        let message = format!("storageclass.storage.k8s.io {name:?} not found");
        recorder.warning(claim, "ProvisioningFailed", message);
        return Ok(Some(AGAIN));
    };
    if claim.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    if class.provisioner == local_path::PROVISIONER {
        // What was just made is bound at once: the look that its coming brings would only find it again.
        return match local_path::provision(context, claim, class, node).await? {
            Some(made) => bind(context, claim, &made).await.map(|()| None),
            None => Ok(None),
        };
    }
    // A plugin that moved is its driver's sidecar by now.
    let provisioner = csi_migration::driver_of(&class.provisioner).unwrap_or(&class.provisioner);
    if provisioner.starts_with(IN_TREE) {
        let message = format!("no volume plugin matched name: {}", class.provisioner);
        recorder.warning(claim, "ProvisioningFailed", message);
        return Ok(Some(AGAIN));
    }
    let annotations = claim.metadata.annotations.as_ref();
    if annotations.and_then(|a| a.get(PROVISIONER[0])).map(String::as_str) != Some(provisioner) {
        let wanted: serde_json::Map<String, serde_json::Value> =
            PROVISIONER.iter().map(|key| ((*key).to_owned(), json!(provisioner))).collect();
        let patch = json!({"metadata": {"uid": claim.metadata.uid, "annotations": wanted}});
        let (namespace, name) = key(claim);
        let api = context.client.namespaced::<PersistentVolumeClaim>(&namespace);
        let written = api.patch(&name, None, keelson_client::PatchType::Merge, &patch).await?;
        context.settle(&context.cache.claims, &written).await;
    }
    let message = format!(
        "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the system \
         administrator. If volume creation is delayed, please verify that the provisioner is running and correctly \
         registered."
    );
    recorder.normal(claim, "ExternalProvisioning", message);
    Ok(Some(AGAIN))
}

pub(crate) fn watch_volumes(context: &Arc<Context>, queue: &Keys) {
    watch_own(&context.cache.volumes, queue);
    let weak = Arc::downgrade(context);
    watch_with(&context.cache.claims, queue, move |change: &Change<PersistentVolumeClaim>| {
        let (Some(claim), Some(context)) = (change.object(), weak.upgrade()) else { return Vec::new() };
        let named = claim.spec.as_ref().and_then(|s| s.volume_name.clone()).filter(|n| !n.is_empty());
        let named = named.map(|n| (String::new(), n));
        // A claim that is gone frees what was reserved for it.
        let gone = change.new.is_none();
        let reserved =
            if gone { context.cache.volumes.by(super::RESERVED, &super::full_name(claim)) } else { Vec::new() };
        named.into_iter().chain(reserved.iter().filter(|v| plan::refers_to(v, claim)).map(|v| key(&**v))).collect()
    });
}

pub(crate) async fn reconcile_volume(context: Arc<Context>, key: Key) -> Outcome {
    let Some(volume) = context.cache.volumes.get(&key) else { return Ok(None) };
    let mut migrated = (*volume).clone();
    if migration::annotate(&mut migrated.metadata.annotations, &[plan::PROVISIONED_BY]) {
        let written = context.client.cluster::<PersistentVolume>().replace(&key.1, &migrated).await?;
        context.settle(&context.cache.volumes, &written).await;
        // The change brings the next look.
        return Ok(None);
    }
    let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.clone()).unwrap_or_default();
    let (namespace, name) = (reference.namespace.unwrap_or_default(), reference.name.unwrap_or_default());
    let mut claim = context.cache.claims.named(&namespace, &name);
    if !name.is_empty() && claim.as_ref().is_none_or(|c| c.metadata.uid != reference.uid) {
        // The cache may be behind; only the API's word releases a volume.
        let fresh = context.client.namespaced::<PersistentVolumeClaim>(&namespace).get_opt(&name).await?;
        claim = fresh.map(Arc::new);
    }
    match plan::phase(&volume, claim.as_deref()) {
        Phase::Leave => {}
        Phase::Available => drop(set_volume_phase(&context, &volume, "Available").await?),
        Phase::Bound => drop(set_volume_phase(&context, &volume, "Bound").await?),
        Phase::Released(Reclaim::Fail(..)) if phase_of_volume(&volume) == "Failed" => {}
        Phase::Released(reclaim) => {
            let volume = set_volume_phase(&context, &volume, "Released").await?;
            released(&context, &volume, reclaim).await?;
        }
        Phase::Unbind => {
            let mut changed = (*volume).clone();
            let spec = changed.spec.get_or_insert_default();
            if changed.metadata.annotations.get_or_insert_default().remove(BOUND_BY_CONTROLLER).is_some() {
                spec.claim_ref = None;
            } else if let Some(reference) = &mut spec.claim_ref {
                // Somebody else's: it stays, by name only.
                reference.uid = None;
            }
            let written = context.client.cluster::<PersistentVolume>().replace(&key.1, &changed).await?;
            context.settle(&context.cache.volumes, &written).await;
            set_volume_phase(&context, &written, "Available").await?;
        }
    }
    Ok(None)
}

fn phase_of_volume(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

/// What follows when the claim of a volume is gone.
async fn released(context: &Context, volume: &PersistentVolume, reclaim: Reclaim) -> Result<(), Error> {
    match reclaim {
        Reclaim::Delete if local_path::is_ours(volume) => local_path::delete(context, volume).await,
        Reclaim::Delete | Reclaim::Retain => Ok(()),
        Reclaim::Forget if volume.metadata.deletion_timestamp.is_some() => Ok(()),
        Reclaim::Forget => {
            let name = volume.metadata.name.as_deref().unwrap_or_default();
            let options = json!({"preconditions": {"uid": volume.metadata.uid}});
            match context.client.cluster::<PersistentVolume>().delete(name, &options).await {
                Err(error) if !error.is_not_found() => Err(error),
                _ => Ok(()),
            }
        }
        Reclaim::Fail(reason, why) => {
            context.recorder(COMPONENT).warning(volume, reason, why.clone());
            let mut failed = volume.clone();
            failed.status.get_or_insert_default().message = Some(why);
            set_volume_phase(context, &failed, "Failed").await.map(drop)
        }
    }
}

/// The volume with another phase, unless that is its phase.
fn with_phase(context: &Context, volume: &PersistentVolume, phase: &str) -> Option<PersistentVolume> {
    if phase_of_volume(volume) == phase {
        return None;
    }
    let mut changed = volume.clone();
    let status = changed.status.get_or_insert_default();
    status.phase = Some(phase.into());
    if phase != "Failed" {
        status.message = None;
    }
    status.last_phase_transition_time = Some(context.now());
    Some(changed)
}

async fn write_volume_status(context: &Context, changed: &PersistentVolume) -> Result<PersistentVolume, Error> {
    let name = changed.metadata.name.as_deref().unwrap_or_default();
    context.client.cluster::<PersistentVolume>().replace_status(name, changed).await
}

async fn set_volume_phase(
    context: &Context,
    volume: &PersistentVolume,
    phase: &str,
) -> Result<PersistentVolume, Error> {
    let Some(changed) = with_phase(context, volume, phase) else { return Ok(volume.clone()) };
    let written = write_volume_status(context, &changed).await?;
    context.settle(&context.cache.volumes, &written).await;
    Ok(written)
}
