//! What happens to custom resources between decoding and the store.

use keelson_machinery::conform::conform_to;
use keelson_machinery::resource::{ResourceDef, Scope};
use keelson_machinery::schema;
use keelson_machinery::status::{Cause, Status};
use keelson_machinery::structural::{
    Failure, Schema, apply_defaults, check_rules, drop_forbidden_nulls, duplicates, integral_numbers, prune,
    unfit_embedded, validate,
};
use serde_json::{Value, json};

use super::{Custom, scale};
use crate::request::ResourceRequest;

/// Where the metadata's type is.
const OBJECT_META: &str = "apimachinery.pkg.apis.meta.v1.ObjectMeta";
/// Told when rules of CEL were not checked.
const UNCHECKED: &str = "some validation rules were not checked because the object was invalid; correct the existing errors to \
    complete validation";

/// Refuses a body of another version or kind; a cluster-scoped object loses its namespace.
pub fn fit(request: &ResourceRequest, object: &mut Value) -> Result<(), Status> {
    let def = request.def;
    let text = |key: &str| object[key].as_str().unwrap_or_default().to_owned();
    let (kind, version) = (text("kind"), text("apiVersion"));
    if version != def.api_version() {
        return Err(Status::bad_request(format!(
            "the API version in the data ({version}) does not match the expected API version ({})",
            def.api_version()
        )));
    }
    if kind.is_empty() {
        object["kind"] = def.kind.into();
    } else if kind != def.kind {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let cause = Cause::invalid("kind", &object["kind"], &format!("must be {}", def.kind));
        return Err(Status::invalid(def.group, &kind, name, vec![cause]));
    }
    if def.scope == Scope::Cluster
        && let Some(metadata) = object["metadata"].as_object_mut()
    {
        metadata.remove("namespace");
    }
    Ok(())
}

/// The refusal of a change that makes an object one of another kind or version.
pub fn other_type(def: &ResourceDef, object: &Value) -> Option<Status> {
    let text = |key: &str| object[key].as_str().unwrap_or_default();
    let (version, kind, expected) = (text("apiVersion"), text("kind"), def.api_version());
    let wrong = [("kind", kind, def.kind), ("apiVersion", version, &expected)];
    let wrong = wrong.into_iter().filter(|(_, said, expected)| said != expected);
    let causes: Vec<Cause> = wrong
        .map(|(key, said, expected)| Cause::invalid(key, &Value::from(said), &format!("must be {expected}")))
        .collect();
    let (group, _) = version.split_once('/').unwrap_or_default();
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    (!causes.is_empty()).then(|| Status::invalid(group, kind, name, causes))
}

/// Brings metadata into their form; gives the unknown fields.
fn conform_metadata(object: &mut Value) -> Result<Vec<String>, String> {
    let Some(definition) = schema::definition(OBJECT_META).filter(|_| object.get("metadata").is_some()) else {
        return Ok(Vec::new());
    };
    let unknown = conform_to(definition, &mut object["metadata"])?;
    Ok(unknown.into_iter().map(|field| format!("metadata.{field}")).collect())
}

/// Brings what came of an applied configuration into the form of its schema. It was never read as a body: nulls are left to be
/// refused.
pub fn conform_applied(custom: &Custom, object: &mut Value) -> Result<(), String> {
    conform_metadata(object)?;
    integral_numbers(object);
    apply_defaults(custom.schema(), object);
    Ok(())
}

/// Brings a body into the form of its schema; gives the unknown fields.
pub fn conform(custom: &Custom, object: &mut Value) -> Result<Vec<String>, String> {
    let unknown = conform_metadata(object)?;
    integral_numbers(object);
    let schema = custom.schema();
    let mut pruned = prune(schema, object);
    pruned.extend(unknown);
    drop_forbidden_nulls(schema, object);
    unfit_embedded(schema, object, "").map_err(|cause| format!("{}: {}", cause.field, cause.message))?;
    apply_defaults(schema, object);
    Ok(pruned)
}

/// The unknown fields of a body that says that it is of another version: of one that the definition does not have, all are
/// unknown. Of another kind nothing is known.
pub fn unknown_fields(custom: &Custom, object: &mut Value) -> Vec<String> {
    let definition = &custom.definition;
    let (group, version) = object["apiVersion"].as_str().and_then(|v| v.split_once('/')).unwrap_or_default();
    if group != custom.def().group || object["kind"] != custom.def().kind {
        return Vec::new();
    }
    match definition.versions.iter().position(|known| known.name == version) {
        Some(index) => prune(definition.schema(index), object),
        None => prune(&Schema::default(), object),
    }
}

