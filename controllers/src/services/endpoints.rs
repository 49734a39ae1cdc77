//! Endpoints: the addresses behind a Service in the old form, one object for each Service.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, ObjectReference, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::{Change, Error, Key};
use md5::{Digest, Md5};

use super::{TRIGGER_TIME, hostname, is_endpoint, is_headless, publishes_not_ready, selected, selector, target_port};
use crate::context::Context;
use crate::kept::Pod;
use crate::pods;
use crate::runtime::{Keys, Outcome, watch_with};

const MANAGED_BY: (&str, &str) = ("endpoints.kubernetes.io/managed-by", "endpoint-controller");
const HEADLESS: &str = "service.kubernetes.io/headless";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Most addresses of one object; further ones are left out.
const MAX_ADDRESSES: usize = 1000;

/// Addresses; true for those that are not ready.
type Addresses = Vec<(bool, EndpointAddress)>;
/// Port name, number, protocol and application protocol.
type Port = (String, i32, String, Option<String>);

fn address(pod: &Pod, service: &Service) -> Option<EndpointAddress> {
    Some(EndpointAddress {
        ip: super::address_of(pod, super::families(service).first()?)?,
        hostname: hostname(pod, service),
        node_name: pod.spec.as_ref()?.node_name.clone(),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".into()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
    })
}

/// Addresses that share the same ports are one subset; tells also whether some were left out.
fn subsets(service: &Service, pods: &[Arc<Pod>]) -> (Vec<EndpointSubset>, bool) {
    let ports = service.spec.as_ref().and_then(|s| s.ports.as_deref()).unwrap_or_default();
    let (anyway, no_ports) = (publishes_not_ready(service), ports.is_empty());
    // By address first: an address has a set of ports, and addresses with the same set are put together.
    let mut by_address: BTreeMap<(bool, String, String), (EndpointAddress, Vec<Port>)> = BTreeMap::new();
    let mut usable: Vec<&Arc<Pod>> = pods.iter().filter(|p| is_endpoint(p, anyway)).collect();
    usable.sort_by_key(|p| (!pods::is_ready(p), p.metadata.name.clone()));
    let over = usable.len() > MAX_ADDRESSES;
    for pod in usable.into_iter().take(MAX_ADDRESSES) {
        let Some(address) = address(pod, service) else { continue };
        let ready = anyway || pods::is_ready(pod);
        let id = (!ready, address.ip.clone(), pod.metadata.uid.clone().unwrap_or_default());
        let entry = by_address.entry(id).or_insert_with(|| (address, Vec::new()));
        for port in ports {
            if let Some(number) = target_port(pod, port) {
                entry.1.push((
                    port.name.clone().unwrap_or_default(),
                    number,
                    port.protocol.clone().unwrap_or_else(|| "TCP".into()),
                    port.app_protocol.clone(),
                ));
            }
        }
    }
    let mut by_port: BTreeMap<Port, Addresses> = BTreeMap::new();
    let mut portless = Vec::new();
    for ((down, _, _), (address, ports)) in by_address {
        // A port whose name the pod does not know is none of its ports, but the Service's all the same.
        if no_ports && is_headless(service) {
            portless.push((down, address));
            continue;
        }
        for port in ports {
            by_port.entry(port).or_default().push((down, address.clone()));
        }
    }
    (together(by_port, portless), over)
}

/// Ports with the same addresses become one subset.
fn together(by_port: BTreeMap<Port, Addresses>, portless: Addresses) -> Vec<EndpointSubset> {
    let mut groups: Vec<(Addresses, Vec<EndpointPort>)> = Vec::new();
    if !portless.is_empty() {
        groups.push((portless, Vec::new()));
    }
    for ((name, port, protocol, app_protocol), addresses) in by_port {
        let port =
            EndpointPort { name: (!name.is_empty()).then_some(name), port, protocol: Some(protocol), app_protocol };
        match groups.iter_mut().find(|(a, ports)| *a == addresses && !ports.is_empty()) {
            Some((_, ports)) => ports.push(port),
            None => groups.push((addresses, vec![port])),
        }
    }
    let subset = |(addresses, mut ports): (Addresses, Vec<EndpointPort>)| {
        ports.sort_by_cached_key(rank);
        let of = |down: bool| {
            let of: Vec<EndpointAddress> = addresses.iter().filter(|a| a.0 == down).map(|a| a.1.clone()).collect();
            (!of.is_empty()).then_some(of)
        };
        EndpointSubset {
            addresses: of(false),
            not_ready_addresses: of(true),
            ports: (!ports.is_empty()).then_some(ports),
        }
    };
    groups.into_iter().map(subset).collect()
}

