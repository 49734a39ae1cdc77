//! What a schema declares beside its structure: keywords, list and map types, and CEL rules, which are compiled and whose
//! cost at worst is estimated.

use serde_json::Value;

use super::rule_source::{Context, Costs};
use super::{Additional, Schema};
use crate::status::Cause;

/// Keywords of JSON Schema that are not served.
pub(super) const UNSUPPORTED: &[&str] =
    &["id", "additionalItems", "patternProperties", "definitions", "dependencies", "$ref"];
const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
/// Fields of whole objects that have a form of their own.
const IDENTITY: [&str; 3] = ["metadata", "kind", "apiVersion"];
const REASONS: [&str; 4] = ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];

fn text<'a>(node: &'a Value, key: &str) -> &'a str {
    node[key].as_str().unwrap_or_default()
}

fn list<'a>(node: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    node[key].as_array().into_iter().flatten()
}

/// What holds where a node stands.
#[derive(Clone, Default)]
struct Place {
    /// Why no default may be set.
    no_defaults: Option<String>,
    /// Within the metadata of an object.
    in_metadata: bool,
    /// The first node above whose values cannot be told from what they were.
    unrelated: Option<String>,
}

/// Problems of a schema and of its rules; the rules are compiled if the structure is `sound`.
pub(super) fn problems(source: &Value, path: &str, sound: bool, out: &mut Vec<Cause>) {
    let schema = Schema::parse(source);
    let mut walk = Walk { schema: Vec::new(), rules: Vec::new(), costs: Costs::default() };
    let context = (sound && schema.has_rules).then(|| Context::root(&schema));
    walk.node(source, Some(&schema), path, &Place::default(), context, true);
    out.append(&mut walk.schema);
    out.append(&mut walk.rules);
    walk.costs.problems(path, out);
}

struct Walk {
    schema: Vec<Cause>,
    rules: Vec<Cause>,
    costs: Costs,
}

impl Walk {
    fn invalid(&mut self, field: String, value: &Value, why: &str) {
        self.schema.push(Cause::invalid(field, value, why));
    }

    fn forbidden(&mut self, field: String, why: &str) {
        self.schema.push(Cause::forbidden(field, why));
    }

    fn required(&mut self, field: String, why: &str) {
        self.schema.push(Cause::required(field, why));
    }

    /// Checks a node and what is below it. `schema` is its parsed form where it is part of the structure.
    fn node(
        &mut self,
        node: &Value,
        schema: Option<&Schema>,
        path: &str,
        place: &Place,
        context: Option<Context<'_>>,
        root: bool,
    ) {
        let before = self.schema.len();
        self.keywords(node, path, place);
        self.below(node, schema, path, place, context.as_ref(), root);
        self.list_type(node, path);
        self.map_list(node, path);
        for index in 0..list(node, "x-kubernetes-validations").count() {
            self.rule(node, schema, index, &format!("{path}.x-kubernetes-validations[{index}]"));
        }
        // What is said of values that cannot be described is of no use to anyone.
        if let (Some(schema), Some(context)) = (schema, context)
            && before == self.schema.len()
        {
            let unrelated = place.unrelated.as_deref();
            context.compile(schema, path, unrelated, &mut self.rules, &mut self.costs);
        }
    }

