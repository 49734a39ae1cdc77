//! A node as the API sees it: its object, its status and the Lease that says it lives. Real and hollow nodes share this.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ContainerImage, Node, NodeCondition, NodeFeatures, NodeStatus, NodeSwapStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use keelson_client::{Client, Error};
use serde_json::json;

use crate::cri::Features;
use crate::pressure::Pressure;
use crate::spec::pages;
use crate::spec::resources::millis;

/// Attempts to write a status that others write beside.
const UPDATE_ATTEMPTS: usize = 5;

/// Annotation of nodes whose agent serves names: where.
pub const NAME_SERVER: &str = "keelson.dev/name-server";
/// The namespace of all node leases.
pub const LEASE_NAMESPACE: &str = "kube-node-lease";
/// How often a node renews its lease.
pub const LEASE_RENEWAL: Duration = Duration::from_secs(10);
/// How long a lease holds unless the cluster asks for less.
const LEASE_SECONDS: i32 = 40;
/// A status that did not change is written anew after this time.
const STATUS_REFRESH: i64 = 300;
/// The version of Kubernetes whose kubelet this agent stands for.
pub const KUBELET_VERSION: &str = concat!("v1.36.2+keelson", env!("CARGO_PKG_VERSION"));

/// Amounts of resources.
type Quantities = BTreeMap<String, Quantity>;

/// How a node fares.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Why it cannot run pods yet.
    pub not_ready: Option<String>,
    /// What it is short of.
    pub pressure: Pressure,
    /// The images that it has.
    pub images: Vec<ContainerImage>,
    /// Volumes that must stay attached.
    pub volumes_in_use: Vec<String>,
    /// Resources of device plugins: all, and those that can be given.
    pub devices: BTreeMap<String, (usize, usize)>,
    /// Processors that pods do not get.
    pub reserved_cpus: usize,
    /// Bytes of memory that pods do not get.
    pub reserved_memory: u64,
    /// What the runtime can do beyond what all can.
    pub features: Arc<Features>,
}

/// What the node has, and what of it pods may have. Resources that others told of in the node's status stay.
pub fn resources(machine: &Machine, previous: &NodeStatus, state: &State) -> (Quantities, Quantities) {
    let text = |(name, value): (&str, &str)| (name.to_owned(), Quantity(value.to_owned()));
    let own = [("cpu", machine.cpu.as_str()), ("memory", &machine.memory), ("ephemeral-storage", &machine.storage)];
    let rest = [("hugepages-1Gi", "0"), ("hugepages-2Mi", "0"), ("pods", "110")];
    let mut capacity: Quantities = own.into_iter().chain(rest).map(text).collect();
    let huge = machine.huge_pages.iter().map(|(size, bytes)| pages::resource(*size, *bytes));
    capacity.extend(huge.map(|(name, amount)| (name, Quantity(amount))));
    let extended =
        |name: &str| name.contains('/') && !name.contains("kubernetes.io/") && !state.devices.contains_key(name);
    let foreign = previous.capacity.iter().flatten().filter(|(name, _)| extended(name));
    capacity.extend(foreign.map(|(name, amount)| (name.clone(), amount.clone())));
    let mut allocatable = capacity.clone();
    for (name, (all, healthy)) in &state.devices {
        capacity.insert(name.clone(), Quantity(all.to_string()));
        allocatable.insert(name.clone(), Quantity(healthy.to_string()));
    }
    if let Some(cpus) = machine.cpu.parse::<usize>().ok().filter(|_| state.reserved_cpus > 0) {
        allocatable.insert("cpu".into(), Quantity(cpus.saturating_sub(state.reserved_cpus).to_string()));
    }
    let memory = millis(&machine.memory).and_then(|m| u64::try_from(m / 1000).ok());
    // Huge pages are memory that nothing else gets.
    let huge: i64 = machine.huge_pages.values().sum();
    let reserved = state.reserved_memory + u64::try_from(huge).unwrap_or(0);
    if let Some(bytes) = memory.filter(|_| reserved > 0) {
        let kib = bytes.saturating_sub(reserved) / 1024;
        allocatable.insert("memory".into(), Quantity(format!("{kib}Ki")));
    }
    (capacity, allocatable)
}

