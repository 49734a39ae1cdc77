//! Devices that plugins offer (v1beta1): who offers what, how many of each the node has, and what a container gets with
//! them. Plugins call the agent at `device-plugins/kubelet.sock` below its directory, or leave a socket in
//! `plugins_registry`.
//!
//! Invariant: the name of a resource that a plugin ever offered is in a file before the node tells of it: pods that come
//! between a start of the agent and the plugin's return must not start without their devices.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keelson_proto::cri;
use keelson_proto::deviceplugin::device_plugin_client::DevicePluginClient;
use keelson_proto::deviceplugin::registration_server::{Registration, RegistrationServer};
use keelson_proto::deviceplugin::{
    AllocateRequest, ContainerAllocateRequest, ContainerAllocateResponse, ContainerPreferredAllocationRequest, Device,
    DevicePluginOptions, Empty, PreStartContainerRequest, PreferredAllocationRequest, RegisterRequest,
};
use parking_lot::Mutex;
use tokio::net::UnixListener;
use tokio::sync::{Notify, mpsc};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::agent::Agent;
use crate::csi::channel;

/// The version of the protocol.
const VERSION: &str = "v1beta1";
/// The directory of the sockets, below the agent's.
const DIRECTORY: &str = "device-plugins";
/// The agent's own socket there: plugins know the name.
const SOCKET: &str = "kubelet.sock";
/// The file with the names of all resources that plugins ever offered.
const NAMES: &str = "resources";
/// Plugins that wait to be followed.
const WAITING: usize = 16;
/// Resources and devices of a node at most.
const MAX_RESOURCES: usize = 100;
const MAX_DEVICES: usize = 10_000;

/// Devices by resource.
pub type Ids = BTreeMap<String, BTreeSet<String>>;

/// A device as its plugin tells of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Whether it can be used.
    pub healthy: bool,
    /// The memories that are near it.
    pub numa: BTreeSet<u32>,
}

struct Plugin {
    client: DevicePluginClient<Channel>,
    options: DevicePluginOptions,
    devices: BTreeMap<String, Found>,
    /// Grows with every registration: what an earlier connection tells does not count any more.
    serial: u64,
}

/// The plugins of this node.
pub struct Plugins {
    dir: PathBuf,
    known: Mutex<HashMap<String, Plugin>>,
    names: Mutex<BTreeSet<String>>,
    coming: mpsc::Sender<(String, u64)>,
    /// Those that are to be followed.
    followed: tokio::sync::Mutex<mpsc::Receiver<(String, u64)>>,
    /// Told when a resource changed.
    changed: Arc<Notify>,
}

/// Whether plugins may offer a resource of this name.
fn is_extended(name: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    let own = |domain: &str| domain == "kubernetes.io" || domain.ends_with(".kubernetes.io");
    name.split_once('/').is_some_and(|(domain, rest)| plain(domain) && plain(rest) && !own(domain))
        && !name.starts_with("requests.")
        && name.len() <= 253
}

fn found(devices: Vec<Device>) -> BTreeMap<String, Found> {
    let one = |device: Device| {
        let nodes = device.topology.unwrap_or_default().nodes.into_iter();
        let numa = nodes.filter_map(|n| u32::try_from(n.id).ok()).collect();
        (device.id, Found { healthy: device.health == "Healthy", numa })
    };
    devices.into_iter().take(MAX_DEVICES).map(one).collect()
}

impl Plugins {
    /// None yet; `root` is the agent's directory. `changed` is told when what the node has changes.
    pub fn new(root: &Path, changed: Arc<Notify>) -> Self {
        let dir = root.join(DIRECTORY);
        let names = std::fs::read_to_string(dir.join(NAMES)).unwrap_or_default();
        let names = names.lines().filter(|name| is_extended(name)).map(str::to_owned).collect();
        let (coming, followed) = mpsc::channel(WAITING);
        Self {
            dir,
            known: Mutex::default(),
            names: Mutex::new(names),
            coming,
            followed: tokio::sync::Mutex::new(followed),
            changed,
        }
    }

