//! `proxy`: the server's API on a port of this host, with this kubeconfig's rights.

use std::convert::Infallible;
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use keelson_client::{Body, Transport, connection};
use regex::Regex;
use tokio::net::{TcpListener, UnixListener};

use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, Parsed, switch, text};
use crate::session::Session;
use crate::socket;

/// Flags of `proxy`.
pub const FLAGS: &[&[Flag]] = &[&[
    text(
        "accept-hosts",
        r"^localhost$,^127\.0\.0\.1$,^\[::1\]$",
        "Regular expression for hosts that the proxy should accept.",
    ),
    text("accept-paths", "^.*", "Regular expression for paths that the proxy should accept."),
    text("address", "127.0.0.1", "The IP address on which to serve on."),
    text("api-prefix", "/", "Prefix to serve the proxied API under."),
    switch(
        "append-server-path",
        "If true, enables automatic path appending of the kube context server path to each request.",
    ),
    switch(
        "disable-filter",
        "If true, disable request filtering in the proxy. This is dangerous, and can leave you vulnerable to XSRF attacks, when used with an accessible port.",
    ),
    text("keepalive", "0s", "keepalive specifies the keep-alive period for an active network connection."),
    text("port", "8001", "The port on which to run the proxy. Set to 0 to pick a random port.").short('p'),
    text("reject-methods", "^$", "Regular expression for HTTP methods that the proxy should reject."),
    text(
        "reject-paths",
        "^/api/.*/pods/.*/exec,^/api/.*/pods/.*/attach",
        "Regular expression for paths that the proxy should reject.",
    ),
    text("unix-socket", "", "Unix socket on which to run the proxy.").short('u'),
    text("www", "", "Also serve static files from the given directory under the specified prefix.").short('w'),
    text("www-prefix", "/static/", "Prefix to serve static files under, if static file directory is specified.")
        .short('P'),
]];

/// Bytes of a request's body; objects are far smaller.
const MAX_BODY: usize = 16 << 20;

/// Which requests are let through.
struct Filter {
    hosts: Vec<Regex>,
    paths: Vec<Regex>,
    not_paths: Vec<Regex>,
    not_methods: Vec<Regex>,
}

impl Filter {
    fn of(parsed: &Parsed) -> Outcome<Option<Self>> {
        let all = |flag: &str| {
            let one = |text: &str| Regex::new(text).map_err(|e| Failure::new(format!("--{flag}: {e}")));
            parsed.text(flag).split(',').filter(|t| !t.is_empty()).map(one).collect::<Outcome<Vec<_>>>()
        };
        if parsed.on("disable-filter") {
            if parsed.text("unix-socket").is_empty() {
                eprintln!("Request filter disabled, your proxy is vulnerable to XSRF attacks, please be cautious");
            }
            return Ok(None);
        }
        Ok(Some(Self {
            hosts: all("accept-hosts")?,
            paths: all("accept-paths")?,
            not_paths: all("reject-paths")?,
            not_methods: all("reject-methods")?,
        }))
    }

    fn accepts(&self, method: &str, host: &str, path: &str) -> bool {
        let any = |list: &[Regex], text: &str| list.iter().any(|r| r.is_match(text));
        let host = match host.rsplit_once(':') {
            Some((name, port)) if port.chars().all(|c| c.is_ascii_digit()) => name,
            _ => host,
        };
        let refused = any(&self.not_paths, path) || any(&self.not_methods, method);
        !refused && any(&self.paths, path) && any(&self.hosts, host)
    }
}

/// What is served where.
struct Layout {
    filter: Option<Filter>,
    prefix: String,
    files: Option<(String, PathBuf)>,
}

/// Runs `proxy`.
pub async fn proxy(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    if !parsed.text("unix-socket").is_empty() && parsed.is_set("port") {
        return Err(Failure::new("cannot set --unix-socket and --port at the same time"));
    }
    let slashes = |text: &str| format!("/{}/", text.trim_matches('/')).replace("//", "/");
    let files = match parsed.text("www") {
        "" => None,
        dir => Some((slashes(parsed.text("www-prefix")), PathBuf::from(dir))),
    };
    let layout = Layout { filter: Filter::of(parsed)?, prefix: slashes(parsed.text("api-prefix")), files };
    session.access()?;
    let mut open = futures::stream::FuturesUnordered::new();
    let listener = Listener::open(parsed).await?;
    println!("Starting to serve on {}", listener.address()?);
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted?,
            Some(()) = futures::StreamExt::next(&mut open), if !open.is_empty() => continue,
        };
        let layout = &layout;
        open.push(async move {
            let service = hyper::service::service_fn(move |request| async move {
                Ok::<_, Infallible>(answer(session, layout, request).await)
            });
            let served = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // A connection that breaks is the client's affair.
            let _ = served.with_upgrades().await;
        });
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, String),
}

impl Listener {
    async fn open(parsed: &Parsed) -> Outcome<Self> {
        let socket = parsed.text("unix-socket");
        if !socket.is_empty() {
            return Ok(Self::Unix(UnixListener::bind(socket)?, socket.to_owned()));
        }
        let port = u16::try_from(parsed.number("port")?)
            .map_err(|_| Failure::new(format!("listen tcp: address {}: invalid port", parsed.text("port"))))?;
        let address = parsed.text("address");
        let bound = TcpListener::bind((address, port)).await;
        bound.map(Self::Tcp).map_err(|e| {
            let why = crate::failure::reason(&e);
            Failure::new(format!("listen tcp {address}:{port}: bind: {why}"))
        })
    }

