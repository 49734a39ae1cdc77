//! Conversion of custom resources between versions: by their own name only, or by a webhook.

use std::sync::Arc;

use keelson_machinery::status::Status;
use serde_json::{Value, json};
use tokio::runtime::{Handle, RuntimeFlavor};

use crate::hooks::{CALL_FAILED, Hooks};

/// Group of the reviews that are sent.
const GROUP: &str = "apiextensions.k8s.io";
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
    let text = |key: &str| first[key].as_str().unwrap_or_default();
    let from = format!("{}, Kind={}", text("apiVersion"), text("kind"));
    // Upstream has no reason for it.
    let told = |why: &str| Status::unknown(format!("conversion webhook for {from} {why}"));
    let failed = |why: &str| told(&format!("failed: {}", why.strip_prefix(CALL_FAILED).unwrap_or(why)));
    let hooks = hooks.ok_or_else(|| failed("the server calls no webhooks"))?;
    let uid = uuid::Uuid::new_v4().to_string();
    let versions = conversion["webhook"]["conversionReviewVersions"].as_array();
    let version = versions.into_iter().flatten().filter_map(Value::as_str).find(|v| matches!(*v, "v1" | "v1beta1"));
    let version = version.ok_or_else(|| Status::unknown("no supported conversion review versions"))?;
    let review = json!({
        "kind": "ConversionReview",
        "apiVersion": format!("{GROUP}/{version}"),
        "request": {"uid": uid, "desiredAPIVersion": api_version, "objects": objects},
    });
    let client = &conversion["webhook"]["clientConfig"];
    let mut answer =
        wait(hooks.call(client, review.to_string().into_bytes(), TIMEOUT_SECONDS)).map_err(|why| failed(&why))?;
    let converted = understood(&mut answer, version, &uid).map_err(|why| failed(&why))?;
    if converted.len() != objects.len() {
        return Err(told(&format!("returned {} objects, expected {}", converted.len(), objects.len())));
    }
    let pairs = objects.iter().zip(converted);
    pairs.map(|(object, converted)| checked(object, converted, api_version).map_err(|why| told(&why))).collect()
}

/// The objects of a webhook's answer, if it is one to the request. Those of the older version were never held to it.
fn understood(answer: &mut Value, version: &str, uid: &str) -> Result<Vec<Value>, String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (said, kind) = (text(&answer["apiVersion"]), text(&answer["kind"]));
    if version == "v1" && (said != format!("{GROUP}/v1") || kind != "ConversionReview") {
        return Err(format!("expected webhook response of {GROUP}/v1, Kind=ConversionReview, got {said}, Kind={kind}"));
    }
    let response = &mut answer["response"];
    if !response.is_object() {
        return Err("no response provided".into());
    }
    if version == "v1" && response["uid"] != uid {
        return Err(format!("expected response.uid={uid:?}, got {:?}", text(&response["uid"])));
    }
    let (status, message) = (text(&response["result"]["status"]), text(&response["result"]["message"]));
    match status.as_str() {
        "Success" => Ok(response["convertedObjects"].as_array_mut().map(std::mem::take).unwrap_or_default()),
        _ if !message.is_empty() => Err(message),
        status => Err(format!("response.result.status was '{status}', not 'Success'")),
    }
}

/// What a webhook may not change stays; an object of another version or identity is refused.
fn checked(object: &Value, mut converted: Value, api_version: &str) -> Result<Value, String> {
    for (key, what, expected) in
        [("apiVersion", "groupVersion", api_version), ("kind", "kind", object["kind"].as_str().unwrap_or_default())]
    {
        let got = converted[key].as_str().unwrap_or_default();
        if got != expected {
            let why = format!("invalid {what} (expected {expected}, received {got})");
            return Err(format!("returned invalid object at index 0: {why}"));
        }
    }
    for (key, what) in [("name", "name"), ("namespace", "namespace"), ("uid", "UID")] {
        let [was, is] = [object, &converted].map(|o| o["metadata"][key].as_str().unwrap_or_default());
        if was != is {
            return Err(format!("returned invalid object: must have the same {what}: {was} != {is}"));
        }
    }
    if !converted["metadata"].is_object() {
        return Err("returned invalid metadata: missing metadata in converted object".into());
    }
    let mut metadata = object["metadata"].clone();
    for key in ["labels", "annotations"] {
        match converted["metadata"].get(key).filter(|value| !value.is_null()) {
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

    /// Each row: what a webhook answers, and what is told of that; "" if it is good.
    #[test]
    fn answers_are_held_to_the_request() {
        let review = |version: &str, response: Value| json!({"apiVersion": format!("{GROUP}/{version}"), "kind": "ConversionReview", "response": response});
        let result = |status: &str, message: &str| json!({"status": status, "message": message});
        let good = |uid: &str| json!({"uid": uid, "result": result("Success", ""), "convertedObjects": [{}, {}]});
        for (version, mut answer, told) in [
            ("v1", review("v1", good("u")), ""),
            ("v1", review("v1beta1", good("u")), "Kind=ConversionReview, got apiextensions.k8s.io/v1beta1, Kind=Conv"),
            ("v1", review("v1", Value::Null), "no response provided"),
            ("v1", review("v1", good("x")), "expected response.uid=\"u\", got \"x\""),
            ("v1beta1", review("v1", good("x")), ""),
            ("v1", review("v1", json!({"uid": "u", "result": result("Failure", "no")})), "no"),
            ("v1", review("v1", json!({"uid": "u"})), "response.result.status was '', not 'Success'"),
        ] {
            let got = understood(&mut answer, version, "u");
            assert_eq!(got.as_ref().is_ok_and(|objects| objects.len() == 2), told.is_empty(), "{got:?}");
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
        for (converted, told) in [
            (with("g/v1", "a"), "invalid object at index 0: invalid groupVersion (expected g/v2, received g/v1)"),
            (with("g/v2", "b"), "returned invalid object: must have the same name: a != b"),
        ] {
            assert!(checked(&object, converted, "g/v2").unwrap_err().ends_with(told), "{told}");
        }
        let none = convert(&json!({"strategy": "None"}), None, object.clone(), "g/v3").unwrap();
        assert_eq!(none["apiVersion"], "g/v3");
        let refused = convert(&json!({"strategy": "Webhook"}), None, object, "g/v3").unwrap_err();
        assert_eq!((refused.code, refused.reason.as_ref()), (500, ""));
        assert!(refused.message.starts_with("conversion webhook for g/v1, Kind=K failed: "), "{}", refused.message);
    }
}
