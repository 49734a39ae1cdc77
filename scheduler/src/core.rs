//! The scheduler without its surroundings: changes of the cluster go in, decisions come out. No clock, no network, no chance of
//! its own: the time and the seed are given.
//!
//! Invariant: a pod is in the queue, or its placement is being written ([`Core::finished`] tells how that went), or it is
//! placed; never in two of these. A pod is not decided on while the last decision on it is being written.

mod gangs;

pub use gangs::Standing;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use k8s_openapi::api::resource::v1 as api;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::config::{Config, Profile};
use crate::cycle::{Failure, Outcome, Placement, Terms, candidates, schedule};
use crate::extender::{Advice, Extender, Victims};
use crate::plugins::devices::Release;
use crate::plugins::preemption::{Budget, pick};
use crate::plugins::volumes::Promise;
use crate::pod_groups::{GroupKey, PodGroups, Told, key_of};
use crate::queue::{Backoff, Happening, Millis, Queue, Queued};
use crate::selector::{Labels, Selector};
use crate::view::{PodInfo, View};
use crate::wire;

/// Bound pods that are remembered until somebody counts them.
const MAX_BOUND: usize = 4096;

/// Something of the cluster that changed.
#[derive(Debug)]
pub enum Change {
    /// A pod is there or changed.
    Pod(Box<wire::Pod>),
    /// A pod is gone (its uid).
    PodGone(String),
    /// These are all the pods (their uids): others are gone.
    OnlyPods(std::collections::HashSet<String>),
    /// A node is there or changed.
    Node(Box<wire::Node>),
    /// A node is gone.
    NodeGone(String),
    /// A namespace and its labels; none if it is gone.
    Namespace(String, Option<Labels>),
    /// A service's namespace, name and selector; none if it is gone.
    Service(String, String, Option<BTreeMap<String, String>>),
    /// An owner's kind, namespace, name and selector; none if it is gone.
    Owner(&'static str, String, String, Option<Selector>),
    /// A disruption budget's namespace and name; none if it is gone.
    Budget(String, String, Option<Budget>),
    /// A claim.
    Claim(Box<k8s_openapi::api::core::v1::PersistentVolumeClaim>),
    /// A claim is gone.
    ClaimGone(String, String),
    /// A volume.
    Volume(Box<k8s_openapi::api::core::v1::PersistentVolume>),
    /// A volume is gone.
    VolumeGone(String),
    /// A storage class.
    StorageClass(Box<k8s_openapi::api::storage::v1::StorageClass>),
    /// A storage class is gone.
    StorageClassGone(String),
    /// What a node's drivers can attach.
    CsiNode(Box<k8s_openapi::api::storage::v1::CSINode>),
    /// The same, gone.
    CsiNodeGone(String),
    /// Whether a driver reports how much room it has.
    CsiDriver(String, bool),
    /// A volume is attached to a node, or that attachment is gone.
    Attachment(Box<k8s_openapi::api::storage::v1::VolumeAttachment>, bool),
    /// A claim for devices.
    ResourceClaim(Box<api::ResourceClaim>),
    /// A claim for devices is gone: namespace and name.
    ResourceClaimGone(String, String),
    /// A class of devices.
    DeviceClass(Box<api::DeviceClass>),
    /// A class of devices is gone.
    DeviceClassGone(String),
    /// Devices of a driver.
    ResourceSlice(Box<api::ResourceSlice>),
    /// Devices of a driver are gone.
    ResourceSliceGone(String),
    /// How much room a driver has, or that this report is gone.
    Capacity(Box<k8s_openapi::api::storage::v1::CSIStorageCapacity>, bool),
    /// A group of pods.
    PodGroup(Box<wire::PodGroup>),
    /// A group of pods is gone: namespace and name.
    PodGroupGone(String, String),
}

/// What has to be written.
#[derive(Clone, Debug)]
pub enum Act {
    /// Ask the extenders about nodes; tell [`Core::advised`] what they say.
    Ask {
        /// The pod.
        pod: Arc<PodInfo>,
        /// The nodes that can take it otherwise.
        nodes: Vec<Arc<str>>,
    },
    /// Ask the extenders who may be pushed out; tell [`Core::consulted`] what they say.
    Consult {
        /// The pod that room is to be made for.
        pod: Arc<PodInfo>,
        /// Where it can be made, and who would have to go.
        candidates: Vec<Victims>,
    },
    /// Bind a pod to a node; tell [`Core::finished`] how it went.
    Bind {
        /// The pod.
        pod: Arc<PodInfo>,
        /// The node.
        node: Arc<str>,
        /// Volumes first.
        promise: Promise,
    },
    /// Tell the pod why it is not scheduled, and make room for it; say so with [`Core::told`].
    Fail {
        /// The pod.
        pod: Arc<PodInfo>,
        /// Why.
        message: String,
        /// The node kept for it; empty: none any more.
        nominate: Option<Arc<str>>,
        /// Pods that have to go.
        victims: Vec<Arc<PodInfo>>,
        /// Pods for which the node was kept and is no longer.
        unseated: Vec<Arc<PodInfo>>,
        /// A claim that lets go of its devices.
        release: Option<Release>,
    },
    /// Say of a group whether it is scheduled.
    Group {
        /// Its namespace and name.
        key: GroupKey,
        /// Its identity.
        uid: Arc<str>,
        /// What to say.
        told: Told,
    },
}

/// Counts of what happened, for metrics.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Attempts that found a node.
    pub scheduled: u64,
    /// Attempts that found none.
    pub unschedulable: u64,
    /// Bindings that failed.
    pub errors: u64,
    /// Attempts to preempt.
    pub preemption_attempts: u64,
    /// Pods pushed out.
    pub victims: u64,
    /// Pods that entered the queue, by what made them: `PodAdd`, `ScheduleAttemptFailure`, an event.
    pub incoming: BTreeMap<&'static str, u64>,
}

