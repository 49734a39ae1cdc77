//! Whether the node takes a pod that was bound to it: it may not fit, and whoever bound it may not have looked. A pod that
//! is refused has failed; what made it makes another one. Pods that ran before the agent started are not asked about again.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, Pod};

use crate::agent::Agent;
use crate::allotment::Refusal;
use crate::cri::Running;
use crate::pod_status::Doom;
use crate::spec::pod;
use crate::spec::resources::{millis, requests};
use crate::worker::StepError;

/// From this priority on a pod is critical: it is not refused because others were quicker.
const CRITICAL: i32 = 2_000_000_000;
/// Sysctls that belong to a pod's own namespaces and harm nobody else; upstream's list.
const SAFE_SYSCTLS: &[&str] = &[
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// What the node has and is.
pub struct Room {
    /// What pods may have in all, in thousandths, by resource.
    pub allocatable: BTreeMap<String, i64>,
    /// The node's labels; `None` before it was seen.
    pub labels: Option<BTreeMap<String, String>>,
    /// Its name.
    pub name: String,
    /// Sysctls that are allowed beyond the safe ones; a `*` at the end stands for anything.
    pub sysctls: Vec<String>,
}

fn refusal(reason: impl Into<String>, message: impl Into<String>) -> (String, String) {
    (reason.into(), message.into())
}

/// Reason and message why the node does not take a pod beside the others.
pub fn refused(of: &Pod, others: &[Arc<Pod>], room: &Room) -> Option<(String, String)> {
    let spec = of.spec.as_ref()?;
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        let message = "Failed to admit pod as the OS field doesn't match node OS";
        return Some(refusal("PodOSNotSupported", message));
    }
    let critical = spec.priority.unwrap_or(0) >= CRITICAL;
    if !critical && let Some(found) = short_of(of, others, room) {
        return Some(found);
    }
    if let Some(labels) = &room.labels
        && !fits_node(of, labels, &room.name)
    {
        let message = "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
        return Some(refusal("NodeAffinity", message));
    }
    if !critical
        && let Some(port) = host_ports(of).find(|port| others.iter().any(|o| host_ports(o).any(|p| p.clashes(port))))
    {
        let message = "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
        tracing::info!(pod = pod::title(of), port = port.number, "a port of the node is taken");
        return Some(refusal("NodePorts", message));
    }
    forbidden_sysctl(of, &room.sysctls)
}

fn short_of(of: &Pod, others: &[Arc<Pod>], room: &Room) -> Option<(String, String)> {
    let one = |n: i64, resource: &str| if resource == "cpu" { n } else { n / 1000 };
    let mut used: HashMap<String, i64> = HashMap::new();
    for (resource, amount) in others.iter().flat_map(|o| requests(o)) {
        *used.entry(resource).or_default() += amount;
    }
    let mut wanted = requests(of);
    wanted.insert("pods".into(), 1000);
    used.insert("pods".into(), 1000 * i64::try_from(others.len()).unwrap_or(i64::MAX / 1000));
    for (resource, wanted) in wanted.into_iter().filter(|(_, amount)| *amount > 0) {
        // What the node does not tell of is not counted, as upstream does not.
        let Some(capacity) = room.allocatable.get(&resource).copied() else { continue };
        let used = used.get(&resource).copied().unwrap_or(0);
        if wanted > capacity - used {
            let [wanted, used, capacity] = [wanted, used, capacity].map(|n| one(n, &resource));
            let message = format!(
                "Node didn't have enough resource: {resource}, requested: {wanted}, used: {used}, capacity: {capacity}"
            );
            return Some(refusal(format!("OutOf{resource}"), message));
        }
    }
    None
}

fn matches(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|value| values.iter().any(|v| v == value));
    let number = |text: Option<&str>| text.and_then(|t| t.parse::<i64>().ok());
    let compared = |holds: fn(i64, i64) -> bool| {
        number(value).zip(number(values.first().map(String::as_str))).is_some_and(|(a, b)| holds(a, b))
    };
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared(|a, b| a > b),
        "Lt" => compared(|a, b| a < b),
        _ => false,
    }
}

