//! Joining a cluster: from a token and the hash of the CA's key to a certificate of the node's own.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use keelson_pki::Issued;
use keelson_pki::{Identity, client_config, client_config_pinned, public_key_hash};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::net::TcpStream;

/// Where the cluster's public facts are.
const CLUSTER_INFO: &str = "/api/v1/namespaces/kube-public/configmaps/cluster-info";
/// The requests for certificates.
const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
/// Signs certificates by which nodes call the API server.
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Signs certificates of the agents' own servers.
const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";
/// The file with the hash of the CA with which the node joined.
const JOINED_WITH: &str = "ca-hash";
/// Longest answer that is read.
const MAX_ANSWER: usize = 1 << 20;
/// Longest wait for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How often it is looked whether a certificate is there.
const POLL: Duration = Duration::from_millis(500);
/// How often that is done before giving up.
const POLLS: u32 = 240;

/// Why a node could not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The server URL is not one.
    #[error("{0:?} is not the URL of a server: it looks like https://HOST:6443")]
    Url(String),
    /// No server answered.
    #[error("no server could be reached: {0}")]
    Unreachable(String),
    /// The hash of the CA is malformed, or the cluster has another CA.
    #[error("the CA hash does not fit: {0}")]
    Hash(String),
    /// The server does not know the token.
    #[error("the server refused the join token (it may be mistyped or expired; make one with `keelson token create`)")]
    Token,
    /// The server refused for another reason.
    #[error("the server refused {what}: {message}")]
    Refused {
        /// What was asked.
        what: &'static str,
        /// The answer.
        message: String,
    },
    /// The request for a certificate was denied.
    #[error("the request for a certificate was denied: {0}")]
    Denied(String),
    /// Nobody signed the request.
    #[error("certificate request {0} was not signed in time; see `kubectl get csr`")]
    Unsigned(String),
    /// The answer makes no sense.
    #[error("unexpected answer of the server: {0}")]
    Answer(String),
    /// A key, certificate or TLS problem.
    #[error(transparent)]
    Pki(#[from] keelson_pki::Error),
    /// The credentials could not be kept.
    #[error("cannot use {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
}

/// What a node needs to call its servers.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// URLs of the servers.
    pub servers: Vec<String>,
    /// The cluster's CA.
    pub ca: String,
    /// The node's client certificate.
    pub client: Issued,
}

/// Joins the cluster as `node`, or takes the credentials of an earlier join from `data_dir`.
pub async fn join(
    servers: &[String],
    token: &str,
    ca_hash: &str,
    node: &str,
    data_dir: &Path,
) -> Result<Credentials, JoinError> {
    if let Some(client) = load(data_dir, node, "client")? {
        let ca = read(&data_dir.join("ca.crt"))?;
        // The CA may have changed since: then the hash of the join is remembered beside it.
        let remembered = read(&data_dir.join(JOINED_WITH))?.is_some_and(|h| h.trim().eq_ignore_ascii_case(ca_hash));
        if let Some(ca) = ca.filter(|ca| remembered || keelson_pki::has_key_hash(ca, ca_hash)) {
            return Ok(Credentials { servers: servers.to_vec(), ca, client });
        }
    }
    if keelson_pki::token::parse(token).is_none() {
        return Err(JoinError::Token);
    }
    let pinned = client_config_pinned(ca_hash).map_err(|e| JoinError::Hash(e.to_string()))?;
    let info = Caller { servers, tls: Arc::new(pinned), token: None }.get(CLUSTER_INFO, "the cluster's facts").await?;
    let ca = cluster_ca(&info)?;
    if !keelson_pki::has_key_hash(&ca, ca_hash) {
        let hash = public_key_hash(&ca)?;
        return Err(JoinError::Hash(format!("the cluster's CA has {hash}, not {ca_hash}")));
    }
    let tls = Arc::new(client_config(&ca, Identity::None)?);
    let caller = Caller { servers, tls, token: Some(token) };
    let usages = ["digital signature", "client auth"];
    let client = request(&caller, node, CLIENT_SIGNER, &usages, &[]).await?;
    save(&data_dir.join("ca.crt"), &ca)?;
    save(&data_dir.join(JOINED_WITH), ca_hash)?;
    store(data_dir, "client", &client)?;
    Ok(Credentials { servers: servers.to_vec(), ca, client })
}

