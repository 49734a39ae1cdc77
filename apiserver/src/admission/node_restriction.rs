//! A kubelet changes only its own node and the pods bound to it, its own lease and driver objects, and no label by which
//! workloads are kept apart.

use keelson_machinery::status::Status;
use serde_json::Value;

use crate::access::{Admission, AdmissionPlugin, Operation, Round};
use crate::authz::node_of;
use crate::objects::Objects;

/// Annotation of pods that a kubelet mirrors from files.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// Labels in Kubernetes' own domains that a kubelet may set on its node.
const OWN_LABELS: [&str; 14] = [
    "kubernetes.io/hostname",
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "node.kubernetes.io/exclude-disruption",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "failure-domain.kubernetes.io/region",
    "failure-domain.kubernetes.io/zone",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/os",
];
const OWN_LABEL_DOMAINS: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];

pub(super) struct NodeRestriction(pub(super) Objects);

fn text<'a>(of: &'a Value, key: &str) -> &'a str {
    of[key].as_str().unwrap_or_default()
}

/// Labels that an update (or create) changes and that a kubelet may not.
fn forbidden_labels(new: &Value, old: Option<&Value>) -> Vec<String> {
    let labels = |object: Option<&Value>| object.map(|o| o["metadata"]["labels"].clone()).unwrap_or_default();
    let (new, old) = (labels(Some(new)), labels(old));
    let keys =
        |labels: &Value| labels.as_object().map(|map| map.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
    let mut changed: Vec<String> = keys(&new).into_iter().filter(|key| old.get(key) != new.get(key)).collect();
    changed.extend(keys(&old).into_iter().filter(|key| new.get(key).is_none()));
    changed.sort();
    changed.retain(|key| !may_set(key));
    changed
}

fn may_set(key: &str) -> bool {
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    let within = |of: &str| domain == of || domain.ends_with(&format!(".{of}"));
    if !within("kubernetes.io") && !within("k8s.io") {
        return true;
    }
    !within("node-restriction.kubernetes.io")
        && (OWN_LABELS.contains(&key) || OWN_LABEL_DOMAINS.iter().any(|d| within(d)))
}

impl NodeRestriction {
    fn node(&self, request: &Admission<'_>, node: &str) -> Result<(), String> {
        let object = request.object.as_deref();
        let name = object.and_then(|o| o["metadata"]["name"].as_str()).unwrap_or(request.name);
        if name != node {
            return Err(format!("node {node:?} is not allowed to modify node {name:?}"));
        }
        let Some(new) = object else { return Ok(()) };
        match request.operation {
            Operation::Create => {
                if !new["spec"]["configSource"].is_null() {
                    return Err(format!("node {node:?} is not allowed to create pods with a non-nil configSource"));
                }
                // Older kubelets send labels that newer ones may not: only those that keep workloads apart are refused.
                let bad = forbidden_labels(new, None);
                if !bad.is_empty() {
                    return Err(format!("is not allowed to set the following labels: {}", bad.join(", ")));
                }
            }
            Operation::Update => {
                if request.old.map(|old| &old["spec"]["taints"]) != Some(&new["spec"]["taints"]) {
                    return Err(format!("node {node:?} is not allowed to modify taints"));
                }
                let bad = forbidden_labels(new, request.old);
                if !bad.is_empty() {
                    return Err(format!("is not allowed to modify labels: {}", bad.join(", ")));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn new_pod(&self, request: &Admission<'_>, node: &str) -> Result<(), String> {
        let Some(pod) = request.object.as_deref() else { return Ok(()) };
        if pod["metadata"]["annotations"].get(MIRROR).is_none() {
            return Err(format!("pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"));
        }
        if pod["spec"]["nodeName"] != node {
            return Err(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
        }
        let owners = pod["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
        if let [owner, rest @ ..] = &owners[..] {
            if !rest.is_empty() {
                return Err(format!("node {node:?} can only create pods with a single owner reference set to itself"));
            }
            let own = text(owner, "apiVersion") == "v1" && text(owner, "kind") == "Node" && text(owner, "name") == node;
            if !own || owner["controller"] != true || owner["blockOwnerDeletion"] == true {
                return Err(format!("node {node:?} can only create pods with an owner reference set to itself"));
            }
            let found = self.0.object("", "v1", "nodes", "", node);
            let uid = found.as_ref().map_or("", |found| text(&found["metadata"], "uid"));
            if text(owner, "uid") != uid {
                return Err(format!("UID mismatch: expected {} got {uid}", text(owner, "uid")));
            }
        }
        let spec = &pod["spec"];
        if !text(spec, "serviceAccountName").is_empty() {
            return Err(format!("node {node:?} can not create pods that reference a service account"));
        }
        for volume in spec["volumes"].as_array().into_iter().flatten() {
            for (key, what) in [
                ("secret", "secrets"),
                ("configMap", "configmaps"),
                ("persistentVolumeClaim", "persistentvolumeclaims"),
            ] {
                if !volume[key].is_null() {
                    return Err(format!("node {node:?} can not create pods that reference {what}"));
                }
            }
        }
        Ok(())
    }

    fn pod(&self, request: &Admission<'_>, node: &str) -> Result<(), String> {
        let bound = match request.subresource {
            // An eviction names the pod; what is known of it is what is stored.
            "eviction" => {
                let pod = self.0.object("", "v1", "pods", request.namespace, request.name);
                pod.map(|pod| text(&pod["spec"], "nodeName").to_owned()).unwrap_or_default()
            }
            _ => request.old.map(|old| text(&old["spec"], "nodeName").to_owned()).unwrap_or_default(),
        };
        let what = match (request.subresource, request.operation) {
            ("eviction", _) => "evict",
            (_, Operation::Delete) => "delete",
            _ => "update pod status for",
        };
        if bound == node { Ok(()) } else { Err(format!("can only {what} pods with spec.nodeName set to itself")) }
    }

    fn lease(&self, request: &Admission<'_>, node: &str) -> Result<(), String> {
        if request.namespace != "kube-node-lease" {
            return Err("can only access leases in the \"kube-node-lease\" system namespace".into());
        }
        let name = request.object.as_deref().map_or(request.name, |o| text(&o["metadata"], "name"));
        if name != node {
            return Err("can only access node lease with the same name as the requesting node".into());
        }
        Ok(())
    }

    fn token(&self, request: &Admission<'_>, node: &str) -> Result<(), String> {
        let reference = request.object.as_deref().map(|o| o["spec"]["boundObjectRef"].clone()).unwrap_or_default();
        if text(&reference, "kind") != "Pod" || text(&reference, "apiVersion") != "v1" {
            return Err("node requested token not bound to a pod".into());
        }
        if text(&reference, "uid").is_empty() {
            return Err("node requested token with a pod binding without a uid".into());
        }
        let pod = self.0.object("", "v1", "pods", request.namespace, text(&reference, "name"));
        let pod = pod.ok_or("the pod that the token is for does not exist")?;
        if pod["metadata"]["uid"] != reference["uid"] {
            return Err("the pod that the token is for has another uid".into());
        }
        if text(&pod["spec"], "nodeName") != node {
            return Err("node requested token bound to a pod scheduled on a different node".into());
        }
        Ok(())
    }
}

#[async_trait::async_trait]
impl AdmissionPlugin for NodeRestriction {
    // Before the object is validated: what a node may not write is not judged any further.
    async fn mutate(&self, request: &mut Admission<'_>, _: &mut Round) -> Result<(), Status> {
        let Some(node) = node_of(request.user) else { return Ok(()) };
        let node = node.to_owned();
        let result = match (request.def.group, request.def.plural, request.subresource, request.operation) {
            ("", "nodes", ..) => self.node(request, &node),
            ("", "pods", "", Operation::Create) => self.new_pod(request, &node),
            ("", "pods", "" | "status" | "eviction", _) => {
                let problem = self.pod(request, &node);
                problem.map_err(|why| format!("node {node} {why}"))
            }
            ("", "serviceaccounts", "token", _) => self.token(request, &node),
            ("coordination.k8s.io", "leases", ..) => self.lease(request, &node),
            ("storage.k8s.io", "csinodes", ..) => {
                let name = request.object.as_deref().map_or(request.name, |o| text(&o["metadata"], "name"));
                if name == node {
                    Ok(())
                } else {
                    Err("can only access CSINode with the same name as the requesting node".into())
                }
            }
            ("resource.k8s.io", "resourceslices", ..) => {
                let object = request.object.as_deref().or(request.old);
                let own = object.is_some_and(|o| o["spec"]["nodeName"] == node.as_str());
                if own { Ok(()) } else { Err("can only access ResourceSlices of the requesting node".into()) }
            }
            _ => Ok(()),
        };
        result.map_err(|why| {
            // Upstream tells a mirror pod's owner with the node's name in front.
            let why = if why.starts_with("UID mismatch") { format!("node {node} {why}") } else { why };
            Status::forbidden(request.def.group, request.def.plural, request.name, &why)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn labels_that_keep_workloads_apart_are_not_the_nodes_to_set() {
        let node = |labels: Value| json!({"metadata": {"labels": labels}});
        for (old, new, expected) in [
            (json!({}), json!({"custom": "x", "kubernetes.io/arch": "amd64"}), vec![]),
            (json!({}), json!({"node-restriction.kubernetes.io/x": "y"}), vec!["node-restriction.kubernetes.io/x"]),
            (json!({"example.kubernetes.io/z": "w"}), json!({}), vec!["example.kubernetes.io/z"]),
            (json!({"example.kubernetes.io/z": "w"}), json!({"example.kubernetes.io/z": "w"}), vec![]),
            (
                json!({}),
                json!({"kubelet.kubernetes.io/a": "b", "node-role.kubernetes.io/control-plane": ""}),
                vec!["node-role.kubernetes.io/control-plane"],
            ),
        ] {
            assert_eq!(forbidden_labels(&node(new), Some(&node(old))), expected);
        }
    }
}
