//! A Deployment of 5,000 replicas on hollow nodes: made, rolled over, scaled to nothing; then idle.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{NODES, PODS_PER_NODE, count};
use crate::Options;
use crate::load::Connection;
use crate::process::Server;
use crate::report::Report;

/// Replicas of the Deployment.
const REPLICAS: usize = 5_000;
/// A step that is not over by then never will be.
const PATIENCE: Duration = Duration::from_secs(300);
/// Processor time is read over this span when nothing happens.
const IDLE: Duration = Duration::from_secs(30);

const PODS: &str = "/api/v1/namespaces/default/pods?limit=1";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/default/deployments/many";

/// Measures one server.
pub async fn run(options: &Options, report: &mut Report) -> Result<()> {
    let replicas = options.amount(REPLICAS);
    let nodes = replicas.div_ceil(PODS_PER_NODE) + 1;
    let server = Server::start(&options.keelson, &["--hollow", &nodes.to_string()]).await?;
    let mut connection = server.target()?.connect().await?;
    until(&mut connection, NODES, |list| count(list) == nodes).await.context("the nodes")?;

    let (start, before) = (Instant::now(), server.usage()?);
    connection.must("POST", DEPLOYMENTS, deployment(replicas, 1)).await?;
    until(&mut connection, PODS, |list| count(list) == replicas).await.context("the pods")?;
    let objects = start.elapsed();
    until(&mut connection, DEPLOYMENT, |d| number(d, "readyReplicas") == replicas).await.context("the ready pods")?;
    let all = start.elapsed();
    add(report, &format!("{replicas} replicas: all pod objects"), objects, None);
    add(report, &format!("{replicas} replicas: all ready"), all, Some((&server, before)));

    let (start, before) = (Instant::now(), server.usage()?);
    connection.must("PUT", DEPLOYMENT, deployment(replicas, 2)).await?;
    let rolled = |d: &Value| {
        number(d, "updatedReplicas") == replicas
            && number(d, "replicas") == replicas
            && number(d, "readyReplicas") == replicas
            && d["status"]["observedGeneration"] == d["metadata"]["generation"]
    };
    until(&mut connection, DEPLOYMENT, rolled).await.context("the roll-out")?;
    add(report, "rolling update of all", start.elapsed(), Some((&server, before)));

    let (start, before) = (Instant::now(), server.usage()?);
    connection.must("PUT", DEPLOYMENT, deployment(0, 2)).await?;
    until(&mut connection, PODS, |list| count(list) == 0).await.context("the end of the pods")?;
    add(report, "scaled to 0: all gone", start.elapsed(), Some((&server, before)));

    idle(report, &server, if options.quick { IDLE / 10 } else { IDLE }).await
}

fn add(report: &mut Report, what: &str, took: Duration, used: Option<(&Server, crate::process::Usage)>) {
    let mut figures = vec![("time", format!("{:.3} s", took.as_secs_f64()))];
    if let Some((server, before)) = used
        && let Ok(after) = server.usage()
    {
        figures.push(("server CPU", format!("{:.1} s", (after.cpu - before.cpu).as_secs_f64())));
        figures.push(("RSS", format!("{} MiB", after.rss_kib / 1024)));
    }
    report.add(what, figures);
}

async fn idle(report: &mut Report, server: &Server, span: Duration) -> Result<()> {
    let before = server.usage()?;
    tokio::time::sleep(span).await;
    let after = server.usage()?;
    let share = (after.cpu - before.cpu).as_secs_f64() * 100.0 / span.as_secs_f64();
    report.add(
        format!("idle for {} s afterwards, with the hollow nodes", span.as_secs()),
        vec![("RSS", format!("{} MiB", after.rss_kib / 1024)), ("CPU", format!("{share:.1} %"))],
    );
    Ok(())
}

fn number(deployment: &Value, key: &str) -> usize {
    deployment["status"][key].as_u64().unwrap_or(0) as usize
}

fn deployment(replicas: usize, version: u32) -> String {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "many"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "many"}},
            "template": {"metadata": {"labels": {"app": "many"}}, "spec": {"terminationGracePeriodSeconds": 0,
                "containers": [{"name": "c", "image": format!("example.test/many:{version}")}]}}}})
    .to_string()
}

async fn until(connection: &mut Connection, path: &str, holds: impl Fn(&Value) -> bool) -> Result<()> {
    super::until(connection, path, PATIENCE, holds).await
}
