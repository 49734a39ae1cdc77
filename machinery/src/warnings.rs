//! What is accepted and yet told: deprecated fields and values that do not do what they seem to.

use serde_json::Value;

use crate::base64_text::{self, Form};
use crate::names;
use crate::quantity::Quantity;
use crate::resource::ResourceDef;
use crate::validation::{entries, has, items, text};

/// Labels of nodes that have other names by now.
const OLD_LABELS: &[(&str, &str)] = &[
    ("beta.kubernetes.io/arch", "deprecated since v1.14; use \"kubernetes.io/arch\" instead"),
    ("beta.kubernetes.io/os", "deprecated since v1.14; use \"kubernetes.io/os\" instead"),
    (
        "failure-domain.beta.kubernetes.io/region",
        "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead",
    ),
    ("failure-domain.beta.kubernetes.io/zone", "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead"),
    ("beta.kubernetes.io/instance-type", "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead"),
];
const NO_SELECTOR: &str = "a null labelSelector results in matching no pod";
const SECCOMP: &str = "seccomp.security.alpha.kubernetes.io/pod";

/// What is to be told of a new or changed object.
pub fn of(def: &ResourceDef, subresource: &str, new: &Value, old: Option<&Value>) -> Vec<String> {
    let mut out = Vec::new();
    if !subresource.is_empty() || def.custom {
        return out;
    }
    // Of a template that stayed as it was nothing is told again.
    let generation = |object: &Value| object["metadata"]["generation"].as_i64().unwrap_or(0);
    let unchanged = old.is_some_and(|old| generation(old) == generation(new));
    match (def.group, def.plural) {
        ("apps" | "batch", _) | ("", "replicationcontrollers") if unchanged => {}
        ("", "pods") => {
            if old.is_none() {
                pod_name(text(&new["metadata"], "name"), &mut out);
            }
            pod(&new["metadata"], &new["spec"], "metadata", "spec", &mut out);
        }
        ("", "podtemplates") => template(&new["template"], "template", &mut out),
        ("apps", "controllerrevisions") => {}
        ("apps", _) | ("batch", "jobs") | ("", "replicationcontrollers") => {
            template(&new["spec"]["template"], "spec.template", &mut out);
        }
        ("batch", "cronjobs") => {
            template(&new["spec"]["jobTemplate"]["spec"]["template"], "spec.jobTemplate.spec.template", &mut out);
        }
        ("", "services") => service(&new["spec"], &mut out),
        ("", "persistentvolumes") => volume(new, &mut out),
        ("", "secrets") => certificate(new, &mut out),
        ("storage.k8s.io", "csidrivers") if old.is_none() => driver(&new["spec"], &mut out),
        ("", "persistentvolumeclaims") => {
            claim(new, &mut out);
        }
        ("", "serviceaccounts") => account(&new["metadata"], old, &mut out),
        ("networking.k8s.io", "ingresses")
            if old.is_none()
                && !has(&new["spec"], "ingressClassName")
                && has(&new["metadata"]["annotations"], "kubernetes.io/ingress.class") =>
        {
            let why = "is deprecated, please use 'spec.ingressClassName' instead";
            out.push(format!("annotation \"kubernetes.io/ingress.class\" {why}"));
        }
        _ => {}
    }
    out
}

/// The annotation that limits an account's pods to its own secrets has had its time.
fn account(metadata: &Value, old: Option<&Value>, out: &mut Vec<String>) {
    const ENFORCE: &str = "kubernetes.io/enforce-mountable-secrets";
    let before = old.map(|old| &old["metadata"]["annotations"][ENFORCE]);
    if metadata["annotations"].get(ENFORCE).is_some() && before != Some(&metadata["annotations"][ENFORCE]) {
        let why = "deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets";
        out.push(format!("metadata.annotations[{ENFORCE}]: {why}"));
    }
}

fn pod_name(name: &str, out: &mut Vec<String>) {
    let problems = names::label_problems(name);
    if !problems.is_empty() && !name.is_empty() {
        out.push(format!(
            "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is \
             recommended: [{}]",
            problems.join(" ")
        ));
    }
}

fn template(template: &Value, path: &str, out: &mut Vec<String>) {
    pod(&template["metadata"], &template["spec"], &format!("{path}.metadata"), &format!("{path}.spec"), out);
}

fn old_label(key: &str) -> Option<&'static str> {
    OLD_LABELS.iter().find(|(old, _)| *old == key).map(|(_, why)| *why)
}

