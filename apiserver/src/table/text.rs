//! Words of cells: ages, lists that are cut, selectors.

use serde_json::{Map, Value};

/// What stands for nothing.
pub const NONE: &str = "<none>";
/// What stands for what was not said.
pub const UNSET: &str = "<unset>";

/// The items of a list.
pub fn items(value: &Value) -> impl DoubleEndedIterator<Item = &Value> + ExactSizeIterator {
    value.as_array().map(Vec::as_slice).unwrap_or_default().iter()
}

/// A text, or "".
pub fn word(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// A number, or 0.
pub fn count(value: &Value) -> Value {
    value.as_i64().unwrap_or(0).into()
}

/// A text, or what stands for none.
pub fn or(text: &str, none: &str) -> Value {
    if text.is_empty() { none.into() } else { text.into() }
}

/// A value as text: a number or text as it is, anything else as what stands for none.
pub fn shown(value: &Value, none: &str) -> Value {
    match value {
        Value::String(text) => text.as_str().into(),
        Value::Number(number) => number.to_string().into(),
        _ => none.into(),
    }
}

/// Texts of a list, joined.
pub fn joined<'a>(texts: impl Iterator<Item = &'a str>, separator: &str) -> String {
    texts.collect::<Vec<_>>().join(separator)
}

/// The first `max` of `all` texts and how many there are beyond them.
pub fn cut(all: &[String], max: usize, separator: &str) -> String {
    let shown = all.iter().take(max).map(String::as_str);
    match all.len().checked_sub(max).filter(|more| *more > 0) {
        Some(more) => format!("{} + {more} more...", joined(shown, separator)),
        None => joined(shown, separator),
    }
}

/// The names and the images of a pod's containers.
pub fn containers(pod: &Value) -> [Value; 2] {
    ["name", "image"].map(|key| joined(items(&pod["containers"]).map(|c| word(&c[key])), ",").into())
}

/// Labels as `a=b,c=d`.
pub fn labels(map: &Value) -> String {
    let terms = map.as_object().into_iter().flatten().map(|(k, v)| format!("{k}={}", word(v)));
    let mut terms: Vec<String> = terms.collect();
    terms.sort();
    if terms.is_empty() { NONE.into() } else { terms.join(",") }
}

/// A label selector as `a=b,c in (d,e),!f`.
pub fn selector(selector: &Value) -> Value {
    let mut terms: Vec<(&str, String)> = Vec::new();
    for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
        terms.push((key, format!("{key}={}", word(value))));
    }
    for term in items(&selector["matchExpressions"]) {
        let key = word(&term["key"]);
        let mut values: Vec<&str> = items(&term["values"]).map(word).collect();
        values.sort_unstable();
        let text = match word(&term["operator"]) {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "Exists" => key.to_owned(),
            "DoesNotExist" => format!("!{key}"),
            _ => return "<error>".into(),
        };
        terms.push((key, text));
    }
    terms.sort_by_key(|(key, _)| *key);
    let text = terms.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(",");
    or(&text, NONE)
}

/// The access modes of a volume in short, in a fixed order.
pub fn access_modes(modes: &Value) -> String {
    let short =
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    joined(short.iter().filter(|(mode, _)| items(modes).any(|m| m == mode)).map(|(_, short)| *short), ",")
}

/// The condition of a type.
pub fn condition<'a>(status: &'a Value, kind: &str) -> Option<&'a Value> {
    items(&status["conditions"]).find(|c| c["type"] == kind)
}

/// Whether a condition is true.
pub fn is_true(status: &Value, kind: &str) -> bool {
    condition(status, kind).is_some_and(|c| c["status"] == "True")
}

/// A map's number of entries.
pub fn entries(value: &Value) -> usize {
    value.as_object().map_or(0, Map::len)
}

/// The name of an object; bookmarks have none.
pub fn name(object: &Value) -> Value {
    word(&object["metadata"]["name"]).into()
}

/// The age of an object.
pub fn age_of(object: &Value) -> Value {
    age(&object["metadata"]["creationTimestamp"]).into()
}

/// The time since a timestamp.
pub fn age(since: &Value) -> String {
    let Some(at) = seconds_of(since) else { return "<unknown>".into() };
    human_duration(jiff::Timestamp::now().as_second() - at)
}

/// A timestamp in seconds.
pub fn seconds_of(time: &Value) -> Option<i64> {
    time.as_str()?.parse::<jiff::Timestamp>().ok().map(|t| t.as_second())
}

/// A span as kubectl shows it: `5s`, `3m20s`, `5h3m`, `2d`, `3y40d` (apimachinery's `HumanDuration`).
pub fn human_duration(seconds: i64) -> String {
    let two = |n: i64, unit: &str, rest: i64, small: &str| {
        if rest == 0 { format!("{n}{unit}") } else { format!("{n}{unit}{rest}{small}") }
    };
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        s if s < -1 => "<invalid>".into(),
        s if s < 0 => "0s".into(),
        s if s < 120 => format!("{s}s"),
        s if minutes < 10 => two(minutes, "m", s % 60, "s"),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => two(hours, "h", minutes % 60, "m"),
        _ if hours < 48 => format!("{hours}h"),
        _ if hours < 192 => two(days, "d", hours % 24, "h"),
        _ if days < 730 => format!("{days}d"),
        _ if days < 2920 => two(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ages() {
        for (seconds, expected) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (200, "3m20s"),
            (600, "10m"),
            (3 * 3600, "3h"),
            (11000, "3h3m"),
            (86400 * 3, "3d"),
            (86400 * 400, "400d"),
            (86400 * 2516, "6y326d"),
        ] {
            assert_eq!(human_duration(seconds), expected, "{seconds}");
        }
        assert_eq!(age(&Value::Null), "<unknown>");
    }

    #[test]
    fn selectors_and_lists() {
        let terms = json!({"matchLabels": {"app": "web"}, "matchExpressions": [
            {"key": "app", "operator": "In", "values": ["web2", "web"]}, {"key": "a", "operator": "DoesNotExist"}]});
        assert_eq!(selector(&terms), "!a,app=web,app in (web,web2)");
        assert_eq!(selector(&json!({})), NONE);
        assert_eq!(selector(&json!({"matchExpressions": [{"key": "a", "operator": "Is"}]})), "<error>");
        let all = ["a", "b", "c", "d"].map(String::from);
        assert_eq!((cut(&all, 3, ","), cut(&all[..3], 3, ",")), ("a,b,c + 1 more...".into(), "a,b,c".into()));
        assert_eq!(access_modes(&json!(["ReadWriteMany", "ReadWriteOnce", "ReadWriteMany"])), "RWO,RWX");
        assert_eq!(labels(&json!({"b": "c", "a": ""})), "a=,b=c");
    }
}
