//! One command's way to the server: whom it asks, as whom, and what comes back.

use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt;
use keelson_client::https::Https;
use keelson_client::{Body, Transport};
use serde_json::Value;

use crate::config::{Access, Config, access};
use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, Parsed, repeated, switch, text};

/// Flags of every command.
pub const GLOBAL: &[Flag] = &[
    text("as", "", "Username to impersonate for the operation."),
    repeated(
        "as-group",
        "Group to impersonate for the operation, this flag can be repeated to specify multiple groups.",
    ),
    text("as-uid", "", "UID to impersonate for the operation."),
    text("cache-dir", "", "Taken for compatibility; nothing is cached."),
    text("certificate-authority", "", "Path to a cert file for the certificate authority"),
    text("client-certificate", "", "Path to a client certificate file for TLS"),
    text("client-key", "", "Path to a client key file for TLS"),
    text("cluster", "", "The name of the kubeconfig cluster to use"),
    text("context", "", "The name of the kubeconfig context to use"),
    switch("disable-compression", "Taken for compatibility; responses are not compressed."),
    switch("insecure-skip-tls-verify", "If true, the server's certificate will not be checked for validity."),
    text("kubeconfig", "", "Path to the kubeconfig file to use for CLI requests."),
    text("log-flush-frequency", "5s", "Taken for compatibility: what is logged is written at once."),
    switch("match-server-version", "Require server version to match client version"),
    text("namespace", "", "If present, the namespace scope for this CLI request").short('n'),
    text("password", "", "Password for basic authentication to the API server"),
    text("profile", "none", "Taken for compatibility: only none is known."),
    text("profile-output", "profile.pprof", "Taken for compatibility: no profile is written."),
    text("request-timeout", "0", "The length of time to wait before giving up on a single server request.").plain(),
    text("server", "", "The address and port of the Kubernetes API server").short('s'),
    text("tls-server-name", "", "Server name to use for server certificate validation."),
    text("token", "", "Bearer token for authentication to the API server"),
    text("user", "", "The name of the kubeconfig user to use"),
    text("username", "", "Username for basic authentication to the API server"),
    text("v", "0", "number for the log level verbosity").short('v'),
    text("vmodule", "", "Taken for compatibility: verbosity is the same everywhere."),
    switch("warnings-as-errors", "Treat warnings received from the server as errors"),
];

/// Where a command runs.
pub struct Session {
    /// The command line.
    pub parsed: Parsed,
    /// The kubeconfig.
    pub config: Config,
    access: OnceLock<Access>,
    transport: OnceLock<Https>,
}

/// The version that is asked for with bodies.
const JSON: &str = "application/json";

impl Session {
    /// Reads the kubeconfig; nothing is connected yet.
    pub fn open(parsed: Parsed) -> Outcome<Self> {
        // `debug` has profiles of another kind.
        if !matches!(parsed.text("profile"), "none" | "") && parsed.command != "kubectl debug" {
            return Err(Failure::new(format!("unknown profile '{}'", parsed.text("profile"))));
        }
        let config = Config::load(&parsed)?;
        Ok(Self { parsed, config, access: OnceLock::new(), transport: OnceLock::new() })
    }

    /// Where requests go and as whom.
    pub fn access(&self) -> Outcome<&Access> {
        match self.access.get() {
            Some(access) => Ok(access),
            None => {
                let made = access(&self.config, &self.parsed)?;
                Ok(self.access.get_or_init(|| made))
            }
        }
    }

    /// The namespace of this command.
    pub fn namespace(&self) -> Outcome<String> {
        Ok(self.access()?.namespace.clone())
    }

    /// The headers that say who asks, for requests on connections of their own.
    pub fn identity(&self) -> Outcome<Vec<(String, String)>> {
        let access = self.access()?;
        let token = access.token.iter().map(|token| ("Authorization".to_owned(), format!("Bearer {token}")));
        Ok(token.chain(access.impersonate.iter().cloned()).collect())
    }

