//! From a pod's spec to what the runtime is asked for: sandbox, containers, environment and mounts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVar, Pod, Secret, SecurityContext, Volume};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use keelson_client::Client;
use keelson_proto::cri;

use crate::cri::{CONTAINER_NAME, POD_NAME, POD_NAMESPACE, POD_UID};

/// Why a container cannot be made from its spec.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The spec asks for what this agent does not do, or for what does not exist.
    #[error("{0}")]
    Spec(String),
    /// The API did not answer.
    #[error(transparent)]
    Api(#[from] keelson_client::Error),
    /// A file could not be written.
    #[error("volume: {0}")]
    File(#[from] std::io::Error),
}

fn text(value: Option<&String>) -> String {
    value.cloned().unwrap_or_default()
}

fn labels(pod: &Pod) -> std::collections::HashMap<String, String> {
    let meta = &pod.metadata;
    let ours = [(POD_NAME, &meta.name), (POD_NAMESPACE, &meta.namespace), (POD_UID, &meta.uid)];
    ours.into_iter().map(|(k, v)| (k.to_owned(), text(v.as_ref()))).collect()
}

fn namespaces(pod: &Pod) -> cri::NamespaceOption {
    let spec = pod.spec.clone().unwrap_or_default();
    let mode = |host: Option<bool>, other: cri::NamespaceMode| {
        if host == Some(true) { cri::NamespaceMode::Node.into() } else { other.into() }
    };
    cri::NamespaceOption {
        network: mode(spec.host_network, cri::NamespaceMode::Pod),
        pid: mode(spec.host_pid, cri::NamespaceMode::Container),
        ipc: mode(spec.host_ipc, cri::NamespaceMode::Pod),
        target_id: String::new(),
    }
}

/// The directory of a pod's logs: `NAMESPACE_NAME_UID` as kubelets have it.
pub fn log_directory(root: &Path, pod: &Pod) -> PathBuf {
    let meta = &pod.metadata;
    let parts = [&meta.namespace, &meta.name, &meta.uid].map(|p| text(p.as_ref()));
    root.join(parts.join("_"))
}

/// The sandbox of a pod. `dns` and `domain`: the cluster's name server, if there is one.
pub fn sandbox(pod: &Pod, logs: &Path, attempt: u32, dns: Option<&str>, domain: &str) -> cri::PodSandboxConfig {
    let meta = &pod.metadata;
    let spec = pod.spec.clone().unwrap_or_default();
    let host_network = spec.host_network == Some(true);
    let cluster_first = !matches!(spec.dns_policy.as_deref(), Some("Default" | "None")) && !host_network;
    let namespace = text(meta.namespace.as_ref());
    let dns_config = dns.filter(|_| cluster_first).map(|server| cri::DnsConfig {
        servers: vec![server.into()],
        searches: vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.into()],
        options: vec!["ndots:5".into()],
    });
    let ports = spec.containers.iter().flat_map(|c| c.ports.iter().flatten());
    let port_mappings = ports.filter(|p| p.host_port.unwrap_or(0) > 0 && !host_network).map(|p| cri::PortMapping {
        protocol: cri::Protocol::from_str_name(p.protocol.as_deref().unwrap_or("TCP")).unwrap_or_default().into(),
        container_port: p.container_port,
        host_port: p.host_port.unwrap_or_default(),
        host_ip: text(p.host_ip.as_ref()),
    });
    let privileged = |c: &Container| c.security_context.as_ref().is_some_and(|s| s.privileged == Some(true));
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: text(meta.name.as_ref()),
            uid: text(meta.uid.as_ref()),
            namespace,
            attempt,
        }),
        hostname: if host_network { String::new() } else { spec.hostname.clone().unwrap_or(text(meta.name.as_ref())) },
        log_directory: logs.to_string_lossy().into_owned(),
        dns_config,
        port_mappings: port_mappings.collect(),
        labels: labels(pod),
        annotations: Default::default(),
        linux: Some(cri::LinuxPodSandboxConfig {
            security_context: Some(cri::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(pod)),
                privileged: spec.containers.iter().any(privileged),
                ..Default::default()
            }),
            ..Default::default()
        }),
    }
}

