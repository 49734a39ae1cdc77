//! One step of one pod: from what should be and what runs to the next action. Steps are repeated until nothing is left
//! to do, so that an agent which was killed goes on where the runtime is.

use std::collections::HashMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use keelson_proto::cri::{self, ContainerState, ContainerStatus, PodSandboxState};

use crate::agent::Agent;
use crate::cri::Running;
use crate::pod_config::{self, Place};
use crate::pod_status::{self, Waiting, back_off, policy, restarts, runs};

/// Grace of containers whose pod is unknown.
const ORPHAN_GRACE: i64 = 30;
/// Ended runs of a container that are kept, for `logs --previous`.
const KEPT_RUNS: usize = 2;

/// Failed starts: (pod uid, container) to how many, when the last was, reason and message.
pub type Failures = HashMap<(String, String), (u32, i64, String, String)>;

/// What to do.
pub enum Step {
    /// Bring this pod forward.
    Sync(Box<Pod>),
    /// End what belongs to no pod.
    Orphan,
}

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The runtime refused.
    #[error("container runtime: {}", .0.message())]
    Runtime(#[from] tonic::Status),
    /// The API refused.
    #[error("{0}")]
    Api(#[from] keelson_client::Error),
    /// A directory could not be made or removed.
    #[error("{0}")]
    File(#[from] std::io::Error),
    /// A status could not be made.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
}

/// Takes one step.
pub async fn step(agent: &Agent, uid: &str, step: Step, state: Running) -> Result<(), StepError> {
    match step {
        Step::Orphan => end(agent, uid, &state, ORPHAN_GRACE).await,
        Step::Sync(pod) if pod.metadata.deletion_timestamp.is_some() => {
            let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(ORPHAN_GRACE);
            end(agent, uid, &state, grace).await?;
            Ok(agent.confirm(&pod).await?)
        }
        Step::Sync(pod) => sync(agent, uid, &pod, state).await,
    }
}

/// Ends all containers, then the sandboxes and the pod's directory.
async fn end(agent: &Agent, uid: &str, state: &Running, grace: i64) -> Result<(), StepError> {
    let running = state.containers.iter().filter(|c| c.state() == ContainerState::ContainerRunning);
    futures::future::try_join_all(running.map(|c| agent.runtime.stop(&c.id, grace))).await?;
    agent.runtime.remove(state).await?;
    agent.failures.lock().retain(|(pod, _), _| pod != uid);
    match std::fs::remove_dir_all(agent.config.data_dir.join("pods").join(uid)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.into()),
        _ => Ok(()),
    }
}

/// What is to be done with a container.
#[derive(Debug, PartialEq, Eq)]
enum Action {
    /// Nothing: it runs or has ended for good.
    Leave,
    /// Start it as the given attempt.
    Start(u32),
    /// Wait: it ended a short while ago, after so many starts.
    BackOff(u32),
}

fn action(pod: &Pod, spec: &Container, init: bool, all: &[ContainerStatus], now: i64) -> Action {
    let Some(newest) = runs(&spec.name, all).next() else { return Action::Start(0) };
    let attempt = newest.metadata.as_ref().map_or(0, |m| m.attempt);
    match newest.state() {
        ContainerState::ContainerRunning => Action::Leave,
        ContainerState::ContainerExited if init && newest.exit_code == 0 => Action::Leave,
        ContainerState::ContainerExited if !restarts(policy(pod, init), newest.exit_code) => Action::Leave,
        ContainerState::ContainerExited if now < newest.finished_at / 1_000_000_000 + back_off(attempt) => {
            Action::BackOff(attempt)
        }
        _ => Action::Start(attempt + 1),
    }
}

async fn sync(agent: &Agent, uid: &str, pod: &Pod, state: Running) -> Result<(), StepError> {
    let host_ip = agent.config.node_ip.to_string();
    let mut waiting = Waiting::new();
    let over = matches!(pod_status::phase(pod, &state.containers), "Succeeded" | "Failed");
    let finished = pod.status.as_ref().is_some_and(|s| matches!(s.phase.as_deref(), Some("Succeeded" | "Failed")));
    if finished {
        return Ok(());
    }
    let ready = |s: &&cri::PodSandbox| s.state() == PodSandboxState::SandboxReady;
    let sandbox = state.sandboxes.iter().find(ready).map(|s| s.id.clone());
    let attempt = sandbox_attempt(&state);
    let logs = pod_config::log_directory(&agent.config.log_dir, pod);
    let dns = agent.config.cluster_dns.map(|ip| ip.to_string());
    let config = pod_config::sandbox(pod, &logs, attempt, dns.as_deref(), &agent.config.cluster_domain);
    let mut addresses = Vec::new();
    if let Some(id) = sandbox.clone() {
        addresses = pod_addresses(agent, pod, &id).await?;
    } else if !over {
        match run_sandbox(agent, &logs, config.clone()).await {
            Ok(_) => return Ok(()), // the next step sees it
            Err(e) => {
                for spec in pod_status::containers(pod) {
                    waiting.insert(spec.name.clone(), ("ContainerCreating".into(), e.to_string()));
                }
                tracing::warn!(pod = ?pod.metadata.name, error = %e, "sandbox could not be made");
            }
        }
    }
    if let (Some(sandbox), false) = (&sandbox, over) {
        let pod_ip = addresses.first().cloned().unwrap_or_default();
        let dir = agent.config.data_dir.join("pods").join(uid);
        let (client, node) = (&agent.config.client, agent.config.node_name.as_str());
        let place = Place { client, node, host_ip: &host_ip, pod_ip: &pod_ip, dir: &dir };
        let worker = Worker { agent, uid, pod, sandbox, config: &config, place };
        worker.containers(&state, &mut waiting).await?;
    }
    let status = pod_status::status(pod, &state.containers, &waiting, &host_ip, &addresses)?;
    Ok(agent.report(pod, status).await?)
}

fn sandbox_attempt(state: &Running) -> u32 {
    let ready = |s: &cri::PodSandbox| s.state() == PodSandboxState::SandboxReady;
    let newest = state.sandboxes.first();
    let attempt = newest.and_then(|s| s.metadata.as_ref()).map(|m| m.attempt);
    attempt.map_or(0, |a| if newest.is_some_and(ready) { a } else { a + 1 })
}

async fn pod_addresses(agent: &Agent, pod: &Pod, sandbox: &str) -> Result<Vec<String>, StepError> {
    if pod.spec.as_ref().is_some_and(|s| s.host_network == Some(true)) {
        return Ok(vec![agent.config.node_ip.to_string()]);
    }
    Ok(agent.runtime.addresses(sandbox).await?)
}

async fn run_sandbox(
    agent: &Agent,
    logs: &std::path::Path,
    config: cri::PodSandboxConfig,
) -> Result<String, StepError> {
    std::fs::create_dir_all(logs)?;
    let request = cri::RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
    Ok(agent.runtime.pods.clone().run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
}

struct Worker<'a> {
    agent: &'a Agent,
    uid: &'a str,
    pod: &'a Pod,
    sandbox: &'a str,
    config: &'a cri::PodSandboxConfig,
    place: Place<'a>,
}

impl Worker<'_> {
    async fn containers(&self, state: &Running, waiting: &mut Waiting) -> Result<(), StepError> {
        for spec in pod_status::init_containers(self.pod) {
            let done = |c: &ContainerStatus| c.state() == ContainerState::ContainerExited && c.exit_code == 0;
            if runs(&spec.name, &state.containers).next().is_some_and(done) {
                continue;
            }
            return self.container(spec, true, state, waiting).await;
        }
        for spec in pod_status::containers(self.pod) {
            self.container(spec, false, state, waiting).await?;
        }
        Ok(())
    }

    async fn container(
        &self,
        spec: &Container,
        init: bool,
        state: &Running,
        waiting: &mut Waiting,
    ) -> Result<(), StepError> {
        let now = Timestamp::now().as_second();
        let attempt = match action(self.pod, spec, init, &state.containers, now) {
            Action::Leave => return Ok(()),
            Action::BackOff(attempt) => {
                let message = format!("back-off {}s restarting failed container={}", back_off(attempt), spec.name);
                waiting.insert(spec.name.clone(), ("CrashLoopBackOff".into(), message));
                return Ok(());
            }
            Action::Start(attempt) => attempt,
        };
        let key = (self.uid.to_owned(), spec.name.clone());
        let failed = self.agent.failures.lock().get(&key).cloned();
        if let Some((count, when, reason, message)) = failed.clone().filter(|f| now < f.1 + back_off(f.0)) {
            tracing::trace!(count, when, "waits");
            let reason = if reason == "ErrImagePull" && count > 1 { "ImagePullBackOff".into() } else { reason };
            waiting.insert(spec.name.clone(), (reason, message));
            return Ok(());
        }
        for old in runs(&spec.name, &state.containers).skip(KEPT_RUNS - 1) {
            let request = cri::RemoveContainerRequest { container_id: old.id.clone() };
            self.agent.runtime.pods.clone().remove_container(request).await?;
        }
        match self.launch(spec, attempt).await {
            Ok(()) => {
                self.agent.failures.lock().remove(&key);
            }
            Err((reason, message)) => {
                tracing::warn!(pod = ?self.pod.metadata.name, container = %spec.name, reason, %message, "not started");
                let count = failed.map_or(1, |f| f.0 + 1);
                self.agent.failures.lock().insert(key, (count, now, reason.into(), message.clone()));
                waiting.insert(spec.name.clone(), (reason.into(), message));
            }
        }
        Ok(())
    }

    async fn image(&self, spec: &Container) -> Result<(), (&'static str, String)> {
        let image = spec.image.clone().unwrap_or_default();
        let here = self.agent.runtime.has_image(&image).await;
        let here = here.map_err(|e| ("ImageInspectError", e.message().to_owned()))?;
        match spec.image_pull_policy.as_deref() {
            Some("Never") if !here => {
                let message = format!("Container image \"{image}\" is not present with pull policy of Never");
                Err(("ErrImageNeverPull", message))
            }
            Some("Always") => self.pull(&image).await,
            _ if here => Ok(()),
            _ => self.pull(&image).await,
        }
    }

    async fn pull(&self, image: &str) -> Result<(), (&'static str, String)> {
        self.agent.runtime.pull(image).await.map_err(|e| ("ErrImagePull", e.message().to_owned()))
    }

    async fn launch(&self, spec: &Container, attempt: u32) -> Result<(), (&'static str, String)> {
        self.image(spec).await?;
        let config = pod_config::container(self.pod, spec, attempt, &self.place).await;
        let config = config.map_err(|e| ("CreateContainerConfigError", e.to_string()))?;
        let mut client = self.agent.runtime.pods.clone();
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: self.sandbox.into(),
            config: Some(config),
            sandbox_config: Some(self.config.clone()),
        };
        let made = client.create_container(request).await;
        let made = made.map_err(|e| ("CreateContainerError", e.message().to_owned()))?.into_inner();
        let request = cri::StartContainerRequest { container_id: made.container_id };
        let started = client.start_container(request).await;
        started.map(|_| ()).map_err(|e| ("RunContainerError", e.message().to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_done_with_a_container() {
        let pod = |policy: &str| -> Pod {
            serde_json::from_value(json!({"spec": {"restartPolicy": policy, "containers": [{"name": "c"}]}})).unwrap()
        };
        let run = |state: ContainerState, exit_code, attempt| {
            let metadata = Some(cri::ContainerMetadata { name: "c".into(), attempt });
            let finished_at = 100_000_000_000;
            vec![ContainerStatus { metadata, state: state.into(), exit_code, finished_at, ..Default::default() }]
        };
        let (up, ended) = (ContainerState::ContainerRunning, ContainerState::ContainerExited);
        for (policy, init, runs, now, wanted) in [
            ("Always", false, vec![], 100, Action::Start(0)),
            ("Always", false, run(up, 0, 0), 100, Action::Leave),
            ("Always", false, run(ended, 0, 0), 100, Action::Start(1)),
            ("Always", false, run(ended, 1, 2), 119, Action::BackOff(2)),
            ("Always", false, run(ended, 1, 2), 120, Action::Start(3)),
            ("OnFailure", false, run(ended, 0, 0), 100, Action::Leave),
            ("Never", false, run(ended, 1, 0), 100, Action::Leave),
            ("Always", true, run(ended, 0, 0), 100, Action::Leave),
            ("Always", true, run(ended, 1, 0), 100, Action::Start(1)),
        ] {
            let pod = pod(policy);
            assert_eq!(action(&pod, &pod_status::containers(&pod)[0], init, &runs, now), wanted, "{policy} {runs:?}");
        }
    }
}
