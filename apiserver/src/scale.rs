//! The scale subresource of built-in kinds: one number in, one number out.

use http::Response;
use keelson_client::Body;
use keelson_machinery::resource::{ResourceDef, Scope};
use keelson_machinery::status::{Cause, Status};
use serde_json::{Value, json};

use crate::verbs::update::Tracking;
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
    let input = if is_patch { Value::Null } else { read(call)? };
    let mut warnings = Vec::new();
    let object = server
        .change(call, &mut warnings, |old, revision| {
            let before = of(call, old)?;
            let after = match &given {
                Some(given) => given.apply(&SCALE, &before)?,
                None => input.clone(),
            };
            write(call, old, &after, revision)
        })
        .await?;
    call.answer(200, &of(call, &object)?, &warnings)
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
            // Refuses what may not be written.
            write(call, old, &config, revision)?;
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
fn read(call: &Call<'_>) -> Result<Value, Status> {
    let mut input = call.object()?.value;
    let text = |key: &str| input[key].as_str().unwrap_or_default();
    let (version, kind) = (text("apiVersion"), text("kind"));
    if !(version.is_empty() && kind.is_empty()) && (version, kind) != ("autoscaling/v1", "Scale") {
        return Err(strategy::other_kind(&SCALE, version, kind));
    }
    keelson_machinery::conform::conform(&SCALE, &mut input).map_err(|why| strategy::cannot_be_handled(&SCALE, &why))?;
    let name = input["metadata"]["name"].as_str().unwrap_or_default();
    if name != call.request.name {
        return Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            call.request.name
        )));
    }
    Ok(input)
}

/// The object with the replicas of a Scale.
fn write(call: &Call<'_>, old: &Value, scale: &Value, revision: i64) -> Result<Value, Status> {
    let def = call.request.def;
    let version = scale["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
    // A custom resource says by its schema, and by the paths of its scale, what it takes.
    if replicas < 0 && call.request.custom.is_none() {
        let cause = Cause::invalid("spec.replicas", &json!(replicas), "must be greater than or equal to 0");
        return Err(Status::invalid("autoscaling", "Scale", &call.request.name, vec![cause]));
    }
    if !version.is_empty() && version != revision.to_string() {
        return Err(Status::modified(def.group, def.plural, &call.request.name));
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
