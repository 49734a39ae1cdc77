//! A run in the real world: members on hosts of their own, clients, faults from the seed, then the verdict.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use keelson_proto::etcd::etcdserverpb as pb;
use keelson_testbed::{Host, Plan, Role, Testbed};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::context::{Process, Shared};
use crate::etcd::{self, Client};
use crate::nemesis::{self, Ask, Victims};
use crate::report::{FaultWindow, Led, Report, WorkloadReport};
use crate::system::{self, Kind, Program, System};
use crate::workloads::{self, Workload};

/// How long members may take to serve, at first and after all faults.
const SERVE: Duration = Duration::from_secs(60);
/// How long a member may take to say who leads.
const STATUS: Duration = Duration::from_millis(500);
/// How often leaders are noted.
const LEADERS: Duration = Duration::from_millis(300);
/// Quiet between faults, in milliseconds.
const QUIET: (u64, u64) = (1000, 5000);
/// How long clients may take to end.
const CLIENTS_END: Duration = Duration::from_secs(60);
/// How long a change of the membership is tried.
const MEMBERSHIP: Duration = Duration::from_secs(30);
/// Revisions that a compaction keeps.
const KEPT: i64 = 300;

/// Flags of `keelson chaos` and `cargo xtask chaos`.
#[derive(Args, Clone, Debug)]
pub struct ChaosArgs {
    /// Where members run: real (hosts on this machine) or sim (one process, from the seed alone)
    #[arg(long, default_value = "real")]
    pub world: crate::simulated::World,
    /// Simulated world: seeds, as FROM..TO, each in a process of its own
    #[arg(long, conflicts_with = "seed")]
    pub seeds: Option<String>,
    /// How long faults go on, in hours instead of minutes
    #[arg(long)]
    pub hours: Option<f64>,
    /// Decides which faults happen when, and what clients do (default: a random one, which is printed)
    #[arg(long)]
    pub seed: Option<u64>,
    /// How long faults go on
    #[arg(long, default_value_t = 2.0)]
    pub minutes: f64,
    /// How many times longer than usual clients pause: long runs need no more than that
    #[arg(long, default_value_t = 1.0)]
    pub pace: f64,
    /// Hosts of agents, for --system server
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=5))]
    pub agents: u8,
    /// Agents have containerd and run pods, instead of pretending nodes
    #[arg(long, requires = "agents")]
    pub containers: bool,
    /// Another build, for upgrades and downgrades while clients go on
    #[arg(long, value_name = "BINARY")]
    pub other: Option<PathBuf>,
    /// Members
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
    pub nodes: u8,
    /// Faults, comma-separated, or all or none: `keelson chaos --list` shows them
    #[arg(long, value_delimiter = ',', default_value = "all")]
    pub nemesis: Vec<String>,
    /// What clients do, comma-separated, or all
    #[arg(long, value_delimiter = ',', default_value = "all")]
    pub workload: Vec<String>,
    /// What is tested: keelson, or the machine's etcd
    #[arg(long, default_value = "keelson")]
    pub system: String,
    /// The binary under test (default: this one)
    #[arg(long)]
    pub keelson: Option<PathBuf>,
    /// Where the report goes, as DIR/report.html and DIR/report.json (default: chaos-SEED)
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Name of the hosts: two runs at once need different ones
    #[arg(long, default_value = "chaos")]
    pub name: String,
    /// Leave the members running, for a look
    #[arg(long)]
    pub keep: bool,
    /// List systems, workloads and faults
    #[arg(long)]
    pub list: bool,
    /// Switch a built-in bug of the members on: needs a binary built with `--features bugs`
    #[arg(long)]
    pub bug: Option<String>,
    /// Let the harness look for each built-in bug in turn
    #[arg(long, conflicts_with = "bug")]
    pub self_test: bool,
}

/// The tables, for people.
pub fn list() -> String {
    let mut text = String::new();
    let mut part = |title: &str, rows: Vec<(&str, &str)>| {
        text += &format!("{title}\n");
        rows.iter().for_each(|(name, about)| text += &format!("  {name:<16} {about}\n"));
    };
    part("systems", system::TABLE.iter().map(|row| (row.name, row.about)).collect());
    part("workloads", workloads::TABLE.iter().map(|row| (row.name, row.about)).collect());
    part("faults", nemesis::TABLE.iter().map(|row| (row.name, row.about)).collect());
    text
}

