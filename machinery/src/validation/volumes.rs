//! Volumes of pods and the sources that PersistentVolumes share with them.

use serde_json::{Value, json};

use super::check::{Problems, alternatives, or_empty, quantity};
use super::{has, items, text};
use crate::names;

/// Types of host paths.
const HOST_PATH_TYPES: &[&str] =
    &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
/// Fields that a downward API volume may show.
const DOWNWARD_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
/// Least and most life of a projected token, seconds.
const TOKEN_SECONDS: (i64, i64) = (600, 1 << 32);

/// What a volume needs to know of its pod.
pub struct PodFacts<'a> {
    /// The pod's name, "" in templates.
    pub name: &'a str,
    /// Whether a service account is named.
    pub has_account: bool,
}

/// All volumes of a pod.
pub fn volumes(spec: &Value, path: &str, pod: &PodFacts<'_>, p: &mut Problems) {
    let mut seen: Vec<&str> = Vec::new();
    for (index, volume) in items(&spec["volumes"]).enumerate() {
        let at = format!("{path}.volumes[{index}]");
        let name = text(volume, "name");
        let before = p.0.len();
        if name.is_empty() {
            p.required(format!("{at}.name"), "");
        } else {
            p.label(format!("{at}.name"), &volume["name"]);
            if seen.contains(&name) {
                p.duplicate(format!("{at}.name"), &volume["name"]);
            }
        }
        source(volume, &at, pod, p);
        // A volume that is wrong takes no name.
        if p.0.len() == before {
            seen.push(name);
        }
    }
}

fn source(volume: &Value, path: &str, pod: &PodFacts<'_>, p: &mut Problems) {
    let mut set = alternatives(volume, "api.core.v1.Volume", &["name"]);
    set.sort_by_key(|name| SOURCE_ORDER.iter().position(|s| s == name).unwrap_or(usize::MAX));
    if set.is_empty() {
        p.required(path, "must specify a volume type");
    }
    for (index, name) in set.iter().enumerate() {
        let at = format!("{path}.{name}");
        if index > 0 {
            p.forbidden(at, "may not specify more than 1 volume type");
            continue;
        }
        let source = &volume[*name];
        match *name {
            "ephemeral" => ephemeral(volume, source, &at, path, pod, p),
            "projected" => projected(source, &at, pod, p),
            "downwardAPI" => downward(source, &at, p),
            "configMap" | "secret" => key_source(name, source, &at, p),
            _ => shared_source(name, source, &at, p),
        }
    }
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
    ("iscsi", &["targetPortal", "iqn"]),
    ("glusterfs", &["endpoints", "path"]),
    ("persistentVolumeClaim", &["claimName"]),
    ("rbd", &["image"]),
    ("cinder", &["volumeID"]),
    ("quobyte", &["registry", "volume"]),
    ("flexVolume", &["driver"]),
    ("azureFile", &["secretName", "shareName"]),
    ("vsphereVolume", &["volumePath"]),
    ("photonPersistentDisk", &["pdID"]),
    ("portworxVolume", &["volumeID"]),
    ("azureDisk", &["diskName", "diskURI"]),
    ("scaleIO", &["gateway", "system", "volumeName"]),
    ("csi", &["driver"]),
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
        "nfs" if text(source, "path").starts_with(|c| c != '/') => {
            p.invalid(format!("{at}.path"), &source["path"], "must be an absolute path");
        }
        "gitRepo" => p.local_path(&format!("{at}.directory"), &source["directory"]),
        "gcePersistentDisk" | "awsElasticBlockStore"
            if source["partition"].as_i64().is_some_and(|n| !(0..=255).contains(&n)) =>
        {
            p.invalid(format!("{at}.partition"), &source["partition"], "must be between 0 and 255, inclusive");
        }
        "cephfs" if items(&source["monitors"]).next().is_none() => p.required(format!("{at}.monitors"), ""),
        "rbd" if items(&source["monitors"]).next().is_none() => p.required(format!("{at}.monitors"), ""),
        "csi" if !text(source, "driver").is_empty() => csi_driver_name(&source["driver"], &format!("{at}.driver"), p),
        "image" => {
            p.present(source, "reference", at);
            p.one_of_if_set(format!("{at}.pullPolicy"), &source["pullPolicy"], &["Always", "IfNotPresent", "Never"]);
        }
        "iscsi" if source["lun"].as_i64().is_some_and(|n| !(0..=255).contains(&n)) => {
            p.invalid(format!("{at}.lun"), &source["lun"], "must be between 0 and 255, inclusive");
        }
        _ => {}
    }
}

fn host_path(source: &Value, at: &str, p: &mut Problems) {
    if p.present(source, "path", at) {
        p.path_no_backsteps(format!("{at}.path"), &source["path"]);
    }
    p.one_of_if_set(format!("{at}.type"), &source["type"], HOST_PATH_TYPES);
}

