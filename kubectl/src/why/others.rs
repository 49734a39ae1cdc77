//! Why workloads, services, claims, nodes and other objects are not as they should be.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Answer, pod};
use crate::describe::{controller_of, list, selector_text};
use crate::failure::Outcome;
use crate::kinds::Kind;
use crate::session::{Session, encode};
use crate::value::{Read, amount, or};

/// Pods of a workload that are explained.
const EXPLAINED_PODS: usize = 3;

/// Conditions that are bad when they are true.
const BAD: [&str; 8] = [
    "ReplicaFailure",
    "Failed",
    "FailureTarget",
    "MemoryPressure",
    "DiskPressure",
    "PIDPressure",
    "NetworkUnavailable",
    "Stalled",
];
/// Conditions that say what was done, not how things are.
const NEUTRAL: [&str; 5] = ["Terminating", "Suspended", "Denied", "ScalingLimited", "NonStructuralSchema"];

fn is_bad(condition: &Value) -> bool {
    let (kind, status) = (condition["type"].text(), condition["status"].text());
    match (BAD.contains(&kind), NEUTRAL.contains(&kind)) {
        (true, _) => status == "True",
        (_, true) => false,
        _ => status != "True",
    }
}

fn conditions(object: &Value, level: usize, answer: &mut Answer) {
    for c in object["status"]["conditions"].items().iter().filter(|c| is_bad(c)) {
        let (kind, status) = (c["type"].text(), c["status"].text());
        answer.say(
            level,
            format!("{kind} is {status}: {}: {}", or(c["reason"].text(), "no reason"), c["message"].text()),
        );
        let message = c["message"].text();
        if message.contains("exceeded quota") {
            answer.advise("raise the quota, or ask for less");
        }
        if message.contains("admission webhook") {
            answer.advise("the webhook that is named refuses the object: see its rules");
        }
    }
}

/// Explains a deployment, a set, or a job, and its pods that are not well.
pub async fn workload(session: &Session, kind: &Kind, object: &Value, answer: &mut Answer) -> Outcome {
    let (metadata, spec, status) = (&object["metadata"], &object["spec"], &object["status"]);
    let namespace = metadata["namespace"].text();
    let (want, ready) = match kind.kind.as_str() {
        "DaemonSet" => (status["desiredNumberScheduled"].number(), status["numberReady"].number()),
        "Job" => (spec["completions"].as_i64().unwrap_or(1), status["succeeded"].number()),
        _ => (spec["replicas"].as_i64().unwrap_or(1), status["readyReplicas"].number()),
    };
    let word = if kind.kind == "Job" { "pods have succeeded" } else { "pods are ready" };
    answer.say(0, format!("{}/{}: {ready} of {want} {word}", kind.qualified(), metadata["name"].text()));
    if metadata["generation"].number() > status["observedGeneration"].number() && kind.kind != "Job" {
        answer.say(1, "its controller has not seen the last change yet");
    }
    if spec["paused"].is_true() {
        answer.say(1, "its rollout is paused");
        answer.advise(format!("kubectl rollout resume {}/{}", kind.plural, metadata["name"].text()));
    }
    if spec["suspend"].is_true() {
        answer.say(1, "it is suspended");
    }
    conditions(object, 1, answer);
    let selector = match spec["selector"]["matchLabels"].is_there() || spec["selector"]["matchExpressions"].is_there() {
        true => selector_text(&spec["selector"]),
        false => spec["selector"].pairs().into_iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(","),
    };
    let pods = list(session, &format!("/api/v1/namespaces/{namespace}/pods"), &[("labelSelector", &selector)]).await?;
    if kind.kind == "Deployment" {
        replica_sets(session, object, &selector, answer).await?;
    }
    let well = |p: &&Value| {
        let ready = p["status"]["conditions"].items().iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
        ready || p["status"]["phase"] == "Succeeded"
    };
    let ill: Vec<&Value> = pods.iter().filter(|p| !well(p)).collect();
    if pods.is_empty() && want > 0 {
        answer.say(1, "it has no pods");
    }
    for pod in ill.iter().take(EXPLAINED_PODS) {
        pod::explain(session, pod, 1, answer).await?;
    }
    if ill.len() > EXPLAINED_PODS {
        answer.say(1, format!("and {} more pods are not ready", ill.len() - EXPLAINED_PODS));
    }
    Ok(())
}

/// Replica sets tell why pods could not be made at all.
async fn replica_sets(session: &Session, object: &Value, selector: &str, answer: &mut Answer) -> Outcome {
    let namespace = object["metadata"]["namespace"].text();
    let path = format!("/apis/apps/v1/namespaces/{namespace}/replicasets");
    for set in list(session, &path, &[("labelSelector", selector)]).await? {
        let own = controller_of(&set).is_some_and(|o| o["uid"] == object["metadata"]["uid"]);
        if own && set["spec"]["replicas"].number() > set["status"]["replicas"].number() {
            answer.say(1, format!("replicaset {} cannot make its pods", set["metadata"]["name"].text()));
            conditions(&set, 2, answer);
        }
    }
    Ok(())
}

