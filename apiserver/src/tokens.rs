//! TokenRequest: tokens of service accounts, bound to an audience, a time and perhaps an object.

use http::Response;
use keelson_client::Body;
use keelson_machinery::status::{Cause, Status};
use keelson_pki::service_account::{Bound, Claims, ISSUER, Kubernetes};
use serde_json::{Value, json};

use crate::access::{Admission, Operation};
use crate::verbs::Call;
use crate::{ApiServer, options, ownership, strategy};

/// Shortest and longest life of a requested token, seconds.
const SECONDS: (i64, i64) = (600, 1 << 32);
/// Life of a token that asks for none, seconds.
const DEFAULT_SECONDS: i64 = 3600;
/// What the token's own field is called in ownership: the server's answer is not the client's.
const GROUP: &str = "authentication.k8s.io";

fn text<'a>(of: &'a Value, key: &str) -> &'a str {
    of[key].as_str().unwrap_or_default()
}

/// What a token says of an object.
fn bound(object: &Value) -> Bound {
    Bound { name: text(&object["metadata"], "name").into(), uid: text(&object["metadata"], "uid").into() }
}

/// Binds a token to the object that the request names, if it names one: it must exist and have the uid given.
fn bind(server: &ApiServer, call: &Call<'_>, reference: &Value, kubernetes: &mut Kubernetes) -> Result<(), Status> {
    if !reference.is_object() {
        return Ok(());
    }
    let (kind, name) = (text(reference, "kind"), text(reference, "name"));
    let (plural, namespace) = match (text(reference, "apiVersion"), kind) {
        ("v1", "Pod") => ("pods", call.request.namespace.as_str()),
        ("v1", "Secret") => ("secrets", call.request.namespace.as_str()),
        ("v1", "Node") => ("nodes", ""),
        (version, kind) => {
            let shown = if version.contains('/') { version.to_owned() } else { format!("/{version}") };
            return Err(Status::bad_request(format!("cannot bind token to object of type {shown}, Kind={kind}")));
        }
    };
    let def = keelson_machinery::resources::find("", "v1", plural).ok_or_else(Status::no_such_path)?;
    let (object, _) = server.objects.get(def, namespace, name)?.ok_or_else(|| Status::not_found("", plural, name))?;
    let found = bound(&object);
    let wanted = text(reference, "uid");
    if !wanted.is_empty() && wanted != found.uid {
        let why = format!(
            "the UID in the bound object reference ({wanted}) does not match the UID in record. The object might have been deleted \
             and then recreated"
        );
        return Err(Status::conflict("", kind, name, &why));
    }
    match plural {
        "pods" => {
            if text(&object["spec"], "serviceAccountName") != call.request.name {
                return Err(Status::bad_request(format!(
                    "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                    call.request.name
                )));
            }
            let node = text(&object["spec"], "nodeName");
            kubernetes.node = server.objects.object("", "v1", "nodes", "", node).map(|node| bound(&node));
            kubernetes.pod = Some(found);
        }
        "nodes" => kubernetes.node = Some(found),
        _ => kubernetes.secret = Some(found),
    }
    Ok(())
}

/// What is wrong with a request.
fn check(call: &Call<'_>, review: &mut Value) -> Result<(), Status> {
    for (key, expected) in [("kind", "TokenRequest"), ("apiVersion", "authentication.k8s.io/v1")] {
        let found = text(review, key).to_owned();
        if found.is_empty() {
            review[key] = expected.into();
        } else if found != expected {
            let (kind, version) = (text(review, "kind"), text(review, "apiVersion"));
            return Err(strategy::other_than(
                ("authentication", "TokenRequest"),
                call.request.def.group,
                version,
                kind,
            ));
        }
    }
    let request = call.request;
    for (key, own, what) in [("name", &request.name, "name"), ("namespace", &request.namespace, "namespace")] {
        let given = text(&review["metadata"], key);
        if key == "name" && !given.is_empty() && given != own.as_str() {
            let why = "must match the service account name if specified";
            let cause = Cause::invalid("metadata.name", &Value::from(given), why);
            return Err(Status::invalid(GROUP, "TokenRequest", own, vec![cause]));
        }
        if !given.is_empty() && given != own.as_str() {
            return Err(Status::bad_request(format!(
                "the {what} of the provided object does not match the {what} sent on the request"
            )));
        }
    }
    let seconds = review["spec"]["expirationSeconds"].as_i64().unwrap_or(DEFAULT_SECONDS);
    let why = match seconds {
        s if s < SECONDS.0 => "may not specify a duration less than 10 minutes",
        s if s > SECONDS.1 => "may not specify a duration larger than 2^32 seconds",
        _ => return Ok(()),
    };
    let cause = Cause::invalid("spec.expirationSeconds", &seconds.into(), why);
    Err(Status::invalid(GROUP, "TokenRequest", "", vec![cause]))
}

