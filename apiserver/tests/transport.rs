//! What strangers get who knock at the door itself: over TLS, with credentials of others, with requests that are no requests.
//! Each test says what the server answers.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use keelson_apiserver::{ApiServer, Config, bootstrap};
use keelson_machinery::resource::{ResourceDef, Scope};
use keelson_machinery::resources::RESOURCES;
use keelson_pki::{Authority, CertificateSlot, ClusterPki, Identity, Issued, ServerSlot};
use keelson_store::{Kv, LocalKv};
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

/// A server that listens.
struct Door {
    address: SocketAddr,
    pki: Arc<ClusterPki>,
    stop: CancellationToken,
    _directory: tempfile::TempDir,
}

impl Drop for Door {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Door {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let kv: Arc<dyn Kv> = Arc::new(LocalKv::open(directory.path()).unwrap());
        bootstrap::ensure(kv.as_ref(), bootstrap::objects()).await.unwrap();
        let pki = Arc::new(ClusterPki::create().unwrap());
        let stop = CancellationToken::new();
        let server = ApiServer::new(Config {
            kv,
            pki: pki.clone(),
            service_cidr: "10.96.0.0/16".into(),
            extensions: Vec::new(),
            settings: Default::default(),
            stop: stop.clone(),
        })
        .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let issued = pki.cluster.issue_server("kube-apiserver", &["localhost".to_owned()]).unwrap();
        let slot = CertificateSlot::new(&issued).unwrap();
        let tls = ServerSlot::new(keelson_pki::server_config(slot, &pki.cluster.trusted()).unwrap());
        tokio::spawn(keelson_apiserver::serve(server, listener, tls, stop.clone()));
        Self { address, pki, stop, _directory: directory }
    }

    async fn stream(&self, certificate: Option<&Issued>) -> std::io::Result<TlsStream<TcpStream>> {
        let identity = certificate.map_or(Identity::None, Identity::Certificate);
        let mut tls = keelson_pki::client_config(&self.pki.cluster.trusted(), identity).unwrap();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let tcp = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("localhost").unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(name, tcp).await
    }

