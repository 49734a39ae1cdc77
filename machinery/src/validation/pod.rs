//! Pods and pod templates.

use serde_json::{Value, json};

use super::check::{Problems, or_empty};
use super::container::{self, Surroundings};
use super::volumes::{self, PodFacts};
use super::{entries, has, items, meta, pod_update, selectors, text};
use crate::names;

/// Most name servers of a pod.
const MAX_NAME_SERVERS: usize = 3;
/// Most search domains of a pod, and their characters.
const MAX_SEARCHES: (usize, usize) = (32, 2048);
/// DNS policies.
const DNS_POLICIES: &[&str] = &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
/// Fields of security contexts that only Linux has.
const LINUX_ONLY: &[&str] = &[
    "appArmorProfile",
    "seLinuxOptions",
    "seccompProfile",
    "fsGroup",
    "fsGroupChangePolicy",
    "sysctls",
    "runAsUser",
    "runAsGroup",
    "supplementalGroups",
    "supplementalGroupsPolicy",
    "capabilities",
    "readOnlyRootFilesystem",
    "privileged",
    "allowPrivilegeEscalation",
    "procMount",
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
    spec(&object["spec"], "spec", text(&object["metadata"], "name"), p);
}

/// A template: its metadata (`path.metadata`) and its pods (`path.spec`).
pub fn template(template: &Value, path: &str, p: &mut Problems) {
    let metadata = &template["metadata"];
    meta::labels(&metadata["labels"], &format!("{path}.labels"), p);
    meta::annotations(&metadata["annotations"], &format!("{path}.annotations"), p);
    spec(&template["spec"], &format!("{path}.spec"), "", p);
    if items(&template["spec"]["ephemeralContainers"]).next().is_some() {
        p.forbidden(format!("{path}.spec.ephemeralContainers"), "ephemeral containers not allowed in pod template");
    }
}

/// A pod's spec at a path.
pub fn spec(spec: &Value, path: &str, name: &str, p: &mut Problems) {
    let facts = PodFacts { name, has_account: !text(spec, "serviceAccountName").is_empty() };
    volumes::volumes(spec, path, &facts, p);
    containers(spec, path, p);
    p.one_of(format!("{path}.restartPolicy"), &spec["restartPolicy"], &["Always", "OnFailure", "Never"]);
    dns(spec, path, p);
    placement(spec, path, p);
    references(spec, path, p);
    security(spec, path, p);
    seconds(spec, path, p);
    host_aliases(spec, path, p);
    spread(spec, path, p);
    gates_and_claims(spec, path, p);
    for (name, amount) in entries(&spec["overhead"]) {
        let at = format!("{path}.overhead[{name}]");
        container::resource_name(name, &at, p);
        p.not_negative_quantity(at, amount);
    }
    if spec["os"].is_object() {
        operating_system(spec, path, p);
    }
}

fn containers(spec: &Value, path: &str, p: &mut Problems) {
    let around = Surroundings {
        volumes: items(&spec["volumes"]).map(|v| (text(v, "name"), v)).collect(),
        claims: items(&spec["resourceClaims"]).map(|c| text(c, "name")).collect(),
    };
    if items(&spec["containers"]).next().is_none() {
        p.required(format!("{path}.containers"), "");
    }
    let mut names: Vec<&str> = Vec::new();
    for field in ["containers", "initContainers"] {
        for (index, container) in items(&spec[field]).enumerate() {
            let at = format!("{path}.{field}[{index}]");
            container::common(container, &at, &around, p);
            let name = text(container, "name");
            if !name.is_empty() && names.contains(&name) {
                p.duplicate(format!("{at}.name"), &container["name"]);
            }
            names.push(name);
            if field == "containers" || container["restartPolicy"] == "Always" {
                container::running(container, &at, p);
            } else {
                init_container(container, &at, p);
            }
        }
    }
    ephemeral_containers(spec, path, &around, &names, p);
    host_ports(spec, path, p);
}

fn init_container(container: &Value, at: &str, p: &mut Problems) {
    for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
        if has(container, field) {
            p.forbidden(format!("{at}.{field}"), "may not be set for init containers without restartPolicy=Always");
        }
    }
}

fn ephemeral_containers(spec: &Value, path: &str, around: &Surroundings<'_>, others: &[&str], p: &mut Problems) {
    let mut names: Vec<&str> = others.to_vec();
    for (index, container) in items(&spec["ephemeralContainers"]).enumerate() {
        let at = format!("{path}.ephemeralContainers[{index}]");
        container::common(container, &at, around, p);
        let name = text(container, "name");
        if !name.is_empty() && names.contains(&name) {
            p.duplicate(format!("{at}.name"), &container["name"]);
        }
        names.push(name);
        let target = text(container, "targetContainerName");
        if !target.is_empty() && !others.contains(&target) {
            p.not_found(format!("{at}.targetContainerName"), &container["targetContainerName"]);
        }
        for field in ["ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle"] {
            if has(container, field) {
                p.forbidden(format!("{at}.{field}"), "cannot be set for an Ephemeral Container");
            }
        }
        if container["resources"].as_object().is_some_and(|r| !r.is_empty()) {
            p.forbidden(format!("{at}.resources"), "cannot be set for an Ephemeral Container");
        }
        if items(&container["resizePolicy"]).next().is_some() {
            p.forbidden(format!("{at}.resizePolicy"), "cannot be set for an Ephemeral Container");
        }
    }
}

