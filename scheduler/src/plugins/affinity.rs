//! InterPodAffinity: near to some pods and away from others, for both the pod to place and the pods that are there.

use super::{Context, Fit, MAX_SCORE, Reasons, Rejection, State as All};
use crate::class::{Namespaces, Term};
use crate::config::Profile;
use crate::groups::Effect;
use crate::intern::Sym;
use crate::matchers::{MatcherKey, selects};
use crate::queue::Happening;
use crate::selector::Selector;
use crate::topology::NONE;
use crate::view::{PodInfo, Slot, View};

/// What is worked out once per pod.
#[derive(Default)]
pub struct State {
    /// Per required affinity term.
    near: Vec<Sums>,
    /// Per required anti-affinity term.
    apart: Vec<Sums>,
    /// Domains from which placed pods keep the pod out, per label.
    forbidden: Vec<Sums>,
    /// The pod's own affinity terms select it.
    selects_itself: bool,
    /// Points by domain, per label.
    points: Vec<(usize, Vec<i64>)>,
}

/// Pods by domain of a label.
struct Sums {
    topology: usize,
    counts: Vec<u32>,
}

impl Sums {
    fn new(view: &View, topology: usize) -> Self {
        Self { topology, counts: vec![0; view.topologies.get(topology).domains] }
    }

    fn at(&self, view: &View, slot: Slot) -> Option<u32> {
        let domain = view.topologies.get(self.topology).of(slot);
        (domain != NONE).then(|| self.counts[domain as usize])
    }

    fn add(&mut self, view: &View, slot: Slot, by: i64) {
        let domain = view.topologies.get(self.topology).of(slot);
        if domain != NONE {
            let count = &mut self.counts[domain as usize];
            *count = count.saturating_add_signed(by as i32);
        }
    }
}

fn topology(view: &mut View, key: Sym) -> usize {
    let View { topologies, nodes, .. } = view;
    topologies.ensure(key, nodes.iter().map(|n| &n.labels))
}

fn pairs(terms: &[Term]) -> Vec<(Namespaces, Option<Selector>)> {
    let mut pairs: Vec<_> = terms.iter().map(|t| (t.namespaces.clone(), t.selector.clone())).collect();
    pairs.sort();
    pairs
}

/// Pods by domain that all pairs select.
fn count(view: &mut View, all: Vec<(Namespaces, Option<Selector>)>, key: Sym) -> Sums {
    let id = view.matcher(MatcherKey { all, live_only: false });
    let topology = topology(view, key);
    let mut sums = Sums::new(view, topology);
    let domains = view.topologies.get(topology);
    for (slot, pods) in view.matchers.counts(id).iter().enumerate() {
        let domain = domains.of(slot as Slot);
        if *pods > 0 && domain != NONE {
            sums.counts[domain as usize] += pods;
        }
    }
    sums
}

fn select(terms: &[Term], view: &View, other: &PodInfo) -> bool {
    let labels = view.namespaces.get(&other.class.namespace);
    terms.iter().all(|t| selects(&t.namespaces, t.selector.as_ref(), &other.class, labels))
}

/// Counts what the required terms select.
pub fn pre_filter(view: &mut View, pod: &PodInfo, _: &Profile, state: &mut All) -> Result<bool, Rejection> {
    let state = &mut state.affinity;
    *state = State::default();
    let class = &pod.class;
    for term in &class.affinity {
        // A pod counts for affinity only if all terms select it.
        state.near.push(count(view, pairs(&class.affinity), term.key));
    }
    for term in &class.anti_affinity {
        state.apart.push(count(view, pairs(std::slice::from_ref(term)), term.key));
    }
    state.selects_itself = select(&class.affinity, view, pod);
    view.classes.refresh(pod.class_id, &view.matchers, &view.groups, &view.namespaces);
    for id in view.classes.groups(pod.class_id).iter() {
        let group = view.groups.get(*id);
        if group.effect != Effect::Forbids || group.nodes.is_empty() {
            continue;
        }
        let topology = topology(view, group.term.key);
        let sums = forbidden(view, state, topology);
        for (slot, pods) in &view.groups.get(*id).nodes {
            sums.add(view, *slot, i64::from(*pods));
        }
    }
    state.forbidden.retain(|sums| sums.counts.iter().any(|count| *count > 0));
    Ok(!(state.near.is_empty() && state.apart.is_empty() && state.forbidden.is_empty()))
}

/// The domains of a label from which pods keep the pod out.
fn forbidden<'a>(view: &View, state: &'a mut State, topology: usize) -> &'a mut Sums {
    let at = state.forbidden.iter().position(|f| f.topology == topology).unwrap_or_else(|| {
        state.forbidden.push(Sums::new(view, topology));
        state.forbidden.len() - 1
    });
    &mut state.forbidden[at]
}

/// Near to what the pod requires, away from what it and the others require.
pub fn filter(context: &Context<'_>, slot: Slot, why: Option<&mut Reasons>) -> Fit {
    let (state, view) = (&context.state.affinity, context.view);
    let (fit, reason) = if !near(state, view, slot) {
        (Fit::Never, "node(s) didn't match pod affinity rules")
    } else if state.apart.iter().any(|s| s.at(view, slot).is_some_and(|pods| pods > 0)) {
        (Fit::No, "node(s) didn't match pod anti-affinity rules")
    } else if state.forbidden.iter().any(|s| s.at(view, slot).is_some_and(|pods| pods > 0)) {
        (Fit::No, "node(s) didn't satisfy existing pods anti-affinity rules")
    } else {
        return Fit::Yes;
    };
    if let Some(why) = why {
        why.push(reason.into());
    }
    fit
}

