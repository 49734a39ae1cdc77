//! Does the simulation find what it is there to find? Each built-in bug is switched on in turn, and seeds are run until
//! one fails.

use std::time::Instant;

use anyhow::Result;
use keelson_store::bugs;

use crate::case::{Case, Wanted};
use crate::seeds::Runner;

/// A bug, and what brings it to light soonest.
struct Row {
    /// Its name, as `KEELSON_BUG` takes it.
    bug: &'static str,
    workloads: &'static str,
    nemesis: &'static str,
}

const TABLE: &[Row] = &[
    Row { bug: "leader-restore", workloads: "register,watch", nemesis: "blink,slow-disk" },
    Row { bug: "stale-read", workloads: "register,set", nemesis: "isolate,pause,isolate-leader" },
    Row { bug: "early-lease", workloads: "lock", nemesis: "kill-leader,pause-leader,move-leader" },
    Row { bug: "lost-event", workloads: "watch", nemesis: "kill-leader,storm,pause" },
    Row { bug: "repeated-event", workloads: "watch", nemesis: "kill-leader,storm,pause" },
    Row { bug: "early-ack", workloads: "register,watch", nemesis: "kill-all,kill-majority,power-cut-all,slow-disk" },
    Row { bug: "forgotten-vote", workloads: "register,watch", nemesis: "kill,storm,split,kill-leader,isolate-leader" },
    Row { bug: "applied-ahead", workloads: "register,watch", nemesis: "kill,kill-all,storm,restart" },
    Row { bug: "watch-back", workloads: "watch", nemesis: "isolate,lag-twice" },
    Row { bug: "falling-revision", workloads: "register,compaction", nemesis: "kill,kill-all,storm" },
    Row { bug: "lease-reset", workloads: "ttl", nemesis: "kill-leader,move-leader" },
    Row { bug: "stale-checkpoint", workloads: "ttl", nemesis: "kill-leader,move-leader" },
    Row { bug: "applied-behind", workloads: "register,watch", nemesis: "kill,kill-all,storm" },
    Row { bug: "lost-tombstone", workloads: "compaction", nemesis: "kill-leader,pause" },
];

/// Length of one run, in milliseconds.
const LENGTH: u64 = 120_000;
/// The same where leases have to end within it.
const LONG_LENGTH: u64 = 180_000;
/// Seeds after which a bug counts as not found.
const SEEDS: u64 = 60;

/// Looks for every bug and prints a table; returns whether all were found.
pub fn run(runner: &Runner, seed: u64) -> Result<bool> {
    anyhow::ensure!(cfg!(feature = "bugs"), "build it with --features bugs");
    let known = |row: &Row| bugs::NAMES.contains(&row.bug);
    anyhow::ensure!(TABLE.iter().all(known) && TABLE.len() == bugs::NAMES.len(), "the tables of bugs differ");
    let mut all = true;
    println!("| bug | found by | seeds | simulated time | time to find |\n|---|---|---|---|---|");
    for row in TABLE {
        let list = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
        let length = if row.workloads == "ttl" { LONG_LENGTH } else { LENGTH };
        let wanted = Wanted { nodes: Some(3), length, nemesis: list(row.nemesis), workloads: list(row.workloads) };
        let runner = Runner { bug: Some(row.bug.into()), out: runner.out.clone(), ..*runner };
        let (began, mut simulated, mut found) = (Instant::now(), 0, None);
        for number in seed..seed + SEEDS {
            let outcome = runner.one(&Case::of(number, &wanted)?)?;
            simulated += outcome.simulated;
            if !outcome.clean {
                found = Some((number - seed + 1, outcome.wrong));
                break;
            }
        }
        all &= found.is_some();
        let (seeds, by) = found.unwrap_or((SEEDS, vec!["NOT FOUND".into()]));
        let (minutes, seconds) = (simulated as f64 / 60_000.0, began.elapsed().as_secs_f64());
        println!("| `{}` | {} | {seeds} | {minutes:.1} min | {seconds:.1} s |", row.bug, brief(&by));
    }
    Ok(all)
}

/// What was wrong without its particulars.
fn brief(wrong: &[String]) -> String {
    let kind = |what: &String| match what {
        what if what.starts_with("member ") => "a member ended".to_owned(),
        what if what.contains(": ") => what.split(": ").next().unwrap_or_default().to_owned(),
        what => what.clone(),
    };
    wrong.iter().map(kind).collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_told_once_and_in_few_words() {
        let wrong = ["member 1 ended: x: y", "member 2 ended: z", "watch / lost", "no barrier at the end: none"];
        assert_eq!(brief(&wrong.map(str::to_owned)), "a member ended, no barrier at the end, watch / lost");
    }
}
