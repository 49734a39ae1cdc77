//! Functions of texts.

use regex::Regex;

use super::EvalError;
use super::eval::Budget;
use super::format;
use super::operators::size_of;
use super::value::{Value, no_overload};

/// Longest text that an expression may make.
const MAX_TEXT_BYTES: usize = 4 << 20;

type Evaluated<'a> = Result<Value<'a>, EvalError>;

pub(super) fn call<'a>(name: &str, values: &[Value<'a>], budget: &Budget) -> Option<Evaluated<'a>> {
    let text = match values.first() {
        Some(Value::String(text)) => text.as_ref(),
        Some(Value::List(_) | Value::Json(..)) if name == "join" => return Some(join(values)),
        _ => return None,
    };
    Some(match (name, &values[1..]) {
        ("contains", [Value::String(part)]) => {
            budget.spend(size_of(&values[0])).map(|()| text.contains(part.as_ref()).into())
        }
        ("startsWith", [Value::String(part)]) => Ok(text.starts_with(part.as_ref()).into()),
        ("endsWith", [Value::String(part)]) => Ok(text.ends_with(part.as_ref()).into()),
        ("matches", [Value::String(pattern)]) => {
            let cost = size_of(&values[0]) * (pattern.len() as u64).div_ceil(4);
            budget.spend(cost).and_then(|()| Ok(regex(pattern)?.is_match(text).into()))
        }
        ("find", [Value::String(pattern)]) => {
            regex(pattern).map(|r| Value::owned(r.find(text).map_or("", |m| m.as_str())))
        }
        ("findAll", [Value::String(pattern), rest @ ..]) => find_all(text, pattern, rest),
        ("charAt", [Value::Int(n)]) => char_at(text, *n),
        ("indexOf" | "lastIndexOf", [Value::String(part), rest @ ..]) => index_of(name, text, part, rest),
        ("lowerAscii", []) => Ok(Value::owned(text.to_ascii_lowercase())),
        ("upperAscii", []) => Ok(Value::owned(text.to_ascii_uppercase())),
        ("trim", []) => Ok(Value::owned(text.trim())),
        ("replace", [Value::String(from), Value::String(to), rest @ ..]) => replace(text, from, to, rest),
        ("split", [Value::String(by), rest @ ..]) => split(text, by, rest),
        ("substring", [Value::Int(from), rest @ ..]) => substring(text, *from, rest),
        ("strings.quote", []) => Ok(Value::owned(format!("{text:?}"))),
        ("format", [list]) => match list.items() {
            Some(items) => format::format(text, &items).map(Value::owned),
            None => Err(no_overload()),
        },
        ("jsonpatch.escapeKey", []) => Ok(Value::owned(text.replace('~', "~0").replace('/', "~1"))),
        ("format.named", []) => Ok(Value::Optional(
            format::FORMATS.iter().find(|f| **f == text).map(|f| std::rc::Rc::new(Value::Format(f))),
        )),
        _ => return None,
    })
}

impl From<bool> for Value<'_> {
    fn from(b: bool) -> Self {
        Self::Bool(b)
    }
}

fn regex(pattern: &str) -> Result<Regex, EvalError> {
    crate::go_regexp::compile(pattern).map_err(EvalError::new)
}

fn index(n: i64, length: usize) -> Result<usize, EvalError> {
    usize::try_from(n).ok().filter(|n| *n <= length).ok_or_else(|| EvalError::new(format!("index out of range: {n}")))
}

fn find_all<'a>(text: &str, pattern: &str, rest: &[Value<'_>]) -> Evaluated<'a> {
    let limit = match rest {
        [Value::Int(n)] if *n >= 0 => *n as usize,
        _ => usize::MAX,
    };
    let found = regex(pattern)?;
    Ok(Value::list(found.find_iter(text).take(limit).map(|m| Value::owned(m.as_str())).collect()))
}

fn char_at<'a>(text: &str, n: i64) -> Evaluated<'a> {
    let at = index(n, text.chars().count())?;
    Ok(Value::owned(text.chars().nth(at).map(String::from).unwrap_or_default()))
}

fn index_of<'a>(name: &str, text: &str, part: &str, rest: &[Value<'_>]) -> Evaluated<'a> {
    let chars: Vec<char> = text.chars().collect();
    let part: Vec<char> = part.chars().collect();
    let matches = |at: &usize| chars[*at..].starts_with(&part);
    let last = chars.len().checked_sub(part.len());
    let found = match (name, rest) {
        ("indexOf", []) => last.and_then(|last| (0..=last).find(matches)),
        ("indexOf", [Value::Int(from)]) => {
            let from = index(*from, chars.len())?;
            last.and_then(|last| (from..=last).find(matches))
        }
        (_, []) => last.and_then(|last| (0..=last).rev().find(matches)),
        (_, [Value::Int(from)]) => {
            let from = index(*from, chars.len())?;
            last.and_then(|last| (0..=last.min(from)).rev().find(matches))
        }
        _ => return Err(no_overload()),
    };
    Ok(Value::Int(found.map_or(-1, |n| n as i64)))
}

fn replace<'a>(text: &str, from: &str, to: &str, rest: &[Value<'_>]) -> Evaluated<'a> {
    let count = match rest {
        [] => usize::MAX,
        [Value::Int(n)] => usize::try_from(*n).unwrap_or(usize::MAX),
        _ => return Err(no_overload()),
    };
    let times = if from.is_empty() { text.len() + 1 } else { text.len() / from.len() }.min(count);
    if text.len().saturating_add(times.saturating_mul(to.len())) > MAX_TEXT_BYTES {
        return Err(EvalError::new("the text is too long"));
    }
    Ok(Value::owned(text.replacen(from, to, count)))
}

fn split<'a>(text: &str, by: &str, rest: &[Value<'_>]) -> Evaluated<'a> {
    let parts: Vec<&str> = if by.is_empty() {
        text.split("").filter(|p| !p.is_empty()).collect()
    } else {
        match rest {
            [Value::Int(0)] => Vec::new(),
            [Value::Int(n)] if *n > 0 => text.splitn(*n as usize, by).collect(),
            _ => text.split(by).collect(),
        }
    };
    Ok(Value::list(parts.into_iter().map(Value::owned).collect()))
}

fn substring<'a>(text: &str, from: i64, rest: &[Value<'_>]) -> Evaluated<'a> {
    let length = text.chars().count();
    let from = index(from, length)?;
    let to = match rest {
        [] => length,
        [Value::Int(n)] => index(*n, length)?,
        _ => return Err(no_overload()),
    };
    if to < from {
        return Err(EvalError::new(format!("invalid substring range. start: {from}, end: {to}")));
    }
    Ok(Value::owned(text.chars().skip(from).take(to - from).collect::<String>()))
}

fn join<'a>(values: &[Value<'_>]) -> Evaluated<'a> {
    let separator = match &values[1..] {
        [] => "",
        [Value::String(text)] => text.as_ref(),
        _ => return Err(no_overload()),
    };
    let items = values[0].items().ok_or_else(no_overload)?;
    let mut out = String::new();
    for (i, item) in items.iter().enumerate() {
        let Value::String(text) = item else { return Err(no_overload()) };
        if out.len() + text.len() + separator.len() > MAX_TEXT_BYTES {
            return Err(EvalError::new("the text is too long"));
        }
        if i > 0 {
            out.push_str(separator);
        }
        out.push_str(text);
    }
    Ok(Value::owned(out))
}
