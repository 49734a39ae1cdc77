//! The functions of templates, and values as Go prints them.

use std::cmp::Ordering;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::value::{Read, quoted};

const NAMES: [&str; 21] = [
    "call",
    "and",
    "or",
    "not",
    "len",
    "index",
    "slice",
    "print",
    "printf",
    "println",
    "html",
    "js",
    "urlquery",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "exists",
    "base64decode",
];

/// Whether there is such a function.
pub fn is_known(name: &str) -> bool {
    NAMES.contains(&name)
}

/// Whether a value counts as true: it is not empty.
pub fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(on) => *on,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// A floating number as Go's `%v` writes it: with an exponent from a million on.
pub fn float(number: f64) -> String {
    let text = format!("{number:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    match exponent.parse::<i32>().unwrap_or(0) {
        -4..6 => format!("{number}"),
        exponent => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
    }
}

/// A value as Go's `%v` writes it.
pub fn shown(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".into(),
        Value::Bool(on) => on.to_string(),
        Value::Number(n) if n.is_f64() => float(n.as_f64().unwrap_or(0.0)),
        Value::Number(n) => n.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let pairs: Vec<String> = map.iter().map(|(k, v)| format!("{k}:{}", shown(v))).collect();
            format!("map[{}]", pairs.join(" "))
        }
    }
}

type Called = Result<Value, String>;

/// Calls a function.
pub fn call(name: &str, arguments: Vec<Value>) -> Called {
    let need = |least: usize| match arguments.len() < least {
        true => {
            // Functions with a fixed count say so.
            let (least, some) = if name == "eq" { (1, "at least ") } else { (least, "at least ") };
            let some = if name == "not" || name == "len" { "" } else { some };
            Err(format!("wrong number of args for {name}: want {some}{least} got {}", arguments.len()))
        }
        false => Ok(()),
    };
    match name {
        "and" | "or" => arguments.last().cloned().ok_or_else(|| "missing argument".into()),
        "not" => need(1).map(|()| Value::Bool(!is_true(&arguments[0]))),
        "len" => need(1).and_then(|()| len(&arguments[0])),
        "index" => need(1).and_then(|()| index(&arguments)),
        "slice" => need(1).and_then(|()| slice(&arguments)),
        "print" => Ok(print(&arguments).into()),
        "println" => Ok((arguments.iter().map(shown).collect::<Vec<_>>().join(" ") + "\n").into()),
        "printf" => need(1).map(|()| printf(arguments[0].text(), &arguments[1..]).into()),
        "html" => Ok(escaped(&print(&arguments), &HTML).into()),
        "js" => Ok(escaped(&print(&arguments), &JS).into()),
        "urlquery" => Ok(crate::session::encode(&print(&arguments)).replace("%20", "+").into()),
        "eq" | "ne" | "lt" | "le" | "gt" | "ge" => need(2).and_then(|()| compare(name, &arguments)),
        "exists" => Ok(Value::Bool(need(1).and_then(|()| index(&arguments)).is_ok_and(|v| !v.is_null()))),
        "base64decode" => need(1).and_then(|()| {
            let bytes = STANDARD.decode(arguments[0].text()).map_err(|error| {
                let at = match error {
                    base64::DecodeError::InvalidByte(at, _) => at,
                    _ => arguments[0].text().len(),
                };
                format!("base64 decode failed: illegal base64 data at input byte {at}")
            })?;
            Ok(String::from_utf8_lossy(&bytes).into_owned().into())
        }),
        "call" => Err(match arguments.first() {
            None | Some(Value::Null) => "call of nil".into(),
            Some(other) => format!("non-function {} of type {}", shown(other), kind(other)),
        }),
        other => Err(format!("function {other:?} not defined")),
    }
}

const HTML: [(char, &str); 5] = [('<', "&lt;"), ('>', "&gt;"), ('&', "&amp;"), ('"', "&#34;"), ('\'', "&#39;")];
const JS: [(char, &str); 8] = [
    ('\\', "\\\\"),
    ('\'', "\\'"),
    ('"', "\\\""),
    ('<', "\\u003C"),
    ('>', "\\u003E"),
    ('&', "\\u0026"),
    ('=', "\\u003D"),
    ('\n', "\\u000A"),
];