/// What it took to bind a pod.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    /// Attempts.
    pub tries: u32,
    /// Time since it came.
    pub waited: Millis,
}

/// The scheduler.
pub struct Core {
    /// The cluster.
    pub view: View,
    /// What waits.
    pub queue: Queue,
    /// What happened.
    pub tally: Tally,
    /// Pods that were bound since somebody drained this; not more than [`MAX_BOUND`].
    pub bound: Vec<Bound>,
    profiles: HashMap<Arc<str>, Arc<Profile>>,
    budgets: BTreeMap<(Arc<str>, Arc<str>), Budget>,
    extenders: Arc<[Extender]>,
    writing: HashMap<Arc<str>, Queued>,
    /// Pods about which extenders are asked.
    asking: HashMap<Arc<str>, Queued>,
    /// What failed of those for which room may be made, and the nodes where.
    consulting: HashMap<Arc<str>, (Failure, Vec<Arc<str>>)>,
    /// Pods whose failure is being written; and those of them whose turn came meanwhile.
    telling: HashMap<Arc<str>, Option<Queued>>,
    /// Whether groups are looked at; if not, all of this is empty.
    grouped: bool,
    groups: PodGroups,
    /// Decisions on pods of a group that was tried and that are not told yet.
    pending: VecDeque<Act>,
    start: usize,
    random: StdRng,
}

impl Core {
    /// A scheduler that knows nothing of the cluster yet. `config` makes the configuration with the names interned.
    pub fn new<E>(
        config: impl FnOnce(&mut crate::intern::Interner) -> Result<Config, E>,
        seed: u64,
    ) -> Result<Self, E> {
        let mut view = View::default();
        let config = config(&mut view.syms)?;
        let millis = |d: std::time::Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let backoff = Backoff { initial: millis(config.initial_backoff), most: millis(config.max_backoff) };
        let profiles = config.profiles.into_iter().map(|p| (p.name.as_str().into(), Arc::new(p))).collect();
        Ok(Self {
            view,
            queue: Queue::new(backoff),
            tally: Tally::default(),
            bound: Vec::new(),
            profiles,
            budgets: BTreeMap::new(),
            extenders: config.extenders.into(),
            writing: HashMap::new(),
            asking: HashMap::new(),
            consulting: HashMap::new(),
            telling: HashMap::new(),
            grouped: config.groups,
            groups: PodGroups::default(),
            pending: VecDeque::new(),
            start: 0,
            random: StdRng::seed_from_u64(seed),
        })
    }

    /// The profile of a scheduler name.
    pub fn profile(&self, name: &str) -> Option<&Arc<Profile>> {
        self.profiles.get(name)
    }

    /// Whether pods that name a group are tried together.
    pub fn looks_at_groups(&self) -> bool {
        self.grouped
    }

    /// How many placements are being written.
    pub fn writing(&self) -> usize {
        self.writing.len()
    }

