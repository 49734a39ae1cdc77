//! The sandbox of a pod.

use std::path::Path;

use k8s_openapi::api::core::v1::Pod;
use keelson_proto::cri;

use super::{SpecError, dns, pod, resources, security, text};

/// What the sandbox's configuration depends on beside the pod.
pub struct Site<'a> {
    /// The directory of the pod's logs.
    pub logs: &'a Path,
    /// How many sandboxes the pod had before.
    pub attempt: u32,
    /// The resolver configuration.
    pub dns: cri::DnsConfig,
    /// The cluster's domain.
    pub domain: &'a str,
    /// The control group for the pod's containers.
    pub cgroup: String,
    /// The first id of the pod's own user namespace, if it has one.
    pub ids: Option<u32>,
}

/// The configuration of the pod's sandbox.
pub fn config(of: &Pod, site: Site<'_>) -> Result<cri::PodSandboxConfig, SpecError> {
    let (meta, spec) = (&of.metadata, pod::spec(of));
    let host_network = spec.host_network == Some(true);
    let (hostname, _) = dns::names(of, site.domain)?;
    let ports = pod::all(of).flat_map(|(_, c)| c.ports.iter().flatten());
    let port_mappings = ports.filter(|p| p.host_port.unwrap_or(0) > 0 && !host_network).map(|p| cri::PortMapping {
        protocol: cri::Protocol::from_str_name(p.protocol.as_deref().unwrap_or("TCP")).unwrap_or_default().into(),
        container_port: p.container_port,
        host_port: p.host_port.unwrap_or_default(),
        host_ip: text(p.host_ip.as_ref()),
    });
    let sysctls = spec.security_context.as_ref().and_then(|s| s.sysctls.clone()).unwrap_or_default();
    Ok(cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: text(meta.name.as_ref()),
            uid: text(meta.uid.as_ref()),
            namespace: text(meta.namespace.as_ref()),
            attempt: site.attempt,
        }),
        hostname: if host_network { String::new() } else { hostname },
        log_directory: site.logs.to_string_lossy().into_owned(),
        dns_config: Some(site.dns),
        port_mappings: port_mappings.collect(),
        labels: pod::labels(of),
        annotations: meta.annotations.clone().unwrap_or_default().into_iter().collect(),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: site.cgroup,
            security_context: Some(security::sandbox(of, site.ids)),
            sysctls: sysctls.into_iter().map(|s| (s.name, s.value)).collect(),
            overhead: spec.overhead.as_ref().map(resources::overhead),
            resources: Some(resources::sandbox(of)),
        }),
    })
}
