//! Damage that a simulation does to a store that is closed (a feature): nothing here is called by a server.

use std::path::Path;

use rocksdb::WriteBatch;

use crate::disk::{Disk, Family};
use crate::record;
use crate::{Fatal, Options, generation};

/// Forges the chain hash of the history in `dir`: from its next change on it is not that of other members.
pub fn forge_history(dir: &Path) -> Result<(), Fatal> {
    let disk = Disk::open(&generation::current(dir)?, &Options { inline: true, ..Options::default() })?;
    let Some(mut state) = disk.state()? else { return Ok(()) };
    state.hash[0] ^= 1;
    let forged = record::encode_state(&state);
    let mut batch = WriteBatch::default();
    batch.put_cf(disk.family(Family::Meta)?, record::STATE_KEY, forged);
    disk.write(batch, true)?;
    disk.flush()
}
