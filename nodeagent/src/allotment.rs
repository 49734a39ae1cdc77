//! What containers have alone: devices of plugins and processors. Given when the pod is taken in, given back with its end.
//!
//! Invariant: nothing is given twice. What is given is also in an annotation of the container, where an agent that starts
//! anew finds it before it gives anything.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use k8s_openapi::api::core::v1::{Container, Pod};
use keelson_proto::cri;

use crate::agent::Agent;
use crate::cpus::{CpuPolicy, CpuSet, Topology};
use crate::cri::{CONTAINER_NAME, POD_UID};
use crate::devices::{Ids, Plugins};
use crate::memories::Amounts;
use crate::placement::own_memory;
use crate::spec::pod::{self, Sort};
use crate::spec::resources::{Qos, amount, qos};
use crate::topology::Mask;

/// Annotation of containers: the devices that they have.
const DEVICES: &str = "keelson.dev/devices";
/// Annotation of containers: the processors that they have alone.
const CPUS: &str = "keelson.dev/cpus";

/// Annotation of containers: the bytes that they have of memories that were chosen for them.
const MEMORY: &str = "keelson.dev/memory";

/// Why a pod cannot have what it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is not enough.
    Short(String),
    /// There is enough, but not where the node's policy wants it.
    Topology,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Short(why) => out.write_str(why),
            Self::Topology => out.write_str("Resources cannot be allocated with Topology locality"),
        }
    }
}

/// What one container has alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// Devices of plugins.
    pub devices: Ids,
    /// Processors; empty if it shares.
    pub cpus: CpuSet,
    /// Bytes of memories that were chosen for it; empty if it may use all.
    pub memory: Amounts,
}

impl Given {
    fn is_empty(&self) -> bool {
        self.devices.is_empty() && self.cpus.0.is_empty() && self.memory.is_empty()
    }

    /// Notes it in the container's annotations.
    pub fn note(&self, annotations: &mut HashMap<String, String>) {
        if !self.devices.is_empty()
            && let Ok(text) = serde_json::to_string(&self.devices)
        {
            annotations.insert(DEVICES.into(), text);
        }
        if !self.cpus.0.is_empty() {
            annotations.insert(CPUS.into(), self.cpus.to_string());
        }
        if !self.memory.is_empty()
            && let Ok(text) = serde_json::to_string(&self.memory)
        {
            annotations.insert(MEMORY.into(), text);
        }
    }

    fn read(annotations: &HashMap<String, String>) -> Self {
        Self {
            devices: annotations.get(DEVICES).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default(),
            cpus: annotations.get(CPUS).and_then(|text| text.parse().ok()).unwrap_or_default(),
            memory: annotations.get(MEMORY).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default(),
        }
    }
}

/// What the containers of one pod have, by name.
type OfPod = BTreeMap<String, Given>;

/// What all pods have.
#[derive(Default)]
pub struct Allotments {
    /// Whether it is known what containers had before the agent started.
    restored: bool,
    given: HashMap<String, OfPod>,
    /// The pods that were taken in and have not ended.
    pub admitted: std::collections::HashSet<String>,
}

/// How many processors a container asks for alone.
pub fn whole_cpus(of: &Pod, container: &Container) -> usize {
    let wanted = container.resources.as_ref().and_then(|r| amount(r.limits.as_ref(), "cpu")).unwrap_or(0);
    if qos(of) == Qos::Guaranteed && wanted % 1000 == 0 { usize::try_from(wanted / 1000).unwrap_or(0) } else { 0 }
}

/// How many devices of each resource of plugins a container asks for.
pub fn wanted_devices(container: &Container, plugins: &Plugins) -> BTreeMap<String, usize> {
    let limits = container.resources.iter().flat_map(|r| r.limits.iter().flatten());
    let named = limits.filter(|(name, _)| plugins.offers(name));
    let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
    let count = |name: &String| usize::try_from(amount(limits, name).unwrap_or(0) / 1000).unwrap_or(0);
    named.map(|(name, _)| (name.clone(), count(name))).filter(|(_, count)| *count > 0).collect()
}

impl Allotments {
    /// The processors that nobody has alone.
    pub fn shared(&self, all: &CpuSet) -> CpuSet {
        let taken = self.given.values().flat_map(OfPod::values).flat_map(|g| g.cpus.0.iter().copied());
        all.without(&CpuSet(taken.collect()))
    }

    /// What containers have of memories that were chosen for them.
    pub fn memories(&self) -> Vec<&Amounts> {
        let all = self.given.values().flat_map(OfPod::values);
        all.map(|given| &given.memory).filter(|memory| !memory.is_empty()).collect()
    }

