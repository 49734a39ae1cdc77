//! The container runtime, through CRI on its Unix socket.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use keelson_proto::cri::image_service_client::ImageServiceClient;
use keelson_proto::cri::runtime_service_client::RuntimeServiceClient;
use keelson_proto::cri::{self, ContainerStatus, PodSandbox};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

/// Longest wait for a call that does not stop or pull anything.
const CALL_TIMEOUT: Duration = Duration::from_secs(120);

/// Label of sandboxes and containers: the pod's name.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
/// Label: the pod's namespace.
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Label: the pod's uid.
pub const POD_UID: &str = "io.kubernetes.pod.uid";
/// Label: the container's name.
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";

/// A connection to the runtime; cheap to clone, connects again by itself.
#[derive(Clone)]
pub struct Runtime {
    /// Pods and containers.
    pub pods: RuntimeServiceClient<Channel>,
    /// Images.
    pub images: ImageServiceClient<Channel>,
}

/// What runs of one pod.
#[derive(Clone, Debug, Default)]
pub struct Running {
    /// Its sandboxes, newest first.
    pub sandboxes: Vec<PodSandbox>,
    /// Its containers with their statuses, newest first.
    pub containers: Vec<ContainerStatus>,
}

impl Runtime {
    /// A client of the runtime at `socket`; it connects with the first call.
    pub fn new(socket: &Path) -> Result<Self, tonic::transport::Error> {
        let socket: PathBuf = socket.into();
        let endpoint = Endpoint::try_from("http://runtime.invalid")?.timeout(CALL_TIMEOUT);
        let channel = endpoint.connect_with_connector_lazy(tower::service_fn(move |_: http::Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
        }));
        Ok(Self { pods: RuntimeServiceClient::new(channel.clone()), images: ImageServiceClient::new(channel) })
    }

    /// Name and version, as `containerRuntimeVersion` has it.
    pub async fn version(&self) -> Result<String, tonic::Status> {
        let version = self.pods.clone().version(cri::VersionRequest { version: "v1".into() }).await?.into_inner();
        Ok(format!("{}://{}", version.runtime_name, version.runtime_version))
    }

    /// Why the runtime cannot run pods; `None` if it can.
    pub async fn not_ready(&self) -> Option<String> {
        let answer = match self.pods.clone().status(cri::StatusRequest { verbose: false }).await {
            Ok(answer) => answer.into_inner(),
            Err(e) => return Some(format!("container runtime is down: {}", e.message())),
        };
        let conditions = answer.status.unwrap_or_default().conditions;
        for kind in ["RuntimeReady", "NetworkReady"] {
            match conditions.iter().find(|c| c.r#type == kind) {
                Some(c) if c.status => {}
                Some(c) => {
                    return Some(format!("container runtime: {kind}=false reason:{} message:{}", c.reason, c.message));
                }
                None => return Some(format!("container runtime does not report {kind}")),
            }
        }
        None
    }

    /// All that runs of any pod, by pod uid.
    pub async fn running(&self) -> Result<HashMap<String, Running>, tonic::Status> {
        let mut pods: HashMap<String, Running> = HashMap::new();
        let mut client = self.pods.clone();
        let sandboxes = client.list_pod_sandbox(cri::ListPodSandboxRequest { filter: None }).await?.into_inner().items;
        for sandbox in sandboxes {
            if let Some(uid) = sandbox.labels.get(POD_UID) {
                pods.entry(uid.clone()).or_default().sandboxes.push(sandbox);
            }
        }
        let containers = client.list_containers(cri::ListContainersRequest { filter: None }).await?.into_inner();
        for container in containers.containers {
            let Some(uid) = container.labels.get(POD_UID) else { continue };
            let request = cri::ContainerStatusRequest { container_id: container.id.clone(), verbose: false };
            match client.container_status(request).await {
                Ok(answer) => {
                    let status = answer.into_inner().status.unwrap_or_default();
                    pods.entry(uid.clone()).or_default().containers.push(status);
                }
                Err(e) if e.code() == tonic::Code::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        for pod in pods.values_mut() {
            pod.sandboxes.sort_by_key(|s| std::cmp::Reverse(s.created_at));
            pod.containers.sort_by_key(|c| std::cmp::Reverse(c.created_at));
        }
        Ok(pods)
    }

    /// The containers that bear these labels, newest first.
    pub async fn containers(&self, labels: HashMap<String, String>) -> Result<Vec<cri::Container>, tonic::Status> {
        let filter = Some(cri::ContainerFilter { label_selector: labels, ..Default::default() });
        let answer = self.pods.clone().list_containers(cri::ListContainersRequest { filter }).await?;
        let mut containers = answer.into_inner().containers;
        containers.sort_by_key(|c| std::cmp::Reverse(c.created_at));
        Ok(containers)
    }

    /// The sandboxes that bear these labels, newest first.
    pub async fn sandboxes(&self, labels: HashMap<String, String>) -> Result<Vec<PodSandbox>, tonic::Status> {
        let filter = Some(cri::PodSandboxFilter { label_selector: labels, ..Default::default() });
        let answer = self.pods.clone().list_pod_sandbox(cri::ListPodSandboxRequest { filter }).await?;
        let mut sandboxes = answer.into_inner().items;
        sandboxes.sort_by_key(|s| std::cmp::Reverse(s.created_at));
        Ok(sandboxes)
    }

    /// The status of one container.
    pub async fn container(&self, id: &str) -> Result<ContainerStatus, tonic::Status> {
        let request = cri::ContainerStatusRequest { container_id: id.into(), verbose: false };
        Ok(self.pods.clone().container_status(request).await?.into_inner().status.unwrap_or_default())
    }

    /// The pod addresses of a sandbox.
    pub async fn addresses(&self, sandbox: &str) -> Result<Vec<String>, tonic::Status> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: sandbox.into(), verbose: false };
        let status = self.pods.clone().pod_sandbox_status(request).await?.into_inner().status.unwrap_or_default();
        let network = status.network.unwrap_or_default();
        let more = network.additional_ips.into_iter().map(|i| i.ip);
        Ok(std::iter::once(network.ip).chain(more).filter(|ip| !ip.is_empty()).collect())
    }

    /// Whether the image is here.
    pub async fn has_image(&self, image: &str) -> Result<bool, tonic::Status> {
        let image = Some(cri::ImageSpec { image: image.into(), ..Default::default() });
        let request = cri::ImageStatusRequest { image, verbose: false };
        Ok(self.images.clone().image_status(request).await?.into_inner().image.is_some())
    }

    /// Fetches an image.
    pub async fn pull(&self, image: &str) -> Result<(), tonic::Status> {
        let image = Some(cri::ImageSpec { image: image.into(), ..Default::default() });
        self.images.clone().pull_image(cri::PullImageRequest { image, auth: None, sandbox_config: None }).await?;
        Ok(())
    }

    /// Stops a container: its stop signal, then after `grace` seconds the end.
    pub async fn stop(&self, container: &str, grace: i64) -> Result<(), tonic::Status> {
        let mut request =
            tonic::Request::new(cri::StopContainerRequest { container_id: container.into(), timeout: grace });
        request.set_timeout(CALL_TIMEOUT);
        self.pods.clone().stop_container(request).await?;
        Ok(())
    }

    /// Stops and removes all that is left of a pod.
    pub async fn remove(&self, running: &Running) -> Result<(), tonic::Status> {
        let mut client = self.pods.clone();
        for sandbox in &running.sandboxes {
            let pod_sandbox_id = sandbox.id.clone();
            client.stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() }).await?;
            client.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id }).await?;
        }
        Ok(())
    }
}
