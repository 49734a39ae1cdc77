//! Pods and pod templates.

use serde_json::{Value, json};

use super::check::{Problems, WHOLE, or_empty, quantity};
use super::container::{self, Surroundings};
use super::volumes::{self, PodFacts};
use super::{entries, has, items, meta, pod_update, probes, profiles, selectors, text, workloads};
use crate::names;

/// Most name servers of a pod.
const MAX_NAME_SERVERS: usize = 3;
/// Most search domains of a pod, and their characters.
const MAX_SEARCHES: (usize, usize) = (32, 2048);
/// DNS policies.
const DNS_POLICIES: &[&str] = &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
/// Longest name that a pod gives itself, characters.
const MAX_HOSTNAME: usize = 64;
/// Fields of security contexts that only Linux has, in the order in which they are looked at.
const NOT_OF_WINDOWS_PODS: &[&str] = &[
    "appArmorProfile",
    "seLinuxOptions",
    "hostUsers",
    "hostPID",
    "hostIPC",
    "seccompProfile",
    "fsGroup",
    "fsGroupChangePolicy",
    "sysctls",
    "shareProcessNamespace",
    "runAsUser",
    "runAsGroup",
    "supplementalGroups",
    "supplementalGroupsPolicy",
    "seLinuxChangePolicy",
];
const NOT_OF_WINDOWS_CONTAINERS: &[&str] = &[
    "appArmorProfile",
    "seLinuxOptions",
    "seccompProfile",
    "capabilities",
    "readOnlyRootFilesystem",
    "privileged",
    "allowPrivilegeEscalation",
    "procMount",
    "runAsUser",
    "runAsGroup",
];

/// A pod, or a change of it.
pub fn validate(subresource: &str, new: &Value, old: Option<&Value>, p: &mut Problems) {
    match (subresource, old) {
        ("status", Some(old)) => pod_update::status(new, old, p),
        ("ephemeralcontainers", Some(old)) => {
            pod(new, p);
            pod_update::ephemeral(new, old, p);
        }
        ("resize", Some(old)) => {
            pod(new, p);
            pod_update::resize(new, old, p);
        }
        (_, Some(old)) => {
            pod(new, p);
            pod_update::main(new, old, p);
        }
        (_, None) => {
            pod(new, p);
            new_pod(new, p);
            if items(&new["spec"]["ephemeralContainers"]).next().is_some() {
                p.forbidden("spec.ephemeralContainers", "cannot be set on create");
            }
            if items(&new["spec"]["schedulingGates"]).next().is_some() && !text(&new["spec"], "nodeName").is_empty() {
                p.forbidden("spec.nodeName", "cannot be set until all schedulingGates have been cleared");
            }
        }
    }
}

fn pod(object: &Value, p: &mut Problems) {
    let (metadata, pod_spec) = (&object["metadata"], &object["spec"]);
    pod_annotations(&metadata["annotations"], pod_spec, "metadata.annotations", p);
    let is_mirror = has(&metadata["annotations"], pod_update::MIRROR);
    spec_of(pod_spec, "spec", &PodFacts { name: text(metadata, "name"), is_pod: true, is_mirror }, p);
    let unknown = text(pod_spec, "serviceAccountName").is_empty();
    for (index, volume) in items(&pod_spec["volumes"]).enumerate().filter(|_| unknown) {
        for (i, _) in items(&volume["projected"]["sources"]).enumerate().filter(|(_, s)| has(s, "serviceAccountToken"))
        {
            let field = format!("spec.volumes[{index}].projected.sources[{i}].serviceAccountToken");
            p.forbidden(field, "must not be specified when serviceAccountName is not set");
        }
    }
    for field in ["containers", "initContainers"] {
        for (index, container) in items(&pod_spec[field]).enumerate() {
            container::trimmed_image(container, &format!("spec.{field}[{index}]"), p);
        }
    }
}

