//! Measures the real binary from outside. A benchmark is a row in [`BENCHES`] and a file with `pub async fn run`.
//!
//! Run it as `cargo xtask bench NAME`, which builds driver and server for release. Results that are worth keeping go to
//! `docs/benchmarks.md` with the command and the machine.

mod api;
mod cluster;
mod controllers;
mod definitions;
mod load;
mod node;
mod plot;
mod process;
mod report;
mod scheduler;
mod start;
mod store;
mod watchers;

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use clap::Parser;
use futures::FutureExt;
use futures::future::BoxFuture;

use crate::report::Report;

/// How to measure.
#[derive(Parser, Clone, Debug)]
#[command(bin_name = "cargo xtask bench")]
pub struct Options {
    /// Which benchmark (`all` for all, `list` to see them)
    pub name: String,
    /// The binary to measure
    #[arg(long, default_value = "target/release/keelson")]
    pub keelson: PathBuf,
    /// A tenth of the work: to see that it runs, not to be recorded
    #[arg(long)]
    pub quick: bool,
    /// Only these parts of `store` (nobody, puts, ranges, mixed, watchers, leases, kube, failover, fill, disturbed) or `scheduler`
    /// (basic, node-affinity, spread-zones, ..., alone) or `controllers` (rollout, idle, pods, beats, handover) or `api` (many,
    /// alone, gets, lists) or `watch` (own, shared, burst, others)
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<String>,
    /// Only this program in `store`: keelson or etcd
    #[arg(long)]
    pub program: Option<String>,
    /// Only these numbers of clients in `store`'s puts, ranges and mixed
    #[arg(long, value_delimiter = ',')]
    pub clients: Vec<usize>,
    /// How often things are repeated that are done as a whole, such as a start
    #[arg(long, default_value_t = 5)]
    pub repeat: usize,
    /// Write bars of the figures into this directory, an SVG file for each
    #[arg(long)]
    pub plots: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

impl Options {
    /// Whether a part is to be measured.
    pub fn wants(&self, part: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == part)
    }

    /// Whether so many clients are to be measured.
    pub fn wants_clients(&self, clients: usize) -> bool {
        self.clients.is_empty() || self.clients.contains(&clients)
    }

    /// `full`, or a tenth of it with `--quick`.
    pub fn amount(&self, full: usize) -> usize {
        if self.quick { (full / 10).max(1) } else { full }
    }
}

/// A benchmark.
struct Bench {
    name: &'static str,
    about: &'static str,
    run: fn(Options) -> BoxFuture<'static, Result<Report>>,
}

const BENCHES: &[Bench] = &[
    Bench {
        name: "start",
        about: "exec to ready, first pod, running pod; idle memory",
        run: |o| start::run(o).boxed(),
    },
    Bench { name: "api", about: "creates, gets, updates, deletes, lists over TLS", run: |o| api::run(o).boxed() },
    Bench { name: "store", about: "three members of the store against etcd's", run: |o| store::run(o).boxed() },
    Bench {
        name: "controllers",
        about: "5,000 replicas made, rolled over, scaled to nothing; 150,000 pods; 5,000 nodes and 2 s of grace; a dead leader; idle",
        run: |o| controllers::run(o).boxed(),
    },
    Bench {
        name: "definitions",
        about: "CustomResourceDefinitions: one to established, a thousand to published, their memory",
        run: |o| definitions::run(o).boxed(),
    },
    Bench {
        name: "scheduler",
        about: "pods of several forms on 5,000 hollow nodes, created to bound",
        run: |o| scheduler::run(o).boxed(),
    },
    Bench {
        name: "cluster",
        about: "exec to a running container, three servers and two agents, a dead leader; needs root",
        run: |o| cluster::run(o).boxed(),
    },
    Bench {
        name: "node",
        about: "pods on one agent: start, many at once, end, the agent at rest; needs root",
        run: |o| node::run(o).boxed(),
    },
    Bench { name: "watch", about: "one event to many watchers", run: |o| watchers::run(o).boxed() },
];

fn main() -> Result<()> {
    let options = Options::parse();
    if options.name == "list" {
        for bench in BENCHES {
            println!("{:<12}{}", bench.name, bench.about);
        }
        return Ok(());
    }
    let chosen: Vec<&Bench> = BENCHES.iter().filter(|b| options.name == "all" || b.name == options.name).collect();
    if chosen.is_empty() {
        bail!("no benchmark is called {:?}: see `cargo xtask bench list`", options.name);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let measured = chosen.into_iter().try_for_each(|bench| {
        let report = runtime.block_on(until_told(bench.run, &options))?;
        if let Some(dir) = &options.plots {
            plot::write(&report, bench.name, dir)?;
        }
        if options.json {
            println!("{}", serde_json::to_string(&report)?);
        } else {
            print!("{}", report.table(bench.name));
        }
        ensure!(!report.failed, "a part of {:?} failed", bench.name);
        Ok(())
    });
    // Load that is still under way on threads of its own must not hold the program up.
    runtime.shutdown_background();
    measured
}

/// Runs a benchmark; told to end, it drops it, and with it the programs that it has started.
async fn until_told(run: fn(Options) -> BoxFuture<'static, Result<Report>>, options: &Options) -> Result<Report> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        report = run(options.clone()) => report,
        _ = terminate.recv() => bail!("ended by SIGTERM"),
        _ = interrupt.recv() => bail!("ended by SIGINT"),
    }
}
