//! Copies of the store, made by the server on time: kept in a directory, and by the leader in an object store.
//!
//! Invariant: a copy has its name only once it is whole and on disk. Beside each lies a file with the cluster's keys and
//! identity (0600), so that both together bring a cluster back whose servers are all lost.

pub mod s3;

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use keelson_controllers::Schedule;
use keelson_raft::Cluster;
use keelson_raft::etcd::snapshot::{Failure, write};
use keelson_store::{Kv, KvError, View};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::care::Care;
use crate::args::ServerArgs;
use crate::identity::write_private;

/// What names begin with.
const PREFIX: &str = "keelson-";
/// What the store's part ends with, and that with the keys.
const STORE: &str = ".db";
const KEYS: &str = ".keys.json";
/// Tries when history is compacted meanwhile.
const ATTEMPTS: u32 = 5;
/// Bytes that are summed up at once.
const SUM_BYTES: usize = 1 << 20;
/// A copy that failed is tried again after this, or after an interval if that is shorter.
const RETRY: Duration = Duration::from_secs(60);

/// The flags of snapshots.
#[derive(clap::Args, Clone, Debug)]
pub struct SnapshotFlags {
    /// How often a copy of the store is saved (0s: never)
    #[arg(long, env = "KEELSON_SNAPSHOT_INTERVAL", default_value = "12h", value_parser = crate::args::config_duration)]
    pub snapshot_interval: Duration,
    /// When copies are saved instead, as cron writes it: "0 */6 * * *"
    #[arg(long, env = "KEELSON_SNAPSHOT_SCHEDULE", value_parser = schedule)]
    pub snapshot_schedule: Option<String>,
    /// How many copies are kept
    #[arg(long, env = "KEELSON_SNAPSHOT_RETENTION", default_value_t = 5)]
    pub snapshot_retention: usize,
    /// Copies that are older go even if fewer are kept (0s: they stay); the newest always stays
    #[arg(long, env = "KEELSON_SNAPSHOT_MAX_AGE", default_value = "0s", value_parser = crate::args::config_duration)]
    pub snapshot_max_age: Duration,
    /// Where they are kept (default: DATA_DIR/snapshots)
    #[arg(long, env = "KEELSON_SNAPSHOT_DIR")]
    pub snapshot_dir: Option<PathBuf>,
    /// An object store that gets the leader's copies too: s3://BUCKET/PREFIX; its keys are in AWS_ACCESS_KEY_ID and
    /// AWS_SECRET_ACCESS_KEY
    #[arg(long, env = "KEELSON_SNAPSHOT_S3", value_name = "s3://BUCKET/PREFIX")]
    pub snapshot_s3: Option<String>,
    /// Address of the object store (default: Amazon's)
    #[arg(long, env = "KEELSON_SNAPSHOT_S3_ENDPOINT", value_name = "https://HOST")]
    pub snapshot_s3_endpoint: Option<String>,
    /// Its region
    #[arg(long, env = "KEELSON_SNAPSHOT_S3_REGION", default_value = "us-east-1")]
    pub snapshot_s3_region: String,
}

fn schedule(text: &str) -> Result<String, String> {
    Schedule::parse(text, None).map(|_| text.to_owned())
}

/// What lies beside a copy: all that a server needs beside the store.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Keys {
    /// The cluster's id.
    pub cluster_id: u64,
    /// Addresses of Services.
    pub service_cidr: String,
    /// Addresses of pods.
    pub cluster_cidr: String,
    /// The cluster's keys. Never logged.
    pub keys: Box<RawValue>,
}

/// The file with the keys that lies beside a copy.
pub fn keys_beside(copy: &Path) -> PathBuf {
    let name = copy.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    copy.with_file_name(format!("{}{KEYS}", name.strip_suffix(STORE).unwrap_or(&name)))
}

