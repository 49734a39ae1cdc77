//! The container runtime, through CRI on its Unix socket.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::{NodeRuntimeHandler, NodeRuntimeHandlerFeatures};
use keelson_proto::containerd_events::events_client::EventsClient;
use keelson_proto::cri::image_service_client::ImageServiceClient;
use keelson_proto::cri::runtime_service_client::RuntimeServiceClient;
use keelson_proto::cri::{self, ContainerState, ContainerStatus, PodSandbox, PodSandboxState};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

/// Longest wait for a call that does not stop or pull anything.
const CALL_TIMEOUT: Duration = Duration::from_secs(120);

/// Longest wait for an image.
const PULL_TIMEOUT: Duration = Duration::from_secs(3600);

/// Label of sandboxes and containers: the pod's name.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
/// Label: the pod's namespace.
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Label: the pod's uid.
pub const POD_UID: &str = "io.kubernetes.pod.uid";
/// Label: the container's name.
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// Annotation of containers: a hash of what cannot be changed without a new container.
pub const CONTAINER_HASH: &str = "io.kubernetes.container.hash";

/// A connection to the runtime; cheap to clone, connects again by itself.
#[derive(Clone)]
pub struct Runtime {
    /// Pods and containers.
    pub pods: RuntimeServiceClient<Channel>,
    /// containerd's own events.
    pub events: EventsClient<Channel>,
    /// Images.
    pub images: ImageServiceClient<Channel>,
}

/// One run of a container.
#[derive(Clone, Debug)]
pub struct Run {
    /// The sandbox it belongs to.
    pub sandbox: String,
    /// What the runtime says of it.
    pub status: ContainerStatus,
}

impl std::ops::Deref for Run {
    type Target = ContainerStatus;
    fn deref(&self) -> &ContainerStatus {
        &self.status
    }
}

/// What runs of one pod.
#[derive(Clone, Debug, Default)]
pub struct Running {
    /// Its sandboxes, newest first.
    pub sandboxes: Vec<PodSandbox>,
    /// Its containers' runs, newest first.
    pub containers: Vec<Run>,
}

impl Running {
    /// The newest sandbox, if it is up.
    pub fn sandbox(&self) -> Option<&PodSandbox> {
        self.sandboxes.first().filter(|s| s.state() == PodSandboxState::SandboxReady)
    }

    /// The containers that run now.
    pub fn up(&self) -> impl Iterator<Item = &Run> {
        self.containers.iter().filter(|c| c.state() == ContainerState::ContainerRunning)
    }

    /// Ids of all that there is with their states, in order: what the safety net compares.
    pub fn fingerprint(&self) -> Fingerprint {
        let sandboxes = self.sandboxes.iter().map(|s| (s.id.clone(), s.state));
        sandboxes.chain(self.containers.iter().map(|c| (c.id.clone(), c.state))).collect()
    }
}

/// Ids of a pod's sandboxes and containers with their states.
pub type Fingerprint = BTreeSet<(String, i32)>;

/// What a runtime can do beyond what all can.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    /// The runtime's name.
    pub runtime: String,
    /// All handlers, as nodes report them.
    pub handlers: Vec<NodeRuntimeHandler>,
    /// Handlers whose pods can have a user namespace of their own.
    pub user_namespaces: BTreeSet<String>,
    /// Handlers whose mounts can be read-only with all that is mounted below them.
    pub recursive_read_only: BTreeSet<String>,
    /// Whether groups of the image can be left out.
    pub groups_policy: bool,
    /// Whether images can be mounted.
    pub image_volumes: ImageVolumes,
    /// What it does with names of devices.
    pub devices: Devices,
}

impl Default for Features {
    fn default() -> Self {
        Self {
            // What nodes have that have not answered yet.
            runtime: "containerd".into(),
            handlers: Vec::new(),
            user_namespaces: BTreeSet::new(),
            recursive_read_only: BTreeSet::new(),
            groups_policy: false,
            image_volumes: ImageVolumes::None,
            devices: Devices::Unknown,
        }
    }
}

impl Features {
    fn of(answer: &cri::StatusResponse) -> Self {
        let with = |has: fn(&cri::RuntimeHandlerFeatures) -> bool| {
            let handlers = answer.runtime_handlers.iter().filter(|h| h.features.as_ref().is_some_and(has));
            handlers.map(|h| h.name.clone()).collect()
        };
        Self {
            handlers: handlers(&answer.runtime_handlers),
            user_namespaces: with(|f| f.user_namespaces),
            recursive_read_only: with(|f| f.recursive_read_only_mounts),
            groups_policy: answer.features.as_ref().is_some_and(|f| f.supplemental_groups_policy),
            ..Self::default()
        }
    }
}

