//! Groups of pods: those of a group that wait are tried together, one after the other on the same view of the cluster, and
//! are all placed if enough of them have a node then; else none is, and the view is as it was before.

use std::cmp::Reverse;
use std::sync::Arc;

use super::{Act, Core};
use crate::classes::ClassId;
use crate::config::Profile;
use crate::cycle::{Failure, Outcome, Placement, Terms, schedule};
use crate::plugins::gang::{NAME, WAITS_FOR_OTHERS};
use crate::plugins::index;
use crate::plugins::preemption::{Candidate, pick};
use crate::pod_groups::{GroupKey, Policy, key_of};
use crate::queue::{Millis, PluginSet, Queued};
use crate::view::PodInfo;

/// What a group and its pods say that find no nodes.
const UNSCHEDULABLE: &str = "pod group is unschedulable";
/// What they say while others make room for them.
const WAITS_FOR_ROOM: &str = "pod group is unschedulable, pod group is waiting for preemption to complete";
/// Extenders are asked for one pod after the other, and answer for a cluster in which the others are not placed.
const WITH_EXTENDERS: &str = "pods of a pod group cannot be scheduled with extenders that filter, prioritize or preempt: this is not implemented";

/// What became of a pod of a group.
enum Tried {
    /// It has a node.
    Placed(Placement, Arc<str>),
    /// It has a node once room is made there. The pods that have to go are out of the view meanwhile.
    NeedsRoom(Failure, Candidate, Arc<str>),
    /// It has none.
    Failed(Failure),
}

/// What became of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Enough pods have nodes.
    Scheduled,
    /// Enough will have nodes once room is made.
    NeedsRoom,
    /// Too few have.
    Unschedulable,
}

/// How a group stands, for explanations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// How its pods are scheduled; none: the group is not there.
    pub policy: Option<Policy>,
    /// How many pods it has.
    pub pods: usize,
    /// How many of them have nodes.
    pub placed: usize,
    /// How many of those that wait would have nodes too if they were tried together now.
    pub would_fit: usize,
    /// Why they are not tried, if they are not.
    pub blocked: Option<String>,
}

impl Core {
    /// Whether decisions on a group are still to be told.
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Notes that a pod belongs to its group. Returns the group if the pod is new to it.
    pub(super) fn join(&mut self, pod: &PodInfo) -> Option<GroupKey> {
        if !self.grouped {
            return None;
        }
        let key = key_of(pod)?;
        self.groups.join(pod, &key).then_some(key)
    }

    /// Whether a pod must not be tried since its group is not there, is not complete, or is being told of its last failure.
    pub(super) fn is_held(&self, pod: &PodInfo) -> bool {
        if !self.grouped {
            return false;
        }
        let Some(key) = key_of(pod) else { return false };
        let gang = || self.profiles.get(&pod.class.scheduler).is_some_and(|profile| profile.gangs);
        self.is_being_told(&key) || (gang() && self.groups.blocked(&key).is_some())
    }

    fn is_being_told(&self, key: &GroupKey) -> bool {
        !self.telling.is_empty() && self.groups.pods(key).any(|uid| self.telling.contains_key(uid))
    }

    /// Lets the pods of a group be tried that only waited for it.
    pub(super) fn settle(&mut self, key: &GroupKey, now: Millis) {
        let pods: Vec<Arc<str>> =
            self.groups.pods(key).filter(|uid| self.queue.gated(uid).is_some()).cloned().collect();
        let Some(first) = pods.first().and_then(|uid| self.queue.gated(uid)) else { return };
        if self.is_held(&first.pod.clone()) {
            return;
        }
        for uid in pods {
            let free = self.queue.gated(&uid).is_some_and(|queued| {
                let gates = self.profiles.get(&queued.pod.class.scheduler).is_some_and(|profile| profile.gates);
                !queued.pod.waits(gates)
            });
            if free {
                self.queue.release(&uid, now);
            }
        }
    }

