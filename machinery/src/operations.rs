//! JSON patches (RFC 6902) as the API applies them. Where the RFC is strict the API is not: indexes may be negative, a
//! missing value is null, a key that is replaced need not be there.

use serde_json::Value;

/// Most operations of a patch (upstream's limit).
pub const MAX_OPERATIONS: usize = 10_000;
/// Most that the operations of a patch copy, bytes of JSON (upstream's limit): each copy may hold all copies before it.
const MAX_COPIED_BYTES: usize = 3 << 20;
/// Fields of an operation.
const FIELDS: &[&str] = &["op", "path", "from", "value"];

/// What is wrong with the form of a patch, in the words of the API's decoder.
pub fn malformed(patch: &Value) -> Option<String> {
    let name = |value: &Value| match value {
        Value::Object(_) => "object",
        Value::String(_) => "string",
        Value::Bool(_) => "bool",
        Value::Array(_) => "array",
        _ => "number",
    };
    let operations = match patch {
        Value::Array(operations) => operations,
        // No operations.
        Value::Null => return None,
        _ => {
            return Some(format!(
                "json: cannot unmarshal {} into Go value of type []handlers.jsonPatchOp",
                name(patch)
            ));
        }
    };
    for operation in operations.iter().filter(|o| !o.is_null()) {
        let Some(fields) = operation.as_object() else {
            let found = name(operation);
            return Some(format!("json: cannot unmarshal {found} into Go value of type handlers.jsonPatchOp"));
        };
        for key in &FIELDS[..3] {
            if let Some(value) = fields.get(*key).filter(|v| !v.is_string() && !v.is_null()) {
                let found = name(value);
                return Some(format!(
                    "json: cannot unmarshal {found} into Go struct field jsonPatchOp.{key} of type string"
                ));
            }
        }
    }
    None
}

/// Fields that operations do not have, as they are told: `[0].valeu`.
pub fn unknown_fields(patch: &Value) -> Vec<String> {
    let mut out = Vec::new();
    for (index, operation) in patch.as_array().into_iter().flatten().enumerate() {
        let keys = operation.as_object().into_iter().flatten().map(|(key, _)| key);
        out.extend(keys.filter(|key| !FIELDS.contains(&key.as_str())).map(|key| format!("[{index}].{key}")));
    }
    out
}

/// An operation does not fit the document.
#[derive(Debug, PartialEq, Eq)]
pub struct Unfit;

/// Applies the operations in order; the document is undefined after an error.
pub fn apply(document: &mut Value, patch: &Value) -> Result<(), Unfit> {
    let mut copied = 0;
    for operation in patch.as_array().into_iter().flatten() {
        let path = operation["path"].as_str().ok_or(Unfit)?;
        match operation["op"].as_str().ok_or(Unfit)? {
            "add" => add(document, path, operation["value"].clone())?,
            "remove" => {
                take(document, path)?;
            }
            "replace" => replace(document, path, operation["value"].clone())?,
            "move" => {
                let value = take(document, operation["from"].as_str().ok_or(Unfit)?)?;
                add(document, path, value)?;
            }
            "copy" => {
                let value = get(document, operation["from"].as_str().ok_or(Unfit)?)?.cloned().unwrap_or_default();
                copied += size(&value);
                if copied > MAX_COPIED_BYTES {
                    return Err(Unfit);
                }
                add(document, path, value)?;
            }
            "test" => test(document, path, &operation["value"])?,
            _ => return Err(Unfit),
        }
    }
    Ok(())
}

/// How long a value is as JSON, bytes.
fn size(value: &Value) -> usize {
    let text = |text: &str| text.len() + 2;
    let commas = |count: usize| count.saturating_sub(1) + 2;
    match value {
        Value::Null => 4,
        Value::Bool(value) => 5 - usize::from(*value),
        Value::Number(number) => number.to_string().len(),
        Value::String(value) => text(value),
        Value::Array(list) => commas(list.len()) + list.iter().map(size).sum::<usize>(),
        Value::Object(map) => {
            commas(map.len()) + map.iter().map(|(key, value)| text(key) + 1 + size(value)).sum::<usize>()
        }
    }
}

/// The object or list that holds what a path names, and the last part of the path.
fn holder<'a>(document: &'a mut Value, path: &str) -> Result<(&'a mut Value, String), Unfit> {
    let (parents, last) = split(path)?;
    let mut at = document;
    for part in parents {
        at = match at {
            Value::Object(map) => map.get_mut(&part),
            Value::Array(list) => index(&part, list.len(), list.len()).ok().and_then(|i| list.get_mut(i)),
            _ => None,
        }
        .ok_or(Unfit)?;
    }
    Ok((at, last))
}

