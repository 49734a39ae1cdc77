//! Events of both groups.

use serde_json::{Value, json};

use super::check::{Problems, or_empty};
use super::{has, text};
use crate::shown;

/// Longest parts of an event, bytes.
const MAX_REASON: usize = 128;
const MAX_NOTE: usize = 1024;

/// What is never changed of an event of the new group: its name there, its name in a message, and its form
/// ([`shown::formed`]).
const UNCHANGED: &[(&str, &str, &str)] = &[
    ("regarding", "involvedObject", "ObjectReference"),
    ("reason", "reason", "s"),
    ("note", "message", "s"),
    ("deprecatedSource", "source", "EventSource"),
    ("deprecatedFirstTimestamp", "firstTimestamp", "t"),
    ("deprecatedLastTimestamp", "lastTimestamp", "t"),
    ("deprecatedCount", "count", "i"),
    // Upstream looks at this one twice, and tells it twice.
    ("reason", "reason", "s"),
    ("reportingController", "reportingController", "s"),
    ("reportingInstance", "reportingInstance", "s"),
    ("eventTime", "eventTime", "t"),
    ("action", "action", "s"),
    ("type", "type", "s"),
    ("related", "related", "ObjectReference?"),
];

/// An event of the core group.
pub fn core(new: &Value, p: &mut Problems) {
    either(new, "involvedObject", "reportingComponent", p);
}

/// What holds for events of both groups, whenever they are written. One with a time of its own has to say by whom it is
/// told, but may tell of what is in another namespace.
fn either(new: &Value, about: &str, controller: &str, p: &mut Problems) {
    let (namespace, theirs) = (text(&new["metadata"], "namespace"), text(&new[about], "namespace"));
    let timed = has(new, "eventTime");
    let wrong = match (theirs, timed) {
        // What has no namespace is told of in the default ones.
        ("", true) => !matches!(namespace, "default" | "kube-system"),
        ("", false) => !matches!(namespace, "default" | ""),
        (_, true) => false,
        (_, false) => theirs != namespace,
    };
    if wrong {
        p.invalid("involvedObject.namespace", &json!(theirs), "does not match event.namespace");
    }
    if timed {
        parts(new, controller, p);
    }
}

/// What is told by whom.
fn parts(new: &Value, controller: &str, p: &mut Problems) {
    if text(new, controller).is_empty() {
        p.required(controller, "");
    }
    p.qualified_name(controller, text(new, controller));
    for field in ["reportingInstance", "action", "reason"] {
        if text(new, field).is_empty() {
            p.required(field, "");
        } else if text(new, field).len() > MAX_REASON {
            p.invalid(field, &json!(""), &format!("can have at most {MAX_REASON} characters"));
        }
    }
    let message = if has(new, "note") { "note" } else { "message" };
    if text(new, message).len() > MAX_NOTE {
        p.invalid("message", &json!(""), &format!("can have at most {MAX_NOTE} characters"));
    }
}

