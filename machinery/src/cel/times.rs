//! Points and spans of time.

use jiff::Timestamp;
use jiff::tz::{Offset, TimeZone};

use super::EvalError;
use super::eval::Budget;
use super::value::{Value, no_overload};

type Evaluated<'a> = Result<Value<'a>, EvalError>;

/// Reads RFC 3339.
pub(super) fn timestamp(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

/// Writes RFC 3339.
pub(super) fn shown(at: Timestamp) -> String {
    at.to_string()
}

/// Reads a span as Go writes it (`1h30m`), in nanoseconds.
pub(super) fn duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut total = 0_f64;
    let mut whole = 0_i128;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(end);
        let units: [(&str, i128); 8] = [
            ("ns", 1),
            ("us", 1_000),
            ("µs", 1_000),
            ("μs", 1_000),
            ("ms", 1_000_000),
            ("s", 1_000_000_000),
            ("m", 60_000_000_000),
            ("h", 3_600_000_000_000),
        ];
        let (unit, scale) = units.iter().find(|(unit, _)| after.starts_with(unit))?;
        match number.parse::<i64>() {
            Ok(n) => whole += i128::from(n) * scale,
            Err(_) => total += number.parse::<f64>().ok()? * *scale as f64,
        }
        rest = &after[unit.len()..];
    }
    let nanos = whole + total.round() as i128;
    i64::try_from(if negative { -nanos } else { nanos }).ok()
}

/// Writes a span in seconds.
pub(super) fn shown_duration(nanos: i64) -> String {
    let (sign, nanos) = if nanos < 0 { ("-", nanos.unsigned_abs()) } else { ("", nanos.unsigned_abs()) };
    let (seconds, rest) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
    if rest == 0 {
        return format!("{sign}{seconds}s");
    }
    format!("{sign}{seconds}.{}s", format!("{rest:09}").trim_end_matches('0'))
}

pub(super) fn call<'a>(name: &str, values: &[Value<'a>], _: &Budget) -> Option<Evaluated<'a>> {
    match values {
        [Value::Duration(nanos)] => {
            let by = match name {
                "getHours" => 3_600_000_000_000,
                "getMinutes" => 60_000_000_000,
                "getSeconds" => 1_000_000_000,
                "getMilliseconds" => 1_000_000,
                _ => return None,
            };
            Some(Ok(Value::Int(nanos / by)))
        }
        [Value::Timestamp(at), rest @ ..] => part(name, *at, rest),
        _ => None,
    }
}

fn part<'a>(name: &str, at: Timestamp, rest: &[Value<'_>]) -> Option<Evaluated<'a>> {
    let zone = match rest {
        [] => TimeZone::UTC,
        [Value::String(name)] => match zone(name) {
            Some(zone) => zone,
            None => return Some(Err(EvalError::new(format!("unknown time zone {name}")))),
        },
        _ => return Some(Err(no_overload())),
    };
    let local = at.to_zoned(zone);
    let number: i64 = match name {
        "getFullYear" => local.year().into(),
        "getMonth" => i64::from(local.month()) - 1,
        "getDayOfYear" => i64::from(local.day_of_year()) - 1,
        "getDayOfMonth" => i64::from(local.day()) - 1,
        "getDate" => local.day().into(),
        "getDayOfWeek" => local.weekday().to_sunday_zero_offset().into(),
        "getHours" => local.hour().into(),
        "getMinutes" => local.minute().into(),
        "getSeconds" => local.second().into(),
        "getMilliseconds" => local.millisecond().into(),
        _ => return None,
    };
    Some(Ok(Value::Int(number)))
}

fn zone(name: &str) -> Option<TimeZone> {
    let offset = name.split_once(':').and_then(|(hours, minutes)| {
        let sign = if hours.starts_with('-') { -1 } else { 1 };
        let hours: i32 = hours.trim_start_matches(['+', '-']).parse().ok()?;
        Some(sign * (hours * 3600 + minutes.parse::<i32>().ok()? * 60))
    });
    match offset {
        Some(seconds) => Some(TimeZone::fixed(Offset::from_seconds(seconds).ok()?)),
        None => TimeZone::get(name).ok(),
    }
}