fn near(state: &State, view: &View, slot: Slot) -> bool {
    let mut all = true;
    for term in &state.near {
        match term.at(view, slot) {
            None => return false,
            Some(pods) => all &= pods > 0,
        }
    }
    // The first of a group of pods that want to be near each other may start anywhere.
    all || (state.selects_itself && state.near.iter().all(|s| s.counts.iter().all(|c| *c == 0)))
}

/// Counts a pod that comes or goes while something is tried out.
pub fn adjust(view: &mut View, pod: &PodInfo, state: &mut All, other: &PodInfo, slot: Slot, by: i64) {
    let (state, class) = (&mut state.affinity, &pod.class);
    if !state.near.is_empty() && select(&class.affinity, view, other) {
        state.near.iter_mut().for_each(|s| s.add(view, slot, by));
    }
    for (sums, term) in state.apart.iter_mut().zip(&class.anti_affinity) {
        if select(std::slice::from_ref(term), view, other) {
            sums.add(view, slot, by);
        }
    }
    for term in &other.class.anti_affinity {
        if !select(std::slice::from_ref(term), view, pod) {
            continue;
        }
        let topology = topology(view, term.key);
        forbidden(view, state, topology).add(view, slot, by);
    }
}

/// Adds up points by domain.
pub fn pre_score(view: &mut View, pod: &PodInfo, profile: &Profile, state: &mut All, _: &[Slot]) -> bool {
    let state = &mut state.affinity;
    state.points.clear();
    for (weight, term) in &pod.class.preferred_pods {
        let sums = count(view, pairs(std::slice::from_ref(term)), term.key);
        let points = points(state, view, sums.topology);
        for (point, pods) in points.iter_mut().zip(&sums.counts) {
            *point += i64::from(*weight) * i64::from(*pods);
        }
    }
    view.classes.refresh(pod.class_id, &view.matchers, &view.groups, &view.namespaces);
    for id in view.classes.groups(pod.class_id).iter() {
        let group = view.groups.get(*id);
        let weight = match group.effect {
            Effect::Forbids => 0,
            Effect::Requires => profile.hard_pod_affinity_weight,
            Effect::Weighs(_) if profile.ignore_preferred_terms => 0,
            Effect::Weighs(weight) => i64::from(weight),
        };
        if weight == 0 || group.nodes.is_empty() {
            continue;
        }
        let topology = topology(view, group.term.key);
        let points = points(state, view, topology);
        let domains = view.topologies.get(topology);
        for (slot, pods) in &view.groups.get(*id).nodes {
            let domain = domains.of(*slot);
            if domain != NONE {
                points[domain as usize] += weight * i64::from(*pods);
            }
        }
    }
    state.points.iter().any(|(_, points)| points.iter().any(|p| *p != 0))
}

fn points<'a>(state: &'a mut State, view: &View, topology: usize) -> &'a mut Vec<i64> {
    let at = state.points.iter().position(|(t, _)| *t == topology).unwrap_or_else(|| {
        state.points.push((topology, vec![0; view.topologies.get(topology).domains]));
        state.points.len() - 1
    });
    &mut state.points[at].1
}

/// The points of the node's domains, between the worst and the best candidate.
pub fn score(context: &Context<'_>, nodes: &[Slot], scores: &mut [i64]) {
    for (score, slot) in scores.iter_mut().zip(nodes) {
        *score = 0;
        for (topology, points) in &context.state.affinity.points {
            let domain = context.view.topologies.get(*topology).of(*slot);
            if domain != NONE {
                *score += points[domain as usize];
            }
        }
    }
    let least = scores.iter().copied().min().unwrap_or(0);
    let most = scores.iter().copied().max().unwrap_or(0);
    for score in scores.iter_mut() {
        let part = if most > least { (*score - least) as f64 / (most - least) as f64 } else { 0.0 };
        *score = (MAX_SCORE as f64 * part) as i64;
    }
}

/// Pods came that the pod wants to be near to, pods left that kept it away, or nodes came.
pub fn hint(view: &View, pod: &PodInfo, what: &Happening) -> bool {
    let class = &pod.class;
    let wants = |other: &PodInfo| !class.affinity.is_empty() && select(&class.affinity, view, other);
    let avoids = |other: &PodInfo| {
        class.anti_affinity.iter().any(|t| select(std::slice::from_ref(t), view, other))
            || other.class.anti_affinity.iter().any(|t| select(std::slice::from_ref(t), view, pod))
    };
    match what {
        Happening::Node { change, .. } => change.added || change.labels,
        Happening::Itself => true,
        Happening::Came { pod: other, .. } => wants(other),
        Happening::Left { pod: other, .. } => avoids(other),
        Happening::Relabelled { old, new } => (!wants(old) && wants(new)) || (avoids(old) && !avoids(new)),
        _ => false,
    }
}
