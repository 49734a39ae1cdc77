//! Probes of one run of a container: startup first, then liveness and readiness side by side.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Probe};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::events::Recorder;
use crate::handler::Target;
use crate::probe_counts::ProbeCounts;

/// What the probes found so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The startup probe succeeded, or there is none.
    pub started: bool,
    /// The readiness probe succeeds, or there is none.
    pub ready: bool,
    /// Which probe says that the container must end.
    pub hopeless: Option<&'static str>,
}

/// The probes of one run; they end when this is dropped.
pub struct Probing {
    found: Arc<Mutex<Found>>,
    task: Option<AbortHandle>,
}

impl Drop for Probing {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// What probing needs beside the container.
pub struct Context {
    /// The container.
    pub target: Target,
    /// Its pod, for events.
    pub pod: Arc<Pod>,
    /// Takes the events.
    pub events: Recorder,
    /// Takes the results.
    pub counts: Arc<ProbeCounts>,
    /// Told when something changed.
    pub wake: Arc<Notify>,
    /// When the container started.
    pub started_at: Timestamp,
    /// What was known of this same run before the agent started.
    pub before: Option<(bool, bool)>,
}

impl Probing {
    /// Begins to probe.
    pub fn start(context: Context) -> Self {
        let container = &context.target.container;
        let (was_started, was_ready) = context.before.unwrap_or_default();
        let found = Found {
            started: container.startup_probe.is_none() || was_started,
            ready: container.readiness_probe.is_none() || was_ready,
            hopeless: None,
        };
        let probes = [&container.startup_probe, &container.liveness_probe, &container.readiness_probe];
        if probes.iter().all(|p| p.is_none()) {
            return Self { found: Arc::new(Mutex::new(found)), task: None };
        }
        let found = Arc::new(Mutex::new(found));
        let prober = Prober { context, found: found.clone() };
        Self { found, task: Some(tokio::spawn(prober.run()).abort_handle()) }
    }

    /// What is known now. Nothing is ready that has not started.
    pub fn found(&self) -> Found {
        let mut found = self.found.lock().clone();
        found.ready &= found.started;
        found
    }
}

struct Prober {
    context: Context,
    found: Arc<Mutex<Found>>,
}

/// Counts results of one sort in a row.
#[derive(Default)]
struct Streak {
    good: bool,
    length: i32,
}

impl Streak {
    /// Whether enough results of this sort came in a row.
    fn push(&mut self, good: bool, success: i32, failure: i32) -> bool {
        self.length = if self.good == good { self.length.saturating_add(1) } else { 1 };
        self.good = good;
        self.length >= if good { success } else { failure }
    }
}

impl Prober {
    async fn run(self) {
        let container = &self.context.target.container;
        if let Some(probe) = container.startup_probe.as_ref().filter(|_| !self.found.lock().started) {
            self.repeat("Startup", probe, |found, good| {
                if good {
                    found.started = true;
                } else {
                    found.hopeless = Some("startup");
                }
                true
            })
            .await;
            if !self.found.lock().started {
                return;
            }
        }
        let live = async {
            if let Some(probe) = &container.liveness_probe {
                self.repeat("Liveness", probe, |found, good| {
                    if !good {
                        found.hopeless = Some("liveness");
                    }
                    !good
                })
                .await;
            }
        };
        let ready = async {
            if let Some(probe) = &container.readiness_probe {
                self.repeat("Readiness", probe, |found, good| {
                    found.ready = good;
                    false
                })
                .await;
            }
        };
        tokio::join!(live, ready);
    }

    /// Probes until `decide`, which gets each decided result, says that it is over.
    async fn repeat(&self, name: &str, probe: &Probe, decide: impl Fn(&mut Found, bool) -> bool) {
        let period = Duration::from_secs(probe.period_seconds.unwrap_or(10).max(1).unsigned_abs().into());
        let (success, failure) = (probe.success_threshold.unwrap_or(1), probe.failure_threshold.unwrap_or(3));
        let delay = i64::from(probe.initial_delay_seconds.unwrap_or(0));
        let since = Timestamp::now().as_second() - self.context.started_at.as_second();
        tokio::time::sleep(Duration::from_secs((delay - since).max(0).unsigned_abs())).await;
        let mut streak = Streak::default();
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let result = self.context.target.probe(probe).await;
            self.context.counts.note(name, &self.context.target.container.name, &self.context.pod, result.is_ok());
            if let Err(why) = &result {
                let message = format!("{name} probe failed: {why}");
                let container = Some(self.context.target.container.name.as_str());
                self.context.events.warning(&self.context.pod, container, "Unhealthy", message);
            }
            if !streak.push(result.is_ok(), success, failure) {
                continue;
            }
            let mut found = self.found.lock();
            let before = found.clone();
            let over = decide(&mut found, result.is_ok());
            let changed = *found != before;
            drop(found);
            if changed {
                self.context.wake.notify_one();
            }
            if over {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_count_in_a_row() {
        let mut streak = Streak::default();
        let results = [(false, false), (false, false), (false, true), (true, false), (true, true), (false, false)];
        for (turn, (good, decided)) in results.into_iter().enumerate() {
            assert_eq!(streak.push(good, 2, 3), decided, "turn {turn}");
        }
    }
}
