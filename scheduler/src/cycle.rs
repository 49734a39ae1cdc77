//! One cycle: what the filters need is worked out once, nodes are filtered until enough can take the pod, these are scored, the
//! best is chosen. If none can, why, and who could make room.

use std::borrow::Cow;
use std::sync::Arc;

use rand::{Rng, RngExt};

use crate::config::Profile;
use crate::extender::Advice;
use crate::plugins::devices::{Release, release, reservations};
use crate::plugins::preemption::{Budget, Candidate, by_importance, importance, protected};
use crate::plugins::volumes::{Patience, Promise, promised};
use crate::plugins::{Context, Filter, Fit, PLUGINS, Reasons, State, fit, index, statics};
use crate::queue::PluginSet;
use crate::view::{PodInfo, Slot, View};

/// With fewer nodes than this all are filtered.
const MIN_FEASIBLE: usize = 100;
/// Percentage of nodes that are filtered, of a small cluster; it falls by one each time this many nodes are added.
const PERCENTAGE: usize = 50;
/// See [`PERCENTAGE`].
const NODES_PER_PERCENT: usize = 125;
/// At least this percentage of the nodes is filtered.
const MIN_PERCENTAGE: usize = 5;
/// What a node that preemption cannot help says.
const NOT_HELPFUL: &str = "Preemption is not helpful for scheduling";
/// The plugin that claims of devices are asked of.
const DEVICES: &str = "DynamicResources";
/// What a node without less important pods says.
const NO_VICTIMS: &str = "No preemption victims found for incoming pod";

/// What became of a pod.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It goes to a node.
    Placed(Placement),
    /// It fits nowhere.
    Failed(Failure),
}

/// Where a pod goes.
#[derive(Clone, Debug)]
pub struct Placement {
    /// The node.
    pub slot: Slot,
    /// Volumes to bind first.
    pub promise: Promise,
    /// Nodes that were looked at, and that could take it.
    pub evaluated: usize,
    /// How many could take it.
    pub feasible: usize,
}

/// Why a pod fits nowhere.
#[derive(Clone, Debug)]
pub struct Failure {
    /// As users read it.
    pub message: String,
    /// The plugins that refused it.
    pub refused_by: PluginSet,
    /// Nodes on which room can be made, and who has to leave them.
    pub preemption: Vec<Candidate>,
    /// The node that was kept for it is of no use to it any more.
    pub clear_nomination: bool,
    /// A claim that lets go of its devices, which may help.
    pub release: Option<Release>,
}

impl Failure {
    /// One that nothing can be done about now.
    pub fn plain(message: String, refused_by: PluginSet) -> Self {
        Self { message, refused_by, preemption: Vec::new(), clear_nomination: false, release: None }
    }
}

/// Scores of nodes.
#[derive(Default)]
pub struct Scores {
    /// Sum of the weighted scores, per node.
    pub total: Vec<i64>,
    /// Plugin, weight, and its score per node.
    pub parts: Vec<(usize, i64, Vec<i64>)>,
}

/// A cycle under way.
pub struct Cycle<'a> {
    /// The cluster; as it was before, once the cycle is over.
    pub view: &'a mut View,
    profile: &'a Profile,
    pod: &'a Arc<PodInfo>,
    state: State,
    verdicts: Arc<Vec<u8>>,
    mask: u8,
    filters: Vec<(usize, Filter)>,
    /// Nothing but CPU, memory and the number of pods decides where the pod fits.
    numbers: bool,
}

/// A pod that no node can help: the plugin and why.
type Rejected = (usize, crate::plugins::Rejection);

