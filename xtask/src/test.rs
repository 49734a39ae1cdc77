//! `cargo xtask test` and `cargo xtask ci`.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::shell::{self, command, run, step};
use crate::{setup, tidy};

/// What whole clusters need; without it their tests say that they skip.
pub const CLUSTER_PACKAGES: &[&str] = &[
    "containerd",
    "runc",
    "containernetworking-plugins",
    "nftables",
    "iptables",
    "iproute2",
    "util-linux",
    "busybox-static",
    "curl",
];
/// The checker of licences and sources; fixed, so that CI does not change by itself.
const CARGO_DENY: &str = "0.20.2";

/// Sets up and runs all tests.
pub fn run_tests() -> Result<()> {
    setup::run()?;
    if shell::is_root() {
        setup::packages(CLUSTER_PACKAGES)?;
    }
    step("tests");
    // The cluster tests run the binary that a user would.
    run(&mut command("cargo", &["build", "--package", "keelson"]))?;
    run(&mut command("cargo", &["test", "--workspace", "--no-fail-fast"]))
}

/// Everything that must hold before a change lands.
pub fn ci() -> Result<()> {
    setup::run()?;
    step("fmt");
    run(&mut command("cargo", &["fmt", "--all", "--check"]))?;
    step("tidy");
    tidy::run()?;
    step("clippy");
    run(&mut command("cargo", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    step("deny");
    deny()?;
    run_tests()
}

/// Licences, bans and sources. Advisories need a database that is fetched from a git host: `cargo deny check` does them
/// where that is reachable.
fn deny() -> Result<()> {
    let tools = shell::cache()?.join("tools");
    let program: PathBuf = tools.join("bin/cargo-deny");
    if !program.exists() {
        step("installing cargo-deny (once per machine)");
        let mut install = command("cargo", &["install", "cargo-deny", "--locked", "--version", CARGO_DENY, "--root"]);
        install.arg(&tools);
        for inherited in ["ROCKSDB_LIB_DIR", "ROCKSDB_STATIC", "CARGO_TARGET_DIR", "RUSTFLAGS"] {
            install.env_remove(inherited);
        }
        run(&mut install)?;
    }
    let mut deny = Command::new(program);
    deny.args(["check", "bans", "licenses", "sources"]).current_dir(shell::repository());
    run(&mut deny)
}
