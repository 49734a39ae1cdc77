//! The network between members, and from clients to them: requests and their answers take time, are held up where
//! packets are lost, and break where nothing comes through for long. As over TCP, what comes, comes in order and once.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http_body::Frame;
use http_body_util::BodyExt;
use keelson_raft::task::{self, Scope};
use keelson_raft::wire::{Failure, Line, Wire};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, Sleep};
use tonic::body::Body;

use crate::trace::Trace;

/// Stands for all clients, which are on no member's host.
pub const CLIENTS: usize = usize::MAX;
/// Parts of a body that are under way.
const PARTS_UNDER_WAY: usize = 64;
/// How long nothing may come through before a connection breaks, in milliseconds.
const BREAK_MILLIS: Range<u64> = 2000..5000;
/// How long after a lost packet it is sent again at first, in milliseconds.
const RESEND_MILLIS: u64 = 200;
/// Largest body that is not a stream.
const MAX_BODY_BYTES: usize = 64 << 20;
/// Requests whose bodies go on after they were answered.
const STREAMS: &[&str] = &["/Append", "/Install", "/Watch", "/LeaseKeepAlive", "/Snapshot", "/RangeStream", "/Observe"];

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// The peer service.
    Peer,
    /// The etcd API.
    Client,
}

/// A process that listens.
#[derive(Clone)]
pub struct Process {
    /// What runs in it.
    pub scope: Scope,
    /// Its peer service.
    pub peer: Line,
    /// Its etcd API, once it serves.
    pub client: Option<Line>,
}

struct State {
    processes: BTreeMap<usize, Process>,
    /// From, to: nothing comes through.
    cut: BTreeSet<(usize, usize)>,
    /// Share of packets between members that is lost.
    loss: f64,
    /// Share of the snapshots between members that have a bit flipped on their way.
    rot: f64,
    /// How long a packet takes, in microseconds.
    usual: Range<u64>,
    /// Further microseconds to or from a member.
    far: BTreeMap<usize, u64>,
    dice: StdRng,
    carried: u64,
}

/// The network.
#[derive(Clone)]
pub struct Net {
    state: Arc<Mutex<State>>,
    /// Changes when a cut is made or healed.
    changed: Arc<watch::Sender<u64>>,
    trace: Trace,
}

/// A way from one to another.
#[derive(Clone)]
struct Way {
    net: Net,
    from: usize,
    to: usize,
}

fn reset() -> Failure {
    Failure::unavailable("the connection was reset")
}

fn refused() -> Failure {
    Failure::from_error(tonic::ConnectError("tcp connect error: connection refused".into()).into())
}

fn timed_out() -> Failure {
    Failure::from_error(tonic::ConnectError("tcp connect error: nobody answers".into()).into())
}

impl Net {
    /// A network whose packets take `usual` microseconds.
    pub fn new(seed: u64, usual: Range<u64>, trace: Trace) -> Self {
        let state = State {
            processes: BTreeMap::new(),
            cut: BTreeSet::new(),
            loss: 0.0,
            rot: 0.0,
            usual,
            far: BTreeMap::new(),
            dice: StdRng::seed_from_u64(seed),
            carried: 0,
        };
        Self { state: Arc::new(Mutex::new(state)), changed: Arc::new(watch::Sender::new(0)), trace }
    }

    /// A member's address.
    pub fn address(member: usize) -> String {
        format!("http://member-{member}:2380")
    }

    fn at(address: &str) -> Option<usize> {
        address.strip_prefix("http://member-")?.strip_suffix(":2380")?.parse().ok()
    }

    /// A process listens at a member's address from now on; `None`: nobody does.
    pub fn listen(&self, member: usize, process: Option<Process>) {
        let mut state = self.state.lock();
        match process {
            Some(process) => drop(state.processes.insert(member, process)),
            None => drop(state.processes.remove(&member)),
        }
    }

    /// Who listens there.
    pub fn process(&self, member: usize) -> Option<Process> {
        self.state.lock().processes.get(&member).cloned()
    }

    /// Nothing comes through from one to another any more.
    pub fn cut(&self, from: usize, to: usize) {
        self.state.lock().cut.insert((from, to));
        self.changed.send_modify(|count| *count += 1);
    }

    /// Whether that is so.
    pub fn is_cut(&self, from: usize, to: usize) -> bool {
        self.state.lock().cut.contains(&(from, to))
    }

