//! Writing: the deterministic form of RFC 8949 section 4.2.1.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Number, Value};

use super::{Major, SELF_DESCRIBED, TAG_BASE64};
use crate::base64_text;
use crate::schema::{self, Type};

const FALSE: u8 = 0xf4;
const TRUE: u8 = 0xf5;
const NULL: u8 = 0xf6;

/// An object (or list) as an answer: the bytes of its schema, if it is of a built-in kind, are byte strings.
pub fn encode(object: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    out.extend(SELF_DESCRIBED);
    Writer { out: &mut out }.value(object, type_of(object).as_ref());
    out
}

/// An event of a watch, whose object is `object` ([`encode`]).
pub fn watch_event(kind: &str, object: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(object.len() + 32);
    out.extend(SELF_DESCRIBED);
    let mut writer = Writer { out: &mut out };
    writer.head(Major::Map, 2);
    writer.text("type");
    writer.text(kind);
    writer.text("object");
    out.extend_from_slice(object);
    out
}

/// Appends what comes before the `count` items of a list.
pub fn list_begin(kind: &str, count: usize, out: &mut Vec<u8>) {
    out.extend(SELF_DESCRIBED);
    let mut writer = Writer { out };
    writer.head(Major::Map, 4);
    writer.text("kind");
    writer.text(kind);
    writer.text("items");
    writer.head(Major::Array, count as u64);
}

/// Appends an item of a list, which is of a kind (`group`, `version`, `kind`).
pub fn item((group, version, kind): (&str, &str, &str), object: &Value, out: &mut Vec<u8>) {
    let known = schema::path_of_kind(group, version, kind).map(|path| Typing::Of(Type::Object(path)));
    Writer { out }.value(object, known.as_ref());
}

/// What comes after the items.
pub fn list_end(metadata: &Value, api_version: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    let mut writer = Writer { out: &mut out };
    writer.text("metadata");
    writer.value(metadata, None);
    writer.text("apiVersion");
    writer.text(api_version);
    out
}

/// The type of an object, or of a list's items.
fn type_of(object: &Value) -> Option<Typing> {
    let (version, kind) = (object["apiVersion"].as_str()?, object["kind"].as_str()?);
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    if let Some(path) = schema::path_of_kind(group, version, kind) {
        return Some(Typing::Of(Type::Object(path)));
    }
    let path = schema::path_of_kind(group, version, kind.strip_suffix("List")?)?;
    Some(Typing::Items(Type::Object(path)))
}

/// What is known of a value.
enum Typing {
    /// Its type.
    Of(Type),
    /// The type of its field `items`.
    Items(Type),
}

struct Writer<'a> {
    out: &'a mut Vec<u8>,
}

