//! Operations on values by their schema: the set of fields that a value has, merging, comparing, removing.

use serde_json::{Map, Value};

use super::path::PathElement;
use super::set::FieldSet;
use super::shape::{Atom, Fields, Listing, Node, Scalar};

/// What changed between two values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Only in the second.
    pub added: FieldSet,
    /// In both, with other values.
    pub modified: FieldSet,
    /// Only in the first.
    pub removed: FieldSet,
}

/// Checks a value against its schema; the messages are those of upstream's library, with the path in front.
pub fn validate(node: Node<'_>, value: &Value) -> Result<(), String> {
    told(node, value, Duplicates::Refused)
}

/// As [`validate`] for what is stored already: items that come twice are none of its faults.
pub fn validate_stored(node: Node<'_>, value: &Value) -> Result<(), String> {
    told(node, value, Duplicates::Allowed)
}

/// Whether items of sets and list maps may come twice.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Duplicates {
    Allowed,
    Refused,
}

fn told(node: Node<'_>, value: &Value, duplicates: Duplicates) -> Result<(), String> {
    let mut wrong = Vec::new();
    check(node, value, Place::Root, duplicates, &mut wrong);
    match wrong.len() {
        0 => Ok(()),
        1 => Err(wrong.remove(0)),
        _ => Err(wrong.iter().fold("errors:".into(), |text, why| text + "\n  " + why)),
    }
}

/// Where a check is; written out only for what is wrong.
#[derive(Clone, Copy)]
enum Place<'a> {
    Root,
    Field(&'a Place<'a>, &'a str),
    Item(&'a Place<'a>, &'a PathElement),
}

impl std::fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Field(parent, name) => write!(f, "{parent}.{name}"),
            Self::Item(parent, step) => write!(f, "{parent}{step}"),
        }
    }
}

fn check(node: Node<'_>, value: &Value, path: Place<'_>, duplicates: Duplicates, wrong: &mut Vec<String>) {
    if value.is_null() {
        return;
    }
    let told = |why: String| format!("{}{why}", prefix(&path.to_string()));
    match node.atom(Some(value)) {
        Atom::Scalar(scalar) => wrong.extend(check_scalar(scalar, value).err().map(told)),
        Atom::Map { fields, .. } => {
            let Value::Object(map) = value else {
                return wrong.push(told(format!("expected map, got {}", go_pointer(value))));
            };
            for (key, inner) in map {
                let path = Place::Field(&path, key);
                // Past a field that is not known no other is looked at.
                let Some(field) = fields.field(key) else {
                    return wrong.push(format!("{path}: field not declared in schema"));
                };
                check(field, inner, path, duplicates, wrong);
            }
        }
        Atom::List { listing, item } => {
            let Value::Array(list) = value else {
                return wrong.push(told(format!("expected list, got {}", go_pointer(value))));
            };
            let mut seen = std::collections::BTreeSet::new();
            for (index, inner) in list.iter().enumerate() {
                let element = match element(&listing, index, inner) {
                    Ok(element) => element,
                    Err(why) => return wrong.push(told(format!("element {index}: {why}"))),
                };
                let once =
                    duplicates == Duplicates::Allowed || listing == Listing::Atomic || seen.insert(element.clone());
                if !once {
                    wrong.push(told(format!("duplicate entries for key {element}")));
                }
                check(item, inner, Place::Item(&path, &element), duplicates, wrong);
            }
        }
        Atom::Opaque | Atom::Deduced => {}
    }
}

fn prefix(path: &str) -> String {
    if path.is_empty() { String::new() } else { format!("{path}: ") }
}

fn check_scalar(scalar: Scalar, value: &Value) -> Result<(), String> {
    match (scalar, value) {
        (Scalar::String, Value::String(_)) | (Scalar::Number, Value::Number(_)) | (Scalar::Bool, Value::Bool(_)) => {
            Ok(())
        }
        (Scalar::Any, Value::String(_) | Value::Number(_) | Value::Bool(_)) => Ok(()),
        (Scalar::String, _) => {
            Err(format!("expected string, got &value.valueUnstructured{{Value:{}}}", go_syntax(value)))
        }
        (Scalar::Number, _) => Err(format!("expected numeric (int or float), got {}", go_type(value))),
        (Scalar::Bool, _) => Err(format!("expected boolean, got {}", go_pointer(value))),
        (Scalar::Any, _) => Err(format!("expected any scalar, got {}", go_pointer(value))),
    }
}

