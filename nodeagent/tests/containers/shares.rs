//! Devices and processors that containers have alone, and pods for which the node has no room.

use std::time::Duration;

use keelson_nodeagent::{CpuPolicy, MemoryPolicy, Placement, TopologyPolicy, TopologyScope};
use serde_json::{Value, json};

use crate::plugin::{Plugin, RESOURCE};
use crate::{LOOKS, Node, first, pod, ready, shell};

fn wanting(things: &str) -> Value {
    let script = "echo things $THINGS; test -c /dev/thing && exec /bin/busybox sleep 1000";
    pod("Always", json!({"command": shell(script), "resources": {"limits": {RESOURCE: things}}}))
}

async fn eventually(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..LOOKS {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_come_from_a_plugin() {
    let Some(mut node) = Node::start().await else { return };
    node.api.set("nodes/n", json!({"metadata": {"name": "n", "uid": "uid"}}));
    let data = node.runtime.dir.path().join("data");
    let plugin = Plugin::start(&data, &[("a", true), ("b", true), ("c", false)]).await;
    let counts = |api: &crate::api::Api| {
        let status = api.other("nodes/n")["status"].clone();
        let of = |list: &str| status[list][RESOURCE].as_str().unwrap_or_default().to_owned();
        (of("capacity"), of("allocatable"))
    };
    let are = |all: &'static str, healthy: &'static str| {
        let api = node.api.clone();
        async move {
            let what = format!("{all} devices, {healthy} of them healthy");
            eventually(&what, || counts(&api) == (all.to_owned(), healthy.to_owned())).await;
        }
    };
    are("3", "2").await;
    node.api.create("dev-one", wanting("1"));
    node.until("dev-one", "runs", ready).await;
    node.says("dev-one", "things b").await;
    // Who comes when there are not enough has failed, also while the plugin has not come back to a new agent.
    let refused = |p: &Value| p["status"]["phase"] == "Failed" && p["status"]["reason"] == format!("OutOf{RESOURCE}");
    node.api.create("dev-two", wanting("2"));
    node.until("dev-two", "is refused", refused).await;
    node.kill_agent().await;
    node.start_agent();
    node.api.create("dev-three", wanting("1"));
    node.until("dev-three", "is refused", refused).await;
    plugin.register().await;
    plugin.devices.send_replace(vec![("a", true), ("b", true)]);
    let api = node.api.clone();
    eventually("both devices are back", || counts(&api) == ("2".to_owned(), "2".to_owned())).await;
    // What was given before is not given again.
    node.api.create("dev-four", wanting("1"));
    node.until("dev-four", "runs", ready).await;
    node.says("dev-four", "things a").await;
    assert_eq!(first(&node.api.pod("dev-one"))["restartCount"], 0);
    for name in ["dev-one", "dev-two", "dev-three"] {
        node.api.delete(name, 1);
        node.until(name, "is confirmed as deleted", Value::is_null).await;
    }
    node.api.create("dev-five", wanting("1"));
    node.until("dev-five", "runs", ready).await;
    node.says("dev-five", "things b").await;
    for name in ["dev-four", "dev-five"] {
        node.api.delete(name, 1);
    }
    node.is_clean().await;
    drop(plugin);
    eventually("no device can be given", || counts(&api) == ("2".to_owned(), "0".to_owned())).await;
    node.kill_agent().await;
}

/// The processors that a container may run on.
fn cpus(node: &Node, name: &str, class: &str) -> String {
    set_of(node, name, class, "cpuset.cpus")
}

fn set_of(node: &Node, name: &str, class: &str, file: &str) -> String {
    let pod = node.api.pod(name);
    let id = first(&pod)["containerID"].as_str().unwrap_or_default().rsplit('/').next().unwrap_or_default().to_owned();
    let group = format!("kubepods/{class}pod{}/{id}", node.api.uid(name));
    let read = |path: String| std::fs::read_to_string(path).unwrap_or_default();
    let text = read(format!("/sys/fs/cgroup/cpuset/{group}/{file}")) + &read(format!("/sys/fs/cgroup/{group}/{file}"));
    text.trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn whole_processors_belong_to_one_container() {
    if std::thread::available_parallelism().map_or(1, std::num::NonZero::get) < 4 {
        eprintln!("skipped: fewer than four processors");
        return;
    }
    let placement = Placement {
        policy: TopologyPolicy::SingleNumaNode,
        scope: TopologyScope::Pod,
        memory: MemoryPolicy::Static([(0, 64 << 20)].into()),
    };
    let Some(mut node) = Node::start_with(CpuPolicy::Static("0".parse().unwrap()), placement).await else { return };
    let sleeper = |resources: Value| {
        pod("Always", json!({"command": shell("exec /bin/busybox sleep 1000"), "resources": resources}))
    };
    let whole = |cpu: &str| json!({"limits": {"cpu": cpu, "memory": "32Mi"}});
    node.api.create("cpu-shared", sleeper(json!({"requests": {"cpu": "1m"}})));
    node.until("cpu-shared", "runs", ready).await;
    let before = cpus(&node, "cpu-shared", "burstable/");
    node.api.create("cpu-alone", sleeper(whole("1")));
    node.until("cpu-alone", "runs", ready).await;
    let alone = cpus(&node, "cpu-alone", "");
    // The machine may have one memory or several; all of this fits on one.
    assert_eq!(set_of(&node, "cpu-alone", "", "cpuset.mems").parse::<keelson_nodeagent::CpuSet>().unwrap().0.len(), 1);
    let number: u32 = alone.parse().unwrap();
    assert_ne!(number, 0, "a processor that is kept for the system");
    let shares = |cpu: u32| {
        cpus(&node, "cpu-shared", "burstable/").parse::<keelson_nodeagent::CpuSet>().unwrap().0.contains(&cpu)
    };
    eventually("others leave the processor", || !shares(number)).await;
    assert!(shares(0));
    // A new agent knows who has what.
    node.kill_agent().await;
    node.start_agent();
    node.api.create("cpu-other", sleeper(whole("1")));
    node.until("cpu-other", "runs", ready).await;
    let other = cpus(&node, "cpu-other", "");
    assert_ne!(other, alone);
    // More than there is: the node has a processor less for pods than it has.
    node.api.create("cpu-much", sleeper(whole("4")));
    node.until("cpu-much", "is refused", |p| p["status"]["phase"] == "Failed" && p["status"]["reason"] == "OutOfcpu")
        .await;
    for name in ["cpu-alone", "cpu-other", "cpu-much"] {
        node.api.delete(name, 1);
        node.until(name, "is confirmed as deleted", Value::is_null).await;
    }
    eventually("all processors are everybody's again", || cpus(&node, "cpu-shared", "burstable/") == before).await;
    node.api.delete("cpu-shared", 1);
    node.is_clean().await;
    node.kill_agent().await;
}
