//! The vocabulary of the key-value store and the [`Kv`] trait that everybody else uses.
//!
//! Semantics are etcd v3's (KV, Watch and Lease API guarantees): one revision per transaction that
//! changed something, keys ordered bytewise, every acknowledged write durable.

use std::any::Any;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::Stream;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::View;

/// A store revision: 1 for an empty store, plus one per transaction that changed something.
pub type Revision = i64;
/// A lease's identity; 0 means "no lease".
pub type LeaseId = i64;

/// One key with its current value and etcd's bookkeeping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// The value, opaque to the store.
    pub value: Bytes,
    /// Revision of the transaction that created this generation of the key.
    pub create_revision: Revision,
    /// Revision of the last transaction that changed it.
    pub mod_revision: Revision,
    /// 1 at creation, plus one per put.
    pub version: i64,
    /// Lease that the key is attached to, or 0.
    pub lease: LeaseId,
}

/// A half-open interval of keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyRange {
    /// Exactly this key.
    Key(Bytes),
    /// `start <= key < end`.
    Range(Bytes, Bytes),
    /// `start <= key`.
    From(Bytes),
}

impl KeyRange {
    /// All keys that begin with `prefix`.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start: Bytes = prefix.into();
        let mut end = start.to_vec();
        while let Some(last) = end.pop() {
            if last < 0xff {
                end.push(last + 1);
                return Self::Range(start, end.into());
            }
        }
        Self::From(start)
    }

    /// Whether `key` lies in the interval.
    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            Self::Key(k) => k == key,
            Self::Range(start, end) => start <= key && key < &end[..],
            Self::From(start) => start <= key,
        }
    }

    /// Bytes of the interval's bounds.
    pub fn size_bytes(&self) -> usize {
        match self {
            Self::Key(key) | Self::From(key) => key.len(),
            Self::Range(start, end) => start.len() + end.len(),
        }
    }

    /// The first key that may lie in the interval.
    pub fn start(&self) -> &Bytes {
        match self {
            Self::Key(k) | Self::Range(k, _) | Self::From(k) => k,
        }
    }
}

/// What a comparison looks at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CompareTarget {
    /// Number of puts since creation; 0 for an absent key.
    Version(i64),
    /// Revision of creation; 0 for an absent key.
    CreateRevision(Revision),
    /// Revision of last change; 0 for an absent key.
    ModRevision(Revision),
    /// The value; never true for an absent key.
    Value(Bytes),
    /// The attached lease; 0 for an absent key.
    Lease(LeaseId),
}

/// How a comparison compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CompareOp {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `>`
    Greater,
    /// `<`
    Less,
}

/// One guard of a transaction; over a range it must hold for every key there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compare {
    /// The keys to look at.
    pub range: KeyRange,
    /// The attribute and the value it is compared with.
    pub target: CompareTarget,
    /// `attribute op value`.
    pub op: CompareOp,
}

impl Compare {
    /// Holds if the key was last changed at `revision` (0: if it does not exist).
    pub fn mod_revision(key: impl Into<Bytes>, revision: Revision) -> Self {
        Self { range: KeyRange::Key(key.into()), target: CompareTarget::ModRevision(revision), op: CompareOp::Equal }
    }

    /// Holds if the key was created at `revision` (0: if it does not exist).
    pub fn create_revision(key: impl Into<Bytes>, revision: Revision) -> Self {
        Self { range: KeyRange::Key(key.into()), target: CompareTarget::CreateRevision(revision), op: CompareOp::Equal }
    }
}

/// Order of a range's result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SortTarget {
    /// By key (the store's own order).
    #[default]
    Key,
    /// By version.
    Version,
    /// By create revision.
    Create,
    /// By mod revision.
    Mod,
    /// By value.
    Value,
}

