//! The types of the API: field names, types and list strategies, from the table that `build.rs` derives.
//!
//! The table is text, read once; a few thousand fields take about a millisecond. Type expressions: `[T` list, `{T` map
//! from strings, `string`, `int32`, `int64`, `float64`, `bool`, `bytes` (base64), `quantity`, `intorstring`, `time`,
//! `microtime`, `any`, otherwise the path of an object type.

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::presence;

/// The table.
const TABLE: &str = include_str!(concat!(env!("OUT_DIR"), "/schema.txt"));

/// How a list is merged by patches and server-side apply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ListStrategy {
    /// As one value.
    #[default]
    Atomic,
    /// As a set of plain values.
    Set,
    /// By the values of these fields of its items.
    Map(Vec<&'static str>),
}

/// How a list is merged by strategic merge patches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PatchStrategy {
    /// The patch's list is the new one.
    #[default]
    Replace,
    /// Plain values are added.
    MergeValues,
    /// Items are merged by the value of this field.
    MergeBy(&'static str),
}

/// A type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Type {
    /// Anything.
    Any,
    /// A text.
    String,
    /// 32 bits.
    Int32,
    /// 64 bits.
    Int64,
    /// A number.
    Float64,
    /// true or false.
    Bool,
    /// Base64.
    Bytes,
    /// A resource quantity: text or number.
    Quantity,
    /// Number or text.
    IntOrString,
    /// RFC 3339.
    Time,
    /// RFC 3339 with microseconds.
    MicroTime,
    /// A list.
    List(Box<Type>),
    /// A map from strings.
    Map(Box<Type>),
    /// An object: path of its type.
    Object(&'static str),
}

/// A field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its type.
    pub kind: Type,
    /// How server-side apply merges it, if it is a list.
    pub list: ListStrategy,
    /// How strategic merge patches merge it, if it is a list.
    pub patch: PatchStrategy,
    /// Whether a strategic merge patch says which keys remain (`$retainKeys`).
    pub retain_keys: bool,
    /// Whether strategic merge patches replace it, if it is an object.
    pub replaced: bool,
    /// Whether it is one value for server-side apply, if it is a map or an object.
    pub atomic: bool,
    /// Whether the API requires it.
    pub required: bool,
    /// Whether it is written even when empty.
    pub present: bool,
    /// Whether its zero value says something.
    pub keeps_zero: bool,
    /// How the API says that the list is merged; "" if it does not say.
    pub list_type: &'static str,
    /// Path of its type (or that of its items), if that is taken as anything.
    pub any: &'static str,
}

/// An object type.
#[derive(Debug, Default)]
pub struct Definition {
    /// Its name without the package (`PodSpec`).
    pub name: &'static str,
    /// Its path, as [`Type::Object`] has it.
    pub path: &'static str,
    /// Whether it is one value for server-side apply.
    pub atomic: bool,
    /// Fields by JSON name; kinds have `apiVersion` and `kind` too.
    pub fields: HashMap<&'static str, Field>,
}

#[derive(Default)]
struct Table {
    definitions: HashMap<&'static str, Definition>,
    kinds: HashMap<(&'static str, &'static str, &'static str), &'static str>,
}

static SCHEMA: LazyLock<Table> = LazyLock::new(|| read(TABLE));

/// The type of a kind.
pub fn of_kind(group: &str, version: &str, kind: &str) -> Option<&'static Definition> {
    definition(path_of_kind(group, version, kind)?)
}

/// The path of a kind's type.
pub fn path_of_kind(group: &str, version: &str, kind: &str) -> Option<&'static str> {
    SCHEMA.kinds.get(&(group, version, kind)).copied()
}

/// The kinds of a type: group, version and kind.
pub fn kinds_of(path: &str) -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    SCHEMA.kinds.iter().filter(move |(_, of)| **of == path).map(|(kind, _)| *kind)
}

/// The type of a path, as [`Type::Object`] names it.
pub fn definition(path: &str) -> Option<&'static Definition> {
    SCHEMA.definitions.get(path)
}

