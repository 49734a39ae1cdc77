//! What a kustomization does to all objects: namespace, names, labels, annotations, sizes and images.

use serde_json::{Map, Value, json};

use super::Resource;
use super::fields::each;
use super::references::pod_spec;
use crate::failure::{Failure, Outcome};
use crate::value::Read;

/// Kinds without a namespace.
const CLUSTER: [&str; 24] = [
    "APIService",
    "CSIDriver",
    "CSINode",
    "CertificateSigningRequest",
    "ClusterRole",
    "ClusterRoleBinding",
    "ComponentStatus",
    "CustomResourceDefinition",
    "FlowSchema",
    "IngressClass",
    "MutatingAdmissionPolicy",
    "MutatingAdmissionPolicyBinding",
    "MutatingWebhookConfiguration",
    "Namespace",
    "Node",
    "PersistentVolume",
    "PriorityClass",
    "PriorityLevelConfiguration",
    "RuntimeClass",
    "StorageClass",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "ValidatingWebhookConfiguration",
    "VolumeAttachment",
];

/// Kinds in the order in which they can be created; others stand between, and the last come last.
const FIRST: [&str; 22] = [
    "Namespace",
    "ResourceQuota",
    "StorageClass",
    "CustomResourceDefinition",
    "ServiceAccount",
    "PodSecurityPolicy",
    "Role",
    "ClusterRole",
    "RoleBinding",
    "ClusterRoleBinding",
    "ConfigMap",
    "Secret",
    "Endpoints",
    "Service",
    "LimitRange",
    "PriorityClass",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "Deployment",
    "StatefulSet",
    "CronJob",
    "PodDisruptionBudget",
];
const LAST: [&str; 3] = ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration", ""];

/// The place of an object among others.
pub fn order(resource: &Resource) -> (usize, String) {
    let kind = resource.kind();
    let first = FIRST.iter().position(|k| *k == kind);
    let last = LAST.iter().position(|k| *k == kind).map(|at| FIRST.len() + 1 + at);
    let place = first.or(last).unwrap_or(FIRST.len());
    let namespace = if resource.namespace().is_empty() { "~" } else { resource.namespace() };
    let version = resource.object["apiVersion"].text();
    let version = version.rsplit('/').next().unwrap_or(version);
    let group = if resource.group().is_empty() { "~G" } else { resource.group() };
    (place, format!("{group}_{version}_{kind}|{namespace}|{}", resource.name()))
}

/// Marks that say what made the objects.
pub fn build_metadata(config: &Value, resources: &mut [Resource]) -> Outcome {
    for option in config["buildMetadata"].texts() {
        for resource in resources.iter_mut() {
            match option {
                "managedByLabel" => resource.object["metadata"]["labels"][MANAGED_BY] = MANAGER.into(),
                "originAnnotations" => {
                    let origin = std::mem::take(&mut resource.origin);
                    resource.object["metadata"]["annotations"][ORIGIN] = origin.into();
                }
                other => return Err(Failure::new(format!("buildMetadata: {other} is not supported"))),
            }
        }
    }
    Ok(())
}

const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
const MANAGER: &str = "kustomize-(devel)";
const ORIGIN: &str = "config.kubernetes.io/origin";

/// Namespace, names, labels and annotations.
pub fn run(config: &Value, resources: &mut [Resource]) {
    let namespace = config["namespace"].text();
    let (prefix, suffix) = (config["namePrefix"].text(), config["nameSuffix"].text());
    for resource in resources {
        if !namespace.is_empty() {
            set_namespace(resource, namespace);
        }
        let kind = resource.kind();
        let keeps = matches!(kind, "CustomResourceDefinition" | "APIService" | "Namespace");
        if !keeps && (prefix, suffix) != ("", "") {
            resource.remember();
            let name = format!("{prefix}{}{suffix}", resource.name());
            resource.object["metadata"]["name"] = name.into();
        }
        if let Some(labels) = config["commonLabels"].as_object() {
            add_labels(resource, labels, true, true);
        }
        for entry in config["labels"].items() {
            if let Some(labels) = entry["pairs"].as_object() {
                let (selectors, templates) = (entry["includeSelectors"].is_true(), entry["includeTemplates"].is_true());
                add_labels(resource, labels, selectors, selectors || templates);
                for field in entry["fields"].items() {
                    let of = field["kind"].text();
                    if of.is_empty() || of == resource.kind() {
                        put(&mut resource.object, field["path"].text(), field["create"].is_true(), labels);
                    }
                }
            }
        }
        if let Some(annotations) = config["commonAnnotations"].as_object() {
            add_annotations(resource, annotations);
        }
    }
}

