//! Use of containers and the machine under the names that dashboards know from cAdvisor (`/metrics/cadvisor`).

use std::fmt::Write;

use crate::agent::Agent;
use crate::cgroup::Usage;
use crate::cgroup_counts::{self, Counts};
use crate::interfaces::{self, Interface};
use crate::spec;
use crate::stats::{PodUsage, machine, memory, seconds_of};

/// A family of metrics with its lines.
struct Family(&'static str, &'static str, Vec<String>);

/// What is told of each group: a family, its type, and its value.
type Value = fn(&Usage, &Counts) -> Option<f64>;

/// Nanoseconds as seconds.
fn seconds(nanoseconds: u64) -> Option<f64> {
    Some(nanoseconds as f64 / 1e9)
}

fn number(value: u64) -> Option<f64> {
    Some(value as f64)
}

/// A count of processor time held up, only where there is a quota.
fn limited(counts: &Counts, value: f64) -> Option<f64> {
    counts.quota.map(|_| value)
}

const OF_GROUPS: [(&str, &str, Value); 19] = [
    ("container_cpu_usage_seconds_total", "counter", |u, _| seconds(u.cpu_nanoseconds)),
    ("container_cpu_user_seconds_total", "counter", |_, c| seconds(c.times.0)),
    ("container_cpu_system_seconds_total", "counter", |_, c| seconds(c.times.1)),
    ("container_cpu_cfs_periods_total", "counter", |_, c| limited(c, c.periods.0 as f64)),
    ("container_cpu_cfs_throttled_periods_total", "counter", |_, c| limited(c, c.periods.1 as f64)),
    ("container_cpu_cfs_throttled_seconds_total", "counter", |_, c| limited(c, c.throttled as f64 / 1e9)),
    ("container_memory_usage_bytes", "gauge", |u, _| number(u.memory)),
    ("container_memory_working_set_bytes", "gauge", |u, _| number(u.working_set)),
    ("container_memory_cache", "gauge", |_, c| number(c.cache)),
    ("container_memory_rss", "gauge", |_, c| number(c.rss)),
    ("container_memory_mapped_file", "gauge", |_, c| number(c.mapped)),
    ("container_memory_swap", "gauge", |_, c| number(c.swap)),
    ("container_memory_max_usage_bytes", "gauge", |_, c| number(c.most)),
    ("container_memory_failcnt", "counter", |_, c| number(c.failures)),
    ("container_oom_events_total", "counter", |_, c| number(c.killed)),
    ("container_threads", "gauge", |_, c| number(c.tasks)),
    ("container_spec_cpu_quota", "gauge", |_, c| number(c.quota?)),
    ("container_spec_cpu_period", "gauge", |_, c| number(c.period)),
    ("container_spec_memory_limit_bytes", "gauge", |_, c| number(c.limit.unwrap_or(0))),
];

/// What is told of each network interface: a family, and the place of its value in what is received or sent.
const OF_INTERFACES: [(&str, bool, usize); 8] = [
    ("container_network_receive_bytes_total", true, 0),
    ("container_network_receive_packets_total", true, 1),
    ("container_network_receive_errors_total", true, 2),
    ("container_network_receive_packets_dropped_total", true, 3),
    ("container_network_transmit_bytes_total", false, 0),
    ("container_network_transmit_packets_total", false, 1),
    ("container_network_transmit_errors_total", false, 2),
    ("container_network_transmit_packets_dropped_total", false, 3),
];

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// The labels of a group.
struct Labels<'a> {
    container: &'a str,
    id: &'a str,
    image: &'a str,
    name: &'a str,
    namespace: &'a str,
    pod: &'a str,
}

impl Labels<'_> {
    fn text(&self, interface: Option<&str>) -> String {
        let interface = interface.map(|name| format!("interface=\"{}\",", escaped(name))).unwrap_or_default();
        format!(
            "{{container=\"{}\",id=\"{}\",image=\"{}\",{interface}name=\"{}\",namespace=\"{}\",pod=\"{}\"}}",
            self.container,
            self.id,
            escaped(self.image),
            self.name,
            escaped(self.namespace),
            escaped(self.pod),
        )
    }
}

fn families() -> Vec<Family> {
    let of_groups = OF_GROUPS.iter().map(|(name, kind, _)| Family(name, kind, Vec::new()));
    let of_interfaces = OF_INTERFACES.iter().map(|(name, ..)| Family(name, "counter", Vec::new()));
    let more = [("container_last_seen", "gauge"), ("container_start_time_seconds", "gauge")];
    of_groups.chain(of_interfaces).chain(more.map(|(name, kind)| Family(name, kind, Vec::new()))).collect()
}

