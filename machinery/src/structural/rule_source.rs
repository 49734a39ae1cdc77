//! Whether the CEL rules of a schema can be compiled, and what they would cost at worst.

use serde_json::Value;

use super::rules::{env, type_of};
use super::{Additional, Rule, Schema};
use crate::cel::{Expr, Kind, Program, Type};
use crate::status::Cause;

/// What one rule may cost at worst.
const RULE_LIMIT: f64 = 10_000_000.0;
/// What all rules of a schema may cost at worst.
const SCHEMA_LIMIT: f64 = 100_000_000.0;
/// Our estimates are rougher than upstream's: only what is far beyond a limit is refused.
const MARGIN: f64 = 10.0;
/// Bytes of the largest request: an unlimited list has no more items than fit.
const REQUEST_BYTES: f64 = 3_145_728.0;
const ADVICE: &str = "(try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)";
const REASONS: [&str; 4] = ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];

/// What is wrong with the rules of a schema.
pub(super) fn problems(source: &Value, path: &str, out: &mut Vec<Cause>) {
    let schema = Schema::parse(source);
    if !schema.has_rules {
        return;
    }
    let mut walk = Walk { out, costs: Vec::new() };
    walk.node(&schema, path, 1.0, true);
    let total: f64 = walk.costs.iter().map(|(_, cost)| cost).sum();
    if total > SCHEMA_LIMIT * MARGIN {
        for (at, cost) in std::mem::take(&mut walk.costs) {
            if cost > SCHEMA_LIMIT / 100.0 {
                let why = "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
                walk.out.push(Cause::forbidden(at, why));
            }
        }
        let why = format!(
            "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema exceeds budget by factor of {} {ADVICE}",
            factor(total / SCHEMA_LIMIT)
        );
        walk.out.push(Cause::forbidden(path, &why));
    }
}

fn factor(times: f64) -> String {
    if times > 100.0 { "more than 100x".into() } else { format!("{times:.1}x") }
}

struct Walk<'o> {
    out: &'o mut Vec<Cause>,
    costs: Vec<(String, f64)>,
}

impl Walk<'_> {
    fn node(&mut self, schema: &Schema, path: &str, times: f64, whole: bool) {
        if !schema.has_rules {
            return;
        }
        let kind = type_of(schema, whole);
        for (index, rule) in schema.rules.iter().enumerate() {
            self.rule(schema, &kind, rule, &format!("{path}.x-kubernetes-validations[{index}]"), times);
        }
        for (name, inner) in &schema.properties {
            self.node(inner, &format!("{path}.properties[{name}]"), times, false);
        }
        if let Some(Additional::Schema(inner)) = &schema.additional {
            self.node(inner, &format!("{path}.additionalProperties"), times * most(schema), false);
        }
        if let Some(inner) = &schema.items {
            self.node(inner, &format!("{path}.items"), times * most(schema), false);
        }
    }

    fn rule(&mut self, schema: &Schema, kind: &Type, rule: &Rule, at: &str, times: f64) {
        if rule.rule.trim().is_empty() {
            self.out.push(Cause::required(format!("{at}.rule"), "rule is not specified"));
            return;
        }
        let single = |text: &str| !text.is_empty() && text.trim().is_empty();
        if single(&rule.message) {
            let value = Value::from(rule.message.as_str());
            self.out.push(Cause::invalid(format!("{at}.message"), &value, "must be non-empty if specified"));
        } else if rule.message.contains('\n') {
            let value = Value::from(rule.message.as_str());
            self.out.push(Cause::invalid(format!("{at}.message"), &value, "must not contain line breaks"));
        } else if rule.message.is_empty() && rule.rule.contains('\n') && rule.message_expression.is_empty() {
            let why = "message must be specified if rule contains line breaks";
            self.out.push(Cause::required(format!("{at}.message"), why));
        }
        if !rule.reason.is_empty() && !REASONS.contains(&rule.reason.as_str()) {
            let value = Value::from(rule.reason.as_str());
            self.out.push(Cause::not_supported(format!("{at}.reason"), &value, &REASONS));
        }
        if !rule.field_path.is_empty() && !is_path(schema, &rule.field_path) {
            let value = Value::from(rule.field_path.as_str());
            self.out.push(Cause::invalid(format!("{at}.fieldPath"), &value, "must be a valid path"));
        }
        let env = env(kind, rule);
        match Program::compile(&rule.rule, &env) {
            Err(why) => self.refused(rule, at, &format!("compilation failed: {why}")),
            Ok(program) if !matches!(program.kind(), Type::Bool | Type::Dyn) => {
                self.refused(rule, at, "cel expression must evaluate to a bool");
            }
            Ok(program) => {
                let cost = times * cost(program.expr(), &mut vec![("self".into(), schema), ("oldSelf".into(), schema)]);
                self.costs.push((format!("{at}.rule"), cost));
                if cost > RULE_LIMIT * MARGIN {
                    let why = format!(
                        "estimated rule cost exceeds budget by factor of {} {ADVICE}",
                        factor(cost / RULE_LIMIT)
                    );
                    self.out.push(Cause::forbidden(format!("{at}.rule"), &why));
                }
            }
        }
    }

    fn refused(&mut self, rule: &Rule, at: &str, why: &str) {
        let quoted = |text: &str| go_json(text);
        let or_null = |text: &str| if text.is_empty() { "null".to_owned() } else { quoted(text) };
        let old = if rule.optional_old_self { "true" } else { "null" };
        let message = format!(
            "Invalid value: {{\"Rule\":{},\"Message\":{},\"MessageExpression\":{},\"Reason\":{},\"FieldPath\":{},\"OptionalOldSelf\":{old}}}: {why}",
            quoted(&rule.rule),
            quoted(&rule.message),
            quoted(&rule.message_expression),
            or_null(&rule.reason),
            quoted(&rule.field_path),
        );
        self.out.push(Cause { reason: "FieldValueInvalid".into(), message, field: format!("{at}.rule") });
    }
}