/// Saves copies on time until `stop`.
pub async fn run(care: Arc<Care>, args: ServerArgs, stop: CancellationToken) {
    let (flags, data_dir) = (args.snapshots, args.data_dir);
    let directory = flags.snapshot_dir.clone().unwrap_or_else(|| data_dir.join("snapshots"));
    let bucket = match s3::Bucket::of(&flags) {
        Ok(bucket) => bucket,
        Err(error) => {
            warn!(error = format!("{error:#}"), "copies do not go to an object store");
            None
        }
    };
    let Some(mut wait) = next(&flags, jiff::Timestamp::now()) else { return };
    let mut told = keelson_status::Backup {
        place: directory.display().to_string(),
        interval_seconds: wait.as_secs(),
        latest: latest(&directory),
        error: None,
    };
    loop {
        *care.backup.write() = Some(told.clone());
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        let interval = next(&flags, jiff::Timestamp::now()).unwrap_or(RETRY);
        match once(&care, &flags, &directory, bucket.as_ref()).await {
            Ok(file) => {
                info!(file = %file.display(), "a snapshot is saved");
                (told.latest, told.error, wait) = (jiff::Timestamp::now().as_second(), None, interval);
            }
            Err(error) => {
                let error = format!("{error:#}");
                warn!(error, "no snapshot could be saved; trying again");
                (told.error, wait) = (Some(error), interval.min(RETRY));
            }
        }
        told.interval_seconds = interval.as_secs();
    }
}

/// How long until the next copy; `None` if there is to be none.
fn next(flags: &SnapshotFlags, now: jiff::Timestamp) -> Option<Duration> {
    let Some(text) = &flags.snapshot_schedule else {
        return Some(flags.snapshot_interval).filter(|interval| !interval.is_zero());
    };
    let at = Schedule::parse(text, None).ok()?.next(now)?;
    Duration::try_from(at.duration_since(now)).ok()
}

/// Saves one copy, and lets old ones go.
async fn once(
    care: &Arc<Care>,
    flags: &SnapshotFlags,
    directory: &Path,
    bucket: Option<&s3::Bucket>,
) -> Result<PathBuf> {
    let (saving, target) = (care.clone(), directory.to_owned());
    let name = name(jiff::Timestamp::now());
    let file = tokio::task::spawn_blocking(move || save(&saving, &target, &name)).await??;
    let now = jiff::Timestamp::now();
    let kept = names(directory)?;
    for old in superfluous(&kept, flags.snapshot_retention, flags.snapshot_max_age, now) {
        for part in [directory.join(format!("{old}{STORE}")), directory.join(format!("{old}{KEYS}"))] {
            super::place::remove_file(&part)?;
        }
    }
    if let Some(bucket) = bucket
        && care.replica.standing().leader == care.identity.member_id
    {
        bucket.put(&file).await.context("the object store")?;
        bucket.put(&keys_beside(&file)).await.context("the object store")?;
        let there: Vec<String> = bucket.list().await?.iter().filter_map(|name| stem(name)).collect();
        for old in superfluous(&there, flags.snapshot_retention, flags.snapshot_max_age, now) {
            for part in [STORE, KEYS] {
                bucket.delete(&format!("{old}{part}")).await?;
            }
        }
    }
    Ok(file)
}

/// Writes a copy with its checksum and its keys.
pub fn save(care: &Care, directory: &Path, name: &str) -> Result<PathBuf> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).context("the directory of snapshots")?;
    let file = directory.join(format!("{name}{STORE}"));
    let part = directory.join(format!("{name}.part"));
    for attempt in 1.. {
        super::place::remove_file(&part)?;
        match sealed(&care.replica.view(), &part) {
            Ok(()) => break,
            Err(Failure::Kv(KvError::Compacted(_))) if attempt < ATTEMPTS => {}
            Err(Failure::Kv(error)) => return Err(error.into()),
            Err(Failure::Io(error)) => return Err(error).with_context(|| part.display().to_string()),
        }
    }
    let keys = Keys {
        cluster_id: care.identity.cluster_id,
        service_cidr: care.identity.service_cidr.clone(),
        cluster_cidr: care.identity.cluster_cidr.clone(),
        keys: RawValue::from_string(String::from_utf8(care.keeper.pki().to_bundle()?)?)?,
    };
    write_private(&keys_beside(&file), &serde_json::to_vec(&keys)?)?;
    fs::rename(&part, &file)?;
    File::open(directory)?.sync_all()?;
    Ok(file)
}

