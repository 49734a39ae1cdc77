//! One run: members, clients and faults on a clock that jumps to whatever happens next; then the verdict.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant as RealInstant};

use anyhow::{Context, Result};
use keelson_chaos::checkers::Verdict;
use keelson_chaos::context::{Process, Shared};
use keelson_chaos::report::{FaultWindow, Led, Report, WorkloadReport};
use keelson_chaos::workloads::{self, Row, Workload};
use keelson_raft::Tuning;
use keelson_store::Kv;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use crate::case::Case;
use crate::entropy;
use crate::net::Net;
use crate::trace::Trace;
use crate::world::World;

/// How long members may take to serve, at first and after all faults.
const SERVE: Duration = Duration::from_secs(120);
/// How long clients may take to end.
const CLIENTS_END: Duration = Duration::from_secs(60);
/// How long members may take to have one history after that: a comparison, and a member that begins anew.
const AGREE: Duration = Duration::from_secs(60);
/// How often leaders are noted.
const LEADERS: Duration = Duration::from_millis(200);
/// Stack of the thread that runs everything.
const STACK_BYTES: usize = 64 << 20;
/// What the report calls it.
const SYSTEM: &str = "simulated keelson";

/// What came of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// Whether nothing wrong was found.
    pub clean: bool,
    /// What was wrong, each as `workload / kind`, or in words.
    pub wrong: Vec<String>,
    /// Workloads whose checker gave up.
    pub undecided: Vec<String>,
    /// Stands for all that happened: equal for equal runs.
    pub trace: String,
    /// How many events that is.
    pub events: u64,
    /// Operations that were checked.
    pub operations: usize,
    /// Faults that were made.
    pub faults: usize,
    /// Members that began anew from their peers.
    #[serde(default)]
    pub healed: u64,
    /// Requests, answers and their parts on the network.
    pub packets: u64,
    /// Simulated time in milliseconds.
    pub simulated: u64,
    /// Real time in milliseconds.
    pub took: u64,
}

impl Outcome {
    /// Of a process that did not come to an outcome.
    pub fn died(seed: u64, why: String) -> Self {
        Self {
            seed,
            clean: false,
            wrong: vec![why],
            undecided: Vec::new(),
            trace: String::new(),
            events: 0,
            operations: 0,
            faults: 0,
            healed: 0,
            packets: 0,
            simulated: 0,
            took: 0,
        }
    }
}

/// Where a run leaves more than its outcome.
#[derive(Clone, Debug, Default)]
pub struct Outputs<'a> {
    /// The trace as text.
    pub trace: Option<&'a Path>,
    /// The report as HTML and JSON.
    pub report: Option<&'a Path>,
}

/// Runs a case. To be called once in a process: a second run would find other counters than the first.
pub fn run(case: &Case, outputs: &Outputs<'_>) -> Result<Outcome> {
    let began = RealInstant::now();
    let root = tempfile::Builder::new().prefix("keelson-sim-").tempdir_in(fast_directory())?;
    let ran = std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().stack_size(STACK_BYTES).name("world".into());
        let world = builder.spawn_scoped(scope, || {
            // From here on: this thread's hash maps are made after this.
            entropy::seed(case.seed);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
            runtime.block_on(in_world(case, outputs, root.path()))
        })?;
        world.join().unwrap_or_else(|panic| {
            let why = panic.downcast_ref::<String>().cloned();
            Err(anyhow::anyhow!("a panic: {}", why.unwrap_or_default()))
        })
    });
    let mut outcome = ran?;
    outcome.took = began.elapsed().as_millis() as u64;
    Ok(outcome)
}

/// A directory in memory if there is one.
fn fast_directory() -> std::path::PathBuf {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() }
}

