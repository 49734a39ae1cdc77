//! Jobs: pods that run to an end, counted exactly.

mod indexes;
mod plan;
mod policy;
mod tally;
pub mod ttl;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobStatus};
use k8s_openapi::api::core::v1::{self as core, EnvVar, EnvVarSource, ObjectFieldSelector, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keelson_client::informer::key;
use keelson_client::{Change, Error, Key, PatchType};
use serde_json::{Value, json};

use crate::context::{Context, ORPHANS};
use crate::kept::Pod;
use crate::owners::{self, Selector, controller_of};
use crate::pods;
use crate::runtime::{Keys, Outcome, watch_own, watch_owned, watch_with};
pub use plan::is_finished;
use plan::{condition, find, holds};
use tally::{Decided, FAILURES, FINALIZER, Failures, IGNORED_FAILURES, INDEX, Tally, is_tracked};

const COMPONENT: &str = "job-controller";
/// Who else may look after a Job.
const MANAGER: &str = "kubernetes.io/job-controller";
/// Finalizers that are taken off at a time.
const PARALLEL_WRITES: usize = 64;
/// Longest beginning of a generated name, in bytes.
const LONGEST_PREFIX: usize = 58;

pub(crate) fn watch(context: &Arc<Context>, queue: &Keys) {
    watch_own(&context.cache.jobs, queue);
    watch_owned(&context.cache.pods, "Job", queue);
    let weak = Arc::downgrade(context);
    watch_with(&context.cache.pods, queue, move |change: &Change<Pod>| {
        let (Some(pod), Some(context)) = (&change.new, weak.upgrade()) else { return Vec::new() };
        if controller_of(&pod.metadata).is_some() {
            return Vec::new();
        }
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let jobs = context.cache.jobs.in_namespace(&namespace);
        let matching = jobs.iter().filter(|j| selector(j).matches(&pod.metadata)).map(|j| key(&**j));
        // The empty name stands for pods that no Job owns any more.
        matching.chain(is_tracked(pod).then(|| (namespace.clone(), String::new()))).collect()
    });
}

/// What the Job's pods are; a Job without a selector adopts nothing.
fn selector(job: &Job) -> Selector {
    match job.spec.as_ref().and_then(|s| s.selector.as_ref()) {
        Some(selector) if !owners::is_empty_selector(selector) => Selector::new(selector),
        _ => Selector::of_labels(&Default::default()),
    }
}

pub(crate) async fn reconcile(context: Arc<Context>, key: Key) -> Outcome {
    let Some(job) = context.cache.jobs.get(&key) else {
        context.job_failures.lock().remove(&key);
        free_orphans(&context, &key).await?;
        return Ok(None);
    };
    let manager = job.spec.as_ref().and_then(|s| s.managed_by.as_deref()).unwrap_or(MANAGER);
    if manager != MANAGER {
        return Ok(None);
    }
    let uid = job.metadata.uid.clone().unwrap_or_default();
    if is_finished(&job) {
        context.job_failures.lock().remove(&key);
        let left: Vec<Arc<Pod>> = context.cache.pods.owned_by(&uid).into_iter().filter(|p| is_tracked(p)).collect();
        release(&context, &left).await?;
        return Ok(None);
    }
    let selector = selector(&job);
    let mut candidates = context.cache.pods.owned_by(&uid);
    candidates.extend(context.cache.pods.by(ORPHANS, &key.0).into_iter().filter(|p| selector.matches(&p.metadata)));
    let pods =
        owners::claim_with(&context.client, &*job, |o| selector.matches(&o.metadata), candidates, Some(FINALIZER))
            .await?;
    let earlier = {
        let mut all = context.job_failures.lock();
        let earlier = all.entry(key).or_default();
        earlier.see(&job, &pods);
        earlier.clone()
    };
    let before = job.status.clone();
    let mut look = Look { context: &context, now: context.now(), job, before };
    look.start();
    look.step(pods, &earlier).await
}

/// Pods of a Job that is gone, or of none, need not be counted any more.
async fn free_orphans(context: &Context, key: &Key) -> Result<(), Error> {
    let is_orphan = |pod: &Arc<Pod>| {
        is_tracked(pod)
            && match controller_of(&pod.metadata) {
                None => key.1.is_empty(),
                Some(owner) if owner.kind == "Job" && owner.name == key.1 => {
                    let job = context.cache.jobs.named(&key.0, &owner.name);
                    job.is_none_or(|j| j.metadata.uid.as_ref() != Some(&owner.uid))
                }
                Some(_) => false,
            }
    };
    let pods: Vec<Arc<Pod>> = context.cache.pods.in_namespace(&key.0).into_iter().filter(is_orphan).collect();
    release(context, &pods).await
}

/// Takes the finalizer off; returns once the cache shows it.
async fn release(context: &Context, pods: &[Arc<Pod>]) -> Result<(), Error> {
    let results: Vec<Result<Option<Pod>, Error>> = futures::stream::iter(pods.iter().cloned())
        .map(|pod| async move {
            let (namespace, name) = key(&*pod);
            let finalizers: Vec<&String> =
                pod.metadata.finalizers.iter().flatten().filter(|f| *f != FINALIZER).collect();
            let finalizers = if finalizers.is_empty() { Value::Null } else { json!(finalizers) };
            let patch = json!({"metadata": {"uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version,
                "finalizers": finalizers}});
            match context.client.namespaced::<Pod>(&namespace).patch(&name, None, PatchType::Merge, &patch).await {
                Ok(written) => Ok(Some(written)),
                Err(error) if error.is_not_found() => Ok(None),
                Err(error) => Err(error),
            }
        })
        .buffer_unordered(PARALLEL_WRITES)
        .collect()
        .await;
    let mut failure = None;
    for result in results {
        match result {
            Ok(Some(written)) => context.settle(&context.cache.pods, &written).await,
            Ok(None) => {}
            Err(error) => failure = Some(error),
        }
    }
    failure.map_or(Ok(()), Err)
}

/// Failures of Jobs that go on.
pub type Failed = parking_lot::Mutex<HashMap<Key, plan::Backoff>>;

/// One look at a Job.
struct Look<'a> {
    context: &'a Arc<Context>,
    /// The Job, with what this look adds to its status.
    job: Arc<Job>,
    /// Its status as it is written.
    before: Option<JobStatus>,
    now: Time,
}

