//! The agent of a real node: keeps the node registered and takes every pod, step by step, to where it should be.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerImage, Node, Pod, PodStatus, Service};
use k8s_openapi::api::node::v1::RuntimeClass;
use keelson_client::{Cache, Client, Error};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::allotment::Allotments;
use crate::claims::Claims;
use crate::cni::PodNetwork;
use crate::cpus::{CpuPolicy, Topology};
use crate::cri::{Features, Runtime, mounts_images, takes_devices};
use crate::csi::Drivers;
use crate::devices::Plugins;
use crate::events::Recorder;
use crate::join::{self, Credentials, JoinError};
use crate::manifests::{self, Manifests};
use crate::memories::MemoryPolicy;
use crate::network::endpoints::Endpoints;
use crate::network::proxy::ProxyMode;
use crate::node::{self, LEASE_RENEWAL, Machine};
use crate::objects::Objects;
use crate::placement::{Nodes, Placement};
use crate::pods::Pods;
use crate::pressure::{Pressure, Thresholds};
use crate::probe_counts::ProbeCounts;
use crate::renewal::{Renewal, Renewed};
use crate::resize::Amounts;
use crate::shutdown::Shutdown;
use crate::spec::SpecError;
use crate::spec::fields::Facts;
use crate::spec::pages;
use crate::spec::resources::millis;
use crate::stats::{Rates, Starts};
use crate::topology::{MAX_NODES, TopologyPolicy};
use crate::{claims, cni, csi, devices, machine, pressure, runtime_events, strays};

/// How often all that runs is looked at, beside the runtime's events.
pub(crate) const RELIST: Duration = Duration::from_secs(10);
/// The same while the runtime tells nothing.
const RELIST_BLIND: Duration = Duration::from_secs(1);
/// How often it is looked which objects nobody refers to any more.
const FORGET: Duration = Duration::from_secs(300);
/// Starts of containers and sandboxes at once, for each CPU and beside.
const STARTS_PER_CPU: usize = 2;
const MIN_STARTS: usize = 2;
/// Images in the node's status, and names of one.
const MAX_IMAGES: usize = 50;
const MAX_IMAGE_NAMES: usize = 5;
/// Pause after a failed list or watch.
const RETRY: Duration = Duration::from_secs(1);
/// Half the pause before a node that is not ready yet looks again; it doubles until it is as long as for others.
const BEAT_AGAIN: Duration = Duration::from_millis(100);

/// How to run an agent.
#[derive(Clone)]
pub struct AgentConfig {
    /// The node's name.
    pub node_name: String,
    /// The API, as this node.
    pub client: Client,
    /// The runtime's socket.
    pub runtime_socket: PathBuf,
    /// Where pods' volumes are kept.
    pub data_dir: PathBuf,
    /// Where logs of containers go (kubelets use `/var/log/pods`).
    pub log_dir: PathBuf,
    /// The directory that the runtime reads network configurations from.
    pub cni_conf_dir: PathBuf,
    /// The node's address.
    pub node_ip: IpAddr,
    /// Its address of the other family, if it has one.
    pub other_node_ip: Option<IpAddr>,
    /// Port of the agent's server.
    pub port: u16,
    /// With these a certificate for the agent's server is asked for; without them there is no server.
    pub credentials: Option<Credentials>,
    /// Is told when the node calls the servers with another certificate.
    pub renewed: Option<Renewed>,
    /// Network of all pods.
    pub cluster_cidr: String,
    /// The resolver configuration that pods inherit.
    pub resolv_conf: PathBuf,
    /// The cluster's name server, if there is one.
    pub cluster_dns: Option<IpAddr>,
    /// Whether the agent is that name server on its node.
    pub serve_dns: bool,
    /// The cluster's domain.
    pub cluster_domain: String,
    /// Whether the agent serves Services on this node.
    pub proxy: bool,
    /// And how.
    pub proxy_mode: ProxyMode,
    /// Where descriptions of devices are (CDI); what a later directory says counts.
    pub cdi_dirs: Vec<PathBuf>,
    /// When pods are ended to save the node.
    pub eviction: Thresholds,
    /// Who may use which processors.
    pub cpu_policy: CpuPolicy,
    /// Where containers are on a machine with several memories.
    pub placement: Placement,
    /// Whether containers may be swapped out.
    pub swap: pages::SwapBehavior,
    /// Sysctls that pods may set beyond the safe ones; a `*` at the end stands for anything.
    pub allowed_sysctls: Vec<String>,
    /// Where static pods come from.
    pub manifests: Manifests,
    /// Who makes the pods' network.
    pub pod_network: PodNetwork,
    /// How pods are ended with the machine, if they are.
    pub shutdown: Option<Shutdown>,
}

