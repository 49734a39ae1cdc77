//! A set of field paths, as a tree.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::path::PathElement;
use super::shape::{Atom, Node};

/// A set of paths. Invariant: no child is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet {
    members: BTreeSet<PathElement>,
    children: BTreeMap<PathElement, FieldSet>,
}

impl FieldSet {
    /// The set of one path and others like it.
    pub fn of(paths: &[&[&str]]) -> Self {
        let mut set = Self::default();
        for path in paths {
            let path: Vec<PathElement> = path.iter().map(|name| PathElement::Field((*name).to_owned())).collect();
            set.insert(&path);
        }
        set
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.children.is_empty()
    }

    /// Adds a path; the empty path is no member of anything.
    pub fn insert(&mut self, path: &[PathElement]) {
        match path {
            [] => {}
            [last] => {
                self.members.insert(last.clone());
            }
            [first, rest @ ..] => self.children.entry(first.clone()).or_default().insert(rest),
        }
    }

    /// Adds a step from here, if it is a member, and what is below it. Nothing was below it before.
    pub(super) fn put(&mut self, step: PathElement, member: bool, below: Self) {
        match (member, below.is_empty()) {
            (true, true) => {
                self.members.insert(step);
            }
            (true, false) => {
                self.members.insert(step.clone());
                self.children.insert(step, below);
            }
            (false, false) => {
                self.children.insert(step, below);
            }
            (false, true) => {}
        }
    }

    /// Takes away what is in the other; a member there takes away only itself, not what is below.
    pub(super) fn subtract(&mut self, other: &Self) {
        for element in &other.members {
            self.members.remove(element);
        }
        for (element, theirs) in &other.children {
            if let Some(child) = self.children.get_mut(element) {
                child.subtract(theirs);
                if child.is_empty() {
                    self.children.remove(element);
                }
            }
        }
    }

    /// Takes away what is in the other or below one of its members.
    pub(super) fn strip(&mut self, other: &Self) {
        for element in &other.members {
            self.members.remove(element);
            self.children.remove(element);
        }
        for (element, theirs) in &other.children {
            if let Some(child) = self.children.get_mut(element) {
                child.strip(theirs);
                if child.is_empty() {
                    self.children.remove(element);
                }
            }
        }
    }

    /// Whether a step from here is a member.
    pub fn has(&self, element: &PathElement) -> bool {
        self.members.contains(element)
    }

    /// What is below a step.
    pub fn below(&self, element: &PathElement) -> Option<&FieldSet> {
        self.children.get(element)
    }

    /// Both sets together.
    pub fn union(&self, other: &Self) -> Self {
        let mut out = self.clone();
        out.members.extend(other.members.iter().cloned());
        for (element, child) in &other.children {
            let merged = out.children.get(element).map_or_else(|| child.clone(), |own| own.union(child));
            out.children.insert(element.clone(), merged);
        }
        out
    }

    /// What is in both.
    pub fn intersection(&self, other: &Self) -> Self {
        let members = self.members.intersection(&other.members).cloned().collect();
        let children = self.children.iter().filter_map(|(element, child)| {
            let both = child.intersection(other.children.get(element)?);
            (!both.is_empty()).then(|| (element.clone(), both))
        });
        Self { members, children: children.collect() }
    }

    /// What is here and not in the other; a member there takes away only itself, not what is below.
    pub fn difference(&self, other: &Self) -> Self {
        let members = self.members.difference(&other.members).cloned().collect();
        let children = self.children.iter().filter_map(|(element, child)| {
            let left = other.children.get(element).map_or_else(|| child.clone(), |theirs| child.difference(theirs));
            (!left.is_empty()).then(|| (element.clone(), left))
        });
        Self { members, children: children.collect() }
    }

    /// What is neither in the other nor below one of its members.
    pub fn without(&self, other: &Self) -> Self {
        let members = self.members.difference(&other.members).cloned().collect();
        let children = self.children.iter().filter_map(|(element, child)| {
            if other.members.contains(element) {
                return None;
            }
            let left = other.children.get(element).map_or_else(|| child.clone(), |theirs| child.without(theirs));
            (!left.is_empty()).then(|| (element.clone(), left))
        });
        Self { members, children: children.collect() }
    }

