//! Pretended nodes: they register, send heartbeats and report their pods as running, without running anything.
//! One watch of pods serves all of them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Node, Pod};
use keelson_client::{Client, Error, ListParams, WatchEvent};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::hollow_status;
use crate::node::{self, LEASE_RENEWAL, LeaseKeeper, Machine};

/// How many writes of all hollow nodes run at a time.
const PARALLEL_WRITES: usize = 64;
/// Pause after a failed list or watch.
const RETRY: Duration = Duration::from_secs(1);
/// Pauses between looks for the address range of a node that has just registered; then its pods wait for [`RETRY`].
const RANGE_LOOKS: [Duration; 4] =
    [Duration::from_millis(5), Duration::from_millis(20), Duration::from_millis(50), Duration::from_millis(100)];
/// A range that was not found is looked for again after this: by then one may have become free.
const RANGE_AGAIN: Duration = Duration::from_secs(5);
/// How long pods that end by themselves run.
const RUN_TO_END: Duration = Duration::from_secs(2);
/// Pods whose work may be pending at a time.
const PENDING: usize = 65_536;

/// Which nodes to pretend.
#[derive(Clone, Debug)]
pub struct HollowConfig {
    /// Node names are `PREFIX0`, `PREFIX1` and so on.
    pub prefix: String,
    /// How many nodes.
    pub count: u32,
    /// CPUs of each, as a quantity.
    pub cpu: String,
    /// Memory of each, as a quantity.
    pub memory: String,
}

impl Default for HollowConfig {
    fn default() -> Self {
        Self { prefix: "hollow-".into(), count: 1, cpu: "4".into(), memory: "8Gi".into() }
    }
}

/// One hollow node's memory.
struct Hollow {
    machine: Machine,
    node: Mutex<Option<Node>>,
    lease: tokio::sync::Mutex<LeaseKeeper>,
    /// When it was last looked in vain for the node's range of addresses.
    without_range: Mutex<Option<Instant>>,
    addresses: Mutex<Addresses>,
}

/// Pod addresses in use on one node, by pod uid.
#[derive(Default)]
struct Addresses(BTreeMap<String, u32>);

impl Addresses {
    /// The address of `uid` within `cidr`: the one it has, or the lowest free one after network and gateway.
    fn of(&mut self, uid: &str, cidr: &str) -> Option<Ipv4Addr> {
        let (base, bits) = cidr.split_once('/')?;
        let base: u32 = base.parse::<Ipv4Addr>().ok()?.into();
        let size = 1u32.checked_shl(32u32.checked_sub(bits.parse().ok()?)?)?;
        let host = match self.0.get(uid) {
            Some(host) => *host,
            None => {
                let used: std::collections::BTreeSet<u32> = self.0.values().copied().collect();
                let host = (2..size.saturating_sub(1)).find(|h| !used.contains(h))?;
                self.0.insert(uid.into(), host);
                host
            }
        };
        Some(Ipv4Addr::from(base + host))
    }
}

struct Fleet {
    client: Client,
    nodes: BTreeMap<String, Hollow>,
    /// Uids of pods that whoever deletes them removes at once, until they are seen gone.
    removed: Mutex<HashSet<String>>,
}

/// Runs the hollow nodes until `cancel`.
pub async fn run(config: HollowConfig, client: Client, cancel: CancellationToken) {
    let nodes = (0..config.count).map(|i| (format!("{}{i}", config.prefix), hollow(&config, i))).collect();
    let fleet = Arc::new(Fleet { client: client.with_user_agent("keelson-hollow"), nodes, removed: Mutex::default() });
    tracing::info!(nodes = config.count, "hollow nodes start");
    let (queue, pods) = tokio::sync::mpsc::channel(PENDING);
    tokio::select! {
        () = cancel.cancelled() => {}
        () = heartbeats(&fleet) => {}
        () = watch(&fleet, &queue) => {}
        () = work(&fleet, pods, &queue) => {}
    }
}

