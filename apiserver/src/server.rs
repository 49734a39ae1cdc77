//! Serving over TLS: HTTP/1.1 and HTTP/2, client certificates, upgrades, an orderly end.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderValue, Request, Response, header};
use http_body::Body as _;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use keelson_client::Body;
use keelson_machinery::status::Status;
use keelson_pki::ServerSlot;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::activity::Activity;
use crate::audit::Peer;
use crate::authn::Certificates;
use crate::pace::{Pace, paced};
use crate::seldom::Seldom;
use crate::turns::{self, Turns};
use crate::{ApiServer, body};

/// A TLS handshake must be done within this.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The body of a request must have come within this.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a connection's other side is asked whether it is still there.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// Connections at once.
const MAX_CONNECTIONS: usize = 20_000;
/// What is written for a client that does not read, bytes for each connection (HTTP/1) or stream (HTTP/2): thousands of such
/// clients must not fill the memory. The head of a request must fit as well.
const BUFFER_BYTES: usize = 64 << 10;
/// What is encrypted for a connection and not yet taken by its socket, bytes.
const ENCRYPTED_BYTES: usize = 32 << 10;
/// What a socket takes beyond what its client makes room for, bytes. Without a limit it would be megabytes for each client
/// that does not read, and what all sockets may have together is limited, so that others' writes would stall.
const UNSENT_BYTES: u32 = 64 << 10;
/// Pause after accept failed (out of file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// The end of a connection that did nothing is not waited for longer.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Requests under way at the end get this long.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Bounds what the kernel holds for clients that do not read, on the connections that a listener accepts.
fn bound(listener: &TcpListener) {
    if let Err(error) = SockRef::from(listener).set_tcp_notsent_lowat(UNSENT_BYTES) {
        // Not every sandbox has it; it is no reason not to serve.
        warn!(%error, "what sockets hold is not bounded");
    }
}

/// Accepts connections until `stop` is cancelled.
pub async fn serve(server: Arc<ApiServer>, listener: TcpListener, tls: Arc<ServerSlot>, stop: CancellationToken) {
    bound(&listener);
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let pace = Pace::new();
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
        let (server, acceptor) = (server.clone(), TlsAcceptor::from(tls.load()));
        let (pace, stop) = (pace.clone(), stop.clone());
        tokio::spawn(async move {
            if let Err(error) = connection(server, stream, peer, acceptor, pace, stop).await {
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

/// Why a connection is to end.
#[derive(Clone, Copy)]
enum Alarm {
    Stop,
    Idle,
}

async fn connection(
    server: Arc<ApiServer>,
    stream: TcpStream,
    peer: SocketAddr,
    acceptor: TlsAcceptor,
    pace: Arc<Pace>,
    stop: CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    let mut stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await??;
    let (_, tls) = stream.get_mut();
    tls.set_buffer_limit(Some(ENCRYPTED_BYTES));
    let certificates = Arc::new(Certificates::new(tls.peer_certificates().unwrap_or_default()));
    let with_streams = tls.alpn_protocol() == Some(b"h2");
    let activity = Activity::new(!with_streams);
    let doing = activity.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (server, certificates, pace, doing) = (server.clone(), certificates.clone(), pace.clone(), doing.begin());
        async move {
            let mut response = handle(&server, &certificates, peer, request).await;
            // What is behind a login is nobody's to keep, unless it says itself that it is.
            response
                .headers_mut()
                .entry(header::CACHE_CONTROL)
                .or_insert(HeaderValue::from_static("no-cache, private"));
            let lasting = response.extensions().get::<body::Lasting>().is_some();
            if with_streams && lasting {
                turns::lasts();
            }
            let response = if lasting { paced(response, &pace, with_streams) } else { response };
            // What fits into the buffer is as good as written.
            let short = response.body().size_hint().exact().is_some_and(|bytes| bytes <= BUFFER_BYTES as u64);
            Ok::<_, Infallible>(if short { response } else { body::holding(response, doing) })
        }
    });
    let watched = activity.clone();
    let alarm = async move {
        tokio::select! {
            () = stop.cancelled_owned() => Alarm::Stop,
            () = watched.over() => Alarm::Idle,
        }
    };
    if with_streams {
        let served = Turns::new(stream, |streams, stream| {
            let mut builder = http2::Builder::new(streams);
            builder.timer(TokioTimer::new()).keep_alive_interval(PING_INTERVAL).max_concurrent_streams(1000);
            builder.max_send_buf_size(BUFFER_BYTES);
            builder.serve_connection(TokioIo::new(stream), service)
        });
        drive(served, |mut served| served.connection().graceful_shutdown(), alarm).await
    } else {
        let mut builder = http1::Builder::new();
        builder.max_buf_size(BUFFER_BYTES).header_read_timeout(None);
        let stream = TokioIo::new(Noticed { stream, activity });
        let served = builder.serve_connection(stream, service).with_upgrades();
        Ok(drive(served, |served| served.graceful_shutdown(), alarm).await?)
    }
}

/// Drives a connection until it ends or is to end.
async fn drive<C: Future<Output = Result<(), E>>, E>(
    connection: C,
    shut_down: impl FnOnce(Pin<&mut C>),
    alarm: impl Future<Output = Alarm> + Send,
) -> Result<(), E> {
    tokio::pin!(connection);
    let mut alarms = Seldom::new(Box::pin(futures::stream::once(alarm)));
    let alarm = tokio::select! {
        biased;
        result = connection.as_mut() => return result,
        alarm = alarms.next() => alarm,
    };
    shut_down(connection.as_mut());
    match alarm {
        // A request whose head never came in full is not waited for.
        Some(Alarm::Idle) => tokio::time::timeout(CLOSE_TIMEOUT, connection).await.unwrap_or(Ok(())),
        Some(Alarm::Stop) | None => connection.await,
    }
}

/// A connection's bytes, of which its activity is told.
struct Noticed {
    stream: TlsStream<TcpStream>,
    activity: Arc<Activity>,
}

impl AsyncRead for Noticed {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, into);
        if into.filled().len() > before {
            self.activity.came();
        }
        polled
    }
}

impl AsyncWrite for Noticed {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

async fn handle(
    server: &ApiServer,
    certificates: &Certificates,
    peer: SocketAddr,
    mut request: Request<Incoming>,
) -> Response<Body> {
    let upgrade = request.headers().contains_key(header::UPGRADE).then(|| hyper::upgrade::on(&mut request));
    let (mut parts, incoming) = request.into_parts();
    // Nothing that came from outside may pass for what only in-process callers set.
    parts.extensions.clear();
    parts.extensions.insert(Peer(peer));
    if let Some(upgrade) = upgrade {
        parts.extensions.insert(upgrade);
    }
    let bytes = match whole(incoming).await {
        Ok(bytes) => bytes,
        Err(status) => return body::refusal(&status),
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

/// The body of a request.
async fn whole(incoming: Incoming) -> Result<Bytes, Status> {
    if incoming.is_end_stream() {
        return Ok(Bytes::new());
    }
    let body = Limited::new(incoming, body::MAX_BODY_BYTES).collect();
    match tokio::time::timeout(BODY_TIMEOUT, body).await {
        Err(_) => Err(Status::bad_request("the body did not come in time")),
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(Status::too_large(format!("limit is {}", body::MAX_BODY_BYTES)))
        }
        Ok(Err(error)) => Err(Status::bad_request(format!("the body could not be read: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn accepted_connections_are_bounded_as_their_listener() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        bound(&listener);
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        assert_eq!(SockRef::from(&stream).tcp_notsent_lowat().unwrap(), UNSENT_BYTES);
    }
}
