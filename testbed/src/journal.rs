//! What a testbed created, a line each, written and synced before the creation.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// Something outside the testbed's directory that has to be removed again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Made {
    /// A network namespace, by its name in `/run/netns`; all processes of a host are in it or below one that is.
    Namespace(String),
    /// The mount that `ip netns` keeps namespaces in, where there was none yet.
    NamespacesMount,
    /// An interface of the machine: the bridge, or the outer end of a host's pair.
    Link(String),
    /// A cgroup with all below it.
    Cgroup(PathBuf),
}

/// The journal of a directory.
#[derive(Debug)]
pub struct Journal {
    file: Mutex<File>,
    entries: Mutex<Vec<Made>>,
}

const FILE: &str = "journal";

impl Journal {
    /// A new journal; the directory must be new or empty.
    pub fn create(dir: &Path) -> Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("cannot create {}", dir.display()))?;
        if let Some(journal) = Self::open(dir)? {
            return Ok(journal); // a creation was cut short right after this
        }
        if std::fs::read_dir(dir)?.next().is_some() {
            bail!("{} is not empty and was not made by a testbed: choose another directory", dir.display());
        }
        let file = OpenOptions::new().create_new(true).append(true).open(dir.join(FILE))?;
        file.sync_all()?;
        Ok(Self { file: Mutex::new(file), entries: Mutex::default() })
    }

    /// The journal of `dir`, if it has one.
    pub fn open(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(FILE);
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            result => result.with_context(|| path.display().to_string())?,
        };
        let file = OpenOptions::new().append(true).open(&path)?;
        Ok(Some(Self { file: Mutex::new(file), entries: Mutex::new(parse(&text)) }))
    }

    /// Notes what is created next. `exists` tells whether it is there already, which is refused unless it is ours.
    /// Returns whether it has to be created.
    pub fn intend(&self, made: Made, exists: bool) -> Result<bool> {
        if self.entries.lock().contains(&made) {
            return Ok(!exists);
        }
        if exists {
            bail!("{made:?} is there already and was not made by this testbed: rename or remove it");
        }
        let mut line = serde_json::to_string(&made)?;
        line.push('\n');
        let mut file = self.file.lock();
        file.write_all(line.as_bytes()).context("write the journal")?;
        file.sync_data().context("write the journal")?;
        self.entries.lock().push(made);
        Ok(true)
    }

    /// All that was intended, in order.
    pub fn entries(&self) -> Vec<Made> {
        self.entries.lock().clone()
    }
}

/// Entries of a journal; a last line cut short was never acted upon.
fn parse(text: &str) -> Vec<Made> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_intended_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::create(dir.path()).unwrap();
        let link = Made::Link("a".into());
        assert!(journal.intend(link.clone(), false).unwrap());
        assert!(!journal.intend(link.clone(), true).unwrap(), "ours and there");
        assert!(journal.intend(Made::Namespace("b".into()), true).is_err(), "somebody else's");
        let mut file = OpenOptions::new().append(true).open(dir.path().join(FILE)).unwrap();
        file.write_all(b"{\"link\":").unwrap();
        let again = Journal::open(dir.path()).unwrap().unwrap();
        assert_eq!(again.entries(), [link]);
    }

    #[test]
    fn a_directory_with_something_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("thesis.txt"), "x").unwrap();
        assert!(Journal::create(dir.path()).is_err());
    }
}
