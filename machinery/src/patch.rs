//! Patches: JSON patch (RFC 6902), merge patch (RFC 7386) and Kubernetes' strategic merge patch.

use serde_json::{Map, Value};

use crate::status::Status;

/// Most operations of a JSON patch (upstream's limit).
const MAX_OPERATIONS: usize = 10_000;

/// Applies a JSON patch.
pub fn json(target: &mut Value, patch: &Value) -> Result<(), Status> {
    let patch: json_patch::Patch =
        serde_json::from_value(patch.clone()).map_err(|e| Status::bad_request(format!("error decoding patch: {e}")))?;
    if patch.0.len() > MAX_OPERATIONS {
        let message =
            format!("The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}", patch.0.len());
        return Err(Status::too_large(message));
    }
    json_patch::patch(target, &patch).map_err(|e| {
        let message = format!("the server rejected our request due to an error in our request: {e}");
        Status { code: 422, reason: "Invalid".into(), ..Status::bad_request(message) }
    })
}

/// Applies a merge patch.
pub fn merge(target: &mut Value, patch: &Value) {
    json_patch::merge(target, patch);
}

/// The key by which items of a list are merged, for lists that are merged (`patchMergeKey` of the API's types); "" for
/// lists of plain values. Other lists are replaced.
fn merge_key(kind: &str, field: &str) -> Option<&'static str> {
    Some(match (kind, field) {
        ("Service", "ports") => "port",
        (_, "ports") => "containerPort",
        (
            _,
            "containers"
            | "initContainers"
            | "ephemeralContainers"
            | "volumes"
            | "env"
            | "imagePullSecrets"
            | "secrets"
            | "resourceClaims",
        ) => "name",
        (_, "volumeMounts") => "mountPath",
        (_, "volumeDevices") => "devicePath",
        (_, "hostAliases" | "podIPs" | "hostIPs") => "ip",
        (_, "topologySpreadConstraints") => "topologyKey",
        ("Node", "taints") => "key",
        (_, "conditions" | "addresses") => "type",
        (_, "ownerReferences") => "uid",
        (_, "finalizers") => "",
        _ => return None,
    })
}

/// Applies a strategic merge patch to an object of `kind`.
pub fn strategic(kind: &str, target: &mut Value, patch: &Value) -> Result<(), Status> {
    let (Value::Object(target), Value::Object(patch)) = (target, patch) else {
        return Err(Status::bad_request("a strategic merge patch is an object"));
    };
    merge_maps(kind, target, patch)
}

fn merge_maps(kind: &str, target: &mut Map<String, Value>, patch: &Map<String, Value>) -> Result<(), Status> {
    match patch.get("$patch").and_then(Value::as_str) {
        Some("replace") => {
            *target = patch.iter().filter(|(k, _)| *k != "$patch").map(|(k, v)| (k.clone(), v.clone())).collect();
            return Ok(());
        }
        Some("delete") => {
            target.clear();
            return Ok(());
        }
        Some("merge") | None => {}
        Some(other) => return Err(Status::bad_request(format!("unknown patch type: {other}"))),
    }
    if let Some(keys) = patch.get("$retainKeys").and_then(Value::as_array) {
        target.retain(|key, _| keys.iter().any(|k| k == key));
    }
    for (key, value) in patch {
        if key == "$patch" || key == "$retainKeys" || key.starts_with("$setElementOrder/") {
            continue;
        }
        if let Some(field) = key.strip_prefix("$deleteFromPrimitiveList/") {
            if let (Some(Value::Array(list)), Value::Array(gone)) = (target.get_mut(field), value) {
                list.retain(|item| !gone.contains(item));
            }
            continue;
        }
        let merged = match (target.remove(key), value) {
            (_, Value::Null) => continue,
            (Some(Value::Object(mut old)), Value::Object(new)) => {
                merge_maps(kind, &mut old, new)?;
                Value::Object(old)
            }
            (Some(Value::Array(old)), Value::Array(new)) => match merge_key(kind, key) {
                Some(by) => Value::Array(merge_lists(kind, by, old, new)?),
                None => Value::Array(new.clone()),
            },
            (None, Value::Array(new)) if merge_key(kind, key).is_some() => {
                Value::Array(merge_lists(kind, merge_key(kind, key).unwrap_or_default(), Vec::new(), new)?)
            }
            (_, Value::Object(new)) => {
                let mut fresh = Map::new();
                merge_maps(kind, &mut fresh, new)?;
                Value::Object(fresh)
            }
            (_, other) => other.clone(),
        };
        target.insert(key.clone(), merged);
    }
    for (key, order) in patch {
        if let (Some(field), Value::Array(order)) = (key.strip_prefix("$setElementOrder/"), order)
            && let Some(Value::Array(list)) = target.get_mut(field)
            && let Some(by) = merge_key(kind, field)
        {
            sort(list, by, order);
        }
    }
    Ok(())
}

