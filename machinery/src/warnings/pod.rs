//! Pods and templates: old annotations and labels, volumes of plugins that are gone, what is said twice.

use std::net::IpAddr;

use serde_json::Value;

use super::{address, fraction, node_term, old_label};
use crate::validation::{entries, has, items, text};
use crate::{names, quantity::Quantity};

const NO_SELECTOR: &str = "a null labelSelector results in matching no pod";
const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
/// The annotation that named a container's AppArmor profile before there was a field.
pub(crate) const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";
/// Said of it.
pub(crate) const APP_ARMOR_OLD: &str = "deprecated since v1.30; use the \"appArmorProfile\" field instead";
const SECCOMP_GONE: &str = "non-functional in v1.27+; use the \"seccompProfile\" field instead";

/// Annotations that nothing reads any more.
const OLD_ANNOTATIONS: &[(&str, &str)] = &[
    (
        "scheduler.alpha.kubernetes.io/critical-pod",
        "non-functional in v1.16+; use the \"priorityClassName\" field instead",
    ),
    ("security.alpha.kubernetes.io/sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
    ("security.alpha.kubernetes.io/unsafe-sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
];

/// Volumes of plugins that are gone: the field, as messages name it, and since when.
const OLD_VOLUMES: &[(&str, &str, &str)] = &[
    ("photonPersistentDisk", "photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("gitRepo", "gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
    ("scaleIO", "scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "storageOS", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

/// What is told of a new pod.
pub fn pod(metadata: &Value, spec: &Value, out: &mut Vec<String>) {
    let problems = names::label_problems(text(metadata, "name"));
    if !problems.is_empty() && !text(metadata, "name").is_empty() {
        out.push(format!(
            "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is \
             recommended: [{}]",
            problems.join(" ")
        ));
    }
    of(metadata, spec, "", out);
}

/// What is told of a template at a path.
pub fn template(template: &Value, path: &str, out: &mut Vec<String>) {
    of(&template["metadata"], &template["spec"], &format!("{path}."), out);
}

/// A pod (`prefix` "") or a template; the order of what is told is the order of Kubernetes.
fn of(metadata: &Value, spec: &Value, prefix: &str, out: &mut Vec<String>) {
    let path = &format!("{prefix}spec");
    placement(spec, path, out);
    for (key, why) in OLD_ANNOTATIONS.iter().filter(|(key, _)| has(&metadata["annotations"], key)) {
        out.push(format!("{prefix}metadata.annotations[{key}]: {why}"));
    }
    volumes(spec, path, out);
    overlaps(spec, out);
    twice(&spec["hostAliases"], "ip", "duplicate ip", &format!("{path}.hostAliases"), out);
    twice(&spec["imagePullSecrets"], "name", "duplicate name", &format!("{path}.imagePullSecrets"), out);
    for (index, secret) in items(&spec["imagePullSecrets"]).enumerate() {
        if text(secret, "name").is_empty() {
            out.push(format!("{path}.imagePullSecrets[{index}].name: invalid empty name \"\""));
        }
    }
    byte_fractions(&spec["overhead"], &["memory", "ephemeral-storage"], &format!("{path}.overhead"), out);
    let annotations = (&metadata["annotations"], format!("{prefix}metadata.annotations"));
    if has(annotations.0, SECCOMP_POD) && !has(&spec["securityContext"], "seccompProfile") {
        out.push(format!("{}[{SECCOMP_POD}]: {SECCOMP_GONE}", annotations.1));
    }
    for (container, at) in containers(spec, path) {
        old_profiles(container, spec, (annotations.0, &annotations.1), prefix, out);
        self::container(container, &at, out);
    }
    ports(spec, path, out);
    if spec["terminationGracePeriodSeconds"].as_i64().is_some_and(|seconds| seconds < 0) {
        let why = "must be >= 0; negative values are invalid and will be treated as 1";
        out.push(format!("{path}.terminationGracePeriodSeconds: {why}"));
    }
    affinity(spec, path, out);
    for (index, server) in items(&spec["dnsConfig"]["nameservers"]).enumerate() {
        address(server.as_str().unwrap_or_default(), &format!("{path}.dnsConfig.nameservers[{index}]"), out);
    }
    for (index, alias) in items(&spec["hostAliases"]).enumerate() {
        address(text(alias, "ip"), &format!("{path}.hostAliases[{index}].ip"), out);
    }
}

/// All containers of a pod with their paths.
fn containers<'a>(spec: &'a Value, path: &'a str) -> impl Iterator<Item = (&'a Value, String)> {
    ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(move |list| {
        items(&spec[list]).enumerate().map(move |(index, container)| (container, format!("{path}.{list}[{index}]")))
    })
}

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// Labels of nodes that have other names by now, and spreads over nothing.
fn placement(spec: &Value, path: &str, out: &mut Vec<String>) {
    for (key, _) in entries(&spec["nodeSelector"]) {
        out.extend(old_label(key).map(|why| format!("{path}.nodeSelector[{key}]: {why}")));
    }
    let (group, at) = (&spec["affinity"]["nodeAffinity"], format!("{path}.affinity.nodeAffinity"));
    for (index, term) in items(&group[REQUIRED]["nodeSelectorTerms"]).enumerate() {
        node_term(term, false, &format!("{at}.{REQUIRED}.nodeSelectorTerms[{index}]"), out);
    }
    for (index, term) in items(&group[PREFERRED]).enumerate() {
        node_term(&term["preference"], true, &format!("{at}.{PREFERRED}[{index}].preference"), out);
    }
    for (index, constraint) in items(&spec["topologySpreadConstraints"]).enumerate() {
        let at = format!("{path}.topologySpreadConstraints[{index}]");
        let key = text(constraint, "topologyKey");
        out.extend(old_label(key).map(|why| format!("{at}.topologyKey: {key} is {why}")));
        if !has(constraint, "labelSelector") {
            out.push(format!("{at}.labelSelector: {NO_SELECTOR}"));
        }
    }
}

fn affinity(spec: &Value, path: &str, out: &mut Vec<String>) {
    for kind in ["podAffinity", "podAntiAffinity"] {
        let group = &spec["affinity"][kind];
        let at = format!("{path}.affinity.{kind}");
        for (index, term) in items(&group[REQUIRED]).enumerate() {
            if !has(term, "labelSelector") {
                out.push(format!("{at}.{REQUIRED}[{index}].labelSelector: {NO_SELECTOR}"));
            }
        }
        for (index, term) in items(&group[PREFERRED]).enumerate() {
            if !has(&term["podAffinityTerm"], "labelSelector") {
                out.push(format!("{at}.{PREFERRED}[{index}].podAffinityTerm.labelSelector: {NO_SELECTOR}"));
            }
        }
    }
}

fn volumes(spec: &Value, path: &str, out: &mut Vec<String>) {
    for (index, volume) in items(&spec["volumes"]).enumerate() {
        let at = format!("{path}.volumes[{index}]");
        for (_, shown, why) in OLD_VOLUMES.iter().filter(|(source, ..)| has(volume, source)) {
            out.push(format!("{at}.{shown}: {why}"));
        }
        let claim = &volume["ephemeral"]["volumeClaimTemplate"]["spec"];
        super::claim_amounts(claim, &format!("{at}.ephemeral.volumeClaimTemplate.spec"), out);
    }
}

/// A file of a volume and what it comes from ("" where the volume has one source).
#[derive(Clone)]
struct File {
    path: String,
    source: String,
}

impl std::fmt::Display for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.source.as_str() {
            "" => write!(f, "{:?}", self.path),
            source => write!(f, "{:?} ({source})", self.path),
        }
    }
}

/// Files of one volume of which one hides the other, or lies in a directory that is a file.
fn overlaps(spec: &Value, out: &mut Vec<String>) {
    for volume in items(&spec["volumes"]) {
        let name = text(volume, "name");
        let whole = [
            ("configMap", format!("volume {name:?} (ConfigMap {:?})", text(&volume["configMap"], "name"))),
            ("secret", format!("volume {name:?} (Secret {:?})", text(&volume["secret"], "secretName"))),
            ("downwardAPI", format!("volume {name:?} (DownwardAPI)")),
        ];
        for (field, what) in whole {
            collide(files(&volume[field], ""), &what, &mut Vec::new(), out);
        }
        let (mut before, mut listed): (Vec<File>, Vec<File>) = (Vec::new(), Vec::new());
        for source in items(&volume["projected"]["sources"]) {
            if entries(source).all(|(_, inner)| inner.is_null()) {
                out.push(format!("volume {name:?} (Projected) has no sources provided"));
                continue;
            }
            // Upstream looks at the files of the one before again where a source lists none.
            if let Some(files) = projected_files(source) {
                listed = files;
            }
            collide(listed.clone(), &format!("volume {name:?} (Projected)"), &mut before, out);
        }
    }
}

/// The files that a list of keys or fields gives.
fn files(source: &Value, shown: &str) -> Vec<File> {
    items(&source["items"]).map(|item| file(text(item, "path"), shown)).collect()
}

fn file(path: &str, source: &str) -> File {
    File { path: path.trim_end_matches('/').to_owned(), source: source.to_owned() }
}

/// The files that a source says it gives.
fn projected_files(source: &Value) -> Option<Vec<File>> {
    let listed = ["configMap", "secret", "downwardAPI"].into_iter().find(|field| has(&source[*field], "items"));
    if let Some(field) = listed {
        let name = text(&source[field], "name");
        let shown = match field {
            "configMap" => format!("ConfigMap {name:?}"),
            "secret" => format!("Secret {name:?}"),
            _ => "DownwardAPI".to_owned(),
        };
        return Some(files(&source[field], &shown));
    }
    if has(source, "serviceAccountToken") {
        return Some(vec![file(text(&source["serviceAccountToken"], "path"), "ServiceAccountToken")]);
    }
    let bundle = &source["clusterTrustBundle"];
    bundle.is_object().then(|| {
        let name = if has(bundle, "name") { text(bundle, "name") } else { text(bundle, "signerName") };
        vec![file(text(bundle, "path"), &format!("ClusterTrustBundle {name:?}"))]
    })
}

/// Tells of files that are in the way of those before them, and adds them to those.
fn collide(files: Vec<File>, what: &str, before: &mut Vec<File>, out: &mut Vec<String>) {
    let within =
        |inner: &str, outer: &str| inner == outer || inner.strip_prefix(outer).is_some_and(|r| r.starts_with('/'));
    for file in files {
        let in_the_way = |other: &&File| {
            let named = !file.path.is_empty() && !other.path.is_empty();
            named && (within(&file.path, &other.path) || within(&other.path, &file.path))
        };
        for other in before.iter().filter(in_the_way) {
            out.push(format!("{what}: overlapping paths: {file} with {other}"));
        }
        before.push(file);
    }
}

/// Entries of a list that say the same as one before.
fn twice(list: &Value, key: &str, what: &str, path: &str, out: &mut Vec<String>) {
    let mut seen: Vec<&str> = Vec::new();
    for (index, entry) in items(list).enumerate() {
        let said = text(entry, key);
        if seen.contains(&said) {
            out.push(format!("{path}[{index}].{key}: {what} {said:?}"));
        } else {
            seen.push(said);
        }
    }
}

/// Annotations of one container that fields have taken the place of. Of pods the AppArmor one is told when it is
/// written into the field.
fn old_profiles(container: &Value, spec: &Value, annotations: (&Value, &str), prefix: &str, out: &mut Vec<String>) {
    let (own, name) = (&container["securityContext"], text(container, "name"));
    let key = format!("{SECCOMP_CONTAINER}{name}");
    if has(annotations.0, &key) && !has(own, "seccompProfile") {
        out.push(format!("{}[{key}]: {SECCOMP_GONE}", annotations.1));
    }
    let key = format!("{APP_ARMOR}{name}");
    let field = has(own, "appArmorProfile") || has(&spec["securityContext"], "appArmorProfile");
    if !prefix.is_empty() && has(annotations.0, &key) && !field {
        out.push(format!("{}[{key}]: {APP_ARMOR_OLD}", annotations.1));
    }
}

/// Parts of bytes.
fn byte_fractions(amounts: &Value, names: &[&str], path: &str, out: &mut Vec<String>) {
    for name in names {
        out.extend(fraction(&amounts[*name]).map(|why| format!("{path}[{name}]: {why}")));
    }
}

fn container(container: &Value, path: &str, out: &mut Vec<String>) {
    for name in ["memory", "ephemeral-storage"] {
        for list in ["limits", "requests"] {
            byte_fractions(&container["resources"][list], &[name], &format!("{path}.resources.{list}"), out);
        }
    }
    let mut seen: Vec<&str> = Vec::new();
    for (index, variable) in items(&container["env"]).enumerate() {
        let name = text(variable, "name");
        if !seen.contains(&name) {
            seen.push(name);
            continue;
        }
        // A variable that adds to what it was is meant so.
        let (value, itself) = (text(variable, "value"), format!("$({name})"));
        if has(variable, "valueFrom") || value == itself || !value.contains(&itself) {
            out.push(format!(
                "{path}.env[{index}]: hides previous definition of {name:?}, which may be dropped when using apply"
            ));
        }
    }
}

/// A port and the path of it.
struct Port<'a> {
    value: &'a Value,
    path: String,
}

impl Port<'_> {
    fn host(&self) -> (i64, &str) {
        (self.value["hostPort"].as_i64().unwrap_or(0), text(self.value, "hostIP"))
    }

    fn key(&self) -> (i64, &str) {
        (self.value["containerPort"].as_i64().unwrap_or(0), text(self.value, "protocol"))
    }
}

