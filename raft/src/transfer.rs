//! Snapshots on their way to another member: files in parts with checksums, no faster than leaves room for writes. What was
//! received before a transfer broke off is not sent again.
//!
//! Invariant: a snapshot is given on only when each of its files is whole and on disk, and nothing else is beside them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use keelson_proto::peer::SnapshotPart;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Status;

use crate::limits::{SNAPSHOT_BYTES_PER_SECOND, SNAPSHOT_CHUNK_BYTES};
use crate::machine::{Incoming, SnapshotDir};
use crate::task;

/// Ending of the files that never change: the same name from the same source is the same file.
const TABLE: &str = ".sst";

/// What has come of a snapshot from one source.
#[derive(Default)]
pub struct Partial(Mutex<Option<Received>>);

struct Received {
    /// The source: one database of one process.
    source: u64,
    dir: SnapshotDir,
    /// Whole files and their lengths.
    whole: BTreeMap<String, u64>,
}

impl Partial {
    /// The files from this source that need not be sent again.
    pub fn files(&self, source: u64) -> Vec<String> {
        let partial = self.0.lock();
        let received = partial.as_ref().filter(|received| received.source == source);
        received.map_or_else(Vec::new, |received| received.whole.keys().cloned().collect())
    }

    fn take(&self, source: u64) -> Option<Received> {
        self.0.lock().take().filter(|received| received.source == source)
    }
}

/// A transfer under way. Dropped before it is done, it leaves what has come for the next one.
struct Receiving<'a> {
    partial: &'a Partial,
    received: Option<Received>,
    /// The files that this snapshot has.
    named: BTreeSet<String>,
}

impl Drop for Receiving<'_> {
    fn drop(&mut self) {
        if let Some(mut received) = self.received.take().filter(|received| received.source != 0) {
            received.whole.retain(|name, _| name.ends_with(TABLE));
            *self.partial.0.lock() = Some(received);
        }
    }
}

fn malformed(error: impl std::fmt::Display) -> Status {
    Status::invalid_argument(error.to_string())
}

fn failed(error: impl std::fmt::Display) -> Status {
    Status::unavailable(error.to_string())
}

/// A file that is being written.
type OpenFile = Option<(String, File, u64)>;

/// Receives a snapshot's files from a source (0 if it did not tell); all are whole and on disk when this returns.
pub async fn receive(
    mut parts: impl Stream<Item = Result<SnapshotPart, Status>> + Unpin,
    incoming: &Incoming,
    partial: &Partial,
    source: u64,
) -> Result<SnapshotDir, Status> {
    let received = match partial.take(source) {
        Some(received) => received,
        None => Received { source, dir: incoming.directory().map_err(failed)?, whole: BTreeMap::new() },
    };
    let mut receiving = Receiving { partial, received: Some(received), named: BTreeSet::new() };
    let mut open: OpenFile = None;
    while let Some(part) = parts.next().await {
        let part = part?;
        if part.end {
            if open.is_some() {
                return Err(malformed("a file of the snapshot is not whole"));
            }
            return receiving.finish().await;
        }
        open = receiving.write(open, part).await?;
    }
    Err(Status::aborted("the snapshot ended before its end"))
}

impl Receiving<'_> {
    /// Takes one part; returns the file that it leaves open.
    async fn write(&mut self, open: OpenFile, part: SnapshotPart) -> Result<OpenFile, Status> {
        let Some(received) = &mut self.received else { return Err(failed("the transfer is over")) };
        self.named.insert(part.file.clone());
        if open.is_none() && part.data.is_empty() && received.whole.get(&part.file) == Some(&part.file_length) {
            return Ok(None);
        }
        let (directory, name, length) = (received.dir.path().to_owned(), part.file.clone(), part.file_length);
        // Files are written beside the tasks that must not wait for a disk.
        let written = task::blocking(move || write_part(open, &part, &directory)).await.map_err(failed)??;
        if written.is_none() {
            received.whole.insert(name, length);
        }
        Ok(written)
    }

    /// Gives the snapshot on, without files that only an earlier one from the same source had.
    async fn finish(mut self) -> Result<SnapshotDir, Status> {
        let Some(received) = self.received.take() else { return Err(failed("the transfer is over")) };
        let (named, dir) = (std::mem::take(&mut self.named), received.dir.path().to_owned());
        let settle = move || {
            for path in files(&dir)? {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                if !named.contains(&*name) {
                    fs::remove_file(&path)?;
                }
            }
            File::open(&dir)?.sync_all()
        };
        task::blocking(settle).await.map_err(failed)?.map_err(failed)?;
        Ok(received.dir)
    }
}