impl Look<'_> {
    async fn replace_status(&mut self, changed: Job) -> Result<(), Error> {
        if changed.status == self.before {
            return Ok(());
        }
        let (namespace, name) = key(&changed);
        let written = self.context.client.namespaced::<Job>(&namespace).replace_status(&name, &changed).await?;
        self.context.settle(&self.context.cache.jobs, &written).await;
        self.before.clone_from(&written.status);
        self.job = Arc::new(written);
        Ok(())
    }

    /// Notes when the Job began; it is written with what else this look finds.
    fn start(&mut self) {
        let begun = self.job.status.as_ref().is_some_and(|s| s.start_time.is_some());
        if begun || plan::is_suspended(&self.job) {
            return;
        }
        let mut changed = (*self.job).clone();
        changed.status.get_or_insert_default().start_time = Some(self.now.clone());
        self.job = Arc::new(changed);
    }

    async fn step(&mut self, pods: Vec<Arc<Pod>>, earlier: &plan::Backoff) -> Outcome {
        let decided = match (holds(&self.job, "FailureTarget"), holds(&self.job, "SuccessCriteriaMet")) {
            (true, _) => Decided::Failed,
            (false, true) => Decided::Succeeded,
            (false, false) => Decided::No,
        };
        let mut tally = tally::tally(&self.job, &pods, decided, self.now.0);
        let mut ending = plan::ending(&self.job, &tally, &pods, &self.now);
        let mut again = None;
        let mut paused = false;
        let mut failure = None;
        let uid = self.job.metadata.uid.clone().unwrap_or_default();
        if ending.is_some() {
            let active: Vec<Arc<Pod>> = pods.iter().filter(|p| pods::is_active(p)).cloned().collect();
            failure = pods::delete(self.context, COMPONENT, &*self.job, &active).await.err();
        } else if self.job.metadata.deletion_timestamp.is_none() {
            let managed = plan::manage(&self.job, &tally, &pods, earlier, self.now.0);
            // A pod whose index is to be tried again keeps its finalizer until the next one is there, which notes its count.
            let retried: Vec<i32> = managed.create.iter().filter_map(|(index, _)| *index).collect();
            tally.keep_back(&retried);
            (again, paused) = (managed.again, managed.is_paused());
            failure = self.manage(&managed).await.err();
        }
        let all = self.context.cache.pods.owned_by(&uid);
        let active = all.iter().filter(|p| pods::is_active(p)).count();
        if ending.is_none() && plan::is_complete(&self.job, &tally, active) {
            let (reason, message) = ("CompletionsReached", "Reached expected number of succeeded pods");
            ending = Some(condition("SuccessCriteriaMet", "True", reason, message, &self.now));
        }
        self.record(&tally, ending.as_ref(), &all, paused).await?;
        release(self.context, &tally.release).await?;
        self.settle(&tally, ending, &all).await?;
        failure.map_or(Ok(()), Err)?;
        let deadlines = [plan::deadline(&self.job), tally.next].into_iter().flatten().filter(|at| *at > self.now.0);
        let next: Option<Duration> = deadlines.min().and_then(|at| pods::until(at, self.now.0));
        Ok([next, again].into_iter().flatten().min())
    }

    async fn manage(&self, managed: &plan::Plan) -> Result<(), Error> {
        if !managed.delete.is_empty() {
            return pods::delete(self.context, COMPONENT, &*self.job, &managed.delete).await;
        }
        if managed.create.is_empty() {
            return Ok(());
        }
        let template = self.job.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
        let limited = self.job.spec.as_ref().is_some_and(|s| s.backoff_limit_per_index.is_some());
        let pods = managed
            .create
            .iter()
            .map(|(index, failures)| new_pod(&self.job, &template, *index, limited.then_some(*failures)));
        pods::create(self.context, COMPONENT, &*self.job, pods.collect()).await.map(|_| ())
    }

    /// Writes counts, and the uids of pods that are counted but still have their finalizer.
    async fn record(
        &mut self,
        tally: &Tally,
        ending: Option<&JobCondition>,
        all: &[Arc<Pod>],
        paused: bool,
    ) -> Result<(), Error> {
        let mut changed = (*self.job).clone();
        let job = self.job.clone();
        self.set_suspended(&mut changed, ending.is_some());
        let status = changed.status.get_or_insert_default();
        let count = |test: &dyn Fn(&Pod) -> bool| all.iter().filter(|p| test(p)).count() as i32;
        let ready = count(&|p| pods::is_active(p) && pods::is_ready(p));
        let active = plan::told_active(count(&|p| pods::is_active(p)), ready, paused);
        status.active = (active > 0).then_some(active);
        status.ready = Some(ready);
        status.terminating = Some(count(&|p| pods::is_going(p) && !pods::is_finished(p)));
        tally.write(&job, status, false);
        if let Some(ending) = ending.filter(|e| !holds(&job, &e.type_)) {
            status.conditions.get_or_insert_default().push(ending.clone());
        }
        self.replace_status(changed).await
    }

    /// Says in Suspended whether the Job is suspended; begins its time anew when it goes on.
    fn set_suspended(&self, changed: &mut Job, ending: bool) {
        let recorder = self.context.recorder(COMPONENT);
        let suspended = plan::is_suspended(&self.job);
        if ending || suspended == holds(&self.job, "Suspended") {
            return;
        }
        let (status, reason, message, event) = if suspended {
            ("True", "JobSuspended", "Job suspended", "Suspended")
        } else {
            ("False", "JobResumed", "Job resumed", "Resumed")
        };
        let new = condition("Suspended", status, reason, message, &self.now);
        let state = changed.status.get_or_insert_default();
        let conditions = state.conditions.get_or_insert_default();
        match conditions.iter_mut().find(|c| c.type_ == "Suspended") {
            Some(old) => *old = new,
            None => conditions.push(new),
        }
        // A suspended Job has not begun: what of it may change follows from this.
        state.start_time = (!suspended).then(|| self.now.clone());
        recorder.normal(&*self.job, event, message);
    }

    /// The finalizers are off: uids become numbers, and the Job's end is final once no pod runs.
    async fn settle(&mut self, tally: &Tally, ending: Option<JobCondition>, all: &[Arc<Pod>]) -> Result<(), Error> {
        let mut changed = (*self.job).clone();
        let job = self.job.clone();
        let still = |uids: &[String]| {
            uids.iter().any(|u| {
                let tracked = |p: &&Arc<Pod>| p.metadata.uid.as_ref() == Some(u) && is_tracked(p);
                all.iter()
                    .find(tracked)
                    .is_some_and(|p| !tally.release.iter().any(|r| r.metadata.uid == p.metadata.uid))
            })
        };
        let settled = !still(&tally.uncounted.0) && !still(&tally.uncounted.1);
        let status = changed.status.get_or_insert_default();
        tally.write(&job, status, settled);
        let idle = status.active.unwrap_or(0) == 0 && status.terminating.unwrap_or(0) == 0;
        let Some(ending) = ending.filter(|_| settled && idle) else { return self.replace_status(changed).await };
        let kind = if ending.type_ == "FailureTarget" { "Failed" } else { "Complete" };
        let (reason, message) = (ending.reason.unwrap_or_default(), ending.message.unwrap_or_default());
        let conditions = status.conditions.get_or_insert_default();
        conditions.push(condition(kind, "True", &reason, &message, &self.now));
        if kind == "Complete" {
            status.completion_time = Some(self.now.clone());
        }
        self.replace_status(changed).await?;
        let recorder = self.context.recorder(COMPONENT);
        match kind {
            "Complete" => {
                if has_too_many(&self.job) {
                    let message = "Too many succeeded pods running after completion count reached";
                    recorder.warning(&*self.job, "TooManySucceededPods", message);
                }
                recorder.normal(&*self.job, "Completed", "Job completed");
            }
            _ => recorder.warning(&*self.job, &reason, message),
        }
        Ok(())
    }
}

