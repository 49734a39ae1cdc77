//! A stored object: a small decoded head (for selectors, indexes, watches) and the canonical JSON, as one byte string.
//!
//! Layout: version byte 1; u32 LE length of the head; head; JSON. The head is a list of u32-LE-length-prefixed strings
//! with u32 LE counts before lists. The JSON says first what the object is, then has sorted keys. It has no
//! `metadata.resourceVersion`: the revision is spliced in at [`Head::splice`] when the object is served.
//! Large objects of rows that are seldom written ([`is_packed`]) have version byte 2: after the head come the length of the
//! JSON (u32 LE) and the JSON deflated.
//! Invariant: [`encode`] then [`Stored::parse`] gives the same head and JSON; a value of another form is refused.

use std::io::{Read, Write};

use bytes::Bytes;
use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use serde_json::Value;

use crate::resource::ResourceDef;

/// First byte of a stored value.
const VERSION: u8 = 1;
/// First byte of a stored value whose JSON is deflated.
const PACKED: u8 = 2;
/// JSON from this length on is deflated, where any is.
const PACKED_FROM_BYTES: usize = 4 * 1024;
/// No object has more JSON; a length beyond it is not believed.
const MAX_JSON_BYTES: usize = 64 * 1024 * 1024;
/// Where the metadata's first key begins.
const METADATA: &[u8] = b"\"metadata\":{";

/// How the JSON of a row's objects begins.
pub fn intro(def: &ResourceDef) -> Vec<u8> {
    format!("{{\"apiVersion\":\"{}\",\"kind\":\"{}\",", def.api_version(), def.kind).into()
}

/// What selectors and indexes need to know of an object without parsing it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// metadata.namespace, "" for cluster-scoped.
    pub namespace: String,
    /// metadata.name
    pub name: String,
    /// metadata.uid
    pub uid: String,
    /// metadata.labels, sorted.
    pub labels: Vec<(String, String)>,
    /// uids of metadata.ownerReferences.
    pub owners: Vec<String>,
    /// Values of the row's selectable fields, in the row's order.
    pub fields: Vec<String>,
    /// Byte offset in the JSON right after `"metadata":{`, where `"resourceVersion":"N",` goes.
    pub splice: u32,
}

impl Head {
    /// The value of a label.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.binary_search_by(|(k, _)| k.as_str().cmp(key)).ok().map(|i| self.labels[i].1.as_str())
    }
}

/// A stored value, split; the JSON shares the value's memory unless it was deflated.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The head.
    pub head: Head,
    /// The JSON without resource version.
    pub json: Bytes,
}

/// Why a value is not a stored object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a stored object (version, length or text is wrong)")]
pub struct Malformed;

/// Encodes an object for the store. `metadata.resourceVersion` is left out; `selectable` are the values of the row's
/// selectable fields ([`crate::selector::fields_of`]).
pub fn encode(def: &ResourceDef, object: &Value) -> Result<Bytes, Malformed> {
    let mut object = std::borrow::Cow::Borrowed(object);
    if object["metadata"].get("resourceVersion").is_some() {
        object.to_mut()["metadata"].as_object_mut().ok_or(Malformed)?.remove("resourceVersion");
    }
    let json = text_of(&object)?;
    let head = head_of(def, &object, &json)?;
    let packed = (is_row_packed(def) && json.len() >= PACKED_FROM_BYTES).then(|| deflate(&json)).transpose()?;
    let (version, body) = packed.as_ref().map_or((VERSION, &json), |packed| (PACKED, packed));
    let mut out = Vec::with_capacity(body.len() + 256);
    out.extend([version, 0, 0, 0, 0]);
    for text in [&head.namespace, &head.name, &head.uid] {
        put(&mut out, text);
    }
    put_count(&mut out, head.labels.len());
    for (key, value) in &head.labels {
        put(&mut out, key);
        put(&mut out, value);
    }
    for list in [&head.owners, &head.fields] {
        put_count(&mut out, list.len());
        for text in list {
            put(&mut out, text);
        }
    }
    put_count(&mut out, head.splice as usize);
    let length = u32::try_from(out.len() - 5).map_err(|_| Malformed)?;
    out[1..5].copy_from_slice(&length.to_le_bytes());
    out.extend(body);
    Ok(out.into())
}

