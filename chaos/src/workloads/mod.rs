//! What clients do while things break: one table. Each workload notes its history and has a checker for it.

mod append;
mod backup;
mod bank;
#[cfg(feature = "api")]
mod cluster;
mod compaction;
mod lock;
mod register;
mod set;
mod ttl;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;

use crate::checkers::Verdict;
use crate::context::Process;

/// Something that clients do together.
#[async_trait]
pub trait Workload: Send + Sync {
    /// Prepares what clients need, before any fault.
    async fn prepare(&self, _process: &mut Process) -> anyhow::Result<()> {
        Ok(())
    }

    /// One client, until the run ends.
    async fn client(&self, process: &mut Process);

    /// Reads at the end, when all faults have stopped.
    async fn finish(&self, _process: &mut Process) -> anyhow::Result<()> {
        Ok(())
    }

    /// Judges what was noted.
    fn check(&self) -> Checked;
}

/// What a workload's checker found.
#[derive(Clone, Debug, Serialize)]
pub struct Checked {
    /// Operations that were looked at.
    pub operations: usize,
    /// The verdict.
    pub verdict: Verdict,
}

/// A row of the table.
pub struct Row {
    /// What it is called on the command line.
    pub name: &'static str,
    /// What it does and what is checked.
    pub about: &'static str,
    /// Clients that it has.
    pub clients: u32,
    /// Whether it makes members forget history, which some others need whole.
    pub forgets: bool,
    /// Whether it checks more than etcd promises.
    pub beyond: bool,
    /// A new one.
    pub make: fn() -> Arc<dyn Workload>,
}

/// All workloads.
pub const TABLE: &[Row] = &[
    Row {
        name: "register",
        about: "reads, writes, swaps and deletions of single keys: linearizable, with revisions that follow time",
        clients: 6,
        forgets: false,
        beyond: false,
        make: || Arc::new(register::Registers::default()),
    },
    Row {
        name: "append",
        about: "transactions that append to lists and read them: strictly serializable",
        clients: 4,
        forgets: false,
        beyond: false,
        make: || Arc::new(append::Lists::default()),
    },
    Row {
        name: "set",
        about: "unique elements are added to a set: none is lost, invented or gone for a while",
        clients: 4,
        forgets: false,
        beyond: false,
        make: || Arc::new(set::Sets::default()),
    },
    Row {
        name: "bank",
        about: "money moves between accounts: each read of all, now or at a past revision, shows the same sum",
        clients: 4,
        forgets: false,
        beyond: false,
        make: || Arc::new(bank::Bank::default()),
    },
    Row {
        name: "watch",
        about: "keys are written, deleted and watched at every member: watches deliver exactly what was committed",
        clients: 6,
        forgets: false,
        beyond: false,
        make: || Arc::new(watch::Watches::default()),
    },
    Row {
        name: "lock",
        about: "leases with keys, and locks by them: no lease ends early, holders are fenced",
        clients: 5,
        forgets: false,
        beyond: false,
        make: || Arc::new(lock::Locks::default()),
    },
    Row {
        name: "compaction",
        about: "history is forgotten while keys change: what is not forgotten is all there; not together with watch",
        clients: 4,
        forgets: true,
        beyond: false,
        make: || Arc::new(compaction::Compactions::default()),
    },
    Row {
        name: "ttl",
        about: "long leases that few renew: they end neither early nor, whoever leads, much too late",
        clients: 3,
        forgets: false,
        beyond: true,
        make: || Arc::new(ttl::Ttls::default()),
    },
    Row {
        name: "backup",
        about: "backups are taken from any member and restored: each holds exactly what was committed at its revision",
        clients: 2,
        forgets: false,
        beyond: false,
        make: || Arc::new(backup::Backups::default()),
    },
];

/// Workloads through the Kubernetes API.
#[cfg(feature = "api")]
pub const CLUSTER_TABLE: &[Row] = cluster::TABLE;
/// Workloads through the Kubernetes API: none in this build.
#[cfg(not(feature = "api"))]
pub const CLUSTER_TABLE: &[Row] = &[];

/// The row of a name.
pub fn find(name: &str) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.name == name)
}

/// How often something at the end is tried before the run is called broken.
pub(crate) const ATTEMPTS: u32 = 60;
/// Pause between attempts.
pub(crate) const ATTEMPT_PAUSE: Duration = Duration::from_millis(500);

/// Repeats an operation until it is answered.
pub(crate) async fn persist<T, F: Future<Output = crate::etcd::Answer<T>>>(
    what: &str,
    mut call: impl FnMut() -> F,
) -> anyhow::Result<T> {
    let mut last = None;
    for _ in 0..ATTEMPTS {
        match call().await {
            Ok(answer) => return Ok(answer),
            Err(failure) => last = Some(failure),
        }
        tokio::time::sleep(ATTEMPT_PAUSE).await;
    }
    anyhow::bail!("{what}: no answer after all faults have stopped: {last:?}")
}
