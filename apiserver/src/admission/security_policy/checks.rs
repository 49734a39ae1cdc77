//! What a pod does that a policy does not allow.

use keelson_machinery::status::Cause;
use serde_json::{Value, json};

use super::context::{containers, effective, items, profile, ranges, set, text, within};

const SECCOMP_ALLOWED: &str = "seccomp.security.alpha.kubernetes.io/allowedProfileNames";
const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
const APP_ARMOR_ALLOWED: &str = "apparmor.security.beta.kubernetes.io/allowedProfileNames";
const APP_ARMOR_CONTAINER: &str = "container.apparmor.security.beta.kubernetes.io/";
/// Sysctls that change nothing outside the pod.
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// All that the policy does not allow.
pub fn violations(policy: &Value, pod: &Value) -> Vec<Cause> {
    let mut check = Check { policy, spec: &policy["spec"], pod, causes: Vec::new() };
    check.pod();
    for (path, container) in containers(pod) {
        check.container(&path, container);
    }
    check.causes
}

struct Check<'a> {
    policy: &'a Value,
    spec: &'a Value,
    pod: &'a Value,
    causes: Vec<Cause>,
}

impl Check<'_> {
    fn invalid(&mut self, field: impl Into<String>, value: &Value, why: &str) {
        // What is not there is shown as a text.
        let shown = if value.is_null() { json!("null") } else { value.clone() };
        self.causes.push(Cause::invalid(field, &shown, why));
    }

    fn forbidden(&mut self, field: String, why: &str) {
        self.causes.push(Cause::forbidden(field, why));
    }

    fn pod(&mut self) {
        let context = &self.pod["spec"]["securityContext"];
        let at = "spec.securityContext";
        let owner: Vec<i64> = context["fsGroup"].as_i64().into_iter().collect();
        self.groups(&self.spec["fsGroup"], format!("{at}.fsGroup"), &owner);
        let more: Vec<i64> = items(&context["supplementalGroups"]).filter_map(Value::as_i64).collect();
        self.groups(&self.spec["supplementalGroups"], format!("{at}.supplementalGroups"), &more);
        let name = match &context["seccompProfile"] {
            Value::Null => text(&self.pod["metadata"]["annotations"][SECCOMP_POD]).to_owned(),
            own => profile(own),
        };
        self.seccomp(SECCOMP_POD, &name);
        self.se_linux(&format!("{at}.seLinuxOptions"), &context["seLinuxOptions"]);
        for (key, what) in [("hostNetwork", "network"), ("hostPID", "PID"), ("hostIPC", "IPC")] {
            if self.pod["spec"][key] == true && self.spec[key] != true {
                let why = format!("Host {what} is not allowed to be used");
                self.invalid(format!("{at}.{key}"), &true.into(), &why);
            }
        }
        self.sysctls(&context["sysctls"]);
        for (index, volume) in items(&self.pod["spec"]["volumes"]).enumerate() {
            self.volume(&format!("spec.volumes[{index}]"), volume);
        }
        let (class, rule) = (&self.pod["spec"]["runtimeClassName"], &self.spec["runtimeClass"]);
        let allowed = set(&rule["allowedRuntimeClassNames"]);
        if rule.is_object() && class.is_string() && !allowed.contains("*") && !allowed.contains(text(class)) {
            let valid: Vec<String> = allowed.into_iter().collect();
            self.invalid("spec.runtimeClassName", class, &format!("must be one of [{}]", valid.join(" ")));
        }
    }

    fn groups(&mut self, strategy: &Value, field: String, given: &[i64]) {
        let must = strategy["rule"] == "MustRunAs";
        if !must && strategy["rule"] != "MayRunAs" {
            return;
        }
        if must && given.is_empty() {
            self.invalid(field.clone(), &json!(given), "unable to validate empty groups against required ranges");
        }
        for group in given.iter().filter(|group| !within(&strategy["ranges"], **group)) {
            let why = format!("group {group} must be in the ranges: {}", ranges(&strategy["ranges"]));
            self.invalid(field.clone(), &json!(given), &why);
        }
    }

    fn se_linux(&mut self, at: &str, given: &Value) {
        let strategy = &self.spec["seLinux"];
        if strategy["rule"] != "MustRunAs" {
            return;
        }
        if given.is_null() {
            self.causes.push(Cause::required(at, ""));
            return;
        }
        for key in ["level", "role", "type", "user"] {
            let (own, wanted) = (text(&given[key]), text(&strategy["seLinuxOptions"][key]));
            let same = if key == "level" { same_level(own, wanted) } else { own == wanted };
            if !same {
                self.invalid(format!("{at}.{key}"), &own.into(), &format!("must be {wanted}"));
            }
        }
    }

    fn seccomp(&mut self, annotation: &str, name: &str) {
        let allowed = text(&self.policy["metadata"]["annotations"][SECCOMP_ALLOWED]);
        let list: Vec<&str> = allowed.split(',').filter(|name| !name.is_empty()).collect();
        let field = format!("pod.metadata.annotations[{annotation}]");
        if list.contains(&"*") || (list.is_empty() && name.is_empty()) {
            return;
        }
        // Both names mean the same.
        let is = |known: &&str| *known == name || (*known == "docker/default" && name == "runtime/default");
        if list.is_empty() {
            self.forbidden(field, "seccomp may not be set");
        } else if !list.iter().any(is) {
            let why = format!("{name} is not an allowed seccomp profile. Valid values are {allowed}");
            self.forbidden(field, &why);
        }
    }

    fn sysctls(&mut self, given: &Value) {
        let among = |list: &Value, name: &str| {
            items(list).map(text).any(|pattern| match pattern.strip_suffix('*') {
                Some(prefix) => name.starts_with(prefix),
                None => name == pattern,
            })
        };
        for (index, sysctl) in items(given).enumerate() {
            let name = text(&sysctl["name"]);
            let field = format!("pod.spec.securityContext.sysctls[{index}]");
            if among(&self.spec["forbiddenSysctls"], name) {
                self.forbidden(field, &format!("sysctl {name:?} is not allowed"));
            } else if !SAFE_SYSCTLS.contains(&name) && !among(&self.spec["allowedUnsafeSysctls"], name) {
                self.forbidden(field, &format!("unsafe sysctl {name:?} is not allowed"));
            }
        }
    }

    fn volume(&mut self, at: &str, volume: &Value) {
        let Some(kind) = kind_of(volume) else {
            self.invalid(at, &"".into(), "unknown volume type for volume");
            return;
        };
        let allowed = set(&self.spec["volumes"]);
        let own_token = kind == "projected" && allowed.contains("secret") && only_own_token(&volume["projected"]);
        if !(allowed.contains("*") || allowed.contains(kind) || own_token) {
            self.invalid(at, &kind.into(), &format!("{kind} volumes are not allowed to be used"));
            return;
        }
        match kind {
            "hostPath" => self.host_path(at, volume),
            "flexVolume" => {
                let driver = &volume["flexVolume"]["driver"];
                self.driver(format!("{at}.driver"), driver, "allowedFlexVolumes", "Flexvolume driver");
            }
            "csi" => {
                let driver = &volume["csi"]["driver"];
                self.driver(format!("{at}.csi.driver"), driver, "allowedCSIDrivers", "Inline CSI driver");
            }
            _ => {}
        }
    }

    fn driver(&mut self, field: String, driver: &Value, list: &str, what: &str) {
        let known = |entry: &Value| entry["driver"] == *driver || entry["name"] == *driver;
        let mut entries = items(&self.spec[list]).peekable();
        if entries.peek().is_some() && !entries.any(known) {
            self.invalid(field, driver, &format!("{what} is not allowed to be used"));
        }
    }

    fn host_path(&mut self, at: &str, volume: &Value) {
        let path = &volume["hostPath"]["path"];
        let list = &self.spec["allowedHostPaths"];
        if items(list).next().is_none() {
            return;
        }
        let fitting: Vec<&Value> =
            items(list).filter(|allowed| has_prefix(text(path), text(&allowed["pathPrefix"]))).collect();
        if fitting.is_empty() {
            self.invalid(format!("{at}.hostPath.pathPrefix"), path, "is not allowed to be used");
        } else if fitting.iter().all(|allowed| allowed["readOnly"] == true) {
            for (path, container) in containers(self.pod) {
                for (index, mount) in items(&container["volumeMounts"]).enumerate() {
                    if mount["name"] == volume["name"] && mount["readOnly"] != true {
                        let field = format!("{path}.volumeMounts[{index}].readOnly");
                        self.invalid(field, &false.into(), "must be read-only");
                    }
                }
            }
        }
    }

    fn container(&mut self, path: &str, container: &Value) {
        let (at, own) = (format!("{path}.securityContext"), &container["securityContext"]);
        self.user(&at, container);
        let group: Vec<i64> = effective(self.pod, container, "runAsGroup").as_i64().into_iter().collect();
        self.groups(&self.spec["runAsGroup"], format!("{at}.runAsGroup"), &group);
        self.se_linux(&format!("{at}.seLinuxOptions"), effective(self.pod, container, "seLinuxOptions"));
        self.profiles(container);
        if own["privileged"] == true && self.spec["privileged"] != true {
            self.invalid(format!("{at}.privileged"), &true.into(), "Privileged containers are not allowed");
        }
        let mount = own["procMount"].as_str().unwrap_or("Default");
        let allowed = set(&self.spec["allowedProcMountTypes"]);
        if !(allowed.contains(mount) || (allowed.is_empty() && mount == "Default")) {
            self.invalid(format!("{at}.procMount"), &mount.into(), "ProcMountType is not allowed");
        }
        self.capabilities(&format!("{at}.capabilities"), &own["capabilities"]);
        for (index, port) in items(&container["ports"]).enumerate() {
            self.host_port(format!("{path}.ports[{index}].hostPort"), &port["hostPort"]);
        }
        if self.spec["readOnlyRootFilesystem"] == true {
            let (field, given) = (format!("{at}.readOnlyRootFilesystem"), &own["readOnlyRootFilesystem"]);
            match given.as_bool() {
                None => self.invalid(field, given, "ReadOnlyRootFilesystem may not be nil and must be set to true"),
                Some(false) => self.invalid(field, given, "ReadOnlyRootFilesystem must be set to true"),
                Some(true) => {}
            }
        }
        let escalates = &own["allowPrivilegeEscalation"];
        if self.spec["allowPrivilegeEscalation"] == false && *escalates != false {
            let why = "Allowing privilege escalation for containers is not allowed";
            self.invalid(format!("{at}.allowPrivilegeEscalation"), escalates, why);
        }
    }

    fn user(&mut self, at: &str, container: &Value) {
        let strategy = &self.spec["runAsUser"];
        let (user, not_root) =
            (effective(self.pod, container, "runAsUser"), effective(self.pod, container, "runAsNonRoot"));
        match text(&strategy["rule"]) {
            "MustRunAs" => match user.as_i64() {
                None => self.causes.push(Cause::required(format!("{at}.runAsUser"), "")),
                Some(id) if within(&strategy["ranges"], id) => {}
                Some(_) => {
                    let why = format!("must be in the ranges: {}", ranges(&strategy["ranges"]));
                    self.invalid(format!("{at}.runAsUser"), user, &why);
                }
            },
            "MustRunAsNonRoot" => {
                if user.is_null() && not_root.is_null() {
                    self.causes.push(Cause::required(format!("{at}.runAsNonRoot"), "must be true"));
                } else if *not_root == false {
                    self.invalid(format!("{at}.runAsNonRoot"), not_root, "must be true");
                } else if *user == 0 {
                    self.invalid(format!("{at}.runAsUser"), user, "running with the root UID is forbidden");
                }
            }
            _ => {}
        }
    }

    /// AppArmor's and seccomp's.
    fn profiles(&mut self, container: &Value) {
        let annotations = &self.pod["metadata"]["annotations"];
        let (name, own) = (text(&container["name"]), &container["securityContext"]);
        let key = format!("{APP_ARMOR_CONTAINER}{name}");
        let armor = match effective(self.pod, container, "appArmorProfile") {
            Value::Null => text(&annotations[&key]).to_owned(),
            given => profile(given),
        };
        if let Some(allowed) = self.policy["metadata"]["annotations"][APP_ARMOR_ALLOWED].as_str() {
            let field = format!("pod.metadata.annotations[{key}]");
            if armor.is_empty() {
                self.forbidden(field, "AppArmor profile must be set");
            } else if !allowed.split(',').any(|known| known == armor) {
                let why = format!("{armor} is not an allowed profile. Allowed values: {allowed:?}");
                self.forbidden(field, &why);
            }
        }
        let key = format!("{SECCOMP_CONTAINER}{name}");
        let said = [&own["seccompProfile"], &self.pod["spec"]["securityContext"]["seccompProfile"]];
        let seccomp = match said.into_iter().find(|value| !value.is_null()) {
            Some(given) => profile(given),
            None => text(annotations.get(&key).unwrap_or(&annotations[SECCOMP_POD])).to_owned(),
        };
        self.seccomp(&key, &seccomp);
    }

    fn capabilities(&mut self, at: &str, given: &Value) {
        let (default, required) =
            (set(&self.spec["defaultAddCapabilities"]), set(&self.spec["requiredDropCapabilities"]));
        if given.is_null() {
            if !default.is_empty() || !required.is_empty() {
                self.invalid(at, given, "required capabilities are not set on the securityContext");
            }
            return;
        }
        let allowed = set(&self.spec["allowedCapabilities"]);
        if allowed.contains("*") {
            return;
        }
        for name in items(&given["add"]).filter(|n| !default.contains(text(n)) && !allowed.contains(text(n))) {
            self.invalid(format!("{at}.add"), name, "capability may not be added");
        }
        let dropped = set(&given["drop"]);
        for name in required.iter().filter(|name| !dropped.contains(*name)) {
            let why = format!("{name} is required to be dropped but was not found");
            let shown = if given["drop"].is_null() { json!([]) } else { given["drop"].clone() };
            self.invalid(format!("{at}.drop"), &shown, &why);
        }
    }

    fn host_port(&mut self, field: String, port: &Value) {
        let Some(number) = port.as_i64().filter(|number| *number > 0) else { return };
        if within(&self.spec["hostPorts"], number) {
            return;
        }
        let shown = items(&self.spec["hostPorts"]).map(|range| match range["min"] == range["max"] {
            true => range["min"].to_string(),
            false => format!("{}-{}", range["min"], range["max"]),
        });
        let shown: Vec<String> = shown.collect();
        let why = format!("Host port {number} is not allowed to be used. Allowed ports: [{}]", shown.join(","));
        self.invalid(field, port, &why);
    }
}

