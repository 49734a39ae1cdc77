//! A cluster's bad days, with the commands of docs/operations.md: copies and what comes back from them, a quorum that is
//! lost, an upgrade and one that fails.

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use support::{PATIENCE, Server, free_port, keelson, kubectl_is_there};

fn ok(args: &[&str]) -> String {
    let (success, said) = keelson(args);
    assert!(success, "keelson {args:?}: {said}");
    said
}

fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} does not happen");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Files of a directory that end so, in order.
fn files(dir: &Path, end: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|path| path.to_string_lossy().ends_with(end)).collect();
    files.sort();
    files
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// An object store of the test's own: as much of S3 as copies need.
struct Bucket {
    port: u16,
    objects: Arc<Mutex<std::collections::BTreeMap<String, usize>>>,
}

impl Bucket {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let objects: Arc<Mutex<std::collections::BTreeMap<String, usize>>> = Arc::default();
        let kept = objects.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let kept = kept.clone();
                std::thread::spawn(move || serve(stream, &kept));
            }
        });
        Self { port, objects }
    }

    fn names(&self) -> Vec<String> {
        self.objects.lock().unwrap().keys().cloned().collect()
    }
}

/// Answers requests on a connection; each must be signed.
fn serve(mut stream: TcpStream, objects: &Mutex<std::collections::BTreeMap<String, usize>>) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).unwrap_or(0) == 0 {
            return;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut words = head.split_whitespace();
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let length = head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ").map(str::to_owned));
    let mut body = vec![0; length.and_then(|length| length.trim().parse().ok()).unwrap_or(0)];
    if stream.read_exact(&mut body).is_err() {
        return;
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let key = path.trim_start_matches("/copies").trim_start_matches('/').to_owned();
    let mut objects = objects.lock().unwrap();
    let (code, answer) = match method {
        _ if !query.contains("X-Amz-Signature=") || !query.contains("X-Amz-Credential=someone") => (403, String::new()),
        "PUT" => {
            objects.insert(key, body.len());
            (200, String::new())
        }
        "DELETE" => {
            objects.remove(&key);
            (204, String::new())
        }
        _ => {
            let content = |(key, size): (&String, &usize)| {
                format!(
                    "<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>x</ETag>\
                     <Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
                )
            };
            let contents: String = objects.iter().map(content).collect();
            let list = format!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?><ListBucketResult \
                 xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>copies</Name><Prefix></Prefix><KeyCount>{}\
                 </KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>",
                objects.len()
            );
            (200, list)
        }
    };
    let answer = format!("HTTP/1.1 {code} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{answer}", answer.len());
    let _ = stream.write_all(answer.as_bytes());
}

