//! A storage driver of the test's own: volumes in memory, staged once for the node, and a device that is all zeros.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keelson_proto::csi::node_server::{Node, NodeServer};
use keelson_proto::csi::*;
use keelson_proto::plugin_registration::registration_server::{Registration, RegistrationServer};
use keelson_proto::plugin_registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use parking_lot::Mutex;
use tokio::net::UnixListener;
use tonic::{Request, Response, Status};

/// The driver's name.
pub const NAME: &str = "memory.test";
/// The capability of staging.
const STAGE: i32 = 1;

/// What the driver was asked, and what it holds.
#[derive(Default)]
pub struct Seen {
    /// Each call with its volume.
    pub calls: Vec<String>,
    /// What the last publication was told.
    pub context: std::collections::HashMap<String, String>,
    /// Whether the agent took it.
    pub registered: bool,
    /// Where something is mounted.
    mounted: BTreeSet<PathBuf>,
}

/// A running driver.
pub struct Driver {
    pub seen: Arc<Mutex<Seen>>,
    serving: Vec<tokio::task::JoinHandle<()>>,
    socket: PathBuf,
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.serving.iter().for_each(tokio::task::JoinHandle::abort);
        let _ = std::fs::remove_file(&self.socket);
        for path in std::mem::take(&mut self.seen.lock().mounted).iter().rev() {
            let _ = umount2(path, MntFlags::MNT_DETACH);
        }
    }
}

#[derive(Clone)]
struct Service {
    seen: Arc<Mutex<Seen>>,
    endpoint: PathBuf,
}

type Answer<T> = Result<Response<T>, Status>;

impl Service {
    fn note(&self, call: &str, volume: &str) {
        self.seen.lock().calls.push(format!("{call} {volume}"));
    }

    fn mount(&self, from: &str, to: &Path, kind: Option<&str>, flags: MsFlags) -> Result<(), Status> {
        if self.seen.lock().mounted.insert(to.to_owned()) {
            mount(Some(from), to, kind, flags, None::<&str>).map_err(|e| Status::internal(e.to_string()))?;
        }
        Ok(())
    }

    fn unmount(&self, path: &Path) -> Result<(), Status> {
        if self.seen.lock().mounted.remove(path) {
            umount2(path, MntFlags::empty()).map_err(|e| Status::internal(e.to_string()))?;
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl Registration for Service {
    async fn get_info(&self, _: Request<InfoRequest>) -> Answer<PluginInfo> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".into(),
            name: NAME.into(),
            endpoint: self.endpoint.display().to_string(),
            supported_versions: vec!["1.0.0".into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        told: Request<RegistrationStatus>,
    ) -> Answer<RegistrationStatusResponse> {
        self.seen.lock().registered = told.into_inner().plugin_registered;
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

#[tonic::async_trait]
impl Node for Service {
    async fn node_stage_volume(&self, r: Request<NodeStageVolumeRequest>) -> Answer<NodeStageVolumeResponse> {
        let r = r.into_inner();
        self.note("stage", &r.volume_id);
        let block = matches!(r.volume_capability.unwrap().access_type, Some(volume_capability::AccessType::Block(_)));
        if !block {
            self.mount("tmpfs", Path::new(&r.staging_target_path), Some("tmpfs"), MsFlags::empty())?;
        }
        Ok(Response::new(NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(&self, r: Request<NodeUnstageVolumeRequest>) -> Answer<NodeUnstageVolumeResponse> {
        let r = r.into_inner();
        self.note("unstage", &r.volume_id);
        self.unmount(Path::new(&r.staging_target_path))?;
        Ok(Response::new(NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(&self, r: Request<NodePublishVolumeRequest>) -> Answer<NodePublishVolumeResponse> {
        let r = r.into_inner();
        self.note("publish", &r.volume_id);
        self.seen.lock().context = r.volume_context;
        let target = Path::new(&r.target_path);
        let block = matches!(r.volume_capability.unwrap().access_type, Some(volume_capability::AccessType::Block(_)));
        if block {
            std::fs::File::create(target)?;
            self.mount("/dev/zero", target, None, MsFlags::MS_BIND)?;
        } else if r.staging_target_path.is_empty() {
            std::fs::create_dir_all(target)?;
            self.mount("tmpfs", target, Some("tmpfs"), MsFlags::empty())?;
        } else {
            std::fs::create_dir_all(target)?;
            self.mount(&r.staging_target_path, target, None, MsFlags::MS_BIND)?;
        }
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        r: Request<NodeUnpublishVolumeRequest>,
    ) -> Answer<NodeUnpublishVolumeResponse> {
        let r = r.into_inner();
        self.note("unpublish", &r.volume_id);
        self.unmount(Path::new(&r.target_path))?;
        Ok(Response::new(NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Answer<NodeGetCapabilitiesResponse> {
        let rpc = node_service_capability::Type::Rpc(NodeRpc { r#type: STAGE });
        let capabilities = vec![NodeServiceCapability { r#type: Some(rpc) }];
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(&self, _: Request<NodeGetInfoRequest>) -> Answer<NodeGetInfoResponse> {
        let segments = [("memory.test/node".to_owned(), "n".to_owned())].into();
        Ok(Response::new(NodeGetInfoResponse {
            node_id: "node-of-test".into(),
            max_volumes_per_node: 7,
            accessible_topology: Some(Topology { segments }),
        }))
    }
}

/// Serves at a socket.
pub fn serve(path: &Path, router: tonic::transport::server::Router) -> tokio::task::JoinHandle<()> {
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).unwrap();
    let incoming = futures::stream::unfold(listener, |listener| async {
        Some((listener.accept().await.map(|(stream, _)| stream), listener))
    });
    tokio::spawn(async move { router.serve_with_incoming(incoming).await.unwrap() })
}

impl Driver {
    /// Starts it and makes it known to the agent of a data directory.
    pub fn start(dir: &Path, data: &Path) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let endpoint = dir.join("driver.sock");
        let registry = data.join("plugins_registry");
        std::fs::create_dir_all(&registry).unwrap();
        let socket = registry.join("memory.test-reg.sock");
        let service = Service { seen: seen.clone(), endpoint: endpoint.clone() };
        let node = tonic::transport::Server::builder().add_service(NodeServer::new(service.clone()));
        let registration = tonic::transport::Server::builder().add_service(RegistrationServer::new(service));
        let serving = vec![serve(&endpoint, node), serve(&socket, registration)];
        Self { seen, serving, socket }
    }
}
