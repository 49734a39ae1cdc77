//! What other servers' OpenAPI says of their groups: fetched when a server is first well and then now and again, kept
//! compressed.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::Value;

use super::{Remote, aggregator, proxy};
use crate::ApiServer;

/// How long a document counts before it is asked for again.
const INTERVAL: Duration = Duration::from_secs(60);
/// A document must have come within this.
const PATIENCE: Duration = Duration::from_secs(30);
/// Largest document, bytes.
const MAX_BYTES: usize = 64 << 20;

/// What is known of a server's documents.
#[derive(Default)]
pub struct Specs {
    /// When it was asked, and the resources that it had then.
    asked: Option<(Instant, Arc<Value>)>,
    /// The document of version 2, compressed, and its tag.
    version_2: Option<(String, Bytes)>,
    /// Where the document of version 3 is, if there is one.
    pub version_3: Option<String>,
}

impl Specs {
    /// What tells this state from every other.
    pub fn identity(&self) -> String {
        let tag = self.version_2.as_ref().map(|(tag, _)| tag.as_str());
        format!("{} {}", tag.unwrap_or_default(), self.version_3.as_deref().unwrap_or_default())
    }

    /// The document of version 2.
    pub fn document(&self) -> Option<Value> {
        let (_, packed) = self.version_2.as_ref()?;
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&packed[..]).take(MAX_BYTES as u64).read_to_end(&mut plain).ok()?;
        serde_json::from_slice(&plain).ok()
    }
}

/// Asks again, if it is time or the server has other resources now.
pub async fn refresh(server: &ApiServer, row: &Remote) {
    let (known, resources) = (row.specs.load_full(), row.resources.load_full());
    let fresh = known.asked.as_ref().is_some_and(|(at, had)| at.elapsed() < INTERVAL && *had == resources);
    if fresh {
        return;
    }
    let root = fetch(server, row, "/openapi/v3", "").await.ok().flatten();
    let root: Option<Value> = root.and_then(|(_, bytes)| serde_json::from_slice(&bytes).ok());
    let place = root.as_ref().map(|root| &root["paths"][format!("apis/{}", row.group_version())]["serverRelativeURL"]);
    let version_3 = place.and_then(Value::as_str).filter(|url| url.starts_with("/openapi/v3/")).map(str::to_owned);
    let tag = known.version_2.as_ref().map_or("", |(tag, _)| tag.as_str());
    let version_2 = match fetch(server, row, "/openapi/v2", tag).await {
        Ok(Some((tag, bytes))) => pack(&bytes).map(|packed| (tag, packed)),
        Ok(None) => known.version_2.clone(),
        Err(why) => {
            tracing::debug!(api_service = row.name(), %why, "no OpenAPI of version 2");
            None
        }
    };
    row.specs.store(Arc::new(Specs { asked: Some((Instant::now(), resources)), version_2, version_3 }));
}

fn pack(bytes: &[u8]) -> Option<Bytes> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).ok().map(Bytes::from)
}

/// A document with its tag; none if it is the one with this tag still.
async fn fetch(server: &ApiServer, row: &Remote, path: &str, tag: &str) -> Result<Option<(String, Bytes)>, String> {
    let mut headers = HeaderMap::new();
    headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
    if !tag.is_empty()
        && let Ok(tag) = tag.parse()
    {
        headers.insert(header::IF_NONE_MATCH, tag);
    }
    let request = proxy::Passed { method: &Method::GET, headers: &headers, path, body: Bytes::new(), peer: None };
    let user = aggregator();
    let whole = async {
        let response = proxy::send(server, row, &user, request, None).await?;
        let (parts, body) = response.into_parts();
        let body = http_body_util::Limited::new(body, MAX_BYTES).collect().await.map_err(|e| e.to_string())?;
        Ok::<_, String>((parts, body.to_bytes()))
    };
    let late = |_| "the document did not come in time".to_owned();
    let (parts, bytes) = tokio::time::timeout(PATIENCE, whole).await.map_err(late)??;
    match parts.status {
        StatusCode::NOT_MODIFIED => Ok(None),
        code if code.is_success() => {
            let tag = parts.headers.get(header::ETAG).and_then(|tag| tag.to_str().ok()).unwrap_or_default();
            Ok(Some((tag.to_owned(), bytes)))
        }
        code => Err(format!("{path}: {code}")),
    }
}
