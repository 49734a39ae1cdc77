//! The cluster as a cycle sees it: nodes as rows of integers, the pods on them, and counters that are kept up to date pod by
//! pod, so that no cycle walks over pods.
//!
//! Invariant: every counter equals what counting the placed pods from scratch gives.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Taint;

use crate::class::{Class, HostPort};
use crate::classes::{ClassId, Classes};
use crate::devices::Devices;
use crate::groups::Groups;
use crate::intern::{Interner, Sym};
use crate::matchers::Matchers;
use crate::owners::Owners;
use crate::resources::{Requests, amount};
use crate::selector::{Labels, NodeLabels, node_label};
use crate::topology::Topologies;
use crate::volumes::Volumes;
use crate::wire;

/// A node's place in all columns.
pub type Slot = u32;

/// Names of claims for devices, and whether each was made for one pod alone.
pub type PodClaims = Arc<[(Arc<str>, bool)]>;

/// The names of a pod's claims for devices and whether each was made for it, and whether one is still to be made.
fn claims(pod: &wire::Pod) -> (Option<PodClaims>, bool) {
    if pod.spec.resource_claims.is_empty() {
        return (None, false);
    }
    let (mut names, mut awaits) = (Vec::new(), false);
    for claim in &pod.spec.resource_claims {
        if let Some(name) = &claim.resource_claim_name {
            names.push((name.as_str().into(), false));
            continue;
        }
        match pod.status.resource_claim_statuses.iter().find(|made| made.name == claim.name) {
            // A claim that was found to be unnecessary has no name.
            Some(made) => names.extend(made.resource_claim_name.as_deref().map(|name| (name.into(), true))),
            None => awaits = true,
        }
    }
    (Some(names.into()), awaits)
}

/// Why a pod is not scheduled, as its condition PodScheduled says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unscheduled {
    /// One word.
    pub reason: Box<str>,
    /// For people.
    pub message: Box<str>,
    /// The generation of the pod that it is about.
    pub generation: i64,
    /// Since when the condition is False.
    pub since: Option<Box<str>>,
}

impl Unscheduled {
    fn of(condition: &wire::Condition) -> Option<Arc<Self>> {
        (condition.status == "False").then(|| {
            Arc::new(Self {
                reason: condition.reason.as_str().into(),
                message: condition.message.as_str().into(),
                generation: condition.observed_generation,
                since: condition.last_transition_time.as_deref().map(Into::into),
            })
        })
    }
}

/// A pod as the scheduler knows it. Never changed, only replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodInfo {
    /// Identity.
    pub uid: Arc<str>,
    /// Name in its namespace.
    pub name: Arc<str>,
    /// What it asks for.
    pub class: Arc<Class>,
    /// The number of its class.
    pub class_id: ClassId,
    /// When it was created, seconds since 1970.
    pub created: i64,
    /// When its node started it, seconds since 1970; the far future if it did not.
    pub started: i64,
    /// It is being deleted.
    pub terminating: bool,
    /// Its node, empty if it has none.
    pub node: Arc<str>,
    /// The node that preemption makes room on for it, empty if none.
    pub nominated: Arc<str>,
    /// Resource version, for events.
    pub version: Arc<str>,
    /// It must not be scheduled yet.
    pub gated: bool,
    /// How often its spec was changed.
    pub generation: i64,
    /// Its PodScheduled condition, if that is False.
    pub condition: Option<Arc<Unscheduled>>,
    /// Its claims for devices, and whether each was made for it alone; none for nearly all pods.
    pub claims: Option<PodClaims>,
    /// A claim that is made for it is not there yet.
    pub awaits_claims: bool,
    /// It was chosen as a victim of preemption (condition DisruptionTarget by the scheduler).
    pub preempted: bool,
}

impl PodInfo {
    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.class.namespace, self.name)
    }

    /// Whether it must not be scheduled yet; `gates`: gates count.
    pub fn waits(&self, gates: bool) -> bool {
        self.awaits_claims || (gates && self.gated)
    }
}

