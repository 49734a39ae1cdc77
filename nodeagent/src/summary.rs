//! The summary of a node and its pods (`/stats/summary`), with the fields of upstream's schema `v1alpha1`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Volume;
use keelson_proto::cri;
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::cgroup::{self, Usage};
use crate::cgroup_counts::{self, Counts};
use crate::interfaces;
use crate::local_storage::tree;
use crate::spec::pod;
use crate::stats::{ContainerUsage, Disk, PodUsage, machine, memory, now};

/// Groups of the machine that a summary names, with where they are.
const SYSTEM: [(&str, &str); 2] = [("pods", "/kubepods"), ("kubelet", "self")];

/// What a container wrote into its own file system.
type Layers = HashMap<String, cri::FilesystemUsage>;

fn fs(disk: Disk, used: u64, inodes: u64) -> Value {
    let mut value = disk.json();
    (value["usedBytes"], value["inodesUsed"]) = (used.into(), inodes.into());
    value
}

fn swap(bytes: u64) -> Value {
    json!({"time": now(), "swapUsageBytes": bytes})
}

fn memory_of(usage: &Usage, counts: &Counts) -> Value {
    let mut value = json!({"time": now(), "usageBytes": usage.memory, "workingSetBytes": usage.working_set,
        "rssBytes": counts.rss, "pageFaults": counts.faults.0, "majorPageFaults": counts.faults.1});
    if let Some(limit) = counts.limit {
        value["availableBytes"] = limit.saturating_sub(usage.working_set).into();
    }
    value
}

/// A pod's volumes on disk: name, directory, and whether it is a file system of its own.
fn volumes(dir: &Path) -> Vec<(String, PathBuf)> {
    let list = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    let named = |path: PathBuf| Some((path.file_name()?.to_str()?.to_owned(), path));
    list(&dir.join("volumes")).flat_map(|kind| list(&kind).collect::<Vec<_>>()).filter_map(named).collect()
}

fn volume(name: &str, path: &Path, spec: Option<&Volume>, namespace: &str) -> Option<Value> {
    let disk = Disk::of(path).ok()?;
    let own = is_mount(path);
    let mut value = if own {
        disk.json()
    } else {
        let (bytes, files) = tree(path);
        fs(disk, bytes, files)
    };
    value["name"] = name.into();
    if let Some(claim) = spec.and_then(|v| v.persistent_volume_claim.as_ref()) {
        value["pvcRef"] = json!({"name": claim.claim_name, "namespace": namespace});
    }
    Some(value)
}

fn is_mount(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| std::fs::metadata(path).map(|m| m.dev()).ok();
    path.parent().is_some_and(|parent| device(path) != device(parent))
}

impl Agent {
    /// The summary; of processors and memory alone, if that is all that is asked for.
    pub(crate) async fn summary(self: &std::sync::Arc<Self>, only_cpu_and_memory: bool) -> Value {
        let (layers, images) = if only_cpu_and_memory { Default::default() } else { self.in_runtime().await };
        let agent = self.clone();
        // Directories are walked.
        let made =
            tokio::task::spawn_blocking(move || agent.gather(only_cpu_and_memory, &layers, images.as_ref())).await;
        made.unwrap_or_else(|error| json!({"node": {"nodeName": self.config.node_name, "error": error.to_string()}}))
    }

    /// Writable layers by container, and what images take.
    async fn in_runtime(&self) -> (Layers, Option<cri::FilesystemUsage>) {
        let request = cri::ListContainerStatsRequest::default();
        let stats = self.runtime.pods.clone().list_container_stats(request).await;
        let stats = stats.map(|answer| answer.into_inner().stats).unwrap_or_default();
        let layers = stats.into_iter().filter_map(|s| Some((s.attributes?.id, s.writable_layer?))).collect();
        let images = self.runtime.images.clone().image_fs_info(cri::ImageFsInfoRequest {}).await;
        (layers, images.ok().and_then(|answer| answer.into_inner().image_filesystems.into_iter().next()))
    }

    fn gather(&self, brief: bool, layers: &Layers, images: Option<&cri::FilesystemUsage>) -> Value {
        let pods: Vec<Value> = self.usages().iter().map(|p| self.pod_summary(p, brief, layers)).collect();
        json!({"node": self.node_summary(brief, images), "pods": pods})
    }

    fn pod_summary(&self, p: &PodUsage, brief: bool, layers: &Layers) -> Value {
        let (uid, meta) = (pod::uid(&p.of), &p.of.metadata);
        let group = cgroup::path(&p.of);
        let counts = cgroup_counts::counts(&group);
        let start = p.of.status.as_ref().and_then(|s| s.start_time.as_ref());
        let mut on_disk = (0, 0);
        let mut add = |used: (u64, u64)| on_disk = (on_disk.0 + used.0, on_disk.1 + used.1);
        let containers = p.containers.iter().map(|c| {
            let mut value = self.container_summary(p, c, &group);
            if !brief {
                let layer = layers.get(&c.id);
                let of = |v: Option<&cri::UInt64Value>| v.map_or(0, |v| v.value);
                let layer = layer.map_or((0, 0), |l| (of(l.used_bytes.as_ref()), of(l.inodes_used.as_ref())));
                let logs = tree(&pod::log_directory(&self.config.log_dir, &p.of).join(&c.name));
                for (key, path, used) in
                    [("rootfs", &self.config.data_dir, layer), ("logs", &self.config.log_dir, logs)]
                {
                    value[key] = Disk::of(path).map_or(Value::Null, |disk| fs(disk, used.0, used.1));
                    add(used);
                }
            }
            value
        });
        let containers: Vec<Value> = containers.collect();
        let mut value = json!({"podRef": {"name": meta.name, "namespace": meta.namespace, "uid": uid},
            "startTime": start, "containers": containers, "cpu": self.cpu(&uid, &p.whole),
            "memory": memory_of(&p.whole, &counts)});
        if brief {
            return value;
        }
        value["process_stats"] = json!({"process_count": counts.tasks});
        value["swap"] = swap(counts.swap);
        if !pod::host_network(&p.of)
            && let Some(network) = cgroup_counts::process(&group).map(interfaces::of_process)
            && let Some(network) = interfaces::json(&network, &now())
        {
            value["network"] = network;
        }
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let specs = p.of.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
        let mut found = Vec::new();
        for (name, path) in volumes(&self.pod_dir(&uid)) {
            let spec = specs.iter().find(|v| v.name == name);
            let Some(one) = volume(&name, &path, spec, namespace) else { continue };
            if !is_mount(&path) {
                let number = |key: &str| one[key].as_u64().unwrap_or(0);
                on_disk = (on_disk.0 + number("usedBytes"), on_disk.1 + number("inodesUsed"));
            }
            found.push(one);
        }
        value["volume"] = found.into();
        if let Ok(disk) = Disk::of(&self.config.data_dir) {
            value["ephemeral-storage"] = fs(disk, on_disk.0, on_disk.1);
        }
        value
    }

