//! Domains: nodes with the same value of a label are one domain of that label.

use std::collections::HashMap;

use crate::intern::Sym;
use crate::selector::{NodeLabels, node_label};
use crate::view::Slot;

/// The domain of a node that lacks the label.
pub const NONE: u32 = u32::MAX;

/// Domains without nodes that are kept for a label.
const MAX_PAST_DOMAINS: usize = 1024;

/// One label's domains.
#[derive(Default)]
pub struct Topology {
    /// The label.
    pub key: Sym,
    /// The domain of each node.
    pub domain: Vec<u32>,
    /// How many domains there ever were; their numbers are below this.
    pub domains: usize,
    numbers: HashMap<Sym, u32>,
}

impl Topology {
    fn set(&mut self, slot: Slot, labels: &NodeLabels) {
        if self.domain.len() <= slot as usize {
            self.domain.resize(slot as usize + 1, NONE);
        }
        self.domain[slot as usize] = match node_label(labels, self.key) {
            Some(value) => *self.numbers.entry(value).or_insert_with(|| {
                self.domains += 1;
                (self.domains - 1) as u32
            }),
            None => NONE,
        };
    }

    /// The domain of a node.
    pub fn of(&self, slot: Slot) -> u32 {
        self.domain.get(slot as usize).copied().unwrap_or(NONE)
    }
}

/// The labels that constraints mention.
#[derive(Default)]
pub struct Topologies {
    list: Vec<Topology>,
    index: HashMap<Sym, usize>,
}

impl Topologies {
    /// The number of a label's topology, known from now on.
    pub fn ensure<'a>(&mut self, key: Sym, nodes: impl Iterator<Item = &'a NodeLabels>) -> usize {
        if let Some(at) = self.index.get(&key) {
            return *at;
        }
        let mut topology = Topology { key, ..Topology::default() };
        for (slot, labels) in nodes.enumerate() {
            topology.set(slot as Slot, labels);
        }
        self.index.insert(key, self.list.len());
        self.list.push(topology);
        self.list.len() - 1
    }

    /// Forgets domains once there were many more than there can be: nodes that come and go leave theirs behind. Numbers of
    /// topologies change then.
    pub fn forget_past(&mut self, nodes: usize) {
        if self.list.iter().any(|topology| topology.domains > 2 * nodes + MAX_PAST_DOMAINS) {
            *self = Self::default();
        }
    }

    /// How many labels are known.
    pub fn count(&self) -> usize {
        self.list.len()
    }

    /// A topology by its number.
    pub fn get(&self, at: usize) -> &Topology {
        &self.list[at]
    }

    /// Takes over a node's labels.
    pub fn set_node(&mut self, slot: Slot, labels: &NodeLabels) {
        for topology in &mut self.list {
            topology.set(slot, labels);
        }
    }
}