/// The parts of a path before the last one, and the last one.
fn split(path: &str) -> Result<(Vec<String>, String), Unfit> {
    let mut parts: Vec<String> = path.split('/').skip(1).map(|p| p.replace("~1", "/").replace("~0", "~")).collect();
    let last = parts.pop().ok_or(Unfit)?;
    Ok((parts, last))
}

/// A place in a list of `length`; negative ones count from `end`.
fn index(text: &str, length: usize, end: usize) -> Result<usize, Unfit> {
    let number: i64 = text.parse().map_err(|_| Unfit)?;
    let number = if number < 0 { number + i64::try_from(end).map_err(|_| Unfit)? } else { number };
    usize::try_from(number).ok().filter(|n| *n < length).ok_or(Unfit)
}

fn add(document: &mut Value, path: &str, value: Value) -> Result<(), Unfit> {
    match holder(document, path)? {
        (Value::Object(map), key) => {
            map.insert(key, value);
        }
        (Value::Array(list), key) if key == "-" => list.push(value),
        (Value::Array(list), key) => {
            let at = index(&key, list.len() + 1, list.len() + 1)?;
            list.insert(at, value);
        }
        _ => return Err(Unfit),
    }
    Ok(())
}

fn take(document: &mut Value, path: &str) -> Result<Value, Unfit> {
    match holder(document, path)? {
        (Value::Object(map), key) => map.remove(&key).ok_or(Unfit),
        (Value::Array(list), key) => {
            let at = index(&key, list.len(), list.len())?;
            Ok(list.remove(at))
        }
        _ => Err(Unfit),
    }
}

fn replace(document: &mut Value, path: &str, value: Value) -> Result<(), Unfit> {
    if path.is_empty() {
        if !value.is_object() && !value.is_array() {
            return Err(Unfit);
        }
        *document = value;
        return Ok(());
    }
    match holder(document, path)? {
        (Value::Object(map), key) => {
            map.insert(key, value);
        }
        (Value::Array(list), key) => {
            let at = index(&key, list.len(), list.len())?;
            list[at] = value;
        }
        _ => return Err(Unfit),
    }
    Ok(())
}

/// What a path names: `None` for a key that an object does not have.
fn get<'a>(document: &'a Value, path: &str) -> Result<Option<&'a Value>, Unfit> {
    let (parents, last) = split(path)?;
    let step = |at: &'a Value, part: &str| match at {
        Value::Object(map) => Ok(map.get(part)),
        Value::Array(list) => index(part, list.len(), list.len()).map(|i| list.get(i)),
        _ => Err(Unfit),
    };
    let mut at = document;
    for part in parents {
        at = step(at, &part)?.ok_or(Unfit)?;
    }
    step(at, &last)
}

fn test(document: &Value, path: &str, expected: &Value) -> Result<(), Unfit> {
    let found = if path.is_empty() { Some(document) } else { get(document, path)? };
    let same = match found {
        None | Some(Value::Null) => expected.is_null(),
        Some(found) => found == expected,
    };
    if same { Ok(()) } else { Err(Unfit) }
}

/// Applies a merge patch (RFC 7386). Unlike there, null fields go from the objects of a new list, too, unless it takes the
/// place of an object.
pub fn merge(target: &mut Value, patch: &Value) {
    match (&mut *target, patch) {
        (Value::Object(map), Value::Object(patch)) => {
            for (key, value) in patch {
                match map.get_mut(key) {
                    _ if value.is_null() => {
                        map.remove(key);
                    }
                    Some(current) if !current.is_null() => merge(current, value),
                    _ => {
                        map.insert(key.clone(), without_nulls(value));
                    }
                }
            }
        }
        (Value::Object(_), patch) => *target = patch.clone(),
        (_, patch) => *target = without_nulls(patch),
    }
}