/// Why an agent could not start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The runtime's socket cannot be used.
    #[error("container runtime: {0}")]
    Runtime(#[from] tonic::transport::Error),
    /// A directory cannot be made.
    #[error("data directory: {0}")]
    File(#[from] std::io::Error),
    /// The machine is larger than what hints are joined for.
    #[error(
        "--topology-manager-policy is for machines with up to {MAX_NODES} NUMA nodes, and this one has {0}: use none"
    )]
    Nodes(usize),
    /// The agent's server cannot listen.
    #[error("cannot listen on {0}: {1}; stop what uses it, or choose another with --port")]
    Listen(std::net::SocketAddr, std::io::Error),
}

/// A node's agent.
pub struct Agent {
    pub(crate) config: AgentConfig,
    pub(crate) runtime: Runtime,
    machine: Machine,
    pub(crate) pods: Pods,
    /// Takes events for people.
    pub(crate) events: Recorder,
    /// The config maps and secrets that pods refer to.
    pub(crate) objects: Arc<Objects>,
    /// Grows with every change of them.
    pub(crate) objects_version: AtomicU64,
    objects_changed: Arc<Notify>,
    /// All Services.
    pub(crate) services: Arc<Cache<Service>>,
    /// Told when any of them changed.
    pub(crate) services_changed: Arc<Notify>,
    /// The Services' endpoints.
    pub(crate) endpoints: Endpoints,
    /// The node, as the API last said.
    pub(crate) seen_node: Mutex<Option<Arc<Node>>>,
    /// Plugins that offer devices.
    pub(crate) plugins: Plugins,
    /// The machine's processors.
    pub(crate) topology: Topology,
    /// The machine's memories.
    pub(crate) nodes: Nodes,
    /// What containers have alone.
    pub(crate) allotments: tokio::sync::Mutex<Allotments>,
    /// Told when processors were given to a container alone, or taken back.
    pub(crate) cpus_changed: Notify,
    /// The processors that containers without own ones were told to run on, by their ids.
    pub(crate) on_cpus: Mutex<HashMap<String, String>>,
    /// The address of this node in its own range of pod addresses.
    pub(crate) gateway: Mutex<Option<IpAddr>>,
    /// Told when the node's network is there.
    pub(crate) networked: Notify,
    /// Counts of processor time.
    pub(crate) rates: Rates,
    /// What the node is short of.
    pub(crate) pressure: Mutex<Pressure>,
    /// Asks for a report of the node before its time.
    pub(crate) report_now: Arc<Notify>,
    /// Whether the runtime tells by itself what happens.
    pub(crate) evented: AtomicBool,
    /// How long pods took to start.
    pub(crate) starts: Starts,
    /// What probes found.
    pub(crate) probe_counts: Arc<ProbeCounts>,
    /// Storage drivers.
    pub(crate) csi: Arc<Drivers>,
    /// Drivers of claimed devices.
    pub(crate) claims: Claims,
    /// Asks for a look at the manifests of static pods.
    pub(crate) manifests_changed: Notify,
    /// The uid of the Node object, once it is there.
    pub(crate) node_uid: Mutex<String>,
    /// Asks for a look at all that runs.
    pub(crate) relist: Notify,
    /// What the runtime can do beyond what all can.
    pub(crate) features: Mutex<Arc<Features>>,
    /// One pod at a time gets ids for its user namespace.
    pub(crate) user_ids: Mutex<()>,
    /// The pods' uids by the ids of their containers and sandboxes.
    pub(crate) owners: Mutex<HashMap<String, String>>,
    /// Limits how much is started at once.
    pub(crate) starting: Semaphore,
    /// What was told last of how the node fares.
    pub(crate) told_of_node: Mutex<Option<[bool; 4]>>,
    /// Told when the node was registered.
    registered: Notify,
}

