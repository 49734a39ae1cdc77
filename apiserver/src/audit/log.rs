//! The audit log file: lines, a new file when one is full, old files kept for a time and compressed if wanted.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;

const MEGABYTE: u64 = 1 << 20;
/// Size of a file that has no limit given, bytes.
const DEFAULT_MAX_BYTES: u64 = 100 * MEGABYTE;
const SECONDS_OF_DAY: i64 = 24 * 3600;
/// What tells old files apart; they sort by it.
const STAMP: &str = "%Y-%m-%dT%H-%M-%S%.3f";

/// How the file is kept.
#[derive(Clone, Debug, Default)]
pub struct Rotation {
    /// Megabytes after which a new file is begun; 0: 100.
    pub max_megabytes: u64,
    /// Old files that are kept; 0: all.
    pub max_backups: usize,
    /// Days for which old files are kept; 0: for ever.
    pub max_days: i64,
    /// Whether old files are compressed.
    pub compress: bool,
}

/// Where lines go.
pub enum Target {
    /// Standard output.
    Stdout,
    /// A file.
    File(LogFile),
}

impl Target {
    /// Opens a path; `-` is standard output.
    pub fn open(path: &Path, rotation: Rotation) -> Result<Self, String> {
        if path == Path::new("-") {
            return Ok(Self::Stdout);
        }
        LogFile::open(path, rotation)
            .map(Self::File)
            .map_err(|e| format!("cannot open the audit log {}: {e}", path.display()))
    }

    /// Writes a line.
    pub fn line(&mut self, line: &str) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(line.as_bytes())?;
                out.write_all(b"\n")
            }
            Self::File(file) => file.line(line),
        }
    }
}

/// A file that lines are added to.
pub struct LogFile {
    path: PathBuf,
    rotation: Rotation,
    file: File,
    size: u64,
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

impl LogFile {
    fn open(path: &Path, rotation: Rotation) -> io::Result<Self> {
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            fs::create_dir_all(dir)?;
        }
        let file = append(path)?;
        let size = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), rotation, file, size })
    }

    fn limit(&self) -> u64 {
        match self.rotation.max_megabytes {
            0 => DEFAULT_MAX_BYTES,
            megabytes => megabytes.saturating_mul(MEGABYTE),
        }
    }

    fn line(&mut self, line: &str) -> io::Result<()> {
        let bytes = line.len() as u64 + 1;
        if self.size > 0 && self.size + bytes > self.limit() {
            self.rotate(jiff::Timestamp::now())?;
        }
        // One write, so that a line is never mixed with another's.
        let mut whole = Vec::with_capacity(line.len() + 1);
        whole.extend_from_slice(line.as_bytes());
        whole.push(b'\n');
        self.file.write_all(&whole)?;
        self.size += bytes;
        Ok(())
    }

    /// `dir/audit.log` is kept as `dir/audit-2026-01-02T03-04-05.678.log`.
    fn names(&self) -> (String, String) {
        let text = |part: Option<&std::ffi::OsStr>| part.map(|p| p.to_string_lossy().into_owned()).unwrap_or_default();
        let extension = self.path.extension().map(|e| format!(".{}", e.to_string_lossy())).unwrap_or_default();
        (format!("{}-", text(self.path.file_stem())), extension)
    }

    fn rotate(&mut self, now: jiff::Timestamp) -> io::Result<()> {
        let (prefix, extension) = self.names();
        let old = self.path.with_file_name(format!("{prefix}{}{extension}", now.strftime(STAMP)));
        fs::rename(&self.path, &old)?;
        self.file = append(&self.path)?;
        self.size = 0;
        if self.rotation.compress {
            compress(&old)?;
        }
        self.prune(now)
    }

    /// Removes the old files that are too many or too old.
    fn prune(&self, now: jiff::Timestamp) -> io::Result<()> {
        let dir = self.path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let (prefix, extension) = self.names();
        let compressed = format!("{extension}.gz");
        let mut old = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let stamp = name.strip_prefix(&prefix).and_then(|rest| {
                rest.strip_suffix(&compressed).or_else(|| rest.strip_suffix(&extension)).map(str::to_owned)
            });
            if let Some(stamp) = stamp
                && let Ok(time) = jiff::civil::DateTime::strptime(STAMP, &stamp)
                && let Ok(time) = time.to_zoned(jiff::tz::TimeZone::UTC)
            {
                old.push((time.timestamp(), entry.path()));
            }
        }
        old.sort();
        old.reverse();
        for (index, (time, path)) in old.into_iter().enumerate() {
            let too_many = self.rotation.max_backups > 0 && index >= self.rotation.max_backups;
            let age = now.as_second() - time.as_second();
            let too_old = self.rotation.max_days > 0 && age > self.rotation.max_days * SECONDS_OF_DAY;
            if too_many || too_old {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

fn compress(path: &Path) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".gz");
    let target = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&name)?;
    let mut encoder = GzEncoder::new(target, Compression::default());
    io::copy(&mut File::open(path)?, &mut encoder)?;
    encoder.finish()?.sync_all()?;
    fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn full_files_are_put_aside_and_the_oldest_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let rotation = Rotation { max_megabytes: 1, max_backups: 2, ..Rotation::default() };
        let mut log = LogFile::open(&path, rotation).unwrap();
        let time = |second: i64| jiff::Timestamp::from_second(1_700_000_000 + second).unwrap();
        for second in 0..4 {
            log.line("x").unwrap();
            log.rotate(time(second)).unwrap();
        }
        let names = files(dir.path());
        assert_eq!(names.len(), 3, "{names:?}");
        assert!(names[0].starts_with("audit-2023-11-14T22-13-22.000") && names[2] == "audit.log", "{names:?}");
        log.rotation.max_days = 1;
        log.prune(time(3 + 2 * SECONDS_OF_DAY)).unwrap();
        assert_eq!(files(dir.path()), ["audit.log"]);
    }

    #[test]
    fn a_line_that_does_not_fit_begins_a_new_file_and_the_old_one_is_compressed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let mut log =
            LogFile::open(&path, Rotation { max_megabytes: 1, compress: true, ..Rotation::default() }).unwrap();
        let long = "y".repeat(600_000);
        log.line(&long).unwrap();
        log.line(&long).unwrap();
        let names = files(dir.path());
        assert!(names.len() == 2 && names[0] == "a" && names[1].ends_with(".gz"), "{names:?}");
        assert_eq!(fs::metadata(&path).unwrap().len(), 600_001);
    }
}
