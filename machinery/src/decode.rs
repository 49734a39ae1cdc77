//! Reading request bodies: JSON and YAML into values, duplicate keys found, depth limited.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Number, Value};

use crate::go_scan::{self, syntax_error};
use crate::place::Place;
use crate::yaml::{self, Document};

/// Deepest nesting that is read.
pub const MAX_DEPTH: usize = 100;
/// What is said of deeper nesting.
pub(crate) const TOO_DEEP: &str = "exceeded max depth";

/// A body, read.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// The object; of duplicate keys the last one counts.
    pub value: Value,
    /// What is to be said of keys that came twice (`duplicate field "spec.replicas"`).
    pub duplicates: Vec<String>,
}

/// Reads JSON.
pub fn json(bytes: &[u8]) -> Result<Decoded, String> {
    match parsed(bytes) {
        Ok(decoded) => Ok(decoded),
        Err(error) if error.is_data() => Err(TOO_DEEP.into()),
        Err(error) => match syntax_error(bytes) {
            Some(why) => Err(why),
            // All is well but for what is no text.
            None => parsed(go_scan::replaced(bytes).as_bytes()).map_err(|_| error.to_string()),
        },
    }
}

fn parsed(bytes: &[u8]) -> serde_json::Result<Decoded> {
    let mut duplicates = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let seed = Strict { at: Place::Root, depth: 0, duplicates: &mut duplicates };
    let value = seed.deserialize(&mut deserializer)?;
    deserializer.end()?;
    let duplicates = duplicates.iter().map(|path| format!("duplicate field {path:?}")).collect();
    Ok(Decoded { value, duplicates })
}

/// Reads YAML (its first document).
pub fn yaml(bytes: &[u8]) -> Result<Decoded, String> {
    let Document { value, repeated } = yaml::read(bytes)?;
    let told = || format!("yaml: unmarshal errors:\n  {}", repeated.join("\n  "));
    let duplicates = if repeated.is_empty() { Vec::new() } else { vec![told()] };
    Ok(Decoded { value, duplicates })
}

/// What is to be said of unknown fields and of keys that came twice, in the order in which they are in the document. What is below
/// an unknown field is not looked at.
pub fn in_order(document: &[u8], unknown: &[String], duplicates: &[String]) -> Vec<String> {
    let mut places = HashMap::new();
    let mut deserializer = serde_json::Deserializer::from_slice(document);
    // What cannot be read has been refused before.
    let start = Places { path: String::new(), depth: 0, found: &mut places, count: &mut 0 };
    let _ = start.deserialize(&mut deserializer);
    let told = unknown.iter().map(|path| {
        (places.get(path).and_then(|at| at.first()).copied().unwrap_or_default(), format!("unknown field {path:?}"))
    });
    let duplicates = duplicates.iter().filter_map(|text| {
        let path = text.strip_prefix("duplicate field ").and_then(|p| serde_json::from_str::<String>(p).ok());
        if path.as_ref().is_some_and(|path| unknown.iter().any(|field| is_below(path, field))) {
            return None;
        }
        let at = path.and_then(|path| places.get(&path)).and_then(|at| at.get(1)).copied();
        Some((at.unwrap_or(usize::MAX), text.clone()))
    });
    let mut all: Vec<(usize, String)> = told.chain(duplicates).collect();
    all.sort_by_key(|(at, _)| *at);
    all.into_iter().map(|(_, text)| text).collect()
}

/// Whether a path is that of a field or of something in it.
fn is_below(path: &str, field: &str) -> bool {
    path.strip_prefix(field).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// The refusal of a number (`json: cannot unmarshal number 1000.0 into Go struct field DeploymentSpec.spec.replicas of type
/// int32`) with the number as it stands in the document: Go's decoder shows `1e3` as that. Others are left as they are.
pub fn with_literal(document: &[u8], why: String) -> String {
    let literal = || {
        let (before, rest) = why.split_once("cannot unmarshal number ")?;
        let (shown, rest) = rest.split_once(" into Go struct field ")?;
        let (place, _) = rest.split_once(" of type ")?;
        let (_, fields) = place.split_once('.')?;
        let number = shown.parse().ok()?;
        let literal = number_at(std::str::from_utf8(document).ok()?, fields, number)?;
        Some(format!("{before}cannot unmarshal number {literal} into Go struct field {rest}"))
    };
    literal().unwrap_or(why)
}

/// How a number is written that is found below a path of fields, in lists and maps on the way too.
fn number_at<'a>(document: &'a str, fields: &str, number: f64) -> Option<&'a str> {
    let document = document.trim();
    if document.starts_with('[') {
        let items: Vec<&RawValue> = serde_json::from_str(document).ok()?;
        return items.into_iter().find_map(|item| number_at(item.get(), fields, number));
    }
    if document.starts_with('{') {
        let map: BTreeMap<Cow<'a, str>, &'a RawValue> = serde_json::from_str(document).ok()?;
        let (field, below) = fields.split_once('.').unwrap_or((fields, ""));
        return match map.get(field).filter(|_| !field.is_empty()) {
            Some(value) => number_at(value.get(), below, number),
            None => map.into_values().find_map(|value| number_at(value.get(), fields, number)),
        };
    }
    (fields.is_empty() && document.parse() == Ok(number)).then_some(document)
}

