//! The node authorizer: a kubelet may touch its own node and lease, and read what the pods bound to it refer to.

use keelson_machinery::resources::find;
use keelson_store::{KeyRange, KeyValue};
use serde_json::Value;

use super::Authorization;
use super::placed::node_of_pod;
use crate::access::{Attributes, Decision, UserInfo};
use crate::objects::{Objects, parse};

/// Group, resource (with subresource) and verbs that every node has on all objects.
const COMMON: &[(&str, &str, &str)] = &[
    ("authentication.k8s.io", "tokenreviews", "create"),
    ("authorization.k8s.io", "subjectaccessreviews", "create"),
    ("authorization.k8s.io", "localsubjectaccessreviews", "create"),
    ("", "services", "get list watch"),
    ("", "endpoints", "get"),
    ("", "events", "create update patch"),
    ("events.k8s.io", "events", "create update patch"),
    ("certificates.k8s.io", "certificatesigningrequests", "create get list watch"),
    ("storage.k8s.io", "csidrivers", "get list watch"),
    ("node.k8s.io", "runtimeclasses", "get list watch"),
    // What a proxy reads: upstream it is another program with a role of its own (system:node-proxier).
    ("discovery.k8s.io", "endpointslices", "get list watch"),
    ("networking.k8s.io", "networkpolicies", "get list watch"),
    ("", "namespaces", "get list watch"),
    ("", "endpoints", "get list watch"),
    // The agent lays routes to the other nodes, which upstream leaves to a network plugin.
    ("", "nodes", "list watch"),
];

/// Name of the node whose kubelet the user is.
pub(crate) fn node_of(user: &UserInfo) -> Option<&str> {
    user.groups.iter().any(|g| g == "system:nodes").then(|| user.name.strip_prefix("system:node:")).flatten()
}

fn no(why: impl Into<String>) -> Decision {
    Decision::NoOpinion(why.into())
}

impl Authorization {
    pub(super) fn authorize_node(&self, user: &UserInfo, asked: &Attributes) -> Decision {
        let Some(node) = node_of(user) else { return no("") };
        if node.is_empty() {
            return no(format!("unknown node for user {:?}", user.name));
        }
        let verb = asked.verb.as_str();
        match (asked.group.as_str(), asked.resource.as_str()) {
            ("", "secrets" | "configmaps") => self.read(node, asked),
            ("", "persistentvolumeclaims") if asked.subresource == "status" => match verb {
                "update" | "patch" => self.related(node, asked),
                _ => no("can only get/update/patch this type"),
            },
            ("", "persistentvolumeclaims" | "persistentvolumes")
            | ("storage.k8s.io", "volumeattachments")
            | ("resource.k8s.io", "resourceclaims") => self.read_one(node, asked),
            ("", "serviceaccounts") => match (verb, asked.subresource.as_str()) {
                // Accounts themselves: agents tell credential providers and signers whose pod asks.
                ("create", "token") | ("get", "") => self.related(node, asked),
                _ => no("can only create tokens for individual service accounts"),
            },
            ("coordination.k8s.io", "leases") => lease(node, asked),
            ("storage.k8s.io", "csinodes") => csi_node(node, asked),
            ("resource.k8s.io", "resourceslices") => self.slice(node, asked),
            ("", "nodes") => own_node(node, asked),
            ("", "pods") => self.pod(node, asked),
            _ if common(asked) => Decision::Allow,
            _ => no(""),
        }
    }

    fn read(&self, node: &str, asked: &Attributes) -> Decision {
        if !matches!(asked.verb.as_str(), "get" | "list" | "watch") {
            return no("can only read resources of this type");
        }
        if !asked.subresource.is_empty() {
            return no("cannot read subresource");
        }
        if asked.namespace.is_empty() {
            return no("can only read namespaced object of this type");
        }
        self.related(node, asked)
    }

    fn read_one(&self, node: &str, asked: &Attributes) -> Decision {
        if asked.verb != "get" {
            return no("can only get individual resources of this type");
        }
        if !asked.subresource.is_empty() {
            return no("cannot get subresource");
        }
        self.related(node, asked)
    }

    fn pod(&self, node: &str, asked: &Attributes) -> Decision {
        match (asked.subresource.as_str(), asked.verb.as_str()) {
            ("", "get") => self.related(node, asked),
            ("", "list" | "watch") => {
                if asked.fields.iter().any(|(key, value)| key == "spec.nodeName" && value == node) {
                    return Decision::Allow;
                }
                if !asked.name.is_empty() {
                    return self.related(node, asked);
                }
                // An agent enforces policies, which speak of pods anywhere; without policies it has no use for those.
                if self.policies_exist() {
                    return Decision::Allow;
                }
                no("can only list/watch pods with spec.nodeName field selector")
            }
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => Decision::Allow,
            _ => no(""),
        }
    }

