//! Pruning: fields that the schema does not name are taken out.

use serde_json::{Map, Value};

use super::{Additional, Schema, join};
use crate::conform;
use crate::schema;

/// Fields of every object that the schema need not name.
const TYPE_FIELDS: [&str; 3] = ["apiVersion", "kind", "metadata"];
/// Most fields that are told (all are removed).
const MAX_TOLD: usize = 100;
/// Where the metadata's own type is.
const OBJECT_META: &str = "apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// Takes fields out of a whole object that the schema does not know; gives their paths in the order in which they are
/// told: sorted, those of the metadata of embedded objects last.
pub fn prune(schema: &Schema, object: &mut Value) -> Vec<String> {
    let mut gone = Gone::default();
    if let Value::Object(map) = object {
        prune_map(schema, map, "", true, &mut gone);
    }
    gone.fields.sort();
    gone.fields.extend(gone.metadata);
    gone.fields
}

#[derive(Default)]
struct Gone {
    fields: Vec<String>,
    metadata: Vec<String>,
}

impl Gone {
    fn tell(&mut self, path: String) {
        if self.fields.len() < MAX_TOLD {
            self.fields.push(path);
        }
    }
}

fn prune_map(schema: &Schema, map: &mut Map<String, Value>, path: &str, whole: bool, gone: &mut Gone) {
    let open = schema.preserve_unknown || matches!(schema.additional, Some(Additional::Any(true)));
    map.retain(|key, _| {
        let known = (whole && TYPE_FIELDS.contains(&key.as_str())) || schema.field(key).is_some() || open;
        if !known {
            gone.tell(join(path, key));
        }
        known
    });
    for (key, value) in map.iter_mut() {
        let at = join(path, key);
        if whole && key == "metadata" {
            // The root's metadata is brought into form by its own type elsewhere.
            if !path.is_empty() {
                metadata(value, &at, gone);
            }
            continue;
        }
        if let Some(field) = schema.field(key) {
            prune_value(field, value, &at, gone);
        }
    }
}

fn prune_value(schema: &Schema, value: &mut Value, path: &str, gone: &mut Gone) {
    match value {
        Value::Object(map) => prune_map(schema, map, path, schema.embedded, gone),
        Value::Array(list) => {
            if let Some(items) = &schema.items {
                for (index, item) in list.iter_mut().enumerate() {
                    prune_value(items, item, &format!("{path}[{index}]"), gone);
                }
            }
        }
        _ => {}
    }
}

/// The metadata of an embedded object; one that is of no use as such is left for validation to refuse.
fn metadata(value: &mut Value, path: &str, gone: &mut Gone) {
    let Some(definition) = schema::definition(OBJECT_META) else { return };
    if let Ok(unknown) = conform::conform_to(definition, value) {
        gone.metadata.extend(unknown.into_iter().map(|field| join(path, &field)));
    }
}

/// Numbers without a fraction become integers, as the API writes them (`1.0` is `1`).
pub fn integral_numbers(value: &mut Value) {
    /// Up to here a double is exact.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match value {
        Value::Object(map) => map.values_mut().for_each(integral_numbers),
        Value::Array(list) => list.iter_mut().for_each(integral_numbers),
        Value::Number(number) if number.is_f64() => {
            if let Some(n) = number.as_f64().filter(|n| n.fract() == 0.0 && n.abs() <= EXACT) {
                *value = (n as i64).into();
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn unknown_fields_go() {
        let schema = Schema::parse(&json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "a": {"type": "string"}, "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
                "properties": {"shut": {"type": "object"}}},
            "list": {"type": "array", "items": {"type": "object", "properties": {"k": {"type": "string"}}}},
            "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"v": {"type": "string"}}}},
            "whole": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true}
        }}}}));
        let mut object = json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"x": 1}, "junk": 1, "spec": {"a": "1", "b": 2,
            "free": {"any": {"thing": 1}, "shut": {"x": 1}}, "list": [{"k": "1", "z": 2}], "map": {"m": {"v": "1", "w": 2}},
            "whole": {"apiVersion": "v1", "kind": "X", "metadata": {"name": "n", "bogus": 1}, "data": {}}}});
        let told = prune(&schema, &mut object);
        assert_eq!(
            told,
            ["junk", "spec.b", "spec.free.shut.x", "spec.list[0].z", "spec.map.m.w", "spec.whole.metadata.bogus"]
        );
        assert_eq!(
            object,
            json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"x": 1}, "spec": {"a": "1",
                "free": {"any": {"thing": 1}, "shut": {}}, "list": [{"k": "1"}], "map": {"m": {"v": "1"}},
                "whole": {"apiVersion": "v1", "kind": "X", "metadata": {"name": "n"}, "data": {}}}})
        );
    }
}
