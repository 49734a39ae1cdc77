//! One worker for each pod: it looks at what should be and at what runs, takes the next steps, reports, and waits until
//! something changes. All that it remembers can be had again, so that it may be started anew at any point.

mod launch;
pub mod plan;
mod pull;
mod resize;
mod stop;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};
use keelson_proto::cri::{ContainerState, PodSandboxState};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::agent::Agent;
use crate::claims::{self, Ready};
use crate::cri::{Run, Running};
use crate::handler::Target;
use crate::pod_status::{Doom, View};
use crate::probe::{Context, Probing};
use crate::resize::Verdict;
use crate::spec::fields::Facts;
use crate::spec::pod::{self, Sort};
use crate::spec::{SpecError, dns, sandbox, security};
use crate::volumes::certificates::Certificates;
use crate::volumes::sources::{Sources, Tokens};
use crate::volumes::{self, Places};
use crate::{cgroup, userns};
use plan::{Memory, Plan, Waiting};

/// Volumes are looked at anew after this time: tokens run out.
const REFRESH: Duration = Duration::from_secs(60);
/// A pod with which nothing is to be done is looked at after this time all the same.
const IDLE: Duration = Duration::from_secs(600);
/// A resize for which there is no room is looked at again after this time.
const RESIZE_AGAIN: Duration = Duration::from_secs(10);
/// The first pause after something failed, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// The first pause between two runs of a container, the longest, and the time after which all is forgiven, seconds.
const BACK_OFF: (i64, i64, i64) = (10, 300, 600);

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
    /// A storage driver did not take a volume back.
    #[error("{0}")]
    Volume(#[from] SpecError),
    /// Containers were told to stop and did not.
    #[error("containers still run after they were stopped")]
    StillRuns,
}

/// When the next step is due at the latest.
enum Next {
    /// After this time.
    In(Duration),
    /// Never: nothing is left of the pod.
    Gone,
}

/// The pause of a container that ends again and again.
struct Crash {
    delay: i64,
    /// Second of the last new start.
    at: i64,
}

/// A start that failed before there was a container.
struct Failure {
    count: u32,
    at: Instant,
    reason: &'static str,
    message: String,
}

impl Failure {
    fn pause(&self) -> Duration {
        Duration::from_secs((10_u64 << (self.count - 1).min(5)).min(300))
    }
}

