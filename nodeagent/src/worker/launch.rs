//! The start of a container: image, environment, mounts, the container itself, its first hook.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, Pod};
use keelson_proto::cri::{self, Mount};

use super::plan::{Start, runs};
use super::{BACK_OFF, Crash, Failure, Worker, now};
use crate::cri::{Run, Running};
use crate::events::Recorder;
use crate::handler::Target;
use crate::spec::env::{self, Sources};
use crate::spec::pod::{self, Sort};
use crate::spec::security::mappings;
use crate::spec::{SpecError, container, dns, text};
use crate::{claims, volumes};

/// Ended runs of a container that are kept, for `logs --previous`.
const KEPT_RUNS: usize = 1;
/// Where containers leave their last word.
const MESSAGE_PATH: &str = "/dev/termination-log";
/// Bytes of a last word.
const MAX_MESSAGE: u64 = 4096;
/// Bytes and lines of a log that stand for a last word.
const MAX_LOG: (u64, usize) = (2048, 80);
/// Longest wait for the first list of Services.
const SERVICES: Duration = Duration::from_secs(10);
/// Longest first hook.
const HOOK: Duration = Duration::from_secs(600);

/// Reason and message of a container that waits.
type Refusal = (&'static str, String);

/// Where a run's last word is on the node.
fn message_file(dir: &Path, name: &str, attempt: u32) -> PathBuf {
    dir.join("containers").join(name).join(attempt.to_string())
}

/// What a run left as its last word.
pub fn last_word(dir: &Path, container: &Container, run: &Run) -> Option<String> {
    use std::io::Read;
    let attempt = run.metadata.as_ref().map_or(0, |m| m.attempt);
    let mut bytes = Vec::new();
    if let Ok(file) = std::fs::File::open(message_file(dir, &container.name, attempt)) {
        file.take(MAX_MESSAGE).read_to_end(&mut bytes).ok()?;
    }
    let fallback = container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
    if bytes.is_empty() && fallback && run.exit_code != 0 {
        return log_end(Path::new(&run.log_path));
    }
    (!bytes.is_empty()).then(|| String::from_utf8_lossy(&bytes).into_owned())
}

/// The end of a log without its times.
fn log_end(path: &Path) -> Option<String> {
    use std::io::{Read, Seek};
    let mut file = std::fs::File::open(path).ok()?;
    let size = file.metadata().ok()?.len();
    file.seek(std::io::SeekFrom::Start(size.saturating_sub(2 * MAX_LOG.0))).ok()?;
    let mut bytes = Vec::new();
    file.take(2 * MAX_LOG.0).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let lines: Vec<&str> = text.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).collect();
    let mut end = lines[lines.len().saturating_sub(MAX_LOG.1)..].join("\n");
    while end.len() as u64 > MAX_LOG.0 {
        end.remove(0);
    }
    (!end.is_empty()).then_some(end)
}

/// The image of one of a pod's containers.
fn image_of(of: &Pod, name: &str) -> String {
    let extra = || pod::ephemeral_containers(of).iter().find(|c| c.name == name).and_then(|c| c.image.clone());
    pod::find(of, name).and_then(|(_, c)| c.image.clone()).or_else(extra).unwrap_or_default()
}

impl Worker {
    /// Tells people something of a container the first time that it is so: `what` says when it is another thing.
    pub(super) fn tell_once(&mut self, container: &str, what: &str, tell: impl FnOnce(&Recorder)) {
        if self.told.insert(container.to_owned(), what.to_owned()).as_deref() != Some(what) {
            tell(&self.agent.events);
        }
    }

