//! What a hollow node says about its pods.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde_json::{Value, json};

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending")
}

/// Whether the hollow node has something to do for the pod.
pub fn needs_work(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some() || phase(pod) == "Pending"
}

/// Whether the pod runs and will end by itself.
pub fn ends(pod: &Pod) -> bool {
    phase(pod) == "Running" && is_to_end(pod)
}

/// Whether the pod will end by itself once it runs.
pub fn is_to_end(pod: &Pod) -> bool {
    let policy = pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref());
    matches!(policy, Some("Never" | "OnFailure"))
}

fn now() -> String {
    format!("{:.0}", Timestamp::now())
}

fn condition(kind: &str, status: &str, reason: Option<&str>) -> Value {
    let mut condition = json!({"type": kind, "status": status, "lastProbeTime": null, "lastTransitionTime": now()});
    if let Some(reason) = reason {
        condition["reason"] = reason.into();
    }
    condition
}

fn containers(pod: &Pod, init: bool, state: &Value, ready: bool) -> Vec<Value> {
    let spec = pod.spec.as_ref();
    let containers = if init {
        spec.and_then(|s| s.init_containers.as_deref()).unwrap_or_default()
    } else {
        spec.map(|s| s.containers.as_slice()).unwrap_or_default()
    };
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let id = |name: &str| format!("hollow://{uid}/{name}");
    let image = |i: &Option<String>| i.clone().unwrap_or_default();
    containers
        .iter()
        .map(|c| {
            json!({
                "name": c.name, "image": image(&c.image), "imageID": image(&c.image), "containerID": id(&c.name),
                "ready": ready, "started": !init && ready, "restartCount": 0, "state": state, "lastState": {},
            })
        })
        .collect()
}

/// The status of a pod that has just started.
pub fn next(pod: &Pod, host_ip: &str, pod_ip: &str) -> Result<PodStatus, serde_json::Error> {
    let previous = pod.status.as_ref();
    let done = json!({"terminated": {"exitCode": 0, "reason": "Completed", "startedAt": now(), "finishedAt": now()}});
    let mut conditions = vec![
        condition("PodReadyToStartContainers", "True", None),
        condition("Initialized", "True", None),
        condition("Ready", "True", None),
        condition("ContainersReady", "True", None),
    ];
    let scheduled = previous.and_then(|s| s.conditions.as_ref()?.iter().find(|c| c.type_ == "PodScheduled"));
    conditions.push(match scheduled {
        Some(scheduled) => serde_json::to_value(scheduled)?,
        None => condition("PodScheduled", "True", None),
    });
    serde_json::from_value(json!({
        "phase": "Running",
        "observedGeneration": pod.metadata.generation,
        "conditions": conditions,
        "hostIP": host_ip, "hostIPs": [{"ip": host_ip}],
        "podIP": pod_ip, "podIPs": [{"ip": pod_ip}],
        "startTime": now(),
        "qosClass": previous.and_then(|s| s.qos_class.clone()),
        "initContainerStatuses": containers(pod, true, &done, true),
        "containerStatuses": containers(pod, false, &json!({"running": {"startedAt": now()}}), true),
    }))
}

/// The status of a pod whose containers all ended well.
pub fn succeeded(pod: &Pod) -> Result<PodStatus, serde_json::Error> {
    let mut status = pod.status.clone().unwrap_or_default();
    status.phase = Some("Succeeded".into());
    let start = status.start_time.as_ref().map_or_else(now, |t| format!("{:.0}", t.0));
    let state = json!({"terminated":
        {"exitCode": 0, "reason": "Completed", "startedAt": start, "finishedAt": now()}});
    status.container_statuses = serde_json::from_value(containers(pod, false, &state, false).into())?;
    for changed in status.conditions.iter_mut().flatten() {
        if matches!(changed.type_.as_str(), "Ready" | "ContainersReady") {
            *changed = serde_json::from_value(condition(&changed.type_, "False", Some("PodCompleted")))?;
        } else if changed.type_ == "PodReadyToStartContainers" {
            *changed = serde_json::from_value(condition(&changed.type_, "False", None))?;
        }
    }
    Ok(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(policy: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "uid": "u"},
            "spec": {"restartPolicy": policy, "containers": [{"name": "c", "image": "i"}],
                "initContainers": [{"name": "first", "image": "i"}]},
        }))
        .unwrap()
    }

    #[test]
    fn a_pod_runs_and_a_job_ends() {
        let mut pod = pod("Always");
        assert!(needs_work(&pod) && !ends(&pod));
        pod.status = Some(next(&pod, "10.0.0.1", "10.244.0.2").unwrap());
        assert!(!needs_work(&pod) && !ends(&pod));
        let status = pod.status.as_ref().unwrap();
        assert_eq!(status.pod_ip.as_deref(), Some("10.244.0.2"));
        assert!(status.container_statuses.as_ref().unwrap()[0].ready);
        assert!(status.conditions.as_ref().unwrap().iter().all(|c| c.status == "True"));
        pod.spec.as_mut().unwrap().restart_policy = Some("Never".into());
        assert!(ends(&pod));
        pod.status = Some(succeeded(&pod).unwrap());
        let status = pod.status.as_ref().unwrap();
        assert_eq!(status.phase.as_deref(), Some("Succeeded"));
        let state = status.container_statuses.as_ref().unwrap()[0].state.as_ref().unwrap();
        assert_eq!(state.terminated.as_ref().unwrap().exit_code, 0);
        let ready = status.conditions.as_ref().unwrap().iter().find(|c| c.type_ == "Ready").unwrap();
        assert_eq!(ready.status, "False");
        assert!(!needs_work(&pod) && !ends(&pod));
    }
}
