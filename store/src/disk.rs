//! One RocksDB and what is read from it: the state at start, history at past revisions, and events.
//!
//! Families: `data` (user key, revision) -> version; `revs` revision -> changed keys and chain hash; `meta`.
//! Invariant: what history readers need at or above `floor` is in every snapshot taken after they checked
//! the floor, because the floor rises before anything below it is deleted.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::task::Waker;

use parking_lot::Mutex;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, DBRawIterator, FlushOptions,
    Options as DbOptions, ReadOptions, ReadTier, Snapshot, WriteBatch, WriteBufferManager, WriteOptions,
};

use crate::limits::{
    BLOCK_CACHE_BYTES, INLINE_LEVEL_ZERO_FILES, INLINE_WRITE_BUFFER_BYTES, LEVEL_ZERO_FILES, MAX_OPEN_FILES,
    WATCH_CATCH_UP_BYTES, WATCH_CATCH_UP_REVISIONS, WRITE_BUFFER_BYTES,
};
use crate::record::{self, RevisionRecord, StateRecord, Version};
use crate::view::Collector;
use crate::{Event, EventKind, Fatal, KeyRange, KeyValue, KvError, RangeRequest, RangeResponse, Revision};

/// The first revision at which something changed.
const FIRST_CHANGE: Revision = 2;

/// The column families.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Family {
    Data,
    Revs,
    Meta,
}

impl Family {
    const ALL: [Self; 3] = [Self::Data, Self::Revs, Self::Meta];

    fn name(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Revs => "revs",
            Self::Meta => "meta",
        }
    }
}

/// Removes the directory when it is dropped, if it was superseded.
struct Dir {
    path: PathBuf,
    superseded: AtomicBool,
}

impl Drop for Dir {
    fn drop(&mut self) {
        if self.superseded.load(Ordering::Acquire)
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a superseded state directory");
        }
    }
}

/// An open database. Fields drop in order: first the database closes, then its directory may go.
pub(crate) struct Disk {
    db: DB,
    dir: Dir,
    wal: bool,
    /// Nothing runs beside the caller.
    inline: bool,
    /// Nothing below this revision may be read any more.
    floor: AtomicI64,
    /// The first damage found; nothing is applied to this database any more.
    failure: OnceLock<Fatal>,
    /// Who waits for damage, or for another database in this one's place.
    waiting: Mutex<Vec<Waker>>,
}

impl From<rocksdb::Error> for Fatal {
    fn from(error: rocksdb::Error) -> Self {
        match error.kind() {
            rocksdb::ErrorKind::Corruption => Self::Corrupt(error.to_string()),
            _ => Self::Io(error.to_string()),
        }
    }
}

fn family_options(cache: &Cache) -> DbOptions {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_block_size(16 * 1024);
    table.set_bloom_filter(10.0, false);
    table.set_format_version(5);
    let mut options = DbOptions::default();
    options.set_block_based_table_factory(&table);
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    options.set_max_write_buffer_number(2);
    // History is seldom read: fewer and larger compactions cost less than the files that a read finds beside each other.
    options.set_level_zero_file_num_compaction_trigger(LEVEL_ZERO_FILES);
    options.set_compression_type(DBCompressionType::Lz4);
    options
}

fn database_options(cache: &Cache) -> DbOptions {
    let mut options = DbOptions::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_atomic_flush(true);
    options.set_max_open_files(MAX_OPEN_FILES);
    options.set_max_background_jobs(2);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1024 * 1024);
    options.set_paranoid_checks(true);
    options.set_write_buffer_manager(&WriteBufferManager::new_write_buffer_manager_with_cache(
        BLOCK_CACHE_BYTES,
        false,
        cache.clone(),
    ));
    options
}

/// Checks that all tables of the catalogue are on disk in their length. RocksDB itself looks at a few of them as it opens, and
/// asks for the others when somebody reads them.
fn tables_are_there(db: &DB, path: &Path) -> Result<(), Fatal> {
    let lacks = |file: &rocksdb::LiveFile| {
        let found = std::fs::metadata(path.join(file.name.trim_start_matches('/')));
        found.map_or(true, |found| found.len() != file.size as u64)
    };
    let Some(lacking) = db.live_files()?.into_iter().find(lacks) else { return Ok(()) };
    // What was merged meanwhile is in the catalogue no more.
    if db.live_files()?.iter().any(|file| file.name == lacking.name && lacks(file)) {
        let why = format!("the table {} of {} is not there, or not whole", lacking.name, path.display());
        return Err(Fatal::Corrupt(why));
    }
    Ok(())
}

