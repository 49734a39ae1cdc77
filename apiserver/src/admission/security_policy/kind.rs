//! The kind PodSecurityPolicy (`policy/v1beta1`): its definition, with the fields, enumerations and rules that it had.

use serde_json::{Value, json};

/// Its group.
pub const GROUP: &str = "policy";
/// Its version.
pub const VERSION: &str = "v1beta1";
/// Its plural.
pub const PLURAL: &str = "podsecuritypolicies";

/// Kinds of volumes that a policy can name; `*` is all.
const VOLUMES: [&str; 31] = [
    "*",
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephFS",
    "cinder",
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "gitRepo",
    "glusterfs",
    "hostPath",
    "image",
    "iscsi",
    "nfs",
    "persistentVolumeClaim",
    "photonPersistentDisk",
    "portworxVolume",
    "projected",
    "quobyte",
    "rbd",
    "scaleIO",
    "secret",
    "storageos",
    "vsphereVolume",
];

/// Most items of a list, so that the rules cost little.
const MAX_ITEMS: usize = 128;
/// Longest name of a capability, sysctl or runtime class, and longest path, characters.
const MAX_NAME: usize = 253;
const MAX_PATH: usize = 4096;

fn list(items: Value, description: &str) -> Value {
    json!({"type": "array", "items": items, "maxItems": MAX_ITEMS, "description": description,
        "x-kubernetes-list-type": "atomic"})
}

fn strings(description: &str) -> Value {
    list(json!({"type": "string", "maxLength": MAX_NAME}), description)
}

fn flag(description: &str) -> Value {
    json!({"type": "boolean", "description": description})
}

/// A strategy for ids: a rule and ranges.
fn ids(rules: &[&str], description: &str) -> Value {
    let range = json!({"type": "object", "required": ["min", "max"],
        "properties": {"min": {"type": "integer", "format": "int64", "minimum": 0},
            "max": {"type": "integer", "format": "int64", "minimum": 0}},
        "x-kubernetes-validations": [{"rule": "self.min <= self.max", "message": "min cannot be greater than max"}]});
    json!({"type": "object", "description": description, "required": ["rule"], "properties": {
        "rule": {"type": "string", "enum": rules, "description": "Which ids may be used."},
        "ranges": list(range, "The ids that may be used; the least of the first range is the default."),
    }})
}

fn named(key: &str, description: &str) -> Value {
    list(json!({"type": "object", "required": [key], "properties": {key: {"type": "string"}}}), description)
}

fn host_ports() -> Value {
    let port = json!({"type": "integer", "format": "int32", "minimum": 0, "maximum": 65535});
    let range = json!({"type": "object", "required": ["min", "max"], "properties": {"min": port, "max": port},
        "x-kubernetes-validations": [{"rule": "self.min <= self.max", "message": "min cannot be greater than max"}]});
    list(range, "Ports of the host that may be used.")
}

fn host_paths() -> Value {
    let path = json!({"type": "object", "required": ["pathPrefix"], "properties": {
        "pathPrefix": {"type": "string", "minLength": 1, "maxLength": MAX_PATH, "description": "What an allowed path begins with, whole parts only."},
        "readOnly": flag("The volume may be mounted read-only only.")},
        "x-kubernetes-validations": [{"rule": "!self.pathPrefix.matches('(^|/)[.][.](/|$)')",
            "message": "must not contain '..'"}]});
    list(path, "Paths of the host that may be used; none given: all.")
}

fn se_linux() -> Value {
    let options: Vec<(String, Value)> =
        ["level", "role", "type", "user"].map(|key| (key.to_owned(), json!({"type": "string"}))).into();
    let options: serde_json::Map<String, Value> = options.into_iter().collect();
    json!({"type": "object", "required": ["rule"], "properties": {
        "rule": {"type": "string", "enum": ["MustRunAs", "RunAsAny"]},
        "seLinuxOptions": {"type": "object", "properties": options}},
        "x-kubernetes-validations": [{"rule": "self.rule != 'MustRunAs' || has(self.seLinuxOptions)",
            "message": "seLinuxOptions are required to run as them"}]})
}

fn runtime_class() -> Value {
    json!({"type": "object", "required": ["allowedRuntimeClassNames"], "properties": {
        "allowedRuntimeClassNames": strings("Runtime classes that pods may name; * is all."),
        "defaultRuntimeClassName": {"type": "string", "maxLength": MAX_NAME}},
        "x-kubernetes-validations": [{
            "rule": "!has(self.defaultRuntimeClassName) || self.allowedRuntimeClassNames.exists(name, name == '*' || name == self.defaultRuntimeClassName)",
            "message": "the default runtime class must be among the allowed ones"}]})
}

