//! Filters that look only at a node's labels, taints and name: NodeUnschedulable, NodeName, TaintToleration, NodeAffinity. What
//! they say is cached per class and worked out again only for nodes that changed. Their scores are here too.

use std::borrow::Cow;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Taint;

use super::{Context, Fit, PLUGINS, Reasons, Rejection, State, normalize};
use crate::class::Class;
use crate::classes::Verdicts;
use crate::config::Profile;
use crate::intern::Interner;
use crate::queue::Happening;
use crate::selector::node_label;
use crate::view::{NodeEntry, PodInfo, Slot, View};

/// The node is not among those that the pod names by `metadata.name`.
pub const NOT_NAMED: u8 = 1;
/// Cordoned.
pub const UNSCHEDULABLE: u8 = 2;
/// The pod asks for another node by name.
pub const NODE_NAME: u8 = 4;
/// A taint that is not tolerated.
pub const TAINT: u8 = 8;
/// The pod's node selector or affinity.
pub const AFFINITY: u8 = 16;
/// The profile's `addedAffinity`.
pub const ADDED_AFFINITY: u8 = 32;
/// There is no such node.
pub const ABSENT: u8 = 128;

const UNSCHEDULABLE_TAINT: &str = "node.kubernetes.io/unschedulable";

/// What the refusing bits mean to users, in the order in which filters run.
const MESSAGES: [(u8, &str); 6] = [
    (NOT_NAMED, "node(s) didn't satisfy plugin(s) [NodeAffinity]"),
    (UNSCHEDULABLE, "node(s) were unschedulable"),
    (NODE_NAME, "node(s) didn't match the requested node name"),
    (TAINT, "node(s) had untolerated taint(s)"),
    (ADDED_AFFINITY, "node(s) didn't match scheduler-enforced node affinity"),
    (AFFINITY, "node(s) didn't match Pod's node affinity/selector"),
];

/// What a cordoned node is to those who tolerate it.
fn cordon() -> Taint {
    Taint { key: UNSCHEDULABLE_TAINT.into(), effect: "NoSchedule".into(), ..Taint::default() }
}

/// Brings the cached verdicts for pods like this up to date.
pub fn verdicts(view: &mut View, pod: &PodInfo, profile: &Profile) -> Arc<Vec<u8>> {
    if view.static_log.len() > 4 * view.nodes.len() + 1024 {
        view.static_log.clear();
        view.classes.forget_verdicts();
    }
    let mut cached = view.classes.take_verdicts(&pod.class, &pod.node).unwrap_or_default();
    let bits = Arc::make_mut(&mut cached.bits);
    let name = (!pod.node.is_empty()).then_some(&*pod.node);
    let names = named_nodes(&pod.class);
    let judge = |slot: usize| {
        verdict(&view.nodes[slot], &pod.class, profile, &view.syms, name, names.as_deref().unwrap_or_default())
    };
    if bits.is_empty() || view.static_log.len() - cached.seen > view.nodes.len() {
        *bits = (0..view.nodes.len()).map(judge).collect();
    } else {
        bits.resize(view.nodes.len(), ABSENT);
        for slot in &view.static_log[cached.seen..] {
            bits[*slot as usize] = judge(*slot as usize);
        }
    }
    let result = cached.bits.clone();
    let verdicts = Verdicts { bits: cached.bits, seen: view.static_log.len() };
    view.classes.set_verdicts(&pod.class, &pod.node, verdicts);
    result
}

/// Names to which `metadata.name` terms restrict a pod; `None` if they do not.
fn named_nodes(class: &Class) -> Option<Vec<Arc<str>>> {
    let mut names = Vec::new();
    for term in class.required.as_ref()? {
        names.extend(term.named()?);
    }
    (!names.is_empty()).then_some(names)
}

fn verdict(
    node: &NodeEntry,
    class: &Class,
    profile: &Profile,
    syms: &Interner,
    name: Option<&str>,
    named: &[Arc<str>],
) -> u8 {
    if !node.present {
        return ABSENT;
    }
    let mut bits = 0;
    if !named.is_empty() && !named.contains(&node.name) {
        bits |= NOT_NAMED;
    }
    if node.unschedulable && !class.tolerates(&cordon()) {
        bits |= UNSCHEDULABLE;
    }
    if name.is_some_and(|n| *n != *node.name) {
        bits |= NODE_NAME;
    }
    let hard = |t: &&Taint| matches!(t.effect.as_str(), "NoSchedule" | "NoExecute");
    if node.taints.iter().filter(hard).any(|t| !class.tolerates(t)) {
        bits |= TAINT;
    }
    let selected = class.node_selector.iter().all(|(k, v)| node_label(&node.labels, *k) == Some(*v));
    let affine = class.required.as_ref().is_none_or(|r| r.iter().any(|t| t.matches(&node.name, &node.labels, syms)));
    if !(selected && affine) {
        bits |= AFFINITY;
    }
    let added = profile.added_affinity.as_ref();
    if added.is_some_and(|a| !a.iter().any(|t| t.matches(&node.name, &node.labels, syms))) {
        bits |= ADDED_AFFINITY;
    }
    bits
}

