//! NodeResourcesFit and NodeResourcesBalancedAllocation: what nodes have left.

use std::borrow::Cow;

use super::{Context, Fit, MAX_SCORE, Reasons, State};
use crate::config::{Profile, Strategy};
use crate::devices::allocate::Node;
use crate::devices::totals::totals;
use crate::intern::Sym;
use crate::queue::Happening;
use crate::resources::Requests;
use crate::selector::NodeTerm;
use crate::view::{PodInfo, Row, Slot, View};

/// A resource that scores look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// CPU.
    Cpu,
    /// Memory.
    Memory,
    /// Any other.
    Other(Sym),
}

/// Whether what is requested still fits.
pub fn filter(context: &Context<'_>, slot: Slot, why: Option<&mut Reasons>) -> Fit {
    let requests = &context.pod.class.requests;
    let lacks = lacks(&context.view.rows[slot as usize], requests);
    if lacks == [false; 3] && requests.extra.is_empty() {
        return Fit::Yes;
    }
    refusal(context, slot, lacks, why)
}

/// Whether a node lacks room for one more pod, CPU, memory.
pub fn lacks(row: &Row, requests: &Requests) -> [bool; 3] {
    let lacks = |request: i64, allocatable: i64, used: i64| request > 0 && request > allocatable - used;
    [
        row.pods + 1 > row.allocatable_pods,
        lacks(requests.cpu, row.allocatable_cpu, row.cpu),
        lacks(requests.memory, row.allocatable_memory, row.memory),
    ]
}

/// Whether a node lacks CPU or memory that it would lack if it were empty too.
pub fn is_too_small(row: &Row, requests: &Requests, [_, cpu, memory]: [bool; 3]) -> bool {
    (cpu && requests.cpu > row.allocatable_cpu) || (memory && requests.memory > row.allocatable_memory)
}

/// What users read of [`lacks`].
pub fn texts(lacks: [bool; 3]) -> impl Iterator<Item = &'static str> {
    let texts = ["Too many pods", "Insufficient cpu", "Insufficient memory"];
    lacks.into_iter().zip(texts).filter(|(lacks, _)| *lacks).map(|(_, text)| text)
}

/// What a node says that lacks something of this, or of other resources.
pub fn refusal(context: &Context<'_>, slot: Slot, lacks: [bool; 3], mut why: Option<&mut Reasons>) -> Fit {
    let (row, node) = (&context.view.rows[slot as usize], &context.view.nodes[slot as usize]);
    let requests = &context.pod.class.requests;
    let (mut lacking, mut never) = (lacks != [false; 3], is_too_small(row, requests, lacks));
    if let Some(why) = why.as_deref_mut() {
        why.extend(texts(lacks).map(Cow::Borrowed));
    }
    for (resource, amount) in &requests.extra {
        let (allocatable, used) = node.extra(*resource);
        if *amount <= allocatable - used || context.profile.ignores(*resource, context.view.syms.text(*resource)) {
            continue;
        }
        // What the node has none of, devices may stand for: their plugin decides.
        let devices = &context.view.devices;
        if allocatable == 0 && context.profile.devices && devices.backed.class(*resource).is_some() {
            continue;
        }
        lacking = true;
        never |= *amount > allocatable;
        if let Some(why) = why.as_deref_mut() {
            why.push(format!("Insufficient {}", context.view.syms.text(*resource)).into());
        }
    }
    match (lacking, never) {
        (false, _) => Fit::Yes,
        (true, false) => Fit::No,
        (true, true) => Fit::Never,
    }
}

