//! The end of the machine: pods are ended with what grace there is, critical ones last. When only the agent is told to
//! stop, nothing of this happens and pods go on running.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use crate::agent::Agent;
use crate::node;
use crate::pod_status::Doom;
use crate::spec::pod;

/// How often it is looked who still runs.
const LOOK: Duration = Duration::from_millis(100);
/// Longest wait for the answer whether the machine goes down.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pods of this priority and above are critical.
const CRITICAL: i32 = 2_000_000_000;

/// How pods are ended with the machine.
#[derive(Clone, Debug)]
pub struct Shutdown {
    /// Time for all pods.
    pub grace: Duration,
    /// The end of it, for critical pods alone.
    pub critical: Duration,
    /// The program that tells, asked `is-system-running`, whether the machine is `stopping`: systemd's `systemctl`.
    pub program: PathBuf,
}

/// Whether a pod is among the last to go.
fn is_critical(of: &Pod) -> bool {
    of.spec.as_ref().is_some_and(|s| s.priority.unwrap_or(0) >= CRITICAL)
}

/// Whether the machine goes down.
async fn machine_stops(shutdown: &Shutdown) -> bool {
    let asked = tokio::process::Command::new(&shutdown.program).arg("is-system-running").kill_on_drop(true).output();
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Ok(output)) => String::from_utf8_lossy(&output.stdout).trim() == "stopping",
        Ok(Err(error)) => {
            tracing::warn!(program = %shutdown.program.display(), %error, "it is not known whether the machine stops");
            false
        }
        Err(_) => false,
    }
}

impl Agent {
    /// Ends this node's pods if the machine goes down.
    pub(crate) async fn end_with_machine(self: &Arc<Self>) {
        let Some(shutdown) = self.config.shutdown.clone().filter(|s| !s.grace.is_zero()) else { return };
        if !machine_stops(&shutdown).await {
            return;
        }
        tracing::info!(grace = ?shutdown.grace, "the machine goes down: pods are ended");
        let state = node::State { not_ready: Some("node is shutting down".into()), ..node::State::default() };
        let reported = node::register(&self.config.client, &self.config.node_name, self.machine(), &state);
        if !matches!(tokio::time::timeout(PATIENCE, reported).await, Ok(Ok(_))) {
            tracing::info!("the node could not say that it shuts down");
        }
        let first = shutdown.grace.saturating_sub(shutdown.critical);
        self.end_all(first, |of| !is_critical(of)).await;
        self.end_all(shutdown.critical.min(shutdown.grace), |_| true).await;
    }

    async fn end_all(&self, grace: Duration, among: impl Fn(&Pod) -> bool) {
        let deadline = Instant::now() + grace;
        let left = || {
            let pods = self.pods.list();
            pods.into_iter().filter(|of| !pod::is_finished(of) && among(of)).map(|of| pod::uid(&of)).collect::<Vec<_>>()
        };
        let seconds = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
        for uid in left() {
            let message = "Pod was terminated in response to imminent node shutdown.";
            self.pods.condemn(&uid, Doom::new("Terminated", message).within(seconds).disrupting());
        }
        while !left().is_empty() && Instant::now() < deadline {
            tokio::time::sleep(LOOK).await;
        }
    }
}
