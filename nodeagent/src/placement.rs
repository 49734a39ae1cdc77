//! Who asks for what near which memory: from a pod's containers to the hints that are joined when it is taken in.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::agent::Agent;
use crate::allotment::{Allotments, Given, Refusal, wanted_devices, whole_cpus};
use crate::cpus::CpuSet;
use crate::memories::{self, Amounts, Memories, MemoryPolicy};
use crate::spec::pod;
use crate::spec::resources::{Qos, amount, qos};
use crate::topology::{self, Hints, MAX_NODES, Mask, TopologyPolicy, TopologyScope};

/// How containers are placed on a machine with several memories.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// How hints are joined.
    pub policy: TopologyPolicy,
    /// What they are joined for.
    pub scope: TopologyScope,
    /// Who may use which memory.
    pub memory: MemoryPolicy,
}

/// The machine's memories.
#[derive(Clone, Debug, Default)]
pub struct Nodes {
    /// Their numbers, in the order of masks.
    pub numbers: Vec<u32>,
    /// What pods may have of each.
    pub usable: Amounts,
}

impl Nodes {
    /// What the machine has, less what is kept for the system.
    pub fn read(near_cpus: &BTreeSet<u32>, placement: &Placement) -> Self {
        let mut usable = memories::read();
        let numbers = near_cpus.iter().chain(usable.keys()).copied().collect::<BTreeSet<_>>();
        if let MemoryPolicy::Static(reserved) = &placement.memory {
            for (node, bytes) in reserved {
                usable.entry(*node).and_modify(|all| *all = all.saturating_sub(*bytes));
            }
        }
        Self { numbers: numbers.into_iter().collect(), usable }
    }

    /// The numbers of a set of memories.
    pub fn of(&self, mask: Mask) -> BTreeSet<u32> {
        self.numbers.iter().enumerate().filter(|(at, _)| mask.has(*at)).map(|(_, number)| *number).collect()
    }
}

/// What a container asks for that is somewhere on the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Devices by resource.
    pub devices: BTreeMap<String, usize>,
    /// Processors alone.
    pub cpus: usize,
    /// Bytes of memory of its own.
    pub memory: u64,
}

impl Demand {
    fn add(&mut self, other: &Self) {
        other.devices.iter().for_each(|(name, count)| *self.devices.entry(name.clone()).or_default() += count);
        self.cpus += other.cpus;
        self.memory += other.memory;
    }

    fn at_least(&mut self, other: &Self) {
        for (name, count) in &other.devices {
            let own = self.devices.entry(name.clone()).or_default();
            *own = (*own).max(*count);
        }
        self.cpus = self.cpus.max(other.cpus);
        self.memory = self.memory.max(other.memory);
    }
}

/// Bytes that a container gets from memories chosen for it.
pub fn own_memory(of: &Pod, container: &Container) -> u64 {
    let limit = container.resources.as_ref().and_then(|r| amount(r.limits.as_ref(), "memory")).unwrap_or(0);
    if qos(of) == Qos::Guaranteed { u64::try_from(limit / 1000).unwrap_or(0) } else { 0 }
}

/// What all containers ask for at one time, from what each does.
fn together(of: &Pod, one: impl Fn(&Container) -> Demand) -> Demand {
    let (mut sidecars, mut peak) = (Demand::default(), Demand::default());
    for init in pod::init_containers(of) {
        let mut now = sidecars.clone();
        now.add(&one(init));
        peak.at_least(&now);
        if pod::is_sidecar(init) {
            sidecars = now;
        }
    }
    pod::containers(of).iter().for_each(|c| sidecars.add(&one(c)));
    peak.at_least(&sidecars);
    peak
}

impl Agent {
    /// What a container asks for.
    fn demand(&self, of: &Pod, container: &Container) -> Demand {
        let exclusive = self.exclusive().is_some();
        Demand {
            devices: wanted_devices(container, &self.plugins),
            cpus: if exclusive { whole_cpus(of, container) } else { 0 },
            memory: if self.chooses_memory() { own_memory(of, container) } else { 0 },
        }
    }

    /// Whether memories are chosen for containers.
    pub(crate) fn chooses_memory(&self) -> bool {
        self.config.placement.memory != MemoryPolicy::None
    }

    /// The machine's memories with what containers have of them.
    pub(crate) fn memories<'a>(&'a self, state: &'a Allotments) -> Memories<'a> {
        Memories { nodes: &self.nodes.numbers, usable: &self.nodes.usable, given: state.memories() }
    }

