//! Calls of webhooks: HTTPS to a URL or a Service, over connections that are kept, with a pause after failures.
//!
//! A webhook that cannot be reached costs a request no more than its own time-out, and after a few failures in a row
//! nothing at all for a while: calls then fail at once, with what the latest one failed with, until the pause is over.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use keelson_machinery::decode;
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::objects::Objects;

/// Idle connections kept for one webhook.
const MAX_IDLE: usize = 8;
/// Webhooks of which anything is remembered.
const MAX_TARGETS: usize = 1024;
/// Largest answer, bytes.
const MAX_ANSWER_BYTES: usize = 8 << 20;
/// Bytes of an answer that an error shows.
const MAX_SHOWN_BYTES: usize = 500;
/// Failures in a row after which calls pause.
const FAILURES_BEFORE_PAUSE: u32 = 5;
/// The pause after that, doubled with each further failure up to the second value.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// Certificate authorities of the host, for webhooks without a bundle of their own.
const HOST_AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

type Sender = SendRequest<Full<Bytes>>;

/// Why a call came to nothing.
#[derive(Clone, Debug)]
enum Failure {
    /// There was no answer.
    Call(String),
    /// The answer is none that could be used.
    Answer(String),
}

impl Default for Failure {
    fn default() -> Self {
        Self::Call(String::new())
    }
}

/// What is remembered of a webhook.
#[derive(Default)]
struct Target {
    tls: Option<(String, Arc<rustls::ClientConfig>)>,
    idle: Vec<Sender>,
    failures: u32,
    /// How the latest call failed.
    failure: Failure,
    retry_at: Option<Instant>,
}

/// A webhook whose latest calls all failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failing {
    /// Its host and port.
    pub place: String,
    /// How many calls in a row.
    pub failures: u32,
    /// How the latest one did.
    pub error: String,
}

/// Calls webhooks.
pub struct Hooks {
    objects: Objects,
    targets: Mutex<HashMap<String, Target>>,
}

/// Where a webhook is.
struct Place {
    /// As messages show it and the pool knows it.
    url: String,
    /// Name in the certificate and the Host header.
    host: String,
    port: u16,
    /// Path with query.
    path: String,
    /// Address to connect to, if it is not the host's name.
    address: Option<String>,
}

/// What stands before the reason for which a webhook could not be asked; those who convert objects do not say it.
pub(crate) const CALL_FAILED: &str = "failed to call webhook: ";

impl Hooks {
    /// With the replica, which knows Services.
    pub fn new(objects: Objects) -> Self {
        Self { objects, targets: Mutex::default() }
    }

    /// Posts `body` to the webhook of a client configuration (`url` or `service`, `caBundle`). The error is worded as
    /// upstream's client words it.
    pub async fn call(&self, config: &Value, body: Vec<u8>, seconds: u64) -> Result<Value, String> {
        let place = self.place(config, seconds)?;
        let shown = |failure: &Failure| match failure {
            Failure::Call(why) => format!("{CALL_FAILED}Post {:?}: {why}", place.url),
            Failure::Answer(why) => format!("{CALL_FAILED}{why}"),
        };
        let key = format!("{}:{}", place.host, place.port);
        if let Some(failure) = self.paused(&key) {
            return Err(shown(&failure));
        }
        let time = Duration::from_secs(seconds);
        let result = match tokio::time::timeout(time, self.exchange(&key, &place, config, body)).await {
            Ok(result) => result,
            Err(_) => Err(Failure::Call("context deadline exceeded".to_owned())),
        };
        self.note(&key, result.as_ref().err());
        let bytes = result.map_err(|failure| shown(&failure))?;
        let answer = decode::json(&bytes).map_err(|why| format!("couldn't get version/kind; json parse error: {why}"));
        answer.map(|decoded| decoded.value).map_err(|why| shown(&Failure::Answer(why)))
    }

    /// What the last call of a webhook failed with, while no further one is made: clients are told what they would be told
    /// if it were.
    fn paused(&self, key: &str) -> Option<Failure> {
        let targets = self.targets.lock();
        let target = targets.get(key)?;
        target.retry_at.filter(|at| *at > Instant::now()).map(|_| target.failure.clone())
    }

    /// The webhooks that cannot be reached at the moment.
    pub fn failing(&self) -> Vec<Failing> {
        let targets = self.targets.lock();
        let failing = targets.iter().filter(|(_, target)| target.failures > 0);
        let mut failing: Vec<Failing> = failing
            .map(|(place, target)| Failing {
                place: place.clone(),
                failures: target.failures,
                error: match &target.failure {
                    Failure::Call(why) | Failure::Answer(why) => why.clone(),
                },
            })
            .collect();
        failing.sort_by(|a, b| a.place.cmp(&b.place));
        failing
    }