    fn below(
        &mut self,
        node: &Value,
        schema: Option<&Schema>,
        path: &str,
        place: &Place,
        context: Option<&Context<'_>>,
        root: bool,
    ) {
        if node["additionalProperties"].is_object() {
            let mut place = place.clone();
            if place.in_metadata {
                place.no_defaults = Some(" inside additionalProperties applying to object metadata".into());
            }
            let inner = schema.and_then(|schema| match &schema.additional {
                Some(Additional::Schema(inner)) => Some(&**inner),
                _ => None,
            });
            let context = context.zip(inner).map(|(context, inner)| context.value(inner));
            let at = format!("{path}.additionalProperties");
            self.node(&node["additionalProperties"], inner, &at, &place, context, false);
        }
        for (name, value) in node["properties"].as_object().into_iter().flatten() {
            let mut place = place.clone();
            if text(node, "x-kubernetes-map-type") == "atomic" {
                place.unrelated.get_or_insert_with(|| path.to_owned());
            }
            if (root || node["x-kubernetes-embedded-resource"] == true) && IDENTITY.contains(&name.as_str()) {
                place.in_metadata = true;
                if root {
                    place.no_defaults = Some(format!(" in top-level {name}"));
                }
            }
            let inner = schema.and_then(|schema| schema.properties.get(name));
            let context = context.zip(inner).map(|(context, inner)| context.field(inner));
            self.node(value, inner, &format!("{path}.properties[{name}]"), &place, context, false);
        }
        self.combined(node, path, place);
        if node["items"].is_object() {
            let mut place = place.clone();
            if text(node, "x-kubernetes-list-type") != "map" {
                place.unrelated.get_or_insert_with(|| path.to_owned());
            }
            let inner = schema.and_then(|schema| schema.items.as_deref());
            let context = context.zip(inner).map(|(context, inner)| context.value(inner));
            self.node(&node["items"], inner, &format!("{path}.items"), &place, context, false);
        }
    }

    fn combined(&mut self, node: &Value, path: &str, place: &Place) {
        if node["not"].is_object() {
            self.node(&node["not"], None, &format!("{path}.not"), place, None, false);
        }
        for key in ["allOf", "oneOf", "anyOf"] {
            for (index, inner) in list(node, key).enumerate() {
                self.node(inner, None, &format!("{path}.{key}[{index}]"), place, None, false);
            }
        }
    }

    fn keywords(&mut self, node: &Value, path: &str, place: &Place) {
        let kind = text(node, "type");
        if !kind.is_empty() && !TYPES.contains(&kind) {
            self.schema.push(Cause::not_supported(format!("{path}.type"), &node["type"], &TYPES));
        }
        if let (Some(why), false) = (&place.no_defaults, node["default"].is_null()) {
            self.forbidden(format!("{path}.default"), &format!("must not be set{why}"));
        }
        for key in UNSUPPORTED {
            if node.get(key).is_some_and(|v| !v.is_null() && *v != "") {
                self.forbidden(format!("{path}.{key}"), &format!("{key} is not supported"));
            }
        }
        if kind == "null" {
            self.forbidden(format!("{path}.type"), "type cannot be set to null, use nullable as an alternative");
        }
        if node["items"].is_array() {
            self.forbidden(format!("{path}.items"), "items must be a schema object and not an array");
        }
        if place.in_metadata && node["x-kubernetes-embedded-resource"] == true {
            let at = format!("{path}.x-kubernetes-embedded-resource");
            self.forbidden(at, "must not be used inside of resource meta");
        }
        if node["uniqueItems"] == true {
            let why = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
            self.forbidden(format!("{path}.uniqueItems"), why);
        }
        let more = &node["additionalProperties"];
        let restricts = more.is_object() || *more == false;
        if restricts && node["properties"].as_object().is_some_and(|p| !p.is_empty()) {
            let why = "additionalProperties and properties are mutual exclusive";
            self.forbidden(format!("{path}.additionalProperties"), why);
        }
    }

    /// A type that a keyword goes with.
    fn wants_type(&mut self, node: &Value, path: &str, kind: &str, keyword: &str) {
        let why = format!("must be {kind} if {keyword} is specified");
        match text(node, "type") {
            "" => self.required(format!("{path}.type"), &why),
            _ => self.invalid(format!("{path}.type"), &node["type"], &why),
        }
    }

