//! Snapshots as files that etcd reads too: its database format, its buckets, its trailing checksum.
//!
//! The state is read from an immutable view and from history on disk, so writes go on meanwhile.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;
use keelson_proto::etcd::{etcdserverpb as pb, mvccpb};
use keelson_store::{EventKind, KeyValue, KvError, Revision, View};
use prost::Message;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc::Sender;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::bolt::Writer;
use super::convert;
use super::error::of_kv;
use super::limits::{SNAPSHOT_PART_BYTES, STREAM_ANSWERS};
use super::{API_VERSION, Front};

/// Length of etcd's key of a revision: two numbers and what separates them.
pub const REVISION_KEY_BYTES: usize = 17;
/// What follows the key of a deletion.
pub const TOMBSTONE: u8 = b't';
/// How often a snapshot is begun again when history is compacted under it.
const ATTEMPTS: usize = 3;

/// A lease in etcd's bucket.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StoredLease {
    /// Its id.
    #[prost(int64, tag = "1")]
    pub id: i64,
    /// TTL granted, in seconds.
    #[prost(int64, tag = "2")]
    pub ttl: i64,
    /// Seconds left at the last checkpoint, or 0.
    #[prost(int64, tag = "3")]
    pub remaining_ttl: i64,
}

/// etcd's key of a revision's change.
pub fn revision_key(revision: Revision, sub: i64) -> Vec<u8> {
    let mut key = Vec::with_capacity(REVISION_KEY_BYTES + 1);
    key.extend_from_slice(&revision.to_be_bytes());
    key.push(b'_');
    key.extend_from_slice(&sub.to_be_bytes());
    key
}

type Answer = Result<pb::SnapshotResponse, Status>;

/// Writes a snapshot to a nameless file and streams it.
pub async fn stream(front: Arc<Front>) -> Result<impl Stream<Item = Answer> + Send + use<>, Status> {
    let (parts, received) = tokio::sync::mpsc::channel(STREAM_ANSWERS);
    tokio::task::spawn_blocking(move || {
        if let Err(status) = run(&front, &parts) {
            tracing::warn!(%status, "a snapshot failed");
            let _ = parts.blocking_send(Err(status));
        }
    });
    Ok(ReceiverStream::new(received))
}

fn run(front: &Front, parts: &Sender<Answer>) -> Result<(), Status> {
    let mut attempt = 1;
    let (mut file, revision) = loop {
        let view = front.kv.view();
        match write(&view, nameless(&front.options.spool_dir).map_err(failed)?) {
            Ok(file) => break (file, view.revision()),
            Err(Failure::Kv(KvError::Compacted(_))) if attempt < ATTEMPTS => attempt += 1,
            Err(Failure::Kv(error)) => return Err(of_kv(error)),
            Err(Failure::Io(error)) => return Err(failed(error)),
        }
    };
    let total = file.seek(SeekFrom::End(0)).map_err(failed)?;
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    let header = front.header(revision);
    let mut digest = Sha256::new();
    let mut remaining_bytes = total;
    let message =
        |remaining_bytes, blob| pb::SnapshotResponse { header, remaining_bytes, blob, version: API_VERSION.into() };
    while remaining_bytes > 0 {
        let mut blob = vec![0; remaining_bytes.min(SNAPSHOT_PART_BYTES as u64) as usize];
        file.read_exact(&mut blob).map_err(failed)?;
        digest.update(&blob);
        remaining_bytes -= blob.len() as u64;
        if parts.blocking_send(Ok(message(remaining_bytes, blob.into()))).is_err() {
            // The client has gone.
            return Ok(());
        }
    }
    let sum = Bytes::copy_from_slice(&digest.finalize());
    let _ = parts.blocking_send(Ok(message(0, sum)));
    Ok(())
}

fn failed(error: io::Error) -> Status {
    Status::internal(format!("etcdserver: cannot write the snapshot: {error}"))
}

/// A file that is gone when it is closed.
fn nameless(dir: &Path) -> io::Result<File> {
    std::fs::create_dir_all(dir)?;
    let path = dir.join(format!("snapshot-{:016x}.tmp", fastrand()));
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// A number that is hard to meet twice, seeded by the operating system.
fn fastrand() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}

