//! CronJobs: a Job at each time of a schedule.

mod plan;
pub(crate) mod schedule;

use std::sync::Arc;

use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use keelson_client::{Error, Key};
use serde_json::json;

use crate::context::Context;
use crate::job;
use crate::owners::controller_reference;
use crate::pods::until;
use crate::runtime::{Keys, Outcome, watch_own, watch_owned};
use plan::Start;
use schedule::Schedule;

const COMPONENT: &str = "cronjob-controller";
/// Annotation of a Job: the time that it is for.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

pub(crate) fn watch(context: &Arc<Context>, queue: &Keys) {
    watch_own(&context.cache.cron_jobs, queue);
    watch_owned(&context.cache.jobs, "CronJob", queue);
}

pub(crate) async fn reconcile(context: Arc<Context>, key: Key) -> Outcome {
    let Some(cron) = context.cache.cron_jobs.get(&key) else { return Ok(None) };
    let spec = cron.spec.clone();
    let jobs = context.cache.jobs.owned_by(cron.metadata.uid.as_deref().unwrap_or_default());
    let mut look = Look { context: &context, cron, spec };
    look.note_ended(&jobs).await?;
    let again = look.run(&jobs).await;
    for surplus in plan::beyond_history(&look.spec, &jobs) {
        look.delete(&surplus).await?;
    }
    again
}

impl Look<'_> {
    async fn run(&mut self, jobs: &[Arc<Job>]) -> Outcome {
        if self.cron.metadata.deletion_timestamp.is_some() || self.spec.suspend == Some(true) {
            return Ok(None);
        }
        let recorder = self.context.recorder(COMPONENT);
        let schedule = match Schedule::parse(&self.spec.schedule, self.spec.time_zone.as_deref()) {
            Ok(schedule) => schedule,
            Err(why) => {
                let (reason, message) = if why.starts_with("unknown time zone") {
                    let zone = self.spec.time_zone.as_deref().unwrap_or_default();
                    ("UnknownTimeZone", format!("invalid timeZone: {zone:?}: {why}"))
                } else {
                    ("UnparseableSchedule", format!("unparseable schedule: {:?} : {why}", self.spec.schedule))
                };
                recorder.warning(&*self.cron, reason, message);
                return Ok(None);
            }
        };
        let now = Timestamp::now();
        if schedule.next(now).is_none() {
            let why = "time difference between two schedules is less than 1 second";
            let message = format!("invalid schedule: {} : {why}", self.spec.schedule);
            recorder.warning(&*self.cron, "InvalidSchedule", message);
            return Ok(None);
        }
        self.start(&schedule, jobs).await?;
        let now = Timestamp::now();
        Ok(schedule.next(now).and_then(|at| until(at, now)))
    }
}

/// One look at a CronJob.
struct Look<'a> {
    context: &'a Arc<Context>,
    cron: Arc<CronJob>,
    spec: CronJobSpec,
}

/// What the status says of a Job that runs.
fn reference(job: &Job) -> ObjectReference {
    ObjectReference {
        api_version: Some("batch/v1".into()),
        kind: Some("Job".into()),
        namespace: job.metadata.namespace.clone(),
        name: job.metadata.name.clone(),
        uid: job.metadata.uid.clone(),
        resource_version: job.metadata.resource_version.clone(),
        field_path: None,
    }
}

