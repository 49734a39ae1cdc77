//! The checker: the type of every expression, or what is wrong with it, before anything runs.

use std::collections::{BTreeMap, HashMap};

use super::ast::{Expr, Kind, Macro};
use super::parser::dotted;
use super::signatures::{Signature, is_qualified, signatures};
use super::types::{Type, unescape};
use super::{CompileError, Env, shown};

/// Problems told at once.
const MAX_PROBLEMS: usize = 20;

struct Checker<'e> {
    source: &'e str,
    env: &'e Env,
    scopes: Vec<(String, Type)>,
    problems: Vec<(usize, String)>,
    kinds: Option<Kinds>,
    /// Problems of literals: told if nothing else is wrong.
    literals: Vec<(usize, String)>,
    /// Within the arguments of a function that takes lists of anything.
    takes_any: usize,
}

/// The types of an expression and of its parts.
#[derive(Debug, Default)]
pub struct Kinds(HashMap<usize, Type>);

impl Kinds {
    /// Where a part is in memory tells it from all others of its tree.
    fn place(expr: &Expr) -> usize {
        std::ptr::from_ref(expr) as usize
    }

    /// The type of a part.
    pub fn of(&self, expr: &Expr) -> Type {
        self.0.get(&Self::place(expr)).cloned().unwrap_or(Type::Dyn)
    }

    /// Whether what looks like a target is part of a function's name.
    pub fn is_namespace(&self, expr: &Expr) -> bool {
        !self.0.contains_key(&Self::place(expr))
    }
}

/// Fields of a `JSONPatch`, and whether each is a text.
const PATCH_FIELDS: [(&str, bool); 4] = [("op", true), ("path", true), ("from", true), ("value", false)];

/// The types of a checked expression's parts.
pub(super) fn kinds(source: &str, env: &Env, expr: &Expr) -> Kinds {
    let kinds = Some(Kinds::default());
    let mut checker = Checker::new(source, env, kinds);
    checker.kind(expr);
    checker.kinds.unwrap_or_default()
}

/// Finds the type of an expression.
pub(super) fn check(source: &str, env: &Env, expr: &Expr) -> Result<Type, CompileError> {
    let mut checker = Checker::new(source, env, None);
    let kind = checker.kind(expr);
    if checker.problems.is_empty() {
        checker.problems = std::mem::take(&mut checker.literals);
    }
    if checker.problems.is_empty() {
        return Ok(kind);
    }
    checker.problems.sort_by_key(|(at, _)| *at);
    checker.problems.truncate(MAX_PROBLEMS);
    let told: Vec<String> = checker.problems.iter().map(|(at, message)| shown(checker.source, *at, message)).collect();
    Err(CompileError(told.join("\n")))
}

impl<'e> Checker<'e> {
    fn new(source: &'e str, env: &'e Env, kinds: Option<Kinds>) -> Self {
        Self { source, env, scopes: Vec::new(), problems: Vec::new(), kinds, literals: Vec::new(), takes_any: 0 }
    }
}

