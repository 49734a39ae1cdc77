//! A server looks after itself: its certificates end and are replaced, its CAs follow each other, it tells how it is,
//! while a client goes on.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{PATIENCE, Server, free_port, keelson, kubectl_is_there};

fn report(server: &Server) -> Value {
    let (success, said) = keelson(&["status", "-o", "json", "--kubeconfig", &server.kubeconfig()]);
    assert!(success, "{said}");
    serde_json::from_str(&said).unwrap()
}

/// When the API's certificate ends.
fn api_ends(server: &Server) -> i64 {
    let report = report(server);
    let certificates = report["members"][0]["certificates"].as_array().unwrap().clone();
    let api = certificates.iter().find(|certificate| certificate["name"] == "api").unwrap();
    api["notAfter"].as_i64().unwrap()
}

/// A client that asks without pause, with the kubeconfig as it is; it counts answers and keeps the first failure.
struct Client {
    stop: Arc<AtomicBool>,
    running: std::thread::JoinHandle<(u32, Option<String>)>,
}

impl Client {
    fn start(server: &Server) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, kubeconfig) = (stop.clone(), server.kubeconfig());
        let running = std::thread::spawn(move || {
            let mut answers = 0;
            while !stopped.load(Ordering::SeqCst) {
                let output = std::process::Command::new("kubectl")
                    .args(["--kubeconfig", &kubeconfig, "get", "namespace", "default", "-o", "name"])
                    .output()
                    .unwrap();
                if !output.status.success() {
                    return (answers, Some(String::from_utf8_lossy(&output.stderr).into_owned()));
                }
                answers += 1;
            }
            (answers, None)
        });
        Self { stop, running }
    }

    fn end(self) {
        self.stop.store(true, Ordering::SeqCst);
        let (answers, failure) = self.running.join().unwrap();
        assert_eq!(failure, None, "after {answers} answers");
        assert!(answers > 0);
    }
}

#[test]
fn certificates_and_authorities_change_and_no_client_notices() {
    if !kubectl_is_there() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), free_port(), &["--certificate-lifetime", "60s"]);
    let client = Client::start(&server);
    let first = api_ends(&server);
    // By itself, long before the end.
    let deadline = Instant::now() + PATIENCE;
    while api_ends(&server) <= first {
        assert!(Instant::now() < deadline, "the certificate is not replaced");
        std::thread::sleep(Duration::from_millis(200));
    }
    let kubeconfig = server.kubeconfig();
    let certs = |args: &[&str]| {
        let (success, said) = keelson(&[&["certs"], args, &["--kubeconfig", &kubeconfig]].concat());
        assert!(success, "{said}");
        said
    };
    assert!(certs(&["list"]).contains("CN=keelson-apiserver"));
    assert!(certs(&["rotate"]).contains("new certificates"));
    // Who knows only the former CA goes on after its successor signs.
    let former = dir.path().join("former.kubeconfig");
    std::fs::copy(&kubeconfig, &former).unwrap();
    let with_former = || {
        let former = former.to_string_lossy().into_owned();
        keelson(&["status", "--kubeconfig", &former])
    };
    assert!(certs(&["rotate", "--ca"]).contains("new CAs sign"));
    assert!(with_former().0, "{}", with_former().1);
    server.until(
        "pods know both CAs",
        &["get", "configmap", "kube-root-ca.crt", "-o", "jsonpath={.data.ca\\.crt}"],
        |out| out.matches("BEGIN CERTIFICATE").count() == 2,
    );
    // Until it is retired.
    assert!(certs(&["retire"]).contains("newest"));
    assert!(!with_former().0, "a certificate of the retired CA is refused");
    server.run(&["get", "namespaces"]);
    client.end();
}

#[test]
fn the_state_is_told_with_what_to_do() {
    if !kubectl_is_there() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), free_port(), &["--hollow", "2"]);
    server.until("nodes are there", &["get", "nodes", "-o", "name"], |out| out.lines().count() == 2);
    server.run(&["create", "deployment", "web", "--image=example:1", "--replicas=3"]);
    server.run(&["cordon", "hollow-1"]);
    let deadline = Instant::now() + PATIENCE;
    let report = loop {
        let report = report(&server);
        if report["pods"]["running"] == 3 && report["nodes"][1]["cordoned"] == true {
            break report;
        }
        assert!(Instant::now() < deadline, "{report:#}");
        std::thread::sleep(Duration::from_millis(200));
    };
    let member = &report["members"][0];
    assert_eq!((&member["role"], &report["workloads"][0]["name"]), (&"leader".into(), &"web".into()), "{report:#}");
    for figure in ["term", "appliedIndex", "syncMedianMicros", "watchers", "requests", "memoryBytes", "storeBytes"] {
        assert!(member[figure].as_u64().unwrap() > 0, "{figure}: {member:#}");
    }
    let events = report["events"].as_array().unwrap();
    assert!(events.iter().any(|event| event["reason"] == "ScalingReplicaSet"), "{events:?}");
    let (success, said) = keelson(&["status", "--kubeconfig", &server.kubeconfig()]);
    assert!(success && said.contains("kubectl uncordon hollow-1") && said.contains("leader"), "{said}");
    // Only who may.
    let outcome = server.kubectl(&["get", "--raw", "/keelson/v1/status", "--as", "nobody"]);
    assert!(!outcome.status.success() && String::from_utf8_lossy(&outcome.stderr).contains("Forbidden"));
    let page = server.run(&["get", "--raw", "/keelson/v1/dashboard"]);
    assert!(page.starts_with("<!doctype html>"));
}