    fn slice(&self, node: &str, asked: &Attributes) -> Decision {
        if !asked.subresource.is_empty() {
            return no("cannot authorize ResourceSlice subresources");
        }
        let own = || asked.fields.iter().any(|(key, value)| key == "spec.nodeName" && value == node);
        match asked.verb.as_str() {
            // Whose slice it is, NodeRestriction sees.
            "create" => Decision::Allow,
            "get" | "update" | "patch" | "delete" => {
                let stored = self.objects.object("resource.k8s.io", "v1", "resourceslices", "", &asked.name);
                if stored.is_some_and(|slice| slice["spec"]["nodeName"] == node) {
                    return Decision::Allow;
                }
                no(format!("no relationship found between node '{node}' and this object"))
            }
            "list" | "watch" | "deletecollection" if own() => Decision::Allow,
            "list" | "watch" | "deletecollection" => {
                no("can only list/watch/deletecollection resourceslices with spec.nodeName field selector")
            }
            _ => no(
                "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, \
                 delete, deletecollection",
            ),
        }
    }

    /// Whether the object that is asked for belongs to what the node's pods refer to.
    fn related(&self, node: &str, asked: &Attributes) -> Decision {
        if asked.name.is_empty() {
            return no("No Object name found");
        }
        let (namespace, name) = (asked.namespace.as_str(), asked.name.as_str());
        let related = match (asked.group.as_str(), asked.resource.as_str()) {
            ("", "pods") => self
                .objects
                .object("", "v1", "pods", namespace, name)
                .is_some_and(|pod| pod["spec"]["nodeName"] == node),
            ("", "persistentvolumes") => self.mounts_volume(node, name),
            ("storage.k8s.io", _) => self
                .objects
                .object("storage.k8s.io", "v1", "volumeattachments", "", name)
                .is_some_and(|attachment| attachment["spec"]["nodeName"] == node),
            ("", "secrets") => {
                self.refers(node, "secrets", namespace, name) || self.volume_secret(node, namespace, name)
            }
            (_, resource) => self.refers(node, resource, namespace, name),
        };
        if related {
            Decision::Allow
        } else {
            no(format!("no relationship found between node '{node}' and this object"))
        }
    }

    fn policies_exist(&self) -> bool {
        let Some(def) = find("networking.k8s.io", "v1", "networkpolicies") else { return false };
        self.objects.kv.view().range(&KeyRange::prefix(def.prefix())).next().is_some()
    }

    /// Whether a pod bound to the node refers to an object of its namespace.
    fn refers(&self, node: &str, resource: &str, namespace: &str, name: &str) -> bool {
        self.any_pod(node, namespace, |pod| mentions(pod, resource, name))
    }

    /// Whether a pod of the namespace ("": of any) that is bound to the node is as wanted.
    fn any_pod(&self, node: &str, namespace: &str, wanted: impl Fn(&Value) -> bool) -> bool {
        let Some(def) = find("", "v1", "pods") else { return false };
        let view = self.objects.kv.view();
        let fits = |kv: &KeyValue| {
            node_of_pod(def, kv) == node && parse(kv).is_ok_and(|pod| pod["spec"]["nodeName"] == node && wanted(&pod))
        };
        let prefix = Objects::prefix(def, namespace);
        let (known, revision) = self.placed.on(node);
        let mut here = known.iter().filter(|key| key.starts_with(prefix.as_bytes()));
        here.any(|key| view.get(key).is_some_and(|kv| fits(kv)))
            || view.range(&KeyRange::prefix(prefix)).any(|kv| kv.mod_revision > revision && fits(kv))
    }

    /// Whether a pod bound to the node uses the claim to which a volume is bound.
    fn mounts_volume(&self, node: &str, volume: &str) -> bool {
        let Some(volume) = self.objects.object("", "v1", "persistentvolumes", "", volume) else { return false };
        let claim = &volume["spec"]["claimRef"];
        let (namespace, name) = (claim["namespace"].as_str(), claim["name"].as_str());
        namespace
            .zip(name)
            .is_some_and(|(namespace, name)| self.refers(node, "persistentvolumeclaims", namespace, name))
    }

