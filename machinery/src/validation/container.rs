//! Containers: names, images, ports, environment, mounts, resources, probes and security.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::check::{Problems, or_empty, quantity};
use super::{entries, has, items, text};
use crate::names;
use crate::quantity::Quantity;

/// Amounts that containers may ask for by a short name.
const CONTAINER_RESOURCES: &[&str] = &["cpu", "memory", "ephemeral-storage"];
/// Fields that the environment may show.
const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// Fields of pods that have a label.
const FIELD_LABELS: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.serviceAccountName",
    "spec.schedulerName",
    "status.phase",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// Resources that the environment may show.
const CONTAINER_FIELDS: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
/// By what amounts may be divided that the environment shows.
const CPU_DIVISORS: &[&str] = &["1m", "1"];
const BYTE_DIVISORS: &[&str] = &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];
/// Protocols of ports.
const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
/// Highest user or group.
const MAX_ID: i64 = i32::MAX as i64;

/// What a container needs to know of its pod.
pub struct Surroundings<'a> {
    /// The good volumes by their names.
    pub volumes: Vec<(&'a str, &'a Value)>,
    /// Names of the resource claims.
    pub claims: Vec<&'a str>,
    /// Whether it is a pod, not a template.
    pub is_pod: bool,
    /// Whether containers are never started again.
    pub never_restarts: bool,
    /// Whether users are those of the host.
    pub host_users: bool,
    /// Seconds that the pod may take to end.
    pub grace: i64,
}

/// What every container has.
pub fn common(container: &Value, at: &str, around: &Surroundings<'_>, p: &mut Problems) {
    let name = text(container, "name");
    if name.is_empty() {
        p.required(format!("{at}.name"), "");
    } else {
        p.label(format!("{at}.name"), &container["name"]);
    }
    if text(container, "image").is_empty() {
        p.required(format!("{at}.image"), "");
    }
    let policy = &container["terminationMessagePolicy"];
    if has(container, "terminationMessagePolicy") && policy != "" {
        p.one_of(format!("{at}.terminationMessagePolicy"), policy, &["File", "FallbackToLogsOnError"]);
    }
    ports(&container["ports"], &format!("{at}.ports"), p);
    environment(container, at, p);
    super::mounts::mounts(container, at, &around.volumes, p);
    super::mounts::devices(container, at, &around.volumes, p);
    if has(container, "imagePullPolicy") && container["imagePullPolicy"] != "" {
        let field = format!("{at}.imagePullPolicy");
        p.one_of(field, &container["imagePullPolicy"], super::volumes::PULL_POLICIES);
    }
    resources(&container["resources"], &format!("{at}.resources"), Some(&around.claims), p);
    resize_policy(&container["resizePolicy"], &format!("{at}.resizePolicy"), around.never_restarts, p);
    security(&container["securityContext"], &format!("{at}.securityContext"), around.host_users, p);
}

/// The image of a pod's container has no space around it; templates may have some.
pub fn trimmed_image(container: &Value, at: &str, p: &mut Problems) {
    let image = text(container, "image");
    if image.trim() != image {
        p.invalid(format!("{at}.image"), &container["image"], "must not have leading or trailing whitespace");
    }
}

fn ports(list: &Value, path: &str, p: &mut Problems) {
    let mut seen: Vec<&str> = Vec::new();
    for (index, port) in items(list).enumerate() {
        let at = format!("{path}[{index}]");
        let name = text(port, "name");
        if !name.is_empty() {
            let problems = names::port_name_problems(name);
            if problems.is_empty() && seen.contains(&name) {
                p.duplicate(format!("{at}.name"), &port["name"]);
            }
            for problem in problems {
                p.invalid(format!("{at}.name"), &port["name"], &problem);
            }
            seen.push(name);
        }
        if port["containerPort"].as_i64().unwrap_or(0) == 0 {
            p.required(format!("{at}.containerPort"), "");
        } else {
            p.port(format!("{at}.containerPort"), &port["containerPort"]);
        }
        if port["hostPort"].as_i64().unwrap_or(0) != 0 {
            p.port(format!("{at}.hostPort"), &port["hostPort"]);
        }
        if text(port, "protocol").is_empty() {
            p.required(format!("{at}.protocol"), "");
        } else {
            p.one_of(format!("{at}.protocol"), &port["protocol"], PROTOCOLS);
        }
    }
}

