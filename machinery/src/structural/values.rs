//! Values against a schema, with the words of the API's OpenAPI validator.

use std::cmp::Ordering;

use serde_json::{Map, Value};

use super::rules::same_item;
use super::{Additional, Schema, formats, join};
use crate::names::dns_label_1035;
use crate::shown;
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

    fn item(&self, index: usize) -> Self {
        Place { prefix: self.prefix, path: format!("{}[{index}]", self.path) }
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

/// Failures of a value below `prefix` (messages name paths relative to it). What an update of `old` left as it was is not
/// held against it: a value that can be told from what it was, and all that is in it.
pub fn validate(schema: &Schema, value: &Value, old: Option<&Value>, prefix: &str) -> Vec<Failure> {
    let (mut failures, at) = (Vec::new(), Place { prefix, path: String::new() });
    check(schema, value, old, &at, &mut failures);
    whole_objects(schema, value, &at, &mut failures);
    failures
}

/// Checks a value, but for what did not change; gives how many checks there were to make of it, by which the nearest of
/// several schemas is chosen.
fn check(schema: &Schema, value: &Value, old: Option<&Value>, at: &Place<'_>, out: &mut Vec<Failure>) -> u64 {
    let before = out.len();
    let checks = look_at(schema, value, old, at, out);
    if out.len() > before && old == Some(value) {
        out.truncate(before);
    }
    checks
}

fn look_at(schema: &Schema, value: &Value, old: Option<&Value>, at: &Place<'_>, out: &mut Vec<Failure>) -> u64 {
    if value.is_null() {
        return null(schema, at, out);
    }
    let mut checks = 2 + combinations(schema, value, old, at, out);
    if !types(schema).is_empty() || !format(schema).is_empty() {
        checks += 1 + u64::from(check_type(schema, value, at, out));
    }
    checks += match value {
        Value::String(text) => string(schema, text, value, at, out),
        Value::Number(_) => number(schema, value, at, out),
        Value::Array(list) => array(schema, list, old, at, out),
        Value::Object(map) => object(schema, map, old, at, out),
        _ => 0,
    };
    if !schema.allowed.is_empty() && !schema.allowed.iter().any(|allowed| is_same(value, allowed)) {
        out.push(not_allowed(schema, value, at));
    }
    checks
}

/// Null is of no type, and no value of a list of allowed ones.
fn null(schema: &Schema, at: &Place<'_>, out: &mut Vec<Failure>) -> u64 {
    let types = types(schema);
    if schema.nullable {
        return 1;
    }
    if !schema.allowed.is_empty() {
        out.push(not_allowed(schema, &Value::Null, at));
    }
    if types.is_empty() {
        return 1;
    }
    out.push(type_failure(at, &types.join(","), &"null".into()));
    0
}

fn not_allowed(schema: &Schema, value: &Value, at: &Place<'_>) -> Failure {
    let words: Vec<String> =
        schema.allowed.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Failure { kind: FailureKind::NotSupported, cause: Cause::not_supported(at.field(), value, &words) }
}

/// Whether a value is an allowed one: a number is one of that number's kind first.
fn is_same(value: &Value, allowed: &Value) -> bool {
    match (value, allowed) {
        (Value::Number(value), Value::Number(allowed)) => match (value.as_f64(), allowed.as_i64()) {
            (Some(value), Some(allowed)) => value.trunc() == allowed as f64,
            (value, _) => value == allowed.as_f64(),
        },
        _ => value == allowed,
    }
}

/// The types that a value may have; none: any.
fn types(schema: &Schema) -> &[&str] {
    match schema.kind.as_str() {
        _ if schema.int_or_string => &["integer", "string"],
        "array" => &["array"],
        "boolean" => &["boolean"],
        "integer" => &["integer"],
        "number" => &["number"],
        "object" => &["object"],
        "string" => &["string"],
        _ => &[],
    }
}

/// The format, if it has a meaning.
fn format(schema: &Schema) -> &str {
    if formats::is_known_format(&schema.format) { &schema.format } else { "" }
}

/// The type and format of a value as it is read: what no signed integer of 64 bits holds is read as a fraction.
fn read_as(value: &Value) -> (&'static str, &'static str) {
    match value {
        Value::Null => ("null", ""),
        Value::Bool(_) => ("boolean", ""),
        Value::Number(n) if n.as_i64().is_none() => ("number", "float64"),
        Value::Number(_) => ("integer", "int64"),
        Value::String(_) => ("string", ""),
        Value::Array(_) => ("array", ""),
        Value::Object(_) => ("object", ""),
    }
}

fn type_failure(at: &Place<'_>, wanted: &str, given: &Value) -> Failure {
    let message = format!("Invalid value: {given}: {} in body must be of type {wanted}: {given}", at.path);
    Failure {
        kind: FailureKind::Type,
        cause: Cause { reason: "FieldValueTypeInvalid".into(), message, field: at.field() },
    }
}

/// Whether a number counts as an integer: up to a rest that comes of calculating with fractions.
fn is_integral(n: f64) -> bool {
    /// Up to here a fraction without a rest counts as an integer.
    const EXACT: f64 = 9_007_199_254_740_991.0;
    /// The part of a number that its rest may be.
    const REST: f64 = 1e-9;
    n.abs() <= EXACT && (n.fract() == 0.0 || (n.trunc() != 0.0 && n.fract().abs() / (n.abs() + n.trunc().abs()) < REST))
}

/// Whether a value is of its type. What a text or a list holds is left to its format, and of other values that do not fit
/// it is the format that is told.
fn check_type(schema: &Schema, value: &Value, at: &Place<'_>, out: &mut Vec<Failure>) -> bool {
    let (types, format) = (types(schema), format(schema));
    let (given, read) = read_as(value);
    let fits = types.contains(&given)
        || (given == "number" && value.as_f64().is_some_and(is_integral) && types.contains(&"integer"))
        || (given == "integer" && types.contains(&"number"));
    let numeric = types.contains(&"number") || types.contains(&"integer");
    let told = match given {
        _ if fits => return true,
        "string" | "array" if !format.is_empty() && !numeric => return true,
        "string" | "array" => type_failure(at, &types.join(","), &given.into()),
        _ if !format.is_empty() => type_failure(at, format, &read.into()),
        _ => type_failure(at, &types.join(","), &given.into()),
    };
    out.push(told);
    false
}

fn invalid(at: &Place<'_>, shown: &str, why: &str) -> Failure {
    let detail = format!("{} in body {why}", at.path);
    Failure { kind: FailureKind::Invalid, cause: Cause::invalid_shown(at.field(), shown, &detail) }
}

fn string(schema: &Schema, text: &str, value: &Value, at: &Place<'_>, out: &mut Vec<Failure>) -> u64 {
    let length = text.chars().count() as u64;
    let (least, most) = schema.length;
    if let Some(most) = most.filter(|most| length > *most) {
        let message = format!("Too long: may not be more than {most} bytes");
        let cause = Cause { reason: "FieldValueTooLong".into(), message, field: at.field() };
        out.push(Failure { kind: FailureKind::TooLong, cause });
    } else if let Some(least) = least.filter(|least| length < *least) {
        out.push(invalid(at, &shown::value(value), &format!("should be at least {least} chars long")));
    } else if schema.regex().is_some_and(|regex| !regex.is_match(text)) {
        out.push(invalid(at, &shown::value(value), &format!("should match '{}'", schema.pattern)));
    }
    if !formats::is_of_text(&schema.format) {
        return 1;
    }
    if !formats::matches_format(&schema.format, text) {
        out.push(type_failure(at, &schema.format, value));
    }
    2
}

/// Whether a number is one of its type and format.
fn in_range(schema: &Schema, value: Number) -> bool {
    let whole = value.whole();
    match (schema.kind.as_str(), schema.format.as_str()) {
        ("integer", "int32") => whole.is_some_and(|n| i32::try_from(n).is_ok()),
        ("integer", "uint32") => whole.is_some_and(|n| u32::try_from(n).is_ok()),
        ("integer", "uint64") => whole.is_some_and(|n| n >= 0),
        ("integer", _) => whole.is_some(),
        ("number", "float" | "float32") => value.real().abs() <= f64::from(f32::MAX),
        _ => true,
    }
}

/// A number as it is compared and shown.
#[derive(Clone, Copy)]
enum Number {
    Whole(i64),
    Real(f64),
}

impl Number {
    fn of(value: &Value) -> Self {
        value.as_i64().map_or_else(|| Self::Real(value.as_f64().unwrap_or_default()), Self::Whole)
    }

    fn real(self) -> f64 {
        match self {
            Self::Whole(n) => n as f64,
            Self::Real(n) => n,
        }
    }

    fn whole(self) -> Option<i64> {
        match self {
            Self::Whole(n) => Some(n),
            Self::Real(n) => (n.fract() == 0.0 && n.abs() < 9.2e18).then_some(n as i64),
        }
    }

    /// Both as integers if this is one, else both as fractions.
    fn beside(self, bound: f64, as_integers: bool) -> (Self, Self) {
        match self {
            Self::Whole(_) if as_integers => (self, Self::Whole(bound as i64)),
            _ => (Self::Real(self.real()), Self::Real(bound)),
        }
    }
}

impl PartialEq for Number {
    fn eq(&self, other: &Self) -> bool {
        self.partial_cmp(other) == Some(Ordering::Equal)
    }
}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Whole(one), Self::Whole(other)) => Some(one.cmp(other)),
            _ => self.real().partial_cmp(&other.real()),
        }
    }
}

