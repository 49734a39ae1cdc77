//! Kinds that are created only to be answered: access reviews, token reviews, and who one is.

use http::Response;
use keelson_client::Body;
use keelson_machinery::resource::Scope;
use keelson_machinery::status::{Cause, Status};
use keelson_machinery::validation::selectors;
use keelson_pki::service_account::ISSUER;
use serde_json::{Value, json};

use crate::access::{Attributes, Authorizer, Decision, UserInfo};
use crate::admission::review::user_info;
use crate::request::equal_fields;
use crate::verbs::Call;
use crate::{ApiServer, options, ownership, strategy};

fn text<'a>(of: &'a Value, key: &str) -> &'a str {
    of[key].as_str().unwrap_or_default()
}

/// Answers a review.
pub async fn create(server: &ApiServer, call: &Call<'_>) -> Result<Response<Body>, Status> {
    options::check(call, "CreateOptions", false)?;
    let (mut body, mut warnings) = (call.object()?, Vec::new());
    let def = call.request.def;
    fit(call, &mut body.value)?;
    server.conform_as(call, (def.group, def.version, def.kind), &mut body, &mut warnings)?;
    let mut review = body.value;
    if !review["metadata"].is_object() {
        review["metadata"] = json!({});
    }
    server.fresh(None).await?;
    ownership::track_virtual(call, &mut review, def.group);
    let spec = review["spec"].clone();
    review["status"] = match def.plural {
        "selfsubjectreviews" => {
            review["metadata"]["creationTimestamp"] = strategy::now().into();
            json!({"userInfo": user_info(call.user)})
        }
        "selfsubjectrulesreviews" => {
            let namespace = text(&spec, "namespace");
            if namespace.is_empty() {
                return Err(Status::bad_request("no namespace on request"));
            }
            let (resource_rules, path_rules) = server.authorizer.rules_for(call.user, namespace);
            review["spec"] = json!({});
            review["metadata"] = json!({});
            json!({"resourceRules": resource_rules, "nonResourceRules": path_rules, "incomplete": false})
        }
        "selfsubjectaccessreviews" => {
            check_attributes(&review, false, None)?;
            decide(server, call.user, &spec)
        }
        "subjectaccessreviews" => {
            check_attributes(&review, true, None)?;
            decide(server, &subject(&spec), &spec)
        }
        "localsubjectaccessreviews" => {
            review["metadata"]["namespace"] = call.request.namespace.as_str().into();
            check_attributes(&review, true, Some(&call.request.namespace))?;
            decide(server, &subject(&spec), &spec)
        }
        "tokenreviews" => token(server, &mut review).await?,
        other => {
            let message = format!("{other} is not served by this version of keelson");
            return Err(Status { code: 501, reason: "NotImplemented".into(), ..Status::bad_request(message) });
        }
    };
    call.answer(201, &review, &warnings)
}

/// Refuses a body of another kind.
fn fit(call: &Call<'_>, review: &mut Value) -> Result<(), Status> {
    let def = call.request.def;
    let (kind, version) = (text(review, "kind").to_owned(), text(review, "apiVersion").to_owned());
    if kind.is_empty() && version.is_empty() {
        review["kind"] = def.kind.into();
        review["apiVersion"] = def.api_version().into();
    } else if kind != def.kind || version != def.api_version() {
        return Err(strategy::other_kind(def, &version, &kind));
    }
    let namespace = text(&review["metadata"], "namespace");
    if def.scope == Scope::Namespaced && !namespace.is_empty() && namespace != call.request.namespace {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    if def.plural == "tokenreviews"
        && let Some(metadata) = review["metadata"].as_object_mut()
    {
        metadata.remove("namespace");
    }
    Ok(())
}

fn subject(spec: &Value) -> UserInfo {
    let list = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|g| g.as_str().map(str::to_owned)).collect()
    };
    let extra = spec["extra"].as_object().into_iter().flatten();
    UserInfo {
        name: text(spec, "user").into(),
        uid: text(spec, "uid").into(),
        groups: list(&spec["groups"]),
        extra: extra.map(|(key, value)| (key.to_lowercase(), list(value))).collect(),
    }
}

/// What is wrong with a review of someone else's access.
fn subject_problems(spec: &Value) -> Vec<Cause> {
    let nobody = text(spec, "user").is_empty() && spec["groups"].as_array().is_none_or(Vec::is_empty);
    let why = "at least one of user or group must be specified";
    nobody.then(|| Cause::invalid("spec.user", &Value::from(""), why)).into_iter().collect()
}

/// What is wrong with a review of access in one namespace, besides what is wrong with any.
fn local_problems(spec: &Value, namespace: &str) -> Vec<Cause> {
    let mut causes = Vec::new();
    if spec["resourceAttributes"].is_object() && text(&spec["resourceAttributes"], "namespace") != namespace {
        let given = Value::from(text(&spec["resourceAttributes"], "namespace"));
        causes.push(Cause::invalid("spec.resourceAttributes.namespace", &given, "must match metadata.namespace"));
    }
    if spec["nonResourceAttributes"].is_object() {
        let shown = shown_path(&spec["nonResourceAttributes"]);
        causes.push(Cause::invalid_shown("spec.nonResourceAttributes", &shown, "disallowed on this kind of request"));
    }
    causes
}

fn shown_path(path: &Value) -> String {
    format!("{{\"Path\":{},\"Verb\":{}}}", Value::from(text(path, "path")), Value::from(text(path, "verb")))
}