/// A text as Go writes it in JSON: what is special in HTML is escaped.
fn go_json(text: &str) -> String {
    let json = Value::from(text).to_string();
    json.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

/// Whether a relative path leads to a field that the schema declares.
fn is_path(schema: &Schema, path: &str) -> bool {
    let plain = path.replace("['", ".").replace("']", "");
    let Some(plain) = plain.strip_prefix('.') else { return false };
    let mut here = schema;
    for name in plain.split('.') {
        here = match (here.properties.get(name), &here.additional) {
            (Some(inner), _) => inner,
            (None, Some(Additional::Schema(inner))) => inner,
            _ => return false,
        };
    }
    true
}

/// Most items or fields that a value can have.
fn most(schema: &Schema) -> f64 {
    let declared = if schema.kind == "array" { schema.item_count.1 } else { schema.property_count.1 };
    if let Some(declared) = declared {
        return declared as f64;
    }
    let smallest = schema.items.as_deref().map_or(5.0, |items| match items.kind.as_str() {
        "object" => 2.0 + items.required.iter().map(|name| name.len() as f64 + 5.0).sum::<f64>(),
        "boolean" => 4.0,
        "integer" | "number" => 1.0,
        _ => 2.0,
    });
    REQUEST_BYTES / (smallest + 1.0)
}

type Known<'s> = Vec<(String, &'s Schema)>;

/// The schema of what an expression selects, if it can be told.
fn schema_of<'s>(expr: &Expr, known: &Known<'s>) -> Option<&'s Schema> {
    match &expr.kind {
        Kind::Ident(name) => known.iter().rev().find(|(n, _)| n == name).map(|(_, schema)| *schema),
        Kind::Select { operand, field, .. } => {
            let schema = schema_of(operand, known)?;
            match &schema.additional {
                Some(Additional::Schema(inner)) => Some(inner),
                _ => schema.properties.get(crate::cel::unescape(field).as_ref()),
            }
        }
        Kind::Call { function, arguments, .. } if function == "_[_]" => {
            let schema = schema_of(arguments.first()?, known)?;
            match &schema.additional {
                Some(Additional::Schema(inner)) => Some(inner),
                _ => schema.items.as_deref(),
            }
        }
        Kind::Macro { name: crate::cel::Macro::Filter, range, .. } => schema_of(range, known),
        _ => None,
    }
}

/// About how many steps an expression takes at worst.
fn cost<'s>(expr: &Expr, known: &mut Known<'s>) -> f64 {
    1.0 + match &expr.kind {
        Kind::Select { operand, .. } | Kind::Has { operand, .. } => cost(operand, known),
        Kind::Call { target, arguments, .. } => {
            let target = target.as_deref().map_or(0.0, |t| cost(t, known));
            arguments.iter().fold(target, |sum, argument| sum + cost(argument, known))
        }
        Kind::List(items) => items.iter().fold(0.0, |sum, (item, _)| sum + cost(item, known)),
        Kind::Map(entries) => entries.iter().fold(0.0, |sum, (k, v, _)| sum + cost(k, known) + cost(v, known)),
        Kind::Struct { fields, .. } => fields.iter().fold(0.0, |sum, (_, value, _)| sum + cost(value, known)),
        Kind::Macro { range, variables, arguments, .. } => {
            let range_cost = cost(range, known);
            let schema = schema_of(range, known);
            let depth = known.len();
            // Of two variables the second is the item; of one it is the item of a list and the key of a map.
            if let (Some(inner), Some(name)) = (schema.and_then(|s| s.items.as_deref()), variables.last()) {
                known.push((name.clone(), inner));
            }
            let body = arguments.iter().fold(0.0, |sum, argument| sum + cost(argument, known));
            known.truncate(depth);
            range_cost + schema.map_or(1.0, most) * body
        }
        _ => 0.0,
    }
}
