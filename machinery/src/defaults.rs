//! Default values, as upstream's `SetDefaults_*` functions fill them in.

use serde_json::{Map, Value, json};

use crate::resource::ResourceDef;
use crate::{kind_defaults, pod_resources};

/// What names of huge pages begin with.
const PAGES: &str = "hugepages-";

/// Fills in defaults; what is set stays.
pub fn set(def: &ResourceDef, object: &mut Value) {
    match (def.group, def.kind) {
        ("", "Pod") => pod(object),
        ("", "Namespace") => {
            // A name that is still to be generated is no label yet.
            let name = object["metadata"]["name"].clone();
            if name.as_str().is_some_and(|n| !n.is_empty()) {
                object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
            }
            default(&mut object["status"], "phase", json!("Active"));
        }
        ("", "Secret") => secret(object),
        ("", "Service") => service(object),
        ("apps", "Deployment") => deployment(object),
        ("apps", "ReplicaSet") => {
            default(&mut object["spec"], "replicas", json!(1));
            template(object);
        }
        ("apps", "DaemonSet" | "StatefulSet") | ("batch", "Job") | ("", "ReplicationController") => template(object),
        ("batch", "CronJob") => {
            if let Some(job) = object.pointer_mut("/spec/jobTemplate") {
                template(job);
            }
        }
        ("", "Node") => {
            if let Some(spec) = object.get_mut("spec") {
                first_of(spec, "podCIDR", "podCIDRs", None);
            }
            // What is not said to be kept back may be used.
            if let Some(capacity) = object["status"].get("capacity").filter(|c| c.is_object()).cloned() {
                default(&mut object["status"], "allocatable", capacity);
            }
        }
        ("", "PodTemplate") => {
            if let Some(spec) = object.pointer_mut("/template/spec").filter(|s| s.is_object()) {
                pod_spec(spec);
            }
        }
        ("rbac.authorization.k8s.io", "ClusterRoleBinding" | "RoleBinding") => {
            default(&mut object["roleRef"], "apiGroup", json!("rbac.authorization.k8s.io"));
            for subject in object.get_mut("subjects").and_then(Value::as_array_mut).into_iter().flatten() {
                if subject["kind"] != "ServiceAccount" {
                    default(subject, "apiGroup", json!("rbac.authorization.k8s.io"));
                }
            }
        }
        _ => {}
    }
    kind_defaults::set(def, object);
}

fn default(object: &mut Value, key: &str, value: Value) {
    if object.is_null() {
        *object = json!({});
    }
    if let Some(map) = object.as_object_mut() {
        map.entry(key).or_insert(value);
    }
}

/// Texts of a secret become data.
fn secret(object: &mut Value) {
    use base64::Engine as _;
    let texts = object.as_object_mut().and_then(|map| map.remove("stringData"));
    for (key, text) in texts.as_ref().and_then(Value::as_object).into_iter().flatten() {
        let bytes = text.as_str().unwrap_or_default();
        object["data"][key.as_str()] = base64::engine::general_purpose::STANDARD.encode(bytes).into();
    }
    default(object, "type", json!("Opaque"));
}

fn deployment(object: &mut Value) {
    let spec = &mut object["spec"];
    default(spec, "replicas", json!(1));
    default(spec, "revisionHistoryLimit", json!(10));
    default(spec, "progressDeadlineSeconds", json!(600));
    default(spec, "strategy", json!({}));
    default(&mut spec["strategy"], "type", json!("RollingUpdate"));
    if spec["strategy"]["type"] == "RollingUpdate" {
        default(&mut spec["strategy"], "rollingUpdate", json!({}));
        default(&mut spec["strategy"]["rollingUpdate"], "maxUnavailable", json!("25%"));
        default(&mut spec["strategy"]["rollingUpdate"], "maxSurge", json!("25%"));
    }
    template(object);
}

/// A field that was there before its list is the list's first entry, and rules where they differ. `inside` is the field of
/// an entry that has the value.
fn first_of(holder: &mut Value, one: &str, list: &str, inside: Option<&str>) {
    let Some(map) = holder.as_object_mut() else { return };
    let value_of =
        |entry: &Value| inside.map_or(Some(entry), |key| entry.get(key)).and_then(Value::as_str).map(str::to_owned);
    let first = map.get(list).and_then(|list| list.get(0)).and_then(value_of);
    let said = map.get(one).and_then(Value::as_str).filter(|said| !said.is_empty()).map(str::to_owned);
    match (said, first) {
        (Some(said), first) if first.as_ref() != Some(&said) => {
            let entry = inside.map_or_else(|| json!(said), |key| json!({key: said}));
            map.insert(list.to_owned(), json!([entry]));
        }
        (None, Some(first)) => {
            map.insert(one.to_owned(), first.into());
        }
        _ => {}
    }
}