/// Explains a service: who is behind it.
pub async fn service(session: &Session, object: &Value, answer: &mut Answer) -> Outcome {
    let (metadata, spec) = (&object["metadata"], &object["spec"]);
    let (namespace, name) = (metadata["namespace"].text(), metadata["name"].text());
    let selector: Vec<String> = spec["selector"].pairs().into_iter().map(|(k, v)| format!("{k}={v}")).collect();
    let slices = format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices");
    let slices = list(session, &slices, &[("labelSelector", &format!("kubernetes.io/service-name={name}"))]).await?;
    let all: Vec<&Value> = slices.iter().flat_map(|s| s["endpoints"].items()).collect();
    let ready = all.iter().filter(|e| e["conditions"]["ready"].as_bool().unwrap_or(true)).count();
    answer.say(0, format!("service/{name} has {ready} ready endpoints of {}", all.len()));
    if spec["type"] == "LoadBalancer" && object["status"]["loadBalancer"]["ingress"].items().is_empty() {
        answer.say(1, "no load balancer has given it an address");
    }
    if spec["type"] == "ExternalName" || selector.is_empty() {
        answer.say(1, "it selects no pods: its endpoints are somebody else's affair");
        return Ok(());
    }
    let path = format!("/api/v1/namespaces/{namespace}/pods");
    let pods = list(session, &path, &[("labelSelector", &selector.join(","))]).await?;
    answer.say(1, format!("its selector {} fits {} pods", selector.join(","), pods.len()));
    if pods.is_empty() {
        answer.advise("compare the service's selector with the labels of the pods: kubectl get pods --show-labels");
    }
    for port in spec["ports"].items() {
        let target = port["targetPort"].text();
        let has = |p: &Value| {
            p["spec"]["containers"].items().iter().any(|c| c["ports"].items().iter().any(|q| q["name"] == target))
        };
        if !target.is_empty() && !pods.iter().any(has) && !pods.is_empty() {
            answer.say(1, format!("no pod names a port {target:?}, which port {} leads to", port["port"].number()));
            answer.advise(format!("name a container's port {target:?}, or give the service a number"));
        }
    }
    let not_ready =
        |p: &&Value| !p["status"]["conditions"].items().iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
    for pod in pods.iter().filter(not_ready).take(EXPLAINED_PODS) {
        pod::explain(session, pod, 1, answer).await?;
    }
    Ok(())
}

/// Explains a claim on storage.
pub async fn claim(session: &Session, object: &Value, level: usize, answer: &mut Answer) -> Outcome {
    let (spec, phase) = (&object["spec"], object["status"]["phase"].text());
    let name = object["metadata"]["name"].text();
    let asked = amount(&spec["resources"]["requests"]["storage"]);
    answer.say(
        level,
        format!("persistentvolumeclaim/{name} is {phase}: {asked}, {}", spec["accessModes"].texts().join(",")),
    );
    if phase == "Bound" {
        return Ok(());
    }
    let class = spec["storageClassName"].text();
    if class.is_empty() {
        answer.say(level + 1, "it names no storage class: a volume without a class has to fit");
        answer.advise("name a storage class, or create a fitting persistent volume");
        return Ok(());
    }
    match session.get(&format!("/apis/storage.k8s.io/v1/storageclasses/{}", encode(class))).await {
        Ok(found) if found["volumeBindingMode"] == "WaitForFirstConsumer" => {
            answer.say(level + 1, format!("storage class {class} waits until a pod that uses the claim is scheduled"));
        }
        Ok(found) => {
            let by = found["provisioner"].text();
            answer.say(level + 1, format!("storage class {class}: {by} has to make the volume"));
        }
        Err(error) if error.is_not_found() => {
            answer.say(level + 1, format!("storage class {class} does not exist"));
            answer.advise(format!("create the storage class {class}, or name another"));
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Explains a node.
pub fn node(object: &Value, answer: &mut Answer) {
    let name = object["metadata"]["name"].text();
    let ready = object["status"]["conditions"].items().iter().find(|c| c["type"] == "Ready");
    let state = match ready.map(|c| c["status"].text()) {
        Some("True") => "is ready",
        Some("Unknown") => "does not report any more",
        _ => "is not ready",
    };
    answer.say(0, format!("node/{name} {state}"));
    conditions(object, 1, answer);
    if object["spec"]["unschedulable"].is_true() {
        answer.say(1, "it is cordoned: no new pods come to it");
        answer.advise(format!("kubectl uncordon {name}"));
    }
    let taints: BTreeSet<String> = object["spec"]["taints"]
        .items()
        .iter()
        .map(|t| format!("{}:{}", t["key"].text(), t["effect"].text()))
        .collect();
    if !taints.is_empty() {
        answer.say(1, format!("taints: {}", taints.into_iter().collect::<Vec<_>>().join(", ")));
    }
}

/// Explains an object of another kind by its conditions.
pub fn any(kind: &Kind, object: &Value, answer: &mut Answer) {
    let phase = match object["status"]["phase"].text() {
        "" => String::new(),
        phase => format!(" is {phase}"),
    };
    answer.say(0, format!("{}/{}{phase}", kind.qualified(), object["metadata"]["name"].text()));
    let before = answer.lines.len();
    conditions(object, 1, answer);
    if answer.lines.len() == before && object["metadata"]["deletionTimestamp"].is_null() {
        answer.say(1, "nothing that it says of itself is wrong");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn conditions_that_are_bad() {
        for (kind, status, expected) in [
            ("Ready", "True", false),
            ("Ready", "False", true),
            ("Ready", "Unknown", true),
            ("MemoryPressure", "False", false),
            ("MemoryPressure", "True", true),
            ("ReplicaFailure", "True", true),
            ("ScalingLimited", "False", false),
        ] {
            assert_eq!(is_bad(&json!({"type": kind, "status": status})), expected, "{kind}={status}");
        }
    }
}
