//! Volumes, claims and the kinds of the storage group.

use serde_json::{Value, json};

use super::check::{Problems, alternatives, or_empty, quantity};
use super::{entries, has, items, selectors, text, volumes};
use crate::shown;

const ACCESS_MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
/// Fields of a PersistentVolume's spec that are no source.
const NOT_SOURCES: &[&str] = &[
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];
const CLAIM_IMMUTABLE: &str =
    "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
/// Limits of parameters: entries and bytes of all.
const MAX_PARAMETERS: usize = 512;
const MAX_PARAMETER_BYTES: usize = 256 << 10;
/// Least seconds of a token and between updates of a driver's capacity.
const MIN_TOKEN_SECONDS: i64 = 600;
const MIN_UPDATE_SECONDS: i64 = 10;

/// A PersistentVolume, or a change of it.
pub fn volume(subresource: &str, new: &Value, old: Option<&Value>, p: &mut Problems) {
    if subresource == "status" {
        return;
    }
    volume_spec(&new["spec"], "spec", false, p);
    let Some(old) = old else { return };
    let (spec, before) = (&new["spec"], &old["spec"]);
    let source = |spec: &Value| shown::of("PVSource", spec).lines();
    let difference = shown::unified(&source(before), &source(spec));
    if !difference.is_empty() {
        let why = format!("spec.persistentvolumesource is immutable after creation\n{difference}");
        p.forbidden("spec.persistentvolumesource", &why);
    }
    p.immutable("volumeMode", &spec["volumeMode"], &before["volumeMode"]);
}

/// The spec of a PersistentVolume; `inline` if it stands in a VolumeAttachment.
pub fn volume_spec(spec: &Value, path: &str, inline: bool, p: &mut Problems) {
    let set = alternatives(spec, "api.core.v1.PersistentVolumeSpec", NOT_SOURCES);
    if inline {
        if set.iter().any(|name| *name != "csi") || set.is_empty() {
            p.required(format!("{path}.csi"), "");
        }
    } else {
        capacity(&spec["capacity"], path, p);
        p.one_of(
            format!("{path}.persistentVolumeReclaimPolicy"),
            &spec["persistentVolumeReclaimPolicy"],
            &["Delete", "Recycle", "Retain"],
        );
    }
    if items(&spec["accessModes"]).next().is_none() {
        p.required(format!("{path}.accessModes"), "");
    }
    access_modes(spec, path, p);
    if has(&spec["nodeAffinity"], "required") {
        selectors::node_selector(&spec["nodeAffinity"]["required"], &format!("{path}.nodeAffinity.required"), p);
    }
    if set.is_empty() && !inline {
        p.required(path, "must specify a volume type");
    }
    for (index, name) in in_upstream_order(set).iter().enumerate() {
        let at = format!("{path}.{name}");
        if index > 0 {
            p.forbidden(at, "may not specify more than 1 volume type");
            continue;
        }
        volumes::shared_source(name, &spec[*name], &at, p);
        if *name == "csi" {
            p.present(&spec["csi"], "volumeHandle", &at);
        }
        if *name == "local" {
            p.path_no_backsteps(format!("{at}.path"), &spec["local"]["path"]);
            if !has(&spec["nodeAffinity"], "required") {
                p.required("metadata.annotations", "Local volume requires node affinity");
            }
        }
    }
    if !text(spec, "storageClassName").is_empty() {
        p.subdomain(format!("{path}.storageClassName"), &spec["storageClassName"]);
    }
    p.one_of_if_set(format!("{path}.volumeMode"), &spec["volumeMode"], &["Block", "Filesystem"]);
    if spec["hostPath"]["path"] == "/" && spec["persistentVolumeReclaimPolicy"] == "Recycle" {
        let why = "may not be 'recycle' for a hostPath mount of '/'";
        p.forbidden(format!("{path}.persistentVolumeReclaimPolicy"), why);
    }
}

