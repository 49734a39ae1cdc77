//! The checks of the Pod Security Standards, each a function and a row.

use serde_json::Value;

/// A level: each forbids what the one before it forbids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Privileged,
    Baseline,
    Restricted,
}

impl Level {
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Privileged, Self::Baseline, Self::Restricted].into_iter().find(|level| level.name() == text)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Privileged => "privileged",
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        }
    }
}

/// What a pod does that its level forbids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Violation {
    pub reason: String,
    pub detail: String,
}

type Check = fn(&Value, u32) -> Option<Violation>;

/// Of a check that no stricter one replaces.
const NEVER: u32 = u32::MAX;
/// Checks of the baseline in the order in which they are told, and the minor version since which the restricted level
/// has a stricter one in their place.
const BASELINE: [(Check, u32); 12] = [
    (app_armor, NEVER),
    (default_capabilities, 22),
    (host_namespaces, NEVER),
    (host_path, 0),
    (host_ports, NEVER),
    (probe_hosts, NEVER),
    (privileged, NEVER),
    (proc_mount, NEVER),
    (se_linux, NEVER),
    (seccomp_baseline, 19),
    (sysctls, NEVER),
    (host_process, NEVER),
];
const RESTRICTED: [Check; 7] = [
    privilege_escalation,
    dropped_capabilities,
    proc_mount_restricted,
    volume_types,
    run_as_non_root,
    run_as_user,
    seccomp_restricted,
];
/// The newest minor version.
const LATEST: u32 = 36;

/// What a pod does that a level forbids, in the words of the version of its definition.
pub(super) fn violations(level: Level, version: Option<u32>, pod: &Value) -> Vec<Violation> {
    let minor = version.unwrap_or(LATEST).min(LATEST);
    let mut out = Vec::new();
    if level >= Level::Baseline {
        let checks = BASELINE.iter().filter(|(_, since)| level < Level::Restricted || minor < *since);
        out.extend(checks.filter_map(|(check, _)| check(pod, minor)));
    }
    if level == Level::Restricted {
        out.extend(RESTRICTED.iter().filter_map(|check| check(pod, minor)));
    }
    out
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(|key| items(&pod["spec"][key]))
}

fn names_of(pod: &Value, chosen: impl Fn(&Value) -> bool) -> Vec<&str> {
    containers(pod).filter(|c| chosen(c)).map(|c| text(&c["name"])).collect()
}

fn quoted(list: &[&str]) -> String {
    list.iter().map(|item| format!("\"{item}\"")).collect::<Vec<_>>().join(", ")
}

fn plural(one: &str, list: &[&str]) -> String {
    if list.len() == 1 { one.to_owned() } else { format!("{one}s") }
}

/// `container "a"`, `containers "a", "b"`.
fn told(what: &str, list: &[&str]) -> String {
    format!("{} {}", plural(what, list), quoted(list))
}

fn unique<'a>(list: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut out: Vec<&str> = list.collect();
    out.sort_unstable();
    out.dedup();
    out
}

fn violation(reason: impl Into<String>, detail: String) -> Option<Violation> {
    Some(Violation { reason: reason.into(), detail })
}

/// Pod and containers that set something: `pod`, `container "a"`, `pod and container "a"`.
fn setters(pod: bool, names: &[&str]) -> String {
    match (pod, names.is_empty()) {
        (true, true) => "pod".into(),
        (true, false) => format!("pod and {}", told("container", names)),
        (false, _) => told("container", names),
    }
}

fn is_windows(pod: &Value, minor: u32) -> bool {
    minor >= 25 && pod["spec"]["os"]["name"] == "windows"
}

