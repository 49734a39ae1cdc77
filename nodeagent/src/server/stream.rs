//! Exec, attach, port-forward and raw tunnels. The runtime has a streaming server of its own: SPDY goes there as it is,
//! WebSockets are translated.

use std::collections::HashMap;
use std::net::IpAddr;

use bytes::Bytes;
use http::{HeaderName, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use keelson_client::connection;
use keelson_proto::cri::{self, ContainerState, PodSandboxState};

use super::{Answer, Query, Refusal, Server, answer, forward_socket, full, websocket};
use keelson_client::spdy::{self, Streams};

/// Longest refusal of the runtime that is read.
const MAX_REFUSAL: usize = 64 << 10;
/// Longest run of a command whose output is awaited, seconds.
const RUN_SECONDS: i64 = 600;
/// Header by which SPDY clients say their protocols.
const PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// The newest protocol of exec and attach that runtimes speak over SPDY.
const SPDY_COMMAND: &str = "v4.channel.k8s.io";
/// The protocol of raw connections.
const TUNNEL: &str = "keelson-tunnel";

/// The streams that a client wants.
struct Wanted {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Wanted {
    fn of(query: &Query) -> Self {
        let tty = query.flag("tty");
        // A terminal has one output.
        Self { stdin: query.flag("input"), stdout: query.flag("output"), stderr: query.flag("error") && !tty, tty }
    }
}

async fn running(server: &Server, namespace: &str, pod: &str, container: &str) -> Result<String, Refusal> {
    let object = server.pod(namespace, pod)?;
    let runs = server.runs(&object, container).await?;
    let up = runs.iter().find(|r| r.state() == ContainerState::ContainerRunning);
    up.map(|r| r.id.clone()).ok_or_else(|| Refusal(404, format!("container not found (\"{container}\")")))
}

/// Runs a command in a container with the client's streams.
pub async fn exec(
    server: &Server,
    namespace: &str,
    pod: &str,
    container: &str,
    query: &Query,
    request: &mut Request<Incoming>,
) -> Answer {
    let container_id = running(server, namespace, pod, container).await?;
    let wanted = Wanted::of(query);
    let Wanted { stdin, stdout, stderr, tty } = wanted;
    let ask = cri::ExecRequest { container_id, cmd: query.all("command"), tty, stdin, stdout, stderr };
    let url = server.agent.runtime.pods.clone().exec(ask).await?.into_inner().url;
    command(&url, &wanted, request).await
}

/// Joins the client to the streams of a container's first process.
pub async fn attach(
    server: &Server,
    namespace: &str,
    pod: &str,
    container: &str,
    query: &Query,
    request: &mut Request<Incoming>,
) -> Answer {
    let container_id = running(server, namespace, pod, container).await?;
    let wanted = Wanted::of(query);
    let Wanted { stdin, stdout, stderr, tty } = wanted;
    let ask = cri::AttachRequest { container_id, stdin, tty, stdout, stderr };
    let url = server.agent.runtime.pods.clone().attach(ask).await?.into_inner().url;
    command(&url, &wanted, request).await
}

async fn command(url: &str, wanted: &Wanted, request: &mut Request<Incoming>) -> Answer {
    if !websocket::is_wanted(request.headers()) {
        return pass(url, request).await;
    }
    let protocol = websocket::choose(request.headers(), &websocket::COMMAND_PROTOCOLS)?;
    let (mut to, from) = spdy::dial(url, SPDY_COMMAND).await.map_err(|(code, text)| Refusal(code, text))?;
    let mut streams = Streams::new();
    for (kind, channel, open) in [
        ("error", 3, true),
        ("stdin", 0, wanted.stdin),
        ("stdout", 1, wanted.stdout),
        ("stderr", 2, wanted.stderr),
        ("resize", 4, wanted.tty),
    ] {
        if open {
            let id = to.stream(&[("streamtype", kind)]).await.map_err(Refusal::internal)?;
            streams.insert(id, channel);
        }
    }
    let response = websocket::accept(request.headers(), protocol)?;
    let upgrade = hyper::upgrade::on(request);
    tokio::spawn(websocket::command(upgrade, protocol, to, from, streams));
    Ok(response)
}

/// Joins the client to the runtime's streaming server as it is.
async fn pass(url: &str, request: &mut Request<Incoming>) -> Answer {
    if !request.headers().contains_key(header::UPGRADE) {
        return Err(Refusal(400, "Upgrade request required".into()));
    }
    let (stream, path, authority) = spdy::open(url).await.map_err(Refusal::internal)?;
    let mut outgoing = Request::builder().method(request.method().clone()).uri(path);
    outgoing = outgoing.header(header::HOST, authority);
    for name in [header::CONNECTION, header::UPGRADE, PROTOCOL] {
        for value in request.headers().get_all(&name) {
            outgoing = outgoing.header(&name, value);
        }
    }
    let outgoing = outgoing.body(Empty::<Bytes>::new()).map_err(Refusal::internal)?;
    let mut response = connection::exchange(stream, outgoing).await.map_err(Refusal::internal)?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let code = response.status().as_u16();
        let text = Limited::new(response.into_body(), MAX_REFUSAL).collect().await;
        let text = text.map_err(Refusal::internal)?.to_bytes();
        return Err(Refusal(code, String::from_utf8_lossy(&text).into_owned()));
    }
    let backend = hyper::upgrade::on(&mut response);
    join(hyper::upgrade::on(request), backend);
    let mut switched = Response::new(full(Bytes::new()));
    *switched.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *switched.headers_mut() = std::mem::take(response.headers_mut());
    Ok(switched)
}

fn join(client: OnUpgrade, backend: OnUpgrade) {
    tokio::spawn(async move {
        match tokio::try_join!(client, backend) {
            Ok((client, backend)) => connection::join(TokioIo::new(client), TokioIo::new(backend)).await,
            Err(error) => tracing::debug!(%error, "a connection was not upgraded"),
        }
    });
}

/// Connects the client to ports of a pod.
pub async fn port_forward(
    server: &Server,
    namespace: &str,
    pod: &str,
    query: &Query,
    request: &mut Request<Incoming>,
) -> Answer {
    let object = server.pod(namespace, pod)?;
    let labels = HashMap::from([(crate::cri::POD_UID.to_owned(), object.metadata.uid.unwrap_or_default())]);
    let sandboxes = server.agent.runtime.sandboxes(labels).await?;
    let up = sandboxes.iter().find(|s| s.state() == PodSandboxState::SandboxReady);
    let up = up.ok_or_else(|| Refusal(404, format!("pod \"{pod}\" is not running")))?;
    let wanted = query.all("port");
    let port = wanted.iter().filter_map(|p| p.parse().ok()).collect();
    let ask = cri::PortForwardRequest { pod_sandbox_id: up.id.clone(), port };
    let url = server.agent.runtime.pods.clone().port_forward(ask).await?.into_inner().url;
    if !websocket::is_wanted(request.headers()) {
        return pass(&url, request).await;
    }
    let protocol = websocket::choose(request.headers(), &forward_socket::PROTOCOLS)?;
    if protocol != websocket::TUNNEL_PROTOCOL {
        let ports = forward_socket::ports(&wanted)?;
        let response = websocket::accept(request.headers(), protocol)?;
        let forward = forward_socket::Forward::open(&url, ports).await?;
        tokio::spawn(forward.carry(hyper::upgrade::on(request), protocol));
        return Ok(response);
    }
    let inner = upgraded(&url, "portforward.k8s.io").await?;
    let response = websocket::accept(request.headers(), protocol)?;
    tokio::spawn(websocket::tunnel(hyper::upgrade::on(request), inner));
    Ok(response)
}

/// A raw SPDY connection to the runtime.
async fn upgraded(url: &str, protocol: &str) -> Result<Box<dyn connection::Stream>, Refusal> {
    let (stream, path, authority) = spdy::open(url).await.map_err(Refusal::internal)?;
    let request = Request::post(path)
        .header(header::HOST, authority)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "SPDY/3.1")
        .header(PROTOCOL, protocol)
        .body(Empty::<Bytes>::new())
        .map_err(Refusal::internal)?;
    let mut response = connection::exchange(stream, request).await.map_err(Refusal::internal)?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(Refusal(502, format!("the runtime answered {} instead of upgrading", response.status())));
    }
    let upgraded = hyper::upgrade::on(&mut response).await.map_err(Refusal::internal)?;
    Ok(Box::new(TokioIo::new(upgraded)))
}