/// A read of an interval.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeRequest {
    /// The interval.
    pub range: KeyRange,
    /// Revision to read at; 0 is the current one.
    pub revision: Revision,
    /// Most keys to return; 0 is no limit.
    pub limit: i64,
    /// Leave values out.
    pub keys_only: bool,
    /// Return only the count.
    pub count_only: bool,
    /// Sort by.
    pub sort: SortTarget,
    /// Reverse the order.
    pub descend: bool,
    /// Only keys with a mod revision of at least / at most this (0: no bound).
    pub mod_revision: (Revision, Revision),
    /// Only keys with a create revision of at least / at most this (0: no bound).
    pub create_revision: (Revision, Revision),
}

impl RangeRequest {
    /// A read of the whole interval at the current revision.
    pub fn new(range: KeyRange) -> Self {
        Self {
            range,
            revision: 0,
            limit: 0,
            keys_only: false,
            count_only: false,
            sort: SortTarget::Key,
            descend: false,
            mod_revision: (0, 0),
            create_revision: (0, 0),
        }
    }
}

/// Answer to a [`RangeRequest`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeResponse {
    /// The keys found, in the order asked for.
    pub kvs: Vec<Arc<KeyValue>>,
    /// Whether the limit cut the result.
    pub more: bool,
    /// Number of keys in the interval, whatever the limit.
    pub count: i64,
}

/// A write of one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutRequest {
    /// The key.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
    /// Lease to attach to, or 0.
    pub lease: LeaseId,
    /// Return what was there before.
    pub prev_kv: bool,
    /// Keep the value that is there; an error if there is none.
    pub ignore_value: bool,
    /// Keep the lease that is there; an error if there is none.
    pub ignore_lease: bool,
}

impl PutRequest {
    /// A plain put.
    pub fn new(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self {
            key: key.into(),
            value: value.into(),
            lease: 0,
            prev_kv: false,
            ignore_value: false,
            ignore_lease: false,
        }
    }
}

/// A deletion of an interval.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteRequest {
    /// The interval.
    pub range: KeyRange,
    /// Return what was there before.
    pub prev_kv: bool,
}

/// One operation inside a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Read.
    Range(RangeRequest),
    /// Write.
    Put(PutRequest),
    /// Delete.
    Delete(DeleteRequest),
    /// A nested transaction.
    Txn(Txn),
}

/// If all of `compare` hold then `success` else `failure`, atomically at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Txn {
    /// The guards.
    pub compare: Vec<Compare>,
    /// Done if all guards hold.
    pub success: Vec<Op>,
    /// Done otherwise.
    pub failure: Vec<Op>,
}

/// Answer to an [`Op`], in the same order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OpResponse {
    /// Keys read.
    Range(RangeResponse),
    /// The previous value if it was asked for and existed.
    Put(Option<Arc<KeyValue>>),
    /// How many were deleted, and the previous values if asked for.
    Delete(i64, Vec<Arc<KeyValue>>),
    /// Answer of a nested transaction.
    Txn(bool, Vec<OpResponse>),
}

/// Answer to a [`Txn`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TxnResponse {
    /// The store's revision after the transaction: the new one if it changed something.
    pub revision: Revision,
    /// Whether the guards held.
    pub succeeded: bool,
    /// One answer per operation done.
    pub responses: Vec<OpResponse>,
}

/// What replicates: the only way in which state changes. Deterministic: ids and times are chosen by
/// the proposer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// A transaction.
    Txn(Txn),
    /// Grant a lease of `ttl` seconds with this id; an error if the id is taken.
    LeaseGrant {
        /// The id, never 0.
        id: LeaseId,
        /// Time to live in seconds.
        ttl: i64,
    },
    /// Revoke a lease and delete its keys in one revision.
    LeaseRevoke {
        /// The id.
        id: LeaseId,
    },
    /// Record remaining seconds of leases so that a new leader neither resets nor cuts them.
    LeaseCheckpoint(Vec<(LeaseId, i64)>),
    /// Forget history below this revision.
    Compact(Revision),
    /// Change settings.
    Settings(SettingsChange),
    /// A transaction that is refused unless settings are these.
    TxnIf(Guards, Txn),
    /// [`Command::LeaseRevoke`] that is refused unless settings are these.
    LeaseRevokeIf(Guards, LeaseId),
}

