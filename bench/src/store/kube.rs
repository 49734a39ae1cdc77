//! What a kube-apiserver asks of its store: objects created, updated and deleted by transactions that compare revisions,
//! lists in pages at one revision, watches of prefixes with previous values and progress, events under a lease that ends,
//! compaction. Every watcher has to see every change once and in order, or the benchmark fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use keelson_proto::etcd::etcdserverpb as pb;
use pb::compare::{CompareResult, CompareTarget, TargetUnion};
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::request_op::Request;
use pb::watch_client::WatchClient;
use pb::watch_request::RequestUnion;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::members::{Cluster, MEMBERS};
use super::{Measured, millis};
use crate::Options;
use crate::report::Report;

/// Those that write and list at once, each with objects of its own.
const WORKERS: usize = 32;
/// Objects of one worker.
const OBJECTS: usize = 100;
/// Rounds over its objects that one worker does.
const ROUNDS: usize = 40;
/// Bytes of an object.
const OBJECT_BYTES: usize = 1024;
/// Watchers of all objects.
const WATCHERS: usize = 60;
/// Objects of one page of a list.
const PAGE: i64 = 500;
/// Events under one lease.
const EVENTS: usize = 5_000;
/// Pause between two compactions, far shorter than in a cluster.
const COMPACT_EVERY: Duration = Duration::from_secs(1);
/// Revisions that a compaction leaves, so that lists under way can end.
const KEPT_REVISIONS: i64 = 20_000;
/// How long the watchers may take to see the last change.
const CATCH_UP: Duration = Duration::from_secs(60);
const PREFIX: &str = "/registry/pods/";
const EVENTS_PREFIX: &str = "/registry/events/";

/// The end of the interval of keys that begin with this.
fn end_of(prefix: &str) -> Bytes {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end.into()
}

fn key(worker: usize, object: usize) -> Bytes {
    format!("{PREFIX}ns-{worker:03}/pod-{object:05}").into()
}

fn value(round: usize) -> Bytes {
    format!("{round:<OBJECT_BYTES$}").into()
}

fn op(request: Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

/// A change of one object at the revision that is known of it, and the object as it is if that is not so.
fn change(key: &Bytes, known: i64, change: Request) -> pb::TxnRequest {
    let compare = pb::Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        key: key.clone(),
        target_union: Some(TargetUnion::ModRevision(known)),
        ..pb::Compare::default()
    };
    let read = pb::RangeRequest { key: key.clone(), ..pb::RangeRequest::default() };
    pb::TxnRequest { compare: vec![compare], success: vec![op(change)], failure: vec![op(Request::RequestRange(read))] }
}

/// What all of the load shares.
#[derive(Default)]
struct Shared {
    /// Changes of objects that were acknowledged.
    changes: AtomicUsize,
    /// The last acknowledged revision.
    revision: AtomicI64,
}

impl Shared {
    fn changed(&self, header: Option<pb::ResponseHeader>) -> i64 {
        let revision = header.map_or(0, |header| header.revision);
        self.changes.fetch_add(1, Ordering::Relaxed);
        self.revision.fetch_max(revision, Ordering::Relaxed);
        revision
    }
}

/// Latencies by kind.
#[derive(Default)]
struct Times {
    writes: Vec<Duration>,
    gets: Vec<Duration>,
    lists: Vec<Duration>,
}

/// Creates, updates, reads and deletes the objects of one worker.
async fn work(mut client: KvClient<Channel>, worker: usize, rounds: usize, shared: Arc<Shared>) -> Result<Times> {
    let mut times = Times::default();
    let mut known = vec![0; OBJECTS];
    for round in 0..rounds {
        for (object, known) in known.iter_mut().enumerate() {
            let key = key(worker, object);
            let deletes = *known != 0 && (round + object).is_multiple_of(10);
            let wanted = if deletes {
                Request::RequestDeleteRange(pb::DeleteRangeRequest { key: key.clone(), ..Default::default() })
            } else {
                Request::RequestPut(pb::PutRequest { key: key.clone(), value: value(round), ..Default::default() })
            };
            let asked = Instant::now();
            let answer = client.txn(change(&key, *known, wanted)).await?.into_inner();
            times.writes.push(asked.elapsed());
            ensure!(answer.succeeded, "nobody else changes object {object} of worker {worker}");
            let revision = shared.changed(answer.header);
            *known = if deletes { 0 } else { revision };
            if object.is_multiple_of(5) {
                let asked = Instant::now();
                let read = pb::RangeRequest { key, ..pb::RangeRequest::default() };
                let found = client.range(read).await?.into_inner().kvs.first().map_or(0, |kv| kv.mod_revision);
                times.gets.push(asked.elapsed());
                ensure!(found == *known, "a read after a write showed revision {found}, not {known}");
            }
        }
        if (round + worker).is_multiple_of(8) {
            let asked = Instant::now();
            list(&mut client).await?;
            times.lists.push(asked.elapsed());
        }
    }
    Ok(times)
}

