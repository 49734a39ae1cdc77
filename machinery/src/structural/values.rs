//! Values against a schema, with the words of the API's OpenAPI validator.

use serde_json::{Map, Value};

use super::{Additional, Schema, formats, join};
use crate::names::dns_label_1035;
use crate::status::Cause;

/// What kind of failure it is; some keep CEL rules from being checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// A field is missing.
    Required,
    /// Of another type.
    Type,
    /// Not one of the allowed values.
    NotSupported,
    /// A text that is too long.
    TooLong,
    /// A list or map that is too large.
    TooMany,
    /// Anything else about a field.
    Invalid,
    /// About a value as a whole (`oneOf` and its kind): it names no field.
    Whole,
}

/// A value that is not of its schema.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Kind.
    pub kind: FailureKind,
    /// The cause as it is told.
    pub cause: Cause,
}

impl Failure {
    /// Whether rules are not checked because of it.
    pub fn blocks_rules(&self) -> bool {
        !matches!(self.kind, FailureKind::Invalid | FailureKind::Whole)
    }
}

/// Where a value is: the path that messages name and what comes before it in the field of the cause.
struct Place<'a> {
    prefix: &'a str,
    path: String,
}

impl Place<'_> {
    fn child(&self, key: &str) -> Self {
        Place { prefix: self.prefix, path: join(&self.path, key) }
    }

    /// The field of a cause.
    fn field(&self) -> String {
        match (self.prefix, self.path.as_str()) {
            ("", "") => "<nil>".into(),
            ("", path) | (path, "") => path.into(),
            (prefix, path) => format!("{prefix}.{path}"),
        }
    }

    fn whole(&self) -> String {
        if self.prefix.is_empty() { "<nil>".into() } else { self.prefix.into() }
    }
}

/// Failures of a value below `prefix` (messages name paths relative to it).
pub fn validate(schema: &Schema, value: &Value, prefix: &str) -> Vec<Failure> {
    let mut failures = Vec::new();
    check(schema, value, &Place { prefix, path: String::new() }, &mut failures);
    failures
}

fn check(schema: &Schema, value: &Value, at: &Place<'_>, out: &mut Vec<Failure>) {
    if value.is_null() && schema.nullable {
        return;
    }
    check_type(schema, value, at, out);
    combinations(schema, value, at, out);
    match value {
        Value::String(text) => string(schema, text, value, at, out),
        Value::Number(number) => {
            if let Some(n) = number.as_f64() {
                self::number(schema, n, value, at, out);
            }
        }
        Value::Array(list) => array(schema, list, at, out),
        Value::Object(map) => object(schema, map, at, out),
        _ => {}
    }
    if !schema.allowed.is_empty() && !schema.allowed.contains(value) {
        let words: Vec<String> =
            schema.allowed.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        out.push(Failure { kind: FailureKind::NotSupported, cause: Cause::not_supported(at.field(), value, &words) });
    }
}

fn name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        // What no signed integer of 64 bits holds is read as a fraction.
        Value::Number(n) if n.as_i64().is_none() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn type_failure(at: &Place<'_>, wanted: &str, given: &Value) -> Failure {
    let message = format!("Invalid value: {given}: {} in body must be of type {wanted}: {given}", at.path);
    Failure {
        kind: FailureKind::Type,
        cause: Cause { reason: "FieldValueTypeInvalid".into(), message, field: at.field() },
    }
}

fn check_type(schema: &Schema, value: &Value, at: &Place<'_>, out: &mut Vec<Failure>) {
    let given = name(value);
    /// Up to here a fraction without a rest counts as an integer.
    const EXACT: f64 = 9_007_199_254_740_991.0;
    let integral = value.as_f64().is_some_and(|n| n.fract() == 0.0 && n.abs() <= EXACT);
    if schema.int_or_string {
        if !(given == "string" || given == "integer" || (given == "number" && integral)) {
            out.push(type_failure(at, "integer,string", &given.into()));
        }
        return;
    }
    let fits = match schema.kind.as_str() {
        "" => true,
        "number" => matches!(given, "number" | "integer"),
        "integer" => given == "integer" || (given == "number" && integral),
        wanted => wanted == given,
    };
    if !fits {
        out.push(type_failure(at, &schema.kind, &given.into()));
    }
}

