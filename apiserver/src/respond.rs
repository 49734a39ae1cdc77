//! Answers: objects written in the form that the client accepts.

use std::io::Write;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body::Body as _;
use http_body_util::BodyExt;
use keelson_client::Body;
use keelson_machinery::status::Status;
use keelson_machinery::{cbor, protobuf};
use serde_json::Value;

use crate::body;
use crate::negotiate::Media;

/// Answers up to this are not compressed, bytes (upstream's limit).
const MIN_COMPRESSED_BYTES: u64 = 128 << 10;

/// What is said when a request's own time is over.
const OUT_OF_TIME: &str = concat!(
    r#"{"metadata":{},"status":"Failure","message":"Timeout: request did not complete within the allotted timeout","#,
    r#""reason":"Timeout","details":{},"code":504}"#,
    "\n"
);

/// Bytes as an answer.
pub fn bytes(code: u16, content_type: &'static str, bytes: impl Into<bytes::Bytes>) -> Response<Body> {
    let mut response = Response::new(body::full(bytes));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// An answer that anybody may keep for an hour.
pub fn kept_for_an_hour(mut response: Response<Body>) -> Response<Body> {
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600"));
    response
}

/// Whether the client takes answers compressed with gzip. As upstream has it, it must say just that: with a quality beside it
/// the name does not count.
pub fn accepts_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|v| v.to_str().ok());
    accepted.flat_map(|v| v.split(',')).any(|part| part.trim() == "gzip")
}

/// Compresses an answer that is worth it, if the client takes it so; streams and small answers stay as they are.
pub async fn compressed(gzip: bool, response: Response<Body>) -> Response<Body> {
    let size = response.body().size_hint().exact().unwrap_or(0);
    if !gzip || size <= MIN_COMPRESSED_BYTES || response.headers().contains_key(header::CONTENT_ENCODING) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let bytes = match body.collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(error) => return body::refusal(&Status::internal(&error.to_string())),
    };
    let whole = bytes.clone();
    let written = tokio::task::spawn_blocking(move || {
        let mut encoder = GzEncoder::new(Vec::with_capacity(whole.len() / 4), Compression::fast());
        encoder.write_all(&whole).and_then(|()| encoder.finish())
    });
    let Ok(Ok(small)) = written.await else { return Response::from_parts(parts, body::full(bytes)) };
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    parts.headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    Response::from_parts(parts, body::full(small))
}

/// An object (or list) as an answer; it names its own kind.
pub fn object(code: u16, media: Media, object: &Value, pretty: bool) -> Result<Response<Body>, Status> {
    let written = match media {
        Media::Json if pretty => serde_json::to_vec_pretty(object).map_err(|e| e.to_string()),
        Media::Json => serde_json::to_vec(object).map_err(|e| e.to_string()),
        Media::Yaml => keelson_machinery::yaml::write(object).map(String::into_bytes),
        Media::Protobuf => protobuf::encode(object).map_err(|e| e.to_string()),
        Media::Cbor => Ok(cbor::encode(object)),
    };
    Ok(bytes(code, media.content_type(), written.map_err(|why| Status::internal(&why))?))
}

/// An answer, if it comes within what a request allows itself from its beginning. Else it is not waited for; what it was doing
/// may have been done. Upstream's refusal comes from where nothing is known of kinds and media types, so it names none.
pub async fn within(
    limit: Option<Duration>,
    begun: Instant,
    answer: impl Future<Output = Result<Response<Body>, Status>>,
) -> Result<Response<Body>, Status> {
    let Some(limit) = limit else { return answer.await };
    let left = limit.saturating_sub(begun.elapsed());
    // What is ready at once would be told even if there is no time.
    let told = if left.is_zero() { None } else { tokio::time::timeout(left, answer).await.ok() };
    told.unwrap_or_else(|| Ok(body::text(504, OUT_OF_TIME)))
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
    if let Some(beside) = &status.beside {
        body::warn(&mut response, &beside.warnings);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[tokio::test]
    async fn large_answers_are_compressed_for_who_takes_them() {
        let text = "abc ".repeat(100_000);
        let answer = |text: &str| bytes(200, "application/json", text.to_owned());
        let plain = compressed(false, answer(&text)).await;
        assert!(!plain.headers().contains_key(header::CONTENT_ENCODING));
        let small = compressed(true, answer("abc")).await;
        assert!(!small.headers().contains_key(header::CONTENT_ENCODING));
        let large = compressed(true, answer(&text)).await;
        assert_eq!(large.headers()[header::CONTENT_ENCODING], "gzip");
        let body = large.into_body().collect().await.unwrap().to_bytes();
        let mut read = String::new();
        flate2::read::GzDecoder::new(&body[..]).read_to_string(&mut read).unwrap();
        assert!(body.len() < text.len() / 10 && read == text);
    }

    #[test]
    fn who_takes_gzip() {
        for (value, expected) in [
            ("gzip", true),
            ("deflate, gzip", true),
            ("gzip;q=0.5", false),
            ("*", false),
            ("identity", false),
            ("gzip;q=0", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, value.parse().unwrap());
            assert_eq!(accepts_gzip(&headers), expected, "{value}");
        }
    }
}
