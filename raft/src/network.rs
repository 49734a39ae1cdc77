//! The way to other members: gRPC over mutual TLS, one connection for replication and one for everything that must not
//! wait behind it.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use hyper_util::rt::TokioIo;
use keelson_proto::peer::Frame;
use keelson_proto::peer::peer_client::PeerClient;
use openraft::OptionalSend;
use openraft::base::{BoxFuture, BoxStream};
use openraft::entry::RaftEntry;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Endpoint, Uri};

use crate::codec;
use crate::compare::Standing;
use crate::figures::Figures;
use crate::limits::{
    MAX_MESSAGE_BYTES, PEER_CONNECT_MILLIS, PEER_REQUEST_MILLIS, PEER_RETRY_MILLIS, SNAPSHOT_TRANSFER_MILLIS,
};
use crate::machine::{Built, SnapshotData};
use crate::message::{self, Answer, Ask, SnapshotHead};
use crate::peer_tls::{PeerTls, Target};
use crate::task;
use crate::transfer;
use crate::types::{LogId, Node, TypeConfig, Vote};
use crate::wire::{Transport, Wire};

/// Name that every member's peer certificate carries: who a member is follows from the peer CA and its id, not from
/// its address.
pub const PEER_NAME: &str = "keelson-peer";

type RpcError = RPCError<TypeConfig>;

/// Makes connections to members.
#[derive(Clone)]
pub struct Network {
    tls: Option<PeerTls>,
    wire: Option<Arc<dyn Wire>>,
    /// Highest index that other members were told is committed.
    told: Arc<AtomicU64>,
    /// For questions of this member's own, by the other's address.
    channels: Arc<Mutex<std::collections::HashMap<String, Transport>>>,
    figures: Arc<Figures>,
    standing: Arc<Standing>,
}

/// The way to one member.
pub struct Peer {
    target: u64,
    name: String,
    /// Whether the last attempt to replicate to it failed.
    lost: bool,
    address: String,
    client: PeerClient<Transport>,
    told: Arc<AtomicU64>,
    figures: Arc<Figures>,
    standing: Arc<Standing>,
}

fn unreachable(error: impl std::fmt::Display) -> RpcError {
    RPCError::Unreachable(Unreachable::from_string(error))
}

fn broken(error: impl std::fmt::Display) -> RpcError {
    RPCError::Network(NetworkError::from_string(error))
}

/// A connection that is being lost is tried again at once by openraft; one that cannot be made is waited for.
fn of_status(status: &tonic::Status) -> RpcError {
    unreachable(format!("{}: {}", status.code(), status.message()))
}

/// A connection to a member, in the clear or not.
type Connection = Box<dyn Duplex>;

/// What is read and written.
trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Connects to the first of a member's addresses that answers.
async fn connect(tls: Option<PeerTls>, targets: Vec<Target>) -> std::io::Result<TokioIo<Connection>> {
    let mut failure = std::io::Error::new(std::io::ErrorKind::InvalidInput, "the member has no address");
    for target in &targets {
        let limit = Duration::from_millis(PEER_CONNECT_MILLIS);
        match tokio::time::timeout(limit, connect_to(tls.as_ref(), target)).await {
            Ok(Ok(connection)) => return Ok(TokioIo::new(connection)),
            Ok(Err(error)) => failure = error,
            Err(_) => failure = std::io::ErrorKind::TimedOut.into(),
        }
    }
    Err(failure)
}

async fn connect_to(tls: Option<&PeerTls>, target: &Target) -> std::io::Result<Connection> {
    let stream = TcpStream::connect(&target.authority).await?;
    stream.set_nodelay(true)?;
    if !target.secure {
        return Ok(Box::new(stream));
    }
    let Some(tls) = tls else {
        let why = "the member is reached over TLS, for which this one has no certificate";
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, why));
    };
    let name = tls.name.unwrap_or_else(|| target.host()).to_owned();
    let name = ServerName::try_from(name).map_err(std::io::Error::other)?;
    Ok(Box::new(TlsConnector::from(tls.client.load_full()).connect(name, stream).await?))
}

