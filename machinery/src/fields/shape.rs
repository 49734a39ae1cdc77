//! The schema as merging sees it: which values are scalars, maps and lists, and which of these are one value.
//!
//! A [`Node`] is a place in a schema, of a built-in type or of a custom resource's structural schema; both resolve to the
//! same few [`Atom`]s.

use serde_json::Value;

use crate::schema::{self, Definition, ListStrategy, Type};

/// A place in a schema.
#[derive(Clone, Copy, Debug)]
pub enum Node<'a> {
    /// An object of a built-in type.
    Object(&'a Definition),
    /// An object of a built-in type that is not one value here.
    Granular(&'a Definition),
    /// A field of a built-in type: its type, how it merges if it is a list, whether it is one value.
    Field(&'a Type, Option<&'a ListStrategy>, bool),
    /// A custom resource: its `openAPIV3Schema`.
    Custom(&'a Value),
    /// A place in a custom resource's schema.
    Structural(&'a Value),
    /// Something without a schema: maps merge, lists are one value.
    Free,
}

/// The kinds of scalars that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scalar {
    /// Text.
    String,
    /// Whole or not.
    Number,
    /// true or false.
    Bool,
    /// Any of these.
    Any,
}

/// How a list merges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listing {
    /// As one value.
    Atomic,
    /// As a set of values.
    Set,
    /// By key fields, with the default of each, if it has one.
    Map(Vec<(String, Option<Value>)>),
}

/// What a place may hold.
#[derive(Clone, Debug)]
pub enum Atom<'a> {
    /// A scalar.
    Scalar(Scalar),
    /// An object or map.
    Map {
        /// Whether it is one value.
        atomic: bool,
        /// Its fields.
        fields: Fields<'a>,
    },
    /// A list.
    List {
        /// How it merges.
        listing: Listing,
        /// What its items are.
        item: Node<'a>,
    },
    /// Anything, as one value.
    Opaque,
    /// What the value is decides.
    Deduced,
}

/// The fields of a map.
#[derive(Clone, Copy, Debug)]
pub enum Fields<'a> {
    /// Those of a built-in type.
    Definition(&'a Definition),
    /// Any, of one type.
    Items(Node<'a>),
    /// Those of a structural schema; `true` for the whole custom resource.
    Structural(&'a Value, bool),
}

/// Fields whose objects merge field by field, though objects of their type are one value elsewhere.
const GRANULAR: &[(&str, &str)] = &[("api.core.v1.PersistentVolumeSpec", "claimRef")];

/// The type of every object's metadata.
const OBJECT_META: &str = "apimachinery.pkg.apis.meta.v1.ObjectMeta";

static TEXT: Type = Type::String;

impl<'a> Fields<'a> {
    /// The declared field of a name.
    pub fn named(&self, name: &str) -> Option<Node<'a>> {
        match *self {
            Self::Definition(definition) => {
                let field = definition.fields.get(name)?;
                match &field.kind {
                    Type::Object(path) if GRANULAR.contains(&(definition.path, name)) => {
                        schema::definition(path).map(Node::Granular)
                    }
                    kind => Some(Node::Field(kind, Some(&field.list), field.atomic)),
                }
            }
            Self::Items(_) => None,
            Self::Structural(schema, root) => {
                let embedded = root || flag(schema, "x-kubernetes-embedded-resource");
                match name {
                    "apiVersion" | "kind" if embedded => Some(Node::Field(&TEXT, None, false)),
                    "metadata" if embedded => Some(schema::definition(OBJECT_META).map_or(Node::Free, Node::Object)),
                    _ => schema.get("properties").and_then(|p| p.get(name)).map(Node::Structural),
                }
            }
        }
    }

    /// What other keys hold, if others may be there.
    pub fn any(&self) -> Option<Node<'a>> {
        match *self {
            Self::Definition(_) => None,
            Self::Items(item) => Some(item),
            Self::Structural(schema, _) => match schema.get("additionalProperties") {
                Some(inner @ Value::Object(_)) => Some(Node::Structural(inner)),
                Some(Value::Bool(true)) => Some(Node::Free),
                _ if flag(schema, "x-kubernetes-preserve-unknown-fields") => Some(Node::Free),
                _ => None,
            },
        }
    }

    /// Declared or not: what a key holds.
    pub fn field(&self, name: &str) -> Option<Node<'a>> {
        self.named(name).or_else(|| self.any())
    }
}

