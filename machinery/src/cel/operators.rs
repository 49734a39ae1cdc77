//! The operators.

use std::cmp::Ordering;
use std::rc::Rc;

use super::EvalError;
use super::eval::Budget;
use super::value::{Value, no_overload};

/// Bytes of text that cost one step.
const BYTES_A_STEP: usize = 10;
/// Longest text or list that an expression may make.
const MAX_SIZE: usize = 4 << 20;

type Evaluated<'a> = Result<Value<'a>, EvalError>;

/// Applies an operator; `None` if the function is none.
pub(super) fn call<'a>(function: &str, values: &[Value<'a>], budget: &Budget) -> Option<Evaluated<'a>> {
    Some(match (function, values) {
        ("!_", [Value::Bool(b)]) => Ok(Value::Bool(!b)),
        ("-_", [value]) => negative(value),
        ("_==_" | "_!=_", [a, b]) => {
            let cost = size_of(a).min(size_of(b));
            budget.spend(cost).map(|()| Value::Bool(a.equals(b) == (function == "_==_")))
        }
        ("_<_" | "_<=_" | "_>_" | "_>=_", [a, b]) => budget.spend(size_of(a).min(size_of(b))).and_then(|()| {
            let order = a.compare(b)?;
            Ok(Value::Bool(match function {
                "_<_" => order == Some(Ordering::Less),
                "_>_" => order == Some(Ordering::Greater),
                "_<=_" => matches!(order, Some(Ordering::Less | Ordering::Equal)),
                _ => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
            }))
        }),
        ("_+_", [a, b]) => budget.spend(size_of(a) + size_of(b)).and_then(|()| add(a, b)),
        ("_-_" | "_*_" | "_/_" | "_%_", [a, b]) => arithmetic(function, a, b),
        ("@in", [element, within]) => contains(element, within, budget),
        ("_[_]", [of, index]) => match of {
            Value::Optional(None) => Ok(Value::Optional(None)),
            Value::Optional(Some(inner)) => Ok(Value::Optional(at(inner, index).ok().map(Rc::new))),
            of => at(of, index),
        },
        ("_[?_]", [of, index]) => match of {
            Value::Optional(None) => Ok(Value::Optional(None)),
            Value::Optional(Some(inner)) => Ok(Value::Optional(at(inner, index).ok().map(Rc::new))),
            of => Ok(Value::Optional(at(of, index).ok().map(Rc::new))),
        },
        _ if function.starts_with('_') || function.starts_with(['!', '-', '@']) => Err(no_overload()),
        _ => return None,
    })
}

/// What going through a value costs.
pub(super) fn size_of(value: &Value<'_>) -> u64 {
    let size = match value {
        Value::String(text) => text.len().div_ceil(BYTES_A_STEP),
        Value::Bytes(bytes) => bytes.len().div_ceil(BYTES_A_STEP),
        Value::List(_) | Value::Map(_) | Value::Json(..) => value.size().unwrap_or(1),
        _ => 1,
    };
    size as u64
}

fn overflow() -> EvalError {
    EvalError::new("integer overflow")
}

fn negative<'a>(value: &Value<'_>) -> Evaluated<'a> {
    match value {
        Value::Int(n) => n.checked_neg().map(Value::Int).ok_or_else(overflow),
        Value::Double(n) => Ok(Value::Double(-n)),
        Value::Duration(n) => n.checked_neg().map(Value::Duration).ok_or_else(overflow),
        _ => Err(no_overload()),
    }
}

fn add<'a>(a: &Value<'a>, b: &Value<'a>) -> Evaluated<'a> {
    Ok(match (a, b) {
        (Value::Int(a), Value::Int(b)) => Value::Int(a.checked_add(*b).ok_or_else(overflow)?),
        (Value::Uint(a), Value::Uint(b)) => Value::Uint(a.checked_add(*b).ok_or_else(overflow)?),
        (Value::Double(a), Value::Double(b)) => Value::Double(a + b),
        (Value::String(a), Value::String(b)) => {
            if a.len() + b.len() > MAX_SIZE {
                return Err(EvalError::new("the text is too long"));
            }
            Value::owned(format!("{a}{b}"))
        }
        (Value::Bytes(a), Value::Bytes(b)) => Value::Bytes([a.as_ref(), b.as_ref()].concat().into()),
        (Value::Timestamp(t), Value::Duration(d)) | (Value::Duration(d), Value::Timestamp(t)) => {
            Value::Timestamp(t.checked_add(jiff::SignedDuration::from_nanos(*d)).map_err(|_| overflow())?)
        }
        (Value::Duration(a), Value::Duration(b)) => Value::Duration(a.checked_add(*b).ok_or_else(overflow)?),
        (a, b) => {
            let (Some(mut a), Some(b)) = (a.items(), b.items()) else { return Err(no_overload()) };
            if a.len() + b.len() > MAX_SIZE {
                return Err(EvalError::new("the list is too long"));
            }
            a.extend(b);
            Value::list(a)
        }
    })
}