fn pod(metadata: &Value, spec: &Value, meta_path: &str, path: &str, out: &mut Vec<String>) {
    for (key, _) in entries(&spec["nodeSelector"]) {
        out.extend(old_label(key).map(|why| format!("{path}.nodeSelector[{key}]: {why}")));
    }
    node_affinity(spec, path, out);
    affinity(spec, path, out);
    for (index, constraint) in items(&spec["topologySpreadConstraints"]).enumerate() {
        let at = format!("{path}.topologySpreadConstraints[{index}]");
        out.extend(old_label(text(constraint, "topologyKey")).map(|why| format!("{at}.topologyKey: {why}")));
        if !has(constraint, "labelSelector") {
            out.push(format!("{at}.labelSelector: {NO_SELECTOR}"));
        }
    }
    if has(&metadata["annotations"], SECCOMP) {
        let why = "non-functional in v1.27+; use the \"seccompProfile\" field instead";
        out.push(format!("{meta_path}.annotations[{SECCOMP}]: {why}"));
    }
    for (key, _) in entries(&metadata["annotations"]) {
        if key.starts_with("container.seccomp.security.alpha.kubernetes.io/") {
            let why = "non-functional in v1.27+; use the \"seccompProfile\" field instead";
            out.push(format!("{meta_path}.annotations[{key}]: {why}"));
        }
        if key.starts_with("container.apparmor.security.beta.kubernetes.io/") {
            let why = "deprecated since v1.30; use the \"appArmorProfile\" field instead";
            out.push(format!("{meta_path}.annotations[{key}]: {why}"));
        }
    }
    volumes(spec, path, out);
    twice(&spec["hostAliases"], "ip", "duplicate ip", &format!("{path}.hostAliases"), out);
    for (index, alias) in items(&spec["hostAliases"]).enumerate() {
        address(text(alias, "ip"), &format!("{path}.hostAliases[{index}].ip"), out);
    }
    for (index, server) in items(&spec["dnsConfig"]["nameservers"]).enumerate() {
        address(server.as_str().unwrap_or_default(), &format!("{path}.dnsConfig.nameservers[{index}]"), out);
    }
    for (index, secret) in items(&spec["imagePullSecrets"]).enumerate() {
        if text(secret, "name").is_empty() {
            out.push(format!("{path}.imagePullSecrets[{index}].name: invalid empty name \"\""));
        }
    }
    twice(&spec["imagePullSecrets"], "name", "duplicate name", &format!("{path}.imagePullSecrets"), out);
    if spec["terminationGracePeriodSeconds"].as_i64().is_some_and(|seconds| seconds < 0) {
        let why = "must be >= 0; negative values are invalid and will be treated as 1";
        out.push(format!("{path}.terminationGracePeriodSeconds: {why}"));
    }
    fractions(&spec["overhead"], &format!("{path}.overhead"), out);
    for list in ["initContainers", "containers"] {
        for (index, container) in items(&spec[list]).enumerate() {
            self::container(container, &format!("{path}.{list}[{index}]"), out);
        }
    }
    ports(spec, path, out);
}

/// Entries of a list that say the same as one before; what says nothing is told of elsewhere.
fn twice(list: &Value, key: &str, what: &str, path: &str, out: &mut Vec<String>) {
    let mut seen: Vec<&str> = Vec::new();
    for (index, entry) in items(list).enumerate() {
        let said = text(entry, key);
        if seen.contains(&said) {
            out.push(format!("{path}[{index}].{key}: {what} {said:?}"));
        } else if !said.is_empty() {
            seen.push(said);
        }
    }
}

/// An address that others write in another way.
fn address(text: &str, path: &str, out: &mut Vec<String>) {
    if let Ok(std::net::IpAddr::V6(ip)) = text.parse::<std::net::IpAddr>() {
        let canonical = ip.to_string();
        if canonical != text {
            out.push(format!("{path}: IPv6 address {text:?} should be in RFC 5952 canonical format ({canonical:?})"));
        }
    }
}

fn node_affinity(spec: &Value, path: &str, out: &mut Vec<String>) {
    let (required, preferred) =
        ("requiredDuringSchedulingIgnoredDuringExecution", "preferredDuringSchedulingIgnoredDuringExecution");
    let (group, at) = (&spec["affinity"]["nodeAffinity"], format!("{path}.affinity.nodeAffinity"));
    for (index, term) in items(&group[required]["nodeSelectorTerms"]).enumerate() {
        node_term(term, false, &format!("{at}.{required}.nodeSelectorTerms[{index}]"), out);
    }
    for (index, term) in items(&group[preferred]).enumerate() {
        node_term(&term["preference"], true, &format!("{at}.{preferred}[{index}].preference"), out);
    }
}

