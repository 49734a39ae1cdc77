//! 150,000 pods that run, watched by everything in the server: what memory the process has.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

use super::{Fleet, NODES, PODS_PER_NODE, count, share, until};
use crate::Options;
use crate::process::Server;
use crate::report::Report;

/// Pods in all.
const PODS: usize = 150_000;
/// Deployments that make them, one after another.
const DEPLOYMENTS: usize = 30;
/// A Deployment that is not ready by then never will be.
const PATIENCE: Duration = Duration::from_secs(300);
/// Memory is read again after this time.
const REST: Duration = Duration::from_secs(60);

const PATH: &str = "/apis/apps/v1/namespaces/default/deployments";

/// Measures one server.
pub async fn run(options: &Options, report: &mut Report) -> Result<()> {
    let pods = options.amount(PODS);
    let (each, nodes) = (pods / DEPLOYMENTS, pods.div_ceil(PODS_PER_NODE) + 1);
    let server = Server::start(&options.keelson, &["--cluster-cidr", "10.128.0.0/9"]).await?;
    let fleet = Fleet::start(&options.keelson, &server, "fleet", nodes)?;
    let mut connection = server.target()?.connect().await?;
    until(&mut connection, NODES, PATIENCE, |list| count(list) == nodes).await.context("the nodes")?;
    let before = server.usage()?;
    let start = Instant::now();
    for index in 0..DEPLOYMENTS {
        let name = format!("many-{index}");
        connection.must("POST", PATH, deployment(&name, each)).await?;
        let path = format!("{PATH}/{name}");
        let ready = |d: &serde_json::Value| d["status"]["readyReplicas"].as_u64() == Some(each as u64);
        until(&mut connection, &path, PATIENCE, ready).await.with_context(|| name.clone())?;
    }
    let (made, took) = (server.usage()?, start.elapsed());
    report.add(
        format!("{pods} pods run on {nodes} nodes of another process"),
        vec![
            ("time", format!("{:.0} s", took.as_secs_f64())),
            ("server CPU", format!("{:.0} s", (made.cpu - before.cpu).as_secs_f64())),
            ("RSS", format!("{} MiB", made.rss_kib / 1024)),
            ("RSS at most", format!("{} MiB", made.peak_kib / 1024)),
        ],
    );
    let rest = if options.quick { REST / 10 } else { REST };
    tokio::time::sleep(rest).await;
    let after = server.usage()?;
    report.add(
        format!("{} s later", rest.as_secs()),
        vec![
            ("RSS", format!("{} MiB", after.rss_kib / 1024)),
            ("RSS at most", format!("{} MiB", after.peak_kib / 1024)),
            ("for each pod", format!("{:.1} KiB", (after.rss_kib.saturating_sub(before.rss_kib)) as f64 / pods as f64)),
            ("CPU", share(made, after, rest)),
        ],
    );
    drop(fleet);
    Ok(())
}

/// Its pods have what pods usually have: an account's token, requests, probes and variables.
fn deployment(name: &str, replicas: usize) -> String {
    let container = json!({"name": "c", "image": "registry.example.test/team/service:1.2.3",
        "ports": [{"containerPort": 8080, "name": "http"}],
        "env": [{"name": "MODE", "value": "production"}, {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        "resources": {"requests": {"cpu": "1m", "memory": "1Mi"}, "limits": {"memory": "64Mi"}},
        "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}}});
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [container]}}}})
    .to_string()
}