/// Runs and writes the report.
pub fn run(args: &ChaosArgs) -> Result<Report> {
    let args = &ChaosArgs { minutes: args.hours.map_or(args.minutes, |hours| hours * 60.0), ..args.clone() };
    if !nix::unistd::geteuid().is_root() {
        bail!("members run in network namespaces, which need root: run it with sudo");
    }
    let seed = args.seed.unwrap_or_else(rand::random);
    let system = system::find(&args.system)?;
    let rows = chosen(&args.workload, system.name == "keelson")?;
    let offers = nemesis::Offers {
        ours: system.ours,
        other: args.other.is_some(),
        servers: system.kind == Kind::Server,
        agents: args.agents,
        containers: args.containers,
    };
    let faults = nemesis::find(&args.nemesis, &offers)?;
    let forgets = faults.iter().any(|row| row.name == "compact") || rows.iter().any(|row| row.forgets);
    if forgets && rows.iter().any(|row| row.name == "watch") {
        bail!("workload watch needs all of history: leave out what compacts, or name other workloads");
    }
    let binary = match &args.keelson {
        Some(given) => given.clone(),
        None => std::env::current_exe().context("cannot find this program")?,
    };
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from(format!("chaos-{seed}")));
    println!("==> seed {seed}: {} members of {}", args.nodes, system.name);
    let dir = PathBuf::from(format!("/var/lib/{}-chaos", args.name));
    Testbed::remove(&dir)?;
    let plan = Plan { name: args.name.clone(), servers: args.nodes, agents: args.agents };
    let testbed = Testbed::create(&dir, plan)?;
    let result = in_testbed(args, seed, &testbed, system, &binary, &rows, &faults);
    if args.keep {
        println!("==> the members are left running: `ip netns exec {}-server-1 sh` is on one of them", args.name);
    } else {
        if result.as_ref().map_or(true, |report| !report.is_clean()) {
            save_logs(&testbed, &out)?;
        }
        Testbed::remove(&dir)?;
    }
    let report = result?;
    report.write(&out)?;
    println!("{}", report.summary());
    println!("==> {}", out.join("report.html").display());
    Ok(report)
}

/// The rows of a list of names; `all` stands for those that go together and that the system promises.
fn chosen(names: &[String], ours: bool) -> Result<Vec<&'static workloads::Row>> {
    if names.iter().any(|name| name == "all") {
        return Ok(workloads::TABLE.iter().filter(|row| !row.forgets && (ours || !row.beyond)).collect());
    }
    let known: Vec<&str> = workloads::TABLE.iter().map(|row| row.name).collect();
    let find = |name: &String| {
        workloads::find(name).with_context(|| format!("there is no workload {name}: there are {}", known.join(", ")))
    };
    names.iter().map(find).collect()
}

/// Members' logs, beside the report of a run that went wrong.
fn save_logs(testbed: &Testbed, out: &Path) -> Result<()> {
    std::fs::create_dir_all(out)?;
    for host in testbed.hosts()? {
        let log = host.log("member");
        if log.exists() {
            std::fs::copy(&log, out.join(format!("{}.log", host.name())))?;
        }
    }
    Ok(())
}

