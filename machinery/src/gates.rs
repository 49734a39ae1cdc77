//! Fields of features that are closed by default in this version: a new object comes without them, a change does not
//! bring them, and where they are in use already they stay.

use serde_json::Value;

use crate::features::{self, Feature, Gates};
use crate::resource::ResourceDef;

/// Where the pods of a kind are.
pub(crate) fn pods_of(def: &ResourceDef) -> Option<&'static str> {
    match (def.group, def.plural) {
        ("", "pods") => Some("/spec"),
        ("", "podtemplates") => Some("/template/spec"),
        ("apps", "deployments" | "replicasets" | "statefulsets" | "daemonsets")
        | ("batch", "jobs")
        | ("", "replicationcontrollers") => Some("/spec/template/spec"),
        ("batch", "cronjobs") => Some("/spec/jobTemplate/spec/template/spec"),
        _ => None,
    }
}

/// A field behind a closed gate, from where the object's part begins; `*` is every entry of a list or map.
type Path = &'static [&'static str];

/// The group that a pod is scheduled with; behind `GenericWorkload`.
const POD_GROUP_FIELDS: &[Path] = &[&["schedulingGroup"]];
const POD_FIELDS: &[Path] = &[
    &["containers", "*", "lifecycle", "stopSignal"],
    &["initContainers", "*", "lifecycle", "stopSignal"],
    &["ephemeralContainers", "*", "lifecycle", "stopSignal"],
    &["volumes", "*", "projected", "sources", "*", "clusterTrustBundle"],
    &["volumes", "*", "projected", "sources", "*", "podCertificate"],
];
const POD_STATUS_FIELDS: &[Path] = &[&["nodeAllocatableResourceClaimStatuses"]];
/// Attributes that have several values, and devices that are part of what a node has anyway.
const SLICE_FIELDS: &[Path] = &[
    &["devices", "*", "attributes", "*", "bools"],
    &["devices", "*", "attributes", "*", "ints"],
    &["devices", "*", "attributes", "*", "strings"],
    &["devices", "*", "attributes", "*", "versions"],
    &["devices", "*", "nodeAllocatableResourceMappings"],
];
const DRIVER_FIELDS: &[Path] = &[&["preventPodSchedulingIfMissing"]];
/// How the holders of a Lease are chosen.
const LEASE_FIELDS: &[Path] = &[&["strategy"], &["preferredHolder"]];
/// How many pods of a StatefulSet may be away at once.
const STATEFUL_SET_FIELDS: &[Path] = &[&["updateStrategy", "rollingUpdate", "maxUnavailable"]];

/// Where the pods of a group may go, what they share, and how the group is pushed out.
const GROUP_FIELDS: &[Path] =
    &[&["schedulingConstraints"], &["resourceClaims"], &["disruptionMode"], &["priorityClassName"], &["priority"]];
/// The same of the templates of groups.
const WORKLOAD_FIELDS: &[Path] = &[
    &["podGroupTemplates", "*", "schedulingConstraints"],
    &["podGroupTemplates", "*", "resourceClaims"],
    &["podGroupTemplates", "*", "disruptionMode"],
    &["podGroupTemplates", "*", "priorityClassName"],
    &["podGroupTemplates", "*", "priority"],
];
const GROUP_STATUS_FIELDS: &[Path] = &[&["resourceClaimStatuses"]];

/// Takes what closed gates hide out of an object that is written.
pub fn close(def: &ResourceDef, new: &mut Value, old: Option<&Value>) {
    close_by(features::gates(), def, new, old);
}