    /// The devices of a resource that containers have.
    pub fn taken(&self, resource: &str) -> BTreeSet<String> {
        let all = self.given.values().flat_map(OfPod::values);
        all.filter_map(|g| g.devices.get(resource)).flatten().cloned().collect()
    }

    /// What ended containers had that come before the others, for the next ones of the pod.
    fn reusable(&self, of: &Pod, before: &Container) -> Given {
        let mut left = Given::default();
        let Some(mine) = self.given.get(&pod::uid(of)) else { return left };
        for (sort, container) in pod::all(of) {
            if container.name == before.name {
                break;
            }
            let Some(given) = mine.get(&container.name) else { continue };
            if sort == Sort::Init {
                left.cpus.0.extend(&given.cpus.0);
                for (resource, ids) in &given.devices {
                    left.devices.entry(resource.clone()).or_default().extend(ids.iter().cloned());
                }
            } else {
                left.cpus = left.cpus.without(&given.cpus);
                for (resource, ids) in &given.devices {
                    left.devices.entry(resource.clone()).or_default().retain(|id| !ids.contains(id));
                }
            }
        }
        left
    }
}

impl Agent {
    /// The node's processors, if containers may have some alone, with those that they may have.
    pub(crate) fn exclusive(&self) -> Option<(&Topology, CpuSet)> {
        match &self.config.cpu_policy {
            CpuPolicy::None => None,
            CpuPolicy::Static(reserved) => Some((&self.topology, self.topology.all().without(reserved))),
        }
    }

    /// Finds what containers had before the agent started.
    pub(crate) async fn restore(&self, state: &mut Allotments) -> Result<(), tonic::Status> {
        if state.restored {
            return Ok(());
        }
        let containers = self.runtime.containers(HashMap::new()).await?;
        // Newest first, so what an earlier run had does not replace what the last one has.
        for container in containers {
            let label = |name: &str| container.labels.get(name).cloned();
            let (Some(uid), Some(name)) = (label(POD_UID), label(CONTAINER_NAME)) else { continue };
            let given = Given::read(&container.annotations);
            state.admitted.insert(uid.clone());
            if !given.is_empty() {
                state.given.entry(uid).or_default().entry(name).or_insert(given);
            }
        }
        state.restored = true;
        Ok(())
    }

    /// Gives all containers of a pod what they ask for, or nothing.
    pub(crate) async fn allot(&self, state: &mut Allotments, of: &Pod) -> Result<(), Refusal> {
        for (sort, container) in pod::all(of) {
            if let Err(why) = self.allot_one(state, of, (sort, container)).await {
                state.given.remove(&pod::uid(of));
                return Err(why);
            }
        }
        Ok(())
    }

    async fn allot_one(
        &self,
        state: &mut Allotments,
        of: &Pod,
        (sort, container): (Sort, &Container),
    ) -> Result<Given, Refusal> {
        let uid = pod::uid(of);
        if let Some(given) = state.given.get(&uid).and_then(|of| of.get(&container.name)) {
            return Ok(given.clone());
        }
        let again = state.reusable(of, container);
        let at = self.place(state, of, container, &again)?;
        let mut near = at.map(|mask| self.nodes.of(mask)).unwrap_or_default();
        let mut given =
            Given { devices: self.allot_devices(state, container, &again, &mut near).await?, ..Given::default() };
        given.cpus = self.allot_cpus(state, whole_cpus(of, container), &again, (at, &near))?;
        if !given.cpus.0.is_empty() {
            self.cpus_changed.notify_one();
        }
        given.memory = self.allot_memory(state, of, (sort, container), at)?;
        if !given.is_empty() {
            state.given.entry(uid).or_default().insert(container.name.clone(), given.clone());
        }
        Ok(given)
    }