impl Writer<'_> {
    /// A head with its argument in the shortest form.
    fn head(&mut self, major: Major, argument: u64) {
        let major = (major as u8) << 5;
        match argument {
            0..=23 => self.out.push(major | argument as u8),
            24..=0xff => self.out.extend([major | 24, argument as u8]),
            0x100..=0xffff => {
                self.out.push(major | 25);
                self.out.extend((argument as u16).to_be_bytes());
            }
            0x1_0000..=0xffff_ffff => {
                self.out.push(major | 26);
                self.out.extend((argument as u32).to_be_bytes());
            }
            _ => {
                self.out.push(major | 27);
                self.out.extend(argument.to_be_bytes());
            }
        }
    }

    fn text(&mut self, text: &str) {
        self.head(Major::Bytes, text.len() as u64);
        self.out.extend_from_slice(text.as_bytes());
    }

    fn value(&mut self, value: &Value, known: Option<&Typing>) {
        match (known, value) {
            (Some(Typing::Of(kind)), value) => self.typed(value, kind),
            (Some(Typing::Items(item)), Value::Object(map)) => self.map(map, |writer, key, value| match value {
                Value::Array(list) if key == "items" => {
                    writer.head(Major::Array, list.len() as u64);
                    list.iter().for_each(|value| writer.typed(value, item));
                }
                _ => writer.typed(value, &Type::Any),
            }),
            _ => self.typed(value, &Type::Any),
        }
    }

    fn typed(&mut self, value: &Value, kind: &Type) {
        match (value, kind) {
            (Value::Null, _) => self.out.push(NULL),
            (Value::Bool(truth), _) => self.out.push(if *truth { TRUE } else { FALSE }),
            (Value::Number(number), _) => self.number(number),
            (Value::String(text), Type::Bytes) => self.bytes(text),
            (Value::String(text), _) => self.text(text),
            (Value::Array(list), kind) => {
                let item = if let Type::List(item) = kind { item } else { &Type::Any };
                self.head(Major::Array, list.len() as u64);
                list.iter().for_each(|value| self.typed(value, item));
            }
            (Value::Object(map), Type::Object(path)) => {
                let fields = schema::definition(path).map(|definition| &definition.fields);
                self.map(map, |writer, key, value| {
                    let field = fields.and_then(|fields| fields.get(key));
                    writer.typed(value, field.map_or(&Type::Any, |field| &field.kind));
                });
            }
            (Value::Object(map), kind) => {
                let item = if let Type::Map(item) = kind { item } else { &Type::Any };
                self.map(map, |writer, _, value| writer.typed(value, item));
            }
        }
    }

    /// A map, its keys in the order of their encoding: shorter ones first.
    fn map(&mut self, map: &Map<String, Value>, mut value: impl FnMut(&mut Self, &str, &Value)) {
        let mut pairs: Vec<(&String, &Value)> = map.iter().collect();
        pairs.sort_unstable_by(|(one, _), (other, _)| one.len().cmp(&other.len()).then_with(|| one.cmp(other)));
        self.head(Major::Map, pairs.len() as u64);
        for (key, inner) in pairs {
            self.text(key);
            value(self, key, inner);
        }
    }

    /// Bytes that are base64 in JSON. What is not the base64 of anything stays text, which is read the same.
    fn bytes(&mut self, text: &str) {
        match base64_text::decode(base64_text::Form::Standard, text.as_bytes()) {
            Ok(bytes) if STANDARD.encode(&bytes) == text => {
                self.head(Major::Tag, TAG_BASE64);
                self.head(Major::Bytes, bytes.len() as u64);
                self.out.extend(bytes);
            }
            _ => self.text(text),
        }
    }

    fn number(&mut self, number: &Number) {
        match (number.as_i64(), number.as_f64()) {
            (Some(whole @ 0..), _) => self.head(Major::Positive, whole.cast_unsigned()),
            (Some(whole), _) => self.head(Major::Negative, (!whole).cast_unsigned()),
            (None, Some(float)) => self.float(float),
            (None, None) => self.out.push(NULL),
        }
    }

    /// A float in the shortest of the three widths that keeps it.
    fn float(&mut self, float: f64) {
        let single = float as f32;
        if f64::from(single).to_bits() != float.to_bits() {
            self.out.push(0xfb);
            self.out.extend(float.to_bits().to_be_bytes());
            return;
        }
        match to_half(single) {
            Some(half) => {
                self.out.push(0xf9);
                self.out.extend(half.to_be_bytes());
            }
            None => {
                self.out.push(0xfa);
                self.out.extend(single.to_bits().to_be_bytes());
            }
        }
    }
}

/// A finite float in half precision, if that keeps it.
pub(super) fn to_half(float: f32) -> Option<u16> {
    let bits = float.to_bits();
    let sign = ((bits >> 16) & 0x8000) as u16;
    let (exponent, mantissa) = ((bits >> 23 & 0xff) as i32 - 127, bits & 0x7f_ffff);
    match exponent {
        -127 if mantissa == 0 => Some(sign),
        -14..=15 if mantissa.trailing_zeros() >= 13 => {
            Some(sign | ((exponent + 15) as u16) << 10 | (mantissa >> 13) as u16)
        }
        // Below the least normal number the leading one is written out.
        -24..=-15 => {
            let whole = mantissa | 0x80_0000;
            let shift = (-1 - exponent).cast_unsigned();
            (whole.trailing_zeros() >= shift).then_some(sign | (whole >> shift) as u16)
        }
        _ => None,
    }
}
