//! A run in the real world: members on hosts of their own, clients, faults from the seed, then the verdict.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use keelson_testbed::{Host, Plan, Role, Testbed};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::context::{Process, Shared};
use crate::etcd::Client;
use crate::nemesis::{self, Victims};
use crate::reach::{Reach, Stores};
use crate::report::{FaultWindow, Led, Report, WorkloadReport};
use crate::system::{self, Kind, Program, System};
use crate::workloads::{self, Workload};

/// How long members may take to serve, at first and after all faults.
const SERVE: Duration = Duration::from_secs(120);
/// Hosts of agents if nobody says otherwise.
const AGENTS: u8 = 2;
/// How often leaders are noted.
const LEADERS: Duration = Duration::from_millis(300);
/// Quiet between faults, in milliseconds.
const QUIET: (u64, u64) = (1000, 5000);
/// How long clients may take to end.
const CLIENTS_END: Duration = Duration::from_secs(60);

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
    /// Hosts of agents, for --system server (default: 2)
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=5))]
    pub agents: Option<u8>,
    /// Agents have containerd and run pods, instead of pretending nodes
    #[arg(long)]
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
    part("workloads of servers", workloads::CLUSTER_TABLE.iter().map(|row| (row.name, row.about)).collect());
    part("workloads of stores", workloads::TABLE.iter().map(|row| (row.name, row.about)).collect());
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
    let rows = chosen(&args.workload, system)?;
    let agents = match (system.kind, args.agents) {
        (Kind::Server, given) => given.unwrap_or(AGENTS),
        (Kind::Store, None) => 0,
        (Kind::Store, Some(_)) => bail!("--agents needs --system server"),
    };
    let offers = nemesis::Offers {
        ours: system.ours,
        other: args.other.is_some(),
        servers: system.kind == Kind::Server,
        agents,
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
    let plan = Plan { name: args.name.clone(), servers: args.nodes, agents };
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

/// The rows of a list of names; `all` stands for those that go together and that the system promises. Informers come with
/// every workload that is judged by what they see.
fn chosen(names: &[String], system: &System) -> Result<Vec<&'static workloads::Row>> {
    let (stores, servers) = (workloads::TABLE, workloads::CLUSTER_TABLE);
    let table = if system.kind == Kind::Store { stores } else { servers };
    if names.iter().any(|name| name == "all") {
        return Ok(table.iter().filter(|row| !row.forgets && (system.ours || !row.beyond)).collect());
    }
    let known: Vec<&str> = table.iter().map(|row| row.name).collect();
    if let Some(unknown) = names.iter().find(|name| !known.contains(&name.as_str())) {
        bail!("{} has no workload {unknown}: there are {}", system.name, known.join(", "));
    }
    let first = |row: &workloads::Row| system.kind == Kind::Server && row.name == "informers";
    Ok(table.iter().filter(|row| first(row) || names.iter().any(|name| name == row.name)).collect())
}

/// Members' logs, beside the report of a run that went wrong.
fn save_logs(testbed: &Testbed, out: &Path) -> Result<()> {
    std::fs::create_dir_all(out)?;
    for host in testbed.hosts()? {
        let log = host.log(if host.role() == Role::Agent { "agent" } else { "member" });
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
    let runtime = Runtime::new()?;
    let bed = Bed {
        system,
        program: &program,
        hosts: &hosts,
        #[cfg(feature = "api")]
        agents: &agents,
    };
    let (reach, mut shared) = form(&runtime, &bed, seed)?;
    shared.pace = args.pace;
    shared.ours = system.ours;
    let shared = Arc::new(shared);
    let workloads: Vec<Arc<dyn Workload>> = rows.iter().map(|row| (row.make)()).collect();
    let running = start_clients(&runtime, &shared, rows, &workloads)?;
    let led = Arc::new(Mutex::new(Vec::new()));
    let follower = runtime.spawn(follow_leaders(reach.clone(), shared.clone(), led.clone()));
    let victims = Victims {
        system,
        program: &program,
        hosts: &hosts,
        agents: &agents,
        listed: &|| runtime.block_on(reach.listed()),
        whole: &|| runtime.block_on(reach.whole()),
        leader: &|| runtime.block_on(reach.leader()),
        ask: &|ask| runtime.block_on(reach.ask(ask)),
    };
    let windows = make_trouble(args, &shared, &victims, faults)?;
    println!("==> faults have stopped");
    nemesis::end_all(&victims)?;
    let recovered = wait_serving(&runtime, &*reach, hosts.len(), &|| nemesis::end_all(&victims));
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

/// What is started on which hosts.
struct Bed<'a> {
    system: &'static System,
    program: &'a Program,
    hosts: &'a [Host<'a>],
    #[cfg(feature = "api")]
    agents: &'a [Host<'a>],
}

/// Starts members and agents and waits until they serve.
fn form(runtime: &Runtime, bed: &Bed<'_>, seed: u64) -> Result<(Arc<dyn Reach>, Shared)> {
    match bed.system.kind {
        Kind::Store => form_stores(runtime, bed, seed),
        #[cfg(feature = "api")]
        Kind::Server => crate::bring_up::servers(runtime, bed.system, bed.program, bed.hosts, bed.agents, seed),
        #[cfg(not(feature = "api"))]
        Kind::Server => bail!("this build has no workloads through the Kubernetes API"),
    }
}

fn form_stores(runtime: &Runtime, bed: &Bed<'_>, seed: u64) -> Result<(Arc<dyn Reach>, Shared)> {
    bed.hosts.iter().try_for_each(|host| bed.system.start(bed.program, host, bed.hosts))?;
    let urls: Vec<String> = bed.hosts.iter().map(system::client_url).collect();
    let clients = runtime.block_on(async { urls.iter().map(|url| Client::new(url)).collect::<Result<Vec<_>>>() })?;
    let reach = Arc::new(Stores { clients, peers: bed.hosts.iter().map(system::peer_url).collect() });
    wait_serving(runtime, &*reach, bed.hosts.len(), &|| Ok(()))
        .with_context(|| bed.hosts[0].log_end(bed.system.service))?;
    bed.hosts.iter().try_for_each(system::formed)?;
    let connect = move || urls.iter().map(|url| Client::new(url)).collect();
    Ok((reach, Shared::new(Box::new(connect), seed)))
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

/// Waits until every member takes a write. One that has ended meanwhile is started again.
fn wait_serving(runtime: &Runtime, reach: &dyn Reach, count: usize, revive: &dyn Fn() -> Result<()>) -> Result<()> {
    keelson_testbed::until("every member takes a write", SERVE, || {
        for member in 0..count {
            if let Err(error) = runtime.block_on(reach.serves(member)) {
                revive()?;
                return Err(error.context(format!("member {}", member + 1)));
            }
        }
        Ok(Some(()))
    })
}

async fn follow_leaders(reach: Arc<dyn Reach>, shared: Arc<Shared>, led: Arc<Mutex<Vec<Led>>>) {
    let mut last = None;
    loop {
        let now = reach.leader().await;
        if now != last {
            led.lock().push(Led { at: shared.now(), member: now });
            last = now;
        }
        tokio::time::sleep(LEADERS).await;
    }
}
