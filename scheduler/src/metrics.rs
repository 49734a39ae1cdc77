//! What the scheduler does, in numbers under upstream's names.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keelson_metrics::{Histogram, Source, family, sample};
use parking_lot::Mutex;

use crate::core::{Act, Bound, Core, Tally};
use crate::plugins::PLUGINS;
use crate::queue::{Depth, Millis};

/// Upper bounds of the buckets of attempts, seconds.
const ATTEMPT_BOUNDS: &[f64] =
    &[0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192, 16.384];
/// Upper bounds of the buckets of the time from a pod's arrival until it is bound, seconds.
const SLI_BOUNDS: &[f64] = &[
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 327.68, 655.36,
    1310.72, 2621.44, 5242.88,
];
/// Upper bounds of the buckets of attempts that a pod needed.
const TRIES_BOUNDS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0];
/// Upper bounds of the buckets of pods that had to go.
const VICTIMS_BOUNDS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0];
/// How often the state is copied for those who ask.
const PERIOD: Duration = Duration::from_millis(250);

/// The state at one time.
#[derive(Default)]
struct Snapshot {
    taken: Option<Instant>,
    tally: Tally,
    depth: Depth,
    refused: Vec<(usize, usize)>,
    nodes: usize,
    pods: usize,
    assumed: usize,
}

/// The numbers.
pub struct Numbers {
    snapshot: Mutex<Snapshot>,
    /// Attempts by profile and result.
    attempts: Mutex<BTreeMap<(Arc<str>, &'static str), Histogram>>,
    waited: Histogram,
    tries: Histogram,
    victims: Histogram,
}

impl Default for Numbers {
    fn default() -> Self {
        Self {
            snapshot: Mutex::default(),
            attempts: Mutex::default(),
            waited: Histogram::new(SLI_BOUNDS),
            tries: Histogram::new(TRIES_BOUNDS),
            victims: Histogram::new(VICTIMS_BOUNDS),
        }
    }
}

impl Numbers {
    /// Counts one attempt.
    pub fn attempted(&self, act: &Act, took: Duration) {
        let (pod, result) = match act {
            Act::Bind { pod, .. } => (pod, "scheduled"),
            Act::Fail { pod, victims, .. } => {
                if !victims.is_empty() {
                    self.victims.observe(victims.len() as f64);
                }
                (pod, "unschedulable")
            }
            // The attempt ends with the extenders' answer; one of a group was counted pod by pod.
            Act::Ask { .. } | Act::Consult { .. } | Act::Group { .. } => return,
        };
        let mut attempts = self.attempts.lock();
        let histogram = attempts.entry((pod.class.scheduler.clone(), result));
        histogram.or_insert_with(|| Histogram::new(ATTEMPT_BOUNDS)).took(took);
    }

    /// Takes over what changed, and now and then the state.
    pub fn update(&self, core: &mut Core) {
        for Bound { tries, waited } in core.bound.drain(..) {
            self.tries.observe(f64::from(tries));
            self.waited.observe(seconds(waited));
        }
        let mut snapshot = self.snapshot.lock();
        if snapshot.taken.is_some_and(|at| at.elapsed() < PERIOD) {
            return;
        }
        *snapshot = Snapshot {
            taken: Some(Instant::now()),
            tally: core.tally.clone(),
            depth: core.queue.depth(),
            refused: core.queue.refusals().collect(),
            nodes: core.view.node_count(),
            pods: core.view.placed_count(),
            assumed: core.writing(),
        };
    }
}

fn seconds(millis: Millis) -> f64 {
    millis as f64 / 1000.0
}

impl Snapshot {
    fn write(&self, out: &mut String) {
        let name = "scheduler_pending_pods";
        family(out, name, "gauge", "Number of pending pods, by the queue type.");
        let Depth { active, backoff, unschedulable, gated } = self.depth;
        for (queue, count) in
            [("active", active), ("backoff", backoff), ("unschedulable", unschedulable), ("gated", gated)]
        {
            sample(out, name, &format!("queue=\"{queue}\""), count as f64);
        }
        let name = "scheduler_unschedulable_pods";
        family(out, name, "gauge", "The number of unschedulable pods broken down by plugin name.");
        for (plugin, count) in self.refused.iter().filter(|(_, count)| *count > 0) {
            sample(out, name, &format!("plugin=\"{}\"", PLUGINS[*plugin].name), *count as f64);
        }
        let name = "scheduler_cache_size";
        family(out, name, "gauge", "Number of nodes, pods, and assumed (bound) pods in the scheduler cache.");
        for (kind, count) in [("nodes", self.nodes), ("pods", self.pods), ("assumed_pods", self.assumed)] {
            sample(out, name, &format!("type=\"{kind}\""), count as f64);
        }
        let name = "scheduler_queue_incoming_pods_total";
        family(out, name, "counter", "Number of pods added to scheduling queues by event and queue type.");
        for (event, count) in &self.tally.incoming {
            let queue = if *event == "ScheduleAttemptFailure" { "unschedulable" } else { "active" };
            sample(out, name, &format!("event=\"{event}\",queue=\"{queue}\""), *count as f64);
        }
        let name = "scheduler_preemption_attempts_total";
        family(out, name, "counter", "Total preemption attempts in the cluster till now");
        sample(out, name, "", self.tally.preemption_attempts as f64);
        let name = "keelson_scheduler_refused_bindings_total";
        family(out, name, "counter", "Bindings that the API server refused.");
        sample(out, name, "", self.tally.errors as f64);
    }
}

impl Source for Numbers {
    fn write(&self, out: &mut String) {
        self.snapshot.lock().write(out);
        let attempts = self.attempts.lock();
        let labels =
            |(profile, result): &(Arc<str>, &'static str)| format!("profile=\"{profile}\",result=\"{result}\"");
        let name = "scheduler_schedule_attempts_total";
        family(out, name, "counter", "Number of attempts to schedule pods, by the result.");
        for (key, histogram) in attempts.iter() {
            sample(out, name, &labels(key), histogram.count() as f64);
        }
        let name = "scheduler_scheduling_attempt_duration_seconds";
        family(out, name, "histogram", "Scheduling attempt latency in seconds");
        for (key, histogram) in attempts.iter() {
            histogram.write(name, &labels(key), out);
        }
        for (name, histogram, help) in [
            (
                "scheduler_pod_scheduling_sli_duration_seconds",
                &self.waited,
                "Time from a pod's arrival in the queue until it is bound, in seconds.",
            ),
            ("scheduler_pod_scheduling_attempts", &self.tries, "Number of attempts to successfully schedule a pod."),
            ("scheduler_preemption_victims", &self.victims, "Number of selected preemption victims"),
        ] {
            family(out, name, "histogram", help);
            histogram.write(name, "", out);
        }
    }
}
