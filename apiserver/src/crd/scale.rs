//! The scale subresource of custom resources: paths of the definition instead of fixed fields.

use keelson_machinery::fields::go_type;
use keelson_machinery::status::{Cause, Status};
use serde_json::{Value, json};

use super::Custom;

/// The parts of a simple path.
fn parts(path: &str) -> impl Iterator<Item = &str> {
    path.split('.').filter(|p| !p.is_empty())
}

fn at<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    parts(path).try_fold(object, |value, key| value.get(key)).filter(|v| !v.is_null())
}

/// The Scale of an object.
pub fn scale(custom: &Custom, object: &Value) -> Result<Value, Status> {
    let Some([spec, status, selector]) = &custom.version().scale else { return Err(Status::no_such_path()) };
    let metadata = &object["metadata"];
    let mut made = json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": metadata["name"], "uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"],
            "creationTimestamp": metadata["creationTimestamp"],
        },
        "spec": {},
        "status": {"replicas": at(object, status).and_then(Value::as_i64).unwrap_or(0)},
    });
    if metadata["namespace"].is_string() {
        made["metadata"]["namespace"] = metadata["namespace"].clone();
    }
    match at(object, spec).and_then(Value::as_i64) {
        Some(replicas) => made["spec"]["replicas"] = replicas.into(),
        None => return Err(Status::internal(&format!("the spec replicas field {spec:?} does not exist"))),
    }
    if !selector.is_empty() {
        made["status"]["selector"] = at(object, selector).and_then(Value::as_str).unwrap_or_default().into();
        if made["status"]["selector"] == "" {
            made["status"].as_object_mut().map(|m| m.remove("selector"));
        }
    }
    Ok(made)
}

/// Writes the replicas of a Scale into an object.
pub fn set(custom: &Custom, object: &mut Value, replicas: i64) {
    let Some([spec, ..]) = &custom.version().scale else { return };
    let mut value = object;
    for key in parts(spec) {
        if !value.is_object() {
            *value = json!({});
        }
        value = &mut value[key];
    }
    *value = replicas.into();
}

/// Values under the paths that no Scale can have.
pub fn problems(custom: &Custom, object: &Value) -> Vec<Cause> {
    let Some([spec, status, selector]) = &custom.version().scale else { return Vec::new() };
    let mut causes = Vec::new();
    for path in [spec, status] {
        match at(object, path) {
            None => {}
            Some(value) => match value.as_i64() {
                Some(n) if n < 0 => causes.push(Cause::invalid(path, value, "should be a non-negative integer")),
                Some(n) if n > i64::from(i32::MAX) => {
                    causes.push(Cause::invalid(path, value, &format!("should be less than or equal to {}", i32::MAX)));
                }
                Some(_) => {}
                None => {
                    let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                    let why =
                        format!("{path} accessor error: {shown} is of the type {}, expected int64", go_type(value));
                    causes.push(Cause::invalid(path, &json!(0), &why));
                }
            },
        }
    }
    if !selector.is_empty()
        && let Some(value) = at(object, selector)
        && !value.is_string()
    {
        let why = format!("{selector} accessor error: {value} is of the type {}, expected string", go_type(value));
        causes.push(Cause::invalid(selector, &json!(""), &why));
    }
    causes
}
