//! A node that runs short: it says so in its conditions, fetches no more than it must, removes images that nothing uses,
//! and at last ends the pods that take more than they asked for.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use keelson_proto::cri;

use crate::admit::is_critical;
use crate::agent::Agent;
use crate::local_storage::tree;
use crate::pod_status::Doom;
use crate::spec::pod;
use crate::spec::resources::{Qos, amount, millis, qos};
use crate::stats::{Disk, memory};
use crate::{cgroup, cgroup_counts};

/// How often the node looks after itself.
const PERIOD: Duration = Duration::from_secs(10);
/// Bytes of unused images that are removed at once when the disk is short.
const RECLAIM: u64 = 2 << 30;
/// How long a pressure is told after it has passed: schedulers should not swing to and fro.
const HOLD: u32 = 30;
/// Bytes of a log before it is rotated, and how many old ones are kept.
const MAX_LOG: u64 = 10 << 20;
const OLD_LOGS: usize = 4;

/// An amount below which a resource must not fall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threshold {
    /// Bytes, or a number.
    Amount(u64),
    /// Hundredths of all there is.
    Percent(u64),
}

impl Threshold {
    fn is_crossed(self, available: u64, all: u64) -> bool {
        match self {
            Self::Amount(least) => available < least,
            Self::Percent(part) => u128::from(available) * 100 < u128::from(all) * u128::from(part),
        }
    }
}

/// When pods are ended to save the node. Nothing is watched that has no threshold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Thresholds {
    /// `memory.available`
    pub memory: Option<Threshold>,
    /// `nodefs.available`
    pub disk: Option<Threshold>,
    /// `nodefs.inodesFree`
    pub inodes: Option<Threshold>,
    /// `imagefs.available`
    pub image_disk: Option<Threshold>,
    /// `imagefs.inodesFree`
    pub image_inodes: Option<Threshold>,
    /// `pid.available`
    pub pids: Option<Threshold>,
}

impl std::str::FromStr for Thresholds {
    type Err = String;

    /// Reads `memory.available<100Mi,nodefs.available<5%`; an empty text watches nothing.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut thresholds = Self::default();
        for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let (signal, value) = part.split_once('<').ok_or_else(|| format!("{part:?} is not SIGNAL<AMOUNT"))?;
            let threshold = match value.strip_suffix('%') {
                Some(number) => number.parse().ok().filter(|n| *n <= 100).map(Threshold::Percent),
                None => millis(value).and_then(|m| u64::try_from(m / 1000).ok()).map(Threshold::Amount),
            };
            let threshold = threshold.ok_or_else(|| format!("{value:?} is neither a quantity nor a part in %"))?;
            match signal {
                "memory.available" => thresholds.memory = Some(threshold),
                "nodefs.available" => thresholds.disk = Some(threshold),
                "nodefs.inodesFree" => thresholds.inodes = Some(threshold),
                "imagefs.available" => thresholds.image_disk = Some(threshold),
                "imagefs.inodesFree" => thresholds.image_inodes = Some(threshold),
                "pid.available" => thresholds.pids = Some(threshold),
                other => {
                    return Err(format!(
                        "{other:?} is not watched: memory.available, nodefs.available, nodefs.inodesFree, \
                         imagefs.available, imagefs.inodesFree and pid.available are"
                    ));
                }
            }
        }
        Ok(thresholds)
    }
}

/// What the node is short of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Memory.
    pub memory: bool,
    /// Disk space or inodes.
    pub disk: bool,
    /// Numbers of processes.
    pub pids: bool,
}

/// What the node has, as far as it is known.
#[derive(Clone, Copy, Debug, Default)]
struct Supplies {
    /// Memory: all, and what can be had.
    memory: Option<(u64, u64)>,
    /// The file system of pods' directories.
    disk: Option<Disk>,
    /// The file system of images.
    images: Option<Disk>,
    /// Numbers of processes: all, and those that are free.
    pids: Option<(u64, u64)>,
}

/// Numbers of processes: all there are, and those that are free.
fn pids() -> Option<(u64, u64)> {
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let all = number("/proc/sys/kernel/pid_max")?.min(number("/proc/sys/kernel/threads-max")?);
    let load = std::fs::read_to_string("/proc/loadavg").ok()?;
    // The fourth word is "running/all".
    let used: u64 = load.split(' ').nth(3)?.split('/').nth(1)?.parse().ok()?;
    Some((all, all.saturating_sub(used)))
}

