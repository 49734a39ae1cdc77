//! The current keys: an ordered map that is cloned in O(1), a B+ tree whose nodes are copied when they are shared.
//!
//! Invariants: all leaves are at the same depth and, unless there is no key, none is empty; a separator is above every key
//! before its child and not above any key in it; what a clone shows never changes.

use std::ops::Bound;
use std::sync::Arc;

use crate::KeyValue;

/// Most keys of a leaf: few, as a leaf that a snapshot still shows is copied before a key in it changes.
const LEAF_KEYS: usize = 16;
/// Most children of an inner node.
const CHILDREN: usize = 32;
/// Nodes with less are joined with a neighbour if both fit into one.
const FEW: usize = 4;

/// A separator of its own bytes: a key's are one with its value's, which it would keep alive.
type Separator = Arc<[u8]>;

#[derive(Clone)]
enum Node {
    Leaf(Arc<Vec<Arc<KeyValue>>>),
    Inner(Arc<Inner>),
}

#[derive(Clone, Default)]
struct Inner {
    /// The first one is not looked at.
    separators: Vec<Separator>,
    children: Vec<Node>,
}

/// The map.
#[derive(Clone)]
pub(crate) struct Tree {
    root: Node,
    len: usize,
}

impl Default for Tree {
    fn default() -> Self {
        Self { root: Node::Leaf(Arc::default()), len: 0 }
    }
}

/// Where a key is in a leaf, or would be.
fn search(leaf: &[Arc<KeyValue>], key: &[u8]) -> Result<usize, usize> {
    leaf.binary_search_by(|kv| (*kv.key).cmp(key))
}

/// The node that has come behind another one, and what separates them, when that one had become too large.
type Split = Option<(Separator, Node)>;

impl Inner {
    /// The child that has a key, if any has.
    fn child(&self, key: &[u8]) -> usize {
        self.separators[1..].partition_point(|separator| **separator <= *key)
    }

    /// Joins a child that has become small with a neighbour, or removes it when it is empty.
    fn tidy(&mut self, at: usize) {
        let size = self.children[at].size();
        if size == 0 {
            self.children.remove(at);
            self.separators.remove(at);
            return;
        }
        if size >= FEW || self.children.len() == 1 {
            return;
        }
        let right = at.max(1);
        let (one, other) = (&self.children[right - 1], &self.children[right]);
        let most = if matches!(one, Node::Leaf(_)) { LEAF_KEYS } else { CHILDREN };
        if one.size() + other.size() > most {
            return;
        }
        let (separator, node) = (self.separators.remove(right), self.children.remove(right));
        self.children[right - 1].append(separator, node);
    }
}

impl Node {
    /// Keys of a leaf, children of an inner node.
    fn size(&self) -> usize {
        match self {
            Self::Leaf(leaf) => leaf.len(),
            Self::Inner(inner) => inner.children.len(),
        }
    }

    fn insert(&mut self, kv: Arc<KeyValue>) -> Split {
        match self {
            Self::Leaf(leaf) => insert_into(Arc::make_mut(leaf), kv),
            Self::Inner(inner) => {
                let inner = Arc::make_mut(inner);
                let at = inner.child(&kv.key);
                let (separator, node) = inner.children[at].insert(kv)?;
                inner.separators.insert(at + 1, separator);
                inner.children.insert(at + 1, node);
                if inner.children.len() <= CHILDREN {
                    return None;
                }
                let half = middle(at + 1, inner.children.len());
                let (separators, children) = (inner.separators.split_off(half), inner.children.split_off(half));
                let separator = separators[0].clone();
                Some((separator, Self::Inner(Arc::new(Inner { separators, children }))))
            }
        }
    }

    /// Removes a key that is there.
    fn remove(&mut self, key: &[u8]) {
        match self {
            Self::Leaf(leaf) => {
                if let Ok(at) = search(leaf, key) {
                    Arc::make_mut(leaf).remove(at);
                }
            }
            Self::Inner(inner) => {
                let inner = Arc::make_mut(inner);
                let at = inner.child(key);
                inner.children[at].remove(key);
                inner.tidy(at);
            }
        }
    }

    /// Adds what is behind this node, from `separator` on.
    fn append(&mut self, separator: Separator, node: Self) {
        match (self, node) {
            (Self::Leaf(leaf), Self::Leaf(other)) => Arc::make_mut(leaf).extend(other.iter().cloned()),
            (Self::Inner(inner), Self::Inner(other)) => {
                let inner = Arc::make_mut(inner);
                inner.separators.push(separator);
                inner.separators.extend(other.separators[1..].iter().cloned());
                inner.children.extend(other.children.iter().cloned());
            }
            _ => debug_assert!(false, "neighbours are alike"),
        }
    }
}

