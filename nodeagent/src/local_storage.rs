//! Pods that fill the node's disk beyond what they may: an emptyDir beyond its size, a container beyond its limit, a pod
//! beyond all limits of its containers. They are ended.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Volume};
use keelson_proto::cri;

use crate::agent::Agent;
use crate::cri::{CONTAINER_NAME, POD_UID};
use crate::pod_status::Doom;
use crate::spec::pod;
use crate::spec::resources::{amount, limits, millis};
use crate::volumes;

/// The resource.
const RESOURCE: &str = "ephemeral-storage";
/// Such a pod's grace, seconds (upstream's).
const GRACE: i64 = 1;
/// Files of one directory that are counted: a count that is too small harms less than one that takes for ever.
const MAX_FILES: usize = 1_000_000;

/// Bytes that a pod uses.
#[derive(Default)]
struct Used {
    /// By volume.
    empty_dirs: BTreeMap<String, u64>,
    /// By container: what it wrote into its own file system, and its logs.
    containers: BTreeMap<String, u64>,
}

fn in_memory(volume: &Volume) -> bool {
    volume.empty_dir.as_ref().is_some_and(|e| e.medium.as_deref().is_some_and(|m| !m.is_empty()))
}

fn empty_dirs(of: &Pod) -> impl Iterator<Item = &Volume> {
    of.spec.iter().flat_map(|s| s.volumes.iter().flatten()).filter(|v| v.empty_dir.is_some())
}

/// Whether anything of the pod is limited.
fn is_limited(of: &Pod) -> bool {
    let sized = |v: &Volume| v.empty_dir.as_ref().is_some_and(|e| e.size_limit.is_some());
    empty_dirs(of).any(sized) || limits(of, RESOURCE).is_some()
}

/// Why the pod is to be ended, if it is.
fn excess(of: &Pod, used: &Used) -> Option<String> {
    for volume in empty_dirs(of) {
        let limit = volume.empty_dir.as_ref().and_then(|e| e.size_limit.as_ref());
        let Some(limit) = limit.filter(|q| millis(&q.0).is_some_and(|m| m > 0)) else { continue };
        let bytes = used.empty_dirs.get(&volume.name).copied().unwrap_or(0);
        if exceeds(bytes, millis(&limit.0)) {
            let name = &volume.name;
            return Some(format!("Usage of EmptyDir volume \"{name}\" exceeds the limit \"{}\". ", limit.0));
        }
    }
    let on_disk = empty_dirs(of).filter(|v| !in_memory(v)).filter_map(|v| used.empty_dirs.get(&v.name));
    let all = on_disk.chain(used.containers.values()).sum::<u64>();
    if let Some(limit) = limits(of, RESOURCE)
        && exceeds(all, Some(limit))
    {
        let bytes = limit / 1000;
        return Some(format!("Pod ephemeral local storage usage exceeds the total limit of containers {bytes}. "));
    }
    pod::all(of).find_map(|(_, container)| {
        let limits = container.resources.as_ref()?.limits.as_ref();
        let bytes = used.containers.get(&container.name).copied().unwrap_or(0);
        let limit = limits?.get(RESOURCE)?;
        exceeds(bytes, amount(limits, RESOURCE)).then(|| {
            let name = &container.name;
            format!("Container {name} exceeded its local ephemeral storage limit \"{}\". ", limit.0)
        })
    })
}

fn exceeds(bytes: u64, limit: Option<i64>) -> bool {
    limit.is_some_and(|limit| i128::from(bytes) * 1000 > i128::from(limit))
}

/// What a directory takes on its own disk, with all below it.
fn size(root: &Path) -> u64 {
    tree(root).0
}

/// The same, and how many files and directories that are.
pub fn tree(root: &Path) -> (u64, u64) {
    let Ok(top) = std::fs::symlink_metadata(root) else { return (0, 0) };
    let (mut bytes, mut files, mut counted) = (top.blocks() * 512, 0, 1);
    let mut dirs: Vec<PathBuf> = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            files += 1;
            // A file may go while it is looked at.
            let Ok(found) = entry.metadata() else { continue };
            if files > MAX_FILES || found.dev() != top.dev() {
                continue;
            }
            (bytes, counted) = (bytes + found.blocks() * 512, counted + 1);
            if found.is_dir() {
                dirs.push(entry.path());
            }
        }
    }
    (bytes, counted)
}