/// Checks an access review; `subject` if it is about someone else, `local` the namespace if it is about one.
fn check_attributes(review: &Value, subject: bool, local: Option<&str>) -> Result<(), Status> {
    let spec = &review["spec"];
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let mut causes = Vec::new();
    match (resource.is_object(), path.is_object()) {
        (true, true) => {
            let why = "cannot be specified in combination with resourceAttributes";
            causes.push(Cause::invalid_shown("spec.nonResourceAttributes", &shown_path(path), why));
        }
        (false, false) => {
            let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            causes.push(Cause::invalid("spec.resourceAttributes", &Value::Null, why));
        }
        _ => {}
    }
    if subject {
        causes.extend(subject_problems(spec));
    }
    causes.extend(selectors::review_selectors(resource));
    let empty = if local.is_some() { "must be empty except for namespace" } else { "must be empty" };
    causes.extend(check_metadata(review, empty));
    causes.extend(local.map(|namespace| local_problems(spec, namespace)).into_iter().flatten());
    if causes.is_empty() {
        return Ok(());
    }
    // Upstream leaves the kind out of these refusals.
    Err(Status::invalid("authorization.k8s.io", "", "", causes))
}

/// The fields that a review's selector asks to be equal to one value.
fn review_fields(selector: &Value) -> Vec<(String, String)> {
    let requirements = selector["requirements"].as_array().into_iter().flatten();
    let mut out = equal_fields(text(selector, "rawSelector"));
    out.extend(requirements.filter(|r| r["operator"] == "In").filter_map(
        |r| match r["values"].as_array()?.as_slice() {
            [value] => Some((text(r, "key").to_owned(), value.as_str()?.to_owned())),
            _ => None,
        },
    ));
    out
}

/// Refuses metadata that an access review has no use for.
fn check_metadata(review: &Value, why: &str) -> Vec<Cause> {
    let mut rest = review["metadata"].clone();
    if let Some(map) = rest.as_object_mut() {
        map.remove("managedFields");
        map.remove("namespace");
    }
    let empty = rest.as_object().is_none_or(serde_json::Map::is_empty);
    (!empty)
        .then(|| Cause::invalid_shown("metadata", &ordered_metadata(&review["metadata"]).to_string(), why))
        .into_iter()
        .collect()
}

/// Metadata as a text in the order in which upstream writes it.
fn ordered_metadata(metadata: &Value) -> Raw {
    let managed = |entry: &Value| {
        let keys = ["manager", "operation", "apiVersion", "time", "fieldsType", "fieldsV1", "subresource"];
        in_order(entry, &keys, |_, value| value.to_string())
    };
    let keys = ["name", "generateName", "namespace", "uid", "labels", "annotations", "managedFields"];
    Raw(in_order(metadata, &keys, |key, value| match value.as_array() {
        Some(list) if key == "managedFields" => {
            format!("[{}]", list.iter().map(managed).collect::<Vec<_>>().join(","))
        }
        _ => value.to_string(),
    }))
}

fn in_order(object: &Value, keys: &[&str], shown: impl Fn(&str, &Value) -> String) -> String {
    let present = keys.iter().filter_map(|key| object.get(*key).map(|value| (key, value)));
    let pairs: Vec<String> = present.map(|(key, value)| format!("{key:?}:{}", shown(key, value))).collect();
    format!("{{{}}}", pairs.join(","))
}

/// A text that is shown as it is.
struct Raw(String);

impl std::fmt::Display for Raw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

fn decide(server: &ApiServer, user: &UserInfo, spec: &Value) -> Value {
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let attributes = if resource.is_object() {
        Attributes {
            verb: text(resource, "verb").into(),
            group: text(resource, "group").into(),
            version: text(resource, "version").into(),
            resource: text(resource, "resource").into(),
            subresource: text(resource, "subresource").into(),
            namespace: text(resource, "namespace").into(),
            name: text(resource, "name").into(),
            path: String::new(),
            fields: review_fields(&resource["fieldSelector"]),
        }
    } else {
        Attributes { verb: text(path, "verb").into(), path: text(path, "path").into(), ..Attributes::default() }
    };
    match server.authorizer.authorize(user, &attributes) {
        Decision::Allow => match server.authorizer.explain(user, &attributes) {
            Some(reason) => json!({"allowed": true, "reason": reason}),
            None => json!({"allowed": true}),
        },
        Decision::Deny(reason) => json!({"allowed": false, "denied": true, "reason": reason}),
        Decision::NoOpinion(reason) if reason.is_empty() => json!({"allowed": false}),
        Decision::NoOpinion(reason) => json!({"allowed": false, "reason": reason}),
    }
}

/// The answer to a TokenReview; a token that is good is not repeated.
async fn token(server: &ApiServer, review: &mut Value) -> Result<Value, Status> {
    let token = text(&review["spec"], "token").to_owned();
    if token.is_empty() {
        return Err(Status::bad_request("token is required for TokenReview in authentication"));
    }
    let audiences: Vec<String> = review["spec"]["audiences"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|a| a.as_str().map(str::to_owned))
        .collect();
    let audiences = if audiences.is_empty() { vec![ISSUER.to_owned()] } else { audiences };
    let wanted: Vec<&str> = audiences.iter().map(String::as_str).collect();
    // A token that looks like one is a secret, whatever is wrong with it.
    if token.matches('.').count() == 2 && review["spec"].is_object() {
        review["spec"].as_object_mut().map(|spec| spec.remove("token"));
    }
    Ok(match server.authenticator.load_full().token_for(&token, &wanted).await {
        Ok((user, own)) => {
            review["spec"].as_object_mut().map(|spec| spec.remove("token"));
            let shared: Vec<&String> = audiences.iter().filter(|a| own.contains(a)).collect();
            json!({"authenticated": true, "user": user_info(&user), "audiences": shared})
        }
        Err(error) => {
            let error = error.to_string();
            let error =
                if error == "invalid bearer token" { error } else { format!("[invalid bearer token, {error}]") };
            json!({"user": {}, "error": error})
        }
    })
}
