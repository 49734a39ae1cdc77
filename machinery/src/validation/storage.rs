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
/// Longest message of a failed attachment.
const MAX_ERROR_BYTES: usize = 1024;
/// Least seconds of a token and between updates of a driver's capacity.
const MIN_TOKEN_SECONDS: i64 = 600;
const MIN_UPDATE_SECONDS: i64 = 10;

/// A PersistentVolume, or a change of it.
pub fn volume(subresource: &str, new: &Value, old: Option<&Value>, p: &mut Problems) {
    if subresource == "status" {
        return;
    }
    volume_spec(&new["spec"], "spec", text(&new["metadata"], "name"), false, p);
    let Some(old) = old else { return };
    // An update is looked at by two, who both look at all of it.
    volume_spec(&new["spec"], "spec", text(&new["metadata"], "name"), false, p);
    let (mut spec, before) = (new["spec"].clone(), &old["spec"]);
    if before["csi"].is_object() && !has(&before["csi"], "controllerExpandSecretRef") {
        // This may be said later.
        spec["csi"].as_object_mut().map(|csi| csi.remove("controllerExpandSecretRef"));
    }
    let source = |spec: &Value| shown::of("PVSource", spec).lines();
    let difference = shown::unified(&source(before), &source(&spec));
    if !difference.is_empty() {
        let why = format!("spec.persistentvolumesource is immutable after creation\n{difference}");
        p.forbidden("spec.persistentvolumesource", &why);
    }
    p.immutable("volumeMode", &spec["volumeMode"], &before["volumeMode"]);
    if has(before, "nodeAffinity") && !same_nodes(&spec["nodeAffinity"], &before["nodeAffinity"]) {
        let why = "field is immutable, except for updating from beta label to GA";
        let shown = match &spec["nodeAffinity"] {
            Value::Null => "null".to_owned(),
            affinity => shown::compact("VolumeNodeAffinity", affinity),
        };
        p.invalid_shown("nodeAffinity", &shown, why);
    }
    if has(before, CLASS_FIELD) && !has(&spec, CLASS_FIELD) {
        p.forbidden(format!("spec.{CLASS_FIELD}"), "update from non-nil value to nil is forbidden");
    }
}

const CLASS_FIELD: &str = "volumeAttributesClassName";
/// Labels of nodes with the names that they have by now.
const RENAMED_LABELS: &[(&str, &str)] = &[
    ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"),
    ("beta.kubernetes.io/os", "kubernetes.io/os"),
    ("beta.kubernetes.io/arch", "kubernetes.io/arch"),
    ("beta.kubernetes.io/instance-type", "node.kubernetes.io/instance-type"),
];

/// Whether two affinities are the same but for labels that were renamed.
fn same_nodes(new: &Value, old: &Value) -> bool {
    match (new, old) {
        (Value::Array(new), Value::Array(old)) => {
            new.len() == old.len() && new.iter().zip(old).all(|(new, old)| same_nodes(new, old))
        }
        (Value::Object(new), Value::Object(old)) => {
            let none = Value::Null;
            let same = |key: &String| {
                let (new, old) = (new.get(key).unwrap_or(&none), old.get(key).unwrap_or(&none));
                let renamed = RENAMED_LABELS.iter().any(|(from, to)| key == "key" && old == from && new == to);
                renamed || same_nodes(new, old)
            };
            new.keys().chain(old.keys()).all(same)
        }
        (new, old) => new == old,
    }
}