/// Where an overfull node is split in which something was added at `at`: keys that come in order leave full nodes.
fn middle(at: usize, len: usize) -> usize {
    if at + 1 == len { len - 1 } else { len / 2 }
}

fn insert_into(leaf: &mut Vec<Arc<KeyValue>>, kv: Arc<KeyValue>) -> Split {
    let at = match search(leaf, &kv.key) {
        Ok(at) => {
            leaf[at] = kv;
            return None;
        }
        Err(at) => at,
    };
    leaf.insert(at, kv);
    if leaf.len() <= LEAF_KEYS {
        return None;
    }
    let other = leaf.split_off(middle(at, leaf.len()));
    Some((Separator::from(&*other[0].key), Node::Leaf(Arc::new(other))))
}

/// Whether two nodes show the same keys of an interval. What they share is not looked into; nodes that are divided in
/// different ways count as different.
fn same(one: &Node, other: &Node, from: &[u8], below: Option<&[u8]>) -> bool {
    match (one, other) {
        (Node::Leaf(one), Node::Leaf(other)) => {
            let within = |leaf: &[Arc<KeyValue>]| {
                let start = leaf.partition_point(|kv| *kv.key < *from);
                let end = below.map_or(leaf.len(), |below| leaf.partition_point(|kv| *kv.key < *below));
                start..end.max(start)
            };
            Arc::ptr_eq(one, other) || {
                let (keys, others) = (&one[within(one)], &other[within(other)]);
                keys.len() == others.len() && keys.iter().zip(others).all(|(one, other)| Arc::ptr_eq(one, other))
            }
        }
        (Node::Inner(one), Node::Inner(other)) => Arc::ptr_eq(one, other) || one.same(other, from, below),
        _ => false,
    }
}

impl Inner {
    /// The children that may have keys of an interval.
    fn within(&self, from: &[u8], below: Option<&[u8]>) -> std::ops::Range<usize> {
        let last = below.map_or(self.children.len(), |below| {
            1 + self.separators[1..].partition_point(|separator| **separator < *below)
        });
        self.child(from)..last.max(self.child(from) + 1)
    }

    fn same(&self, other: &Self, from: &[u8], below: Option<&[u8]>) -> bool {
        let (mine, theirs) = (self.within(from, below), other.within(from, below));
        mine.len() == theirs.len()
            && mine.zip(theirs).all(|(mine, theirs)| same(&self.children[mine], &other.children[theirs], from, below))
    }
}

impl Tree {
    /// Whether two maps show the same from a key to below another. May say no of maps that do, never yes of others.
    pub fn same(&self, other: &Self, from: &[u8], below: Option<&[u8]>) -> bool {
        same(&self.root, &other.root, from, below)
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.len
    }

    /// One key.
    pub fn get(&self, key: &[u8]) -> Option<&Arc<KeyValue>> {
        let mut node = &self.root;
        loop {
            match node {
                Node::Leaf(leaf) => return search(leaf, key).ok().map(|at| &leaf[at]),
                Node::Inner(inner) => node = &inner.children[inner.child(key)],
            }
        }
    }

    /// Sets a key; `new` if it is not there yet.
    pub fn insert(&mut self, kv: Arc<KeyValue>, new: bool) {
        self.len += usize::from(new);
        if let Some((separator, node)) = self.root.insert(kv) {
            let first = std::mem::replace(&mut self.root, Node::Leaf(Arc::default()));
            let inner = Inner { separators: vec![separator.clone(), separator], children: vec![first, node] };
            self.root = Node::Inner(Arc::new(inner));
        }
    }

    /// Removes a key that is there.
    pub fn remove(&mut self, key: &[u8]) {
        self.len -= 1;
        self.root.remove(key);
        while let Node::Inner(inner) = &self.root
            && inner.children.len() <= 1
        {
            let only = inner.children.first().cloned();
            self.root = only.unwrap_or_else(|| Node::Leaf(Arc::default()));
        }
    }

    /// The keys between two bounds, in order.
    pub fn range<'a>(&'a self, lower: Bound<&[u8]>, upper: Bound<Vec<u8>>) -> Range<'a> {
        let mut range = Range { above: Vec::new(), leaf: [].iter(), upper, last: false };
        let mut node = &self.root;
        loop {
            match node {
                Node::Inner(inner) => {
                    let at = match lower {
                        Bound::Included(key) | Bound::Excluded(key) => inner.child(key),
                        Bound::Unbounded => 0,
                    };
                    range.above.push(inner.children[at + 1..].iter());
                    node = &inner.children[at];
                }
                Node::Leaf(leaf) => {
                    let begin = match lower {
                        Bound::Included(key) => leaf.partition_point(|kv| *kv.key < *key),
                        Bound::Excluded(key) => leaf.partition_point(|kv| *kv.key <= *key),
                        Bound::Unbounded => 0,
                    };
                    range.enter(&leaf[begin..]);
                    return range;
                }
            }
        }
    }
}