impl std::fmt::Display for Number {
    /// Fractions as Go writes them.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Whole(n) => n.fmt(f),
            Self::Real(n) if *n != 0.0 && !(1e-4..1e6).contains(&n.abs()) => {
                let shortest = format!("{n:e}");
                let (digits, exponent) = shortest.split_once('e').unwrap_or((&shortest, "0"));
                let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
                write!(f, "{digits}e{sign}{exponent:0>2}")
            }
            Self::Real(n) => n.fmt(f),
        }
    }
}

/// A number as Go's `%v` writes it: fractions far from one with an exponent.
pub fn shown(number: &Value) -> String {
    Number::of(number).to_string()
}

fn number(schema: &Schema, value: &Value, at: &Place<'_>, out: &mut Vec<Failure>) -> u64 {
    let given = Number::of(value);
    let fits = |what: &str, number: Number, out: &mut Vec<Failure>| {
        let fits = in_range(schema, number);
        if !fits {
            let (kind, format) = (schema.kind.as_str(), schema.format.as_str());
            let form = if format.is_empty() { "(default format)".to_owned() } else { format!("with format {format}") };
            out.push(whole(at, &format!("{what} value must be of type {kind} {form} in {}", at.path)));
        }
        fits
    };
    fits("Checked", given, out);
    if let Some(factor) = schema.multiple_of {
        let same = fits("MultipleOf", Number::Real(factor), out);
        let (n, factor) = given.beside(factor, same);
        let off = match (n, factor) {
            (Number::Whole(n), Number::Whole(factor)) => n.checked_rem(factor).is_some_and(|rest| rest != 0),
            _ if factor.real() < 1.0 => !is_integral(1.0 / factor.real() * n.real()),
            _ => !is_integral(n.real() / factor.real()),
        };
        if off {
            out.push(invalid(at, &n.to_string(), &format!("should be a multiple of {factor}")));
        }
    }
    if let Some((most, excluded)) = schema.maximum {
        let same = fits("Maximum boundary", Number::Real(most), out);
        let (n, most) = given.beside(most, same);
        if n > most || (excluded && n == most) {
            let than = if excluded { "less than" } else { "less than or equal to" };
            out.push(invalid(at, &n.to_string(), &format!("should be {than} {most}")));
        }
    }
    if let Some((least, excluded)) = schema.minimum {
        let same = fits("Minimum boundary", Number::Real(least), out);
        let (n, least) = given.beside(least, same);
        if n < least || (excluded && n == least) {
            let than = if excluded { "greater than" } else { "greater than or equal to" };
            out.push(invalid(at, &n.to_string(), &format!("should be {than} {least}")));
        }
    }
    2
}