fn in_upstream_order(mut set: Vec<&str>) -> Vec<&str> {
    const ORDER: &[&str] = &[
        "hostPath",
        "gcePersistentDisk",
        "awsElasticBlockStore",
        "glusterfs",
        "flocker",
        "nfs",
        "rbd",
        "quobyte",
        "cephfs",
        "iscsi",
        "cinder",
        "fc",
        "flexVolume",
        "azureFile",
        "vsphereVolume",
        "photonPersistentDisk",
        "portworxVolume",
        "azureDisk",
        "scaleIO",
        "local",
        "storageos",
        "csi",
    ];
    set.sort_by_key(|name| ORDER.iter().position(|o| o == name));
    set
}

fn capacity(capacity: &Value, path: &str, p: &mut Problems) {
    let field = format!("{path}.capacity");
    if entries(capacity).next().is_none() {
        p.required(&field, "");
    }
    if !has(capacity, "storage") || entries(capacity).count() > 1 {
        p.not_supported(&field, capacity, &["storage"]);
    }
    for (name, amount) in entries(capacity) {
        let at = format!("{field}[{name}]");
        let Some(amount_read) = quantity(amount) else { continue };
        if amount_read.is_negative() {
            p.invalid_shown(&at, amount.as_str().unwrap_or_default(), "must be a valid resource quantity");
        }
        if amount_read.is_negative() || amount_read.is_zero() {
            p.invalid(&at, amount, "must be greater than zero");
        }
    }
}

fn access_modes(spec: &Value, path: &str, p: &mut Problems) {
    let field = format!("{path}.accessModes");
    let mut pod_only = false;
    let mut others = false;
    for mode in items(&spec["accessModes"]) {
        p.one_of(&field, mode, ACCESS_MODES);
        pod_only |= mode == "ReadWriteOncePod";
        others |= mode != "ReadWriteOncePod";
    }
    if pod_only && others {
        p.forbidden(field, "may not use ReadWriteOncePod with other access modes");
    }
}

/// A claim, or a change of it.
pub fn claim(subresource: &str, new: &Value, old: Option<&Value>, p: &mut Problems) {
    if subresource == "status" {
        for (name, amount) in entries(&new["status"]["capacity"]) {
            p.not_negative_quantity(format!("status.capacity[{name}]"), amount);
        }
        return;
    }
    claim_spec(&new["spec"], "spec", p);
    if let Some(old) = old {
        claim_update(new, old, p);
    }
}

/// The spec of a claim, also where it is a template's.
pub fn claim_spec(spec: &Value, path: &str, p: &mut Problems) {
    if items(&spec["accessModes"]).next().is_none() {
        p.required(format!("{path}.accessModes"), "at least 1 access mode is required");
    }
    if spec["selector"].is_object() {
        selectors::label_selector(&spec["selector"], &format!("{path}.selector"), p);
    }
    access_modes(spec, path, p);
    let field = format!("{path}.resources[storage]");
    match spec["resources"]["requests"].get("storage") {
        None => p.required(field, ""),
        Some(amount) if quantity(amount).is_some_and(|q| q.is_zero() || q.is_negative()) => {
            p.invalid(field, amount, "must be greater than zero");
        }
        Some(_) => {}
    }
    if !text(spec, "storageClassName").is_empty() {
        p.subdomain(format!("{path}.storageClassName"), &spec["storageClassName"]);
    }
    p.one_of_if_set(format!("{path}.volumeMode"), &spec["volumeMode"], &["Block", "Filesystem"]);
    for name in ["dataSource", "dataSourceRef"] {
        if has(spec, name) {
            data_source(&spec[name], &format!("{path}.{name}"), p);
        }
    }
    if let (Value::Object(source), Value::Object(reference)) = (&spec["dataSource"], &spec["dataSourceRef"]) {
        let same = ["apiGroup", "kind", "name"].iter().all(|key| source.get(*key) == reference.get(*key));
        if !text(&spec["dataSourceRef"], "namespace").is_empty() {
            p.invalid(path, &json!({}), "may not be specified when dataSourceRef.namespace is specified");
        } else if !same {
            p.invalid_shown(path, "{}", "must match dataSourceRef");
        }
    }
    if has(spec, "volumeAttributesClassName") && !text(spec, "volumeAttributesClassName").is_empty() {
        p.subdomain(format!("{path}.volumeAttributesClassName"), &spec["volumeAttributesClassName"]);
    }
}

