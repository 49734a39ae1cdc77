//! Cells of a custom resource in a table.

use keelson_machinery::jsonpath::JsonPath;
use keelson_machinery::resource::ResourceDef;
use serde_json::Value;

/// The cells after the name; `age` writes a timestamp as an age.
pub fn cells(def: &ResourceDef, object: &Value, age: impl Fn(&str) -> String) -> Vec<Value> {
    let cell = |kind: &str, path: &str| {
        let found = JsonPath::parse(path).ok().and_then(|path| path.find(object).first().copied().cloned());
        match (kind, found.unwrap_or_default()) {
            ("string", Value::Null) => Value::Null,
            ("string", Value::String(text)) => text.into(),
            ("string", other) => other.to_string().into(),
            ("integer", Value::Number(n)) => n.as_i64().or_else(|| n.as_f64().map(|n| n as i64)).into(),
            ("number", number @ Value::Number(_)) => number,
            ("boolean", flag @ Value::Bool(_)) => flag,
            ("date", Value::String(text)) if text.parse::<jiff::Timestamp>().is_ok() => age(&text).into(),
            ("date", Value::String(_)) => "<invalid>".into(),
            _ => Value::Null,
        }
    };
    def.columns.iter().map(|(column, path)| cell(column.kind, path)).collect()
}
