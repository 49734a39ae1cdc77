//! The evaluator. Errors are values to `&&`, `||` and the macros built on them, as the language defines; a used-up budget
//! is not.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

use super::EvalError;
use super::ast::{Expr, Kind, Macro};
use super::functions;
use super::operators;
use super::parser::dotted;
use super::signatures::is_qualified;
use super::value::{Value, no_overload};

/// What evaluations may cost: about one for each step, more for long texts and lists.
pub struct Budget(Cell<u64>);

impl Budget {
    /// With this much left.
    pub fn new(cost: u64) -> Self {
        Self(Cell::new(cost))
    }

    /// What is left.
    pub fn left(&self) -> u64 {
        self.0.get()
    }

    /// Takes a cost, or fails for good.
    pub fn spend(&self, cost: u64) -> Result<(), EvalError> {
        match self.0.get().checked_sub(cost) {
            Some(left) => {
                self.0.set(left);
                Ok(())
            }
            None => {
                self.0.set(0);
                let message = "operation cancelled: actual cost limit exceeded".to_owned();
                Err(EvalError { message, exhausted: true })
            }
        }
    }
}

/// The variables of an evaluation.
pub type Bindings<'a> = BTreeMap<&'a str, Value<'a>>;

type Evaluated<'a> = Result<Value<'a>, EvalError>;

/// Variables of macros, innermost first.
struct Scope<'s, 'a> {
    name: &'s str,
    value: Value<'a>,
    parent: Option<&'s Scope<'s, 'a>>,
}

struct Evaluator<'s, 'a> {
    bindings: &'s Bindings<'a>,
    budget: &'s Budget,
}

/// Evaluates an expression.
pub(super) fn evaluate<'a>(expr: &'a Expr, bindings: &Bindings<'a>, budget: &Budget) -> Evaluated<'a> {
    Evaluator { bindings, budget }.eval(expr, None)
}

fn no_such_key(name: &str) -> EvalError {
    EvalError::new(format!("no such key: {name}"))
}

/// The truth of a value.
fn truth(value: Evaluated<'_>) -> Result<bool, EvalError> {
    match value? {
        Value::Bool(b) => Ok(b),
        _ => Err(no_overload()),
    }
}

