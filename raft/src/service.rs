//! The peer service: what other members may ask of this one.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, TryStreamExt};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use keelson_proto::peer::peer_server::{Peer, PeerServer};
use keelson_proto::peer::{Frame, SnapshotPart};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tower::ServiceExt;

use crate::codec;
use crate::inline::{Driven, Inline};
use crate::limits::{MAX_MESSAGE_BYTES, PEER_CONNECT_MILLIS, PEER_FRAME_BYTES, PEER_STREAMS};
use crate::machine::Built;
use crate::message::{self, Answer, Ask, SnapshotHead};
use crate::network::answer_frame;
use crate::peer_tls::PeerTls;
use crate::replica::Inner;
use crate::suspicion::connection_ended;
use crate::transfer;
use crate::wire::Line;

fn server(inner: Arc<Inner>) -> PeerServer<Service> {
    PeerServer::new(Service(inner))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// The service for a network that is not the machine's.
pub fn line(inner: Arc<Inner>) -> Line {
    let failed = |never: std::convert::Infallible| match never {};
    Line::new(ServiceExt::<http::Request<tonic::body::Body>>::map_err(server(inner), failed))
}

/// Serves peers until `stop`.
pub async fn serve(inner: Arc<Inner>, listener: TcpListener, tls: Option<PeerTls>, stop: CancellationToken) {
    let service = server(inner.clone());
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let acceptor = tls.as_ref().map(|tls| TlsAcceptor::from(tls.server.load_full()));
                let connection = connection(stream, acceptor, service.clone());
                let inner = inner.clone();
                let stop = stop.clone();
                crate::task::spawn(async move {
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = connection => connection_ended(inner).await,
                    }
                });
            }
            Err(error) => {
                // Out of file descriptors, mostly: others may be closed meanwhile.
                tracing::warn!(%error, "cannot accept a peer's connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, acceptor: Option<TlsAcceptor>, service: PeerServer<Service>) {
    let from = stream.peer_addr().map_or_else(|_| String::new(), |address| address.to_string());
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, from, "cannot set TCP_NODELAY");
    }
    let Some(acceptor) = acceptor else { return exchange(stream, service, &from).await };
    let limit = Duration::from_millis(PEER_CONNECT_MILLIS);
    match tokio::time::timeout(limit, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => exchange(stream, service, &from).await,
        Ok(Err(error)) => tracing::warn!(%error, from, "a peer's TLS handshake failed"),
        Err(_) => tracing::warn!(from, "a peer's TLS handshake took too long"),
    }
}

/// Serves a peer on its connection.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    service: PeerServer<Service>,
    from: &str,
) {
    let requests = Inline::default();
    let served = hyper::server::conn::http2::Builder::new(requests.clone())
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(Duration::from_secs(2)))
        .keep_alive_timeout(Duration::from_secs(2))
        .max_concurrent_streams(PEER_STREAMS)
        .max_frame_size(PEER_FRAME_BYTES)
        .initial_stream_window_size(8 * 1024 * 1024)
        .initial_connection_window_size(16 * 1024 * 1024)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    if let Err(error) = Driven::new(served, requests).await {
        tracing::debug!(%error, from, "a peer's connection ended");
    }
}

/// The service's implementation.
#[derive(Clone)]
pub struct Service(Arc<Inner>);

fn malformed(error: impl std::fmt::Display) -> Status {
    Status::invalid_argument(error.to_string())
}

fn stopped(error: impl std::fmt::Display) -> Status {
    Status::unavailable(error.to_string())
}

impl Service {
    fn meant(&self, to: u64) -> Result<(), Status> {
        let own = self.0.id;
        if to == own || to == 0 {
            return Ok(());
        }
        Err(Status::failed_precondition(format!("this is member {own:x}, not {to:x}")))
    }