/// A new pod: what its annotations and its fields say of profiles is the same.
fn new_pod(object: &Value, p: &mut Problems) {
    profiles::agree(&object["metadata"]["annotations"], &object["spec"], "spec", p);
}

/// Annotations that mean something for a pod.
pub fn pod_annotations(annotations: &Value, spec: &Value, at: &str, p: &mut Problems) {
    use pod_update::MIRROR;
    const TOLERATIONS: &str = "scheduler.alpha.kubernetes.io/tolerations";
    const COST: &str = "controller.kubernetes.io/pod-deletion-cost";
    if has(annotations, MIRROR) && text(spec, "nodeName").is_empty() {
        let why = "must set spec.nodeName if mirror pod annotation is set";
        p.invalid(format!("{at}[{MIRROR}]"), &annotations[MIRROR], why);
    }
    match super::noted(annotations, TOLERATIONS) {
        Some(Ok(list)) => selectors::tolerations(&list, &format!("{at}.{TOLERATIONS}"), p),
        Some(Err(why)) => p.invalid(at, &json!(TOLERATIONS), &why),
        None => {}
    }
    if let Some(cost) = annotations[COST].as_str() {
        // No plus sign and no leading zeros.
        let plain = cost.parse::<i32>().is_ok_and(|n| n.to_string() == cost);
        if !plain {
            p.invalid(format!("{at}[{COST}]"), &annotations[COST], "must be a 32bit integer");
        }
    }
    profiles::annotations(annotations, spec, at, p);
}

/// A template: its metadata (`path.metadata`) and its pods (`path.spec`).
pub fn template(template: &Value, path: &str, p: &mut Problems) {
    let metadata = &template["metadata"];
    meta::labels(&metadata["labels"], &format!("{path}.labels"), p);
    meta::annotations(&metadata["annotations"], &format!("{path}.annotations"), p);
    pod_annotations(&metadata["annotations"], &template["spec"], &format!("{path}.annotations"), p);
    let path = format!("{path}.spec");
    spec_of(&template["spec"], &path, &PodFacts { name: "", is_pod: false, is_mirror: false }, p);
    profiles::agree(&metadata["annotations"], &template["spec"], &path, p);
    if items(&template["spec"]["ephemeralContainers"]).next().is_some() {
        p.forbidden(format!("{path}.ephemeralContainers"), "ephemeral containers not allowed in pod template");
    }
}

/// A pod's spec at a path; what is wrong is told in the order in which upstream looks.
fn spec_of(spec: &Value, path: &str, facts: &PodFacts<'_>, p: &mut Problems) {
    let volumes = volumes::volumes(spec, path, facts, p);
    claims(spec, path, facts.is_mirror, p);
    let around = Surroundings {
        volumes,
        claims: items(&spec["resourceClaims"]).map(|c| text(c, "name")).filter(|n| !n.is_empty()).collect(),
        is_pod: facts.is_pod,
        never_restarts: spec["restartPolicy"] == "Never",
        host_users: spec["hostUsers"] != false,
        grace: spec["terminationGracePeriodSeconds"].as_i64().unwrap_or(i64::MAX),
    };
    containers(spec, path, &around, p);
    if spec["resources"].is_object() {
        pod_resources(spec, &format!("{path}.resources"), &around.claims, p);
    }
    if spec["hostNetwork"] == true {
        host_network_ports(spec, path, around.is_pod, p);
    }
    host_names(spec, path, p);
    p.one_of(format!("{path}.restartPolicy"), &spec["restartPolicy"], &["Always", "OnFailure", "Never"]);
    p.one_of(format!("{path}.dnsPolicy"), &spec["dnsPolicy"], DNS_POLICIES);
    meta::labels(&spec["nodeSelector"], &format!("{path}.nodeSelector"), p);
    security(spec, path, p);
    if spec["affinity"].is_object() {
        selectors::affinity(&spec["affinity"], &format!("{path}.affinity"), p);
    }
    dns(spec, path, p);
    for (index, gate) in items(&spec["readinessGates"]).enumerate() {
        let field = format!("{path}.readinessGates[{index}].conditionType");
        p.qualified_name(&field, text(gate, "conditionType"));
    }
    gates(spec, path, p);
    spread(spec, path, p);
    profiles::host_processes(spec, path, p);
    host_users(spec, path, p);
    single_fields(spec, path, p);
    if spec["overhead"].is_object() {
        let amounts = json!({"limits": spec["overhead"]});
        container::resources(&amounts, &format!("{path}.overhead"), None, p);
    }
    if spec["os"].is_object() {
        operating_system(spec, path, p);
    }
    if has(spec, "schedulingGroup") {
        workloads::scheduling_group(&spec["schedulingGroup"], &format!("{path}.schedulingGroup"), p);
    }
    container::variable_files(spec, path, p);
}