/// Notes at which places the keys of a document are.
struct Places<'a> {
    path: String,
    depth: usize,
    found: &'a mut HashMap<String, Vec<usize>>,
    /// Keys so far.
    count: &'a mut usize,
}

impl<'de> DeserializeSeed<'de> for Places<'_> {
    type Value = ();
    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.depth > MAX_DEPTH {
            return Err(D::Error::custom(TOO_DEEP));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Places<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let mut index = 0;
        loop {
            let path = format!("{}[{index}]", self.path);
            let (found, count) = (&mut *self.found, &mut *self.count);
            let seed = Places { path, depth: self.depth + 1, found, count };
            if seq.next_element_seed(seed)?.is_none() {
                return Ok(());
            }
            index += 1;
        }
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            let path = if self.path.is_empty() { key } else { format!("{}.{key}", self.path) };
            self.found.entry(path.clone()).or_default().push(*self.count);
            *self.count += 1;
            let (found, count) = (&mut *self.found, &mut *self.count);
            map.next_value_seed(Places { path, depth: self.depth + 1, found, count })?;
        }
        Ok(())
    }
}

/// An error of the JSON parser in the words of Go's.
pub fn go_json_error(body: &[u8], error: &serde_json::Error) -> String {
    syntax_error(body).unwrap_or_else(|| error.to_string())
}

