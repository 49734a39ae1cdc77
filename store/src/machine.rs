//! The state machine: applies commands in order to memory and disk, publishes views, then events.
//!
//! Invariants: one batch is one atomic write that carries the applied index and the caller's blob; what a
//! command does depends only on the state and the command; after a [`Fatal`] error nothing is applied any more.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::task::Poll;

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;
use rocksdb::WriteBatch;
use rpds::{RedBlackTreeMapSync, RedBlackTreeSetSync};
use sha2::{Digest, Sha256};

use crate::compact::Compactor;
use crate::counts::{Counters, Counts};
use crate::disk::{Disk, Family, deleted};
use crate::hub::{Hub, RevisionEvents};
use crate::limits::{MAX_KEY_BYTES, MAX_LEASE_TTL_SECONDS, MAX_VALUE_BYTES, WATCH_RING_BYTES};
use crate::record::{self, ChainHash, StateRecord};
use crate::tree::Tree;
use crate::txn::{self, Change};
use crate::view::{Lease, State};
use crate::{
    Applied, Command, Event, EventKind, Fatal, KeyValue, KvError, LeaseId, Revision, SettingsChange, TxnResponse, View,
    Watch, WatchRequest,
};

/// How a [`StateMachine`] is opened.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Write RocksDB's own log and sync it with every batch. Off when a replicated log is replayed after a crash.
    pub wal: bool,
    /// Bytes of recent events kept in memory for watchers.
    pub watch_ring_bytes: usize,
    /// Do everything on the caller's threads, in an order that does not depend on time: for simulations.
    pub inline: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { wal: false, watch_ring_bytes: WATCH_RING_BYTES, inline: false }
    }
}

/// One entry of the log to apply.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its index; indexes rise.
    pub index: u64,
    /// Opaque to the store, kept with the applied index (a log id, a membership).
    pub meta: Bytes,
    /// What to do, in order; nothing for entries that only carry `meta`. One that reads history is alone in its entry.
    pub commands: Vec<Arc<Command>>,
}

/// The replicated state of one member, in memory and on disk.
pub struct StateMachine {
    pub(crate) root: PathBuf,
    pub(crate) options: Options,
    pub(crate) published: ArcSwap<State>,
    /// Held while applying or installing.
    pub(crate) applying: Mutex<()>,
    pub(crate) hub: Hub,
    pub(crate) compactor: Compactor,
    counters: Counters,
    /// Data that the bug `applied-ahead` writes too late.
    #[cfg(feature = "bugs")]
    late: Mutex<WriteBatch>,
}

/// Changes of a batch that are not yet written.
pub(crate) struct Pending {
    state: State,
    batch: WriteBatch,
    events: Vec<RevisionEvents>,
    /// A compaction to begin once the batch is written.
    compact: bool,
    /// Where keys and records are put together.
    scratch: (Vec<u8>, Vec<u8>),
}

impl StateMachine {
    /// Opens or creates the state in `dir`, and loads it into memory.
    pub fn open(dir: &Path, options: Options) -> Result<Self, Fatal> {
        let path = crate::generation::current(dir)?;
        let disk = Arc::new(Disk::open(&path, &options)?);
        let state = load(disk.clone())?;
        let compactor = Compactor::start(options.inline)?;
        compactor.request(disk.clone(), state.compact_revision);
        let hub = Hub::new(&disk, state.revision, options.watch_ring_bytes);
        Ok(Self {
            root: dir.to_path_buf(),
            options,
            published: ArcSwap::from_pointee(state),
            applying: Mutex::new(()),
            hub,
            counters: Counters::default(),
            compactor,
            #[cfg(feature = "bugs")]
            late: Mutex::default(),
        })
    }

    /// The current state.
    pub fn view(&self) -> View {
        View(self.published.load_full())
    }

    /// Opens a watch.
    pub fn watch(&self, request: WatchRequest) -> Result<Watch, KvError> {
        self.hub.watch(request)
    }

    /// Makes every idle watcher yield an empty batch at the current revision.
    pub fn progress(&self) {
        self.hub.progress();
    }