fn app_armor(pod: &Value, _: u32) -> Option<Violation> {
    let bad = |profile: &Value| {
        let kind = &profile["type"];
        kind.is_string() && kind != "RuntimeDefault" && kind != "Localhost"
    };
    let of = |value: &Value| bad(&value["securityContext"]["appArmorProfile"]);
    let names = names_of(pod, of);
    let own = of(&pod["spec"]);
    let kinds = containers(pod).chain(std::iter::once(&pod["spec"])).filter(|v| of(v));
    let values = unique(kinds.map(|v| text(&v["securityContext"]["appArmorProfile"]["type"])));
    let annotations = pod["metadata"]["annotations"].as_object().into_iter().flatten();
    // What older clients said the same with.
    let old: Vec<String> = annotations
        .filter(|(key, value)| {
            let value = text(value);
            key.starts_with("container.apparmor.security.beta.kubernetes.io/")
                && !(value.is_empty() || value == "runtime/default" || value.starts_with("localhost/"))
        })
        .map(|(key, value)| format!("{key}={:?}", text(value)))
        .collect();
    let old: Vec<&str> = unique(old.iter().map(String::as_str));
    let mut who = Vec::new();
    if own || !names.is_empty() {
        who.push(setters(own, &names));
    }
    if !old.is_empty() {
        who.push(plural("annotation", &old));
    }
    if who.is_empty() {
        return None;
    }
    let values = [values, old].concat();
    let detail = format!("{} must not set AppArmor profile type to {}", who.join(" and "), quoted(&values));
    violation(plural("forbidden AppArmor profile", &values), detail)
}

const DEFAULT_CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

fn added_beyond<'a>(container: &'a Value, allowed: &'a [&str]) -> impl Iterator<Item = &'a str> {
    items(&container["securityContext"]["capabilities"]["add"]).map(text).filter(|name| !allowed.contains(name))
}

fn added(pod: &Value, allowed: &[&str]) -> Option<String> {
    let names = names_of(pod, |c| added_beyond(c, allowed).next().is_some());
    let caps = unique(containers(pod).flat_map(|c| added_beyond(c, allowed)));
    let told = told("container", &names);
    (!names.is_empty())
        .then(|| format!("{told} must not include {} in securityContext.capabilities.add", quoted(&caps)))
}

fn default_capabilities(pod: &Value, _: u32) -> Option<Violation> {
    violation("non-default capabilities", added(pod, &DEFAULT_CAPABILITIES)?)
}

fn host_namespaces(pod: &Value, _: u32) -> Option<Violation> {
    let used = ["hostNetwork", "hostPID", "hostIPC"].into_iter().filter(|key| pod["spec"][key] == true);
    let list: Vec<String> = used.map(|key| format!("{key}=true")).collect();
    if list.is_empty() { None } else { violation("host namespaces", list.join(", ")) }
}

fn host_path(pod: &Value, _: u32) -> Option<Violation> {
    let volumes = items(&pod["spec"]["volumes"]).filter(|v| v["hostPath"].is_object());
    let names: Vec<&str> = volumes.map(|v| text(&v["name"])).collect();
    if names.is_empty() { None } else { violation("hostPath volumes", told("volume", &names)) }
}

fn host_ports(pod: &Value, _: u32) -> Option<Violation> {
    let ports =
        |c: &Value| items(&c["ports"]).filter_map(|p| p["hostPort"].as_u64()).filter(|p| *p != 0).collect::<Vec<_>>();
    let names = names_of(pod, |c| !ports(c).is_empty());
    // Numbers in the order of their texts.
    let all: Vec<String> = containers(pod).flat_map(ports).map(|port| port.to_string()).collect();
    let all = unique(all.iter().map(String::as_str));
    if names.is_empty() {
        return None;
    }
    let verb = if names.len() == 1 { "uses" } else { "use" };
    let what = plural("hostPort", &all);
    violation("hostPort", format!("{} {verb} {what} {}", told("container", &names), all.join(", ")))
}

fn probe_hosts(pod: &Value, minor: u32) -> Option<Violation> {
    if minor < 34 {
        return None;
    }
    let hosts = |c: &Value| -> Vec<String> {
        let handlers = [
            &c["livenessProbe"],
            &c["readinessProbe"],
            &c["startupProbe"],
            &c["lifecycle"]["postStart"],
            &c["lifecycle"]["preStop"],
        ];
        let hosts = handlers.iter().flat_map(|h| [&h["httpGet"]["host"], &h["tcpSocket"]["host"]]);
        hosts.map(text).filter(|host| !host.is_empty()).map(str::to_owned).collect()
    };
    let names = unique(names_of(pod, |c| !hosts(c).is_empty()).into_iter());
    let all: Vec<String> = containers(pod).flat_map(hosts).collect();
    let all = unique(all.iter().map(String::as_str));
    if names.is_empty() {
        return None;
    }
    let verb = if names.len() == 1 { "uses" } else { "use" };
    let what = plural("host", &all);
    violation(
        "probe or lifecycle host",
        format!("{} {verb} probe or lifecycle {what} {}", told("container", &names), quoted(&all)),
    )
}

