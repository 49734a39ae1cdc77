//! Custom resources: rows of the resource table that CustomResourceDefinitions make at run time.
//!
//! The table of them follows the store: a task watches the definitions and puts an immutable map in place after each
//! change, so a request finds a row with two look-ups and no lock. Built-in rows are looked up first and pay nothing.

mod brief;
mod cells;
pub(crate) mod controller;
mod conversion;
pub(crate) mod definition;
mod names;
pub(crate) mod openapi;
mod row;
pub(crate) mod scale;
pub(crate) mod strategy;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arc_swap::ArcSwap;
use keelson_machinery::resource::ResourceDef;
use keelson_machinery::resources::find;
use keelson_store::KeyRange;
use serde_json::Value;

use crate::hooks::Hooks;
use crate::offered::Offered;

pub use cells::cells;
pub use row::{Custom, Definition};

/// Group of the definitions.
pub(crate) const GROUP: &str = "apiextensions.k8s.io";
/// Plural of the definitions.
pub(crate) const PLURAL: &str = "customresourcedefinitions";

/// Whether a row is that of the definitions.
pub(crate) fn is_definition(def: &ResourceDef) -> bool {
    (def.group, def.plural) == (GROUP, PLURAL)
}

/// The definitions that are served, by group and plural. A change copies the list of groups and one group, not the rest.
type Rows = BTreeMap<Arc<str>, Arc<BTreeMap<Arc<str>, Arc<Definition>>>>;

/// The run-time rows.
#[derive(Default)]
pub struct Table {
    rows: ArcSwap<Rows>,
    hooks: Option<Arc<Hooks>>,
    /// Names of definitions that the server itself provides; they are not in the store.
    own: BTreeSet<String>,
    offered: Offered,
}

impl Table {
    /// A table whose rows convert by webhook, with the server's own definitions, beside the built-in rows that are offered.
    pub(crate) fn new(hooks: Arc<Hooks>, own: Vec<Value>, offered: Offered) -> Result<Self, String> {
        let mut rows = Rows::default();
        let mut names = BTreeSet::new();
        for object in own {
            let definition = Definition::own(object)?;
            let name = definition.name.clone();
            let (plural, group) = name.split_once('.').unwrap_or((&name, ""));
            let group = rows.entry(group.into()).or_default();
            Arc::make_mut(group).insert(plural.into(), Arc::new(definition));
            names.insert(name);
        }
        Ok(Self { rows: ArcSwap::from_pointee(rows), hooks: Some(hooks), own: names, offered })
    }

    /// The row of a group, version and plural, if a definition serves it.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<Custom> {
        let rows = self.rows.load();
        rows.get(group)?.get(plural)?.serve(version)
    }

    /// The row of a kind, if a definition serves it.
    pub fn find_kind(&self, group: &str, version: &str, kind: &str) -> Option<&'static ResourceDef> {
        let rows = self.rows.load();
        let custom = rows.get(group)?.values().filter_map(|definition| definition.serve(version));
        custom.map(|custom| custom.def()).find(|def| def.kind == kind)
    }

    /// The rows of all versions of a resource that are served.
    pub fn versions(&self, group: &str, plural: &str) -> Vec<&'static ResourceDef> {
        let rows = self.rows.load();
        let found = rows.get(group).and_then(|plurals| plurals.get(plural));
        let versions = found.into_iter().flat_map(|definition| &definition.versions);
        versions.filter(|version| version.served).map(|version| version.def).collect()
    }

    /// The groups, sorted, with what is served of them.
    pub fn groups(&self) -> Vec<(String, Vec<Arc<Definition>>)> {
        let rows = self.rows.load();
        rows.iter().map(|(group, plurals)| (group.to_string(), plurals.values().cloned().collect())).collect()
    }

    /// Which built-in rows are served beside these.
    pub(crate) fn offered(&self) -> &Offered {
        &self.offered
    }

    /// What is behind definitions that convert by webhook.
    pub(crate) fn hooks(&self) -> Option<Arc<Hooks>> {
        self.hooks.clone()
    }

    /// Takes over changed definitions by name; `None`: it is gone, or not established.
    pub(crate) fn change(&self, changes: Vec<(String, Option<Definition>)>) {
        let mut rows = (*self.rows.load_full()).clone();
        for (name, definition) in changes {
            if self.own.contains(&name) {
                continue;
            }
            let Some((plural, group)) = name.split_once('.') else { continue };
            let earlier = rows.get(group).and_then(|plurals| plurals.get(plural));
            match definition {
                Some(mut definition) => {
                    earlier.inspect(|earlier| definition.succeed(earlier));
                    let group = rows.entry(group.into()).or_default();
                    Arc::make_mut(group).insert(plural.into(), Arc::new(definition));
                }
                None => {
                    earlier.inspect(|earlier| earlier.ended.cancel());
                    let Some(plurals) = rows.get_mut(group) else { continue };
                    if plurals.contains_key(plural) {
                        Arc::make_mut(plurals).remove(plural);
                    }
                    if plurals.is_empty() {
                        rows.remove(group);
                    }
                }
            }
        }
        self.rows.store(Arc::new(rows));
    }
}

