//! A device plugin of the test's own: its devices are names, and a container gets theirs in a variable.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use keelson_proto::deviceplugin::device_plugin_server::{DevicePlugin, DevicePluginServer};
use keelson_proto::deviceplugin::registration_client::RegistrationClient;
use keelson_proto::deviceplugin::*;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tonic::transport::Endpoint;
use tonic::{Request, Response, Status};

use crate::LOOKS;

/// The resource.
pub const RESOURCE: &str = "keelson.test/thing";
/// The socket's name in the agent's directory.
const SOCKET: &str = "thing.sock";

/// A running plugin.
pub struct Plugin {
    /// The devices and whether each is healthy.
    pub devices: watch::Sender<Vec<(&'static str, bool)>>,
    serving: tokio::task::JoinHandle<()>,
    dir: PathBuf,
}

impl Drop for Plugin {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

struct Service(watch::Receiver<Vec<(&'static str, bool)>>);

type Answer<T> = Result<Response<T>, Status>;

fn list(devices: &[(&'static str, bool)]) -> ListAndWatchResponse {
    let device = |(id, healthy): &(&'static str, bool)| Device {
        id: (*id).into(),
        health: if *healthy { "Healthy" } else { "Unhealthy" }.into(),
        topology: None,
    };
    ListAndWatchResponse { devices: devices.iter().map(device).collect() }
}

#[tonic::async_trait]
impl DevicePlugin for Service {
    type ListAndWatchStream = BoxStream<'static, Result<ListAndWatchResponse, Status>>;

    async fn get_device_plugin_options(&self, _: Request<Empty>) -> Answer<DevicePluginOptions> {
        Ok(Response::new(DevicePluginOptions { pre_start_required: true, get_preferred_allocation_available: true }))
    }

    async fn list_and_watch(&self, _: Request<Empty>) -> Answer<Self::ListAndWatchStream> {
        let mut devices = self.0.clone();
        devices.mark_changed();
        let lists = futures::stream::unfold(devices, |mut devices| async {
            devices.changed().await.ok()?;
            let now = list(&devices.borrow_and_update());
            Some((Ok(now), devices))
        });
        Ok(Response::new(lists.boxed()))
    }

    /// It would rather give the last ones.
    async fn get_preferred_allocation(
        &self,
        asked: Request<PreferredAllocationRequest>,
    ) -> Answer<PreferredAllocationResponse> {
        let liked = asked.into_inner().container_requests.into_iter().map(|one| {
            let mut ids = one.available_device_i_ds;
            ids.sort();
            let size = usize::try_from(one.allocation_size).unwrap();
            ContainerPreferredAllocationResponse { device_i_ds: ids.into_iter().rev().take(size).collect() }
        });
        Ok(Response::new(PreferredAllocationResponse { container_responses: liked.collect() }))
    }

    async fn allocate(&self, asked: Request<AllocateRequest>) -> Answer<AllocateResponse> {
        let one = |ids: Vec<String>| ContainerAllocateResponse {
            envs: [("THINGS".to_owned(), ids.join("+"))].into(),
            devices: vec![DeviceSpec {
                container_path: "/dev/thing".into(),
                host_path: "/dev/zero".into(),
                permissions: "r".into(),
            }],
            ..ContainerAllocateResponse::default()
        };
        let answers = asked.into_inner().container_requests.into_iter().map(|r| one(r.devices_ids));
        Ok(Response::new(AllocateResponse { container_responses: answers.collect() }))
    }

    async fn pre_start_container(&self, _: Request<PreStartContainerRequest>) -> Answer<PreStartContainerResponse> {
        Ok(Response::new(PreStartContainerResponse {}))
    }
}

impl Plugin {
    /// Starts it beside the agent of a data directory.
    pub async fn start(data: &Path, devices: &[(&'static str, bool)]) -> Self {
        let dir = data.join("device-plugins");
        std::fs::create_dir_all(&dir).unwrap();
        let (sender, receiver) = watch::channel(devices.to_vec());
        let listener = UnixListener::bind(dir.join(SOCKET)).unwrap();
        let incoming = futures::stream::unfold(listener, |listener| async {
            let accepted = listener.accept().await.map(|(stream, _)| stream);
            Some((accepted, listener))
        });
        let serving = tokio::spawn(async move {
            let server = tonic::transport::Server::builder().add_service(DevicePluginServer::new(Service(receiver)));
            server.serve_with_incoming(incoming).await.unwrap();
        });
        let plugin = Self { devices: sender, serving, dir };
        plugin.register().await;
        plugin
    }

    /// Makes itself known, as plugins do whenever the agent's socket is new.
    pub async fn register(&self) {
        for _ in 0..LOOKS {
            let socket = self.dir.join("kubelet.sock");
            let endpoint = Endpoint::try_from("http://agent.invalid").unwrap();
            let channel = endpoint.connect_with_connector_lazy(tower::service_fn(move |_: http::Uri| {
                let socket = socket.clone();
                async move { UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
            }));
            let asked = RegisterRequest {
                version: "v1beta1".into(),
                endpoint: SOCKET.into(),
                resource_name: RESOURCE.into(),
                options: Some(DevicePluginOptions {
                    pre_start_required: true,
                    get_preferred_allocation_available: true,
                }),
            };
            match RegistrationClient::new(channel).register(asked).await {
                Ok(_) => return,
                Err(status) if status.code() == tonic::Code::InvalidArgument => panic!("{status}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
        panic!("the agent takes no plugin");
    }
}
