//! Reads etcd's database files: what is in them, and a store made from them.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use keelson_proto::etcd::mvccpb;
use keelson_store::{Import, Imported, KeyValue, Revision};
use prost::Message;
use sha2::{Digest, Sha256};

use super::auth;
use super::bolt::{Bolt, Bucket};
use super::snapshot::{REVISION_KEY_BYTES, StoredLease, TOMBSTONE};

/// Length of the checksum behind a saved snapshot.
const SUM_BYTES: u64 = 32;
/// Database files are a multiple of this long.
const SECTOR_BYTES: u64 = 512;

/// What is in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// The last revision.
    pub revision: Revision,
    /// Below this is no history.
    pub compact_revision: Revision,
    /// Changes in it, with those of the history.
    pub changes: u64,
    /// Leases.
    pub leases: u64,
    /// Bytes of the database.
    pub size_bytes: u64,
    /// Whether its checksum was there, and right.
    pub verified: bool,
}

/// How a store is made from a file.
#[derive(Clone, Copy, Debug, Default)]
pub struct Restoring {
    /// Revisions that are left out after the last one, so that no client sees one again.
    pub bump_revision: Revision,
    /// Whether history is forgotten, so that watchers of former revisions are told to begin anew.
    pub mark_compacted: bool,
    /// Take a file that has no checksum, as a copy of a member's own file has not.
    pub skip_hash_check: bool,
}

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// It cannot be read, or is damaged.
    #[error("cannot read the snapshot: {0}")]
    File(#[from] io::Error),
    /// The store cannot be made.
    #[error(transparent)]
    Store(#[from] keelson_store::Fatal),
    /// Its checksum is missing or wrong.
    #[error("{0}")]
    Sum(&'static str),
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the snapshot is damaged: {what}"))
}

/// Checks the checksum behind a snapshot; `false` if there is none.
fn verify(file: &mut File) -> Result<bool, RestoreError> {
    let size = file.seek(SeekFrom::End(0))?;
    if size % SECTOR_BYTES != SUM_BYTES {
        return Ok(false);
    }
    file.seek(SeekFrom::Start(0))?;
    let mut digest = Sha256::new();
    let mut body = io::BufReader::with_capacity(1024 * 1024, &mut *file).take(size - SUM_BYTES);
    let mut block = vec![0; 1024 * 1024];
    loop {
        let count = body.read(&mut block)?;
        if count == 0 {
            break;
        }
        digest.update(&block[..count]);
    }
    let mut sum = [0; SUM_BYTES as usize];
    file.seek(SeekFrom::Start(size - SUM_BYTES))?;
    file.read_exact(&mut sum)?;
    if digest.finalize()[..] == sum[..] { Ok(true) } else { Err(RestoreError::Sum("the snapshot's checksum is wrong")) }
}

/// Revision and sub-revision of a key.
fn revision_of(key: &[u8]) -> io::Result<Revision> {
    let head = key.get(..8).and_then(|head| head.try_into().ok()).map(i64::from_be_bytes);
    head.filter(|revision| *revision > 0 && key.len() >= REVISION_KEY_BYTES).ok_or_else(|| damaged("a revision"))
}

fn visit(bolt: &Bolt, bucket: &[u8], mut each: impl FnMut(&[u8], &[u8]) -> io::Result<()>) -> Result<(), RestoreError> {
    let found: Option<Bucket> = bolt.bucket(bucket)?;
    let Some(found) = found else { return Ok(()) };
    Ok(bolt.visit(&found, &mut each)?)
}

fn compact_revision(bolt: &Bolt) -> Result<Revision, RestoreError> {
    let mut compacted = 0;
    visit(bolt, b"meta", |key, value| {
        if key == b"scheduledCompactRev" || key == b"finishedCompactRev" {
            compacted = compacted.max(revision_of(value)?);
        }
        Ok(())
    })?;
    Ok(compacted)
}

/// Reads what is in a file.
pub fn inspect(path: &Path) -> Result<Contents, RestoreError> {
    let mut file = File::open(path)?;
    let verified = verify(&mut file)?;
    let size = file.seek(SeekFrom::End(0))? - if verified { SUM_BYTES } else { 0 };
    let bolt = Bolt::open(file)?;
    let mut found =
        Contents { size_bytes: size, verified, compact_revision: compact_revision(&bolt)?, ..Contents::default() };
    visit(&bolt, b"key", |key, _| {
        found.revision = found.revision.max(revision_of(key)?);
        found.changes += 1;
        Ok(())
    })?;
    visit(&bolt, b"lease", |_, _| {
        found.leases += 1;
        Ok(())
    })?;
    Ok(found)
}

/// Makes a store in `dir` from a file; returns its revision.
pub fn restore(path: &Path, dir: &Path, how: Restoring) -> Result<Revision, RestoreError> {
    let mut file = File::open(path)?;
    if !verify(&mut file)? && !how.skip_hash_check {
        return Err(RestoreError::Sum(
            "the snapshot has no checksum: it was not made by `snapshot save`; give --skip-hash-check to take it anyway",
        ));
    }
    let bolt = Bolt::open(file)?;
    let mut import = Import::begin(dir, compact_revision(&bolt)?)?;
    let mut last = 1;
    visit(&bolt, b"key", |key, value| {
        let revision = revision_of(key)?;
        last = revision;
        import.change(change(key, value, revision)?).map_err(io::Error::other)
    })?;
    visit(&bolt, b"lease", |_, value| {
        let lease = StoredLease::decode(value).map_err(|_| damaged("a lease"))?;
        import.lease(lease.id, lease.ttl, lease.remaining_ttl).map_err(io::Error::other)
    })?;
    for (name, value) in settings(&bolt)? {
        import.setting(&name, &value)?;
    }
    Ok(import.finish(last + how.bump_revision, how.mark_compacted)?)
}

fn change(key: &[u8], value: &[u8], revision: Revision) -> io::Result<Imported> {
    let kv = mvccpb::KeyValue::decode(value).map_err(|_| damaged("a value"))?;
    if key.get(REVISION_KEY_BYTES) == Some(&TOMBSTONE) {
        return Ok(Imported::Delete(kv.key.to_vec(), revision));
    }
    Ok(Imported::Put(KeyValue {
        key: kv.key,
        value: kv.value,
        create_revision: kv.create_revision,
        mod_revision: revision,
        version: kv.version,
        lease: kv.lease,
    }))
}

/// Users and roles, as settings.
fn settings(bolt: &Bolt) -> Result<auth::Pairs, RestoreError> {
    let (mut enabled, mut revision) = (false, 1);
    visit(bolt, b"auth", |key, value| {
        match key {
            b"authEnabled" => enabled = value == [1],
            b"authRevision" => revision = value.try_into().map(u64::from_be_bytes).unwrap_or(1),
            _ => {}
        }
        Ok(())
    })?;
    let pairs = |bucket: &[u8]| {
        let mut found = auth::Pairs::new();
        visit(bolt, bucket, |key, value| {
            found.push((key.to_vec(), value.to_vec()));
            Ok(())
        })?;
        Ok::<_, RestoreError>(found)
    };
    Ok(auth::import(enabled, revision, &pairs(b"authUsers")?, &pairs(b"authRoles")?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_store::{Kv, LocalKv, Op, Options, PutRequest, StateMachine, Txn};

    async fn put(kv: &LocalKv, key: &str, lease: i64) {
        let put = PutRequest { lease, ..PutRequest::new(key.to_owned(), "v".to_owned()) };
        kv.txn(Txn { success: vec![Op::Put(put)], ..Txn::default() }).await.expect("written");
    }

    /// What our own snapshots hold comes back, with and without its history.
    #[tokio::test]
    async fn snapshots_come_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let kv = LocalKv::open(&dir.path().join("from")).expect("a store");
        kv.lease_grant(5, 600).await.expect("a lease");
        for key in ["a", "b", "a", "c"] {
            put(&kv, key, if key == "c" { 5 } else { 0 }).await;
        }
        kv.compact(3).await.expect("compacted");
        put(&kv, "d", 0).await;
        let file = dir.path().join("snapshot.db");
        let open = File::options().read(true).write(true).create_new(true).open(&file).expect("a file");
        super::super::snapshot::write(&kv.view(), open).expect("written");
        let found = inspect(&file).expect("readable");
        assert_eq!((found.revision, found.compact_revision, found.leases, found.verified), (6, 3, 1, false));
        let target = dir.path().join("to");
        assert!(matches!(restore(&file, &target, Restoring::default()), Err(RestoreError::Sum(_))));
        let kept = Restoring { skip_hash_check: true, ..Restoring::default() };
        assert_eq!(restore(&file, &target, kept).expect("restored"), 6);
        let machine = StateMachine::open(&target, Options::default()).expect("opens");
        let (ours, theirs) = (kv.view(), machine.view());
        let all = keelson_store::KeyRange::From(Default::default());
        assert_eq!(ours.range(&all).collect::<Vec<_>>(), theirs.range(&all).collect::<Vec<_>>());
        assert_eq!((theirs.revision(), theirs.compact_revision()), (6, 3));
        let bumped = Restoring { bump_revision: 100, mark_compacted: true, skip_hash_check: true };
        assert_eq!(restore(&file, &dir.path().join("bumped"), bumped).expect("restored"), 106);
    }

    #[test]
    fn other_files_are_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("x");
        std::fs::write(&file, vec![7; 8192 + 32]).expect("written");
        assert!(matches!(inspect(&file), Err(RestoreError::Sum(_))));
        std::fs::write(&file, vec![7; 8192]).expect("written");
        assert!(matches!(inspect(&file), Err(RestoreError::File(_))));
    }
}
