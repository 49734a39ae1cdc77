//! Bodies: reading requests by content type, writing answers that have no other form than their own.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, header};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use keelson_client::Body;
use keelson_machinery::decode::{self, Decoded};
use keelson_machinery::status::Status;
use keelson_machinery::{cbor, protobuf, schema};
use serde_json::{Map, Value};

use crate::negotiate::{is_cbor_open, media_types};
use crate::strategy;

/// Largest request body, bytes (Kubernetes' own limit).
pub const MAX_BODY_BYTES: usize = 3 << 20;
/// Bytes of a body that a refusal shows.
const SUMMARY_BYTES: usize = 30;

/// The media type of a request's body, without parameters.
pub fn content_type(headers: &HeaderMap) -> &str {
    let value = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("application/json");
    value.split(';').next().unwrap_or_default().trim()
}

/// Reads an object; `expected` is the kind (`apiVersion` and kind) that belongs here.
pub fn object(headers: &HeaderMap, body: &[u8], expected: (&str, &str)) -> Result<Decoded, Status> {
    let mut decoded = read_with(is_cbor_open(), headers, body, expected, |why| unrecognized(body, expected.1, &why))?;
    for (key, expected) in [("apiVersion", expected.0), ("kind", expected.1)] {
        if decoded.value[key].as_str().is_none_or(str::is_empty) {
            decoded.value[key] = expected.into();
        }
    }
    Ok(decoded)
}

/// Reads a custom object, which must say itself of what kind and version it is; `lenient` if its fields are not looked at.
pub fn custom_object(
    headers: &HeaderMap,
    body: &[u8],
    expected: (&str, &str),
    lenient: bool,
) -> Result<Decoded, Status> {
    let decoded = read_with(is_cbor_open(), headers, body, expected, |why| unrecognized(body, expected.1, &why))?;
    if decoded.value["kind"].as_str().is_none_or(str::is_empty) {
        let (kind, why) = (expected.1, format!("Object 'Kind' is missing in '{}'", String::from_utf8_lossy(body)));
        let version = expected.0.rsplit('/').next().unwrap_or_default();
        return Err(match lenient {
            true => Status::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {why}")),
            false => unrecognized(body, kind, &why),
        });
    }
    Ok(decoded)
}

/// The refusal of a body that cannot be read at all.
fn unrecognized(body: &[u8], kind: &str, why: &str) -> Status {
    let what = format!("the object provided is unrecognized (must be of type {kind})");
    Status::bad_request(format!("{what}: {why} ({})", summary(body)))
}

/// Reads the options of a deletion: their refusal says only what is wrong.
pub fn options(headers: &HeaderMap, body: &[u8], expected: (&str, &str)) -> Result<Value, Status> {
    read_with(is_cbor_open(), headers, body, expected, Status::bad_request).map(|decoded| decoded.value)
}

/// The refusal of a message that is not of the kind that it says it is of.
fn unfit(api_version: &str, kind: &str, why: &protobuf::Error, expected: (&str, &str)) -> Status {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let served = expected.0.split_once('/').map_or("", |(group, _)| group);
    let is_expected = (api_version, kind) == expected;
    let why = match why {
        // A kind that belongs here but has no message is that of custom objects.
        protobuf::Error::UnknownKind if is_expected => "object *unstructured.Unstructured does not implement the protobuf \
                                                        marshalling interface and cannot be encoded to a protobuf message"
            .to_owned(),
        protobuf::Error::UnknownKind if strategy::registered(served, group, version, kind).is_none() => {
            strategy::not_registered(served, api_version, kind)
        }
        why => why.to_string(),
    };
    Status::bad_request(format!("{kind} in version {version:?} cannot be handled as a {}: {why}", expected.1))
}

