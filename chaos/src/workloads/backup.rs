//! Backups are taken from any member while keys change, and each is restored: the store that comes of it is judged.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use keelson_proto::etcd::etcdserverpb as pb;
use keelson_raft::etcd::restore::{Restoring, restore};
use keelson_store::{KeyRange, Options, StateMachine};
use parking_lot::Mutex;

use super::{Checked, Workload};
use crate::checkers::backup::{self, Backup, Write};
use crate::checkers::{Fault, Verdict};
use crate::context::Process;
use crate::etcd::{self, Answer, Client, Failure};

/// Pairs of keys.
const PAIRS: u64 = 12;
/// One operation in so many is a backup.
const BACKUPS: u64 = 400;
/// Longest pause between operations of a client.
const PAUSE: Duration = Duration::from_millis(40);
/// How long a backup may take to arrive.
const PATIENCE: Duration = Duration::from_secs(30);
/// Largest backup, bytes.
const MOST_BYTES: usize = 1 << 30;
const PREFIX: &str = "backup/";

/// The workload.
#[derive(Default)]
pub struct Backups {
    writes: Mutex<Vec<Write>>,
    backups: Mutex<Vec<Backup>>,
    /// Backups that cannot be restored, and why.
    broken: Mutex<Vec<String>>,
}

#[async_trait]
impl Workload for Backups {
    async fn client(&self, process: &mut Process) {
        while process.goes_on() {
            if process.below(BACKUPS) == 0 {
                self.back_up(process).await;
            } else {
                self.write(process).await;
            }
            process.think(PAUSE).await;
        }
    }

    async fn finish(&self, process: &mut Process) -> anyhow::Result<()> {
        self.back_up(process).await;
        Ok(())
    }

    fn check(&self) -> Checked {
        let (writes, backups) = (self.writes.lock(), self.backups.lock());
        let broken = self.broken.lock();
        let broken = broken.iter().map(|why| Fault::new("backup-not-restored", why.clone()));
        let verdict = backup::check(&writes, &backups).and(Verdict::of(broken.collect()));
        Checked { operations: writes.len() + backups.len(), verdict }
    }
}

impl Backups {
    async fn write(&self, process: &mut Process) {
        let (pair, value, client) = (process.below(PAIRS), process.shared.unique(), process.client());
        let keys = [format!("{PREFIX}{pair}/one"), format!("{PREFIX}{pair}/other")];
        let success = keys.iter().map(|key| etcd::put_op(key, value.to_string())).collect();
        let call = client.txn(pb::TxnRequest { success, ..Default::default() });
        let (operation, _) = process.perform((), true, call, |answer| etcd::revision(&answer.header)).await;
        self.writes.lock().push(Write { pair, value, start: operation.start, outcome: operation.outcome });
    }

    async fn back_up(&self, process: &mut Process) {
        let (client, member) = (process.client(), process.member());
        let Ok(dir) = tempfile::tempdir_in(fast_directory()) else { return };
        let file = dir.path().join("backup.db");
        let (operation, _) = process.perform((), false, fetch(&client, &file), |()| ()).await;
        if operation.outcome.ok().is_none() {
            return;
        }
        match contents(&file, &dir.path().join("restored")) {
            Ok((revision, found)) => self.backups.lock().push(Backup { end: operation.end, revision, found }),
            Err(why) => self.broken.lock().push(format!("one of member {}: {why:#}", member + 1)),
        }
    }
}

/// Where files cost no disk, if there is such a place.
fn fast_directory() -> PathBuf {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() }
}

/// Writes a backup to a file. What comes in part only is no backup, and says nothing.
async fn fetch(client: &Client, to: &Path) -> Answer<()> {
    let fetched = async {
        let mut file = File::create(to)?;
        let mut parts = client.maintenance().snapshot(pb::SnapshotRequest {}).await?.into_inner();
        let mut bytes = 0;
        while let Some(part) = parts.message().await? {
            bytes += part.blob.len();
            anyhow::ensure!(bytes <= MOST_BYTES, "the backup is larger than {MOST_BYTES} bytes");
            file.write_all(&part.blob)?;
        }
        Ok::<_, anyhow::Error>(())
    };
    match tokio::time::timeout(PATIENCE, fetched).await {
        Ok(fetched) => fetched.map_err(|error| Failure::Unknown(format!("{error:#}"))),
        Err(_) => Err(Failure::Unknown("no backup in time".into())),
    }
}

type Contents = (i64, BTreeMap<u64, [Option<backup::Found>; 2]>);

/// Makes a store from a backup and reads what it holds.
fn contents(file: &Path, dir: &Path) -> anyhow::Result<Contents> {
    let revision = restore(file, dir, Restoring::default())?;
    let store = StateMachine::open(dir, Options { inline: true, ..Options::default() })?;
    let view = store.view();
    anyhow::ensure!(view.revision() == revision, "it is at revision {}, not {revision}", view.revision());
    let mut found: BTreeMap<u64, [Option<backup::Found>; 2]> = BTreeMap::new();
    let range = KeyRange::Range(Bytes::from_static(PREFIX.as_bytes()), etcd::prefix_end(PREFIX));
    for kv in view.range(&range) {
        let (key, value) = (etcd::text(&kv.key), etcd::text(&kv.value));
        let rest = key.strip_prefix(PREFIX).and_then(|rest| rest.split_once('/'));
        let Some((pair, which)) = rest.and_then(|(pair, which)| Some((pair.parse().ok()?, which))) else { continue };
        let value = value.parse().map_err(|_| anyhow::anyhow!("{key} holds {value:?}"))?;
        found.entry(pair).or_default()[usize::from(which == "other")] = Some((value, kv.mod_revision));
    }
    Ok((revision, found))
}