/// The sum of a snapshot's first part: what it says of members' addresses is taken over as it is.
fn head_sum(head: &[u8], source: u64) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(head), &source.to_le_bytes())
}

/// Checks a snapshot's first part. Members before this one send no sum, 0, with it.
pub fn check_head(first: &SnapshotPart) -> Result<(), Status> {
    if first.crc32c != 0 && first.crc32c != head_sum(&first.head, first.source) {
        return Err(malformed("the head of the snapshot was damaged on its way"));
    }
    Ok(())
}

fn write_part(open: OpenFile, part: &SnapshotPart, directory: &Path) -> Result<OpenFile, Status> {
    if crc32c::crc32c(&part.data) != part.crc32c {
        return Err(malformed("a part of the snapshot was damaged on its way"));
    }
    let plain = !part.file.is_empty() && !part.file.contains(['/', '\0']) && !part.file.starts_with('.');
    if !plain {
        return Err(malformed("a file's name in the snapshot is not plain"));
    }
    let (name, mut file, written) = match open {
        Some(open) if open.0 == part.file => open,
        Some(_) => return Err(malformed("files of the snapshot are mixed")),
        None => {
            let path = directory.join(&part.file);
            // Another file in the place of one that was cut short: who still writes to that one does no harm.
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
            (part.file.clone(), File::create_new(path).map_err(failed)?, 0)
        }
    };
    file.write_all(&part.data).map_err(failed)?;
    let written = written + part.data.len() as u64;
    if part.data.len() == SNAPSHOT_CHUNK_BYTES {
        return Ok(Some((name, file, written)));
    }
    if part.file_length != written {
        return Err(malformed("a file of the snapshot has not its length"));
    }
    file.sync_all().map_err(failed)?;
    Ok(None)
}

/// The files of a directory, in order.
fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort_unstable();
    Ok(paths)
}

/// Sends a snapshot's head and the files that the receiver does not have, after all of it was read once. Ends early without an
/// error when the receiver has gone.
pub async fn send(
    to: u64,
    head: Bytes,
    snapshot: &SnapshotDir,
    known: &BTreeSet<String>,
    parts: &mpsc::Sender<SnapshotPart>,
) -> io::Result<()> {
    let whole = snapshot.clone();
    task::blocking(move || whole.verify()).await??;
    let empty = || SnapshotPart { to, ..SnapshotPart::default() };
    let (source, crc32c) = (snapshot.source(), head_sum(&head, snapshot.source()));
    let first = SnapshotPart { head, source, crc32c, ..empty() };
    if parts.send(first).await.is_err() {
        return Ok(());
    }
    let dir = snapshot.path().to_owned();
    let (begun, mut sent) = (Instant::now(), 0);
    for path in task::blocking(move || files(&dir)).await?? {
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if known.contains(&file) && file.ends_with(TABLE) {
            let file_length = task::blocking(move || fs::metadata(path)).await??.len();
            if parts.send(SnapshotPart { file, file_length, ..empty() }).await.is_err() {
                return Ok(());
            }
            continue;
        }
        let mut reader = task::blocking(move || File::open(path)).await??;
        let mut length = 0;
        loop {
            let read = move || {
                let mut data = Vec::new();
                Read::by_ref(&mut reader).take(SNAPSHOT_CHUNK_BYTES as u64).read_to_end(&mut data)?;
                Ok::<_, io::Error>((reader, data))
            };
            let data;
            (reader, data) = task::blocking(read).await??;
            length += data.len() as u64;
            sent += data.len() as u64;
            let last = data.len() < SNAPSHOT_CHUNK_BYTES;
            let (crc32c, file_length) = (crc32c::crc32c(&data), if last { length } else { 0 });
            let part = SnapshotPart { file: file.clone(), data: data.into(), crc32c, file_length, ..empty() };
            if parts.send(part).await.is_err() {
                return Ok(());
            }
            if last {
                break;
            }
            tokio::time::sleep_until(begun + pause(sent)).await;
        }
    }
    // Whether the receiver is still there shows in its answer.
    let _ = parts.send(SnapshotPart { end: true, ..empty() }).await;
    Ok(())
}