/// Whether objects of a row are deflated: definitions are tens of kilobytes of words that come again and again, there may be
/// a thousand of them, every member has all of them in memory, and nobody looks at them once they are established.
fn is_row_packed(def: &ResourceDef) -> bool {
    (def.group, def.plural) == ("apiextensions.k8s.io", "customresourcedefinitions")
}

/// Whether a stored value's JSON is deflated: then who reads it should not keep it.
pub fn is_packed(value: &[u8]) -> bool {
    value.first() == Some(&PACKED)
}

fn deflate(json: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut out = Vec::with_capacity(json.len() / 4);
    put_count(&mut out, json.len());
    let mut encoder = DeflateEncoder::new(out, Compression::fast());
    encoder.write_all(json).and_then(|()| encoder.finish()).map_err(|_| Malformed)
}

fn inflate(packed: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut reader = Reader(packed);
    let length = reader.count()?;
    if length > MAX_JSON_BYTES {
        return Err(Malformed);
    }
    let mut json = Vec::new();
    DeflateDecoder::new(reader.0).take(length as u64 + 1).read_to_end(&mut json).map_err(|_| Malformed)?;
    if json.len() == length { Ok(json) } else { Err(Malformed) }
}

/// The object's JSON: what it is comes first, so that lists can leave it out, then the other fields by name.
fn text_of(object: &Value) -> Result<Vec<u8>, Malformed> {
    let object = object.as_object().ok_or(Malformed)?;
    let mut out = Vec::with_capacity(1024);
    let first = ["apiVersion", "kind"].iter().filter_map(|key| object.get_key_value(*key));
    let others = object.iter().filter(|(key, _)| !matches!(key.as_str(), "apiVersion" | "kind"));
    for (key, value) in first.chain(others) {
        out.push(if out.is_empty() { b'{' } else { b',' });
        serde_json::to_writer(&mut out, key).map_err(|_| Malformed)?;
        out.push(b':');
        serde_json::to_writer(&mut out, value).map_err(|_| Malformed)?;
    }
    if out.is_empty() {
        out.push(b'{');
    }
    out.push(b'}');
    Ok(out)
}

fn head_of(def: &ResourceDef, object: &Value, json: &[u8]) -> Result<Head, Malformed> {
    let metadata = object["metadata"].as_object().ok_or(Malformed)?;
    let text = |key: &str| metadata.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let splice = splice_offset(json).ok_or(Malformed)?;
    Ok(Head {
        namespace: text("namespace"),
        name: text("name"),
        uid: text("uid"),
        labels: metadata
            .get("labels")
            .and_then(Value::as_object)
            .map(|m| m.iter().map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned())).collect())
            .unwrap_or_default(),
        owners: metadata
            .get("ownerReferences")
            .and_then(Value::as_array)
            .map(|l| l.iter().map(|o| o["uid"].as_str().unwrap_or_default().to_owned()).collect())
            .unwrap_or_default(),
        fields: crate::selector::fields_of(def, object),
        splice,
    })
}

/// Offset after the top-level `"metadata":{`: strings and nesting are followed, so the same text inside a value does not
/// mislead.
fn splice_offset(json: &[u8]) -> Option<u32> {
    let (mut depth, mut in_string, mut escaped) = (0_u32, false, false);
    for (i, &byte) in json.iter().enumerate() {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => {
                if depth == 1 && json[i..].starts_with(METADATA) && matches!(json[i - 1], b'{' | b',') {
                    return u32::try_from(i + METADATA.len()).ok();
                }
                in_string = true;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// Length of an object's JSON from after its first brace to its last; all that is there if that is missing.
fn length_of_object(json: &[u8]) -> usize {
    let (mut depth, mut in_string, mut escaped) = (1_u32, false, false);
    for (at, &byte) in json.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_string,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 1 => return at + 1,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
    }
    json.len()
}

fn put(out: &mut Vec<u8>, text: &str) {
    put_count(out, text.len());
    out.extend_from_slice(text.as_bytes());
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    // Objects are limited to megabytes, so no part of one has a length beyond u32.
    out.extend_from_slice(&(count as u32).to_le_bytes());
}

/// Takes the parts of a head off its bytes.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn count(&mut self) -> Result<usize, Malformed> {
        let (number, rest) = self.0.split_first_chunk::<4>().ok_or(Malformed)?;
        self.0 = rest;
        Ok(u32::from_le_bytes(*number) as usize)
    }

    fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.count()?;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn text(&mut self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Malformed)
    }

    fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> Result<T, Malformed>) -> Result<Vec<T>, Malformed> {
        let count = self.count()?;
        // A length prefix takes four bytes, so a count beyond this is a lie, not a large list.
        if count > self.0.len() / 4 {
            return Err(Malformed);
        }
        (0..count).map(|_| item(self)).collect()
    }
}

