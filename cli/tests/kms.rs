//! A plugin that holds the keys of secrets (KMS version 2) beside the real server: what is on disk, what a turned key changes,
//! and what is said while the plugin is away.

#[path = "../../apiserver/tests/support/kms.rs"]
mod plugin;
mod support;

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Instant;

use plugin::Plugin;
use support::{PATIENCE, Server, free_port, is_on_disk, keelson, kubectl_is_there};

/// A plugin that runs until it is dropped.
struct Running {
    runtime: Option<tokio::runtime::Runtime>,
    socket: PathBuf,
}

impl Running {
    fn start(plugin: &Plugin, socket: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let inside = runtime.enter();
        plugin.serve(socket);
        drop(inside);
        Self { runtime: Some(runtime), socket: socket.to_owned() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        // Who comes now finds nobody.
        let _ = std::fs::remove_file(&self.socket);
    }
}

fn start(dir: &Path, port: u16, flags: &[&str]) -> Server {
    let config = dir.join("encryption.yaml");
    let socket = dir.join("kms.sock");
    let text = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  providers:\n  \
         - kms: {{apiVersion: v2, name: vault, endpoint: \"unix://{}\", timeout: 20s}}\n  - identity: {{}}\n",
        socket.display()
    );
    std::fs::write(&config, text).unwrap();
    let config = config.to_string_lossy().into_owned();
    let own = ["--no-controllers", "--no-scheduler", "--encryption-provider-config", &config];
    Server::start(&dir.join("data"), port, &[&own[..], flags].concat())
}

fn read(server: &Server, name: &str) -> String {
    server.run(&["get", "secret", name, "-o", "jsonpath={.data.a}"])
}

fn encoded(text: &str) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(text)
}

/// What the server says of its health at a path, once it is as wanted.
fn health(server: &Server, path: &str, wanted: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let output = server.kubectl(&["get", "--raw", path]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        if said.contains(wanted) {
            return;
        }
        assert!(Instant::now() < deadline, "{path}: {said}");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
}

#[test]
fn a_plugin_keeps_the_keys_of_secrets() {
    if !kubectl_is_there() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (data, port, plugin) = (dir.path().join("data"), free_port(), Plugin::default());
    plugin.key.store(1, Ordering::SeqCst);
    let socket = dir.path().join("kms.sock");
    let running = Running::start(&plugin, &socket);
    let etcd = free_port();
    let server = start(dir.path(), port, &["--etcd-listen", &format!("127.0.0.1:{etcd}")]);
    health(&server, "/readyz?verbose", "[+]kms-providers ok");
    for index in 0..20 {
        let value = format!("--from-literal=a=hidden-by-the-plugin-{index}");
        server.run(&["create", "secret", "generic", &format!("s{index}"), &value]);
    }
    assert_eq!(read(&server, "s7"), encoded("hidden-by-the-plugin-7"));
    assert_eq!(plugin.seals.load(Ordering::SeqCst), 1, "one seed seals many values");
    let file = |name: &str| data.join(name).to_string_lossy().into_owned();
    let snapshot = dir.path().join("snapshot");
    let endpoint = format!("https://127.0.0.1:{etcd}");
    let (authority, certificate, key) = (file("etcd-ca.crt"), file("etcd-client.crt"), file("etcd-client.key"));
    let own = ["--endpoint", &endpoint, "--cacert", &authority, "--cert", &certificate, "--key", &key];
    let (good, said) = keelson(&[&["snapshot", "save", &snapshot.to_string_lossy()][..], &own].concat());
    assert!(good && std::fs::metadata(&snapshot).unwrap().len() > 0, "{said}");
    drop(server);
    for text in ["hidden-by-the-plugin".to_owned(), encoded("hidden-by-the-plugin")] {
        assert!(!is_on_disk(dir.path(), text.as_bytes()), "{text}");
    }
    assert!(is_on_disk(&data, b"k8s:enc:kms:v2:vault:"));

    // The plugin turns its key. A new process asks which is current; what is written anew is sealed with it.
    plugin.key.store(2, Ordering::SeqCst);
    let server = start(dir.path(), port, &[]);
    assert_eq!(read(&server, "s7"), encoded("hidden-by-the-plugin-7"), "the former key still opens");
    server.run(&["create", "secret", "generic", "later", "--from-literal=a=hidden-later"]);
    assert_eq!(plugin.seals.load(Ordering::SeqCst), 2);
    let all = dir.path().join("s7.json");
    std::fs::write(&all, server.run(&["get", "secret", "s7", "-o", "json"])).unwrap();
    server.run(&["replace", "-f", &all.to_string_lossy()]);
    std::fs::remove_file(&all).unwrap();
    drop(server);

    // The plugin is away: a server says that it is not ready, and reads nothing that it has no seed of.
    drop(running);
    let server = start_unready(dir.path(), port);
    let refused = server.kubectl(&["get", "secret", "s7"]);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(why.contains("Error from server (InternalError)") && why.contains("kms plugin \"vault\""), "{why}");
    let refused = server.kubectl(&["create", "secret", "generic", "never", "--from-literal=a=b"]);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(why.contains("kms plugin \"vault\""), "{why}");
    server.run(&["create", "configmap", "plain", "--from-literal=a=b"]);
    health(&server, "/livez", "ok");
    health(&server, "/healthz/kms-providers", "kms-providers failed");

    // It comes back: nothing needs to be started again.
    let _running = Running::start(&plugin, &socket);
    health(&server, "/readyz?verbose", "[+]kms-providers ok");
    assert_eq!(read(&server, "s7"), encoded("hidden-by-the-plugin-7"));
    assert_eq!(read(&server, "later"), encoded("hidden-later"));
    server.run(&["create", "secret", "generic", "again", "--from-literal=a=hidden-again"]);
    drop(server);
    assert!(!is_on_disk(&data, b"hidden-again") && !is_on_disk(&data, encoded("hidden-again").as_bytes()));
}

/// A server whose plugin is away lives, but is not ready.
fn start_unready(dir: &Path, port: u16) -> Server {
    let config = dir.join("encryption.yaml").to_string_lossy().into_owned();
    let flags = ["--no-controllers", "--no-scheduler", "--encryption-provider-config", &config];
    let server = Server::start_until(&dir.join("data"), port, &flags, "/livez");
    health(&server, "/readyz", "[-]kms-providers failed: reason withheld");
    server
}
