//! The current state in memory: an immutable, ordered, cheaply cloned map of keys and leases.
//!
//! Invariant: `leases[id].keys` are exactly the keys whose `lease` is `id`.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use rpds::{RedBlackTreeMapSync, RedBlackTreeSetSync};

use crate::disk::Disk;
use crate::record::ChainHash;
use crate::tree::{Range, Tree};
use crate::{Event, Fatal, KeyRange, KeyValue, KvError, LeaseId, RangeRequest, RangeResponse, Revision, SortTarget};

/// A lease as the state machine knows it: durations only, no clock.
#[derive(Clone, Debug)]
pub struct Lease {
    /// The id.
    pub id: LeaseId,
    /// TTL granted, in seconds.
    pub granted_ttl: i64,
    /// Seconds left when it was last checkpointed; 0 if it never was.
    pub checkpointed_ttl: i64,
    /// The keys attached to it.
    pub(crate) keys: RedBlackTreeSetSync<Bytes>,
}

impl Lease {
    /// The keys attached to the lease, in order.
    pub fn keys(&self) -> impl Iterator<Item = &Bytes> {
        self.keys.iter()
    }
}

/// Everything that a [`View`] shows.
#[derive(Clone)]
pub(crate) struct State {
    pub keys: Tree,
    pub leases: RedBlackTreeMapSync<LeaseId, Arc<Lease>>,
    pub settings: RedBlackTreeMapSync<Bytes, Bytes>,
    pub revision: Revision,
    pub compact_revision: Revision,
    pub hash: ChainHash,
    pub applied: u64,
    pub meta: Bytes,
    pub disk: Arc<Disk>,
}

impl State {
    /// Sets or deletes a key where `old` is what is there; keeps the leases' attachments right.
    pub fn replace(&mut self, key: &[u8], old: Option<&Arc<KeyValue>>, new: Option<Arc<KeyValue>>) {
        let (old_lease, new_lease) = (old.map_or(0, |kv| kv.lease), new.as_ref().map_or(0, |kv| kv.lease));
        match new {
            Some(kv) => {
                if new_lease != 0 && new_lease != old_lease {
                    self.change_lease(new_lease, |lease| lease.keys.insert_mut(kv.key.clone()));
                }
                self.keys.insert(kv, old.is_none());
            }
            None if old.is_some() => self.keys.remove(key),
            None => {}
        }
        if old_lease != 0 && old_lease != new_lease {
            self.change_lease(old_lease, |lease| {
                lease.keys.remove_mut(key);
            });
        }
    }

    /// Changes a lease in place, if it exists.
    pub fn change_lease(&mut self, id: LeaseId, change: impl FnOnce(&mut Lease)) {
        if let Some(lease) = self.leases.get_mut(&id) {
            change(Arc::make_mut(lease));
        }
    }

    pub fn get(&self, key: &[u8]) -> Option<&Arc<KeyValue>> {
        self.keys.get(key)
    }

    /// The keys of an interval in order, lazily.
    pub fn range(&self, range: &KeyRange, after: Option<&[u8]>) -> Range<'_> {
        let start: &[u8] = range.start();
        let lower = match after {
            Some(after) if after >= start => Bound::Excluded(after),
            _ => Bound::Included(start),
        };
        let upper = match range {
            KeyRange::Key(key) => Bound::Included(key.to_vec()),
            KeyRange::Range(_, end) => Bound::Excluded(end.to_vec()),
            KeyRange::From(_) => Bound::Unbounded,
        };
        if is_empty(&lower, &upper) { Range::empty() } else { self.keys.range(lower, upper) }
    }

    /// Answers a range request on the current state, whatever revision it names.
    pub fn query_current(&self, request: &RangeRequest) -> RangeResponse {
        let mut collector = Collector::new(request);
        for kv in self.range(&request.range, None) {
            collector.push(kv);
        }
        collector.finish()
    }
}

/// Owned bounds of a range of keys.
struct Bounds(Bound<Vec<u8>>, Bound<Vec<u8>>);

impl std::ops::RangeBounds<[u8]> for Bounds {
    fn start_bound(&self) -> Bound<&[u8]> {
        self.0.as_ref().map(Vec::as_slice)
    }

    fn end_bound(&self) -> Bound<&[u8]> {
        self.1.as_ref().map(Vec::as_slice)
    }
}

fn is_empty(lower: &Bound<&[u8]>, upper: &Bound<Vec<u8>>) -> bool {
    match (lower, upper) {
        (_, Bound::Unbounded) | (Bound::Unbounded, _) => false,
        (Bound::Included(from), Bound::Included(to)) => *from > &to[..],
        (Bound::Included(from) | Bound::Excluded(from), Bound::Included(to) | Bound::Excluded(to)) => *from >= &to[..],
    }
}

/// Filters, sorts and cuts the keys of a range as the request asks.
pub(crate) struct Collector<'a> {
    request: &'a RangeRequest,
    kvs: Vec<Arc<KeyValue>>,
    count: i64,
    more: bool,
}

impl<'a> Collector<'a> {
    pub fn new(request: &'a RangeRequest) -> Self {
        Self { request, kvs: Vec::new(), count: 0, more: false }
    }

    fn sorts(&self) -> bool {
        self.request.sort != SortTarget::Key || self.request.descend
    }

    /// Takes the next key in key order.
    pub fn push(&mut self, kv: &Arc<KeyValue>) {
        self.count += 1;
        if self.request.count_only || self.more {
            return;
        }
        let within = |value: Revision, (low, high): (Revision, Revision)| {
            (low == 0 || value >= low) && (high == 0 || value <= high)
        };
        if !within(kv.mod_revision, self.request.mod_revision)
            || !within(kv.create_revision, self.request.create_revision)
        {
            return;
        }
        if !self.sorts() && self.request.limit > 0 && self.kvs.len() as i64 >= self.request.limit {
            self.more = true;
            return;
        }
        self.kvs.push(kv.clone());
    }

