//! Bodies: reading requests by content type, writing answers that have no other form than their own.

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use keelson_client::Body;
use keelson_machinery::decode::{self, Decoded};
use keelson_machinery::protobuf;
use keelson_machinery::status::Status;
use serde_json::{Map, Value};

use crate::negotiate::MEDIA_TYPES;

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
    read(headers, body, expected, |why| {
        let what = format!("the object provided is unrecognized (must be of type {})", expected.1);
        Status::bad_request(format!("{what}: {why} ({})", summary(body)))
    })
}

/// Reads the options of a deletion: their refusal says only what is wrong.
pub fn options(headers: &HeaderMap, body: &[u8], expected: (&str, &str)) -> Result<Value, Status> {
    read(headers, body, expected, Status::bad_request).map(|decoded| decoded.value)
}

fn read(
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
        protobuf::MEDIA_TYPE => protobuf::decode(body, expected)
            .map(|value| Decoded { value, duplicates: Vec::new() })
            .map_err(|e| e.to_string()),
        _ => return Err(Status::unsupported_media_type(MEDIA_TYPES)),
    };
    let mut decoded = decoded.map_err(&unrecognized)?;
    if decoded.value.is_null() {
        decoded.value = Map::new().into();
    }
    if !decoded.value.is_object() {
        let found = match decoded.value {
            Value::Array(_) => "array",
            Value::String(_) => "string",
            Value::Bool(_) => "bool",
            _ => "number",
        };
        return Err(unrecognized(format!(
            "couldn't get version/kind; json parse error: json: cannot unmarshal {found} into Go value of type struct {{ \
             APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}"
        )));
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
}
