//! VolumeRestrictions, NodeVolumeLimits, VolumeBinding and VolumeZone: nodes that can use the pod's volumes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::devices::Reservation;
use super::{Context, Fit, Reasons, Rejection, State as All};
use crate::class::VolumeUse;
use crate::config::Profile;
use crate::queue::Happening;
use crate::selector::{Labels, node_label};
use crate::view::{PodInfo, Slot, View};
use crate::volumes::{Claim, ClaimKey, Volume, Volumes};

/// Labels of volumes that name zones and regions, and what separates several.
const ZONE_LABELS: [&str; 4] = [
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
];
const ZONE_SEPARATOR: &str = "__";

/// What is worked out once per pod.
#[derive(Default)]
pub struct State {
    /// Claims that only one pod may use.
    exclusive: Vec<ClaimKey>,
    /// Volumes that its claims are bound to, if they restrict the node; `None` for one that does not exist.
    bound: Vec<Option<Arc<Volume>>>,
    /// Its claims by the CSI driver that attaches their volumes.
    drivers: Vec<(Arc<str>, Vec<ClaimKey>)>,
    /// Claims whose volume is chosen now, the smallest first, so that large volumes are left for large claims.
    waiting: Vec<Waiting>,
    /// Zones that its volumes demand: label and values.
    zones: Vec<(String, Vec<String>)>,
}

/// A claim whose volume is chosen when its pod is placed.
struct Waiting {
    key: ClaimKey,
    claim: Claim,
    /// Volumes that would do, the smallest first.
    candidates: Vec<(Arc<str>, Arc<Volume>)>,
}

impl Waiting {
    fn new(volumes: &Volumes, key: ClaimKey, claim: &Claim) -> Self {
        let all = volumes.candidates(&key, &claim.class);
        let suiting = all.filter(|(name, volume)| suits(volumes, name, volume, &key, claim));
        let mut candidates: Vec<_> = suiting.map(|(name, volume)| (name.clone(), volume.clone())).collect();
        candidates.sort_by_key(|(_, volume)| volume.capacity);
        Self { claim: claim.clone(), candidates, key }
    }
}

/// What has to be written before a pod can be bound to the node chosen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Promise {
    /// Volumes given to claims: volume, claim.
    pub bind: Vec<(Arc<str>, ClaimKey)>,
    /// Claims for which a volume is made.
    pub provision: Vec<ClaimKey>,
    /// Claims for devices that get them, or are used by one pod more.
    pub devices: Vec<Reservation>,
    /// How long volumes and devices may take to be ready.
    pub patience: Patience,
}

impl Promise {
    /// Whether there is nothing to write before the binding.
    pub fn is_empty(&self) -> bool {
        self.bind.is_empty() && self.provision.is_empty() && self.devices.is_empty()
    }
}

/// How long the plugins wait before a pod is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For volumes to be bound.
    pub volumes: Duration,
    /// For devices to be ready.
    pub devices: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { volumes: Duration::from_secs(600), devices: Duration::from_secs(600) }
    }
}

fn claims(pod: &PodInfo) -> impl Iterator<Item = (ClaimKey, bool)> + '_ {
    pod.class.volumes.iter().filter_map(|v| match v {
        VolumeUse::Claim(name, own) => Some(((pod.class.namespace.clone(), name.clone()), own.is_some())),
        _ => None,
    })
}

fn disks(pod: &PodInfo) -> impl Iterator<Item = &VolumeUse> {
    pod.class.volumes.iter().filter(|v| matches!(v, VolumeUse::Disk(..) | VolumeUse::Shared(..)))
}

fn missing(name: &str) -> Rejection {
    Rejection::never(format!("persistentvolumeclaim {name:?} not found"))
}

/// Whether some disk or exclusive claim needs a look.
pub fn pre_filter_restrictions(
    view: &mut View,
    pod: &PodInfo,
    _: &Profile,
    state: &mut All,
) -> Result<bool, Rejection> {
    state.volumes = State::default();
    // Claims of ephemeral volumes are always the pod's alone.
    for (key, _) in claims(pod).filter(|(_, own)| !own) {
        let claim = view.volumes.claims.get(&key).ok_or_else(|| missing(&key.1))?;
        if claim.modes.iter().any(|m| m == "ReadWriteOncePod") {
            state.volumes.exclusive.push(key);
        }
    }
    Ok(!state.volumes.exclusive.is_empty() || disks(pod).next().is_some())
}

