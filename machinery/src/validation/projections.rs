//! Volumes that show keys of objects, fields of the pod, or tokens: downward API, config map, secret, projected.

use serde_json::{Value, json};

use super::check::{Problems, or_empty};
use super::{container, has, items, selectors, text};
use crate::{names, shown};

/// Fields that a downward API volume may show.
const DOWNWARD_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
/// Least and most life of a projected token, seconds.
const TOKEN_SECONDS: (i64, i64) = (600, 1 << 32);
const CONFLICT: &str = "conflicting duplicate paths";
/// Longest domain of a signer, and longest name of one, bytes.
const MAX_SIGNER_PART: usize = 253;
const MAX_SIGNER: usize = 571;
/// Kinds of keys of pod certificates.
const KEY_TYPES: &[&str] = &["RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"];
/// Least and most life of a pod's certificate, seconds.
const CERTIFICATE_SECONDS: (i64, i64) = (3600, 91 * 24 * 3600);

/// Permission bits.
fn mode(source: &Value, key: &str, at: &str, p: &mut Problems) {
    if source[key].as_i64().is_some_and(|n| !(0..=0o777).contains(&n)) {
        let why = "must be a number between 0 and 0777 (octal), both inclusive";
        p.invalid(format!("{at}.{key}"), &source[key], why);
    }
}

/// A relative path that does not lead out of its directory and does not begin as the kubelet's own entries do.
fn unreserved_path(field: &str, value: &Value, p: &mut Problems) {
    p.local_path(field, value);
    let path = value.as_str().unwrap_or_default();
    if path.starts_with("..") && !path.starts_with("../") {
        p.invalid(field, value, "must not start with '..'");
    }
}

fn key_items(source: &Value, at: &str, p: &mut Problems) {
    for (index, item) in items(&source["items"]).enumerate() {
        let at = format!("{at}.items[{index}]");
        p.present(item, "key", &at);
        p.present(item, "path", &at);
        unreserved_path(&format!("{at}.path"), &or_empty(&item["path"]), p);
        mode(item, "mode", &at, p);
    }
}

/// A config map or a secret as a volume.
pub fn key_source(name: &str, source: &Value, at: &str, p: &mut Problems) {
    p.present(source, if name == "secret" { "secretName" } else { "name" }, at);
    mode(source, "defaultMode", at, p);
    key_items(source, at, p);
}

/// Fields of the pod as a volume.
pub fn downward(source: &Value, at: &str, p: &mut Problems) {
    mode(source, "defaultMode", at, p);
    downward_items(source, at, p);
}

/// The files are told of by the path of their list.
fn downward_items(source: &Value, at: &str, p: &mut Problems) {
    for item in items(&source["items"]) {
        p.present(item, "path", at);
        unreserved_path(&format!("{at}.path"), &or_empty(&item["path"]), p);
        if has(item, "fieldRef") {
            container::field_ref(&item["fieldRef"], DOWNWARD_FIELDS, &format!("{at}.fieldRef"), p);
            if has(item, "resourceFieldRef") {
                let why = "fieldRef and resourceFieldRef can not be specified simultaneously";
                p.invalid(at, &json!("resource"), why);
            }
        } else if has(item, "resourceFieldRef") {
            let field = format!("{at}.resourceFieldRef");
            container::resource_field_ref(&item["resourceFieldRef"], true, &field, p);
        } else {
            p.required(at, "one of fieldRef and resourceFieldRef is required");
        }
        mode(item, "mode", at, p);
    }
}

/// Several sources in one directory.
pub fn projected(source: &Value, path: &str, p: &mut Problems) {
    mode(source, "defaultMode", path, p);
    let mut paths: Vec<&str> = Vec::new();
    for (index, part) in items(&source["sources"]).enumerate() {
        let at = format!("{path}.sources[{index}]");
        let mut count = 0;
        for name in
            ["secret", "configMap", "downwardAPI", "serviceAccountToken", "clusterTrustBundle", "podCertificate"]
        {
            if !has(part, name) {
                continue;
            }
            count += 1;
            let (inner, at) = (&part[name], format!("{at}.{name}"));
            match name {
                "secret" | "configMap" => {
                    p.present(inner, "name", &at);
                    key_items(inner, &at, p);
                }
                "downwardAPI" => downward_items(inner, &at, p),
                "serviceAccountToken" => token(inner, &at, path, p),
                "clusterTrustBundle" => trust_bundle(inner, &at, p),
                _ => certificate(inner, &at, p),
            }
            same_paths(name, inner, path, &mut paths, p);
        }
        if count > 1 {
            p.forbidden(&at, "may not specify more than 1 volume type per source");
        }
    }
}

