//! A TLS server of the test's own that answers what the API server asks others: webhooks and servers behind it.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use keelson_pki::{Authority, CertificateSlot};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// A body of any kind.
pub type Answer = Response<BoxBody<Bytes, Infallible>>;

/// An answer in JSON.
pub fn told(value: &Value) -> Answer {
    Response::new(Full::new(Bytes::from(value.to_string())).boxed())
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Path and query.
    pub path: String,
    /// The body as JSON.
    pub body: Value,
}

/// The server.
pub struct Hook {
    pub port: u16,
    pub authority: Authority,
    asked: Arc<Mutex<Vec<Asked>>>,
}

/// Makes an answer of a request with its body, and the name in the certificate of who asks.
pub trait Answers: Fn(&mut Request<Incoming>, &Asked, &str) -> Answer + Send + Sync + 'static {}
impl<F: Fn(&mut Request<Incoming>, &Asked, &str) -> Answer + Send + Sync + 'static> Answers for F {}

impl Hook {
    /// Starts one with a certificate for these names, which knows clients by the authority `clients` ("": by none).
    pub async fn start(names: &[&str], clients: &str, answers: impl Answers) -> Self {
        let authority = Authority::create("hook").unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let issued = authority.issue_server("hook", &names).unwrap();
        let slot = CertificateSlot::new(&issued).unwrap();
        let own = authority.certificate();
        let tls = keelson_pki::server_config(slot, if clients.is_empty() { &own } else { clients }).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (kept, answers) = (asked.clone(), Arc::new(answers));
        tokio::spawn(async move {
            let acceptor = tokio_rustls::TlsAcceptor::from(tls);
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, kept, answers) = (acceptor.clone(), kept.clone(), answers.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
                    let name = chain.first().map(|c| keelson_pki::subject_of(c).unwrap().0).unwrap_or_default();
                    let service =
                        service_fn(move |request| answer(request, name.clone(), kept.clone(), answers.clone()));
                    let http = auto::Builder::new(TokioExecutor::new());
                    let _ = http.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { port, authority, asked }
    }

    /// What it was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().clone()
    }

    /// Its authority as client configurations want it.
    pub fn bundle(&self) -> String {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.encode(self.authority.certificate().as_bytes())
    }

    /// A client configuration with a URL.
    pub fn at(&self, path: &str) -> Value {
        json!({"url": format!("https://127.0.0.1:{}{path}", self.port), "caBundle": self.bundle()})
    }

    /// A kubeconfig file whose server it is.
    pub fn kubeconfig(&self, path: &std::path::Path, tail: &str) {
        let server = format!("https://127.0.0.1:{}{tail}", self.port);
        let ca = self.authority.certificate();
        let text = keelson_pki::kubeconfig("hook", &server, &ca, "server", keelson_pki::Credential::None);
        std::fs::write(path, text).unwrap();
    }
}

async fn answer(
    mut request: Request<Incoming>,
    name: String,
    kept: Arc<Mutex<Vec<Asked>>>,
    answers: Arc<impl Answers>,
) -> Result<Answer, Infallible> {
    let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    let bytes = request.body_mut().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let asked = Asked { path, body: serde_json::from_slice(&bytes).unwrap_or_default() };
    kept.lock().push(asked.clone());
    Ok(answers(&mut request, &asked, &name))
}