    fn list_type(&mut self, node: &Value, path: &str) {
        let preserve = &node["x-kubernetes-preserve-unknown-fields"];
        if *preserve == false {
            let at = format!("{path}.x-kubernetes-preserve-unknown-fields");
            self.invalid(at, preserve, "must be true or undefined");
        }
        let (map_type, list_type) = (&node["x-kubernetes-map-type"], &node["x-kubernetes-list-type"]);
        if map_type.is_string() {
            if text(node, "type") != "object" {
                self.wants_type(node, path, "object", "x-kubernetes-map-type");
            }
            if !matches!(map_type.as_str(), Some("atomic" | "granular")) {
                let at = format!("{path}.x-kubernetes-map-type");
                self.schema.push(Cause::not_supported(at, map_type, &["atomic", "granular"]));
            }
        }
        if list_type.is_string() {
            if text(node, "type") != "array" {
                self.wants_type(node, path, "array", "x-kubernetes-list-type");
            } else if list_type == "set" {
                self.set_items(&node["items"], &format!("{path}.items"));
            }
            if !matches!(list_type.as_str(), Some("atomic" | "set" | "map")) {
                let at = format!("{path}.x-kubernetes-list-type");
                self.schema.push(Cause::not_supported(at, list_type, &["atomic", "set", "map"]));
            }
        }
        if list(node, "x-kubernetes-list-map-keys").next().is_some() && list_type != "map" {
            let (at, why) =
                (format!("{path}.x-kubernetes-list-type"), "must be map if x-kubernetes-list-map-keys is non-empty");
            if list_type.is_string() { self.invalid(at, list_type, why) } else { self.required(at, why) }
        }
    }

    fn set_items(&mut self, items: &Value, path: &str) {
        let why = "must be atomic as item of a list with x-kubernetes-list-type=set";
        let given = &items["x-kubernetes-list-type"];
        match text(items, "type") {
            "object" if text(items, "x-kubernetes-map-type") != "atomic" => {
                self.invalid(format!("{path}.x-kubernetes-map-type"), given, why);
            }
            "array" if given.is_string() && given != "atomic" => {
                self.invalid(format!("{path}.x-kubernetes-list-type"), given, why);
            }
            _ => {}
        }
    }

    fn map_list(&mut self, node: &Value, path: &str) {
        let (kind, items) = (text(node, "x-kubernetes-list-type"), &node["items"]);
        let keys_at = format!("{path}.x-kubernetes-list-map-keys");
        let given = &node["x-kubernetes-list-map-keys"];
        let keys: Vec<&str> = list(node, "x-kubernetes-list-map-keys").filter_map(Value::as_str).collect();
        if kind == "map" {
            if keys.is_empty() {
                self.required(keys_at.clone(), "must not be empty if x-kubernetes-list-type is map");
            }
            if items.is_null() {
                self.required(format!("{path}.items"), "must have a schema if x-kubernetes-list-type is map");
            } else if items.is_object() && text(items, "type") != "object" {
                let why = "must be object if parent array's x-kubernetes-list-type is map";
                self.invalid(format!("{path}.items.type"), &Value::from(text(items, "type")), why);
            }
        }
        if kind == "map" && text(items, "type") == "object" {
            for (index, key) in keys.iter().enumerate() {
                match items["properties"].get(*key) {
                    None => self.invalid(keys_at.clone(), given, "entries must all be names of item properties"),
                    Some(property) if matches!(text(property, "type"), "array" | "object") => {
                        let at = format!("{path}.items.properties[{key}].type");
                        let why = "must be a scalar type if parent array's x-kubernetes-list-type is map";
                        self.invalid(at, &items["type"], why);
                    }
                    Some(_) => {}
                }
                if keys[..index].contains(key) {
                    self.invalid(keys_at.clone(), given, "must not contain duplicate entries");
                }
            }
        }
        if matches!(kind, "map" | "set") && items["nullable"] == true {
            let why = format!("cannot be nullable when x-kubernetes-list-type is {kind}");
            self.forbidden(format!("{path}.items.nullable"), &why);
        }
        if kind != "map" {
            return;
        }
        for key in &keys {
            let Some(property) = items["properties"].get(*key) else { continue };
            let at = format!("{path}.items.properties[{key}]");
            if property["default"].is_null() && !list(items, "required").any(|name| name == key) {
                let why = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
                self.required(format!("{at}.default"), why);
            }
            if property["nullable"] == true {
                let why = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
                self.forbidden(format!("{at}.nullable"), why);
            }
        }
    }