/// A disk that others use and an exclusive claim in use keep the pod away.
pub fn filter_restrictions(context: &Context<'_>, slot: Slot, why: Option<&mut Reasons>) -> Fit {
    let view = context.view;
    let conflict = |a: &VolumeUse, b: &VolumeUse| match (a, b) {
        (VolumeUse::Disk(one, _), VolumeUse::Disk(other, _)) => one == other,
        (VolumeUse::Shared(one, reads), VolumeUse::Shared(other, also)) => one == other && !(*reads && *also),
        _ => false,
    };
    let taken = disks(context.pod)
        .any(|d| view.nodes[slot as usize].pods.iter().any(|p| disks(p).any(|other| conflict(d, other))));
    let reason = if taken {
        "node(s) had no available disk"
    } else if context.state.volumes.exclusive.iter().any(|c| view.volumes.users(c, None) > 0) {
        "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode"
    } else {
        return Fit::Yes;
    };
    if let Some(why) = why {
        why.push(reason.into());
    }
    Fit::No
}

/// A pod left that used one of the disks or claims, or a claim came.
pub fn hint_restrictions(_: &View, pod: &PodInfo, what: &Happening) -> bool {
    match what {
        Happening::Left { pod: gone, .. } => {
            claims(gone).any(|c| claims(pod).any(|own| own.0 == c.0)) || disks(gone).next().is_some()
        }
        Happening::Claim(key) => uses(pod, key),
        Happening::Node { change, .. } => change.added,
        _ => false,
    }
}

/// Whether a pod uses a claim.
fn uses(pod: &PodInfo, key: &ClaimKey) -> bool {
    claims(pod).any(|(own, _)| own == *key)
}

/// Whether the pod has volumes that count.
pub fn pre_filter_limits(view: &mut View, pod: &PodInfo, _: &Profile, state: &mut All) -> Result<bool, Rejection> {
    let drivers = &mut state.volumes.drivers;
    drivers.clear();
    for (key, _) in claims(pod) {
        let Some(driver) = view.volumes.driver(&key) else { continue };
        match drivers.iter_mut().find(|(d, _)| *d == driver) {
            Some((_, keys)) if keys.contains(&key) => {}
            Some((_, keys)) => keys.push(key),
            None => drivers.push((driver, vec![key])),
        }
    }
    Ok(!drivers.is_empty())
}

/// No more volumes than the drivers on the node can attach.
pub fn filter_limits(context: &Context<'_>, slot: Slot, why: Option<&mut Reasons>) -> Fit {
    let view = context.view;
    let node = &view.nodes[slot as usize];
    let Some(limits) = view.volumes.limits.get(&node.name).filter(|l| !l.is_empty()) else { return Fit::Yes };
    let exceeded = context.state.volumes.drivers.iter().any(|(driver, claims)| {
        let Some(limit) = limits.get(driver) else { return false };
        let volume = |key: &ClaimKey| view.volumes.claims.get(key).map(|claim| claim.volume.as_str());
        // Some are still attached although no pod uses them any more.
        let attached = view.volumes.attached(&node.name);
        let is_attached =
            |key: &ClaimKey| volume(key).is_some_and(|name| attached.is_some_and(|a| a.contains_key(name)));
        let is_new = |key: &&ClaimKey| view.volumes.users(key, Some(slot)) == 0 && !is_attached(key);
        let new = claims.iter().filter(is_new).count() as i64;
        // Most nodes have few volumes in all: whose they are need not be known then.
        let most = view.volumes.claims_on(slot).len() + attached.map_or(0, BTreeMap::len);
        let used = || {
            let mine = |key: &&ClaimKey| view.volumes.driver(key).as_ref() == Some(driver);
            let claimed: Vec<&ClaimKey> = view.volumes.claims_on(slot).filter(mine).collect();
            let left = attached.into_iter().flatten().filter(|(name, _)| {
                let by_driver = view.volumes.volumes.get(*name).is_some_and(|v| v.driver.as_ref() == Some(driver));
                by_driver && !claimed.iter().any(|key| volume(key) == Some(name))
            });
            (claimed.len() + left.count()) as i64
        };
        new > 0 && most as i64 + new > *limit && used() + new > *limit
    });
    if !exceeded {
        return Fit::Yes;
    }
    if let Some(why) = why {
        why.push("node(s) exceed max volume count".into());
    }
    Fit::No
}

