//! Affinity terms that placed pods have, grouped: what an incoming pod must be compared with is the distinct terms, not the
//! pods.

use std::collections::HashMap;

use crate::class::{Class, Term};
use crate::classes::Classes;
use crate::matchers::selects;
use crate::selector::Labels;
use crate::view::{PodInfo, Slot};

/// What a term of a placed pod does to incoming pods that it selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Keeps them out of its domain.
    Forbids,
    /// Requires to be near such pods: attracts them with the profile's `hardPodAffinityWeight`.
    Requires,
    /// Attracts (above 0) or repels (below).
    Weighs(i32),
}

/// Placed pods with the same term.
pub struct Group {
    /// The term.
    pub term: Term,
    /// What it does.
    pub effect: Effect,
    /// How many such pods each node has.
    pub nodes: HashMap<Slot, u32>,
}

/// Groups without pods that are kept, since pods with their terms may come again.
const MAX_IDLE: usize = 4096;

/// All groups. Numbers only grow.
#[derive(Default)]
pub struct Groups {
    list: Vec<Group>,
    /// Groups that have no pods.
    idle: usize,
    index: HashMap<(Term, Effect), u32>,
    by_namespace_labels: bool,
}

impl Groups {
    /// A group by number.
    pub fn get(&self, id: u32) -> &Group {
        &self.list[id as usize]
    }

    /// How many there are.
    pub fn known(&self) -> usize {
        self.list.len()
    }

    /// Whether too many are known that no pod has any more: each roll-out may bring terms of its own.
    pub fn too_many(&self) -> bool {
        self.idle > MAX_IDLE
    }

    /// Whether one depends on labels of namespaces.
    pub fn by_namespace_labels(&self) -> bool {
        self.by_namespace_labels
    }

    /// Numbers of the groups of a class's own terms.
    fn own(&mut self, class: &Class) -> Vec<u32> {
        let forbids = class.anti_affinity.iter().map(|t| (t, Effect::Forbids));
        let requires = class.affinity.iter().map(|t| (t, Effect::Requires));
        let weighs = class.preferred_pods.iter().map(|(w, t)| (t, Effect::Weighs(*w)));
        let mut own = Vec::new();
        for (term, effect) in forbids.chain(requires).chain(weighs) {
            let key = (term.clone(), effect);
            let id = self.index.get(&key).copied().unwrap_or_else(|| {
                self.by_namespace_labels |= term.namespaces.selector.is_some();
                self.list.push(Group { term: term.clone(), effect, nodes: HashMap::new() });
                self.idle += 1;
                let id = (self.list.len() - 1) as u32;
                self.index.insert(key, id);
                id
            });
            own.push(id);
        }
        own
    }

    /// Counts a pod on a node in the groups of its terms.
    pub fn count(&mut self, pod: &PodInfo, slot: Slot, by: i64, classes: &mut Classes) {
        let class = &pod.class;
        if class.affinity.is_empty() && class.anti_affinity.is_empty() && class.preferred_pods.is_empty() {
            return;
        }
        for id in classes.own_groups(pod.class_id, || self.own(class)).iter() {
            let nodes = &mut self.list[*id as usize].nodes;
            let before = nodes.is_empty();
            let count = nodes.entry(slot).or_default();
            *count = count.saturating_add_signed(by as i32);
            if *count == 0 {
                nodes.remove(&slot);
            }
            match (before, nodes.is_empty()) {
                (true, false) => self.idle -= 1,
                (false, true) => self.idle += 1,
                _ => {}
            }
        }
    }

    /// Numbers of the groups from `first` on whose term selects a class.
    pub fn matching<'a>(
        &'a self,
        first: usize,
        class: &'a Class,
        namespace_labels: Option<&'a Labels>,
    ) -> impl Iterator<Item = u32> + 'a {
        let news = self.list.iter().enumerate().skip(first);
        let selected = move |g: &Group| selects(&g.term.namespaces, g.term.selector.as_ref(), class, namespace_labels);
        news.filter(move |(_, g)| selected(g)).map(|(i, _)| i as u32)
    }
}
