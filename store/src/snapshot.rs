//! Copies of the whole state: taking one without stopping writes, and replacing the state by one.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::disk::Disk;
use crate::machine::{StateMachine, load};
use crate::record::ChainHash;
use crate::steps::step;
use crate::{Fatal, Revision, generation};

/// What a checkpoint contains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointInfo {
    /// Index of the last entry applied in it.
    pub applied: u64,
    /// That entry's blob.
    pub meta: Bytes,
    /// Its revision.
    pub revision: Revision,
    /// History below this is not in it.
    pub compact_revision: Revision,
    /// The chain hash at `revision`.
    pub hash: ChainHash,
}

/// Reads what the checkpoint in `dir` contains.
pub fn inspect_checkpoint(dir: &Path) -> Result<CheckpointInfo, Fatal> {
    let state = Disk::read_state_in(dir)?
        .ok_or_else(|| Fatal::Corrupt(format!("{} contains no state of a store", dir.display())))?;
    Ok(CheckpointInfo {
        applied: state.applied,
        meta: state.meta,
        revision: state.revision,
        compact_revision: state.compact_revision,
        hash: state.hash,
    })
}

impl StateMachine {
    /// Writes a checkpoint of an applied state to `dir`, which must not exist while its parent must. Files are
    /// linked where the file system allows it; writes go on meanwhile. If what it reads is damaged, the machine stops.
    pub fn checkpoint(&self, dir: &Path) -> Result<CheckpointInfo, Fatal> {
        let disk = self.published.load().disk.clone();
        disk.checkpoint(dir).and_then(|()| inspect_checkpoint(dir)).inspect_err(|fatal| self.stop_if_damaged(fatal))
    }

    fn stop_if_damaged(&self, fatal: &Fatal) {
        if matches!(fatal, Fatal::Corrupt(_)) {
            self.fail(fatal);
        }
    }

    /// Reads all of a checkpoint of this machine before it is given to others. What is damaged there is damaged here, since
    /// the two share their files: the machine stops.
    pub fn verify_checkpoint(&self, dir: &Path) -> Result<(), Fatal> {
        Disk::verify(dir).inspect_err(|fatal| self.stop_if_damaged(fatal))
    }

    /// Replaces the whole state by the checkpoint in `dir`, which is moved away. After a crash either the old or the
    /// new state is there. Watches go on from the new state's history, or are cut as compacted. When the checkpoint
    /// is not readable the old state stays. A machine whose own files are damaged applies again afterwards; watches
    /// that ended stay ended.
    pub fn install(&self, dir: &Path) -> Result<CheckpointInfo, Fatal> {
        let _applying = self.applying.lock();
        let info = inspect_checkpoint(dir)?;
        let number = generation::number(&self.root)? + 1;
        let target = generation::path(&self.root, number);
        bring(dir, &target)?;
        let opened = Disk::open(&target, &self.options).and_then(|disk| {
            let disk = Arc::new(disk);
            Ok((load(disk.clone())?, disk))
        });
        let (state, disk) = match opened {
            Ok(opened) => opened,
            Err(fatal) => {
                if let Err(error) = fs::remove_dir_all(&target) {
                    tracing::warn!(path = %target.display(), %error, "cannot remove a refused checkpoint");
                }
                return Err(fatal);
            }
        };
        if let Err(fatal) = generation::switch(&self.root, number) {
            // Whether the switch reached the disk is unknown.
            self.fail(&fatal);
            return Err(fatal);
        }
        let (revision, compact_revision) = (state.revision, state.compact_revision);
        self.compactor.cancel();
        let old = self.published.swap(Arc::new(state));
        self.hub.replace(&disk, revision);
        self.compactor.request(disk, compact_revision);
        old.disk.supersede();
        Ok(info)
    }
}

/// Moves a directory of files, by copying if it lies on another file system, and makes it durable.
fn bring(from: &Path, to: &Path) -> Result<(), Fatal> {
    let failed = |error: std::io::Error| {
        Fatal::Io(format!("cannot move checkpoint {} to {}: {error}", from.display(), to.display()))
    };
    match fs::remove_dir_all(to) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    step().map_err(failed)?;
    match fs::rename(from, to) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::CrossesDevices => {
            copy(from, to).map_err(failed)?;
            fs::remove_dir_all(from).map_err(failed)?;
        }
        Err(error) => return Err(failed(error)),
    }
    sync(to).map_err(failed)
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

fn sync(dir: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        step()?;
        File::open(entry?.path())?.sync_all()?;
    }
    File::open(dir)?.sync_all()
}
