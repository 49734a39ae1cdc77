//! Volume sources of systems that have drivers of their own by now: iSCSI, Fibre Channel, Flex, Flocker, Quobyte,
//! StorageOS, Azure disks.

use serde_json::{Value, json};

use super::check::{Problems, or_empty};
use super::{entries, has, items, text};
use crate::names;

const IN_BYTE: &str = "must be between 0 and 255, inclusive";
const GOOD_PREFIX: &str = "must be valid format starting with iqn, eui, or naa";
const GOOD_FORM: &str = "must be valid format";
const HOST_PORTS: &str = "must be a host:port pair or multiple pairs separated by commas";
/// Longest tenant of Quobyte, characters.
const MAX_TENANT: usize = 64;
const AZURE_MANAGED: &str =
    "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}";
const AZURE_BLOB: &str = "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd";

/// An iSCSI disk, of a pod or of a PersistentVolume (which says less when a prefix is wrong).
pub fn iscsi(source: &Value, at: &str, of_volume: bool, p: &mut Problems) {
    let prefix = if of_volume { GOOD_FORM } else { GOOD_PREFIX };
    p.present(source, "targetPortal", at);
    if p.present(source, "iqn", at) {
        initiator(&source["iqn"], &format!("{at}.iqn"), prefix, p);
    }
    if source["lun"].as_i64().is_some_and(|n| !(0..=255).contains(&n)) {
        p.invalid(format!("{at}.lun"), &source["lun"], IN_BYTE);
    }
    if (source["chapAuthDiscovery"] == true || source["chapAuthSession"] == true) && !has(source, "secretRef") {
        p.required(format!("{at}.secretRef"), "");
    }
    if of_volume && has(source, "secretRef") {
        p.present(&source["secretRef"], "name", &format!("{at}.secretRef"));
    }
    if has(source, "initiatorName") {
        initiator(&source["initiatorName"], &format!("{at}.initiatorname"), prefix, p);
    }
}

fn initiator(value: &Value, field: &str, prefix: &str, p: &mut Problems) {
    let name = value.as_str().unwrap_or_default();
    let characters = |name: &str, kind: &str, length: usize| {
        let rest = name.strip_prefix(kind).unwrap_or_default();
        rest.len() == length + 1 && rest[1..].bytes().all(|b| b.is_ascii_alphanumeric())
    };
    let good = match name.get(..3) {
        Some("iqn") => is_iqn(name),
        Some("eui") => characters(name, "eui", 16),
        Some("naa") => characters(name, "naa", 32),
        _ => return p.invalid(field, value, prefix),
    };
    if !good {
        p.invalid(field, value, GOOD_FORM);
    }
}

/// `iqn.2001-04.com.example:storage`, anywhere in the text but up to its end.
fn is_iqn(name: &str) -> bool {
    let digits = |text: &str, count: usize| text.len() == count && text.bytes().all(|b| b.is_ascii_digit());
    name.match_indices("iqn.").any(|(start, _)| {
        let rest = &name[start + 4..];
        let Some((date, rest)) = rest.split_once('.') else { return false };
        let Some((year, month)) = date.split_once('-') else { return false };
        let Some((domain, target)) = rest.split_once(':') else { return false };
        let domain_good =
            !domain.is_empty() && domain.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'));
        let target_good = !target.is_empty()
            && !target.contains([',', ';', '*', '&', '$', '|'])
            && !target.contains(char::is_whitespace);
        digits(year, 4) && digits(month, 2) && domain_good && target_good
    })
}

/// A Fibre Channel disk.
pub fn fibre_channel(source: &Value, at: &str, p: &mut Problems) {
    let count = |field: &str| items(&source[field]).count();
    let field = format!("{at}.targetWWNs");
    match (count("targetWWNs"), count("wwids")) {
        (0, 0) => p.required(&field, "must specify either targetWWNs or wwids, but not both"),
        (0, _) | (_, 0) => {}
        _ => {
            let why = "targetWWNs and wwids can not be specified simultaneously";
            p.invalid(&field, &source["targetWWNs"], why);
        }
    }
    if count("targetWWNs") != 0 {
        match source["lun"].as_i64() {
            None => p.required(format!("{at}.lun"), "lun is required if targetWWNs is specified"),
            Some(n) if !(0..=255).contains(&n) => p.invalid(format!("{at}.lun"), &source["lun"], IN_BYTE),
            Some(_) => {}
        }
    }
}

/// A Flex volume: its options are not in Kubernetes' own name space.
pub fn flex(source: &Value, at: &str, p: &mut Problems) {
    for (key, _) in entries(&source["options"]) {
        let domain = format!(".{}", key.split('/').next().unwrap_or_default().to_lowercase());
        if domain.ends_with(".kubernetes.io") || domain.ends_with(".k8s.io") {
            let why = "kubernetes.io and k8s.io namespaces are reserved";
            p.invalid(format!("{at}.options[{key}]"), &json!(key), why);
        }
    }
}

