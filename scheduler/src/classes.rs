//! The classes of pods that are known, and what was worked out for each.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use crate::class::{Class, Tolerates};
use crate::groups::Groups;
use crate::intern::Sym;
use crate::matchers::Matchers;
use crate::selector::{Labels, NodeTerm};

/// The number of a class; valid as long as a pod has the class.
pub type ClassId = u32;

/// Classes that no pod has are looked for each time this many were added.
const SWEEP_EVERY: usize = 4096;
/// Memory that cached verdicts may take, bytes.
const MAX_VERDICT_BYTES: usize = 128 << 20;

/// What filters that look only at the node's labels and taints say, per node: a bit per filter that refuses.
#[derive(Clone, Default)]
pub struct Verdicts {
    /// Bits per node.
    pub bits: Arc<Vec<u8>>,
    /// How much of the log of changes is taken in.
    pub seen: usize,
}

/// What these filters look at of a pod. Classes that are alike in it share verdicts: pods that differ in their claims only have a
/// class each.
#[derive(PartialEq, Eq)]
struct Statics {
    scheduler: Arc<str>,
    tolerations: Vec<Tolerates>,
    node_selector: Vec<(Sym, Sym)>,
    required: Option<Vec<NodeTerm>>,
    node: Arc<str>,
}

impl Statics {
    fn of(class: &Class, node: &Arc<str>) -> Self {
        Self {
            scheduler: class.scheduler.clone(),
            tolerations: class.tolerations.clone(),
            node_selector: class.node_selector.clone(),
            required: class.required.clone(),
            node: node.clone(),
        }
    }

    fn is_of(&self, class: &Class, node: &Arc<str>) -> bool {
        self.scheduler == class.scheduler
            && self.tolerations == class.tolerations
            && self.node_selector == class.node_selector
            && self.required == class.required
            && self.node == *node
    }

    fn hash_of(class: &Class, node: &Arc<str>) -> u64 {
        let mut hasher = DefaultHasher::new();
        (&class.scheduler, &class.tolerations, &class.node_selector, &class.required, node).hash(&mut hasher);
        hasher.finish()
    }
}

#[derive(Default)]
struct Entry {
    class: Arc<Class>,
    matched: Vec<u32>,
    matchers_seen: usize,
    groups: Arc<Vec<u32>>,
    groups_seen: usize,
    own_groups: Option<Arc<Vec<u32>>>,
}

/// All classes.
#[derive(Default)]
pub struct Classes {
    index: HashMap<Arc<Class>, ClassId>,
    entries: Vec<Option<Entry>>,
    free: Vec<ClassId>,
    added: usize,
    /// By the hash of what they are about.
    verdicts: HashMap<u64, Vec<(Statics, Verdicts)>>,
    verdict_bytes: usize,
}

impl Classes {
    /// The one copy of a class.
    pub fn intern(&mut self, class: Class) -> (Arc<Class>, ClassId) {
        if let Some((class, id)) = self.index.get_key_value(&class) {
            return (class.clone(), *id);
        }
        self.added += 1;
        if self.added >= SWEEP_EVERY {
            self.sweep();
        }
        let class = Arc::new(class);
        let entry = Some(Entry { class: class.clone(), ..Entry::default() });
        let id = match self.free.pop() {
            Some(id) => {
                self.entries[id as usize] = entry;
                id
            }
            None => {
                self.entries.push(entry);
                (self.entries.len() - 1) as ClassId
            }
        };
        self.index.insert(class.clone(), id);
        (class, id)
    }

    /// Forgets classes that no pod has.
    fn sweep(&mut self) {
        self.added = 0;
        let Self { index, entries, free, .. } = self;
        index.retain(|class, id| {
            // One reference is the index's, one the entry's.
            if Arc::strong_count(class) > 2 {
                return true;
            }
            entries[*id as usize] = None;
            free.push(*id);
            false
        });
    }

    /// How many classes there are.
    pub fn count(&self) -> usize {
        self.index.len()
    }

    fn entry(&mut self, id: ClassId) -> &mut Entry {
        self.entries[id as usize].get_or_insert_default()
    }