/// What a node knows about its machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Address of the node that others reach.
    pub ip: String,
    /// Its address of the other family, if it has one.
    pub other_ip: Option<String>,
    /// Port of the agent's server.
    pub port: i32,
    /// CPUs, as a quantity.
    pub cpu: String,
    /// Memory, as a quantity.
    pub memory: String,
    /// Disk space for pods, as a quantity.
    pub storage: String,
    /// Name and version of the runtime (`containerd://1.6.20`).
    pub runtime: String,
    /// `uname -r`.
    pub kernel: String,
    /// Name of the operating system's image.
    pub os_image: String,
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// Identity of this boot.
    pub boot_id: String,
    /// Labels beyond the usual ones.
    pub labels: BTreeMap<String, String>,
    /// Bytes of huge pages, by their size.
    pub huge_pages: BTreeMap<i64, i64>,
    /// Bytes that can be swapped out.
    pub swap: i64,
}

/// Kubernetes' name of the processor architecture.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn now() -> Time {
    Time(Timestamp::from_second(Timestamp::now().as_second()).unwrap_or(Timestamp::UNIX_EPOCH))
}

/// The labels that every node bears.
pub fn labels(name: &str, machine: &Machine) -> BTreeMap<String, String> {
    let mut labels = machine.labels.clone();
    for (key, value) in [
        ("kubernetes.io/hostname", name),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture()),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", architecture()),
    ] {
        labels.insert(key.into(), value.into());
    }
    labels
}

/// The conditions.
fn conditions(previous: &[NodeCondition], state: &State) -> Vec<NodeCondition> {
    let ready = match state.not_ready.as_deref() {
        None => ("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
        Some(why) => ("Ready", "False", "KubeletNotReady", why),
    };
    let memory = if state.pressure.memory {
        ("MemoryPressure", "True", "KubeletHasInsufficientMemory", "kubelet has insufficient memory available")
    } else {
        ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available")
    };
    let disk = if state.pressure.disk {
        ("DiskPressure", "True", "KubeletHasDiskPressure", "kubelet has disk pressure")
    } else {
        ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure")
    };
    let pids = if state.pressure.pids {
        ("PIDPressure", "True", "KubeletHasInsufficientPID", "kubelet has insufficient PID available")
    } else {
        ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available")
    };
    let wanted = [memory, disk, pids, ready];
    let mut conditions: Vec<NodeCondition> =
        previous.iter().filter(|c| wanted.iter().all(|w| w.0 != c.type_)).cloned().collect();
    for (kind, status, reason, message) in wanted {
        let old = previous.iter().find(|c| c.type_ == kind && c.status == status);
        conditions.push(NodeCondition {
            type_: kind.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message.into()),
            last_heartbeat_time: Some(now()),
            last_transition_time: old.and_then(|c| c.last_transition_time.clone()).or_else(|| Some(now())),
        });
    }
    conditions
}

/// The status of node `name` after `previous`.
pub fn status(
    name: &str,
    machine: &Machine,
    previous: &NodeStatus,
    state: &State,
) -> Result<NodeStatus, serde_json::Error> {
    let (capacity, allocatable) = resources(machine, previous, state);
    let ips = std::iter::once(&machine.ip).chain(&machine.other_ip);
    let mut addresses: Vec<_> = ips.map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
    addresses.push(json!({"type": "Hostname", "address": name}));
    let mut status: NodeStatus = serde_json::from_value(json!({
        "capacity": capacity,
        "allocatable": allocatable,
        "addresses": addresses,
        "daemonEndpoints": {"kubeletEndpoint": {"Port": machine.port}},
        "nodeInfo": {
            "architecture": architecture(), "operatingSystem": "linux", "bootID": machine.boot_id,
            "containerRuntimeVersion": machine.runtime, "kernelVersion": machine.kernel, "kubeProxyVersion": "",
            "kubeletVersion": KUBELET_VERSION, "machineID": machine.machine_id, "osImage": machine.os_image,
            "systemUUID": machine.machine_id,
        },
    }))?;
    status.conditions = Some(conditions(previous.conditions.as_deref().unwrap_or_default(), state));
    status.images = if state.images.is_empty() { previous.images.clone() } else { Some(state.images.clone()) };
    status.runtime_handlers = (!state.features.handlers.is_empty()).then(|| state.features.handlers.clone());
    let policy = state.features.groups_policy;
    status.features = policy.then_some(NodeFeatures { supplemental_groups_policy: Some(true) });
    if let Some(info) = status.node_info.as_mut().filter(|_| machine.swap > 0) {
        info.swap = Some(NodeSwapStatus { capacity: Some(machine.swap) });
    }
    status.volumes_attached = previous.volumes_attached.clone();
    status.volumes_in_use = (!state.volumes_in_use.is_empty()).then(|| state.volumes_in_use.clone());
    Ok(status)
}