fn properties() -> Value {
    json!({
        "privileged": flag("Whether pods may be privileged."),
        "defaultAddCapabilities": strings("Capabilities that are added unless a pod drops them."),
        "requiredDropCapabilities": strings("Capabilities that are dropped."),
        "allowedCapabilities": strings("Capabilities that may be added; * is all."),
        "volumes": list(json!({"type": "string", "enum": VOLUMES}), "Kinds of volumes that may be used."),
        "hostNetwork": flag("Whether pods may use the host's network."),
        "hostPorts": host_ports(),
        "hostPID": flag("Whether pods may see the host's processes."),
        "hostIPC": flag("Whether pods may use the host's IPC."),
        "seLinux": se_linux(),
        "runAsUser": ids(&["MustRunAs", "MustRunAsNonRoot", "RunAsAny"], "Users that containers may run as."),
        "runAsGroup": ids(&["MayRunAs", "MustRunAs", "RunAsAny"], "Groups that containers may run as."),
        "supplementalGroups": ids(&["MayRunAs", "MustRunAs", "RunAsAny"], "Further groups of pods."),
        "fsGroup": ids(&["MayRunAs", "MustRunAs", "RunAsAny"], "Groups that own volumes."),
        "readOnlyRootFilesystem": flag("Whether containers must not write to their root."),
        "defaultAllowPrivilegeEscalation": flag("What containers get that do not say."),
        "allowPrivilegeEscalation": {"type": "boolean", "default": true, "description": "Whether a process may gain more than its parent has."},
        "allowedHostPaths": host_paths(),
        "allowedFlexVolumes": named("driver", "Drivers of flex volumes that may be used; none given: all."),
        "allowedCSIDrivers": named("name", "Drivers of inline CSI volumes that may be used; none given: all."),
        "allowedUnsafeSysctls": strings("Unsafe sysctls that may be set; * at the end stands for anything."),
        "forbiddenSysctls": strings("Sysctls that may not be set; * at the end stands for anything."),
        "allowedProcMountTypes": list(json!({"type": "string", "enum": ["Default", "Unmasked"]}), "Ways to mount /proc."),
        "runtimeClass": runtime_class(),
    })
}

/// Rules about more than one field.
fn rules() -> Value {
    json!([
        {"rule": "!(has(self.defaultAllowPrivilegeEscalation) && self.defaultAllowPrivilegeEscalation) || self.allowPrivilegeEscalation",
            "fieldPath": ".defaultAllowPrivilegeEscalation",
            "message": "Cannot set DefaultAllowPrivilegeEscalation to true without also setting AllowPrivilegeEscalation to true"},
        {"rule": "!has(self.requiredDropCapabilities) || !has(self.defaultAddCapabilities) || self.requiredDropCapabilities.all(c, !(c in self.defaultAddCapabilities))",
            "fieldPath": ".defaultAddCapabilities",
            "message": "capability is listed in defaultAddCapabilities and requiredDropCapabilities"},
        {"rule": "!has(self.requiredDropCapabilities) || !has(self.allowedCapabilities) || self.requiredDropCapabilities.all(c, !(c in self.allowedCapabilities))",
            "fieldPath": ".allowedCapabilities",
            "message": "capability is listed in allowedCapabilities and requiredDropCapabilities"},
        {"rule": "!has(self.allowedUnsafeSysctls) || !has(self.forbiddenSysctls) || self.allowedUnsafeSysctls.all(s, !(s in self.forbiddenSysctls))",
            "fieldPath": ".allowedUnsafeSysctls",
            "message": "sysctl is both allowed and forbidden"},
    ])
}

/// The definition.
pub fn definition() -> Value {
    let column = |name: &str, kind: &str, path: &str| json!({"name": name, "type": kind, "jsonPath": path});
    let columns = [
        column("Priv", "boolean", ".spec.privileged"),
        column("Caps", "string", ".spec.allowedCapabilities"),
        column("SELinux", "string", ".spec.seLinux.rule"),
        column("RunAsUser", "string", ".spec.runAsUser.rule"),
        column("FSGroup", "string", ".spec.fsGroup.rule"),
        column("SupGroup", "string", ".spec.supplementalGroups.rule"),
        column("ReadOnlyRootFS", "boolean", ".spec.readOnlyRootFilesystem"),
        column("Volumes", "string", ".spec.volumes"),
    ];
    let spec = json!({"type": "object", "required": ["seLinux", "runAsUser", "supplementalGroups", "fsGroup"],
        "properties": properties(), "x-kubernetes-validations": rules()});
    let schema = json!({"type": "object", "properties": {"spec": spec},
        "description": "PodSecurityPolicy governs the ability to make requests that affect the Security Context that will be applied to a pod and container."});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{PLURAL}.{GROUP}")},
        "spec": {"group": GROUP, "scope": "Cluster",
            "names": {"plural": PLURAL, "singular": "podsecuritypolicy", "kind": "PodSecurityPolicy", "shortNames": ["psp"]},
            "versions": [{"name": VERSION, "served": true, "storage": true, "deprecated": true,
                "deprecationWarning": "policy/v1beta1 PodSecurityPolicy is deprecated in v1.21+, unavailable in v1.25+",
                "additionalPrinterColumns": columns, "schema": {"openAPIV3Schema": schema}}]},
    })
}