impl<'a> Cycle<'a> {
    /// Works out what the filters need.
    pub fn start(view: &'a mut View, profile: &'a Profile, pod: &'a Arc<PodInfo>) -> Result<Self, Rejected> {
        let verdicts = statics::verdicts(view, pod, profile);
        let mut state = State::default();
        state.spread.verdicts = verdicts.clone();
        let mut filters = Vec::with_capacity(profile.filters.len());
        for enabled in &profile.filters {
            let plugin = &PLUGINS[enabled.plugin];
            let acts = match plugin.pre_filter {
                Some(prepare) => prepare(view, pod, profile, &mut state).map_err(|r| (enabled.plugin, r))?,
                None => true,
            };
            if let Some(filter) = plugin.filter.filter(|_| acts) {
                filters.push((enabled.plugin, filter));
            }
        }
        let mask = statics::mask(profile);
        let only_resources = matches!(filters[..], [(plugin, _)] if PLUGINS[plugin].name == "NodeResourcesFit");
        let numbers = only_resources && pod.class.requests.extra.is_empty();
        Ok(Self { view, profile, pod, state, verdicts, mask, filters, numbers })
    }

    fn context(&self) -> Context<'_> {
        Context { view: self.view, pod: self.pod, profile: self.profile, state: &self.state }
    }

    /// Whether a node can take the pod, also if the more important pods come for which room is made there.
    fn fits(&mut self, slot: Slot, why: Option<&mut Reasons>) -> (Fit, usize) {
        let bits = self.verdicts[slot as usize] & self.mask;
        if bits != 0 {
            let plugin = statics::explain(bits).and_then(|(name, _)| index(name)).unwrap_or(0);
            return (statics::refuse(bits, why), plugin);
        }
        if self.view.rows[slot as usize].nominated == 0 {
            return self.judge(slot, why);
        }
        let nominated = self.view.expected(slot, self.pod);
        if nominated.is_empty() {
            return self.judge(slot, why);
        }
        if self.numbers {
            return self.judge_with(slot, &nominated, why);
        }
        let name = self.view.nodes[slot as usize].name.clone();
        for pod in &nominated {
            self.add(pod, &name);
        }
        let mut reasons = Reasons::new();
        let verdict = self.judge(slot, Some(&mut reasons));
        for pod in &nominated {
            self.remove(pod);
        }
        match verdict {
            // Affinity may have been satisfied only by pods that are not there yet.
            (Fit::Yes, _) => self.judge(slot, why),
            refused => {
                if let Some(why) = why {
                    why.append(&mut reasons);
                }
                refused
            }
        }
    }

    /// As [`Self::judge`] once these pods are there too, with numbers alone.
    fn judge_with(&self, slot: Slot, nominated: &[Arc<PodInfo>], why: Option<&mut Reasons>) -> (Fit, usize) {
        let mut row = self.view.rows[slot as usize];
        for pod in nominated {
            row.count(&pod.class.requests, 1);
        }
        match (fit::lacks(&row, &self.pod.class.requests), self.filters.first()) {
            ([false, false, false], _) | (_, None) => (Fit::Yes, 0),
            (lacks, Some((plugin, _))) => (fit::refusal(&self.context(), slot, lacks, why), *plugin),
        }
    }

    fn judge(&self, slot: Slot, mut why: Option<&mut Reasons>) -> (Fit, usize) {
        let context = self.context();
        for (plugin, filter) in &self.filters {
            match filter(&context, slot, why.as_deref_mut()) {
                Fit::Yes => {}
                refused => return (refused, *plugin),
            }
        }
        (Fit::Yes, 0)
    }

    /// Puts a pod on a node to see what would be.
    fn add(&mut self, pod: &Arc<PodInfo>, node: &str) {
        let slot = self.view.place(pod.clone(), node);
        self.adjust(pod, slot, 1);
    }

    /// Takes a pod away to see what would be.
    fn remove(&mut self, pod: &Arc<PodInfo>) {
        if let Some((slot, _)) = self.view.displace(&pod.uid) {
            self.adjust(pod, slot, -1);
        }
    }

    fn adjust(&mut self, other: &PodInfo, slot: Slot, by: i64) {
        for (plugin, _) in &self.filters {
            if let Some(adjust) = PLUGINS[*plugin].adjust {
                adjust(self.view, self.pod, &mut self.state, other, slot, by);
            }
        }
    }

    /// Finds nodes that can take the pod, from `start` on until there are enough. Returns them and how many were looked at.
    pub fn feasible(&mut self, order: &[Slot], start: usize) -> (Vec<Slot>, usize) {
        let wanted = enough(order.len(), self.profile.percentage as usize);
        let mut feasible = Vec::with_capacity(wanted);
        let mut looked = 0;
        while looked < order.len() && feasible.len() < wanted {
            let at = start + looked;
            let slot = order[if at >= order.len() { at - order.len() } else { at }];
            looked += 1;
            if self.verdicts[slot as usize] & self.mask == 0 && self.fits(slot, None).0 == Fit::Yes {
                feasible.push(slot);
            }
        }
        (feasible, looked)
    }

    /// The nodes that extenders accept and that can still take the pod.
    fn advised(&mut self, advice: &Advice) -> Vec<Slot> {
        let mut slots: Vec<Slot> = advice.scores.keys().filter_map(|name| self.view.slot(name)).collect();
        slots.sort_unstable();
        slots.retain(|slot| self.takes(*slot));
        slots
    }

    /// Whether one node can take the pod.
    pub fn takes(&mut self, slot: Slot) -> bool {
        self.fits(slot, None).0 == Fit::Yes
    }

    /// Scores nodes.
    pub fn score(&mut self, nodes: &[Slot]) -> Scores {
        let mut scores = Scores { total: vec![0; nodes.len()], parts: Vec::new() };
        for enabled in &self.profile.scores {
            let plugin = &PLUGINS[enabled.plugin];
            let acts = plugin.pre_score.is_none_or(|p| p(self.view, self.pod, self.profile, &mut self.state, nodes));
            let Some(score) = plugin.score.filter(|_| acts) else { continue };
            let mut part = vec![0; nodes.len()];
            score(&self.context(), nodes, &mut part);
            for (total, one) in scores.total.iter_mut().zip(&part) {
                *total += enabled.weight * one;
            }
            scores.parts.push((enabled.plugin, enabled.weight, part));
        }
        scores
    }

    /// Which volumes and devices the pod's claims get on a node.
    pub fn promise(&self, slot: Slot) -> Promise {
        let context = self.context();
        let patience = Patience { volumes: self.profile.volume_patience, devices: self.profile.device_patience };
        Promise { devices: reservations(&context, slot), patience, ..promised(&context, slot) }
    }

    /// Why each node refuses: all reasons, the plugin, and whether less important pods could make room.
    pub fn diagnose(&mut self, order: &[Slot]) -> Diagnosis {
        if self.numbers {
            return self.diagnose_by_numbers(order);
        }
        let mut diagnosis = Diagnosis::default();
        let mut reasons = Reasons::new();
        for slot in order {
            let (fit, plugin) = self.fits(*slot, Some(&mut reasons));
            if fit == Fit::No {
                diagnosis.resolvable.push(*slot);
            }
            if fit != Fit::Yes {
                diagnosis.refused_by |= 1 << plugin;
                if PLUGINS[plugin].name == DEVICES {
                    diagnosis.by_devices.push(*slot);
                }
            }
            for reason in reasons.drain(..) {
                diagnosis.count(reason, 1);
            }
        }
        diagnosis
    }

    /// As [`Self::diagnose`], with numbers alone: nodes are counted by what they lack.
    fn diagnose_by_numbers(&self, order: &[Slot]) -> Diagnosis {
        let mut diagnosis = Diagnosis::default();
        let (mut by_bits, mut by_lack) = ([0; 256], [0; 8]);
        let requests = &self.pod.class.requests;
        for slot in order {
            let bits = self.verdicts[*slot as usize] & self.mask;
            if bits != 0 {
                by_bits[bits as usize] += 1;
                continue;
            }
            let mut row = self.view.rows[*slot as usize];
            if row.nominated > 0 {
                for pod in self.view.expected(*slot, self.pod) {
                    row.count(&pod.class.requests, 1);
                }
            }
            let lacks = fit::lacks(&row, requests);
            if lacks != [false; 3] && !fit::is_too_small(&row, requests, lacks) {
                diagnosis.resolvable.push(*slot);
            }
            by_lack[lacks.iter().fold(0, |pattern, lack| pattern << 1 | usize::from(*lack))] += 1;
        }
        for (bits, nodes) in by_bits.into_iter().enumerate().filter(|(_, nodes)| *nodes > 0) {
            if let Some((name, reason)) = statics::explain(bits as u8) {
                diagnosis.refused_by |= 1 << index(name).unwrap_or(0);
                diagnosis.count(reason, nodes);
            }
        }
        let plugin = self.filters.first().map_or(0, |(plugin, _)| *plugin);
        for (pattern, nodes) in by_lack.into_iter().enumerate().filter(|(pattern, nodes)| *pattern > 0 && *nodes > 0) {
            diagnosis.refused_by |= 1 << plugin;
            for reason in fit::texts([pattern & 4 != 0, pattern & 2 != 0, pattern & 1 != 0]) {
                diagnosis.count(reason.into(), nodes);
            }
        }
        diagnosis
    }

    /// What one node says: the plugin that refuses and its reasons, or nothing.
    pub fn verdict(&mut self, slot: Slot) -> Option<(&'static str, Vec<String>)> {
        let mut reasons = Reasons::new();
        match self.fits(slot, Some(&mut reasons)) {
            (Fit::Yes, _) => None,
            (_, plugin) => Some((PLUGINS[plugin].name, reasons.into_iter().map(Cow::into_owned).collect())),
        }
    }

    /// Looks for a node that can take the pod once less important pods have left it.
    fn preempt(
        &mut self,
        resolvable: &[Slot],
        all: usize,
        budgets: &[(Arc<str>, Budget)],
        random: &mut impl Rng,
    ) -> Result<Vec<Candidate>, Diagnosis> {
        let mut why = Diagnosis::default();
        why.count(NOT_HELPFUL.into(), all - resolvable.len());
        let offset = if resolvable.is_empty() { 0 } else { random.random_range(0..resolvable.len()) };
        let wanted = (resolvable.len() * self.profile.min_candidates_percentage / 100)
            .max(self.profile.min_candidates)
            .min(resolvable.len());
        let mut candidates = Vec::new();
        let mut unbroken = false;
        for i in 0..resolvable.len() {
            if unbroken && candidates.len() >= wanted {
                break;
            }
            match self.try_without(resolvable[(offset + i) % resolvable.len()], budgets) {
                Ok(candidate) => {
                    unbroken |= candidate.violations == 0;
                    candidates.push(candidate);
                }
                Err(reasons) => reasons.into_iter().for_each(|r| why.count(r, 1)),
            }
        }
        if candidates.is_empty() { Err(why) } else { Ok(candidates) }
    }

    /// As [`Self::try_without`], with numbers alone. Nothing is copied but who has to leave.
    fn try_by_resources(&self, slot: Slot, budgets: &[(Arc<str>, Budget)]) -> Result<Candidate, Reasons> {
        let requests = &self.pod.class.requests;
        let mut row = self.view.rows[slot as usize];
        if row.nominated > 0 {
            for pod in self.view.expected(slot, self.pod) {
                row.count(&pod.class.requests, 1);
            }
        }
        let mut lower: Vec<&Arc<PodInfo>> = self.less_important(slot).collect();
        for pod in &lower {
            row.count(&pod.class.requests, -1);
        }
        let lacks = fit::lacks(&row, requests);
        if lacks != [false; 3] {
            return Err(fit::texts(lacks).map(Cow::Borrowed).collect());
        }
        lower.sort_by(|a, b| by_importance(a, b));
        // Those that a budget protects come first, so that they stay if others can go instead.
        let (violating, others): (Vec<_>, Vec<_>) = match budgets {
            [] => (Vec::new(), lower),
            _ => protected(&lower, budgets),
        };
        let (mut victims, mut violations) = (Vec::new(), 0);
        for (pods, counts) in [(violating, 1), (others, 0)] {
            for pod in pods {
                row.count(&pod.class.requests, 1);
                if fit::lacks(&row, requests) != [false; 3] {
                    row.count(&pod.class.requests, -1);
                    violations += counts;
                    victims.push(pod.clone());
                }
            }
        }
        victims.sort_by_key(|p| importance(p));
        Ok(Candidate { slot, victims, violations })
    }

    /// The pods on a node that are less important than the pod.
    fn less_important(&self, slot: Slot) -> impl Iterator<Item = &Arc<PodInfo>> {
        let priority = self.pod.class.priority;
        self.view.nodes[slot as usize].pods.iter().filter(move |p| p.class.priority < priority)
    }

    /// Who would have to leave a node; as few and as unimportant as possible.
    fn try_without(&mut self, slot: Slot, budgets: &[(Arc<str>, Budget)]) -> Result<Candidate, Reasons> {
        if self.view.rows[slot as usize].lowest_priority >= self.pod.class.priority {
            return Err(vec![NO_VICTIMS.into()]);
        }
        if self.numbers {
            return self.try_by_resources(slot, budgets);
        }
        let node = self.view.nodes[slot as usize].name.clone();
        let mut lower: Vec<Arc<PodInfo>> = self.less_important(slot).cloned().collect();
        lower.sort_by(by_importance);
        for pod in &lower {
            self.remove(pod);
        }
        let mut reasons = Reasons::new();
        if self.fits(slot, Some(&mut reasons)).0 != Fit::Yes {
            for pod in &lower {
                self.add(pod, &node);
            }
            return Err(reasons);
        }
        let each: Vec<&Arc<PodInfo>> = lower.iter().collect();
        let (violating, others) = protected(&each, budgets);
        let mut victims = Vec::new();
        let mut violations = 0;
        for (pods, counts) in [(violating, 1), (others, 0)] {
            for pod in pods {
                self.add(pod, &node);
                if self.fits(slot, None).0 != Fit::Yes {
                    self.remove(pod);
                    violations += counts;
                    victims.push(pod.clone());
                }
            }
        }
        for pod in &victims {
            self.add(pod, &node);
        }
        victims.sort_by_key(|p| importance(p));
        Ok(Candidate { slot, victims, violations })
    }
}

