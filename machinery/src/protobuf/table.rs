//! The messages: every type of the schema with the protobuf numbers and shapes of its fields, compiled once.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::presence::keeps_zero;
use crate::schema::{self, Type};

/// Numbers of the fields, derived by `build.rs`.
const NUMBERS: &str = include_str!(concat!(env!("OUT_DIR"), "/numbers.txt"));
/// Types of the API's machinery that the schema does not name.
const OTHERS: &str = "M PartialObjectMetadata\nP metadata 1 -\n";
const PARTIAL: &str = "PartialObjectMetadata";
const METADATA: &str = "apimachinery.pkg.apis.meta.v1.ObjectMeta";
/// Where types live that all groups share.
const META: &str = "apimachinery.pkg.apis.meta.v1.";
/// Deepest chain of inlined structs, with the field itself.
pub const CHAIN: usize = 3;

/// How a value is encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Text.
    Text,
    /// A number of 32 bits.
    Int32,
    /// A number of 64 bits.
    Int64,
    /// A floating point number.
    Double,
    /// true or false.
    Bool,
    /// Base64 in JSON.
    Bytes,
    /// A resource quantity.
    Quantity,
    /// Number or text.
    IntOrString,
    /// Seconds.
    Time,
    /// Seconds and microseconds.
    MicroTime,
    /// JSON as bytes.
    Raw,
    /// true, false or a JSON schema.
    SchemaOrBool,
    /// A JSON schema or a list of them.
    SchemaOrArray,
    /// A JSON schema or a list of texts.
    SchemaOrTexts,
    /// An empty message.
    Empty,
    /// A message of the table.
    Message(usize),
    /// A list.
    List(Box<Shape>),
    /// A map from texts.
    Map(Box<Shape>),
    /// A list of texts in a message of its own.
    Wrapped,
}

/// A field.
#[derive(Debug)]
pub struct Field {
    /// Its name in JSON.
    pub name: &'static str,
    /// Numbers of the inlined structs around it, then its own; zeros after.
    pub chain: [u32; CHAIN],
    /// How it is encoded.
    pub shape: Shape,
    /// Whether its zero value is shown in JSON.
    pub keeps_zero: bool,
}

/// What a number stands for in a message or an inlined struct.
#[derive(Debug)]
pub enum Entry {
    /// A field, by its index.
    Field(usize),
    /// An inlined struct.
    Inlined(Vec<(u32, Entry)>),
}

/// A message.
#[derive(Debug, Default)]
pub struct Message {
    /// Its fields.
    pub fields: Vec<Field>,
    by_name: HashMap<&'static str, usize>,
    /// Its numbers, sorted.
    pub entries: Vec<(u32, Entry)>,
}

impl Message {
    /// A field by its name in JSON.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.by_name.get(name).map(|index| &self.fields[*index])
    }
}

/// What a number stands for.
pub fn entry(entries: &[(u32, Entry)], number: u32) -> Option<&Entry> {
    entries.binary_search_by_key(&number, |(n, _)| *n).ok().map(|index| &entries[index].1)
}

struct Table {
    messages: Vec<Message>,
    by_path: HashMap<&'static str, usize>,
}

static MESSAGES: LazyLock<Table> = LazyLock::new(compile);

/// A message by its index in [`Shape::Message`].
pub fn message(index: usize) -> &'static Message {
    &MESSAGES.messages[index]
}

/// A message by the path of its type.
pub fn by_path(path: &str) -> Option<&'static Message> {
    MESSAGES.by_path.get(path).map(|index| message(*index))
}

/// The message of a kind. Kinds that every group shares (`DeleteOptions`, `Status`) are found in any group.
pub fn of_kind(group: &str, version: &str, kind: &str) -> Option<&'static Message> {
    match (kind, group) {
        ("PartialObjectMetadata", "meta.k8s.io") => by_path(PARTIAL),
        ("DeleteOptions" | "Status", _) => by_path(&format!("{META}{kind}")),
        ("APIGroup" | "APIGroupList" | "APIResourceList" | "APIVersions", "") => by_path(&format!("{META}{kind}")),
        _ => by_path(schema::path_of_kind(group, version, kind)?),
    }
}

fn compile() -> Table {
    let lines: Vec<&'static str> = NUMBERS.lines().chain(OTHERS.lines()).collect();
    let paths = lines.iter().filter_map(|line| line.strip_prefix("M "));
    let by_path: HashMap<&'static str, usize> = paths.enumerate().map(|(index, path)| (path, index)).collect();
    let mut messages = Vec::new();
    let mut lines = lines.into_iter().peekable();
    while let Some(line) = lines.next() {
        let Some(path) = line.strip_prefix("M ") else { continue };
        let mut message = Message::default();
        let mut body = Vec::new();
        while let Some(line) = lines.next_if(|line| !line.starts_with("M ")) {
            body.push(line);
        }
        message.entries = read(&mut body.into_iter(), path, &by_path, &mut message.fields, &[]);
        message.by_name = message.fields.iter().enumerate().map(|(index, field)| (field.name, index)).collect();
        messages.push(message);
    }
    Table { messages, by_path }
}