/// Writes a view to a file, and its checksum behind it.
fn sealed(view: &View, part: &Path) -> Result<(), Failure> {
    let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(part)?;
    let mut file = write(view, file)?;
    file.seek(SeekFrom::Start(0))?;
    let (mut digest, mut block) = (Sha256::new(), vec![0; SUM_BYTES]);
    loop {
        let count = file.read(&mut block)?;
        if count == 0 {
            break;
        }
        digest.update(&block[..count]);
    }
    file.write_all(&digest.finalize())?;
    file.sync_all()?;
    Ok(())
}

/// The name of a copy: names are in the order of time.
pub fn name(at: jiff::Timestamp) -> String {
    format!("{PREFIX}{}", at.strftime("%Y%m%dT%H%M%SZ"))
}

/// When the copy of this name was made.
fn made(name: &str) -> Option<jiff::Timestamp> {
    let time = name.strip_prefix(PREFIX)?;
    let time = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", time).ok()?;
    time.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
}

/// A file's name without its end, if it is a copy of ours.
fn stem(file: &str) -> Option<String> {
    let stem = file.strip_suffix(STORE)?;
    made(stem).map(|_| stem.to_owned())
}

/// Names of the copies in a directory, without their ends.
fn names(directory: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| directory.display().to_string()),
    };
    Ok(entries.flatten().filter_map(|entry| stem(entry.file_name().to_str()?)).collect())
}

fn latest(directory: &Path) -> i64 {
    let names = names(directory).unwrap_or_default();
    names.iter().filter_map(|name| made(name)).map(|time| time.as_second()).max().unwrap_or(0)
}

/// Those that go: more than `count`, or older than `age`; never the newest.
fn superfluous(names: &[String], count: usize, age: Duration, now: jiff::Timestamp) -> Vec<String> {
    let mut names = names.to_vec();
    names.sort();
    names.reverse();
    let old = |name: &str| {
        let lived = made(name).and_then(|made| Duration::try_from(now.duration_since(made)).ok());
        !age.is_zero() && lived.is_some_and(|lived| lived > age)
    };
    let goes = |(at, name): &(usize, String)| *at > 0 && (*at >= count || old(name));
    names.into_iter().enumerate().filter(goes).map(|(_, name)| name).collect()
}

/// Reads the keys beside a copy.
pub fn read_keys(file: &Path) -> Result<Keys> {
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    // The text of the error is left out: it may quote key material.
    match serde_json::from_slice(&bytes) {
        Ok(keys) => Ok(keys),
        Err(_) => bail!("{} is no file with a cluster's keys", file.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_stay() {
        let hour = |h: i64| name(jiff::Timestamp::from_second(1_800_000_000 + h * 3600).unwrap());
        let now = jiff::Timestamp::from_second(1_800_000_000 + 10 * 3600).unwrap();
        let names: Vec<String> = (0..10).map(hour).collect();
        let hours = Duration::from_secs(3600);
        for (count, age, want) in [
            (3, Duration::ZERO, (0..7).rev().map(hour).collect::<Vec<_>>()),
            (20, Duration::ZERO, vec![]),
            (20, hours * 3, (0..7).rev().map(hour).collect()),
            (0, hours, (0..9).rev().map(hour).collect()),
        ] {
            assert_eq!(superfluous(&names, count, age, now), want, "{count} {age:?}");
        }
        assert_eq!(made(&names[0]).unwrap().as_second(), 1_800_000_000);
        assert_eq!((stem("other.db"), stem(&format!("{}.db", names[0]))), (None, Some(names[0].clone())));
        assert_eq!(keys_beside(Path::new("/a/x.db")), Path::new("/a/x.keys.json"));
    }
}
