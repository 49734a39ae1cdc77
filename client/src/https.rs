//! The transport over HTTPS to whichever server answers, and the kubeconfig that says where and as whom.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use hyper_rustls::FixedServerNameResolver;
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::RwLock;
use rustls::pki_types::ServerName;
use serde_json::Value;

use crate::api::Client;
use crate::transport::{Body, Transport};

/// A connection must be made within this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection on which nothing arrives for this long is asked whether it still lives.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// It is given up when it does not answer for this long.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

type Connector = hyper_rustls::HttpsConnector<HttpConnector>;
type Connections = Pool<Connector, Full<Bytes>>;

/// Sends requests to one of several servers: to the one that answered last, and to the next when that is gone.
pub struct Https {
    pool: RwLock<Connections>,
    servers: RwLock<Arc<[String]>>,
    /// Index of the server that is asked first.
    current: AtomicUsize,
    token: Option<String>,
    /// The name that the servers' certificates must have, if it is not the host of their addresses.
    name: Option<ServerName<'static>>,
}

fn pool(tls: rustls::ClientConfig, name: Option<&ServerName<'static>>) -> Connections {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(CONNECT_TIMEOUT));
    let builder = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
    let builder = match name {
        Some(name) => builder.with_server_name_resolver(FixedServerNameResolver::new(name.clone())),
        None => builder,
    };
    let connector = builder.enable_all_versions().wrap_connector(http);
    Pool::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .http2_keep_alive_interval(KEEP_ALIVE)
        .http2_keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .http2_keep_alive_while_idle(true)
        .build(connector)
}

fn trimmed(servers: &[String]) -> Arc<[String]> {
    servers.iter().map(|s| s.trim_end_matches('/').to_owned()).collect()
}

impl Https {
    /// A transport to `server` (`https://host:port`) with TLS as configured, and a bearer token if there is one.
    pub fn new(server: &str, tls: rustls::ClientConfig, token: Option<String>) -> Self {
        Self::to_any(&[server.to_owned()], tls, token)
    }

    /// A transport to whichever of `servers` answers.
    pub fn to_any(servers: &[String], tls: rustls::ClientConfig, token: Option<String>) -> Self {
        Self {
            pool: RwLock::new(pool(tls, None)),
            servers: RwLock::new(trimmed(servers)),
            current: AtomicUsize::new(0),
            token,
            name: None,
        }
    }

    /// A transport to `server`, whose certificate must have another name than its address.
    pub fn to_named(
        server: &str,
        name: &str,
        tls: rustls::ClientConfig,
        token: Option<String>,
    ) -> std::io::Result<Self> {
        let name = ServerName::try_from(name.to_owned()).map_err(std::io::Error::other)?;
        let made = Self::to_any(&[server.to_owned()], tls.clone(), token);
        *made.pool.write() = pool(tls, Some(&name));
        Ok(Self { name: Some(name), ..made })
    }

    /// The servers, the one that is asked first at the front.
    pub fn servers(&self) -> Vec<String> {
        let servers = self.servers.read().clone();
        let first = self.current.load(Ordering::Relaxed) % servers.len().max(1);
        servers[first..].iter().chain(&servers[..first]).cloned().collect()
    }

    /// Replaces the list of servers; an empty one is ignored, since there would be no way back.
    pub fn set_servers(&self, servers: &[String]) {
        if servers.is_empty() {
            return;
        }
        let asked = self.servers().first().cloned();
        let new = trimmed(servers);
        let first = new.iter().position(|s| Some(s) == asked.as_ref()).unwrap_or(0);
        *self.servers.write() = new;
        self.current.store(first, Ordering::Relaxed);
    }

    /// Uses another identity or other roots for connections from now on.
    pub fn replace_tls(&self, tls: rustls::ClientConfig) {
        *self.pool.write() = pool(tls, self.name.as_ref());
    }

    async fn send(
        &self,
        server: &str,
        parts: &http::request::Parts,
        body: &Bytes,
    ) -> Result<http::Response<Body>, (bool, std::io::Error)> {
        let wrong = |e: http::Error| (false, std::io::Error::other(e));
        let mut request = http::Request::builder().method(&parts.method).uri(format!("{server}{}", parts.uri));
        if let Some(headers) = request.headers_mut() {
            headers.extend(parts.headers.clone());
        }
        if let Some(token) = &self.token {
            request = request.header(http::header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Full::new(body.clone())).map_err(wrong)?;
        let pool = self.pool.read().clone();
        match pool.request(request).await {
            Ok(response) => Ok(response.map(|body| body.map_err(std::io::Error::other).boxed_unsync())),
            Err(error) => Err((error.is_connect(), std::io::Error::other(describe(&error)))),
        }
    }
}

/// The whole chain of causes: the pool's own error only says which stage failed.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

impl Transport for Https {
    fn call(&self, request: http::Request<Bytes>) -> BoxFuture<'_, std::io::Result<http::Response<Body>>> {
        async move {
            let (parts, body) = request.into_parts();
            let servers = self.servers.read().clone();
            let first = self.current.load(Ordering::Relaxed);
            // What only reads can be asked again even if a server died after it had the request.
            let reads = matches!(parts.method, http::Method::GET | http::Method::HEAD);
            let mut failure = std::io::Error::other("there is no server to ask");
            for turn in 0..servers.len() {
                let at = (first + turn) % servers.len();
                match self.send(&servers[at], &parts, &body).await {
                    Ok(response) => {
                        let unavailable = response.status() == http::StatusCode::SERVICE_UNAVAILABLE;
                        self.current.store(if unavailable { at + 1 } else { at }, Ordering::Relaxed);
                        return Ok(response);
                    }
                    Err((not_sent, error)) => {
                        self.current.store(at + 1, Ordering::Relaxed);
                        failure = std::io::Error::other(format!("{}: {error}", servers[at]));
                        if !(not_sent || reads) {
                            break;
                        }
                    }
                }
            }
            Err(failure)
        }
        .boxed()
    }
}