/// Gets a certificate for the agent's own server, valid for `names` (host names and addresses).
pub async fn serving(
    credentials: &Credentials,
    node: &str,
    names: &[String],
    data_dir: &Path,
) -> Result<Issued, JoinError> {
    if let Some(issued) = load(data_dir, node, "serving")? {
        return Ok(issued);
    }
    let tls = Arc::new(client_config(&credentials.ca, Identity::Certificate(&credentials.client))?);
    let caller = Caller { servers: &credentials.servers, tls, token: None };
    let issued = request(&caller, node, SERVING_SIGNER, &["digital signature", "server auth"], names).await?;
    store(data_dir, "serving", &issued)?;
    Ok(issued)
}

fn own_caller(credentials: &Credentials) -> Result<Caller<'_>, JoinError> {
    let tls = Arc::new(client_config(&credentials.ca, Identity::Certificate(&credentials.client))?);
    Ok(Caller { servers: &credentials.servers, tls, token: None })
}

/// The CAs of the cluster as its servers name them now.
pub async fn current_ca(credentials: &Credentials) -> Result<String, JoinError> {
    cluster_ca(&own_caller(credentials)?.get(CLUSTER_INFO, "the cluster's facts").await?)
}

/// Keeps the CAs.
pub fn store_ca(data_dir: &Path, ca: &str) -> Result<(), JoinError> {
    save(&data_dir.join("ca.crt"), ca)
}

/// Gets a new certificate for calling the servers, with the present one.
pub async fn renew_client(credentials: &Credentials, node: &str, data_dir: &Path) -> Result<Issued, JoinError> {
    let usages = ["digital signature", "client auth"];
    let issued = request(&own_caller(credentials)?, node, CLIENT_SIGNER, &usages, &[]).await?;
    store(data_dir, "client", &issued)?;
    Ok(issued)
}

/// Gets a new certificate for the agent's own server.
pub async fn renew_serving(
    credentials: &Credentials,
    node: &str,
    names: &[String],
    data_dir: &Path,
) -> Result<Issued, JoinError> {
    let usages = ["digital signature", "server auth"];
    let issued = request(&own_caller(credentials)?, node, SERVING_SIGNER, &usages, names).await?;
    store(data_dir, "serving", &issued)?;
    Ok(issued)
}

/// The credentials in a kubeconfig, if it holds a client certificate: with them a serving certificate can be asked for.
pub fn credentials_of(kubeconfig: &Path) -> Result<Option<Credentials>, JoinError> {
    let Some(text) = read(kubeconfig)? else { return Ok(None) };
    let malformed = |e: &dyn std::fmt::Display| JoinError::Answer(format!("{}: {e}", kubeconfig.display()));
    let config: Value = serde_saphyr::from_str(&text).map_err(|e| malformed(&e))?;
    let named = |list: &str, name: &Value| -> Value {
        let mut entries = config[list].as_array().into_iter().flatten();
        entries.find(|e| e["name"] == *name).cloned().unwrap_or_default()
    };
    let context = &named("contexts", &config["current-context"])["context"];
    let (cluster, user) =
        (&named("clusters", &context["cluster"])["cluster"], &named("users", &context["user"])["user"]);
    let data = |of: &Value, key: &str| -> Result<Option<String>, JoinError> {
        if let Some(encoded) = of[format!("{key}-data")].as_str() {
            let bytes = STANDARD.decode(encoded).map_err(|e| malformed(&e))?;
            return String::from_utf8(bytes).map(Some).map_err(|e| malformed(&e));
        }
        of[key].as_str().map_or(Ok(None), |path| read(Path::new(path)))
    };
    let parts = (
        cluster["server"].as_str(),
        data(cluster, "certificate-authority")?,
        data(user, "client-certificate")?,
        data(user, "client-key")?,
    );
    let (Some(server), Some(ca), Some(certificate), Some(key)) = parts else { return Ok(None) };
    Ok(Some(Credentials { servers: vec![server.into()], ca, client: Issued { certificate, key } }))
}

/// The CA of the kubeconfig in `cluster-info`.
fn cluster_ca(info: &Value) -> Result<String, JoinError> {
    let wrong = |what: &str| JoinError::Answer(format!("cluster-info: {what}"));
    let text = info["data"]["kubeconfig"].as_str().ok_or_else(|| wrong("no kubeconfig"))?;
    let config: Value = serde_json::from_str(text).map_err(|_| wrong("the kubeconfig is not JSON"))?;
    let encoded = config["clusters"][0]["cluster"]["certificate-authority-data"].as_str();
    let decoded = STANDARD.decode(encoded.ok_or_else(|| wrong("no CA"))?).map_err(|_| wrong("the CA is not base64"))?;
    String::from_utf8(decoded).map_err(|_| wrong("the CA is not PEM"))
}