/// An event of the new group.
pub fn new_style(new: &Value, old: Option<&Value>, p: &mut Problems) {
    either(new, "regarding", "reportingController", p);
    let series = &new["series"];
    if series.is_object() && old.is_none_or(|old| old["series"] != *series) {
        if series["count"].as_i64().unwrap_or(0) < 2 {
            p.invalid("series.count", &json!(""), "should be at least 2");
        }
        if !has(series, "lastObservedTime") {
            p.required("series.lastObservedTime", "");
        }
    }
    if old.is_none() {
        if !has(new, "eventTime") {
            p.required("eventTime", "");
        }
        if !matches!(text(new, "type"), "Normal" | "Warning") {
            p.invalid("type", &json!(""), &format!("has invalid value: {}", text(new, "type")));
        }
        for (field, core) in [
            ("deprecatedFirstTimestamp", "firstTimestamp"),
            ("deprecatedLastTimestamp", "lastTimestamp"),
            ("deprecatedCount", "count"),
            ("deprecatedSource", "source"),
        ] {
            let set = match &new[field] {
                Value::Object(map) => !map.is_empty(),
                Value::Number(n) => n.as_i64() != Some(0),
                other => !other.is_null(),
            };
            if set {
                p.invalid(core, &json!(""), "needs to be unset");
            }
        }
    }
    let Some(old) = old else { return };
    for (field, core, form) in UNCHANGED {
        let [shown, before] = [new, old].map(|event| shown::formed(form, event.get(*field)));
        if shown == before {
            continue;
        }
        if *form == "s" {
            p.invalid(*core, &or_empty(&new[*field]), "field is immutable");
        } else {
            p.invalid_shown(*core, &shown, "field is immutable");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(check: impl Fn(&mut Problems)) -> Vec<String> {
        let mut problems = Problems::default();
        check(&mut problems);
        problems.0.into_iter().map(|cause| cause.field).collect()
    }

    #[test]
    fn namespaces_of_what_is_told_of() {
        for (namespace, theirs, timed, good) in [
            ("e", "e", false, true),
            ("e", "other", false, false),
            ("e", "", false, false),
            ("default", "", false, true),
            ("kube-system", "", false, false),
            ("e", "other", true, true),
            ("e", "", true, false),
            ("default", "", true, true),
            ("kube-system", "", true, true),
        ] {
            let mut event = json!({"metadata": {"namespace": namespace}, "involvedObject": {"namespace": theirs}});
            if timed {
                let told = json!({"eventTime": "2026-01-01T00:00:00.000000Z", "reportingComponent": "c",
                    "reportingInstance": "i", "action": "a", "reason": "r"});
                event.as_object_mut().unwrap().extend(told.as_object().unwrap().clone());
            }
            let expected: &[&str] = if good { &[] } else { &["involvedObject.namespace"] };
            assert_eq!(wrong(|p| core(&event, p)), expected, "{namespace} {theirs} {timed}");
        }
    }

    #[test]
    fn who_tells_is_asked_of_events_with_a_time() {
        let event = json!({"metadata": {"namespace": "default"}, "type": "Normal"});
        assert_eq!(wrong(|p| new_style(&event, None, p)), ["eventTime"]);
        let timed = json!({"metadata": {"namespace": "default"}, "eventTime": "2026-01-01T00:00:00.000000Z",
            "reportingComponent": "c", "reportingInstance": "i", "action": "a"});
        // Whenever it is written.
        assert_eq!(wrong(|p| core(&timed, p)), ["reason"]);
    }

    #[test]
    fn a_series_is_looked_at_when_it_changes() {
        let event = |count: u64| {
            json!({"metadata": {"namespace": "default"}, "eventTime": "2026-01-01T00:00:00.000000Z", "type": "Normal",
                "reportingController": "c", "reportingInstance": "i", "action": "a", "reason": "r",
                "series": {"count": count, "lastObservedTime": "2026-01-01T00:00:00.000000Z"}})
        };
        assert_eq!(wrong(|p| new_style(&event(1), Some(&event(1)), p)), [""; 0]);
        assert_eq!(wrong(|p| new_style(&event(1), Some(&event(2)), p)), ["series.count"]);
    }

    #[test]
    fn the_series_comes_before_what_a_new_event_needs() {
        let event = json!({"metadata": {"namespace": "default"}, "series": {"count": 1}});
        let expected = ["series.count", "series.lastObservedTime", "eventTime", "type"];
        assert_eq!(wrong(|p| new_style(&event, None, p)), expected);
    }

    #[test]
    fn what_is_changed_is_shown_as_upstream_holds_it() {
        let old = json!({"metadata": {"namespace": "default"}, "eventTime": "2026-01-01T00:00:00.000000Z",
            "type": "Normal", "reportingController": "c", "reportingInstance": "i", "action": "a", "reason": "r",
            "regarding": {"kind": "Pod", "name": "a"}, "deprecatedSource": {}});
        let mut new = old.clone();
        new["regarding"]["name"] = json!("b");
        new["related"] = json!({"kind": "<Q>"});
        new["deprecatedSource"]["host"] = json!("h");
        new["deprecatedCount"] = json!(2);
        let mut problems = Problems::default();
        new_style(&new, Some(&old), &mut problems);
        let told: Vec<_> = problems.0.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
        let reference = |kind, name| {
            format!(
                r#"{{"Kind":"{kind}","Namespace":"","Name":"{name}","UID":"","APIVersion":"","ResourceVersion":"","FieldPath":""}}"#
            )
        };
        let immutable = |field, value: &str| format!("{field}: Invalid value: {value}: field is immutable");
        assert_eq!(
            told,
            [
                immutable("involvedObject", &reference("Pod", "b")),
                immutable("source", r#"{"Component":"","Host":"h"}"#),
                immutable("count", "2"),
                immutable("related", &reference(r"\u003cQ\u003e", "")),
            ]
        );
    }
}
