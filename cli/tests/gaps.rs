//! How long a client cannot write while a cluster of three servers is looked after: each step is taken under load, and no
//! write that was acknowledged is lost. `--nocapture` prints the table.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::BodyExt;
use keelson_client::Transport;
use keelson_client::https::{Https, access};
use support::{PATIENCE, free_port, keelson};

/// A write that takes longer is given up and sent again.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Pause after a write that was refused.
const AGAIN: Duration = Duration::from_millis(5);
const NAMES: [&str; 3] = ["a", "b", "c"];
/// Copies are made all the time, beside the writes.
const COPIES: &str = "--snapshot-interval=2s";
const OBJECT: &str = "/api/v1/namespaces/default/configmaps/load";

fn ok(args: &[&str]) -> String {
    let (success, said) = keelson(args);
    assert!(success, "keelson {args:?}: {said}");
    said
}

fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE * 2;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} does not happen");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A server as a process that can be told to stop.
struct Member(Child);

impl Member {
    fn stop(mut self) {
        let _ = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status();
        let _ = self.0.wait();
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Cluster {
    dir: PathBuf,
    ports: [(u16, u16); 3],
}

impl Cluster {
    fn data(&self, at: usize) -> PathBuf {
        self.dir.join(NAMES[at])
    }

    fn kubeconfig(&self, at: usize) -> String {
        self.data(at).join("admin.kubeconfig").to_string_lossy().into_owned()
    }

    fn start(&self, at: usize, program: &Path, more: &[String]) -> Member {
        std::fs::create_dir_all(self.data(at)).unwrap();
        let log = std::fs::File::options().create(true).append(true).open(self.dir.join(format!("{}.log", NAMES[at])));
        let child = Command::new(program)
            .args(["server", "--bind-address", "127.0.0.1", "--name", NAMES[at], "--data-dir"])
            .arg(self.data(at))
            .args(["--secure-port", &self.ports[at].0.to_string()])
            .args(["--peer-address", &format!("127.0.0.1:{}", self.ports[at].1)])
            .arg(COPIES)
            .args(more)
            .stdout(Stdio::null())
            .stderr(log.unwrap())
            .spawn();
        Member(child.unwrap())
    }

    fn join_flags(&self, at: usize) -> Vec<String> {
        let kubeconfig = self.kubeconfig(at);
        let said = ok(&["token", "create", "--server", "--print-join-command", "--kubeconfig", &kubeconfig]);
        said.split_whitespace().skip(2).map(str::to_owned).collect()
    }

    /// Waits until so many servers vote and answer; returns the leader's place.
    fn whole(&self, at: usize, count: usize) -> usize {
        until("all servers vote", || {
            let (success, said) = keelson(&["member", "list", "-o", "json", "--kubeconfig", &self.kubeconfig(at)]);
            let rows: serde_json::Value = serde_json::from_str(&said).ok().filter(|_| success)?;
            let rows = rows.as_array()?;
            let fine = rows.iter().all(|row| row["role"] != "learner" && row.get("error").is_none());
            let leader = rows.iter().find(|row| row["role"] == "leader")?["name"].as_str()?;
            (fine && rows.len() == count).then(|| NAMES.iter().position(|name| *name == leader)).flatten()
        })
    }
}

#[derive(Default)]
struct Seen {
    acknowledged: u64,
    last: Option<Instant>,
    longest: Duration,
}

/// A client that writes all the time, one write after the other.
struct Load {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
    table: Vec<(String, Duration, u64)>,
}

fn transport(cluster: &Cluster) -> Https {
    let access = access(Path::new(&cluster.kubeconfig(0))).unwrap();
    let servers: Vec<String> = cluster.ports.iter().map(|(port, _)| format!("https://127.0.0.1:{port}")).collect();
    Https::to_any(&servers, access.tls, access.token)
}

async fn write(https: &Https, number: u64) -> bool {
    let body = serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "load"},
        "data": {"number": number.to_string()}});
    let request = http::Request::patch(format!("{OBJECT}?fieldManager=load&force=true"))
        .header("content-type", "application/apply-patch+yaml")
        .body(Bytes::from(body.to_string()));
    let Ok(request) = request else { return false };
    let answer = tokio::time::timeout(ATTEMPT, https.call(request)).await;
    matches!(answer, Ok(Ok(response)) if response.status().is_success())
}

