//! Raft's log: recent entries in memory, all of them in the write-ahead log, one thread that writes groups.
//!
//! Invariant: entries without gaps; an entry leaves memory only after it is on disk; completions are told in the
//! order of the appends, after the sync.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use futures::Stream;
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{EntryPayload, OptionalSend};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::codec;
use crate::limits::{ALONE_LOG_CACHE_BYTES, APPEND_BYTES, APPLY_BYTES, FRAME_BYTES, LOG_CACHE_BYTES, LOG_QUEUE_WRITES};
use crate::sync_times::SyncTimes;
use crate::task;
use crate::types::{Entry, LogId, TypeConfig, Vote};
use crate::wal::files::{Directory, Files, LogFile};
use crate::wal::{self, Place, Records, State, Wal};

/// An entry of the log.
struct Slot {
    log_id: LogId,
    size_bytes: usize,
    entry: Option<Entry>,
    place: Option<Place>,
}

#[derive(Default)]
struct Memory {
    state: State,
    /// Whether the committed id is not yet among what was handed to the writer.
    committed_is_new: bool,
    slots: VecDeque<Slot>,
    /// Slots before this one have left memory.
    evicted: usize,
    cached_bytes: usize,
    /// Whether there are other members, whom entries are sent to.
    others: bool,
    files: BTreeMap<u64, Arc<dyn LogFile>>,
}

impl Memory {
    fn last(&self) -> Option<LogId> {
        self.slots.back().map(|slot| slot.log_id).or(self.state.purged)
    }

    fn position(&self, index: u64) -> Option<usize> {
        let first = self.slots.front()?.log_id.index;
        index.checked_sub(first).map(|at| at as usize).filter(|at| *at < self.slots.len())
    }

    fn push(&mut self, entry: Entry) {
        let size_bytes = codec::entry_size_bytes(&entry);
        if let EntryPayload::Membership(membership) = &entry.payload {
            self.others = membership.nodes().count() > 1;
        }
        self.cached_bytes += size_bytes;
        self.slots.push_back(Slot { log_id: entry.log_id(), size_bytes, entry: Some(entry), place: None });
    }

    /// Notes where entries are on disk, and lets old ones leave memory.
    fn placed(&mut self, places: &[(u64, Place)]) {
        for (index, place) in places {
            if let Some(at) = self.position(*index) {
                self.slots[at].place = Some(*place);
            }
        }
        let limit_bytes = if self.others { LOG_CACHE_BYTES } else { ALONE_LOG_CACHE_BYTES };
        while self.cached_bytes > limit_bytes
            && let Some(slot) = self.slots.get_mut(self.evicted)
            && slot.place.is_some()
        {
            slot.entry = None;
            self.cached_bytes -= slot.size_bytes;
            self.evicted += 1;
        }
    }

    fn truncate(&mut self, first: u64) {
        let keep = self.slots.partition_point(|slot| slot.log_id.index < first);
        for slot in self.slots.drain(keep..) {
            if slot.entry.is_some() {
                self.cached_bytes -= slot.size_bytes;
            }
        }
        self.evicted = self.evicted.min(keep);
    }

    fn purge(&mut self, log_id: LogId) {
        let gone = self.slots.partition_point(|slot| slot.log_id.index <= log_id.index);
        for slot in self.slots.drain(..gone) {
            if slot.entry.is_some() {
                self.cached_bytes -= slot.size_bytes;
            }
        }
        self.evicted = self.evicted.saturating_sub(gone);
        self.state.purged = self.state.purged.max(Some(log_id));
    }
}

/// Who waits for a write.
enum Done {
    Append(IOFlushed<TypeConfig>),
    Other(oneshot::Sender<io::Result<()>>),
}

struct Write {
    records: Records,
    done: Done,
}

/// The log as openraft sees it.
pub struct Log {
    memory: Arc<Mutex<Memory>>,
    writes: mpsc::Sender<Write>,
    sync_times: Arc<SyncTimes>,
}

/// Reads the log.
#[derive(Clone)]
pub struct Reader(Arc<Mutex<Memory>>);

impl Log {
    /// Opens or creates the log in `dir`.
    pub fn open(dir: &Path) -> io::Result<Self> {
        Self::open_in(Arc::new(Directory::open(dir)?))
    }

