//! The endpoints of the cluster's name service: the nodes whose agents serve it.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::{Change, Key};

use super::slice_plan::{self, Groups, Shape};
use super::slices::{MANAGED_BY, SERVICE_NAME, service_of};
use crate::context::Context;
use crate::owners::controller_reference;
use crate::runtime::{Keys, Outcome, watch_with};

const CONTROLLER: &str = "name-service-controller.keelson.dev";
/// Annotation of nodes: where their agent answers questions for names.
const ANNOTATION: &str = "keelson.dev/name-server";
/// The Service.
const SERVICE: (&str, &str) = ("kube-system", "kube-dns");
/// The port of name servers.
const PORT: i32 = 53;

fn service_key() -> Key {
    (SERVICE.0.to_owned(), SERVICE.1.to_owned())
}

/// Where a node's agent serves names, and whether the node is ready.
fn server(node: &Node) -> Option<(String, bool)> {
    let address = node.metadata.annotations.as_ref()?.get(ANNOTATION)?.clone();
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    Some((address, conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")))
}

fn wanted(nodes: &[Arc<Node>]) -> Groups {
    let port = |name: &str, protocol: &str| (name.to_owned(), Some(PORT), protocol.to_owned(), None);
    let mut groups = Groups::default();
    for node in nodes {
        let Some((address, ready)) = server(node) else { continue };
        let family = if address.contains(':') { "IPv6" } else { "IPv4" };
        let ports = vec![port("dns", "UDP"), port("dns-tcp", "TCP")];
        let conditions = EndpointConditions { ready: Some(ready), serving: Some(ready), terminating: Some(false) };
        let endpoint = Endpoint {
            addresses: vec![address],
            conditions: Some(conditions),
            node_name: node.metadata.name.clone(),
            ..Endpoint::default()
        };
        groups.add(Shape { address_type: family.into(), ports }, endpoint);
    }
    groups
}

fn blank(service: &Service, shape: &Shape) -> EndpointSlice {
    let labels = [(SERVICE_NAME.to_owned(), SERVICE.1.to_owned()), (MANAGED_BY.to_owned(), CONTROLLER.to_owned())];
    let ports: Option<Vec<EndpointPort>> = shape.ports();
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", SERVICE.1)),
            namespace: Some(SERVICE.0.to_owned()),
            labels: Some(labels.into()),
            owner_references: Some(vec![controller_reference(service)]),
            ..ObjectMeta::default()
        },
        address_type: shape.address_type.clone(),
        ports,
        ..EndpointSlice::default()
    }
}

pub(crate) fn watch(context: &Arc<Context>, queue: &Keys) {
    watch_with(&context.cache.nodes, queue, |change: &Change<Node>| {
        let [old, new] = [&change.old, &change.new].map(|node| node.as_deref().and_then(server));
        if old == new { Vec::new() } else { vec![service_key()] }
    });
    watch_with(&context.cache.services, queue, |change: &Change<Service>| {
        let key = change.object().map(|service| keelson_client::informer::key(&**service));
        key.filter(|key| *key == service_key()).into_iter().collect()
    });
    watch_with(&context.cache.endpoint_slices, queue, |change: &Change<EndpointSlice>| {
        [&change.old, &change.new].into_iter().flatten().filter_map(|s| service_of(s, CONTROLLER)).collect()
    });
}

pub(crate) async fn reconcile(context: Arc<Context>, key: Key) -> Outcome {
    let mut existing = context.cache.endpoint_slices.in_namespace(&key.0);
    existing.retain(|s| service_of(s, CONTROLLER).as_ref() == Some(&key));
    // With a selector the Service is served by pods, and no business of the agents.
    let service = context.cache.services.get(&key).filter(|service| super::selector(service).is_none());
    let plan = match service {
        Some(service) => {
            let nodes = context.cache.nodes.list_all();
            slice_plan::plan(wanted(&nodes).into_map(), &existing, |shape| blank(&service, shape), &[])
        }
        None => slice_plan::Plan { delete: existing, ..slice_plan::Plan::default() },
    };
    if let Some(newest) = slice_plan::act(&context.client, &key.0, plan).await? {
        context.settle(&context.cache.endpoint_slices, &newest).await;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nodes_that_serve_names_are_endpoints() {
        let node = |name: &str, address: Option<&str>, ready: &str| -> Arc<Node> {
            let annotations = address.map(|address| json!({ANNOTATION: address}));
            let node = json!({"metadata": {"name": name, "annotations": annotations},
                "status": {"conditions": [{"type": "Ready", "status": ready}]}});
            Arc::new(serde_json::from_value(node).unwrap())
        };
        let nodes = [
            node("a", Some("10.244.0.1"), "True"),
            node("b", Some("10.244.1.1"), "Unknown"),
            node("hollow", None, "True"),
        ];
        let groups = wanted(&nodes).into_map();
        let endpoints: Vec<&Endpoint> = groups.values().flatten().collect();
        let shown: Vec<_> =
            endpoints.iter().map(|e| (e.node_name.as_deref(), e.conditions.as_ref().unwrap().ready)).collect();
        assert_eq!(shown, [(Some("a"), Some(true)), (Some("b"), Some(false))]);
    }
}
