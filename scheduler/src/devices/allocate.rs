//! Which devices of a node a pod's claims get: a search with a limit, in the order of pools and devices.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::api::resource::v1::{
    AllocationResult, DeviceAllocationConfiguration, DeviceAllocationResult, DeviceClaim, DeviceConstraint,
    DeviceRequest, DeviceRequestAllocationResult, DeviceTaint, DeviceToleration, ExactDeviceRequest,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Written;
use keelson_machinery::cel::devices as cel;
use keelson_machinery::quantity::{Format, Quantity};

use super::capacity::{Amounts, enough, share};
use super::{Claim, Class, Compiled, Device, Devices, Place, Pool, Selector};
use crate::selector::NodeTerm;
use crate::volumes::ClaimKey;

/// Devices that one claim may have (upstream's `AllocationResultsMaxSize`).
const MAX_DEVICES: usize = 32;
/// Devices that a search looks at before it gives up, so that no claim holds up the scheduler.
const MAX_STEPS: usize = 100_000;

/// Why a node cannot give what is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is not enough.
    Lacking,
    /// It cannot be told.
    Failed(String),
}

/// One way to satisfy a request.
#[derive(Debug)]
struct Choice {
    /// Name, with that of the alternative behind a slash.
    name: String,
    class: Arc<Class>,
    class_name: String,
    selectors: Vec<Arc<Selector>>,
    /// All devices, not a number of them.
    all: bool,
    count: usize,
    /// Devices are looked at, not taken.
    admin: bool,
    tolerations: Vec<DeviceToleration>,
    /// What each device has to have, or gives of itself.
    capacity: Amounts,
}

/// A claim that gets devices when its pod is placed.
#[derive(Debug)]
pub struct Wanted {
    /// The claim.
    pub key: ClaimKey,
    spec: Arc<DeviceClaim>,
    requests: Vec<Vec<Choice>>,
}

impl Wanted {
    /// What a claim asks for.
    ///
    /// # Errors
    /// In upstream's words, what is not there or not understood.
    pub fn new(devices: &Devices, key: &ClaimKey, claim: &Claim) -> Result<Self, String> {
        let from = (devices, &claim.compiled);
        let requests = claim.spec.requests.iter().flatten().map(|request| choices(from, key, request));
        Ok(Self { key: key.clone(), spec: claim.spec.clone(), requests: requests.collect::<Result<_, _>>()? })
    }

    /// Whether a request can be satisfied in more than one way.
    pub fn has_alternatives(&self) -> bool {
        self.requests.iter().any(|choices| choices.len() > 1)
    }

    /// The places of the alternatives that an allocation has, for requests that have any.
    pub fn ranks<'a>(&'a self, allocation: &'a AllocationResult) -> impl Iterator<Item = usize> + 'a {
        let results = || allocation.devices.iter().flat_map(|devices| devices.results.iter().flatten());
        let given = move |choice: &Choice| results().any(|result| result.request == choice.name);
        let lists = self.spec.requests.iter().flatten().zip(&self.requests);
        let lists = lists.filter(|(request, _)| request.first_available.is_some());
        lists.filter_map(move |(_, choices)| choices.iter().position(given))
    }
}

fn choices(from: (&Devices, &Compiled), key: &ClaimKey, request: &DeviceRequest) -> Result<Vec<Choice>, String> {
    if let Some(exact) = &request.exactly {
        return Ok(vec![choice(from, key, request.name.clone(), exact)?]);
    }
    let each = request.first_available.iter().flatten().map(|sub| {
        let exact = ExactDeviceRequest {
            admin_access: None,
            allocation_mode: sub.allocation_mode.clone(),
            capacity: sub.capacity.clone(),
            count: sub.count,
            device_class_name: sub.device_class_name.clone(),
            selectors: sub.selectors.clone(),
            tolerations: sub.tolerations.clone(),
        };
        choice(from, key, format!("{}/{}", request.name, sub.name), &exact)
    });
    each.collect()
}

