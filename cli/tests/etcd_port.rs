//! `keelson server --etcd-listen`: the real etcdctl reads the server's store, as an admin only.
//!
//! Skips where etcdctl or kubectl is not installed.

mod support;

use std::path::Path;
use std::process::{Command, Output};

use keelson_pki::ClusterPki;
use support::{Server, free_port, kubectl_is_there};

/// Runs etcdctl with a certificate of these names, or without any.
fn etcdctl(dir: &Path, port: u16, client: Option<&str>, args: &[&str]) -> Output {
    let mut command = Command::new("etcdctl");
    // One that is refused tries until its time is over.
    let patience = if client == Some("etcd-client") { "30s" } else { "3s" };
    command.env("ETCDCTL_API", "3").args(["--command-timeout", patience, "--dial-timeout", patience]);
    command.args(["--endpoints", &format!("https://127.0.0.1:{port}"), "--cacert"]).arg(dir.join("etcd-ca.crt"));
    if let Some(client) = client {
        command.arg("--cert").arg(dir.join(format!("{client}.crt")));
        command.arg("--key").arg(dir.join(format!("{client}.key")));
    }
    command.args(args).output().unwrap()
}

#[test]
fn admins_read_the_store_with_etcdctl_and_others_do_not() {
    let there = Command::new("etcdctl").env("ETCDCTL_API", "3").arg("version").output().is_ok();
    if !there {
        eprintln!("SKIPPED: etcdctl is not installed");
    }
    if !there || !kubectl_is_there() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let server = Server::start(dir.path(), free_port(), &["--etcd-listen", &listen]);
    server.run(&["create", "configmap", "seen", "--from-literal=key=from-kubectl"]);
    let say = |client, args: &[&str]| {
        let output = etcdctl(dir.path(), port, client, args);
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success(), told + &String::from_utf8_lossy(&output.stderr))
    };
    let (done, keys) = say(Some("etcd-client"), &["get", "--prefix", "/registry", "--keys-only"]);
    let key = keys.lines().find(|line| line.ends_with("/configmaps/default/seen"));
    let key = key.filter(|_| done).unwrap_or_else(|| panic!("{keys}"));
    let (done, value) = say(Some("etcd-client"), &["get", key]);
    assert!(done && value.contains("from-kubectl"), "{value}");
    let (done, healthy) = say(Some("etcd-client"), &["endpoint", "health"]);
    assert!(done, "{healthy}");

    let pki = ClusterPki::load(&dir.path().join("pki")).unwrap().expect("the cluster's keys");
    let node = pki.cluster.issue_client("system:node:a", &["system:nodes"]).unwrap();
    std::fs::write(dir.path().join("node.crt"), &node.certificate).unwrap();
    std::fs::write(dir.path().join("node.key"), &node.key).unwrap();
    for client in [Some("node"), None] {
        let (done, told) = say(client, &["get", "--prefix", "/registry"]);
        assert!(!done && !told.contains("from-kubectl"), "{client:?}: {told}");
    }
}
