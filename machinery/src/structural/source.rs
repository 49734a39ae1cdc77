//! Whether an OpenAPI v3 schema is structural: what a CustomResourceDefinition may say of its objects.

use std::collections::HashSet;

use serde_json::Value;

use super::{Schema, check_rules, drop_forbidden_nulls, duplicates, prune, unfit_embedded, validate};
use crate::status::Cause;

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
    ("x-kubernetes-list-type", "undefined"),
    ("x-kubernetes-list-map-keys", "empty"),
    ("x-kubernetes-map-type", "undefined"),
    ("x-kubernetes-validations", "empty"),
];

/// Where a node stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Field,
    Item,
}

/// Fields that the root of a schema may have if the status is a subresource: taken out of it, a status loses nothing then.
const AT_ROOT: &[&str] = &[
    "description",
    "type",
    "format",
    "title",
    "maximum",
    "exclusiveMaximum",
    "minimum",
    "exclusiveMinimum",
    "maxLength",
    "minLength",
    "pattern",
    "maxItems",
    "minItems",
    "uniqueItems",
    "multipleOf",
    "required",
    "items",
    "properties",
    "externalDocs",
    "example",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-validations",
];
/// The same under the names of upstream's types, as messages show them.
const AT_ROOT_SHOWN: &str = "[Description Type Format Title Maximum ExclusiveMaximum Minimum ExclusiveMinimum MaxLength MinLength Pattern \
     MaxItems MinItems UniqueItems MultipleOf Required Items Properties ExternalDocs Example XPreserveUnknownFields XValidations]";

/// What is wrong with a version's schema, and what is odd about it (warnings). Whether values fit the schema, and its rules,
/// are only looked at once its structure is right.
pub fn problems(source: &Value, path: &str, has_status: bool) -> (Vec<Cause>, Vec<String>) {
    let mut walk = Walk::default();
    if has_status {
        walk.root(source, path);
    }
    if source["nullable"] == true {
        walk.causes.push(Cause::forbidden(format!("{path}.nullable"), "nullable cannot be true at the root"));
    }
    let mut structure = Walk::default();
    let known = !has_foreign(source);
    if known {
        structure.node(source, path, Level::Root);
        structure.complete(source, source, path, path);
        structure.causes.sort_by_cached_key(|cause| format!("{}: {}", cause.field, cause.message));
    }
    let mut sound = known && structure.causes.is_empty();
    if sound {
        structure.defaults(source, path);
        sound = structure.causes.is_empty();
    }
    walk.causes.append(&mut structure.causes);
    walk.warnings.append(&mut structure.warnings);
    super::declared::problems(source, path, sound, &mut walk.causes);
    if !known && walk.causes.is_empty() {
        walk.invalid(path.to_owned(), &Value::from(""), "OpenAPIV3Schema 'schema' is not supported");
    }
    (walk.causes, walk.warnings)
}

/// Whether a schema has keywords that no structure has: then nothing can be said of its structure.
fn has_foreign(node: &Value) -> bool {
    let own = super::declared::UNSUPPORTED.iter().any(|key| node.get(key).is_some_and(|value| !is_zero(value)));
    own || !text(node, "$schema").is_empty()
        || node["items"].is_array()
        || node["type"] == "null"
        || below(node, "").into_iter().any(|(_, inner, _)| has_foreign(inner))
        || combined(node, "").into_iter().any(|(_, inner)| has_foreign(inner))
}

/// Whether a keyword's value says nothing.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Number(_) => false,
    }
}

#[derive(Default)]
struct Walk {
    causes: Vec<Cause>,
    warnings: Vec<String>,
    good_patterns: HashSet<String>,
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

/// Where a node says `integer or string` in one of the two forms that tools generate: that is let through.
fn int_or_string_forms(node: &Value) -> Option<&'static str> {
    let pair = |list: &Value| *list == serde_json::json!([{"type": "integer"}, {"type": "string"}]);
    if pair(&node["anyOf"]) {
        Some("anyOf")
    } else if pair(&node["allOf"][0]["anyOf"]) {
        Some("allOf")
    } else {
        None
    }
}

impl Walk {
    fn invalid(&mut self, field: String, value: &Value, why: &str) {
        self.causes.push(Cause::invalid(field, value, why));
    }

    fn root(&mut self, source: &Value, path: &str) {
        if !matches!(text(source, "type"), "" | "object") {
            let why =
                "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
            self.invalid(format!("{path}.type"), &source["type"], why);
            return;
        }
        let said = source.as_object().into_iter().flatten().filter(|(_, value)| !is_zero(value));
        if said.map(|(key, _)| key.as_str()).any(|key| !AT_ROOT.contains(&key)) {
            let why = format!(
                "only {AT_ROOT_SHOWN} fields are allowed at the root of the schema if the status subresource is enabled"
            );
            self.causes.push(Cause::invalid_shown(path, &crate::shown::compact("JSONSchemaProps", source), &why));
        }
    }