struct Strict<'a> {
    at: Place<'a>,
    depth: usize,
    duplicates: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;
    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        if self.depth > MAX_DEPTH {
            return Err(D::Error::custom(TOO_DEEP));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(Number::from_f64(v).map_or(Value::Null, Value::Number))
    }
    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        loop {
            let at = Place::Index(&self.at, list.len());
            let seed = Strict { at, depth: self.depth + 1, duplicates: &mut *self.duplicates };
            match access.next_element_seed(seed)? {
                Some(item) => list.push(item),
                None => return Ok(list.into()),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let at = Place::Key(&self.at, &key);
            if map.contains_key(&key) {
                self.duplicates.push(at.path());
            }
            let seed = Strict { at, depth: self.depth + 1, duplicates: &mut *self.duplicates };
            let value = access.next_value_seed(seed)?;
            map.insert(key, value);
        }
        Ok(map.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn refused_numbers_are_shown_as_they_were_written() {
        let told = |number: &str, place: &str| {
            format!("X: json: cannot unmarshal number {number} into Go struct field {place} of type int32")
        };
        for (document, shown, place, literal) in [
            (r#"{"spec":{"replicas":1e3}}"#, "1000.0", "S.spec.replicas", "1e3"),
            (r#"{"spec": {"other": 1000, "replicas": 1E+3 }}"#, "1000.0", "S.spec.replicas", "1E+3"),
            (r#"{"spec":{"replicas":99999999999999999999}}"#, "1e+20", "S.spec.replicas", "99999999999999999999"),
            (r#"{"ports":[{"port":1},{"port":2.50}]}"#, "2.5", "P.ports.port", "2.50"),
            (r#"{"map":{"a":{"n":7},"b":{"n":1.0}}}"#, "1.0", "M.map.n", "1.0"),
            (r#"{"map":{"a":1,"b":1e1}}"#, "10.0", "M.map", "1e1"),
            (r#"{"spec":{"replicas":2}}"#, "1.5", "S.spec.replicas", "1.5"),
            ("{", "1.5", "S.spec.replicas", "1.5"),
        ] {
            assert_eq!(with_literal(document.as_bytes(), told(shown, place)), told(literal, place), "{document}");
        }
        let other = "json: cannot unmarshal string into Go struct field S.spec.replicas of type int32";
        assert_eq!(with_literal(br#"{"spec":{"replicas":"1"}}"#, other.into()), other);
    }

    #[test]
    fn whole_numbers_of_yaml_are_whole() {
        let read = |text: &str| yaml(text.as_bytes()).unwrap().value;
        assert_eq!(read("[1.0, 1e3, -2.00, 1.5, 1e25]"), serde_json::json!([1, 1000, -2, 1.5, 1e25]));
        assert_eq!(json(b"[1.0]").unwrap().value, serde_json::json!([1.0]));
    }

    #[test]
    fn numbers_of_yaml_are_read_in_their_base() {
        let read = |text: &str| yaml(text.as_bytes()).unwrap().value;
        let numbers = read("[0644, -010, 0o17, 0x1F, 0b11, 08, 0, 1_000, \"0644\", 0.5]");
        assert_eq!(numbers, serde_json::json!([420, -8, 15, 31, 3, 8, 0, 1000, "0644", 0.5]));
    }

    #[test]
    fn what_is_unknown_is_not_looked_into() {
        let document = br#"{"b":1,"b":2,"x":{"y":1,"y":2},"x":3,"xs":1,"xs":2}"#;
        let duplicates = json(document).unwrap().duplicates;
        assert_eq!(duplicates.len(), 4);
        let told = in_order(document, &["x".to_owned()], &duplicates);
        assert_eq!(told, ["duplicate field \"b\"", "unknown field \"x\"", "duplicate field \"xs\""]);
    }

    #[test]
    fn duplicates_are_found_and_the_last_counts() {
        let got = json(br#"{"spec":{"a":1,"a":2},"l":[{"b":1,"b":null}]}"#).unwrap();
        assert_eq!(got.value, json!({"spec": {"a": 2}, "l": [{"b": null}]}));
        assert_eq!(got.duplicates, ["duplicate field \"spec.a\"", "duplicate field \"l[0].b\""]);
    }

    #[test]
    fn bad_bodies_are_refused() {
        let deep = "[".repeat(5000);
        for bad in ["", "{", "{} x", "nul", deep.as_str()] {
            assert!(json(bad.as_bytes()).is_err(), "{}", &bad[..bad.len().min(9)]);
        }
        assert!(yaml(b"a: [").is_err());
        assert_eq!(yaml(b"a: {b: 1}").unwrap().value, json!({"a": {"b": 1}}));
        assert!(yaml(b"a: 1\nb: [").unwrap_err().starts_with("yaml: line 2"));
    }

    #[test]
    fn errors_of_yaml_are_told_in_gos_words() {
        for (text, expected) in [
            ("data:\n\ta: b\n", "line 2: found character that cannot start any token"),
            ("a: @b\n", "found character that cannot start any token"),
            ("a: b\nfoo\n", "line 3: could not find expected ':'"),
            ("a: b: c\n", "mapping values are not allowed in this context"),
            ("a: b\nc: d: e\n", "line 2: mapping values are not allowed in this context"),
            ("metadata:\n  name: x\n  labels:\n    a: b\n   c: d\n", "line 4: did not find expected key"),
            ("data:\n  a: b\n c: d\n", "line 2: did not find expected key"),
            ("- a\nb: c\n", "line 1: did not find expected '-' indicator"),
            ("data:\n  a: 'x\n", "line 3: found unexpected end of stream"),
            ("data:\n  a: *x\n", "unknown anchor 'x' referenced"),
            ("\ta: b\n", "found character that cannot start any token"),
            ("a: - b\n", "block sequence entries are not allowed in this context"),
            ("a: \"x", "found unexpected end of stream"),
            ("a: 1\nb: [", "line 2: did not find expected node content"),
            (
                "? {a: 1, b: }\n: c\n",
                "invalid map key: map[interface {}]interface {}{\"a\":1, \"b\":interface {}(nil)}",
            ),
            ("a: &x [*x]\n", "anchor 'x' value contains itself"),
            ("a: 1\n<<: 2\n", "map merge requires map or sequence of maps as the value"),
            ("a: !!int x\n", "cannot decode !!str `x` as a !!int"),
            ("a: !!binary \"?\"\n", "!!binary value contains invalid base64 data"),
            // Where the parser panics.
            ("a: [!, 2\n", "unknown problem parsing YAML content"),
        ] {
            assert_eq!(yaml(text.as_bytes()).unwrap_err(), format!("yaml: {expected}"), "{text}");
        }
        for text in ["a: b\n---\nc: [\n", "# x\n---\na: b\n...\n", " a: b\nc: d\n", "{a: b} c"] {
            assert_eq!(yaml(text.as_bytes()).unwrap().value, json!({"a": "b"}), "{text}");
        }
    }

    #[test]
    fn yaml_that_json_cannot_have_is_refused() {
        for (text, expected) in [
            ("a: .inf\n", "json: unsupported value: +Inf"),
            ("null: a\n", "Unsupported map key of type: %!s(<nil>), key: <nil>, value: \"a\""),
        ] {
            assert_eq!(yaml(text.as_bytes()).unwrap_err(), expected);
        }
        let bomb: String =
            (1..9).map(|n| format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 9].join(","))).collect();
        let bomb = format!("a0: &a0 x\n{bomb}");
        assert_eq!(yaml(bomb.as_bytes()).unwrap_err(), "yaml: document contains excessive aliasing");
        assert_eq!(yaml("[".repeat(5000).as_bytes()).unwrap_err(), TOO_DEEP);
    }

    #[test]
    fn what_yaml_says_with_other_signs() {
        for (text, expected) in [
            ("a: |\n  x\n  y", json!("x\ny")),
            ("a: |\n  x\n", json!("x\n")),
            ("a: |+\n  x\n\n", json!("x\n\n")),
            ("a: >-\n  x\n  y", json!("x y")),
            ("a: |", json!("")),
            ("a: !x yes\n", json!("yes")),
            ("a: !!str 5\n", json!("5")),
            ("a: !!binary aGk=\n", json!("hi")),
            ("a: 2001-01-01\n", json!("2001-01-01")),
            ("a: 1e3\n", json!(1000)),
            ("a: 18446744073709551615\n", json!(18_446_744_073_709_551_615.0)),
            ("b: &b {x: 1, z: 2}\na: {<<: *b, z: 3}\n", json!({"x": 1, "z": 3})),
            ("b: &b {x: 1}\nc: &c {x: 2, z: 2}\na: {<<: [*b, *c]}\n", json!({"x": 1, "z": 2})),
        ] {
            assert_eq!(yaml(text.as_bytes()).unwrap().value["a"], expected, "{text}");
        }
    }

    #[test]
    fn yaml_is_that_of_version_1_1() {
        let got = yaml(b"n: \"1\"\n\"y\": no\n3: x\n").unwrap();
        assert_eq!(got.value, json!({"false": "1", "y": false, "3": "x"}));
        let got = yaml(b"a: {b: 1, b: 2}\nk: a\nk: b\nl:\n- k: c\n  \"q\": 1\n  k: d\nk: e\n").unwrap();
        assert_eq!(
            got.duplicates,
            [
                "yaml: unmarshal errors:\n  line 1: key \"b\" already set in map\n  line 3: key \"k\" already set in map\n  \
              line 7: key \"k\" already set in map\n  line 8: key \"k\" already set in map"
            ]
        );
        assert_eq!(got.value, json!({"a": {"b": 2}, "k": "e", "l": [{"k": "d", "q": 1}]}));
        let got = yaml(b"a: 1\nk: a\nk: b\n").unwrap();
        assert_eq!(
            (got.value, got.duplicates),
            (
                json!({"a": 1, "k": "b"}),
                vec!["yaml: unmarshal errors:\n  line 3: key \"k\" already set in map".to_owned()]
            )
        );
    }

    fn values() -> impl proptest::strategy::Strategy<Value = Value> {
        use proptest::prelude::*;
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[ -~é\\n]{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            let key =
                prop_oneof!["[a-zA-Z./-]{1,8}", Just("no".to_owned()), Just("3".to_owned()), Just("null".to_owned())];
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map(key, inner, 0..4).prop_map(|map| map.into_iter().collect()),
            ]
        })
    }

    proptest::proptest! {
        /// What is written is read as the same, in both languages.
        #[test]
        fn what_is_written_is_read(value in values()) {
            let text = value.to_string();
            proptest::prop_assert_eq!(&json(text.as_bytes()).unwrap().value, &value);
            let text = crate::yaml::write(&value).unwrap();
            proptest::prop_assert_eq!(&yaml(text.as_bytes()).unwrap().value, &value, "{}", text);
        }

        /// Any bytes are read or refused.
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>, text in "[ \\n:{}\\[\\]&*!|>#a-c0-9\"'-]{0,60}") {
            let _ = (json(&bytes), yaml(&bytes), json(text.as_bytes()), yaml(text.as_bytes()));
        }
    }
}
