//! Whether an OpenAPI v3 schema is structural: what a CustomResourceDefinition may say of its objects.

use serde_json::Value;

use super::{Schema, drop_forbidden_nulls, duplicates, prune, validate};
use crate::status::Cause;

/// Keywords of JSON Schema that are not served.
const UNSUPPORTED: &[&str] =
    &["$ref", "$schema", "id", "definitions", "dependencies", "additionalItems", "patternProperties"];
/// Keywords that only the structural part of a schema may have, and how their absence is worded.
const STRUCTURE_ONLY: &[(&str, &str)] = &[
    ("type", "empty"),
    ("default", "undefined"),
    ("title", "empty"),
    ("description", "empty"),
    ("nullable", "false"),
    ("additionalProperties", "undefined"),
    ("x-kubernetes-preserve-unknown-fields", "false"),
    ("x-kubernetes-embedded-resource", "false"),
    ("x-kubernetes-int-or-string", "false"),
    ("x-kubernetes-list-type", "empty"),
    ("x-kubernetes-list-map-keys", "empty"),
    ("x-kubernetes-map-type", "empty"),
    ("x-kubernetes-validations", "empty"),
];
const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];

/// Where a node stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Field,
    Item,
}

/// What is wrong with a version's schema, and what is odd about it (warnings).
pub fn problems(source: &Value, path: &str) -> (Vec<Cause>, Vec<String>) {
    let mut walk = Walk::default();
    walk.node(source, path, Level::Root);
    walk.defaults(source, path);
    super::rule_source::problems(source, path, &mut walk.causes);
    (walk.causes, walk.warnings)
}

#[derive(Default)]
struct Walk {
    causes: Vec<Cause>,
    warnings: Vec<String>,
}

fn text<'a>(node: &'a Value, key: &str) -> &'a str {
    node[key].as_str().unwrap_or_default()
}

fn list<'a>(node: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    node[key].as_array().into_iter().flatten()
}

/// `path[key]` of each schema right below.
fn below<'a>(node: &'a Value, path: &str) -> Vec<(String, &'a Value, Level)> {
    let named = node["properties"].as_object().into_iter().flatten();
    let mut out: Vec<_> =
        named.map(|(key, schema)| (format!("{path}.properties[{key}]"), schema, Level::Field)).collect();
    if node["additionalProperties"].is_object() {
        out.push((format!("{path}.additionalProperties"), &node["additionalProperties"], Level::Field));
    }
    if node["items"].is_object() {
        out.push((format!("{path}.items"), &node["items"], Level::Item));
    }
    out
}

/// The schemas that a node combines, with their paths.
fn combined<'a>(node: &'a Value, path: &str) -> Vec<(String, &'a Value)> {
    let mut out = Vec::new();
    for key in ["allOf", "anyOf", "oneOf"] {
        out.extend(list(node, key).enumerate().map(|(i, schema)| (format!("{path}.{key}[{i}]"), schema)));
    }
    if node["not"].is_object() {
        out.push((format!("{path}.not"), &node["not"]));
    }
    out
}

impl Walk {
    fn invalid(&mut self, field: String, value: &Value, why: &str) {
        self.causes.push(Cause::invalid(field, value, why));
    }

    fn node(&mut self, node: &Value, path: &str, level: Level) {
        self.keywords(node, path);
        self.kind(node, path, level);
        self.lists(node, path);
        if level == Level::Root || node["x-kubernetes-embedded-resource"] == true {
            self.metadata(&node["properties"]["metadata"], path);
        }
        for (at, inner) in combined(node, path) {
            self.value_validation(node, inner, &at, path);
        }
        for (at, inner, level) in below(node, path) {
            self.node(inner, &at, level);
        }
    }

