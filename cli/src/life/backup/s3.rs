//! The object store that copies go to: anything that speaks S3. Requests are signed by a library; this sends them.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures::TryStreamExt;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Limited, StreamBody};
use hyper::body::Frame;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rusty_s3::{Credentials, S3Action, UrlStyle};
use tokio_util::io::ReaderStream;

use super::SnapshotFlags;

/// How long a signed address is good: a large copy on a slow line takes its time.
const SIGNED_FOR: Duration = Duration::from_secs(6 * 3600);
/// An answer that is not a copy is no longer.
const ANSWER_BYTES: usize = 8 << 20;
/// Where the machine keeps the CAs of the world.
const ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

type Connector = hyper_rustls::HttpsConnector<HttpConnector>;
type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// A bucket, and the place in it.
pub struct Bucket {
    bucket: rusty_s3::Bucket,
    prefix: String,
    credentials: Credentials,
    client: Client<Connector, Body>,
}

impl Bucket {
    /// The one that the flags name.
    pub fn of(flags: &SnapshotFlags) -> Result<Option<Self>> {
        let Some(url) = &flags.snapshot_s3 else { return Ok(None) };
        let place = url.strip_prefix("s3://").with_context(|| format!("{url} is not s3://BUCKET/PREFIX"))?;
        let (name, prefix) = place.split_once('/').unwrap_or((place, ""));
        let region = flags.snapshot_s3_region.clone();
        let endpoint = match &flags.snapshot_s3_endpoint {
            Some(endpoint) => endpoint.clone(),
            None => format!("https://s3.{region}.amazonaws.com"),
        };
        let endpoint = endpoint.parse().with_context(|| format!("{endpoint} is not an address"))?;
        let bucket = rusty_s3::Bucket::new(endpoint, UrlStyle::Path, name.to_owned(), region)?;
        let credentials = Credentials::from_env()
            .context("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set in the server's environment")?;
        let prefix = match prefix.trim_matches('/') {
            "" => String::new(),
            prefix => format!("{prefix}/"),
        };
        Ok(Some(Self { bucket, prefix, credentials, client: client()? }))
    }

    async fn send(&self, method: http::Method, url: &str, body: Body, length: u64) -> Result<Bytes> {
        let request = http::Request::builder()
            .method(method.clone())
            .uri(url)
            .header(http::header::CONTENT_LENGTH, length)
            .body(body)?;
        let answer = self.client.request(request).await.context("it cannot be reached")?;
        let status = answer.status();
        let text = Limited::new(answer.into_body(), ANSWER_BYTES).collect().await;
        let text = text.map_err(|error| anyhow::anyhow!("it broke off: {error}"))?.to_bytes();
        if !status.is_success() {
            let said = String::from_utf8_lossy(&text);
            bail!("{method} was refused with {status}: {}", said.chars().take(300).collect::<String>());
        }
        Ok(text)
    }

    /// Sends a file, under its name.
    pub async fn put(&self, path: &Path) -> Result<()> {
        let name = path.file_name().and_then(|name| name.to_str()).context("a file without a name")?;
        let file = tokio::fs::File::open(path).await?;
        let length = file.metadata().await?.len();
        let key = format!("{}{name}", self.prefix);
        let url = self.bucket.put_object(Some(&self.credentials), &key).sign(SIGNED_FOR);
        let body = BodyExt::boxed_unsync(StreamBody::new(ReaderStream::new(file).map_ok(Frame::data)));
        self.send(http::Method::PUT, url.as_str(), body, length).await.map(drop)
    }

    /// Names of all that is there.
    pub async fn list(&self) -> Result<Vec<String>> {
        let (mut names, mut more) = (Vec::new(), None);
        loop {
            let mut action = self.bucket.list_objects_v2(Some(&self.credentials));
            action.with_prefix(self.prefix.clone());
            if let Some(token) = more {
                action.with_continuation_token(token);
            }
            let url = action.sign(SIGNED_FOR);
            let text = self.send(http::Method::GET, url.as_str(), empty(), 0).await?;
            let text = std::str::from_utf8(&text).context("the list is not text")?;
            let listed = rusty_s3::actions::ListObjectsV2::parse_response(text).context("the list cannot be read")?;
            let known = listed.contents.into_iter();
            names.extend(known.filter_map(|object| object.key.strip_prefix(&self.prefix).map(str::to_owned)));
            match listed.next_continuation_token {
                Some(token) => more = Some(token),
                None => return Ok(names),
            }
        }
    }

    /// Removes one.
    pub async fn delete(&self, name: &str) -> Result<()> {
        let key = format!("{}{name}", self.prefix);
        let url = self.bucket.delete_object(Some(&self.credentials), &key).sign(SIGNED_FOR);
        self.send(http::Method::DELETE, url.as_str(), empty(), 0).await.map(drop)
    }
}

fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// Trusts whom the machine trusts.
fn client() -> Result<Client<Connector, Body>> {
    let named = std::env::var("SSL_CERT_FILE").ok();
    let file = named.iter().map(String::as_str).chain(ROOTS).find(|path| Path::new(path).exists());
    let tls = match file {
        Some(file) => {
            let pem = std::fs::read_to_string(file).with_context(|| file.to_owned())?;
            keelson_pki::client_config(&pem, keelson_pki::Identity::None)?
        }
        None => bail!("this machine has no CAs: apt-get install ca-certificates, or set SSL_CERT_FILE"),
    };
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(http);
    Ok(Client::builder(TokioExecutor::new()).build(connector))
}