/// Annotations from before init containers had a field, which are taken out wherever they come from.
const INIT_CONTAINERS: [&str; 4] = [
    "pod.beta.kubernetes.io/init-containers",
    "pod.alpha.kubernetes.io/init-containers",
    "pod.beta.kubernetes.io/init-container-statuses",
    "pod.alpha.kubernetes.io/init-container-statuses",
];

fn without_init_containers(metadata: &mut Value) {
    let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) else { return };
    let before = annotations.len();
    annotations.retain(|key, _| !INIT_CONTAINERS.contains(&key.as_str()));
    if annotations.is_empty() && before > 0 {
        metadata.as_object_mut().map(|metadata| metadata.remove("annotations"));
    }
}

fn template(object: &mut Value) {
    if let Some(metadata) = object.pointer_mut("/spec/template/metadata") {
        without_init_containers(metadata);
    }
    if object["spec"]["template"]["spec"].is_object() {
        pod_spec(&mut object["spec"]["template"]["spec"]);
    }
}

/// What pods get and their templates do not.
fn pod(object: &mut Value) {
    if let Some(metadata) = object.get_mut("metadata") {
        without_init_containers(metadata);
    }
    if let Some(status) = object.get_mut("status") {
        first_of(status, "podIP", "podIPs", Some("ip"));
    }
    let spec = &mut object["spec"];
    default(spec, "enableServiceLinks", json!(true));
    let host_network = spec["hostNetwork"] == true;
    for list in ["containers", "initContainers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            requests(container);
            if host_network {
                host_ports(container);
            }
        }
    }
    page_limits(spec);
    pod_requests(spec);
    pod_spec(spec);
}

/// Huge pages that the containers of a pod may use together are what the pod as a whole may use, if anything is said of
/// the whole and nothing of these.
fn page_limits(spec: &mut Value) {
    let own = &spec["resources"];
    if ["limits", "requests"].iter().all(|list| own[*list].as_object().is_none_or(Map::is_empty)) {
        return;
    }
    let sums = pod_resources::of_containers(spec, "limits").into_iter().filter(|(name, _)| name.starts_with(PAGES));
    let missing: Vec<_> = sums.filter(|(name, _)| spec["resources"]["requests"].get(name).is_none()).collect();
    for (name, sum) in missing {
        default(&mut spec["resources"], "limits", json!({}));
        default(&mut spec["resources"]["limits"], &name, sum.to_string().into());
    }
}

/// What a pod with limits as a whole does not request, it requests: what its containers do together, of processor and
/// memory, and what it limits where they say nothing.
fn pod_requests(spec: &mut Value) {
    let Some(limits) = spec["resources"]["limits"].as_object().filter(|limits| !limits.is_empty()).cloned() else {
        return;
    };
    let sums =
        pod_resources::of_containers(spec, "requests").into_iter().map(|(name, sum)| (name, sum.to_string().into()));
    let sums: Vec<(String, Value)> = sums.filter(|(name, _)| matches!(name.as_str(), "cpu" | "memory")).collect();
    let limits =
        limits.into_iter().filter(|(name, _)| matches!(name.as_str(), "cpu" | "memory") || name.starts_with(PAGES));
    for (name, amount) in sums.into_iter().chain(limits) {
        default(&mut spec["resources"], "requests", json!({}));
        default(&mut spec["resources"]["requests"], &name, amount);
    }
}

/// What a container limits and does not request, it requests.
fn requests(container: &mut Value) {
    if let Some(limits) = container["resources"]["limits"].as_object().cloned() {
        for (name, quantity) in limits {
            default(&mut container["resources"], "requests", json!({}));
            default(&mut container["resources"]["requests"], &name, quantity);
        }
    }
}

fn host_ports(container: &mut Value) {
    for port in container.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let number = port["containerPort"].clone();
        default(port, "hostPort", number);
    }
}

