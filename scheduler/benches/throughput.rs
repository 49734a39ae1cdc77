//! How fast pods are scheduled, without an API server: `cargo bench -p keelson-scheduler -- [CASE...] [--nodes N] [--pods N]`.
//!
//! Every case builds a cluster, places pods that are there before, then times decisions: from a decoded pod to its node,
//! taking over the pod included. The counters that a decision reads are kept up while it runs, as in a server.

use std::time::Instant;

use keelson_scheduler::config::{Config, ConfigError};
use keelson_scheduler::core::{Act, Change, Core};
use keelson_scheduler::wire;
use serde_json::{Value, json};

/// Zones of the cluster.
const ZONES: usize = 10;

/// What a case does.
struct Case {
    name: &'static str,
    /// Pods there before, and pods that are timed.
    before: fn(usize) -> Value,
    timed: fn(usize) -> Value,
    /// Pods there before, per thousand nodes.
    before_per_thousand: usize,
    /// At most this many pods are timed.
    most: usize,
    /// Every n-th timed pod fits nowhere.
    misfits: usize,
    /// Each pod comes with a claim that is bound to a volume.
    volumes: bool,
}

const BASE: Case = Case {
    name: "",
    before: |_| plain("before", "100m"),
    timed: |_| plain("timed", "100m"),
    before_per_thousand: 200,
    most: usize::MAX,
    misfits: 0,
    volumes: false,
};

const CASES: &[Case] = &[
    Case { name: "basic", ..BASE },
    Case {
        name: "node-affinity",
        timed: |_| {
            with(json!({"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["zone-1", "zone-2"]}]}]},
                "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 5, "preference": {"matchExpressions": [
                    {"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["zone-1"]}]}}],
            }}))
        },
        ..BASE
    },
    Case {
        name: "required-affinity",
        before: |_| with(near("zone", "required")),
        timed: |_| with(near("zone", "required")),
        ..BASE
    },
    Case {
        name: "preferred-affinity",
        before: |_| with(near("hostname", "preferred")),
        timed: |_| with(near("hostname", "preferred")),
        ..BASE
    },
    Case {
        name: "required-anti-affinity",
        before: |i| apart("hostname", "required", i, false),
        timed: |i| apart("hostname", "required", i, false),
        ..BASE
    },
    Case {
        name: "anti-affinity-namespaces",
        before: |i| apart("hostname", "required", i, true),
        timed: |i| apart("hostname", "required", i, true),
        ..BASE
    },
    Case {
        name: "preferred-anti-affinity",
        before: |i| apart("hostname", "preferred", i, false),
        timed: |i| apart("hostname", "preferred", i, false),
        ..BASE
    },
    Case { name: "spread-zones", timed: |_| spread(&[("topology.kubernetes.io/zone", "DoNotSchedule")]), ..BASE },
    Case { name: "spread-hosts", timed: |_| spread(&[("kubernetes.io/hostname", "DoNotSchedule")]), ..BASE },
    Case {
        name: "spread-both",
        timed: |_| {
            spread(&[("topology.kubernetes.io/zone", "DoNotSchedule"), ("kubernetes.io/hostname", "ScheduleAnyway")])
        },
        ..BASE
    },
    Case { name: "preemption", before: |_| low(), timed: |_| high(), before_per_thousand: 4000, most: 5000, ..BASE },
    Case { name: "unschedulable-mix", misfits: 5, ..BASE },
    Case { name: "volumes", timed: claimant, volumes: true, ..BASE },
];

fn plain(app: &str, cpu: &str) -> Value {
    json!({
        "metadata": {"labels": {"app": app}},
        "spec": {"schedulerName": "default-scheduler", "priority": 0, "containers": [
            {"name": "c", "image": "registry.k8s.io/pause:3.10", "resources": {"requests": {"cpu": cpu, "memory": "100Mi"}}}]},
    })
}

