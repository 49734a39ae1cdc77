//! Pods that a kubelet mirrors from files, and what it may change of pods: its own, and nothing that leads to others' objects.

use keelson_machinery::status::Status;
use serde_json::Value;

use super::node_restriction::Refusal;
use crate::access::{Admission, Operation};
use crate::objects::Objects;

/// Annotation of pods that a kubelet mirrors from files.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// Fields of a pod's spec that name Secrets.
pub const SECRETS: &[&str] =
    &["secret", "secretName", "secretRef", "secretKeyRef", "nodePublishSecretRef", "imagePullSecrets"];
/// Fields that name ConfigMaps.
const CONFIG_MAPS: &[&str] = &["configMap", "configMapRef", "configMapKeyRef"];

fn text<'a>(of: &'a Value, key: &str) -> &'a str {
    of[key].as_str().unwrap_or_default()
}

/// Whether a field of one of these names is anywhere in a value.
pub fn mentions(value: &Value, keys: &[&str]) -> bool {
    match value {
        Value::Object(map) => map.iter().any(|(key, value)| {
            let given = !value.is_null() && value.as_array().is_none_or(|list| !list.is_empty());
            (given && keys.contains(&key.as_str())) || mentions(value, keys)
        }),
        Value::Array(list) => list.iter().any(|value| mentions(value, keys)),
        _ => false,
    }
}

/// Whether a node may make or end a pod.
pub fn pod(objects: &Objects, request: &Admission<'_>, node: &str) -> Result<(), Refusal> {
    match request.operation {
        Operation::Create => create(objects, request, node),
        Operation::Delete if is_bound(request.old, node) => Ok(()),
        Operation::Delete => Err(format!("node {node:?} can only delete pods with spec.nodeName set to itself").into()),
        operation => {
            let word = format!("{operation:?}").to_uppercase();
            Err(format!("unexpected operation {word:?}, node {node:?} can only create and delete mirror pods").into())
        }
    }
}

fn is_bound(pod: Option<&Value>, node: &str) -> bool {
    pod.is_some_and(|pod| pod["spec"]["nodeName"] == node)
}

fn create(objects: &Objects, request: &Admission<'_>, node: &str) -> Result<(), Refusal> {
    let Some(pod) = request.object.as_deref() else { return Ok(()) };
    let refuse = |why: &str| Err(Refusal::from(format!("node {node:?} {why}")));
    if pod["metadata"]["annotations"].get(MIRROR).is_none() {
        let why = format!("pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods");
        return Err(why.into());
    }
    if !is_bound(Some(pod), node) {
        return refuse("can only create pods with spec.nodeName set to itself");
    }
    owner(objects, &pod["metadata"]["ownerReferences"], node)?;
    let spec = &pod["spec"];
    if !text(spec, "serviceAccountName").is_empty() {
        return refuse("can not create pods that reference a service account");
    }
    for (keys, what) in [
        (SECRETS, "secrets"),
        (CONFIG_MAPS, "configmaps"),
        (&["clusterTrustBundle"], "clustertrustbundles"),
        (&["persistentVolumeClaim"], "persistentvolumeclaims"),
        (&["resourceClaims"], "resourceclaims"),
    ] {
        if mentions(spec, keys) {
            return refuse(&format!("can not create pods that reference {what}"));
        }
    }
    Ok(())
}

/// A mirrored pod belongs to the node's own object, which controls it and does not wait for it.
fn owner(objects: &Objects, references: &Value, node: &str) -> Result<(), Refusal> {
    let refuse = |why: &str| Err(Refusal::from(format!("node {node:?} {why}")));
    let own = |owner: &Value| {
        text(owner, "apiVersion") == "v1" && text(owner, "kind") == "Node" && text(owner, "name") == node
    };
    let owner = match references.as_array().map(Vec::as_slice).unwrap_or_default() {
        [owner] if own(owner) => owner,
        [_, _, ..] => return refuse("can only create pods with a single owner reference set to itself"),
        _ => return refuse("can only create pods with an owner reference set to itself"),
    };
    if owner["controller"] != true {
        return refuse("can only create pods with a controller owner reference set to itself");
    }
    if owner["blockOwnerDeletion"] == true {
        return refuse("must not set blockOwnerDeletion on an owner reference");
    }
    let Some(found) = objects.object("", "v1", "nodes", "", node) else {
        return Err(Refusal::Status(Box::new(Status::not_found("", "nodes", node))));
    };
    let uid = text(&found["metadata"], "uid");
    if text(owner, "uid") != uid {
        return Err(format!("node {node} UID mismatch: expected {} got {uid}", text(owner, "uid")).into());
    }
    Ok(())
}

/// Whether a node may write a pod's status.
pub fn status(request: &Admission<'_>, node: &str) -> Result<(), Refusal> {
    let refuse = |why: &str| Err(Refusal::from(format!("node {node:?} {why}")));
    if !is_bound(request.old, node) {
        return refuse("can only update pod status for pods with spec.nodeName set to itself");
    }
    let (Some(old), Some(new)) = (request.old, request.object.as_deref()) else { return Ok(()) };
    let labels = |pod: &Value| pod["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    if labels(old) != labels(new) {
        return refuse("cannot update labels through pod status");
    }
    let claims = |pod: &Value| pod["status"]["resourceClaimStatuses"].as_array().cloned().unwrap_or_default();
    if claims(old) != claims(new) {
        return refuse("cannot update resource claim statues");
    }
    Ok(())
}

/// Whether a node may evict a pod.
pub fn eviction(objects: &Objects, request: &Admission<'_>, node: &str) -> Result<(), Refusal> {
    // An eviction names the pod; what is known of it is what is stored.
    let Some(pod) = objects.object("", "v1", "pods", request.namespace, request.name) else {
        return Err(Refusal::Status(Box::new(Status::not_found("", "pods", request.name))));
    };
    if is_bound(Some(&pod), node) {
        return Ok(());
    }
    Err(format!("node {node} can only evict pods with spec.nodeName set to itself").into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_leads_to_others_objects_is_found_wherever_it_stands() {
        for (spec, keys, expected) in [
            (json!({"containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "s"}}}]}]}), SECRETS, true),
            (json!({"imagePullSecrets": [{"name": "s"}]}), SECRETS, true),
            (json!({"imagePullSecrets": []}), SECRETS, false),
            (json!({"volumes": [{"projected": {"sources": [{"configMap": {"name": "c"}}]}}]}), CONFIG_MAPS, true),
            (json!({"volumes": [{"emptyDir": {}}]}), CONFIG_MAPS, false),
        ] {
            assert_eq!(mentions(&spec, keys), expected, "{spec}");
        }
    }
}
