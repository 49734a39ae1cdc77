//! Runs client libraries that people use against the real binary. What is not installed is installed into a cache outside the
//! checkout, once; where a registry does not answer the test says that it skips.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use support::{Server, free_port, kubectl_is_there};

/// Directory of the clients' programs.
const PROGRAMS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients");
/// Time for one installation, seconds: registries answer in less, or not at all.
const INSTALL_SECONDS: &str = "300";
/// Time for the one that is compiled, seconds.
const BUILD_SECONDS: &str = "1800";
/// Time for the programs, seconds; each waits for what it expects with its own shorter limits.
const RUN_SECONDS: &str = "180";

/// Where what is installed stays: `KEELSON_CACHE`, as for the checks before a change lands.
fn cache() -> Option<PathBuf> {
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/keelson"));
    let cache = std::env::var_os("KEELSON_CACHE").map(PathBuf::from).or_else(home)?.join("clients");
    std::fs::create_dir_all(&cache).ok().map(|()| cache)
}

/// Runs a command under a time limit.
fn run(seconds: &str, command: &mut Command) -> Option<Output> {
    let mut limited = Command::new("timeout");
    limited.arg(seconds).arg(command.get_program()).args(command.get_args());
    if let Some(directory) = command.get_current_dir() {
        limited.current_dir(directory);
    }
    for (key, value) in command.get_envs().filter_map(|(key, value)| Some((key, value?))) {
        limited.env(key, value);
    }
    limited.output().ok()
}

fn succeeds(seconds: &str, command: &mut Command) -> bool {
    run(seconds, command).is_some_and(|output| output.status.success())
}

/// A server with one node that pretends, whose default namespace is ready.
fn server(dir: &Path) -> Server {
    let server = Server::start(dir, free_port(), &["--hollow", "1"]);
    let account = ["get", "serviceaccount", "default", "-o", "name"];
    server.until("the namespace has its account", &account, |out| out == "serviceaccount/default");
    server.until("the node is there", &["get", "node", "-o", "name"], |out| out == "node/hollow-0");
    server
}

fn passes(command: &mut Command) {
    let output = run(RUN_SECONDS, command).unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.lines().any(|line| line.trim() == "ok"), "{said}");
}

/// A Python with the client: `KEELSON_PYTHON`, the first in the path, or an environment in the cache.
fn python() -> Option<PathBuf> {
    let has = |python: &Path| succeeds(INSTALL_SECONDS, Command::new(python).args(["-c", "import kubernetes"]));
    let first = PathBuf::from(std::env::var_os("KEELSON_PYTHON").unwrap_or_else(|| "python3".into()));
    if has(&first) {
        return Some(first);
    }
    let environment = cache()?.join("python");
    let python = environment.join("bin/python");
    if has(&python) {
        return Some(python);
    }
    let made = succeeds(INSTALL_SECONDS, Command::new(&first).args(["-m", "venv"]).arg(&environment))
        && succeeds(INSTALL_SECONDS, Command::new(&python).args(["-m", "pip", "install", "--quiet", "kubernetes"]));
    if !made {
        eprintln!(
            "SKIPPED: no Python with the package `kubernetes`, and it cannot be installed (pip, or python3-venv)"
        );
    }
    made.then_some(python)
}

#[test]
fn the_python_client_works() {
    if !kubectl_is_there() {
        return;
    }
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path());
    passes(Command::new(python).arg(format!("{PROGRAMS}/client.py")).arg(server.kubeconfig()));
}

#[test]
fn releases_of_many_objects_are_installed_upgraded_and_removed() {
    if !kubectl_is_there() {
        return;
    }
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path());
    passes(Command::new(python).arg(format!("{PROGRAMS}/release.py")).arg(server.kubeconfig()));
}

/// A directory with the JavaScript client of a version that the installed Node can run.
fn javascript() -> Option<PathBuf> {
    let skip = |why: &str| {
        eprintln!("SKIPPED: {why}");
        None
    };
    let Some(node) = run(INSTALL_SECONDS, Command::new("node").arg("--version")).filter(|o| o.status.success()) else {
        return skip("no node");
    };
    let version = String::from_utf8_lossy(&node.stdout).trim().trim_start_matches('v').to_owned();
    let major: u32 = version.split('.').next()?.parse().ok()?;
    let client = if major >= 22 { "2.0.1" } else { "1.3.0" };
    let directory = cache()?.join(format!("javascript-{client}"));
    if !directory.join("node_modules/@kubernetes/client-node/package.json").is_file() {
        std::fs::create_dir_all(&directory).ok()?;
        std::fs::write(directory.join("package.json"), "{\"private\": true}").ok()?;
        let package = format!("@kubernetes/client-node@{client}");
        let mut install = Command::new("npm");
        install.args(["install", "--no-audit", "--no-fund", &package]).current_dir(&directory);
        if !succeeds(INSTALL_SECONDS, &mut install) {
            return skip("the JavaScript client cannot be installed (npm)");
        }
    }
    Some(directory)
}

#[test]
fn the_javascript_client_works() {
    if !kubectl_is_there() {
        return;
    }
    let Some(directory) = javascript() else { return };
    // Modules are looked for from where the program is.
    let dir = tempfile::tempdir_in(&directory).unwrap();
    let program = dir.path().join("client.mjs");
    std::fs::copy(format!("{PROGRAMS}/client.mjs"), &program).unwrap();
    let server = server(dir.path());
    passes(Command::new("node").arg(program).arg(server.kubeconfig()));
}

/// The program of kube-rs, built in the cache. It takes minutes the first time, so only who asks for it builds it.
fn kube_rs() -> Option<PathBuf> {
    let target = cache()?.join("kube-rs");
    let program = target.join("debug/keelson-client-kube-rs");
    if !program.is_file() && std::env::var_os("KEELSON_KUBE_RS").is_none() {
        eprintln!("SKIPPED: the program of kube-rs is not built yet (KEELSON_KUBE_RS=1 builds it)");
        return None;
    }
    let source = tempfile::tempdir().ok()?;
    for file in ["Cargo.toml", "src/main.rs"] {
        std::fs::create_dir_all(source.path().join("src")).ok()?;
        std::fs::copy(format!("{PROGRAMS}/kube-rs/{file}"), source.path().join(file)).ok()?;
    }
    // The versions of the first build are kept, so that later ones need no registry.
    let lock = target.join("Cargo.lock");
    if lock.is_file() {
        std::fs::copy(&lock, source.path().join("Cargo.lock")).ok()?;
    }
    if !succeeds(INSTALL_SECONDS, Command::new("cargo").args(["fetch", "--quiet"]).current_dir(source.path())) {
        eprintln!("SKIPPED: crates.io does not answer");
        return None;
    }
    let mut build = Command::new("cargo");
    build.args(["build", "--quiet"]).current_dir(source.path()).env("CARGO_TARGET_DIR", &target);
    let built = run(BUILD_SECONDS, &mut build).unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    std::fs::copy(source.path().join("Cargo.lock"), lock).unwrap();
    Some(program)
}

#[test]
fn kube_rs_works() {
    if !kubectl_is_there() {
        return;
    }
    let Some(program) = kube_rs() else { return };
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path());
    passes(Command::new(program).env("KUBECONFIG", server.kubeconfig()));
}