impl Disk {
    pub fn open(path: &Path, how: &crate::Options) -> Result<Self, Fatal> {
        std::fs::create_dir_all(path)
            .map_err(|error| Fatal::Io(format!("cannot create {}: {error}", path.display())))?;
        let cache = Cache::new_lru_cache(BLOCK_CACHE_BYTES);
        let mut options = family_options(&cache);
        if how.inline {
            options.set_disable_auto_compactions(true);
            options.set_write_buffer_size(INLINE_WRITE_BUFFER_BYTES);
        }
        let families = Family::ALL.map(|family| ColumnFamilyDescriptor::new(family.name(), options.clone()));
        let mut database = database_options(&cache);
        if how.inline {
            // Sixteen threads for each opening cost more than they save where all files are small and in memory.
            database.set_max_file_opening_threads(1);
        }
        let db = DB::open_cf_descriptors(&database, path, families)?;
        tables_are_there(&db, path)?;
        let dir = Dir { path: path.to_path_buf(), superseded: AtomicBool::new(false) };
        Ok(Self {
            db,
            dir,
            wal: how.wal,
            inline: how.inline,
            floor: AtomicI64::new(0),
            failure: OnceLock::new(),
            waiting: Mutex::default(),
        })
    }

    /// Opens a database that nobody writes to.
    fn open_to_read(path: &Path) -> Result<DB, Fatal> {
        let cache = Cache::new_lru_cache(BLOCK_CACHE_BYTES);
        let options = family_options(&cache);
        let families = Family::ALL.map(|family| ColumnFamilyDescriptor::new(family.name(), options.clone()));
        let mut database = DbOptions::default();
        database.set_max_open_files(MAX_OPEN_FILES);
        // It is read once: not worth the sixteen threads that open tables otherwise.
        database.set_max_file_opening_threads(1);
        let db = DB::open_cf_descriptors_read_only(&database, path, families, false)?;
        tables_are_there(&db, path)?;
        Ok(db)
    }

