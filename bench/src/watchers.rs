//! `bench watch`: how long an event takes to reach many watchers, and what a watcher costs: each on its own connection
//! (`--only own`) and many on each of a few HTTP/2 connections (`--only shared`).

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::json;

use crate::Options;
use crate::load::{Connection, Target, milliseconds, percentile};
use crate::process::{Server, usage};
use crate::report::Report;

/// Watchers of the same resource.
const WATCHERS: usize = 1_000;
/// Connections that they share, where they do.
const SHARED: usize = 16;
/// Events that all of them get.
const EVENTS: usize = 500;
/// Events in a second.
const RATE: u32 = 25;
/// The last event must have reached all watchers this long after it was made.
const PATIENCE: Duration = Duration::from_secs(60);
/// The field that holds an event's time, as it is found in the bytes of an event.
const MARK: &[u8] = b"\"sent\":\"";

const PATH: &str = "/api/v1/namespaces/default/configmaps";

/// Measures one server for each way to connect.
pub async fn run(options: Options) -> Result<Report> {
    let mut report = Report::default();
    if options.wants("own") {
        measure(&mut report, &options, None).await?;
    }
    if options.wants("shared") {
        measure(&mut report, &options, Some(SHARED)).await?;
    }
    Ok(report)
}

/// Measures watchers that have a connection each, or share `shared` HTTP/2 connections.
async fn measure(report: &mut Report, options: &Options, shared: Option<usize>) -> Result<()> {
    let (watchers, events) = (options.amount(WATCHERS), options.amount(EVENTS));
    raise_file_limit(watchers)?;
    let server = Server::start(&options.keelson, &["--hollow", "0"]).await?;
    let target = server.target()?;
    let idle = server.usage()?;
    let opened = open(&target, watchers, shared).await?;
    let tasks: Vec<_> = opened.into_iter().map(|watch| tokio::spawn(read(watch, events))).collect();
    let (before, own) = (server.usage()?, usage(std::process::id())?);
    let started = Instant::now();
    write(&target, events).await?;
    let mut latencies = Vec::with_capacity(watchers * events);
    for task in tasks {
        latencies.extend(tokio::time::timeout(PATIENCE, task).await.context("events did not arrive")???);
    }
    let elapsed = started.elapsed();
    latencies.sort_unstable();
    let (after, own) = (server.usage()?, usage(std::process::id())?.cpu - own.cpu);
    let delivered = latencies.len() as f64;
    let each = |cpu: Duration| format!("{:.1} us", cpu.as_secs_f64() * 1e6 / delivered);
    let how = shared.map_or("a connection each".to_owned(), |shared| format!("{shared} HTTP/2 connections"));
    report.add(
        format!("{events} events to {watchers} watchers at {RATE}/s, {how}"),
        vec![
            ("delivered", format!("{:.0}/s", delivered / elapsed.as_secs_f64())),
            ("p50", milliseconds(percentile(&latencies, 50.0))),
            ("p99", milliseconds(percentile(&latencies, 99.0))),
            ("max", milliseconds(percentile(&latencies, 100.0))),
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

async fn open(target: &Target, watchers: usize, shared: Option<usize>) -> Result<Vec<Watch>> {
    let path = format!("{PATH}?watch=true&resourceVersion=0");
    let mut streams = Vec::new();
    for _ in 0..shared.unwrap_or(0) {
        streams.push(target.connect_streams().await?);
    }
    let mut watches = Vec::with_capacity(watchers);
    for index in 0..watchers {
        let (response, connection) = if streams.is_empty() {
            let mut connection = target.connect().await?;
            (connection.open("GET", &path, Bytes::new()).await?, Some(connection))
        } else {
            let one = index % streams.len();
            (streams[one].open(&path).await?, None)
        };
        if response.status() != 200 {
            bail!("watch: {}", response.status());
        }
        watches.push(Watch { body: response.into_body(), _connection: connection });
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

async fn write(target: &Target, events: usize) -> Result<()> {
    let mut connection = target.connect().await?;
    let mut tick = tokio::time::interval(Duration::from_secs(1) / RATE);
    for i in 0..events {
        tick.tick().await;
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("event-{i}")},
            "data": {"sent": nanoseconds().to_string()}});
        connection.must("POST", PATH, object.to_string()).await?;
    }
    Ok(())
}

/// Reads events until `wanted` with a time in them have come.
async fn read(mut watch: Watch, wanted: usize) -> Result<Vec<Duration>> {
    let mut latencies = Vec::with_capacity(wanted);
    let mut pending = Vec::new();
    while latencies.len() < wanted {
        let frame = watch.body.frame().await.context("the watch ended")??;
        let Ok(data) = frame.into_data() else { continue };
        pending.extend_from_slice(&data);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            if let Some(sent) = sent(&pending[..end]) {
                latencies.push(Duration::from_nanos(nanoseconds().saturating_sub(sent)));
            }
            pending.drain(..=end);
        }
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
