//! The cells of a pod: what its containers say of it in one word.

use serde_json::{Value, json};

use super::text::{NONE, age, items, name, or, seconds_of, word};

/// What is known of a pod's containers.
#[derive(Default)]
struct Summary {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i64,
    /// When a container last ended before it was restarted.
    last: Option<Value>,
}

impl Summary {
    fn restarted(&mut self, status: &Value) {
        self.restarts += status["restartCount"].as_i64().unwrap_or(0);
        let ended = &status["lastState"]["terminated"]["finishedAt"];
        if seconds_of(ended) > self.last.as_ref().and_then(seconds_of) {
            self.last = Some(ended.clone());
        }
    }
}

/// The cells.
pub fn pod(object: &Value) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let summary = summary(object);
    let restarts = match &summary.last {
        Some(last) if summary.restarts != 0 => format!("{} ({} ago)", summary.restarts, age(last)),
        _ => summary.restarts.to_string(),
    };
    let ip = items(&status["podIPs"]).next().map_or_else(|| word(&status["podIP"]), |ip| word(&ip["ip"]));
    let gates: Vec<&Value> = items(&spec["readinessGates"]).collect();
    let open = |gate: &&&Value| {
        items(&status["conditions"]).any(|c| c["type"] == gate["conditionType"] && c["status"] == "True")
    };
    let gates = match gates.len() {
        0 => NONE.to_owned(),
        all => format!("{}/{all}", gates.iter().filter(open).count()),
    };
    vec![
        name(object),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.reason.into(),
        restarts.into(),
        age(&object["metadata"]["creationTimestamp"]).into(),
        or(ip, NONE),
        or(word(&spec["nodeName"]), NONE),
        or(word(&status["nominatedNodeName"]), NONE),
        gates.into(),
    ]
}

/// The conditions of a row: that the pod is done.
pub fn row_conditions(object: &Value) -> Option<Value> {
    let (reason, message) = match word(&object["status"]["phase"]) {
        "Succeeded" => ("Succeeded", "The pod has completed successfully."),
        "Failed" => ("Failed", "The pod failed."),
        _ => return None,
    };
    Some(json!([{"type": "Completed", "status": "True", "reason": reason, "message": message}]))
}

fn summary(object: &Value) -> Summary {
    let (spec, status) = (&object["spec"], &object["status"]);
    let phase = word(&status["phase"]);
    let mut summary = Summary {
        reason: if word(&status["reason"]).is_empty() { phase } else { word(&status["reason"]) }.to_owned(),
        total: items(&spec["containers"]).len() + sidecars(spec).count(),
        ..Summary::default()
    };
    if items(&status["conditions"]).any(|c| c["type"] == "PodScheduled" && c["reason"] == "SchedulingGated") {
        summary.reason = "SchedulingGated".into();
    }
    let mut beside = Summary::default();
    let initializing = initializing(spec, status, &mut summary, &mut beside);
    let initialized = items(&status["conditions"]).any(|c| c["type"] == "Initialized" && c["status"] == "True");
    if !initializing || initialized {
        (summary.restarts, summary.last) = (beside.restarts, beside.last);
        containers(status, &mut summary);
    }
    if object["metadata"]["deletionTimestamp"].is_string() {
        if status["reason"] == "NodeLost" {
            summary.reason = "Unknown".into();
        } else if !matches!(phase, "Succeeded" | "Failed") {
            summary.reason = "Terminating".into();
        }
    }
    summary
}

/// Names of the init containers that keep running.
fn sidecars(spec: &Value) -> impl Iterator<Item = &str> {
    items(&spec["initContainers"]).filter(|c| c["restartPolicy"] == "Always").map(|c| word(&c["name"]))
}

