//! DELETE of one object or of a collection: preconditions, finalizers, graceful deletion of pods.

use http::Response;
use keelson_client::Body;
use keelson_machinery::resource::ResourceDef;
use keelson_machinery::selector::{FieldSelector, LabelSelector};
use keelson_machinery::status::Status;
use serde_json::{Value, json};

use super::Call;
use crate::access::{Admission, Operation};
use crate::objects::{Objects, WriteError};
use crate::request::ResourceRequest;
use crate::{ApiServer, body, crd, respond, services, table};

/// Attempts while other writers come between.
const DELETE_ATTEMPTS: usize = 8;
/// Grace of a pod that says nothing else, seconds.
const DEFAULT_GRACE_SECONDS: i64 = 30;

/// What became of a deletion.
enum Outcome {
    /// The object is gone; as it last was.
    Gone(Value),
    /// The object waits for finalizers or its grace period.
    Waiting(Value),
}

/// Whether the deletion of such an object is answered with the object, as upstream's strategy for it says; of others with
/// a Status.
fn answers_with_object(def: &ResourceDef) -> bool {
    match def.group {
        "" => matches!(
            def.plural,
            "namespaces"
                | "persistentvolumeclaims"
                | "persistentvolumes"
                | "pods"
                | "podtemplates"
                | "resourcequotas"
                | "serviceaccounts"
                | "services"
        ),
        "resource.k8s.io" => true,
        "storage.k8s.io" => def.plural != "csistoragecapacities",
        _ => false,
    }
}

impl ApiServer {
    /// Deletes an object.
    pub(crate) async fn delete(&self, call: &Call<'_>) -> Result<Response<Body>, Status> {
        let options = options(call)?;
        self.fresh(None).await?;
        match self.delete_one(call, call.request, &options).await? {
            Outcome::Waiting(object) => call.answer(200, &object, &[]),
            Outcome::Gone(object) if answers_with_object(call.request.def) => call.answer(200, &object, &[]),
            Outcome::Gone(object) => {
                let (def, uid) = (call.request.def, object["metadata"]["uid"].as_str().unwrap_or_default());
                let mut status = Status::deleted(def.group, def.plural, &call.request.name, uid).to_value();
                // A success carries no code.
                status.as_object_mut().map(|m| m.remove("code"));
                call.answer(200, &status, &[])
            }
        }
    }

    /// Deletes all objects that the selectors choose.
    pub(crate) async fn delete_collection(&self, call: &Call<'_>) -> Result<Response<Body>, Status> {
        let request = call.request;
        let options = options(call)?;
        let labels = LabelSelector::parse(request.query.get("labelSelector").unwrap_or_default())
            .map_err(Status::bad_request)?;
        let fields = FieldSelector::parse(request.def, request.query.get("fieldSelector").unwrap_or_default())
            .map_err(Status::bad_request)?;
        self.fresh(None).await?;
        let view = self.objects.kv.view();
        let mut items = Vec::new();
        for kv in view.range(&Objects::range(request.def, &request.namespace)) {
            let head = request.stored(kv)?.head;
            if !labels.matches(|key| head.label(key)) || !fields.matches(&head) {
                continue;
            }
            let one = ResourceRequest { name: head.name, namespace: head.namespace, ..request.clone() };
            match self.delete_one(call, &one, &options).await {
                Ok(Outcome::Gone(object) | Outcome::Waiting(object)) => items.push(object),
                Err(status) if status.code == 404 => {}
                Err(status) => return Err(status),
            }
        }
        let metadata = json!({"resourceVersion": self.objects.kv.view().revision().to_string()});
        let accepted = call.accepted()?;
        let list = table::list(request.def, accepted, &items, metadata, &request.query)?;
        respond::object(200, accepted.media, &list, call.pretty())
    }

    /// Deletes an object as part of another request.
    pub(crate) async fn delete_named(
        &self,
        call: &Call<'_>,
        request: &ResourceRequest,
        options: &Value,
    ) -> Result<(), Status> {
        self.delete_one(call, request, options).await.map(|_| ())
    }

    async fn delete_one(&self, call: &Call<'_>, request: &ResourceRequest, options: &Value) -> Result<Outcome, Status> {
        let (def, dry_run) = (request.def, call.dry_run()?);
        for _ in 0..DELETE_ATTEMPTS {
            let Some((old, revision)) = self.current(request)? else {
                return Err(Status::not_found(def.group, def.plural, &request.name));
            };
            preconditions(request, options, &old)?;
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
            let waiting = pending(def, options, &old)?;
            if dry_run {
                return Ok(waiting.map_or(Outcome::Gone(old), Outcome::Waiting));
            }
            let result = match &waiting {
                Some(new) if *new == old => return Ok(Outcome::Waiting(old)),
                Some(new) => {
                    self.objects.put(def, &*request.to_store(new)?, revision, call.fence, Default::default()).await
                }
                None => self.objects.delete(def, &old, revision, call.fence, services::release(def, &old)).await,
            };
            match result {
                Ok(now) => {
                    return Ok(match waiting {
                        Some(mut new) => {
                            new["metadata"]["resourceVersion"] = now.to_string().into();
                            Outcome::Waiting(new)
                        }
                        None => Outcome::Gone(old),
                    });
                }
                Err(WriteError::Changed) => {}
                Err(WriteError::Status(status)) => return Err(status),
            }
        }
        Err(Status::modified(def.group, def.plural, &request.name))
    }
}

