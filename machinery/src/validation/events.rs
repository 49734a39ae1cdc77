//! Events of both groups.

use serde_json::{Value, json};

use super::check::{Problems, or_empty};
use super::{has, text};

/// Longest parts of an event, bytes.
const MAX_REASON: usize = 128;
const MAX_NOTE: usize = 1024;

/// An event of the core group.
pub fn core(new: &Value, old: Option<&Value>, p: &mut Problems) {
    involved(new, "involvedObject", p);
    // One with a time of its own is held to the rules of the new group.
    if old.is_none() && has(new, "eventTime") {
        parts(new, ("reportingComponent", "reportingInstance"), p);
    }
}

fn involved(new: &Value, field: &str, p: &mut Problems) {
    let (namespace, object) = (text(&new["metadata"], "namespace"), &new[field]);
    let theirs = text(object, "namespace");
    let wrong = if theirs.is_empty() {
        // What has no namespace is told of in the default ones.
        !matches!(namespace, "default" | "kube-system" | "")
    } else {
        theirs != namespace
    };
    if wrong {
        p.invalid("involvedObject.namespace", &json!(theirs), "does not match event.namespace");
    }
}

/// What is told by whom.
fn parts(new: &Value, names: (&str, &str), p: &mut Problems) {
    let (controller, instance) = names;
    if text(new, controller).is_empty() {
        p.required(controller, "");
    }
    p.qualified_name(controller, text(new, controller));
    for (field, most) in [(instance, MAX_REASON), ("action", MAX_REASON), ("reason", MAX_REASON)] {
        if text(new, field).is_empty() {
            p.required(field, "");
        } else if text(new, field).len() > most {
            p.invalid(field, &json!(""), &format!("can have at most {most} characters"));
        }
    }
    let message = if has(new, "note") { "note" } else { "message" };
    if text(new, message).len() > MAX_NOTE {
        p.invalid("message", &json!(""), &format!("can have at most {MAX_NOTE} characters"));
    }
}

/// An event of the new group.
pub fn new_style(new: &Value, old: Option<&Value>, p: &mut Problems) {
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
        parts(new, ("reportingController", "reportingInstance"), p);
    }
    let series = &new["series"];
    if series.is_object() {
        if series["count"].as_i64().unwrap_or(0) < 2 {
            p.invalid("series.count", &json!(""), "should be at least 2");
        }
        if !has(series, "lastObservedTime") {
            p.required("series.lastObservedTime", "");
        }
    }
    let Some(old) = old else { return };
    for (field, core) in [
        ("regarding", "involvedObject"),
        ("reason", "reason"),
        ("note", "message"),
        ("deprecatedSource", "source"),
        ("deprecatedFirstTimestamp", "firstTimestamp"),
        ("deprecatedLastTimestamp", "lastTimestamp"),
        ("deprecatedCount", "count"),
        // Upstream looks at this one twice, and tells it twice.
        ("reason", "reason"),
        ("reportingController", "reportingController"),
        ("reportingInstance", "reportingInstance"),
        ("eventTime", "eventTime"),
        ("action", "action"),
        ("type", "type"),
        ("related", "related"),
    ] {
        if new[field] != old[field] {
            p.invalid(core, &or_empty(&new[field]), "field is immutable");
        }
    }
}
