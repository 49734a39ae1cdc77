//! JSON to protobuf in one pass over the text (or value), without building objects.
//!
//! Each field's bytes go to the end of one buffer as they are read, in JSON's order; when a message ends, its fields are
//! put into the order of their numbers, with keys and lengths. So a byte is moved once for each level around it.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::table::{self, CHAIN, Field, Message, Shape};
use super::wire::{
    BYTES, FIXED64, VARINT, key_len, put_bytes, put_key, put_length_before, put_number, put_varint, varint_len,
};

/// The message that JSON schemas are.
const SCHEMA: &str = "apiextensions_apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";

/// A piece of a message: one value of one field.
struct Segment {
    chain: [u32; CHAIN],
    wire: u8,
    start: usize,
    end: usize,
}

/// Encodes objects one after the other into one buffer.
#[derive(Default)]
pub struct Encoder {
    out: Vec<u8>,
    segments: Vec<Segment>,
    spare: Vec<u8>,
}

impl Encoder {
    /// Appends a message that is given as JSON text; gives its length.
    pub fn text(&mut self, message: &Message, json: &[u8]) -> Result<usize, serde_json::Error> {
        let start = self.out.len();
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        Body { encoder: self, message }.deserialize(&mut deserializer)?;
        Ok(self.out.len() - start)
    }

    /// Appends a message that is given as a value; gives its length.
    pub fn value(&mut self, message: &Message, value: &Value) -> Result<usize, serde_json::Error> {
        let start = self.out.len();
        Body { encoder: self, message }.deserialize(value)?;
        Ok(self.out.len() - start)
    }

    /// What was encoded so far.
    pub fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// How much was encoded, bytes.
    pub fn size(&self) -> usize {
        self.out.len()
    }

    /// What was encoded.
    pub fn into_bytes(self) -> Vec<u8> {
        self.out
    }

    /// Puts the segments from `base` on into order and into one message from `start` on.
    fn assemble(&mut self, base: usize, start: usize) {
        let segments = &mut self.segments[base..];
        segments.sort_by_key(|segment| segment.chain);
        self.spare.clear();
        write(segments, 0, &self.out, &mut self.spare);
        self.out.truncate(start);
        self.out.extend_from_slice(&self.spare);
        self.segments.truncate(base);
    }
}

/// Whether a segment is the value of a field at this level, not part of an inlined struct.
fn is_leaf(segment: &Segment, level: usize) -> bool {
    level + 1 == CHAIN || segment.chain[level + 1] == 0
}

/// The segments after the first that belong to the same inlined struct.
fn group(segments: &[Segment], level: usize) -> usize {
    segments.iter().take_while(|s| s.chain[level] == segments[0].chain[level]).count()
}

fn write(segments: &[Segment], level: usize, from: &[u8], to: &mut Vec<u8>) {
    let mut index = 0;
    while let Some(segment) = segments.get(index) {
        let number = segment.chain[level];
        if is_leaf(segment, level) {
            put_key(to, number, segment.wire);
            if segment.wire == BYTES {
                put_varint(to, (segment.end - segment.start) as u64);
            }
            to.extend_from_slice(&from[segment.start..segment.end]);
            index += 1;
        } else {
            let count = group(&segments[index..], level);
            let inner = &segments[index..index + count];
            put_key(to, number, BYTES);
            put_varint(to, size(inner, level + 1) as u64);
            write(inner, level + 1, from, to);
            index += count;
        }
    }
}

/// Bytes that [`write`] writes.
fn size(segments: &[Segment], level: usize) -> usize {
    let mut total = 0;
    let mut index = 0;
    while let Some(segment) = segments.get(index) {
        total += key_len(segment.chain[level]);
        let (count, length, prefixed) = if is_leaf(segment, level) {
            (1, segment.end - segment.start, segment.wire == BYTES)
        } else {
            let count = group(&segments[index..], level);
            (count, size(&segments[index..index + count], level + 1), true)
        };
        total += length + if prefixed { varint_len(length as u64) } else { 0 };
        index += count;
    }
    total
}

/// An object as a message.
struct Body<'a> {
    encoder: &'a mut Encoder,
    message: &'a Message,
}

