//! The files that the log is kept in: a directory of the machine, or that of a simulation.
//!
//! Invariant: what a file's `write_all_at` returned for is on disk, once [`Files::settle`] has returned too where there
//! is one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::future::BoxFuture;

use crate::limits::SEGMENT_BYTES;

/// An open file of the log.
pub trait LogFile: Send + Sync {
    /// Writes all bytes.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Reads as many bytes as there is room for.
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;
}

impl LogFile for File {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, bytes, offset)
    }
}

/// A directory of such files. Names are durable when a function that changes them, and then [`Files::sync`], returned.
pub trait Files: Send + Sync {
    /// The files' names.
    fn list(&self) -> io::Result<Vec<String>>;

    /// A whole file.
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;

    /// Opens a file that is there; a write to it returns when it is on disk.
    fn open(&self, name: &str) -> io::Result<Arc<dyn LogFile>>;

    /// Makes a file of zeros, on disk when this returns; `filled`: its blocks are there as well.
    fn create(&self, name: &str, bytes: u64, filled: bool) -> io::Result<()>;

    /// Gives a file another name.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes names durable.
    fn sync(&self) -> io::Result<()>;

    /// A number that was not used before.
    fn salt(&self) -> io::Result<u64>;

    /// Size of a segment.
    fn segment_bytes(&self) -> u64 {
        SEGMENT_BYTES
    }

    /// What a simulation waits for after a write; elsewhere writes return when they are done, and are made on a thread.
    fn settle(&self) -> Option<BoxFuture<'static, io::Result<()>>> {
        None
    }
}

/// A directory of the machine.
pub struct Directory(PathBuf);

impl Directory {
    /// Makes the directory if it is not there.
    pub fn open(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        Ok(Self(path.to_path_buf()))
    }
}

impl Files for Directory {
    fn list(&self) -> io::Result<Vec<String>> {
        fs::read_dir(&self.0)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(self.0.join(name))?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(nix::libc::O_DSYNC);
        Ok(Arc::new(options.open(self.0.join(name))?))
    }

    fn create(&self, name: &str, bytes: u64, filled: bool) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(self.0.join(name))?;
        if !filled {
            file.set_len(bytes)?;
            return file.sync_all();
        }
        let zeros = vec![0; 256 * 1024];
        let mut left = bytes;
        while left > 0 {
            let step = left.min(zeros.len() as u64);
            file.write_all(&zeros[..step as usize])?;
            left -= step;
        }
        file.sync_all()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.0.join(from), self.0.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.0.join(name))
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.0)?.sync_all()
    }

    fn salt(&self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        Read::read_exact(&mut File::open("/dev/urandom")?, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
}
