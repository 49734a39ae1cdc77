//! A file of the log that is written past the page cache, one request to the disk for each write.
//!
//! Through the page cache each synced write dirties a page, looks for dirty pages and waits twice, which takes about twice the
//! processor time. Past it, whole blocks must be written: the block that the last write ended in is written again with the
//! next one, as the page cache would do.
//!
//! Invariant: writes follow one another, each where the last one ended, or begin the file anew; behind them is nothing that is
//! needed. What `write_all_at` returned for is on disk.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use parking_lot::Mutex;

use super::files::LogFile;

/// What a write begins and ends at multiples of: at least the block of any disk and file system.
const BLOCK_BYTES: usize = 4096;
const BLOCK: u64 = BLOCK_BYTES as u64;

/// An open file.
pub struct Direct {
    /// For reads, and for writes where the file system takes none past its cache.
    cached: File,
    direct: Option<File>,
    tail: Mutex<Tail>,
}

/// Where the last write ended, and the bytes of its block before that.
#[derive(Default)]
struct Tail {
    end: u64,
    bytes: Vec<u8>,
}

impl Direct {
    /// Opens a file that is there.
    pub fn open(path: &Path) -> io::Result<Self> {
        let synced = nix::libc::O_DSYNC;
        let mut options = OpenOptions::new();
        let cached = options.read(true).write(true).custom_flags(synced).open(path)?;
        // Not every file system knows it.
        let direct = OpenOptions::new().write(true).custom_flags(synced | nix::libc::O_DIRECT).open(path).ok();
        Ok(Self { cached, direct, tail: Mutex::default() })
    }

    /// The bytes of the block that `offset` is in, before it.
    fn before(&self, tail: &mut Tail, offset: u64) -> io::Result<Vec<u8>> {
        let length = (offset % BLOCK) as usize;
        if tail.end == offset && tail.bytes.len() == length {
            return Ok(std::mem::take(&mut tail.bytes));
        }
        let mut bytes = vec![0; length];
        self.cached.read_exact_at(&mut bytes, offset - length as u64)?;
        Ok(bytes)
    }
}

/// Bytes in whole blocks, followed by zeros, at an address that the disk takes.
struct Blocks {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl Blocks {
    fn of(parts: [&[u8]; 2]) -> Self {
        let taken = parts[0].len() + parts[1].len();
        let length = taken.next_multiple_of(BLOCK_BYTES);
        let mut bytes: Vec<u8> = Vec::with_capacity(length + BLOCK_BYTES);
        let start = bytes.as_ptr().align_offset(BLOCK_BYTES);
        bytes.resize(start, 0);
        parts.iter().for_each(|part| bytes.extend_from_slice(part));
        // Within the capacity: the bytes stay where they are.
        bytes.resize(start + length, 0);
        Self { bytes, start, length }
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.length]
    }
}

impl LogFile for Direct {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let Some(direct) = &self.direct else { return self.cached.write_all_at(bytes, offset) };
        let mut tail = self.tail.lock();
        let before = self.before(&mut tail, offset)?;
        let blocks = Blocks::of([&before, bytes]);
        match direct.write_all_at(blocks.as_slice(), offset - before.len() as u64) {
            // Nothing was written: blocks of this disk are larger than any that are known.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => self.cached.write_all_at(bytes, offset)?,
            written => written?,
        }
        tail.end = offset + bytes.len() as u64;
        let partial = (tail.end % BLOCK) as usize;
        let whole = before.len() + bytes.len();
        tail.bytes = blocks.as_slice()[whole - partial..whole].to_vec();
        Ok(())
    }

    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.cached.read_exact_at(bytes, offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_follow_one_another_and_what_is_behind_them_is_zero() {
        let dir = tempfile::tempdir_in(".").expect("a directory");
        let path = dir.path().join("file");
        for cached in [false, true] {
            std::fs::write(&path, vec![9; 4 * BLOCK_BYTES]).expect("a file");
            let mut file = Direct::open(&path).expect("opened");
            if cached {
                file.direct = None;
            }
            let (mut end, mut want) = (0, Vec::new());
            for (round, length) in [40, 1, BLOCK_BYTES - 41, 5, BLOCK_BYTES, 3].into_iter().enumerate() {
                let bytes = vec![round as u8 + 1; length];
                file.write_all_at(&bytes, end).expect("written");
                want.extend(bytes);
                end += length as u64;
                let mut found = vec![0; want.len()];
                file.read_exact_at(&mut found, 0).expect("read");
                assert!(found == want, "round {round}");
            }
            // Another one goes on where it ended, and one begins anew.
            drop(file);
            let file = Direct::open(&path).expect("opened");
            file.write_all_at(b"more", end).expect("written");
            want.extend(b"more");
            let found = std::fs::read(&path).expect("read");
            assert!(found[..want.len()] == want);
            assert_eq!(found.len(), 4 * BLOCK_BYTES, "it keeps its length");
            file.write_all_at(b"anew", 0).expect("written");
            assert!(std::fs::read(&path).expect("read").starts_with(b"anew"));
        }
    }
}