/// What a field reference yields; `None` for fields that are not known.
pub fn field(pod: &Pod, path: &str, node: &str, host_ip: &str, pod_ip: &str) -> Option<String> {
    let key = |map: &Option<BTreeMap<String, String>>, prefix: &str| {
        let key = path.strip_prefix(prefix)?.strip_suffix("']")?;
        Some(map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default())
    };
    let account = || pod.spec.as_ref().and_then(|s| s.service_account_name.clone());
    Some(match path {
        "metadata.name" => text(pod.metadata.name.as_ref()),
        "metadata.namespace" => text(pod.metadata.namespace.as_ref()),
        "metadata.uid" => text(pod.metadata.uid.as_ref()),
        "spec.nodeName" => node.into(),
        "spec.serviceAccountName" => account().unwrap_or_default(),
        "status.hostIP" | "status.hostIPs" => host_ip.into(),
        "status.podIP" | "status.podIPs" => pod_ip.into(),
        _ => {
            return key(&pod.metadata.labels, "metadata.labels['")
                .or_else(|| key(&pod.metadata.annotations, "metadata.annotations['"));
        }
    })
}

/// Replaces `$(NAME)` by variables known so far; `$$(NAME)` stays as `$(NAME)`.
pub fn expand(text: &str, known: &[cri::KeyValue]) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let tail = &rest[at + 1..];
        if let Some(tail) = tail.strip_prefix('$') {
            out.push('$');
            rest = tail;
            continue;
        }
        let name = tail.strip_prefix('(').and_then(|t| t.split_once(')'));
        match name.map(|(name, after)| (known.iter().rev().find(|k| k.key == name), name, after)) {
            Some((Some(found), _, after)) => {
                out.push_str(&found.value);
                rest = after;
            }
            Some((None, name, after)) => {
                out.push_str(&format!("$({name})"));
                rest = after;
            }
            None => {
                out.push('$');
                rest = tail;
            }
        }
    }
    out + rest
}

/// Facts about where the pod runs.
pub struct Place<'a> {
    /// The node's client.
    pub client: &'a Client,
    /// The node's name.
    pub node: &'a str,
    /// The node's address.
    pub host_ip: &'a str,
    /// The pod's address.
    pub pod_ip: &'a str,
    /// The pod's directory.
    pub dir: &'a Path,
}

async fn variable(pod: &Pod, variable: &EnvVar, place: &Place<'_>) -> Result<Option<String>, ConfigError> {
    let Some(source) = &variable.value_from else { return Ok(Some(variable.value.clone().unwrap_or_default())) };
    let namespace = text(pod.metadata.namespace.as_ref());
    if let Some(reference) = &source.field_ref {
        let value = field(pod, &reference.field_path, place.node, place.host_ip, place.pod_ip);
        let unknown = || ConfigError::Spec(format!("field {:?} is not supported", reference.field_path));
        return value.map(Some).ok_or_else(unknown);
    }
    let (kind, name, key, optional, data) = if let Some(r) = &source.config_map_key_ref {
        ("configmap", &r.name, &r.key, r.optional, config_map(place.client, &namespace, &r.name).await?)
    } else if let Some(r) = &source.secret_key_ref {
        ("secret", &r.name, &r.key, r.optional, secret(place.client, &namespace, &r.name).await?)
    } else {
        return Err(ConfigError::Spec(format!("the source of variable {} is not supported", variable.name)));
    };
    match data.and_then(|d| d.get(key).map(|v| String::from_utf8_lossy(v).into_owned())) {
        Some(value) => Ok(Some(value)),
        None if optional == Some(true) => Ok(None),
        None => Err(ConfigError::Spec(format!("couldn't find key {key} in {kind} {namespace}/{name}"))),
    }
}

