//! APIServices.

use serde_json::{Value, json};

use super::check::{Problems, or_empty};
use super::{has, items, text};
use crate::names;

/// Highest priority of a group, and of a version in it.
const MAX_PRIORITIES: (i64, i64) = (20_000, 1000);

/// An object of the kind.
pub fn validate(subresource: &str, new: &Value, p: &mut Problems) {
    if subresource == "status" {
        for (index, condition) in items(&new["status"]["conditions"]).enumerate() {
            let field = format!("status.conditions[{index}].status");
            p.one_of(field, &condition["status"], &["True", "False", "Unknown"]);
        }
        return;
    }
    let spec = &new["spec"];
    let (name, group, version) = (text(&new["metadata"], "name"), text(spec, "group"), text(spec, "version"));
    let required = format!("{version}.{group}");
    if name != required {
        let why = format!("must be `spec.version+\".\"+spec.group`: {required:?}");
        p.invalid("metadata.name", &json!(name), &why);
    }
    if group.is_empty() {
        if version != "v1" {
            p.required("spec.group", "only v1 may have an empty group and it better be legacy kube");
        }
    } else {
        p.named("spec.group", &or_empty(&spec["group"]), names::dns_subdomain(group));
    }
    p.named("spec.version", &or_empty(&spec["version"]), names::dns_label_1035(version));
    for (key, max) in [("groupPriorityMinimum", MAX_PRIORITIES.0), ("versionPriority", MAX_PRIORITIES.1)] {
        let given = spec[key].as_i64().unwrap_or(0);
        if given <= 0 || given > max {
            p.invalid(format!("spec.{key}"), &json!(given), &format!("must be positive and less than {max}"));
        }
    }
    let insecure = spec["insecureSkipTLSVerify"] == true;
    let bundled = !text(spec, "caBundle").is_empty();
    if !has(spec, "service") {
        if bundled {
            let encoded = text(spec, "caBundle").trim_end_matches('=');
            let shown = json!(format!("{} bytes", encoded.len() * 3 / 4));
            p.invalid("spec.caBundle", &shown, "local APIServices may not have a caBundle");
        }
        if insecure {
            let why = "local APIServices may not have insecureSkipTLSVerify";
            p.invalid("spec.insecureSkipTLSVerify", &json!(true), why);
        }
        return;
    }
    if insecure && bundled {
        p.invalid("spec.insecureSkipTLSVerify", &json!(true), "may not be true if caBundle is present");
    }
    let service = &spec["service"];
    for key in ["name", "namespace"] {
        if text(service, key).is_empty() {
            p.required(format!("spec.service.{key}"), "");
        }
    }
    if let Some(port) = service["port"].as_i64().filter(|port| !(1..=65_535).contains(port)) {
        let why = "port is not valid: must be between 1 and 65535, inclusive";
        p.invalid("spec.service.port", &json!(port), why);
    }
}