/// Handlers as nodes report them, by name.
fn handlers(told: &[cri::RuntimeHandler]) -> Vec<NodeRuntimeHandler> {
    let one = |handler: &cri::RuntimeHandler| NodeRuntimeHandler {
        name: Some(handler.name.clone()),
        features: handler.features.as_ref().map(|f| NodeRuntimeHandlerFeatures {
            recursive_read_only_mounts: Some(f.recursive_read_only_mounts),
            user_namespaces: Some(f.user_namespaces),
        }),
    };
    let mut all: Vec<_> = told.iter().map(one).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

/// Name and first two numbers of a version, from `NAME://VERSION`.
fn parsed(version: &str) -> Option<(&str, (u32, u32))> {
    let (name, version) = version.split_once("://")?;
    let mut numbers =
        version.trim_start_matches('v').split(['.', '-', '~', '+']).map(|n| n.parse::<u32>().unwrap_or(0));
    Some((name, (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))))
}

/// How a runtime mounts images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ImageVolumes {
    /// Not at all.
    None,
    /// All of them: it would not look at a path within.
    Whole,
    /// Directories of them too.
    Parts,
}

/// How a runtime mounts images, by `NAME://VERSION`: it does not say so by itself.
pub fn mounts_images(version: &str) -> ImageVolumes {
    match parsed(version) {
        Some(("containerd", version)) if version >= (2, 2) => ImageVolumes::Parts,
        Some(("containerd", version)) if version >= (2, 1) => ImageVolumes::Whole,
        Some(("cri-o", version)) if version >= (1, 33) => ImageVolumes::Parts,
        _ => ImageVolumes::None,
    }
}

/// How a runtime treats the names of devices that a container is to have (CDI).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Devices {
    /// It takes them.
    Taken,
    /// It takes them if its configuration says so, which it does not tell.
    Perhaps,
    /// It does not know them.
    Unknown,
}

/// What a runtime does with names of devices, by `NAME://VERSION`.
pub fn takes_devices(version: &str) -> Devices {
    match parsed(version) {
        Some(("containerd", version)) if version < (1, 7) => Devices::Unknown,
        Some(("containerd", version)) if version < (2, 0) => Devices::Perhaps,
        Some(("cri-o", version)) if version < (1, 23) => Devices::Unknown,
        _ => Devices::Taken,
    }
}