    /// Takes over a change.
    pub fn apply(&mut self, change: Change, now: Millis) {
        match change {
            Change::Pod(pod) => self.pod(&pod, now),
            Change::PodGone(uid) => self.pod_gone(&uid, now),
            Change::OnlyPods(uids) => self.only_pods(&uids, now),
            Change::Node(node) => {
                let change = self.view.set_node(&node);
                if change != Default::default()
                    && let Some(slot) = self.view.slot(&node.metadata.name)
                {
                    self.happened(&Happening::Node { slot, change }, now);
                }
            }
            Change::NodeGone(name) => {
                self.view.remove_node(&name);
                self.happened(&Happening::NodeGone, now);
            }
            Change::Namespace(name, labels) => self.view.set_namespace(&name, labels),
            Change::Service(namespace, name, selector) => self.view.owners.set_service(&namespace, &name, selector),
            Change::Owner(kind, namespace, name, selector) => {
                self.view.owners.set_owner(kind, &namespace, &name, selector);
            }
            Change::Budget(namespace, name, budget) => {
                let key = (namespace.as_str().into(), name.as_str().into());
                match budget {
                    Some(budget) => drop(self.budgets.insert(key, budget)),
                    None => drop(self.budgets.remove(&key)),
                }
            }
            change @ (Change::ResourceClaim(_)
            | Change::ResourceClaimGone(..)
            | Change::DeviceClass(_)
            | Change::DeviceClassGone(_)
            | Change::ResourceSlice(_)
            | Change::ResourceSliceGone(_)) => {
                self.devices(change);
                self.happened(&Happening::Devices, now);
            }
            Change::PodGroup(group) if self.grouped => {
                let key = self.groups.set(&group);
                self.settle(&key, now);
            }
            Change::PodGroupGone(namespace, name) if self.grouped => self.groups.remove(&namespace, &name),
            Change::PodGroup(_) | Change::PodGroupGone(..) => {}
            other => {
                let key = |namespace: &str, name: &str| Happening::Claim((namespace.into(), name.into()));
                let what = match &other {
                    Change::Claim(claim) => {
                        let part = |text: &Option<String>| text.clone().unwrap_or_default();
                        key(&part(&claim.metadata.namespace), &part(&claim.metadata.name))
                    }
                    Change::ClaimGone(namespace, name) => key(namespace, name),
                    _ => Happening::Volumes,
                };
                self.volumes(other);
                self.happened(&what, now);
            }
        }
    }

    fn volumes(&mut self, change: Change) {
        let View { volumes, syms, .. } = &mut self.view;
        match change {
            Change::Claim(claim) => volumes.set_claim(&claim),
            Change::ClaimGone(namespace, name) => volumes.remove_claim(&namespace, &name),
            Change::Volume(volume) => volumes.set_volume(&volume, syms),
            Change::VolumeGone(name) => volumes.remove_volume(&name),
            Change::StorageClass(class) => volumes.set_class(&class),
            Change::StorageClassGone(name) => drop(volumes.classes.remove(name.as_str())),
            Change::CsiNode(node) => volumes.set_limits(&node),
            Change::CsiNodeGone(name) => drop(volumes.limits.remove(name.as_str())),
            Change::CsiDriver(name, true) => drop(volumes.capacity_drivers.insert(name)),
            Change::CsiDriver(name, false) => drop(volumes.capacity_drivers.remove(&name)),
            Change::Capacity(capacity, gone) => volumes.set_capacity(&capacity, gone),
            Change::Attachment(attachment, gone) => volumes.set_attachment(&attachment, gone),
            _ => {}
        }
    }

    fn devices(&mut self, change: Change) {
        let View { devices, syms, .. } = &mut self.view;
        match change {
            Change::ResourceClaim(claim) => devices.set_claim(&claim),
            Change::ResourceClaimGone(namespace, name) => devices.claim_gone(&namespace, &name),
            Change::DeviceClass(class) => devices.set_class(&class, syms),
            Change::DeviceClassGone(name) => devices.remove_class(&name),
            Change::ResourceSlice(slice) => devices.set_slice(&slice, syms),
            Change::ResourceSliceGone(name) => devices.remove_slice(&name),
            _ => {}
        }
    }

    fn happened(&mut self, what: &Happening, now: Millis) {
        self.queue.happened(&self.view, what, now);
    }

