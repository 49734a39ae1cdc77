//! A kubelet changes only its own node and the pods bound to it.

use keelson_machinery::status::Status;

use crate::access::{Admission, AdmissionPlugin, Operation};
use crate::authz::node_of;

pub(super) struct NodeRestriction;

#[async_trait::async_trait]
impl AdmissionPlugin for NodeRestriction {
    async fn validate(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        let Some(node) = node_of(request.user) else { return Ok(()) };
        let refuse = |why: String| Err(Status::forbidden(request.def.group, request.def.plural, request.name, &why));
        let object = request.object.as_deref();
        match (request.def.group, request.def.plural, request.operation) {
            ("", "nodes", _) => {
                let name = object.and_then(|o| o["metadata"]["name"].as_str()).unwrap_or(request.name);
                if name != node {
                    return refuse(format!("node {node:?} is not allowed to modify node {name:?}"));
                }
                let taints = |value: Option<&serde_json::Value>| value.map(|v| v["spec"]["taints"].clone());
                if request.operation == Operation::Update && taints(object) != taints(request.old) {
                    return refuse(format!("node {node:?} is not allowed to modify taints"));
                }
                Ok(())
            }
            ("", "pods", Operation::Create) if request.subresource.is_empty() => {
                let mirror = object.is_some_and(|o| {
                    o["spec"]["nodeName"] == node
                        && o["metadata"]["annotations"].get("kubernetes.io/config.mirror").is_some()
                });
                if mirror {
                    Ok(())
                } else {
                    refuse(format!(
                        "pod does not have \"kubernetes.io/config.mirror\" annotation, node {node:?} can only create mirror pods"
                    ))
                }
            }
            ("", "pods", Operation::Update | Operation::Delete) => {
                match request.old.and_then(|old| old["spec"]["nodeName"].as_str()) {
                    Some(bound) if bound == node => Ok(()),
                    bound => refuse(format!(
                        "node {node:?} can only change pods with spec.nodeName set to itself, not {:?}",
                        bound.unwrap_or_default()
                    )),
                }
            }
            _ => Ok(()),
        }
    }
}