fn privileged(pod: &Value, _: u32) -> Option<Violation> {
    let names = names_of(pod, |c| c["securityContext"]["privileged"] == true);
    if names.is_empty() {
        return None;
    }
    violation("privileged", format!("{} must not set securityContext.privileged=true", told("container", &names)))
}

/// Whether a pod has users of its own, so that its root is nobody on the node: less is forbidden then since v1.35.
fn has_own_users(pod: &Value, minor: u32) -> bool {
    minor >= 35 && pod["spec"]["hostUsers"] == false
}

fn proc_mount(pod: &Value, minor: u32) -> Option<Violation> {
    if has_own_users(pod, minor) { None } else { unmasked(pod) }
}

/// The stricter level forbids it to pods with users of their own too; of others both levels tell.
fn proc_mount_restricted(pod: &Value, minor: u32) -> Option<Violation> {
    if minor >= 35 { unmasked(pod) } else { None }
}

fn unmasked(pod: &Value) -> Option<Violation> {
    let value = |c: &Value| text(&c["securityContext"]["procMount"]).to_owned();
    let bad = |c: &Value| !matches!(value(c).as_str(), "" | "Default");
    let names = names_of(pod, bad);
    let values: Vec<String> = containers(pod).filter(|c| bad(c)).map(value).collect();
    let values = unique(values.iter().map(String::as_str));
    if names.is_empty() {
        return None;
    }
    let detail = format!("{} must not set securityContext.procMount to {}", told("container", &names), quoted(&values));
    violation("procMount", detail)
}

fn se_linux(pod: &Value, minor: u32) -> Option<Violation> {
    let known = |kind: &str| {
        matches!(kind, "" | "container_t" | "container_init_t" | "container_kvm_t")
            || (minor >= 31 && kind == "container_engine_t")
    };
    let set = |value: &Value, key: &str| !text(&value["securityContext"]["seLinuxOptions"][key]).is_empty();
    let kind = |value: &Value| text(&value["securityContext"]["seLinuxOptions"]["type"]).to_owned();
    let bad = |value: &Value| !known(&kind(value)) || set(value, "user") || set(value, "role");
    let names = names_of(pod, bad);
    let own = bad(&pod["spec"]);
    if names.is_empty() && !own {
        return None;
    }
    let all: Vec<&Value> = containers(pod).chain(std::iter::once(&pod["spec"])).filter(|v| bad(v)).collect();
    let kinds: Vec<String> = all.iter().map(|v| kind(v)).filter(|k| !known(k)).collect();
    let kinds = unique(kinds.iter().map(String::as_str));
    let mut parts = Vec::new();
    if !kinds.is_empty() {
        parts.push(told("type", &kinds));
    }
    for key in ["user", "role"] {
        if all.iter().any(|v| set(v, key)) {
            parts.push(format!("{key} may not be set"));
        }
    }
    let who = setters(own, &names);
    violation("seLinuxOptions", format!("{who} set forbidden securityContext.seLinuxOptions: {}", parts.join("; ")))
}

fn seccomp(value: &Value) -> &str {
    text(&value["securityContext"]["seccompProfile"]["type"])
}

fn unconfined(pod: &Value) -> Option<String> {
    let bad = |value: &Value| !matches!(seccomp(value), "" | "RuntimeDefault" | "Localhost");
    let (names, own) = (names_of(pod, bad), bad(&pod["spec"]));
    if names.is_empty() && !own {
        return None;
    }
    let all = containers(pod).chain(std::iter::once(&pod["spec"])).filter(|v| bad(v));
    let values = unique(all.map(seccomp));
    let who = setters(own, &names);
    Some(format!("{who} must not set securityContext.seccompProfile.type to {}", quoted(&values)))
}

fn seccomp_baseline(pod: &Value, minor: u32) -> Option<Violation> {
    if minor < 19 { seccomp_annotations(pod) } else { violation("seccompProfile", unconfined(pod)?) }
}

/// What there was before the field.
fn seccomp_annotations(pod: &Value) -> Option<Violation> {
    let of_container = |c: &Value| format!("container.seccomp.security.alpha.kubernetes.io/{}", text(&c["name"]));
    let keys =
        std::iter::once("seccomp.security.alpha.kubernetes.io/pod".to_owned()).chain(containers(pod).map(of_container));
    let bad: Vec<String> = keys
        .filter_map(|key| {
            let value = pod["metadata"]["annotations"].get(&key)?.as_str()?;
            let allowed = matches!(value, "runtime/default" | "docker/default") || value.starts_with("localhost/");
            (!allowed).then(|| format!("{key}={value:?}"))
        })
        .collect();
    let bad = unique(bad.iter().map(String::as_str));
    if bad.is_empty() {
        return None;
    }
    violation("seccompProfile", format!("forbidden {} {}", plural("annotation", &bad), bad.join(", ")))
}