    fn family_of<'a>(db: &'a DB, family: Family, path: &Path) -> Result<&'a ColumnFamily, Fatal> {
        let missing = || Fatal::Corrupt(format!("{} has no family {}", path.display(), family.name()));
        db.cf_handle(family.name()).ok_or_else(missing)
    }

    /// The state record of a database that nobody writes to.
    pub fn read_state_in(path: &Path) -> Result<Option<StateRecord>, Fatal> {
        let db = Self::open_to_read(path)?;
        let record = db.get_pinned_cf(Self::family_of(&db, Family::Meta, path)?, record::STATE_KEY)?;
        record.map(|record| record::decode_state(&record)).transpose()
    }

    /// Reads all of a database that nobody writes to, from its files: what an open one has in memory may be whole while
    /// what is on the disk is not.
    pub fn verify(path: &Path) -> Result<(), Fatal> {
        let db = Self::open_to_read(path)?;
        for family in Family::ALL {
            let mut options = ReadOptions::default();
            options.set_verify_checksums(true);
            options.fill_cache(false);
            let mut cursor = db.raw_iterator_cf_opt(Self::family_of(&db, family, path)?, options);
            cursor.seek_to_first();
            while cursor.valid() {
                cursor.next();
            }
            cursor.status()?;
        }
        Ok(())
    }

    /// Lets the directory be removed once nobody reads it any more.
    pub fn supersede(&self) {
        self.dir.superseded.store(true, Ordering::Release);
        self.wake();
    }

    fn wake(&self) {
        let waiting = std::mem::take(&mut *self.waiting.lock());
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Wakes once when this database fails or is superseded.
    pub fn wait(&self, waker: &Waker) {
        let mut waiting = self.waiting.lock();
        if !waiting.iter().any(|known| known.will_wake(waker)) {
            waiting.push(waker.clone());
        }
    }

    pub fn failure(&self) -> Option<Fatal> {
        self.failure.get().cloned()
    }

    pub fn fail(&self, fatal: &Fatal) {
        if self.failure.set(fatal.clone()).is_ok() {
            tracing::error!(%fatal, path = %self.dir.path.display(), "the store is damaged");
            self.wake();
        }
    }

    /// Remembers damage and turns it into what the reader is told.
    fn damaged(&self, fatal: Fatal) -> KvError {
        self.fail(&fatal);
        fatal.into()
    }

    pub fn floor(&self) -> Revision {
        self.floor.load(Ordering::SeqCst)
    }

    pub fn raise_floor(&self, revision: Revision) {
        self.floor.fetch_max(revision, Ordering::SeqCst);
    }

    pub fn family(&self, family: Family) -> Result<&ColumnFamily, Fatal> {
        self.db
            .cf_handle(family.name())
            .ok_or_else(|| Fatal::Corrupt(format!("column family {} is missing", family.name())))
    }

    /// Writes a batch. With the log it is durable when this returns (if `sync`), without it after a flush.
    pub fn write(&self, batch: WriteBatch, sync: bool) -> Result<(), Fatal> {
        let mut options = WriteOptions::default();
        if self.wal {
            options.set_sync(sync);
        } else {
            options.disable_wal(true);
        }
        Ok(self.db.write_opt(batch, &options)?)
    }

    pub fn flush(&self) -> Result<(), Fatal> {
        let mut options = FlushOptions::default();
        options.set_wait(true);
        let mut families = Vec::new();
        for family in Family::ALL {
            families.push(self.family(family)?);
        }
        self.db.flush_cfs_opt(&families, &options)?;
        if self.inline {
            families.into_iter().try_for_each(|family| self.merge_tables(family))?;
        }
        Ok(())
    }

    /// Merges a family's tables when there are many, in place of the thread that does it otherwise.
    fn merge_tables(&self, family: &ColumnFamily) -> Result<(), Fatal> {
        let tables = self.db.property_value_cf(family, rocksdb::properties::num_files_at_level(0))?;
        let tables = tables.and_then(|tables| tables.parse::<u64>().ok());
        if tables.is_some_and(|tables| tables >= INLINE_LEVEL_ZERO_FILES) {
            self.db.compact_range_cf(family, None::<&[u8]>, None::<&[u8]>);
        }
        Ok(())
    }

    pub fn checkpoint(&self, to: &Path) -> Result<(), Fatal> {
        if self.inline {
            // A checkpoint writes a table of its own each time, which nobody would merge.
            self.flush()?;
        }
        let checkpoint = rocksdb::checkpoint::Checkpoint::new(&self.db)?;
        Ok(checkpoint.create_checkpoint(to)?)
    }

    /// The state record that would be found after a crash now.
    pub fn persisted_state(&self) -> Result<Option<StateRecord>, Fatal> {
        let mut options = ReadOptions::default();
        if !self.wal {
            options.set_read_tier(ReadTier::Persisted);
        }
        let record = self.db.get_pinned_cf_opt(self.family(Family::Meta)?, record::STATE_KEY, &options)?;
        record.map(|record| record::decode_state(&record)).transpose()
    }

    /// The state record as it is now.
    pub fn state(&self) -> Result<Option<StateRecord>, Fatal> {
        let record = self.db.get_pinned_cf(self.family(Family::Meta)?, record::STATE_KEY)?;
        record.map(|record| record::decode_state(&record)).transpose()
    }

    /// A pair of numbers from the meta family.
    pub fn pair(&self, db_key: &[u8]) -> Result<Option<(i64, i64)>, Fatal> {
        let record = self.db.get_pinned_cf(self.family(Family::Meta)?, db_key)?;
        record.map(|record| record::decode_pair(db_key, &record)).transpose()
    }

    /// Bytes of the live table files and write buffers.
    pub fn size_bytes(&self) -> u64 {
        let mut sum = 0;
        for family in Family::ALL {
            let Ok(handle) = self.family(family) else { continue };
            for property in ["rocksdb.live-sst-files-size", "rocksdb.cur-size-all-mem-tables"] {
                sum += self.db.property_int_value_cf(handle, property).ok().flatten().unwrap_or(0);
            }
        }
        sum
    }

    /// The newest version of every living key, in key order.
    pub fn load_keys(&self, mut each: impl FnMut(KeyValue)) -> Result<(), Fatal> {
        let snapshot = self.db.snapshot();
        self.scan(&snapshot, &KeyRange::From(Default::default()), Revision::MAX, |kv| {
            each(kv);
            Ok(())
        })
    }

    /// Every lease's id, granted and checkpointed TTL.
    pub fn load_leases(&self) -> Result<Vec<(i64, i64, i64)>, Fatal> {
        let mut found = Vec::new();
        let mut cursor = self.db.raw_iterator_cf(self.family(Family::Meta)?);
        cursor.seek(record::LEASE_PREFIX);
        while let Some((db_key, value)) = cursor.item() {
            if !db_key.starts_with(record::LEASE_PREFIX) {
                break;
            }
            let (granted, checkpointed) = record::decode_pair(db_key, value)?;
            found.push((record::split_lease_key(db_key)?, granted, checkpointed));
            cursor.next();
        }
        cursor.status()?;
        Ok(found)
    }

    /// Every setting.
    pub fn load_settings(&self) -> Result<Vec<(bytes::Bytes, bytes::Bytes)>, Fatal> {
        let mut found = Vec::new();
        let mut cursor = self.db.raw_iterator_cf(self.family(Family::Meta)?);
        cursor.seek(record::SETTING_PREFIX);
        while let Some((db_key, value)) = cursor.item() {
            if !db_key.starts_with(record::SETTING_PREFIX) {
                break;
            }
            found.push(record::decode_setting(db_key, value)?);
            cursor.next();
        }
        cursor.status()?;
        Ok(found)
    }

    /// A snapshot in which everything at or above `revision` can be read.
    fn snapshot_at(&self, revision: Revision) -> Result<Snapshot<'_>, KvError> {
        let snapshot = self.db.snapshot();
        let floor = self.floor();
        if revision < floor { Err(KvError::Compacted(floor)) } else { Ok(snapshot) }
    }

    /// Answers a range request at a past revision.
    pub fn query_past(&self, request: &RangeRequest) -> Result<RangeResponse, KvError> {
        let snapshot = self.snapshot_at(request.revision)?;
        let mut collector = Collector::new(request);
        self.scan(&snapshot, &request.range, request.revision, |kv| {
            collector.push(&Arc::new(kv));
            Ok(())
        })
        .map_err(|fatal| self.damaged(fatal))?;
        Ok(collector.finish())
    }

    /// Visits every living key as it was at `revision`, in key order.
    pub fn scan_at(&self, revision: Revision, each: impl FnMut(KeyValue) -> Result<(), Fatal>) -> Result<(), KvError> {
        let snapshot = self.snapshot_at(revision)?;
        let all = KeyRange::From(Default::default());
        self.scan(&snapshot, &all, revision, each).map_err(|fatal| self.damaged(fatal))
    }

    /// Visits the living keys of an interval as they were at `revision`, in key order.
    fn scan(
        &self,
        snapshot: &Snapshot<'_>,
        range: &KeyRange,
        revision: Revision,
        mut each: impl FnMut(KeyValue) -> Result<(), Fatal>,
    ) -> Result<(), Fatal> {
        let mut options = ReadOptions::default();
        // Loading everything must not leave the cache full of what is in memory now.
        options.fill_cache(revision != Revision::MAX);
        match range {
            KeyRange::Key(key) => {
                let mut past = record::data_key(key, 0);
                past.push(0);
                options.set_iterate_upper_bound(past);
            }
            KeyRange::Range(_, end) => options.set_iterate_upper_bound(record::key_prefix(end)),
            KeyRange::From(_) => {}
        }
        let mut cursor = snapshot.raw_iterator_cf_opt(self.family(Family::Data)?, options);
        cursor.seek(record::key_prefix(range.start()));
        let mut done: Vec<u8> = Vec::new();
        while let Some((db_key, value)) = cursor.item() {
            let (escaped, found) = record::split_data_key(db_key)?;
            if escaped == done {
                skip_key(&mut cursor, &done)?;
                continue;
            }
            if found > revision {
                let mut at = escaped.to_vec();
                at.extend_from_slice(&(!(revision as u64)).to_be_bytes());
                cursor.seek(at);
                continue;
            }
            if let Version::Put(kv) = record::decode_version(db_key, value)? {
                each(kv)?;
            }
            done.clear();
            done.extend_from_slice(escaped);
            cursor.next();
        }
        Ok(cursor.status()?)
    }

    /// Events of `range` in whole revisions from `from` to at most `to`, until enough was read for one step; and the
    /// revision to go on from.
    pub fn events(
        &self,
        range: &KeyRange,
        from: Revision,
        to: Revision,
    ) -> Result<(Vec<Arc<Event>>, Revision), KvError> {
        // The empty store's own revision changed nothing, so it has no record.
        let from = from.max(FIRST_CHANGE);
        let snapshot = self.snapshot_at(from)?;
        self.read_events(&snapshot, range, from, to).map_err(|fatal| self.damaged(fatal))
    }

    fn read_events(
        &self,
        snapshot: &Snapshot<'_>,
        range: &KeyRange,
        from: Revision,
        to: Revision,
    ) -> Result<(Vec<Arc<Event>>, Revision), Fatal> {
        let mut revisions = snapshot.raw_iterator_cf_opt(self.family(Family::Revs)?, ReadOptions::default());
        revisions.seek(record::revision_key(from));
        let (mut events, mut bytes) = (Vec::new(), 0);
        let mut next = from;
        while let Some((db_key, value)) = revisions.item() {
            let revision = record::split_revision_key(db_key)?;
            if revision > to || (next - from) as usize >= WATCH_CATCH_UP_REVISIONS || bytes >= WATCH_CATCH_UP_BYTES {
                break;
            }
            if revision != next {
                return Err(Fatal::Corrupt(format!("revision {next} is missing from history")));
            }
            let RevisionRecord { changes, .. } = record::decode_revision(db_key, value)?;
            for (kind, key) in changes.into_iter().filter(|(_, key)| range.contains(key)) {
                let event = self.event(snapshot, kind, &key, revision)?;
                bytes += event.size_bytes();
                events.push(Arc::new(event));
            }
            next = revision + 1;
            revisions.next();
        }
        revisions.status()?;
        if next == from && from <= to {
            return Err(Fatal::Corrupt(format!("revision {from} is missing from history")));
        }
        Ok((events, next))
    }

    fn event(&self, snapshot: &Snapshot<'_>, kind: EventKind, key: &[u8], revision: Revision) -> Result<Event, Fatal> {
        let mut options = ReadOptions::default();
        let mut past = record::data_key(key, 0);
        past.push(0);
        options.set_iterate_upper_bound(past);
        let mut cursor = snapshot.raw_iterator_cf_opt(self.family(Family::Data)?, options);
        let db_key = record::data_key(key, revision);
        cursor.seek(&db_key);
        let now = match cursor.item() {
            Some((found, value)) if found == db_key => record::decode_version(found, value)?,
            _ => {
                return Err(Fatal::Corrupt(format!("{} has no version {revision}", key.escape_ascii())));
            }
        };
        cursor.next();
        let prev = match cursor.item() {
            Some((found, value)) => record::decode_version(found, value)?,
            None => Version::Tombstone,
        };
        cursor.status()?;
        let kv = match (kind, now) {
            (EventKind::Put, Version::Put(kv)) => kv,
            (EventKind::Delete, Version::Tombstone) => deleted(key, revision),
            _ => return Err(Fatal::Corrupt(format!("{} has another kind of version {revision}", key.escape_ascii()))),
        };
        let prev = match prev {
            Version::Put(kv) => Some(Arc::new(kv)),
            Version::Tombstone => None,
        };
        Ok(Event { kind, kv: Arc::new(kv), prev, memo: OnceLock::new() })
    }

    /// The chain hash of a revision whose record is still there.
    pub fn hash_at(&self, revision: Revision) -> Result<record::ChainHash, KvError> {
        let db_key = record::revision_key(revision);
        let read = || {
            let found = self.db.get_pinned_cf(self.family(Family::Revs)?, db_key)?;
            found.map(|value| record::decode_revision(&db_key, &value)).transpose()
        };
        match read().map_err(|fatal| self.damaged(fatal))? {
            Some(record) => Ok(record.hash),
            None => Err(KvError::Compacted(self.floor())),
        }
    }

    /// One step of forgetting history below `to`: handles revisions from `from` on and returns where to go on.
    pub fn compact_step(&self, from: Revision, to: Revision, limit: usize) -> Result<Revision, Fatal> {
        let mut batch = WriteBatch::default();
        let (data, revs) = (self.family(Family::Data)?, self.family(Family::Revs)?);
        // Opening one looks into every table: one serves all changes.
        let mut versions = self.db.raw_iterator_cf(data);
        let mut cursor = self.db.raw_iterator_cf(revs);
        cursor.seek(record::revision_key(from));
        let mut next = to;
        let mut handled = 0;
        while let Some((db_key, value)) = cursor.item() {
            let revision = record::split_revision_key(db_key)?;
            if revision > to || handled >= limit {
                next = revision.min(to);
                break;
            }
            for (_, key) in record::decode_revision(db_key, value)?.changes {
                drop_superseded(&mut batch, (data, &mut versions), (&key, revision), to)?;
            }
            if revision < to {
                batch.delete_cf(revs, db_key);
            }
            handled += 1;
            cursor.next();
        }
        cursor.status()?;
        let progress = record::encode_pair(record::COMPACTED_KEY, (next, 0));
        batch.put_cf(self.family(Family::Meta)?, record::COMPACTED_KEY, progress);
        self.write(batch, false)?;
        Ok(next)
    }
}

