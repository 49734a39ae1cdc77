//! Decides what a Job does next: whether its end is decided, which pods are made and which go.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::policy;
use super::tally::{self, Failures, Tally, index_of, is_indexed};
use crate::kept::Pod;
use crate::pods;

/// Most pods that one look creates or deletes.
const BURST: usize = 500;
/// Pause after the first failure; it doubles with each further one.
const FIRST_PAUSE_SECONDS: i64 = 10;
const LONGEST_PAUSE_SECONDS: i64 = 600;
/// Failures of a Job that are remembered; the pause is at its longest long before.
const MOST_FAILURES: usize = 64;

/// A condition that holds, now.
pub fn condition(kind: &str, status: &str, reason: &str, message: &str, now: &Time) -> JobCondition {
    JobCondition {
        type_: kind.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_probe_time: Some(now.clone()),
        last_transition_time: Some(now.clone()),
    }
}

pub fn find<'a>(job: &'a Job, kind: &str) -> Option<&'a JobCondition> {
    job.status.as_ref()?.conditions.iter().flatten().find(|c| c.type_ == kind)
}

pub fn holds(job: &Job, kind: &str) -> bool {
    find(job, kind).is_some_and(|c| c.status == "True")
}

/// Whether the Job has ended.
pub fn is_finished(job: &Job) -> bool {
    holds(job, "Complete") || holds(job, "Failed")
}

pub fn is_suspended(job: &Job) -> bool {
    job.spec.as_ref().is_some_and(|s| s.suspend == Some(true))
}

/// How the Job ends: the condition that says so before all its pods have ended.
pub fn ending(job: &Job, tally: &Tally, pods: &[Arc<Pod>], now: &Time) -> Option<JobCondition> {
    let spec = job.spec.as_ref()?;
    for kind in ["SuccessCriteriaMet", "FailureTarget"] {
        if let Some(decided) = find(job, kind).filter(|c| c.status == "True") {
            return Some(decided.clone());
        }
    }
    let failure = |reason: &str, message: &str| Some(condition("FailureTarget", "True", reason, message, now));
    if let Some(why) = &tally.failure {
        return failure("PodFailurePolicy", why);
    }
    if tally.failed() > spec.backoff_limit.unwrap_or(6) || past_limit_by_restarts(spec, pods) {
        return failure("BackoffLimitExceeded", "Job has reached the specified backoff limit");
    }
    if deadline(job).is_some_and(|at| at <= now.0) {
        return failure("DeadlineExceeded", "Job was active longer than specified deadline");
    }
    if !is_indexed(job) {
        return None;
    }
    let (failed, succeeded) = (tally.failed_indexes.len(), tally.succeeded_indexes.len());
    if spec.backoff_limit_per_index.is_some() {
        let most = spec.max_failed_indexes.and_then(|n| usize::try_from(n).ok());
        if most.is_some_and(|most| failed > most) {
            return failure(
                "MaxFailedIndexesExceeded",
                "Job has exceeded the specified maximal number of failed indexes",
            );
        }
        if failed > 0 && failed + succeeded >= usize::try_from(spec.completions.unwrap_or(0)).unwrap_or(0) {
            return failure("FailedIndexes", "Job has failed indexes");
        }
    }
    let met = policy::success(spec, &tally.succeeded_indexes)?;
    Some(condition("SuccessCriteriaMet", "True", "SuccessPolicy", &met, now))
}

/// Whether so many pods have succeeded that the Job is complete once none is active.
pub fn is_complete(job: &Job, tally: &Tally, active: usize) -> bool {
    let wanted = job.spec.as_ref().and_then(|s| s.completions).unwrap_or(1);
    active == 0 && tally.succeeded(job) >= wanted
}

/// When the Job has run for too long.
pub fn deadline(job: &Job) -> Option<Timestamp> {
    if is_suspended(job) {
        return None;
    }
    let seconds = job.spec.as_ref()?.active_deadline_seconds?;
    let start = job.status.as_ref()?.start_time.as_ref()?.0;
    start.checked_add(SignedDuration::from_secs(seconds)).ok()
}

