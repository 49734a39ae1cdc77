//! DELETE of one object or of a collection: preconditions, finalizers, graceful deletion of pods.

use http::Response;
use keelson_client::Body;
use keelson_machinery::rules;
use keelson_machinery::status::Status;
use serde_json::Value;

use super::Call;
use super::list::Selectors;
use crate::access::{Admission, Operation};
use crate::deletion::{self, Plan};
use crate::objects::WriteError;
use crate::request::ResourceRequest;
use crate::{ApiServer, listing, respond, services, table};

/// Attempts while other writers come between.
const DELETE_ATTEMPTS: usize = 8;

/// What became of a deletion.
enum Outcome {
    /// The object is gone; as it last was.
    Gone(Value),
    /// The object waits for finalizers or its grace period.
    Waiting(Value),
}

impl ApiServer {
    /// Deletes an object.
    pub(crate) async fn delete(&self, call: &Call<'_>) -> Result<Response<Body>, Status> {
        let options = deletion::read_options(call)?;
        self.fresh(None).await?;
        let def = call.request.def;
        match self.delete_one(call, call.request, &options).await? {
            Outcome::Waiting(object) => call.answer(deletion::code(&options, false), &object, &[]),
            Outcome::Gone(object) if rules::of(def).answers_deleted => call.answer(200, &object, &[]),
            Outcome::Gone(object) => {
                let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
                let mut status = Status::deleted(def.group, def.plural, &call.request.name, uid).to_value();
                // A success carries no code.
                status.as_object_mut().map(|m| m.remove("code"));
                call.answer(200, &status, &[])
            }
        }
    }

    /// Deletes the object that a request names with options of another's.
    pub(crate) async fn delete_with(&self, call: &Call<'_>, options: &Value) -> Result<(), Status> {
        self.delete_one(call, call.request, options).await.map(|_| ())
    }

    /// Deletes all objects that the selectors choose, or those of a page of them. The answer shows them as they were found.
    pub(crate) async fn delete_collection(&self, call: &Call<'_>) -> Result<Response<Body>, Status> {
        let request = call.request;
        listing::check(request)?;
        Selectors::of(request)?;
        let options = deletion::read_options(call)?;
        let page = self.page(call).await?;
        let mut items = Vec::with_capacity(page.items.len());
        for (kv, stored) in &page.items {
            let (name, namespace) = (stored.head.name.clone(), stored.head.namespace.clone());
            let one = ResourceRequest { name, namespace, ..request.clone() };
            items.push(request.value(kv)?);
            match self.delete_one(call, &one, &options).await {
                // Whoever deleted it meanwhile has done it.
                Err(status) if status.code != 404 => return Err(status),
                _ => {}
            }
        }
        let accepted = call.accepted()?;
        let list = table::list(request.def, accepted, &items, page.metadata(request.def, accepted), &request.query)?;
        respond::object(200, accepted.media, &list, call.pretty())
    }

    async fn delete_one(&self, call: &Call<'_>, request: &ResourceRequest, options: &Value) -> Result<Outcome, Status> {
        let (def, dry_run) = (request.def, deletion::is_dry_run(options));
        deletion::allowed(def, &request.name)?;
        // The object as this deletion marked it: whoever watches may remove it before this does.
        let mut marked: Option<Value> = None;
        for _ in 0..DELETE_ATTEMPTS {
            let current = self.current(request)?;
            if let Some(mine) = marked.take_if(|mine| !is_same(current.as_ref().map(|(now, _)| now), mine)) {
                return Ok(Outcome::Gone(mine));
            }
            let Some((old, revision)) = current else {
                return Err(Status::not_found(def.group, def.plural, &request.name));
            };
            deletion::preconditions(def, options, &old)?;
            let mut warnings = Vec::new();
            let mut admission = Admission {
                operation: Operation::Delete,
                def,
                subresource: "",
                namespace: &request.namespace,
                name: &request.name,
                user: call.user,
                object: None,
                old: Some(&old),
                dry_run,
                warnings: &mut warnings,
            };
            self.admit(&mut admission).await?;
            let plan = deletion::plan(def, options, &old, jiff::Timestamp::now());
            if dry_run {
                return Ok(match plan {
                    Plan::Wait => Outcome::Waiting(old),
                    Plan::Mark(new) => Outcome::Waiting(new),
                    Plan::MarkAndRemove(new) => Outcome::Gone(new),
                    Plan::Remove => Outcome::Gone(old),
                });
            }
            match self.carry_out(call, request, plan, (old, revision), &mut marked).await {
                Ok(outcome) => return Ok(outcome),
                Err(WriteError::Changed) => {}
                Err(WriteError::Status(status)) => return Err(status),
            }
        }
        Err(Status::modified(def.group, def.plural, &request.name))
    }

    /// Writes what was decided, if the object is still as it was read. What is written before the removal goes into `mark`.
    async fn carry_out(
        &self,
        call: &Call<'_>,
        request: &ResourceRequest,
        plan: Plan,
        (old, revision): (Value, i64),
        mark: &mut Option<Value>,
    ) -> Result<Outcome, WriteError> {
        let def = request.def;
        let marked = match plan {
            Plan::Wait => return Ok(Outcome::Waiting(old)),
            Plan::Remove => {
                let now = self.objects.delete(def, &old, revision, call.fence, services::release(def, &old)).await?;
                return Ok(Outcome::Gone(at_revision(old, now)));
            }
            Plan::Mark(ref new) | Plan::MarkAndRemove(ref new) => new.clone(),
        };
        let stored = request.to_store(&marked).map_err(WriteError::Status)?;
        let now = self.objects.put(def, &stored, revision, call.fence, Default::default()).await?;
        let marked = at_revision(marked, now);
        if matches!(plan, Plan::Mark(_)) {
            return Ok(Outcome::Waiting(marked));
        }
        *mark = Some(marked.clone());
        let now = self.objects.delete(def, &marked, now, call.fence, services::release(def, &marked)).await?;
        Ok(Outcome::Gone(at_revision(marked, now)))
    }
}

/// Whether what is there now is the object that was marked, and not another of its name.
fn is_same(now: Option<&Value>, marked: &Value) -> bool {
    now.is_some_and(|now| now["metadata"]["uid"] == marked["metadata"]["uid"])
}

fn at_revision(mut object: Value, revision: i64) -> Value {
    object["metadata"]["resourceVersion"] = revision.to_string().into();
    object
}
