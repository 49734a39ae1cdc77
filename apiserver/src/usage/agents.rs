//! What the agents of real nodes say: their summaries, read when they are needed and kept for a few seconds.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use parking_lot::Mutex;
use serde_json::Value;

use crate::{ApiServer, streams};

/// The time over which agents measure, and for which an answer of theirs is good.
pub const WINDOW: Duration = Duration::from_secs(10);
/// An agent that has not answered within this has no figures this time.
const PATIENCE: Duration = Duration::from_secs(3);
/// Agents that are asked at a time.
const AT_ONCE: usize = 64;
/// Longest summary, bytes.
const MAX_SUMMARY: usize = 16 << 20;
/// Nodes whose answers are kept; beyond, those that are no longer good are forgotten.
const KEPT: usize = 10_000;

/// Use of processors and memory at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Thousand-millionths of a processor.
    pub cpu_nanocores: u64,
    /// Bytes that could not be had back at once.
    pub memory_bytes: u64,
}

/// What one agent said.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// When.
    pub time: String,
    /// The node as a whole.
    pub node: Option<Sample>,
    /// Containers of pods, by namespace and name; only pods of which all figures are there.
    pub pods: HashMap<(String, String), Vec<(String, Sample)>>,
}

impl Reading {
    /// One that is made now.
    pub fn now() -> Self {
        Self { time: crate::strategy::now(), ..Self::default() }
    }

    fn parse(summary: &Value) -> Self {
        let time = summary["node"]["cpu"]["time"].as_str().map_or_else(crate::strategy::now, str::to_owned);
        let container = |c: &Value| Some((c["name"].as_str()?.to_owned(), sample(c)?));
        let pod = |p: &Value| {
            let text = |key: &str| p["podRef"][key].as_str().map(str::to_owned);
            let containers: Option<Vec<_>> = p["containers"].as_array()?.iter().map(container).collect();
            Some(((text("namespace")?, text("name")?), containers.filter(|list| !list.is_empty())?))
        };
        let pods = summary["pods"].as_array().into_iter().flatten().filter_map(pod).collect();
        Self { time, node: sample(&summary["node"]), pods }
    }
}

fn sample(of: &Value) -> Option<Sample> {
    Some(Sample {
        cpu_nanocores: of["cpu"]["usageNanoCores"].as_u64()?,
        memory_bytes: of["memory"]["workingSetBytes"].as_u64()?,
    })
}

/// A node's last answer: when it was asked, and what it said, if it did.
type Slot = Arc<tokio::sync::Mutex<Option<(Instant, Option<Arc<Reading>>)>>>;

/// The answers of all agents.
#[derive(Default)]
pub struct Readings(Mutex<HashMap<String, Slot>>);

impl Readings {
    fn slot(&self, node: &str) -> Slot {
        let mut slots = self.0.lock();
        if slots.len() >= KEPT {
            let good = |slot: &Slot| {
                slot.try_lock().map_or(true, |held| held.as_ref().is_some_and(|(at, _)| at.elapsed() < WINDOW))
            };
            slots.retain(|_, slot| good(slot));
        }
        slots.entry(node.to_owned()).or_default().clone()
    }

    /// The answer of one agent: one question serves all who ask meanwhile.
    async fn one(&self, server: &ApiServer, node: &str) -> Option<Arc<Reading>> {
        let slot = self.slot(node);
        let mut held = slot.lock().await;
        if let Some((_, reading)) = held.as_ref().filter(|(at, _)| at.elapsed() < WINDOW) {
            return reading.clone();
        }
        let asked = tokio::time::timeout(
            PATIENCE,
            streams::read(server, node, "/stats/summary?only_cpu_and_memory=true", MAX_SUMMARY),
        )
        .await;
        let reading = match asked {
            Ok(Ok(bytes)) => serde_json::from_slice(&bytes).ok().map(|summary| Arc::new(Reading::parse(&summary))),
            Ok(Err(status)) => {
                tracing::debug!(node, why = status.message, "an agent gave no summary");
                None
            }
            Err(_) => {
                tracing::debug!(node, "an agent gave no summary in time");
                None
            }
        };
        *held = Some((Instant::now(), reading.clone()));
        reading
    }

    /// The answers of some agents; those that have none are left out.
    pub async fn of(&self, server: &ApiServer, nodes: BTreeSet<String>) -> HashMap<String, Arc<Reading>> {
        let asked = futures::stream::iter(nodes).map(async |node| (self.one(server, &node).await, node));
        asked.buffer_unordered(AT_ONCE).filter_map(async |(reading, node)| Some((node, reading?))).collect().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn summaries_are_read() {
        let use_of = |cpu: Value, memory: u64| json!({"cpu": {"time": "2026-01-01T00:00:00Z", "usageNanoCores": cpu}, "memory": {"workingSetBytes": memory}});
        let pod = |name: &str, containers: Vec<Value>| json!({"podRef": {"namespace": "n", "name": name}, "containers": containers});
        let mut container = use_of(json!(5), 7);
        container["name"] = "c".into();
        let mut unknown = use_of(Value::Null, 7);
        unknown["name"] = "new".into();
        let summary = json!({"node": use_of(json!(100), 200), "pods": [
            pod("good", vec![container.clone()]), pod("half", vec![container, unknown]), pod("none", vec![])]});
        let reading = Reading::parse(&summary);
        assert_eq!(reading.node, Some(Sample { cpu_nanocores: 100, memory_bytes: 200 }));
        assert_eq!(reading.time, "2026-01-01T00:00:00Z");
        let wanted = vec![("c".to_owned(), Sample { cpu_nanocores: 5, memory_bytes: 7 })];
        assert_eq!(reading.pods, HashMap::from([(("n".to_owned(), "good".to_owned()), wanted)]));
        assert!(Reading::parse(&json!({})).node.is_none());
    }
}
