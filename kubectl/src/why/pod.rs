//! Why a pod is not running and ready.

use serde_json::Value;

use super::{Answer, others, scheduling};
use crate::failure::Outcome;
use crate::session::{Session, encode, query};
use crate::value::{Read, ago, amount, or};

/// Lines of a container's last log that are shown.
const LOG_LINES: &str = "5";

fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    pod["status"]["conditions"].items().iter().find(|c| c["type"] == kind)
}

/// Says what keeps a pod from being ready.
pub async fn explain(session: &Session, pod: &Value, level: usize, answer: &mut Answer) -> Outcome {
    let (metadata, status) = (&pod["metadata"], &pod["status"]);
    let name = metadata["name"].text();
    let phase = or(status["phase"].text(), "Pending");
    let ready = condition(pod, "Ready").is_some_and(|c| c["status"] == "True");
    let state = match (metadata["deletionTimestamp"].is_there(), phase, ready) {
        (true, ..) => "is terminating".to_owned(),
        (_, "Running", true) => "runs and is ready".into(),
        (_, "Running", false) => "runs and is not ready".into(),
        (_, "Succeeded", _) => "has ended well".into(),
        (_, phase, _) => format!("is {phase}"),
    };
    answer.say(level, format!("pod/{name} {state}"));
    for field in ["reason", "message"] {
        if !status[field].text().is_empty() {
            answer.say(level + 1, format!("{field}: {}", status[field].text()));
        }
    }
    if pod["spec"]["nodeName"].text().is_empty() {
        unscheduled(session, pod, level, answer).await?;
    } else if phase != "Succeeded" {
        needs(session, pod, level, answer).await?;
        for (list, statuses) in [
            ("initContainers", "initContainerStatuses"),
            ("containers", "containerStatuses"),
            ("ephemeralContainers", "ephemeralContainerStatuses"),
        ] {
            for container in pod["spec"][list].items() {
                let own = status[statuses].items().iter().find(|s| s["name"] == container["name"]);
                containers(session, pod, container, own, level + 1, answer).await;
            }
        }
        gates(pod, level, answer);
    }
    Ok(())
}

async fn unscheduled(session: &Session, pod: &Value, level: usize, answer: &mut Answer) -> Outcome {
    let gates: Vec<&str> = pod["spec"]["schedulingGates"].items().iter().map(|g| g["name"].text()).collect();
    if !gates.is_empty() {
        answer.say(level + 1, format!("scheduling gates hold it: {}", gates.join(", ")));
        answer.advise("who set the scheduling gates has to take them off");
        return Ok(());
    }
    match condition(pod, "PodScheduled").map(|c| c["message"].text()).filter(|m| !m.is_empty()) {
        Some(message) => answer.say(level + 1, format!("scheduler: {message}")),
        None => answer.say(level + 1, "the scheduler has not looked at it yet"),
    }
    let nominated = pod["status"]["nominatedNodeName"].text();
    if !nominated.is_empty() {
        answer.say(level + 1, format!("it is to have {nominated} once pods of lower priority have gone from there"));
    }
    claims(session, pod, level, answer).await?;
    scheduling::nodes(session, pod, level + 1, answer).await
}