fn data_source(source: &Value, at: &str, p: &mut Problems) {
    for field in ["name", "kind"] {
        p.present(source, field, at);
    }
    let group = text(source, "apiGroup");
    if group.is_empty() && !matches!(text(source, "kind"), "" | "PersistentVolumeClaim") {
        let why = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
        p.invalid(at, &source["kind"], why);
    }
    if !group.is_empty() {
        p.subdomain(format!("{at}.apiGroup"), &source["apiGroup"]);
    }
}

fn claim_update(new: &Value, old: &Value, p: &mut Problems) {
    let (mut spec, before) = (new["spec"].clone(), &old["spec"]);
    let bound = old["status"]["phase"] == "Bound";
    // The class may be filled in later, the volume by the binder.
    if text(before, "volumeName").is_empty() {
        super::super::prepare::keep(&mut spec, before, "volumeName");
    }
    if !has(before, "storageClassName") {
        super::super::prepare::keep(&mut spec, before, "storageClassName");
    }
    if bound {
        let requests = before["resources"]["requests"].clone();
        spec["resources"]["requests"] = requests;
        super::super::prepare::keep(&mut spec, before, "volumeAttributesClassName");
    }
    let difference = shown::difference("ClaimSpec", before, &spec);
    if !difference.is_empty() {
        p.forbidden("spec", &format!("{CLAIM_IMMUTABLE}\n{difference}"));
    }
    if bound {
        let amount = |object: &Value| quantity(&object["spec"]["resources"]["requests"]["storage"]);
        let has_now = quantity(&old["status"]["capacity"]["storage"]);
        if let (Some(now), Some(was)) = (amount(new), amount(old))
            && now < was
            && has_now.is_none_or(|capacity| now <= capacity)
        {
            p.forbidden("spec.resources.requests.storage", "field can not be less than status.capacity");
        }
    }
}

/// An object of the storage group, or a change of it.
pub fn validate(plural: &str, subresource: &str, new: &Value, old: Option<&Value>, p: &mut Problems) {
    if subresource == "status" {
        return;
    }
    match plural {
        "storageclasses" => class(new, old, p),
        "volumeattributesclasses" => attributes_class(new, old, p),
        "csidrivers" => driver(new, old, p),
        "csinodes" => node(new, old, p),
        "csistoragecapacities" => storage_capacity(new, old, p),
        "volumeattachments" => attachment(new, old, p),
        _ => {}
    }
}

fn parameters(new: &Value, allow_empty: bool, p: &mut Problems) {
    let map: Vec<_> = entries(&new["parameters"]).collect();
    if map.is_empty() && !allow_empty {
        p.required("parameters", "must contain at least one key/value pair");
    }
    if map.len() > MAX_PARAMETERS {
        p.too_many("parameters", map.len(), MAX_PARAMETERS);
        return;
    }
    if map.iter().any(|(key, _)| key.is_empty()) {
        p.invalid("parameters", &json!(""), "field can not be empty.");
    }
    let bytes: usize = map.iter().map(|(key, value)| key.len() + value.as_str().unwrap_or_default().len()).sum();
    if bytes > MAX_PARAMETER_BYTES {
        p.too_long("parameters", MAX_PARAMETER_BYTES);
    }
}

