//! Values as Kubernetes' messages show them: the server's own structs, whose fields are in an order of their own, bear Go's
//! names and are all written, the empty ones too. `types.txt` has one type a line: `Go` or `Go=json` names with the form
//! (`s` text, `i` number, `b` bool, `q` quantity, `x` number or text, `t` time, `sel` label selector, `j` anything, `allows` a
//! schema or a truth value, `list` a schema or a list of them, `?` behind it for a pointer, `[` list, `{` map, `@` fields of another type, `@meta` metadata).

mod diff;

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::{Value, json};

pub use diff::unified;

const TABLE: &str = include_str!("types.txt");

/// Fields of a pod's security context that the API has in the pod's spec.
const MOVED: &[&str] = &["hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace", "hostUsers"];
/// Metadata that an embedded template shows, in order.
const META: &[&str] =
    &["name", "generateName", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp"];
/// The rest of it.
const META_MAPS: &[&str] = &["labels", "annotations", "ownerReferences", "finalizers"];

/// A value in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Shown {
    /// As JSON writes it.
    Plain(String),
    /// A list.
    List(Vec<Shown>),
    /// Fields in order.
    Map(Vec<(String, Shown)>),
}

struct Field {
    go: &'static str,
    json: String,
    form: &'static str,
}

static TYPES: LazyLock<HashMap<&'static str, Vec<Field>>> = LazyLock::new(|| {
    let line = |line: &'static str| {
        let mut words = line.split(' ');
        let name = words.next().unwrap_or_default();
        let field = |word: &'static str| {
            let (names, form) = word.split_once(':').unwrap_or((word, ""));
            let (go, json) =
                names.split_once('=').map_or_else(|| (names, json_name(names)), |(g, j)| (g, j.to_owned()));
            Field { go, json, form }
        };
        (name, words.map(field).collect())
    };
    TABLE.lines().map(line).collect()
});

/// `HTTPGet` is `httpGet`, `TTY` is `tty`.
fn json_name(go: &str) -> String {
    let upper = go.chars().take_while(|c| c.is_ascii_uppercase()).count();
    let lower = if upper == go.len() || upper <= 1 { upper } else { upper - 1 };
    format!("{}{}", go[..lower].to_ascii_lowercase(), &go[lower..])
}

/// A value of a type of the table, in one line.
pub fn compact(kind: &str, value: &Value) -> String {
    let mut out = String::new();
    of(kind, value).write(&mut out);
    out
}

/// A list of values of a type of the table, in one line; `null` if there is none.
pub fn compact_list(kind: &str, values: &Value) -> String {
    let mut out = String::new();
    form(&format!("[{kind}"), Some(values)).write(&mut out);
    out
}

/// A value of a form of the table (a letter for a simple value, or a type's name; `?` after it is a pointer) in one line;
/// what is not there is the form's zero value.
pub fn formed(form: &str, value: Option<&Value>) -> String {
    let mut out = String::new();
    self::form(form, value).write(&mut out);
    out
}

/// A value of a type of the table.
pub fn of(kind: &str, value: &Value) -> Shown {
    let Some(fields) = TYPES.get(kind) else { return plain(value) };
    let mut out = Vec::new();
    let moved = (kind == "PodSpec").then(|| with_security(value));
    let value = moved.as_ref().unwrap_or(value);
    for field in fields {
        match field.go {
            "@meta" => out.extend(meta(&value["metadata"])),
            inline if inline.starts_with('@') => {
                if let Shown::Map(inner) = of(&inline[1..], value) {
                    out.extend(inner);
                }
            }
            go => out.push((go.to_owned(), form(field.form, value.get(&field.json)))),
        }
    }
    Shown::Map(out)
}

fn with_security(spec: &Value) -> Value {
    let mut spec = spec.clone();
    for key in MOVED {
        if let Some(value) = spec.get(*key).cloned() {
            spec["securityContext"][*key] = value;
        }
    }
    spec
}

fn meta(metadata: &Value) -> Vec<(String, Shown)> {
    let mut out = Vec::new();
    for key in META.iter().chain(META_MAPS) {
        if let Some(value) = metadata.get(*key).filter(|v| !v.is_null()) {
            out.push(((*key).to_owned(), plain(value)));
        }
    }
    out
}