/// Where a pod is, what it is called and for how long it may run.
fn single_fields(spec: &Value, path: &str, p: &mut Problems) {
    let subdomain = |field: &str, p: &mut Problems| {
        if !text(spec, field).is_empty() {
            p.subdomain(format!("{path}.{field}"), &spec[field]);
        }
    };
    subdomain("serviceAccountName", p);
    subdomain("nodeName", p);
    if spec["activeDeadlineSeconds"].as_i64().is_some_and(|n| !(1..=i64::from(i32::MAX)).contains(&n)) {
        let why = "must be between 1 and 2147483647, inclusive";
        p.invalid(format!("{path}.activeDeadlineSeconds"), &spec["activeDeadlineSeconds"], why);
    }
    for field in ["hostname", "subdomain"] {
        if !text(spec, field).is_empty() {
            p.label(format!("{path}.{field}"), &spec[field]);
        }
    }
    selectors::tolerations(&spec["tolerations"], &format!("{path}.tolerations"), p);
    host_aliases(spec, path, p);
    subdomain("priorityClassName", p);
    if has(spec, "runtimeClassName") {
        p.subdomain(format!("{path}.runtimeClassName"), &spec["runtimeClassName"]);
    }
    let preemption = format!("{path}.preemptionPolicy");
    if spec["preemptionPolicy"] == "" {
        p.required(preemption, "");
    } else {
        p.one_of_if_set(preemption, &spec["preemptionPolicy"], &["PreemptLowerPriority", "Never"]);
    }
}

fn containers(spec: &Value, path: &str, around: &Surroundings<'_>, p: &mut Problems) {
    if items(&spec["containers"]).next().is_none() {
        p.required(format!("{path}.containers"), "");
    }
    let mut names: Vec<&str> = Vec::new();
    for (index, container) in items(&spec["containers"]).enumerate() {
        let at = format!("{path}.containers[{index}]");
        container::common(container, &at, around, p);
        name_again(container, &at, &mut names, p);
        probes::running(container, &at, around.grace, p);
        probes::restart(container, &at, p);
    }
    same_host_ports(&spec["containers"], &format!("{path}.containers"), p);
    for (index, container) in items(&spec["initContainers"]).enumerate() {
        let at = format!("{path}.initContainers[{index}]");
        container::common(container, &at, around, p);
        probes::restart(container, &at, p);
        // One without a name takes none.
        if !text(container, "name").is_empty() || names.contains(&"") {
            name_again(container, &at, &mut names, p);
        }
        // Each of these runs alone, and is told of as if it were the first.
        same_host_ports(&json!([container]), &format!("{path}.initContainers"), p);
        if container["restartPolicy"] == "Always" {
            probes::running(container, &at, around.grace, p);
        } else {
            init_container(container, &at, p);
        }
    }
    ephemeral_containers(spec, path, around, &names, p);
}

/// Tells of a name that a container before has; else it is taken.
fn name_again<'a>(container: &'a Value, at: &str, names: &mut Vec<&'a str>, p: &mut Problems) {
    let name = text(container, "name");
    if names.contains(&name) {
        p.duplicate(format!("{at}.name"), &or_empty(&container["name"]));
    } else {
        names.push(name);
    }
}