/// The same port twice is no mistake, but hardly meant.
fn ports(spec: &Value, path: &str, out: &mut Vec<String>) {
    let mut seen: Vec<Port<'_>> = Vec::new();
    for (container, at) in containers(spec, path) {
        for (index, value) in items(&container["ports"]).enumerate() {
            let port = Port { value, path: format!("{at}.ports[{index}]") };
            let (number, ip) = port.host();
            if !ip.is_empty() && number == 0 {
                let shown = format!(
                    "{{Name:{} HostPort:0 ContainerPort:{} Protocol:{} HostIP:{ip}}}",
                    text(value, "name"),
                    port.key().0,
                    port.key().1
                );
                out.push(format!("{}: hostIP set without hostPort: {shown}", port.path));
            }
            for other in seen.iter().filter(|other| other.key() == port.key()) {
                let (theirs, their_ip) = other.host();
                let how = if (number, ip) == (theirs, their_ip) {
                    "duplicate"
                } else if number == 0 || theirs == 0 {
                    "overlapping"
                } else if number == theirs && ip.is_empty() != their_ip.is_empty() {
                    "dangerously ambiguous"
                } else {
                    continue;
                };
                out.push(format!("{}: {how} port definition with {}", port.path, other.path));
            }
            seen.push(port);
        }
    }
}

/// What is told of the addresses that a status says.
pub fn addresses(status: &Value, out: &mut Vec<String>) {
    for list in ["podIPs", "hostIPs"] {
        for (index, entry) in items(&status[list]).enumerate() {
            address(text(entry, "ip"), &format!("status.{list}[{index}].ip"), out);
        }
    }
}

/// Whether an amount is a whole number of bytes.
pub(super) fn is_whole(amount: &str) -> bool {
    Quantity::parse(amount).map_or(true, |quantity| quantity.millis() % 1000 == 0)
}

/// The way in which an address of version 6 is written, if it is one that is written in another.
pub(super) fn other_form(address: &str) -> Option<String> {
    let Ok(IpAddr::V6(ip)) = address.parse::<IpAddr>() else { return None };
    Some(ip.to_string()).filter(|canonical| canonical != address)
}