/// Ports are in the order of the hash of what Go prints of them: others compare and merge lists in this order.
fn rank(port: &EndpointPort) -> [u8; 16] {
    let optional = |text: &Option<String>| text.as_ref().map_or("<nil>".into(), |t| t.clone());
    let shown = format!(
        "(v1.EndpointPort){{Name:(string){} Port:(int32){} Protocol:(v1.Protocol){} AppProtocol:(*string){}}}",
        port.name.as_deref().unwrap_or_default(),
        port.port,
        port.protocol.as_deref().unwrap_or_default(),
        optional(&port.app_protocol),
    );
    Md5::digest(shown).into()
}

/// The object as it should be.
fn plan(service: &Service, pods: &[Arc<Pod>], before: Option<&Endpoints>) -> Option<Endpoints> {
    let (subsets, over) = subsets(service, pods);
    let mut wanted = before.cloned().unwrap_or_default();
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(MANAGED_BY.0.into(), MANAGED_BY.1.into());
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    let subsets = (!subsets.is_empty()).then_some(subsets);
    let mut annotations = wanted.metadata.annotations.take().unwrap_or_default();
    let trigger = annotations.remove(TRIGGER_TIME);
    annotations.remove(OVER_CAPACITY);
    if over {
        annotations.insert(OVER_CAPACITY.into(), "truncated".into());
    }
    let same = before.is_some()
        && normal(before.and_then(|b| b.subsets.as_deref())) == normal(subsets.as_deref())
        && before.and_then(|b| b.metadata.labels.as_ref()) == Some(&labels)
        && before.and_then(|b| b.metadata.annotations.as_ref()).is_some_and(|a| a.contains_key(OVER_CAPACITY)) == over;
    if same {
        return None;
    }
    if let Some(time) = super::trigger_time(service, pods)
        && trigger.as_ref() != Some(&time)
    {
        annotations.insert(TRIGGER_TIME.into(), time);
    }
    wanted.metadata = ObjectMeta {
        name: service.metadata.name.clone(),
        namespace: service.metadata.namespace.clone(),
        labels: Some(labels),
        annotations: (!annotations.is_empty()).then_some(annotations),
        ..wanted.metadata
    };
    wanted.subsets = subsets;
    Some(wanted)
}

/// Subsets without regard to their order.
fn normal(subsets: Option<&[EndpointSubset]>) -> Vec<String> {
    let mut shown: Vec<String> =
        subsets.unwrap_or_default().iter().map(|s| serde_json::to_string(s).unwrap_or_default()).collect();
    shown.sort();
    shown
}

pub(crate) fn watch(context: &Arc<Context>, queue: &Keys) {
    super::watch_pods(context, queue);
    let weak = Arc::downgrade(context);
    watch_with(&context.cache.endpoints, queue, move |change: &Change<Endpoints>| {
        let (Some(object), Some(context)) = (change.object(), weak.upgrade()) else { return Vec::new() };
        let key = keelson_client::informer::key(&**object);
        let ours = object.metadata.labels.as_ref().is_some_and(|l| l.contains_key(MANAGED_BY.0));
        // Ours changed or left behind, or one that somebody deleted.
        let left = context.cache.services.get(&key).is_none() && ours;
        let deleted = change.new.is_none();
        if left || deleted || (change.old.is_some() && ours) { vec![key] } else { Vec::new() }
    });
}

pub(crate) async fn reconcile(context: Arc<Context>, key: Key) -> Outcome {
    let api = context.client.namespaced::<Endpoints>(&key.0);
    let before = context.cache.endpoints.get(&key);
    let Some(service) = context.cache.services.get(&key) else {
        // Without its Service the object goes, whoever made it.
        if let Some(before) = before {
            ignore_missing(
                api.delete(&key.1, &serde_json::json!({"preconditions": {"uid": before.metadata.uid}})).await,
            )?;
        }
        return Ok(None);
    };
    if selector(&service).is_none() || service.spec.as_ref().and_then(|s| s.type_.as_deref()) == Some("ExternalName") {
        return Ok(None);
    }
    let pods = selected(&context, &service);
    let Some(wanted) = plan(&service, &pods, before.as_deref()) else { return Ok(None) };
    let written = match before {
        Some(_) => api.replace(&key.1, &wanted).await?,
        None => api.create(&wanted).await?,
    };
    context.settle(&context.cache.endpoints, &written).await;
    Ok(None)
}

