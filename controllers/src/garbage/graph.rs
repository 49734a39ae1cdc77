//! Who owns whom: every object of every kind, by uid, with the references in both directions.
//!
//! All objects of a cluster are here, so what those of one owner have in common is there once.
//!
//! Invariant: an item is in the `dependents` of exactly the uids that its owner references name.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use keelson_client::discovery::ApiResource;

/// Finalizer of an owner that waits for its dependents to be gone.
pub const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of an owner whose dependents are to be freed.
pub const ORPHAN: &str = "orphan";

/// Where an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub resource: Arc<ApiResource>,
    pub namespace: Arc<str>,
    pub name: Box<str>,
}

/// One object.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    pub place: Place,
    pub owners: Arc<[OwnerReference]>,
    /// It is being deleted.
    pub going: bool,
    /// It waits for its dependents.
    pub foreground: bool,
    /// Its dependents are to be freed.
    pub orphan: bool,
}

impl Item {
    pub fn new(resource: Arc<ApiResource>, metadata: &ObjectMeta) -> Self {
        let going = metadata.deletion_timestamp.is_some();
        let has = |finalizer: &str| going && metadata.finalizers.iter().flatten().any(|f| f == finalizer);
        Self {
            place: Place {
                resource,
                namespace: metadata.namespace.as_deref().unwrap_or_default().into(),
                name: metadata.name.as_deref().unwrap_or_default().into(),
            },
            owners: metadata.owner_references.as_deref().unwrap_or_default().into(),
            going,
            foreground: has(FOREGROUND),
            orphan: has(ORPHAN),
        }
    }
}

/// Something to look at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Work {
    /// Whether the item with this uid is to be deleted.
    Delete(String),
    /// The dependents of the item with this uid are to be freed.
    Orphan(String),
}

/// The graph.
#[derive(Default)]
pub struct Graph {
    items: HashMap<Arc<str>, Item>,
    dependents: HashMap<Arc<str>, HashSet<Arc<str>>>,
}

/// What the graph knows of an owner.
#[derive(Debug, PartialEq, Eq)]
pub enum Owner {
    /// It is there.
    Solid,
    /// It is there and waits for its dependents to be gone.
    Waiting,
    /// It is not in the graph, or at another place than the reference says: the API must be asked.
    Unknown,
}

impl Graph {
    /// An item came or changed; returns what to look at.
    pub fn upsert(&mut self, uid: &str, mut item: Item) -> Vec<Work> {
        // Most changes are none to the graph: a status, a renewed lease.
        if !item.orphan && self.items.get(uid) == Some(&item) {
            return Vec::new();
        }
        self.share(uid, &mut item);
        let own = self.items.get_key_value(uid).map_or_else(|| uid.into(), |(own, _)| own.clone());
        let before = self.items.insert(own.clone(), item.clone());
        let mut work = Vec::new();
        let was: HashSet<&str> = before.iter().flat_map(|b| b.owners.iter().map(|o| o.uid.as_str())).collect();
        let is: HashSet<&str> = item.owners.iter().map(|o| o.uid.as_str()).collect();
        for gone in was.difference(&is) {
            self.unlink(gone, uid);
            work.extend(self.foreground(gone));
        }
        for new in is.difference(&was) {
            if !self.dependents.contains_key(*new) {
                let owner = self.items.get_key_value(*new).map_or_else(|| (*new).into(), |(owner, _)| owner.clone());
                self.dependents.insert(owner, HashSet::new());
            }
            if let Some(dependents) = self.dependents.get_mut(*new) {
                dependents.insert(own.clone());
            }
        }
        let unsettled = item.owners.iter().any(|o| self.owner(&item, o) != Owner::Solid);
        let owners_changed = before.as_ref().is_none_or(|b| b.owners != item.owners);
        if owners_changed && unsettled && !item.going {
            work.push(Work::Delete(uid.to_owned()));
        }
        if let Some(before) = &before {
            // An owner that waits may no longer be blocked by this one.
            for old in before.owners.iter().filter(|o| o.block_owner_deletion == Some(true)) {
                let still = item.owners.iter().any(|o| o.uid == old.uid && o.block_owner_deletion == Some(true));
                if !still {
                    work.extend(self.foreground(&old.uid));
                }
            }
        }
        if item.orphan {
            work.push(Work::Orphan(uid.to_owned()));
        }
        if item.foreground && before.is_none_or(|b| !b.foreground) {
            work.extend(self.dependents_of(uid).into_iter().map(Work::Delete));
            work.push(Work::Delete(uid.to_owned()));
        }
        work
    }