/// Creates a certificate signing request and waits for the certificate.
async fn request(
    caller: &Caller<'_>,
    node: &str,
    signer: &str,
    usages: &[&str],
    names: &[String],
) -> Result<Issued, JoinError> {
    let (csr, key) = keelson_pki::certificate_request(&format!("system:node:{node}"), &["system:nodes"], names)?;
    let body = json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": {"generateName": "node-csr-"},
        "spec": {"request": STANDARD.encode(csr), "signerName": signer, "usages": usages},
    });
    let made = caller.call(Method::POST, REQUESTS, Some(&body), "a certificate request").await?;
    let name = made["metadata"]["name"].as_str().ok_or_else(|| JoinError::Answer("a request without name".into()))?;
    let path = format!("{REQUESTS}/{name}");
    for _ in 0..POLLS {
        let now = caller.get(&path, "the certificate request").await?;
        if let Some(encoded) = now["status"]["certificate"].as_str() {
            let pem = STANDARD.decode(encoded).ok().and_then(|b| String::from_utf8(b).ok());
            let certificate = pem.ok_or_else(|| JoinError::Answer("the certificate is not PEM".into()))?;
            return Ok(Issued { certificate, key });
        }
        let conditions = now["status"]["conditions"].as_array().map_or(&[][..], Vec::as_slice);
        if let Some(no) = conditions.iter().find(|c| matches!(c["type"].as_str(), Some("Denied" | "Failed"))) {
            return Err(JoinError::Denied(no["message"].as_str().unwrap_or("no reason given").into()));
        }
        tokio::time::sleep(POLL).await;
    }
    Err(JoinError::Unsigned(name.into()))
}

/// Calls the first server that answers.
struct Caller<'a> {
    servers: &'a [String],
    tls: Arc<ClientConfig>,
    token: Option<&'a str>,
}

impl Caller<'_> {
    async fn get(&self, path: &str, what: &'static str) -> Result<Value, JoinError> {
        self.call(Method::GET, path, None, what).await
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        what: &'static str,
    ) -> Result<Value, JoinError> {
        let mut failures = Vec::new();
        for server in self.servers {
            let sent = tokio::time::timeout(ANSWER_TIMEOUT, self.send(server, method.clone(), path, body)).await;
            match sent.unwrap_or_else(|_| Err(JoinError::Unreachable("no answer in time".into()))) {
                Err(JoinError::Unreachable(why)) => failures.push(format!("{server}: {why}")),
                Err(e) => return Err(e),
                Ok((status, answer)) if status.is_success() => return Ok(answer),
                Ok((StatusCode::UNAUTHORIZED, _)) if self.token.is_some() => return Err(JoinError::Token),
                Ok((status, answer)) => {
                    let message = answer["message"].as_str().unwrap_or_default();
                    return Err(JoinError::Refused { what, message: format!("{status} {message}") });
                }
            }
        }
        Err(JoinError::Unreachable(failures.join("; ")))
    }

    async fn send(
        &self,
        server: &str,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Value), JoinError> {
        let unreachable = |e: &dyn std::fmt::Display| JoinError::Unreachable(e.to_string());
        let (host, port) = host_and_port(server)?;
        let name = ServerName::try_from(host.clone()).map_err(|_| JoinError::Url(server.into()))?;
        let tcp = TcpStream::connect((host.as_str(), port)).await.map_err(|e| unreachable(&e))?;
        let tls = tokio_rustls::TlsConnector::from(self.tls.clone());
        let stream = tls.connect(name, tcp).await.map_err(|e| match e.to_string() {
            text if text.contains("key hash") => JoinError::Hash(text),
            text => JoinError::Unreachable(text),
        })?;
        let io = hyper_util::rt::TokioIo::new(stream);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.map_err(|e| unreachable(&e))?;
        let connection = tokio::spawn(connection);
        let mut request = http::Request::builder().method(method).uri(path).header("host", format!("{host}:{port}"));
        request = request.header("accept", "application/json").header("content-type", "application/json");
        if let Some(token) = self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let bytes = body.map(|b| Bytes::from(b.to_string())).unwrap_or_default();
        let request = request.body(Full::new(bytes)).map_err(|_| JoinError::Token)?;
        let response = sender.send_request(request).await.map_err(|e| unreachable(&e))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(|e| unreachable(&e))?;
        connection.abort();
        Ok((status, serde_json::from_slice(&body.to_bytes()).unwrap_or(Value::Null)))
    }
}