fn pod_spec(spec: &mut Value) {
    default(spec, "restartPolicy", json!("Always"));
    default(spec, "dnsPolicy", json!("ClusterFirst"));
    default(spec, "schedulerName", json!("default-scheduler"));
    default(spec, "terminationGracePeriodSeconds", json!(30));
    default(spec, "securityContext", json!({}));
    if spec["serviceAccountName"].as_str().unwrap_or_default().is_empty()
        && let Some(account) = spec["serviceAccount"].as_str().filter(|a| !a.is_empty()).map(str::to_owned)
    {
        spec["serviceAccountName"] = account.into();
    }
    // The old name of the field says the same.
    if let Some(account) = spec["serviceAccountName"].as_str().map(str::to_owned) {
        spec["serviceAccount"] = account.into();
    }
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            self::container(container);
        }
    }
    for volume in spec.get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten() {
        let only_name = volume.as_object().is_some_and(|v| v.keys().all(|key| key == "name"));
        if only_name {
            volume["emptyDir"] = json!({});
        }
        for source in ["configMap", "secret", "projected", "downwardAPI"] {
            if volume.get(source).is_some_and(Value::is_object) {
                default(&mut volume[source], "defaultMode", json!(0o644));
            }
        }
        volume_source(volume);
        projections(volume);
        if let Some(image) = volume.get_mut("image").filter(|i| i.is_object()) {
            let latest = is_latest(image["reference"].as_str().unwrap_or_default());
            default(image, "pullPolicy", json!(if latest { "Always" } else { "IfNotPresent" }));
        }
        if let Some(spec) = volume.pointer_mut("/ephemeral/volumeClaimTemplate/spec").filter(|s| s.is_object()) {
            default(spec, "volumeMode", json!("Filesystem"));
        }
    }
}

/// Sources that pods and PersistentVolumes share.
pub(crate) fn volume_source(holder: &mut Value) {
    const SOURCES: &[(&str, &[(&str, &str)])] = &[
        ("hostPath", &[("type", "")]),
        ("iscsi", &[("iscsiInterface", "default")]),
        ("rbd", &[("pool", "rbd"), ("user", "admin"), ("keyring", "/etc/ceph/keyring")]),
        ("azureDisk", &[("cachingMode", "ReadWrite"), ("kind", "Shared"), ("fsType", "ext4")]),
        ("scaleIO", &[("storageMode", "ThinProvisioned"), ("fsType", "xfs")]),
    ];
    for (name, fields) in SOURCES {
        let Some(source) = holder.get_mut(*name).filter(|s| s.is_object()) else { continue };
        for (key, value) in *fields {
            default(source, key, json!(value));
        }
        if *name == "azureDisk" {
            default(source, "readOnly", json!(false));
        }
    }
}

fn projections(volume: &mut Value) {
    field_versions(volume.pointer_mut("/downwardAPI/items"));
    let sources = volume.pointer_mut("/projected/sources").and_then(Value::as_array_mut);
    for source in sources.into_iter().flatten() {
        field_versions(source.pointer_mut("/downwardAPI/items"));
        if let Some(token) = source.get_mut("serviceAccountToken").filter(|t| t.is_object()) {
            default(token, "expirationSeconds", json!(3600));
        }
    }
}

fn field_versions(items: Option<&mut Value>) {
    for item in items.and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(field) = item.get_mut("fieldRef").filter(|f| f.is_object()) {
            default(field, "apiVersion", json!("v1"));
        }
    }
}

/// Whether a text may be an image's name; the parts of its path are in lower case.
fn is_reference(image: &str) -> bool {
    let path = match image.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':']) || first == "localhost" || first.chars().any(char::is_uppercase) =>
        {
            rest
        }
        _ => image,
    };
    let end = path.rfind('/').map_or(0, |at| at + 1);
    let path = path[end..].find(':').map_or(path, |at| &path[..end + at]);
    !path.is_empty() && !path.contains(|c: char| c.is_uppercase() || c.is_whitespace())
}

/// Whether an image's name leaves it open which one that is.
fn is_latest(image: &str) -> bool {
    let tag = image.rsplit('/').next().unwrap_or_default();
    is_reference(image) && !image.contains('@') && (!tag.contains(':') || tag.ends_with(":latest"))
}

