//! Values of expressions. What comes from JSON is wrapped, not copied.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;

use jiff::Timestamp;
use serde_json::Value as Json;

use super::EvalError;
use super::network::Url;
use super::semver::Semver;
use super::times;
use super::types::{Type, escape, unescape};
use crate::quantity::Quantity;

/// A key of a map.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// true or false
    Bool(bool),
    /// a whole number
    Int(i128),
    /// text
    String(String),
}

/// A map whose values are worked out when they are asked for.
pub trait LazyMap<'a> {
    /// The value of a key, if the map has it.
    fn get(&self, key: &str) -> Option<Result<Value<'a>, EvalError>>;
}

/// A value that only its own functions understand.
pub trait Opaque: std::fmt::Debug {
    /// Calls a method.
    fn call(&self, function: &str, arguments: &[&str]) -> Result<Outcome, EvalError>;
}

/// What a method of an [`Opaque`] value gives.
#[derive(Debug)]
pub enum Outcome {
    /// true or false
    Bool(bool),
    /// text
    Text(String),
    /// another value of the kind
    Opaque(Rc<dyn Opaque>),
}

/// A value.
#[derive(Clone)]
pub enum Value<'a> {
    /// null
    Null,
    /// true or false
    Bool(bool),
    /// with sign
    Int(i64),
    /// without sign
    Uint(u64),
    /// with fraction
    Double(f64),
    /// text
    String(Cow<'a, str>),
    /// bytes
    Bytes(Rc<[u8]>),
    /// a point in time
    Timestamp(Timestamp),
    /// nanoseconds
    Duration(i64),
    /// an object or list of JSON, with its declared type
    Json(&'a Json, Option<&'a Type>),
    /// a list made by the expression
    List(Rc<Vec<Value<'a>>>),
    /// a map made by the expression
    Map(Rc<BTreeMap<Key, Value<'a>>>),
    /// an object made by the expression
    Object(&'a str, Rc<BTreeMap<&'a str, Value<'a>>>),
    /// a type
    Type(Cow<'a, str>),
    /// a value that may be absent
    Optional(Option<Rc<Value<'a>>>),
    /// an amount
    Quantity(Quantity),
    /// an address
    Ip(IpAddr),
    /// a range of addresses
    Cidr(IpAddr, u8),
    /// a URL
    Url(Rc<Url>),
    /// a version
    Semver(Rc<Semver>),
    /// the name of a format
    Format(&'static str),
    /// a map that is worked out on demand
    Lazy(Rc<dyn LazyMap<'a> + 'a>),
    /// something of the caller's
    Opaque(Rc<dyn Opaque>),
}

impl std::fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.to_json() {
            Some(json) => write!(f, "{json}"),
            None => f.write_str(&self.kind()),
        }
    }
}

/// Something wrong with the types that only shows when it runs.
pub(super) fn no_overload() -> EvalError {
    EvalError::new("no such overload")
}

impl<'a> Value<'a> {
    /// Wraps JSON of a declared type (`None`: any).
    pub fn of(json: &'a Json, kind: Option<&'a Type>) -> Self {
        match (json, kind) {
            (Json::Null, _) => Self::Null,
            (Json::Bool(b), _) => Self::Bool(*b),
            (Json::Number(n), Some(Type::Double)) => Self::Double(n.as_f64().unwrap_or_default()),
            (Json::Number(n), _) => match (n.as_i64(), n.as_f64()) {
                (Some(n), _) => Self::Int(n),
                (None, Some(n)) => Self::Double(n),
                (None, None) => Self::Null,
            },
            (Json::String(text), Some(Type::Timestamp)) => match times::timestamp(text) {
                Some(at) => Self::Timestamp(at),
                None => Self::text(text),
            },
            (Json::String(text), Some(Type::Duration)) => match times::duration(text) {
                Some(span) => Self::Duration(span),
                None => Self::text(text),
            },
            (Json::String(text), Some(Type::Bytes)) => {
                use base64::Engine;
                match base64::engine::general_purpose::STANDARD.decode(text) {
                    Ok(bytes) => Self::Bytes(bytes.into()),
                    Err(_) => Self::text(text),
                }
            }
            (Json::String(text), _) => Self::text(text),
            (Json::Array(_) | Json::Object(_), kind) => Self::Json(json, kind),
        }
    }

    /// Text.
    pub fn text(text: &'a str) -> Self {
        Self::String(Cow::Borrowed(text))
    }

    /// Text of its own.
    pub fn owned(text: impl Into<String>) -> Self {
        Self::String(Cow::Owned(text.into()))
    }

    /// A list.
    pub fn list(items: Vec<Value<'a>>) -> Self {
        Self::List(Rc::new(items))
    }

    /// The name of its type.
    pub fn kind(&self) -> Cow<'_, str> {
        Cow::Borrowed(match self {
            Self::Null => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Uint(_) => "uint",
            Self::Double(_) => "double",
            Self::String(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::Timestamp(_) => "google.protobuf.Timestamp",
            Self::Duration(_) => "google.protobuf.Duration",
            Self::Json(Json::Array(_), _) | Self::List(_) => "list",
            Self::Json(..) | Self::Map(_) | Self::Lazy(_) => "map",
            Self::Object(name, _) => name,
            Self::Type(_) => "type",
            Self::Optional(_) => "optional_type",
            Self::Quantity(_) => "kubernetes.Quantity",
            Self::Ip(_) => "net.IP",
            Self::Cidr(..) => "net.CIDR",
            Self::Url(_) => "kubernetes.URL",
            Self::Semver(_) => "kubernetes.Semver",
            Self::Format(_) => "kubernetes.NamedFormat",
            Self::Opaque(_) => "kubernetes.authorization",
        })
    }

    /// Its items, if it is a list.
    pub(super) fn items(&self) -> Option<Vec<Value<'a>>> {
        match self {
            Self::List(items) => Some(items.to_vec()),
            Self::Json(Json::Array(list), kind) => {
                let item = item_kind(*kind);
                Some(list.iter().map(|json| Self::of(json, item)).collect())
            }
            _ => None,
        }
    }

    /// Its length, if it has one.
    pub(super) fn size(&self) -> Option<usize> {
        Some(match self {
            Self::String(text) => text.chars().count(),
            Self::Bytes(bytes) => bytes.len(),
            Self::List(items) => items.len(),
            Self::Map(map) => map.len(),
            Self::Json(Json::Array(list), _) => list.len(),
            Self::Json(Json::Object(map), _) => map.len(),
            _ => return None,
        })
    }

    /// Its entries, if it is a map.
    pub(super) fn entries(&self) -> Option<Vec<(Value<'a>, Value<'a>)>> {
        match self {
            Self::Map(map) => Some(map.iter().map(|(k, v)| (k.to_value(), v.clone())).collect()),
            Self::Json(Json::Object(map), kind) => {
                let value = |key: &str, json: &'a Json| Self::of(json, field_kind(*kind, key));
                Some(map.iter().map(|(key, json)| (Self::text(key), value(key, json))).collect())
            }
            _ => None,
        }
    }

    /// The value of a field (by its name in the expression) or of a map's key.
    pub(super) fn field(&self, name: &str) -> Option<Result<Value<'a>, EvalError>> {
        match self {
            Self::Json(Json::Object(map), kind) => {
                // Maps have their keys as they are; objects have names that CEL can write.
                let name = match kind {
                    Some(Type::Object(_)) => unescape(name),
                    _ => Cow::Borrowed(name),
                };
                map.get(name.as_ref()).map(|json| Ok(Self::of(json, field_kind(*kind, &name))))
            }
            Self::Map(map) => map.get(&Key::String(name.to_owned())).cloned().map(Ok),
            Self::Object(_, map) => map.get(name).cloned().map(Ok),
            Self::Lazy(map) => map.get(name),
            _ => None,
        }
    }

    /// The value of a map's key.
    pub(super) fn keyed(&self, key: &Key) -> Option<Value<'a>> {
        match (self, key) {
            (Self::Map(map), key) => map.get(key).cloned(),
            (Self::Json(Json::Object(map), kind), Key::String(key)) => {
                map.get(key).map(|json| Self::of(json, field_kind(*kind, key)))
            }
            _ => None,
        }
    }

    /// As a key of a map.
    pub(super) fn to_key(&self) -> Option<Key> {
        Some(match self {
            Self::Bool(b) => Key::Bool(*b),
            Self::Int(n) => Key::Int((*n).into()),
            Self::Uint(n) => Key::Int((*n).into()),
            Self::Double(n) if n.fract() == 0.0 => Key::Int(*n as i128),
            Self::String(text) => Key::String(text.to_string()),
            _ => return None,
        })
    }

    /// As JSON; `None` for what has no such form.
    pub fn to_json(&self) -> Option<Json> {
        Some(match self {
            Self::Null => Json::Null,
            Self::Bool(b) => (*b).into(),
            Self::Int(n) => (*n).into(),
            Self::Uint(n) => (*n).into(),
            Self::Double(n) => (*n).into(),
            Self::String(text) => text.as_ref().into(),
            Self::Bytes(bytes) => {
                use base64::Engine;
                base64::engine::general_purpose::STANDARD.encode(bytes).into()
            }
            Self::Timestamp(at) => times::shown(*at).into(),
            Self::Duration(span) => times::shown_duration(*span).into(),
            Self::Json(json, _) => (*json).clone(),
            Self::List(items) => items.iter().map(Value::to_json).collect::<Option<Vec<_>>>()?.into(),
            Self::Map(map) => {
                let entries = map.iter().map(|(k, v)| Some((k.to_text(), v.to_json()?)));
                Json::Object(entries.collect::<Option<_>>()?)
            }
            Self::Object(_, map) => {
                let entries = map.iter().map(|(k, v)| Some((unescape(k).into_owned(), v.to_json()?)));
                Json::Object(entries.collect::<Option<_>>()?)
            }
            Self::Optional(None) => Json::Null,
            Self::Optional(Some(inner)) => inner.to_json()?,
            Self::Ip(ip) => ip.to_string().into(),
            Self::Cidr(ip, bits) => format!("{ip}/{bits}").into(),
            _ => return None,
        })
    }

    fn as_number(&self) -> Option<Number> {
        Some(match self {
            Self::Int(n) => Number::Whole((*n).into()),
            Self::Uint(n) => Number::Whole((*n).into()),
            Self::Double(n) => Number::Fraction(*n),
            _ => return None,
        })
    }

    /// Whether two values are equal; values of different types are not.
    pub fn equals(&self, other: &Value<'_>) -> bool {
        if let (Some(a), Some(b)) = (self.as_number(), other.as_number()) {
            return a.compare(b) == Some(Ordering::Equal);
        }
        match (self, other) {
            (Self::Null, Value::Null) => true,
            (Self::Bool(a), Value::Bool(b)) => a == b,
            (Self::String(a), Value::String(b)) => a == b,
            (Self::Bytes(a), Value::Bytes(b)) => a == b,
            (Self::Timestamp(a), Value::Timestamp(b)) => a == b,
            (Self::Duration(a), Value::Duration(b)) => a == b,
            (Self::Type(a), Value::Type(b)) => a == b,
            (Self::Quantity(a), Value::Quantity(b)) => a == b,
            (Self::Ip(a), Value::Ip(b)) => a == b,
            (Self::Cidr(a, m), Value::Cidr(b, n)) => (a, m) == (b, n),
            (Self::Url(a), Value::Url(b)) => a == b,
            (Self::Semver(a), Value::Semver(b)) => a.cmp(b) == Ordering::Equal,
            (Self::Format(a), Value::Format(b)) => a == b,
            (Self::Optional(a), Value::Optional(b)) => match (a, b) {
                (None, None) => true,
                (Some(a), Some(b)) => a.equals(b),
                _ => false,
            },
            (Self::Object(n, a), Value::Object(m, b)) => {
                n == m && a.len() == b.len() && a.iter().all(|(k, v)| b.get(k).is_some_and(|w| v.equals(w)))
            }
            _ => self.equal_collections(other),
        }
    }

    fn equal_collections(&self, other: &Value<'_>) -> bool {
        if let (Some(a), Some(b)) = (self.items(), other.items()) {
            return a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| a.equals(b));
        }
        let (Some(a), Some(_)) = (self.entries(), other.entries()) else { return false };
        self.size() == other.size()
            && a.iter().all(|(key, value)| {
                key.to_key().and_then(|key| other.keyed(&key)).is_some_and(|found| value.equals(&found))
            })
    }

    /// The order of two values, if they have one.
    pub(super) fn compare(&self, other: &Value<'_>) -> Result<Option<Ordering>, EvalError> {
        if let (Some(a), Some(b)) = (self.as_number(), other.as_number()) {
            return Ok(a.compare(b));
        }
        Ok(Some(match (self, other) {
            (Self::Bool(a), Value::Bool(b)) => a.cmp(b),
            (Self::String(a), Value::String(b)) => a.as_ref().cmp(b.as_ref()),
            (Self::Bytes(a), Value::Bytes(b)) => a.cmp(b),
            (Self::Timestamp(a), Value::Timestamp(b)) => a.cmp(b),
            (Self::Duration(a), Value::Duration(b)) => a.cmp(b),
            _ => return Err(no_overload()),
        }))
    }
}