/// How long so many bytes may not take less than.
fn pause(sent_bytes: u64) -> Duration {
    Duration::from_micros(sent_bytes.saturating_mul(1_000_000) / SNAPSHOT_BYTES_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::machine::Machine;

    fn machine(dir: &Path) -> Machine {
        let store = keelson_store::StateMachine::open(&dir.join("state"), keelson_store::Options::default());
        Machine::new(Arc::new(store.expect("a store")), &dir.join("snapshots")).expect("a machine")
    }

    async fn sent(snapshot: &SnapshotDir, known: &[String]) -> Vec<SnapshotPart> {
        let (parts, mut received) = mpsc::channel(100);
        let known = known.iter().cloned().collect();
        send(7, "head".into(), snapshot, &known, &parts).await.expect("sent");
        drop(parts);
        let mut all = Vec::new();
        while let Some(part) = received.recv().await {
            all.push(part);
        }
        all
    }

    fn names(dir: &SnapshotDir) -> Vec<String> {
        let names = files(dir.path()).expect("files");
        names.iter().map(|path| path.file_name().unwrap_or_default().to_string_lossy().into_owned()).collect()
    }

    #[tokio::test]
    async fn what_came_before_the_end_is_not_sent_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let incoming = machine(dir.path()).incoming();
        let snapshot = incoming.directory().expect("a directory");
        for (name, length) in [("000007.sst", SNAPSHOT_CHUNK_BYTES * 2), ("000008.sst", 10), ("CURRENT", 5)] {
            fs::write(snapshot.path().join(name), vec![name.len() as u8; length]).expect("written");
        }
        let (source, partial) = (snapshot.source(), Partial::default());
        let all = sent(&snapshot, &[]).await;
        assert_eq!(all.len(), 1 + 3 + 1 + 1 + 1, "a head, three parts of one file, one of each other, the end");
        assert_eq!(all[0].source, source);
        // The first file is whole, the second has begun.
        let cut = all[1..4].iter().cloned().map(Ok).chain([Err(Status::unavailable("cut"))]);
        let broken = receive(futures::stream::iter(cut.collect::<Vec<_>>()), &incoming, &partial, source).await;
        assert_eq!(broken.map(|_| ()).expect_err("cut").message(), "cut");
        assert_eq!(partial.files(source), ["000007.sst"]);
        assert_eq!(partial.files(source + 1), [""; 0], "another source's files are others");
        // Meanwhile the source has one more file, and one less.
        fs::write(snapshot.path().join("000009.sst"), b"new").expect("written");
        fs::remove_file(snapshot.path().join("000008.sst")).expect("removed");
        let rest = sent(&snapshot, &partial.files(source)).await;
        assert_eq!(rest.iter().map(|part| part.data.len()).sum::<usize>(), 3 + 5, "only what is missing");
        let rest: Vec<_> = rest[1..].iter().cloned().map(Ok).collect();
        let received = receive(futures::stream::iter(rest), &incoming, &partial, source).await.expect("received");
        assert_eq!(names(&received), ["000007.sst", "000009.sst", "CURRENT"]);
        for name in names(&received) {
            let (here, there) = (fs::read(received.path().join(&name)), fs::read(snapshot.path().join(&name)));
            assert_eq!(here.expect("read"), there.expect("read"), "{name}");
        }
        assert_eq!(partial.files(source), [""; 0]);
    }

    #[tokio::test]
    async fn damaged_and_mixed_parts_are_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let incoming = machine(dir.path()).incoming();
        let part = |file: &str, data: &'static [u8], crc32c, file_length| SnapshotPart {
            file: file.into(),
            data: data.into(),
            crc32c,
            file_length,
            ..SnapshotPart::default()
        };
        let crc = crc32c::crc32c(b"abc");
        for (name, part, why) in [
            ("a flipped bit", part("a", b"abc", crc ^ 1, 3), "damaged"),
            ("a wrong length", part("a", b"abc", crc, 4), "length"),
            ("a way out", part("../a", b"abc", crc, 3), "plain"),
            ("a file that was not sent", part("a.sst", b"", 0, 3), "length"),
        ] {
            let parts = futures::stream::iter([Ok(part)]);
            let refused = receive(parts, &incoming, &Partial::default(), 1).await.map(|_| ()).expect_err(name);
            assert!(refused.message().contains(why), "{name}: {refused}");
        }
    }

    #[test]
    fn a_damaged_head_is_refused() {
        let head = || Bytes::from_static(b"members");
        let first = |head: Bytes, source, crc32c| SnapshotPart { head, source, crc32c, ..SnapshotPart::default() };
        let sum = head_sum(&head(), 7);
        for (why, part, fine) in [
            ("whole", first(head(), 7, sum), true),
            ("an older member's", first(head(), 7, 0), true),
            ("a bit of an address", first(Bytes::from_static(b"mambers"), 7, sum), false),
            ("another source", first(head(), 6, sum), false),
            ("another sum", first(head(), 7, sum ^ 1), false),
        ] {
            assert_eq!(check_head(&part).is_ok(), fine, "{why}");
        }
    }
}