    /// The answer.
    pub fn finish(mut self) -> RangeResponse {
        if self.sorts() {
            let (sort, descend) = (self.request.sort, self.request.descend);
            // Stable in both directions: what is equal stays in key order.
            self.kvs.sort_by(|a, b| {
                let order = match sort {
                    SortTarget::Key => a.key.cmp(&b.key),
                    SortTarget::Version => a.version.cmp(&b.version),
                    SortTarget::Create => a.create_revision.cmp(&b.create_revision),
                    SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
                    SortTarget::Value => a.value.cmp(&b.value),
                };
                if descend { order.reverse() } else { order }
            });
            if self.request.limit > 0 && self.kvs.len() as i64 > self.request.limit {
                self.kvs.truncate(self.request.limit as usize);
                self.more = true;
            }
        }
        if self.request.keys_only {
            for kv in &mut self.kvs {
                *kv = Arc::new(KeyValue { value: Bytes::new(), ..KeyValue::clone(kv) });
            }
        }
        RangeResponse { kvs: self.kvs, more: self.more, count: self.count }
    }
}

/// An immutable picture of the store at one revision. Cloning is O(1); holding one costs the memory of
/// what has changed since.
#[derive(Clone)]
pub struct View(pub(crate) Arc<State>);

impl View {
    /// The revision that the view shows.
    pub fn revision(&self) -> Revision {
        self.0.revision
    }

    /// History below this revision is gone; 0 if nothing was compacted.
    pub fn compact_revision(&self) -> Revision {
        self.0.compact_revision
    }

    /// Hash of the whole history up to [`View::revision`]: equal on all members at equal revisions.
    pub fn hash(&self) -> ChainHash {
        self.0.hash
    }

    /// Index of the last command that the view reflects.
    pub fn applied_index(&self) -> u64 {
        self.0.applied
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.0.keys.len()
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.0.keys.len() == 0
    }

    /// One key.
    pub fn get(&self, key: &[u8]) -> Option<&Arc<KeyValue>> {
        self.0.get(key)
    }

    /// The keys of an interval in order, lazily.
    pub fn range(&self, range: &KeyRange) -> impl Iterator<Item = &Arc<KeyValue>> {
        self.0.range(range, None)
    }

    /// The keys of an interval that come after `after_key`: the next page.
    pub fn range_from(&self, range: &KeyRange, after_key: &[u8]) -> impl Iterator<Item = &Arc<KeyValue>> {
        self.0.range(range, Some(after_key))
    }

    /// Whether an interval is as another view shows it. Looks only at what the two do not share, so that of views that
    /// follow each other it costs next to nothing; may say no where all is the same, never yes where something is not.
    pub fn same(&self, other: &Self, range: &KeyRange) -> bool {
        let (one, other) = (&self.0.keys, &other.0.keys);
        match range {
            KeyRange::Key(key) => match (one.get(key), other.get(key)) {
                (Some(one), Some(other)) => Arc::ptr_eq(one, other),
                (one, other) => one.is_none() && other.is_none(),
            },
            KeyRange::Range(from, below) => one.same(other, from, Some(below)),
            KeyRange::From(from) => one.same(other, from, None),
        }
    }

    /// Number of keys in an interval.
    pub fn count(&self, range: &KeyRange) -> usize {
        match range {
            KeyRange::From(start) if start.is_empty() => self.len(),
            _ => self.range(range).count(),
        }
    }

    /// A lease.
    pub fn lease(&self, id: LeaseId) -> Option<&Arc<Lease>> {
        self.0.leases.get(&id)
    }

    /// All leases in the order of their ids.
    pub fn leases(&self) -> impl Iterator<Item = &Arc<Lease>> {
        self.0.leases.values()
    }

    /// One setting.
    pub fn setting(&self, name: &[u8]) -> Option<&Bytes> {
        self.0.settings.get(name)
    }

    /// The settings whose names begin with `prefix`, in order.
    pub fn settings<'a>(&'a self, prefix: &'a [u8]) -> impl Iterator<Item = (&'a Bytes, &'a Bytes)> {
        let from = Bounds(Bound::Included(prefix.to_vec()), Bound::Unbounded);
        let all = self.0.settings.range::<[u8], Bounds>(from);
        all.take_while(move |(name, _)| name.starts_with(prefix))
    }

    /// Visits every key as it was at a revision that is not compacted, in key order; blocks on disk.
    pub fn scan_at(&self, revision: Revision, each: impl FnMut(KeyValue) -> Result<(), Fatal>) -> Result<(), KvError> {
        self.0.disk.scan_at(revision, each)
    }

    /// Events of whole revisions from `from` to at most `to` (which must not be beyond this view), until enough was
    /// read for one step; and the revision to go on from. Blocks on disk.
    pub fn history(&self, from: Revision, to: Revision) -> Result<(Vec<Arc<Event>>, Revision), KvError> {
        self.0.disk.events(&KeyRange::From(Bytes::new()), from, to)
    }

    /// Answers a range request; at a past revision by reading history from disk (which may block).
    pub fn query(&self, request: &RangeRequest) -> Result<RangeResponse, KvError> {
        if request.revision > self.revision() {
            return Err(KvError::FutureRevision);
        }
        if request.revision <= 0 || request.revision == self.revision() {
            return Ok(self.0.query_current(request));
        }
        self.0.disk.query_past(request)
    }
}