type Data = BTreeMap<String, Vec<u8>>;

async fn config_map(client: &Client, namespace: &str, name: &str) -> Result<Option<Data>, ConfigError> {
    let Some(map) = client.namespaced::<ConfigMap>(namespace).get_opt(name).await? else { return Ok(None) };
    let text = map.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.into_bytes()));
    Ok(Some(text.chain(map.binary_data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0))).collect()))
}

async fn secret(client: &Client, namespace: &str, name: &str) -> Result<Option<Data>, ConfigError> {
    let secret = client.namespaced::<Secret>(namespace).get_opt(name).await?;
    Ok(secret.map(|s| s.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0)).collect()))
}

async fn environment(pod: &Pod, spec: &Container, place: &Place<'_>) -> Result<Vec<cri::KeyValue>, ConfigError> {
    let mut known = Vec::new();
    let namespace = text(pod.metadata.namespace.as_ref());
    for source in spec.env_from.iter().flatten() {
        let (name, optional, data) = if let Some(r) = &source.config_map_ref {
            (&r.name, r.optional, config_map(place.client, &namespace, &r.name).await?)
        } else if let Some(r) = &source.secret_ref {
            (&r.name, r.optional, secret(place.client, &namespace, &r.name).await?)
        } else {
            continue;
        };
        if data.is_none() && optional != Some(true) {
            return Err(ConfigError::Spec(format!("{namespace}/{name} of envFrom not found")));
        }
        for (key, value) in data.unwrap_or_default() {
            let key = text(source.prefix.as_ref()) + &key;
            known.push(cri::KeyValue { key, value: String::from_utf8_lossy(&value).into_owned() });
        }
    }
    for wanted in spec.env.iter().flatten() {
        if let Some(value) = variable(pod, wanted, place).await? {
            let value = if wanted.value_from.is_none() { expand(&value, &known) } else { value };
            known.push(cri::KeyValue { key: wanted.name.clone(), value });
        }
    }
    Ok(known)
}

/// Makes the volume's directory and returns where it is; `None` for kinds that are mounted otherwise or left out.
async fn volume(pod: &Pod, volume: &Volume, place: &Place<'_>) -> Result<PathBuf, ConfigError> {
    let dir = place.dir.join("volumes").join(&volume.name);
    let namespace = text(pod.metadata.namespace.as_ref());
    if let Some(host) = &volume.host_path {
        if matches!(host.type_.as_deref(), Some("DirectoryOrCreate")) {
            std::fs::create_dir_all(&host.path)?;
        }
        return Ok(host.path.clone().into());
    }
    std::fs::create_dir_all(&dir)?;
    if volume.empty_dir.is_some() {
        return Ok(dir);
    }
    let missing = |kind: &str, name: &str| ConfigError::Spec(format!("{kind} {namespace}/{name} not found"));
    let mut files = Data::new();
    if let Some(source) = &volume.config_map {
        match config_map(place.client, &namespace, &source.name).await? {
            Some(data) => files = select(data, source.items.as_deref()),
            None if source.optional == Some(true) => {}
            None => return Err(missing("configmap", &source.name)),
        }
    } else if let Some(source) = &volume.secret {
        let name = text(source.secret_name.as_ref());
        match secret(place.client, &namespace, &name).await? {
            Some(data) => files = select(data, source.items.as_deref()),
            None if source.optional == Some(true) => {}
            None => return Err(missing("secret", &name)),
        }
    } else if let Some(source) = &volume.projected {
        for part in source.sources.iter().flatten() {
            if let Some(source) = &part.config_map {
                let data = config_map(place.client, &namespace, &source.name).await?;
                let data = data.ok_or_else(|| missing("configmap", &source.name))?;
                files.extend(select(data, source.items.as_deref()));
            } else if let Some(source) = &part.secret {
                let data = secret(place.client, &namespace, &source.name).await?;
                files.extend(select(data.ok_or_else(|| missing("secret", &source.name))?, source.items.as_deref()));
            } else if let Some(source) = &part.service_account_token {
                files.insert(source.path.clone(), token(pod, place, source.expiration_seconds).await?.into_bytes());
            } else if let Some(source) = &part.downward_api {
                for item in source.items.iter().flatten() {
                    let path = item.field_ref.as_ref().map(|f| f.field_path.as_str()).unwrap_or_default();
                    let value = field(pod, path, place.node, place.host_ip, place.pod_ip);
                    let value = value.ok_or_else(|| ConfigError::Spec(format!("field {path:?} is not supported")))?;
                    files.insert(item.path.clone(), value.into_bytes());
                }
            }
        }
    } else {
        return Err(ConfigError::Spec(format!("the kind of volume {} is not supported", volume.name)));
    }
    for (name, content) in files {
        let safe = Path::new(&name).components().all(|c| matches!(c, std::path::Component::Normal(_)));
        if !safe {
            return Err(ConfigError::Spec(format!("path {name:?} leaves its volume")));
        }
        let path = dir.join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(path, content)?;
    }
    Ok(dir)
}