    /// What a rule says beside its expressions.
    fn rule(&mut self, node: &Value, schema: Option<&Schema>, index: usize, at: &str) {
        let rule = &node["x-kubernetes-validations"][index];
        let blank = |key: &str| !text(rule, key).is_empty() && text(rule, key).trim().is_empty();
        let breaks = |text: &str| text.contains(['\n', '\r']);
        if text(rule, "rule").trim().is_empty() {
            self.required(format!("{at}.rule"), "rule is not specified");
        } else if blank("message") {
            self.invalid(format!("{at}.message"), &rule["message"], "must be non-empty if specified");
        } else if breaks(text(rule, "message").trim()) {
            self.invalid(format!("{at}.message"), &rule["message"], "must not contain line breaks");
        } else if breaks(text(rule, "rule").trim()) && text(rule, "message").is_empty() {
            self.required(format!("{at}.message"), "must be specified if rule contains line breaks");
        }
        if blank("messageExpression") {
            self.required(format!("{at}.messageExpression"), "must be non-empty if specified");
        }
        if rule["reason"].as_str().is_some_and(|reason| !REASONS.contains(&reason)) {
            self.schema.push(Cause::not_supported(format!("{at}.reason"), &rule["reason"], &REASONS));
        }
        let path = text(rule, "fieldPath");
        if blank("fieldPath") {
            self.invalid(format!("{at}.fieldPath"), &rule["fieldPath"], "must be non-empty if specified");
        }
        if breaks(path) {
            self.invalid(format!("{at}.fieldPath"), &rule["fieldPath"], "must not contain line breaks");
        }
        let fits = |schema: &Schema| schema.follow(path, true).is_ok();
        if !path.is_empty() && !schema.is_none_or(fits) {
            self.invalid(format!("{at}.fieldPath"), &rule["fieldPath"], "must be a valid path");
        }
    }
}