/// Whether a text may name a variable.
fn variable_name(name: &str) -> Option<String> {
    let good = |b: u8| (0x20..0x7f).contains(&b) && b != b'=';
    (!name.bytes().all(good)).then(|| {
        "a valid environment variable name must consist only of printable ASCII characters other than '='".into()
    })
}

fn environment(container: &Value, at: &str, p: &mut Problems) {
    for (index, variable) in items(&container["env"]).enumerate() {
        let at = format!("{at}.env[{index}]");
        if p.present(variable, "name", &at) {
            p.named(format!("{at}.name"), &variable["name"], variable_name(text(variable, "name")));
        }
        if has(variable, "valueFrom") {
            value_from(variable, &at, p);
        }
    }
    let path = format!("{at}.envFrom");
    for (index, source) in items(&container["envFrom"]).enumerate() {
        let at = format!("{path}[{index}]");
        if !text(source, "prefix").is_empty() {
            p.named(format!("{at}.prefix"), &source["prefix"], variable_name(text(source, "prefix")));
        }
        let set: Vec<&str> = ["configMapRef", "secretRef"].into_iter().filter(|f| has(source, f)).collect();
        for field in &set {
            if p.present(&source[*field], "name", &format!("{at}.{field}")) {
                // The name may be a prefix, as of one that is generated.
                let name = text(&source[*field], "name");
                let whole = name.strip_suffix('-').map_or(name.to_owned(), |cut| format!("{cut}a"));
                for problem in names::subdomain_problems(&whole) {
                    p.invalid(format!("{at}.{field}.name"), &source[*field]["name"], &problem);
                }
            }
        }
        match set.len() {
            0 => p.invalid(&path, &json!(""), "must specify one of: `configMapRef` or `secretRef`"),
            1 => {}
            _ => p.invalid(&path, &json!(""), "may not have more than one field specified at a time"),
        }
    }
}

fn value_from(variable: &Value, at: &str, p: &mut Problems) {
    let (source, path) = (&variable["valueFrom"], format!("{at}.valueFrom"));
    let mut count = 0;
    for field in ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"] {
        if !has(source, field) {
            continue;
        }
        count += 1;
        let (inner, at) = (&source[field], format!("{path}.{field}"));
        match field {
            "fieldRef" => field_ref(inner, ENV_FIELDS, &at, p),
            "resourceFieldRef" => resource_field_ref(inner, false, &at, p),
            "fileKeyRef" => file_key(inner, &at, p),
            _ => {
                p.subdomain(format!("{at}.name"), &inner["name"]);
                if p.present(inner, "key", &at) {
                    for problem in names::config_key_problems(text(inner, "key")) {
                        p.invalid(format!("{at}.key"), &inner["key"], &problem);
                    }
                }
            }
        }
    }
    let why = match count {
        0 => "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        _ if !text(variable, "value").is_empty() => "may not be specified when `value` is not empty",
        1 => return,
        _ => "may not have more than one field specified at a time",
    };
    p.invalid(path, &json!(""), why);
}

/// A variable out of a file.
fn file_key(inner: &Value, at: &str, p: &mut Problems) {
    if p.present(inner, "key", at) {
        p.named(format!("{at}.key"), &inner["key"], variable_name(text(inner, "key")));
    }
    if p.present(inner, "volumeName", at) {
        p.label(format!("{at}.volumeName"), &inner["volumeName"]);
    }
    if p.present(inner, "path", at) {
        p.path_no_backsteps(format!("{at}.path"), &inner["path"]);
    }
}

/// Files with variables are in empty directories of the pod: of all its volumes, also of those that are wrong.
pub fn variable_files(spec: &Value, path: &str, p: &mut Problems) {
    for (container, at) in super::profiles::containers(spec, path) {
        for (index, variable) in items(&container["env"]).enumerate() {
            let file = &variable["valueFrom"]["fileKeyRef"];
            if !file.is_object() {
                continue;
            }
            let (name, field) =
                (or_empty(&file["volumeName"]), format!("{at}.env[{index}].valueFrom.fileKeyRef.volumeName"));
            match items(&spec["volumes"]).filter(|volume| or_empty(&volume["name"]) == name).last() {
                None => p.not_found(field, &name),
                Some(volume) if !has(volume, "emptyDir") => {
                    p.invalid(field, &name, "referenced volume must be of type emptyDir");
                }
                Some(_) => {}
            }
        }
    }
}

