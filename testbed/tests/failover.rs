//! Three servers and two agents with containers: servers die, come back and lose their disks, a node dies; users go on.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::{Cluster, Kubectl, PATIENCE};
use keelson_testbed::{Api, Host, Role, ServerOptions, Start, image, until};
use serde_json::{Value, json};

/// Pods that leave a dead node soon.
const MANIFEST: &str = r"
apiVersion: apps/v1
kind: Deployment
metadata: {name: hello}
spec:
  replicas: 4
  selector: {matchLabels: {app: hello}}
  template:
    metadata: {labels: {app: hello}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations:
      - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 2}
      - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 2}
      containers: [{name: web, image: IMAGE}]
";

#[test]
fn users_go_on_whatever_dies() {
    let start = Start { server_flags: vec!["--node-monitor-grace-period=6s".into()], ..Start::default() };
    let Some(cluster) = Cluster::start("fover", 3, 2, &start) else { return };
    let hosts = cluster.testbed.hosts().unwrap();
    let kubectls: Vec<Kubectl> = (1..=3).map(|server| cluster.kubectl(server)).collect();
    kubectls[0].wait("get serviceaccount default", |_| true);
    let applied = kubectls[1].feed("apply -f -", &MANIFEST.replace("IMAGE", image::WEB[0]));
    assert_eq!(applied.code, Some(0), "{applied:?}");
    kubectls[2].ok("rollout status deployment/hello --timeout=60s");

    let leader = a_leader_dies(&hosts, &kubectls);
    it_comes_back(&hosts, &kubectls, leader, &start);
    a_disk_is_lost(&hosts, &kubectls, (leader + 1) % 3, &start);
    a_node_dies(&hosts, &kubectls);
    all_die(&hosts, &kubectls, &start);
}

/// Who leads, as the members tell.
fn leader(host: &Host<'_>) -> Option<usize> {
    let listed = host.keelson(&["member", "list", "--output", "json"]).ok()?;
    let members: Value = serde_json::from_str(&listed).ok()?;
    let name = members.as_array()?.iter().find(|member| member["role"] == "leader")?["name"].as_str()?.to_owned();
    name.strip_prefix("server-")?.parse::<usize>().ok()?.checked_sub(1)
}

fn until_whole(host: &Host<'_>) {
    until("three members vote and answer", PATIENCE, || {
        let listed: Value = serde_json::from_str(&host.keelson(&["member", "list", "--output", "json"])?)?;
        let members = listed.as_array().cloned().unwrap_or_default();
        let fine = |member: &Value| member["role"] != "learner" && member.get("error").is_none();
        anyhow::ensure!(members.len() == 3 && members.iter().all(fine), "{listed}");
        Ok(Some(()))
    })
    .unwrap();
}

/// A client that writes without pause at one server, and knows which writes were acknowledged.
struct Writer {
    stop: Arc<AtomicBool>,
    running: JoinHandle<Vec<(String, Instant)>>,
}

impl Writer {
    fn start(api: Api, prefix: String) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let running = std::thread::spawn(move || {
            let mut acknowledged = Vec::new();
            for n in 0.. {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                let name = format!("{prefix}-{n}");
                let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
                if api.call("POST", "/api/v1/namespaces/default/configmaps", Some(&object)).is_ok() {
                    acknowledged.push((name, Instant::now()));
                }
            }
            acknowledged
        });
        Self { stop, running }
    }

    fn end(self) -> Vec<(String, Instant)> {
        self.stop.store(true, Ordering::SeqCst);
        self.running.join().unwrap()
    }
}