    fn keywords(&mut self, node: &Value, path: &str) {
        for key in UNSUPPORTED {
            if node.get(key).is_some_and(|v| !v.is_null() && *v != "") {
                self.causes.push(Cause::forbidden(format!("{path}.{key}"), &format!("{key} is not supported")));
            }
        }
        if node["uniqueItems"] == true {
            let why = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
            self.causes.push(Cause::forbidden(format!("{path}.uniqueItems"), why));
        }
        if node["x-kubernetes-preserve-unknown-fields"] == false {
            let field = format!("{path}.x-kubernetes-preserve-unknown-fields");
            self.invalid(field, &node["x-kubernetes-preserve-unknown-fields"], "must be true or undefined");
        }
        if node["additionalProperties"] == false {
            let field = format!("{path}.additionalProperties");
            self.causes.push(Cause::forbidden(field, "additionalProperties cannot be set to false"));
        }
        if !node["additionalProperties"].is_null() && node["properties"].as_object().is_some_and(|p| !p.is_empty()) {
            let why = "additionalProperties and properties are mutual exclusive";
            self.causes.push(Cause::forbidden(format!("{path}.additionalProperties"), why));
        }
        let pattern = text(node, "pattern");
        if let Err(error) = regex::Regex::new(pattern) {
            let why = format!("must be a valid regular expression, but isn't: {}", regexp_error(pattern, &error));
            self.invalid(format!("{path}.pattern"), &node["pattern"], &why);
        }
        let format = text(node, "format");
        if !format.is_empty() && !super::is_known_format(format) {
            self.warnings.push(format!("unrecognized format {format:?}"));
        }
    }

    fn kind(&mut self, node: &Value, path: &str, level: Level) {
        let (kind, at) = (text(node, "type"), format!("{path}.type"));
        let int_or_string = node["x-kubernetes-int-or-string"] == true;
        if !kind.is_empty() && !TYPES.contains(&kind) {
            self.causes.push(Cause::not_supported(at.clone(), &node["type"], &TYPES));
        }
        if kind == "array" && node["items"].is_null() {
            self.causes.push(Cause::required(format!("{path}.items"), "must be specified"));
        }
        if node["items"].is_array() {
            let why = "items must be a schema object and not an array";
            self.causes.push(Cause::forbidden(format!("{path}.items"), why));
        }
        if node["x-kubernetes-embedded-resource"] == true {
            let why = "must be object if x-kubernetes-embedded-resource is true";
            match kind {
                "object" => {}
                "" => self.causes.push(Cause::required(at.clone(), why)),
                _ => self.invalid(at.clone(), &node["type"], why),
            }
            let named = node["properties"].as_object().is_some_and(|p| !p.is_empty());
            if node["x-kubernetes-preserve-unknown-fields"] != true && !named {
                let why = "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
                self.causes.push(Cause::required(format!("{path}.properties"), why));
            }
        }
        let open = int_or_string || node["x-kubernetes-preserve-unknown-fields"] == true;
        match (level, kind) {
            (Level::Root, "") => self.causes.push(Cause::required(at, "must not be empty at the root")),
            (Level::Root, "object") => {}
            (Level::Root, _) => self.invalid(at, &node["type"], "must be object at the root"),
            (Level::Item, "") if !open => {
                self.causes.push(Cause::required(at, "must not be empty for specified array items"));
            }
            (Level::Field, "") if !open && node.get("$ref").is_none() => {
                self.causes.push(Cause::required(at, "must not be empty for specified object fields"));
            }
            _ => {}
        }
    }

    fn lists(&mut self, node: &Value, path: &str) {
        let (kind, items) = (text(node, "x-kubernetes-list-type"), &node["items"]);
        let keys_at = format!("{path}.x-kubernetes-list-map-keys");
        if !kind.is_empty() {
            if text(node, "type") != "array" {
                let why = "must be array if x-kubernetes-list-type is specified";
                match text(node, "type") {
                    "" => self.causes.push(Cause::required(format!("{path}.type"), why)),
                    _ => self.invalid(format!("{path}.type"), &node["type"], why),
                }
            }
            if !matches!(kind, "atomic" | "set" | "map") {
                let value = &node["x-kubernetes-list-type"];
                let field = format!("{path}.x-kubernetes-list-type");
                self.causes.push(Cause::not_supported(field, value, &["atomic", "map", "set"]));
            }
        }
        let keys: Vec<&str> = list(node, "x-kubernetes-list-map-keys").filter_map(Value::as_str).collect();
        if !keys.is_empty() && kind != "map" {
            let why = "must be map if x-kubernetes-list-map-keys is non-empty";
            let field = format!("{path}.x-kubernetes-list-type");
            match kind {
                "" => self.causes.push(Cause::required(field, why)),
                _ => self.invalid(field, &node["x-kubernetes-list-type"], why),
            }
        }
        match kind {
            "set" => self.set_items(items, &format!("{path}.items")),
            "map" if keys.is_empty() => {
                let why = "must not be empty if x-kubernetes-list-type is map";
                self.causes.push(Cause::required(keys_at, why));
            }
            "map" => self.map_keys(node, &keys, path, &keys_at),
            _ => {}
        }
        let map_type = text(node, "x-kubernetes-map-type");
        if !map_type.is_empty() && !matches!(map_type, "atomic" | "granular") {
            let field = format!("{path}.x-kubernetes-map-type");
            self.causes.push(Cause::not_supported(field, &node["x-kubernetes-map-type"], &["atomic", "granular"]));
        }
    }

