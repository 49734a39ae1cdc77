//! Subresources that are not generic, and kinds that are only asked (reviews).

use http::{Response, Uri};
use keelson_client::Body;
use keelson_machinery::resource::ResourceDef;
use keelson_machinery::status::{Cause, Status};
use keelson_pki::service_account::{Bound, Claims, ISSUER, Kubernetes};
use serde_json::{Value, json};

use crate::access::{Attributes, Authorizer, Decision, UserInfo};
use crate::request::ResourceRequest;
use crate::verbs::Call;
use crate::{ApiServer, eviction, scale, strategy};

/// Shortest and longest life of a requested token, seconds.
const TOKEN_SECONDS: (i64, i64) = (600, 1 << 32);
/// Attempts of a binding while other writers come between.
const BIND_ATTEMPTS: usize = 5;
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
        (_, "scale", "get") => {
            server.fresh(request.query.get("resourceVersion")).await?;
            let (object, _) = server.current(request)?.ok_or_else(|| call.not_found())?;
            call.answer(200, &scale::of(call, &object)?, &[])
        }
        (_, "scale", "update" | "patch") => scale::set(server, call).await,
        ("pods", "ephemeralcontainers" | "resize", "get") => server.get(call).await,
        ("pods", "ephemeralcontainers" | "resize", "update") => server.update(call).await,
        ("pods", "ephemeralcontainers" | "resize", "patch") => server.patch(call).await,
        ("pods", "eviction", "create") => eviction::evict(server, call).await,
        ("pods", "binding", "create") => bind(server, call, &request.name).await,
        ("namespaces", "finalize", "update") => finalize(server, call).await,
        ("certificatesigningrequests", "approval", "get") => server.get(call).await,
        ("certificatesigningrequests", "approval", "update") => approve(server, call).await,
        ("serviceaccounts", "token", "create") => token(server, call).await,
        (_, subresource, verb)
            if request.def.subresources.iter().any(|s| s.name == subresource && !s.verbs.contains(&verb)) =>
        {
            Err(Status::method_not_allowed())
        }
        (plural, subresource, _) => {
            let message = format!("the subresource {plural}/{subresource} is not served by this version of keelson");
            Err(Status { code: 501, reason: "NotImplemented".into(), ..Status::bad_request(message) })
        }
    }
}

/// Binds a pod to a node: once, and only a pod that is not going away and waits at no gate.
async fn bind(server: &ApiServer, call: &Call<'_>, pod: &str) -> Answer {
    let binding = read_binding(call, pod)?;
    let Some(def) = keelson_machinery::resources::find("", "v1", "pods") else { return Err(Status::no_such_path()) };
    let request = ResourceRequest { def, name: pod.to_owned(), subresource: "binding".into(), ..call.request.clone() };
    server.fresh(None).await?;
    for _ in 0..BIND_ATTEMPTS {
        let Some((old, revision)) = server.current(&request)? else {
            return Err(Status::not_found("", "pods", pod));
        };
        crate::verbs::update::same_uid(&request, &binding, &old)?;
        let new = bound_pod(&binding, &old)?;
        let done = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
        if call.dry_run()? {
            return call.answer(201, &done, &[]);
        }
        match server.objects.put(def, &new, revision, call.fence, Default::default()).await {
            Ok(_) => return call.answer(201, &done, &[]),
            Err(crate::objects::WriteError::Changed) => {}
            Err(crate::objects::WriteError::Status(status)) => return Err(status),
        }
    }
    Err(Status::modified("", "pods/binding", pod))
}

fn read_binding(call: &Call<'_>, pod: &str) -> Result<Value, Status> {
    let binding = call.object()?.value;
    if binding["metadata"]["name"].as_str().unwrap_or_default() != pod {
        return Err(Status::bad_request("name in URL does not match name in Binding object"));
    }
    let target = &binding["target"];
    // What is wrong with the target upstream tells as it is, without saying that the binding is invalid.
    let kind = target["kind"].as_str().unwrap_or_default();
    if !matches!(kind, "" | "Node") {
        let why = format!("target.kind: Unsupported value: {kind:?}: supported values: \"Node\", \"<empty>\"");
        return Err(Status::unknown(why));
    }
    if target["name"].as_str().unwrap_or_default().is_empty() {
        return Err(Status::unknown("target.name: Required value"));
    }
    Ok(binding)
}

/// A pod with what a binding says.
fn bound_pod(binding: &Value, old: &Value) -> Result<Value, Status> {
    let pod = old["metadata"]["name"].as_str().unwrap_or_default();
    let refused = |why: String| Err(Status::conflict("", "pods/binding", pod, &why));
    if old["metadata"]["deletionTimestamp"].is_string() {
        return refused(format!("pod {pod} is being deleted, cannot be assigned to a host"));
    }
    if let Some(bound) = old["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()) {
        return refused(format!("pod {pod} is already assigned to node {bound:?}"));
    }
    if old["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
        return refused(format!("pod {pod} has non-empty .spec.schedulingGates"));
    }
    let mut new = old.clone();
    new["spec"]["nodeName"] = binding["target"]["name"].clone();
    for (key, value) in binding["metadata"]["annotations"].as_object().into_iter().flatten() {
        new["metadata"]["annotations"][key.as_str()] = value.clone();
    }
    // Where the node is: labels that the pod does not have yet.
    for (key, value) in binding["metadata"]["labels"].as_object().into_iter().flatten() {
        if old["metadata"]["labels"].get(key.as_str()).is_none() {
            new["metadata"]["labels"][key.as_str()] = value.clone();
        }
    }
    set_condition(
        &mut new,
        json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": strategy::now()}),
    );
    Ok(new)
}

fn set_condition(object: &mut Value, condition: Value) {
    let mut list = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    list.retain(|c| c["type"] != condition["type"]);
    list.push(condition);
    object["status"]["conditions"] = list.into();
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
        return bind(server, call, &name).await;
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
