//! Agent and runtime that are killed at any point while pods come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};

use crate::{LOOKS, Node, first, pod, ready, shell};

/// Times that something is killed.
const ROUNDS: u32 = 20;
/// Pods that are there at most.
const MOST: usize = 8;

/// Numbers that look random and are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// The running pods' container ids.
fn running(node: &Node, names: &BTreeSet<String>) -> BTreeMap<String, Value> {
    let ready = names.iter().map(|name| (name, node.api.pod(name))).filter(|(_, pod)| ready(pod));
    ready.map(|(name, pod)| (name.clone(), first(&pod)["containerID"].clone())).collect()
}

/// Whether the runtime has exactly these pods: a sandbox and a container of each, and all of them run.
fn has_exactly(node: &Node, pods: usize) -> bool {
    let count = |what: &[&str]| node.runtime.ctr(what).lines().count();
    let sandboxes = count(&["containers", "ls", "-q", "labels.\"io.cri-containerd.kind\"==sandbox"]);
    let tasks = node.runtime.ctr(&["tasks", "ls"]);
    let up = tasks.lines().filter(|line| line.contains("RUNNING")).count();
    (sandboxes, count(&["tasks", "ls", "-q"]), up) == (pods, 2 * pods, 2 * pods)
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_killed_no_pod_runs_twice_and_none_is_left() {
    let Some(mut node) = Node::start().await else { return };
    let mut numbers = Numbers(2026);
    let (mut names, mut known) = (BTreeSet::new(), BTreeMap::new());
    let spec = || pod("Always", json!({"command": shell("exec /bin/busybox sleep 1000")}));
    for round in 0..ROUNDS {
        if names.len() < MOST {
            let name = format!("churn-{round}");
            node.api.create(&name, spec());
            names.insert(name);
        }
        if round % 3 == 2 {
            let at = usize::try_from(numbers.below(names.len() as u64)).unwrap();
            let name: String = names.iter().nth(at).unwrap().clone();
            node.api.delete(&name, 1);
            names.remove(&name);
            known.remove(&name);
        }
        // At another point of the work each time.
        tokio::time::sleep(Duration::from_millis(numbers.below(400))).await;
        for (name, id) in running(&node, &names) {
            known.entry(name).or_insert(id);
        }
        let what = numbers.below(4);
        if what != 2 {
            node.kill_agent().await;
        }
        if what >= 2 {
            node.runtime.crash().unwrap();
        }
        if what != 2 {
            node.start_agent();
        }
    }
    for name in &names {
        node.until(name, "runs", ready).await;
    }
    let now = running(&node, &names);
    for (name, id) in &known {
        assert_eq!(now.get(name), Some(id), "{name} started again although nothing happened to it");
    }
    let mut exact = false;
    for _ in 0..LOOKS {
        exact = has_exactly(&node, names.len());
        if exact {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(
        exact,
        "{} pods: {} {}",
        names.len(),
        node.runtime.ctr(&["containers", "ls"]),
        node.runtime.ctr(&["tasks", "ls"])
    );
    // What is left of a pod that ended with its machine: neither the API nor the runtime knows it.
    let left = node.runtime.dir.path().join("data/pods/uid-lost/volumes/kubernetes.io~empty-dir/e");
    std::fs::create_dir_all(&left).unwrap();
    std::fs::write(left.join("file"), "x").unwrap();
    for name in &names {
        node.api.delete(name, 1);
    }
    node.is_clean().await;
    node.kill_agent().await;
}