fn pressure(thresholds: &Thresholds, supplies: &Supplies) -> Pressure {
    let crossed = |threshold: Option<Threshold>, available, all| {
        all > 0 && threshold.is_some_and(|t: Threshold| t.is_crossed(available, all))
    };
    let short = |disk: Option<Disk>, space, inodes| {
        disk.is_some_and(|d| crossed(space, d.available, d.capacity) || crossed(inodes, d.inodes_free, d.inodes))
    };
    Pressure {
        memory: supplies.memory.is_some_and(|(all, available)| crossed(thresholds.memory, available, all)),
        disk: short(supplies.disk, thresholds.disk, thresholds.inodes)
            || short(supplies.images, thresholds.image_disk, thresholds.image_inodes),
        pids: supplies.pids.is_some_and(|(all, free)| crossed(thresholds.pids, free, all)),
    }
}

/// A pod as a candidate for its end.
#[derive(Clone, Debug)]
struct Candidate {
    uid: String,
    /// Whether it uses more than it asked for.
    exceeds: bool,
    priority: i32,
    /// Bytes above its request, or how many processes it has.
    excess: i64,
    /// Whether the node may not end it.
    critical: bool,
}

/// Who goes first: those above their request, then the lower priority, then the larger excess.
fn choose(mut candidates: Vec<Candidate>) -> Option<Candidate> {
    candidates.retain(|c| !c.critical);
    candidates.sort_by_key(|c| (!c.exceeds, c.priority, -c.excess));
    candidates.into_iter().next()
}

/// What the node is short of, as messages name it.
const MEMORY: &str = "memory";
const STORAGE: &str = "ephemeral-storage";
const PIDS: &str = "pids";

/// How much of it the pod has; `dir` and `logs` are where it writes.
fn use_of(what: &str, of: &Pod, dir: &Path, logs: &Path) -> i64 {
    let group = cgroup::path(of);
    let used = match what {
        STORAGE => tree(dir).0 + tree(logs).0,
        PIDS => cgroup_counts::counts(&group).tasks,
        _ => cgroup::usage(&group).map_or(0, |u| u.working_set),
    };
    i64::try_from(used).unwrap_or(i64::MAX)
}

fn candidate(what: &str, of: &Pod, used: i64) -> Candidate {
    let wanted = pod::containers(of)
        .iter()
        .filter_map(|c| amount(c.resources.as_ref()?.requests.as_ref(), what).map(|m| m / 1000));
    let wanted: i64 = wanted.sum();
    let spec = pod::spec(of);
    // Nobody asks for processes, and who asked for all the memory that it may have does not exceed it.
    let exceeds = match what {
        PIDS => false,
        MEMORY => used > wanted && qos(of) != Qos::Guaranteed,
        _ => used > wanted,
    };
    Candidate {
        uid: pod::uid(of),
        exceeds,
        priority: spec.priority.unwrap_or(0),
        excess: used - wanted,
        critical: is_critical(of),
    }
}

/// Looks after the node for ever.
pub async fn run(agent: Arc<Agent>) {
    let mut hold = [0_u32; 3];
    loop {
        tokio::time::sleep(PERIOD).await;
        let found = pressure(&agent.config.eviction, &agent.supplies().await);
        if found.memory {
            agent.evict(MEMORY).await;
        } else if found.disk {
            // What nobody uses goes first.
            match agent.remove_images().await {
                Ok(0) => agent.evict(STORAGE).await,
                Ok(_) => {}
                Err(error) => tracing::warn!(error = error.message(), "unused images could not be removed"),
            }
        } else if found.pids {
            agent.evict(PIDS).await;
        }
        for (hold, found) in hold.iter_mut().zip([found.memory, found.disk, found.pids]) {
            *hold = if found { HOLD } else { hold.saturating_sub(1) };
        }
        let told = Pressure { memory: hold[0] > 0, disk: hold[1] > 0, pids: hold[2] > 0 };
        let before = std::mem::replace(&mut *agent.pressure.lock(), told);
        if before != told {
            agent.report_now.notify_one();
        }
        agent.check_local_storage().await;
        if let Err(error) = agent.rotate_logs().await {
            tracing::warn!(%error, "logs could not be rotated");
        }
    }
}

