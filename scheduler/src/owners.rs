//! Services and the controllers that own pods: what their selectors say is how pods without constraints of their own are
//! spread.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::class::Class;
use crate::selector::{Selector, label};

/// Kinds of owners that matter.
pub const KINDS: [&str; 3] = ["ReplicationController", "ReplicaSet", "StatefulSet"];

type Name = (Arc<str>, Arc<str>);
/// Selectors of services by name.
type Services = BTreeMap<Arc<str>, BTreeMap<String, String>>;

/// Selectors of services and owners.
#[derive(Default)]
pub struct Owners {
    services: HashMap<Arc<str>, Services>,
    owners: HashMap<(&'static str, Name), Selector>,
}

impl Owners {
    /// Takes over a service's selector, or that it is gone.
    pub fn set_service(&mut self, namespace: &str, name: &str, selector: Option<BTreeMap<String, String>>) {
        let services = self.services.entry(namespace.into()).or_default();
        match selector.filter(|s| !s.is_empty()) {
            Some(selector) => services.insert(name.into(), selector),
            None => services.remove(name),
        };
        if services.is_empty() {
            self.services.remove(namespace);
        }
    }

    /// Takes over an owner's selector, or that it is gone.
    pub fn set_owner(&mut self, kind: &'static str, namespace: &str, name: &str, selector: Option<Selector>) {
        let key = (kind, (namespace.into(), name.into()));
        match selector {
            Some(selector) => self.owners.insert(key, selector),
            None => self.owners.remove(&key),
        };
    }

    /// What selects a pod and its likes: the services that select it and its owner. Empty if there are none.
    pub fn selector(&self, class: &Class) -> Selector {
        let mut merged: BTreeMap<&str, &str> = BTreeMap::new();
        for selector in self.services.get(&class.namespace).into_iter().flatten().map(|(_, s)| s) {
            if selector.iter().all(|(k, v)| label(&class.labels, k) == Some(v)) {
                merged.extend(selector.iter().map(|(k, v)| (k.as_str(), v.as_str())));
            }
        }
        let mut result = Selector::default();
        for (key, value) in merged {
            result.require(key, value);
        }
        if let Some((kind, name)) = &class.owner
            && let Some(kind) = KINDS.iter().find(|k| ***k == **kind)
            && let Some(selector) = self.owners.get(&(*kind, (class.namespace.clone(), name.clone())))
        {
            result.and(selector);
        }
        result
    }
}
