//! Resources as the kernel takes them: shares, quotas and limits of containers and pods, classes of service, scores of
//! the memory killer.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use keelson_machinery::quantity;
use keelson_proto::cri::LinuxContainerResources;

use super::pod;

/// The period of CPU quotas, microseconds.
const PERIOD: i64 = 100_000;
/// The smallest quota that the kernel takes, microseconds.
const MIN_QUOTA: i64 = 1000;
/// The shares of a CPU.
const SHARES: i64 = 1024;
/// The fewest shares that the kernel takes.
const MIN_SHARES: i64 = 2;

/// What the kernel limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource<'a> {
    /// Processor time.
    Cpu,
    /// Memory.
    Memory,
    /// Anything else.
    Other(&'a str),
}

type Quantities = BTreeMap<String, Quantity>;

/// A quantity in thousandths.
pub fn millis(text: &str) -> Option<i64> {
    quantity::Quantity::parse(text).ok().map(|q| q.millis())
}

/// One of the quantities in thousandths.
pub fn amount(map: Option<&Quantities>, name: &str) -> Option<i64> {
    map?.get(name).and_then(|q| millis(&q.0))
}

/// A container's request: its limit if it only has that.
fn request(container: &Container, name: &str) -> Option<i64> {
    let wanted = container.resources.as_ref()?;
    amount(wanted.requests.as_ref(), name).or_else(|| amount(wanted.limits.as_ref(), name))
}

fn limit(container: &Container, name: &str) -> Option<i64> {
    amount(container.resources.as_ref()?.limits.as_ref(), name).filter(|q| *q > 0)
}

/// Shares of so many thousandths of a CPU.
pub fn shares(cpu_millis: i64) -> i64 {
    (cpu_millis * SHARES / 1000).clamp(MIN_SHARES, 262_144)
}

/// The quota of so many thousandths of a CPU, microseconds.
pub fn quota(cpu_millis: i64) -> i64 {
    (cpu_millis * PERIOD / 1000).max(MIN_QUOTA)
}

/// How the pod is treated when the node runs short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    /// Limits equal requests everywhere.
    Guaranteed,
    /// Some requests or limits.
    Burstable,
    /// None at all.
    BestEffort,
}

impl Qos {
    /// As the API has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// The pod's class.
pub fn qos(of: &Pod) -> Qos {
    let mut guaranteed = true;
    let mut any = false;
    let pod_level = of.spec.as_ref().and_then(|s| s.resources.as_ref());
    if let Some(level) = pod_level {
        for name in ["cpu", "memory"] {
            let limit = amount(level.limits.as_ref(), name).filter(|q| *q > 0);
            let request = amount(level.requests.as_ref(), name).or(limit).filter(|q| *q > 0);
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && limit == request;
        }
    } else {
        for (_, container) in pod::all(of) {
            for name in ["cpu", "memory"] {
                let (limit, request) = (limit(container, name), request(container, name).filter(|q| *q > 0));
                any |= limit.is_some() || request.is_some();
                guaranteed &= limit.is_some() && limit == request;
            }
        }
    }
    match (any, guaranteed) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    }
}

/// How readily the kernel kills the container when memory is short: -997 to 1000.
fn oom_score(of: &Pod, container: &Container, node_memory: i64) -> i64 {
    if of.spec.as_ref().and_then(|s| s.priority_class_name.as_deref()) == Some("system-node-critical") {
        return -997;
    }
    match qos(of) {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let wanted = request(container, "memory").unwrap_or(0) / 1000;
            let score =
                1000 - i64::try_from(1000 * i128::from(wanted) / i128::from(node_memory.max(1))).unwrap_or(1000);
            score.clamp(3, 999)
        }
    }
}

