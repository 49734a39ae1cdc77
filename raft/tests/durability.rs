//! A member whose disk fails or that dies at any step of writing its log, and one whose files are damaged: what was
//! acknowledged is there afterwards, or the member says what is wrong and serves nothing.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use keelson_raft::wire::World;
use keelson_raft::{Directory, Files, LogFile, Node, OpenError, Replica, Setup, Tuning};
use keelson_store::{KeyRange, Kv, KvError, MonotonicClock, Op, PutRequest, RangeRequest, Txn};

/// Small, so that the log goes on to further segments and gives them back.
const SEGMENT_BYTES: u64 = 32 * 1024;

/// What the disk does when its time has come.
#[derive(Clone, Copy, Debug)]
struct Fault {
    error: i32,
    /// Of a write's bytes, these many hundredths arrive.
    arrives_percent: usize,
}

/// A disk that does so many steps, and then none any more.
#[derive(Clone)]
struct Disk {
    inner: Arc<Directory>,
    left: Arc<AtomicI64>,
    fault: Fault,
}

impl Disk {
    fn step(&self) -> io::Result<()> {
        if self.left.fetch_sub(1, Ordering::SeqCst) > 0 {
            return Ok(());
        }
        Err(io::Error::from_raw_os_error(self.fault.error))
    }
}

struct OpenFile {
    inner: Arc<dyn LogFile>,
    disk: Disk,
}

impl LogFile for OpenFile {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let left = self.disk.left.load(Ordering::SeqCst);
        if left == 0 {
            let arrived = bytes.len() * self.disk.fault.arrives_percent / 100;
            self.inner.write_all_at(&bytes[..arrived], offset)?;
        }
        self.disk.step()?;
        self.inner.write_all_at(bytes, offset)
    }

    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.read_exact_at(bytes, offset)
    }
}

impl Files for Disk {
    fn list(&self) -> io::Result<Vec<String>> {
        self.inner.list()
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        self.inner.read(name)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        Ok(Arc::new(OpenFile { inner: self.inner.open(name)?, disk: self.clone() }))
    }

    fn create(&self, name: &str, bytes: u64, filled: bool) -> io::Result<()> {
        self.step()?;
        self.inner.create(name, bytes, filled)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.step()?;
        self.inner.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.step()?;
        self.inner.remove(name)
    }

    fn sync(&self) -> io::Result<()> {
        self.step()?;
        self.inner.sync()
    }

    fn salt(&self) -> io::Result<u64> {
        self.inner.salt()
    }

    fn segment_bytes(&self) -> u64 {
        SEGMENT_BYTES
    }
}

/// A member of its own cluster on a disk that does `steps` more steps.
async fn open(dir: &Path, steps: i64, fault: Fault) -> Result<Replica, OpenError> {
    let setup = Setup {
        cluster_id: 1,
        id: 1,
        dir: dir.to_owned(),
        version: "test".into(),
        clock: Arc::new(MonotonicClock::default()),
        listeners: Vec::new(),
        tls: None,
        tuning: Tuning { snapshot_commands: 40, kept_entries: 10, ..Tuning::default() },
    };
    let inner = Arc::new(Directory::open(&dir.join("log")).map_err(OpenError::Log)?);
    let disk = Disk { inner, left: Arc::new(AtomicI64::new(steps)), fault };
    let replica = Replica::open_in(setup, World { wire: None, files: Some(Arc::new(disk)) }).await?;
    replica.initialize(Node { name: "m1".into(), ..Node::default() }).await?;
    Ok(replica)
}

async fn put(replica: &Replica, key: &str, value: Vec<u8>) -> Result<(), KvError> {
    let txn = Txn { success: vec![Op::Put(PutRequest::new(key.to_owned(), value))], ..Txn::default() };
    // A member whose log has failed gives no answer.
    match tokio::time::timeout(Duration::from_secs(10), replica.txn(txn)).await {
        Ok(written) => written.map(drop),
        Err(_) => Err(KvError::Unavailable("no answer".into())),
    }
}

fn value(at: usize) -> Vec<u8> {
    format!("{at}-").repeat(100).into_bytes()
}

fn listing(dir: &Path) -> io::Result<BTreeMap<PathBuf, u64>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(listing(&entry.path())?);
        } else {
            found.insert(entry.path(), entry.metadata()?.len());
        }
    }
    Ok(found)
}

/// The files as they are now, without those that come and go meanwhile.
fn copy(from: &Path, to: &Path) {
    loop {
        let _ = std::fs::remove_dir_all(to);
        let Ok(before) = listing(from) else { continue };
        let copied = before.keys().try_for_each(|file| {
            let target = to.join(file.strip_prefix(from).expect("it lies there"));
            std::fs::create_dir_all(target.parent().expect("it has a parent"))?;
            std::fs::copy(file, target).map(drop)
        });
        if copied.is_ok() && listing(from).is_ok_and(|after| after == before) {
            return;
        }
    }
}

/// Writes until the disk fails; returns how many writes were acknowledged.
async fn write_until_it_fails(replica: &Replica) -> usize {
    for at in 0..400 {
        if put(replica, &format!("k/{at}"), value(at)).await.is_err() {
            return at;
        }
    }
    panic!("the disk did not fail")
}

const NO_FAULT: Fault = Fault { error: 0, arrives_percent: 0 };
const FOREVER: i64 = i64::MAX;

