//! Pods that wait: those to try now, those that pause after a failure, those that cannot be scheduled until something happens
//! that the plugins which refused them care about.
//!
//! Invariant: a pod is in exactly one of the three.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use crate::classes::ClassId;
use crate::plugins::PLUGINS;
use crate::view::{NodeChange, PodInfo, Slot, View};
use crate::volumes::ClaimKey;

/// Milliseconds of a clock that only goes forward.
pub type Millis = u64;

/// A pod that waits for something to happen is tried again after this without it, milliseconds.
const FLUSH_AFTER: Millis = 5 * 60 * 1000;

/// Something that can make a pod schedulable.
#[derive(Clone, Debug)]
pub enum Happening {
    /// A node came or changed.
    Node {
        /// Which.
        slot: Slot,
        /// What of it.
        change: NodeChange,
    },
    /// A node went.
    NodeGone,
    /// A pod is on a node now.
    Came {
        /// Which pod.
        pod: Arc<PodInfo>,
    },
    /// A pod left a node, or needs less there.
    Left {
        /// From where.
        slot: Slot,
        /// Which pod.
        pod: Arc<PodInfo>,
    },
    /// A placed pod's labels changed.
    Relabelled {
        /// Before.
        old: Arc<PodInfo>,
        /// After.
        new: Arc<PodInfo>,
    },
    /// A claim for a volume came, changed or is gone.
    Claim(ClaimKey),
    /// Volumes, storage classes, what nodes can attach or how much room there is changed.
    Volumes,
    /// Devices, their classes or claims for them changed.
    Devices,
    /// The waiting pod itself changed.
    Itself,
}

/// Plugins as bits, by their place in [`PLUGINS`].
pub type PluginSet = u32;

/// A pod that waits.
#[derive(Clone, Debug)]
pub struct Queued {
    /// The pod.
    pub pod: Arc<PodInfo>,
    /// How often it was tried.
    pub attempts: u32,
    /// When it first came.
    pub since: Millis,
    /// When it was last put here.
    pub at: Millis,
    /// Who refused it the last time.
    pub refused_by: PluginSet,
}

/// How long pods pause.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// After the first attempt.
    pub initial: Millis,
    /// At most.
    pub most: Millis,
}

type ActiveKey = (Reverse<i32>, i64, u64);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Active(ActiveKey),
    Backoff(Millis),
    Unschedulable,
    Gated,
}

/// The queue.
pub struct Queue {
    backoff: Backoff,
    pods: HashMap<Arc<str>, (Queued, Place)>,
    active: BTreeMap<ActiveKey, Arc<str>>,
    pausing: BTreeSet<(Millis, Arc<str>)>,
    /// Unschedulable pods by the plugins that refused them and by class: pods of one class are helped alike.
    refused: Vec<HashMap<ClassId, HashSet<Arc<str>>>>,
    unschedulable: BTreeSet<(Millis, Arc<str>)>,
    arrivals: u64,
}

/// How many pods wait where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// To be tried now.
    pub active: usize,
    /// Pausing.
    pub backoff: usize,
    /// Waiting for something to happen.
    pub unschedulable: usize,
    /// Gated.
    pub gated: usize,
}

impl Queue {
    /// An empty queue.
    pub fn new(backoff: Backoff) -> Self {
        Self {
            backoff,
            pods: HashMap::new(),
            active: BTreeMap::new(),
            pausing: BTreeSet::new(),
            refused: vec![HashMap::new(); PLUGINS.len()],
            unschedulable: BTreeSet::new(),
            arrivals: 0,
        }
    }

    /// How many pods wait where.
    pub fn depth(&self) -> Depth {
        let (active, backoff, unschedulable) = (self.active.len(), self.pausing.len(), self.unschedulable.len());
        Depth { active, backoff, unschedulable, gated: self.pods.len() - active - backoff - unschedulable }
    }

    /// How many pods wait for each plugin that refused them.
    pub fn refusals(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let count = |pods: &HashMap<ClassId, HashSet<Arc<str>>>| pods.values().map(HashSet::len).sum();
        self.refused.iter().map(count).enumerate()
    }

    /// A pod that waits.
    pub fn get(&self, uid: &str) -> Option<&Queued> {
        self.pods.get(uid).map(|(queued, _)| queued)
    }

    /// All pods that wait.
    pub fn pods(&self) -> impl Iterator<Item = &Queued> {
        self.pods.values().map(|(queued, _)| queued)
    }

