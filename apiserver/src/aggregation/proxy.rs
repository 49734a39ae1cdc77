//! Hands a request on to the server behind an APIService; what comes back, streams and upgrades too, goes to the client.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::upgrade::OnUpgrade;
use keelson_client::{Body, connection};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;

use super::Remote;
use crate::access::UserInfo;
use crate::audit::Peer;
use crate::{ApiServer, body, streams};

/// A connection must be made, and its TLS handshake done, within this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A request that is handed on.
pub struct Passed<'a> {
    pub method: &'a Method,
    pub headers: &'a HeaderMap,
    /// Path and query as they came.
    pub path: &'a str,
    pub body: Bytes,
    pub peer: Option<Peer>,
}

/// Answers a request from the server behind `row`.
pub async fn serve(
    server: &ApiServer,
    row: &Remote,
    user: &UserInfo,
    request: Passed<'_>,
    upgrade: Option<OnUpgrade>,
) -> Response<Body> {
    if !row.available {
        return body::text(503, "service unavailable\n");
    }
    match send(server, row, user, request, upgrade).await {
        Ok(response) => response,
        Err(why) => {
            tracing::debug!(api_service = row.name(), %why, "a request could not be handed on");
            body::text(503, format!("error trying to reach service: {why}\n"))
        }
    }
}

/// Sends a request to the server behind `row` as `user`.
pub async fn send(
    server: &ApiServer,
    row: &Remote,
    user: &UserInfo,
    request: Passed<'_>,
    upgrade: Option<OnUpgrade>,
) -> Result<Response<Body>, String> {
    let stream = match tokio::time::timeout(CONNECT_TIMEOUT, connect(server, row)).await {
        Ok(stream) => stream?,
        Err(_) => return Err("i/o timeout".into()),
    };
    let mut asked = Request::builder().method(request.method).uri(request.path);
    if let Some(headers) = asked.headers_mut() {
        *headers = streams::passed_on(request.headers, upgrade.is_some());
        identify(headers, user);
        forwarded(headers, &request);
        let host = format!("{}.{}.svc:{}", row.service, row.namespace, row.port);
        headers.insert(header::HOST, host.parse().map_err(|_| "the service has no name".to_owned())?);
    }
    let asked = asked.body(Full::new(request.body)).map_err(|e| e.to_string())?;
    let mut response = connection::exchange(stream, asked).await.map_err(|e| e.to_string())?;
    if response.status() == http::StatusCode::SWITCHING_PROTOCOLS {
        let Some(client) = upgrade else { return Err("the service changed the protocol unasked".into()) };
        let backend = hyper::upgrade::on(&mut response);
        tokio::spawn(streams::join_upgraded(client, backend));
        let mut switched = Response::new(body::full(Bytes::new()));
        *switched.status_mut() = response.status();
        *switched.headers_mut() = std::mem::take(response.headers_mut());
        return Ok(switched);
    }
    let (mut parts, incoming) = response.into_parts();
    for name in [header::CONNECTION, header::TRANSFER_ENCODING, HeaderName::from_static("keep-alive")] {
        parts.headers.remove(name);
    }
    Ok(Response::from_parts(parts, incoming.map_err(std::io::Error::other).boxed_unsync()))
}

async fn connect(server: &ApiServer, row: &Remote) -> Result<Box<dyn connection::Stream>, String> {
    let tls = row.tls.clone()?;
    let address = server.aggregated.hooks.backend(&row.namespace, &row.service, row.port)?;
    let tcp = TcpStream::connect(&address).await.map_err(|e| {
        let refused = e.kind() == std::io::ErrorKind::ConnectionRefused;
        let why = if refused { "connect: connection refused".into() } else { e.to_string() };
        format!("dial tcp {address}: {why}")
    })?;
    tcp.set_nodelay(true).map_err(|e| e.to_string())?;
    let name = ServerName::try_from(format!("{}.{}.svc", row.service, row.namespace)).map_err(|e| e.to_string())?;
    let stream = tokio_rustls::TlsConnector::from(tls).connect(name, tcp).await;
    Ok(Box::new(stream.map_err(|e| format!("tls: failed to verify certificate: {e}"))?))
}

/// Says who asks; what the client said of that itself is not passed on.
fn identify(headers: &mut HeaderMap, user: &UserInfo) {
    let own: Vec<HeaderName> = headers.keys().filter(|name| name.as_str().starts_with("x-remote-")).cloned().collect();
    own.iter().for_each(|name| drop(headers.remove(name)));
    let mut add = |name: &str, value: &str| {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) {
            headers.append(name, value);
        }
    };
    add("x-remote-user", &user.name);
    if !user.uid.is_empty() {
        add("x-remote-uid", &user.uid);
    }
    user.groups.iter().for_each(|group| add("x-remote-group", group));
    for (key, values) in &user.extra {
        let name = format!("x-remote-extra-{}", escaped(key));
        values.iter().for_each(|value| add(&name, value));
    }
}

/// A key in the form in which it can be a header's name.
fn escaped(key: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte);
    let bytes = key.to_lowercase().into_bytes().into_iter();
    bytes.map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

fn forwarded(headers: &mut HeaderMap, request: &Passed<'_>) {
    let path = request.path.split('?').next().unwrap_or_default();
    let mut set = |name: &'static str, value: String| {
        if let Ok(value) = value.parse() {
            headers.insert(name, value);
        }
    };
    set("x-forwarded-uri", path.to_owned());
    set("x-forwarded-proto", "https".into());
    if let Some(host) = request.headers.get(header::HOST).and_then(|v| v.to_str().ok()) {
        set("x-forwarded-host", host.to_owned());
    }
    if let Some(peer) = request.peer {
        let before = request.headers.get("x-forwarded-for").and_then(|v| v.to_str().ok());
        let own = peer.0.ip().to_string();
        set("x-forwarded-for", before.map_or_else(|| own.clone(), |before| format!("{before}, {own}")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_says_for_himself_who_he_is() {
        let mut headers = HeaderMap::new();
        headers.insert("x-remote-user", "system:admin".parse().unwrap());
        headers.insert("x-remote-extra-scopes", "all".parse().unwrap());
        let user = UserInfo {
            name: "eve".into(),
            uid: "u1".into(),
            groups: vec!["a".into(), "b".into()],
            extra: [("example.com/Key".to_owned(), vec!["v".to_owned()])].into(),
        };
        identify(&mut headers, &user);
        assert_eq!(headers["x-remote-user"], "eve");
        assert_eq!(headers["x-remote-uid"], "u1");
        assert_eq!(headers.get_all("x-remote-group").iter().count(), 2);
        assert_eq!(headers["x-remote-extra-example.com%2fkey"], "v");
        assert!(!headers.contains_key("x-remote-extra-scopes"));
    }
}
