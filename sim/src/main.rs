//! `keelson-sim`: clusters in one process on a simulated clock, network and disk, each from a seed.
//!
//! Invariant: what a seed does follows from it alone; each runs in a process of its own.

mod case;
mod clock;
mod disk;
mod entropy;
mod nemesis;
mod net;
mod run;
mod seeds;
mod selftest;
mod shrink;
mod trace;
mod world;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use case::{Case, Wanted};
use clap::Parser;
use seeds::Runner;
use tracing_subscriber::EnvFilter;

/// Memory is taken and given back all the time; the addresses decide nothing.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The exit code when something wrong was found; 1 is that the run could not be made.
const FAULTY: i32 = 2;

/// Runs clusters in one process on a simulated clock, network and disk, each from a seed
#[derive(Parser, Debug)]
#[command(name = "keelson-sim", version)]
struct Args {
    /// One seed
    #[arg(long)]
    seed: Option<u64>,
    /// Seeds, as FROM..TO, each in a process of its own
    #[arg(long, conflicts_with = "seed")]
    seeds: Option<String>,
    /// Cases from this file: one, or one a line
    #[arg(long, conflicts_with_all = ["seed", "seeds"])]
    case: Option<PathBuf>,
    /// How long clients and faults go on, in simulated minutes
    #[arg(long, default_value_t = 3.0)]
    minutes: f64,
    /// The same in hours
    #[arg(long, conflicts_with = "minutes")]
    hours: Option<f64>,
    /// Members (default: as the seed says)
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=9))]
    nodes: Option<u8>,
    /// Faults to choose from, comma-separated, or all or none
    #[arg(long, value_delimiter = ',', default_value = "all")]
    nemesis: Vec<String>,
    /// What clients do, comma-separated, or all, or any: a few, as the seed says
    #[arg(long, value_delimiter = ',', default_value = "any")]
    workload: Vec<String>,
    /// Write all that happens to this file (one seed)
    #[arg(long)]
    trace: Option<PathBuf>,
    /// Where reports and failing cases go
    #[arg(long)]
    out: Option<PathBuf>,
    /// Print the outcome as JSON and nothing else (one seed)
    #[arg(long)]
    json: bool,
    /// Processes at a time (default: as many as there are processors)
    #[arg(long)]
    jobs: Option<usize>,
    /// Run everything twice, to see that it does the same
    #[arg(long)]
    twice: bool,
    /// Leave failing cases as they are
    #[arg(long)]
    no_shrink: bool,
    /// Look for each built-in bug: needs a build with `--features bugs`
    #[arg(long)]
    self_test: bool,
    /// List faults
    #[arg(long)]
    list: bool,
}

impl Args {
    fn wanted(&self) -> Wanted {
        let minutes = self.hours.map_or(self.minutes, |hours| hours * 60.0);
        Wanted {
            nodes: self.nodes,
            length: (minutes * 60_000.0) as u64,
            nemesis: self.nemesis.clone(),
            workloads: self.workload.clone(),
        }
    }

    fn runner(&self) -> Runner {
        let processors = std::thread::available_parallelism().map_or(1, Into::into);
        let out = self.out.clone().unwrap_or_else(|| PathBuf::from("chaos-sim"));
        let (jobs, shrink) = (self.jobs.unwrap_or(processors), !self.no_shrink);
        Runner { jobs, twice: self.twice, shrink, out, bug: None }
    }

    /// The cases that are asked for.
    fn cases(&self) -> Result<Vec<Case>> {
        if let Some(file) = &self.case {
            return seeds::read(file);
        }
        let (from, to) = match &self.seeds {
            None => (self.seed.unwrap_or(1), self.seed.unwrap_or(1) + 1),
            Some(text) => {
                let ends = text.split_once("..").context("--seeds is FROM..TO")?;
                (ends.0.parse().context("--seeds")?, ends.1.parse().context("--seeds")?)
            }
        };
        (from..to).map(|seed| Case::of(seed, &self.wanted())).collect()
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("off"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    if args.list {
        nemesis::TABLE.iter().for_each(|row| println!("  {:<16} {}", row.name, row.about));
        return Ok(());
    }
    let clean = match args.self_test {
        true => selftest::run(&args.runner(), args.seed.unwrap_or(1))?,
        false => several(&args)?,
    };
    if !clean {
        std::process::exit(FAULTY);
    }
    Ok(())
}

/// One case here, several in processes of their own.
fn several(args: &Args) -> Result<bool> {
    let cases = args.cases()?;
    if let [case] = &cases[..]
        && !args.twice
    {
        return one(args, case);
    }
    let began = Instant::now();
    let sum = args.runner().all(&cases)?;
    println!("{}", sum.summary(began.elapsed()));
    for (outcome, case) in &sum.failed {
        println!("seed {}: {} faults: {}", case.seed, case.plan.len(), outcome.wrong.join("; "));
    }
    Ok(sum.failed.is_empty())
}

fn one(args: &Args, case: &Case) -> Result<bool> {
    let outputs = run::Outputs { trace: args.trace.as_deref(), report: args.out.as_deref() };
    let outcome = run::run(case, &outputs)?;
    if args.json {
        println!("{}", serde_json::to_string(&outcome)?);
        return Ok(outcome.clean);
    }
    println!("==> seed {}: {} members, {}", case.seed, case.nodes, case.workloads.join(", "));
    println!("{}", serde_json::to_string_pretty(&outcome)?);
    Ok(outcome.clean)
}
