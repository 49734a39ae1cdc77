//! Jobs that ended go after the time that they name.

use std::sync::Arc;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use keelson_client::Key;
use serde_json::json;

use crate::context::Context;
use crate::pods::until;
use crate::runtime::{Keys, Outcome, watch_own};

/// When a Job goes: so many seconds after its end.
fn due(job: &Job) -> Option<Timestamp> {
    let seconds = job.spec.as_ref()?.ttl_seconds_after_finished?;
    let end = super::end(job)?.last_transition_time.as_ref()?.0;
    end.checked_add(SignedDuration::from_secs(seconds.into())).ok()
}

pub(crate) fn watch(context: &Arc<Context>, queue: &Keys) {
    watch_own(&context.cache.jobs, queue);
}

pub(crate) async fn reconcile(context: Arc<Context>, key: Key) -> Outcome {
    let Some(job) = context.cache.jobs.get(&key) else { return Ok(None) };
    let Some(at) = due(&job).filter(|_| job.metadata.deletion_timestamp.is_none()) else { return Ok(None) };
    let now = Timestamp::now();
    if at > now {
        return Ok(until(at, now));
    }
    let options = json!({"propagationPolicy": "Foreground",
        "preconditions": {"uid": job.metadata.uid, "resourceVersion": job.metadata.resource_version}});
    match context.client.namespaced::<Job>(&key.0).delete(&key.1, &options).await {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ended_jobs_with_a_time_go() {
        let job = |ttl: Option<i32>, kind: &str| -> Job {
            serde_json::from_value(
                json!({"spec": {"template": {}, "ttlSecondsAfterFinished": ttl}, "status": {"conditions":
                [{"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}),
            )
            .unwrap()
        };
        let at = |text: &str| -> Option<Timestamp> { text.parse().ok() };
        assert_eq!(due(&job(Some(60), "Complete")), at("2026-01-01T00:01:00Z"));
        assert_eq!(due(&job(Some(0), "Failed")), at("2026-01-01T00:00:00Z"));
        assert_eq!(due(&job(None, "Failed")), None);
        assert_eq!(due(&job(Some(0), "Suspended")), None);
    }
}
