//! How long writes take while the cluster does something else: a snapshot, a compaction, a member that catches up.

use std::time::Duration;

use anyhow::{Context, Result};
use keelson_proto::etcd::etcdserverpb as pb;
use pb::kv_client::KvClient;
use pb::maintenance_client::MaintenanceClient;

use super::members::Cluster;
use super::{lean, millis, put_call};
use crate::Options;
use crate::report::Report;

/// Clients that write, and how many writes.
const CLIENTS: usize = 16;
const WRITES: usize = 100_000;
/// Revisions that a compaction leaves.
const KEPT_REVISIONS: i64 = 1_000;
/// Pause between two compactions.
const COMPACT_EVERY: Duration = Duration::from_millis(500);

/// Measures writes alone and beside each of the others.
pub async fn run(report: &mut Report, name: &str, cluster: &mut Cluster, options: &Options) -> Result<()> {
    beside(report, format!("{name}: writes, nothing else"), cluster, options, std::future::pending()).await?;
    let what = format!("{name}: writes beside snapshots");
    beside(report, what, cluster, options, snapshots(cluster)).await?;
    let what = format!("{name}: writes beside compactions");
    beside(report, what, cluster, options, compactions(cluster)).await?;
    let (addresses, what) = (cluster.addresses(), format!("{name}: writes beside a new member"));
    let load = lean::load(addresses, CLIENTS, options.amount(WRITES), put_call(256));
    let added = async {
        let ready = cluster.add().await?;
        Ok::<_, anyhow::Error>(ready)
    };
    let (measured, ready) = tokio::try_join!(load, added)?;
    add(report, what, &measured, ("ready after", millis(ready)));
    Ok(())
}

fn add(report: &mut Report, what: String, measured: &super::Measured, further: (&'static str, String)) {
    report.add(
        what,
        vec![
            ("rate", format!("{:.0}/s", measured.rate())),
            ("p50", millis(measured.permille(500))),
            ("p99", millis(measured.permille(990))),
            ("most", millis(measured.permille(1000))),
            further,
        ],
    );
}

/// Measures writes beside something that goes on until they are done.
async fn beside(
    report: &mut Report,
    what: String,
    cluster: &Cluster,
    options: &Options,
    other: impl Future<Output = Result<()>>,
) -> Result<()> {
    let load = lean::load(cluster.addresses(), CLIENTS, options.amount(WRITES), put_call(256));
    tokio::select! {
        measured = load => add(report, what, &measured?, ("clients", CLIENTS.to_string())),
        failed = other => failed.context("what goes on beside the writes has ended")?,
    }
    Ok(())
}

/// Takes one snapshot after the other.
async fn snapshots(cluster: &Cluster) -> Result<()> {
    let mut client = MaintenanceClient::new(cluster.channel(0)?);
    loop {
        let mut parts = client.snapshot(pb::SnapshotRequest {}).await?.into_inner();
        while parts.message().await?.is_some() {}
    }
}

/// Forgets all but the latest revisions, again and again.
async fn compactions(cluster: &Cluster) -> Result<()> {
    let mut client = KvClient::new(cluster.channel(0)?);
    loop {
        let range = pb::RangeRequest { key: "ready".into(), ..pb::RangeRequest::default() };
        let header = client.range(range).await?.into_inner().header.context("an answer without a header")?;
        let revision = header.revision - KEPT_REVISIONS;
        match client.compact(pb::CompactionRequest { revision, physical: true }).await {
            // Nothing was written since the last one.
            Err(status) if status.code() == tonic::Code::OutOfRange => {}
            done => drop(done?),
        }
        tokio::time::sleep(COMPACT_EVERY).await;
    }
}