    /// The connections to the server.
    pub fn transport(&self) -> Outcome<&Https> {
        if let Some(transport) = self.transport.get() {
            return Ok(transport);
        }
        let access = self.access()?;
        let (tls, token) = (access.tls.clone(), access.token.clone());
        let made = match &access.server_name {
            Some(name) => Https::to_named(&access.server, name, tls, token)?,
            None => Https::new(&access.server, tls, token),
        };
        Ok(self.transport.get_or_init(|| made))
    }

    /// How long a request may take; zero for ever. A number alone is seconds.
    pub fn request_timeout(&self) -> Outcome<Duration> {
        let text = self.parsed.text("request-timeout");
        let seconds = text.parse::<u64>().ok().map(Duration::from_secs);
        seconds.or_else(|| crate::flags::duration(text)).ok_or_else(|| {
            Failure::new(
                "Invalid timeout value. Timeout must be a single integer in seconds, or an integer followed by a \
                 corresponding time unit (e.g. 1s | 2m | 3h)",
            )
        })
    }

    /// Sends a request; whatever is not a success is a failure.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        content_type: Option<&str>,
        body: Bytes,
    ) -> Outcome<http::Response<Body>> {
        let timeout = self.request_timeout()?;
        let mut path = path.to_owned();
        if !timeout.is_zero() {
            path += if path.contains('?') { "&" } else { "?" };
            path += &format!("timeout={}s", timeout.as_secs().max(1));
        }
        let access = self.access()?;
        if access.impersonate.first().is_some_and(|(name, _)| name != "Impersonate-User") {
            let user = self.config.user_name(&self.parsed);
            return Err(Failure::new(format!(
                "requesting uid, groups or user-extra for {user} without impersonating a user"
            )));
        }
        let mut request = http::Request::builder()
            .method(&method)
            .uri(&path)
            .header(http::header::ACCEPT, accept)
            .header(http::header::USER_AGENT, concat!("keelson-kubectl/", env!("CARGO_PKG_VERSION")));
        for (name, value) in &access.impersonate {
            request = request.header(name, value);
        }
        if let Some(content_type) = content_type {
            request = request.header(http::header::CONTENT_TYPE, content_type);
        }
        let request = request.body(body).map_err(|e| Failure::new(e.to_string()))?;
        let sent = self.transport()?.call(request);
        let sent = match timeout.is_zero() {
            true => sent.await,
            false => tokio::time::timeout(timeout, sent).await.unwrap_or_else(|_| {
                Err(std::io::Error::other(
                    "net/http: request canceled (Client.Timeout exceeded while awaiting headers)",
                ))
            }),
        };
        let response = sent.map_err(|error| unreachable(&access.server, &error))?;
        self.warnings(&response)?;
        if response.status().is_success() || response.status() == http::StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await?.to_bytes();
        let mut status: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        if status["kind"] != "Status" {
            status = without_status(code, String::from_utf8_lossy(&bytes).trim());
        }
        status["code"] = code.into();
        Err(Failure::Server(status))
    }

    fn warnings(&self, response: &http::Response<Body>) -> Outcome {
        let mut warned = false;
        for warning in response.headers().get_all(http::header::WARNING) {
            let text = warning.to_str().unwrap_or_default();
            let said = text.splitn(3, ' ').nth(2).unwrap_or(text);
            let said: String = serde_json::from_str(said).unwrap_or_else(|_| said.to_owned());
            eprintln!("Warning: {said}");
            warned = true;
        }
        if warned && self.parsed.on("warnings-as-errors") {
            return Err(Failure::new("1 warning received"));
        }
        Ok(())
    }

    /// Sends a request and reads its answer.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        content_type: Option<&str>,
        body: Bytes,
    ) -> Outcome<Value> {
        let bytes = self.send(method, path, accept, content_type, body).await?.into_body().collect().await?.to_bytes();
        serde_json::from_slice(&bytes).map_err(|error| Failure::new(format!("the server's answer is no JSON: {error}")))
    }

    /// Reads an answer in the form that `accept` names.
    pub async fn get_as(&self, path: &str, accept: &str) -> Outcome<Value> {
        self.call(Method::GET, path, accept, None, Bytes::new()).await
    }

    /// Reads an object or a list.
    pub async fn get(&self, path: &str) -> Outcome<Value> {
        self.get_as(path, JSON).await
    }

    /// Reads an answer as text.
    pub async fn text(&self, path: &str) -> Outcome<String> {
        let response = self.send(Method::GET, path, "application/json, */*", None, Bytes::new()).await?;
        let bytes = response.into_body().collect().await?.to_bytes();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Posts an object.
    pub async fn post(&self, path: &str, object: &Value) -> Outcome<Value> {
        self.call(Method::POST, path, JSON, Some(JSON), object.to_string().into()).await
    }

    /// Replaces an object.
    pub async fn put(&self, path: &str, object: &Value) -> Outcome<Value> {
        self.call(Method::PUT, path, JSON, Some(JSON), object.to_string().into()).await
    }

    /// Patches an object; `form` is `merge-patch`, `strategic-merge-patch`, `json-patch` or `apply-patch`.
    pub async fn patch(&self, path: &str, form: &str, patch: &Value) -> Outcome<Value> {
        let suffix = if form == "apply-patch" { "yaml" } else { "json" };
        let content_type = format!("application/{form}+{suffix}");
        self.call(Method::PATCH, path, JSON, Some(&content_type), patch.to_string().into()).await
    }

    /// Deletes what is at a path.
    pub async fn delete(&self, path: &str, options: &Value) -> Outcome<Value> {
        self.call(Method::DELETE, path, JSON, Some(JSON), options.to_string().into()).await
    }
}

