//! Answers: objects written in the form that the client accepts.

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use keelson_client::Body;
use keelson_machinery::protobuf;
use keelson_machinery::status::Status;
use serde_json::Value;

use crate::body;
use crate::negotiate::Media;

/// Bytes as an answer.
pub fn bytes(code: u16, content_type: &'static str, bytes: impl Into<bytes::Bytes>) -> Response<Body> {
    let mut response = Response::new(body::full(bytes));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Whether the client takes answers compressed with gzip.
pub fn accepts_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|v| v.to_str().ok());
    accepted.flat_map(|v| v.split(',')).any(|part| {
        let (name, quality) = part.split_once(';').unwrap_or((part, ""));
        matches!(name.trim(), "gzip" | "*") && !matches!(quality.replace(' ', "").as_str(), "q=0" | "q=0.0")
    })
}

/// An object (or list) as an answer; it names its own kind.
pub fn object(code: u16, media: Media, object: &Value, pretty: bool) -> Result<Response<Body>, Status> {
    let written = match media {
        Media::Json if pretty => serde_json::to_vec_pretty(object).map_err(|e| e.to_string()),
        Media::Json => serde_json::to_vec(object).map_err(|e| e.to_string()),
        Media::Yaml => keelson_machinery::yaml::write(object).map(String::into_bytes),
        Media::Protobuf => protobuf::encode(object).map_err(|e| e.to_string()),
    };
    Ok(bytes(code, media.content_type(), written.map_err(|why| Status::internal(&why))?))
}

/// A refusal.
pub fn refusal(media: Media, status: &Status) -> Response<Body> {
    if status.is_page() {
        return body::text(status.code, format!("{}\n", status.message));
    }
    let value = status.to_value();
    let mut response = object(status.code, media, &value, false).unwrap_or_else(|_| body::value(status.code, &value));
    if let Some(seconds) = status.details.as_ref().map(|d| d.retry_after_seconds).filter(|s| *s > 0) {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}
