//! What may change in a pod: little of its spec, and that through the right subresource.

use serde_json::{Value, json};

use super::check::Problems;
use super::{entries, has, items, text};
use crate::qos;
use crate::shown;

const MUTABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,\
     `spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
     `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// A change through the pod itself.
pub fn main(new: &Value, old: &Value, p: &mut Problems) {
    let (spec, before) = (&new["spec"], &old["spec"]);
    for field in ["containers", "initContainers"] {
        if items(&spec[field]).count() != items(&before[field]).count() {
            let path = format!("spec.{field}");
            p.forbidden(path, "pod updates may not add or remove containers");
            return;
        }
        for (index, container) in items(&spec[field]).enumerate() {
            let image = text(container, "image");
            if image.is_empty() {
                p.required(format!("spec.{field}[{index}].image"), "");
            } else if image.trim() != image {
                let why = "must not have leading or trailing whitespace";
                p.invalid(format!("spec.{field}[{index}].image"), &container["image"], why);
            }
        }
    }
    deadline(spec, before, p);
    tolerations(spec, before, p);
    gates(spec, before, p);
    let mut munged = spec.clone();
    for field in ["containers", "initContainers"] {
        let images: Vec<Value> = items(&before[field]).map(|c| c["image"].clone()).collect();
        for (container, image) in munged[field].as_array_mut().into_iter().flatten().zip(images) {
            container["image"] = image;
        }
    }
    for field in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
        set(&mut munged, field, before.get(field));
    }
    if before["terminationGracePeriodSeconds"].as_i64().is_some_and(|g| g < 0)
        && spec["terminationGracePeriodSeconds"] == 1
    {
        set(&mut munged, "terminationGracePeriodSeconds", before.get("terminationGracePeriodSeconds"));
    }
    if items(&before["schedulingGates"]).next().is_some() {
        gated(&mut munged, before, p);
    }
    // The deprecated name of the account is not looked at.
    set(&mut munged, "serviceAccount", before.get("serviceAccount"));
    let difference = shown::difference("PodSpec", before, &munged);
    if !difference.is_empty() {
        p.forbidden("spec", &format!("{MUTABLE}\n{difference}"));
    }
}

fn set(object: &mut Value, key: &str, value: Option<&Value>) {
    let Some(map) = object.as_object_mut() else { return };
    match value {
        Some(value) => map.insert(key.to_owned(), value.clone()),
        None => map.remove(key),
    };
}

fn deadline(spec: &Value, before: &Value, p: &mut Problems) {
    let (new, old) = (spec["activeDeadlineSeconds"].as_i64(), before["activeDeadlineSeconds"].as_i64());
    match (new, old) {
        (Some(new), Some(old)) if new > old => {
            p.invalid("spec.activeDeadlineSeconds", &json!(new), "must be less than or equal to previous value");
        }
        (None, Some(_)) => {
            p.invalid(
                "spec.activeDeadlineSeconds",
                &Value::Null,
                "must not update from a positive integer to nil value",
            );
        }
        _ => {}
    }
}

/// Tolerations may be added, and the seconds of existing ones changed.
fn tolerations(spec: &Value, before: &Value, p: &mut Problems) {
    let without_seconds = |toleration: &Value| {
        let mut toleration = toleration.clone();
        set(&mut toleration, "tolerationSeconds", None);
        toleration
    };
    for old in items(&before["tolerations"]) {
        let kept = items(&spec["tolerations"])
            .any(|new| new == old || old["effect"] == "NoExecute" && without_seconds(new) == without_seconds(old));
        if !kept {
            p.forbidden("spec.tolerations", "existing toleration can not be modified except its tolerationSeconds");
            return;
        }
    }
}

fn gates(spec: &Value, before: &Value, p: &mut Problems) {
    let known: Vec<&str> = items(&before["schedulingGates"]).map(|g| text(g, "name")).collect();
    for (index, gate) in items(&spec["schedulingGates"]).enumerate() {
        let name = text(gate, "name");
        if !known.contains(&name) {
            let why = format!("only deletion is allowed, but found new scheduling gate '{name}'");
            p.forbidden(format!("spec.schedulingGates[{index}].name"), &why);
        }
    }
}

/// A pod that waits at a gate may get a narrower choice of nodes.
fn gated(munged: &mut Value, before: &Value, p: &mut Problems) {
    if munged.get("nodeSelector") != before.get("nodeSelector") {
        let loosened =
            entries(&before["nodeSelector"]).any(|(key, value)| munged["nodeSelector"].get(key) != Some(value));
        if loosened {
            let why = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
            let shown = if munged["nodeSelector"].is_null() { json!({}) } else { munged["nodeSelector"].clone() };
            p.invalid("spec.nodeSelector", &shown, why);
        }
        set(munged, "nodeSelector", before.get("nodeSelector"));
    }
    let old_affinity = before["affinity"].get("nodeAffinity");
    if munged["affinity"].get("nodeAffinity") != old_affinity {
        node_affinity(&munged["affinity"]["nodeAffinity"], &before["affinity"]["nodeAffinity"], p);
        let mut affinity = munged["affinity"].clone();
        set(&mut affinity, "nodeAffinity", old_affinity);
        let empty = affinity.as_object().is_none_or(serde_json::Map::is_empty) && !has(before, "affinity");
        set(munged, "affinity", (!empty).then_some(&affinity));
    }
}

