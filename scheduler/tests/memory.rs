//! What came and went leaves little behind: the scheduler of a cluster that lives for months must not grow.

use keelson_scheduler::config::{Config, ConfigError};
use keelson_scheduler::core::{Act, Change, Core};
use serde_json::{Value, json};

/// Pods and nodes that come and go, each unlike the others.
const GENERATIONS: usize = 4_600;
/// What may be kept of them, of each kind.
const MAX_KEPT: usize = 4_400;

fn parsed<T: serde::de::DeserializeOwned>(value: Value) -> Box<T> {
    Box::new(serde_json::from_value(value).unwrap())
}

fn node(name: &str) -> Change {
    Change::Node(parsed(json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}}})))
}

#[test]
fn pods_and_nodes_leave_little_behind() {
    let mut core = Core::new(|syms| Ok::<_, ConfigError>(Config::standard(syms)), 1).unwrap();
    core.apply(node("stays"), 0);
    for generation in 0..GENERATIONS {
        let passing = format!("node-{generation}");
        core.apply(node(&passing), 0);
        let labels = json!({"version": generation.to_string()});
        let name = format!("pod-{generation}");
        let object = json!({"metadata": {"name": name, "uid": name, "namespace": "d", "labels": labels},
            "spec": {"schedulerName": "default-scheduler", "containers": [{"name": "c", "image": "i"}],
                "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
                    {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": labels}}]}}}});
        core.apply(Change::Pod(parsed(object)), 0);
        let Some(Act::Bind { pod, .. }) = core.next(0) else { panic!("there is room") };
        core.finished(&pod.uid, true, 0);
        core.apply(Change::PodGone(name), 0);
        core.apply(Change::NodeGone(passing), 0);
    }
    let view = &core.view;
    let kept = [
        ("classes", view.classes.count()),
        ("groups", view.groups.known()),
        ("domains", (0..view.topologies.count()).map(|at| view.topologies.get(at).domains).max().unwrap_or(0)),
        ("places of nodes", view.nodes.len()),
    ];
    for (what, count) in kept {
        assert!(count <= MAX_KEPT, "{what}: {count}");
    }
    assert_eq!((view.placed_count(), view.node_count(), core.writing()), (0, 1, 0));
}