/// Keys in order.
pub(crate) struct Range<'a> {
    /// What comes after the current leaf, nearest last.
    above: Vec<std::slice::Iter<'a, Node>>,
    leaf: std::slice::Iter<'a, Arc<KeyValue>>,
    upper: Bound<Vec<u8>>,
    /// Whether nothing comes after the current leaf.
    last: bool,
}

impl<'a> Range<'a> {
    /// A range of nothing.
    pub fn empty() -> Self {
        Self { above: Vec::new(), leaf: [].iter(), upper: Bound::Unbounded, last: true }
    }

    /// Goes on with these keys, as far as they are below the upper bound.
    fn enter(&mut self, keys: &'a [Arc<KeyValue>]) {
        let within = |kv: &Arc<KeyValue>| match &self.upper {
            Bound::Included(upper) => *kv.key <= **upper,
            Bound::Excluded(upper) => *kv.key < **upper,
            Bound::Unbounded => true,
        };
        let all = keys.last().is_none_or(within);
        let end = if all { keys.len() } else { keys.partition_point(within) };
        self.last = !all;
        self.leaf = keys[..end].iter();
    }

    /// Goes on with the next leaf; false if there is none.
    fn next_leaf(&mut self) -> bool {
        while !self.last
            && let Some(nodes) = self.above.last_mut()
        {
            let Some(mut node) = nodes.next() else {
                self.above.pop();
                continue;
            };
            loop {
                match node {
                    Node::Leaf(leaf) => {
                        self.enter(leaf);
                        return true;
                    }
                    Node::Inner(inner) => {
                        self.above.push(inner.children[1..].iter());
                        node = &inner.children[0];
                    }
                }
            }
        }
        false
    }
}

