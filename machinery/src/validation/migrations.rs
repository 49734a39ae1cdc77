//! Storage version migrations.

use serde_json::{Value, json};

use super::check::{Problems, or_empty};
use super::{items, meta, text};
use crate::names;

/// An object of the kind, or a change of it.
pub fn validate(subresource: &str, new: &Value, old: Option<&Value>, p: &mut Problems) {
    if let (Some(old), "status") = (old, subresource) {
        return status(&new["status"], &old["status"], p);
    }
    let resource = &new["spec"]["resource"];
    match text(resource, "resource") {
        "" => p.required("spec.resource.resource", "resource is required to be set"),
        plural => p.named("spec.resource.resource", &resource["resource"], names::dns_label_1035(plural)),
    }
    let group = text(resource, "group");
    if !group.is_empty() {
        p.named("spec.resource.group", &resource["group"], names::dns_subdomain(group));
    }
    let parts = |object: &Value| ["group", "resource"].map(|key| or_empty(&object["spec"]["resource"][key]));
    if old.is_some_and(|old| parts(old) != parts(new)) {
        let [group, plural] = parts(new);
        p.invalid_shown("spec", &shown(&group, &plural), "field is immutable");
    }
}

/// A spec as upstream's messages show it.
fn shown(group: &Value, plural: &Value) -> String {
    format!("{{\"Resource\":{{\"group\":{group},\"resource\":{plural}}}}}")
}

fn status(new: &Value, old: &Value, p: &mut Problems) {
    let (version, before) = (text(new, "resourceVersion"), text(old, "resourceVersion"));
    let well_formed = !version.starts_with('0') && version.bytes().all(|digit| digit.is_ascii_digit());
    if !well_formed {
        let why = format!("resource version is not well formed: {version}");
        p.invalid("status.resourceVersion", &json!(version), &why);
    }
    meta::conditions(&new["conditions"], "status.conditions", p);
    if !before.is_empty() && before != version {
        p.invalid("status.resourceVersion", &json!(version), "field is immutable");
    }
    let is =
        |status: &Value, kind: &str| items(&status["conditions"]).any(|c| c["type"] == kind && c["status"] == "True");
    let (succeeded, failed, running) = (is(new, "Succeeded"), is(new, "Failed"), is(new, "Running"));
    for (wrong, why) in [
        (succeeded && failed, "Both success and failed conditions cannot be true at the same time"),
        (succeeded && running, "Running condition cannot be true when success condition is true"),
        (failed && running, "Running condition cannot be true when failed condition is true"),
        (is(old, "Succeeded") && !succeeded, "Success condition cannot be set to false once it is true"),
        (is(old, "Failed") && !failed, "Failed condition cannot be set to false once it is true"),
    ] {
        if wrong {
            p.invalid("status.conditions", &new["conditions"], why);
        }
    }
}
