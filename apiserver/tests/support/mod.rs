//! An API server on a store of its own, called without a network or over TLS, and servers of the test's own beside it.
// Each test binary compiles this anew and uses a part of it.
#![allow(dead_code)]

pub mod hook;

use std::borrow::Borrow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use keelson_apiserver::access::UserInfo;
use keelson_apiserver::{ApiServer, Config, Settings, bootstrap};
use keelson_client::Body;
use keelson_pki::{CertificateSlot, ClusterPki, Identity, Issued, ServerSlot};
use keelson_store::{Kv, LocalKv};
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

/// How long anything may take; far more than it needs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A server that is gone with the test.
pub struct Cluster {
    pub server: Arc<ApiServer>,
    pub kv: Arc<dyn Kv>,
    pub pki: Arc<ClusterPki>,
    stop: CancellationToken,
    _directory: tempfile::TempDir,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A user whose groups are these and that of all who are known.
pub fn user(name: &str, groups: &[&str]) -> UserInfo {
    let groups = groups.iter().chain(&["system:authenticated"]).map(|g| (*g).to_owned()).collect();
    UserInfo { name: name.into(), groups, ..UserInfo::default() }
}

/// Who may do everything.
pub fn admin() -> UserInfo {
    user("admin", &["system:masters"])
}

impl Cluster {
    /// With Services in one range.
    pub async fn new() -> Self {
        Self::with_services_in("10.96.0.0/16").await
    }

    /// With Services in these ranges.
    pub async fn with_services_in(ranges: &str) -> Self {
        Self::start(ranges, Settings::default()).await
    }

    /// As an operator chose.
    pub async fn with(settings: Settings) -> Self {
        Self::start("10.96.0.0/16", settings).await
    }

    async fn start(ranges: &str, settings: Settings) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let kv: Arc<dyn Kv> = Arc::new(LocalKv::open(directory.path()).unwrap());
        bootstrap::ensure(kv.as_ref(), bootstrap::objects()).await.unwrap();
        let pki = Arc::new(ClusterPki::create().unwrap());
        let stop = CancellationToken::new();
        let server = ApiServer::new(Config {
            kv: kv.clone(),
            pki: pki.clone(),
            service_cidr: ranges.into(),
            extensions: Vec::new(),
            settings,
            stop: stop.clone(),
        })
        .unwrap();
        Self { server, kv, pki, stop, _directory: directory }
    }

    /// Carries out a request of an admin.
    pub async fn send(&self, request: Request<Bytes>) -> Response<Body> {
        self.server.call(admin(), request).await
    }

    /// A request of an admin in JSON: status code and answer.
    pub async fn json(&self, method: &str, path: &str, body: impl Borrow<Value>) -> (u16, Value) {
        self.call(admin(), method, path, body).await
    }

    /// A request in JSON: status code and answer, as a text if it is no JSON.
    pub async fn call(&self, who: UserInfo, method: &str, path: &str, body: impl Borrow<Value>) -> (u16, Value) {
        let body = body.borrow();
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let bytes = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        self.raw(who, method, path, kind, bytes).await
    }

    /// A request with a body of some kind.
    pub async fn raw(&self, who: UserInfo, method: &str, path: &str, kind: &str, body: Vec<u8>) -> (u16, Value) {
        let request = Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, kind);
        let response = self.server.call(who, request.body(body.into()).unwrap()).await;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let text = || Value::from(String::from_utf8_lossy(&bytes).into_owned());
        (code, serde_json::from_slice(&bytes).unwrap_or_else(|_| text()))
    }

    /// Makes an object as the admin; this must succeed.
    pub async fn make(&self, path: &str, object: impl Borrow<Value>) -> Value {
        let (code, answer) = self.json("POST", path, object).await;
        assert_eq!(code, 201, "{path}: {answer}");
        answer
    }

    /// Makes a node with labels (null: none).
    pub async fn node(&self, name: &str, labels: Value) -> Value {
        let metadata = serde_json::json!({"name": name, "labels": labels});
        self.make("/api/v1/nodes", serde_json::json!({"kind": "Node", "apiVersion": "v1", "metadata": metadata})).await
    }

    /// Asks as the admin until an answer is as it should be.
    pub async fn until(&self, path: &str, good: impl Fn(u16, &Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (code, answer) = self.json("GET", path, Value::Null).await;
            if good(code, &answer) {
                return answer;
            }
            assert!(Instant::now() < deadline, "{path}: {code} {answer}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Serves it over TLS.
    pub async fn listen(&self) -> Door {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let issued = self.pki.cluster.issue_server("kube-apiserver", &names).unwrap();
        let slot = CertificateSlot::new(&issued).unwrap();
        let tls = ServerSlot::new(keelson_pki::server_config(slot, &self.pki.cluster.trusted()).unwrap());
        tokio::spawn(keelson_apiserver::serve(self.server.clone(), listener, tls, self.stop.clone()));
        Door { address, pki: self.pki.clone() }
    }
}

/// Where a server listens.
pub struct Door {
    pub address: SocketAddr,
    pub pki: Arc<ClusterPki>,
}

impl Door {
    /// A connection of somebody with this certificate.
    pub async fn stream(&self, certificate: Option<&Issued>) -> std::io::Result<TlsStream<TcpStream>> {
        self.stream_of(certificate, "http/1.1").await
    }

    /// The same, for a protocol.
    pub async fn stream_of(
        &self,
        certificate: Option<&Issued>,
        protocol: &str,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let identity = certificate.map_or(Identity::None, Identity::Certificate);
        let mut tls = keelson_pki::client_config(&self.pki.cluster.trusted(), identity).unwrap();
        tls.alpn_protocols = vec![protocol.into()];
        let tcp = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("localhost").unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(name, tcp).await
    }

    /// The same, for requests.
    pub async fn client(&self, certificate: Option<&Issued>) -> SendRequest<Full<Bytes>> {
        let stream = self.stream(certificate).await.unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        sender
    }

    /// Sends bytes as they are and gives all that comes back until the server closes or has answered.
    pub async fn raw(&self, text: &str) -> String {
        let mut stream = self.stream(None).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut out = Vec::new();
        // A connection that is cut without a farewell is an answer, too.
        let _ = stream.read_to_end(&mut out).await;
        String::from_utf8_lossy(&out).into_owned()
    }

    /// A kubeconfig file of the admin.
    pub fn kubeconfig(&self, path: &std::path::Path) {
        let issued = self.pki.cluster.issue_client("admin", &["system:masters"]).unwrap();
        let credential = keelson_pki::Credential::Certificate(&issued);
        let server = format!("https://{}", self.address);
        let ca = self.pki.cluster.trusted();
        std::fs::write(path, keelson_pki::kubeconfig("test", &server, &ca, "admin", credential)).unwrap();
    }
}

/// A request on a connection: status code and answer.
pub async fn ask(
    sender: &mut SendRequest<Full<Bytes>>,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> (StatusCode, Value) {
    sender.ready().await.unwrap();
    let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = sender.send_request(request.body(Full::default()).unwrap()).await.unwrap();
    let status = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or_default())
}
