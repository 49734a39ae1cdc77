//! The agent's own server: logs, exec, attach, port-forward, health and the pods it knows, for the API server and people.
//!
//! Invariant: every request is authenticated by certificate or token and authorized by the API before it is looked at.

mod access;
mod forward_socket;
mod inspect;
mod logs;
mod stream;
mod websocket;

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use keelson_client::Body;
use keelson_pki::ServerSlot;
use rustls::pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::agent::Agent;

/// A TLS handshake must be done within this.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections at once.
const MAX_CONNECTIONS: usize = 2000;
/// Pause after accept failed (out of file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Content type of metrics.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A refusal: HTTP code and text.
#[derive(Debug)]
pub(crate) struct Refusal(pub u16, pub String);

impl Refusal {
    /// The server's own fault.
    fn internal(why: impl std::fmt::Display) -> Self {
        Self(500, why.to_string())
    }
}

impl From<tonic::Status> for Refusal {
    fn from(status: tonic::Status) -> Self {
        let code = if status.code() == tonic::Code::NotFound { 404 } else { 500 };
        Self(code, status.message().to_owned())
    }
}

type Answer = Result<Response<Body>, Refusal>;

/// What handlers share.
pub(crate) struct Server {
    agent: Arc<Agent>,
    access: access::Access,
}

/// Accepts connections for ever.
pub(crate) async fn serve(agent: Arc<Agent>, listener: TcpListener, tls: Arc<ServerSlot>) {
    let access = access::Access::new(agent.config.client.clone(), agent.config.node_name.clone());
    let server = Arc::new(Server { agent, access });
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = connections.clone().try_acquire_owned() else { continue };
        let (server, acceptor) = (server.clone(), tokio_rustls::TlsAcceptor::from(tls.load()));
        tokio::spawn(async move {
            if let Err(error) = connection(server, stream, peer, acceptor).await {
                tracing::debug!(%peer, %error, "connection ended");
            }
            drop(permit);
        });
    }
}

async fn connection(
    server: Arc<Server>,
    stream: TcpStream,
    peer: SocketAddr,
    acceptor: tokio_rustls::TlsAcceptor,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await??;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|c| c.first()).map(|c| c.clone().into_owned());
    let certificate: Arc<Option<CertificateDer<'static>>> = Arc::new(certificate);
    let service = service_fn(move |request: Request<Incoming>| {
        let (server, certificate) = (server.clone(), certificate.clone());
        async move { Ok::<_, Infallible>(server.handle(certificate.as_ref().as_ref(), peer, request).await) }
    });
    auto::Builder::new(TokioExecutor::new()).serve_connection_with_upgrades(TokioIo::new(stream), service).await
}

/// Bytes as a body.
fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

fn answer(code: u16, content_type: &'static str, bytes: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(bytes));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

/// The query's parameters, decoded, in their order.
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    fn parse(query: Option<&str>) -> Self {
        let pairs = query.unwrap_or_default().split('&').filter(|p| !p.is_empty());
        Self(pairs.map(|p| p.split_once('=').unwrap_or((p, ""))).map(|(k, v)| (decode(k), decode(v))).collect())
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, v)| k == key && !v.is_empty()).map(|(_, v)| v.as_str())
    }

    fn all(&self, key: &str) -> Vec<String> {
        self.0.iter().filter(|(k, _)| k == key).map(|(_, v)| v.clone()).collect()
    }

    fn flag(&self, key: &str) -> bool {
        self.get(key).is_some_and(|v| matches!(v, "1" | "true" | "True" | "TRUE"))
    }
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = |at: usize| bytes.get(at).and_then(|b| char::from(*b).to_digit(16));
        match (bytes[i], hex(i + 1), hex(i + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                i += 3;
                continue;
            }
            (b'+', ..) => out.push(b' '),
            (byte, ..) => out.push(byte),
        }
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

