//! Configuration files are read strictly: a field that nobody knows is more likely a slip than a wish.

use serde_json::Value;

/// The fields of an object, each with those of what it holds (none: whatever it holds is looked at elsewhere).
pub struct Fields(pub &'static [(&'static str, Fields)]);

/// Nothing is said of what a field holds.
pub const ANY: Fields = Fields(&[]);

/// The first field of a document that is not known.
///
/// # Errors
/// In upstream's words.
pub fn known(value: &Value, fields: &Fields) -> Result<(), String> {
    match unknown(value, fields, "") {
        Some(path) => Err(format!("strict decoding error: unknown field {path:?}")),
        None => Ok(()),
    }
}

fn unknown(value: &Value, fields: &Fields, path: &str) -> Option<String> {
    if fields.0.is_empty() {
        return None;
    }
    match value {
        Value::Object(map) => map.iter().find_map(|(key, value)| {
            let at = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            match fields.0.iter().find(|(name, _)| name == key) {
                Some((_, inner)) => unknown(value, inner, &at),
                None => Some(at),
            }
        }),
        Value::Array(list) => {
            list.iter().enumerate().find_map(|(i, value)| unknown(value, fields, &format!("{path}[{i}]")))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_first_unknown_field_is_named() {
        const FIELDS: Fields = Fields(&[("a", ANY), ("list", Fields(&[("b", ANY)]))]);
        for (value, expected) in [
            (json!({"a": {"anything": 1}, "list": [{"b": 1}]}), None),
            (json!({"c": 1}), Some("\"c\"")),
            (json!({"list": [{"b": 1}, {"c": 1}]}), Some("\"list[1].c\"")),
        ] {
            assert_eq!(
                known(&value, &FIELDS).err().is_some_and(|why| why.ends_with(expected.unwrap_or("?"))),
                expected.is_some()
            );
        }
    }
}
