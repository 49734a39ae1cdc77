//! What the agent reports of a pod, computed from what the runtime says. Pure.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus, VolumeMount};
use keelson_proto::cri::ContainerState;
use serde_json::{Value, json};

use crate::cri::{Run, Running};
use crate::resize::{self, Verdict};
use crate::spec::pod::{self, Sort};
use crate::spec::resources;
use crate::worker::plan::{Waiting, runs};

/// Conditions that the agent owns; others stay as they are.
const OURS: [&str; 5] = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

/// The condition of pods that are ended for the sake of others.
const DISRUPTION: &str = "DisruptionTarget";

/// Why a pod was ended by the node: reason and message of its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doom {
    /// `DeadlineExceeded`, `Evicted` and so on.
    pub reason: crate::events::Reason,
    /// For people.
    pub message: String,
    /// Its grace is at most this, seconds.
    pub grace: Option<i64>,
    /// Whether the node ends it for the sake of others: failures of jobs are not counted then.
    pub disrupts: bool,
}

impl Doom {
    /// An end by the pod's own doing, within the pod's own grace.
    pub fn new(reason: impl Into<crate::events::Reason>, message: impl Into<String>) -> Self {
        Self { reason: reason.into(), message: message.into(), grace: None, disrupts: false }
    }

    /// Within so many seconds.
    pub fn within(self, seconds: i64) -> Self {
        Self { grace: Some(seconds), ..self }
    }

    /// For the sake of others.
    pub fn disrupting(self) -> Self {
        Self { disrupts: true, ..self }
    }
}

/// What the status is made from.
pub struct View<'a> {
    /// The pod, with the status that the API has.
    pub pod: &'a Pod,
    /// What runs.
    pub seen: &'a Running,
    /// Why containers wait.
    pub waiting: &'a Waiting,
    /// Whether a run has started and is ready, as its probes say.
    pub found: &'a dyn Fn(&Run) -> (bool, bool),
    /// What a run left as its last word.
    pub message: &'a dyn Fn(&Container, &Run) -> Option<String>,
    /// The node's addresses.
    pub host_ips: &'a [String],
    /// The pod's addresses; empty while there is no sandbox.
    pub addresses: &'a [String],
    /// Why the node ended the pod, if it did.
    pub doom: Option<&'a Doom>,
    /// The runtime's name, which is a part of containers' ids.
    pub runtime: &'a str,
    /// How a change of its resources stands, if one is asked for.
    pub resizing: Option<&'a Verdict>,
}

/// A time of the runtime; it has none of containers that it lost with the machine's power.
fn time(nanoseconds: i64) -> Option<String> {
    let known = (nanoseconds > 0).then(|| Timestamp::from_nanosecond(nanoseconds.into()).ok()).flatten();
    known.map(|time| format!("{time:.0}"))
}

fn now() -> String {
    format!("{:.0}", Timestamp::now())
}

/// How volumes are mounted: whether read-only mounts are so with all that is mounted below them is known from the run.
fn mounts(spec: &Container, run: Option<&Run>) -> Vec<Value> {
    let deep = |path: &str| {
        let mounted = run.into_iter().flat_map(|run| &run.mounts);
        mounted.into_iter().any(|m| m.recursive_read_only && m.container_path == path)
    };
    let one = |mount: &VolumeMount| {
        let mut value = json!({"name": mount.name, "mountPath": mount.mount_path});
        if mount.read_only == Some(true) {
            value["readOnly"] = true.into();
            let enabled = mount.recursive_read_only.as_deref() == Some("Enabled") || deep(&mount.mount_path);
            value["recursiveReadOnly"] = if enabled { "Enabled" } else { "Disabled" }.into();
        }
        value
    };
    spec.volume_mounts.iter().flatten().map(one).collect()
}

