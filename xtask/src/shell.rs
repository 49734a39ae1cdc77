//! Running other programs, and finding the repository.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The root of the checkout.
pub fn repository() -> PathBuf {
    // Of the run before that of the build: checkouts that share a target directory share this program too.
    let manifest =
        std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    manifest.parent().map(PathBuf::from).unwrap_or(manifest)
}

/// What Keelson keeps per machine outside checkouts: `$KEELSON_CACHE`, or `~/.cache/keelson`.
pub fn cache() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("KEELSON_CACHE") {
        return Ok(dir.into());
    }
    let home = std::env::var_os("HOME").context("HOME is not set: set it, or KEELSON_CACHE")?;
    Ok(PathBuf::from(home).join(".cache/keelson"))
}

/// Where cargo puts what it builds.
pub fn target_dir() -> Result<PathBuf> {
    let metadata = output(&mut command("cargo", &["metadata", "--format-version", "1", "--no-deps"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
    metadata["target_directory"].as_str().map(PathBuf::from).context("cargo names no target directory")
}

/// A command that runs in the checkout.
pub fn command(program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args).current_dir(repository());
    command
}

/// A step shown to the person who waits.
pub fn step(text: &str) {
    println!("==> {text}");
}

/// Runs a command with its output shown; an error names it.
pub fn run(command: &mut Command) -> Result<()> {
    let shown = format!("{command:?}");
    let status = command.status().with_context(|| format!("cannot start {shown}"))?;
    if !status.success() {
        bail!("{shown} failed: {status}");
    }
    Ok(())
}

/// Runs a command with its output shown: whether it succeeded, and the lines that it wrote as errors.
pub fn watched(command: &mut Command) -> Result<(bool, Vec<String>)> {
    let shown = format!("{command:?}");
    let mut child = command.stderr(Stdio::piped()).spawn().with_context(|| format!("cannot start {shown}"))?;
    let mut lines = Vec::new();
    for line in BufReader::new(child.stderr.take().context("its errors are piped")?).lines() {
        let line = line?;
        eprintln!("{line}");
        lines.push(line);
    }
    Ok((child.wait()?.success(), lines))
}

/// Runs a command and returns what it prints.
pub fn output(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output = command.output().with_context(|| format!("cannot start {shown}"))?;
    if !output.status.success() {
        bail!("{shown} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether this process may install packages and make network namespaces.
pub fn is_root() -> bool {
    output(Command::new("id").arg("-u")).is_ok_and(|uid| uid.trim() == "0")
}
