//! Reading Kubernetes objects straight from this member's replica, for the parts of the apiserver that
//! decide (authentication, authorization, admission).

use std::sync::Arc;

use keelson_machinery::resource::ResourceDef;
use keelson_store::Kv;

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
}
