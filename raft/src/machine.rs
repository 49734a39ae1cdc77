//! The state machine as openraft sees it: applies entries to the store's, builds and installs snapshots.
//!
//! Invariant: the log id and the membership that belong to the applied state are stored with it, atomically.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use keelson_store::{Applied, Fatal, KvError, StateMachine, inspect_checkpoint};
use openraft::entry::RaftEntry;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot};
use openraft::{EntryPayload, OptionalSend};
use parking_lot::Mutex;
use rand::Rng;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::codec;
use crate::figures::Figures;
use crate::limits::{APPLY_BYTES, APPLY_ENTRIES, SNAPSHOT_BYTES};
use crate::types::{Entry, LogId, Outcome, Part, SnapshotMeta, StoredMembership, TypeConfig};

/// A snapshot's files.
pub type SnapshotData = SnapshotDir;

/// A directory that holds a checkpoint; removed with its last handle unless it was installed.
#[derive(Clone)]
pub struct SnapshotDir(Arc<OwnedDir>);

impl std::fmt::Debug for SnapshotDir {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SnapshotDir").field(&self.0.path).finish()
    }
}

struct OwnedDir {
    path: PathBuf,
    /// One database of one process, whose tables never change and never share a name.
    source: u64,
    /// Whose checkpoint it is, if it was made here.
    store: Option<Arc<StateMachine>>,
}

impl Drop for OwnedDir {
    fn drop(&mut self) {
        // Installed ones have moved away.
        let _ = fs::remove_dir_all(&self.path);
    }
}

impl SnapshotDir {
    /// Takes over a directory with files from one source: a checkpoint of this store, or one that comes from elsewhere.
    fn own(path: PathBuf, source: u64, store: Option<Arc<StateMachine>>) -> Self {
        Self(Arc::new(OwnedDir { path, source, store }))
    }

    /// Reads all of it before it is sent: a table that is damaged on this disk must not come to others. If one is, this
    /// member's store stops.
    pub fn verify(&self) -> io::Result<()> {
        self.0.store.as_ref().map_or(Ok(()), |store| store.verify_checkpoint(self.path()).map_err(fatal))
    }

    /// Where its files are from.
    pub fn source(&self) -> u64 {
        self.0.source
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0.path
    }
}

/// The blob that the store keeps with its applied index.
type Meta = (Option<LogId>, StoredMembership);

fn read_meta(blob: &Bytes) -> io::Result<Meta> {
    if blob.is_empty() { Ok(Meta::default()) } else { Ok(codec::decode(blob)?) }
}

/// The blob that says what was applied last.
pub fn write_meta(log_id: LogId, membership: &StoredMembership) -> io::Result<Bytes> {
    Ok(codec::encode(&(Some(log_id), membership))?.into())
}

fn fatal(error: Fatal) -> io::Error {
    io::Error::other(error)
}

/// A number for one database of one process; never 0.
fn fresh_source() -> u64 {
    crate::task::dice().next_u64() | 1
}

struct Shared {
    store: Arc<StateMachine>,
    /// Snapshots are built and received here.
    dir: PathBuf,
    current: Mutex<Option<(SnapshotMeta, SnapshotDir)>>,
    counter: AtomicU64,
    applied: watch::Sender<u64>,
    since: Since,
    /// The database that is open, as a random number.
    source: AtomicU64,
}

/// What was applied since the last snapshot.
#[derive(Default)]
struct Since {
    commands: AtomicU64,
    bytes: AtomicU64,
    /// Commands after which a snapshot is due.
    most: AtomicU64,
    due: Arc<Notify>,
}

impl Since {
    fn applied(&self, commands: u64, bytes: u64) {
        let commands = self.commands.fetch_add(commands, Ordering::Relaxed) + commands;
        let bytes = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let most = self.most.load(Ordering::Relaxed);
        if most > 0 && (commands >= most || bytes >= SNAPSHOT_BYTES) {
            self.reset();
            self.due.notify_one();
        }
    }

    fn reset(&self) {
        self.commands.store(0, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
    }
}

impl Shared {
    fn fresh_path(&self) -> PathBuf {
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        self.dir.join(number.to_string())
    }

    /// Writes a checkpoint of what is applied and makes it the current snapshot.
    fn build(&self) -> io::Result<(SnapshotMeta, SnapshotDir)> {
        let dir = SnapshotDir::own(self.fresh_path(), self.source.load(Ordering::Relaxed), Some(self.store.clone()));
        let info = self.store.checkpoint(dir.path()).map_err(fatal)?;
        let (last_log_id, last_membership) = read_meta(&info.meta)?;
        let meta = SnapshotMeta { last_log_id, last_membership };
        *self.current.lock() = Some((meta.clone(), dir.clone()));
        Ok((meta, dir))
    }
}

/// Snapshots that are being received: where to put them.
#[derive(Clone)]
pub struct Incoming(Arc<Shared>);

impl Incoming {
    /// A fresh, empty directory.
    pub fn directory(&self) -> io::Result<SnapshotDir> {
        let path = self.0.fresh_path();
        fs::create_dir(&path)?;
        Ok(SnapshotDir::own(path, fresh_source(), None))
    }
}

/// The state machine.
pub struct Machine {
    shared: Arc<Shared>,
    membership: StoredMembership,
    figures: Arc<Figures>,
}

impl Machine {
    /// A machine over the store's state, with `dir` for snapshots. What is there from a former process is removed:
    /// snapshots are only in transit there.
    pub fn new(store: Arc<StateMachine>, dir: &Path) -> io::Result<Self> {
        match fs::remove_dir_all(dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir_all(dir)?,
        }
        let (_, membership) = read_meta(&store.applied().1)?;
        let (current, counter) = (Mutex::new(None), AtomicU64::new(1));
        let applied = watch::Sender::new(store.applied().0);
        let source = AtomicU64::new(fresh_source());
        let dir = dir.to_path_buf();
        let shared = Arc::new(Shared { store, dir, current, counter, applied, since: Since::default(), source });
        Ok(Self { shared, membership, figures: Arc::default() })
    }

