//! Pretended nodes as users meet them: addresses of their own ranges, plausible use, autoscaling, and what they refuse.

mod support;

use support::{Server, free_port, kubectl_is_there};

const LOAD: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: load}
spec:
  selector: {matchLabels: {app: load}}
  template:
    metadata:
      labels: {app: load}
      annotations: {keelson.dev/cpu-usage: 150m, keelson.dev/memory-usage: 32Mi}
    spec: {containers: [{name: c, image: x, resources: {requests: {cpu: 100m}}}]}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: load}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: load}
  maxReplicas: 3
  metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 50}}}]
"#;

#[test]
fn hollow_nodes_have_ranges_and_use() {
    if !kubectl_is_there() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let flags = ["--hollow", "2", "--cluster-cidr", "10.200.0.0/24", "--node-cidr-mask-size", "26"];
    let server = Server::start(dir.path(), free_port(), &flags);
    server.apply(LOAD);
    server.until(
        "the autoscaler follows the use",
        &["get", "deployment", "load", "-o", "jsonpath={.status.readyReplicas}"],
        |out| out == "3",
    );
    let ranges =
        server.run(&["get", "nodes", "-o", "jsonpath={range .items[*]}{.metadata.name}={.spec.podCIDR} {end}"]);
    let mut found: Vec<&str> =
        ranges.split_whitespace().filter_map(|text| text.split_once('=')).map(|(_, r)| r).collect();
    found.sort_unstable();
    assert_eq!(found, ["10.200.0.0/26", "10.200.0.64/26"], "{ranges}");
    let pods = server.run(&["get", "pods", "-o", "jsonpath={range .items[*]}{.spec.nodeName} {.status.podIP}\n{end}"]);
    for line in pods.lines().filter(|line| !line.is_empty()) {
        let (node, ip) = line.split_once(' ').unwrap();
        let last: u8 = ip.strip_prefix("10.200.0.").unwrap().parse().unwrap();
        let base = if ranges.contains(&format!("{node}=10.200.0.0/26")) { 0 } else { 64 };
        assert!((base..base + 64).contains(&last), "{line}: {ranges}");
    }
    for (args, wanted) in [
        (&["top", "pods", "--no-headers"][..], &["150m", "32Mi"][..]),
        (&["top", "pods", "--containers", "-l", "app=load"], &["150m"]),
        (&["top", "nodes"], &["hollow-0", "hollow-1", "%"]),
        (&["get", "--raw", "/apis/metrics.k8s.io/v1beta1/nodes/hollow-0"], &["NodeMetrics", "\"window\":\"10s\""]),
        (&["cluster-info"], &["KubeDNS"]),
        (&["get", "service", "kube-dns", "-n", "kube-system"], &["10.96.0.10", "53/UDP,53/TCP"]),
        (&["auth", "can-i", "list", "pods.metrics.k8s.io"], &["yes"]),
    ] {
        let out = server.run(args);
        assert!(wanted.iter().all(|text| out.contains(text)), "{args:?}: {out}");
    }
    for (args, wanted) in [
        (&["logs", "deployment/load"][..], "only pretends to run pods"),
        (&["get", "--raw", "/apis/metrics.k8s.io/v1beta1/nodes/none"], "NotFound"),
        (&["top", "pods", "--as", "somebody"], "Forbidden"),
    ] {
        let output = server.kubectl(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(wanted), "{args:?}: {said}");
    }
}

#[test]
fn ranges_of_nodes_fit_into_the_clusters() {
    for (range, size, wanted) in
        [("10.244.0.0/16", "12", "does not fit"), ("10.244.0.0", "24", "write for example 10.244.0.0/16")]
    {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().to_string_lossy().into_owned();
        let (good, said) =
            support::keelson(&["server", "--data-dir", &data, "--cluster-cidr", range, "--node-cidr-mask-size", size]);
        assert!(!good && said.contains(wanted), "{said}");
    }
}
