//! Versions: this program's, and which may follow which on the same data.
//!
//! Invariant: data is opened only by a version that was made to read it; a refusal says which one to use.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::identity::write_private;

/// The version with a mark before it, by which it is found in the program's file.
static MARKED: &str = concat!("keelson-version=", env!("CARGO_PKG_VERSION"));
/// Format of what is in a data directory. It changes when an older version could no longer read it: 2 deflates definitions.
const FORMAT: u32 = 2;
/// The oldest format that this version reads.
const OLDEST_FORMAT: u32 = 1;
/// The file that says so.
const FILE: &str = "format.json";
/// Minor versions that one step may go, up or down.
const MINOR_STEP: u64 = 1;

/// The version of this program.
pub fn own() -> &'static str {
    MARKED.split_once('=').map_or(MARKED, |(_, version)| version)
}

/// Who wrote a data directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Written {
    format: u32,
    version: String,
}

/// Major and minor number.
fn numbers(version: &str) -> Option<(u64, u64)> {
    let mut parts = version.split(['.', '-', '+']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Whether a version may take over what another one ran; the error says which one may.
pub fn step(from: &str, to: &str) -> Result<()> {
    let (Some(old), Some(new)) = (numbers(from), numbers(to)) else {
        bail!("{from:?} and {to:?} are not both versions such as 1.2.3");
    };
    if old.0 != new.0 {
        bail!("from {from} to {to} the major version changes: such a step needs its own instructions");
    }
    if old.1.abs_diff(new.1) > MINOR_STEP {
        let between = if new.1 > old.1 { old.1 + MINOR_STEP } else { old.1 - MINOR_STEP };
        bail!(
            "from {from} to {to} more than one minor version is skipped, which was never tested: go to {}.{between} first",
            old.0
        );
    }
    Ok(())
}

/// Checks that this version may open a data directory, and records that it did.
pub fn admit(data_dir: &Path) -> Result<()> {
    let file = data_dir.join(FILE);
    let own = Written { format: FORMAT, version: own().to_owned() };
    let written = match std::fs::read(&file) {
        Ok(bytes) => {
            serde_json::from_slice::<Written>(&bytes).with_context(|| format!("{} is damaged", file.display()))?
        }
        // New, or from before formats had numbers: that is the first.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Written { format: OLDEST_FORMAT, ..own.clone() },
        Err(error) => return Err(error).with_context(|| file.display().to_string()),
    };
    let dir = data_dir.display();
    if written.format > FORMAT {
        bail!(
            "{dir} was written by keelson {} in format {}; this is {}, which reads formats up to {FORMAT}: start that \
             version again, or restore a snapshot from before the upgrade",
            written.version,
            written.format,
            own.version
        );
    }
    if written.format < OLDEST_FORMAT {
        bail!(
            "{dir} is in format {} of keelson {}; this is {}, which reads formats from {OLDEST_FORMAT}: upgrade through a \
             version in between",
            written.format,
            written.version,
            own.version
        );
    }
    step(&written.version, &own.version)
        .with_context(|| format!("{dir} was last used by keelson {}", written.version))?;
    if !file.exists() || written != own {
        write_private(&file, &serde_json::to_vec(&own)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps() {
        for (from, to, fine) in [
            ("0.1.0", "0.1.0", true),
            ("0.1.0", "0.2.7", true),
            ("0.2.0", "0.1.9-rc.1", true),
            ("0.1.0", "0.3.0", false),
            ("0.3.0", "0.1.0", false),
            ("0.9.0", "1.0.0", false),
            ("x", "0.1.0", false),
        ] {
            assert_eq!(step(from, to).is_ok(), fine, "{from} {to}");
        }
        assert!(step("0.4.0", "0.1.0").unwrap_err().to_string().contains("go to 0.3 first"));
        assert_eq!(own(), env!("CARGO_PKG_VERSION"));
    }

    #[test]
    fn newer_data_is_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        admit(dir.path()).unwrap();
        admit(dir.path()).unwrap();
        let write = |format: u32, version: &str| {
            let written = Written { format, version: version.into() };
            std::fs::write(dir.path().join(FILE), serde_json::to_vec(&written).unwrap()).unwrap();
        };
        write(FORMAT + 1, "9.9.9");
        let refused = admit(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("9.9.9") && refused.contains("restore a snapshot"), "{refused}");
        write(0, own());
        assert!(admit(dir.path()).is_err());
        write(FORMAT, "0.99.0");
        assert!(format!("{:#}", admit(dir.path()).unwrap_err()).contains("last used by keelson 0.99.0"));
        std::fs::write(dir.path().join(FILE), "x").unwrap();
        assert!(admit(dir.path()).unwrap_err().to_string().contains("damaged"));
    }
}
