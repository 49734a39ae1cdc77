//! `bench watch`: how long an event takes to reach many watchers, each on its own connection, and what a watcher costs.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::json;

use crate::Options;
use crate::load::{Target, milliseconds, percentile};
use crate::process::{Server, usage};
use crate::report::Report;

/// Watchers of the same resource.
const WATCHERS: usize = 1_000;
/// Events that all of them get.
const EVENTS: usize = 500;
/// Events in a second.
const RATE: u32 = 25;
/// The last event must have reached all watchers this long after it was made.
const PATIENCE: Duration = Duration::from_secs(60);
/// The field that holds an event's time, as it is found in the bytes of an event.
const MARK: &[u8] = b"\"sent\":\"";

const PATH: &str = "/api/v1/namespaces/default/configmaps";

/// Measures one server.
pub async fn run(options: Options) -> Result<Report> {
    let (watchers, events) = (options.amount(WATCHERS), options.amount(EVENTS));
    raise_file_limit(watchers)?;
    let server = Server::start(&options.keelson, &["--hollow", "0"]).await?;
    let target = server.target()?;
    let idle = server.usage()?;
    let mut tasks = Vec::with_capacity(watchers);
    for _ in 0..watchers {
        let mut connection = target.connect().await?;
        let response = connection.open("GET", &format!("{PATH}?watch=true&resourceVersion=0"), Bytes::new()).await?;
        if response.status() != 200 {
            bail!("watch: {}", response.status());
        }
        let body = response.into_body();
        tasks.push(tokio::spawn(async move {
            let latencies = read(body, events).await;
            drop(connection);
            latencies
        }));
    }
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
    let mut report = Report::default();
    report.add(
        format!("{events} events to {watchers} watchers at {RATE}/s"),
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
    Ok(report)
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
async fn read(mut body: Incoming, wanted: usize) -> Result<Vec<Duration>> {
    let mut latencies = Vec::with_capacity(wanted);
    let mut pending = Vec::new();
    while latencies.len() < wanted {
        let frame = body.frame().await.context("the watch ended")??;
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
