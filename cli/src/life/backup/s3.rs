//! The object store that copies go to: anything that speaks S3. Requests are signed by a library; this sends them.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures::TryStreamExt;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, Limited, StreamBody};
use hyper::body::Frame;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rusty_s3::actions::CreateMultipartUpload;
use rusty_s3::{Credentials, S3Action, UrlStyle};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use super::SnapshotFlags;

/// How long a signed address is good: a large copy on a slow line takes its time.
const SIGNED_FOR: Duration = Duration::from_secs(6 * 3600);
/// An answer that is not a copy is no longer.
const ANSWER_BYTES: usize = 8 << 20;
/// Where the machine keeps the CAs of the world.
const ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// A larger file goes in parts of this size: one request takes no more than 5 GiB, and a part that fails costs no more.
const PART_BYTES: u64 = 256 << 20;

type Connector = hyper_rustls::HttpsConnector<HttpConnector>;
type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// A bucket, and the place in it.
pub struct Bucket {
    bucket: rusty_s3::Bucket,
    prefix: String,
    credentials: Credentials,
    client: Client<Connector, Body>,
    part_bytes: u64,
}

/// Offsets and lengths of the parts of a file.
fn parts(length: u64, part: u64) -> impl Iterator<Item = (u64, u64)> {
    (0..length.div_ceil(part)).map(move |at| (at * part, part.min(length - at * part)))
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
        Ok(Some(Self { bucket, prefix, credentials, client: client()?, part_bytes: PART_BYTES }))
    }

    async fn send(&self, method: http::Method, url: &str, body: Body, length: u64) -> Result<Bytes> {
        self.exchange(method, url, body, length).await.map(|(_, text)| text)
    }

    async fn exchange(
        &self,
        method: http::Method,
        url: &str,
        body: Body,
        length: u64,
    ) -> Result<(http::HeaderMap, Bytes)> {
        let request = http::Request::builder()
            .method(method.clone())
            .uri(url)
            .header(http::header::CONTENT_LENGTH, length)
            .body(body)?;
        let answer = self.client.request(request).await.context("it cannot be reached")?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let text = Limited::new(answer.into_body(), ANSWER_BYTES).collect().await;
        let text = text.map_err(|error| anyhow::anyhow!("it broke off: {error}"))?.to_bytes();
        if !status.is_success() {
            let said = String::from_utf8_lossy(&text);
            bail!("{method} was refused with {status}: {}", said.chars().take(300).collect::<String>());
        }
        Ok((headers, text))
    }

    /// Sends a file in parts; what was sent is taken back if one of them is refused.
    async fn put_parts(&self, path: &Path, key: &str, length: u64) -> Result<()> {
        let begun = self.bucket.create_multipart_upload(Some(&self.credentials), key).sign(SIGNED_FOR);
        let answer = self.send(http::Method::POST, begun.as_str(), empty(), 0).await?;
        let answer = std::str::from_utf8(&answer).context("the answer is not text")?;
        let answer = CreateMultipartUpload::parse_response(answer).context("the upload has no name")?;
        let upload = answer.upload_id();
        let sent = self.send_parts(path, key, length, upload).await;
        if sent.is_err() {
            let url = self.bucket.abort_multipart_upload(Some(&self.credentials), key, upload).sign(SIGNED_FOR);
            let _ = self.send(http::Method::DELETE, url.as_str(), empty(), 0).await;
        }
        sent
    }

    async fn send_parts(&self, path: &Path, key: &str, length: u64, upload: &str) -> Result<()> {
        let mut tags = Vec::new();
        for (number, (offset, bytes)) in (1_u16..).zip(parts(length, self.part_bytes)) {
            let mut file = tokio::fs::File::open(path).await?;
            file.seek(std::io::SeekFrom::Start(offset)).await?;
            let stream = ReaderStream::new(file.take(bytes)).map_ok(Frame::data);
            let body = BodyExt::boxed_unsync(StreamBody::new(stream));
            let url = self.bucket.upload_part(Some(&self.credentials), key, number, upload).sign(SIGNED_FOR);
            let (headers, _) = self.exchange(http::Method::PUT, url.as_str(), body, bytes).await?;
            let tag = headers.get(http::header::ETAG).and_then(|tag| tag.to_str().ok());
            tags.push(tag.with_context(|| format!("part {number} was stored without a tag"))?.to_owned());
        }
        let whole = self.bucket.complete_multipart_upload(
            Some(&self.credentials),
            key,
            upload,
            tags.iter().map(String::as_str),
        );
        let url = whole.sign(SIGNED_FOR);
        let body = whole.body();
        let length = body.len() as u64;
        let body = Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed_unsync();
        let answer = self.send(http::Method::POST, url.as_str(), body, length).await?;
        // A failure may come after the head of a success.
        match String::from_utf8_lossy(&answer).contains("<Error>") {
            true => bail!("the parts were not joined: {}", String::from_utf8_lossy(&answer)),
            false => Ok(()),
        }
    }

    /// Sends a file, under its name.
    pub async fn put(&self, path: &Path) -> Result<()> {
        let name = path.file_name().and_then(|name| name.to_str()).context("a file without a name")?;
        let file = tokio::fs::File::open(path).await?;
        let length = file.metadata().await?.len();
        let key = format!("{}{name}", self.prefix);
        if length > self.part_bytes {
            return self.put_parts(path, &key, length).await;
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

    const UPLOAD: &str = "<InitiateMultipartUploadResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Bucket>b</Bucket>\
                          <Key>p/copy.db</Key><UploadId>u1</UploadId></InitiateMultipartUploadResult>";

    #[test]
    fn parts_are_the_whole() {
        for (length, part, expected) in
            [(10, 4, &[(0, 4), (4, 4), (8, 2)][..]), (8, 4, &[(0, 4), (4, 4)]), (3, 4, &[(0, 3)]), (0, 4, &[])]
        {
            assert_eq!(parts(length, part).collect::<Vec<_>>(), expected);
        }
    }

    /// As much of S3 as an upload in parts needs; a part that begins with `refuse` is refused.
    async fn serve(listener: tokio::net::TcpListener, asked: Arc<Mutex<Vec<String>>>) {
        while let Ok((stream, _)) = listener.accept().await {
            let asked = asked.clone();
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                let (mut line, mut length, mut first) = (String::new(), 0_usize, String::new());
                while stream.read_line(&mut line).await.is_ok_and(|n| n > 0) {
                    if let Some(value) = line.to_lowercase().strip_prefix("content-length: ") {
                        length = value.trim().parse().unwrap_or(0);
                    }
                    if first.is_empty() {
                        first = line.clone();
                    }
                    if line == "\r\n" {
                        break;
                    }
                    line.clear();
                }
                let mut body = vec![0; length];
                stream.read_exact(&mut body).await.unwrap();
                let body = String::from_utf8_lossy(&body).into_owned();
                let target = first.split_whitespace().nth(1).unwrap_or_default().to_owned();
                let method = first.split_whitespace().next().unwrap_or_default().to_owned();
                let number = target.split(['?', '&']).find_map(|p| p.strip_prefix("partNumber="));
                let (code, answer) = match (method.as_str(), number) {
                    ("POST", _) if target.contains("uploads") => (200, UPLOAD),
                    ("PUT", Some(_)) if body.starts_with("refuse") => (500, "no"),
                    _ => (200, ""),
                };
                asked.lock().unwrap().push(format!("{method} {} {body}", number.unwrap_or("-")));
                let head = format!(
                    "HTTP/1.1 {code} X\r\netag: \"t\"\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    answer.len()
                );
                let _ = stream.write_all(format!("{head}{answer}").as_bytes()).await;
                let _ = stream.shutdown().await;
            });
        }
    }

    async fn sent(content: &str) -> (bool, Vec<String>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let server = tokio::spawn(serve(listener, asked.clone()));
        let bucket = Bucket {
            bucket: rusty_s3::Bucket::new(endpoint, UrlStyle::Path, "b".to_owned(), "r".to_owned()).unwrap(),
            prefix: "p/".into(),
            credentials: Credentials::new("a", "s"),
            client: client().unwrap(),
            part_bytes: 8,
        };
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("copy.db");
        std::fs::write(&file, content).unwrap();
        let outcome = bucket.put(&file).await;
        server.abort();
        let asked = asked.lock().unwrap().clone();
        (outcome.is_ok(), asked)
    }

    #[tokio::test]
    async fn a_large_file_goes_in_parts_and_none_is_left_of_one_that_fails() {
        let (went, asked) = sent("12345678abcdefgh9").await;
        assert!(went, "{asked:?}");
        assert_eq!(asked[..4], ["POST - ", "PUT 1 12345678", "PUT 2 abcdefgh", "PUT 3 9"]);
        assert!(asked[4].starts_with("POST - ") && asked[4].contains("<PartNumber>3</PartNumber>"), "{asked:?}");
        let (went, asked) = sent("12345678refuse").await;
        assert!(!went);
        assert_eq!(asked.last().map(String::as_str), Some("DELETE - "));
        let (went, asked) = sent("small").await;
        assert!(went && asked == ["PUT - small"], "{asked:?}");
    }
}
