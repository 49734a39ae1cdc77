//! `bench start`: from exec to a ready API, to the first pod object of a Deployment, to that pod running; idle memory.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::Options;
use crate::load::{Connection, percentile};
use crate::process::Server;
use crate::report::Report;

/// Memory is read this long after the start.
const IDLE: Duration = Duration::from_secs(60);
/// A pod that does not run by then never will.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(2);

const PODS: &str = "/api/v1/namespaces/default/pods";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

/// Starts servers one after another.
pub async fn run(options: Options) -> Result<Report> {
    let mut report = Report::default();
    let (mut ready, mut first, mut running) = (Vec::new(), Vec::new(), Vec::new());
    let mut last = None;
    for _ in 0..options.repeat.max(1) {
        drop(last.take());
        let server = Server::start(&options.keelson, &["--hollow", "2"]).await?;
        ready.push(server.ready_after);
        let mut connection = server.target()?.connect().await?;
        connection.must("POST", DEPLOYMENTS, deployment()).await?;
        until(&mut connection, |pods| !pods.is_empty()).await?;
        first.push(server.started.elapsed());
        until(&mut connection, |pods| pods.iter().any(|pod| pod["status"]["phase"] == "Running")).await?;
        running.push(server.started.elapsed());
        last = Some(server);
    }
    for (what, mut times) in [
        ("exec to /readyz", ready),
        ("exec to the first pod object of a Deployment", first),
        ("exec to that pod running on a hollow node", running),
    ] {
        times.sort_unstable();
        let figure = |percent| format!("{:.3} s", percentile(&times, percent).as_secs_f64());
        report.add(what, vec![("median", figure(50.0)), ("least", figure(0.0)), ("most", figure(100.0))]);
    }
    if let Some(server) = last {
        idle_figures(&mut report, &server, if options.quick { IDLE / 10 } else { IDLE }).await?;
    }
    Ok(report)
}

async fn idle_figures(report: &mut Report, server: &Server, idle: Duration) -> Result<()> {
    let before = server.usage()?;
    tokio::time::sleep(idle).await;
    let after = server.usage()?;
    let share = (after.cpu - before.cpu).as_secs_f64() * 100.0 / idle.as_secs_f64();
    report.add(
        format!("idle for {} s with one Deployment and two hollow nodes", idle.as_secs()),
        vec![("RSS", format!("{} MiB", after.rss_kib / 1024)), ("CPU", format!("{share:.1} %"))],
    );
    Ok(())
}

fn deployment() -> String {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "first"},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "first"}},
            "template": {"metadata": {"labels": {"app": "first"}},
                "spec": {"containers": [{"name": "c", "image": "example.test/first:1"}]}}}})
    .to_string()
}

async fn until(connection: &mut Connection, holds: impl Fn(&[Value]) -> bool) -> Result<()> {
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        let list: Value = serde_json::from_slice(&connection.must("GET", PODS, "").await?)?;
        if list["items"].as_array().is_some_and(|pods| holds(pods)) {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
    bail!("the Deployment's pod did not come within {PATIENCE:?}")
}