fn arithmetic<'a>(function: &str, a: &Value<'_>, b: &Value<'_>) -> Evaluated<'a> {
    let zero = || EvalError::new(if function == "_%_" { "modulus by zero" } else { "division by zero" });
    Ok(match (function, a, b) {
        ("_/_" | "_%_", _, Value::Int(0) | Value::Uint(0)) if !matches!(a, Value::Double(_)) => return Err(zero()),
        ("_-_", Value::Int(a), Value::Int(b)) => Value::Int(a.checked_sub(*b).ok_or_else(overflow)?),
        ("_*_", Value::Int(a), Value::Int(b)) => Value::Int(a.checked_mul(*b).ok_or_else(overflow)?),
        ("_/_", Value::Int(a), Value::Int(b)) => Value::Int(a.checked_div(*b).ok_or_else(overflow)?),
        ("_%_", Value::Int(a), Value::Int(b)) => Value::Int(a.checked_rem(*b).ok_or_else(overflow)?),
        ("_-_", Value::Uint(a), Value::Uint(b)) => Value::Uint(a.checked_sub(*b).ok_or_else(overflow)?),
        ("_*_", Value::Uint(a), Value::Uint(b)) => Value::Uint(a.checked_mul(*b).ok_or_else(overflow)?),
        ("_/_", Value::Uint(a), Value::Uint(b)) => Value::Uint(a / b),
        ("_%_", Value::Uint(a), Value::Uint(b)) => Value::Uint(a % b),
        ("_-_", Value::Double(a), Value::Double(b)) => Value::Double(a - b),
        ("_*_", Value::Double(a), Value::Double(b)) => Value::Double(a * b),
        ("_/_", Value::Double(a), Value::Double(b)) => Value::Double(a / b),
        ("_-_", Value::Timestamp(a), Value::Duration(b)) => {
            Value::Timestamp(a.checked_sub(jiff::SignedDuration::from_nanos(*b)).map_err(|_| overflow())?)
        }
        ("_-_", Value::Timestamp(a), Value::Timestamp(b)) => {
            Value::Duration(i64::try_from(a.as_nanosecond() - b.as_nanosecond()).map_err(|_| overflow())?)
        }
        ("_-_", Value::Duration(a), Value::Duration(b)) => Value::Duration(a.checked_sub(*b).ok_or_else(overflow)?),
        _ => return Err(no_overload()),
    })
}

fn contains<'a>(element: &Value<'_>, within: &Value<'a>, budget: &Budget) -> Evaluated<'a> {
    if let Some(items) = within.items() {
        budget.spend(items.len() as u64)?;
        return Ok(Value::Bool(items.iter().any(|item| item.equals(element))));
    }
    match within {
        Value::Map(_) | Value::Json(..) => {
            Ok(Value::Bool(element.to_key().is_some_and(|key| within.keyed(&key).is_some())))
        }
        _ => Err(no_overload()),
    }
}

fn at<'a>(of: &Value<'a>, index: &Value<'_>) -> Evaluated<'a> {
    let key = index.to_key().ok_or_else(no_overload)?;
    match (of, &key) {
        (Value::List(items), super::value::Key::Int(n)) => usize::try_from(*n)
            .ok()
            .and_then(|n| items.get(n).cloned())
            .ok_or_else(|| EvalError::new(format!("index out of bounds: {n}"))),
        (Value::Json(serde_json::Value::Array(list), kind), super::value::Key::Int(n)) => {
            let item = match kind {
                Some(super::types::Type::List(item)) => Some(&**item),
                _ => None,
            };
            let found = usize::try_from(*n).ok().and_then(|n| list.get(n));
            found.map(|json| Value::of(json, item)).ok_or_else(|| EvalError::new(format!("index out of bounds: {n}")))
        }
        (Value::Map(_) | Value::Json(serde_json::Value::Object(_), _), key) => of.keyed(key).ok_or_else(|| {
            EvalError::new(match key {
                super::value::Key::String(text) => format!("no such key: {text}"),
                other => format!("no such key: {:?}", other.to_value()),
            })
        }),
        (Value::Lazy(map), super::value::Key::String(key)) => {
            map.get(key).unwrap_or_else(|| Err(EvalError::new(format!("no such key: {key}"))))
        }
        _ => Err(no_overload()),
    }
}