/// Where a server is and how to speak to it: the current context of a kubeconfig.
pub struct Access {
    /// `https://host:port`.
    pub server: String,
    /// Certificate of the CA that signs for the server, as PEM.
    pub ca: String,
    /// Whom to trust and the client's certificate. No ALPN is set.
    pub tls: rustls::ClientConfig,
    /// A bearer token, if the context has one.
    pub token: Option<String>,
}

/// A client as the current context of a kubeconfig says.
pub fn from_kubeconfig(path: &Path, user_agent: &str) -> std::io::Result<Client> {
    Ok(Client::new(Arc::new(transport_of(path)?), user_agent))
}

/// The transport that the current context of a kubeconfig describes.
pub fn transport_of(path: &Path) -> std::io::Result<Https> {
    let access = access(path)?;
    Ok(Https::new(&access.server, access.tls, access.token))
}

/// What the current context of a kubeconfig says.
pub fn access(path: &Path) -> std::io::Result<Access> {
    let text = std::fs::read_to_string(path)?;
    let config: Value = serde_saphyr::from_str(&text).map_err(std::io::Error::other)?;
    let named = |list: &str, name: &Value| -> Value {
        let entries = config[list].as_array().into_iter().flatten();
        entries.clone().find(|e| e["name"] == *name).cloned().unwrap_or_default()
    };
    let context = &named("contexts", &config["current-context"])["context"];
    let cluster = &named("clusters", &context["cluster"])["cluster"];
    let user = &named("users", &context["user"])["user"];
    let missing = |what: &str| std::io::Error::other(format!("the kubeconfig's current context has no {what}"));
    let server = cluster["server"].as_str().ok_or_else(|| missing("server"))?;
    let data = |of: &Value, key: &str| -> std::io::Result<Option<String>> {
        if let Some(encoded) = of[format!("{key}-data")].as_str() {
            let bytes = STANDARD.decode(encoded).map_err(std::io::Error::other)?;
            return String::from_utf8(bytes).map(Some).map_err(std::io::Error::other);
        }
        of[key].as_str().map(std::fs::read_to_string).transpose()
    };
    let ca = data(cluster, "certificate-authority")?.ok_or_else(|| missing("certificate-authority"))?;
    let issued = match (data(user, "client-certificate")?, data(user, "client-key")?) {
        (Some(certificate), Some(key)) => Some(keelson_pki::Issued { certificate, key }),
        _ => None,
    };
    let identity = issued.as_ref().map_or(keelson_pki::Identity::None, keelson_pki::Identity::Certificate);
    let tls = keelson_pki::client_config(&ca, identity).map_err(std::io::Error::other)?;
    let token = user["token"].as_str().map(str::to_owned);
    Ok(Access { server: server.to_owned(), ca, tls, token })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transport(servers: &[&str]) -> Https {
        let ca = keelson_pki::Authority::create("ca").unwrap();
        let tls = keelson_pki::client_config(&ca.certificate(), keelson_pki::Identity::None).unwrap();
        Https::to_any(&servers.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>(), tls, None)
    }

    #[test]
    fn the_server_in_use_stays_first_when_the_list_changes() {
        let https = transport(&["https://a:1/", "https://b:1"]);
        https.current.store(1, Ordering::Relaxed);
        assert_eq!(https.servers(), ["https://b:1", "https://a:1"]);
        https.set_servers(&["https://c:1".into(), "https://a:1".into(), "https://b:1".into()]);
        assert_eq!(https.servers(), ["https://b:1", "https://c:1", "https://a:1"]);
        https.set_servers(&[]);
        assert_eq!(https.servers().len(), 3);
    }

    #[tokio::test]
    async fn a_request_that_no_server_takes_names_the_last_one() {
        let https = transport(&["https://127.0.0.1:1", "https://127.0.0.1:2"]);
        let request = http::Request::post("/api").body(Bytes::new()).unwrap();
        let error = https.call(request).await.err().unwrap().to_string();
        assert!(error.starts_with("https://127.0.0.1:2"), "{error}");
    }
}
