//! Conversions between versions of a kind.

use serde_json::Value;

use crate::resource::ResourceDef;

/// An object in another version of its kind; `None` if there is no way there.
pub fn convert(object: &Value, to: &ResourceDef) -> Option<Value> {
    let from = object.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
    (from == to.api_version() || from.is_empty()).then(|| object.clone())
}
