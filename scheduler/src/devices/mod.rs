//! Devices (KEP-4381): what drivers publish in ResourceSlices, how DeviceClasses and ResourceClaims choose among it, and
//! which devices are taken.
//!
//! Invariant: a device that a claim has, in the API or by a placement that is being written, is in [`Devices::taken`].

pub mod allocate;
pub mod capacity;
pub mod extended;
pub mod readiness;
pub mod totals;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::NodeSelector;
use k8s_openapi::api::resource::v1::{
    self as api, AllocatedDeviceStatus, AllocationResult, DeviceClaim, DeviceClassConfiguration,
    DeviceRequestAllocationResult, DeviceSelector, DeviceTaint, ResourceClaim, ResourceSlice,
};
use keelson_machinery::cel::{Program, devices as cel};
use keelson_machinery::quantity::{Format, Quantity};

use self::capacity::{Amounts, Capacity};
use self::extended::Backed;
use self::readiness::{Readiness, readiness};
use crate::intern::Interner;
use crate::selector::NodeTerm;
use crate::volumes::ClaimKey;

/// Driver, pool and name.
pub type DeviceId = (Arc<str>, Arc<str>, Arc<str>);
/// Driver and name of a pool.
pub type PoolId = (Arc<str>, Arc<str>);

/// Which nodes a device can be used from.
#[derive(Clone, Debug)]
pub enum Place {
    /// All.
    Everywhere,
    /// One.
    Node(Arc<str>),
    /// Those that a selector chooses.
    Nodes(Arc<(NodeSelector, Vec<NodeTerm>)>),
    /// Where each device says.
    PerDevice,
}

impl Place {
    fn new(
        everywhere: Option<bool>,
        node: Option<&String>,
        selector: Option<&NodeSelector>,
        syms: &mut Interner,
    ) -> Option<Self> {
        if let Some(node) = node.filter(|name| !name.is_empty()) {
            return Some(Self::Node(node.as_str().into()));
        }
        if let Some(selector) = selector {
            let terms = selector.node_selector_terms.iter().map(|term| NodeTerm::new(term, syms)).collect();
            return Some(Self::Nodes(Arc::new((selector.clone(), terms))));
        }
        (everywhere == Some(true)).then_some(Self::Everywhere)
    }
}

/// Amounts of counters by the set they are of (KEP-4815).
pub type Counters = BTreeMap<String, BTreeMap<String, Quantity>>;

/// A device.
#[derive(Debug)]
pub struct Device {
    /// What names it.
    pub id: DeviceId,
    /// What expressions see of it.
    pub facts: cel::Device,
    /// From where it can be used.
    pub place: Place,
    /// What keeps claims away that do not tolerate it.
    pub taints: Vec<DeviceTaint>,
    /// What it takes of its pool's counters.
    pub consumes: Counters,
    /// How much it has, if it can be shared or requests name amounts.
    pub capacities: Vec<Capacity>,
    /// What has to hold before a pod that gets it is bound.
    pub conditions: Vec<String>,
    /// What tells that this will never hold.
    pub failures: Vec<String>,
    /// Who gets it can only be where it was given.
    pub binds_to_node: bool,
}

/// What a driver manages together.
#[derive(Debug, Default)]
pub struct Pool {
    /// Not all of its slices are known: it is being changed.
    pub incomplete: bool,
    /// One of its devices has to be made ready before a pod that gets it is bound.
    pub conditional: bool,
    /// Its devices.
    pub devices: Vec<Arc<Device>>,
    /// What its devices share.
    pub counters: Counters,
}

struct Slice {
    generation: i64,
    slices: i64,
    devices: Vec<Arc<Device>>,
    counters: Counters,
}

/// An expression, compiled.
pub type Selector = Result<Program, String>;

/// Compiled expressions by their text.
pub type Compiled = Arc<HashMap<String, Arc<Selector>>>;

/// Compiles all expressions of a claim.
fn compile(spec: Option<&DeviceClaim>) -> Compiled {
    let mut compiled = HashMap::new();
    for request in spec.into_iter().flat_map(|spec| spec.requests.iter().flatten()) {
        let exact = request.exactly.iter().filter_map(|exact| exact.selectors.as_deref());
        let others = request.first_available.iter().flatten().filter_map(|sub| sub.selectors.as_deref());
        for selectors in exact.chain(others) {
            let texts = selectors.iter().filter_map(|one| one.cel.as_ref()).map(|cel| cel.expression.clone());
            compiled.extend(texts.zip(self::selectors(Some(selectors))));
        }
    }
    Arc::new(compiled)
}