/// Whether more pods have succeeded than were asked for.
fn has_too_many(job: &Job) -> bool {
    let wanted = job.spec.as_ref().and_then(|s| s.completions);
    let succeeded = job.status.as_ref().and_then(|s| s.succeeded).unwrap_or(0);
    wanted.is_some_and(|wanted| succeeded > wanted)
}

/// What the names of an index's pods begin with: a long name of the Job is cut, its index is not.
fn prefix(job: &str, index: i32) -> String {
    let suffix = format!("-{index}-");
    let room = LONGEST_PREFIX - suffix.len();
    format!("{}{suffix}", job.get(..room).unwrap_or(job))
}

/// A pod of the Job; `failures` are those that its index had, if that is limited.
fn new_pod(job: &Job, template: &PodTemplateSpec, index: Option<i32>, failures: Option<Failures>) -> core::Pod {
    let mut pod = pods::of_template(job, template);
    let finalizers = pod.metadata.finalizers.get_or_insert_default();
    if !finalizers.iter().any(|f| f == FINALIZER) {
        finalizers.push(FINALIZER.into());
    }
    let Some(index) = index else { return pod };
    let name = job.metadata.name.as_deref().unwrap_or_default();
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(INDEX.into(), index.to_string());
    if let Some(failures) = failures {
        annotations.insert(FAILURES.into(), failures.counted.to_string());
        if failures.ignored > 0 {
            annotations.insert(IGNORED_FAILURES.into(), failures.ignored.to_string());
        }
    }
    pod.metadata.labels.get_or_insert_default().insert(INDEX.into(), index.to_string());
    pod.metadata.generate_name = Some(prefix(name, index));
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(format!("{name}-{index}"));
    let variable = EnvVar {
        name: "JOB_COMPLETION_INDEX".into(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: None,
                field_path: format!("metadata.labels['{INDEX}']"),
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    };
    for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        let env = container.env.get_or_insert_default();
        if !env.iter().any(|e| e.name == variable.name) {
            env.push(variable.clone());
        }
    }
    pod
}

