//! A member's disk, as its log sees it: what was written but not synced may be lost, torn or kept when the member dies.
//!
//! Invariant: what [`Files::settle`] has returned for survives every crash, unless bits of it are flipped on purpose.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use keelson_raft::{Files, LogFile};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::trace::Trace;

/// Size of a segment of the log: small, so that there are many.
const SEGMENT_BYTES: u64 = 128 * 1024;
/// What a disk writes as a whole or not at all.
const SECTOR_BYTES: usize = 512;
/// How long a sync takes, in microseconds, when the disk is well.
const SYNC_MICROS: Range<u64> = 100..4000;

type Content = Arc<Mutex<Vec<u8>>>;

/// A write that is not synced: where, and what was there before.
struct Unsynced {
    file: Content,
    offset: usize,
    before: Vec<u8>,
    after: Vec<u8>,
}

struct State {
    files: BTreeMap<String, Content>,
    unsynced: Vec<Unsynced>,
    dice: StdRng,
    full: bool,
    /// Writes fail.
    broken: bool,
    /// Syncs fail, and what they were to sync stays unsynced.
    unsyncable: bool,
    /// Further time that each sync takes.
    slow: Duration,
    /// The power goes when so many operations are done.
    power: Option<u32>,
    on_power_cut: Option<Arc<dyn Fn() + Send + Sync>>,
}

/// What went with a crash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Writes that were not synced.
    pub unsynced: usize,
    /// Sectors of them that are as they were before.
    pub sectors: usize,
}

/// A disk.
#[derive(Clone)]
pub struct Disk(Arc<Mutex<State>>, Trace, usize);

impl Disk {
    /// An empty one, of the member `owner`.
    pub fn new(seed: u64, owner: usize, trace: Trace) -> Self {
        let state = State {
            files: BTreeMap::new(),
            unsynced: Vec::new(),
            dice: StdRng::seed_from_u64(seed),
            full: false,
            broken: false,
            unsyncable: false,
            slow: Duration::ZERO,
            power: None,
            on_power_cut: None,
        };
        Self(Arc::new(Mutex::new(state)), trace, owner)
    }

    /// The power goes: each sector that was not synced is lost or kept. A new handle, since the old process may not
    /// write any more.
    pub fn crash(&self) -> (Self, Lost) {
        let mut state = self.0.lock();
        let mut lost = Lost { unsynced: state.unsynced.len(), sectors: 0 };
        let unsynced = std::mem::take(&mut state.unsynced);
        // All lost, all kept, a torn end, or any mix.
        let how = state.dice.random_range(0..4);
        for write in unsynced.iter().rev() {
            let mut file = write.file.lock();
            let sectors = write.after.len().div_ceil(SECTOR_BYTES);
            let torn = state.dice.random_range(0..=sectors);
            for sector in 0..sectors {
                let keep = match how {
                    0 => false,
                    1 => true,
                    2 => sector < torn,
                    _ => state.dice.random_range(0..2) == 0,
                };
                if !keep {
                    let range = sector * SECTOR_BYTES..((sector + 1) * SECTOR_BYTES).min(write.after.len());
                    let at = write.offset + range.start..write.offset + range.end;
                    file[at].copy_from_slice(&write.before[range]);
                    lost.sectors += 1;
                }
            }
        }
        let files = state.files.iter().map(|(name, content)| {
            let copy = content.lock().clone();
            (name.clone(), Arc::new(Mutex::new(copy)))
        });
        let fresh = State {
            files: files.collect(),
            unsynced: Vec::new(),
            dice: StdRng::seed_from_u64(state.dice.random()),
            full: state.full,
            broken: false,
            unsyncable: false,
            slow: state.slow,
            power: None,
            on_power_cut: None,
        };
        (Self(Arc::new(Mutex::new(fresh)), self.1.clone(), self.2), lost)
    }

    /// Whether anything is wrong with it.
    pub fn is_ill(&self) -> bool {
        let state = self.0.lock();
        state.full || state.broken || state.unsyncable || state.power.is_some()
    }

    /// Whether the disk is full.
    pub fn set_full(&self, full: bool) {
        self.0.lock().full = full;
    }

    /// Whether writes fail with an input/output error.
    pub fn set_broken(&self, broken: bool) {
        self.0.lock().broken = broken;
    }

    /// Whether syncs fail.
    pub fn set_unsyncable(&self, unsyncable: bool) {
        self.0.lock().unsyncable = unsyncable;
    }

    /// Further time that syncs take.
    pub fn set_slow(&self, slow: Duration) {
        self.0.lock().slow = slow;
    }

    /// The power goes after so many further operations, whichever they are.
    pub fn cut_power_after(&self, operations: u32, then: Arc<dyn Fn() + Send + Sync>) {
        let mut state = self.0.lock();
        (state.power, state.on_power_cut) = (Some(operations), Some(then));
    }

    /// The power stays, if it has not gone.
    pub fn keep_power(&self) {
        let mut state = self.0.lock();
        (state.power, state.on_power_cut) = (None, None);
    }

    /// Flips a bit in the older half of what the log wrote; says where.
    pub fn flip_bit(&self) -> Option<String> {
        let mut state = self.0.lock();
        let names: Vec<String> = state.files.keys().filter(|name| name.ends_with(".log")).cloned().collect();
        let at = state.dice.random_range(0..names.len().max(1));
        let name = names.get(at)?.clone();
        let content = state.files.get(&name)?.clone();
        let mut content = content.lock();
        let used = content.iter().rposition(|byte| *byte != 0)?;
        let byte = state.dice.random_range(0..used / 2 + 1);
        content[byte] ^= 1 << state.dice.random_range(0..8);
        Some(format!("byte {byte} of {used} in {name}"))
    }

