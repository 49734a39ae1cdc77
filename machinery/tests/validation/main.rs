//! The rules that objects are held to, row by row: what is sent, and every problem that is told of it.

mod changes;
mod core_kinds;
mod devices;
mod groups;
mod migrations;
mod networks;
mod pod_groups;
mod pods;
mod storage;
mod workloads;

use keelson_machinery::{defaults, resources, validation};
use serde_json::{Value, json};

/// All problems of a new object after its defaults, as `field: message`, sorted.
pub fn created(group: &str, plural: &str, object: Value) -> Vec<String> {
    changed(group, plural, "", object, None)
}

/// All problems of a change through a subresource ("": the object itself).
pub fn changed(group: &str, plural: &str, subresource: &str, mut new: Value, old: Option<Value>) -> Vec<String> {
    let def = resources::find(group, "v1", plural)
        .or_else(|| resources::find(group, "v2", plural))
        .or_else(|| resources::find(group, "v1alpha2", plural))
        .or_else(|| resources::find(group, "v1beta1", plural))
        .unwrap_or_else(|| panic!("no row {group}/{plural}"));
    let complete = |object: &mut Value| {
        object["apiVersion"] = def.api_version().into();
        object["kind"] = def.kind.into();
        if object["metadata"]["name"].is_null() {
            object["metadata"]["name"] = "n".into();
        }
        defaults::set(def, object);
    };
    complete(&mut new);
    let old = old.map(|mut old| {
        complete(&mut old);
        old
    });
    let causes = validation::validate(def, subresource, &new, old.as_ref());
    let mut out: Vec<String> = causes.into_iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
    out.sort();
    out
}

/// Compares with what is expected, in any order.
#[track_caller]
pub fn expect(found: Vec<String>, expected: &[&str], what: &Value) {
    let mut expected: Vec<String> = expected.iter().map(|text| (*text).to_owned()).collect();
    expected.sort();
    assert_eq!(found, expected, "{what}");
}

/// A pod whose spec has these fields beside one container.
pub fn pod(fields: Value) -> Value {
    let mut spec = json!({"containers": [{"name": "c", "image": "i"}]});
    for (key, value) in fields.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    json!({"metadata": {"name": "n", "namespace": "d"}, "spec": spec})
}
