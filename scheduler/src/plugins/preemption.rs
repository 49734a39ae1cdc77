//! DefaultPreemption: who has to go so that a more important pod can come.

use std::cmp::Reverse;
use std::sync::Arc;

use crate::view::PodInfo;

/// A budget that limits how many of the pods it selects may be disrupted.
#[derive(Clone, Debug)]
pub struct Budget {
    /// Its pods.
    pub selector: Option<crate::selector::Selector>,
    /// How many more may go.
    pub allowed: i64,
    /// Pods that are known to be going.
    pub disrupted: Vec<String>,
}

/// A node and the pods that would have to leave it.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The node.
    pub slot: crate::view::Slot,
    /// The pods, most important first.
    pub victims: Vec<Arc<PodInfo>>,
    /// How many of them a budget protects.
    pub violations: usize,
}

/// Important first: by priority, then by age.
pub fn importance(pod: &PodInfo) -> (Reverse<i32>, i64) {
    (Reverse(pod.class.priority), pod.started)
}

/// Important first; of equals always the same one.
pub fn by_importance(a: &Arc<PodInfo>, b: &Arc<PodInfo>) -> std::cmp::Ordering {
    importance(a).cmp(&importance(b)).then_with(|| a.uid.cmp(&b.uid))
}

/// The best candidate: fewest broken budgets, then the least important victims, then few, then young ones; of equals the
/// first.
pub fn pick(candidates: Vec<Candidate>) -> Option<Candidate> {
    let rank = |c: &Candidate| {
        let highest = c.victims.iter().map(|p| p.class.priority).max().unwrap_or(i32::MIN);
        // Shifted so that many victims of negative priority do not look better than few.
        let sum: i64 = c.victims.iter().map(|p| i64::from(p.class.priority) + (1 << 31)).sum();
        let important = c.victims.iter().filter(|p| p.class.priority == highest);
        let oldest = important.map(|p| p.started).min().unwrap_or(i64::MIN);
        (c.violations, highest, sum, c.victims.len(), Reverse(oldest))
    };
    candidates.into_iter().min_by_key(rank)
}

/// Splits pods, most important first, into those that a budget protects and the others.
pub fn protected<'a>(
    pods: &[&'a Arc<PodInfo>],
    budgets: &[(Arc<str>, Budget)],
) -> (Vec<&'a Arc<PodInfo>>, Vec<&'a Arc<PodInfo>>) {
    let mut left: Vec<i64> = budgets.iter().map(|(_, b)| b.allowed).collect();
    pods.iter().copied().partition(|pod| {
        let mut violates = false;
        for ((namespace, budget), left) in budgets.iter().zip(&mut left) {
            let selected = *namespace == pod.class.namespace
                && budget.selector.as_ref().is_some_and(|s| !s.is_empty() && s.matches(&pod.class.labels));
            if !selected || pod.class.labels.is_empty() || budget.disrupted.iter().any(|d| **d == *pod.name) {
                continue;
            }
            *left -= 1;
            violates |= *left < 0;
        }
        violates
    })
}