async fn claims(session: &Session, pod: &Value, level: usize, answer: &mut Answer) -> Outcome {
    let namespace = pod["metadata"]["namespace"].text();
    for volume in pod["spec"]["volumes"].items() {
        let name = match (&volume["persistentVolumeClaim"]["claimName"], volume["ephemeral"].is_there()) {
            (Value::String(name), _) => name.clone(),
            (_, true) => format!("{}-{}", pod["metadata"]["name"].text(), volume["name"].text()),
            _ => continue,
        };
        let path = format!("/api/v1/namespaces/{namespace}/persistentvolumeclaims/{}", encode(&name));
        match session.get(&path).await {
            Ok(claim) if claim["status"]["phase"] == "Bound" => {}
            Ok(claim) => others::claim(session, &claim, level + 1, answer).await?,
            Err(error) if error.is_not_found() => {
                answer.say(level + 1, format!("persistentvolumeclaim/{name} does not exist"));
                answer.advise(format!("create the claim {name}"));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Objects that the pod cannot start without.
async fn needs(session: &Session, pod: &Value, level: usize, answer: &mut Answer) -> Outcome {
    if pod["status"]["phase"] != "Pending" {
        return Ok(());
    }
    claims(session, pod, level, answer).await?;
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    let want = |kind: &'static str, of: &'static str, source: &'_ Value, name: &'static str| {
        let source = &source[of];
        if source.is_there() && !source["optional"].is_true() {
            return Some((kind, source[name].text().to_owned()));
        }
        None
    };
    let mut found: Vec<(&str, String)> = Vec::new();
    for volume in pod["spec"]["volumes"].items() {
        found.extend(want("configmaps", "configMap", volume, "name"));
        found.extend(want("secrets", "secret", volume, "secretName"));
    }
    let all = ["initContainers", "containers"];
    for container in all.iter().flat_map(|list| pod["spec"][list].items()) {
        for variable in container["env"].items() {
            found.extend(want("configmaps", "configMapKeyRef", &variable["valueFrom"], "name"));
            found.extend(want("secrets", "secretKeyRef", &variable["valueFrom"], "name"));
        }
        for source in container["envFrom"].items() {
            found.extend(want("configmaps", "configMapRef", source, "name"));
            found.extend(want("secrets", "secretRef", source, "name"));
        }
    }
    found.sort();
    found.dedup();
    wanted.extend(found.iter().map(|(kind, name)| (*kind, name.as_str())));
    let namespace = pod["metadata"]["namespace"].text();
    for (plural, name) in wanted {
        let read = session.get(&format!("/api/v1/namespaces/{namespace}/{plural}/{}", encode(name))).await;
        if read.is_err_and(|error| error.is_not_found()) {
            let kind = plural.trim_end_matches('s');
            answer.say(level + 1, format!("{kind}/{name} does not exist, and the pod needs it"));
            answer.advise(format!("create the {kind} {name}, or make it optional"));
        }
    }
    Ok(())
}

async fn containers(
    session: &Session,
    pod: &Value,
    container: &Value,
    status: Option<&Value>,
    level: usize,
    answer: &mut Answer,
) {
    let name = container["name"].text();
    let Some(status) = status else {
        answer.say(level, format!("container {name} has not been started"));
        return;
    };
    let (waiting, terminated) = (&status["state"]["waiting"], &status["state"]["terminated"]);
    let restarts = status["restartCount"].number();
    if waiting.is_there() {
        let (reason, message) = (waiting["reason"].text(), waiting["message"].text());
        let sign = if message.is_empty() { "" } else { ": " };
        answer.say(level, format!("container {name} waits: {reason}{sign}{message}"));
        match reason {
            "ImagePullBackOff" | "ErrImagePull" | "InvalidImageName" => answer.advise(format!(
                "check the image {} (its name, its registry, the imagePullSecrets)",
                container["image"].text()
            )),
            "CreateContainerConfigError" => answer.advise("create what the container's environment refers to"),
            _ => {}
        }
    } else if terminated.is_there() && terminated["exitCode"].number() != 0 {
        answer.say(level, format!("container {name} ended: {}", end_of(terminated)));
    } else if status["state"]["running"].is_there() && !status["ready"].is_true() {
        answer.say(
            level,
            format!("container {name} runs since {} and is not ready", ago(&status["state"]["running"]["startedAt"])),
        );
        for (probe, word) in [("startupProbe", "startup"), ("readinessProbe", "readiness")] {
            if container[probe].is_there() {
                answer.say(level + 1, format!("it has a {word} probe, which does not succeed (see the events)"));
            }
        }
    }
    let last = &status["lastState"]["terminated"];
    if restarts > 0 && last.is_there() {
        answer.say(level, format!("container {name} was restarted {restarts} times; last: {}", end_of(last)));
        if last["reason"] == "OOMKilled" {
            let limit = &container["resources"]["limits"]["memory"];
            let limit = if limit.is_there() { amount(limit) } else { "none".into() };
            answer.advise(format!("container {name} needs more memory than its limit ({limit})"));
        } else {
            answer.advise(format!("kubectl logs {} -c {name} --previous", pod["metadata"]["name"].text()));
        }
        log(session, pod, name, level + 1, answer).await;
    }
}

/// How a container ended.
fn end_of(terminated: &Value) -> String {
    let (code, reason) = (terminated["exitCode"].number(), or(terminated["reason"].text(), "Error"));
    let meaning = match code {
        126 => ", the command cannot be run",
        127 => ", the command was not found",
        137 => ", it was killed (SIGKILL)",
        139 => ", it crashed (SIGSEGV)",
        143 => ", it was asked to end (SIGTERM)",
        _ => "",
    };
    let message = match terminated["message"].text().trim() {
        "" => String::new(),
        message => format!(": {message}"),
    };
    format!("{reason} with exit code {code}{meaning}, {} ago{message}", ago(&terminated["finishedAt"]))
}

async fn log(session: &Session, pod: &Value, container: &str, level: usize, answer: &mut Answer) {
    let metadata = &pod["metadata"];
    let query = query(&[("container", container), ("previous", "true"), ("tailLines", LOG_LINES)]);
    let path = format!(
        "/api/v1/namespaces/{}/pods/{}/log{query}",
        metadata["namespace"].text(),
        encode(metadata["name"].text())
    );
    // A log that is gone says nothing, which is no fault of the answer.
    if let Ok(text) = session.text(&path).await {
        text.lines().for_each(|line| answer.say(level, format!("| {line}")));
    }
}

fn gates(pod: &Value, level: usize, answer: &mut Answer) {
    for gate in pod["spec"]["readinessGates"].items() {
        let kind = gate["conditionType"].text();
        if condition(pod, kind).is_none_or(|c| c["status"] != "True") {
            answer.say(level + 1, format!("readiness gate {kind} is not true"));
            answer.advise(format!("who sets the condition {kind} has to set it"));
        }
    }
}