impl<'a> Iterator for Range<'a> {
    type Item = &'a Arc<KeyValue>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(kv) = self.leaf.next() {
                return Some(kv);
            }
            if !self.next_leaf() {
                return None;
            }
        }
    }

    /// Leaf by leaf.
    fn count(mut self) -> usize {
        let mut sum = self.leaf.len();
        while self.next_leaf() {
            sum += self.leaf.len();
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn kv(key: &[u8], version: i64) -> Arc<KeyValue> {
        let (key, value) = (Bytes::copy_from_slice(key), Bytes::new());
        Arc::new(KeyValue { key, value, create_revision: 1, mod_revision: 1, version, lease: 0 })
    }

    #[test]
    fn what_did_not_change_is_the_same() {
        let mut tree = Tree::default();
        for index in 0..2_000_u32 {
            tree.insert(kv(format!("{}/{index:05}", index % 7).as_bytes(), 1), true);
        }
        let before = tree.clone();
        let same = |tree: &Tree, bucket: &str| {
            let (from, below) = (format!("{bucket}/"), format!("{bucket}0"));
            tree.same(&before, from.as_bytes(), Some(below.as_bytes()))
        };
        let unchanged = |tree: &Tree| (0..7).filter(|bucket| same(tree, &bucket.to_string())).collect::<Vec<u32>>();
        assert_eq!(unchanged(&tree), [0, 1, 2, 3, 4, 5, 6]);
        assert!(tree.same(&before, b"", None));
        tree.insert(kv(b"3/00003", 2), false);
        assert_eq!(unchanged(&tree), [0, 1, 2, 4, 5, 6], "another value");
        tree.insert(kv(b"5/99999", 1), true);
        assert_eq!(unchanged(&tree), [0, 1, 2, 4, 6], "one more");
        tree.remove(b"1/00001");
        assert_eq!(unchanged(&tree), [0, 2, 4, 6], "one less");
        assert!(!tree.same(&before, b"", None));
        assert!(same(&tree, "9"), "nothing is the same as nothing");
    }

    /// The leaves' depth; checks what must hold of a node whose keys lie between the two.
    fn depth(node: &Node, root: bool, from: &[u8], to: Option<&[u8]>) -> usize {
        assert!(root || node.size() > 0, "a node is empty");
        match node {
            Node::Leaf(leaf) => {
                assert!(leaf.len() <= LEAF_KEYS);
                assert!(leaf.is_sorted_by(|a, b| a.key < b.key));
                assert!(leaf.iter().all(|kv| *kv.key >= *from && to.is_none_or(|to| *kv.key < *to)));
                1
            }
            Node::Inner(inner) => {
                assert!(inner.children.len() <= CHILDREN && (!root || inner.children.len() > 1));
                assert_eq!(inner.children.len(), inner.separators.len());
                let bound = |at: usize| inner.separators.get(at).map(|separator| &**separator);
                let depths = inner.children.iter().enumerate().map(|(at, child)| {
                    let from = if at == 0 { from } else { bound(at).unwrap() };
                    depth(child, false, from, bound(at + 1).or(to))
                });
                let depths: Vec<_> = depths.collect();
                assert!(depths.windows(2).all(|pair| pair[0] == pair[1]), "leaves at different depths");
                depths[0] + 1
            }
        }
    }

    fn shown(tree: &Tree) -> Vec<(Bytes, i64)> {
        tree.range(Bound::Unbounded, Bound::Unbounded).map(|kv| (kv.key.clone(), kv.version)).collect()
    }

    type Model = BTreeMap<Bytes, i64>;

    fn check(tree: &Tree, model: &Model) {
        depth(&tree.root, true, &[], None);
        assert_eq!(tree.len(), model.len());
        assert_eq!(shown(tree), model.iter().map(|(key, version)| (key.clone(), *version)).collect::<Vec<_>>());
    }

    fn put(tree: &mut Tree, model: &mut Model, key: &[u8], version: i64) {
        tree.insert(kv(key, version), tree.get(key).is_none());
        model.insert(Bytes::copy_from_slice(key), version);
    }

    fn delete(tree: &mut Tree, model: &mut Model, key: &[u8]) {
        if tree.get(key).is_some() {
            tree.remove(key);
        }
        model.remove(key);
    }

    #[test]
    fn keys_that_come_in_order_fill_their_leaves() {
        let (mut tree, mut model) = (Tree::default(), Model::new());
        for number in 0..5_000_u32 {
            put(&mut tree, &mut model, &number.to_be_bytes(), 1);
        }
        check(&tree, &model);
        assert!(depth(&tree.root, true, &[], None) <= 4, "{}", depth(&tree.root, true, &[], None));
        for number in (0..5_000_u32).filter(|number| number % 7 != 3).chain([3]) {
            delete(&mut tree, &mut model, &number.to_be_bytes());
        }
        check(&tree, &model);
        for number in 0..5_000_u32 {
            delete(&mut tree, &mut model, &number.to_be_bytes());
        }
        check(&tree, &model);
        assert_eq!(tree.len(), 0);
    }

    proptest! {
        #[test]
        fn it_is_an_ordered_map_whose_clones_stay_as_they_were(
            steps in proptest::collection::vec((0_u8..4, 0_u16..600), 0..1500),
            bounds in proptest::collection::vec((0_u16..600, 0_u16..600, any::<bool>(), any::<bool>()), 10),
        ) {
            let (mut tree, mut model) = (Tree::default(), Model::new());
            let mut kept = Vec::new();
            for (at, (what, key)) in steps.iter().enumerate() {
                let key = key.to_be_bytes();
                if *what == 0 {
                    delete(&mut tree, &mut model, &key);
                } else {
                    put(&mut tree, &mut model, &key, at as i64);
                }
                if at % 250 == 0 {
                    kept.push((tree.clone(), model.clone()));
                }
            }
            kept.push((tree, model));
            for (tree, model) in &kept {
                check(tree, model);
            }
            let (tree, model) = &kept[kept.len() - 1];
            for (from, to, with_from, with_to) in bounds {
                let (from, to) = (from.min(to).to_be_bytes(), (from.max(to) + 1).to_be_bytes());
                let lower = if with_from { Bound::Included(&from[..]) } else { Bound::Excluded(&from[..]) };
                let upper = if with_to { Bound::Included(&to[..]) } else { Bound::Excluded(&to[..]) };
                let want: Vec<_> = model.range::<[u8], _>((lower, upper)).map(|(key, _)| key.clone()).collect();
                let found = || tree.range(lower, upper.map(<[u8]>::to_vec));
                prop_assert_eq!(found().map(|kv| kv.key.clone()).collect::<Vec<_>>(), &want[..]);
                prop_assert_eq!(found().count(), want.len());
            }
            for key in 0..600_u16 {
                let found = tree.get(&key.to_be_bytes()).map(|kv| kv.version);
                prop_assert_eq!(found, model.get(&key.to_be_bytes()[..]).copied());
            }
        }
    }
}
