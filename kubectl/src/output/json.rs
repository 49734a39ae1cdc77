//! JSON as kubectl prints it: four spaces, `<`, `>` and `&` escaped.

use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{PrettyFormatter, Serializer};

/// An object over many lines, without a line break at the end.
pub fn pretty(value: &Value) -> String {
    let mut bytes = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut bytes, PrettyFormatter::with_indent(b"    "));
    // Writing a Value to memory cannot fail.
    let _ = value.serialize(&mut serializer);
    escape(&String::from_utf8_lossy(&bytes))
}

/// An object on one line.
pub fn compact(value: &Value) -> String {
    escape(&value.to_string())
}

/// An object on one line, its fields in the order of their type, as kubectl writes what it made itself.
pub fn typed(object: &Value) -> String {
    let (group, version) = crate::kinds::group_version(object["apiVersion"].as_str().unwrap_or_default());
    let kind = object["kind"].as_str().unwrap_or_default();
    let definition = keelson_machinery::schema::of_kind(group, version, kind);
    escape(&keelson_machinery::patch::text(definition, object, None))
}

/// The text of an object over many lines; what is in it stays in its order.
pub fn spread(text: &str) -> String {
    let (mut out, mut depth, mut quoted, mut escaped) = (String::new(), 0usize, false, false);
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n("    ", depth));
    };
    let letters: Vec<char> = text.chars().collect();
    for (at, c) in letters.iter().enumerate() {
        if quoted {
            quoted = *c != '"' || escaped;
            escaped = *c == '\\' && !escaped;
            out.push(*c);
            continue;
        }
        match c {
            '{' | '[' => {
                out.push(*c);
                if !matches!(letters.get(at + 1), Some('}' | ']')) {
                    depth += 1;
                    line(&mut out, depth);
                }
            }
            '}' | ']' => {
                if !matches!(at.checked_sub(1).and_then(|at| letters.get(at)), Some('{' | '[')) {
                    depth = depth.saturating_sub(1);
                    line(&mut out, depth);
                }
                out.push(*c);
            }
            ',' => {
                out.push(',');
                line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            '"' => {
                quoted = true;
                out.push('"');
            }
            c => out.push(*c),
        }
    }
    out
}

/// These characters only occur inside of strings.
fn escape(text: &str) -> String {
    if !text.contains(['<', '>', '&', '\u{2028}', '\u{2029}']) {
        return text.to_owned();
    }
    text.replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn as_go_writes_it() {
        assert_eq!(
            pretty(&json!({"b": [1], "a": "<&>", "c": {}, "d": []})),
            "{\n    \"a\": \"\\u003c\\u0026\\u003e\",\n    \"b\": [\n        1\n    ],\n    \"c\": {},\n    \"d\": []\n}"
        );
    }

    #[test]
    fn in_the_order_of_the_type() {
        let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": {"b": "{:,\\"}, "name": "n"},
            "spec": {"containers": [{"image": "i", "name": "c", "resources": {}}], "dnsPolicy": "x", "restartPolicy": "y"}});
        let text = typed(&object);
        assert_eq!(
            text,
            "{\"kind\":\"Pod\",\"apiVersion\":\"v1\",\"metadata\":{\"name\":\"n\",\"labels\":{\"b\":\"{:,\\\\\"}},\"spec\":{\"containers\":[{\"name\":\"c\",\"image\":\"i\",\"resources\":{}}],\"restartPolicy\":\"y\",\"dnsPolicy\":\"x\"}}"
        );
        assert!(
            spread(&text).starts_with("{\n    \"kind\": \"Pod\",\n    \"apiVersion\": \"v1\",\n"),
            "{}",
            spread(&text)
        );
        assert!(spread(&text).contains("\"resources\": {}\n"));
        let plain = json!({"a": [1, {"b": []}], "c": "x: [y], {\"z\"}"});
        assert_eq!(spread(&plain.to_string()), pretty(&plain));
    }
}
