//! Selectors of constraints and how many pods each selects on each node, counted as pods come and go.

use std::collections::HashMap;

use crate::class::{Class, Namespaces};
use crate::selector::{Labels, Selector};
use crate::view::Slot;

/// Memory that counters may take, bytes; beyond it all are forgotten and counted anew as needed.
const MAX_BYTES: usize = 512 << 20;

/// What is counted: pods that all of the pairs select.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MatcherKey {
    /// Namespaces and selectors (`None` selects nothing).
    pub all: Vec<(Namespaces, Option<Selector>)>,
    /// Pods that are being deleted do not count.
    pub live_only: bool,
}

impl MatcherKey {
    /// Whether pods of a class count.
    pub fn matches(&self, class: &Class, namespace_labels: Option<&Labels>) -> bool {
        self.all.iter().all(|(namespaces, selector)| selects(namespaces, selector.as_ref(), class, namespace_labels))
    }
}

/// Whether a selector with its namespaces selects pods of a class.
pub fn selects(
    namespaces: &Namespaces,
    selector: Option<&Selector>,
    class: &Class,
    namespace_labels: Option<&Labels>,
) -> bool {
    let none = Labels::new();
    selector.is_some_and(|s| s.matches(&class.labels))
        && (namespaces.names.contains(&class.namespace)
            || namespaces.selector.as_ref().is_some_and(|s| s.matches(namespace_labels.unwrap_or(&none))))
}

struct Matcher {
    key: MatcherKey,
    counts: Vec<u32>,
}

/// All that are counted. Numbers only grow, so "those from n on" are the ones a class has not been compared with.
#[derive(Default)]
pub struct Matchers {
    list: Vec<Matcher>,
    index: HashMap<MatcherKey, u32>,
    bytes: usize,
    by_namespace_labels: bool,
}

impl Matchers {
    /// The number of a selector that is counted.
    pub fn find(&self, key: &MatcherKey) -> Option<u32> {
        self.index.get(key).copied()
    }

    /// Starts counting; the counts are filled by the caller.
    pub fn add(&mut self, key: MatcherKey) -> u32 {
        self.by_namespace_labels |= key.all.iter().any(|(n, _)| n.selector.is_some());
        let id = self.list.len() as u32;
        self.index.insert(key.clone(), id);
        self.list.push(Matcher { key, counts: Vec::new() });
        id
    }

    /// How many there are.
    pub fn known(&self) -> usize {
        self.list.len()
    }

    /// Whether it is time to forget all.
    pub fn too_large(&self) -> bool {
        self.bytes > MAX_BYTES
    }

    /// Whether one depends on labels of namespaces.
    pub fn by_namespace_labels(&self) -> bool {
        self.by_namespace_labels
    }

    /// Numbers of those from `first` on that select a class.
    pub fn matching<'a>(
        &'a self,
        first: usize,
        class: &'a Class,
        namespace_labels: Option<&'a Labels>,
    ) -> impl Iterator<Item = u32> + 'a {
        let news = self.list.iter().enumerate().skip(first);
        news.filter(move |(_, m)| m.key.matches(class, namespace_labels)).map(|(i, _)| i as u32)
    }

    /// Counts a pod on a node.
    pub fn count(&mut self, ids: &[u32], slot: Slot, terminating: bool, by: i64) {
        for id in ids {
            let matcher = &mut self.list[*id as usize];
            if terminating && matcher.key.live_only {
                continue;
            }
            if matcher.counts.len() <= slot as usize {
                let len = (slot as usize + 1).next_power_of_two();
                self.bytes += (len - matcher.counts.len()) * 4;
                matcher.counts.resize(len, 0);
            }
            let count = &mut matcher.counts[slot as usize];
            *count = count.saturating_add_signed(by as i32);
        }
    }

    /// Pods on each node; nodes beyond the end have none.
    pub fn counts(&self, id: u32) -> &[u32] {
        &self.list[id as usize].counts
    }
}