impl Key {
    pub(super) fn to_value<'a>(&self) -> Value<'a> {
        match self {
            Self::Bool(b) => Value::Bool(*b),
            Self::Int(n) => i64::try_from(*n).map_or_else(|_| Value::Uint(*n as u64), Value::Int),
            Self::String(text) => Value::owned(text.clone()),
        }
    }

    fn to_text(&self) -> String {
        match self {
            Self::Bool(b) => b.to_string(),
            Self::Int(n) => n.to_string(),
            Self::String(text) => text.clone(),
        }
    }
}

#[derive(Clone, Copy)]
enum Number {
    Whole(i128),
    Fraction(f64),
}

impl Number {
    fn compare(self, other: Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Whole(a), Self::Whole(b)) => Some(a.cmp(&b)),
            (Self::Fraction(a), Self::Fraction(b)) => a.partial_cmp(&b),
            (Self::Whole(a), Self::Fraction(b)) => (a as f64).partial_cmp(&b),
            (Self::Fraction(a), Self::Whole(b)) => a.partial_cmp(&(b as f64)),
        }
    }
}

fn item_kind(kind: Option<&Type>) -> Option<&Type> {
    match kind {
        Some(Type::List(item)) => Some(item),
        _ => None,
    }
}

fn field_kind<'a>(kind: Option<&'a Type>, name: &str) -> Option<&'a Type> {
    match kind {
        Some(Type::Map(_, value)) => Some(value),
        Some(Type::Object(object)) => object.fields.get(escape(name)?.as_str()),
        _ => None,
    }
}
