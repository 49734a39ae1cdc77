//! The store against etcd: three members each, one after the other, on the same disk and with the same client.

mod disturbed;
mod failover;
mod frames;
mod kube;
mod lean;
mod members;
mod noop;
mod streams;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use keelson_proto::etcd::etcdserverpb as pb;
use lean::Call;
use members::{Cluster, MEMBERS, Program};
use prost::Message;

use crate::Options;
use crate::report::Report;

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

/// Longest time of one part.
const PART: Duration = Duration::from_secs(600);

/// What is measured with a cluster, in this order.
type Part = for<'a> fn(&'a mut Report, &'a str, &'a mut Cluster, &'a Options) -> BoxFuture<'a, Result<()>>;

const PARTS: &[(&str, Part)] = &[
    ("puts", |report, name, cluster, options| puts(report, name, cluster, options).boxed()),
    ("ranges", |report, name, cluster, options| ranges(report, name, cluster, options).boxed()),
    ("mixed", |report, name, cluster, options| mixed(report, name, cluster, options).boxed()),
    ("watchers", |report, name, cluster, options| streams::watchers(report, name, cluster, options).boxed()),
    ("leases", |report, name, cluster, options| streams::leases(report, name, cluster, options).boxed()),
    ("kube", |report, name, cluster, options| kube::run(report, name, cluster, options).boxed()),
    ("failover", |report, name, cluster, options| failover::run(report, name, cluster, options).boxed()),
    ("fill", |report, name, cluster, options| fill(report, name, cluster, options).boxed()),
    ("disturbed", |report, name, cluster, options| disturbed::run(report, name, cluster, options).boxed()),
];

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
    if options.wants("nobody") {
        noop::run(&mut report, &options).await?;
    }
    for (name, program) in programs {
        if options.program.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        let mut cluster = Cluster::start(program).await?;
        for (part, own) in PARTS.iter().filter(|(part, _)| begins(&options, name, part)) {
            let done = tokio::time::timeout(PART, own(&mut report, name, &mut cluster, &options)).await;
            // The parts after it are worth their time, whatever one program did to one of its clients.
            if let Err(error) = done.context("it does not end").flatten() {
                report.fail(format!("{name}: {part}"), &error, cluster.is_ours());
            }
        }
    }
    Ok(report)
}

/// Whether a part is wanted; says that it begins, and how much of it is done.
fn begins(options: &Options, name: &str, part: &str) -> bool {
    let wanted = options.wants(part);
    if wanted {
        eprintln!("  {name}, {part}: {} of the work", if options.quick { "a tenth" } else { "all" });
    }
    wanted
}

/// Puts of a value of so many bytes to keys that do not come in order.
fn put_call(bytes: usize) -> impl Fn(usize) -> Call + Clone {
    let value = Bytes::from(vec![b'x'; bytes]);
    move |number| {
        let put = pb::PutRequest { key: key(number, KEYS), value: value.clone(), ..pb::PutRequest::default() };
        ("/etcdserverpb.KV/Put", put.encode_to_vec())
    }
}

/// Reads of single keys.
fn range_call(serializable: bool) -> impl Fn(usize) -> Call + Clone {
    move |number| {
        let range = pb::RangeRequest { key: key(number, KEYS), serializable, ..pb::RangeRequest::default() };
        ("/etcdserverpb.KV/Range", range.encode_to_vec())
    }
}

/// Does `total` calls with so many clients at once over all members, and adds them to the report.
async fn measure(
    report: &mut Report,
    what: String,
    cluster: &Cluster,
    (clients, total): (usize, usize),
    options: &Options,
    call: impl Fn(usize) -> Call + Send + Sync + 'static,
) -> Result<()> {
    if !options.wants_clients(clients) {
        return Ok(());
    }
    let total = options.amount(total);
    let before = cluster.usage()?;
    let measured = lean::load(cluster.addresses(), clients, total, call).await;
    let after = cluster.usage()?;
    let what = format!("{what}, {clients} clients");
    match measured {
        Ok(measured) => row(report, what, &measured, after.cpu - before.cpu, after.rss_kib),
        Err(error) => report.fail(what, &error, cluster.is_ours()),
    }
    Ok(())
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
        (1, 256, 5_000),
        (16, 256, 60_000),
        (64, 256, 200_000),
        (256, 256, 400_000),
        (1000, 256, 500_000),
        (64, 4096, 60_000),
    ] {
        let amount = (clients, total);
        measure(report, format!("{name}: put {bytes} B"), cluster, amount, options, put_call(bytes)).await?;
    }
    Ok(())
}

async fn ranges(report: &mut Report, name: &str, cluster: &Cluster, options: &Options) -> Result<()> {
    for (what, serializable) in [("linearizable", false), ("serializable", true)] {
        for (clients, total) in [(1, 10_000), (64, 200_000), (256, 300_000), (1000, 300_000)] {
            let (amount, call) = ((clients, total), range_call(serializable));
            measure(report, format!("{name}: {what} range"), cluster, amount, options, call).await?;
        }
    }
    Ok(())
}

/// Four linearizable reads to a put.
async fn mixed(report: &mut Report, name: &str, cluster: &Cluster, options: &Options) -> Result<()> {
    for (clients, total) in [(64, 200_000), (1000, 300_000)] {
        let (put, range) = (put_call(256), range_call(false));
        let call = move |number: usize| if number.is_multiple_of(5) { put(number / 5) } else { range(number) };
        measure(report, format!("{name}: 4 reads to a put"), cluster, (clients, total), options, call).await?;
    }
    Ok(())
}

/// A million keys, or as many as are asked for: memory of a member, and how soon it is back after a crash.
async fn fill(report: &mut Report, name: &str, cluster: &mut Cluster, options: &Options) -> Result<()> {
    let keys = options.amount(1_000_000);
    let value = Bytes::from(vec![b'x'; 256]);
    let call = move |number| {
        let key = format!("/fill/{number:08}").into();
        let put = pb::PutRequest { key, value: value.clone(), ..pb::PutRequest::default() };
        ("/etcdserverpb.KV/Put", put.encode_to_vec())
    };
    let before = cluster.usage()?;
    let measured = lean::load(cluster.addresses(), 256, keys, call).await?;
    let usage = cluster.usage()?;
    let what = format!("{name}: fill with {keys} keys, 256 clients");
    row(report, what, &measured, usage.cpu - before.cpu, usage.rss_kib);
    let killed = (cluster.leader().await? + 1) % MEMBERS;
    cluster.kill(killed)?;
    cluster.run(killed)?;
    let back = cluster.ready(killed).await?;
    let mut figures = BTreeMap::new();
    figures.insert("ready after", millis(back));
    report.add(format!("{name}: a killed member with {keys} keys"), figures.into_iter().collect());
    eprintln!("    data in {}", cluster.path().display());
    Ok(())
}
