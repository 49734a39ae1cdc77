//! Subresources that are not generic, and kinds that are only asked (reviews).

use http::{Response, Uri};
use keelson_client::Body;
use keelson_machinery::resource::ResourceDef;
use keelson_machinery::status::{Cause, Status};
use keelson_pki::service_account::{Bound, Claims, ISSUER, Kubernetes};
use serde_json::{Value, json};

use crate::access::{Attributes, Authorizer, Decision, UserInfo};
use crate::verbs::Call;
use crate::{ApiServer, bindings, body, strategy};

/// Shortest and longest life of a requested token, seconds.
const TOKEN_SECONDS: (i64, i64) = (600, 1 << 32);
/// Life of a token that asks for none, seconds.
const DEFAULT_TOKEN_SECONDS: i64 = 3600;

type Answer = Result<Response<Body>, Status>;

/// Subresources that stay open and do not count as requests under way.
pub fn is_stream(subresource: &str) -> bool {
    matches!(subresource, "log" | "exec" | "attach" | "portforward" | "proxy")
}

/// Kinds that are created only to be answered.
pub fn is_virtual(def: &ResourceDef) -> bool {
    matches!(def.group, "authentication.k8s.io" | "authorization.k8s.io")
        || (def.group.is_empty() && def.plural == "bindings")
}

/// Serves a subresource.
pub async fn serve(
    server: &ApiServer,
    call: &Call<'_>,
    upgrade: Option<hyper::upgrade::OnUpgrade>,
    uri: &Uri,
) -> Answer {
    let request = call.request;
    if is_stream(&request.subresource) {
        return crate::streams::serve(server, call, upgrade, uri).await;
    }
    match (request.def.plural, request.subresource.as_str(), request.verb) {
        (_, "scale", "get") => scale_of(server, call).and_then(|scale| call.answer(200, &scale, &[])),
        (_, "scale", "update" | "patch") => set_scale(server, call).await,
        ("pods", "binding", "create") => bindings::create(server, call, &request.name).await,
        ("namespaces", "finalize", "update") => finalize(server, call).await,
        ("certificatesigningrequests", "approval", "get") => server.get(call).await,
        ("certificatesigningrequests", "approval", "update") => approve(server, call).await,
        ("serviceaccounts", "token", "create") => token(server, call).await,
        ("pods", "binding", _) => Err(Status::method_not_allowed()),
        (plural, subresource, _) => {
            let message = format!("the subresource {plural}/{subresource} is not served by this version of keelson");
            Err(Status { code: 501, reason: "NotImplemented".into(), ..Status::bad_request(message) })
        }
    }
}

fn scale_of(server: &ApiServer, call: &Call<'_>) -> Result<Value, Status> {
    let (object, _) = server.current(call.request)?.ok_or_else(|| call.not_found())?;
    scale(call, &object)
}

/// The Scale of an object: by the paths of its definition, or by the usual fields.
fn scale(call: &Call<'_>, object: &Value) -> Result<Value, Status> {
    match &call.request.custom {
        Some(custom) => crate::crd::scale::scale(custom, object),
        None => Ok(built_in_scale(object)),
    }
}

fn built_in_scale(object: &Value) -> Value {
    let metadata = &object["metadata"];
    let labels = object["spec"]["selector"]["matchLabels"].as_object();
    let selector: Vec<String> =
        labels.into_iter().flatten().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"], "creationTimestamp": metadata["creationTimestamp"],
        },
        "spec": {"replicas": object["spec"]["replicas"].as_i64().unwrap_or(0)},
        "status": {"replicas": object["status"]["replicas"].as_i64().unwrap_or(0), "selector": selector.join(",")},
    })
}

async fn set_scale(server: &ApiServer, call: &Call<'_>) -> Answer {
    let input =
        call.object().or_else(|_| keelson_machinery::decode::json(call.body).map_err(Status::bad_request))?.value;
    let patch = call.request.verb == "patch";
    let mut warnings = Vec::new();
    let object = server
        .change(call, &mut warnings, |old, revision| {
            let mut new_scale = scale(call, old)?;
            match (patch, body::content_type(call.headers)) {
                (true, "application/json-patch+json") => keelson_machinery::patch::json(&mut new_scale, &input)?,
                (true, _) => keelson_machinery::patch::merge(&mut new_scale, &input),
                (false, _) => {
                    let version = input["metadata"]["resourceVersion"].as_str().unwrap_or_default();
                    if !version.is_empty() && version != revision.to_string() {
                        return Err(Status::modified(
                            call.request.def.group,
                            call.request.def.plural,
                            &call.request.name,
                        ));
                    }
                    new_scale["spec"] = input["spec"].clone();
                }
            }
            let replicas = new_scale["spec"]["replicas"].as_i64().unwrap_or(0);
            if let Some(custom) = &call.request.custom {
                let mut new = old.clone();
                crate::crd::scale::set(custom, &mut new, replicas);
                return Ok(new);
            }
            if replicas < 0 {
                let cause = Cause::invalid("spec.replicas", &json!(replicas), "must be greater than or equal to 0");
                return Err(Status::invalid("autoscaling", "Scale", &call.request.name, vec![cause]));
            }
            let mut new = old.clone();
            new["spec"]["replicas"] = replicas.into();
            // `change` treats a subresource other than status as the main resource, so the generation is counted here.
            if new["spec"] != old["spec"]
                && let Some(generation) = old["metadata"]["generation"].as_i64()
            {
                new["metadata"]["generation"] = (generation + 1).into();
            }
            Ok(new)
        })
        .await?;
    call.answer(200, &scale(call, &object)?, &warnings)
}