/// The spec of a PersistentVolume; `inline` if it stands in a VolumeAttachment.
pub fn volume_spec(spec: &Value, path: &str, name: &str, inline: bool, p: &mut Problems) {
    let set = alternatives(spec, "api.core.v1.PersistentVolumeSpec", NOT_SOURCES);
    if inline {
        inline_volume(spec, path, p);
    } else {
        capacity(&spec["capacity"], path, p);
        if !text(spec, "persistentVolumeReclaimPolicy").is_empty() {
            let field = format!("{path}.persistentVolumeReclaimPolicy");
            p.one_of(field, &spec["persistentVolumeReclaimPolicy"], &["Delete", "Recycle", "Retain"]);
        }
        if !text(spec, "storageClassName").is_empty() {
            p.subdomain(format!("{path}.storageClassName"), &spec["storageClassName"]);
        }
        p.one_of_if_set(format!("{path}.volumeMode"), &spec["volumeMode"], &["Block", "Filesystem"]);
        let affinity = &spec["nodeAffinity"];
        if has(affinity, "required") {
            selectors::node_selector(&affinity["required"], &format!("{path}.nodeAffinity.required"), p);
        } else if affinity.is_object() {
            p.required(format!("{path}.nodeAffinity.required"), "must specify required node constraints");
        }
    }
    if items(&spec["accessModes"]).next().is_none() {
        p.required(format!("{path}.accessModes"), "");
    }
    access_modes(spec, path, p);
    if set.is_empty() {
        p.required(path, "must specify a volume type");
    }
    for (index, source) in in_upstream_order(set).iter().enumerate() {
        // One of them is looked at wherever it stands.
        if index > 0 && *source != "flexVolume" {
            let shown = if *source == "cephfs" { "cephFS" } else { source };
            p.forbidden(format!("{path}.{shown}"), "may not specify more than 1 volume type");
            continue;
        }
        let at = format!("{path}.{}", volumes::field_name(source));
        volume_source(source, &spec[*source], &at, name, p);
        if *source == "local" && (inline || !spec["nodeAffinity"].is_object()) {
            p.required(format!("{path}.nodeAffinity"), "Local volume requires node affinity");
        }
    }
    let root = spec["hostPath"]["path"].as_str().is_some_and(|path| path.starts_with('/') && is_root(path));
    if root && spec["persistentVolumeReclaimPolicy"] == "Recycle" {
        let why = "may not be 'recycle' for a hostPath mount of '/'";
        p.forbidden(format!("{path}.persistentVolumeReclaimPolicy"), why);
    }
    attributes_class_name(spec, path, p);
}

fn is_root(path: &str) -> bool {
    let mut depth = 0_usize;
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        depth = if part == ".." { depth.saturating_sub(1) } else { depth + 1 };
    }
    depth == 0
}

fn attributes_class_name(spec: &Value, path: &str, p: &mut Problems) {
    if !has(spec, CLASS_FIELD) {
        return;
    }
    let field = format!("{path}.{CLASS_FIELD}");
    if text(spec, CLASS_FIELD).is_empty() {
        p.required(field, "an empty string is disallowed");
    } else {
        p.subdomain(field, &spec[CLASS_FIELD]);
    }
    if !has(spec, "csi") {
        p.required(format!("{path}.csi"), "has to be specified when using volumeAttributesClassName");
    }
}

/// What a volume may not say that stands in an attachment.
fn inline_volume(spec: &Value, path: &str, p: &mut Problems) {
    const WHY: &str = "may not be specified in the context of inline volumes";
    for field in ["claimRef", "nodeAffinity"] {
        if has(spec, field) {
            p.forbidden(format!("{path}.{field}"), WHY);
        }
    }
    if entries(&spec["capacity"]).next().is_some() {
        p.forbidden(format!("{path}.capacity"), WHY);
    }
    if !text(spec, "storageClassName").is_empty() {
        p.forbidden(format!("{path}.storageClassName"), WHY);
    }
    if !has(spec, "csi") {
        p.required(format!("{path}.csi"), "has to be specified in the context of inline volumes");
    }
    if !matches!(text(spec, "persistentVolumeReclaimPolicy"), "" | "Retain") {
        let why = "may only be Retain in the context of inline volumes";
        p.forbidden(format!("{path}.persistentVolumeReclaimPolicy"), why);
    }
    if has(spec, "volumeMode") && spec["volumeMode"] != "Filesystem" {
        let why = "may not specify volumeMode other than Filesystem in the context of inline volumes";
        p.forbidden(format!("{path}.volumeMode"), why);
    }
}

