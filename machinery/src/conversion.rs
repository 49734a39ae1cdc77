//! Conversions between versions of a kind, and the version in which a kind is stored.

use std::borrow::Cow;

use serde_json::Value;

use crate::resource::ResourceDef;
use crate::{events, resources, scaling};

/// An object in another version of its kind; `None` if there is no way there.
pub fn convert(object: &Value, to: &ResourceDef) -> Option<Value> {
    let from = object.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
    match (from, to.api_version().as_str()) {
        ("autoscaling/v1", "autoscaling/v2") => Some(scaling::to_v2(object)),
        ("autoscaling/v2", "autoscaling/v1") => Some(scaling::to_v1(object)),
        ("v1", "events.k8s.io/v1") => Some(events::to_new(object)),
        ("events.k8s.io/v1", "v1") => Some(events::to_core(object)),
        (from, to) => (from == to || from.is_empty()).then(|| object.clone()),
    }
}

/// Annotations in which a version of a kind keeps what it has no fields for.
pub fn version_annotations(api_version: &str, kind: &str) -> &'static [&'static str] {
    match (api_version, kind) {
        ("autoscaling/v1", "HorizontalPodAutoscaler") => scaling::ANNOTATIONS,
        ("apps/v1", "DaemonSet") => &[crate::prepare::TEMPLATE_GENERATION],
        _ => &[],
    }
}

/// The row in whose version a kind is stored, if that is another.
pub fn stored_row(def: &ResourceDef) -> Option<&'static ResourceDef> {
    match (def.group, def.version, def.plural) {
        ("autoscaling", "v1", plural) => resources::find("autoscaling", "v2", plural),
        ("events.k8s.io", _, plural) => resources::find("", "v1", plural),
        _ => None,
    }
}

/// An object as it is stored.
pub fn to_stored<'a>(def: &ResourceDef, object: &'a Value) -> Cow<'a, Value> {
    match stored_row(def).and_then(|row| convert(object, row)) {
        Some(converted) => Cow::Owned(converted),
        None => Cow::Borrowed(object),
    }
}

/// A stored object in the version of a row.
pub fn from_stored(def: &ResourceDef, object: Value) -> Value {
    match stored_row(def) {
        Some(_) => convert(&object, def).unwrap_or(object),
        None => object,
    }
}