fn escaped(text: &str, by: &[(char, &str)]) -> String {
    let one =
        |c: char| by.iter().find(|(from, _)| *from == c).map_or_else(|| c.to_string(), |(_, to)| (*to).to_owned());
    text.chars().map(one).collect()
}

fn len(value: &Value) -> Called {
    match value {
        Value::String(text) => Ok(text.len().into()),
        Value::Array(items) => Ok(items.len().into()),
        Value::Object(map) => Ok(map.len().into()),
        Value::Null => Err("len of nil pointer".into()),
        Value::Bool(_) => Err("len of type bool".into()),
        Value::Number(n) => Err(format!("len of type {}", if n.is_f64() { "float64" } else { "int" })),
    }
}

fn position(value: &Value, length: usize) -> Result<usize, String> {
    let Some(at) = value.as_i64() else {
        return Err(match value {
            Value::Null => "cannot index slice/array with nil".into(),
            other => format!("cannot index slice/array with type {}", kind(other)),
        });
    };
    usize::try_from(at).ok().filter(|at| *at < length).ok_or_else(|| format!("index out of range: {at}"))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nil",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

fn index(arguments: &[Value]) -> Called {
    let mut here = arguments[0].clone();
    for by in &arguments[1..] {
        here = match &here {
            Value::Array(items) => items[position(by, items.len())?].clone(),
            Value::Object(map) => match by {
                Value::String(key) => map.get(key).cloned().unwrap_or_default(),
                other => return Err(format!("value has type {}; should be string", kind(other))),
            },
            Value::String(text) => text.as_bytes()[position(by, text.len())?].into(),
            Value::Null => return Err("index of untyped nil".into()),
            other => return Err(format!("can't index item of type {}", kind(other))),
        };
    }
    Ok(here)
}

fn slice(arguments: &[Value]) -> Called {
    let length = match &arguments[0] {
        Value::String(text) => text.len(),
        Value::Array(items) => items.len(),
        other => return Err(format!("can't slice item of type {}", kind(other))),
    };
    let bound = |at: usize, otherwise: usize| match arguments.get(at) {
        None => Ok(otherwise),
        Some(value) => position(value, length + 1),
    };
    let (from, to) = (bound(1, 0)?, bound(2, length)?);
    if from > to {
        return Err(format!("invalid slice index: {from} > {to}"));
    }
    match &arguments[0] {
        Value::Array(items) => Ok(items[from..to].to_vec().into()),
        other => other.text().get(from..to).map(Value::from).ok_or_else(|| "slice inside of a letter".into()),
    }
}

/// With a space between two of which neither is a text.
fn print(arguments: &[Value]) -> String {
    let mut out = String::new();
    for (at, value) in arguments.iter().enumerate() {
        if at > 0 && !value.is_string() && !arguments[at - 1].is_string() {
            out.push(' ');
        }
        out.push_str(&shown(value));
    }
    out
}

fn basic(value: &Value) -> Result<u8, String> {
    match value {
        Value::Bool(_) => Ok(0),
        Value::Number(n) if n.is_f64() => Ok(1),
        Value::Number(_) => Ok(2),
        Value::String(_) => Ok(3),
        Value::Null => Ok(4),
        _ => Err("non-comparable type".into()),
    }
}

fn order(a: &Value, b: &Value) -> Result<Option<Ordering>, String> {
    match (basic(a)?, basic(b)?) {
        (4, 4) => Ok(Some(Ordering::Equal)),
        (4, _) | (_, 4) => Ok(None),
        (x, y) if x != y => Err("incompatible types for comparison".into()),
        (1, _) => Ok(a.as_f64().partial_cmp(&b.as_f64())),
        (2, _) => Ok(Some(a.as_i64().cmp(&b.as_i64()))),
        (0, _) => Ok(Some(a.as_bool().cmp(&b.as_bool()))),
        _ => Ok(Some(a.text().cmp(b.text()))),
    }
}

fn compare(name: &str, arguments: &[Value]) -> Called {
    let first = &arguments[0];
    if name == "eq" {
        for other in &arguments[1..] {
            if order(first, other)? == Some(Ordering::Equal) {
                return Ok(true.into());
            }
        }
        return Ok(false.into());
    }
    let order = order(first, &arguments[1])?;
    if name != "ne" && (first.is_boolean() || first.is_null()) {
        return Err("invalid type for comparison".into());
    }
    Ok(Value::Bool(match name {
        "ne" => order != Some(Ordering::Equal),
        "lt" => order == Some(Ordering::Less),
        "le" => matches!(order, Some(Ordering::Less | Ordering::Equal)),
        "gt" => order == Some(Ordering::Greater),
        _ => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
    }))
}

fn printf(format: &str, arguments: &[Value]) -> String {
    let (mut out, mut rest, mut next) = (String::new(), format, arguments.iter());
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let end = rest.find(|c: char| !matches!(c, '-' | '+' | '#' | ' ' | '0'..='9' | '.')).unwrap_or(rest.len());
        let (options, after) = rest.split_at(end);
        let Some(verb) = after.chars().next() else {
            out.push_str("%!(NOVERB)");
            return out;
        };
        rest = &after[verb.len_utf8()..];
        if verb == '%' {
            out.push('%');
            continue;
        }
        match next.next() {
            Some(value) => out.push_str(&padded(&formatted(verb, options, value), options)),
            None => out.push_str(&format!("%!{verb}(MISSING)")),
        }
    }
    out.push_str(rest);
    let extra: Vec<String> = next.map(|v| format!("{}={}", kind(v), shown(v))).collect();
    if !extra.is_empty() {
        out.push_str(&format!("%!(EXTRA {})", extra.join(", ")));
    }
    out
}