impl<'a> Evaluator<'_, 'a> {
    fn eval(&self, expr: &'a Expr, scope: Option<&Scope<'_, 'a>>) -> Evaluated<'a> {
        self.budget.spend(1)?;
        match &expr.kind {
            Kind::Null => Ok(Value::Null),
            Kind::Bool(b) => Ok(Value::Bool(*b)),
            Kind::Int(n) => Ok(Value::Int(*n)),
            Kind::Uint(n) => Ok(Value::Uint(*n)),
            Kind::Double(n) => Ok(Value::Double(*n)),
            Kind::String(text) => Ok(Value::text(text)),
            Kind::Bytes(bytes) => Ok(Value::Bytes(bytes.as_slice().into())),
            Kind::Ident(name) => self.variable(name, scope),
            Kind::Select { operand, field, optional } => {
                if let Kind::Ident(name) = &operand.kind
                    && let Some(value) = self.qualified(name, field)
                {
                    return Ok(value);
                }
                select(self.eval(operand, scope)?, field, *optional)
            }
            Kind::Has { operand, field } => match self.eval(operand, scope)? {
                Value::Optional(None) => Ok(Value::Bool(false)),
                Value::Optional(Some(inner)) => Ok(Value::Bool(inner.field(field).is_some())),
                operand => Ok(Value::Bool(operand.field(field).is_some())),
            },
            Kind::Call { function, target, arguments } => self.call(function, target.as_deref(), arguments, scope),
            Kind::List(items) => {
                let mut out = Vec::with_capacity(items.len());
                for (item, optional) in items {
                    match (self.eval(item, scope)?, optional) {
                        (Value::Optional(inner), true) => out.extend(inner.map(|v| (*v).clone())),
                        (value, _) => out.push(value),
                    }
                }
                Ok(Value::list(out))
            }
            Kind::Map(entries) => self.map(entries, scope),
            Kind::Struct { name, fields, .. } => {
                let mut out = BTreeMap::new();
                for (field, value, optional) in fields {
                    match (self.eval(value, scope)?, optional) {
                        (Value::Optional(None), true) => {}
                        (Value::Optional(Some(inner)), true) => {
                            out.insert(field.as_str(), (*inner).clone());
                        }
                        (value, _) => {
                            out.insert(field.as_str(), value);
                        }
                    }
                }
                Ok(Value::Object(name, Rc::new(out)))
            }
            Kind::Macro { name, range, variables, arguments } => {
                let range = self.eval(range, scope)?;
                self.expansion(*name, range, variables, arguments, scope)
            }
        }
    }

    /// A variable whose own name is dotted.
    fn qualified(&self, name: &str, field: &str) -> Option<Value<'a>> {
        let dotted = |known: &&str| known.strip_prefix(name).and_then(|rest| rest.strip_prefix('.')) == Some(field);
        self.bindings.keys().find(|known| dotted(known)).and_then(|known| self.bindings.get(known)).cloned()
    }

    fn variable(&self, name: &'a str, scope: Option<&Scope<'_, 'a>>) -> Evaluated<'a> {
        let mut here = scope;
        while let Some(found) = here {
            if found.name == name {
                return Ok(found.value.clone());
            }
            here = found.parent;
        }
        if let Some(value) = self.bindings.get(name) {
            return Ok(value.clone());
        }
        match name {
            "bool" | "int" | "uint" | "double" | "string" | "bytes" | "list" | "map" | "null_type" | "type" => {
                Ok(Value::Type(name.into()))
            }
            _ => Err(EvalError::new(format!("no such attribute(s): {name}"))),
        }
    }

    fn map(&self, entries: &'a [(Expr, Expr, bool)], scope: Option<&Scope<'_, 'a>>) -> Evaluated<'a> {
        let mut out = BTreeMap::new();
        for (key, value, optional) in entries {
            let key = self.eval(key, scope)?.to_key().ok_or_else(|| EvalError::new("unsupported key type"))?;
            let value = match (self.eval(value, scope)?, optional) {
                (Value::Optional(None), true) => continue,
                (Value::Optional(Some(inner)), true) => (*inner).clone(),
                (value, _) => value,
            };
            if out.insert(key, value).is_some() {
                return Err(EvalError::new("Failed with repeated key"));
            }
        }
        Ok(Value::Map(Rc::new(out)))
    }

    fn call(
        &self,
        function: &'a str,
        target: Option<&'a Expr>,
        arguments: &'a [Expr],
        scope: Option<&Scope<'_, 'a>>,
    ) -> Evaluated<'a> {
        match (function, arguments) {
            ("_&&_", [left, right]) => return self.both(left, right, false, scope),
            ("_||_", [left, right]) => return self.both(left, right, true, scope),
            ("_?_:_", [condition, yes, no]) => {
                let chosen = if truth(self.eval(condition, scope))? { yes } else { no };
                return self.eval(chosen, scope);
            }
            ("or" | "orValue", [other]) if target.is_some() => {
                let Some(target) = target else { return Err(no_overload()) };
                return match self.eval(target, scope)? {
                    Value::Optional(Some(inner)) if function == "orValue" => Ok((*inner).clone()),
                    found @ Value::Optional(Some(_)) => Ok(found),
                    Value::Optional(None) => self.eval(other, scope),
                    _ => Err(no_overload()),
                };
            }
            _ => {}
        }
        let qualified = target.and_then(dotted).map(|prefix| format!("{prefix}.{function}"));
        let is_function = qualified.as_deref().is_some_and(is_qualified);
        let mut values = Vec::with_capacity(arguments.len() + 1);
        if let (Some(target), false) = (target, is_function) {
            values.push(self.eval(target, scope)?);
        }
        for argument in arguments {
            values.push(self.eval(argument, scope)?);
        }
        match qualified.filter(|_| is_function) {
            Some(name) => functions::call(&name, false, &values, self.budget),
            None => match operators::call(function, &values, self.budget) {
                Some(result) => result,
                None => functions::call(function, target.is_some(), &values, self.budget),
            },
        }
    }

    /// `&&` (`decisive` false) and `||` (`decisive` true): either side may decide, whatever is wrong with the other.
    fn both(&self, left: &'a Expr, right: &'a Expr, decisive: bool, scope: Option<&Scope<'_, 'a>>) -> Evaluated<'a> {
        let first = truth(self.eval(left, scope));
        match &first {
            Ok(b) if *b == decisive => return Ok(Value::Bool(decisive)),
            Err(error) if error.exhausted => return Err(error.clone()),
            _ => {}
        }
        match truth(self.eval(right, scope)) {
            Ok(b) if b == decisive => Ok(Value::Bool(decisive)),
            Err(error) if error.exhausted => Err(error),
            second => {
                first?;
                second.map(Value::Bool)
            }
        }
    }

    fn expansion(
        &self,
        name: Macro,
        range: Value<'a>,
        variables: &'a [String],
        arguments: &'a [Expr],
        scope: Option<&Scope<'_, 'a>>,
    ) -> Evaluated<'a> {
        let (Some(first), Some(body)) = (variables.first(), arguments.last()) else { return Err(no_overload()) };
        match name {
            Macro::Bind => return self.eval(body, Some(&Scope { name: first, value: range, parent: scope })),
            Macro::OptMap | Macro::OptFlatMap => {
                let Value::Optional(inner) = range else { return Err(no_overload()) };
                let Some(inner) = inner else { return Ok(Value::Optional(None)) };
                let inner = Scope { name: first, value: (*inner).clone(), parent: scope };
                let result = self.eval(body, Some(&inner))?;
                return Ok(if name == Macro::OptMap { Value::Optional(Some(Rc::new(result))) } else { result });
            }
            _ => {}
        }
        let two = variables.get(1).map(String::as_str);
        let steps: Vec<(Value<'a>, Value<'a>)> = match (range.items(), range.entries()) {
            (Some(items), _) if two.is_some() => (0..).map(Value::Int).zip(items).collect(),
            (Some(items), _) => items.into_iter().map(|item| (item, Value::Null)).collect(),
            (None, Some(entries)) => entries,
            (None, None) => return Err(no_overload()),
        };
        let mut fold = Fold::new(name);
        for (one, other) in steps {
            let outer = Scope { name: first, value: one.clone(), parent: scope };
            let inner = two.map(|name| Scope { name, value: other, parent: Some(&outer) });
            let scope = inner.as_ref().unwrap_or(&outer);
            if fold.step(self, arguments, body, scope, one)? {
                break;
            }
        }
        fold.end()
    }
}