    /// Opens or creates the log in these files.
    pub fn open_in(files: Arc<dyn Files>) -> io::Result<Self> {
        let (wal, recovered) = Wal::open(files.clone())?;
        let slots = recovered.entries.into_iter().map(|(log_id, place)| Slot {
            log_id,
            size_bytes: place.length as usize,
            entry: None,
            place: Some(place),
        });
        let mut memory = Memory { state: recovered.state, slots: slots.collect(), ..Memory::default() };
        memory.evicted = memory.slots.len();
        memory.files = recovered.files.into_iter().collect();
        let memory = Arc::new(Mutex::new(memory));
        let (writes, queue) = mpsc::channel(LOG_QUEUE_WRITES);
        let shared = memory.clone();
        let sync_times = Arc::new(SyncTimes::default());
        if files.settle().is_some() {
            drop(task::spawn(write_settled(wal, queue, shared, files)));
        } else {
            let times = sync_times.clone();
            std::thread::Builder::new().name("log-write".into()).spawn(move || write(wal, queue, &shared, &times))?;
        }
        Ok(Self { memory, writes, sync_times })
    }

    /// Says whether the member that opened it has others beside it, until an entry says so.
    pub fn has_others(&self, others: bool) {
        self.memory.lock().others = others;
    }

    /// Reads it.
    pub fn reader(&self) -> Reader {
        Reader(self.memory.clone())
    }

    /// How long its latest writes took.
    pub fn sync_times(&self) -> Arc<SyncTimes> {
        self.sync_times.clone()
    }

    async fn submit(&self, records: Records, done: Done) -> io::Result<()> {
        let stopped = |_| io::Error::other("the log's writer has stopped");
        self.writes.send(Write { records, done }).await.map_err(stopped)
    }

    async fn write(&self, records: Records) -> io::Result<()> {
        let (done, written) = oneshot::channel();
        self.submit(records, Done::Other(done)).await?;
        written.await.map_err(|_| io::Error::other("the log's writer has stopped"))?
    }
}

/// What is written as one frame, and who waits for it.
fn gather(Write { mut records, done }: Write, queue: &mut mpsc::Receiver<Write>) -> (Records, Vec<Done>) {
    let mut waiting = vec![done];
    while records.size_bytes() < FRAME_BYTES {
        let Ok(next) = queue.try_recv() else { break };
        records.append(next.records);
        waiting.push(next.done);
    }
    (records, waiting)
}

type Failed = Option<(io::ErrorKind, String)>;

/// A write that is on disk, and the segments that were given back after it.
type Settled = (wal::Written, Vec<u64>);

/// Notes what was written and tells those who wait.
fn tell(written: io::Result<Settled>, waiting: Vec<Done>, failed: &mut Failed, memory: &Mutex<Memory>) {
    match written {
        _ if failed.is_some() => {}
        Ok((written, closed)) => {
            let mut memory = memory.lock();
            memory.files.extend(written.opened);
            memory.placed(&written.places);
            for number in closed {
                memory.files.remove(&number);
            }
        }
        // Never tried again: what reached the disk is unknown from here on.
        Err(error) => {
            tracing::error!(%error, "the Raft log cannot be written");
            *failed = Some((error.kind(), format!("the Raft log cannot be written: {error}")));
        }
    }
    for done in waiting {
        let result = failed.as_ref().map_or(Ok(()), |(kind, why)| Err(io::Error::new(*kind, why.clone())));
        match done {
            Done::Append(callback) => callback.io_completed(result),
            // Whoever asked may have gone.
            Done::Other(sender) => drop(sender.send(result)),
        }
    }
}

/// Gives back segments after a write that is on disk. After one that failed it is unknown what is.
fn settled(wal: &mut Wal, written: io::Result<wal::Written>, failed: &Failed) -> io::Result<Settled> {
    let written = written?;
    let closed = if failed.is_none() { wal.release()? } else { Vec::new() };
    Ok((written, closed))
}

/// A bug: whoever waits is told before anything is written.
fn early() -> bool {
    keelson_store::bugs::is_on("early-ack")
}