fn too_many(at: &Place<'_>, count: usize, most: u64) -> Failure {
    let items = if most == 1 { "item" } else { "items" };
    let message = format!("Too many: {count}: must have at most {most} {items}");
    Failure {
        kind: FailureKind::TooMany,
        cause: Cause { reason: "FieldValueTooMany".into(), message, field: at.field() },
    }
}

fn array(schema: &Schema, list: &[Value], old: Option<&Value>, at: &Place<'_>, out: &mut Vec<Failure>) -> u64 {
    let mut checks = 2;
    if let Some(items) = &schema.items {
        for (index, item) in list.iter().enumerate() {
            checks += check(items, item, same_item(schema, item, old), &at.item(index), out);
        }
    }
    let (least, most) = schema.item_count;
    if let Some(least) = least.filter(|least| (list.len() as u64) < *least) {
        out.push(invalid(at, &list.len().to_string(), &format!("should have at least {least} items")));
    }
    if let Some(most) = most.filter(|most| list.len() as u64 > *most) {
        out.push(too_many(at, list.len(), most));
    }
    checks
}

fn object(
    schema: &Schema,
    map: &Map<String, Value>,
    old: Option<&Value>,
    at: &Place<'_>,
    out: &mut Vec<Failure>,
) -> u64 {
    // With too few or too many fields none is looked at.
    let (least, most) = schema.property_count;
    if let Some(least) = least.filter(|least| (map.len() as u64) < *least) {
        out.push(invalid(at, &map.len().to_string(), &format!("should have at least {least} properties")));
        return 1;
    }
    if let Some(most) = most.filter(|most| map.len() as u64 > *most) {
        out.push(too_many(at, map.len(), most));
        return 1;
    }
    for key in schema.required.iter().filter(|key| !map.contains_key(*key)) {
        out.push(Failure { kind: FailureKind::Required, cause: Cause::required(at.child(key).field(), "") });
    }
    let mut checks = 1;
    for (key, value) in map {
        match (schema.field(key), &schema.additional) {
            (Some(field), _) => checks += check(field, value, old.and_then(|old| old.get(key)), &at.child(key), out),
            (None, Some(Additional::Any(false))) => {
                let why = format!("{}.{key} in body is a forbidden property", at.path);
                let cause = Cause::invalid(at.field(), &Value::from(key.as_str()), &why);
                out.push(Failure { kind: FailureKind::Invalid, cause });
            }
            _ => {}
        }
    }
    checks
}