/// What a node would have requested of a resource with the pod on it, and what it has; 0 and 0 if the resource does not count.
fn share(context: &Context<'_>, slot: Slot, resource: Resource, exact: bool) -> (i64, i64) {
    let row = &context.view.rows[slot as usize];
    let requests = &context.pod.class.requests;
    match resource {
        Resource::Cpu if exact => (row.cpu + requests.cpu, row.allocatable_cpu),
        Resource::Cpu => (row.nonzero_cpu + requests.nonzero_cpu, row.allocatable_cpu),
        Resource::Memory if exact => (row.memory + requests.memory, row.allocatable_memory),
        Resource::Memory => (row.nonzero_memory + requests.nonzero_memory, row.allocatable_memory),
        Resource::Other(sym) => {
            let wanted = requests.extra.iter().find(|(s, _)| *s == sym).map_or(0, |(_, amount)| *amount);
            // Of a resource that the pod does not want, nodes need not keep any.
            if wanted == 0 {
                return (0, 0);
            }
            let (allocatable, used) = context.view.nodes[slot as usize].extra(sym);
            if allocatable == 0
                && let Some((devices, taken)) = backed(context, slot, sym)
            {
                return (taken + wanted, devices);
            }
            (used + wanted, allocatable)
        }
    }
}

/// The devices that a node can use of the class behind a resource, and how many of them somebody has; `None` without any.
fn backed(context: &Context<'_>, slot: Slot, resource: Sym) -> Option<(i64, i64)> {
    let view = context.view;
    let class = view.devices.class_behind(resource).filter(|_| context.profile.devices)?;
    let satisfies = |terms: &[NodeTerm]| super::devices::satisfies(view, slot, terms);
    let node = Node { name: &view.nodes[slot as usize].name, satisfies: &satisfies };
    Some(totals(&view.devices, class, &node)).filter(|(devices, _)| *devices > 0)
}

/// Scores by the profile's strategy.
pub fn score(context: &Context<'_>, nodes: &[Slot], scores: &mut [i64]) {
    let strategy = &context.profile.strategy;
    for (score, slot) in scores.iter_mut().zip(nodes) {
        let (mut sum, mut weights) = (0, 0);
        for (resource, weight) in &context.profile.fit_resources {
            let (requested, allocatable) = share(context, *slot, *resource, false);
            if allocatable == 0 {
                continue;
            }
            let one = strategy_score(strategy, requested, allocatable);
            if matches!(strategy, Strategy::RequestedToCapacityRatio(_)) && one <= 0 {
                continue;
            }
            sum += one * weight;
            weights += weight;
        }
        *score = match (weights, strategy) {
            (0, _) => 0,
            (_, Strategy::RequestedToCapacityRatio(_)) => (sum as f64 / weights as f64).round() as i64,
            _ => sum / weights,
        };
    }
}

fn strategy_score(strategy: &Strategy, requested: i64, allocatable: i64) -> i64 {
    match strategy {
        Strategy::LeastAllocated if requested > allocatable => 0,
        Strategy::LeastAllocated => (allocatable - requested) * MAX_SCORE / allocatable,
        Strategy::MostAllocated => requested.min(allocatable) * MAX_SCORE / allocatable,
        Strategy::RequestedToCapacityRatio(shape) if requested > allocatable => on_shape(shape, 100),
        Strategy::RequestedToCapacityRatio(shape) => on_shape(shape, requested * 100 / allocatable),
    }
}

/// The value of a piecewise linear function at `x`.
fn on_shape(shape: &[(i64, i64)], x: i64) -> i64 {
    for (i, (at, value)) in shape.iter().enumerate() {
        if x <= *at {
            if i == 0 {
                return *value;
            }
            let (before, start) = shape[i - 1];
            return start + (value - start) * (x - before) / (at - before);
        }
    }
    shape.last().map_or(0, |(_, value)| *value)
}

/// A pod that requests nothing is not balanced: it would always go to the same nodes.
pub fn pre_score_balanced(_: &mut View, pod: &PodInfo, profile: &Profile, _: &mut State, _: &[Slot]) -> bool {
    let requests = &pod.class.requests;
    profile.balanced_resources.iter().any(|r| match r {
        Resource::Cpu => requests.cpu > 0,
        Resource::Memory => requests.memory > 0,
        Resource::Other(sym) => requests.extra.iter().any(|(s, amount)| s == sym && *amount > 0),
    })
}

