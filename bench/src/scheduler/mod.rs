//! `bench scheduler`: pods of several forms created through the API on hollow nodes, and how long it takes until all of them
//! have a node. The server runs everything: API, store, controllers, scheduler and the nodes, which start the pods they get.

mod forms;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use self::forms::{Before, FILLER_CPU, FORMS, Form, PRIORITY_CLASS, ZONE, ZONES, claim, pod};
use crate::Options;
use crate::load::{Connection, Request, Target, drive, milliseconds, percentile};
use crate::process::Server;
use crate::report::Report;

/// Nodes of the cluster.
const NODES: usize = 5_000;
/// Addresses of pods: each node gets a range of 256, so that every pod is started.
const CLUSTER_CIDR: &str = "100.64.0.0/10";
/// Connections that create them.
const CONNECTIONS: usize = 64;
/// Pods created one after another.
const PODS_ALONE: usize = 500;
/// Pause between these.
const PAUSE: Duration = Duration::from_millis(10);
/// All nodes must be there, and all pods bound, within this.
const PATIENCE: Duration = Duration::from_secs(180);
/// How often the nodes are counted.
const POLL: Duration = Duration::from_millis(250);
/// What was made before is through when the server takes less than this share of a processor, heartbeats included...
const QUIET_CPU: f64 = 0.5;
/// ...over this time,
const QUIET_OVER: Duration = Duration::from_secs(1);
/// or after this: what is measured then is not the burst alone.
const QUIET_PATIENCE: Duration = Duration::from_secs(60);
/// An event that a pod got its node: the watch selects pods that have one.
const BOUND: &[u8] = b"{\"type\":\"ADDED\"";

const PATH: &str = "/api/v1/namespaces/default/pods";
const CLAIMS: &str = "/api/v1/namespaces/default/persistentvolumeclaims";
const VOLUMES: &str = "/api/v1/persistentvolumes";
const PRIORITIES: &str = "/apis/scheduling.k8s.io/v1/priorityclasses";
/// Pods that fill a node.
const FILLERS_PER_NODE: usize = 2;

/// Measures one server.
pub async fn run(options: Options) -> Result<Report> {
    let nodes = options.amount(NODES);
    let arguments = ["--hollow", &nodes.to_string(), "--cluster-cidr", CLUSTER_CIDR];
    let server = Server::start(&options.keelson, &arguments).await?;
    let target = server.target()?;
    nodes_ready(&target, nodes).await?;
    let class = json!({"metadata": {"name": PRIORITY_CLASS}, "value": 1000});
    target.connect().await?.must("POST", PRIORITIES, class.to_string()).await?;
    let label = |i: usize| Request {
        method: "PATCH",
        path: format!("/api/v1/nodes/hollow-{i}"),
        body: json!({"metadata": {"labels": {ZONE: format!("zone-{}", i % ZONES)}}}).to_string().into(),
    };
    drive(&target, CONNECTIONS, nodes, label).await?;
    let mut report = Report::default();
    for form in FORMS.iter().filter(|form| options.wants(form.key)) {
        let pods = options.amount(form.pods);
        prepare(&target, form, pods, nodes).await?;
        quiet(&server).await?;
        burst(&mut report, (&server, &target), form, pods).await?;
        clear(&target, form.before).await?;
    }
    if options.wants("alone") {
        quiet(&server).await?;
        one_by_one(&mut report, &target, options.amount(PODS_ALONE)).await?;
    }
    Ok(report)
}

/// Makes what has to be there before the pods of a form.
async fn prepare(target: &Target, form: &Form, pods: usize, nodes: usize) -> Result<()> {
    match form.before {
        Before::Nothing => return Ok(()),
        Before::FullNodes => {
            let fillers = nodes * FILLERS_PER_NODE;
            let watched = watch(target, "filler", fillers).await?;
            let create = |i: usize| post(PATH, &pod("filler", i, FILLER_CPU, &Value::Null));
            drive(target, CONNECTIONS, fillers, create).await?;
            tokio::time::timeout(PATIENCE, watched).await.context("the nodes were not filled in time")???;
        }
        Before::BoundClaims => {
            drive(target, CONNECTIONS, pods, |i| post(VOLUMES, &claim(i, true).1.unwrap_or_default())).await?;
            drive(target, CONNECTIONS, pods, |i| post(CLAIMS, &claim(i, true).0)).await?;
            counted(target, CLAIMS, "\"phase\":\"Bound\"", pods).await?;
        }
        Before::OpenClaims => drop(drive(target, CONNECTIONS, pods, |i| post(CLAIMS, &claim(i, false).0)).await?),
    }
    Ok(())
}

