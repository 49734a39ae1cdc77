//! Traffic that stays in its zone by the mode `Auto`: each endpoint gets a hint for one zone, so that zones have endpoints
//! as they have processors, and no endpoint gets much more traffic than without hints.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointHints, EndpointSlice, ForZone};
use keelson_machinery::quantity::Quantity;

use super::slice_plan::Plan;
use super::slices::ZONE;
use crate::node::health::ready_status;

/// Annotations that turn it on: today's name and the one before.
const MODES: [&str; 2] = ["service.kubernetes.io/topology-aware-hints", "service.kubernetes.io/topology-mode"];
/// Nodes with these labels run no workload.
const CONTROL_PLANE: [&str; 2] = ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"];
/// By how much an endpoint may get more than its share.
const OVERLOAD: f64 = 0.2;

/// The share of each zone in the processors of all; `None` if it cannot be told.
pub type Shares = Option<BTreeMap<String, f64>>;

/// Whether a Service asks for it.
pub fn is_auto(service: &Service) -> bool {
    let annotations = service.metadata.annotations.as_ref();
    let mode = MODES.iter().find_map(|name| annotations?.get(*name));
    mode.is_some_and(|mode| matches!(mode.as_str(), "Auto" | "auto"))
}

/// What a node adds to its zone; `None`: it does not count.
pub fn part(node: &Node) -> Option<(String, i64)> {
    let labels = node.metadata.labels.as_ref();
    if labels.is_some_and(|l| CONTROL_PLANE.iter().any(|name| l.contains_key(*name))) || ready_status(node) != "True" {
        return None;
    }
    let zone = labels.and_then(|l| l.get(ZONE)).cloned().unwrap_or_default();
    let cpu = node.status.as_ref().and_then(|s| s.allocatable.as_ref()?.get("cpu"));
    Some((zone, cpu.and_then(|q| Quantity::parse(&q.0).ok()).map_or(0, |q| q.millis())))
}

/// The zones' shares. A node without a zone or processors makes all unknown.
pub fn shares(nodes: &[Arc<Node>]) -> Shares {
    let mut zones: BTreeMap<String, i64> = BTreeMap::new();
    for (zone, cpu) in nodes.iter().filter_map(|n| part(n)) {
        if zone.is_empty() || cpu <= 0 {
            return None;
        }
        *zones.entry(zone).or_default() += cpu;
    }
    let total: i64 = zones.values().sum();
    (zones.len() > 1).then(|| zones.into_iter().map(|(zone, cpu)| (zone, cpu as f64 / total as f64)).collect())
}

/// How many endpoints a zone has to have.
struct Allocation {
    most: usize,
    desired: f64,
}

fn allocations(shares: &Shares, endpoints: usize) -> Result<BTreeMap<String, Allocation>, String> {
    let Some(shares) = shares else {
        let why = "Insufficient Node information: allocatable CPU or zone not specified on one or more nodes";
        return Err(why.into());
    };
    let counts = format!("({endpoints} endpoints, {} zones)", shares.len());
    if shares.len() > endpoints {
        return Err(format!("Insufficient number of endpoints {counts}"));
    }
    let least = |share: f64| (share * endpoints as f64 / (1.0 + OVERLOAD)).ceil() as usize;
    let total: usize = shares.values().map(|share| least(*share)).sum();
    let Some(spare) = endpoints.checked_sub(total) else {
        let why = "Unable to allocate minimum required endpoints to each zone without exceeding overload threshold";
        return Err(format!("{why} {counts}"));
    };
    let allocation = |share: f64| {
        let least = least(share);
        Allocation { most: least + spare, desired: (share * endpoints as f64).max(least as f64) }
    };
    Ok(shares.iter().map(|(zone, share)| (zone.clone(), allocation(*share))).collect())
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|c| c.ready) == Some(true)
}

fn endpoints(slice: &EndpointSlice) -> impl Iterator<Item = &Endpoint> {
    slice.endpoints.iter().flatten().filter(|e| is_ready(e))
}

fn zones_of(endpoint: &Endpoint) -> impl Iterator<Item = &String> {
    endpoint.hints.iter().flat_map(|h| h.for_zones.iter().flatten().map(|z| &z.name))
}

fn hint(zone: &str) -> Option<EndpointHints> {
    Some(EndpointHints { for_zones: Some(vec![ForZone { name: zone.into() }]), for_nodes: None })
}

