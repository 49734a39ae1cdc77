//! Static pods: those that a directory or a URL of the node's owner describes. They run without the API; there a mirror
//! shows them (`mirror`).
//!
//! Invariant: of two pods with the same name the later one starts only when nothing is left of the earlier one.

mod mirror;
mod parse;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http_body_util::{BodyExt, Full, Limited};
use k8s_openapi::api::core::v1::Pod;

use crate::agent::Agent;
use parse::Source;

pub(crate) use mirror::{is_mirror, key_of};

/// How often the directory is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How often the URL is read.
const READ: Duration = Duration::from_secs(20);
/// Longest wait for the URL's answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest manifest, bytes.
const MAX_MANIFEST: u64 = 4 << 20;
/// Files of the directory that are read at most.
const MAX_FILES: usize = 1000;

/// Where static pods come from.
#[derive(Clone, Debug, Default)]
pub struct Manifests {
    /// A file, or a directory of files.
    pub path: Option<PathBuf>,
    /// An address that is read again and again.
    pub url: Option<http::Uri>,
    /// Headers of these requests.
    pub headers: Vec<(String, String)>,
    /// Certificates of the authorities that the address's server is known by (default: the system's).
    pub ca: Option<PathBuf>,
}

/// Where systems keep the authorities that they trust.
const AUTHORITIES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// What tells whether a file changed.
type Print = BTreeMap<PathBuf, (u64, Option<SystemTime>)>;

/// The files of a manifest path with their sizes and times; hidden ones are editors'.
fn prints(path: &Path) -> std::io::Result<Print> {
    let print = |path: PathBuf| -> std::io::Result<(PathBuf, (u64, Option<SystemTime>))> {
        let found = std::fs::metadata(&path)?;
        Ok((path, (found.len(), found.modified().ok())))
    };
    let found = match std::fs::metadata(path) {
        Ok(found) => found,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Print::new()),
        Err(e) => return Err(e),
    };
    if !found.is_dir() {
        return Ok([print(path.to_owned())?].into());
    }
    let mut files = Print::new();
    for entry in std::fs::read_dir(path)?.take(MAX_FILES) {
        let entry = entry?;
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        // A file that goes away meanwhile is not there.
        if let Some((path, print)) = print(entry.path()).ok().filter(|_| !hidden)
            && path.is_file()
        {
            files.insert(path, print);
        }
    }
    Ok(files)
}

/// The pods that the sources describe now, by uid.
#[derive(Default)]
struct Wanted {
    files: HashMap<String, Pod>,
    url: HashMap<String, Pod>,
    /// What the files were when they were read; `None` before.
    print: Option<Print>,
    /// When the URL was read last, and whether it ever was.
    asked: Option<Instant>,
    answered: bool,
}

impl Wanted {
    fn look_at_files(&mut self, path: &Path, node: &str) {
        let print = match prints(path) {
            Ok(print) => print,
            Err(error) => return tracing::warn!(path = %path.display(), %error, "manifests cannot be read"),
        };
        if self.print.as_ref() == Some(&print) {
            return;
        }
        self.files.clear();
        for (file, (size, _)) in &print {
            let text = if *size > MAX_MANIFEST {
                Err(format!("longer than {MAX_MANIFEST} bytes"))
            } else {
                std::fs::read_to_string(file).map_err(|e| e.to_string())
            };
            let source = Source { kind: "file", place: file.display().to_string() };
            match text.and_then(|text| parse::pods(&text, node, &source)) {
                Ok(pods) => self.files.extend(pods),
                Err(why) => tracing::error!(file = source.place, why, "no static pod: correct the manifest"),
            }
        }
        self.print = Some(print);
    }

    async fn look_at_url(&mut self, url: &http::Uri, sources: &Manifests, node: &str) {
        if self.asked.is_some_and(|at| at.elapsed() < READ) {
            return;
        }
        self.asked = Some(Instant::now());
        let source = Source { kind: "http", place: url.to_string() };
        let text = match tokio::time::timeout(PATIENCE, read(url, sources)).await {
            Ok(text) => text,
            Err(_) => Err("no answer in time".to_owned()),
        };
        match text.and_then(|text| parse::pods(&text, node, &source)) {
            Ok(pods) => (self.url, self.answered) = (pods, true),
            // What ran goes on running.
            Err(why) => tracing::warn!(%url, why, "static pods cannot be read"),
        }
    }

    fn all(&self) -> impl Iterator<Item = (&String, &Pod)> {
        self.files.iter().chain(&self.url)
    }
}

/// How to speak TLS to the server of a URL that asks for it.
fn tls(url: &http::Uri, ca: Option<&Path>) -> Result<Option<Arc<rustls::ClientConfig>>, String> {
    if url.scheme_str() != Some("https") {
        return Ok(None);
    }
    let known = || AUTHORITIES.iter().map(Path::new).find(|path| path.exists());
    let path = ca.or_else(known).ok_or("this system has no list of authorities: name one with --manifest-url-ca")?;
    let authorities = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let config = keelson_pki::client_config(&authorities, keelson_pki::Identity::None);
    config.map(|config| Some(Arc::new(config))).map_err(|e| format!("{}: {e}", path.display()))
}

