//! Subresources that are not generic, and kinds that are only asked (reviews).

use http::{Response, Uri};
use keelson_client::Body;
use keelson_machinery::resource::ResourceDef;
use keelson_machinery::status::{Cause, Status};
use serde_json::{Value, json};

use crate::verbs::Call;
use crate::{ApiServer, bindings, body, reviews, scheduling, tokens};

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
        ("pods", "eviction", "create") => crate::eviction::evict(server, call).await,
        ("namespaces", "finalize", "update") => finalize(server, call).await,
        ("certificatesigningrequests", "approval", "get") => server.get(call).await,
        ("certificatesigningrequests", "approval", "update") => server.update(call).await,
        ("certificatesigningrequests", "approval", "patch") => server.patch(call).await,
        ("serviceaccounts", "token", "create") => tokens::create(server, call).await,
        ("serviceaccounts", "token", _) => Err(Status::method_not_allowed()),
        ("pods", scheduling::SUBRESOURCE, "get") => {
            let (namespace, name) = (request.namespace.clone(), request.name.clone());
            server.advise(scheduling::Question::Explain { namespace, name }).await
        }
        ("pods", "binding" | scheduling::SUBRESOURCE, _) => Err(Status::method_not_allowed()),
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
    let selector = &object["spec"]["selector"];
    // A ReplicationController's selector is the labels themselves.
    let is_plain = object["kind"] == "ReplicationController";
    let labels = if is_plain { selector.as_object() } else { selector["matchLabels"].as_object() };
    let replicas = object["spec"]["replicas"].as_i64().unwrap_or(0);
    let selector: Vec<String> =
        labels.into_iter().flatten().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"], "creationTimestamp": metadata["creationTimestamp"],
        },
        "spec": if replicas == 0 { json!({}) } else { json!({"replicas": replicas}) },
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

/// Answers the kinds that are only asked.
pub async fn create_virtual(server: &ApiServer, call: &Call<'_>) -> Answer {
    if call.request.def.plural != "bindings" {
        return reviews::create(server, call).await;
    }
    let binding = call.object()?.value;
    let name = binding["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    bindings::create(server, call, &name).await
}