    /// Whether a secret belongs to a volume that a pod bound to the node uses.
    fn volume_secret(&self, node: &str, namespace: &str, name: &str) -> bool {
        let Some(def) = find("", "v1", "persistentvolumes") else { return false };
        self.objects.all(def, "").iter().any(|volume| {
            let home = volume["spec"]["claimRef"]["namespace"].as_str().unwrap_or_default();
            let keys = [
                "nodePublishSecretRef",
                "nodeStageSecretRef",
                "nodeExpandSecretRef",
                "controllerExpandSecretRef",
                "secretRef",
            ];
            let spec = volume["spec"].as_object().into_iter().flatten();
            let sources = spec.filter(|(key, source)| *key != "claimRef" && source.is_object());
            let named = sources.into_iter().any(|(_, source)| {
                let azure =
                    source["secretName"] == name && source["secretNamespace"].as_str().unwrap_or(home) == namespace;
                azure
                    || keys.iter().any(|key| {
                        let reference = &source[*key];
                        reference["name"] == name && reference["namespace"].as_str().unwrap_or(home) == namespace
                    })
            });
            named && self.mounts_volume(node, volume["metadata"]["name"].as_str().unwrap_or_default())
        })
    }
}

fn common(asked: &Attributes) -> bool {
    let resource = if asked.subresource.is_empty() {
        asked.resource.clone()
    } else {
        format!("{}/{}", asked.resource, asked.subresource)
    };
    COMMON.iter().any(|(group, known, verbs)| {
        *group == asked.group && *known == resource && verbs.split(' ').any(|verb| verb == asked.verb)
    })
}

fn lease(node: &str, asked: &Attributes) -> Decision {
    if !matches!(asked.verb.as_str(), "get" | "create" | "update" | "patch" | "delete") {
        return no("can only get, create, update, patch, or delete a node lease");
    }
    if asked.namespace != "kube-node-lease" {
        return no("can only access leases in the \"kube-node-lease\" system namespace");
    }
    if asked.verb != "create" && asked.name != node {
        return no("can only access node lease with the same name as the requesting node");
    }
    Decision::Allow
}

fn csi_node(node: &str, asked: &Attributes) -> Decision {
    if !matches!(asked.verb.as_str(), "get" | "create" | "update" | "patch" | "delete") {
        return no("can only get, create, update, patch, or delete a CSINode");
    }
    if !asked.subresource.is_empty() {
        return no("cannot authorize CSINode subresources");
    }
    if asked.verb != "create" && asked.name != node {
        return no("can only access CSINode with the same name as the requesting node");
    }
    Decision::Allow
}

fn own_node(node: &str, asked: &Attributes) -> Decision {
    match (asked.subresource.as_str(), asked.verb.as_str()) {
        // Which node it writes, NodeRestriction sees.
        ("", "create" | "update" | "patch") | ("status", "update" | "patch") => Decision::Allow,
        ("", "get" | "list" | "watch") if asked.name == node => Decision::Allow,
        ("", "list" | "watch") if asked.name.is_empty() && common(asked) => Decision::Allow,
        ("", "get" | "list" | "watch") if asked.name.is_empty() => {
            no(format!("node '{node}' cannot read all nodes, only its own Node object"))
        }
        ("", "get" | "list" | "watch") => {
            no(format!("node '{node}' cannot read '{}', only its own Node object", asked.name))
        }
        _ => no(""),
    }
}

/// Whether a pod refers to an object of this resource and name.
fn mentions(pod: &Value, resource: &str, name: &str) -> bool {
    let spec = &pod["spec"];
    let pull_secrets = || spec["imagePullSecrets"].as_array().is_some_and(|l| l.iter().any(|s| s["name"] == name));
    let list = |value: &'_ Value| value.as_array().cloned().unwrap_or_default();
    match resource {
        "serviceaccounts" => spec["serviceAccountName"] == name,
        "secrets" => pull_secrets() || holds(spec, &["secret", "secretKeyRef", "secretRef"], name),
        "configmaps" => holds(spec, &["configMap", "configMapKeyRef", "configMapRef"], name),
        "persistentvolumeclaims" => {
            // An ephemeral volume's claim is named after the pod and the volume.
            let own = pod["metadata"]["name"].as_str().unwrap_or_default();
            let ephemeral = list(&spec["volumes"]).into_iter().filter(|v| v["ephemeral"].is_object());
            let mut names = ephemeral.map(|v| format!("{own}-{}", v["name"].as_str().unwrap_or_default()));
            names.any(|claim| claim == name) || holds(spec, &["persistentVolumeClaim"], name)
        }
        "resourceclaims" => {
            let given = list(&spec["resourceClaims"]).into_iter().any(|c| c["resourceClaimName"] == name);
            let made = list(&pod["status"]["resourceClaimStatuses"]);
            given || made.into_iter().any(|c| c["resourceClaimName"] == name)
        }
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
