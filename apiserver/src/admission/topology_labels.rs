//! A pod that has its node gets the labels that say where the node is, so that its containers can be told.

use keelson_machinery::resources;
use keelson_machinery::status::Status;
use serde_json::{Value, json};

use crate::access::{Admission, AdmissionPlugin, Operation, Round};
use crate::encryption;
use crate::objects::Objects;

/// The plugin's name in the chain.
pub(super) const NAME: &str = "PodTopologyLabels";
/// The labels that are taken over.
const LABELS: [&str; 2] = ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"];

pub(super) struct PodTopologyLabels(pub(super) Objects);

/// Where a node is. Asked for every pod that is bound: the node itself is not parsed.
pub(super) fn of_node(objects: &Objects, name: &str) -> Result<Vec<(&'static str, String)>, Status> {
    // A node that is not there says nothing; others see to that.
    let Some(node) = resources::find("", "v1", "nodes").and_then(|row| objects.find(row, "", name)) else {
        return Ok(Vec::new());
    };
    let head = encryption::stored(&node)?.head;
    Ok(LABELS.iter().filter_map(|label| Some((*label, head.label(label)?.to_owned()))).collect())
}

#[async_trait::async_trait]
impl AdmissionPlugin for PodTopologyLabels {
    async fn mutate(&self, request: &mut Admission<'_>, _: &mut Round) -> Result<(), Status> {
        if (request.def.group, request.def.plural) != ("", "pods") || request.operation != Operation::Create {
            return Ok(());
        }
        let subresource = request.subresource;
        let Some(object) = request.object.as_deref_mut() else { return Ok(()) };
        let node = match subresource {
            "" => &object["spec"]["nodeName"],
            "binding" => &object["target"]["name"],
            _ => return Ok(()),
        };
        let Some(name) = node.as_str().filter(|name| !name.is_empty()) else { return Ok(()) };
        for (label, value) in of_node(&self.0, name)? {
            if !object["metadata"]["labels"].is_object() {
                object["metadata"]["labels"] = json!({});
            }
            object["metadata"]["labels"][label] = Value::from(value);
        }
        Ok(())
    }
}

/// Quotas are counted in the transaction that writes an object (`quota.rs`), where no other writer can come between; their
/// row of the chain says whether they are.
pub(super) struct CountedWithTheWrite;

#[async_trait::async_trait]
impl AdmissionPlugin for CountedWithTheWrite {}