/// What settings must be (`None`: absent) for something to be done.
pub type Guards = Vec<(Bytes, Option<Bytes>)>;

/// A change of settings: small replicated records beside the keys (users, roles, alarms). They have no revision,
/// no history and no watchers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingsChange {
    /// What each of these must be (`None`: absent), or nothing is changed.
    pub guards: Guards,
    /// What is set or removed.
    pub writes: Vec<(Bytes, Option<Bytes>)>,
}

impl SettingsChange {
    /// Bytes of names and values in the change.
    pub fn size_bytes(&self) -> usize {
        settings_bytes(&self.guards) + settings_bytes(&self.writes)
    }
}

fn settings_bytes(settings: &[(Bytes, Option<Bytes>)]) -> usize {
    settings.iter().map(|(name, value)| name.len() + value.as_ref().map_or(0, Bytes::len)).sum()
}

impl Command {
    /// Whether it reads a revision that it names: such a command must be alone in its log entry.
    pub fn reads_history(&self) -> bool {
        matches!(self, Self::Txn(txn) | Self::TxnIf(_, txn) if crate::txn::reads_history(txn))
    }

    /// Bytes of keys and values in the command, for queues and batches that are bounded by size.
    pub fn size_bytes(&self) -> usize {
        match self {
            Self::Txn(txn) => txn.size_bytes(),
            Self::LeaseCheckpoint(remaining) => size_of_val(remaining.as_slice()),
            Self::Settings(change) => change.size_bytes(),
            Self::TxnIf(guards, txn) => settings_bytes(guards) + txn.size_bytes(),
            Self::LeaseRevokeIf(guards, _) => settings_bytes(guards) + size_of::<Self>(),
            Self::LeaseGrant { .. } | Self::LeaseRevoke { .. } | Self::Compact(_) => size_of::<Self>(),
        }
    }
}

impl Txn {
    /// Bytes of keys and values in the transaction, and its operations' own size.
    pub fn size_bytes(&self) -> usize {
        let of_op = |op: &Op| match op {
            Op::Range(request) => request.range.size_bytes(),
            Op::Put(put) => put.key.len() + put.value.len(),
            Op::Delete(request) => request.range.size_bytes(),
            Op::Txn(inner) => inner.size_bytes(),
        };
        let of_compare = |compare: &Compare| {
            let value = if let CompareTarget::Value(value) = &compare.target { value.len() } else { 0 };
            size_of::<Compare>() + compare.range.size_bytes() + value
        };
        let ops = self.success.iter().chain(&self.failure).map(|op| size_of::<Op>() + of_op(op));
        ops.sum::<usize>() + self.compare.iter().map(of_compare).sum::<usize>()
    }
}

/// What applying a [`Command`] answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Applied {
    /// To [`Command::Txn`].
    Txn(TxnResponse),
    /// To the other commands: the revision after them.
    Done(Revision),
}

/// What the store refuses, with etcd's own meaning (rpctypes).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum KvError {
    /// The revision asked for is gone; carries the compact revision.
    #[error("mvcc: required revision has been compacted")]
    Compacted(Revision),
    /// The revision asked for is not there yet.
    #[error("mvcc: required revision is a future revision")]
    FutureRevision,
    /// `ignore_value`/`ignore_lease` on an absent key.
    #[error("key not found")]
    KeyNotFound,
    /// One transaction puts a key twice.
    #[error("duplicate key given in txn request")]
    DuplicateKey,
    /// A key is empty.
    #[error("key is not provided")]
    EmptyKey,
    /// No such lease.
    #[error("requested lease not found")]
    LeaseNotFound,
    /// The lease id is taken.
    #[error("lease already exists")]
    LeaseExists,
    /// The TTL is beyond the limit.
    #[error("too large lease TTL")]
    LeaseTtlTooLarge,
    /// A request over the size limit.
    #[error("request is too large")]
    TooLarge,
    /// Too many operations in one transaction.
    #[error("too many operations in txn request")]
    TooManyOps,
    /// There is no leader, or it changed while the request was under way; for a write the outcome is unknown.
    #[error("no leader: {0}")]
    Unavailable(String),
    /// Too many requests are under way.
    #[error("too many requests")]
    Overloaded,
    /// The store has stopped; carries why.
    #[error("store stopped: {0}")]
    Stopped(String),
    /// A guard of a change of settings did not hold.
    #[error("the settings have changed meanwhile")]
    SettingsConflict,
}

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// Created or changed.
    Put,
    /// Deleted; `kv` then has only the key and the mod revision.
    Delete,
}