    /// Devices for a container, first those that are near the memories of `near`; adds the memories that they are near.
    async fn allot_devices(
        &self,
        state: &Allotments,
        container: &Container,
        again: &Given,
        near: &mut BTreeSet<u32>,
    ) -> Result<Ids, Refusal> {
        let mut all = Ids::new();
        let wanted_near = near.clone();
        for (resource, count) in wanted_devices(container, &self.plugins) {
            let devices = self.plugins.devices(&resource);
            let taken = state.taken(&resource);
            let again: BTreeSet<String> = again.devices.get(&resource).cloned().unwrap_or_default();
            let free: BTreeSet<String> = (devices.iter())
                .filter(|(id, found)| found.healthy && (!taken.contains(*id) || again.contains(*id)))
                .map(|(id, _)| id.clone())
                .collect();
            if free.len() < count {
                return Err(Refusal::Short(format!(
                    "requested number of devices unavailable for {resource}. Requested: {count}, Available: {}",
                    free.len()
                )));
            }
            let is_near = |id: &&String| devices.get(*id).is_some_and(|d| !d.numa.is_disjoint(&wanted_near));
            let close: BTreeSet<String> = free.iter().filter(is_near).cloned().collect();
            // Plugins choose among those that are near, if these are enough.
            let free = if close.len() >= count { close.clone() } else { free };
            let must: BTreeSet<String> = again.iter().filter(|id| free.contains(*id)).take(count).cloned().collect();
            let liked = self.plugins.preferred(&resource, &free, &must, count).await;
            let in_order = must.iter().chain(close.iter().filter(|_| close.len() < count)).chain(&liked).chain(&free);
            let mut ids = BTreeSet::new();
            for id in in_order {
                if ids.len() < count {
                    ids.insert(id.clone());
                }
            }
            near.extend(ids.iter().filter_map(|id| devices.get(id)).flat_map(|d| d.numa.iter().copied()));
            all.insert(resource, ids);
        }
        Ok(all)
    }

    /// Processors for a container alone, if it asks for any.
    fn allot_cpus(
        &self,
        state: &Allotments,
        cpus: usize,
        again: &Given,
        (at, near): (Option<Mask>, &BTreeSet<u32>),
    ) -> Result<CpuSet, Refusal> {
        let Some((topology, usable)) = self.exclusive().filter(|_| cpus > 0) else { return Ok(CpuSet::default()) };
        let mut free = state.shared(&usable);
        free.0.extend(again.cpus.0.iter().filter(|cpu| usable.0.contains(cpu)));
        let taken = match at {
            Some(mask) => topology.take_at(cpus, &free, &self.nodes.of(mask)),
            None => topology.take(cpus, &free, near),
        };
        taken.ok_or_else(|| {
            let free = free.0.len();
            Refusal::Short(format!("not enough cpus available to satisfy request: requested={cpus}, available={free}"))
        })
    }

    /// Memories for a container, if any are chosen for it.
    fn allot_memory(
        &self,
        state: &Allotments,
        of: &Pod,
        (sort, container): (Sort, &Container),
        at: Option<Mask>,
    ) -> Result<Amounts, Refusal> {
        let bytes = own_memory(of, container);
        if bytes == 0 || !self.chooses_memory() {
            return Ok(Amounts::new());
        }
        let mut taken = self.memories(state).take(bytes, at).ok_or_else(|| {
            Refusal::Short(
                "failed to get the default NUMA affinity, no NUMA nodes with enough memory is available".into(),
            )
        })?;
        if sort == Sort::Init {
            // It has ended when the others come, which ask for as much as a rule.
            taken.values_mut().for_each(|bytes| *bytes = 0);
        }
        Ok(taken)
    }

    /// Adds to the configuration of a container what it has alone, or the processors that it shares.
    pub(crate) async fn equip(
        &self,
        of: &Pod,
        container: &Container,
        config: &mut cri::ContainerConfig,
    ) -> Result<(), String> {
        let given = {
            let mut state = self.allotments.lock().await;
            self.restore(&mut state).await.map_err(|e| e.message().to_owned())?;
            let sort = pod::find(of, &container.name).map_or(Sort::Main, |(sort, _)| sort);
            let given = self.allot_one(&mut state, of, (sort, container)).await.map_err(|why| why.to_string())?;
            if let Some(resources) = config.linux.as_mut().and_then(|l| l.resources.as_mut()) {
                resources.cpuset_mems = CpuSet(given.memory.keys().copied().collect()).to_string();
            }
            if let Some(resources) = config.linux.as_mut().and_then(|l| l.resources.as_mut())
                && self.exclusive().is_some()
            {
                if given.cpus.0.is_empty() {
                    resources.cpuset_cpus = state.shared(&self.topology.all()).to_string();
                } else {
                    resources.cpuset_cpus = given.cpus.to_string();
                    // Whole processors need no quota, which would only make the container wait.
                    resources.cpu_quota = -1;
                }
            }
            given
        };
        given.note(&mut config.annotations);
        let answers = self.plugins.allocate(&given.devices).await?;
        crate::devices::equip(config, answers);
        Ok(())
    }

    /// Takes back what a pod had that has ended.
    pub(crate) async fn take_back(&self, uid: &str) {
        let mut state = self.allotments.lock().await;
        state.admitted.remove(uid);
        let had = state.given.remove(uid);
        if had.is_some_and(|had| had.values().any(|g| !g.cpus.0.is_empty())) {
            self.cpus_changed.notify_one();
        }
    }

