//! VolumeRestrictions, NodeVolumeLimits, VolumeBinding and VolumeZone: nodes that can use the pod's volumes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

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
    /// Volumes that its claims are bound to.
    bound: Vec<Arc<str>>,
    /// Claims whose volume is chosen now.
    waiting: Vec<ClaimKey>,
    /// Zones that its volumes demand: label and values.
    zones: Vec<(String, Vec<String>)>,
}

/// What has to be written before a pod can be bound to the node chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Promise {
    /// Volumes given to claims: volume, claim.
    pub bind: Vec<(Arc<str>, ClaimKey)>,
    /// Claims for which a volume is made.
    pub provision: Vec<ClaimKey>,
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
    for (key, _) in claims(pod) {
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
        Happening::Volumes => true,
        Happening::Node { change, .. } => change.added,
        _ => false,
    }
}

/// Whether the pod has volumes that count.
pub fn pre_filter_limits(_: &mut View, pod: &PodInfo, _: &Profile, _: &mut All) -> Result<bool, Rejection> {
    Ok(pod.class.volumes.iter().any(|v| matches!(v, VolumeUse::Claim(..) | VolumeUse::Inline(_))))
}

/// No more volumes than the drivers on the node can attach.
pub fn filter_limits(context: &Context<'_>, slot: Slot, why: Option<&mut Reasons>) -> Fit {
    let (view, pod) = (context.view, context.pod);
    let node = &view.nodes[slot as usize];
    let Some(limits) = view.volumes.limits.get(&node.name).filter(|l| !l.is_empty()) else { return Fit::Yes };
    let mut new: HashMap<Arc<str>, HashSet<ClaimKey>> = HashMap::new();
    for (key, _) in claims(pod).filter(|(key, _)| view.volumes.users(key, Some(slot)) == 0) {
        if let Some(driver) = view.volumes.driver(&key) {
            new.entry(driver).or_default().insert(key);
        }
    }
    let mut used: HashMap<Arc<str>, i64> = HashMap::new();
    for driver in view.volumes.claims_on(slot).filter_map(|key| view.volumes.driver(key)) {
        *used.entry(driver).or_default() += 1;
    }
    let exceeded = new.iter().any(|(driver, claims)| {
        let limit = limits.get(driver).copied().unwrap_or(i64::MAX);
        used.get(driver).copied().unwrap_or(0) + claims.len() as i64 > limit
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
pub fn hint_limits(_: &View, _: &PodInfo, what: &Happening) -> bool {
    match what {
        Happening::Left { pod: gone, .. } => !gone.class.volumes.is_empty(),
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
            return Err(Rejection::never(format!("PVC {}/{name} was not created for pod {}", key.0, pod.full_name())));
        }
        if claim.bound {
            bound.push(claim.volume.as_str().into());
            continue;
        }
        let waits = view.volumes.classes.get(claim.class.as_str()).is_some_and(|c| c.waits);
        if !claim.volume.is_empty() || !waits {
            return Err(Rejection::never("pod has unbound immediate PersistentVolumeClaims"));
        }
        waiting.push(key);
    }
    Ok(!(bound.is_empty() && waiting.is_empty()))
}

/// Bound volumes must be usable on the node; for the others there must be one, or room to make one.
pub fn filter_binding(context: &Context<'_>, slot: Slot, why: Option<&mut Reasons>) -> Fit {
    let (view, state) = (context.view, &context.state.volumes);
    let node = &view.nodes[slot as usize];
    let mut reasons: Vec<&'static str> = Vec::new();
    for name in &state.bound {
        match view.volumes.volumes.get(name) {
            None => reasons.push("node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)"),
            Some(volume) if !usable(view, volume, slot) => {
                reasons.push("node(s) didn't match PersistentVolume's node affinity");
            }
            Some(_) => {}
        }
    }
    if let Err(reason) = promise(view, &state.waiting, slot) {
        reasons.push(reason);
    }
    let _ = node;
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

fn promise(view: &View, waiting: &[ClaimKey], slot: Slot) -> Result<Promise, &'static str> {
    let mut promise = Promise::default();
    let mut taken: HashSet<&str> = HashSet::new();
    let mut sorted: Vec<(&ClaimKey, &Claim)> =
        waiting.iter().filter_map(|key| Some((key, view.volumes.claims.get(key)?))).collect();
    // The smallest first, so that large volumes are left for large claims.
    sorted.sort_by_key(|(_, claim)| claim.request);
    for (key, claim) in sorted {
        let fitting = |(name, volume): &(&Arc<str>, &Volume)| {
            !taken.contains(&***name) && suits(&view.volumes, name, volume, key, claim) && usable(view, volume, slot)
        };
        let found = view.volumes.volumes.iter().filter(fitting).min_by_key(|(_, volume)| volume.capacity);
        if let Some((name, _)) = found {
            taken.insert(name);
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

/// Something about volumes changed, or a node.
pub fn hint_binding(_: &View, _: &PodInfo, what: &Happening) -> bool {
    match what {
        Happening::Volumes => true,
        Happening::Node { change, .. } => change.added || change.labels,
        _ => false,
    }
}