/// Reads the fields of a message or, until `E`, of an inlined struct.
fn read(
    lines: &mut std::vec::IntoIter<&'static str>,
    path: &str,
    by_path: &HashMap<&'static str, usize>,
    fields: &mut Vec<Field>,
    around: &[u32],
) -> Vec<(u32, Entry)> {
    let mut entries = Vec::new();
    while let Some(line) = lines.next() {
        let words: Vec<&'static str> = line.split(' ').collect();
        match words[..] {
            ["P", name, number, note] => {
                let number: u32 = number.parse().unwrap_or_default();
                let mut chain = [0; CHAIN];
                chain.iter_mut().zip(around.iter().chain([&number])).for_each(|(to, from)| *to = *from);
                let (kind, required) = kind_of(path, name);
                let shape = shape(&kind, note, by_path);
                let keeps_zero = required || keeps_zero(path, name, shape == Shape::Text);
                entries.push((number, Entry::Field(fields.len())));
                fields.push(Field { name, chain, shape, keeps_zero });
            }
            ["I", number] => {
                let number: u32 = number.parse().unwrap_or_default();
                let around: Vec<u32> = around.iter().copied().chain([number]).collect();
                entries.push((number, Entry::Inlined(read(lines, path, by_path, fields, &around))));
            }
            _ => break,
        }
    }
    entries.sort_by_key(|(number, _)| *number);
    entries
}

fn kind_of(path: &str, name: &str) -> (Type, bool) {
    match schema::definition(path).and_then(|d| d.fields.get(name)) {
        Some(field) => (field.kind.clone(), field.required),
        None => (Type::Object(METADATA), false),
    }
}

fn shape(kind: &Type, note: &str, by_path: &HashMap<&'static str, usize>) -> Shape {
    match (kind, note) {
        (_, "wrap") if matches!(kind, Type::List(_)) => Shape::Wrapped,
        (Type::Map(_), "wrap") => Shape::Map(Box::new(Shape::Wrapped)),
        (Type::List(item), _) => Shape::List(Box::new(shape(item, note, by_path))),
        (Type::Map(item), _) => Shape::Map(Box::new(shape(item, note, by_path))),
        (Type::Any, "orbool") => Shape::SchemaOrBool,
        (Type::Any, "orarray") => Shape::SchemaOrArray,
        (Type::Any, "orstrings") => Shape::SchemaOrTexts,
        (Type::Any, "empty") => Shape::Empty,
        (Type::Any, _) => Shape::Raw,
        (Type::String, _) => Shape::Text,
        (Type::Int32, _) => Shape::Int32,
        (Type::Int64, _) => Shape::Int64,
        (Type::Float64, _) => Shape::Double,
        (Type::Bool, _) => Shape::Bool,
        (Type::Bytes, _) => Shape::Bytes,
        (Type::Quantity, _) => Shape::Quantity,
        (Type::IntOrString, _) => Shape::IntOrString,
        (Type::Time, _) => Shape::Time,
        (Type::MicroTime, _) => Shape::MicroTime,
        (Type::Object(path), _) => by_path.get(path).map_or(Shape::Raw, |index| Shape::Message(*index)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::RESOURCES;

    #[test]
    fn every_row_has_a_message() {
        for row in RESOURCES {
            let message = of_kind(row.group, row.version, row.kind);
            assert!(message.is_some_and(|m| m.field("metadata").is_some()), "{}", row.qualified());
        }
    }

    #[test]
    fn numbers_are_unique_and_objects_known() {
        fn check(entries: &[(u32, Entry)]) {
            for pair in entries.windows(2) {
                assert!(pair[0].0 < pair[1].0, "{pair:?}");
            }
            for (number, entry) in entries {
                assert!(*number > 0);
                if let Entry::Inlined(inner) = entry {
                    check(inner);
                }
            }
        }
        for message in &MESSAGES.messages {
            check(&message.entries);
            assert!(message.fields.iter().all(|f| f.chain[0] > 0));
        }
    }

    #[test]
    fn presence_tables_name_fields_that_exist() {
        use super::super::presence::{EXCEPTIONS, PLAIN_VALUES, POINTER_TEXTS};
        for row in POINTER_TEXTS.iter().chain(PLAIN_VALUES) {
            let (of, field) = row.split_once('.').unwrap();
            let found = MESSAGES.by_path.iter().any(|(path, index)| {
                (of == "*" || path.rsplit('.').next() == Some(of)) && message(*index).field(field).is_some()
            });
            assert!(found, "{row}");
        }
        for (row, _) in EXCEPTIONS {
            let (path, field) = row.rsplit_once('.').unwrap();
            assert!(by_path(path).is_some_and(|m| m.field(field).is_some()), "{row}");
        }
    }
}
