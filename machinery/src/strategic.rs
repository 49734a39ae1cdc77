//! Strategic merge patches: merge patches that know which lists are merged and by which key. A list's directives are
//! `$patch` (delete, replace, merge) in its items, `$setElementOrder/<field>`, `$deleteFromPrimitiveList/<field>` and
//! `$retainKeys` beside it.

use serde_json::{Map, Value};

use crate::fields;
use crate::schema::{Definition, PatchStrategy, Type, definition};
use crate::status::Status;

const DIRECTIVE: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const ORDER: &str = "$setElementOrder/";
const DELETE_VALUES: &str = "$deleteFromPrimitiveList/";

/// Applies a patch to an object of a type; of a free-form one if the type is unknown.
pub fn apply(kind: Option<&Definition>, target: &mut Value, patch: &Value) -> Result<(), Status> {
    let Value::Object(patch) = patch else {
        return Err(Status::bad_request("a strategic merge patch is an object"));
    };
    let original = target.as_object().cloned().unwrap_or_default();
    *target = Value::Object(merge_maps(kind, original, patch.clone())?);
    Ok(())
}

fn bad(what: &str) -> Status {
    Status::bad_request(format!("invalid patch format of {what}"))
}

/// The type below a field, if it is an object or a list of them.
fn below(kind: Option<&Definition>, field: &str) -> Option<&'static Definition> {
    match &kind?.fields.get(field)?.kind {
        Type::Object(path) => definition(path),
        Type::List(item) => match &**item {
            Type::Object(path) => definition(path),
            _ => None,
        },
        _ => None,
    }
}

fn strategy(kind: Option<&Definition>, field: &str) -> PatchStrategy {
    kind.and_then(|k| k.fields.get(field)).map_or(PatchStrategy::Replace, |f| f.patch)
}

fn merge_maps(
    kind: Option<&Definition>,
    mut original: Map<String, Value>,
    mut patch: Map<String, Value>,
) -> Result<Map<String, Value>, Status> {
    if let Some(directive) = patch.remove(DIRECTIVE) {
        return match directive.as_str() {
            Some("replace") => plain_map(&patch),
            Some("delete") => Ok(Map::new()),
            _ => {
                patch.insert(DIRECTIVE.into(), directive.clone());
                Err(unknown_directive(&directive, &patch))
            }
        };
    }
    retain_keys(&mut original, &mut patch)?;
    set_orders(kind, &mut original, &mut patch)?;
    for (key, value) in patch {
        let (key, delete) = match key.strip_prefix(DELETE_VALUES) {
            Some(field) => (field.to_owned(), true),
            None => (key, false),
        };
        if value.is_null() {
            original.remove(&key);
            continue;
        }
        let merged = match (original.remove(&key), value) {
            (None, value) if delete => {
                let _ = value;
                continue;
            }
            (Some(Value::Object(old)), Value::Object(new)) => Value::Object(merge_maps(below(kind, &key), old, new)?),
            (Some(Value::Array(old)), Value::Array(new)) if delete => {
                Value::Array(old.into_iter().filter(|item| !new.contains(item)).collect())
            }
            (Some(Value::Array(old)), Value::Array(new)) => merge_field(kind, &key, old, new)?,
            (Some(old), _) if delete => old,
            (_, value) => plain(&value)?,
        };
        original.insert(key, merged);
    }
    Ok(original)
}

fn merge_field(kind: Option<&Definition>, key: &str, old: Vec<Value>, new: Vec<Value>) -> Result<Value, Status> {
    Ok(match strategy(kind, key) {
        // As it is: directives mean nothing there, and are told as unknown fields.
        PatchStrategy::Replace => Value::Array(new),
        strategy => {
            alike(&old, &new)?;
            match strategy {
                PatchStrategy::MergeBy(by) => Value::Array(merge_items(below(kind, key), by, old, new)?),
                _ => Value::Array(merge_values(old, new)),
            }
        }
    })
}

/// Lists that are merged have items of one type, which is no list.
fn alike(old: &[Value], new: &[Value]) -> Result<(), Status> {
    let mut items = old.iter().chain(new);
    let Some(first) = items.next() else { return Ok(()) };
    if first.is_array() {
        return Err(Status::unfit_patch());
    }
    if items.any(|item| go_type(item) != go_type(first)) {
        let lists = [old, new].map(|list| go_value(&Value::Array(list.to_vec())));
        return Err(Status::unknown(format!("list element types are not identical: [{}]", lists.join(" "))));
    }
    Ok(())
}