impl Runtime {
    /// A client of the runtime at `socket`; it connects with the first call.
    pub fn new(socket: &Path) -> Result<Self, tonic::transport::Error> {
        let socket: PathBuf = socket.into();
        let endpoint = Endpoint::try_from("http://runtime.invalid")?;
        let channel = endpoint.connect_with_connector_lazy(tower::service_fn(move |_: http::Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
        }));
        Ok(Self {
            pods: RuntimeServiceClient::new(channel.clone()),
            events: EventsClient::new(channel.clone()),
            images: ImageServiceClient::new(channel),
        })
    }

    /// Name and version, as `containerRuntimeVersion` has it.
    pub async fn version(&self) -> Result<String, tonic::Status> {
        let version = self.pods.clone().version(cri::VersionRequest { version: "v1".into() }).await?.into_inner();
        Ok(format!("{}://{}", version.runtime_name, version.runtime_version))
    }

    /// Why the runtime cannot run pods, `None` if it can; and what it says that it can do.
    pub async fn status(&self) -> (Option<String>, Features) {
        match self.pods.clone().status(cri::StatusRequest { verbose: false }).await {
            Ok(answer) => {
                let answer = answer.into_inner();
                let features = Features::of(&answer);
                (Self::not_ready(answer), features)
            }
            Err(e) => (Some(format!("container runtime is down: {}", e.message())), Features::default()),
        }
    }

    fn not_ready(answer: cri::StatusResponse) -> Option<String> {
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

    /// Ids and states of all that the runtime has of any pod, by the pod's uid.
    pub async fn fingerprints(&self) -> Result<HashMap<String, Fingerprint>, tonic::Status> {
        let mut pods: HashMap<String, Fingerprint> = HashMap::new();
        let mut client = self.pods.clone();
        let sandboxes = client.list_pod_sandbox(cri::ListPodSandboxRequest { filter: None }).await?.into_inner().items;
        for mut sandbox in sandboxes {
            if let Some(uid) = sandbox.labels.remove(POD_UID) {
                pods.entry(uid).or_default().insert((sandbox.id, sandbox.state));
            }
        }
        let containers = client.list_containers(cri::ListContainersRequest { filter: None }).await?.into_inner();
        for mut container in containers.containers {
            if let Some(uid) = container.labels.remove(POD_UID) {
                pods.entry(uid).or_default().insert((container.id, container.state));
            }
        }
        Ok(pods)
    }

    /// What runs of one pod.
    pub async fn pod(&self, uid: &str) -> Result<Running, tonic::Status> {
        let labels = HashMap::from([(POD_UID.to_owned(), uid.to_owned())]);
        let (sandboxes, containers) = tokio::try_join!(self.sandboxes(labels.clone()), self.containers(labels))?;
        let statuses = containers.into_iter().map(async |container| match self.container(&container.id).await {
            Ok(status) => Ok(Some(Run { sandbox: container.pod_sandbox_id, status })),
            Err(e) if e.code() == tonic::Code::NotFound => Ok(None),
            Err(e) => Err(e),
        });
        let containers = futures::future::try_join_all(statuses).await?.into_iter().flatten().collect();
        Ok(Running { sandboxes, containers })
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

    /// What the runtime knows of an image.
    pub async fn image(&self, image: &str) -> Result<Option<cri::Image>, tonic::Status> {
        let image = Some(cri::ImageSpec { image: image.into(), ..Default::default() });
        let request = cri::ImageStatusRequest { image, verbose: false };
        Ok(self.images.clone().image_status(request).await?.into_inner().image)
    }

    /// Fetches an image. Large ones take long, so only the caller limits the time.
    pub async fn pull(&self, image: &str, auth: Option<cri::AuthConfig>) -> Result<(), tonic::Status> {
        let image = Some(cri::ImageSpec { image: image.into(), ..Default::default() });
        let mut request = tonic::Request::new(cri::PullImageRequest { image, auth, sandbox_config: None });
        request.set_timeout(PULL_TIMEOUT);
        self.images.clone().pull_image(request).await?;
        Ok(())
    }

    /// Runs a command in a container and returns its output and exit code.
    pub async fn exec(
        &self,
        container: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<cri::ExecSyncResponse, tonic::Status> {
        let seconds = i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX);
        let ask = cri::ExecSyncRequest { container_id: container.into(), cmd: command.to_vec(), timeout: seconds };
        let mut request = tonic::Request::new(ask);
        request.set_timeout(timeout + CALL_TIMEOUT);
        Ok(self.pods.clone().exec_sync(request).await?.into_inner())
    }

    /// Stops a container: its stop signal, then after `grace` seconds the end.
    pub async fn stop(&self, container: &str, grace: i64) -> Result<(), tonic::Status> {
        let mut request =
            tonic::Request::new(cri::StopContainerRequest { container_id: container.into(), timeout: grace });
        request.set_timeout(CALL_TIMEOUT + Duration::from_secs(grace.max(0).unsigned_abs()));
        match self.pods.clone().stop_container(request).await {
            Err(e) if e.code() == tonic::Code::NotFound => Ok(()),
            result => result.map(|_| ()),
        }
    }

    /// Removes an ended container.
    pub async fn remove_container(&self, id: &str) -> Result<(), tonic::Status> {
        let request = cri::RemoveContainerRequest { container_id: id.into() };
        self.pods.clone().remove_container(request).await?;
        Ok(())
    }

    /// Stops a sandbox: its network is given back, what is left of its containers is killed.
    pub async fn stop_sandbox(&self, id: &str) -> Result<(), tonic::Status> {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.into() };
        self.pods.clone().stop_pod_sandbox(request).await?;
        Ok(())
    }

    /// Removes a stopped sandbox and its containers.
    pub async fn remove_sandbox(&self, id: &str) -> Result<(), tonic::Status> {
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id.into() };
        self.pods.clone().remove_pod_sandbox(request).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runtimes_can_do() {
        for (version, can) in [
            ("containerd://1.6.20~ds1", ImageVolumes::None),
            ("containerd://2.0.5", ImageVolumes::None),
            ("containerd://2.1.0-rc.1", ImageVolumes::Whole),
            ("containerd://v2.2.0", ImageVolumes::Parts),
            ("cri-o://1.34.1", ImageVolumes::Parts),
            ("cri-o://1.30.0", ImageVolumes::None),
            ("other", ImageVolumes::None),
        ] {
            assert_eq!(mounts_images(version), can, "{version}");
        }
        for (version, devices) in [
            ("containerd://1.6.20~ds1", Devices::Unknown),
            ("containerd://1.7.24", Devices::Perhaps),
            ("containerd://v2.0.1", Devices::Taken),
            ("cri-o://1.34.1", Devices::Taken),
        ] {
            assert_eq!(takes_devices(version), devices, "{version}");
        }
        let features = cri::RuntimeHandlerFeatures { user_namespaces: true, recursive_read_only_mounts: false };
        let answer = cri::StatusResponse {
            runtime_handlers: vec![cri::RuntimeHandler { name: "runc".into(), features: Some(features) }],
            ..cri::StatusResponse::default()
        };
        let features = Features::of(&answer);
        assert!(features.user_namespaces.contains("runc") && features.recursive_read_only.is_empty());
        let told = features.handlers[0].features.as_ref().unwrap();
        assert_eq!((told.user_namespaces, told.recursive_read_only_mounts), (Some(true), Some(false)));
        assert_eq!(Features::of(&cri::StatusResponse::default()), Features::default());
    }
}