/// A source of a PersistentVolume, which says more of its secrets than one of a pod.
fn volume_source(kind: &str, source: &Value, at: &str, name: &str, p: &mut Problems) {
    if kind == "iscsi" {
        let portal = &source["targetPortal"];
        if has(source, "initiatorName") && name.len() + 1 + text(source, "targetPortal").len() > 64 {
            p.invalid(format!("{at}.targetportal"), &or_empty(portal), volumes::TOO_LONG_TOGETHER);
        }
        return super::legacy_volumes::iscsi(source, at, true, p);
    }
    volumes::shared_source(kind, source, at, p);
    match kind {
        "csi" => {
            p.present(source, "volumeHandle", at);
            let secrets = [
                "controllerPublishSecretRef",
                "controllerExpandSecretRef",
                "nodePublishSecretRef",
                "nodeExpandSecretRef",
            ];
            for field in secrets.iter().filter(|field| has(source, field)) {
                volumes::secret_reference(&source[*field], &format!("{at}.{field}"), p);
            }
        }
        "cinder" | "storageos" if has(source, "secretRef") => {
            p.present(&source["secretRef"], "namespace", &format!("{at}.secretRef"));
        }
        "azureFile" if source["secretNamespace"] == "" => p.required(format!("{at}.secretNamespace"), ""),
        "glusterfs" if has(source, "endpointsNamespace") => {
            let field = format!("{at}.endpointsNamespace");
            if source["endpointsNamespace"] == "" {
                let why = "if the endpointnamespace is set, it must be a valid namespace name";
                p.invalid(field, &json!(""), why);
            } else {
                p.label(field, &source["endpointsNamespace"]);
            }
        }
        "local" if !text(source, "path").is_empty() => {
            p.path_no_backsteps(format!("{at}.path"), &source["path"]);
        }
        _ => {}
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
        basic(amount, &at, p);
        if amount_read.is_negative() || amount_read.is_zero() {
            p.invalid(&at, amount, "must be greater than zero");
        }
    }
}

/// An amount whose whole units are not negative.
fn basic(amount: &Value, at: &str, p: &mut Problems) {
    if let Some(units) = quantity(amount).map(|q| q.units()).filter(|units| *units < 0) {
        p.invalid(at, &json!(units), "must be a valid resource quantity");
    }
}

fn access_modes(spec: &Value, path: &str, p: &mut Problems) {
    let field = format!("{path}.accessModes");
    let mut pod_only = false;
    let mut others = false;
    for mode in items(&spec["accessModes"]) {
        p.one_of(&field, mode, ACCESS_MODES);
        pod_only |= mode == "ReadWriteOncePod";
        others |= mode != "ReadWriteOncePod" && mode.as_str().is_some_and(|mode| ACCESS_MODES.contains(&mode));
    }
    if pod_only && others {
        p.forbidden(field, "may not use ReadWriteOncePod with other access modes");
    }
}

/// A claim, or a change of it.
pub fn claim(subresource: &str, new: &Value, old: Option<&Value>, p: &mut Problems) {
    if subresource == "status" {
        return claim_status(&new["status"], p);
    }
    claim_spec(&new["spec"], "spec", p);
    if let Some(old) = old {
        // An update is looked at by two, who both look at all of it.
        claim_spec(&new["spec"], "spec", p);
        claim_update(new, old, p);
    }
}

/// How far a claim is with growing.
const RESIZE_STATES: &[&str] = &[
    "ControllerResizeInProgress",
    "ControllerResizeInfeasible",
    "NodeResizeInProgress",
    "NodeResizeInfeasible",
    "NodeResizePending",
];

fn claim_status(status: &Value, p: &mut Problems) {
    for (name, amount) in entries(&status["capacity"]) {
        basic(amount, &format!("status.capacity[{name}]"), p);
    }
    let mut states = RESIZE_STATES.to_vec();
    states.sort_unstable();
    for (name, state) in entries(&status["allocatedResourceStatuses"]) {
        let field = "status.allocatedResourceStatuses";
        resource_key(name, field, p);
        if !state.as_str().is_some_and(|state| states.contains(&state)) {
            p.not_supported(field, &json!(name), &states);
        }
    }
    for (name, amount) in entries(&status["allocatedResources"]) {
        let (field, before) = ("status.allocatedResources", p.0.len());
        resource_key(name, field, p);
        if p.0.len() != before {
            continue;
        }
        let at = format!("{field}[{name}]");
        basic(amount, &at, p);
        if p.0.len() == before {
            p.not_negative_quantity(at, amount);
        }
    }
}

