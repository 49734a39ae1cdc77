//! POST of a new object.

use std::collections::BTreeSet;

use http::Response;
use keelson_client::Body;
use keelson_machinery::decode::{self, Decoded};
use keelson_machinery::status::Status;
use keelson_machinery::{conform, schema};

use serde_json::Value;

use super::Call;
use super::update::Tracking;
use crate::objects::{RACE, WriteError};
use crate::{ApiServer, body, crd, devices, options, ownership, services, strategy};

/// Attempts to find a free generated name.
const GENERATE_NAME_ATTEMPTS: usize = 8;

/// Makes the object of a request once more.
pub(crate) type Again<'a> = &'a (dyn Fn() -> Result<Value, Status> + Sync);

impl ApiServer {
    /// Creates an object.
    pub(crate) async fn create(&self, call: &Call<'_>) -> Result<Response<Body>, Status> {
        if call.request.custom.as_ref().is_some_and(|custom| custom.definition.terminating) {
            return Err(crd::strategy::terminating(call.request));
        }
        options::check(call, "CreateOptions", false)?;
        let decoded = call.object()?;
        let mut warnings = Vec::new();
        let mut object = decoded.value;
        if let Err(status) = strategy::fit(call.request, &mut object) {
            return Err(self.misfit(call, object, &decoded.duplicates, status));
        }
        let unknown = strategy::conform_body(call, &mut object)?;
        self.check_fields(call, &unknown, &decoded.duplicates, &mut warnings)?;
        let again = || {
            let mut object = call.object()?.value;
            strategy::fit(call.request, &mut object)?;
            strategy::conform(call.request, &mut object)?;
            Ok(object)
        };
        let told = self.insert(call, (object, &again), &mut warnings, Tracking::Compare).await;
        told.map_err(|status| status.with_warnings(warnings))
    }