/// One change of one key.
#[derive(Debug)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The key after the change.
    pub kv: Arc<KeyValue>,
    /// The key before the change, if it existed and its history is not compacted.
    pub prev: Option<Arc<KeyValue>>,
    /// A place for consumers to keep what they derived from the event once for all watchers (encodings).
    pub memo: OnceLock<Arc<dyn Any + Send + Sync>>,
}

impl Event {
    /// Bytes of memory that the event keeps, without its memo.
    pub fn size_bytes(&self) -> usize {
        let prev = self.prev.as_ref().map_or(0, |kv| kv.value.len());
        size_of::<Self>() + self.kv.key.len() + self.kv.value.len() + prev
    }
}

/// What to watch.
#[derive(Clone, Debug)]
pub struct WatchRequest {
    /// The interval.
    pub range: KeyRange,
    /// First revision to deliver; 0 is "from the next change on". Past ones are read from history.
    pub start_revision: Revision,
    /// Which of the changes are wanted. Others may come too: it spares those who wait for one of many from being woken for
    /// all of them, no more.
    pub only: Option<Only>,
}

impl WatchRequest {
    /// All changes of an interval from a revision on.
    pub fn new(range: KeyRange, start_revision: Revision) -> Self {
        Self { range, start_revision, only: None }
    }
}

/// Changes that concern one thing, as something that understands values reads it.
#[derive(Clone, Debug)]
pub struct Only {
    /// Reads what a value concerns.
    pub lens: Lens,
    /// What is wanted: a change concerns it if the key did so before or does so after it.
    pub concern: Bytes,
}

/// Reads what a value concerns; `None` if it cannot tell. It runs while changes are handed out: it must be short.
#[derive(Clone, Copy, Debug)]
pub struct Lens {
    /// The function.
    pub read: fn(&[u8], usize) -> Option<&[u8]>,
    /// Its second argument.
    pub field: usize,
}

impl PartialEq for Lens {
    /// Two functions may be one if they do the same, and one may be two: neither makes a change less wanted.
    fn eq(&self, other: &Self) -> bool {
        self.field == other.field && std::ptr::fn_addr_eq(self.read, other.read)
    }
}

impl Lens {
    /// What a change concerns, before and after it; `None` if that cannot be told.
    pub(crate) fn concerns<'a>(&self, event: &'a Event) -> Option<impl Iterator<Item = &'a [u8]> + use<'a>> {
        // Without the former value nobody knows, unless there was none.
        let began = event.kind == EventKind::Put && event.kv.version == 1;
        if event.prev.is_none() && !began {
            return None;
        }
        let read = |kv: &'a KeyValue| (self.read)(&kv.value, self.field);
        let before = event.prev.as_ref().map(|kv| read(kv).ok_or(())).transpose().ok()?;
        let now = (event.kind == EventKind::Put).then(|| read(&event.kv).ok_or(())).transpose().ok()?;
        Some(before.into_iter().chain(now.filter(|now| before != Some(*now))))
    }
}

/// All events of the watched interval for one or more whole revisions, in order.
#[derive(Clone, Debug)]
pub struct WatchBatch {
    /// Everything up to and including this revision has been delivered once the batch is consumed.
    pub revision: Revision,
    /// The events; empty for pure progress.
    pub events: Vec<Arc<Event>>,
}

/// A watch: ordered, unique, atomic per revision, reliable; ends after the first error
/// ([`KvError::Compacted`] when it fell behind a compaction, [`KvError::Stopped`] at shutdown).
pub type Watch = Pin<Box<dyn Watching>>;

