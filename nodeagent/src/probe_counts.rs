//! What probes found, counted for `/metrics/probes`.

use std::collections::BTreeMap;
use std::fmt::Write;

use parking_lot::Mutex;

use crate::spec::pod;

/// Rows that are kept; beyond, all are forgotten, as after a new start.
const MAX_ROWS: usize = 20_000;

/// Labels but for the result: kind of probe, container, namespace, pod, its uid.
type Labels = [String; 5];

/// The counts: successes and failures.
#[derive(Default)]
pub struct ProbeCounts(Mutex<BTreeMap<Labels, [u64; 2]>>);

impl ProbeCounts {
    /// Counts one result.
    pub fn note(&self, kind: &str, container: &str, of: &k8s_openapi::api::core::v1::Pod, good: bool) {
        let text = |part: &Option<String>| part.clone().unwrap_or_default();
        let labels =
            [kind.into(), container.into(), text(&of.metadata.namespace), text(&of.metadata.name), pod::uid(of)];
        let mut rows = self.0.lock();
        if rows.len() >= MAX_ROWS {
            rows.clear();
        }
        rows.entry(labels).or_default()[usize::from(!good)] += 1;
    }

    /// Forgets a pod that is gone.
    pub fn forget(&self, uid: &str) {
        self.0.lock().retain(|labels, _| labels[4] != uid);
    }

    /// As Prometheus reads it.
    pub fn metrics(&self) -> String {
        let mut text = String::from(
            "# HELP prober_probe_total Cumulative number of a liveness, readiness or startup probe for a container by \
             result.\n# TYPE prober_probe_total counter\n",
        );
        for ([kind, container, namespace, pod, uid], counts) in &*self.0.lock() {
            for (result, count) in ["successful", "failed"].iter().zip(counts).filter(|(_, count)| **count > 0) {
                // Writing to a string cannot fail; names have no character that would have to be escaped.
                let _ = writeln!(
                    text,
                    "prober_probe_total{{container=\"{container}\",namespace=\"{namespace}\",pod=\"{pod}\",pod_uid=\"{uid}\",\
                     probe_type=\"{kind}\",result=\"{result}\"}} {count}"
                );
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_counted_until_the_pod_is_gone() {
        let of = serde_json::from_value(serde_json::json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}}))
            .unwrap();
        let counts = ProbeCounts::default();
        for good in [true, true, false] {
            counts.note("Liveness", "c", &of, good);
        }
        let text = counts.metrics();
        let line = |result: &str, count: u32| {
            format!(
                "prober_probe_total{{container=\"c\",namespace=\"n\",pod=\"p\",pod_uid=\"u\",probe_type=\"Liveness\",result=\"{result}\"}} {count}"
            )
        };
        assert!(text.contains(&line("successful", 2)) && text.contains(&line("failed", 1)), "{text}");
        counts.forget("u");
        assert!(!counts.metrics().contains("probe_type"));
    }
}