impl Load {
    fn start(cluster: &Cluster) -> Self {
        let (seen, stop): (Arc<Mutex<Seen>>, Arc<AtomicBool>) = Default::default();
        let (kept, ends, https) = (seen.clone(), stop.clone(), transport(cluster));
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                while !ends.load(Ordering::Relaxed) {
                    let number = kept.lock().unwrap().acknowledged + 1;
                    if !write(&https, number).await {
                        tokio::time::sleep(AGAIN).await;
                        continue;
                    }
                    let mut seen = kept.lock().unwrap();
                    let now = Instant::now();
                    let gap = seen.last.map_or(Duration::ZERO, |last| now - last);
                    *seen = Seen { acknowledged: number, last: Some(now), longest: seen.longest.max(gap) };
                }
            });
        };
        Self { seen, stop, thread: Some(std::thread::spawn(run)), table: Vec::new() }
    }

    /// Takes a step, and notes the longest time without an acknowledged write until writes go on after it.
    fn during(&mut self, what: &str, step: impl FnOnce()) {
        let acknowledged = || self.seen.lock().unwrap().acknowledged;
        let before = acknowledged();
        until("writes go on", || (acknowledged() > before + 1).then_some(()));
        self.seen.lock().unwrap().longest = Duration::ZERO;
        let before = acknowledged();
        step();
        let after = acknowledged();
        until("writes go on", || (acknowledged() > after + 1).then_some(()));
        let seen = self.seen.lock().unwrap();
        self.table.push((what.to_owned(), seen.longest, seen.acknowledged - before));
        println!("| {what} | {} ms | {} |", seen.longest.as_millis(), seen.acknowledged - before);
    }

    fn end(&mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
        self.seen.lock().unwrap().acknowledged
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// The number that the object holds.
fn stored(cluster: &Cluster) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let request = http::Request::get(OBJECT).body(Bytes::new()).unwrap();
        let response = transport(cluster).call(request).await.unwrap();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let object: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        object["data"]["number"].as_str().unwrap().parse().unwrap()
    })
}

/// The program with another version in it, as the next one would have.
fn next_version(dir: &Path) -> PathBuf {
    let (own, other) = (format!("keelson-version={}", env!("CARGO_PKG_VERSION")), "keelson-version=0.2.0");
    assert_eq!(own.len(), other.len());
    let mut bytes = std::fs::read(env!("CARGO_BIN_EXE_keelson")).unwrap();
    let found = Command::new("grep").args(["-obUaF", &own, env!("CARGO_BIN_EXE_keelson")]).output().unwrap();
    for line in String::from_utf8_lossy(&found.stdout).lines() {
        let at: usize = line.split(':').next().unwrap().parse().unwrap();
        bytes[at..at + other.len()].copy_from_slice(other.as_bytes());
    }
    let path = dir.join("keelson-next");
    std::fs::write(&path, bytes).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    path
}

/// Restarts all servers with a program, the leader last, each when the one before votes again.
fn roll(cluster: &Cluster, members: &mut [Option<Member>; 3], program: &Path) {
    let leader = cluster.whole(0, 3);
    let mut order: Vec<usize> = (0..3).filter(|at| *at != leader).collect();
    order.push(leader);
    for at in order {
        members[at].take().unwrap().stop();
        members[at] = Some(cluster.start(at, program, &[]));
        cluster.whole(at, 3);
    }
}

