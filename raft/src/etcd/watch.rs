//! The Watch service: many watches on one stream.
//!
//! Invariants: a watch's creation is told before its events; a progress answer at a revision comes after every event
//! at or below it.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::stream::{AbortHandle, Abortable, SelectAll};
use futures::{Stream, StreamExt};
use keelson_proto::etcd::{etcdserverpb as pb, mvccpb};
use keelson_store::{Event, EventKind, KvError, Revision, WatchBatch, WatchRequest};
use pb::watch_create_request::FilterType;
use pb::watch_request::RequestUnion;
use pb::watch_server::Watch;
use prost::Message;
use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::auth::Caller;
use super::error::of_kv;
use super::limits::{MESSAGE_OVERHEAD_BYTES, PROGRESS_RETRY, STREAM_ANSWERS, WATCHES_PER_STREAM};
use super::{Front, convert};

/// Stands for no watch, or for all of a stream.
const NO_WATCH: i64 = -1;

/// Requests of streams that all watches report how far they are, merged so that many waiting streams cost what one
/// does.
#[derive(Default)]
pub(super) struct ProgressRequests(AtomicBool);

impl ProgressRequests {
    /// Asks now, unless somebody has just asked; then a little later.
    fn ask(&self, front: &Arc<Front>) {
        if self.0.swap(true, Ordering::AcqRel) {
            return;
        }
        let front = front.clone();
        crate::task::spawn(async move {
            // Cleared before asking: whoever comes during the asking asks again.
            front.progress.0.store(false, Ordering::Release);
            front.kv.progress();
        });
    }
}

/// The service.
pub struct WatchService(pub Arc<Front>);

type Answer = Result<pb::WatchResponse, Status>;
type Answers = Pin<Box<dyn Stream<Item = Answer> + Send>>;

#[tonic::async_trait]
impl Watch for WatchService {
    type WatchStream = Answers;

    async fn watch(&self, request: Request<Streaming<pb::WatchRequest>>) -> Result<Response<Answers>, Status> {
        let caller = Caller::of(&self.0, &request)?;
        let requests = request.into_inner();
        let (answers, received) = tokio::sync::mpsc::channel(STREAM_ANSWERS);
        self.0.calls.watch_streams.fetch_add(1, Ordering::Relaxed);
        let session = Session {
            front: self.0.clone(),
            caller,
            answers,
            watches: HashMap::new(),
            batches: SelectAll::new(),
            next_id: 0,
            wanted: None,
        };
        crate::task::spawn(session.run(requests));
        Ok(Response::new(Box::pin(ReceiverStream::new(received))))
    }
}

/// One watch of a stream.
struct Watched {
    abort: AbortHandle,
    options: Delivery,
    /// Everything up to here was delivered.
    covered: Revision,
    /// Told of progress by the clock, and not told anything since it last struck.
    idle: bool,
}

/// How a watch wants its events.
#[derive(Clone, Copy)]
struct Delivery {
    prev_kv: bool,
    puts: bool,
    deletes: bool,
    fragment: bool,
    progress: bool,
}

type Tagged = Pin<Box<dyn Stream<Item = (i64, Result<WatchBatch, KvError>)> + Send>>;

/// A stream of watches.
struct Session {
    front: Arc<Front>,
    /// Who opened the stream.
    caller: Caller,
    answers: Sender<Answer>,
    watches: HashMap<i64, Watched>,
    batches: SelectAll<Tagged>,
    next_id: i64,
    /// The client asked for progress: the revision that all watches must have reached to answer.
    wanted: Option<Revision>,
}

/// The client has gone.
struct Gone;

impl Session {
    async fn run(mut self, mut requests: Streaming<pb::WatchRequest>) {
        let every = self.front.options.progress_interval;
        let mut clock = interval_at(Instant::now() + every, every);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut retry = tokio::time::interval(PROGRESS_RETRY);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let gone = self.answers.clone();
        loop {
            let done = tokio::select! {
                request = requests.next() => match request {
                    Some(Ok(request)) => self.request(request).await,
                    Some(Err(_)) | None => return,
                },
                Some((id, batch)) = self.batches.next() => self.batch(id, batch).await,
                _ = clock.tick() => { self.strike(); Ok(()) }
                _ = retry.tick(), if self.wanted.is_some() => { self.front.progress.ask(&self.front); Ok(()) }
                () = gone.closed() => return,
            };
            if done.is_err() {
                return;
            }
        }
    }

