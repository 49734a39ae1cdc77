//! The admission chain: what objects become, and what is refused, between decoding and storing.

mod escalation;
mod namespace_lifecycle;
mod node_restriction;
mod pods;
mod service_account;
mod storage;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use keelson_machinery::status::Status;

use crate::access::{Admission, AdmissionPlugin};
use crate::authz::Authorization;
use crate::objects::Objects;

/// What plugins are made from.
pub struct Parts {
    /// The replica.
    pub objects: Objects,
    /// For the checks of RBAC writes.
    pub authorization: Arc<Authorization>,
}

/// Makes a plugin.
pub type Make = fn(&Parts) -> Box<dyn AdmissionPlugin>;

/// The plugins in their order. Adding one is adding a row.
pub const CHAIN: &[(&str, Make)] = &[
    ("NamespaceLifecycle", |parts| Box::new(namespace_lifecycle::NamespaceLifecycle(parts.objects.clone()))),
    ("ServiceAccount", |parts| Box::new(service_account::ServiceAccount(parts.objects.clone()))),
    ("NodeRestriction", |_| Box::new(node_restriction::NodeRestriction)),
    ("TaintNodesByCondition", |_| Box::new(pods::TaintNodesByCondition)),
    ("Priority", |parts| Box::new(pods::Priority(parts.objects.clone()))),
    ("DefaultTolerationSeconds", |_| Box::new(pods::DefaultTolerationSeconds)),
    ("DefaultStorageClass", |parts| Box::new(storage::DefaultStorageClass(parts.objects.clone()))),
    ("StorageObjectInUseProtection", |_| Box::new(storage::InUseProtection)),
    ("RBACEscalation", |parts| Box::new(escalation::Escalation(parts.authorization.clone()))),
];

/// The chain, made.
pub struct Chain(Vec<(&'static str, Box<dyn AdmissionPlugin>)>);

impl Chain {
    /// Makes every plugin of [`CHAIN`].
    pub fn new(parts: &Parts) -> Self {
        Self(CHAIN.iter().map(|(name, make)| (*name, make(parts))).collect())
    }

    /// Lets every plugin change the object, then every plugin refuse it.
    pub async fn admit(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        for (_, plugin) in &self.0 {
            plugin.mutate(request).await?;
        }
        for (_, plugin) in &self.0 {
            plugin.validate(request).await?;
        }
        Ok(())
    }
}