fn in_testbed(
    args: &ChaosArgs,
    seed: u64,
    testbed: &Testbed,
    system: &'static System,
    binary: &Path,
    rows: &[&'static workloads::Row],
    faults: &[&'static nemesis::Row],
) -> Result<Report> {
    testbed.install(binary)?;
    let program = system.program(&testbed.binary().to_string_lossy())?;
    let (hosts, agents): (Vec<Host<'_>>, Vec<Host<'_>>) =
        testbed.hosts()?.into_iter().partition(|host| host.role() == Role::Server);
    if faults.iter().any(|row| row.needs.disks()) {
        hosts.iter().try_for_each(nemesis::small_disk)?;
    }
    let other = args.other.as_deref().map(|other| install_other(testbed, other)).transpose()?;
    let program = Program { path: program, other, bug: args.bug.clone(), containers: args.containers };
    hosts.iter().try_for_each(|host| system.start(&program, host, &hosts))?;
    let runtime = Runtime::new()?;
    let urls: Vec<String> = hosts.iter().map(system::client_url).collect();
    let clients = runtime.block_on(async { urls.iter().map(|url| Client::new(url)).collect::<Result<Vec<_>>>() })?;
    wait_serving(&runtime, &clients).with_context(|| hosts[0].log_end("member"))?;
    hosts.iter().try_for_each(system::formed)?;
    let peers: Vec<String> = hosts.iter().map(system::peer_url).collect();

    let connect = move || urls.iter().map(|url| Client::new(url)).collect();
    let mut shared = Shared::new(Box::new(connect), seed);
    shared.pace = args.pace;
    shared.ours = system.ours;
    let shared = Arc::new(shared);
    let workloads: Vec<Arc<dyn Workload>> = rows.iter().map(|row| (row.make)()).collect();
    let running = start_clients(&runtime, &shared, rows, &workloads)?;
    let led = Arc::new(Mutex::new(Vec::new()));
    let follower = runtime.spawn(follow_leaders(clients.clone(), shared.clone(), led.clone()));
    let victims = Victims {
        system,
        program: &program,
        hosts: &hosts,
        agents: &agents,
        whole: &|| runtime.block_on(whole(&clients, hosts.len())),
        leader: &|| runtime.block_on(leader(&clients)),
        ask: &|ask| runtime.block_on(patiently(&clients, &peers, ask)),
    };
    let windows = make_trouble(args, &shared, &victims, faults)?;
    println!("==> faults have stopped");
    nemesis::end_all(&victims)?;
    let recovered = wait_serving(&runtime, &clients);
    shared.stop.cancel();
    runtime.block_on(end_clients(running))?;
    follower.abort();
    let mut report = Report::new(args, seed, &shared, windows, led.lock().clone());
    if let Err(error) = recovered {
        report.broken.push(format!("not serving after all faults have stopped: {error:#}"));
    }
    judge(&runtime, &shared, rows, &workloads, &mut report)?;
    Ok(report)
}

/// Another build, beside the one that is tested and of the same name.
fn install_other(testbed: &Testbed, other: &Path) -> Result<String> {
    let dir = testbed.dir().join("other");
    std::fs::create_dir_all(&dir)?;
    let place = dir.join("keelson");
    std::fs::copy(other, &place).with_context(|| format!("copy {}", other.display()))?;
    Ok(place.display().to_string())
}

fn start_clients(
    runtime: &Runtime,
    shared: &Arc<Shared>,
    rows: &[&'static workloads::Row],
    workloads: &[Arc<dyn Workload>],
) -> Result<Vec<JoinHandle<()>>> {
    let mut running = Vec::new();
    let mut id = 0;
    for (row, workload) in rows.iter().zip(workloads) {
        runtime.block_on(async { workload.prepare(&mut Process::new(shared.clone(), 0)?).await })?;
        for _ in 0..row.clients {
            let mut process = runtime.block_on(async { Process::new(shared.clone(), id) })?;
            let workload = workload.clone();
            running.push(runtime.spawn(async move { workload.client(&mut process).await }));
            id += 1;
        }
        println!("==> {} clients: {}", row.clients, row.about);
    }
    Ok(running)
}

async fn end_clients(running: Vec<JoinHandle<()>>) -> Result<()> {
    for client in running {
        tokio::time::timeout(CLIENTS_END, client).await.context("a client does not end")?.context("a client failed")?;
    }
    Ok(())
}

/// Faults one after another until the time is over.
fn make_trouble(
    args: &ChaosArgs,
    shared: &Shared,
    victims: &Victims<'_>,
    faults: &[&'static nemesis::Row],
) -> Result<Vec<FaultWindow>> {
    let mut rng = StdRng::seed_from_u64(shared.seed);
    let end = (args.minutes * 60e9) as u64;
    let mut windows = Vec::new();
    while shared.now() < end {
        let quiet = Duration::from_millis(rng.random_range(QUIET.0..QUIET.1));
        std::thread::sleep(quiet.min(Duration::from_nanos(end.saturating_sub(shared.now()))));
        let Some(row) = nemesis::choose(faults, &mut rng).filter(|_| shared.now() < end) else { continue };
        let start = shared.now();
        let (what, lasts) = row.begin(victims, &mut rng).with_context(|| format!("nemesis {}", row.name))?;
        println!("{:>7.1} s  {}: {what}", start as f64 / 1e9, row.name);
        std::thread::sleep(lasts);
        row.end(victims)?;
        windows.push(FaultWindow { name: row.name.into(), what, start, end: shared.now(), gap: 0 });
    }
    Ok(windows)
}

/// What was noted is completed by reads at the end, and judged.
fn judge(
    runtime: &Runtime,
    shared: &Arc<Shared>,
    rows: &[&'static workloads::Row],
    workloads: &[Arc<dyn Workload>],
    report: &mut Report,
) -> Result<()> {
    for (row, workload) in rows.iter().zip(workloads) {
        println!("==> checking {}", row.name);
        let mut process = runtime.block_on(async { Process::new(shared.clone(), u32::MAX) })?;
        if let Err(error) = runtime.block_on(workload.finish(&mut process)) {
            report.broken.push(format!("{}: {error:#}", row.name));
        }
        report.workloads.push(WorkloadReport {
            name: row.name.into(),
            about: row.about.into(),
            checked: workload.check(),
        });
    }
    Ok(())
}

/// Waits until every member takes a write.
fn wait_serving(runtime: &Runtime, clients: &[Client]) -> Result<()> {
    keelson_testbed::until("every member takes a write", SERVE, || {
        for (i, client) in clients.iter().enumerate() {
            let put = runtime.block_on(client.put("serving", i.to_string(), 0));
            put.map_err(|failure| anyhow::anyhow!("member {}: {failure:?}", i + 1))?;
        }
        Ok(Some(()))
    })
}

async fn statuses(clients: &[Client]) -> Vec<Option<pb::StatusResponse>> {
    let mut asked = Vec::new();
    for client in clients {
        let client = client.clone();
        asked.push(tokio::spawn(async move { tokio::time::timeout(STATUS, client.status()).await.ok()?.ok() }));
    }
    let mut answers = Vec::new();
    for answer in asked {
        answers.push(answer.await.ok().flatten());
    }
    answers
}

/// The member that says it leads, in the highest term in which one says so.
async fn leader(clients: &[Client]) -> Option<usize> {
    let answers = statuses(clients).await;
    let leads = |status: &&pb::StatusResponse| {
        status.leader != 0 && status.header.as_ref().is_some_and(|header| header.member_id == status.leader)
    };
    let leaders = answers.iter().enumerate().filter_map(|(i, a)| a.as_ref().filter(leads).map(|a| (a.raft_term, i)));
    leaders.max().map(|(_, member)| member)
}

/// The ids of all members, if all answer and vote.
async fn whole(clients: &[Client], count: usize) -> Option<Vec<u64>> {
    let id = |status: &Option<pb::StatusResponse>| {
        let status = status.as_ref().filter(|status| status.leader != 0 && !status.is_learner)?;
        Some(status.header.as_ref()?.member_id)
    };
    let ids = statuses(clients).await.iter().map(id).collect::<Option<Vec<u64>>>()?;
    let request = pb::MemberListRequest::default();
    let listed = etcd::limited(clients[0].members().member_list(request)).await.ok()?;
    let votes = |member: &pb::Member| !member.is_learner && ids.contains(&member.id);
    (listed.members.len() == count && listed.members.iter().all(votes)).then_some(ids)
}

async fn follow_leaders(clients: Vec<Client>, shared: Arc<Shared>, led: Arc<Mutex<Vec<Led>>>) {
    let mut last = None;
    loop {
        let now = leader(&clients).await;
        if now != last {
            led.lock().push(Led { at: shared.now(), member: now });
            last = now;
        }
        tokio::time::sleep(LEADERS).await;
    }
}

/// Changes of the membership wait for a leader and for the change before; other requests need not succeed.
async fn patiently(clients: &[Client], peers: &[String], ask: Ask) -> Result<()> {
    let deadline = tokio::time::Instant::now() + MEMBERSHIP;
    loop {
        // No leader is needed for what clients do.
        if let Ask::Flood(lasts) = ask {
            nemesis::flood(clients, lasts).await;
            return Ok(());
        }
        match obey(clients, peers, ask).await {
            Err(_) if matches!(ask, Ask::Remove(_) | Ask::Add(_)) && tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(LEADERS).await;
            }
            result => return result,
        }
    }
}

async fn obey(clients: &[Client], peers: &[String], ask: Ask) -> Result<()> {
    let at = leader(clients).await.context("nobody leads")?;
    let client = &clients[at];
    let failed = |failure| anyhow::anyhow!("{failure:?}");
    match ask {
        Ask::Compact => {
            let answer = client.range(etcd::read("serving")).await.map_err(failed)?;
            client.compact((etcd::revision(&answer.header) - KEPT).max(1)).await.map_err(failed)?;
        }
        Ask::Remove(member) => {
            let listed = etcd::limited(client.members().member_list(pb::MemberListRequest::default())).await;
            let listed = listed.map_err(failed)?.members;
            // Not there any more: an earlier attempt succeeded without an answer.
            if let Some(found) = listed.iter().find(|found| found.peer_ur_ls.contains(&peers[member])) {
                let request = pb::MemberRemoveRequest { id: found.id };
                etcd::limited(client.members().member_remove(request)).await.map_err(failed)?;
            }
        }
        Ask::Add(member) => {
            let listed = etcd::limited(client.members().member_list(pb::MemberListRequest::default())).await;
            if !listed.map_err(failed)?.members.iter().any(|found| found.peer_ur_ls.contains(&peers[member])) {
                let request = pb::MemberAddRequest { peer_ur_ls: vec![peers[member].clone()], is_learner: false };
                etcd::limited(client.members().member_add(request)).await.map_err(failed)?;
            }
        }
        Ask::Flood(_) => {}
        Ask::MoveLeader => {
            let heads = statuses(clients).await;
            let ids = heads.iter().enumerate().filter(|(i, _)| *i != at);
            let target = ids.filter_map(|(_, s)| Some(s.as_ref()?.header.as_ref()?.member_id)).next();
            let request = pb::MoveLeaderRequest { target_id: target.context("nobody else is there")? };
            etcd::limited(client.maintenance().move_leader(request)).await.map_err(failed)?;
        }
    }
    Ok(())
}