/// Sysctls that change nothing outside the pod, and the minor version since which that is said of them.
pub(super) const SAFE_SYSCTLS: [(&str, u32); 12] = [
    ("kernel.shm_rmid_forced", 0),
    ("net.ipv4.ip_local_port_range", 0),
    ("net.ipv4.tcp_syncookies", 0),
    ("net.ipv4.ping_group_range", 0),
    ("net.ipv4.ip_unprivileged_port_start", 0),
    ("net.ipv4.ip_local_reserved_ports", 27),
    ("net.ipv4.tcp_keepalive_time", 29),
    ("net.ipv4.tcp_fin_timeout", 29),
    ("net.ipv4.tcp_keepalive_intvl", 29),
    ("net.ipv4.tcp_keepalive_probes", 29),
    ("net.ipv4.tcp_rmem", 32),
    ("net.ipv4.tcp_wmem", 32),
];

fn sysctls(pod: &Value, minor: u32) -> Option<Violation> {
    let safe = |name: &str| SAFE_SYSCTLS.iter().any(|(known, since)| *known == name && minor >= *since);
    let list = items(&pod["spec"]["securityContext"]["sysctls"]).map(|s| text(&s["name"]));
    let bad: Vec<&str> = list.filter(|name| !safe(name)).collect();
    if bad.is_empty() { None } else { violation("forbidden sysctls", bad.join(", ")) }
}

fn host_process(pod: &Value, _: u32) -> Option<Violation> {
    let bad = |value: &Value| value["securityContext"]["windowsOptions"]["hostProcess"] == true;
    let (names, own) = (names_of(pod, bad), bad(&pod["spec"]));
    if names.is_empty() && !own {
        return None;
    }
    let who = setters(own, &names);
    violation("hostProcess", format!("{who} must not set securityContext.windowsOptions.hostProcess=true"))
}

fn privilege_escalation(pod: &Value, minor: u32) -> Option<Violation> {
    let names = names_of(pod, |c| c["securityContext"]["allowPrivilegeEscalation"] != false);
    if names.is_empty() || minor < 8 || is_windows(pod, minor) {
        return None;
    }
    let detail = format!("{} must set securityContext.allowPrivilegeEscalation=false", told("container", &names));
    violation("allowPrivilegeEscalation != false", detail)
}

fn dropped_capabilities(pod: &Value, minor: u32) -> Option<Violation> {
    if minor < 22 || is_windows(pod, minor) {
        return None;
    }
    let keeps = |c: &Value| !items(&c["securityContext"]["capabilities"]["drop"]).any(|name| name == "ALL");
    let names = names_of(pod, keeps);
    let mut details = Vec::new();
    if !names.is_empty() {
        details.push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", told("container", &names)));
    }
    details.extend(added(pod, &["NET_BIND_SERVICE"]));
    if details.is_empty() { None } else { violation("unrestricted capabilities", details.join("; ")) }
}

fn volume_types(pod: &Value, _: u32) -> Option<Violation> {
    const ALLOWED: [&str; 9] = [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "image",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ];
    let kind =
        |v: &Value| v.as_object().and_then(|map| map.keys().find(|key| *key != "name").cloned()).unwrap_or_default();
    let bad = |v: &&Value| !kind(v).is_empty() && !ALLOWED.contains(&kind(v).as_str());
    let found: Vec<&Value> = items(&pod["spec"]["volumes"]).filter(bad).collect();
    let names: Vec<&str> = found.iter().map(|v| text(&v["name"])).collect();
    let kinds: Vec<String> = found.iter().map(|v| kind(v)).collect();
    let kinds = unique(kinds.iter().map(String::as_str));
    if names.is_empty() {
        return None;
    }
    let verb = if names.len() == 1 { "uses" } else { "use" };
    let what = plural("restricted volume type", &kinds);
    violation("restricted volume types", format!("{} {verb} {what} {}", told("volume", &names), quoted(&kinds)))
}