fn close_by(gates: Gates, def: &ResourceDef, new: &mut Value, old: Option<&Value>) {
    if let Some(path) = pods_of(def) {
        close_at(path, POD_FIELDS, new, old);
        if !gates.is_open(Feature::GenericWorkload) {
            close_at(path, POD_GROUP_FIELDS, new, old);
        }
    }
    match (def.group, def.plural) {
        ("", "pods") => close_at("/status", POD_STATUS_FIELDS, new, old),
        ("", "nodes") => node_configuration(new, old),
        ("apps", "statefulsets") => close_at("/spec", STATEFUL_SET_FIELDS, new, old),
        ("coordination.k8s.io", "leases") => close_at("/spec", LEASE_FIELDS, new, old),
        ("resource.k8s.io", "resourceslices") => close_at("/spec", SLICE_FIELDS, new, old),
        ("scheduling.k8s.io", "workloads") => close_at("/spec", WORKLOAD_FIELDS, new, old),
        ("scheduling.k8s.io", "podgroups") => {
            close_at("/spec", GROUP_FIELDS, new, old);
            close_at("/status", GROUP_STATUS_FIELDS, new, old);
        }
        ("storage.k8s.io", "csidrivers") => close_at("/spec", DRIVER_FIELDS, new, old),
        _ => {}
    }
}

fn close_at(part: &str, fields: &[Path], new: &mut Value, old: Option<&Value>) {
    let Some(new) = new.pointer_mut(part) else { return };
    let old = old.and_then(|old| old.pointer(part));
    for field in fields {
        if uses(new, field) && !old.is_some_and(|old| uses(old, field)) {
            remove(new, field);
        }
    }
}

/// Whether a field says anything anywhere.
fn uses(value: &Value, path: &[&str]) -> bool {
    match (path, value) {
        ([], value) => !value.is_null(),
        (["*", rest @ ..], Value::Array(list)) => list.iter().any(|entry| uses(entry, rest)),
        (["*", rest @ ..], Value::Object(map)) => map.values().any(|entry| uses(entry, rest)),
        ([key, rest @ ..], _) => value.get(key).is_some_and(|inner| uses(inner, rest)),
    }
}

/// Removes a field wherever it is; hooks that said nothing else go with it.
fn remove(value: &mut Value, path: &[&str]) {
    match (path, value) {
        (["*", rest @ ..], Value::Array(list)) => list.iter_mut().for_each(|entry| remove(entry, rest)),
        (["*", rest @ ..], Value::Object(map)) => map.values_mut().for_each(|entry| remove(entry, rest)),
        ([key], Value::Object(map)) => {
            map.remove(*key);
        }
        ([key, rest @ ..], Value::Object(map)) => {
            let Some(inner) = map.get_mut(*key) else { return };
            let said = inner.as_object().is_some_and(|inner| !inner.is_empty());
            remove(inner, rest);
            if *key == "lifecycle" && said && inner.as_object().is_some_and(serde_json::Map::is_empty) {
                map.remove(*key);
            }
        }
        _ => {}
    }
}

