//! A cluster's creation cut short at any point is removed without a trace, and can be taken up again; nothing of others
//! is touched.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::needs;
use keelson_testbed::{Plan, Testbed};

/// How long a creation runs before it is killed, in milliseconds: from before the first interface to agents starting.
const CUTS: &[u64] = &[20, 120, 400, 900, 2500, 5000];

/// What the machine has that carries a name: interfaces, network namespaces, mounts, cgroups, processes.
fn traces(name: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut list = |dir: &Path| {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            found.push(entry.path().display().to_string());
        }
    };
    for dir in ["/sys/class/net", "/run/netns", "/sys/fs/cgroup"] {
        list(Path::new(dir));
    }
    for controller in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        list(&controller.path());
    }
    found.extend(fs::read_to_string("/proc/self/mounts").unwrap_or_default().lines().map(str::to_owned));
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let arguments = fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
        let ours = process.file_name().to_str() == Some(&std::process::id().to_string());
        if !ours {
            found.push(arguments.replace('\0', " "));
        }
    }
    found.retain(|trace| trace.contains(name));
    found
}

fn ip(arguments: &str) {
    assert!(Command::new("ip").args(arguments.split(' ')).status().unwrap().success(), "ip {arguments}");
}

fn example() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    exe.ancestors().nth(2).unwrap().join("examples/up")
}

#[test]
fn a_creation_cut_short_leaves_nothing() {
    let binary = match needs() {
        Ok(binary) => binary,
        Err(why) => return eprintln!("SKIPPED: {why}"),
    };
    let parent = tempfile::Builder::new().prefix("cutshort").tempdir().unwrap();
    let dir = parent.path().join("bed");
    // A neighbour whose name begins alike.
    ip("netns add cutshorty-server-1");
    for cut in CUTS {
        let mut up = Command::new(example());
        up.arg(&binary).arg(&dir).args(["cutshort", "1", "1"]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = up.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(*cut));
        child.kill().unwrap();
        child.wait().unwrap();
        Testbed::remove(&dir).unwrap();
        let left: Vec<_> = traces("cutshort").into_iter().filter(|t| !t.contains("cutshorty")).collect();
        assert_eq!(left, Vec::<String>::new(), "after {cut} ms");
        assert!(!dir.exists());
    }
    assert!(Path::new("/run/netns/cutshorty-server-1").exists(), "the neighbour is still there");
    // Cut short and taken up: the second run brings it up whole; a third changes nothing.
    for (cut, whole) in [(Some(700), false), (None, true), (None, true)] {
        let mut up = Command::new(example());
        let mut child = up.arg(&binary).arg(&dir).args(["cutshort", "1", "1"]).spawn().unwrap();
        if let Some(cut) = cut {
            std::thread::sleep(Duration::from_millis(cut));
            child.kill().unwrap();
        }
        assert_eq!(child.wait().unwrap().success(), whole);
    }
    assert!(Testbed::remove(&dir).unwrap());
    assert!(!Testbed::remove(&dir).unwrap(), "there is nothing the second time");
    ip("netns delete cutshorty-server-1");
    assert_eq!(traces("cutshort"), Vec::<String>::new());
}

#[test]
fn what_others_made_is_refused_and_kept() {
    if let Err(why) = needs() {
        return eprintln!("SKIPPED: {why}");
    }
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("bed");
    ip("link add taken-br type bridge");
    let plan = Plan { name: "taken".into(), servers: 1, agents: 0 };
    let refused = Testbed::create(&dir, plan).err().map(|error| format!("{error:#}"));
    Testbed::remove(&dir).unwrap();
    let kept = Path::new("/sys/class/net/taken-br").exists();
    ip("link delete taken-br");
    assert!(refused.is_some_and(|why| why.contains("was not made by this testbed")));
    assert!(kept);
}
