//! Cells of a custom resource in a table.

use keelson_machinery::jsonpath::JsonPath;
use keelson_machinery::resource::ResourceDef;
use keelson_machinery::structural;
use serde_json::Value;

/// The cells after the name; `age` writes a timestamp as an age.
pub fn cells(def: &ResourceDef, object: &Value, age: impl Fn(&str) -> String) -> Vec<Value> {
    def.columns.iter().map(|(column, path)| cell(column.kind, path, object, &age)).collect()
}

/// What is at `path`, as columns of type `kind` show it; null for nothing and for values of other types.
fn cell(kind: &str, path: &str, object: &Value, age: impl Fn(&str) -> String) -> Value {
    let found = JsonPath::parse(path).ok().and_then(|path| path.find(object).first().copied().cloned());
    let Some(found) = found else { return Value::Null };
    match (kind, found) {
        // What Go's templates say of a value that is null.
        ("string", Value::Null) => "<no value>".into(),
        ("string", Value::String(text)) => text.into(),
        ("string", number @ Value::Number(_)) => structural::shown(&number).into(),
        ("string", other) => other.to_string().into(),
        ("integer", Value::Number(n)) => n.as_i64().or_else(|| n.as_f64().map(|n| n as i64)).into(),
        ("number", number @ Value::Number(_)) => number,
        ("boolean", flag @ Value::Bool(_)) => flag,
        // No time at all is not a bad one.
        ("date", Value::String(text)) if matches!(text.as_str(), "" | "null" | "0001-01-01T00:00:00Z") => {
            age("").into()
        }
        ("date", Value::String(text)) if text.parse::<jiff::Timestamp>().is_ok() => age(&text).into(),
        ("date", Value::String(_)) => "<invalid>".into(),
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_by_type_of_column() {
        let age = |since: &str| if since.is_empty() { "<unknown>".to_owned() } else { "5d".to_owned() };
        for (kind, value, expected) in [
            ("string", json!("a"), json!("a")),
            ("string", json!(null), json!("<no value>")),
            ("string", json!(true), json!("true")),
            ("string", json!(12), json!("12")),
            ("string", json!(1.5), json!("1.5")),
            ("string", json!(2_000_000.5), json!("2.0000005e+06")),
            ("string", json!({"b": [1, "c"]}), json!(r#"{"b":[1,"c"]}"#)),
            ("integer", json!(7), json!(7)),
            ("integer", json!(7.9), json!(7)),
            ("integer", json!("7"), json!(null)),
            ("integer", json!(null), json!(null)),
            ("number", json!(1.5), json!(1.5)),
            ("boolean", json!(false), json!(false)),
            ("boolean", json!("true"), json!(null)),
            ("date", json!("2020-01-01T00:00:00Z"), json!("5d")),
            ("date", json!("yesterday"), json!("<invalid>")),
            ("date", json!(""), json!("<unknown>")),
            ("date", json!(5), json!(null)),
        ] {
            assert_eq!(cell(kind, ".a", &json!({"a": value}), age), expected, "{kind} {value}");
            assert_eq!(cell(kind, ".none", &json!({"a": value}), age), Value::Null, "{kind}");
        }
    }
}