/// Whether the node is one that the pod asks for.
fn fits_node(of: &Pod, labels: &BTreeMap<String, String>, name: &str) -> bool {
    let Some(spec) = &of.spec else { return true };
    let selected = spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let required = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let required = required.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let term = |term: &NodeSelectorTerm| {
        let by_label = term.match_expressions.as_deref().unwrap_or_default();
        let by_field = term.match_fields.as_deref().unwrap_or_default();
        // A term that asks for nothing is met by no node.
        !(by_label.is_empty() && by_field.is_empty())
            && by_label.iter().all(|r| matches(r, labels.get(&r.key).map(String::as_str)))
            && by_field.iter().all(|r| r.key == "metadata.name" && matches(r, Some(name)))
    };
    selected && required.is_none_or(|required| required.node_selector_terms.iter().any(term))
}

/// A port of the node that a pod wants.
#[derive(Clone, PartialEq, Eq)]
struct HostPort {
    number: i32,
    protocol: String,
    ip: String,
}

impl HostPort {
    fn clashes(&self, other: &Self) -> bool {
        let any = |ip: &str| ip.is_empty() || ip == "0.0.0.0" || ip == "::";
        self.number == other.number
            && self.protocol == other.protocol
            && (any(&self.ip) || any(&other.ip) || self.ip == other.ip)
    }
}

fn host_ports(of: &Pod) -> impl Iterator<Item = HostPort> {
    let ports = pod::all(of).flat_map(|(_, c)| c.ports.iter().flatten());
    ports.filter_map(|p| {
        Some(HostPort {
            number: p.host_port.filter(|port| *port > 0)?,
            protocol: p.protocol.clone().unwrap_or_else(|| "TCP".into()),
            ip: p.host_ip.clone().unwrap_or_default(),
        })
    })
}

fn forbidden_sysctl(of: &Pod, allowed: &[String]) -> Option<(String, String)> {
    let spec = of.spec.as_ref()?;
    let (network, ipc) = (spec.host_network == Some(true), spec.host_ipc == Some(true));
    for sysctl in spec.security_context.iter().flat_map(|s| s.sysctls.iter().flatten()) {
        let name = sysctl.name.replace('/', ".");
        let fits = |pattern: &str| pattern.strip_suffix('*').map_or(pattern == name, |start| name.starts_with(start));
        let why = if network && name.starts_with("net.") {
            "not allowed with host net enabled"
        } else if ipc
            && (name.starts_with("kernel.shm") || name.starts_with("kernel.msg") || name.starts_with("fs.mqueue."))
        {
            "not allowed with host ipc enabled"
        } else if SAFE_SYSCTLS.contains(&name.as_str()) || allowed.iter().any(|pattern| fits(pattern)) {
            continue;
        } else {
            "not allowlisted"
        };
        return Some(refusal("SysctlForbidden", format!("forbidden sysctl: \"{}\" {why}", sysctl.name)));
    }
    None
}

impl Agent {
    fn room(&self) -> Room {
        let allocatable = self.allocatable().into_iter().filter_map(|(name, text)| Some((name, millis(&text)?)));
        Room {
            allocatable: allocatable.collect(),
            labels: self.seen_node.lock().as_ref().map(|node| node.metadata.labels.clone().unwrap_or_default()),
            name: self.config.node_name.clone(),
            sysctls: self.config.allowed_sysctls.clone(),
        }
    }