/// The name of a value's Go type, as messages of upstream have it.
pub fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// A value as Go's `%v` prints it.
fn go_plain(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".into(),
        Value::String(text) => text.clone(),
        Value::Array(list) => format!("[{}]", list.iter().map(go_plain).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let parts: Vec<String> = map.iter().map(|(k, v)| format!("{k}:{}", go_plain(v))).collect();
            format!("map[{}]", parts.join(" "))
        }
        other => other.to_string(),
    }
}

fn go_pointer(value: &Value) -> String {
    format!("&{{{}}}", go_plain(value))
}

/// A value as Go's `%#v` prints it.
fn go_syntax(value: &Value) -> String {
    match value {
        Value::Null => "interface {}(nil)".into(),
        Value::Array(list) => {
            format!("[]interface {{}}{{{}}}", list.iter().map(go_syntax).collect::<Vec<_>>().join(", "))
        }
        Value::Object(map) => {
            let parts: Vec<String> =
                map.iter().map(|(k, v)| format!("{}:{}", Value::from(k.as_str()), go_syntax(v))).collect();
            format!("map[string]interface {{}}{{{}}}", parts.join(", "))
        }
        other => other.to_string(),
    }
}

/// The step to an item of a list.
pub(super) fn element(listing: &Listing, index: usize, item: &Value) -> Result<PathElement, String> {
    match listing {
        Listing::Atomic => Ok(PathElement::Index(index)),
        Listing::Set => match item {
            Value::Object(_) => Err("associative list without keys has an element that's a map type".into()),
            Value::Array(_) => Err("not supported: associative list with lists as elements".into()),
            Value::Null => Err("associative list without keys has an element that's an explicit null".into()),
            value => Ok(PathElement::Value(value.clone())),
        },
        Listing::Map(keys) => {
            let map = match item {
                Value::Null => return Err("associative list with keys may not have a null element".into()),
                Value::Object(map) => map,
                _ => return Err("associative list with keys may not have non-map elements".into()),
            };
            let mut key = Vec::with_capacity(keys.len());
            for (name, default) in keys {
                let Some(value) = map.get(name).or(default.as_ref()) else {
                    return Err(format!(
                        "associative list with keys has an element that omits key field {name:?} (and doesn't have default value)"
                    ));
                };
                key.push((name.clone(), value.clone()));
            }
            key.sort_by(|a, b| a.0.cmp(&b.0));
            Ok(PathElement::Key(key))
        }
    }
}

/// The fields that a value has.
pub fn field_set(node: Node<'_>, value: &Value) -> FieldSet {
    gather(node, value).1
}

/// Whether a value is a field of its own, and the fields below it.
fn gather(node: Node<'_>, value: &Value) -> (bool, FieldSet) {
    let mut out = FieldSet::default();
    match (node.atom(Some(value)), value) {
        (Atom::Map { atomic: false, fields }, Value::Object(map)) => {
            for (key, inner) in map {
                let (leaf, below) = gather(fields.field(key).unwrap_or(Node::Free), inner);
                let empty = inner.is_null() || inner.as_object().is_some_and(Map::is_empty);
                let step = PathElement::Field(key.clone());
                out.put(step, leaf || empty || fields.named(key).is_none(), below);
            }
        }
        (Atom::List { listing, item }, Value::Array(list)) if listing != Listing::Atomic => {
            let mut seen = std::collections::BTreeMap::new();
            for (index, inner) in list.iter().enumerate() {
                let Ok(step) = element(&listing, index, inner) else { continue };
                seen.entry(step).and_modify(|only| *only = None).or_insert(Some(inner));
            }
            for (step, only) in seen {
                // Of items that come twice nothing below can be told apart.
                let below = only.map(|inner| gather(item, inner).1).unwrap_or_default();
                out.put(step, true, below);
            }
        }
        (Atom::Map { atomic: false, .. } | Atom::Deduced, _) => {}
        (Atom::List { listing, .. }, _) if listing != Listing::Atomic => {}
        _ => return (true, out),
    }
    (false, out)
}

