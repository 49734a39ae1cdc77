//! Runs the real binary with hollow nodes and drives it with the real kubectl: what a user does in the first minutes.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take before the test gives up; far more than it needs.
const PATIENCE: Duration = Duration::from_secs(60);

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

/// A server that ends with the test.
struct Server {
    child: Child,
    dir: PathBuf,
}

impl Server {
    fn start(dir: &Path, port: u16) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_keelson"))
            .args(["server", "--bind-address", "127.0.0.1", "--hollow", "2", "--data-dir"])
            .arg(dir)
            .args(["--secure-port", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { child, dir: dir.to_owned() };
        server.until("the server is ready", &["get", "--raw", "/readyz"], |out| out == "ok");
        server
    }

    fn kubectl(&self, args: &[&str]) -> Output {
        Command::new("kubectl")
            .args(["--request-timeout=10s", "--kubeconfig"])
            .arg(self.dir.join("admin.kubeconfig"))
            .args(args)
            .output()
            .unwrap()
    }

    /// Output of a command that must succeed.
    fn run(&self, args: &[&str]) -> String {
        let output = self.kubectl(args);
        assert!(output.status.success(), "kubectl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Repeats a command until its output is as wanted.
    fn until(&self, what: &str, args: &[&str], wanted: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = self.kubectl(args);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            if output.status.success() && wanted(text.trim()) {
                return;
            }
            assert!(Instant::now() < deadline, "{what}: {text}{}", String::from_utf8_lossy(&output.stderr));
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn apply(&self, yaml: &str) -> String {
        let file = self.dir.join("apply.yaml");
        std::fs::write(&file, yaml).unwrap();
        self.run(&["apply", "-f", &file.to_string_lossy()])
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).unwrap().port()
}

#[test]
fn a_deployment_lives_through_kubectl_and_a_killed_server() {
    if Command::new("kubectl").args(["version", "--client"]).output().is_err() {
        eprintln!("SKIPPED: kubectl is not installed");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let server = Server::start(dir.path(), port);
    let ready = |n: &'static str| move |out: &str| out == n;
    let nodes = ["get", "nodes", "-o", r#"jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}"#];
    server.until("nodes are ready", &nodes, ready("True True"));
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
    let server = Server::start(dir.path(), port);
    assert_eq!(server.run(&available), "5");
    server.run(&["delete", "deployment", "web"]);
    server.until("pods go with their deployment", &["get", "pods", "-o", "name"], |out| out.is_empty());
}

#[test]
fn bad_input_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let server = |args: &[&str]| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_keelson")).args(args).arg("--data-dir").arg(dir.path()).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (args, expected) in [
        (vec!["server", "--bind-address", "127.0.0.1", "--secure-port", &port], "cannot listen on"),
        (vec!["server", "--service-cidr", "10.1.0.0/16"], "cannot be changed"),
        (vec!["server", "--compaction-interval", "5"], "is not a duration"),
        (vec!["server", "--no-such-flag"], "unexpected argument"),
    ] {
        let (success, text) = server(&args);
        assert!(!success && text.contains(expected), "{args:?}: {text}");
    }
}
