//! Functions of lists and sets, and of numbers.

use std::cmp::Ordering;
use std::rc::Rc;

use super::EvalError;
use super::eval::Budget;
use super::operators;
use super::value::{Value, no_overload};

/// Longest list that is made from nothing.
const MAX_RANGE: i64 = 1_000_000;

type Evaluated<'a> = Result<Value<'a>, EvalError>;

pub(super) fn call<'a>(name: &str, values: &[Value<'a>], budget: &Budget) -> Option<Evaluated<'a>> {
    if name.starts_with("math.") {
        return Some(math(name, values));
    }
    if name == "lists.range" {
        let [Value::Int(n)] = values else { return Some(Err(no_overload())) };
        let within = (0..=MAX_RANGE).contains(n);
        return Some(if within {
            budget.spend(*n as u64).map(|()| Value::list((0..*n).map(Value::Int).collect()))
        } else {
            Err(EvalError::new(format!("lists.range: {n} is out of range")))
        });
    }
    let items = values.first().and_then(Value::items)?;
    if let ("sets.contains" | "sets.equivalent" | "sets.intersects", [_, other]) = (name, values) {
        let Some(other) = other.items() else { return Some(Err(no_overload())) };
        let cost = (items.len() as u64).saturating_mul(other.len() as u64);
        return Some(budget.spend(cost).map(|()| sets(name, &items, &other)));
    }
    let quadratic = matches!(name, "distinct");
    if let Err(error) = budget.spend(if quadratic { (items.len() as u64).pow(2) } else { items.len() as u64 }) {
        return Some(Err(error));
    }
    Some(match (name, &values[1..]) {
        ("isSorted", []) => sorted(&items).map(Value::Bool),
        ("sum", []) => sum(&items, budget),
        ("min", []) => extreme("min", items, Ordering::Less),
        ("max", []) => extreme("max", items, Ordering::Greater),
        ("indexOf", [value]) => Ok(place(items.iter().position(|item| item.equals(value)))),
        ("lastIndexOf", [value]) => Ok(place(items.iter().rposition(|item| item.equals(value)))),
        ("slice", [Value::Int(from), Value::Int(to)]) => match (usize::try_from(*from), usize::try_from(*to)) {
            (Ok(from), Ok(to)) if from <= to && to <= items.len() => Ok(Value::list(items[from..to].to_vec())),
            _ => Err(EvalError::new(format!("cannot slice({from}, {to}), list is length {}", items.len()))),
        },
        ("sort", []) => sort(items),
        ("distinct", []) => {
            let mut out: Vec<Value<'a>> = Vec::new();
            for item in items {
                if !out.iter().any(|known| known.equals(&item)) {
                    out.push(item);
                }
            }
            Ok(Value::list(out))
        }
        ("reverse", []) => Ok(Value::list(items.into_iter().rev().collect())),
        ("flatten", []) => Ok(Value::list(flatten(items, 1))),
        ("flatten", [Value::Int(depth)]) => Ok(Value::list(flatten(items, *depth))),
        ("first", []) => Ok(Value::Optional(items.into_iter().next().map(Rc::new))),
        ("last", []) => Ok(Value::Optional(items.into_iter().next_back().map(Rc::new))),
        _ => return None,
    })
}

fn place<'a>(found: Option<usize>) -> Value<'a> {
    Value::Int(found.map_or(-1, |n| n as i64))
}

fn sets<'a>(name: &str, a: &[Value<'_>], b: &[Value<'_>]) -> Value<'a> {
    let within = |list: &[Value<'_>], value: &Value<'_>| list.iter().any(|item| item.equals(value));
    Value::Bool(match name {
        "sets.contains" => b.iter().all(|value| within(a, value)),
        "sets.intersects" => b.iter().any(|value| within(a, value)),
        _ => a.iter().all(|value| within(b, value)) && b.iter().all(|value| within(a, value)),
    })
}

fn sorted(items: &[Value<'_>]) -> Result<bool, EvalError> {
    for pair in items.windows(2) {
        if pair[0].compare(&pair[1])? == Some(Ordering::Greater) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn sort<'a>(mut items: Vec<Value<'a>>) -> Evaluated<'a> {
    let mut failed = None;
    items.sort_by(|a, b| match a.compare(b) {
        Ok(order) => order.unwrap_or(Ordering::Equal),
        Err(error) => {
            failed = Some(error);
            Ordering::Equal
        }
    });
    failed.map_or_else(|| Ok(Value::list(items)), Err)
}

fn sum<'a>(items: &[Value<'a>], budget: &Budget) -> Evaluated<'a> {
    let Some(first) = items.first() else { return Ok(Value::Int(0)) };
    items[1..].iter().try_fold(first.clone(), |sum, item| {
        operators::call("_+_", &[sum, item.clone()], budget).unwrap_or_else(|| Err(no_overload()))
    })
}

fn extreme<'a>(name: &str, items: Vec<Value<'a>>, wanted: Ordering) -> Evaluated<'a> {
    let mut items = items.into_iter();
    let mut best = items.next().ok_or_else(|| EvalError::new(format!("{name} called on empty list")))?;
    for item in items {
        if item.compare(&best)? == Some(wanted) {
            best = item;
        }
    }
    Ok(best)
}

fn flatten<'a>(items: Vec<Value<'a>>, depth: i64) -> Vec<Value<'a>> {
    let mut out = Vec::new();
    for item in items {
        match item.items() {
            Some(inner) if depth > 0 => out.extend(flatten(inner, depth - 1)),
            _ => out.push(item),
        }
    }
    out
}

fn math<'a>(name: &str, values: &[Value<'a>]) -> Evaluated<'a> {
    let list = match values {
        [one] if one.items().is_some() => one.items().unwrap_or_default(),
        many => many.to_vec(),
    };
    match (name, values) {
        ("math.greatest", _) => extreme(name, list, Ordering::Greater),
        ("math.least", _) => extreme(name, list, Ordering::Less),
        ("math.abs", [Value::Int(n)]) => {
            n.checked_abs().map(Value::Int).ok_or_else(|| EvalError::new("integer overflow"))
        }
        ("math.abs", [Value::Uint(n)]) => Ok(Value::Uint(*n)),
        ("math.sign", [Value::Int(n)]) => Ok(Value::Int(n.signum())),
        (_, [Value::Double(n)]) => Ok(Value::Double(match name {
            "math.abs" => n.abs(),
            "math.ceil" => n.ceil(),
            "math.floor" => n.floor(),
            "math.round" => n.round(),
            "math.trunc" => n.trunc(),
            "math.sign" if *n == 0.0 => 0.0,
            "math.sign" => n.signum(),
            _ => return Err(no_overload()),
        })),
        _ => Err(no_overload()),
    }
}