    /// Adds a pod or takes over its changes. One that changed is tried at once if that may help.
    pub fn set(&mut self, pod: Arc<PodInfo>, now: Millis, gated: bool) {
        let uid = pod.uid.clone();
        let (queued, place) = match self.take(&uid) {
            None => {
                let queued = Queued { pod, attempts: 0, since: now, at: now, refused_by: 0 };
                return self.insert(queued, if gated { Target::Gated } else { Target::Active }, now);
            }
            Some((mut queued, place)) => {
                let claims = queued.pod.claims == pod.claims && queued.pod.awaits_claims == pod.awaits_claims;
                let same = queued.pod.class == pod.class && queued.pod.gated == pod.gated && claims;
                queued.pod = pod;
                if same && place != Place::Gated {
                    // Only its status changed.
                    return self.put_back(queued, place);
                }
                (queued, place)
            }
        };
        let target = match place {
            _ if gated => Target::Gated,
            Place::Active(_) | Place::Gated => Target::Active,
            Place::Backoff(_) | Place::Unschedulable => Target::Retry,
        };
        self.insert(queued, target, now);
    }

    /// Forgets a pod.
    pub fn remove(&mut self, uid: &str) -> Option<Queued> {
        self.take(uid).map(|(queued, _)| queued)
    }

    /// Puts back a pod that could not be scheduled; it waits until something happens that `refused_by` cares about.
    pub fn refuse(&mut self, mut queued: Queued, refused_by: PluginSet, now: Millis) {
        (queued.refused_by, queued.at) = (refused_by, now);
        let target = if refused_by == 0 { Target::Retry } else { Target::Unschedulable };
        self.insert(queued, target, now);
    }

    /// Puts back a pod whose binding failed; it pauses.
    pub fn retry(&mut self, mut queued: Queued, now: Millis) {
        (queued.refused_by, queued.at) = (0, now);
        self.insert(queued, Target::Retry, now);
    }

    /// Puts back a pod that was taken but not tried.
    pub fn again(&mut self, mut queued: Queued, now: Millis) {
        queued.attempts = queued.attempts.saturating_sub(1);
        self.insert(queued, Target::Active, now);
    }

    /// Takes a pod that is tried with others of its group, wherever it waits; not one that is gated.
    pub fn draw(&mut self, uid: &str) -> Option<Queued> {
        self.pods.get(uid).filter(|(_, place)| *place != Place::Gated)?;
        let (mut queued, _) = self.take(uid)?;
        queued.attempts += 1;
        Some(queued)
    }

    /// Puts back a pod that was taken but must not be tried; it is gated.
    pub fn hold(&mut self, mut queued: Queued, now: Millis) {
        queued.attempts = queued.attempts.saturating_sub(1);
        self.insert(queued, Target::Gated, now);
    }

    /// A pod that is gated.
    pub fn gated(&self, uid: &str) -> Option<&Queued> {
        self.pods.get(uid).filter(|(_, place)| *place == Place::Gated).map(|(queued, _)| queued)
    }

    /// Lets a gated pod be tried.
    pub fn release(&mut self, uid: &str, now: Millis) {
        if self.gated(uid).is_some()
            && let Some((queued, _)) = self.take(uid)
        {
            self.insert(queued, Target::Active, now);
        }
    }

    /// The next pod to try.
    pub fn pop(&mut self, now: Millis) -> Option<Queued> {
        self.advance(now);
        // Rather than idle, the pod that has paused longest is tried early.
        let uid = match self.active.first_key_value() {
            Some((_, uid)) => uid.clone(),
            None => self.pausing.first().filter(|(_, uid)| self.may_hurry(uid)).map(|(_, uid)| uid.clone())?,
        };
        let (mut queued, _) = self.take(&uid)?;
        queued.attempts += 1;
        Some(queued)
    }

    /// Pods that pause because an attempt was in error wait out their pause.
    fn may_hurry(&self, uid: &Arc<str>) -> bool {
        self.pods.get(uid).is_some_and(|(queued, _)| queued.refused_by != 0)
    }

    /// When [`Self::pop`] may have something without anything happening.
    pub fn next_change(&self) -> Option<Millis> {
        let flush = self.unschedulable.first().map(|(at, _)| at + FLUSH_AFTER);
        self.pausing.first().map(|(at, _)| *at).into_iter().chain(flush).min()
    }

