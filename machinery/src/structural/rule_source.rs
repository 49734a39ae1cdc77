//! Whether the CEL rules of a schema can be compiled, and what they would cost at worst.

use serde_json::Value;

use super::cost::{Declared, estimate};
use super::rules::{env, mentions_old, type_of};
use super::{Rule, Schema};
use crate::cel::{Program, Type};
use crate::status::Cause;

/// What one rule may cost at worst.
const RULE_LIMIT: u64 = 10_000_000;
/// What all rules of a schema may cost at worst.
const SCHEMA_LIMIT: u64 = 100_000_000;
/// How many of the dearest rules are told when all together cost too much.
const MAX_TOLD: usize = 4;
/// A rule that costs less than this part of the limit is not told of then.
const WORTH_TELLING: u64 = SCHEMA_LIMIT / 100;
const ADVICE: &str = "(try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)";

fn exceeds(what: &str, cost: u64, limit: u64) -> String {
    let times = cost as f64 / limit as f64;
    let factor = match times {
        times if times > 100.0 => "more than 100x".to_owned(),
        times if times < 1.5 => format!("{times:.6}x"),
        times => format!("{times:.1}x"),
    };
    format!("{what} exceeds budget by factor of {factor} {ADVICE}")
}

/// What the rules of a schema cost together.
#[derive(Default)]
pub(super) struct Costs {
    total: u64,
    dearest: Vec<(String, u64)>,
}

impl Costs {
    fn note(&mut self, at: String, cost: u64) {
        self.total = self.total.saturating_add(cost);
        if cost < WORTH_TELLING {
            return;
        }
        let place = self.dearest.iter().position(|(_, known)| *known < cost).unwrap_or(self.dearest.len());
        self.dearest.insert(place, (at, cost));
        self.dearest.truncate(MAX_TOLD);
    }

    /// What is told if they cost too much.
    pub fn problems(self, path: &str, out: &mut Vec<Cause>) {
        if self.total <= SCHEMA_LIMIT {
            return;
        }
        for (at, _) in self.dearest {
            let why = "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
            out.push(Cause::forbidden(at, why));
        }
        let what = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        out.push(Cause::forbidden(path, &exceeds(what, self.total, SCHEMA_LIMIT)));
    }
}

/// How often the rules of a node are checked for one object.
#[derive(Clone, Copy)]
pub(super) struct Context<'s> {
    schema: &'s Schema,
    /// `None`: as often as fits into a request.
    times: Option<u64>,
    root: bool,
}

impl<'s> Context<'s> {
    /// At the root: once.
    pub fn root(schema: &'s Schema) -> Self {
        Self { schema, times: Some(1), root: true }
    }

    /// For a field: as often as for the object.
    pub fn field(&self, inner: &'s Schema) -> Self {
        Self { schema: inner, times: self.times, root: false }
    }

    /// For the items of a list or the values of a map.
    pub fn value(&self, inner: &'s Schema) -> Self {
        let most = if self.schema.kind == "array" { self.schema.item_count.1 } else { self.schema.property_count.1 };
        let times = self.times.zip(most).map(|(times, most)| times.saturating_mul(most));
        Self { schema: inner, times, root: false }
    }

    /// Compiles the rules of the node. `unrelated` is the node above whose values cannot be told from what they were.
    pub fn compile(
        &self,
        schema: &Schema,
        path: &str,
        unrelated: Option<&str>,
        out: &mut Vec<Cause>,
        costs: &mut Costs,
    ) {
        if schema.rules.is_empty() {
            return;
        }
        let kind = type_of(schema, self.root);
        let Some(declared) = Declared::of(schema) else { return };
        let times = self.times.unwrap_or_else(|| declared.most_in_a_request());
        for (index, rule) in schema.rules.iter().enumerate() {
            let at = format!("{path}.x-kubernetes-validations[{index}]");
            let checked = Checked { rule, at: &at, kind: &kind, declared: &declared, times, unrelated };
            checked.rule(out, costs);
            checked.message(out, costs);
        }
    }
}

/// A rule that is looked at.
struct Checked<'s> {
    rule: &'s Rule,
    at: &'s str,
    kind: &'s Type,
    declared: &'s Declared,
    times: u64,
    unrelated: Option<&'s str>,
}