fn with(affinity: Value) -> Value {
    let mut pod = plain("near", "100m");
    pod["spec"]["affinity"] = affinity;
    pod
}

fn term(key: &str, app: &str) -> Value {
    let key = if key == "zone" { "topology.kubernetes.io/zone" } else { "kubernetes.io/hostname" };
    json!({"topologyKey": key, "labelSelector": {"matchLabels": {"app": app}}})
}

fn strength(which: &str, term: Value) -> Value {
    match which {
        "required" => json!({"requiredDuringSchedulingIgnoredDuringExecution": [term]}),
        _ => json!({"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm": term}]}),
    }
}

fn near(key: &str, which: &str) -> Value {
    json!({"podAffinity": strength(which, term(key, "near"))})
}

/// Ten groups whose members keep apart, so that all of them find a place.
fn apart(key: &str, which: &str, i: usize, namespaces: bool) -> Value {
    let app = format!("apart-{}", i % 10);
    let mut term = term(key, &app);
    if namespaces {
        term["namespaceSelector"] = json!({"matchLabels": {"team": "devops"}});
    }
    let mut pod = plain(&app, "10m");
    pod["spec"]["affinity"] = json!({"podAntiAffinity": strength(which, term)});
    pod
}

fn spread(rules: &[(&str, &str)]) -> Value {
    let mut pod = plain("spread", "10m");
    let rule = |(key, when): &(&str, &str)| {
        json!({"maxSkew": 5, "topologyKey": key, "whenUnsatisfiable": when,
            "labelSelector": {"matchLabels": {"app": "spread"}}})
    };
    pod["spec"]["topologySpreadConstraints"] = rules.iter().map(rule).collect();
    pod
}

fn low() -> Value {
    plain("low", "900m")
}

fn high() -> Value {
    let mut pod = plain("high", "3");
    pod["spec"]["priority"] = 10.into();
    pod
}

fn claimant(i: usize) -> Value {
    let mut pod = plain("claimant", "10m");
    pod["spec"]["volumes"] = json!([{"name": "v", "persistentVolumeClaim": {"claimName": format!("claim-{i}")}}]);
    pod
}

fn decode<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap_or_else(|e| panic!("the bench's own object: {e}"))
}

fn node(i: usize) -> wire::Node {
    let name = format!("node-{i}");
    decode(json!({
        "metadata": {"name": name, "labels": {
            "kubernetes.io/hostname": name, "topology.kubernetes.io/zone": format!("zone-{}", i % ZONES)}},
        "status": {"allocatable": {"cpu": "4", "memory": "32Gi", "pods": "110"}},
    }))
}

fn pod(mut value: Value, kind: &str, i: usize) -> wire::Pod {
    value["metadata"]["name"] = format!("{kind}-{i}").into();
    value["metadata"]["uid"] = format!("{kind}-uid-{i}").into();
    value["metadata"]["namespace"] = "default".into();
    decode(value)
}