/// A macro under way.
struct Fold<'a> {
    name: Macro,
    error: Option<EvalError>,
    found: usize,
    list: Vec<Value<'a>>,
    map: BTreeMap<super::value::Key, Value<'a>>,
}

impl<'a> Fold<'a> {
    fn new(name: Macro) -> Self {
        Self { name, error: None, found: 0, list: Vec::new(), map: BTreeMap::new() }
    }

    /// Takes one element; whether the result is known.
    fn step(
        &mut self,
        evaluator: &Evaluator<'_, 'a>,
        arguments: &'a [Expr],
        body: &'a Expr,
        scope: &Scope<'_, 'a>,
        element: Value<'a>,
    ) -> Result<bool, EvalError> {
        let chosen = |expr: &'a Expr| truth(evaluator.eval(expr, Some(scope)));
        match self.name {
            Macro::All | Macro::Exists => match chosen(body) {
                Ok(b) if b == (self.name == Macro::Exists) => {
                    self.found = 1;
                    return Ok(true);
                }
                Ok(_) => {}
                Err(error) if error.exhausted => return Err(error),
                Err(error) => self.error = self.error.take().or(Some(error)),
            },
            Macro::ExistsOne => self.found += usize::from(chosen(body)?),
            Macro::Filter => {
                if chosen(body)? {
                    self.list.push(element);
                }
            }
            _ => {
                if arguments.len() == 2 && !chosen(&arguments[0])? {
                    return Ok(false);
                }
                let value = evaluator.eval(body, Some(scope))?;
                match self.name {
                    Macro::TransformMap => {
                        self.map.insert(element.to_key().ok_or_else(no_overload)?, value);
                    }
                    Macro::TransformMapEntry => {
                        for (key, value) in value.entries().ok_or_else(no_overload)? {
                            self.map.insert(key.to_key().ok_or_else(no_overload)?, value);
                        }
                    }
                    _ => self.list.push(value),
                }
            }
        }
        Ok(false)
    }

    fn end(self) -> Evaluated<'a> {
        match self.name {
            Macro::All | Macro::Exists => match (self.found, self.error) {
                (0, Some(error)) => Err(error),
                (found, _) => Ok(Value::Bool((found == 1) == (self.name == Macro::Exists))),
            },
            Macro::ExistsOne => Ok(Value::Bool(self.found == 1)),
            Macro::TransformMap | Macro::TransformMapEntry => Ok(Value::Map(Rc::new(self.map))),
            _ => Ok(Value::list(self.list)),
        }
    }
}

fn select<'a>(operand: Value<'a>, field: &'a str, optional: bool) -> Evaluated<'a> {
    let wrapped = |value: Option<Evaluated<'a>>| match value {
        Some(value) => value.map(|v| Value::Optional(Some(Rc::new(v)))),
        None => Ok(Value::Optional(None)),
    };
    match operand {
        Value::Optional(None) => Ok(Value::Optional(None)),
        Value::Optional(Some(inner)) => wrapped(inner.field(field)),
        operand if optional => wrapped(operand.field(field)),
        operand @ (Value::Json(..) | Value::Map(_) | Value::Object(..) | Value::Lazy(_)) => {
            operand.field(field).unwrap_or_else(|| Err(no_such_key(&super::types::unescape(field))))
        }
        Value::Null => Err(no_such_key(field)),
        _ => Err(no_overload()),
    }
}