fn form(form: &str, value: Option<&Value>) -> Shown {
    let value = value.filter(|v| !v.is_null());
    if let Some(item) = form.strip_prefix('[') {
        let Some(list) = value.and_then(Value::as_array) else { return Shown::Plain("null".into()) };
        return Shown::List(list.iter().map(|v| self::form(item, Some(v))).collect());
    }
    if let Some(item) = form.strip_prefix('{') {
        let Some(map) = value.and_then(Value::as_object) else { return Shown::Plain("null".into()) };
        return Shown::Map(map.iter().map(|(k, v)| (k.clone(), self::form(item, Some(v)))).collect());
    }
    let (base, pointer) = form.strip_suffix('?').map_or((form, false), |base| (base, true));
    let form = self::form;
    match (value, base) {
        (None, _) if pointer => Shown::Plain("null".into()),
        (Some(value), "sel") => selector(value),
        (Some(value), "s" | "i" | "b" | "q" | "x" | "t" | "j") => plain(value),
        (None, "s") => Shown::Plain("\"\"".into()),
        (None, "i" | "x") => Shown::Plain("0".into()),
        (None, "b") => Shown::Plain("false".into()),
        (None, "q") => Shown::Plain("\"0\"".into()),
        (None, "t" | "j") => Shown::Plain("null".into()),
        (None, "sel") => Shown::Map(Vec::new()),
        (Some(value), "allows") => {
            let schema = value.is_object().then(|| of("JSONSchemaProps", value));
            either(("Allows", plain(&json!(*value != false))), ("Schema", schema))
        }
        (Some(value), "list") => {
            let one = if value.is_object() { of("JSONSchemaProps", value) } else { plain(&Value::Null) };
            either(("Schema", one), ("JSONSchemas", value.is_array().then(|| form("[JSONSchemaProps", Some(value)))))
        }
        (value, kind) => of(kind, value.unwrap_or(&json!({}))),
    }
}

/// A struct of two fields, of which the second may be null.
fn either((one, first): (&str, Shown), (other, second): (&str, Option<Shown>)) -> Shown {
    let second = second.unwrap_or_else(|| plain(&Value::Null));
    Shown::Map(vec![(one.to_owned(), first), (other.to_owned(), second)])
}

/// A label selector: its labels come first.
pub fn selector(value: &Value) -> Shown {
    let mut out = Vec::new();
    if let Some(labels) = value.get("matchLabels").filter(|v| !v.is_null()) {
        out.push(("matchLabels".to_owned(), plain(labels)));
    }
    if let Some(list) = value.get("matchExpressions").filter(|v| !v.is_null()) {
        out.push(("matchExpressions".to_owned(), plain(list)));
    }
    Shown::Map(out)
}

/// A value as JSON has it.
pub fn plain(value: &Value) -> Shown {
    match value {
        Value::Array(list) => Shown::List(list.iter().map(plain).collect()),
        Value::Object(map) => Shown::Map(map.iter().map(|(k, v)| (k.clone(), plain(v))).collect()),
        other => Shown::Plain(json_escaped(&other.to_string())),
    }
}

/// JSON as Go writes it: with these characters, which are only in its texts, as escapes.
pub fn json_escaped(json: &str) -> String {
    if !json.contains(['<', '>', '&', '\u{2028}', '\u{2029}']) {
        return json.to_owned();
    }
    let mut out = String::with_capacity(json.len() + 5);
    for c in json.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out
}

/// A value that a problem is about: a text in Go's quotes, anything else as JSON.
pub fn value(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        other => json_escaped(&other.to_string()),
    }
}

/// Whether a character can be printed; Rust knows that as well as Go.
pub fn printable(c: char) -> bool {
    matches!(c, ' '..='~') || (!c.is_ascii() && c.escape_debug().count() == 1)
}

/// A text as Go quotes it (`%q`): what cannot be printed is escaped in Go's way, which is not JSON's.
pub fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0b' => out.push_str("\\v"),
            '\x0c' => out.push_str("\\f"),
            ' '..='~' => out.push(c),
            c if c.is_ascii() => out.push_str(&format!("\\x{:02x}", c as u32)),
            c if printable(c) => out.push(c),
            c if (c as u32) < 0x1_0000 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push_str(&format!("\\U{:08x}", c as u32)),
        }
    }
    out.push('"');
    out
}

impl Shown {
    /// In one line.
    pub fn write(&self, out: &mut String) {
        match self {
            Self::Plain(text) => out.push_str(text),
            Self::List(list) => {
                out.push('[');
                for (index, item) in list.iter().enumerate() {
                    out.push_str(if index > 0 { "," } else { "" });
                    item.write(out);
                }
                out.push(']');
            }
            Self::Map(map) => {
                out.push('{');
                for (index, (key, item)) in map.iter().enumerate() {
                    out.push_str(if index > 0 { "," } else { "" });
                    out.push_str(&json_escaped(&json!(key).to_string()));
                    out.push(':');
                    item.write(out);
                }
                out.push('}');
            }
        }
    }

    /// In lines, indented by one space a level.
    pub fn lines(&self) -> Vec<String> {
        let mut out = vec![String::new()];
        self.pretty(1, &mut out);
        out
    }

