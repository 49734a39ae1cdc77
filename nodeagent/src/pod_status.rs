//! What the agent reports of a pod, computed from what the runtime says. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};
use keelson_proto::cri::{ContainerState, ContainerStatus};
use serde_json::{Value, json};

/// Why a container waits: reason and message.
pub type Waiting = BTreeMap<String, (String, String)>;

/// Whether a container that ended with `code` is started again.
pub fn restarts(policy: Option<&str>, code: i32) -> bool {
    match policy {
        Some("Never") => false,
        Some("OnFailure") => code != 0,
        _ => true,
    }
}

/// Seconds between the end and the `restarts`-th new start: 10 s, doubling up to five minutes.
pub fn back_off(restarts: u32) -> i64 {
    if restarts == 0 { 0 } else { (10_i64 << (restarts - 1).min(5)).min(300) }
}

/// The container's runs, newest first.
pub fn runs<'a>(name: &str, all: &'a [ContainerStatus]) -> impl Iterator<Item = &'a ContainerStatus> + use<'a> {
    let name = name.to_owned();
    all.iter().filter(move |c| c.metadata.as_ref().is_some_and(|m| m.name == name))
}

/// Containers that run before the others.
pub fn init_containers(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().and_then(|s| s.init_containers.as_deref()).unwrap_or_default()
}

/// The pod's containers.
pub fn containers(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().map(|s| s.containers.as_slice()).unwrap_or_default()
}

/// The names of all containers of the pod.
pub fn names(pod: &Pod) -> impl Iterator<Item = &str> {
    let ephemeral = pod.spec.as_ref().and_then(|s| s.ephemeral_containers.as_deref()).unwrap_or_default();
    let main = init_containers(pod).iter().chain(containers(pod)).map(|c| c.name.as_str());
    main.chain(ephemeral.iter().map(|c| c.name.as_str()))
}

/// Why a container waits, as the status says.
pub fn waiting_reason<'a>(pod: &'a Pod, container: &str) -> Option<&'a str> {
    let status = pod.status.as_ref()?;
    let lists = [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    let found = lists.into_iter().flatten().flatten().find(|c| c.name == container)?;
    found.state.as_ref()?.waiting.as_ref()?.reason.as_deref()
}

/// The pod's restart policy; that of init containers of a pod that always restarts is OnFailure.
pub fn policy(pod: &Pod, init: bool) -> Option<&str> {
    let policy = pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref());
    if init && policy != Some("Never") { Some("OnFailure") } else { policy }
}

fn time(nanoseconds: i64) -> String {
    format!("{:.0}", Timestamp::from_nanosecond(nanoseconds.into()).unwrap_or(Timestamp::UNIX_EPOCH))
}

fn terminated(status: &ContainerStatus) -> Value {
    let usual = if status.exit_code == 0 { "Completed" } else { "Error" };
    json!({"terminated": {
        "exitCode": status.exit_code,
        "reason": if status.reason.is_empty() { usual } else { &status.reason },
        "message": if status.message.is_empty() { Value::Null } else { status.message.clone().into() },
        "startedAt": time(status.started_at), "finishedAt": time(status.finished_at),
        "containerID": format!("containerd://{}", status.id),
    }})
}

fn container(spec: &Container, init: bool, pod: &Pod, all: &[ContainerStatus], waiting: &Waiting) -> Value {
    let mut runs = runs(&spec.name, all);
    let (newest, previous) = (runs.next(), runs.next());
    let wait = |default: &str| match waiting.get(&spec.name) {
        Some((reason, message)) => json!({"waiting": {"reason": reason, "message": message}}),
        None => json!({"waiting": {"reason": default}}),
    };
    let idle = if init || init_containers(pod).is_empty() { "ContainerCreating" } else { "PodInitializing" };
    let mut last = previous.map_or_else(|| json!({}), terminated);
    let (state, running, done) = match newest.map(|n| (n, n.state())) {
        Some((n, ContainerState::ContainerRunning)) => {
            (json!({"running": {"startedAt": time(n.started_at)}}), true, false)
        }
        Some((n, ContainerState::ContainerExited)) if waiting.contains_key(&spec.name) => {
            last = terminated(n);
            (wait(idle), false, false)
        }
        Some((n, ContainerState::ContainerExited)) => (terminated(n), false, n.exit_code == 0),
        _ => (wait(idle), false, false),
    };
    let mut value = json!({
        "name": spec.name, "image": spec.image, "imageID": newest.map_or("", |n| &n.image_ref),
        "ready": if init { done } else { running }, "started": running,
        "restartCount": newest.and_then(|n| n.metadata.as_ref()).map_or(0, |m| m.attempt),
        "state": state, "lastState": last,
    });
    if let Some(newest) = newest {
        value["containerID"] = format!("containerd://{}", newest.id).into();
    }
    value
}

