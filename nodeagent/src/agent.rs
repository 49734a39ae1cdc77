//! The agent of a real node: keeps the node registered and takes every pod, step by step, to where it should be.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use keelson_client::{Client, Error, ListParams, WatchEvent};
use parking_lot::Mutex;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::cri::{Running, Runtime};
use crate::join::{self, Credentials, JoinError};
use crate::node::{self, LEASE_RENEWAL, Machine};
use crate::pod_worker::{self, Step};
use crate::{cni, machine};

/// How often the runtime is asked what runs, while there are pods.
const RELIST: Duration = Duration::from_secs(1);
/// How many of these pass between two looks at the runtime while there are no pods.
const IDLE_RELISTS: u32 = 10;
/// Pause after a failed list or watch.
const RETRY: Duration = Duration::from_secs(1);

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
    /// Port of the agent's server.
    pub port: u16,
    /// With these a certificate for the agent's server is asked for; without them there is no server.
    pub credentials: Option<Credentials>,
    /// Network of all pods.
    pub cluster_cidr: String,
    /// The cluster's name server, if there is one.
    pub cluster_dns: Option<IpAddr>,
    /// The cluster's domain.
    pub cluster_domain: String,
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
    /// The agent's server cannot listen.
    #[error("cannot listen on {0}: {1}; stop what uses it, or choose another with --port")]
    Listen(std::net::SocketAddr, std::io::Error),
}

/// The pods of this node by uid, as the API last said.
#[derive(Default)]
struct Pods {
    known: HashMap<String, Pod>,
    /// Whether the pods were listed once: before, nothing is an orphan.
    listed: bool,
}

/// A node's agent.
pub struct Agent {
    pub(crate) config: AgentConfig,
    pub(crate) runtime: Runtime,
    machine: Machine,
    pods: Mutex<Pods>,
    /// Pods with a step under way.
    busy: Mutex<HashSet<String>>,
    /// Told when the node was registered.
    registered: tokio::sync::Notify,
    /// Failed starts of containers.
    pub(crate) failures: Mutex<pod_worker::Failures>,
}