fn init_container(container: &Value, at: &str, p: &mut Problems) {
    for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
        if has(container, field) {
            p.forbidden(format!("{at}.{field}"), "may not be set for init containers without restartPolicy=Always");
        }
    }
    for (index, _) in items(&container["resizePolicy"]).enumerate().filter(|(_, policy)| restarts(policy)) {
        p.invalid(format!("{at}.resizePolicy[{index}].restartPolicy"), &json!("RestartContainer"), RESTARTS_TO_RESIZE);
    }
}

/// An init container that ends is not started again to be resized.
const RESTARTS_TO_RESIZE: &str = "must not be set to 'RestartContainer' for non-sidecar initContainers";

fn restarts(policy: &Value) -> bool {
    policy["restartPolicy"] == "RestartContainer"
}

/// Takes back what is held against pods since the old object was stored, if the old object had it.
pub fn forgive_what_was(old: &Value, p: &mut Problems) {
    let ends = |container: &&Value| container["restartPolicy"] != "Always";
    if items(&old["initContainers"]).filter(ends).any(|c| items(&c["resizePolicy"]).any(restarts)) {
        p.0.retain(|cause| !cause.message.ends_with(RESTARTS_TO_RESIZE));
    }
    let unnamed = |volume: &Value| volume["image"].is_object() && text(&volume["image"], "reference").is_empty();
    if items(&old["volumes"]).any(unnamed) {
        p.0.retain(|cause| !cause.field.ends_with(".image.reference"));
    }
}

/// What ephemeral containers do not have, in the order of the type's fields.
const NOT_EPHEMERAL: &[&str] = &[
    "ports",
    "resources",
    "resizePolicy",
    "restartPolicy",
    "restartPolicyRules",
    "livenessProbe",
    "readinessProbe",
    "startupProbe",
    "lifecycle",
];

fn ephemeral_containers(spec: &Value, path: &str, around: &Surroundings<'_>, others: &[&str], p: &mut Problems) {
    const WHY: &str = "cannot be set for an Ephemeral Container";
    let mut names: Vec<&str> = others.to_vec();
    for (index, container) in items(&spec["ephemeralContainers"]).enumerate() {
        let at = format!("{path}.ephemeralContainers[{index}]");
        container::common(container, &at, around, p);
        let name = text(container, "name");
        container::trimmed_image(container, &at, p);
        if names.contains(&name) {
            p.duplicate(format!("{at}.name"), &or_empty(&container["name"]));
        }
        names.push(name);
        let target = text(container, "targetContainerName");
        if !target.is_empty() && !others.contains(&target) {
            p.not_found(format!("{at}.targetContainerName"), &container["targetContainerName"]);
        }
        for field in NOT_EPHEMERAL {
            let said = match &container[*field] {
                Value::Object(map) if *field == "resources" => !map.is_empty(),
                value => !value.is_null(),
            };
            if said {
                p.forbidden(format!("{at}.{field}"), WHY);
            }
        }
        for (i, mount) in items(&container["volumeMounts"]).enumerate() {
            for field in ["subPath", "subPathExpr"].iter().filter(|field| !text(mount, field).is_empty()) {
                p.forbidden(format!("{at}.volumeMounts[{i}].{field}"), WHY);
            }
        }
    }
}

/// A node's port is for one container.
fn same_host_ports(containers: &Value, path: &str, p: &mut Problems) {
    let mut seen: Vec<String> = Vec::new();
    for (index, container) in items(containers).enumerate() {
        for (i, port) in items(&container["ports"]).enumerate() {
            let number = port["hostPort"].as_i64().unwrap_or(0);
            if number == 0 {
                continue;
            }
            let key = format!("{}/{}/{number}", text(port, "protocol"), text(port, "hostIP"));
            if seen.contains(&key) {
                p.duplicate(format!("{path}[{index}].ports[{i}].hostPort"), &json!(key));
            } else {
                seen.push(key);
            }
        }
    }
}

