//! The end of pods and containers: hooks, grace, order, and the removal of what is left.

use std::time::{Duration, Instant};

use futures::future::{join_all, try_join_all};
use k8s_openapi::api::core::v1::Pod;

use super::plan::Waiting;
use super::{IDLE, Next, StepError, Worker, is_running, is_up};
use crate::cgroup;
use crate::cri::{Run, Running};
use crate::handler::Target;
use crate::pod_status::Doom;
use crate::spec::container::GRACE;
use crate::spec::pod;
use crate::volumes;

/// Seconds that a container has after its hook, however long that took.
const AFTER_HOOK: i64 = 2;
/// Pause after a pod is gone from the node until it is looked whether the API has heard of it.
const CONFIRMED: Duration = Duration::from_secs(5);

fn name_of(run: &Run) -> &str {
    run.metadata.as_ref().map(|m| m.name.as_str()).unwrap_or_default()
}

/// The grace of a run whose pod is unknown: it bears that itself.
fn grace_of(run: &Run) -> i64 {
    run.annotations.get(GRACE).and_then(|g| g.parse().ok()).unwrap_or(pod::DEFAULT_GRACE)
}

impl Worker {
    /// Stops one run: its hook first, within the grace.
    pub(super) async fn stop_one(
        &self,
        of: Option<&Pod>,
        run: &Run,
        grace: i64,
        why: &str,
    ) -> Result<(), tonic::Status> {
        let began = Instant::now();
        let name = name_of(run);
        let container = of.and_then(|of| pod::find(of, name)).map(|(_, c)| c);
        if let Some(of) = of {
            self.agent.events.normal(of, Some(name), "Killing", why);
        }
        let hook = container.and_then(|c| c.lifecycle.as_ref()).and_then(|l| l.pre_stop.as_ref());
        let mut left = grace.max(0);
        if let (Some(hook), Some(container), Some(of)) = (hook, container, of)
            && left > 0
        {
            let target = Target {
                runtime: self.agent.runtime.clone(),
                id: run.id.clone(),
                ip: self.pod_ips().first().cloned().unwrap_or_default(),
                container: container.clone(),
            };
            if let Err(error) = target.hook(hook, Duration::from_secs(left.unsigned_abs())).await {
                self.agent.events.warning(of, Some(name), "FailedPreStopHook", format!("PreStopHook failed: {error}"));
            }
            let took = i64::try_from(began.elapsed().as_secs()).unwrap_or(i64::MAX);
            left = (left - took).max(AFTER_HOOK);
        }
        self.agent.runtime.stop(&run.id, left).await
    }

    /// Stops all that runs: first the main containers at once, then the sidecars from the last to the first. A shorter
    /// grace that comes meanwhile is kept to.
    pub(super) async fn stop_all(&self, of: Option<&Pod>, seen: &Running) -> Result<(), StepError> {
        if seen.up().next().is_none() {
            return Ok(());
        }
        let began = Instant::now();
        let mut grace = of.map_or(pod::DEFAULT_GRACE, pod::grace);
        let work = self.stop_in_order(of, seen);
        tokio::pin!(work);
        loop {
            tokio::select! {
                result = &mut work => return Ok(result?),
                () = self.wake.notified() => {}
            }
            let wanted = self.agent.pods.get(&self.uid).map_or(0, |p| pod::grace(&p));
            if of.is_none() || wanted >= grace {
                continue;
            }
            grace = wanted;
            let left = wanted - i64::try_from(began.elapsed().as_secs()).unwrap_or(i64::MAX);
            for result in join_all(seen.up().map(|run| self.agent.runtime.stop(&run.id, left.max(0)))).await {
                result?;
            }
        }
    }

    async fn stop_in_order(&self, of: Option<&Pod>, seen: &Running) -> Result<(), tonic::Status> {
        let began = Instant::now();
        let sidecars: Vec<&str> = of.map_or(Vec::new(), |of| {
            let names = pod::init_containers(of).iter().filter(|c| pod::is_sidecar(c)).map(|c| c.name.as_str());
            names.collect()
        });
        let grace = |run: &Run| {
            let whole = of.map_or_else(|| grace_of(run), pod::grace);
            let took = i64::try_from(began.elapsed().as_secs()).unwrap_or(i64::MAX);
            if whole == 0 { 0 } else { (whole - took).max(1) }
        };
        let stop = |run| {
            let (name, grace) = (name_of(run), grace(run));
            async move { self.stop_one(of, run, grace, &format!("Stopping container {name}")).await }
        };
        try_join_all(seen.up().filter(|r| !sidecars.contains(&name_of(r))).map(stop)).await?;
        for name in sidecars.iter().rev() {
            try_join_all(seen.up().filter(|r| name_of(r) == *name).map(stop)).await?;
        }
        Ok(())
    }

