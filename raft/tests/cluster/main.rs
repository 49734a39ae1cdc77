//! Members in one process, over real sockets and real TLS: the contract on leader and follower, elections, joining,
//! snapshots, restarts.

mod interrupted;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use keelson_pki::ClusterPki;
use keelson_raft::wire::World;
use keelson_raft::{Change, Node as Record, OpenError, Options, PEER_NAME, PeerTls, Replica, Setup, Tuning, heal};
use keelson_store::{KeyRange, Kv, KvError, MonotonicClock, Op, PutRequest, RangeRequest, Txn, WatchRequest, contract};
use rustls::{ClientConfig, ServerConfig};
use tokio::net::TcpListener;

struct Node {
    replica: Replica,
    member: Record,
}

async fn node(pki: &ClusterPki, dir: &Path, id: u64, address: Option<&str>) -> Node {
    let opened = open(pki, &dir.join(id.to_string()), id, address).await;
    named(id, opened)
}

fn named(id: u64, (replica, peer_address): (Result<Replica, OpenError>, String)) -> Node {
    let replica = replica.expect("the replica opens");
    Node { replica, member: Record { name: format!("m{id}"), peer_address, ..Record::default() } }
}

fn certificates(pki: &ClusterPki) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let issued = pki.peer.issue_peer("member", &[PEER_NAME.to_owned()]).expect("a certificate");
    let server = keelson_pki::peer_server_config(&issued, &pki.peer.certificate()).expect("a configuration");
    (server, keelson_pki::peer_client_config(&issued, &pki.peer.certificate()).expect("a configuration"))
}

/// The member of a directory, if it opens, and where others reach it.
async fn open(pki: &ClusterPki, dir: &Path, id: u64, address: Option<&str>) -> (Result<Replica, OpenError>, String) {
    open_tuned(pki, dir, id, address, &Tuning::default()).await
}

async fn open_tuned(
    pki: &ClusterPki,
    dir: &Path,
    id: u64,
    address: Option<&str>,
    tuning: &Tuning,
) -> (Result<Replica, OpenError>, String) {
    let listener = TcpListener::bind(address.unwrap_or("127.0.0.1:0")).await.expect("a port");
    let peer_address = listener.local_addr().expect("an address").to_string();
    let (server_tls, client_tls) = certificates(pki);
    let options = Options {
        cluster_id: 1,
        id,
        dir: dir.to_owned(),
        version: "test".into(),
        clock: Arc::new(MonotonicClock::default()),
        listener,
        server_tls,
        client_tls,
    };
    let setup = Setup { tuning: tuning.clone(), ..Setup::from(options) };
    (Replica::open(setup).await, peer_address)
}

async fn cluster(pki: &ClusterPki, dir: &Path, count: u64) -> Vec<Node> {
    tuned(pki, dir, count, &Tuning::default()).await
}

async fn tuned(pki: &ClusterPki, dir: &Path, count: u64, tuning: &Tuning) -> Vec<Node> {
    let make = async |id: u64| named(id, open_tuned(pki, &dir.join(id.to_string()), id, None, tuning).await);
    let first = make(1).await;
    first.replica.initialize(first.member.clone()).await.expect("a new cluster");
    let mut nodes = vec![first];
    for id in 2..=count {
        let next = make(id).await;
        let addresses: Vec<String> = nodes.iter().map(|node| node.member.peer_address.clone()).collect();
        next.replica.join(next.member.clone(), &addresses).await.expect("the member joins");
        nodes.push(next);
    }
    voters(&nodes[0].replica, count as usize).await;
    until(|| leader(&nodes).is_some(), "one leads").await;
    nodes
}

/// Waits until so many members vote, and decide without those of the former membership: one of which that is lost before
/// would be missed.
async fn voters(replica: &Replica, count: usize) {
    let voting = || replica.nodes().iter().filter(|(_, _, votes)| *votes).count();
    until(|| voting() == count && replica.is_settled(), "all vote").await;
}

async fn until(done: impl Fn() -> bool, what: &str) {
    for _ in 0..600 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it did not happen: {what}");
}

fn leader(nodes: &[Node]) -> Option<usize> {
    nodes.iter().position(|node| node.replica.status().is_leader)
}

async fn put(replica: &Replica, key: &str, value: &[u8]) -> Result<i64, KvError> {
    let put = PutRequest::new(key.to_owned(), value.to_vec());
    let written = replica.txn(Txn { success: vec![Op::Put(put)], ..Txn::default() }).await?;
    Ok(written.revision)
}