    fn pod(&mut self, pod: &wire::Pod, now: Millis) {
        if matches!(pod.status.phase.as_str(), "Succeeded" | "Failed") {
            return self.pod_gone(&pod.metadata.uid, now);
        }
        let info = self.view.compile(pod);
        if !info.node.is_empty() {
            return self.placed(info, now);
        }
        if info.terminating {
            return self.pod_gone(&info.uid, now);
        }
        // A decision is newer than what the watch says of the time before.
        if self.view.placed(&info.uid).is_some() {
            return;
        }
        let Some(profile) = self.profiles.get(&info.class.scheduler) else { return };
        let gates = profile.gates;
        let joined = self.join(&info);
        let held = self.telling.get_mut(&info.uid).and_then(Option::as_mut);
        if let Some(queued) = held.or(self.asking.get_mut(&info.uid)) {
            queued.pod = info;
            return;
        }
        let gated = info.waits(gates) || self.is_held(&info);
        // A node that was just nominated is not in the watch's copy yet.
        if !info.nominated.is_empty() {
            self.view.nominate(&info, &info.nominated);
        }
        if self.queue.get(&info.uid).is_none() {
            *self.tally.incoming.entry("PodAdd").or_default() += 1;
        }
        self.queue.set(info, now, gated);
        if let Some(key) = joined {
            self.settle(&key, now);
        }
    }

    /// A placement was written.
    fn written(&mut self, uid: &str, now: Millis) {
        if let Some(queued) = self.writing.remove(uid)
            && self.bound.len() < MAX_BOUND
        {
            self.bound.push(Bound { tries: queued.attempts, waited: now.saturating_sub(queued.since) });
        }
    }

    fn placed(&mut self, info: Arc<PodInfo>, now: Millis) {
        let joined = self.join(&info);
        self.queue.remove(&info.uid);
        self.written(&info.uid, now);
        self.telling.remove(&info.uid);
        self.asking.remove(&info.uid);
        self.consulting.remove(&info.uid);
        let kept = self.view.denominate(&info.uid);
        let node = info.node.clone();
        let old = self.view.placed(&info.uid).cloned();
        let slot = self.view.place(info.clone(), &node);
        self.given_up(kept.filter(|kept| *kept != node), &info, now);
        match old {
            None => self.happened(&Happening::Came { pod: info }, now),
            Some((before, old)) => {
                if old.class.labels != info.class.labels {
                    self.happened(&Happening::Relabelled { old: old.clone(), new: info.clone() }, now);
                }
                let shrunk = old.class.requests != info.class.requests || (info.terminating && !old.terminating);
                if before != slot || shrunk {
                    self.happened(&Happening::Left { slot: before, pod: old }, now);
                }
            }
        }
        if let Some(key) = joined {
            self.settle(&key, now);
        }
    }

    fn pod_gone(&mut self, uid: &str, now: Millis) {
        if self.grouped {
            self.groups.leave(uid);
        }
        let queued = self.queue.remove(uid);
        self.writing.remove(uid);
        self.telling.remove(uid);
        self.asking.remove(uid);
        self.consulting.remove(uid);
        let kept = self.view.denominate(uid);
        if let Some((slot, pod)) = self.view.displace(uid) {
            self.happened(&Happening::Left { slot, pod }, now);
        } else if let Some(queued) = queued {
            self.given_up(kept, &queued.pod, now);
        }
    }

    /// A node is no longer kept for a pod: that may help others.
    fn given_up(&mut self, node: Option<Arc<str>>, pod: &Arc<PodInfo>, now: Millis) {
        if let Some(slot) = node.and_then(|node| self.view.slot(&node)) {
            self.happened(&Happening::Left { slot, pod: pod.clone() }, now);
        }
    }

    fn only_pods(&mut self, uids: &std::collections::HashSet<String>, now: Millis) {
        let placed = self.view.all_placed().map(|(_, p)| p.uid.clone());
        let known = placed.chain(self.queue.pods().map(|q| q.pod.uid.clone()));
        let gone: Vec<Arc<str>> = known.filter(|uid| !uids.contains(&**uid)).collect();
        for uid in gone {
            self.pod_gone(&uid, now);
        }
    }