    /// An item is gone; returns what to look at.
    pub fn remove(&mut self, uid: &str) -> Vec<Work> {
        let Some(item) = self.items.remove(uid) else { return Vec::new() };
        if self.items.len() < self.items.capacity() / 4 {
            self.items.shrink_to_fit();
        }
        let mut work = Vec::new();
        for owner in &*item.owners {
            self.unlink(&owner.uid, uid);
            work.extend(self.foreground(&owner.uid));
        }
        work.extend(self.dependents_of(uid).into_iter().map(Work::Delete));
        work
    }

    /// Takes what another dependent of the same owner has, or what the item had before, in place of what is equal to it.
    fn share(&self, uid: &str, item: &mut Item) {
        let sibling = || self.items.get(self.dependents.get(&*item.owners.first()?.uid)?.iter().next()?);
        let Some(other) = self.items.get(uid).or_else(sibling) else { return };
        if other.owners == item.owners {
            item.owners = other.owners.clone();
        }
        if other.place.namespace == item.place.namespace {
            item.place.namespace = other.place.namespace.clone();
        }
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(set) = self.dependents.get_mut(owner) {
            set.remove(dependent);
            if set.is_empty() {
                self.dependents.remove(owner);
            } else if set.len() < set.capacity() / 4 {
                set.shrink_to_fit();
            }
        }
    }

    fn foreground(&self, uid: &str) -> Option<Work> {
        self.items.get(uid).filter(|i| i.foreground).map(|_| Work::Delete(uid.to_owned()))
    }

    pub fn get(&self, uid: &str) -> Option<&Item> {
        self.items.get(uid)
    }

    /// Uids of what names this uid as an owner.
    pub fn dependents_of(&self, uid: &str) -> Vec<String> {
        self.dependents.get(uid).into_iter().flatten().map(|uid| uid.to_string()).collect()
    }

    /// Dependents that keep an owner waiting.
    pub fn blocking(&self, uid: &str) -> Vec<(String, Item)> {
        let dependents = self.dependents.get(uid).into_iter().flatten();
        let items = dependents.filter_map(|d| Some((d.to_string(), self.items.get(d)?.clone())));
        items.filter(|(_, i)| i.owners.iter().any(|o| o.uid == uid && o.block_owner_deletion == Some(true))).collect()
    }

    /// What is known of an owner that `item` names.
    pub fn owner(&self, item: &Item, reference: &OwnerReference) -> Owner {
        let Some(owner) = self.items.get(&*reference.uid) else { return Owner::Unknown };
        let place = &owner.place;
        let reachable = !place.resource.namespaced || place.namespace == item.place.namespace;
        if !reachable || *place.name != *reference.name || place.resource.kind != reference.kind {
            return Owner::Unknown;
        }
        if owner.foreground { Owner::Waiting } else { Owner::Solid }
    }

    /// References from or to an item that has just come, or got other owners, which mean an owner in another namespace: what
    /// refers, its uid, and its reference.
    pub fn misplaced(&self, uid: &str, new: bool) -> Vec<(Item, String, OwnerReference)> {
        let Some(item) = self.items.get(uid) else { return Vec::new() };
        let elsewhere = |dependent: &Item, owner: &Item| {
            owner.place.resource.namespaced && owner.place.namespace != dependent.place.namespace
        };
        let mut found = Vec::new();
        for reference in &*item.owners {
            if self.items.get(&*reference.uid).is_some_and(|owner| elsewhere(item, owner)) {
                found.push((item.clone(), uid.to_owned(), reference.clone()));
            }
        }
        for other in self.dependents.get(uid).into_iter().flatten().filter(|_| new) {
            let Some(dependent) = self.items.get(other).filter(|d| elsewhere(d, item)) else { continue };
            let references = dependent.owners.iter().filter(|o| o.uid == uid);
            found.extend(references.map(|reference| (dependent.clone(), other.to_string(), reference.clone())));
        }
        found
    }