/// The writer: takes what has queued up, writes and syncs it as one frame, tells those who wait.
fn write(mut wal: Wal, mut queue: mpsc::Receiver<Write>, memory: &Mutex<Memory>, times: &SyncTimes) {
    let mut failed = None;
    while let Some(first) = queue.blocking_recv() {
        let (records, mut waiting) = gather(first, &mut queue);
        if early() {
            tell(Ok(Settled::default()), std::mem::take(&mut waiting), &mut failed, memory);
        }
        let began = Instant::now();
        let written = if failed.is_none() { wal.write(records) } else { Ok(wal::Written::default()) };
        times.add(began.elapsed());
        let written = settled(&mut wal, written, &failed);
        tell(written, waiting, &mut failed, memory);
    }
}

/// The writer of a simulation, whose disk takes time of the simulated clock.
async fn write_settled(
    mut wal: Wal,
    mut queue: mpsc::Receiver<Write>,
    memory: Arc<Mutex<Memory>>,
    files: Arc<dyn Files>,
) {
    let mut failed = None;
    while let Some(first) = queue.recv().await {
        let (records, mut waiting) = gather(first, &mut queue);
        if early() {
            tell(Ok(Settled::default()), std::mem::take(&mut waiting), &mut failed, &memory);
        }
        let mut written = if failed.is_none() { wal.write(records) } else { Ok(wal::Written::default()) };
        if let Some(settled) = files.settle()
            && let Err(error) = settled.await
        {
            written = written.and(Err(error));
        }
        let written = settled(&mut wal, written, &failed);
        tell(written, waiting, &mut failed, &memory);
    }
}

enum Found {
    Memory(Entry),
    Disk(Arc<dyn LogFile>, Place, LogId),
}

impl Reader {
    /// The last entry that has left the log for good.
    pub fn purged(&self) -> Option<LogId> {
        self.0.lock().state.purged
    }

    /// What this member has voted for. It is here before anybody is told.
    pub fn vote(&self) -> Option<Vote> {
        self.0.lock().state.vote
    }

    /// Entries of a range, at most `bytes` of them but at least one.
    pub fn entries(&self, range: impl RangeBounds<u64>, bytes: usize) -> io::Result<Vec<Entry>> {
        let found = self.find(range, bytes)?;
        let read = |found| match found {
            Found::Memory(entry) => Ok(entry),
            Found::Disk(file, place, expected) => {
                let entry = codec::entry(&wal::read(&*file, place)?)?;
                if entry.log_id() == expected {
                    return Ok(entry);
                }
                Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("entry {expected} of the log is not where it was"),
                ))
            }
        };
        found.into_iter().map(read).collect()
    }

    fn find(&self, range: impl RangeBounds<u64>, bytes: usize) -> io::Result<Vec<Found>> {
        let memory = self.0.lock();
        let (Some(first), Some(last)) = (memory.slots.front(), memory.slots.back()) else { return Ok(Vec::new()) };
        let (first, last) = (first.log_id.index, last.log_id.index);
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => before + 1,
            Bound::Unbounded => first,
        }
        .max(first);
        let end = match range.end_bound() {
            Bound::Included(end) => *end,
            Bound::Excluded(after) if *after == 0 => return Ok(Vec::new()),
            Bound::Excluded(after) => after - 1,
            Bound::Unbounded => last,
        }
        .min(last);
        let (mut found, mut sum) = (Vec::new(), 0);
        for index in start..=end {
            let slot = &memory.slots[(index - first) as usize];
            if !found.is_empty() && sum + slot.size_bytes > bytes {
                break;
            }
            sum += slot.size_bytes;
            found.push(match (&slot.entry, slot.place) {
                (Some(entry), _) => Found::Memory(entry.clone()),
                (None, Some(place)) => {
                    let file = memory.files.get(&place.segment).cloned();
                    Found::Disk(
                        file.ok_or_else(|| io::Error::other("a segment of the log is missing"))?,
                        place,
                        slot.log_id,
                    )
                }
                (None, None) => return Err(io::Error::other("an entry is neither in memory nor on disk")),
            });
        }
        Ok(found)
    }
}

