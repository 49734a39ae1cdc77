//! Makes a store from another one's keys and history, with their revisions kept.
//!
//! Invariant: until [`Import::finish`] returned there is no store in the directory that could be opened by mistake.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rocksdb::WriteBatch;
use sha2::{Digest, Sha256};

use crate::disk::{Disk, Family};
use crate::limits::IMPORT_BATCH_BYTES;
use crate::machine::hash_change;
use crate::record::{self, ChainHash, RevisionRecord, StateRecord};
use crate::{EventKind, Fatal, KeyValue, LeaseId, Revision, generation};

/// One change of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Imported {
    /// The key has this value from its mod revision on.
    Put(KeyValue),
    /// The key is gone from this revision on.
    Delete(Vec<u8>, Revision),
}

impl Imported {
    fn revision(&self) -> Revision {
        match self {
            Self::Put(kv) => kv.mod_revision,
            Self::Delete(_, revision) => *revision,
        }
    }

    fn key(&self) -> &[u8] {
        match self {
            Self::Put(kv) => &kv.key,
            Self::Delete(key, _) => key,
        }
    }

    fn value(&self) -> Option<&KeyValue> {
        match self {
            Self::Put(kv) => Some(kv),
            Self::Delete(..) => None,
        }
    }
}

/// A store that is being made.
pub struct Import {
    root: PathBuf,
    disk: Arc<Disk>,
    batch: WriteBatch,
    batch_bytes: usize,
    /// Versions at or below this have no history.
    base: Revision,
    revision: Revision,
    hash: ChainHash,
    /// Changes of `revision`, not written yet.
    changes: Vec<Imported>,
}

impl Import {
    /// Begins in a directory without a store. History begins at `base`: of what lies below it, only what was there then
    /// is given, in the order of revisions.
    pub fn begin(dir: &Path, base: Revision) -> Result<Self, Fatal> {
        if dir.join("CURRENT").exists() {
            return Err(Fatal::Io(format!("there is a store in {} already", dir.display())));
        }
        let path = generation::path(dir, 1);
        let disk = Arc::new(Disk::open(&path, &crate::Options::default())?);
        let batch = WriteBatch::default();
        let (base, hash) = (base.max(1), [0; 32]);
        Ok(Self { root: dir.to_path_buf(), disk, batch, batch_bytes: 0, base, revision: 1, hash, changes: Vec::new() })
    }

    /// Takes the next change.
    pub fn change(&mut self, change: Imported) -> Result<(), Fatal> {
        let revision = change.revision();
        if revision < self.revision {
            return Err(Fatal::Corrupt(format!("revision {revision} comes after {}", self.revision)));
        }
        if revision > self.revision {
            self.reach(revision)?;
        }
        self.changes.push(change);
        Ok(())
    }

    /// Takes a lease.
    pub fn lease(&mut self, id: LeaseId, granted_ttl: i64, remaining_ttl: i64) -> Result<(), Fatal> {
        let db_key = record::lease_key(id);
        let record = record::encode_pair(&db_key, (granted_ttl.max(1), remaining_ttl.max(0)));
        self.put(Family::Meta, &db_key, record)
    }

    /// Takes a setting.
    pub fn setting(&mut self, name: &[u8], value: &[u8]) -> Result<(), Fatal> {
        let db_key = record::setting_key(name);
        let record = record::encode_setting(&db_key, value);
        self.put(Family::Meta, &db_key, record)
    }

    /// Ends at `revision`, or where the changes end. With `forget` all history before the end is gone.
    pub fn finish(mut self, revision: Revision, forget: bool) -> Result<Revision, Fatal> {
        let end = revision.max(self.revision);
        if end > self.revision {
            // With nothing to ask for between the last change and the end, there is nothing to write either.
            self.base = if forget { end } else { self.base };
            self.reach(end)?;
        }
        self.close()?;
        let compact_revision = if forget { end } else { self.base };
        let state = record::encode_state(&StateRecord {
            revision: end,
            compact_revision: if compact_revision > 1 { compact_revision } else { 0 },
            hash: self.hash,
            ..StateRecord::default()
        });
        self.put(Family::Meta, record::STATE_KEY, state)?;
        self.write()?;
        self.disk.flush()?;
        drop(self.disk);
        generation::switch(&self.root, 1)?;
        Ok(end)
    }

    /// Writes what was collected and goes on at a later revision. A revision without changes has its place in history
    /// too.
    fn reach(&mut self, revision: Revision) -> Result<(), Fatal> {
        self.close()?;
        let next = self.revision + 1;
        self.revision = revision;
        for empty in next.max(self.base)..revision {
            self.history(empty, Vec::new())?;
        }
        Ok(())
    }