/// Why a snapshot cannot be written.
#[derive(Debug)]
pub enum Failure {
    /// The store refused.
    Kv(KvError),
    /// The file could not be written.
    Io(io::Error),
}

impl From<KvError> for Failure {
    fn from(error: KvError) -> Self {
        Self::Kv(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Writes a view with the history that is left to an empty file.
pub fn write(view: &View, file: File) -> Result<File, Failure> {
    let mut out = Writer::new(file)?;
    out.begin(b"alarm");
    out.end()?;
    for bucket in [&b"auth"[..], b"authRoles", b"authUsers"] {
        super::auth::export(view, bucket, &mut out)?;
    }
    out.begin(b"cluster");
    out.end()?;
    out.begin(b"key");
    write_base(view, &mut out)?;
    write_history(view, &mut out)?;
    out.end()?;
    write_leases(view, &mut out)?;
    out.begin(b"members");
    out.end()?;
    out.begin(b"members_removed");
    out.end()?;
    out.begin(b"meta");
    out.put(b"consistent_index", &view.applied_index().to_be_bytes())?;
    if view.compact_revision() > 0 {
        let compacted = revision_key(view.compact_revision(), 0);
        out.put(b"finishedCompactRev", &compacted)?;
        out.put(b"scheduledCompactRev", &compacted)?;
    }
    out.put(b"term", &1_u64.to_be_bytes())?;
    out.end()?;
    Ok(out.finish()?)
}

/// Writes the keys as they were at the compacted revision, in the order of their revisions.
fn write_base(view: &View, out: &mut Writer) -> Result<(), Failure> {
    let compacted = view.compact_revision();
    if compacted <= 0 {
        return Ok(());
    }
    let mut base: Vec<Arc<KeyValue>> = Vec::new();
    view.scan_at(compacted, |kv| {
        // Mostly it has not changed since: then memory has it already.
        let same = view.get(&kv.key).filter(|now| now.mod_revision == kv.mod_revision);
        base.push(same.cloned().unwrap_or_else(|| Arc::new(kv)));
        Ok(())
    })?;
    // Keys of one revision stay in key order.
    base.sort_by_key(|kv| kv.mod_revision);
    let (mut revision, mut sub) = (0, 0);
    for kv in base {
        sub = if kv.mod_revision == revision { sub + 1 } else { 0 };
        revision = kv.mod_revision;
        out.put(&revision_key(revision, sub), &convert::key_value(&kv).encode_to_vec())?;
    }
    Ok(())
}

/// Writes all changes after the compacted revision.
fn write_history(view: &View, out: &mut Writer) -> Result<(), Failure> {
    let mut from = (view.compact_revision() + 1).max(2);
    let (mut revision, mut sub) = (0, 0);
    while from <= view.revision() {
        let (events, next) = view.history(from, view.revision())?;
        for event in events {
            let kv = &event.kv;
            sub = if kv.mod_revision == revision { sub + 1 } else { 0 };
            revision = kv.mod_revision;
            let mut key = revision_key(revision, sub);
            let value = match event.kind {
                EventKind::Put => convert::key_value(kv),
                EventKind::Delete => {
                    key.push(TOMBSTONE);
                    mvccpb::KeyValue { key: kv.key.clone(), ..mvccpb::KeyValue::default() }
                }
            };
            out.put(&key, &value.encode_to_vec())?;
        }
        from = next;
    }
    Ok(())
}

fn write_leases(view: &View, out: &mut Writer) -> Result<(), Failure> {
    out.begin(b"lease");
    let mut leases: Vec<_> = view.leases().collect();
    // In the order of the bytes, which differs from that of numbers below 0.
    leases.sort_by_key(|lease| lease.id.to_be_bytes());
    for lease in leases {
        let stored = StoredLease { id: lease.id, ttl: lease.granted_ttl, remaining_ttl: lease.checkpointed_ttl };
        out.put(&lease.id.to_be_bytes(), &stored.encode_to_vec())?;
    }
    out.end()?;
    Ok(())
}