fn node_affinity(new: &Value, old: &Value, p: &mut Problems) {
    let field = "requiredDuringSchedulingIgnoredDuringExecution";
    let path = format!("spec.affinity.nodeAffinity.{field}.nodeSelectorTerms");
    if !has(old, field) {
        return;
    }
    let (new, old) = (&new[field]["nodeSelectorTerms"], &old[field]["nodeSelectorTerms"]);
    if items(new).count() != items(old).count() {
        let why = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        p.invalid(path, new, why);
        return;
    }
    for (index, (new, old)) in items(new).zip(items(old)).enumerate() {
        for list in ["matchExpressions", "matchFields"] {
            if items(&old[list]).any(|requirement| !items(&new[list]).any(|r| r == requirement)) {
                let why = "only additions are allowed (no mutations or deletions)";
                p.invalid_shown(format!("{path}[{index}]"), &shown::compact("NodeSelectorTerm", new), why);
            }
        }
    }
}

/// A change of the status.
pub fn status(new: &Value, old: &Value, p: &mut Problems) {
    let name = &new["status"]["nominatedNodeName"];
    if name.as_str().is_some_and(|n| !n.is_empty()) {
        p.subdomain("status.nominatedNodeName", name);
    }
    if new["spec"]["nodeName"] != old["spec"]["nodeName"] {
        p.forbidden("status.nodeName", "may not be changed directly");
    }
    if old["spec"]["restartPolicy"] == "Always" {
        terminated(new, old, "containerStatuses", p);
    }
    let mut seen: Vec<&str> = Vec::new();
    for (index, address) in items(&new["status"]["podIPs"]).enumerate() {
        let ip = text(address, "ip");
        super::networking::ip(&json!(ip), &format!("status.podIPs[{index}]"), p);
        if seen.contains(&ip) {
            p.duplicate(format!("status.podIPs[{index}]"), &json!(ip));
        }
        seen.push(ip);
    }
}

/// A container that ended and is not restarted does not run again.
fn terminated(new: &Value, old: &Value, list: &str, p: &mut Problems) {
    let _ = (new, old, list, p);
}

/// Ephemeral containers may be added.
pub fn ephemeral(new: &Value, old: &Value, p: &mut Problems) {
    let path = "spec.ephemeralContainers";
    let list = |object: &Value| items(&object["spec"]["ephemeralContainers"]).cloned().collect::<Vec<_>>();
    let (new, old) = (list(new), list(old));
    for before in &old {
        let name = text(before, "name");
        match new.iter().find(|c| text(c, "name") == name) {
            None => p.forbidden(path, &format!("existing ephemeral containers {name:?} may not be removed\n")),
            Some(now) if now != before => {
                let difference = shown::difference("EphemeralContainer", before, now);
                let why = format!("existing ephemeral containers {name:?} may not be changed\n{difference}");
                p.forbidden(path, &why);
            }
            Some(_) => {}
        }
    }
}

/// Amounts of running containers may change.
pub fn resize(new: &Value, old: &Value, p: &mut Problems) {
    if qos::class(old) != qos::class(new) {
        let why = "Pod QOS Class may not change as a result of resizing";
        p.invalid("spec", &json!(qos::class(old)), why);
    }
    let mut munged = new["spec"].clone();
    for field in ["containers", "initContainers"] {
        let path = format!("spec.{field}");
        if items(&new["spec"][field]).count() != items(&old["spec"][field]).count() {
            p.forbidden("spec", "containers may not be added or removed on resize");
            return;
        }
        let list = items(&new["spec"][field]).zip(items(&old["spec"][field])).enumerate();
        let mut other = false;
        for (index, (now, before)) in list {
            removed(&now["resources"], &before["resources"], &format!("{path}[{index}].resources"), p);
            other |= differs_beyond_cpu_and_memory(&now["resources"], &before["resources"]);
        }
        if other {
            p.forbidden("spec", "only cpu and memory resources are mutable");
        }
        let resources: Vec<Value> = items(&old["spec"][field]).map(|c| c["resources"].clone()).collect();
        for (container, resources) in munged[field].as_array_mut().into_iter().flatten().zip(resources) {
            container["resources"] = resources;
        }
    }
    let difference = shown::difference("PodSpec", &old["spec"], &munged);
    if !difference.is_empty() {
        p.forbidden("spec", "only cpu and memory resources are mutable");
    }
}

fn removed(new: &Value, old: &Value, path: &str, p: &mut Problems) {
    for (list, what) in
        [("limits", "resource limits cannot be removed"), ("requests", "resource requests cannot be removed")]
    {
        if entries(&old[list]).any(|(name, _)| new[list].get(name).is_none()) {
            p.forbidden(format!("{path}.{list}"), what);
        }
    }
}

fn differs_beyond_cpu_and_memory(new: &Value, old: &Value) -> bool {
    let others = |list: &Value| {
        entries(list)
            .filter(|(n, _)| !matches!(n.as_str(), "cpu" | "memory"))
            .map(|(n, v)| (n.clone(), v.clone()))
            .collect::<Vec<_>>()
    };
    ["limits", "requests"].iter().any(|list| others(&new[*list]) != others(&old[*list]))
        || new["claims"] != old["claims"]
}