/// An object's JSON where it is stored, and where its resource version goes: all that writing it whole needs.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a> {
    json: &'a [u8],
    splice: usize,
}

impl<'a> Text<'a> {
    /// That of a stored value, whose head is passed over: where the version goes is the last that it says. `None` if the
    /// JSON is deflated.
    pub fn of(value: &'a [u8]) -> Result<Option<Self>, Malformed> {
        let (&[version, a, b, c, d], rest) = value.split_first_chunk::<5>().ok_or(Malformed)?;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        let (head, json) = rest.split_at_checked(length).ok_or(Malformed)?;
        match version {
            PACKED => return Ok(None),
            VERSION => {}
            _ => return Err(Malformed),
        }
        let splice = u32::from_le_bytes(*head.last_chunk::<4>().ok_or(Malformed)?) as usize;
        if splice > json.len() {
            return Err(Malformed);
        }
        Ok(Some(Self { json, splice }))
    }

    /// Appends the object's JSON with its resource version.
    pub fn write_json(self, revision: i64, out: &mut Vec<u8>) {
        let (before, after) = self.json.split_at(self.splice);
        out.extend_from_slice(before);
        out.extend_from_slice(b"\"resourceVersion\":\"");
        out.extend_from_slice(revision.to_string().as_bytes());
        out.extend_from_slice(if after.first() == Some(&b'}') { b"\"" } else { b"\"," });
        out.extend_from_slice(after);
    }

    /// Appends the object's JSON with its resource version and without what `intro` ([`intro`]) says it is, as lists of
    /// built-in kinds have it; with all of it if `intro` is empty.
    pub fn write_item(self, intro: &[u8], revision: i64, out: &mut Vec<u8>) {
        match (self.json.strip_prefix(intro), self.splice.checked_sub(intro.len())) {
            (Some(json), Some(splice)) if !intro.is_empty() => {
                out.push(b'{');
                Text { json, splice }.write_json(revision, out);
            }
            _ => self.write_json(revision, out),
        }
    }
}

/// The value of a selectable field (by its place in the row's order) of a stored value, without anything else of it; empty
/// if the object has no such field, `None` if the value cannot be read so (it may be encrypted).
pub fn field(value: &[u8], index: usize) -> Option<&[u8]> {
    let (&[version, a, b, c, d], rest) = value.split_first_chunk::<5>()?;
    if !matches!(version, VERSION | PACKED) {
        return None;
    }
    let mut reader = Reader(rest.get(..u32::from_le_bytes([a, b, c, d]) as usize)?);
    let skip = |reader: &mut Reader<'_>, count: usize| (0..count).try_for_each(|_| reader.bytes().map(drop));
    let skip_list = |reader: &mut Reader<'_>, each: usize| {
        let count = reader.count()?;
        skip(reader, count.saturating_mul(each))
    };
    // Names; labels; owners.
    skip(&mut reader, 3).and_then(|()| skip_list(&mut reader, 2)).and_then(|()| skip_list(&mut reader, 1)).ok()?;
    let count = reader.count().ok()?;
    if index >= count {
        return Some(&[]);
    }
    skip(&mut reader, index).ok()?;
    reader.bytes().ok()
}

impl Stored {
    /// Splits a stored value.
    pub fn parse(value: &Bytes) -> Result<Self, Malformed> {
        let (&[version, a, b, c, d], rest) = value.split_first_chunk::<5>().ok_or(Malformed)?;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        if !matches!(version, VERSION | PACKED) || length > rest.len() {
            return Err(Malformed);
        }
        let mut reader = Reader(&rest[..length]);
        let owned = |r: &mut Reader<'_>| r.text().map(str::to_owned);
        let head = Head {
            namespace: owned(&mut reader)?,
            name: owned(&mut reader)?,
            uid: owned(&mut reader)?,
            labels: reader.list(|r| Ok((r.text()?.to_owned(), r.text()?.to_owned())))?,
            owners: reader.list(owned)?,
            fields: reader.list(owned)?,
            splice: reader.count()? as u32,
        };
        let json = match version {
            PACKED => inflate(&rest[length..])?.into(),
            _ => value.slice(5 + length..),
        };
        if !reader.0.is_empty() || head.splice as usize > json.len() {
            return Err(Malformed);
        }
        Ok(Self { head, json })
    }