    /// Ends all watches with [`KvError::Stopped`].
    pub fn stop(&self, why: &str) {
        self.hub.stop(why);
    }

    /// Index and blob of the last applied entry.
    pub fn applied(&self) -> (u64, Bytes) {
        let state = self.published.load();
        (state.applied, state.meta.clone())
    }

    /// The applied index that would be found after a crash now: the log may be purged up to it.
    pub fn flushed_index(&self) -> Result<u64, Fatal> {
        let disk = self.published.load().disk.clone();
        Ok(disk.persisted_state()?.map_or(0, |state| state.applied))
    }

    /// Makes everything applied durable; returns the applied index that is.
    pub fn flush(&self) -> Result<u64, Fatal> {
        let disk = self.published.load().disk.clone();
        disk.flush()?;
        self.flushed_index()
    }

    /// Revision below which the background compaction has removed everything from disk.
    pub fn compacted_on_disk(&self) -> Result<Revision, Fatal> {
        let disk = self.published.load().disk.clone();
        Ok(disk.pair(record::COMPACTED_KEY)?.map_or(0, |(progress, _)| progress))
    }

    /// Bytes on disk and in write buffers.
    pub fn size_bytes(&self) -> u64 {
        self.published.load().disk.size_bytes()
    }

    /// What was applied since it was opened.
    pub fn counts(&self) -> Counts {
        self.counters.counts()
    }

    /// Watchers that are there.
    pub fn watchers(&self) -> usize {
        self.hub.watchers()
    }

    /// The chain hash at a revision that is not compacted.
    pub fn hash_at(&self, revision: Revision) -> Result<ChainHash, KvError> {
        let state = self.published.load_full();
        match revision {
            _ if revision == state.revision => Ok(state.hash),
            _ if revision > state.revision => Err(KvError::FutureRevision),
            _ => state.disk.hash_at(revision),
        }
    }

    /// Applies entries in order and returns an answer for each of their commands. To be called by one thread at
    /// a time (others wait). With `Options::wal` the batch is durable when this returns.
    pub fn apply(&self, entries: &[Entry]) -> Result<Vec<Result<Applied, KvError>>, Fatal> {
        let _applying = self.applying.lock();
        if let Some(fatal) = self.failure() {
            return Err(fatal);
        }
        self.apply_batch(entries).inspect_err(|fatal| self.fail(fatal))
    }

    /// Why this machine applies nothing any more, if so. Its owner must then stop the process or replace the state.
    pub fn failure(&self) -> Option<Fatal> {
        self.published.load().disk.failure()
    }