fn a_leader_dies(hosts: &[Host<'_>], kubectls: &[Kubectl]) -> usize {
    let leader = until("somebody leads", PATIENCE, || Ok(leader(&hosts[0]))).unwrap();
    let others: Vec<usize> = (0..3).filter(|server| *server != leader).collect();
    let writers: Vec<Writer> =
        (0..3).map(|server| Writer::start(hosts[server].api().unwrap(), format!("by-{server}"))).collect();
    std::thread::sleep(Duration::from_secs(2));
    hosts[leader].kill("keelson").unwrap();
    let died = Instant::now();
    // Both others go on: reads, writes, logs and a shell.
    for server in &others {
        let kubectl = &kubectls[*server];
        kubectl.wait(&format!("create configmap after-{server}"), |out| out.contains("created"));
        assert!(kubectl.ok("get nodes").contains("agent-2"));
        assert!(kubectl.ok("logs deployment/hello").contains("serving version 1"));
        assert!(kubectl.ok("exec deployment/hello -- hostname").starts_with("hello-"));
    }
    let acknowledged: Vec<(String, Instant)> = writers.into_iter().flat_map(Writer::end).collect();
    let resumed = acknowledged.iter().map(|(_, at)| *at).filter(|at| *at > died).min();
    eprintln!("writes resumed after {:?}", resumed.map(|at| at - died));
    assert!(acknowledged.len() > 10);
    for server in others {
        let there = kubectls[server].ok("get configmaps -o name");
        let there: std::collections::HashSet<&str> = there.lines().collect();
        for (name, _) in &acknowledged {
            assert!(there.contains(format!("configmap/{name}").as_str()), "{name} is lost");
        }
    }
    leader
}

fn restart(host: &Host<'_>, start: &Start) {
    host.start_server(&ServerOptions { join: None, flags: start.server_flags.clone() }).unwrap();
    host.wait_ready().unwrap();
}

fn it_comes_back(hosts: &[Host<'_>], kubectls: &[Kubectl], server: usize, start: &Start) {
    restart(&hosts[server], start);
    kubectls[server].wait(&format!("get configmap after-{}", (server + 1) % 3), |_| true);
    until_whole(&hosts[server]);
}

fn a_disk_is_lost(hosts: &[Host<'_>], kubectls: &[Kubectl], server: usize, start: &Start) {
    hosts[server].kill("keelson").unwrap();
    hosts[server].wipe().unwrap();
    let join = hosts[(server + 1) % 3].join_command(Role::Server).unwrap();
    hosts[server].start_server(&ServerOptions { join: Some(join), flags: start.server_flags.clone() }).unwrap();
    hosts[server].wait_ready().unwrap();
    until_whole(&hosts[server]);
    let names = |kubectl: &Kubectl| kubectl.ok("get configmaps -o name");
    assert_eq!(names(&kubectls[server]), names(&kubectls[(server + 1) % 3]));
}

fn a_node_dies(hosts: &[Host<'_>], kubectls: &[Kubectl]) {
    let pods = "get pods -l app=hello --field-selector status.phase=Running -o 'jsonpath={.items[*].spec.nodeName}'";
    kubectls[0].wait(pods, |out| out.contains("agent-1") && out.contains("agent-2"));
    hosts[4].power_off().unwrap();
    kubectls[0].wait("get node agent-2", |out| out.contains("NotReady"));
    let node = kubectls[0].wait("get node agent-2 -o json", |out| out.contains("node.kubernetes.io/unreachable"));
    let node: Value = serde_json::from_str(&node).unwrap();
    let conditions = node["status"]["conditions"].as_array().unwrap();
    let ready = conditions.iter().find(|condition| condition["type"] == "Ready").unwrap();
    assert_eq!((ready["status"].as_str(), ready["reason"].as_str()), (Some("Unknown"), Some("NodeStatusUnknown")));
    kubectls[1].wait("get pods -l app=hello -o wide", |out| {
        out.lines().filter(|line| line.contains("1/1") && line.contains("agent-1")).count() == 4
    });
    kubectls[2].wait("get deployment hello -o 'jsonpath={.status.availableReplicas}'", |out| out == "4");
}

fn all_die(hosts: &[Host<'_>], kubectls: &[Kubectl], start: &Start) {
    let before = kubectls[0].ok("get configmaps -o name");
    for host in &hosts[..3] {
        host.kill("keelson").unwrap();
    }
    for host in &hosts[..3] {
        host.start_server(&ServerOptions { join: None, flags: start.server_flags.clone() }).unwrap();
    }
    for (host, kubectl) in hosts[..3].iter().zip(kubectls) {
        host.wait_ready().unwrap();
        assert_eq!(kubectl.ok("get configmaps -o name"), before);
        kubectl.wait("get pods -l app=hello", |out| out.contains("1/1"));
    }
}
