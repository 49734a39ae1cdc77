//! `string.format` and the named formats.

use std::rc::Rc;

use super::eval::Budget;
use super::value::Value;
use super::{EvalError, functions, strings};
use crate::names;
use crate::structural::matches_format;

/// Names of the formats.
pub(super) const FORMATS: [&str; 14] = [
    "dns1123Label",
    "dns1123Subdomain",
    "dns1035Label",
    "qualifiedName",
    "portName",
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
/// Digits after the point if none are asked for, and most that are made.
const PRECISION: usize = 6;
const MAX_PRECISION: usize = 64;
/// Raised digits.
const RAISED: [char; 10] = ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];

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
    let known = |format: &str, why: &str| if matches_format(format, text) { Vec::new() } else { vec![why.to_owned()] };
    let found = match format {
        "dns1123Label" => names::dns_label(text),
        "dns1123Subdomain" => names::dns_subdomain(text),
        "dns1035Label" => names::dns_label_1035(text),
        "qualifiedName" => return names::qualified_name_problems(text),
        "portName" => return names::port_name_problems(text),
        "labelValue" => return names::label_value_problems(text),
        "dns1123LabelPrefix" => names::dns_label(prefix),
        "dns1123SubdomainPrefix" => names::dns_subdomain(prefix),
        "dns1035LabelPrefix" => names::dns_label_1035(prefix),
        "uri" => {
            let why = || format!("parse {}: invalid URI for request", strings::quoted(text));
            super::network::Url::parse(text).is_none().then(why)
        }
        "datetime" => return known("date-time", "invalid datetime"),
        "date" => return known("date", "invalid date"),
        "byte" => return known("byte", "invalid base64"),
        _ => return known("uuid", "does not match the UUID format"),
    };
    found.into_iter().collect()
}

/// Fills the values into a text with verbs (`%s %d %f %e %b %x %X %o`).
pub(super) fn format(text: &str, values: &[Value<'_>]) -> Result<String, EvalError> {
    let mut out = String::with_capacity(text.len());
    let mut values = values.iter().enumerate();
    let given = values.len();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        if chars.next_if_eq(&'%').is_some() {
            out.push('%');
            continue;
        }
        let (_, value) = values.next().ok_or_else(|| EvalError::new(format!("index {given} out of range")))?;
        let mut precision = None;
        if chars.next_if_eq(&'.').is_some() {
            let mut digits = String::new();
            while let Some(d) = chars.next_if(char::is_ascii_digit) {
                digits.push(d);
            }
            precision = digits.parse().ok().map(|n: usize| n.min(MAX_PRECISION));
        }
        let verb = chars.next().ok_or_else(|| EvalError::new("unexpected end of string"))?;
        out.push_str(&one(verb, precision.unwrap_or(PRECISION), value)?);
        if out.len() > MAX_TEXT_BYTES {
            return Err(EvalError::new("the text is too long"));
        }
    }
    Ok(out)
}

fn one(verb: char, precision: usize, value: &Value<'_>) -> Result<String, EvalError> {
    let fits = match verb {
        's' => return shown(value).ok_or_else(|| unusable("string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, durations, and timestamps", value)),
        'd' => "decimal clause can only be used on integers",
        'f' => "fixed-point clause can only be used on doubles",
        'e' => "scientific clause can only be used on doubles",
        'b' => "binary clause can only be used on integers and bools",
        'o' => "octal clause can only be used on integers",
        'x' | 'X' => "only integers, byte buffers, and strings can be formatted as hex",
        other => {
            let why = format!("could not parse formatting clause: unrecognized formatting clause \"{other}\"");
            return Err(EvalError::new(why));
        }
    };
    let number = match value {
        Value::Int(n) => Some(i128::from(*n)),
        Value::Uint(n) => Some(i128::from(*n)),
        Value::Bool(b) if verb == 'b' => Some(i128::from(*b)),
        _ => None,
    };
    let fraction = match value {
        Value::Double(n) => Some(*n),
        Value::String(text) => match text.as_ref() {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    };
    let bytes = match value {
        Value::String(text) => Some(text.as_bytes()),
        Value::Bytes(bytes) => Some(bytes.as_ref()),
        _ => None,
    };
    let radix = |n: i128, digits: String| if n < 0 { format!("-{digits}") } else { digits };
    Ok(match (verb, number, fraction, bytes) {
        ('d', Some(n), ..) => n.to_string(),
        ('f', _, Some(n), _) => grouped(n, precision),
        ('e', _, Some(n), _) => scientific(n, precision),
        ('b', Some(n), ..) => radix(n, format!("{:b}", n.unsigned_abs())),
        ('o', Some(n), ..) => radix(n, format!("{:o}", n.unsigned_abs())),
        ('x', Some(n), ..) => radix(n, format!("{:x}", n.unsigned_abs())),
        ('X', Some(n), ..) => radix(n, format!("{:X}", n.unsigned_abs())),
        ('x', _, _, Some(bytes)) => bytes.iter().map(|b| format!("{b:02x}")).collect(),
        ('X', _, _, Some(bytes)) => bytes.iter().map(|b| format!("{b:02X}")).collect(),
        _ => return Err(unusable(fits, value)),
    })
}

fn unusable(fits: &str, value: &Value<'_>) -> EvalError {
    EvalError::new(format!("error during formatting: {fits}, was given {}", value.kind()))
}

/// A number that has no digits, in the words of upstream's locale.
fn endless(n: f64) -> Option<&'static str> {
    match n {
        n if n.is_nan() => Some("NaN"),
        f64::INFINITY => Some("∞"),
        f64::NEG_INFINITY => Some("-∞"),
        _ => None,
    }
}

