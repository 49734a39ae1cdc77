//! Objects of any kind: all their fields.

use serde_json::Value;

use super::common::{events, marks, names};
use super::sheet::{Sheet, row};

/// Words that are written in capitals.
const ACRONYMS: [&str; 5] = ["API", "URL", "UID", "OSB", "GUID"];
/// Fields that are shown elsewhere or not at all.
const SKIPPED: [&str; 5] =
    [".metadata.managedFields", ".metadata.name", ".metadata.namespace", ".metadata.labels", ".metadata.annotations"];

/// Describes an object.
pub fn generic(w: &mut Sheet, object: &Value, found: Option<Vec<Value>>) {
    names(w, object);
    marks(w, object);
    content(w, 0, object, "");
    events(w, found);
}

fn content(w: &mut Sheet, level: usize, object: &Value, path: &str) {
    for (field, value) in object.as_object().into_iter().flatten() {
        let path = format!("{path}.{field}");
        if SKIPPED.contains(&path.as_str()) {
            continue;
        }
        let label = label(field);
        match value {
            Value::Object(_) => {
                row!(w, level, "{label}:");
                content(w, level + 1, value, &path);
            }
            Value::Array(items) => {
                row!(w, level, "{label}:");
                for item in items {
                    match item {
                        Value::Object(_) => content(w, level + 1, item, &path),
                        leaf => row!(w, level + 1, "{}", leaf_of(leaf)),
                    }
                }
            }
            leaf => row!(w, level, "{label}:\t{}", leaf_of(leaf)),
        }
    }
}

/// A value as Go's `%v` writes it.
fn leaf_of(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(leaf_of).collect::<Vec<_>>().join(" ")),
        other => other.to_string(),
    }
}

/// A field's name as words.
fn label(field: &str) -> String {
    if field.chars().any(|c| !c.is_alphabetic() && c != '-') {
        return field.to_owned();
    }
    let word = |part: String| {
        let upper = part.to_uppercase();
        if ACRONYMS.contains(&upper.as_str()) {
            return upper;
        }
        let mut letters = part.chars();
        letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
    };
    split(field).into_iter().map(word).collect::<Vec<_>>().join(" ")
}

/// Splits `someURLHere` into `some`, `URL` and `Here`.
fn split(text: &str) -> Vec<String> {
    let class = |c: char| {
        if c.is_lowercase() {
            1
        } else if c.is_uppercase() {
            2
        } else {
            3
        }
    };
    let mut parts: Vec<String> = Vec::new();
    let mut last = 0;
    for c in text.chars() {
        match parts.last_mut() {
            Some(part) if class(c) == last => part.push(c),
            _ => parts.push(c.to_string()),
        }
        last = class(c);
    }
    // A capital before small letters belongs to them.
    for at in 0..parts.len().saturating_sub(1) {
        if parts[at].starts_with(char::is_uppercase) && parts[at + 1].starts_with(char::is_lowercase) {
            let moved = parts[at].pop().into_iter().collect::<String>();
            parts[at + 1].insert_str(0, &moved);
        }
    }
    parts.retain(|p| !p.is_empty());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_fields() {
        for (field, expected) in [
            ("apiVersion", "API Version"),
            ("creationTimestamp", "Creation Timestamp"),
            ("uid", "UID"),
            ("someURLHere", "Some URL Here"),
            ("x.y/z", "x.y/z"),
            ("v1", "v1"),
            ("clientIP", "Client IP"),
        ] {
            assert_eq!(label(field), expected);
        }
    }
}
