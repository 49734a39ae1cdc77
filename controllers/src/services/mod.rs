//! Services: the addresses behind them, as Endpoints and as EndpointSlices.

pub mod endpoints;
pub mod mirroring;
pub mod names;
pub mod ranges;
pub mod slice_plan;
pub mod slices;
pub mod topology;

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use keelson_client::informer::key;
use keelson_client::{Change, Key};

use crate::context::Context;
use crate::kept::Pod;
use crate::owners::Selector;
use crate::pods;
use crate::runtime::{Keys, watch_with};

/// When the newest cause of a change happened.
pub const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// The selector of a Service; `None` if it has none and others keep its endpoints.
pub fn selector(service: &Service) -> Option<Selector> {
    let labels = service.spec.as_ref()?.selector.as_ref().filter(|s| !s.is_empty())?;
    Some(Selector::of_labels(labels))
}

/// Whether endpoints are published before their pods are ready.
pub fn publishes_not_ready(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses) == Some(true)
}

/// Whether a Service has no cluster IP.
pub fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None")
}

/// Whether a pod is an endpoint: it has an address and has not ended. One that is going counts if `with_going`.
pub fn is_endpoint(pod: &Pod, with_going: bool) -> bool {
    let addressed = pod.status.as_ref().and_then(|s| s.pod_ip.as_deref()).is_some_and(|ip| !ip.is_empty());
    addressed && !pods::is_finished(pod) && (with_going || !pods::is_going(pod))
}

/// The families of a Service's addresses; the first is its main one.
pub fn families(service: &Service) -> Vec<String> {
    let families = service.spec.as_ref().and_then(|s| s.ip_families.clone()).filter(|f| !f.is_empty());
    families.unwrap_or_else(|| {
        let ip = service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()).unwrap_or_default();
        vec![if ip.contains(':') { "IPv6" } else { "IPv4" }.into()]
    })
}

/// The pod's address of a family.
pub fn address_of(pod: &Pod, family: &str) -> Option<String> {
    let status = pod.status.as_ref()?;
    let all = status.pod_ips.iter().flatten().map(|ip| &ip.ip).chain(&status.pod_ip);
    let mut of_family = all.filter(|ip| !ip.is_empty() && ip.contains(':') == (family == "IPv6"));
    of_family.next().cloned()
}

/// The number of a Service's port on a pod; `None` if it names a container port that the pod has not.
pub fn target_port(pod: &Pod, port: &ServicePort) -> Option<i32> {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            // Sidecars are init containers that keep running; their ports count too.
            let sidecars = spec.init_containers.iter().flatten();
            let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
            let mut ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
            let found =
                ports.find(|p| p.name.as_deref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol);
            found.map(|p| p.container_port)
        }
    }
}

/// The host name by which a pod is found under a headless Service.
pub fn hostname(pod: &Pod, service: &Service) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let name = spec.hostname.clone().filter(|h| !h.is_empty())?;
    let under = spec.subdomain.as_deref() == service.metadata.name.as_deref();
    (under && pod.metadata.namespace == service.metadata.namespace).then_some(name)
}

/// What of a pod its Services depend on.
fn shape(pod: &Pod) -> impl PartialEq + use<> {
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    (
        pod.metadata.labels.clone(),
        pod.metadata.deletion_timestamp.is_some(),
        spec.and_then(|s| s.node_name.clone()),
        spec.map(|s| (s.hostname.clone(), s.subdomain.clone())),
        status.and_then(|s| s.pod_ips.clone()),
        (pods::is_ready(pod), pods::is_finished(pod)),
    )
}

/// Services are looked at when they change and when a pod changes that they select or selected.
pub fn watch_pods(context: &Arc<Context>, queue: &Keys) {
    crate::runtime::watch_own(&context.cache.services, queue);
    let weak = Arc::downgrade(context);
    watch_with(&context.cache.pods, queue, move |change: &Change<Pod>| {
        let Some(context) = weak.upgrade() else { return Vec::new() };
        let (old, new) = (change.old.as_deref(), change.new.as_deref());
        if old.map(shape) == new.map(shape) {
            return Vec::new();
        }
        let pods = [old, new];
        let namespace = pods.iter().flatten().find_map(|p| p.metadata.namespace.clone()).unwrap_or_default();
        let services = context.cache.services.in_namespace(&namespace);
        let touches = |s: &Service| selector(s).is_some_and(|m| pods.iter().flatten().any(|p| m.matches(&p.metadata)));
        services.iter().filter(|s| touches(s)).map(|s| key(&**s)).collect::<Vec<Key>>()
    });
}

/// The pods that a Service selects.
pub fn selected(context: &Context, service: &Service) -> Vec<Arc<Pod>> {
    let Some(selector) = selector(service) else { return Vec::new() };
    let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
    let mut pods = context.cache.pods.in_namespace(namespace);
    pods.retain(|p| selector.matches(&p.metadata));
    pods
}

/// The newest time at which the Service or one of its pods came to be as it is.
pub fn trigger_time(service: &Service, pods: &[Arc<Pod>]) -> Option<String> {
    let created = service.metadata.creation_timestamp.as_ref().map(|t| t.0);
    let ready = pods.iter().filter_map(|p| pods::condition(p, "Ready")?.last_transition_time.as_ref().map(|t| t.0));
    let newest = ready.chain(created).max()?;
    Some(newest.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}