    /// Counts an operation; fails if the power is gone or goes now.
    fn operate(&self) -> io::Result<()> {
        let cut = {
            let mut state = self.0.lock();
            match &mut state.power {
                None => None,
                Some(0) => return Err(io::Error::other("the power is gone")),
                Some(left) => {
                    *left -= 1;
                    if *left == 0 { state.on_power_cut.take() } else { None }
                }
            }
        };
        let Some(cut) = cut else { return Ok(()) };
        cut();
        Err(io::Error::other("the power is gone"))
    }

    fn content(&self, name: &str) -> io::Result<Content> {
        let found = self.0.lock().files.get(name).cloned();
        found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("there is no file {name}")))
    }
}

/// An open file.
struct Open {
    disk: Disk,
    content: Content,
}

impl LogFile for Open {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.disk.operate()?;
        let mut state = self.disk.0.lock();
        if state.full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if state.broken {
            return Err(io::Error::other("input/output error"));
        }
        let offset = offset as usize;
        let mut content = self.content.lock();
        // A frame that is larger than a segment makes its file grow.
        if content.len() < offset + bytes.len() {
            content.resize(offset + bytes.len(), 0);
        }
        let place = &mut content[offset..offset + bytes.len()];
        let before = place.to_vec();
        place.copy_from_slice(bytes);
        state.unsynced.push(Unsynced { file: self.content.clone(), offset, before, after: bytes.to_vec() });
        Ok(())
    }

    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let content = self.content.lock();
        let offset = offset as usize;
        let place = content.get(offset..offset + bytes.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        bytes.copy_from_slice(place);
        Ok(())
    }
}

impl Files for Disk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().files.keys().cloned().collect())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        Ok(self.content(name)?.lock().clone())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        Ok(Arc::new(Open { disk: self.clone(), content: self.content(name)? }))
    }

    fn create(&self, name: &str, bytes: u64, _filled: bool) -> io::Result<()> {
        self.operate()?;
        let mut state = self.0.lock();
        if state.full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.files.insert(name.to_owned(), Arc::new(Mutex::new(vec![0; bytes as usize])));
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.operate()?;
        let content = self.content(from)?;
        let mut state = self.0.lock();
        state.files.remove(from);
        state.files.insert(to.to_owned(), content);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.operate()?;
        let removed = self.0.lock().files.remove(name);
        removed.map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync(&self) -> io::Result<()> {
        self.operate()
    }

    fn salt(&self) -> io::Result<u64> {
        Ok(self.0.lock().dice.random())
    }

    fn segment_bytes(&self) -> u64 {
        SEGMENT_BYTES
    }

    fn settle(&self) -> Option<BoxFuture<'static, io::Result<()>>> {
        let disk = self.clone();
        let settle = async move {
            let (takes, fails) = {
                let mut state = disk.0.lock();
                let micros = state.dice.random_range(SYNC_MICROS);
                (Duration::from_micros(micros) + state.slow, state.unsyncable)
            };
            tokio::time::sleep(takes).await;
            disk.operate()?;
            if fails {
                return Err(io::Error::other("input/output error while syncing"));
            }
            let mut state = disk.0.lock();
            let bytes: usize = state.unsynced.iter().map(|write| write.after.len()).sum();
            state.unsynced.clear();
            drop(state);
            disk.1.note(format_args!("disk {} synced {bytes}", disk.2));
            Ok(())
        };
        Some(settle.boxed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(seed: u64) -> Disk {
        let disk = Disk::new(seed, 0, Trace::begin(None).unwrap());
        disk.create("a", 4096, true).unwrap();
        disk
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_synced_survives_and_the_rest_may_not() {
        let mut kinds = std::collections::BTreeSet::new();
        for seed in 0..40 {
            let disk = disk(seed);
            let file = disk.open("a").unwrap();
            file.write_all_at(&[1; 1024], 0).unwrap();
            disk.settle().unwrap().await.unwrap();
            file.write_all_at(&[2; 1024], 512).unwrap();
            let (after, lost) = disk.crash();
            assert_eq!(lost.unsynced, 1);
            let found = after.read("a").unwrap();
            assert_eq!(&found[..512], [1; 512]);
            let sector = |at: usize| found[at];
            assert!([1, 2].contains(&sector(512)) && [0, 2].contains(&sector(1024)));
            kinds.insert((sector(512), sector(1024)));
        }
        assert_eq!(kinds.len(), 4, "lost, kept, torn both ways: {kinds:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_fails_as_it_is_told() {
        let disk = disk(1);
        let file = disk.open("a").unwrap();
        disk.set_full(true);
        assert_eq!(file.write_all_at(&[1], 0).unwrap_err().kind(), io::ErrorKind::StorageFull);
        disk.set_full(false);
        disk.set_broken(true);
        assert!(file.write_all_at(&[1], 0).is_err());
        disk.set_broken(false);
        disk.set_unsyncable(true);
        file.write_all_at(&[1], 0).unwrap();
        assert!(disk.settle().unwrap().await.is_err());
        let went = Arc::new(Mutex::new(0));
        let gone = went.clone();
        disk.cut_power_after(2, Arc::new(move || *gone.lock() += 1));
        file.write_all_at(&[1], 1).unwrap();
        assert!(file.write_all_at(&[1], 2).is_err() && file.write_all_at(&[1], 3).is_err());
        assert_eq!(*went.lock(), 1);
    }
}