/// No two files of a directory may bear one name.
fn same_paths<'a>(name: &str, inner: &'a Value, path: &str, paths: &mut Vec<&'a str>, p: &mut Problems) {
    let mut note = |file: &'a str, shown: &Value, p: &mut Problems| {
        if paths.contains(&file) {
            p.invalid(path, shown, CONFLICT);
        } else {
            paths.push(file);
        }
    };
    match name {
        "secret" | "configMap" | "downwardAPI" => {
            for item in items(&inner["items"]).filter(|item| !text(item, "path").is_empty()) {
                // A secret or config map is shown by its name, a field by its file.
                let shown = if name == "downwardAPI" { item["path"].clone() } else { or_empty(&inner["name"]) };
                note(text(item, "path"), &shown, p);
            }
        }
        "clusterTrustBundle" => note(text(inner, "path"), &or_empty(&inner["path"]), p),
        "podCertificate" => {
            for field in ["credentialBundlePath", "keyPath", "certificateChainPath"] {
                if !text(inner, field).is_empty() {
                    note(text(inner, field), &inner[field], p);
                }
            }
        }
        _ => {}
    }
}

fn token(source: &Value, at: &str, path: &str, p: &mut Problems) {
    if let Some(seconds) = source["expirationSeconds"].as_i64() {
        let field = format!("{at}.expirationSeconds");
        if seconds < TOKEN_SECONDS.0 {
            p.invalid(&field, &json!(seconds), "may not specify a duration less than 10 minutes");
        }
        if seconds > TOKEN_SECONDS.1 {
            p.invalid(&field, &json!(seconds), "may not specify a duration larger than 2^32 seconds");
        }
    }
    // The file of a token is told of by the volume's path.
    if p.present(source, "path", path) {
        unreserved_path(&format!("{path}.path"), &source["path"], p);
    }
}

fn trust_bundle(source: &Value, at: &str, p: &mut Problems) {
    match (has(source, "name"), has(source, "signerName")) {
        (true, true) => {
            let shown = shown::compact("TrustBundleProjection", source);
            p.invalid_shown(at, &shown, "only one of name and signerName may be used");
        }
        (true, false) => {
            let field = format!("{at}.name");
            let name = text(source, "name");
            if name.is_empty() {
                p.required(&field, "must be a valid object name");
            }
            for problem in bundle_name_problems(name) {
                p.invalid(&field, &source["name"], &format!("not a valid clustertrustbundlename: {problem}"));
            }
            if has(source, "labelSelector") {
                let mut shown = String::new();
                shown::selector(&source["labelSelector"]).write(&mut shown);
                let why = "labelSelector must be unset if name is specified";
                p.invalid_shown(format!("{at}.labelSelector"), &shown, why);
            }
        }
        (false, true) => {
            let field = format!("{at}.signerName");
            if text(source, "signerName").is_empty() {
                p.required(&field, "must be a valid signer name");
            }
            signer_name(&source["signerName"], &field, p);
            selectors::label_selector(&source["labelSelector"], &format!("{at}.labelSelector"), p);
        }
        (false, false) => p.required(at, "either name or signerName must be specified"),
    }
    p.present(source, "path", at);
    unreserved_path(&format!("{at}.path"), &or_empty(&source["path"]), p);
}

/// A bundle of a signer is called `domain:path:rest`.
fn bundle_name_problems(name: &str) -> Vec<String> {
    match name.rsplit_once(':') {
        None => names::subdomain_problems(name),
        Some((_, rest)) => names::subdomain_problems(rest),
    }
}