    /// Writes the changes of the current revision.
    fn close(&mut self) -> Result<(), Fatal> {
        let (revision, changes) = (self.revision, std::mem::take(&mut self.changes));
        let mut hash = Sha256::new_with_prefix(self.hash);
        hash.update(revision.to_le_bytes());
        let mut listed = Vec::new();
        for change in &changes {
            let db_key = record::data_key(change.key(), revision);
            let version = record::encode_version(&db_key, change.value());
            self.put(Family::Data, &db_key, version)?;
            hash_change(&mut hash, change.key(), change.value());
            let kind = if change.value().is_some() { EventKind::Put } else { EventKind::Delete };
            listed.push((kind, bytes::Bytes::copy_from_slice(change.key())));
        }
        self.hash = hash.finalize().into();
        // Revision 1 is the empty store's: nothing happened in it.
        if revision >= self.base && revision > 1 { self.history(revision, listed) } else { Ok(()) }
    }

    fn history(&mut self, revision: Revision, changes: Vec<(EventKind, bytes::Bytes)>) -> Result<(), Fatal> {
        let db_key = record::revision_key(revision);
        let record = record::encode_revision(&db_key, &RevisionRecord { hash: self.hash, changes });
        self.put(Family::Revs, &db_key, record)
    }

    fn put(&mut self, family: Family, db_key: &[u8], record: Vec<u8>) -> Result<(), Fatal> {
        self.batch_bytes += db_key.len() + record.len();
        self.batch.put_cf(self.disk.family(family)?, db_key, record);
        if self.batch_bytes >= IMPORT_BATCH_BYTES { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<(), Fatal> {
        self.batch_bytes = 0;
        self.disk.write(std::mem::take(&mut self.batch), false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{KeyRange, Options, RangeRequest, StateMachine};

    fn put(key: &str, revision: Revision, create_revision: Revision, version: i64, lease: LeaseId) -> Imported {
        let (key, value) = (key.to_owned().into(), format!("{key}@{revision}").into());
        Imported::Put(KeyValue { key, value, create_revision, mod_revision: revision, version, lease })
    }

    fn made(dir: &Path, base: Revision, end: Revision, forget: bool) -> Result<StateMachine, Fatal> {
        let mut import = Import::begin(dir, base)?;
        for change in [
            put("a", 2, 2, 1, 0),
            put("b", 4, 3, 2, 0),
            put("c", 6, 6, 1, 7),
            put("d", 6, 6, 1, 0),
            Imported::Delete(b"a".to_vec(), 8),
        ] {
            import.change(change)?;
        }
        import.lease(7, 60, 0)?;
        import.setting(b"name", b"value")?;
        import.finish(end, forget)?;
        StateMachine::open(dir, Options::default())
    }

    fn keys_at(machine: &StateMachine, revision: Revision) -> Vec<String> {
        let request = RangeRequest { revision, ..RangeRequest::new(KeyRange::From(Default::default())) };
        let found = machine.view().query(&request).map(|found| found.kvs).unwrap_or_default();
        found.iter().map(|kv| String::from_utf8_lossy(&kv.value).into_owned()).collect()
    }

    #[test]
    fn history_is_kept_from_its_base_on() -> Result<(), Fatal> {
        let dir = tempfile::tempdir().map_err(|error| Fatal::Io(error.to_string()))?;
        let machine = made(dir.path(), 4, 0, false)?;
        let view = machine.view();
        assert_eq!((view.revision(), view.compact_revision()), (8, 4));
        assert_eq!(keys_at(&machine, 0), ["b@4", "c@6", "d@6"]);
        assert_eq!(keys_at(&machine, 5), ["a@2", "b@4"]);
        assert_eq!(keys_at(&machine, 3), Vec::<String>::new(), "compacted");
        let (events, next) = view.history(4, 8).map_err(|error| Fatal::Io(error.to_string()))?;
        assert_eq!((events.len(), next), (4, 9), "revisions without a change are there, without events");
        assert_eq!(view.lease(7).map(|lease| lease.keys().count()), Some(1));
        assert_eq!(view.setting(b"name").map(|value| &value[..]), Some(&b"value"[..]));
        Ok(())
    }

    #[test]
    fn history_can_be_forgotten_and_revisions_moved_on() -> Result<(), Fatal> {
        let dir = tempfile::tempdir().map_err(|error| Fatal::Io(error.to_string()))?;
        let machine = made(dir.path(), 4, 1_000_000, true)?;
        let view = machine.view();
        assert_eq!((view.revision(), view.compact_revision()), (1_000_000, 1_000_000));
        assert_eq!(keys_at(&machine, 0), ["b@4", "c@6", "d@6"]);
        assert_eq!(keys_at(&machine, 8), Vec::<String>::new());
        assert!(Import::begin(dir.path(), 1).is_err(), "a store is not overwritten");
        Ok(())
    }

    #[test]
    fn revisions_must_rise() -> Result<(), Fatal> {
        let dir = tempfile::tempdir().map_err(|error| Fatal::Io(error.to_string()))?;
        let mut import = Import::begin(dir.path(), 1)?;
        import.change(put("a", 5, 5, 1, 0))?;
        assert!(import.change(put("a", 4, 4, 1, 0)).is_err());
        Ok(())
    }
}