    fn advance(&mut self, now: Millis) {
        while let Some((_, uid)) = self.pausing.first().filter(|(at, _)| *at <= now) {
            let uid = uid.clone();
            if let Some((queued, _)) = self.take(&uid) {
                self.insert(queued, Target::Active, now);
            }
        }
        while let Some((_, uid)) = self.unschedulable.first().filter(|(at, _)| at + FLUSH_AFTER <= now) {
            let uid = uid.clone();
            if let Some((queued, _)) = self.take(&uid) {
                self.insert(queued, Target::Retry, now);
            }
        }
    }

    /// Tries again the pods that something may help.
    pub fn happened(&mut self, view: &View, what: &Happening, now: Millis) {
        if self.unschedulable.is_empty() {
            return;
        }
        // Room is made for these there: what helps them does not help others of their class.
        let expected: Vec<Arc<str>> = match what {
            Happening::Node { slot, .. } | Happening::Left { slot, .. } => view.nominated_to(*slot),
            _ => Vec::new(),
        };
        let mut helped: Vec<Arc<str>> = Vec::new();
        for (plugin, classes) in PLUGINS.iter().zip(&self.refused) {
            let helps =
                |uid: &Arc<str>| self.pods.get(uid).is_some_and(|(queued, _)| (plugin.hint)(view, &queued.pod, what));
            for pods in classes.values() {
                if pods.iter().find(|uid| !expected.contains(uid)).is_some_and(helps) {
                    helped.extend(pods.iter().cloned());
                } else {
                    helped.extend(expected.iter().filter(|uid| pods.contains(*uid) && helps(uid)).cloned());
                }
            }
        }
        // Sets have no order of their own; pods that failed first are tried first.
        helped.sort_by_cached_key(|uid| self.pods.get(uid).map(|(queued, _)| (queued.at, uid.clone())));
        for uid in helped {
            if let Some((queued, _)) = self.take(&uid) {
                self.insert(queued, Target::Retry, now);
            }
        }
    }

    /// How long a pod pauses after its last attempt.
    fn pause(&self, attempts: u32) -> Millis {
        let doublings = attempts.saturating_sub(1).min(20);
        (self.backoff.initial << doublings).min(self.backoff.most)
    }

    fn insert(&mut self, queued: Queued, target: Target, now: Millis) {
        let place = match target {
            Target::Active => Place::Active(self.active_key(&queued)),
            Target::Gated => Place::Gated,
            Target::Unschedulable => Place::Unschedulable,
            Target::Retry => {
                let until = if queued.attempts == 0 { now } else { queued.at + self.pause(queued.attempts) };
                if until <= now { Place::Active(self.active_key(&queued)) } else { Place::Backoff(until) }
            }
        };
        self.put_back(queued, place);
    }

    fn active_key(&mut self, queued: &Queued) -> ActiveKey {
        self.arrivals += 1;
        (Reverse(queued.pod.class.priority), queued.at as i64, self.arrivals)
    }

    fn put_back(&mut self, queued: Queued, place: Place) {
        let uid = queued.pod.uid.clone();
        match place {
            Place::Active(key) => drop(self.active.insert(key, uid.clone())),
            Place::Backoff(until) => drop(self.pausing.insert((until, uid.clone()))),
            Place::Unschedulable => {
                self.unschedulable.insert((queued.at, uid.clone()));
                for (i, classes) in self.refused.iter_mut().enumerate() {
                    if queued.refused_by & (1 << i) != 0 {
                        classes.entry(queued.pod.class_id).or_default().insert(uid.clone());
                    }
                }
            }
            Place::Gated => {}
        }
        self.pods.insert(uid, (queued, place));
    }

    fn take(&mut self, uid: &str) -> Option<(Queued, Place)> {
        let (queued, place) = self.pods.remove(uid)?;
        match place {
            Place::Active(key) => drop(self.active.remove(&key)),
            Place::Backoff(until) => drop(self.pausing.remove(&(until, queued.pod.uid.clone()))),
            Place::Unschedulable => {
                self.unschedulable.remove(&(queued.at, queued.pod.uid.clone()));
                for (i, classes) in self.refused.iter_mut().enumerate() {
                    if queued.refused_by & (1 << i) != 0
                        && let Some(pods) = classes.get_mut(&queued.pod.class_id)
                    {
                        pods.remove(uid);
                        if pods.is_empty() {
                            classes.remove(&queued.pod.class_id);
                        }
                    }
                }
            }
            Place::Gated => {}
        }
        Some((queued, place))
    }
}

/// Where a pod goes.
enum Target {
    Active,
    Retry,
    Unschedulable,
    Gated,
}