/// With the node's network both ports are the same.
fn host_network_ports(spec: &Value, path: &str, is_pod: bool, p: &mut Problems) {
    for (index, container) in items(&spec["containers"]).enumerate() {
        for (i, port) in items(&container["ports"]).enumerate() {
            let number = port["hostPort"].as_i64().unwrap_or(0);
            if (is_pod || number != 0) && number != port["containerPort"].as_i64().unwrap_or(0) {
                let at = format!("{path}.containers[{index}].ports[{i}].hostPort");
                p.invalid(at, &json!(number), "must match `containerPort` when `hostNetwork` is true");
            }
        }
    }
}

fn pod_resource_name(name: &str, at: &str, p: &mut Problems) {
    let before = p.0.len();
    container::resource_name(name, at, p);
    if p.0.len() == before && !matches!(name, "cpu" | "memory") && !name.starts_with("hugepages-") {
        p.not_supported(at, &json!(name), &["cpu", "hugepages-", "memory"]);
    }
}

/// Requests and limits of a pod as a whole.
fn pod_resources(spec: &Value, path: &str, claims: &[&str], p: &mut Problems) {
    let own = &spec["resources"];
    if spec["os"]["name"] == "windows" {
        return p.forbidden(path, "may not be set for a windows pod");
    }
    if has(own, "claims") {
        p.forbidden(format!("{path}.claims"), "claims may not be set for Resources at pod-level");
    }
    container::requirements(own, path, pod_resource_name, p);
    container::resource_claims(&own["claims"], claims, &format!("{path}.claims"), p);
    // What the pod says has room for its containers; of limits that holds for pages, which are given out whole.
    for (list, pages_only) in [("requests", false), ("limits", true)] {
        for (name, sum) in crate::pod_resources::of_containers(spec, list) {
            if pages_only && !name.starts_with("hugepages-") {
                continue;
            }
            if let Some(pod) = own[list].get(&name).and_then(quantity).filter(|pod| sum > *pod) {
                let why = format!("must be greater than or equal to aggregate container {list} of {sum}");
                p.invalid(format!("{path}.{list}[{name}]"), &json!(pod.to_string()), &why);
            }
        }
    }
    for (index, container) in items(&spec["containers"]).enumerate() {
        for (name, limit) in entries(&container["resources"]["limits"]) {
            let (Some(limit), Some(pod)) = (quantity(limit), own["limits"].get(name).and_then(quantity)) else {
                continue;
            };
            if limit > pod {
                let why = format!("must be less than or equal to pod limits of {pod}");
                let field = format!("{path}.containers[{index}][{name}].limits");
                p.invalid(field, &json!(limit.to_string()), &why);
            }
        }
    }
}

fn dns(spec: &Value, path: &str, p: &mut Problems) {
    let (config, at) = (&spec["dnsConfig"], format!("{path}.dnsConfig"));
    let servers: Vec<&Value> = items(&config["nameservers"]).collect();
    if spec["dnsPolicy"] == "None" {
        if config.is_null() {
            return p.required(at, "must provide `dnsConfig` when `dnsPolicy` is None");
        }
        if servers.is_empty() {
            let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            return p.required(format!("{at}.nameservers"), why);
        }
    }
    if servers.len() > MAX_NAME_SERVERS {
        let why = format!("must not have more than {MAX_NAME_SERVERS} nameservers");
        p.invalid(format!("{at}.nameservers"), &config["nameservers"], &why);
    }
    for (index, server) in servers.iter().enumerate() {
        super::networking::ip(server, &format!("{at}.nameservers[{index}]"), p);
    }
    let searches: Vec<&str> = items(&config["searches"]).filter_map(Value::as_str).collect();
    if searches.len() > MAX_SEARCHES.0 {
        let why = format!("must not have more than {} search paths", MAX_SEARCHES.0);
        p.invalid(format!("{at}.searches"), &config["searches"], &why);
    }
    if searches.join(" ").len() > MAX_SEARCHES.1 {
        let why =
            format!("must not have more than {} characters (including spaces) in the search list", MAX_SEARCHES.1);
        p.invalid(format!("{at}.searches"), &config["searches"], &why);
    }
    for (index, search) in items(&config["searches"]).enumerate().filter(|(_, search)| **search != ".") {
        let domain = search.as_str().unwrap_or_default();
        let domain = domain.strip_suffix('.').unwrap_or(domain);
        for problem in names::underscore_subdomain_problems(domain) {
            p.invalid(format!("{at}.searches[{index}]"), &json!(domain), &problem);
        }
    }
    for (index, option) in items(&config["options"]).enumerate() {
        if text(option, "name").is_empty() {
            p.required(format!("{at}.options[{index}]"), "must not be empty");
        }
    }
}