impl Network {
    /// A network with this identity.
    pub fn new(tls: Option<PeerTls>) -> Self {
        let (told, channels, figures, standing) = Default::default();
        Self { tls, wire: None, told, channels, figures, standing }
    }

    /// The same over a simulated network, if there is one.
    pub fn over(self, wire: Option<Arc<dyn Wire>>) -> Self {
        Self { wire, ..self }
    }

    /// The same, counting into a member's numbers.
    pub fn counted(self, figures: Arc<Figures>) -> Self {
        Self { figures, ..self }
    }

    /// The same of a member that gives its state to others when it may rely on it.
    pub fn judged(self, standing: Arc<Standing>) -> Self {
        Self { standing, ..self }
    }

    /// Highest index that other members were told is committed: none of them has applied more because of this one.
    pub fn told(&self) -> u64 {
        self.told.load(Ordering::SeqCst)
    }

    /// The simulated network, if there is one.
    pub fn wire(&self) -> Option<&Arc<dyn Wire>> {
        self.wire.as_ref()
    }

    fn channel(&self, address: &str) -> Transport {
        if let Some(wire) = &self.wire {
            return Transport::Line(wire.line(address));
        }
        let (tls, targets) = (self.tls.clone(), Target::list(address));
        let connector = tower::service_fn(move |_: Uri| connect(tls.clone(), targets.clone()));
        // Where it leads is the connector's matter.
        let endpoint = Endpoint::from_static("http://member");
        let channel = endpoint
            .http2_keep_alive_interval(Duration::from_secs(2))
            .keep_alive_timeout(Duration::from_secs(2))
            .keep_alive_while_idle(true)
            .initial_stream_window_size(8 * 1024 * 1024)
            .initial_connection_window_size(16 * 1024 * 1024)
            .connect_with_connector_lazy(connector);
        Transport::Channel(channel)
    }

    fn client(channel: Transport) -> PeerClient<Transport> {
        PeerClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn peer(&self, target: u64, member: &Node) -> Peer {
        let address = member.peer_address.clone();
        let (client, told) = (Self::client(self.channel(&address)), self.told.clone());
        let (figures, standing) = (self.figures.clone(), self.standing.clone());
        Peer { target, name: member.name.clone(), lost: false, client, address, told, figures, standing }
    }

    /// Asks a member. Connections are kept. The error tells whether the question may have arrived.
    pub async fn ask(&self, to: u64, address: &str, question: &Ask, body: Bytes) -> Result<Answer, AskError> {
        let channel = self.channels.lock().entry(address.to_owned()).or_insert_with(|| self.channel(address)).clone();
        let limit = Duration::from_millis(PEER_REQUEST_MILLIS);
        ask(&mut Self::client(channel), to, question, body, limit).await
    }
}

/// Why a question got no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// It was not sent.
    #[error("{0}")]
    NotSent(String),
    /// It may have been sent and done.
    #[error("{0}")]
    Unknown(String),
}

impl From<codec::Error> for AskError {
    fn from(error: codec::Error) -> Self {
        Self::Unknown(error.to_string())
    }
}

async fn ask(
    client: &mut PeerClient<Transport>,
    to: u64,
    question: &Ask,
    body: Bytes,
    limit: Duration,
) -> Result<Answer, AskError> {
    let frame = message::frame(to, question, body)?;
    let answered = tokio::time::timeout(limit, client.ask(frame)).await;
    let answered = answered.map_err(|_| AskError::Unknown(format!("no answer within {limit:?}")))?;
    let frame = answered.map_err(|status| {
        let why = format!("{}: {}", status.code(), status.message());
        let refused = matches!(status.code(), tonic::Code::FailedPrecondition | tonic::Code::ResourceExhausted);
        let unconnected = std::error::Error::source(&status).is_some_and(is_connect_error);
        if refused || unconnected { AskError::NotSent(why) } else { AskError::Unknown(why) }
    })?;
    Ok(codec::decode(&frame.into_inner().head)?)
}