    /// Starts a container, unless it must wait after a failure.
    pub(super) async fn launch(
        &mut self,
        of: &Pod,
        start: &Start,
        seen: &Running,
        sandbox: &str,
    ) -> Result<(), Refusal> {
        if let Some(failure) = self.failures.get(&start.name).filter(|f| f.at.elapsed() < f.pause()) {
            let (reason, message, count) = (failure.reason, failure.message.clone(), failure.count);
            if reason != "ErrImagePull" {
                return Err((reason, message));
            }
            let image = image_of(of, &start.name);
            let back_off = format!("Back-off pulling image \"{image}\"");
            self.tell_once(&start.name, &format!("pull {count}"), |events| {
                events.normal(of, Some(&start.name), "BackOff", back_off.clone());
                events.warning(of, Some(&start.name), "Failed", "Error: ImagePullBackOff");
            });
            return Err(("ImagePullBackOff", format!("{back_off}: ErrImagePull: {message}")));
        }
        let result = self.attempt(of, start, seen, sandbox).await;
        match &result {
            Ok(()) => {
                self.failures.remove(&start.name);
            }
            Err((reason, message)) => {
                tracing::warn!(pod = pod::title(of), container = start.name, reason, message, "not started");
                let count = self.failures.get(&start.name).map_or(1, |f| f.count + 1);
                let failure = Failure { count, at: Instant::now(), reason, message: message.clone() };
                self.failures.insert(start.name.clone(), failure);
            }
        }
        result
    }

    async fn attempt(&mut self, of: &Pod, start: &Start, seen: &Running, sandbox: &str) -> Result<(), Refusal> {
        let extra = pod::ephemeral_containers(of).iter().find(|c| c.name == start.name);
        let spec = match (pod::find(of, &start.name), extra) {
            (Some((_, container)), _) => container.clone(),
            (None, Some(extra)) => pod::plain(extra),
            (None, None) => return Err(("CreateContainerConfigError", "the pod has no such container".into())),
        };
        let image = self.image(of, &spec).await?;
        let images = self.volume_images(of, &spec).await?;
        self.make_room(start, seen).await.map_err(|e| ("CreateContainerError", e.message().to_owned()))?;
        let target = extra.and_then(|e| e.target_container_name.as_deref()).filter(|t| !t.is_empty());
        let target = target.and_then(|t| runs(t, seen).next()).map(|r| r.id.clone());
        let mut config =
            self.container_config(of, &spec, start, &image, &images, target.as_deref()).await.map_err(|e| {
                self.agent.events.warning(of, Some(&spec.name), "Failed", format!("Error: {e}"));
                ("CreateContainerConfigError", e.to_string())
            })?;
        if extra.is_none() {
            self.agent.equip(of, &spec, &mut config).await.map_err(|why| {
                self.agent.events.warning(of, Some(&spec.name), "Failed", format!("Error: {why}"));
                ("CreateContainerConfigError", why)
            })?;
        }
        self.inject_devices(of, &spec, &mut config).map_err(|why| {
            self.agent.events.warning(of, Some(&spec.name), "Failed", format!("Error: {why}"));
            ("CreateContainerConfigError", why)
        })?;
        self.count_restart(&start.name, seen);
        let id = self.create_and_start(of, &spec, config, sandbox).await?;
        self.first_hook(of, &spec, &id).await
    }

    /// Adds the claimed devices, and what all named devices need.
    fn inject_devices(&self, of: &Pod, spec: &Container, config: &mut cri::ContainerConfig) -> Result<(), String> {
        if let Some(ready) = &self.claims {
            let ids = claims::devices_of(of, spec, ready);
            config.cdi_devices.extend(ids.into_iter().map(|name| cri::CdiDevice { name }));
        }
        claims::cdi::inject(config, self.agent.features.lock().devices, &self.agent.config.cdi_dirs)
    }

    /// Removes the oldest runs, and one that was made and never started.
    async fn make_room(&self, start: &Start, seen: &Running) -> Result<(), tonic::Status> {
        if let Some(id) = &start.remove {
            self.agent.runtime.remove_container(id).await?;
        }
        let kept = runs(&start.name, seen).filter(|r| Some(&r.id) != start.remove.as_ref()).skip(KEPT_RUNS);
        for old in kept {
            self.agent.runtime.remove_container(&old.id).await?;
            // Logs of removed runs go with them.
            if !old.log_path.is_empty() {
                let _ = std::fs::remove_file(&old.log_path);
            }
        }
        Ok(())
    }