/// Deletes what a change superseded: the version before it, and the change itself if it is a tombstone that no watcher
/// from `to` on can ask for. As every change up to `to` comes by here once, a key that changed often costs no more than
/// many keys, and deletions of earlier steps are never walked over.
fn drop_superseded(
    batch: &mut WriteBatch,
    (data, cursor): (&ColumnFamily, &mut DBRawIterator<'_>),
    (key, revision): (&[u8], Revision),
    to: Revision,
) -> Result<(), Fatal> {
    let change = record::data_key(key, revision);
    cursor.seek(&change);
    let Some((db_key, value)) = cursor.item().filter(|(db_key, _)| *db_key == change) else {
        return Ok(cursor.status()?);
    };
    let last = if crate::bugs::is_on("lost-tombstone") { to + 1 } else { to };
    match record::decode_version(db_key, value)? {
        Version::Tombstone if revision < last => batch.delete_cf(data, db_key),
        // Nothing came before it: a deletion had its own turn.
        Version::Put(pair) if pair.version == 1 => return Ok(()),
        _ => {}
    }
    let (escaped, _) = record::split_data_key(&change)?;
    cursor.next();
    if let Some(db_key) = cursor.key()
        && record::split_data_key(db_key)?.0 == escaped
    {
        batch.delete_cf(data, db_key);
    }
    Ok(cursor.status()?)
}

#[cfg(test)]
impl Disk {
    pub fn raw_iterator(&self, family: Family) -> Result<DBRawIterator<'_>, Fatal> {
        Ok(self.db.raw_iterator_cf(self.family(family)?))
    }

    pub fn raw_get(&self, family: Family, db_key: &[u8]) -> Option<Vec<u8>> {
        self.db.get_cf(self.family(family).ok()?, db_key).ok()?
    }

    pub fn raw_put(&self, family: Family, db_key: &[u8], record: &[u8]) {
        let family = self.family(family).expect("the family is there");
        let mut batch = WriteBatch::default();
        batch.put_cf(family, db_key, record);
        self.write(batch, false).expect("written");
    }
}