/// The refusal of a server that sent no Status, by its code.
fn without_status(code: u16, body: &str) -> Value {
    let (reason, message) = match code {
        401 => ("Unauthorized", "the server has asked for the client to provide credentials".to_owned()),
        403 => ("Forbidden", body.to_owned()),
        404 => ("NotFound", "the server could not find the requested resource".into()),
        405 => ("MethodNotAllowed", "the server does not allow this method on the requested resource".into()),
        406 => {
            ("NotAcceptable", "the server was unable to respond with a content type that the client supports".into())
        }
        409 => ("Conflict", "the server reported a conflict".into()),
        429 => {
            ("TooManyRequests", "the server has received too many requests and has asked us to try again later".into())
        }
        500..=502 => {
            let said = crate::value::quoted(body);
            ("InternalError", format!("an error on the server ({said}) has prevented the request from succeeding"))
        }
        503 => ("ServiceUnavailable", "the server is currently unable to handle the request".into()),
        504 => (
            "Timeout",
            "the server was unable to return a response in the time allotted, but may still be processing the request"
                .into(),
        ),
        _ => ("", body.to_owned()),
    };
    serde_json::json!({"reason": reason, "message": message})
}

fn unreachable(server: &str, error: &std::io::Error) -> Failure {
    let text = error.to_string();
    let host = server.split("://").nth(1).unwrap_or(server);
    if text.contains("onnection refused") {
        return Failure::Plain(format!(
            "The connection to the server {host} was refused - did you specify the right host or port?"
        ));
    }
    Failure::Plain(format!(
        "Unable to connect to the server: {}",
        text.trim_start_matches(server).trim_start_matches(": ")
    ))
}

/// Percent-encodes a query's value or a path's segment.
pub fn encode(text: &str) -> String {
    let keep = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~');
    text.bytes().map(|b| if keep(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// `?a=b&c=d` of the pairs that have a value.
pub fn query(pairs: &[(&str, &str)]) -> String {
    let set: Vec<String> =
        pairs.iter().filter(|(_, v)| !v.is_empty()).map(|(k, v)| format!("{k}={}", encode(v))).collect();
    if set.is_empty() { String::new() } else { format!("?{}", set.join("&")) }
}
