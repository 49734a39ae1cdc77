//! What pods and the node use: as the kernel counts it, in the forms that autoscalers, `kubectl top` and Prometheus read.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::cgroup::{self, Usage};
use crate::spec::pod;

/// Ticks of the kernel's clock in `/proc/stat`, per second.
const TICKS: u64 = 100;
/// Counts that are remembered for rates at most; beyond, all are forgotten.
const REMEMBERED: usize = 5000;
/// Rates are taken over at least this time, seconds.
const MIN_SPAN: f64 = 5.0;
/// How often counts are taken, so that there are rates when somebody asks.
const SAMPLING: Duration = Duration::from_secs(10);

struct Sample {
    at: Instant,
    cpu_nanoseconds: u64,
    /// Thousand-millionths of a processor, when they are known.
    rate: Option<u64>,
}

/// Counts of processor time, for rates.
#[derive(Default)]
pub struct Rates(Mutex<HashMap<String, Sample>>);

impl Rates {
    fn of(&self, key: &str, cpu_nanoseconds: u64) -> Option<u64> {
        let mut samples = self.0.lock();
        if samples.len() >= REMEMBERED {
            samples.clear();
        }
        let now = Instant::now();
        let Some(old) = samples.get_mut(key) else {
            samples.insert(key.to_owned(), Sample { at: now, cpu_nanoseconds, rate: None });
            return None;
        };
        let span = now.duration_since(old.at).as_secs_f64();
        if span >= MIN_SPAN {
            let rate = cpu_nanoseconds.saturating_sub(old.cpu_nanoseconds) as f64 / span;
            *old = Sample { at: now, cpu_nanoseconds, rate: Some(rate as u64) };
        }
        old.rate
    }
}

/// How long pods took from coming to the agent until the API was told that they run.
#[derive(Default)]
pub struct Starts(Mutex<(u64, Duration, Duration)>);

impl Starts {
    /// Notes one start: all of it, and what the runtime took of that.
    pub fn note(&self, whole: Duration, runtime: Duration) {
        let mut sums = self.0.lock();
        sums.0 += 1;
        sums.1 += whole;
        sums.2 += runtime;
    }

    fn metrics(&self) -> String {
        let (count, whole, runtime) = *self.0.lock();
        format!(
            "# TYPE keelson_pod_start_seconds summary\nkeelson_pod_start_seconds_sum {}\nkeelson_pod_start_seconds_count \
             {count}\n# TYPE keelson_pod_start_runtime_seconds summary\nkeelson_pod_start_runtime_seconds_sum \
             {}\nkeelson_pod_start_runtime_seconds_count {count}\n",
            whole.as_secs_f64(),
            runtime.as_secs_f64(),
        )
    }
}

/// Bytes and inodes of a file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct Disk {
    /// All bytes.
    pub capacity: u64,
    /// Bytes that can be had.
    pub available: u64,
    /// All inodes.
    pub inodes: u64,
    /// Inodes that are free.
    pub inodes_free: u64,
}

impl Disk {
    /// The file system that `path` is on.
    pub fn of(path: &Path) -> std::io::Result<Self> {
        let stat = nix::sys::statvfs::statvfs(path)?;
        let unit = stat.fragment_size();
        Ok(Self {
            capacity: stat.blocks() * unit,
            available: stat.blocks_available() * unit,
            inodes: stat.files(),
            inodes_free: stat.files_available(),
        })
    }

    /// As summaries have it.
    pub fn json(self) -> Value {
        json!({"time": now(), "capacityBytes": self.capacity, "availableBytes": self.available,
            "usedBytes": self.capacity.saturating_sub(self.available), "inodes": self.inodes,
            "inodesFree": self.inodes_free, "inodesUsed": self.inodes.saturating_sub(self.inodes_free)})
    }
}

/// Memory of the machine, bytes: all, and what can be had.
pub fn memory() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let value = |key: &str| -> Option<u64> {
        let line = text.lines().find_map(|l| l.strip_prefix(key))?;
        Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
    };
    Some((value("MemTotal:")?, value("MemAvailable:")?))
}

