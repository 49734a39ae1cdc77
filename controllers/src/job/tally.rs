//! Counts a Job's ended pods, each exactly once: a pod carries a finalizer until its uid is in the status; only then is the
//! finalizer taken off, and only then is the uid replaced by a number.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::batch::v1::{Job, JobStatus, UncountedTerminatedPods};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::indexes::{self, Indexes};
use super::policy::{self, Meaning};
use crate::kept::Pod;
use crate::pods;

/// Finalizer of pods that are not yet counted.
pub const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
/// Annotation and label of a pod: its completion index.
pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// Annotation of a pod: how often its index had failed before.
pub const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// Annotation of a pod: how often its index had failed before in ways that do not count.
pub const IGNORED_FAILURES: &str = "batch.kubernetes.io/job-index-ignored-failure-count";
/// A pod that goes is counted as failed this long after it was told to: it may end well in that time.
pub const LAST_CHANCE: SignedDuration = SignedDuration::from_secs(2);

pub fn is_indexed(job: &Job) -> bool {
    job.spec.as_ref().is_some_and(|s| s.completion_mode.as_deref() == Some("Indexed"))
}

pub fn completions(job: &Job) -> Option<i32> {
    job.spec.as_ref()?.completions
}

/// The completion index of a pod.
pub fn index_of(pod: &Pod) -> Option<i32> {
    pod.metadata.annotations.as_ref()?.get(INDEX)?.parse().ok()
}

fn number(pod: &Pod, annotation: &str) -> i32 {
    let annotations = pod.metadata.annotations.as_ref();
    annotations.and_then(|a| a.get(annotation)?.parse().ok()).unwrap_or(0)
}

/// How often the index of a pod had failed before it.
pub fn failures_before(pod: &Pod) -> i32 {
    number(pod, FAILURES)
}

/// How often the index of a pod had failed, before it and with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Failures {
    /// Those that count towards the limit.
    pub counted: i32,
    /// Those that the policy ignores; they make the pause before the next pod longer all the same.
    pub ignored: i32,
}

impl Failures {
    /// With this failed pod, whose failure counts or does not.
    pub fn with(pod: &Pod, counts: bool) -> Self {
        Self {
            counted: failures_before(pod) + i32::from(counts),
            ignored: number(pod, IGNORED_FAILURES) + i32::from(!counts),
        }
    }

    /// All of them.
    pub fn total(self) -> i32 {
        self.counted.saturating_add(self.ignored)
    }
}

pub fn is_tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER)
}

/// When the pod was told to go.
pub fn told_to_go(pod: &Pod) -> Option<Timestamp> {
    let at = pod.metadata.deletion_timestamp.as_ref()?.0;
    let grace = SignedDuration::from_secs(pod.metadata.deletion_grace_period_seconds.unwrap_or(0));
    at.checked_sub(grace).ok()
}

/// What is known of a Job's pods.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Counted in numbers.
    pub counted: (i32, i32),
    /// Counted by uid: succeeded and failed.
    pub uncounted: (Vec<String>, Vec<String>),
    /// Indexes that succeeded and that failed.
    pub succeeded_indexes: Indexes,
    pub failed_indexes: Indexes,
    /// Pods whose finalizer goes once the status says the above.
    pub release: Vec<Arc<Pod>>,
    /// Why the Job has failed by its policy.
    pub failure: Option<String>,
    /// The last failed pod of each index that is to be tried again.
    pub retries: BTreeMap<i32, Arc<Pod>>,
    /// When a pod that goes will count.
    pub next: Option<Timestamp>,
    /// Whether the tally says more than the status did.
    pub news: bool,
}

impl Tally {
    /// Pods that succeeded.
    pub fn succeeded(&self, job: &Job) -> i32 {
        if is_indexed(job) {
            return self.succeeded_indexes.len() as i32;
        }
        self.counted.0 + self.uncounted.0.len() as i32
    }

    /// Pods that failed.
    pub fn failed(&self) -> i32 {
        self.counted.1 + self.uncounted.1.len() as i32
    }