/// Ends the workers with the agent, also when it is dropped in the middle: two workers of one pod would undo each
/// other's work.
struct Dismissal(Arc<Agent>);

impl Drop for Dismissal {
    fn drop(&mut self) {
        self.0.pods.dismiss();
    }
}

impl Agent {
    /// Runs the agent until `cancel`; containers go on running then.
    pub async fn run(config: AgentConfig, cancel: CancellationToken) -> Result<(), AgentError> {
        let stop = cancel.child_token();
        let _stops = stop.clone().drop_guard();
        let agent = Arc::new(Self::new(config, &stop)?);
        let _workers = Dismissal(agent.clone());
        let server = agent.clone().server().await?;
        tokio::select! {
            () = cancel.cancelled() => agent.end_with_machine().await,
            () = server => {}
            () = agent.heartbeats() => {}
            () = agent.watch() => {}
            () = agent.relist() => {}
            () = agent.follow_objects() => {}
            () = agent.count() => {}
            () = manifests::run(agent.clone()) => {}
            () = csi::registration::run(agent.clone()) => {}
            () = strays::run(agent.clone()) => {}
            () = devices::run(agent.clone()) => {}
            () = claims::slices::run(agent.clone()) => {}
            () = agent.share_cpus() => {}
            () = pressure::run(agent.clone()) => {}
            () = runtime_events::follow(agent.clone()) => {}
            () = agent.clone().network(stop.clone()) => {}
        }
        Ok(())
    }

    fn new(config: AgentConfig, stop: &CancellationToken) -> Result<Self, AgentError> {
        std::fs::create_dir_all(config.data_dir.join("pods"))?;
        let runtime = Runtime::new(&config.runtime_socket)?;
        let mut machine = machine::read(&config.node_ip.to_string(), config.port);
        machine.other_ip = config.other_node_ip.map(|ip| ip.to_string());
        let client = &config.client;
        let objects_changed = Arc::new(Notify::new());
        let services_changed = Arc::new(Notify::new());
        let starts =
            STARTS_PER_CPU * std::thread::available_parallelism().map_or(1, std::num::NonZero::get) + MIN_STARTS;
        let csi = Arc::new(Drivers::new(&config.data_dir));
        let claims = Claims::new(&config.data_dir);
        let topology = Topology::read();
        let nodes = Nodes::read(&topology.numas(), &config.placement);
        if config.placement.policy != TopologyPolicy::None && nodes.numbers.len() > MAX_NODES {
            return Err(AgentError::Nodes(nodes.numbers.len()));
        }
        let report_now = Arc::new(Notify::new());
        Ok(Self {
            events: Recorder::start(client.clone(), config.node_name.clone()),
            objects: Arc::new(Objects::new(client, &objects_changed)),
            objects_version: AtomicU64::new(0),
            objects_changed,
            services: Cache::start(client, services_changed.clone(), stop.clone()),
            services_changed,
            endpoints: Endpoints::start(client, stop.clone()),
            seen_node: Mutex::default(),
            plugins: Plugins::new(&config.data_dir, report_now.clone()),
            nodes,
            topology,
            allotments: tokio::sync::Mutex::default(),
            cpus_changed: Notify::new(),
            on_cpus: Mutex::default(),
            gateway: Mutex::default(),
            networked: Notify::new(),
            rates: Rates::default(),
            pressure: Mutex::default(),
            report_now,
            config,
            runtime,
            machine,
            pods: Pods::default(),
            evented: AtomicBool::new(false),
            starts: Starts::default(),
            probe_counts: Arc::default(),
            csi,
            claims,
            manifests_changed: Notify::new(),
            node_uid: Mutex::default(),
            relist: Notify::new(),
            features: Mutex::default(),
            user_ids: Mutex::default(),
            owners: Mutex::default(),
            starting: Semaphore::new(starts),
            told_of_node: Mutex::default(),
            registered: Notify::new(),
        })
    }