/// Labels that have other names by now, and values (of preferences, where they are no mistake) that no label has.
fn node_term(term: &Value, check_values: bool, path: &str, out: &mut Vec<String>) {
    for (index, expression) in items(&term["matchExpressions"]).enumerate() {
        let at = format!("{path}.matchExpressions[{index}]");
        let key = text(expression, "key");
        out.extend(old_label(key).map(|why| format!("{at}.key: {key} is {why}")));
        for (i, value) in items(&expression["values"]).enumerate().filter(|_| check_values) {
            let value = value.as_str().unwrap_or_default();
            for problem in names::label_value_problems(value) {
                out.push(format!("{at}.values[{i}]: {value} is invalid, {problem}"));
            }
        }
    }
}

fn affinity(spec: &Value, path: &str, out: &mut Vec<String>) {
    let (required, preferred) =
        ("requiredDuringSchedulingIgnoredDuringExecution", "preferredDuringSchedulingIgnoredDuringExecution");
    for kind in ["podAffinity", "podAntiAffinity"] {
        let group = &spec["affinity"][kind];
        let at = format!("{path}.affinity.{kind}");
        for (index, term) in items(&group[required]).enumerate() {
            if !has(term, "labelSelector") {
                out.push(format!("{at}.{required}[{index}].labelSelector: {NO_SELECTOR}"));
            }
        }
        for (index, term) in items(&group[preferred]).enumerate() {
            if !has(&term["podAffinityTerm"], "labelSelector") {
                out.push(format!("{at}.{preferred}[{index}].podAffinityTerm.labelSelector: {NO_SELECTOR}"));
            }
        }
    }
}

