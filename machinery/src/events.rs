//! Events of the core group and of `events.k8s.io`: one stored kind, two names for its fields.

use serde_json::{Map, Value};

/// Fields of a core event with their names in the other group.
const NAMES: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
    ("reportingInstance", "reportingInstance"),
];
/// What is always written in one group only.
const EMPTY_CORE: &[&str] = &["reportingComponent", "reportingInstance"];

/// A core event in the new group.
pub fn to_new(object: &Value) -> Value {
    let mut out =
        renamed(object, "events.k8s.io/v1", |key| NAMES.iter().find(|(old, _)| *old == key).map(|(_, new)| *new));
    // Empty texts are not written there.
    for (_, new) in NAMES.iter().filter(|(old, _)| EMPTY_CORE.contains(old)) {
        if out.get(*new).is_some_and(|v| v == "") {
            out.remove(*new);
        }
    }
    Value::Object(out)
}

/// An event of the new group in the core group.
pub fn to_core(object: &Value) -> Value {
    let mut out = renamed(object, "v1", |key| NAMES.iter().find(|(_, new)| *new == key).map(|(old, _)| *old));
    for field in EMPTY_CORE {
        out.entry(*field).or_insert_with(|| "".into());
    }
    Value::Object(out)
}

fn renamed(object: &Value, version: &str, name: impl Fn(&str) -> Option<&'static str>) -> Map<String, Value> {
    let fields = object.as_object().into_iter().flatten();
    let mut out: Map<String, Value> =
        fields.map(|(key, value)| (name(key).unwrap_or(key).to_owned(), value.clone())).collect();
    out.insert("apiVersion".into(), version.into());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_groups_say_the_same() {
        let core = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "involvedObject": {"kind": "Pod"},
            "message": "m", "reason": "r", "count": 2, "reportingComponent": "", "reportingInstance": ""});
        let new = to_new(&core);
        assert_eq!(new["regarding"], json!({"kind": "Pod"}));
        assert_eq!((new["note"].as_str(), new.get("reportingController")), (Some("m"), None));
        assert_eq!(to_core(&new), core);
    }
}