fn class(new: &Value, old: Option<&Value>, p: &mut Problems) {
    if p.present(new, "provisioner", "") {
        let name = text(new, "provisioner").to_lowercase();
        p.qualified_name("provisioner", &name);
    }
    parameters(new, true, p);
    p.one_of_if_set("reclaimPolicy", &new["reclaimPolicy"], &["Delete", "Retain"]);
    match text(new, "volumeBindingMode") {
        "" => p.required("volumeBindingMode", ""),
        _ => p.one_of("volumeBindingMode", &new["volumeBindingMode"], &["Immediate", "WaitForFirstConsumer"]),
    }
    for (index, term) in items(&new["allowedTopologies"]).enumerate() {
        let mut seen: Vec<&str> = Vec::new();
        for (i, requirement) in items(&term["matchLabelExpressions"]).enumerate() {
            let at = format!("allowedTopologies[{index}].matchLabelExpressions[{i}]");
            if items(&requirement["values"]).next().is_none() {
                p.required(format!("{at}.values"), "");
            }
            let key = text(requirement, "key");
            p.qualified_name(&format!("{at}.key"), key);
            if seen.contains(&key) {
                p.duplicate(format!("{at}.key"), &requirement["key"]);
            }
            seen.push(key);
        }
    }
    let Some(old) = old else { return };
    for field in ["parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"] {
        p.immutable(field, &new[field], &old[field]);
    }
}

fn attributes_class(new: &Value, old: Option<&Value>, p: &mut Problems) {
    volumes::csi_driver_name(&new["driverName"], "driverName", p);
    parameters(new, false, p);
    let Some(old) = old else { return };
    for field in ["driverName", "parameters"] {
        if new[field] != old[field] {
            p.forbidden(field, &format!("updates to {field} are forbidden."));
        }
    }
}

fn driver(new: &Value, old: Option<&Value>, p: &mut Problems) {
    let spec = &new["spec"];
    if old.is_none() {
        let before = p.0.len();
        volumes::csi_driver_name(&new["metadata"]["name"], "metadata.name", p);
        // The general rule has told of the form already; only the length is new.
        p.0.truncate(before + usize::from(text(&new["metadata"], "name").len() > 63));
    }
    for field in ["attachRequired", "podInfoOnMount", "storageCapacity"] {
        if !has(spec, field) {
            p.required(format!("spec.{}", if field == "attachRequired" { "attachedRequired" } else { field }), "");
        }
    }
    let policies = ["File", "None", "ReadWriteOnceWithFSType"];
    p.one_of_if_set("spec.fsGroupPolicy", &spec["fsGroupPolicy"], &policies);
    for mode in items(&spec["volumeLifecycleModes"]) {
        p.one_of("spec.volumeLifecycleModes", mode, &["Persistent", "Ephemeral"]);
    }
    let mut seen: Vec<&str> = Vec::new();
    for (index, token) in items(&spec["tokenRequests"]).enumerate() {
        let at = format!("spec.tokenRequests[{index}]");
        let audience = text(token, "audience");
        if seen.contains(&audience) {
            p.duplicate(format!("{at}.audience"), &token["audience"]);
        }
        seen.push(audience);
        let seconds = &token["expirationSeconds"];
        if seconds.as_i64().is_some_and(|s| s < MIN_TOKEN_SECONDS) {
            let why = "may not specify a duration less than 10 minutes";
            p.invalid(format!("{at}.expirationSeconds"), seconds, why);
        }
        if seconds.as_i64().is_some_and(|s| s > 1 << 32) {
            let why = "may not specify a duration larger than 2^32 seconds";
            p.invalid(format!("{at}.expirationSeconds"), seconds, why);
        }
    }
    let period = &spec["nodeAllocatableUpdatePeriodSeconds"];
    if period.as_i64().is_some_and(|s| s < MIN_UPDATE_SECONDS) {
        let why = "must be greater than or equal to 10 seconds";
        p.invalid("spec.nodeAllocatableUpdatePeriodSeconds", period, why);
    }
    if let Some(old) = old {
        p.immutable("spec.attachedRequired", &spec["attachRequired"], &old["spec"]["attachRequired"]);
        p.immutable("spec.volumeLifecycleModes", &spec["volumeLifecycleModes"], &old["spec"]["volumeLifecycleModes"]);
    }
}