/// Whether any endpoint of these slices has a hint.
pub fn has_hints<'a>(mut slices: impl Iterator<Item = &'a EndpointSlice>) -> bool {
    slices.any(|s| s.endpoints.iter().flatten().any(|e| e.hints.is_some()))
}

/// The hints of a slice that stays as it is; `None` if it cannot stay: hints are missing, or there are too many.
fn kept(
    slice: &EndpointSlice,
    given: &BTreeMap<String, usize>,
    allocations: &BTreeMap<String, Allocation>,
) -> Option<BTreeMap<String, usize>> {
    let mut hints: BTreeMap<String, usize> = BTreeMap::new();
    for endpoint in endpoints(slice) {
        let mut zones = zones_of(endpoint).peekable();
        zones.peek()?;
        for zone in zones {
            *hints.entry(zone.clone()).or_default() += 1;
        }
    }
    let fits = |(zone, n): (&String, &usize)| {
        allocations.get(zone).is_some_and(|a| n + given.get(zone).copied().unwrap_or(0) <= a.most)
    };
    hints.iter().all(fits).then_some(hints)
}

/// How many endpoints each zone gives away and gets, so that each has about as many as it should.
fn moves(
    allocations: &BTreeMap<String, Allocation>,
    given: &BTreeMap<String, usize>,
) -> (BTreeMap<String, usize>, BTreeMap<String, usize>) {
    let mut too_many: BTreeMap<&str, f64> = BTreeMap::new();
    let mut too_few: BTreeMap<&str, f64> = BTreeMap::new();
    for (zone, allocation) in allocations {
        let surplus = given.get(zone).copied().unwrap_or(0) as f64 - allocation.desired;
        if surplus > 0.0 {
            too_many.insert(zone.as_str(), surplus);
        } else if surplus < 0.0 {
            too_few.insert(zone.as_str(), -surplus);
        }
    }
    let (mut gives, mut gets) = (BTreeMap::new(), BTreeMap::new());
    while let (Some((from, surplus)), Some((to, want))) = (most(&too_many), most(&too_few)) {
        if (surplus < 1.0 && want < 1.0) || surplus < 0.5 || want < 0.5 {
            break;
        }
        too_many.insert(from, surplus - 1.0);
        too_few.insert(to, want - 1.0);
        *gives.entry(from.to_owned()).or_insert(0) += 1;
        *gets.entry(to.to_owned()).or_insert(0) += 1;
    }
    (gives, gets)
}

/// The zone with most.
fn most<'a>(zones: &BTreeMap<&'a str, f64>) -> Option<(&'a str, f64)> {
    let some = zones.iter().filter(|(_, n)| **n > 0.0);
    some.max_by(|a, b| a.1.total_cmp(b.1)).map(|(zone, n)| (*zone, *n))
}

/// What became of the hints of one address type.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every endpoint that is ready has one.
    Given,
    /// There are none, and why.
    None(String),
}

/// Gives hints to the slices of one address type: those of the plan, and existing ones that cannot stay as they are.
pub fn apply(plan: &mut Plan, existing: &[Arc<EndpointSlice>], address_type: &str, shares: &Shares) -> Outcome {
    let of_type = |s: &EndpointSlice| s.address_type == address_type;
    let touched: Vec<Option<String>> = plan.update.iter().map(|s| s.metadata.name.clone()).collect();
    let gone: Vec<Option<String>> = plan.delete.iter().map(|s| s.metadata.name.clone()).collect();
    let stays =
        |s: &&Arc<EndpointSlice>| of_type(s) && !touched.contains(&s.metadata.name) && !gone.contains(&s.metadata.name);
    let unchanged: Vec<&Arc<EndpointSlice>> = existing.iter().filter(stays).collect();
    let written = plan.create.iter().chain(&plan.update).filter(|s| of_type(s));
    let count = written.chain(unchanged.iter().map(|s| &***s)).map(|s| endpoints(s).count()).sum();
    let outcome = match allocations(shares, count) {
        Ok(allocations) => give(plan, &unchanged, address_type, &allocations),
        Err(why) => Err(why),
    };
    let Err(why) = outcome else { return Outcome::Given };
    // None at all is better than some.
    let touched: Vec<Option<String>> = plan.update.iter().map(|s| s.metadata.name.clone()).collect();
    let hinted = |s: &&&Arc<EndpointSlice>| !touched.contains(&s.metadata.name) && has_hints(std::iter::once(&****s));
    let more: Vec<EndpointSlice> = unchanged.iter().filter(|s| hinted(s)).map(|s| (***s).clone()).collect();
    plan.update.extend(more);
    for slice in plan.create.iter_mut().chain(&mut plan.update).filter(|s| of_type(s)) {
        slice.endpoints.iter_mut().flatten().for_each(|e| e.hints = None);
    }
    Outcome::None(why)
}

