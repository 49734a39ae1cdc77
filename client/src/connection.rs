//! One HTTP/1.1 exchange on a connection of its own, which the other side may turn into a raw stream: exec, logs, proxies.

use std::sync::Arc;
use std::time::Duration;

use http_body::Body as HttpBody;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// A connection must be made, and its TLS handshake done, within this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes that wait in each direction of two streams joined together.
const BUFFER: usize = 64 << 10;

/// A stream that bytes go over.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// How to speak TLS to one server.
#[derive(Clone, Debug)]
pub struct Tls {
    config: Arc<ClientConfig>,
    /// The name that its certificate must have.
    name: String,
}

impl Tls {
    /// For a server with a certificate for `name` that `ca` signed, any certificate if that is empty; with a certificate
    /// and key of the client's own unless these are empty. All as PEM.
    pub fn new(ca: &str, certificate: &str, key: &str, name: &str) -> std::io::Result<Self> {
        let own = keelson_pki::Issued { certificate: certificate.to_owned(), key: key.to_owned() };
        let identity = match (certificate.is_empty(), key.is_empty()) {
            (true, true) => keelson_pki::Identity::None,
            (false, false) => keelson_pki::Identity::Certificate(&own),
            _ => return Err(std::io::Error::other("a certificate and its key go together")),
        };
        let config = match ca {
            "" => keelson_pki::client_config_unverified(identity),
            ca => keelson_pki::client_config(ca, identity),
        };
        Ok(Self { config: Arc::new(config.map_err(std::io::Error::other)?), name: name.to_owned() })
    }

    /// As a configuration says, for a server with a certificate for `name`.
    pub fn with(config: ClientConfig, name: &str) -> Self {
        Self { config: Arc::new(config), name: name.to_owned() }
    }
}

/// Connects to `host:port`, with TLS if `tls` is given.
pub async fn connect(host: &str, port: u16, tls: Option<Arc<ClientConfig>>) -> std::io::Result<Box<dyn Stream>> {
    connect_as(host, port, tls.map(|config| Tls { config, name: host.to_owned() }).as_ref()).await
}

/// Connects to `host:port`, with TLS if `tls` is given, to a server of the name that this has.
pub async fn connect_as(host: &str, port: u16, tls: Option<&Tls>) -> std::io::Result<Box<dyn Stream>> {
    let late = |_| std::io::Error::new(std::io::ErrorKind::TimedOut, format!("dial tcp {host}:{port}: i/o timeout"));
    let dial = async {
        let tcp = TcpStream::connect((host, port)).await;
        let tcp = tcp.map_err(|e| std::io::Error::new(e.kind(), format!("dial tcp {host}:{port}: {e}")))?;
        tcp.set_nodelay(true)?;
        let Some(tls) = tls else { return Ok(Box::new(tcp) as Box<dyn Stream>) };
        let name = ServerName::try_from(tls.name.clone()).map_err(std::io::Error::other)?;
        Ok(Box::new(tokio_rustls::TlsConnector::from(tls.config.clone()).connect(name, tcp).await?) as Box<dyn Stream>)
    };
    tokio::time::timeout(CONNECT_TIMEOUT, dial).await.map_err(late)?
}

/// Sends one request over `stream`. The response's body, or the upgraded connection, keeps the stream alive.
pub async fn exchange<B>(
    stream: Box<dyn Stream>,
    request: http::Request<B>,
) -> std::io::Result<http::Response<Incoming>>
where
    B: HttpBody + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection ended");
        }
    });
    sender.send_request(request).await.map_err(std::io::Error::other)
}

/// Copies both ways until both sides have ended.
pub async fn join(mut a: impl Stream, mut b: impl Stream) {
    let result = tokio::io::copy_bidirectional_with_sizes(&mut a, &mut b, BUFFER, BUFFER).await;
    if let Err(error) = result {
        tracing::debug!(%error, "a stream was cut");
    }
    let (_, _) = tokio::join!(a.shutdown(), b.shutdown());
}