/// How much more alike the pod makes the shares of the resources that are requested. A node whose shares stay as alike as they
/// are gets three quarters of the points.
pub fn score_balanced(context: &Context<'_>, nodes: &[Slot], scores: &mut [i64]) {
    let resources = &context.profile.balanced_resources;
    let (mut before, mut after) = (Vec::with_capacity(resources.len()), Vec::with_capacity(resources.len()));
    for (score, slot) in scores.iter_mut().zip(nodes) {
        before.clear();
        after.clear();
        for resource in resources {
            let (requested, allocatable) = share(context, *slot, *resource, true);
            if allocatable != 0 {
                let own = own_request(context, *resource);
                before.push(((requested - own) as f64 / allocatable as f64).min(1.0));
                after.push((requested as f64 / allocatable as f64).min(1.0));
            }
        }
        *score = MAX_SCORE / 2 + (MAX_SCORE / 2 + evenness(&after) - evenness(&before)) / 2;
    }
}

fn own_request(context: &Context<'_>, resource: Resource) -> i64 {
    let requests = &context.pod.class.requests;
    match resource {
        Resource::Cpu => requests.cpu,
        Resource::Memory => requests.memory,
        Resource::Other(sym) => requests.extra.iter().find(|(s, _)| *s == sym).map_or(0, |(_, amount)| *amount),
    }
}

/// How alike shares are: all points less the standard deviation.
fn evenness(shares: &[f64]) -> i64 {
    let deviation = match shares {
        [] | [_] => 0.0,
        [a, b] => ((a - b) / 2.0).abs(),
        _ => {
            let mean = shares.iter().sum::<f64>() / shares.len() as f64;
            let squares: f64 = shares.iter().map(|p| (p - mean) * (p - mean)).sum();
            (squares / shares.len() as f64).sqrt()
        }
    };
    ((1.0 - deviation) * MAX_SCORE as f64) as i64
}

/// A node came or grew, or a pod left or shrank, so that the pod fits there now, beside those that room was made for.
pub fn hint(view: &View, pod: &PodInfo, what: &Happening) -> bool {
    let slot = match what {
        Happening::Node { slot, change } if change.added || change.allocatable => *slot,
        Happening::Left { slot, .. } => *slot,
        Happening::Itself => return true,
        // A class may stand behind a resource that no node has.
        Happening::Devices => {
            return pod.class.extended.iter().any(|ask| view.devices.backed.class(ask.resource).is_some());
        }
        _ => return false,
    };
    let (Some(row), Some(node)) = (view.rows.get(slot as usize), view.nodes.get(slot as usize)) else { return false };
    let (mut row, mut expected) = (*row, Vec::new());
    if row.nominated > 0 {
        expected = view.expected(slot, pod);
        expected.iter().for_each(|other| row.count(&other.class.requests, 1));
    }
    let requests = &pod.class.requests;
    let taken = |resource: Sym| {
        let all = expected.iter().flat_map(|other| &other.class.requests.extra);
        all.filter(|(other, _)| *other == resource).map(|(_, amount)| amount).sum::<i64>()
    };
    lacks(&row, requests) == [false; 3]
        && requests.extra.iter().all(|(resource, amount)| {
            let (allocatable, used) = node.extra(*resource);
            *amount <= allocatable - used - taken(*resource)
                || (allocatable == 0 && view.devices.backed.class(*resource).is_some())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strategies() {
        let shape = Strategy::RequestedToCapacityRatio(vec![(0, 0), (70, 100), (100, 50)]);
        for (strategy, requested, allocatable, expected) in [
            (&Strategy::LeastAllocated, 25, 100, 75),
            (&Strategy::LeastAllocated, 101, 100, 0),
            (&Strategy::MostAllocated, 25, 100, 25),
            (&Strategy::MostAllocated, 125, 100, 100),
            (&shape, 35, 100, 50),
            (&shape, 85, 100, 75),
            (&shape, 200, 100, 50),
        ] {
            assert_eq!(strategy_score(strategy, requested, allocatable), expected, "{strategy:?} {requested}");
        }
    }
}