fn give(
    plan: &mut Plan,
    unchanged: &[&Arc<EndpointSlice>],
    address_type: &str,
    allocations: &BTreeMap<String, Allocation>,
) -> Result<(), String> {
    let mut given: BTreeMap<String, usize> = BTreeMap::new();
    for slice in unchanged {
        match kept(slice, &given, allocations) {
            Some(hints) => hints.into_iter().for_each(|(zone, n)| *given.entry(zone).or_default() += n),
            None => plan.update.push((***slice).clone()),
        }
    }
    let mut open: Vec<&mut Endpoint> = Vec::new();
    for slice in plan.create.iter_mut().chain(&mut plan.update).filter(|s| s.address_type == address_type) {
        for endpoint in slice.endpoints.iter_mut().flatten() {
            endpoint.hints = None;
            if is_ready(endpoint) {
                open.push(endpoint);
            }
        }
    }
    // First each endpoint is for its own zone; then zones with too many give.
    for endpoint in &mut open {
        let Some(zone) = endpoint.zone.clone().filter(|z| !z.is_empty()) else {
            return Err("One or more endpoints do not have a zone specified".into());
        };
        endpoint.hints = hint(&zone);
        *given.entry(zone).or_default() += 1;
    }
    let (mut gives, mut gets) = moves(allocations, &given);
    for endpoint in open {
        let Some(from) = endpoint.zone.as_ref().and_then(|z| gives.get_mut(z)).filter(|n| **n > 0) else { continue };
        let Some((to, n)) = gets.iter_mut().find(|(_, n)| **n > 0) else { break };
        endpoint.hints = hint(to);
        *from -= 1;
        *n -= 1;
    }
    if given.is_empty() { Err("No hints allocated for zones".into()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn node(zone: &str, cpu: &str, ready: &str, more: Value) -> Arc<Node> {
        let mut value = json!({"metadata": {"labels": {ZONE: zone}}, "status": {"allocatable": {"cpu": cpu},
            "conditions": [{"type": "Ready", "status": ready}]}});
        keelson_machinery::patch::merge(&mut value, &more);
        Arc::new(serde_json::from_value(value).unwrap())
    }

    #[test]
    fn zones_share_as_they_have_processors() {
        let none = json!({});
        let control = json!({"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}});
        let shown = |nodes: &[Arc<Node>]| {
            shares(nodes).map(|s| s.into_iter().map(|(z, n)| format!("{z}:{n}")).collect::<Vec<_>>().join(" "))
        };
        let (a, b) = (node("a", "3", "True", none.clone()), node("b", "1000m", "True", none.clone()));
        for (what, nodes, expected) in [
            ("two", vec![a.clone(), b.clone()], Some("a:0.75 b:0.25")),
            ("one", vec![a.clone()], None),
            ("not ready", vec![a.clone(), b.clone(), node("b", "8", "False", none.clone())], Some("a:0.75 b:0.25")),
            ("control plane", vec![a.clone(), b.clone(), node("", "8", "True", control)], Some("a:0.75 b:0.25")),
            ("no zone", vec![a.clone(), b.clone(), node("", "1", "True", none.clone())], None),
            ("no processors", vec![a, b, node("c", "0", "True", none)], None),
        ] {
            assert_eq!(shown(&nodes).as_deref(), expected, "{what}");
        }
    }

    fn slice(name: &str, endpoints: &[(&str, Option<&str>)]) -> EndpointSlice {
        let endpoint = |(i, (zone, hint)): (usize, &(&str, Option<&str>))| {
            let hints = hint.map(|h| json!({"forZones": [{"name": h}]}));
            json!({"addresses": [format!("10.0.0.{i}")], "zone": zone, "conditions": {"ready": true}, "hints": hints})
        };
        let endpoints: Vec<Value> = endpoints.iter().enumerate().map(endpoint).collect();
        serde_json::from_value(json!({"metadata": {"name": name}, "addressType": "IPv4", "endpoints": endpoints}))
            .unwrap()
    }

    fn shown<'a>(slices: impl Iterator<Item = &'a EndpointSlice>) -> String {
        let zones = slices.flat_map(|s| s.endpoints.iter().flatten());
        zones.map(|e| zones_of(e).next().map_or("-", String::as_str)).collect::<Vec<_>>().join(" ")
    }

    fn halves() -> Shares {
        Some(BTreeMap::from([("a".to_owned(), 0.5), ("b".to_owned(), 0.5)]))
    }

    #[test]
    fn endpoints_are_for_their_zone_unless_it_has_too_many() {
        let thirds = Some(["a", "b", "c"].map(|z| (z.to_owned(), 1.0 / 3.0)).into());
        for (what, zones, shares, expected) in [
            ("as they are", &["a", "b"][..], halves(), Ok("a b")),
            ("one moves", &["a", "a", "a", "b"], halves(), Ok("b a a b")),
            ("an odd one", &["a", "a", "a", "a", "b", "b", "b"], halves(), Ok("a a a a b b b")),
            (
                "too uneven",
                &["a", "a", "b"],
                halves(),
                Err(
                    "Unable to allocate minimum required endpoints to each zone without exceeding overload threshold (3 endpoints, 2 zones)",
                ),
            ),
            ("all in one zone", &["a", "a"], halves(), Ok("b a")),
            ("too few", &["a"], halves(), Err("Insufficient number of endpoints (1 endpoints, 2 zones)")),
            (
                "unknown",
                &["a", "b"],
                None,
                Err("Insufficient Node information: allocatable CPU or zone not specified on one or more nodes"),
            ),
            ("no zone", &["a", ""], halves(), Err("One or more endpoints do not have a zone specified")),
            (
                "would overload",
                &["a", "b", "c", "a"],
                thirds,
                Err(
                    "Unable to allocate minimum required endpoints to each zone without exceeding overload threshold (4 endpoints, 3 zones)",
                ),
            ),
        ] {
            let endpoints: Vec<(&str, Option<&str>)> = zones.iter().map(|z| (*z, None)).collect();
            let mut plan = Plan { create: vec![slice("", &endpoints)], ..Plan::default() };
            let outcome = apply(&mut plan, &[], "IPv4", &shares);
            match expected {
                Ok(hints) => {
                    assert_eq!((outcome, shown(plan.create.iter()).as_str()), (Outcome::Given, hints), "{what}")
                }
                Err(why) => {
                    assert_eq!(outcome, Outcome::None(why.into()), "{what}");
                    assert!(!has_hints(plan.create.iter()), "{what}");
                }
            }
        }
    }

    #[test]
    fn slices_that_may_stay_are_not_written() {
        let good = Arc::new(slice("good", &[("a", Some("a")), ("b", Some("b"))]));
        let bare = Arc::new(slice("bare", &[("a", None), ("b", Some("b"))]));
        let uneven =
            Arc::new(slice("uneven", &[("a", Some("a")), ("a", Some("a")), ("a", Some("a")), ("b", Some("a"))]));
        for (what, existing, expected) in [
            ("as they should be", &good, ""),
            ("one is missing", &bare, "a b"),
            ("too many for a zone", &uneven, "b a a b"),
        ] {
            let mut plan = Plan::default();
            assert_eq!(apply(&mut plan, std::slice::from_ref(existing), "IPv4", &halves()), Outcome::Given, "{what}");
            assert_eq!(shown(plan.update.iter()), expected, "{what}");
            let mut plan = Plan::default();
            assert!(matches!(apply(&mut plan, std::slice::from_ref(existing), "IPv4", &None), Outcome::None(_)));
            assert!(
                !has_hints(plan.update.iter()) && plan.update.len() == 1,
                "{what}: hints go where they cannot stay"
            );
            let mut plan = Plan::default();
            apply(&mut plan, std::slice::from_ref(existing), "IPv6", &halves());
            assert!(plan.update.is_empty(), "{what}: another address type");
        }
        let mut plan = Plan { delete: vec![bare.clone()], ..Plan::default() };
        assert_eq!(apply(&mut plan, &[good, bare], "IPv4", &halves()), Outcome::Given);
        assert!(plan.update.is_empty(), "what goes needs no hints");
    }

    #[test]
    fn the_mode_is_an_annotation() {
        for (annotations, expected) in [
            (json!({"service.kubernetes.io/topology-mode": "Auto"}), true),
            (json!({"service.kubernetes.io/topology-mode": "auto"}), true),
            (json!({"service.kubernetes.io/topology-mode": "Disabled"}), false),
            (json!({"service.kubernetes.io/topology-aware-hints": "auto"}), true),
            (json!({}), false),
        ] {
            let service = serde_json::from_value(json!({"metadata": {"annotations": annotations}})).unwrap();
            assert_eq!(is_auto(&service), expected, "{annotations}");
        }
    }
}