impl Agent {
    async fn supplies(&self) -> Supplies {
        let eviction = &self.config.eviction;
        let mut images = None;
        if eviction.image_disk.is_some() || eviction.image_inodes.is_some() {
            let found = self.runtime.images.clone().image_fs_info(cri::ImageFsInfoRequest {}).await;
            let found = found.ok().and_then(|answer| answer.into_inner().image_filesystems.into_iter().next());
            images = found.and_then(|f| Disk::of(Path::new(&f.fs_id?.mountpoint)).ok());
        }
        Supplies { memory: memory(), disk: Disk::of(&self.config.data_dir).ok(), images, pids: pids() }
    }

    /// Ends the pod that should go first; one at a time, since its end may be enough.
    async fn evict(&self, what: &'static str) {
        let pods = self.pods.list();
        let going =
            |of: &&Arc<Pod>| of.metadata.deletion_timestamp.is_some() || self.pods.doom(&pod::uid(of)).is_some();
        // Static pods are the node's own.
        let may_go = |of: &Arc<Pod>| !pod::is_finished(of) && !self.pods.is_static(&pod::uid(of));
        let alive: Vec<Arc<Pod>> = pods.into_iter().filter(may_go).collect();
        if alive.iter().any(|of| going(&of)) {
            return;
        }
        let at = |of: &Pod| (self.pod_dir(&pod::uid(of)), pod::log_directory(&self.config.log_dir, of));
        let places: Vec<_> = alive.iter().map(|of| at(of)).collect();
        // Directories are walked.
        let counted = tokio::task::spawn_blocking(move || {
            let each = alive.iter().zip(places);
            each.map(|(of, (dir, logs))| candidate(what, of, use_of(what, of, &dir, &logs))).collect()
        });
        let Some(chosen) = choose(counted.await.unwrap_or_default()) else { return };
        let message = format!("The node was low on resource: {what}. ");
        self.events.node(&self.config.node_name, true, "EvictionThresholdMet", format!("Attempting to reclaim {what}"));
        self.pods.condemn(&chosen.uid, Doom::new("Evicted", message).disrupting());
    }

    /// Removes images that no container uses, the largest first. Returns how many bytes that was.
    async fn remove_images(&self) -> Result<u64, tonic::Status> {
        let mut images = self.runtime.images.clone();
        let all = images.list_images(cri::ListImagesRequest {}).await?.into_inner().images;
        let containers = self.runtime.containers(Default::default()).await?;
        let used: HashSet<String> =
            (containers.into_iter()).flat_map(|c| [c.image_ref, c.image.unwrap_or_default().image]).collect();
        let wanted: HashSet<String> = (self.pods.list().iter())
            .flat_map(|of| pod::all(of).filter_map(|(_, c)| c.image.clone()).collect::<Vec<_>>())
            .collect();
        let idle = |i: &cri::Image| {
            let names = || std::iter::once(&i.id).chain(&i.repo_tags).chain(&i.repo_digests);
            !i.pinned && !names().any(|n| used.contains(n) || wanted.contains(n))
        };
        let mut unused: Vec<cri::Image> = all.into_iter().filter(idle).collect();
        unused.sort_by_key(|i| std::cmp::Reverse(i.size));
        let mut removed = 0;
        for image in unused {
            if removed >= RECLAIM {
                break;
            }
            tracing::info!(image = image.id, bytes = image.size, "an unused image is removed: the disk fills up");
            let spec = Some(cri::ImageSpec { image: image.id, ..Default::default() });
            images.remove_image(cri::RemoveImageRequest { image: spec }).await?;
            removed += image.size;
        }
        Ok(removed)
    }

    /// Logs of running containers that have grown too large, with the containers' ids.
    fn large_logs(&self) -> Vec<(String, PathBuf)> {
        let mut found = Vec::new();
        for of in self.pods.list() {
            let dir = pod::log_directory(&self.config.log_dir, &of);
            let Some(status) = &of.status else { continue };
            for status in [&status.container_statuses, &status.init_container_statuses].into_iter().flatten().flatten()
            {
                let running = status.state.as_ref().is_some_and(|s| s.running.is_some());
                let id = status.container_id.as_deref().and_then(|id| id.rsplit('/').next());
                let log = dir.join(&status.name).join(format!("{}.log", status.restart_count));
                if let Some(id) = id.filter(|_| running && std::fs::metadata(&log).is_ok_and(|m| m.len() > MAX_LOG)) {
                    found.push((id.to_owned(), log));
                }
            }
        }
        found
    }