    /// The agent's server, listening; it does nothing if the agent has no credentials.
    async fn server(self: Arc<Self>) -> Result<impl Future<Output = ()>, AgentError> {
        let mut bound = None;
        if let Some(credentials) = self.config.credentials.clone() {
            // A node has one address that counts, but tools on the node itself use the loopback interface.
            let any: IpAddr = if self.config.node_ip.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
            let address = std::net::SocketAddr::new(any, self.config.port);
            let listener = tokio::net::TcpListener::bind(address).await.map_err(|e| AgentError::Listen(address, e))?;
            bound = Some((listener, credentials));
        }
        Ok(async move {
            let Some((listener, credentials)) = bound else { return std::future::pending().await };
            // The request is approved for the names that the Node object has, so the node must be there first.
            self.registered.notified().await;
            let renewal = loop {
                match self.renewal(&credentials).await {
                    Ok(renewal) => break renewal,
                    Err(error) => tracing::warn!(%error, "no certificate for the agent's server; trying again"),
                }
                tokio::time::sleep(RETRY * 10).await;
            };
            tokio::join!(crate::server::serve(self, listener, renewal.server()), renewal.run());
        })
    }

    async fn renewal(&self, credentials: &Credentials) -> Result<Renewal, JoinError> {
        let (config, node) = (&self.config, &self.config.node_name);
        let names = std::iter::once(node.clone()).chain(self.host_ips()).collect::<Vec<_>>();
        let issued = join::serving(credentials, node, &names, &config.data_dir).await?;
        let (dir, credentials, renewed) = (config.data_dir.clone(), credentials.clone(), config.renewed.clone());
        Ok(Renewal::new(node.clone(), names, dir, credentials, issued, renewed)?)
    }

    /// The machine.
    pub(crate) fn machine(&self) -> &Machine {
        &self.machine
    }

    /// A pod's directory.
    pub(crate) fn pod_dir(&self, uid: &str) -> PathBuf {
        self.config.data_dir.join("pods").join(uid)
    }

    /// The node's addresses.
    pub(crate) fn host_ips(&self) -> Vec<String> {
        std::iter::once(self.config.node_ip).chain(self.config.other_node_ip).map(|ip| ip.to_string()).collect()
    }

    /// The images that the node has, the largest first.
    async fn images(&self) -> Vec<ContainerImage> {
        let request = keelson_proto::cri::ListImagesRequest {};
        let Ok(answer) = self.runtime.images.clone().list_images(request).await else { return Vec::new() };
        let mut images = answer.into_inner().images;
        images.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
        let report = |i: keelson_proto::cri::Image| {
            let names: Vec<String> = i.repo_digests.into_iter().chain(i.repo_tags).take(MAX_IMAGE_NAMES).collect();
            ContainerImage { names: Some(names), size_bytes: i64::try_from(i.size).ok() }
        };
        images.into_iter().take(MAX_IMAGES).map(report).collect()
    }

    /// The zone that the node is in.
    pub(crate) fn zone(&self) -> Option<String> {
        let node = self.seen_node.lock();
        node.as_ref()?.metadata.labels.as_ref()?.get("topology.kubernetes.io/zone").cloned()
    }

    /// What the node has for pods.
    pub(crate) fn capacity(&self) -> Amounts {
        let facts = self.facts();
        Amounts { cpu: facts.node_cpu_millis, memory: facts.node_memory }
    }

    /// How the node fares, as far as the agent knows by itself.
    fn state(&self) -> node::State {
        let pressure = *self.pressure.lock();
        node::State { pressure, volumes_in_use: self.csi.in_use(), ..self.shares() }
    }

