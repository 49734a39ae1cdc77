//! Whether the node takes a pod that was bound to it: it may not fit, and whoever bound it may not have looked. A pod that
//! is refused has failed; what made it makes another one. Pods that ran before the agent started are not asked about again.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, Pod};

use crate::agent::Agent;
use crate::allotment::Refusal;
use crate::cri::Running;
use crate::pod_status::Doom;
use crate::pressure::Pressure;
use crate::resize;
use crate::spec::pod;
use crate::spec::resources::{Qos, millis, qos, requests};
use crate::worker::StepError;

/// From this priority on a pod is critical: it is not refused because others were quicker.
const CRITICAL: i32 = 2_000_000_000;
/// The taint of nodes that are short of memory.
const MEMORY_TAINT: &str = "node.kubernetes.io/memory-pressure";
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
    /// What it is short of.
    pub pressure: Pressure,
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
    let critical = is_critical(of);
    if !critical && let Some(conditions) = hinders(of, room.pressure) {
        return Some(refusal("Evicted", format!("Pod was rejected: The node had condition: [{conditions}]. ")));
    }
    if let Some(found) = short_of(of, others, room)
        && (!critical || victims(of, others, room).is_none())
    {
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

/// The node's conditions, if they keep the pod out: those who asked for memory may come while memory alone is short.
fn hinders(of: &Pod, pressure: Pressure) -> Option<String> {
    let all = [("DiskPressure", pressure.disk), ("MemoryPressure", pressure.memory), ("PIDPressure", pressure.pids)];
    let told: Vec<&str> = all.iter().filter(|(_, present)| *present).map(|(name, _)| *name).collect();
    let tolerated = || {
        let spec = of.spec.as_ref();
        spec.iter().flat_map(|s| s.tolerations.iter().flatten()).any(|t| {
            let key = t.key.as_deref().unwrap_or_default();
            let effect = t.effect.as_deref().unwrap_or_default();
            (key == MEMORY_TAINT || (key.is_empty() && t.operator.as_deref() == Some("Exists")))
                && (effect.is_empty() || effect == "NoSchedule")
        })
    };
    let may_come = told == ["MemoryPressure"] && (qos(of) != Qos::BestEffort || tolerated());
    (!told.is_empty() && !may_come).then(|| told.join(" "))
}

/// Whether a pod is one that the node may not do without.
pub fn is_critical(of: &Pod) -> bool {
    of.spec.as_ref().and_then(|s| s.priority).unwrap_or(0) >= CRITICAL
}

/// The pods that are ended to make room for a critical one: as few as will do, and those first that were promised least.
/// `None` if no pods will do.
fn victims(of: &Pod, others: &[Arc<Pod>], room: &Room) -> Option<Vec<Arc<Pod>>> {
    let lesser = |other: &&Arc<Pod>| !is_critical(other);
    let mut going: Vec<Arc<Pod>> = others.iter().filter(lesser).cloned().collect();
    let rank = |other: &Arc<Pod>| match qos(other) {
        Qos::BestEffort => 0,
        Qos::Burstable => 1,
        Qos::Guaranteed => 2,
    };
    let priority = |other: &Arc<Pod>| other.spec.as_ref().and_then(|s| s.priority).unwrap_or(0);
    // Who is promised most is asked first whether it may stay.
    going.sort_by_key(|other| std::cmp::Reverse((rank(other), priority(other))));
    let short_without = |going: &[Arc<Pod>]| {
        let staying = others.iter().filter(|o| !going.iter().any(|g| Arc::ptr_eq(g, o))).cloned().collect::<Vec<_>>();
        short_of(of, &staying, room).is_some()
    };
    if short_without(&going) {
        return None;
    }
    let mut at = 0;
    while at < going.len() {
        let kept = going.remove(at);
        if short_without(&going) {
            going.insert(at, kept);
            at += 1;
        }
    }
    Some(going)
}

fn short_of(of: &Pod, others: &[Arc<Pod>], room: &Room) -> Option<(String, String)> {
    let one = |n: i64, resource: &str| if resource == "cpu" { n } else { n / 1000 };
    let mut used: HashMap<String, i64> = HashMap::new();
    // Who waits for more has what it had.
    let promised = |o: &Pod| if resize::waits(o) { requests(&resize::agreed(o)) } else { requests(o) };
    for (resource, amount) in others.iter().flat_map(|o| promised(o)) {
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
            pressure: *self.pressure.lock(),
        }
    }

    /// Ends others for a critical pod that was taken in.
    fn make_room_for(&self, of: &Pod, others: &[Arc<Pod>]) {
        let going = if is_critical(of) { victims(of, others, &self.room()) } else { None };
        for victim in going.into_iter().flatten() {
            tracing::info!(pod = pod::title(&victim), critical = pod::title(of), "a pod makes room for a critical one");
            let doom = Doom::new("Preempting", "Preempted in order to admit critical pod");
            self.pods.condemn(&pod::uid(&victim), doom.disrupting());
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
            drop(state);
            self.make_room_for(of, &others);
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
            pressure: Pressure::default(),
        }
    }

    #[test]
    fn critical_pods_are_made_room_for() {
        let other = |name: &str, cpu: &str, guaranteed: bool, priority: i32| {
            let amounts = json!({"cpu": cpu, "memory": "1Mi"});
            let limits = if guaranteed { amounts.clone() } else { json!({}) };
            let spec = json!({"priority": priority, "containers": [
                {"name": "c", "resources": {"requests": amounts, "limits": limits}}]});
            let mut made = of(spec);
            made.metadata.name = Some(name.into());
            Arc::new(made)
        };
        let wants = |cpu: &str| {
            of(json!({"priority": CRITICAL, "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}))
        };
        let roomy = Room { allocatable: [("cpu".to_owned(), 4000)].into(), ..room() };
        let small = other("small", "500m", false, 0);
        let large = other("large", "2", false, 5);
        let promised = other("promised", "1", true, 0);
        let critical = other("critical", "500m", false, CRITICAL);
        let others = vec![small, large, promised, critical];
        for (cpu, going) in [
            ("0", Some(vec![])),
            ("500m", Some(vec!["small"])),
            ("1", Some(vec!["large"])),
            ("2500m", Some(vec!["large", "small"])),
            ("3500m", Some(vec!["promised", "large", "small"])),
            ("3600m", None),
        ] {
            let got = victims(&wants(cpu), &others, &roomy);
            let names = got.map(|list| list.iter().map(|p| p.metadata.name.clone().unwrap()).collect::<Vec<_>>());
            assert_eq!(names, going.map(|list| list.into_iter().map(str::to_owned).collect()), "{cpu}");
        }
    }

    #[test]
    fn what_a_pod_waits_for_is_not_its_own() {
        let mut waiting = of(json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "900"}}}]}));
        waiting.status = serde_json::from_value(json!({"phase": "Running",
            "conditions": [{"type": "PodResizePending", "status": "True", "reason": "Infeasible"}],
            "containerStatuses": [{"name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 0,
                "allocatedResources": {"cpu": "1"}, "resources": {"requests": {"cpu": "1"}}, "state": {"running": {}}}]}))
        .unwrap();
        let others = [Arc::new(waiting)];
        let wants = |cpu: &str| of(json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}));
        assert_eq!(short_of(&wants("3"), &others, &room()), None);
        assert!(short_of(&wants("3001m"), &others, &room()).is_some_and(|(reason, _)| reason == "OutOfcpu"));
    }

    #[test]
    fn nodes_that_are_short_take_few() {
        let short = |memory, disk, pids| Room { pressure: Pressure { memory, disk, pids }, ..room() };
        let plain = json!({"containers": [{"name": "c"}]});
        let mut tolerant = plain.clone();
        tolerant["tolerations"] = json!([{"key": MEMORY_TAINT, "operator": "Exists", "effect": "NoSchedule"}]);
        let mut critical = plain.clone();
        critical["priority"] = CRITICAL.into();
        for (spec, room, wanted) in [
            (&plain, short(false, false, false), None),
            (&plain, short(true, false, false), Some("MemoryPressure")),
            (&sized("1", "1"), short(true, false, false), None),
            (&tolerant, short(true, false, false), None),
            (&tolerant, short(true, true, false), Some("DiskPressure MemoryPressure")),
            (&sized("1", "1"), short(false, false, true), Some("PIDPressure")),
            (&critical, short(true, true, true), None),
        ] {
            let got = refused(&of(spec.clone()), &[], &room);
            let wanted = wanted.map(|conditions| {
                ("Evicted".to_owned(), format!("Pod was rejected: The node had condition: [{conditions}]. "))
            });
            assert_eq!(got, wanted, "{spec}");
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
            // Nobody can make room for nine processors of four.
            (critical, vec![other.clone()], Some("OutOfcpu")),
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