/// What a pod calls itself.
fn host_names(spec: &Value, path: &str, p: &mut Problems) {
    if !has(spec, "hostnameOverride") {
        return;
    }
    let field = format!("{path}.hostnameOverride");
    if spec["hostNetwork"] == true {
        p.forbidden(&field, "may not be specified when hostNetwork is true");
    }
    if spec["setHostnameAsFQDN"] == true {
        p.forbidden(&field, "may not be specified when setHostnameAsFQDN is true");
    }
    let name = text(spec, "hostnameOverride");
    if name.len() > MAX_HOSTNAME {
        p.too_long(&field, MAX_HOSTNAME);
    }
    for problem in names::subdomain_problems(name) {
        p.invalid(&field, &spec["hostnameOverride"], &problem);
    }
}

/// Users of a pod's own go with no name space of the host, and with no device.
fn host_users(spec: &Value, path: &str, p: &mut Problems) {
    const WHY: &str = "when `hostUsers` is false";
    if spec["hostUsers"] != false {
        return;
    }
    // Two are called by their names in the server.
    for (field, shown) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
        if spec[field] == true {
            p.forbidden(format!("{path}.{shown}"), WHY);
        }
    }
    for (container, at) in profiles::containers(spec, path) {
        if items(&container["volumeDevices"]).next().is_some() {
            p.forbidden(format!("{at}.volumeDevices"), WHY);
        }
    }
}

fn security(spec: &Value, path: &str, p: &mut Problems) {
    let (context, at) = (&spec["securityContext"], format!("{path}.securityContext"));
    for field in ["fsGroup", "runAsUser", "runAsGroup"] {
        container::id(&context[field], &format!("{at}.{field}"), p);
    }
    for (index, group) in items(&context["supplementalGroups"]).enumerate() {
        container::id(group, &format!("{at}.supplementalGroups[{index}]"), p);
    }
    if spec["shareProcessNamespace"] == true && spec["hostPID"] == true {
        let why = "ShareProcessNamespace and HostPID cannot both be enabled";
        p.invalid(format!("{at}.shareProcessNamespace"), &json!(true), why);
    }
    sysctls(spec, &format!("{at}.sysctls"), p);
    let one_of = |field: &str, known: &[&str], p: &mut Problems| {
        p.one_of_if_set(format!("{at}.{field}"), &context[field], known);
    };
    one_of("fsGroupChangePolicy", &["Always", "OnRootMismatch"], p);
    profiles::seccomp(&context["seccompProfile"], &format!("{at}.seccompProfile"), p);
    profiles::windows(&context["windowsOptions"], &format!("{at}.windowsOptions"), p);
    profiles::app_armor(&context["appArmorProfile"], &format!("{at}.appArmorProfile"), p);
    one_of("supplementalGroupsPolicy", &["Merge", "Strict"], p);
    // The other one, `MountOption`, is behind SELinuxMount, which is closed in v1.36.
    one_of("seLinuxChangePolicy", &["Recursive"], p);
}