fn choice(
    (devices, compiled): (&Devices, &Compiled),
    key: &ClaimKey,
    name: String,
    exact: &ExactDeviceRequest,
) -> Result<Choice, String> {
    let class_name = &exact.device_class_name;
    let class = devices.classes.get(class_name.as_str()).cloned();
    let class = class.ok_or_else(|| format!("request {name}: device class {class_name} does not exist"))?;
    let refused = |why: &str| Err(format!("claim {}/{}, request {name}: {why}", key.0, key.1));
    let asked = exact.capacity.iter().flat_map(|capacity| capacity.requests.iter().flatten());
    let parse = |(name, amount): (&String, &Written)| Some((name.clone(), Quantity::parse(&amount.0).ok()?));
    let all = match exact.allocation_mode.as_deref() {
        Some("All") => true,
        None | Some("" | "ExactCount") => false,
        Some(other) => return refused(&format!("unsupported count mode {other}")),
    };
    let expressions = exact.selectors.iter().flatten().filter_map(|selector| selector.cel.as_ref());
    // Nothing may be left out: what was not compiled chooses nothing, and says so.
    let unknown = || Arc::new(Err("the expression was not compiled".to_owned()));
    let selectors = expressions.map(|cel| compiled.get(&cel.expression).cloned().unwrap_or_else(unknown));
    Ok(Choice {
        class,
        class_name: class_name.clone(),
        selectors: selectors.collect(),
        all,
        count: usize::try_from(exact.count.unwrap_or(1)).unwrap_or(1).max(1),
        admin: exact.admin_access == Some(true),
        tolerations: exact.tolerations.clone().unwrap_or_default(),
        capacity: asked.filter_map(parse).collect(),
        name,
    })
}

/// The node that is looked at.
pub struct Node<'a> {
    /// Its name.
    pub name: &'a Arc<str>,
    /// Whether it satisfies one of these terms.
    pub satisfies: &'a dyn Fn(&[NodeTerm]) -> bool,
}

impl Node<'_> {
    /// Whether it can use what is at a place.
    pub fn reaches(&self, place: &Place) -> bool {
        match place {
            Place::Everywhere => true,
            Place::Node(name) => name == self.name,
            Place::Nodes(selector) => (self.satisfies)(&selector.1),
            Place::PerDevice => false,
        }
    }
}

/// Chooses devices for claims on a node: an allocation for each claim, in their order.
///
/// # Errors
/// Why it cannot be done there.
pub fn allocate(devices: &Devices, wanted: &[&Wanted], node: &Node<'_>) -> Result<Vec<AllocationResult>, Refusal> {
    let mut candidates = Vec::new();
    for (id, pool) in devices.pools(node.name) {
        for device in &pool.devices {
            if node.reaches(&device.place) {
                candidates.push(Candidate { device, pool, pool_name: &id.1 });
            }
        }
    }
    let places = wanted.iter().enumerate().flat_map(|(claim, w)| (0..w.requests.len()).map(move |r| (claim, r)));
    let mut search = Search {
        devices,
        wanted,
        places: places.collect(),
        candidates,
        chosen: Vec::new(),
        known: HashMap::new(),
        steps: 0,
    };
    if !search.request(0)? {
        return Err(Refusal::Lacking);
    }
    Ok((0..wanted.len()).map(|claim| search.result(claim, node)).collect())
}

/// A device that the node can use.
struct Candidate<'a> {
    device: &'a Arc<Device>,
    pool: &'a Pool,
    pool_name: &'a str,
}

/// A device that the search has put aside.
struct Chosen<'a> {
    claim: usize,
    choice: &'a Choice,
    device: &'a Arc<Device>,
    /// What it takes of a device that is shared.
    amounts: Option<Amounts>,
}

struct Search<'a> {
    devices: &'a Devices,
    wanted: &'a [&'a Wanted],
    /// Claim and request, by the order in which they are satisfied.
    places: Vec<(usize, usize)>,
    candidates: Vec<Candidate<'a>>,
    chosen: Vec<Chosen<'a>>,
    /// What expressions said: by choice and candidate.
    known: HashMap<(*const Choice, usize), bool>,
    steps: usize,
}