    /// Ends what an earlier sandbox of a living pod left. One that a runtime finished after it, or the agent, was killed may
    /// even be up. Its containers' records stay while somebody may want their logs.
    pub(super) async fn clear_old(&self, seen: &Running, current: &str) -> Result<(), tonic::Status> {
        let runtime = &self.agent.runtime;
        for old in &seen.sandboxes {
            if old.id == current {
                continue;
            }
            let inside: Vec<&Run> = seen.containers.iter().filter(|run| run.sandbox == old.id).collect();
            if is_up(old) || inside.iter().any(|run| is_running(run)) {
                runtime.stop_sandbox(&old.id).await?;
            }
            if inside.is_empty() {
                runtime.remove_sandbox(&old.id).await?;
            }
        }
        Ok(())
    }

    /// A pod that is to be deleted: ends it, says so, and gives back all it had.
    pub(super) async fn terminate(&mut self, of: &Pod, seen: &Running) -> Result<Next, StepError> {
        self.probes.clear();
        self.stop_all(Some(of), seen).await?;
        let seen = self.look().await?;
        if seen.up().next().is_some() {
            return Err(StepError::StillRuns);
        }
        let doom = if pod::is_finished(of) { None } else { self.agent.pods.doom(&self.uid) };
        if !pod::is_finished(of) {
            self.report(of, &seen, &Waiting::new(), doom.as_ref()).await?;
        }
        self.remove_all().await?;
        self.agent.confirm(of).await?;
        Ok(Next::In(CONFIRMED))
    }

    /// Removes sandboxes, containers, mounts, files and control groups of the pod. Nothing of it runs any more.
    pub(super) async fn remove_all(&mut self) -> Result<(), StepError> {
        self.probes.clear();
        let seen = self.look().await?;
        if seen.containers.iter().any(is_running) {
            return Err(StepError::StillRuns);
        }
        let runtime = &self.agent.runtime;
        try_join_all(seen.sandboxes.iter().map(async |sandbox| {
            runtime.stop_sandbox(&sandbox.id).await?;
            runtime.remove_sandbox(&sandbox.id).await
        }))
        .await?;
        let has = |id: &str| seen.sandboxes.iter().any(|s| s.id == id);
        let strays = seen.containers.iter().filter(|run| !has(&run.sandbox));
        try_join_all(strays.map(|run| runtime.remove_container(&run.id))).await?;
        self.agent.csi.give_back(&self.uid).await?;
        self.agent.claims.give_back(&self.uid).await?;
        let dir = self.dir();
        let logs = self.last.as_ref().map(|of| pod::log_directory(&self.agent.config.log_dir, of));
        let removed = tokio::task::spawn_blocking(move || {
            if let Some(logs) = logs {
                match std::fs::remove_dir_all(&logs) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
                    _ => {}
                }
            }
            volumes::remove(&dir)
        });
        removed.await.map_err(std::io::Error::other)??;
        cgroup::remove(&self.uid);
        self.agent.take_back(&self.uid).await;
        (self.places, self.claims, self.addresses) = (None, None, None);
        Ok(())
    }

    /// A pod that has come to its end by itself: the rest of it stops, the outcome is reported.
    pub(super) async fn complete(&mut self, of: &Pod, seen: &Running) -> Result<Next, StepError> {
        self.stop_all(Some(of), seen).await?;
        let seen = self.look().await?;
        self.report(of, &seen, &Waiting::new(), None).await?;
        self.rest(of, &seen).await
    }

    /// A pod that the node ends.
    pub(super) async fn fail(&mut self, of: &Pod, seen: &Running, doom: &Doom) -> Result<Next, StepError> {
        if seen.up().next().is_some() {
            self.agent.events.warning(of, None, doom.reason.clone(), doom.message.clone());
        }
        let mut hurried = of.clone();
        if let Some(most) = doom.grace {
            hurried.metadata.deletion_grace_period_seconds = Some(pod::grace(of).min(most));
        }
        self.stop_all(Some(&hurried), seen).await?;
        let seen = self.look().await?;
        self.report(of, &seen, &Waiting::new(), Some(doom)).await?;
        self.rest(of, &seen).await
    }

    /// A pod that has ended keeps its containers, for their logs, and nothing else.
    pub(super) async fn rest(&mut self, of: &Pod, seen: &Running) -> Result<Next, StepError> {
        self.probes.clear();
        self.stop_all(Some(of), seen).await?;
        for sandbox in seen.sandboxes.iter().filter(|s| is_up(s)) {
            self.agent.runtime.stop_sandbox(&sandbox.id).await?;
        }
        self.agent.csi.give_back(&self.uid).await?;
        self.agent.claims.give_back(&self.uid).await?;
        let dir = self.dir();
        let volumes = [dir.join("volumes"), dir.join("volume-subpaths")];
        let removed =
            tokio::task::spawn_blocking(move || volumes.iter().try_for_each(|volume| volumes::remove(volume)));
        removed.await.map_err(std::io::Error::other)??;
        self.agent.take_back(&self.uid).await;
        (self.places, self.claims) = (None, None);
        Ok(Next::In(IDLE))
    }
}