/// Containers that restart in place count too.
fn past_limit_by_restarts(spec: &JobSpec, pods: &[Arc<Pod>]) -> bool {
    if spec.template.spec.as_ref().and_then(|s| s.restart_policy.as_deref()) != Some("OnFailure") {
        return false;
    }
    let running = pods.iter().filter(|p| matches!(pods::phase(p), "Running" | "Pending"));
    let statuses = running
        .filter_map(|p| p.status.as_ref())
        .flat_map(|s| s.container_statuses.iter().flatten().chain(s.init_container_statuses.iter().flatten()));
    let restarts: i32 = statuses.map(|c| c.restart_count).sum();
    match spec.backoff_limit.unwrap_or(6) {
        0 => restarts > 0,
        limit => restarts >= limit,
    }
}

/// How many active pods are told of. While the missing ones have to wait (`paused`) upstream's v1.36.2 tells of none
/// (kubernetes/kubernetes#139428, mended later); where some are ready that would be refused, and is not done.
pub fn told_active(active: i32, ready: i32, paused: bool) -> i32 {
    if paused && ready == 0 { 0 } else { active }
}

/// What is made or deleted. Both at once never happens.
#[derive(Debug, Default)]
pub struct Plan {
    /// The pods to make: their indexes, and how often each had failed before.
    pub create: Vec<(Option<i32>, Failures)>,
    /// Pods that go.
    pub delete: Vec<Arc<Pod>>,
    /// When to look again for a pod that may be made then.
    pub again: Option<Duration>,
}

/// Brings the number of active pods to what it should be. `earlier` are failures whose pods may be gone.
pub fn manage(job: &Job, tally: &Tally, pods: &[Arc<Pod>], earlier: &Backoff, now: Timestamp) -> Plan {
    let Some(spec) = &job.spec else { return Plan::default() };
    let mut active: Vec<Arc<Pod>> = pods.iter().filter(|p| pods::is_active(p)).cloned().collect();
    if is_suspended(job) {
        return Plan { delete: active, ..Plan::default() };
    }
    let size = |n: i32| usize::try_from(n).unwrap_or(0);
    let parallelism = size(spec.parallelism.unwrap_or(1));
    let failed_indexes = if spec.backoff_limit_per_index.is_some() { tally.failed_indexes.len() } else { 0 };
    let wanted = match spec.completions {
        None if tally.succeeded(job) > 0 => active.len(),
        None => parallelism,
        Some(n) => size(n - tally.succeeded(job)).saturating_sub(failed_indexes).min(parallelism),
    };
    let mut delete = if is_indexed(job) { misplaced(spec, &mut active) } else { Vec::new() };
    if active.len() > wanted {
        pods::sort_active(&mut active);
        let surplus = active.len() - wanted;
        delete.extend(active.drain(..surplus));
    }
    if !delete.is_empty() {
        delete.truncate(BURST);
        return Plan { delete, ..Plan::default() };
    }
    let waited_for = |p: &&Arc<Pod>| policy::only_replaces_failed(job) && pods::is_going(p) && !pods::is_finished(p);
    let terminating: Vec<Arc<Pod>> = pods.iter().filter(waited_for).cloned().collect();
    let missing = wanted.saturating_sub(active.len() + terminating.len()).min(BURST);
    if missing == 0 {
        return Plan::default();
    }
    // The index of a pod that is waited for is not free.
    active.extend(terminating);
    if spec.backoff_limit_per_index.is_some() {
        return indexed_with_limits(spec, tally, &active, missing, now);
    }
    if let Some(wait) = earlier.wait(now) {
        return Plan { again: Some(wait), ..Plan::default() };
    }
    let none = Failures::default();
    let create = if is_indexed(job) {
        let taken = |i: &i32| tally.succeeded_indexes.contains(i) || active.iter().any(|p| index_of(p) == Some(*i));
        (0..spec.completions.unwrap_or(0)).filter(|i| !taken(i)).take(missing).map(|i| (Some(i), none)).collect()
    } else {
        vec![(None, none); missing]
    };
    Plan { create, ..Plan::default() }
}

/// Pods without an index that the Job has, and all but one of those with the same: the one that is farthest stays.
fn misplaced(spec: &JobSpec, active: &mut Vec<Arc<Pod>>) -> Vec<Arc<Pod>> {
    let mut seen = std::collections::HashSet::new();
    pods::sort_active(active);
    active.reverse();
    let (keep, drop): (Vec<_>, Vec<_>) = std::mem::take(active)
        .into_iter()
        .partition(|p| index_of(p).is_some_and(|i| i < spec.completions.unwrap_or(0) && seen.insert(i)));
    *active = keep;
    drop
}

