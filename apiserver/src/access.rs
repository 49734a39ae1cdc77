//! Who asks for what: the types that authentication, authorization and admission share with the pipeline.

use std::collections::BTreeMap;

use keelson_machinery::resource::ResourceDef;
use keelson_machinery::status::Status;
use serde_json::Value;

/// An authenticated user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserInfo {
    /// Name.
    pub name: String,
    /// uid, may be empty.
    pub uid: String,
    /// Groups, `system:authenticated` included.
    pub groups: Vec<String>,
    /// Extra attributes.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// What is asked for, as authorizers see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// get, list, watch, create, update, patch, delete, deletecollection; lower-case HTTP method for non-resource paths.
    pub verb: String,
    /// Group of the resource.
    pub group: String,
    /// Version of the resource.
    pub version: String,
    /// Plural; "" for non-resource requests.
    pub resource: String,
    /// Subresource or "".
    pub subresource: String,
    /// Namespace or "".
    pub namespace: String,
    /// Object name or "".
    pub name: String,
    /// The path, for non-resource requests.
    pub path: String,
    /// Fields that a list or watch asks to be equal to a value.
    pub fields: Vec<(String, String)>,
}

/// An authorizer's word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Yes.
    Allow,
    /// No, whatever others say; with a reason.
    Deny(String),
    /// Not mine to say; with a reason.
    NoOpinion(String),
}

/// Decides whether a user may do something. Called on every request: no I/O, no lock held for long.
pub trait Authorizer: Send + Sync + 'static {
    /// The decision.
    fn authorize(&self, user: &UserInfo, attributes: &Attributes) -> Decision;
}

/// Operation that admission sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Create.
    Create,
    /// Update or patch.
    Update,
    /// Delete.
    Delete,
    /// exec, attach, portforward, proxy.
    Connect,
}

/// What admission looks at and, in the mutating phase, changes.
pub struct Admission<'a> {
    /// Operation.
    pub operation: Operation,
    /// The row.
    pub def: &'static ResourceDef,
    /// Subresource or "".
    pub subresource: &'a str,
    /// Namespace or "".
    pub namespace: &'a str,
    /// Name, may be empty on create.
    pub name: &'a str,
    /// Who asks.
    pub user: &'a UserInfo,
    /// The new object (create, update).
    pub object: Option<&'a mut Value>,
    /// The object as stored (update, delete).
    pub old: Option<&'a Value>,
    /// Whether nothing will be written.
    pub dry_run: bool,
    /// Warning headers to send.
    pub warnings: &'a mut Vec<String>,
}

/// One step of the admission chain: a file and a row in `admission::CHAIN`.
#[async_trait::async_trait]
pub trait AdmissionPlugin: Send + Sync + 'static {
    /// May change the object or refuse.
    async fn mutate(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        let _ = request;
        Ok(())
    }
    /// May refuse.
    async fn validate(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        let _ = request;
        Ok(())
    }
}