/// The name of a value's type in Go, as it is printed where a type is wanted.
fn go_type(value: &Value) -> &'static str {
    if value.is_null() { "%!s(<nil>)" } else { fields::go_type(value) }
}

/// The refusal of a value where a list belongs.
fn no_list(value: &Value) -> Status {
    Status::unknown(format!("expected a []interface {{}}, but received a {}", go_type(value)))
}

fn unknown_directive(directive: &Value, map: &Map<String, Value>) -> Status {
    let shown = go_value(&Value::Object(map.clone()));
    Status::unknown(format!("unknown patch type: {} in map: {shown}", go_value(directive)))
}

/// Keys of the original that the patch does not retain go.
fn retain_keys(original: &mut Map<String, Value>, patch: &mut Map<String, Value>) -> Result<(), Status> {
    let Some(keys) = patch.remove(RETAIN) else { return Ok(()) };
    let Value::Array(keys) = keys else { return Err(bad("retainKeys")) };
    let kept = |key: &str| keys.iter().any(|k| k == key);
    // What the patch sets it must retain.
    let sets = patch.iter().filter(|(key, value)| !value.is_null() && !key.starts_with('$'));
    if sets.into_iter().any(|(key, _)| !kept(key)) {
        return Err(bad("retainKeys"));
    }
    original.retain(|key, _| kept(key));
    Ok(())
}

/// Lists whose order the patch says, merged and sorted.
fn set_orders(
    kind: Option<&Definition>,
    original: &mut Map<String, Value>,
    patch: &mut Map<String, Value>,
) -> Result<(), Status> {
    let orders: Vec<String> = patch.keys().filter(|key| key.starts_with(ORDER)).cloned().collect();
    for key in orders {
        let order = match patch.remove(&key) {
            Some(Value::Array(order)) => order,
            other => return Err(no_list(&other.unwrap_or_default())),
        };
        let field = key.strip_prefix(ORDER).unwrap_or_default().to_owned();
        let by = match strategy(kind, &field) {
            PatchStrategy::MergeBy(by) => by,
            _ => "",
        };
        let changes = match patch.remove(&field) {
            Some(Value::Array(list)) => Some(list),
            Some(other) => return Err(no_list(&other)),
            None => None,
        };
        let before = match original.get(&field) {
            Some(Value::Array(list)) => Some(list.clone()),
            Some(other) => return Err(no_list(other)),
            None => None,
        };
        if let Some(changes) = &changes {
            check_order(changes, &order, by)?;
        }
        let merged = match (before.clone(), changes) {
            (None, None) => continue,
            (Some(list), None) => list,
            (None, Some(new)) => list_of(plain(&Value::Array(new))?),
            (Some(old), Some(new)) => list_of(merge_field(kind, &field, old, new)?),
        };
        let (named, others): (Vec<Value>, Vec<Value>) =
            merged.into_iter().partition(|item| position(&order, item, by).is_some());
        let sorted = in_order(named, others, &order, &before.unwrap_or_default(), by);
        original.insert(field, Value::Array(sorted));
    }
    Ok(())
}

fn list_of(value: Value) -> Vec<Value> {
    match value {
        Value::Array(list) => list,
        _ => Vec::new(),
    }
}

/// What a patch changes stands in its order list, in the same order.
fn check_order(changes: &[Value], order: &[Value], by: &str) -> Result<(), Status> {
    let mut at = 0;
    for item in changes.iter().filter(|item| item.get(DIRECTIVE).is_none()) {
        match position(&order[at.min(order.len())..], item, by) {
            Some(found) => at += found + 1,
            None => {
                let items: Vec<Value> = changes.iter().filter(|i| i.get(DIRECTIVE).is_none()).cloned().collect();
                return Err(Status::unknown(format!(
                    "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
                    go_value(&Value::Array(items)),
                    go_value(&Value::Array(order.to_vec()))
                )));
            }
        }
    }
    Ok(())
}

/// Where an item is in a list: by its key, or by its value.
fn position(list: &[Value], item: &Value, by: &str) -> Option<usize> {
    list.iter().position(|other| if by.is_empty() { other == item } else { other.get(by) == item.get(by) })
}