fn set_namespace(resource: &mut Resource, namespace: &str) {
    if !CLUSTER.contains(&resource.kind()) {
        resource.remember();
        resource.object["metadata"]["namespace"] = namespace.into();
    }
    if matches!(resource.kind(), "RoleBinding" | "ClusterRoleBinding") {
        let subjects = resource.object.get_mut("subjects").and_then(Value::as_array_mut);
        for subject in subjects.into_iter().flatten() {
            if subject["kind"] == "ServiceAccount" && subject["name"] == "default" {
                subject["namespace"] = namespace.into();
            }
        }
    }
}

fn put(object: &mut Value, path: &str, create: bool, pairs: &Map<String, Value>) {
    each(object, path, create, &mut |map| {
        for (key, value) in pairs {
            map[key] = value.clone();
        }
    });
}

/// Where kinds have the metadata of their pods.
fn template_metadata(kind: &str) -> Option<&'static str> {
    Some(match pod_spec(kind)? {
        "spec/template/spec" => "spec/template/metadata",
        "spec/jobTemplate/spec/template/spec" => "spec/jobTemplate/spec/template/metadata",
        "template/spec" => "template/metadata",
        _ => return None,
    })
}

fn add_labels(resource: &mut Resource, labels: &Map<String, Value>, selectors: bool, templates: bool) {
    let kind = resource.kind().to_owned();
    let object = &mut resource.object;
    put(object, "metadata/labels", true, labels);
    if templates && let Some(metadata) = template_metadata(&kind) {
        put(object, &format!("{metadata}/labels"), true, labels);
        match kind.as_str() {
            "CronJob" => put(object, "spec/jobTemplate/metadata/labels", true, labels),
            "StatefulSet" => put(object, "spec/volumeClaimTemplates/metadata/labels", true, labels),
            _ => {}
        }
    }
    if !selectors {
        return;
    }
    match kind.as_str() {
        "Service" | "ReplicationController" => put(object, "spec/selector", kind == "Service", labels),
        "Deployment" | "ReplicaSet" | "DaemonSet" | "StatefulSet" => {
            put(object, "spec/selector/matchLabels", true, labels);
            for affinity in ["podAffinity", "podAntiAffinity"] {
                let base = format!("spec/template/spec/affinity/{affinity}");
                for path in [
                    "preferredDuringSchedulingIgnoredDuringExecution/podAffinityTerm/labelSelector/matchLabels",
                    "requiredDuringSchedulingIgnoredDuringExecution/labelSelector/matchLabels",
                ] {
                    put(object, &format!("{base}/{path}"), false, labels);
                }
            }
            put(object, "spec/template/spec/topologySpreadConstraints/labelSelector/matchLabels", false, labels);
        }
        "Job" => put(object, "spec/selector/matchLabels", false, labels),
        "CronJob" => put(object, "spec/jobTemplate/spec/selector/matchLabels", false, labels),
        "PodDisruptionBudget" => put(object, "spec/selector/matchLabels", false, labels),
        "NetworkPolicy" => {
            for path in ["podSelector", "ingress/from/podSelector", "egress/to/podSelector"] {
                put(object, &format!("spec/{path}/matchLabels"), false, labels);
            }
        }
        _ => {}
    }
}

