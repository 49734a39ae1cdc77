//! Calls that are macros.

use super::ast::{Expr, Kind, Macro};
use super::{CompileError, shown};

/// Turns a call of a macro into its node; other calls stay as they are. `binds`: whether `cel.bind` is one.
pub(super) fn expand(source: &str, binds: bool, call: Expr) -> Result<Expr, CompileError> {
    let Kind::Call { function, target, mut arguments } = call.kind else { return Ok(call) };
    let at = call.at;
    let back = |target, arguments| Expr { at, kind: Kind::Call { function: function.clone(), target, arguments } };
    let Some(target) = target else {
        if function == "has" && arguments.len() == 1 {
            let argument = arguments.remove(0);
            return match argument.kind {
                Kind::Select { operand, field, optional: false } => {
                    Ok(Expr { at: argument.at, kind: Kind::Has { operand, field } })
                }
                _ => Err(CompileError(shown(source, argument.at, "invalid argument to has() macro"))),
            };
        }
        return Ok(back(None, arguments));
    };
    if binds && function == "bind" && arguments.len() == 3 && matches!(&target.kind, Kind::Ident(name) if name == "cel")
    {
        let variables = vec![variable(source, &arguments[0])?];
        let value = arguments.remove(1);
        let rest = arguments.split_off(1);
        return Ok(node(at, Macro::Bind, value, variables, rest));
    }
    let (name, count) = match (function.as_str(), arguments.len()) {
        ("all", 2) => (Macro::All, 1),
        ("all", 3) => (Macro::All, 2),
        ("exists", 2) => (Macro::Exists, 1),
        ("exists", 3) => (Macro::Exists, 2),
        ("exists_one" | "existsOne", 2) => (Macro::ExistsOne, 1),
        ("existsOne" | "exists_one", 3) => (Macro::ExistsOne, 2),
        ("map", 2 | 3) => (Macro::Map, 1),
        ("filter", 2) => (Macro::Filter, 1),
        ("transformList", 3 | 4) => (Macro::TransformList, 2),
        ("transformMap", 3 | 4) => (Macro::TransformMap, 2),
        ("transformMapEntry", 3 | 4) => (Macro::TransformMapEntry, 2),
        ("optMap", 2) => (Macro::OptMap, 1),
        ("optFlatMap", 2) => (Macro::OptFlatMap, 1),
        _ => return Ok(back(Some(target), arguments)),
    };
    let rest = arguments.split_off(count);
    let variables = arguments.iter().map(|a| variable(source, a)).collect::<Result<_, _>>()?;
    Ok(node(at, name, *target, variables, rest))
}

fn node(at: usize, name: Macro, range: Expr, variables: Vec<String>, arguments: Vec<Expr>) -> Expr {
    Expr { at, kind: Kind::Macro { name, range: Box::new(range), variables, arguments } }
}

fn variable(source: &str, argument: &Expr) -> Result<String, CompileError> {
    match &argument.kind {
        Kind::Ident(name) => Ok(name.clone()),
        _ => Err(CompileError(shown(source, argument.at, "argument must be a simple name"))),
    }
}