    fn hints(&self, state: &Allotments, demand: &Demand, again: &Given) -> Vec<Hints> {
        let count = self.nodes.numbers.len().min(MAX_NODES);
        let mut all = Vec::new();
        for (resource, wanted) in &demand.devices {
            let devices = self.plugins.devices(resource);
            if devices.values().all(|device| device.numa.is_empty()) {
                all.push(None);
                continue;
            }
            let (taken, mine) = (state.taken(resource), again.devices.get(resource));
            let among = |mask: Mask, counts: &dyn Fn(&String) -> bool| {
                let near = self.nodes.of(mask);
                let here = devices.iter().filter(|(id, d)| d.healthy && counts(id) && !d.numa.is_disjoint(&near));
                here.count() as u64
            };
            let free = |id: &String| !taken.contains(id) || mine.is_some_and(|mine| mine.contains(id));
            let hints = topology::hints(count, *wanted as u64, |m| among(m, &|_| true), |m| among(m, &free));
            all.push(Some(hints));
        }
        if let Some((topology, usable)) = self.exclusive().filter(|_| demand.cpus > 0) {
            let mut free = state.shared(&usable);
            free.0.extend(again.cpus.0.iter().filter(|cpu| usable.0.contains(cpu)));
            let at = |set: &CpuSet, mask: Mask| topology.at(set, &self.nodes.of(mask)).0.len() as u64;
            let every = topology.all();
            let hints = topology::hints(count, demand.cpus as u64, |m| at(&every, m), |m| at(&free, m));
            all.push(Some(hints));
        }
        if demand.memory > 0 {
            all.push(Some(self.memories(state).hints(demand.memory)));
        }
        all
    }

    /// Where a container is to be, as the policy wants; `None` if it does not matter.
    pub(crate) fn place(
        &self,
        state: &Allotments,
        of: &Pod,
        container: &Container,
        again: &Given,
    ) -> Result<Option<Mask>, Refusal> {
        let policy = self.config.placement.policy;
        if policy == TopologyPolicy::None {
            return Ok(None);
        }
        let demand = match self.config.placement.scope {
            TopologyScope::Container => self.demand(of, container),
            TopologyScope::Pod => together(of, |c| self.demand(of, c)),
        };
        self.join(policy, &self.hints(state, &demand, again))
    }

    fn join(&self, policy: TopologyPolicy, hints: &[Hints]) -> Result<Option<Mask>, Refusal> {
        let count = self.nodes.numbers.len().min(MAX_NODES);
        let joined = topology::join(policy, count, hints).ok_or(Refusal::Topology)?;
        Ok(joined.nodes.filter(|mask| *mask != Mask::all(count)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn containers_ask_together() {
        let of: Pod = serde_json::from_value(json!({"spec": {
            "initContainers": [{"name": "5"}, {"name": "1", "restartPolicy": "Always"}, {"name": "3"}],
            "containers": [{"name": "1"}, {"name": "2"}]}}))
        .unwrap();
        let one = |c: &Container| {
            let number: usize = c.name.parse().unwrap();
            Demand { devices: [("d".to_owned(), number)].into(), cpus: number, memory: 10 * number as u64 }
        };
        let wanted = Demand { devices: [("d".to_owned(), 5)].into(), cpus: 5, memory: 50 };
        assert_eq!(together(&of, one), wanted);
        let two = |c: &Container| Demand { cpus: usize::from(c.name != "5"), ..Demand::default() };
        assert_eq!(together(&of, two).cpus, 3);
    }

    #[test]
    fn only_guaranteed_pods_get_memory_of_their_own() {
        let of = |resources| -> Pod {
            serde_json::from_value(json!({"spec": {"containers": [{"name": "c", "resources": resources}]}})).unwrap()
        };
        for (resources, bytes) in [
            (json!({"limits": {"cpu": "1", "memory": "1Ki"}}), 1024),
            (json!({"limits": {"memory": "1Ki"}}), 0),
            (json!({}), 0),
        ] {
            let of = of(resources.clone());
            assert_eq!(own_memory(&of, &pod::containers(&of)[0]), bytes, "{resources}");
        }
    }

    #[test]
    fn what_is_kept_for_the_system_is_not_given() {
        let all = memories::read();
        let placement = Placement { memory: MemoryPolicy::Static([(0, 1 << 20)].into()), ..Placement::default() };
        let nodes = Nodes::read(&[0].into(), &placement);
        assert_eq!(nodes.numbers.first(), Some(&0));
        if let Some(bytes) = all.get(&0) {
            assert_eq!(nodes.usable[&0], bytes - (1 << 20));
        }
        assert_eq!(nodes.of(Mask::all(1)), [0].into());
    }
}