/// Nodes are configured by their files: what once came from the API stays only where it is.
fn node_configuration(new: &mut Value, old: Option<&Value>) {
    for (part, key) in [("spec", "configSource"), ("status", "config")] {
        if old.is_none_or(|old| old[part].get(key).is_none_or(Value::is_null))
            && let Some(part) = new.get_mut(part)
        {
            remove(part, &[key]);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resources::find;

    #[test]
    fn what_a_closed_gate_hides_comes_only_where_it_is() {
        let pod = json!({
            "schedulingGroup": {"podGroupName": "g"},
            "containers": [{"name": "a", "lifecycle": {"stopSignal": "SIGTERM"}}],
            "volumes": [{"name": "v", "projected": {"sources": [
                {"clusterTrustBundle": {"path": "p"}}, {"podCertificate": {"keyPath": "k"}}, {"secret": {"name": "s"}},
            ]}}],
        });
        let bare = json!({
            "containers": [{"name": "a"}],
            "volumes": [{"name": "v", "projected": {"sources": [{}, {}, {"secret": {"name": "s"}}]}}],
        });
        for (group, plural, path, said, left) in [
            ("", "pods", "/spec", pod.clone(), bare.clone()),
            ("apps", "deployments", "/spec/template/spec", pod.clone(), bare.clone()),
            ("", "podtemplates", "/template/spec", pod.clone(), bare.clone()),
            ("batch", "cronjobs", "/spec/jobTemplate/spec/template/spec", pod, bare),
            ("coordination.k8s.io", "leases", "/spec", json!({"strategy": "s", "preferredHolder": "p"}), json!({})),
            (
                "apps",
                "statefulsets",
                "/spec",
                json!({"updateStrategy": {"rollingUpdate": {"maxUnavailable": 1}}}),
                json!({"updateStrategy": {"rollingUpdate": {}}}),
            ),
            (
                "resource.k8s.io",
                "resourceslices",
                "/spec",
                json!({"devices": [{"attributes": {"x": {"ints": [1]}, "y": {"int": 1}},
                    "nodeAllocatableResourceMappings": {"cpu": {}}}]}),
                json!({"devices": [{"attributes": {"x": {}, "y": {"int": 1}}}]}),
            ),
            ("storage.k8s.io", "csidrivers", "/spec", json!({"preventPodSchedulingIfMissing": true}), json!({})),
            ("", "nodes", "/spec", json!({"configSource": {"configMap": {}}}), json!({})),
        ] {
            let def = find(group, "v1", plural).unwrap();
            let around = |inner: &Value| {
                path.trim_start_matches('/').rsplit('/').fold(inner.clone(), |inner, key| json!({key: inner}))
            };
            let (with, without) = (around(&said), around(&left));
            for (old, expected) in [(None, &without), (Some(&without), &without), (Some(&with), &with)] {
                let mut new = with.clone();
                close(def, &mut new, old);
                assert_eq!(&new, expected, "{plural} after {old:?}");
            }
            let mut empty = json!({});
            close(def, &mut empty, None);
            assert_eq!(empty, json!({}), "{plural}: nothing is added");
        }
    }

    #[test]
    fn an_open_gate_leaves_the_group_of_pods() {
        let open = Gates::default().with(Feature::GenericWorkload, true);
        for (group, plural, object) in [
            ("", "pods", json!({"spec": {"schedulingGroup": {"podGroupName": "g"}}})),
            ("batch", "jobs", json!({"spec": {"template": {"spec": {"schedulingGroup": {"podGroupName": "g"}}}}})),
        ] {
            let def = find(group, "v1", plural).unwrap();
            let (mut kept, mut dropped) = (object.clone(), object.clone());
            close_by(open, def, &mut kept, None);
            close_by(Gates::default(), def, &mut dropped, None);
            assert_eq!(kept, object, "{plural}");
            assert!(!dropped.to_string().contains("schedulingGroup"), "{dropped}");
        }
    }

    #[test]
    fn groups_come_without_what_other_gates_hide() {
        let spec = json!({"schedulingPolicy": {"gang": {"minCount": 2}}, "schedulingConstraints": {"topology": []},
            "resourceClaims": [{"name": "c"}], "disruptionMode": "Pod", "priorityClassName": "p", "priority": 7});
        let bare = json!({"schedulingPolicy": {"gang": {"minCount": 2}}});
        for (plural, object, left) in [
            ("podgroups", json!({"spec": spec}), json!({"spec": bare})),
            (
                "workloads",
                json!({"spec": {"podGroupTemplates": [spec]}}),
                json!({"spec": {"podGroupTemplates": [bare]}}),
            ),
            (
                "podgroups",
                json!({"status": {"conditions": [], "resourceClaimStatuses": [{"name": "c"}]}}),
                json!({"status": {"conditions": []}}),
            ),
        ] {
            let mut new = object;
            close(find("scheduling.k8s.io", "v1alpha2", plural).unwrap(), &mut new, None);
            assert_eq!(new, left, "{plural}");
        }
    }
}