    /// Takes a plugin, instead of an earlier one of the same resource.
    pub async fn register(&self, resource: &str, socket: &Path, options: DevicePluginOptions) -> Result<(), String> {
        if !is_extended(resource) {
            return Err(format!("{resource:?} is not the name of an extended resource, such as example.com/device"));
        }
        let client = DevicePluginClient::new(channel(socket).map_err(|e| e.to_string())?);
        {
            let mut names = self.names.lock();
            if names.len() >= MAX_RESOURCES && !names.contains(resource) {
                return Err(format!("the node has {MAX_RESOURCES} resources of plugins already"));
            }
            if names.insert(resource.to_owned()) {
                let text = names.iter().cloned().collect::<Vec<_>>().join("\n");
                std::fs::create_dir_all(&self.dir).map_err(|e| e.to_string())?;
                std::fs::write(self.dir.join(NAMES), text).map_err(|e| e.to_string())?;
            }
        }
        let serial = {
            let mut known = self.known.lock();
            let (serial, devices) = known.remove(resource).map_or((0, BTreeMap::new()), |p| (p.serial + 1, p.devices));
            known.insert(resource.to_owned(), Plugin { client, options, devices, serial });
            serial
        };
        tracing::info!(resource, socket = %socket.display(), "a device plugin is registered");
        self.coming.send((resource.to_owned(), serial)).await.map_err(|e| e.to_string())
    }

    /// Takes a plugin that left its socket in the directory of all kinds of plugins.
    pub async fn welcome(&self, resource: &str, socket: &Path) -> Result<(), String> {
        let mut client = DevicePluginClient::new(channel(socket).map_err(|e| e.to_string())?);
        let options = client.get_device_plugin_options(Empty {}).await.map_err(|e| e.message().to_owned())?;
        self.register(resource, socket, options.into_inner()).await
    }

    /// Hears what a plugin tells of its devices until it is gone.
    async fn follow(&self, resource: String, serial: u64) {
        let Some(mut client) = self.current(&resource, serial, |p| p.client.clone()) else { return };
        let error = match client.list_and_watch(Empty {}).await.map(Response::into_inner) {
            Ok(mut lists) => loop {
                match lists.message().await {
                    Ok(Some(list)) => {
                        let devices = found(list.devices);
                        if self.current(&resource, serial, |p| p.devices = devices).is_none() {
                            return;
                        }
                        self.changed.notify_one();
                    }
                    Ok(None) => break "the stream ended".to_owned(),
                    Err(status) => break status.message().to_owned(),
                }
            },
            Err(status) => status.message().to_owned(),
        };
        // Containers go on with the devices that they have.
        let gone = self.current(&resource, serial, |p| p.devices.values_mut().for_each(|d| d.healthy = false));
        if gone.is_some() {
            tracing::warn!(
                resource,
                error,
                "a device plugin is gone; its devices are given to nobody until it is back"
            );
            self.changed.notify_one();
        }
    }

    fn current<T>(&self, resource: &str, serial: u64, with: impl FnOnce(&mut Plugin) -> T) -> Option<T> {
        self.known.lock().get_mut(resource).filter(|p| p.serial == serial).map(with)
    }

    /// Whether plugins offer the resource, or did before the agent started.
    pub fn offers(&self, resource: &str) -> bool {
        self.names.lock().contains(resource)
    }

    /// All devices and the healthy ones of each resource. A resource whose plugin has not come back has none.
    pub fn capacity(&self) -> BTreeMap<String, (usize, usize)> {
        let known = self.known.lock();
        let count = |name: &String| {
            let devices = known.get(name).map(|p| &p.devices);
            let healthy = devices.map_or(0, |d| d.values().filter(|d| d.healthy).count());
            (name.clone(), (devices.map_or(0, BTreeMap::len), healthy))
        };
        self.names.lock().iter().map(count).collect()
    }

    /// The devices of a resource.
    pub fn devices(&self, resource: &str) -> BTreeMap<String, Found> {
        self.known.lock().get(resource).map(|p| p.devices.clone()).unwrap_or_default()
    }