/// With a comma between thousands, as upstream's locale wants it.
fn grouped(n: f64, precision: usize) -> String {
    if let Some(word) = endless(n) {
        return word.into();
    }
    let text = format!("{n:.precision$}");
    let (sign, text) = text.strip_prefix('-').map_or(("", text.as_str()), |rest| ("-", rest));
    let (whole, rest) = text.find('.').map_or((text, ""), |point| text.split_at(point));
    let mut out = sign.to_owned();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out + rest
}

/// With a raised exponent, as upstream's locale wants it.
fn scientific(n: f64, precision: usize) -> String {
    if let Some(word) = endless(n) {
        return word.into();
    }
    let text = format!("{n:.precision$e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, digits) = exponent.strip_prefix('-').map_or(("", exponent), |digits| ("⁻", digits));
    let raised = |digit: char| digit.to_digit(10).map_or(digit, |n| RAISED[n as usize]);
    let digits: String = format!("{digits:0>2}").chars().map(raised).collect();
    format!("{mantissa}\u{202f}×\u{202f}10{sign}{digits}")
}

/// A value by itself; none if it has no text.
fn shown(value: &Value<'_>) -> Option<String> {
    match value {
        Value::Null => Some("null".into()),
        value => match (value.items(), value.entries()) {
            (Some(items), _) => {
                let items: Option<Vec<String>> = items.iter().map(written).collect();
                Some(format!("[{}]", items?.join(", ")))
            }
            (None, Some(entries)) => {
                let pairs = entries.iter().map(|(key, value)| Some(format!("{}:{}", written(key)?, written(value)?)));
                let mut pairs: Vec<String> = pairs.collect::<Option<_>>()?;
                pairs.sort_unstable();
                Some(format!("{{{}}}", pairs.join(", ")))
            }
            (None, None) => match functions::to_string(value) {
                Ok(Value::String(text)) if !matches!(value, Value::Ip(_) | Value::Cidr(..)) => Some(text.into_owned()),
                _ => None,
            },
        },
    }
}

/// A value in a list or map: as an expression writes it.
fn written(value: &Value<'_>) -> Option<String> {
    let text = shown(value)?;
    Some(match value {
        Value::String(_) => strings::quoted(&text),
        Value::Bytes(_) => format!("b{}", strings::quoted(&text)),
        Value::Timestamp(_) => format!("timestamp({})", strings::quoted(&text)),
        Value::Duration(_) => format!("duration({})", strings::quoted(&text)),
        Value::Double(n) => match endless(*n) {
            Some(_) => strings::quoted(&text),
            None => format!("{n:.PRECISION$}"),
        },
        _ => text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_upstream_does() {
        for (verb, n, expected) in [
            ('f', 1234.5, "1,234.500000"),
            ('f', -1234567.0, "-1,234,567.000000"),
            ('f', 999.0, "999.000000"),
            ('f', f64::INFINITY, "∞"),
            ('e', 1052.032911275, "1.052033\u{202f}×\u{202f}10⁰³"),
            ('e', 0.00125, "1.250000\u{202f}×\u{202f}10⁻⁰³"),
            ('s', 1.0, "1"),
            ('s', 1e6, "1e+06"),
            ('s', 1.5e-7, "1.5e-07"),
            ('s', 123456.5, "123456.5"),
        ] {
            assert_eq!(one(verb, PRECISION, &Value::Double(n)), Ok(expected.to_owned()), "%{verb} {n}");
        }
    }
}