impl Server {
    async fn handle(
        &self,
        certificate: Option<&CertificateDer<'static>>,
        peer: SocketAddr,
        request: Request<Incoming>,
    ) -> Response<Body> {
        let line = format!("{} {}", request.method(), request.uri().path());
        match self.answer(certificate, request).await {
            Ok(response) => response,
            Err(Refusal(code, text)) => {
                tracing::debug!(%peer, line, code, text, "refused");
                answer(code, "text/plain; charset=utf-8", text)
            }
        }
    }

    async fn answer(&self, certificate: Option<&CertificateDer<'static>>, mut request: Request<Incoming>) -> Answer {
        let user = self.access.user(certificate, request.headers()).await?;
        self.access.authorize(&user, request.method(), request.uri().path()).await?;
        let path = request.uri().path().to_owned();
        let parts: Vec<String> = path.split('/').skip(1).map(decode).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let query = Query::parse(request.uri().query());
        let get = matches!(*request.method(), Method::GET | Method::HEAD);
        match parts[..] {
            ["healthz" | "livez", ..] if get => Ok(answer(200, "text/plain; charset=utf-8", "ok")),
            ["pods"] if get => self.pods(),
            ["stats", "summary"] if get => Ok(answer(200, "application/json", self.agent.summary().to_string())),
            ["metrics", "resource"] if get => Ok(answer(200, METRICS, self.agent.resource_metrics())),
            ["metrics", "cadvisor"] if get => Ok(answer(200, METRICS, self.agent.container_metrics())),
            ["configz"] if get => Ok(answer(200, "application/json", self.configz().to_string())),
            ["runningpods"] | ["runningpods", ""] if get => self.running_pods().await,
            ["checkpoint", namespace, pod, container] if *request.method() == Method::POST => {
                self.checkpoint(namespace, pod, container, &query).await
            }
            ["metrics"] if get => Ok(answer(200, METRICS, self.agent.own_metrics())),
            ["containerLogs", namespace, pod, container] if get => {
                logs::serve(self, namespace, pod, container, &query).await
            }
            ["exec", namespace, pod, container] | ["exec", namespace, pod, _, container] => {
                stream::exec(self, namespace, pod, container, &query, &mut request).await
            }
            ["attach", namespace, pod, container] | ["attach", namespace, pod, _, container] => {
                stream::attach(self, namespace, pod, container, &query, &mut request).await
            }
            ["portForward", namespace, pod] | ["portForward", namespace, pod, _] => {
                stream::port_forward(self, namespace, pod, &query, &mut request).await
            }
            ["run", namespace, pod, container] if *request.method() == Method::POST => {
                stream::run(self, namespace, pod, container, &query).await
            }
            ["tunnel", ip, port] if get => stream::tunnel(ip, port, &mut request).await,
            _ => Err(Refusal(404, "404 page not found\n".into())),
        }
    }

    /// The pods that the API gave this node.
    fn pods(&self) -> Answer {
        let pods = self.agent.pods.list();
        let list = serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods});
        Ok(answer(200, "application/json", list.to_string()))
    }

    fn pod(&self, namespace: &str, name: &str) -> Result<k8s_openapi::api::core::v1::Pod, Refusal> {
        let found =
            self.agent.pods.list().into_iter().find(|p| {
                p.metadata.namespace.as_deref() == Some(namespace) && p.metadata.name.as_deref() == Some(name)
            });
        found.map(|pod| (*pod).clone()).ok_or_else(|| Refusal(404, format!("pod \"{name}\" not found")))
    }

    /// The runs of a container that the runtime still has, newest first.
    async fn runs(
        &self,
        pod: &k8s_openapi::api::core::v1::Pod,
        container: &str,
    ) -> Result<Vec<keelson_proto::cri::Container>, Refusal> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let labels = HashMap::from([
            (crate::cri::POD_UID.to_owned(), uid),
            (crate::cri::CONTAINER_NAME.to_owned(), container.to_owned()),
        ]);
        Ok(self.agent.runtime.containers(labels).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        let query = Query::parse(Some("command=a%20b&command=c%26&tty=1&x=&y"));
        assert_eq!(query.all("command"), ["a b", "c&"]);
        assert!(query.flag("tty") && !query.flag("x") && !query.flag("z"));
        assert_eq!(query.get("x"), None);
    }
}
