//! Zones: how fast nodes may be evicted depends on how many of their zone are down. If everything is down it is more
//! likely that the view is wrong than that all nodes are, and nobody is evicted.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;

use super::health::ready_status;

/// Nodes a second in a healthy zone.
const RATE: f64 = 0.1;
/// Nodes a second in a large zone of which many are down; in a small one none.
const SLOW_RATE: f64 = 0.01;
/// More nodes than this are a large zone.
const LARGE_ZONE_NODES: usize = 50;
/// From this share of nodes down on, a zone counts as partly down.
const UNHEALTHY_SHARE: f64 = 0.55;

/// How a zone is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Most nodes are ready.
    #[default]
    Normal,
    /// Many are not.
    Partial,
    /// None is.
    Full,
}

/// The zone of a node.
pub fn zone_of(node: &Node) -> String {
    let label = |keys: [&str; 2]| {
        let labels = node.metadata.labels.as_ref();
        keys.iter().find_map(|k| labels?.get(*k)).cloned().unwrap_or_default()
    };
    let region = label(["topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region"]);
    let zone = label(["topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"]);
    format!("{region}:{zone}")
}

/// State and size of each zone.
pub fn states<'a>(nodes: impl Iterator<Item = &'a Node>) -> BTreeMap<String, (State, usize)> {
    let mut counts: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for node in nodes {
        let count = counts.entry(zone_of(node)).or_default();
        match ready_status(node) {
            "True" => count.0 += 1,
            _ => count.1 += 1,
        }
    }
    let state = |(ready, down): (usize, usize)| match (ready, down) {
        (0, 1..) => State::Full,
        (ready, down) if down > 2 && down as f64 / (ready + down) as f64 >= UNHEALTHY_SHARE => State::Partial,
        _ => State::Normal,
    };
    counts.into_iter().map(|(zone, count)| (zone, (state(count), count.0 + count.1))).collect()
}

/// Nodes a second that may be evicted in each zone; `None` if all zones are down and nobody is.
pub fn rates(states: &BTreeMap<String, (State, usize)>) -> Option<BTreeMap<String, f64>> {
    if !states.is_empty() && states.values().all(|(state, _)| *state == State::Full) {
        return None;
    }
    let rate = |state: State, size: usize| match state {
        // One zone that is wholly down while others are not is believed to be.
        State::Normal | State::Full => RATE,
        State::Partial if size > LARGE_ZONE_NODES => SLOW_RATE,
        State::Partial => 0.0,
    };
    Some(states.iter().map(|(zone, (state, size))| (zone.clone(), rate(*state, *size))).collect())
}

/// A token bucket of one node.
#[derive(Clone, Copy, Debug)]
pub struct Limiter {
    tokens: f64,
    at: Duration,
}

impl Limiter {
    /// A full bucket; times count from any fixed moment.
    pub fn new(at: Duration) -> Self {
        Self { tokens: 1.0, at }
    }

    /// Whether one more node may be evicted now, at `rate` a second.
    pub fn allow(&mut self, rate: f64, now: Duration) -> bool {
        self.tokens = (self.tokens + now.saturating_sub(self.at).as_secs_f64() * rate).min(1.0);
        self.at = now;
        if rate <= 0.0 || self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn nodes(zone: &str, ready: usize, down: usize) -> Vec<Node> {
        let node = |status: &str| -> Node {
            serde_json::from_value(json!({"metadata": {"labels": {"topology.kubernetes.io/zone": zone}},
                "status": {"conditions": [{"type": "Ready", "status": status}]}}))
            .unwrap()
        };
        (0..ready).map(|_| node("True")).chain((0..down).map(|_| node("Unknown"))).collect()
    }

    #[test]
    fn zones_set_the_pace() {
        for (zones, expected) in [
            (vec![("a", 3, 0)], Some(vec![0.1])),
            (vec![("a", 2, 1)], Some(vec![0.1])),
            (vec![("a", 2, 3)], Some(vec![0.0])),
            (vec![("a", 30, 40)], Some(vec![0.01])),
            (vec![("a", 0, 1)], None),
            (vec![("a", 0, 3), ("b", 0, 1)], None),
            (vec![("a", 0, 3), ("b", 1, 0)], Some(vec![0.1, 0.1])),
            (vec![], Some(vec![])),
        ] {
            let all: Vec<Node> = zones.iter().flat_map(|(zone, ready, down)| nodes(zone, *ready, *down)).collect();
            let rates = rates(&states(all.iter())).map(|r| r.into_values().collect::<Vec<_>>());
            assert_eq!(rates, expected, "{zones:?}");
        }
    }

    #[test]
    fn a_limiter_gives_one_and_then_its_rate() {
        let at = Duration::from_secs;
        let mut limiter = Limiter::new(at(0));
        assert!(limiter.allow(0.1, at(0)));
        assert!(!limiter.allow(0.1, at(9)));
        assert!(limiter.allow(0.1, at(10)));
        assert!(!limiter.allow(0.0, at(100)));
        assert!(limiter.allow(0.1, at(110)) && !limiter.allow(0.1, at(110)));
    }
}
