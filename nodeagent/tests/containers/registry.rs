//! How drivers of the tests' own make themselves known to the agent: a socket in its directory that says where they are.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use keelson_proto::plugin_registration::registration_server::{Registration, RegistrationServer};
use keelson_proto::plugin_registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};
use parking_lot::Mutex;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tonic::{Request, Response, Status};

/// What a driver says of itself.
#[derive(Clone)]
pub struct Entry {
    pub kind: &'static str,
    pub name: &'static str,
    pub endpoint: PathBuf,
    pub version: &'static str,
}

/// A driver that is known, until this is dropped.
pub struct Registered {
    told: Arc<Mutex<Option<bool>>>,
    serving: [JoinHandle<()>; 2],
    socket: PathBuf,
}

struct Service {
    entry: Entry,
    told: Arc<Mutex<Option<bool>>>,
}

#[tonic::async_trait]
impl Registration for Service {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: self.entry.kind.into(),
            name: self.entry.name.into(),
            endpoint: self.entry.endpoint.display().to_string(),
            supported_versions: vec![self.entry.version.into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        told: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        *self.told.lock() = Some(told.into_inner().plugin_registered);
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

impl Registered {
    /// Makes a driver, which is served already, known to the agent of a data directory.
    pub fn start(data: &Path, entry: Entry, driver: JoinHandle<()>) -> Self {
        let registry = data.join("plugins_registry");
        std::fs::create_dir_all(&registry).unwrap();
        let socket = registry.join(format!("{}-reg.sock", entry.name));
        let told = Arc::<Mutex<Option<bool>>>::default();
        let service = RegistrationServer::new(Service { entry, told: told.clone() });
        let registration = serve(&socket, tonic::transport::Server::builder().add_service(service));
        Self { told, serving: [driver, registration], socket }
    }

    /// Whether the agent took it, once it has said so.
    pub fn told(&self) -> Option<bool> {
        *self.told.lock()
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.serving.iter().for_each(JoinHandle::abort);
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Serves at a socket.
pub fn serve(path: &Path, router: tonic::transport::server::Router) -> JoinHandle<()> {
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).unwrap();
    let incoming = futures::stream::unfold(listener, |listener| async {
        Some((listener.accept().await.map(|(stream, _)| stream), listener))
    });
    tokio::spawn(async move { router.serve_with_incoming(incoming).await.unwrap() })
}
