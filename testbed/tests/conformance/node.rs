//! What a node's agent tells of itself and its pods over its own server, and a node whose network somebody else makes.

use std::fs;
use std::path::Path;

use keelson_testbed::{Role, until};
use serde_json::Value;

use super::{apply, cluster, is_ready, object, pod_becomes};
use crate::common::{Cluster, Kubectl, PATIENCE};

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: watched}
spec:
  nodeName: agent-1
  volumes: [{name: v, emptyDir: {}}]
  containers:
  - name: c
    image: keelson.local/web:1
    resources: {limits: {cpu: 100m, memory: 64Mi}}
    volumeMounts: [{name: v, mountPath: /v}]
    livenessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1, failureThreshold: 100}
    readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
";

/// What a summary says of a node, of a pod and of a container, as paths of fields.
const NODE: &[&str] = &[
    "nodeName",
    "startTime",
    "cpu/usageCoreNanoSeconds",
    "memory/availableBytes",
    "memory/workingSetBytes",
    "memory/rssBytes",
    "memory/pageFaults",
    "memory/majorPageFaults",
    "network/rxBytes",
    "network/interfaces",
    "fs/availableBytes",
    "fs/inodesFree",
    "runtime/imageFs/usedBytes",
    "runtime/containerFs/capacityBytes",
    "rlimit/maxpid",
    "rlimit/curproc",
    "systemContainers",
    "swap/swapUsageBytes",
];
const OF_POD: &[&str] = &[
    "podRef/name",
    "podRef/namespace",
    "podRef/uid",
    "startTime",
    "cpu/usageCoreNanoSeconds",
    "memory/usageBytes",
    "memory/workingSetBytes",
    "memory/rssBytes",
    "memory/pageFaults",
    "network/name",
    "network/txBytes",
    "volume",
    "ephemeral-storage/usedBytes",
    "process_stats/process_count",
    "swap/swapUsageBytes",
];
const OF_CONTAINER: &[&str] = &[
    "name",
    "startTime",
    "cpu/usageCoreNanoSeconds",
    "memory/workingSetBytes",
    "memory/availableBytes",
    "rootfs/usedBytes",
    "rootfs/inodesUsed",
    "logs/usedBytes",
    "swap/swapUsageBytes",
];

#[test]
fn agents_tell_what_kubelets_tell() {
    let Some(cluster) = cluster("confnode", &[], &[]) else { return };
    let kubectl = cluster.kubectl(1);
    apply(&kubectl, POD);
    pod_becomes(&kubectl, "watched", "is ready", is_ready);
    kubectl.ok("exec watched -- busybox dd if=/dev/zero of=/v/file bs=1024 count=100");
    kubectl.ok("exec watched -- busybox dd if=/dev/zero of=/file bs=1024 count=100");
    summaries(&kubectl);
    metrics(&kubectl);
    files_and_pods(&kubectl);
    another_network(&cluster, &kubectl);
}

fn ask(kubectl: &Kubectl, path: &str) -> String {
    kubectl.ok(&format!("get --raw /api/v1/nodes/agent-1/proxy/{path}"))
}

fn lacks<'a>(value: &Value, fields: &[&'a str]) -> Vec<&'a str> {
    let has = |path: &&str| !path.split('/').fold(value, |v, key| &v[key]).is_null();
    fields.iter().filter(|path| !has(path)).copied().collect()
}

fn summaries(kubectl: &Kubectl) {
    let summary = || -> Value { serde_json::from_str(&ask(kubectl, "stats/summary")).unwrap() };
    let found = until("the pod is in the summary", PATIENCE, || {
        let mut summary = summary();
        let pods = summary["pods"].as_array_mut().unwrap();
        let at = pods.iter().position(|pod| pod["podRef"]["name"] == "watched");
        // Rates need two counts, and the runtime counts layers now and then.
        let pod = at.map(|at| pods.swap_remove(at)).filter(|pod| {
            !pod["cpu"]["usageNanoCores"].is_null()
                && pod["containers"][0]["rootfs"]["usedBytes"].as_u64() >= Some(100 << 10)
        });
        Ok(pod.map(|pod| (summary["node"].take(), pod)))
    });
    let (node, pod) = found.unwrap_or_else(|e| panic!("{e:#}: {:#}", summary()));
    assert!(lacks(&node, NODE).is_empty(), "{:?} in {node:#}", lacks(&node, NODE));
    assert!(lacks(&pod, OF_POD).is_empty(), "{:?} in {pod:#}", lacks(&pod, OF_POD));
    let container = &pod["containers"][0];
    assert!(lacks(container, OF_CONTAINER).is_empty(), "{:?} in {container:#}", lacks(container, OF_CONTAINER));
    let volumes = pod["volume"].as_array().unwrap();
    let volume = volumes.iter().find(|v| v["name"] == "v").unwrap();
    assert!(volume["usedBytes"].as_u64() >= Some(100 << 10), "{volume:#}");
    assert!(pod["network"]["name"] == "eth0" && pod["network"]["rxBytes"].as_u64() > Some(0), "{pod:#}");
    let brief: Value = serde_json::from_str(&ask(kubectl, "stats/summary?only_cpu_and_memory=true")).unwrap();
    assert!(brief["node"]["cpu"].is_object() && brief["node"]["fs"].is_null(), "{brief:#}");
}