/// What containers need at most at one time, from what each needs.
fn together(of: &Pod, one: impl Fn(&Container) -> i64) -> i64 {
    let (mut sidecars, mut peak) = (0, 0);
    for init in pod::init_containers(of) {
        let own = one(init);
        peak = peak.max(sidecars + own);
        if pod::is_sidecar(init) {
            sidecars += own;
        }
    }
    let mains: i64 = pod::containers(of).iter().map(&one).sum();
    peak.max(mains + sidecars)
}

/// What a pod may use of a resource, in thousandths, if any of its containers is limited.
pub fn limits(of: &Pod, name: &str) -> Option<i64> {
    let limited = pod::all(of).any(|(_, c)| limit(c, name).is_some());
    limited.then(|| together(of, |c| limit(c, name).unwrap_or(0)))
}

/// What a pod asks for of every resource, in thousandths: what it needs at most at one time.
pub fn requests(of: &Pod) -> BTreeMap<String, i64> {
    let level = of.spec.as_ref().and_then(|s| s.resources.as_ref());
    let of_containers = pod::all(of).filter_map(|(_, c)| c.resources.as_ref());
    let names =
        of_containers.chain(level).flat_map(|r| r.requests.iter().chain(&r.limits).flatten().map(|(name, _)| name));
    let overhead = of.spec.as_ref().and_then(|s| s.overhead.as_ref());
    let names: std::collections::BTreeSet<&String> =
        names.chain(overhead.into_iter().flatten().map(|(n, _)| n)).collect();
    let whole = |name: &str| {
        let of_level = level.and_then(|l| amount(l.requests.as_ref(), name));
        let of_containers = || together(of, |c| request(c, name).unwrap_or(0));
        of_level.unwrap_or_else(of_containers) + amount(overhead, name).unwrap_or(0)
    };
    names.into_iter().map(|name| (name.clone(), whole(name))).collect()
}

/// CPU shares, quota, memory limit and score of a container.
pub fn container(of: &Pod, container: &Container, node_memory: i64) -> LinuxContainerResources {
    LinuxContainerResources {
        cpu_period: PERIOD,
        cpu_quota: limit(container, "cpu").map_or(0, quota),
        cpu_shares: shares(request(container, "cpu").unwrap_or(0)),
        memory_limit_in_bytes: limit(container, "memory").map_or(0, |m| m / 1000),
        oom_score_adj: oom_score(of, container, node_memory),
        ..LinuxContainerResources::default()
    }
}

/// What a pod's sandbox costs beside its containers.
pub fn overhead(of: &Quantities) -> LinuxContainerResources {
    let cpu = amount(Some(of), "cpu");
    LinuxContainerResources {
        cpu_period: PERIOD,
        cpu_quota: cpu.map_or(0, quota),
        cpu_shares: cpu.map_or(0, shares),
        memory_limit_in_bytes: amount(Some(of), "memory").unwrap_or(0) / 1000,
        ..LinuxContainerResources::default()
    }
}

/// What a pod's containers get in all: runtimes that run a machine for each pod make it that large.
pub fn sandbox(of: &Pod) -> LinuxContainerResources {
    let limits = pod_limits(of);
    LinuxContainerResources {
        cpu_period: PERIOD,
        cpu_quota: limits.quota.unwrap_or(0),
        cpu_shares: limits.shares,
        memory_limit_in_bytes: limits.memory.unwrap_or(0),
        ..LinuxContainerResources::default()
    }
}

/// What the control group of a whole pod gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodLimits {
    /// Relative weight.
    pub shares: i64,
    /// Microseconds per [`PERIOD`], if limited.
    pub quota: Option<i64>,
    /// Bytes, if limited.
    pub memory: Option<i64>,
}

impl PodLimits {
    /// What is enough for both.
    pub fn larger(self, other: Self) -> Self {
        let most = |a: Option<i64>, b: Option<i64>| a.zip(b).map(|(a, b)| a.max(b));
        Self {
            shares: self.shares.max(other.shares),
            quota: most(self.quota, other.quota),
            memory: most(self.memory, other.memory),
        }
    }
}

