//! PodPreset (`settings.k8s.io/v1alpha1`), from releases of long ago: what a preset of the namespace says is added to the pods
//! that it selects, unless it contradicts them. Off by default; where it is on, the server makes the kind itself.

use std::sync::Arc;

use keelson_machinery::selector::LabelSelector;
use keelson_machinery::status::Status;
use serde_json::{Value, json};

use super::Parts;
use crate::access::{Admission, AdmissionPlugin, Operation, Round};
use crate::crd;
use crate::objects::Objects;

/// This step's name in the chain.
pub(crate) const NAME: &str = "PodPreset";
const GROUP: &str = "settings.k8s.io";
const PREFIX: &str = "podpreset.admission.kubernetes.io";
const MIRROR: &str = "kubernetes.io/config.mirror";

/// The definition of the kind.
pub(crate) fn definition() -> Value {
    let any = json!({"type": "array", "items": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
    let spec = json!({"type": "object", "properties": {
        "selector": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        "env": any, "envFrom": any, "volumes": any, "volumeMounts": any}});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("podpresets.{GROUP}"),
            "annotations": {"api-approved.kubernetes.io": "unapproved, the kind of earlier releases"}},
        "spec": {"group": GROUP, "scope": "Namespaced", "names": {"plural": "podpresets", "kind": "PodPreset"},
            "versions": [{"name": "v1alpha1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}}]},
    })
}

pub(super) struct PodPreset {
    objects: Objects,
    customs: Arc<crd::Table>,
}

impl PodPreset {
    pub fn new(parts: &Parts) -> Self {
        Self { objects: parts.objects.clone(), customs: parts.customs.clone() }
    }

    fn presets(&self, namespace: &str, pod: &Value) -> Vec<Value> {
        let Some(custom) = self.customs.find(GROUP, "v1alpha1", "podpresets") else { return Vec::new() };
        let chooses = |preset: &Value| {
            LabelSelector::from_object(&preset["spec"]["selector"])
                .is_ok_and(|selector| selector.matches(|key| pod["metadata"]["labels"][key].as_str()))
        };
        self.objects.all(custom.def(), namespace).into_iter().filter(chooses).collect()
    }
}

fn items(list: &Value) -> Vec<Value> {
    list.as_array().cloned().unwrap_or_default()
}

/// Adds items to a list; what is there under the same key must be the same.
fn merge(own: &Value, more: &Value, key: &str) -> Result<Value, String> {
    let mut out = items(own);
    for item in items(more) {
        match out.iter().find(|known| known[key] == item[key]) {
            None => out.push(item),
            Some(known) if *known == item => {}
            Some(_) => return Err(format!("merging {key} {} has a conflict", item[key])),
        }
    }
    Ok(out.into())
}

/// Mounts are told apart by their name and by their place.
fn merge_mounts(own: &Value, more: &Value) -> Result<Value, String> {
    let merged = merge(own, more, "name")?;
    let list = items(&merged);
    for (index, mount) in list.iter().enumerate() {
        if list[..index].iter().any(|other| other["mountPath"] == mount["mountPath"]) {
            return Err(format!("merging mountPath {} has a conflict", mount["mountPath"]));
        }
    }
    Ok(merged)
}

fn set(of: &mut Value, key: &str, list: Value) {
    if list.as_array().is_some_and(|list| !list.is_empty()) {
        of[key] = list;
    }
}

/// The pod with all presets, or the first contradiction.
fn applied(pod: &Value, presets: &[Value]) -> Result<Value, String> {
    let mut pod = pod.clone();
    for preset in presets {
        let (spec, name) = (&preset["spec"], preset["metadata"]["name"].as_str().unwrap_or_default());
        let why = |why: String| format!("PodPreset {name}: {why}");
        let volumes = merge(&pod["spec"]["volumes"], &spec["volumes"], "name").map_err(why)?;
        set(&mut pod["spec"], "volumes", volumes);
        for kind in ["containers", "initContainers"] {
            for container in pod["spec"].get_mut(kind).and_then(Value::as_array_mut).into_iter().flatten() {
                let env = merge(&container["env"], &spec["env"], "name").map_err(why)?;
                set(container, "env", env);
                let mut sources = items(&container["envFrom"]);
                sources.extend(items(&spec["envFrom"]));
                set(container, "envFrom", sources.into());
                let mounts = merge_mounts(&container["volumeMounts"], &spec["volumeMounts"]).map_err(why)?;
                set(container, "volumeMounts", mounts);
            }
        }
        if !pod["metadata"]["annotations"].is_object() {
            pod["metadata"]["annotations"] = json!({});
        }
        let revision = preset["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        pod["metadata"]["annotations"][format!("{PREFIX}/podpreset-{name}")] = revision.into();
    }
    Ok(pod)
}

#[async_trait::async_trait]
impl AdmissionPlugin for PodPreset {
    async fn mutate(&self, request: &mut Admission<'_>, round: &mut Round) -> Result<(), Status> {
        let pods = (request.def.group, request.def.plural, request.subresource) == ("", "pods", "");
        if !pods || request.operation != Operation::Create || round.is_again() {
            return Ok(());
        }
        let namespace = request.namespace;
        let Some(pod) = request.object.as_deref_mut() else { return Ok(()) };
        let annotations = &pod["metadata"]["annotations"];
        if annotations[MIRROR].is_string() || annotations[format!("{PREFIX}/exclude")] == "true" {
            return Ok(());
        }
        let presets = self.presets(namespace, pod);
        match applied(pod, &presets) {
            Ok(changed) => *pod = changed,
            // A pod that presets do not fit is made as it is.
            Err(why) => tracing::warn!(namespace, %why, "presets were not applied to a pod"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each row: what a preset says, and what becomes of the container; none if they contradict each other.
    #[test]
    fn presets_are_added_unless_they_contradict() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [
            {"name": "c", "env": [{"name": "A", "value": "1"}], "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]}});
        for (spec, key, expected) in [
            (json!({"env": [{"name": "B", "value": "2"}]}), "env", Some(2)),
            (json!({"env": [{"name": "A", "value": "1"}]}), "env", Some(1)),
            (json!({"env": [{"name": "A", "value": "other"}]}), "env", None),
            (json!({"envFrom": [{"configMapRef": {"name": "m"}}]}), "envFrom", Some(1)),
            (json!({"volumeMounts": [{"name": "w", "mountPath": "/w"}]}), "volumeMounts", Some(2)),
            (json!({"volumeMounts": [{"name": "w", "mountPath": "/v"}]}), "volumeMounts", None),
        ] {
            let preset = json!({"metadata": {"name": "x", "resourceVersion": "7"}, "spec": spec});
            let got = applied(&pod, &[preset]);
            let count = got.as_ref().ok().map(|pod| items(&pod["spec"]["containers"][0][key]).len());
            assert_eq!(count, expected, "{got:?}");
            if let Ok(pod) = got {
                assert_eq!(pod["metadata"]["annotations"]["podpreset.admission.kubernetes.io/podpreset-x"], "7");
            }
        }
    }
}