fn select(mut data: Data, items: Option<&[k8s_openapi::api::core::v1::KeyToPath]>) -> Data {
    match items.filter(|i| !i.is_empty()) {
        Some(items) => items.iter().filter_map(|i| Some((i.path.clone(), data.remove(&i.key)?))).collect(),
        None => data,
    }
}

/// A token of the pod's service account, bound to the pod.
async fn token(pod: &Pod, place: &Place<'_>, seconds: Option<i64>) -> Result<String, ConfigError> {
    use k8s_openapi::api::core::v1::ServiceAccount;
    let account = pod.spec.as_ref().and_then(|s| s.service_account_name.clone()).unwrap_or("default".into());
    let api = place.client.namespaced::<ServiceAccount>(&text(pod.metadata.namespace.as_ref()));
    let request = serde_json::json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"audiences": [], "expirationSeconds": seconds.unwrap_or(3607), "boundObjectRef": {
            "apiVersion": "v1", "kind": "Pod", "name": pod.metadata.name, "uid": pod.metadata.uid}},
    });
    let answer: serde_json::Value = api.create_subresource(&account, "token", &request).await?;
    let token = answer["status"]["token"].as_str();
    Ok(token.ok_or_else(|| ConfigError::Spec("the answer to the token request has no token".into()))?.into())
}

fn quantity(quantity: &Quantity) -> Option<f64> {
    let text = quantity.0.as_str();
    let split = text.find(|c: char| !(c.is_ascii_digit() || ".+-".contains(c))).unwrap_or(text.len());
    let number: f64 = text[..split].parse().ok()?;
    let factor = match &text[split..] {
        "" => 1.0,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "Ki" => 1024.0,
        "Mi" => 1024f64.powi(2),
        "Gi" => 1024f64.powi(3),
        "Ti" => 1024f64.powi(4),
        _ => return None,
    };
    Some(number * factor)
}

/// CPU shares, quota and the memory limit.
pub fn resources(spec: &Container) -> cri::LinuxContainerResources {
    let wanted = spec.resources.clone().unwrap_or_default();
    let of = |map: &Option<BTreeMap<String, Quantity>>, name: &str| map.as_ref()?.get(name).and_then(quantity);
    let limit = of(&wanted.limits, "cpu");
    let request = of(&wanted.requests, "cpu").or(limit).unwrap_or(0.0);
    cri::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: limit.map_or(0, |cpu| ((cpu * 100_000.0) as i64).max(1000)),
        cpu_shares: ((request * 1024.0) as i64).max(2),
        memory_limit_in_bytes: of(&wanted.limits, "memory").map_or(0, |m| m as i64),
        ..Default::default()
    }
}