/// A node's port is for one container; with the node's network both ports are the same.
fn host_ports(spec: &Value, path: &str, p: &mut Problems) {
    let host_network = spec["hostNetwork"] == true;
    for field in ["containers", "initContainers"] {
        let mut seen: Vec<String> = Vec::new();
        for (index, container) in items(&spec[field]).enumerate() {
            for (i, port) in items(&container["ports"]).enumerate() {
                let at = format!("{path}.{field}[{index}].ports[{i}].hostPort");
                let number = port["hostPort"].as_i64().unwrap_or(0);
                if host_network && number != 0 && number != port["containerPort"].as_i64().unwrap_or(0) {
                    p.invalid(&at, &json!(number), "must match `containerPort` when `hostNetwork` is true");
                }
                if number == 0 {
                    continue;
                }
                let key = format!("{}/{}/{number}", text(port, "protocol"), text(port, "hostIP"));
                if seen.contains(&key) {
                    p.duplicate(at, &json!(key));
                }
                seen.push(key);
            }
        }
    }
}

fn dns(spec: &Value, path: &str, p: &mut Problems) {
    p.one_of(format!("{path}.dnsPolicy"), &spec["dnsPolicy"], DNS_POLICIES);
    let (config, at) = (&spec["dnsConfig"], format!("{path}.dnsConfig"));
    let servers: Vec<&Value> = items(&config["nameservers"]).collect();
    if spec["dnsPolicy"] == "None" && servers.is_empty() {
        let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        p.required(if config.is_null() { at.clone() } else { format!("{at}.nameservers") }, why);
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
    for (index, search) in items(&config["searches"]).enumerate() {
        let domain = search.as_str().unwrap_or_default();
        let domain = if domain == "." { "a" } else { domain.strip_suffix('.').unwrap_or(domain) };
        // Search domains may have underscores.
        p.named(format!("{at}.searches[{index}]"), search, names::dns_subdomain(&domain.replace('_', "-")));
    }
    for (index, option) in items(&config["options"]).enumerate() {
        if text(option, "name").is_empty() {
            p.required(format!("{at}.options[{index}]"), "must not be empty");
        }
    }
}

fn placement(spec: &Value, path: &str, p: &mut Problems) {
    meta::labels(&spec["nodeSelector"], &format!("{path}.nodeSelector"), p);
    if spec["affinity"].is_object() {
        selectors::affinity(&spec["affinity"], &format!("{path}.affinity"), p);
    }
    selectors::tolerations(&spec["tolerations"], &format!("{path}.tolerations"), p);
    for field in ["nodeName", "serviceAccountName", "priorityClassName", "runtimeClassName"] {
        if !text(spec, field).is_empty() {
            p.subdomain(format!("{path}.{field}"), &spec[field]);
        }
    }
    for field in ["hostname", "subdomain"] {
        if !text(spec, field).is_empty() {
            p.label(format!("{path}.{field}"), &spec[field]);
        }
    }
    let preemption = ["Never", "PreemptLowerPriority"];
    p.one_of_if_set(format!("{path}.preemptionPolicy"), &spec["preemptionPolicy"], &preemption);
    for (index, gate) in items(&spec["readinessGates"]).enumerate() {
        let field = format!("{path}.readinessGates[{index}].conditionType");
        p.qualified_name(&field, text(gate, "conditionType"));
    }
}

fn references(spec: &Value, path: &str, p: &mut Problems) {
    // Only the name is kept of a secret that pulls images, and an empty one is no mistake.
    let _ = &spec["imagePullSecrets"];
    if spec["setHostnameAsFQDN"] == true && spec["hostNetwork"] == true {
        p.forbidden(format!("{path}.setHostnameAsFQDN"), "cannot be true when hostNetwork is true");
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
    let mut seen: Vec<&str> = Vec::new();
    for (index, sysctl) in items(&context["sysctls"]).enumerate() {
        let field = format!("{at}.sysctls[{index}].name");
        let name = text(sysctl, "name");
        if name.is_empty() {
            p.required(field, "");
        } else if !is_sysctl(name) {
            let why = "must have at most 253 characters and match regex \
                       ^([a-z0-9][a-z0-9_]*[\\./])*[a-z0-9][a-z0-9_]*$";
            p.invalid(field, &sysctl["name"], why);
        } else if seen.contains(&name) {
            p.duplicate(field, &sysctl["name"]);
        }
        seen.push(name);
    }
    p.one_of_if_set(
        format!("{at}.fsGroupChangePolicy"),
        &context["fsGroupChangePolicy"],
        &["OnRootMismatch", "Always"],
    );
    p.one_of_if_set(
        format!("{at}.supplementalGroupsPolicy"),
        &context["supplementalGroupsPolicy"],
        &["Merge", "Strict"],
    );
    container::profile(&context["seccompProfile"], &format!("{at}.seccompProfile"), p);
    container::profile(&context["appArmorProfile"], &format!("{at}.appArmorProfile"), p);
}

fn is_sysctl(name: &str) -> bool {
    let part = |part: &str| {
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-');
        part.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) && part.bytes().all(good)
    };
    name.len() <= 253 && name.split(['.', '/']).all(part)
}

fn seconds(spec: &Value, path: &str, p: &mut Problems) {
    if spec["activeDeadlineSeconds"].as_i64().is_some_and(|n| !(1..=i64::from(i32::MAX)).contains(&n)) {
        let why = "must be between 1 and 2147483647, inclusive";
        p.invalid(format!("{path}.activeDeadlineSeconds"), &spec["activeDeadlineSeconds"], why);
    }
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
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for (index, constraint) in items(&spec["topologySpreadConstraints"]).enumerate() {
        let at = format!("{path}.topologySpreadConstraints[{index}]");
        if constraint["maxSkew"].as_i64().unwrap_or(0) <= 0 {
            let shown = json!(constraint["maxSkew"].as_i64().unwrap_or(0));
            p.invalid(format!("{at}.maxSkew"), &shown, "must be greater than zero");
        }
        let (key, when) = (text(constraint, "topologyKey"), text(constraint, "whenUnsatisfiable"));
        if key.is_empty() {
            p.required(format!("{at}.topologyKey"), "can not be empty");
        } else {
            p.qualified_name(&format!("{at}.topologyKey"), key);
        }
        let policies = ["DoNotSchedule", "ScheduleAnyway"];
        p.one_of(format!("{at}.whenUnsatisfiable"), &constraint["whenUnsatisfiable"], &policies);
        if seen.contains(&(key, when)) {
            let message = format!("Duplicate value: {:?}", format!("{{{key}, {when}}}"));
            let field = format!("{at}.{{topologyKey, whenUnsatisfiable}}");
            p.0.push(crate::status::Cause { reason: "FieldValueDuplicate".into(), message, field });
        }
        seen.push((key, when));
        if let Some(domains) = constraint["minDomains"].as_i64() {
            if domains <= 0 {
                p.invalid(format!("{at}.minDomains"), &json!(domains), "must be greater than 0");
            }
            if when != "DoNotSchedule" {
                let why = format!("can only use minDomains if whenUnsatisfiable={}, not {when}", "DoNotSchedule");
                p.invalid(format!("{at}.minDomains"), &json!(domains), &why);
            }
        }
        for field in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            p.one_of_if_set(format!("{at}.{field}"), &constraint[field], &["Honor", "Ignore"]);
        }
        selectors::label_selector(&constraint["labelSelector"], &format!("{at}.labelSelector"), p);
    }
}