    fn note(&self, key: &str, failure: Option<&Failure>) {
        let mut targets = self.targets.lock();
        if targets.len() >= MAX_TARGETS && !targets.contains_key(key) {
            targets.clear();
        }
        let target = targets.entry(key.to_owned()).or_default();
        let Some(failure) = failure else {
            (target.failures, target.retry_at) = (0, None);
            return;
        };
        target.failures += 1;
        target.failure.clone_from(failure);
        if let Some(more) = target.failures.checked_sub(FAILURES_BEFORE_PAUSE) {
            let pause = PAUSE.0.saturating_mul(1 << more.min(8)).min(PAUSE.1);
            tracing::warn!(
                webhook = key,
                failures = target.failures,
                ?pause,
                "a webhook cannot be reached; calls pause"
            );
            target.retry_at = Some(Instant::now() + pause);
        }
    }

    fn place(&self, config: &Value, seconds: u64) -> Result<Place, String> {
        if let Some(url) = config["url"].as_str() {
            let uri: http::Uri = url.parse().map_err(|why| format!("{CALL_FAILED}{url:?}: {why}"))?;
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            let path = format!("{}?timeout={seconds}s", uri.path());
            let port = uri.port_u16().unwrap_or(443);
            let base = url.split_once('?').map_or(url, |(base, _)| base);
            return Ok(Place { url: format!("{base}?timeout={seconds}s"), host, port, path, address: None });
        }
        let service = &config["service"];
        let text = |key: &str| service[key].as_str().unwrap_or_default();
        let (namespace, name) = (text("namespace"), text("name"));
        let port = service["port"].as_u64().and_then(|p| u16::try_from(p).ok()).unwrap_or(443);
        let host = format!("{name}.{namespace}.svc");
        let path = match text("path") {
            "" => format!("/?timeout={seconds}s"),
            path => format!("/{}?timeout={seconds}s", path.trim_start_matches('/')),
        };
        let url = format!("https://{host}:{port}{path}");
        let address = self.backend(namespace, name, port).map_err(|why| format!("{CALL_FAILED}Post {url:?}: {why}"))?;
        Ok(Place { url, host, port, path, address: Some(address) })
    }

    /// The address behind a Service's port: one of its ready endpoints, or its cluster IP.
    pub(crate) fn backend(&self, namespace: &str, name: &str, port: u16) -> Result<String, String> {
        let service = self.objects.object("", "v1", "services", namespace, name);
        let service = service.ok_or_else(|| format!("service {name:?} not found"))?;
        let ports = service["spec"]["ports"].as_array();
        let found = ports.and_then(|ports| ports.iter().find(|p| p["port"] == port));
        let found = found.ok_or_else(|| format!("no service port {port} found for service {name:?}"))?;
        if service["spec"]["type"] == "ExternalName" {
            return Ok(format!("{}:{port}", service["spec"]["externalName"].as_str().unwrap_or_default()));
        }
        let slices = keelson_machinery::resources::find("discovery.k8s.io", "v1", "endpointslices");
        for slice in slices.map(|def| self.objects.all(def, namespace)).unwrap_or_default() {
            if slice["metadata"]["labels"]["kubernetes.io/service-name"] != name {
                continue;
            }
            let name = found["name"].as_str().unwrap_or_default();
            let slice_ports = slice["ports"].as_array().into_iter().flatten();
            let target =
                slice_ports.filter(|p| p["name"].as_str().unwrap_or_default() == name).find_map(|p| p["port"].as_u64());
            let endpoints = slice["endpoints"].as_array().into_iter().flatten();
            let ready =
                endpoints.filter(|e| e["conditions"]["ready"] != false).find_map(|e| e["addresses"][0].as_str());
            if let (Some(target), Some(ip)) = (target, ready) {
                return Ok(join(ip, target));
            }
        }
        match service["spec"]["clusterIP"].as_str() {
            Some(ip) if !ip.is_empty() && ip != "None" => Ok(join(ip, port.into())),
            _ => Err(format!("no endpoints available for service {name:?}")),
        }
    }

