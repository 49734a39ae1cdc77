//! Containers: names, images, ports, environment, mounts, resources, probes and security.

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
/// Protocols of ports.
const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
/// Highest user or group.
const MAX_ID: i64 = i32::MAX as i64;

/// What a container needs to know of its pod.
pub struct Surroundings<'a> {
    /// Names of the volumes.
    pub volumes: Vec<(&'a str, &'a Value)>,
    /// Names of the resource claims.
    pub claims: Vec<&'a str>,
}

/// What every container has.
pub fn common(container: &Value, at: &str, around: &Surroundings<'_>, p: &mut Problems) {
    let name = text(container, "name");
    if name.is_empty() {
        p.required(format!("{at}.name"), "");
    } else {
        p.label(format!("{at}.name"), &container["name"]);
    }
    let image = text(container, "image");
    if image.is_empty() {
        p.required(format!("{at}.image"), "");
    } else if image.trim() != image {
        p.invalid(format!("{at}.image"), &container["image"], "must not have leading or trailing whitespace");
    }
    let policy = &container["terminationMessagePolicy"];
    if has(container, "terminationMessagePolicy") && policy != "" {
        p.one_of(format!("{at}.terminationMessagePolicy"), policy, &["FallbackToLogsOnError", "File"]);
    }
    if has(container, "imagePullPolicy") && container["imagePullPolicy"] != "" {
        let policies = ["Always", "IfNotPresent", "Never"];
        p.one_of(format!("{at}.imagePullPolicy"), &container["imagePullPolicy"], &policies);
    }
    ports(&container["ports"], &format!("{at}.ports"), p);
    environment(container, at, p);
    mounts(container, at, around, p);
    devices(container, at, around, p);
    resources(&container["resources"], &format!("{at}.resources"), Some(&around.claims), p);
    resize_policy(&container["resizePolicy"], &format!("{at}.resizePolicy"), p);
    security(&container["securityContext"], &format!("{at}.securityContext"), p);
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
    for (index, source) in items(&container["envFrom"]).enumerate() {
        let at = format!("{at}.envFrom[{index}]");
        if !text(source, "prefix").is_empty() {
            p.named(format!("{at}.prefix"), &source["prefix"], variable_name(text(source, "prefix")));
        }
        let set: Vec<&str> = ["configMapRef", "secretRef"].into_iter().filter(|f| has(source, f)).collect();
        for field in &set {
            p.present(&source[*field], "name", &format!("{at}.{field}"));
        }
        match set.len() {
            0 => p.invalid(&at, &json!(""), "must specify one of: `configMapRef` or `secretRef`"),
            1 => {}
            _ => p.invalid(&at, &json!(""), "may not have more than one field specified at a time"),
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
            "fileKeyRef" => {}
            _ => {
                p.present(inner, "name", &at);
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
    if !FIELD_LABELS.contains(&base) {
        let why = format!("error converting fieldPath: field label not supported: {path}");
        p.invalid(field, &reference["fieldPath"], &why);
        return;
    }
    match (base, subscript) {
        ("metadata.annotations", Some(key)) => p.qualified_name(&field, &key.to_lowercase()),
        ("metadata.labels", Some(key)) => p.qualified_name(&field, key),
        (_, Some(_)) => p.invalid(field, &json!(base), "does not support subscript"),
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
    let (allowed, what): (&[&str], &str) = match resource.split_once('.').map_or("", |(_, r)| r) {
        "cpu" => (&["1m", "1"], "divisor's values 1m and 1 are supported with the cpu resource"),
        "memory" => (
            &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"],
            "divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the memory resource",
        ),
        _ => return,
    };
    if !allowed.iter().any(|text| Quantity::parse(text).is_ok_and(|q| q == divisor)) {
        let why = format!("only {what}");
        p.invalid(format!("{at}.divisor"), &reference["divisor"], &why);
    }
}

fn mounts(container: &Value, at: &str, around: &Surroundings<'_>, p: &mut Problems) {
    let mut seen: Vec<&str> = Vec::new();
    for (index, mount) in items(&container["volumeMounts"]).enumerate() {
        let path = format!("{at}.volumeMounts");
        let at = format!("{path}[{index}]");
        p.present(mount, "name", &at);
        if !around.volumes.iter().any(|(name, _)| *name == text(mount, "name")) {
            p.not_found(format!("{at}.name"), &or_empty(&mount["name"]));
        }
        let mount_path = text(mount, "mountPath");
        p.present(mount, "mountPath", &at);
        if seen.contains(&mount_path) {
            p.invalid(format!("{at}.mountPath"), &or_empty(&mount["mountPath"]), "must be unique");
        }
        seen.push(mount_path);
        for device in items(&container["volumeDevices"]) {
            if text(device, "name") == text(mount, "name") {
                p.invalid(format!("{at}.name"), &mount["name"], "must not already exist in volumeDevices");
            }
            if text(device, "devicePath") == mount_path {
                let why = "must not already exist as a path in volumeDevices";
                p.invalid(format!("{at}.mountPath"), &mount["mountPath"], why);
            }
        }
        if !text(mount, "subPath").is_empty() {
            p.local_path(&format!("{path}.subPath"), &mount["subPath"]);
        }
        if !text(mount, "subPathExpr").is_empty() {
            if !text(mount, "subPath").is_empty() {
                let why = "subPathExpr and subPath are mutually exclusive";
                p.invalid(format!("{at}.subPathExpr"), &mount["subPathExpr"], why);
            }
            p.local_path(&format!("{path}.subPathExpr"), &mount["subPathExpr"]);
        }
        propagation(container, mount, &at, p);
    }
}

fn propagation(container: &Value, mount: &Value, at: &str, p: &mut Problems) {
    let field = format!("{at}.mountPropagation");
    p.one_of_if_set(&field, &mount["mountPropagation"], &["Bidirectional", "HostToContainer", "None"]);
    if mount["mountPropagation"] == "Bidirectional" && container["securityContext"]["privileged"] != true {
        p.forbidden(field, "Bidirectional mount propagation is available only to privileged containers");
    }
    match text(mount, "recursiveReadOnly") {
        "" | "Disabled" => {}
        "Enabled" | "IfPossible" => {
            if mount["readOnly"] != true {
                p.forbidden(format!("{at}.recursiveReadOnly"), "may only be specified when readOnly is true");
            }
            if !matches!(text(mount, "mountPropagation"), "" | "None") {
                let why = "may only be specified when mountPropagation is None or not specified";
                p.forbidden(format!("{at}.recursiveReadOnly"), why);
            }
        }
        _ => {
            let modes = ["Disabled", "IfPossible", "Enabled"];
            p.not_supported(format!("{at}.recursiveReadOnly"), &mount["recursiveReadOnly"], &modes);
        }
    }
}

fn devices(container: &Value, at: &str, around: &Surroundings<'_>, p: &mut Problems) {
    let (mut paths, mut seen): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    for (index, device) in items(&container["volumeDevices"]).enumerate() {
        let at = format!("{at}.volumeDevices[{index}]");
        let (name, path) = (text(device, "name"), text(device, "devicePath"));
        p.present(device, "name", &at);
        if seen.contains(&name) {
            p.invalid(format!("{at}.name"), &or_empty(&device["name"]), "must be unique");
        }
        match around.volumes.iter().find(|(volume, _)| *volume == name) {
            Some((_, volume)) if has(volume, "persistentVolumeClaim") || has(volume, "ephemeral") => {}
            Some(_) => {
                let why = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                p.invalid(format!("{at}.name"), &device["name"], why);
            }
            None => p.not_found(format!("{at}.name"), &or_empty(&device["name"])),
        }
        if p.present(device, "devicePath", &at) {
            if paths.contains(&path) {
                p.invalid(format!("{at}.devicePath"), &device["devicePath"], "must be unique");
            }
            p.path_no_backsteps(format!("{at}.devicePath"), &device["devicePath"]);
        }
        paths.push(path);
        seen.push(name);
    }
}

/// Whether a resource's name is one of Kubernetes' own.
pub fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

fn container_resource_name(name: &str, at: &str, p: &mut Problems) {
    resource_name(name, at, p);
    let standard = CONTAINER_RESOURCES.contains(&name) || name.starts_with("hugepages-");
    if !name.contains('/') {
        if !standard {
            p.invalid(at, &json!(name), "must be a standard resource for containers");
        }
    } else if !is_native(name) && (name.starts_with("requests.") || name.len() > 253) {
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
    CONTAINER_RESOURCES.contains(&amount) || amount.starts_with("hugepages-") || OTHERS.contains(&name)
}

/// Requests and limits; `claims` are the pod's resource claims, if there can be any.
pub fn resources(resources: &Value, path: &str, claims: Option<&[&str]>, p: &mut Problems) {
    let (limits, requests) = (&resources["limits"], &resources["requests"]);
    for (name, amount) in entries(limits) {
        let at = format!("{path}.limits[{name}]");
        container_resource_name(name, &at, p);
        p.not_negative_quantity(at, amount);
    }
    for (name, amount) in entries(requests) {
        let at = format!("{path}.requests[{name}]");
        container_resource_name(name, &at, p);
        p.not_negative_quantity(at, amount);
        let field = format!("{path}.requests");
        let may_overcommit = is_native(name) && !name.starts_with("hugepages-");
        match (quantity(amount), limits.get(name).and_then(quantity)) {
            (Some(asked), Some(limit)) if !may_overcommit && asked != limit => {
                p.invalid(field, amount, &format!("must be equal to {name} limit of {limit}"));
            }
            (Some(asked), Some(limit)) if may_overcommit && asked > limit => {
                p.invalid(field, amount, &format!("must be less than or equal to {name} limit of {limit}"));
            }
            (Some(_), None) if !may_overcommit => {
                p.required(format!("{path}.limits"), "Limit must be set for non overcommitable resources");
            }
            _ => {}
        }
    }
    let any = |prefix: &str| entries(limits).chain(entries(requests)).any(|(name, _)| name.starts_with(prefix));
    if any("hugepages-") && !any("cpu") && !any("memory") {
        p.forbidden(path, "HugePages require cpu or memory");
    }
    if let Some(claims) = claims {
        resource_claims(&resources["claims"], claims, &format!("{path}.claims"), p);
    }
}

fn resource_claims(list: &Value, claims: &[&str], path: &str, p: &mut Problems) {
    let mut seen = Vec::new();
    for (index, claim) in items(list).enumerate() {
        let at = format!("{path}[{index}]");
        let (name, request) = (text(claim, "name"), text(claim, "request"));
        if name.is_empty() {
            p.required(format!("{at}.name"), "");
            continue;
        }
        if seen.contains(&(name, request)) {
            let shown = if request.is_empty() { name.to_owned() } else { format!("{name}/{request}") };
            p.duplicate(&at, &json!(shown));
        }
        seen.push((name, request));
        if !claims.contains(&name) {
            let mut cause = crate::status::Cause::not_found(&at, &claim["name"]);
            cause.message += ": must be one of the names in pod.spec.resourceClaims";
            match claims {
                [] => cause.message += " which is empty",
                _ => cause.message += &format!(": {}", claims.join(", ")),
            }
            p.0.push(cause);
        }
    }
}

fn resize_policy(list: &Value, path: &str, p: &mut Problems) {
    let mut seen: Vec<&str> = Vec::new();
    for (index, policy) in items(list).enumerate() {
        let at = format!("{path}[{index}]");
        let name = text(policy, "resourceName");
        if seen.contains(&name) {
            p.duplicate(&at, &policy["resourceName"]);
        }
        seen.push(name);
        match name {
            "" => p.required(&at, ""),
            _ => p.one_of(&at, &policy["resourceName"], &["cpu", "memory"]),
        }
        match text(policy, "restartPolicy") {
            "" => p.required(&at, ""),
            _ => p.one_of(&at, &policy["restartPolicy"], &["NotRequired", "RestartContainer"]),
        }
    }
}

fn security(context: &Value, at: &str, p: &mut Problems) {
    if !context.is_object() {
        return;
    }
    for field in ["runAsUser", "runAsGroup"] {
        id(&context[field], &format!("{at}.{field}"), p);
    }
    p.one_of_if_set(format!("{at}.procMount"), &context["procMount"], &["Default", "Unmasked"]);
    if context["allowPrivilegeEscalation"] == false {
        if context["privileged"] == true {
            let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            let shown = crate::shown::compact("SecurityContext", context);
            p.invalid_shown(at, &shown, why);
        }
        if items(&context["capabilities"]["add"]).any(|c| c == "CAP_SYS_ADMIN") {
            let why = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            let shown = crate::shown::compact("SecurityContext", context);
            p.invalid_shown(at, &shown, why);
        }
    }
    profile(&context["seccompProfile"], &format!("{at}.seccompProfile"), p);
    profile(&context["appArmorProfile"], &format!("{at}.appArmorProfile"), p);
}

/// A seccomp or AppArmor profile.
pub fn profile(profile: &Value, at: &str, p: &mut Problems) {
    if !profile.is_object() {
        return;
    }
    let (kind, file) = (text(profile, "type"), text(profile, "localhostProfile"));
    match kind {
        "" => p.required(format!("{at}.type"), "type is required when seccompProfile is set"),
        "Localhost" if file.is_empty() => {
            p.required(format!("{at}.localhostProfile"), "must be set when seccomp type is Localhost");
        }
        "Localhost" => p.local_path(&format!("{at}.localhostProfile"), &profile["localhostProfile"]),
        "RuntimeDefault" | "Unconfined" if !file.is_empty() => {
            let why = "can only be set when seccomp type is Localhost";
            p.invalid(format!("{at}.localhostProfile"), &profile["localhostProfile"], why);
        }
        _ => p.one_of(format!("{at}.type"), &profile["type"], &["Localhost", "RuntimeDefault", "Unconfined"]),
    }
}

/// A user or group number.
pub fn id(value: &Value, field: &str, p: &mut Problems) {
    if value.as_i64().is_some_and(|n| !(0..=MAX_ID).contains(&n)) {
        p.invalid(field, value, "must be between 0 and 2147483647, inclusive");
    }
}

/// Probes and hooks of a container that runs along.
pub fn running(container: &Value, at: &str, p: &mut Problems) {
    for hook in ["postStart", "preStop"] {
        let handler = &container["lifecycle"][hook];
        if handler.is_object() {
            handler_kinds(handler, &["exec", "httpGet", "tcpSocket", "sleep"], &format!("{at}.lifecycle.{hook}"), p);
        }
    }
    for field in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let probe = &container[field];
        if !probe.is_object() {
            continue;
        }
        let at = format!("{at}.{field}");
        handler_kinds(probe, &["exec", "httpGet", "tcpSocket", "grpc"], &at, p);
        for number in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
        {
            p.not_negative(format!("{at}.{number}"), &probe[number]);
        }
        let grace = &probe["terminationGracePeriodSeconds"];
        if field == "readinessProbe" {
            if !grace.is_null() {
                let why = "must not be set for readinessProbes";
                p.invalid(format!("{at}.terminationGracePeriodSeconds"), grace, why);
            }
        } else {
            if grace.as_i64().is_some_and(|g| g <= 0) {
                p.invalid(format!("{at}.terminationGracePeriodSeconds"), grace, "must be greater than 0");
            }
            if probe["successThreshold"].as_i64().is_some_and(|n| n != 1) {
                p.invalid(format!("{at}.successThreshold"), &probe["successThreshold"], "must be 1");
            }
        }
    }
}

fn handler_kinds(handler: &Value, kinds: &[&str], at: &str, p: &mut Problems) {
    let set: Vec<&&str> = kinds.iter().filter(|kind| has(handler, kind)).collect();
    if set.is_empty() {
        p.required(at, "must specify a handler type");
    }
    for (index, kind) in set.into_iter().enumerate() {
        let (inner, at) = (&handler[*kind], format!("{at}.{kind}"));
        if index > 0 {
            p.forbidden(at, "may not specify more than 1 handler type");
            continue;
        }
        match *kind {
            "exec" if items(&inner["command"]).next().is_none() => p.required(format!("{at}.command"), ""),
            "httpGet" => http_get(inner, &at, p),
            "tcpSocket" => p.port_or_name(&format!("{at}.port"), &inner["port"]),
            "grpc" => p.port(format!("{at}.port"), &inner["port"]),
            "sleep" if inner["seconds"].as_i64().is_some_and(|s| s < 0) => {
                p.invalid(
                    format!("{at}.seconds"),
                    &inner["seconds"],
                    "must be non-negative and less than terminationGracePeriodSeconds",
                );
            }
            _ => {}
        }
    }
}

fn http_get(action: &Value, at: &str, p: &mut Problems) {
    p.present(action, "path", at);
    p.port_or_name(&format!("{at}.port"), &action["port"]);
    p.one_of(format!("{at}.scheme"), &action["scheme"], &["HTTP", "HTTPS"]);
    for header in items(&action["httpHeaders"]) {
        let name = text(header, "name");
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
            let why = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for \
                       validation is '[-A-Za-z0-9]+')";
            p.invalid(format!("{at}.httpHeaders"), &or_empty(&header["name"]), why);
        }
    }
}
