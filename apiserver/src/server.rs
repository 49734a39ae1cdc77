//! Serving over TLS: HTTP/1.1 and HTTP/2, client certificates, upgrades, an orderly end.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use keelson_client::Body;
use keelson_machinery::status::Status;
use keelson_pki::ServerSlot;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::audit::Peer;
use crate::authn::Certificates;
use crate::{ApiServer, body};

/// A TLS handshake must be done within this.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The head of a request must have come within this.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// The body of a request must have come within this.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a connection's other side is asked whether it is still there.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// Connections at once.
const MAX_CONNECTIONS: usize = 20_000;
/// What is written for a client that does not read, bytes for each connection (HTTP/1) or stream (HTTP/2): thousands of such
/// clients must not fill the memory. The head of a request must fit as well.
const BUFFER_BYTES: usize = 64 << 10;
/// Pause after accept failed (out of file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Requests under way at the end get this long.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Accepts connections until `stop` is cancelled.
pub async fn serve(server: Arc<ApiServer>, listener: TcpListener, tls: Arc<ServerSlot>, stop: CancellationToken) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let (stream, peer) = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    debug!(%error, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        let Ok(permit) = connections.clone().try_acquire_owned() else { continue };
        let (server, acceptor, stop) = (server.clone(), TlsAcceptor::from(tls.load()), stop.clone());
        tokio::spawn(async move {
            if let Err(error) = connection(server, stream, peer, acceptor, stop).await {
                debug!(%peer, %error, "connection ended");
            }
            drop(permit);
        });
    }
    // New connections are refused at once, not left waiting.
    drop(listener);
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, connections.acquire_many(MAX_CONNECTIONS as u32)).await;
    server.auditor.flush(DRAIN_TIMEOUT).await;
}

async fn connection(
    server: Arc<ApiServer>,
    stream: TcpStream,
    peer: SocketAddr,
    acceptor: TlsAcceptor,
    stop: CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await??;
    let certificates = Arc::new(Certificates::new(stream.get_ref().1.peer_certificates().unwrap_or_default()));
    let service = service_fn(move |request: Request<Incoming>| {
        let (server, certificates) = (server.clone(), certificates.clone());
        async move { Ok::<_, Infallible>(handle(&server, &certificates, peer, request).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(BUFFER_BYTES);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(PING_INTERVAL).max_concurrent_streams(1000);
    builder.http2().max_send_buf_size(BUFFER_BYTES);
    let served = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(served);
    tokio::select! {
        result = served.as_mut() => result,
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    }
}

async fn handle(
    server: &ApiServer,
    certificates: &Certificates,
    peer: SocketAddr,
    mut request: Request<Incoming>,
) -> Response<Body> {
    let upgrade = request.headers().contains_key(http::header::UPGRADE).then(|| hyper::upgrade::on(&mut request));
    let (mut parts, incoming) = request.into_parts();
    // Nothing that came from outside may pass for what only in-process callers set.
    parts.extensions.clear();
    parts.extensions.insert(Peer(peer));
    if let Some(upgrade) = upgrade {
        parts.extensions.insert(upgrade);
    }
    let body = Limited::new(incoming, body::MAX_BODY_BYTES).collect();
    let Ok(body) = tokio::time::timeout(BODY_TIMEOUT, body).await else {
        return body::refusal(&Status::bad_request("the body did not come in time"));
    };
    let bytes = match body {
        Ok(collected) => collected.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            return body::refusal(&Status::too_large(format!("limit is {}", body::MAX_BODY_BYTES)));
        }
        Err(error) => return body::refusal(&Status::bad_request(format!("the body could not be read: {error}"))),
    };
    let user = match server.authenticator.load_full().authenticate(&parts.headers, parts.uri.path(), certificates).await
    {
        Ok(user) => user,
        Err(why) => {
            debug!(%peer, %why, "authentication failed");
            let asked = (&parts.method, &parts.headers, &parts.uri, Some(Peer(peer)));
            server.auditor.unauthenticated(asked, !certificates.chain().is_empty()).await;
            return body::refusal(&Status::unauthorized());
        }
    };
    server.call(user, Request::from_parts(parts, bytes)).await
}