fn formatted(verb: char, options: &str, value: &Value) -> String {
    let precision = options.split_once('.').map(|(_, p)| p.parse::<usize>().unwrap_or(0));
    match (verb, value) {
        ('v', value) => shown(value),
        ('s', Value::String(text)) => match precision {
            Some(longest) => text.chars().take(longest).collect(),
            None => text.clone(),
        },
        ('q', Value::String(text)) => quoted(text),
        ('d', Value::Number(n)) if !n.is_f64() => n.to_string(),
        ('x', Value::Number(n)) if !n.is_f64() => format!("{:x}", n.as_i64().unwrap_or(0)),
        ('x', Value::String(text)) => text.bytes().map(|b| format!("{b:02x}")).collect(),
        ('t', Value::Bool(on)) => on.to_string(),
        ('f', Value::Number(n)) if n.is_f64() => {
            format!("{:.*}", precision.unwrap_or(6), n.as_f64().unwrap_or(0.0))
        }
        ('g', Value::Number(n)) if n.is_f64() => float(n.as_f64().unwrap_or(0.0)),
        ('T', value) => kind(value).to_owned(),
        ('s' | 'q', Value::Array(items)) => {
            format!("[{}]", items.iter().map(|v| formatted(verb, options, v)).collect::<Vec<_>>().join(" "))
        }
        (verb, Value::Null) => format!("%!{verb}(<nil>)"),
        (verb, value) => format!("%!{verb}({}={})", kind(value), shown(value)),
    }
}

fn padded(text: &str, options: &str) -> String {
    let left = options.contains('-');
    let width = options.trim_start_matches(['-', '+', '#', ' ']);
    let zero = width.starts_with('0') && !left;
    let width: usize = width.split('.').next().unwrap_or("").parse().unwrap_or(0);
    let missing = width.saturating_sub(text.chars().count());
    match (left, zero) {
        (true, _) => format!("{text}{}", " ".repeat(missing)),
        (false, true) => format!("{}{text}", "0".repeat(missing)),
        (false, false) => format!("{}{text}", " ".repeat(missing)),
    }
}
