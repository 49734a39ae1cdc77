//! A node that runs short: it says so in its conditions, fetches no more than it must, removes images that nothing uses,
//! and at last ends the pods that take more than they asked for.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use keelson_proto::cri;

use crate::agent::Agent;
use crate::cgroup;
use crate::pod_status::Doom;
use crate::spec::pod;
use crate::spec::resources::{Qos, amount, millis, qos};
use crate::stats::{Disk, memory};

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
                other => {
                    return Err(format!(
                        "{other:?} is not watched: memory.available, nodefs.available and nodefs.inodesFree are"
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
}

fn pressure(thresholds: &Thresholds, memory: Option<(u64, u64)>, disk: Option<Disk>) -> Pressure {
    let crossed = |threshold: Option<Threshold>, available, all| {
        all > 0 && threshold.is_some_and(|t: Threshold| t.is_crossed(available, all))
    };
    Pressure {
        memory: memory.is_some_and(|(all, available)| crossed(thresholds.memory, available, all)),
        disk: disk.is_some_and(|d| {
            crossed(thresholds.disk, d.available, d.capacity) || crossed(thresholds.inodes, d.inodes_free, d.inodes)
        }),
    }
}

/// A pod as a candidate for its end.
#[derive(Clone, Debug)]
struct Candidate {
    uid: String,
    /// Whether it uses more than it asked for.
    exceeds: bool,
    priority: i32,
    /// Bytes above its request.
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

fn candidate(of: &Pod) -> Candidate {
    let used = cgroup::usage(&cgroup::path(of)).map_or(0, |u| i64::try_from(u.working_set).unwrap_or(i64::MAX));
    let wanted = pod::containers(of)
        .iter()
        .filter_map(|c| amount(c.resources.as_ref()?.requests.as_ref(), "memory").map(|m| m / 1000));
    let wanted: i64 = wanted.sum();
    let spec = pod::spec(of);
    let class = spec.priority_class_name.unwrap_or_default();
    Candidate {
        uid: pod::uid(of),
        exceeds: used > wanted && qos(of) != Qos::Guaranteed,
        priority: spec.priority.unwrap_or(0),
        excess: used - wanted,
        critical: class.starts_with("system-"),
    }
}

/// Looks after the node for ever.
pub async fn run(agent: Arc<Agent>) {
    let mut hold = (0_u32, 0_u32);
    loop {
        tokio::time::sleep(PERIOD).await;
        let disk = Disk::of(&agent.config.data_dir).ok();
        let found = pressure(&agent.config.eviction, memory(), disk);
        if found.memory {
            agent.evict("memory");
        } else if found.disk {
            // What nobody uses goes first.
            match agent.remove_images().await {
                Ok(0) => agent.evict("ephemeral-storage"),
                Ok(_) => {}
                Err(error) => tracing::warn!(error = error.message(), "unused images could not be removed"),
            }
        }
        hold.0 = if found.memory { HOLD } else { hold.0.saturating_sub(1) };
        hold.1 = if found.disk { HOLD } else { hold.1.saturating_sub(1) };
        let told = Pressure { memory: hold.0 > 0, disk: hold.1 > 0 };
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
    /// Ends the pod that should go first; one at a time, since its end may be enough.
    fn evict(&self, what: &str) {
        let pods = self.pods.list();
        let going =
            |of: &&Arc<Pod>| of.metadata.deletion_timestamp.is_some() || self.pods.doom(&pod::uid(of)).is_some();
        let alive: Vec<&Arc<Pod>> = pods.iter().filter(|of| !pod::is_finished(of)).collect();
        if alive.iter().any(going) {
            return;
        }
        let Some(chosen) = choose(alive.iter().map(|of| candidate(of)).collect()) else { return };
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
fn remove_old_logs(log: &std::path::Path) -> std::io::Result<()> {
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
            "memory.available<100Mi, nodefs.available<10%,nodefs.inodesFree<5%".parse().unwrap();
        for (memory, disk, wanted) in [
            (Some((2 << 30, 1 << 30)), disk(500, 500), (false, false)),
            (Some((2 << 30, 1 << 20)), disk(500, 500), (true, false)),
            (None, disk(99, 500), (false, true)),
            (None, disk(500, 49), (false, true)),
            (None, None, (false, false)),
        ] {
            let got = pressure(&thresholds, memory, disk);
            assert_eq!((got.memory, got.disk), wanted, "{memory:?} {disk:?}");
            assert_eq!(pressure(&Thresholds::default(), memory, disk), Pressure::default());
        }
        for wrong in ["memory.available", "memory.available<x", "memory.available<101%", "imagefs.available<1%"] {
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
