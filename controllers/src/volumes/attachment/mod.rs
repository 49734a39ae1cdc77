//! Attach and detach: VolumeAttachments tell CSI drivers which node gets which volume; `status.volumesAttached` tells the node.
//!
//! Invariant: a volume leaves `status.volumesAttached` before its attachment is deleted, so that no node mounts what goes
//! away; a volume of one node only has one attachment.

mod plan;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{VolumeAttachment, VolumeAttachmentSource, VolumeAttachmentSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::{Change, Error, Key, PatchType};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use self::plan::{Attachable, Attached, Wanted};
use super::{claims_of, inline};
use crate::context::{BY_NODE, Context};
use crate::kept::Pod;
use crate::runtime::{Keys, Outcome, watch_with};

const COMPONENT: &str = "attachdetach-controller";
/// A node that does not say that it unmounted a volume is waited for this long, then no more if it is not healthy.
const MAX_UNMOUNT_WAIT: Duration = Duration::from_secs(360);
/// How often a volume that another node has is looked at.
const BLOCKED_RETRY: Duration = Duration::from_secs(15);
/// Index of attachments by their node.
pub const ATTACHED_TO: &str = "attached-to";
/// Index of attachments by their volume.
pub const ATTACHMENTS_OF: &str = "attachments-of";

/// For the index [`ATTACHED_TO`].
pub fn node_index(attachment: &VolumeAttachment) -> Vec<String> {
    vec![attachment.spec.node_name.clone()]
}

/// For the index [`ATTACHMENTS_OF`].
pub fn volume_index(attachment: &VolumeAttachment) -> Vec<String> {
    let source = &attachment.spec.source;
    let inline = source.inline_volume_spec.as_ref().and_then(inline::key);
    source.persistent_volume_name.iter().cloned().chain(inline).collect()
}

/// Whether a pod may have volumes that are attached.
fn has_volumes(pod: &Pod) -> bool {
    claims_of(pod).next().is_some() || inline::volumes_of(pod).next().is_some()
}

/// What is remembered between two looks at a node.
#[derive(Default)]
pub struct Memory {
    /// Since when attachments are not wanted, by their names.
    unwanted: Mutex<HashMap<String, Instant>>,
    /// Volumes of which pods were told that another node has them, by node: they are told once.
    blocked: Mutex<HashMap<String, BTreeSet<String>>>,
}

impl Memory {
    /// Notes which volumes a node's pods wait for; returns those of which they were not told.
    fn news(&self, node: &str, wanted: &[Wanted], blocked: &[usize]) -> Vec<usize> {
        let mut all = self.blocked.lock();
        let told = all.entry(node.to_owned()).or_default();
        told.retain(|key| wanted.iter().any(|one| one.volume.key() == *key));
        let news = blocked.iter().copied().filter(|at| told.insert(wanted[*at].volume.key())).collect();
        if told.is_empty() {
            all.remove(node);
        }
        news
    }
}

pub(crate) fn watch(context: &Arc<Context>, queue: &Keys) {
    let of_node = |name: Option<String>| name.filter(|n| !n.is_empty()).map(|n| (String::new(), n));
    watch_with(&context.cache.pods, queue, move |change: &Change<Pod>| {
        let Some(pod) = change.object().filter(|p| has_volumes(p)) else { return Vec::new() };
        of_node(pod.spec.as_ref().and_then(|s| s.node_name.clone())).into_iter().collect()
    });
    watch_with(&context.cache.nodes, queue, move |change: &Change<Node>| {
        let told = |node: &Option<Arc<Node>>| {
            node.as_ref().map(|n| {
                let status = n.status.as_ref();
                let volumes = status.map(|s| (s.volumes_in_use.clone(), s.volumes_attached.clone()));
                let taints = n.spec.as_ref().and_then(|s| s.taints.clone());
                (volumes, taints, n.metadata.annotations.clone())
            })
        };
        if told(&change.old) == told(&change.new) {
            return Vec::new();
        }
        of_node(change.object().and_then(|n| n.metadata.name.clone())).into_iter().collect()
    });
    let weak = Arc::downgrade(context);
    watch_with(&context.cache.attachments, queue, move |change: &Change<VolumeAttachment>| {
        let (Some(object), Some(context)) = (change.object(), weak.upgrade()) else { return Vec::new() };
        let mut nodes = vec![object.spec.node_name.clone()];
        if change.new.is_none() {
            // The next node may have it now.
            nodes.extend(waiting(&context, object));
        }
        nodes.into_iter().filter_map(|n| of_node(Some(n))).collect()
    });
    let weak = Arc::downgrade(context);
    watch_with(&context.cache.claims, queue, move |change: &Change<PersistentVolumeClaim>| {
        let (Some(claim), Some(context)) = (&change.new, weak.upgrade()) else { return Vec::new() };
        let bound = |c: &Arc<PersistentVolumeClaim>| c.spec.as_ref().and_then(|s| s.volume_name.clone());
        if change.old.as_ref().and_then(bound) == bound(claim) {
            return Vec::new();
        }
        users(&context, claim).into_iter().filter_map(|n| of_node(Some(n))).collect()
    });
}

/// Nodes with pods that use a claim.
fn users(context: &Context, claim: &PersistentVolumeClaim) -> Vec<String> {
    let (namespace, name) = (&claim.metadata.namespace, &claim.metadata.name);
    let key = format!("{}/{}", namespace.as_deref().unwrap_or_default(), name.as_deref().unwrap_or_default());
    let pods = context.cache.pods.by(super::BY_CLAIM, &key);
    pods.iter().filter_map(|p| p.spec.as_ref()?.node_name.clone()).collect()
}

/// Nodes with pods that use the volume of an attachment.
fn waiting(context: &Context, attachment: &VolumeAttachment) -> Vec<String> {
    if let Some(key) = attachment.spec.source.inline_volume_spec.as_ref().and_then(inline::key) {
        let pods = context.cache.pods.by(super::BY_CLAIM, &key);
        return pods.iter().filter_map(|p| p.spec.as_ref()?.node_name.clone()).collect();
    }
    let name = attachment.spec.source.persistent_volume_name.as_deref().unwrap_or_default();
    let volume = context.cache.volumes.named("", name);
    let claim = volume.and_then(|v| v.spec.as_ref()?.claim_ref.clone());
    let claim = claim.and_then(|c| context.cache.claims.named(&c.namespace?, &c.name?));
    claim.map(|c| users(context, &c)).unwrap_or_default()
}

/// The volume that a pod's claim is bound to.
fn bound(context: &Context, namespace: &str, claim: &str) -> Option<Arc<PersistentVolume>> {
    let claim = context.cache.claims.named(namespace, claim)?;
    let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref());
    let name = claim.spec.as_ref()?.volume_name.clone().filter(|_| phase == Some("Bound"))?;
    let volume = context.cache.volumes.named("", &name)?;
    let theirs = volume.spec.as_ref()?.claim_ref.as_ref()?;
    (theirs.uid == claim.metadata.uid).then_some(volume)
}

