//! The use of pretended nodes and their pods: nothing runs there, so it follows from what pods ask for, or from what
//! their annotations say, so that autoscalers can be tried out without a load.

use std::collections::BTreeMap;

use keelson_machinery::quantity::Quantity;
use keelson_machinery::resources::find;
use serde_json::Value;

use super::agents::{Reading, Sample};
use crate::objects::Objects;

/// Annotations of pods: what each of their containers uses.
const ANNOTATIONS: (&str, &str) = ("keelson.dev/cpu-usage", "keelson.dev/memory-usage");
/// What a container uses that asks for nothing.
const IDLE: Sample = Sample { cpu_nanocores: 1_000_000, memory_bytes: 8 << 20 };
/// What a node uses without pods.
const NODE: Sample = Sample { cpu_nanocores: 50_000_000, memory_bytes: 256 << 20 };

fn add(a: Sample, b: Sample) -> Sample {
    Sample { cpu_nanocores: a.cpu_nanocores + b.cpu_nanocores, memory_bytes: a.memory_bytes + b.memory_bytes }
}

/// A quantity in thousandths, if it is one.
fn millis(value: &Value) -> Option<u64> {
    let text = value.as_str().map(str::to_owned).or_else(|| value.as_i64().map(|n| n.to_string()))?;
    u64::try_from(Quantity::parse(&text).ok()?.millis()).ok()
}

/// What a container uses: what the annotation says, half of what it asks for, or next to nothing.
fn container(pod: &Value, container: &Value) -> Sample {
    let annotations = &pod["metadata"]["annotations"];
    let wanted = |name: &str| {
        let resources = &container["resources"];
        millis(&resources["requests"][name]).or_else(|| millis(&resources["limits"][name])).map(|amount| amount / 2)
    };
    let cpu = millis(&annotations[ANNOTATIONS.0]).or_else(|| wanted("cpu"));
    let memory = millis(&annotations[ANNOTATIONS.1]).or_else(|| wanted("memory"));
    Sample {
        cpu_nanocores: cpu.map_or(IDLE.cpu_nanocores, |millis| millis.saturating_mul(1_000_000)),
        memory_bytes: memory.map_or(IDLE.memory_bytes, |millis| millis / 1000),
    }
}

/// The containers of a pod with what they use.
pub fn containers(pod: &Value) -> Vec<(String, Sample)> {
    let list = pod["spec"]["containers"].as_array().into_iter().flatten();
    list.map(|c| (c["name"].as_str().unwrap_or_default().to_owned(), container(pod, c))).collect()
}

/// The use of all running pods, by their nodes.
pub fn by_node(objects: &Objects) -> BTreeMap<String, Sample> {
    let mut nodes: BTreeMap<String, Sample> = BTreeMap::new();
    let Some(def) = find("", "v1", "pods") else { return nodes };
    for pod in objects.all(def, "").iter().filter(|pod| pod["status"]["phase"] == "Running") {
        let Some(node) = pod["spec"]["nodeName"].as_str() else { continue };
        let sum = containers(pod).into_iter().fold(Sample::default(), |sum, (_, sample)| add(sum, sample));
        let total = nodes.entry(node.to_owned()).or_default();
        *total = add(*total, sum);
    }
    nodes
}

/// A node whose pods use so much.
pub fn node(pods: Sample) -> Reading {
    Reading { node: Some(add(NODE, pods)), ..Reading::now() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn use_follows_requests_unless_told() {
        let of = |annotations: Value, resources: Value| {
            let pod = json!({"metadata": {"annotations": annotations},
                "spec": {"containers": [{"name": "c", "resources": resources}]}});
            containers(&pod)[0].1
        };
        let sample = |cpu_nanocores, memory_bytes| Sample { cpu_nanocores, memory_bytes };
        let asked = json!({"requests": {"cpu": "500m", "memory": "64Mi"}});
        assert_eq!(of(json!({}), asked.clone()), sample(250_000_000, 32 << 20));
        assert_eq!(of(json!({}), json!({})), IDLE);
        assert_eq!(of(json!({"keelson.dev/cpu-usage": "2"}), asked), sample(2_000_000_000, 32 << 20));
        assert_eq!(
            of(json!({"keelson.dev/memory-usage": "x"}), json!({"limits": {"memory": "2Ki"}})).memory_bytes,
            1024
        );
        assert_eq!(node(sample(1, 1)).node, Some(sample(50_000_001, (256 << 20) + 1)));
    }
}