fn post(path: &str, object: &Value) -> Request {
    Request { method: "POST", path: path.into(), body: object.to_string().into() }
}

/// Waits until a list contains a text so many times.
async fn counted(target: &Target, path: &str, text: &str, wanted: usize) -> Result<()> {
    let mut connection = target.connect().await?;
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        let answer = connection.call("GET", path, "").await?;
        if String::from_utf8_lossy(&answer.body).matches(text).count() >= wanted {
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
    bail!("{path} did not have {text} {wanted} times within {PATIENCE:?}")
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

/// Deletes all pods, claims and volumes, and waits until they are gone.
async fn clear(target: &Target, before: Before) -> Result<()> {
    let claims = matches!(before, Before::BoundClaims | Before::OpenClaims);
    let paths = if claims { &[PATH, CLAIMS, VOLUMES][..] } else { &[PATH][..] };
    for path in paths {
        let mut connection = target.connect().await?;
        connection.must("DELETE", path, r#"{"gracePeriodSeconds":0}"#).await?;
        empty(&mut connection, path).await?;
    }
    Ok(())
}

async fn empty(connection: &mut Connection, path: &str) -> Result<()> {
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        let answer = connection.call("GET", &format!("{path}?limit=1"), "").await?;
        if String::from_utf8_lossy(&answer.body).contains("\"items\":[]") {
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
    bail!("{path} was not empty within {PATIENCE:?}")
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

/// Waits until the server has done what was asked for before: events of claims, starts and ends of pods.
async fn quiet(server: &Server) -> Result<()> {
    let started = Instant::now();
    while started.elapsed() < QUIET_PATIENCE {
        let (before, at) = (server.usage()?.cpu, Instant::now());
        tokio::time::sleep(QUIET_OVER).await;
        let used = server.usage()?.cpu.saturating_sub(before).as_secs_f64();
        if used / at.elapsed().as_secs_f64() < QUIET_CPU {
            return Ok(());
        }
    }
    eprintln!("the server was still busy after {QUIET_PATIENCE:?}");
    Ok(())
}

async fn burst(
    report: &mut Report,
    (server, target): (&Server, &Target),
    form: &'static Form,
    pods: usize,
) -> Result<()> {
    let fitting = form.fitting(pods);
    let watched = watch(target, "burst", fitting).await?;
    let before = server.usage()?;
    let started = Instant::now();
    let load = drive(target, CONNECTIONS, pods, |i| post(PATH, &form.pod(i))).await?;
    let times = tokio::time::timeout(PATIENCE, watched).await.context("not all pods were bound in time")???;
    let last = times.values().max().copied().unwrap_or(started) - started;
    let after = server.usage()?;
    let seconds = |d: Duration| format!("{:.2} s", d.as_secs_f64());
    report.add(
        format!("{pods} pods, {}", form.name),
        vec![
            ("created", format!("{:.0}/s", load.rate())),
            ("first create to last bound", seconds(last)),
            ("bound", format!("{:.0}/s", fitting as f64 / last.as_secs_f64())),
            ("server CPU", seconds(after.cpu.saturating_sub(before.cpu))),
            ("RSS", format!("{} MiB", after.rss_kib / 1024)),
        ],
    );
    Ok(())
}

async fn one_by_one(report: &mut Report, target: &Target, pods: usize) -> Result<()> {
    let mut connection = target.connect().await?;
    let watched = watch(target, "alone", pods).await?;
    let mut sent = Vec::with_capacity(pods);
    for i in 0..pods {
        sent.push((format!("alone-{i}"), Instant::now()));
        connection.must("POST", PATH, pod("alone", i, "10m", &Value::Null).to_string()).await?;
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