/// What filters and scores of resources read of a node: one cache line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Row {
    /// Allocatable CPU, thousandths.
    pub allocatable_cpu: i64,
    /// Allocatable memory, bytes.
    pub allocatable_memory: i64,
    /// Requested CPU.
    pub cpu: i64,
    /// Requested memory.
    pub memory: i64,
    /// Requested CPU as scores count it.
    pub nonzero_cpu: i64,
    /// Requested memory as scores count it.
    pub nonzero_memory: i64,
    /// Pods it may run.
    pub allocatable_pods: i32,
    /// Pods it runs.
    pub pods: i32,
    /// The lowest priority of its pods.
    pub lowest_priority: i32,
    /// Pods that wait for preemption to make room on it.
    pub nominated: i32,
}

impl Row {
    /// Adds what a pod requests, or (`by` -1) takes it away.
    pub fn count(&mut self, requests: &Requests, by: i64) {
        self.cpu += by * requests.cpu;
        self.memory += by * requests.memory;
        self.nonzero_cpu += by * requests.nonzero_cpu;
        self.nonzero_memory += by * requests.nonzero_memory;
        self.pods += by as i32;
    }
}

/// What else is known of a node.
#[derive(Default)]
pub struct NodeEntry {
    /// Its name.
    pub name: Arc<str>,
    /// Whether the node object exists (or only pods that name it).
    pub present: bool,
    /// Order of arrival.
    pub arrival: u64,
    /// Labels.
    pub labels: NodeLabels,
    /// Taints.
    pub taints: Vec<Taint>,
    /// Cordoned.
    pub unschedulable: bool,
    /// Resources beyond CPU and memory: allocatable and requested, sorted.
    pub extra: Vec<(Sym, i64, i64)>,
    /// Host ports in use.
    pub ports: Vec<HostPort>,
    /// What its agent can do ([`crate::plugins::features`]).
    pub features: u8,
    /// Images with their sizes in bytes, sorted.
    pub images: Vec<(Sym, i64)>,
    /// Its pods.
    pub pods: Vec<Arc<PodInfo>>,
}

impl NodeEntry {
    /// Allocatable and requested amount of a resource beyond CPU and memory.
    pub fn extra(&self, resource: Sym) -> (i64, i64) {
        let found = self.extra.binary_search_by_key(&resource, |(s, _, _)| *s);
        found.map_or((0, 0), |i| (self.extra[i].1, self.extra[i].2))
    }

    fn extra_mut(&mut self, resource: Sym) -> &mut (Sym, i64, i64) {
        let at = match self.extra.binary_search_by_key(&resource, |(s, _, _)| *s) {
            Ok(at) => at,
            Err(at) => {
                self.extra.insert(at, (resource, 0, 0));
                at
            }
        };
        &mut self.extra[at]
    }
}

/// What of a node changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeChange {
    /// It is new.
    pub added: bool,
    /// Labels.
    pub labels: bool,
    /// Taints or cordon.
    pub taints: bool,
    /// Allocatable resources.
    pub allocatable: bool,
    /// Declared features.
    pub features: bool,
}

/// The cluster.
#[derive(Default)]
pub struct View {
    /// Interned names.
    pub syms: Interner,
    /// Numbers per node.
    pub rows: Vec<Row>,
    /// The rest per node.
    pub nodes: Vec<NodeEntry>,
    /// Domains per topology key.
    pub topologies: Topologies,
    /// Classes of pods.
    pub classes: Classes,
    /// Counts of pods that selectors of constraints select.
    pub matchers: Matchers,
    /// Affinity terms of placed pods.
    pub groups: Groups,
    /// Labels of namespaces.
    pub namespaces: HashMap<Arc<str>, Labels>,
    /// Services and owners, for default spreading.
    pub owners: Owners,
    /// Claims, volumes, storage classes.
    pub volumes: Volumes,
    /// Devices and who has them.
    pub devices: Devices,
    /// Seconds since 1970, as whoever drives the scheduler says.
    pub now: i64,
    /// Pods waiting for preemption to make room, by node.
    pub nominated: HashMap<Arc<str>, Vec<Arc<PodInfo>>>,
    /// Slots whose labels, taints or presence changed, in order.
    pub static_log: Vec<Slot>,
    /// How many nodes have each image.
    pub image_nodes: HashMap<Sym, u32>,
    /// Nodes with a taint that is only a preference.
    pub preference_taints: usize,
    nominations: HashMap<Arc<str>, Arc<str>>,
    by_name: HashMap<Arc<str>, Slot>,
    placed: HashMap<Arc<str>, (Slot, Arc<PodInfo>)>,
    free: Vec<Slot>,
    order: Arc<Vec<Slot>>,
    order_stale: bool,
    present: usize,
    arrivals: u64,
}