/// Compiles the expressions of selectors.
pub fn selectors(all: Option<&[DeviceSelector]>) -> Vec<Arc<Selector>> {
    let env = cel::env();
    let expressions = all.into_iter().flatten().filter_map(|selector| selector.cel.as_ref());
    expressions.map(|cel| Arc::new(Program::compile(&cel.expression, &env).map_err(|why| why.to_string()))).collect()
}

/// A class of devices.
#[derive(Debug)]
pub struct Class {
    /// Which devices are of it.
    pub selectors: Vec<Arc<Selector>>,
    /// What its devices are configured with.
    pub config: Vec<DeviceClassConfiguration>,
}

/// A claim.
#[derive(Clone, Debug, Default)]
pub struct Claim {
    /// Identity.
    pub uid: String,
    /// The pod that it was made for.
    pub owner: Option<String>,
    /// It is being deleted.
    pub deleting: bool,
    /// What it asks for.
    pub spec: Arc<DeviceClaim>,
    /// The expressions in it, compiled once.
    pub compiled: Compiled,
    /// What it has.
    pub allocation: Option<Arc<AllocationResult>>,
    /// What drivers say of that, if a pod has to wait for it.
    pub statuses: Vec<AllocatedDeviceStatus>,
    /// uids of those that it is reserved for.
    pub reserved: Vec<String>,
    /// The scheduler made it for its pod's extended resources.
    pub special: bool,
}

impl Claim {
    /// Whether its devices are of no use: they will never be ready, or were not within `patience` seconds.
    pub fn is_stuck(&self, now: i64, patience: i64) -> bool {
        let Some(allocation) = &self.allocation else { return false };
        match readiness(allocation, &self.statuses) {
            Readiness::Ready => false,
            Readiness::Failed(_) => true,
            Readiness::Waiting => {
                let since = allocation.allocation_timestamp.as_ref().map(|time| time.0.as_second());
                since.is_some_and(|since| since + patience <= now)
            }
        }
    }
}

/// What claims have of a device that they share.
#[derive(Debug, Default)]
struct Shares {
    claims: u32,
    amounts: Amounts,
}

/// Everything about devices.
#[derive(Default)]
pub struct Devices {
    /// Claims.
    pub claims: HashMap<ClaimKey, Claim>,
    /// Classes.
    pub classes: HashMap<Arc<str>, Arc<Class>>,
    /// What claims get by placements that are being written, and by whose.
    assumed: HashMap<ClaimKey, (Arc<str>, Arc<AllocationResult>)>,
    taken: HashMap<DeviceId, u32>,
    shares: HashMap<DeviceId, Shares>,
    /// Resources that classes stand behind.
    pub backed: Backed,
    /// Claims that the scheduler made for extended resources, by their pods' uids.
    special: HashMap<Arc<str>, ClaimKey>,
    slices: BTreeMap<PoolId, BTreeMap<Arc<str>, Slice>>,
    pool_of: HashMap<Arc<str>, PoolId>,
    pools: BTreeMap<PoolId, Pool>,
    /// Pools with devices of one node only, by node.
    of_node: HashMap<Arc<str>, BTreeSet<PoolId>>,
    /// Pools with devices that more than one node can use.
    shared: BTreeSet<PoolId>,
}

fn text(value: &Option<String>) -> Arc<str> {
    value.as_deref().unwrap_or_default().into()
}

/// The devices that an allocation takes for itself or shares.
fn takes(allocation: &AllocationResult) -> impl Iterator<Item = (DeviceId, &DeviceRequestAllocationResult)> + '_ {
    let results = allocation.devices.iter().flat_map(|devices| devices.results.iter().flatten());
    let own = results.filter(|result| result.admin_access != Some(true));
    own.map(|r| ((r.driver.as_str().into(), r.pool.as_str().into(), r.device.as_str().into()), r))
}

/// What a result has of a shared device; `None` if it has the device for itself.
fn shared(result: &DeviceRequestAllocationResult) -> Option<Amounts> {
    if result.share_id.is_none() && result.consumed_capacity.is_none() {
        return None;
    }
    let consumed = result.consumed_capacity.iter().flatten();
    Some(consumed.filter_map(|(name, amount)| Some((name.clone(), Quantity::parse(&amount.0).ok()?))).collect())
}

