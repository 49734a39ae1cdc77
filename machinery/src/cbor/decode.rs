//! Reading: first that all of it is there and well-formed, then what it says, each refusal in upstream's words.

use std::collections::HashSet;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jiff::Timestamp;
use serde_json::{Map, Number, Value};

use super::{MAX_ELEMENTS, MAX_NESTED_LEVELS, Major, TAG_BASE16, TAG_BASE64, TAG_BASE64_URL, TAG_SELF_DESCRIBED};
use crate::base64_text::{self, Form};
use crate::go_time::{self, Layout};
use crate::schema::{self, Definition, Type};

const BREAK: u8 = 0xff;
/// Of heads without a length, which end with a break.
const INDEFINITE: u8 = 31;
/// Of the simple value null.
const NULL_INFO: u8 = 22;
/// Times beyond this year have no form in RFC 3339.
const MAX_YEAR: i16 = 9999;

/// Why something is not read.
#[derive(Debug)]
enum Refused {
    /// A value is of another type than it should be.
    Type {
        given: &'static str,
        wanted: String,
        /// The field of the outermost object that has it.
        field: Option<String>,
        note: String,
    },
    /// Anything else.
    Text(String),
}

impl Refused {
    fn of(given: Major, wanted: impl Into<String>) -> Self {
        Self::noted(given, wanted, "")
    }

    fn noted(given: Major, wanted: impl Into<String>, note: impl Into<String>) -> Self {
        Self::Type { given: given.name(), wanted: wanted.into(), field: None, note: note.into() }
    }

    fn unacceptable(of: Major, why: &str) -> Self {
        Self::Text(format!("cbor: data item of cbor type {} is not accepted by protocol: {why}", of.name()))
    }

    fn in_field(self, of: &str, name: &str) -> Self {
        match self {
            Self::Type { given, wanted, note, .. } => {
                Self::Type { given, wanted, note, field: Some(format!("{of}.{name}")) }
            }
            other => other,
        }
    }
}

impl From<Refused> for String {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Text(text) => text,
            Refused::Type { given, wanted, field, note } => {
                let place = field.map_or("value".to_owned(), |field| format!("struct field {field}"));
                let note = if note.is_empty() { note } else { format!(" ({note})") };
                format!("cbor: cannot unmarshal {given} into Go {place} of type {wanted}{note}")
            }
        }
    }
}

type Result<T, E = Refused> = std::result::Result<T, E>;

/// An object that was read as one of a type.
#[derive(Clone, Debug, PartialEq)]
pub struct Typed {
    /// The object without fields that its type does not have.
    pub value: Value,
    /// What is to be said of the first field that its type does not have: at which place of its map it is.
    pub unknown: Option<String>,
}

/// Reads a map as it is, of which nothing is known; null is an empty one.
///
/// # Errors
/// In upstream's words.
pub fn decode(bytes: &[u8]) -> std::result::Result<Value, String> {
    let mut reader = Reader::well_formed(bytes)?;
    reader.strip_self_described();
    reader.check_tags()?;
    Ok(reader.value(&Type::Map(Box::new(Type::Any)))?)
}

/// Reads an object as one of a type. Bytes become base64, however they are marked.
///
/// # Errors
/// In upstream's words: keys that come twice, values of wrong types.
pub fn decode_typed(bytes: &[u8], definition: &'static Definition) -> std::result::Result<Typed, String> {
    let mut reader = Reader::well_formed(bytes)?;
    let value = reader.nested(&Type::Object(definition.path))?;
    let unknown = reader.unknown.map(|index| format!("cbor: found unknown field at map element index {index}"));
    Ok(Typed { value, unknown })
}

/// The `apiVersion` and `kind` that an object says it is of, empty if it says nothing.
///
/// # Errors
/// In upstream's words: it is not well-formed, or no map, or one of its own keys comes twice.
pub fn interpret(bytes: &[u8]) -> std::result::Result<(String, String), String> {
    let told = |why: String| format!("unable to determine group/version/kind: {why}");
    let read = || -> std::result::Result<_, String> {
        let mut reader = Reader::well_formed(bytes)?;
        Ok(reader.type_meta()?)
    };
    read().map_err(told)
}

struct Head {
    major: Major,
    /// Additional information.
    info: u8,
    argument: u64,
}

struct Reader<'a> {
    data: &'a [u8],
    at: usize,
    /// Tags around the item that say what bytes become where text is wanted; the innermost counts.
    later: Vec<u64>,
    /// The first field that a type does not have: its place in its map.
    unknown: Option<usize>,
}

