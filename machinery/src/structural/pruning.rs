//! Pruning: fields that the schema does not name are taken out.

use serde_json::{Map, Value};

use super::{Additional, Schema, join};
use crate::conform;
use crate::schema;
use crate::status::Cause;

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

/// What keeps an embedded object from being one: a version or kind that is no text, metadata of another form.
pub fn unfit_embedded(schema: &Schema, value: &Value, path: &str) -> Result<(), Cause> {
    if !schema.has_embedded {
        return Ok(());
    }
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let named = schema.properties.contains_key(key);
                let at = if named { join(path, key) } else { format!("{path}[{key}]") };
                if schema.embedded {
                    unfit_part(key, value, &join(path, key))?;
                }
                if let Some(field) = schema.field(key) {
                    unfit_embedded(field, value, &at)?;
                }
            }
            Ok(())
        }
        Value::Array(list) => {
            let Some(items) = &schema.items else { return Ok(()) };
            let mut items =
                list.iter().enumerate().map(|(index, item)| unfit_embedded(items, item, &format!("{path}[{index}]")));
            items.try_for_each(|fits| fits)
        }
        _ => Ok(()),
    }
}

fn unfit_part(key: &str, value: &Value, at: &str) -> Result<(), Cause> {
    match (key, schema::definition(OBJECT_META)) {
        ("apiVersion" | "kind", _) if !value.is_string() => Err(Cause::invalid(at, value, "must be a string")),
        ("metadata", Some(definition)) => conform::conform_to(definition, &mut value.clone())
            .map(|_| ())
            .map_err(|why| Cause::invalid(at, value, &why)),
        _ => Ok(()),
    }
}

/// The metadata of an embedded object; one of another form is left to be refused.
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

    #[test]
    fn embedded_objects_are_such() {
        let whole = json!({"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true});
        let schema = Schema::parse(&json!({"type": "object", "properties": {
            "one": whole, "list": {"type": "array", "items": whole}, "map": {"type": "object", "additionalProperties": whole}}}));
        let labels = "json: cannot unmarshal number into Go struct field ObjectMeta.labels of type string";
        for (value, told) in [
            (json!({"one": {"apiVersion": "v1", "kind": "X", "metadata": {"labels": {"a": "b"}}}}), String::new()),
            (json!({"one": {"kind": 1}}), "one.kind: Invalid value: 1: must be a string".into()),
            (
                json!({"list": [{}, {"metadata": {"labels": {"a": 1}}}]}),
                format!("list[1].metadata: Invalid value: {{\"labels\":{{\"a\":1}}}}: {labels}"),
            ),
            (
                json!({"map": {"k": {"metadata": []}}}),
                "map[k].metadata: Invalid value: []: json: cannot unmarshal array into Go value of type v1.ObjectMeta"
                    .into(),
            ),
        ] {
            let got = unfit_embedded(&schema, &value, "").err();
            let got = got.map_or_else(String::new, |cause| format!("{}: {}", cause.field, cause.message));
            assert_eq!(got, told, "{value}");
        }
    }
}
