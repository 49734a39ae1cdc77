//! A kubelet changes only its own node and the pods bound to it, its own lease and driver objects, and no label by which
//! workloads are kept apart.

use std::sync::Arc;

use keelson_machinery::status::Status;
use serde_json::Value;

use super::{Parts, mirror_pods, node_audiences};
use crate::access::{Admission, AdmissionPlugin, Operation, Round};
use crate::authz::{Authorization, node_of};
use crate::certificates::subject;
use crate::objects::Objects;

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

pub(super) struct NodeRestriction {
    objects: Objects,
    authorization: Arc<Authorization>,
}

/// Why a node may not.
pub enum Refusal {
    /// It is forbidden, for this reason.
    Forbidden(String),
    /// Something that must be there is not.
    Status(Box<Status>),
}

impl From<String> for Refusal {
    fn from(why: String) -> Self {
        Self::Forbidden(why)
    }
}

impl From<&str> for Refusal {
    fn from(why: &str) -> Self {
        Self::Forbidden(why.to_owned())
    }
}

fn text<'a>(of: &'a Value, key: &str) -> &'a str {
    of[key].as_str().unwrap_or_default()
}

/// The entries of a list; none is as good as no list.
fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
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
    pub(super) fn new(parts: &Parts) -> Self {
        Self { objects: parts.objects.clone(), authorization: parts.authorization.clone() }
    }

    fn node(&self, request: &Admission<'_>, node: &str) -> Result<(), Refusal> {
        let object = request.object.as_deref();
        let name = object.and_then(|o| o["metadata"]["name"].as_str()).unwrap_or(request.name);
        if name != node {
            return Err(format!("node {node:?} is not allowed to modify node {name:?}").into());
        }
        let Some(new) = object else { return Ok(()) };
        let config = |of: &Value| of["spec"]["configSource"].clone();
        match request.operation {
            Operation::Create => {
                if !config(new).is_null() {
                    let why = format!("node {node:?} is not allowed to create pods with a non-nil configSource");
                    return Err(why.into());
                }
                let bad = forbidden_labels(new, None);
                if !bad.is_empty() {
                    let why = format!("node {node:?} is not allowed to set the following labels: {}", bad.join(", "));
                    return Err(why.into());
                }
            }
            Operation::Update => {
                if !config(new).is_null() && request.old.map(config) != Some(config(new)) {
                    let why =
                        format!("node {node:?} is not allowed to update configSource to a new non-nil configSource");
                    return Err(why.into());
                }
                let old = request.old.unwrap_or(&Value::Null);
                if list(&old["spec"]["taints"]) != list(&new["spec"]["taints"]) {
                    return Err(format!("node {node:?} is not allowed to modify taints").into());
                }
                // An owner of its choice that is not there would have the node deleted.
                if list(&old["metadata"]["ownerReferences"]) != list(&new["metadata"]["ownerReferences"]) {
                    return Err(format!("node {node:?} is not allowed to modify ownerReferences").into());
                }
                let bad = forbidden_labels(new, request.old);
                if !bad.is_empty() {
                    return Err(format!("is not allowed to modify labels: {}", bad.join(", ")).into());
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn pod(&self, request: &Admission<'_>, node: &str) -> Result<(), Refusal> {
        match request.subresource {
            "" => mirror_pods::pod(&self.objects, request, node),
            "status" => mirror_pods::status(request, node),
            "eviction" => mirror_pods::eviction(&self.objects, request, node),
            other => {
                let why = "only 'status' and 'eviction' are allowed";
                Err(format!("unexpected pod subresource {other:?}, {why}").into())
            }
        }
    }

    /// Of a claim a node tells how its volume grows, nothing else.
    fn claim(request: &Admission<'_>, node: &str) -> Result<(), Refusal> {
        if request.subresource != "status" {
            return Err("may only update PVC status".into());
        }
        let rest = |claim: &Value| {
            let mut claim = claim.clone();
            for (of, keys) in [
                ("metadata", &["resourceVersion", "managedFields"][..]),
                ("status", &["capacity", "conditions", "allocatedResources", "allocatedResourceStatuses"]),
            ] {
                if let Some(map) = claim.get_mut(of).and_then(Value::as_object_mut) {
                    keys.iter().for_each(|key| drop(map.remove(*key)));
                }
            }
            claim
        };
        let (Some(old), Some(new)) = (request.old.map(rest), request.object.as_deref().map(rest)) else {
            return Ok(());
        };
        if old == new {
            return Ok(());
        }
        let of = |claim: &Value| claim.as_object().cloned().unwrap_or_default();
        let (old, new) = (of(&old), of(&new));
        let changed: Vec<&str> =
            new.keys().chain(old.keys()).filter(|key| new.get(*key) != old.get(*key)).map(String::as_str).collect();
        let what = "is not allowed to update fields other than status.capacity and status.conditions";
        Err(format!("node {node:?} {what}: {}", changed.join(", ")).into())
    }

    fn lease(request: &Admission<'_>, node: &str) -> Result<(), Refusal> {
        if request.namespace != "kube-node-lease" {
            return Err("can only access leases in the \"kube-node-lease\" system namespace".into());
        }
        let name = request.object.as_deref().map_or(request.name, |o| text(&o["metadata"], "name"));
        if name != node {
            return Err("can only access node lease with the same name as the requesting node".into());
        }
        Ok(())
    }

    fn slice(request: &Admission<'_>, node: &str) -> Result<(), Refusal> {
        let (object, what) = match request.operation {
            Operation::Create => (request.object.as_deref(), "create"),
            Operation::Delete => (request.old, "delete"),
            // Whose it is does not change; that it is the node's own says the authorizer.
            _ => return Ok(()),
        };
        if object.is_some_and(|slice| slice["spec"]["nodeName"] == node) {
            return Ok(());
        }
        Err(format!("can only {what} ResourceSlice with the same NodeName as the requesting node").into())
    }

    fn token(&self, request: &Admission<'_>, node: &str) -> Result<(), Refusal> {
        let reference = request.object.as_deref().map(|o| o["spec"]["boundObjectRef"].clone()).unwrap_or_default();
        let (uid, name) = (text(&reference, "uid"), text(&reference, "name"));
        if text(&reference, "kind") != "Pod" || text(&reference, "apiVersion") != "v1" || name.is_empty() {
            return Err("node requested token not bound to a pod".into());
        }
        if uid.is_empty() {
            return Err("node requested token with a pod binding without a uid".into());
        }
        let Some(pod) = self.objects.object("", "v1", "pods", request.namespace, name) else {
            return Err(Refusal::Status(Box::new(Status::not_found("", "pods", name))));
        };
        if text(&pod["metadata"], "uid") != uid {
            let why = "does not match the UID in record. The object might have been deleted and then recreated";
            return Err(format!("the UID in the bound object reference ({uid}) {why}").into());
        }
        if text(&pod["spec"], "nodeName") != node {
            return Err("node requested token bound to a pod scheduled on a different node".into());
        }
        Ok(node_audiences::check(&self.objects, &self.authorization, request, &pod)?)
    }

    /// A node asks for certificates in its own name.
    fn certificate(request: &Admission<'_>, node: &str) -> Result<(), Refusal> {
        const SIGNERS: [&str; 2] = ["kubernetes.io/kubelet-serving", "kubernetes.io/kube-apiserver-client-kubelet"];
        let Some(object) = request.object.as_deref().filter(|_| request.operation == Operation::Create) else {
            return Ok(());
        };
        if !SIGNERS.contains(&text(&object["spec"], "signerName")) {
            return Ok(());
        }
        let subject = subject(object).map_err(|why| format!("unable to parse csr: {why}"))?;
        if subject.common_name != format!("system:node:{node}") {
            return Err(format!("can only create a node CSR with CN=system:node:{node}").into());
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
        if request.operation == Operation::Connect {
            return Ok(());
        }
        let result = match (request.def.group, request.def.plural, request.subresource) {
            ("", "nodes", _) => self.node(request, &node),
            ("", "pods", _) => self.pod(request, &node),
            ("", "persistentvolumeclaims", _) => Self::claim(request, &node),
            ("", "serviceaccounts", "token") => self.token(request, &node),
            ("coordination.k8s.io", "leases", _) => Self::lease(request, &node),
            ("storage.k8s.io", "csinodes", _) => {
                let name = request.object.as_deref().map_or(request.name, |o| text(&o["metadata"], "name"));
                match name == node {
                    true => Ok(()),
                    false => Err("can only access CSINode with the same name as the requesting node".into()),
                }
            }
            ("certificates.k8s.io", "certificatesigningrequests", "") => Self::certificate(request, &node),
            ("resource.k8s.io", "resourceslices", _) => Self::slice(request, &node),
            _ => Ok(()),
        };
        result.map_err(|why| match why {
            Refusal::Forbidden(why) => Status::forbidden(request.def.group, request.def.plural, request.name, &why),
            Refusal::Status(status) => *status,
        })
    }

    fn sees_each(&self, request: &Admission<'_>) -> bool {
        node_of(request.user).is_some()
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