/// Lists all objects in pages at the revision of the first one.
async fn list(client: &mut KvClient<Channel>) -> Result<()> {
    let (mut start, mut revision, mut found, mut count) = (Bytes::from(PREFIX), 0, 0, None);
    loop {
        let page =
            pb::RangeRequest { key: start, range_end: end_of(PREFIX), limit: PAGE, revision, ..Default::default() };
        let page = client.range(page).await?.into_inner();
        revision = if revision == 0 { page.header.map_or(0, |header| header.revision) } else { revision };
        let all = *count.get_or_insert(page.count);
        found += page.kvs.len() as i64;
        if !page.more {
            ensure!(found == all, "a list at one revision has {found} objects, its first page said {all}");
            return Ok(());
        }
        let last = page.kvs.last().context("an empty page says that there is more")?;
        start = [&last.key[..], &[0]].concat().into();
    }
}

/// Watches all objects and counts their changes; fails if they do not come in order.
async fn watch(channel: Channel, ready: mpsc::Sender<()>, seen: Arc<AtomicUsize>) -> Result<()> {
    let (requests, receiver) = mpsc::channel(4);
    let create = pb::WatchCreateRequest {
        key: PREFIX.into(),
        range_end: end_of(PREFIX),
        prev_kv: true,
        progress_notify: true,
        ..pb::WatchCreateRequest::default()
    };
    requests.send(pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }).await?;
    let mut answers = WatchClient::new(channel).watch(ReceiverStream::new(receiver)).await?.into_inner();
    let (mut last, mut ready) = (0, Some(ready));
    while let Some(answer) = answers.message().await? {
        ensure!(!answer.canceled, "a watch was cancelled: {}", answer.cancel_reason);
        if answer.created
            && let Some(ready) = ready.take()
        {
            ready.send(()).await?;
        }
        for event in answer.events {
            let kv = event.kv.context("an event without its key")?;
            ensure!(kv.mod_revision > last, "revision {} after {last}", kv.mod_revision);
            ensure!(kv.version <= 1 || event.prev_kv.is_some(), "an update without what was before");
            last = kv.mod_revision;
            seen.fetch_add(1, Ordering::Relaxed);
        }
    }
    bail!("a watch has ended")
}

/// Thousands of events under one lease, which is then revoked.
async fn events(cluster: &Cluster, count: usize) -> Result<(Duration, Duration)> {
    let (channel, begun) = (cluster.channel(1)?, Instant::now());
    let mut leases = LeaseClient::new(channel.clone());
    let lease = leases.lease_grant(pb::LeaseGrantRequest { ttl: 3600, id: 0 }).await?.into_inner().id;
    let mut writers = JoinSet::new();
    for writer in 0..WORKERS {
        let mut client = KvClient::new(cluster.channel(writer % MEMBERS)?);
        writers.spawn(async move {
            for event in (writer..count).step_by(WORKERS) {
                let key = format!("{EVENTS_PREFIX}{event:06}").into();
                client.put(pb::PutRequest { key, value: value(0), lease, ..pb::PutRequest::default() }).await?;
            }
            Ok::<_, tonic::Status>(())
        });
    }
    while let Some(done) = writers.join_next().await {
        done??;
    }
    let (written, begun) = (begun.elapsed(), Instant::now());
    let asked = pb::LeaseTimeToLiveRequest { id: lease, keys: true };
    let attached = leases.lease_time_to_live(asked).await?.into_inner().keys.len();
    ensure!(attached == count, "{attached} of {count} keys belong to the lease");
    leases.lease_revoke(pb::LeaseRevokeRequest { id: lease }).await?;
    let left = pb::RangeRequest {
        key: EVENTS_PREFIX.into(),
        range_end: end_of(EVENTS_PREFIX),
        count_only: true,
        ..pb::RangeRequest::default()
    };
    let left = KvClient::new(channel).range(left).await?.into_inner().count;
    ensure!(left == 0, "{left} keys outlive their lease");
    Ok((written, begun.elapsed()))
}

