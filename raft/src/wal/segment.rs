//! Segments: files of fixed size that hold frames, filled with zeros before use so that a sync has no metadata to
//! write, and used again when their entries are purged.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

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

/// A segment's path.
pub fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016x}.log"))
}

/// Numbers of the segments in `dir`, in order.
pub fn list(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        if let Some(number) = name.to_str().and_then(|name| name.strip_suffix(".log"))
            && let Ok(number) = u64::from_str_radix(number, 16)
        {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Opens a segment; a write to it returns when it is on disk.
pub fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(nix::libc::O_DSYNC).open(path)
}

/// Creates a file of zeros, on disk when this returns.
fn create(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    let zeros = vec![0; 256 * 1024];
    let mut left = bytes;
    while left > 0 {
        let step = left.min(zeros.len() as u64);
        file.write_all(&zeros[..step as usize])?;
        left -= step;
    }
    file.sync_all()
}

/// Makes names durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Reads a whole segment.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads a part of a segment.
pub fn read_at(file: &File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// Prepares files for the next segments on a thread of its own.
pub struct Pool {
    dir: PathBuf,
    ready: Receiver<io::Result<PathBuf>>,
    used: SyncSender<PathBuf>,
}

impl Pool {
    /// Starts to prepare files of `bytes` in `dir`.
    pub fn start(dir: &Path, bytes: u64) -> io::Result<Self> {
        let (offer, ready) = sync_channel(0);
        let (used, free) = sync_channel::<PathBuf>(1);
        let spares = dir.to_path_buf();
        std::thread::Builder::new().name("log-prepare".into()).spawn(move || {
            for round in 0u64.. {
                let made = free.try_recv().map_or_else(
                    |_| {
                        let path = spares.join(format!("{round}.spare"));
                        create(&path, bytes).map(|()| path)
                    },
                    Ok,
                );
                if offer.send(made).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { dir: dir.to_path_buf(), ready, used })
    }

    /// Takes a prepared file as the segment of this number.
    pub fn take(&self, number: u64) -> io::Result<Arc<File>> {
        let prepared = self.ready.recv().map_err(|_| io::Error::other("the log's preparing thread has stopped"))??;
        let target = path(&self.dir, number);
        fs::rename(prepared, &target)?;
        let file = open(&target)?;
        sync_dir(&self.dir)?;
        Ok(Arc::new(file))
    }

    /// Gives a segment's file back: it is used again, or removed.
    pub fn give_back(&self, number: u64) -> io::Result<()> {
        let spare = self.dir.join(format!("{number:016x}.used"));
        fs::rename(path(&self.dir, number), &spare)?;
        match self.used.try_send(spare) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(spare) | TrySendError::Disconnected(spare)) => fs::remove_file(spare),
        }
    }
}

/// Removes prepared files that a former process left.
pub fn remove_spares(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "spare" || extension == "used") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}