fn hollow(config: &HollowConfig, index: u32) -> Hollow {
    let ip = Ipv4Addr::from(u32::from(Ipv4Addr::new(172, 31, 0, 1)).wrapping_add(index));
    let id = format!("{:032x}", 0x6b65_656c_736f_6e00_u128 + u128::from(index));
    let machine = Machine {
        ip: ip.to_string(),
        other_ip: None,
        port: 10250,
        cpu: config.cpu.clone(),
        memory: config.memory.clone(),
        storage: "100Gi".into(),
        runtime: "hollow://1.0".into(),
        kernel: "hollow".into(),
        os_image: "Keelson hollow node".into(),
        machine_id: id.clone(),
        boot_id: id,
        labels: BTreeMap::from([("keelson.dev/hollow".into(), "true".into())]),
        huge_pages: BTreeMap::new(),
        swap: 0,
    };
    Hollow {
        machine,
        node: Mutex::default(),
        lease: Default::default(),
        without_range: Mutex::default(),
        addresses: Mutex::default(),
    }
}

async fn heartbeats(fleet: &Arc<Fleet>) {
    tokio::join!(reports(fleet), renewals(fleet));
}

async fn reports(fleet: &Arc<Fleet>) {
    let mut tick = tokio::time::interval(LEASE_RENEWAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        futures::stream::iter(&fleet.nodes)
            .for_each_concurrent(PARALLEL_WRITES, |(name, hollow)| async move {
                if let Err(error) = beat(fleet, name, hollow).await {
                    tracing::warn!(node = %name, %error, "heartbeat of a hollow node failed");
                    *hollow.node.lock() = None;
                }
            })
            .await;
    }
}

/// Renews the leases of all nodes, each when its own says: spread over the time, as those of as many machines are.
async fn renewals(fleet: &Arc<Fleet>) {
    let (mut due, now) = (BinaryHeap::new(), Instant::now());
    let count = u32::try_from(fleet.nodes.len()).unwrap_or(u32::MAX).max(1);
    for (index, name) in (0u32..).zip(fleet.nodes.keys()) {
        due.push(Reverse((now + LEASE_RENEWAL / count * index, name)));
    }
    let mut renewing = futures::stream::FuturesUnordered::new();
    loop {
        let next = due.peek().map(|Reverse((at, _))| *at).filter(|_| renewing.len() < PARALLEL_WRITES);
        tokio::select! {
            Some((name, again)) = renewing.next(), if !renewing.is_empty() => due.push(Reverse((again, name))),
            () = tokio::time::sleep_until(next.unwrap_or(now)), if next.is_some() => {
                let Some(Reverse((_, name))) = due.pop() else { continue };
                renewing.push(async move { (name, Instant::now() + renew(fleet, name).await) });
            }
            else => return,
        }
    }
}

/// Renews a node's lease if the node is registered; returns when to do so again.
async fn renew(fleet: &Fleet, name: &str) -> Duration {
    let Some(hollow) = fleet.nodes.get(name) else { return LEASE_RENEWAL };
    let Some(uid) = hollow.node.lock().as_ref().and_then(|n| n.metadata.uid.clone()) else { return RETRY };
    match hollow.lease.lock().await.renew(&fleet.client, name, &uid).await {
        Ok(pause) => pause,
        Err(error) => {
            tracing::warn!(node = %name, %error, "the lease of a hollow node could not be renewed");
            RETRY
        }
    }
}

/// Registers the node and makes its lease, or refreshes its status. The cached node spares a read; a node that was deleted
/// or changed by others makes the write fail and is read anew with the next beat.
async fn beat(fleet: &Fleet, name: &str, hollow: &Hollow) -> Result<(), Error> {
    let known = hollow.node.lock().clone();
    let new = known.is_none();
    let known = known.filter(|n| n.spec.as_ref().is_some_and(|s| s.pod_cidr.is_some()));
    let node = match known {
        Some(node) => node::update(&fleet.client, name, &hollow.machine, &node::State::default(), node).await?,
        None => node::register(&fleet.client, name, &hollow.machine, &node::State::default()).await?,
    };
    let uid = node.metadata.uid.clone().unwrap_or_default();
    *hollow.node.lock() = Some(node);
    if new {
        hollow.lease.lock().await.renew(&fleet.client, name, &uid).await?;
    }
    Ok(())
}

type Queue = tokio::sync::mpsc::Sender<Pod>;