fn sysctls(spec: &Value, at: &str, p: &mut Problems) {
    let mut seen: Vec<&str> = Vec::new();
    for (index, sysctl) in items(&spec["securityContext"]["sysctls"]).enumerate() {
        let field = format!("{at}[{index}].name");
        let name = text(sysctl, "name");
        if name.is_empty() {
            p.required(&field, "");
        } else if !is_sysctl(name) {
            let why = "must have at most 253 characters and match regex \
                       ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
            p.invalid(&field, &sysctl["name"], why);
        } else if seen.contains(&name) {
            p.duplicate(&field, &sysctl["name"]);
        }
        let dotted = name.replace('/', ".");
        let of_ipc = dotted == "kernel.sem"
            || ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|prefix| dotted.starts_with(prefix));
        if spec["hostNetwork"] == true && dotted.starts_with("net.") {
            p.invalid(&field, &sysctl["name"], "may not be specified when 'hostNetwork' is true");
        } else if spec["hostIPC"] == true && of_ipc {
            p.invalid(&field, &sysctl["name"], "may not be specified when 'hostIPC' is true");
        }
        seen.push(name);
    }
}

fn is_sysctl(name: &str) -> bool {
    let part = |part: &str| {
        let end = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = part.as_bytes();
        bytes.first().is_some_and(|b| end(*b))
            && bytes.last().is_some_and(|b| end(*b))
            && bytes.iter().all(|b| end(*b) || matches!(b, b'_' | b'-'))
    };
    name.len() <= 253 && name.split(['.', '/']).all(part)
}

fn host_aliases(spec: &Value, path: &str, p: &mut Problems) {
    for (index, alias) in items(&spec["hostAliases"]).enumerate() {
        let at = format!("{path}.hostAliases[{index}]");
        super::networking::ip(&or_empty(&alias["ip"]), &format!("{at}.ip"), p);
        for (i, hostname) in items(&alias["hostnames"]).enumerate() {
            p.subdomain(format!("{at}.hostnames[{i}]"), hostname);
        }
    }
}

fn spread(spec: &Value, path: &str, p: &mut Problems) {
    let pair = |constraint: &Value| {
        (text(constraint, "topologyKey").to_owned(), text(constraint, "whenUnsatisfiable").to_owned())
    };
    for (index, constraint) in items(&spec["topologySpreadConstraints"]).enumerate() {
        let at = format!("{path}.topologySpreadConstraints[{index}]");
        if constraint["maxSkew"].as_i64().unwrap_or(0) <= 0 {
            let shown = json!(constraint["maxSkew"].as_i64().unwrap_or(0));
            p.invalid(format!("{at}.maxSkew"), &shown, "must be greater than zero");
        }
        let (key, when) = pair(constraint);
        if key.is_empty() {
            p.required(format!("{at}.topologyKey"), "can not be empty");
        }
        let policies = ["DoNotSchedule", "ScheduleAnyway"];
        p.one_of(format!("{at}.whenUnsatisfiable"), &constraint["whenUnsatisfiable"], &policies);
        // The first of two is told of.
        let again =
            items(&spec["topologySpreadConstraints"]).skip(index + 1).any(|other| pair(other) == pair(constraint));
        if again {
            p.duplicate(format!("{at}.{{topologyKey, whenUnsatisfiable}}"), &json!(format!("{{{key}, {when}}}")));
        }
        if let Some(domains) = constraint["minDomains"].as_i64() {
            if domains <= 0 {
                p.invalid(format!("{at}.minDomains"), &json!(domains), "must be greater than zero");
            }
            if when != "DoNotSchedule" {
                let why = format!("can only use minDomains if whenUnsatisfiable={}, not {when}", "DoNotSchedule");
                p.invalid(format!("{at}.minDomains"), &json!(domains), &why);
            }
        }
        for field in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            p.one_of_if_set(format!("{at}.{field}"), &constraint[field], &["Honor", "Ignore"]);
        }
        selectors::label_keys(constraint, &at, p);
        selectors::label_selector(&constraint["labelSelector"], &format!("{at}.labelSelector"), p);
    }
}