impl Agent {
    /// Runs the agent until `cancel`; containers go on running then.
    pub async fn run(config: AgentConfig, cancel: CancellationToken) -> Result<(), AgentError> {
        std::fs::create_dir_all(config.data_dir.join("pods"))?;
        let runtime = Runtime::new(&config.runtime_socket)?;
        let machine = machine::read(&config.node_ip.to_string(), config.port);
        let agent = Arc::new(Self {
            config,
            runtime,
            machine,
            pods: Mutex::default(),
            busy: Mutex::default(),
            registered: tokio::sync::Notify::new(),
            failures: Mutex::default(),
        });
        let server = agent.clone().server().await?;
        tokio::select! {
            () = cancel.cancelled() => {}
            () = server => {}
            () = agent.heartbeats() => {}
            () = agent.watch() => {}
            () = agent.relist() => {}
        }
        Ok(())
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
            let tls = loop {
                match self.serving(&credentials).await {
                    Ok(tls) => break tls,
                    Err(error) => tracing::warn!(%error, "no certificate for the agent's server; trying again"),
                }
                tokio::time::sleep(RETRY * 10).await;
            };
            crate::server::serve(self, listener, tls).await;
        })
    }

    async fn serving(&self, credentials: &Credentials) -> Result<Arc<rustls::ServerConfig>, JoinError> {
        let (node, ip) = (&self.config.node_name, self.config.node_ip.to_string());
        let issued = join::serving(credentials, node, &[node.clone(), ip], &self.config.data_dir).await?;
        Ok(keelson_pki::server_config(keelson_pki::CertificateSlot::new(&issued)?, &credentials.ca)?)
    }

    /// The pods of this node, as the API last said.
    pub(crate) fn pods(&self) -> Vec<Arc<Pod>> {
        self.pods.lock().known.values().map(|p| Arc::new(p.clone())).collect()
    }

    async fn heartbeats(&self) {
        let mut tick = tokio::time::interval(LEASE_RENEWAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut prepared = false;
        loop {
            tick.tick().await;
            if let Err(error) = self.beat(&mut prepared).await {
                tracing::warn!(%error, "the node could not report itself");
            }
        }
    }

    async fn beat(&self, prepared: &mut bool) -> Result<(), Error> {
        let (client, name) = (&self.config.client, self.config.node_name.as_str());
        let mut machine = self.machine.clone();
        if let Ok(version) = self.runtime.version().await {
            machine.runtime = version;
        }
        let not_ready = self.runtime.not_ready().await;
        let node = node::register(client, name, &machine, not_ready.as_deref()).await?;
        node::renew(client, name, node.metadata.uid.as_deref().unwrap_or_default()).await?;
        self.registered.notify_one();
        if let Some(cidr) = node.spec.as_ref().and_then(|s| s.pod_cidr.as_deref()) {
            if let Err(error) = cni::write(&self.config.cni_conf_dir, cidr) {
                tracing::error!(%error, "the network configuration could not be written");
            }
            if !*prepared {
                match cni::prepare(&self.config.cluster_cidr).await {
                    Ok(()) => *prepared = true,
                    Err(error) => tracing::error!(%error, "the node's network could not be prepared"),
                }
            }
            let nodes = client.cluster::<Node>().list(&ListParams::default()).await?.items;
            for (cidr, via) in cni::routes(name, &nodes) {
                if let Err(error) = cni::set_route(&cidr, via).await {
                    tracing::warn!(%cidr, %via, %error, "route to another node's pods could not be set");
                }
            }
        }
        Ok(())
    }

    async fn watch(&self) {
        loop {
            if let Err(error) = self.watch_once().await {
                tracing::warn!(%error, "watch of this node's pods failed");
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn watch_once(&self) -> Result<(), Error> {
        let api = self.config.client.all::<Pod>();
        let selector = Some(format!("spec.nodeName={}", self.config.node_name));
        let mut params = ListParams { field_selector: selector, ..ListParams::default() };
        let list = api.list(&params).await?;
        let uid = |pod: &Pod| pod.metadata.uid.clone().unwrap_or_default();
        *self.pods.lock() = Pods { known: list.items.into_iter().map(|p| (uid(&p), p)).collect(), listed: true };
        params.resource_version = Some(list.resource_version);
        let mut events = std::pin::pin!(api.watch(&params).await?);
        while let Some(event) = events.try_next().await? {
            match event {
                WatchEvent::Added(pod) | WatchEvent::Modified(pod) => {
                    self.pods.lock().known.insert(uid(&pod), pod);
                }
                WatchEvent::Deleted(pod) => {
                    self.pods.lock().known.remove(&uid(&pod));
                }
                WatchEvent::Bookmark(_) => {}
                WatchEvent::Error(status) => return Err(Error::Status(status)),
            }
        }
        Ok(())
    }

    async fn relist(self: &Arc<Self>) {
        let mut idle = 0;
        loop {
            tokio::time::sleep(RELIST).await;
            let (pods, listed) = {
                let pods = self.pods.lock();
                (pods.known.clone(), pods.listed)
            };
            idle = if pods.is_empty() { idle + 1 } else { IDLE_RELISTS };
            if !listed || idle < IDLE_RELISTS {
                continue;
            }
            idle = 0;
            // What is busy is noted before the runtime is asked: a step that ends meanwhile waits for the next round,
            // which sees its effect.
            let busy = self.busy.lock().clone();
            let mut running = match self.runtime.running().await {
                Ok(running) => running,
                Err(error) => {
                    tracing::warn!(error = error.message(), "the container runtime does not answer");
                    continue;
                }
            };
            for (uid, pod) in pods {
                let state = running.remove(&uid).unwrap_or_default();
                self.start(&busy, uid, Step::Sync(Box::new(pod)), state);
            }
            for (uid, state) in running {
                self.start(&busy, uid, Step::Orphan, state);
            }
        }
    }

    fn start(self: &Arc<Self>, before: &HashSet<String>, uid: String, step: Step, state: Running) {
        if before.contains(&uid) || !self.busy.lock().insert(uid.clone()) {
            return;
        }
        let agent = self.clone();
        tokio::spawn(async move {
            if let Err(error) = pod_worker::step(&agent, &uid, step, state).await {
                tracing::warn!(pod = %uid, %error, "a step of a pod failed; it is tried again");
            }
            agent.busy.lock().remove(&uid);
        });
    }

    /// Writes a pod's status if it changed, and remembers what the API made of it.
    pub(crate) async fn report(&self, pod: &Pod, status: k8s_openapi::api::core::v1::PodStatus) -> Result<(), Error> {
        if pod.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let (Some(name), Some(namespace)) = (&pod.metadata.name, &pod.metadata.namespace) else { return Ok(()) };
        let api = self.config.client.namespaced::<Pod>(namespace);
        let mut next = pod.clone();
        next.status = Some(status);
        match api.replace_status(name, &next).await {
            Ok(written) => {
                let uid = written.metadata.uid.clone().unwrap_or_default();
                if let Some(known) = self.pods.lock().known.get_mut(&uid)
                    && known.metadata.resource_version == pod.metadata.resource_version
                {
                    *known = written;
                }
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