fn security(pod: &Pod, own: Option<&SecurityContext>) -> cri::LinuxContainerSecurityContext {
    let shared = pod.spec.as_ref().and_then(|s| s.security_context.clone()).unwrap_or_default();
    let own = own.cloned().unwrap_or_default();
    let id = |value: Option<i64>| value.map(|value| cri::Int64Value { value });
    let privileged = own.privileged == Some(true);
    let hidden =
        ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/sys/firmware"];
    let fixed = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
    let unless = |paths: &[&str]| if privileged { vec![] } else { paths.iter().map(|p| (*p).into()).collect() };
    cri::LinuxContainerSecurityContext {
        capabilities: own.capabilities.map(|c| cri::Capability {
            add_capabilities: c.add.unwrap_or_default(),
            drop_capabilities: c.drop.unwrap_or_default(),
        }),
        privileged,
        namespace_options: Some(namespaces(pod)),
        run_as_user: id(own.run_as_user.or(shared.run_as_user)),
        run_as_group: id(own.run_as_group.or(shared.run_as_group)),
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        supplemental_groups: shared.supplemental_groups.into_iter().flatten().chain(shared.fs_group).collect(),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: unless(&hidden),
        readonly_paths: unless(&fixed),
        ..Default::default()
    }
}

/// The configuration of one container.
pub async fn container(
    pod: &Pod,
    spec: &Container,
    attempt: u32,
    place: &Place<'_>,
) -> Result<cri::ContainerConfig, ConfigError> {
    let envs = environment(pod, spec, place).await?;
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    let mut mounts = Vec::new();
    for mount in spec.volume_mounts.iter().flatten() {
        let found = volumes.iter().find(|v| v.name == mount.name);
        let found = found.ok_or_else(|| ConfigError::Spec(format!("no volume is named {}", mount.name)))?;
        let mut path = volume(pod, found, place).await?;
        if let Some(sub) = &mount.sub_path {
            if !Path::new(sub).components().all(|c| matches!(c, std::path::Component::Normal(_))) {
                return Err(ConfigError::Spec(format!("subPath {sub:?} leaves its volume")));
            }
            path = path.join(sub);
        }
        mounts.push(cri::Mount {
            container_path: mount.mount_path.clone(),
            host_path: path.to_string_lossy().into_owned(),
            readonly: mount.read_only == Some(true),
            ..Default::default()
        });
    }
    let all = |list: &Option<Vec<String>>| list.iter().flatten().map(|a| expand(a, &envs)).collect();
    let mut labels = labels(pod);
    labels.insert(CONTAINER_NAME.into(), spec.name.clone());
    Ok(cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: spec.name.clone(), attempt }),
        image: Some(cri::ImageSpec { image: text(spec.image.as_ref()), ..Default::default() }),
        command: all(&spec.command),
        args: all(&spec.args),
        working_dir: text(spec.working_dir.as_ref()),
        mounts,
        labels,
        log_path: format!("{}/{attempt}.log", spec.name),
        stdin: spec.stdin == Some(true),
        stdin_once: spec.stdin_once == Some(true),
        tty: spec.tty == Some(true),
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(resources(spec)),
            security_context: Some(security(pod, spec.security_context.as_ref())),
        }),
        envs,
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_expand() {
        let known = [cri::KeyValue { key: "A".into(), value: "1".into() }];
        for (text, wanted) in
            [("x$(A)y", "x1y"), ("$$(A)", "$(A)"), ("$(B)", "$(B)"), ("$A", "$A"), ("$(A", "$(A"), ("é$", "é$")]
        {
            assert_eq!(expand(text, &known), wanted);
        }
    }

    #[test]
    fn limits_become_cgroup_numbers() {
        let spec: Container = serde_json::from_value(serde_json::json!({"name": "c", "resources": {
            "requests": {"cpu": "100m"}, "limits": {"cpu": "500m", "memory": "64Mi"}}}))
        .unwrap();
        let got = resources(&spec);
        assert_eq!((got.cpu_shares, got.cpu_quota, got.memory_limit_in_bytes), (102, 50_000, 64 << 20));
    }
}
