//! The node authorizer: a kubelet may touch its own node and lease, and read what the pods bound to it refer to.

use keelson_machinery::resources::find;
use keelson_machinery::stored::Stored;
use keelson_store::KeyRange;
use serde_json::Value;

use super::Authorization;
use crate::access::{Attributes, Decision, UserInfo};

/// Group, resource (with subresource) and verbs that every node has on all objects.
const COMMON: &[(&str, &str, &str)] = &[
    ("authentication.k8s.io", "tokenreviews", "create"),
    ("authorization.k8s.io", "subjectaccessreviews", "create"),
    ("authorization.k8s.io", "localsubjectaccessreviews", "create"),
    ("", "services", "get list watch"),
    ("", "pods", "get list watch create delete"),
    ("", "pods/status", "update patch"),
    ("", "pods/eviction", "create"),
    ("", "nodes", "create list watch"),
    ("", "events", "create update patch"),
    ("events.k8s.io", "events", "create update patch"),
    ("certificates.k8s.io", "certificatesigningrequests", "create get list watch"),
    ("storage.k8s.io", "csidrivers", "get list watch"),
    ("node.k8s.io", "runtimeclasses", "get list watch"),
    // What a proxy reads: upstream it is another program with a role of its own (system:node-proxier).
    ("discovery.k8s.io", "endpointslices", "get list watch"),
    ("networking.k8s.io", "networkpolicies", "get list watch"),
    ("", "namespaces", "get list watch"),
    ("", "persistentvolumes", "get"),
];

/// The same, on the object that has the node's name.
const OWN: &[(&str, &str, &str)] = &[
    ("", "nodes", "get update patch"),
    ("", "nodes/status", "update patch"),
    ("storage.k8s.io", "csinodes", "create get update patch delete"),
];

/// Name of the node whose kubelet the user is.
pub(crate) fn node_of(user: &UserInfo) -> Option<&str> {
    user.groups.iter().any(|g| g == "system:nodes").then(|| user.name.strip_prefix("system:node:")).flatten()
}

impl Authorization {
    pub(super) fn authorize_node(&self, user: &UserInfo, asked: &Attributes) -> Decision {
        let Some(node) = node_of(user) else { return Decision::NoOpinion(String::new()) };
        let resource = if asked.subresource.is_empty() {
            asked.resource.clone()
        } else {
            format!("{}/{}", asked.resource, asked.subresource)
        };
        let listed = |rows: &[(&str, &str, &str)]| {
            rows.iter().any(|(group, known, verbs)| {
                *group == asked.group && *known == resource && verbs.split(' ').any(|verb| verb == asked.verb)
            })
        };
        let nameless_create = asked.verb == "create" && asked.name.is_empty();
        if listed(COMMON) || (listed(OWN) && (asked.name == node || nameless_create)) {
            return Decision::Allow;
        }
        let refused = |why: String| Decision::NoOpinion(why);
        match (asked.group.as_str(), resource.as_str()) {
            ("coordination.k8s.io", "leases") => {
                let verb = matches!(asked.verb.as_str(), "get" | "create" | "update" | "patch" | "delete");
                if asked.namespace == "kube-node-lease" && verb && (asked.name == node || nameless_create) {
                    return Decision::Allow;
                }
                refused(format!("node {node:?} can only access its own lease"))
            }
            ("", "secrets" | "configmaps" | "persistentvolumeclaims" | "persistentvolumeclaims/status") => {
                let reads = matches!(asked.verb.as_str(), "get" | "list" | "watch");
                if reads && !asked.name.is_empty() && self.refers(node, &asked.resource, &asked.namespace, &asked.name)
                {
                    return Decision::Allow;
                }
                refused(format!("no relationship found between node '{node}' and this object"))
            }
            ("", "serviceaccounts/token") if asked.verb == "create" => {
                if self.refers(node, "serviceaccounts", &asked.namespace, &asked.name) {
                    return Decision::Allow;
                }
                refused(format!("no relationship found between node '{node}' and this object"))
            }
            _ => refused(String::new()),
        }
    }

    /// Whether a pod bound to the node refers to an object of its namespace.
    fn refers(&self, node: &str, resource: &str, namespace: &str, name: &str) -> bool {
        let Some(def) = find("", "v1", "pods") else { return false };
        let node_field = def.selectable_fields.iter().position(|field| *field == "spec.nodeName");
        let range = KeyRange::prefix(def.key(namespace, ""));
        self.objects.kv.view().range(&range).any(|kv| {
            let Ok(stored) = Stored::parse(&kv.value) else { return false };
            let here = match node_field.and_then(|i| stored.head.fields.get(i)) {
                Some(field) => field == node,
                None => true,
            };
            here && stored
                .to_value(kv.mod_revision)
                .is_ok_and(|pod| pod["spec"]["nodeName"] == node && mentions(&pod["spec"], resource, name))
        })
    }
}

/// Whether a pod's spec refers to an object of this resource and name.
fn mentions(spec: &Value, resource: &str, name: &str) -> bool {
    let pull_secrets = || spec["imagePullSecrets"].as_array().is_some_and(|l| l.iter().any(|s| s["name"] == name));
    match resource {
        "serviceaccounts" => spec["serviceAccountName"] == name,
        "secrets" => pull_secrets() || holds(spec, &["secret", "secretKeyRef", "secretRef"], name),
        "configmaps" => holds(spec, &["configMap", "configMapKeyRef", "configMapRef"], name),
        "persistentvolumeclaims" => holds(spec, &["persistentVolumeClaim"], name),
        _ => false,
    }
}

/// Whether somewhere in the value one of `keys` holds a reference to `name`.
fn holds(value: &Value, keys: &[&str], name: &str) -> bool {
    match value {
        Value::Array(list) => list.iter().any(|item| holds(item, keys, name)),
        Value::Object(map) => map.iter().any(|(key, item)| {
            let refers = ["name", "secretName", "claimName"].iter().any(|field| item[*field] == name);
            (keys.contains(&key.as_str()) && item.is_object() && refers) || holds(item, keys, name)
        }),
        _ => false,
    }
}
