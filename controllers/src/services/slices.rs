//! EndpointSlices: the addresses behind a Service, a hundred to an object, with zones and hints for traffic that stays near.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, ObjectReference, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointHints, EndpointSlice, ForNode, ForZone};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::{Change, Error, Key};

use super::slice_plan::{self, Groups, Plan, Shape};
use super::{
    TRIGGER_TIME, address_of, families, hostname, is_endpoint, is_headless, publishes_not_ready, selected, selector,
    target_port, topology,
};
use crate::context::Context;
use crate::kept::Pod;
use crate::owners::controller_reference;
use crate::pods;
use crate::runtime::{Keys, Outcome, watch_with};

pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
const CONTROLLER: &str = "endpointslice-controller.k8s.io";
const COMPONENT: &str = "endpoint-slice-controller";
const HEADLESS: &str = "service.kubernetes.io/headless";
pub const ZONE: &str = "topology.kubernetes.io/zone";

/// The endpoint that a pod is, for an address.
fn endpoint(pod: &Pod, address: String, service: &Service, node: Option<&Node>) -> Endpoint {
    let (serving, terminating) = (pods::is_ready(pod), pods::is_going(pod));
    let anyway = publishes_not_ready(service);
    let zone = node.and_then(|n| n.metadata.labels.as_ref()?.get(ZONE).cloned());
    let node_name = pod.spec.as_ref().and_then(|s| s.node_name.clone());
    let ready = anyway || (serving && !terminating);
    let spread = service.spec.as_ref().and_then(|s| s.traffic_distribution.as_deref());
    // The annotation is the stronger of the two.
    let spread = spread.filter(|_| !topology::is_auto(service));
    let for_zones = zone.clone().map(|name| vec![ForZone { name }]);
    let for_nodes = node_name.clone().map(|name| vec![ForNode { name }]);
    let hints = match spread {
        Some("PreferClose" | "PreferSameZone") if ready => {
            for_zones.map(|z| EndpointHints { for_zones: Some(z), for_nodes: None })
        }
        Some("PreferSameNode") if ready => Some(EndpointHints { for_zones, for_nodes }),
        _ => None,
    };
    Endpoint {
        addresses: vec![address],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: hostname(pod, service),
        node_name,
        target_ref: Some(ObjectReference {
            kind: Some("Pod".into()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        zone,
        hints,
        ..Endpoint::default()
    }
}

/// The ports of a Service as this pod has them.
fn ports(pod: &Pod, service: &Service) -> Vec<(String, Option<i32>, String, Option<String>)> {
    let ports = service.spec.as_ref().and_then(|s| s.ports.as_deref()).unwrap_or_default();
    let mut ports: Vec<_> = ports
        .iter()
        .filter_map(|port| {
            let number = target_port(pod, port)?;
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
            Some((port.name.clone().unwrap_or_default(), Some(number), protocol, port.app_protocol.clone()))
        })
        .collect();
    ports.sort();
    ports
}

/// Groups the pods' addresses by family and ports. Pods whose node is not there are left out, unless all are published;
/// tells of each, once for each family.
fn wanted(
    service: &Service,
    pods: &[Arc<Pod>],
    node: impl Fn(&str) -> Option<Arc<Node>>,
) -> (BTreeMap<Shape, Vec<Endpoint>>, Vec<String>) {
    let (mut groups, mut skipped) = (Groups::default(), Vec::new());
    for family in families(service) {
        for pod in pods.iter().filter(|p| is_endpoint(p, true)) {
            let on = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default();
            let node = node(on);
            if node.is_none() && !publishes_not_ready(service) {
                let name = |metadata: &ObjectMeta| metadata.name.clone().unwrap_or_default();
                let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
                let (pod, service) = (name(&pod.metadata), name(&service.metadata));
                skipped.push(format!("skipping Pod {pod} for Service {namespace}/{service}: Node {on} Not Found"));
                continue;
            }
            let Some(address) = address_of(pod, &family) else { continue };
            let shape = Shape { address_type: family.clone(), ports: ports(pod, service) };
            groups.add(shape, endpoint(pod, address, service, node.as_deref()));
        }
    }
    (groups.into_map(), skipped)
}

/// Several reasons as one message: each once, in a list if they differ.
fn together(mut why: Vec<String>) -> String {
    let mut seen = std::collections::HashSet::new();
    why.retain(|w| seen.insert(w.clone()));
    match &why[..] {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

fn blank(service: &Service, shape: &Shape, trigger: Option<&str>) -> EndpointSlice {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    for own in [HEADLESS, SERVICE_NAME, MANAGED_BY] {
        labels.remove(own);
    }
    labels.insert(SERVICE_NAME.into(), service.metadata.name.clone().unwrap_or_default());
    labels.insert(MANAGED_BY.into(), CONTROLLER.into());
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", service.metadata.name.as_deref().unwrap_or_default())),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: trigger.map(|t| BTreeMap::from([(TRIGGER_TIME.to_owned(), t.to_owned())])),
            owner_references: Some(vec![controller_reference(service)]),
            ..ObjectMeta::default()
        },
        address_type: shape.address_type.clone(),
        ports: shape.ports(),
        ..EndpointSlice::default()
    }
}

/// The Service that a slice says it belongs to, if `controller` manages it.
pub fn service_of(slice: &EndpointSlice, controller: &str) -> Option<Key> {
    let labels = slice.metadata.labels.as_ref()?;
    let ours = labels.get(MANAGED_BY).is_some_and(|m| m == controller);
    ours.then(|| Some((slice.metadata.namespace.clone()?, labels.get(SERVICE_NAME)?.clone())))?
}

pub(crate) fn watch(context: &Arc<Context>, queue: &Keys) {
    super::watch_pods(context, queue);
    watch_with(&context.cache.endpoint_slices, queue, |change: &Change<EndpointSlice>| {
        [&change.old, &change.new].into_iter().flatten().filter_map(|s| service_of(s, CONTROLLER)).collect()
    });
    let weak = Arc::downgrade(context);
    watch_with(&context.cache.nodes, queue, move |change: &Change<Node>| {
        let part = |node: &Option<Arc<Node>>| node.as_ref().and_then(|n| topology::part(n));
        let Some(context) = weak.upgrade().filter(|_| part(&change.old) != part(&change.new)) else {
            return Vec::new();
        };
        let services = context.cache.services.list_all();
        services.iter().filter(|s| topology::is_auto(s)).map(|s| keelson_client::informer::key(&**s)).collect()
    });
}

pub(crate) async fn reconcile(context: Arc<Context>, key: Key) -> Outcome {
    let Some(service) = context.cache.services.get(&key) else { return Ok(None) };
    let external = service.spec.as_ref().and_then(|s| s.type_.as_deref()) == Some("ExternalName");
    if selector(&service).is_none() || external || service.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let mut existing = context.cache.endpoint_slices.in_namespace(&key.0);
    existing.retain(|s| service_of(s, CONTROLLER).as_ref() == Some(&key));
    let pods = selected(&context, &service);
    let (mut wanted, skipped) = wanted(&service, &pods, |node| context.cache.nodes.named("", node));
    if topology::is_auto(&service) {
        keep_hints(&mut wanted, &existing);
    }
    // The Service's own time counts once; later changes come from pods.
    let created = existing.is_empty().then(|| super::trigger_time(&service, &pods)).flatten();
    let mut undated = (*service).clone();
    undated.metadata.creation_timestamp = None;
    let trigger = created.or_else(|| super::trigger_time(&undated, &pods));
    let blank = |shape: &Shape| blank(&service, shape, trigger.as_deref());
    let mut plan = slice_plan::plan(wanted, &existing, blank, &families(&service));
    give_hints(&context, &service, &existing, &mut plan);
    if let Some(newest) = slice_plan::act(&context.client, &key.0, plan).await? {
        context.settle(&context.cache.endpoint_slices, &newest).await;
    }
    if skipped.is_empty() {
        return Ok(None);
    }
    let why = together(skipped);
    let message = format!("Error updating Endpoint Slices for Service {}/{}: {why}", key.0, key.1);
    context.recorder(COMPONENT).warning(&*service, "FailedToUpdateEndpointSlices", message);
    // Another look follows: the node may come yet.
    Err(Error::Transport(std::io::Error::other(why)))
}

/// Endpoints that are there keep their hints for now: only what changes otherwise is given new ones.
fn keep_hints(wanted: &mut BTreeMap<Shape, Vec<Endpoint>>, existing: &[Arc<EndpointSlice>]) {
    let there: HashMap<_, _> = existing
        .iter()
        .flat_map(|s| s.endpoints.iter().flatten())
        .filter_map(|e| Some((slice_plan::identity(e), e.hints.clone()?)))
        .collect();
    for endpoint in wanted.values_mut().flatten() {
        let ready = endpoint.conditions.as_ref().and_then(|c| c.ready) == Some(true);
        endpoint.hints = there.get(&slice_plan::identity(endpoint)).filter(|_| ready).cloned();
    }
}

/// Hints of the mode `Auto`, and what the Service is told of them.
fn give_hints(context: &Context, service: &Service, existing: &[Arc<EndpointSlice>], plan: &mut Plan) {
    let spread = service.spec.as_ref().is_some_and(|s| s.traffic_distribution.is_some());
    let recorder = context.recorder(COMPONENT);
    let shares = topology::is_auto(service).then(|| topology::shares(&context.cache.nodes.list_all()));
    for family in families(service) {
        let had = topology::has_hints(existing.iter().filter(|s| s.address_type == family).map(|s| &**s));
        let Some(shares) = &shares else {
            if had && !spread {
                let message = format!("Topology Aware Hints has been disabled, addressType: {family}");
                recorder.warning(service, "TopologyAwareHintsDisabled", message);
            }
            continue;
        };
        match topology::apply(plan, existing, &family, shares) {
            topology::Outcome::Given if !had => {
                let message = format!("Topology Aware Hints has been enabled, addressType: {family}");
                recorder.normal(service, "TopologyAwareHintsEnabled", message);
            }
            topology::Outcome::Given => {}
            topology::Outcome::None(why) => {
                recorder.warning(service, "TopologyAwareHintsDisabled", format!("{why}, addressType: {family}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(value: Value) -> Arc<Pod> {
        let mut whole = json!({"metadata": {"namespace": "d", "name": "p", "uid": "u"},
            "spec": {"nodeName": "n", "containers": []},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
                "conditions": [{"type": "Ready", "status": "True"}]}});
        keelson_machinery::patch::merge(&mut whole, &value);
        Arc::new(serde_json::from_value(whole).unwrap())
    }

    fn service(value: Value) -> Service {
        let mut whole = json!({"metadata": {"namespace": "d", "name": "s"}, "spec": {"selector": {"a": "b"}, "ports": [{"port": 80}]}});
        keelson_machinery::patch::merge(&mut whole, &value);
        serde_json::from_value(whole).unwrap()
    }

    #[test]
    fn conditions_hints_and_families() {
        let node: Arc<Node> = Arc::new(serde_json::from_value(json!({"metadata": {"labels": {ZONE: "z1"}}})).unwrap());
        let going = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        let down = json!({"status": {"conditions": []}});
        for (what, service_part, pod_part, conditions, hint, slices) in [
            ("ready", json!({}), json!({}), [true, true, false], None, 1),
            ("going", json!({}), going, [false, true, true], None, 1),
            ("down", json!({}), down.clone(), [false, false, false], None, 1),
            ("published", json!({"spec": {"publishNotReadyAddresses": true}}), down, [true, false, false], None, 1),
            (
                "near",
                json!({"spec": {"trafficDistribution": "PreferClose"}}),
                json!({}),
                [true, true, false],
                Some("z1"),
                1,
            ),
            (
                "two families",
                json!({"spec": {"ipFamilies": ["IPv4", "IPv6"]}}),
                json!({}),
                [true, true, false],
                None,
                2,
            ),
        ] {
            let (groups, _) = wanted(&service(service_part), &[pod(pod_part)], |_| Some(node.clone()));
            assert_eq!(groups.len(), slices, "{what}");
            let endpoint = &groups.values().next().unwrap()[0];
            let c = endpoint.conditions.as_ref().unwrap();
            assert_eq!([c.ready, c.serving, c.terminating].map(|c| c == Some(true)), conditions, "{what}");
            let zones = endpoint.hints.as_ref().and_then(|h| h.for_zones.as_ref());
            assert_eq!(zones.map(|z| z[0].name.as_str()), hint, "{what}");
            assert_eq!(endpoint.zone.as_deref(), Some("z1"));
        }
        let ended = pod(json!({"status": {"phase": "Failed"}}));
        assert!(wanted(&service(json!({})), &[ended], |_| None).0.is_empty());
    }

    #[test]
    fn pods_without_a_node_are_no_endpoints_unless_all_are_published() {
        let lost = || pod(json!({"spec": {"nodeName": "gone"}}));
        let twice = json!({"spec": {"ipFamilies": ["IPv4", "IPv6"]}});
        for (part, slices, told) in [
            (json!({}), 0, "skipping Pod p for Service d/s: Node gone Not Found"),
            (twice, 0, "skipping Pod p for Service d/s: Node gone Not Found"),
            (json!({"spec": {"publishNotReadyAddresses": true}}), 1, "[]"),
        ] {
            let (groups, skipped) = wanted(&service(part.clone()), &[lost()], |_| None);
            assert_eq!((groups.len(), together(skipped).as_str()), (slices, told), "{part}");
        }
        assert_eq!(together(vec!["a".into(), "b".into(), "a".into()]), "[a, b]");
    }
}
