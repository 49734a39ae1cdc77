//! The simulated world is a program of its own, beside this one: its clock and its randomness are not the machine's.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::run::ChaosArgs;

/// Where members run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum World {
    /// On hosts of their own on this machine.
    #[default]
    Real,
    /// In one process, on simulated clocks, networks and disks.
    Sim,
}

/// The simulation's program.
const PROGRAM: &str = "keelson-sim";

/// Becomes the simulation's program; returns only if that is not possible.
pub fn hand_over(args: &ChaosArgs) -> Result<()> {
    let program = std::env::current_exe().context("cannot find this program")?.with_file_name(PROGRAM);
    if !program.exists() {
        bail!(
            "{} is not there: build it with `cargo build --release --package {PROGRAM}`, or run `cargo xtask chaos \
             --world sim`",
            program.display()
        );
    }
    let error = Command::new(&program).args(flags(args)).exec();
    Err(error).with_context(|| program.display().to_string())
}

/// What was asked for, in the simulation's words.
fn flags(args: &ChaosArgs) -> Vec<String> {
    let mut flags = Vec::new();
    let mut flag = |name: &str, value: Option<String>| flags.extend(value.map(|value| format!("--{name}={value}")));
    flag("seed", args.seed.map(|seed| seed.to_string()));
    flag("seeds", args.seeds.clone());
    flag("hours", args.hours.map(|hours| hours.to_string()));
    flag("minutes", args.hours.is_none().then(|| args.minutes.to_string()));
    flag("nodes", Some(args.nodes.to_string()));
    flag("nemesis", Some(args.nemesis.join(",")));
    flag("workload", Some(args.workload.join(",")));
    flag("out", args.out.as_ref().map(|out| out.display().to_string()));
    if args.self_test {
        flags.push("--self-test".into());
    }
    flags
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Asked {
        #[command(flatten)]
        args: ChaosArgs,
    }

    #[test]
    fn words_are_handed_over() {
        let told = |words: &str| flags(&Asked::parse_from(words.split_whitespace()).args).join(" ");
        assert_eq!(
            told("chaos --world sim --seeds 1..9 --hours 2 --nodes 5 --nemesis kill,loss --workload set"),
            "--seeds=1..9 --hours=2 --nodes=5 --nemesis=kill,loss --workload=set"
        );
        assert!(told("chaos --world sim --seed 3").starts_with("--seed=3 --minutes=2 --nodes=3"));
    }
}
