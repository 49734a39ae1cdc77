//! The admission chain: what objects become, and what is refused, between decoding and storing.

mod cache;
mod certificates;
mod classes;
mod escalation;
mod limit_ranger;
mod matching;
mod namespace_lifecycle;
mod node_restriction;
mod pod_security;
mod pods;
mod policies;
pub(crate) mod registration;
pub(crate) mod review;
mod security_checks;
mod service_account;
#[cfg(test)]
mod tests;
mod webhooks;

pub(crate) use limit_ranger::{Amounts, amounts, pod_amounts};

use std::sync::Arc;

use keelson_machinery::status::Status;
use serde_json::Value;

use crate::access::{Admission, AdmissionPlugin};
use crate::authz::Authorization;
use crate::hooks::Hooks;
use crate::objects::Objects;
use crate::{crd, strategy};

/// What plugins are made from.
pub struct Parts {
    /// The replica.
    pub objects: Objects,
    /// For the checks of RBAC writes.
    pub authorization: Arc<Authorization>,
    /// The rows of custom resources.
    pub customs: Arc<crd::Table>,
    /// Calls of webhooks.
    pub hooks: Arc<Hooks>,
}

/// Takes over an object that an extension changed: it is brought into the form of its kind again. Whether it is another.
fn refit(request: &mut Admission<'_>, customs: &crd::Table, mut changed: Value) -> Result<bool, Status> {
    let def = request.def;
    let custom = customs.find(def.group, def.version, def.plural).filter(|_| def.custom);
    let formed = match &custom {
        Some(custom) => crd::strategy::conform(custom, &mut changed),
        None => keelson_machinery::conform::conform(def, &mut changed),
    };
    formed.map_err(|why| {
        Status::internal(&format!("an admission extension made an object that cannot be read: {why}"))
    })?;
    strategy::complete(def, &mut changed, request.old);
    let Some(object) = request.object.as_deref_mut() else { return Ok(false) };
    for key in ["name", "namespace", "uid", "resourceVersion", "managedFields"] {
        if object["metadata"].get(key) != changed["metadata"].get(key) && key != "managedFields" {
            let why = format!("an admission extension changed metadata.{key}");
            return Err(Status::internal(&why));
        }
        if let Some(value) = object["metadata"].get(key) {
            changed["metadata"][key] = value.clone();
        }
    }
    let differs = *object != changed;
    *object = changed;
    Ok(differs)
}

/// Makes a plugin.
pub type Make = fn(&Parts) -> Box<dyn AdmissionPlugin>;

/// The plugins in their order. Adding one is adding a row.
pub const CHAIN: &[(&str, Make)] = &[
    ("NamespaceLifecycle", |parts| Box::new(namespace_lifecycle::NamespaceLifecycle(parts.objects.clone()))),
    ("LimitRanger", |parts| Box::new(limit_ranger::LimitRanger(parts.objects.clone()))),
    ("ServiceAccount", |parts| Box::new(service_account::ServiceAccount(parts.objects.clone()))),
    ("NodeRestriction", |parts| Box::new(node_restriction::NodeRestriction(parts.objects.clone()))),
    ("TaintNodesByCondition", |_| Box::new(pods::TaintNodesByCondition)),
    ("PodSecurity", |parts| Box::new(pod_security::PodSecurity(parts.objects.clone()))),
    ("Priority", |parts| Box::new(pods::Priority(parts.objects.clone()))),
    ("DefaultTolerationSeconds", |_| Box::new(pods::DefaultTolerationSeconds)),
    ("DefaultStorageClass", |parts| Box::new(classes::DefaultStorageClass(parts.objects.clone()))),
    ("StorageObjectInUseProtection", |_| Box::new(classes::StorageObjectInUseProtection)),
    ("PersistentVolumeClaimResize", |parts| Box::new(classes::PersistentVolumeClaimResize(parts.objects.clone()))),
    ("RuntimeClass", |parts| Box::new(classes::RuntimeClass(parts.objects.clone()))),
    ("CertificateApproval", |parts| Box::new(certificates::Approval(parts.authorization.clone()))),
    ("CertificateSigning", |parts| Box::new(certificates::Signing(parts.authorization.clone()))),
    ("CertificateSubjectRestriction", |_| Box::new(certificates::SubjectRestriction)),
    ("DefaultIngressClass", |parts| Box::new(classes::DefaultIngressClass(parts.objects.clone()))),
    ("MutatingAdmissionPolicy", |parts| Box::new(policies::Mutating::new(parts))),
    ("MutatingAdmissionWebhook", |parts| Box::new(webhooks::Mutating::new(parts))),
    ("ValidatingAdmissionPolicy", |parts| Box::new(policies::Validating::new(parts))),
    ("ValidatingAdmissionWebhook", |parts| Box::new(webhooks::Validating::new(parts))),
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
