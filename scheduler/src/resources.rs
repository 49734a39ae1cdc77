//! What a pod requests, in integers: thousandths of a CPU, bytes, whole pieces of anything else.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Written;
use keelson_machinery::quantity::Quantity;

use crate::intern::{Interner, Sym};
use crate::wire::{Container, Pod, PodSpec, Quantities, Resources};

/// What scores count for a container that requests no CPU, in thousandths.
const DEFAULT_MILLI_CPU: i64 = 100;
/// What scores count for a container that requests no memory, in bytes.
const DEFAULT_MEMORY_BYTES: i64 = 200 << 20;

/// What a pod requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Requests {
    /// Thousandths of a CPU.
    pub cpu: i64,
    /// Bytes.
    pub memory: i64,
    /// CPU as scores count it: with a default for containers that request none.
    pub nonzero_cpu: i64,
    /// Memory as scores count it.
    pub nonzero_memory: i64,
    /// Everything else that is more than 0, sorted.
    pub extra: Vec<(Sym, i64)>,
}

/// A quantity of a resource as an integer; what is no quantity counts as 0 (the API refuses such).
pub fn amount(name: &str, quantity: &Written) -> i64 {
    let quantity = Quantity::parse(&quantity.0).unwrap_or_default();
    if name == "cpu" { quantity.millis() } else { quantity.units() }
}

type Sums = BTreeMap<String, i64>;

fn sums(quantities: &Quantities) -> Sums {
    quantities.iter().map(|(name, quantity)| (name.clone(), amount(name, quantity))).collect()
}

fn raise(into: &mut Sums, other: &Sums) {
    for (name, amount) in other {
        let entry = into.entry(name.clone()).or_default();
        *entry = (*entry).max(*amount);
    }
}

fn plus(into: &mut Sums, other: &Sums) {
    for (name, amount) in other {
        *into.entry(name.clone()).or_default() += amount;
    }
}

/// Requests of the spec or, while a resize is under way, of what is held if that is more; a resize that cannot be done does not
/// count. `held` is what is allocated and what is in force; `None`: the node has not said.
fn resized(pod: &Pod, asked: &Quantities, held: Option<(&Quantities, &Resources)>) -> Sums {
    let Some((allocated, in_force)) = held else { return sums(asked) };
    let infeasible = pod.status.conditions.iter().any(|c| c.kind == "PodResizePending" && c.reason == "Infeasible");
    let mut requests = if infeasible { Sums::new() } else { sums(asked) };
    raise(&mut requests, &sums(allocated));
    raise(&mut requests, &sums(&in_force.requests));
    requests
}

/// Requests of a container.
fn of_container(pod: &Pod, container: &Container) -> Sums {
    let statuses = pod.status.container_statuses.iter().chain(&pod.status.init_container_statuses);
    let status = statuses.into_iter().find(|s| s.name == container.name);
    let held = status.and_then(|s| Some((&s.allocated_resources, s.resources.as_ref()?)));
    resized(pod, &container.resources.requests, held)
}

/// Sum over containers and sidecars, or the largest init container with the sidecars started before it.
fn total(spec: &PodSpec, of: impl Fn(&Container) -> Sums) -> Sums {
    let mut running = Sums::new();
    for container in &spec.containers {
        plus(&mut running, &of(container));
    }
    let (mut sidecars, mut initial) = (Sums::new(), Sums::new());
    for container in &spec.init_containers {
        let mut requests = of(container);
        if container.restart_policy == "Always" {
            plus(&mut running, &requests);
            plus(&mut sidecars, &requests);
            requests = sidecars.clone();
        } else {
            plus(&mut requests, &sidecars);
        }
        raise(&mut initial, &requests);
    }
    raise(&mut running, &initial);
    running
}

/// Which resources a pod may request as a whole.
fn pod_level(name: &str) -> bool {
    name == "cpu" || name == "memory" || name.starts_with("hugepages-")
}