/// The request in the body, as one of its kind; what is unknown in it is told in `warnings`.
fn read(server: &ApiServer, call: &Call<'_>, warnings: &mut Vec<String>) -> Result<Value, Status> {
    options::check(call, "CreateOptions", false)?;
    let mut body = call.object()?;
    if matches!(text(&body.value, "kind"), "" | "TokenRequest") {
        server.conform_as(call, (GROUP, "v1", "TokenRequest"), &mut body, warnings)?;
    }
    Ok(body.value)
}

/// Answers a TokenRequest.
pub async fn create(server: &ApiServer, call: &Call<'_>) -> Result<Response<Body>, Status> {
    let (request, mut warnings) = (call.request, Vec::new());
    let mut review = read(server, call, &mut warnings)?;
    server.fresh(None).await?;
    let (account, _) =
        server.objects.get(request.def, &request.namespace, &request.name)?.ok_or_else(|| call.not_found())?;
    if !review["spec"].is_object() {
        review["spec"] = json!({});
    }
    check(call, &mut review)?;
    same_account(&review, &account, &request.name)?;
    if !review["spec"]["expirationSeconds"].is_i64() {
        review["spec"]["expirationSeconds"] = DEFAULT_SECONDS.into();
    }
    ownership::track_virtual(call, &mut review, GROUP);
    let mut admission = Admission {
        operation: Operation::Create,
        def: request.def,
        subresource: &request.subresource,
        namespace: &request.namespace,
        name: &request.name,
        user: call.user,
        object: Some(&mut review),
        old: None,
        dry_run: call.dry_run()?,
        warnings: &mut warnings,
    };
    server.admit(&mut admission).await?;
    check(call, &mut review)?;
    // Admission sees what was asked for; whom a token is for that names nobody is said after it.
    let named = review["spec"]["audiences"].as_array().into_iter().flatten();
    let mut audiences: Vec<String> = named.filter_map(|a| a.as_str().map(str::to_owned)).collect();
    if audiences.is_empty() {
        audiences.push(ISSUER.into());
    }
    review["spec"]["audiences"] = json!(audiences);
    let seconds = review["spec"]["expirationSeconds"].as_i64().unwrap_or(DEFAULT_SECONDS);
    let mut kubernetes =
        Kubernetes { namespace: request.namespace.clone(), serviceaccount: bound(&account), ..Kubernetes::default() };
    bind(server, call, &review["spec"]["boundObjectRef"], &mut kubernetes)?;
    let now = jiff::Timestamp::now().as_second();
    let claims = Claims {
        aud: audiences,
        exp: now + seconds,
        iat: now,
        nbf: now,
        iss: ISSUER.into(),
        jti: uuid::Uuid::new_v4().to_string(),
        sub: format!("system:serviceaccount:{}:{}", request.namespace, request.name),
        kubernetes,
    };
    let token = server.pki.service_account.sign(&claims).map_err(|e| Status::internal(&e.to_string()))?;
    for (key, value) in [
        ("name", request.name.clone()),
        ("namespace", request.namespace.clone()),
        ("uid", claims.kubernetes.serviceaccount.uid.clone()),
        ("creationTimestamp", strategy::now()),
    ] {
        review["metadata"][key] = value.into();
    }
    if review["spec"].get("boundObjectRef").is_none() {
        review["spec"]["boundObjectRef"] = Value::Null;
    }
    let expires = jiff::Timestamp::from_second(now + seconds)
        .map(|t| t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
        .unwrap_or_default();
    review["status"] = json!({"token": token, "expirationTimestamp": expires});
    call.answer(201, &review, &warnings)
}

/// Refuses a request that names, by its UID, another account than the one there is.
fn same_account(review: &Value, account: &Value, name: &str) -> Result<(), Status> {
    let (asked, own) = (text(&review["metadata"], "uid"), text(&account["metadata"], "uid"));
    if asked.is_empty() || asked == own {
        return Ok(());
    }
    let why = format!("the UID in the token request ({asked}) does not match the UID of the service account ({own})");
    Err(Status::conflict(GROUP, "TokenRequest", name, &why))
}
