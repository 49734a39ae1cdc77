//! The real kubectl against one server and two agents with containers: what a user does in the first hour.

mod common;

use std::path::PathBuf;
use std::process::Command;

use common::{Cluster, Kubectl};
use keelson_testbed::{Start, image};

/// A manifest as users write them: two documents.
const MANIFEST: &str = r"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {colour: blue}
---
apiVersion: v1
kind: Service
metadata: {name: hello}
spec:
  selector: {app: hello}
  ports: [{port: 80, targetPort: 8080}]
";

#[test]
fn the_first_hour_with_kubectl() {
    let Some(cluster) = Cluster::start("kctl", 1, 2, &Start::default()) else { return };
    let kubectl = cluster.kubectl(1);
    what_there_is(&kubectl);
    a_deployment_runs(&kubectl);
    a_container_is_looked_into(&kubectl);
    a_library_looks_into_it(&kubectl);
    pods_reach_each_other(&kubectl);
    names_are_found(&kubectl);
    use_is_shown(&kubectl);
    it_is_changed(&kubectl);
    objects_are_applied(&kubectl);
    it_is_deleted(&kubectl);
}

fn what_there_is(kubectl: &Kubectl) {
    for (arguments, wanted) in [
        ("get nodes -o wide", &["agent-1", "agent-2", "Ready", "containerd://", "v1.36."][..]),
        ("api-resources", &["deployments", "deploy", "apps/v1", "customresourcedefinitions"]),
        ("version", &["Client Version:", "Server Version: v1.36."]),
        ("cluster-info", &["Kubernetes control plane", "is running at", "KubeDNS"]),
        ("auth can-i create pods", &["yes"]),
        ("get namespaces", &["default", "kube-system", "kube-public", "kube-node-lease"]),
    ] {
        let out = kubectl.ok(arguments);
        for text in wanted {
            assert!(out.contains(text), "kubectl {arguments} lacks {text}: {out}");
        }
    }
    let refused = kubectl.run("auth can-i create pods --as somebody");
    assert_eq!((refused.out.trim(), refused.code), ("no", Some(1)));
    let refused = kubectl.run("get pods --as somebody");
    assert!(refused.err.contains("(Forbidden)") && refused.code == Some(1), "{refused:?}");
}

fn a_deployment_runs(kubectl: &Kubectl) {
    kubectl.wait("get serviceaccount default", |_| true);
    let watch = kubectl.follow("get pods -o wide -w", "watch");
    kubectl.ok(&format!("create deployment hello --image={} --replicas=3", image::WEB[0]));
    watch.wait("the watch shows three pods running", |text| {
        // How many steps before are seen depends on when it began.
        text.lines().filter(|line| line.contains(" Running ")).count() >= 3
    });
    let out = kubectl.ok("rollout status deployment/hello --timeout=60s");
    assert!(out.contains("successfully rolled out"), "{out}");
    let pods = kubectl.ok("get pods -l app=hello -o wide");
    assert!(pods.contains("agent-1") && pods.contains("agent-2"), "on both nodes: {pods}");
    let described = kubectl.ok("describe deployment hello");
    assert!(described.contains("3 desired | 3 updated | 3 total | 3 available"), "{described}");
    let described = kubectl.ok("describe pods -l app=hello");
    assert!(described.contains("Successfully assigned default/hello-"), "{described}");
    let json: serde_json::Value = serde_json::from_str(&kubectl.ok("get deployment hello -o json")).unwrap();
    assert_eq!(json["status"]["readyReplicas"], 3);
    assert!(kubectl.ok("get deployment hello -o yaml").contains("readyReplicas: 3"));
    assert!(kubectl.ok("get events").contains("Scheduled"));
}

/// A pod of the deployment that stays on a node, and its address.
fn pod_on(kubectl: &Kubectl, node: &str) -> (String, String) {
    let pods = kubectl.ok(&format!("get pods -l app=hello --field-selector spec.nodeName={node} -o json"));
    let pods: serde_json::Value = serde_json::from_str(&pods).unwrap();
    // What was replaced is still there while it ends.
    let stays = |pod: &&serde_json::Value| pod["metadata"].get("deletionTimestamp").is_none();
    let pod = pods["items"].as_array().unwrap().iter().find(stays).unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    (text(&pod["metadata"]["name"]), text(&pod["status"]["podIP"]))
}

fn a_container_is_looked_into(kubectl: &Kubectl) {
    let (pod, _) = pod_on(kubectl, "agent-1");
    assert_eq!(kubectl.ok(&format!("logs {pod}")), "serving version 1 on port 8080\n");
    let log = kubectl.follow(&format!("logs -f {pod}"), "log");
    let page = kubectl.ok(&format!("exec {pod} -- wget -qO- http://127.0.0.1:8080/"));
    assert_eq!(page, format!("hello from {pod}, version 1\n"));
    log.wait("the log goes on", |text| text.contains("url:/"));
    let ran = kubectl.run(&format!("exec {pod} -- sh -c 'echo out; echo err >&2; exit 3'"));
    assert_eq!((ran.out.as_str(), ran.code), ("out\n", Some(3)));
    assert!(ran.err.contains("err\n"), "{ran:?}");
    let ran = kubectl.feed(&format!("exec -i {pod} -- wc -c"), "12345");
    assert_eq!((ran.out.trim(), ran.code), ("5", Some(0)), "{ran:?}");
    let out = kubectl.terminal(&format!("exec -it {pod} -- sh"), "echo sum-$((40+2)); exit\n");
    assert!(out.contains("sum-42"), "{out}");
}

