//! `bench controllers`: what the controllers do in how much time, and what they cost: a Deployment of 5,000 replicas, 150,000
//! watched pods, 5,000 nodes whose death is seen within two seconds, a leader that dies, and a cluster in which nothing happens.

mod beats;
mod handover;
mod idle;
mod pods;
mod rollout;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::Options;
use crate::load::Connection;
use crate::process::Server;
use crate::report::Report;

/// Pods that a hollow node takes.
const PODS_PER_NODE: usize = 110;
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(5);

const NODES: &str = "/api/v1/nodes?limit=1";

/// Measures the parts that are wanted, each with a server of its own.
pub async fn run(options: Options) -> Result<Report> {
    let mut report = Report::default();
    if options.wants("rollout") {
        rollout::run(&options, &mut report).await?;
    }
    if options.wants("idle") {
        idle::run(&options, &mut report).await?;
    }
    if options.wants("pods") {
        pods::run(&options, &mut report).await?;
    }
    if options.wants("beats") {
        beats::run(&options, &mut report).await?;
    }
    if options.wants("handover") {
        handover::run(&options, &mut report).await?;
    }
    Ok(report)
}

/// Objects of a list of which the first is read.
fn count(list: &Value) -> usize {
    let here = list["items"].as_array().map_or(0, Vec::len);
    here + list["metadata"]["remainingItemCount"].as_u64().unwrap_or(0) as usize
}

async fn look(connection: &mut Connection, path: &str) -> Result<Value> {
    Ok(serde_json::from_slice(&connection.must("GET", path, "").await?)?)
}

async fn until(
    connection: &mut Connection,
    path: &str,
    patience: Duration,
    holds: impl Fn(&Value) -> bool,
) -> Result<()> {
    let started = Instant::now();
    while started.elapsed() < patience {
        if holds(&look(connection, path).await?) {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
    bail!("did not come within {patience:?}")
}

/// Hollow nodes in a process of their own, so that what a server uses is the server's; they end with this value.
struct Fleet {
    child: Child,
    _dir: tempfile::TempDir,
}

impl Fleet {
    fn start(keelson: &Path, server: &Server, name: &str, nodes: usize) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let log = std::fs::File::create(dir.path().join("log"))?;
        let child = Command::new(keelson)
            .args(["agent", "--name", name, "--hollow", &nodes.to_string(), "--data-dir"])
            .arg(dir.path())
            .arg("--kubeconfig")
            .arg(server.kubeconfig())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", keelson.display()))?;
        Ok(Self { child, _dir: dir })
    }

    fn usage(&self) -> Result<crate::process::Usage> {
        crate::process::usage(self.child.id())
    }

    /// Ends the nodes as a power failure does.
    fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.kill();
    }
}

/// Percent of one processor that was used between two looks.
fn share(before: crate::process::Usage, after: crate::process::Usage, span: Duration) -> String {
    format!("{:.2} %", (after.cpu - before.cpu).as_secs_f64() * 100.0 / span.as_secs_f64())
}
