//! The downward API: fields of a pod and resources of its containers as text.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, ObjectFieldSelector, Pod, ResourceFieldSelector};

use super::resources::{Resource, amount};
use super::{SpecError, pod, text};

/// Facts that a pod does not know of itself.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The node's name.
    pub node: String,
    /// The node's addresses.
    pub host_ips: Vec<String>,
    /// The pod's addresses.
    pub pod_ips: Vec<String>,
    /// CPUs of the node, in thousandths: what a container without a limit may use.
    pub node_cpu_millis: i64,
    /// Memory of the node, bytes.
    pub node_memory: i64,
}

/// `{key}="{value}"` lines, as files of labels and annotations have them.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let line = |(k, v): (&String, &String)| format!("{k}={}", serde_json::Value::from(v.as_str()));
    map.into_iter().flatten().map(line).collect::<Vec<_>>().join("\n")
}

/// What a field reference yields.
pub fn field(pod: &Pod, selector: &ObjectFieldSelector, facts: &Facts) -> Result<String, SpecError> {
    let path = selector.field_path.as_str();
    let (meta, spec) = (&pod.metadata, pod.spec.as_ref());
    if let Some((map, key)) = path.strip_suffix("']").and_then(|p| p.split_once("['")) {
        let map = match map {
            "metadata.labels" => &meta.labels,
            "metadata.annotations" => &meta.annotations,
            _ => return Err(unknown(path)),
        };
        return Ok(map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => text(meta.name.as_ref()),
        "metadata.namespace" => text(meta.namespace.as_ref()),
        "metadata.uid" => text(meta.uid.as_ref()),
        "metadata.labels" => lines(meta.labels.as_ref()),
        "metadata.annotations" => lines(meta.annotations.as_ref()),
        "spec.nodeName" => facts.node.clone(),
        "spec.serviceAccountName" => text(spec.and_then(|s| s.service_account_name.as_ref())),
        "status.hostIP" => facts.host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => facts.host_ips.join(","),
        "status.podIP" => facts.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => facts.pod_ips.join(","),
        _ => return Err(unknown(path)),
    })
}

fn unknown(path: &str) -> SpecError {
    SpecError::new(format!("unsupported fieldPath: {path}"))
}

/// What a resource reference yields; `own` is the container that asks, for references without a name.
pub fn resource(
    of: &Pod,
    own: Option<&Container>,
    selector: &ResourceFieldSelector,
    facts: &Facts,
) -> Result<String, SpecError> {
    let named = selector.container_name.as_deref().filter(|n| !n.is_empty());
    let container = match named {
        Some(name) => pod::find(of, name).map(|(_, c)| c),
        None => own,
    };
    let container =
        container.ok_or_else(|| SpecError::new(format!("container {:?} not found", named.unwrap_or_default())))?;
    let (kind, name) = selector.resource.split_once('.').unwrap_or_default();
    let resource = match name {
        "cpu" => Resource::Cpu,
        "memory" => Resource::Memory,
        other => Resource::Other(other),
    };
    let wanted = container.resources.as_ref();
    let map = match kind {
        "limits" => wanted.and_then(|r| r.limits.as_ref()),
        "requests" => wanted.and_then(|r| r.requests.as_ref()),
        _ => return Err(SpecError::new(format!("unsupported container resource: {}", selector.resource))),
    };
    let found = amount(map, name).filter(|q| *q > 0);
    let millis = found.unwrap_or(match (kind, resource) {
        ("limits", Resource::Cpu) => facts.node_cpu_millis,
        ("limits", Resource::Memory) => facts.node_memory.saturating_mul(1000),
        _ => 0,
    });
    let divisor = selector.divisor.as_ref().and_then(|d| super::resources::millis(&d.0)).filter(|d| *d > 0);
    let divisor = divisor.unwrap_or(1000);
    // Rounded up, as upstream does.
    Ok((millis / divisor + i64::from(millis % divisor != 0)).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn example() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"a": "1", "b": "x\"y"}},
            "spec": {"serviceAccountName": "s", "containers": [{"name": "c",
                "resources": {"limits": {"cpu": "250m"}, "requests": {"memory": "64Mi"}}}]}}))
        .unwrap()
    }

    #[test]
    fn fields_of_a_pod() {
        let facts = Facts {
            node: "node".into(),
            pod_ips: vec!["1".into(), "2".into()],
            host_ips: vec!["3".into()],
            ..Facts::default()
        };
        for (path, wanted) in [
            ("metadata.name", Some("p")),
            ("metadata.labels['a']", Some("1")),
            ("metadata.labels['zz']", Some("")),
            ("metadata.labels", Some("a=\"1\"\nb=\"x\\\"y\"")),
            ("spec.nodeName", Some("node")),
            ("status.podIP", Some("1")),
            ("status.podIPs", Some("1,2")),
            ("status.hostIP", Some("3")),
            ("spec.hostname", None),
        ] {
            let selector = ObjectFieldSelector { field_path: path.into(), api_version: None };
            assert_eq!(field(&example(), &selector, &facts).ok().as_deref(), wanted, "{path}");
        }
    }

    #[test]
    fn resources_of_a_container() {
        let facts = Facts { node_cpu_millis: 4000, node_memory: 1 << 30, ..Facts::default() };
        for (name, divisor, wanted) in [
            ("limits.cpu", "0", "1"),
            ("limits.cpu", "1m", "250"),
            ("requests.cpu", "1m", "0"),
            ("requests.memory", "1Mi", "64"),
            ("limits.memory", "1Gi", "1"),
        ] {
            let pod = example();
            let selector = serde_json::from_value(json!({"resource": name, "divisor": divisor})).unwrap();
            let own = pod::containers(&pod).first();
            assert_eq!(resource(&pod, own, &selector, &facts).unwrap(), wanted, "{name} {divisor}");
        }
    }
}