    /// Waits until this machine fails.
    pub fn failed(self: Arc<Self>) -> impl Future<Output = Fatal> + Send + 'static {
        std::future::poll_fn(move |context| {
            loop {
                let disk = self.published.load().disk.clone();
                disk.wait(context.waker());
                // Damage, and another database in its place, may have come before the waker was there.
                match disk.failure() {
                    Some(fatal) => return Poll::Ready(fatal),
                    None if Arc::ptr_eq(&disk, &self.published.load().disk) => return Poll::Pending,
                    None => {}
                }
            }
        })
    }

    /// Declares this machine damaged for a reason that only its owner can see: nothing is applied any more.
    pub fn condemn(&self, why: &str) {
        self.fail(&Fatal::Corrupt(why.to_owned()));
    }

    /// Stops applying and ends all watches.
    pub(crate) fn fail(&self, fatal: &Fatal) {
        tracing::error!(%fatal, "the state machine stops");
        self.published.load().disk.fail(fatal);
        self.hub.stop(&fatal.to_string());
    }

    fn apply_batch(&self, entries: &[Entry]) -> Result<Vec<Result<Applied, KvError>>, Fatal> {
        let mut pending = self.pending();
        let mut answers = Vec::with_capacity(entries.len());
        for entry in entries {
            if !pending.events.is_empty() && entry.commands.iter().any(|command| command.reads_history()) {
                // What the transaction may read must be on disk. Before the entry, never within: what is on disk ends
                // with a whole entry.
                self.commit(pending)?;
                pending = self.pending();
            }
            for command in &entry.commands {
                let answer = pending.run(command)?;
                if answer.is_ok() {
                    self.counters.command(command);
                }
                answers.push(answer);
            }
            pending.state.applied = entry.index;
            pending.state.meta = entry.meta.clone();
        }
        // Not a slice of a larger buffer, which it would keep alive.
        pending.state.meta = Bytes::copy_from_slice(&pending.state.meta);
        self.commit(pending)?;
        Ok(answers)
    }

    fn pending(&self) -> Pending {
        let state = State::clone(&self.published.load());
        Pending { state, batch: WriteBatch::default(), events: Vec::new(), compact: false, scratch: Default::default() }
    }

    /// Writes a batch, then shows it to readers, then to watchers.
    fn commit(&self, mut pending: Pending) -> Result<(), Fatal> {
        #[cfg(feature = "bugs")]
        if crate::bugs::is_on("applied-ahead") {
            std::mem::swap(&mut pending.batch, &mut *self.late.lock());
        }
        let state = &pending.state;
        let disk = state.disk.clone();
        #[allow(unused_mut)]
        let mut stored = StateRecord {
            applied: state.applied,
            revision: state.revision,
            compact_revision: state.compact_revision,
            hash: state.hash,
            meta: state.meta.clone(),
        };
        #[cfg(feature = "bugs")]
        if crate::bugs::is_on("applied-behind") {
            let before = self.published.load();
            (stored.applied, stored.meta) = (before.applied, before.meta.clone());
        }
        let record = record::encode_state(&stored);
        pending.batch.put_cf(disk.family(Family::Meta)?, record::STATE_KEY, record);
        disk.write(pending.batch, true)?;
        let compact_revision = state.compact_revision;
        if pending.compact {
            disk.raise_floor(compact_revision);
        }
        self.published.store(Arc::new(pending.state));
        self.counters.add(&pending.events, pending.compact);
        self.hub.publish(pending.events);
        if pending.compact {
            self.compactor.request(disk, compact_revision);
        }
        Ok(())
    }
}

impl Drop for StateMachine {
    fn drop(&mut self) {
        self.hub.stop("the store is closed");
    }
}

/// Reads the whole current state from disk.
pub(crate) fn load(disk: Arc<Disk>) -> Result<State, Fatal> {
    let stored = match disk.state()? {
        Some(stored) => stored,
        None => {
            let first = StateRecord { revision: 1, ..StateRecord::default() };
            let mut batch = WriteBatch::default();
            batch.put_cf(disk.family(Family::Meta)?, record::STATE_KEY, record::encode_state(&first));
            disk.write(batch, true)?;
            first
        }
    };
    disk.raise_floor(stored.compact_revision);
    let mut state = State {
        keys: Tree::default(),
        leases: RedBlackTreeMapSync::new_sync(),
        settings: RedBlackTreeMapSync::new_sync(),
        revision: stored.revision,
        compact_revision: stored.compact_revision,
        hash: stored.hash,
        applied: stored.applied,
        meta: stored.meta,
        disk: disk.clone(),
    };
    for (id, granted_ttl, checkpointed_ttl) in disk.load_leases()? {
        let lease = Lease { id, granted_ttl, checkpointed_ttl, keys: RedBlackTreeSetSync::new_sync() };
        state.leases.insert_mut(id, Arc::new(lease));
    }
    for (name, value) in disk.load_settings()? {
        state.settings.insert_mut(name, value);
    }
    let (mut lost, mut newest) = (false, 1);
    disk.load_keys(|kv| {
        newest = newest.max(kv.mod_revision);
        if kv.mod_revision > stored.revision {
            lost = true;
        }
        if kv.lease != 0 {
            state.change_lease(kv.lease, |lease| lease.keys.insert_mut(kv.key.clone()));
        }
        let new = state.keys.get(&kv.key).is_none();
        state.keys.insert(Arc::new(kv), new);
    })?;
    if lost {
        return Err(Fatal::Corrupt(format!("there are keys beyond revision {}", stored.revision)));
    }
    if crate::bugs::is_on("falling-revision") && stored.compact_revision > 0 {
        state.revision = newest;
    }
    Ok(state)
}