fn invalid(at: &Place<'_>, value: &Value, why: &str) -> Failure {
    let detail = format!("{} in body {why}", at.path);
    Failure { kind: FailureKind::Invalid, cause: Cause::invalid(at.field(), value, &detail) }
}

fn string(schema: &Schema, text: &str, value: &Value, at: &Place<'_>, out: &mut Vec<Failure>) {
    let length = text.chars().count() as u64;
    let (least, most) = schema.length;
    if let Some(most) = most.filter(|most| length > *most) {
        let message = format!("Too long: may not be more than {most} bytes");
        let cause = Cause { reason: "FieldValueTooLong".into(), message, field: at.field() };
        out.push(Failure { kind: FailureKind::TooLong, cause });
    } else if let Some(least) = least.filter(|least| length < *least) {
        out.push(invalid(at, value, &format!("should be at least {least} chars long")));
    } else if schema.regex().is_some_and(|regex| !regex.is_match(text)) {
        out.push(invalid(at, value, &format!("should match '{}'", schema.pattern)));
    }
    if !schema.format.is_empty() && !formats::matches_format(&schema.format, text) {
        out.push(type_failure(at, &schema.format, value));
    }
}

/// Whether a number is one of its type and format.
fn in_range(schema: &Schema, n: f64, value: &Value) -> bool {
    let whole = value.as_i64().or_else(|| (n.fract() == 0.0 && n.abs() < 9.2e18).then_some(n as i64));
    match (schema.kind.as_str(), schema.format.as_str()) {
        ("integer", "int32") => whole.is_some_and(|n| i32::try_from(n).is_ok()),
        ("integer", "uint32") => whole.is_some_and(|n| u32::try_from(n).is_ok()),
        ("integer", "uint64") => value.is_u64() || whole.is_some_and(|n| n >= 0),
        ("integer", _) => whole.is_some(),
        ("number", "float" | "float32") => n.abs() <= f64::from(f32::MAX),
        _ => true,
    }
}

fn number(schema: &Schema, n: f64, value: &Value, at: &Place<'_>, out: &mut Vec<Failure>) {
    if !in_range(schema, n, value) {
        let (kind, format) = (schema.kind.as_str(), schema.format.as_str());
        let form = if format.is_empty() { "(default format)".to_owned() } else { format!("with format {format}") };
        out.push(whole(at, &format!("Checked value must be of type {kind} {form} in {}", at.path)));
    }
    if let Some(factor) = schema.multiple_of.filter(|f| (n / f).fract() != 0.0) {
        out.push(invalid(at, value, &format!("should be a multiple of {factor}")));
    }
    match schema.maximum {
        Some((most, true)) if n >= most => out.push(invalid(at, value, &format!("should be less than {most}"))),
        Some((most, false)) if n > most => {
            out.push(invalid(at, value, &format!("should be less than or equal to {most}")))
        }
        _ => {}
    }
    match schema.minimum {
        Some((least, true)) if n <= least => out.push(invalid(at, value, &format!("should be greater than {least}"))),
        Some((least, false)) if n < least => {
            out.push(invalid(at, value, &format!("should be greater than or equal to {least}")));
        }
        _ => {}
    }
}

fn too_many(at: &Place<'_>, count: usize, most: u64) -> Failure {
    let items = if most == 1 { "item" } else { "items" };
    let message = format!("Too many: {count}: must have at most {most} {items}");
    Failure {
        kind: FailureKind::TooMany,
        cause: Cause { reason: "FieldValueTooMany".into(), message, field: at.field() },
    }
}

