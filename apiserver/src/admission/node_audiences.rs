//! For whom a kubelet may ask tokens: for audiences that the pod's volumes name, and for those that it has a right to.

use std::sync::Arc;

use keelson_machinery::status::Status;
use serde_json::Value;

use crate::access::{Admission, Attributes, Authorizer, Decision};
use crate::authz::Authorization;
use crate::objects::Objects;

/// The right to ask tokens for an audience, which is the resource; the object is the account.
const VERB: &str = "request-serviceaccounts-token-audience";

fn items(of: &Value) -> impl Iterator<Item = &Value> {
    of.as_array().into_iter().flatten()
}

fn text<'a>(of: &'a Value, key: &str) -> &'a str {
    of[key].as_str().unwrap_or_default()
}

/// Whether the node may ask a token of the pod's account for what the request names.
pub(super) fn check(
    objects: &Objects,
    authorization: &Arc<Authorization>,
    request: &Admission<'_>,
    pod: &Value,
) -> Result<(), String> {
    let given = request.object.as_deref().map(|object| &object["spec"]["audiences"]);
    let given: Vec<&str> = given.into_iter().flat_map(items).filter_map(Value::as_str).collect();
    let audience = match given[..] {
        [] => "",
        [one] => one,
        _ => return Err("node may only request 0 or 1 audiences".into()),
    };
    if named_by(objects, pod, request.namespace, audience)
        .map_err(|why| format!("error validating audience {audience:?}: {why}"))?
    {
        return Ok(());
    }
    let attributes = Attributes {
        verb: VERB.into(),
        version: "v1".into(),
        resource: audience.into(),
        namespace: request.namespace.into(),
        name: request.name.into(),
        ..Attributes::default()
    };
    if authorization.authorize(request.user, &attributes) == Decision::Allow {
        return Ok(());
    }
    Err(format!(
        "audience {audience:?} not found in pod spec volume, {} is not authorized to request tokens for this audience",
        request.user.name
    ))
}

/// Whether a volume of the pod has use for tokens for an audience. What cannot be found counts only if no volume has.
fn named_by(objects: &Objects, pod: &Value, namespace: &str, audience: &str) -> Result<bool, String> {
    let mut missing = Vec::new();
    for volume in items(&pod["spec"]["volumes"]) {
        let projected = items(&volume["projected"]["sources"]).map(|source| &source["serviceAccountToken"]);
        if projected.filter(|token| token.is_object()).any(|token| text(token, "audience") == audience) {
            return Ok(true);
        }
        match driver(objects, pod, namespace, volume) {
            Ok(None) => {}
            Ok(Some(driver)) => {
                if items(&driver["spec"]["tokenRequests"]).any(|token| text(token, "audience") == audience) {
                    return Ok(true);
                }
            }
            Err(status) if missing.contains(&status.message) => {}
            Err(status) => missing.push(status.message),
        }
    }
    match &missing[..] {
        [] => Ok(false),
        [one] => Err(one.clone()),
        many => Err(format!("[{}]", many.join(", "))),
    }
}

/// The driver of a volume: named in the pod, or by the volume that its claim is bound to.
fn driver(objects: &Objects, pod: &Value, namespace: &str, volume: &Value) -> Result<Option<Value>, Status> {
    let find = |group: &str, plural: &str, singular: &str, namespace: &str, name: &str| {
        objects.object(group, "v1", plural, namespace, name).ok_or_else(|| Status::not_found(group, singular, name))
    };
    let name = if volume["csi"].is_object() {
        text(&volume["csi"], "driver").to_owned()
    } else {
        let claim = if volume["ephemeral"].is_object() {
            format!("{}-{}", text(&pod["metadata"], "name"), text(volume, "name"))
        } else {
            text(&volume["persistentVolumeClaim"], "claimName").to_owned()
        };
        if claim.is_empty() {
            return Ok(None);
        }
        let claim = find("", "persistentvolumeclaims", "persistentvolumeclaim", namespace, &claim)?;
        let bound = text(&claim["spec"], "volumeName");
        if bound.is_empty() {
            return Ok(None);
        }
        let volume = find("", "persistentvolumes", "persistentvolume", "", bound)?;
        text(&volume["spec"]["csi"], "driver").to_owned()
    };
    if name.is_empty() { Ok(None) } else { find("storage.k8s.io", "csidrivers", "csidriver", "", &name).map(Some) }
}
