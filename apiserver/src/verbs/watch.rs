//! Watch: a cursor on the store's watch hub, turned into ADDED, MODIFIED and DELETED by the selectors on both sides of a
//! change.

use std::any::Any;
use std::borrow::Cow;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::{Response, header};
use http_body::Frame;
use http_body_util::BodyExt;
use keelson_client::Body;
use keelson_machinery::resource::ResourceDef;
use keelson_machinery::status::Status;
use keelson_machinery::stored::{self, Stored};
use keelson_machinery::{cbor, conversion, protobuf};
use keelson_store::{Event, EventKind, KeyRange, KeyValue, KvError, View, WatchRequest};
use rand::RngExt;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::Call;
use super::list::Selectors;
use crate::negotiate::{Accepted, Format, Media};
use crate::objects::{parse, status_of};
use crate::request::{Query, ResourceRequest};
use crate::seldom::Seldom;
use crate::{ApiServer, body, listing, table};

/// Pause between bookmarks.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);
/// A watch that ends is told this long before where it is, so that the next one can go on there.
const LAST_BOOKMARK_SECONDS: u64 = 2;
/// Size of a piece of events, bytes: beyond its buffer a connection may hold one for a client that does not read.
const PIECE_BYTES: usize = 16 << 10;
/// Objects that are looked at for a piece, whether they are chosen or not.
const MAX_LOOKED_AT: usize = 1024;
/// A watch of custom objects goes on for this long after their definition changed or went, as upstream's.
const AFTER_DEFINITION: Duration = Duration::from_secs(1);
/// A watch without `timeoutSeconds` ends after this to twice this, as upstream's.
const MIN_TIMEOUT_SECONDS: u64 = 1800;

/// How one watcher wants its events.
struct Shape {
    def: &'static ResourceDef,
    /// The request, if objects are stored in another version than it asks for.
    converted: Option<ResourceRequest>,
    selectors: Selectors,
    accepted: Accepted,
    query: Query,
    /// Whether the columns of the table were told.
    told: AtomicBool,
}

impl ApiServer {
    /// Serves a watch.
    pub(crate) async fn watch(&self, call: &Call<'_>) -> Result<Response<Body>, Status> {
        let request = call.request;
        listing::check(request)?;
        let query = &request.query;
        let shape = Shape {
            def: request.def,
            converted: (request.custom.is_some() || conversion::stored_row(request.def).is_some())
                .then(|| request.clone()),
            selectors: Selectors::of(request)?,
            accepted: call.accepted()?,
            query: query.clone(),
            told: AtomicBool::new(false),
        };
        if shape.accepted.format == Format::Table {
            table::check(query)?;
        }
        let timeout = match query.number("timeoutSeconds")? {
            // A time that has passed ends the watch at once.
            Some(seconds) if seconds != 0 => seconds.max(0).unsigned_abs(),
            _ => rand::rng().random_range(MIN_TIMEOUT_SECONDS..2 * MIN_TIMEOUT_SECONDS),
        };
        let version = query.get("resourceVersion");
        let initial = query.flag("sendInitialEvents") || listing::begins_with_all(query);
        self.fresh(version).await?;
        let view = self.objects.kv.view();
        let range = shape.selectors.range(request);
        // Fields of other versions are not those that are stored.
        let only = if shape.converted.is_none() { shape.selectors.only() } else { None };
        let mut first = First::default();
        let start = if initial {
            let bookmark = query.flag("allowWatchBookmarks");
            let (request, start) = (request.clone(), view.revision() + 1);
            let rest = Initial { view, range: range.clone(), request, after: None, bookmark };
            first.rest = Some(rest);
            // What cannot be read at all refuses the watch.
            first.next(&shape)?;
            start
        } else {
            // What is no number was refused above; without one the watch begins with what comes next.
            version.and_then(|v| v.parse().ok()).filter(|v| *v > 0).unwrap_or_else(|| view.revision()) + 1
        };
        let media = shape.accepted.media;
        let since = request.custom.as_ref().map_or(0, |custom| custom.definition.since());
        let mut response = Response::new(if start <= since {
            body::full(error_event(media, &too_old(start - 1, since)))
        } else {
            match self.objects.kv.watch(WatchRequest { range, start_revision: start, only }) {
                Ok(watch) => {
                    let definition = request.custom.as_ref().map(|custom| custom.definition.ended.clone());
                    let ticks = ticks(timeout, query.flag("allowWatchBookmarks"), self.stop.clone(), definition);
                    let (batch, ticks) = (Vec::new().into_iter(), Seldom::new(ticks.boxed()));
                    Events { shape, first, watch, batch, revision: start - 1, ticks, ended: false }.boxed_unsync()
                }
                Err(KvError::Compacted(compacted)) => body::full(error_event(media, &too_old(start - 1, compacted))),
                Err(error) => return Err(status_of(error)),
            }
        });
        response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(media.stream_type()));
        response.extensions_mut().insert(body::Lasting);
        Ok(response)
    }
}

