//! Informers at every server, and what they saw: each must have had every change in order, once.

use async_trait::async_trait;

use super::Log;
use crate::checkers::{Fault, Verdict, cluster, watch};
use crate::context::Process;
use crate::workloads::{Checked, Workload};

/// The workload: the run itself has the informers, since every other workload is judged by what they saw.
#[derive(Default)]
pub struct Informers {
    log: Log,
}

#[async_trait]
impl Workload for Informers {
    async fn prepare(&self, process: &mut Process) -> anyhow::Result<()> {
        if let Some(cluster) = &process.shared.cluster {
            cluster.observe();
        }
        Ok(())
    }

    async fn client(&self, _: &mut Process) {}

    async fn finish(&self, process: &mut Process) -> anyhow::Result<()> {
        if let Some(cluster) = &process.shared.cluster {
            cluster.finish().await?;
        }
        self.log.take(process);
        Ok(())
    }

    fn check(&self) -> Checked {
        let Some(seen) = self.log.seen() else { return self.log.judge(&[], cluster::leases) };
        let differ = seen.wrong.iter().map(|what| Fault::new("informer-differs", what.clone()));
        let verdict = watch::check(&seen.watched, &seen.events()).and(Verdict::of(differ.collect()));
        let told: usize = seen.watched.iter().map(|watched| watched.said.len()).sum();
        Checked { operations: told, verdict: verdict.and(cluster::leases(&seen.changes())) }
    }
}
