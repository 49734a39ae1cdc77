//! Sets of fields that were written by another schema: what merged then and is one value now is owned as that.
//!
//! The other way round nothing is added: recorded servers leave a set alone that names a place which merges, with nothing
//! below it.

use serde_json::{Map, Value};

use super::path::PathElement;
use super::set::FieldSet;
use super::shape::{Atom, Fields, Listing, Node};

/// A set as the schema of today has it; `None` if it is so already.
pub(super) fn reconciled(node: Node<'_>, set: &FieldSet) -> Option<FieldSet> {
    let atom = node.atom(None);
    let mut out: Option<FieldSet> = None;
    for (step, below) in set.inner_steps() {
        let inner = inside(&atom, |fields| match step {
            PathElement::Field(name) => fields.field(name),
            _ => fields.any(),
        });
        let Some(inner) = inner else { continue };
        let change = if is_one_value(inner) { Some(FieldSet::default()) } else { reconciled(inner, below) };
        if let Some(below) = change {
            out.get_or_insert_with(|| set.clone()).replace(step, below);
        }
    }
    out
}

/// Whether a set that is written as `fieldsV1` is not as the schema of today has it.
pub(super) fn is_stale(node: Node<'_>, fields: &Map<String, Value>) -> bool {
    let atom = node.atom(None);
    fields.iter().any(|(key, below)| {
        let Some(below) = below.as_object().filter(|below| below.keys().any(|key| key != ".")) else { return false };
        let inner = inside(&atom, |fields| match key.strip_prefix("f:") {
            Some(name) => fields.field(name),
            None => fields.any(),
        });
        inner.is_some_and(|inner| is_one_value(inner) || is_stale(inner, below))
    })
}

/// The schema of what is below a place, if it is declared.
fn inside<'a>(atom: &Atom<'a>, field: impl Fn(&Fields<'a>) -> Option<Node<'a>>) -> Option<Node<'a>> {
    match atom {
        Atom::Map { fields, .. } => field(fields),
        Atom::List { item, .. } => Some(*item),
        _ => None,
    }
}

fn is_one_value(node: Node<'_>) -> bool {
    matches!(
        node.atom(None),
        Atom::Map { atomic: true, .. } | Atom::List { listing: Listing::Atomic, .. } | Atom::Opaque
    )
}
