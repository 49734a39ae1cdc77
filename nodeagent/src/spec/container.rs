//! The configuration of one container.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use keelson_proto::cri;
use sha2::{Digest, Sha256};

use super::{SpecError, env, pages, pod, resources, security, text};
use crate::cri::{CONTAINER_HASH, CONTAINER_NAME};

/// Annotation: the container's grace, so that it is known after the pod is gone.
pub const GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";

/// What a container's configuration is put together from.
pub struct Parts<'a> {
    /// How many runs there were before.
    pub attempt: u32,
    /// Its variables.
    pub variables: Vec<cri::KeyValue>,
    /// Its mounts.
    pub mounts: Vec<cri::Mount>,
    /// Its devices.
    pub devices: Vec<cri::Device>,
    /// Its image, as the runtime knows it.
    pub image: &'a cri::Image,
    /// The container whose processes it sees.
    pub target: Option<&'a str>,
    /// The node's memory.
    pub memory: &'a pages::Site,
    /// The first id of the pod's own user namespace, if it has one.
    pub ids: Option<u32>,
}

/// Changes when a running container must be replaced.
pub fn hash(container: &Container) -> String {
    let what = format!("{}\0{}", container.name, container.image.as_deref().unwrap_or_default());
    Sha256::digest(what)[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The configuration.
pub fn config(of: &Pod, container: &Container, parts: Parts<'_>) -> Result<cri::ContainerConfig, SpecError> {
    let known: BTreeMap<String, String> = parts.variables.iter().map(|v| (v.key.clone(), v.value.clone())).collect();
    let all = |list: &Option<Vec<String>>| list.iter().flatten().map(|a| env::expand(a, &known)).collect();
    let mut labels = pod::labels(of);
    labels.insert(CONTAINER_NAME.into(), container.name.clone());
    let annotations = [(CONTAINER_HASH.to_owned(), hash(container)), (GRACE.to_owned(), pod::grace(of).to_string())];
    let mut linux = resources::container(of, container, parts.memory.memory);
    pages::limit(of, container, parts.memory, &mut linux);
    Ok(cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: container.name.clone(), attempt: parts.attempt }),
        image: Some(cri::ImageSpec { image: parts.image.id.clone(), ..Default::default() }),
        command: all(&container.command),
        args: all(&container.args),
        working_dir: text(container.working_dir.as_ref()),
        mounts: parts.mounts,
        devices: parts.devices,
        labels,
        annotations: annotations.into(),
        log_path: format!("{}/{}.log", container.name, parts.attempt),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        tty: container.tty == Some(true),
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(linux),
            security_context: Some(security::container(of, container, parts.image, parts.target, parts.ids)?),
        }),
        envs: parts.variables,
        cdi_devices: Vec::new(),
    })
}