impl Checked<'_> {
    fn cost(&self, source: &str, program: &Program) -> u64 {
        let env = env(self.kind, self.rule);
        estimate(program.expr(), &program.kinds(source, &env), self.declared)
    }

    fn rule(&self, out: &mut Vec<Cause>, costs: &mut Costs) {
        let (rule, at) = (self.rule, format!("{}.rule", self.at));
        if rule.rule.trim().is_empty() {
            return;
        }
        let program = match Program::compile(&rule.rule, &env(self.kind, rule)) {
            Err(why) => return out.push(self.refused("rule", &format!("compilation failed: {why}"))),
            Ok(program) if !matches!(program.kind(), Type::Bool | Type::Dyn) => {
                return out.push(self.refused("rule", "cel expression must evaluate to a bool"));
            }
            Ok(program) => program,
        };
        let cost = self.times.saturating_mul(self.cost(&rule.rule, &program));
        if cost > RULE_LIMIT {
            out.push(Cause::forbidden(at.clone(), &exceeds("estimated rule cost", cost, RULE_LIMIT)));
        }
        costs.note(at.clone(), cost);
        if !mentions_old(&program) {
            if rule.has_optional_old_self {
                let why = "may not be set if oldSelf is not used in rule";
                let at = format!("{}.optionalOldSelf", self.at);
                out.push(Cause::invalid(at, &Value::from(rule.optional_old_self), why));
            }
        } else if let Some(above) = self.unrelated {
            let why = format!("oldSelf cannot be used on the uncorrelatable portion of the schema within {above}");
            out.push(Cause::invalid(at, &Value::from(rule.rule.as_str()), &why));
        }
    }

    fn message(&self, out: &mut Vec<Cause>, costs: &mut Costs) {
        let source = &self.rule.message_expression;
        if source.trim().is_empty() {
            return;
        }
        let program = match Program::compile(source, &env(self.kind, self.rule)) {
            Err(why) => {
                let why = format!("messageExpression compilation failed: {why}");
                return out.push(self.refused("messageExpression", &why));
            }
            Ok(program) if !matches!(program.kind(), Type::String | Type::Dyn) => {
                return out.push(self.refused("messageExpression", "messageExpression must evaluate to a string"));
            }
            Ok(program) => program,
        };
        let (cost, at) = (self.cost(source, &program), format!("{}.messageExpression", self.at));
        if cost > RULE_LIMIT {
            out.push(Cause::forbidden(at.clone(), &exceeds("estimated messageExpression cost", cost, RULE_LIMIT)));
        }
        costs.note(at, cost);
    }

    /// The refusal of a rule shows all of it.
    fn refused(&self, field: &str, why: &str) -> Cause {
        let rule = self.rule;
        let or_null = |text: &str| if text.is_empty() { "null".to_owned() } else { go_json(text) };
        let old = match (rule.has_optional_old_self, rule.optional_old_self) {
            (false, _) => "null",
            (true, true) => "true",
            (true, false) => "false",
        };
        let message = format!(
            "Invalid value: {{\"Rule\":{},\"Message\":{},\"MessageExpression\":{},\"Reason\":{},\"FieldPath\":{},\"OptionalOldSelf\":{old}}}: {why}",
            go_json(&rule.rule),
            go_json(&rule.message),
            go_json(&rule.message_expression),
            or_null(&rule.reason),
            go_json(&rule.field_path),
        );
        Cause { reason: "FieldValueInvalid".into(), message, field: format!("{}.{field}", self.at) }
    }
}

/// A text as Go writes it in JSON: what is special in HTML is escaped.
fn go_json(text: &str) -> String {
    let json = Value::from(text).to_string();
    json.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_are_told_as_precisely_as_they_matter() {
        for (cost, told) in [(101, "1.010000x"), (160, "1.6x"), (9_999, "100.0x"), (10_001, "more than 100x")] {
            assert!(
                exceeds("x", cost, 100).contains(&format!("by factor of {told} (try")),
                "{}",
                exceeds("x", cost, 100)
            );
        }
    }

    #[test]
    fn only_the_dearest_rules_are_told() {
        let mut costs = Costs::default();
        for (index, cost) in [5, 90_000_000, 2_000_000, 3_000_000, 50_000_000, 4_000_000].into_iter().enumerate() {
            costs.note(index.to_string(), cost);
        }
        let mut out = Vec::new();
        costs.problems("s", &mut out);
        let told: Vec<&str> = out.iter().map(|c| c.field.as_str()).collect();
        assert_eq!(told, ["1", "4", "5", "3", "s"]);
    }
}