    /// Decides on the next pod, or tells the next decision on a group. `None`: there is none to try now.
    pub fn next(&mut self, now: Millis) -> Option<Act> {
        if let Some(act) = self.pending.pop_front() {
            return Some(act);
        }
        let queued = loop {
            let queued = self.queue.pop(now)?;
            if self.grouped
                && let Some(key) = key_of(&queued.pod)
            {
                self.try_group(queued, &key, now);
                match self.pending.pop_front() {
                    Some(act) => return Some(act),
                    None => continue,
                }
            }
            match self.telling.get_mut(&queued.pod.uid) {
                Some(held) => *held = Some(queued),
                None => break queued,
            }
        };
        if self.extenders.iter().any(|e| e.advises() && e.concerns(&queued.pod)) {
            let profile = self.profiles.get(&queued.pod.class.scheduler).cloned()?;
            if let Some(slots) = candidates(&mut self.view, &profile, &queued.pod, self.start) {
                let nodes = slots.iter().map(|s| self.view.nodes[*s as usize].name.clone()).collect();
                let pod = queued.pod.clone();
                self.asking.insert(pod.uid.clone(), queued);
                return Some(Act::Ask { pod, nodes });
            }
        }
        self.decide(queued, None, now)
    }

    /// Takes what extenders say of a pod, and decides on it.
    pub fn advised(&mut self, uid: &str, advice: Result<Advice, String>, now: Millis) -> Option<Act> {
        let queued = self.asking.remove(uid)?;
        match advice {
            Ok(advice) => self.decide(queued, Some(&advice), now),
            Err(message) => {
                // An attempt in error is made again after a pause, whatever happens.
                Some(self.failed(queued, Failure::plain(message, 0), now))
            }
        }
    }

    fn decide(&mut self, queued: Queued, advice: Option<&Advice>, now: Millis) -> Option<Act> {
        let pod = queued.pod.clone();
        let profile = self.profiles.get(&pod.class.scheduler).cloned()?;
        self.view.limit_counters();
        let budgets = self.budgets();
        let terms = Terms { budgets: &budgets, advice };
        match schedule(&mut self.view, &profile, &pod, &mut self.start, &terms, &mut self.random) {
            Outcome::Placed(placement) => {
                let node = self.assume(&pod, &placement);
                Some(self.commit(queued, node, placement.promise, now))
            }
            Outcome::Failed(failure) => Some(self.consult(queued, failure, now)),
        }
    }

    /// From now on a placement counts. Returns the node's name.
    fn assume(&mut self, pod: &Arc<PodInfo>, placement: &Placement) -> Arc<str> {
        let node = self.view.nodes[placement.slot as usize].name.clone();
        self.view.place(pod.clone(), &node);
        for (volume, claim) in &placement.promise.bind {
            self.view.volumes.assumed.insert(volume.clone(), claim.clone());
        }
        for reservation in &placement.promise.devices {
            let stored = self.view.devices.claims.get(&reservation.key);
            let new = reservation.special.is_some() || stored.is_some_and(|claim| claim.allocation.is_none());
            if let (Some(allocation), true) = (&reservation.allocation, new) {
                let key = reservation.key.clone();
                self.view.devices.assume(key, pod.uid.clone(), allocation.clone());
            }
        }
        node
    }

    /// A placement that counts is to be written.
    fn commit(&mut self, queued: Queued, node: Arc<str>, promise: Promise, now: Millis) -> Act {
        self.tally.scheduled += 1;
        let pod = queued.pod.clone();
        let kept = self.view.denominate(&pod.uid);
        self.given_up(kept.filter(|kept| *kept != node), &pod, now);
        self.writing.insert(pod.uid.clone(), queued);
        self.happened(&Happening::Came { pod: pod.clone() }, now);
        Act::Bind { pod, node, promise }
    }

    /// Lets the extenders say who may be pushed out, if room can be made at all and one of them has a say.
    fn consult(&mut self, queued: Queued, failure: Failure, now: Millis) -> Act {
        let concerned = self.extenders.iter().any(|e| e.preempts() && e.concerns(&queued.pod));
        if failure.preemption.is_empty() || !concerned {
            return self.failed(queued, failure, now);
        }
        let node = |slot: u32| self.view.nodes[slot as usize].name.clone();
        let names: Vec<Arc<str>> = failure.preemption.iter().map(|candidate| node(candidate.slot)).collect();
        let each = failure.preemption.iter().zip(&names);
        let candidates = each.map(|(candidate, node)| Victims {
            node: node.clone(),
            pods: candidate.victims.clone(),
            violations: candidate.violations,
        });
        let (pod, candidates) = (queued.pod.clone(), candidates.collect());
        self.consulting.insert(pod.uid.clone(), (failure, names));
        self.asking.insert(pod.uid.clone(), queued);
        Act::Consult { pod, candidates }
    }

