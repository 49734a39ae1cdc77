//! Serves the API on a socket: gRPC and etcd's HTTP endpoints on one port, in the clear or over TLS.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use keelson_proto::etcd::{etcdserverpb, reflection as v1, reflection_v1alpha as v1alpha, v3electionpb, v3lockpb};
use keelson_proto::health;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tower::ServiceExt;

use super::calls::{Calls, Metered};
use super::limits::{HANDSHAKE_TIMEOUT, MAX_CONNECTIONS, MESSAGE_OVERHEAD_BYTES};
use super::tls::{ClientTls, PeerName};
use super::{
    Front, auth, election, health as own_health, http as own_http, kv, lease, lock, maintenance, members, reflection,
    unary, watch,
};
use crate::inline::{Driven, Inline};

/// How long connections may take to end when the server stops.
const GOODBYE: Duration = Duration::from_secs(1);
/// Flow-control windows of a connection and of a stream.
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;

/// What is served on a port.
#[derive(Clone)]
pub struct Services {
    /// All of it.
    pub router: Router,
    /// What has a short way past the router.
    keys: Option<Arc<kv::KvService>>,
    /// Most requests of one connection at once.
    streams: u32,
    calls: Arc<Calls>,
    /// When silent clients are asked whether they live, and how long they may take.
    keep_alive: (Duration, Duration),
}

impl Services {
    fn new(front: &Front, router: Router, keys: Option<Arc<kv::KvService>>) -> Self {
        let (streams, keep_alive) = (front.options.streams_per_connection, front.options.keep_alive);
        Self { router, keys, streams, calls: front.calls.clone(), keep_alive }
    }
}

/// All services of the API.
pub fn routes(front: &Arc<Front>) -> Services {
    let most = front.options.max_request_bytes + MESSAGE_OVERHEAD_BYTES;
    macro_rules! limited {
        ($server:expr) => {
            $server.max_decoding_message_size(most).max_encoding_message_size(usize::MAX)
        };
    }
    let routes = Routes::new(limited!(etcdserverpb::kv_server::KvServer::new(kv::KvService(front.clone()))))
        .add_service(limited!(etcdserverpb::watch_server::WatchServer::new(watch::WatchService(front.clone()))))
        .add_service(limited!(etcdserverpb::lease_server::LeaseServer::new(lease::LeaseService(front.clone()))))
        .add_service(limited!(etcdserverpb::cluster_server::ClusterServer::new(members::ClusterService(front.clone()))))
        .add_service(limited!(etcdserverpb::maintenance_server::MaintenanceServer::new(
            maintenance::MaintenanceService(front.clone())
        )))
        .add_service(limited!(v3lockpb::lock_server::LockServer::new(lock::LockService(front.clone()))))
        .add_service(limited!(v3electionpb::election_server::ElectionServer::new(election::ElectionService(
            front.clone()
        ))))
        .add_service(limited!(etcdserverpb::auth_server::AuthServer::new(auth::AuthService(front.clone()))))
        .add_service(v1::server_reflection_server::ServerReflectionServer::new(reflection::ReflectionService))
        .add_service(v1alpha::server_reflection_server::ServerReflectionServer::new(reflection::ReflectionService))
        .add_service(health::health_server::HealthServer::new(own_health::HealthService(front.clone())));
    let router = routes.prepare().into_axum_router().merge(own_http::routes(front));
    Services::new(front, router, Some(Arc::new(kv::KvService(front.clone()))))
}

/// The HTTP endpoints alone.
pub fn http_routes(front: &Arc<Front>) -> Services {
    Services::new(front, own_http::routes(front), None)
}

/// How connections are served.
fn builder(services: &Services, requests: Inline) -> auto::Builder<Inline> {
    let mut builder = auto::Builder::new(requests);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(services.streams)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .keep_alive_interval(Some(services.keep_alive.0).filter(|every| !every.is_zero()))
        .keep_alive_timeout(services.keep_alive.1);
    builder.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(10));
    builder
}

/// Accepts connections until `stop`; then lets what is under way end.
pub async fn serve(services: Services, listener: TcpListener, tls: Option<ClientTls>, stop: CancellationToken) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let (socket, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(place) = room.clone().try_acquire_owned() else {
            tracing::warn!(%peer, "too many connections: one is refused");
            continue;
        };
        let (services, tls, stop) = (services.clone(), tls.clone(), stop.clone());
        crate::task::spawn(async move {
            let ended = connection(socket, services, tls, stop).await;
            if let Err(error) = ended {
                tracing::debug!(%peer, %error, "a connection ended");
            }
            drop(place);
        });
    }
    let _ = tokio::time::timeout(GOODBYE, room.acquire_many(MAX_CONNECTIONS as u32)).await;
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Serves one connection.
async fn connection(
    socket: TcpStream,
    services: Services,
    tls: Option<ClientTls>,
    stop: CancellationToken,
) -> Result<(), Failure> {
    socket.set_nodelay(true)?;
    match tls {
        None => exchange(socket, services, PeerName(None), stop).await,
        Some(tls) => {
            let (socket, name) = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(socket)).await??;
            exchange(socket, services, name, stop).await
        }
    }
}

/// Serves HTTP on a stream whose client is known by `name`.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    services: Services,
    name: PeerName,
    stop: CancellationToken,
) -> Result<(), Failure> {
    let stream = Metered::new(stream, services.calls.clone());
    let shared = Arc::new((services, name));
    let requests = Inline::default();
    let builder = builder(&shared.0, requests.clone());
    let service = service_fn(move |request| respond(shared.clone(), request));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut driven = Driven::new(connection, requests);
    tokio::select! {
        ended = &mut driven => return ended,
        () = stop.cancelled() => driven.connection().graceful_shutdown(),
    }
    driven.await
}

async fn respond(
    shared: Arc<(Services, PeerName)>,
    mut request: http::Request<Incoming>,
) -> Result<http::Response<unary::Answer>, std::convert::Infallible> {
    let (services, name) = &*shared;
    request.extensions_mut().insert(name.clone());
    if let Some(keys) = &services.keys
        && let Some(call) = unary::Call::of(&request)
    {
        return Ok(unary::answer(keys, call, request).await);
    }
    let mut call = services.calls.begin(request.uri().path());
    let routed = services.router.clone().oneshot(request.map(axum::body::Body::new));
    // Boxed: it is far larger than what the short way needs.
    let answer = Box::pin(routed).await?;
    if let Some(call) = &mut call {
        call.ended_as(answer.headers());
    }
    Ok(answer.map(|body| unary::Answer::Routed(body, call)))
}
