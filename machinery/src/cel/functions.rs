//! Calls of functions and methods, by the group that they belong to.

use std::rc::Rc;

use super::eval::Budget;
use super::operators::size_of;
use super::value::{Outcome, Value, no_overload};
use super::{EvalError, format, network, quantities, semver, sequences, strings, times};

type Evaluated<'a> = Result<Value<'a>, EvalError>;

/// Calls a function; of a method the first value is the target.
pub(super) fn call<'a>(name: &str, member: bool, values: &[Value<'a>], budget: &Budget) -> Evaluated<'a> {
    budget.spend(values.first().map_or(1, size_of))?;
    if let (true, Some(Value::Opaque(target))) = (member, values.first()) {
        // Whatever it looks up is worth a good many steps.
        budget.spend(100)?;
        let arguments = values[1..].iter().map(|value| match value {
            Value::String(text) => Ok(text.as_ref()),
            _ => Err(no_overload()),
        });
        let arguments = arguments.collect::<Result<Vec<&str>, _>>()?;
        return target.call(name, &arguments).map(|outcome| match outcome {
            Outcome::Bool(b) => Value::Bool(b),
            Outcome::Text(text) => Value::owned(text),
            Outcome::Opaque(value) => Value::Opaque(value),
        });
    }
    if let Some(result) = conversions(name, values) {
        return result;
    }
    let groups = [
        format::call,
        strings::call,
        sequences::call,
        optionals,
        times::call,
        network::call,
        quantities::call,
        semver::call,
    ];
    groups.iter().find_map(|group| group(name, values, budget)).unwrap_or_else(|| Err(no_overload()))
}

fn conversions<'a>(name: &str, values: &[Value<'a>]) -> Option<Evaluated<'a>> {
    let [value] = values else { return None };
    Some(match (name, value) {
        ("dyn", value) => Ok(value.clone()),
        ("type", value) => Ok(Value::Type(value.kind().into_owned().into())),
        ("size", value) => value.size().map(|n| Value::Int(n as i64)).ok_or_else(no_overload),
        ("bool", Value::Bool(_)) | ("int", Value::Int(_)) | ("uint", Value::Uint(_)) => Ok(value.clone()),
        ("double", Value::Double(_)) | ("string", Value::String(_)) | ("bytes", Value::Bytes(_)) => Ok(value.clone()),
        ("timestamp", Value::Timestamp(_)) | ("duration", Value::Duration(_)) => Ok(value.clone()),
        ("bool", Value::String(text)) => match text.as_ref() {
            "true" | "TRUE" | "True" | "t" | "T" | "1" => Ok(Value::Bool(true)),
            "false" | "FALSE" | "False" | "f" | "F" | "0" => Ok(Value::Bool(false)),
            _ => Err(conversion("string", "bool")),
        },
        ("int", value) => to_int(value),
        ("uint", value) => to_uint(value),
        ("double", Value::Int(n)) => Ok(Value::Double(*n as f64)),
        ("double", Value::Uint(n)) => Ok(Value::Double(*n as f64)),
        ("double", Value::String(text)) => text.parse().map(Value::Double).map_err(|_| conversion("string", "double")),
        ("string", value) => to_string(value),
        ("bytes", Value::String(text)) => Ok(Value::Bytes(text.as_bytes().into())),
        ("timestamp", Value::String(text)) => {
            times::timestamp(text).map(Value::Timestamp).ok_or_else(|| conversion("string", "timestamp"))
        }
        ("timestamp", Value::Int(seconds)) => {
            jiff::Timestamp::from_second(*seconds).map(Value::Timestamp).map_err(|_| conversion("int", "timestamp"))
        }
        ("duration", Value::String(text)) => {
            times::duration(text).map(Value::Duration).ok_or_else(|| conversion("string", "duration"))
        }
        ("duration", Value::Int(nanos)) => Ok(Value::Duration(*nanos)),
        _ => return None,
    })
}

fn conversion(from: &str, to: &str) -> EvalError {
    EvalError::new(format!("type conversion error from '{from}' to '{to}'"))
}

fn to_int<'a>(value: &Value<'_>) -> Evaluated<'a> {
    let range = || EvalError::new("integer overflow");
    match value {
        Value::Uint(n) => i64::try_from(*n).map(Value::Int).map_err(|_| range()),
        // The largest double below 2^63; beyond it the cast would saturate.
        Value::Double(n) if n.abs() < 9_223_372_036_854_775_807.0 => Ok(Value::Int(*n as i64)),
        Value::Double(_) => Err(range()),
        Value::String(text) => text.parse().map(Value::Int).map_err(|_| conversion("string", "int")),
        Value::Timestamp(at) => Ok(Value::Int(at.as_second())),
        Value::Duration(nanos) => Ok(Value::Int(*nanos)),
        _ => Err(no_overload()),
    }
}

fn to_uint<'a>(value: &Value<'_>) -> Evaluated<'a> {
    let range = || EvalError::new("unsigned integer overflow");
    match value {
        Value::Int(n) => u64::try_from(*n).map(Value::Uint).map_err(|_| range()),
        Value::Double(n) if *n >= 0.0 && *n < 18_446_744_073_709_551_615.0 => Ok(Value::Uint(*n as u64)),
        Value::Double(_) => Err(range()),
        Value::String(text) => text.parse().map(Value::Uint).map_err(|_| conversion("string", "uint")),
        _ => Err(no_overload()),
    }
}

fn to_string<'a>(value: &Value<'_>) -> Evaluated<'a> {
    Ok(Value::owned(match value {
        Value::Bool(b) => b.to_string(),
        Value::Int(n) => n.to_string(),
        Value::Uint(n) => n.to_string(),
        Value::Double(n) => n.to_string(),
        Value::Bytes(bytes) => String::from_utf8(bytes.to_vec()).map_err(|_| conversion("bytes", "string"))?,
        Value::Timestamp(at) => times::shown(*at),
        Value::Duration(span) => times::shown_duration(*span),
        Value::Ip(ip) => ip.to_string(),
        Value::Cidr(ip, bits) => format!("{ip}/{bits}"),
        Value::Type(name) => name.to_string(),
        _ => return Err(no_overload()),
    }))
}

fn optionals<'a>(name: &str, values: &[Value<'a>], _: &Budget) -> Option<Evaluated<'a>> {
    let some = |value: &Value<'a>| Value::Optional(Some(Rc::new(value.clone())));
    Some(match (name, values) {
        ("optional.of", [value]) => Ok(some(value)),
        ("optional.none", []) => Ok(Value::Optional(None)),
        ("optional.ofNonZeroValue", [value]) => {
            let zero = match value {
                Value::Null | Value::Bool(false) | Value::Int(0) | Value::Uint(0) => true,
                Value::Double(n) => *n == 0.0,
                value => value.size() == Some(0),
            };
            Ok(if zero { Value::Optional(None) } else { some(value) })
        }
        ("hasValue", [Value::Optional(inner)]) => Ok(Value::Bool(inner.is_some())),
        ("value", [Value::Optional(inner)]) => match inner {
            Some(inner) => Ok((**inner).clone()),
            None => Err(EvalError::new("optional.none() dereference")),
        },
        _ => return None,
    })
}
