//! Subresources that are not generic, and kinds that are only asked (reviews).

use http::{Response, Uri};
use keelson_client::Body;
use keelson_machinery::resource::ResourceDef;
use keelson_machinery::status::Status;

use crate::verbs::Call;
use crate::{ApiServer, bindings, eviction, reviews, scale, scheduling, tokens};

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
        ("pods", "binding", "create") => bindings::create(server, call, &request.name).await,
        ("namespaces", "finalize", "update") => server.update(call).await,
        ("certificatesigningrequests", "approval", "get") => server.get(call).await,
        ("certificatesigningrequests", "approval", "update") => server.update(call).await,
        ("certificatesigningrequests", "approval", "patch") => server.patch(call).await,
        ("serviceaccounts", "token", "create") => tokens::create(server, call).await,
        ("pods", scheduling::SUBRESOURCE, "get") => {
            let (namespace, name) = (request.namespace.clone(), request.name.clone());
            server.advise(scheduling::Question::Explain { namespace, name }).await
        }
        ("pods", scheduling::SUBRESOURCE, _) => Err(Status::method_not_allowed()),
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

/// Answers the kinds that are only asked.
pub async fn create_virtual(server: &ApiServer, call: &Call<'_>) -> Answer {
    if call.request.def.plural != "bindings" {
        return reviews::create(server, call).await;
    }
    let binding = call.object()?.value;
    let name = binding["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    bindings::create(server, call, &name).await
}
