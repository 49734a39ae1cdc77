//! Protobuf to JSON: never deeper than [`MAX_DEPTH`] and never more than [`MAX_VALUES`] values, whatever the bytes say.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Number, Value};

use super::Error;
use super::table::{self, Entry, Field, Message, Shape, entry};
use super::wire::{Raw, Reader};
use crate::decode::MAX_DEPTH;

/// Most list items, map entries and messages of one object.
pub const MAX_VALUES: usize = 300_000;
const SCHEMA: &str = "apiextensions_apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";

/// Reads a message into an object.
pub fn message(message: &Message, bytes: &[u8]) -> Result<Map<String, Value>, Error> {
    let mut walk = Walk { left: MAX_VALUES };
    let mut object = Map::new();
    walk.fields(message, &message.entries, bytes, &mut object, 0)?;
    Ok(object)
}

struct Walk {
    /// Values that may still come.
    left: usize,
}

impl Walk {
    fn count(&mut self) -> Result<(), Error> {
        self.left = self.left.checked_sub(1).ok_or(Error::TooLarge)?;
        Ok(())
    }

    fn fields(
        &mut self,
        message: &Message,
        entries: &[(u32, Entry)],
        bytes: &[u8],
        object: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(Error::TooDeep);
        }
        self.count()?;
        let mut reader = Reader(bytes);
        while let Some((number, raw)) = reader.field()? {
            match entry(entries, number) {
                Some(Entry::Field(index)) => self.field(&message.fields[*index], raw, object, depth)?,
                Some(Entry::Inlined(inner)) => {
                    let Raw::Bytes(bytes) = raw else { return Err(wrong(number)) };
                    self.fields(message, inner, bytes, object, depth + 1)?;
                }
                None => {}
            }
        }
        Ok(())
    }

    fn field(
        &mut self,
        field: &Field,
        raw: Raw<'_>,
        object: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), Error> {
        match &field.shape {
            Shape::List(item) => {
                let slot = object.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
                let Value::Array(list) = slot else { return Ok(()) };
                self.items(item, raw, list, depth)
            }
            Shape::Map(item) => {
                let slot = object.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
                let Value::Object(map) = slot else { return Ok(()) };
                let (key, value) = self.map_entry(item, raw, depth)?;
                map.insert(key, value);
                Ok(())
            }
            Shape::Message(index) => {
                let Raw::Bytes(bytes) = raw else { return Err(wrong(field.chain[0])) };
                // A message that comes in parts is the union of them.
                let slot = object.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
                let Value::Object(map) = slot else { return Ok(()) };
                let inner = table::message(*index);
                self.fields(inner, &inner.entries, bytes, map, depth + 1)
            }
            shape => {
                let value = self.value(shape, raw, depth)?;
                if value.is_null() || !field.keeps_zero && is_zero(&value) {
                    object.remove(field.name);
                } else {
                    object.insert(field.name.to_owned(), value);
                }
                Ok(())
            }
        }
    }

    /// An item of a list, or several if numbers come packed.
    fn items(&mut self, shape: &Shape, raw: Raw<'_>, list: &mut Vec<Value>, depth: usize) -> Result<(), Error> {
        if let (Shape::Int32 | Shape::Int64 | Shape::Bool, Raw::Bytes(packed)) = (shape, raw) {
            let mut reader = Reader(packed);
            while !reader.0.is_empty() {
                self.count()?;
                let number = Raw::Varint(reader.varint()?);
                list.push(self.value(shape, number, depth)?);
            }
            return Ok(());
        }
        self.count()?;
        list.push(self.value(shape, raw, depth)?);
        Ok(())
    }

    fn map_entry(&mut self, shape: &Shape, raw: Raw<'_>, depth: usize) -> Result<(String, Value), Error> {
        let Raw::Bytes(bytes) = raw else { return Err(wrong(0)) };
        self.count()?;
        let (mut key, mut value) = (String::new(), None);
        let mut reader = Reader(bytes);
        while let Some((number, raw)) = reader.field()? {
            match number {
                1 => key = text(raw)?,
                2 => value = Some(self.value(shape, raw, depth + 1)?),
                _ => {}
            }
        }
        let value = match value {
            Some(value) => value,
            None => empty(shape),
        };
        Ok((key, value))
    }

    fn value(&mut self, shape: &Shape, raw: Raw<'_>, depth: usize) -> Result<Value, Error> {
        let bytes = || match raw {
            Raw::Bytes(bytes) => Ok(bytes),
            _ => Err(wrong(0)),
        };
        Ok(match shape {
            Shape::Text => text(raw)?.into(),
            Shape::Int32 => Value::from(varint(raw)? as i32),
            Shape::Int64 => Value::from(varint(raw)? as i64),
            Shape::Bool => Value::from(varint(raw)? != 0),
            Shape::Double => match raw {
                Raw::Fixed64(bits) => Number::from_f64(f64::from_bits(bits)).map_or(Value::Null, Value::Number),
                _ => return Err(wrong(0)),
            },
            Shape::Bytes => STANDARD.encode(bytes()?).into(),
            Shape::Quantity => {
                let quantity = inner(bytes()?, 1)?.map_or(Ok(String::new()), text)?;
                if quantity.is_empty() { "0".into() } else { quantity.into() }
            }
            Shape::IntOrString => int_or_string(bytes()?)?,
            Shape::Time => time(bytes()?, "%Y-%m-%dT%H:%M:%SZ")?,
            Shape::MicroTime => time(bytes()?, "%Y-%m-%dT%H:%M:%S.%6fZ")?,
            Shape::Raw => match inner(bytes()?, 1)? {
                Some(Raw::Bytes(json)) if !json.is_empty() => {
                    serde_json::from_slice(json).map_err(|e| Error::Malformed(e.to_string()))?
                }
                Some(Raw::Bytes(_)) | None => Value::Null,
                Some(_) => return Err(wrong(1)),
            },
            Shape::SchemaOrBool | Shape::SchemaOrArray | Shape::SchemaOrTexts => {
                self.schema_or(shape, bytes()?, depth)?
            }
            Shape::Empty => {
                bytes()?;
                Map::new().into()
            }
            Shape::Wrapped => {
                let mut list = Vec::<Value>::new();
                let mut reader = Reader(bytes()?);
                while let Some((number, raw)) = reader.field()? {
                    if number == 1 {
                        self.count()?;
                        list.push(text(raw)?.into());
                    }
                }
                list.into()
            }
            Shape::Message(index) => {
                let message = table::message(*index);
                let mut object = Map::new();
                self.fields(message, &message.entries, bytes()?, &mut object, depth + 1)?;
                object.into()
            }
            // No list of lists and no map of maps or lists but those above is in the API.
            Shape::List(_) | Shape::Map(_) => return Err(wrong(0)),
        })
    }

    /// The three unions of a JSON schema.
    fn schema_or(&mut self, shape: &Shape, bytes: &[u8], depth: usize) -> Result<Value, Error> {
        let schema = table::by_path(SCHEMA).ok_or(Error::UnknownKind)?;
        let (mut allows, mut one, mut list) = (false, None, Vec::<Value>::new());
        let mut reader = Reader(bytes);
        while let Some((number, raw)) = reader.field()? {
            let in_list = number == 2 && *shape != Shape::SchemaOrBool;
            match (shape, number, raw) {
                (Shape::SchemaOrBool, 1, raw) => allows = varint(raw)? != 0,
                (Shape::SchemaOrTexts, 2, raw) => {
                    self.count()?;
                    list.push(text(raw)?.into());
                }
                (_, 1 | 2, Raw::Bytes(bytes)) => {
                    let mut object = Map::new();
                    self.fields(schema, &schema.entries, bytes, &mut object, depth + 1)?;
                    if in_list {
                        list.push(object.into());
                    } else {
                        one = Some(Value::Object(object));
                    }
                }
                (_, 1 | 2, _) => return Err(wrong(number)),
                _ => {}
            }
        }
        Ok(match (one, shape) {
            (Some(schema), _) => schema,
            (None, Shape::SchemaOrBool) => allows.into(),
            (None, _) => list.into(),
        })
    }
}