impl Agent {
    /// What the pod's containers wrote into their own file systems, by name.
    async fn layers(&self, uid: &str) -> Result<BTreeMap<String, u64>, tonic::Status> {
        let label_selector = [(POD_UID.to_owned(), uid.to_owned())].into();
        let filter = Some(cri::ContainerStatsFilter { label_selector, ..Default::default() });
        let request = cri::ListContainerStatsRequest { filter };
        let stats = self.runtime.pods.clone().list_container_stats(request).await?.into_inner().stats;
        let one = |stats: cri::ContainerStats| {
            let name = stats.attributes?.labels.remove(CONTAINER_NAME)?;
            Some((name, stats.writable_layer?.used_bytes?.value))
        };
        Ok(stats.into_iter().filter_map(one).collect())
    }

    async fn storage_of(&self, of: &Arc<Pod>) -> Result<Used, tonic::Status> {
        let uid = pod::uid(of);
        let mut containers = if limits(of, RESOURCE).is_some() { self.layers(&uid).await? } else { BTreeMap::new() };
        let (of, dir) = (of.clone(), self.pod_dir(&uid));
        let logs = pod::log_directory(&self.config.log_dir, &of);
        let counted = tokio::task::spawn_blocking(move || {
            for (name, bytes) in &mut containers {
                *bytes += size(&logs.join(name));
            }
            let dirs = empty_dirs(&of).map(|v| (v.name.clone(), size(&volumes::empty_dir_path(&dir, &v.name))));
            Used { empty_dirs: dirs.collect(), containers }
        });
        counted.await.map_err(|e| tonic::Status::internal(e.to_string()))
    }

    /// Ends the pods that take more of the disk than they may.
    pub(crate) async fn check_local_storage(&self) {
        for of in self.pods.list() {
            let uid = pod::uid(&of);
            let going = of.metadata.deletion_timestamp.is_some() || self.pods.doom(&uid).is_some();
            if going || pod::is_finished(&of) || !is_limited(&of) {
                continue;
            }
            match self.storage_of(&of).await {
                Ok(used) => {
                    if let Some(message) = excess(&of, &used) {
                        self.pods.condemn(&uid, Doom::new("Evicted", message).within(GRACE));
                    }
                }
                Err(error) => {
                    tracing::warn!(pod = pod::title(&of), error = error.message(), "its disk space is not known");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of(volumes: Value, limit: Option<&str>) -> Pod {
        let resources = limit.map_or(json!({}), |l| json!({"limits": {RESOURCE: l}}));
        serde_json::from_value(json!({"spec": {"volumes": volumes, "containers": [
            {"name": "a", "resources": resources}, {"name": "b", "resources": resources}]}}))
        .unwrap()
    }

    #[test]
    fn who_takes_too_much() {
        let sized = json!([{"name": "e", "emptyDir": {"sizeLimit": "1Ki"}}]);
        let plain = json!([{"name": "e", "emptyDir": {}}]);
        let memory = json!([{"name": "e", "emptyDir": {"medium": "Memory"}}]);
        for (volumes, limit, volume, container, wanted) in [
            (&sized, None, 1024, 0, None),
            (&sized, None, 1025, 0, Some("Usage of EmptyDir volume \"e\" exceeds the limit \"1Ki\". ")),
            (&plain, None, 9999, 9999, None),
            (&plain, Some("1Ki"), 1000, 500, None),
            (
                &plain,
                Some("1Ki"),
                2000,
                500,
                Some("Pod ephemeral local storage usage exceeds the total limit of containers 2048. "),
            ),
            (&memory, Some("1Ki"), 2000, 500, None),
            (&plain, Some("1Ki"), 0, 1100, Some("Container a exceeded its local ephemeral storage limit \"1Ki\". ")),
        ] {
            let of = of(volumes.clone(), limit);
            let used = Used {
                empty_dirs: [("e".to_owned(), volume)].into(),
                containers: [("a".to_owned(), container)].into(),
            };
            assert_eq!(excess(&of, &used).as_deref(), wanted);
            assert_eq!(is_limited(&of), limit.is_some() || *volumes == sized);
        }
    }

    #[test]
    fn directories_have_a_size() {
        let dir = tempfile::tempdir().unwrap();
        let empty = size(dir.path());
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(dir.path().join("d/f"), vec![1; 100_000]).unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("link")).unwrap();
        let full = size(dir.path());
        assert!(full >= empty + 100_000 && full < empty + 1_000_000, "{empty} {full}");
        assert_eq!(size(&dir.path().join("none")), 0);
    }
}
