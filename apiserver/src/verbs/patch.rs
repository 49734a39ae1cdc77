//! PATCH: JSON patch, merge patch and strategic merge patch, applied to the object as it is stored.

use std::sync::Mutex;

use http::Response;
use keelson_client::Body;
use keelson_machinery::patch::Touched;
use keelson_machinery::resource::ResourceDef;
use keelson_machinery::status::{Cause, Status};
use keelson_machinery::{cbor, conform, decode, operations, patch, resources, schema, strategic};
use serde_json::{Value, json};

use super::{Call, apply};
use crate::{ApiServer, body, crd, negotiate, options, strategy};

const JSON: &str = "application/json-patch+json";
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
/// Custom resources have no strategic merge patch: their schemas do not say how.
const ACCEPTED_CUSTOM: &str = "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml";

/// A patch, read.
pub(crate) struct Given {
    kind: &'static str,
    value: Value,
    /// What is odd about the patch itself: keys that came twice, fields that operations do not have.
    duplicates: Vec<String>,
}

/// The kind of a request's patch, of those that are not applied; a refusal for what is no patch.
fn kind_of(call: &Call<'_>) -> Result<&'static str, Status> {
    let custom = call.request.def.custom;
    match body::content_type(call.headers) {
        JSON => Ok(JSON),
        MERGE => Ok(MERGE),
        STRATEGIC if !custom => Ok(STRATEGIC),
        _ if custom && negotiate::is_cbor_open() => {
            Err(Status::unsupported_media_type(&format!("{ACCEPTED_CUSTOM}, {}", cbor::APPLY_TYPE)))
        }
        _ if custom => Err(Status::unsupported_media_type(ACCEPTED_CUSTOM)),
        _ => Err(Status::unsupported_patch()),
    }
}

/// Refuses a patch by the name of its kind. Upstream does so first of all, before it looks at what the client accepts.
pub(crate) fn is_known(call: &Call<'_>) -> Result<(), Status> {
    if apply::is_meant(call.headers) { Ok(()) } else { kind_of(call).map(|_| ()) }
}

/// Reads the patch of a request.
pub(crate) fn read(call: &Call<'_>) -> Result<Given, Status> {
    let kind = kind_of(call)?;
    // Of a strategic merge patch the parser's words stand alone.
    let prefix = if kind == STRATEGIC { "" } else { "error decoding patch: " };
    let refused = |why: String| Status::bad_request(format!("{prefix}{why}"));
    let mut decoded = decode::json(call.body).map_err(refused)?;
    // Without anything in it a patch changes nothing; of a merge patch null is none at all.
    match kind {
        JSON if decoded.value.is_null() => decoded.value = json!([]),
        STRATEGIC if decoded.value.is_null() => decoded.value = json!({}),
        _ => {}
    }
    if kind == MERGE && decoded.value.is_null() {
        return Err(Status::bad_request("Invalid JSON Patch"));
    }
    if kind != JSON && !decoded.value.is_object() {
        let found = match decoded.value {
            Value::Array(_) => "array",
            Value::String(_) => "string",
            Value::Bool(_) => "bool",
            _ => "number",
        };
        return Err(refused(format!("json: cannot unmarshal {found} into Go value of type map[string]interface {{}}")));
    }
    let mut told = decoded.duplicates;
    if kind == JSON {
        told.iter_mut().for_each(|text| text.insert_str(0, "json patch "));
        let unknown = operations::unknown_fields(&decoded.value);
        told.extend(unknown.iter().map(|path| format!("json patch unknown field {path:?}")));
    }
    Ok(Given { kind, value: decoded.value, duplicates: told })
}

impl Given {
    /// The object with the patch applied.
    pub(crate) fn apply(&self, def: &ResourceDef, old: &Value) -> Result<Value, Status> {
        let mut new = old.clone();
        match self.kind {
            JSON => patch::json(&mut new, &self.value)?,
            MERGE => patch::merge(&mut new, &self.value),
            _ => strategic::apply(schema::of_kind(def.group, def.version, def.kind), &mut new, &self.value)?,
        }
        Ok(new)
    }

    /// What is to be told of the patch: fields that it brought and nobody knows, keys that came twice.
    pub(crate) fn field_problems(&self, unknown: &[String]) -> Vec<String> {
        super::create::field_problems(unknown, &self.duplicates)
    }

    /// What a patch made of an object, as text.
    fn text(&self, def: &ResourceDef, old: &Value, new: &Value) -> String {
        let touched = match self.kind {
            MERGE => Touched::by_merge(old, &self.value),
            _ => Touched::by_operations(&self.value),
        };
        patch::text(schema::of_kind(def.group, def.version, def.kind), new, Some(&touched))
    }

    /// The refusal of what a patch made of an object; it shows the object, or the patch if that was merged strategically.
    pub(crate) fn refusal(&self, def: &ResourceDef, old: &Value, new: &Value, why: &str) -> Status {
        let shown = if self.kind == STRATEGIC { strategic::go_value(&self.value) } else { self.text(def, old, new) };
        let cause = Cause::invalid("patch", &Value::from(shown), why);
        Status::invalid("", "", "", vec![cause])
    }
}

/// What a patch says an object to be, with the lists and maps that it says to be empty.
pub(crate) fn said(call: &Call<'_>, old: Option<&Value>) -> Option<Value> {
    if apply::is_meant(call.headers) {
        return decode::yaml(call.body).ok().map(|decoded| decoded.value);
    }
    read(call).ok()?.apply(call.request.def, old?).ok()
}

/// What is wrong with the kind that a patch gave an object.
fn other_kind(def: &ResourceDef, new: &Value) -> Option<String> {
    let text = |key: &str| new[key].as_str().unwrap_or_default();
    let (version, kind) = (text("apiVersion"), text("kind"));
    // What is left out is that of the object.
    if (version.is_empty() || version == def.api_version()) && (kind.is_empty() || kind == def.kind) {
        return None;
    }
    let (group, v) = version.split_once('/').unwrap_or(("", version));
    let Some(other) = resources::find_kind(group, v, kind) else {
        return Some(strategy::not_registered(def.group, version, kind));
    };
    let mut copy = new.clone();
    let conversion = strategy::unknown_conversion(&format!("{v}.{kind}"), def);
    Some(conform::conform(other, &mut copy).err().unwrap_or(conversion))
}

impl ApiServer {
    /// Patches an object.
    pub(crate) async fn patch(&self, call: &Call<'_>) -> Result<Response<Body>, Status> {
        if apply::is_meant(call.headers) {
            return self.apply(call).await;
        }
        options::check(call, "PatchOptions", false)?;
        let given = read(call)?;
        let mut warnings = Vec::new();
        let strict = call.request.query.get("fieldValidation") == Some("Strict");
        let unknown = Mutex::new(Vec::new());
        let def = call.request.def;
        self.fresh(None).await?;
        let object = self
            .change(call, &mut warnings, |old, revision| {
                let mut new = given.apply(def, old)?;
                // Made once more if there is something to refuse, not kept for the case that there is.
                let patched = || given.apply(def, old).unwrap_or_default();
                let refused = |why: &str| given.refusal(def, old, &patched(), why);
                // Merged strategically, an object stays of its type, whatever it says.
                if let Some(why) = other_kind(def, &new).filter(|_| !def.custom && given.kind != STRATEGIC) {
                    return Err(refused(&why));
                }
                if def.custom && new["kind"].as_str().is_none_or(str::is_empty) {
                    let why = format!("Object 'Kind' is missing in '{}'", given.text(def, old, &new));
                    return Err(refused(&why));
                }
                let of_other_type = if def.custom { crd::strategy::other_type(def, &new) } else { None };
                new["apiVersion"] = def.api_version().into();
                new["kind"] = def.kind.into();
                let told = strategy::conform_text(call.request, &mut new).map_err(|why| match given.kind {
                    STRATEGIC => refused(&conform::unstructured_error(def, &patched(), why)),
                    _ => refused(&why),
                })?;
                let texts = given.field_problems(&told);
                if strict && !texts.is_empty() {
                    return Err(refused(&format!("strict decoding error: {}", texts.join(", "))));
                }
                if let Ok(mut unknown) = unknown.lock() {
                    *unknown = told;
                }
                strategy::without_namespace(def, &mut new);
                self.fits(call, &mut new, revision)?;
                of_other_type.map_or(Ok(new), Err)
            })
            .await?;
        if !strict {
            let unknown = unknown.into_inner().unwrap_or_default();
            self.check_fields(call, &unknown, &given.duplicates, &mut warnings)?;
        }
        call.answer(200, &object, &warnings)
    }

    /// A patched object is still the one that the request names.
    fn fits(&self, call: &Call<'_>, new: &mut Value, revision: i64) -> Result<(), Status> {
        let request = call.request;
        let text = |key: &str| new["metadata"][key].as_str().unwrap_or_default();
        let (name, namespace, version) = (text("name"), text("namespace"), text("resourceVersion"));
        if name.is_empty() {
            return Err(Status::bad_request(format!(
                "the name of the object ({} based on URL) was undeterminable: name must be provided",
                request.name
            )));
        }
        if name != request.name {
            return Err(Status::bad_request(format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                request.name
            )));
        }
        if !namespace.is_empty() && namespace != request.namespace {
            return Err(Status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        // A resource version in the patch is a precondition; else it is the stored one.
        super::update::same_version(request, version, revision)
    }
}