/// The bits that count under a profile.
pub fn mask(profile: &Profile) -> u8 {
    let enabled = profile.filters.iter().fold(ABSENT, |mask, f| mask | PLUGINS[f.plugin].verdict);
    if enabled & AFFINITY != 0 { enabled | ADDED_AFFINITY | NOT_NAMED } else { enabled }
}

/// The plugin and the reason behind a verdict that refuses.
pub fn explain(bits: u8) -> Option<(&'static str, Cow<'static, str>)> {
    let (bit, message) = MESSAGES.iter().find(|(bit, _)| bits & bit != 0)?;
    let plugin = match *bit {
        UNSCHEDULABLE => "NodeUnschedulable",
        NODE_NAME => "NodeName",
        TAINT => "TaintToleration",
        _ => "NodeAffinity",
    };
    Some((plugin, Cow::Borrowed(message)))
}

/// Lists the reason behind a verdict that refuses. Such a refusal stands whatever pods leave.
pub fn refuse(bits: u8, why: Option<&mut Reasons>) -> Fit {
    if let (Some(why), Some((_, reason))) = (why, explain(bits)) {
        why.push(reason);
    }
    Fit::Never
}

/// NodeAffinity: terms that name no node at all contradict each other.
pub fn pre_filter_affinity(_: &mut View, pod: &PodInfo, _: &Profile, _: &mut State) -> Result<bool, Rejection> {
    let named = |t: &crate::selector::NodeTerm| t.named();
    let terms: Option<Vec<_>> = pod.class.required.as_ref().and_then(|r| r.iter().map(named).collect());
    match terms {
        Some(terms) if !terms.is_empty() && terms.iter().all(Vec::is_empty) => {
            Err(Rejection::never("pod affinity terms conflict"))
        }
        _ => Ok(true),
    }
}

/// TaintToleration scores only if a node has a taint that is a preference.
pub fn pre_score_taints(view: &mut View, _: &PodInfo, _: &Profile, _: &mut State, _: &[Slot]) -> bool {
    // Without any such taint all nodes score the same.
    view.preference_taints > 0
}

/// The fewer taints that are preferences a pod does not tolerate, the better.
pub fn score_taints(context: &Context<'_>, nodes: &[Slot], scores: &mut [i64]) {
    let class = &context.pod.class;
    for (score, slot) in scores.iter_mut().zip(nodes) {
        let taints = context.view.nodes[*slot as usize].taints.iter().filter(|t| t.effect == "PreferNoSchedule");
        let tolerated = |t: &&Taint| class.tolerations.iter().filter(|x| x.for_preferences()).any(|x| x.tolerates(t));
        *score = taints.filter(|t| !tolerated(t)).count() as i64;
    }
    normalize(scores, true);
}

/// NodeAffinity scores only if the pod or its profile has preferences.
pub fn pre_score_affinity(_: &mut View, pod: &PodInfo, profile: &Profile, _: &mut State, _: &[Slot]) -> bool {
    !pod.class.preferred.is_empty() || !profile.added_preferences.is_empty()
}

/// The weights of the preferences that a node satisfies.
pub fn score_affinity(context: &Context<'_>, nodes: &[Slot], scores: &mut [i64]) {
    let preferences = context.pod.class.preferred.iter().chain(&context.profile.added_preferences);
    let preferences: Vec<_> = preferences.collect();
    for (score, slot) in scores.iter_mut().zip(nodes) {
        let node = &context.view.nodes[*slot as usize];
        let holds = |t: &crate::selector::NodeTerm| t.matches(&node.name, &node.labels, &context.view.syms);
        *score = preferences.iter().filter(|(_, t)| holds(t)).map(|(weight, _)| i64::from(*weight)).sum();
    }
    normalize(scores, false);
}

/// A node came.
pub fn node_added(_: &View, _: &PodInfo, what: &Happening) -> bool {
    matches!(what, Happening::Node { change, .. } if change.added)
}

/// A node came or its taints changed, so that the pod tolerates them now; or the pod's tolerations changed.
pub fn taints_changed(view: &View, pod: &PodInfo, what: &Happening) -> bool {
    match what {
        Happening::Node { slot, change } if change.added || change.taints => {
            let node = &view.nodes[*slot as usize];
            let hard = |t: &&Taint| matches!(t.effect.as_str(), "NoSchedule" | "NoExecute");
            (!node.unschedulable || pod.class.tolerates(&cordon()))
                && node.taints.iter().filter(hard).all(|t| pod.class.tolerates(t))
        }
        _ => false,
    }
}

/// A node came or its labels changed, so that the pod's affinity selects it now.
pub fn labels_changed(view: &View, pod: &PodInfo, what: &Happening) -> bool {
    match what {
        Happening::Node { slot, change } if change.added || change.labels => {
            let (node, class) = (&view.nodes[*slot as usize], &pod.class);
            let matches = |t: &crate::selector::NodeTerm| t.matches(&node.name, &node.labels, &view.syms);
            class.node_selector.iter().all(|(k, v)| node_label(&node.labels, *k) == Some(*v))
                && class.required.as_ref().is_none_or(|r| r.iter().any(matches))
        }
        _ => false,
    }
}