impl<'de> DeserializeSeed<'de> for Body<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Body<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<(), A::Error> {
        let (base, start) = (self.encoder.segments.len(), self.encoder.out.len());
        while let Some(field) = access.next_key_seed(Name(self.message))? {
            match field {
                Some(field) => access.next_value_seed(Slot {
                    encoder: &mut *self.encoder,
                    chain: field.chain,
                    shape: &field.shape,
                })?,
                None => {
                    access.next_value::<IgnoredAny>()?;
                }
            }
        }
        self.encoder.assemble(base, start);
        Ok(())
    }
}

/// A field's name, looked up.
struct Name<'a>(&'a Message);

impl<'de, 'a> DeserializeSeed<'de> for Name<'a> {
    type Value = Option<&'a Field>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de, 'a> Visitor<'de> for Name<'a> {
    type Value = Option<&'a Field>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field")
    }
    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.field(name))
    }
}

/// A value of a field: it becomes a segment, or several if it is a list or map.
struct Slot<'a> {
    encoder: &'a mut Encoder,
    chain: [u32; CHAIN],
    shape: &'a Shape,
}

impl<'a> Slot<'a> {
    /// Ends the segment that began at `start`.
    fn end(self, start: usize, wire: u8) {
        let end = self.encoder.out.len();
        self.encoder.segments.push(Segment { chain: self.chain, wire, start, end });
    }

    fn number(self, value: u64) {
        let start = self.encoder.out.len();
        put_varint(&mut self.encoder.out, value);
        self.end(start, VARINT);
    }

    fn integer<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        match self.shape {
            Shape::Int32 | Shape::Int64 => self.number(value as u64),
            Shape::Double => return self.double(value as f64),
            Shape::IntOrString => {
                let start = self.encoder.out.len();
                int_or_string(&mut self.encoder.out, value, "");
                self.end(start, BYTES);
            }
            Shape::Quantity => return self.visit_str(&value.to_string()),
            _ => return Err(E::custom("a number where none belongs")),
        }
        Ok(())
    }

    fn double<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        match self.shape {
            Shape::Double => {
                let start = self.encoder.out.len();
                self.encoder.out.extend_from_slice(&value.to_le_bytes());
                self.end(start, FIXED64);
                Ok(())
            }
            Shape::Quantity => self.visit_str(&value.to_string()),
            _ => Err(E::custom("a fraction where none belongs")),
        }
    }
}

fn int_or_string(out: &mut Vec<u8>, number: i64, text: &str) {
    put_number(out, 1, u64::from(!text.is_empty()));
    put_number(out, 2, number as u64);
    put_bytes(out, 3, text.as_bytes());
}

/// Seconds and nanoseconds of a time.
fn time(out: &mut Vec<u8>, text: &str, micro: bool) -> Result<(), String> {
    let at: Timestamp = text.parse().map_err(|_| format!("{text:?} is not a time"))?;
    let (mut seconds, mut nanos) = (at.as_second(), at.subsec_nanosecond());
    if nanos < 0 {
        (seconds, nanos) = (seconds - 1, nanos + 1_000_000_000);
    }
    put_number(out, 1, seconds as u64);
    put_number(out, 2, if micro { (nanos / 1000 * 1000) as u64 } else { 0 });
    Ok(())
}

impl<'de> DeserializeSeed<'de> for Slot<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        match self.shape {
            Shape::Raw => {
                let json: Box<RawValue> = serde::Deserialize::deserialize(deserializer)?;
                if json.get() != "null" {
                    let start = self.encoder.out.len();
                    put_bytes(&mut self.encoder.out, 1, json.get().as_bytes());
                    self.end(start, BYTES);
                }
                Ok(())
            }
            Shape::SchemaOrBool | Shape::SchemaOrArray | Shape::SchemaOrTexts => {
                let value: Value = serde::Deserialize::deserialize(deserializer)?;
                if value.is_null() {
                    return Ok(());
                }
                let start = self.encoder.out.len();
                schema_or(self.encoder, self.shape, &value).map_err(D::Error::custom)?;
                self.end(start, BYTES);
                Ok(())
            }
            _ => deserializer.deserialize_any(self),
        }
    }
}