/// Each index waits for itself.
fn indexed_with_limits(spec: &JobSpec, tally: &Tally, active: &[Arc<Pod>], missing: usize, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let taken = |index: &i32| {
        tally.succeeded_indexes.contains(index)
            || tally.failed_indexes.contains(index)
            || active.iter().any(|p| index_of(p) == Some(*index))
    };
    // The first ones are chosen, also those that have to wait: others do not go before them.
    for index in (0..spec.completions.unwrap_or(0)).filter(|i| !taken(i)).take(missing) {
        let Some(failed) = tally.retries.get(&index) else {
            plan.create.push((Some(index), Failures::default()));
            continue;
        };
        let failures = Failures::with(failed, policy::meaning(spec, failed) != policy::Meaning::Ignore);
        match pause(failures.total(), ended_at(failed), now) {
            None => plan.create.push((Some(index), failures)),
            Some(wait) => plan.again = Some(plan.again.map_or(wait, |a| a.min(wait))),
        }
    }
    plan
}

/// When a pod ended: once all its containers have, the last of them; else when it was no longer ready; else when it was
/// told to go; else when it was made.
fn ended_at(pod: &Pod) -> Timestamp {
    let statuses = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    let ends = statuses.map(|c| c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref().map(|t| t.0));
    let ends: Option<Vec<Timestamp>> = ends.collect();
    let unready = || {
        let ready = pods::condition(pod, "Ready").filter(|c| c.status == "False");
        ready.and_then(|c| c.last_transition_time.as_ref().map(|t| t.0))
    };
    let made = || pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
    let last = ends.and_then(|ends| ends.into_iter().max());
    last.or_else(unready).or_else(|| tally::told_to_go(pod)).or_else(made).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// How long to wait after so many failures, the last of them at `since`.
fn pause(failures: i32, since: Timestamp, now: Timestamp) -> Option<Duration> {
    if failures <= 0 {
        return None;
    }
    let doubled = FIRST_PAUSE_SECONDS.saturating_mul(1_i64 << (failures - 1).clamp(0, 20));
    let due = since.checked_add(SignedDuration::from_secs(doubled.min(LONGEST_PAUSE_SECONDS))).ok()?;
    (due > now).then(|| pods::until(due, now))?
}

/// Failures since the last success, also of pods that are gone: the pause before another pod is made grows with them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    /// The Job.
    uid: String,
    /// Uids of failed pods, and when each failed.
    failures: HashMap<String, Timestamp>,
}

impl Plan {
    /// Whether nothing is done because every pod that is missing has to wait.
    pub fn is_paused(&self) -> bool {
        self.again.is_some() && self.create.is_empty()
    }
}

impl Backoff {
    /// Takes in what the Job's pods say. What another Job of that name left is forgotten.
    pub fn see(&mut self, job: &Job, pods: &[Arc<Pod>]) {
        let uid = job.metadata.uid.clone().unwrap_or_default();
        if self.uid != uid {
            *self = Self { uid, ..Self::default() };
        }
        for pod in pods.iter().filter(|p| policy::is_failed(p, job)) {
            self.failures.insert(pod.metadata.uid.clone().unwrap_or_default(), ended_at(pod));
        }
        let succeeded = pods.iter().filter(|p| pods::phase(p) == "Succeeded");
        if let Some(success) = succeeded.map(|p| ended_at(p)).max() {
            self.failures.retain(|_, at| *at > success);
        }
        if self.failures.len() > MOST_FAILURES {
            // The pause grows no longer: the newest say all.
            let mut times: Vec<Timestamp> = self.failures.values().copied().collect();
            times.sort_unstable();
            let oldest = times[times.len() - MOST_FAILURES];
            self.failures.retain(|_, at| *at >= oldest);
        }
    }

    /// How long to wait before another pod is made.
    fn wait(&self, now: Timestamp) -> Option<Duration> {
        pause(i32::try_from(self.failures.len()).unwrap_or(i32::MAX), *self.failures.values().max()?, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::tally::{FINALIZER, INDEX};
    use serde_json::{Value, json};

    fn job(spec: Value) -> Job {
        let mut whole = json!({"metadata": {"name": "j"}, "spec": {"completions": 5, "parallelism": 2, "template": {}},
            "status": {"startTime": "2026-01-01T00:00:00Z"}});
        keelson_machinery::patch::merge(&mut whole["spec"], &spec);
        serde_json::from_value(whole).unwrap()
    }

    /// `r`unning, `s`ucceeded, `f`ailed; the position is the index.
    fn pods(text: &str, ended: &str) -> Vec<Arc<Pod>> {
        let pod = |(i, c): (usize, char)| {
            let phase = match c {
                's' => "Succeeded",
                'f' => "Failed",
                _ => "Running",
            };
            Arc::new(
                serde_json::from_value(json!({"metadata": {"uid": i.to_string(), "name": i.to_string(), "finalizers": [FINALIZER],
                    "annotations": {INDEX: i.to_string()}}, "spec": {"containers": []},
                    "status": {"phase": phase, "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": ended}]}}))
                .unwrap(),
            )
        };
        text.chars().enumerate().filter(|(_, c)| *c != '-').map(pod).collect()
    }

