//! `bench node`: pods on one agent with containerd: from bound to Running, many at once, their end, and the agent at rest.
//! Needs root, and what the testbed needs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Pod;
use keelson_client::{Client, ListParams, WatchEvent};
use keelson_testbed::{Api, Plan, Role, Start, Testbed, image};
use serde_json::json;

use crate::Options;
use crate::load::{milliseconds, percentile};
use crate::process::usage;
use crate::report::Report;

/// The node of all pods.
const NODE: &str = "agent-1";
/// Pods that start one after another.
const SINGLE: usize = 30;
/// Pods that start at once: a node takes 110.
const TOGETHER: usize = 100;
/// Pods of the agent at rest.
const RESTING: usize = 50;
/// The time of rest.
const REST: Duration = Duration::from_secs(60);
/// Pods that do not come to their state by then never will.
const PATIENCE: Duration = Duration::from_secs(300);

/// A testbed that goes away with this.
struct Bed {
    testbed: Testbed,
    _dir: tempfile::TempDir,
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Err(error) = Testbed::remove(self.testbed.dir()) {
            eprintln!("the testbed is not removed: {error:#}");
        }
    }
}

/// Runs it where blocking does not disturb.
pub async fn run(options: Options) -> Result<Report> {
    tokio::task::spawn_blocking(move || tokio::runtime::Handle::current().block_on(measure(options))).await?
}

async fn measure(options: Options) -> Result<Report> {
    if !nix::unistd::geteuid().is_root() {
        bail!("hosts are network namespaces, which need root");
    }
    let dir = tempfile::Builder::new().prefix("keelson-").tempdir()?;
    let testbed = Testbed::create(&dir.path().join("bed"), Plan { name: "kbnode".into(), servers: 1, agents: 1 })?;
    let bed = Bed { testbed, _dir: dir };
    bed.testbed.install(&options.keelson)?;
    bed.testbed.bring_up(&Start::default(), &|step| eprintln!("==> {step}"))?;
    let hosts = bed.testbed.hosts()?;
    let host = |role| hosts.iter().find(move |host| host.role() == role).context("no such host");
    let https = keelson_client::https::transport_of(&host(Role::Server)?.kubeconfig())?;
    let client = Client::new(std::sync::Arc::new(https), "keelson-bench");
    let agent = host(Role::Agent)?.processes("keelson")?.first().context("no agent runs")?.as_raw();
    let agent = u32::try_from(agent)?;
    let mut report = Report::default();
    singles(&client, &host(Role::Server)?.api()?, &options, &mut report).await?;
    many(&client, options.amount(TOGETHER), &mut report).await?;
    create(&client, options.amount(RESTING)).await?;
    let rest = if options.quick { REST / 10 } else { REST };
    // What comes after a start is not rest yet.
    tokio::time::sleep(rest / 4).await;
    let before = usage(agent)?;
    tokio::time::sleep(rest).await;
    let after = usage(agent)?;
    let share = (after.cpu - before.cpu).as_secs_f64() * 100.0 / rest.as_secs_f64();
    let what = format!("the agent at rest with {} pods for {} s", options.amount(RESTING), rest.as_secs());
    report.add(what, vec![("RSS", format!("{} MiB", after.rss_kib / 1024)), ("CPU", format!("{share:.2} %"))]);
    Ok(report)
}

fn pod(name: &str) -> Result<Pod> {
    Ok(serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"nodeName": NODE,
        "terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": image::WEB[0]}]}}))?)
}