/// The end of a Job: its condition.
pub fn end(job: &Job) -> Option<&JobCondition> {
    find(job, "Complete").or_else(|| find(job, "Failed")).filter(|c| c.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_of_an_index_know_it() {
        let job: Job =
            serde_json::from_value(json!({"metadata": {"name": "j", "namespace": "d", "uid": "u"}})).unwrap();
        let template: PodTemplateSpec =
            serde_json::from_value(json!({"spec": {"containers": [{"name": "c"}], "initContainers": [{"name": "i"}]}}))
                .unwrap();
        let pod = new_pod(&job, &template, Some(2), Some(Failures { counted: 1, ignored: 0 }));
        let annotations = |pod: &core::Pod| pod.metadata.annotations.clone().unwrap_or_default();
        assert!(!annotations(&pod).contains_key(IGNORED_FAILURES));
        let ignored = annotations(&new_pod(&job, &template, Some(2), Some(Failures { counted: 0, ignored: 3 })));
        assert_eq!(ignored.get(IGNORED_FAILURES).map(String::as_str), Some("3"));
        assert_eq!(ignored.get(FAILURES).map(String::as_str), Some("0"));
        assert_eq!(pod.metadata.generate_name.as_deref(), Some("j-2-"));
        let seen = Pod { metadata: pod.metadata.clone().into(), ..Pod::default() };
        assert_eq!((tally::index_of(&seen), tally::failures_before(&seen), is_tracked(&seen)), (Some(2), 1, true));
        let spec = pod.spec.unwrap();
        assert_eq!(spec.hostname.as_deref(), Some("j-2"));
        let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        assert!(all.into_iter().all(|c| c.env.iter().flatten().any(|e| e.name == "JOB_COMPLETION_INDEX")));
        for (length, index, expected) in [(3, 7, 6), (54, 12, 58), (63, 0, 58)] {
            let prefix = prefix(&"j".repeat(length), index);
            assert_eq!(prefix.len(), expected);
            assert!(prefix.ends_with(&format!("j-{index}-")));
        }
        let plain = new_pod(&job, &template, None, None);
        let plain = Pod { metadata: plain.metadata.into(), ..Pod::default() };
        assert!(is_tracked(&plain) && plain.metadata.annotations.is_none());
    }

    #[test]
    fn more_successes_than_asked_for_are_told() {
        for (completions, succeeded, expected) in [(json!(2), 2, false), (json!(2), 3, true), (json!(null), 3, false)] {
            let job = serde_json::from_value(json!({"metadata": {"name": "j"}, "spec": {"completions": completions,
                "template": {}}, "status": {"succeeded": succeeded}}));
            assert_eq!(has_too_many(&job.unwrap()), expected, "{completions} {succeeded}");
        }
    }
}