fn gates(spec: &Value, path: &str, p: &mut Problems) {
    let mut seen: Vec<&str> = Vec::new();
    for (index, gate) in items(&spec["schedulingGates"]).enumerate() {
        let at = format!("{path}.schedulingGates[{index}]");
        let name = text(gate, "name");
        p.qualified_name(&at, name);
        if seen.contains(&name) {
            p.duplicate(&at, &gate["name"]);
        }
        seen.push(name);
    }
}

fn claims(spec: &Value, path: &str, is_mirror: bool, p: &mut Problems) {
    let mut seen: Vec<&str> = Vec::new();
    for (index, claim) in items(&spec["resourceClaims"]).enumerate() {
        if is_mirror {
            p.forbidden(WHOLE, "static pods do not support resource claims");
            continue;
        }
        let at = format!("{path}.resourceClaims[{index}]");
        let name = text(claim, "name");
        if name.is_empty() {
            p.required(format!("{at}.name"), "");
        } else if seen.contains(&name) {
            p.duplicate(format!("{at}.name"), &claim["name"]);
        } else {
            p.label(format!("{at}.name"), &claim["name"]);
        }
        seen.push(name);
        let shown = || crate::shown::compact("PodResourceClaim", claim);
        match (has(claim, "resourceClaimName"), has(claim, "resourceClaimTemplateName")) {
            (true, true) => {
                let why = "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified";
                p.invalid_shown(&at, &shown(), why);
            }
            (false, false) => {
                let why = "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`";
                p.invalid_shown(&at, &shown(), why);
            }
            _ => {}
        }
        for field in ["resourceClaimName", "resourceClaimTemplateName"] {
            if has(claim, field) {
                p.subdomain(format!("{at}.{field}"), &claim[field]);
            }
        }
    }
}

fn operating_system(spec: &Value, path: &str, p: &mut Problems) {
    let name = &spec["os"]["name"];
    match name.as_str().unwrap_or_default() {
        "" => p.required(format!("{path}.os.name"), "cannot be empty"),
        "windows" => windows(spec, path, p),
        "linux" => {
            const WHY: &str = "windows options cannot be set for a linux pod";
            if has(&spec["securityContext"], "windowsOptions") {
                p.forbidden(format!("{path}.securityContext.windowsOptions"), WHY);
            }
            for (container, at) in profiles::containers(spec, path) {
                if has(&container["securityContext"], "windowsOptions") {
                    p.forbidden(format!("{at}.securityContext.windowsOptions"), WHY);
                }
            }
        }
        _ => p.one_of(format!("{path}.os"), name, &["linux", "windows"]),
    }
}

/// What pods of Windows do not have; the names of the host are fields of the spec.
fn windows(spec: &Value, path: &str, p: &mut Problems) {
    const WHY: &str = "cannot be set for a windows pod";
    for field in NOT_OF_WINDOWS_PODS {
        let of_host = matches!(*field, "hostUsers" | "hostPID" | "hostIPC" | "shareProcessNamespace");
        let (holder, at) = if of_host {
            (spec, path.to_owned())
        } else {
            (&spec["securityContext"], format!("{path}.securityContext"))
        };
        let said = match *field {
            "hostPID" | "hostIPC" => holder[*field] == true,
            "sysctls" => items(&holder[*field]).next().is_some(),
            _ => has(holder, field),
        };
        if said {
            p.forbidden(format!("{at}.{field}"), WHY);
        }
    }
    for (container, at) in profiles::containers(spec, path) {
        for field in NOT_OF_WINDOWS_CONTAINERS.iter().filter(|field| has(&container["securityContext"], field)) {
            p.forbidden(format!("{at}.securityContext.{field}"), WHY);
        }
    }
}
