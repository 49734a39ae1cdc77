//! PodTopologySpread: pods that a constraint selects are spread over the domains of a node label.

use std::sync::Arc;

use super::{Context, Fit, MAX_SCORE, Reasons, Rejection, State as All, statics};
use crate::class::{Namespaces, Spread};
use crate::config::Profile;
use crate::matchers::MatcherKey;
use crate::queue::Happening;
use crate::selector::{Selector, node_label};
use crate::topology::NONE;
use crate::view::{PodInfo, Slot, View};

/// The label whose values are the hosts.
const HOSTNAME: &str = "kubernetes.io/hostname";

/// What is worked out once per pod.
#[derive(Default)]
pub struct State {
    /// Verdicts of filters on labels and taints, which decide which nodes count.
    pub verdicts: Arc<Vec<u8>>,
    hard: Vec<Hard>,
    soft: Vec<Soft>,
    /// Nodes that lack a label of a constraint score nothing.
    strict: bool,
}

/// A constraint that must hold.
struct Hard {
    rule: Spread,
    topology: usize,
    matcher: Option<u32>,
    /// Pods that count, by domain; `None` where no node of the domain counts.
    counts: Vec<Option<u32>>,
    selects_itself: bool,
    /// The fewest pods of a domain.
    least: u32,
    domains: usize,
}

/// A constraint that is a preference.
struct Soft {
    topology: usize,
    matcher: Option<u32>,
    /// Pods that count, by domain; `None` in domains without a candidate. Empty if each node is a domain.
    counts: Vec<Option<u32>>,
    weight: f64,
    max_skew: i32,
}

impl Hard {
    fn find_least(&mut self) {
        let least = self.counts.iter().flatten().copied().min();
        let few = self.domains < self.rule.min_domains.max(1) as usize;
        self.least = if few { 0 } else { least.unwrap_or(0) };
    }
}

/// The counter of a constraint's pods; none if the constraint selects nothing.
fn matcher(view: &mut View, pod: &PodInfo, selector: &Selector) -> Option<u32> {
    if selector.is_empty() {
        return None;
    }
    let namespaces = Namespaces { names: vec![pod.class.namespace.clone()], selector: None };
    Some(view.matcher(MatcherKey { all: vec![(namespaces, Some(selector.clone()))], live_only: true }))
}

fn topology(view: &mut View, key: crate::intern::Sym) -> usize {
    let View { topologies, nodes, .. } = view;
    topologies.ensure(key, nodes.iter().map(|n| &n.labels))
}

/// Whether a node counts for a constraint.
fn counts(rule: &Spread, verdict: u8) -> bool {
    verdict & statics::ABSENT == 0
        && !(rule.honor_affinity && verdict & statics::AFFINITY != 0)
        && !(rule.honor_taints && verdict & statics::TAINT != 0)
}

/// Counts pods by domain for the constraints that must hold.
pub fn pre_filter(view: &mut View, pod: &PodInfo, profile: &Profile, state: &mut All) -> Result<bool, Rejection> {
    state.spread.hard.clear();
    let defaults = defaults(view, pod, profile);
    for rule in pod.class.spread.iter().chain(&defaults).filter(|r| r.hard) {
        let matcher = matcher(view, pod, &rule.selector);
        let topology = topology(view, rule.key);
        let counts = vec![None; view.topologies.get(topology).domains];
        let selects_itself = !rule.selector.is_empty() && rule.selector.matches(&pod.class.labels);
        state.spread.hard.push(Hard {
            rule: rule.clone(),
            topology,
            matcher,
            counts,
            selects_itself,
            least: 0,
            domains: 0,
        });
    }
    if state.spread.hard.is_empty() {
        return Ok(false);
    }
    let State { verdicts, hard, .. } = &mut state.spread;
    let places: Vec<usize> = hard.iter().map(|h| h.topology).collect();
    for constraint in hard.iter_mut() {
        let topology = view.topologies.get(constraint.topology);
        let pods = constraint.matcher.map_or(&[][..], |m| view.matchers.counts(m));
        for (slot, verdict) in verdicts.iter().enumerate() {
            let domain = topology.of(slot as Slot);
            if domain == NONE || !counts(&constraint.rule, *verdict) {
                continue;
            }
            // A node counts only if it has the labels of all constraints.
            if places.len() > 1 && places.iter().any(|t| view.topologies.get(*t).of(slot as Slot) == NONE) {
                continue;
            }
            let count = &mut constraint.counts[domain as usize];
            constraint.domains += usize::from(count.is_none());
            *count.get_or_insert(0) += pods.get(slot).copied().unwrap_or(0);
        }
        constraint.find_least();
    }
    Ok(true)
}