/// Whether two statuses say the same, but for heartbeats.
fn same(a: &NodeStatus, b: &NodeStatus) -> bool {
    let still = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        status
    };
    still(a) == still(b)
}

/// Whether the last heartbeat in the status is old.
fn stale(status: &NodeStatus) -> bool {
    let beat = |c: &NodeCondition| c.last_heartbeat_time.as_ref().map(|t| t.0.as_second());
    let last = status.conditions.iter().flatten().filter(|c| c.type_ == "Ready").filter_map(beat).max();
    last.is_none_or(|last| Timestamp::now().as_second() - last >= STATUS_REFRESH)
}

/// Makes sure that the node exists and its labels and status are right; returns the node.
pub async fn register(client: &Client, name: &str, machine: &Machine, state: &State) -> Result<Node, Error> {
    let api = client.cluster::<Node>();
    let node = match api.get_opt(name).await? {
        Some(node) => node,
        None => {
            let node: Node = serde_json::from_value(json!({
                "metadata": {"name": name, "labels": labels(name, machine),
                    "annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true"}},
            }))?;
            match api.create(&node).await {
                Ok(node) => node,
                Err(e) if e.is_already_exists() => api.get(name).await?,
                Err(e) => return Err(e),
            }
        }
    };
    let node = relabel(client, name, machine, node).await?;
    update(client, name, machine, state, node).await
}

async fn relabel(client: &Client, name: &str, machine: &Machine, mut node: Node) -> Result<Node, Error> {
    let present = node.metadata.labels.get_or_insert_default();
    let wanted = labels(name, machine);
    if wanted.iter().all(|(k, v)| present.get(k) == Some(v)) {
        return Ok(node);
    }
    present.extend(wanted);
    client.cluster::<Node>().replace(name, &node).await
}

/// Writes the node's status if it changed or is stale.
pub async fn update(
    client: &Client,
    name: &str,
    machine: &Machine,
    state: &State,
    mut node: Node,
) -> Result<Node, Error> {
    let nodes = client.cluster::<Node>();
    for _ in 1..UPDATE_ATTEMPTS {
        let previous = node.status.clone().unwrap_or_default();
        let wanted = status(name, machine, &previous, state)?;
        if same(&previous, &wanted) && !stale(&previous) {
            return Ok(node);
        }
        node.status = Some(wanted);
        match nodes.replace_status(name, &node).await {
            // Controllers write taints and address ranges meanwhile.
            Err(error) if error.is_conflict() => node = nodes.get(name).await?,
            result => return result,
        }
    }
    nodes.replace_status(name, &node).await
}

/// Keeps a node's lease. The cluster may ask for quicker renewals by shortening the lease, which its node then keeps so.
#[derive(Default)]
pub struct LeaseKeeper {
    /// As it was written last: that spares a read before each renewal.
    known: Option<Lease>,
}

