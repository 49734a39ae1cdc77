//! Objects live only in namespaces that exist; nothing new comes into one that is going; some never go.

use keelson_machinery::resource::Scope;
use keelson_machinery::status::{Cause, Status};

use crate::access::{Admission, AdmissionPlugin, Operation, Round};
use crate::objects::Objects;

const IMMORTAL: [&str; 3] = ["default", "kube-public", "kube-system"];

pub(super) struct NamespaceLifecycle(pub(super) Objects);

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
        let Some(object) = self.0.object("", "v1", "namespaces", "", namespace) else {
            return Err(Status::not_found("", "namespaces", namespace));
        };
        if object["status"]["phase"] != "Terminating" && object["metadata"].get("deletionTimestamp").is_none() {
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