/// What the machine uses as a whole.
pub fn machine() -> Option<Usage> {
    let (total, available) = memory()?;
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    let line = text.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = line.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    // User, nice, system, then idle and waiting, which are not use; interrupts and what a hypervisor took.
    let used: u64 = [0, 1, 2, 5, 6].iter().filter_map(|i| ticks.get(*i)).sum();
    let in_use = total.saturating_sub(available);
    Some(Usage { cpu_nanoseconds: used * (1_000_000_000 / TICKS), working_set: in_use, memory: in_use })
}

/// The time, as summaries have it.
pub fn now() -> String {
    format!("{:.0}", Timestamp::now())
}

/// The second of a time as statuses have it.
pub fn seconds_of(time: &str) -> Option<i64> {
    time.parse::<Timestamp>().ok().map(Timestamp::as_second)
}

/// What a running container uses.
pub struct ContainerUsage {
    /// Its name in the pod.
    pub name: String,
    /// Its id in the runtime.
    pub id: String,
    /// Its image.
    pub image: String,
    /// When it started.
    pub started: String,
    /// What it uses.
    pub usage: Usage,
}

/// A pod with what it and its running containers use.
pub struct PodUsage {
    /// The pod.
    pub of: std::sync::Arc<Pod>,
    /// All of it.
    pub whole: Usage,
    /// Its containers.
    pub containers: Vec<ContainerUsage>,
}

impl Agent {
    pub(crate) fn usages(&self) -> Vec<PodUsage> {
        let pods = self.pods.list().into_iter().filter(|of| !pod::is_finished(of));
        pods.filter_map(|of| {
            let path = cgroup::path(&of);
            let statuses = of.status.iter().flat_map(|s| [&s.container_statuses, &s.init_container_statuses]);
            let running = statuses.flatten().flatten().filter_map(|c| {
                let started = c.state.as_ref()?.running.as_ref()?.started_at.as_ref()?;
                let id = c.container_id.as_deref()?.rsplit('/').next()?;
                let usage = cgroup::usage(&format!("{path}/{id}"))?;
                let (name, image) = (c.name.clone(), c.image.clone());
                Some(ContainerUsage { name, id: id.to_owned(), image, started: format!("{:.0}", started.0), usage })
            });
            let containers = running.collect();
            Some(PodUsage { whole: cgroup::usage(&path)?, containers, of })
        })
        .collect()
    }

    pub(crate) fn cpu(&self, key: &str, usage: &Usage) -> Value {
        let rate = self.rates.of(key, usage.cpu_nanoseconds);
        json!({"time": now(), "usageNanoCores": rate, "usageCoreNanoSeconds": usage.cpu_nanoseconds})
    }

    /// Counts for ever, so that rates are of the last seconds whenever they are asked for.
    pub(crate) async fn count(&self) {
        loop {
            for p in self.usages() {
                let uid = pod::uid(&p.of);
                self.rates.of(&uid, p.whole.cpu_nanoseconds);
                for c in &p.containers {
                    self.rates.of(&format!("{uid}/{}", c.name), c.usage.cpu_nanoseconds);
                }
            }
            if let Some(usage) = machine() {
                self.rates.of("", usage.cpu_nanoseconds);
            }
            tokio::time::sleep(SAMPLING).await;
        }
    }

