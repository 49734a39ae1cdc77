//! Kinds of the core group that have no file of their own.

use serde_json::{Value, json};

use super::check::{Problems, WHOLE, or_empty};
use super::{apps, entries, has, items, networking, pod, quota, text};
use crate::names;

/// Most bytes of the data of a ConfigMap or Secret.
const MAX_DATA_BYTES: usize = 1 << 20;
/// Finalizers of namespaces without a domain.
const NAMESPACE_FINALIZERS: [&str; 3] = ["kubernetes", "orphan", "foregroundDeletion"];
/// What is shown of a secret.
const REDACTED: &str = "<secret contents redacted>";
const IMMUTABLE_SET: &str = "field is immutable when `immutable` is set";

/// An object of the group, or a change of it.
pub fn validate(plural: &str, subresource: &str, new: &Value, old: Option<&Value>, p: &mut Problems) {
    match plural {
        "configmaps" => config_map(new, old, p),
        "secrets" => secret(new, old, p),
        "namespaces" => namespace(subresource, new, p),
        "endpoints" => endpoints(new, old, p),
        "limitranges" => quota::limit_range(new, p),
        "resourcequotas" => quota::quota(subresource, new, old, p),
        "podtemplates" => pod::template(&new["template"], "template", p),
        "replicationcontrollers" if subresource == "status" => {
            for field in
                ["replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "observedGeneration"]
            {
                p.not_negative(format!("status.{field}"), &new["status"][field]);
            }
            apps::at_most_replicas("replicationcontrollers", &new["status"], p);
        }
        "replicationcontrollers" => apps::replication_controller(new, old.is_some(), p),
        "events" => super::events::core(new, p),
        _ => {}
    }
}

/// Keys of one map that are not in another as well. Gives the bytes of the values as they are written.
fn keys(map: &Value, field: &str, other: &Value, p: &mut Problems) -> usize {
    let mut bytes = 0;
    for (key, value) in entries(map) {
        for problem in names::config_key_problems(key) {
            p.invalid(format!("{field}[{key}]"), &json!(key), &problem);
        }
        if has(other, key) {
            p.invalid(format!("{field}[{key}]"), &json!(key), "duplicate of key present in binaryData");
        }
        bytes += value.as_str().unwrap_or_default().len();
    }
    bytes
}

/// Bytes of what is written in base64.
fn decoded_bytes(map: &Value) -> usize {
    let one = |text: &str| text.len() / 4 * 3 - text.bytes().rev().take_while(|b| *b == b'=').count().min(2);
    entries(map).filter_map(|(_, value)| value.as_str()).filter(|text| text.len() >= 4).map(one).sum()
}

fn config_map(new: &Value, old: Option<&Value>, p: &mut Problems) {
    frozen(new, old, &["data", "binaryData"], p);
    let mut bytes = keys(&new["data"], "data", &new["binaryData"], p);
    keys(&new["binaryData"], "binaryData", &Value::Null, p);
    bytes += decoded_bytes(&new["binaryData"]);
    if bytes > MAX_DATA_BYTES {
        p.too_long(WHOLE, MAX_DATA_BYTES);
    }
}

/// An object that says it is immutable stays as it is, and says so on.
fn frozen(new: &Value, old: Option<&Value>, fields: &[&str], p: &mut Problems) {
    let Some(old) = old.filter(|old| old["immutable"] == true) else { return };
    if new["immutable"] != true {
        p.forbidden("immutable", IMMUTABLE_SET);
    }
    for field in fields {
        if new[*field] != old[*field] {
            p.forbidden(*field, IMMUTABLE_SET);
        }
    }
}

/// Keys that secrets of a type must have.
const SECRET_KEYS: &[(&str, &[&str])] = &[
    ("kubernetes.io/dockercfg", &[".dockercfg"]),
    ("kubernetes.io/dockerconfigjson", &[".dockerconfigjson"]),
    ("kubernetes.io/ssh-auth", &["ssh-privatekey"]),
    ("kubernetes.io/tls", &["tls.crt", "tls.key"]),
];

fn secret(new: &Value, old: Option<&Value>, p: &mut Problems) {
    let kind = text(new, "type");
    if let Some(old) = old {
        p.immutable("type", &new["type"], &old["type"]);
    }
    frozen(new, old, &["data"], p);
    keys(&new["data"], "data", &Value::Null, p);
    if decoded_bytes(&new["data"]) > MAX_DATA_BYTES {
        p.too_long("data", MAX_DATA_BYTES);
    }
    let data = &new["data"];
    if let Some((_, required)) = SECRET_KEYS.iter().find(|(t, _)| *t == kind) {
        for key in *required {
            match data.get(*key) {
                None => p.required(format!("data[{key}]"), ""),
                Some(value) if key.starts_with(".docker") => docker_config(value, key, p),
                Some(value) if *key == "ssh-privatekey" && value == "" => p.required(format!("data[{key}]"), ""),
                Some(_) => {}
            }
        }
    }
    if kind == "kubernetes.io/basic-auth" && !has(data, "username") && !has(data, "password") {
        p.required("data[username]", "");
        p.required("data[password]", "");
    }
    let account = "kubernetes.io/service-account.name";
    if kind == "kubernetes.io/service-account-token" && text(&new["metadata"]["annotations"], account).is_empty() {
        p.required(format!("metadata.annotations[{account}]"), "");
    }
}

fn docker_config(value: &Value, key: &str, p: &mut Problems) {
    use crate::base64_text::{Form, decode};
    let bytes = decode(Form::Standard, value.as_str().unwrap_or_default().as_bytes()).unwrap_or_default();
    let other = match serde_json::from_slice::<Value>(&bytes) {
        Ok(Value::Object(_) | Value::Null) => return,
        Ok(Value::Array(_)) => "array",
        Ok(Value::String(_)) => "string",
        Ok(Value::Number(_)) => "number",
        Ok(Value::Bool(_)) => "bool",
        Err(why) => {
            let why = crate::decode::go_json_error(&bytes, &why);
            return p.invalid(format!("data[{key}]"), &json!(REDACTED), &why);
        }
    };
    let why = format!("json: cannot unmarshal {other} into Go value of type map[string]interface {{}}");
    p.invalid(format!("data[{key}]"), &json!(REDACTED), &why);
}

fn namespace(subresource: &str, new: &Value, p: &mut Problems) {
    if subresource == "status" {
        let phase = &new["status"]["phase"];
        if has(&new["metadata"], "deletionTimestamp") {
            if phase != "Terminating" {
                p.invalid("status.Phase", phase, "may only be 'Terminating' if `deletionTimestamp` is not empty");
            }
        } else if phase != "Active" {
            p.invalid("status.Phase", phase, "may only be 'Active' if `deletionTimestamp` is empty");
        }
        return;
    }
    for (index, finalizer) in items(&new["spec"]["finalizers"]).enumerate() {
        let name = finalizer.as_str().unwrap_or_default();
        let field =
            if subresource == "finalize" { format!("spec.finalizers[{index}]") } else { "spec.finalizers".into() };
        p.qualified_name(&field, name);
        if !name.contains('/') && !NAMESPACE_FINALIZERS.contains(&name) {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            p.invalid(field, finalizer, why);
        }
    }
}

fn endpoints(new: &Value, old: Option<&Value>, p: &mut Problems) {
    // What is there already may be as older servers let it be.
    if old.is_some_and(|old| old["subsets"] == new["subsets"]) {
        return;
    }
    for (index, subset) in items(&new["subsets"]).enumerate() {
        let at = format!("subsets[{index}]");
        let count = |field: &str| items(&subset[field]).count();
        if count("addresses") == 0 && count("notReadyAddresses") == 0 {
            p.required(&at, "must specify `addresses` or `notReadyAddresses`");
        }
        for field in ["addresses", "notReadyAddresses"] {
            for (i, address) in items(&subset[field]).enumerate() {
                endpoint_address(address, &format!("{at}.{field}[{i}]"), p);
            }
        }
        let named = count("ports") > 1;
        for (i, port) in items(&subset["ports"]).enumerate() {
            let at = format!("{at}.ports[{i}]");
            let name = text(port, "name");
            if named && name.is_empty() {
                p.required(format!("{at}.name"), "");
            } else if !name.is_empty() {
                p.label(format!("{at}.name"), &port["name"]);
            }
            p.port(format!("{at}.port"), &port["port"]);
            if text(port, "protocol").is_empty() {
                p.required(format!("{at}.protocol"), "");
            } else {
                p.one_of(format!("{at}.protocol"), &port["protocol"], &["SCTP", "TCP", "UDP"]);
            }
            if has(port, "appProtocol") {
                p.qualified_name(&format!("{at}.appProtocol"), text(port, "appProtocol"));
            }
        }
    }
}

fn endpoint_address(address: &Value, at: &str, p: &mut Problems) {
    let ip = or_empty(&address["ip"]);
    let field = format!("{at}.ip");
    networking::ip(&ip, &field, p);
    if !text(address, "hostname").is_empty() {
        p.label(format!("{at}.hostname"), &address["hostname"]);
    }
    if has(address, "nodeName") {
        p.subdomain(format!("{at}.nodeName"), &address["nodeName"]);
    }
    if networking::loose_ip(ip.as_str().unwrap_or_default()).is_none() {
        p.invalid(&field, &ip, "must be a valid IP address");
    }
    networking::not_special(&ip, &field, p);
}
