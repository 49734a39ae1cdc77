//! The Common Expression Language as Kubernetes uses it: parser, type checker and an evaluator with a budget.
//!
//! An expression is compiled once, against the types of its variables, and evaluated against JSON without copying it.
//! Every step of an evaluation costs something of a [`Budget`], so that no expression runs for long, whatever it says.

pub mod admission;
mod ast;
mod check;
pub mod devices;
mod eval;
mod format;
mod functions;
mod lexer;
mod macros;
mod network;
mod operators;
mod parser;
mod quantities;
mod semver;
mod sequences;
mod signatures;
mod strings;
#[cfg(test)]
mod tests;
mod times;
mod types;
mod value;

use std::collections::BTreeMap;

pub use ast::{Expr, Kind, Macro};
pub use check::Kinds;
pub use eval::{Bindings, Budget};
pub use types::{ObjectType, Type, escape, unescape};
pub use value::{Key, LazyMap, Opaque, Outcome, Value};

/// Longest expression that is compiled, bytes.
pub const MAX_SOURCE_BYTES: usize = 100 * 1024;

/// Why an expression cannot be compiled: the problems with their places, as upstream's library words them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CompileError(pub String);

/// Why an evaluation gave no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct EvalError {
    /// What went wrong.
    pub message: String,
    /// The budget is used up: no operator makes up for this.
    pub exhausted: bool,
}

impl EvalError {
    /// An error of the expression.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), exhausted: false }
    }
}

/// What an expression may refer to.
#[derive(Clone, Debug, Default)]
pub struct Env {
    /// Variables with their types.
    pub variables: BTreeMap<String, Type>,
    /// Whether `Object{...}` and `JSONPatch{...}` may be made.
    pub patches: bool,
    /// Whether `cel.bind` gives a value a name.
    pub binds: bool,
}

impl Env {
    /// With these variables.
    pub fn of<const N: usize>(variables: [(&str, Type); N]) -> Self {
        let variables = variables.into_iter().map(|(name, kind)| (name.to_owned(), kind)).collect();
        Self { variables, ..Self::default() }
    }
}

/// A compiled expression.
#[derive(Debug)]
pub struct Program {
    expr: Expr,
    kind: Type,
}

impl Program {
    /// Parses and checks an expression.
    pub fn compile(source: &str, env: &Env) -> Result<Self, CompileError> {
        if source.len() > MAX_SOURCE_BYTES {
            return Err(CompileError(format!("expression is longer than {MAX_SOURCE_BYTES} bytes")));
        }
        let expr = parser::parse(source, env.binds)?;
        let kind = check::check(source, env, &expr)?;
        Ok(Self { expr, kind })
    }

    /// The type of its value.
    pub fn kind(&self) -> &Type {
        &self.kind
    }

    /// The types of its parts: for the source and the variables with which it was compiled.
    pub fn kinds(&self, source: &str, env: &Env) -> Kinds {
        check::kinds(source, env, &self.expr)
    }

    /// The expression's tree.
    pub fn expr(&self) -> &Expr {
        &self.expr
    }

    /// Its value for these variables.
    pub fn eval<'a>(&'a self, bindings: &Bindings<'a>, budget: &Budget) -> Result<Value<'a>, EvalError> {
        eval::evaluate(&self.expr, bindings, budget)
    }
}

/// A problem at a place of the source, as upstream's library shows it.
fn shown(source: &str, offset: usize, message: &str) -> String {
    let offset = offset.min(source.len());
    let before = &source[..source.char_indices().map(|(i, _)| i).take_while(|i| *i <= offset).last().unwrap_or(0)];
    let before = if offset == source.len() { source } else { before };
    let line_start = before.rfind('\n').map_or(0, |i| i + 1);
    let line = before.matches('\n').count() + 1;
    let column = before[line_start..].chars().count();
    let text = source[line_start..].lines().next().unwrap_or_default();
    format!("ERROR: <input>:{line}:{}: {message}\n | {text}\n | {}^", column + 1, ".".repeat(column))
}