/// A value with another's fields laid over it.
pub fn merge(node: Node<'_>, live: Option<&Value>, applied: Option<&Value>) -> Result<Option<Value>, String> {
    overlay(node, live, applied, "")
}

fn overlay(node: Node<'_>, live: Option<&Value>, applied: Option<&Value>, path: &str) -> Result<Option<Value>, String> {
    let leaf = || Ok(applied.or(live).cloned());
    let Some(decisive) = applied.filter(|v| !v.is_null()).or(live) else { return leaf() };
    match node.atom(Some(decisive)) {
        Atom::Map { atomic: false, fields } => {
            let (left, right) = (live.and_then(Value::as_object), applied.and_then(Value::as_object));
            if left.is_none_or(Map::is_empty) && right.is_none_or(Map::is_empty) {
                return leaf();
            }
            overlay_maps(fields, left, right, path)
        }
        Atom::List { listing, item } if listing != Listing::Atomic => {
            let (left, right) = (live.and_then(Value::as_array), applied.and_then(Value::as_array));
            if left.is_none_or(Vec::is_empty) && right.is_none_or(Vec::is_empty) {
                return leaf();
            }
            overlay_lists(&listing, item, left.map_or(&[], Vec::as_slice), right.map_or(&[], Vec::as_slice), path)
        }
        _ => leaf(),
    }
}

fn overlay_maps(
    fields: Fields<'_>,
    left: Option<&Map<String, Value>>,
    right: Option<&Map<String, Value>>,
    path: &str,
) -> Result<Option<Value>, String> {
    let mut out = Map::new();
    let rest = right.into_iter().flatten().filter(|(key, _)| left.is_none_or(|l| !l.contains_key(*key)));
    for (key, _) in left.into_iter().flatten().chain(rest) {
        let node = fields.field(key).unwrap_or(Node::Free);
        let merged =
            overlay(node, left.and_then(|l| l.get(key)), right.and_then(|r| r.get(key)), &format!("{path}.{key}"))?;
        if let Some(merged) = merged {
            out.insert(key.clone(), merged);
        }
    }
    Ok((!out.is_empty()).then_some(Value::Object(out)))
}

/// The steps to the items of a list. An item whose step came before has no value to merge with.
fn index<'v>(
    listing: &Listing,
    list: &'v [Value],
    path: &str,
    unique: bool,
) -> Result<(Vec<PathElement>, Indexed<'v>), String> {
    let (mut steps, mut values) = (Vec::with_capacity(list.len()), Indexed::new());
    for (index, item) in list.iter().enumerate() {
        let step = element(listing, index, item).map_err(|why| format!("{}element {index}: {why}", prefix(path)))?;
        let before = values.insert(step.clone(), Some(item));
        if before.is_some() {
            if unique {
                return Err(format!("{}duplicate entries for key {step}", prefix(path)));
            }
            values.insert(step.clone(), None);
        }
        steps.push(step);
    }
    Ok((steps, values))
}

type Indexed<'v> = std::collections::BTreeMap<PathElement, Option<&'v Value>>;

