//! The load driver: plain HTTP/1.1 connections over TLS, so that the driver costs little beside the server.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A server and the right to use it.
#[derive(Clone)]
pub struct Target {
    /// `host:port`.
    authority: String,
    name: ServerName<'static>,
    tls: TlsConnector,
    /// The same for HTTP/2.
    tls_for_streams: TlsConnector,
}

/// One connection; requests follow one another.
pub struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    authority: String,
}

/// One connection of many streams.
#[derive(Clone)]
pub struct Streams {
    sender: http2::SendRequest<Full<Bytes>>,
    authority: String,
}

/// An answer read to its end.
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: Bytes,
}

impl Target {
    /// As the current context of a kubeconfig says.
    pub fn from_kubeconfig(path: &Path) -> Result<Self> {
        let mut access = keelson_client::https::access(path)?;
        access.tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let authority = access.server.trim_start_matches("https://").trim_end_matches('/').to_owned();
        let host = authority.rsplit_once(':').context("the kubeconfig's server has no port")?.0.to_owned();
        let name = ServerName::try_from(host).context("the kubeconfig's server")?;
        let mut streams = access.tls.clone();
        streams.alpn_protocols = vec![b"h2".to_vec()];
        let [tls, tls_for_streams] = [access.tls, streams].map(|tls| TlsConnector::from(Arc::new(tls)));
        Ok(Self { authority, name, tls, tls_for_streams })
    }

    /// Opens a connection.
    pub async fn connect(&self) -> Result<Connection> {
        let stream = TcpStream::connect(&self.authority).await?;
        stream.set_nodelay(true)?;
        let stream = self.tls.connect(self.name.clone(), stream).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Connection { sender, authority: self.authority.clone() })
    }

    /// Opens a connection for many requests at once.
    pub async fn connect_streams(&self) -> Result<Streams> {
        let stream = TcpStream::connect(&self.authority).await?;
        stream.set_nodelay(true)?;
        let stream = self.tls_for_streams.connect(self.name.clone(), stream).await?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Streams { sender, authority: self.authority.clone() })
    }
}

impl Streams {
    /// Sends a GET and returns when the head of the answer is there.
    pub async fn open(&mut self, path: &str) -> Result<http::Response<Incoming>> {
        let request = http::Request::get(format!("https://{}{path}", self.authority)).body(Full::default())?;
        self.sender.ready().await?;
        Ok(self.sender.send_request(request).await?)
    }
}

impl Connection {
    /// Sends a request and returns when the head of the answer is there.
    pub async fn open(&mut self, method: &str, path: &str, body: impl Into<Bytes>) -> Result<http::Response<Incoming>> {
        let content_type = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, &self.authority)
            .header(http::header::CONTENT_TYPE, content_type)
            .body(Full::new(body.into()))?;
        self.sender.ready().await?;
        Ok(self.sender.send_request(request).await?)
    }

    /// Sends a request and reads the whole answer.
    pub async fn call(&mut self, method: &str, path: &str, body: impl Into<Bytes>) -> Result<Answer> {
        let response = self.open(method, path, body).await?;
        let status = response.status().as_u16();
        Ok(Answer { status, body: response.into_body().collect().await?.to_bytes() })
    }

    /// A request that must succeed.
    pub async fn must(&mut self, method: &str, path: &str, body: impl Into<Bytes>) -> Result<Bytes> {
        let answer = self.call(method, path, body).await?;
        if !(200..300).contains(&answer.status) {
            bail!("{method} {path}: {} {}", answer.status, String::from_utf8_lossy(&answer.body));
        }
        Ok(answer.body)
    }
}

/// A request of a load.
pub struct Request {
    /// The HTTP method.
    pub method: &'static str,
    /// Path and query.
    pub path: String,
    /// The body; may be empty.
    pub body: Bytes,
}

/// What a load took.
#[derive(Debug)]
pub struct Load {
    /// From the first request to the last answer.
    pub elapsed: Duration,
    /// All latencies, sorted.
    pub latencies: Vec<Duration>,
    /// Bytes of all bodies received.
    pub received: u64,
}

impl Load {
    /// Requests in a second.
    pub fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.elapsed.as_secs_f64()
    }

    /// The latency that `percent` of the requests stayed within.
    pub fn percentile(&self, percent: f64) -> Duration {
        percentile(&self.latencies, percent)
    }
}

/// Value at `percent` of a sorted list; zero for an empty one.
pub fn percentile(sorted: &[Duration], percent: f64) -> Duration {
    let rank = (sorted.len() as f64 * percent / 100.0).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// Milliseconds, as reports have them.
pub fn milliseconds(duration: Duration) -> String {
    format!("{:.2} ms", duration.as_secs_f64() * 1000.0)
}

/// Sends `count` requests over `connections` connections as fast as they are answered. All must succeed.
pub async fn drive(
    target: &Target,
    connections: usize,
    count: usize,
    request: impl Fn(usize) -> Request + Send + Sync + 'static,
) -> Result<Load> {
    let mut opened = Vec::with_capacity(connections);
    for _ in 0..connections {
        opened.push(target.connect().await?);
    }
    let (next, request) = (Arc::new(AtomicUsize::new(0)), Arc::new(request));
    let started = Instant::now();
    let workers: Vec<_> = opened
        .into_iter()
        .map(|connection| tokio::spawn(worker(connection, next.clone(), count, request.clone())))
        .collect();
    let mut load = Load { elapsed: Duration::ZERO, latencies: Vec::with_capacity(count), received: 0 };
    for worker in workers {
        let (latencies, received) = worker.await??;
        load.latencies.extend(latencies);
        load.received += received;
    }
    load.elapsed = started.elapsed();
    load.latencies.sort_unstable();
    Ok(load)
}

async fn worker(
    mut connection: Connection,
    next: Arc<AtomicUsize>,
    count: usize,
    request: Arc<impl Fn(usize) -> Request>,
) -> Result<(Vec<Duration>, u64)> {
    let (mut latencies, mut received) = (Vec::new(), 0);
    loop {
        let index = next.fetch_add(1, Ordering::Relaxed);
        if index >= count {
            return Ok((latencies, received));
        }
        let request = request(index);
        let sent = Instant::now();
        received += connection.must(request.method, &request.path, request.body).await?.len() as u64;
        latencies.push(sent.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::percentile;
    use std::time::Duration;

    #[test]
    fn percentiles_are_ranks() {
        let sorted: Vec<Duration> = (1..=100).map(Duration::from_millis).collect();
        for (percent, expected) in [(50.0, 50), (99.0, 99), (100.0, 100), (0.0, 1)] {
            assert_eq!(percentile(&sorted, percent), Duration::from_millis(expected), "{percent}");
        }
        assert_eq!(percentile(&[], 50.0), Duration::ZERO);
    }
}