/// Forgets old revisions again and again.
async fn compact(channel: Channel, shared: Arc<Shared>) -> Result<()> {
    let mut client = KvClient::new(channel);
    let mut before = 0;
    loop {
        tokio::time::sleep(COMPACT_EVERY).await;
        let revision = shared.revision.load(Ordering::Relaxed) - KEPT_REVISIONS;
        if revision > before {
            client.compact(pb::CompactionRequest { revision, physical: false }).await?;
            before = revision;
        }
    }
}

/// Runs the load.
pub async fn run(report: &mut Report, name: &str, cluster: &Cluster, options: &Options) -> Result<()> {
    let (shared, seen) = (Arc::new(Shared::default()), Arc::new(AtomicUsize::new(0)));
    let (ready, mut created) = mpsc::channel(WATCHERS);
    let mut beside = JoinSet::new();
    for watcher in 0..WATCHERS {
        let channel = cluster.channel(watcher % MEMBERS)?;
        beside.spawn(watch(channel, ready.clone(), seen.clone()));
    }
    drop(ready);
    for _ in 0..WATCHERS {
        if created.recv().await.is_none() {
            break;
        }
    }
    beside.spawn(compact(cluster.channel(2)?, shared.clone()));
    let begun = Instant::now();
    let mut workers = JoinSet::new();
    for worker in 0..WORKERS {
        let client = KvClient::new(cluster.channel(worker % MEMBERS)?);
        workers.spawn(work(client, worker, options.amount(ROUNDS), shared.clone()));
    }
    let mut times = Times::default();
    let all = async {
        while let Some(done) = workers.join_next().await {
            let done = done??;
            times.writes.extend(done.writes);
            times.gets.extend(done.gets);
            times.lists.extend(done.lists);
        }
        anyhow::Ok(begun.elapsed())
    };
    let elapsed = tokio::select! {
        done = all => done?,
        Some(ended) = beside.join_next() => return ended?.context("what goes on beside the writes"),
    };
    let wanted = shared.changes.load(Ordering::Relaxed) * WATCHERS;
    let behind = Instant::now();
    while seen.load(Ordering::Relaxed) < wanted {
        if behind.elapsed() > CATCH_UP {
            bail!("watchers have seen {} of {wanted} events", seen.load(Ordering::Relaxed));
        }
        if let Some(ended) = beside.try_join_next() {
            return ended?.context("what goes on beside the writes");
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let caught_up = behind.elapsed();
    ensure!(seen.load(Ordering::Relaxed) == wanted, "watchers have seen events twice");
    let Times { writes, gets, lists } = times;
    for (what, latencies) in [("transactions", writes), ("reads of one", gets), ("lists in pages", lists)] {
        let measured = Measured::new(latencies, elapsed);
        let (p50, p99) = (millis(measured.permille(500)), millis(measured.permille(990)));
        let rate = format!("{:.0}/s", measured.rate());
        report.add(format!("{name}: like a kube-apiserver, {what}"), vec![("rate", rate), ("p50", p50), ("p99", p99)]);
    }
    let rate = wanted as f64 / (elapsed + caught_up).as_secs_f64();
    let figures = vec![("rate", format!("{rate:.0}/s")), ("after the last write", millis(caught_up))];
    report.add(format!("{name}: like a kube-apiserver, {WATCHERS} watchers"), figures);
    let count = options.amount(EVENTS);
    let (written, revoked) = events(cluster, count).await?;
    let figures = vec![("written in", millis(written)), ("revoked in", millis(revoked))];
    report.add(format!("{name}: {count} keys under one lease"), figures);
    Ok(())
}