/// Whether the error came before anything was sent.
fn is_connect_error(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.downcast_ref::<tonic::ConnectError>().is_some() {
            return true;
        }
        next = error.source();
    }
    false
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &Node) -> Peer {
        self.peer(target, node)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &Node) -> Peer {
        self.peer(target, node)
    }
}

impl Peer {
    async fn ask(&mut self, question: &Ask, option: &RPCOption) -> Result<Answer, RpcError> {
        let limit = option.hard_ttl();
        ask(&mut self.client, self.target, question, Bytes::new(), limit)
            .await
            .map_err(|error| unreachable(format!("member {} at {}: {error}", self.target, self.address)))
    }

    /// Entries go as a stream: what is sent alone is a heartbeat.
    async fn append_one(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        limit: Duration,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
        let mut responses = self.append_stream(futures::stream::iter([rpc]), limit).await?;
        let answered = tokio::time::timeout(limit, responses.next()).await.map_err(|_| unreachable("no answer"))?;
        Ok(answered.ok_or_else(|| broken("the stream ended without an answer"))??.into())
    }

    async fn append_stream<S>(&mut self, input: S, limit: Duration) -> Result<Responses, RpcError>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        let target = self.target;
        let purged = Arc::new(AtomicBool::new(false));
        let notices = purged.clone();
        // Requests end with their answers: what carries them would otherwise go on to take from openraft's queue, which the
        // next stream shares, and what it took would be lost with a stream that nobody answers any more.
        let (lives, ended) = tokio::sync::oneshot::channel::<()>();
        let input = input.take_until(ended);
        let input = input.take_while(move |request| {
            let follows = follows(request.prev_log_id, request.entries.first().map(RaftEntry::log_id));
            notices.fetch_or(!follows, Ordering::SeqCst);
            std::future::ready(follows)
        });
        // An entry that cannot be encoded ends the stream; the log would not have taken it.
        let told = self.told.clone();
        let frame = move |request: AppendEntriesRequest<TypeConfig>| {
            told.fetch_max(request.leader_commit.map_or(0, |committed| committed.index), Ordering::SeqCst);
            message::append_frame(target, &request)
        };
        let frames = input.map(frame).take_while(|framed| {
            if let Err(error) = framed {
                tracing::error!(%error, "an entry cannot be sent");
            }
            std::future::ready(framed.is_ok())
        });
        let frames = frames.filter_map(|framed| std::future::ready(framed.ok()));
        let opened = tokio::time::timeout(limit, self.client.append(frames)).await;
        let responses = opened.map_err(|_| unreachable("no answer"))?.map_err(|status| of_status(&status))?;
        let answers = responses.into_inner().map(move |frame| {
            let _lives = &lives;
            match frame {
                Ok(frame) => codec::decode::<StreamAppendResult<TypeConfig>>(&frame.head).map_err(broken),
                Err(status) => Err(of_status(&status)),
            }
        });
        // The leader then sends a snapshot.
        let gap = async move { purged.load(Ordering::SeqCst).then(|| Err(broken("what it needs next was purged"))) };
        Ok(Box::pin(answers.chain(futures::stream::once(gap).filter_map(std::future::ready))))
    }
}

/// Whether the first entry of a request comes right after what it builds on. It does not if the entries between were
/// purged while the stream was under way: the receiver's log must not be given them.
fn follows(previous: Option<LogId>, first: Option<LogId>) -> bool {
    first.is_none_or(|first| first.index == previous.map_or(0, |previous| previous.index + 1))
}

type Responses = BoxStream<'static, Result<StreamAppendResult<TypeConfig>, RpcError>>;