impl Pending {
    /// Runs one command. The outer error is fatal, the inner one is the command's answer.
    fn run(&mut self, command: &Command) -> Result<Result<Applied, KvError>, Fatal> {
        match command {
            Command::Txn(txn) => self.txn(txn),
            Command::LeaseGrant { id, ttl } => self.lease_grant(*id, *ttl),
            Command::LeaseRevoke { id } => self.lease_revoke(*id),
            Command::LeaseCheckpoint(remaining) => self.lease_checkpoint(remaining),
            Command::Compact(revision) => Ok(self.compact(*revision)),
            Command::Settings(change) => self.settings(change),
            Command::TxnIf(guards, _) | Command::LeaseRevokeIf(guards, _) if !self.holds(guards) => {
                Ok(Err(KvError::SettingsConflict))
            }
            Command::TxnIf(_, txn) => self.txn(txn),
            Command::LeaseRevokeIf(_, id) => self.lease_revoke(*id),
        }
    }

    fn done(&self) -> Result<Applied, KvError> {
        Ok(Applied::Done(self.state.revision))
    }

    fn txn(&mut self, txn: &crate::Txn) -> Result<Result<Applied, KvError>, Fatal> {
        let ran = txn::check(txn).and_then(|()| txn::run(&mut self.state, txn));
        let (succeeded, responses, changes) = match ran {
            Ok(ran) => ran,
            // A disk that fails to answer must not become a refusal that other members do not give.
            Err(KvError::Stopped(why)) => return Err(self.state.disk.failure().unwrap_or(Fatal::Io(why))),
            Err(error) => return Ok(Err(error)),
        };
        self.record(changes)?;
        Ok(Ok(Applied::Txn(TxnResponse { revision: self.state.revision, succeeded, responses })))
    }

    /// Gives changes their revision: to disk, into the chain hash, and as events.
    fn record(&mut self, changes: Vec<Change>) -> Result<(), Fatal> {
        if changes.is_empty() {
            return Ok(());
        }
        let revision = self.state.revision + 1;
        let mut events = Vec::with_capacity(changes.len());
        let (db_key, record) = &mut self.scratch;
        let data = self.state.disk.family(Family::Data)?;
        let mut hash = Sha256::new_with_prefix(self.state.hash);
        hash.update(revision.to_le_bytes());
        for Change { key, old, new } in changes {
            record::put_data_key(&key, revision, db_key);
            record::put_version(db_key, new.as_deref(), record);
            self.batch.put_cf(data, &db_key, &record);
            hash_change(&mut hash, &key, new.as_deref());
            let kind = if new.is_some() { EventKind::Put } else { EventKind::Delete };
            let kv = new.unwrap_or_else(|| Arc::new(deleted(&key, revision)));
            events.push(Arc::new(Event { kind, kv, prev: old, memo: OnceLock::new() }));
        }
        self.state.hash = hash.finalize().into();
        let db_key = record::revision_key(revision);
        // Both a change's and a deletion's event have the key.
        let listed = events.iter().map(|event: &Arc<Event>| (event.kind, &event.kv.key));
        record::put_revision(&db_key, &self.state.hash, listed, record);
        self.batch.put_cf(self.state.disk.family(Family::Revs)?, db_key, record);
        self.state.revision = revision;
        self.events.push((revision, events));
        Ok(())
    }

    fn write_lease(&mut self, lease: Lease) -> Result<(), Fatal> {
        let db_key = record::lease_key(lease.id);
        let record = record::encode_pair(&db_key, (lease.granted_ttl, lease.checkpointed_ttl));
        self.batch.put_cf(self.state.disk.family(Family::Meta)?, db_key, record);
        self.state.leases.insert_mut(lease.id, Arc::new(lease));
        Ok(())
    }

