//! Functions of amounts.

use std::cmp::Ordering;

use super::EvalError;
use super::eval::Budget;
use super::value::Value;
use crate::quantity::{Format, Quantity};

type Evaluated<'a> = Result<Value<'a>, EvalError>;

pub(super) fn call<'a>(name: &str, values: &[Value<'a>], _: &Budget) -> Option<Evaluated<'a>> {
    Some(match (name, values) {
        ("isQuantity", [Value::String(text)]) => Ok(Quantity::parse(text).is_ok().into()),
        ("quantity", [Value::String(text)]) => {
            Quantity::parse(text).map(Value::Quantity).map_err(|why| EvalError::new(why.to_string()))
        }
        (_, [Value::Quantity(amount), rest @ ..]) => return of(name, *amount, rest),
        _ => return None,
    })
}

fn of<'a>(name: &str, amount: Quantity, rest: &[Value<'_>]) -> Option<Evaluated<'a>> {
    let whole = Quantity::from_units(amount.units(), Format::DecimalSi) == amount;
    Some(Ok(match (name, rest) {
        ("isInteger", []) => whole.into(),
        ("asInteger", []) if whole => Value::Int(amount.units()),
        ("asInteger", []) => return Some(Err(EvalError::new("cannot convert value to integer"))),
        ("asApproximateFloat", []) => Value::Double(amount.millis() as f64 / 1000.0),
        ("sign", []) => Value::Int(if amount.is_zero() { 0 } else { 1 - 2 * i64::from(amount.is_negative()) }),
        ("add", [Value::Quantity(other)]) => Value::Quantity(amount + *other),
        ("sub", [Value::Quantity(other)]) => Value::Quantity(amount - *other),
        ("add", [Value::Int(n)]) => Value::Quantity(amount + Quantity::from_units(*n, Format::DecimalSi)),
        ("sub", [Value::Int(n)]) => Value::Quantity(amount - Quantity::from_units(*n, Format::DecimalSi)),
        ("isLessThan", [Value::Quantity(other)]) => (amount < *other).into(),
        ("isGreaterThan", [Value::Quantity(other)]) => (amount > *other).into(),
        ("compareTo", [Value::Quantity(other)]) => Value::Int(match amount.cmp(other) {
            Ordering::Less => -1,
            Ordering::Equal => 0,
            Ordering::Greater => 1,
        }),
        _ => return None,
    }))
}