/// Adds what is told of one group.
fn add(families: &mut [Family], labels: &Labels<'_>, usage: &Usage, counts: &Counts, started: Option<i64>) {
    let text = labels.text(None);
    for (family, (name, _, value)) in families.iter_mut().zip(OF_GROUPS) {
        family.2.extend(value(usage, counts).map(|value| format!("{name}{text} {value}")));
    }
    let now = jiff::Timestamp::now().as_second();
    let last = OF_GROUPS.len() + OF_INTERFACES.len();
    families[last].2.push(format!("container_last_seen{text} {now}"));
    families[last + 1].2.extend(started.map(|at| format!("container_start_time_seconds{text} {at}")));
}

/// Adds what goes through a group's interfaces.
fn add_network(families: &mut [Family], labels: &Labels<'_>, interfaces: &[Interface]) {
    for interface in interfaces {
        let text = labels.text(Some(&interface.name));
        for (family, (name, received, at)) in families[OF_GROUPS.len()..].iter_mut().zip(OF_INTERFACES) {
            let value = if received { interface.received[at] } else { interface.sent[at] };
            family.2.push(format!("{name}{text} {value}"));
        }
    }
}

/// The metrics of what pods use.
fn of_pods(pods: &[PodUsage]) -> Vec<Family> {
    let mut families = families();
    for pod in pods {
        let meta = &pod.of.metadata;
        let (namespace, name) =
            (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
        let group = crate::cgroup::path(&pod.of);
        let labels = Labels { container: "", id: &group, image: "", name: "", namespace, pod: name };
        add(&mut families, &labels, &pod.whole, &cgroup_counts::counts(&group), None);
        if !spec::pod::host_network(&pod.of)
            && let Some(process) = cgroup_counts::process(&group)
        {
            add_network(&mut families, &labels, &interfaces::of_process(process));
        }
        for c in &pod.containers {
            let id = format!("{group}/{}", c.id);
            let labels = Labels { container: &c.name, id: &id, image: &c.image, name: &c.id, namespace, pod: name };
            add(&mut families, &labels, &c.usage, &cgroup_counts::counts(&id), seconds_of(&c.started));
        }
    }
    families
}

impl Agent {
    /// The metrics of `/metrics/cadvisor`.
    pub(crate) fn container_metrics(&self) -> String {
        let mut families = of_pods(&self.usages());
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        families.push(Family("machine_cpu_cores", "gauge", vec![format!("machine_cpu_cores {cores}")]));
        if let Some((all, _)) = memory() {
            families.push(Family("machine_memory_bytes", "gauge", vec![format!("machine_memory_bytes {all}")]));
        }
        if let Some(usage) = machine() {
            // The machine as a whole is the group "/", as dashboards expect.
            let root = Labels { container: "", id: "/", image: "", name: "", namespace: "", pod: "" };
            add(&mut families, &root, &usage, &cgroup_counts::counts("/"), None);
            add_network(&mut families, &root, &interfaces::of_process(1));
        }
        let mut text = String::new();
        for Family(name, kind, lines) in families.into_iter().filter(|family| !family.2.is_empty()) {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "# TYPE {name} {kind}");
            lines.iter().for_each(|line| text += &format!("{line}\n"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::ContainerUsage;
    use serde_json::json;

    #[test]
    fn pods_and_containers_have_lines() {
        let of = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [{"name": "c"}]}}))
        .unwrap();
        let usage = Usage { cpu_nanoseconds: 1_500_000_000, working_set: 10, memory: 30 };
        let container = ContainerUsage {
            name: "c".into(),
            id: "abc".into(),
            image: "i:1".into(),
            started: "2026-01-01T00:00:00Z".into(),
            usage,
        };
        let families = of_pods(&[PodUsage { of: std::sync::Arc::new(of), whole: usage, containers: vec![container] }]);
        let cpu = &families[0].2;
        assert_eq!(cpu.len(), 2);
        let labels = "{container=\"c\",id=\"/kubepods/besteffort/podu/abc\",image=\"i:1\",name=\"abc\",namespace=\"n\",pod=\"p\"}";
        assert_eq!(cpu[1], format!("container_cpu_usage_seconds_total{labels} 1.5"));
        let started = families.iter().find(|f| f.0 == "container_start_time_seconds").unwrap();
        assert_eq!(started.2, [format!("container_start_time_seconds{labels} 1767225600")]);
        let quota = families.iter().find(|f| f.0 == "container_spec_cpu_quota").unwrap();
        assert!(quota.2.is_empty(), "no quota is told of groups without one");
    }

    #[test]
    fn interfaces_have_lines() {
        let mut families = families();
        let labels = Labels { container: "", id: "/", image: "", name: "", namespace: "n", pod: "p" };
        let eth0 = Interface { name: "eth0".into(), received: [1, 2, 3, 4], sent: [5, 6, 7, 8] };
        add_network(&mut families, &labels, &[eth0]);
        let lines: Vec<&str> = families.iter().flat_map(|f| &f.2).map(String::as_str).collect();
        assert_eq!(lines.len(), 8);
        assert!(lines[0].starts_with("container_network_receive_bytes_total{") && lines[0].ends_with("} 1"));
        assert!(lines[7].contains("interface=\"eth0\"") && lines[7].ends_with("} 8"));
    }
}