    /// Tries a pod with all others of its group that wait. The decisions are pending then.
    pub(super) fn try_group(&mut self, first: Queued, key: &GroupKey, now: Millis) {
        if self.is_held(&first.pod) {
            return self.queue.hold(first, now);
        }
        let others: Vec<Arc<str>> = self.groups.pods(key).filter(|uid| **uid != first.pod.uid).cloned().collect();
        let mut waiting = vec![first];
        waiting.extend(others.iter().filter_map(|uid| self.queue.draw(uid)));
        // The most important first, then those that came first.
        waiting.sort_by(|a, b| {
            let rank = |queued: &Queued| (Reverse(queued.pod.class.priority), queued.since);
            rank(a).cmp(&rank(b)).then_with(|| a.pod.uid.cmp(&b.pod.uid))
        });
        let profile = match self.profile_of(&waiting) {
            Ok(profile) => profile,
            Err(why) => {
                // An attempt in error is made again after a pause, whatever happens.
                for queued in waiting {
                    let act = self.failed(queued, Failure::plain(why.clone(), 0), now);
                    self.pending.push_back(act);
                }
                return;
            }
        };
        let pods: Vec<Arc<PodInfo>> = waiting.iter().map(|queued| queued.pod.clone()).collect();
        let (tried, verdict) = self.attempt(&pods, &profile, key);
        if verdict != Verdict::Scheduled {
            self.revert(&pods, &tried);
        }
        let gang: PluginSet = index(NAME).map_or(0, |plugin| 1 << plugin);
        for (queued, tried) in waiting.into_iter().zip(tried) {
            let act = match tried {
                Tried::Placed(placement, node) if verdict == Verdict::Scheduled => {
                    self.commit(queued, node, placement.promise, now)
                }
                tried => {
                    let failure = refusal(verdict, tried, &queued.pod, gang);
                    self.failed(queued, failure, now)
                }
            };
            self.pending.push_back(act);
        }
        let (scheduled, reason, message) = match verdict {
            Verdict::Scheduled => (true, "Scheduled", ""),
            Verdict::NeedsRoom => (false, "Unschedulable", WAITS_FOR_ROOM),
            Verdict::Unschedulable => (false, "Unschedulable", UNSCHEDULABLE),
        };
        if let Some((uid, told)) = self.groups.tell(key, scheduled, reason, message) {
            self.pending.push_back(Act::Group { key: key.clone(), uid, told });
        }
    }

    /// The profile of all pods of a group.
    fn profile_of(&self, waiting: &[Queued]) -> Result<Arc<Profile>, String> {
        let name = |queued: &Queued| queued.pod.class.scheduler.clone();
        let first = waiting.first().map(name).unwrap_or_default();
        if let Some(other) = waiting.iter().map(name).find(|other| *other != first) {
            return Err(format!(
                "all pods in a single pod group should have the same .spec.schedulerName set, got: {other:?} and {first:?}"
            ));
        }
        let asked = |queued: &Queued| {
            self.extenders
                .iter()
                .any(|extender| (extender.advises() || extender.preempts()) && extender.concerns(&queued.pod))
        };
        if waiting.iter().any(asked) {
            return Err(WITH_EXTENDERS.into());
        }
        self.profiles.get(&first).cloned().ok_or_else(|| format!("profile not found for scheduler name {first:?}"))
    }

    /// Places pods one after the other in the view, as many as find a node.
    fn attempt(&mut self, pods: &[Arc<PodInfo>], profile: &Profile, key: &GroupKey) -> (Vec<Tried>, Verdict) {
        self.view.limit_counters();
        let budgets = self.budgets();
        let terms = Terms { budgets: &budgets, advice: None };
        let needed = match self.groups.policy(key) {
            Some(Policy::Gang(least)) if profile.gangs => least,
            _ => 0,
        };
        let mut there = self.groups.pods(key).filter(|uid| self.view.placed(uid).is_some()).count();
        let mut verdict = Verdict::Unschedulable;
        let mut makes_room = false;
        let mut tried = Vec::with_capacity(pods.len());
        // Since the last pod that found a node nothing changed: the next one of the same class fails alike.
        let mut same: Option<(ClassId, Failure)> = None;
        for pod in pods {
            let alike = |(class, _): &&(ClassId, Failure)| {
                *class == pod.class_id && pod.nominated.is_empty() && pod.claims.is_none()
            };
            let outcome = match same.as_ref().filter(alike) {
                Some((_, failure)) => Outcome::Failed(failure.clone()),
                None => schedule(&mut self.view, profile, pod, &mut self.start, &terms, &mut self.random),
            };
            let one = match outcome {
                Outcome::Placed(placement) => {
                    let node = self.assume(pod, &placement);
                    Tried::Placed(placement, node)
                }
                Outcome::Failed(mut failure) => match pick(std::mem::take(&mut failure.preemption)) {
                    Some(candidate) => {
                        let node = self.view.nodes[candidate.slot as usize].name.clone();
                        for victim in &candidate.victims {
                            let _ = self.view.displace(&victim.uid);
                        }
                        self.view.place(pod.clone(), &node);
                        makes_room = true;
                        Tried::NeedsRoom(failure, candidate, node)
                    }
                    None => Tried::Failed(failure),
                },
            };
            match &one {
                Tried::Failed(failure) if pod.nominated.is_empty() && pod.claims.is_none() => {
                    same = Some((pod.class_id, failure.clone()));
                }
                Tried::Failed(_) => {}
                _ => {
                    same = None;
                    there += 1;
                    if there >= needed {
                        verdict = if makes_room { Verdict::NeedsRoom } else { Verdict::Scheduled };
                    }
                }
            }
            tried.push(one);
        }
        (tried, verdict)
    }

