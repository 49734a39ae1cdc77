//! A storage driver of the test's own: volumes in memory, staged once for the node, and a device that is all zeros.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keelson_proto::csi::node_server::{Node, NodeServer};
use keelson_proto::csi::*;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use parking_lot::Mutex;
use tonic::{Request, Response, Status};

use crate::registry::{Entry, Registered, serve};

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
    /// Where something is mounted.
    mounted: BTreeSet<PathBuf>,
}

/// A running driver.
pub struct Driver {
    pub seen: Arc<Mutex<Seen>>,
    /// What the agent said of it.
    pub registered: Registered,
}

impl Drop for Driver {
    fn drop(&mut self) {
        for path in std::mem::take(&mut self.seen.lock().mounted).iter().rev() {
            let _ = umount2(path, MntFlags::MNT_DETACH);
        }
    }
}

#[derive(Clone)]
struct Service {
    seen: Arc<Mutex<Seen>>,
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

impl Driver {
    /// Starts it and makes it known to the agent of a data directory.
    pub fn start(dir: &Path, data: &Path) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let endpoint = dir.join("driver.sock");
        let node = NodeServer::new(Service { seen: seen.clone() });
        let serving = serve(&endpoint, tonic::transport::Server::builder().add_service(node));
        let entry = Entry { kind: "CSIPlugin", name: NAME, endpoint, version: "1.0.0" };
        Self { seen, registered: Registered::start(data, entry, serving) }
    }
}
