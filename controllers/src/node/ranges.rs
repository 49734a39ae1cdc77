//! Ranges of pod addresses: each node gets one of each family that no other has.
//!
//! Invariant: what the informer shows of nodes, and what was promised to nodes but is not shown yet, is taken, each as often as
//! it is held; so two workers never give the same range, and one that two nodes have by hand is free when both are gone.
//! What Services have of the cluster's ranges is taken from the start, and stays so.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use keelson_client::{Key, PatchType};
use keelson_metrics::{Histogram, Source, family, sample};
use parking_lot::Mutex;
use serde_json::json;

use crate::context::{Context, NodeCidrMaskSizes};
use crate::runtime::{Keys, Outcome, watch_own};

/// A node for which there was no range is looked at again when one is free; and after this, as upstream does at last.
const WITHOUT_RANGE: Duration = Duration::from_secs(1000);
/// Upper bounds of the buckets of tries, as upstream's.
const TRIES: &[f64] = &[1.0, 5.0, 25.0, 125.0, 625.0];

/// Addresses with a common prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Range {
    /// Bits of an address of its family.
    width: u32,
    /// How many bits are the same.
    prefix: u32,
    /// Its first address.
    base: u128,
}

impl Range {
    fn parse(text: &str) -> Option<Self> {
        let (base, prefix) = text.trim().split_once('/')?;
        let (width, base) = match base.parse::<IpAddr>().ok()? {
            IpAddr::V4(ip) => (32, u128::from(u32::from(ip))),
            IpAddr::V6(ip) => (128, u128::from(ip)),
        };
        let prefix = prefix.parse::<u32>().ok().filter(|prefix| *prefix <= width)?;
        Some(Self { width, prefix: 0, base }.around(base, prefix))
    }

    /// The range of this prefix, in the same family, that has an address.
    fn around(self, address: u128, prefix: u32) -> Self {
        let range = Self { prefix, ..self };
        Self { base: address & !range.hosts(), ..range }
    }

    /// The bits in which its addresses differ.
    fn hosts(self) -> u128 {
        (u128::MAX >> (128 - self.width)).checked_shr(self.prefix).unwrap_or(0)
    }

    fn last(self) -> u128 {
        self.base | self.hosts()
    }

    fn meets(self, other: Self) -> bool {
        self.width == other.width && self.base <= other.last() && other.base <= self.last()
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match u32::try_from(self.base) {
            Ok(base) if self.width == 32 => write!(out, "{}/{}", IpAddr::V4(base.into()), self.prefix),
            _ => write!(out, "{}/{}", IpAddr::V6(self.base.into()), self.prefix),
        }
    }
}

/// The cluster's addresses of one family.
struct Pool {
    cluster: Range,
    /// Prefix of a node's range.
    prefix: u32,
    /// What is taken, and how often. None is smaller than a node's range or larger than the cluster's.
    taken: HashMap<Range, usize>,
    /// How many of `taken` have each prefix: mostly there is only a node's.
    prefixes: BTreeMap<u32, usize>,
    /// Where it is looked first: what became free is given again only after all others.
    next: u128,
    /// Nothing was free, and nothing was given back since.
    full: bool,
    numbers: Numbers,
}

/// What happened to a pool, in ranges of a node's size.
struct Numbers {
    /// Taken now.
    used: f64,
    allocations: f64,
    releases: f64,
    /// Ranges that were passed over to find a free one.
    tries: Histogram,
}

impl Default for Numbers {
    fn default() -> Self {
        Self { used: 0.0, allocations: 0.0, releases: 0.0, tries: Histogram::new(TRIES) }
    }
}

