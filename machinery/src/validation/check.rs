//! The list of problems and the checks that many kinds share.

use serde_json::{Value, json};

use super::{has, text};
use crate::quantity::Quantity;
use crate::status::Cause;
use crate::{names, schema, shown};

/// Problems found so far.
#[derive(Default)]
pub struct Problems(pub Vec<Cause>);

/// How the path of a whole object is written.
pub const WHOLE: &str = "[]";
const NOT_NEGATIVE: &str = "must be greater than or equal to 0";

impl Problems {
    /// A field that must be set.
    pub fn required(&mut self, field: impl Into<String>, detail: &str) {
        self.0.push(Cause::required(field, detail));
    }

    /// A value that is not allowed.
    pub fn invalid(&mut self, field: impl Into<String>, value: &Value, detail: &str) {
        self.0.push(Cause::invalid(field, value, detail));
    }

    /// A value that is not allowed, shown as given (structs are shown by [`crate::shown`]).
    pub fn invalid_shown(&mut self, field: impl Into<String>, shown: &str, detail: &str) {
        self.0.push(Cause::invalid_shown(field, shown, detail));
    }

    /// A value outside a fixed set, shown as given.
    pub fn not_supported_shown(&mut self, field: impl Into<String>, shown: &str, supported: &[&str]) {
        let list: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        let message = format!("Unsupported value: {shown}: supported values: {}", list.join(", "));
        self.0.push(Cause { reason: "FieldValueNotSupported".into(), message, field: field.into() });
    }

    /// A value that is there twice, shown as given.
    pub fn duplicate_shown(&mut self, field: impl Into<String>, shown: &str) {
        let message = format!("Duplicate value: {shown}");
        self.0.push(Cause { reason: "FieldValueDuplicate".into(), message, field: field.into() });
    }

    /// Something that may not be set.
    pub fn forbidden(&mut self, field: impl Into<String>, detail: &str) {
        self.0.push(Cause::forbidden(field, detail));
    }

    /// A value that is there twice.
    pub fn duplicate(&mut self, field: impl Into<String>, value: &Value) {
        self.0.push(Cause::duplicate(field, value));
    }

    /// A value that names nothing.
    pub fn not_found(&mut self, field: impl Into<String>, value: &Value) {
        self.0.push(Cause::not_found(field, value));
    }

    /// A value outside a fixed set, of a type of its own, which is why it is shown as JSON.
    pub fn not_supported(&mut self, field: impl Into<String>, value: &Value, supported: &[&str]) {
        self.not_supported_shown(field, &shown::json_escaped(&value.to_string()), supported);
    }

    /// A text of too many bytes.
    pub fn too_long(&mut self, field: impl Into<String>, bytes: usize) {
        self.0.push(Cause::too_long(field, bytes));
    }

    /// Something that the server could not look at.
    pub fn internal(&mut self, field: impl Into<String>, why: &str) {
        let message = format!("Internal error: {why}");
        self.0.push(Cause { reason: "InternalError".into(), message, field: field.into() });
    }

    /// More items than allowed.
    pub fn too_many(&mut self, field: impl Into<String>, actual: usize, max: usize) {
        self.0.push(Cause::too_many(field, actual, max));
    }

    /// One of a fixed set, in the order shown; absent counts as "" if `or_empty` says so.
    pub fn one_of(&mut self, field: impl Into<String>, value: &Value, supported: &[&str]) {
        let shown = if value.is_null() { json!("") } else { value.clone() };
        if !value.as_str().is_some_and(|v| supported.contains(&v)) {
            self.not_supported(field, &shown, supported);
        }
    }

    /// As [`Self::one_of`] for a field that may be absent.
    pub fn one_of_if_set(&mut self, field: impl Into<String>, value: &Value, supported: &[&str]) {
        if !value.is_null() {
            self.one_of(field, value, supported);
        }
    }

    /// A number that may be absent and is not negative.
    pub fn not_negative(&mut self, field: impl Into<String>, value: &Value) {
        if value.as_i64().is_some_and(|n| n < 0) {
            self.invalid(field, value, NOT_NEGATIVE);
        }
    }

    /// A required text. Returns whether it is there.
    pub fn present(&mut self, object: &Value, key: &str, path: &str) -> bool {
        let there = !text(object, key).is_empty();
        if !there {
            self.required(join(path, key), "");
        }
        there
    }