impl Schema {
    /// The schema that a JSON path of names leads to, with the first of the names. `brackets` says whether `['name']` is
    /// understood.
    pub fn follow(&self, path: &str, brackets: bool) -> Result<(&Self, String), String> {
        let (mut here, mut rest, mut first) = (self, path, None);
        while !rest.is_empty() {
            let name;
            if let Some(tail) = rest.strip_prefix("[").filter(|_| brackets) {
                let quoted = tail.strip_prefix('\'').and_then(|tail| tail.split_once('\''));
                let Some((inner, tail)) = quoted else {
                    return Err(format!(
                        "expected single quoted string but got {}",
                        tail.split(']').next().unwrap_or(tail)
                    ));
                };
                name = inner;
                rest = tail.strip_prefix(']').ok_or_else(|| format!("expected ] but got {tail}"))?;
            } else if let Some(tail) = rest.strip_prefix('.') {
                let end = tail.find(['.', '[', ']']).unwrap_or(tail.len());
                if end == 0 {
                    return Err("unexpected end of JSON path".into());
                }
                (name, rest) = tail.split_at(end);
            } else {
                let end = rest.find(['.', '[', ']']).filter(|end| *end > 0).unwrap_or(rest.len().min(1));
                let wanted = if brackets { "[ or ." } else { "." };
                return Err(format!("expected {wanted} but got: {}", rest.get(..end).unwrap_or(rest)));
            }
            here = here.field(name).ok_or("does not refer to a valid field")?;
            first.get_or_insert_with(|| name.to_owned());
        }
        first.map(|first| (here, first)).ok_or_else(|| "unexpected end of JSON path".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::structural::source;
    use serde_json::json;

    /// Each row: what is declared of the field `a`, and how what is told of it begins.
    const DECLARED: &[(&str, &[&str])] = &[
        (
            r#"{"type": "null"}"#,
            &[r#".type: Unsupported value: "null""#, r#".type: Forbidden: type cannot be set to null"#],
        ),
        (
            r#"{"type": "string", "x-kubernetes-map-type": "atomic"}"#,
            &[r#".type: Invalid value: "string": must be object if x-kubernetes-map-type"#],
        ),
        (
            r#"{"type": "object", "x-kubernetes-map-type": "odd"}"#,
            &[r#".x-kubernetes-map-type: Unsupported value: "odd""#],
        ),
        (
            r#"{"type": "object", "x-kubernetes-list-type": "set"}"#,
            &[r#".type: Invalid value: "object": must be array if x-kubernetes-list-type"#],
        ),
        (
            r#"{"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "bag"}"#,
            &[r#".x-kubernetes-list-type: Unsupported value: "bag": supported values: "atomic", "set", "map""#],
        ),
        (
            r#"{"type": "array", "items": {"type": "string"}, "x-kubernetes-list-map-keys": ["k"]}"#,
            &[r#".x-kubernetes-list-type: Required value: must be map"#],
        ),
        (
            r#"{"type": "array", "items": {"type": "string", "nullable": true}, "x-kubernetes-list-type": "set"}"#,
            &[r#".items.nullable: Forbidden: cannot be nullable"#],
        ),
        (
            r#"{"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": {"type": "string"}}"#,
            &[r#".items.type: Invalid value: "string": must be object if parent"#],
        ),
        (
            r#"{"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [], "items": {"type": "object", "properties": {"k": {"type": "string"}}, "required": ["k"]}}"#,
            &[r#".x-kubernetes-list-map-keys: Required value: must not be empty"#],
        ),
        (
            r#"{"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": {"type": "object", "properties": {"k": {"type": "object"}}, "required": ["k"]}}"#,
            &[r#".items.properties[k].type: Invalid value: "object": must be a scalar"#],
        ),
        (
            r#"{"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k", "k"], "items": {"type": "object", "properties": {"k": {"type": "string"}}, "required": ["k"]}}"#,
            &[r#".x-kubernetes-list-map-keys: Invalid value: ["k","k"]: must not contain duplicate"#],
        ),
        (
            r#"{"type": "string", "maxLength": 9, "x-kubernetes-validations": [{"rule": "self ==\n 1"}]}"#,
            &[
                r#".x-kubernetes-validations[0].message: Required value: must be specified if rule contains line breaks"#,
            ],
        ),
        (
            r#"{"type": "string", "maxLength": 9, "x-kubernetes-validations": [{"rule": "true", "message": "a\nb"}]}"#,
            &[r#".x-kubernetes-validations[0].message: Invalid value: "a\nb": must not contain line breaks"#],
        ),
        (
            r#"{"type": "string", "maxLength": 9, "x-kubernetes-validations": [{"rule": "true", "messageExpression": " "}]}"#,
            &[r#".x-kubernetes-validations[0].messageExpression: Required value: must be non-empty"#],
        ),
        (
            r#"{"type": "string", "maxLength": 9, "x-kubernetes-validations": [{"rule": "true", "messageExpression": "1"}]}"#,
            &[r#".x-kubernetes-validations[0].messageExpression: Invalid value: {"Rule""#],
        ),
        (
            r#"{"type": "string", "maxLength": 9, "x-kubernetes-validations": [{"rule": "true", "optionalOldSelf": true}]}"#,
            &[r#".x-kubernetes-validations[0].optionalOldSelf: Invalid value: true: may not be set"#],
        ),
        (
            r#"{"type": "array", "maxItems": 9, "items": {"type": "string", "maxLength": 9, "x-kubernetes-validations": [{"rule": "self == oldSelf"}]}}"#,
            &[
                r#".items.x-kubernetes-validations[0].rule: Invalid value: "self == oldSelf": oldSelf cannot be used on the uncorrelatable portion of the schema within s.properties[a]"#,
            ],
        ),
        (
            r#"{"x-kubernetes-int-or-string": true, "x-kubernetes-preserve-unknown-fields": true}"#,
            &[r#".x-kubernetes-preserve-unknown-fields: Invalid value: true: must be false if"#],
        ),
        (
            r#"{"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}]}"#,
            &[r#".anyOf[0].type: Forbidden: must be empty to be structural"#],
        ),
        (
            r#"{"x-kubernetes-int-or-string": true, "allOf": [{"anyOf": [{"type": "integer"}, {"type": "string"}]}]}"#,
            &[],
        ),
        (
            r#"{"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"kind": {"type": "integer"}}}"#,
            &[r#".properties[kind].type: Invalid value: "integer": must be string"#],
        ),
        (
            r#"{"type": "array", "items": [{"type": "string"}]}"#,
            &[r#".items: Forbidden: items must be a schema object"#],
        ),
    ];

    #[test]
    fn declarations_are_judged() {
        for (declared, told) in DECLARED {
            let declared: Value = serde_json::from_str(declared).unwrap();
            let schema = json!({"type": "object", "properties": {"a": declared}});
            let causes = source::problems(&schema, "s", false).0;
            let got: Vec<String> = causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
            assert_eq!(got.len(), told.len(), "{declared}: {got:?}");
            let fits = |(got, told): (&String, &&str)| got.starts_with(&format!("s.properties[a]{told}"));
            assert!(got.iter().zip(*told).all(fits), "{declared}: {got:?}");
        }
    }

    #[test]
    fn roots_are_judged() {
        for (schema, has_status, told) in [
            (
                json!({"type": "object", "nullable": true}),
                false,
                "s.nullable: Forbidden: nullable cannot be true at the root",
            ),
            (
                json!({"type": "object", "additionalProperties": true}),
                false,
                "s.additionalProperties: Forbidden: must not be used at the root",
            ),
            (json!({"type": "object", "oneOf": [{"required": ["a"]}]}), true, "s: Invalid value"),
            (
                json!({"type": "object", "properties": {"metadata": {"type": "object", "description": "x"}}}),
                false,
                "s.properties[metadata]: Forbidden: must not specify anything",
            ),
            (
                json!({"type": "object", "properties": {"metadata": {"type": "string"}}}),
                false,
                "s.properties[metadata].type: Invalid value: \"string\": must be object",
            ),
            (
                json!({"type": "object", "properties": {"kind": {"type": "string", "default": "x"}}}),
                false,
                "s.properties[kind].default: Forbidden: must not be set in top-level kind",
            ),
            (
                json!({"type": "object", "anyOf": [{"properties": {"metadata": {"required": ["x"]}}}], "properties": {"metadata": {"type": "object"}}}),
                false,
                "s.anyOf[0].properties[metadata]: Forbidden: must not be specified in a nested context",
            ),
        ] {
            let got: Vec<String> = source::problems(&schema, "s", has_status)
                .0
                .iter()
                .map(|c| format!("{}: {}", c.field, c.message))
                .collect();
            assert!(got.len() == 1 && got[0].starts_with(told), "{schema}: {got:?}");
        }
    }

    #[test]
    fn paths_are_followed() {
        let schema = Schema::parse(&json!({"type": "object", "properties": {
            "a": {"type": "object", "properties": {"b-c": {"type": "string"}}},
            "m": {"type": "object", "additionalProperties": {"type": "integer"}}}}));
        for (path, brackets, found) in [
            (".a.b-c", false, Ok("string")),
            (".a['b-c']", true, Ok("string")),
            (".m['any.thing']", true, Ok("integer")),
            (".a['b-c']", false, Err("expected . but got: [")),
            ("a", true, Err("expected [ or . but got: a")),
            (".", true, Err("unexpected end of JSON path")),
            (".a[0]", true, Err("expected single quoted string but got 0")),
            (".x", true, Err("does not refer to a valid field")),
        ] {
            let got = schema.follow(path, brackets);
            assert_eq!(got.as_ref().map(|(s, _)| s.kind.as_str()).map_err(String::as_str), found, "{path}");
        }
    }
}
