//! Requests that are answered by a node's agent, or by a pod behind it: logs, exec, attach, port-forward and the proxies.
//!
//! Invariant: what goes between client and agent is not looked into; an upgraded connection is two streams joined.

mod log_socket;
mod node;
mod pod;
mod proxy;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use keelson_client::{Body, connection};
use keelson_machinery::status::Status;

use crate::access::{Admission, Attributes, Authorizer, Decision, Operation};
use crate::verbs::Call;
use crate::{ApiServer, authz, body};

pub use node::{Agents, read};

type Answer = Result<Response<Body>, Status>;

/// Headers that concern one connection only, or that say who asks: they are not passed on.
const OWN_HEADERS: [HeaderName; 6] = [
    header::AUTHORIZATION,
    header::HOST,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("impersonate-user"),
];

/// Serves a subresource that is one of [`crate::subresources::is_stream`].
pub async fn serve(server: &ApiServer, call: &Call<'_>, upgrade: Option<OnUpgrade>, uri: &Uri) -> Answer {
    server.fresh(None).await?;
    if matches!(call.request.subresource.as_str(), "exec" | "attach" | "portforward") {
        may_connect(server, call)?;
    }
    if call.request.subresource != "log" {
        admit(server, call).await?;
    }
    match (call.request.def.plural, call.request.subresource.as_str()) {
        ("pods", "log") => pod::log(server, call, upgrade).await,
        ("pods", "exec" | "attach") => pod::run(server, call, upgrade).await,
        ("pods", "portforward") => pod::port_forward(server, call, upgrade, uri).await,
        ("nodes", "proxy") => proxy::node(server, call, upgrade, uri).await,
        ("pods", "proxy") => proxy::pod(server, call, upgrade, uri).await,
        ("services", "proxy") => proxy::service(server, call, upgrade, uri).await,
        _ => Err(Status::no_such_path()),
    }
}

/// A WebSocket can only be opened with GET, so the right to create is asked for here as for the POST of SPDY.
fn may_connect(server: &ApiServer, call: &Call<'_>) -> Result<(), Status> {
    let request = call.request;
    if request.verb != "get" {
        return Ok(());
    }
    let attributes = Attributes {
        verb: "create".into(),
        version: request.def.version.into(),
        resource: request.def.plural.into(),
        subresource: request.subresource.clone(),
        namespace: request.namespace.clone(),
        name: request.name.clone(),
        ..Attributes::default()
    };
    match server.authorizer.authorize(call.user, &attributes) {
        Decision::Allow => Ok(()),
        Decision::Deny(reason) | Decision::NoOpinion(reason) => Err(authz::refusal(call.user, &attributes, &reason)),
    }
}

async fn admit(server: &ApiServer, call: &Call<'_>) -> Result<(), Status> {
    let request = call.request;
    let mut admission = Admission {
        operation: Operation::Connect,
        def: request.def,
        subresource: &request.subresource,
        namespace: &request.namespace,
        name: &request.name,
        user: call.user,
        object: None,
        old: None,
        dry_run: false,
        warnings: &mut Vec::new(),
    };
    server.admit(&mut admission).await
}

/// The headers of a request as the other side should see them.
pub(crate) fn passed_on(headers: &HeaderMap, upgrades: bool) -> HeaderMap {
    let connection = [header::CONNECTION, header::UPGRADE];
    let keep = |name: &HeaderName| {
        !OWN_HEADERS.contains(name)
            && !name.as_str().starts_with("impersonate-")
            && (upgrades || !connection.contains(name))
    };
    headers.iter().filter(|(name, _)| keep(name)).map(|(n, v)| (n.clone(), v.clone())).collect()
}

/// Sends a request over `stream` and answers with what comes back; an upgrade joins the two connections.
async fn forward(
    stream: Box<dyn connection::Stream>,
    request: http::Request<Full<Bytes>>,
    upgrade: Option<OnUpgrade>,
) -> Answer {
    let answer = connection::exchange(stream, request).await;
    let mut response = answer.map_err(|e| Status::internal(&format!("error dialing backend: {e}")))?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(plain(response));
    }
    let Some(client) = upgrade else {
        return Err(Status::bad_request("the backend changed the protocol though the client did not ask for it"));
    };
    let backend = hyper::upgrade::on(&mut response);
    tokio::spawn(join_upgraded(client, backend));
    let mut switched = Response::new(body::full(Bytes::new()));
    *switched.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *switched.headers_mut() = std::mem::take(response.headers_mut());
    Ok(switched)
}

/// Joins the two connections of an upgraded request.
pub(crate) async fn join_upgraded(client: OnUpgrade, backend: OnUpgrade) {
    match tokio::try_join!(client, backend) {
        Ok((client, backend)) => connection::join(TokioIo::new(client), TokioIo::new(backend)).await,
        Err(error) => tracing::debug!(%error, "a connection was not upgraded"),
    }
}

fn plain(response: Response<Incoming>) -> Response<Body> {
    let (mut parts, incoming) = response.into_parts();
    for name in [header::CONNECTION, header::TRANSFER_ENCODING, HeaderName::from_static("keep-alive")] {
        parts.headers.remove(name);
    }
    Response::from_parts(parts, incoming.map_err(std::io::Error::other).boxed_unsync())
}