fn array(schema: &Schema, list: &[Value], at: &Place<'_>, out: &mut Vec<Failure>) {
    if let Some(items) = &schema.items {
        for (index, item) in list.iter().enumerate() {
            check(items, item, &Place { prefix: at.prefix, path: format!("{}[{index}]", at.path) }, out);
        }
    }
    let (least, most) = schema.item_count;
    if let Some(least) = least.filter(|least| (list.len() as u64) < *least) {
        out.push(invalid(at, &list.into(), &format!("should have at least {least} items")));
    }
    if let Some(most) = most.filter(|most| list.len() as u64 > *most) {
        out.push(too_many(at, list.len(), most));
    }
}

fn object(schema: &Schema, map: &Map<String, Value>, at: &Place<'_>, out: &mut Vec<Failure>) {
    let (least, most) = schema.property_count;
    if let Some(least) = least.filter(|least| (map.len() as u64) < *least) {
        out.push(invalid(at, &map.clone().into(), &format!("should have at least {least} properties")));
    }
    if let Some(most) = most.filter(|most| map.len() as u64 > *most) {
        out.push(too_many(at, map.len(), most));
    }
    for key in schema.required.iter().filter(|key| !map.contains_key(*key)) {
        out.push(Failure { kind: FailureKind::Required, cause: Cause::required(at.child(key).field(), "") });
    }
    if schema.embedded {
        embedded(map, at, out);
    }
    for (key, value) in map {
        match (schema.field(key), &schema.additional) {
            (Some(field), _) => check(field, value, &at.child(key), out),
            (None, Some(Additional::Any(false))) => {
                out.push(whole(at, &format!("{}.{key} in body is a forbidden property", at.path)));
            }
            _ => {}
        }
    }
}

/// A whole object inside another says what it is.
fn embedded(map: &Map<String, Value>, at: &Place<'_>, out: &mut Vec<Failure>) {
    for key in ["apiVersion", "kind"] {
        let field = at.child(key).field();
        let why = match map.get(key) {
            None => {
                out.push(Failure { kind: FailureKind::Required, cause: Cause::required(field, "") });
                continue;
            }
            Some(Value::String(text)) if text.is_empty() => "must not be empty".to_owned(),
            Some(Value::String(text)) if key == "apiVersion" && text.matches('/').count() > 1 => {
                format!("unexpected GroupVersion string: {text}")
            }
            Some(Value::String(text)) if key == "kind" => match dns_label_1035(&text.to_lowercase()) {
                Some(why) => format!("may have mixed case, but should otherwise match: {why}"),
                None => continue,
            },
            // That it is no text is told of its type.
            _ => continue,
        };
        let shown = map.get(key).cloned().unwrap_or_default();
        out.push(Failure { kind: FailureKind::Invalid, cause: Cause::invalid(field, &shown, &why) });
    }
}

fn whole(at: &Place<'_>, message: &str) -> Failure {
    let cause = Cause::invalid(at.whole(), &Value::String(String::new()), message);
    Failure { kind: FailureKind::Whole, cause }
}