async fn in_world(case: &Case, outputs: &Outputs<'_>, root: &Path) -> Result<Outcome> {
    let mut dice = StdRng::seed_from_u64(case.seed);
    let trace = Trace::begin(outputs.trace)?;
    let net = Net::new(dice.random(), case.packets.0..case.packets.1, trace.clone());
    let tuning =
        Tuning { snapshot_commands: case.snapshot_entries, kept_entries: case.kept_entries, ..Tuning::default() };
    let world = World::new(dice.random(), case.nodes.into(), root, tuning, net, trace.clone());
    (0..world.count()).for_each(|member| world.start(member));
    serving(&world).await.context("the members do not serve")?;

    let connected = world.clone();
    let mut shared = Shared::new(Box::new(move || Ok(connected.clients())), case.seed);
    shared.pace = case.pace;
    shared.ours = true;
    let shared = Arc::new(shared);
    let rows: Vec<&Row> = case.workloads.iter().filter_map(|name| workloads::find(name)).collect();
    let loads: Vec<Arc<dyn Workload>> = rows.iter().map(|row| (row.make)()).collect();
    let began = Instant::now();
    let clients = start_clients(&shared, &rows, &loads).await?;
    let led = Arc::new(Mutex::new(Vec::new()));
    let follower = tokio::spawn(follow_leaders(world.clone(), shared.clone(), led.clone()));
    let windows = make_trouble(case, &world, &shared).await;
    world.restore();
    let recovered = serving(&world).await;
    shared.stop.cancel();
    let mut broken = Vec::new();
    for client in clients {
        match timeout(CLIENTS_END, client).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => broken.push(format!("a client failed: {error}")),
            Err(_) => broken.push("a client does not end".into()),
        }
    }
    follower.abort();
    if let Err(error) = recovered {
        broken.push(format!("not serving after all faults have stopped: {error:#}"));
    }
    shared.note_jumps(world.jumps(began));
    let again = format!("cargo run --release --package keelson-sim -- --case CASE.json, of seed {}", case.seed);
    let mut report = Report::of(again, SYSTEM, case.nodes, &shared, windows, led.lock().clone());
    // Before workloads look at the end: a member that does not know yet that it differs would still answer them.
    broken.extend(agreed(&world).await);
    judge(&shared, &rows, &loads, &mut report).await?;
    report.broken.extend(broken);
    report.broken.extend(world.wrong());
    if let Some(out) = outputs.report {
        report.write(out)?;
    }
    Ok(outcome(case, &world, &shared, &report))
}

fn outcome(case: &Case, world: &World, shared: &Shared, report: &Report) -> Outcome {
    let mut wrong = report.broken.clone();
    let mut undecided = Vec::new();
    for workload in &report.workloads {
        let verdict = &workload.checked.verdict;
        let mut kinds: Vec<String> = verdict.kinds().iter().map(|kind| format!("{} / {kind}", workload.name)).collect();
        kinds.sort_unstable();
        kinds.dedup();
        wrong.extend(kinds);
        if matches!(verdict, Verdict::Undecided { .. }) {
            undecided.push(workload.name.clone());
        }
    }
    let (hash, events) = world.trace.sum();
    Outcome {
        seed: case.seed,
        clean: wrong.is_empty(),
        wrong,
        undecided,
        trace: format!("{hash:016x}"),
        events,
        operations: report.workloads.iter().map(|workload| workload.checked.operations).sum(),
        faults: report.faults.len(),
        healed: world.healed(),
        packets: world.net.carried(),
        simulated: shared.now() / 1_000_000,
        took: 0,
    }
}