/// The log's every step fails once: nothing acknowledged is lost, the member says why it stopped, and goes on when the
/// disk is well again.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_at_any_step_loses_nothing_acknowledged() {
    const ENOSPC: i32 = 28;
    const EIO: i32 = 5;
    let faults = [(ENOSPC, 0), (EIO, 50), (EIO, 100)];
    // From the first start's steps to those of further segments, snapshots and purges.
    for (round, steps) in [0, 1, 2, 3, 4, 5, 6, 7, 9, 12, 17, 40, 41, 42, 44, 60, 83, 90, 120].into_iter().enumerate() {
        let (error, arrives_percent) = faults[round % faults.len()];
        let fault = Fault { error, arrives_percent };
        let case = format!("{fault:?} after {steps} steps");
        let dir = tempfile::tempdir().expect("a directory");
        let (run, crashed) = (dir.path().join("run"), dir.path().join("crashed"));
        let mut acknowledged = 0;
        match open(&run, steps, fault).await {
            Err(error) => {
                let told = error.to_string();
                assert!(told.contains("os error") || told.contains("log"), "{case}: {told}");
                copy(&run, &crashed);
            }
            Ok(replica) => {
                acknowledged = write_until_it_fails(&replica).await;
                let why = tokio::time::timeout(Duration::from_secs(30), replica.failed()).await;
                let why = why.unwrap_or_else(|_| panic!("{case}: the member goes on"));
                assert!(why.contains("the Raft log cannot be written"), "{case}: {why}");
                // As a crash would leave it: what the database has in memory is gone.
                copy(&run, &crashed);
                replica.shutdown().await;
            }
        }
        let replica = open(&crashed, FOREVER, NO_FAULT).await.unwrap_or_else(|error| panic!("{case}: {error}"));
        replica.barrier().await.unwrap_or_else(|error| panic!("{case}: {error}"));
        for at in 0..acknowledged {
            let found = replica.view().get(format!("k/{at}").as_bytes()).map(|kv| kv.value.to_vec());
            assert_eq!(found, Some(value(at)), "{case}: write {at} of {acknowledged}");
        }
        put(&replica, "after", value(0)).await.unwrap_or_else(|error| panic!("{case}: {error}"));
        replica.shutdown().await;
    }
}

/// A bit that flips in a table or in the list of tables is noticed, or nothing that anybody reads depends on it.
#[tokio::test(flavor = "multi_thread")]
async fn damaged_tables_are_never_served() {
    let dir = tempfile::tempdir().expect("a directory");
    let (whole, lived) = (dir.path().join("whole"), dir.path().join("lived"));
    let replica = open(&lived, FOREVER, NO_FAULT).await.expect("it opens");
    for at in 0..60 {
        put(&replica, &format!("k/{at}"), value(at)).await.expect("written");
    }
    for at in 0..60 {
        put(&replica, &format!("k/{at}"), value(at + 1)).await.expect("written");
    }
    let old = replica.view().revision() - 60;
    replica.shutdown().await;
    drop(replica);
    // The database is closed when the last of its threads lets go of it, and may still replace tables until then.
    copy(&lived, &whole);
    let tables = listing(&whole.join("state")).expect("files");
    let tables: Vec<_> = tables.into_iter().filter(|(file, _)| file.extension().is_some_and(|e| e == "sst")).collect();
    assert!(!tables.is_empty(), "the state is in tables");
    let (mut noticed, mut tried) = (0, 0);
    for (file, length) in tables {
        for part in 0..8 {
            let (case, damaged) = (format!("{} at {part}/8", file.display()), dir.path().join("damaged"));
            copy(&whole, &damaged);
            let target = damaged.join(file.strip_prefix(&whole).expect("it lies there"));
            let mut bytes = std::fs::read(&target).expect("readable");
            bytes[(length * part / 8) as usize] ^= 0x10;
            std::fs::write(&target, bytes).expect("written");
            tried += 1;
            let replica = match open(&damaged, FOREVER, NO_FAULT).await {
                Ok(replica) => replica,
                Err(error) => {
                    let told = error.to_string();
                    // Noticed while it reads all keys, or when it goes on to forget old ones.
                    let named = told.contains("cannot open the store") || told.contains("corruption");
                    assert!(named, "{case}: {told}");
                    noticed += 1;
                    continue;
                }
            };
            for (revision, shift) in [(0, 1), (old, 0)] {
                let all = RangeRequest { revision, ..RangeRequest::new(KeyRange::prefix("k/")) };
                match replica.range(&all) {
                    Ok(found) => {
                        assert_eq!(found.count, 60, "{case} at revision {revision}");
                        for kv in found.kvs {
                            let key = String::from_utf8_lossy(&kv.key[2..]).into_owned();
                            let at: usize = key.parse().expect("a number");
                            assert_eq!(kv.value, value(at + shift), "{case} at revision {revision}");
                        }
                    }
                    Err(error) => {
                        assert!(matches!(error, KvError::Stopped(_)), "{case}: {error}");
                        assert!(replica.machine().failure().is_some(), "{case}: the member knows of it");
                        noticed += 1;
                    }
                }
            }
            replica.shutdown().await;
        }
    }
    assert!(noticed * 2 > tried, "of {tried} flips {noticed} were noticed");
}