/// A namespace is deleted and comes back from a copy, beside what goes on.
fn one_namespace_comes_back(cluster: &Cluster, load: &mut Load) {
    let kubeconfig = cluster.kubeconfig(0);
    let kubectl = |args: &[&str]| ok(&[&["kubectl", "--kubeconfig", &kubeconfig], args].concat());
    kubectl(&["create", "namespace", "shop"]);
    kubectl(&["-n", "shop", "create", "configmap", "goods", "--from-literal=apples=3"]);
    let copy = saved(cluster);
    load.during("a namespace is deleted and applied again from a copy", || {
        kubectl(&["delete", "namespace", "shop"]);
        ok(&["snapshot", "apply", &copy, "-n", "shop", "--kubeconfig", &kubeconfig]);
    });
    let apples = kubectl(&["-n", "shop", "get", "configmap", "goods", "-o", "jsonpath={.data.apples}"]);
    assert_eq!(apples, "3");
}

/// The newest copy that a server made of itself, once it is not older than this call.
fn saved(cluster: &Cluster) -> String {
    let copies = cluster.data(0).join("snapshots");
    let newest = || {
        let files = std::fs::read_dir(&copies).into_iter().flatten().flatten().map(|entry| entry.path());
        files.filter(|path| path.extension().is_some_and(|end| end == "db")).max()
    };
    let before = newest();
    until("a copy is made", || newest().filter(|path| Some(path) != before.as_ref()));
    // Kept elsewhere, with its keys: old ones are removed.
    until("a copy is whole", || {
        let (from, to) = (newest()?, cluster.dir.join("copy.db"));
        std::fs::copy(&from, &to).ok()?;
        std::fs::copy(from.with_extension("keys.json"), to.with_extension("keys.json")).ok()?;
        let text = to.to_string_lossy().into_owned();
        keelson(&["snapshot", "status", &text]).0.then_some(text)
    })
}

/// Starts a server again and again, as systemd does.
fn supervised(cluster: &Cluster, at: usize, program: &Path) -> Member {
    let script = format!(
        "trap 'kill $child; wait $child; exit' TERM; while :; do {} server --bind-address 127.0.0.1 --name {} --data-dir {data} \
         --secure-port {} --peer-address 127.0.0.1:{} {COPIES} >> {data}.log 2>&1 & child=$!; echo $child > {data}.pid; wait \
         $child; sleep 0.1; done",
        program.display(),
        NAMES[at],
        cluster.ports[at].0,
        cluster.ports[at].1,
        data = cluster.data(at).display(),
    );
    Member(Command::new("sh").args(["-c", &script]).stdout(Stdio::null()).spawn().unwrap())
}