/// `DeleteOptions` from the body, with those of the query.
fn options(call: &Call<'_>) -> Result<Value, Status> {
    let mut options = if call.body.is_empty() {
        json!({})
    } else {
        body::object(call.headers, call.body, ("v1", "DeleteOptions"))?.value
    };
    let query = &call.request.query;
    if let Some(seconds) = query.number("gracePeriodSeconds")? {
        options["gracePeriodSeconds"] = seconds.into();
    }
    if let Some(policy) = query.get("propagationPolicy") {
        options["propagationPolicy"] = policy.into();
    }
    if query.get("orphanDependents").is_some() {
        options["orphanDependents"] = query.flag("orphanDependents").into();
    }
    if options["ignoreStoreReadErrorWithClusterBreakingPotential"] == true {
        return Err(Status::bad_request(
            "ignoreStoreReadErrorWithClusterBreakingPotential is not supported: heal the member instead",
        ));
    }
    Ok(options)
}

fn preconditions(request: &ResourceRequest, options: &Value, old: &Value) -> Result<(), Status> {
    let metadata = &old["metadata"];
    for (field, label, key) in [("uid", "UID", "uid"), ("resourceVersion", "ResourceVersion", "resourceVersion")] {
        if let Some(wanted) = options["preconditions"][field].as_str()
            && metadata[key] != wanted
        {
            let found = metadata[key].as_str().unwrap_or_default();
            let why =
                format!("Precondition failed: {label} in precondition: {wanted}, {label} in object meta: {found}");
            return Err(Status::conflict(request.def.group, request.def.plural, &request.name, &why));
        }
    }
    Ok(())
}

/// The object as it waits for its deletion, or `None` if it may go at once.
fn pending(def: &ResourceDef, options: &Value, old: &Value) -> Result<Option<Value>, Status> {
    let mut new = old.clone();
    let finalizer = match (options["propagationPolicy"].as_str(), options["orphanDependents"].as_bool()) {
        (Some("Foreground"), _) => Some("foregroundDeletion"),
        (Some("Orphan"), _) | (None, Some(true)) => Some("orphan"),
        // These two leave what they own, unless told otherwise.
        (None, None) if matches!((def.group, def.plural), ("", "replicationcontrollers") | ("batch", "jobs")) => {
            Some("orphan")
        }
        (Some("Background") | None, _) => None,
        (Some(other), _) => {
            return Err(Status::bad_request(format!(
                "propagationPolicy: Unsupported value: {other:?}: supported values: \"Foreground\", \"Background\", \"Orphan\", \"nil\""
            )));
        }
    };
    if let Some(finalizer) = finalizer {
        let mut list = new["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
        if !list.iter().any(|f| f == finalizer) {
            list.push(finalizer.into());
        }
        new["metadata"]["finalizers"] = list.into();
    }
    if crd::is_definition(def) {
        crd::definition::terminate(&mut new);
    }
    let grace = grace(def, options, old);
    let has_finalizers = [&new["metadata"]["finalizers"], &new["spec"]["finalizers"]]
        .iter()
        .any(|list| list.as_array().is_some_and(|l| !l.is_empty()));
    if grace == 0 && !has_finalizers {
        return Ok(None);
    }
    let metadata = &mut new["metadata"];
    let before = metadata["deletionGracePeriodSeconds"].as_i64();
    if metadata["deletionTimestamp"].is_null() || before.is_some_and(|b| grace < b) {
        let at = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(grace);
        metadata["deletionTimestamp"] = at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into();
        metadata["deletionGracePeriodSeconds"] = grace.into();
        if let Some(generation) = metadata["generation"].as_i64() {
            metadata["generation"] = (generation + 1).into();
        }
    }
    if def.plural == "namespaces" {
        new["status"]["phase"] = "Terminating".into();
    }
    Ok(Some(new))
}

/// Seconds of grace: only pods that run on a node get any.
fn grace(def: &ResourceDef, options: &Value, old: &Value) -> i64 {
    let runs = def.plural == "pods"
        && old["spec"]["nodeName"].as_str().is_some_and(|n| !n.is_empty())
        && !matches!(old["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if !runs {
        return 0;
    }
    let own = old["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(DEFAULT_GRACE_SECONDS);
    options["gracePeriodSeconds"].as_i64().unwrap_or(own).max(0)
}
