//! `cargo xtask bench`: builds the server and the driver for release and hands over to the driver (crate `bench`).
//!
//! Why another crate: the driver needs TLS and a runtime, which would make every `cargo xtask` slow to build.

use anyhow::Result;

use crate::platform::Platform;
use crate::setup;
use crate::shell::{self, command, run, step};

/// Runs `keelson-bench` with `args`; unless they name a binary, on one that is built now.
pub fn run_bench(args: &[String]) -> Result<()> {
    setup::run(&Platform::default())?;
    let given = args.iter().any(|arg| arg == "--keelson" || arg.starts_with("--keelson="));
    step("building for release");
    let mut packages = vec!["build", "--release", "--package", "keelson-bench"];
    if !given {
        packages.extend(["--package", "keelson"]);
    }
    run(&mut command("cargo", &packages))?;
    let built = shell::target_dir()?.join("release");
    let mut bench = command(&built.join("keelson-bench").to_string_lossy(), &[]);
    bench.args(args);
    if !given {
        bench.arg("--keelson").arg(built.join("keelson"));
    }
    run(&mut bench)?;
    if matches!(args.first().map(String::as_str), Some("scheduler" | "all")) {
        step("scheduling alone");
        run(&mut command("cargo", &["bench", "--package", "keelson-scheduler"]))?;
    }
    Ok(())
}