/// A family under upstream's name, with its kind, its help and its value.
type Family = (&'static str, &'static str, &'static str, fn(&Pool) -> f64);

/// All but the histogram. The misspelt name is upstream's.
const FAMILIES: [Family; 4] = [
    (
        "node_ipam_controller_cidrset_cidrs_allocations_total",
        "counter",
        "Counter measuring total number of CIDR allocations.",
        |pool| pool.numbers.allocations,
    ),
    (
        "node_ipam_controller_cidrset_cidrs_releases_total",
        "counter",
        "Counter measuring total number of CIDR releases.",
        |pool| pool.numbers.releases,
    ),
    ("node_ipam_controller_cirdset_max_cidrs", "gauge", "Maximum number of CIDRs that can be allocated.", |pool| {
        pool.blocks(pool.cluster)
    }),
    ("node_ipam_controller_cidrset_usage_cidrs", "gauge", "Gauge measuring percentage of allocated CIDRs.", |pool| {
        pool.numbers.used / pool.blocks(pool.cluster)
    }),
];

impl Pool {
    fn new(cluster: &str, sizes: NodeCidrMaskSizes) -> Option<Self> {
        let cluster = Range::parse(cluster)?;
        let prefix = if cluster.width == 128 { sizes.v6 } else { sizes.v4 }.into();
        let fits = (cluster.prefix..=cluster.width).contains(&prefix);
        let (taken, prefixes, numbers) = Default::default();
        fits.then_some(Self { cluster, prefix, taken, prefixes, next: cluster.base, full: false, numbers })
    }

    /// How many ranges of a node's size a range has.
    fn blocks(&self, range: Range) -> f64 {
        f64::from(self.prefix.saturating_sub(range.prefix)).exp2()
    }

    /// How many of these nothing else than the range itself has taken.
    fn only_its(&self, range: Range) -> f64 {
        let larger = self.prefixes.range(..range.prefix).map(|(prefix, _)| self.cluster.around(range.base, *prefix));
        if larger.into_iter().any(|other| self.taken.contains_key(&other)) {
            return 0.0;
        }
        let mut blocks = self.blocks(range);
        if self.prefixes.range(range.prefix + 1..).next().is_some() {
            let within = |other: &&Range| other.prefix > range.prefix && range.meets(**other);
            // Those within others of them do not count twice.
            let inner: Vec<&Range> = self.taken.keys().filter(within).collect();
            let outermost = |r: &Range| !inner.iter().any(|other| other.prefix < r.prefix && other.meets(*r));
            blocks -= inner.iter().filter(|r| outermost(r)).map(|r| self.blocks(**r)).sum::<f64>();
        }
        blocks
    }

    /// What of a range counts here: all nodes' ranges that it meets, and none outside the cluster's.
    fn counted(&self, range: Range) -> Option<Range> {
        let cluster = self.cluster;
        let within = range.base.clamp(cluster.base, cluster.last());
        cluster.meets(range).then(|| range.around(within, range.prefix.clamp(cluster.prefix, self.prefix)))
    }

    fn take(&mut self, range: Range) {
        let Some(range) = self.counted(range) else { return };
        if let Some(held) = self.taken.get_mut(&range) {
            *held += 1;
            return;
        }
        let blocks = self.only_its(range);
        self.taken.insert(range, 1);
        *self.prefixes.entry(range.prefix).or_default() += 1;
        self.numbers.used += blocks;
        self.numbers.allocations += blocks;
    }

    /// Undoes one [`Pool::take`] of the same range.
    fn give_back(&mut self, range: Range) {
        let Some(range) = self.counted(range) else { return };
        let Some(held) = self.taken.get_mut(&range) else { return };
        *held -= 1;
        if *held > 0 {
            return;
        }
        self.taken.remove(&range);
        if let Some(count) = self.prefixes.get_mut(&range.prefix) {
            *count -= 1;
            if *count == 0 {
                self.prefixes.remove(&range.prefix);
            }
        }
        self.full = false;
        let blocks = self.only_its(range);
        self.numbers.used -= blocks;
        self.numbers.releases += blocks;
    }

    /// The largest range that is taken and has this address.
    fn taken_at(&self, address: u128) -> Option<Range> {
        let ranges = self.prefixes.keys().map(|prefix| self.cluster.around(address, *prefix));
        ranges.into_iter().find(|range| self.taken.contains_key(range))
    }

    /// Takes the next free range of a node's size.
    fn take_next(&mut self) -> Option<Range> {
        if self.full {
            return None;
        }
        let (mut at, mut wrapped, mut tries) = (self.next, false, 0.0);
        while let Some(taken) = self.taken_at(at) {
            tries += self.blocks(taken);
            let after = taken.last().checked_add(1).filter(|after| *after <= self.cluster.last());
            wrapped |= after.is_none();
            at = after.unwrap_or(self.cluster.base);
            if wrapped && at >= self.next {
                self.full = true;
                return None;
            }
        }
        self.numbers.tries.observe(tries);
        let range = self.cluster.around(at, self.prefix);
        self.take(range);
        let after = range.last().checked_add(1).filter(|after| *after <= self.cluster.last());
        self.next = after.unwrap_or(self.cluster.base);
        Some(range)
    }
}

/// What a node has.
#[derive(Default)]
struct Held {
    ranges: Vec<Range>,
    /// The informer does not show it yet.
    promised: bool,
}

/// Which node has which ranges.
struct Table {
    /// A pool of each of the cluster's ranges, or the text that is none.
    pools: Vec<Result<Pool, String>>,
    nodes: HashMap<String, Held>,
    /// Nodes for which there was no range.
    waiting: BTreeSet<String>,
}

/// The node's ranges that are there for the asking, or the cluster's range of which none is left.
pub(crate) struct Ranges(Mutex<Table>);

/// Why a node gets no range.
#[derive(Debug, PartialEq)]
struct NoneLeft {
    /// The cluster's range that has none left.
    cluster: String,
    /// The node did not wait before, and nobody did.
    news: (bool, bool),
}

impl Ranges {
    /// All free that Services do not have. Ranges of the cluster and of Services are separated by commas.
    pub(crate) fn new(cluster: &str, services: &str, sizes: NodeCidrMaskSizes) -> Self {
        let pool = |text: &str| Pool::new(text, sizes).ok_or_else(|| text.trim().to_owned());
        let mut pools: Vec<_> = cluster.split(',').map(pool).collect();
        for pool in pools.iter_mut().flatten() {
            services.split(',').filter_map(Range::parse).for_each(|range| pool.take(range));
        }
        let (nodes, waiting) = Default::default();
        Self(Mutex::new(Table { pools, nodes, waiting }))
    }

    /// A node is there with these ranges, or without any, or (`None`) is gone. Returns who waits and may get a range now.
    fn seen(&self, name: &str, shown: Option<&[String]>) -> Option<String> {
        let mut table = self.0.lock();
        let promised = table.nodes.get(name).is_some_and(|held| held.promised);
        // What was promised is on its way to a node that has none.
        if !(promised && shown.is_some_and(<[_]>::is_empty)) {
            let ranges: Vec<_> = shown.into_iter().flatten().filter_map(|text| Range::parse(text)).collect();
            if shown.is_none() || !ranges.is_empty() {
                table.waiting.remove(name);
            }
            table.hold(name, Held { ranges, promised: false });
        }
        table.call()
    }

    /// Ranges for a node that has none, the same until it is seen with some or gone.
    fn promise(&self, name: &str) -> Result<Vec<String>, NoneLeft> {
        let mut table = self.0.lock();
        let texts = |ranges: &[Range]| ranges.iter().map(Range::to_string).collect();
        if let Some(held) = table.nodes.get(name).filter(|held| held.promised) {
            return Ok(texts(&held.ranges));
        }
        match table.take_next() {
            Ok(ranges) => {
                let promised = texts(&ranges);
                table.waiting.remove(name);
                table.nodes.insert(name.to_owned(), Held { ranges, promised: true });
                Ok(promised)
            }
            Err(cluster) => {
                let first = table.waiting.is_empty();
                Err(NoneLeft { cluster, news: (table.waiting.insert(name.to_owned()), first) })
            }
        }
    }

    /// Takes back what was promised to a node that is gone.
    fn break_promise(&self, name: &str) {
        let mut table = self.0.lock();
        if table.nodes.get(name).is_some_and(|held| held.promised) {
            table.hold(name, Held::default());
        }
    }
}

impl Source for Ranges {
    fn write(&self, out: &mut String) {
        let table = self.0.lock();
        let pools = || table.pools.iter().flatten().map(|pool| (pool, format!("clusterCIDR=\"{}\"", pool.cluster)));
        for (name, kind, help, value) in FAMILIES {
            family(out, name, kind, help);
            pools().for_each(|(pool, label)| sample(out, name, &label, value(pool)));
        }
        let name = "node_ipam_controller_cidrset_allocation_tries_per_request";
        family(out, name, "histogram", "Ranges that were taken before a free one was found.");
        pools().for_each(|(pool, label)| pool.numbers.tries.write(name, &label, out));
    }
}

impl Table {
    fn hold(&mut self, name: &str, now: Held) {
        for pool in self.pools.iter_mut().flatten() {
            now.ranges.iter().for_each(|range| pool.take(*range));
        }
        let before =
            if now.ranges.is_empty() { self.nodes.remove(name) } else { self.nodes.insert(name.to_owned(), now) };
        for pool in self.pools.iter_mut().flatten() {
            before.iter().flat_map(|held| &held.ranges).for_each(|range| pool.give_back(*range));
        }
    }

    /// A range of each pool, or of none.
    fn take_next(&mut self) -> Result<Vec<Range>, String> {
        let mut ranges = Vec::with_capacity(self.pools.len());
        for at in 0..self.pools.len() {
            let taken = match &mut self.pools[at] {
                Ok(pool) => pool.take_next().ok_or_else(|| pool.cluster.to_string()),
                Err(text) => Err(text.clone()),
            };
            match taken {
                Ok(range) => ranges.push(range),
                Err(none_left) => {
                    for (pool, range) in self.pools.iter_mut().flatten().zip(ranges) {
                        pool.give_back(range);
                    }
                    return Err(none_left);
                }
            }
        }
        Ok(ranges)
    }

    /// Somebody who waits, if something may be free. One at a time: when that node is seen with its range, it is the next one's
    /// turn.
    fn call(&mut self) -> Option<String> {
        let free = self.pools.iter().all(|pool| pool.as_ref().is_ok_and(|pool| !pool.full));
        if free { self.waiting.pop_first() } else { None }
    }
}

/// The ranges that a node has.
fn ranges_of(node: &Node) -> Vec<String> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let all = spec.pod_cidrs.clone().filter(|all| !all.is_empty());
    all.or_else(|| spec.pod_cidr.clone().map(|one| vec![one])).unwrap_or_default()
}

