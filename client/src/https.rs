//! The transport over HTTPS, and the kubeconfig that says where and as whom.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use crate::api::Client;
use crate::transport::{Body, Transport};

/// A connection must be made within this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

type Connector = hyper_rustls::HttpsConnector<HttpConnector>;

/// Sends requests to one server.
pub struct Https {
    pool: Pool<Connector, Full<Bytes>>,
    server: String,
    token: Option<String>,
}

impl Https {
    /// A transport to `server` (`https://host:port`) with TLS as configured, and a bearer token if there is one.
    pub fn new(server: &str, tls: rustls::ClientConfig, token: Option<String>) -> Self {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_only()
            .enable_all_versions()
            .wrap_connector(http);
        let pool = Pool::builder(TokioExecutor::new()).build(connector);
        Self { pool, server: server.trim_end_matches('/').to_owned(), token }
    }
}

impl Transport for Https {
    fn call(&self, request: http::Request<Bytes>) -> BoxFuture<'_, std::io::Result<http::Response<Body>>> {
        async move {
            let (mut parts, body) = request.into_parts();
            parts.uri = format!("{}{}", self.server, parts.uri).parse().map_err(std::io::Error::other)?;
            if let Some(token) = &self.token {
                let value = format!("Bearer {token}").parse().map_err(std::io::Error::other)?;
                parts.headers.insert(http::header::AUTHORIZATION, value);
            }
            let request = http::Request::from_parts(parts, Full::new(body));
            let response = self.pool.request(request).await.map_err(std::io::Error::other)?;
            Ok(response.map(|body| body.map_err(std::io::Error::other).boxed_unsync()))
        }
        .boxed()
    }
}

/// Where a server is and how to speak to it: the current context of a kubeconfig.
pub struct Access {
    /// `https://host:port`.
    pub server: String,
    /// Whom to trust and the client's certificate. No ALPN is set.
    pub tls: rustls::ClientConfig,
    /// A bearer token, if the context has one.
    pub token: Option<String>,
}

/// A client as the current context of a kubeconfig says.
pub fn from_kubeconfig(path: &Path, user_agent: &str) -> std::io::Result<Client> {
    let access = access(path)?;
    Ok(Client::new(Arc::new(Https::new(&access.server, access.tls, access.token)), user_agent))
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
    Ok(Access { server: server.to_owned(), tls, token })
}