/// The key under which a pod's claim for extended resources counts before it is made. No name of a claim is like it.
pub fn special_key(namespace: &Arc<str>, uid: &str) -> ClaimKey {
    (namespace.clone(), format!("<extended-resources>/{uid}").into())
}

impl Devices {
    /// Takes over a claim.
    pub fn set_claim(&mut self, claim: &ResourceClaim) {
        let meta = &claim.metadata;
        let key = (text(&meta.namespace), text(&meta.name));
        self.remove_claim(&key.0, &key.1);
        let owner = meta.owner_references.iter().flatten().find(|o| o.controller == Some(true) && o.kind == "Pod");
        let status = claim.status.clone().unwrap_or_default();
        let allocation = status.allocation.map(Arc::new);
        if let Some(allocation) = &allocation {
            self.count(allocation, 1);
        }
        let reserved = status.reserved_for.into_iter().flatten().map(|user| user.uid).collect();
        let special =
            meta.annotations.iter().flatten().any(|(key, value)| key == extended::ANNOTATION && value == "true");
        let conditional = allocation.as_deref().is_some_and(readiness::conditional);
        let parsed = Claim {
            uid: meta.uid.clone().unwrap_or_default(),
            owner: owner.map(|o| o.uid.clone()),
            statuses: status.devices.filter(|_| conditional).unwrap_or_default(),
            special,
            deleting: meta.deletion_timestamp.is_some(),
            compiled: compile(claim.spec.devices.as_ref()),
            spec: Arc::new(claim.spec.devices.clone().unwrap_or_default()),
            allocation,
            reserved,
        };
        if parsed.allocation.is_some() {
            self.unassume(&key);
        }
        if let Some(owner) = parsed.owner.as_deref().filter(|_| parsed.special) {
            if parsed.allocation.is_some() {
                self.unassume(&special_key(&key.0, owner));
            }
            self.special.insert(owner.into(), key.clone());
        }
        self.claims.insert(key, parsed);
    }

    /// Forgets a claim.
    pub fn remove_claim(&mut self, namespace: &str, name: &str) {
        let key = (namespace.into(), name.into());
        let Some(claim) = self.claims.remove(&key) else { return };
        if let Some(owner) = claim.owner.as_deref().filter(|owner| self.special.get(*owner) == Some(&key)) {
            self.special.remove(owner);
        }
        if let Some(allocation) = claim.allocation {
            self.count(&allocation, -1);
        }
    }

    /// The claim that was made for a pod's extended resources.
    pub fn special(&self, pod: &str) -> Option<&ClaimKey> {
        self.special.get(pod)
    }

    /// A claim is gone: what it was promised is free.
    pub fn claim_gone(&mut self, namespace: &str, name: &str) {
        self.remove_claim(namespace, name);
        self.unassume(&(namespace.into(), name.into()));
    }

    /// What a claim has or is about to get.
    pub fn allocation(&self, key: &ClaimKey) -> Option<&Arc<AllocationResult>> {
        let stored = self.claims.get(key).and_then(|claim| claim.allocation.as_ref());
        stored.or_else(|| self.assumed.get(key).map(|(_, allocation)| allocation))
    }

    /// A claim gets devices by the placement of a pod.
    pub fn assume(&mut self, key: ClaimKey, pod: Arc<str>, allocation: Arc<AllocationResult>) {
        self.unassume(&key);
        self.count(&allocation, 1);
        self.assumed.insert(key, (pod, allocation));
    }

    /// The placement of a pod came to nothing.
    pub fn forget(&mut self, pod: &str) {
        let keys: Vec<ClaimKey> =
            self.assumed.iter().filter(|(_, (by, _))| **by == *pod).map(|(key, _)| key.clone()).collect();
        keys.iter().for_each(|key| self.unassume(key));
    }

    fn unassume(&mut self, key: &ClaimKey) {
        if let Some((_, allocation)) = self.assumed.remove(key) {
            self.count(&allocation, -1);
        }
    }

