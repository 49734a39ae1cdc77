//! Objects without `metadata.managedFields`, cut from their text: nobody in this process reads them, and decoding them takes
//! as long as all else of a small object.

use std::borrow::Cow;
use std::ops::Range;

/// The object without its `managedFields`. A text that is no such object stays as it is: who decodes it says what is wrong.
pub fn without_managed_fields(text: &str) -> Cow<'_, str> {
    let Some(cut) = managed_fields(text.as_bytes()) else { return text.into() };
    [&text[..cut.start], &text[cut.end..]].concat().into()
}

/// Where they are, with the comma that goes with them.
fn managed_fields(text: &[u8]) -> Option<Range<usize>> {
    let metadata = member(text, 0, b"\"metadata\"")?;
    let found = member(text, metadata.value.start, b"\"managedFields\"")?;
    Some(match (found.comma_after, found.comma_before) {
        (Some(after), _) => found.key..after + 1,
        (None, Some(before)) => before..found.value.end,
        (None, None) => found.key..found.value.end,
    })
}

/// A member of an object: where its key begins, where its value is, and the commas around it.
struct Member {
    key: usize,
    value: Range<usize>,
    comma_before: Option<usize>,
    comma_after: Option<usize>,
}

/// The member of the object at `at` with this key, quotes included.
fn member(text: &[u8], at: usize, wanted: &[u8]) -> Option<Member> {
    let mut at = blank(text, at);
    let mut comma_before = None;
    if text.get(at) != Some(&b'{') {
        return None;
    }
    loop {
        let key = blank(text, at + 1);
        let end = string(text, key)?;
        let colon = blank(text, end);
        if text.get(colon) != Some(&b':') {
            return None;
        }
        let start = blank(text, colon + 1);
        let value = start..value(text, start)?;
        at = blank(text, value.end);
        let comma_after = (text.get(at) == Some(&b',')).then_some(at);
        if text.get(key..end) == Some(wanted) {
            return Some(Member { key, value, comma_before, comma_after });
        }
        comma_before = Some(comma_after?);
    }
}

/// The end of blanks.
fn blank(text: &[u8], at: usize) -> usize {
    let rest = text.get(at..).unwrap_or_default();
    at + rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count()
}

/// The end of the string that begins here.
fn string(text: &[u8], at: usize) -> Option<usize> {
    if text.get(at) != Some(&b'"') {
        return None;
    }
    let mut at = at + 1;
    loop {
        match text.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// The end of the value that begins here.
fn value(text: &[u8], start: usize) -> Option<usize> {
    let (mut at, mut depth) = (start, 0usize);
    loop {
        match text.get(at)? {
            b'"' => at = string(text, at)?,
            b'{' | b'[' => (at, depth) = (at + 1, depth + 1),
            // The end of what it is in.
            b'}' | b']' | b',' if depth == 0 => return (at > start).then_some(at),
            b'}' | b']' => (at, depth) = (at + 1, depth - 1),
            _ => {
                at += 1;
                continue;
            }
        }
        if depth == 0 {
            return Some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_object_s_own_are_cut() {
        let fields = r#""managedFields":[{"a":"]}\"","b":[{}]}]"#;
        for (what, text, expected) in [
            ("first", format!(r#"{{"metadata":{{{fields},"name":"n"}},"x":1}}"#), r#"{"metadata":{"name":"n"},"x":1}"#),
            (
                "last",
                format!(r#"{{"k":[1,"}}"],"metadata":{{"name":"n",{fields}}}}}"#),
                r#"{"k":[1,"}"],"metadata":{"name":"n"}}"#,
            ),
            ("alone", format!(r#"{{"metadata":{{{fields}}}}}"#), r#"{"metadata":{}}"#),
            (
                "amid",
                format!(r#"{{"metadata":{{"a":-1.5,{fields},"z":null}}}}"#),
                r#"{"metadata":{"a":-1.5,"z":null}}"#,
            ),
            (
                "blanks",
                format!("{{ \"metadata\" : {{ \"a\" : true , {fields} , \"z\" : {{}} }} }}"),
                r#"{ "metadata" : { "a" : true ,  "z" : {} } }"#,
            ),
        ] {
            assert_eq!(without_managed_fields(&text), expected, "{what}");
            let value: serde_json::Value = serde_json::from_str(expected).unwrap();
            let mut whole: serde_json::Value = serde_json::from_str(&text).unwrap();
            whole["metadata"].as_object_mut().unwrap().remove("managedFields");
            assert_eq!(whole, value, "{what}");
        }
    }

    #[test]
    fn all_else_stays() {
        for text in [
            r#"{"metadata":{"name":"n","annotations":{"a":"{\"managedFields\":[]}"}}}"#,
            r#"{"spec":{"template":{"metadata":{"managedFields":[{}]}}},"metadata":{}}"#,
            r#"{"metadata":{"labels":{"managedFields":"x"}}}"#,
            r#"{"metadata":"managedFields"}"#,
            r#"{"metadata":{"name":"n""#,
            r#"{"metadata":{"managedFields":[{"#,
            r#"{"metadata":{"managedFields":"#,
            r#"{"metadata":{"a\"#,
            r#"["metadata",{"managedFields":[]}]"#,
            "{}",
            "",
        ] {
            assert_eq!(without_managed_fields(text), text);
        }
    }
}