/// Writes, again while there is no leader: on a busy machine members stand for election.
async fn write(replica: &Replica, key: &str, value: &[u8]) {
    let mut last = None;
    for _ in 0..600 {
        match put(replica, key, value).await {
            Ok(_) => return,
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{key} was not written: {last:?}");
}

fn get(replica: &Replica, key: &str) -> Option<Vec<u8>> {
    let found = replica.range(&RangeRequest::new(KeyRange::Key(key.to_owned().into()))).expect("readable");
    found.kvs.first().map(|kv| kv.value.to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_contract_holds_on_one_member() {
    let (dir, pki) = (tempfile::tempdir().expect("a directory"), ClusterPki::create().expect("keys"));
    let nodes = cluster(&pki, dir.path(), 1).await;
    contract::all(Arc::new(nodes[0].replica.clone())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_contract_holds_on_leader_and_follower() {
    for on_leader in [true, false] {
        let (dir, pki) = (tempfile::tempdir().expect("a directory"), ClusterPki::create().expect("keys"));
        let nodes = cluster(&pki, dir.path(), 3).await;
        let at = nodes.iter().position(|node| node.replica.status().is_leader == on_leader).expect("a member");
        contract::all(Arc::new(nodes[at].replica.clone())).await;
        let revision = nodes[at].replica.barrier().await.expect("a barrier");
        for node in &nodes {
            node.replica.barrier().await.expect("a barrier");
        }
        let mut hashes = Vec::new();
        for id in 1..=3 {
            hashes.push(nodes[0].replica.hash_of(id, revision).await.expect("a hash"));
        }
        assert!(hashes.iter().all(|hash| *hash == hashes[0]), "members have diverged");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_leader_is_replaced_and_loses_nothing() {
    let (dir, pki) = (tempfile::tempdir().expect("a directory"), ClusterPki::create().expect("keys"));
    let mut nodes = cluster(&pki, dir.path(), 3).await;
    let leads = leader(&nodes).expect("a leader");
    let dead = nodes.remove(leads);
    let request = WatchRequest::new(KeyRange::prefix("k/"), 0);
    let mut watch = nodes[0].replica.watch(request).expect("the watch opens");
    for at in 0..100 {
        put(&dead.replica, &format!("k/{at}"), b"before").await.expect("written");
    }
    dead.replica.shutdown().await;
    for at in 100..200 {
        // The outcome of a write during the election may be unknown: it is tried again.
        let mut tries = 0;
        while let Err(error) = put(&nodes[at % 2].replica, &format!("k/{at}"), b"after").await {
            tries += 1;
            assert!(tries < 20, "{error}");
        }
    }
    for node in &nodes {
        node.replica.barrier().await.expect("a barrier");
        assert!((0..200).all(|at| get(&node.replica, &format!("k/{at}")).is_some()));
    }
    let mut seen = std::collections::BTreeSet::new();
    let mut last = 0;
    while seen.len() < 200 {
        let batch = watch.next().await.expect("the watch goes on").expect("the watch is not cut");
        for event in batch.events {
            assert!(event.kv.mod_revision >= last, "events are in order");
            last = event.kv.mod_revision;
            seen.insert(event.kv.key.clone());
        }
    }
    // It comes back with what it had, and catches up.
    let id = dead.replica.status().member_id;
    let address = dead.member.peer_address.clone();
    drop(dead);
    let back = node(&pki, dir.path(), id, Some(&address)).await;
    back.replica.barrier().await.expect("a barrier");
    assert!((0..200).all(|at| get(&back.replica, &format!("k/{at}")).is_some()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_killed_needs_an_election_to_lead_again() {
    let (dir, pki) = (tempfile::tempdir().expect("a directory"), ClusterPki::create().expect("keys"));
    let mut nodes = cluster(&pki, dir.path(), 1).await;
    put(&nodes[0].replica, "k", b"v").await.expect("written");
    let (led, address) = (nodes[0].replica.status().term, nodes[0].member.peer_address.clone());
    nodes[0].replica.shutdown().await;
    nodes.clear();
    let back = node(&pki, dir.path(), 1, Some(&address)).await;
    back.replica.barrier().await.expect("it leads again");
    assert!(back.replica.status().term > led, "two leaderships in one term may give one place to two entries");
    assert_eq!(get(&back.replica, "k").as_deref(), Some(&b"v"[..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_without_its_disk_is_replaced_through_a_snapshot() {
    let (dir, pki) = (tempfile::tempdir().expect("a directory"), ClusterPki::create().expect("keys"));
    let mut nodes = cluster(&pki, dir.path(), 3).await;
    let follows = nodes.iter().position(|node| !node.replica.status().is_leader).expect("a follower");
    let lost = nodes.remove(follows);
    let id = lost.replica.status().member_id;
    lost.replica.shutdown().await;
    drop(lost);
    let leads = leader(&nodes).expect("a leader");
    let writer = nodes[leads].replica.clone();
    // One after the other, so that each gets its own log entry: more than are kept for those that lag.
    for at in 0..keelson_raft::limits::KEPT_ENTRIES + 100 {
        write(&writer, &format!("n/{}", at % 5000), b"value").await;
    }
    let total = keelson_raft::limits::SNAPSHOT_COMMANDS + 500;
    for chunk in (0..total).collect::<Vec<_>>().chunks(500) {
        let keys: Vec<String> = chunk.iter().map(|at| format!("n/{}", at % 5000)).collect();
        let puts = keys.iter().map(|key| put(&writer, key, b"value"));
        for written in futures::future::join_all(puts).await {
            written.expect("written");
        }
    }
    std::fs::remove_dir_all(dir.path().join(id.to_string())).expect("removed");
    let mut fresh = node(&pki, dir.path(), 9, None).await;
    fresh.member.name = format!("m{id}");
    let addresses: Vec<String> = nodes.iter().map(|node| node.member.peer_address.clone()).collect();
    fresh.replica.join(fresh.member.clone(), &addresses).await.expect("the member joins");
    voters(&nodes[leads].replica, 3).await;
    assert!(nodes[leads].replica.nodes().iter().all(|(found, ..)| *found != id));
    fresh.replica.barrier().await.expect("a barrier");
    assert_eq!(fresh.replica.view().count(&KeyRange::prefix("n/")), 5000);
    let revision = fresh.replica.view().revision();
    assert_eq!(
        fresh.replica.hash_of(9, revision).await.expect("a hash"),
        nodes[leads].replica.hash_of(nodes[leads].replica.status().member_id, revision).await.expect("a hash")
    );
    put(&fresh.replica, "n/from-the-new-one", b"x").await.expect("written");
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_can_be_handed_over_and_members_removed() {
    let (dir, pki) = (tempfile::tempdir().expect("a directory"), ClusterPki::create().expect("keys"));
    let nodes = cluster(&pki, dir.path(), 3).await;
    let leads = leader(&nodes).expect("a leader");
    let next = (leads + 1) % 3;
    let next_id = nodes[next].replica.status().member_id;
    nodes[leads].replica.change(Change::Transfer(next_id)).await.expect("handed over");
    until(|| nodes[next].replica.status().is_leader, "the other leads").await;
    let gone = nodes[leads].replica.status().member_id;
    nodes[leads].replica.change(Change::Remove(gone)).await.expect("removed by a follower's request");
    voters(&nodes[next].replica, 2).await;
    put(&nodes[next].replica, "after", b"x").await.expect("two members go on");
    let refused = nodes[next].replica.change(Change::Promote(77)).await.expect_err("no such member");
    assert!(refused.to_string().contains("member not found"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_expire_by_the_leaders_clock_alone() {
    let (dir, pki) = (tempfile::tempdir().expect("a directory"), ClusterPki::create().expect("keys"));
    let nodes = cluster(&pki, dir.path(), 3).await;
    let follows = nodes.iter().position(|node| !node.replica.status().is_leader).expect("a follower");
    let follower = &nodes[follows].replica;
    let kept = follower.lease_grant(0, 60).await.expect("granted");
    let short = follower.lease_grant(0, 1).await.expect("granted");
    for (key, lease) in [("kept", kept), ("short", short)] {
        let put = PutRequest { lease, ..PutRequest::new(key, "v") };
        follower.txn(Txn { success: vec![Op::Put(put)], ..Txn::default() }).await.expect("written");
    }
    assert_eq!(follower.lease_keep_alive(kept).await, Ok(60));
    until(|| get(follower, "short").is_none(), "the short lease expires").await;
    assert!(get(follower, "kept").is_some());
    let status = follower.lease_status(kept).await.expect("a status");
    assert!(status.remaining_ttl > 40 && status.keys == ["kept"], "{status:?}");
    assert_eq!(follower.lease_keep_alive(short).await, Err(KvError::LeaseNotFound));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_with_another_history_stops() {
    let (dir, pki) = (tempfile::tempdir().expect("a directory"), ClusterPki::create().expect("keys"));
    let nodes = cluster(&pki, dir.path(), 3).await;
    put(&nodes[0].replica, "k", b"right").await.expect("written");
    let at = nodes.iter().position(|node| !node.replica.status().is_leader).expect("a follower");
    for node in &nodes {
        node.replica.barrier().await.expect("a barrier");
    }
    // What a damaged disk or a bug would do: a change that no other member has.
    let machine = nodes[at].replica.machine();
    let (index, meta) = machine.applied();
    let rogue = Txn { success: vec![Op::Put(PutRequest::new("k", "wrong"))], ..Txn::default() };
    let commands = vec![Arc::new(keelson_store::Command::Txn(rogue))];
    machine.apply(&[keelson_store::Entry { index, meta, commands }]).expect("applied");
    put(&nodes[0].replica, "k", b"next").await.expect("written");
    until(|| machine.failure().is_some(), "the member stops").await;
    let others = || nodes.iter().enumerate().filter(|(other, _)| *other != at).map(|(_, node)| &node.replica);
    assert!(others().all(|replica| replica.machine().failure().is_none()), "only that one stops");
    // A member that was not asked learns of it a little later.
    let told = || others().all(|replica| replica.view().settings(b"alarm/").count() == 1);
    until(told, "there is an alarm").await;
}

/// What makes a member begin anew.
#[derive(Clone, Copy, Debug)]
enum Harm {
    /// A bit of each table flips.
    Tables,
    /// A bit of the log flips.
    Log,
    /// Its history becomes another one.
    History,
}

fn flip(dir: &Path, ending: &str) {
    let mut flipped = 0;
    for entry in std::fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            flip(&path, ending);
        } else if path.to_string_lossy().ends_with(ending) {
            let mut bytes = std::fs::read(&path).expect("readable");
            // Early in it: a damaged end of the log cannot be told from one that was never written.
            bytes[100] ^= 1;
            std::fs::write(&path, bytes).expect("written");
            flipped += 1;
        }
    }
    assert!(flipped > 0 || !dir.ends_with("log"), "there is a log");
}

impl Harm {
    fn done_to(self, dir: &Path) {
        match self {
            Self::Tables => flip(&dir.join("state"), ".sst"),
            Self::Log => flip(&dir.join("log"), ".log"),
            Self::History => keelson_store::damage::forge_history(&dir.join("state")).expect("forged"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_member_begins_anew_from_its_peers() {
    for harm in [Harm::Tables, Harm::Log, Harm::History] {
        let (dir, pki) = (tempfile::tempdir().expect("a directory"), ClusterPki::create().expect("keys"));
        let mut nodes = cluster(&pki, dir.path(), 3).await;
        for n in 0..20 {
            write(&nodes[0].replica, &format!("k{n}"), b"before").await;
        }
        let at = nodes.iter().position(|node| !node.replica.status().is_leader).expect("a follower");
        let (id, home) = (at as u64 + 1, dir.path().join((at + 1).to_string()));
        let Node { replica, member } = nodes.remove(at);
        write(&replica, "k20", b"before").await;
        // It may have written down what was before the last one got its vote, with which it would not be replaced.
        let whole = |roster: heal::Roster| roster.members.len() == 3 && roster.members.iter().all(|(.., votes)| *votes);
        until(|| heal::roster(&home).is_ok_and(|known| known.is_some_and(whole)), "a roster").await;
        replica.shutdown().await;
        drop(replica);
        harm.done_to(&home);
        let (opened, _) = open(&pki, &home, id, Some(&member.peer_address)).await;
        match opened {
            Err(error) => assert!(matches!(error, OpenError::Store(_) | OpenError::Log(_)), "{harm:?}: {error}"),
            Ok(replica) => {
                write(&nodes[0].replica, "k", b"meanwhile").await;
                let why = tokio::time::timeout(Duration::from_secs(60), replica.failed()).await;
                assert!(why.is_ok(), "{harm:?}: the member goes on");
                replica.shutdown().await;
            }
        }
        let sentence = heal::sentence(&home).expect("readable").unwrap_or_else(|| panic!("{harm:?}: no sentence"));
        assert_eq!(sentence.former, id);
        begins_anew(&pki, &home, &nodes, &member, sentence.fresh).await;
        assert!(nodes[0].replica.nodes().iter().all(|(found, ..)| *found != id), "{harm:?}: the old id is there");
    }
}

/// As the program does at its next start.
async fn begins_anew(pki: &ClusterPki, home: &Path, others: &[Node], member: &Record, fresh: u64) {
    let (server, client) = certificates(pki);
    let tls = PeerTls::fixed(server, client, PEER_NAME);
    let anew = heal::prepare(home, Some(tls), &World::default()).await.expect("the others agree").expect("sentenced");
    assert_eq!((anew.id, anew.peers.len()), (fresh, 2));
    heal::done(home).expect("removed");
    let (opened, _) = open(pki, home, anew.id, Some(&member.peer_address)).await;
    let replica = opened.expect("it opens, empty");
    assert_eq!(replica.view().revision(), 1, "it has nothing yet");
    voters(&others[0].replica, 3).await;
    write(&replica, "k7", b"after").await;
    for (key, value) in [("k6", &b"before"[..]), ("k7", b"after")] {
        assert_eq!(get(&replica, key).as_deref(), Some(value));
    }
    until(|| replica.view().settings(b"alarm/").count() == 0, "its alarm is over").await;
    replica.shutdown().await;
}