    fn node(&mut self, node: &Value, path: &str, level: Level) {
        self.keywords(node, path);
        self.kind(node, path, level);
        self.identity(node, path, level);
        let skipped = int_or_string_forms(node);
        for (at, inner) in combined(node, path) {
            let skips = at.strip_prefix(path).is_some_and(|tail| match skipped {
                Some("anyOf") => tail.starts_with(".anyOf["),
                _ => false,
            });
            if !skips {
                let first = skipped == Some("allOf") && at.strip_prefix(path) == Some(".allOf[0]");
                self.value_validation(inner, &at, first);
            }
        }
        for (at, inner, level) in below(node, path) {
            self.node(inner, &at, level);
        }
    }

    fn keywords(&mut self, node: &Value, path: &str) {
        self.pattern(node, path);
        let format = text(node, "format");
        if !format.is_empty() && !super::is_known_format(format) {
            self.warnings.push(format!("unrecognized format {format:?}"));
        }
        if node["x-kubernetes-int-or-string"] == true {
            for key in ["x-kubernetes-preserve-unknown-fields", "x-kubernetes-embedded-resource"] {
                if node[key] == true {
                    let why = "must be false if x-kubernetes-int-or-string is true";
                    self.invalid(format!("{path}.{key}"), &node[key], why);
                }
            }
        }
    }

    fn pattern(&mut self, node: &Value, path: &str) {
        let pattern = text(node, "pattern");
        // Most nodes have none, and many have the same.
        if pattern.is_empty() || self.good_patterns.contains(pattern) {
            return;
        }
        if let Err(error) = crate::go_regexp::compile(pattern) {
            let why = format!("must be a valid regular expression, but isn't: {error}");
            self.invalid(format!("{path}.pattern"), &node["pattern"], &why);
        } else {
            self.good_patterns.insert(pattern.to_owned());
        }
    }

    fn kind(&mut self, node: &Value, path: &str, level: Level) {
        let (kind, at) = (text(node, "type"), format!("{path}.type"));
        let open = node["x-kubernetes-int-or-string"] == true || node["x-kubernetes-preserve-unknown-fields"] == true;
        let embedded = node["x-kubernetes-embedded-resource"] == true;
        if kind == "array" && node["items"].is_null() {
            self.causes.push(Cause::required(format!("{path}.items"), "must be specified"));
        }
        if embedded && kind != "object" {
            let why = "must be object if x-kubernetes-embedded-resource is true";
            match kind {
                "" => self.causes.push(Cause::required(at.clone(), why)),
                _ => self.invalid(at.clone(), &node["type"], why),
            }
        } else if kind.is_empty() && !open {
            let why = match level {
                Level::Root => "must not be empty at the root",
                Level::Item => "must not be empty for specified array items",
                Level::Field => "must not be empty for specified object fields",
            };
            self.causes.push(Cause::required(at.clone(), why));
        }
        if level == Level::Root && !matches!(kind, "" | "object") {
            self.invalid(at, &node["type"], "must be object at the root");
        }
        let more = format!("{path}.additionalProperties");
        if level == Level::Root && !node["additionalProperties"].is_null() {
            self.causes.push(Cause::forbidden(more.clone(), "must not be used at the root"));
        }
        if embedded && !node["additionalProperties"].is_null() {
            self.causes.push(Cause::forbidden(more, "must not be used if x-kubernetes-embedded-resource is set"));
        }
        let named = node["properties"].as_object().is_some_and(|p| !p.is_empty());
        if embedded && node["x-kubernetes-preserve-unknown-fields"] != true && !named {
            let why = "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
            self.causes.push(Cause::required(format!("{path}.properties"), why));
        }
    }

    /// What says which object it is has a form of its own.
    fn identity(&mut self, node: &Value, path: &str, level: Level) {
        let whole = level == Level::Root || node["x-kubernetes-embedded-resource"] == true;
        for (key, kind) in [("kind", "string"), ("apiVersion", "string"), ("metadata", "object")] {
            let given = &node["properties"][key];
            if whole && !given.is_null() && text(given, "type") != kind {
                let at = format!("{path}.properties[{key}].type");
                self.invalid(at, &Value::from(text(given, "type")), &format!("must be {kind}"));
            }
        }
        if level == Level::Root {
            self.metadata(&node["properties"]["metadata"], path);
        }
    }

    fn metadata(&mut self, metadata: &Value, path: &str) {
        let known = |key: &String| matches!(key.as_str(), "name" | "generateName");
        let said = metadata.as_object().into_iter().flatten().filter(|(_, value)| !is_zero(value));
        let plain = |(key, value): (&String, &Value)| match key.as_str() {
            "type" | "default" => true,
            "properties" => value.as_object().is_some_and(|p| p.keys().all(known)),
            _ => false,
        };
        if !said.into_iter().all(plain) {
            let why =
                "must not specify anything other than name and generateName, but metadata is implicitly specified";
            self.causes.push(Cause::forbidden(format!("{path}.properties[metadata]"), why));
        }
    }