    /// Uids of the items of a resource.
    pub fn of_resource(&self, resource: &ApiResource) -> Vec<String> {
        let of = |item: &Item| std::ptr::eq(&*item.place.resource, resource) || *item.place.resource == *resource;
        self.items.iter().filter(|(_, item)| of(item)).map(|(uid, _)| uid.to_string()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn item(name: &str, owners: &[&str], rest: Value) -> Item {
        let owners: Vec<Value> = owners
            .iter()
            .map(|o| json!({"uid": o, "name": o, "kind": "ConfigMap", "apiVersion": "v1", "blockOwnerDeletion": true}))
            .collect();
        let mut metadata = json!({"name": name, "namespace": "d", "ownerReferences": owners});
        keelson_machinery::patch::merge(&mut metadata, &rest);
        let resource = ApiResource {
            group: String::new(),
            version: "v1".into(),
            kind: "ConfigMap".into(),
            plural: "configmaps".into(),
            namespaced: true,
            verbs: Vec::new(),
        };
        Item::new(Arc::new(resource), &serde_json::from_value(metadata).unwrap())
    }

    fn going(finalizer: &str) -> Value {
        json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [finalizer]})
    }

    #[test]
    fn work_follows_from_changes() {
        let mut graph = Graph::default();
        let delete = |uid: &str| Work::Delete(uid.into());
        assert!(graph.upsert("a", item("a", &[], json!({}))).is_empty());
        assert!(graph.upsert("b", item("b", &["a"], json!({}))).is_empty(), "its owner is there");
        assert_eq!(graph.upsert("c", item("c", &["missing"], json!({}))), [delete("c")]);
        let mut work = graph.upsert("a", item("a", &[], going(FOREGROUND)));
        work.sort();
        assert_eq!(work, [delete("a"), delete("b")], "waits for b");
        assert_eq!(graph.blocking("a").len(), 1);
        assert_eq!(graph.remove("b"), [delete("a")], "a may go");
        assert_eq!(graph.upsert("o", item("o", &[], going(ORPHAN))), [Work::Orphan("o".into())]);
        graph.upsert("p", item("p", &["o"], json!({})));
        assert_eq!(graph.remove("o"), [delete("p")]);
        assert_eq!(graph.dependents_of("o"), ["p"]);
        graph.upsert("p", item("p", &[], json!({})));
        assert!(graph.dependents.is_empty() || !graph.dependents.contains_key("o"));
    }

    #[test]
    fn what_is_equal_is_there_once() {
        let mut graph = Graph::default();
        for (uid, owner) in [("a", "o"), ("b", "o"), ("c", "p")] {
            graph.upsert(uid, item(uid, &[owner], json!({})));
        }
        let owners = |uid: &str| graph.get(uid).unwrap().owners.clone();
        assert!(Arc::ptr_eq(&owners("a"), &owners("b")) && !Arc::ptr_eq(&owners("a"), &owners("c")));
        let before = owners("a");
        graph.upsert("a", item("a", &["o"], going("x")));
        let after = graph.get("a").unwrap();
        assert!(after.going && Arc::ptr_eq(&before, &after.owners));
        graph.upsert("a", item("a", &["o", "p"], json!({})));
        assert_eq!(graph.get("a").unwrap().owners.len(), 2);
    }

    #[test]
    fn an_owner_elsewhere_is_not_the_one_meant() {
        let mut graph = Graph::default();
        graph.upsert("a", item("a", &[], json!({})));
        let mut foreign = item("b", &["a"], json!({}));
        assert_eq!(graph.owner(&foreign, &foreign.owners[0]), Owner::Solid);
        foreign.place.namespace = "other".into();
        assert_eq!(graph.owner(&foreign, &foreign.owners[0]), Owner::Unknown);
        graph.upsert("b", foreign);
        graph.upsert("c", item("c", &["a"], json!({})));
        let names = |found: Vec<(Item, String, OwnerReference)>| {
            found.into_iter().map(|(_, uid, owner)| format!("{uid}>{}", owner.uid)).collect::<Vec<_>>()
        };
        assert_eq!(names(graph.misplaced("b", true)), ["b>a"]);
        assert_eq!(names(graph.misplaced("a", true)), ["b>a"], "the owner came later");
        assert!(graph.misplaced("a", false).is_empty() && graph.misplaced("c", true).is_empty());
    }
}