    /// Everything comes through again.
    pub fn heal(&self) {
        {
            let mut state = self.state.lock();
            state.cut.clear();
            state.far.clear();
            state.loss = 0.0;
            state.rot = 0.0;
        }
        self.changed.send_modify(|count| *count += 1);
    }

    /// Share of packets between members that is lost.
    pub fn set_loss(&self, share: f64) {
        self.state.lock().loss = share;
    }

    /// Share of the snapshots between members that have a bit flipped on their way.
    pub fn set_rot(&self, share: f64) {
        self.state.lock().rot = share;
    }

    /// Where the next snapshot's bit flips, if one does.
    fn flip(&self) -> Option<Flip> {
        let mut state = self.state.lock();
        let share = state.rot;
        if share == 0.0 || !state.dice.random_bool(share) {
            return None;
        }
        Some(Flip {
            part: state.dice.random_range(1..=FIRST_PARTS),
            place: state.dice.random(),
            bit: state.dice.random_range(0..8),
        })
    }

    /// Packets to and from a member take so much longer.
    pub fn set_far(&self, member: usize, further: Duration) {
        self.state.lock().far.insert(member, further.as_micros() as u64);
    }

    /// How many requests, answers and parts of them were sent.
    pub fn carried(&self) -> u64 {
        self.state.lock().carried
    }

    fn delay(&self, from: usize, to: usize) -> Duration {
        let mut state = self.state.lock();
        state.carried += 1;
        let usual = state.usual.clone();
        let mut micros = state.dice.random_range(usual.clone());
        // A long tail.
        if state.dice.random_range(0..100) == 0 {
            micros += state.dice.random_range(0..usual.end * 20);
        }
        let further = |member: usize| state.far.get(&member).copied().unwrap_or(0);
        micros += further(from) + further(to);
        if from != CLIENTS && to != CLIENTS && state.loss > 0.0 {
            let (mut resend, loss) = (RESEND_MILLIS, state.loss);
            while state.dice.random_bool(loss) && resend < BREAK_MILLIS.end {
                micros += resend * 1000;
                resend *= 2;
            }
        }
        Duration::from_micros(micros)
    }

    fn millis(&self, range: Range<u64>) -> Duration {
        Duration::from_millis(self.state.lock().dice.random_range(range))
    }
}

impl Way {
    fn back(&self) -> Self {
        Self { net: self.net.clone(), from: self.to, to: self.from }
    }

    fn note(&self, what: &str, bytes: usize) {
        let name = |end: usize| if end == CLIENTS { -1 } else { end as i64 };
        self.net.trace.note(format_args!("{} -> {}: {what} {bytes}", name(self.from), name(self.to)));
    }

    /// When what is sent now arrives if nothing is in its way.
    fn arrival(&self) -> Instant {
        Instant::now() + self.net.delay(self.from, self.to)
    }

    /// Waits while it is cut; an error when the connection breaks meanwhile.
    async fn open(&self) -> Result<(), Failure> {
        let mut changed = self.net.changed.subscribe();
        if !self.net.is_cut(self.from, self.to) {
            return Ok(());
        }
        let breaks = tokio::time::sleep(self.net.millis(BREAK_MILLIS));
        tokio::pin!(breaks);
        while self.net.is_cut(self.from, self.to) {
            tokio::select! {
                biased;
                () = &mut breaks => return Err(reset()),
                _ = changed.changed() => {}
            }
        }
        // It is sent again some time after.
        tokio::time::sleep(self.net.millis(0..RESEND_MILLIS * 2)).await;
        Ok(())
    }

    /// One packet.
    async fn pass(&self) -> Result<(), Failure> {
        tokio::time::sleep_until(self.arrival()).await;
        self.open().await
    }
}

/// Ends the work on a request when whoever asked has gone, sometimes.
struct Cancel(Option<tokio::task::AbortHandle>);

impl Drop for Cancel {
    fn drop(&mut self) {
        if let Some(work) = self.0.take() {
            work.abort();
        }
    }
}

