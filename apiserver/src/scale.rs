//! The scale subresource of built-in kinds: one number in, one number out.

use std::sync::Mutex;

use http::Response;
use keelson_client::Body;
use keelson_machinery::resource::{ResourceDef, Scope};
use keelson_machinery::status::{Cause, Status};
use keelson_machinery::{conform, validation};
use serde_json::{Value, json};

use crate::verbs::update::{Tracking, same_uid, same_version};
use crate::verbs::{Call, apply, patch};
use crate::{ApiServer, options, ownership, strategy};

/// The kind of its bodies.
const SCALE: ResourceDef = ResourceDef {
    group: "autoscaling",
    version: "v1",
    kind: "Scale",
    list_kind: "",
    plural: "scales",
    singular: "scale",
    short_names: &[],
    categories: &[],
    scope: Scope::Namespaced,
    verbs: &[],
    subresources: &[],
    selectable_fields: &[],
    has_status: true,
    custom: false,
    columns: &[],
};

/// The Scale of an object: by the paths of its definition, or by the usual fields.
pub fn of(call: &Call<'_>, object: &Value) -> Result<Value, Status> {
    match &call.request.custom {
        Some(custom) => crate::crd::scale::scale(custom, object),
        None => Ok(built_in(object)),
    }
}

fn built_in(object: &Value) -> Value {
    let metadata = &object["metadata"];
    let mut scale = json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"], "creationTimestamp": metadata["creationTimestamp"],
        },
        "spec": {},
        "status": {"replicas": object["status"]["replicas"].as_i64().unwrap_or(0)},
    });
    let replicas = object["spec"]["replicas"].as_i64().unwrap_or(0);
    if replicas != 0 {
        scale["spec"]["replicas"] = replicas.into();
    }
    let selector = selector(&object["spec"]["selector"]);
    if !selector.is_empty() {
        scale["status"]["selector"] = selector.into();
    }
    scale
}

/// A selector as text, its requirements sorted by key; of a ReplicationController it is a plain map.
fn selector(selector: &Value) -> String {
    let is_plain = !selector["matchLabels"].is_object() && !selector["matchExpressions"].is_array();
    let labels = if is_plain { selector } else { &selector["matchLabels"] };
    let mut parts: Vec<(String, String)> = Vec::new();
    for (key, value) in labels.as_object().into_iter().flatten() {
        parts.push((key.clone(), format!("{key}={}", value.as_str().unwrap_or_default())));
    }
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = expression["key"].as_str().unwrap_or_default();
        let mut values: Vec<&str> =
            expression["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let values = values.join(",");
        let text = match expression["operator"].as_str().unwrap_or_default() {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        };
        parts.push((key.to_owned(), text));
    }
    parts.sort_by(|a, b| a.0.cmp(&b.0));
    parts.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(",")
}

/// Changes an object's replicas through its Scale.
pub async fn set(server: &ApiServer, call: &Call<'_>) -> Result<Response<Body>, Status> {
    let is_patch = call.request.verb == "patch";
    if is_patch && apply::is_meant(call.headers) {
        return set_by_apply(server, call).await;
    }
    options::check(call, if is_patch { "PatchOptions" } else { "UpdateOptions" }, false)?;
    let given = is_patch.then(|| patch::read(call)).transpose()?;
    let mut warnings = Vec::new();
    let input = if is_patch { Value::Null } else { read(server, call, &mut warnings)? };
    server.fresh(None).await?;
    let told = Mutex::new(Vec::new());
    let object = server
        .change(call, &mut warnings, |old, revision| {
            let after = match &given {
                Some(given) => {
                    let (after, found) = patched(call, given, &of(call, old)?)?;
                    if let Ok(mut told) = told.lock() {
                        *told = found;
                    }
                    after
                }
                None => {
                    same_uid(call.request, &input, old)?;
                    input.clone()
                }
            };
            write(call, old, &after, revision)
        })
        .await?;
    if call.request.query.get("fieldValidation") != Some("Ignore") {
        warnings.extend(told.into_inner().unwrap_or_default());
    }
    call.answer(200, &of(call, &object)?, &warnings)
}

/// A Scale with a patch applied, and what is odd about the patch, which is refused if the request is strict.
fn patched(call: &Call<'_>, given: &patch::Given, before: &Value) -> Result<(Value, Vec<String>), Status> {
    let mut after = given.apply(&SCALE, before)?;
    let whole = after.clone();
    let refused = |why: &str| given.refusal(&SCALE, before, &whole, why);
    let unknown = conform::conform(&SCALE, &mut after).map_err(|why| refused(&why))?;
    let told = given.field_problems(&unknown);
    if call.request.query.get("fieldValidation") == Some("Strict") && !told.is_empty() {
        return Err(refused(&format!("strict decoding error: {}", told.join(", "))));
    }
    Ok((after, told))
}

