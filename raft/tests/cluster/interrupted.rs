//! Snapshots whose way to a member breaks off: it gets the rest, or another one from who leads then.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::*;

/// Bytes of the values that fill one table of the snapshot.
const TABLE_BYTES: usize = 2 * 1024 * 1024;
const VALUE_BYTES: usize = 64 * 1024;
const TABLES: usize = 4;
/// Commands after which the members take a snapshot: more than the tables take, and less than twice as many.
const SNAPSHOT_COMMANDS: u64 = 200;
/// Commands that are written at once; in fewer entries than commands, but more than are kept.
const ROUND_COMMANDS: u64 = 10;
/// Bytes after which the way breaks off: the first table has come whole by then, and not all of them.
const CUT_BYTES: u64 = (TABLE_BYTES * 2) as u64;

/// The way to a member: connections to it are made through here.
struct Way {
    /// Bytes that came to the member.
    passed: AtomicU64,
    /// Where a connection breaks off.
    cut: AtomicU64,
    /// Notified when one has.
    broken: Notify,
}

impl Way {
    /// A way to `target` that breaks off once; and its address.
    async fn to(target: String) -> (Arc<Self>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let way = Arc::new(Self { passed: AtomicU64::new(0), cut: AtomicU64::new(CUT_BYTES), broken: Notify::new() });
        let shared = way.clone();
        tokio::spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                let (way, target) = (shared.clone(), target.clone());
                tokio::spawn(async move {
                    if let Ok(to) = TcpStream::connect(target).await {
                        way.carry(from, to).await;
                    }
                });
            }
        });
        (way, address)
    }

    async fn carry(&self, mut from: TcpStream, mut to: TcpStream) {
        let (mut sent, mut answered) = from.split();
        let (mut answers, mut target) = to.split();
        let forth = async {
            let mut bytes = vec![0; 64 * 1024];
            while let Ok(read) = sent.read(&mut bytes).await {
                if read == 0 || target.write_all(&bytes[..read]).await.is_err() {
                    return;
                }
                let passed = self.passed.fetch_add(read as u64, Ordering::SeqCst) + read as u64;
                if passed >= self.cut.load(Ordering::SeqCst) {
                    self.cut.store(u64::MAX, Ordering::SeqCst);
                    self.broken.notify_one();
                    return;
                }
            }
        };
        tokio::select! {
            () = forth => {}
            _ = tokio::io::copy(&mut answers, &mut answered) => {}
        }
    }
}

/// Three members whose log no longer has what a new one needs, with so much data that it takes several tables.
async fn filled(pki: &ClusterPki, dir: &Path) -> Vec<Node> {
    let tuning = Tuning { snapshot_commands: SNAPSHOT_COMMANDS, kept_entries: 5, ..Tuning::default() };
    let nodes = tuned(pki, dir, 3, &tuning).await;
    let writer = &nodes[0].replica;
    for table in 0..TABLES {
        let values = (0..TABLE_BYTES / VALUE_BYTES).map(|at| async move {
            let mut value = vec![0; VALUE_BYTES];
            // What can be compressed would leave less to send.
            rand::Rng::fill_bytes(&mut rand::rng(), &mut value);
            write(writer, &format!("fill/{table}/{at}"), &value).await;
        });
        futures::future::join_all(values).await;
        for node in &nodes {
            let machine = node.replica.machine().clone();
            tokio::task::spawn_blocking(move || machine.flush().expect("flushed")).await.expect("ran");
        }
    }
    // The log is purged up to a snapshot, of which there is but one: each makes tables of its own, and many are merged.
    for _ in 0..SNAPSHOT_COMMANDS / ROUND_COMMANDS {
        futures::future::join_all((0..ROUND_COMMANDS).map(|_| write(writer, "last", b"value"))).await;
    }
    nodes
}

/// A new member that the others reach over a way that breaks off.
async fn joins(pki: &ClusterPki, dir: &Path, nodes: &[Node]) -> (Node, Arc<Way>) {
    let mut fresh = node(pki, dir, 9, None).await;
    let (way, address) = Way::to(fresh.member.peer_address.clone()).await;
    fresh.member.peer_address = address;
    let addresses: Vec<String> = nodes.iter().map(|node| node.member.peer_address.clone()).collect();
    fresh.replica.join(fresh.member.clone(), &addresses).await.expect("the member joins");
    way.broken.notified().await;
    (fresh, way)
}

/// Waits until a member has all that was written before: what lags on a busy machine may take longer than one question.
async fn caught_up(replica: &Replica) {
    let mut last = None;
    for _ in 0..20 {
        match replica.barrier().await {
            Ok(_) => return,
            Err(error) => last = Some(error),
        }
    }
    panic!("the member lags: {last:?}");
}

async fn has_all(fresh: &Node, others: &Replica, voting: usize) {
    voters(others, voting).await;
    caught_up(&fresh.replica).await;
    let keys = TABLES * TABLE_BYTES / VALUE_BYTES;
    assert_eq!(fresh.replica.view().count(&KeyRange::prefix("fill/")), keys);
    let revision = fresh.replica.view().revision();
    let hash = fresh.replica.hash_of(9, revision).await.expect("a hash");
    caught_up(others).await;
    assert_eq!(hash, others.hash_of(others.status().member_id, revision).await.expect("a hash"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_cut_off_is_tried_again() {
    let (dir, pki) = (tempfile::tempdir().expect("a directory"), ClusterPki::create().expect("keys"));
    let nodes = filled(&pki, dir.path()).await;
    let (fresh, way) = joins(&pki, dir.path(), &nodes).await;
    has_all(&fresh, &nodes[0].replica, 4).await;
    let passed = way.passed.load(Ordering::SeqCst);
    // What had come is not sent again if the member has noticed the break by then, which no test can wait for.
    assert!(passed >= (TABLES * TABLE_BYTES) as u64, "{passed} bytes came through the way");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_whose_sender_stops_comes_from_the_next_leader() {
    let (dir, pki) = (tempfile::tempdir().expect("a directory"), ClusterPki::create().expect("keys"));
    let mut nodes = filled(&pki, dir.path()).await;
    let (fresh, _way) = joins(&pki, dir.path(), &nodes).await;
    let sender = nodes.remove(leader(&nodes).expect("a leader"));
    sender.replica.shutdown().await;
    drop(sender);
    until(|| leader(&nodes).is_some(), "another one leads").await;
    let leads = leader(&nodes).expect("a leader");
    has_all(&fresh, &nodes[leads].replica, 4).await;
}