    /// Takes what extenders say of who may be pushed out, and tells the pod.
    pub fn consulted(&mut self, uid: &str, answer: Result<Vec<Victims>, String>, now: Millis) -> Option<Act> {
        let (mut failure, names) = self.consulting.remove(uid)?;
        let queued = self.asking.remove(uid)?;
        let kept = answer.unwrap_or_else(|why| {
            failure.message += &format!(" preemption: {why}");
            Vec::new()
        });
        let before = std::mem::take(&mut failure.preemption);
        for (mut candidate, name) in before.into_iter().zip(names) {
            // The node may have gone meanwhile, and its place be another's.
            let there = self.view.slot(&name) == Some(candidate.slot);
            let Some(said) = kept.iter().find(|said| said.node == name && there) else { continue };
            candidate.victims.clone_from(&said.pods);
            candidate.violations = said.violations;
            failure.preemption.push(candidate);
        }
        Some(self.failed(queued, failure, now))
    }

    /// The extenders.
    pub fn extenders(&self) -> &Arc<[Extender]> {
        &self.extenders
    }

    fn budgets(&self) -> Vec<(Arc<str>, Budget)> {
        // Few clusters have many; a pod that can be placed does not need them at all.
        self.budgets.iter().map(|((namespace, _), budget)| (namespace.clone(), budget.clone())).collect()
    }

    fn failed(&mut self, queued: Queued, failure: Failure, now: Millis) -> Act {
        self.tally.unschedulable += 1;
        let pod = queued.pod.clone();
        let (mut nominate, mut victims, mut unseated) = (None, Vec::new(), Vec::new());
        if let Some(candidate) = pick(failure.preemption) {
            self.tally.preemption_attempts += u64::from(!candidate.victims.is_empty());
            self.tally.victims += candidate.victims.len() as u64;
            let node = self.view.nodes[candidate.slot as usize].name.clone();
            let lower = self.view.nominated.get(&node).into_iter().flatten();
            unseated = lower.filter(|p| p.class.priority < pod.class.priority && p.uid != pod.uid).cloned().collect();
            for other in &unseated {
                let _ = self.view.denominate(&other.uid);
            }
            let kept = self.view.denominate(&pod.uid);
            self.view.nominate(&pod, &node);
            self.given_up(kept.filter(|kept| *kept != node), &pod, now);
            nominate = Some(node);
            victims = candidate.victims;
        } else if failure.clear_nomination {
            let kept = self.view.denominate(&pod.uid);
            self.given_up(kept, &pod, now);
            nominate = Some("".into());
        }
        *self.tally.incoming.entry("ScheduleAttemptFailure").or_default() += 1;
        let pod = self.requeue(queued, failure.refused_by, nominate.as_ref(), now);
        self.telling.insert(pod.uid.clone(), None);
        Act::Fail { pod, message: failure.message, nominate, victims, unseated, release: failure.release }
    }

    /// Puts a pod back, with the node that is kept for it.
    fn requeue(&mut self, mut queued: Queued, refused_by: u32, node: Option<&Arc<str>>, now: Millis) -> Arc<PodInfo> {
        if let Some(node) = node {
            queued.pod = Arc::new(PodInfo { nominated: node.clone(), ..(*queued.pod).clone() });
        }
        let pod = queued.pod.clone();
        self.queue.refuse(queued, refused_by, now);
        pod
    }

    /// Tells that the writing of a failure is over.
    pub fn told(&mut self, uid: &str, now: Millis) {
        if let Some(Some(queued)) = self.telling.remove(uid) {
            self.queue.again(queued, now);
        }
        if self.grouped
            && let Some(key) = self.groups.of(uid).cloned()
        {
            self.settle(&key, now);
        }
    }

    /// Tells how the writing of a binding went.
    pub fn finished(&mut self, uid: &str, success: bool, now: Millis) {
        if success {
            // The pod stays where it is; the watch replaces what is known of it.
            self.written(uid, now);
            return;
        }
        let Some(queued) = self.writing.remove(uid) else { return };
        self.tally.errors += 1;
        self.view.volumes.assumed.retain(|_, claim| !queued.pod.class.volumes.iter().any(|v| {
            matches!(v, crate::class::VolumeUse::Claim(name, _) if *name == claim.1 && claim.0 == queued.pod.class.namespace)
        }));
        self.view.devices.forget(uid);
        if let Some((slot, pod)) = self.view.displace(uid) {
            self.happened(&Happening::Left { slot, pod }, now);
        }
        self.queue.retry(queued, now);
    }
}
