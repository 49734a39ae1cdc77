//! What pods ask for (`requests`) and may use (`limits`): sums over their containers, as schedulers, quotas and limits count
//! them.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::quantity::Quantity;

/// Amounts by the name of a resource.
pub type Amounts = BTreeMap<String, Quantity>;

/// The amounts of a list such as `resources.requests`.
pub fn amounts(list: &Value) -> Amounts {
    list.as_object().into_iter().flatten().filter_map(|(name, value)| Some((name.clone(), amount(value)?))).collect()
}

/// An amount as JSON has it.
pub fn amount(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => Quantity::parse(text).ok(),
        Value::Number(number) => Quantity::parse(&number.to_string()).ok(),
        _ => None,
    }
}

/// Adds amounts.
pub fn add(total: &mut Amounts, part: &Amounts) {
    for (name, amount) in part {
        let sum = total.get(name).map_or(*amount, |total| *total + *amount);
        total.insert(name.clone(), sum);
    }
}

/// Keeps the greater ones.
pub fn raise(most: &mut Amounts, part: &Amounts) {
    for (name, amount) in part {
        if most.get(name).is_none_or(|most| most < amount) {
            most.insert(name.clone(), *amount);
        }
    }
}

/// Whether a pod may ask for a resource itself, beside its containers (KEP-2837).
pub fn is_of_pods(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with("hugepages-")
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// The containers that run along together, or what one of those that run before them needs beside those that already do,
/// whichever is more (KEP-753).
fn together(spec: &Value, of: impl Fn(&Value) -> Amounts) -> Amounts {
    let (mut total, mut most, mut sidecars) = (Amounts::new(), Amounts::new(), Amounts::new());
    items(&spec["containers"]).for_each(|container| add(&mut total, &of(container)));
    for container in items(&spec["initContainers"]) {
        let mut own = of(container);
        if container["restartPolicy"] == "Always" {
            add(&mut total, &own);
            add(&mut sidecars, &own);
            own = sidecars.clone();
        } else {
            add(&mut own, &sidecars);
        }
        raise(&mut most, &own);
    }
    raise(&mut total, &most);
    total
}

/// What the containers of a pod's spec ask for (`list` is `requests`) or may use (`limits`) together.
pub fn of_containers(spec: &Value, list: &str) -> Amounts {
    together(spec, |container| amounts(&container["resources"][list]))
}

/// The same of a pod's spec: what it says itself goes before what its containers say.
pub fn of_spec(spec: &Value, list: &str, is_of_pods: impl Fn(&str) -> bool) -> Amounts {
    let mut sum = of_containers(spec, list);
    sum.extend(own(spec, list, is_of_pods));
    sum
}

fn own(spec: &Value, list: &str, is_of_pods: impl Fn(&str) -> bool) -> impl Iterator<Item = (String, Quantity)> {
    amounts(&spec["resources"][list]).into_iter().filter(move |(name, _)| is_of_pods(name))
}

/// The same of a pod with its overhead.
pub fn of_pod(pod: &Value, list: &str) -> Amounts {
    with_overhead(&pod["spec"], list, of_spec(&pod["spec"], list, is_of_pods))
}

/// The same while the pod may be resized: a container has what it had, if that is more, and is never to have what its node
/// cannot give (KEP-1287).
pub fn of_resized_pod(pod: &Value, list: &str) -> Amounts {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let infeasible = items(&status["conditions"])
        .any(|condition| condition["type"] == "PodResizePending" && condition["reason"] == "Infeasible");
    let mut sum = together(spec, |container| {
        let wanted = amounts(&container["resources"][list]);
        let mut statuses =
            ["containerStatuses", "initContainerStatuses"].into_iter().flat_map(|key| items(&status[key]));
        let found = statuses.find(|status| status["name"] == container["name"]);
        let Some(found) = found.filter(|status| status["resources"].is_object()) else { return wanted };
        let mut has = amounts(&found["resources"][list]);
        if list == "requests" {
            raise(&mut has, &amounts(&found["allocatedResources"]));
        }
        if !infeasible {
            raise(&mut has, &wanted);
        }
        has
    });
    sum.extend(own(spec, list, is_of_pods));
    with_overhead(spec, list, sum)
}

/// Overhead is used, but limits nothing that is not limited.
fn with_overhead(spec: &Value, list: &str, mut sum: Amounts) -> Amounts {
    let overhead = amounts(&spec["overhead"]).into_iter();
    let counted: Amounts = overhead.filter(|(name, _)| list == "requests" || sum.contains_key(name)).collect();
    add(&mut sum, &counted);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn shown(amounts: &Amounts) -> String {
        amounts.iter().map(|(name, amount)| format!("{name}={amount}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_pod_needs_what_its_neediest_moment_needs() {
        let with = |cpu: &str| json!({"name": cpu, "resources": {"requests": {"cpu": cpu}}});
        let mut sidecar = with("300m");
        sidecar["restartPolicy"] = "Always".into();
        let pod = json!({"spec": {"containers": [with("1"), with("500m")], "initContainers": [sidecar, with("2")],
            "overhead": {"cpu": "100m", "memory": "1Mi"}}});
        assert_eq!(shown(&of_pod(&pod, "requests")), "cpu=2400m memory=1Mi");
        assert_eq!(shown(&of_pod(&pod, "limits")), "");
        assert_eq!(shown(&of_containers(&pod["spec"], "requests")), "cpu=2300m");
    }

    #[test]
    fn a_pod_may_say_it_itself() {
        let spec = json!({"containers": [{"resources": {"limits": {"cpu": "1", "memory": "1Gi", "ephemeral-storage": "1"}}}],
            "resources": {"limits": {"cpu": "3", "hugepages-2Mi": "4Mi"}}});
        assert_eq!(
            shown(&of_spec(&spec, "limits", is_of_pods)),
            "cpu=3 ephemeral-storage=1 hugepages-2Mi=4Mi memory=1Gi"
        );
        let pod = json!({"spec": spec});
        assert_eq!(shown(&of_pod(&pod, "limits")), "cpu=3 ephemeral-storage=1 hugepages-2Mi=4Mi memory=1Gi");
    }

    #[test]
    fn what_is_being_resized_counts_at_its_most() {
        let pod = |wanted: &str, has: &str, allocated: &str, reason: &str| {
            json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": wanted}}}]},
                "status": {"containerStatuses": [{"name": "c", "resources": {"requests": {"cpu": has}},
                    "allocatedResources": {"cpu": allocated}}],
                    "conditions": [{"type": "PodResizePending", "reason": reason}]}})
        };
        for (wanted, has, allocated, reason, expected) in [
            ("1", "2", "1", "", "cpu=2"),
            ("1", "1", "3", "Deferred", "cpu=3"),
            ("9", "1", "1", "Deferred", "cpu=9"),
            ("9", "1", "2", "Infeasible", "cpu=2"),
        ] {
            let found = of_resized_pod(&pod(wanted, has, allocated, reason), "requests");
            assert_eq!(shown(&found), expected, "{wanted} {has} {allocated} {reason}");
        }
        let mut other = pod("1", "5", "5", "");
        other["status"]["containerStatuses"][0]["name"] = "d".into();
        assert_eq!(shown(&of_resized_pod(&other, "requests")), "cpu=1");
    }
}
