//! Volumes of pods and the sources that PersistentVolumes share with them.

use serde_json::Value;

use super::check::{Problems, alternatives, or_empty, quantity};
use super::legacy_volumes::{azure_disk, fibre_channel, flex, flocker, iscsi, quobyte, storage_os};
use super::{entries, has, items, projections, text};
use crate::names;

/// Types of host paths.
const HOST_PATH_TYPES: &[&str] =
    &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
/// Policies of pulling images.
pub const PULL_POLICIES: &[&str] = &["Always", "IfNotPresent", "Never"];

/// What a volume needs to know of its pod.
pub struct PodFacts<'a> {
    /// The pod's name, "" in templates.
    pub name: &'a str,
    /// Whether it is a pod, not a template.
    pub is_pod: bool,
    /// Whether it is the image of a pod that a node has from elsewhere than the API.
    pub is_mirror: bool,
}

/// All volumes of a pod. Gives the names of those that are good, which containers may mount.
pub fn volumes<'a>(spec: &'a Value, path: &str, pod: &PodFacts<'_>, p: &mut Problems) -> Vec<(&'a str, &'a Value)> {
    let mut good: Vec<(&str, &Value)> = Vec::new();
    let created: Vec<String> = match pod.name {
        "" => Vec::new(),
        name => items(&spec["volumes"])
            .filter(|v| has(v, "ephemeral"))
            .map(|v| format!("{name}-{}", text(v, "name")))
            .collect(),
    };
    for (index, volume) in items(&spec["volumes"]).enumerate() {
        let at = format!("{path}.volumes[{index}]");
        let name = text(volume, "name");
        let before = p.0.len();
        source(volume, &at, pod, p);
        if name.is_empty() {
            p.required(format!("{at}.name"), "");
        } else {
            p.label(format!("{at}.name"), &volume["name"]);
        }
        if good.iter().any(|(other, _)| *other == name) {
            p.duplicate(format!("{at}.name"), &or_empty(&volume["name"]));
        }
        // A volume that is wrong takes no name, and nothing can mount it.
        if p.0.len() == before {
            good.push((name, volume));
        }
        let claim = &volume["persistentVolumeClaim"]["claimName"];
        if claim.as_str().is_some_and(|claim| created.iter().any(|c| c == claim)) {
            let why = "must not reference a PVC that gets created for an ephemeral volume";
            p.invalid(format!("{at}.persistentVolumeClaim.claimName"), claim, why);
        }
    }
    good
}

fn source(volume: &Value, path: &str, pod: &PodFacts<'_>, p: &mut Problems) {
    let mut set = alternatives(volume, "api.core.v1.Volume", &["name"]);
    set.sort_by_key(|name| SOURCE_ORDER.iter().position(|s| s == name).unwrap_or(usize::MAX));
    if set.is_empty() {
        p.required(path, "must specify a volume type");
    }
    for (index, name) in set.iter().enumerate() {
        if *name == "iscsi" && has(&volume["iscsi"], "initiatorName") {
            let portal = text(&volume["iscsi"], "targetPortal");
            if text(volume, "name").len() + 1 + portal.len() > 64 {
                p.invalid(format!("{path}.name"), &or_empty(&volume["name"]), TOO_LONG_TOGETHER);
            }
        }
        if index > 0 {
            // Two are misspelt when they come second.
            let shown = match *name {
                "cephfs" => "cephFS",
                "downwardAPI" => "downwarAPI",
                other => other,
            };
            p.forbidden(format!("{path}.{shown}"), "may not specify more than 1 volume type");
            continue;
        }
        let (source, at) = (&volume[*name], format!("{path}.{}", field_name(name)));
        match *name {
            "ephemeral" => ephemeral(volume, source, &at, path, pod, p),
            "projected" => projections::projected(source, &at, p),
            "downwardAPI" => projections::downward(source, &at, p),
            "configMap" | "secret" => projections::key_source(name, source, &at, p),
            "image" => {
                p.present(source, "reference", &at);
                p.one_of(format!("{at}.pullPolicy"), &source["pullPolicy"], PULL_POLICIES);
            }
            _ => shared_source(name, source, &at, p),
        }
    }
}

/// Said of names that a disk's initiator puts together.
pub const TOO_LONG_TOGETHER: &str = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.";

/// The name under which messages tell of a source.
pub fn field_name(name: &str) -> &str {
    if name == "gcePersistentDisk" { "persistentDisk" } else { name }
}

/// The order in which upstream looks at sources: the first one counts.
const SOURCE_ORDER: &[&str] = &[
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "projected",
    "scaleIO",
    "csi",
    "ephemeral",
    "image",
];

/// Fields that a source must have.
const REQUIRED: &[(&str, &[&str])] = &[
    ("gitRepo", &["repository"]),
    ("gcePersistentDisk", &["pdName"]),
    ("awsElasticBlockStore", &["volumeID"]),
    ("nfs", &["server", "path"]),
    ("glusterfs", &["endpoints", "path"]),
    ("persistentVolumeClaim", &["claimName"]),
    ("rbd", &["image"]),
    ("cinder", &["volumeID"]),
    ("flexVolume", &["driver"]),
    ("azureFile", &["secretName", "shareName"]),
    ("vsphereVolume", &["volumePath"]),
    ("photonPersistentDisk", &["pdID"]),
    ("portworxVolume", &["volumeID"]),
    ("scaleIO", &["gateway", "system", "volumeName"]),
    ("local", &["path"]),
];