/// A reference to a field of the pod.
pub fn field_ref(reference: &Value, allowed: &[&str], at: &str, p: &mut Problems) {
    let field = format!("{at}.fieldPath");
    let path = text(reference, "fieldPath");
    if text(reference, "apiVersion").is_empty() {
        p.required(format!("{at}.apiVersion"), "");
        return;
    }
    if path.is_empty() {
        p.required(field, "");
        return;
    }
    let (base, subscript) = match path.split_once("['").and_then(|(b, rest)| Some((b, rest.strip_suffix("']")?))) {
        Some((base, key)) => (base, Some(key)),
        None => (path, None),
    };
    let convert = if text(reference, "apiVersion") != "v1" {
        Some(format!("unsupported pod version: {}", text(reference, "apiVersion")))
    } else if subscript.is_some() && !matches!(base, "metadata.annotations" | "metadata.labels") {
        Some(format!("field label does not support subscript: {path}"))
    } else if subscript.is_none() && base != "spec.host" && !FIELD_LABELS.contains(&base) {
        Some(format!("field label not supported: {path}"))
    } else {
        None
    };
    if let Some(why) = convert {
        return p.invalid(field, &reference["fieldPath"], &format!("error converting fieldPath: {why}"));
    }
    let base = if base == "spec.host" { "spec.nodeName" } else { base };
    match (base, subscript) {
        // The key is told of by the path of the reference.
        ("metadata.annotations", Some(key)) => p.qualified_name(at, &key.to_lowercase()),
        (_, Some(key)) => p.qualified_name(at, key),
        _ if !allowed.contains(&base) => p.not_supported(field, &json!(base), allowed),
        _ => {}
    }
}

/// A reference to an amount of a container.
pub fn resource_field_ref(reference: &Value, in_volume: bool, at: &str, p: &mut Problems) {
    let resource = text(reference, "resource");
    if in_volume && text(reference, "containerName").is_empty() {
        p.required(format!("{at}.containerName"), "");
    } else if resource.is_empty() {
        p.required(format!("{at}.resource"), "");
    } else if !CONTAINER_FIELDS.contains(&resource)
        && !resource.starts_with("limits.hugepages-")
        && !resource.starts_with("requests.hugepages-")
    {
        p.not_supported(format!("{at}.resource"), &reference["resource"], CONTAINER_FIELDS);
    }
    let Some(divisor) = quantity(&reference["divisor"]).filter(|d| !d.is_zero()) else { return };
    let (what, allowed) = match resource.split_once('.').map_or("", |(_, r)| r) {
        "cpu" => ("cpu", CPU_DIVISORS),
        "memory" => ("memory", BYTE_DIVISORS),
        "ephemeral-storage" => ("local ephemeral storage", BYTE_DIVISORS),
        other if other.starts_with("hugepages-") => ("hugepages", BYTE_DIVISORS),
        _ => return,
    };
    let written = divisor.to_string();
    if !allowed.contains(&written.as_str()) {
        let values = if what == "cpu" { "1m and 1".to_owned() } else { allowed.join(", ") };
        let why = format!("only divisor's values {values} are supported with the {what} resource");
        p.invalid(format!("{at}.divisor"), &reference["resource"], &why);
    }
}

/// Whether a resource's name is one of Kubernetes' own.
pub fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// The name of a resource that containers ask for.
pub fn container_resource_name(name: &str, at: &str, p: &mut Problems) {
    resource_name(name, at, p);
    let standard = CONTAINER_RESOURCES.contains(&name) || name.starts_with("hugepages-");
    if !name.contains('/') {
        if !standard {
            p.invalid(at, &json!(name), "must be a standard resource for containers");
        }
    } else if !is_native(name) && !is_extended(name) {
        p.invalid(at, &json!(name), "doesn't follow extended resource name standard");
    }
}

/// A resource's name: qualified, and known if it has no domain.
pub fn resource_name(name: &str, at: &str, p: &mut Problems) {
    let before = p.0.len();
    p.qualified_name(at, name);
    if p.0.len() == before && !name.contains('/') && !is_standard(name) {
        p.invalid(at, &json!(name), "must be a standard resource type or fully qualified");
    }
}

