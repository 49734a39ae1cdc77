//! Nodes, and what of them is taken.

use std::collections::{BTreeMap, BTreeSet};

use keelson_machinery::quantity::Quantity;
use serde_json::Value;

use super::common::{below, events, marks};
use super::sheet::{Sheet, row};
use crate::failure::Outcome;
use crate::value::{Read, ago, amount, date, or, quantity};

/// Resources with a line of their own.
const STANDARD: [&str; 4] = ["cpu", "memory", "ephemeral-storage", "pods"];

type Amounts = BTreeMap<String, Quantity>;

fn roles(node: &Value) -> String {
    let mut roles = BTreeSet::new();
    for (key, value) in node["metadata"]["labels"].pairs() {
        match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) if !role.is_empty() => roles.insert(role),
            None if key == "kubernetes.io/role" && !value.is_empty() => roles.insert(value),
            _ => false,
        };
    }
    or(&roles.into_iter().collect::<Vec<_>>().join(","), "<none>").to_owned()
}

fn taints(w: &mut Sheet, node: &Value) {
    let mut taints: Vec<&Value> = node["spec"]["taints"].items().iter().collect();
    taints.sort_by_key(|t| (t["effect"].text(), t["key"].text()));
    let line = |t: &Value| match (t["value"].text(), t["effect"].text()) {
        ("", "") => t["key"].text().to_owned(),
        ("", effect) => format!("{}:{effect}", t["key"].text()),
        (value, effect) => format!("{}={value}:{effect}", t["key"].text()),
    };
    below(w, "", "Taints", &taints.into_iter().map(line).collect::<Vec<_>>());
}

/// Describes a node; `pods` are those on it that have not ended, if they may be seen.
pub fn node(w: &mut Sheet, node: &Value, lease: Outcome<Value>, pods: Option<Vec<Value>>, found: Option<Vec<Value>>) {
    let (spec, status) = (&node["spec"], &node["status"]);
    row!(w, 0, "Name:\t{}", node["metadata"]["name"].text());
    row!(w, 0, "Roles:\t{}", roles(node));
    marks(w, node);
    row!(w, 0, "CreationTimestamp:\t{}", date(&node["metadata"]["creationTimestamp"]));
    taints(w, node);
    row!(w, 0, "Unschedulable:\t{}", spec["unschedulable"].is_true());
    heartbeat(w, lease);
    conditions(w, status["conditions"].items());
    row!(w, 0, "Addresses:");
    for address in status["addresses"].items() {
        row!(w, 1, "{}:\t{}", address["type"].text(), address["address"].text());
    }
    for (label, field) in [("Capacity", "capacity"), ("Allocatable", "allocatable")] {
        let Some(map) = status[field].as_object().filter(|m| !m.is_empty()) else { continue };
        row!(w, 0, "{label}:");
        map.iter().for_each(|(name, value)| row!(w, 1, "{name}:\t{}", amount(value)));
    }
    row!(w, 0, "System Info:");
    for (label, field) in [
        ("Machine ID", "machineID"),
        ("System UUID", "systemUUID"),
        ("Boot ID", "bootID"),
        ("Kernel Version", "kernelVersion"),
        ("OS Image", "osImage"),
        ("Operating System", "operatingSystem"),
        ("Architecture", "architecture"),
        ("Container Runtime Version", "containerRuntimeVersion"),
        ("Kubelet Version", "kubeletVersion"),
        ("Kube-Proxy Version", "kubeProxyVersion"),
    ] {
        row!(w, 1, "{label}:\t{}", status["nodeInfo"][field].text());
    }
    if !spec["podCIDR"].text().is_empty() {
        row!(w, 0, "PodCIDR:\t{}", spec["podCIDR"].text());
    }
    if !spec["podCIDRs"].items().is_empty() {
        row!(w, 0, "PodCIDRs:\t{}", spec["podCIDRs"].texts().join(","));
    }
    if !spec["providerID"].text().is_empty() {
        row!(w, 0, "ProviderID:\t{}", spec["providerID"].text());
    }
    match pods {
        Some(pods) => taken(w, &pods, status),
        None => row!(w, 0, "Pods:\tnot authorized"),
    }
    events(w, found);
}

fn heartbeat(w: &mut Sheet, lease: Outcome<Value>) {
    let lease = match lease {
        Ok(lease) => lease,
        Err(crate::failure::Failure::Server(status)) => {
            row!(w, 0, "Lease:\tFailed to get lease: {}", status["message"].text());
            return;
        }
        Err(error) => {
            row!(w, 0, "Lease:\tFailed to get lease: {error}");
            return;
        }
    };
    let spec = &lease["spec"];
    let time = |value: &Value| if value.is_there() { date(value) } else { "<unset>".into() };
    row!(w, 0, "Lease:");
    row!(w, 1, "HolderIdentity:\t{}", or(spec["holderIdentity"].text(), "<unset>"));
    row!(w, 1, "AcquireTime:\t{}", time(&spec["acquireTime"]));
    row!(w, 1, "RenewTime:\t{}", time(&spec["renewTime"]));
}

fn conditions(w: &mut Sheet, all: &[Value]) {
    if all.is_empty() {
        return;
    }
    w.put("Conditions:\n  Type\tStatus\tLastHeartbeatTime\tLastTransitionTime\tReason\tMessage\n");
    row!(w, 1, "----\t------\t-----------------\t------------------\t------\t-------");
    for c in all {
        let (beat, changed) = (date(&c["lastHeartbeatTime"]), date(&c["lastTransitionTime"]));
        let (kind, status) = (c["type"].text(), c["status"].text());
        row!(w, 1, "{kind} \t{status} \t{beat} \t{changed} \t{} \t{}", c["reason"].text(), c["message"].text());
    }
}

