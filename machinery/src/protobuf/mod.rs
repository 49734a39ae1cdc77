//! Kubernetes' protobuf: `k8s\0`, then `runtime.Unknown` with the kind and the object's message.
//!
//! Everything walks one table of messages ([`table`]), which is derived from the schema and the numbers of its fields.
//! Encoding takes JSON text and builds nothing; decoding gives a value for the same pipeline that JSON bodies take.

mod decode;
mod encode;
mod presence;
mod table;
#[cfg(test)]
mod tests;
mod wire;

pub use encode::Encoder;
pub(crate) use presence::keeps_zero;

use serde_json::Value;
use wire::{BYTES, Raw, Reader, put_bytes, put_key, put_length_before, put_varint, varint_len};

use crate::stored::Stored;

/// The media type.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// What every body begins with.
pub const MAGIC: [u8; 4] = *b"k8s\0";

/// Why bytes are not an object, or an object has no bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is nothing.
    #[error("empty data")]
    NoData,
    /// There is nothing after [`MAGIC`].
    #[error("empty body")]
    NoBody,
    /// The body does not begin with [`MAGIC`].
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    NoMagic,
    /// A length points beyond the end.
    #[error("unexpected EOF")]
    UnexpectedEnd,
    /// Not the wire format, or a value that its field cannot have.
    #[error("{0}")]
    Malformed(String),
    /// Too many messages in one another.
    #[error("proto: exceeded max depth")]
    TooDeep,
    /// Too many values.
    #[error("proto: the object has too many values")]
    TooLarge,
    /// The kind has no message.
    #[error("no message is known for this kind")]
    UnknownKind,
    /// A body that says what it is, and is not.
    #[error("{why}")]
    Of {
        /// What it says: the version of its API.
        api_version: String,
        /// And its kind.
        kind: String,
        /// What is wrong with it.
        why: Box<Error>,
    },
}

/// The number of a type's field (that of the struct around it, if it is inlined).
pub fn number_of(path: &str, field: &str) -> Option<u32> {
    table::by_path(path)?.field(field).map(|field| field.chain[0])
}

/// The place of a type's field among the others, in the order in which the API's types have them.
pub fn place_of(path: &str, field: &str) -> Option<usize> {
    table::by_path(path)?.fields.iter().position(|known| known.name == field)
}

/// Splits `apiVersion`.
fn group_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

/// Whether objects of a kind have a message.
pub fn is_known(api_version: &str, kind: &str) -> bool {
    let (group, version) = group_version(api_version);
    table::of_kind(group, version, kind).is_some()
}

