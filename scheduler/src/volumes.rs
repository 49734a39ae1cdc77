//! Claims, volumes and storage classes as the volume filters see them, and which claims are in use where.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment};

use crate::class::VolumeUse;
use crate::intern::Interner;
use crate::resources::amount;
use crate::selector::{Labels, NodeTerm, Selector, labels};
use crate::view::{PodInfo, Slot};

/// Namespace and name of a claim.
pub type ClaimKey = (Arc<str>, Arc<str>);

/// Set by what binds a claim when it is done.
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// Names the node for which a volume is made.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// The provisioner that makes no volumes.
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";
/// The older way to name a class.
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

/// A claim.
#[derive(Clone, Debug, Default)]
pub struct Claim {
    /// Identity.
    pub uid: String,
    /// The volume it is bound to or asks for.
    pub volume: String,
    /// Its storage class.
    pub class: String,
    /// It is fully bound.
    pub bound: bool,
    /// It lost its volume.
    pub lost: bool,
    /// It is being deleted.
    pub deleting: bool,
    /// Access modes.
    pub modes: Vec<String>,
    /// Filesystem or Block.
    pub volume_mode: String,
    /// Bytes.
    pub request: i64,
    /// Which volumes it takes.
    pub selector: Option<Selector>,
    /// The pod that owns it, if one does.
    pub pod: Option<String>,
}

/// A volume.
#[derive(Clone, Debug, Default)]
pub struct Volume {
    /// Its storage class.
    pub class: String,
    /// Bytes.
    pub capacity: i64,
    /// Access modes.
    pub modes: Vec<String>,
    /// Filesystem or Block.
    pub volume_mode: String,
    /// Nodes that can use it.
    pub affinity: Option<Vec<NodeTerm>>,
    /// Its labels.
    pub labels: Labels,
    /// The claim it belongs to: namespace, name, uid.
    pub claim: Option<(String, String, String)>,
    /// It may be taken.
    pub available: bool,
    /// It is being deleted.
    pub deleting: bool,
    /// Its CSI driver.
    pub driver: Option<Arc<str>>,
}

/// A storage class.
#[derive(Clone, Debug, Default)]
pub struct Class {
    /// Volumes are chosen when a pod is scheduled.
    pub waits: bool,
    /// Volumes can be made.
    pub provisions: bool,
    /// Who makes them.
    pub provisioner: String,
    /// Where they can be made.
    pub topologies: Vec<Vec<(String, Vec<String>)>>,
}

/// Room for new volumes that a driver reports.
#[derive(Clone, Debug)]
pub struct Capacity {
    class: String,
    bytes: i64,
    nodes: Option<Selector>,
}

/// Everything about volumes.
#[derive(Default)]
pub struct Volumes {
    /// Claims.
    pub claims: HashMap<ClaimKey, Claim>,
    /// Volumes.
    pub volumes: BTreeMap<Arc<str>, Arc<Volume>>,
    /// Storage classes.
    pub classes: HashMap<Arc<str>, Class>,
    /// Most volumes per node and CSI driver.
    pub limits: HashMap<Arc<str>, HashMap<Arc<str>, i64>>,
    /// Drivers that report how much room they have.
    pub capacity_drivers: std::collections::HashSet<String>,
    /// Volumes that no claim has, by class; and the others by their claims.
    open: HashMap<String, BTreeSet<Arc<str>>>,
    of_claim: HashMap<ClaimKey, BTreeSet<Arc<str>>>,
    /// Volumes promised to a claim by a placement that is being written.
    pub assumed: HashMap<Arc<str>, ClaimKey>,
    /// Nodes and volumes by the attachments that say so, and the volumes by node.
    attachments: HashMap<Arc<str>, (Arc<str>, Arc<str>)>,
    attached: HashMap<Arc<str>, BTreeMap<Arc<str>, u32>>,
    capacities: HashMap<Arc<str>, Capacity>,
    users: HashMap<ClaimKey, HashMap<Slot, u32>>,
    by_node: Vec<HashMap<ClaimKey, u32>>,
    nothing: HashMap<ClaimKey, u32>,
}