async fn finalize(server: &ApiServer, call: &Call<'_>) -> Answer {
    let input = call.object()?.value;
    let object = server
        .change(call, &mut Vec::new(), |old, _| {
            let mut new = old.clone();
            new["spec"]["finalizers"] = input["spec"]["finalizers"].as_array().cloned().unwrap_or_default().into();
            Ok(new)
        })
        .await?;
    call.answer(200, &object, &[])
}

async fn approve(server: &ApiServer, call: &Call<'_>) -> Answer {
    let input = call.object()?.value;
    let object = server
        .change(call, &mut Vec::new(), |old, _| {
            let mut new = old.clone();
            new["status"]["conditions"] = input["status"]["conditions"].clone();
            Ok(new)
        })
        .await?;
    call.answer(200, &object, &[])
}

/// What a token says of an object.
fn bound(object: &Value) -> Bound {
    let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
    Bound { name: text("name"), uid: text("uid") }
}

/// Binds a token to the object that the request names, if it names one: it must exist and have the uid given.
fn bind_token(
    server: &ApiServer,
    namespace: &str,
    reference: &Value,
    kubernetes: &mut Kubernetes,
) -> Result<(), Status> {
    if !reference.is_object() {
        return Ok(());
    }
    let text = |key: &str| reference[key].as_str().unwrap_or_default();
    let (kind, name) = (text("kind"), text("name"));
    let plural = match kind {
        "Pod" => "pods",
        "Secret" => "secrets",
        other => {
            return Err(Status::bad_request(format!("cannot bind token for serviceaccount to object of type {other}")));
        }
    };
    let def = keelson_machinery::resources::find("", "v1", plural).ok_or_else(Status::no_such_path)?;
    let (object, _) = server.objects.get(def, namespace, name)?.ok_or_else(|| Status::not_found("", plural, name))?;
    let found = bound(&object);
    if !text("uid").is_empty() && text("uid") != found.uid {
        let why = format!(
            "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
            text("uid")
        );
        return Err(Status::conflict("", plural, name, &why));
    }
    match plural {
        "pods" => kubernetes.pod = Some(found),
        _ => kubernetes.secret = Some(found),
    }
    Ok(())
}

