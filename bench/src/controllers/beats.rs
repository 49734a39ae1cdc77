//! 5,000 nodes with a grace period of two seconds: what their signs of life cost, that none is called dead that lives, and
//! when it is seen that some died.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{Fleet, NODES, count, look, share, until};
use crate::Options;
use crate::load::Connection;
use crate::process::Server;
use crate::report::Report;

/// Nodes that live.
const NODES_ALIVE: usize = 4_950;
/// Nodes that die together.
const NODES_DYING: usize = 50;
/// The grace period.
const GRACE: &str = "2s";
/// All nodes renew quickly after this: they learn of it when they renew slowly for the first time.
const SETTLE: Duration = Duration::from_secs(25);
/// Processor time is read over this span.
const SPAN: Duration = Duration::from_secs(60);
/// All must be there, or seen as dead, within this.
const PATIENCE: Duration = Duration::from_secs(120);

/// All of them: a list by selectors does not say how many remain.
const SILENT: &str = "/api/v1/events?fieldSelector=reason=NodeNotReady,involvedObject.kind=Node";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases?limit=500";

/// Measures one server.
pub async fn run(options: &Options, report: &mut Report) -> Result<()> {
    let (alive, dying) = (options.amount(NODES_ALIVE), options.amount(NODES_DYING));
    let flags = ["--node-monitor-grace-period", GRACE, "--cluster-cidr", "10.128.0.0/9"];
    let server = Server::start(&options.keelson, &flags).await?;
    let fleet = Fleet::start(&options.keelson, &server, "alive", alive)?;
    let mut others = Fleet::start(&options.keelson, &server, "dying", dying)?;
    let mut connection = server.target()?.connect().await?;
    until(&mut connection, NODES, PATIENCE, |list| count(list) == alive + dying).await.context("the nodes")?;
    tokio::time::sleep(SETTLE).await;
    let span = if options.quick { SPAN / 6 } else { SPAN };
    let (before, fleet_before) = (server.usage()?, fleet.usage()?);
    tokio::time::sleep(span).await;
    let (after, fleet_after) = (server.usage()?, fleet.usage()?);
    // A server closes connections that nobody used for a while.
    let mut connection = server.target()?.connect().await?;
    let wrong = count(&look(&mut connection, SILENT).await?);
    report.add(
        format!("{} nodes, grace period {GRACE}, {} s", alive + dying, span.as_secs()),
        vec![
            ("server CPU", share(before, after, span)),
            ("CPU of the nodes", share(fleet_before, fleet_after, span)),
            ("RSS", format!("{} MiB", after.rss_kib / 1024)),
            ("lease of the slowest", format!("{} s", slowest(&mut connection).await?)),
            ("wrongly called dead", wrong.to_string()),
        ],
    );
    others.kill()?;
    let start = Instant::now();
    let first = seen(&mut connection, start, wrong + 1).await.context("the first dead node")?;
    let all = seen(&mut connection, start, wrong + dying).await.context("all dead nodes")?;
    tokio::time::sleep(span / 6).await;
    let mut connection = server.target()?.connect().await?;
    let wrong = count(&look(&mut connection, SILENT).await?).saturating_sub(dying);
    report.add(
        format!("{dying} nodes die at once"),
        vec![
            ("first seen after", format!("{:.2} s", first.as_secs_f64())),
            ("all seen after", format!("{:.2} s", all.as_secs_f64())),
            ("wrongly called dead", wrong.to_string()),
        ],
    );
    if wrong > 0 {
        bail!("{wrong} nodes were called dead that lived");
    }
    Ok(())
}

/// When so many nodes had been called dead.
async fn seen(connection: &mut Connection, start: Instant, dead: usize) -> Result<Duration> {
    until(connection, SILENT, PATIENCE, |list| count(list) >= dead).await?;
    Ok(start.elapsed())
}

/// The longest lease of the first ones, in seconds.
async fn slowest(connection: &mut Connection) -> Result<u64> {
    let leases = look(connection, LEASES).await?;
    let seconds = |lease: &Value| lease["spec"]["leaseDurationSeconds"].as_u64().unwrap_or(0);
    Ok(leases["items"].as_array().into_iter().flatten().map(seconds).max().unwrap_or(0))
}