impl Volumes {
    /// Takes over a claim.
    pub fn set_claim(&mut self, claim: &PersistentVolumeClaim) {
        let (meta, spec) = (&claim.metadata, claim.spec.clone().unwrap_or_default());
        let annotations = meta.annotations.clone().unwrap_or_default();
        let volume = spec.volume_name.unwrap_or_default();
        let requests = spec.resources.and_then(|r| r.requests).unwrap_or_default();
        let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref());
        let owner = meta.owner_references.iter().flatten().find(|o| o.controller == Some(true) && o.kind == "Pod");
        let parsed = Claim {
            uid: meta.uid.clone().unwrap_or_default(),
            bound: !volume.is_empty() && annotations.contains_key(BIND_COMPLETED),
            volume,
            class: annotations.get(CLASS_ANNOTATION).cloned().or(spec.storage_class_name).unwrap_or_default(),
            lost: phase == Some("Lost"),
            deleting: meta.deletion_timestamp.is_some(),
            modes: spec.access_modes.unwrap_or_default(),
            volume_mode: spec.volume_mode.unwrap_or_else(|| "Filesystem".into()),
            request: requests.get("storage").map_or(0, |q| amount("storage", q)),
            selector: spec.selector.as_ref().map(Selector::new),
            pod: owner.map(|o| o.uid.clone()),
        };
        self.claims.insert(claim_key(&meta.namespace, &meta.name), parsed);
    }

    /// Forgets a claim.
    pub fn remove_claim(&mut self, namespace: &str, name: &str) {
        self.claims.remove(&(namespace.into(), name.into()));
    }

    /// Takes over a volume.
    pub fn set_volume(&mut self, volume: &PersistentVolume, syms: &mut Interner) {
        let (meta, spec) = (&volume.metadata, volume.spec.clone().unwrap_or_default());
        let affinity = spec.node_affinity.and_then(|a| a.required);
        let phase = volume.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
        let capacity = spec.capacity.unwrap_or_default();
        let name: Arc<str> = meta.name.as_deref().unwrap_or_default().into();
        let claim = spec
            .claim_ref
            .map(|c| (c.namespace.unwrap_or_default(), c.name.unwrap_or_default(), c.uid.unwrap_or_default()));
        if claim.is_some() {
            self.assumed.remove(&name);
        }
        let annotations = meta.annotations.clone().unwrap_or_default();
        let parsed = Volume {
            class: annotations.get(CLASS_ANNOTATION).cloned().or(spec.storage_class_name).unwrap_or_default(),
            capacity: capacity.get("storage").map_or(0, |q| amount("storage", q)),
            modes: spec.access_modes.unwrap_or_default(),
            volume_mode: spec.volume_mode.unwrap_or_else(|| "Filesystem".into()),
            affinity: affinity.map(|a| a.node_selector_terms.iter().map(|t| NodeTerm::new(t, syms)).collect()),
            labels: labels(&meta.labels.clone().unwrap_or_default()),
            claim,
            available: matches!(phase, "Available" | "Pending" | ""),
            deleting: meta.deletion_timestamp.is_some(),
            driver: spec.csi.map(|c| c.driver.as_str().into()),
        };
        self.unlist(&name);
        match &parsed.claim {
            Some((namespace, claim, _)) => {
                let key = (namespace.as_str().into(), claim.as_str().into());
                self.of_claim.entry(key).or_default().insert(name.clone());
            }
            None => drop(self.open.entry(parsed.class.clone()).or_default().insert(name.clone())),
        }
        self.volumes.insert(name, Arc::new(parsed));
    }

    /// Forgets a volume.
    pub fn remove_volume(&mut self, name: &str) {
        self.unlist(name);
        self.volumes.remove(name);
        self.assumed.remove(name);
    }

    fn unlist(&mut self, name: &str) {
        let Some(volume) = self.volumes.get(name) else { return };
        match &volume.claim {
            Some((namespace, claim, _)) => {
                let key = (namespace.as_str().into(), claim.as_str().into());
                if let Some(names) = self.of_claim.get_mut(&key) {
                    names.remove(name);
                    if names.is_empty() {
                        self.of_claim.remove(&key);
                    }
                }
            }
            None => {
                if let Some(names) = self.open.get_mut(&volume.class) {
                    names.remove(name);
                }
            }
        }
    }

    /// The volumes that a claim of a class may get, in the order of their names.
    pub fn candidates(&self, key: &ClaimKey, class: &str) -> impl Iterator<Item = (&Arc<str>, &Arc<Volume>)> {
        let own = self.of_claim.get(key).into_iter().flatten();
        let names: BTreeSet<&Arc<str>> = own.chain(self.open.get(class).into_iter().flatten()).collect();
        names.into_iter().filter_map(|name| self.volumes.get_key_value(name))
    }

    /// Takes over a storage class.
    pub fn set_class(&mut self, class: &StorageClass) {
        let term = |t: &k8s_openapi::api::core::v1::TopologySelectorTerm| {
            let expressions = t.match_label_expressions.iter().flatten();
            expressions.map(|e| (e.key.clone(), e.values.clone())).collect()
        };
        let parsed = Class {
            waits: class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"),
            provisions: class.provisioner != NO_PROVISIONER,
            provisioner: class.provisioner.clone(),
            topologies: class.allowed_topologies.iter().flatten().map(term).collect(),
        };
        self.classes.insert(class.metadata.name.as_deref().unwrap_or_default().into(), parsed);
    }

    /// Takes over the limits that a node's drivers report.
    pub fn set_limits(&mut self, node: &CSINode) {
        let drivers = node.spec.drivers.iter();
        let limits = drivers.filter_map(|d| {
            let count = d.allocatable.as_ref()?.count?;
            Some((d.name.as_str().into(), i64::from(count)))
        });
        self.limits.insert(node.metadata.name.as_deref().unwrap_or_default().into(), limits.collect());
    }

    /// Takes over how much room a driver has, or that it says so no more.
    pub fn set_capacity(&mut self, capacity: &CSIStorageCapacity, gone: bool) {
        let namespace = capacity.metadata.namespace.as_deref().unwrap_or_default();
        let name = capacity.metadata.name.as_deref().unwrap_or_default();
        let key: Arc<str> = format!("{namespace}/{name}").into();
        if gone {
            self.capacities.remove(&key);
            return;
        }
        let bytes = capacity.maximum_volume_size.as_ref().or(capacity.capacity.as_ref());
        let parsed = Capacity {
            class: capacity.storage_class_name.clone(),
            bytes: bytes.map_or(0, |q| amount("storage", q)),
            nodes: capacity.node_topology.as_ref().map(Selector::new),
        };
        self.capacities.insert(key, parsed);
    }

    /// Takes over that a volume is attached to a node, or is no longer.
    pub fn set_attachment(&mut self, attachment: &VolumeAttachment, gone: bool) {
        let name: Arc<str> = attachment.metadata.name.as_deref().unwrap_or_default().into();
        if let Some((node, volume)) = self.attachments.remove(&name)
            && let Some(volumes) = self.attached.get_mut(&node)
        {
            bump_sorted(volumes, volume, -1);
            if volumes.is_empty() {
                self.attached.remove(&node);
            }
        }
        let Some(volume) = attachment.spec.source.persistent_volume_name.as_deref().filter(|_| !gone) else { return };
        let (node, volume): (Arc<str>, Arc<str>) = (attachment.spec.node_name.as_str().into(), volume.into());
        bump_sorted(self.attached.entry(node.clone()).or_default(), volume.clone(), 1);
        self.attachments.insert(name, (node, volume));
    }

    /// Volumes that are attached to a node.
    pub fn attached(&self, node: &str) -> Option<&BTreeMap<Arc<str>, u32>> {
        self.attached.get(node)
    }

    /// Whether a driver has room for a new volume near a node with these labels.
    pub fn has_room(&self, class: &str, bytes: i64, node: &Labels) -> bool {
        self.capacities
            .values()
            .any(|c| c.class == class && c.bytes >= bytes && c.nodes.as_ref().is_some_and(|n| n.matches(node)))
    }

    /// Counts a pod's claims on its node.
    pub fn count(&mut self, pod: &PodInfo, slot: Slot, by: i64) {
        for volume in &pod.class.volumes {
            let VolumeUse::Claim(name, _) = volume else { continue };
            let key = (pod.class.namespace.clone(), name.clone());
            bump(self.users.entry(key.clone()).or_default(), slot, by);
            if self.by_node.len() <= slot as usize {
                self.by_node.resize_with(slot as usize + 1, HashMap::new);
            }
            bump(&mut self.by_node[slot as usize], key.clone(), by);
            if self.users.get(&key).is_some_and(HashMap::is_empty) {
                self.users.remove(&key);
            }
        }
    }

    /// Pods on a node that use a claim; on all nodes if there is no node.
    pub fn users(&self, claim: &ClaimKey, slot: Option<Slot>) -> u32 {
        let Some(users) = self.users.get(claim) else { return 0 };
        slot.map_or_else(|| users.values().sum(), |s| users.get(&s).copied().unwrap_or(0))
    }

    /// Claims in use on a node.
    pub fn claims_on(&self, slot: Slot) -> impl ExactSizeIterator<Item = &ClaimKey> {
        self.by_node.get(slot as usize).unwrap_or(&self.nothing).keys()
    }

    /// The CSI driver of a claim and what identifies its volume.
    pub fn driver(&self, key: &ClaimKey) -> Option<Arc<str>> {
        let claim = self.claims.get(key)?;
        if claim.volume.is_empty() {
            let class = self.classes.get(claim.class.as_str())?;
            return class.provisions.then(|| class.provisioner.as_str().into());
        }
        self.volumes.get(claim.volume.as_str())?.driver.clone()
    }
}

fn bump_sorted(counts: &mut BTreeMap<Arc<str>, u32>, key: Arc<str>, by: i32) {
    let count = counts.entry(key.clone()).or_default();
    *count = count.saturating_add_signed(by);
    if *count == 0 {
        counts.remove(&key);
    }
}

fn bump<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, u32>, key: K, by: i64) {
    use std::collections::hash_map::Entry;
    match counts.entry(key) {
        Entry::Occupied(mut count) => {
            *count.get_mut() = count.get().saturating_add_signed(by as i32);
            if *count.get() == 0 {
                count.remove();
            }
        }
        Entry::Vacant(none) if by > 0 => {
            none.insert(by as u32);
        }
        Entry::Vacant(_) => {}
    }
}

fn claim_key(namespace: &Option<String>, name: &Option<String>) -> ClaimKey {
    (namespace.as_deref().unwrap_or_default().into(), name.as_deref().unwrap_or_default().into())
}