fn read_with(
    cbor: bool,
    headers: &HeaderMap,
    body: &[u8],
    expected: (&str, &str),
    unrecognized: impl Fn(String) -> Status,
) -> Result<Decoded, Status> {
    let decoded = match content_type(headers) {
        "application/json" | "" | "*/*" => {
            decode::json(body).map_err(|e| format!("couldn't get version/kind; json parse error: {e}"))
        }
        "application/yaml" | "application/x-yaml" | "text/yaml" => decode::yaml(body),
        protobuf::MEDIA_TYPE => match protobuf::decode(body, expected) {
            Err(protobuf::Error::Of { api_version, kind, why }) => {
                return Err(unfit(&api_version, &kind, &why, expected));
            }
            read => read.map(|value| Decoded { value, duplicates: Vec::new() }).map_err(|e| e.to_string()),
        },
        cbor::MEDIA_TYPE if cbor => return from_cbor(body, expected, unrecognized),
        _ => return Err(Status::unsupported_media_type(&media_types(cbor))),
    };
    let mut decoded = decoded.map_err(&unrecognized)?;
    if decoded.value.is_null() {
        decoded.value = Map::new().into();
    }
    if !decoded.value.is_object() {
        let found = go_type(&decoded.value);
        return Err(unrecognized(format!(
            "couldn't get version/kind; json parse error: json: cannot unmarshal {found} into Go value of type struct {{ \
             APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}"
        )));
    }
    interpret(&mut decoded.value).map_err(&unrecognized)?;
    Ok(decoded)
}

/// Reads what an object says of its version and kind; their names may be written with any case.
fn interpret(object: &mut Value) -> Result<(), String> {
    for key in ["apiVersion", "kind"] {
        let Some(fields) = object.as_object() else { return Ok(()) };
        let mut said = fields.iter().filter(|(name, value)| name.eq_ignore_ascii_case(key) && !value.is_null());
        let text = match said.next_back() {
            None => continue,
            Some((_, Value::String(text))) => text.strip_prefix('/').filter(|_| key == "apiVersion").unwrap_or(text),
            Some((_, other)) => {
                let found = go_type(other);
                return Err(format!(
                    "couldn't get version/kind; json parse error: json: cannot unmarshal {found} into Go struct field \
                     .{key} of type string"
                ));
            }
        };
        if key == "apiVersion" && text.matches('/').count() > 1 {
            return Err(format!("unexpected GroupVersion string: {text}"));
        }
        let text = text.to_owned();
        object[key] = text.into();
    }
    Ok(())
}

/// What Go's JSON calls the type of a value.
pub fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Object(_) => "object",
        Value::Array(_) => "array",
        Value::String(_) => "string",
        Value::Bool(_) => "bool",
        _ => "number",
    }
}

/// A refusal of a number with the number as the body has it.
pub fn with_literal(headers: &HeaderMap, body: &[u8], why: String) -> String {
    match content_type(headers) {
        "application/json" | "" | "*/*" => decode::with_literal(body, why),
        _ => why,
    }
}

/// Reads CBOR: first what it says it is, then by the schema of that, if it has one.
fn from_cbor(body: &[u8], expected: (&str, &str), unrecognized: impl Fn(String) -> Status) -> Result<Decoded, Status> {
    let (version, kind) = cbor::interpret(body).map_err(unrecognized)?;
    let version = if version.is_empty() { expected.0 } else { &version };
    let kind = if kind.is_empty() { expected.1 } else { &kind };
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let read = match schema::of_kind(group, version, kind) {
        // A key that comes twice was refused; a field that is not known is told as one is.
        Some(definition) => cbor::decode_typed(body, definition)
            .map(|typed| Decoded { value: typed.value, duplicates: typed.unknown.into_iter().collect() }),
        None => cbor::decode(body).map(|value| Decoded { value, duplicates: Vec::new() }),
    };
    let mut decoded = read.map_err(|why| {
        Status::bad_request(format!("{kind} in version {version:?} cannot be handled as a {}: {why}", expected.1))
    })?;
    if decoded.value.is_null() {
        decoded.value = Map::new().into();
    }
    Ok(decoded)
}