    /// Remembers that a container starts once more, for the pause before the next time.
    fn count_restart(&mut self, name: &str, seen: &Running) {
        let Some(last) = runs(name, seen).next() else { return };
        let attempt = last.metadata.as_ref().map_or(0, |m| m.attempt);
        let at = now();
        let delay = match self.crashes.get(name) {
            Some(crash) if at - crash.at > BACK_OFF.2 => BACK_OFF.0,
            Some(crash) => (crash.delay * 2).min(BACK_OFF.1),
            None if (last.finished_at - last.started_at) / 1_000_000_000 >= BACK_OFF.2 => BACK_OFF.0,
            None => (BACK_OFF.0 << attempt.min(5)).min(BACK_OFF.1),
        };
        self.crashes.insert(name.to_owned(), Crash { delay, at });
    }

    async fn container_config(
        &self,
        of: &Pod,
        spec: &Container,
        start: &Start,
        image: &cri::Image,
        images: &HashMap<String, String>,
        target: Option<&str>,
    ) -> Result<cri::ContainerConfig, SpecError> {
        let facts = self.facts();
        let namespace = text(of.metadata.namespace.as_ref());
        // Static pods do not wait for the API.
        let waits = !self.agent.pods.is_static(&self.uid);
        if waits && tokio::time::timeout(SERVICES, self.agent.services.synced()).await.is_err() {
            return Err(SpecError::new("services have not yet been read at least once, cannot construct envvars"));
        }
        let services = self.agent.services.list();
        let links = of.spec.as_ref().and_then(|s| s.enable_service_links).unwrap_or(true);
        let services = env::of_services(services.iter().map(AsRef::as_ref), &namespace, links);
        let sources = Sources { objects: &self.agent.objects, facts: &facts, services };
        let variables = env::variables(of, spec, &sources).await?;
        let known: BTreeMap<String, String> = variables.iter().map(|v| (v.key.clone(), v.value.clone())).collect();
        let dir = self.dir();
        let places = self.places.clone().unwrap_or_default();
        let with = volumes::Mounting {
            dir: &dir,
            variables: &known,
            images,
            recursive: self.agent.mounts_recursively(of).await?,
        };
        let mut mounts = volumes::mounts_of(of, spec, &places, &with)?;
        let ids = self.user_ids(of)?;
        if let Some(first) = ids {
            // Files that belong to root in the pod belong to root on the node too, although the users are different ones.
            for mount in mounts.iter_mut().filter(|m| m.image.is_none()) {
                (mount.uid_mappings, mount.gid_mappings) = (mappings(first), mappings(first));
            }
        }
        self.own_files(of, spec, start.attempt, &mut mounts)?;
        let parts = container::Parts {
            attempt: start.attempt,
            variables,
            mounts,
            devices: volumes::devices_of(spec, &places)?,
            image,
            target: target.filter(|_| start.sort == Sort::Ephemeral),
            memory: &self.agent.memory_site(),
            ids,
        };
        container::config(of, spec, parts)
    }

    /// The hosts file and the file for the last word.
    fn own_files(&self, of: &Pod, spec: &Container, attempt: u32, mounts: &mut Vec<Mount>) -> Result<(), SpecError> {
        let dir = self.dir();
        std::fs::create_dir_all(&dir)?;
        let mut add = |path: &Path, at: &str| {
            let host_path = path.to_string_lossy().into_owned();
            mounts.push(Mount { container_path: at.into(), host_path, ..Mount::default() });
        };
        let message = message_file(&dir, &spec.name, attempt);
        if let Some(parent) = message.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&message, "")?;
        // A container of any user may write its last word.
        std::fs::set_permissions(&message, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
        add(&message, spec.termination_message_path.as_deref().filter(|p| !p.is_empty()).unwrap_or(MESSAGE_PATH));
        let own = spec.volume_mounts.iter().flatten().any(|m| m.mount_path == "/etc/hosts");
        if !own {
            let hosts = dir.join("etc-hosts");
            let of_node = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
            let text = dns::hosts(of, &self.pod_ips(), &self.agent.config.cluster_domain, &of_node)?;
            std::fs::write(&hosts, text)?;
            add(&hosts, "/etc/hosts");
        }
        Ok(())
    }

