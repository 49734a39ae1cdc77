//! Functions of lists and sets.

use std::cmp::Ordering;
use std::rc::Rc;

use super::EvalError;
use super::eval::Budget;
use super::operators;
use super::value::{Value, no_overload};

type Evaluated<'a> = Result<Value<'a>, EvalError>;

pub(super) fn call<'a>(name: &str, values: &[Value<'a>], budget: &Budget) -> Option<Evaluated<'a>> {
    let items = values.first().and_then(Value::items)?;
    if let ("sets.contains" | "sets.equivalent" | "sets.intersects", [_, other]) = (name, values) {
        let Some(other) = other.items() else { return Some(Err(no_overload())) };
        let cost = (items.len() as u64).saturating_mul(other.len() as u64);
        return Some(budget.spend(cost).map(|()| sets(name, &items, &other)));
    }
    if let Err(error) = budget.spend(items.len() as u64) {
        return Some(Err(error));
    }
    Some(match (name, &values[1..]) {
        ("isSorted", []) => sorted(&items).map(Value::Bool),
        ("sum", []) => sum(&items, budget),
        ("min", []) => extreme("min", items, Ordering::Less),
        ("max", []) => extreme("max", items, Ordering::Greater),
        ("indexOf", [value]) => Ok(place(items.iter().position(|item| item.equals(value)))),
        ("lastIndexOf", [value]) => Ok(place(items.iter().rposition(|item| item.equals(value)))),
        ("first", []) => Ok(Value::Optional(items.into_iter().next().map(Rc::new))),
        ("last", []) => Ok(Value::Optional(items.into_iter().next_back().map(Rc::new))),
        ("optional.unwrap" | "unwrapOpt", []) => unwrapped(items),
        _ => return None,
    })
}

/// What the optionals hold that hold something.
fn unwrapped<'a>(items: Vec<Value<'a>>) -> Evaluated<'a> {
    let held = items.into_iter().filter_map(|item| match item {
        Value::Optional(held) => held.map(|held| Ok((*held).clone())),
        _ => Some(Err(no_overload())),
    });
    held.collect::<Result<_, _>>().map(Value::list)
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