    /// Takes a pod in, with the devices and processors that it asks for; or says why it cannot be.
    pub(crate) async fn admit(&self, of: &Pod, seen: &Running) -> Result<Option<Doom>, StepError> {
        let uid = pod::uid(of);
        let mut state = self.allotments.lock().await;
        self.restore(&mut state).await?;
        if state.admitted.contains(&uid) {
            return Ok(None);
        }
        let begun = !seen.sandboxes.is_empty() || of.status.as_ref().is_some_and(|s| s.start_time.is_some());
        if begun {
            state.admitted.insert(uid);
            return Ok(None);
        }
        let here = |other: &Arc<Pod>| !pod::is_finished(other) && state.admitted.contains(&pod::uid(other));
        let others: Vec<Arc<Pod>> = self.pods.list().into_iter().filter(here).collect();
        let mut refused = refused(of, &others, &self.room());
        if refused.is_none()
            && let Err(why) = self.allot(&mut state, of).await
        {
            refused = Some(match why {
                Refusal::Topology => refusal("TopologyAffinityError", why.to_string()),
                Refusal::Short(why) => {
                    let message = format!("Allocate failed due to {why}, which is unexpected");
                    refusal("UnexpectedAdmissionError", message)
                }
            });
        }
        let Some((reason, message)) = refused else {
            state.admitted.insert(uid);
            return Ok(None);
        };
        drop(state);
        tracing::info!(pod = pod::title(of), reason, message, "a pod is refused");
        self.events.warning(of, None, reason.clone(), message.clone());
        Ok(Some(Doom::new(reason, format!("Pod was rejected: {message}"))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec})).unwrap()
    }

    fn sized(cpu: &str, init: &str) -> Value {
        let requests = |cpu: &str| json!({"requests": {"cpu": cpu, "memory": "1Mi", "example.com/d": "1"}});
        json!({"containers": [{"name": "c", "resources": requests(cpu)}],
            "initContainers": [{"name": "i", "resources": requests(init)}]})
    }

    fn room() -> Room {
        let allocatable = [("cpu", 4000), ("memory", 8 << 40), ("pods", 3000), ("example.com/d", 2000)];
        Room {
            allocatable: allocatable.map(|(name, n)| (name.to_owned(), n)).into(),
            labels: Some([("zone".to_owned(), "a".to_owned()), ("size".to_owned(), "5".to_owned())].into()),
            name: "n1".into(),
            sysctls: vec!["kernel.msg*".into()],
        }
    }

    #[test]
    fn pods_that_do_not_fit() {
        let other = Arc::new(of(sized("1", "1m")));
        let port = |number: i32, ip: &str| json!({"containers": [{"name": "c", "ports": [{"containerPort": 1, "hostPort": number, "hostIP": ip}]}]});
        let taken = Arc::new(of(port(80, "10.0.0.1")));
        let affinity = |key: &str, operator: &str, value: &str| {
            json!({"containers": [], "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                {"nodeSelectorTerms": [{"matchExpressions": [{"key": key, "operator": operator, "values": [value]}]}]}}}})
        };
        let sysctl =
            |name: &str| json!({"containers": [], "securityContext": {"sysctls": [{"name": name, "value": "1"}]}});
        let mut host = sysctl("net.ipv4.tcp_syncookies");
        host["hostNetwork"] = true.into();
        let mut critical = sized("9", "1m");
        critical["priority"] = CRITICAL.into();
        let three = vec![other.clone(), other.clone(), other.clone()];
        for (spec, others, reason) in [
            (sized("3", "1m"), vec![other.clone()], None),
            (sized("3001m", "1m"), vec![other.clone()], Some("OutOfcpu")),
            (sized("1", "3500m"), vec![other.clone()], Some("OutOfcpu")),
            (critical, vec![other.clone()], None),
            (sized("1m", "1m"), vec![other.clone(), other.clone()], Some("OutOfexample.com/d")),
            (json!({"containers": []}), three, Some("OutOfpods")),
            (port(80, ""), vec![taken.clone()], Some("NodePorts")),
            (port(80, "10.0.0.2"), vec![taken.clone()], None),
            (port(81, ""), vec![taken], None),
            (affinity("zone", "In", "a"), vec![], None),
            (affinity("zone", "NotIn", "a"), vec![], Some("NodeAffinity")),
            (affinity("size", "Gt", "4"), vec![], None),
            (affinity("size", "Lt", "4"), vec![], Some("NodeAffinity")),
            (json!({"containers": [], "nodeSelector": {"zone": "b"}}), vec![], Some("NodeAffinity")),
            (sysctl("kernel.shm_rmid_forced"), vec![], None),
            (sysctl("kernel.msgmax"), vec![], None),
            (sysctl("kernel/sem"), vec![], Some("SysctlForbidden")),
            (host, vec![], Some("SysctlForbidden")),
            (json!({"containers": [], "os": {"name": "windows"}}), vec![], Some("PodOSNotSupported")),
        ] {
            let got = refused(&of(spec.clone()), &others, &room());
            assert_eq!(got.as_ref().map(|(reason, _)| reason.as_str()), reason, "{spec} {got:?}");
        }
    }
}