impl<'a> Reader<'a> {
    /// Looks at the whole of it; what follows may rely on every length.
    fn well_formed(data: &'a [u8]) -> Result<Self> {
        let mut reader = Self { data, at: 0, later: Vec::new(), unknown: None };
        if data.is_empty() {
            return Err(Refused::Text("EOF".into()));
        }
        reader.check(0)?;
        if reader.at < data.len() {
            let (rest, at) = (data.len() - reader.at, reader.at);
            return Err(Refused::Text(format!("cbor: {rest} bytes of extraneous data starting at index {at}")));
        }
        reader.at = 0;
        Ok(reader)
    }

    fn ended() -> Refused {
        Refused::Text("unexpected EOF".into())
    }

    fn peek(&self) -> Result<u8> {
        self.data.get(self.at).copied().ok_or_else(Self::ended)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.data.len()).ok_or_else(Self::ended)?;
        let taken = &self.data[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn head(&mut self) -> Result<Head> {
        let first = self.peek()?;
        self.at += 1;
        let (major, info) = (Major::of(first), first & 0x1f);
        let width = match info {
            0..=23 => return Ok(Head { major, info, argument: u64::from(info) }),
            24..=27 => 1 << (info - 24),
            INDEFINITE => 0,
            _ => return Err(Self::additional(major, info)),
        };
        let argument = self.take(width)?.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        Ok(Head { major, info, argument })
    }

    fn additional(major: Major, info: u8) -> Refused {
        Refused::Text(format!("cbor: invalid additional information {info} for type {}", major.name()))
    }

    /// Goes over an item at a depth; its heads and lengths are right, and how deep it is.
    fn check(&mut self, depth: usize) -> Result<()> {
        let head = self.head()?;
        let indefinite = head.info == INDEFINITE;
        match head.major {
            Major::Positive | Major::Negative | Major::Tag if indefinite => {
                Err(Self::additional(head.major, INDEFINITE))
            }
            Major::Positive | Major::Negative => Ok(()),
            Major::Bytes | Major::Text if indefinite => self.check_chunks(head.major),
            Major::Bytes | Major::Text => {
                let length = self.length(&head, "causing integer overflow")?;
                self.take(length).map(|_| ())
            }
            Major::Array | Major::Map => self.check_elements(&head, deeper(depth)?),
            Major::Tag => {
                if matches!(head.argument, 2 | 3) {
                    self.check_bignum()?;
                }
                let mut depth = depth;
                while Major::of(self.peek()?) == Major::Tag {
                    let inner = self.head()?;
                    if inner.info == INDEFINITE {
                        return Err(Self::additional(Major::Tag, INDEFINITE));
                    }
                    if matches!(inner.argument, 2 | 3) {
                        self.check_bignum()?;
                    }
                    depth = deeper(depth)?;
                }
                self.check(depth)
            }
            Major::Primitive => check_primitive(&head),
        }
    }

    /// Bignums have no form in JSON that could be told from a float.
    fn check_bignum(&self) -> Result<()> {
        match Major::of(self.peek()?) {
            Major::Bytes => Err(Refused::unacceptable(Major::Tag, "bignum")),
            other => Err(Refused::Text(format!(
                "cbor: tag number 2 or 3 must be followed by byte string, got {}",
                other.name()
            ))),
        }
    }

    fn length(&self, head: &Head, why: &str) -> Result<usize> {
        i64::try_from(head.argument).ok().and_then(|length| usize::try_from(length).ok()).ok_or_else(|| {
            Refused::Text(format!("cbor: {} length {} is too large, {why}", head.major.name(), head.argument))
        })
    }

    fn check_chunks(&mut self, of: Major) -> Result<()> {
        loop {
            let first = self.peek()?;
            if first == BREAK {
                self.at += 1;
                return Ok(());
            }
            let major = Major::of(first);
            if major != of {
                return Err(Refused::Text(format!(
                    "cbor: wrong element type {} for indefinite-length {}",
                    major.name(),
                    of.name()
                )));
            }
            if first & 0x1f == INDEFINITE {
                let name = of.name();
                return Err(Refused::Text(format!("cbor: indefinite-length {name} chunk is not definite-length")));
            }
            self.check(0)?;
        }
    }

    fn check_elements(&mut self, head: &Head, depth: usize) -> Result<()> {
        let too_many = || {
            let what = if head.major == Major::Map { "key-value pairs" } else { "elements" };
            Refused::Text(format!("cbor: exceeded max number of {what} {MAX_ELEMENTS} for CBOR {}", head.major.name()))
        };
        let each = if head.major == Major::Map { 2 } else { 1 };
        if head.info != INDEFINITE {
            self.length(head, "it would cause integer overflow")?;
            if head.argument > MAX_ELEMENTS {
                return Err(too_many());
            }
            for _ in 0..head.argument * each {
                self.check(depth)?;
            }
            return Ok(());
        }
        for count in 0_u64.. {
            if self.peek()? == BREAK {
                self.at += 1;
                if count % each == 1 {
                    return Err(Refused::Text("cbor: unexpected \"break\" code".into()));
                }
                break;
            }
            if count / each > MAX_ELEMENTS {
                return Err(too_many());
            }
            self.check(depth)?;
        }
        Ok(())
    }

    /// Goes past an item, whatever it is.
    fn skip(&mut self) -> Result<()> {
        let mut head = self.head()?;
        match head.major {
            Major::Bytes | Major::Text if head.info != INDEFINITE => {
                let length = self.length(&head, "causing integer overflow")?;
                self.take(length)?;
            }
            Major::Bytes | Major::Text | Major::Array => {
                while self.more(&mut head)? {
                    self.skip()?;
                }
            }
            Major::Map => {
                while self.more(&mut head)? {
                    self.skip()?;
                    self.skip()?;
                }
            }
            Major::Tag => self.skip()?,
            Major::Positive | Major::Negative | Major::Primitive => {}
        }
        Ok(())
    }

    fn strip_self_described(&mut self) {
        while self.peek().is_ok_and(|byte| Major::of(byte) == Major::Tag) {
            let before = self.at;
            if !self.head().is_ok_and(|head| head.argument == TAG_SELF_DESCRIBED) {
                self.at = before;
                return;
            }
        }
    }

    /// Tags that say what follows are followed by that.
    fn check_tags(&mut self) -> Result<()> {
        let before = self.at;
        while Major::of(self.peek()?) == Major::Tag {
            let head = self.head()?;
            let first = self.peek()?;
            let (major, is_float) = (Major::of(first), (0xf9..=0xfb).contains(&first));
            let wanted = match head.argument {
                0 if major != Major::Text => "text string",
                1 if !matches!(major, Major::Positive | Major::Negative) && !is_float => {
                    "integer or floating-point number"
                }
                _ => continue,
            };
            let (tag, name) = (head.argument, major.name());
            return Err(Refused::Text(format!("cbor: tag number {tag} must be followed by {wanted}, got {name}")));
        }
        self.at = before;
        Ok(())
    }

    /// The next item as a value of a type, with what may be around it.
    fn nested(&mut self, kind: &Type) -> Result<Value> {
        self.strip_self_described();
        self.check_tags()?;
        self.value(kind)
    }

    fn value(&mut self, kind: &Type) -> Result<Value> {
        let head = self.head()?;
        let mismatch = |note: String| Refused::noted(head.major, go_type(kind), note);
        match head.major {
            Major::Positive | Major::Negative => whole(&head, kind),
            Major::Bytes => {
                let bytes = self.chunks(&head)?;
                match kind {
                    Type::Bytes => self.base64(&bytes),
                    _ if takes_text(kind) => Ok(self.later_text(bytes).into()),
                    _ => Err(mismatch(String::new())),
                }
            }
            Major::Text => {
                let text = self.text(&head)?;
                if takes_text(kind) { Ok(text.into()) } else { Err(mismatch(String::new())) }
            }
            Major::Array => {
                let item = match kind {
                    Type::List(item) => item,
                    Type::Any => &Type::Any,
                    Type::Object(_) => {
                        return Err(mismatch("cannot decode CBOR array to struct without toarray option".into()));
                    }
                    _ => return Err(mismatch(String::new())),
                };
                let mut list = Vec::new();
                let mut left = head;
                while self.more(&mut left)? {
                    list.push(self.nested(item)?);
                }
                Ok(list.into())
            }
            Major::Map => match kind {
                Type::Object(path) => match schema::definition(path) {
                    Some(definition) => self.object(head, definition),
                    None => self.map(head, &Type::Any),
                },
                Type::Map(item) => self.map(head, item),
                Type::Any => self.map(head, &Type::Any),
                _ => Err(mismatch(String::new())),
            },
            Major::Tag => self.tagged(head.argument, kind),
            Major::Primitive => primitive(&head, kind),
        }
    }

    fn tagged(&mut self, tag: u64, kind: &Type) -> Result<Value> {
        match tag {
            0 | 1 if takes_text(kind) => self.time(tag),
            TAG_BASE64_URL | TAG_BASE64 | TAG_BASE16 => {
                self.later.push(tag);
                let read = self.value(kind);
                self.later.pop();
                read
            }
            _ => self.value(kind),
        }
    }

    /// What a time's tag encloses, as RFC 3339.
    fn time(&mut self, tag: u64) -> Result<Value> {
        let head = self.head()?;
        if tag == 0 {
            let text = self.text(&head)?;
            return match go_time::parse(Layout::Seconds, &text) {
                Ok(_) => Ok(text.into()),
                Err(why) => Err(Refused::Text(format!("cbor: cannot set {text} for time.Time: {why}"))),
            };
        }
        let overflow = |text: String| Refused::noted(head.major, "time.Time", format!("{text} overflows Go's int64"));
        let (seconds, nanos) = match head.major {
            Major::Positive => (i64::try_from(head.argument).map_err(|_| overflow(head.argument.to_string()))?, 0),
            Major::Negative => {
                let seconds = i64::try_from(head.argument).map(|n| !n);
                (seconds.map_err(|_| overflow((-1 - i128::from(head.argument)).to_string()))?, 0)
            }
            _ => {
                let time = float(&head);
                if time.abs() >= i64::MAX as f64 {
                    return Err(overflow(time.to_string()));
                }
                (time.trunc() as i64, (time.fract() * 1e9) as i32)
            }
        };
        let stamp = Timestamp::new(seconds, nanos).ok();
        let year = stamp.map(|stamp| stamp.to_zoned(jiff::tz::TimeZone::UTC).year());
        match (stamp, year) {
            (Some(stamp), Some(0..=MAX_YEAR)) => Ok(stamp.to_string().into()),
            _ => Err(Refused::Text(
                "cbor: decoded time cannot be represented in RFC3339 format with sub-second precision: Time.MarshalText: \
                 year outside of range [0,9999]"
                    .into(),
            )),
        }
    }

    /// The bytes of a string, whose chunks are put together.
    fn chunks(&mut self, head: &Head) -> Result<Vec<u8>> {
        if head.info != INDEFINITE {
            let length = self.length(head, "causing integer overflow")?;
            return Ok(self.take(length)?.to_vec());
        }
        let mut all = Vec::new();
        while self.peek()? != BREAK {
            let chunk = self.head()?;
            let length = self.length(&chunk, "causing integer overflow")?;
            all.extend_from_slice(self.take(length)?);
        }
        self.at += 1;
        Ok(all)
    }

    /// A text, each chunk of which is text.
    fn text(&mut self, head: &Head) -> Result<String> {
        let invalid = || Refused::Text("cbor: invalid UTF-8 string".into());
        if head.info != INDEFINITE {
            return String::from_utf8(self.chunks(head)?).map_err(|_| invalid());
        }
        let mut all = String::new();
        while self.peek()? != BREAK {
            let chunk = self.head()?;
            all += std::str::from_utf8(&self.chunks(&chunk)?).map_err(|_| invalid())?;
        }
        self.at += 1;
        Ok(all)
    }

    /// Bytes where text is wanted: what the tag around them says, else the text that they are. What is no text has no form
    /// in JSON, and gets the one that upstream's JSON gives it.
    fn later_text(&self, bytes: Vec<u8>) -> String {
        match self.later.last() {
            Some(&TAG_BASE64_URL) => URL_SAFE_NO_PAD.encode(&bytes),
            Some(&TAG_BASE64) => STANDARD.encode(&bytes),
            Some(_) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
            None => String::from_utf8(bytes)
                .unwrap_or_else(|invalid| String::from_utf8_lossy(invalid.as_bytes()).into_owned()),
        }
    }

    /// Bytes of a schema: base64, unless a tag says that they are the bytes themselves.
    fn base64(&self, bytes: &[u8]) -> Result<Value> {
        if !self.later.is_empty() {
            return Ok(STANDARD.encode(bytes).into());
        }
        match base64_text::decode(Form::Standard, bytes) {
            Ok(_) => Ok(String::from_utf8_lossy(bytes).into_owned().into()),
            Err(at) => Err(Refused::Text(format!(
                "cbor: failed to decode base64 from byte string: illegal base64 data at input byte {at}"
            ))),
        }
    }

    /// Whether another element follows; counts it.
    fn more(&mut self, left: &mut Head) -> Result<bool> {
        if left.info == INDEFINITE {
            let more = self.peek()? != BREAK;
            self.at += usize::from(!more);
            return Ok(more);
        }
        let more = left.argument > 0;
        left.argument -= u64::from(more);
        Ok(more)
    }

    /// A map whose keys are texts.
    fn map(&mut self, mut left: Head, item: &Type) -> Result<Value> {
        let mut map = Map::new();
        let mut index = 0;
        while self.more(&mut left)? {
            let Value::String(key) = self.nested(&Type::String)? else {
                // Null leaves the key what it was: empty.
                return Err(Refused::of(Major::Primitive, "string"));
            };
            let value = self.nested(item)?;
            if map.insert(key.clone(), value).is_some() {
                return Err(twice(&key, index));
            }
            index += 1;
        }
        Ok(map.into())
    }

    /// A map of which it is known which keys it may have.
    fn object(&mut self, mut left: Head, definition: &Definition) -> Result<Value> {
        let mut map = Map::new();
        let mut others: HashSet<Key> = HashSet::new();
        let mut index = 0;
        while self.more(&mut left)? {
            let key = self.key()?;
            let field = match &key {
                Key::Text(name) => {
                    std::str::from_utf8(name).ok().and_then(|name| definition.fields.get_key_value(name))
                }
                Key::Number(_) => None,
            };
            match field {
                Some((name, field)) => {
                    if map.contains_key(*name) {
                        return Err(twice(name, index));
                    }
                    let of = go_type(&Type::Object(definition.path));
                    let value = self.nested(&field.kind).map_err(|refused| refused.in_field(&of, name))?;
                    map.insert((*name).to_owned(), value);
                }
                None => {
                    self.skip()?;
                    self.unknown.get_or_insert(index);
                    if let Some(key) = others.replace(key) {
                        return Err(key.twice(index));
                    }
                }
            }
            index += 1;
        }
        Ok(map.into())
    }

    /// A key of an object with known fields.
    fn key(&mut self) -> Result<Key> {
        let head = self.head()?;
        let number = i64::try_from(head.argument).ok();
        let overflow = |text: String| Refused::noted(head.major, "int64", format!("{text} overflows Go's int64"));
        match head.major {
            Major::Text => self.text(&head).map(|text| Key::Text(text.into_bytes())),
            Major::Bytes => self.chunks(&head).map(Key::Text),
            Major::Positive => number.map(Key::Number).ok_or_else(|| overflow(head.argument.to_string())),
            Major::Negative => number.map(|n| Key::Number(!n)).ok_or_else(|| overflow(format!("-1-{}", head.argument))),
            other => {
                let why = format!("map key is of type {} and cannot be used to match struct field name", other.name());
                Err(Refused::noted(other, "string", why))
            }
        }
    }

    /// What an object says it is; its other fields are gone past.
    fn type_meta(&mut self) -> Result<(String, String)> {
        const TYPE: &str = "v1.TypeMeta";
        self.strip_self_described();
        self.check_tags()?;
        let mut head = self.head()?;
        while head.major == Major::Tag {
            head = self.head()?;
        }
        match head.major {
            Major::Map => {}
            Major::Primitive if head.info == NULL_INFO => return Ok(Default::default()),
            Major::Array => {
                let why = "cannot decode CBOR array to struct without toarray option";
                return Err(Refused::noted(Major::Array, TYPE, why));
            }
            other => return Err(Refused::of(other, TYPE)),
        }
        let (mut seen, mut said) = (HashSet::new(), [None, None]);
        let mut index = 0;
        while self.more(&mut head)? {
            let key = self.key()?;
            let place = match &key {
                Key::Text(name) => [&b"apiVersion"[..], b"kind"].iter().position(|known| *known == &name[..]),
                Key::Number(_) => None,
            };
            if seen.contains(&key) {
                return Err(key.twice(index));
            }
            match place {
                Some(at) => {
                    let name = ["apiVersion", "kind"][at];
                    let value = self.nested(&Type::String).map_err(|refused| refused.in_field(TYPE, name))?;
                    said[at] = value.as_str().map(str::to_owned);
                }
                None => self.skip()?,
            }
            seen.insert(key);
            index += 1;
        }
        let [version, kind] = said;
        Ok((version.unwrap_or_default(), kind.unwrap_or_default()))
    }
}

/// A key of an object.
#[derive(PartialEq, Eq, Hash)]
enum Key {
    Text(Vec<u8>),
    Number(i64),
}

impl Key {
    fn twice(&self, index: usize) -> Refused {
        match self {
            Self::Text(name) => twice(&String::from_utf8_lossy(name), index),
            Self::Number(number) => {
                Refused::Text(format!("cbor: found duplicate map key {number} at map element index {index}"))
            }
        }
    }
}

fn twice(key: &str, index: usize) -> Refused {
    Refused::Text(format!("cbor: found duplicate map key {key:?} at map element index {index}"))
}

fn deeper(depth: usize) -> Result<usize> {
    if depth < MAX_NESTED_LEVELS {
        return Ok(depth + 1);
    }
    Err(Refused::Text(format!("cbor: exceeded max nested level {MAX_NESTED_LEVELS}")))
}

/// Simple values are in one form each, floats are numbers, and a break is nowhere else than where it ends something.
fn check_primitive(head: &Head) -> Result<()> {
    match head.info {
        24 if head.argument < 32 => {
            Err(Refused::Text(format!("cbor: invalid simple value {} for type primitives", head.argument)))
        }
        25..=27 if float(head).is_nan() => Err(Refused::unacceptable(Major::Primitive, "floating-point NaN")),
        25..=27 if float(head).is_infinite() => Err(Refused::unacceptable(Major::Primitive, "floating-point infinity")),
        INDEFINITE => Err(Refused::Text("cbor: unexpected \"break\" code".into())),
        _ => Ok(()),
    }
}

fn primitive(head: &Head, kind: &Type) -> Result<Value> {
    let mismatch = || Refused::of(Major::Primitive, go_type(kind));
    match (head.info, head.argument) {
        (25..=27, _) => match (kind, Number::from_f64(float(head))) {
            (Type::Float64 | Type::Any | Type::Quantity, Some(number)) => Ok(number.into()),
            _ => Err(mismatch()),
        },
        (_, truth @ (20 | 21)) => {
            if matches!(kind, Type::Bool | Type::Any) {
                Ok((truth == 21).into())
            } else {
                Err(mismatch())
            }
        }
        (_, 22) => Ok(Value::Null),
        (_, other) => Err(Refused::unacceptable(Major::Primitive, &format!("simple value {other} is not recognized"))),
    }
}

/// The value of a float's head.
fn float(head: &Head) -> f64 {
    match head.info {
        25 => from_half(head.argument as u16),
        26 => f32::from_bits(head.argument as u32).into(),
        _ => f64::from_bits(head.argument),
    }
}

/// A float of half precision.
pub(super) fn from_half(bits: u16) -> f64 {
    let (exponent, mantissa) = (i32::from(bits >> 10 & 0x1f), f64::from(bits & 0x3ff));
    let size = match exponent {
        0 => mantissa * 2_f64.powi(-24),
        31 if mantissa == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1.0 + mantissa / 1024.0) * 2_f64.powi(exponent - 15),
    };
    if bits & 0x8000 == 0 { size } else { -size }
}