    /// The same, counting into a member's numbers.
    pub fn counted(self, figures: Arc<Figures>) -> Self {
        Self { figures, ..self }
    }

    /// Where snapshots are received.
    pub fn incoming(&self) -> Incoming {
        Incoming(self.shared.clone())
    }

    /// Follows the last applied index.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.shared.applied.subscribe()
    }

    /// Is notified whenever so many commands, or [`SNAPSHOT_BYTES`], were applied since the last snapshot.
    pub fn snapshot_due(&self, commands: u64) -> Arc<Notify> {
        self.shared.since.most.store(commands.max(1), Ordering::Relaxed);
        self.shared.since.due.clone()
    }

    /// How many members the cluster had when this one stopped.
    pub fn members(&self) -> usize {
        self.membership.membership().nodes().count()
    }

    /// Applies entries for which nobody waits.
    pub fn replay(&mut self, entries: Vec<Entry>) -> io::Result<()> {
        self.apply_group(entries.into_iter().map(|entry| (entry, None)).collect())
    }

    fn apply_group(&mut self, group: Vec<EntryResponder<TypeConfig>>) -> io::Result<()> {
        let mut entries = Vec::with_capacity(group.len());
        let mut responders = Vec::with_capacity(group.len());
        let bytes = group.iter().map(|(entry, _)| codec::entry_size_bytes(entry) as u64).sum();
        for (entry, responder) in group {
            let log_id = entry.log_id();
            let commands = match &entry.payload {
                EntryPayload::Blank => Vec::new(),
                EntryPayload::Normal(proposal) => {
                    proposal.0.iter().map(Part::last_command).collect::<Result<Vec<_>, _>>()?
                }
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(log_id), membership.clone());
                    Vec::new()
                }
            };
            let meta = write_meta(log_id, &self.membership)?;
            responders.push((responder, commands.len()));
            entries.push(keelson_store::Entry { index: log_id.index, meta, commands });
        }
        let begun = Instant::now();
        let mut answers = self.shared.store.apply(&entries).map_err(fatal)?.into_iter();
        self.figures.applied(begun.elapsed());
        if let Some(last) = entries.last() {
            self.shared.applied.send_replace(last.index);
        }
        self.shared.since.applied(answers.len() as u64, bytes);
        for (responder, commands) in responders {
            let answers: Vec<Result<Applied, KvError>> = answers.by_ref().take(commands).collect();
            if let Some(responder) = responder {
                responder.send(Outcome(answers));
            }
        }
        Ok(())
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        read_meta(&self.shared.store.applied().1)
    }

    async fn apply<S>(&mut self, entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut chunks = entries.ready_chunks(APPLY_ENTRIES);
        while let Some(chunk) = chunks.next().await {
            let (mut group, mut bytes) = (Vec::new(), 0);
            for item in chunk {
                let (entry, responder) = item?;
                bytes += codec::entry_size_bytes(&entry);
                group.push((entry, responder));
                if bytes >= APPLY_BYTES {
                    self.apply_group(std::mem::take(&mut group))?;
                    bytes = 0;
                }
            }
            if !group.is_empty() {
                self.apply_group(group)?;
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder(self.shared.clone())
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> io::Result<()> {
        let shared = self.shared.clone();
        let wanted = meta.clone();
        let installed = crate::task::blocking(move || {
            let (found, _) = read_meta(&inspect_checkpoint(snapshot.path()).map_err(fatal)?.meta)?;
            if found != wanted.last_log_id {
                let why = format!("the snapshot holds {found:?} where {:?} was announced", wanted.last_log_id);
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
            shared.store.install(snapshot.path()).map_err(fatal)?;
            shared.source.store(fresh_source(), Ordering::Relaxed);
            *shared.current.lock() = None;
            shared.applied.send_replace(shared.store.applied().0);
            shared.build()
        });
        let (installed, _) = installed.await.map_err(io::Error::other)??;
        self.membership = installed.last_membership;
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Built>> {
        if let Some((meta, snapshot)) = self.shared.current.lock().clone() {
            return Ok(Some(Snapshot { meta, snapshot }));
        }
        // After a restart the log may begin after what a follower needs: a snapshot can always be made.
        if self.shared.store.applied().0 == 0 {
            return Ok(None);
        }
        let shared = self.shared.clone();
        let (meta, snapshot) = crate::task::blocking(move || shared.build()).await.map_err(io::Error::other)??;
        Ok(Some(Snapshot { meta, snapshot }))
    }
}

/// A snapshot with its files.
pub type Built = openraft::type_config::alias::SnapshotOf<TypeConfig, SnapshotData>;

/// Builds a snapshot beside the writes.
pub struct Builder(Arc<Shared>);

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<Built> {
        let shared = self.0.clone();
        let (meta, snapshot) = crate::task::blocking(move || shared.build()).await.map_err(io::Error::other)??;
        Ok(Snapshot { meta, snapshot })
    }
}