/// Reads a body. What it does not say of its version and kind is taken from `expected` (`apiVersion`, kind).
pub fn decode(body: &[u8], expected: (&str, &str)) -> Result<Value, Error> {
    if body.is_empty() {
        return Err(Error::NoData);
    }
    let unknown = body.strip_prefix(&MAGIC).ok_or(Error::NoMagic)?;
    if unknown.is_empty() {
        return Err(Error::NoBody);
    }
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    let mut reader = Reader(unknown);
    while let Some((number, value)) = reader.field()? {
        match (number, value) {
            (1, Raw::Bytes(bytes)) => {
                let mut reader = Reader(bytes);
                while let Some((number, value)) = reader.field()? {
                    match (number, value) {
                        (1, Raw::Bytes(text)) => api_version = String::from_utf8_lossy(text).into_owned(),
                        (2, Raw::Bytes(text)) => kind = String::from_utf8_lossy(text).into_owned(),
                        _ => {}
                    }
                }
            }
            (2, Raw::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    if api_version.is_empty() {
        api_version = expected.0.into();
    }
    if kind.is_empty() {
        kind = expected.1.into();
    }
    let (group, version) = group_version(&api_version);
    let read = table::of_kind(group, version, &kind)
        .ok_or(Error::UnknownKind)
        .and_then(|message| decode::message(message, raw));
    let mut object = match read {
        Ok(object) => object,
        Err(why) => return Err(Error::Of { api_version, kind, why: Box::new(why) }),
    };
    object.insert("apiVersion".into(), api_version.into());
    object.insert("kind".into(), kind.into());
    Ok(object.into())
}

/// Encodes an object that names its kind. A list is one whose kind ends with `List` and that has `items`.
pub fn encode(object: &Value) -> Result<Vec<u8>, Error> {
    let text = |key: &str| object[key].as_str().unwrap_or_default();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let (group, version) = group_version(api_version);
    let mut encoder = Encoder::default();
    match (table::of_kind(group, version, kind), kind.strip_suffix("List")) {
        (Some(message), _) => {
            encoder.value(message, object).map_err(|e| Error::Malformed(e.to_string()))?;
        }
        (None, Some(item)) => {
            let mut list = List::new(api_version, item)?;
            for item in object["items"].as_array().into_iter().flatten() {
                list.push_value(item)?;
            }
            return list.finish(&object["metadata"]);
        }
        (None, None) => return Err(Error::UnknownKind),
    }
    Ok(envelope(api_version, kind, &encoder.into_bytes()))
}

/// Encodes a stored object with its resource version; `scratch` is reused between calls.
pub fn encode_stored(api_version: &str, kind: &str, stored: &Stored, revision: i64) -> Result<Vec<u8>, Error> {
    let (group, version) = group_version(api_version);
    let message = table::of_kind(group, version, kind).ok_or(Error::UnknownKind)?;
    let mut json = Vec::with_capacity(stored.json.len() + 40);
    stored.write_json(revision, &mut json);
    let mut encoder = Encoder::default();
    encoder.text(message, &json).map_err(|e| Error::Malformed(e.to_string()))?;
    Ok(envelope(api_version, kind, &encoder.into_bytes()))
}

/// What comes after a message: contentEncoding and contentType, both empty.
pub const LIST_END: [u8; 4] = [0x1a, 0, 0x22, 0];

/// What comes before a message of so many bytes.
fn before(api_version: &str, kind: &str, length: usize) -> Vec<u8> {
    let mut head = Vec::with_capacity(api_version.len() + kind.len() + 24);
    head.extend(MAGIC);
    put_key(&mut head, 1, BYTES);
    let start = head.len();
    put_bytes(&mut head, 1, api_version.as_bytes());
    put_bytes(&mut head, 2, kind.as_bytes());
    put_length_before(&mut head, start);
    put_key(&mut head, 2, BYTES);
    put_varint(&mut head, length as u64);
    head
}

/// A message with what it is around it.
pub fn envelope(api_version: &str, kind: &str, message: &[u8]) -> Vec<u8> {
    let mut out = before(api_version, kind, message.len());
    out.reserve_exact(message.len() + LIST_END.len());
    out.extend_from_slice(message);
    out.extend(LIST_END);
    out
}

/// A list, encoded item by item.
pub struct List {
    api_version: String,
    kind: String,
    message: &'static table::Message,
    encoder: Encoder,
    json: Vec<u8>,
}

impl List {
    /// A list of objects of a kind.
    pub fn new(api_version: &str, kind: &str) -> Result<Self, Error> {
        let (group, version) = group_version(api_version);
        let message = table::of_kind(group, version, kind).ok_or(Error::UnknownKind)?;
        let (api_version, kind) = (api_version.to_owned(), format!("{kind}List"));
        Ok(Self { api_version, kind, message, encoder: Encoder::default(), json: Vec::new() })
    }

    /// Adds an object.
    pub fn push_value(&mut self, object: &Value) -> Result<(), Error> {
        let start = self.begin();
        self.encoder.value(self.message, object).map_err(|e| Error::Malformed(e.to_string()))?;
        put_length_before(self.encoder.bytes(), start);
        Ok(())
    }

    /// Adds a stored object.
    pub fn push_stored(&mut self, stored: &Stored, revision: i64) -> Result<(), Error> {
        let start = self.begin();
        self.json.clear();
        stored.write_json(revision, &mut self.json);
        self.encoder.text(self.message, &self.json).map_err(|e| Error::Malformed(e.to_string()))?;
        put_length_before(self.encoder.bytes(), start);
        Ok(())
    }

    fn begin(&mut self) -> usize {
        let out = self.encoder.bytes();
        put_key(out, 2, BYTES);
        out.len()
    }

    /// What was encoded and not taken out yet: a list that is written in pieces takes each item out.
    pub fn written(&mut self) -> &mut Vec<u8> {
        self.encoder.bytes()
    }

    /// What comes before items that are so many bytes together. [`LIST_END`] comes after them.
    pub fn head(&self, metadata: &Value, length: usize) -> Result<Vec<u8>, Error> {
        let message = table::by_path("apimachinery.pkg.apis.meta.v1.ListMeta").ok_or(Error::UnknownKind)?;
        let mut encoder = Encoder::default();
        if metadata.is_object() {
            encoder.value(message, metadata).map_err(|e| Error::Malformed(e.to_string()))?;
        }
        let metadata = encoder.into_bytes();
        let length = 1 + varint_len(metadata.len() as u64) + metadata.len() + length;
        let mut out = before(&self.api_version, &self.kind, length);
        put_bytes(&mut out, 1, &metadata);
        Ok(out)
    }

    /// The list, with its metadata.
    pub fn finish(self, metadata: &Value) -> Result<Vec<u8>, Error> {
        let mut out = self.head(metadata, self.encoder.size())?;
        let items = self.encoder.into_bytes();
        out.reserve_exact(items.len() + LIST_END.len());
        out.extend_from_slice(&items);
        out.extend(LIST_END);
        Ok(out)
    }
}

/// A frame of a watch: its length (four bytes, big endian) and the event with the object in its envelope.
pub fn watch_frame(kind: &str, object: &[u8]) -> Vec<u8> {
    let raw = 1 + varint_len(object.len() as u64) + object.len();
    let mut out = Vec::with_capacity(raw + kind.len() + 20);
    out.extend([0; 4]);
    put_bytes(&mut out, 1, kind.as_bytes());
    put_key(&mut out, 2, BYTES);
    put_varint(&mut out, raw as u64);
    put_bytes(&mut out, 1, object);
    // Objects are limited to megabytes.
    let length = (out.len() - 4) as u32;
    out[..4].copy_from_slice(&length.to_be_bytes());
    out
}
