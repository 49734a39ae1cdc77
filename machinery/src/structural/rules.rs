//! CEL rules of structural schemas: compiled with the schema's types, evaluated over an object and what it was before.

use serde_json::Value;

use super::{Additional, Rule, Schema};
use crate::cel::{Bindings, Budget, CompileError, Env, Kind, Program, Type, Value as Cel, escape};
use crate::status::Cause;

/// What all rules of one object may cost together.
pub const OBJECT_BUDGET: u64 = 10_000_000;
/// Told when the budget is used up.
const EXHAUSTED: &str = "validation failed due to running out of cost budget, no further validation rules will be run";

/// The rules of one node, ready to run.
#[derive(Debug)]
pub struct Compiled {
    kind: Type,
    rules: Vec<CompiledRule>,
}

#[derive(Debug)]
struct CompiledRule {
    rule: Rule,
    program: Result<Program, CompileError>,
    message: Option<Program>,
    transition: bool,
}

/// The type of a schema's values in expressions.
pub fn type_of(schema: &Schema, whole: bool) -> Type {
    if schema.int_or_string {
        return Type::Dyn;
    }
    match schema.kind.as_str() {
        "boolean" => Type::Bool,
        "integer" => Type::Int,
        "number" => Type::Double,
        "string" => match schema.format.as_str() {
            "byte" => Type::Bytes,
            "date" | "date-time" => Type::Timestamp,
            "duration" => Type::Duration,
            _ => Type::String,
        },
        "array" => Type::list(schema.items.as_deref().map_or(Type::Dyn, |items| type_of(items, false))),
        "object" => match &schema.additional {
            Some(Additional::Schema(values)) => Type::map(type_of(values, false)),
            Some(Additional::Any(true)) => Type::map(Type::Dyn),
            _ if schema.properties.is_empty() && schema.preserve_unknown && !whole => Type::Dyn,
            _ => object(schema, whole || schema.embedded),
        },
        _ => Type::Dyn,
    }
}

fn object(schema: &Schema, whole: bool) -> Type {
    let named = schema.properties.iter().filter_map(|(name, inner)| Some((escape(name)?, type_of(inner, false))));
    let mut fields: Vec<(String, Type)> = named.collect();
    if whole {
        let text = |name: &str| (name.to_owned(), Type::String);
        fields.retain(|(name, _)| !matches!(name.as_str(), "apiVersion" | "kind" | "metadata"));
        fields.extend([text("apiVersion"), text("kind")]);
        fields.push(("metadata".into(), Type::object("metadata", [text("name"), text("generateName")])));
    }
    Type::object("object", fields)
}

/// What a rule may refer to.
pub fn env(kind: &Type, rule: &Rule) -> Env {
    let old = if rule.optional_old_self { Type::Optional(kind.clone().into()) } else { kind.clone() };
    Env::of([("self", kind.clone()), ("oldSelf", old)])
}

/// Whether an expression speaks of the old value.
pub fn mentions_old(program: &Program) -> bool {
    fn walk(expr: &crate::cel::Expr) -> bool {
        match &expr.kind {
            Kind::Ident(name) => name == "oldSelf",
            Kind::Select { operand, .. } | Kind::Has { operand, .. } => walk(operand),
            Kind::Call { target, arguments, .. } => target.as_deref().is_some_and(walk) || arguments.iter().any(walk),
            Kind::List(items) => items.iter().any(|(item, _)| walk(item)),
            Kind::Map(entries) => entries.iter().any(|(key, value, _)| walk(key) || walk(value)),
            Kind::Struct { fields, .. } => fields.iter().any(|(_, value, _)| walk(value)),
            Kind::Macro { range, arguments, .. } => walk(range) || arguments.iter().any(walk),
            _ => false,
        }
    }
    walk(program.expr())
}

fn compile(schema: &Schema, whole: bool) -> Compiled {
    let kind = type_of(schema, whole);
    let rules = schema.rules.iter().map(|rule| {
        let env = env(&kind, rule);
        let program = Program::compile(&rule.rule, &env);
        let transition = program.as_ref().is_ok_and(mentions_old);
        let message = Some(&rule.message_expression).filter(|text| !text.is_empty());
        CompiledRule {
            rule: rule.clone(),
            program,
            message: message.and_then(|text| Program::compile(text, &env).ok()),
            transition,
        }
    });
    Compiled { rules: rules.collect(), kind }
}