/// Of Kubernetes' own resources a claim has storage alone.
fn resource_key(name: &str, field: &str, p: &mut Problems) {
    let before = p.0.len();
    p.qualified_name(field, name);
    if p.0.len() == before && super::container::is_native(name) && name != "storage" {
        p.not_supported(field, &json!(name), &["storage"]);
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
    if group.is_empty() && text(source, "kind") != "PersistentVolumeClaim" {
        let why = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
        p.invalid(at, &or_empty(&source["kind"]), why);
    }
    if !group.is_empty() {
        p.subdomain(format!("{at}.apiGroup"), &source["apiGroup"]);
    }
    if !text(source, "namespace").is_empty() {
        p.label(format!("{at}.namespace"), &source["namespace"]);
    }
}

/// The annotation that named a claim's class before there was a field.
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

fn claim_update(new: &Value, old: &Value, p: &mut Problems) {
    use super::super::prepare::keep;
    let (mut spec, before) = (new["spec"].clone(), &old["spec"]);
    let bound = new["status"]["phase"] == "Bound";
    let annotation = |object: &Value| object["metadata"]["annotations"][CLASS_ANNOTATION].as_str().map(str::to_owned);
    let (said, says) = (annotation(old), annotation(new));
    // The volume may be filled in by the binder, the class once, from the annotation if there was one.
    if text(before, "volumeName").is_empty() {
        keep(&mut spec, before, "volumeName");
    }
    let class = spec["storageClassName"].as_str().map(str::to_owned);
    let from_annotation =
        said.is_some() && !has(before, "storageClassName") && class == said && (says.is_none() || says == said);
    if !from_annotation && said.clone().unwrap_or_default() != says.clone().unwrap_or_default() {
        let field = format!("metadata.annotations.{CLASS_ANNOTATION}");
        p.invalid(field, &json!(says.unwrap_or_default()), "field is immutable");
    }
    if class.is_some() && !has(before, "storageClassName") && (said.is_none() || class == said) {
        keep(&mut spec, before, "storageClassName");
    }
    if bound {
        if spec["resources"]["requests"].is_object() {
            let storage = before["resources"]["requests"]["storage"].clone();
            spec["resources"]["requests"]["storage"] = storage;
        }
        keep(&mut spec, before, CLASS_FIELD);
    }
    let difference = shown::difference("ClaimSpec", before, &spec);
    if !difference.is_empty() {
        p.forbidden("spec", &format!("{CLAIM_IMMUTABLE}\n{difference}"));
    }
    let amount = |object: &Value| quantity(&object["spec"]["resources"]["requests"]["storage"]).unwrap_or_default();
    let has_now = quantity(&old["status"]["capacity"]["storage"]).unwrap_or_default();
    if amount(new) < amount(old) && amount(new) <= has_now {
        p.forbidden("spec.resources.requests.storage", "field can not be less than status.capacity");
    }
    p.immutable("volumeMode", &new["spec"]["volumeMode"], &before["volumeMode"]);
    // A class that was never in force can be taken back.
    let now = &new["spec"][CLASS_FIELD];
    if *now != before[CLASS_FIELD] && has(&old["status"], "currentVolumeAttributesClassName") {
        let what = match now.as_str() {
            None => "nil",
            Some("") => "empty string",
            Some(_) => return,
        };
        let why = format!("update to {what} is forbidden when status.currentVolumeAttributesClassName is not nil");
        p.forbidden(format!("spec.{CLASS_FIELD}"), &why);
    }
}

/// What an attacher tells of its work.
fn attachment_status(status: &Value, p: &mut Problems) {
    let bytes = |(key, value): (&String, &Value)| key.len() + value.as_str().unwrap_or_default().len();
    if entries(&status["attachmentMetadata"]).map(bytes).sum::<usize>() > MAX_PARAMETER_BYTES {
        p.too_long("status.attachmentMetadata", MAX_PARAMETER_BYTES);
    }
    for field in ["attachError", "detachError"] {
        let error = &status[field];
        if text(error, "message").len() > MAX_ERROR_BYTES {
            // The other limit is the one that upstream tells.
            p.too_long(format!("status.{field}.message"), MAX_PARAMETER_BYTES);
        }
        if error["errorCode"].as_i64().is_some_and(|code| code < 0) {
            let why = format!("must be between 0 and {}, inclusive", i32::MAX);
            p.invalid(format!("status.{field}.errorCode"), &error["errorCode"], &why);
        }
    }
}

/// An object of the storage group, or a change of it.
pub fn validate(plural: &str, subresource: &str, new: &Value, old: Option<&Value>, p: &mut Problems) {
    if subresource == "status" {
        if plural == "volumeattachments" {
            attachment_status(&new["status"], p);
        }
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
        // Entries are told of as if they were bytes.
        return p.too_long("parameters", MAX_PARAMETERS);
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
    if !text(new, "reclaimPolicy").is_empty() {
        p.one_of("reclaimPolicy", &new["reclaimPolicy"], &["Delete", "Retain"]);
    }
    match &new["volumeBindingMode"] {
        Value::Null => p.required("volumeBindingMode", ""),
        mode => p.one_of("volumeBindingMode", mode, &["Immediate", "WaitForFirstConsumer"]),
    }
    topologies(&new["allowedTopologies"], p);
    let Some(old) = old else { return };
    for field in ["parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"] {
        p.immutable(field, &new[field], &old[field]);
    }
}

/// Where volumes of a class may be.
fn topologies(list: &Value, p: &mut Problems) {
    let said = |term: &Value| -> std::collections::BTreeMap<String, std::collections::BTreeSet<String>> {
        let values = |r: &Value| items(&r["values"]).filter_map(Value::as_str).map(str::to_owned).collect();
        items(&term["matchLabelExpressions"]).map(|r| (text(r, "key").to_owned(), values(r))).collect()
    };
    for (index, term) in items(list).enumerate() {
        // Upstream compares with as many empty terms as there are terms, too.
        let empty = if said(term).is_empty() { items(list).count() } else { 0 };
        let same = empty + items(list).take(index).filter(|other| said(other) == said(term)).count();
        for _ in 0..same {
            p.duplicate(format!("allowedTopologies[{index}].matchLabelExpressions"), &json!(""));
        }
        let mut seen: Vec<&str> = Vec::new();
        for (i, requirement) in items(&term["matchLabelExpressions"]).enumerate() {
            let at = format!("allowedTopologies[{index}].matchLabelExpressions[{i}]");
            if items(&requirement["values"]).next().is_none() {
                p.required(format!("{at}.values"), "");
            }
            for (v, value) in items(&requirement["values"]).enumerate() {
                if items(&requirement["values"]).take(v).any(|other| other == value) {
                    p.duplicate(format!("{at}.values[{v}]"), value);
                }
            }
            let key = text(requirement, "key");
            p.qualified_name(&format!("{at}.key"), key);
            if seen.contains(&key) {
                p.duplicate(format!("{at}.key"), &requirement["key"]);
            }
            seen.push(key);
        }
    }
}

fn attributes_class(new: &Value, old: Option<&Value>, p: &mut Problems) {
    if p.present(new, "driverName", "") {
        p.qualified_name("driverName", &text(new, "driverName").to_lowercase());
    }
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
            p.duplicate(format!("{at}.audience"), &or_empty(&token["audience"]));
            continue;
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
    let in_secrets = &spec["serviceAccountTokenInSecrets"];
    if !in_secrets.is_null() && items(&spec["tokenRequests"]).next().is_none() {
        let why = "serviceAccountTokenInSecrets is set but no tokenRequests are specified";
        p.invalid("spec.serviceAccountTokenInSecrets", in_secrets, why);
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
            if key == "" {
                p.required(&at, "");
            }
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
                // How many volumes there may be is left out: it may change.
                let mut now = now.clone();
                now.as_object_mut().map(|driver| driver.remove("allocatable"));
                p.invalid_shown("spec.drivers", &shown::compact("CSINodeDriver", &now), "field is immutable");
            }
        }
    }
}

fn storage_capacity(new: &Value, old: Option<&Value>, p: &mut Problems) {
    p.subdomain("storageClassName", &new["storageClassName"]);
    if new["nodeTopology"].is_object() {
        selectors::label_selector(&new["nodeTopology"], "nodeTopology", p);
    }
    p.not_negative_quantity("capacity", &new["capacity"]);
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
        (true, false) => volume_spec(&source["inlineVolumeSpec"], "spec.source.inlineVolumeSpec", "", true, p),
        (false, true) => {
            let field = "spec.source.persistentVolumeName";
            if text(source, "persistentVolumeName").is_empty() {
                p.required(field, "must specify non empty persistentVolumeName");
            }
            if old.is_none() {
                p.subdomain(field, &source["persistentVolumeName"]);
            }
        }
    }
    attachment_status(&new["status"], p);
    if let Some(old) = old
        && old["spec"] != *spec
    {
        p.invalid_shown("spec", &shown::compact("VolumeAttachmentSpec", spec), "field is immutable");
    }
}