/// The name of a CSI driver: a subdomain of at most 63 characters.
pub fn csi_driver_name(name: &Value, field: &str, p: &mut Problems) {
    let driver = name.as_str().unwrap_or_default();
    if driver.is_empty() {
        p.required(field, "");
        return;
    }
    if driver.len() > 63 {
        p.too_long(field, 63);
    }
    for problem in names::subdomain_problems(&driver.to_lowercase()) {
        p.invalid(field, name, &problem);
    }
}

/// Permission bits.
fn mode(source: &Value, key: &str, at: &str, p: &mut Problems) {
    if source[key].as_i64().is_some_and(|n| !(0..=0o777).contains(&n)) {
        let why = "must be a number between 0 and 0777 (octal), both inclusive";
        p.invalid(format!("{at}.{key}"), &source[key], why);
    }
}

fn key_items(source: &Value, at: &str, p: &mut Problems) {
    for (index, item) in items(&source["items"]).enumerate() {
        let at = format!("{at}.items[{index}]");
        p.present(item, "key", &at);
        if p.present(item, "path", &at) {
            p.local_path(&format!("{at}.path"), &item["path"]);
        }
        mode(item, "mode", &at, p);
    }
}

fn key_source(name: &str, source: &Value, at: &str, p: &mut Problems) {
    p.present(source, if name == "secret" { "secretName" } else { "name" }, at);
    mode(source, "defaultMode", at, p);
    key_items(source, at, p);
}

fn downward(source: &Value, at: &str, p: &mut Problems) {
    mode(source, "defaultMode", at, p);
    downward_items(source, at, p);
}

fn downward_items(source: &Value, at: &str, p: &mut Problems) {
    for (index, item) in items(&source["items"]).enumerate() {
        let at = format!("{at}.items[{index}]");
        if p.present(item, "path", &at) {
            p.local_path(&format!("{at}.path"), &item["path"]);
        }
        match (has(item, "fieldRef"), has(item, "resourceFieldRef")) {
            (true, true) => {
                p.invalid(&at, &json!("resource"), "fieldRef and resourceFieldRef can not be specified simultaneously")
            }
            (true, false) => {
                super::container::field_ref(&item["fieldRef"], DOWNWARD_FIELDS, &format!("{at}.fieldRef"), p);
            }
            (false, true) => {
                super::container::resource_field_ref(
                    &item["resourceFieldRef"],
                    true,
                    &format!("{at}.resourceFieldRef"),
                    p,
                );
            }
            (false, false) => p.required(format!("{at}.fieldRef"), "one of fieldRef and resourceFieldRef is required"),
        }
        mode(item, "mode", &at, p);
    }
}

fn projected(source: &Value, at: &str, pod: &PodFacts<'_>, p: &mut Problems) {
    mode(source, "defaultMode", at, p);
    for (index, part) in items(&source["sources"]).enumerate() {
        let at = format!("{at}.sources[{index}]");
        let set = alternatives(part, "api.core.v1.VolumeProjection", &[]);
        if set.is_empty() {
            p.required(&at, "must specify a volume type");
        }
        if set.len() > 1 {
            p.forbidden(&at, "may not specify more than 1 volume type per source");
        }
        for name in set {
            let (inner, at) = (&part[name], format!("{at}.{name}"));
            match name {
                "secret" | "configMap" => {
                    p.present(inner, "name", &at);
                    key_items(inner, &at, p);
                }
                "downwardAPI" => downward_items(inner, &at, p),
                "serviceAccountToken" => token(inner, &at, pod, p),
                _ => {}
            }
        }
    }
}

fn token(source: &Value, at: &str, pod: &PodFacts<'_>, p: &mut Problems) {
    if !pod.has_account {
        p.forbidden(at, "must not be specified when serviceAccountName is not set");
    }
    if let Some(seconds) = source["expirationSeconds"].as_i64() {
        let field = format!("{at}.expirationSeconds");
        if seconds < TOKEN_SECONDS.0 {
            p.invalid(&field, &json!(seconds), "may not specify a duration less than 10 minutes");
        }
        if seconds > TOKEN_SECONDS.1 {
            p.invalid(&field, &json!(seconds), "may not specify a duration larger than 2^32 seconds");
        }
    }
    p.present(source, "path", at);
}

fn ephemeral(volume: &Value, source: &Value, at: &str, path: &str, pod: &PodFacts<'_>, p: &mut Problems) {
    if !has(source, "volumeClaimTemplate") {
        p.required(format!("{at}.volumeClaimTemplate"), "");
    } else {
        let template = &source["volumeClaimTemplate"];
        super::storage::claim_spec(&template["spec"], &format!("{at}.volumeClaimTemplate.spec"), p);
    }
    // The claim's name is made of both.
    if !pod.name.is_empty() && !text(volume, "name").is_empty() {
        let claim = format!("{}-{}", pod.name, text(volume, "name"));
        for problem in names::subdomain_problems(&claim) {
            p.invalid(format!("{path}.name"), &or_empty(&volume["name"]), &format!("PVC name {claim:?}: {problem}"));
        }
    }
}