fn ignore_missing(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(name: &str, ready: bool, ports: Value) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"namespace": "d", "name": name, "uid": name},
                "spec": {"nodeName": "n", "containers": [{"name": "c", "ports": ports}]},
                "status": {"phase": "Running", "podIP": format!("10.0.0.{}", name.len()),
                    "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}}))
            .unwrap(),
        )
    }

    fn service(ports: Value) -> Service {
        serde_json::from_value(json!({"metadata": {"namespace": "d", "name": "s", "labels": {"l": "1"}},
            "spec": {"selector": {"app": "a"}, "ports": ports}}))
        .unwrap()
    }

    fn shown(subsets: &[EndpointSubset]) -> Vec<String> {
        let ips = |list: &Option<Vec<EndpointAddress>>| {
            list.iter().flatten().map(|a| a.ip.trim_start_matches("10.0.0.").to_owned()).collect::<Vec<_>>().join(",")
        };
        let ports =
            |s: &EndpointSubset| s.ports.iter().flatten().map(|p| p.port.to_string()).collect::<Vec<_>>().join(",");
        subsets.iter().map(|s| format!("{}|{}:{}", ips(&s.addresses), ips(&s.not_ready_addresses), ports(s))).collect()
    }

    #[test]
    fn addresses_with_the_same_ports_are_together() {
        let service = service(
            json!([{"name": "http", "port": 80, "targetPort": 8080}, {"name": "web", "port": 81, "targetPort": "web"}]),
        );
        let pods = [
            pod("a", true, json!([{"name": "web", "containerPort": 9000}])),
            pod("bb", false, json!([{"name": "web", "containerPort": 9001}])),
        ];
        assert_eq!(shown(&subsets(&service, &pods).0), ["1|2:8080", "1|:9000", "|2:9001"]);
        assert_eq!(shown(&subsets(&service, &pods[..1]).0), ["1|:9000,8080"]);
        assert!(subsets(&service, &[]).0.is_empty());
        let ended = Arc::new(
            serde_json::from_value(json!({"metadata": {"name": "x"}, "spec": {"containers": []},
            "status": {"phase": "Succeeded", "podIP": "10.0.0.9"}}))
            .unwrap(),
        );
        assert!(subsets(&service, &[ended]).0.is_empty());
    }

    #[test]
    fn the_first_family_and_the_ports_of_the_service_count() {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"containers": []}, "status": {
            "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
            "conditions": [{"type": "Ready", "status": "True"}]}}))
            .unwrap();
        let pods = [Arc::new(pod)];
        for (families, ip, ports, expected) in [
            (json!(["IPv4", "IPv6"]), "10.96.0.1", json!([{"port": 80}]), vec!["1|:80"]),
            (json!(["IPv6"]), "fd01::1", json!([{"port": 80}]), vec!["fd00::1|:80"]),
            (json!([]), "fd01::1", json!([{"port": 80}]), vec!["fd00::1|:80"]),
            (json!(["IPv4"]), "None", json!([]), vec!["1|:"]),
            (json!(["IPv4"]), "None", json!([{"port": 80, "targetPort": "unknown"}]), vec![]),
        ] {
            let mut service = service(ports);
            let spec = service.spec.as_mut().unwrap();
            spec.ip_families = serde_json::from_value(families.clone()).unwrap();
            spec.cluster_ip = Some(ip.into());
            assert_eq!(shown(&subsets(&service, &pods).0), expected, "{families} {ip}");
        }
    }

    #[test]
    fn ports_are_in_the_order_of_their_hashes() {
        let port = |name: &str, port: i32, protocol: Option<&str>| EndpointPort {
            name: Some(name.into()),
            port,
            protocol: Some("TCP".into()),
            app_protocol: protocol.map(str::to_owned),
        };
        assert!(rank(&port("named", 9001, None)) < rank(&port("http", 8080, None)));
        assert_ne!(rank(&port("http", 8080, None)), rank(&port("http", 8080, Some("http"))));
    }

    #[test]
    fn the_object_is_written_only_when_it_differs() {
        let service = service(json!([{"port": 80}]));
        let pods = [pod("a", true, json!([]))];
        let first = plan(&service, &pods, None).unwrap();
        assert_eq!(first.metadata.labels.as_ref().unwrap()[MANAGED_BY.0], MANAGED_BY.1);
        assert!(plan(&service, &pods, Some(&first)).is_none());
        let mut relabeled = service.clone();
        relabeled.metadata.labels = None;
        assert!(plan(&relabeled, &pods, Some(&first)).is_some());
        assert!(plan(&service, &[], Some(&first)).unwrap().subsets.is_none());
    }
}