async fn start_clients(
    shared: &Arc<Shared>,
    rows: &[&'static Row],
    loads: &[Arc<dyn Workload>],
) -> Result<Vec<JoinHandle<()>>> {
    let (mut running, mut id) = (Vec::new(), 0);
    for (row, workload) in rows.iter().zip(loads) {
        workload.prepare(&mut Process::new(shared.clone(), 0)?).await?;
        for _ in 0..row.clients {
            let mut process = Process::new(shared.clone(), id)?;
            let workload = workload.clone();
            running.push(tokio::spawn(async move { workload.client(&mut process).await }));
            id += 1;
        }
    }
    Ok(running)
}

/// The faults of the plan, each at its time.
async fn make_trouble(case: &Case, world: &Arc<World>, shared: &Shared) -> Vec<FaultWindow> {
    let began = Instant::now();
    let at = |millis: u64| began + Duration::from_millis(millis);
    let mut windows: Vec<FaultWindow> = Vec::new();
    let mut ends: Option<u64> = None;
    for fault in &case.plan {
        if let Some(end) = ends.filter(|end| *end <= fault.at) {
            sleep_until(at(end)).await;
            world.restore();
        }
        sleep_until(at(fault.at)).await;
        let start = shared.now();
        let what = fault.begin(world).await;
        world.trace.note(format_args!("{}: {what}", fault.name));
        let end = start + (fault.until - fault.at) * 1_000_000;
        windows.push(FaultWindow { name: fault.name.clone(), what, start, end, gap: 0 });
        ends = Some(fault.until);
    }
    if let Some(end) = ends {
        sleep_until(at(end)).await;
        world.restore();
    }
    sleep_until(at(case.length)).await;
    windows
}

/// What was noted is completed by reads at the end, and judged.
async fn judge(
    shared: &Arc<Shared>,
    rows: &[&'static Row],
    loads: &[Arc<dyn Workload>],
    report: &mut Report,
) -> Result<()> {
    for (row, workload) in rows.iter().zip(loads) {
        let mut process = Process::new(shared.clone(), u32::MAX)?;
        if let Err(error) = workload.finish(&mut process).await {
            report.broken.push(format!("{}: {error:#}", row.name));
        }
        let (name, about) = (row.name.into(), row.about.into());
        report.workloads.push(WorkloadReport { name, about, checked: workload.check() });
    }
    Ok(())
}

/// Waits until every member takes a write.
async fn serving(world: &Arc<World>) -> Result<()> {
    let deadline = Instant::now() + SERVE;
    for (member, client) in world.clients().iter().enumerate() {
        loop {
            match client.put("serving", member.to_string(), 0).await {
                Ok(_) => break,
                Err(failure) if Instant::now() > deadline => anyhow::bail!("member {member}: {failure:?}"),
                Err(_) => tokio::time::sleep(LEADERS).await,
            }
        }
    }
    Ok(())
}

/// Whether all members have the same history at the end, by its hash. A member whose history was forged last of all knows it
/// only after the next comparison, and has to begin anew then: what differs at first is looked at again for some time.
async fn agreed(world: &Arc<World>) -> Vec<String> {
    let deadline = Instant::now() + AGREE;
    loop {
        match differs(world).await {
            None => return Vec::new(),
            Some(why) if Instant::now() > deadline => return vec![why],
            Some(_) => tokio::time::sleep(LEADERS).await,
        }
    }
}

/// In words, in what the members differ now.
async fn differs(world: &Arc<World>) -> Option<String> {
    let replicas = world.replicas();
    for (at, replica) in &replicas {
        if let Err(error) = replica.barrier().await {
            return Some(format!("no barrier of member {at} at the end: {error}"));
        }
    }
    if replicas.len() < world.count() {
        return Some(format!("{} of {} members run at the end", replicas.len(), world.count()));
    }
    let revision = replicas.iter().map(|(_, replica)| replica.view().revision()).min().unwrap_or(0);
    let hash = |(at, replica): &(usize, keelson_raft::Replica)| (*at, replica.machine().hash_at(revision));
    let hashes: Vec<_> = replicas.iter().map(hash).collect();
    let same = hashes.windows(2).all(|pair| pair[0].1 == pair[1].1);
    (!same).then(|| format!("members differ at revision {revision}: {hashes:?}"))
}

async fn follow_leaders(world: Arc<World>, shared: Arc<Shared>, led: Arc<Mutex<Vec<Led>>>) {
    let mut last = None;
    loop {
        let now = world.leader();
        if now != last {
            world.trace.note(format_args!("leader {now:?}"));
            led.lock().push(Led { at: shared.now(), member: now });
            last = now;
        }
        tokio::time::sleep(LEADERS).await;
    }
}