/// A Flocker data set.
pub fn flocker(source: &Value, at: &str, p: &mut Problems) {
    match (text(source, "datasetName").is_empty(), text(source, "datasetUUID").is_empty()) {
        (true, true) => p.required(at, "one of datasetName and datasetUUID is required"),
        (false, false) => {
            let why = "datasetName and datasetUUID can not be specified simultaneously";
            p.invalid(at, &json!("resource"), why);
        }
        _ => {}
    }
    if text(source, "datasetName").contains('/') {
        p.invalid(format!("{at}.datasetName"), &source["datasetName"], "must not contain '/'");
    }
}

/// A Quobyte volume.
pub fn quobyte(source: &Value, at: &str, p: &mut Problems) {
    let registry = text(source, "registry");
    if registry.is_empty() {
        p.required(format!("{at}.registry"), HOST_PORTS);
    } else if text(source, "tenant").len() > MAX_TENANT {
        p.required(format!("{at}.tenant"), "must be a UUID and may not exceed a length of 64 characters");
    } else {
        let pair =
            |part: &str| part.rsplit_once(':').is_some_and(|(host, _)| !host.contains(':') || host.ends_with(']'));
        for _ in registry.split(',').filter(|part| !pair(part)) {
            p.invalid(format!("{at}.registry"), &source["registry"], HOST_PORTS);
        }
    }
    p.present(source, "volume", at);
}

/// A StorageOS volume.
pub fn storage_os(source: &Value, at: &str, p: &mut Problems) {
    if p.present(source, "volumeName", at) {
        label(&source["volumeName"], format!("{at}.volumeName"), p);
    }
    if !text(source, "volumeNamespace").is_empty() {
        label(&source["volumeNamespace"], format!("{at}.volumeNamespace"), p);
    }
    if has(source, "secretRef") {
        p.present(&source["secretRef"], "name", &format!("{at}.secretRef"));
    }
}

fn label(value: &Value, field: String, p: &mut Problems) {
    for problem in names::label_problems(value.as_str().unwrap_or_default()) {
        p.invalid(field.clone(), value, &problem);
    }
}

/// A disk of Azure.
pub fn azure_disk(source: &Value, at: &str, p: &mut Problems) {
    p.present(source, "diskName", at);
    p.present(source, "diskURI", at);
    p.one_of_if_set(format!("{at}.cachingMode"), &source["cachingMode"], &["None", "ReadOnly", "ReadWrite"]);
    p.one_of_if_set(format!("{at}.kind"), &source["kind"], &["Dedicated", "Managed", "Shared"]);
    let uri = text(source, "diskURI");
    match source["kind"].as_str() {
        Some("Managed") if !uri.starts_with("/subscriptions/") => {
            p.not_supported(format!("{at}.diskURI"), &or_empty(&source["diskURI"]), &[AZURE_MANAGED]);
        }
        Some(kind) if kind != "Managed" && !uri.starts_with("https://") => {
            p.not_supported(format!("{at}.diskURI"), &or_empty(&source["diskURI"]), &[AZURE_BLOB]);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(rule: fn(&Value, &str, &mut Problems), source: &Value) -> Vec<String> {
        let mut p = Problems::default();
        rule(source, "v", &mut p);
        p.0.into_iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
    }

    #[test]
    fn disks_of_old_are_held_to_their_rules() {
        let pod_iscsi = |source: &Value, at: &str, p: &mut Problems| iscsi(source, at, false, p);
        type Rule = fn(&Value, &str, &mut Problems);
        for (rule, source, expected) in [
            (
                pod_iscsi as Rule,
                json!({"targetPortal": "1.2.3.4", "iqn": "iqn.2001-04.com.example:storage", "lun": 0}),
                vec![],
            ),
            (
                pod_iscsi,
                json!({"iqn": "bad", "lun": 300, "chapAuthSession": true}),
                vec![
                    "v.targetPortal: Required value".to_owned(),
                    format!("v.iqn: Invalid value: \"bad\": {GOOD_PREFIX}"),
                    format!("v.lun: Invalid value: 300: {IN_BYTE}"),
                    "v.secretRef: Required value".into(),
                ],
            ),
            (
                fibre_channel,
                json!({}),
                vec!["v.targetWWNs: Required value: must specify either targetWWNs or wwids, but not both".into()],
            ),
            (
                fibre_channel,
                json!({"targetWWNs": ["a"]}),
                vec!["v.lun: Required value: lun is required if targetWWNs is specified".into()],
            ),
            (
                flex,
                json!({"driver": "d", "options": {"x.k8s.io/a": "b"}}),
                vec![
                    "v.options[x.k8s.io/a]: Invalid value: \"x.k8s.io/a\": kubernetes.io and k8s.io namespaces are reserved"
                        .into(),
                ],
            ),
            (flocker, json!({}), vec!["v: Required value: one of datasetName and datasetUUID is required".into()]),
            (
                quobyte,
                json!({"registry": "nope", "volume": "v"}),
                vec![format!("v.registry: Invalid value: \"nope\": {HOST_PORTS}")],
            ),
            (
                azure_disk,
                json!({"diskName": "d", "diskURI": "x", "kind": "Managed"}),
                vec![format!("v.diskURI: Unsupported value: \"x\": supported values: {AZURE_MANAGED:?}")],
            ),
        ] {
            assert_eq!(found(rule, &source), expected, "{source}");
        }
    }
}