    /// The JSON in place.
    fn text(&self) -> Text<'_> {
        Text { json: &self.json, splice: self.head.splice as usize }
    }

    /// Appends the object's JSON with its resource version.
    pub fn write_json(&self, revision: i64, out: &mut Vec<u8>) {
        self.text().write_json(revision, out);
    }

    /// Appends the object's metadata alone, with its resource version.
    pub fn write_metadata(&self, revision: i64, out: &mut Vec<u8>) {
        let metadata = &self.json[self.head.splice as usize..];
        out.push(b'{');
        Text { json: &metadata[..length_of_object(metadata)], splice: 0 }.write_json(revision, out);
    }

    /// As [`Text::write_item`].
    pub fn write_item(&self, intro: &[u8], revision: i64, out: &mut Vec<u8>) {
        self.text().write_item(intro, revision, out);
    }

    /// The object, parsed, with its resource version.
    pub fn to_value(&self, revision: i64) -> Result<Value, Malformed> {
        let mut value: Value = serde_json::from_slice(&self.json).map_err(|_| Malformed)?;
        value["metadata"]["resourceVersion"] = Value::String(revision.to_string());
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{ResourceDef, Scope};
    use serde_json::json;

    const PODS: ResourceDef = ResourceDef {
        group: "",
        version: "v1",
        kind: "Pod",
        plural: "pods",
        singular: "pod",
        short_names: &[],
        categories: &[],
        scope: Scope::Namespaced,
        verbs: &[],
        subresources: &[],
        selectable_fields: &["spec.nodeName", "status.phase"],
        has_status: true,
        list_kind: "",
        custom: false,
        columns: &[],
    };

    #[test]
    fn what_goes_in_comes_out() {
        let object = json!({"apiVersion": "v1", "data": {"x": "\"metadata\":{ \\"}, "kind": "Pod",
            "metadata": {"labels": {"b": "2", "a": "1"}, "name": "n", "namespace": "ns", "resourceVersion": "7", "uid": "u",
                         "ownerReferences": [{"uid": "o"}]},
            "spec": {"nodeName": "node-1"}});
        let stored = Stored::parse(&encode(&PODS, &object).unwrap()).unwrap();
        assert_eq!(
            (stored.head.name.as_str(), stored.head.namespace.as_str(), stored.head.uid.as_str()),
            ("n", "ns", "u")
        );
        assert_eq!(stored.head.label("b"), Some("2"));
        assert_eq!(stored.head.owners, ["o"]);
        assert_eq!(stored.head.fields, ["node-1", ""]);
        let value = encode(&PODS, &object).unwrap();
        let found: Vec<_> = (0..3).map(|index| field(&value, index)).collect();
        assert_eq!(found, [Some(&b"node-1"[..]), Some(b""), Some(b"")]);
        let mut json = Vec::new();
        stored.write_json(42, &mut json);
        let mut expected = object.clone();
        expected["metadata"]["resourceVersion"] = "42".into();
        assert_eq!(serde_json::from_slice::<Value>(&json).unwrap(), expected);
        assert_eq!(stored.to_value(42).unwrap(), expected);
        let mut item = Vec::new();
        stored.write_item(br#"{"apiVersion":"v1","kind":"Pod","#, 42, &mut item);
        expected.as_object_mut().unwrap().retain(|key, _| key != "apiVersion" && key != "kind");
        assert_eq!(serde_json::from_slice::<Value>(&item).unwrap(), expected);
    }

    proptest::proptest! {
        #[test]
        fn other_bytes_are_refused_without_a_panic(bytes: Vec<u8>) {
            let _ = (field(&bytes, 0), field(&bytes, 1));
            let _ = Stored::parse(&bytes.into());
        }

        #[test]
        fn a_cut_value_is_refused(cut in 0_usize..40) {
            let value = encode(&PODS, &json!({"metadata": {"name": "n", "labels": {"a": "b"}}})).unwrap();
            let cut = value.slice(..cut.min(value.len() - 30));
            proptest::prop_assert!(field(&cut, 0).is_none() && Stored::parse(&cut).is_err());
        }
    }

    #[test]
    fn large_definitions_are_deflated() {
        let row = crate::resources::find("apiextensions.k8s.io", "v1", "customresourcedefinitions").unwrap();
        let object = |words: usize| {
            let text = "what the resource is for ".repeat(words);
            json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
                "metadata": {"name": "things.example.com", "uid": "u"}, "spec": {"description": text}})
        };
        for (def, words, packed) in [(row, 10, false), (row, 1000, true), (&PODS, 1000, false)] {
            let object = object(words);
            let value = encode(def, &object).unwrap();
            assert_eq!(is_packed(&value), packed, "{words}");
            assert_eq!(value.len() < object.to_string().len() / 4, packed, "{words}");
            let stored = Stored::parse(&value).unwrap();
            assert_eq!(stored.head.name, "things.example.com");
            let mut expected = object.clone();
            expected["metadata"]["resourceVersion"] = "7".into();
            assert_eq!(stored.to_value(7).unwrap(), expected);
            if packed {
                // Cut, longer than it says, or of a length that nobody believes.
                assert!(Stored::parse(&value.slice(..value.len() - 1)).is_err());
                let at = 5 + u32::from_le_bytes(value[1..5].try_into().unwrap()) as usize;
                for length in [object.to_string().len() as u32 - 1, object.to_string().len() as u32 + 1, u32::MAX] {
                    let mut other = value.to_vec();
                    other[at..at + 4].copy_from_slice(&length.to_le_bytes());
                    assert!(Stored::parse(&other.into()).is_err(), "{length}");
                }
            }
        }
    }

    #[test]
    fn a_text_is_found_without_its_head() {
        let object =
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": {"a": "1"}, "name": "n"}, "spec": {}});
        let value = encode(&PODS, &object).unwrap();
        let (text, stored) = (Text::of(&value).unwrap().unwrap(), Stored::parse(&value).unwrap());
        for intro in [intro(&PODS), Vec::new(), b"{\"apiVersion\":\"v2\",".to_vec(), stored.json.to_vec()] {
            let (mut found, mut expected) = (Vec::new(), Vec::new());
            text.write_item(&intro, 7, &mut found);
            stored.write_item(&intro, 7, &mut expected);
            assert_eq!(found, expected);
            assert!(String::from_utf8_lossy(&found).contains("{\"resourceVersion\":\"7\",\"labels\""));
        }
        let length = u32::from_le_bytes(value[1..5].try_into().unwrap()) as usize;
        let mut beyond = value.to_vec();
        beyond[length + 1..length + 5].copy_from_slice(&(stored.json.len() as u32 + 1).to_le_bytes());
        for broken in [
            &b""[..],
            &[1, 4, 0, 0, 0],
            &[1, 3, 0, 0, 0, 0, 0, 0],
            &[3, 4, 0, 0, 0, 0, 0, 0, 0],
            &value[..length],
            &beyond,
        ] {
            assert!(Text::of(broken).is_err(), "{broken:?}");
        }
        let mut packed = value.to_vec();
        packed[0] = PACKED;
        assert!(Text::of(&packed).unwrap().is_none());
    }

    #[test]
    fn metadata_are_cut_out_whole() {
        for metadata in [
            json!({"name": "n"}),
            json!({}),
            json!({"annotations": {"a": "}\\\"}{[", "b": "{\"x\":[]}"}, "finalizers": ["a/b"], "name": "n", "z": {"a": [{}]}}),
        ] {
            let object = json!({"apiVersion": "v1", "data": {"metadata": "x"}, "kind": "Pod", "metadata": metadata,
                "spec": {"metadata": {"name": "inner"}}});
            let stored = Stored::parse(&encode(&PODS, &object).unwrap()).unwrap();
            let mut out = Vec::new();
            stored.write_metadata(5, &mut out);
            let mut expected = metadata;
            expected["resourceVersion"] = "5".into();
            assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), expected);
        }
    }
}