/// A pod with volumes left, or what nodes can attach changed.
pub fn hint_limits(_: &View, pod: &PodInfo, what: &Happening) -> bool {
    match what {
        Happening::Left { pod: gone, .. } => !gone.class.volumes.is_empty(),
        Happening::Claim(key) => uses(pod, key),
        Happening::Volumes => true,
        Happening::Node { change, .. } => change.added,
        _ => false,
    }
}

/// Sorts the pod's claims into bound ones and those whose volume is chosen now.
pub fn pre_filter_binding(view: &mut View, pod: &PodInfo, _: &Profile, state: &mut All) -> Result<bool, Rejection> {
    let (bound, waiting) = (&mut state.volumes.bound, &mut state.volumes.waiting);
    bound.clear();
    waiting.clear();
    for (key, own) in claims(pod) {
        let name = &key.1;
        let claim = match view.volumes.claims.get(&key) {
            Some(claim) => claim,
            None if own => {
                let why =
                    format!("waiting for ephemeral volume controller to create the persistentvolumeclaim {name:?}");
                return Err(Rejection::never(why));
            }
            None => return Err(missing(name)),
        };
        if claim.lost {
            let why =
                format!("persistentvolumeclaim {name:?} bound to non-existent persistentvolume {:?}", claim.volume);
            return Err(Rejection::never(why));
        }
        if claim.deleting {
            return Err(Rejection::never(format!("persistentvolumeclaim {name:?} is being deleted")));
        }
        if own && claim.pod.as_deref() != Some(&*pod.uid) {
            let pod = pod.full_name();
            let why = format!("PVC {}/{name} was not created for pod {pod} (pod is not owner)", key.0);
            return Err(Rejection::never(why));
        }
        if claim.bound {
            let volume = view.volumes.volumes.get(claim.volume.as_str());
            if volume.is_none_or(|v| v.affinity.is_some()) {
                bound.push(volume.cloned());
            }
            continue;
        }
        let waits = view.volumes.classes.get(claim.class.as_str()).is_some_and(|c| c.waits);
        if !claim.volume.is_empty() || !waits {
            return Err(Rejection::never("pod has unbound immediate PersistentVolumeClaims"));
        }
        waiting.push(Waiting::new(&view.volumes, key.clone(), claim));
    }
    waiting.sort_by_key(|w| w.claim.request);
    Ok(!(bound.is_empty() && waiting.is_empty()))
}

/// Bound volumes must be usable on the node; for the others there must be one, or room to make one.
pub fn filter_binding(context: &Context<'_>, slot: Slot, why: Option<&mut Reasons>) -> Fit {
    let (view, state) = (context.view, &context.state.volumes);
    let mut reasons: Vec<&'static str> = Vec::new();
    for volume in &state.bound {
        match volume {
            None => reasons.push("node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)"),
            Some(volume) if !usable(view, volume, slot) => {
                reasons.push("node(s) didn't match PersistentVolume's node affinity");
            }
            Some(_) => {}
        }
    }
    if !state.waiting.is_empty()
        && let Err(reason) = promise(view, &state.waiting, slot)
    {
        reasons.push(reason);
    }
    if reasons.is_empty() {
        return Fit::Yes;
    }
    reasons.dedup();
    if let Some(why) = why {
        why.extend(reasons.into_iter().map(Into::into));
    }
    Fit::Never
}

fn usable(view: &View, volume: &Volume, slot: Slot) -> bool {
    let node = &view.nodes[slot as usize];
    volume.affinity.as_ref().is_none_or(|a| a.iter().any(|t| t.matches(&node.name, &node.labels, &view.syms)))
}

/// Which volumes the pod's claims would get on a node.
pub fn promised(context: &Context<'_>, slot: Slot) -> Promise {
    promise(context.view, &context.state.volumes.waiting, slot).unwrap_or_default()
}

fn promise(view: &View, waiting: &[Waiting], slot: Slot) -> Result<Promise, &'static str> {
    let mut promise = Promise::default();
    for Waiting { key, claim, candidates } in waiting {
        let free = |name: &Arc<str>| promise.bind.iter().all(|(taken, _)| taken != name);
        let found = candidates.iter().find(|(name, volume)| free(name) && usable(view, volume, slot));
        if let Some((name, _)) = found {
            promise.bind.push((name.clone(), key.clone()));
            continue;
        }
        provisionable(view, claim, slot)?;
        promise.provision.push(key.clone());
    }
    Ok(promise)
}

