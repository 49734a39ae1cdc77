//! Semantic versions.

use std::cmp::Ordering;
use std::rc::Rc;

use super::EvalError;
use super::eval::Budget;
use super::value::Value;

/// A version (semver.org 2.0).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Semver {
    numbers: [u64; 3],
    before: Vec<String>,
}

impl Semver {
    /// Reads a version; `lenient` adds what is missing and drops a `v` in front.
    pub fn parse(text: &str, lenient: bool) -> Option<Self> {
        let text = if lenient { text.strip_prefix('v').unwrap_or(text) } else { text };
        let (text, build) = text.split_once('+').map_or((text, None), |(t, b)| (t, Some(b)));
        let (core, before) = text.split_once('-').map_or((text, None), |(t, b)| (t, Some(b)));
        let mut parts: Vec<&str> = core.split('.').collect();
        while lenient && parts.len() < 3 {
            parts.push("0");
        }
        let [major, minor, patch] = parts[..] else { return None };
        let number = |text: &str| {
            let text = if lenient { text.trim_start_matches('0') } else { text };
            let text = if lenient && text.is_empty() { "0" } else { text };
            let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
            plain.then(|| text.parse::<u64>().ok()).flatten()
        };
        let word = |w: &str| !w.is_empty() && w.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let words = |list: Option<&str>| -> Option<Vec<String>> {
            let Some(list) = list else { return Some(Vec::new()) };
            list.split('.').map(|w| word(w).then(|| w.to_owned())).collect()
        };
        words(build)?;
        Some(Self { numbers: [number(major)?, number(minor)?, number(patch)?], before: words(before)? })
    }
}

impl PartialOrd for Semver {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Semver {
    fn cmp(&self, other: &Self) -> Ordering {
        let numbers = self.numbers.cmp(&other.numbers);
        if numbers != Ordering::Equal {
            return numbers;
        }
        match (self.before.is_empty(), other.before.is_empty()) {
            (true, true) => return Ordering::Equal,
            (true, false) => return Ordering::Greater,
            (false, true) => return Ordering::Less,
            (false, false) => {}
        }
        for (a, b) in self.before.iter().zip(&other.before) {
            let order = match (a.parse::<u64>(), b.parse::<u64>()) {
                (Ok(a), Ok(b)) => a.cmp(&b),
                (Ok(_), Err(_)) => Ordering::Less,
                (Err(_), Ok(_)) => Ordering::Greater,
                (Err(_), Err(_)) => a.cmp(b),
            };
            if order != Ordering::Equal {
                return order;
            }
        }
        self.before.len().cmp(&other.before.len())
    }
}

pub(super) fn call<'a>(name: &str, values: &[Value<'a>], _: &Budget) -> Option<Result<Value<'a>, EvalError>> {
    let lenient = matches!(values.get(1), Some(Value::Bool(true)));
    Some(Ok(match (name, values) {
        ("isSemver", [Value::String(text), ..]) => Semver::parse(text, lenient).is_some().into(),
        ("semver", [Value::String(text), ..]) => match Semver::parse(text, lenient) {
            Some(version) => Value::Semver(Rc::new(version)),
            None => return Some(Err(EvalError::new(format!("invalid semver: {text}")))),
        },
        ("major", [Value::Semver(v)]) => Value::Int(v.numbers[0] as i64),
        ("minor", [Value::Semver(v)]) => Value::Int(v.numbers[1] as i64),
        ("patch", [Value::Semver(v)]) => Value::Int(v.numbers[2] as i64),
        ("isLessThan", [Value::Semver(a), Value::Semver(b)]) => (a < b).into(),
        ("isGreaterThan", [Value::Semver(a), Value::Semver(b)]) => (a > b).into(),
        ("compareTo", [Value::Semver(a), Value::Semver(b)]) => Value::Int(match a.cmp(b) {
            Ordering::Less => -1,
            Ordering::Equal => 0,
            Ordering::Greater => 1,
        }),
        _ => return None,
    }))
}
