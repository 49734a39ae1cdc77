//! Which directory holds the current database: `state-N`, named by the file `CURRENT`.
//!
//! Invariant: `CURRENT` is replaced atomically and only after the directory it names is complete, so a crash
//! leaves either the old state or the new one; other state directories are leftovers.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::Fatal;
use crate::steps::step;

const CURRENT: &str = "CURRENT";
const PREFIX: &str = "state-";

fn failed(what: &str, path: &Path, error: &std::io::Error) -> Fatal {
    Fatal::Io(format!("cannot {what} {}: {error}", path.display()))
}

/// Path of a generation.
pub(crate) fn path(root: &Path, number: u64) -> PathBuf {
    root.join(format!("{PREFIX}{number}"))
}

/// The current generation's number; the first one of a new store is chosen and recorded.
pub(crate) fn number(root: &Path) -> Result<u64, Fatal> {
    let file = root.join(CURRENT);
    match fs::read_to_string(&file) {
        Ok(text) => text
            .trim()
            .strip_prefix(PREFIX)
            .and_then(|number| number.parse().ok())
            .ok_or_else(|| Fatal::Corrupt(format!("{} names no state directory", file.display()))),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            fs::create_dir_all(root).map_err(|error| failed("create", root, &error))?;
            switch(root, 1)?;
            Ok(1)
        }
        Err(error) => Err(failed("read", &file, &error)),
    }
}

/// The current directory; leftovers of interrupted installations are removed.
pub(crate) fn current(root: &Path) -> Result<PathBuf, Fatal> {
    let current = path(root, number(root)?);
    for entry in fs::read_dir(root).map_err(|error| failed("list", root, &error))? {
        let entry = entry.map_err(|error| failed("list", root, &error))?;
        let is_state = entry.file_name().to_string_lossy().starts_with(PREFIX);
        if is_state && entry.path() != current {
            fs::remove_dir_all(entry.path()).map_err(|error| failed("remove", &entry.path(), &error))?;
        }
    }
    Ok(current)
}

/// Makes a generation the current one, durably.
pub(crate) fn switch(root: &Path, number: u64) -> Result<(), Fatal> {
    let (file, temporary) = (root.join(CURRENT), root.join("CURRENT.new"));
    let write = || {
        step()?;
        let mut out = File::create(&temporary)?;
        step()?;
        writeln!(out, "{PREFIX}{number}")?;
        out.sync_all()?;
        step()?;
        fs::rename(&temporary, &file)?;
        step()?;
        File::open(root)?.sync_all()?;
        step()
    };
    write().map_err(|error| failed("write", &file, &error))
}