    fn count(&mut self, allocation: &AllocationResult, by: i32) {
        for (id, result) in takes(allocation) {
            if let Some(amounts) = shared(result) {
                self.share(id, &amounts, by);
                continue;
            }
            let count = self.taken.entry(id.clone()).or_default();
            *count = count.saturating_add_signed(by);
            if *count == 0 {
                self.taken.remove(&id);
            }
        }
    }

    fn share(&mut self, id: DeviceId, amounts: &Amounts, by: i32) {
        let shares = self.shares.entry(id.clone()).or_default();
        shares.claims = shares.claims.saturating_add_signed(by);
        for (name, amount) in amounts {
            let sum = shares.amounts.entry(name.clone()).or_insert(Quantity::from_units(0, Format::DecimalSi));
            *sum = if by > 0 { *sum + *amount } else { *sum - *amount };
        }
        if shares.claims == 0 {
            self.shares.remove(&id);
        }
    }

    /// What claims have of a device that they share, if any has.
    pub fn shared(&self, id: &DeviceId) -> Option<&Amounts> {
        self.shares.get(id).map(|shares| &shares.amounts)
    }

    /// Whether somebody has a device, for itself or shared.
    pub fn is_used(&self, id: &DeviceId) -> bool {
        self.is_taken(id) || self.shares.contains_key(id)
    }

    /// Whether somebody has a device for itself.
    pub fn is_taken(&self, id: &DeviceId) -> bool {
        self.taken.contains_key(id)
    }

    /// Takes over a class.
    pub fn set_class(&mut self, class: &api::DeviceClass, syms: &mut Interner) {
        let created = class.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second());
        let name = text(&class.metadata.name);
        self.backed.set(&name, class.spec.extended_resource_name.as_deref(), created, syms);
        let parsed = Class {
            selectors: selectors(class.spec.selectors.as_deref()),
            config: class.spec.config.clone().unwrap_or_default(),
        };
        self.classes.insert(name, Arc::new(parsed));
    }

    /// Forgets a class.
    pub fn remove_class(&mut self, name: &str) {
        self.classes.remove(name);
        self.backed.remove(name);
    }

    /// Takes over a slice.
    pub fn set_slice(&mut self, slice: &ResourceSlice, syms: &mut Interner) {
        let name = text(&slice.metadata.name);
        self.remove_slice(&name);
        let spec = &slice.spec;
        let id: PoolId = (spec.driver.as_str().into(), spec.pool.name.as_str().into());
        let place = match spec.per_device_node_selection {
            Some(true) => Place::PerDevice,
            _ => Place::new(spec.all_nodes, spec.node_name.as_ref(), spec.node_selector.as_ref(), syms)
                .unwrap_or(Place::PerDevice),
        };
        let devices = spec.devices.iter().flatten();
        let devices = devices.filter_map(|one| Device::new(one, &id, &place, syms).map(Arc::new)).collect();
        let counters = spec.shared_counters.iter().flatten().map(|set| (set.name.clone(), amounts(&set.counters)));
        let parsed = Slice {
            generation: spec.pool.generation,
            slices: spec.pool.resource_slice_count,
            devices,
            counters: counters.collect(),
        };
        self.slices.entry(id.clone()).or_default().insert(name.clone(), parsed);
        self.pool_of.insert(name, id.clone());
        self.gather(&id);
    }

    /// Forgets a slice.
    pub fn remove_slice(&mut self, name: &str) {
        let Some(id) = self.pool_of.remove(name) else { return };
        if let Some(slices) = self.slices.get_mut(&id) {
            slices.remove(name);
            if slices.is_empty() {
                self.slices.remove(&id);
            }
        }
        self.gather(&id);
    }

    /// Puts a pool together from its slices of the newest generation.
    fn gather(&mut self, id: &PoolId) {
        if let Some(before) = self.pools.remove(id) {
            for device in &before.devices {
                if let Place::Node(node) = &device.place
                    && let Some(pools) = self.of_node.get_mut(node)
                {
                    pools.remove(id);
                }
            }
            self.shared.remove(id);
            self.of_node.retain(|_, pools| !pools.is_empty());
        }
        let Some(slices) = self.slices.get(id) else { return };
        let newest = slices.values().map(|slice| slice.generation).max().unwrap_or_default();
        let current = || slices.values().filter(|slice| slice.generation == newest);
        let known = current().count() as i64;
        let mut pool = Pool { incomplete: current().any(|slice| slice.slices != known), ..Pool::default() };
        for slice in current() {
            pool.devices.extend(slice.devices.iter().cloned());
            pool.counters.extend(slice.counters.clone());
        }
        pool.conditional = pool.devices.iter().any(|device| !device.conditions.is_empty());
        for device in &pool.devices {
            match &device.place {
                Place::Node(node) => drop(self.of_node.entry(node.clone()).or_default().insert(id.clone())),
                _ => drop(self.shared.insert(id.clone())),
            }
        }
        self.pools.insert(id.clone(), pool);
    }

    /// The pools with devices that a node may be able to use, in the order of their names; those whose devices have to be made
    /// ready last.
    pub fn pools(&self, node: &str) -> Vec<(&PoolId, &Pool)> {
        let own = self.of_node.get(node).into_iter().flatten();
        let ids: BTreeSet<&PoolId> = own.chain(&self.shared).collect();
        let mut pools: Vec<_> = ids.into_iter().filter_map(|id| self.pools.get_key_value(id)).collect();
        pools.sort_by_key(|(_, pool)| pool.conditional);
        pools
    }

    /// One pool.
    pub fn pool(&self, id: &PoolId) -> Option<&Pool> {
        self.pools.get(id)
    }
}