async fn watch(fleet: &Arc<Fleet>, queue: &Queue) {
    loop {
        if let Err(error) = watch_once(fleet, queue).await {
            tracing::warn!(%error, "watch of pods failed");
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn watch_once(fleet: &Arc<Fleet>, queue: &Queue) -> Result<(), Error> {
    let api = fleet.client.all::<Pod>();
    let mut params = ListParams { field_selector: Some("spec.nodeName!=".into()), ..ListParams::default() };
    let list = api.list(&params).await?;
    // What went unseen is not waited for.
    fleet.removed.lock().clear();
    for pod in list.items {
        // Whoever started it may be gone, and with it the one who was to end it.
        if node_of(&pod).is_some_and(|n| fleet.nodes.contains_key(n)) && hollow_status::ends(&pod) {
            finish_later(fleet, pod.clone());
        }
        offer(fleet, pod, queue).await;
    }
    params.resource_version = Some(list.resource_version);
    let mut events = std::pin::pin!(api.watch(&params).await?);
    while let Some(event) = events.try_next().await? {
        match event {
            WatchEvent::Added(pod) | WatchEvent::Modified(pod) => offer(fleet, pod, queue).await,
            WatchEvent::Deleted(pod) => forget(fleet, &pod),
            WatchEvent::Bookmark(_) => {}
            WatchEvent::Error(status) => return Err(Error::Status(status)),
        }
    }
    Ok(())
}

/// Whether a pod is deleted without grace: it goes at once without its node's word.
fn is_removed(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some() && pod.metadata.deletion_grace_period_seconds == Some(0)
}

async fn offer(fleet: &Fleet, pod: Pod, queue: &Queue) {
    if node_of(&pod).is_some_and(|n| fleet.nodes.contains_key(n)) && hollow_status::needs_work(&pod) {
        if is_removed(&pod) {
            // If it is still there then, who deletes it was stopped in the middle of it.
            fleet.removed.lock().extend(pod.metadata.uid.clone());
            return again(pod, queue, RETRY);
        }
        // The queue closes only when the whole fleet stops.
        let _ = queue.send(pod).await;
    }
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

fn forget(fleet: &Fleet, pod: &Pod) {
    if let Some(uid) = &pod.metadata.uid {
        fleet.removed.lock().remove(uid);
    }
    if let (Some(hollow), Some(uid)) = (node_of(pod).and_then(|n| fleet.nodes.get(n)), &pod.metadata.uid) {
        hollow.addresses.lock().0.remove(uid);
    }
}

async fn work(fleet: &Arc<Fleet>, pods: tokio::sync::mpsc::Receiver<Pod>, queue: &Queue) {
    let pods = futures::stream::unfold(pods, |mut pods| async { pods.recv().await.map(|pod| (pod, pods)) });
    pods.for_each_concurrent(PARALLEL_WRITES, |pod| async move {
        match advance(fleet, &pod).await {
            Ok(Step::Done) => {}
            Ok(Step::NoRange) => again(pod, queue, RETRY),
            // The last word on a pod that goes is this node's: no newer event comes if a server died in the middle of it.
            Err(e) if e.is_conflict() && pod.metadata.deletion_timestamp.is_some() => again(pod, queue, RETRY),
            // A newer event comes. But if the newer version is this node's own, whose write was carried out and not answered,
            // nobody would end the pod.
            Err(e) if e.is_conflict() && hollow_status::is_to_end(&pod) => finish_later(fleet, pod),
            Err(e) if e.is_conflict() || e.is_not_found() => {}
            Err(error) => {
                tracing::warn!(pod = ?pod.metadata.name, %error, "status of a hollow pod could not be written");
                again(pod, queue, RETRY);
            }
        }
    })
    .await;
}

fn again(pod: Pod, queue: &Queue, after: Duration) {
    let queue = queue.downgrade();
    tokio::spawn(async move {
        tokio::time::sleep(after).await;
        if let Some(queue) = queue.upgrade() {
            let _ = queue.send(pod).await;
        }
    });
}

/// What became of a look at a pod.
enum Step {
    /// There is nothing more to do now.
    Done,
    /// Its node has no address range yet.
    NoRange,
}

/// A node's range of pod addresses, as soon as it has one. One look serves all pods of a node that wait for it.
async fn range(fleet: &Fleet, name: &str, hollow: &Hollow) -> Result<Option<String>, Error> {
    let range_of = |node: &Node| node.spec.as_ref()?.pod_cidr.clone().filter(|cidr| !cidr.is_empty());
    let known = || hollow.node.lock().as_ref().and_then(range_of);
    let pauses = match *hollow.without_range.lock() {
        None => &RANGE_LOOKS[..],
        Some(at) if at.elapsed() < RANGE_AGAIN => &[],
        Some(_) => &RANGE_LOOKS[..1],
    };
    for pause in pauses {
        if let Some(range) = known() {
            return Ok(Some(range));
        }
        match fleet.client.cluster::<Node>().get_opt(name).await? {
            Some(node) if range_of(&node).is_some() => *hollow.node.lock() = Some(node),
            _ => tokio::time::sleep(*pause).await,
        }
    }
    let found = known();
    if found.is_some() {
        *hollow.without_range.lock() = None;
    } else if !pauses.is_empty() {
        *hollow.without_range.lock() = Some(Instant::now());
    }
    Ok(found)
}

/// Takes the pod one step further.
async fn advance(fleet: &Arc<Fleet>, pod: &Pod) -> Result<Step, Error> {
    let meta = &pod.metadata;
    let (Some(name), Some(namespace), Some(uid)) = (&meta.name, &meta.namespace, &meta.uid) else {
        return Ok(Step::Done);
    };
    let Some((node, hollow)) = node_of(pod).and_then(|n| fleet.nodes.get_key_value(n)) else { return Ok(Step::Done) };
    let api = fleet.client.namespaced::<Pod>(namespace);
    if meta.deletion_timestamp.is_some() {
        if is_removed(pod) && !fleet.removed.lock().contains(uid) {
            return Ok(Step::Done);
        }
        api.delete(name, &json!({"gracePeriodSeconds": 0, "preconditions": {"uid": uid}})).await?;
        hollow.addresses.lock().0.remove(uid);
        return Ok(Step::Done);
    }
    let ip = if pod.spec.as_ref().is_some_and(|s| s.host_network == Some(true)) {
        hollow.machine.ip.clone()
    } else {
        let Some(cidr) = range(fleet, node, hollow).await? else { return Ok(Step::NoRange) };
        let Some(ip) = hollow.addresses.lock().of(uid, &cidr) else {
            tracing::warn!(pod = %name, %cidr, "no pod address is free");
            return Ok(Step::Done);
        };
        ip.to_string()
    };
    let mut next = pod.clone();
    next.status = Some(hollow_status::next(pod, &hollow.machine.ip, &ip)?);
    let written = api.replace_status(name, &next).await?;
    if hollow_status::ends(&written) {
        finish_later(fleet, written);
    }
    Ok(Step::Done)
}

/// Ends a pod that ends by itself when it has run for a while.
fn finish_later(fleet: &Arc<Fleet>, pod: Pod) {
    let fleet = fleet.clone();
    tokio::spawn(async move {
        tokio::time::sleep(RUN_TO_END).await;
        while let Err(error) = finish(&fleet, &pod).await {
            tracing::debug!(%error, "a hollow pod could not be finished yet");
            tokio::time::sleep(RETRY).await;
        }
    });
}

/// Reports a pod that ends by itself as succeeded.
async fn finish(fleet: &Fleet, pod: &Pod) -> Result<(), Error> {
    let (Some(name), Some(namespace)) = (&pod.metadata.name, &pod.metadata.namespace) else { return Ok(()) };
    let api = fleet.client.namespaced::<Pod>(namespace);
    loop {
        let Some(mut current) = api.get_opt(name).await? else { return Ok(()) };
        if current.metadata.uid != pod.metadata.uid || !hollow_status::ends(&current) {
            return Ok(());
        }
        current.status = Some(hollow_status::succeeded(&current)?);
        match api.replace_status(name, &current).await {
            Err(e) if e.is_conflict() => {}
            result => return result.map(|_| ()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_distinct_stable_and_end() {
        let mut addresses = Addresses::default();
        let a = addresses.of("a", "10.244.3.0/29").unwrap();
        assert_eq!(a.to_string(), "10.244.3.2");
        assert_eq!(addresses.of("b", "10.244.3.0/29").unwrap().to_string(), "10.244.3.3");
        assert_eq!(addresses.of("a", "10.244.3.0/29").unwrap(), a);
        addresses.0.remove("a");
        assert_eq!(addresses.of("c", "10.244.3.0/29").unwrap(), a);
        for i in 0..3 {
            assert!(addresses.of(&i.to_string(), "10.244.3.0/29").is_some());
        }
        assert!(addresses.of("z", "10.244.3.0/29").is_none());
        assert!(addresses.of("z", "nonsense").is_none());
    }
}
