//! Serves the API on a socket: gRPC and etcd's HTTP endpoints on one port, in the clear or over TLS.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use keelson_proto::etcd::{etcdserverpb, reflection as v1, reflection_v1alpha as v1alpha, v3electionpb, v3lockpb};
use keelson_proto::health;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tower::ServiceExt;

use super::authority::AuthorityFix;
use super::limits::{HANDSHAKE_TIMEOUT, MAX_CONNECTIONS, MESSAGE_OVERHEAD_BYTES, STREAMS_PER_CONNECTION};
use super::tls::{ClientTls, PeerName};
use super::{
    Front, auth, election, health as own_health, http as own_http, kv, lease, lock, maintenance, members, reflection,
    watch,
};

/// How long connections may take to end when the server stops.
const GOODBYE: Duration = Duration::from_secs(1);
/// Flow-control windows of a connection and of a stream.
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;

/// All services of the API.
pub fn routes(front: &Arc<Front>) -> Router {
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
    routes.prepare().into_axum_router().merge(own_http::routes(front))
}

/// The HTTP endpoints alone.
pub fn http_routes(front: &Arc<Front>) -> Router {
    own_http::routes(front)
}

/// Accepts connections until `stop`; then lets what is under way end.
pub async fn serve(router: Router, listener: TcpListener, tls: Option<ClientTls>, stop: CancellationToken) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .keep_alive_interval(Some(Duration::from_secs(120)))
        .keep_alive_timeout(Duration::from_secs(20));
    builder.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(10));
    let builder = Arc::new(builder);
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
        let (router, builder, tls, stop) = (router.clone(), builder.clone(), tls.clone(), stop.clone());
        crate::task::spawn(async move {
            let ended = connection(socket, router, &builder, tls, stop).await;
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
    router: Router,
    builder: &auto::Builder<TokioExecutor>,
    tls: Option<ClientTls>,
    stop: CancellationToken,
) -> Result<(), Failure> {
    socket.set_nodelay(true)?;
    match tls {
        None => exchange(socket, router, builder, PeerName(None), stop).await,
        Some(tls) => {
            let (socket, name) = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(socket)).await??;
            exchange(socket, router, builder, name, stop).await
        }
    }
}

/// Serves HTTP on a stream whose client is known by `name`.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    builder: &auto::Builder<TokioExecutor>,
    name: PeerName,
    stop: CancellationToken,
) -> Result<(), Failure> {
    let service = TowerToHyperService::new(router.map_request(move |request: http::Request<Incoming>| {
        let mut request = request.map(axum::body::Body::new);
        request.extensions_mut().insert(name.clone());
        request
    }));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(AuthorityFix::new(stream)), service);
    tokio::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}