    fn planned(spec: Value, text: &str) -> (usize, usize, Option<u64>) {
        let (job, pods) = (job(spec), pods(text, "2026-01-01T00:00:00Z"));
        let now: Timestamp = "2026-01-01T00:00:05Z".parse().unwrap();
        let tally = tally::tally(&job, &pods, tally::Decided::No, now);
        let mut earlier = Backoff::default();
        earlier.see(&job, &pods);
        let plan = manage(&job, &tally, &pods, &earlier, now);
        (plan.create.len(), plan.delete.len(), plan.again.map(|d| d.as_secs()))
    }

    #[test]
    fn pods_are_made_and_deleted() {
        for (what, spec, pods, expected) in [
            ("begins", json!({}), "", (2, 0, None)),
            ("is full", json!({}), "rr", (0, 0, None)),
            ("one more", json!({}), "rs", (1, 0, None)),
            ("only what is missing", json!({}), "ssss", (1, 0, None)),
            ("is done", json!({}), "sssss", (0, 0, None)),
            ("too many", json!({"parallelism": 1}), "rrr", (0, 2, None)),
            ("suspended", json!({"suspend": true}), "rr", (0, 2, None)),
            ("waits after a failure", json!({}), "f", (0, 0, Some(5))),
            ("waits longer", json!({}), "ff", (0, 0, Some(15))),
            ("as many as run", json!({"completions": null}), "", (2, 0, None)),
            ("one succeeded, no more", json!({"completions": null}), "s", (0, 0, None)),
            ("the missing index", json!({"completionMode": "Indexed", "completions": 3}), "s-s", (1, 0, None)),
            ("an index beyond", json!({"completionMode": "Indexed", "completions": 1}), "rr", (0, 1, None)),
            (
                "per index",
                json!({"completionMode": "Indexed", "completions": 3, "parallelism": 3, "backoffLimitPerIndex": 1}),
                "fs",
                (1, 0, Some(5)),
            ),
            (
                "an index that waits keeps its place",
                json!({"completionMode": "Indexed", "completions": 3, "parallelism": 1, "backoffLimitPerIndex": 1}),
                "f",
                (0, 0, Some(5)),
            ),
            (
                "a failed index",
                json!({"completionMode": "Indexed", "completions": 3, "parallelism": 3, "backoffLimitPerIndex": 0}),
                "fs",
                (1, 0, None),
            ),
        ] {
            assert_eq!(planned(spec, pods), expected, "{what}");
        }
    }

    #[test]
    fn failures_count_after_their_pods_are_gone() {
        let now: Timestamp = "2026-01-01T00:00:05Z".parse().unwrap();
        let job = job(json!({}));
        let mut earlier = Backoff::default();
        earlier.see(&job, &pods("ff", "2026-01-01T00:00:00Z"));
        earlier.see(&job, &[]);
        assert_eq!(earlier.wait(now).map(|w| w.as_secs()), Some(15));
        // A pod that is deleted has failed; one that is waited for has not.
        let mut going = (*pods("--r", "2026-01-01T00:00:00Z")[0]).clone();
        going.metadata.deletion_timestamp = Some(Time("2026-01-01T00:00:34Z".parse().unwrap()));
        going.metadata.deletion_grace_period_seconds = Some(30);
        going.status.as_mut().unwrap().conditions = None;
        let going = [Arc::new(going)];
        earlier.see(&self::job(json!({"podReplacementPolicy": "Failed"})), &going);
        assert_eq!(earlier.failures.len(), 2);
        earlier.see(&job, &going);
        assert_eq!(earlier.wait(now).map(|w| w.as_secs()), Some(39), "40 s from when it was told to go");
        earlier.see(&job, &pods("s", "2026-01-01T00:00:03Z"));
        assert_eq!(earlier.wait(now).map(|w| w.as_secs()), Some(9), "only what failed after the success counts");
        let mut other = job.clone();
        other.metadata.uid = Some("another".into());
        earlier.see(&other, &[]);
        assert_eq!(earlier.wait(now), None);
    }