    fn set_items(&mut self, items: &Value, path: &str) {
        let absent = Value::Null;
        if text(items, "type") == "object" && text(items, "x-kubernetes-map-type") != "atomic" {
            let given = items.get("x-kubernetes-map-type").unwrap_or(&absent);
            let why = "must be atomic as item of a list with x-kubernetes-list-type=set";
            self.invalid(format!("{path}.x-kubernetes-map-type"), given, why);
        }
        if text(items, "type") == "array" && !matches!(text(items, "x-kubernetes-list-type"), "" | "atomic") {
            let given = items.get("x-kubernetes-list-type").unwrap_or(&absent);
            let why = "must be atomic as item of a list with x-kubernetes-list-type=set";
            self.invalid(format!("{path}.x-kubernetes-list-type"), given, why);
        }
    }

    fn map_keys(&mut self, node: &Value, keys: &[&str], path: &str, keys_at: &str) {
        let items = &node["items"];
        if text(items, "type") != "object" {
            let why = "must be object if parent array's x-kubernetes-list-type is map";
            self.invalid(format!("{path}.items.type"), &items["type"], why);
            return;
        }
        if keys.iter().any(|key| items["properties"].get(key).is_none()) {
            let why = "entries must all be names of item properties";
            self.invalid(keys_at.to_owned(), &node["x-kubernetes-list-map-keys"], why);
            return;
        }
        for (index, key) in keys.iter().enumerate() {
            let property = &items["properties"][*key];
            let at = format!("{path}.items.properties[{key}]");
            if keys[..index].contains(key) {
                let message = format!("Duplicate value: {key:?}");
                let field = format!("{keys_at}[{index}]");
                self.causes.push(Cause { reason: "FieldValueDuplicate".into(), message, field });
            }
            if matches!(text(property, "type"), "object" | "array") {
                self.invalid(
                    format!("{at}.type"),
                    &property["type"],
                    "must be a scalar type if parent array's x-kubernetes-list-type is map",
                );
            }
            if property["nullable"] == true {
                self.causes.push(Cause::forbidden(
                    format!("{at}.nullable"),
                    "this property is in x-kubernetes-list-map-keys, so it cannot be nullable",
                ));
            }
            if property["default"].is_null() && !list(items, "required").any(|r| r == key) {
                let why = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
                self.causes.push(Cause::required(format!("{at}.default"), why));
            }
        }
    }

    fn metadata(&mut self, metadata: &Value, path: &str) {
        if metadata.is_null() {
            return;
        }
        let known = |key: &String| matches!(key.as_str(), "name" | "generateName");
        let extra = metadata["properties"].as_object().is_some_and(|p| !p.keys().all(known))
            || !metadata["additionalProperties"].is_null();
        if extra {
            let why =
                "must not specify anything other than name and generateName, but metadata is implicitly specified";
            self.causes.push(Cause::forbidden(format!("{path}.properties[metadata]"), why));
        }
    }

    /// A combined schema only restricts values: it says nothing of structure, and names no field that the structure does
    /// not have.
    fn value_validation(&mut self, structure: &Value, node: &Value, path: &str, structure_path: &str) {
        for (key, absent) in STRUCTURE_ONLY {
            if let Some(value) = node.get(key).filter(|v| !v.is_null() && **v != false && **v != "") {
                // The one form of int-or-string that tools generate is let through.
                let paired = *key == "type"
                    && structure["x-kubernetes-int-or-string"] == true
                    && matches!(value.as_str(), Some("integer" | "string"));
                if !paired {
                    self.causes
                        .push(Cause::forbidden(format!("{path}.{key}"), &format!("must be {absent} to be structural")));
                }
            }
        }
        self.keywords_of_values(node, path);
        for (key, inner) in node["properties"].as_object().into_iter().flatten() {
            let at = format!("{path}.properties[{key}]");
            let own = &structure["properties"][key];
            if own.is_null() {
                let why = format!("because it is defined in {at}");
                self.causes.push(Cause::required(format!("{structure_path}.properties[{key}]"), &why));
            } else {
                self.value_validation(own, inner, &at, &format!("{structure_path}.properties[{key}]"));
            }
        }
        if node["items"].is_object() {
            let at = format!("{path}.items");
            if structure["items"].is_null() {
                let why = format!("because it is defined in {at}");
                self.causes.push(Cause::required(format!("{structure_path}.items"), &why));
            } else {
                self.value_validation(&structure["items"], &node["items"], &at, &format!("{structure_path}.items"));
            }
        }
        for (at, inner) in combined(node, path) {
            self.value_validation(structure, inner, &at, structure_path);
        }
    }

