//! Segments: files of fixed size that hold frames, filled with zeros before use so that a sync has no metadata to
//! write, and used again when their entries are purged.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};

use super::files::{Files, LogFile};

/// Bytes before a segment's first frame: magic, number, salt, first sequence, checksum.
pub const HEADER_BYTES: usize = 40;
const MAGIC: &[u8; 8] = b"KLSNLOG1";

/// What a segment's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its number; numbers rise by one.
    pub number: u64,
    /// Goes into the checksums of its frames, so that frames of the file's earlier use do not check.
    pub salt: u64,
    /// Sequence of its first frame.
    pub sequence: u64,
}

impl Header {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..16].copy_from_slice(&self.number.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.salt.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.sequence.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..32]);
        bytes[32..36].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a header if it is whole.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let header = bytes.get(..HEADER_BYTES)?;
        let number = |at: usize| header.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
        let crc = u32::from_le_bytes(header[32..36].try_into().ok()?);
        (header.starts_with(MAGIC) && crc == crc32c::crc32c(&header[..32])).then_some(Self {
            number: number(8)?,
            salt: number(16)?,
            sequence: number(24)?,
        })
    }
}

/// A segment's name.
pub fn name(number: u64) -> String {
    format!("{number:016x}.log")
}

/// Numbers of the segments, in order.
pub fn list(files: &dyn Files) -> io::Result<Vec<u64>> {
    let names = files.list()?;
    let number = |name: &String| u64::from_str_radix(name.strip_suffix(".log")?, 16).ok();
    let mut numbers: Vec<u64> = names.iter().filter_map(number).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// Reads a part of a segment.
pub fn read_at(file: &dyn LogFile, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// Prepares files for the next segments.
pub struct Pool {
    files: Arc<dyn Files>,
    prepared: Option<Prepared>,
}

/// The thread that prepares them; a simulation has none.
struct Prepared {
    ready: Receiver<io::Result<String>>,
    used: SyncSender<String>,
}

impl Pool {
    /// Starts to prepare files.
    pub fn start(files: Arc<dyn Files>) -> io::Result<Self> {
        if files.settle().is_some() {
            return Ok(Self { files, prepared: None });
        }
        let (offer, ready) = sync_channel(0);
        let (used, free) = sync_channel::<String>(1);
        let spares = files.clone();
        std::thread::Builder::new().name("log-prepare".into()).spawn(move || {
            for round in 0u64.. {
                let made = free.try_recv().map_or_else(
                    |_| {
                        let spare = format!("{round}.spare");
                        spares.create(&spare, spares.segment_bytes(), true).map(|()| spare)
                    },
                    Ok,
                );
                if offer.send(made).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { files, prepared: Some(Prepared { ready, used }) })
    }

    /// Takes a prepared file as the segment of this number.
    pub fn take(&self, number: u64) -> io::Result<Arc<dyn LogFile>> {
        let target = name(number);
        let prepared = match &self.prepared {
            Some(Prepared { ready, .. }) => {
                ready.recv().map_err(|_| io::Error::other("the log's preparing thread has stopped"))??
            }
            None => {
                let spare = format!("{number}.spare");
                self.files.create(&spare, self.files.segment_bytes(), true)?;
                spare
            }
        };
        self.adopt(&prepared, &target)
    }

    /// The same, if one is ready now.
    pub fn take_if_ready(&self, number: u64) -> io::Result<Option<Arc<dyn LogFile>>> {
        let Some(Prepared { ready, .. }) = &self.prepared else { return Ok(None) };
        match ready.try_recv() {
            Ok(prepared) => Ok(Some(self.adopt(&prepared?, &name(number))?)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(io::Error::other("the log's preparing thread has stopped")),
        }
    }

    fn adopt(&self, prepared: &str, target: &str) -> io::Result<Arc<dyn LogFile>> {
        self.files.rename(prepared, target)?;
        let file = self.files.open(target)?;
        self.files.sync()?;
        Ok(file)
    }

    /// Gives a segment's file back: it is used again, or removed.
    pub fn give_back(&self, number: u64) -> io::Result<()> {
        let Some(Prepared { used, .. }) = &self.prepared else { return self.files.remove(&name(number)) };
        let spare = format!("{number:016x}.used");
        self.files.rename(&name(number), &spare)?;
        match used.try_send(spare) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(spare) | TrySendError::Disconnected(spare)) => self.files.remove(&spare),
        }
    }
}

/// Removes prepared files that a former process left.
pub fn remove_spares(files: &dyn Files) -> io::Result<()> {
    for name in files.list()? {
        if name.ends_with(".spare") || name.ends_with(".used") {
            files.remove(&name)?;
        }
    }
    Ok(())
}