fn metrics(kubectl: &Kubectl) {
    for (path, wanted) in [
        (
            "metrics/cadvisor",
            &[
                "container_cpu_usage_seconds_total{container=\"c\"",
                "container_memory_rss{container=\"c\"",
                "container_cpu_cfs_periods_total{container=\"c\"",
                "container_spec_memory_limit_bytes{container=\"c\"",
                "container_network_receive_bytes_total{container=\"\"",
                "container_start_time_seconds{container=\"c\"",
                "container_threads{container=\"c\"",
                "machine_cpu_cores ",
                "machine_memory_bytes ",
            ][..],
        ),
        (
            "metrics/resource",
            &[
                "container_cpu_usage_seconds_total{container=\"c\"",
                "container_start_time_seconds{container=\"c\"",
                "pod_memory_working_set_bytes{",
                "node_cpu_usage_seconds_total ",
                "resource_scrape_error 0",
                "pod_swap_usage_bytes{",
            ],
        ),
        (
            "metrics/probes",
            &["probe_type=\"Liveness\",result=\"successful\"", "probe_type=\"Readiness\",result=\"successful\""],
        ),
        ("metrics", &["kubelet_running_pods ", "process_resident_memory_bytes "]),
    ] {
        let what = format!("get --raw /api/v1/nodes/agent-1/proxy/{path}");
        let lacking = |text: &str| wanted.iter().find(|words| !text.contains(**words)).copied();
        let ran = until(path, PATIENCE, || {
            let text = kubectl.ok(&what);
            match lacking(&text) {
                None => Ok(Some(())),
                Some(words) => anyhow::bail!("{words} in {text}"),
            }
        });
        ran.unwrap();
    }
}

fn files_and_pods(kubectl: &Kubectl) {
    let list = ask(kubectl, "logs/");
    assert!(list.contains("<a href=\"pods/\">"), "{list}");
    let uid = object(kubectl, "pod watched")["metadata"]["uid"].as_str().unwrap().to_owned();
    let log = ask(kubectl, &format!("logs/pods/default_watched_{uid}/c/0.log"));
    assert!(log.contains("serving version 1"), "{log}");
    for (path, wanted) in [
        ("configz", "\"kind\":\"KubeletConfiguration\""),
        ("pods", "\"name\":\"watched\""),
        ("runningpods/", "\"name\":\"watched\""),
        ("healthz", "ok"),
    ] {
        let text = ask(kubectl, path);
        assert!(text.replace("\": ", "\":").contains(wanted), "{path}: {text}");
    }
    // This runtime cannot write the state of a container down, and says so.
    let refused = kubectl.feed("create --raw /api/v1/nodes/agent-1/proxy/checkpoint/default/watched/c -f -", "{}");
    assert!(refused.code != Some(0) && !refused.err.contains("404"), "{refused:?}");
}

/// A network of a plugin's own, as an add-on installs it, in place of the agent's: Services work over it.
const OTHER: &str = r#"{"cniVersion": "0.3.1", "name": "other", "plugins": [
    {"type": "ptp", "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.99.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}"#;

const OVER_IT: &str = "
apiVersion: v1
kind: Pod
metadata: {name: other-web, labels: {app: other}}
spec: {nodeName: agent-2, containers: [{name: c, image: 'keelson.local/web:1', readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}}]}
---
apiVersion: v1
kind: Pod
metadata: {name: other-asks}
spec: {nodeName: agent-2, containers: [{name: c, image: 'keelson.local/web:1'}]}
---
apiVersion: v1
kind: Service
metadata: {name: other}
spec: {selector: {app: other}, ports: [{port: 80, targetPort: 8080}]}
";

fn another_network(cluster: &Cluster, kubectl: &Kubectl) {
    let hosts = cluster.testbed.hosts().unwrap();
    let host = hosts.iter().find(|host| host.name() == "agent-2").unwrap();
    let server = hosts.iter().find(|host| host.role() == Role::Server).unwrap();
    host.kill("keelson").unwrap();
    let confs = host.inside(Path::new("/etc/cni/net.d")).unwrap();
    for conf in fs::read_dir(&confs).unwrap() {
        fs::remove_file(conf.unwrap().path()).unwrap();
    }
    fs::write(confs.join("10-other.conflist"), OTHER).unwrap();
    let join = server.join_command(Role::Agent).unwrap();
    host.start_agent(&join, &["--cni".into(), "none".into()]).unwrap();
    host.wait_node_ready(&server.api().unwrap()).unwrap();
    apply(kubectl, OVER_IT);
    for name in ["other-web", "other-asks"] {
        let pod = pod_becomes(kubectl, name, "is ready", is_ready);
        let ip = pod["status"]["podIP"].as_str().unwrap();
        assert!(ip.starts_with("10.99.0."), "{ip} is not of the other network");
    }
    kubectl.wait("exec other-asks -- wget -qO- http://other/", |page| page.contains("hello from other-web"));
    let left: Vec<_> = fs::read_dir(&confs).unwrap().map(|conf| conf.unwrap().file_name()).collect();
    assert_eq!(left, ["10-other.conflist"], "the agent writes no network of its own");
}
