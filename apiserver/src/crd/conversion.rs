//! Conversion of custom resources between versions: by their own name only, or by a webhook.

use std::sync::Arc;

use keelson_machinery::status::Status;
use serde_json::{Value, json};
use tokio::runtime::{Handle, RuntimeFlavor};

use crate::hooks::Hooks;

/// Seconds that a conversion may take, as upstream's.
const TIMEOUT_SECONDS: u64 = 30;

/// An object in another version (`group/version`), by `spec.conversion` of its definition.
pub fn convert(
    conversion: &Value,
    hooks: Option<&Arc<Hooks>>,
    object: Value,
    api_version: &str,
) -> Result<Value, Status> {
    let converted = convert_all(conversion, hooks, vec![object], api_version)?;
    converted.into_iter().next().ok_or_else(|| Status::internal("a conversion gave no object"))
}

/// Whether a definition's objects are converted by others.
pub fn asks_others(conversion: &Value) -> bool {
    conversion["strategy"] == "Webhook"
}

/// Objects of one kind in another version: a webhook is asked once for all of them.
pub fn convert_all(
    conversion: &Value,
    hooks: Option<&Arc<Hooks>>,
    mut objects: Vec<Value>,
    api_version: &str,
) -> Result<Vec<Value>, Status> {
    if !asks_others(conversion) {
        objects.iter_mut().for_each(|object| object["apiVersion"] = api_version.into());
        return Ok(objects);
    }
    let Some(first) = objects.first() else { return Ok(objects) };
    let kind = first["kind"].as_str().unwrap_or_default().to_owned();
    let from = first["apiVersion"].as_str().unwrap_or_default().to_owned();
    let failed = |why: &str| Status::internal(&format!("conversion webhook for {from}, Kind={kind} failed: {why}"));
    let hooks = hooks.ok_or_else(|| failed("the server calls no webhooks"))?;
    let uid = uuid::Uuid::new_v4().to_string();
    let versions = conversion["webhook"]["conversionReviewVersions"].as_array();
    let version = versions.into_iter().flatten().filter_map(Value::as_str).find(|v| matches!(*v, "v1" | "v1beta1"));
    let review = json!({
        "kind": "ConversionReview",
        "apiVersion": format!("apiextensions.k8s.io/{}", version.unwrap_or("v1")),
        "request": {"uid": uid, "desiredAPIVersion": api_version, "objects": objects},
    });
    let client = &conversion["webhook"]["clientConfig"];
    let mut answer =
        wait(hooks.call(client, review.to_string().into_bytes(), TIMEOUT_SECONDS)).map_err(|why| failed(&why))?;
    understood(&mut answer["response"], &uid, &objects, api_version).map_err(|why| failed(&why))
}

/// The objects of a webhook's answer, if they are those that it was asked for.
fn understood(response: &mut Value, uid: &str, asked: &[Value], api_version: &str) -> Result<Vec<Value>, String> {
    if response["uid"] != uid {
        return Err("the answer is to another request".into());
    }
    if response["result"]["status"] != "Success" {
        return Err(response["result"]["message"].as_str().unwrap_or("the webhook gave no reason").to_owned());
    }
    let converted = match response["convertedObjects"].take() {
        Value::Array(converted) => converted,
        _ => Vec::new(),
    };
    if converted.len() != asked.len() {
        return Err(format!("webhook returned {} objects, expected {}", converted.len(), asked.len()));
    }
    asked.iter().zip(converted).map(|(object, converted)| checked(object, converted, api_version)).collect()
}

/// What a webhook may not change stays; an object of another version or identity is refused.
fn checked(object: &Value, mut converted: Value, api_version: &str) -> Result<Value, String> {
    if converted["apiVersion"] != api_version || converted["kind"] != object["kind"] {
        return Err(format!("expected {api_version}, got {}", converted["apiVersion"]));
    }
    for key in ["name", "namespace", "uid"] {
        if converted["metadata"].get(key) != object["metadata"].get(key) {
            return Err(format!("metadata.{key} was changed"));
        }
    }
    let mut metadata = object["metadata"].clone();
    for key in ["labels", "annotations"] {
        match converted["metadata"].get(key) {
            Some(value) => metadata[key] = value.clone(),
            None => {
                metadata.as_object_mut().map(|map| map.remove(key));
            }
        }
    }
    converted["metadata"] = metadata;
    Ok(converted)
}

/// Waits for a webhook on a thread that may wait: objects are read in places that are not asynchronous.
fn wait(call: impl Future<Output = Result<Value, String>>) -> Result<Value, String> {
    let handle = Handle::try_current().map_err(|e| e.to_string())?;
    if handle.runtime_flavor() == RuntimeFlavor::CurrentThread {
        return Err("conversion by webhook needs a runtime with several threads".into());
    }
    tokio::task::block_in_place(|| handle.block_on(call))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each row: what a webhook answers to two objects, and what is told of that; "" if it is good.
    #[test]
    fn answers_to_many_objects_are_checked() {
        let object =
            |version: &str, name: &str| json!({"apiVersion": version, "kind": "K", "metadata": {"name": name}});
        let asked = [object("g/v1", "a"), object("g/v1", "b")];
        let good = json!([object("g/v2", "a"), object("g/v2", "b")]);
        for (mut response, told) in [
            (json!({"uid": "u", "result": {"status": "Success"}, "convertedObjects": good}), ""),
            (json!({"uid": "x", "result": {"status": "Success"}, "convertedObjects": good}), "to another request"),
            (json!({"uid": "u", "result": {"status": "Failure", "message": "no"}}), "no"),
            (json!({"uid": "u", "result": {"status": "Success"}}), "webhook returned 0 objects, expected 2"),
            (
                json!({"uid": "u", "result": {"status": "Success"}, "convertedObjects": [object("g/v2", "b"), object("g/v2", "a")]}),
                "metadata.name was changed",
            ),
        ] {
            let got = understood(&mut response, "u", &asked, "g/v2");
            assert_eq!(got.is_ok(), told.is_empty(), "{got:?}");
            assert!(got.err().unwrap_or_default().contains(told), "{told}");
        }
    }

    #[test]
    fn a_webhook_changes_neither_identity_nor_metadata() {
        let object =
            json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "a", "uid": "u", "finalizers": ["f"]}});
        let with = |version: &str, name: &str| json!({"apiVersion": version, "kind": "K", "metadata": {"name": name, "uid": "u", "labels": {"l": "1"}}, "spec": {}});
        let good = checked(&object, with("g/v2", "a"), "g/v2").unwrap();
        assert_eq!(good["metadata"], json!({"name": "a", "uid": "u", "finalizers": ["f"], "labels": {"l": "1"}}));
        assert!(checked(&object, with("g/v1", "a"), "g/v2").is_err());
        assert!(checked(&object, with("g/v2", "b"), "g/v2").is_err());
        let none = convert(&json!({"strategy": "None"}), None, object.clone(), "g/v3").unwrap();
        assert_eq!(none["apiVersion"], "g/v3");
        assert_eq!(convert(&json!({"strategy": "Webhook"}), None, object, "g/v3").unwrap_err().code, 500);
    }
}
