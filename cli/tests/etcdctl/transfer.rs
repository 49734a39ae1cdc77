//! A snapshot on its way to a new member when its receiver is killed, and when its sender is.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use keelson_proto::etcd::etcdserverpb::{PutRequest, kv_client::KvClient};

use crate::cluster::{Cluster, Kind, PATIENCE, installed, url};

/// So large that it is on its way for more than half a second at the rate at which snapshots are sent.
const VALUES: usize = 96;
const VALUE_BYTES: usize = 1 << 20;
/// Entries after the values: more than a log keeps behind its last snapshot.
const ENTRIES: usize = 1_300;
/// What has come when somebody is killed.
const RECEIVED_BYTES: u64 = 8 << 20;

/// Bytes that cannot be compressed.
fn noise(seed: usize) -> Vec<u8> {
    let mut state = seed as u64 + 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..VALUE_BYTES).map(|_| next()).collect()
}

async fn fill(endpoint: String) {
    let mut client = KvClient::connect(endpoint).await.expect("a connection");
    let put =
        |key: String, value: Vec<u8>| PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() };
    for number in 0..VALUES {
        client.put(put(format!("noise/{number}"), noise(number))).await.expect("written");
    }
    for number in 0..ENTRIES {
        client.put(put(format!("last/{}", number % 10), b"value".to_vec())).await.expect("written");
    }
}

/// Bytes in the directories where a member gathers snapshots.
fn received_bytes(dir: &Path, within: bool) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => received_bytes(&entry.path(), within || entry.file_name() == "snapshots"),
        Ok(found) if within => found.len(),
        _ => 0,
    };
    entries.flatten().map(size).sum()
}

/// Adds a member, and waits until some of its snapshot is there and not all.
fn join(cluster: &mut Cluster, at: usize) {
    let members = cluster.endpoints(3);
    let (name, peer) = (format!("m{}", at + 1), format!("--peer-urls={}", url(cluster.peers[at])));
    let added = cluster.etcdctl(&members, &["member", "add", &name, &peer], "");
    assert!(added.status.success(), "{added:?}");
    cluster.member(at, &initial(cluster, at), "existing");
    let (dir, begun) = (cluster.dir.path().join(&name), Instant::now());
    while received_bytes(&dir, false) < RECEIVED_BYTES {
        assert!(begun.elapsed() < PATIENCE, "no snapshot comes to {name}");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(received_bytes(&dir, false) < (VALUES * VALUE_BYTES) as u64, "the snapshot was faster than this test");
}

/// All members up to this one.
fn initial(cluster: &Cluster, last: usize) -> String {
    let names: Vec<_> = (0..=last).map(|at| format!("m{}={}", at + 1, url(cluster.peers[at]))).collect();
    names.join(",")
}

/// Waits until all of so many members have the same history.
fn same(cluster: &Cluster, members: usize) {
    (0..members).for_each(|at| cluster.wait(at));
    let begun = Instant::now();
    loop {
        let told = cluster.etcdctl(&cluster.endpoints(members), &["endpoint", "hashkv"], "");
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        let hashes: BTreeSet<_> = told.lines().filter_map(|line| line.split(", ").nth(1)).collect();
        if told.lines().count() == members && hashes.len() == 1 {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "histories differ: {told}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn leader(cluster: &Cluster) -> usize {
    let leads = |at: &usize| {
        let told = cluster.etcdctl(&[url(cluster.clients[*at])], &["endpoint", "status"], "");
        String::from_utf8_lossy(&told.stdout).split(", ").nth(4) == Some("true")
    };
    (0..3).find(leads).expect("one of the first three leads")
}

#[test]
fn a_snapshot_arrives_although_its_receiver_or_its_sender_is_killed() {
    if !installed() {
        eprintln!("skipped: etcd and etcdctl are not installed");
        return;
    }
    let mut cluster = Cluster::start_with(Kind::Keelson, 3, &["--snapshot-count", "100"]);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(fill(url(cluster.clients[0])));

    join(&mut cluster, 3);
    cluster.kill(3);
    cluster.member(3, &initial(&cluster, 3), "existing");
    same(&cluster, 4);

    let sender = leader(&cluster);
    join(&mut cluster, 4);
    cluster.kill(sender);
    cluster.wait(4);
    cluster.member(sender, &initial(&cluster, 4), "existing");
    same(&cluster, 5);
}