    /// With every named field that has something below it as a member too, so that removing it removes it whole.
    pub(super) fn with_named_parents(&self, node: Node<'_>) -> Self {
        let atom = node.atom(None);
        let mut out = Self { members: self.members.clone(), children: BTreeMap::new() };
        for (element, child) in &self.children {
            let mut inner = Node::Free;
            match (element, &atom) {
                (PathElement::Field(name), Atom::Map { fields, .. }) => {
                    if let Some(field) = fields.named(name) {
                        out.members.insert(element.clone());
                        inner = field;
                    } else if let Some(item) = fields.any() {
                        inner = item;
                    }
                }
                (_, Atom::List { item, .. }) => inner = *item,
                _ => {}
            }
            out.children.insert(element.clone(), child.with_named_parents(inner));
        }
        out
    }

    /// Each step from here that has something below it.
    pub(super) fn inner_steps(&self) -> impl Iterator<Item = (&PathElement, &FieldSet)> {
        self.children.iter()
    }

    /// Gives a step just this below it; a step with nothing below it is a member.
    pub(super) fn replace(&mut self, step: &PathElement, below: FieldSet) {
        if below.is_empty() {
            self.members.insert(step.clone());
            self.children.remove(step);
        } else {
            self.children.insert(step.clone(), below);
        }
    }

    /// All paths, in order, as messages write them.
    pub fn paths(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.collect("", &mut out);
        out
    }

    fn collect(&self, prefix: &str, out: &mut Vec<String>) {
        out.extend(self.members.iter().map(|element| format!("{prefix}{element}")));
        for (element, child) in &self.children {
            child.collect(&format!("{prefix}{element}"), out);
        }
    }

    /// Reads `fieldsV1`.
    pub fn from_v1(value: &Value) -> Result<Self, String> {
        let Value::Object(map) = value else { return Err("fieldsV1 must be an object".into()) };
        let mut out = Self::default();
        for (key, below) in map {
            // `.` says that the object itself is a member; that was noted by its parent.
            if key == "." {
                continue;
            }
            // What a later version may have written and nobody here knows is left out.
            if is_unknown_kind(key) {
                continue;
            }
            let element = PathElement::parse(key).ok_or_else(|| format!("invalid path element {key:?}"))?;
            let itself = below.as_object().is_some_and(|m| m.is_empty() || m.contains_key("."));
            let child = Self::from_v1(below)?;
            if itself {
                out.members.insert(element.clone());
            }
            if !child.is_empty() {
                out.children.insert(element, child);
            }
        }
        Ok(out)
    }

    /// Whether all of it is in a set that is written as `fieldsV1`.
    pub fn is_within(&self, fields: &Value) -> bool {
        self.members.iter().all(|element| is_member(fields, element))
            && self
                .children
                .iter()
                .all(|(element, child)| fields.get(element.encoded()).is_some_and(|below| child.is_within(below)))
    }

    /// Whether anything of it is in a set that is written as `fieldsV1`.
    pub fn meets(&self, fields: &Value) -> bool {
        self.members.iter().any(|element| is_member(fields, element))
            || self
                .children
                .iter()
                .any(|(element, child)| fields.get(element.encoded()).is_some_and(|below| child.meets(below)))
    }

    /// As `fieldsV1`.
    pub fn to_v1(&self) -> Value {
        let mut map = Map::new();
        for element in &self.members {
            map.insert(element.encoded(), Value::Object(Map::new()));
        }
        for (element, child) in &self.children {
            let mut value = child.to_v1();
            if self.members.contains(element)
                && let Some(map) = value.as_object_mut()
            {
                map.insert(".".into(), Value::Object(Map::new()));
            }
            map.insert(element.encoded(), value);
        }
        Value::Object(map)
    }
}

/// Whether a key of `fieldsV1` is of a kind of steps that is none of those in [`PathElement`].
fn is_unknown_kind(key: &str) -> bool {
    matches!(key.as_bytes(), [kind, b':', ..] if !b"fkvi".contains(kind))
}

/// Whether a step is a member of what is written as `fieldsV1`, as [`FieldSet::from_v1`] reads it.
fn is_member(fields: &Value, element: &PathElement) -> bool {
    let below = fields.get(element.encoded()).and_then(Value::as_object);
    below.is_some_and(|below| below.is_empty() || below.contains_key("."))
}