/// Merges two lists by their keys. The applied list's order holds among its items; items that only the live list has stay
/// near their neighbours.
fn overlay_lists(
    listing: &Listing,
    item: Node<'_>,
    left: &[Value],
    right: &[Value],
    path: &str,
) -> Result<Option<Value>, String> {
    let (left_steps, left_values) = index(listing, left, path, false)?;
    let (right_steps, right_values) = index(listing, right, path, true)?;
    let mut shared = right_steps.iter().filter(|step| left_values.contains_key(step));
    let mut next_shared = shared.next();
    let mut merged = std::collections::BTreeSet::new();
    let mut out = Vec::with_capacity(left.len() + right.len());
    let (mut l, mut r) = (0, 0);
    let combine = |step: &PathElement| {
        let (ours, theirs) = (left_values.get(step).copied().flatten(), right_values.get(step).copied().flatten());
        overlay(item, ours, theirs, &format!("{path}{step}"))
    };
    while l < left_steps.len() || r < right_steps.len() {
        if let (Some(ours), Some(theirs)) = (left_steps.get(l), right_steps.get(r)) {
            if ours == theirs {
                merged.insert(ours);
                out.extend(combine(ours)?);
                (l, r, next_shared) = (l + 1, r + 1, shared.next());
                continue;
            }
            // An item of both lists, but not the one whose turn it is.
            if right_values.contains_key(ours) && next_shared.is_some_and(|next| next != ours) {
                l += 1;
                continue;
            }
        }
        if let Some(ours) = left_steps.get(l) {
            if !right_values.contains_key(ours) {
                out.push(left[l].clone());
                l += 1;
                continue;
            }
            if merged.contains(ours) {
                l += 1;
            }
        }
        if let Some(theirs) = right_steps.get(r) {
            merged.insert(theirs);
            out.extend(combine(theirs)?);
            r += 1;
            if next_shared == Some(theirs) {
                next_shared = shared.next();
            }
        }
    }
    Ok((!out.is_empty()).then_some(Value::Array(out)))
}

/// What changed from one value to another.
pub fn compare(node: Node<'_>, old: &Value, new: &Value) -> Comparison {
    if old == new { Comparison::default() } else { differ(node, Some(old), Some(new)).below }
}

/// What changed at a place.
#[derive(Default)]
struct Changed {
    /// With the place itself.
    own: Option<Change>,
    below: Comparison,
}

#[derive(Clone, Copy)]
enum Change {
    Added,
    Modified,
    Removed,
}

impl Comparison {
    /// Takes over what changed at a step from here.
    fn take(&mut self, step: PathElement, changed: Changed) {
        let own = |change: Change| changed.own.is_some_and(|own| own as u8 == change as u8);
        let Comparison { added, modified, removed } = changed.below;
        for (set, change, below) in [
            (&mut self.added, Change::Added, added),
            (&mut self.modified, Change::Modified, modified),
            (&mut self.removed, Change::Removed, removed),
        ] {
            if own(change) || !below.is_empty() {
                set.put(step.clone(), own(change), below);
            }
        }
    }
}

/// What changed between two values that are not equal.
fn differ(node: Node<'_>, old: Option<&Value>, new: Option<&Value>) -> Changed {
    let mut changed = Changed::default();
    let mut inner = false;
    // Where the value decides what is here, it may have become of another kind: what was below it goes, too.
    if let (Atom::Deduced, Some(before), Some(after)) = (node.atom(None), old, new)
        && std::mem::discriminant(before) != std::mem::discriminant(after)
        && !before.is_null()
        && !after.is_null()
    {
        differ_below(node, old, None, &mut changed.below);
        differ_below(node, None, new, &mut changed.below);
    } else {
        inner = differ_below(node, old, new, &mut changed.below);
    }
    changed.own = match (old, new) {
        (None, Some(_)) => Some(Change::Added),
        (Some(_), None) => Some(Change::Removed),
        _ if !inner => Some(Change::Modified),
        _ => None,
    };
    changed
}

/// What changed below a place; `false` if nothing there has places of its own.
fn differ_below(node: Node<'_>, old: Option<&Value>, new: Option<&Value>, out: &mut Comparison) -> bool {
    // A null that comes or goes is a leaf like any other.
    let Some(decisive) = new.filter(|v| !v.is_null()).or(old).or(new) else { return false };
    match node.atom(Some(decisive)) {
        Atom::Map { atomic: false, fields } => {
            let (left, right) = (old.and_then(Value::as_object), new.and_then(Value::as_object));
            let both_empty = left.is_none_or(Map::is_empty) && right.is_none_or(Map::is_empty);
            if !both_empty {
                differ_maps(fields, left, right, out);
            }
            !both_empty
        }
        Atom::List { listing, item } if listing != Listing::Atomic => {
            let (left, right) = (old.and_then(Value::as_array), new.and_then(Value::as_array));
            let both_empty = left.is_none_or(Vec::is_empty) && right.is_none_or(Vec::is_empty);
            if !both_empty {
                let (left, right) = (left.map_or(&[][..], Vec::as_slice), right.map_or(&[][..], Vec::as_slice));
                differ_lists(&listing, item, left, right, out);
            }
            !both_empty
        }
        _ => false,
    }
}