/// Why nodes refuse a pod.
#[derive(Clone, Debug, Default)]
pub struct Diagnosis {
    reasons: Vec<(Cow<'static, str>, usize)>,
    /// The plugins that refused.
    pub refused_by: PluginSet,
    /// Nodes on which fewer pods could help.
    pub resolvable: Vec<Slot>,
    /// Nodes that the plugin for devices refuses.
    by_devices: Vec<Slot>,
}

impl Diagnosis {
    fn count(&mut self, reason: Cow<'static, str>, nodes: usize) {
        if nodes == 0 {
            return;
        }
        // There are few different reasons, and most texts are constants.
        let same = |(known, _): &&mut (Cow<'static, str>, usize)| {
            (known.as_ptr() == reason.as_ptr() && known.len() == reason.len()) || *known == reason
        };
        match self.reasons.iter_mut().find(same) {
            Some((_, count)) => *count += nodes,
            None => self.reasons.push((reason, nodes)),
        }
    }

    /// `0/3 nodes are available: 1 Insufficient cpu, 2 ...`
    pub fn message(&self, nodes: usize) -> String {
        let mut parts: Vec<String> = self.reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        parts.sort();
        let colon = if parts.is_empty() { "" } else { ": " };
        let dot = if parts.is_empty() { "" } else { "." };
        format!("0/{nodes} nodes are available{colon}{}{dot}", parts.join(", "))
    }
}

/// How many nodes that can take a pod are enough.
pub fn enough(nodes: usize, percentage: usize) -> usize {
    if nodes < MIN_FEASIBLE {
        return nodes;
    }
    let percentage = match percentage {
        0 => PERCENTAGE.saturating_sub(nodes / NODES_PER_PERCENT).max(MIN_PERCENTAGE),
        some => some,
    };
    (nodes * percentage / 100).max(MIN_FEASIBLE)
}

/// The nodes that can take a pod, for extenders to have their say; `None` if none can or it is rejected before.
pub fn candidates(view: &mut View, profile: &Profile, pod: &Arc<PodInfo>, start: usize) -> Option<Vec<Slot>> {
    let order = view.order();
    let mut cycle = Cycle::start(view, profile, pod).ok().filter(|_| !order.is_empty())?;
    let (feasible, _) = cycle.feasible(&order, start % order.len());
    (!feasible.is_empty()).then_some(feasible)
}

/// What a cycle decides with beside the cluster.
pub struct Terms<'a> {
    /// Budgets that preemption respects, with their namespaces.
    pub budgets: &'a [(Arc<str>, Budget)],
    /// What extenders said, if any has a say.
    pub advice: Option<&'a Advice>,
}