    /// Keeps containers that share processors off those that others have alone, for ever.
    pub(crate) async fn share_cpus(&self) {
        let Some((topology, _)) = self.exclusive() else { return std::future::pending().await };
        let all = topology.all();
        loop {
            tokio::select! {
                () = self.cpus_changed.notified() => {}
                () = tokio::time::sleep(crate::agent::RELIST) => {}
            }
            let shared = {
                let mut state = self.allotments.lock().await;
                if self.restore(&mut state).await.is_err() {
                    continue;
                }
                state.shared(&all).to_string()
            };
            if let Err(error) = self.share(&shared).await {
                tracing::warn!(error = error.message(), "containers may run on processors that others have alone");
            }
        }
    }

    async fn share(&self, shared: &str) -> Result<(), tonic::Status> {
        for container in self.runtime.containers(HashMap::new()).await? {
            let running = container.state() == cri::ContainerState::ContainerRunning;
            if !running || container.annotations.contains_key(CPUS) || !container.labels.contains_key(POD_UID) {
                continue;
            }
            let known = self.on_cpus.lock().get(&container.id).is_some_and(|on| on == shared);
            if known {
                continue;
            }
            let linux = cri::LinuxContainerResources { cpuset_cpus: shared.to_owned(), ..Default::default() };
            let ask = cri::UpdateContainerResourcesRequest { container_id: container.id.clone(), linux: Some(linux) };
            match self.runtime.pods.clone().update_container_resources(ask).await {
                Ok(_) => drop(self.on_cpus.lock().insert(container.id, shared.to_owned())),
                // It has ended meanwhile.
                Err(e) if e.code() == tonic::Code::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        let owners = self.owners.lock();
        self.on_cpus.lock().retain(|id, _| owners.contains_key(id));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of(containers: Value, init: Value) -> Pod {
        serde_json::from_value(
            json!({"metadata": {"uid": "u"}, "spec": {"containers": containers, "initContainers": init}}),
        )
        .unwrap()
    }

    fn given(cpus: &str, ids: &[&str]) -> Given {
        let ids: BTreeSet<String> = ids.iter().map(|id| (*id).to_owned()).collect();
        let devices = if ids.is_empty() { Ids::new() } else { [("x/y".to_owned(), ids)].into() };
        Given { devices, cpus: cpus.parse().unwrap(), memory: Amounts::new() }
    }

    #[test]
    fn an_annotation_remembers() {
        let memory = Given { memory: Amounts::from([(0, 0), (1, 1 << 40)]), ..Given::default() };
        for what in [given("1-2", &["a", "b"]), given("", &["a"]), given("3", &[]), Given::default(), memory] {
            let mut annotations = HashMap::new();
            what.note(&mut annotations);
            assert_eq!(Given::read(&annotations), what);
        }
        assert_eq!(Given::read(&[(DEVICES.to_owned(), "no json".to_owned())].into()), Given::default());
    }

    #[test]
    fn who_gets_processors_alone() {
        let sized = |cpu: &str| json!([{"name": "c", "resources": {"limits": {"cpu": cpu, "memory": "1Mi"}}}]);
        for (containers, wanted) in [
            (sized("2"), 2),
            (sized("1500m"), 0),
            (json!([{"name": "c", "resources": {"limits": {"cpu": "2"}}}]), 0),
            (json!([{"name": "c"}]), 0),
        ] {
            let of = of(containers.clone(), json!([]));
            assert_eq!(whole_cpus(&of, &pod::containers(&of)[0]), wanted, "{containers}");
        }
    }

    #[test]
    fn what_init_containers_had_is_used_again() {
        let of =
            of(json!([{"name": "m"}, {"name": "n"}]), json!([{"name": "i"}, {"name": "s", "restartPolicy": "Always"}]));
        let mut state = Allotments::default();
        let mine = state.given.entry("u".into()).or_default();
        mine.insert("i".into(), given("1-2", &["a", "b"]));
        let container = |name: &str| pod::find(&of, name).unwrap().1;
        assert_eq!(state.reusable(&of, container("s")), given("1-2", &["a", "b"]));
        // A sidecar goes on with what it took of it.
        state.given.get_mut("u").unwrap().insert("s".into(), given("1", &["a"]));
        assert_eq!(state.reusable(&of, container("m")), given("2", &["b"]));
        state.given.get_mut("u").unwrap().insert("m".into(), given("2", &["b"]));
        let left = state.reusable(&of, container("n"));
        assert!(left.cpus.0.is_empty() && left.devices.values().all(BTreeSet::is_empty));
        assert_eq!(state.shared(&"0-3".parse().unwrap()).to_string(), "0,3");
        assert_eq!(state.taken("x/y").len(), 2);
    }
}
