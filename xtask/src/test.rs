//! `cargo xtask test` and `cargo xtask ci`.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use crate::platform::Platform;
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
/// Packages whose `tests/` start whole clusters.
const CLUSTER_TESTS: &[&str] = &["keelson", "keelson-testbed", "keelson-chaos", "keelson-nodeagent"];
/// The checker of licences and sources; fixed, so that CI does not change by itself.
const CARGO_DENY: &str = "0.20.2";

/// Sets up and runs all tests.
pub fn run_tests() -> Result<()> {
    setup::run(&Platform::default())?;
    if shell::is_root() {
        setup::packages(CLUSTER_PACKAGES)?;
    }
    step("tests");
    // The cluster tests run the binary that a user would.
    run(&mut command("cargo", &["build", "--package", "keelson"]))?;
    let (passed, errors) = shell::watched(&mut command("cargo", &["test", "--workspace", "--no-fail-fast"]))?;
    if passed { Ok(()) } else { second_try(&errors) }
}

/// Runs the failed tests of whole clusters once more, each program alone, and says which of them are unsteady.
///
/// They share the machine's cores, disk and kernel with whatever else runs there. Tests inside one process have no such
/// excuse: one that fails is a failure.
fn second_try(errors: &[String]) -> Result<()> {
    let failed = failed_targets(errors);
    if failed.is_empty() || !failed.iter().all(|target| runs_clusters(target)) {
        bail!("tests failed: {failed:?}");
    }
    for target in failed {
        step(&format!("second try of {target}"));
        let arguments: Vec<&str> = ["test"].into_iter().chain(target.split(' ')).collect();
        run(&mut command("cargo", &arguments))?;
        println!("UNSTEADY: {target} failed at first and passed alone: find out why");
    }
    Ok(())
}

/// The programs that cargo names at its end, as the arguments that run each again: "    `-p keelson --test cluster`".
fn failed_targets(errors: &[String]) -> Vec<&str> {
    let ends = errors.iter().rposition(|line| line.starts_with("error: ") && line.ends_with(" failed:"));
    let named = ends.map_or(&[][..], |at| &errors[at + 1..]);
    named.iter().filter_map(|line| line.strip_prefix("    `")?.strip_suffix('`')).collect()
}

fn runs_clusters(target: &str) -> bool {
    CLUSTER_TESTS.iter().any(|name| target.starts_with(&format!("-p {name} --test ")))
}

/// Everything that must hold before a change lands.
pub fn ci() -> Result<()> {
    setup::run(&Platform::default())?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_programs_are_read_from_what_cargo_says() {
        let said = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        let rows: &[(&str, &[&str])] = &[
            ("error: 1 target failed:\n    `-p keelson --test cluster`", &["-p keelson --test cluster"]),
            (
                "error: test failed, to rerun pass `-p a --lib`\nerror: 2 targets failed:\n    `-p a --lib`\n    `-p b --test c`",
                &["-p a --lib", "-p b --test c"],
            ),
            ("error: could not compile `a` (lib) due to 1 previous error", &[]),
        ];
        for (text, wanted) in rows {
            assert_eq!(failed_targets(&said(text)), *wanted, "{text}");
        }
        assert!(runs_clusters("-p keelson --test cluster"));
        assert!(!runs_clusters("-p keelson --bin keelson"));
        assert!(!runs_clusters("-p keelson-store --test contract"));
    }
}