/// What a watch is.
pub trait Watching: Stream<Item = Result<WatchBatch, KvError>> + Send {
    /// The revision up to which nothing is left for the watcher to see, if it has taken everything that there is for it.
    fn seen(&self) -> Option<Revision>;
}

/// A lease as seen from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseStatus {
    /// The id.
    pub id: LeaseId,
    /// TTL granted, seconds.
    pub granted_ttl: i64,
    /// Seconds left.
    pub remaining_ttl: i64,
    /// Attached keys in order.
    pub keys: Vec<Bytes>,
}

/// How this member stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KvStatus {
    /// This member's id (0 for a local store).
    pub member_id: u64,
    /// The leader's id, 0 if none is known. A local store leads itself.
    pub leader_id: u64,
    /// Whether this member leads.
    pub is_leader: bool,
    /// Raft term, log index committed and applied (0 for a local store).
    pub term: u64,
    /// Last applied log index.
    pub applied_index: u64,
    /// Current revision.
    pub revision: Revision,
    /// Bytes on disk.
    pub db_size: u64,
}

/// A linearizable key-value store with revisions, watches and leases.
///
/// Invariant: once a write was acknowledged, or [`Kv::barrier`] returned, [`Kv::view`] on this member
/// shows it. The tests in the module `contract` (a feature) run on every implementation.
pub trait Kv: Send + Sync + 'static {
    /// The current state on this member; O(1), immutable, no barrier.
    fn view(&self) -> View;

    /// After this returns, [`Kv::view`] reflects every write acknowledged anywhere before the call.
    fn barrier(&self) -> BoxFuture<'_, Result<Revision, KvError>>;

    /// Reads at a past revision (or the current one) from this member; may block on disk for past ones:
    /// call it from a blocking thread then.
    fn range(&self, request: &RangeRequest) -> Result<RangeResponse, KvError>;

    /// Runs a transaction.
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnResponse, KvError>> {
        self.txn_if(Guards::new(), txn)
    }

    /// Runs a transaction if settings are these at its place in the order of all changes; else
    /// [`KvError::SettingsConflict`].
    fn txn_if(&self, guards: Guards, txn: Txn) -> BoxFuture<'_, Result<TxnResponse, KvError>>;

    /// Opens a watch on this member.
    fn watch(&self, request: WatchRequest) -> Result<Watch, KvError>;

    /// Makes every idle watch on this member yield an empty batch at the current revision, soon.
    fn progress(&self);

    /// Forgets history below `revision`.
    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), KvError>>;

    /// Changes settings (see [`View::setting`]); [`KvError::SettingsConflict`] if a guard does not hold.
    fn change_settings(&self, change: SettingsChange) -> BoxFuture<'_, Result<(), KvError>>;

    /// Grants a lease of `ttl` seconds; `id` 0 lets the store choose. Returns the id.
    fn lease_grant(&self, id: LeaseId, ttl: i64) -> BoxFuture<'_, Result<LeaseId, KvError>>;

    /// Revokes a lease and deletes its keys.
    fn lease_revoke(&self, id: LeaseId) -> BoxFuture<'_, Result<(), KvError>> {
        self.lease_revoke_if(Guards::new(), id)
    }

    /// The same if settings are these; else [`KvError::SettingsConflict`].
    fn lease_revoke_if(&self, guards: Guards, id: LeaseId) -> BoxFuture<'_, Result<(), KvError>>;

    /// Renews a lease; returns its TTL in seconds.
    fn lease_keep_alive(&self, id: LeaseId) -> BoxFuture<'_, Result<i64, KvError>>;

    /// A lease's remaining time and keys.
    fn lease_status(&self, id: LeaseId) -> BoxFuture<'_, Result<LeaseStatus, KvError>>;

    /// All leases' ids.
    fn leases(&self) -> Vec<LeaseId>;

    /// How this member stands.
    fn status(&self) -> KvStatus;

    /// Follows whether this member leads: yields the current answer, then each change.
    fn leadership(&self) -> Pin<Box<dyn Stream<Item = bool> + Send>>;
}