impl Checker<'_> {
    /// The items of a literal are of one type: that of the first.
    fn alike(&mut self, items: &[(usize, Type)]) {
        let Some((_, first)) = items.first().filter(|_| self.takes_any == 0) else { return };
        let alike = |a: &Type, b: &Type| fits(a, b, &mut Bound::new()) || fits(b, a, &mut Bound::new());
        if let Some((at, other)) = items.iter().find(|(_, kind)| !alike(first, kind)) {
            self.literals.push((*at, format!("expected type '{first}' but found '{other}'")));
        }
    }

    /// Texts that must be of some form are looked at where they are written out.
    fn literal(&mut self, function: &str, arguments: &[Expr]) {
        let Some(Expr { at, kind: Kind::String(text) }) = arguments.last() else { return };
        let good = match function {
            "duration" => super::times::duration(text).is_some(),
            "timestamp" => super::times::timestamp(text).is_some(),
            "matches" => crate::go_regexp::compile(text).is_ok(),
            _ => true,
        };
        if !good {
            self.literals.push((*at, format!("invalid {function} argument")));
        }
    }

    fn problem(&mut self, at: usize, message: String) -> Type {
        self.problems.push((at, message));
        Type::Dyn
    }

    fn variable(&self, name: &str) -> Option<Type> {
        let local = self.scopes.iter().rev().find(|(n, _)| n == name).map(|(_, kind)| kind.clone());
        local.or_else(|| self.env.variables.get(name).cloned())
    }

    fn kind(&mut self, expr: &Expr) -> Type {
        let kind = self.kind_of(expr);
        if let Some(kinds) = &mut self.kinds {
            kinds.0.insert(Kinds::place(expr), kind.clone());
        }
        kind
    }

    fn kind_of(&mut self, expr: &Expr) -> Type {
        match &expr.kind {
            Kind::Null => Type::Null,
            Kind::Bool(_) => Type::Bool,
            Kind::Int(_) => Type::Int,
            Kind::Uint(_) => Type::Uint,
            Kind::Double(_) => Type::Double,
            Kind::String(_) => Type::String,
            Kind::Bytes(_) => Type::Bytes,
            Kind::Ident(name) => self.ident(expr.at, name),
            Kind::Select { operand, field, optional } => {
                if let Kind::Ident(name) = &operand.kind
                    && let Some(kind) = self.env.variables.get(&format!("{name}.{field}"))
                {
                    return kind.clone();
                }
                let operand = self.kind(operand);
                let found = self.field(expr.at, &operand, field);
                match (optional, &found) {
                    (true, Type::Optional(_)) | (false, _) => found,
                    (true, _) => Type::Optional(found.into()),
                }
            }
            Kind::Has { operand, field } => {
                let operand = self.kind(operand);
                self.field(expr.at, &operand, field);
                Type::Bool
            }
            Kind::Call { function, target, arguments } => self.call(expr.at, function, target.as_deref(), arguments),
            Kind::List(items) => {
                let kinds: Vec<(usize, Type)> =
                    items.iter().map(|(item, optional)| (item.at, self.item(item, *optional))).collect();
                self.alike(&kinds);
                Type::list(join(kinds.into_iter().map(|(_, kind)| kind).collect()))
            }
            Kind::Map(entries) => {
                let mut keys = Vec::new();
                let mut values = Vec::new();
                for (key, value, optional) in entries {
                    keys.push((key.at, self.kind(key)));
                    values.push((value.at, self.item(value, *optional)));
                }
                self.alike(&keys);
                self.alike(&values);
                let kinds = |list: Vec<(usize, Type)>| list.into_iter().map(|(_, kind)| kind).collect();
                Type::Map(join(kinds(keys)).into(), join(kinds(values)).into())
            }
            Kind::Struct { name, fields, colons } => self.structure(expr.at, name, fields, colons),
            Kind::Macro { name, range, variables, arguments } => {
                self.expansion(expr.at, *name, (range, variables, arguments))
            }
        }
    }

    fn item(&mut self, item: &Expr, optional: bool) -> Type {
        match (self.kind(item), optional) {
            (Type::Optional(inner), true) => (*inner).clone(),
            (kind, _) => kind,
        }
    }

    fn ident(&mut self, at: usize, name: &str) -> Type {
        if let Some(kind) = self.variable(name) {
            return kind;
        }
        let is_type = matches!(
            name,
            "bool" | "int" | "uint" | "double" | "string" | "bytes" | "list" | "map" | "null_type" | "type"
        );
        if is_type {
            return Type::Type;
        }
        self.problem(at, format!("undeclared reference to '{name}' (in container '')"))
    }

    fn field(&mut self, at: usize, operand: &Type, field: &str) -> Type {
        match operand {
            Type::Dyn | Type::Param(_) => Type::Dyn,
            Type::Map(_, value) => (**value).clone(),
            Type::Optional(inner) => Type::Optional(self.field(at, inner, field).into()),
            Type::Object(object) => match object.fields.get(field) {
                Some(kind) => kind.clone(),
                None => self.problem(at, format!("undefined field '{}'", unescape(field))),
            },
            other => {
                let what = format!("type '{other}' does not support field selection");
                self.problem(at, what)
            }
        }
    }

    fn structure(&mut self, at: usize, name: &str, fields: &[(String, Expr, bool)], colons: &[usize]) -> Type {
        for ((field, value, _), colon) in fields.iter().zip(colons) {
            let kind = self.kind(value);
            if !self.env.patches || name != "JSONPatch" {
                continue;
            }
            // A patch's own fields are known; an object's are not.
            match PATCH_FIELDS.iter().find(|(known, _)| known == field) {
                None => drop(self.problem(*colon, format!("undefined field '{field}'"))),
                Some((_, true)) if !matches!(kind, Type::String | Type::Dyn | Type::Param(_)) => {
                    let what = format!("expected type of field '{field}' is 'string' but provided type is '{kind}'");
                    self.problem(*colon, what);
                }
                Some(_) => {}
            }
        }
        let known = self.env.patches && (name == "JSONPatch" || name == "Object" || name.starts_with("Object."));
        match name {
            _ if !known => self.problem(at, format!("undeclared reference to '{name}' (in container '')")),
            "JSONPatch" => Type::Opaque("JSONPatch"),
            _ => Type::object(name, []),
        }
    }

    fn call(&mut self, at: usize, function: &str, target: Option<&Expr>, arguments: &[Expr]) -> Type {
        let qualified = target.and_then(dotted).map(|prefix| format!("{prefix}.{function}"));
        let (name, target) = match &qualified {
            Some(name) if is_qualified(name) => (name.as_str(), None),
            _ => (function, target),
        };
        let mut kinds: Vec<Type> = target.into_iter().map(|t| self.kind(t)).collect();
        self.takes_any += usize::from(name == "format");
        kinds.extend(arguments.iter().map(|a| self.kind(a)));
        self.takes_any -= usize::from(name == "format");
        self.literal(name, arguments);
        let member = target.is_some();
        let known = signatures(name);
        if !known.iter().any(|s| s.member == member) {
            return self.problem(at, format!("undeclared reference to '{name}' (in container '')"));
        }
        let results: Vec<Type> =
            known.iter().filter(|s| s.member == member).filter_map(|s| matched(s, &kinds)).collect();
        if let Some(first) = results.first() {
            return if results.iter().all(|r| r == first) { first.clone() } else { Type::Dyn };
        }
        let shown = |list: &[Type]| list.iter().map(Type::to_string).collect::<Vec<_>>().join(", ");
        let applied =
            if member { format!("{}.({})", kinds[0], shown(&kinds[1..])) } else { format!("({})", shown(&kinds)) };
        self.problem(at, format!("found no matching overload for '{name}' applied to '{applied}'"))
    }

    /// What the variables of a macro hold.
    fn ranged(&mut self, range: &Expr, two: bool) -> [Type; 2] {
        match self.kind(range) {
            Type::List(item) if two => [Type::Int, (*item).clone()],
            Type::List(item) => [(*item).clone(), Type::Dyn],
            Type::Map(key, value) => [(*key).clone(), (*value).clone()],
            Type::Dyn | Type::Param(_) => [Type::Dyn, Type::Dyn],
            other => {
                let what = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.problem(range.at, what);
                [Type::Dyn, Type::Dyn]
            }
        }
    }

    fn expansion(
        &mut self,
        at: usize,
        name: Macro,
        (range, variables, arguments): (&Expr, &[String], &[Expr]),
    ) -> Type {
        let bound = match name {
            Macro::Bind => [self.kind(range), Type::Dyn],
            Macro::OptMap | Macro::OptFlatMap => match self.kind(range) {
                Type::Optional(inner) => [(*inner).clone(), Type::Dyn],
                _ => [Type::Dyn, Type::Dyn],
            },
            _ => self.ranged(range, variables.len() == 2),
        };
        let first = bound[0].clone();
        let depth = self.scopes.len();
        self.scopes.extend(variables.iter().cloned().zip(bound));
        let kinds: Vec<Type> = arguments.iter().map(|a| self.kind(a)).collect();
        self.scopes.truncate(depth);
        let last = kinds.last().cloned().unwrap_or(Type::Dyn);
        let predicate = match name {
            Macro::All | Macro::Exists | Macro::ExistsOne | Macro::Filter => kinds.first(),
            Macro::Map | Macro::TransformList | Macro::TransformMap | Macro::TransformMapEntry if kinds.len() == 2 => {
                kinds.first()
            }
            _ => None,
        };
        let result = match name {
            Macro::All | Macro::Exists | Macro::ExistsOne => Type::Bool,
            Macro::Filter => Type::list(first),
            Macro::Map | Macro::TransformList => Type::list(last),
            Macro::TransformMap => Type::Map(first.into(), last.into()),
            Macro::TransformMapEntry => Type::Dyn,
            Macro::OptMap => Type::Optional(last.into()),
            Macro::OptFlatMap | Macro::Bind => last,
        };
        if let Some(kind) = predicate.filter(|kind| !matches!(kind, Type::Bool | Type::Dyn | Type::Param(_))) {
            let applied = match name {
                Macro::All => format!("_&&_' applied to '(bool, {kind})"),
                Macro::Exists => format!("_||_' applied to '(bool, {kind})"),
                Macro::ExistsOne => format!("_?_:_' applied to '({kind}, int, int)"),
                _ => format!("_?_:_' applied to '({kind}, {result}, {result})"),
            };
            // What a macro becomes is where it is called.
            self.problem(at, format!("found no matching overload for '{applied}'"));
        }
        result
    }
}