/// The pod's phase.
pub fn phase(pod: &Pod, all: &[ContainerStatus]) -> &'static str {
    let newest = |c: &Container| runs(&c.name, all).next();
    let ended = |c: &ContainerStatus| c.state() == ContainerState::ContainerExited;
    for init in init_containers(pod) {
        match newest(init) {
            Some(run) if ended(run) && run.exit_code == 0 => {}
            Some(run) if ended(run) && !restarts(policy(pod, true), run.exit_code) => return "Failed",
            _ => return "Pending",
        }
    }
    let runs: Vec<_> = containers(pod).iter().map(newest).collect();
    let over = |r: &&ContainerStatus| ended(r) && !restarts(policy(pod, false), r.exit_code);
    if runs.iter().flatten().filter(|r| over(r)).count() == runs.len() {
        let good = runs.iter().flatten().all(|r| r.exit_code == 0);
        return if good { "Succeeded" } else { "Failed" };
    }
    if runs.iter().any(Option::is_none) { "Pending" } else { "Running" }
}

fn condition(previous: Option<&PodStatus>, kind: &str, holds: bool, reason: Option<&str>) -> Value {
    let status = if holds { "True" } else { "False" };
    let old = previous.and_then(|p| p.conditions.as_ref()?.iter().find(|c| c.type_ == kind && c.status == status));
    let since = old.and_then(|c| c.last_transition_time.as_ref());
    let since = since.map_or_else(|| format!("{:.0}", Timestamp::now()), |t| format!("{:.0}", t.0));
    let reason = reason.filter(|_| !holds);
    json!({"type": kind, "status": status, "lastProbeTime": null, "lastTransitionTime": since, "reason": reason})
}

/// The status of the pod. `addresses` are empty while there is no sandbox.
pub fn status(
    pod: &Pod,
    all: &[ContainerStatus],
    waiting: &Waiting,
    host_ip: &str,
    addresses: &[String],
) -> Result<PodStatus, serde_json::Error> {
    let previous = pod.status.as_ref();
    let phase = phase(pod, all);
    let describe = |list: &[Container], init| -> Vec<Value> {
        list.iter().map(|c| container(c, init, pod, all, waiting)).collect()
    };
    let (init, main) = (describe(init_containers(pod), true), describe(containers(pod), false));
    let initialized = init.iter().all(|c| c["ready"] == true);
    let ready = initialized && main.iter().all(|c| c["ready"] == true);
    let unready = if phase == "Succeeded" { "PodCompleted" } else { "ContainersNotReady" };
    let start = previous.and_then(|p| p.start_time.as_ref());
    let start = start.map_or_else(|| format!("{:.0}", Timestamp::now()), |t| format!("{:.0}", t.0));
    let ips: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
    serde_json::from_value(json!({
        "phase": phase,
        "observedGeneration": pod.metadata.generation,
        "conditions": [
            condition(previous, "PodReadyToStartContainers", !addresses.is_empty(), None),
            condition(previous, "Initialized", initialized, Some("ContainersNotInitialized")),
            condition(previous, "Ready", ready, Some(unready)),
            condition(previous, "ContainersReady", ready, Some(unready)),
            condition(previous, "PodScheduled", true, None),
        ],
        "hostIP": host_ip, "hostIPs": [{"ip": host_ip}],
        "podIP": addresses.first(), "podIPs": ips,
        "startTime": start,
        "qosClass": previous.and_then(|p| p.qos_class.clone()),
        "initContainerStatuses": init,
        "containerStatuses": main,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_proto::cri::ContainerMetadata;

    fn pod(policy: &str, init: bool) -> Pod {
        let mut pod = json!({"metadata": {"name": "p", "uid": "u"},
            "spec": {"restartPolicy": policy, "containers": [{"name": "c", "image": "i"}]}});
        if init {
            pod["spec"]["initContainers"] = json!([{"name": "first", "image": "i"}]);
        }
        serde_json::from_value(pod).unwrap()
    }

    fn run(name: &str, state: ContainerState, exit_code: i32, attempt: u32) -> ContainerStatus {
        let metadata = Some(ContainerMetadata { name: name.into(), attempt });
        ContainerStatus { id: "x".into(), metadata, state: state.into(), exit_code, ..Default::default() }
    }

    #[test]
    fn phases() {
        use ContainerState::{ContainerExited as Exited, ContainerRunning as Up};
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
            assert_eq!(super::phase(&pod(policy, init), &runs), phase, "{policy} {init} {runs:?}");
        }
    }

    #[test]
    fn a_crash_loop_waits_and_remembers() {
        let runs = [run("c", ContainerState::ContainerExited, 7, 3)];
        let waiting = Waiting::from([("c".into(), ("CrashLoopBackOff".into(), "back-off 40s".into()))]);
        let status = status(&pod("Always", false), &runs, &waiting, "10.0.0.1", &["10.244.0.2".into()]).unwrap();
        let container = &status.container_statuses.unwrap()[0];
        assert_eq!(container.restart_count, 3);
        assert_eq!(container.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 7);
        let state = container.state.as_ref().unwrap().waiting.as_ref().unwrap();
        assert_eq!(state.reason.as_deref(), Some("CrashLoopBackOff"));
        assert_eq!([0, 1, 2, 3, 6, 99].map(back_off), [0, 10, 20, 40, 300, 300]);
    }
}