/// The difference to the emptiest domain must stay within each constraint's limit.
pub fn filter(context: &Context<'_>, slot: Slot, why: Option<&mut Reasons>) -> Fit {
    for constraint in &context.state.spread.hard {
        let domain = context.view.topologies.get(constraint.topology).of(slot);
        if domain == NONE {
            if let Some(why) = why {
                why.push("node(s) didn't match pod topology spread constraints (missing required label)".into());
            }
            return Fit::Never;
        }
        let count = constraint.counts.get(domain as usize).copied().flatten().unwrap_or(0);
        let skew = i64::from(count) + i64::from(constraint.selects_itself) - i64::from(constraint.least);
        if skew > i64::from(constraint.rule.max_skew) {
            if let Some(why) = why {
                why.push("node(s) didn't match pod topology spread constraints".into());
            }
            return Fit::No;
        }
    }
    Fit::Yes
}

/// Counts a pod that comes or goes while something is tried out.
pub fn adjust(view: &mut View, pod: &PodInfo, state: &mut All, other: &PodInfo, slot: Slot, by: i64) {
    if other.terminating || other.class.namespace != pod.class.namespace {
        return;
    }
    let State { verdicts, hard, .. } = &mut state.spread;
    // The pods of a node that lacks a label of a constraint were not counted at first either.
    if hard.iter().any(|c| view.topologies.get(c.topology).of(slot) == NONE) {
        return;
    }
    for constraint in hard {
        let domain = view.topologies.get(constraint.topology).of(slot);
        let verdict = verdicts.get(slot as usize).copied().unwrap_or(statics::ABSENT);
        if constraint.matcher.is_none() || domain == NONE || !counts(&constraint.rule, verdict) {
            continue;
        }
        if constraint.rule.selector.matches(&other.class.labels)
            && let Some(Some(count)) = constraint.counts.get_mut(domain as usize)
        {
            *count = count.saturating_add_signed(by as i32);
            constraint.find_least();
        }
    }
}

/// The constraints of a pod without any of its own: the profile's, for the services and the owner that select it.
fn defaults(view: &mut View, pod: &PodInfo, profile: &Profile) -> Vec<Spread> {
    if !pod.class.spread.is_empty() || profile.default_constraints.is_empty() {
        return Vec::new();
    }
    let selector = view.owners.selector(&pod.class);
    if selector.is_empty() {
        return Vec::new();
    }
    profile.default_constraints.iter().map(|c| Spread { selector: selector.clone(), ..c.clone() }).collect()
}

/// Counts pods by domain for the constraints that are preferences.
pub fn pre_score(view: &mut View, pod: &PodInfo, profile: &Profile, state: &mut All, nodes: &[Slot]) -> bool {
    let defaults = defaults(view, pod, profile);
    let rules: Vec<&Spread> = pod.class.spread.iter().chain(&defaults).filter(|r| !r.hard).collect();
    let strict = !pod.class.spread.is_empty() || !profile.system_defaults;
    state.spread.soft.clear();
    state.spread.strict = strict;
    if rules.is_empty() {
        return false;
    }
    let hostname = view.syms.sym(HOSTNAME);
    let parts: Vec<(usize, Option<u32>)> =
        rules.iter().map(|r| (topology(view, r.key), matcher(view, pod, &r.selector))).collect();
    let has = |view: &View, slot: Slot| parts.iter().all(|(t, _)| view.topologies.get(*t).of(slot) != NONE);
    let taking: Vec<Slot> = nodes.iter().copied().filter(|s| !strict || has(view, *s)).collect();
    let verdicts = state.spread.verdicts.clone();
    for (rule, (topology, matcher)) in rules.iter().zip(&parts) {
        let per_node = rule.key == hostname;
        let (counts, domains) = if per_node {
            (Vec::new(), taking.len())
        } else {
            let has_all = |slot: Slot| !strict || has(view, slot);
            sum(view, *topology, *matcher, &taking, |slot| counts(rule, verdicts[slot as usize]) && has_all(slot))
        };
        let weight = (domains as f64 + 2.0).ln();
        let soft = Soft { topology: *topology, matcher: *matcher, counts, weight, max_skew: rule.max_skew };
        state.spread.soft.push(soft);
    }
    true
}

