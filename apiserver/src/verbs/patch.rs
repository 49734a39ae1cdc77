//! PATCH: JSON patch, merge patch and strategic merge patch, applied to the object as it is stored.

use std::sync::Mutex;

use http::Response;
use keelson_client::Body;
use keelson_machinery::decode;
use keelson_machinery::patch;
use keelson_machinery::status::{Cause, Status};

use super::{Call, apply};
use crate::{ApiServer, body, options, strategy};

const ACCEPTED: &str =
    "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json";

/// Custom resources have no strategic merge patch: their schemas do not say how.
const ACCEPTED_CUSTOM: &str = "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml";

impl ApiServer {
    /// Patches an object.
    pub(crate) async fn patch(&self, call: &Call<'_>) -> Result<Response<Body>, Status> {
        let kind = body::content_type(call.headers);
        if kind == apply::MEDIA_TYPE {
            return self.apply(call).await;
        }
        options::check(call, "PatchOptions", false)?;
        let accepted = if call.request.def.custom { ACCEPTED_CUSTOM } else { ACCEPTED };
        if !accepted.split(", ").any(|accepted| accepted == kind) {
            return Err(Status::unsupported_media_type(accepted));
        }
        let decoded = decode::json(call.body).map_err(|e| Status::bad_request(format!("error decoding patch: {e}")))?;
        let mut warnings = Vec::new();
        self.check_fields(call, &[], &decoded.duplicates, &mut warnings)?;
        let strict = call.request.query.get("fieldValidation") == Some("Strict");
        let unknown = Mutex::new(Vec::new());
        let def = call.request.def;
        self.fresh(None).await?;
        let object = self
            .change(call, &mut warnings, |old, revision| {
                let mut new = old.clone();
                match kind {
                    "application/json-patch+json" => patch::json(&mut new, &decoded.value)?,
                    "application/merge-patch+json" => patch::merge(&mut new, &decoded.value),
                    _ => patch::strategic(def.kind, &mut new, &decoded.value)?,
                }
                let problem = |why: String| {
                    let cause = Cause::invalid("patch", &serde_json::Value::from(decoded.value.to_string()), &why);
                    Status::invalid("", "", "", vec![cause])
                };
                let told = strategy::conform_text(call.request, &mut new).map_err(problem)?;
                if strict && !told.is_empty() {
                    let list: Vec<String> = told.iter().map(|path| format!("unknown field {path:?}")).collect();
                    return Err(problem(format!("strict decoding error: {}", list.join(", "))));
                }
                if let Ok(mut unknown) = unknown.lock() {
                    *unknown = told;
                }
                if new["kind"] != old["kind"] || new["apiVersion"] != old["apiVersion"] {
                    return Err(Status::bad_request("a patch may not change kind or apiVersion"));
                }
                if new["metadata"]["name"] != old["metadata"]["name"] || !new["metadata"].is_object() {
                    return Err(Status::bad_request("a patch may not change metadata.name"));
                }
                // A resource version in the patch is a precondition; the stored one is in `old`.
                if new["metadata"]["resourceVersion"].as_str().is_some_and(|v| v != revision.to_string()) {
                    return Err(Status::modified(def.group, def.plural, &call.request.name));
                }
                Ok(new)
            })
            .await?;
        if !strict {
            self.check_fields(call, &unknown.into_inner().unwrap_or_default(), &[], &mut warnings)?;
        }
        call.answer(200, &object, &warnings)
    }
}