/// Items that the patch names in its order, among the others in the original's order; where both lists know two items, the
/// original's order counts.
fn in_order(mut named: Vec<Value>, mut others: Vec<Value>, order: &[Value], before: &[Value], by: &str) -> Vec<Value> {
    named.sort_by_key(|item| position(order, item, by).unwrap_or(usize::MAX));
    others.sort_by_key(|item| position(before, item, by).unwrap_or(usize::MAX));
    let mut out = Vec::with_capacity(named.len() + others.len());
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    loop {
        let take_other = match (named.peek(), others.peek()) {
            (None, None) => return out,
            (None, Some(_)) => true,
            (Some(_), None) => false,
            (Some(named), Some(other)) => {
                matches!((position(before, other, by), position(before, named, by)), (Some(o), Some(n)) if o < n)
            }
        };
        out.extend(if take_other { others.next() } else { named.next() });
    }
}

fn merge_values(old: Vec<Value>, new: Vec<Value>) -> Vec<Value> {
    let mut merged: Vec<Value> = Vec::new();
    for item in old.iter().chain(&new) {
        if !merged.contains(item) {
            merged.push(item.clone());
        }
    }
    let (named, others) = merged.into_iter().partition(|item| new.contains(item));
    in_order(named, others, &new, &old, "")
}

fn merge_items(kind: Option<&Definition>, by: &str, old: Vec<Value>, new: Vec<Value>) -> Result<Vec<Value>, Status> {
    let (mut list, mut changes, mut replace) = (old.clone(), Vec::new(), false);
    let no_key = |item: &Map<String, Value>| {
        let shown = go_value(&Value::Object(item.clone()));
        Status::unknown(format!("map: {shown} does not contain declared merge key: {by}"))
    };
    for item in new {
        let Value::Object(map) = item else {
            let why = format!("expected a map[string]interface {{}}, but received a {}", go_type(&item));
            return Err(Status::unknown(why));
        };
        match map.get(DIRECTIVE).map(|d| d.as_str().unwrap_or_default()) {
            None => changes.push(map),
            Some("replace") => replace = true,
            Some("delete") => {
                let key = map.get(by).ok_or_else(|| no_key(&map))?.clone();
                list.retain(|item| item.get(by) != Some(&key));
            }
            Some("merge") => return Err(Status::unknown("merging lists cannot yet be specified in the patch")),
            Some(other) => return Err(unknown_directive(&Value::from(other), &map)),
        }
    }
    if replace {
        return Ok(changes.into_iter().map(Value::Object).collect());
    }
    let wanted: Vec<Value> = changes.iter().cloned().map(Value::Object).collect();
    for map in changes {
        let key = map.get(by).ok_or_else(|| no_key(&map))?.clone();
        match list.iter().position(|item| item.get(by) == Some(&key)) {
            Some(at) => {
                let existing = list[at].as_object().cloned().unwrap_or_default();
                list[at] = Value::Object(merge_maps(kind, existing, map)?);
            }
            None => list.push(plain(&Value::Object(map))?),
        }
    }
    let (named, others) = list.into_iter().partition(|item| position(&wanted, item, by).is_some());
    Ok(in_order(named, others, &wanted, &old, by))
}

/// A value of a patch where there is nothing to merge it with: without directives and nulls.
fn plain(value: &Value) -> Result<Value, Status> {
    Ok(match value {
        Value::Object(map) => Value::Object(plain_map(map)?),
        Value::Array(list) => {
            let mut out = Vec::new();
            for item in list {
                let directive = item.get(DIRECTIVE);
                match directive.map(|d| d.as_str().unwrap_or_default()) {
                    None => out.push(plain(item)?),
                    Some("replace" | "delete" | "merge") => {}
                    Some(other) => {
                        let map = item.as_object().cloned().unwrap_or_default();
                        return Err(unknown_directive(&Value::from(other), &map));
                    }
                }
            }
            Value::Array(out)
        }
        other => other.clone(),
    })
}

fn plain_map(map: &Map<String, Value>) -> Result<Map<String, Value>, Status> {
    let mut out = Map::new();
    for (key, value) in map {
        if value.is_null()
            || matches!(key.as_str(), DIRECTIVE | RETAIN)
            || key.starts_with(ORDER)
            || key.starts_with(DELETE_VALUES)
        {
            continue;
        }
        out.insert(key.clone(), plain(value)?);
    }
    Ok(out)
}

