//! Who may look at devices that others use: claims with admin access are for namespaces that a label names for it.

use keelson_machinery::status::Cause;
use serde_json::Value;

use crate::objects::Objects;
use crate::request::ResourceRequest;

/// The label that lets a namespace have admin access, with the value `true`.
const LABEL: &str = "resource.kubernetes.io/admin-access";

/// What is wrong with a new claim or template, or with what was given to a claim. Requests do not change, and what was
/// granted once is not asked again.
pub fn problems(objects: &Objects, request: &ResourceRequest, new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let path = match (request.def.group, request.def.plural, request.subresource.as_str()) {
        ("resource.k8s.io", "resourceclaims", "") => "/spec/devices/requests",
        ("resource.k8s.io", "resourceclaimtemplates", "") => "/spec/spec/devices/requests",
        ("resource.k8s.io", "resourceclaims", "status") => "/status/allocation/devices/results",
        _ => return Vec::new(),
    };
    let granted = match request.subresource.as_str() {
        "status" => old.is_some_and(|old| asks(old, path)),
        _ => old.is_some(),
    };
    if granted || !asks(new, path) {
        return Vec::new();
    }
    let namespace = objects.object("", "v1", "namespaces", "", &request.namespace).unwrap_or_default();
    if namespace["metadata"]["labels"][LABEL] == "true" {
        return Vec::new();
    }
    let why = format!("admin access to devices requires the `{LABEL}: true` label on the containing namespace");
    vec![Cause::forbidden("", &why)]
}

/// Whether requests, or what they were given, have admin access.
fn asks(object: &Value, path: &str) -> bool {
    let list = object.pointer(path).and_then(Value::as_array);
    list.into_iter().flatten().any(|one| one["exactly"]["adminAccess"] == true || one["adminAccess"] == true)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_asks_for_admin_access() {
        for (request, expected) in [
            (json!({"exactly": {"adminAccess": true}}), true),
            (json!({"exactly": {"adminAccess": false}}), false),
            (json!({"exactly": {}}), false),
            (json!({"firstAvailable": [{}]}), false),
            (json!({"adminAccess": true}), true),
        ] {
            let claim = json!({"spec": {"devices": {"requests": [{"name": "a"}, request]}}});
            assert_eq!(asks(&claim, "/spec/devices/requests"), expected, "{claim}");
        }
        assert!(!asks(&json!({}), "/spec/devices/requests"));
    }
}