    /// The last failed pod of an index that is to be tried again is not counted before the next one is there; `retried` are
    /// the indexes that get theirs now.
    pub fn keep_back(&mut self, retried: &[i32]) {
        let waiting: Vec<&String> = self
            .retries
            .iter()
            .filter(|(index, _)| !retried.contains(index))
            .filter_map(|(_, pod)| pod.metadata.uid.as_ref())
            .collect();
        self.release.retain(|p| p.metadata.uid.as_ref().is_none_or(|uid| !waiting.contains(&uid)));
        self.uncounted.1.retain(|uid| !waiting.contains(&uid));
    }

    /// Writes into a status what is counted; `settled` says that all finalizers are off.
    pub fn write(&self, job: &Job, status: &mut JobStatus, settled: bool) {
        let some = |n: i32| (n > 0).then_some(n);
        let list = |uids: &[String]| (!settled && !uids.is_empty()).then(|| uids.to_vec());
        status.uncounted_terminated_pods =
            Some(UncountedTerminatedPods { succeeded: list(&self.uncounted.0), failed: list(&self.uncounted.1) });
        let late = |uids: &[String]| if settled { uids.len() as i32 } else { 0 };
        status.failed = some(self.counted.1 + late(&self.uncounted.1));
        if is_indexed(job) {
            status.succeeded = some(self.succeeded_indexes.len() as i32);
            status.completed_indexes = Some(indexes::format(&self.succeeded_indexes)).filter(|text| !text.is_empty());
            if job.spec.as_ref().is_some_and(|s| s.backoff_limit_per_index.is_some()) {
                status.failed_indexes = Some(indexes::format(&self.failed_indexes));
            }
        } else {
            status.succeeded = some(self.counted.0 + late(&self.uncounted.0));
        }
    }
}

/// Starts from the status: uids whose pods have no finalizer any more become numbers.
fn begin(job: &Job, pods: &[Arc<Pod>]) -> Tally {
    let status = job.status.clone().unwrap_or_default();
    let tracked: HashMap<&str, bool> =
        pods.iter().filter_map(|p| Some((p.metadata.uid.as_deref()?, is_tracked(p)))).collect();
    let uncounted = status.uncounted_terminated_pods.unwrap_or_default();
    let mut tally = Tally { counted: (status.succeeded.unwrap_or(0), status.failed.unwrap_or(0)), ..Tally::default() };
    let mut keep = |uids: Option<Vec<String>>, counted: &mut i32| {
        let (still, done): (Vec<String>, Vec<String>) =
            uids.unwrap_or_default().into_iter().partition(|u| tracked.get(u.as_str()) == Some(&true));
        *counted += done.len() as i32;
        tally.news |= !done.is_empty();
        still
    };
    let (mut succeeded, mut failed) = tally.counted;
    let (still_succeeded, still_failed) =
        (keep(uncounted.succeeded, &mut succeeded), keep(uncounted.failed, &mut failed));
    tally.counted = (succeeded, failed);
    tally.uncounted = (still_succeeded, still_failed);
    let count = completions(job).unwrap_or(0);
    tally.succeeded_indexes = indexes::parse(status.completed_indexes.as_deref().unwrap_or_default(), count);
    tally.failed_indexes = indexes::parse(status.failed_indexes.as_deref().unwrap_or_default(), count);
    tally
}

/// Whether the Job's end is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decided {
    /// It goes on.
    No,
    /// It has failed: every pod that goes counts as failed at once.
    Failed,
    /// It has succeeded: pods that go do not count.
    Succeeded,
}