/// A source that PersistentVolumes have too.
pub fn shared_source(name: &str, source: &Value, at: &str, p: &mut Problems) {
    let required = REQUIRED.iter().find(|(n, _)| *n == name).map(|(_, fields)| *fields).unwrap_or_default();
    for field in required {
        p.present(source, field, at);
    }
    match name {
        "emptyDir" if quantity(&source["sizeLimit"]).is_some_and(|q| q.is_negative()) => {
            p.forbidden(format!("{at}.sizeLimit"), "SizeLimit field must be a valid resource quantity");
        }
        "hostPath" => host_path(source, at, p),
        "nfs" if !text(source, "path").starts_with('/') => {
            p.invalid(format!("{at}.path"), &or_empty(&source["path"]), "must be an absolute path");
        }
        "gitRepo" => p.local_path(&format!("{at}.directory"), &source["directory"]),
        "gcePersistentDisk" | "awsElasticBlockStore"
            if source["partition"].as_i64().is_some_and(|n| !(0..=255).contains(&n)) =>
        {
            p.invalid(format!("{at}.partition"), &source["partition"], "must be between 1 and 255, inclusive");
        }
        "cephfs" | "rbd" if items(&source["monitors"]).next().is_none() => p.required(format!("{at}.monitors"), ""),
        "cinder" if has(source, "secretRef") => {
            p.present(&source["secretRef"], "name", &format!("{at}.secretRef"));
        }
        "csi" => csi(source, at, p),
        "iscsi" => iscsi(source, at, false, p),
        "fc" => fibre_channel(source, at, p),
        "flexVolume" => flex(source, at, p),
        "flocker" => flocker(source, at, p),
        "quobyte" => quobyte(source, at, p),
        "storageos" => storage_os(source, at, p),
        "azureDisk" => azure_disk(source, at, p),
        _ => {}
    }
}

fn csi(source: &Value, at: &str, p: &mut Problems) {
    csi_driver_name(&source["driver"], &format!("{at}.driver"), p);
    // In pods the secret is named only; volumes say more of theirs.
    let reference = &source["nodePublishSecretRef"];
    let of_pod = reference.is_object() && source.get("volumeHandle").is_none();
    if of_pod && p.present(reference, "name", &format!("{at}.nodePublishSecretRef")) {
        for problem in names::subdomain_problems(text(reference, "name")) {
            p.invalid(format!("{at}.name"), &reference["name"], &problem);
        }
    }
}

/// A reference to a secret of a PersistentVolume.
pub fn secret_reference(reference: &Value, at: &str, p: &mut Problems) {
    if p.present(reference, "name", at) {
        for problem in names::subdomain_problems(text(reference, "name")) {
            p.invalid(format!("{at}.name"), &reference["name"], &problem);
        }
    }
    if p.present(reference, "namespace", at) {
        for problem in names::label_problems(text(reference, "namespace")) {
            p.invalid(format!("{at}.namespace"), &reference["namespace"], &problem);
        }
    }
}

fn host_path(source: &Value, at: &str, p: &mut Problems) {
    if p.present(source, "path", at) {
        p.path_no_backsteps(format!("{at}.path"), &source["path"]);
        p.one_of_if_set(format!("{at}.type"), &source["type"], HOST_PATH_TYPES);
    }
}

/// The name of a CSI driver: a subdomain of at most 63 characters.
pub fn csi_driver_name(name: &Value, field: &str, p: &mut Problems) {
    let driver = name.as_str().unwrap_or_default();
    if driver.is_empty() {
        return p.required(field, "");
    }
    if driver.len() > 63 {
        p.too_long(field, 63);
    }
    for problem in names::subdomain_problems(&driver.to_lowercase()) {
        p.invalid(field, &or_empty(name), &problem);
    }
}

fn ephemeral(volume: &Value, source: &Value, at: &str, path: &str, pod: &PodFacts<'_>, p: &mut Problems) {
    if !has(source, "volumeClaimTemplate") {
        p.required(format!("{at}.volumeClaimTemplate"), "");
    } else {
        let (template, at) = (&source["volumeClaimTemplate"], format!("{at}.volumeClaimTemplate"));
        super::meta::annotations(&template["metadata"]["annotations"], &format!("{at}.metadata.annotations"), p);
        super::meta::labels(&template["metadata"]["labels"], &format!("{at}.metadata.labels"), p);
        for (field, value) in entries(&template["metadata"]) {
            let empty = match value {
                Value::Null => true,
                Value::String(text) => text.is_empty(),
                Value::Array(list) => list.is_empty(),
                Value::Object(map) => map.is_empty(),
                _ => false,
            };
            if !matches!(field.as_str(), "annotations" | "labels") && !empty {
                p.forbidden(format!("{at}.metadata.{field}"), "cannot be set");
            }
        }
        super::storage::claim_spec(&template["spec"], &format!("{at}.spec"), p);
    }
    // The claim's name is made of both.
    if !pod.name.is_empty() && !text(volume, "name").is_empty() {
        let claim = format!("{}-{}", pod.name, text(volume, "name"));
        for problem in names::subdomain_problems(&claim) {
            p.invalid(format!("{path}.name"), &or_empty(&volume["name"]), &format!("PVC name {claim:?}: {problem}"));
        }
    }
}