impl View<'_> {
    fn terminated(&self, container: &Container, run: &Run) -> Value {
        let usual = if run.exit_code == 0 { "Completed" } else { "Error" };
        let message = if run.message.is_empty() { (self.message)(container, run) } else { Some(run.message.clone()) };
        json!({"terminated": {
            "exitCode": run.exit_code,
            "reason": if run.reason.is_empty() { usual } else { &run.reason },
            "message": message,
            "startedAt": time(run.started_at), "finishedAt": time(run.finished_at),
            "containerID": format!("{}://{}", self.runtime, run.id),
        }})
    }

    fn container(&self, sort: Sort, spec: &Container, initialized: bool) -> Value {
        let mut runs = runs(&spec.name, self.seen);
        let (newest, previous) = (runs.next(), runs.next());
        let idle = if sort == Sort::Main && !initialized { "PodInitializing" } else { "ContainerCreating" };
        let idle = if matches!(sort, Sort::Init | Sort::Sidecar) { "PodInitializing" } else { idle };
        let wait = || match self.waiting.get(&spec.name) {
            Some((reason, message)) if message.is_empty() => json!({"waiting": {"reason": reason}}),
            Some((reason, message)) => json!({"waiting": {"reason": reason, "message": message}}),
            None => json!({"waiting": {"reason": idle}}),
        };
        let mut last = previous.map_or_else(|| json!({}), |run| self.terminated(spec, run));
        let mut started = false;
        let mut ready = false;
        let state = match newest.map(|n| (n, n.state())) {
            Some((run, ContainerState::ContainerRunning)) => {
                (started, ready) = (self.found)(run);
                ready &= sort != Sort::Init;
                json!({"running": {"startedAt": time(run.started_at)}})
            }
            Some((run, ContainerState::ContainerExited)) if self.waiting.contains_key(&spec.name) => {
                last = self.terminated(spec, run);
                wait()
            }
            Some((run, ContainerState::ContainerExited)) => {
                ready = sort == Sort::Init && run.exit_code == 0;
                self.terminated(spec, run)
            }
            _ => wait(),
        };
        let attempt = newest.and_then(|n| n.metadata.as_ref()).map(|m| i64::from(m.attempt));
        let mut value = json!({
            "name": spec.name, "image": spec.image, "imageID": newest.map_or("", |n| &n.image_ref),
            "ready": ready, "started": started,
            "restartCount": attempt.unwrap_or_else(|| self.restarts_before(&spec.name)),
            "state": state, "lastState": last,
        });
        if let Some(newest) = newest {
            value["containerID"] = format!("{}://{}", self.runtime, newest.id).into();
        }
        let mounts = mounts(spec, newest);
        if !mounts.is_empty() {
            value["volumeMounts"] = mounts.into();
        }
        // Only newer runtimes tell it.
        let user = newest.filter(|n| n.state() == ContainerState::ContainerRunning).and_then(|n| n.user.as_ref());
        if let Some(user) = user.and_then(|u| u.linux.as_ref()) {
            let groups = &user.supplemental_groups;
            value["user"] = json!({"linux": {"uid": user.uid, "gid": user.gid, "supplementalGroups": groups}});
        }
        if let Some(resources) = spec.resources.as_ref().filter(|_| sort != Sort::Ephemeral && newest.is_some()) {
            value["resources"] = json!({"limits": resources.limits, "requests": resources.requests});
            value["allocatedResources"] = json!(resources.requests);
        }
        value
    }

    fn restarts_before(&self, name: &str) -> i64 {
        let status = self.pod.status.as_ref();
        let lists = status.map(|s| [&s.container_statuses, &s.init_container_statuses]);
        let found = lists.into_iter().flatten().flatten().flatten().find(|c| c.name == name);
        found.map_or(0, |c| c.restart_count.into())
    }

    /// The pod's phase.
    fn phase(&self) -> &'static str {
        if self.doom.is_some() {
            return "Failed";
        }
        let newest = |c: &Container| runs(&c.name, self.seen).next();
        let over = |sort, c: &Container, run: &Run| {
            run.state() == ContainerState::ContainerExited && !pod::restarts(self.pod, sort, c, run.exit_code)
        };
        let mains: Vec<(&Container, Option<&Run>)> = pod::containers(self.pod).iter().map(|c| (c, newest(c))).collect();
        if mains.iter().all(|(_, run)| run.is_none()) {
            for init in pod::init_containers(self.pod).iter().filter(|c| !pod::is_sidecar(c)) {
                if newest(init).is_some_and(|run| over(Sort::Init, init, run) && run.exit_code != 0) {
                    return "Failed";
                }
            }
            return "Pending";
        }
        if mains.iter().all(|(c, run)| run.is_some_and(|run| over(Sort::Main, c, run))) {
            let good = mains.iter().all(|(_, run)| run.is_some_and(|run| run.exit_code == 0));
            return if good { "Succeeded" } else { "Failed" };
        }
        let never = |run: &Option<&Run>| run.is_none_or(|r| r.state() == ContainerState::ContainerCreated);
        if mains.iter().any(|(_, run)| never(run)) { "Pending" } else { "Running" }
    }

    fn condition(&self, kind: &str, verdict: Option<(&str, String)>) -> Value {
        let status = if verdict.is_none() { "True" } else { "False" };
        let previous = self.pod.status.as_ref().and_then(|s| s.conditions.as_ref());
        let old = previous.and_then(|p| p.iter().find(|c| c.type_ == kind && c.status == status));
        let since = old.and_then(|c| c.last_transition_time.as_ref()).map_or_else(now, |t| format!("{:.0}", t.0));
        let mut condition = json!({"type": kind, "status": status, "lastProbeTime": null, "lastTransitionTime": since,
            "observedGeneration": self.pod.metadata.generation});
        if let Some((reason, message)) = verdict {
            condition["reason"] = reason.into();
            if !message.is_empty() {
                condition["message"] = message.into();
            }
        }
        condition
    }

    /// A condition that is there only while it holds.
    fn resize_condition(&self, kind: &str, reason: &str, message: &str) -> Value {
        let mut condition = self.condition(kind, None);
        for (key, text) in [("reason", reason), ("message", message)] {
            if !text.is_empty() {
                condition[key] = text.into();
            }
        }
        condition
    }

    /// Readiness gates that other controllers have not opened.
    fn closed_gates(&self) -> Vec<String> {
        let spec = pod::spec(self.pod);
        let conditions = self.pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        let open = |kind: &str| conditions.iter().any(|c| c.type_ == kind && c.status == "True");
        let gates = spec.readiness_gates.into_iter().flatten().map(|g| g.condition_type);
        gates.filter(|kind| !open(kind)).collect()
    }

    fn conditions(&self, phase: &str, init: &[Value], main: &[Value], initialized: bool) -> Vec<Value> {
        let names = |list: &mut dyn Iterator<Item = &Value>| -> String {
            list.filter(|c| c["ready"] != true).filter_map(|c| c["name"].as_str()).collect::<Vec<_>>().join(" ")
        };
        let uninitialized = (!initialized && phase != "Succeeded").then(|| {
            ("ContainersNotInitialized", format!("containers with incomplete status: [{}]", names(&mut init.iter())))
        });
        let ended = matches!(phase, "Succeeded" | "Failed");
        let sidecars = pod::init_containers(self.pod).iter().zip(init).filter(|(c, _)| pod::is_sidecar(c));
        let unready = names(&mut sidecars.map(|(_, status)| status).chain(main));
        let unready = if ended {
            Some((if phase == "Succeeded" { "PodCompleted" } else { "PodFailed" }, String::new()))
        } else if unready.is_empty() && initialized && !main.is_empty() {
            None
        } else {
            Some(("ContainersNotReady", format!("containers with unready status: [{unready}]")))
        };
        let gates = self.closed_gates();
        let gated = (!gates.is_empty()).then(|| {
            ("ReadinessGatesNotReady", format!("the status of pod readiness gates is not \"True\": {gates:?}"))
        });
        let sandbox = (self.addresses.is_empty() || ended).then(|| ("", String::new()));
        let mut conditions = vec![
            self.condition(OURS[0], sandbox),
            self.condition(OURS[1], uninitialized),
            self.condition(OURS[2], unready.clone().or(gated)),
            self.condition(OURS[3], unready),
            self.condition(OURS[4], None),
        ];
        if let Some(first) = conditions.first_mut().and_then(Value::as_object_mut)
            && first.get("reason").is_some_and(|r| r == "")
        {
            first.remove("reason");
        }
        let previous = self.pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        if let Some(verdict) = self.resizing.filter(|_| !ended) {
            let (kind, reason, message) = verdict.condition();
            conditions.push(self.resize_condition(kind, reason, message));
        }
        if let Some(doom) = self.doom.filter(|d| d.disrupts) {
            let mut disruption = self.condition(DISRUPTION, None);
            (disruption["reason"], disruption["message"]) =
                ("TerminationByKubelet".into(), doom.message.clone().into());
            conditions.push(disruption);
        }
        let disrupted = self.doom.is_some_and(|d| d.disrupts);
        let ours = |kind: &str| {
            (kind == DISRUPTION && disrupted)
                || OURS.contains(&kind)
                || [resize::PENDING, resize::IN_PROGRESS].contains(&kind)
        };
        let others = previous.iter().filter(|c| !ours(c.type_.as_str()));
        conditions.extend(others.filter_map(|c| serde_json::to_value(c).ok()));
        conditions
    }

    /// The status of the pod.
    pub fn status(&self) -> Result<PodStatus, serde_json::Error> {
        let previous = self.pod.status.as_ref();
        let phase = self.phase();
        let begun = pod::containers(self.pod).iter().any(|c| runs(&c.name, self.seen).next().is_some());
        let init: Vec<Value> = (pod::init_containers(self.pod).iter())
            .map(|c| self.container(if pod::is_sidecar(c) { Sort::Sidecar } else { Sort::Init }, c, true))
            .collect();
        let no_init = init.is_empty();
        let done = |(c, s): (&Container, &Value)| {
            if pod::is_sidecar(c) { s["started"] == true } else { s["ready"] == true }
        };
        let initialized = begun || pod::init_containers(self.pod).iter().zip(&init).all(done);
        let main: Vec<Value> =
            (pod::containers(self.pod).iter()).map(|c| self.container(Sort::Main, c, no_init || initialized)).collect();
        let extra: Vec<Value> = (pod::ephemeral_containers(self.pod).iter())
            .map(|c| self.container(Sort::Ephemeral, &pod::plain(c), true))
            .collect();
        let start = previous.and_then(|p| p.start_time.as_ref()).map_or_else(now, |t| format!("{:.0}", t.0));
        let listed = |ips: &[String]| -> Vec<Value> { ips.iter().map(|ip| json!({"ip": ip})).collect() };
        // The address stays known after the pod has ended, as upstream keeps it.
        let before = previous.and_then(|p| p.pod_ips.as_ref()).into_iter().flatten().map(|ip| ip.ip.clone());
        let addresses = if self.addresses.is_empty() { before.collect() } else { self.addresses.to_vec() };
        serde_json::from_value(json!({
            "phase": phase,
            "reason": self.doom.map(|d| &d.reason), "message": self.doom.map(|d| &d.message),
            "observedGeneration": self.pod.metadata.generation,
            "conditions": self.conditions(phase, &init, &main, initialized),
            "hostIP": self.host_ips.first(), "hostIPs": listed(self.host_ips),
            "podIP": addresses.first(), "podIPs": listed(&addresses),
            "startTime": start,
            "qosClass": previous.and_then(|p| p.qos_class.clone()).unwrap_or(resources::qos(self.pod).name().into()),
            "nominatedNodeName": previous.and_then(|p| p.nominated_node_name.clone()),
            "resourceClaimStatuses": previous.and_then(|p| p.resource_claim_statuses.clone()),
            "extendedResourceClaimStatus": previous.and_then(|p| p.extended_resource_claim_status.clone()),
            "initContainerStatuses": (!init.is_empty()).then_some(init),
            "containerStatuses": main,
            "ephemeralContainerStatuses": (!extra.is_empty()).then_some(extra),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_proto::cri::{ContainerMetadata, ContainerStatus};

    fn pod(policy: &str, init: bool) -> Pod {
        let mut pod = json!({"metadata": {"name": "p", "uid": "u"},
            "spec": {"restartPolicy": policy, "containers": [{"name": "c", "image": "i"}]}});
        if init {
            pod["spec"]["initContainers"] = json!([{"name": "first", "image": "i"}]);
        }
        serde_json::from_value(pod).unwrap()
    }

    fn run(name: &str, state: ContainerState, exit_code: i32, attempt: u32) -> Run {
        let metadata = Some(ContainerMetadata { name: name.into(), attempt });
        let status = ContainerStatus { id: "x".into(), metadata, state: state.into(), exit_code, ..Default::default() };
        Run { sandbox: "s".into(), status }
    }

    fn status(pod: &Pod, runs: Vec<Run>, waiting: &Waiting, ready: bool, doom: Option<&Doom>) -> PodStatus {
        let seen = Running { sandboxes: vec![], containers: runs };
        let view = View {
            pod,
            seen: &seen,
            waiting,
            found: &|_| (true, ready),
            message: &|_, _| None,
            host_ips: &["10.0.0.1".into()],
            addresses: &["10.244.0.2".into()],
            doom,
            runtime: "containerd",
            resizing: None,
        };
        view.status().unwrap()
    }

    use ContainerState::{ContainerExited as Exited, ContainerRunning as Up};

    #[test]
    fn phases() {
        for (policy, init, runs, phase) in [
            ("Always", false, vec![], "Pending"),
            ("Always", false, vec![run("c", Up, 0, 0)], "Running"),
            ("Always", false, vec![run("c", Exited, 1, 0)], "Running"),
            ("Never", false, vec![run("c", Exited, 1, 0)], "Failed"),
            ("Never", false, vec![run("c", Exited, 0, 0)], "Succeeded"),
            ("OnFailure", false, vec![run("c", Exited, 1, 0)], "Running"),
            ("OnFailure", false, vec![run("c", Exited, 0, 0)], "Succeeded"),
            ("Always", true, vec![run("first", Up, 0, 0)], "Pending"),
            ("Never", true, vec![run("first", Exited, 1, 0)], "Failed"),
            ("Always", true, vec![run("first", Exited, 0, 0), run("c", Up, 0, 0)], "Running"),
        ] {
            let what = format!("{policy} {init} {runs:?}");
            let status = status(&pod(policy, init), runs, &Waiting::new(), true, None);
            assert_eq!(status.phase.as_deref(), Some(phase), "{what}");
        }
    }

    fn holds(status: &PodStatus, kind: &str) -> bool {
        status.conditions.iter().flatten().any(|c| c.type_ == kind && c.status == "True")
    }

    #[test]
    fn readiness_follows_probes_and_gates() {
        let mut pod = pod("Always", false);
        let up = || vec![run("c", Up, 0, 0)];
        assert!(!holds(&status(&pod, up(), &Waiting::new(), false, None), "Ready"));
        assert!(holds(&status(&pod, up(), &Waiting::new(), true, None), "Ready"));
        let gates = serde_json::from_value(json!([{"conditionType": "example.com/open"}])).unwrap();
        pod.spec.as_mut().unwrap().readiness_gates = gates;
        let closed = status(&pod, up(), &Waiting::new(), true, None);
        assert!(!holds(&closed, "Ready") && holds(&closed, "ContainersReady"));
        pod.status =
            serde_json::from_value(json!({"conditions": [{"type": "example.com/open", "status": "True"}]})).unwrap();
        let open = status(&pod, up(), &Waiting::new(), true, None);
        assert!(holds(&open, "Ready") && holds(&open, "example.com/open"));
    }

    #[test]
    fn a_crash_loop_waits_and_remembers() {
        let runs = vec![run("c", Exited, 7, 3)];
        let waiting = Waiting::from([("c".into(), ("CrashLoopBackOff".into(), "back-off 40s".into()))]);
        let status = status(&pod("Always", false), runs, &waiting, true, None);
        let container = &status.container_statuses.unwrap()[0];
        assert_eq!(container.restart_count, 3);
        assert_eq!(container.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 7);
        let state = container.state.as_ref().unwrap().waiting.as_ref().unwrap();
        assert_eq!(state.reason.as_deref(), Some("CrashLoopBackOff"));
    }

    #[test]
    fn a_time_that_is_not_known_is_not_told() {
        assert_eq!(time(0), None);
        assert_eq!(time(1_500_000_000).as_deref(), Some("1970-01-01T00:00:01Z"));
    }

    #[test]
    fn an_evicted_pod_has_failed() {
        let doom = Doom::new("Evicted", "low on memory").disrupting();
        let status = status(&pod("Always", false), vec![run("c", Exited, 137, 0)], &Waiting::new(), true, Some(&doom));
        assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Failed"), Some("Evicted")));
        assert!(!holds(&status, "Ready") && holds(&status, "DisruptionTarget"));
    }
}
