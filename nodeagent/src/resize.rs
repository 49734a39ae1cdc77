//! Resources of running pods that change: what is asked for, what the node has agreed to, and what it says about it. Pure.
//!
//! What a node has agreed to is in the pod's status, so that it outlives the agent.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::spec::pod;
use crate::spec::resources::amount;

/// The resources that may change while a container runs.
const RESIZABLE: [&str; 2] = ["cpu", "memory"];
/// The condition of a pod whose resize waits.
pub const PENDING: &str = "PodResizePending";
/// The condition of a pod that is being resized.
pub const IN_PROGRESS: &str = "PodResizeInProgress";

/// What pods ask for, or what a node has: thousandths of CPUs, and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Thousandths of a CPU.
    pub cpu: i64,
    /// Bytes.
    pub memory: i64,
}

/// How a resize stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The node has room now.
    Feasible,
    /// The node has no room at the moment.
    Deferred(String),
    /// The node never has room.
    Infeasible(String),
    /// It was tried and failed.
    Failed(String),
}

impl Verdict {
    /// Type, reason and message of the pod's condition.
    pub fn condition(&self) -> (&'static str, &'static str, &str) {
        match self {
            Self::Feasible => (IN_PROGRESS, "", ""),
            Self::Deferred(message) => (PENDING, "Deferred", message),
            Self::Infeasible(message) => (PENDING, "Infeasible", message),
            Self::Failed(message) => (IN_PROGRESS, "Error", message),
        }
    }

    /// Whether containers keep what they have.
    pub fn is_pending(&self) -> bool {
        matches!(self, Self::Deferred(_) | Self::Infeasible(_))
    }
}

fn status_of<'a>(of: &'a Pod, container: &str) -> Option<&'a ContainerStatus> {
    let status = of.status.as_ref()?;
    let lists = [&status.container_statuses, &status.init_container_statuses];
    lists.into_iter().flatten().flatten().find(|s| s.name == container)
}

type Quantities = BTreeMap<String, Quantity>;

fn differ(a: Option<&Quantities>, b: Option<&Quantities>, name: &str) -> bool {
    amount(a, name) != amount(b, name)
}

/// The resources of a container of which its status says something else than its spec.
pub fn changed(of: &Pod, container: &Container) -> Vec<&'static str> {
    let running = |s: &&ContainerStatus| s.state.as_ref().is_some_and(|state| state.running.is_some());
    let Some(status) = status_of(of, &container.name).filter(running) else { return Vec::new() };
    // A status without them is not from an agent that knows of resizes.
    let Some(given) = &status.resources else { return Vec::new() };
    let wanted = container.resources.clone().unwrap_or_default();
    let differs = |name: &&'static str| {
        differ(wanted.requests.as_ref(), status.allocated_resources.as_ref(), name)
            || differ(wanted.limits.as_ref(), given.limits.as_ref(), name)
    };
    RESIZABLE.into_iter().filter(differs).collect()
}

/// The containers whose resources may change: those that go on running.
pub fn resizable(of: &Pod) -> impl Iterator<Item = &Container> {
    pod::all(of).filter(|(sort, _)| *sort != pod::Sort::Init).map(|(_, container)| container)
}

/// Whether a resize is asked for that the status does not show yet.
pub fn is_wanted(of: &Pod) -> bool {
    resizable(of).any(|container| !changed(of, container).is_empty())
}

/// What a pod asks for.
pub fn requests(of: &Pod) -> Amounts {
    let level = of.spec.as_ref().and_then(|s| s.resources.as_ref()).and_then(|r| r.requests.as_ref());
    let whole = |name: &str| {
        let of_container = |c: &Container| {
            let resources = c.resources.as_ref()?;
            amount(resources.requests.as_ref(), name).or_else(|| amount(resources.limits.as_ref(), name))
        };
        let overhead = amount(of.spec.as_ref().and_then(|s| s.overhead.as_ref()), name).unwrap_or(0);
        let sum = || resizable(of).filter_map(of_container).sum();
        amount(level, name).unwrap_or_else(sum) + overhead
    };
    Amounts { cpu: whole("cpu"), memory: whole("memory") / 1000 }
}

/// The pod as the node has agreed to it: what its status says instead of a resize that waits.
pub fn agreed(of: &Pod) -> Pod {
    let mut agreed = of.clone();
    let Some(spec) = agreed.spec.as_mut() else { return agreed };
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        let Some(status) = status_of(of, &container.name).filter(|s| s.resources.is_some()) else { continue };
        let resources = container.resources.get_or_insert_default();
        for name in RESIZABLE {
            let keep = |to: &mut Option<Quantities>, from: Option<&Quantities>| match from.and_then(|map| map.get(name))
            {
                Some(quantity) => drop(to.get_or_insert_default().insert(name.into(), quantity.clone())),
                None => drop(to.as_mut().and_then(|map| map.remove(name))),
            };
            keep(&mut resources.requests, status.allocated_resources.as_ref());
            keep(&mut resources.limits, status.resources.as_ref().and_then(|r| r.limits.as_ref()));
        }
    }
    agreed
}