fn combinations(schema: &Schema, value: &Value, at: &Place<'_>, out: &mut Vec<Failure>) {
    let try_all = |schemas: &[Schema]| -> Vec<Vec<Failure>> {
        let one = |schema: &Schema| {
            let mut failures = Vec::new();
            check(schema, value, &Place { prefix: at.prefix, path: at.path.clone() }, &mut failures);
            failures
        };
        schemas.iter().map(one).collect()
    };
    let path = &at.path;
    if !schema.any_of.is_empty() {
        let tried = try_all(&schema.any_of);
        if tried.iter().all(|failures| !failures.is_empty()) {
            out.push(whole(at, &format!("{path:?} must validate at least one schema (anyOf)")));
            out.extend(tried.into_iter().next().unwrap_or_default());
        }
    }
    if !schema.one_of.is_empty() {
        let tried = try_all(&schema.one_of);
        match tried.iter().filter(|failures| failures.is_empty()).count() {
            1 => {}
            0 => {
                out.push(whole(
                    at,
                    &format!("{path:?} must validate one and only one schema (oneOf). Found none valid"),
                ));
                out.extend(tried.into_iter().next().unwrap_or_default());
            }
            many => {
                let why =
                    format!("{path:?} must validate one and only one schema (oneOf). Found {many} valid alternatives");
                out.push(whole(at, &why));
            }
        }
    }
    if !schema.all_of.is_empty() {
        let tried = try_all(&schema.all_of);
        let valid = tried.iter().filter(|failures| failures.is_empty()).count();
        if valid < tried.len() {
            let none = if valid == 0 { ". None validated" } else { "" };
            out.push(whole(at, &format!("{path:?} must validate all the schemas (allOf){none}")));
            out.extend(tried.into_iter().flatten());
        }
    }
    if let Some(not) = &schema.not
        && try_all(std::slice::from_ref(&**not)).iter().all(Vec::is_empty)
    {
        out.push(whole(at, &format!("{path:?} must not validate the schema (not)")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_are_checked() {
        let schema = Schema::parse(&json!({"type": "object", "required": ["r"], "properties": {
            "r": {"type": "integer", "minimum": 1, "maximum": 9, "multipleOf": 2}, "s": {"type": "string", "maxLength": 3, "pattern": "^a"},
            "p": {"x-kubernetes-int-or-string": true}, "l": {"type": "array", "maxItems": 1, "items": {"type": "string"}},
            "m": {"type": "object", "additionalProperties": {"type": "boolean"}}, "e": {"type": "string", "enum": ["x"]},
            "o": {"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}, "f": {"type": "string", "format": "ipv4"},
            "i": {"type": "integer", "format": "int32"}, "j": {"type": "integer"}, "n": {"type": "number", "format": "float"},
            "w": {"type": "object", "x-kubernetes-embedded-resource": true}}}));
        for (value, fields) in [
            (json!({"r": 2}), vec![]),
            (json!({}), vec!["r"]),
            (json!({"r": 2.0, "p": "x"}), vec![]),
            (json!({"r": 3}), vec!["r"]),
            (json!({"r": 12}), vec!["r"]),
            (json!({"r": 0}), vec!["r"]),
            (json!({"r": 2, "s": "abcd"}), vec!["s"]),
            (json!({"r": 2, "s": "b"}), vec!["s"]),
            (json!({"r": 2, "p": true}), vec!["p"]),
            (json!({"r": 2, "l": ["a", 1]}), vec!["l[1]", "l"]),
            (json!({"r": 2, "m": {"k": 1}}), vec!["m.k"]),
            (json!({"r": 2, "e": "y"}), vec!["e"]),
            (json!({"r": 2, "o": {"a": 1, "b": 2}}), vec!["<nil>"]),
            (json!({"r": 2, "o": {}}), vec!["<nil>", "o.a"]),
            (json!({"r": 2, "f": "1"}), vec!["f"]),
            (json!({"r": 2, "w": {"kind": "K"}}), vec!["w.apiVersion"]),
            (json!({"r": 2, "w": {"kind": "", "apiVersion": ""}}), vec!["w.apiVersion", "w.kind"]),
            (json!({"r": 2, "w": {"kind": "a b", "apiVersion": "a/b/c"}}), vec!["w.apiVersion", "w.kind"]),
            (json!({"r": 2, "w": {"kind": "Ab", "apiVersion": "a/b"}}), vec![]),
            (json!({"r": 2, "i": 2147483647}), vec![]),
            (json!({"r": 2, "i": 2147483648_i64}), vec!["<nil>"]),
            (json!({"r": 2, "j": i64::MAX}), vec![]),
            (json!({"r": 2, "j": u64::MAX}), vec!["j", "<nil>"]),
            (json!({"r": 2, "j": 1.5}), vec!["j", "<nil>"]),
            (json!({"r": 2, "n": 1e39}), vec!["<nil>"]),
        ] {
            let got: Vec<String> = validate(&schema, &value, "").into_iter().map(|f| f.cause.field).collect();
            assert_eq!(got, fields, "{value}");
        }
        let told = validate(
            &Schema::parse(&json!({"type": "object", "properties": {"n": {"type": "integer"}}})),
            &json!({"n": "x"}),
            "status",
        );
        assert_eq!(told[0].cause.field, "status.n");
        assert_eq!(told[0].cause.message, "Invalid value: \"string\": n in body must be of type integer: \"string\"");
    }
}
