//! Objects live only in namespaces that exist; nothing new comes into one that is going; some never go.

use std::borrow::Cow;

use keelson_machinery::resource::Scope;
use keelson_machinery::resources;
use keelson_machinery::status::{Cause, Status};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::access::{Admission, AdmissionPlugin, Operation, Round};
use crate::encryption;
use crate::objects::Objects;

const IMMORTAL: [&str; 3] = ["default", "kube-public", "kube-system"];

pub(super) struct NamespaceLifecycle(pub(super) Objects);

/// What is seen of a namespace.
#[derive(Deserialize)]
struct Seen<'a> {
    #[serde(borrow)]
    metadata: Metadata<'a>,
    #[serde(borrow, default)]
    status: Phase<'a>,
}

#[derive(Deserialize)]
struct Metadata<'a> {
    #[serde(borrow, rename = "deletionTimestamp")]
    deletion_timestamp: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
struct Phase<'a> {
    #[serde(borrow, default)]
    phase: Cow<'a, str>,
}

#[async_trait::async_trait]
impl AdmissionPlugin for NamespaceLifecycle {
    async fn mutate(&self, request: &mut Admission<'_>, _: &mut Round) -> Result<(), Status> {
        let (def, name) = (request.def, request.name);
        if request.operation == Operation::Delete
            && (def.group, def.plural) == ("", "namespaces")
            && IMMORTAL.contains(&name)
        {
            return Err(Status::forbidden("", "namespaces", name, "this namespace may not be deleted"));
        }
        if def.scope != Scope::Namespaced || request.operation != Operation::Create {
            return Ok(());
        }
        let namespace = request.namespace;
        // Access reviews are answers, not objects of the namespace.
        if def.group == "authorization.k8s.io" {
            return Ok(());
        }
        let found = resources::find("", "v1", "namespaces").and_then(|row| self.0.find(row, "", namespace));
        let Some(found) = found else {
            return Err(Status::not_found("", "namespaces", namespace));
        };
        // Looked at for every new object: nothing else is read of it.
        let stored = encryption::stored(&found)?;
        let seen: Seen = serde_json::from_slice(&stored.json).map_err(|why| Status::internal(&why.to_string()))?;
        if seen.status.phase != "Terminating" && seen.metadata.deletion_timestamp.is_none() {
            return Ok(());
        }
        let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
        let mut status = Status::forbidden(def.group, def.plural, name, &why);
        if let Some(details) = &mut status.details {
            details.causes.push(Cause {
                reason: "NamespaceTerminating".into(),
                message: format!("namespace {namespace} is being terminated"),
                field: "metadata.namespace".into(),
            });
        }
        Err(status)
    }
}