fn container(container: &mut Value) {
    let latest = is_latest(container["image"].as_str().unwrap_or_default());
    default(container, "imagePullPolicy", json!(if latest { "Always" } else { "IfNotPresent" }));
    default(container, "terminationMessagePath", json!("/dev/termination-log"));
    default(container, "terminationMessagePolicy", json!("File"));
    default(container, "resources", json!({}));
    for port in container.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        default(port, "protocol", json!("TCP"));
    }
    for hook in ["/lifecycle/postStart/httpGet", "/lifecycle/preStop/httpGet"] {
        if let Some(action) = container.pointer_mut(hook).filter(|a| a.is_object()) {
            default(action, "path", json!("/"));
            default(action, "scheme", json!("HTTP"));
        }
    }
    for variable in container.get_mut("env").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(field) = variable.pointer_mut("/valueFrom/fieldRef").filter(|f| f.is_object()) {
            default(field, "apiVersion", json!("v1"));
        }
        if let Some(file) = variable.pointer_mut("/valueFrom/fileKeyRef").filter(|f| f.is_object()) {
            default(file, "optional", json!(false));
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(probe).filter(|p| p.is_object()) {
            self::probe(probe);
        }
    }
}

fn probe(probe: &mut Value) {
    for (key, value) in [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        default(probe, key, json!(value));
    }
    if let Some(action) = probe.get_mut("httpGet").filter(|a| a.is_object()) {
        default(action, "path", json!("/"));
        default(action, "scheme", json!("HTTP"));
    }
    if let Some(action) = probe.get_mut("grpc").filter(|a| a.is_object()) {
        default(action, "service", json!(""));
    }
}