impl RaftNetworkV2<TypeConfig> for Peer {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
        let begun = Instant::now();
        let appended = self.append_one(rpc, option.hard_ttl()).await;
        self.figures.heartbeat(self.target, begun.elapsed(), appended.is_ok());
        appended
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RpcError>>, RpcError>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            match self.append_stream(input, option.soft_ttl()).await {
                Ok(responses) => {
                    if std::mem::take(&mut self.lost) {
                        tracing::info!(member = self.name, address = self.address, "the member is reachable again");
                    }
                    let responses: BoxStream<'s, _> = responses;
                    Ok(responses)
                }
                Err(error) => {
                    if !std::mem::replace(&mut self.lost, true) {
                        tracing::warn!(member = self.name, address = self.address, %error, "the member is unreachable");
                    }
                    // openraft's own back-off only holds back requests of a stream that stands.
                    tokio::time::sleep(Duration::from_millis(PEER_RETRY_MILLIS)).await;
                    Err(error)
                }
            }
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        match self.ask(&Ask::Vote(rpc), &option).await? {
            Answer::Vote(response) => Ok(response),
            _ => Err(broken("an answer to another question")),
        }
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        match self.ask(&Ask::PreVote(rpc), &option).await? {
            Answer::Vote(response) => Ok(response),
            _ => Err(broken("an answer to another question")),
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        match self.ask(&Ask::Transfer(req), &option).await? {
            Answer::Transfer(response) => Ok(response),
            _ => Err(broken("an answer to another question")),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Built,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let mut cancel = std::pin::pin!(cancel);
        // A history that turns out to be wrong must not have come to another member by then.
        tokio::select! {
            () = self.standing.trusted() => {}
            closed = &mut cancel => return Err(closed.into()),
        }
        let head = codec::encode(&SnapshotHead { vote, meta: snapshot.meta.clone() }).map_err(broken)?;
        self.told.fetch_max(snapshot.meta.last_log_id.map_or(0, |last| last.index), Ordering::SeqCst);
        let (parts, receiver) = mpsc::channel(4);
        let (target, data) = (self.target, snapshot.snapshot.clone());
        // Who does not know the question has nothing.
        let known = match self.ask(&Ask::SnapshotFiles(data.source()), &option).await {
            Ok(Answer::SnapshotFiles(files)) => files.into_iter().collect(),
            _ => BTreeSet::new(),
        };
        let reading = task::spawn(async move { transfer::send(target, head.into(), &data, &known, &parts).await });
        let limit = Duration::from_millis(SNAPSHOT_TRANSFER_MILLIS);
        let sending = tokio::time::timeout(limit, self.client.install(ReceiverStream::new(receiver)));
        let frame = tokio::select! {
            sent = sending => sent.map_err(|_| unreachable("the snapshot took too long"))?,
            closed = cancel => return Err(closed.into()),
        };
        if let Ok(Err(error)) = reading.await {
            return Err(broken(format!("cannot read the snapshot: {error}")).into());
        }
        let frame = frame.map_err(|status| of_status(&status))?.into_inner();
        match codec::decode(&frame.head).map_err(broken)? {
            Answer::Installed(response) => Ok(response),
            _ => Err(broken("an answer to another question").into()),
        }
    }
}

/// A frame as an answer.
pub fn answer_frame<T: serde::Serialize>(answer: &T) -> Result<Frame, tonic::Status> {
    message::frame(0, answer, Bytes::new()).map_err(|error| tonic::Status::internal(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::follows;
    use crate::codec::log_id;

    #[test]
    fn entries_after_a_gap_are_not_sent() {
        for (previous, first, want) in [
            (None, None, true),
            (Some(7), None, true),
            (None, Some(0), true),
            (Some(7), Some(8), true),
            (Some(7), Some(9), false),
            (None, Some(3), false),
        ] {
            let id = |index: Option<u64>| index.map(|index| log_id(2, index));
            assert_eq!(follows(id(previous), id(first)), want, "{previous:?} {first:?}");
        }
    }
}