impl<'a> Search<'a> {
    /// Satisfies the request at a place and all behind it.
    fn request(&mut self, at: usize) -> Result<bool, Refusal> {
        let Some(&(claim, request)) = self.places.get(at) else { return Ok(true) };
        let wanted = self.wanted;
        for choice in &wanted[claim].requests[request] {
            let done = match choice.all {
                true => self.take_all(at, claim, choice)?,
                false => self.take(at, claim, choice, choice.count, 0)?,
            };
            if done {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes `left` more devices for a request out of the candidates from `from` on.
    fn take(&mut self, at: usize, claim: usize, choice: &'a Choice, left: usize, from: usize) -> Result<bool, Refusal> {
        if left == 0 {
            return self.request(at + 1);
        }
        if self.chosen.iter().filter(|c| c.claim == claim).count() >= MAX_DEVICES {
            return Ok(false);
        }
        for index in from..self.candidates.len() {
            self.step(claim)?;
            let candidate = &self.candidates[index];
            let device = candidate.device;
            if candidate.pool.incomplete {
                continue;
            }
            let Some(amounts) = self.free(choice, index) else { continue };
            if !self.suits(claim, choice, index)? {
                continue;
            }
            // A device that is shared may be chosen once more.
            let next = if amounts.is_some() { index } else { index + 1 };
            self.chosen.push(Chosen { claim, choice, device, amounts });
            if self.take(at, claim, choice, left - 1, next)? {
                return Ok(true);
            }
            self.chosen.pop();
        }
        Ok(false)
    }

    /// Takes all devices that a request means: each of them has to be free.
    fn take_all(&mut self, at: usize, claim: usize, choice: &'a Choice) -> Result<bool, Refusal> {
        let before = self.chosen.len();
        let mut satisfied = true;
        for index in 0..self.candidates.len() {
            self.step(claim)?;
            let candidate = &self.candidates[index];
            let (device, key) = (candidate.device, &self.wanted[claim].key);
            if candidate.pool.incomplete {
                return Err(Refusal::Failed(format!(
                    "claim {}/{}, request {}: asks for all devices, but resource pool {} is currently being updated",
                    key.0, key.1, choice.name, candidate.pool_name
                )));
            }
            if !self.is_meant(choice, index)? {
                continue;
            }
            let free = self.free(choice, index);
            satisfied &= free.is_some() && self.suits(claim, choice, index)?;
            let Some(amounts) = free.filter(|_| satisfied) else { break };
            self.chosen.push(Chosen { claim, choice, device, amounts });
        }
        let number = self.chosen.len() - before;
        if satisfied && number > 0 && number <= MAX_DEVICES && self.request(at + 1)? {
            return Ok(true);
        }
        self.chosen.truncate(before);
        Ok(false)
    }

    fn step(&mut self, claim: usize) -> Result<(), Refusal> {
        self.steps += 1;
        if self.steps <= MAX_STEPS {
            return Ok(());
        }
        let key = &self.wanted[claim].key;
        Err(Refusal::Failed(format!("claim {}/{}: too many ways to choose devices: narrow it down", key.0, key.1)))
    }

    /// Whether the device can be had, as far as others have it, here or elsewhere; and how much of it, if it is shared.
    fn free(&self, choice: &Choice, index: usize) -> Option<Option<Amounts>> {
        let device = self.candidates[index].device;
        let mine = || self.chosen.iter().filter(|c| Arc::ptr_eq(c.device, device));
        if choice.admin {
            return (!mine().any(|c| std::ptr::eq(c.choice, choice))).then_some(None);
        }
        let driver = &device.id.0;
        if device.facts.shared {
            let there = self.devices.shared(&device.id);
            let others: Vec<&Amounts> = mine().filter_map(|c| c.amounts.as_ref()).chain(there).collect();
            let amounts = share(&device.capacities, driver, &choice.capacity, &others)?;
            return (!self.devices.is_taken(&device.id) && self.has_counters(index)).then_some(Some(amounts));
        }
        let taken = self.devices.is_used(&device.id) || mine().any(|c| !c.choice.admin);
        let enough = enough(&device.capacities, driver, &choice.capacity);
        (!taken && enough && self.has_counters(index)).then_some(None)
    }

    /// Whether a device's pool has what it consumes. A device that is in use consumes once, whoever shares it.
    fn has_counters(&self, index: usize) -> bool {
        let Candidate { device, pool, .. } = &self.candidates[index];
        let chosen = |d: &Arc<Device>| self.chosen.iter().any(|c| !c.choice.admin && Arc::ptr_eq(c.device, d));
        let in_use = |d: &Arc<Device>| self.devices.is_used(&d.id) || chosen(d);
        if in_use(device) {
            return true;
        }
        device.consumes.iter().all(|(set, amounts)| {
            let Some(there) = pool.counters.get(set) else { return false };
            amounts.iter().all(|(counter, amount)| {
                let zero = Quantity::from_units(0, Format::DecimalSi);
                let used = pool.devices.iter().filter(|d| in_use(d));
                let each = used.filter_map(|d| d.consumes.get(set)?.get(counter));
                let used = each.fold(zero, |sum, one| sum + *one);
                there.get(counter).is_some_and(|all| used + *amount <= *all)
            })
        })
    }

    /// Whether the class, the request's selectors, its tolerations and the claim's constraints let it have a device.
    fn suits(&mut self, claim: usize, choice: &'a Choice, index: usize) -> Result<bool, Refusal> {
        let device = self.candidates[index].device;
        let kept_away = device.taints.iter().any(|taint| {
            matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute")
                && !choice.tolerations.iter().any(|toleration| tolerates(toleration, taint))
        });
        if (kept_away && !choice.admin) || !self.is_meant(choice, index)? {
            return Ok(false);
        }
        let constraints = self.wanted[claim].spec.constraints.iter().flatten();
        let mut bearing = constraints.filter(|constraint| covers(constraint, &choice.name));
        Ok(bearing.all(|constraint| self.holds(constraint, claim, device)))
    }

    /// Whether the class and the request's selectors choose a device.
    fn is_meant(&mut self, choice: &'a Choice, index: usize) -> Result<bool, Refusal> {
        let key = (std::ptr::from_ref(choice), index);
        if let Some(known) = self.known.get(&key) {
            return Ok(*known);
        }
        let facts = &self.candidates[index].device.facts;
        let of_class = format!("class {}", choice.class_name);
        let of_request = format!("request {}", choice.name);
        let meant =
            chosen_by(&choice.class.selectors, facts, &of_class)? && chosen_by(&choice.selectors, facts, &of_request)?;
        self.known.insert(key, meant);
        Ok(meant)
    }

    /// Whether a constraint holds with one more device.
    fn holds(&self, constraint: &DeviceConstraint, claim: usize, device: &Device) -> bool {
        let others = self.chosen.iter().filter(|c| c.claim == claim && covers(constraint, &c.choice.name));
        if let Some(name) = &constraint.match_attribute {
            let Some(value) = device.facts.attribute(name) else { return false };
            return others.into_iter().all(|c| c.device.facts.attribute(name) == Some(value));
        }
        if let Some(name) = &constraint.distinct_attribute {
            let Some(value) = device.facts.attribute(name) else { return false };
            return others.into_iter().all(|c| c.device.facts.attribute(name) != Some(value));
        }
        false
    }

    /// What a claim gets.
    fn result(&self, claim: usize, node: &Node<'_>) -> AllocationResult {
        let chosen: Vec<&Chosen<'_>> = self.chosen.iter().filter(|c| c.claim == claim).collect();
        let results = chosen.iter().map(|c| {
            let (driver, pool, device) = &c.device.id;
            let some = |list: &Vec<String>| (!list.is_empty()).then(|| list.clone());
            let consumed = c.amounts.as_ref().map(|all| all.iter().map(|(k, v)| (k.clone(), Written(v.to_string()))));
            DeviceRequestAllocationResult {
                binding_conditions: some(&c.device.conditions),
                binding_failure_conditions: some(&c.device.failures),
                consumed_capacity: consumed.map(Iterator::collect),
                admin_access: c.choice.admin.then_some(true),
                device: device.to_string(),
                driver: driver.to_string(),
                pool: pool.to_string(),
                request: c.choice.name.clone(),
                tolerations: (!c.choice.tolerations.is_empty()).then(|| c.choice.tolerations.clone()),
                ..DeviceRequestAllocationResult::default()
            }
        });
        let config = configuration(&self.wanted[claim].spec, &chosen);
        AllocationResult {
            allocation_timestamp: None,
            devices: Some(DeviceAllocationResult {
                config: (!config.is_empty()).then_some(config),
                results: Some(results.collect()),
            }),
            node_selector: node_selector(&chosen, node.name),
        }
    }
}

/// Whether all of these expressions choose a device.
///
/// # Errors
/// One cannot be evaluated; `of` says whose it is.
pub fn chosen_by(selectors: &[Arc<Selector>], facts: &cel::Device, of: &str) -> Result<bool, Refusal> {
    for (index, selector) in selectors.iter().enumerate() {
        let failed =
            |kind: &str, why: &str| Refusal::Failed(format!("{of}: selector #{index}: CEL {kind} error: {why}"));
        let program = (**selector).as_ref().map_err(|why| failed("compile", why))?;
        if !cel::matches(program, facts).map_err(|why| failed("runtime", &why.message))? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn tolerates(toleration: &DeviceToleration, taint: &DeviceTaint) -> bool {
    let given = |value: &Option<String>| value.as_deref().filter(|text| !text.is_empty()).map(str::to_owned);
    let exists = given(&toleration.operator).as_deref() == Some("Exists");
    given(&toleration.effect).is_none_or(|effect| effect == taint.effect)
        && given(&toleration.key).map_or(exists, |key| key == taint.key)
        && (exists || given(&toleration.value) == given(&taint.value))
}

/// Whether a constraint is about a request, named with or without its alternative.
fn covers(constraint: &DeviceConstraint, request: &str) -> bool {
    let named = constraint.requests.as_deref().unwrap_or_default();
    let whole = request.split_once('/').map_or(request, |(whole, _)| whole);
    named.is_empty() || named.iter().any(|name| name == request || name == whole)
}

/// What the classes and the claim say of how devices are set up: the classes' first.
fn configuration(spec: &DeviceClaim, chosen: &[&Chosen<'_>]) -> Vec<DeviceAllocationConfiguration> {
    let mut config = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    for one in chosen {
        if seen.contains(&one.choice.name.as_str()) {
            continue;
        }
        seen.push(&one.choice.name);
        config.extend(one.choice.class.config.iter().map(|class| DeviceAllocationConfiguration {
            opaque: class.opaque.clone(),
            requests: Some(vec![one.choice.name.clone()]),
            source: "FromClass".into(),
        }));
    }
    for claim in spec.config.iter().flatten() {
        let named = claim.requests.as_deref().unwrap_or_default();
        let bears = |name: &&str| {
            let whole = name.split_once('/').map_or(*name, |(whole, _)| whole);
            named.iter().any(|n| n == name || n == whole)
        };
        if named.is_empty() || seen.iter().any(bears) {
            config.push(DeviceAllocationConfiguration {
                opaque: claim.opaque.clone(),
                requests: claim.requests.clone(),
                source: "FromClaim".into(),
            });
        }
    }
    config
}

/// One node alone.
fn only(node: &Arc<str>) -> NodeSelector {
    let name = NodeSelectorRequirement {
        key: "metadata.name".into(),
        operator: "In".into(),
        values: Some(vec![node.to_string()]),
    };
    let term = NodeSelectorTerm { match_fields: Some(vec![name]), match_expressions: None };
    NodeSelector { node_selector_terms: vec![term] }
}

/// From which nodes all chosen devices can be used; `None`: from all.
fn node_selector(chosen: &[&Chosen<'_>], node: &Arc<str>) -> Option<NodeSelector> {
    let mut all = NodeSelectorTerm::default();
    let add = |list: &mut Option<Vec<NodeSelectorRequirement>>, more: &Option<Vec<NodeSelectorRequirement>>| {
        for one in more.iter().flatten() {
            let list = list.get_or_insert_default();
            if !list.contains(one) {
                list.push(one.clone());
            }
        }
    };
    for one in chosen {
        match &one.device.place {
            _ if one.device.binds_to_node => return Some(only(node)),
            Place::Node(_) => return Some(only(node)),
            Place::Nodes(selector) => {
                // The API lets these have one term only, so that they can be put together.
                for term in &selector.0.node_selector_terms {
                    add(&mut all.match_expressions, &term.match_expressions);
                    add(&mut all.match_fields, &term.match_fields);
                }
            }
            Place::Everywhere | Place::PerDevice => {}
        }
    }
    (all != NodeSelectorTerm::default()).then(|| NodeSelector { node_selector_terms: vec![all] })
}