/// The streams of the official Python client, where it is installed (the tests of client libraries install it).
fn a_library_looks_into_it(kubectl: &Kubectl) {
    const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/streams.py");
    let kept = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/keelson/clients/python/bin/python"));
    let python = std::env::var_os("KEELSON_PYTHON").map(PathBuf::from).or_else(kept).unwrap_or_default();
    let there = Command::new(&python).args(["-c", "import kubernetes"]).output();
    if !there.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: streams of the Python client: none at {}", python.display());
        return;
    }
    let (pod, _) = pod_on(kubectl, "agent-2");
    let program =
        Command::new("timeout").arg("120").arg(python).arg(PROGRAM).arg(kubectl.kubeconfig()).arg(pod).output();
    let program = program.unwrap();
    let said = String::from_utf8_lossy(&program.stdout).into_owned() + &String::from_utf8_lossy(&program.stderr);
    assert!(program.status.success() && said.lines().any(|line| line == "ok"), "{said}");
}

fn pods_reach_each_other(kubectl: &Kubectl) {
    let (from, _) = pod_on(kubectl, "agent-1");
    let (other, address) = pod_on(kubectl, "agent-2");
    let page = kubectl.ok(&format!("exec {from} -- wget -qO- http://{address}:8080/"));
    assert_eq!(page, format!("hello from {other}, version 1\n"));
}

/// The name service has a Service whose endpoints are the agents; any of them answers.
fn names_are_found(kubectl: &Kubectl) {
    let (pod, _) = pod_on(kubectl, "agent-1");
    let config = kubectl.ok(&format!("exec {pod} -- cat /etc/resolv.conf"));
    assert!(config.contains("nameserver 10.96.0.10\n"), "{config}");
    let slices = "get endpointslices -n kube-system -l kubernetes.io/service-name=kube-dns";
    let addresses = format!("{slices} -o 'jsonpath={{.items[*].endpoints[*].addresses[*]}}'");
    let addresses = kubectl.wait(&addresses, |out| out.split_whitespace().count() == 2);
    for server in addresses.split_whitespace().chain(["10.96.0.10"]) {
        let ask = format!("exec {pod} -- nslookup kubernetes.default.svc.cluster.local {server}");
        kubectl.wait(&ask, |out| out.contains("10.96.0.1"));
    }
}

/// `kubectl top` shows what the agents count.
fn use_is_shown(kubectl: &Kubectl) {
    kubectl
        .wait("top pods -l app=hello --no-headers", |out| out.lines().filter(|line| line.contains("Mi")).count() == 3);
    // The containers are so small that `top` may round them to nothing.
    let metrics = kubectl.ok("get --raw /apis/metrics.k8s.io/v1beta1/namespaces/default/pods");
    assert!(metrics.contains("\"name\":\"web\"") && !metrics.contains("\"0Ki\""), "{metrics}");
    kubectl
        .wait("top nodes --no-headers", |out| out.contains("agent-1") && out.contains("agent-2") && out.contains("Mi"));
}

fn it_is_changed(kubectl: &Kubectl) {
    kubectl.ok("scale deployment hello --replicas=5");
    kubectl.wait("get deployment hello -o 'jsonpath={.status.readyReplicas}'", |out| out == "5");
    kubectl.ok(&format!("set image deployment/hello web={}", image::WEB[1]));
    kubectl.ok("rollout status deployment/hello --timeout=60s");
    let (pod, address) = pod_on(kubectl, "agent-2");
    let page = kubectl.ok(&format!("exec {pod} -- wget -qO- http://{address}:8080/"));
    assert_eq!(page, format!("hello from {pod}, version 2\n"));
    kubectl.ok("rollout undo deployment/hello");
    kubectl.ok("rollout status deployment/hello --timeout=60s");
    let (pod, address) = pod_on(kubectl, "agent-1");
    let page = kubectl.ok(&format!("exec {pod} -- wget -qO- http://{address}:8080/"));
    assert_eq!(page, format!("hello from {pod}, version 1\n"));
    let history = kubectl.ok("rollout history deployment/hello");
    assert!(history.contains('2') && history.contains('3'), "{history}");
    kubectl.ok("label deployment hello tier=front");
    kubectl.ok("annotate deployment hello 'note=two words'");
    let got = kubectl.ok("get deployment hello -o 'jsonpath={.metadata.labels.tier} {.metadata.annotations.note}'");
    assert_eq!(got, "front two words");
}

fn objects_are_applied(kubectl: &Kubectl) {
    for (manifest, wanted) in [
        (MANIFEST.to_owned(), ["configmap/settings created", "service/hello created"]),
        (MANIFEST.to_owned(), ["configmap/settings unchanged", "service/hello unchanged"]),
        (MANIFEST.replace("blue", "green"), ["configmap/settings configured", "service/hello unchanged"]),
    ] {
        let ran = kubectl.feed("apply -f -", &manifest);
        assert!(wanted.iter().all(|text| ran.out.contains(text)), "{ran:?}");
    }
    assert_eq!(kubectl.ok("get configmap settings -o 'jsonpath={.data.colour}'"), "green");
    assert!(kubectl.ok("get service hello").contains("ClusterIP"));
    let bad = kubectl.feed("apply --validate=false -f -", "apiVersion: v1\nkind: Sheep\nmetadata: {name: a}\n");
    assert!(bad.err.contains("no matches for kind \"Sheep\""), "{bad:?}");
}

fn it_is_deleted(kubectl: &Kubectl) {
    assert!(kubectl.ok("delete deployment hello").contains("\"hello\" deleted"));
    kubectl.wait("get pods", |out| !out.contains("hello-"));
    let gone = kubectl.run("get deployment hello");
    assert!(gone.err.contains("deployments.apps \"hello\" not found"), "{gone:?}");
}