/// The three unions of a JSON schema: with a truth value, with a list of schemas, with a list of texts.
fn schema_or(encoder: &mut Encoder, shape: &Shape, value: &Value) -> Result<(), serde_json::Error> {
    let schema = table::by_path(SCHEMA).ok_or_else(|| serde_json::Error::custom("JSON schemas are not known"))?;
    let one = |encoder: &mut Encoder, number: u32, value: &Value| {
        put_key(&mut encoder.out, number, BYTES);
        let start = encoder.out.len();
        encoder.value(schema, value)?;
        put_length_before(&mut encoder.out, start);
        Ok(())
    };
    match value {
        Value::Bool(allows) => put_number(&mut encoder.out, 1, u64::from(*allows)),
        Value::Array(list) => {
            for item in list {
                match item {
                    Value::String(text) => put_bytes(&mut encoder.out, 2, text.as_bytes()),
                    other => one(encoder, 2, other)?,
                }
            }
        }
        other if *shape == Shape::SchemaOrBool => {
            put_number(&mut encoder.out, 1, 1);
            return one(encoder, 2, other);
        }
        other => return one(encoder, 1, other),
    }
    Ok(())
}

impl<'de> Visitor<'de> for Slot<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a value of the field's type ({:?})", self.shape)
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        if *self.shape != Shape::Bool {
            return Err(E::custom("a truth value where none belongs"));
        }
        self.number(u64::from(value));
        Ok(())
    }
    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.integer(value)
    }
    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.integer(i64::try_from(value).map_err(|_| E::custom("a number beyond 64 bits"))?)
    }
    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        self.double(value)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        let start = self.encoder.out.len();
        let out = &mut self.encoder.out;
        match self.shape {
            Shape::Text => out.extend_from_slice(text.as_bytes()),
            Shape::Quantity => put_bytes(out, 1, text.as_bytes()),
            Shape::Bytes => STANDARD.decode_vec(text, out).map_err(E::custom)?,
            Shape::IntOrString => {
                put_number(out, 1, 1);
                put_number(out, 2, 0);
                put_bytes(out, 3, text.as_bytes());
            }
            Shape::Time => time(out, text, false).map_err(E::custom)?,
            Shape::MicroTime => time(out, text, true).map_err(E::custom)?,
            _ => return Err(E::custom("a text where none belongs")),
        }
        self.end(start, BYTES);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<(), A::Error> {
        match self.shape {
            Shape::List(item) => {
                while access
                    .next_element_seed(Slot { encoder: &mut *self.encoder, chain: self.chain, shape: item })?
                    .is_some()
                {}
            }
            Shape::Wrapped => {
                let start = self.encoder.out.len();
                while let Some(text) = access.next_element::<String>()? {
                    put_bytes(&mut self.encoder.out, 1, text.as_bytes());
                }
                self.end(start, BYTES);
            }
            _ => return Err(A::Error::custom("a list where none belongs")),
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<(), A::Error> {
        match self.shape {
            Shape::Message(index) => {
                let start = self.encoder.out.len();
                Body { encoder: &mut *self.encoder, message: table::message(*index) }.visit_map(access)?;
                self.end(start, BYTES);
            }
            Shape::Map(item) => {
                while let Some(key) = access.next_key::<String>()? {
                    let (base, start) = (self.encoder.segments.len(), self.encoder.out.len());
                    self.encoder.out.extend_from_slice(key.as_bytes());
                    let end = self.encoder.out.len();
                    self.encoder.segments.push(Segment { chain: [1, 0, 0], wire: BYTES, start, end });
                    access.next_value_seed(Slot { encoder: &mut *self.encoder, chain: [2, 0, 0], shape: item })?;
                    if self.encoder.segments.len() == base + 1 && **item == Shape::Time {
                        // The zero time is an empty message, which JSON has as null.
                        let end = self.encoder.out.len();
                        let empty = Segment { chain: [2, 0, 0], wire: BYTES, start: end, end };
                        self.encoder.segments.push(empty);
                    }
                    self.encoder.assemble(base, start);
                    let end = self.encoder.out.len();
                    self.encoder.segments.push(Segment { chain: self.chain, wire: BYTES, start, end });
                }
            }
            Shape::Empty => {
                while access.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                let start = self.encoder.out.len();
                self.end(start, BYTES);
            }
            _ => return Err(A::Error::custom("an object where none belongs")),
        }
        Ok(())
    }
}
