//! `cargo xtask`: the developer's commands. A command is a row in [`Command`] and a file.
//!
//! Invariant: this crate does not depend on RocksDB, so that it builds on a machine where nothing is set up yet.

mod bench;
mod chaos;
mod package;
mod platform;
mod setup;
mod shell;
mod test;
mod tidy;
mod up;

use clap::{Parser, Subcommand};

/// Developer commands of Keelson.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what building needs and prepare the prebuilt RocksDB archive (once per machine)
    Setup(platform::TargetArgs),
    /// Bring up a cluster on this machine: three servers and two agents in namespaces (needs root)
    Up(up::UpArgs),
    /// Remove all that `up` made
    Down(up::Where),
    /// Check crate arrows, file headers and function lengths
    Tidy,
    /// Set up, then run all tests
    Test,
    /// Measure the release build: `cargo xtask bench list` shows what there is
    Bench {
        /// The benchmark's name and its flags
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, default_value = "list")]
        args: Vec<String>,
    },
    /// Break a cluster on this machine while clients use it: `cargo xtask chaos --list` shows what there is (needs root)
    Chaos {
        /// Flags of `keelson chaos`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Make a Debian package of the release build
    Package(package::PackageArgs),
    /// What CI runs: setup, fmt, clippy, tidy, deny, tests
    Ci,
}

fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        Command::Setup(args) => setup::run(&platform::Platform::of(&args)?),
        Command::Up(args) => up::up(&args),
        Command::Down(place) => up::down(&place),
        Command::Tidy => tidy::run(),
        Command::Test => test::run_tests(),
        Command::Bench { args } => bench::run_bench(&args),
        Command::Chaos { args } => chaos::run_chaos(&args),
        Command::Package(args) => package::package(&args),
        Command::Ci => test::ci(),
    }
}