/// Whether anything but metadata (and status, if it is a subresource) differs: that counts a generation.
pub fn counts_generation(has_status: bool, old: &Value, new: &Value) -> bool {
    let relevant = |key: &str| key != "metadata" && !(has_status && key == "status");
    let part = |object: &Value| {
        let fields = object.as_object().into_iter().flatten().filter(|(key, _)| relevant(key));
        fields.map(|(key, value)| (key.clone(), value.clone())).collect::<serde_json::Map<_, _>>()
    };
    part(old) != part(new)
}

/// Problems of a new object, or of a change: what an update leaves as it was is not held against it.
pub fn check(custom: &Custom, subresource: &str, new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let schema = custom.schema();
    let mut causes = Vec::new();
    let failures: Vec<Failure> = if subresource == "status" {
        match (schema.properties.get("status"), new.get("status")) {
            (Some(part), Some(status)) => validate(part, status, old.and_then(|old| old.get("status")), "status"),
            _ => Vec::new(),
        }
    } else {
        validate(schema, new, old, "")
    };
    let blocked = schema.has_rules && failures.iter().any(Failure::blocks_rules);
    if blocked {
        causes.push(Cause::invalid("<nil>", &Value::Null, UNCHECKED));
    }
    causes.extend(failures.into_iter().map(|f| f.cause));
    causes.extend(new_duplicates(schema, new, old));
    causes.extend(scale::problems(custom, new));
    if schema.has_rules && !blocked {
        causes.extend(check_rules(schema, new, old));
    }
    causes
}

/// Items that are there twice where each may be there once, unless there were such before, whichever they were.
fn new_duplicates(schema: &Schema, new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let of = |object: &Value| {
        let mut causes = Vec::new();
        duplicates(schema, object, "", &mut causes);
        causes
    };
    let causes = of(new);
    let known = !causes.is_empty() && old.is_some_and(|old| !of(old).is_empty());
    if known { Vec::new() } else { causes }
}

/// An update says which version of the object it changes.
pub fn version_required(request: &ResourceRequest) -> Status {
    let cause = Cause::invalid("metadata.resourceVersion", &json!(0), "must be specified for an update");
    Status::invalid(request.def.group, request.def.plural, &request.name, vec![cause])
}

/// The refusal of a create while the definition goes.
pub fn terminating(request: &ResourceRequest) -> Status {
    let def = request.def;
    let mut status = Status::method_not_allowed();
    status.message = format!("create not allowed while custom resource definition is terminating: {}", def.qualified());
    status
}

/// Keeps what an update of the resource or of a subresource may not change.
pub fn prepare_update(def: &keelson_machinery::resource::ResourceDef, subresource: &str, old: &Value, new: &mut Value) {
    if subresource == "status" {
        let (status, managers) = (new.get("status").cloned(), new["metadata"].get("managedFields").cloned());
        let version = new["apiVersion"].clone();
        *new = old.clone();
        new["apiVersion"] = version;
        for (object, key, value) in [("", "status", status), ("metadata", "managedFields", managers)] {
            let target = if object.is_empty() { &mut *new } else { &mut new[object] };
            let Some(map) = target.as_object_mut() else { continue };
            match value {
                Some(value) => map.insert(key.to_owned(), value),
                None => map.remove(key),
            };
        }
    } else if def.has_status {
        keelson_machinery::prepare::keep(new, old, "status");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_that_were_there_twice_may_be_so_again() {
        let schema = Schema::parse(&json!({"type": "object", "properties": {
            "s": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}}}}));
        let list = |items: &[&str]| json!({ "s": items });
        for (new, old, told) in [
            (list(&["a", "a"]), None, 1),
            (list(&["a", "a"]), Some(list(&["a"])), 1),
            (list(&["a", "a"]), Some(list(&["b", "b"])), 0),
        ] {
            assert_eq!(new_duplicates(&schema, &new, old.as_ref()).len(), told, "{new} {old:?}");
        }
    }

    #[test]
    fn a_change_keeps_kind_and_version() {
        let def = keelson_machinery::resources::find("apps", "v1", "deployments").unwrap();
        for (version, kind, expected) in [
            ("apps/v1", "Deployment", None),
            (
                "apps/v1",
                "Other",
                Some("Other.apps \"a\" is invalid: kind: Invalid value: \"Other\": must be Deployment"),
            ),
            (
                "x/v2",
                "Deployment",
                Some("Deployment.x \"a\" is invalid: apiVersion: Invalid value: \"x/v2\": must be apps/v1"),
            ),
        ] {
            let object = json!({"apiVersion": version, "kind": kind, "metadata": {"name": "a"}});
            assert_eq!(other_type(def, &object).map(|status| status.message).as_deref(), expected);
        }
    }
}