/// Whether a driver's volumes are attached; one that says nothing of itself may need it.
fn attaches(context: &Context, driver: &str) -> bool {
    context.cache.csi_drivers.named("", driver).is_none_or(|d| d.spec.attach_required != Some(false))
}

fn attachable(context: &Context, volume: &PersistentVolume) -> Option<Attachable> {
    Attachable::of(volume, |driver| attaches(context, driver))
}

/// The volumes of a pod that can be attached.
fn attachables(context: &Context, pod: &Pod) -> Vec<Attachable> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mine = |claim: &String| super::is_for(context.cache.claims.named(namespace, claim).as_deref(), claim, pod);
    let claimed = claims_of(pod).filter(mine);
    let claimed = claimed.filter_map(|claim| attachable(context, &*bound(context, namespace, &claim)?));
    let named = inline::volumes_of(pod)
        .filter_map(|(name, spec)| Attachable::inline(name, spec, |driver| attaches(context, driver)));
    claimed.chain(named).collect()
}

/// The volumes that pods of a node need.
fn wanted(context: &Context, node: &Node) -> Vec<Wanted> {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let mut found: BTreeMap<String, Wanted> = BTreeMap::new();
    for pod in context.cache.pods.by(BY_NODE, name) {
        if !plan::needs_volumes(&pod, node) {
            continue;
        }
        for volume in attachables(context, &pod) {
            let one = found.entry(volume.key()).or_insert_with(|| {
                let all = context.cache.attachments.by(ATTACHMENTS_OF, &volume.key());
                let elsewhere = all.iter().map(|a| a.spec.node_name.clone()).find(|n| n != name);
                Wanted { volume, pods: Vec::new(), elsewhere }
            });
            one.pods.push(pod.clone());
        }
    }
    found.into_values().collect()
}