/// Schedules one pod. `start` is where the search for nodes begins and moves on; `random` breaks ties.
pub fn schedule(
    view: &mut View,
    profile: &Profile,
    pod: &Arc<PodInfo>,
    start: &mut usize,
    terms: &Terms<'_>,
    random: &mut impl Rng,
) -> Outcome {
    let order = view.order();
    if order.is_empty() {
        let message = "no nodes available to schedule pods".into();
        let every = profile.filters.iter().fold(0, |set, f| set | 1 << f.plugin);
        return Outcome::Failed(Failure::plain(message, every));
    }
    let nodes = order.len();
    let mut cycle = match Cycle::start(view, profile, pod) {
        Ok(cycle) => cycle,
        Err((plugin, rejection)) => return Outcome::Failed(rejected(profile, pod, nodes, plugin, &rejection)),
    };
    if let Some(slot) = cycle.view.slot(&pod.nominated)
        && !pod.nominated.is_empty()
        && terms.advice.is_none_or(|a| a.scores.contains_key(&pod.nominated))
        && cycle.takes(slot)
    {
        let promise = cycle.promise(slot);
        return Outcome::Placed(Placement { slot, promise, evaluated: 1, feasible: 1 });
    }
    let (feasible, evaluated) = match terms.advice {
        Some(advice) => (cycle.advised(advice), order.len()),
        None => cycle.feasible(&order, *start % nodes),
    };
    *start = (*start + evaluated) % nodes;
    if feasible.is_empty() {
        return Outcome::Failed(failed(&mut cycle, &order, terms, random));
    }
    let slot = match feasible[..] {
        [only] => only,
        _ => {
            let mut scores = cycle.score(&feasible);
            for (total, slot) in scores.total.iter_mut().zip(&feasible) {
                let name = &cycle.view.nodes[*slot as usize].name;
                *total += terms.advice.and_then(|a| a.scores.get(name)).copied().unwrap_or(0);
            }
            feasible[best(&scores.total, random)]
        }
    };
    let promise = cycle.promise(slot);
    Outcome::Placed(Placement { slot, promise, evaluated, feasible: feasible.len() })
}

