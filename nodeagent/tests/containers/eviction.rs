//! A node that is short of everything: the pod that has more than it asked for goes first, and what is critical stays.

use serde_json::{Value, json};

use crate::{Node, first, pod, ready, shell};

fn with(resources: &Value, class: Option<&str>) -> Value {
    let mut spec = pod("Always", json!({"command": shell("exec /bin/busybox sleep 1000"), "resources": resources}));
    if let Some(class) = class {
        spec["priorityClassName"] = class.into();
        spec["priority"] = 2_000_000_000.into();
    }
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_short_ends_pods_in_their_order() {
    let Some(mut node) = Node::start().await else { return };
    let ample = json!({"limits": {"cpu": "10m", "memory": "64Mi"}, "requests": {"cpu": "10m", "memory": "64Mi"}});
    node.api.create("guaranteed", with(&ample, None));
    node.api.create("greedy", with(&json!({}), None));
    node.api.create("critical", with(&json!({}), Some("system-node-critical")));
    for name in ["guaranteed", "greedy", "critical"] {
        node.until(name, "runs", ready).await;
    }
    let run = |name: &str| first(&node.api.pod(name))["containerID"].as_str().unwrap_or_default().to_owned();
    let critical = run("critical");
    // From now on no machine has enough memory.
    node.kill_agent().await;
    node.eviction = "memory.available<100%".parse().unwrap();
    node.start_agent();
    let evicted = |p: &Value| p["status"]["phase"] == "Failed" && p["status"]["reason"] == "Evicted";
    for name in ["greedy", "guaranteed"] {
        node.until(name, "is evicted", evicted).await;
    }
    let ended =
        |name: &str| first(&node.api.pod(name))["state"]["terminated"]["finishedAt"].as_str().map(str::to_owned);
    let (greedy, guaranteed) = (ended("greedy").unwrap(), ended("guaranteed").unwrap());
    assert!(greedy <= guaranteed, "{greedy} and {guaranteed}");
    let greedy = node.api.pod("greedy");
    assert_eq!(greedy["status"]["message"], "The node was low on resource: memory. ");
    let conditions = greedy["status"]["conditions"].as_array().unwrap();
    let disrupted = conditions.iter().find(|c| c["type"] == "DisruptionTarget").unwrap();
    assert_eq!((&disrupted["status"], &disrupted["reason"]), (&"True".into(), &"TerminationByKubelet".into()));
    node.until("critical", "stays", ready).await;
    let status = node.api.pod("critical")["status"].clone();
    assert_eq!(first(&json!({"status": status}))["containerID"], critical, "it is the same run: {status:#}");
    for name in ["guaranteed", "greedy", "critical"] {
        node.api.delete(name, 1);
        node.until(name, "is confirmed as deleted", Value::is_null).await;
    }
    node.is_clean().await;
    node.kill_agent().await;
}