fn differ_maps(
    fields: Fields<'_>,
    left: Option<&Map<String, Value>>,
    right: Option<&Map<String, Value>>,
    out: &mut Comparison,
) {
    let rest = right.into_iter().flatten().filter(|(key, _)| left.is_none_or(|l| !l.contains_key(*key)));
    for (key, _) in left.into_iter().flatten().chain(rest) {
        let (old, new) = (left.and_then(|l| l.get(key)), right.and_then(|r| r.get(key)));
        if old != new {
            let node = fields.field(key).unwrap_or(Node::Free);
            out.take(PathElement::Field(key.clone()), differ(node, old, new));
        }
    }
}

fn differ_lists(listing: &Listing, item: Node<'_>, left: &[Value], right: &[Value], out: &mut Comparison) {
    type Groups<'v> = std::collections::BTreeMap<PathElement, (Vec<&'v Value>, Vec<&'v Value>)>;
    let mut groups = Groups::new();
    for (i, value) in left.iter().enumerate() {
        if let Ok(step) = element(listing, i, value) {
            groups.entry(step).or_default().0.push(value);
        }
    }
    for (i, value) in right.iter().enumerate() {
        if let Ok(step) = element(listing, i, value) {
            groups.entry(step).or_default().1.push(value);
        }
    }
    for (step, (old, new)) in groups {
        match (&old[..], &new[..]) {
            // Items that come twice count as one value, an item that comes once as one with places of its own.
            ([_, _, ..], [_, _, ..]) => {
                if old != new {
                    out.modified.put(step, true, FieldSet::default());
                }
            }
            ([_, _, ..], now) => {
                if let Some(now) = now.first() {
                    out.take(step.clone(), differ(item, None, Some(now)));
                }
                out.removed.put(step, true, FieldSet::default());
            }
            (before, [_, _, ..]) => {
                if let Some(before) = before.first() {
                    out.take(step.clone(), differ(item, Some(before), None));
                }
                out.added.put(step, true, FieldSet::default());
            }
            (old, new) if old == new => {}
            (old, new) => out.take(step, differ(item, old.first().copied(), new.first().copied())),
        }
    }
}

/// A value without the fields of a set; `None` when nothing is left of a map or list.
pub fn remove(node: Node<'_>, value: &Value, gone: &FieldSet) -> Option<Value> {
    match (node.atom(Some(value)), value) {
        (Atom::Map { atomic: false, fields }, Value::Object(map)) => {
            let mut out = Map::new();
            for (key, inner) in map {
                let step = PathElement::Field(key.clone());
                if !gone.has(&step) {
                    out.insert(key.clone(), thinned(fields.field(key).unwrap_or(Node::Free), inner, gone.below(&step)));
                }
            }
            (!out.is_empty()).then_some(Value::Object(out))
        }
        (Atom::List { listing, item }, Value::Array(list)) if listing != Listing::Atomic => {
            let mut out = Vec::with_capacity(list.len());
            for (index, inner) in list.iter().enumerate() {
                let step = element(&listing, index, inner).ok();
                if !step.as_ref().is_some_and(|step| gone.has(step)) {
                    out.push(thinned(item, inner, step.and_then(|step| gone.below(&step))));
                }
            }
            (!out.is_empty()).then_some(Value::Array(out))
        }
        _ => Some(value.clone()),
    }
}

/// A value that stays, without what goes below it: a map or list that loses all it has is empty then, not gone.
fn thinned(node: Node<'_>, value: &Value, gone: Option<&FieldSet>) -> Value {
    let Some(gone) = gone else { return value.clone() };
    remove(node, value, gone).unwrap_or_else(|| match value {
        Value::Array(_) => Value::Array(Vec::new()),
        _ => Value::Object(Map::new()),
    })
}
