//! Does the harness find what it is there to find? Each built-in bug is switched on in turn, and has to be found.

use std::time::Instant;

use anyhow::{Result, bail};

use crate::run::{ChaosArgs, run};

/// A bug, and what brings it to light soonest.
struct Row {
    /// Its name, as `KEELSON_BUG` takes it.
    bug: &'static str,
    /// What it is.
    about: &'static str,
    workload: &'static str,
    nemesis: &'static str,
}

const TABLE: &[Row] = &[
    Row {
        bug: "leader-restore",
        about: "a leader that was killed goes on leading in its term, without the end of its log",
        workload: "register,append,set",
        nemesis: "kill-leader,kill-all,storm",
    },
    Row {
        bug: "stale-read",
        about: "reads do not ask the leader, so a member that is cut off answers from its past",
        workload: "register,set",
        nemesis: "isolate,pause,isolate-leader",
    },
    Row {
        bug: "early-lease",
        about: "a new leader takes all leases for expired",
        workload: "lock",
        nemesis: "kill-leader,pause-leader,move-leader",
    },
    Row {
        bug: "lost-event",
        about: "a watch that reads history leaves an event out",
        workload: "watch",
        nemesis: "kill-leader,storm,pause",
    },
    Row {
        bug: "repeated-event",
        about: "a watch that is resumed repeats an event",
        workload: "watch",
        nemesis: "kill-leader,storm,pause",
    },
];

/// Length of one run, minutes.
const RUN_MINUTES: f64 = 0.4;
/// Runs, each with the next seed, after which a bug counts as not found.
const RUNS: u64 = 8;

/// Looks for every bug and prints a table; returns whether all were found.
pub fn self_test(args: &ChaosArgs) -> Result<bool> {
    let seed = args.seed.unwrap_or(1);
    let mut table = String::from("| bug | found by | time to find |\n|---|---|---|\n");
    let mut all = true;
    for row in TABLE {
        let started = Instant::now();
        let found = (seed..seed + RUNS).find_map(|seed| match look(args, row, seed) {
            Ok(kinds) if kinds.is_empty() => None,
            other => Some(other),
        });
        let took = started.elapsed().as_secs();
        let by = match found {
            Some(kinds) => kinds?.join(", "),
            None => {
                all = false;
                "NOT FOUND".to_owned()
            }
        };
        table += &format!("| {}: {} | {by} | {took} s |\n", row.bug, row.about);
    }
    println!("{table}");
    Ok(all)
}

/// One run; the kinds of faults that were found.
fn look(args: &ChaosArgs, row: &Row, seed: u64) -> Result<Vec<String>> {
    println!("==> looking for {}", row.bug);
    let list = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
    let args = ChaosArgs {
        seed: Some(seed),
        minutes: RUN_MINUTES,
        workload: list(row.workload),
        nemesis: list(row.nemesis),
        bug: Some(row.bug.to_owned()),
        ..args.clone()
    };
    let report = run(&args)?;
    let mut kinds: Vec<String> = Vec::new();
    for workload in &report.workloads {
        kinds.extend(workload.checked.verdict.kinds().into_iter().map(|kind| format!("{} / {kind}", workload.name)));
    }
    kinds.sort_unstable();
    kinds.dedup();
    if kinds.is_empty() && !report.broken.is_empty() {
        bail!("{}: {}", row.bug, report.broken.join(", "));
    }
    Ok(kinds)
}