fn claim(core: &mut Core, i: usize) {
    let (claim, volume) = (format!("claim-{i}"), format!("volume-{i}"));
    core.apply(
        Change::Volume(Box::new(decode(json!({
            "metadata": {"name": volume},
            "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
                "csi": {"driver": "disks", "volumeHandle": volume}, "claimRef": {"namespace": "default", "name": claim}},
            "status": {"phase": "Bound"},
        })))),
        0,
    );
    core.apply(
        Change::Claim(Box::new(decode(json!({
            "metadata": {"name": claim, "namespace": "default", "annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
            "spec": {"volumeName": volume, "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
            "status": {"phase": "Bound"},
        })))),
        0,
    );
}

fn limits(core: &mut Core, i: usize) {
    let drivers = json!({"drivers": [{"name": "disks", "nodeID": "n", "allocatable": {"count": 39}}]});
    let node = json!({"metadata": {"name": format!("node-{i}")}, "spec": drivers});
    core.apply(Change::CsiNode(Box::new(decode(node))), 0);
}

/// Decides until nothing is left to decide; what is written succeeds. Returns placed pods, refused pods, victims.
fn drain(core: &mut Core, now: u64) -> (usize, usize, usize) {
    let (mut placed, mut failed, mut gone) = (0, 0, 0);
    while let Some(act) = core.next(now) {
        match act {
            Act::Bind { pod, .. } => {
                placed += 1;
                core.finished(&pod.uid, true, now);
            }
            Act::Ask { .. } | Act::Consult { .. } | Act::Group { .. } => {}
            Act::Fail { pod, victims, nominate, .. } => {
                failed += usize::from(nominate.is_none());
                gone += victims.len();
                core.told(&pod.uid, now);
                for victim in victims {
                    core.apply(Change::PodGone(victim.uid.to_string()), now);
                }
            }
        }
    }
    (placed, failed, gone)
}

fn run(case: &Case, nodes: usize, pods: usize) {
    let core = Core::new(|syms| Ok::<_, ConfigError>(Config::standard(syms)), 1);
    let mut core = core.unwrap_or_else(|e| panic!("{e}"));
    core.apply(Change::Namespace("default".into(), Some(vec![("team".into(), "devops".into())])), 0);
    for i in 0..nodes {
        core.apply(Change::Node(Box::new(node(i))), 0);
        if case.volumes {
            limits(&mut core, i);
        }
    }
    let before = case.before_per_thousand * nodes / 1000;
    for i in 0..before {
        core.apply(Change::Pod(Box::new(pod((case.before)(i), "before", i))), 0);
    }
    let (there, ..) = drain(&mut core, 0);
    let pods = pods.min(case.most);
    if case.volumes {
        (0..pods).for_each(|i| claim(&mut core, i));
    }
    let timed: Vec<wire::Pod> = (0..pods)
        .map(|i| {
            let mut value = (case.timed)(i);
            if case.misfits > 0 && i % case.misfits == 0 {
                value["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "100".into();
            }
            pod(value, "timed", i)
        })
        .collect();
    let start = Instant::now();
    for (i, pod) in timed.into_iter().enumerate() {
        core.apply(Change::Pod(Box::new(pod)), 0);
        if i % 64 == 63 {
            drain(&mut core, 0);
        }
    }
    drain(&mut core, 0);
    // Pods that preemption made room for are tried again once they have paused.
    drain(&mut core, 20_000);
    let seconds = start.elapsed().as_secs_f64();
    let (scheduled, refused, victims) =
        (core.tally.scheduled as usize - there, core.tally.unschedulable, core.tally.victims);
    println!(
        "{:26} {nodes:>6} {:>7} {pods:>7} {scheduled:>7} {refused:>7} {victims:>7} {:>9.0}/s {:>8.0} MiB",
        case.name,
        there,
        pods as f64 / seconds,
        resident_mib(),
    );
}

/// Memory of this process that is in use, MiB.
fn resident_mib() -> f64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: f64 = text.split_whitespace().nth(1).and_then(|p| p.parse().ok()).unwrap_or(0.0);
    pages * 4096.0 / f64::from(1 << 20)
}

fn main() {
    let (mut nodes, mut pods, mut names) = (5000, 10_000, Vec::new());
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || args.next().and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{arg} needs a number"));
        match arg.as_str() {
            "--nodes" => nodes = number(),
            "--pods" => pods = number(),
            "--bench" => {}
            _ => names.push(arg),
        }
    }
    println!(
        "{:26} {:>6} {:>7} {:>7} {:>7} {:>7} {:>7} {:>11} {:>12}",
        "case", "nodes", "before", "pods", "placed", "refused", "victims", "rate", "memory"
    );
    for case in CASES.iter().filter(|c| names.is_empty() || names.iter().any(|n| n == c.name)) {
        run(case, nodes, pods);
    }
}