/// The attachments to a node that are this controller's, and since when they are unwanted.
fn attached(context: &Context, node: &str, wanted: &[Wanted]) -> Vec<Attached> {
    let mut unwanted = context.attachments.unwanted.lock();
    let mut all = Vec::new();
    for object in context.cache.attachments.by(ATTACHED_TO, node) {
        let source = &object.spec.source;
        let known = match (&source.persistent_volume_name, &source.inline_volume_spec) {
            (Some(volume), _) => context.cache.volumes.named("", volume).and_then(|v| attachable(context, &v)),
            (None, Some(spec)) => Attachable::inline(String::new(), spec.clone(), |d| attaches(context, d)),
            (None, None) => None,
        };
        let name = object.metadata.name.clone().unwrap_or_default();
        let Some(known) = known.filter(|k| k.attachment(node) == name) else { continue };
        let needed = wanted.iter().any(|w| w.volume.key() == known.key());
        let overdue = if needed {
            unwanted.remove(&name);
            false
        } else {
            unwanted.entry(name).or_insert_with(Instant::now).elapsed() >= MAX_UNMOUNT_WAIT
        };
        all.push(Attached { object, unique_name: known.unique_name(), overdue });
    }
    all
}

/// Looks at one node.
pub(crate) async fn reconcile(context: Arc<Context>, key: Key) -> Outcome {
    let node = context.cache.nodes.get(&key);
    if node.as_ref().is_some_and(|n| !plan::is_managed(n)) {
        return Ok(None);
    }
    let wanted = node.as_ref().map(|n| wanted(&context, n)).unwrap_or_default();
    let there = attached(&context, &key.1, &wanted);
    tell(&context, &wanted, &there, &key.1);
    let plan = plan::plan(node.as_deref(), &wanted, &there);
    if let (Some(attached), Some(node)) = (&plan.status, &node) {
        let patch = json!({"metadata": {"uid": node.metadata.uid}, "status": {"volumesAttached": attached}});
        let api = context.client.cluster::<Node>();
        let written = api.patch(&key.1, Some("status"), PatchType::Merge, &patch).await?;
        context.settle(&context.cache.nodes, &written).await;
    }
    for name in &plan.detach {
        detach(&context, name, &there).await?;
    }
    for index in &plan.attach {
        attach(&context, &wanted[*index].volume, &key.1).await?;
    }
    for index in context.attachments.news(&key.1, &wanted, &plan.blocked) {
        blocked(&context, &wanted[index]);
    }
    let again = match (plan.held.is_empty(), plan.blocked.is_empty()) {
        (true, true) => None,
        (_, false) => Some(BLOCKED_RETRY),
        (false, true) => Some(MAX_UNMOUNT_WAIT),
    };
    Ok(again)
}

async fn attach(context: &Context, volume: &Attachable, node: &str) -> Result<(), Error> {
    let object = VolumeAttachment {
        metadata: ObjectMeta { name: Some(volume.attachment(node)), ..ObjectMeta::default() },
        spec: VolumeAttachmentSpec {
            attacher: volume.driver.clone(),
            node_name: node.to_owned(),
            source: VolumeAttachmentSource {
                persistent_volume_name: volume.inline.is_none().then(|| volume.volume.clone()),
                inline_volume_spec: volume.inline.as_deref().cloned(),
            },
        },
        status: None,
    };
    let written = match context.client.cluster::<VolumeAttachment>().create(&object).await {
        Err(error) if error.is_already_exists() => return Ok(()),
        result => result?,
    };
    context.settle(&context.cache.attachments, &written).await;
    Ok(())
}

async fn detach(context: &Context, name: &str, there: &[Attached]) -> Result<(), Error> {
    let object = there.iter().map(|a| &a.object).find(|o| o.metadata.name.as_deref() == Some(name));
    let Some(object) = object else { return Ok(()) };
    let options = json!({"preconditions": {"uid": object.metadata.uid}});
    match context.client.cluster::<VolumeAttachment>().delete(name, &options).await {
        Err(error) if !error.is_not_found() => return Err(error),
        _ => {}
    }
    context.attachments.unwanted.lock().remove(name);
    context.settle_gone(&context.cache.attachments, &**object).await;
    Ok(())
}