/// The `kv` of a deletion's event.
pub(crate) fn deleted(key: &[u8], revision: Revision) -> KeyValue {
    KeyValue {
        key: bytes::Bytes::copy_from_slice(key),
        value: Default::default(),
        create_revision: 0,
        mod_revision: revision,
        version: 0,
        lease: 0,
    }
}

/// Moves past the remaining versions of a key: a few steps, as most keys have few versions, then a seek.
fn skip_key(cursor: &mut DBRawIterator<'_>, escaped: &[u8]) -> Result<(), Fatal> {
    const STEPS: usize = 4;
    for _ in 0..STEPS {
        cursor.next();
        match cursor.key() {
            Some(db_key) if record::split_data_key(db_key)?.0 == escaped => {}
            _ => return Ok(()),
        }
    }
    let mut past = escaped.to_vec();
    past.extend_from_slice(&[0xff; 9]);
    cursor.seek(past);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// More tables than RocksDB looks at as it opens.
    const TABLES: u64 = 40;

    #[test]
    fn a_table_that_is_gone_or_cut_is_noticed_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let options = crate::Options { inline: true, ..Default::default() };
        let disk = Disk::open(&path, &options).unwrap();
        for number in 0..TABLES {
            let mut batch = WriteBatch::default();
            batch.put_cf(disk.family(Family::Meta).unwrap(), number.to_be_bytes(), b"x");
            disk.write(batch, true).unwrap();
            disk.flush().unwrap();
        }
        drop(disk);
        drop(Disk::open(&path, &options).unwrap());
        let tables = || std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path());
        let tables: Vec<_> = tables().filter(|file| file.extension().is_some_and(|e| e == "sst")).collect();
        assert!(tables.len() as u64 >= TABLES);
        for table in tables {
            let whole = std::fs::read(&table).unwrap();
            std::fs::remove_file(&table).unwrap();
            assert!(matches!(Disk::open(&path, &options), Err(Fatal::Corrupt(_))), "{table:?} is gone");
            std::fs::write(&table, &whole[1..]).unwrap();
            assert!(matches!(Disk::open(&path, &options), Err(Fatal::Corrupt(_))), "{table:?} is cut");
            std::fs::write(&table, whole).unwrap();
        }
        drop(Disk::open(&path, &options).unwrap());
    }
}