/// Counts.
pub fn tally(job: &Job, pods: &[Arc<Pod>], decided: Decided, now: Timestamp) -> Tally {
    let Some(spec) = &job.spec else { return Tally::default() };
    let mut tally = begin(job, pods);
    let count = spec.completions.unwrap_or(0);
    for pod in pods {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let index = index_of(pod).filter(|i| *i < count);
        let valid = !is_indexed(job) || index.is_some();
        if pods::phase(pod) == "Succeeded" {
            if !is_tracked(pod) {
                continue;
            }
            match index.filter(|_| is_indexed(job)) {
                Some(index) => tally.news |= tally.succeeded_indexes.insert(index),
                None if valid && !tally.uncounted.0.contains(&uid) => {
                    tally.uncounted.0.push(uid);
                    tally.news = true;
                }
                None => {}
            }
            tally.release.push(pod.clone());
            continue;
        }
        let ended_early = pods::is_going(pod) && !pods::is_finished(pod);
        if ended_early && decided == Decided::Succeeded {
            tally.release.extend(is_tracked(pod).then(|| pod.clone()));
            continue;
        }
        let finishing = decided == Decided::Failed;
        let counts = policy::is_failed(pod, job) || finishing && ended_early;
        if !counts {
            continue;
        }
        if ended_early && !finishing {
            let due = told_to_go(pod).and_then(|at| at.checked_add(LAST_CHANCE).ok()).unwrap_or(now);
            if due > now {
                tally.next = Some(tally.next.map_or(due, |n| n.min(due)));
                continue;
            }
        }
        fail(job, &mut tally, pod, index, valid);
    }
    if job.metadata.deletion_timestamp.is_some() {
        // Nothing is counted of it any more: pods that run yet need not wait for it.
        let left = pods.iter().filter(|p| is_tracked(p) && !tally.release.iter().any(|r| Arc::ptr_eq(r, p)));
        let left: Vec<Arc<Pod>> = left.cloned().collect();
        tally.release.extend(left);
    }
    tally
}