impl LeaseKeeper {
    /// Renews the lease, or makes it; returns when to renew it again.
    pub async fn renew(&mut self, client: &Client, name: &str, node_uid: &str) -> Result<Duration, Error> {
        let api = client.namespaced::<Lease>(LEASE_NAMESPACE);
        if let Some(lease) = self.known.take() {
            match api.replace(name, &renewed(name, lease)).await {
                Ok(written) => return Ok(self.keep(written)),
                // Somebody changed it, or it is gone.
                Err(error) if error.is_conflict() || error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        let written = match api.get_opt(name).await? {
            Some(lease) => api.replace(name, &renewed(name, lease)).await?,
            None => {
                let lease: Lease = serde_json::from_value(json!({
                    "metadata": {"name": name, "namespace": LEASE_NAMESPACE, "ownerReferences": [
                        {"apiVersion": "v1", "kind": "Node", "name": name, "uid": node_uid}]},
                }))?;
                api.create(&renewed(name, lease)).await?
            }
        };
        Ok(self.keep(written))
    }

    fn keep(&mut self, written: Lease) -> Duration {
        let seconds = written.spec.as_ref().and_then(|s| s.lease_duration_seconds);
        self.known = Some(written);
        renewal_of(seconds.unwrap_or(LEASE_SECONDS))
    }
}

/// How often a lease is renewed that holds for so long.
fn renewal_of(seconds: i32) -> Duration {
    LEASE_RENEWAL * u32::try_from(seconds.clamp(1, LEASE_SECONDS)).unwrap_or(1) / LEASE_SECONDS as u32
}

fn renewed(name: &str, mut lease: Lease) -> Lease {
    let spec = lease.spec.get_or_insert_default();
    spec.holder_identity = Some(name.into());
    spec.lease_duration_seconds =
        spec.lease_duration_seconds.filter(|seconds| (1..=LEASE_SECONDS).contains(seconds)).or(Some(LEASE_SECONDS));
    spec.renew_time = Some(MicroTime(Timestamp::now()));
    // A write without them keeps those that are stored.
    lease.metadata.managed_fields = None;
    lease
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine {
            ip: "10.0.0.1".into(),
            other_ip: None,
            port: 10250,
            cpu: "4".into(),
            memory: "8Gi".into(),
            storage: "10Gi".into(),
            runtime: "containerd://1.6.20".into(),
            kernel: "6.1".into(),
            os_image: "Debian".into(),
            machine_id: "m".into(),
            boot_id: "b".into(),
            labels: BTreeMap::new(),
            huge_pages: BTreeMap::new(),
            swap: 0,
        }
    }

    fn unready() -> State {
        State { not_ready: Some("no network".into()), ..State::default() }
    }

    #[test]
    fn a_lease_is_renewed_four_times_while_it_holds() {
        for (stored, kept, pause_ms) in [
            (None, 40, 10_000),
            (Some(40), 40, 10_000),
            (Some(3), 3, 750),
            (Some(900), 40, 10_000),
            (Some(0), 40, 10_000),
        ] {
            let mut lease = Lease::default();
            lease.spec.get_or_insert_default().lease_duration_seconds = stored;
            let spec = renewed("n", lease).spec.unwrap();
            assert_eq!((spec.lease_duration_seconds, spec.holder_identity.as_deref()), (Some(kept), Some("n")));
            assert_eq!(renewal_of(kept), Duration::from_millis(pause_ms), "{stored:?}");
        }
    }

    #[test]
    fn a_status_keeps_its_transition_times_and_knows_its_age() {
        let mut first = status("n", &machine(), &NodeStatus::default(), &unready()).unwrap();
        assert!(!stale(&first));
        let old = Time(Timestamp::from_second(1).unwrap());
        for condition in first.conditions.iter_mut().flatten() {
            condition.last_transition_time = Some(old.clone());
            condition.last_heartbeat_time = Some(old.clone());
        }
        assert!(stale(&first));
        let again = status("n", &machine(), &first, &unready()).unwrap();
        assert!(same(&first, &again));
        let ready = status("n", &machine(), &first, &State::default()).unwrap();
        assert!(!same(&first, &ready));
        for condition in ready.conditions.iter().flatten() {
            assert_eq!(condition.last_transition_time == Some(old.clone()), condition.type_ != "Ready");
        }
    }

    #[test]
    fn what_others_tell_of_stays_and_plugins_are_counted() {
        let map = |list: &[(&str, &str)]| -> Quantities {
            list.iter().map(|(k, v)| ((*k).to_owned(), Quantity((*v).to_owned()))).collect()
        };
        let previous = NodeStatus {
            capacity: Some(map(&[("cpu", "1"), ("example.com/by-hand", "5"), ("example.com/plugged", "9")])),
            ..NodeStatus::default()
        };
        let devices = [("example.com/plugged".to_owned(), (3, 2))].into();
        let state = State { devices, reserved_cpus: 1, ..State::default() };
        let (capacity, allocatable) = resources(&machine(), &previous, &state);
        for (name, all, given) in [
            ("cpu", "4", "3"),
            ("example.com/by-hand", "5", "5"),
            ("example.com/plugged", "3", "2"),
            ("pods", "110", "110"),
        ] {
            assert_eq!((capacity[name].0.as_str(), allocatable[name].0.as_str()), (all, given), "{name}");
        }
    }

    #[test]
    fn foreign_conditions_stay() {
        let foreign =
            NodeCondition { type_: "NetworkUnavailable".into(), status: "False".into(), ..Default::default() };
        let previous = NodeStatus { conditions: Some(vec![foreign]), ..Default::default() };
        let status = status("n", &machine(), &previous, &State::default()).unwrap();
        assert_eq!(status.conditions.unwrap().len(), 5);
    }
}
