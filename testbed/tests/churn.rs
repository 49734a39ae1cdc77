//! Pods come and go while their agent, its container runtime or the whole machine is killed again and again: in the end
//! exactly the pods that are wanted run, each once, and nothing is left of the others. One server, one agent with
//! containers. `KEELSON_ROUNDS` says how often something is killed.

mod common;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use common::{Cluster, PATIENCE};
use keelson_testbed::{Host, Role, Start, image, until};
use serde_json::{Value, json};

/// Times that something is killed, unless the environment says how often.
const ROUNDS: u32 = 6;
/// Pods that there are at most.
const MOST: usize = 10;
const PODS: &str = "/api/v1/namespaces/default/pods";
/// How long all of them may take to be as they should be.
const SETTLED: Duration = Duration::from_secs(180);

/// Numbers that look random; the seed is printed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % limit
    }
}

fn pod(name: &str) -> Value {
    let container = json!({"name": "c", "image": image::WEB[0], "readinessProbe": {"tcpSocket": {"port": image::WEB_PORT}, "periodSeconds": 1}});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"nodeName": "agent-1", "terminationGracePeriodSeconds": 1, "containers": [container],
            "volumes": [{"name": "m", "emptyDir": {"medium": "Memory"}}]}})
}

/// Kills one thing or several; returns what.
fn kill(agent: &Host<'_>, numbers: &mut Numbers) -> &'static str {
    match numbers.below(4) {
        0 => {
            agent.kill("keelson").unwrap();
            "agent"
        }
        1 => {
            agent.kill("containerd").unwrap();
            "containerd"
        }
        2 => {
            agent.kill("keelson").unwrap();
            agent.kill("containerd").unwrap();
            "agent and containerd"
        }
        _ => {
            agent.power_off().unwrap();
            "power"
        }
    }
}

#[test]
fn whatever_is_killed_the_wanted_pods_run_once() {
    let start = Start::default();
    let Some(cluster) = Cluster::start("churn", 1, 1, &start) else { return };
    cluster.kubectl(1).wait("get serviceaccount default", |_| true);
    let taken = taken(&cluster);
    let rounds = std::env::var("KEELSON_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(ROUNDS);
    let seed = u64::from(std::process::id());
    eprintln!("seed {seed}, {rounds} rounds");
    let (mut numbers, mut names) = (Numbers(seed), BTreeSet::new());
    for round in 0..rounds {
        let hosts = cluster.testbed.hosts().unwrap();
        let agent = hosts.iter().find(|host| host.role() == Role::Agent).unwrap();
        let api = hosts[0].api().unwrap();
        for more in 0..2 {
            let name = format!("p-{round}-{more}");
            if names.len() < MOST {
                api.call("POST", PODS, Some(&pod(&name))).unwrap();
                names.insert(name);
            }
        }
        if names.len() > MOST / 2 {
            let name = names.iter().nth(numbers.below(names.len())).unwrap().clone();
            api.call("DELETE", &format!("{PODS}/{name}"), None).unwrap();
            names.remove(&name);
        }
        // At another point of the work each time.
        std::thread::sleep(Duration::from_millis(numbers.below(2000) as u64));
        let began = Instant::now();
        let killed = kill(agent, &mut numbers);
        cluster.testbed.bring_up(&start, &|_| {}).unwrap();
        eprintln!("{round}: {killed}, back after {:?}, {} pods", began.elapsed(), names.len());
    }
    let hosts = cluster.testbed.hosts().unwrap();
    let agent = hosts.iter().find(|host| host.role() == Role::Agent).unwrap();
    let api = hosts[0].api().unwrap();
    until("exactly the wanted pods run", SETTLED, || {
        let list = api.get(PODS)?;
        let ready = |pod: &Value| {
            let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
            conditions.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
        };
        let known: BTreeSet<String> =
            list["items"].as_array().into_iter().flatten().map(|p| p["metadata"]["name"].to_string()).collect();
        let wanted: BTreeSet<String> = names.iter().map(|name| format!("{name:?}")).collect();
        anyhow::ensure!(known == wanted, "{known:?}, not {wanted:?}");
        let late = list["items"].as_array().into_iter().flatten().find(|pod| !ready(pod));
        anyhow::ensure!(late.is_none(), "{:#}", late.unwrap()["status"]);
        has_exactly(agent, names.len(), &taken).map(Some)
    })
    .unwrap();
    for name in &names {
        api.call("DELETE", &format!("{PODS}/{name}"), None).unwrap();
    }
    until("nothing is left", PATIENCE, || {
        anyhow::ensure!(api.get(PODS)?["items"].as_array().is_some_and(Vec::is_empty));
        has_exactly(agent, 0, &taken).map(Some)
    })
    .unwrap();
}

/// Addresses that are given to sandboxes.
fn addresses(agent: &Host<'_>) -> anyhow::Result<BTreeSet<String>> {
    let found = agent.run("sh", &["-c", "find /var/lib/cni/networks/keelson -name '10.*' 2>/dev/null; true"])?;
    Ok(found.lines().map(str::to_owned).collect())
}

/// Those that are given before there is a pod: a host sees what is in the machine's own directories.
fn taken(cluster: &Cluster) -> BTreeSet<String> {
    let hosts = cluster.testbed.hosts().unwrap();
    addresses(hosts.iter().find(|host| host.role() == Role::Agent).unwrap()).unwrap()
}

/// Whether the node has exactly so many pods, each with a sandbox and a container that run, one link, one address, one
/// directory and one mount. What ended may still be known to the runtime while its pod is there.
fn has_exactly(agent: &Host<'_>, pods: usize, taken: &BTreeSet<String>) -> anyhow::Result<()> {
    let ctr = |arguments: &[&str]| agent.run("ctr", &[&["-n", "k8s.io"], arguments].concat());
    let running = ctr(&["tasks", "ls"])?.lines().filter(|line| line.contains("RUNNING")).count();
    let records = ctr(&["containers", "ls", "-q"])?.lines().count();
    anyhow::ensure!(pods > 0 || records == 0, "{records} records of containers are left");
    let links = agent.run("ip", &["-o", "link", "show", "type", "veth"])?.lines().count();
    // The host's own link is one of them.
    let links = links.saturating_sub(1);
    let addresses = addresses(agent)?.difference(taken).count();
    let own = "find /var/lib/keelson -path '*/pods/*' -prune -name '*-*' -print; true";
    let directories = agent.run("sh", &["-c", own])?.lines().count();
    let mounts = agent.run("sh", &["-c", "grep -c 'empty-dir/m ' /proc/mounts; true"])?.trim().to_owned();
    let found = (running, links, addresses, directories, mounts);
    let wanted = (2 * pods, pods, pods, pods, pods.to_string());
    anyhow::ensure!(found == wanted, "tasks, links, addresses, directories, mounts: {found:?}, not {wanted:?}");
    Ok(())
}
