//! Structural schemas: the types of custom resources, read from a CustomResourceDefinition's OpenAPI v3 schema.
//!
//! One [`Schema`] node drives pruning, defaulting, validation of values, list types and (through
//! [`Schema::properties`] and its siblings) whatever else walks a custom resource.

mod cost;
mod declared;
mod defaulting;
mod formats;
mod lists;
mod pruning;
mod rule_source;
mod rules;
pub mod source;
mod values;

use std::collections::BTreeMap;
use std::sync::OnceLock;

use regex::Regex;
use serde_json::Value;

pub(crate) use cost::of_device_selector;
pub use defaulting::{apply_defaults, drop_forbidden_nulls};
pub use formats::{is_known_format, matches_format};
pub use lists::duplicates;
pub use pruning::{integral_numbers, prune, unfit_embedded};
pub use rules::{Compiled, check_rules, type_of};
pub use values::{Failure, FailureKind, shown, validate};

/// What `additionalProperties` says.
#[derive(Debug)]
pub enum Additional {
    /// Any value (`true`) or none (`false`).
    Any(bool),
    /// Values of this form.
    Schema(Box<Schema>),
}

/// A CEL rule (`x-kubernetes-validations`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// The expression.
    pub rule: String,
    /// What is told when it is false.
    pub message: String,
    /// An expression that gives the message.
    pub message_expression: String,
    /// Reason of the cause ("" for FieldValueInvalid).
    pub reason: String,
    /// Field of the cause, relative to where the rule stands.
    pub field_path: String,
    /// `oldSelf` is optional, and the rule is checked on creation too.
    pub optional_old_self: bool,
    /// Whether the rule says anything of that.
    pub has_optional_old_self: bool,
}

/// One node of a structural schema.
#[derive(Debug, Default)]
pub struct Schema {
    /// `object`, `array`, `string`, `integer`, `number`, `boolean`, or "" for any.
    pub kind: String,
    /// Null is a value.
    pub nullable: bool,
    /// Integer or string.
    pub int_or_string: bool,
    /// Fields that are not named stay.
    pub preserve_unknown: bool,
    /// A whole object with apiVersion, kind and metadata.
    pub embedded: bool,
    /// Named fields.
    pub properties: BTreeMap<String, Schema>,
    /// All other fields.
    pub additional: Option<Additional>,
    /// Items of a list.
    pub items: Option<Box<Schema>>,
    /// What an absent value is.
    pub default: Option<Value>,
    /// `atomic`, `set`, `map` or "".
    pub list_type: String,
    /// Keys of a `map` list.
    pub list_keys: Vec<String>,
    /// `atomic`, `granular` or "".
    pub map_type: String,
    /// Fields that must be there.
    pub required: Vec<String>,
    /// Allowed values; empty: all.
    pub allowed: Vec<Value>,
    /// `date-time` and others, "" for none.
    pub format: String,
    /// A regular expression of strings, "" for none.
    pub pattern: String,
    pattern_compiled: OnceLock<Option<Regex>>,
    /// Least number, and whether it is itself excluded.
    pub minimum: Option<(f64, bool)>,
    /// Greatest number, and whether it is itself excluded.
    pub maximum: Option<(f64, bool)>,
    /// The number divides by this.
    pub multiple_of: Option<f64>,
    /// Least and most characters of a string.
    pub length: (Option<u64>, Option<u64>),
    /// Least and most items of a list.
    pub item_count: (Option<u64>, Option<u64>),
    /// Least and most fields of an object.
    pub property_count: (Option<u64>, Option<u64>),
    /// All of these hold.
    pub all_of: Vec<Schema>,
    /// At least one of these holds.
    pub any_of: Vec<Schema>,
    /// Exactly one of these holds.
    pub one_of: Vec<Schema>,
    /// This does not hold.
    pub not: Option<Box<Schema>>,
    /// CEL rules of this node.
    pub rules: Vec<Rule>,
    /// Whether this node or one below has CEL rules.
    pub has_rules: bool,
    /// Whether this node or one below is a whole object.
    has_embedded: bool,
    compiled: OnceLock<Compiled>,
}