fn run_as_non_root(pod: &Value, minor: u32) -> Option<Violation> {
    if has_own_users(pod, minor) {
        return None;
    }
    let said = |value: &Value| value["securityContext"]["runAsNonRoot"].as_bool();
    let own = said(&pod["spec"]);
    let wrong = names_of(pod, |c| said(c) == Some(false));
    let silent = names_of(pod, |c| said(c).is_none() && own != Some(true));
    let pod_is_wrong = own == Some(false);
    // Who is silent matters only where nobody says the wrong thing.
    let detail = if pod_is_wrong || !wrong.is_empty() {
        format!("{} must not set securityContext.runAsNonRoot=false", setters(pod_is_wrong, &wrong))
    } else if !silent.is_empty() {
        format!("pod or {} must set securityContext.runAsNonRoot=true", told("container", &silent))
    } else {
        return None;
    };
    violation("runAsNonRoot != true", detail)
}

fn run_as_user(pod: &Value, minor: u32) -> Option<Violation> {
    let root = |value: &Value| value["securityContext"]["runAsUser"] == 0;
    let (names, own) = (names_of(pod, root), root(&pod["spec"]));
    if (names.is_empty() && !own) || minor < 23 || has_own_users(pod, minor) {
        return None;
    }
    violation("runAsUser=0", format!("{} must not set runAsUser=0", setters(own, &names)))
}