/// Selectors that are counted although no class of pods has them.
const MAX_IDLE_SELECTORS: usize = 1024;
const ZONE_LABELS: [&str; 2] = ["topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"];
const REGION_LABELS: [&str; 2] = ["topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region"];

impl View {
    /// The slot of a node by name.
    pub fn slot(&self, name: &str) -> Option<Slot> {
        self.by_name.get(name).copied().filter(|s| self.nodes[*s as usize].present)
    }

    /// A placed pod and where it is.
    pub fn placed(&self, uid: &str) -> Option<&(Slot, Arc<PodInfo>)> {
        self.placed.get(uid)
    }

    /// How many pods are placed.
    pub fn placed_count(&self) -> usize {
        self.placed.len()
    }

    /// Nodes in the order in which they are tried: zone by zone in turn.
    pub fn order(&mut self) -> Arc<Vec<Slot>> {
        if std::mem::take(&mut self.order_stale) {
            self.reorder();
        }
        self.order.clone()
    }

    /// How many nodes there are.
    pub fn node_count(&self) -> usize {
        self.present
    }

    fn reorder(&mut self) {
        let mut slots: Vec<Slot> = self.by_name.values().copied().filter(|s| self.nodes[*s as usize].present).collect();
        slots.sort_unstable_by_key(|s| self.nodes[*s as usize].arrival);
        let label = |slot: Slot, names: [&str; 2]| {
            let labels = &self.nodes[slot as usize].labels;
            names.iter().find_map(|n| node_label(labels, self.syms.find(n)?))
        };
        let mut index: HashMap<(Option<Sym>, Option<Sym>), usize> = HashMap::new();
        let mut zones: Vec<Vec<Slot>> = Vec::new();
        for slot in slots {
            let zone = (label(slot, REGION_LABELS), label(slot, ZONE_LABELS));
            let at = *index.entry(zone).or_insert_with(|| {
                zones.push(Vec::new());
                zones.len() - 1
            });
            zones[at].push(slot);
        }
        let longest = zones.iter().map(Vec::len).max().unwrap_or(0);
        let order = (0..longest).flat_map(|i| zones.iter().filter_map(move |z| z.get(i).copied()));
        self.order = Arc::new(order.collect());
    }

