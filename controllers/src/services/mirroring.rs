//! Mirroring: Endpoints that people keep by hand, for Services without a selector, as EndpointSlices.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::{Change, Key};

use super::slice_plan::{self, Groups, Shape};
use super::slices::{MANAGED_BY, SERVICE_NAME, service_of};
use crate::context::Context;
use crate::owners::controller_reference;
use crate::runtime::{Keys, Outcome, watch_own, watch_with};

const CONTROLLER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Addresses of one subset that are mirrored.
const MAX_ADDRESSES: usize = 1000;
/// Annotations that are not mirrored.
const UNMIRRORED: [&str; 2] = ["kubectl.kubernetes.io/last-applied-configuration", super::TRIGGER_TIME];

/// Whether Endpoints are mirrored: a Service without a selector has them, and nothing says otherwise.
fn is_mirrored(endpoints: &Endpoints, service: Option<&Service>) -> bool {
    let metadata = &endpoints.metadata;
    let skipped = metadata.labels.as_ref().and_then(|l| l.get(SKIP)).is_some_and(|v| v == "true")
        || metadata.annotations.as_ref().is_some_and(|a| a.contains_key(LEADER))
        || metadata.deletion_timestamp.is_some();
    !skipped && service.is_some_and(|s| super::selector(s).is_none())
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
        hostname: address.hostname.clone(),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

fn wanted(endpoints: &Endpoints) -> Groups {
    let mut groups = Groups::default();
    for subset in endpoints.subsets.iter().flatten() {
        let ports = subset.ports.iter().flatten().map(|p| {
            let protocol = p.protocol.clone().unwrap_or_else(|| "TCP".into());
            (p.name.clone().unwrap_or_default(), Some(p.port), protocol, p.app_protocol.clone())
        });
        let mut ports: Vec<_> = ports.collect();
        ports.sort();
        let ready = subset.addresses.iter().flatten().map(|a| (a, true));
        let not_ready = subset.not_ready_addresses.iter().flatten().map(|a| (a, false));
        for (address, ready) in ready.chain(not_ready).take(MAX_ADDRESSES) {
            let family = if address.ip.contains(':') { "IPv6" } else { "IPv4" };
            let shape = Shape { address_type: family.into(), ports: ports.clone() };
            groups.add(shape, endpoint(address, ready));
        }
    }
    groups
}

fn blank(endpoints: &Endpoints, shape: &Shape) -> EndpointSlice {
    let metadata = &endpoints.metadata;
    let mut labels = metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.into(), metadata.name.clone().unwrap_or_default());
    labels.insert(MANAGED_BY.into(), CONTROLLER.into());
    let mut annotations = metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| !UNMIRRORED.contains(&key.as_str()));
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", metadata.name.as_deref().unwrap_or_default())),
            namespace: metadata.namespace.clone(),
            labels: Some(labels),
            annotations: (!annotations.is_empty()).then_some(annotations),
            owner_references: Some(vec![controller_reference(endpoints)]),
            ..ObjectMeta::default()
        },
        address_type: shape.address_type.clone(),
        ports: shape.ports(),
        ..EndpointSlice::default()
    }
}

pub(crate) fn watch(context: &Arc<Context>, queue: &Keys) {
    watch_own(&context.cache.endpoints, queue);
    watch_own(&context.cache.services, queue);
    watch_with(&context.cache.endpoint_slices, queue, |change: &Change<EndpointSlice>| {
        [&change.old, &change.new].into_iter().flatten().filter_map(|s| service_of(s, CONTROLLER)).collect()
    });
}

pub(crate) async fn reconcile(context: Arc<Context>, key: Key) -> Outcome {
    let mut existing = context.cache.endpoint_slices.in_namespace(&key.0);
    existing.retain(|s| service_of(s, CONTROLLER).as_ref() == Some(&key));
    let endpoints = context.cache.endpoints.get(&key);
    let service = context.cache.services.get(&key);
    let plan = match endpoints.filter(|e| is_mirrored(e, service.as_deref())) {
        Some(endpoints) => {
            slice_plan::plan(wanted(&endpoints).into_map(), &existing, |shape| blank(&endpoints, shape), &[])
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
    fn only_endpoints_kept_by_hand_are_mirrored() {
        let endpoints = |metadata| -> Endpoints { serde_json::from_value(json!({ "metadata": metadata })).unwrap() };
        let service = |spec| -> Service { serde_json::from_value(json!({ "spec": spec })).unwrap() };
        let (by_hand, selecting) = (service(json!({})), service(json!({"selector": {"a": "b"}})));
        let plain = endpoints(json!({"name": "e"}));
        assert!(is_mirrored(&plain, Some(&by_hand)));
        assert!(!is_mirrored(&plain, Some(&selecting)) && !is_mirrored(&plain, None));
        assert!(!is_mirrored(&endpoints(json!({"labels": {SKIP: "true"}})), Some(&by_hand)));
        assert!(!is_mirrored(&endpoints(json!({"annotations": {LEADER: "x"}})), Some(&by_hand)));
    }

    #[test]
    fn subsets_become_groups() {
        let endpoints: Endpoints = serde_json::from_value(json!({"metadata": {"name": "e"}, "subsets": [
            {"addresses": [{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}], "notReadyAddresses": [{"ip": "192.0.2.2"}], "ports": [{"port": 80}]},
        ]}))
        .unwrap();
        let groups = wanted(&endpoints).into_map();
        let shown: Vec<(String, usize)> = groups.iter().map(|(s, e)| (s.address_type.clone(), e.len())).collect();
        assert_eq!(shown, [("IPv4".to_owned(), 2), ("IPv6".to_owned(), 1)]);
        let shape = groups.keys().next().unwrap();
        assert_eq!(shape.ports().unwrap()[0].name.as_deref(), Some(""));
    }
}