fn is_standard(name: &str) -> bool {
    const OTHERS: &[&str] = &[
        "storage",
        "pods",
        "services",
        "replicationcontrollers",
        "resourcequotas",
        "secrets",
        "configmaps",
        "persistentvolumeclaims",
        "services.nodeports",
        "services.loadbalancers",
        "requests.storage",
    ];
    let amount = name.strip_prefix("requests.").or_else(|| name.strip_prefix("limits.")).unwrap_or(name);
    CONTAINER_RESOURCES.contains(&amount) || is_huge_pages(name) || OTHERS.contains(&name)
}

/// Whether a name of a quota is of pages of some size.
pub fn is_huge_pages(name: &str) -> bool {
    name.strip_prefix("requests.").unwrap_or(name).starts_with("hugepages-")
}

/// An amount: not negative, and whole where parts make no sense.
pub fn amount(name: &str, value: &Value, at: &str, p: &mut Problems) {
    p.not_negative_quantity(at, value);
    if is_whole(name) && quantity(value).is_some_and(|q| q.millis() % 1000 != 0) {
        p.invalid(at, value, "must be an integer");
    }
}

/// Whether a resource is counted in whole numbers: counts of objects, and what others than Kubernetes define.
pub fn is_whole(name: &str) -> bool {
    const COUNTED: &[&str] = &[
        "pods",
        "services",
        "replicationcontrollers",
        "resourcequotas",
        "secrets",
        "configmaps",
        "persistentvolumeclaims",
        "services.nodeports",
        "services.loadbalancers",
    ];
    COUNTED.contains(&name) || is_extended(name)
}

/// Whether a resource is defined by others than Kubernetes.
pub fn is_extended(name: &str) -> bool {
    !is_native(name)
        && !name.starts_with("requests.")
        && names::qualified_name_problems(&format!("requests.{name}")).is_empty()
}

/// Pages of one size: the amount is a multiple of it.
fn huge_pages(name: &str, value: &Value, at: &str, p: &mut Problems) {
    let (Some(size), Some(asked)) = (name.strip_prefix("hugepages-"), quantity(value)) else { return };
    let whole = |size: &Quantity| size.millis() > 0 && size.millis() % 1000 == 0;
    let size = Quantity::parse(size).ok().filter(whole);
    if size.is_none_or(|size| asked.units() % size.units() != 0) {
        p.invalid(at, &json!(asked.to_string()), &format!("{asked} is not positive integer multiple of {name}"));
    }
}

/// Requests and limits; `claims` are the pod's resource claims, if there can be any.
pub fn resources(resources: &Value, path: &str, claims: Option<&[&str]>, p: &mut Problems) {
    requirements(resources, path, container_resource_name, p);
    if let Some(claims) = claims {
        resource_claims(&resources["claims"], claims, &format!("{path}.claims"), p);
    }
}

/// Requests and limits whose names a rule looks at.
pub fn requirements(resources: &Value, path: &str, rule: fn(&str, &str, &mut Problems), p: &mut Problems) {
    let (limits, requests) = (&resources["limits"], &resources["requests"]);
    for (name, value) in entries(limits) {
        let at = format!("{path}.limits[{name}]");
        rule(name, &at, p);
        amount(name, value, &at, p);
        huge_pages(name, value, &at, p);
    }
    for (name, value) in entries(requests) {
        let at = format!("{path}.requests[{name}]");
        rule(name, &at, p);
        amount(name, value, &at, p);
        let field = format!("{path}.requests");
        let may_overcommit = is_native(name) && !name.starts_with("hugepages-");
        match (quantity(value), limits.get(name).and_then(quantity)) {
            (Some(asked), Some(limit)) if !may_overcommit && asked != limit => {
                p.invalid(field, value, &format!("must be equal to {name} limit of {limit}"));
            }
            (Some(asked), Some(limit)) if may_overcommit && asked > limit => {
                p.invalid(field, value, &format!("must be less than or equal to {name} limit of {limit}"));
            }
            (Some(_), None) if !may_overcommit => {
                p.required(format!("{path}.limits"), "Limit must be set for non overcommitable resources");
            }
            _ => {}
        }
        huge_pages(name, value, &at, p);
    }
    let any = |prefix: &str| entries(limits).chain(entries(requests)).any(|(name, _)| name.starts_with(prefix));
    let either = |name: &str| has(limits, name) || has(requests, name);
    if any("hugepages-") && !either("cpu") && !either("memory") {
        p.forbidden(path, "HugePages require cpu or memory");
    }
}