impl<'a> Node<'a> {
    /// What may be here; `value` decides where the schema leaves it open.
    pub fn atom(&self, value: Option<&Value>) -> Atom<'a> {
        let atom = self.declared();
        if !matches!(atom, Atom::Deduced) {
            return atom;
        }
        match value {
            Some(Value::Object(_)) => Atom::Map { atomic: false, fields: Fields::Items(Node::Free) },
            Some(Value::Array(_)) => Atom::List { listing: Listing::Atomic, item: Node::Free },
            Some(_) => Atom::Scalar(Scalar::Any),
            None => Atom::Deduced,
        }
    }

    fn declared(&self) -> Atom<'a> {
        match *self {
            Self::Object(definition) => Atom::Map { atomic: definition.atomic, fields: Fields::Definition(definition) },
            Self::Granular(definition) => Atom::Map { atomic: false, fields: Fields::Definition(definition) },
            Self::Field(kind, list, atomic) => field(kind, list, atomic),
            Self::Custom(schema) => Atom::Map { atomic: false, fields: Fields::Structural(schema, true) },
            Self::Structural(schema) => structural(schema),
            Self::Free => Atom::Deduced,
        }
    }
}

fn field<'a>(kind: &'a Type, list: Option<&'a ListStrategy>, atomic: bool) -> Atom<'a> {
    match kind {
        Type::String | Type::Bytes => Atom::Scalar(Scalar::String),
        Type::Int32 | Type::Int64 | Type::Float64 => Atom::Scalar(Scalar::Number),
        Type::Bool => Atom::Scalar(Scalar::Bool),
        Type::Quantity | Type::IntOrString | Type::Time | Type::MicroTime => Atom::Scalar(Scalar::Any),
        // What has no schema is one value.
        Type::Any => Atom::Opaque,
        Type::Object(path) => match schema::definition(path) {
            Some(definition) => {
                Atom::Map { atomic: atomic || definition.atomic, fields: Fields::Definition(definition) }
            }
            None => Atom::Deduced,
        },
        Type::Map(item) => Atom::Map { atomic, fields: Fields::Items(Node::Field(item, None, false)) },
        Type::List(item) => {
            let listing = match list {
                Some(ListStrategy::Set) => Listing::Set,
                Some(ListStrategy::Map(keys)) => {
                    Listing::Map(keys.iter().map(|key| ((*key).to_owned(), key_default(item, key))).collect())
                }
                Some(ListStrategy::Atomic) | None => Listing::Atomic,
            };
            Atom::List { listing, item: Node::Field(item, None, false) }
        }
    }
}

/// The value that a missing key field of a list's item counts as.
fn key_default(item: &Type, key: &str) -> Option<Value> {
    // Ports are keyed by their protocol as well, which is TCP unless something else is said.
    if key == "protocol" {
        return Some("TCP".into());
    }
    let Type::Object(path) = item else { return None };
    let field = schema::definition(path)?.fields.get(key)?;
    match field.kind {
        _ if !field.required => None,
        Type::String => Some("".into()),
        Type::Int32 | Type::Int64 => Some(0.into()),
        _ => None,
    }
}

fn flag(schema: &Value, key: &str) -> bool {
    schema.get(key).and_then(Value::as_bool).unwrap_or(false)
}

fn structural(schema: &Value) -> Atom<'_> {
    if flag(schema, "x-kubernetes-int-or-string") {
        return Atom::Scalar(Scalar::Any);
    }
    match schema.get("type").and_then(Value::as_str).unwrap_or_default() {
        "string" => Atom::Scalar(Scalar::String),
        "integer" | "number" => Atom::Scalar(Scalar::Number),
        "boolean" => Atom::Scalar(Scalar::Bool),
        "array" => {
            let item = schema.get("items").map_or(Node::Free, Node::Structural);
            let listing = match schema.get("x-kubernetes-list-type").and_then(Value::as_str) {
                Some("set") => Listing::Set,
                Some("map") => Listing::Map(structural_keys(schema)),
                _ => Listing::Atomic,
            };
            Atom::List { listing, item }
        }
        "object" => {
            let atomic = schema.get("x-kubernetes-map-type").and_then(Value::as_str) == Some("atomic");
            let open = schema.get("properties").is_none() && schema.get("additionalProperties").is_none();
            match open && !flag(schema, "x-kubernetes-embedded-resource") {
                true => Atom::Map { atomic, fields: Fields::Items(Node::Free) },
                false => Atom::Map { atomic, fields: Fields::Structural(schema, false) },
            }
        }
        _ => Atom::Deduced,
    }
}

fn structural_keys(schema: &Value) -> Vec<(String, Option<Value>)> {
    let keys = schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array).into_iter().flatten();
    let properties = schema.get("items").and_then(|i| i.get("properties"));
    keys.filter_map(Value::as_str)
        .map(|key| (key.to_owned(), properties.and_then(|p| p.get(key)?.get("default").cloned())))
        .collect()
}