/// A request over a way, and its answer.
async fn carry(way: Way, port: Port, request: http::Request<Body>) -> Result<http::Response<Body>, Failure> {
    let path = request.uri().path().to_owned();
    let name = path.rsplit('/').next().unwrap_or_default().to_owned();
    let streams = STREAMS.iter().any(|stream| path.ends_with(stream));
    let (parts, body) = request.into_parts();
    let body = if streams {
        pump(way.clone(), name.clone(), body)
    } else {
        let bytes = body.collect().await?.to_bytes();
        way.note(&name, bytes.len());
        whole(bytes, None)
    };
    if way.pass().await.is_err() {
        return Err(timed_out());
    }
    let back = way.back();
    let serves = |process: Process| {
        let service = if port == Port::Peer { Some(process.peer) } else { process.client };
        service.filter(|_| !process.scope.is_killed()).map(|service| (process.scope, service))
    };
    let Some((scope, service)) = way.net.process(way.to).and_then(serves) else {
        return Err(if back.pass().await.is_ok() { refused() } else { timed_out() });
    };
    let (answer, answered) = oneshot::channel();
    let request = http::Request::from_parts(parts, body);
    let serving = scope.spawn(async move {
        let response = tower::ServiceExt::oneshot(service, request).await;
        let _ = answer.send(serve(response, streams, back, name).await);
    });
    // A server does not notice at once that a client has gone.
    let notices = way.net.state.lock().dice.random_range(0..2) == 0;
    let mut cancel = Cancel(notices.then(|| serving.abort_handle()));
    let (response, arrival) = match answered.await {
        Ok(answer) => answer?,
        Err(_) => {
            way.back().pass().await?;
            return Err(reset());
        }
    };
    tokio::time::sleep_until(arrival).await;
    way.back().open().await?;
    cancel.0 = None;
    Ok(response)
}

type Served = Result<(http::Response<Body>, Instant), Failure>;

/// What a process does with an answer: it sends it, or begins to.
async fn serve(response: Result<http::Response<Body>, Failure>, streams: bool, back: Way, name: String) -> Served {
    let (parts, body) = response?.into_parts();
    let body = if streams {
        pump(back.clone(), name, body)
    } else {
        let collected =
            http_body_util::Limited::new(body, MAX_BODY_BYTES).collect().await.map_err(Failure::from_error)?;
        let trailers = collected.trailers().cloned();
        let bytes = collected.to_bytes();
        back.note(&name, bytes.len());
        whole(bytes, trailers)
    };
    Ok((http::Response::from_parts(parts, body), back.arrival()))
}

/// A body that is there as a whole.
fn whole(bytes: Bytes, trailers: Option<http::HeaderMap>) -> Body {
    let full = http_body_util::Full::new(bytes);
    Body::new(full.with_trailers(async move { trailers.map(Ok) }))
}

/// A part of a body that is under way; `None` is its orderly end.
type Part = (Instant, Option<Frame<Bytes>>);

/// Sends a body part by part, for as long as its sender lives.
fn pump(way: Way, name: String, mut body: Body) -> Body {
    let (parts, receiver) = mpsc::channel(PARTS_UNDER_WAY);
    let arriving = way.clone();
    task::spawn(async move {
        let mut arrivals = Arrivals::new(&way, &name);
        loop {
            let frame = match body.frame().await {
                Some(Ok(frame)) => Some(frame),
                // Nothing more comes: whoever reads sees a reset.
                Some(Err(_)) => return,
                None => None,
            };
            let bytes = frame.as_ref().and_then(Frame::data_ref).map_or(0, Bytes::len);
            let arrival = arrivals.next(&way, &name, bytes);
            let ended = frame.is_none();
            let frame = frame.map(|frame| arrivals.damage(frame));
            if parts.send((arrival, frame)).await.is_err() || ended {
                return;
            }
        }
    });
    Body::new(Arriving { way: arriving, receiver, next: None, sleep: None, opening: None, ended: false })
}

/// A bit of a snapshot that flips on its way.
struct Flip {
    /// The part that it is in, from 1.
    part: usize,
    /// Where in it, as a share of its length in 65,536ths.
    place: u16,
    bit: u32,
}

impl Flip {
    fn apply(&self, frame: Frame<Bytes>) -> Frame<Bytes> {
        let part = match frame.into_data() {
            Ok(part) => part,
            Err(trailers) => return trailers,
        };
        let mut part = Vec::from(part);
        let place = (part.len() * usize::from(self.place)) >> u16::BITS;
        if let Some(byte) = part.get_mut(place) {
            *byte ^= 1 << self.bit;
        }
        Frame::data(part.into())
    }
}