/// A value as Go's `%v` writes it.
pub fn go_value(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".into(),
        Value::String(text) => text.clone(),
        Value::Array(list) => format!("[{}]", list.iter().map(go_value).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let fields: Vec<String> = map.iter().map(|(k, v)| format!("{k}:{}", go_value(v))).collect();
            format!("map[{}]", fields.join(" "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::of_kind;
    use serde_json::json;

    fn patched(base: &Value, patch: Value) -> Result<Value, Status> {
        let mut object = base.clone();
        apply(of_kind("", "v1", "Pod"), &mut object, &patch).map(|()| object)
    }

    #[test]
    fn lists_are_merged_by_their_keys() {
        let base = json!({"metadata": {"finalizers": ["f"]}, "spec": {"nodeSelector": {"a": "1"}, "tolerations": [{"key": "k"}],
            "containers": [{"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "b"}]}});
        for (what, patch, path, expected) in [
            (
                "an item is merged",
                json!({"spec": {"containers": [{"name": "a", "image": "2"}]}}),
                "/spec/containers/0/env/0/value",
                json!("1"),
            ),
            (
                "new items come first",
                json!({"spec": {"containers": [{"name": "c"}]}}),
                "/spec/containers/0",
                json!({"name": "c"}),
            ),
            (
                "an item is deleted",
                json!({"spec": {"containers": [{"name": "a", "$patch": "delete"}]}}),
                "/spec/containers",
                json!([{"name": "b"}]),
            ),
            (
                "a list is replaced",
                json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "z"}]}}),
                "/spec/containers",
                json!([{"name": "z"}]),
            ),
            ("null deletes", json!({"spec": {"nodeSelector": {"a": null}}}), "/spec/nodeSelector", json!({})),
            (
                "a map is replaced",
                json!({"spec": {"nodeSelector": {"$patch": "replace", "n": "2"}}}),
                "/spec/nodeSelector",
                json!({"n": "2"}),
            ),
            (
                "plain values are united",
                json!({"metadata": {"finalizers": ["g"]}}),
                "/metadata/finalizers",
                json!(["g", "f"]),
            ),
            (
                "values are taken out",
                json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["f"]}}),
                "/metadata/finalizers",
                json!([]),
            ),
            (
                "the order is set",
                json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}}),
                "/spec/containers/0/name",
                json!("b"),
            ),
            (
                "keys are retained",
                json!({"spec": {"$retainKeys": ["tolerations"]}}),
                "/spec",
                json!({"tolerations": [{"key": "k"}]}),
            ),
        ] {
            assert_eq!(patched(&base, patch).unwrap().pointer(path), Some(&expected), "{what}");
        }
    }

    #[test]
    fn atomic_lists_are_taken_as_they_are() {
        let base = json!({"spec": {"tolerations": [{"key": "k"}]}});
        // Directives mean nothing in them.
        for list in [json!([{"key": "n"}]), json!([{"$patch": "replace"}])] {
            let patch = json!({"spec": {"tolerations": list}});
            assert_eq!(patched(&base, patch).unwrap().pointer("/spec/tolerations"), Some(&list));
        }
    }

    #[test]
    fn bad_patches_are_told() {
        let base = json!({"metadata": {"finalizers": ["f"]}, "spec": {"containers": [{"name": "a"}]}});
        for (patch, message) in [
            (
                json!({"spec": {"containers": [{"image": "x"}]}}),
                "map: map[image:x] does not contain declared merge key: name",
            ),
            (
                json!({"spec": {"containers": [{"name": "a", "$patch": "explode"}]}}),
                "unknown patch type: explode in map: map[$patch:explode name:a]",
            ),
            (json!({"spec": {"$retainKeys": ["a"], "nodeName": "n"}}), "invalid patch format of retainKeys"),
            (json!({"spec": {"containers": ["x"]}}), "list element types are not identical: [[map[name:a]] [x]]"),
            (json!({"spec": {"containers": [null]}}), "list element types are not identical: [[map[name:a]] [<nil>]]"),
            (json!({"metadata": {"finalizers": [1]}}), "list element types are not identical: [[f] [1]]"),
            (json!({"spec": {"$setElementOrder/containers": "a"}}), "expected a []interface {}, but received a string"),
            (
                json!({"spec": {"$setElementOrder/containers": [{"name": "a"}], "containers": {"name": "a"}}}),
                "expected a []interface {}, but received a map[string]interface {}",
            ),
        ] {
            assert_eq!(patched(&base, patch).unwrap_err().message, message);
        }
    }
}
