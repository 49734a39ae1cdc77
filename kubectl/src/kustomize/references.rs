//! Names in objects that refer to other objects: they follow when those are renamed.

use serde_json::Value;

use super::Resource;
use super::fields::each;
use crate::value::Read;

/// A kind that is referred to, and where from: kinds of objects (`*` for any with pods) and paths to names.
type Reference = (&'static str, &'static [(&'static str, &'static str)]);

/// Paths below a pod's spec.
const POD: &[(&str, &[&str])] = &[
    (
        "ConfigMap",
        &[
            "volumes/configMap/name",
            "volumes/projected/sources/configMap/name",
            "containers/env/valueFrom/configMapKeyRef/name",
            "initContainers/env/valueFrom/configMapKeyRef/name",
            "containers/envFrom/configMapRef/name",
            "initContainers/envFrom/configMapRef/name",
        ],
    ),
    (
        "Secret",
        &[
            "volumes/secret/secretName",
            "volumes/projected/sources/secret/name",
            "containers/env/valueFrom/secretKeyRef/name",
            "initContainers/env/valueFrom/secretKeyRef/name",
            "containers/envFrom/secretRef/name",
            "initContainers/envFrom/secretRef/name",
            "imagePullSecrets/name",
        ],
    ),
    ("ServiceAccount", &["serviceAccountName"]),
    ("PersistentVolumeClaim", &["volumes/persistentVolumeClaim/claimName"]),
    ("PriorityClass", &["priorityClassName"]),
];

const OTHERS: &[Reference] = &[
    (
        "Secret",
        &[
            ("Ingress", "spec/tls/secretName"),
            ("ServiceAccount", "imagePullSecrets/name"),
            ("ServiceAccount", "secrets/name"),
        ],
    ),
    (
        "Service",
        &[
            ("StatefulSet", "spec/serviceName"),
            ("Ingress", "spec/rules/http/paths/backend/service/name"),
            ("Ingress", "spec/defaultBackend/service/name"),
            ("APIService", "spec/service/name"),
            ("MutatingWebhookConfiguration", "webhooks/clientConfig/service/name"),
            ("ValidatingWebhookConfiguration", "webhooks/clientConfig/service/name"),
        ],
    ),
    ("Role", &[("RoleBinding", "roleRef/name")]),
    ("ClusterRole", &[("RoleBinding", "roleRef/name"), ("ClusterRoleBinding", "roleRef/name")]),
    ("PersistentVolume", &[("PersistentVolumeClaim", "spec/volumeName")]),
    (
        "StorageClass",
        &[
            ("PersistentVolumeClaim", "spec/storageClassName"),
            ("PersistentVolume", "spec/storageClassName"),
            ("StatefulSet", "spec/volumeClaimTemplates/spec/storageClassName"),
        ],
    ),
    ("IngressClass", &[("Ingress", "spec/ingressClassName")]),
    ("Deployment", &[("HorizontalPodAutoscaler", "spec/scaleTargetRef/name")]),
    ("StatefulSet", &[("HorizontalPodAutoscaler", "spec/scaleTargetRef/name")]),
    ("ReplicaSet", &[("HorizontalPodAutoscaler", "spec/scaleTargetRef/name")]),
];

/// Where kinds have the spec of pods.
pub fn pod_spec(kind: &str) -> Option<&'static str> {
    match kind {
        "Pod" => Some("spec"),
        "Deployment" | "ReplicaSet" | "ReplicationController" | "StatefulSet" | "DaemonSet" | "Job" => {
            Some("spec/template/spec")
        }
        "CronJob" => Some("spec/jobTemplate/spec/template/spec"),
        "PodTemplate" => Some("template/spec"),
        _ => None,
    }
}

/// The name by which an object is called now, if it was called `name` when the reference was written.
fn now(resources: &[Resource], kind: &str, name: &str, namespace: &str) -> Option<(String, String)> {
    let fits = |r: &&Resource| r.kind() == kind && r.was_called(name);
    let mut found: Vec<&Resource> = resources.iter().filter(fits).collect();
    if found.len() > 1 {
        let near: Vec<&Resource> = found.iter().copied().filter(|r| r.namespace() == namespace).collect();
        if !near.is_empty() {
            found = near;
        }
    }
    found.first().map(|r| (r.name().to_owned(), r.namespace().to_owned()))
}

/// Brings all references up to date.
pub fn fix(resources: &mut [Resource]) {
    let all = resources.to_vec();
    for resource in resources {
        let (kind, namespace) = (resource.kind().to_owned(), resource.namespace().to_owned());
        let follow = |path: &str, to: &str, object: &mut Value| {
            each(object, path, false, &mut |name| {
                if let Some((new, _)) = now(&all, to, name.text(), &namespace) {
                    *name = new.into();
                }
            });
        };
        if let Some(spec) = pod_spec(&kind) {
            for (to, paths) in POD {
                paths.iter().for_each(|path| follow(&format!("{spec}/{path}"), to, &mut resource.object));
            }
        }
        for (to, from) in OTHERS {
            for (_, path) in from.iter().filter(|(of, _)| *of == kind) {
                // Some references say the kind themselves.
                let said = match *path {
                    "roleRef/name" => resource.object["roleRef"]["kind"].text().to_owned(),
                    "spec/scaleTargetRef/name" => resource.object["spec"]["scaleTargetRef"]["kind"].text().to_owned(),
                    _ => String::new(),
                };
                if said.is_empty() || said == *to {
                    follow(path, to, &mut resource.object);
                }
            }
        }
        // A webhook's Service is where the kustomization put it.
        let hooks = resource.object.get_mut("webhooks").and_then(Value::as_array_mut);
        for service in hooks.into_iter().flatten().filter_map(|hook| hook["clientConfig"].get_mut("service")) {
            let (name, space) = (service["name"].text().to_owned(), service["namespace"].text().to_owned());
            let found = all.iter().find(|r| r.kind() == "Service" && r.name() == name);
            let moved = |r: &&Resource| r.before.iter().any(|(_, had)| had.is_empty() || *had == space);
            if let Some(service_now) = found.filter(moved).filter(|r| !r.namespace().is_empty()) {
                service["namespace"] = service_now.namespace().into();
            }
        }
        let subjects = resource.object.get_mut("subjects").and_then(Value::as_array_mut);
        for subject in subjects.into_iter().flatten() {
            let space = subject["namespace"].text().to_owned();
            if subject["kind"] == "ServiceAccount"
                && let Some((name, namespace)) = now(&all, "ServiceAccount", subject["name"].text(), &space)
            {
                subject["name"] = name.into();
                if !namespace.is_empty() {
                    subject["namespace"] = namespace.into();
                }
            }
        }
    }
}
