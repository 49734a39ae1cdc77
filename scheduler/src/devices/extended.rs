//! Extended resources that classes of devices stand behind (KEP-5004): a container asks for `example.com/gpu: 1`, and on nodes
//! that have no such resource of their own the pod gets devices of the class, by a claim that the scheduler makes for it.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::resource::v1::{DeviceClaim, DeviceRequest, ExactDeviceRequest};

use crate::intern::{Interner, Sym};
use crate::wire::PodSpec;

/// Marks the claim that the scheduler makes for a pod.
pub const ANNOTATION: &str = "resource.kubernetes.io/extended-resource-claim";
/// Every class stands behind the resource of this name with its own behind it.
const CLASS_PREFIX: &str = "deviceclass.resource.kubernetes.io/";

/// What one container asks for of one resource.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ask {
    /// The container's name.
    pub container: Arc<str>,
    /// The resource.
    pub resource: Sym,
    /// How many.
    pub count: i64,
    /// What the request for it is called in the claim.
    pub request: Arc<str>,
}

/// Whether devices may stand behind a resource of this name.
fn may_be_backed(name: &str) -> bool {
    let domain = name.split_once('/').map_or("", |(domain, _)| domain);
    let native = domain.is_empty() || domain == "kubernetes.io" || domain.ends_with(".kubernetes.io");
    name.starts_with(CLASS_PREFIX) || (!native && !name.starts_with("requests."))
}

/// What the containers of a pod ask for, init containers first.
pub fn asks(spec: &PodSpec, syms: &mut Interner) -> Vec<Ask> {
    let mut asks = Vec::new();
    for (index, container) in spec.init_containers.iter().chain(&spec.containers).enumerate() {
        for (number, (name, quantity)) in container.resources.requests.iter().enumerate() {
            let count = if may_be_backed(name) { crate::resources::amount(name, quantity) } else { 0 };
            if count > 0 {
                asks.push(Ask {
                    container: container.name.as_str().into(),
                    resource: syms.sym(name),
                    count,
                    request: format!("container-{index}-request-{number}").into(),
                });
            }
        }
    }
    asks.sort_by(|a, b| a.request.cmp(&b.request));
    asks
}

/// A class as it stands behind resources.
#[derive(Clone, Debug)]
struct Backer {
    resource: Option<Sym>,
    own: Sym,
    created: i64,
}

/// Which class stands behind which resource.
#[derive(Debug, Default)]
pub struct Backed {
    classes: HashMap<Arc<str>, Backer>,
    by_resource: HashMap<Sym, Arc<str>>,
}

impl Backed {
    /// Takes over a class.
    pub fn set(&mut self, class: &Arc<str>, resource: Option<&str>, created: i64, syms: &mut Interner) {
        let own = syms.sym(&format!("{CLASS_PREFIX}{class}"));
        let resource = resource.filter(|name| !name.is_empty()).map(|name| syms.sym(name));
        self.classes.insert(class.clone(), Backer { resource, own, created });
        self.gather();
    }

    /// Forgets a class.
    pub fn remove(&mut self, class: &str) {
        self.classes.remove(class);
        self.gather();
    }

    /// Of several classes behind one resource the youngest counts, then the first by name.
    fn gather(&mut self) {
        self.by_resource.clear();
        let mut classes: Vec<_> = self.classes.iter().collect();
        classes.sort_by(|a, b| a.1.created.cmp(&b.1.created).then_with(|| b.0.cmp(a.0)));
        for (name, backer) in &classes {
            self.by_resource.insert(backer.own, Arc::clone(name));
        }
        for (name, backer) in classes {
            if let Some(resource) = backer.resource {
                self.by_resource.insert(resource, name.clone());
            }
        }
    }

    /// The class behind a resource.
    pub fn class(&self, resource: Sym) -> Option<&Arc<str>> {
        self.by_resource.get(&resource)
    }
}

/// The claim for what a pod asks for, of the resources that a node lacks.
pub fn claim<'a>(asks: impl Iterator<Item = (&'a Ask, &'a Arc<str>)>) -> DeviceClaim {
    let requests = asks.map(|(ask, class)| DeviceRequest {
        name: ask.request.to_string(),
        exactly: Some(ExactDeviceRequest {
            device_class_name: class.to_string(),
            allocation_mode: Some("ExactCount".into()),
            count: Some(ask.count),
            ..ExactDeviceRequest::default()
        }),
        first_available: None,
    });
    DeviceClaim { requests: Some(requests.collect()), ..DeviceClaim::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn containers_ask_by_place_and_number() {
        let mut syms = Interner::default();
        let requests = |more: serde_json::Value| json!({"requests": more});
        let spec: PodSpec = serde_json::from_value(json!({
            "initContainers": [{"name": "i", "resources": requests(json!({"cpu": "1"}))}],
            "containers": [
                {"name": "a", "resources": requests(json!({"cpu": "1", "example.com/gpu": "2", "memory": "1Gi"}))},
                {"name": "b", "resources": requests(json!({"deviceclass.resource.kubernetes.io/g": "1", "hugepages-2Mi": "2Mi",
                    "node.kubernetes.io/x": "1", "example.com/none": "0"}))},
            ]}))
        .unwrap();
        let found: Vec<(String, i64, String)> = asks(&spec, &mut syms)
            .into_iter()
            .map(|ask| (syms.text(ask.resource).to_string(), ask.count, ask.request.to_string()))
            .collect();
        let expected = [
            ("example.com/gpu", 2, "container-1-request-1"),
            ("deviceclass.resource.kubernetes.io/g", 1, "container-2-request-0"),
        ];
        assert_eq!(found, expected.map(|(name, count, request)| (name.to_owned(), count, request.to_owned())));
    }

    #[test]
    fn the_youngest_class_counts() {
        let (mut backed, mut syms) = (Backed::default(), Interner::default());
        let name = |text: &str| Arc::<str>::from(text);
        backed.set(&name("old"), Some("example.com/gpu"), 1, &mut syms);
        backed.set(&name("b"), Some("example.com/gpu"), 2, &mut syms);
        backed.set(&name("a"), Some("example.com/gpu"), 2, &mut syms);
        let gpu = syms.sym("example.com/gpu");
        assert_eq!(backed.class(gpu), Some(&name("a")));
        backed.remove("a");
        assert_eq!(backed.class(gpu), Some(&name("b")));
        let own = syms.sym("deviceclass.resource.kubernetes.io/old");
        assert_eq!(backed.class(own), Some(&name("old")));
        assert_eq!(backed.class(syms.sym("example.com/other")), None);
    }
}
