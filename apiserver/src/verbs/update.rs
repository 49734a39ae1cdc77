//! PUT: replaces an object or one of its subresources that are parts of it (status).

use http::Response;
use keelson_client::Body;
use keelson_machinery::rules;
use keelson_machinery::status::{Cause, Status};
use serde_json::Value;

use super::Call;
use crate::objects::{Extra, RACE, WriteError};
use crate::request::ResourceRequest;
use crate::{ApiServer, crd, devices, options, ownership, services, strategy};

/// Who keeps `managedFields` of a change up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tracking {
    /// The change compares what was and what is.
    Compare,
    /// The edit has done it.
    Done,
}

/// Attempts of an update that names no resource version.
const UPDATE_ATTEMPTS: usize = 5;

impl ApiServer {
    /// Replaces an object.
    pub(crate) async fn update(&self, call: &Call<'_>) -> Result<Response<Body>, Status> {
        options::check(call, "UpdateOptions", false)?;
        let decoded = call.object()?;
        let mut warnings = Vec::new();
        let mut object = decoded.value;
        if let Err(status) = strategy::fit(call.request, &mut object) {
            return Err(self.misfit(call, object, &decoded.duplicates, status));
        }
        let def = call.request.def;
        let counts_anyway = rules::counts_empty_lists(def) && rules::has_empty_list(&object["spec"]);
        let call = &Call { counts_anyway, ..*call };
        let unknown = strategy::conform_body(call, &mut object)?;
        self.check_fields(call, &unknown, &decoded.duplicates, &mut warnings)?;
        if object["metadata"]["name"].as_str().unwrap_or_default().is_empty() {
            return Err(Status::bad_request(format!(
                "the name of the object ({} based on URL) was undeterminable: name must be provided",
                call.request.name
            )));
        }
        let version = object["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
        let rules = rules::of(def);
        if version.is_empty() && def.custom {
            return Err(crd::strategy::version_required(call.request));
        }
        self.fresh(None).await?;
        if rules.create_on_update && call.request.subresource.is_empty() && self.current(call.request)?.is_none() {
            self.authorize(call.user, &call.attributes("create"))?;
            if let Some(metadata) = object["metadata"].as_object_mut() {
                metadata.remove("resourceVersion");
            }
            let kept = object.clone();
            return self.insert(call, (object, &|| Ok(kept.clone())), &mut warnings, Tracking::Compare).await;
        }
        let object = self
            .change(call, &mut warnings, |old, revision| {
                same_uid(call.request, &object, old)?;
                same_version(call.request, &version, revision)?;
                Ok(object.clone())
            })
            .await;
        match object {
            Ok(object) => call.answer(200, &object, &warnings),
            Err(status) => Err(status.with_warnings(warnings)),
        }
    }

    /// The object that a request names, in its version, with its revision.
    pub(crate) fn current(&self, request: &ResourceRequest) -> Result<Option<(Value, i64)>, Status> {
        let found = self.objects.find(request.def, &request.namespace, &request.name);
        found.map(|kv| Ok((request.value(&kv)?, kv.mod_revision))).transpose()
    }

    /// Reads, changes and writes an object until no other writer comes between. `edit` gets the stored object and its
    /// revision and returns the new one.
    pub(crate) async fn change(
        &self,
        call: &Call<'_>,
        warnings: &mut Vec<String>,
        edit: impl Fn(&Value, i64) -> Result<Value, Status>,
    ) -> Result<Value, Status> {
        self.change_tracked(call, warnings, Tracking::Compare, edit).await
    }

    /// As [`Self::change`], with the ownership of fields kept up as `tracking` says.
    pub(crate) async fn change_tracked(
        &self,
        call: &Call<'_>,
        warnings: &mut Vec<String>,
        tracking: Tracking,
        edit: impl Fn(&Value, i64) -> Result<Value, Status>,
    ) -> Result<Value, Status> {
        let request = call.request;
        let (def, dry_run) = (request.def, call.dry_run()?);
        for _ in 0..UPDATE_ATTEMPTS {
            let Some((old, revision)) = self.current(request)? else {
                return Err(call.not_found());
            };
            let mut new = edit(&old, revision)?;
            strategy::complete(def, &mut new, Some(&old));
            // Of a patch they are looked at after admission only.
            if request.verb == "update" {
                strategy::dedup_owners(&mut new, false, warnings);
            }
            if tracking == Tracking::Compare {
                ownership::track(call, Some(&old), &mut new);
            }
            strategy::prepare_update(request, &old, &mut new, call.counts_anyway);
            let admission = &mut call.admission(&request.name, &mut new, Some(&old), dry_run, warnings);
            self.admit_changes(admission).await?;
            strategy::dedup_owners(&mut new, true, warnings);
            let _turn = self.turns.take(&self.objects, def, &request.namespace).await;
            let mut extra = if request.subresource.is_empty() {
                services::allocate(self, def, &mut new, Some(&old), dry_run)?
            } else {
                Extra::default()
            };
            let mut found = devices::problems(&self.objects, request, &new, Some(&old));
            found.extend(devices::denied(&*self.authorizer, call, &new, &old));
            strategy::check(call, &new, Some(&old), found, warnings)?;
            let admission = &mut call.admission(&request.name, &mut new, Some(&old), dry_run, warnings);
            self.admit_result(admission).await?;
            self.turns.charge(&self.objects, def, &request.subresource, &new, Some(&old), &mut extra)?;
            new["metadata"]["resourceVersion"] = revision.to_string().into();
            ownership::keep_times(&old, &mut new);
            let stale = || {
                let name = new["metadata"]["name"].as_str().unwrap_or_default();
                let kv = self.objects.find(def, &request.namespace, name);
                let custom =
                    |kv: &keelson_store::KeyValue| request.custom.as_ref().is_some_and(|custom| custom.is_stale(kv));
                kv.is_some_and(|kv| crate::encryption::is_stale(def, &kv) || custom(&kv))
            };
            if dry_run || new == old && !stale() {
                return Ok(new);
            }
            let gone = is_released(&new);
            let written = if gone {
                self.objects.delete(def, &new, revision, call.fence, services::release(def, &new)).await
            } else {
                self.objects.put(def, &*request.to_store(&new)?, revision, call.fence, extra).await
            };
            match written {
                Ok(now) => {
                    if !gone {
                        new["metadata"]["resourceVersion"] = now.to_string().into();
                    }
                    return Ok(new);
                }
                Err(WriteError::Changed) => {}
                Err(WriteError::Status(status)) if status.reason == RACE => {}
                Err(WriteError::Status(status)) => return Err(status),
            }
        }
        Err(Status::modified(def.group, def.plural, &request.name))
    }
}

/// An update is meant for the version that it names; for any, if it names none (or 0) and the kind lets it.
pub(crate) fn same_version(request: &ResourceRequest, version: &str, revision: i64) -> Result<(), Status> {
    let (def, name) = (request.def, &request.name);
    match version.parse::<u64>() {
        _ if version == revision.to_string() => Ok(()),
        // Numbers and no others are versions of built-in kinds.
        Err(_) if !version.is_empty() && !def.custom => {
            Err(Status::unknown(format!("strconv.ParseUint: parsing {version:?}: invalid syntax")))
        }
        Ok(1..) => Err(Status::modified(def.group, def.plural, name)),
        Err(_) if !version.is_empty() => Err(Status::modified(def.group, def.plural, name)),
        _ if rules::of(def).unconditional_update && !def.custom => Ok(()),
        _ => {
            let why = "must be specified for an update";
            let cause = Cause::invalid("metadata.resourceVersion", &Value::from(0), why);
            Err(Status::invalid(def.group, def.plural, name, vec![cause]))
        }
    }
}

/// An update that names a uid is meant for that object alone.
pub(crate) fn same_uid(request: &ResourceRequest, new: &Value, old: &Value) -> Result<(), Status> {
    let uid = |object: &Value| object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    let (asked, found) = (uid(new), uid(old));
    if asked.is_empty() || asked == found {
        return Ok(());
    }
    let def = request.def;
    let namespace = if request.namespace.is_empty() { String::new() } else { format!("{}/", request.namespace) };
    let why = format!(
        "StorageError: invalid object, Code: 4, Key: {}/{namespace}{}, ResourceVersion: 0, AdditionalErrorMsg: Precondition \
         failed: UID in precondition: {asked}, UID in object meta: {found}",
        rules::storage_prefix(def),
        request.name
    );
    Err(Status::conflict(def.group, def.plural, &request.name, &why))
}

/// An object that waits for deletion and has lost its last finalizer and grace period goes with this write.
fn is_released(object: &Value) -> bool {
    let metadata = &object["metadata"];
    let list_is_empty = |v: &Value| v.as_array().is_none_or(Vec::is_empty);
    metadata["deletionTimestamp"].is_string()
        && list_is_empty(&metadata["finalizers"])
        && list_is_empty(&object["spec"]["finalizers"])
        && metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
}