/// Reads a document over HTTP or HTTPS.
async fn read(url: &http::Uri, sources: &Manifests) -> Result<String, String> {
    let host = url.host().ok_or("the URL names no host")?.trim_matches(['[', ']']);
    let tls = tls(url, sources.ca.as_deref())?;
    let port = url.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
    let path = url.path_and_query().map_or("/", |p| p.as_str());
    let stream = keelson_client::connection::connect(host, port, tls);
    let stream = stream.await.map_err(|e| e.to_string())?;
    let authority = url.authority().map_or(host, http::uri::Authority::as_str);
    let mut request = http::Request::get(path).header("host", authority);
    for (name, value) in &sources.headers {
        request = request.header(name, value);
    }
    let request = request.body(Full::<bytes::Bytes>::default());
    let request = request.map_err(|e| e.to_string())?;
    let response = keelson_client::connection::exchange(stream, request).await.map_err(|e| e.to_string())?;
    if response.status() != http::StatusCode::OK {
        return Err(format!("the answer is {}", response.status()));
    }
    let limit = usize::try_from(MAX_MANIFEST).unwrap_or(usize::MAX);
    let body = Limited::new(response.into_body(), limit).collect().await.map_err(|e| e.to_string())?;
    String::from_utf8(body.to_bytes().into()).map_err(|e| e.to_string())
}

/// Follows the sources for ever.
pub(crate) async fn run(agent: Arc<Agent>) {
    let sources = agent.config.manifests.clone();
    let node = agent.config.node_name.clone();
    let mut wanted = Wanted::default();
    let pause = if sources.path.is_some() { LOOK } else { READ };
    loop {
        if let Some(path) = &sources.path {
            wanted.look_at_files(path, &node);
        }
        if let Some(url) = &sources.url {
            wanted.look_at_url(url, &sources, &node).await;
        }
        let complete = (sources.path.is_none() || wanted.print.is_some()) && (sources.url.is_none() || wanted.answered);
        agent.take_static(wanted.all());
        if complete && agent.pods.manifests_read() {
            // Now it is known what is an orphan.
            agent.relist.notify_one();
        }
        if complete {
            agent.remove_orphaned_mirrors().await;
        }
        tokio::select! {
            () = agent.manifests_changed.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: c, image: i}}]}}\n"
        )
    }

    #[test]
    fn a_directory_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let mut wanted = Wanted::default();
        let names = |wanted: &Wanted| -> Vec<String> {
            let mut names: Vec<String> = wanted.all().filter_map(|(_, p)| p.metadata.name.clone()).collect();
            names.sort();
            names
        };
        wanted.look_at_files(&dir.path().join("none"), "n");
        assert!(wanted.print.is_some() && names(&wanted).is_empty());
        for (file, content, expected) in [
            ("a.yaml", pod("a"), vec!["a-n"]),
            (".hidden.yaml", pod("h"), vec!["a-n"]),
            ("bad.yaml", "kind: [".into(), vec!["a-n"]),
            ("b.yaml", pod("b") + "\n# longer", vec!["a-n", "b-n"]),
            ("a.yaml", pod("other") + "\n", vec!["b-n", "other-n"]),
        ] {
            std::fs::write(dir.path().join(file), content).unwrap();
            wanted.look_at_files(dir.path(), "n");
            assert_eq!(names(&wanted), expected, "{file}");
        }
        std::fs::remove_file(dir.path().join("b.yaml")).unwrap();
        wanted.look_at_files(dir.path(), "n");
        assert_eq!(names(&wanted), ["other-n"]);
    }

    #[tokio::test]
    async fn a_server_is_read_over_tls() {
        use http_body_util::Full;
        let authority = keelson_pki::Authority::create("test").unwrap();
        let issued = authority.issue_server("localhost", &["localhost".into(), "127.0.0.1".into()]).unwrap();
        let slot = keelson_pki::CertificateSlot::new(&issued).unwrap();
        let acceptor =
            tokio_rustls::TlsAcceptor::from(keelson_pki::server_config(slot, &authority.certificate()).unwrap());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url: http::Uri = format!("https://{}/pods?a=b", listener.local_addr().unwrap()).parse().unwrap();
        let server = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                let answer = hyper::service::service_fn(|request: http::Request<hyper::body::Incoming>| async move {
                    let asked = format!("{} {:?}", request.uri(), request.headers().get("x-key"));
                    Ok::<_, std::convert::Infallible>(http::Response::new(Full::new(bytes::Bytes::from(asked))))
                });
                let stream = hyper_util::rt::TokioIo::new(stream);
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(stream, answer).await;
            }
        });
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("ca.crt");
        std::fs::write(&ca, &*authority.certificate()).unwrap();
        let mut sources =
            Manifests { headers: vec![("x-key".into(), "k".into())], ca: Some(ca), ..Manifests::default() };
        assert_eq!(read(&url, &sources).await.unwrap(), "/pods?a=b Some(\"k\")");
        let other = dir.path().join("other.crt");
        std::fs::write(&other, &*keelson_pki::Authority::create("other").unwrap().certificate()).unwrap();
        sources.ca = Some(other);
        assert!(read(&url, &sources).await.is_err(), "a server of another authority");
        server.abort();
    }
}
