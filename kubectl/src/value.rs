//! Short ways to look at JSON values, and times and quantities in kubectl's words.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use keelson_machinery::quantity::Quantity;
use serde_json::Value;

/// A JSON value read leniently: what is absent is empty, zero or false.
pub trait Read {
    /// A text, "" if it is none.
    fn text(&self) -> &str;
    /// The items of a list.
    fn items(&self) -> &[Value];
    /// A number.
    fn number(&self) -> i64;
    /// Whether it is `true`.
    fn is_true(&self) -> bool;
    /// The entries of a map from texts to texts.
    fn pairs(&self) -> Vec<(&str, &str)>;
    /// The texts of a list.
    fn texts(&self) -> Vec<&str>;
    /// Whether it is there at all.
    fn is_there(&self) -> bool;
    /// A text, number or boolean as Go's `%v` writes it; "" if absent.
    fn shown(&self) -> String;
}

impl Read for Value {
    fn text(&self) -> &str {
        self.as_str().unwrap_or_default()
    }

    fn items(&self) -> &[Value] {
        self.as_array().map_or(&[], Vec::as_slice)
    }

    fn number(&self) -> i64 {
        self.as_i64().unwrap_or(0)
    }

    fn is_true(&self) -> bool {
        self.as_bool().unwrap_or(false)
    }

    fn pairs(&self) -> Vec<(&str, &str)> {
        self.as_object().into_iter().flatten().map(|(k, v)| (k.as_str(), v.text())).collect()
    }

    fn texts(&self) -> Vec<&str> {
        self.items().iter().map(Read::text).collect()
    }

    fn is_there(&self) -> bool {
        !self.is_null()
    }

    fn shown(&self) -> String {
        match self {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            Value::Array(items) => format!("[{}]", items.iter().map(Read::shown).collect::<Vec<_>>().join(" ")),
            other => other.to_string(),
        }
    }
}

/// `text`, or `otherwise` if it is empty.
pub fn or<'a>(text: &'a str, otherwise: &'a str) -> &'a str {
    if text.is_empty() { otherwise } else { text }
}

/// A span of time as kubectl prints it.
pub fn human(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let rest = |whole: i64, part: i64, unit: &str, small: &str| match part {
        0 => format!("{whole}{unit}"),
        part => format!("{whole}{unit}{part}{small}"),
    };
    match seconds {
        s if s < -1 => "<invalid>".into(),
        s if s < 0 => "0s".into(),
        s if s < 120 => format!("{s}s"),
        s if s < 600 => rest(minutes, s % 60, "m", "s"),
        s if s < 3 * 3600 => format!("{}m", s / 60),
        s if s < 8 * 3600 => rest(hours, s / 60 % 60, "h", "m"),
        s if s < 48 * 3600 => format!("{}h", s / 3600),
        s if s < 8 * 86400 => rest(days, s / 3600 % 24, "d", "h"),
        s if s < 2 * 365 * 86400 => format!("{}d", s / 86400),
        s if s < 8 * 365 * 86400 => rest(days / 365, days % 365, "y", "d"),
        _ => format!("{}y", days / 365),
    }
}

/// How long a time ago is; `<unknown>` if there is no time.
pub fn ago(time: &Value) -> String {
    match time.text().parse::<Timestamp>() {
        Ok(then) => human(Timestamp::now().duration_since(then).as_secs()),
        Err(_) => "<unknown>".into(),
    }
}

/// Seconds from one time to another.
pub fn between(from: &Value, to: &Value) -> i64 {
    match (from.text().parse::<Timestamp>(), to.text().parse::<Timestamp>()) {
        (Ok(from), Ok(to)) => to.duration_since(from).as_secs(),
        _ => 0,
    }
}

/// A time as `Mon, 02 Jan 2006 15:04:05 -0700` in this host's zone.
pub fn date(time: &Value) -> String {
    match time.text().parse::<Timestamp>() {
        Ok(time) => time.to_zoned(TimeZone::system()).strftime("%a, %d %b %Y %H:%M:%S %z").to_string(),
        Err(_) => "Mon, 01 Jan 0001 00:00:00 +0000".into(),
    }
}

/// A quantity, zero if it is none.
pub fn quantity(value: &Value) -> Quantity {
    Quantity::parse(&value.shown()).unwrap_or_else(|_| Quantity::from_millis(0))
}

/// A quantity in its canonical form; "0" if absent.
pub fn amount(value: &Value) -> String {
    match Quantity::parse(&value.shown()) {
        Ok(quantity) => quantity.to_string(),
        Err(_) => "0".into(),
    }
}

/// A text in quotation marks, as Go's `%q` writes it.
pub fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out + "\""
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn spans_of_time() {
        for (seconds, expected) in [
            (-5, "<invalid>"),
            (5, "5s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (601, "10m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 61, "3h1m"),
            (47 * 3600, "47h"),
            (50 * 3600, "2d2h"),
            (100 * 86400, "100d"),
            (800 * 86400, "2y70d"),
            (4000 * 86400, "10y"),
        ] {
            assert_eq!(human(seconds), expected);
        }
    }

    #[test]
    fn values_as_go_shows_them() {
        for (value, expected) in
            [(json!(null), ""), (json!("a"), "a"), (json!(3), "3"), (json!(["a", "b"]), "[a b]"), (json!(true), "true")]
        {
            assert_eq!(value.shown(), expected);
        }
        assert_eq!(quoted("a\"b\n"), "\"a\\\"b\\n\"");
        assert_eq!(amount(&json!("1000m")), "1");
        assert_eq!(amount(&json!(null)), "0");
    }
}