    /// Compares a class with selectors and terms that are new since the last time.
    pub fn refresh(
        &mut self,
        id: ClassId,
        matchers: &Matchers,
        groups: &Groups,
        namespaces: &HashMap<Arc<str>, Labels>,
    ) {
        let Some(entry) = &mut self.entries[id as usize] else { return };
        if entry.matchers_seen == matchers.known() && entry.groups_seen == groups.known() {
            return;
        }
        let labels = namespaces.get(&entry.class.namespace);
        entry.matched.extend(matchers.matching(entry.matchers_seen, &entry.class, labels));
        entry.matchers_seen = matchers.known();
        let mut news = groups.matching(entry.groups_seen, &entry.class, labels).peekable();
        if news.peek().is_some() {
            Arc::make_mut(&mut entry.groups).extend(news);
        }
        entry.groups_seen = groups.known();
    }

    /// Numbers of the selectors that select pods of a class, ascending.
    pub fn matched(&self, id: ClassId) -> &[u32] {
        self.entries[id as usize].as_ref().map_or(&[], |e| &e.matched)
    }

    /// Numbers of the groups of placed pods whose terms select pods of a class.
    pub fn groups(&self, id: ClassId) -> Arc<Vec<u32>> {
        self.entries[id as usize].as_ref().map(|e| e.groups.clone()).unwrap_or_default()
    }

    /// Numbers of the groups of a class's own terms.
    pub fn own_groups(&mut self, id: ClassId, make: impl FnOnce() -> Vec<u32>) -> Arc<Vec<u32>> {
        self.entry(id).own_groups.get_or_insert_with(|| Arc::new(make())).clone()
    }

    /// Forgets what classes were compared with.
    pub fn forget_matches(&mut self) {
        for entry in self.entries.iter_mut().flatten() {
            let class = std::mem::take(&mut entry.class);
            *entry = Entry { class, ..Entry::default() };
        }
    }

    /// Takes the cached verdicts of a class, for pods that are on `node` or on none; give them back with
    /// [`Self::set_verdicts`].
    pub fn take_verdicts(&mut self, class: &Class, node: &Arc<str>) -> Option<Verdicts> {
        let alike = self.verdicts.get_mut(&Statics::hash_of(class, node))?;
        let (_, found) = alike.iter_mut().find(|(statics, _)| statics.is_of(class, node))?;
        let taken = std::mem::take(found);
        self.verdict_bytes -= taken.bits.len();
        Some(taken)
    }

    /// Caches the verdicts of a class.
    pub fn set_verdicts(&mut self, class: &Class, node: &Arc<str>, verdicts: Verdicts) {
        if self.verdict_bytes > MAX_VERDICT_BYTES {
            self.forget_verdicts();
        }
        let alike = self.verdicts.entry(Statics::hash_of(class, node)).or_default();
        self.verdict_bytes += verdicts.bits.len();
        match alike.iter_mut().find(|(statics, _)| statics.is_of(class, node)) {
            Some((_, found)) => {
                self.verdict_bytes -= found.bits.len();
                *found = verdicts;
            }
            None => alike.push((Statics::of(class, node), verdicts)),
        }
    }

    /// Forgets all verdicts.
    pub fn forget_verdicts(&mut self) {
        self.verdict_bytes = 0;
        self.verdicts.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_that_are_alike_for_nodes_share_verdicts() {
        let mut classes = Classes::default();
        let none: Arc<str> = "".into();
        let class = |priority: i32, selector: &[(Sym, Sym)]| Class {
            priority,
            node_selector: selector.to_vec(),
            ..Class::default()
        };
        let verdicts = |bits: &[u8]| Verdicts { bits: Arc::new(bits.to_vec()), seen: 1 };
        classes.set_verdicts(&class(1, &[]), &none, verdicts(&[1, 2]));
        let bits = |found: Option<Verdicts>| found.map(|v| v.bits.to_vec());
        assert_eq!(bits(classes.take_verdicts(&class(1, &[(Sym(1), Sym(2))]), &none)), None, "another selector");
        assert_eq!(bits(classes.take_verdicts(&class(1, &[]), &"n".into())), None, "on a node");
        assert_eq!(bits(classes.take_verdicts(&class(2, &[]), &none)), Some(vec![1, 2]), "priorities do not matter");
        assert_eq!(bits(classes.take_verdicts(&class(2, &[]), &none)), Some(vec![]), "they are taken");
        classes.set_verdicts(&class(3, &[]), &none, verdicts(&[3]));
        classes.set_verdicts(&class(3, &[]), &none, verdicts(&[4, 5]));
        assert_eq!((classes.verdict_bytes, classes.verdicts.len()), (2, 1));
    }
}
