//! Writes of roles and bindings grant nothing that the writer does not have. It comes before the object is validated: who
//! may not write it is not told what else is wrong with it.

use std::sync::Arc;

use keelson_machinery::status::Status;

use crate::access::{Admission, AdmissionPlugin, Round};
use crate::authz::Authorization;

pub(super) struct Escalation(pub(super) Arc<Authorization>);

#[async_trait::async_trait]
impl AdmissionPlugin for Escalation {
    async fn mutate(&self, request: &mut Admission<'_>, _: &mut Round) -> Result<(), Status> {
        match request.object.as_deref() {
            Some(object) => self.0.check_escalation(request.user, request.def, request.namespace, object, request.old),
            None => Ok(()),
        }
    }
}
