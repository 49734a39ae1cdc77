//! Decides whether a CronJob starts a Job now, and which old Jobs go.

use std::sync::Arc;

use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, Job};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::schedule::Schedule;
use crate::job;

/// From so many missed times on it is worth a warning.
const MANY_MISSED: usize = 100;
/// Missed times that are counted one by one; beyond, the newest is found by its distance from now.
const COUNTED: usize = 1000;

/// The times that were missed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Missed {
    /// The newest.
    pub newest: Option<Timestamp>,
    /// Whether there are many.
    pub many: bool,
}

/// The newest time between the last start and now, within the starting deadline.
pub fn missed(cron: &CronJob, spec: &CronJobSpec, schedule: &Schedule, now: Timestamp) -> Missed {
    let last = cron.status.as_ref().and_then(|s| s.last_schedule_time.as_ref().map(|t| t.0));
    let made = cron.metadata.creation_timestamp.as_ref().map(|t| t.0);
    let mut from = last.or(made).unwrap_or(now);
    if let Some(seconds) = spec.starting_deadline_seconds {
        let earliest = now.checked_sub(SignedDuration::from_secs(seconds)).unwrap_or(from);
        from = from.max(earliest);
    }
    let (mut newest, mut count) = (None, 0);
    let mut at = from;
    while let Some(next) = schedule.next(at).filter(|next| *next <= now) {
        (newest, at) = (Some(next), next);
        count += 1;
        if count > COUNTED {
            // Closer to now by half the distance, until what is left can be counted.
            let skipped = at.checked_add(now.duration_since(at) / 2).unwrap_or(at);
            at = schedule.next(skipped).filter(|n| *n <= now).unwrap_or(at);
            newest = Some(at);
        }
    }
    Missed { newest, many: count > MANY_MISSED }
}

/// What to do now.
#[derive(Debug, PartialEq, Eq)]
pub enum Start {
    /// Nothing is due.
    Wait,
    /// The time is past its deadline.
    TooLate(Timestamp),
    /// Another Job runs and forbids this one.
    Forbidden,
    /// Start one for this time; whether those that run go first.
    Now { at: Timestamp, replace: bool },
}

/// Decides; `active` is the number of its Jobs that run.
pub fn start(cron: &CronJob, spec: &CronJobSpec, missed: &Missed, active: usize, now: Timestamp) -> Start {
    if spec.suspend == Some(true) || cron.metadata.deletion_timestamp.is_some() {
        return Start::Wait;
    }
    let Some(at) = missed.newest else { return Start::Wait };
    let deadline = spec.starting_deadline_seconds.and_then(|s| at.checked_add(SignedDuration::from_secs(s)).ok());
    if deadline.is_some_and(|d| d < now) {
        return Start::TooLate(at);
    }
    match spec.concurrency_policy.as_deref() {
        Some("Forbid") if active > 0 => Start::Forbidden,
        policy => Start::Now { at, replace: policy == Some("Replace") },
    }
}

/// Jobs beyond the limits of the history, the oldest first.
pub fn beyond_history(spec: &CronJobSpec, jobs: &[Arc<Job>]) -> Vec<Arc<Job>> {
    let mut gone = Vec::new();
    for (kind, limit) in [
        ("Complete", spec.successful_jobs_history_limit.unwrap_or(3)),
        ("Failed", spec.failed_jobs_history_limit.unwrap_or(1)),
    ] {
        let mut ended: Vec<&Arc<Job>> = jobs.iter().filter(|j| job::end(j).is_some_and(|c| c.type_ == kind)).collect();
        ended.sort_by_key(|j| {
            let start = j.status.as_ref().and_then(|s| s.start_time.as_ref().map(|t| t.0));
            // Those that never began come last.
            (start.is_none(), start, j.metadata.name.clone())
        });
        let surplus = ended.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        gone.extend(ended.into_iter().take(surplus).cloned());
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn cron(spec: Value, last: Option<&str>) -> CronJob {
        let mut whole = json!({"metadata": {"name": "c", "creationTimestamp": "2026-01-01T00:00:30Z"},
            "spec": {"schedule": "* * * * *", "jobTemplate": {}}, "status": {}});
        if let Some(last) = last {
            whole["status"]["lastScheduleTime"] = last.into();
        }
        keelson_machinery::patch::merge(&mut whole["spec"], &spec);
        serde_json::from_value(whole).unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn starts() {
        let now = at("2026-01-01T00:10:20Z");
        let due = at("2026-01-01T00:10:00Z");
        for (what, spec, last, active, expected) in [
            ("due", json!({}), None, 0, Start::Now { at: due, replace: false }),
            ("done already", json!({}), Some("2026-01-01T00:10:00Z"), 0, Start::Wait),
            ("suspended", json!({"suspend": true}), None, 0, Start::Wait),
            ("too late", json!({"startingDeadlineSeconds": 10}), None, 0, Start::Wait),
            ("in time", json!({"startingDeadlineSeconds": 30}), None, 0, Start::Now { at: due, replace: false }),
            ("beside another", json!({}), None, 1, Start::Now { at: due, replace: false }),
            ("not beside another", json!({"concurrencyPolicy": "Forbid"}), None, 1, Start::Forbidden),
            (
                "instead of another",
                json!({"concurrencyPolicy": "Replace"}),
                None,
                1,
                Start::Now { at: due, replace: true },
            ),
        ] {
            let cron = cron(spec, last);
            let spec = &cron.spec;
            let schedule = Schedule::parse(&spec.schedule, None).unwrap();
            let missed = missed(&cron, spec, &schedule, now);
            assert_eq!(start(&cron, spec, &missed, active, now), expected, "{what}");
        }
    }

    #[test]
    fn many_missed_times_are_not_counted_one_by_one() {
        let cron = cron(json!({}), Some("2020-01-01T00:00:00Z"));
        let spec = &cron.spec;
        let schedule = Schedule::parse("* * * * *", None).unwrap();
        let found = missed(&cron, spec, &schedule, at("2026-01-01T00:10:20Z"));
        assert_eq!(found, Missed { newest: Some(at("2026-01-01T00:10:00Z")), many: true });
    }

    #[test]
    fn the_history_is_limited_by_outcome() {
        let job = |name: &str, kind: &str, second: u8| -> Arc<Job> {
            Arc::new(
                serde_json::from_value(
                    json!({"metadata": {"name": name}, "status": {"startTime": format!("2026-01-01T00:00:0{second}Z"),
                    "conditions": [{"type": kind, "status": "True"}]}}),
                )
                .unwrap(),
            )
        };
        let jobs = [
            job("a", "Complete", 3),
            job("b", "Complete", 1),
            job("c", "Failed", 1),
            job("d", "Failed", 2),
            job("e", "Suspended", 0),
        ];
        let cron = cron(json!({"successfulJobsHistoryLimit": 1}), None);
        let mut unbegun = (*job("f", "Failed", 0)).clone();
        unbegun.status.as_mut().unwrap().start_time = None;
        let jobs = [&[Arc::new(unbegun)], &jobs[..]].concat();
        let gone = beyond_history(&cron.spec, &jobs);
        let names: Vec<&str> = gone.iter().filter_map(|j| j.metadata.name.as_deref()).collect();
        assert_eq!(names, ["b", "c", "d"]);
    }
}