fn merge_lists(kind: &str, by: &str, mut old: Vec<Value>, new: &[Value]) -> Result<Vec<Value>, Status> {
    if new.iter().any(|item| item["$patch"] == "replace") {
        return Ok(new.iter().filter(|item| item["$patch"] != "replace").cloned().collect());
    }
    for item in new {
        if by.is_empty() {
            if !old.contains(item) {
                old.push(item.clone());
            }
            continue;
        }
        let Some(id) = item.get(by) else {
            return Err(Status::bad_request(format!("map: {item} does not contain declared merge key: {by}")));
        };
        let position = old.iter().position(|o| o.get(by) == Some(id));
        if item["$patch"] == "delete" {
            old.retain(|o| o.get(by) != Some(id));
            continue;
        }
        let Value::Object(changes) = item else { continue };
        match position.map(|p| &mut old[p]) {
            Some(Value::Object(existing)) => merge_maps(kind, existing, changes)?,
            _ => {
                let mut fresh = Map::new();
                merge_maps(kind, &mut fresh, changes)?;
                old.push(Value::Object(fresh));
            }
        }
    }
    Ok(old)
}

/// Orders a list as `$setElementOrder` says; items that it does not name keep their place after those.
fn sort(list: &mut [Value], by: &str, order: &[Value]) {
    let rank = |item: &Value| {
        let found = order.iter().position(|o| if by.is_empty() { o == item } else { o.get(by) == item.get(by) });
        found.unwrap_or(order.len())
    };
    list.sort_by_key(rank);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn strategic_merge() {
        let base = json!({"spec": {"containers": [{"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "b"}],
            "tolerations": [{"key": "k"}]}, "metadata": {"labels": {"l": "1"}, "finalizers": ["f"]}});
        for (what, patch, path, expected) in [
            (
                "an item is merged by its key",
                json!({"spec": {"containers": [{"name": "a", "image": "2"}]}}),
                "/spec/containers/0/image",
                json!("2"),
            ),
            (
                "other fields of it stay",
                json!({"spec": {"containers": [{"name": "a", "image": "2"}]}}),
                "/spec/containers/0/env/0/value",
                json!("1"),
            ),
            (
                "an item is added",
                json!({"spec": {"containers": [{"name": "c"}]}}),
                "/spec/containers/2",
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
            (
                "an atomic list is replaced",
                json!({"spec": {"tolerations": [{"key": "n"}]}}),
                "/spec/tolerations",
                json!([{"key": "n"}]),
            ),
            ("null deletes", json!({"metadata": {"labels": {"l": null}}}), "/metadata/labels", json!({})),
            (
                "plain lists are united",
                json!({"metadata": {"finalizers": ["g"]}}),
                "/metadata/finalizers",
                json!(["f", "g"]),
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
                "a map is replaced",
                json!({"metadata": {"labels": {"$patch": "replace", "n": "2"}}}),
                "/metadata/labels",
                json!({"n": "2"}),
            ),
            (
                "keys are retained",
                json!({"spec": {"$retainKeys": ["tolerations"]}}),
                "/spec",
                json!({"tolerations": [{"key": "k"}]}),
            ),
        ] {
            let mut object = base.clone();
            strategic("Pod", &mut object, &patch).unwrap();
            assert_eq!(object.pointer(path), Some(&expected), "{what}");
        }
        assert!(strategic("Pod", &mut base.clone(), &json!({"spec": {"containers": [{"image": "x"}]}})).is_err());
        assert!(strategic("Pod", &mut base.clone(), &json!([])).is_err());
    }

    #[test]
    fn json_patch_errors_are_told() {
        let mut object = json!({"a": 1});
        assert_eq!(json(&mut object, &json!([{"op": "remove", "path": "/b"}])).unwrap_err().code, 422);
        assert_eq!(json(&mut object, &json!({"op": "remove"})).unwrap_err().code, 400);
        json(&mut object, &json!([{"op": "replace", "path": "/a", "value": 2}])).unwrap();
        assert_eq!(object, json!({"a": 2}));
    }
}