    fn plugin(&self, resource: &str) -> Result<(DevicePluginClient<Channel>, DevicePluginOptions), String> {
        let known = self.known.lock();
        let plugin = known.get(resource).ok_or_else(|| format!("the device plugin of {resource} is not there"))?;
        Ok((plugin.client.clone(), plugin.options))
    }

    /// Which of the free devices the plugin would like to give; empty if it has no opinion.
    pub async fn preferred(
        &self,
        resource: &str,
        free: &BTreeSet<String>,
        must: &BTreeSet<String>,
        size: usize,
    ) -> BTreeSet<String> {
        let Ok((mut client, options)) = self.plugin(resource) else { return BTreeSet::new() };
        if !options.get_preferred_allocation_available {
            return BTreeSet::new();
        }
        let one = ContainerPreferredAllocationRequest {
            available_device_i_ds: free.iter().cloned().collect(),
            must_include_device_i_ds: must.iter().cloned().collect(),
            allocation_size: i32::try_from(size).unwrap_or(i32::MAX),
        };
        match client.get_preferred_allocation(PreferredAllocationRequest { container_requests: vec![one] }).await {
            Ok(answer) => {
                let answers = answer.into_inner().container_responses;
                answers.into_iter().flat_map(|a| a.device_i_ds).filter(|id| free.contains(id)).collect()
            }
            Err(status) => {
                tracing::warn!(resource, error = status.message(), "a device plugin does not say what it prefers");
                BTreeSet::new()
            }
        }
    }

    /// Asks the plugins for what a container needs to use its devices, and readies these.
    pub async fn allocate(&self, ids: &Ids) -> Result<Vec<ContainerAllocateResponse>, String> {
        let mut answers = Vec::new();
        for (resource, ids) in ids {
            let (mut client, options) = self.plugin(resource)?;
            let failed = |status: Status| format!("the device plugin of {resource}: {}", status.message());
            let devices_ids: Vec<String> = ids.iter().cloned().collect();
            let request = ContainerAllocateRequest { devices_ids: devices_ids.clone() };
            let answer = client.allocate(AllocateRequest { container_requests: vec![request] }).await;
            answers.extend(answer.map_err(failed)?.into_inner().container_responses);
            if options.pre_start_required {
                client.pre_start_container(PreStartContainerRequest { devices_ids }).await.map_err(failed)?;
            }
        }
        Ok(answers)
    }
}

/// Adds to a container's configuration what plugins answered.
pub fn equip(config: &mut cri::ContainerConfig, answers: Vec<ContainerAllocateResponse>) {
    for answer in answers {
        let mut variables: Vec<(String, String)> = answer.envs.into_iter().collect();
        variables.sort();
        for (key, value) in variables {
            // What the pod itself says has the last word, as upstream has it.
            if config.envs.iter().all(|known| known.key != key) {
                config.envs.push(cri::KeyValue { key, value });
            }
        }
        config.mounts.extend(answer.mounts.into_iter().map(|m| cri::Mount {
            container_path: m.container_path,
            host_path: m.host_path,
            readonly: m.read_only,
            ..cri::Mount::default()
        }));
        config.devices.extend(answer.devices.into_iter().map(|d| cri::Device {
            container_path: d.container_path,
            host_path: d.host_path,
            permissions: d.permissions,
        }));
        config.annotations.extend(answer.annotations);
        config.cdi_devices.extend(answer.cdi_devices.into_iter().map(|d| cri::CdiDevice { name: d.name }));
    }
}

struct Welcome(Arc<Agent>);

#[tonic::async_trait]
impl Registration for Welcome {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let asked = request.into_inner();
        if asked.version != VERSION {
            let message = format!("version {:?} is not spoken here: {VERSION} is", asked.version);
            return Err(Status::invalid_argument(message));
        }
        if asked.endpoint.is_empty() || asked.endpoint.contains('/') {
            return Err(Status::invalid_argument("the endpoint is not the name of a socket in this directory"));
        }
        let plugins = &self.0.plugins;
        let socket = plugins.dir.join(&asked.endpoint);
        let result = plugins.register(&asked.resource_name, &socket, asked.options.unwrap_or_default()).await;
        result.map(|()| Response::new(Empty {})).map_err(Status::invalid_argument)
    }
}

