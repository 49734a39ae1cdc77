//! List types: sets hold each value once, maps each key once.

use serde_json::{Map, Value};

use super::{Schema, join};
use crate::status::Cause;

/// Items of sets and maps that are there twice.
pub fn duplicates(schema: &Schema, value: &Value, path: &str, causes: &mut Vec<Cause>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                if let Some(field) = schema.field(key) {
                    let at =
                        if schema.properties.contains_key(key) { join(path, key) } else { format!("{path}[{key}]") };
                    duplicates(field, value, &at, causes);
                }
            }
        }
        Value::Array(list) => {
            let Some(items) = &schema.items else { return };
            let mut seen = std::collections::HashSet::new();
            for (index, item) in list.iter().enumerate() {
                let at = format!("{path}[{index}]");
                let key = match schema.list_type.as_str() {
                    "set" => Some(item.clone()),
                    "map" => Some(key_of(&schema.list_keys, items, item)),
                    _ => None,
                };
                // The text of a value is canonical: keys of objects are sorted.
                if let Some(key) = key.map(|key| key.to_string())
                    && !seen.insert(key.clone())
                {
                    let message = format!("Duplicate value: {key}");
                    causes.push(Cause { reason: "FieldValueDuplicate".into(), message, field: at.clone() });
                }
                duplicates(items, item, &at, causes);
            }
        }
        _ => {}
    }
}

fn key_of(keys: &[String], items: &Schema, item: &Value) -> Value {
    let mut found = Map::new();
    for key in keys {
        let default = || items.properties.get(key).and_then(|field| field.default.clone());
        if let Some(value) = item.get(key).cloned().or_else(default) {
            found.insert(key.clone(), value);
        }
    }
    found.into()
}