fn volumes(spec: &Value, path: &str, out: &mut Vec<String>) {
    const GONE: &[(&str, &str)] = &[
        ("photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
        ("gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
        ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
        ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
        ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
        ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
        ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
        ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
        ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
    ];
    for (index, volume) in items(&spec["volumes"]).enumerate() {
        let at = format!("{path}.volumes[{index}]");
        for (source, why) in GONE.iter().filter(|(source, _)| has(volume, source)) {
            out.push(format!("{at}.{source}: {why}"));
        }
        let claim = &volume["ephemeral"]["volumeClaimTemplate"]["spec"];
        let at = format!("{at}.ephemeral.volumeClaimTemplate.spec");
        storage_fractions(claim, &at, out);
    }
}

fn fraction(name: &str, amount: &Value) -> Option<String> {
    if !matches!(name, "memory" | "ephemeral-storage" | "storage") {
        return None;
    }
    let text = amount.as_str()?;
    let whole = Quantity::parse(text).ok()?.millis() % 1000 == 0;
    (!whole).then(|| format!("fractional byte value {text:?} is invalid, must be an integer"))
}

fn fractions(amounts: &Value, path: &str, out: &mut Vec<String>) {
    for (name, amount) in entries(amounts) {
        out.extend(fraction(name, amount).map(|why| format!("{path}[{name}]: {why}")));
    }
}

fn storage_fractions(spec: &Value, path: &str, out: &mut Vec<String>) {
    for list in ["requests", "limits"] {
        fractions(&spec["resources"][list], &format!("{path}.resources.{list}"), out);
    }
}

fn container(container: &Value, path: &str, out: &mut Vec<String>) {
    for list in ["limits", "requests"] {
        fractions(&container["resources"][list], &format!("{path}.resources.{list}"), out);
    }
    let mut seen: Vec<&str> = Vec::new();
    for (index, variable) in items(&container["env"]).enumerate() {
        let name = text(variable, "name");
        // A variable that refers to itself adds to what it was.
        let refers = text(variable, "value").contains(&format!("$({name})"));
        if seen.contains(&name) && !refers {
            out.push(format!(
                "{path}.env[{index}]: hides previous definition of {name:?}, which may be dropped when using apply"
            ));
        }
        seen.push(name);
    }
}

/// The same port twice is no mistake, but hardly meant.
fn ports(spec: &Value, path: &str, out: &mut Vec<String>) {
    let mut seen: Vec<(Value, String, String)> = Vec::new();
    for (index, container) in items(&spec["containers"]).enumerate() {
        for (i, port) in items(&container["ports"]).enumerate() {
            let key = (port["containerPort"].clone(), text(port, "protocol").to_owned());
            let at = format!("{path}.containers[{index}].ports[{i}]");
            match seen.iter().find(|(number, protocol, _)| (number, protocol) == (&key.0, &key.1)) {
                Some((.., first)) if !has(port, "hostPort") => {
                    out.push(format!("{at}: duplicate port definition with {first}"));
                }
                Some(_) => {}
                None => seen.push((key.0, key.1, at)),
            }
        }
    }
}

fn service(spec: &Value, out: &mut Vec<String>) {
    if items(&spec["externalIPs"]).next().is_some() {
        out.push("spec.externalIPs is deprecated and may no longer be implemented in some clusters".into());
    }
    if !text(spec, "externalName").is_empty() && text(spec, "type") != "ExternalName" {
        out.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".into());
    }
    if text(spec, "type") == "ExternalName" && items(&spec["externalIPs"]).next().is_some() {
        out.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".into());
    }
    if spec["sessionAffinity"] == "ClientIP" && spec["clusterIP"] == "None" {
        out.push("spec.SessionAffinity is ignored for headless services".into());
    }
    if spec["trafficDistribution"] == "PreferClose" {
        out.push("spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"".into());
    }
}

fn volume(new: &Value, out: &mut Vec<String>) {
    const CLASS: &str = "volume.beta.kubernetes.io/storage-class";
    const MOUNT: &str = "volume.beta.kubernetes.io/mount-options";
    let annotations = &new["metadata"]["annotations"];
    if has(annotations, CLASS) {
        let why = "deprecated since v1.8; use \"storageClassName\" attribute instead";
        out.push(format!("metadata.annotations[{CLASS}]: {why}"));
    }
    if has(annotations, MOUNT) {
        out.push(format!(
            "metadata.annotations[{MOUNT}]: deprecated since v1.31; use \"mountOptions\" attribute instead"
        ));
    }
    if new["spec"]["persistentVolumeReclaimPolicy"] == "Recycle" {
        out.push(
            "spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is \
             to use dynamic provisioning."
                .into(),
        );
    }
}

/// A certificate and a key that are no pair are of no use, but they are stored.
fn certificate(new: &Value, out: &mut Vec<String>) {
    if new["type"] != "kubernetes.io/tls" {
        return;
    }
    let pem = |key: &str| base64_text::decode(Form::Standard, new["data"][key].as_str().unwrap_or_default().as_bytes());
    for (key, what) in [("tls.crt", "certificate"), ("tls.key", "key")] {
        let bytes = pem(key).unwrap_or_default();
        let is_pem = String::from_utf8_lossy(&bytes).contains("-----BEGIN ");
        if !is_pem {
            out.push(format!("tls: failed to find any PEM data in {what} input"));
            return;
        }
    }
}

fn driver(spec: &Value, out: &mut Vec<String>) {
    if items(&spec["tokenRequests"]).next().is_some() && !has(spec, "serviceAccountTokenInSecrets") {
        out.push(
            "spec.serviceAccountTokenInSecrets is unset; if supported by this CSI driver, set to true to prevent possible \
             logging of tokens in volume attributes"
                .into(),
        );
    }
}

fn claim(new: &Value, out: &mut Vec<String>) {
    const CLASS: &str = "volume.beta.kubernetes.io/storage-class";
    if has(&new["metadata"]["annotations"], CLASS) {
        let why = "deprecated since v1.8; use \"storageClassName\" attribute instead";
        out.push(format!("metadata.annotations[{CLASS}]: {why}"));
    }
    storage_fractions(&new["spec"], "spec", out);
}

#[cfg(test)]
mod tests {
    use super::of;
    use crate::resources::find;
    use serde_json::json;

    #[test]
    fn odd_things_are_told() {
        for (group, plural, object, expected) in [
            ("", "pods", json!({"metadata": {"name": "a.b"}}), "metadata.name: this is used"),
            (
                "apps",
                "deployments",
                json!({"spec": {"template": {"spec": {"topologySpreadConstraints": [{"topologyKey": "zone"}]}}}}),
                "spec.template.spec.topologySpreadConstraints[0].labelSelector: a null labelSelector",
            ),
            (
                "",
                "pods",
                json!({"spec": {"containers": [{"env": [{"name": "A"}, {"name": "A"}]}]}}),
                "spec.containers[0].env[1]: hides previous definition of \"A\"",
            ),
            (
                "",
                "pods",
                json!({"spec": {"hostAliases": [{"ip": "1.2.3.4"}, {"ip": "1.2.3.4"}]}}),
                "spec.hostAliases[1].ip: duplicate ip \"1.2.3.4\"",
            ),
            (
                "",
                "pods",
                json!({"spec": {"terminationGracePeriodSeconds": -1}}),
                "spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid",
            ),
            (
                "",
                "pods",
                json!({"spec": {"dnsConfig": {"nameservers": ["2001:DB8:0:0::1"]}}}),
                "spec.dnsConfig.nameservers[0]: IPv6 address \"2001:DB8:0:0::1\" should be in RFC 5952",
            ),
            (
                "",
                "services",
                json!({"spec": {"externalName": "x", "type": "ClusterIP"}}),
                "spec.externalName is ignored",
            ),
        ] {
            let told = of(find(group, "v1", plural).unwrap(), "", &object, None);
            assert!(told.len() == 1 && told[0].starts_with(expected), "{told:?}");
        }
    }
}
