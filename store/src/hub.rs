//! Watches: recent events in memory, an index of who wants which, and cursors that fall back to history.
//!
//! Invariants: the ring holds every revision from its first to the hub's current one; a watcher's queue holds
//! whole revisions, all below its `behind` cursor if it has one; a watcher without `behind` has received
//! everything up to the hub's current revision. Locks are taken hub first, watcher second. Watchers are woken when all
//! have been told and no lock is held: one who watches a lot finds everything at once, and nobody waits for the hub.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures::Stream;
use futures::task::AtomicWaker;
use parking_lot::Mutex;

use crate::disk::Disk;
use crate::limits::{MAX_WATCHERS, WATCH_CATCH_UP_REVISIONS, WATCH_QUEUE_BYTES, WATCH_QUEUE_EVENTS, WATCH_QUEUE_KEPT};
use crate::wake::wake_all;
use crate::{Event, KeyRange, KvError, Lens, Only, Revision, Watch, WatchBatch, WatchRequest, Watching};

/// The events of one revision.
pub(crate) type RevisionEvents = (Revision, Vec<Arc<Event>>);

type WatcherId = u64;

/// What a watcher is to be told, filled by the hub and drained by its stream.
#[derive(Default)]
struct Inbox {
    queue: VecDeque<Arc<Event>>,
    /// Sizes of the queued events.
    queue_bytes: usize,
    /// Set when the queue overflowed or the watch began in the past: read from here.
    behind: Option<Revision>,
    /// Answer with an empty batch at this revision if there is nothing newer.
    progress: Option<Revision>,
    /// Ends the watch after the queue.
    end: Option<KvError>,
}

struct Watcher {
    id: WatcherId,
    range: KeyRange,
    /// What it wants to be told, if not everything.
    only: Option<Only>,
    /// First revision wanted (it may lie in the future).
    start: Revision,
    inbox: Mutex<Inbox>,
    waker: AtomicWaker,
}

impl Watcher {
    /// Whether it is to be told of a change of a key in its range.
    fn wants(&self, event: &Event) -> bool {
        self.only.as_ref().is_none_or(|only| {
            only.lens.concerns(event).is_none_or(|mut concerns| concerns.any(|concern| *only.concern == *concern))
        })
    }

    fn deliver(&self, revision: Revision, events: &[Arc<Event>], told: &mut Told) {
        if revision < self.start {
            return;
        }
        let mut inbox = self.inbox.lock();
        if inbox.behind.is_some() {
            return;
        }
        // A revision's events stay together, even if they alone exceed the queue.
        let bytes: usize = events.iter().map(|event| event.size_bytes()).sum();
        let full =
            inbox.queue.len() + events.len() > WATCH_QUEUE_EVENTS || inbox.queue_bytes + bytes > WATCH_QUEUE_BYTES;
        if full && !inbox.queue.is_empty() {
            inbox.behind = Some(revision);
        } else {
            inbox.queue_bytes += bytes;
            inbox.queue.extend(events.iter().cloned());
        }
        drop(inbox);
        told.add(self);
    }
}

/// Whom to wake: who was told something and waits for it, each once.
#[derive(Default)]
struct Told(Vec<Waker>);

impl Told {
    fn add(&mut self, watcher: &Watcher) {
        self.0.extend(watcher.waker.take());
    }

    /// To be called without a lock.
    fn wake(self) {
        wake_all(self.0);
    }
}

/// Watchers by what they want.
type Watchers = HashMap<Bytes, Vec<Arc<Watcher>>>;

/// The watchers of a prefix.
#[derive(Default)]
struct Prefix {
    /// Those that want everything.
    all: Vec<Arc<Watcher>>,
    /// Those that want what concerns something, by how it is read.
    only: Vec<(Lens, Watchers)>,
}

impl Prefix {
    fn insert(&mut self, watcher: Arc<Watcher>) {
        let Some(Only { lens, concern }) = &watcher.only else { return self.all.push(watcher) };
        let found = self.only.iter().position(|(other, _)| other == lens);
        let at = found.unwrap_or_else(|| {
            self.only.push((*lens, Watchers::new()));
            self.only.len() - 1
        });
        self.only[at].1.entry(concern.clone()).or_default().push(watcher.clone());
    }

