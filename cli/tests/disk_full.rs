//! A disk without room: `keelson store` and `keelson server` stop and say why, and go on with all they acknowledged once
//! there is room.
//!
//! Needs root (for a small disk of its own), and etcdctl or kubectl; skips without them.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use support::{PATIENCE, free_port};

/// A file system in memory, gone with the test.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None` where this user may not mount.
    fn new(megabytes: u32) -> Option<Self> {
        let disk = Self(tempfile::tempdir().ok()?);
        disk.mount(&format!("size={megabytes}m")).then_some(disk)
    }

    fn mount(&self, options: &str) -> bool {
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(self.0.path());
        command.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

struct Member(Child);

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program whose data are on a small disk, and a client of it.
trait Case {
    /// The program's command line, for data in this directory.
    fn command(&self, data: &Path) -> Command;
    /// Writes a megabyte under a name; whether that was acknowledged.
    fn write(&self, name: &str) -> bool;
    /// The names that are there; `None`: no answer.
    fn names(&self) -> Option<String>;
}

fn start(case: &dyn Case, data: &Path, log: &Path) -> Member {
    let log = std::fs::File::create(log).unwrap();
    Member(case.command(data).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap())
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "it did not happen: {what}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.output().unwrap();
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn is_installed(client: &str) -> bool {
    let there = Command::new(client).arg("--help").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !there {
        eprintln!("SKIPPED: {client} is not installed");
    }
    there
}

/// Fills the disk through `case`, makes room, and looks whether everything acknowledged is there.
fn fill(case: &dyn Case, dir: &Path) {
    let Some(disk) = SmallDisk::new(64) else {
        eprintln!("SKIPPED: this user cannot mount a small disk");
        return;
    };
    let (data, log) = (disk.0.path().join("data"), dir.join("log"));
    let mut member = start(case, &data, &log);
    until("it is ready", || case.write("first"));
    let mut acknowledged = 0;
    while case.write(&format!("k-{acknowledged}")) {
        acknowledged += 1;
        assert!(acknowledged < 200, "the disk does not fill up");
    }
    until("it ends", || member.0.try_wait().unwrap().is_some());
    assert!(!member.0.wait().unwrap().success());
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(said.contains("No space left on device"), "{said}");
    drop(member);

    assert!(disk.mount("remount,size=512m"), "the disk grows");
    let _member = start(case, &data, &log);
    let mut told = None;
    until("it is back", || {
        told = case.names();
        told.is_some()
    });
    let found = told.unwrap_or_default().lines().filter(|line| line.contains("k-")).count();
    assert!(found >= acknowledged, "{acknowledged} were acknowledged, {found} are there");
    assert!(case.write("after"), "writes go on");
}

struct Store {
    client: String,
    peer: String,
    value: PathBuf,
}

impl Store {
    fn etcdctl(&self, args: &[&str]) -> Option<String> {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--command-timeout=5s", "--endpoints", &self.client]).args(args);
        output(command.stdin(std::fs::File::open(&self.value).unwrap()))
    }
}

impl Case for Store {
    fn command(&self, data: &Path) -> Command {
        let Self { client, peer, .. } = self;
        let mut command = Command::new(env!("CARGO_BIN_EXE_keelson"));
        command
            .args(["store", "--name", "m1", "--listen-client-urls", client, "--advertise-client-urls", client])
            .args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer])
            .args(["--initial-cluster", &format!("m1={peer}"), "--data-dir"])
            .arg(data);
        command
    }

    fn write(&self, name: &str) -> bool {
        self.etcdctl(&["put", name]).is_some()
    }

    fn names(&self) -> Option<String> {
        self.etcdctl(&["get", "--prefix", "k-", "--keys-only"])
    }
}

#[test]
fn a_full_disk_stops_the_store_and_room_brings_it_back() {
    if !is_installed("etcdctl") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let value = dir.path().join("value");
    std::fs::write(&value, "x".repeat(1024 * 1024)).unwrap();
    let url = || format!("http://127.0.0.1:{}", free_port());
    fill(&Store { client: url(), peer: url(), value }, dir.path());
}

struct Server {
    port: u16,
    dir: PathBuf,
}

impl Server {
    fn kubectl(&self, args: &[&str]) -> Option<String> {
        let mut command = Command::new("kubectl");
        let kubeconfig = self.dir.join("kubeconfig");
        output(command.args(["--request-timeout=5s", "--kubeconfig"]).arg(kubeconfig).args(args))
    }
}

impl Case for Server {
    fn command(&self, data: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keelson"));
        command
            .args(["server", "--bind-address", "127.0.0.1", "--secure-port", &self.port.to_string(), "--data-dir"])
            .arg(data)
            .arg("--write-kubeconfig")
            .arg(self.dir.join("kubeconfig"));
        command
    }

    fn write(&self, name: &str) -> bool {
        let file = self.dir.join("value");
        self.kubectl(&["create", "configmap", name, "--from-file", &file.to_string_lossy()]).is_some()
    }

    fn names(&self) -> Option<String> {
        self.kubectl(&["get", "configmaps", "-o", "name"])
    }
}

#[test]
fn a_full_disk_stops_the_server_and_room_brings_it_back() {
    if !is_installed("kubectl") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("value"), "x".repeat(1000 * 1024)).unwrap();
    fill(&Server { port: free_port(), dir: dir.path().to_owned() }, dir.path());
}
