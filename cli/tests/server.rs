//! Runs the real binary with hollow nodes and drives it with the real kubectl: what a user does in the first minutes.

mod support;

use support::{Server, free_port, keelson, kubectl_is_there};

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: "example:1", ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
"#;

#[test]
fn a_deployment_lives_through_kubectl_and_a_killed_server() {
    if !kubectl_is_there() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let server = Server::start(dir.path(), port, &["--hollow", "2"]);
    let ready = |n: &'static str| move |out: &str| out == n;
    let nodes = ["get", "nodes", "-o", r#"jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}"#];
    server.until("nodes are ready", &nodes, ready("True True"));
    // A node's taint goes after it has said that it is ready.
    let taints = ["get", "nodes", "-o", "jsonpath={.items[*].spec.taints[*].key}"];
    server.until("nodes take pods", &taints, ready(""));
    let account = ["get", "serviceaccount", "default", "-o", "jsonpath={.metadata.name}"];
    server.until("the namespace has its account", &account, ready("default"));

    server.apply(WEB);
    let available = ["get", "deployment", "web", "-o", "jsonpath={.status.availableReplicas}"];
    server.until("pods run", &available, ready("3"));
    assert_eq!(server.apply(WEB), "deployment.apps/web unchanged\nservice/web unchanged\n");
    let places = server.run(&["get", "pods", "-o", "jsonpath={.items[*].spec.nodeName}"]);
    assert!(places.contains("hollow-0") && places.contains("hollow-1"), "pods are spread: {places}");

    server.run(&["scale", "deployment", "web", "--replicas=5"]);
    server.until("it is scaled", &available, ready("5"));
    server.run(&["set", "image", "deployment/web", "web=example:2"]);
    server.run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let images = ["get", "pods", "-o", "jsonpath={.items[*].spec.containers[*].image}"];
    server.until("all pods are new", &images, ready("example:2 example:2 example:2 example:2 example:2"));
    server.run(&["rollout", "undo", "deployment/web"]);
    server.run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    server.until("all pods are old", &images, ready("example:1 example:1 example:1 example:1 example:1"));

    // kill -9 loses nothing that was acknowledged.
    drop(server);
    let server = Server::start(dir.path(), port, &["--hollow", "2"]);
    assert_eq!(server.run(&available), "5");
    server.run(&["delete", "deployment", "web"]);
    server.until("pods go with their deployment", &["get", "pods", "-o", "name"], |out| out.is_empty());
}

#[test]
fn bad_input_is_told() {
    if !kubectl_is_there() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().to_string_lossy().into_owned();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let refused = |args: &[&str], expected: &str| {
        let (success, said) =
            keelson(&[&["server", "--bind-address", "127.0.0.1", "--data-dir", &data_dir], args].concat());
        assert!(!success && said.contains(expected), "{args:?}: {said}");
    };
    refused(&["--secure-port", &port], "cannot listen on");
    assert!(!dir.path().join("member.json").exists(), "a start that failed leaves no member behind");
    let free = free_port();
    let server = Server::start(dir.path(), free, &[]);
    refused(&[], "is in use by another keelson");
    drop(server);
    let free = free.to_string();
    for (args, expected) in [
        (["--service-cidr", "10.1.0.0/16"], "cannot be changed"),
        (["--ca-hash", "sha256:00"], "belongs to another cluster"),
        (["--compaction-interval", "5"], "is not a duration"),
        (["--no-such-flag", "1"], "unexpected argument"),
    ] {
        refused(&[&["--secure-port", &free][..], &args].concat(), expected);
    }
}