fn too_old(asked: i64, compacted: i64) -> Status {
    Status::expired(format!("too old resource version: {asked} ({compacted})"))
}

/// An event about an object that is not stored.
fn event(media: Media, kind: &str, object: &Value) -> Bytes {
    if media == Media::Cbor {
        return cbor::watch_event(kind, &cbor::encode(object)).into();
    }
    if media == Media::Protobuf {
        match protobuf::encode(object) {
            Ok(object) => return protobuf::watch_frame(kind, &object).into(),
            Err(why) => tracing::error!(%why, kind, "an event has no protobuf form"),
        }
        return Bytes::new();
    }
    format!("{}\n", json!({"type": kind, "object": object})).into()
}

fn error_event(media: Media, status: &Status) -> Bytes {
    event(media, "ERROR", &status.to_value())
}

/// The objects that there are when a watch begins, which are written while the client reads: what is held for it is one
/// piece and the view, which shares its memory with the store.
struct Initial {
    view: View,
    range: KeyRange,
    request: ResourceRequest,
    /// The key after which the next piece begins.
    after: Option<Bytes>,
    /// Whether their end is told.
    bookmark: bool,
}

/// What a watch begins with: a piece that is written, and the rest.
#[derive(Default)]
struct First {
    written: Vec<u8>,
    rest: Option<Initial>,
}

impl First {
    /// Whether nothing is left of it.
    fn is_told(&self) -> bool {
        self.written.is_empty() && self.rest.is_none()
    }

    /// Writes the next piece, if there is one.
    fn next(&mut self, shape: &Shape) -> Result<(), Status> {
        let Some(mut initial) = self.rest.take() else { return Ok(()) };
        let (view, range, after) = (initial.view.clone(), initial.range.clone(), initial.after.take());
        let mut rest: Box<dyn Iterator<Item = _>> = match &after {
            Some(key) => Box::new(view.range_from(&range, key)),
            None => Box::new(view.range(&range)),
        };
        for _ in 0..MAX_LOOKED_AT {
            let Some(kv) = rest.next() else {
                if initial.bookmark {
                    self.written.extend_from_slice(&shape.bookmark(view.revision(), true));
                }
                return Ok(());
            };
            let stored = initial.request.stored(kv)?;
            if shape.selectors.matches(&stored.head) {
                self.written.extend_from_slice(&shape.encode("ADDED", kv, &stored, kv.mod_revision));
            }
            initial.after = Some(kv.key.clone());
            if self.written.len() >= PIECE_BYTES {
                break;
            }
        }
        self.rest = Some(initial);
        Ok(())
    }
}

/// What time brings to a watch; it ends with these.
enum Tick {
    Bookmark,
}