/// When the parts of a body arrive, in their order.
struct Arrivals {
    last: Instant,
    /// A snapshot's parts: how many there are follows from sizes of tables, which carry the machine's time. All that is drawn
    /// for them is drawn at the beginning: when the first few arrive, and when the others do.
    snapshot: Option<(Instant, Instant)>,
    flip: Option<Flip>,
    sent: usize,
}

/// Parts of a snapshot that arrive before the others: a transfer can break off between them.
const FIRST_PARTS: usize = 4;

impl Arrivals {
    fn new(way: &Way, name: &str) -> Self {
        let snapshot = matches!(name, "Install" | "Snapshot").then(|| {
            way.note(name, 0);
            let (one, other) = (way.arrival(), way.arrival());
            (one.min(other), one.max(other))
        });
        // A client's snapshot has its sum at its end, which `keelson snapshot restore` asks for: not this network's affair.
        let flip = if name == "Install" { way.net.flip() } else { None };
        Self { last: Instant::now(), snapshot, flip, sent: 0 }
    }

    fn next(&mut self, way: &Way, name: &str, bytes: usize) -> Instant {
        self.sent += 1;
        let arrival = match self.snapshot {
            Some((first, _)) if self.sent <= FIRST_PARTS => first,
            Some((_, rest)) => rest,
            None => {
                way.note(name, bytes);
                way.arrival()
            }
        };
        self.last = self.last.max(arrival);
        self.last
    }

    /// What becomes of the part that was sent last.
    fn damage(&self, frame: Frame<Bytes>) -> Frame<Bytes> {
        match &self.flip {
            Some(flip) if flip.part == self.sent => flip.apply(frame),
            _ => frame,
        }
    }
}

/// What arrives next.
enum Next {
    Part(Frame<Bytes>),
    End,
    /// The sender is gone in the middle: its host says so, if it can.
    Broken,
}

/// The other end of a [`pump`].
struct Arriving {
    way: Way,
    receiver: mpsc::Receiver<Part>,
    next: Option<Next>,
    /// Until it arrives.
    sleep: Option<Pin<Box<Sleep>>>,
    /// While the way is cut.
    opening: Option<BoxFuture<'static, Result<(), Failure>>>,
    ended: bool,
}

impl Arriving {
    /// Waits until something has arrived.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Next> {
        if self.next.is_none() {
            let (arrival, next) = match std::task::ready!(self.receiver.poll_recv(context)) {
                Some((arrival, Some(frame))) => (arrival, Next::Part(frame)),
                Some((arrival, None)) => (arrival, Next::End),
                None => (self.way.arrival(), Next::Broken),
            };
            self.next = Some(next);
            self.sleep = Some(Box::pin(tokio::time::sleep_until(arrival)));
        }
        if let Some(sleep) = &mut self.sleep {
            std::task::ready!(sleep.poll_unpin(context));
            self.sleep = None;
            let way = self.way.clone();
            self.opening = Some(async move { way.open().await }.boxed());
        }
        if let Some(opening) = &mut self.opening {
            let opened = std::task::ready!(opening.poll_unpin(context));
            self.opening = None;
            if opened.is_err() {
                return Poll::Ready(Next::Broken);
            }
        }
        Poll::Ready(self.next.take().unwrap_or(Next::End))
    }
}

impl http_body::Body for Arriving {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let next = std::task::ready!(self.poll_next(context));
        self.ended = !matches!(next, Next::Part(_));
        Poll::Ready(match next {
            Next::Part(frame) => Some(Ok(frame)),
            Next::End => None,
            Next::Broken => Some(Err(tonic::Status::unavailable("the connection was reset"))),
        })
    }
}

/// The network as one of its users sees it.
#[derive(Clone)]
pub struct Seat {
    net: Net,
    at: usize,
}

impl Net {
    /// The network as seen by a member, or by [`CLIENTS`].
    pub fn seat(&self, at: usize) -> Seat {
        Seat { net: self.clone(), at }
    }
}

impl Seat {
    /// The way to a service of a member.
    pub fn to(&self, member: usize, port: Port) -> Line {
        let way = Way { net: self.net.clone(), from: self.at, to: member };
        Line::new(tower::service_fn(move |request| carry(way.clone(), port, request).boxed()))
    }
}

impl Wire for Seat {
    fn line(&self, address: &str) -> Line {
        match Net::at(address) {
            Some(member) => self.to(member, Port::Peer),
            None => Line::new(tower::service_fn(|_| std::future::ready(Err(refused())))),
        }
    }