    /// What of the node pods do not get, and what plugins add to it.
    fn shares(&self) -> node::State {
        let reserved_cpus = match &self.config.cpu_policy {
            CpuPolicy::None => 0,
            CpuPolicy::Static(reserved) => reserved.0.len(),
        };
        let reserved_memory = match &self.config.placement.memory {
            MemoryPolicy::None => 0,
            MemoryPolicy::Static(reserved) => reserved.values().sum(),
        };
        node::State { devices: self.plugins.capacity(), reserved_cpus, reserved_memory, ..node::State::default() }
    }

    /// What pods may have of each resource.
    pub(crate) fn allocatable(&self) -> BTreeMap<String, String> {
        let known = self.seen_node.lock().as_ref().and_then(|node| node.status.clone()).unwrap_or_default();
        let (_, allocatable) = node::resources(&self.machine, &known, &self.shares());
        allocatable.into_iter().map(|(name, amount)| (name, amount.0)).collect()
    }

    /// How many pods the node takes.
    pub(crate) fn max_pods(&self) -> i64 {
        self.allocatable().get("pods").and_then(|n| n.parse().ok()).unwrap_or(0)
    }

    /// What containers may learn of the node.
    pub(crate) fn facts(&self) -> Facts {
        Facts {
            node: self.config.node_name.clone(),
            node_cpu_millis: millis(&self.machine.cpu).unwrap_or(0),
            node_memory: millis(&self.machine.memory).unwrap_or(0) / 1000,
            ..Facts::default()
        }
    }

    /// What containers' memory is limited by.
    pub(crate) fn memory_site(&self) -> pages::Site {
        pages::Site {
            memory: self.facts().node_memory,
            swap: self.machine.swap,
            limits_swap: pages::limits_swap(std::path::Path::new(crate::cgroup::ROOT)),
            behavior: self.config.swap,
            sizes: self.machine.huge_pages.keys().copied().collect(),
        }
    }

    /// The runtime's name for a pod's runtime class.
    pub(crate) async fn runtime_handler(&self, of: &Pod) -> Result<String, SpecError> {
        let class = of.spec.as_ref().and_then(|s| s.runtime_class_name.as_deref()).filter(|c| !c.is_empty());
        let Some(class) = class else { return Ok(String::new()) };
        let found = self.config.client.cluster::<RuntimeClass>().get_opt(class).await?;
        found.map(|c| c.handler).ok_or_else(|| SpecError::new(format!("runtime class {class:?} not found")))
    }

    /// Whether mounts of the pod's containers can be read-only with all that is mounted below them.
    pub(crate) async fn mounts_recursively(&self, of: &Pod) -> Result<bool, SpecError> {
        if self.features.lock().recursive_read_only.is_empty() {
            return Ok(false);
        }
        let handler = self.runtime_handler(of).await?;
        Ok(self.features.lock().recursive_read_only.contains(&handler))
    }

    async fn heartbeats(&self) {
        tokio::join!(self.reports(), self.renewals());
    }