/// What changes the files of volumes and the variables of containers: the version of config maps and secrets, and what
/// the pod tells of itself.
#[derive(Default, PartialEq, Eq)]
struct Ingredients {
    objects: u64,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

/// The worker.
pub struct Worker {
    agent: Arc<Agent>,
    uid: String,
    wake: Arc<Notify>,
    /// The pod as it was last seen, for what comes after its end.
    last: Option<Arc<Pod>>,
    places: Option<Places>,
    /// The claims that are ready.
    claims: Option<Ready>,
    /// When the volumes were brought up to date.
    refreshed: Instant,
    /// What volumes and variables were made from.
    made_from: Ingredients,
    tokens: Arc<Tokens>,
    certificates: Arc<Certificates>,
    /// Addresses by sandbox.
    addresses: Option<(String, Vec<String>)>,
    failures: HashMap<String, Failure>,
    /// What was told of containers last, by name.
    told: HashMap<String, String>,
    crashes: HashMap<String, Crash>,
    /// By the run's id.
    probes: HashMap<String, Probing>,
    /// Runs whose first hook has not ended.
    hooking: HashSet<String>,
    /// When the pod came, until it runs, and how long the runtime has worked on it since.
    coming: Option<Instant>,
    in_runtime: Mutex<Duration>,
    /// How a change of resources stands that the status does not show yet.
    resizing: Option<Verdict>,
}

/// Works on a pod until nothing is left of it.
pub async fn run(agent: Arc<Agent>, uid: String, wake: Arc<Notify>) {
    let mut worker = Worker {
        agent: agent.clone(),
        uid: uid.clone(),
        wake: wake.clone(),
        last: None,
        places: None,
        claims: None,
        refreshed: Instant::now(),
        made_from: Ingredients::default(),
        tokens: Arc::default(),
        certificates: Arc::default(),
        addresses: None,
        failures: HashMap::new(),
        told: HashMap::new(),
        crashes: HashMap::new(),
        probes: HashMap::new(),
        hooking: HashSet::new(),
        coming: Some(Instant::now()),
        in_runtime: Mutex::default(),
        resizing: None,
    };
    let mut failed = 0;
    loop {
        let pause = match worker.step().await {
            Ok(Next::Gone) if agent.pods.end(&uid) => {
                agent.probe_counts.forget(&uid);
                return agent.manifests_changed.notify_one();
            }
            Ok(Next::Gone) => Duration::ZERO,
            Ok(Next::In(pause)) => {
                failed = 0;
                pause
            }
            Err(error) => {
                let title = worker.last.as_ref().map_or(uid.clone(), |p| pod::title(p));
                tracing::warn!(pod = title, %error, "a step of a pod failed; it is tried again");
                failed += 1;
                RETRY.0.saturating_mul(1 << (failed - 1).min(6)).min(RETRY.1)
            }
        };
        tokio::select! {
            () = wake.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

fn now() -> i64 {
    Timestamp::now().as_second()
}

impl Memory for Worker {
    fn started(&self, run: &Run) -> bool {
        !self.hooking.contains(&run.id) && self.probes.get(&run.id).is_some_and(|p| p.found().started)
    }

    fn hopeless(&self, run: &Run) -> Option<&'static str> {
        self.probes.get(&run.id)?.found().hopeless
    }

    fn pause(&self, run: &Run) -> Option<(i64, i64)> {
        let metadata = run.metadata.as_ref()?;
        let delay = match self.crashes.get(&metadata.name) {
            Some(crash) if now() - crash.at > BACK_OFF.2 => return None,
            Some(crash) => crash.delay,
            // After a new start of the agent the number of runs tells how bad it was.
            None if metadata.attempt == 0 => return None,
            None if (run.finished_at - run.started_at) / 1_000_000_000 >= BACK_OFF.2 => return None,
            None => (BACK_OFF.0 << (metadata.attempt - 1).min(5)).min(BACK_OFF.1),
        };
        let left = run.finished_at / 1_000_000_000 + delay - now();
        (left > 0).then_some((left, delay))
    }
}

impl Worker {
    /// The pod's directory on the node.
    fn dir(&self) -> PathBuf {
        self.agent.pod_dir(&self.uid)
    }

    async fn look(&self) -> Result<Running, tonic::Status> {
        let seen = self.agent.runtime.pod(&self.uid).await?;
        self.agent.saw(&self.uid, &seen);
        Ok(seen)
    }

    async fn step(&mut self) -> Result<Next, StepError> {
        let seen = self.look().await?;
        match self.agent.pods.get(&self.uid) {
            None => {
                self.stop_all(self.last.clone().as_deref(), &seen).await?;
                self.remove_all().await?;
                Ok(Next::Gone)
            }
            Some(of) => {
                self.last = Some(of.clone());
                if of.metadata.deletion_timestamp.is_some() {
                    return self.terminate(&of, &seen).await;
                }
                if pod::is_finished(&of) {
                    return self.rest(&of, &seen).await;
                }
                if let Some(doom) = self.doom(&of) {
                    return self.fail(&of, &seen, &doom).await;
                }
                self.sync(&of, seen).await
            }
        }
    }

    /// Why the node must end the pod, if it must.
    fn doom(&self, of: &Pod) -> Option<Doom> {
        if let Some(doom) = self.agent.pods.doom(&self.uid) {
            return Some(doom);
        }
        let left = deadline(of)?;
        let message = "Pod was active on the node longer than the specified deadline";
        (left <= 0).then(|| Doom::new("DeadlineExceeded", message))
    }

    /// Brings a living pod forward.
    async fn sync(&mut self, of: &Arc<Pod>, mut seen: Running) -> Result<Next, StepError> {
        if let Some(doom) = self.agent.admit(of, &seen).await? {
            self.agent.pods.condemn(&self.uid, doom);
            return Ok(Next::In(Duration::ZERO));
        }
        let of = &self.judge_resize(of);
        let mut waiting = Waiting::new();
        let newest = seen.sandboxes.first().map(|s| s.id.clone()).unwrap_or_default();
        if seen.sandbox().is_none() && plan::plan(of, &seen, &newest, self).over {
            return self.complete(of, &seen).await;
        }
        let sandbox = self.prepare(of, &mut seen, &mut waiting).await?;
        let mut again = None;
        if let Some(sandbox) = &sandbox {
            self.clear_old(&seen, sandbox).await?;
            self.follow_probes(of, &seen);
            let plan = plan::plan(of, &seen, sandbox, self);
            if plan.over {
                return self.complete(of, &seen).await;
            }
            again = plan.again;
            waiting.extend(plan.waiting.clone());
            self.tell_of_crashes(of, &plan, &seen);
            let resized = self.carry_out_resize(of, &seen).await;
            if self.carry_out(of, &plan, &seen, sandbox, &mut waiting).await? || resized {
                seen = self.look().await?;
                self.follow_probes(of, &seen);
            }
        }
        self.report(of, &seen, &waiting, None).await?;
        self.measure_start(of);
        let mut pause = if sandbox.is_some() { REFRESH } else { RETRY.0 * 2 };
        if self.resizing.is_some() {
            pause = pause.min(RESIZE_AGAIN);
        }
        pause = again.map_or(pause, |s| pause.min(Duration::from_secs(s.max(1).unsigned_abs())));
        pause = deadline(of).map_or(pause, |s| pause.min(Duration::from_secs(s.max(1).unsigned_abs())));
        let left = self.failures.values().map(|f| f.pause().saturating_sub(f.at.elapsed()));
        Ok(Next::In(left.fold(pause, Duration::min).max(Duration::from_millis(100))))
    }

    /// Tells once for each run that ended that the next one has to wait.
    fn tell_of_crashes(&mut self, of: &Pod, plan: &Plan, seen: &Running) {
        for name in plan.waiting.keys() {
            let Some(run) = plan::runs(name, seen).next() else { continue };
            let (namespace, pod) = (of.metadata.namespace.as_deref(), of.metadata.name.as_deref());
            let title = format!("{}_{}({})", pod.unwrap_or_default(), namespace.unwrap_or_default(), self.uid);
            let message = format!("Back-off restarting failed container {name} in pod {title}");
            self.tell_once(name, &run.id, |events| events.warning(of, Some(name), "BackOff", message));
        }
    }

    /// Notes how long a new pod took until the API was told that it runs.
    fn measure_start(&mut self, of: &Pod) {
        let current = self.agent.pods.get(&self.uid);
        let running = current.and_then(|p| p.status.as_ref()?.phase.clone()).is_some_and(|phase| phase == "Running");
        let Some(came) = self.coming.filter(|_| running) else { return };
        self.coming = None;
        let (whole, runtime) = (came.elapsed(), *self.in_runtime.lock());
        // What ran before the agent did not start now, and what waits for an image tells of the network.
        if runtime.is_zero() || !self.failures.is_empty() {
            return;
        }
        tracing::debug!(pod = pod::title(of), ?whole, ?runtime, "started");
        self.agent.starts.note(whole, runtime);
    }

    /// Does what the plan says. Returns whether anything changed.
    async fn carry_out(
        &mut self,
        of: &Arc<Pod>,
        plan: &Plan,
        seen: &Running,
        sandbox: &str,
        waiting: &mut Waiting,
    ) -> Result<bool, StepError> {
        let mut changed = false;
        let stops = plan.stop.iter().filter_map(|stop| {
            let run = seen.containers.iter().find(|r| r.id == stop.id)?;
            let container = pod::find(of, &stop.name).map(|(_, c)| c)?;
            let probe = match stop.probe {
                Some("startup") => container.startup_probe.as_ref(),
                Some(_) => container.liveness_probe.as_ref(),
                None => None,
            };
            Some(self.stop_one(Some(of), run, pod::probe_grace(of, probe), &stop.why))
        });
        let stopped = futures::future::try_join_all(stops).await?;
        changed |= !stopped.is_empty();
        for start in &plan.start {
            if self.agent.pods.get(&self.uid).is_none_or(|p| p.metadata.deletion_timestamp.is_some()) {
                break;
            }
            match self.launch(of, start, seen, sandbox).await {
                Ok(()) => changed = true,
                Err((reason, message)) => {
                    waiting.insert(start.name.clone(), (reason.into(), message));
                }
            }
        }
        Ok(changed)
    }

    /// Sandbox and volumes. Returns the sandbox if both are there.
    async fn prepare(
        &mut self,
        of: &Arc<Pod>,
        seen: &mut Running,
        waiting: &mut Waiting,
    ) -> Result<Option<String>, StepError> {
        let present = seen.sandbox().map(|s| s.id.clone());
        if present.is_none() {
            if !seen.sandboxes.is_empty() {
                let message = "Pod sandbox changed, it will be killed and re-created.";
                self.agent.events.normal(of, None, "SandboxChanged", message);
            }
            // What is left of an earlier sandbox has no network any more.
            self.stop_all(Some(of), seen).await?;
            for old in &seen.sandboxes {
                self.agent.runtime.stop_sandbox(&old.id).await?;
            }
            if let Err(error) = cgroup::create(of) {
                tracing::debug!(pod = pod::title(of), %error, "the pod's control group could not be set up");
            }
        }
        if !self.prepare_claims(of, present.is_some()).await {
            self.report(of, seen, waiting, None).await?;
            return Ok(None);
        }
        let ingredients = self.ingredients(of);
        let changed = self.made_from != ingredients;
        if changed {
            // What was missing may be there now.
            self.failures.retain(|_, failure| failure.reason != "CreateContainerConfigError");
        }
        let stale = self.places.is_none() || changed || self.refreshed.elapsed() >= REFRESH;
        // The API hears that the pod is worked on while it is.
        let told = async { if present.is_none() { self.report(of, seen, waiting, None).await } else { Ok(()) } };
        let volumes =
            async { if stale { Some(volumes::set_up(of, &self.dir(), &self.sources(of)).await) } else { None } };
        let sandbox = async {
            match &present {
                Some(id) => Ok(id.clone()),
                None => self.new_sandbox(of, seen).await,
            }
        };
        let (told, volumes, sandbox) = tokio::join!(told, volumes, sandbox);
        told?;
        let sandbox = sandbox.inspect_err(|why| {
            let message = format!("Failed to create pod sandbox: {why}");
            self.agent.events.warning(of, None, "FailedCreatePodSandBox", message);
        });
        if let Some(result) = volumes
            && !self.take_volumes(of, result, ingredients)
        {
            return Ok(None);
        }
        match sandbox {
            Ok(id) => {
                self.learn_addresses(of, &id).await?;
                if present.is_none() {
                    *seen = self.look().await?;
                }
                Ok(Some(id))
            }
            Err(why) => {
                tracing::warn!(pod = pod::title(of), error = %why, "the sandbox could not be made");
                Ok(None)
            }
        }
    }

    /// Takes volumes that were set up or brought up to date. False if the pod has none yet.
    fn take_volumes(&mut self, of: &Pod, result: Result<Places, SpecError>, made_from: Ingredients) -> bool {
        match result {
            Ok(places) => {
                self.places = Some(places);
                (self.refreshed, self.made_from) = (Instant::now(), made_from);
            }
            Err(why) => {
                self.agent.events.warning(of, None, "FailedMount", why.to_string());
                tracing::info!(pod = pod::title(of), error = %why, "volumes are not there yet");
            }
        }
        self.places.is_some()
    }

    /// Makes the pod's claims ready, if they are not. A sandbox that is up was made after they were.
    async fn prepare_claims(&mut self, of: &Pod, up: bool) -> bool {
        if !claims::wants(of) || (up && self.claims.is_some()) {
            return true;
        }
        match self.agent.claims.prepare(&self.agent.config.client, of, up).await {
            Ok(ready) => {
                self.claims = Some(ready);
                true
            }
            Err(why) => {
                let message = format!("Failed to prepare dynamic resources: {why}");
                tracing::info!(pod = pod::title(of), error = %why, "claims are not ready yet");
                self.agent.events.warning(of, None, "FailedPrepareDynamicResources", message);
                false
            }
        }
    }

    fn ingredients(&self, of: &Pod) -> Ingredients {
        let meta = &of.metadata;
        Ingredients {
            objects: self.agent.objects_version.load(Ordering::Relaxed),
            labels: meta.labels.clone().unwrap_or_default(),
            annotations: meta.annotations.clone().unwrap_or_default(),
        }
    }

    async fn new_sandbox(&self, of: &Pod, seen: &Running) -> Result<String, SpecError> {
        let handler = self.agent.runtime_handler(of).await?;
        let features = self.agent.features.lock().clone();
        if let Some(why) = security::refusals(of, &features, &handler) {
            return Err(SpecError::new(why));
        }
        let attempt = seen.sandboxes.iter().filter_map(|s| s.metadata.as_ref()).map(|m| m.attempt + 1).max();
        let config = self.sandbox_config(of, attempt.unwrap_or(0))?;
        std::fs::create_dir_all(&config.log_directory)?;
        let _permit = self.agent.starting.acquire().await;
        let request = keelson_proto::cri::RunPodSandboxRequest { config: Some(config), runtime_handler: handler };
        let began = Instant::now();
        let made = self.agent.runtime.pods.clone().run_pod_sandbox(request).await;
        *self.in_runtime.lock() += began.elapsed();
        let made = made.map_err(|status| {
            SpecError::new(format!("rpc error: code = {:?} desc = {}", status.code(), status.message()))
        })?;
        Ok(made.into_inner().pod_sandbox_id)
    }

    fn sandbox_config(&self, of: &Pod, attempt: u32) -> Result<keelson_proto::cri::PodSandboxConfig, SpecError> {
        let config = &self.agent.config;
        let node = dns::parse(&std::fs::read_to_string(&config.resolv_conf).unwrap_or_default());
        let site = sandbox::Site {
            logs: &pod::log_directory(&config.log_dir, of),
            attempt,
            dns: dns::config(of, config.cluster_dns, &config.cluster_domain, &node)?,
            domain: &config.cluster_domain,
            cgroup: cgroup::path(of),
            ids: self.user_ids(of)?,
        };
        sandbox::config(of, site)
    }

    /// The first id of the pod's own user namespace, if it has one.
    fn user_ids(&self, of: &Pod) -> Result<Option<u32>, SpecError> {
        if of.spec.as_ref().and_then(|s| s.host_users) != Some(false) {
            return Ok(None);
        }
        let _turn = self.agent.user_ids.lock();
        Ok(Some(userns::range(&self.agent.config.data_dir.join("pods"), &self.uid)?))
    }

    async fn learn_addresses(&mut self, of: &Pod, sandbox: &str) -> Result<(), StepError> {
        if self.addresses.as_ref().is_some_and(|(of, _)| of == sandbox) {
            return Ok(());
        }
        let addresses =
            if pod::host_network(of) { self.agent.host_ips() } else { self.agent.runtime.addresses(sandbox).await? };
        self.addresses = Some((sandbox.to_owned(), addresses));
        Ok(())
    }

    fn pod_ips(&self) -> Vec<String> {
        self.addresses.as_ref().map(|(_, ips)| ips.clone()).unwrap_or_default()
    }

    fn facts(&self) -> Facts {
        Facts { host_ips: self.agent.host_ips(), pod_ips: self.pod_ips(), ..self.agent.facts() }
    }

    fn sources(&self, of: &Pod) -> Sources {
        let mut facts = self.facts();
        if facts.pod_ips.is_empty() {
            // A pod that ran before the agent: its volumes must not lose the address.
            let status = of.status.as_ref().and_then(|s| s.pod_ips.as_ref());
            facts.pod_ips = status.into_iter().flatten().map(|ip| ip.ip.clone()).collect();
        }
        Sources {
            client: self.agent.config.client.clone(),
            objects: self.agent.objects.clone(),
            facts,
            tokens: self.tokens.clone(),
            certificates: self.certificates.clone(),
            node_uid: self.agent.node_uid.lock().clone(),
            csi: self.agent.csi.clone(),
        }
    }

    /// Lets every running container be probed, and nothing else.
    fn follow_probes(&mut self, of: &Arc<Pod>, seen: &Running) {
        let up: HashSet<&str> = seen.up().map(|r| r.id.as_str()).collect();
        self.probes.retain(|id, _| up.contains(id.as_str()));
        self.hooking.retain(|id| up.contains(id.as_str()));
        for run in seen.up() {
            if self.probes.contains_key(&run.id) {
                continue;
            }
            let name = run.metadata.as_ref().map(|m| m.name.as_str()).unwrap_or_default();
            let Some((sort, container)) = pod::find(of, name) else { continue };
            let mut container = container.clone();
            if sort == Sort::Init {
                (container.startup_probe, container.liveness_probe, container.readiness_probe) = (None, None, None);
            }
            let context = Context {
                target: Target {
                    runtime: self.agent.runtime.clone(),
                    id: run.id.clone(),
                    ip: self.pod_ips().first().cloned().unwrap_or_default(),
                    container,
                },
                pod: of.clone(),
                events: self.agent.events.clone(),
                counts: self.agent.probe_counts.clone(),
                wake: self.wake.clone(),
                started_at: Timestamp::from_nanosecond(run.started_at.into()).unwrap_or(Timestamp::UNIX_EPOCH),
                before: before(of, &run.id),
            };
            self.probes.insert(run.id.clone(), Probing::start(context));
        }
    }

    fn status(
        &self,
        of: &Pod,
        seen: &Running,
        waiting: &Waiting,
        doom: Option<&Doom>,
    ) -> serde_json::Result<PodStatus> {
        let found = |run: &Run| {
            let found = self.probes.get(&run.id).map(Probing::found).unwrap_or_default();
            let hooked = !self.hooking.contains(&run.id);
            (found.started && hooked, found.ready && hooked)
        };
        let addresses = if seen.sandbox().is_some() { self.pod_ips() } else { Vec::new() };
        let host_ips = self.agent.host_ips();
        let message = |container: &Container, run: &Run| launch::last_word(&self.dir(), container, run);
        let view = View {
            pod: of,
            seen,
            waiting,
            found: &found,
            message: &message,
            host_ips: &host_ips,
            addresses: &addresses,
            doom,
            runtime: &self.agent.features.lock().runtime.clone(),
            resizing: self.resizing.as_ref(),
        };
        view.status()
    }

    async fn report(&self, of: &Pod, seen: &Running, waiting: &Waiting, doom: Option<&Doom>) -> Result<(), StepError> {
        // A second report of the same step goes on from the first, or the API would refuse it as outdated.
        let newer = self.agent.pods.newer(of);
        let newer = newer.filter(|_| !self.resizing.as_ref().is_some_and(Verdict::is_pending));
        let of = newer.as_deref().unwrap_or(of);
        let status = self.status(of, seen, waiting, doom)?;
        Ok(self.agent.report(of, status).await?)
    }
}

/// Seconds until the pod's own deadline.
fn deadline(of: &Pod) -> Option<i64> {
    let seconds = of.spec.as_ref()?.active_deadline_seconds?;
    let start = of.status.as_ref()?.start_time.as_ref()?;
    Some(start.0.as_second() + seconds - now())
}

/// What the API knows of this very run: started and ready.
fn before(of: &Pod, id: &str) -> Option<(bool, bool)> {
    let status = of.status.as_ref()?;
    let lists = [&status.container_statuses, &status.init_container_statuses];
    let known = lists.into_iter().flatten().flatten();
    let mut known = known.filter(|c| c.container_id.as_deref().is_some_and(|i| i.ends_with(id)));
    known.next().map(|c| (c.started == Some(true), c.ready))
}

/// Whether the sandbox still has its network.
fn is_up(sandbox: &keelson_proto::cri::PodSandbox) -> bool {
    sandbox.state() == PodSandboxState::SandboxReady
}

/// Whether the run has not ended.
fn is_running(run: &Run) -> bool {
    run.state() == ContainerState::ContainerRunning
}