    async fn answer(&self, question: Ask, frame: Frame) -> Result<Answer, Status> {
        let inner = &self.0;
        Ok(match question {
            Ask::Vote(request) => Answer::Vote(inner.raft.vote(request).await.map_err(stopped)?),
            Ask::PreVote(request) => Answer::Vote(inner.raft.pre_vote(request).await.map_err(stopped)?),
            Ask::Transfer(request) => {
                Answer::Transfer(inner.raft.handle_transfer_leader(request).await.map_err(stopped)?)
            }
            Ask::ProposeMany => Answer::ProposedMany(inner.propose_many_here(frame.body).await.map_err(malformed)?),
            Ask::ReadIndexOf(id, vote) => Answer::ReadIndexOf(inner.read_index_for(id, vote).await),
            Ask::SnapshotFiles(source) => Answer::SnapshotFiles(inner.partial.files(source)),
            Ask::Affirmed => Answer::Affirmed(inner.standing.is_affirmed()),
            Ask::Confirm(vote) => Answer::Confirmed(inner.confirms(&vote)),
            Ask::ReadIndex => Answer::ReadIndex(inner.read_index_here().await),
            Ask::KeepAlive(id) => Answer::Seconds(inner.keep_alive_here(id).await),
            Ask::RemainingTtl(id) => Answer::Seconds(inner.remaining_here(id).await),
            Ask::Change(change) => Answer::Changed(inner.change_here(change).await),
            Ask::Hash(revision) => Answer::Hash(inner.store.hash_at(revision)),
            Ask::Status => Answer::Status(inner.peer_status()),
            Ask::Members => Answer::Members(inner.roll()),
            Ask::Other(question) => Answer::Other(inner.answer_other(question).await),
        })
    }
}

#[tonic::async_trait]
impl Peer for Service {
    type AppendStream = Pin<Box<dyn Stream<Item = Result<Frame, Status>> + Send>>;

    async fn append(&self, request: Request<Streaming<Frame>>) -> Result<Response<Self::AppendStream>, Status> {
        let service = self.clone();
        let requests = request.into_inner().map(move |frame| {
            let frame = frame?;
            service.meant(frame.to)?;
            message::read_append(frame).map_err(malformed)
        });
        // The first bad request ends the stream; what came before it is answered.
        let requests = requests.take_while(|request| std::future::ready(request.is_ok()));
        let requests = requests.filter_map(|request| std::future::ready(request.ok()));
        let answers = self.0.raft.stream_append(requests).map_err(stopped);
        let frames = answers.map(|answer| answer.and_then(|answer| answer_frame(&answer)));
        Ok(Response::new(Box::pin(frames)))
    }

    async fn ask(&self, request: Request<Frame>) -> Result<Response<Frame>, Status> {
        let frame = request.into_inner();
        self.meant(frame.to)?;
        let question = codec::decode(&frame.head).map_err(malformed)?;
        Ok(Response::new(answer_frame(&self.answer(question, frame).await?)?))
    }

    async fn install(&self, request: Request<Streaming<SnapshotPart>>) -> Result<Response<Frame>, Status> {
        let mut parts = request.into_inner();
        let first = parts.message().await?.ok_or_else(|| malformed("an empty snapshot"))?;
        self.meant(first.to)?;
        transfer::check_head(&first)?;
        let SnapshotHead { vote, meta } = codec::decode(&first.head).map_err(malformed)?;
        let inner = &self.0;
        let snapshot = transfer::receive(parts, &inner.incoming, &inner.partial, first.source).await?;
        // Raft takes a snapshot that cannot be opened for the end of this member: it is to be sent again.
        let dir = snapshot.path().to_owned();
        let whole = crate::task::blocking(move || keelson_store::inspect_checkpoint(&dir)).await.map_err(stopped)?;
        whole.map_err(|fatal| malformed(format!("the snapshot did not come whole: {fatal}")))?;
        tracing::info!(last = ?meta.last_log_id, "a snapshot has arrived");
        let built = Built { meta, snapshot };
        let response = self.0.raft.install_full_snapshot(vote, built).await.map_err(stopped)?;
        Ok(Response::new(answer_frame(&Answer::Installed(response))?))
    }
}
