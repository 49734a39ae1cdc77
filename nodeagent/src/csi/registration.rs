//! Drivers make themselves known by a socket in a directory of the agent; who is known is told in the node's CSINode.

use std::collections::HashMap;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::CSINode;
use keelson_client::{Error, PatchType};
use keelson_proto::csi::NodeGetInfoResponse;
use keelson_proto::plugin_registration::registration_client::RegistrationClient;
use keelson_proto::plugin_registration::{InfoRequest, PluginInfo, RegistrationStatus};
use serde_json::{Value, json};

use super::{Driver, channel};
use crate::agent::Agent;

/// The directory of the sockets, below the agent's.
const DIRECTORY: &str = "plugins_registry";
/// How often it is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// A plugin that could not be registered is tried again after this time.
const AGAIN: Duration = Duration::from_secs(10);
/// Plugins of a node at most.
const MAX_PLUGINS: usize = 100;
/// Annotation of nodes: what drivers call them.
const NODE_ID: &str = "csi.volume.kubernetes.io/nodeid";
/// The kind of plugins that offer devices.
const DEVICES: &str = "DevicePlugin";
/// The kind of plugins that make claimed devices ready.
const CLAIMS: &str = "DRAPlugin";
/// The kind of plugins that are drivers.
const KIND: &str = "CSIPlugin";

/// A socket and when it was made: a plugin that starts anew makes a new one.
type Socket = (PathBuf, Option<SystemTime>);

fn sockets(dir: &Path) -> Vec<Socket> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().take(MAX_PLUGINS);
    let socket = |entry: std::fs::DirEntry| {
        let found = entry.metadata().ok().filter(|m| m.file_type().is_socket())?;
        Some((entry.path(), found.modified().ok()))
    };
    entries.filter_map(socket).collect()
}

/// What became of a socket: the plugin's kind and name, or when it is tried again.
enum State {
    Registered(String, String),
    Failed(tokio::time::Instant),
}

/// Follows the sockets for ever.
pub(crate) async fn run(agent: Arc<Agent>) {
    let dir = agent.config.data_dir.join(DIRECTORY);
    if let Err(error) = std::fs::create_dir_all(&dir) {
        tracing::error!(dir = %dir.display(), %error, "plugins cannot register");
        return std::future::pending().await;
    }
    let mut known: HashMap<Socket, State> = HashMap::new();
    loop {
        let present = sockets(&dir);
        let gone: Vec<Socket> = known.keys().filter(|socket| !present.contains(socket)).cloned().collect();
        for socket in gone {
            match known.remove(&socket) {
                Some(State::Registered(kind, name)) if kind == KIND => agent.dismiss_driver(&name).await,
                Some(State::Registered(kind, name)) if kind == CLAIMS => agent.claims.dismiss(&name),
                // Plugins of devices are followed by their streams.
                _ => {}
            }
        }
        for socket in present {
            let due = match known.get(&socket) {
                None => true,
                Some(State::Registered(..)) => false,
                Some(State::Failed(at)) => at.elapsed() >= AGAIN,
            };
            if !due {
                continue;
            }
            let state = match agent.register_plugin(&socket.0).await {
                Ok((kind, name)) => State::Registered(kind, name),
                Err(why) => {
                    tracing::warn!(socket = %socket.0.display(), why, "a plugin could not be registered");
                    State::Failed(tokio::time::Instant::now())
                }
            };
            known.insert(socket, state);
        }
        tokio::time::sleep(LOOK).await;
    }
}