fn host_and_port(server: &str) -> Result<(String, u16), JoinError> {
    let wrong = || JoinError::Url(server.into());
    let uri: http::Uri = server.parse().map_err(|_| wrong())?;
    if uri.scheme_str() != Some("https") {
        return Err(wrong());
    }
    let host = uri.host().ok_or_else(wrong)?.trim_matches(['[', ']']).to_owned();
    Ok((host, uri.port_u16().unwrap_or(443)))
}

fn read(path: &Path) -> Result<Option<String>, JoinError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(JoinError::File { path: path.into(), source }),
    }
}

/// Writes a file that only its owner reads, whole or not at all.
fn save(path: &Path, text: &str) -> Result<(), JoinError> {
    let write = || {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let new = path.with_extension("new");
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    };
    write().map_err(|source| JoinError::File { path: path.into(), source })
}

/// Certificate and key go into one file, so that they always fit each other.
fn store(data_dir: &Path, what: &str, issued: &Issued) -> Result<(), JoinError> {
    let text = json!({"certificate": issued.certificate, "key": issued.key}).to_string();
    save(&data_dir.join(format!("{what}.json")), &text)
}

/// The stored certificate if it is there and names this node. One that has expired is refused by TLS; it is dropped
/// here as malformed ones are.
fn load(data_dir: &Path, node: &str, what: &str) -> Result<Option<Issued>, JoinError> {
    let Some(text) = read(&data_dir.join(format!("{what}.json")))? else { return Ok(None) };
    let value: Value = serde_json::from_str(&text).unwrap_or_default();
    let (Some(certificate), Some(key)) = (value["certificate"].as_str(), value["key"].as_str()) else {
        return Ok(None);
    };
    let issued = Issued { certificate: certificate.into(), key: key.into() };
    let usable = is_of(&issued, node) && client_config(&issued.certificate, Identity::Certificate(&issued)).is_ok();
    Ok(usable.then_some(issued))
}

fn is_of(issued: &Issued, node: &str) -> bool {
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    let der = CertificateDer::from_pem_slice(issued.certificate.as_bytes());
    let subject = der.ok().and_then(|der| keelson_pki::subject_of(&der).ok());
    subject.is_some_and(|(name, _)| name == format!("system:node:{node}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn credentials_are_kept_for_the_node_they_name() {
        let dir = tempfile::tempdir().unwrap();
        let ca = keelson_pki::Authority::create("ca").unwrap();
        let issued = ca.issue_client("system:node:a", &["system:nodes"]).unwrap();
        store(dir.path(), "client", &issued).unwrap();
        assert_eq!(load(dir.path(), "a", "client").unwrap().unwrap().key, issued.key);
        assert!(load(dir.path(), "b", "client").unwrap().is_none());
        assert!(load(dir.path(), "a", "serving").unwrap().is_none());
        let mode = std::fs::metadata(dir.path().join("client.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn urls_and_cluster_info() {
        assert_eq!(host_and_port("https://[::1]:6443").unwrap(), ("::1".into(), 6443));
        assert_eq!(host_and_port("https://a").unwrap(), ("a".into(), 443));
        assert!(host_and_port("http://a").is_err());
        let config = keelson_pki::kubeconfig("k", "https://a", "PEM", "", keelson_pki::Credential::None);
        assert_eq!(cluster_ca(&json!({"data": {"kubeconfig": config}})).unwrap(), "PEM");
        assert!(cluster_ca(&json!({"data": {}})).is_err());
    }

    #[tokio::test]
    async fn errors_say_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let servers = ["https://127.0.0.1:1".to_owned()];
        let hash = format!("sha256:{}", "0".repeat(64));
        let token = keelson_pki::token::generate();
        let try_join = |token: String, hash: String| {
            let servers = servers.clone();
            let dir = dir.path().to_owned();
            async move { join(&servers, &token, &hash, "n", &dir).await.unwrap_err() }
        };
        assert!(matches!(try_join("x".into(), hash.clone()).await, JoinError::Token));
        assert!(matches!(try_join(token.clone(), "x".into()).await, JoinError::Hash(_)));
        assert!(matches!(try_join(token, hash).await, JoinError::Unreachable(_)));
    }
}
