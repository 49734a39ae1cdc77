//! `bench cluster`: whole clusters on hosts of their own: from exec to a running container, what a dead leader costs,
//! memory of servers. Needs root and containerd.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use keelson_testbed::{Api, Host, Plan, Role, ServerOptions, Start, Testbed, image, until};
use serde_json::{Value, json};

use crate::Options;
use crate::load::percentile;
use crate::report::Report;

/// Memory is read this long after the start.
const IDLE: Duration = Duration::from_secs(60);
/// What has not happened by then never will.
const PATIENCE: Duration = Duration::from_secs(60);
/// Leaders that are killed.
const KILLS: usize = 10;
/// How long clients write before and after a kill.
const WRITES: Duration = Duration::from_millis(1500);

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const PODS: &str = "/api/v1/namespaces/default/pods";
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Runs it where blocking does not disturb.
pub async fn run(options: Options) -> Result<Report> {
    tokio::task::spawn_blocking(move || measure(&options)).await?
}

/// A cluster that goes away with this value.
struct Cluster {
    testbed: Testbed,
    _dir: tempfile::TempDir,
}

impl Cluster {
    fn new(options: &Options, servers: u8, agents: u8) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("hosts are network namespaces, which need root");
        }
        let dir = tempfile::Builder::new().prefix("keelson-bench-").tempdir()?;
        let plan = Plan { name: format!("kb{servers}"), servers, agents };
        let testbed = Testbed::create(&dir.path().join("bed"), plan)?;
        let cluster = Self { testbed, _dir: dir };
        cluster.testbed.install(&options.keelson)?;
        Ok(cluster)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = Testbed::remove(self.testbed.dir()) {
            eprintln!("the cluster is not removed: {error:#}");
        }
    }
}

fn measure(options: &Options) -> Result<Report> {
    let mut report = Report::default();
    let (mut ready, mut running) = (Vec::new(), Vec::new());
    for _ in 0..options.repeat.max(1) {
        let (to_ready, to_running) = first_container(options)?;
        ready.push(to_ready);
        running.push(to_running);
    }
    add(&mut report, "exec of a server to /readyz, on a host of its own", ready);
    add(&mut report, "exec of that server to a running container on an agent that joins it", running);
    failover(options, &mut report)?;
    Ok(report)
}

fn add(report: &mut Report, what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let figure = |percent| format!("{:.3} s", percentile(&times, percent).as_secs_f64());
    report.add(what, vec![("median", figure(50.0)), ("least", figure(0.0)), ("most", figure(100.0))]);
}

/// One server and one agent, whose containerd runs already, as on a machine that has booted.
fn first_container(options: &Options) -> Result<(Duration, Duration)> {
    let cluster = Cluster::new(options, 1, 1)?;
    let hosts = cluster.testbed.hosts()?;
    let [server, agent] = hosts.as_slice() else { bail!("not two hosts") };
    agent.start_containerd()?;
    let started = Instant::now();
    server.start_server(&ServerOptions::default())?;
    server.wait_ready()?;
    let ready = started.elapsed();
    let join = server.join_command(Role::Agent)?;
    agent.start_agent(&join, &[])?;
    let api = server.api()?;
    deploy(&api, 1)?;
    wait_available(&api, 1)?;
    Ok((ready, started.elapsed()))
}

fn deploy(api: &Api, replicas: u64) -> Result<()> {
    until("the namespace has its account", PATIENCE, || {
        api.get("/api/v1/namespaces/default/serviceaccounts/default").map(Some)
    })?;
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "first"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "first"}},
            "template": {"metadata": {"labels": {"app": "first"}},
                "spec": {"containers": [{"name": "c", "image": image::WEB[0]}]}}}});
    api.create(DEPLOYMENTS, &deployment)
}