/// Pods by domain, over the domains in which there are candidates; and how many these are.
fn sum(
    view: &View,
    topology: usize,
    matcher: Option<u32>,
    candidates: &[Slot],
    counts: impl Fn(Slot) -> bool,
) -> (Vec<Option<u32>>, usize) {
    let topology = view.topologies.get(topology);
    let mut sums = vec![None; topology.domains];
    let mut domains = 0;
    for slot in candidates {
        let domain = topology.of(*slot);
        if domain != NONE && sums[domain as usize].is_none() {
            sums[domain as usize] = Some(0);
            domains += 1;
        }
    }
    // Nodes without the label that are candidates all the same are one more.
    domains += usize::from(candidates.iter().any(|slot| topology.of(*slot) == NONE));
    for (slot, pods) in matcher.map_or(&[][..], |m| view.matchers.counts(m)).iter().enumerate() {
        let domain = topology.of(slot as Slot);
        if *pods > 0
            && domain != NONE
            && counts(slot as Slot)
            && let Some(sum) = &mut sums[domain as usize]
        {
            *sum += pods;
        }
    }
    (sums, domains)
}

/// The fewer pods in the domain, the better.
pub fn score(context: &Context<'_>, nodes: &[Slot], scores: &mut [i64]) {
    let State { soft, strict, .. } = &context.state.spread;
    let view = context.view;
    let ignored = |slot: Slot| *strict && soft.iter().any(|c| view.topologies.get(c.topology).of(slot) == NONE);
    for (score, slot) in scores.iter_mut().zip(nodes) {
        if ignored(*slot) {
            *score = i64::MIN;
            continue;
        }
        let mut sum = 0.0;
        for constraint in soft {
            let domain = view.topologies.get(constraint.topology).of(*slot);
            if domain == NONE {
                continue;
            }
            let count = if constraint.counts.is_empty() {
                let pods = constraint.matcher.map_or(&[][..], |m| view.matchers.counts(m));
                pods.get(*slot as usize).copied().unwrap_or(0)
            } else {
                constraint.counts[domain as usize].unwrap_or(0)
            };
            sum += f64::from(count) * constraint.weight + f64::from(constraint.max_skew - 1);
        }
        *score = sum.round() as i64;
    }
    let taking = || scores.iter().copied().filter(|s| *s != i64::MIN);
    let (least, most) = (taking().min().unwrap_or(0), taking().max().unwrap_or(0));
    for score in scores.iter_mut() {
        *score = match *score {
            i64::MIN => 0,
            _ if most == 0 => MAX_SCORE,
            s => MAX_SCORE * (most + least - s) / most,
        };
    }
}

/// Nodes with the labels came or went, or pods that count did.
pub fn hint(view: &View, pod: &PodInfo, what: &Happening) -> bool {
    let rules = || pod.class.spread.iter().filter(|r| r.hard);
    let selected = |other: &PodInfo| {
        other.class.namespace == pod.class.namespace && rules().any(|r| r.selector.matches(&other.class.labels))
    };
    match what {
        Happening::Node { slot, change } if change.added || change.labels || change.taints => {
            let labels = &view.nodes[*slot as usize].labels;
            rules().all(|r| node_label(labels, r.key).is_some())
        }
        Happening::NodeGone | Happening::Itself => true,
        Happening::Left { pod: other, .. } | Happening::Came { pod: other, .. } => selected(other),
        Happening::Relabelled { old, new, .. } => selected(old) != selected(new),
        _ => false,
    }
}