/// The beginning of a body: text if it looks like JSON, else hexadecimal.
fn summary(body: &[u8]) -> String {
    if body.is_empty() {
        return "<empty>".into();
    }
    let shown = &body[..body.len().min(SUMMARY_BYTES)];
    let mut text = if body[0] == b'{' {
        String::from_utf8_lossy(shown).into_owned()
    } else {
        shown.iter().map(|byte| format!("{byte:02x}")).collect()
    };
    if shown.len() < body.len() {
        text += " ...";
    }
    text
}

/// Bytes as a body.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A body, and what is given back when its last piece is written or nobody reads on.
struct Holding<H> {
    body: Body,
    _held: H,
}

impl<H: Send + Unpin> http_body::Body for Holding<H> {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Among an answer's extensions: its body goes on for as long as the client wants.
#[derive(Clone)]
pub struct Lasting;

/// An answer that holds something until its body ends.
pub fn holding<H: Send + Unpin + 'static>(response: Response<Body>, held: H) -> Response<Body> {
    response.map(|body| Holding { body, _held: held }.boxed_unsync())
}

/// A JSON answer.
pub fn json(code: u16, bytes: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(bytes));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

/// A value as a JSON answer.
pub fn value(code: u16, value: &Value) -> Response<Body> {
    json(code, value.to_string())
}

