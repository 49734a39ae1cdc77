//! Defaults of custom resources, and nulls where null is no value.

use serde_json::Value;

use super::Schema;

/// Fills in defaults, all the way down.
pub fn apply_defaults(schema: &Schema, value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, field) in &schema.properties {
                let Some(default) = &field.default else { continue };
                if map.get(key).is_none_or(|v| v.is_null() && !field.nullable) {
                    map.insert(key.clone(), default.clone());
                }
            }
            for (key, value) in map.iter_mut() {
                let Some(field) = schema.field(key) else { continue };
                if value.is_null()
                    && !field.nullable
                    && let Some(default) = &field.default
                {
                    *value = default.clone();
                }
                apply_defaults(field, value);
            }
        }
        Value::Array(list) => {
            let Some(items) = &schema.items else { return };
            for item in list {
                if item.is_null()
                    && !items.nullable
                    && let Some(default) = &items.default
                {
                    *item = default.clone();
                }
                apply_defaults(items, item);
            }
        }
        _ => {}
    }
}

/// Removes nulls of fields that may not be null and have no default.
pub fn drop_forbidden_nulls(schema: &Schema, value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|key, value| {
                let dropped = value.is_null() && schema.field(key).is_some_and(|f| !f.nullable && f.default.is_none());
                !dropped
            });
            for (key, value) in map.iter_mut() {
                if let Some(field) = schema.field(key) {
                    drop_forbidden_nulls(field, value);
                }
            }
        }
        Value::Array(list) => {
            if let Some(items) = &schema.items {
                list.iter_mut().for_each(|item| drop_forbidden_nulls(items, item));
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
    fn defaults_fill_gaps_only() {
        let schema = Schema::parse(&json!({"type": "object", "properties": {
            "a": {"type": "string", "default": "x"}, "n": {"type": "string", "nullable": true, "default": "y"},
            "o": {"type": "object", "default": {}, "properties": {"b": {"type": "integer", "default": 1}}},
            "deep": {"type": "object", "properties": {"c": {"type": "string", "default": "z"}}},
            "plain": {"type": "string"},
            "l": {"type": "array", "items": {"type": "object", "properties": {"d": {"type": "integer", "default": 7}}}}}}));
        for (given, expected) in [
            (json!({}), json!({"a": "x", "n": "y", "o": {"b": 1}})),
            (
                json!({"a": null, "n": null, "plain": null, "deep": {}, "l": [{}, {"d": 1}]}),
                json!({"a": "x", "n": null, "o": {"b": 1}, "deep": {"c": "z"}, "l": [{"d": 7}, {"d": 1}]}),
            ),
        ] {
            let mut got = given;
            drop_forbidden_nulls(&schema, &mut got);
            apply_defaults(&schema, &mut got);
            assert_eq!(got, expected);
        }
    }
}
