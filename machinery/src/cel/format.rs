//! `string.format` and the named formats.

use std::rc::Rc;

use super::EvalError;
use super::eval::Budget;
use super::value::Value;
use crate::names;
use crate::structural::matches_format;

/// Names of the formats.
pub(super) const FORMATS: [&str; 13] = [
    "dns1123Label",
    "dns1123Subdomain",
    "dns1035Label",
    "qualifiedName",
    "dns1123LabelPrefix",
    "dns1123SubdomainPrefix",
    "dns1035LabelPrefix",
    "labelValue",
    "uri",
    "uuid",
    "byte",
    "date",
    "datetime",
];
/// Longest text that is made.
const MAX_TEXT_BYTES: usize = 4 << 20;
/// Most digits after the point.
const MAX_PRECISION: usize = 64;

pub(super) fn call<'a>(name: &str, values: &[Value<'a>], _: &Budget) -> Option<Result<Value<'a>, EvalError>> {
    match (name, values) {
        ("validate", [Value::Format(format), Value::String(text)]) => {
            let problems = problems(format, text);
            let list =
                (!problems.is_empty()).then(|| Rc::new(Value::list(problems.into_iter().map(Value::owned).collect())));
            Some(Ok(Value::Optional(list)))
        }
        (name, []) => {
            let name = name.strip_prefix("format.")?;
            FORMATS.iter().find(|f| **f == name).map(|f| Ok(Value::Format(f)))
        }
        _ => None,
    }
}

fn problems(format: &str, text: &str) -> Vec<String> {
    let prefix = text.strip_suffix('-').unwrap_or(text);
    let known = |format: &str, why: &str| (!matches_format(format, text)).then(|| why.to_owned());
    let found = match format {
        "dns1123Label" => names::dns_label(text),
        "dns1123Subdomain" => names::dns_subdomain(text),
        "dns1035Label" => names::dns_label_1035(text),
        "qualifiedName" => names::qualified_name(text),
        "dns1123LabelPrefix" => names::dns_label(prefix),
        "dns1123SubdomainPrefix" => names::dns_subdomain(prefix),
        "dns1035LabelPrefix" => names::dns_label_1035(prefix),
        "labelValue" => names::label_value(text),
        "uri" => crate::go_url::parse_request(text).err(),
        "datetime" => known("date-time", "invalid datetime"),
        "date" => known("date", "invalid date"),
        "byte" => known("byte", "invalid base64"),
        _ => known(format, "does not match the UUID format"),
    };
    found.into_iter().collect()
}

/// Fills the values into a text with verbs (`%s %d %f %e %b %x %X %o`).
pub(super) fn format(text: &str, values: &[Value<'_>]) -> Result<String, EvalError> {
    let mut out = String::with_capacity(text.len());
    let mut values = values.iter();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        if chars.peek() == Some(&'%') {
            chars.next();
            out.push('%');
            continue;
        }
        let mut precision = None;
        if chars.peek() == Some(&'.') {
            chars.next();
            let mut digits = String::new();
            while let Some(d) = chars.next_if(char::is_ascii_digit) {
                digits.push(d);
            }
            precision = digits.parse().ok().map(|n: usize| n.min(MAX_PRECISION));
        }
        let verb = chars.next().ok_or_else(|| EvalError::new("unexpected end of format string"))?;
        let value =
            values.next().ok_or_else(|| EvalError::new("index out of range: format string needs more values"))?;
        out.push_str(&one(verb, precision, value)?);
        if out.len() > MAX_TEXT_BYTES {
            return Err(EvalError::new("the text is too long"));
        }
    }
    Ok(out)
}

fn one(verb: char, precision: Option<usize>, value: &Value<'_>) -> Result<String, EvalError> {
    let number = match value {
        Value::Int(n) => Some(i128::from(*n)),
        Value::Uint(n) => Some(i128::from(*n)),
        _ => None,
    };
    let fraction = match value {
        Value::Double(n) => Some(*n),
        _ => number.map(|n| n as f64),
    };
    let radix = |n: i128, digits: String| if n < 0 { format!("-{digits}") } else { digits };
    Ok(match (verb, number, fraction) {
        ('s', ..) => text_of(value),
        ('d', Some(n), _) => n.to_string(),
        ('d', None, Some(n)) => n.to_string(),
        ('f', _, Some(n)) => format!("{n:.*}", precision.unwrap_or(6)),
        ('e', _, Some(n)) => scientific(n, precision.unwrap_or(6)),
        ('b', Some(n), _) => radix(n, format!("{:b}", n.unsigned_abs())),
        ('o', Some(n), _) => radix(n, format!("{:o}", n.unsigned_abs())),
        ('x', Some(n), _) => radix(n, format!("{:x}", n.unsigned_abs())),
        ('X', Some(n), _) => radix(n, format!("{:X}", n.unsigned_abs())),
        ('b', ..) => match value {
            Value::Bool(b) => u8::from(*b).to_string(),
            _ => return Err(unusable(verb, value)),
        },
        ('x' | 'X', ..) => {
            let bytes = match value {
                Value::String(text) => text.as_bytes().to_vec(),
                Value::Bytes(bytes) => bytes.to_vec(),
                _ => return Err(unusable(verb, value)),
            };
            let upper = verb == 'X';
            bytes.iter().map(|b| if upper { format!("{b:02X}") } else { format!("{b:02x}") }).collect()
        }
        _ => return Err(unusable(verb, value)),
    })
}

fn unusable(verb: char, value: &Value<'_>) -> EvalError {
    EvalError::new(format!("error during formatting: {} cannot be formatted with %{verb}", value.kind()))
}

fn scientific(n: f64, precision: usize) -> String {
    let text = format!("{n:.precision$e}");
    match text.split_once('e') {
        Some((mantissa, exponent)) => {
            let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |d| ('-', d));
            format!("{mantissa}e{sign}{digits:0>2}")
        }
        None => text,
    }
}

fn text_of(value: &Value<'_>) -> String {
    match value {
        Value::String(text) => text.to_string(),
        Value::Null => "null".into(),
        Value::Type(name) => name.to_string(),
        Value::Timestamp(at) => at.to_string(),
        Value::Duration(span) => super::times::shown_duration(*span),
        Value::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        value => match (value.items(), value.entries()) {
            (Some(items), _) => format!("[{}]", items.iter().map(text_of).collect::<Vec<_>>().join(", ")),
            (None, Some(entries)) => {
                let parts: Vec<String> =
                    entries.iter().map(|(k, v)| format!("{}: {}", text_of(k), text_of(v))).collect();
                format!("{{{}}}", parts.join(", "))
            }
            (None, None) => value.to_json().map(|json| json.to_string()).unwrap_or_default(),
        },
    }
}