/// The type that all of these are, or `dyn`.
fn join(kinds: Vec<Type>) -> Type {
    let mut kinds = kinds.into_iter();
    let Some(first) = kinds.next() else { return Type::Dyn };
    if kinds.all(|kind| kind == first) { first } else { Type::Dyn }
}

type Bound = BTreeMap<u32, Type>;

fn matched(signature: &Signature, kinds: &[Type]) -> Option<Type> {
    if signature.arguments.len() != kinds.len() {
        return None;
    }
    let mut bound = Bound::new();
    let fits = signature.arguments.iter().zip(kinds).all(|(want, have)| fits(want, have, &mut bound));
    fits.then(|| substitute(&signature.result, &bound))
}

fn substitute(kind: &Type, bound: &Bound) -> Type {
    match kind {
        Type::Param(n) => bound.get(n).cloned().unwrap_or(Type::Dyn),
        Type::List(item) => Type::list(substitute(item, bound)),
        Type::Optional(item) => Type::Optional(substitute(item, bound).into()),
        Type::Map(key, value) => Type::Map(substitute(key, bound).into(), substitute(value, bound).into()),
        other => other.clone(),
    }
}

fn fits(want: &Type, have: &Type, bound: &mut Bound) -> bool {
    match (want, have) {
        (Type::Param(n), have) => match bound.get(n).cloned() {
            None => {
                bound.insert(*n, have.clone());
                true
            }
            Some(known) => {
                let same = fits(&known, have, &mut Bound::new()) || fits(have, &known, &mut Bound::new());
                // The more precise type is kept unless one is dynamic.
                if same && (*have == Type::Dyn || known == Type::Null) {
                    bound.insert(*n, have.clone());
                }
                same
            }
        },
        (Type::Dyn, _) | (_, Type::Dyn | Type::Param(_)) => true,
        (Type::Null, Type::Null) => true,
        (Type::Object(_) | Type::Opaque(_) | Type::Timestamp | Type::Duration | Type::Optional(_), Type::Null) => true,
        (Type::List(want), Type::List(have)) | (Type::Optional(want), Type::Optional(have)) => fits(want, have, bound),
        (Type::Map(wk, wv), Type::Map(hk, hv)) => fits(wk, hk, bound) && fits(wv, hv, bound),
        // Objects stand in for maps of their fields where any map is taken.
        (Type::Object(a), Type::Object(b)) => a.name == b.name,
        (want, have) => want == have,
    }
}