    /// Begins a new log where one has grown too large.
    async fn rotate_logs(&self) -> std::io::Result<()> {
        for (container_id, log) in self.large_logs() {
            let stamp = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S");
            let old = log.with_extension(format!("log.{stamp}"));
            std::fs::rename(&log, &old)?;
            let request = cri::ReopenContainerLogRequest { container_id };
            if let Err(error) = self.runtime.pods.clone().reopen_container_log(request).await {
                // The runtime goes on writing to the old file: give it its name back.
                std::fs::rename(&old, &log)?;
                return Err(std::io::Error::other(error.message().to_owned()));
            }
            remove_old_logs(&log)?;
        }
        Ok(())
    }
}

/// Removes all but the newest rotated logs of a container.
fn remove_old_logs(log: &Path) -> std::io::Result<()> {
    let (Some(dir), Some(name)) = (log.parent(), log.file_name()) else { return Ok(()) };
    let prefix = format!("{}.", name.to_string_lossy());
    let mut old: Vec<_> = std::fs::read_dir(dir)?
        .filter_map(|e| e.ok().map(|e| e.path()))
        .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&prefix)))
        .collect();
    old.sort();
    let surplus = old.len().saturating_sub(OLD_LOGS);
    old.iter().take(surplus).try_for_each(std::fs::remove_file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_the_node_is_short() {
        let disk = |available, inodes_free| Some(Disk { capacity: 1000, available, inodes: 1000, inodes_free });
        let thresholds: Thresholds =
            "memory.available<100Mi, nodefs.available<10%,nodefs.inodesFree<5%,imagefs.available<15%,pid.available<100"
                .parse()
                .unwrap();
        let ample = Some((2 << 30, 1 << 30));
        for (memory, disk, images, pids, wanted) in [
            (ample, disk(500, 500), disk(500, 500), Some((1000, 500)), (false, false, false)),
            (Some((2 << 30, 1 << 20)), disk(500, 500), None, None, (true, false, false)),
            (None, disk(99, 500), None, None, (false, true, false)),
            (None, disk(500, 49), None, None, (false, true, false)),
            (None, disk(500, 500), disk(149, 1), None, (false, true, false)),
            (ample, disk(500, 500), None, Some((1000, 99)), (false, false, true)),
            (None, None, None, None, (false, false, false)),
        ] {
            let supplies = Supplies { memory, disk, images, pids };
            let got = pressure(&thresholds, &supplies);
            assert_eq!((got.memory, got.disk, got.pids), wanted, "{supplies:?}");
            assert_eq!(pressure(&Thresholds::default(), &supplies), Pressure::default());
        }
        assert!(super::pids().is_some_and(|(all, free)| all > free && free > 0));
        for wrong in
            ["memory.available", "memory.available<x", "memory.available<101%", "allocatableMemory.available<1%"]
        {
            assert!(wrong.parse::<Thresholds>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn who_goes_first() {
        let one = |uid: &str, exceeds, priority, excess, critical| Candidate {
            uid: uid.into(),
            exceeds,
            priority,
            excess,
            critical,
        };
        let all = vec![
            one("within", false, -5, -10, false),
            one("small", true, 0, 10, false),
            one("large", true, 0, 20, false),
            one("important", true, 10, 99, false),
            one("critical", true, -9, 99, true),
        ];
        assert_eq!(choose(all.clone()).unwrap().uid, "large");
        assert!(choose(all[4..].to_vec()).is_none());
    }

    #[test]
    fn what_counts_depends_on_what_is_short() {
        let of: Pod = serde_json::from_value(serde_json::json!({"metadata": {"uid": "u"}, "spec": {"containers": [
            {"name": "c", "resources": {"requests": {"memory": "1Ki", "ephemeral-storage": "10"}}}]}}))
        .unwrap();
        for (what, used, exceeds, excess) in
            [(MEMORY, 1025, true, 1), (MEMORY, 1000, false, -24), (STORAGE, 20, true, 10), (PIDS, 20, false, 20)]
        {
            let got = candidate(what, &of, used);
            assert_eq!((got.exceeds, got.excess), (exceeds, excess), "{what}");
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), vec![1; 50_000]).unwrap();
        assert!(use_of(STORAGE, &of, dir.path(), Path::new("/none")) >= 50_000);
    }

    #[test]
    fn old_logs_go() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        for name in ["0.log", "1.log", "0.log.1", "0.log.2", "0.log.3", "0.log.4", "0.log.5"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        remove_old_logs(&log).unwrap();
        assert!(!dir.path().join("0.log.1").exists());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 6);
    }
}