fn amounts(counters: &BTreeMap<String, api::Counter>) -> BTreeMap<String, Quantity> {
    let parse = |counter: &api::Counter| Quantity::parse(&counter.value.0).ok();
    counters.iter().filter_map(|(name, counter)| Some((name.clone(), parse(counter)?))).collect()
}

fn attribute(from: &api::DeviceAttribute) -> Option<cel::Attribute> {
    use cel::Attribute::{Bool, Int, List, Text, Version};
    let list = |items: Vec<cel::Attribute>| (!items.is_empty()).then_some(List(items));
    (from.bool.map(Bool))
        .or_else(|| from.int.map(Int))
        .or_else(|| from.string.clone().map(Text))
        .or_else(|| from.version.clone().map(Version))
        .or_else(|| list(from.bools.iter().flatten().copied().map(Bool).collect()))
        .or_else(|| list(from.ints.iter().flatten().copied().map(Int).collect()))
        .or_else(|| list(from.strings.iter().flatten().cloned().map(Text).collect()))
        .or_else(|| list(from.versions.iter().flatten().cloned().map(Version).collect()))
}

/// Domain and name of an attribute or capacity; without a domain it is of the driver's.
fn qualified<'a>(name: &'a str, driver: &'a str) -> (&'a str, &'a str) {
    name.split_once('/').unwrap_or((driver, name))
}

impl Device {
    fn new(from: &api::Device, pool: &PoolId, place: &Place, syms: &mut Interner) -> Option<Self> {
        let mut facts = cel::Device {
            driver: pool.0.to_string(),
            shared: from.allow_multiple_allocations == Some(true),
            ..cel::Device::default()
        };
        for (name, value) in from.attributes.iter().flatten() {
            let (domain, name) = qualified(name, &pool.0);
            if let Some(value) = attribute(value) {
                facts.attributes.entry(domain.to_owned()).or_default().insert(name.to_owned(), value);
            }
        }
        for (name, amount) in from.capacity.iter().flatten() {
            let (domain, name) = qualified(name, &pool.0);
            if let Ok(amount) = Quantity::parse(&amount.value.0) {
                facts.capacity.entry(domain.to_owned()).or_default().insert(name.to_owned(), amount);
            }
        }
        let place = match place {
            Place::PerDevice => Place::new(from.all_nodes, from.node_name.as_ref(), from.node_selector.as_ref(), syms)?,
            place => place.clone(),
        };
        let consumes = from.consumes_counters.iter().flatten();
        Some(Self {
            id: (pool.0.clone(), pool.1.clone(), from.name.as_str().into()),
            facts,
            place,
            taints: from.taints.clone().unwrap_or_default(),
            consumes: consumes.map(|c| (c.counter_set.clone(), amounts(&c.counters))).collect(),
            capacities: from.capacity.iter().flatten().filter_map(|(name, one)| Capacity::new(name, one)).collect(),
            conditions: from.binding_conditions.clone().unwrap_or_default(),
            failures: from.binding_failure_conditions.clone().unwrap_or_default(),
            binds_to_node: from.binds_to_node == Some(true),
        })
    }
}
