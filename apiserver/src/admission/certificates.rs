//! Certificates: approving and signing need a right on the signer, and nobody becomes a master by certificate.

use std::sync::Arc;

use keelson_machinery::status::Status;
use serde_json::Value;

use crate::access::{Admission, AdmissionPlugin, Attributes, Authorizer, Decision, Operation};
use crate::authz::{Authorization, MASTERS};
use crate::certificates::{is_request, organizations};

fn refuse(request: &Admission<'_>, why: &str) -> Status {
    Status::forbidden(request.def.group, request.def.plural, request.name, why)
}

/// Whether the user may do something with a signer, or with all signers of its domain.
fn may(authorization: &Authorization, request: &Admission<'_>, verb: &str, signer: &str) -> bool {
    let domain = signer.split('/').next().unwrap_or_default();
    [signer.to_owned(), format!("{domain}/*")].into_iter().any(|name| {
        let attributes = Attributes {
            verb: verb.into(),
            group: "certificates.k8s.io".into(),
            version: "*".into(),
            resource: "signers".into(),
            name,
            ..Attributes::default()
        };
        authorization.authorize(request.user, &attributes) == Decision::Allow
    })
}

fn signer_of<'a>(request: &'a Admission<'_>) -> &'a str {
    request.old.and_then(|old| old["spec"]["signerName"].as_str()).unwrap_or_default()
}

pub(super) struct Approval(pub(super) Arc<Authorization>);

#[async_trait::async_trait]
impl AdmissionPlugin for Approval {
    async fn validate(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        if !is_request(request.def) || request.subresource != "approval" || request.operation != Operation::Update {
            return Ok(());
        }
        let signer = signer_of(request);
        if may(&self.0, request, "approve", signer) {
            return Ok(());
        }
        Err(refuse(request, &format!("user not permitted to approve requests with signerName {signer:?}")))
    }
}

pub(super) struct Signing(pub(super) Arc<Authorization>);

#[async_trait::async_trait]
impl AdmissionPlugin for Signing {
    async fn validate(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        if !is_request(request.def) || request.subresource != "status" || request.operation != Operation::Update {
            return Ok(());
        }
        let part = |object: Option<&Value>, key: &str| object.map(|o| o["status"][key].clone());
        let (new, old) = (request.object.as_deref(), request.old);
        // A status that says nothing new about the certificate needs no right to sign.
        if ["certificate", "conditions"].iter().all(|key| part(new, key) == part(old, key)) {
            return Ok(());
        }
        let signer = signer_of(request);
        if may(&self.0, request, "sign", signer) {
            return Ok(());
        }
        Err(refuse(request, &format!("user not permitted to sign requests with signerName {signer:?}")))
    }
}

pub(super) struct SubjectRestriction;

#[async_trait::async_trait]
impl AdmissionPlugin for SubjectRestriction {
    async fn validate(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        let Some(object) = request.object.as_deref() else { return Ok(()) };
        let relevant = is_request(request.def)
            && request.operation == Operation::Create
            && object["spec"]["signerName"] == "kubernetes.io/kube-apiserver-client";
        if relevant && organizations(object).iter().any(|group| group == MASTERS) {
            let why = "use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed";
            return Err(refuse(request, why));
        }
        Ok(())
    }
}