/// TokenRequest: a token for a service account, bound to its audience and, if asked, to an object.
async fn token(server: &ApiServer, call: &Call<'_>) -> Answer {
    let request = call.request;
    let mut review = call.object()?.value;
    let (account, _) =
        server.objects.get(request.def, &request.namespace, &request.name)?.ok_or_else(|| call.not_found())?;
    let spec = &review["spec"];
    let seconds = spec["expirationSeconds"].as_i64().unwrap_or(DEFAULT_TOKEN_SECONDS);
    if seconds < TOKEN_SECONDS.0 || seconds > TOKEN_SECONDS.1 {
        let why = if seconds < TOKEN_SECONDS.0 {
            "may not specify a duration less than 10 minutes"
        } else {
            "may not specify a duration larger than 2^32 seconds"
        };
        let cause = Cause::invalid("spec.expirationSeconds", &json!(seconds), why);
        return Err(Status::invalid("authentication.k8s.io", "TokenRequest", "", vec![cause]));
    }
    let mut audiences: Vec<String> =
        spec["audiences"].as_array().into_iter().flatten().filter_map(|a| a.as_str().map(str::to_owned)).collect();
    if audiences.is_empty() {
        audiences.push(ISSUER.into());
    }
    let mut kubernetes =
        Kubernetes { namespace: request.namespace.clone(), serviceaccount: bound(&account), ..Kubernetes::default() };
    bind_token(server, &request.namespace, &spec["boundObjectRef"], &mut kubernetes)?;
    let now = jiff::Timestamp::now().as_second();
    let claims = Claims {
        aud: audiences.clone(),
        exp: now + seconds,
        iat: now,
        nbf: now,
        iss: ISSUER.into(),
        jti: uuid::Uuid::new_v4().to_string(),
        sub: format!("system:serviceaccount:{}:{}", request.namespace, request.name),
        kubernetes,
    };
    let token = server.pki.service_account.sign(&claims).map_err(|e| Status::internal(&e.to_string()))?;
    review["kind"] = "TokenRequest".into();
    review["apiVersion"] = "authentication.k8s.io/v1".into();
    review["metadata"] =
        json!({"name": request.name, "namespace": request.namespace, "creationTimestamp": strategy::now()});
    review["spec"]["audiences"] = json!(audiences);
    review["spec"]["expirationSeconds"] = seconds.into();
    let expires = jiff::Timestamp::from_second(now + seconds)
        .map(|t| t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
        .unwrap_or_default();
    review["status"] = json!({"token": token, "expirationTimestamp": expires});
    call.answer(201, &review, &[])
}

/// Answers the kinds that are only asked.
pub async fn create_virtual(server: &ApiServer, call: &Call<'_>) -> Answer {
    let mut review = call.object()?.value;
    if call.request.def.plural == "bindings" {
        let name = review["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        return bindings::create(server, call, &name).await;
    }
    strategy::fit_virtual(call.request, &mut review)?;
    let spec = review["spec"].clone();
    review["status"] = match call.request.def.plural {
        "selfsubjectreviews" => json!({"userInfo": user_info(call.user)}),
        "selfsubjectrulesreviews" => {
            let namespace = spec["namespace"].as_str().unwrap_or_default();
            let (resource_rules, path_rules) = server.authorizer.rules_for(call.user, namespace);
            json!({"resourceRules": resource_rules, "nonResourceRules": path_rules, "incomplete": false})
        }
        "selfsubjectaccessreviews" => decide(server, call.user, &spec)?,
        "subjectaccessreviews" | "localsubjectaccessreviews" => {
            let list = |key: &str| {
                spec[key].as_array().into_iter().flatten().filter_map(|g| g.as_str().map(str::to_owned)).collect()
            };
            let user = UserInfo {
                name: spec["user"].as_str().unwrap_or_default().into(),
                groups: list("groups"),
                ..UserInfo::default()
            };
            if user.name.is_empty() && user.groups.is_empty() {
                let cause = Cause::invalid("spec.user", &json!(""), "at least one of user or group must be specified");
                return Err(Status::invalid("authorization.k8s.io", "SubjectAccessReview", "", vec![cause]));
            }
            decide(server, &user, &spec)?
        }
        "tokenreviews" => {
            let audiences: Vec<&str> =
                spec["audiences"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let audiences = if audiences.is_empty() { vec![ISSUER] } else { audiences };
            match server.authenticator.token(spec["token"].as_str().unwrap_or_default(), &audiences) {
                Ok(user) => json!({"authenticated": true, "user": user_info(&user), "audiences": audiences}),
                Err(error) => json!({"user": {}, "error": error.to_string()}),
            }
        }
        other => {
            let message = format!("{other} is not served by this version of keelson");
            return Err(Status { code: 501, reason: "NotImplemented".into(), ..Status::bad_request(message) });
        }
    };
    call.answer(201, &review, &[])
}

fn user_info(user: &UserInfo) -> Value {
    let mut info = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        info["uid"] = user.uid.clone().into();
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

fn decide(server: &ApiServer, user: &UserInfo, spec: &Value) -> Result<Value, Status> {
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let text = |of: &Value, key: &str| of[key].as_str().unwrap_or_default().to_owned();
    let attributes = match (resource.is_object(), path.is_object()) {
        (true, false) => Attributes {
            verb: text(resource, "verb"),
            group: text(resource, "group"),
            version: text(resource, "version"),
            resource: text(resource, "resource"),
            subresource: text(resource, "subresource"),
            namespace: text(resource, "namespace"),
            name: text(resource, "name"),
            path: String::new(),
        },
        (false, true) => Attributes { verb: text(path, "verb"), path: text(path, "path"), ..Attributes::default() },
        _ => {
            let cause = Cause::invalid(
                "spec.resourceAttributes",
                &Value::Null,
                "exactly one of nonResourceAttributes or resourceAttributes must be specified",
            );
            return Err(Status::invalid("authorization.k8s.io", "SubjectAccessReview", "", vec![cause]));
        }
    };
    Ok(match server.authorizer.authorize(user, &attributes) {
        Decision::Allow => json!({"allowed": true}),
        Decision::Deny(reason) => json!({"allowed": false, "denied": true, "reason": reason}),
        Decision::NoOpinion(reason) if reason.is_empty() => json!({"allowed": false}),
        Decision::NoOpinion(reason) => json!({"allowed": false, "reason": reason}),
    })
}