/// A value without the null fields of its objects; null items of lists stay.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(key, value)| (key.clone(), without_nulls(value))).collect())
        }
        Value::Array(list) => Value::Array(list.iter().map(without_nulls).collect()),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn operations_fit_as_the_api_has_them() {
        let start = json!({"a": {"b": 1}, "l": [1, 2, 3]});
        for (operation, expected) in [
            (
                json!({"op": "replace", "path": "/a/new", "value": 2}),
                Some(json!({"a": {"b": 1, "new": 2}, "l": [1, 2, 3]})),
            ),
            (json!({"op": "add", "path": "/a/none"}), Some(json!({"a": {"b": 1, "none": null}, "l": [1, 2, 3]}))),
            (json!({"op": "remove", "path": "/l/-1"}), Some(json!({"a": {"b": 1}, "l": [1, 2]}))),
            (json!({"op": "add", "path": "/l/-1", "value": 9}), Some(json!({"a": {"b": 1}, "l": [1, 2, 3, 9]}))),
            (json!({"op": "add", "path": "/l/-", "value": 4}), Some(json!({"a": {"b": 1}, "l": [1, 2, 3, 4]}))),
            (json!({"op": "add", "path": "/l/0", "value": 0}), Some(json!({"a": {"b": 1}, "l": [0, 1, 2, 3]}))),
            (json!({"op": "move", "from": "/a/b", "path": "/l/1"}), Some(json!({"a": {}, "l": [1, 1, 2, 3]}))),
            (
                json!({"op": "copy", "from": "/a", "path": "/c"}),
                Some(json!({"a": {"b": 1}, "c": {"b": 1}, "l": [1, 2, 3]})),
            ),
            (json!({"op": "test", "path": "/a/none", "value": null}), Some(start.clone())),
            (json!({"op": "test", "path": "/a", "value": {"b": 1}}), Some(start.clone())),
            (json!({"op": "test", "path": "/a/b", "value": 2}), None),
            (json!({"op": "test", "path": "/a/b"}), None),
            (json!({"op": "remove", "path": "/a/none"}), None),
            (json!({"op": "replace", "path": "/l/3", "value": 2}), None),
            (json!({"op": "add", "path": "/x/y", "value": 2}), None),
            (json!({"op": "add", "path": "", "value": 2}), None),
            (json!({"op": "jump", "path": "/a"}), None),
            (json!({"op": "add"}), None),
        ] {
            let mut document = start.clone();
            let told = apply(&mut document, &json!([operation.clone()]));
            assert_eq!(told.is_ok(), expected.is_some(), "{operation}");
            if let Some(expected) = expected {
                assert_eq!(document, expected, "{operation}");
            }
        }
    }

    #[test]
    fn patches_of_another_form_are_told() {
        for (patch, expected) in [
            (json!({}), Some("json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp")),
            (json!(["x"]), Some("json: cannot unmarshal string into Go value of type handlers.jsonPatchOp")),
            (
                json!([{"op": 1}]),
                Some("json: cannot unmarshal number into Go struct field jsonPatchOp.op of type string"),
            ),
            (json!([{"op": "add", "valeu": 1}]), None),
            (json!(null), None),
        ] {
            assert_eq!(malformed(&patch).as_deref(), expected);
        }
        assert_eq!(unknown_fields(&json!([{"op": "add"}, {"valeu": 1}])), ["[1].valeu"]);
    }

    #[test]
    fn copies_do_not_grow_without_end() {
        let double: Vec<Value> =
            (0..30).map(|i| json!({"op": "copy", "from": "/a", "path": format!("/a/{i}")})).collect();
        assert_eq!(apply(&mut json!({"a": {"b": "x"}}), &json!(double)), Err(Unfit));
        assert_eq!(apply(&mut json!({"a": {"b": "x"}}), &json!(double[..10])), Ok(()));
        for value in [json!(null), json!(true), json!(false), json!([1, "a", {}]), json!({"a": [], "b": {"c": -1.5}})] {
            assert_eq!(size(&value), value.to_string().len(), "{value}");
        }
    }

    #[test]
    fn merge_patches_take_nulls_out_of_new_lists() {
        for (before, patch, after) in [
            (
                json!({"l": [1]}),
                json!({"l": [{"a": null, "b": [{"c": null}]}, null]}),
                json!({"l": [{"b": [{}]}, null]}),
            ),
            (json!({}), json!({"l": [{"a": null}]}), json!({"l": [{}]})),
            (json!({"l": null}), json!({"l": {"a": null}}), json!({"l": {}})),
            (json!({"l": {"a": 1}}), json!({"l": [{"a": null}]}), json!({"l": [{"a": null}]})),
        ] {
            let mut object = before.clone();
            merge(&mut object, &patch);
            assert_eq!(object, after, "{before} {patch}");
        }
    }

    #[test]
    fn merge_patches() {
        let mut object = json!({"a": {"b": 1, "c": 2}, "d": [1]});
        merge(&mut object, &json!({"a": {"b": null, "e": {"f": null}}, "d": {"x": 1}}));
        assert_eq!(object, json!({"a": {"c": 2, "e": {}}, "d": {"x": 1}}));
    }

    proptest::proptest! {
        #[test]
        fn no_path_goes_astray(path: String, from: String, op in "add|remove|replace|move|copy|test") {
            let mut document = json!({"a": {"b": [1, {"c": 2}]}, "": [[]]});
            let _ = apply(&mut document, &json!([{"op": op, "path": path, "from": from, "value": [1]}]));
        }

        #[test]
        fn what_is_added_is_there(key in "[a-z/~]{0,6}", value: i64) {
            let mut document = json!({"a": {}});
            let path = format!("/a/{}", key.replace('~', "~0").replace('/', "~1"));
            let patch = json!([{"op": "add", "path": &path, "value": value}, {"op": "test", "path": &path, "value": value}]);
            proptest::prop_assert_eq!(apply(&mut document, &patch), Ok(()));
            proptest::prop_assert_eq!(&document["a"][&key], &json!(value));
        }
    }
}