/// Where the definitions are in the store.
pub(crate) fn range() -> KeyRange {
    KeyRange::prefix(find(GROUP, "v1", PLURAL).map(ResourceDef::prefix).unwrap_or_default())
}

/// Versions by priority, as discovery lists them: v2, v1, v2beta1, v1beta1, v1alpha1, then others by name.
pub(crate) fn by_priority(a: &str, b: &str) -> std::cmp::Ordering {
    priority(b).cmp(&priority(a)).then_with(|| a.cmp(b))
}

/// Stability (3: stable, 2: beta, 1: alpha, 0: no Kubernetes version), major and minor number.
fn priority(version: &str) -> (u8, u32, u32) {
    let none = (0, 0, 0);
    let Some(rest) = version.strip_prefix('v') else { return none };
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let Ok(major) = rest[..digits].parse() else { return none };
    let (stability, minor) = match &rest[digits..] {
        "" => return (3, major, 0),
        tail if tail.starts_with("beta") => (2, &tail[4..]),
        tail if tail.starts_with("alpha") => (1, &tail[5..]),
        _ => return none,
    };
    minor.parse().map_or(none, |minor| (stability, major, minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watches_end_when_objects_are_served_in_another_way() {
        let definition = |metadata: Value| {
            let version = serde_json::json!({"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object"}}});
            let mut object = serde_json::json!({"metadata": metadata,
                "spec": {"group": "example.com", "scope": "Cluster", "names": {"plural": "things", "kind": "Thing"},
                    "versions": [version]}});
            object["metadata"]["name"] = "things.example.com".into();
            Some(Definition::own(object).unwrap())
        };
        let table = Table::default();
        let watched = || table.find("example.com", "v1", "things").unwrap().definition.ended.clone();
        let change = |definition| table.change(vec![("things.example.com".to_owned(), definition)]);
        change(definition(serde_json::json!({"generation": 1})));
        let first = watched();
        for same in [
            serde_json::json!({"generation": 1, "labels": {"a": "b"}}),
            serde_json::json!({"generation": 2, "deletionTimestamp": "2026-01-01T00:00:00Z"}),
        ] {
            change(definition(same));
            assert!(!first.is_cancelled(), "nothing changed for who watches");
        }
        change(definition(serde_json::json!({"generation": 2})));
        assert!(first.is_cancelled());
        let second = watched();
        assert!(!second.is_cancelled());
        change(None);
        assert!(second.is_cancelled());
    }

    #[test]
    fn versions_are_ordered() {
        let mut versions = ["foo", "v1beta1", "v2", "v10", "v1alpha2", "v2alpha1", "v1", "v1beta2", "bar"];
        versions.sort_by(|a, b| by_priority(a, b));
        assert_eq!(versions, ["v10", "v2", "v1", "v1beta2", "v1beta1", "v2alpha1", "v1alpha2", "bar", "foo"]);
    }
}