    /// The metrics of `/metrics/resource`.
    pub(crate) fn resource_metrics(&self) -> String {
        let mut families: Vec<(&str, &str, Vec<String>)> = vec![
            ("container_cpu_usage_seconds_total", "counter", vec![]),
            ("container_memory_working_set_bytes", "gauge", vec![]),
            ("pod_cpu_usage_seconds_total", "counter", vec![]),
            ("pod_memory_working_set_bytes", "gauge", vec![]),
            ("node_cpu_usage_seconds_total", "counter", vec![]),
            ("node_memory_working_set_bytes", "gauge", vec![]),
            ("resource_scrape_error", "gauge", vec![]),
            ("container_start_time_seconds", "gauge", vec![]),
            ("container_swap_usage_bytes", "gauge", vec![]),
            ("pod_swap_usage_bytes", "gauge", vec![]),
        ];
        let mut push = |at: usize, labels: String, usage: &Usage| {
            let seconds = usage.cpu_nanoseconds as f64 / 1e9;
            let (cpu, memory) = (families[at].0, families[at + 1].0);
            families[at].2.push(format!("{cpu}{labels} {seconds}"));
            families[at + 1].2.push(format!("{memory}{labels} {}", usage.working_set));
        };
        let mut more: [Vec<String>; 3] = Default::default();
        for p in self.usages() {
            let (name, namespace) = (p.of.metadata.name.as_deref(), p.of.metadata.namespace.as_deref());
            let pod = format!("namespace=\"{}\",pod=\"{}\"", namespace.unwrap_or_default(), name.unwrap_or_default());
            let group = cgroup::path(&p.of);
            let swap = |path: &str| crate::cgroup_counts::counts(path).swap;
            for c in &p.containers {
                let labels = format!("{{container=\"{}\",{pod}}}", c.name);
                more[0].extend(seconds_of(&c.started).map(|at| format!("container_start_time_seconds{labels} {at}")));
                more[1].push(format!("container_swap_usage_bytes{labels} {}", swap(&format!("{group}/{}", c.id))));
                push(0, labels, &c.usage);
            }
            more[2].push(format!("pod_swap_usage_bytes{{{pod}}} {}", swap(&group)));
            push(2, format!("{{{pod}}}"), &p.whole);
        }
        let machine = machine();
        if let Some(usage) = &machine {
            push(4, String::new(), usage);
        }
        for (at, lines) in more.into_iter().enumerate() {
            families[7 + at].2 = lines;
        }
        families[6].2.push(format!("resource_scrape_error {}", i32::from(machine.is_none())));
        let mut text = String::new();
        for (name, kind, lines) in families {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "# TYPE {name} {kind}");
            lines.iter().for_each(|line| text += &format!("{line}\n"));
        }
        text
    }

    /// The agent's own metrics.
    pub(crate) fn own_metrics(&self) -> String {
        let pods = self.pods.list();
        let running = pods.iter().filter(|p| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running"));
        let rss = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let pages: u64 = rss.split(' ').nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
        format!(
            "# TYPE kubelet_running_pods gauge\nkubelet_running_pods {}\n# TYPE kubelet_desired_pods gauge\n\
             kubelet_desired_pods {}\n# TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes {}\n",
            running.count(),
            pods.len(),
            pages * 4096,
        ) + &self.starts.metrics()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_need_two_counts() {
        let rates = Rates::default();
        assert_eq!(rates.of("a", 0), None);
        assert_eq!(rates.of("a", 5), None, "too soon");
        let before = Instant::now().checked_sub(Duration::from_secs(10)).unwrap();
        rates.0.lock().get_mut("a").unwrap().at = before;
        let rate = rates.of("a", 10_000_000_000).unwrap();
        assert!((900_000_000..=1_000_000_000).contains(&rate), "{rate}");
    }

    #[test]
    fn starts_are_summed() {
        let starts = Starts::default();
        starts.note(Duration::from_millis(300), Duration::from_millis(250));
        starts.note(Duration::from_millis(500), Duration::from_millis(250));
        let text = starts.metrics();
        for line in [
            "keelson_pod_start_seconds_sum 0.8",
            "keelson_pod_start_seconds_count 2",
            "keelson_pod_start_runtime_seconds_sum 0.5",
        ] {
            assert!(text.lines().any(|found| found == line), "{text}");
        }
    }

    #[test]
    fn the_machine_is_read() {
        let usage = machine().unwrap();
        assert!(usage.cpu_nanoseconds > 0 && usage.memory > 0);
        assert!(Disk::of(Path::new("/")).unwrap().capacity > 0);
    }
}