    fn lease_grant(&mut self, id: LeaseId, ttl: i64) -> Result<Result<Applied, KvError>, Fatal> {
        if id == 0 {
            return Ok(Err(KvError::LeaseNotFound));
        }
        if ttl > MAX_LEASE_TTL_SECONDS {
            return Ok(Err(KvError::LeaseTtlTooLarge));
        }
        if self.state.leases.get(&id).is_some() {
            return Ok(Err(KvError::LeaseExists));
        }
        let keys = RedBlackTreeSetSync::new_sync();
        self.write_lease(Lease { id, granted_ttl: ttl.max(1), checkpointed_ttl: 0, keys })?;
        Ok(self.done())
    }

    fn lease_revoke(&mut self, id: LeaseId) -> Result<Result<Applied, KvError>, Fatal> {
        let Some(lease) = self.state.leases.get(&id).cloned() else { return Ok(Err(KvError::LeaseNotFound)) };
        let keys: Vec<Bytes> = lease.keys.iter().cloned().collect();
        let changes = txn::delete_keys(&mut self.state, &keys);
        self.record(changes)?;
        self.state.leases.remove_mut(&id);
        self.batch.delete_cf(self.state.disk.family(Family::Meta)?, record::lease_key(id));
        Ok(self.done())
    }

    fn lease_checkpoint(&mut self, remaining: &[(LeaseId, i64)]) -> Result<Result<Applied, KvError>, Fatal> {
        for (id, seconds) in remaining {
            if let Some(lease) = self.state.leases.get(id).cloned() {
                let checkpointed_ttl = (*seconds).clamp(0, lease.granted_ttl);
                self.write_lease(Lease { checkpointed_ttl, ..Lease::clone(&lease) })?;
            }
        }
        Ok(self.done())
    }

    /// Whether settings are what they must be.
    fn holds(&self, guards: &[(Bytes, Option<Bytes>)]) -> bool {
        guards.iter().all(|(name, value)| self.state.settings.get(name) == value.as_ref())
    }

    fn settings(&mut self, change: &SettingsChange) -> Result<Result<Applied, KvError>, Fatal> {
        if !self.holds(&change.guards) {
            return Ok(Err(KvError::SettingsConflict));
        }
        let fits = |(name, value): &(Bytes, Option<Bytes>)| {
            name.len() <= MAX_KEY_BYTES && value.as_ref().is_none_or(|value| value.len() <= MAX_VALUE_BYTES)
        };
        if !change.writes.iter().all(fits) {
            return Ok(Err(KvError::TooLarge));
        }
        for (name, value) in &change.writes {
            let meta = self.state.disk.family(Family::Meta)?;
            let db_key = record::setting_key(name);
            // Copied, so that neither keeps the buffer of a whole request alive.
            match value {
                Some(value) => {
                    let (name, value) = record::join(name, value);
                    self.batch.put_cf(meta, &db_key, record::encode_setting(&db_key, &value));
                    self.state.settings.insert_mut(name, value);
                }
                None => {
                    self.batch.delete_cf(meta, &db_key);
                    self.state.settings.remove_mut(name);
                }
            }
        }
        Ok(self.done())
    }

    fn compact(&mut self, revision: Revision) -> Result<Applied, KvError> {
        if revision > self.state.revision {
            return Err(KvError::FutureRevision);
        }
        if revision <= self.state.compact_revision {
            return Err(KvError::Compacted(self.state.compact_revision));
        }
        self.state.compact_revision = revision;
        self.compact = true;
        self.done()
    }
}

/// Adds one change to the chain hash.
pub(crate) fn hash_change(hash: &mut Sha256, key: &[u8], new: Option<&KeyValue>) {
    hash.update((key.len() as u64).to_le_bytes());
    hash.update(key);
    match new {
        None => hash.update([0]),
        Some(kv) => {
            hash.update([1]);
            hash.update(kv.create_revision.to_le_bytes());
            hash.update(kv.version.to_le_bytes());
            hash.update(kv.lease.to_le_bytes());
            hash.update((kv.value.len() as u64).to_le_bytes());
            hash.update(&kv.value);
        }
    }
}
