//! `bench watch`: how long an event takes to reach many watchers, and what a watcher costs: each on its own connection
//! (`--only own`), many on each of a few HTTP/2 connections (`--only shared`), and each on its own while events are made as
//! fast as they can (`--only burst`). And what watchers cost that wait for something else (`--only others`).

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::Response;
use hyper::body::Incoming;
use serde_json::json;

use crate::Options;
use crate::load::{Connection, Request, Target, drive, milliseconds, percentile};
use crate::process::{Server, usage};
use crate::report::Report;

/// Watchers of the same resource.
const WATCHERS: usize = 1_000;
/// Connections that they share, where they do.
const SHARED: usize = 16;
/// Events that all of them get.
const EVENTS: usize = 500;
/// Events in a second, where they are made at a rate.
const RATE: u32 = 25;
/// Connections that make events as fast as they can.
const WRITERS: usize = 16;
/// The last event must have reached all watchers this long after it was made.
const PATIENCE: Duration = Duration::from_secs(60);
/// The field that holds an event's time, as it is found in the bytes of an event.
const MARK: &[u8] = b"\"sent\":\"";

/// Pods in a second, where they are made at a rate.
const POD_RATE: u32 = 100;

const PODS: &str = "/api/v1/namespaces/default/pods";
const PATH: &str = "/api/v1/namespaces/default/configmaps";

/// How events are made and watched.
struct Way {
    name: &'static str,
    /// So many HTTP/2 connections for all watchers instead of one for each.
    shared: Option<usize>,
    burst: bool,
}

const WAYS: [Way; 3] = [
    Way { name: "own", shared: None, burst: false },
    Way { name: "shared", shared: Some(SHARED), burst: false },
    Way { name: "burst", shared: None, burst: true },
];

/// Measures one server for each way.
pub async fn run(options: Options) -> Result<Report> {
    let mut report = Report::default();
    for way in WAYS.iter().filter(|way| options.wants(way.name)) {
        measure(&mut report, &options, way).await?;
    }
    if options.wants("others") {
        others(&mut report, &options).await?;
    }
    Ok(report)
}

/// What the pods of other nodes cost agents' watches: each is for one of as many nodes as there are watches.
async fn others(report: &mut Report, options: &Options) -> Result<()> {
    let (watchers, events) = (options.amount(WATCHERS), options.amount(EVENTS));
    raise_file_limit(watchers)?;
    let server = Server::start(&options.keelson, &["--hollow", "0"]).await?;
    let target = server.target()?;
    let alone = create_pods(&server, &target, "alone", events).await?;
    let mut watches = Vec::with_capacity(watchers);
    for index in 0..watchers {
        let path = format!("/api/v1/pods?watch=true&fieldSelector=spec.nodeName%3Dnode-{index}");
        watches.push(open_one(&target, &path).await?);
    }
    let watched = create_pods(&server, &target, "watched", events).await?;
    let each = |cpu: Duration| cpu.as_secs_f64() * 1e6 / events as f64;
    report.add(
        format!("{events} pods, {watchers} watchers of a node's pods each"),
        vec![
            ("server CPU a pod, no watcher", format!("{:.0} us", each(alone))),
            ("with the watchers", format!("{:.0} us", each(watched))),
            ("a watcher", format!("{:.2} us", (each(watched) - each(alone)) / watchers as f64)),
        ],
    );
    drop(watches);
    Ok(())
}

/// Makes pods of different nodes at the rate, one after the other; returns what of the processor the server took for it.
async fn create_pods(server: &Server, target: &Target, name: &str, count: usize) -> Result<Duration> {
    let mut connection = target.connect().await?;
    let before = server.usage()?.cpu;
    let mut tick = tokio::time::interval(Duration::from_secs(1) / POD_RATE);
    for index in 0..count {
        tick.tick().await;
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("{name}-{index}")},
            "spec": {"nodeName": format!("node-{index}"), "automountServiceAccountToken": false,
                "containers": [{"name": "c", "image": "i"}]}});
        connection.must("POST", PODS, pod.to_string()).await?;
    }
    Ok(server.usage()?.cpu - before)
}