/// One of the highest, at random.
fn best(scores: &[i64], random: &mut impl Rng) -> usize {
    let highest = scores.iter().copied().max().unwrap_or(0);
    let ties = scores.iter().filter(|s| **s == highest).count();
    let nth = if ties > 1 { random.random_range(0..ties) } else { 0 };
    scores.iter().enumerate().filter(|(_, s)| **s == highest).nth(nth).map_or(0, |(i, _)| i)
}

/// A pod that was rejected before any node was looked at.
fn rejected(
    profile: &Profile,
    pod: &PodInfo,
    nodes: usize,
    plugin: usize,
    rejection: &crate::plugins::Rejection,
) -> Failure {
    let mut message = format!("0/{nodes} nodes are available: {}.", rejection.reason);
    if profile.releases && PLUGINS[plugin].name != DEVICES {
        // Upstream's plugin for devices ends here because it was not asked before; its words are kept.
        message += " not found";
        return Failure::plain(message, 1 << plugin);
    }
    let comma = if profile.preempts { "," } else { "" };
    if profile.releases {
        message += &format!(" no new claims to deallocate{comma}");
    }
    if profile.preempts {
        message += &match pod.class.never_preempts {
            true => " preemption: not eligible due to preemptionPolicy=Never.".to_owned(),
            false => format!(" preemption: 0/{nodes} nodes are available: {nodes} {NOT_HELPFUL}."),
        };
    }
    Failure::plain(message, 1 << plugin)
}