    /// A combined schema only restricts values: it says nothing of structure.
    fn value_validation(&mut self, node: &Value, path: &str, skips_any_of: bool) {
        for (key, absent) in STRUCTURE_ONLY {
            if node.get(key).is_some_and(|value| !is_zero(value)) {
                let why = format!("must be {absent} to be structural");
                self.causes.push(Cause::forbidden(format!("{path}.{key}"), &why));
            }
        }
        self.pattern(node, path);
        if !node["properties"]["metadata"].is_null() {
            let at = format!("{path}.properties[metadata]");
            self.causes.push(Cause::forbidden(at, "must not be specified in a nested context"));
        }
        let inner = below(node, path).into_iter().filter(|(at, ..)| !at.ends_with(".additionalProperties"));
        for (at, inner, _) in inner {
            self.value_validation(inner, &at, false);
        }
        for (at, inner) in combined(node, path) {
            if !(skips_any_of && at.strip_prefix(path).is_some_and(|tail| tail.starts_with(".anyOf["))) {
                self.value_validation(inner, &at, false);
            }
        }
    }

    /// What is combined at the root names no field that the structure does not have. (Upstream does not look at what is
    /// combined further down.)
    fn complete(&mut self, structure: &Value, node: &Value, at: &str, path: &str) {
        for (path, inner) in combined(node, path) {
            self.complete_part(structure, inner, at, &path);
        }
    }

    fn complete_part(&mut self, own: &Value, part: &Value, at: &str, path: &str) {
        if own.is_null() {
            return self.causes.push(Cause::required(at, &format!("because it is defined in {path}")));
        }
        self.complete(own, part, at, path);
        for (key, inner) in part["properties"].as_object().into_iter().flatten() {
            let tail = format!("properties[{key}]");
            self.complete_part(&own["properties"][key], inner, &format!("{at}.{tail}"), &format!("{path}.{tail}"));
        }
        if part["items"].is_object() {
            self.complete_part(&own["items"], &part["items"], &format!("{at}.items"), &format!("{path}.items"));
        }
    }

    /// Defaults are values of their own schema, without fields that would be pruned.
    fn defaults(&mut self, node: &Value, path: &str) {
        if let Some(default) = node.get("default").filter(|v| !v.is_null()) {
            let (schema, at) = (Schema::parse(node), format!("{path}.default"));
            let mut pruned = serde_json::json!({ "d": default });
            let around = Schema::parse(&serde_json::json!({"type": "object", "properties": {"d": node}}));
            if !prune(&around, &mut pruned).is_empty() {
                self.invalid(at, default, "must not have unknown fields");
            } else if let Err(cause) = unfit_embedded(&schema, default, &at) {
                self.causes.push(cause);
            } else {
                let mut value = default.clone();
                drop_forbidden_nulls(&schema, &mut value);
                super::apply_defaults(&schema, &mut value);
                for failure in validate(&schema, &value, None, "") {
                    let inner = if failure.cause.field == "<nil>" { "" } else { &failure.cause.field };
                    let field = if inner.is_empty() { at.clone() } else { format!("{at}.{inner}") };
                    self.causes.push(Cause { field, ..failure.cause });
                }
                let before = self.causes.len();
                duplicates(&schema, &value, &at, &mut self.causes);
                if before == self.causes.len() && schema.has_rules && validate(&schema, &value, None, "").is_empty() {
                    for cause in check_rules(&schema, &value, None) {
                        let inner = if cause.field == "<nil>" { String::new() } else { format!(".{}", cause.field) };
                        self.causes.push(Cause { field: format!("{at}{inner}"), ..cause });
                    }
                }
            }
        }
        for (at, inner, _) in below(node, path) {
            self.defaults(inner, &at);
        }
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
            (root(json!({"type": "integer", "anyOf": [{"type": "integer"}, {"type": "string"}]})), vec![]),
            // Only what is combined at the root has to be of the structure.
            (root(json!({"type": "object", "anyOf": [{"properties": {"x": {}}}]})), vec![]),
            (
                json!({"type": "object", "anyOf": [{"properties": {"x": {"type": "string"}}}], "not": {"items": {}}}),
                vec!["s.anyOf[0].properties[x].type", "s.items", "s.properties[x]"],
            ),
            (root(json!({"type": "integer", "default": "x"})), vec!["s.properties[a].default"]),
            (root(json!({"type": "string", "$schema": "x"})), vec!["s"]),
            (
                root(json!({"type": "array", "uniqueItems": true, "items": {"type": "string", "uniqueItems": true},
                    "anyOf": [{"uniqueItems": true}], "not": {"uniqueItems": true}})),
                vec![
                    "s.properties[a].uniqueItems",
                    "s.properties[a].not.uniqueItems",
                    "s.properties[a].anyOf[0].uniqueItems",
                    "s.properties[a].items.uniqueItems",
                ],
            ),
            (root(json!({"type": "string", "pattern": "("})), vec!["s.properties[a].pattern"]),
            (
                root(json!({"type": "array", "items": {"type": "object"}, "x-kubernetes-list-type": "set"})),
                vec!["s.properties[a].items.x-kubernetes-map-type"],
            ),
        ] {
            let got: Vec<String> = problems(&source, "s", false).0.into_iter().map(|c| c.field).collect();
            assert_eq!(got, fields, "{source}");
        }
    }
}