impl Schema {
    /// Reads an OpenAPI v3 schema; what is not understood is left out ([`source::problems`] tells of it).
    pub fn parse(source: &Value) -> Self {
        let text = |key: &str| source[key].as_str().unwrap_or_default().to_owned();
        let flag = |key: &str| source[key] == true;
        let strings = |key: &str| -> Vec<String> {
            source[key].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let schemas =
            |key: &str| -> Vec<Self> { source[key].as_array().into_iter().flatten().map(Self::parse).collect() };
        let bound = |key: &str, exclusive: &str| source[key].as_f64().map(|n| (n, flag(exclusive)));
        let counts = |least: &str, most: &str| (source[least].as_u64(), source[most].as_u64());
        let mut schema = Self {
            kind: text("type"),
            nullable: flag("nullable"),
            int_or_string: flag("x-kubernetes-int-or-string"),
            preserve_unknown: flag("x-kubernetes-preserve-unknown-fields"),
            embedded: flag("x-kubernetes-embedded-resource"),
            properties: source["properties"]
                .as_object()
                .map(|map| map.iter().map(|(key, value)| (key.clone(), Self::parse(value))).collect())
                .unwrap_or_default(),
            additional: match &source["additionalProperties"] {
                Value::Bool(any) => Some(Additional::Any(*any)),
                Value::Object(_) => Some(Additional::Schema(Box::new(Self::parse(&source["additionalProperties"])))),
                _ => None,
            },
            items: source["items"].is_object().then(|| Box::new(Self::parse(&source["items"]))),
            default: source.get("default").filter(|value| !value.is_null()).cloned(),
            list_type: text("x-kubernetes-list-type"),
            list_keys: strings("x-kubernetes-list-map-keys"),
            map_type: text("x-kubernetes-map-type"),
            required: strings("required"),
            allowed: source["enum"].as_array().cloned().unwrap_or_default(),
            format: text("format"),
            pattern: text("pattern"),
            pattern_compiled: OnceLock::new(),
            minimum: bound("minimum", "exclusiveMinimum"),
            maximum: bound("maximum", "exclusiveMaximum"),
            multiple_of: source["multipleOf"].as_f64(),
            length: counts("minLength", "maxLength"),
            item_count: counts("minItems", "maxItems"),
            property_count: counts("minProperties", "maxProperties"),
            all_of: schemas("allOf"),
            any_of: schemas("anyOf"),
            one_of: schemas("oneOf"),
            not: source["not"].is_object().then(|| Box::new(Self::parse(&source["not"]))),
            rules: source["x-kubernetes-validations"].as_array().into_iter().flatten().map(Rule::parse).collect(),
            has_rules: false,
            has_embedded: false,
            compiled: OnceLock::new(),
        };
        schema.has_rules = !schema.rules.is_empty() || schema.children().any(|child| child.has_rules);
        schema.has_embedded = schema.embedded || schema.children().any(|child| child.has_embedded);
        schema
    }

    /// The schemas of the values right below.
    pub fn children(&self) -> impl Iterator<Item = &Schema> {
        let additional = match &self.additional {
            Some(Additional::Schema(schema)) => Some(&**schema),
            _ => None,
        };
        self.properties.values().chain(additional).chain(self.items.as_deref())
    }

    /// Whether a value of this node or of one below has a default.
    pub fn has_defaults(&self) -> bool {
        self.default.is_some() || self.children().any(Self::has_defaults)
    }

    /// The schema of a field: a named one, else that of all others.
    pub fn field(&self, key: &str) -> Option<&Schema> {
        self.properties.get(key).or(match &self.additional {
            Some(Additional::Schema(schema)) => Some(schema),
            _ => None,
        })
    }

    /// The pattern, compiled at its first use; `None` if there is none or it is none.
    pub(crate) fn regex(&self) -> Option<&Regex> {
        self.pattern_compiled
            .get_or_init(|| (!self.pattern.is_empty()).then(|| crate::go_regexp::compile(&self.pattern).ok())?)
            .as_ref()
    }
}

impl Rule {
    fn parse(source: &Value) -> Self {
        let text = |key: &str| source[key].as_str().unwrap_or_default().to_owned();
        Self {
            rule: text("rule"),
            message: text("message"),
            message_expression: text("messageExpression"),
            reason: text("reason"),
            field_path: text("fieldPath"),
            optional_old_self: source["optionalOldSelf"] == true,
            has_optional_old_self: source["optionalOldSelf"].is_boolean(),
        }
    }
}

/// Joins a path and a field's name as the API writes it.
pub(crate) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}
