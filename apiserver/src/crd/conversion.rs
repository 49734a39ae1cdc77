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
    if conversion["strategy"] != "Webhook" {
        let mut object = object;
        object["apiVersion"] = api_version.into();
        return Ok(object);
    }
    let failed = |why: &str| {
        let kind = object["kind"].as_str().unwrap_or_default();
        let from = object["apiVersion"].as_str().unwrap_or_default();
        Status::internal(&format!("conversion webhook for {from}, Kind={kind} failed: {why}"))
    };
    let hooks = hooks.ok_or_else(|| failed("the server calls no webhooks"))?;
    let uid = uuid::Uuid::new_v4().to_string();
    let review = json!({
        "kind": "ConversionReview",
        "apiVersion": "apiextensions.k8s.io/v1",
        "request": {"uid": uid, "desiredAPIVersion": api_version, "objects": [object]},
    });
    let client = &conversion["webhook"]["clientConfig"];
    let answer =
        wait(hooks.call(client, review.to_string().into_bytes(), TIMEOUT_SECONDS)).map_err(|why| failed(&why))?;
    let response = &answer["response"];
    if response["uid"] != uid.as_str() {
        return Err(failed("the answer is to another request"));
    }
    if response["result"]["status"] != "Success" {
        return Err(failed(response["result"]["message"].as_str().unwrap_or("the webhook gave no reason")));
    }
    let converted = match response["convertedObjects"].as_array().map(Vec::as_slice) {
        Some([one]) => one.clone(),
        _ => return Err(failed("expected one converted object")),
    };
    checked(&object, converted, api_version).map_err(|why| failed(&why))
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