/// The kind of a volume, as policies name it.
fn kind_of(volume: &Value) -> Option<&str> {
    let key = volume.as_object()?.keys().find(|key| *key != "name")?;
    Some(if key == "cephfs" { "cephFS" } else { key })
}

/// Whether a projected volume is what every pod gets: its account's token, the cluster's authority, its namespace.
fn only_own_token(projected: &Value) -> bool {
    items(&projected["sources"]).all(|source| {
        let namespace =
            |item: &Value| item["path"] == "namespace" && item["fieldRef"]["fieldPath"] == "metadata.namespace";
        source["serviceAccountToken"].is_object()
            || source["configMap"]["name"] == "kube-root-ca.crt"
            || (source["downwardAPI"].is_object() && items(&source["downwardAPI"]["items"]).all(namespace))
    })
}

/// Whether a path is below a prefix, part by part.
fn has_prefix(path: &str, prefix: &str) -> bool {
    let parts = |text: &str| -> Vec<String> {
        let list = text.split('/').filter(|part| !part.is_empty() && *part != ".");
        list.map(str::to_owned).collect()
    };
    parts(path).starts_with(&parts(prefix))
}

/// Whether two levels are the same; the order of categories does not count.
fn same_level(a: &str, b: &str) -> bool {
    let parts = |level: &str| -> (String, Vec<String>) {
        let (range, categories) = level.split_once(':').unwrap_or((level, ""));
        let mut list: Vec<String> = categories.split(',').map(str::to_owned).collect();
        list.sort();
        (range.to_owned(), list)
    };
    parts(a) == parts(b)
}
