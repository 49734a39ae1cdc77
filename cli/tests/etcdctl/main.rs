//! Walks every subcommand of etcdctl 3.4 against Keelson's store and against etcd 3.4, each with one member and with
//! three, and compares what they say. Differences must be listed, with their reason, in `docs/etcd-compatibility.md`.
//!
//! Skips where etcd or etcdctl is not installed.

mod cluster;
#[path = "../support/ports.rs"]
mod ports;
mod transfer;
mod walk;

use std::collections::BTreeSet;
use std::path::Path;

use cluster::{Cluster, Kind};

/// Steps of the walk whose outcome differs, whatever the number of members. The reasons are in the document.
const DIFFERENCES: &[&str] = &["endpoint-hashkv", "member-add-voter", "snapshot-status"];

fn walk(kind: Kind, members: usize) -> Vec<(String, String)> {
    let cluster = Cluster::start(kind, members);
    walk::run(&cluster)
}

fn compare(members: usize) {
    if !cluster::installed() {
        eprintln!("skipped: etcd and etcdctl are not installed");
        return;
    }
    let theirs = walk(Kind::Etcd, members);
    let ours = walk(Kind::Keelson, members);
    assert_eq!(theirs.len(), ours.len());
    let listed: BTreeSet<&str> = DIFFERENCES.iter().copied().collect();
    let mut unexpected = Vec::new();
    for ((name, theirs), (_, ours)) in theirs.iter().zip(&ours) {
        if theirs != ours && !listed.contains(name.as_str()) {
            unexpected.push(format!("--- {name}\netcd:\n{theirs}\nkeelson:\n{ours}\n"));
        }
    }
    assert!(unexpected.is_empty(), "{} steps differ:\n{}", unexpected.len(), unexpected.join("\n"));
}

#[test]
fn one_member_answers_as_etcd_does() {
    compare(1);
}

#[test]
fn three_members_answer_as_etcd_does() {
    compare(3);
}

/// Each listed difference has a row in the document, and each step named there is one of the walk.
#[test]
fn differences_are_documented() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/etcd-compatibility.md");
    let text = std::fs::read_to_string(&path).expect("the document is there");
    for name in DIFFERENCES {
        assert!(text.contains(&format!("| `{name}` |")), "{name} has no row in {}", path.display());
    }
}