/// The bookmarks of a watch, if it has any, until it has lasted long enough, the server stops or what is watched is served
/// in another way.
fn ticks(
    timeout: u64,
    bookmarks: bool,
    stop: CancellationToken,
    definition: Option<CancellationToken>,
) -> impl Stream<Item = Tick> + Send {
    let end = tokio::time::Instant::now() + Duration::from_secs(timeout);
    let last = Duration::from_secs(timeout.saturating_sub(LAST_BOOKMARK_SECONDS));
    let interval = bookmarks.then(|| {
        let start = tokio::time::Instant::now() + BOOKMARK_INTERVAL.min(last);
        tokio::time::interval_at(start, BOOKMARK_INTERVAL)
    });
    futures::stream::unfold((interval, stop, definition), move |(mut interval, stop, definition)| async move {
        let redefined = async {
            match &definition {
                Some(definition) => definition.cancelled().await,
                None => std::future::pending().await,
            }
            tokio::time::sleep(AFTER_DEFINITION).await;
        };
        let bookmark = async {
            match &mut interval {
                Some(interval) => interval.tick().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return None,
            () = tokio::time::sleep_until(end) => return None,
            () = redefined => return None,
            _ = bookmark => {}
        }
        Some((Tick::Bookmark, (interval, stop, definition)))
    })
}

/// The events of one watcher, written while it reads.
struct Events<T> {
    shape: Shape,
    first: First,
    watch: keelson_store::Watch,
    /// What was read from the watch and is not written yet.
    batch: std::vec::IntoIter<Arc<Event>>,
    /// The watch was read up to here.
    revision: i64,
    ticks: Seldom<T>,
    ended: bool,
}

impl<T: Stream<Item = Tick> + Unpin> Events<T> {
    /// What comes next, if there is something; empty if it is not for this watcher.
    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.ended {
            return Poll::Ready(None);
        }
        match self.ticks.poll_next_unpin(context) {
            Poll::Ready(Some(Tick::Bookmark)) if self.first.is_told() && self.batch.as_slice().is_empty() => {
                // What is not for this watcher does not come to it, and is history soon.
                self.revision = self.revision.max(self.watch.seen().unwrap_or_default());
                return Poll::Ready(Some(self.shape.bookmark(self.revision, false)));
            }
            // Not before the watcher has seen everything: the next one is for it.
            Poll::Ready(Some(Tick::Bookmark)) => return Poll::Ready(Some(Bytes::new())),
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Pending => {}
        }
        if !self.first.written.is_empty() {
            let mut written = std::mem::take(&mut self.first.written);
            // It may lie in a buffer for as long as the client does not read: without the room that it grew into.
            written.shrink_to_fit();
            return Poll::Ready(Some(written.into()));
        }
        if self.first.rest.is_some() {
            if let Err(status) = self.first.next(&self.shape) {
                return Poll::Ready(Some(self.end(&status)));
            }
            // Others run between the pieces.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        if !self.batch.as_slice().is_empty() {
            return Poll::Ready(Some(self.shape.events(&mut self.batch)));
        }
        let Some(next) = std::task::ready!(self.watch.poll_next_unpin(context)) else { return Poll::Ready(None) };
        Poll::Ready(Some(match next {
            Ok(batch) => {
                self.revision = self.revision.max(batch.revision);
                self.batch = batch.events.into_iter();
                self.shape.events(&mut self.batch)
            }
            Err(KvError::Compacted(compacted)) => self.end(&too_old(self.revision, compacted)),
            Err(error) => self.end(&status_of(error)),
        }))
    }

    fn end(&mut self, status: &Status) -> Bytes {
        self.ended = true;
        error_event(self.shape.accepted.media, status)
    }
}

impl<T: Stream<Item = Tick> + Unpin> http_body::Body for Events<T> {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        loop {
            match std::task::ready!(self.poll_piece(context)) {
                Some(piece) if piece.is_empty() => {}
                piece => return Poll::Ready(piece.map(|piece| Ok(Frame::data(piece)))),
            }
        }
    }
}

/// Both sides of a change with their heads, and the forms of the event that are asked for: decoded and encoded once for all watchers.
struct Decoded {
    now: Option<Stored>,
    before: Option<Stored>,
    json: [OnceLock<Bytes>; 3],
    protobuf: [OnceLock<Bytes>; 3],
    cbor: [OnceLock<Bytes>; 3],
}

/// What all watchers share of an event; `None` for what is small in the store alone and not kept large with the event.
fn shared(event: &Event) -> Option<&Decoded> {
    if std::iter::once(&event.kv).chain(&event.prev).any(|kv| stored::is_packed(&kv.value)) {
        return None;
    }
    let decode = || Arc::new(decode(event, |kv| crate::encryption::stored(kv).ok())) as Arc<dyn Any + Send + Sync>;
    event.memo.get_or_init(decode).downcast_ref()
}

fn decode(event: &Event, stored: impl Fn(&KeyValue) -> Option<Stored>) -> Decoded {
    let now = if event.kind == EventKind::Put { stored(&event.kv) } else { None };
    Decoded {
        now,
        before: event.prev.as_ref().and_then(|kv| stored(kv)),
        json: Default::default(),
        protobuf: Default::default(),
        cbor: Default::default(),
    }
}

impl Shape {
    /// What this watcher sees of the next changes: a piece of them, which ends with all of a revision. What it sees of one
    /// alone is shared with others, not copied.
    fn events(&self, events: &mut std::vec::IntoIter<Arc<Event>>) -> Bytes {
        let (mut first, mut all) = (Bytes::new(), Vec::new());
        while let Some(event) = events.next() {
            if let Some(shown) = self.event(&event) {
                if first.is_empty() {
                    first = shown.into_owned();
                } else {
                    if all.is_empty() {
                        let left = events.len().saturating_add(2).saturating_mul(first.len().max(shown.len()));
                        all.reserve(left.min(PIECE_BYTES + shown.len()));
                        all.extend_from_slice(&first);
                    }
                    all.extend_from_slice(&shown);
                }
            }
            let whole = events.as_slice().first().is_none_or(|next| next.kv.mod_revision != event.kv.mod_revision);
            if whole && first.len().max(all.len()) >= PIECE_BYTES {
                break;
            }
        }
        if all.is_empty() { first } else { all.into() }
    }