fn wrong(number: u32) -> Error {
    Error::Malformed(format!("proto: wrong wireType for field {number}"))
}

fn varint(raw: Raw<'_>) -> Result<u64, Error> {
    match raw {
        Raw::Varint(value) => Ok(value),
        _ => Err(wrong(0)),
    }
}

fn text(raw: Raw<'_>) -> Result<String, Error> {
    match raw {
        Raw::Bytes(bytes) => Ok(String::from_utf8_lossy(bytes).into_owned()),
        _ => Err(wrong(0)),
    }
}

/// The last value of a field in a small message.
fn inner(bytes: &[u8], wanted: u32) -> Result<Option<Raw<'_>>, Error> {
    let mut reader = Reader(bytes);
    let mut found = None;
    while let Some((number, raw)) = reader.field()? {
        if number == wanted {
            found = Some(raw);
        }
    }
    Ok(found)
}

fn int_or_string(bytes: &[u8]) -> Result<Value, Error> {
    match inner(bytes, 1)?.map_or(Ok(0), varint)? {
        0 => Ok(Value::from(inner(bytes, 2)?.map_or(Ok(0), varint)? as i32)),
        _ => Ok(inner(bytes, 3)?.map_or(Ok(String::new()), text)?.into()),
    }
}

/// A time; the zero time, which is an empty message, is null.
fn time(bytes: &[u8], format: &str) -> Result<Value, Error> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let seconds = inner(bytes, 1)?.map_or(Ok(0), varint)? as i64;
    let nanos = inner(bytes, 2)?.map_or(Ok(0), varint)? as i32;
    let at = Timestamp::new(seconds, nanos).map_err(|_| Error::Malformed("a time beyond the calendar".into()))?;
    Ok(at.strftime(format).to_string().into())
}

/// What a map has for a key without value.
fn empty(shape: &Shape) -> Value {
    match shape {
        Shape::Message(_) | Shape::Empty => Map::new().into(),
        Shape::Wrapped => Vec::<Value>::new().into(),
        Shape::Int32 | Shape::Int64 | Shape::Double => 0.into(),
        Shape::Bool => false.into(),
        Shape::Quantity => "0".into(),
        Shape::Time | Shape::MicroTime => Value::Null,
        _ => "".into(),
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(_) | Value::Object(_) => false,
    }
}