impl Agent {
    /// Registers the plugin of a socket and tells it so. Returns its kind and name.
    async fn register_plugin(&self, socket: &Path) -> Result<(String, String), String> {
        let mut client = RegistrationClient::new(channel(socket).map_err(|e| e.to_string())?);
        let info = client.get_info(InfoRequest {}).await.map_err(|e| e.message().to_owned())?.into_inner();
        let result = match info.r#type.as_str() {
            KIND => self.welcome_driver(&info.name, Path::new(&info.endpoint)).await,
            CLAIMS => self.welcome_claims(&info, socket),
            DEVICES => self.plugins.welcome(&info.name, Path::new(&info.endpoint)).await,
            other => Err(format!("plugins of the kind {other:?} are not served by this node")),
        };
        let told = RegistrationStatus {
            plugin_registered: result.is_ok(),
            error: result.as_ref().err().cloned().unwrap_or_default(),
        };
        client.notify_registration_status(told).await.map_err(|e| e.message().to_owned())?;
        result.map(|()| (info.r#type, info.name))
    }

    fn welcome_claims(&self, info: &PluginInfo, socket: &Path) -> Result<(), String> {
        // A driver may serve all on the socket by which it registers.
        let endpoint = if info.endpoint.is_empty() { socket } else { Path::new(&info.endpoint) };
        self.claims.welcome(&info.name, endpoint, &info.supported_versions)?;
        self.pods.wake_all();
        Ok(())
    }

    async fn welcome_driver(&self, name: &str, socket: &Path) -> Result<(), String> {
        let (driver, info) = Driver::meet(name, socket).await.map_err(|e| e.message().to_owned())?;
        self.tell_of_driver(name, &info).await.map_err(|e| e.to_string())?;
        self.csi.known.lock().insert(name.to_owned(), Arc::new(driver));
        tracing::info!(driver = name, node = info.node_id, "a storage driver is registered");
        self.pods.wake_all();
        Ok(())
    }

    /// What the cluster needs to know: the node's name for the driver, its limits and where its volumes can be.
    async fn tell_of_driver(&self, name: &str, info: &NodeGetInfoResponse) -> Result<(), Error> {
        let node = &self.config.node_name;
        let nodes = self.config.client.cluster::<Node>();
        let segments = info.accessible_topology.clone().unwrap_or_default().segments;
        let current = nodes.get(node).await?;
        let mut ids = node_ids(&current);
        ids[name] = info.node_id.clone().into();
        let patch = json!({"metadata": {"annotations": {NODE_ID: ids.to_string()}, "labels": segments}});
        nodes.patch(node, None, PatchType::Merge, &patch).await?;
        let mut keys: Vec<&String> = segments.keys().collect();
        keys.sort();
        let mut driver = json!({"name": name, "nodeID": info.node_id, "topologyKeys": keys});
        if info.max_volumes_per_node > 0 {
            driver["allocatable"] = json!({"count": info.max_volumes_per_node});
        }
        let uid = current.metadata.uid.unwrap_or_default();
        self.change_csi_node(&uid, |drivers| {
            drivers.retain(|d| d["name"] != name);
            drivers.push(driver.clone());
        })
        .await
    }

    async fn change_csi_node(&self, node_uid: &str, change: impl Fn(&mut Vec<Value>)) -> Result<(), Error> {
        let name = &self.config.node_name;
        let api = self.config.client.cluster::<CSINode>();
        let present = api.get_opt(name).await?;
        let mut object = match &present {
            Some(found) => serde_json::to_value(found)?,
            None => json!({"metadata": {"name": name, "ownerReferences": [
                {"apiVersion": "v1", "kind": "Node", "name": name, "uid": node_uid}]}, "spec": {"drivers": []}}),
        };
        let mut drivers = object["spec"]["drivers"].as_array().cloned().unwrap_or_default();
        change(&mut drivers);
        object["spec"]["drivers"] = drivers.into();
        let wanted: CSINode = serde_json::from_value(object)?;
        match present {
            None => drop(api.create(&wanted).await?),
            Some(found) if found.spec == wanted.spec => {}
            Some(_) => drop(api.replace(name, &wanted).await?),
        }
        Ok(())
    }

    /// A driver that is gone; its volumes stay where they are until it is back.
    async fn dismiss_driver(&self, name: &str) {
        self.csi.known.lock().remove(name);
        let uid = self.node_uid.lock().clone();
        if let Err(error) = self.change_csi_node(&uid, |drivers| drivers.retain(|d| d["name"] != name)).await {
            tracing::warn!(driver = name, %error, "the cluster does not know that a storage driver is gone");
        }
        tracing::info!(driver = name, "a storage driver is gone");
    }
}

/// What drivers call the node.
fn node_ids(node: &Node) -> Value {
    let text = node.metadata.annotations.as_ref().and_then(|a| a.get(NODE_ID));
    text.and_then(|text| serde_json::from_str(text).ok()).filter(Value::is_object).unwrap_or_else(|| json!({}))
}