    fn pretty(&self, depth: usize, out: &mut Vec<String>) {
        let (open, close, count) = match self {
            Self::Plain(text) => return last(out, text),
            Self::List(list) => ('[', ']', list.len()),
            Self::Map(map) => ('{', '}', map.len()),
        };
        last(out, &open.to_string());
        for index in 0..count {
            out.push(" ".repeat(depth));
            match self {
                Self::List(list) => list[index].pretty(depth + 1, out),
                Self::Map(map) => {
                    last(out, &format!("{}: ", json_escaped(&json!(map[index].0).to_string())));
                    map[index].1.pretty(depth + 1, out);
                }
                Self::Plain(_) => {}
            }
            if index + 1 < count {
                last(out, ",");
            }
        }
        if count > 0 {
            out.push(" ".repeat(depth - 1));
        }
        last(out, &close.to_string());
    }
}

fn last(out: &mut [String], text: &str) {
    if let Some(line) = out.last_mut() {
        line.push_str(text);
    }
}

/// The difference of two values of a type, as messages show it.
pub fn difference(kind: &str, old: &Value, new: &Value) -> String {
    unified(&of(kind, old).lines(), &of(kind, new).lines())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_quoted_as_go_quotes_them() {
        for (text, expected) in [
            ("a<b>&\u{e9}", "\"a<b>&\u{e9}\""),
            ("a\"\\\n\t\x07\x01\x7f", r#""a\"\\\n\t\a\x01\x7f""#),
            ("\u{a0}\u{2028}\u{e0001}", r#""\u00a0\u2028\U000e0001""#),
        ] {
            assert_eq!(value(&json!(text)), expected, "{text:?}");
        }
        assert_eq!(value(&json!({"a&b": ["<"]})), r#"{"a\u0026b":["\u003c"]}"#);
        assert_eq!(compact("NodeAddress", &json!({"type": "<"})), r#"{"Type":"\u003c","Address":""}"#);
    }

    #[test]
    fn structs_are_shown_in_their_order_with_empty_fields() {
        for (kind, value, expected) in [
            ("DeploymentStrategy", json!({"type": "Slowly"}), r#"{"Type":"Slowly","RollingUpdate":null}"#),
            (
                "ServicePort",
                json!({"port": 1}),
                r#"{"Name":"","Protocol":"","AppProtocol":null,"Port":1,"TargetPort":0,"NodePort":0}"#,
            ),
            (
                "CSINodeDriver",
                json!({"name": "d", "nodeID": "n"}),
                r#"{"Name":"d","NodeID":"n","TopologyKeys":null,"Allocatable":null}"#,
            ),
        ] {
            assert_eq!(compact(kind, &value), expected);
        }
        let columns = json!([{"name": "a", "type": "string", "jsonPath": ".b"}]);
        let expected = r#"[{"Name":"a","Type":"string","Format":"","Description":"","Priority":0,"JSONPath":".b"}]"#;
        assert_eq!(compact_list("CRDColumn", &columns), expected);
        assert_eq!(compact_list("CRDColumn", &Value::Null), "null");
    }

    #[test]
    fn schemas_are_shown_with_their_alternatives() {
        for (value, expected) in [
            (json!({"additionalProperties": true}), r#""AdditionalProperties":{"Allows":true,"Schema":null},"#),
            (json!({"additionalProperties": false}), r#""AdditionalProperties":{"Allows":false,"Schema":null},"#),
            (
                json!({"additionalProperties": {"type": "string"}}),
                r#""AdditionalProperties":{"Allows":true,"Schema":{"ID":"","Schema":"","Ref":null,"Description":"","Type":"string","#,
            ),
            (json!({"items": {"type": "string"}}), r#""Items":{"Schema":{"ID":"","#),
            (json!({"items": [{}]}), r#""Items":{"Schema":null,"JSONSchemas":[{"ID":"","#),
            (json!({"x-kubernetes-list-type": "set"}), r#""XListMapKeys":null,"XListType":"set","XMapType":null,"#),
        ] {
            let shown = compact("JSONSchemaProps", &value);
            assert!(shown.contains(expected), "{shown}");
        }
    }

    #[test]
    fn every_type_that_is_named_exists() {
        for (kind, fields) in TYPES.iter() {
            for field in fields {
                let base = field.form.trim_start_matches(['[', '{']).trim_end_matches('?');
                let known = matches!(base, "" | "s" | "i" | "b" | "q" | "x" | "t" | "j" | "sel" | "allows" | "list")
                    || TYPES.contains_key(base);
                assert!(known, "{kind}.{} has the unknown form {base:?}", field.go);
            }
        }
    }
}