    /// Keeps the node's lease; a runtime that does not answer must not make the node seem dead.
    async fn renewals(&self) {
        let mut keeper = node::LeaseKeeper::default();
        loop {
            let uid = self.node_uid.lock().clone();
            let pause = match uid.as_str() {
                "" => BEAT_AGAIN,
                uid => match keeper.renew(&self.config.client, &self.config.node_name, uid).await {
                    Ok(pause) => pause,
                    Err(error) => {
                        tracing::warn!(%error, "the node's lease could not be renewed");
                        BEAT_AGAIN
                    }
                },
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn reports(&self) {
        let mut prepared = false;
        let mut pause = BEAT_AGAIN;
        loop {
            let started = tokio::time::Instant::now();
            let ready = self.beat(&mut prepared).await.unwrap_or_else(|error| {
                tracing::warn!(%error, "the node could not report itself");
                false
            });
            // Becoming ready takes a few beats; nobody should wait a whole interval for each.
            pause = if ready { BEAT_AGAIN } else { (pause * 2).min(LEASE_RENEWAL) };
            tokio::select! {
                () = tokio::time::sleep_until(started + if ready { LEASE_RENEWAL } else { pause }) => {}
                () = self.report_now.notified() => {}
            }
        }
    }

    /// Reports the node and prepares its network; returns whether both are as they should be.
    async fn beat(&self, prepared: &mut bool) -> Result<bool, Error> {
        let (client, name) = (&self.config.client, self.config.node_name.as_str());
        let mut machine = self.machine.clone();
        let (not_ready, mut features) = self.runtime.status().await;
        if let Ok(version) = self.runtime.version().await {
            features.image_volumes = mounts_images(&version);
            features.devices = takes_devices(&version);
            if let Some((name, _)) = version.split_once("://") {
                features.runtime = name.to_owned();
            }
            machine.runtime = version;
        }
        if not_ready.is_none() {
            *self.features.lock() = Arc::new(features);
        }
        let features = self.features.lock().clone();
        let state = node::State { not_ready, images: self.images().await, features, ..self.state() };
        let node = node::register(client, name, &machine, &state).await?;
        self.registered.notify_one();
        self.tell_of_node(&state);
        let uid = node.metadata.uid.clone().unwrap_or_default();
        if std::mem::replace(&mut *self.node_uid.lock(), uid.clone()) != uid {
            self.pods.wake_static();
        }
        let node = Arc::new(node);
        *self.seen_node.lock() = Some(node.clone());
        let ranges = cni::ranges(&node);
        match ranges.first() {
            _ if self.config.pod_network == PodNetwork::None => {
                // It is told once; more does no harm.
                self.networked.notify_one();
                *prepared = true;
            }
            Some(_) => self.pod_network(&ranges, &node, prepared).await?,
            None => {}
        }
        Ok(state.not_ready.is_none() && *prepared)
    }

    async fn watch(self: &Arc<Self>) {
        loop {
            if let Err(error) = self.watch_pods().await {
                tracing::warn!(%error, "watch of this node's pods failed");
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// The safety net under the runtime's events.
    async fn relist(self: &Arc<Self>) {
        loop {
            let pause = if self.evented.load(Ordering::Relaxed) { RELIST } else { RELIST_BLIND };
            tokio::select! {
                () = self.relist.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
            if let Err(error) = self.relist_once().await {
                tracing::warn!(error = error.message(), "the container runtime does not answer");
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    /// Lets pods look at their volumes when something they may refer to changed.
    async fn follow_objects(&self) {
        loop {
            tokio::select! {
                () = self.objects_changed.notified() => {
                    self.objects_version.fetch_add(1, Ordering::Relaxed);
                    self.pods.wake_all();
                }
                () = self.services_changed.notified(), if !self.config.proxy => {
                    self.services.drain();
                    self.endpoints.drain();
                }
                () = tokio::time::sleep(FORGET) => self.objects.forget_old(),
            }
        }
    }

    /// Writes a pod's status if it changed, and remembers what the API made of it.
    pub(crate) async fn report(self: &Arc<Self>, pod: &Pod, status: PodStatus) -> Result<(), Error> {
        if self.pods.is_static(pod.metadata.uid.as_deref().unwrap_or_default()) {
            self.report_static(pod, status).await;
            return Ok(());
        }
        if pod.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let (Some(name), Some(namespace)) = (&pod.metadata.name, &pod.metadata.namespace) else { return Ok(()) };
        let api = self.config.client.namespaced::<Pod>(namespace);
        let mut next = pod.clone();
        next.status = Some(status);
        match api.replace_status(name, &next).await {
            Ok(written) => {
                self.pods.written(pod, written);
                Ok(())
            }
            Err(e) if e.is_conflict() || e.is_not_found() => Ok(()), // a newer event is on its way
            Err(e) => Err(e),
        }
    }

    /// Confirms that a deleted pod is gone from this node.
    pub(crate) async fn confirm(&self, pod: &Pod) -> Result<(), Error> {
        let (Some(name), Some(namespace)) = (&pod.metadata.name, &pod.metadata.namespace) else { return Ok(()) };
        let options = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": pod.metadata.uid}});
        match self.config.client.namespaced::<Pod>(namespace).delete(name, &options).await {
            Err(e) if e.is_conflict() || e.is_not_found() => Ok(()),
            result => result,
        }
    }
}