fn add_annotations(resource: &mut Resource, annotations: &Map<String, Value>) {
    let kind = resource.kind().to_owned();
    put(&mut resource.object, "metadata/annotations", true, annotations);
    if let Some(metadata) = template_metadata(&kind) {
        put(&mut resource.object, &format!("{metadata}/annotations"), true, annotations);
    }
    if kind == "CronJob" {
        put(&mut resource.object, "spec/jobTemplate/metadata/annotations", true, annotations);
    }
}

/// Sizes and images.
pub fn counts_and_images(config: &Value, resources: &mut [Resource]) -> Outcome {
    for entry in config["replicas"].items() {
        let name = entry["name"].text();
        let sized = |r: &&mut Resource| {
            matches!(r.kind(), "Deployment" | "ReplicationController" | "ReplicaSet" | "StatefulSet")
                && r.was_called(name)
        };
        let mut found = false;
        for resource in resources.iter_mut().filter(sized) {
            resource.object["spec"]["replicas"] = json!(entry["count"].number());
            found = true;
        }
        if !found {
            return Err(Failure::new(format!(
                "resource with name {name} does not match a config with the following GVK [Deployment.[noVer].[noGrp] ReplicationController.[noVer].[noGrp] ReplicaSet.[noVer].[noGrp] StatefulSet.[noVer].[noGrp]]"
            )));
        }
    }
    for entry in config["images"].items() {
        resources.iter_mut().for_each(|r| images(&mut r.object, entry));
    }
    Ok(())
}

fn images(value: &mut Value, entry: &Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| images(item, entry)),
        Value::Object(map) => {
            for (key, inner) in map.iter_mut() {
                if matches!(key.as_str(), "containers" | "initContainers" | "ephemeralContainers") {
                    for container in inner.as_array_mut().into_iter().flatten() {
                        if let Some(new) = container["image"].as_str().and_then(|image| renamed(image, entry)) {
                            container["image"] = new.into();
                        }
                    }
                } else {
                    images(inner, entry);
                }
            }
        }
        _ => {}
    }
}

/// Name, tag with its colon and digest with its at sign.
fn parts(image: &str) -> (&str, &str, &str) {
    let (rest, digest) = image.find('@').map_or((image, ""), |at| image.split_at(at));
    let slash = rest.rfind('/').map_or(0, |at| at + 1);
    match rest[slash..].find(':') {
        Some(colon) => (&rest[..slash + colon], &rest[slash + colon..], digest),
        None => (rest, "", digest),
    }
}

fn renamed(image: &str, entry: &Value) -> Option<String> {
    let (name, tag, digest) = parts(image);
    if name != entry["name"].text() {
        return None;
    }
    let new = entry["newName"].text();
    let name = if new.is_empty() { name } else { new };
    let (new_tag, new_digest) = (entry["newTag"].shown(), entry["digest"].text());
    Some(match (new_digest, new_tag.as_str()) {
        ("", "") if !entry["tagSuffix"].text().is_empty() => {
            format!("{name}{tag}{}{digest}", entry["tagSuffix"].text())
        }
        ("", "") => format!("{name}{tag}{digest}"),
        ("", new) => format!("{name}:{}{new}", entry["tagSuffix"].text()),
        (new, _) => format!("{name}@{new}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_images() {
        for (image, entry, expected) in [
            ("nginx", json!({"name": "nginx", "newTag": "1.2"}), Some("nginx:1.2")),
            ("nginx:1@sha256:a", json!({"name": "nginx", "newTag": "2"}), Some("nginx:2")),
            ("r:5000/a/b:1", json!({"name": "r:5000/a/b", "newName": "c"}), Some("c:1")),
            ("a:1", json!({"name": "a", "digest": "sha256:b"}), Some("a@sha256:b")),
            ("a:1", json!({"name": "b", "newTag": "2"}), None),
        ] {
            assert_eq!(renamed(image, &entry).as_deref(), expected);
        }
    }
}