/// The name of a signer: `domain/path`.
pub fn signer_name(value: &Value, field: &str, p: &mut Problems) {
    let name = value.as_str().unwrap_or_default();
    if name.is_empty() {
        return p.required(field, "");
    }
    let parts: Vec<&str> = name.split('/').collect();
    let [domain, path] = parts[..] else {
        let why = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        return p.invalid(field, value, why);
    };
    if domain.len() > MAX_SIGNER_PART {
        p.too_long(field, MAX_SIGNER_PART);
    }
    // Of each part the first wrong label is told.
    type Rule = fn(&str) -> Vec<String>;
    for (part, rule) in [(domain, names::label_problems as Rule), (path, names::subdomain_problems)] {
        if let Some((label, problems)) = part.split('.').map(|l| (l, rule(l))).find(|(_, found)| !found.is_empty()) {
            for problem in problems {
                p.invalid(field, &json!(part), &format!("validating label {label:?}: {problem}"));
            }
        }
    }
    if !domain.contains('.') {
        p.invalid(field, &json!(domain), "should be a domain with at least two segments separated by dots");
    }
    if name.len() > MAX_SIGNER {
        p.too_long(field, MAX_SIGNER);
    }
}

fn certificate(source: &Value, at: &str, p: &mut Problems) {
    signer_name(&or_empty(&source["signerName"]), &format!("{at}.signerName"), p);
    p.one_of(format!("{at}.keyType"), &source["keyType"], KEY_TYPES);
    if let Some(seconds) = source["maxExpirationSeconds"].as_i64() {
        let field = format!("{at}.maxExpirationSeconds");
        if seconds < CERTIFICATE_SECONDS.0 {
            p.invalid(&field, &json!(seconds), "if provided, maxExpirationSeconds must be >= 3600");
        }
        if seconds > CERTIFICATE_SECONDS.1 {
            p.invalid(&field, &json!(seconds), "if provided, maxExpirationSeconds must be <= 7862400");
        }
    }
    let paths = ["credentialBundlePath", "keyPath", "certificateChainPath"];
    if paths.iter().all(|field| text(source, field).is_empty()) {
        let why = "specify at least one of credentialBundlePath, keyPath, and certificateChainPath";
        p.required(at, why);
    }
    for field in paths.iter().filter(|field| !text(source, field).is_empty()) {
        unreserved_path(&format!("{at}.{field}"), &source[*field], p);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn projections_are_held_to_their_rules() {
        for (sources, expected) in [
            (json!([{"secret": {}}]), &[("v.sources[0].secret.name", "Required value")][..]),
            (
                json!([{"secret": {"name": "a"}, "configMap": {"name": "b"}}]),
                &[("v.sources[0]", "Forbidden: may not specify more than 1 volume type per source")],
            ),
            (
                json!([
                    {"secret": {"name": "a", "items": [{"key": "k", "path": "x"}]}},
                    {"configMap": {"name": "b", "items": [{"key": "k", "path": "x"}]}},
                ]),
                &[("v", "Invalid value: \"b\": conflicting duplicate paths")],
            ),
            (
                json!([{"downwardAPI": {"items": [{"path": "x"}]}}]),
                &[("v.sources[0].downwardAPI", "Required value: one of fieldRef and resourceFieldRef is required")],
            ),
            (
                json!([{"serviceAccountToken": {"expirationSeconds": 5, "path": "/t"}}]),
                &[
                    (
                        "v.sources[0].serviceAccountToken.expirationSeconds",
                        "Invalid value: 5: may not specify a duration less than 10 minutes",
                    ),
                    ("v.path", "Invalid value: \"/t\": must be a relative path"),
                ],
            ),
            (
                json!([{"clusterTrustBundle": {"path": "..x"}}]),
                &[
                    ("v.sources[0].clusterTrustBundle", "Required value: either name or signerName must be specified"),
                    ("v.sources[0].clusterTrustBundle.path", "Invalid value: \"..x\": must not start with '..'"),
                ],
            ),
            (
                json!([{"configMap": {"name": "a", "items": [{"key": "k", "path": "p", "mode": 512}]}}]),
                &[(
                    "v.sources[0].configMap.items[0].mode",
                    "Invalid value: 512: must be a number between 0 and 0777 (octal), both inclusive",
                )],
            ),
        ] {
            let mut p = Problems::default();
            projected(&json!({"sources": sources}), "v", &mut p);
            let found: Vec<_> = p.0.iter().map(|c| (c.field.as_str(), c.message.as_str())).collect();
            assert_eq!(found, expected, "{sources}");
        }
    }
}