/// What a pod requests.
pub fn requests(pod: &Pod, syms: &mut Interner) -> Requests {
    let spec = &pod.spec;
    let held = pod.status.resources.as_ref().map(|r| (&pod.status.allocated_resources, r));
    let whole = match spec.resources.requests.is_empty() {
        true => Sums::new(),
        false => resized(pod, &spec.resources.requests, held).into_iter().filter(|(name, _)| pod_level(name)).collect(),
    };
    let mut exact = total(spec, |c| of_container(pod, c));
    let mut nonzero = total(spec, |c| {
        let mut requests = of_container(pod, c);
        for (name, default) in [("cpu", DEFAULT_MILLI_CPU), ("memory", DEFAULT_MEMORY_BYTES)] {
            if !whole.contains_key(name) && !c.resources.requests.contains_key(name) {
                requests.insert(name.into(), default);
            }
        }
        requests
    });
    let overhead = sums(&spec.overhead);
    for sum in [&mut exact, &mut nonzero] {
        sum.extend(whole.iter().map(|(name, amount)| (name.clone(), *amount)));
        plus(sum, &overhead);
    }
    let get = |sums: &Sums, name: &str| sums.get(name).copied().unwrap_or(0);
    let mut extra: Vec<(Sym, i64)> = exact
        .iter()
        .filter(|(name, amount)| **amount > 0 && !matches!(name.as_str(), "cpu" | "memory" | "pods"))
        .map(|(name, amount)| (syms.sym(name), *amount))
        .collect();
    extra.sort_unstable();
    Requests {
        cpu: get(&exact, "cpu"),
        memory: get(&exact, "memory"),
        nonzero_cpu: get(&nonzero, "cpu"),
        nonzero_memory: get(&nonzero, "memory"),
        extra,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn what_pods_request() {
        let container =
            |cpu: &str, memory: &str| json!({"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}});
        let sidecar =
            |cpu: &str| json!({"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": cpu}}});
        let table: Vec<(&str, Value, [i64; 4])> = vec![
            ("nothing", json!({"containers": [{"name": "c"}]}), [0, 0, 100, 200 << 20]),
            ("two", json!({"containers": [container("1", "1Ki"), container("250m", "1")]}), [1250, 1025, 1250, 1025]),
            (
                "a large init container",
                json!({"containers": [container("1", "1")], "initContainers": [container("2", "0")]}),
                [2000, 1, 2000, 1],
            ),
            (
                "a sidecar runs along",
                json!({"containers": [container("1", "1")], "initContainers": [sidecar("1"), container("1500m", "1")]}),
                [2500, 1, 2500, 1 + (200 << 20)],
            ),
            ("overhead", json!({"containers": [container("1", "1")], "overhead": {"cpu": "10m"}}), [1010, 1, 1010, 1]),
            (
                "the pod as a whole",
                json!({"containers": [container("1", "1")], "resources": {"requests": {"cpu": "3"}}}),
                [3000, 1, 3000, 1],
            ),
        ];
        for (what, spec, expected) in table {
            let pod: Pod = serde_json::from_value(json!({"spec": spec})).unwrap();
            let got = requests(&pod, &mut Interner::default());
            assert_eq!([got.cpu, got.memory, got.nonzero_cpu, got.nonzero_memory], expected, "{what}");
        }
    }

    #[test]
    fn what_pods_hold_while_they_are_resized() {
        let status = |cpu: &str, allocated: &str| json!([{"name": "c", "resources": {"requests": {"cpu": cpu}}, "allocatedResources": {"cpu": allocated}}]);
        let pending = |reason: &str| json!([{"type": "PodResizePending", "status": "True", "reason": reason}]);
        for (what, asked, status, expected) in [
            ("it asks for more", "2", json!({"containerStatuses": status("1", "1")}), 2000),
            ("it asks for less", "1", json!({"containerStatuses": status("2", "1")}), 2000),
            ("it is allocated and not yet in force", "1", json!({"containerStatuses": status("1", "3")}), 3000),
            (
                "it asks for more than the node can ever give",
                "9",
                json!({"conditions": pending("Infeasible"), "containerStatuses": status("1", "2")}),
                2000,
            ),
            (
                "the node will give it later",
                "9",
                json!({"conditions": pending("Deferred"), "containerStatuses": status("1", "2")}),
                9000,
            ),
            ("the node has said nothing", "9", json!({"conditions": pending("Infeasible")}), 9000),
        ] {
            let pod = json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": asked}}}]},
                "status": status});
            let got = requests(&serde_json::from_value(pod).unwrap(), &mut Interner::default());
            assert_eq!(got.cpu, expected, "{what}");
        }
        let whole = json!({"spec": {"containers": [{"name": "c"}], "resources": {"requests": {"cpu": "1"}}},
            "status": {"resources": {"requests": {"cpu": "3"}}, "allocatedResources": {"cpu": "2"}}});
        let got = requests(&serde_json::from_value(whole).unwrap(), &mut Interner::default());
        assert_eq!(got.cpu, 3000, "the pod as a whole");
    }
}
