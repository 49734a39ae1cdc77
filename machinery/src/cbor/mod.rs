//! CBOR (RFC 8949) as Kubernetes speaks it (KEP-4222): objects as values and back, events of watches.
//!
//! What is written is enclosed in the tag that says that it is CBOR, has definite lengths, the shortest form of every
//! number and sorted keys; texts are byte strings, since nobody has to look at them to write them, and bytes of a schema
//! are marked for base64 (tag 22). What is read may be anything that is valid and has a form in JSON: a key that comes
//! twice, NaN, infinities, bignums and other simple values than truth values and null are refused, other tags are read
//! over. Limits: nesting ([`MAX_NESTED_LEVELS`]); what is held is linear in what was sent, for lengths are believed only
//! once it is known that all of it is there.
//!
//! The heads of items are read and written here and not by a crate: refusals name the bits of a head as upstream's library
//! does, which no crate of a licence that is taken tells, and nothing else of such a crate would be used.

mod decode;
mod encode;
#[cfg(test)]
mod tests;

pub use decode::{Typed, decode, decode_typed, interpret};
pub use encode::{encode, item, list_begin, list_end, watch_event};

/// The media type of one item.
pub const MEDIA_TYPE: &str = "application/cbor";
/// The media type of items in a row (RFC 8742), as which watches are served.
pub const SEQUENCE_TYPE: &str = "application/cbor-seq";
/// The media type of applied configurations.
pub const APPLY_TYPE: &str = "application/apply-patch+cbor";
/// The head of the tag that says that CBOR follows: every answer begins with it.
pub const SELF_DESCRIBED: [u8; 3] = [0xd9, 0xd9, 0xf7];
/// Deepest nesting of lists, maps and tags that is read (upstream's limit).
pub const MAX_NESTED_LEVELS: usize = 64;
/// Most elements of a list, and pairs of a map, that a head may claim (upstream's limit); bodies are smaller.
pub const MAX_ELEMENTS: u64 = 2_147_483_647;

/// Bytes that become URL-safe base64 where text is wanted.
const TAG_BASE64_URL: u64 = 21;
/// Bytes that become base64 where text is wanted.
const TAG_BASE64: u64 = 22;
/// Bytes that become hexadecimal where text is wanted.
const TAG_BASE16: u64 = 23;
/// The tag of [`SELF_DESCRIBED`].
const TAG_SELF_DESCRIBED: u64 = 55_799;

/// The major types (RFC 8949 section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Major {
    Positive = 0,
    Negative = 1,
    Bytes = 2,
    Text = 3,
    Array = 4,
    Map = 5,
    Tag = 6,
    Primitive = 7,
}

impl Major {
    /// That of an initial byte.
    fn of(byte: u8) -> Self {
        match byte >> 5 {
            0 => Self::Positive,
            1 => Self::Negative,
            2 => Self::Bytes,
            3 => Self::Text,
            4 => Self::Array,
            5 => Self::Map,
            6 => Self::Tag,
            _ => Self::Primitive,
        }
    }

    /// As refusals call it.
    fn name(self) -> &'static str {
        match self {
            Self::Positive => "positive integer",
            Self::Negative => "negative integer",
            Self::Bytes => "byte string",
            Self::Text => "UTF-8 text string",
            Self::Array => "array",
            Self::Map => "map",
            Self::Tag => "tag",
            Self::Primitive => "primitives",
        }
    }
}