/// The whole objects inside another; of those an update is told too if it left them as they were.
fn whole_objects(schema: &Schema, value: &Value, at: &Place<'_>, out: &mut Vec<Failure>) {
    if !schema.has_embedded {
        return;
    }
    match value {
        Value::Object(map) => {
            if schema.embedded {
                embedded(map, at, out);
            }
            for (key, value) in map {
                if let Some(field) = schema.field(key) {
                    whole_objects(field, value, &at.child(key), out);
                }
            }
        }
        Value::Array(list) => {
            let Some(items) = &schema.items else { return };
            for (index, item) in list.iter().enumerate() {
                whole_objects(items, item, &at.item(index), out);
            }
        }
        _ => {}
    }
}

/// A whole object inside another says what it is.
fn embedded(map: &Map<String, Value>, at: &Place<'_>, out: &mut Vec<Failure>) {
    for key in ["apiVersion", "kind"] {
        let field = at.child(key).field();
        let why = match map.get(key) {
            given if given.is_none_or(|given| given == "") => {
                out.push(Failure { kind: FailureKind::Required, cause: Cause::required(field, "") });
                continue;
            }
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
    for cause in map.get("metadata").map(crate::validation::inner_metadata).into_iter().flatten() {
        let field = at.child(&cause.field).field();
        out.push(Failure { kind: FailureKind::Invalid, cause: Cause { field, ..cause } });
    }
}

fn whole(at: &Place<'_>, message: &str) -> Failure {
    let cause = Cause::invalid(at.whole(), &Value::String(String::new()), message);
    Failure { kind: FailureKind::Whole, cause }
}

/// What was found of one of several schemas, and how many checks it took.
type Tried = (Vec<Failure>, u64);

/// Of schemas that do not fit, the one with the most checks is told of.
fn nearest(tried: Vec<Tried>) -> Tried {
    let further = |best: Tried, other: Tried| if other.1 > best.1 { other } else { best };
    tried.into_iter().reduce(further).unwrap_or_default()
}

fn combinations(schema: &Schema, value: &Value, old: Option<&Value>, at: &Place<'_>, out: &mut Vec<Failure>) -> u64 {
    let try_all = |schemas: &[Schema]| -> Vec<Tried> {
        let one = |schema: &Schema| {
            let mut failures = Vec::new();
            // Whether the value itself is as it was is asked of all schemas together.
            let checks = look_at(schema, value, old, at, &mut failures);
            (failures, checks)
        };
        schemas.iter().map(one).collect()
    };
    let fits = |(failures, _): &&Tried| failures.is_empty();
    let (path, mut checks) = (&at.path, 2);
    if !schema.any_of.is_empty() {
        let tried = try_all(&schema.any_of);
        if let Some((_, first)) = tried.iter().find(fits) {
            checks += first;
        } else {
            out.push(whole(at, &format!("{path:?} must validate at least one schema (anyOf)")));
            let (failures, made) = nearest(tried);
            out.extend(failures);
            checks += made;
        }
    }
    if !schema.one_of.is_empty() {
        let tried = try_all(&schema.one_of);
        let told = |found: &str| whole(at, &format!("{path:?} must validate one and only one schema (oneOf). {found}"));
        match tried.iter().filter(fits).count() {
            1 => checks += tried.iter().find(fits).map_or(0, |(_, made)| *made),
            0 => {
                out.push(told("Found none valid"));
                let (failures, made) = nearest(tried);
                out.extend(failures);
                checks += made;
            }
            many => out.push(told(&format!("Found {many} valid alternatives"))),
        }
    }
    if !schema.all_of.is_empty() {
        let tried = try_all(&schema.all_of);
        let valid = tried.iter().filter(fits).count();
        if valid < tried.len() {
            let none = if valid == 0 { ". None validated" } else { "" };
            out.push(whole(at, &format!("{path:?} must validate all the schemas (allOf){none}")));
        }
        for (failures, made) in tried {
            out.extend(failures);
            checks += made;
        }
    }
    if let Some(not) = &schema.not
        && try_all(std::slice::from_ref(&**not)).iter().all(|(failures, _)| failures.is_empty())
    {
        out.push(whole(at, &format!("{path:?} must not validate the schema (not)")));
    }
    checks
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
            (json!({"r": 2, "w": {"kind": "Ab", "apiVersion": "a", "metadata": {"name": "A B"}}}), vec![]),
            (
                json!({"r": 2, "w": {"kind": "Ab", "apiVersion": "a", "metadata":
                    {"name": "a/b", "namespace": "A", "labels": {"a b": "c"}, "finalizers": ["x y"]}}}),
                vec!["w.metadata.name", "w.metadata.namespace", "w.metadata.labels", "w.metadata.finalizers"],
            ),
            (json!({"r": 2, "i": 2147483647}), vec![]),
            (json!({"r": 2, "i": 2147483648_i64}), vec!["<nil>"]),
            (json!({"r": 2, "j": i64::MAX}), vec![]),
            (json!({"r": 2, "j": u64::MAX}), vec!["j", "<nil>"]),
            (json!({"r": 2, "j": 1.5}), vec!["j", "<nil>"]),
            (json!({"r": 2, "n": 1e39}), vec!["<nil>"]),
        ] {
            let got: Vec<String> = validate(&schema, &value, None, "").into_iter().map(|f| f.cause.field).collect();
            assert_eq!(got, fields, "{value}");
        }
        let told = validate(
            &Schema::parse(&json!({"type": "object", "properties": {"n": {"type": "integer"}}})),
            &json!({"n": "x"}),
            None,
            "status",
        );
        assert_eq!(told[0].cause.field, "status.n");
        assert_eq!(told[0].cause.message, "Invalid value: \"string\": n in body must be of type integer: \"string\"");
    }

    /// Each row: the fields `l` (a plain list), `m` (a list with keys) and `o` of an object, what they were, and where an
    /// update is told of something.
    #[test]
    fn what_did_not_change_is_not_held_against_an_update() {
        let item =
            json!({"type": "object", "properties": {"k": {"type": "string"}, "v": {"type": "string", "maxLength": 1}}});
        let schema = Schema::parse(&json!({"type": "object", "properties": {
            "l": {"type": "array", "items": {"type": "string", "pattern": "^a"}},
            "m": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": item},
            "o": {"type": "object", "required": ["r"], "properties": {"r": {"type": "string"}, "s": {"type": "string"}},
                "oneOf": [{"required": ["r"]}]},
            "w": {"type": "object", "x-kubernetes-embedded-resource": true}}}));
        for (new, old, told) in [
            (json!({"l": ["b"], "o": {}}), json!({"l": ["b"], "o": {}}), vec![]),
            // Items of a plain list cannot be told from what they were.
            (json!({"l": ["b", "a"]}), json!({"l": ["b"]}), vec!["l[0]"]),
            (json!({"m": [{"k": "y"}, {"k": "x", "v": "long"}]}), json!({"m": [{"k": "x", "v": "long"}]}), vec![]),
            (json!({"m": [{"k": "x", "v": "longer"}]}), json!({"m": [{"k": "x", "v": "long"}]}), vec!["m[0].v"]),
            (json!({"o": {"s": "a"}}), json!({"o": {"s": "b"}}), vec!["<nil>", "o.r", "o.r"]),
            (json!({"w": {"kind": "K"}}), json!({"w": {"kind": "K"}}), vec!["w.apiVersion"]),
        ] {
            let got: Vec<String> = validate(&schema, &new, Some(&old), "").into_iter().map(|f| f.cause.field).collect();
            assert_eq!(got, told, "{new}");
        }
    }

    /// Each row: the schema of a field, its value, and what is told of it.
    /// Checks what is told of the value of a field `f`.
    fn told_of(schema: &Value, value: &Value, told: &[&str]) {
        let whole = Schema::parse(&json!({"type": "object", "properties": {"f": schema}}));
        let failures = validate(&whole, &json!({ "f": value }), None, "");
        let got: Vec<String> = failures.iter().map(|f| format!("{}: {}", f.cause.field, f.cause.message)).collect();
        assert_eq!(got, told, "{schema} {value}");
    }

    #[test]
    fn failures_are_told_in_the_words_of_the_api() {
        for (schema, value, told) in [
            (
                json!({"type": "array", "minItems": 1}),
                json!([]),
                vec!["f: Invalid value: 0: f in body should have at least 1 items"],
            ),
            (
                json!({"type": "object", "minProperties": 2, "required": ["x"]}),
                json!({"a": 1}),
                vec!["f: Invalid value: 1: f in body should have at least 2 properties"],
            ),
            (
                json!({"type": "object", "maxProperties": 1, "additionalProperties": {"type": "string"}}),
                json!({"a": 1, "b": 2}),
                vec!["f: Too many: 2: must have at most 1 item"],
            ),
            (
                json!({"type": "number", "maximum": 1_000_000}),
                json!(2_000_000.5),
                vec!["f: Invalid value: 2.0000005e+06: f in body should be less than or equal to 1e+06"],
            ),
            (
                json!({"type": "integer", "maximum": 1_000_000}),
                json!(2_000_000),
                vec!["f: Invalid value: 2000000: f in body should be less than or equal to 1000000"],
            ),
            (
                json!({"type": "number", "minimum": 0.00001}),
                json!(0.000_001),
                vec!["f: Invalid value: 1e-06: f in body should be greater than or equal to 1e-05"],
            ),
            (
                json!({"type": "integer", "minimum": 1.5}),
                json!(1),
                vec![
                    "<nil>: Invalid value: \"\": Minimum boundary value must be of type integer (default format) in f",
                    "f: Invalid value: 1: f in body should be greater than or equal to 1.5",
                ],
            ),
            (json!({"type": "number", "multipleOf": 0.1}), json!(0.3), vec![]),
        ] {
            told_of(&schema, &value, &told);
        }
    }

    #[test]
    fn failures_of_formats_and_choices_are_told_in_the_words_of_the_api() {
        let one_of = json!({"anyOf": [{"required": ["x"]}, {"properties": {"a": {"minimum": 5}}}]});
        for (schema, value, told) in [
            (
                json!({"type": "integer", "format": "int32"}),
                json!(true),
                vec!["f: Invalid value: \"\": f in body must be of type int32: \"\""],
            ),
            (
                json!({"type": "integer", "format": "int32"}),
                json!("1"),
                vec!["f: Invalid value: \"string\": f in body must be of type integer: \"string\""],
            ),
            (
                json!({"type": "string", "format": "date-time"}),
                json!(5),
                vec!["f: Invalid value: \"int64\": f in body must be of type date-time: \"int64\""],
            ),
            (json!({"type": "string", "format": "date-time"}), json!([]), vec![]),
            (
                json!({"type": "string", "format": "nonsense"}),
                json!(5),
                vec!["f: Invalid value: \"integer\": f in body must be of type string: \"integer\""],
            ),
            (
                json!({"type": "string", "enum": ["a"]}),
                json!(null),
                vec![
                    "f: Unsupported value: null: supported values: \"a\"",
                    "f: Invalid value: \"null\": f in body must be of type string: \"null\"",
                ],
            ),
            (json!({"type": "number", "enum": [1, 2.5]}), json!(1.0), vec![]),
            (
                one_of,
                json!({"a": 1}),
                vec![
                    "<nil>: Invalid value: \"\": \"f\" must validate at least one schema (anyOf)",
                    "f.a: Invalid value: 1: f.a in body should be greater than or equal to 5",
                ],
            ),
        ] {
            told_of(&schema, &value, &told);
        }
    }
}