    fn remove(&mut self, watcher: &Watcher) {
        match &watcher.only {
            None => self.all.retain(|other| other.id != watcher.id),
            Some(Only { lens, concern }) => {
                self.only.iter_mut().filter(|(other, _)| other == lens).for_each(|(_, watchers)| {
                    remove_from(watchers, concern, watcher.id);
                });
                self.only.retain(|(_, watchers)| !watchers.is_empty());
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.all.is_empty() && self.only.is_empty()
    }

    fn each(&self, event: &Event, mut visit: impl FnMut(&Arc<Watcher>)) {
        self.all.iter().for_each(&mut visit);
        for (lens, watchers) in &self.only {
            match lens.concerns(event) {
                Some(concerns) => concerns.filter_map(|concern| watchers.get(concern)).flatten().for_each(&mut visit),
                None => watchers.values().flatten().for_each(&mut visit),
            }
        }
    }

    fn iter(&self) -> impl Iterator<Item = &Arc<Watcher>> {
        self.all.iter().chain(self.only.iter().flat_map(|(_, watchers)| watchers.values().flatten()))
    }
}

/// Finds the watchers of a change in time proportional to them and to the number of distinct prefix lengths.
#[derive(Default)]
struct Index {
    keys: Watchers,
    prefixes: HashMap<Bytes, Prefix>,
    /// Number of watched prefixes by length.
    lengths: BTreeMap<usize, usize>,
    /// Intervals that are not prefixes, looked at one by one.
    others: Vec<Arc<Watcher>>,
}

enum Slot<'a> {
    Key(&'a Bytes),
    Prefix(&'a Bytes),
    Other,
}

fn slot(range: &KeyRange) -> Slot<'_> {
    match range {
        KeyRange::Key(key) => Slot::Key(key),
        KeyRange::Range(start, _) | KeyRange::From(start) if *range == KeyRange::prefix(start.clone()) => {
            Slot::Prefix(start)
        }
        KeyRange::Range(..) | KeyRange::From(_) => Slot::Other,
    }
}

impl Index {
    fn insert(&mut self, watcher: Arc<Watcher>) {
        match slot(&watcher.range) {
            Slot::Key(key) => self.keys.entry(key.clone()).or_default().push(watcher.clone()),
            Slot::Prefix(prefix) => {
                *self.lengths.entry(prefix.len()).or_default() += 1;
                self.prefixes.entry(prefix.clone()).or_default().insert(watcher.clone());
            }
            Slot::Other => self.others.push(watcher),
        }
    }

    fn remove(&mut self, watcher: &Watcher) {
        let same = |other: &Arc<Watcher>| other.id != watcher.id;
        match slot(&watcher.range) {
            Slot::Key(key) => remove_from(&mut self.keys, key, watcher.id),
            Slot::Prefix(prefix) => {
                if let Some(watchers) = self.prefixes.get_mut(prefix) {
                    watchers.remove(watcher);
                    if watchers.is_empty() {
                        self.prefixes.remove(prefix);
                    }
                }
                if let Some(count) = self.lengths.get_mut(&prefix.len()) {
                    *count -= 1;
                    if *count == 0 {
                        self.lengths.remove(&prefix.len());
                    }
                }
            }
            Slot::Other => self.others.retain(same),
        }
    }

    fn each(&self, event: &Event, mut visit: impl FnMut(&Arc<Watcher>)) {
        let key: &[u8] = &event.kv.key;
        if let Some(watchers) = self.keys.get(key) {
            watchers.iter().for_each(&mut visit);
        }
        for length in self.lengths.range(..=key.len()).map(|(length, _)| *length) {
            if let Some(watchers) = self.prefixes.get(&key[..length]) {
                watchers.each(event, &mut visit);
            }
        }
        self.others.iter().filter(|watcher| watcher.range.contains(key)).for_each(&mut visit);
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Watcher>> {
        self.keys.values().flatten().chain(self.prefixes.values().flat_map(Prefix::iter)).chain(&self.others)
    }
}

fn remove_from(map: &mut Watchers, key: &Bytes, id: WatcherId) {
    if let Some(watchers) = map.get_mut(key) {
        watchers.retain(|other| other.id != id);
        if watchers.is_empty() {
            map.remove(key);
        }
    }
}

/// Recent revisions, dense and bounded by bytes.
struct Ring {
    revisions: VecDeque<(Vec<Arc<Event>>, usize)>,
    first: Revision,
    bytes: usize,
    limit_bytes: usize,
}

impl Ring {
    fn push(&mut self, events: Vec<Arc<Event>>) {
        let bytes = events.iter().map(|event| event.size_bytes()).sum();
        self.bytes += bytes;
        self.revisions.push_back((events, bytes));
        while self.bytes > self.limit_bytes
            && let Some((_, bytes)) = self.revisions.pop_front()
        {
            self.bytes -= bytes;
            self.first += 1;
        }
    }
}

struct State {
    ring: Ring,
    index: Index,
    current: Revision,
    /// Weak, so that a forgotten watch does not keep a closed store's files locked.
    disk: Weak<Disk>,
    next_id: WatcherId,
    watchers: usize,
    stopped: Option<KvError>,
}

/// Where events are published and watches are opened.
#[derive(Clone)]
pub(crate) struct Hub(Arc<Mutex<State>>);

impl Hub {
    pub fn new(disk: &Arc<Disk>, current: Revision, limit_bytes: usize) -> Self {
        let ring = Ring { revisions: VecDeque::new(), first: current + 1, bytes: 0, limit_bytes };
        let (index, disk) = (Index::default(), Arc::downgrade(disk));
        Self(Arc::new(Mutex::new(State { ring, index, current, disk, next_id: 0, watchers: 0, stopped: None })))
    }

    /// Watchers that are there.
    pub fn watchers(&self) -> usize {
        self.0.lock().watchers
    }

    /// Hands out revisions that views already show, in order.
    pub fn publish(&self, revisions: Vec<RevisionEvents>) {
        let mut told = Told::default();
        let mut state = self.0.lock();
        for (revision, events) in revisions {
            debug_assert_eq!(revision, state.current + 1, "revisions are dense");
            state.dispatch(revision, &events, &mut told);
            state.ring.push(events);
            state.current = revision;
        }
        drop(state);
        told.wake();
    }

    /// Asks every watcher that has nothing queued to report the current revision.
    pub fn progress(&self) {
        let mut told = Told::default();
        let state = self.0.lock();
        for watcher in state.index.all() {
            let mut inbox = watcher.inbox.lock();
            if inbox.behind.is_none() && watcher.start <= state.current + 1 {
                inbox.progress = Some(state.current);
                drop(inbox);
                told.add(watcher);
            }
        }
        drop(state);
        told.wake();
    }

    /// Goes on with another database at another revision: every watcher continues from history.
    pub fn replace(&self, disk: &Arc<Disk>, current: Revision) {
        let mut told = Told::default();
        let mut state = self.0.lock();
        let resume = state.current + 1;
        for watcher in state.index.all() {
            let mut inbox = watcher.inbox.lock();
            let back = if crate::bugs::is_on("watch-back") { 3 } else { 0 };
            let from = (resume - back).max(watcher.start);
            inbox.progress = None;
            if current + 1 < resume {
                inbox.end.get_or_insert(KvError::Compacted(current));
            } else if inbox.behind.is_none() && from <= current {
                inbox.behind = Some(from);
            }
            drop(inbox);
            told.add(watcher);
        }
        state.stopped = None;
        state.disk = Arc::downgrade(disk);
        state.current = current;
        state.ring.revisions.clear();
        state.ring.bytes = 0;
        state.ring.first = current + 1;
        drop(state);
        told.wake();
    }

    /// Ends all watches and refuses new ones.
    pub fn stop(&self, why: &str) {
        let mut told = Told::default();
        let mut state = self.0.lock();
        let error = KvError::Stopped(why.to_string());
        for watcher in state.index.all() {
            watcher.inbox.lock().end.get_or_insert(error.clone());
            told.add(watcher);
        }
        state.stopped.get_or_insert(error);
        drop(state);
        told.wake();
    }

    /// Opens a watch.
    pub fn watch(&self, request: WatchRequest) -> Result<Watch, KvError> {
        let mut state = self.0.lock();
        if let Some(error) = &state.stopped {
            return Err(error.clone());
        }
        if state.watchers >= MAX_WATCHERS {
            return Err(KvError::Overloaded);
        }
        let start = if request.start_revision <= 0 { state.current + 1 } else { request.start_revision };
        let floor = state.disk.upgrade().ok_or_else(closed)?.floor();
        if start < floor {
            return Err(KvError::Compacted(floor));
        }
        let behind = (start <= state.current).then_some(start);
        state.next_id += 1;
        let watcher = Arc::new(Watcher {
            id: state.next_id,
            range: request.range,
            only: request.only,
            start,
            inbox: Mutex::new(Inbox { behind, ..Inbox::default() }),
            waker: AtomicWaker::new(),
        });
        state.watchers += 1;
        state.index.insert(watcher.clone());
        Ok(Box::pin(Cursor { hub: self.clone(), watcher, ended: false }))
    }
}

fn closed() -> KvError {
    KvError::Stopped("the store is closed".into())
}

impl State {
    fn dispatch(&self, revision: Revision, events: &[Arc<Event>], told: &mut Told) {
        if let [event] = events {
            self.index.each(event, |watcher| watcher.deliver(revision, events, told));
            return;
        }
        let mut wanted: HashMap<WatcherId, (Arc<Watcher>, Vec<Arc<Event>>)> = HashMap::new();
        for event in events {
            self.index.each(event, |watcher| {
                let entry = wanted.entry(watcher.id).or_insert_with(|| (watcher.clone(), Vec::new()));
                entry.1.push(event.clone());
            });
        }
        for (watcher, events) in wanted.values() {
            watcher.deliver(revision, events, told);
        }
    }
}

/// What a step of catching up found.
enum Caught {
    /// Events of whole revisions up to the revision.
    Batch(WatchBatch),
    /// Nothing of interest in this step; there is more to read.
    Nothing,
    /// The watcher receives live events again.
    Live,
}

/// The stream side of a watcher. Polling one that has fallen out of the ring reads a bounded step from disk.
struct Cursor {
    hub: Hub,
    watcher: Arc<Watcher>,
    ended: bool,
}

/// What a watcher's inbox held.
enum Drained {
    Item(Result<WatchBatch, KvError>),
    /// The watcher is behind and must catch up.
    Behind,
    Nothing,
}

impl Cursor {
    /// Takes what is queued. Needs no lock that others want: it is called each time a watcher looks.
    fn drain(&self) -> Drained {
        let mut inbox = self.watcher.inbox.lock();
        if !inbox.queue.is_empty() {
            inbox.progress = None;
            inbox.queue_bytes = 0;
            let events: Vec<_> = inbox.queue.drain(..).collect();
            // Thousands may rest: none keeps the room of its busiest moment.
            inbox.queue.shrink_to(WATCH_QUEUE_KEPT);
            let revision = events.last().map_or(0, |event| event.kv.mod_revision);
            return Drained::Item(Ok(WatchBatch { revision, events }));
        }
        if let Some(error) = inbox.end.clone() {
            return Drained::Item(Err(error));
        }
        if inbox.behind.is_some() {
            return Drained::Behind;
        }
        match inbox.progress.take() {
            Some(revision) => Drained::Item(Ok(WatchBatch { revision, events: Vec::new() })),
            None => Drained::Nothing,
        }
    }

    /// Reads one step from the ring or from history, if the watcher is behind.
    fn catch_up(&self) -> Result<Caught, KvError> {
        let state = self.hub.0.lock();
        let mut inbox = self.watcher.inbox.lock();
        let Some(from) = inbox.behind else { return Ok(Caught::Live) };
        if from > state.current {
            inbox.behind = None;
            return Ok(Caught::Live);
        }
        if from >= state.ring.first {
            let mut skip = (from - state.ring.first) as usize;
            if crate::bugs::is_on("repeated-event") {
                skip = skip.saturating_sub(1);
            }
            let mut events = Vec::new();
            let mut next = from;
            for (revision, _) in state.ring.revisions.iter().skip(skip).take(WATCH_CATCH_UP_REVISIONS) {
                let wanted =
                    |event: &&Arc<Event>| self.watcher.range.contains(&event.kv.key) && self.watcher.wants(event);
                events.extend(revision.iter().filter(wanted).cloned());
                next += 1;
            }
            inbox.behind = (next <= state.current).then_some(next);
            return Ok(caught(events, next, inbox.behind.is_none()));
        }
        let (disk, to) = (state.disk.upgrade().ok_or_else(closed)?, state.current);
        drop(inbox);
        drop(state);
        let (mut events, next) = disk.events(&self.watcher.range, from, to)?;
        if crate::bugs::is_on("lost-event") && events.len() > 2 {
            events.remove(1);
        }
        // The hub changes `behind` only where it is not set, so it is still `from`.
        self.watcher.inbox.lock().behind = Some(next);
        Ok(caught(events, next, false))
    }
}

fn caught(events: Vec<Arc<Event>>, next: Revision, live: bool) -> Caught {
    match (events.is_empty(), live) {
        (false, _) => Caught::Batch(WatchBatch { revision: next - 1, events }),
        (true, true) => Caught::Live,
        (true, false) => Caught::Nothing,
    }
}

impl Stream for Cursor {
    type Item = Result<WatchBatch, KvError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        // Registered before looking: what is told after that wakes.
        self.watcher.waker.register(context.waker());
        let item = loop {
            match self.drain() {
                Drained::Item(item) => break item,
                Drained::Nothing => return Poll::Pending,
                Drained::Behind => {}
            }
            match self.catch_up() {
                Ok(Caught::Batch(batch)) => break Ok(batch),
                Ok(Caught::Nothing) => {
                    // Lets other tasks run between steps.
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                // Events may have arrived between the two locks.
                Ok(Caught::Live) => {}
                Err(error) => break Err(error),
            }
        };
        self.ended = item.is_err();
        Poll::Ready(Some(item))
    }
}

impl Watching for Cursor {
    fn seen(&self) -> Option<Revision> {
        let state = self.hub.0.lock();
        let inbox = self.watcher.inbox.lock();
        let nothing = inbox.queue.is_empty() && inbox.behind.is_none() && inbox.end.is_none();
        // A watch that begins in the future has nothing to see before it.
        nothing.then(|| state.current.max(self.watcher.start - 1))
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        let mut state = self.hub.0.lock();
        state.index.remove(&self.watcher);
        state.watchers -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::task::Wake;

    use futures::StreamExt;

    use super::*;
    use crate::{Command, Entry, Op, Options, PutRequest, StateMachine, Txn};

    /// Notes at each wake-up how many events wait for all watchers; `None`: the hub was not free.
    struct Looking(Hub, Mutex<Vec<Option<usize>>>);

    impl Wake for Looking {
        fn wake(self: Arc<Self>) {
            let queued = |state: parking_lot::MutexGuard<'_, State>| {
                state.index.all().map(|watcher| watcher.inbox.lock().queue.len()).sum()
            };
            self.1.lock().push(self.0.0.try_lock().map(queued));
        }
    }

    fn put(index: u64, key: &'static str) -> Entry {
        let put = Op::Put(PutRequest::new(key, "value"));
        let commands = vec![Arc::new(Command::Txn(Txn { success: vec![put], ..Txn::default() }))];
        Entry { index, meta: Bytes::new(), commands }
    }

    #[test]
    fn watchers_are_woken_when_all_were_told_and_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let machine = StateMachine::open(dir.path(), Options::default()).expect("opens");
        let looking = Arc::new(Looking(machine.hub.clone(), Mutex::default()));
        let (waker, seen) = (Waker::from(looking.clone()), || std::mem::take(&mut *looking.1.lock()));
        let mut context = Context::from_waker(&waker);
        let open = |range| machine.watch(WatchRequest::new(range, 0)).expect("the watch opens");
        let prefix = |prefix: &'static str| KeyRange::prefix(Bytes::from_static(prefix.as_bytes()));
        let ranges = [prefix("a/"), prefix("a/"), prefix("a/1"), KeyRange::Key("a/1".into()), prefix("b/")];
        let mut watches: Vec<_> = ranges.into_iter().map(open).collect();
        let poll = |watches: &mut Vec<Watch>, context: &mut Context<'_>| {
            let ready = watches.iter_mut().map(|watch| watch.poll_next_unpin(context));
            ready.map(|polled| if let Poll::Ready(Some(Ok(batch))) = polled { batch.events.len() } else { 0 }).collect()
        };
        let polled: Vec<_> = poll(&mut watches, &mut context);
        assert_eq!(polled, [0; 5]);
        // Two revisions at once: two watchers get both of them, two the first, one nothing.
        machine.apply(&[put(1, "a/1"), put(2, "a/2")]).expect("applied");
        assert_eq!(seen(), [Some(6); 4]);
        // Nobody waits: nobody is woken.
        machine.apply(&[put(3, "a/1")]).expect("applied");
        assert_eq!(seen(), []);
        let polled: Vec<_> = poll(&mut watches, &mut context);
        assert_eq!(polled, [3, 3, 2, 2, 0]);
        // One that has nothing left does not need the hub to say so.
        let held = machine.hub.0.lock();
        let polled: Vec<_> = poll(&mut watches, &mut context);
        drop(held);
        assert_eq!(polled, [0; 5]);
        machine.progress();
        assert_eq!(seen(), [Some(0); 5]);
        poll(&mut watches, &mut context);
        machine.stop("the end");
        assert_eq!(seen(), [Some(0); 5]);
    }
}