fn gates_and_claims(spec: &Value, path: &str, p: &mut Problems) {
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
    let mut seen: Vec<&str> = Vec::new();
    for (index, claim) in items(&spec["resourceClaims"]).enumerate() {
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
            if has(&spec["securityContext"], "windowsOptions") {
                let field = format!("{path}.securityContext.windowsOptions");
                p.forbidden(field, "windows options cannot be set for a linux pod");
            }
        }
        _ => p.one_of(format!("{path}.os.name"), name, &["linux", "windows"]),
    }
}

fn windows(spec: &Value, path: &str, p: &mut Problems) {
    const WHY: &str = "cannot be set for a windows pod";
    for field in ["hostPID", "hostIPC", "shareProcessNamespace", "hostUsers"] {
        if has(spec, field) && (field == "shareProcessNamespace" || field == "hostUsers" || spec[field] == true) {
            p.forbidden(format!("{path}.{field}"), WHY);
        }
    }
    let mut context = |context: &Value, at: String| {
        for field in LINUX_ONLY.iter().filter(|field| has(context, field)) {
            p.forbidden(format!("{at}.{field}"), WHY);
        }
    };
    context(&spec["securityContext"], format!("{path}.securityContext"));
    for list in ["containers", "initContainers"] {
        for (index, container) in items(&spec[list]).enumerate() {
            context(&container["securityContext"], format!("{path}.{list}[{index}].securityContext"));
        }
    }
}