/// Applies a Scale: the replicas of the object belong to the applier.
async fn set_by_apply(server: &ApiServer, call: &Call<'_>) -> Result<Response<Body>, Status> {
    options::check(call, "PatchOptions", true)?;
    let mut warnings = Vec::new();
    let config = apply::read(call, &SCALE, &mut warnings)?;
    let def = call.request.def;
    let replicas = config["spec"]["replicas"].as_i64();
    let mut part = json!({"apiVersion": def.api_version(), "kind": def.kind});
    match (&call.request.custom, replicas) {
        (Some(custom), Some(replicas)) => crate::crd::scale::set(custom, &mut part, replicas),
        (None, Some(replicas)) => part["spec"] = json!({"replicas": replicas}),
        (_, None) => {}
    }
    let force = call.request.query.flag("force");
    let object = server
        .change_tracked(call, &mut warnings, Tracking::Done, |old, revision| {
            // Refuses what may not be written. What is applied need not say its name again.
            let mut scale = config.clone();
            if scale["metadata"]["name"].as_str().unwrap_or_default().is_empty() {
                scale["metadata"]["name"] = call.request.name.as_str().into();
            }
            write(call, old, &scale, revision)?;
            ownership::apply(call, Some(old), &part, force).map_err(|status| as_of_scale(status, &def.api_version()))
        })
        .await?;
    call.answer(200, &of(call, &object)?, &warnings)
}

/// A refusal in which others own the field of the Scale, not that of the object behind it.
fn as_of_scale(mut status: Status, version: &str) -> Status {
    const PATH: &str = ".spec.replicas";
    let named = |text: &str| text.replace(&format!(" using {version}"), " using autoscaling/v1");
    let mut paths = Vec::new();
    for cause in status.details.iter_mut().flat_map(|d| d.causes.iter_mut()) {
        cause.message = named(&cause.message);
        paths.push(std::mem::replace(&mut cause.field, PATH.into()));
    }
    status.message = paths.iter().fold(named(&status.message), |text, path| text.replace(path, PATH));
    status
}

/// Reads the Scale of an update.
fn read(server: &ApiServer, call: &Call<'_>, warnings: &mut Vec<String>) -> Result<Value, Status> {
    let mut body = call.object()?;
    let text = |key: &str| body.value[key].as_str().unwrap_or_default();
    let (version, kind) = (text("apiVersion"), text("kind"));
    if !(version.is_empty() && kind.is_empty()) && (version, kind) != ("autoscaling/v1", "Scale") {
        return Err(strategy::other_kind(&SCALE, version, kind));
    }
    server.conform_as(call, (SCALE.group, SCALE.version, SCALE.kind), &mut body, warnings)?;
    let input = body.value;
    let text = |key: &str| input["metadata"][key].as_str().unwrap_or_default();
    let (name, namespace, asked) = (text("name"), text("namespace"), &call.request.name);
    if !namespace.is_empty() && namespace != call.request.namespace {
        let why = "the namespace of the provided object does not match the namespace sent on the request";
        return Err(Status::bad_request(why));
    }
    if name.is_empty() {
        let why = "was undeterminable: name must be provided";
        return Err(Status::bad_request(format!("the name of the object ({asked} based on URL) {why}")));
    }
    if name != asked {
        let why = format!("the name of the object ({name}) does not match the name on the URL ({asked})");
        return Err(Status::bad_request(why));
    }
    Ok(input)
}

/// The object with the replicas of a Scale.
fn write(call: &Call<'_>, old: &Value, scale: &Value, revision: i64) -> Result<Value, Status> {
    let def = call.request.def;
    let version = scale["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
    // A custom resource says by its schema, and by the paths of its scale, what it takes.
    if call.request.custom.is_none() {
        let mut causes = validation::metadata(&scale["metadata"]);
        if replicas < 0 {
            causes.push(Cause::invalid("spec.replicas", &json!(replicas), "must be greater than or equal to 0"));
        }
        if !causes.is_empty() {
            return Err(Status::invalid("autoscaling", "Scale", &call.request.name, causes));
        }
    }
    let uid = |metadata: &Value| metadata["uid"].as_str().unwrap_or_default().to_owned();
    let (asked, found) = (uid(&scale["metadata"]), uid(&old["metadata"]));
    if !asked.is_empty() && asked != found {
        let why = format!("Precondition failed: UID in precondition: {asked}, UID in object meta: {found}");
        return Err(Status::conflict(def.group, &format!("{}/scale", def.plural), &call.request.name, &why));
    }
    // The object behind it may be of a kind that needs one; a Scale need not say which.
    if !version.is_empty() {
        same_version(call.request, version, revision)?;
    }
    let mut new = old.clone();
    match &call.request.custom {
        Some(custom) => crate::crd::scale::set(custom, &mut new, replicas),
        None => new["spec"]["replicas"] = replicas.into(),
    }
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::selector;
    use serde_json::json;

    #[test]
    fn selectors_are_written_by_key() {
        for (given, expected) in [
            (json!({"app": "web"}), "app=web"),
            (
                json!({"matchLabels": {"b": "1"}, "matchExpressions": [{"key": "c", "operator": "NotIn", "values": ["y", "x"]},
                    {"key": "a", "operator": "DoesNotExist"}]}),
                "!a,b=1,c notin (x,y)",
            ),
            (json!(null), ""),
        ] {
            assert_eq!(selector(&given), expected);
        }
    }
}