/// Follows pods until all that are named are as wanted; returns when each first was.
async fn follow(
    client: &Client,
    names: &[String],
    running: bool,
    mut begin: impl AsyncFnMut() -> Result<()>,
) -> Result<BTreeMap<String, Instant>> {
    let api = client.namespaced::<Pod>("default");
    let version = api.list(&ListParams::default()).await?.resource_version;
    let params = ListParams { resource_version: Some(version), ..ListParams::default() };
    let mut events = std::pin::pin!(api.watch(&params).await?);
    begin().await?;
    let mut times = BTreeMap::new();
    let all = async {
        while times.len() < names.len() {
            let Some(event) = events.try_next().await? else { bail!("the watch ended") };
            let found = match event {
                WatchEvent::Modified(pod) if running => {
                    pod.metadata.name.filter(|_| pod.status.is_some_and(|s| s.phase.as_deref() == Some("Running")))
                }
                WatchEvent::Deleted(pod) if !running => pod.metadata.name,
                _ => None,
            };
            if let Some(name) = found.filter(|name| names.contains(name)) {
                times.entry(name).or_insert_with(Instant::now);
            }
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE, all).await.context("not all pods came to their state")??;
    Ok(times)
}

/// The sums of the agent's starts: how many, all seconds, and those of the runtime.
fn sums(server: &Api) -> Result<[f64; 3]> {
    let path = format!("/api/v1/nodes/{NODE}/proxy/metrics");
    let text = String::from_utf8(server.call("GET", &path, None)?)?;
    let value = |name: &str| {
        let line =
            text.lines().find_map(|line| line.strip_prefix(name)).context("the agent does not tell of starts")?;
        Ok::<f64, anyhow::Error>(line.trim().parse()?)
    };
    Ok([
        value("keelson_pod_start_seconds_count")?,
        value("keelson_pod_start_seconds_sum")?,
        value("keelson_pod_start_runtime_seconds_sum")?,
    ])
}

/// Pods that come to a node that does nothing else.
async fn singles(client: &Client, server: &Api, options: &Options, report: &mut Report) -> Result<()> {
    let api = client.namespaced::<Pod>("default");
    let before = sums(server)?;
    let mut took = Vec::new();
    let count = options.amount(SINGLE);
    for i in 0..count {
        let name = format!("single-{i}");
        let mut bound = Instant::now();
        let times = follow(client, std::slice::from_ref(&name), true, async || {
            // It is bound as it is created.
            api.create(&pod(&name)?).await?;
            bound = Instant::now();
            Ok(())
        })
        .await?;
        took.push(times[&name].saturating_duration_since(bound));
        api.delete(&name, &json!({})).await?;
    }
    took.sort_unstable();
    let after = sums(server)?;
    let starts = (after[0] - before[0]).max(1.0);
    let ours = ((after[1] - before[1]) - (after[2] - before[2])) * 1000.0 / starts;
    report.add(
        format!("{count} pods one after another, bound to Running"),
        vec![
            ("p50", milliseconds(percentile(&took, 50.0))),
            ("p99", milliseconds(percentile(&took, 99.0))),
            ("of it the agent's own, mean", format!("{ours:.1} ms")),
        ],
    );
    Ok(())
}

async fn create(client: &Client, count: usize) -> Result<()> {
    let names: Vec<String> = (0..count).map(|i| format!("rest-{i}")).collect();
    let api = client.namespaced::<Pod>("default");
    follow(client, &names, true, async || {
        for name in &names {
            api.create(&pod(name)?).await?;
        }
        Ok(())
    })
    .await
    .map(drop)
}

/// Many at once, and their end.
async fn many(client: &Client, count: usize, report: &mut Report) -> Result<()> {
    let names: Vec<String> = (0..count).map(|i| format!("many-{i}")).collect();
    let api = client.namespaced::<Pod>("default");
    for (running, what) in
        [(true, "pods at once, first created to last Running"), (false, "pods deleted, first to last gone")]
    {
        let began = Instant::now();
        let times = follow(client, &names, running, async || {
            for name in &names {
                if running {
                    api.create(&pod(name)?).await?;
                } else {
                    api.delete(name, &json!({})).await?;
                }
            }
            Ok(())
        })
        .await?;
        let last = times.values().max().copied().unwrap_or(began);
        report.add(format!("{count} {what}"), vec![("time", format!("{:.2} s", (last - began).as_secs_f64()))]);
    }
    Ok(())
}
