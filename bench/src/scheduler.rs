//! `bench scheduler`: pods of several forms created through the API on hollow nodes, and how long it takes until all of them have a node. The
//! server runs everything: API, store, controllers, scheduler and the nodes, which start the pods they get.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::Options;
use crate::load::{Request, Target, drive, milliseconds, percentile};
use crate::process::Server;
use crate::report::Report;

/// Nodes of the cluster.
const NODES: usize = 5_000;
/// Pods created as fast as possible.
const PODS: usize = 10_000;
/// Connections that create them.
const CONNECTIONS: usize = 64;
/// Pods of each other form.
const PODS_OF_A_FORM: usize = 3_000;
/// Pods created one after another.
const PODS_ALONE: usize = 500;
/// Pause between these.
const PAUSE: Duration = Duration::from_millis(10);
/// All nodes must be there, and all pods bound, within this.
const PATIENCE: Duration = Duration::from_secs(180);
/// How often the nodes are counted.
const POLL: Duration = Duration::from_millis(250);
/// Pause after the burst.
const SETTLE: Duration = Duration::from_secs(10);
/// An event that a pod got its node: the watch selects pods that have one.
const BOUND: &[u8] = b"{\"type\":\"ADDED\"";

const PATH: &str = "/api/v1/namespaces/default/pods";

/// Measures one server.
pub async fn run(options: Options) -> Result<Report> {
    let nodes = options.amount(NODES);
    let server = Server::start(&options.keelson, &["--hollow", &nodes.to_string()]).await?;
    let target = server.target()?;
    nodes_ready(&target, nodes).await?;
    let mut report = Report::default();
    burst(&mut report, (&server, &target), &FORMS[0], options.amount(PODS)).await?;
    for form in &FORMS[1..] {
        clear(&target).await?;
        burst(&mut report, (&server, &target), form, options.amount(PODS_OF_A_FORM)).await?;
    }
    clear(&target).await?;
    one_by_one(&mut report, &target, options.amount(PODS_ALONE)).await?;
    Ok(report)
}

async fn nodes_ready(target: &Target, nodes: usize) -> Result<()> {
    let mut connection = target.connect().await?;
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        let answer = connection.call("GET", "/api/v1/nodes", "").await?;
        let text = String::from_utf8_lossy(&answer.body);
        // Tainted nodes are not ready for pods yet.
        if text.matches("\"kubernetes.io/hostname\":\"hollow-").count() >= nodes
            && !text.contains("node.kubernetes.io/not-ready")
        {
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
    bail!("{nodes} nodes were not ready within {PATIENCE:?}")
}

/// A form of pods: what their spec says beside containers.
struct Form {
    name: &'static str,
    spec: fn(usize) -> Value,
}

const HOST: &str = "kubernetes.io/hostname";

fn spread(key: &str, when: &str) -> Value {
    json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": when,
        "labelSelector": {"matchLabels": {"app": "burst"}}}]})
}

fn near(key: &str, selector: Value) -> Value {
    json!({"labelSelector": {"matchLabels": selector}, "topologyKey": key})
}

/// The cases; the first is that of the reference figures.
const FORMS: &[Form] = &[
    Form { name: "nothing special", spec: |_| json!({}) },
    Form {
        name: "required node affinity",
        spec: |_| {
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]}]}]}}}})
        },
    },
    Form { name: "spread over hosts, required", spec: |_| spread(HOST, "DoNotSchedule") },
    Form { name: "spread over hosts, preferred", spec: |_| spread(HOST, "ScheduleAnyway") },
    Form {
        name: "preferred pod affinity, by host",
        spec: |_| {
            json!({"affinity": {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 1, "podAffinityTerm": near(HOST, json!({"app": "burst"}))}]}}})
        },
    },
    Form {
        name: "required pod anti-affinity, by host, ten groups",
        spec: |i| {
            let group = format!("g{}", i % 10);
            json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
                near(HOST, json!({"group": group}))]}}})
        },
    },
];