async fn measure(report: &mut Report, options: &Options, way: &Way) -> Result<()> {
    let (watchers, events) = (options.amount(WATCHERS), options.amount(EVENTS));
    raise_file_limit(watchers)?;
    let server = Server::start(&options.keelson, &["--hollow", "0"]).await?;
    let target = server.target()?;
    let idle = server.usage()?;
    let opened = open(&target, watchers, way.shared).await?;
    let tasks: Vec<_> = opened.into_iter().map(|watch| tokio::spawn(read(watch, events))).collect();
    let (before, own) = (server.usage()?, usage(std::process::id())?);
    let started = Instant::now();
    if way.burst {
        burst(&target, events).await?
    } else {
        write(&target, events).await?
    }
    let mut latencies = Vec::with_capacity(watchers * events);
    // Of each event, when the first watcher had it: until then it was not delivery that took the time.
    let mut firsts = vec![Duration::MAX; events];
    for task in tasks {
        let own: Vec<Duration> = tokio::time::timeout(PATIENCE, task).await.context("events did not arrive")???;
        firsts.iter_mut().zip(&own).for_each(|(first, latency)| *first = (*first).min(*latency));
        latencies.extend(own);
    }
    let elapsed = started.elapsed();
    latencies.sort_unstable();
    firsts.sort_unstable();
    let (after, own) = (server.usage()?, usage(std::process::id())?.cpu - own.cpu);
    let delivered = latencies.len() as f64;
    let each = |cpu: Duration| format!("{:.1} us", cpu.as_secs_f64() * 1e6 / delivered);
    let rate = if way.burst { "in a burst".to_owned() } else { format!("at {RATE}/s") };
    let how = way.shared.map_or("a connection each".to_owned(), |shared| format!("{shared} HTTP/2 connections"));
    report.add(
        format!("{events} events to {watchers} watchers {rate}, {how}"),
        vec![
            ("delivered", format!("{:.0}/s", delivered / elapsed.as_secs_f64())),
            ("p50", milliseconds(percentile(&latencies, 50.0))),
            ("p99", milliseconds(percentile(&latencies, 99.0))),
            ("max", milliseconds(percentile(&latencies, 100.0))),
            ("first p50", milliseconds(percentile(&firsts, 50.0))),
            ("first p99", milliseconds(percentile(&firsts, 99.0))),
            ("server CPU each", each(after.cpu - before.cpu)),
            // It runs on the same processors: what it takes the server waits for.
            ("client CPU each", each(own)),
            ("RSS a watcher", format!("{} KiB", before.rss_kib.saturating_sub(idle.rss_kib) / watchers as u64)),
            ("RSS", format!("{} MiB", after.rss_kib / 1024)),
        ],
    );
    Ok(())
}

/// A watch and what must stay while it is read.
struct Watch {
    body: Incoming,
    _connection: Option<Connection>,
}

impl Watch {
    fn of(response: Response<Incoming>, connection: Option<Connection>) -> Result<Self> {
        if response.status() != 200 {
            bail!("watch: {}", response.status());
        }
        Ok(Self { body: response.into_body(), _connection: connection })
    }
}

/// A watch with a connection of its own.
async fn open_one(target: &Target, path: &str) -> Result<Watch> {
    let mut connection = target.connect().await?;
    let response = connection.open("GET", path, Bytes::new()).await?;
    Watch::of(response, Some(connection))
}

async fn open(target: &Target, watchers: usize, shared: Option<usize>) -> Result<Vec<Watch>> {
    let path = format!("{PATH}?watch=true&resourceVersion=0");
    let mut streams = Vec::new();
    for _ in 0..shared.unwrap_or(0) {
        streams.push(target.connect_streams().await?);
    }
    let mut watches = Vec::with_capacity(watchers);
    for index in 0..watchers {
        if streams.is_empty() {
            watches.push(open_one(target, &path).await?);
            continue;
        }
        let one = index % streams.len();
        watches.push(Watch::of(streams[one].open(&path).await?, None)?);
    }
    Ok(watches)
}

fn nanoseconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

/// Every watcher is a connection, and so is its other end; both count against limits.
fn raise_file_limit(watchers: usize) -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if hard < watchers as u64 + 256 {
        bail!("{watchers} watchers need more open files than the limit of {hard}");
    }
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(())
}

/// An object that says when it was made.
fn marked(index: usize) -> String {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("event-{index}")},
        "data": {"sent": nanoseconds().to_string()}})
    .to_string()
}

async fn write(target: &Target, events: usize) -> Result<()> {
    let mut connection = target.connect().await?;
    let mut tick = tokio::time::interval(Duration::from_secs(1) / RATE);
    for index in 0..events {
        tick.tick().await;
        connection.must("POST", PATH, marked(index)).await?;
    }
    Ok(())
}

async fn burst(target: &Target, events: usize) -> Result<()> {
    let create = |index| Request { method: "POST", path: PATH.into(), body: marked(index).into() };
    drive(target, WRITERS, events, create).await.map(|_| ())
}

/// Reads events until `wanted` with a time in them have come.
async fn read(mut watch: Watch, wanted: usize) -> Result<Vec<Duration>> {
    let mut latencies = Vec::with_capacity(wanted);
    let mut pending = Vec::new();
    while latencies.len() < wanted {
        let frame = watch.body.frame().await.context("the watch ended")??;
        let Ok(data) = frame.into_data() else { continue };
        pending.extend_from_slice(&data);
        let (now, mut rest) = (nanoseconds(), &pending[..]);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            if let Some(sent) = sent(&rest[..end]) {
                latencies.push(Duration::from_nanos(now.saturating_sub(sent)));
            }
            rest = &rest[end + 1..];
        }
        let read = pending.len() - rest.len();
        pending.drain(..read);
    }
    Ok(latencies)
}

fn sent(line: &[u8]) -> Option<u64> {
    let start = line.windows(MARK.len()).position(|window| window == MARK)? + MARK.len();
    let digits = line[start..].split(|byte| *byte == b'"').next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::sent;

    #[test]
    fn the_time_is_found_in_an_event() {
        assert_eq!(sent(br#"{"type":"ADDED","object":{"data":{"sent":"17"}}}"#), Some(17));
        assert_eq!(sent(br#"{"type":"BOOKMARK"}"#), None);
    }
}