    async fn tell(&mut self, answer: pb::WatchResponse) -> Result<(), Gone> {
        self.answers.send(Ok(answer)).await.map_err(|_| Gone)
    }

    async fn request(&mut self, request: pb::WatchRequest) -> Result<(), Gone> {
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => self.create(create).await,
            Some(RequestUnion::CancelRequest(cancel)) => self.cancel(cancel.watch_id).await,
            Some(RequestUnion::ProgressRequest(_)) => {
                if !self.watches.is_empty() {
                    self.wanted = Some(self.front.kv.view().revision());
                    self.front.progress.ask(&self.front);
                }
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Opens a watch and tells its id, or why there is none.
    async fn create(&mut self, create: pb::WatchCreateRequest) -> Result<(), Gone> {
        let header = self.front.header_now();
        let refused = |reason: String| pb::WatchResponse {
            header,
            watch_id: NO_WATCH,
            created: true,
            canceled: true,
            cancel_reason: reason,
            ..pb::WatchResponse::default()
        };
        let id = match self.choose_id(create.watch_id) {
            Ok(id) => id,
            Err(reason) => return self.tell(refused(reason.into())).await,
        };
        let filtered = |filter: FilterType| create.filters.contains(&filter.into());
        let options = Delivery {
            prev_kv: create.prev_kv,
            puts: !filtered(FilterType::Noput),
            deletes: !filtered(FilterType::Nodelete),
            fragment: create.fragment,
            progress: create.progress_notify,
        };
        if create.start_revision < 0 {
            return self.tell(refused(super::error::Refusal::Compacted.text())).await;
        }
        // No key is the smallest key.
        let key = if create.key.is_empty() { Bytes::from_static(&[0]) } else { create.key };
        let range = convert::key_range(key, create.range_end);
        if let keelson_store::KeyRange::Range(start, end) = &range
            && start >= end
        {
            return self.tell(refused("mvcc: watcher range is empty".into())).await;
        }
        if let Err(refusal) = self.caller.read(&range) {
            return self.tell(refused(refusal.wire_text())).await;
        }
        let start_revision = create.start_revision;
        let covered = if start_revision > 0 { start_revision - 1 } else { header.map_or(0, |header| header.revision) };
        let created = pb::WatchResponse { header, watch_id: id, created: true, ..pb::WatchResponse::default() };
        match self.front.kv.watch(WatchRequest::new(range, start_revision)) {
            Ok(watch) => {
                let (watch, abort) = futures::stream::abortable(watch);
                self.batches.push(tagged(id, watch));
                self.watches.insert(id, Watched { abort, options, covered, idle: true });
                self.tell(created).await
            }
            Err(KvError::Compacted(revision)) => {
                self.tell(created).await?;
                self.tell(compacted(header, id, revision)).await
            }
            Err(error) => self.tell(refused(of_kv(error).message().to_owned())).await,
        }
    }

    /// The id that a client asks for if it is free, or the next free one.
    fn choose_id(&mut self, asked: i64) -> Result<i64, &'static str> {
        if self.watches.len() >= WATCHES_PER_STREAM {
            return Err("etcdserver: too many watches on one stream");
        }
        if asked != 0 {
            let taken = self.watches.contains_key(&asked);
            return if taken { Err("mvcc: duplicate watch ID provided on the WatchStream") } else { Ok(asked) };
        }
        while self.watches.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        Ok(self.next_id - 1)
    }

    async fn cancel(&mut self, id: i64) -> Result<(), Gone> {
        let Some(watched) = self.watches.remove(&id) else { return Ok(()) };
        watched.abort.abort();
        let header = self.front.header_now();
        self.tell(pb::WatchResponse { header, watch_id: id, canceled: true, ..pb::WatchResponse::default() }).await?;
        self.answer_progress().await
    }

    /// Passes on what a watch yielded.
    async fn batch(&mut self, id: i64, batch: Result<WatchBatch, KvError>) -> Result<(), Gone> {
        let Some(watched) = self.watches.get_mut(&id) else { return Ok(()) };
        let batch = match batch {
            Ok(batch) => batch,
            Err(error) => {
                self.watches.remove(&id);
                return self.end(id, error).await;
            }
        };
        let options = watched.options;
        watched.covered = watched.covered.max(batch.revision);
        let header = self.front.header(batch.revision);
        if batch.events.is_empty() {
            let due = options.progress && std::mem::take(&mut watched.idle) && self.wanted.is_none();
            if due {
                self.tell(pb::WatchResponse { header, watch_id: id, ..pb::WatchResponse::default() }).await?;
            }
            return self.answer_progress().await;
        }
        let events: Vec<_> = batch.events.iter().filter_map(|event| message(event, options)).collect();
        if !events.is_empty() {
            watched.idle = false;
            self.front.calls.events.fetch_add(events.len() as u64, Ordering::Relaxed);
            let whole = pb::WatchResponse { header, watch_id: id, events, ..pb::WatchResponse::default() };
            self.tell_events(whole, options.fragment).await?;
        }
        self.answer_progress().await
    }

    /// Sends events, in pieces if the client can take pieces and they are large.
    async fn tell_events(&mut self, whole: pb::WatchResponse, fragment: bool) -> Result<(), Gone> {
        let most = self.front.options.max_request_bytes + MESSAGE_OVERHEAD_BYTES;
        if !fragment || whole.encoded_len() < most {
            return self.tell(whole).await;
        }
        let head = pb::WatchResponse { events: Vec::new(), ..whole };
        let (mut piece, mut bytes) = (Vec::new(), 0);
        for event in whole.events {
            let size = event.encoded_len();
            if !piece.is_empty() && bytes + size >= most {
                let events = std::mem::take(&mut piece);
                self.tell(pb::WatchResponse { events, fragment: true, ..head.clone() }).await?;
                bytes = 0;
            }
            bytes += size;
            piece.push(event);
        }
        self.tell(pb::WatchResponse { events: piece, ..head }).await
    }

    /// Tells why a watch has ended.
    async fn end(&mut self, id: i64, error: KvError) -> Result<(), Gone> {
        let header = self.front.header_now();
        match error {
            KvError::Compacted(revision) => self.tell(compacted(header, id, revision)).await?,
            error => {
                // Clients do not open a canceled watch again, but do so after a broken stream.
                let _ = self.answers.send(Err(of_kv(error))).await;
                return Err(Gone);
            }
        }
        self.answer_progress().await
    }

    /// The progress clock has struck.
    fn strike(&mut self) {
        let mut ask = false;
        for watched in self.watches.values_mut().filter(|watched| watched.options.progress) {
            // Those that were told something meanwhile wait for the next stroke.
            ask |= watched.idle;
            watched.idle = true;
        }
        if ask {
            self.front.progress.ask(&self.front);
        }
    }

    /// Answers a request for progress once all watches have come far enough.
    async fn answer_progress(&mut self) -> Result<(), Gone> {
        let Some(wanted) = self.wanted else { return Ok(()) };
        let Some(covered) = self.watches.values().map(|watched| watched.covered).min() else {
            self.wanted = None;
            return Ok(());
        };
        if covered < wanted {
            return Ok(());
        }
        self.wanted = None;
        // A watch that begins in the future covers what is not there yet.
        let revision = covered.min(self.front.kv.view().revision());
        let header = self.front.header(revision);
        self.tell(pb::WatchResponse { header, watch_id: NO_WATCH, ..pb::WatchResponse::default() }).await
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.front.calls.watch_streams.fetch_sub(1, Ordering::Relaxed);
        self.watches.values().for_each(|watched| watched.abort.abort());
    }
}

fn tagged(id: i64, watch: Abortable<keelson_store::Watch>) -> Tagged {
    Box::pin(watch.map(move |batch| (id, batch)))
}

fn compacted(header: Option<pb::ResponseHeader>, id: i64, revision: Revision) -> pb::WatchResponse {
    pb::WatchResponse {
        header,
        watch_id: id,
        canceled: true,
        compact_revision: revision,
        cancel_reason: super::error::Refusal::Compacted.text(),
        ..pb::WatchResponse::default()
    }
}

/// An event as a message, if the watch wants it.
fn message(event: &Event, options: Delivery) -> Option<mvccpb::Event> {
    let (wanted, kind) = match event.kind {
        EventKind::Put => (options.puts, mvccpb::event::EventType::Put),
        EventKind::Delete => (options.deletes, mvccpb::event::EventType::Delete),
    };
    let prev_kv = event.prev.as_ref().filter(|_| options.prev_kv).map(|kv| convert::key_value(kv));
    wanted.then(|| mvccpb::Event { r#type: kind.into(), kv: Some(convert::key_value(&event.kv)), prev_kv })
}