fn add(into: &mut Amounts, from: &Value) {
    for (name, value) in from.as_object().into_iter().flatten() {
        let value = quantity(value);
        let sum = into.remove(name).map_or(value, |have| have + value);
        into.insert(name.clone(), sum);
    }
}

fn raise(into: &mut Amounts, from: &Amounts) {
    for (name, value) in from {
        match into.get(name) {
            Some(have) if have >= value => {}
            _ => {
                into.insert(name.clone(), *value);
            }
        }
    }
}

/// What a pod asks for (`requests`) or may use (`limits`).
fn sum_of(pod: &Value, field: &str) -> Amounts {
    let spec = &pod["spec"];
    let (mut all, mut beside, mut highest) = (Amounts::new(), Amounts::new(), Amounts::new());
    for container in spec["containers"].items() {
        add(&mut all, &container["resources"][field]);
    }
    for container in spec["initContainers"].items() {
        let own = &container["resources"][field];
        let mut now = beside.clone();
        add(&mut now, own);
        if container["restartPolicy"] == "Always" {
            add(&mut all, own);
            add(&mut beside, own);
        }
        raise(&mut highest, &now);
    }
    raise(&mut all, &highest);
    for (name, value) in spec["resources"][field].as_object().into_iter().flatten() {
        all.insert(name.clone(), quantity(value));
    }
    for (name, value) in spec["overhead"].as_object().into_iter().flatten() {
        if field == "requests" || all.get(name).is_some_and(|have| !have.is_zero()) {
            add(&mut all, &serde_json::json!({name: value}));
        }
    }
    all
}

/// What a pod asks for.
pub fn requests_of(pod: &Value) -> BTreeMap<String, Quantity> {
    sum_of(pod, "requests")
}

/// An amount and the part of the node that it is, in percent.
fn part(amounts: &Amounts, name: &str, whole: &Value) -> String {
    let whole = quantity(&whole[name]);
    let have = amounts.get(name);
    let count = |q: &Quantity| if name == "cpu" { q.millis() } else { q.units() };
    let percent = match (have, count(&whole)) {
        (None, _) | (_, 0) => 0,
        (Some(have), whole) => (count(have) as f64 / whole as f64 * 100.0) as i64,
    };
    format!("{} ({percent}%)", have.map_or("0".into(), ToString::to_string))
}

fn taken(w: &mut Sheet, pods: &[Value], status: &Value) {
    let has = status["allocatable"].as_object().is_some_and(|m| !m.is_empty());
    let whole = if has { &status["allocatable"] } else { &status["capacity"] };
    row!(w, 0, "Non-terminated Pods:\t({} in total)", pods.len());
    row!(w, 1, "Namespace\tName\t\tCPU Requests\tCPU Limits\tMemory Requests\tMemory Limits\tAge");
    row!(w, 1, "---------\t----\t\t------------\t----------\t---------------\t-------------\t---");
    let (mut requests, mut limits) = (Amounts::new(), Amounts::new());
    let total = |sum: &mut Amounts, own: &Amounts| {
        for (name, value) in own {
            let value = sum.remove(name).map_or(*value, |have| have + *value);
            sum.insert(name.clone(), value);
        }
    };
    for pod in pods {
        let (asks, may) = (sum_of(pod, "requests"), sum_of(pod, "limits"));
        let metadata = &pod["metadata"];
        let (space, name) = (metadata["namespace"].text(), metadata["name"].text());
        let cells =
            [(&asks, "cpu"), (&may, "cpu"), (&asks, "memory"), (&may, "memory")].map(|(of, n)| part(of, n, whole));
        row!(w, 1, "{space}\t{name}\t\t{}\t{}", cells.join("\t"), ago(&metadata["creationTimestamp"]));
        total(&mut requests, &asks);
        total(&mut limits, &may);
    }
    row!(w, 0, "Allocated resources:");
    row!(w, 1, "(Total limits may be over 100 percent, i.e., overcommitted.)");
    row!(w, 1, "Resource\tRequests\tLimits");
    row!(w, 1, "--------\t--------\t------");
    let names: Vec<&str> = whole.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
    let huge = names.iter().filter(|n| n.starts_with("hugepages-"));
    for name in STANDARD[..3].iter().chain(huge) {
        row!(w, 1, "{name}\t{}\t{}", part(&requests, name, whole), part(&limits, name, whole));
    }
    for name in names.iter().filter(|n| !STANDARD.contains(n) && !n.starts_with("hugepages-")) {
        let text = |of: &Amounts| of.get(*name).map_or("0".into(), ToString::to_string);
        row!(w, 1, "{name}\t{}\t{}", text(&requests), text(&limits));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_a_pod_asks_for() {
        let of = |cpu: &str| json!({"resources": {"requests": {"cpu": cpu}}});
        let mut sidecar = of("100m");
        sidecar["restartPolicy"] = "Always".into();
        for (spec, expected) in [
            (json!({"containers": [of("100m"), of("200m")]}), "300m"),
            (json!({"containers": [of("100m")], "initContainers": [of("1")]}), "1"),
            (json!({"containers": [of("100m")], "initContainers": [sidecar, of("1")]}), "1100m"),
            (json!({"containers": [of("100m")], "overhead": {"cpu": "50m"}}), "150m"),
            (json!({"containers": [of("100m")], "resources": {"requests": {"cpu": "2"}}}), "2"),
        ] {
            assert_eq!(sum_of(&json!({"spec": spec}), "requests")["cpu"].to_string(), expected);
        }
    }
}