/// Whether a volume can be given to a claim.
fn suits(volumes: &Volumes, name: &Arc<str>, volume: &Volume, key: &ClaimKey, claim: &Claim) -> bool {
    let reserved = volume.claim.as_ref().is_some_and(|(namespace, name, uid)| {
        **namespace == *key.0 && **name == *key.1 && (uid.is_empty() || *uid == claim.uid)
    });
    let promised = volumes.assumed.get(name).is_some_and(|other| other != key);
    !volume.deleting
        && !promised
        && (reserved || (volume.claim.is_none() && volume.available))
        && volume.class == claim.class
        && volume.volume_mode == claim.volume_mode
        && volume.capacity >= claim.request
        && claim.modes.iter().all(|m| volume.modes.contains(m))
        && claim.selector.as_ref().is_none_or(|s| s.matches(&volume.labels))
}

fn provisionable(view: &View, claim: &Claim, slot: Slot) -> Result<(), &'static str> {
    const NOTHING: &str = "node(s) didn't find available persistent volumes to bind";
    let class = view.volumes.classes.get(claim.class.as_str()).filter(|c| c.provisions).ok_or(NOTHING)?;
    let node = &view.nodes[slot as usize];
    let has = |(key, values): &(String, Vec<String>)| {
        let value = view.syms.find(key).and_then(|k| node_label(&node.labels, k)).map(|v| view.syms.text(v));
        value.is_some_and(|v| values.iter().any(|w| **w == **v))
    };
    if !class.topologies.is_empty() && !class.topologies.iter().any(|term| term.iter().all(has)) {
        return Err(NOTHING);
    }
    if view.volumes.capacity_drivers.contains(&class.provisioner) {
        let mut labels: Labels =
            (node.labels.iter()).map(|(k, v)| (view.syms.text(*k).clone(), view.syms.text(*v).clone())).collect();
        labels.sort();
        if !view.volumes.has_room(&claim.class, claim.request, &labels) {
            return Err("node(s) did not have enough free storage");
        }
    }
    Ok(())
}

/// Collects the zones that bound volumes demand.
pub fn pre_filter_zone(view: &mut View, pod: &PodInfo, _: &Profile, state: &mut All) -> Result<bool, Rejection> {
    state.volumes.zones.clear();
    for (key, _) in claims(pod) {
        let Some(claim) = view.volumes.claims.get(&key) else { return Err(missing(&key.1)) };
        let Some(volume) = view.volumes.volumes.get(claim.volume.as_str()) else { continue };
        for label in ZONE_LABELS {
            if let Some(value) = crate::selector::label(&volume.labels, label) {
                let values = value.split(ZONE_SEPARATOR).map(str::to_owned).collect();
                state.volumes.zones.push((label.to_owned(), values));
            }
        }
    }
    Ok(!state.volumes.zones.is_empty())
}

/// The node must be where the volumes are.
pub fn filter_zone(context: &Context<'_>, slot: Slot, why: Option<&mut Reasons>) -> Fit {
    let (view, node) = (context.view, &context.view.nodes[slot as usize]);
    let value =
        |label: &str| view.syms.find(label).and_then(|k| node_label(&node.labels, k)).map(|v| view.syms.text(v));
    if ZONE_LABELS.iter().all(|l| value(l).is_none()) {
        // A cluster without zones.
        return Fit::Yes;
    }
    let there = |(label, values): &(String, Vec<String>)| {
        // A node may carry the older or the newer label.
        let beta = match label.as_str() {
            "topology.kubernetes.io/zone" => "failure-domain.beta.kubernetes.io/zone",
            "topology.kubernetes.io/region" => "failure-domain.beta.kubernetes.io/region",
            "failure-domain.beta.kubernetes.io/zone" => "topology.kubernetes.io/zone",
            _ => "topology.kubernetes.io/region",
        };
        value(label).or_else(|| value(beta)).is_some_and(|v| values.iter().any(|w| **w == **v))
    };
    if context.state.volumes.zones.iter().all(there) {
        return Fit::Yes;
    }
    if let Some(why) = why {
        why.push("node(s) had no available volume zone".into());
    }
    Fit::Never
}

/// One of the pod's claims changed, or something about volumes, or a node.
pub fn hint_binding(_: &View, pod: &PodInfo, what: &Happening) -> bool {
    match what {
        Happening::Claim(key) => uses(pod, key),
        Happening::Volumes => true,
        Happening::Node { change, .. } => change.added || change.labels,
        _ => false,
    }
}