    /// The problem that a name rule finds.
    pub fn named(&mut self, field: impl Into<String>, value: &Value, problem: Option<String>) {
        if let Some(problem) = problem {
            self.invalid(field, value, &problem);
        }
    }

    /// A DNS subdomain.
    pub fn subdomain(&mut self, field: impl Into<String>, value: &Value) {
        let field = field.into();
        for problem in names::subdomain_problems(value.as_str().unwrap_or_default()) {
            self.invalid(field.as_str(), &or_empty(value), &problem);
        }
    }

    /// A DNS label.
    pub fn label(&mut self, field: impl Into<String>, value: &Value) {
        let field = field.into();
        for problem in names::label_problems(value.as_str().unwrap_or_default()) {
            self.invalid(field.as_str(), &or_empty(value), &problem);
        }
    }

    /// A qualified name; every problem is told.
    pub fn qualified_name(&mut self, field: &str, name: &str) {
        for problem in names::qualified_name_problems(name) {
            self.invalid(field, &json!(name), &problem);
        }
    }

    /// A port number.
    pub fn port(&mut self, field: impl Into<String>, value: &Value) {
        if !value.as_i64().is_some_and(|n| (1..=65535).contains(&n)) {
            let shown = if value.is_null() { json!(0) } else { value.clone() };
            self.invalid(field, &shown, "must be between 1 and 65535, inclusive");
        }
    }

    /// A port number or the name of a port.
    pub fn port_or_name(&mut self, field: &str, value: &Value) {
        match value {
            Value::String(name) => {
                for problem in names::port_name_problems(name) {
                    self.invalid(field, value, &problem);
                }
            }
            other => self.port(field, other),
        }
    }

    /// A path that does not lead out of its directory.
    pub fn path_no_backsteps(&mut self, field: impl Into<String>, value: &Value) {
        if value.as_str().unwrap_or_default().replace('\\', "/").split('/').any(|part| part == "..") {
            self.invalid(field, value, "must not contain '..'");
        }
    }

    /// A relative path that does not lead out of its directory.
    pub fn local_path(&mut self, field: &str, value: &Value) {
        if value.as_str().unwrap_or_default().starts_with('/') {
            self.invalid(field, value, "must be a relative path");
        }
        self.path_no_backsteps(field, value);
    }

    /// What may not be changed.
    pub fn immutable(&mut self, field: impl Into<String>, new: &Value, old: &Value) {
        if new != old {
            self.invalid(field, new, "field is immutable");
        }
    }

    /// An amount that is not negative.
    pub fn not_negative_quantity(&mut self, field: impl Into<String>, value: &Value) {
        if quantity(value).is_some_and(|q| q.is_negative()) {
            self.invalid(field, value, NOT_NEGATIVE);
        }
    }

    /// A number or a percentage: of the right form and not negative.
    pub fn int_or_percent(&mut self, field: &str, value: &Value) {
        match value {
            Value::String(text) if !is_percent(text) => {
                let why = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', \
                           regex used for validation is '[0-9]+%')";
                self.invalid(field, value, why);
            }
            _ => self.not_negative(field, value),
        }
    }

    /// Not above 100 %.
    pub fn at_most_100_percent(&mut self, field: &str, value: &Value) {
        if percent(value).is_some_and(|p| p > 100) {
            self.invalid(field, value, "must not be greater than 100%");
        }
    }
}

/// The number of a percentage, if it is one.
pub fn percent(value: &Value) -> Option<i64> {
    value.as_str().filter(|text| is_percent(text)).and_then(|text| text.trim_end_matches('%').parse().ok())
}

fn is_percent(text: &str) -> bool {
    text.strip_suffix('%').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// An absent text as "".
pub fn or_empty(value: &Value) -> Value {
    if value.is_null() { json!("") } else { value.clone() }
}

/// A quantity, if it can be read.
pub fn quantity(value: &Value) -> Option<Quantity> {
    value.as_str().and_then(|text| Quantity::parse(text).ok())
}

/// `path.key`, or `key` at the top.
pub fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// The fields of a type that hold one alternative each and that are set.
pub fn alternatives<'a>(object: &'a Value, type_path: &str, except: &[&str]) -> Vec<&'a str> {
    let Some(definition) = schema::definition(type_path) else { return Vec::new() };
    let map = object.as_object().into_iter().flatten();
    map.filter(|(key, _)| definition.fields.contains_key(key.as_str()) && !except.contains(&key.as_str()))
        .filter(|(key, _)| has(object, key))
        .map(|(key, _)| key.as_str())
        .collect()
}
