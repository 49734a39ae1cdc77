//! Many watchers of one key, and many leases that are kept alive.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use keelson_proto::etcd::etcdserverpb as pb;
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::watch_client::WatchClient;
use pb::watch_request::RequestUnion;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::members::{Cluster, MEMBERS};
use super::{Measured, millis};
use crate::Options;
use crate::report::Report;

/// Watchers, and the streams that they share.
const WATCHERS: usize = 1000;
const STREAMS: usize = 30;
const LEASES: usize = 10_000;
/// Events in flight that a client's task may lag.
const QUEUE: usize = 100_000;

/// What all watchers of a benchmark share: values carry when they were put.
struct Watching {
    started: Instant,
    latencies: mpsc::Receiver<Duration>,
}

async fn watch(cluster: &Cluster, watchers: usize) -> Result<Watching> {
    let started = Instant::now();
    let (sender, latencies) = mpsc::channel(QUEUE);
    for stream in 0..STREAMS {
        let mut client = WatchClient::new(cluster.channel(stream % MEMBERS)?);
        let (requests, receiver) = mpsc::channel(watchers);
        let own = (watchers / STREAMS) + usize::from(stream < watchers % STREAMS);
        for _ in 0..own {
            let create = pb::WatchCreateRequest { key: "watched".into(), ..pb::WatchCreateRequest::default() };
            requests.send(pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }).await?;
        }
        let mut answers = client.watch(ReceiverStream::new(receiver)).await?.into_inner();
        for _ in 0..own {
            answers.message().await?.context("the stream ended")?;
        }
        let sender = sender.clone();
        tokio::spawn(async move {
            let _requests = requests;
            while let Ok(Some(answer)) = answers.message().await {
                for event in answer.events {
                    let value = event.kv.map(|kv| kv.value).unwrap_or_default();
                    let micros = std::str::from_utf8(&value).ok().and_then(|text| text.trim().parse().ok());
                    let put = Duration::from_micros(micros.unwrap_or(0));
                    if sender.send(started.elapsed().saturating_sub(put)).await.is_err() {
                        return;
                    }
                }
            }
        });
    }
    Ok(Watching { started, latencies })
}

fn stamped(started: Instant) -> pb::PutRequest {
    let value: Bytes = format!("{:<64}", started.elapsed().as_micros()).into();
    pb::PutRequest { key: "watched".into(), value, ..pb::PutRequest::default() }
}

/// A thousand watchers: latency at 50 puts a second, and events a second when puts follow one another.
pub async fn watchers(report: &mut Report, name: &str, cluster: &Cluster, options: &Options) -> Result<()> {
    let mut client = KvClient::new(cluster.channel(0)?);
    for (what, pause, puts) in [("50 puts/s", 20, 250), ("puts without pause", 0, 1000)] {
        let puts = options.amount(puts);
        let mut watching = watch(cluster, WATCHERS).await?;
        let begun = Instant::now();
        let mut tick = tokio::time::interval(Duration::from_millis(pause.max(1)));
        let started = watching.started;
        let mut putting = client.clone();
        let putter = tokio::spawn(async move {
            for _ in 0..puts {
                if pause > 0 {
                    tick.tick().await;
                }
                putting.put(stamped(started)).await?;
            }
            Ok::<_, tonic::Status>(())
        });
        let mut latencies = Vec::with_capacity(WATCHERS * puts);
        while latencies.len() < WATCHERS * puts {
            let next = tokio::time::timeout(Duration::from_secs(30), watching.latencies.recv()).await;
            latencies.push(next.context("events are missing")?.context("the watchers have ended")?);
        }
        putter.await??;
        let measured = Measured::new(latencies, begun.elapsed());
        report.add(
            format!("{name}: {WATCHERS} watchers, {what}"),
            vec![
                ("rate", format!("{:.0}/s", measured.rate())),
                ("p50", millis(measured.permille(500))),
                ("p99", millis(measured.permille(990))),
            ],
        );
    }
    client.put(stamped(Instant::now())).await?;
    Ok(())
}

/// Ten thousand leases: granting them, then one renewal of each.
pub async fn leases(report: &mut Report, name: &str, cluster: &Cluster, options: &Options) -> Result<()> {
    let leases = options.amount(LEASES);
    let begun = Instant::now();
    let mut tasks = Vec::new();
    for task in 0..64 {
        let mut client = LeaseClient::new(cluster.channel(task % MEMBERS)?);
        tasks.push(tokio::spawn(async move {
            let (mut ids, mut latencies) = (Vec::new(), Vec::new());
            for _ in (task..leases).step_by(64) {
                let asked = Instant::now();
                let grant = pb::LeaseGrantRequest { ttl: 3600, id: 0 };
                ids.push(client.lease_grant(grant).await?.into_inner().id);
                latencies.push(asked.elapsed());
            }
            Ok::<_, tonic::Status>((client, ids, latencies))
        }));
    }
    let (mut granted, mut latencies) = (Vec::new(), Vec::new());
    for task in tasks {
        let (client, ids, found) = task.await??;
        latencies.extend(found);
        granted.push((client, ids));
    }
    add(report, format!("{name}: {leases} leases granted, 64 clients"), latencies, begun.elapsed());
    let begun = Instant::now();
    let tasks = granted.into_iter().map(|(mut client, ids)| {
        tokio::spawn(async move {
            let (requests, receiver) = mpsc::channel(16);
            let mut receiver = Some(receiver);
            let mut latencies = Vec::new();
            let mut answers = None;
            for id in ids {
                let asked = Instant::now();
                if requests.send(pb::LeaseKeepAliveRequest { id }).await.is_err() {
                    break;
                }
                // etcd begins its answers with the first one: the request must be on its way before.
                let answers = match &mut answers {
                    Some(answers) => answers,
                    None => match receiver.take() {
                        Some(receiver) => {
                            let opened = client.lease_keep_alive(ReceiverStream::new(receiver)).await?;
                            answers.insert(opened.into_inner())
                        }
                        None => break,
                    },
                };
                answers.message().await?;
                latencies.push(asked.elapsed());
            }
            Ok::<_, tonic::Status>(latencies)
        })
    });
    let mut latencies = Vec::new();
    for task in tasks.collect::<Vec<_>>() {
        latencies.extend(task.await??);
    }
    add(report, format!("{name}: {leases} leases renewed, 64 clients"), latencies, begun.elapsed());
    Ok(())
}

fn add(report: &mut Report, what: String, latencies: Vec<Duration>, elapsed: Duration) {
    let measured = Measured::new(latencies, elapsed);
    report.add(
        what,
        vec![
            ("rate", format!("{:.0}/s", measured.rate())),
            ("p50", millis(measured.permille(500))),
            ("p99", millis(measured.permille(990))),
        ],
    );
}