/// A whole number of a type.
fn whole(head: &Head, kind: &Type) -> Result<Value> {
    let negative = head.major == Major::Negative;
    let number = i64::try_from(head.argument).ok().map(|n| if negative { !n } else { n });
    let overflow = |range: &str| {
        let text = if negative { -1 - i128::from(head.argument) } else { head.argument.into() };
        Err(Refused::noted(head.major, go_type(kind), format!("{text} overflows {range}")))
    };
    match (kind, number) {
        (Type::Int32 | Type::IntOrString, Some(number)) if i32::try_from(number).is_err() => overflow("int32"),
        (Type::Int32 | Type::IntOrString | Type::Int64 | Type::Float64 | Type::Quantity | Type::Any, Some(number)) => {
            Ok(number.into())
        }
        (Type::Float64, None) if !negative => Ok((head.argument as f64).into()),
        (Type::Int32 | Type::IntOrString, None) if !negative => overflow("int32"),
        (Type::Int64, None) if !negative => overflow("int64"),
        (_, None) => overflow("Go's int64"),
        _ => Err(Refused::of(head.major, go_type(kind))),
    }
}

fn takes_text(kind: &Type) -> bool {
    matches!(kind, Type::String | Type::Any | Type::Quantity | Type::IntOrString | Type::Time | Type::MicroTime)
}

/// The Go type that refusals name.
fn go_type(kind: &Type) -> String {
    match kind {
        Type::Any => "int64".into(),
        Type::Map(item) if **item == Type::Any => "map[string]interface {}".into(),
        other => crate::conform::go_type(other),
    }
}