/// `keelson upgrade` to a program that does not serve: the former one comes back by itself. While a server is missing, it
/// refuses.
fn a_bad_upgrade_goes_back(cluster: &Cluster, load: &mut Load, members: &mut [Option<Member>; 3], dir: &Path) {
    let (own, installed) = (Path::new(env!("CARGO_BIN_EXE_keelson")), dir.join("installed"));
    std::fs::copy(own, &installed).unwrap();
    members[1].take().unwrap().stop();
    members[1] = Some(supervised(cluster, 1, &installed));
    cluster.whole(0, 3);
    let broken = dir.join("broken");
    std::fs::write(&broken, "#!/bin/sh\n[ \"$1\" = --version ] && echo keelson 0.2.0 && exit 0\nexit 1\n").unwrap();
    std::fs::set_permissions(&broken, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let restart = format!("kill $(cat {}.pid) || true", cluster.data(1).display());
    let upgrade = |kubeconfig: &str| {
        let (broken, installed) = (broken.to_string_lossy(), installed.to_string_lossy());
        let args = ["upgrade", &broken, "--binary", &installed, "--kubeconfig", kubeconfig, "--patience=10s"];
        keelson(&[&args[..], &["--restart-command", &restart]].concat())
    };
    load.during("an upgrade of one server that does not come up, and is taken back", || {
        let (success, said) = upgrade(&cluster.kubeconfig(1));
        assert!(!success && said.contains("was taken back"), "{said}");
        cluster.whole(0, 3);
    });
    load.during("a server is missing, and an upgrade of another is refused", || {
        members[2].take().unwrap().stop();
        let (success, said) = upgrade(&cluster.kubeconfig(1));
        assert!(!success && said.contains("does not answer"), "{said}");
        members[2] = Some(cluster.start(2, own, &[]));
        cluster.whole(0, 3);
    });
    members[1].take().unwrap().stop();
    members[1] = Some(cluster.start(1, own, &[]));
    cluster.whole(0, 3);
}

/// The whole cluster from a copy, on disks that were lost.
fn restored(cluster: &Cluster, members: &mut [Option<Member>; 3], copy: &str, program: &Path) {
    members.iter_mut().for_each(|member| member.take().unwrap().stop());
    for at in 0..3 {
        std::fs::remove_dir_all(cluster.data(at)).unwrap();
    }
    ok(&["snapshot", "restore", copy, "--data-dir", &cluster.data(0).to_string_lossy(), "--name", NAMES[0]]);
    members[0] = Some(cluster.start(0, program, &[]));
    cluster.whole(0, 1);
    for (at, member) in members.iter_mut().enumerate().skip(1) {
        let flags = cluster.join_flags(0);
        *member = Some(cluster.start(at, program, &flags));
        cluster.whole(0, at + 1);
    }
}

#[test]
fn writes_go_on_while_servers_come_and_go() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster { dir: dir.path().to_owned(), ports: [(); 3].map(|()| (free_port(), free_port())) };
    let (own, next) = (PathBuf::from(env!("CARGO_BIN_EXE_keelson")), next_version(dir.path()));
    let first = cluster.start(0, &own, &["--cluster-init".into()]);
    let flags = until("a token can be made", || {
        let kubeconfig = cluster.kubeconfig(0);
        // It is kept in a namespace that the server makes when it leads.
        let (success, _) = keelson(&["kubectl", "get", "namespace", "kube-system", "--kubeconfig", &kubeconfig]);
        success.then(|| cluster.join_flags(0))
    });
    let mut members = [Some(first), Some(cluster.start(1, &own, &flags)), Some(cluster.start(2, &own, &flags))];
    cluster.whole(0, 3);
    println!("| step | longest time without an acknowledged write | writes meanwhile |\n|---|---|---|");
    let mut load = Load::start(&cluster);
    let seen = load.seen.clone();
    load.during("nothing", || {
        let before = seen.lock().unwrap().acknowledged;
        until("writes", || (seen.lock().unwrap().acknowledged > before + 100).then_some(()));
    });
    load.during("rolling upgrade of three servers", || roll(&cluster, &mut members, &next));
    load.during("rolling downgrade of three servers", || roll(&cluster, &mut members, &own));
    load.during("rotation of certificates", || drop(ok(&["certs", "rotate", "--kubeconfig", &cluster.kubeconfig(0)])));
    load.during("rotation of the CAs", || {
        drop(ok(&["certs", "rotate", "--ca", "--kubeconfig", &cluster.kubeconfig(0)]));
    });
    load.during("the leader is killed and comes back", || {
        let leader = cluster.whole(0, 3);
        drop(members[leader].take());
        members[leader] = Some(cluster.start(leader, &own, &[]));
        cluster.whole(leader, 3);
    });
    load.during("a server's disk is lost and it is replaced", || {
        drop(members[2].take());
        std::fs::remove_dir_all(cluster.data(2)).unwrap();
        let flags = cluster.join_flags(0);
        members[2] = Some(cluster.start(2, &own, &flags));
        cluster.whole(0, 3);
    });
    one_namespace_comes_back(&cluster, &mut load);
    a_bad_upgrade_goes_back(&cluster, &mut load, &mut members, dir.path());
    let copy = saved(&cluster);
    load.during("all are stopped, their state is lost, and a copy is restored on one; the others join it", || {
        restored(&cluster, &mut members, &copy, &own);
    });
    load.during("two of three are lost, and the third goes on alone", || {
        drop((members[1].take(), members[2].take()));
        members[0].take().unwrap().stop();
        ok(&["reset", "--recover-quorum", "--data-dir", &cluster.data(0).to_string_lossy()]);
        members[0] = Some(cluster.start(0, &own, &[]));
        cluster.whole(0, 1);
    });
    let acknowledged = load.end();
    assert!(stored(&cluster) >= acknowledged, "a write that was acknowledged is lost");
}