    fn address(&self) -> Outcome<String> {
        match self {
            Self::Tcp(listener) => Ok(listener.local_addr()?.to_string()),
            Self::Unix(_, path) => Ok(path.clone()),
        }
    }

    async fn accept(&self) -> std::io::Result<Box<dyn connection::Stream>> {
        match self {
            Self::Tcp(listener) => Ok(Box::new(listener.accept().await?.0)),
            Self::Unix(listener, _) => Ok(Box::new(listener.accept().await?.0)),
        }
    }
}

fn said(status: StatusCode, text: String) -> Response<Body> {
    let body = Full::new(Bytes::from(text)).map_err(|never: Infallible| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

async fn answer(session: &Session, layout: &Layout, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    if let Some((prefix, dir)) = &layout.files
        && let Some(rest) = path.strip_prefix(prefix.as_str())
    {
        return file(dir, rest);
    }
    let host = request.headers().get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or_default();
    if let Some(filter) = &layout.filter
        && !filter.accepts(request.method().as_str(), host, &path)
    {
        return said(StatusCode::FORBIDDEN, "Forbidden\n".into());
    }
    let Some(rest) = path.strip_prefix(layout.prefix.trim_end_matches('/')) else {
        return said(StatusCode::NOT_FOUND, "404 page not found\n".into());
    };
    let query = request.uri().query().map_or(String::new(), |q| format!("?{q}"));
    let target = format!("{}{query}", if rest.is_empty() { "/" } else { rest });
    let passed = match request.headers().contains_key(header::UPGRADE) {
        true => upgrade(session, request, &target).await,
        false => pass(session, request, &target).await,
    };
    passed.unwrap_or_else(|error| said(StatusCode::BAD_GATEWAY, format!("{error}\n")))
}

/// A file below the directory; never one outside of it.
fn file(dir: &Path, rest: &str) -> Response<Body> {
    let inner: PathBuf = Path::new(rest).components().filter(|c| matches!(c, Component::Normal(_))).collect();
    let mut path = dir.join(inner);
    if path.is_dir() {
        path.push("index.html");
    }
    match std::fs::read(&path) {
        Ok(bytes) => {
            let body = Full::new(Bytes::from(bytes)).map_err(|never: Infallible| match never {}).boxed_unsync();
            Response::new(body)
        }
        Err(_) => said(StatusCode::NOT_FOUND, "404 page not found\n".into()),
    }
}

/// The headers that go on: not those of this connection alone, nor another identity.
fn headers(from: &HeaderMap, upgrades: bool) -> HeaderMap {
    let own = |name: &header::HeaderName| {
        matches!(name.as_str(), "host" | "authorization" | "content-length" | "transfer-encoding" | "keep-alive")
            || (!upgrades && matches!(name.as_str(), "connection" | "upgrade"))
    };
    from.iter().filter(|(name, _)| !own(name)).map(|(n, v)| (n.clone(), v.clone())).collect()
}

async fn pass(session: &Session, request: Request<Incoming>, target: &str) -> Outcome<Response<Body>> {
    let (parts, body) = request.into_parts();
    let body = Limited::new(body, MAX_BODY).collect().await.map_err(|e| Failure::new(e.to_string()))?.to_bytes();
    let mut onward = Request::builder().method(parts.method).uri(target);
    if let Some(all) = onward.headers_mut() {
        all.extend(headers(&parts.headers, false));
    }
    for (name, value) in &session.access()?.impersonate {
        onward = onward.header(name, value);
    }
    let onward = onward.body(body).map_err(|e| Failure::new(e.to_string()))?;
    let mut response = session.transport()?.call(onward).await?;
    for name in [header::TRANSFER_ENCODING, header::CONNECTION] {
        response.headers_mut().remove(name);
    }
    *response.version_mut() = http::Version::HTTP_11;
    Ok(response)
}

/// Joins the client to a stream of the server's.
async fn upgrade(session: &Session, mut request: Request<Incoming>, target: &str) -> Outcome<Response<Body>> {
    let (stream, authority, _) = socket::dial(session).await?;
    let mut onward = Request::builder().method(request.method().clone()).uri(target).header(header::HOST, authority);
    if let Some(all) = onward.headers_mut() {
        all.extend(headers(request.headers(), true));
    }
    for (name, value) in session.identity()? {
        onward = onward.header(name, value);
    }
    let onward = onward.body(Empty::<Bytes>::new()).map_err(|e| Failure::new(e.to_string()))?;
    let mut response = connection::exchange(stream, onward).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let (client, server) = (hyper::upgrade::on(&mut request), hyper::upgrade::on(&mut response));
        tokio::spawn(async move {
            if let (Ok(client), Ok(server)) = tokio::join!(client, server) {
                connection::join(TokioIo::new(client), TokioIo::new(server)).await;
            }
        });
    }
    Ok(response.map(|body| body.map_err(std::io::Error::other).boxed_unsync()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_host_may_ask_and_not_for_everything() {
        let words: Vec<String> = Vec::new();
        let parsed = Parsed::of("kubectl proxy", &words, FLAGS, true).unwrap();
        let filter = Filter::of(&parsed).unwrap().unwrap();
        for (method, host, path, expected) in [
            ("GET", "localhost:8001", "/api/v1/pods", true),
            ("POST", "127.0.0.1:8001", "/api/v1/pods", true),
            ("GET", "[::1]:8001", "/version", true),
            ("GET", "evil.example:8001", "/api", false),
            ("GET", "localhost", "/api/v1/namespaces/a/pods/b/exec", false),
            ("GET", "localhost", "/api/v1/namespaces/a/pods/b/log", true),
        ] {
            assert_eq!(filter.accepts(method, host, path), expected, "{host}{path}");
        }
    }
}