/// Counts a failed pod.
fn fail(job: &Job, tally: &mut Tally, pod: &Arc<Pod>, index: Option<i32>, valid: bool) {
    let Some(spec) = &job.spec else { return };
    let meaning = policy::meaning(spec, pod);
    if let Meaning::FailJob(why) = &meaning {
        tally.failure.get_or_insert_with(|| why.clone());
    }
    if let (Some(limit), Some(index)) = (spec.backoff_limit_per_index, index) {
        if meaning == Meaning::FailIndex || (meaning != Meaning::Ignore && failures_before(pod) >= limit) {
            tally.news |= tally.failed_indexes.insert(index);
        } else {
            let newer = tally.retries.get(&index).is_none_or(|other| failures_before(other) <= failures_before(pod));
            if newer {
                tally.retries.insert(index, pod.clone());
            }
        }
    }
    if !is_tracked(pod) {
        return;
    }
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    if meaning != Meaning::Ignore && valid && !tally.uncounted.1.contains(&uid) {
        tally.uncounted.1.push(uid);
        tally.news = true;
    }
    tally.release.push(pod.clone());
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn job(spec: Value, status: Value) -> Job {
        let mut whole =
            json!({"metadata": {"name": "j"}, "spec": {"completions": 5, "parallelism": 2, "template": {}}});
        whole["status"] = status;
        keelson_machinery::patch::merge(&mut whole["spec"], &spec);
        serde_json::from_value(whole).unwrap()
    }

    fn pod(uid: &str, phase: &str, tracked: bool, index: i32) -> Arc<Pod> {
        let finalizers = if tracked { json!([FINALIZER]) } else { json!([]) };
        Arc::new(
            serde_json::from_value(json!({"metadata": {"uid": uid, "name": uid, "finalizers": finalizers,
                "annotations": {INDEX: index.to_string()}}, "spec": {"containers": []}, "status": {"phase": phase}}))
            .unwrap(),
        )
    }

    #[test]
    fn each_pod_counts_once() {
        let now = Timestamp::UNIX_EPOCH;
        let job = job(
            json!({}),
            json!({"succeeded": 1, "failed": 1, "uncountedTerminatedPods": {"succeeded": ["a", "b"], "failed": ["gone"]}}),
        );
        let pods = [
            pod("a", "Succeeded", true, 0),
            pod("b", "Succeeded", false, 0),
            pod("c", "Succeeded", true, 0),
            pod("d", "Failed", true, 0),
            pod("e", "Failed", false, 0),
            pod("f", "Running", true, 0),
        ];
        let tally = tally(&job, &pods, Decided::No, now);
        assert_eq!(tally.counted, (2, 2), "b and the one that is gone became numbers");
        assert_eq!(tally.uncounted, (vec!["a".into(), "c".into()], vec!["d".into()]));
        let released: Vec<&str> = tally.release.iter().map(|p| p.metadata.uid.as_deref().unwrap()).collect();
        assert_eq!(released, ["a", "c", "d"]);
        assert_eq!((tally.succeeded(&job), tally.failed()), (4, 3));
        let mut status = JobStatus::default();
        tally.write(&job, &mut status, false);
        assert_eq!((status.succeeded, status.failed), (Some(2), Some(2)));
        tally.write(&job, &mut status, true);
        assert_eq!((status.succeeded, status.failed), (Some(4), Some(3)));
        assert_eq!(status.uncounted_terminated_pods, Some(UncountedTerminatedPods::default()));
    }

    #[test]
    fn indexes_count_instead_of_pods() {
        let spec = json!({"completionMode": "Indexed", "completions": 3, "backoffLimitPerIndex": 0});
        let job = job(spec, json!({"succeeded": 1, "completedIndexes": "0"}));
        let pods = [
            pod("a", "Succeeded", true, 0),
            pod("b", "Succeeded", true, 2),
            pod("c", "Succeeded", true, 7),
            pod("d", "Failed", true, 1),
        ];
        let tally = tally(&job, &pods, Decided::No, Timestamp::UNIX_EPOCH);
        assert_eq!(indexes::format(&tally.succeeded_indexes), "0,2");
        assert_eq!(indexes::format(&tally.failed_indexes), "1");
        assert_eq!((tally.succeeded(&job), tally.failed(), tally.release.len()), (2, 1, 4));
    }

    #[test]
    fn pods_of_a_job_that_goes_are_all_released() {
        let mut job = job(json!({}), json!({}));
        let pods = [pod("a", "Running", true, 0), pod("b", "Failed", true, 1), pod("c", "Pending", false, 2)];
        let released = |job: &Job| -> Vec<String> {
            let tally = tally(job, &pods, Decided::No, Timestamp::UNIX_EPOCH);
            assert_eq!(tally.failed(), 1);
            tally.release.iter().filter_map(|r| r.metadata.uid.clone()).collect()
        };
        assert_eq!(released(&job), ["b"]);
        job.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::UNIX_EPOCH));
        assert_eq!(released(&job), ["b", "a"]);
    }

    #[test]
    fn ignored_failures_are_told_apart() {
        let mut failed = (*pod("a", "Failed", true, 0)).clone();
        let expect = |pod: &Pod, counts: bool, counted: i32, ignored: i32| {
            assert_eq!(Failures::with(pod, counts), Failures { counted, ignored });
        };
        expect(&failed, true, 1, 0);
        expect(&failed, false, 0, 1);
        let notes = failed.metadata.annotations.get_or_insert_default();
        notes.insert(FAILURES.into(), "2".into());
        notes.insert(IGNORED_FAILURES.into(), "3".into());
        expect(&failed, true, 3, 3);
        expect(&failed, false, 2, 4);
        assert_eq!(Failures::with(&failed, true).total(), 6);
    }

    #[test]
    fn a_pod_that_goes_has_a_last_chance() {
        let job = job(json!({}), json!({}));
        let mut going = (*pod("a", "Running", true, 0)).clone();
        let at: Timestamp = "2026-01-01T00:00:30Z".parse().unwrap();
        going.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at));
        going.metadata.deletion_grace_period_seconds = Some(30);
        let pods = [Arc::new(going)];
        let now = |text: &str| -> Timestamp { text.parse().unwrap() };
        let early = tally(&job, &pods, Decided::No, now("2026-01-01T00:00:01Z"));
        assert_eq!((early.failed(), early.next), (0, Some(now("2026-01-01T00:00:02Z"))));
        assert_eq!(tally(&job, &pods, Decided::No, now("2026-01-01T00:00:02Z")).failed(), 1);
        assert_eq!(tally(&job, &pods, Decided::Failed, now("2026-01-01T00:00:01Z")).failed(), 1);
        let succeeded = tally(&job, &pods, Decided::Succeeded, now("2026-01-01T00:00:01Z"));
        assert_eq!((succeeded.failed(), succeeded.release.len()), (0, 1));
        let patient = self::job(json!({"podReplacementPolicy": "Failed"}), json!({}));
        assert_eq!(tally(&patient, &pods, Decided::No, now("2026-01-01T00:00:02Z")).failed(), 0);
    }
}