/// Tells pods what became of their volumes.
fn tell(context: &Context, wanted: &[Wanted], there: &[Attached], node: &str) {
    let recorder = context.recorder(COMPONENT);
    for one in wanted {
        let name = one.volume.attachment(node);
        let object = there.iter().map(|a| &a.object).find(|o| o.metadata.name.as_deref() == Some(&name));
        let Some(status) = object.and_then(|o| o.status.as_ref()) else { continue };
        let reported = context.cache.nodes.named("", node);
        let reported =
            reported.iter().filter_map(|n| n.status.as_ref()).flat_map(|s| s.volumes_attached.iter().flatten());
        let known = reported.into_iter().any(|v| v.name == one.volume.unique_name());
        let volume = &one.volume.volume;
        for pod in &one.pods {
            if status.attached && !known {
                let message = format!("AttachVolume.Attach succeeded for volume \"{volume}\" ");
                recorder.normal(&**pod, "SuccessfulAttachVolume", message);
            } else if let Some(why) = status.attach_error.as_ref().and_then(|e| e.message.as_ref()) {
                let message = format!("AttachVolume.Attach failed for volume \"{volume}\" : {why}");
                recorder.warning(&**pod, "FailedAttachVolume", message);
            }
        }
    }
}

/// Tells pods that their volume is another node's.
fn blocked(context: &Context, wanted: &Wanted) {
    let recorder = context.recorder(COMPONENT);
    let volume = &wanted.volume.volume;
    for pod in &wanted.pods {
        let message = format!("Multi-Attach error for volume \"{volume}\" {}", holders(context, wanted, pod));
        recorder.warning(&**pod, "FailedAttachVolume", message);
    }
}

/// Who has a volume on another node, as `pod` may know it.
fn holders(context: &Context, wanted: &Wanted, pod: &Pod) -> String {
    let node = wanted.elsewhere.as_deref().unwrap_or_default();
    let there = context.cache.nodes.named("", node);
    let uses = |other: &Arc<Pod>| {
        there.as_ref().is_none_or(|node| plan::needs_volumes(other, node))
            && attachables(context, other).iter().any(|v| v.key() == wanted.volume.key())
    };
    let others: Vec<Arc<Pod>> = context.cache.pods.by(BY_NODE, node).into_iter().filter(uses).collect();
    let (near, far): (Vec<_>, Vec<_>) = others.iter().partition(|o| o.metadata.namespace == pod.metadata.namespace);
    let near: Vec<&str> = near.iter().filter_map(|o| o.metadata.name.as_deref()).collect();
    match (near.is_empty(), far.len()) {
        (true, 0) => "Volume is already exclusively attached to one node and can't be attached to another".into(),
        (true, far) => format!("Volume is already used by {far} pod(s) in different namespaces"),
        (false, 0) => format!("Volume is already used by pod(s) {}", near.join(", ")),
        (false, far) => {
            format!("Volume is already used by pod(s) {} and {far} pod(s) in different namespaces", near.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_told_once_that_another_node_has_their_volume() {
        let wanted = |names: &[&str]| -> Vec<Wanted> {
            let volume = |name: &&str| Attachable {
                volume: (*name).into(),
                driver: "d".into(),
                handle: (*name).into(),
                shared: false,
                inline: None,
            };
            let one = |name| Wanted { volume: volume(name), pods: Vec::new(), elsewhere: Some("m".into()) };
            names.iter().map(one).collect()
        };
        let memory = Memory::default();
        for (what, node, names, blocked, expected) in [
            ("it is told", "n", &["a"][..], &[0][..], &[0][..]),
            ("once", "n", &["a"], &[0], &[]),
            ("to each node", "o", &["a"], &[0], &[0]),
            ("of each volume", "n", &["a", "b"], &[0, 1], &[1]),
            ("while it waits, it comes and goes", "n", &["a"], &[], &[]),
            ("and is not told again", "n", &["a"], &[0], &[]),
            ("until no pod needs it", "n", &[], &[], &[]),
            ("then it is new", "n", &["a"], &[0], &[0]),
        ] {
            assert_eq!(memory.news(node, &wanted(names), blocked), expected, "{what}");
        }
    }
}