impl RaftLogReader<TypeConfig> for Reader {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        self.entries(range, usize::MAX)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.entries(start..end, APPEND_BYTES)
    }

    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        // Read in steps: a member that starts may have far more to apply than fits into memory.
        let end = match range.end_bound() {
            Bound::Included(end) => end + 1,
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => before + 1,
            Bound::Unbounded => 0,
        };
        let steps = futures::stream::try_unfold((self.clone(), start), move |(reader, next)| async move {
            if next >= end {
                return Ok::<_, io::Error>(None);
            }
            let step = reader.entries(next..end, APPLY_BYTES)?;
            let Some(last) = step.last() else { return Ok(None) };
            let after = last.log_id().index + 1;
            Ok(Some((futures::stream::iter(step.into_iter().map(Ok)), (reader, after))))
        });
        Box::pin(futures::TryStreamExt::try_flatten(steps))
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.0.lock().state.vote)
    }
}

impl RaftLogStorage<TypeConfig> for Log {
    type LogReader = Reader;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let memory = self.memory.lock();
        Ok(LogState { last_purged_log_id: memory.state.purged, last_log_id: memory.last() })
    }

    async fn get_log_reader(&mut self) -> Reader {
        self.reader()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let mut records = Records::default();
        records.vote(*vote)?;
        if !keelson_store::bugs::is_on("forgotten-vote") {
            self.write(records).await?;
        }
        self.memory.lock().state.vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        let Some(committed) = committed else { return Ok(()) };
        // Written with the next entries: after a crash an older one only means that less is applied at once.
        let mut memory = self.memory.lock();
        memory.state.committed = Some(committed);
        memory.committed_is_new = true;
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.memory.lock().state.committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut records = Records::default();
        {
            let mut memory = self.memory.lock();
            for entry in entries {
                let index = entry.log_id().index;
                if memory.last().is_some_and(|last| last.index + 1 != index) {
                    return Err(io::Error::other(format!("entry {index} does not follow {:?}", memory.last())));
                }
                records.entry(index, &entry)?;
                memory.push(entry);
            }
            if std::mem::take(&mut memory.committed_is_new)
                && let Some(committed) = memory.state.committed
            {
                records.committed(committed)?;
            }
        }
        self.submit(records, Done::Append(callback)).await
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let first = last.map_or(0, |last| last.index + 1);
        let mut records = Records::default();
        records.truncate(first)?;
        self.memory.lock().truncate(first);
        self.write(records).await
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        let mut records = Records::default();
        records.purged(log_id)?;
        self.memory.lock().purge(log_id);
        self.write(records).await
    }
}

#[cfg(test)]
mod tests {
    use openraft::testing::log::{StoreBuilder, Suite};

    use super::*;
    use crate::machine::Machine;

    struct Fresh;

    impl StoreBuilder<TypeConfig, Log, Machine, tempfile::TempDir> for Fresh {
        async fn build(&self) -> Result<(tempfile::TempDir, Log, Machine), openraft::StorageError<TypeConfig>> {
            let dir = tempfile::tempdir().expect("a directory");
            let store = keelson_store::StateMachine::open(&dir.path().join("state"), keelson_store::Options::default());
            let machine = Machine::new(Arc::new(store.expect("a store")), &dir.path().join("snapshots"));
            let log = Log::open(&dir.path().join("log")).expect("a log");
            Ok((dir, log, machine.expect("a state machine")))
        }
    }

    /// openraft's own tests of what it expects from a log and a state machine.
    #[tokio::test(flavor = "multi_thread")]
    async fn openrafts_suite() {
        Suite::test_all(Fresh).await.expect("the suite passes");
    }

    #[test]
    fn a_member_that_is_alone_keeps_less_in_memory() {
        for (others, most) in [(false, ALONE_LOG_CACHE_BYTES), (true, LOG_CACHE_BYTES)] {
            let mut memory = Memory { others, ..Memory::default() };
            let place = |index| (index, Place { segment: 1, offset: 0, length: 1 });
            for index in 1..=40 {
                let part = crate::types::Part::from_encoded(vec![0; LOG_CACHE_BYTES / 20].into());
                memory.push(Entry::new(codec::log_id(1, index), EntryPayload::Normal(part.into())));
                assert!(memory.cached_bytes > 0, "an entry that is not on the disk stays");
                memory.placed(&[place(index)]);
            }
            assert!(memory.cached_bytes <= most && memory.cached_bytes + LOG_CACHE_BYTES / 10 > most, "{others}");
        }
    }
}
