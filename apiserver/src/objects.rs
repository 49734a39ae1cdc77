//! Reading Kubernetes objects straight from this member's replica, for the parts of the apiserver that
//! decide (authentication, authorization, admission).

use std::sync::Arc;

use keelson_machinery::resource::ResourceDef;
use keelson_machinery::resources::find;
use keelson_machinery::stored::Stored;
use keelson_store::{KeyRange, Kv};
use serde_json::Value;

/// Reads objects from the replica.
#[derive(Clone)]
pub struct Objects {
    /// The store.
    pub kv: Arc<dyn Kv>,
}

impl Objects {
    /// Store key of an object as bytes.
    pub fn key(def: &ResourceDef, namespace: &str, name: &str) -> bytes::Bytes {
        def.key(namespace, name).into()
    }

    /// An object as this replica has it; `None` also for a value that cannot be read (it is logged).
    pub fn get(&self, def: &ResourceDef, namespace: &str, name: &str) -> Option<Value> {
        let kv = self.kv.view().get(&Self::key(def, namespace, name)).cloned()?;
        read(&kv.value, kv.mod_revision)
    }

    /// An object by group, version and plural.
    pub fn find(&self, group: &str, version: &str, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        self.get(find(group, version, plural)?, namespace, name)
    }

    /// All objects of a resource, of one namespace unless it is "".
    pub fn list(&self, def: &ResourceDef, namespace: &str) -> Vec<Value> {
        let prefix = if namespace.is_empty() { def.prefix() } else { def.key(namespace, "") };
        let view = self.kv.view();
        view.range(&KeyRange::prefix(prefix)).filter_map(|kv| read(&kv.value, kv.mod_revision)).collect()
    }
}

fn read(value: &bytes::Bytes, revision: i64) -> Option<Value> {
    let object = Stored::parse(value).and_then(|stored| stored.to_value(revision));
    object.inspect_err(|error| tracing::error!(revision, %error, "an object cannot be read")).ok()
}
