//! The proxies: HTTP to a node's agent, to a pod, or to a pod behind a Service.

use bytes::Bytes;
use http::{Method, Request, Response, Uri, header};
use http_body_util::Full;
use hyper::upgrade::OnUpgrade;
use keelson_client::connection::Stream;
use keelson_machinery::resources::find;
use keelson_machinery::status::Status;
use rand::seq::IndexedRandom;
use serde_json::Value;

use super::{Answer, forward, node, passed_on};
use crate::verbs::Call;
use crate::{ApiServer, body};

/// What a proxy request names: `[scheme:]name[:port]`.
#[derive(Debug, PartialEq, Eq)]
struct Named<'a> {
    scheme: &'a str,
    name: &'a str,
    port: &'a str,
}

fn named(text: &str) -> Option<Named<'_>> {
    let parts: Vec<&str> = text.split(':').collect();
    match parts[..] {
        [name] => Some(Named { scheme: "http", name, port: "" }),
        [scheme @ ("http" | "https"), name] if !name.is_empty() && name.parse::<u16>().is_err() => {
            Some(Named { scheme, name, port: "" })
        }
        [name, port] => Some(Named { scheme: "http", name, port }),
        ["", name, port] => Some(Named { scheme: "http", name, port }),
        [scheme @ ("http" | "https"), name, port] => Some(Named { scheme, name, port }),
        _ => None,
    }
}

/// The path behind `/proxy`, as the client wrote it, with its query; `None` if there is not even a slash.
fn rest(uri: &Uri, namespaced: bool) -> Option<String> {
    // The name may be percent-encoded in the path, so segments are counted and not compared.
    let before = if namespaced { 6 } else { 4 };
    let mut path = uri.path().trim_start_matches('/');
    for _ in 0..before {
        path = path.split_once('/')?.1.trim_start_matches('/');
    }
    let rest = path.strip_prefix("proxy").filter(|r| r.starts_with('/'))?;
    Some(uri.query().map_or_else(|| rest.to_owned(), |query| format!("{rest}?{query}")))
}

/// `GET .../proxy` becomes `.../proxy/`, so that relative links of the answer lead to the right place.
fn with_slash(uri: &Uri) -> Answer {
    let query = uri.query().map(|q| format!("?{q}")).unwrap_or_default();
    let location = format!("{}/{query}", uri.path());
    let response = Response::builder().status(301).header(header::LOCATION, location).body(body::full(Bytes::new()));
    response.map_err(|e| Status::internal(&e.to_string()))
}

fn method(call: &Call<'_>) -> Method {
    match call.request.verb {
        "create" => Method::POST,
        "update" => Method::PUT,
        "patch" => Method::PATCH,
        "delete" => Method::DELETE,
        _ => Method::GET,
    }
}

async fn send(
    call: &Call<'_>,
    stream: Box<dyn Stream>,
    authority: &str,
    path: &str,
    uri: &Uri,
    upgrade: Option<OnUpgrade>,
) -> Answer {
    let internal = |e: &dyn std::fmt::Display| Status::internal(&e.to_string());
    let body = Full::new(Bytes::copy_from_slice(call.body));
    let mut request = Request::builder().method(method(call)).uri(path).body(body).map_err(|e| internal(&e))?;
    *request.headers_mut() = passed_on(call.headers, upgrade.is_some());
    let headers = request.headers_mut();
    headers.insert(header::HOST, authority.parse().map_err(|e| internal(&e))?);
    headers.insert("x-forwarded-uri", uri.path().parse().map_err(|e| internal(&e))?);
    headers.insert("x-forwarded-proto", header::HeaderValue::from_static("https"));
    if let Some(host) = call.headers.get(header::HOST) {
        headers.insert("x-forwarded-host", host.clone());
    }
    forward(stream, request, upgrade).await
}

/// `nodes/proxy`.
pub async fn node(server: &ApiServer, call: &Call<'_>, upgrade: Option<OnUpgrade>, uri: &Uri) -> Answer {
    let wanted = named(&call.request.name).ok_or_else(|| wrong_name(call))?;
    let agent = node::agent(server, wanted.name)?;
    let Some(path) = rest(uri, false) else { return with_slash(uri) };
    let stream = node::connect(server, &agent).await?;
    send(call, stream, &agent.authority(), &path, uri, upgrade).await
}

fn wrong_name(call: &Call<'_>) -> Status {
    Status::bad_request(format!("invalid {} request {:?}", call.request.def.singular, call.request.name))
}

/// Pods and Services that speak TLS have certificates that nobody here could check.
fn plain_only(wanted: &Named<'_>) -> Result<(), Status> {
    if wanted.scheme == "http" {
        return Ok(());
    }
    let message =
        "proxying to https endpoints of pods and services is not served by this version of keelson".to_owned();
    Err(Status { code: 501, reason: "NotImplemented".into(), ..Status::bad_request(message) })
}

/// `pods/proxy`.
pub async fn pod(server: &ApiServer, call: &Call<'_>, upgrade: Option<OnUpgrade>, uri: &Uri) -> Answer {
    let wanted = named(&call.request.name).ok_or_else(|| wrong_name(call))?;
    let found = server.objects.get(call.request.def, &call.request.namespace, wanted.name)?;
    let (pod, _) = found.ok_or_else(|| Status::not_found("", "pods", wanted.name))?;
    let ip = pod["status"]["podIP"].as_str().filter(|ip| !ip.is_empty());
    let ip = ip.ok_or_else(|| Status::bad_request("address not allowed"))?;
    plain_only(&wanted)?;
    let ports = pod["spec"]["containers"].as_array().into_iter().flatten();
    let first = || ports.clone().find_map(|c| c["ports"][0]["containerPort"].as_u64()).unwrap_or(80);
    let port = if wanted.port.is_empty() { u16::try_from(first()).ok() } else { wanted.port.parse().ok() };
    let port = port.ok_or_else(|| wrong_name(call))?;
    let Some(path) = rest(uri, true) else { return with_slash(uri) };
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    let stream = node::tunnel(server, node, ip, port).await?;
    send(call, stream, &format!("{ip}:{port}"), &path, uri, upgrade).await
}