/// Requests and limits of a pod as a whole: sidecars add to the main containers, init containers run before them.
pub fn pod_limits(of: &Pod) -> PodLimits {
    let level = of.spec.as_ref().and_then(|s| s.resources.as_ref());
    let overhead = |name| amount(of.spec.as_ref().and_then(|s| s.overhead.as_ref()), name).unwrap_or(0);
    let sum = |value: &dyn Fn(&Container) -> Option<i64>| -> Option<i64> {
        let mains: Option<i64> = pod::containers(of).iter().map(value).sum();
        let (mut sidecars, mut peak) = (0, 0);
        for init in pod::init_containers(of) {
            let own = value(init)?;
            peak = peak.max(sidecars + own);
            if pod::is_sidecar(init) {
                sidecars += own;
            }
        }
        Some(peak.max(mains? + sidecars))
    };
    let requests = level.and_then(|l| amount(l.requests.as_ref(), "cpu"));
    let cpu = requests.or_else(|| sum(&|c| Some(request(c, "cpu").unwrap_or(0)))).unwrap_or(0);
    let limited = |name: &'static str| {
        let of_level = level.and_then(|l| amount(l.limits.as_ref(), name));
        of_level.or_else(|| sum(&|c| limit(c, name))).map(|l| l + overhead(name))
    };
    PodLimits {
        shares: shares(cpu + overhead("cpu")),
        quota: limited("cpu").map(quota),
        memory: limited("memory").map(|m| m / 1000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of(containers: Value, init: Value) -> Pod {
        serde_json::from_value(json!({"spec": {"containers": containers, "initContainers": init}})).unwrap()
    }

    #[test]
    fn limits_become_cgroup_numbers() {
        let pod = of(
            json!([{"name": "c", "resources": {"requests": {"cpu": "100m"}, "limits": {"cpu": "500m", "memory": "64Mi"}}}]),
            json!([]),
        );
        let got = container(&pod, &pod::containers(&pod)[0], 1 << 30);
        assert_eq!((got.cpu_shares, got.cpu_quota, got.memory_limit_in_bytes), (102, 50_000, 64 << 20));
        assert_eq!(got.oom_score_adj, 1000 - 62);
        let none = of(json!([{"name": "c"}]), json!([]));
        let got = container(&none, &pod::containers(&none)[0], 1 << 30);
        assert_eq!((got.cpu_shares, got.cpu_quota, got.oom_score_adj), (2, 0, 1000));
    }

    #[test]
    fn classes_of_service() {
        let both = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
        for (resources, wanted) in [
            (json!({}), Qos::BestEffort),
            (both.clone(), Qos::Guaranteed),
            (json!({"limits": {"cpu": "1"}}), Qos::Burstable),
            (json!({"requests": {"cpu": "1m"}}), Qos::Burstable),
            (json!({"requests": {"cpu": "500m"}, "limits": {"cpu": "1", "memory": "1Gi"}}), Qos::Burstable),
        ] {
            assert_eq!(qos(&of(json!([{"name": "c", "resources": resources}]), json!([]))), wanted, "{resources}");
        }
    }

    #[test]
    fn a_pod_needs_the_larger_of_its_phases() {
        let cpu = |n: &str| json!({"requests": {"cpu": n}, "limits": {"cpu": n, "memory": "1Mi"}});
        let pod = of(
            json!([{"name": "a", "resources": cpu("100m")}]),
            json!([{"name": "s", "restartPolicy": "Always", "resources": cpu("100m")}, {"name": "i", "resources": cpu("500m")}]),
        );
        assert_eq!(pod_limits(&pod), PodLimits { shares: 614, quota: Some(60_000), memory: Some(2 << 20) });
        assert_eq!(
            pod_limits(&of(json!([{"name": "a"}]), json!([]))),
            PodLimits { shares: 2, quota: None, memory: None }
        );
    }
}
