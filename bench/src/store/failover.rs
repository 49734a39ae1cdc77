//! How long writes stop when the leader is killed.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use keelson_proto::etcd::etcdserverpb as pb;
use pb::kv_client::KvClient;

use super::members::{Cluster, MEMBERS};
use super::{Measured, millis};
use crate::Options;
use crate::report::Report;

/// How often the leader is killed.
const TIMES: usize = 20;
/// How long a client waits for an answer before it asks again: what was on its way to the old leader is lost with it.
const PATIENCE: Duration = Duration::from_millis(200);
/// A cluster that takes no writes for so long never will.
const GIVEN_UP: Duration = Duration::from_secs(60);

/// Kills the leader, measures to the next acknowledged write, brings it back; many times.
pub async fn run(report: &mut Report, name: &str, cluster: &mut Cluster, options: &Options) -> Result<()> {
    let mut gaps = Vec::new();
    for _ in 0..options.amount(TIMES) {
        let leader = cluster.leader().await?;
        let other = (leader + 1) % MEMBERS;
        let mut client = KvClient::new(cluster.channel(other)?);
        let put = || pb::PutRequest { key: "failover".into(), value: "x".into(), ..pb::PutRequest::default() };
        client.put(put()).await?;
        cluster.kill(leader)?;
        let killed = Instant::now();
        loop {
            match tokio::time::timeout(PATIENCE, client.put(put())).await {
                Ok(Ok(_)) => break,
                _ if killed.elapsed() > GIVEN_UP => bail!("no write for {GIVEN_UP:?} after the leader was killed"),
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
        gaps.push(killed.elapsed());
        cluster.run(leader)?;
        cluster.ready(leader).await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let measured = Measured::new(gaps, Duration::from_secs(1));
    report.add(
        format!("{name}: leader killed to next write, {} times", options.amount(TIMES)),
        vec![("p50", millis(measured.permille(500))), ("max", millis(measured.permille(1000)))],
    );
    Ok(())
}
