//! Patches: JSON patch (RFC 6902) and merge patch (RFC 7386), and objects as text after them. For strategic merge patches see
//! [`crate::strategic`].

use serde_json::Value;

use crate::operations;
use crate::protobuf;
use crate::schema::{Definition, Type, definition};
use crate::status::Status;

/// Applies a JSON patch. That it does not fit the object is told without its reason, as upstream does.
pub fn json(target: &mut Value, patch: &Value) -> Result<(), Status> {
    if let Some(why) = operations::malformed(patch) {
        return Err(Status::bad_request(format!("error decoding patch: {why}")));
    }
    let count = patch.as_array().map_or(0, Vec::len);
    if count > operations::MAX_OPERATIONS {
        let most = operations::MAX_OPERATIONS;
        return Err(Status::too_large(format!(
            "The allowed maximum operations in a JSON patch is {most}, got {count}"
        )));
    }
    operations::apply(target, patch).map_err(|operations::Unfit| Status::unfit_patch())
}

/// Applies a merge patch.
pub fn merge(target: &mut Value, patch: &Value) {
    operations::merge(target, patch);
}

/// The objects that a patch opens on its way: what is in them is written anew, the rest stays as it was.
#[derive(Default)]
pub struct Touched(std::collections::BTreeMap<String, Touched>);

impl Touched {
    /// What a merge patch opens.
    pub fn by_merge(target: &Value, patch: &Value) -> Self {
        let mut out = Self::default();
        if let (Value::Object(target), Value::Object(patch)) = (target, patch) {
            for (key, value) in patch.iter().filter(|(_, v)| v.is_object()) {
                if let Some(inner) = target.get(key).filter(|t| t.is_object()) {
                    out.0.insert(key.clone(), Self::by_merge(inner, value));
                }
            }
        }
        out
    }

    /// What a JSON patch opens.
    pub fn by_operations(patch: &Value) -> Self {
        let mut out = Self::default();
        let paths = patch.as_array().into_iter().flatten().flat_map(|op| [&op["path"], &op["from"]]);
        for path in paths.filter_map(Value::as_str) {
            let mut at = &mut out;
            let steps: Vec<String> =
                path.split('/').skip(1).map(|step| step.replace("~1", "/").replace("~0", "~")).collect();
            for step in steps.iter().take(steps.len().saturating_sub(1)) {
                at = at.0.entry(step.clone()).or_default();
            }
        }
        out
    }

    fn below(&self, key: &str) -> Option<&Self> {
        self.0.get(key)
    }
}

/// An object as the API's JSON has it after a patch: in the order of its type's fields, except for objects that the patch
/// opened, whose keys are sorted.
pub fn text(kind: Option<&Definition>, value: &Value, touched: Option<&Touched>) -> String {
    let mut out = String::new();
    write(kind, value, touched, &mut out);
    out
}

fn write(kind: Option<&Definition>, value: &Value, touched: Option<&Touched>, out: &mut String) {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            if let (None, Some(kind)) = (touched, kind) {
                // Kind and version come first.
                let rank = |key: &str| match key {
                    "kind" if kind.fields.contains_key("metadata") => 0,
                    "apiVersion" if kind.fields.contains_key("metadata") => 1,
                    _ => protobuf::place_of(kind.path, key).map_or(usize::MAX, |place| place + 2),
                };
                keys.sort_by_key(|key| rank(key));
            }
            out.push('{');
            for (index, key) in keys.into_iter().enumerate() {
                out.push_str(if index > 0 { "," } else { "" });
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push(':');
                let inner = kind.and_then(|k| k.fields.get(key.as_str())).and_then(|field| below(&field.kind));
                write(inner, &map[key], touched.and_then(|t| t.below(key)), out);
            }
            out.push('}');
        }
        Value::Array(list) => {
            out.push('[');
            for (index, item) in list.iter().enumerate() {
                out.push_str(if index > 0 { "," } else { "" });
                write(kind, item, touched.and_then(|t| t.below(&index.to_string())), out);
            }
            out.push(']');
        }
        other => out.push_str(&other.to_string()),
    }
}

fn below(kind: &Type) -> Option<&'static Definition> {
    match kind {
        Type::Object(path) => definition(path),
        Type::List(item) => below(item),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn json_patch_errors_are_told() {
        let mut object = json!({"a": 1});
        assert_eq!(json(&mut object, &json!([{"op": "remove", "path": "/b"}])).unwrap_err().code, 422);
        assert_eq!(json(&mut object, &json!({"op": "remove"})).unwrap_err().code, 400);
        json(&mut object, &json!([{"op": "replace", "path": "/a", "value": 2}])).unwrap();
        assert_eq!(object, json!({"a": 2}));
    }
}
