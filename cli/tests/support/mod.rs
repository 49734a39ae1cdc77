//! A server of the test's own, driven with the real kubectl.
// Each test binary compiles this anew and uses a part of it.
#![allow(dead_code, unused_imports)]

mod ports;

pub mod members;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

pub use ports::free_port;

/// How long anything may take before the test gives up; far more than it needs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A server that ends with the test.
pub struct Server {
    child: Child,
    dir: PathBuf,
}

impl Server {
    /// Starts a server and waits until it is ready; what it says goes to `log` in its directory.
    pub fn start(dir: &Path, port: u16, flags: &[&str]) -> Self {
        Self::start_with(dir, port, flags, &[])
    }

    /// The same with variables of the environment.
    pub fn start_with(dir: &Path, port: u16, flags: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::start_as(dir, port, flags, environment, "/readyz")
    }

    /// The same, until a path is well: of a server that lives but is not to become ready.
    pub fn start_until(dir: &Path, port: u16, flags: &[&str], well: &str) -> Self {
        Self::start_as(dir, port, flags, &[], well)
    }

    fn start_as(dir: &Path, port: u16, flags: &[&str], environment: &[(&str, &str)], well: &str) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        let log = std::fs::File::options().create(true).append(true).open(dir.join("log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_keelson"))
            .args(["server", "--bind-address", "127.0.0.1", "--data-dir"])
            .arg(dir)
            .args(["--secure-port", &port.to_string()])
            .args(flags)
            .envs(environment.iter().copied())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut server = Self { child, dir: dir.to_owned() };
        let deadline = Instant::now() + PATIENCE;
        while server.kubectl(&["get", "--raw", well]).stdout != b"ok" {
            let ended = server.child.try_wait().unwrap();
            let log = || std::fs::read_to_string(dir.join("log")).unwrap_or_default();
            assert!(ended.is_none(), "the server ended: {}", log());
            assert!(Instant::now() < deadline, "the server is not ready: {}", log());
            std::thread::sleep(Duration::from_millis(100));
        }
        server
    }

    /// Stops the process without its knowing, and lets it go on: what it had begun it ends later, as if nothing had been.
    pub fn freeze(&self, frozen: bool) {
        let signal = if frozen { "-STOP" } else { "-CONT" };
        assert!(Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap().success());
    }

    /// Its admin's kubeconfig.
    pub fn kubeconfig(&self) -> String {
        self.dir.join("admin.kubeconfig").to_string_lossy().into_owned()
    }

    /// Runs kubectl as the admin.
    pub fn kubectl(&self, args: &[&str]) -> Output {
        Command::new("kubectl")
            .args(["--request-timeout=10s", "--kubeconfig"])
            .arg(self.dir.join("admin.kubeconfig"))
            .args(args)
            .output()
            .unwrap()
    }

    /// Output of a command that must succeed.
    pub fn run(&self, args: &[&str]) -> String {
        let output = self.kubectl(args);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {args:?}: {}: {said}{errors}", output.status);
        said
    }

    /// Repeats a command until its output is as wanted.
    pub fn until(&self, what: &str, args: &[&str], wanted: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = self.kubectl(args);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            if output.status.success() && wanted(text.trim()) {
                return;
            }
            assert!(Instant::now() < deadline, "{what}: {text}{}", String::from_utf8_lossy(&output.stderr));
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Applies a document.
    pub fn apply(&self, yaml: &str) -> String {
        let file = self.dir.join("apply.yaml");
        std::fs::write(&file, yaml).unwrap();
        self.run(&["apply", "-f", &file.to_string_lossy()])
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether kubectl is there; says that the test skips otherwise.
pub fn kubectl_is_there() -> bool {
    let there = Command::new("kubectl").args(["version", "--client"]).output().is_ok();
    if !there {
        eprintln!("SKIPPED: kubectl is not installed");
    }
    there
}

/// Runs keelson to its end: whether it succeeded, and all that it said. It is killed when that takes too long.
pub fn keelson(args: &[&str]) -> (bool, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_keelson"))
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), said)
}

/// Whether a text is in some file below a directory.
pub fn is_on_disk(dir: &Path, text: &[u8]) -> bool {
    std::fs::read_dir(dir).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return is_on_disk(&path, text);
        }
        // A file may go while this looks.
        std::fs::read(&path).is_ok_and(|bytes| bytes.windows(text.len()).any(|window| window == text))
    })
}