    fn keywords_of_values(&mut self, node: &Value, path: &str) {
        let pattern = text(node, "pattern");
        if let Err(error) = regex::Regex::new(pattern) {
            let why = format!("must be a valid regular expression, but isn't: {}", regexp_error(pattern, &error));
            self.invalid(format!("{path}.pattern"), &node["pattern"], &why);
        }
    }

    /// Defaults are values of their own schema, without fields that would be pruned.
    fn defaults(&mut self, node: &Value, path: &str) {
        if let Some(default) = node.get("default").filter(|v| !v.is_null()) {
            let (schema, at) = (Schema::parse(node), format!("{path}.default"));
            let mut pruned = serde_json::json!({ "d": default });
            let around = Schema::parse(&serde_json::json!({"type": "object", "properties": {"d": node}}));
            if prune(&around, &mut pruned).is_empty() {
                let mut value = default.clone();
                drop_forbidden_nulls(&schema, &mut value);
                super::apply_defaults(&schema, &mut value);
                for failure in validate(&schema, &value, "") {
                    let inner = if failure.cause.field == "<nil>" { "" } else { &failure.cause.field };
                    let field = if inner.is_empty() { at.clone() } else { format!("{at}.{inner}") };
                    self.causes.push(Cause { field, ..failure.cause });
                }
                duplicates(&schema, &value, &at, &mut self.causes);
            } else {
                self.invalid(at, default, "must not have unknown fields");
            }
        }
        for (at, inner, _) in below(node, path) {
            self.defaults(inner, &at);
        }
    }
}

/// The error of a regular expression as it is usually worded.
fn regexp_error(pattern: &str, error: &regex::Error) -> String {
    let text = error.to_string();
    let known = [
        ("unclosed group", "missing closing )"),
        ("unopened group", "unexpected )"),
        ("unclosed character class", "missing closing ]"),
        ("repetition operator missing expression", "missing argument to repetition operator"),
        ("unrecognized escape sequence", "invalid escape sequence"),
        ("look-around", "invalid or unsupported Perl syntax"),
    ];
    let found = known.iter().find(|(ours, _)| text.contains(ours)).map(|(_, theirs)| *theirs);
    match found {
        Some(words) => format!("error parsing regexp: {words}: `{pattern}`"),
        None => format!("error parsing regexp: {}", text.lines().last().unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn schemas_are_judged() {
        let root = |field: Value| json!({"type": "object", "properties": {"a": field}});
        for (source, fields) in [
            (root(json!({"type": "string"})), vec![]),
            (json!({"properties": {}}), vec!["s.type"]),
            (root(json!({"type": "odd"})), vec!["s.properties[a].type"]),
            (root(json!({})), vec!["s.properties[a].type"]),
            (root(json!({"type": "array"})), vec!["s.properties[a].items"]),
            (root(json!({"type": "string", "anyOf": [{"type": "string"}]})), vec!["s.properties[a].anyOf[0].type"]),
            (
                root(json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]})),
                vec![],
            ),
            (
                root(json!({"type": "object", "anyOf": [{"properties": {"x": {}}}]})),
                vec!["s.properties[a].properties[x]"],
            ),
            (root(json!({"type": "integer", "default": "x"})), vec!["s.properties[a].default"]),
            (root(json!({"type": "string", "pattern": "("})), vec!["s.properties[a].pattern"]),
            (
                root(json!({"type": "array", "items": {"type": "object"}, "x-kubernetes-list-type": "set"})),
                vec!["s.properties[a].items.x-kubernetes-map-type"],
            ),
        ] {
            let got: Vec<String> = problems(&source, "s").0.into_iter().map(|c| c.field).collect();
            assert_eq!(got, fields, "{source}");
        }
    }
}
