//! JSON of an object without who manages which of its fields: nearly half of most objects, as a tree of its own, which no
//! component reads. It is cut out before the rest is decoded.

use std::borrow::Cow;
use std::ops::Range;

/// The text without `metadata.managedFields`; unchanged if it has none, or is not an object.
pub fn without_managers(text: &str) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    let found = member(bytes, 0, b"metadata").and_then(|metadata| {
        let value = metadata.value;
        member(bytes, value, b"managedFields")
    });
    match found.and_then(|found| found.cut(bytes)) {
        Some(cut) => Cow::Owned([&text[..cut.start], &text[cut.end..]].concat()),
        None => Cow::Borrowed(text),
    }
}

/// Where a member of an object is.
struct Member {
    /// Where its name begins.
    start: usize,
    /// Where its value begins.
    value: usize,
    /// Whether it is the object's first.
    first: bool,
}

impl Member {
    /// What is to be left out for it to be gone, one comma included.
    fn cut(&self, bytes: &[u8]) -> Option<Range<usize>> {
        let end = blank(bytes, skip(bytes, self.value)?);
        if bytes.get(end) == Some(&b',') {
            return Some(self.start..end + 1);
        }
        if self.first {
            return Some(self.start..end);
        }
        let comma = bytes[..self.start].iter().rposition(|byte| *byte == b',')?;
        Some(comma..end)
    }
}

/// A member of the object that begins at `at`, if there is an object.
fn member(bytes: &[u8], at: usize, name: &[u8]) -> Option<Member> {
    let mut at = blank(bytes, at);
    if bytes.get(at) != Some(&b'{') {
        return None;
    }
    let mut first = true;
    loop {
        let start = blank(bytes, at + 1);
        if bytes.get(start) != Some(&b'"') {
            return None;
        }
        let end = string(bytes, start)?;
        let colon = blank(bytes, end);
        if bytes.get(colon) != Some(&b':') {
            return None;
        }
        let value = blank(bytes, colon + 1);
        if bytes.get(start + 1..end - 1) == Some(name) {
            return Some(Member { start, value, first });
        }
        at = blank(bytes, skip(bytes, value)?);
        if bytes.get(at) != Some(&b',') {
            return None;
        }
        first = false;
    }
}

/// Behind white space.
fn blank(bytes: &[u8], at: usize) -> usize {
    let rest = bytes.get(at..).unwrap_or_default();
    at + rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count()
}

/// Behind the string that begins at `at`.
fn string(bytes: &[u8], at: usize) -> Option<usize> {
    let mut at = at + 1;
    loop {
        match bytes.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// Behind the value that begins at `at`.
fn skip(bytes: &[u8], at: usize) -> Option<usize> {
    let (mut at, mut depth) = (at, 0_usize);
    loop {
        match bytes.get(at)? {
            b'"' => at = string(bytes, at)?,
            b'{' | b'[' => {
                depth += 1;
                at += 1;
            }
            b'}' | b']' => {
                depth = depth.checked_sub(1)?;
                at += 1;
            }
            // A number or a word.
            _ if depth == 0 => {
                let rest = &bytes[at..];
                let len = rest.iter().take_while(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte)).count();
                return (len > 0).then_some(at + len);
            }
            _ => at += 1,
        }
        if depth == 0 {
            return Some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    #[test]
    fn only_the_managers_of_the_object_go() {
        let fields = r#"[{"manager":"a]}","fieldsV1":{"f:x":{"k:{\"a\":\"b\"}":{}}}}]"#;
        for (given, wanted) in [
            (
                format!(r#"{{"a":1,"metadata":{{"a":"b","managedFields":{fields},"name":"n"}}}}"#),
                r#"{"a":1,"metadata":{"a":"b","name":"n"}}"#,
            ),
            (
                format!(r#"{{"metadata":{{"a":"b","managedFields":{fields}}},"x":[]}}"#),
                r#"{"metadata":{"a":"b"},"x":[]}"#,
            ),
            (format!(r#"{{"metadata":{{"managedFields":{fields},"a":"b"}}}}"#), r#"{"metadata":{"a":"b"}}"#),
            (format!(r#"{{"metadata":{{"managedFields":{fields}}}}}"#), r#"{"metadata":{}}"#),
            (
                format!("{{ \"metadata\" : {{ \"a\" : 1 ,\n \"managedFields\" : {fields} }} }}"),
                "{ \"metadata\" : { \"a\" : 1 } }",
            ),
        ] {
            assert_eq!(without_managers(&given), wanted, "{given}");
        }
        for same in [
            r#"{"spec":{"managedFields":[1]},"metadata":{"annotations":{"managedFields":"\"managedFields\":[]"}}}"#,
            r#"{"metadata":null}"#,
            r#"{"metadata":[{"managedFields":[]}]}"#,
            r#"{"metadata":{"managedFields":["#,
            r#"{"metadata":{"managedFields""#,
            "[]",
            "",
            "\"",
        ] {
            assert_eq!(without_managers(same), same);
        }
    }

    fn value() -> impl Strategy<Value = Value> {
        let text =
            prop_oneof![Just("metadata".to_owned()), Just("managedFields".to_owned()), "[a\"\\\\{}\\[\\],: é]{0,6}"];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<i16>().prop_map(|n| Value::from(f64::from(n) / 8.0)),
            text.clone().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 5, move |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map(text.clone(), inner, 0..5).prop_map(|map| json!(map)),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_rest_stays_as_it_was(mut whole in value(), pretty in any::<bool>()) {
            let text = if pretty { serde_json::to_string_pretty(&whole) } else { serde_json::to_string(&whole) }.unwrap();
            let cut: Value = serde_json::from_str(&without_managers(&text)).unwrap();
            if let Some(metadata) = whole.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.remove("managedFields");
            }
            prop_assert_eq!(cut, whole);
        }
    }
}