fn node(new: &Value, old: Option<&Value>, p: &mut Problems) {
    let mut seen: Vec<&str> = Vec::new();
    for (index, driver) in items(&new["spec"]["drivers"]).enumerate() {
        let at = format!("spec.drivers[{index}]");
        volumes::csi_driver_name(&driver["name"], &format!("{at}.name"), p);
        let name = text(driver, "name");
        if seen.contains(&name) {
            p.duplicate(format!("{at}.name"), &driver["name"]);
        }
        seen.push(name);
        if p.present(driver, "nodeID", &at) && text(driver, "nodeID").len() > 256 {
            p.invalid(format!("{at}.nodeID"), &driver["nodeID"], "must be 256 characters or less");
        }
        p.not_negative(format!("{at}.allocatable.count"), &driver["allocatable"]["count"]);
        let mut keys: Vec<&Value> = Vec::new();
        for key in items(&driver["topologyKeys"]) {
            if keys.contains(&key) {
                p.duplicate(&at, key);
            }
            keys.push(key);
            p.qualified_name(&at, key.as_str().unwrap_or_default());
        }
    }
    let Some(old) = old else { return };
    for before in items(&old["spec"]["drivers"]) {
        let same = items(&new["spec"]["drivers"]).find(|d| d["name"] == before["name"]);
        if let Some(now) = same {
            let part = |driver: &Value| (driver["nodeID"].clone(), driver["topologyKeys"].clone());
            if part(now) != part(before) {
                p.invalid_shown("spec.drivers", &shown::compact("CSINodeDriver", now), "field is immutable");
            }
        }
    }
}

fn storage_capacity(new: &Value, old: Option<&Value>, p: &mut Problems) {
    p.subdomain("storageClassName", &new["storageClassName"]);
    if new["nodeTopology"].is_object() {
        selectors::label_selector(&new["nodeTopology"], "nodeTopology", p);
    }
    for field in ["capacity", "maximumVolumeSize"] {
        p.not_negative_quantity(field, &new[field]);
    }
    let Some(old) = old else { return };
    if old["nodeTopology"] != new["nodeTopology"] {
        p.invalid_shown("nodeTopology", &super::apps::shown_selector(&new["nodeTopology"]), "field is immutable");
    }
    p.immutable("storageClassName", &new["storageClassName"], &old["storageClassName"]);
}

fn attachment(new: &Value, old: Option<&Value>, p: &mut Problems) {
    let spec = &new["spec"];
    if !text(spec, "attacher").is_empty() {
        volumes::csi_driver_name(&spec["attacher"], "spec.attacher", p);
    } else {
        p.required("spec.attacher", "");
    }
    p.subdomain("spec.nodeName", &or_empty(&spec["nodeName"]));
    let source = &spec["source"];
    let why = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    match (has(source, "inlineVolumeSpec"), has(source, "persistentVolumeName")) {
        (false, false) => p.required("spec.source", why),
        (true, true) => p.forbidden("spec.source", why),
        (true, false) => volume_spec(&source["inlineVolumeSpec"], "spec.source.inlineVolumeSpec", true, p),
        (false, true) => {
            if text(source, "persistentVolumeName").is_empty() {
                p.required("spec.source.persistentVolumeName", "must specify non empty persistentVolumeName");
            }
        }
    }
    if let Some(old) = old
        && old["spec"] != *spec
    {
        p.invalid_shown("spec", &shown::compact("VolumeAttachmentSpec", spec), "field is immutable");
    }
}