    /// What this watcher sees of a change, if anything.
    fn event<'a>(&self, event: &'a Event) -> Option<Cow<'a, Bytes>> {
        let own = match &self.converted {
            // Each version has its own form, and its schema may have changed: nothing is shared.
            Some(request) => decode(event, |kv| request.stored(kv).ok()),
            None => match shared(event) {
                Some(decoded) => return self.seen(event, decoded),
                None => decode(event, |kv| crate::encryption::stored(kv).ok()),
            },
        };
        self.seen(event, &own).map(|bytes| Cow::Owned(bytes.into_owned()))
    }

    fn seen<'a>(&self, event: &Event, decoded: &'a Decoded) -> Option<Cow<'a, Bytes>> {
        let chosen = |stored: &Option<Stored>| stored.as_ref().is_some_and(|s| self.selectors.matches(&s.head));
        let (kind, index) = match (chosen(&decoded.before), chosen(&decoded.now)) {
            (false, true) => ("ADDED", 0),
            (true, true) => ("MODIFIED", 1),
            (true, false) => ("DELETED", 2),
            (false, false) => return None,
        };
        // A deletion shows the object as it last was, at the revision of the deletion.
        let (kv, stored) = match kind {
            "DELETED" => (event.prev.as_ref()?, decoded.before.as_ref()?),
            _ => (&event.kv, decoded.now.as_ref()?),
        };
        let revision = event.kv.mod_revision;
        let shared = match (self.accepted.format, self.accepted.media) {
            (Format::Object, Media::Json) => &decoded.json[index],
            (Format::Object, Media::Protobuf) => &decoded.protobuf[index],
            (Format::Object, Media::Cbor) => &decoded.cbor[index],
            _ => return Some(Cow::Owned(self.encode(kind, kv, stored, revision))),
        };
        Some(Cow::Borrowed(shared.get_or_init(|| self.encode(kind, kv, stored, revision))))
    }

    fn encode(&self, kind: &str, kv: &KeyValue, stored: &Stored, revision: i64) -> Bytes {
        let Accepted { format, media, .. } = self.accepted;
        if format == Format::Object && media == Media::Json {
            let mut out = Vec::with_capacity(stored.json.len() + 80);
            out.extend_from_slice(format!("{{\"type\":\"{kind}\",\"object\":").as_bytes());
            stored.write_json(revision, &mut out);
            out.extend_from_slice(b"}\n");
            return out.into();
        }
        if format == Format::Object && media == Media::Protobuf {
            return match protobuf::encode_stored(&self.def.api_version(), self.def.kind, stored, revision) {
                Ok(object) => protobuf::watch_frame(kind, &object).into(),
                Err(why) => error_event(media, &Status::internal(&why.to_string())),
            };
        }
        let plain =
            || keelson_machinery::conversion::version_annotations(&self.def.api_version(), self.def.kind).is_empty();
        if format == Format::Metadata && media == Media::Json && self.converted.is_none() && plain() {
            // Controllers watch the metadata of everything: the rest of an object is not read for them.
            let mut out = Vec::with_capacity(1024);
            let version = self.accepted.meta_version();
            let head = format!(
                "{{\"type\":\"{kind}\",\"object\":{{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"{version}\",\"metadata\":"
            );
            out.extend_from_slice(head.as_bytes());
            stored.write_metadata(revision, &mut out);
            out.extend_from_slice(b"}}\n");
            return out.into();
        }
        let object = self.converted.as_ref().map_or_else(|| parse(kv), |request| request.value(kv));
        let converted = object.and_then(|mut object| {
            object["metadata"]["resourceVersion"] = revision.to_string().into();
            self.shown(object)
        });
        match converted {
            Ok(object) => event(media, kind, &object),
            Err(status) => error_event(media, &status),
        }
    }

    /// An object in the form that the watcher asked for; the columns of a table are told once.
    fn shown(&self, object: Value) -> Result<Value, Status> {
        let mut object = match self.accepted.format {
            Format::Object => object,
            _ => table::single(self.def, self.accepted, &object, &self.query)?,
        };
        if self.accepted.format == Format::Table && self.told.swap(true, Ordering::Relaxed) {
            object["columnDefinitions"] = Value::Null;
        }
        Ok(object)
    }

    /// Tells the revision up to which the watcher has seen everything.
    fn bookmark(&self, revision: i64, initial_end: bool) -> Bytes {
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = json!({"kind": self.def.kind, "apiVersion": self.def.api_version(), "metadata": metadata});
        match self.shown(object) {
            Ok(object) => event(self.accepted.media, "BOOKMARK", &object),
            Err(status) => error_event(self.accepted.media, &status),
        }
    }
}
