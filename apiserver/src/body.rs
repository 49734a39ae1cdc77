//! Bodies: reading requests by content type, writing answers.

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use keelson_client::Body;
use keelson_machinery::decode::{self, Decoded};
use keelson_machinery::status::Status;
use serde_json::Value;

/// Largest request body, bytes (Kubernetes' own limit).
pub const MAX_BODY_BYTES: usize = 3 << 20;
const ACCEPTED: &str = "application/json, application/yaml";

/// The media type of a request's body, without parameters.
pub fn content_type(headers: &HeaderMap) -> &str {
    let value = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("application/json");
    value.split(';').next().unwrap_or_default().trim()
}

/// Reads an object.
pub fn object(headers: &HeaderMap, body: &[u8]) -> Result<Decoded, Status> {
    let decoded = match content_type(headers) {
        "application/json" | "" | "*/*" => decode::json(body),
        "application/yaml" | "application/x-yaml" | "text/yaml" => decode::yaml(body),
        _ => return Err(Status::unsupported_media_type(ACCEPTED)),
    };
    let decoded =
        decoded.map_err(|e| Status::bad_request(format!("couldn't get version/kind; json parse error: {e}")))?;
    if !decoded.value.is_object() {
        return Err(Status::bad_request("couldn't get version/kind; json parse error: the body is not an object"));
    }
    Ok(decoded)
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

/// A refusal.
pub fn refusal(status: &Status) -> Response<Body> {
    if status.is_page() {
        return self::text(status.code, format!("{}\n", status.message));
    }
    let mut response = value(status.code, &status.to_value());
    if let Some(seconds) = status.details.as_ref().map(|d| d.retry_after_seconds).filter(|s| *s > 0) {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
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