    fn slot_or_new(&mut self, name: &str) -> Slot {
        if let Some(slot) = self.by_name.get(name) {
            return *slot;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.rows.push(Row::default());
            self.nodes.push(NodeEntry::default());
            (self.nodes.len() - 1) as Slot
        });
        let name: Arc<str> = name.into();
        let nominated = self.nominated.get(&name).map_or(0, Vec::len) as i32;
        self.rows[slot as usize] = Row { lowest_priority: i32::MAX, nominated, ..Row::default() };
        self.nodes[slot as usize] = NodeEntry { name: name.clone(), ..NodeEntry::default() };
        self.by_name.insert(name, slot);
        slot
    }

    fn release_if_empty(&mut self, slot: Slot) {
        let entry = &self.nodes[slot as usize];
        if !entry.present && entry.pods.is_empty() {
            self.by_name.remove(&entry.name);
            self.nodes[slot as usize] = NodeEntry::default();
            self.free.push(slot);
        }
    }

    /// Adds a node or takes over its changes.
    pub fn set_node(&mut self, node: &wire::Node) -> NodeChange {
        let slot = self.slot_or_new(&node.metadata.name);
        let mut labels: NodeLabels =
            node.metadata.labels.iter().map(|(k, v)| (self.syms.sym(k), self.syms.sym(v))).collect();
        labels.sort_unstable();
        let mut change = NodeChange::default();
        let entry = &mut self.nodes[slot as usize];
        if !std::mem::replace(&mut entry.present, true) {
            change.added = true;
            self.present += 1;
            self.arrivals += 1;
            entry.arrival = self.arrivals;
        }
        change.labels = entry.labels != labels;
        change.taints = entry.taints != node.spec.taints || entry.unschedulable != node.spec.unschedulable;
        let soft = |taints: &[Taint]| usize::from(taints.iter().any(|t| t.effect == "PreferNoSchedule"));
        self.preference_taints = self.preference_taints + soft(&node.spec.taints) - soft(&entry.taints);
        let features = crate::plugins::features::declared(&node.status.declared_features);
        change.features = std::mem::replace(&mut entry.features, features) != features;
        entry.taints = node.spec.taints.clone();
        entry.unschedulable = node.spec.unschedulable;
        entry.labels = labels;
        change.allocatable = self.set_allocatable(slot, &node.status.allocatable);
        self.set_images(slot, &node.status.images);
        if change.added || change.labels {
            self.topologies.set_node(slot, &self.nodes[slot as usize].labels);
            self.order_stale = true;
        }
        if change.added || change.labels || change.taints {
            self.static_log.push(slot);
        }
        change
    }

    fn set_allocatable(&mut self, slot: Slot, allocatable: &wire::Quantities) -> bool {
        let (row, entry) = (&mut self.rows[slot as usize], &mut self.nodes[slot as usize]);
        let (old_row, old_extra) = (*row, entry.extra.clone());
        (row.allocatable_cpu, row.allocatable_memory, row.allocatable_pods) = (0, 0, 0);
        for extra in &mut entry.extra {
            extra.1 = 0;
        }
        for (name, quantity) in allocatable {
            let amount = amount(name, quantity);
            match name.as_str() {
                "cpu" => row.allocatable_cpu = amount,
                "memory" => row.allocatable_memory = amount,
                "pods" => row.allocatable_pods = i32::try_from(amount).unwrap_or(i32::MAX),
                other => {
                    let sym = self.syms.sym(other);
                    entry.extra_mut(sym).1 = amount;
                }
            }
        }
        old_row != *row || old_extra != entry.extra
    }

    fn set_images(&mut self, slot: Slot, images: &[wire::Image]) {
        let named = images.iter().flat_map(|i| i.names.iter().map(|n| (n, i.size_bytes)));
        let mut new: Vec<(Sym, i64)> = named.map(|(name, size)| (self.syms.sym(name), size)).collect();
        new.sort_unstable();
        new.dedup_by_key(|(name, _)| *name);
        for (name, _) in &new {
            *self.image_nodes.entry(*name).or_default() += 1;
        }
        let old = std::mem::replace(&mut self.nodes[slot as usize].images, new);
        for (name, _) in old {
            if let Some(count) = self.image_nodes.get_mut(&name) {
                *count -= 1;
                if *count == 0 {
                    self.image_nodes.remove(&name);
                }
            }
        }
    }

    /// Forgets a node; pods on it stay known until they are gone.
    pub fn remove_node(&mut self, name: &str) -> bool {
        let Some(slot) = self.slot(name) else { return false };
        self.set_images(slot, &[]);
        self.set_allocatable(slot, &wire::Quantities::new());
        let entry = &mut self.nodes[slot as usize];
        let soft = entry.taints.iter().any(|t| t.effect == "PreferNoSchedule");
        self.preference_taints -= usize::from(soft);
        entry.present = false;
        self.present -= 1;
        entry.taints.clear();
        entry.labels.clear();
        self.topologies.set_node(slot, &Vec::new());
        self.order_stale = true;
        self.static_log.push(slot);
        self.release_if_empty(slot);
        true
    }

    /// The name of a node, which all its pods share; that of none needs no memory.
    fn name_of_node(&self, name: &str) -> Arc<str> {
        match self.by_name.get_key_value(name) {
            Some((known, _)) => known.clone(),
            None if name.is_empty() => Arc::default(),
            None => name.into(),
        }
    }

    /// A pod of the API as the scheduler knows it.
    pub fn compile(&mut self, pod: &wire::Pod) -> Arc<PodInfo> {
        let class = Class::new(pod, &mut self.syms);
        let (class, class_id) = self.classes.intern(class);
        let (meta, status) = (&pod.metadata, &pod.status);
        let (claims, awaits_claims) = claims(pod);
        let scheduled = status.conditions.iter().find(|c| c.kind == "PodScheduled");
        let disrupted = status.conditions.iter().find(|c| c.kind == "DisruptionTarget");
        Arc::new(PodInfo {
            uid: meta.uid.as_str().into(),
            name: meta.name.as_str().into(),
            class,
            class_id,
            created: seconds(meta.creation_timestamp.as_deref()).unwrap_or(0),
            started: seconds(status.start_time.as_deref()).unwrap_or(i64::MAX),
            terminating: meta.deletion_timestamp.is_some(),
            node: self.name_of_node(&pod.spec.node_name),
            nominated: self.name_of_node(&status.nominated_node_name),
            version: meta.resource_version.as_str().into(),
            gated: !pod.spec.scheduling_gates.is_empty(),
            generation: meta.generation,
            condition: scheduled.and_then(Unscheduled::of),
            claims,
            awaits_claims,
            preempted: disrupted.is_some_and(|c| c.status == "True" && c.reason == "PreemptionByScheduler"),
        })
    }

    /// Places a pod on a node, or replaces what is known of it.
    pub fn place(&mut self, pod: Arc<PodInfo>, node: &str) -> Slot {
        self.displace(&pod.uid);
        let slot = self.slot_or_new(node);
        self.count(slot, &pod, 1);
        self.nodes[slot as usize].pods.push(pod.clone());
        self.placed.insert(pod.uid.clone(), (slot, pod));
        slot
    }

    /// Takes a pod from its node.
    pub fn displace(&mut self, uid: &str) -> Option<(Slot, Arc<PodInfo>)> {
        let (slot, pod) = self.placed.remove(uid)?;
        let pods = &mut self.nodes[slot as usize].pods;
        if let Some(at) = pods.iter().position(|p| Arc::ptr_eq(p, &pod)) {
            pods.swap_remove(at);
        }
        self.count(slot, &pod, -1);
        self.release_if_empty(slot);
        Some((slot, pod))
    }

    /// Adds a pod to every counter of its node, or (`by` -1) takes it away.
    fn count(&mut self, slot: Slot, pod: &PodInfo, by: i64) {
        let (class, requests) = (&pod.class, &pod.class.requests);
        let (row, entry) = (&mut self.rows[slot as usize], &mut self.nodes[slot as usize]);
        row.count(requests, by);
        for (resource, amount) in &requests.extra {
            entry.extra_mut(*resource).2 += by * amount;
        }
        if by > 0 {
            row.lowest_priority = row.lowest_priority.min(class.priority);
            entry.ports.extend(class.ports.iter().cloned());
        } else {
            if row.lowest_priority == class.priority {
                row.lowest_priority = entry.pods.iter().map(|p| p.class.priority).min().unwrap_or(i32::MAX);
            }
            for port in &class.ports {
                if let Some(at) = entry.ports.iter().position(|p| p == port) {
                    entry.ports.swap_remove(at);
                }
            }
        }
        self.classes.refresh(pod.class_id, &self.matchers, &self.groups, &self.namespaces);
        self.matchers.count(self.classes.matched(pod.class_id), slot, pod.terminating, by);
        self.groups.count(pod, slot, by, &mut self.classes);
        self.volumes.count(pod, slot, by);
    }

    /// Takes over the labels of a namespace, or that it is gone.
    pub fn set_namespace(&mut self, name: &str, labels: Option<Labels>) {
        let same = match (&labels, self.namespaces.get(name)) {
            (Some(new), Some(old)) => new == old,
            // Unknown counts as without labels.
            (Some(new), None) => new.is_empty(),
            (None, old) => old.is_none_or(Vec::is_empty),
        };
        match labels {
            Some(labels) => self.namespaces.insert(name.into(), labels),
            None => self.namespaces.remove(name),
        };
        if !same && (self.matchers.by_namespace_labels() || self.groups.by_namespace_labels()) {
            self.recount();
        }
    }

    /// Between cycles: forgets all selector counters if they take too much memory; those that are needed are counted anew.
    pub fn limit_counters(&mut self) {
        // A class of pods has a selector or two of its own; those of classes that are gone add up.
        let selectors = 2 * self.classes.count() + MAX_IDLE_SELECTORS;
        if self.matchers.too_large() || self.matchers.known() > selectors || self.groups.too_many() {
            self.recount();
        }
        self.topologies.forget_past(self.nodes.len());
    }

    /// Forgets all selector counters and counts again as they are needed.
    fn recount(&mut self) {
        self.matchers = Matchers::default();
        self.groups = Groups::default();
        self.classes.forget_matches();
        for (slot, pod) in self.placed.values() {
            self.groups.count(pod, *slot, 1, &mut self.classes);
        }
    }

    /// Makes sure that a selector is counted; returns its number.
    pub fn matcher(&mut self, key: crate::matchers::MatcherKey) -> u32 {
        if let Some(id) = self.matchers.find(&key) {
            return id;
        }
        let id = self.matchers.add(key);
        for (slot, pod) in self.placed.values() {
            self.classes.refresh(pod.class_id, &self.matchers, &self.groups, &self.namespaces);
            if self.classes.matched(pod.class_id).last() == Some(&id) {
                self.matchers.count(&[id], *slot, pod.terminating, 1);
            }
        }
        id
    }

    /// Remembers that preemption makes room on a node for a pod.
    pub fn nominate(&mut self, pod: &Arc<PodInfo>, node: &str) {
        let _ = self.denominate(&pod.uid);
        if !node.is_empty() {
            let node: Arc<str> = node.into();
            self.nominations.insert(pod.uid.clone(), node.clone());
            self.count_nominated(&node, 1);
            self.nominated.entry(node).or_default().push(pod.clone());
        }
    }

    fn count_nominated(&mut self, node: &str, by: i32) {
        if let Some(slot) = self.by_name.get(node) {
            self.rows[*slot as usize].nominated += by;
        }
    }

    /// Forgets that; returns the node that is kept no longer.
    pub fn denominate(&mut self, uid: &str) -> Option<Arc<str>> {
        let node = self.nominations.remove(uid)?;
        self.count_nominated(&node, -1);
        if let Some(pods) = self.nominated.get_mut(&node) {
            pods.retain(|p| *p.uid != *uid);
            if pods.is_empty() {
                self.nominated.remove(&node);
            }
        }
        Some(node)
    }

    /// Pods that are not less important than `pod` and for which room is made on a node.
    pub fn expected(&self, slot: Slot, pod: &PodInfo) -> Vec<Arc<PodInfo>> {
        let pods = self.nominated.get(&self.nodes[slot as usize].name).into_iter().flatten();
        let counts = |p: &&Arc<PodInfo>| {
            p.class.priority >= pod.class.priority && p.uid != pod.uid && self.placed(&p.uid).is_none()
        };
        pods.filter(counts).cloned().collect()
    }

    /// Identities of the pods for which room is made on a node.
    pub fn nominated_to(&self, slot: Slot) -> Vec<Arc<str>> {
        let node = self.nodes.get(slot as usize).filter(|_| self.rows[slot as usize].nominated > 0);
        node.and_then(|node| self.nominated.get(&node.name)).into_iter().flatten().map(|p| p.uid.clone()).collect()
    }

    /// Pods in namespaces and on nodes, for tests and dumps: `(node, pod)`.
    pub fn all_placed(&self) -> impl Iterator<Item = (&str, &Arc<PodInfo>)> {
        self.placed.values().map(|(slot, pod)| (&*self.nodes[*slot as usize].name, pod))
    }
}

/// Seconds since 1970 of a timestamp.
fn seconds(text: Option<&str>) -> Option<i64> {
    text?.parse::<jiff::Timestamp>().ok().map(|t| t.as_second())
}