/// Whether the pod waits for a resize, as its conditions say.
pub fn waits(of: &Pod) -> bool {
    let conditions = of.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == PENDING && c.status == "True")
}

/// What the node has promised to a pod.
pub fn promised(of: &Pod) -> Amounts {
    if waits(of) { requests(&agreed(of)) } else { requests(of) }
}

/// Judges a resize: the pod asks for `wanted`, the other pods have `used`, the node has `capacity`.
pub fn judge(wanted: Amounts, used: Amounts, capacity: Amounts) -> Verdict {
    let each = [("memory", wanted.memory, used.memory, capacity.memory), ("cpu", wanted.cpu, used.cpu, capacity.cpu)];
    for (name, wanted, _, capacity) in each {
        if wanted > capacity {
            let message =
                format!("Node didn't have enough capacity: {name}, requested: {wanted}, capacity: {capacity}");
            return Verdict::Infeasible(message);
        }
    }
    for (name, wanted, used, capacity) in each {
        if wanted + used > capacity {
            return Verdict::Deferred(format!(
                "Node didn't have enough resource: {name}, requested: {wanted}, used: {used}, capacity: {capacity}"
            ));
        }
    }
    Verdict::Feasible
}

/// Whether a container must start anew for a change of these resources.
pub fn needs_restart(container: &Container, changed: &[&str]) -> bool {
    let policies = container.resize_policy.iter().flatten();
    policies.filter(|p| changed.contains(&p.resource_name.as_str())).any(|p| p.restart_policy == "RestartContainer")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of(spec: Value, allocated: Value, limits: Value) -> Pod {
        serde_json::from_value(json!({"spec": {"containers": [{"name": "c", "resources": spec,
                "resizePolicy": [{"resourceName": "memory", "restartPolicy": "RestartContainer"}]}]},
            "status": {"containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                "state": {"running": {}}, "allocatedResources": allocated, "resources": {"limits": limits}}]}}))
        .unwrap()
    }

    #[test]
    fn changes_are_seen() {
        let cpu = |n: &str| json!({"cpu": n});
        for (spec, allocated, limits, wanted, restart) in [
            (json!({"requests": {"cpu": "100m"}}), cpu("0.1"), json!(null), vec![], false),
            (json!({"requests": {"cpu": "200m"}}), cpu("100m"), json!(null), vec!["cpu"], false),
            (json!({"limits": {"memory": "1Gi"}}), json!(null), json!({"memory": "2Gi"}), vec!["memory"], true),
            (json!({"limits": {"memory": "1Gi"}}), json!(null), json!(null), vec!["memory"], true),
            (json!({}), json!(null), json!(null), vec![], false),
        ] {
            let of = of(spec.clone(), allocated, limits);
            let container = &pod::containers(&of)[0];
            let found = changed(&of, container);
            assert_eq!(found, wanted, "{spec}");
            assert_eq!(needs_restart(container, &found), restart, "{spec}");
            assert_eq!(is_wanted(&of), !wanted.is_empty());
        }
    }

    #[test]
    fn what_waits_keeps_what_it_has() {
        let mut of = of(
            json!({"requests": {"cpu": "8", "memory": "1Mi"}, "limits": {"cpu": "9"}}),
            json!({"cpu": "1", "memory": "1Mi"}),
            json!({"cpu": "2"}),
        );
        assert_eq!(promised(&of), Amounts { cpu: 8000, memory: 1 << 20 });
        let condition = json!([{"type": PENDING, "status": "True"}]);
        of.status.as_mut().unwrap().conditions = serde_json::from_value(condition).unwrap();
        assert_eq!(promised(&of), Amounts { cpu: 1000, memory: 1 << 20 });
        let agreed = agreed(&of);
        assert_eq!(pod::containers(&agreed)[0].resources.as_ref().unwrap().limits.as_ref().unwrap()["cpu"].0, "2");
    }

    #[test]
    fn resizes_are_judged() {
        let amounts = |cpu, memory| Amounts { cpu, memory };
        for (wanted, used, condition, text) in [
            (amounts(500, 1), amounts(400, 1), IN_PROGRESS, ""),
            (amounts(700, 1), amounts(400, 1), PENDING, "cpu, requested: 700, used: 400, capacity: 1000"),
            (amounts(1700, 1), amounts(0, 0), PENDING, "cpu, requested: 1700, capacity: 1000"),
            (amounts(1, 101), amounts(0, 0), PENDING, "memory, requested: 101, capacity: 100"),
        ] {
            let verdict = judge(wanted, used, amounts(1000, 100));
            let (kind, _, message) = verdict.condition();
            assert!(kind == condition && message.contains(text), "{verdict:?}");
        }
    }
}