    fn container_summary(&self, p: &PodUsage, c: &ContainerUsage, group: &str) -> Value {
        let counts = cgroup_counts::counts(&format!("{group}/{}", c.id));
        json!({"name": c.name, "startTime": c.started, "memory": memory_of(&c.usage, &counts),
            "swap": swap(counts.swap), "cpu": self.cpu(&format!("{}/{}", pod::uid(&p.of), c.name), &c.usage)})
    }

    fn node_summary(&self, brief: bool, images: Option<&cri::FilesystemUsage>) -> Value {
        let mut node =
            json!({"nodeName": self.config.node_name, "startTime": boot(), "systemContainers": self.system()});
        if let Some(usage) = machine() {
            node["cpu"] = self.cpu("", &usage);
            node["memory"] = memory_of(&usage, &cgroup_counts::counts("/"));
            if let Some((_, available)) = memory() {
                node["memory"]["availableBytes"] = available.into();
            }
        }
        if brief {
            return node;
        }
        if let Ok(disk) = Disk::of(&self.config.data_dir) {
            node["fs"] = disk.json();
        }
        if let Some(network) = interfaces::json(&interfaces::of_process(1), &now()) {
            node["network"] = network;
        }
        if let Some(images) = images {
            let at = images.fs_id.as_ref().map(|id| PathBuf::from(&id.mountpoint)).unwrap_or_default();
            let of = |v: Option<&cri::UInt64Value>| v.map_or(0, |v| v.value);
            if let Ok(disk) = Disk::of(&at) {
                let used = fs(disk, of(images.used_bytes.as_ref()), of(images.inodes_used.as_ref()));
                // Containers write where images are.
                node["runtime"] = json!({"imageFs": used, "containerFs": used});
            }
        }
        let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        // The fourth word is "running/all".
        let processes = load.split(' ').nth(3).and_then(|w| w.split('/').nth(1)?.parse::<u64>().ok());
        node["rlimit"] = json!({"time": now(), "maxpid": number("/proc/sys/kernel/pid_max"), "curproc": processes});
        node["swap"] = machine_swap();
        node
    }

    /// The pods as a whole, and the agent itself.
    fn system(&self) -> Vec<Value> {
        let one = |(name, group): (&str, &str)| {
            let group = if group == "self" { own_group()? } else { group.to_owned() };
            let usage = cgroup::usage(&group)?;
            Some(json!({"name": name, "startTime": boot(), "cpu": self.cpu(&format!("system/{name}"), &usage),
                "memory": memory_of(&usage, &cgroup_counts::counts(&group))}))
        };
        SYSTEM.into_iter().filter_map(one).collect()
    }
}

/// The agent's own group.
fn own_group() -> Option<String> {
    let text = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let of = |line: &str| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        controllers.split(',').any(|c| c == "memory" || c.is_empty()).then(|| path.to_owned())
    };
    text.lines().find_map(of)
}

/// When the machine started.
fn boot() -> Option<String> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    let seconds = text.lines().find_map(|l| l.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(jiff::Timestamp::from_second(seconds).ok()?.to_string())
}

fn machine_swap() -> Value {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let value = |key: &str| -> u64 {
        let line = text.lines().find_map(|l| l.strip_prefix(key)).unwrap_or_default();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024
    };
    let (all, free) = (value("SwapTotal:"), value("SwapFree:"));
    json!({"time": now(), "swapAvailableBytes": free, "swapUsageBytes": all.saturating_sub(free)})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_found_with_what_they_take() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("volumes/kubernetes.io~empty-dir/v");
        std::fs::create_dir_all(&at).unwrap();
        std::fs::write(at.join("file"), vec![1; 50_000]).unwrap();
        let found = volumes(dir.path());
        assert_eq!(found, [("v".to_owned(), at.clone())]);
        let spec: Volume =
            serde_json::from_value(json!({"name": "v", "persistentVolumeClaim": {"claimName": "c"}})).unwrap();
        let value = volume("v", &at, Some(&spec), "n").unwrap();
        assert!(value["usedBytes"].as_u64() >= Some(50_000) && value["inodesUsed"] == 2, "{value}");
        assert_eq!(value["pvcRef"], json!({"name": "c", "namespace": "n"}));
        assert!(volumes(Path::new("/none")).is_empty());
    }

    #[test]
    fn the_machine_has_what_a_summary_says() {
        assert!(boot().is_some_and(|time| time.starts_with("20")));
        assert!(machine_swap()["swapUsageBytes"].is_u64());
        assert!(own_group().is_some());
    }
}