/// Checks an object against the rules of its schema. Rules on a value that an update leaves as it was are not held
/// against it, unless they compare it with what it was.
pub fn check_rules(schema: &Schema, new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut walk = Walk { budget: Budget::new(OBJECT_BUDGET), causes: Vec::new(), exhausted: false };
    walk.node(schema, new, old, &mut String::new(), true);
    walk.causes
}

struct Walk {
    budget: Budget,
    causes: Vec<Cause>,
    exhausted: bool,
}

impl Walk {
    fn node(&mut self, schema: &Schema, new: &Value, old: Option<&Value>, path: &mut String, whole: bool) {
        if !schema.has_rules || self.exhausted || new.is_null() {
            return;
        }
        if !schema.rules.is_empty() {
            self.rules(schema, new, old, path, whole);
        }
        let length = path.len();
        match new {
            Value::Object(map) => {
                for (key, value) in map {
                    let (inner, named) = match (schema.properties.get(key), &schema.additional) {
                        (Some(inner), _) => (inner, true),
                        (None, Some(Additional::Schema(inner))) => (&**inner, false),
                        _ => continue,
                    };
                    if !inner.has_rules {
                        continue;
                    }
                    match named {
                        true if path.is_empty() => path.push_str(key),
                        true => path.extend([".", key]),
                        false => path.extend(["[", key, "]"]),
                    }
                    let before = old.and_then(|old| old.get(key)).filter(|v| !v.is_null());
                    self.node(inner, value, before, path, false);
                    path.truncate(length);
                }
            }
            Value::Array(list) => {
                let Some(inner) = schema.items.as_deref().filter(|inner| inner.has_rules) else { return };
                for (index, value) in list.iter().enumerate() {
                    path.push_str(&format!("[{index}]"));
                    self.node(inner, value, same_item(schema, value, old), path, false);
                    path.truncate(length);
                }
            }
            _ => {}
        }
    }

    fn rules(&mut self, schema: &Schema, new: &Value, old: Option<&Value>, path: &str, whole: bool) {
        let compiled = schema.compiled.get_or_init(|| compile(schema, whole));
        let unchanged = old == Some(new);
        for rule in &compiled.rules {
            let optional = rule.rule.optional_old_self;
            // Nothing to compare with; or nothing that this write changed.
            if (rule.transition && !optional && old.is_none()) || (!rule.transition && unchanged) {
                continue;
            }
            let before = old.map(|old| Cel::of(old, Some(&compiled.kind)));
            let mut bindings = Bindings::new();
            bindings.insert("self", Cel::of(new, Some(&compiled.kind)));
            match (optional, before) {
                (true, before) => {
                    bindings.insert("oldSelf", Cel::Optional(before.map(Into::into)));
                }
                (false, Some(before)) => {
                    bindings.insert("oldSelf", before);
                }
                (false, None) => {}
            }
            if let Some(cause) = rule.judge(&bindings, &self.budget, new, path) {
                self.causes.push(cause);
            }
            if self.budget.left() == 0 {
                self.exhausted = true;
                self.causes.push(invalid(field(path), None, EXHAUSTED));
                return;
            }
        }
    }
}

/// The item of the old list that has the same keys.
pub(super) fn same_item<'v>(schema: &Schema, item: &Value, old: Option<&'v Value>) -> Option<&'v Value> {
    if schema.list_type != "map" {
        return None;
    }
    let same = |other: &&Value| schema.list_keys.iter().all(|key| other.get(key) == item.get(key));
    old?.as_array()?.iter().find(same)
}

fn field(path: &str) -> String {
    if path.is_empty() { "<nil>".into() } else { path.into() }
}

fn invalid(field: String, value: Option<&Value>, why: &str) -> Cause {
    let message = match value {
        Some(value) => format!("Invalid value: {value}: {why}"),
        None => format!("Invalid value: {why}"),
    };
    Cause { reason: "FieldValueInvalid".into(), message, field }
}