/// Runs a command and answers with its output.
pub async fn run(server: &Server, namespace: &str, pod: &str, container: &str, query: &Query) -> Answer {
    let container_id = running(server, namespace, pod, container).await?;
    let cmd = query.get("cmd").unwrap_or_default().split(' ').map(str::to_owned).collect();
    let ask = cri::ExecSyncRequest { container_id, cmd, timeout: RUN_SECONDS };
    let done = server.agent.runtime.pods.clone().exec_sync(ask).await?.into_inner();
    let output = [done.stdout, done.stderr].concat();
    Ok(answer(if done.exit_code == 0 { 200 } else { 500 }, "text/plain; charset=utf-8", output))
}

/// A raw connection to an address of this node's pods.
pub async fn tunnel(ip: &str, port: &str, request: &mut Request<Incoming>) -> Answer {
    let wanted = request.headers().get(header::UPGRADE).is_some_and(|v| v.as_bytes() == TUNNEL.as_bytes());
    let (Ok(ip), Ok(port), true) = (ip.parse::<IpAddr>(), port.parse::<u16>(), wanted) else {
        return Err(Refusal(400, format!("a tunnel needs an address, a port and Upgrade: {TUNNEL}")));
    };
    let stream = connection::connect(&ip.to_string(), port, None).await;
    let stream = stream.map_err(|e| Refusal(502, e.to_string()))?;
    let client = hyper::upgrade::on(request);
    tokio::spawn(async move {
        match client.await {
            Ok(client) => connection::join(TokioIo::new(client), stream).await,
            Err(error) => tracing::debug!(%error, "a connection was not upgraded"),
        }
    });
    let mut switched = Response::new(full(Bytes::new()));
    *switched.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    switched.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("Upgrade"));
    switched.headers_mut().insert(header::UPGRADE, header::HeaderValue::from_static(TUNNEL));
    Ok(switched)
}