/// A plain text answer.
pub fn text(code: u16, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = json(code, text);
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// A refusal in JSON, for requests that are not understood well enough to ask for another form.
pub fn refusal(status: &Status) -> Response<Body> {
    crate::respond::refusal(crate::negotiate::Media::Json, status)
}

/// Adds Warning headers (RFC 7234 §5.5, as Kubernetes writes them).
pub fn warn(response: &mut Response<Body>, warnings: &[String]) {
    for warning in warnings {
        let escaped: String = warning
            .chars()
            .filter(|c| !c.is_control())
            .flat_map(|c| match c {
                '"' | '\\' => vec!['\\', c],
                _ => vec![c],
            })
            .collect();
        if let Ok(value) = format!("299 - \"{escaped}\"").parse() {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::negotiate::MEDIA_TYPES;

    #[test]
    fn bodies_that_cannot_be_read_are_refused_in_upstreams_words() {
        let what = "the object provided is unrecognized (must be of type ConfigMap): ";
        let json = "couldn't get version/kind; json parse error: ";
        for (kind, body, expected) in [
            ("application/json", &b""[..], format!("{what}{json}unexpected end of JSON input (<empty>)")),
            (
                "application/json",
                br#"{"apiVersion":"v1","kind":"ConfigMap""#,
                format!("{what}{json}unexpected end of JSON input ({{\"apiVersion\":\"v1\",\"kind\":\"Con ...)"),
            ),
            (protobuf::MEDIA_TYPE, b"k8s\0\xff", format!("{what}unexpected EOF (6b387300ff)")),
            (protobuf::MEDIA_TYPE, b"", format!("{what}empty data (<empty>)")),
            (protobuf::MEDIA_TYPE, b"k8s\0", format!("{what}empty body (6b387300)")),
            (
                protobuf::MEDIA_TYPE,
                b"k8s\0\x12\x02\x0a\x05",
                "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: unexpected EOF".into(),
            ),
            (
                protobuf::MEDIA_TYPE,
                b"k8s\0\x0a\x03\x12\x01X",
                "X in version \"v1\" cannot be handled as a ConfigMap: no kind \"X\" is registered for version \"v1\" in \
                 scheme \"pkg/api/legacyscheme/scheme.go:30\""
                    .into(),
            ),
            (
                protobuf::MEDIA_TYPE,
                &[0, 0, 0],
                format!(
                    "{what}provided data does not appear to be a protobuf message, expected prefix [107 56 115 0] (000000)"
                ),
            ),
            (
                "application/cbor",
                b"x",
                format!(
                    "the body of the request was in an unknown format - accepted media types include: {MEDIA_TYPES}"
                ),
            ),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, kind.parse().unwrap());
            assert_eq!(object(&headers, body, ("v1", "ConfigMap")).unwrap_err().message, expected);
        }
    }

    #[test]
    fn what_a_body_does_not_say_of_its_kind_is_filled_in_but_for_custom_objects() {
        let headers = HeaderMap::new();
        let read = |body: &str| {
            let of = |object: &Value| format!("{} {}", object["apiVersion"], object["kind"]).replace('"', "");
            object(&headers, body.as_bytes(), ("v1", "ConfigMap")).map(|read| of(&read.value)).map_err(|s| s.message)
        };
        let what = "the object provided is unrecognized (must be of type ConfigMap): ";
        for (body, expected) in [
            (r#"{"kind":"Secret"}"#, Ok("v1 Secret".to_owned())),
            (r#"{"apiVersion":"v2","kind":""}"#, Ok("v2 ConfigMap".to_owned())),
            (r#"{"apiVersion":"/v1"}"#, Ok("v1 ConfigMap".to_owned())),
            ("null", Ok("v1 ConfigMap".to_owned())),
            (
                r#"{"apiVersion":"a/b/c"}"#,
                Err(format!("{what}unexpected GroupVersion string: a/b/c ({{\"apiVersion\":\"a/b/c\"}})")),
            ),
            (
                r#"{"kind":[5]}"#,
                Err(format!(
                    "{what}couldn't get version/kind; json parse error: json: cannot unmarshal array into Go struct field \
                     .kind of type string ({{\"kind\":[5]}})"
                )),
            ),
        ] {
            assert_eq!(read(body), expected, "{body}");
        }
        for (lenient, expected) in [
            (
                false,
                "the object provided is unrecognized (must be of type Thing): Object 'Kind' is missing in '{}' ({})",
            ),
            (true, "Thing in version \"v1\" cannot be handled as a Thing: Object 'Kind' is missing in '{}'"),
        ] {
            let refused = custom_object(&headers, b"{}", ("a.example/v1", "Thing"), lenient).unwrap_err();
            assert_eq!(refused.message, expected);
        }
    }

    #[test]
    fn cbor_is_read_where_its_gate_is_open() {
        let handled = "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: cbor: ";
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, "application/cbor;x=y".parse().unwrap());
        let read = |expected, body: &[u8]| read_with(true, &headers, body, expected, Status::bad_request);
        let map = ("v1", "ConfigMap");
        for (body, expected) in [
            (&b"\xa0"[..], Ok(0)),
            (b"\xf6", Ok(0)),
            (b"\xa1\x44data\xa1\x41a\x41b", Ok(0)),
            (b"\xa2\x44kind\x49ConfigMap\x45other\xf6", Ok(1)),
            (b"\xa1\x44kind\x45Other", Ok(0)),
            (
                b"\x80\x01",
                Err("unable to determine group/version/kind: cbor: 1 bytes of extraneous data starting at index 1"
                    .into()),
            ),
            (
                b"\xa1\x44data\x01",
                Err(format!(
                    "{handled}cannot unmarshal positive integer into Go struct field v1.ConfigMap.data of type map[string]string"
                )),
            ),
            (
                b"\xa1\x44data\xa2\x41a\x40\x41a\x40",
                Err(format!("{handled}found duplicate map key \"a\" at map element index 1")),
            ),
        ] {
            let read = read(map, body).map(|decoded| decoded.duplicates.len()).map_err(|status| status.message);
            assert_eq!(read, expected, "{body:02x?}");
        }
        let custom = read(("a.example/v1", "Thing"), b"\xa1\x44spec\xa1\x41a\xf9\x3c\x00").unwrap();
        assert_eq!(custom.value["spec"]["a"], 1.0);
        headers.insert(header::CONTENT_TYPE, "text/plain".parse().unwrap());
        let refused = read_with(true, &headers, b"", map, Status::bad_request).unwrap_err().message;
        assert!(refused.ends_with("application/vnd.kubernetes.protobuf, application/cbor"), "{refused}");
    }
}
