//! The store against etcd: three members each, one after the other, on the same disk and with the same client.

mod failover;
mod members;
mod streams;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use futures::future::try_join_all;
use keelson_proto::etcd::etcdserverpb as pb;
use members::{Cluster, MEMBERS, Program};
use pb::kv_client::KvClient;
use tonic::transport::Channel;

use crate::Options;
use crate::report::Report;

/// Most connections of the load client: as many clients share each.
const CONNECTIONS: usize = 48;
/// Keys that puts choose from.
const KEYS: usize = 10_000;

/// Latencies in order, and how long all took.
pub struct Measured {
    latencies: Vec<Duration>,
    elapsed: Duration,
}

impl Measured {
    /// Sorts what was measured.
    pub fn new(mut latencies: Vec<Duration>, elapsed: Duration) -> Self {
        latencies.sort_unstable();
        Self { latencies, elapsed }
    }

    /// The latency that so many of a thousand are below.
    pub fn permille(&self, permille: usize) -> Duration {
        let at = (self.latencies.len() * permille / 1000).min(self.latencies.len().saturating_sub(1));
        self.latencies.get(at).copied().unwrap_or_default()
    }

    fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.elapsed.as_secs_f64()
    }
}

/// Milliseconds.
pub fn millis(duration: Duration) -> String {
    format!("{:.2} ms", duration.as_secs_f64() * 1000.0)
}

/// Runs the benchmark.
pub async fn run(options: Options) -> Result<Report> {
    let mut report = Report::default();
    let etcd = std::process::Command::new("etcd").arg("--version").output().is_ok();
    let mut programs = vec![("keelson", Program::Keelson(options.keelson.clone()))];
    if etcd {
        programs.insert(0, ("etcd", Program::Etcd));
    } else {
        eprintln!("    etcd is not installed: there is nothing to compare with");
    }
    for (name, program) in programs {
        if options.program.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        let mut cluster = Cluster::start(program).await?;
        if options.wants("puts") {
            puts(&mut report, name, &cluster, &options).await?;
        }
        if options.wants("ranges") {
            ranges(&mut report, name, &cluster, &options).await?;
        }
        if options.wants("watchers") {
            streams::watchers(&mut report, name, &cluster, &options).await?;
        }
        if options.wants("leases") {
            streams::leases(&mut report, name, &cluster, &options).await?;
        }
        if options.wants("failover") {
            failover::run(&mut report, name, &mut cluster, &options).await?;
        }
        if !options.quick && options.wants("fill") {
            fill(&mut report, name, &mut cluster).await?;
        }
    }
    Ok(report)
}

/// Connections spread over all members.
fn connections(cluster: &Cluster, clients: usize) -> Result<Vec<KvClient<Channel>>> {
    (0..clients.min(CONNECTIONS)).map(|at| Ok(KvClient::new(cluster.channel(at % MEMBERS)?))).collect()
}

/// Does `total` requests with so many clients at once.
async fn load<F, Fut>(cluster: &Cluster, clients: usize, total: usize, request: F) -> Result<Measured>
where
    F: Fn(KvClient<Channel>, usize) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Result<(), tonic::Status>> + Send,
{
    let connections = connections(cluster, clients)?;
    let next = Arc::new(AtomicUsize::new(0));
    let started = Instant::now();
    let tasks = (0..clients).map(|at| {
        let (client, next, request) = (connections[at % connections.len()].clone(), next.clone(), request.clone());
        tokio::spawn(async move {
            let mut latencies = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= total {
                    return Ok::<_, tonic::Status>(latencies);
                }
                let begun = Instant::now();
                request(client.clone(), number).await?;
                latencies.push(begun.elapsed());
            }
        })
    });
    let mut latencies = Vec::with_capacity(total);
    for found in try_join_all(tasks).await? {
        latencies.extend(found?);
    }
    Ok(Measured::new(latencies, started.elapsed()))
}

/// A key that is hard to guess the next of, so that puts do not arrive in key order.
fn key(number: usize, keys: usize) -> Bytes {
    format!("/bench/{:08}", number.wrapping_mul(7_919) % keys).into()
}

fn row(report: &mut Report, what: String, measured: &Measured, cpu: Duration, rss_kib: u64) {
    let each = cpu.as_secs_f64() * 1e6 / measured.latencies.len().max(1) as f64;
    report.add(
        what,
        vec![
            ("rate", format!("{:.0}/s", measured.rate())),
            ("p50", millis(measured.permille(500))),
            ("p99", millis(measured.permille(990))),
            ("server CPU each", format!("{each:.0} us")),
            ("RSS", format!("{} MiB", rss_kib / 1024)),
        ],
    );
}

async fn puts(report: &mut Report, name: &str, cluster: &Cluster, options: &Options) -> Result<()> {
    for (clients, bytes, total) in [
        (1, 256, 2_000),
        (16, 256, 30_000),
        (64, 256, 80_000),
        (256, 256, 120_000),
        (1000, 256, 150_000),
        (64, 4096, 30_000),
    ] {
        let value = Bytes::from(vec![b'x'; bytes]);
        let before = cluster.usage()?;
        let measured = load(cluster, clients, options.amount(total), move |mut client, number| {
            let put = pb::PutRequest { key: key(number, KEYS), value: value.clone(), ..pb::PutRequest::default() };
            async move { client.put(put).await.map(drop) }
        })
        .await?;
        let after = cluster.usage()?;
        let what = format!("{name}: put {bytes} B, {clients} clients");
        row(report, what, &measured, after.cpu - before.cpu, after.rss_kib);
    }
    Ok(())
}

async fn ranges(report: &mut Report, name: &str, cluster: &Cluster, options: &Options) -> Result<()> {
    for (what, serializable) in [("linearizable", false), ("serializable", true)] {
        for clients in [1, 64, 1000] {
            let total = if clients == 1 { 4_000 } else { 100_000 };
            let before = cluster.usage()?;
            let measured = load(cluster, clients, options.amount(total), move |mut client, number| {
                let range = pb::RangeRequest { key: key(number, KEYS), serializable, ..pb::RangeRequest::default() };
                async move { client.range(range).await.map(drop) }
            })
            .await?;
            let after = cluster.usage()?;
            let what = format!("{name}: {what} range, {clients} clients");
            row(report, what, &measured, after.cpu - before.cpu, after.rss_kib);
        }
    }
    Ok(())
}

/// A million keys: memory of a member, and how soon it is back after a crash.
async fn fill(report: &mut Report, name: &str, cluster: &mut Cluster) -> Result<()> {
    const MILLION: usize = 1_000_000;
    let value = Bytes::from(vec![b'x'; 256]);
    let measured = load(cluster, 256, MILLION, move |mut client, number| {
        let key = format!("/fill/{number:08}").into();
        let put = pb::PutRequest { key, value: value.clone(), ..pb::PutRequest::default() };
        async move { client.put(put).await.map(drop) }
    })
    .await?;
    let usage = cluster.usage()?;
    row(report, format!("{name}: fill with a million keys"), &measured, usage.cpu, usage.rss_kib);
    let killed = (cluster.leader().await? + 1) % MEMBERS;
    cluster.kill(killed)?;
    cluster.run(killed)?;
    let back = cluster.ready(killed).await?;
    let mut figures = BTreeMap::new();
    figures.insert("ready after", millis(back));
    report.add(format!("{name}: a killed member with a million keys"), figures.into_iter().collect());
    eprintln!("    data in {}", cluster.path().display());
    Ok(())
}