fn seccomp_restricted(pod: &Value, minor: u32) -> Option<Violation> {
    if minor < 19 || is_windows(pod, minor) {
        return None;
    }
    if let Some(detail) = unconfined(pod) {
        return violation("seccompProfile", detail);
    }
    let silent = names_of(pod, |c| seccomp(c).is_empty());
    if silent.is_empty() || !seccomp(&pod["spec"]).is_empty() {
        return None;
    }
    let who = told("container", &silent);
    violation(
        "seccompProfile",
        format!("pod or {who} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\""),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn levels_forbid() {
        let pod = |spec: Value| json!({"spec": spec});
        let plain = json!({"containers": [{"name": "c"}]});
        let good = json!({"containers": [{"name": "c", "securityContext": {"allowPrivilegeEscalation": false,
            "runAsNonRoot": true, "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}}}]});
        let both = json!({"hostNetwork": true, "hostPID": true,
            "containers": [{"name": "a", "securityContext": {"privileged": true}}],
            "initContainers": [{"name": "b", "securityContext": {"privileged": true}}]});
        for (spec, level, expected) in [
            (&plain, Level::Privileged, vec![]),
            (&plain, Level::Baseline, vec![]),
            (
                &plain,
                Level::Restricted,
                vec![
                    "allowPrivilegeEscalation != false",
                    "unrestricted capabilities",
                    "runAsNonRoot != true",
                    "seccompProfile",
                ],
            ),
            (&good, Level::Restricted, vec![]),
            (&both, Level::Privileged, vec![]),
            (&both, Level::Baseline, vec!["host namespaces", "privileged"]),
        ] {
            let found = violations(level, None, &pod(spec.clone()));
            let reasons: Vec<&str> = found.iter().map(|v| v.reason.as_str()).collect();
            assert_eq!(reasons, expected, "{level:?} {spec}");
        }
        // Of pods with users of their own less is asked since v1.35.
        let own = |users: bool| {
            json!({"spec": {"hostUsers": users, "containers": [{"name": "c", "securityContext": {
            "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "runAsUser": 0,
            "seccompProfile": {"type": "RuntimeDefault"}, "procMount": "Unmasked"}}]}})
        };
        for (level, version, users, expected) in [
            (Level::Baseline, None, false, &[][..]),
            (Level::Baseline, Some(34), false, &["procMount"]),
            (Level::Baseline, None, true, &["procMount"]),
            (Level::Restricted, None, false, &["procMount"]),
            (Level::Restricted, Some(34), false, &["procMount", "runAsNonRoot != true", "runAsUser=0"]),
            (Level::Restricted, None, true, &["procMount", "procMount", "runAsNonRoot != true", "runAsUser=0"]),
        ] {
            let found = violations(level, version, &own(users));
            let reasons: Vec<&str> = found.iter().map(|v| v.reason.as_str()).collect();
            assert_eq!(reasons, expected, "{level:?} {version:?} {users}");
        }
        let told = violations(Level::Baseline, None, &pod(both));
        assert_eq!(told[1].detail, "containers \"b\", \"a\" must not set securityContext.privileged=true");
    }

    /// What a check says of a pod, or nothing.
    fn told(check: Check, minor: u32, pod: Value) -> String {
        check(&pod, minor).map(|violation| violation.detail).unwrap_or_default()
    }

    fn two(first: Value, second: Value) -> Value {
        json!([{"name": "b", "securityContext": first}, {"name": "a", "securityContext": second}])
    }

    #[test]
    fn annotations_are_told_of() {
        let pod = |key: &str| {
            json!({"metadata": {"annotations": {key: "unconfined"}}, "spec": {"containers": two(
                json!({"appArmorProfile": {"type": "Unconfined"}}), json!({}))}})
        };
        let key = "container.apparmor.security.beta.kubernetes.io/b";
        let who = "container \"b\" and annotation must not set AppArmor profile type to";
        let expected = format!("{who} \"Unconfined\", \"{key}=\"unconfined\"\"");
        assert_eq!(told(app_armor, LATEST, pod(key)), expected);
        let key = "container.seccomp.security.alpha.kubernetes.io/b";
        let expected = format!("forbidden annotation {key}=\"unconfined\"");
        assert_eq!(told(seccomp_baseline, 18, pod(key)), expected);
        assert_eq!(told(seccomp_baseline, 19, pod(key)), "");
    }

    #[test]
    fn ports_and_hosts_are_sorted() {
        let pod = |first: Value, second: Value| {
            let mut spec = json!({"spec": {"containers": [first, second]}});
            spec["spec"]["containers"][0]["name"] = "b".into();
            spec["spec"]["containers"][1]["name"] = "a".into();
            spec
        };
        let ports = pod(json!({"ports": [{"hostPort": 80}, {"hostPort": 443}]}), json!({}));
        assert_eq!(told(host_ports, LATEST, ports), "container \"b\" uses hostPorts 443, 80");
        let probe = |host: &str| json!({"livenessProbe": {"httpGet": {"port": 80, "host": host}}});
        let probes = pod(probe("127.0.0.1"), probe("::1"));
        let expected = "containers \"a\", \"b\" use probe or lifecycle hosts \"127.0.0.1\", \"::1\"";
        assert_eq!(told(probe_hosts, LATEST, probes.clone()), expected);
        assert_eq!(told(probe_hosts, 33, probes), "");
    }

    #[test]
    fn the_silent_are_told_of_when_nobody_says_the_wrong_thing() {
        let pod = |own: Value, first: Value, second: Value| json!({"spec": {"securityContext": own, "containers": two(first, second)}});
        let (wrong, right) = (json!({"runAsNonRoot": false}), json!({"runAsNonRoot": true}));
        for (own, first, second, expected) in [
            (json!({}), &wrong, json!({}), "container \"b\" must not set securityContext.runAsNonRoot=false"),
            (wrong.clone(), &right, right.clone(), "pod must not set securityContext.runAsNonRoot=false"),
            (json!({}), &right, json!({}), "pod or container \"a\" must set securityContext.runAsNonRoot=true"),
        ] {
            assert_eq!(told(run_as_non_root, LATEST, pod(own, first.clone(), second)), expected);
        }
        let seccomp = pod(json!({}), json!({"seccompProfile": {"type": "Unconfined"}}), json!({}));
        let expected = "container \"b\" must not set securityContext.seccompProfile.type to \"Unconfined\"";
        assert_eq!(told(seccomp_restricted, LATEST, seccomp), expected);
    }

    #[test]
    fn checks_begin_with_their_version() {
        let pod = json!({"spec": {"containers": two(json!({"capabilities": {"add": ["X"]}}), json!({}))}});
        for (check, since) in [(seccomp_restricted as Check, 19), (dropped_capabilities, 22), (privilege_escalation, 8)]
        {
            assert_eq!(told(check, since - 1, pod.clone()), "", "{since}");
            assert_ne!(told(check, since, pod.clone()), "", "{since}");
        }
        // The baseline's own check of capabilities stays where the restricted level has none yet.
        for (minor, expected) in [(21, "non-default capabilities"), (22, "unrestricted capabilities")] {
            let found = violations(Level::Restricted, Some(minor), &pod);
            let of: Vec<&str> =
                found.iter().map(|v| v.reason.as_str()).filter(|r| r.ends_with("capabilities")).collect();
            assert_eq!(of, [expected], "{minor}");
        }
    }
}