/// Serves registrations and follows plugins for ever.
pub(crate) async fn run(agent: Arc<Agent>) {
    let plugins = &agent.plugins;
    let path = plugins.dir.join(SOCKET);
    let bind = || {
        std::fs::create_dir_all(&plugins.dir)?;
        // What an earlier agent left; plugins see that it is new and register again.
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        UnixListener::bind(&path)
    };
    let listener = match bind() {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(socket = %path.display(), %error, "device plugins cannot register");
            return std::future::pending().await;
        }
    };
    let incoming = futures::stream::unfold(listener, |listener| async {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        Some((accepted, listener))
    });
    let serving = tonic::transport::Server::builder()
        .add_service(RegistrationServer::new(Welcome(agent.clone())))
        .serve_with_incoming(incoming);
    let following = async {
        let mut coming = plugins.followed.lock().await;
        let mut streams = tokio::task::JoinSet::new();
        loop {
            tokio::select! {
                next = coming.recv() => {
                    let Some((resource, serial)) = next else { return };
                    let agent = agent.clone();
                    streams.spawn(async move { agent.plugins.follow(resource, serial).await });
                }
                Some(_) = streams.join_next() => {}
            }
        }
    };
    tokio::select! {
        result = serving => if let Err(error) = result {
            tracing::error!(%error, "device plugins cannot register any more");
        },
        () = following => {}
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_resources() {
        for (name, good) in [
            ("example.com/gpu", true),
            ("nvidia.com/mig-1g.5gb", true),
            ("gpu", false),
            ("kubernetes.io/gpu", false),
            ("a.kubernetes.io/gpu", false),
            ("example.com/", false),
            ("/x", false),
            ("a/b/c", false),
            ("a b/c", false),
        ] {
            assert_eq!(is_extended(name), good, "{name}");
        }
    }

    #[test]
    fn what_plugins_answer_is_added() {
        let mut config = cri::ContainerConfig::default();
        config.envs.push(cri::KeyValue { key: "A".into(), value: "own".into() });
        let answer = ContainerAllocateResponse {
            envs: [("A".into(), "theirs".into()), ("B".into(), "2".into())].into(),
            mounts: vec![keelson_proto::deviceplugin::Mount {
                container_path: "/lib/x".into(),
                host_path: "/host/x".into(),
                read_only: true,
            }],
            annotations: [("k".into(), "v".into())].into(),
            ..Default::default()
        };
        equip(&mut config, vec![answer]);
        let variables: Vec<_> = config.envs.iter().map(|v| format!("{}={}", v.key, v.value)).collect();
        assert_eq!(variables, ["A=own", "B=2"]);
        assert!(config.mounts[0].readonly && config.mounts[0].host_path == "/host/x");
        assert_eq!(config.annotations["k"], "v");
    }

    #[tokio::test]
    async fn a_resource_outlives_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        let plugins = Plugins::new(dir.path(), Arc::default());
        plugins.register("example.com/a", &dir.path().join("s"), DevicePluginOptions::default()).await.unwrap();
        assert!(plugins.register("pods", &dir.path().join("s"), DevicePluginOptions::default()).await.is_err());
        let device = |id: &str, health: &str| Device { id: id.into(), health: health.into(), topology: None };
        let devices = found(vec![device("1", "Healthy"), device("2", "Unhealthy")]);
        plugins.current("example.com/a", 0, |p| p.devices = devices).unwrap();
        assert_eq!(plugins.capacity()["example.com/a"], (2, 1));
        let again = Plugins::new(dir.path(), Arc::default());
        assert!(again.offers("example.com/a") && !again.offers("example.com/b"));
        assert_eq!(again.capacity()["example.com/a"], (0, 0));
    }
}