    async fn client(&self, certificate: Option<&Issued>) -> SendRequest<Full<Bytes>> {
        let stream = self.stream(certificate).await.unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    /// Sends bytes as they are and gives all that comes back until the server closes or has answered.
    async fn raw(&self, text: &str) -> String {
        let mut stream = self.stream(None).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut out = Vec::new();
        // A connection that is cut without a farewell is an answer, too.
        let _ = stream.read_to_end(&mut out).await;
        String::from_utf8_lossy(&out).into_owned()
    }
}

async fn ask(
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

/// Method and path of a verb on a row.
fn request_of(def: &ResourceDef, verb: &str) -> (&'static str, String) {
    let root = if def.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", def.group) };
    let namespace = if def.scope == Scope::Namespaced { "/namespaces/default" } else { "" };
    let all = format!("{root}/{}{namespace}/{}", def.version, def.plural);
    match verb {
        "list" => ("GET", all),
        "watch" => ("GET", format!("{all}?watch=1&timeoutSeconds=1")),
        "create" => ("POST", all),
        "deletecollection" => ("DELETE", all),
        "get" => ("GET", format!("{all}/x")),
        "update" => ("PUT", format!("{all}/x")),
        "patch" => ("PATCH", format!("{all}/x")),
        _ => ("DELETE", format!("{all}/x")),
    }
}

/// Reviews of oneself that everybody may make.
const FOR_ALL: [&str; 3] = ["selfsubjectaccessreviews", "selfsubjectrulesreviews", "selfsubjectreviews"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_and_verb_refuses_strangers_and_bad_credentials() {
    let door = Door::new().await;
    let stranger = door.pki.cluster.issue_client("stranger", &[]).unwrap();
    let (mut known, mut unknown) = (door.client(Some(&stranger)).await, door.client(None).await);
    let mut asked = 0;
    for def in RESOURCES {
        for verb in def.verbs {
            let (method, path) = request_of(def, verb);
            let bad = [("authorization", "Bearer not-a-token")];
            let (code, told) = ask(&mut unknown, method, &path, &bad).await;
            assert_eq!(
                (code, told["reason"].as_str()),
                (StatusCode::UNAUTHORIZED, Some("Unauthorized")),
                "{method} {path}"
            );
            if FOR_ALL.contains(&def.plural) {
                continue;
            }
            let (code, told) = ask(&mut known, method, &path, &[]).await;
            assert_eq!(code, StatusCode::FORBIDDEN, "{method} {path}: {told}");
            assert!(told["message"].as_str().unwrap().contains("User \"stranger\" cannot "), "{told}");
            let (code, told) = ask(&mut unknown, method, &path, &[]).await;
            assert_eq!(code, StatusCode::FORBIDDEN, "{method} {path}: {told}");
            assert!(told["message"].as_str().unwrap().contains("User \"system:anonymous\" cannot "), "{told}");
            asked += 1;
        }
    }
    assert!(asked > 400, "{asked}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_of_another_authority_are_not_let_in() {
    let door = Door::new().await;
    let own = door.pki.cluster.issue_client("admin", &["system:masters"]).unwrap();
    let (code, _) = ask(&mut door.client(Some(&own)).await, "GET", "/api/v1/namespaces", &[]).await;
    assert_eq!(code, StatusCode::OK, "the cluster's own authority vouches for its admin");
    let foreign = Authority::create("elsewhere").unwrap();
    let forged = foreign.issue_client("admin", &["system:masters"]).unwrap();
    // The handshake fails; with TLS 1.3 the client learns of it when it reads.
    let read = async {
        let mut stream = door.stream(Some(&forged)).await?;
        stream.write_all(b"GET /api/v1/namespaces HTTP/1.1\r\nHost: localhost\r\n\r\n").await?;
        let mut first = [0; 1];
        stream.read_exact(&mut first).await
    };
    let refused = read.await.unwrap_err().to_string();
    assert!(refused.contains("UnknownCA") || refused.contains("alert"), "{refused}");
    // A certificate for servers says nothing of users.
    let server = door.pki.cluster.issue_server("admin", &["localhost".to_owned()]).unwrap();
    let read = async {
        let mut stream = door.stream(Some(&server)).await?;
        stream.write_all(b"GET /api/v1/namespaces HTTP/1.1\r\nHost: localhost\r\n\r\n").await?;
        let mut first = [0; 1];
        stream.read_exact(&mut first).await
    };
    assert!(read.await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_do_not_make_anybody_somebody_else() {
    let door = Door::new().await;
    let mut stranger = door.client(None).await;
    // Each row: headers, and the answer to a list of namespaces.
    for (headers, code) in [
        // No proxy is trusted here, whatever it says.
        (&[("x-remote-user", "admin"), ("x-remote-group", "system:masters")][..], StatusCode::FORBIDDEN),
        (&[("impersonate-user", "admin"), ("impersonate-group", "system:masters")], StatusCode::FORBIDDEN),
        (&[("impersonate-group", "system:masters")], StatusCode::INTERNAL_SERVER_ERROR),
        (&[("authorization", "Basic YWRtaW46YWRtaW4=")], StatusCode::FORBIDDEN),
        (&[("authorization", "Bearer ")], StatusCode::FORBIDDEN),
        (&[("authorization", "Bearer a b")], StatusCode::UNAUTHORIZED),
        (&[("authorization", "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJzeXN0ZW06YWRtaW4ifQ.")], StatusCode::UNAUTHORIZED),
        (&[("x-forwarded-for", "127.0.0.1"), ("x-original-url", "/healthz")], StatusCode::FORBIDDEN),
        (&[("x-http-method-override", "GET")], StatusCode::FORBIDDEN),
    ] {
        let (got, told) = ask(&mut stranger, "GET", "/api/v1/namespaces", headers).await;
        assert!(got == code || (code.is_server_error() && !got.is_success()), "{headers:?}: {got} {told}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_request_is_not_two() {
    let door = Door::new().await;
    let hidden = "GET /version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    // Each row: a request that two readers could understand differently. It is refused, and what hides in it is not answered.
    for head in [
        format!(
            "POST /api HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nContent-Length: {}\r\n\r\n{hidden}",
            hidden.len()
        ),
        format!("POST /api HTTP/1.1\r\nHost: h\r\nContent-Length: +{}\r\n\r\n{hidden}", hidden.len()),
        format!("POST /api HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{hidden}"),
        format!("POST /api HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{hidden}"),
        format!("POST /api HTTP/1.1\r\nHost: h\r\nX-A: b\r\n c\r\n\r\n{hidden}"),
        format!("GET /api HTTP/1.1\r\nHost : h\r\n\r\n{hidden}"),
        format!("GET /a b HTTP/1.1\r\nHost: h\r\n\r\n{hidden}"),
        format!("GET /api HTTP/1.1\r\nHost: h\r\nX-A: \u{0}\r\n\r\n{hidden}"),
    ] {
        let answer = door.raw(&head).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{head:?}: {answer}");
        assert!(!answer.contains("gitVersion"), "{head:?}: {answer}");
    }
    // Of both ways to say how long a body is only one counts, and the connection ends with it.
    let both = "POST /api HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\nConnection: close\r\n\r\n0\r\n\r\n";
    let answer = door.raw(&format!("{both}{hidden}")).await;
    assert!(!answer.contains("gitVersion"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_versions_of_tls_are_refused() {
    let door = Door::new().await;
    for minor in [0, 1, 2] {
        // A hello of SSL 3.0, TLS 1.0 and TLS 1.1: version, random bytes, no session, one cipher, no compression.
        let mut hello = vec![3, minor];
        hello.extend([7; 32]);
        hello.extend([0, 0, 2, 0x00, 0x2f, 1, 0]);
        let mut record = vec![0x16, 3, minor];
        record.extend((hello.len() as u16 + 4).to_be_bytes());
        record.extend([1, 0]);
        record.extend((hello.len() as u16).to_be_bytes());
        record.extend(hello);
        let mut tcp = TcpStream::connect(door.address).await.unwrap();
        tcp.write_all(&record).await.unwrap();
        let mut answer = Vec::new();
        let _ = tcp.read_to_end(&mut answer).await;
        // A fatal alert, or nothing at all; never a server's hello.
        assert!(answer.is_empty() || (answer[0] == 0x15 && answer[5] == 2), "3.{minor}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_never_finish_keep_nobody_out() {
    let door = Door::new().await;
    let mut held = Vec::new();
    for index in 0..60 {
        let mut tcp = TcpStream::connect(door.address).await.unwrap();
        if index % 3 == 0 {
            // Not even a handshake, or the start of one.
            let _ = tcp.write_all(&[0x16, 3]).await;
            held.push(Some(tcp));
        }
        let mut stream = door.stream(None).await.unwrap();
        let part: &[u8] = match index % 2 {
            0 => b"GET /version HTTP/1.1\r\nHost: loc",
            _ => b"POST /api/v1/namespaces HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n{",
        };
        stream.write_all(part).await.unwrap();
        held.push(Some(stream.into_inner().0));
    }
    let (code, told) = ask(&mut door.client(None).await, "GET", "/version", &[]).await;
    assert_eq!((code, told["major"].as_str()), (StatusCode::OK, Some("1")));
    assert!(held.iter().all(Option::is_some));
}