fn pod(app: &str, number: usize, more: &Value) -> Bytes {
    let (name, group) = (format!("{app}-{number}"), format!("g{}", number % 10));
    let mut object = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": app, "group": group}},
        "spec": {"containers": [{"name": "c", "image": "registry.k8s.io/pause:3.10",
            "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}}}]}});
    for (key, value) in more.as_object().into_iter().flatten() {
        object["spec"][key] = value.clone();
    }
    object.to_string().into()
}

/// Deletes all pods and waits until they are gone.
async fn clear(target: &Target) -> Result<()> {
    let mut connection = target.connect().await?;
    connection.must("DELETE", PATH, r#"{"gracePeriodSeconds":0}"#).await?;
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        let answer = connection.call("GET", &format!("{PATH}?limit=1"), "").await?;
        if String::from_utf8_lossy(&answer.body).contains("\"items\":[]") {
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
    bail!("the pods were not gone within {PATIENCE:?}")
}

/// When each pod got its node, until `wanted` have one.
async fn bound(mut body: Incoming, wanted: usize) -> Result<HashMap<String, Instant>> {
    let mut times = HashMap::with_capacity(wanted);
    let mut rest: Vec<u8> = Vec::new();
    while times.len() < wanted {
        let Some(frame) = body.frame().await else { bail!("the watch ended after {} pods", times.len()) };
        let Ok(data) = frame?.into_data() else { continue };
        rest.extend_from_slice(&data);
        let now = Instant::now();
        let mut start = 0;
        while let Some(length) = rest[start..].iter().position(|b| *b == b'\n') {
            let line = &rest[start..start + length];
            if line.starts_with(BOUND) {
                times.insert(name_of(line).context("an event without a name")?, now);
            }
            start += length + 1;
        }
        rest.drain(..start);
    }
    Ok(times)
}

/// The name of the pod in an event, found without reading all of it.
fn name_of(line: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Event {
        object: Object,
    }
    #[derive(serde::Deserialize)]
    struct Object {
        metadata: Metadata,
    }
    #[derive(serde::Deserialize)]
    struct Metadata {
        name: String,
    }
    serde_json::from_slice::<Event>(line).ok().map(|event| event.object.metadata.name)
}

/// Watches pods of one label that have a node.
async fn watch(target: &Target, app: &str, wanted: usize) -> Result<JoinHandle<Result<HashMap<String, Instant>>>> {
    let mut connection = target.connect().await?;
    let path = format!("{PATH}?watch=1&fieldSelector=spec.nodeName!%3D&labelSelector=app%3D{app}");
    let response = connection.open("GET", &path, Bytes::new()).await?;
    if !response.status().is_success() {
        bail!("the watch was refused with {}", response.status());
    }
    Ok(tokio::spawn(async move {
        let _open = connection;
        bound(response.into_body(), wanted).await
    }))
}

async fn burst(
    report: &mut Report,
    (server, target): (&Server, &Target),
    form: &'static Form,
    pods: usize,
) -> Result<()> {
    let watched = watch(target, "burst", pods).await?;
    let before = server.usage()?;
    let started = Instant::now();
    let create = |i: usize| Request { method: "POST", path: PATH.into(), body: pod("burst", i, &(form.spec)(i)) };
    let load = drive(target, CONNECTIONS, pods, create).await?;
    let times = tokio::time::timeout(PATIENCE, watched).await.context("not all pods were bound in time")???;
    let last = times.values().max().copied().unwrap_or(started) - started;
    let after = server.usage()?;
    let seconds = |d: Duration| format!("{:.2} s", d.as_secs_f64());
    report.add(
        format!("{pods} pods, {}", form.name),
        vec![
            ("created", format!("{:.0}/s", load.rate())),
            ("first create to last bound", seconds(last)),
            ("bound", format!("{:.0}/s", pods as f64 / last.as_secs_f64())),
            ("server CPU", seconds(after.cpu.saturating_sub(before.cpu))),
            ("RSS", format!("{} MiB", after.rss_kib / 1024)),
        ],
    );
    Ok(())
}

async fn one_by_one(report: &mut Report, target: &Target, pods: usize) -> Result<()> {
    // The nodes still start the pods of the burst.
    tokio::time::sleep(SETTLE).await;
    let mut connection = target.connect().await?;
    let watched = watch(target, "alone", pods).await?;
    let mut sent = Vec::with_capacity(pods);
    for i in 0..pods {
        sent.push((format!("alone-{i}"), Instant::now()));
        connection.must("POST", PATH, pod("alone", i, &Value::Null)).await?;
        tokio::time::sleep(PAUSE).await;
    }
    let times = tokio::time::timeout(PATIENCE, watched).await.context("not all pods were bound in time")???;
    let mut latencies: Vec<Duration> =
        sent.iter().filter_map(|(name, at)| Some(times.get(name)?.duration_since(*at))).collect();
    latencies.sort_unstable();
    report.add(
        format!("{pods} pods, one each {} ms", PAUSE.as_millis()),
        vec![
            ("sent to bound p50", milliseconds(percentile(&latencies, 50.0))),
            ("p99", milliseconds(percentile(&latencies, 99.0))),
        ],
    );
    Ok(())
}
