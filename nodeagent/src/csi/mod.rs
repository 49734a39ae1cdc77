//! Storage drivers (CSI): who they are and how they are called.
//!
//! Invariant: what was published for a pod is written down in the pod's directory before the driver is asked, so that it
//! can be given back whoever asks and whenever.

pub mod registration;
pub mod volume;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use keelson_proto::csi::node_client::NodeClient;
use keelson_proto::csi::{
    NodeGetCapabilitiesRequest, NodeGetInfoRequest, NodeGetInfoResponse, node_service_capability,
};
use parking_lot::Mutex;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

/// Longest wait for a driver's answer (upstream: 2 minutes).
const PATIENCE: Duration = Duration::from_secs(120);
/// What a driver can do beyond publishing: that a volume is made ready once for the node.
const STAGE: i32 = 1;

/// A driver that is registered.
pub struct Driver {
    /// Its name.
    pub name: String,
    client: NodeClient<Channel>,
    /// Whether volumes are made ready once for the node.
    stages: bool,
    /// One call about volumes at a time: what is staged for one pod must not be unstaged for another.
    turn: tokio::sync::Mutex<()>,
}

/// A channel to a plugin's socket.
pub(crate) fn channel(socket: &Path) -> Result<Channel, tonic::transport::Error> {
    let socket: PathBuf = socket.into();
    let endpoint = Endpoint::try_from("http://plugin.invalid")?.timeout(PATIENCE);
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_: http::Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
    })))
}

impl Driver {
    /// Gets to know the driver behind a socket.
    async fn meet(name: &str, socket: &Path) -> Result<(Self, NodeGetInfoResponse), tonic::Status> {
        let channel = channel(socket).map_err(|e| tonic::Status::unavailable(e.to_string()))?;
        let mut client = NodeClient::new(channel);
        let info = client.node_get_info(NodeGetInfoRequest {}).await?.into_inner();
        let capabilities = client.node_get_capabilities(NodeGetCapabilitiesRequest {}).await?.into_inner().capabilities;
        let rpcs = capabilities.into_iter().filter_map(|c| c.r#type);
        let stages = rpcs.into_iter().any(|node_service_capability::Type::Rpc(rpc)| rpc.r#type == STAGE);
        Ok((Self { name: name.into(), client, stages, turn: tokio::sync::Mutex::default() }, info))
    }
}

/// The drivers of this node.
pub struct Drivers {
    known: Mutex<HashMap<String, Arc<Driver>>>,
    /// The agent's directory.
    root: PathBuf,
}

impl Drivers {
    /// None yet; `root` is the agent's directory.
    pub fn new(root: &Path) -> Self {
        Self { known: Mutex::default(), root: root.to_owned() }
    }

    /// The driver of a name.
    fn get(&self, name: &str) -> Option<Arc<Driver>> {
        self.known.lock().get(name).cloned()
    }

    /// What each volume that is in use is called in the node's status.
    pub fn in_use(&self) -> Vec<String> {
        let mut names: Vec<String> = volume::records(&self.root.join("pods"), None)
            .into_iter()
            .filter(|(_, record)| !record.ephemeral)
            .map(|(_, record)| format!("kubernetes.io/csi/{}^{}", record.driver, record.handle))
            .collect();
        names.sort();
        names.dedup();
        names
    }
}
