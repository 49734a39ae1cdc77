//! A stored object: a small decoded head (for selectors, indexes, watches) and the canonical JSON, as one byte string.
//!
//! Layout: version byte 1; u32 LE head length; head; JSON. The JSON has sorted keys and no
//! `metadata.resourceVersion`: the revision is spliced in at `Head::splice` when the object is served.
//! Invariant: `encode` then `Stored::parse` gives the same head and JSON; a value that is not of this form is refused.

use bytes::Bytes;

/// What selectors and indexes need to know of an object without parsing it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// metadata.namespace, "" for cluster-scoped.
    pub namespace: String,
    /// metadata.name
    pub name: String,
    /// metadata.uid
    pub uid: String,
    /// metadata.labels, sorted.
    pub labels: Vec<(String, String)>,
    /// uids of metadata.ownerReferences.
    pub owners: Vec<String>,
    /// Values of the row's selectable fields, in the row's order.
    pub fields: Vec<String>,
    /// Byte offset in the JSON right after `"metadata":{`, where `"resourceVersion":"N",` goes.
    pub splice: u32,
}

/// A stored value, split; both parts share the value's memory.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The head.
    pub head: Head,
    /// The JSON without resource version.
    pub json: Bytes,
}