/// The revision of a list.
fn revision(server: &Server) -> i64 {
    let list: serde_json::Value = serde_json::from_str(&server.run(&["get", "--raw", "/api/v1/namespaces"])).unwrap();
    list["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

/// One namespace comes back into the running cluster; what is there is left alone.
fn objects_come_back(server: &Server, copy: &str) {
    let kubeconfig = server.kubeconfig();
    server.run(&["delete", "namespace", "shop"]);
    server.run(&["-n", "default", "patch", "configmap", "elsewhere", "-p", r#"{"data":{"kept":"yes"}}"#]);
    let printed = ok(&["snapshot", "extract", copy, "-n", "shop", "configmap/goods"]);
    assert!(printed.contains("apples: \"3\"") && !printed.contains("uid:"), "{printed}");
    ok(&["snapshot", "apply", copy, "-n", "shop", "--kubeconfig", &kubeconfig]);
    assert_eq!(server.run(&["-n", "shop", "get", "configmap", "goods", "-o", "jsonpath={.data.apples}"]), "3");
    let replicas = ["-n", "shop", "get", "deployment", "web", "-o", "jsonpath={.status.replicas}"];
    server.until("its deployment works", &replicas, |out| out == "1");
    let said = ok(&["snapshot", "apply", copy, "configmap", "--kubeconfig", &kubeconfig]);
    assert!(said.contains("default: configmap/elsewhere is there: left as it is"), "{said}");
    assert_eq!(server.run(&["get", "configmap", "elsewhere", "-o", "jsonpath={.data.kept}"]), "yes");
}

#[test]
fn copies_are_made_and_bring_everything_back() {
    if !kubectl_is_there() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (first, second, port, bucket) =
        (dir.path().join("first"), dir.path().join("second"), free_port(), Bucket::start());
    let endpoint = format!("http://127.0.0.1:{}", bucket.port);
    let flags = [
        "--name=one",
        "--snapshot-interval=2s",
        "--snapshot-retention=2",
        "--snapshot-s3=s3://copies/a/b",
        "--snapshot-s3-endpoint",
        &endpoint,
    ];
    let keys = [("AWS_ACCESS_KEY_ID", "someone"), ("AWS_SECRET_ACCESS_KEY", "secret")];
    let server = Server::start_with(&first, port, &flags, &keys);
    server.run(&["create", "namespace", "shop"]);
    server.run(&["-n", "shop", "create", "configmap", "goods", "--from-literal=apples=3"]);
    server.run(&["-n", "shop", "create", "deployment", "web", "--image=example:1"]);
    server.run(&["-n", "shop", "create", "service", "clusterip", "web", "--tcp=80"]);
    server.run(&["create", "configmap", "elsewhere"]);

    // Copies come on time and old ones go, here and there.
    let snapshots = first.join("snapshots");
    let begun = files(&snapshots, ".db");
    until("copies are renewed", || {
        let now = files(&snapshots, ".db");
        (now.len() == 2 && now.iter().all(|file| !begun.contains(file)) && bucket.names().len() == 4).then_some(())
    });
    for name in bucket.names() {
        assert!(name.starts_with("a/b/keelson-"), "{name}");
    }
    let copy = dir.path().join("copy.db");
    let made_at = server.run(&["get", "configmap", "elsewhere", "-o", "jsonpath={.metadata.resourceVersion}"]);
    let newest = until("a copy has all of it", || {
        let file = files(&snapshots, ".db").pop()?;
        let (success, said) = keelson(&["snapshot", "status", &text(&file), "-o", "json"]);
        let told: serde_json::Value = serde_json::from_str(&said).ok()?;
        (success && told["verified"] == true && told["revision"].as_i64()? >= made_at.parse().ok()?).then_some(file)
    });
    std::fs::copy(&newest, &copy).unwrap();
    std::fs::copy(newest.to_string_lossy().replace(".db", ".keys.json"), dir.path().join("copy.keys.json")).unwrap();

    objects_come_back(&server, &text(&copy));
    let (copy, kubeconfig) = (text(&copy), server.kubeconfig());
    // The whole cluster comes back on an empty disk, with its keys: old kubeconfigs and tokens stay good.
    let old = dir.path().join("old.kubeconfig");
    std::fs::copy(&kubeconfig, &old).unwrap();
    let before = revision(&server);
    drop(server);
    ok(&["snapshot", "restore", &copy, "--data-dir", &text(&second), "--name", "one"]);
    let server = Server::start(&second, port, &["--snapshot-interval=0s"]);
    assert_eq!(server.run(&["-n", "shop", "get", "configmap", "goods", "-o", "jsonpath={.data.apples}"]), "3");
    let after = revision(&server);
    assert!(after > before, "no client sees a revision again: {before} {after}");
    let output = Command::new("kubectl").args(["--kubeconfig", &text(&old), "get", "namespaces"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_lost_quorum_is_recovered_in_one_command() {
    if !kubectl_is_there() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let ports = [(); 3].map(|()| (free_port(), free_port()));
    let start = |name: &str, ports: (u16, u16), more: &[String]| {
        let peer = format!("127.0.0.1:{}", ports.1);
        let mut flags = vec!["--name", name, "--peer-address", &peer];
        flags.extend(more.iter().map(String::as_str));
        Server::start(&dir.path().join(name), ports.0, &flags)
    };
    let join = |server: &Server| {
        let kubeconfig = server.kubeconfig();
        let said = ok(&["token", "create", "--server", "--print-join-command", "--kubeconfig", &kubeconfig]);
        said.split_whitespace().skip(2).map(str::to_owned).collect::<Vec<_>>()
    };
    let voters = |server: &Server, count: usize| {
        until("all servers vote", || {
            let (success, said) = keelson(&["status", "-o", "json", "--kubeconfig", &server.kubeconfig()]);
            let report: serde_json::Value = serde_json::from_str(&said).ok().filter(|_| success)?;
            let members = report["members"].as_array()?;
            let fine = |member: &serde_json::Value| member["role"] != "learner" && member.get("error").is_none();
            (members.len() == count && members.iter().all(fine)).then_some(())
        });
    };
    let a = start("a", ports[0], &["--cluster-init".into()]);
    let flags = join(&a);
    let (b, c) = (start("b", ports[1], &flags), start("c", ports[2], &flags));
    voters(&a, 3);
    a.run(&["create", "configmap", "kept"]);
    // Two of three are gone for good, disks and all.
    drop((b, c));
    for name in ["b", "c"] {
        std::fs::remove_dir_all(dir.path().join(name)).unwrap();
    }
    let refused = a.kubectl(&["create", "configmap", "not-now"]);
    assert!(!refused.status.success());
    let told = ok(&["status", "--kubeconfig", &a.kubeconfig()]);
    assert!(told.contains("no quorum: 1 of 3") && told.contains("reset --recover-quorum"), "{told}");
    drop(a);
    let said = ok(&["reset", "--recover-quorum", "--data-dir", &text(&dir.path().join("a"))]);
    assert!(said.contains("only server of its cluster"), "{said}");
    let a = start("a", ports[0], &[]);
    a.run(&["get", "configmap", "kept"]);
    a.run(&["create", "configmap", "again"]);
    let b = start("b", ports[1], &join(&a));
    voters(&b, 2);
    b.run(&["get", "configmap", "again"]);
}

/// A program with another version in it.
fn another_version(dir: &Path, version: &str) -> PathBuf {
    let (own, other) = (format!("keelson-version={}", env!("CARGO_PKG_VERSION")), format!("keelson-version={version}"));
    assert_eq!(own.len(), other.len());
    let binary = env!("CARGO_BIN_EXE_keelson");
    let found = Command::new("grep").args(["-obUaF", &own, binary]).output().unwrap();
    let places = String::from_utf8_lossy(&found.stdout).into_owned();
    let places: Vec<usize> = places.lines().filter_map(|line| line.split(':').next()?.parse().ok()).collect();
    assert!(!places.is_empty());
    let mut bytes = std::fs::read(binary).unwrap();
    for at in places {
        bytes[at..at + other.len()].copy_from_slice(other.as_bytes());
    }
    let path = dir.join(format!("keelson-{version}"));
    std::fs::write(&path, bytes).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    path
}

/// Starts a program again whenever it ends, as systemd does; ends with the test.
struct Supervisor(Child);

impl Supervisor {
    fn start(dir: &Path, binary: &Path, flags: &str) -> Self {
        let script = format!(
            "trap 'kill $child; exit' TERM; while :; do {} server {flags} >>{log} 2>&1 & child=$!; echo $child > {pid}; \
             wait $child; sleep 0.1; done",
            binary.display(),
            log = dir.join("log").display(),
            pid = dir.join("pid").display()
        );
        Self(Command::new("sh").args(["-c", &script]).stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

#[test]
fn an_upgrade_that_is_not_well_goes_back_by_itself() {
    if !kubectl_is_there() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (binary, data) = (dir.path().join("keelson"), dir.path().join("data"));
    std::fs::create_dir(&data).unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_keelson"), &binary).unwrap();
    let flags = format!(
        "--bind-address 127.0.0.1 --secure-port {} --peer-address 127.0.0.1:{} --data-dir {}",
        free_port(),
        free_port(),
        data.display()
    );
    let _supervisor = Supervisor::start(&data, &binary, &flags);
    let kubeconfig = text(&data.join("admin.kubeconfig"));
    let version = || {
        let (success, said) = keelson(&["status", "-o", "json", "--kubeconfig", &kubeconfig]);
        let report: serde_json::Value = serde_json::from_str(&said).ok().filter(|_| success)?;
        Some(report["version"].as_str()?.to_owned())
    };
    until("it serves", version);
    let restart = format!("kill $(cat {}) || true", data.join("pid").display());
    let upgrade = |program: &Path| {
        keelson(&[
            "upgrade",
            &text(program),
            "--binary",
            &text(&binary),
            "--kubeconfig",
            &kubeconfig,
            "--patience=10s",
            "--restart-command",
            &restart,
        ])
    };
    // Too large a step, and what is no such program, are refused before anything changes.
    let (success, said) = upgrade(&another_version(dir.path(), "0.9.0"));
    assert!(!success && said.contains("go to 0.2 first"), "{said}");
    let (success, said) = upgrade(Path::new("/bin/true"));
    assert!(!success && said.contains("is not keelson"), "{said}");
    // One that tells a version but does not serve: the former comes back.
    let broken = dir.path().join("broken");
    std::fs::write(&broken, "#!/bin/sh\n[ \"$1\" = --version ] && echo keelson 0.2.0 && exit 0\nexit 1\n").unwrap();
    std::fs::set_permissions(&broken, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (success, said) = upgrade(&broken);
    assert!(!success && said.contains("was taken back"), "{said}");
    assert_eq!(version().as_deref(), Some(env!("CARGO_PKG_VERSION")));
    // Up, and down again.
    let (success, said) = upgrade(&another_version(dir.path(), "0.2.0"));
    assert!(success && said.contains("well at 0.2.0"), "{said}");
    assert_eq!(version().as_deref(), Some("0.2.0"));
    let (success, said) = upgrade(Path::new(env!("CARGO_BIN_EXE_keelson")));
    assert!(success, "{said}");
}