impl Look<'_> {
    fn namespace(&self) -> &str {
        self.cron.metadata.namespace.as_deref().unwrap_or_default()
    }

    async fn replace_status(&mut self, changed: CronJob) -> Result<(), Error> {
        if changed.status == self.cron.status {
            return Ok(());
        }
        let name = changed.metadata.name.clone().unwrap_or_default();
        let api = self.context.client.namespaced::<CronJob>(self.namespace());
        let written = api.replace_status(&name, &changed).await?;
        self.context.settle(&self.context.cache.cron_jobs, &written).await;
        self.cron = Arc::new(written);
        Ok(())
    }

    /// Brings the list of Jobs that run up to date, and when the last one succeeded.
    async fn note_ended(&mut self, jobs: &[Arc<Job>]) -> Result<(), Error> {
        let recorder = self.context.recorder(COMPONENT);
        let mut changed = (*self.cron).clone();
        let status = changed.status.get_or_insert_default();
        let mut active = status.active.take().unwrap_or_default();
        for job in jobs {
            let (uid, name) = (job.metadata.uid.clone(), job.metadata.name.clone().unwrap_or_default());
            let listed = active.iter().any(|r| r.uid == uid);
            if listed && job::is_finished(job) {
                active.retain(|r| r.uid != uid);
                let end = job::end(job).map_or("", |c| c.type_.as_str());
                recorder.normal(&*self.cron, "SawCompletedJob", format!("Saw completed job: {name}, condition: {end}"));
            } else if !listed && !job::is_finished(job) {
                // Somebody made it by hand, or a leader did not get to note it: then its time is still due, and the attempt
                // to make it again notes it.
                let message = format!("Saw a job that the controller did not create or forgot: {name}");
                recorder.warning(&*self.cron, "UnexpectedJob", message);
            }
            let succeeded = job::end(job).is_some_and(|c| c.type_ == "Complete");
            let done = job.status.as_ref().and_then(|s| s.completion_time.clone()).filter(|_| succeeded);
            if let Some(done) = done
                && status.last_successful_time.as_ref().is_none_or(|t| t.0 < done.0)
            {
                status.last_successful_time = Some(done);
            }
        }
        let missing: Vec<ObjectReference> =
            active.iter().filter(|r| !jobs.iter().any(|j| j.metadata.uid == r.uid)).cloned().collect();
        for gone in missing {
            let name = gone.name.clone().unwrap_or_default();
            let there = self.context.client.namespaced::<Job>(self.namespace()).get_opt(&name).await?;
            if there.is_none_or(|j| j.metadata.uid != gone.uid) {
                recorder.normal(&*self.cron, "MissingJob", format!("Active job went missing: {name}"));
                active.retain(|r| r.uid != gone.uid);
            }
        }
        status.active = (!active.is_empty()).then_some(active);
        self.replace_status(changed).await
    }

    async fn delete(&self, job: &Job) -> Result<(), Error> {
        let name = job.metadata.name.as_deref().unwrap_or_default();
        let options = json!({"propagationPolicy": "Background", "preconditions": {"uid": job.metadata.uid}});
        let recorder = self.context.recorder(COMPONENT);
        match self.context.client.namespaced::<Job>(self.namespace()).delete(name, &options).await {
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => {
                recorder.warning(&*self.cron, "FailedDelete", format!("Deleted job: {error}"));
                Err(error)
            }
            Ok(()) => {
                recorder.normal(&*self.cron, "SuccessfulDelete", format!("Deleted job {name}"));
                Ok(())
            }
        }
    }

    /// Reads a Job that is not in the cache; tells if that fails.
    async fn get(&self, name: &str) -> Result<Arc<Job>, Error> {
        let job = self.context.client.namespaced::<Job>(self.namespace()).get(name).await;
        if let Err(error) = &job {
            self.context.recorder(COMPONENT).warning(&*self.cron, "FailedGet", format!("Get job: {error}"));
        }
        job.map(Arc::new)
    }

    /// Starts a Job if one is due.
    async fn start(&mut self, schedule: &Schedule, jobs: &[Arc<Job>]) -> Result<(), Error> {
        let recorder = self.context.recorder(COMPONENT);
        let now = Timestamp::now();
        let missed = plan::missed(&self.cron, &self.spec, schedule, now);
        if missed.many {
            let message =
                "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
            recorder.warning(&*self.cron, "TooManyMissedTimes", message);
        }
        // Jobs that somebody made by hand are in nobody's way.
        let active: Vec<ObjectReference> =
            self.cron.status.iter().flat_map(|s| s.active.iter().flatten()).cloned().collect();
        match plan::start(&self.cron, &self.spec, &missed, active.len(), now) {
            Start::Wait => Ok(()),
            Start::TooLate(at) => {
                let at = at.strftime("%a, %d %b %Y %H:%M:%S +0000");
                recorder.warning(&*self.cron, "MissSchedule", format!("Missed scheduled time to start a job: {at}"));
                Ok(())
            }
            Start::Forbidden => {
                let message = "Not starting job because prior execution is running and concurrency policy is Forbid";
                recorder.normal(&*self.cron, "JobAlreadyActive", message);
                Ok(())
            }
            Start::Now { at, replace } => {
                let mut replaced = Vec::new();
                for reference in active.iter().filter(|_| replace) {
                    let known = jobs.iter().find(|j| j.metadata.uid == reference.uid).cloned();
                    let job = match known {
                        Some(job) => job,
                        None => self.get(reference.name.as_deref().unwrap_or_default()).await?,
                    };
                    self.delete(&job).await?;
                    replaced.push(reference.uid.clone());
                }
                self.create(schedule, at, &replaced).await
            }
        }
    }

    /// Makes the Job for a time; those that it replaces are no longer listed.
    async fn create(&mut self, schedule: &Schedule, at: Timestamp, replaced: &[Option<String>]) -> Result<(), Error> {
        let recorder = self.context.recorder(COMPONENT);
        let wanted = new_job(&self.cron, &self.spec, schedule, at);
        let api = self.context.client.namespaced::<Job>(self.namespace());
        let job = match api.create(&wanted).await {
            Ok(job) => {
                let name = job.metadata.name.as_deref().unwrap_or_default();
                recorder.normal(&*self.cron, "SuccessfulCreate", format!("Created job {name}"));
                job
            }
            // One for this time is there: only the status is behind.
            Err(error) if error.is_already_exists() => {
                let job = api.get(wanted.metadata.name.as_deref().unwrap_or_default()).await?;
                if !crate::owners::is_controlled_by(&job.metadata, self.cron.metadata.uid.as_deref()) {
                    return Err(error);
                }
                job
            }
            Err(error) => {
                recorder.warning(&*self.cron, "FailedCreate", format!("Error creating job: {error}"));
                return Err(error);
            }
        };
        self.context.settle(&self.context.cache.jobs, &job).await;
        let mut changed = (*self.cron).clone();
        let status = changed.status.get_or_insert_default();
        let active = status.active.get_or_insert_default();
        active.retain(|r| !replaced.contains(&r.uid));
        if !active.iter().any(|r| r.uid == job.metadata.uid) && !job::is_finished(&job) {
            active.push(reference(&job));
        }
        status.active = status.active.take().filter(|a| !a.is_empty());
        status.last_schedule_time = Some(Time(at));
        self.replace_status(changed).await
    }
}

/// The Job for a time: its name says the minute, so that the same time never has two.
fn new_job(cron: &CronJob, spec: &CronJobSpec, schedule: &Schedule, at: Timestamp) -> Job {
    let template = spec.job_template.clone();
    let metadata = template.metadata.unwrap_or_default();
    let local = at.to_zoned(schedule.zone().clone());
    let text = match spec.time_zone {
        Some(_) => local.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string().replace("+00:00", "Z"),
        None => at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    };
    let mut annotations = metadata.annotations.unwrap_or_default();
    annotations.insert(SCHEDULED.into(), text);
    Job {
        metadata: ObjectMeta {
            name: Some(format!("{}-{}", cron.metadata.name.as_deref().unwrap_or_default(), at.as_second() / 60)),
            namespace: cron.metadata.namespace.clone(),
            labels: metadata.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![controller_reference(cron)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}
