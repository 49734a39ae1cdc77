//! `keelson store` on a disk without room: it stops and says why, and goes on with all it acknowledged once there is room.
//!
//! Needs root (for a small disk of its own) and etcdctl; skips without them.

mod support;

use std::path::Path;
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

fn start(data: &Path, log: &Path, client: &str, peer: &str) -> Member {
    let log = std::fs::File::create(log).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_keelson"))
        .args(["store", "--name", "m1", "--listen-client-urls", client, "--advertise-client-urls", client])
        .args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer])
        .args(["--initial-cluster", &format!("m1={peer}"), "--data-dir"])
        .arg(data)
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    Member(child)
}

fn etcdctl(client: &str, args: &[&str], value: &Path) -> Option<String> {
    let mut command = Command::new("etcdctl");
    command.env("ETCDCTL_API", "3").args(["--command-timeout=5s", "--endpoints", client]).args(args);
    let output = command.stdin(std::fs::File::open(value).unwrap()).output().unwrap();
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "it did not happen: {what}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

#[test]
fn a_full_disk_stops_the_store_and_room_brings_it_back() {
    if Command::new("etcdctl").env("ETCDCTL_API", "3").arg("version").output().is_err() {
        eprintln!("SKIPPED: etcdctl is not installed");
        return;
    }
    let Some(disk) = SmallDisk::new(64) else {
        eprintln!("SKIPPED: this user cannot mount a small disk");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (data, log, value) = (disk.0.path().join("data"), dir.path().join("log"), dir.path().join("value"));
    std::fs::write(&value, "x".repeat(1024 * 1024)).unwrap();
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let (client, peer) = (url(free_port()), url(free_port()));
    let mut member = start(&data, &log, &client, &peer);
    until("the store is ready", || etcdctl(&client, &["put", "first"], &value).is_some());
    let mut acknowledged = 0;
    while etcdctl(&client, &["put", &format!("k/{acknowledged}")], &value).is_some() {
        acknowledged += 1;
        assert!(acknowledged < 200, "the disk does not fill up");
    }
    until("the store ends", || member.0.try_wait().unwrap().is_some());
    assert!(!member.0.wait().unwrap().success());
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(said.contains("No space left on device"), "{said}");
    drop(member);

    assert!(disk.mount("remount,size=512m"), "the disk grows");
    let _member = start(&data, &log, &client, &peer);
    let keys = ["get", "--prefix", "k/", "--keys-only"];
    let mut told = None;
    until("the store is back", || {
        told = etcdctl(&client, &keys, &value);
        told.is_some()
    });
    let found = told.unwrap_or_default().lines().filter(|line| line.starts_with("k/")).count();
    assert!(found >= acknowledged, "{acknowledged} were acknowledged, {found} are there");
    assert!(etcdctl(&client, &["put", "after"], &value).is_some(), "writes go on");
}