fn wait_available(api: &Api, wanted: usize) -> Result<()> {
    until("containers run", PATIENCE, || {
        let pods = api.get(PODS)?;
        let ready = |pod: &&Value| pod["status"]["containerStatuses"][0]["ready"] == true;
        let ready = pods["items"].as_array().into_iter().flatten().filter(ready).count();
        Ok((ready >= wanted).then_some(()))
    })
}

fn failover(options: &Options, report: &mut Report) -> Result<()> {
    let cluster = Cluster::new(options, 3, 2)?;
    let started = Instant::now();
    cluster.testbed.bring_up(&Start::default(), &|_| {})?;
    add(report, "three servers and two agents: first exec to all ready", vec![started.elapsed()]);
    let hosts = cluster.testbed.hosts()?;
    let api = hosts[0].api()?;
    let deployed = Instant::now();
    deploy(&api, 4)?;
    wait_available(&api, 4)?;
    add(report, "a Deployment of four: created to all ready on two nodes", vec![deployed.elapsed()]);
    let idle = if options.quick { IDLE / 10 } else { IDLE };
    std::thread::sleep(idle);
    for host in &hosts {
        let pid = host.processes("keelson")?.into_iter().next().context("no process")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: u64 = rss.trim().trim_end_matches(" kB").parse()?;
        report.add(
            format!("{} idle for {} s", host.name(), idle.as_secs()),
            vec![("RSS", format!("{} MiB", kib / 1024))],
        );
    }
    let mut gaps = Vec::new();
    for kill in 0..options.amount(KILLS) {
        gaps.push(kill_leader(&hosts, kill)?);
    }
    add(report, "kill -9 of the leader to the next acknowledged write", gaps);
    Ok(())
}

/// Kills the leader under load; returns how long no write was acknowledged after it.
fn kill_leader(hosts: &[Host<'_>], kill: usize) -> Result<Duration> {
    let leader = until("somebody leads", PATIENCE, || leader(&hosts[0]))?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for (n, host) in hosts[..3].iter().enumerate().filter(|(n, _)| *n != leader) {
        writers.push(writer(host.api()?, format!("w-{kill}-{n}"), stop.clone()));
    }
    std::thread::sleep(WRITES);
    let dies = Instant::now();
    hosts[leader].kill("keelson")?;
    std::thread::sleep(WRITES * 2);
    stop.store(true, Ordering::SeqCst);
    let mut acknowledged = Vec::new();
    for writer in writers {
        acknowledged.extend(writer.join().map_err(|_| anyhow::anyhow!("a writer failed"))?);
    }
    hosts[leader].start_server(&ServerOptions::default())?;
    hosts[leader].wait_ready()?;
    // One that was on its way may still be answered by the dead.
    let next = acknowledged.into_iter().filter(|(began, _)| *began > dies).map(|(_, ended)| ended).min();
    Ok(next.context("writes did not resume")?.duration_since(dies))
}

/// Writes without pause; returns when each acknowledged write began and ended.
fn writer(api: Api, prefix: String, stop: Arc<AtomicBool>) -> JoinHandle<Vec<(Instant, Instant)>> {
    std::thread::spawn(move || {
        let mut acknowledged = Vec::new();
        for n in 0.. {
            if stop.load(Ordering::SeqCst) {
                break;
            }
            let object =
                json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("{prefix}-{n}")}});
            let began = Instant::now();
            if api.call("POST", CONFIG_MAPS, Some(&object)).is_ok() {
                acknowledged.push((began, Instant::now()));
            }
        }
        acknowledged
    })
}

fn leader(host: &Host<'_>) -> Result<Option<usize>> {
    let members: Value = serde_json::from_str(&host.keelson(&["member", "list", "--output", "json"])?)?;
    let name = members.as_array().into_iter().flatten().find(|member| member["role"] == "leader");
    let index = name.and_then(|member| member["name"].as_str()?.strip_prefix("server-")?.parse::<usize>().ok());
    Ok(index.and_then(|index| index.checked_sub(1)))
}
