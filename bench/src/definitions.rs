//! `bench definitions`: many CustomResourceDefinitions of usual size: how soon one is established, how soon the last of a
//! thousand is published, and what they cost in memory.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::Options;
use crate::load::{Connection, Request, drive, milliseconds, percentile};
use crate::process::Server;
use crate::report::Report;

/// Definitions made one after another.
const ALONE: usize = 50;
/// Definitions made together.
const TOGETHER: usize = 1_000;
/// Connections that make them.
const CONNECTIONS: usize = 8;
/// Size of a schema in bytes: about the mean of what operators bring.
const SCHEMA_BYTES: usize = 44_000;
/// What a node takes beside what is in it.
const NODE_BYTES: i64 = 20;
/// Groups that they are spread over.
const GROUPS: usize = 40;
/// Memory is read this long after work ends.
const REST: Duration = Duration::from_secs(40);
/// What is not there by then never will be.
const PATIENCE: Duration = Duration::from_secs(120);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(1);
/// Pause between two looks at all of discovery.
const LONG_PAUSE: Duration = Duration::from_millis(50);

const PATH: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// Measures one server.
pub async fn run(options: Options) -> Result<Report> {
    let mut report = Report::default();
    let server = Server::start(&options.keelson, &[]).await?;
    let target = server.target()?;
    let mut connection = target.connect().await?;
    let rest = if options.quick { REST / 10 } else { REST };
    let mut times = Vec::new();
    for index in 0..options.amount(ALONE) {
        times.push(establish(&mut connection, "alone", index).await?);
    }
    times.sort_unstable();
    let figure = |percent| milliseconds(percentile(&times, percent));
    report.add("created to established and served, one at a time", vec![("p50", figure(50.0)), ("p99", figure(99.0))]);
    tokio::time::sleep(rest).await;
    let (count, before) = (options.amount(TOGETHER), server.usage()?);
    let bodies: Vec<Bytes> = (0..count).map(|index| definition("many", index)).collect();
    let bytes: usize = bodies.iter().map(Bytes::len).sum();
    let load = drive(&target, CONNECTIONS, count, move |index| Request {
        method: "POST",
        path: PATH.into(),
        body: bodies[index].clone(),
    })
    .await?;
    let created = Instant::now();
    // The first connection said nothing meanwhile, and may have been closed for that.
    published(&mut target.connect().await?, count).await?;
    let lag = created.elapsed();
    let worked = server.usage()?;
    tokio::time::sleep(rest).await;
    let after = server.usage()?;
    report.add(
        format!("{count} definitions, {CONNECTIONS} connections, {:.1} MB in all", bytes as f64 / 1e6),
        vec![
            ("rate", format!("{:.0}/s", load.rate())),
            ("p99", milliseconds(load.percentile(99.0))),
            ("last published after", milliseconds(lag)),
            ("CPU each", format!("{:.2} ms", (worked.cpu - before.cpu).as_secs_f64() * 1000.0 / count as f64)),
            ("RSS more", format!("{} MiB", after.rss_kib.saturating_sub(before.rss_kib) / 1024)),
            ("RSS", format!("{} MiB", after.rss_kib / 1024)),
        ],
    );
    Ok(report)
}

/// Makes a definition; how long until it says that it is established and its objects can be listed.
async fn establish(connection: &mut Connection, kind: &str, index: usize) -> Result<Duration> {
    let started = Instant::now();
    connection.must("POST", PATH, definition(kind, index)).await?;
    let (group, plural) = names(kind, index);
    while started.elapsed() < PATIENCE {
        let object = connection.must("GET", &format!("{PATH}/{plural}.{group}"), "").await?;
        let object: Value = serde_json::from_slice(&object)?;
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let established = conditions.iter().any(|c| c["type"] == "Established" && c["status"] == "True");
        if established && connection.call("GET", &format!("/apis/{group}/v1/{plural}"), "").await?.status == 200 {
            return Ok(started.elapsed());
        }
        tokio::time::sleep(PAUSE).await;
    }
    bail!("{plural}.{group} was not established within {PATIENCE:?}")
}

/// Waits until discovery lists the kind of every definition.
async fn published(connection: &mut Connection, count: usize) -> Result<()> {
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        let mut listed = 0;
        for group in 0..GROUPS.min(count) {
            let answer = connection.call("GET", &format!("/apis/g{group}.many.example/v1"), "").await?;
            let list: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
            listed += list["resources"].as_array().map_or(0, Vec::len);
        }
        if listed >= count {
            return Ok(());
        }
        tokio::time::sleep(LONG_PAUSE).await;
    }
    bail!("not all of {count} definitions were published within {PATIENCE:?}")
}

fn names(kind: &str, index: usize) -> (String, String) {
    (format!("g{}.{kind}.example", index % GROUPS), format!("things{index}"))
}

fn definition(kind: &str, index: usize) -> Bytes {
    let (group, plural) = names(kind, index);
    let schema = json!({"type": "object", "properties": {
        "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"},
        "spec": Writer { seed: index as u64 + 1, left: SCHEMA_BYTES as i64 }.object(0),
    }});
    let version = json!({"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}});
    let object = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}")},
        "spec": {"group": group, "scope": "Namespaced", "versions": [version],
            "names": {"plural": plural, "kind": format!("Thing{index}")}}});
    object.to_string().into()
}

/// Writes schemas of a size, always the same for a seed.
struct Writer {
    seed: u64,
    left: i64,
}

impl Writer {
    /// A number below a bound.
    fn below(&mut self, bound: u64) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) % bound
    }

    fn object(&mut self, depth: u32) -> Value {
        let mut fields = Map::new();
        while self.left > 0 && (depth == 0 || fields.len() < 8) {
            let inner = if depth < 6 && self.below(4) == 0 { self.object(depth + 1) } else { self.leaf() };
            self.left -= NODE_BYTES;
            fields.insert(format!("field{}", fields.len()), inner);
        }
        json!({"type": "object", "properties": fields})
    }

    /// A field with a description of usual length.
    fn leaf(&mut self) -> Value {
        const WORDS: [&str; 12] = [
            "name",
            "of",
            "the",
            "resource",
            "that",
            "is",
            "selected",
            "when",
            "policy",
            "allows",
            "its",
            "controller",
        ];
        let mut leaf = match self.below(5) {
            0 => json!({"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}),
            1 => json!({"type": "integer", "format": "int32", "minimum": 0}),
            2 => json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "atomic"}),
            3 => json!({"type": "object", "additionalProperties": {"type": "string"}}),
            _ => json!({"type": "string", "enum": ["Always", "IfNotPresent", "Never"]}),
        };
        let words: Vec<&str> = (0..8 + self.below(22)).map(|_| WORDS[self.below(12) as usize]).collect();
        leaf["description"] = words.join(" ").into();
        self.left -= i64::try_from(leaf.to_string().len()).unwrap_or(0) + 12;
        leaf
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_are_of_usual_size_and_always_the_same() {
        let made = definition("many", 7);
        assert!((SCHEMA_BYTES * 4 / 5..SCHEMA_BYTES * 6 / 5).contains(&made.len()), "{}", made.len());
        assert_eq!(made, definition("many", 7));
    }
}