fn service(object: &mut Value) {
    let spec = &mut object["spec"];
    default(spec, "type", json!("ClusterIP"));
    default(spec, "sessionAffinity", json!("None"));
    let kind = spec["type"].as_str().unwrap_or_default().to_owned();
    if kind != "ExternalName" {
        default(spec, "internalTrafficPolicy", json!("Cluster"));
    }
    let reached = kind == "ClusterIP" && spec["externalIPs"].as_array().is_some_and(|ips| !ips.is_empty());
    if reached || matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
        default(spec, "externalTrafficPolicy", json!("Cluster"));
    }
    if kind == "LoadBalancer" {
        default(spec, "allocateLoadBalancerNodePorts", json!(true));
    }
    if spec["sessionAffinity"] == "ClientIP" {
        default(spec, "sessionAffinityConfig", json!({}));
        default(&mut spec["sessionAffinityConfig"], "clientIP", json!({}));
        default(&mut spec["sessionAffinityConfig"]["clientIP"], "timeoutSeconds", json!(10_800));
    } else if spec["sessionAffinity"] == "None"
        && let Some(map) = spec.as_object_mut()
    {
        map.remove("sessionAffinityConfig");
    }
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        default(port, "protocol", json!("TCP"));
        if port["targetPort"].is_null() || port["targetPort"] == 0 || port["targetPort"] == "" {
            port["targetPort"] = port["port"].clone();
        }
    }
    default(&mut object["status"], "loadBalancer", json!({}));
    if kind == "LoadBalancer" {
        let entries = object.pointer_mut("/status/loadBalancer/ingress").and_then(Value::as_array_mut);
        for entry in entries.into_iter().flatten() {
            if entry["ip"].as_str().is_some_and(|ip| !ip.is_empty()) {
                default(entry, "ipMode", json!("VIP"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::find;

    #[test]
    fn two_fields_for_one_thing_say_the_same() {
        let template = |spec: Value| json!({"spec": {"template": {"spec": spec}}});
        for (group, plural, given, path, expected) in [
            ("", "pods", json!({"status": {"podIP": "1.1.1.1"}}), "/status/podIPs", json!([{"ip": "1.1.1.1"}])),
            ("", "pods", json!({"status": {"podIPs": [{"ip": "1.1.1.1"}]}}), "/status/podIP", json!("1.1.1.1")),
            (
                "",
                "pods",
                json!({"status": {"podIP": "1.1.1.1", "podIPs": [{"ip": "2.2.2.2"}, {"ip": "::2"}]}}),
                "/status/podIPs",
                json!([{"ip": "1.1.1.1"}]),
            ),
            (
                "",
                "pods",
                json!({"status": {"podIP": "1.1.1.1", "podIPs": [{"ip": "1.1.1.1"}, {"ip": "::2"}]}}),
                "/status/podIPs/1/ip",
                json!("::2"),
            ),
            ("", "nodes", json!({"spec": {"podCIDR": "1.1.1.0/24"}}), "/spec/podCIDRs", json!(["1.1.1.0/24"])),
            ("", "nodes", json!({"spec": {"podCIDRs": ["1.1.1.0/24"]}}), "/spec/podCIDR", json!("1.1.1.0/24")),
            (
                "apps",
                "deployments",
                template(json!({"serviceAccount": "a", "serviceAccountName": "b"})),
                "/spec/template/spec/serviceAccount",
                json!("b"),
            ),
            (
                "apps",
                "deployments",
                template(json!({"serviceAccount": "a"})),
                "/spec/template/spec/serviceAccountName",
                json!("a"),
            ),
        ] {
            let mut object = given.clone();
            set(find(group, "v1", plural).unwrap(), &mut object);
            assert_eq!(object.pointer(path), Some(&expected), "{given}");
        }
    }

    #[test]
    fn a_pod_as_a_whole_asks_for_what_its_containers_do() {
        let asks = |amounts: Value| json!({"image": "a", "resources": {"requests": amounts}});
        let pages = json!({"image": "a", "resources": {"limits": {"hugepages-2Mi": "4Mi"}}});
        for (whole, containers, expected) in [
            (json!({"limits": {"cpu": "2"}}), json!([{}]), json!({"limits": {"cpu": "2"}, "requests": {"cpu": "2"}})),
            (
                json!({"limits": {"cpu": "2"}}),
                json!([
                    asks(json!({"cpu": "500m", "memory": "1Gi", "ephemeral-storage": "1"})),
                    asks(json!({"cpu": "1"}))
                ]),
                json!({"limits": {"cpu": "2"}, "requests": {"cpu": "1500m", "memory": "1Gi"}}),
            ),
            (
                json!({"limits": {"cpu": "2"}, "requests": {"cpu": "1"}}),
                json!([asks(json!({"cpu": "500m"}))]),
                json!({"limits": {"cpu": "2"}, "requests": {"cpu": "1"}}),
            ),
            (
                json!({"requests": {"cpu": "1"}}),
                json!([asks(json!({"memory": "1"}))]),
                json!({"requests": {"cpu": "1"}}),
            ),
            (
                json!({"requests": {"cpu": "1"}}),
                json!([pages, pages]),
                json!({"limits": {"hugepages-2Mi": "8Mi"}, "requests": {"cpu": "1", "hugepages-2Mi": "8Mi"}}),
            ),
            (json!({}), json!([pages]), json!({})),
        ] {
            let mut pod = json!({"spec": {"resources": whole, "containers": containers}});
            set(find("", "v1", "pods").unwrap(), &mut pod);
            assert_eq!(pod["spec"]["resources"], expected, "{whole} {containers}");
        }
    }

    #[test]
    fn annotations_name_no_init_containers() {
        let def = find("", "v1", "pods").unwrap();
        let (old, other) = ("pod.beta.kubernetes.io/init-containers", "a");
        for (annotations, left) in
            [(json!({old: "[]", other: "b"}), json!({other: "b"})), (json!({old: "[]"}), json!(null))]
        {
            let mut pod = json!({"metadata": {"annotations": annotations}, "spec": {}});
            set(def, &mut pod);
            assert_eq!(pod["metadata"]["annotations"], left);
        }
    }

    #[test]
    fn pods_and_deployments() {
        let mut pod = json!({"spec": {"containers": [{"name": "a", "image": "x/y:1", "ports": [{"containerPort": 80}],
            "resources": {"limits": {"cpu": "1"}}}], "volumes": [{"name": "v"}]}});
        set(find("", "v1", "pods").unwrap(), &mut pod);
        for (path, expected) in [
            ("/spec/restartPolicy", json!("Always")),
            ("/spec/containers/0/imagePullPolicy", json!("IfNotPresent")),
            ("/spec/containers/0/ports/0/protocol", json!("TCP")),
            ("/spec/containers/0/resources/requests/cpu", json!("1")),
            ("/spec/volumes/0/emptyDir", json!({})),
        ] {
            assert_eq!(pod.pointer(path), Some(&expected), "{path}");
        }
        assert_eq!(pod.pointer("/spec/containers/0/livenessProbe"), None);
        let again = pod.clone();
        set(find("", "v1", "pods").unwrap(), &mut pod);
        assert_eq!(pod, again, "defaults are filled in once");
        let mut deployment =
            json!({"spec": {"strategy": {"type": "Recreate"}, "template": {"spec": {"containers": [{"image": "a"}]}}}});
        set(find("apps", "v1", "deployments").unwrap(), &mut deployment);
        assert_eq!(deployment.pointer("/spec/strategy"), Some(&json!({"type": "Recreate"})));
        assert_eq!(deployment.pointer("/spec/template/spec/containers/0/imagePullPolicy"), Some(&json!("Always")));
    }
}
