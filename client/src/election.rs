//! Leader election by a Lease object, for components that run beside a Kubernetes API that is not ours: of several candidates
//! one works.
//!
//! Invariant: a candidate takes a lease of another only after it saw it unchanged for its whole duration by its own clock, and
//! stops its work before the others may take it.

use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::api::{Client, Error};

/// Where the leases of components are.
const NAMESPACE: &str = "kube-system";
/// How long a lease lasts unless it is renewed, seconds.
const DURATION_SECONDS: i32 = 15;
/// A leader that could not renew for this long stops.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// How often a lease is renewed, or looked at by those who wait.
const RETRY: Duration = Duration::from_secs(2);

/// A candidate.
pub struct Candidate {
    /// Reaches the API.
    pub client: Client,
    /// Name of the lease.
    pub name: &'static str,
    /// Who this is; no other candidate has the same.
    pub identity: String,
}

/// The lease as it was last seen, and since when it is as it is.
#[derive(Default)]
struct Seen(Option<(Option<String>, Instant)>);

/// What to do about a lease.
#[derive(Debug, PartialEq)]
enum Plan {
    Create(LeaseSpec),
    Take(LeaseSpec),
    Wait,
}

fn plan(lease: Option<&Lease>, seen: &mut Seen, identity: &str, at: Instant, now: Timestamp) -> Plan {
    let mine = |transitions: i32, since: Option<MicroTime>| LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: Some(DURATION_SECONDS),
        acquire_time: Some(since.unwrap_or(MicroTime(now))),
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(transitions),
        ..LeaseSpec::default()
    };
    let Some(lease) = lease else { return Plan::Create(mine(0, None)) };
    let spec = lease.spec.clone().unwrap_or_default();
    let transitions = spec.lease_transitions.unwrap_or(0);
    let holder = spec.holder_identity.as_deref().unwrap_or_default();
    if holder == identity {
        return Plan::Take(mine(transitions, spec.acquire_time));
    }
    let version = &lease.metadata.resource_version;
    let since = match &seen.0 {
        Some((known, since)) if known == version => *since,
        _ => at,
    };
    seen.0 = Some((version.clone(), since));
    let seconds = u64::try_from(spec.lease_duration_seconds.unwrap_or(DURATION_SECONDS)).unwrap_or(0);
    if !holder.is_empty() && at.duration_since(since) < Duration::from_secs(seconds) {
        return Plan::Wait;
    }
    Plan::Take(mine(transitions.saturating_add(1), None))
}

impl Candidate {
    /// Takes or renews the lease; whether it is ours now.
    async fn attempt(&self, seen: &mut Seen) -> Result<bool, Error> {
        let api = self.client.namespaced::<Lease>(NAMESPACE);
        let lease = api.get_opt(self.name).await?;
        let written = match plan(lease.as_ref(), seen, &self.identity, Instant::now(), Timestamp::now()) {
            Plan::Wait => return Ok(false),
            Plan::Create(spec) => {
                let metadata = ObjectMeta { name: Some(self.name.into()), ..ObjectMeta::default() };
                api.create(&Lease { metadata, spec: Some(spec) }).await
            }
            // With the version that was read: of two who take it one is refused.
            Plan::Take(spec) => api.replace(self.name, &Lease { spec: Some(spec), ..lease.unwrap_or_default() }).await,
        };
        match written {
            Ok(_) => Ok(true),
            Err(error) if error.is_conflict() || error.is_already_exists() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Gives the lease back, so that the next need not wait.
    async fn release(&self) -> Result<(), Error> {
        let api = self.client.namespaced::<Lease>(NAMESPACE);
        let Some(mut lease) = api.get_opt(self.name).await? else { return Ok(()) };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() == Some(&self.identity) {
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            api.replace(self.name, &lease).await?;
        }
        Ok(())
    }

    /// Waits for the lease, then runs `work` until it ends or `stop` is cancelled. An error: the lease was lost.
    pub async fn lead(
        &self,
        stop: &CancellationToken,
        work: impl FnOnce(CancellationToken) -> BoxFuture<'static, ()>,
    ) -> Result<(), Error> {
        let mut seen = Seen::default();
        loop {
            match self.attempt(&mut seen).await {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => warn!(lease = self.name, %error, "cannot ask for the lease; trying again"),
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(RETRY) => {}
            }
        }
        info!(lease = self.name, identity = self.identity, "leading");
        let running = stop.child_token();
        let mut task = tokio::spawn(work(running.clone()));
        let held = tokio::select! {
            ended = &mut task => return ended.map_err(|e| std::io::Error::other(e).into()),
            held = self.keep(stop, &mut seen) => held,
        };
        running.cancel();
        if held.is_err() {
            // Others may write at once: there is no time for an orderly end.
            task.abort();
        }
        let _ = task.await;
        if held.is_ok() {
            self.release().await?;
        }
        held
    }

    /// Renews until `stop` is cancelled; an error when that failed for too long.
    async fn keep(&self, stop: &CancellationToken, seen: &mut Seen) -> Result<(), Error> {
        let mut renewed = Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(RETRY) => {}
            }
            let asked = Instant::now();
            match tokio::time::timeout_at(renewed + RENEW_DEADLINE, self.attempt(seen)).await {
                Ok(Ok(true)) => renewed = asked,
                Ok(Ok(false)) => return Err(std::io::Error::other("another took the lease").into()),
                Ok(Err(error)) => warn!(lease = self.name, %error, "cannot renew the lease; trying again"),
                Err(_) => {}
            }
            if renewed.elapsed() >= RENEW_DEADLINE {
                return Err(std::io::Error::other("the lease could not be renewed in time").into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn lease(holder: &str, version: &str) -> Lease {
        serde_json::from_value(json!({"metadata": {"name": "l", "resourceVersion": version},
            "spec": {"holderIdentity": holder, "leaseDurationSeconds": 15, "leaseTransitions": 3}}))
        .unwrap()
    }

    #[test]
    fn a_lease_is_taken_when_its_holder_is_silent() {
        let (start, now) = (Instant::now(), Timestamp::UNIX_EPOCH);
        let after = |seconds: u64| start + Duration::from_secs(seconds);
        let mut seen = Seen::default();
        assert!(
            matches!(plan(None, &mut seen, "me", start, now), Plan::Create(spec) if spec.lease_transitions == Some(0))
        );
        let mut at = |lease: &Lease, seconds: u64| match plan(Some(lease), &mut seen, "me", after(seconds), now) {
            Plan::Take(spec) => spec.lease_transitions,
            Plan::Create(_) => panic!("it is there"),
            Plan::Wait => None,
        };
        assert_eq!(at(&lease("me", "1"), 0), Some(3), "renewed");
        assert_eq!(at(&lease("you", "2"), 0), None, "just seen");
        assert_eq!(at(&lease("you", "2"), 14), None, "not yet over");
        assert_eq!(at(&lease("you", "3"), 15), None, "renewed meanwhile");
        assert_eq!(at(&lease("you", "3"), 29), None, "not yet over");
        assert_eq!(at(&lease("you", "3"), 30), Some(4), "silent");
        assert_eq!(at(&lease("", "4"), 31), Some(4), "given back");
    }
}