    #[test]
    fn a_pod_ended_when_its_containers_did() {
        let base = json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"containers": []},
            "status": {"phase": "Failed"}});
        let ended = |second: u8| json!({"name": "c", "state": {"terminated": {"exitCode": 1, "finishedAt": format!("2026-01-01T00:00:0{second}Z")}}});
        let ready =
            |status: &str| json!([{"type": "Ready", "status": status, "lastTransitionTime": "2026-01-01T00:00:05Z"}]);
        for (what, more, expected) in [
            ("nothing known", json!({}), 0),
            ("no longer ready", json!({"status": {"conditions": ready("False")}}), 5),
            ("ready is not ended", json!({"status": {"conditions": ready("True")}}), 0),
            (
                "all ended",
                json!({"status": {"containerStatuses": [ended(7), ended(3)], "conditions": ready("False")}}),
                7,
            ),
            (
                "one runs",
                json!({"status": {"containerStatuses": [ended(7), {"name": "d", "state": {}}], "conditions": ready("False")}}),
                5,
            ),
            (
                "told to go",
                json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:09Z", "deletionGracePeriodSeconds": 3}}),
                6,
            ),
        ] {
            let mut whole = base.clone();
            keelson_machinery::patch::merge(&mut whole, &more);
            let pod: Pod = serde_json::from_value(whole).unwrap();
            assert_eq!(ended_at(&pod).as_second() % 60, expected, "{what}");
        }
    }

    #[test]
    fn the_index_of_a_pod_that_is_waited_for_is_taken() {
        let job = job(json!({"completionMode": "Indexed", "completions": 3, "podReplacementPolicy": "Failed"}));
        let mut all = pods("rs", "2026-01-01T00:00:00Z");
        let mut going = (*all[0]).clone();
        going.metadata.deletion_timestamp = Some(Time("2026-01-01T00:00:04Z".parse().unwrap()));
        all[0] = Arc::new(going);
        let now = "2026-01-01T00:00:05Z".parse().unwrap();
        let tally = tally::tally(&job, &all, tally::Decided::No, now);
        let plan = manage(&job, &tally, &all, &Backoff::default(), now);
        assert_eq!(plan.create.iter().filter_map(|(index, _)| *index).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn ready_pods_are_never_more_than_active_ones() {
        for (active, ready, paused, expected) in
            [(2, 0, false, 2), (2, 0, true, 0), (2, 1, true, 2), (2, 2, false, 2), (0, 0, true, 0)]
        {
            assert_eq!(told_active(active, ready, paused), expected, "{active} {ready} {paused}");
        }
    }

    #[test]
    fn ends() {
        for (what, spec, text, expected) in [
            ("goes on", json!({}), "ff", ""),
            ("too many failures", json!({"backoffLimit": 1}), "ff", "BackoffLimitExceeded"),
            ("too long", json!({"activeDeadlineSeconds": 5}), "r", "DeadlineExceeded"),
            ("not yet too long", json!({"activeDeadlineSeconds": 6}), "r", ""),
            ("suspended meanwhile", json!({"activeDeadlineSeconds": 5, "suspend": true}), "r", ""),
            (
                "all indexes ended",
                json!({"completionMode": "Indexed", "completions": 2, "backoffLimitPerIndex": 0}),
                "fs",
                "FailedIndexes",
            ),
            (
                "too many indexes",
                json!({"completionMode": "Indexed", "backoffLimitPerIndex": 0, "maxFailedIndexes": 0}),
                "f",
                "MaxFailedIndexesExceeded",
            ),
            (
                "success",
                json!({"completionMode": "Indexed", "successPolicy": {"rules": [{"succeededCount": 1}]}}),
                "s",
                "SuccessPolicy",
            ),
        ] {
            let (job, pods) = (job(spec), pods(text, "2026-01-01T00:00:00Z"));
            let now = Time("2026-01-01T00:00:05Z".parse().unwrap());
            let tally = tally::tally(&job, &pods, tally::Decided::No, now.0);
            let ending = ending(&job, &tally, &pods, &now);
            assert_eq!(ending.and_then(|c| c.reason).unwrap_or_default(), expected, "{what}");
        }
    }
}