pub(crate) fn watch(context: &Arc<Context>, queue: &Keys) {
    // Before anybody is served, all that is held is known: a handler hears of the nodes that are there at once.
    let (ranges, waiting) = (context.ranges.clone(), queue.clone());
    context.cache.nodes.subscribe(move |change| {
        let Some(name) = change.object().and_then(|node| node.metadata.name.as_deref()) else { return };
        let shown = change.new.as_deref().map(ranges_of);
        if let Some(next) = ranges.seen(name, shown.as_deref()) {
            waiting.add((String::new(), next));
        }
    });
    watch_own(&context.cache.nodes, queue);
}

/// Looks at one node.
pub(crate) async fn reconcile(context: Arc<Context>, key: Key) -> Outcome {
    let Some(node) = context.cache.nodes.get(&key) else {
        // It may have gone while it was promised something.
        context.ranges.break_promise(&key.1);
        return Ok(None);
    };
    if node.metadata.deletion_timestamp.is_some() || !ranges_of(&node).is_empty() {
        return Ok(None);
    }
    let recorder = context.recorder("cidrAllocator");
    let tell = |status: &str| recorder.normal(&*node, status, format!("Node {} status is now: {status}", key.1));
    let ranges = match context.ranges.promise(&key.1) {
        Ok(ranges) => ranges,
        Err(NoneLeft { cluster, news: (waits_now, first) }) => {
            if first {
                tracing::warn!(node = key.1, range = cluster, "no range of pod addresses is left for a node");
            }
            if waits_now {
                tell("CIDRNotAvailable");
            }
            return Ok(Some(WITHOUT_RANGE));
        }
    };
    // Without a version: nodes change all the time, and one that has got ranges meanwhile keeps them.
    let patch =
        json!({"metadata": {"uid": node.metadata.uid}, "spec": {"podCIDR": ranges.first(), "podCIDRs": ranges}});
    let written = context.client.cluster::<Node>().patch(&key.1, None, PatchType::Merge, &patch).await;
    // The promise holds for the next try: nobody knows whether a write that was not answered was carried out.
    written.map(|_| None).inspect_err(|error| {
        if !error.is_not_found() && !error.is_conflict() {
            tell("CIDRAssignmentFailed");
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(cluster: &str, bits: u8) -> Ranges {
        Ranges::new(cluster, "", NodeCidrMaskSizes { v4: bits, v6: bits })
    }

    fn see(ranges: &Ranges, name: &str, shown: &[&str]) -> Option<String> {
        let shown: Vec<String> = shown.iter().map(|text| (*text).to_owned()).collect();
        ranges.seen(name, Some(&shown))
    }

    #[test]
    fn ranges_meet_no_other() {
        let two = ["10.244.0.0/24", "10.244.1.0/24"];
        for (cluster, bits, taken, wanted) in [
            ("10.244.0.0/16", 24, &two[..], Some("10.244.2.0/24")),
            ("10.244.0.0/23", 24, &two, None),
            ("10.244.0.0/16", 26, &two, Some("10.244.2.0/26")),
            ("10.244.0.0/16", 22, &two, Some("10.244.4.0/22")),
            ("10.244.0.0/16", 24, &["10.244.1.0/24", "10.244.0.0/26"], Some("10.244.2.0/24")),
            ("10.244.0.0/16", 26, &["10.244.1.0/24", "10.244.0.0/26"], Some("10.244.0.64/26")),
            ("10.244.0.0/16", 24, &["10.0.0.0/8"], None),
            ("10.244.0.0/16", 24, &["10.244.0.0/17", "10.244.0.0/24"], Some("10.244.128.0/24")),
            ("10.0.0.0/8", 24, &["172.16.0.0/24", "nonsense", "fd00::/64"], Some("10.0.0.0/24")),
            ("10.0.0.7/8", 24, &[], Some("10.0.0.0/24")),
            ("255.255.255.0/24", 24, &["255.255.255.0/24"], None),
            ("nonsense", 24, &[], None),
            ("10.244.0.0/16", 12, &[], None),
            ("10.244.0.0/16", 33, &[], None),
            ("fd00:244::/48", 64, &["10.244.0.0/24", "fd00:244::/64"], Some("fd00:244:0:1::/64")),
            ("fd00:244::/64", 64, &["fd00:244::/64"], None),
            ("::/0", 128, &["::/1"], Some("8000::/128")),
            ("0.0.0.0/0", 8, &[], Some("0.0.0.0/8")),
        ] {
            let ranges = ranges(cluster, bits);
            see(&ranges, "other", taken);
            let got = ranges.promise("n").ok();
            assert_eq!(got, wanted.map(|range| vec![range.to_owned()]), "{cluster} {bits} {taken:?}");
        }
    }

    #[test]
    fn nodes_get_nothing_that_services_have() {
        for (cluster, services, wanted) in [
            ("10.0.0.0/16", "10.0.0.0/24", Some("10.0.1.0/24")),
            ("10.0.0.0/16", "10.0.0.0/20", Some("10.0.16.0/24")),
            ("10.0.0.0/16", "10.0.0.16/28", Some("10.0.1.0/24")),
            ("10.0.0.0/16", "10.0.0.0/8", None),
            ("10.0.0.0/16", "10.96.0.0/16", Some("10.0.0.0/24")),
            ("10.0.0.0/16", "fd00::/112, 10.0.0.0/24", Some("10.0.1.0/24")),
            ("10.0.0.0/16", "", Some("10.0.0.0/24")),
        ] {
            let ranges = Ranges::new(cluster, services, NodeCidrMaskSizes::default());
            assert_eq!(ranges.promise("n").ok().map(|all| all.concat()), wanted.map(str::to_owned), "{services}");
        }
    }

    #[test]
    fn numbers_are_in_ranges_of_a_nodes_size() {
        let ranges = Ranges::new("10.0.0.0/20,fd00::/60", "10.0.0.0/23", NodeCidrMaskSizes::default());
        ranges.promise("a").unwrap();
        // Within it, twice, above it, and outside of the cluster's.
        see(&ranges, "b", &["10.0.0.0/24"]);
        see(&ranges, "c", &["10.0.4.0/24"]);
        see(&ranges, "d", &["10.0.4.0/22"]);
        see(&ranges, "e", &["192.168.0.0/24"]);
        let check = |numbers: [(&str, f64); 5]| {
            let mut out = String::new();
            ranges.write(&mut out);
            for (name, value) in numbers {
                let line = format!("node_ipam_controller_{name}{{clusterCIDR=\"10.0.0.0/20\"}} {value}");
                assert!(out.lines().any(|l| l == line), "{line} is not in {out}");
            }
        };
        let (allocations, releases) = ("cidrset_cidrs_allocations_total", "cidrset_cidrs_releases_total");
        let (usage, most, tries) =
            ("cidrset_usage_cidrs", "cirdset_max_cidrs", "cidrset_allocation_tries_per_request_sum");
        // 2 of Services, 1 of `a`, 4 of `c` and `d`.
        check([(allocations, 7.0), (releases, 0.0), (usage, 7.0 / 16.0), (most, 16.0), (tries, 2.0)]);
        ranges.seen("d", None);
        check([(allocations, 7.0), (releases, 3.0), (usage, 4.0 / 16.0), (most, 16.0), (tries, 2.0)]);
        ranges.seen("b", None);
        ranges.seen("c", None);
        check([(allocations, 7.0), (releases, 4.0), (usage, 3.0 / 16.0), (most, 16.0), (tries, 2.0)]);
    }

    #[test]
    fn a_node_gets_a_range_of_each_family_or_none() {
        let both = Ranges::new("10.244.0.0/23, fd00:244::/48", "", NodeCidrMaskSizes { v4: 24, v6: 112 });
        assert_eq!(both.promise("a").unwrap(), ["10.244.0.0/24", "fd00:244::/112"]);
        see(&both, "b", &["10.244.1.0/24"]);
        let none_left = NoneLeft { cluster: "10.244.0.0/23".into(), news: (true, true) };
        assert_eq!(both.promise("c").unwrap_err(), none_left);
        let table = both.0.lock();
        assert_eq!(table.pools[1].as_ref().ok().unwrap().taken.len(), 1, "what the second family gave is given back");
    }

    /// One thing that happens to a cluster of four ranges: a node asks and gets one by its number (`a?0`) or none (`a?`), is seen
    /// with one (`a=0`) or without (`a=`), is gone (`a!`), or is found to be gone after a refused write (`a~`). After `>` comes
    /// who waits and is called.
    fn step(ranges: &Ranges, step: &str, case: &str) {
        let (what, called) =
            step.split_once('>').map_or((step, None), |(what, called)| (what, Some(called.to_owned())));
        let (name, rest) = what.split_at(1);
        let number = rest[1..].parse::<u8>().ok().map(|number| format!("10.0.{number}.0/24"));
        let shown: Vec<&str> = number.iter().map(String::as_str).collect();
        let got = match &rest[..1] {
            "?" => return assert_eq!(ranges.promise(name).ok().map(|all| all.concat()), number, "{case}: {step}"),
            "=" => see(ranges, name, &shown),
            "!" => ranges.seen(name, None),
            _ => {
                ranges.break_promise(name);
                None
            }
        };
        assert_eq!(got, called, "{case}: {step}");
    }

    #[test]
    fn promises_hold_until_seen_or_gone() {
        for (case, steps) in [
            ("a promise is kept", "a?0 a?0 a= a?0"),
            ("a promise counts", "a?0 b?1 a=0 c?2"),
            ("another range was given by hand", "a?0 a=3 b?1 c?2 d?0 e?"),
            ("what is free is given last", "a=0 a! b?0 b! c?1 d?2 e?3 f?0 g?"),
            ("two have the same by hand", "a=0 b=0 a! c?1 d?2 e?3 f? b!>f f?0"),
            ("a node that goes before its write", "a?0 a! b?1 c?2 d?3 e?0"),
            ("a node that went while it asked", "a! a?0 a~ b=1 c=2 d=3 b~ e?0 f?"),
            ("a node that is made anew", "a=0 a= a?0 a=0 b?1"),
            ("who waits is called one by one", "a=0 b=1 c=2 d=3 x? y? z? y! a!>x x?0 x=0>z z? b!>z"),
        ] {
            let ranges = ranges("10.0.0.0/22", 24);
            steps.split(' ').for_each(|one| step(&ranges, one, case));
        }
    }
}