    /// Takes back what [`Self::attempt`] did to the view, the last first.
    fn revert(&mut self, pods: &[Arc<PodInfo>], tried: &[Tried]) {
        for (pod, tried) in pods.iter().zip(tried).rev() {
            match tried {
                Tried::Placed(placement, _) => {
                    let _ = self.view.displace(&pod.uid);
                    for (volume, _) in &placement.promise.bind {
                        self.view.volumes.assumed.remove(volume);
                    }
                    self.view.devices.forget(&pod.uid);
                }
                Tried::NeedsRoom(_, candidate, node) => {
                    let _ = self.view.displace(&pod.uid);
                    for victim in candidate.victims.iter().rev() {
                        self.view.place(victim.clone(), node);
                    }
                }
                Tried::Failed(_) => {}
            }
        }
    }

    /// How a pod's group stands; `None`: it names none, or groups are not looked at. The view is as before.
    pub fn standing(&mut self, pod: &PodInfo) -> Option<Standing> {
        let key = key_of(pod).filter(|_| self.grouped)?;
        let profile = self.profiles.get(&pod.class.scheduler).cloned()?;
        let uids: Vec<Arc<str>> = self.groups.pods(&key).cloned().collect();
        let placed = uids.iter().filter(|uid| self.view.placed(uid).is_some()).count();
        let blocked = self.groups.blocked(&key).filter(|_| profile.gangs);
        let waiting = uids.iter().filter_map(|uid| self.queue.get(uid)).map(|queued| queued.pod.clone());
        let mut pods: Vec<Arc<PodInfo>> = waiting.filter(|pod| !pod.waits(profile.gates)).collect();
        pods.sort_by_key(|pod| Reverse(pod.class.priority));
        let (tried, _) = self.attempt(&pods, &profile, &key);
        let would_fit = tried.iter().filter(|tried| matches!(tried, Tried::Placed(..))).count();
        self.revert(&pods, &tried);
        Some(Standing { policy: self.groups.policy(&key), pods: uids.len(), placed, would_fit, blocked })
    }
}

/// What a pod is told whose group is not scheduled, or that found no node in one that is.
fn refusal(verdict: Verdict, tried: Tried, pod: &PodInfo, gang: PluginSet) -> Failure {
    let waits = || {
        let message = format!("{UNSCHEDULABLE}, {WAITS_FOR_OTHERS}");
        // The node that was kept for it is of no use now.
        Failure { clear_nomination: !pod.nominated.is_empty(), ..Failure::plain(message, gang) }
    };
    match (verdict, tried) {
        (_, Tried::Failed(failure)) => failure,
        (Verdict::NeedsRoom, Tried::Placed(placement, _)) => {
            let candidate = Candidate { slot: placement.slot, victims: Vec::new(), violations: 0 };
            Failure { preemption: vec![candidate], ..Failure::plain(WAITS_FOR_ROOM.into(), gang) }
        }
        (Verdict::NeedsRoom, Tried::NeedsRoom(failure, candidate, _)) => {
            Failure { preemption: vec![candidate], ..failure }
        }
        (_, Tried::NeedsRoom(failure, ..)) => Failure { refused_by: failure.refused_by | gang, ..waits() },
        (_, Tried::Placed(..)) => waits(),
    }
}