/// `services/proxy`: one of the ready endpoints, by chance.
pub async fn service(server: &ApiServer, call: &Call<'_>, upgrade: Option<OnUpgrade>, uri: &Uri) -> Answer {
    let wanted = named(&call.request.name).ok_or_else(|| wrong_name(call))?;
    let (namespace, def) = (&call.request.namespace, call.request.def);
    let found = server.objects.get(def, namespace, wanted.name)?;
    let (service, _) = found.ok_or_else(|| Status::not_found("", "services", wanted.name))?;
    if let Ok(number) = wanted.port.parse::<i64>()
        && !service["spec"]["ports"].as_array().into_iter().flatten().any(|port| port["port"] == number)
    {
        let why = format!("no service port {number} found for service {:?}", wanted.name);
        return Err(Status::unavailable(why));
    }
    let slices = find("discovery.k8s.io", "v1", "endpointslices").ok_or_else(Status::no_such_path)?;
    let slices = server.objects.list(slices, namespace)?;
    let targets = endpoints(&service, &slices, wanted.port);
    let none = || Status::unavailable(format!("no endpoints available for service {:?}", call.request.name));
    let (node, ip, port) = targets.choose(&mut rand::rng()).ok_or_else(none)?;
    plain_only(&wanted)?;
    let Some(path) = rest(uri, true) else { return with_slash(uri) };
    let stream = node::tunnel(server, node, ip, *port).await?;
    send(call, stream, &format!("{ip}:{port}"), &path, uri, upgrade).await
}

/// Node, address and port of the ready endpoints behind a Service's port, which is given by name or number.
fn endpoints(service: &Value, slices: &[Value], port: &str) -> Vec<(String, String, u16)> {
    let ports: Vec<&Value> = service["spec"]["ports"].as_array().into_iter().flatten().collect();
    let matches = |p: &&&Value| match port {
        "" => ports.len() == 1,
        text => p["name"] == text || p["port"].as_u64().is_some_and(|n| n.to_string() == text),
    };
    let Some(chosen) = ports.iter().find(matches) else { return Vec::new() };
    let name = chosen["name"].as_str().unwrap_or_default();
    let of_service = |s: &&Value| s["metadata"]["labels"]["kubernetes.io/service-name"] == service["metadata"]["name"];
    let mut found = Vec::new();
    for slice in slices.iter().filter(of_service) {
        let named = |p: &&Value| p["name"].as_str().unwrap_or_default() == name;
        let number = slice["ports"].as_array().into_iter().flatten().find(named).and_then(|p| p["port"].as_u64());
        let Some(number) = number.and_then(|n| u16::try_from(n).ok()) else { continue };
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            let (node, ip) = (endpoint["nodeName"].as_str(), endpoint["addresses"][0].as_str());
            if endpoint["conditions"]["ready"] != false
                && let (Some(node), Some(ip)) = (node, ip)
            {
                found.push((node.to_owned(), ip.to_owned(), number));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_a_proxy_request_names() {
        let of = |scheme, name, port| Some(Named { scheme, name, port });
        for (text, wanted) in [
            ("a", of("http", "a", "")),
            ("a:80", of("http", "a", "80")),
            ("https:a", of("https", "a", "")),
            ("http:a:web", of("http", "a", "web")),
            (":a:web", of("http", "a", "web")),
            ("ftp:a:web", None),
            ("http:a:b:c", None),
        ] {
            assert_eq!(named(text), wanted, "{text}");
        }
    }

    #[test]
    fn the_rest_of_the_path_stays_as_it_was() {
        for (uri, wanted) in [
            ("/api/v1/namespaces/n/pods/p:80/proxy/a%20b/?x=1", Some("/a%20b/?x=1")),
            ("/api/v1/namespaces/pods/pods/proxy/proxy/x", Some("/x")),
            ("/api/v1/namespaces/n/pods/p/proxy", None),
            ("/api/v1/namespaces/n/pods/p/proxy/", Some("/")),
        ] {
            let got = rest(&uri.parse().unwrap(), true);
            assert_eq!(got.as_deref(), wanted, "{uri}");
        }
    }

    #[test]
    fn endpoints_of_a_port() {
        let service = json!({"metadata": {"name": "s"},
            "spec": {"ports": [{"name": "web", "port": 80}, {"name": "db", "port": 5432}]}});
        let slice = json!({"metadata": {"labels": {"kubernetes.io/service-name": "s"}},
            "ports": [{"name": "web", "port": 8080}],
            "endpoints": [
                {"addresses": ["10.0.0.1"], "nodeName": "a", "conditions": {"ready": true}},
                {"addresses": ["10.0.0.2"], "nodeName": "a", "conditions": {"ready": false}}]});
        let slices = [slice];
        let one = vec![("a".to_owned(), "10.0.0.1".to_owned(), 8080)];
        assert_eq!(endpoints(&service, &slices, "web"), one);
        assert_eq!(endpoints(&service, &slices, "80"), one);
        assert!(endpoints(&service, &slices, "").is_empty());
        assert!(endpoints(&service, &slices, "db").is_empty());
    }
}