fn read(table: &'static str) -> Table {
    let mut out = Table::default();
    let mut current = "";
    for line in table.lines() {
        let words: Vec<&'static str> = line.split(' ').collect();
        match words[..] {
            ["T", path, ref flags @ ..] => {
                current = path;
                let name = path.rsplit('.').next().unwrap_or(path);
                let atomic = flags.contains(&"atomic");
                out.definitions.insert(path, Definition { name, path, atomic, fields: HashMap::new() });
            }
            ["K", group, version, kind] => {
                out.kinds.insert((if group == "-" { "" } else { group }, version, kind), current);
                if let Some(definition) = out.definitions.get_mut(current) {
                    for key in ["apiVersion", "kind"] {
                        definition.fields.insert(key, field("!string", ListStrategy::Atomic));
                    }
                }
            }
            ["F", name, kind, list, keys, patch, ref flags @ ..] => {
                let list_type = if list == "-" { "" } else { list };
                let list = match list {
                    "map" if keys != "-" => ListStrategy::Map(keys.split(',').collect()),
                    "set" => ListStrategy::Set,
                    _ => ListStrategy::Atomic,
                };
                let mut field = field(kind, list);
                field.patch = match patch {
                    "-" => PatchStrategy::Replace,
                    "." => PatchStrategy::MergeValues,
                    key => PatchStrategy::MergeBy(key),
                };
                field.retain_keys = flags.contains(&"retainKeys");
                field.replaced = flags.contains(&"replaced");
                field.atomic = flags.contains(&"atomic");
                field.list_type = list_type;
                field.any = flags.iter().find_map(|flag| flag.strip_prefix("is=")).unwrap_or_default();
                field.present = presence::is_present(current, name, &field.kind, field.required);
                field.keeps_zero =
                    field.present || crate::protobuf::keeps_zero(current, name, field.kind == Type::String);
                if let Some(definition) = out.definitions.get_mut(current) {
                    definition.fields.insert(name, field);
                }
            }
            _ => {}
        }
    }
    out
}

fn field(kind: &'static str, list: ListStrategy) -> Field {
    Field {
        kind: expression(kind.trim_start_matches('!')),
        list,
        patch: PatchStrategy::Replace,
        retain_keys: false,
        replaced: false,
        atomic: false,
        required: kind.starts_with('!'),
        present: true,
        keeps_zero: true,
        list_type: "",
        any: "",
    }
}

fn expression(text: &'static str) -> Type {
    if let Some(item) = text.strip_prefix('[') {
        return Type::List(Box::new(expression(item)));
    }
    if let Some(value) = text.strip_prefix('{') {
        return Type::Map(Box::new(expression(value)));
    }
    match text {
        "any" => Type::Any,
        "string" => Type::String,
        "int32" => Type::Int32,
        "int64" => Type::Int64,
        "float64" => Type::Float64,
        "bool" => Type::Bool,
        "bytes" => Type::Bytes,
        "quantity" => Type::Quantity,
        "intorstring" => Type::IntOrString,
        "time" => Type::Time,
        "microtime" => Type::MicroTime,
        path => Type::Object(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::RESOURCES;

    #[test]
    fn every_served_kind_has_a_type() {
        for row in RESOURCES {
            // Reviews and bindings included; component statuses are computed.
            let found = of_kind(row.group, row.version, row.kind);
            assert!(found.is_some_and(|d| d.fields.contains_key("metadata")), "{}", row.qualified());
        }
    }

    #[test]
    fn every_type_that_is_named_exists() {
        fn check(kind: &Type, of: &str) {
            match kind {
                Type::Object(path) => assert!(definition(path).is_some(), "{path} in {of}"),
                Type::List(inner) | Type::Map(inner) => check(inner, of),
                _ => {}
            }
        }
        for (path, definition) in &SCHEMA.definitions {
            for field in definition.fields.values() {
                check(&field.kind, path);
            }
        }
    }

    #[test]
    fn lists_know_their_keys() {
        let pod = definition("api.core.v1.PodSpec").unwrap();
        assert_eq!(pod.fields["containers"].list, ListStrategy::Map(vec!["name"]));
        assert_eq!(pod.fields["tolerations"].list, ListStrategy::Atomic);
        let container = definition("api.core.v1.Container").unwrap();
        assert_eq!(container.fields["ports"].list, ListStrategy::Map(vec!["containerPort", "protocol"]));
        assert_eq!(container.fields["ports"].patch, PatchStrategy::MergeBy("containerPort"));
        assert!(definition("apimachinery.pkg.apis.meta.v1.LabelSelector").unwrap().atomic);
        let meta = definition("apimachinery.pkg.apis.meta.v1.ObjectMeta").unwrap();
        assert_eq!(meta.fields["finalizers"].list, ListStrategy::Set);
        assert_eq!(meta.fields["ownerReferences"].list, ListStrategy::Map(vec!["uid"]));
    }
}