    /// Stores a decoded object as a new one. What it was is made `again` for another attempt, which few need.
    pub(crate) async fn insert(
        &self,
        call: &Call<'_>,
        (object, again): (Value, Again<'_>),
        warnings: &mut Vec<String>,
        tracking: Tracking,
    ) -> Result<Response<Body>, Status> {
        let (def, dry_run) = (call.request.def, call.dry_run()?);
        let generated = object["metadata"]["name"].as_str().unwrap_or_default().is_empty();
        let mut given = Some(object);
        for attempt in 1.. {
            let mut candidate = match given.take() {
                Some(object) => object,
                None => again()?,
            };
            strategy::wipe_system_metadata(&mut candidate);
            strategy::complete(def, &mut candidate, None);
            if tracking == Tracking::Compare {
                strategy::dedup_owners(&mut candidate, false, warnings);
                ownership::track(call, None, &mut candidate);
            }
            strategy::prepare_create(call.request, &mut candidate, warnings)?;
            strategy::record_requester(def, &mut candidate, call.user);
            let name = candidate["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            // Looked at before admission does.
            let home = self.objects.namespace_guard(call.request);
            self.admit_changes(&mut call.admission(&name, &mut candidate, None, dry_run, warnings)).await?;
            strategy::dedup_owners(&mut candidate, true, warnings);
            strategy::settle_status(def, &mut candidate);
            let _turn = self.turns.take(&self.objects, def, &call.request.namespace).await;
            // Addresses are given out before anything is validated, as upstream does.
            let mut extra = services::allocate(self, def, &mut candidate, None, dry_run)?;
            let found = devices::problems(&self.objects, call.request, &candidate, None);
            strategy::check(call, &candidate, None, found, warnings)?;
            self.admit_result(&mut call.admission(&name, &mut candidate, None, dry_run, warnings)).await?;
            self.turns.charge(&self.objects, def, "", &candidate, None, &mut extra)?;
            if dry_run {
                if self.objects.find(def, &call.request.namespace, &name).is_some() {
                    return Err(self.taken(call, &name));
                }
                return call.answer(201, &candidate, warnings);
            }
            extra.lease = self.event_lease(def).await?;
            // First, since the status of the first is told: whatever failed, the next attempt says why.
            extra.guards.splice(0..0, home);
            match self.objects.put(def, &*call.request.to_store(&candidate)?, 0, call.fence, extra).await {
                Ok(revision) => {
                    candidate["metadata"]["resourceVersion"] = revision.to_string().into();
                    return call.answer(201, &candidate, warnings);
                }
                Err(WriteError::Status(status)) if status.reason == RACE && attempt < GENERATE_NAME_ATTEMPTS => {}
                Err(WriteError::Changed) if generated && attempt < GENERATE_NAME_ATTEMPTS => {}
                Err(WriteError::Changed) => return Err(self.taken(call, &name)),
                Err(WriteError::Status(status)) if status.code == 0 => {
                    let why = "it was changed at the same moment";
                    return Err(Status::conflict("", "namespaces", &call.request.namespace, why));
                }
                Err(WriteError::Status(status)) => return Err(status),
            }
        }
        Err(Status::internal("no free name was found"))
    }

    /// The refusal of a body of another version or kind. Of custom resources its fields are looked at first, by the schema
    /// of the version that it says it has.
    pub(crate) fn misfit(&self, call: &Call<'_>, mut object: Value, duplicates: &[String], status: Status) -> Status {
        let Some(custom) = &call.request.custom else { return status };
        let unknown = crd::strategy::unknown_fields(custom, &mut object);
        let mut warnings = Vec::new();
        match self.check_fields(call, &unknown, duplicates, &mut warnings) {
            Ok(()) => status.with_warnings(warnings),
            Err(strict) => strict,
        }
    }

    /// The refusal of a name that another object has.
    fn taken(&self, call: &Call<'_>, name: &str) -> Status {
        let def = call.request.def;
        let mut status = Status::already_exists(def.group, def.plural, name);
        let goes = |object: Value| object["metadata"]["deletionTimestamp"].is_string();
        let found = self.objects.get(def, &call.request.namespace, name).ok().flatten();
        if found.is_some_and(|(object, _)| goes(object)) {
            status.message = format!("object is being deleted: {}", status.message);
        }
        status
    }

    /// Brings a body that is not of the row's kind, but of `kind` (group, version, kind), into its form: that of a subresource,
    /// or of something that is only answered.
    pub(crate) fn conform_as(
        &self,
        call: &Call<'_>,
        (group, version, kind): (&str, &str, &str),
        body: &mut Decoded,
        warnings: &mut Vec<String>,
    ) -> Result<(), Status> {
        let Some(definition) = schema::of_kind(group, version, kind) else { return Ok(()) };
        let refused = |why: &str| {
            Status::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {why}"))
        };
        let told = conform::conform_to(definition, &mut body.value);
        let unknown = told.map_err(|why| refused(&body::with_literal(call.headers, call.body, why)))?;
        self.told_fields(call, &unknown, &body.duplicates, warnings).map_err(|why| refused(&why))
    }

    /// Unknown and duplicate fields are refused with `fieldValidation=Strict`, warned of with `Warn` (the default), else ignored.
    pub(crate) fn check_fields(
        &self,
        call: &Call<'_>,
        unknown: &[String],
        duplicates: &[String],
        warnings: &mut Vec<String>,
    ) -> Result<(), Status> {
        let told = self.told_fields(call, unknown, duplicates, warnings);
        told.map_err(|why| strategy::cannot_be_handled(call.request.def, &why))
    }

    /// As [`Self::check_fields`], with the refusal as text. Other values of `fieldValidation` were refused with the options.
    fn told_fields(
        &self,
        call: &Call<'_>,
        unknown: &[String],
        duplicates: &[String],
        warnings: &mut Vec<String>,
    ) -> Result<(), String> {
        let mut texts = field_problems(unknown, duplicates);
        match body::content_type(call.headers) {
            // Keys that came twice are found while YAML is read, before its fields are looked at.
            kind if kind.contains("yaml") || call.request.def.custom => texts.rotate_left(unknown.len()),
            "application/json" if texts.len() > 1 && call.request.verb != "patch" => {
                texts = decode::in_order(call.body, unknown, duplicates);
            }
            _ => {}
        }
        // A place is told of once, however often its key comes.
        let mut said = BTreeSet::new();
        texts.retain(|text| said.insert(text.clone()));
        match call.request.query.get("fieldValidation") {
            Some("Ignore") => Ok(()),
            Some("Strict") if texts.is_empty() => Ok(()),
            Some("Strict") => Err(format!("strict decoding error: {}", texts.join(", "))),
            _ => {
                warnings.extend(texts);
                Ok(())
            }
        }
    }
}

/// Unknown and duplicate fields in words.
pub(crate) fn field_problems(unknown: &[String], duplicates: &[String]) -> Vec<String> {
    let unknown = unknown.iter().map(|path| format!("unknown field {path:?}"));
    unknown.chain(duplicates.iter().cloned()).collect()
}