/// A pod that no node can take: why, and whether others could make room.
fn failed(cycle: &mut Cycle<'_>, order: &[Slot], terms: &Terms<'_>, random: &mut impl Rng) -> Failure {
    let mut diagnosis = cycle.diagnose(order);
    if let Some(advice) = terms.advice {
        for (reason, nodes) in &advice.reasons {
            diagnosis.count(reason.clone().into(), *nodes);
        }
        // What changes an extender's mind is not known: anything may.
        diagnosis.refused_by |= cycle.profile.filters.iter().fold(0, |set, f| set | 1 << f.plugin);
    }
    let mut message = diagnosis.message(order.len());
    let (pod, profile) = (cycle.pod, cycle.profile);
    let release = profile.releases.then(|| release(&cycle.context(), &diagnosis.by_devices)).flatten();
    if profile.releases {
        let comma = if profile.preempts { "," } else { "" };
        message += &format!(" {}{comma}", released(cycle, release.as_ref()));
    }
    let mut preemption = Vec::new();
    let mut clear_nomination = false;
    if profile.preempts {
        let tried = match ineligible(cycle, &diagnosis) {
            Some(why) => Err(why.to_owned()),
            None => cycle
                .preempt(&diagnosis.resolvable, order.len(), terms.budgets, random)
                .map_err(|why| why.message(order.len())),
        };
        match tried {
            Ok(candidates) => preemption = candidates,
            Err(why) => {
                clear_nomination = !pod.nominated.is_empty() && !why.contains("terminating pod");
                message += &format!(" preemption: {why}");
            }
        }
    }
    Failure { message, refused_by: diagnosis.refused_by, preemption, clear_nomination, release }
}

/// What became of the attempt to make a claim let go of its devices.
fn released(cycle: &Cycle<'_>, release: Option<&Release>) -> &'static str {
    match release {
        Some(Release { delete: true, .. }) => "deletion of ResourceClaim completed",
        Some(_) => "deallocation of ResourceClaim completed",
        None if cycle.filters.iter().any(|(plugin, _)| PLUGINS[*plugin].name == DEVICES) => "still not schedulable",
        None => "no new claims to deallocate",
    }
}

/// Why a pod must not push out others.
fn ineligible(cycle: &Cycle<'_>, diagnosis: &Diagnosis) -> Option<&'static str> {
    let (pod, view) = (cycle.pod, &*cycle.view);
    if pod.class.never_preempts {
        return Some("not eligible due to preemptionPolicy=Never.");
    }
    let slot = view.slot(&pod.nominated).filter(|s| diagnosis.resolvable.contains(s))?;
    let leaving = |p: &Arc<PodInfo>| p.terminating && p.class.priority < pod.class.priority;
    let node = &view.nodes[slot as usize];
    node.pods.iter().any(leaving).then_some("not eligible due to a terminating pod on the nominated node.")
}