impl CompiledRule {
    /// The cause if the rule does not hold.
    fn judge<'a>(&'a self, bindings: &Bindings<'a>, budget: &Budget, value: &Value, path: &str) -> Option<Cause> {
        let shown = self.rule.rule.trim().replace('\n', "\\n");
        let value = Some(value).filter(|v| !v.is_object() && !v.is_array());
        let program = match &self.program {
            Ok(program) => program,
            Err(why) => return Some(invalid(field(path), value, &format!("rule compile error: {why}"))),
        };
        let why = match program.eval(bindings, budget) {
            Ok(Cel::Bool(true)) => return None,
            Ok(_) => self.told(bindings, budget, &shown),
            Err(error) if error.exhausted => {
                format!("no further validation rules will be run due to call cost exceeds limit for rule: {shown}")
            }
            Err(error) if error.message == "no such overload" => {
                format!(
                    "call arguments did not match a supported operator, function or macro signature for rule: {shown}"
                )
            }
            Err(error) => format!("{error} evaluating rule: {shown}"),
        };
        let place = match self.rule.field_path.as_str() {
            "" => field(path),
            below => {
                format!("{path}{}", below.replace("['", "[").replace("']", "]")).trim_start_matches('.').to_owned()
            }
        };
        Some(match self.rule.reason.as_str() {
            "FieldValueForbidden" => Cause::forbidden(place, &why),
            "FieldValueRequired" => Cause::required(place, &why),
            "FieldValueDuplicate" => Cause {
                reason: "FieldValueDuplicate".into(),
                message: value.map_or_else(|| "Duplicate value".into(), |value| format!("Duplicate value: {value}")),
                field: place,
            },
            _ => invalid(place, value, &why),
        })
    }

    fn told<'a>(&'a self, bindings: &Bindings<'a>, budget: &Budget, shown: &str) -> String {
        let made = self.message.as_ref().and_then(|program| match program.eval(bindings, budget) {
            Ok(Cel::String(text)) if !text.trim().is_empty() && !text.contains('\n') => Some(text.into_owned()),
            _ => None,
        });
        match made {
            Some(text) => text,
            None if self.rule.message.is_empty() => format!("failed rule: {shown}"),
            None => self.rule.message.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema() -> Schema {
        Schema::parse(&json!({"type": "object", "properties": {"spec": {
            "type": "object",
            "properties": {
                "min": {"type": "integer"}, "max": {"type": "integer"}, "when": {"type": "string", "format": "date-time"},
                "name": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "fixed"}]},
                "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port"],
                    "items": {"type": "object", "properties": {"port": {"type": "integer"}, "a-b": {"type": "string"}},
                        "x-kubernetes-validations": [{"rule": "self.port < 100 || has(self.a__dash__b)"}]}},
            },
            "x-kubernetes-validations": [
                {"rule": "!has(self.min) || !has(self.max) || self.min <= self.max", "fieldPath": ".min",
                 "messageExpression": "'at most ' + string(self.max)"},
                {"rule": "!has(self.when) || self.when.getFullYear() > 2000", "reason": "FieldValueForbidden"},
            ],
        }}}))
    }

    #[test]
    fn rules_hold_or_are_told() {
        for (new, old, expected) in [
            (json!({"spec": {"min": 1, "max": 2}}), None, vec![]),
            (json!({"spec": {"min": 3, "max": 2}}), None, vec!["spec.min: Invalid value: at most 2"]),
            // Nothing that the write changed.
            (json!({"spec": {"min": 3, "max": 2}}), Some(json!({"spec": {"min": 3, "max": 2}})), vec![]),
            (
                json!({"spec": {"name": "b"}}),
                Some(json!({"spec": {"name": "a"}})),
                vec!["spec.name: Invalid value: \"b\": fixed"],
            ),
            (json!({"spec": {"name": "b"}}), None, vec![]),
            (
                json!({"spec": {"ports": [{"port": 1}, {"port": 200}, {"port": 200, "a-b": "x"}]}}),
                None,
                vec!["spec.ports[1]: Invalid value: failed rule: self.port < 100 || has(self.a__dash__b)"],
            ),
            (
                json!({"spec": {"when": "1999-01-01T00:00:00Z"}}),
                None,
                vec!["spec: Forbidden: failed rule: !has(self.when) || self.when.getFullYear() > 2000"],
            ),
        ] {
            let causes = check_rules(&schema(), &new, old.as_ref());
            let told: Vec<String> = causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
            assert_eq!(told, expected, "{new}");
        }
    }

    #[test]
    fn an_object_cannot_make_its_rules_run_for_long() {
        let schema = Schema::parse(&json!({"type": "object", "properties": {"list": {
            "type": "array", "items": {"type": "integer"},
            "x-kubernetes-validations": [{"rule": "self.all(a, self.all(b, self.all(c, a + b + c >= 0)))"}]}}}));
        let list: Vec<i32> = (0..1000).collect();
        let causes = check_rules(&schema, &json!({"list": list}), None);
        assert_eq!(causes.last().map(|c| c.message.as_str()), Some(format!("Invalid value: {EXHAUSTED}").as_str()));
    }
}