    async fn exchange(&self, key: &str, place: &Place, config: &Value, body: Vec<u8>) -> Result<Bytes, Failure> {
        let body = Bytes::from(body);
        let request = || {
            Request::builder()
                .method(Method::POST)
                .uri(&place.path)
                .header(header::HOST, format!("{}:{}", place.host, place.port))
                .header(header::CONTENT_TYPE, "application/json")
                .header(header::ACCEPT, "application/json")
                .header(header::USER_AGENT, "kube-apiserver-admission")
                .body(Full::new(body.clone()))
                .map_err(|e| Failure::Call(e.to_string()))
        };
        let idle = self.targets.lock().get_mut(key).and_then(|target| target.idle.pop());
        if let Some(mut sender) = idle
            && sender.ready().await.is_ok()
            && let Ok(answer) = sender.send_request(request()?).await
        {
            return self.read(key, sender, answer).await;
        }
        // No connection was left, or the other side had closed it.
        let mut sender = self.connect(key, place, config).await.map_err(Failure::Call)?;
        let answer = sender.send_request(request()?).await.map_err(|e| Failure::Call(e.to_string()))?;
        self.read(key, sender, answer).await
    }

    async fn read(
        &self,
        key: &str,
        sender: Sender,
        answer: http::Response<hyper::body::Incoming>,
    ) -> Result<Bytes, Failure> {
        let (parts, incoming) = answer.into_parts();
        let limited = Limited::new(incoming, MAX_ANSWER_BYTES);
        let bytes = limited.collect().await.map_err(|e| Failure::Call(e.to_string()))?.to_bytes();
        let mut targets = self.targets.lock();
        let target = targets.entry(key.to_owned()).or_default();
        if target.idle.len() < MAX_IDLE {
            target.idle.push(sender);
        }
        if parts.status.is_success() {
            return Ok(bytes);
        }
        let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("text/plain");
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_SHOWN_BYTES)]);
        let text = if kind.starts_with("text/") { text.trim() } else { "unknown" };
        Err(Failure::Answer(refused(parts.status.as_u16(), text)))
    }

    async fn connect(&self, key: &str, place: &Place, config: &Value) -> Result<Sender, String> {
        let tls = self.tls(key, config["caBundle"].as_str().unwrap_or_default())?;
        let address = place.address.clone().unwrap_or_else(|| join(&place.host, place.port.into()));
        let tcp = TcpStream::connect(&address).await.map_err(|e| {
            let why = if e.kind() == std::io::ErrorKind::ConnectionRefused {
                "connect: connection refused".into()
            } else {
                e.to_string()
            };
            format!("dial tcp {address}: {why}")
        })?;
        tcp.set_nodelay(true).map_err(|e| e.to_string())?;
        let name = ServerName::try_from(place.host.clone()).map_err(|e| e.to_string())?;
        let stream = tokio_rustls::TlsConnector::from(tls).connect(name, tcp).await;
        let stream = stream.map_err(|e| format!("tls: failed to verify certificate: {e}"))?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a webhook's connection ended");
            }
        });
        Ok(sender)
    }

    fn tls(&self, key: &str, bundle: &str) -> Result<Arc<rustls::ClientConfig>, String> {
        if let Some((known, tls)) = self.targets.lock().get(key).and_then(|target| target.tls.clone())
            && known == bundle
        {
            return Ok(tls);
        }
        let authorities = if bundle.is_empty() {
            std::fs::read_to_string(HOST_AUTHORITIES).map_err(|e| format!("{HOST_AUTHORITIES}: {e}"))?
        } else {
            let pem = STANDARD.decode(bundle).map_err(|e| format!("caBundle: {e}"))?;
            String::from_utf8(pem).map_err(|e| format!("caBundle: {e}"))?
        };
        let mut tls =
            keelson_pki::client_config(&authorities, keelson_pki::Identity::None).map_err(|e| e.to_string())?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let tls = Arc::new(tls);
        let mut targets = self.targets.lock();
        let target = targets.entry(key.to_owned()).or_default();
        target.idle.clear();
        target.tls = Some((bundle.to_owned(), tls.clone()));
        Ok(tls)
    }
}

/// What upstream's client makes of an answer that is no success.
fn refused(code: u16, text: &str) -> String {
    match code {
        400 => "the server rejected our request for an unknown reason".into(),
        401 => "the server has asked for the client to provide credentials".into(),
        403 | 406 | 415 => text.into(),
        404 => "the server could not find the requested resource".into(),
        405 => "the server does not allow this method on the requested resource".into(),
        409 => "the server reported a conflict".into(),
        422 => "the server rejected our request due to an error in our request".into(),
        429 => "the server has received too many requests and has asked us to try again later".into(),
        503 => "the server is currently unable to handle the request".into(),
        504 => {
            "the server was unable to return a response in the time allotted, but may still be processing the request"
                .into()
        }
        500.. => format!("an error on the server ({text:?}) has prevented the request from succeeding"),
        code => format!("the server responded with the status code {code} but did not return more information"),
    }
}

fn join(host: &str, port: u64) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}
