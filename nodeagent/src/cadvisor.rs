//! Use of containers and the machine under the names that dashboards know from cAdvisor (`/metrics/cadvisor`).

use std::fmt::Write;

use crate::agent::Agent;
use crate::stats::{PodUsage, machine, memory};

/// A family of metrics with its lines.
struct Family(&'static str, &'static str, Vec<String>);

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// The metrics of what pods use.
fn of_pods(pods: &[PodUsage]) -> Vec<Family> {
    let mut families = [
        ("container_cpu_usage_seconds_total", "counter"),
        ("container_memory_usage_bytes", "gauge"),
        ("container_memory_working_set_bytes", "gauge"),
        ("container_memory_cache", "gauge"),
        ("container_last_seen", "gauge"),
    ]
    .map(|(name, kind)| Family(name, kind, Vec::new()));
    let now = jiff::Timestamp::now().as_second();
    for pod in pods {
        let meta = &pod.of.metadata;
        let [namespace, name] = [&meta.namespace, &meta.name].map(|part| escaped(part.as_deref().unwrap_or_default()));
        let group = crate::cgroup::path(&pod.of);
        let whole = std::iter::once((String::new(), String::new(), group.clone(), &pod.whole));
        let each =
            pod.containers.iter().map(|c| (c.name.clone(), c.image.clone(), format!("{group}/{}", c.id), &c.usage));
        for (container, image, id, usage) in whole.chain(each) {
            let labels = format!(
                "{{container=\"{container}\",id=\"{id}\",image=\"{}\",name=\"{}\",namespace=\"{namespace}\",pod=\"{name}\"}}",
                escaped(&image),
                id.strip_prefix(&group).unwrap_or_default().trim_start_matches('/'),
            );
            let seconds = usage.cpu_nanoseconds as f64 / 1e9;
            families[0].2.push(format!("container_cpu_usage_seconds_total{labels} {seconds}"));
            families[1].2.push(format!("container_memory_usage_bytes{labels} {}", usage.memory));
            families[2].2.push(format!("container_memory_working_set_bytes{labels} {}", usage.working_set));
            let cache = usage.memory.saturating_sub(usage.working_set);
            families[3].2.push(format!("container_memory_cache{labels} {cache}"));
            families[4].2.push(format!("container_last_seen{labels} {now}"));
        }
    }
    families.into()
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
            let root = "{container=\"\",id=\"/\",image=\"\",name=\"\",namespace=\"\",pod=\"\"}";
            let seconds = usage.cpu_nanoseconds as f64 / 1e9;
            families[0].2.push(format!("container_cpu_usage_seconds_total{root} {seconds}"));
            families[2].2.push(format!("container_memory_working_set_bytes{root} {}", usage.working_set));
        }
        let mut text = String::new();
        for Family(name, kind, lines) in families {
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
    use crate::cgroup::Usage;
    use crate::stats::ContainerUsage;
    use serde_json::json;

    #[test]
    fn pods_and_containers_have_lines() {
        let of = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [{"name": "c"}]}}))
        .unwrap();
        let usage = Usage { cpu_nanoseconds: 1_500_000_000, working_set: 10, memory: 30 };
        let container =
            ContainerUsage { name: "c".into(), id: "abc".into(), image: "i:1".into(), started: "t".into(), usage };
        let families = of_pods(&[PodUsage { of: std::sync::Arc::new(of), whole: usage, containers: vec![container] }]);
        let cpu = &families[0].2;
        assert_eq!(cpu.len(), 2);
        let group = "/kubepods/besteffort/podu";
        let line = format!(
            "container_cpu_usage_seconds_total{{container=\"c\",id=\"{group}/abc\",image=\"i:1\",name=\"abc\",namespace=\"n\",pod=\"p\"}} 1.5"
        );
        assert_eq!(cpu[1], line);
        assert!(families[3].2[1].ends_with(" 20"));
    }
}
