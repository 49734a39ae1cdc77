//! Who makes an object another's must be allowed to delete it, and to hold up the owner's deletion.

use std::sync::Arc;

use keelson_machinery::resource::{ResourceDef, Scope};
use keelson_machinery::resources::find_kind;
use keelson_machinery::status::Status;
use serde_json::Value;

use super::Parts;
use crate::access::{Admission, AdmissionPlugin, Attributes, Authorizer, Decision, Operation};
use crate::authz::Authorization;
use crate::crd;

pub(super) struct OwnerReferencesPermissionEnforcement {
    authorization: Arc<Authorization>,
    customs: Arc<crd::Table>,
}

fn text<'a>(of: &'a Value, key: &str) -> &'a str {
    of[key].as_str().unwrap_or_default()
}

fn references(object: Option<&Value>) -> Vec<Value> {
    object.and_then(|object| object["metadata"]["ownerReferences"].as_array()).cloned().unwrap_or_default()
}

impl OwnerReferencesPermissionEnforcement {
    pub(super) fn new(parts: &Parts) -> Self {
        Self { authorization: parts.authorization.clone(), customs: parts.customs.clone() }
    }

    fn may(&self, request: &Admission<'_>, attributes: Attributes, what: &str) -> Result<(), Status> {
        match self.authorization.authorize(request.user, &attributes) {
            Decision::Allow => Ok(()),
            Decision::Deny(why) | Decision::NoOpinion(why) => Err(refuse(request, &format!("{what}: {why}, <nil>"))),
        }
    }

    /// The row of an owner's kind.
    fn row(&self, owner: &Value) -> Option<&'static ResourceDef> {
        let (group, version) = text(owner, "apiVersion").split_once('/').unwrap_or(("", text(owner, "apiVersion")));
        let kind = text(owner, "kind");
        find_kind(group, version, kind).or_else(|| self.customs.find_kind(group, version, kind))
    }
}

fn refuse(request: &Admission<'_>, why: &str) -> Status {
    Status::forbidden(request.def.group, request.def.plural, request.name, why)
}

/// The owners whose end waits for the object, and did not before.
fn newly_blocking<'a>(now: &'a [Value], before: &[Value]) -> Vec<&'a Value> {
    let blocks = |owner: &&Value| owner["blockOwnerDeletion"] == true;
    let known = |owner: &&Value| before.iter().filter(|old| blocks(old)).any(|old| old["uid"] == owner["uid"]);
    now.iter().filter(|owner| blocks(owner) && !known(owner)).collect()
}

#[async_trait::async_trait]
impl AdmissionPlugin for OwnerReferencesPermissionEnforcement {
    async fn validate(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        let written = matches!(request.operation, Operation::Create | Operation::Update);
        let of_pod_status = (request.def.group, request.def.plural, request.subresource) == ("", "pods", "status");
        let (now, before) = (references(request.object.as_deref()), references(request.old));
        if !written || of_pod_status || now == before {
            return Ok(());
        }
        // Everybody can delete what they made.
        if request.operation == Operation::Update {
            self.may(request, request.attributes("delete"), "cannot set an ownerRef on a resource you can't delete")?;
        }
        for owner in newly_blocking(&now, &before) {
            let Some(def) = self.row(owner) else {
                let (version, kind) = (text(owner, "apiVersion"), text(owner, "kind"));
                return Err(refuse(
                    request,
                    &format!(
                        "cannot set blockOwnerDeletion in this case because cannot find RESTMapping for APIVersion {version} \
                         Kind {kind}: no matches for kind {kind:?} in version {version:?}"
                    ),
                ));
            };
            let finalizers = Attributes {
                verb: "update".into(),
                group: def.group.into(),
                version: def.version.into(),
                resource: def.plural.into(),
                subresource: "finalizers".into(),
                namespace: if def.scope == Scope::Namespaced { request.namespace.into() } else { String::new() },
                name: text(owner, "name").into(),
                ..Attributes::default()
            };
            let what =
                "cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on";
            self.may(request, finalizers, what)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_owners_that_begin_to_wait_count() {
        let owner = |uid: &str, blocks: bool| json!({"uid": uid, "blockOwnerDeletion": blocks});
        let uids = |now: &[Value], before: &[Value]| -> Vec<String> {
            newly_blocking(now, before).iter().map(|owner| text(owner, "uid").to_owned()).collect()
        };
        assert_eq!(uids(&[owner("a", true), owner("b", false)], &[]), ["a"]);
        assert_eq!(uids(&[owner("a", true)], &[owner("a", false)]), ["a"]);
        assert!(uids(&[owner("a", true)], &[owner("a", true)]).is_empty());
    }
}