    async fn create_and_start(
        &self,
        of: &Pod,
        spec: &Container,
        config: cri::ContainerConfig,
        sandbox: &str,
    ) -> Result<String, Refusal> {
        let _permit = self.agent.starting.acquire().await;
        let (events, name) = (&self.agent.events, Some(spec.name.as_str()));
        let mut client = self.agent.runtime.pods.clone();
        let attempt = config.metadata.as_ref().map_or(0, |m| m.attempt);
        let sandbox_config =
            self.sandbox_config(of, attempt).map_err(|e| ("CreateContainerConfigError", e.to_string()))?;
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox.into(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let began = Instant::now();
        let made = client.create_container(request).await;
        *self.in_runtime.lock() += began.elapsed();
        let made = made.map_err(|e| {
            events.warning(of, name, "Failed", format!("Error: {}", e.message()));
            ("CreateContainerError", e.message().to_owned())
        })?;
        let id = made.into_inner().container_id;
        events.normal(of, name, "Created", "Container created");
        let request = cri::StartContainerRequest { container_id: id.clone() };
        let began = Instant::now();
        let started = client.start_container(request).await;
        *self.in_runtime.lock() += began.elapsed();
        started.map_err(|e| {
            events.warning(of, name, "Failed", format!("Error: {}", e.message()));
            ("RunContainerError", e.message().to_owned())
        })?;
        events.normal(of, name, "Started", "Container started");
        Ok(id)
    }

    /// The hook after the start: until it has ended the container does not count as started.
    async fn first_hook(&mut self, of: &Pod, spec: &Container, id: &str) -> Result<(), Refusal> {
        let Some(hook) = spec.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) else { return Ok(()) };
        self.hooking.insert(id.to_owned());
        let target = Target {
            runtime: self.agent.runtime.clone(),
            id: id.to_owned(),
            ip: self.pod_ips().first().cloned().unwrap_or_default(),
            container: spec.clone(),
        };
        let result = target.hook(hook, HOOK).await;
        self.hooking.remove(id);
        if let Err(error) = result {
            let message = format!("PostStartHook failed: {error}");
            self.agent.events.warning(of, Some(&spec.name), "FailedPostStartHook", message.clone());
            let stopped = self.agent.runtime.stop(id, pod::grace(of)).await;
            stopped.map_err(|e| ("PostStartHookError", e.message().to_owned()))?;
            tracing::info!(pod = pod::title(of), container = spec.name, message, "its first hook failed");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn last_words() {
        let dir = tempfile::tempdir().unwrap();
        let container = |policy: &str| -> Container {
            serde_json::from_value(json!({"name": "c", "terminationMessagePolicy": policy})).unwrap()
        };
        let log = dir.path().join("log");
        std::fs::write(&log, "t stdout F one\nt stderr F two words\n").unwrap();
        let mut run = Run { sandbox: String::new(), status: cri::ContainerStatus::default() };
        run.status.log_path = log.display().to_string();
        run.status.exit_code = 1;
        assert_eq!(last_word(dir.path(), &container("File"), &run), None);
        assert_eq!(last_word(dir.path(), &container("FallbackToLogsOnError"), &run).as_deref(), Some("one\ntwo words"));
        let file = message_file(dir.path(), "c", 0);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, "bye").unwrap();
        assert_eq!(last_word(dir.path(), &container("FallbackToLogsOnError"), &run).as_deref(), Some("bye"));
    }
}
