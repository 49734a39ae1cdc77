//! Server-side apply: `PATCH` with `application/apply-patch+yaml`, or `+cbor` if that is there.

use http::{HeaderMap, Response};
use keelson_client::Body;
use keelson_machinery::cbor;
use keelson_machinery::decode::{self, Decoded};
use keelson_machinery::resource::{ResourceDef, Scope};
use keelson_machinery::status::Status;
use serde_json::{Value, json};

use super::Call;
use super::update::{Tracking, same_version};
use crate::request::ResourceRequest;
use crate::{ApiServer, body, crd, negotiate, options, ownership, strategy};

/// The media type of applied configurations.
const MEDIA_TYPE: &str = "application/apply-patch+yaml";

/// Whether a patch is an applied configuration.
pub(crate) fn is_meant(headers: &HeaderMap) -> bool {
    body::content_type(headers) == MEDIA_TYPE || is_cbor(headers)
}

fn is_cbor(headers: &HeaderMap) -> bool {
    negotiate::is_cbor_open() && body::content_type(headers) == cbor::APPLY_TYPE
}

impl ApiServer {
    /// Applies a configuration: changes the object, or creates it.
    pub(crate) async fn apply(&self, call: &Call<'_>) -> Result<Response<Body>, Status> {
        options::check(call, "PatchOptions", true)?;
        let mut warnings = Vec::new();
        let config = read(call, call.request.def, &mut warnings)?;
        let force = call.request.query.flag("force");
        self.fresh(None).await?;
        let (request, def) = (call.request, call.request.def);
        if self.objects.find(def, &request.namespace, &request.name).is_none() {
            return self.apply_new(call, &config, warnings).await;
        }
        let object = self
            .change_tracked(call, &mut warnings, Tracking::Done, |old, revision| {
                let mut new = ownership::apply(call, Some(old), &config, force)?;
                let version = config["metadata"]["resourceVersion"].as_str().unwrap_or_default();
                if !version.is_empty() {
                    same_version(request, version, revision)?;
                }
                strategy::without_namespace(def, &mut new);
                conform(request, &config, &mut new)?;
                Ok(new)
            })
            .await?;
        call.answer(200, &object, &warnings)
    }

    /// Creates the object that a configuration describes.
    async fn apply_new(
        &self,
        call: &Call<'_>,
        config: &Value,
        mut warnings: Vec<String>,
    ) -> Result<Response<Body>, Status> {
        let (request, def) = (call.request, call.request.def);
        if !request.subresource.is_empty() {
            return Err(call.not_found());
        }
        let mut object = ownership::apply(call, None, config, false)?;
        let metadata = &mut object["metadata"];
        if let Some(uid) = metadata["uid"].as_str().filter(|u| !u.is_empty()) {
            let why =
                format!("uid mismatch: the provided object specified uid {uid}, and no existing object was found");
            return Err(Status::conflict(def.group, def.plural, &request.name, &why));
        }
        if metadata["name"].as_str().unwrap_or_default().is_empty() {
            return Err(Status::bad_request(format!(
                "the name of the object ({} based on URL) was undeterminable: name must be provided",
                request.name
            )));
        }
        if let Some(map) = metadata.as_object_mut() {
            map.remove("resourceVersion");
            if def.scope == Scope::Namespaced {
                map.insert("namespace".into(), request.namespace.as_str().into());
            }
        }
        strategy::without_namespace(def, &mut object);
        self.authorize(call.user, &call.attributes("create"))?;
        conform(request, config, &mut object)?;
        let kept = object.clone();
        self.insert(call, (object, &|| Ok(kept.clone())), &mut warnings, Tracking::Done).await
    }
}

/// Brings what came of a configuration into the form of its kind.
fn conform(request: &ResourceRequest, config: &Value, object: &mut Value) -> Result<(), Status> {
    let conformed = match &request.custom {
        Some(custom) => crd::strategy::conform_applied(custom, object),
        None => strategy::conform_text(request, object).map(|_| ()),
    };
    conformed.map_err(|why| ownership::unconvertible(request.def, config, object, why))
}

/// Reads the configuration and checks that it is meant for the object that the request names.
pub(crate) fn read(call: &Call<'_>, def: &ResourceDef, warnings: &mut Vec<String>) -> Result<Value, Status> {
    let request = call.request;
    let converted = |why: &String| format!("error converting YAML to JSON: {why}");
    let decoded = if is_cbor(call.headers) {
        // Upstream calls it YAML here, too. Keys that come twice are refused, whatever is said of strictness.
        let read = cbor::decode(call.body);
        read.map(|value| Decoded { value: if value.is_null() { json!({}) } else { value }, duplicates: Vec::new() })
    } else {
        decode::yaml(call.body).map_err(|why| converted(&why))
    };
    let decoded = decoded.map_err(|why| Status::bad_request(format!("error decoding YAML: {why}")))?;
    if let Some(twice) = decoded.duplicates.first() {
        match request.query.get("fieldValidation") {
            Some("Strict") => {
                return Err(Status::bad_request(format!("error strict decoding YAML: {}", converted(twice))));
            }
            Some("Ignore") => {}
            _ => warnings.push(converted(twice)),
        }
    }
    let mut config = decoded.value;
    if config.is_null() {
        config = json!({});
    }
    if !config.is_object() {
        return Err(Status::bad_request(format!(
            "error decoding YAML: error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {} into Go value of \
             type map[string]interface {{}}",
            body::go_type(&config)
        )));
    }
    let text = |key: &str| config[key].as_str().unwrap_or_default();
    let (version, kind) = (text("apiVersion"), text("kind"));
    if version != def.api_version() || kind != def.kind {
        let (version, kind) = match version.matches('/').count() {
            0 => (format!("/{version}"), kind),
            1 => (version.to_owned(), kind),
            // What is no version is no kind, either.
            _ => ("/".to_owned(), ""),
        };
        return Err(Status::bad_request(format!("invalid object type: {version}, Kind={kind}")));
    }
    if config["metadata"].is_null() {
        config["metadata"] = json!({});
    }
    let Some(metadata) = config["metadata"].as_object() else { return Ok(config) };
    let text = |key: &str| metadata.get(key).and_then(Value::as_str).unwrap_or_default();
    let (name, namespace) = (text("name").to_owned(), text("namespace").to_owned());
    if !name.is_empty() && name != request.name {
        return Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            request.name
        )));
    }
    if def.scope == Scope::Namespaced && !namespace.is_empty() && namespace != request.namespace {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    if metadata.is_empty()
        && let Some(map) = config.as_object_mut()
    {
        map.remove("metadata");
    }
    Ok(config)
}
