//! Types of values: what the checker knows of an expression before it runs.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// A type.
#[derive(Clone, Debug, PartialEq)]
pub enum Type {
    /// Known only when it runs.
    Dyn,
    /// null
    Null,
    /// true or false
    Bool,
    /// 64 bits with sign
    Int,
    /// 64 bits without sign
    Uint,
    /// a number with fraction
    Double,
    /// text
    String,
    /// bytes
    Bytes,
    /// a point in time
    Timestamp,
    /// a span of time
    Duration,
    /// a list
    List(Arc<Type>),
    /// a map
    Map(Arc<Type>, Arc<Type>),
    /// an object with declared fields
    Object(Arc<ObjectType>),
    /// the type of a type
    Type,
    /// a value that may be absent
    Optional(Arc<Type>),
    /// a type that only functions deal with
    Opaque(&'static str),
    /// a type parameter of a function
    Param(u32),
}

/// An object type.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ObjectType {
    /// Name, as problems show it.
    pub name: String,
    /// Fields by their names in expressions.
    pub fields: BTreeMap<String, Type>,
}

impl Type {
    /// A list of these.
    pub fn list(of: Type) -> Self {
        Self::List(Arc::new(of))
    }

    /// A map from text to these.
    pub fn map(of: Type) -> Self {
        Self::Map(Arc::new(Self::String), Arc::new(of))
    }

    /// An object type.
    pub fn object(name: &str, fields: impl IntoIterator<Item = (String, Type)>) -> Self {
        Self::Object(Arc::new(ObjectType { name: name.to_owned(), fields: fields.into_iter().collect() }))
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dyn | Self::Param(_) => "dyn",
            Self::Null => "null",
            Self::Bool => "bool",
            Self::Int => "int",
            Self::Uint => "uint",
            Self::Double => "double",
            Self::String => "string",
            Self::Bytes => "bytes",
            Self::Timestamp => "timestamp",
            Self::Duration => "duration",
            Self::Type => "type",
            Self::Opaque(name) => name,
            Self::Object(object) => &object.name,
            Self::List(item) => return write!(f, "list({item})"),
            Self::Map(key, value) => return write!(f, "map({key}, {value})"),
            Self::Optional(inner) => return write!(f, "optional_type({inner})"),
        })
    }
}

/// A field's name in an expression from its name in JSON: what CEL cannot write is spelled out.
pub fn escape(name: &str) -> Option<String> {
    const RESERVED: [&str; 22] = [
        "true",
        "false",
        "null",
        "in",
        "as",
        "break",
        "const",
        "continue",
        "else",
        "for",
        "function",
        "if",
        "import",
        "let",
        "loop",
        "package",
        "namespace",
        "return",
        "var",
        "void",
        "while",
        "__proto__",
    ];
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    if RESERVED.contains(&name) {
        return Some(format!("__{name}__"));
    }
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(c) = rest.chars().next() {
        let (text, skip) = match c {
            '_' if rest.starts_with("__") => ("__underscores__", 2),
            '.' => ("__dot__", 1),
            '-' => ("__dash__", 1),
            '/' => ("__slash__", 1),
            'a'..='z' | 'A'..='Z' | '0'..='9' | '_' => (&rest[..1], 1),
            _ => return None,
        };
        out.push_str(text);
        rest = &rest[skip..];
    }
    Some(out)
}

/// A field's name in JSON from its name in an expression.
pub fn unescape(name: &str) -> std::borrow::Cow<'_, str> {
    if !name.contains("__") {
        return name.into();
    }
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    'next: while !rest.is_empty() {
        for (word, plain) in [("__underscores__", "__"), ("__dot__", "."), ("__dash__", "-"), ("__slash__", "/")] {
            if let Some(after) = rest.strip_prefix(word) {
                out.push_str(plain);
                rest = after;
                continue 'next;
            }
        }
        let length = rest.chars().next().map_or(0, char::len_utf8);
        out.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    match name.strip_prefix("__").and_then(|n| n.strip_suffix("__")) {
        Some(reserved) if escape(reserved).as_deref() == Some(name) => reserved.to_owned().into(),
        _ => out.into(),
    }
}