/// Whether the pod is still initializing; `beside` sums up the init containers that keep running.
fn initializing(spec: &Value, status: &Value, summary: &mut Summary, beside: &mut Summary) -> bool {
    for (index, init) in items(&status["initContainerStatuses"]).enumerate() {
        summary.restarted(init);
        let sidecar = sidecars(spec).any(|name| init["name"] == name);
        if sidecar {
            beside.restarted(init);
        }
        let (waiting, terminated) = (&init["state"]["waiting"], &init["state"]["terminated"]);
        if terminated.is_object() && terminated["exitCode"].as_i64().unwrap_or(0) == 0 {
            continue;
        }
        if sidecar && init["started"] == true {
            summary.ready += usize::from(init["ready"] == true);
            continue;
        }
        summary.reason = if terminated.is_object() {
            format!("Init:{}", end(terminated))
        } else if !matches!(word(&waiting["reason"]), "" | "PodInitializing") {
            format!("Init:{}", word(&waiting["reason"]))
        } else {
            format!("Init:{index}/{}", items(&spec["initContainers"]).len())
        };
        return true;
    }
    false
}

/// Why a container ended.
fn end(terminated: &Value) -> String {
    match (word(&terminated["reason"]), terminated["signal"].as_i64().unwrap_or(0)) {
        ("", 0) => format!("ExitCode:{}", terminated["exitCode"].as_i64().unwrap_or(0)),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn containers(status: &Value, summary: &mut Summary) {
    let mut running = false;
    for container in items(&status["containerStatuses"]).rev() {
        summary.restarted(container);
        let state = &container["state"];
        if !word(&state["waiting"]["reason"]).is_empty() {
            summary.reason = word(&state["waiting"]["reason"]).to_owned();
        } else if state["terminated"].is_object() {
            summary.reason = end(&state["terminated"]);
        } else if container["ready"] == true && state["running"].is_object() {
            running = true;
            summary.ready += 1;
        }
    }
    if summary.reason == "Completed" && running {
        let ready = items(&status["conditions"]).any(|c| c["type"] == "Ready" && c["status"] == "True");
        summary.reason = if ready { "Running" } else { "NotReady" }.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_in_words() {
        let terminated = |code: i64, reason: &str| json!({"terminated": {"exitCode": code, "reason": reason}});
        let running = json!({"running": {}});
        for (status, expected) in [
            (json!({"phase": "Pending"}), "0/2 Pending 0"),
            (json!({"phase": "Failed", "reason": "Evicted"}), "0/2 Evicted 0"),
            (
                json!({"phase": "Running", "containerStatuses": [{"ready": true, "restartCount": 2, "state": running},
                    {"state": terminated(0, "Completed")}], "conditions": [{"type": "Ready", "status": "True"}]}),
                "1/2 Running 2",
            ),
            (
                json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "restartCount": 1, "state": terminated(3, "")}]}),
                "0/2 Init:ExitCode:3 1",
            ),
            (
                json!({"phase": "Pending", "initContainerStatuses": [{"state": {"waiting": {"reason": "PodInitializing"}}}]}),
                "0/2 Init:0/1 0",
            ),
            (
                json!({"phase": "Running", "containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}),
                "0/2 CrashLoopBackOff 0",
            ),
            (
                json!({"phase": "Running", "containerStatuses": [{"state": {"terminated": {"signal": 9}}}]}),
                "0/2 Signal:9 0",
            ),
        ] {
            let object = json!({"metadata": {"name": "p"}, "status": status,
                "spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}});
            let cells = pod(&object);
            assert_eq!(format!("{} {} {}", word(&cells[1]), word(&cells[2]), word(&cells[3])), expected);
        }
    }

    #[test]
    fn sidecars_count_and_deletion_shows() {
        let object = json!({"metadata": {"name": "p", "deletionTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "s", "restartPolicy": "Always"}],
                "readinessGates": [{"conditionType": "x"}, {"conditionType": "y"}]},
            "status": {"phase": "Running", "conditions": [{"type": "x", "status": "True"}], "podIPs": [{"ip": "10.0.0.1"}],
                "initContainerStatuses": [{"name": "s", "started": true, "ready": true, "state": {"running": {}}}]}});
        let cells = pod(&object);
        assert_eq!(
            (&cells[1], &cells[2], &cells[5], &cells[8]),
            (&json!("1/2"), &json!("Terminating"), &json!("10.0.0.1"), &json!("1/2"))
        );
        assert_eq!(row_conditions(&object), None);
        assert!(row_conditions(&json!({"status": {"phase": "Failed"}})).is_some());
    }
}