/// The claims that a container (or in error a pod) names; `claims` are those that the pod has.
pub fn resource_claims(list: &Value, claims: &[&str], path: &str, p: &mut Problems) {
    let mut seen: Vec<String> = Vec::new();
    for (index, claim) in items(list).enumerate() {
        let at = format!("{path}[{index}]");
        let (name, request) = (text(claim, "name"), text(claim, "request"));
        if name.is_empty() {
            p.required(&at, "");
            continue;
        }
        if seen.iter().any(|s| s == name) {
            p.duplicate(&at, &json!(name));
        } else {
            let key = if request.is_empty() { name.to_owned() } else { format!("{name}/{request}") };
            if !request.is_empty() {
                p.label(format!("{at}.request"), &claim["request"]);
            }
            if seen.contains(&key) {
                p.duplicate(&at, &json!(key));
            } else if request.is_empty() {
                let parts = seen.iter().filter(|s| s.split_once('/').is_some_and(|(n, _)| n == name)).count();
                (0..parts).for_each(|_| p.duplicate(&at, &json!(name)));
            }
            seen.push(key);
        }
        if !claims.contains(&name) {
            let mut cause = crate::status::Cause::not_found(&at, &claim["name"]);
            cause.message += ": must be one of the names in pod.spec.resourceClaims";
            let sorted: BTreeSet<&str> = claims.iter().copied().collect();
            cause.message += match sorted.into_iter().collect::<Vec<_>>()[..] {
                [] => " which is empty".to_owned(),
                ref names => format!(": {}", names.join(", ")),
            }
            .as_str();
            p.0.push(cause);
        }
    }
}

/// Told of by the path of the list, but for what is there twice.
fn resize_policy(list: &Value, path: &str, never_restarts: bool, p: &mut Problems) {
    let mut seen: Vec<&str> = Vec::new();
    for (index, policy) in items(list).enumerate() {
        let name = text(policy, "resourceName");
        if seen.contains(&name) {
            p.duplicate(format!("{path}[{index}]"), &policy["resourceName"]);
        }
        seen.push(name);
        match name {
            "" => p.required(path, ""),
            _ => p.one_of(path, &policy["resourceName"], &["cpu", "memory"]),
        }
        match text(policy, "restartPolicy") {
            "" => p.required(path, ""),
            _ => p.one_of(path, &policy["restartPolicy"], &["NotRequired", "RestartContainer"]),
        }
        if never_restarts && policy["restartPolicy"] != "NotRequired" {
            let why = "must be 'NotRequired' when pod `restartPolicy` is 'Never'";
            p.invalid(path, &or_empty(&policy["restartPolicy"]), why);
        }
    }
}

fn security(context: &Value, at: &str, host_users: bool, p: &mut Problems) {
    if !context.is_object() {
        return;
    }
    for field in ["runAsUser", "runAsGroup"] {
        id(&context[field], &format!("{at}.{field}"), p);
    }
    p.one_of_if_set(format!("{at}.procMount"), &context["procMount"], &["Default", "Unmasked"]);
    if host_users && context["procMount"] == "Unmasked" {
        let why = "`hostUsers` must be false to use `Unmasked`";
        p.invalid(format!("{at}.procMount"), &context["procMount"], why);
    }
    super::profiles::seccomp(&context["seccompProfile"], &format!("{at}.seccompProfile"), p);
    if context["allowPrivilegeEscalation"] == false {
        let shown = || crate::shown::compact("SecurityContext", context);
        if context["privileged"] == true {
            let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            p.invalid_shown(at, &shown(), why);
        }
        for _ in items(&context["capabilities"]["add"]).filter(|c| **c == "CAP_SYS_ADMIN") {
            let why = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            p.invalid_shown(at, &shown(), why);
        }
    }
    super::profiles::windows(&context["windowsOptions"], &format!("{at}.windowsOptions"), p);
    super::profiles::app_armor(&context["appArmorProfile"], &format!("{at}.appArmorProfile"), p);
}

/// A user or group number.
pub fn id(value: &Value, field: &str, p: &mut Problems) {
    if value.as_i64().is_some_and(|n| !(0..=MAX_ID).contains(&n)) {
        p.invalid(field, value, "must be between 0 and 2147483647, inclusive");
    }
}