    fn refuses(&self, address: &str) -> BoxFuture<'static, bool> {
        let way = Net::at(address).map(|to| Way { net: self.net.clone(), from: self.at, to });
        async move {
            let Some(way) = way else { return false };
            way.pass().await.is_ok() && way.net.process(way.to).is_none() && way.back().pass().await.is_ok()
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use keelson_proto::peer::peer_client::PeerClient;
    use keelson_proto::peer::peer_server::{Peer, PeerServer};
    use keelson_proto::peer::{Frame, SnapshotPart};
    use tonic::{Request, Response, Status, Streaming};

    use super::*;

    /// Answers each frame with itself.
    struct Echo;

    #[tonic::async_trait]
    impl Peer for Echo {
        type AppendStream = futures::stream::BoxStream<'static, Result<Frame, Status>>;

        async fn append(&self, request: Request<Streaming<Frame>>) -> Result<Response<Self::AppendStream>, Status> {
            Ok(Response::new(request.into_inner().boxed()))
        }

        async fn ask(&self, request: Request<Frame>) -> Result<Response<Frame>, Status> {
            Ok(Response::new(request.into_inner()))
        }

        async fn install(&self, _: Request<Streaming<SnapshotPart>>) -> Result<Response<Frame>, Status> {
            Err(Status::unimplemented("not here"))
        }
    }

    fn world() -> (Net, Scope) {
        let net = Net::new(1, 500..2000, Trace::begin(None).unwrap());
        let scope = Scope::new(1);
        let failed = |never: std::convert::Infallible| match never {};
        let peer = tower::ServiceExt::<http::Request<Body>>::map_err(PeerServer::new(Echo), failed);
        let peer = Line::new(peer);
        net.listen(1, Some(Process { scope: scope.clone(), client: None, peer }));
        (net, scope)
    }

    fn client(net: &Net) -> PeerClient<Line> {
        PeerClient::new(net.seat(0).line(&Net::address(1)))
    }

    fn frame(to: u64) -> Frame {
        Frame { to, ..Frame::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn requests_and_streams_arrive_in_order_after_a_while() {
        let (net, _) = world();
        let before = Instant::now();
        assert_eq!(client(&net).ask(frame(7)).await.unwrap().into_inner().to, 7);
        assert!(before.elapsed() >= Duration::from_millis(1));
        let sent = futures::stream::iter((0..50).map(frame));
        let answers = client(&net).append(sent).await.unwrap().into_inner();
        let told: Vec<u64> = answers.map(|answer| answer.unwrap().to).collect().await;
        assert_eq!(told, (0..50).collect::<Vec<_>>());
    }

    #[test]
    fn one_bit_of_a_part_flips() {
        let share = |place| Flip { part: 1, place, bit: 3 };
        let flipped = |place, part: &'static [u8]| {
            share(place).apply(super::Frame::data(Bytes::from_static(part))).into_data().ok().unwrap()
        };
        assert_eq!(flipped(0, &[0; 4])[..], [8, 0, 0, 0]);
        assert_eq!(flipped(u16::MAX, &[0xff; 4])[..], [0xff, 0xff, 0xff, 0xf7]);
        assert!(flipped(9, &[]).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_cut_waits_or_breaks() {
        let (net, _) = world();
        net.cut(0, 1);
        let healing = net.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            healing.heal();
        });
        let before = Instant::now();
        assert!(client(&net).ask(frame(1)).await.is_ok() && before.elapsed() >= Duration::from_secs(1));
        net.cut(1, 0);
        let status = client(&net).ask(frame(1)).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unavailable);
    }

    #[tokio::test(start_paused = true)]
    async fn a_killed_process_breaks_streams_and_refuses() {
        let (net, scope) = world();
        let (_frames, stream) = mpsc::channel(1);
        let mut answers = {
            let stream = tokio_stream(stream);
            client(&net).append(stream).await.unwrap().into_inner()
        };
        scope.kill();
        net.listen(1, None);
        assert!(answers.next().await.unwrap().is_err(), "not an orderly end");
        let status = client(&net).ask(frame(1)).await.unwrap_err();
        assert!(status.message().contains("tcp connect error"), "{status}");
        assert!(net.seat(0).refuses(&Net::address(1)).await);
    }

    fn tokio_stream(receiver: mpsc::Receiver<Frame>) -> impl futures::Stream<Item = Frame> + Send + 'static {
        futures::stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) })
    }
}
