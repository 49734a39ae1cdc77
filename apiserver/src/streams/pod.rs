//! A pod's own streams: which container and which agent, and the agent's form of the request.

use bytes::Bytes;
use http::{Method, Request, Uri};
use http_body_util::Full;
use hyper::upgrade::OnUpgrade;
use keelson_machinery::go_time::{self, Layout};
use keelson_machinery::status::{Cause, Status};
use serde_json::{Value, json};

use super::{Answer, forward, log_socket, node, passed_on};
use crate::request::{Query, integer};
use crate::verbs::Call;
use crate::{ApiServer, body};

/// Parameters of a log request that agents understand by the same name.
const LOG_PARAMETERS: [&str; 7] =
    ["follow", "limitBytes", "previous", "sinceSeconds", "sinceTime", "tailLines", "timestamps"];
/// Parameters of exec and attach: the API's name and the agent's.
const STREAM_PARAMETERS: [(&str, &str); 4] =
    [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")];

fn find(server: &ApiServer, call: &Call<'_>) -> Result<Value, Status> {
    let request = call.request;
    let found = server.objects.get(request.def, &request.namespace, &request.name)?;
    found.map(|(pod, _)| pod).ok_or_else(|| call.not_found())
}

fn names<'a>(pod: &'a Value, list: &str) -> Vec<&'a str> {
    pod["spec"][list].as_array().into_iter().flatten().filter_map(|c| c["name"].as_str()).collect()
}

/// The container that is meant: the only one, or one that is named.
fn container(pod: &Value, wanted: Option<&str>) -> Result<String, Status> {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let all: Vec<&str> =
        ["initContainers", "containers", "ephemeralContainers"].iter().flat_map(|list| names(pod, list)).collect();
    match (wanted.filter(|wanted| !wanted.is_empty()), &names(pod, "containers")[..]) {
        (Some(wanted), _) if all.contains(&wanted) => Ok(wanted.into()),
        (Some(wanted), _) => Err(Status::bad_request(format!("container {wanted} is not valid for pod {name}"))),
        (None, [only]) => Ok((*only).into()),
        (None, []) => Err(Status::bad_request(format!("a container name must be specified for pod {name}"))),
        (None, _) => {
            let choice = all.join(" ");
            let why = format!("a container name must be specified for pod {name}, choose one of: [{choice}]");
            Err(Status::bad_request(why))
        }
    }
}

fn encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(byte.into());
        } else {
            out += &format!("%{byte:02X}");
        }
    }
    out
}

fn query(pairs: impl IntoIterator<Item = (String, String)>) -> String {
    let pairs: Vec<String> = pairs.into_iter().map(|(k, v)| format!("{k}={}", encoded(&v))).collect();
    if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
}

fn check_log_options(call: &Call<'_>) -> Result<(), Status> {
    let query = &call.request.query;
    let mut causes = Vec::new();
    // Old clients write what they do not say as they would in JSON.
    if let Some(time) = query.get("sinceTime").filter(|time| *time != "null") {
        go_time::parse(Layout::Seconds, time).map_err(Status::bad_request)?;
    }
    for (key, least) in [("tailLines", 0), ("limitBytes", 1)] {
        if let Some(number) = query.number(key)?.filter(|n| *n < least) {
            let why = if least == 0 { "must be greater than or equal to 0" } else { "must be greater than 0" };
            causes.push(Cause::invalid(key, &json!(number), why));
        }
    }
    let seconds = query.number("sinceSeconds")?;
    if seconds.is_some() && query.has("sinceTime") {
        // The whole of the options: a path whose only element has no name.
        causes.push(Cause::forbidden("[]", "at most one of `sinceTime` or `sinceSeconds` may be specified"));
    } else if let Some(seconds) = seconds.filter(|seconds| *seconds < 1) {
        causes.push(Cause::invalid("sinceSeconds", &json!(seconds), "must be greater than 0"));
    }
    // To ask for one stream of two is behind a gate that is closed by default.
    if query.get("stream").is_some() {
        causes.push(Cause::forbidden("stream", "may not be specified"));
    }
    if causes.is_empty() { Ok(()) } else { Err(Status::invalid("", "PodLogOptions", &call.request.name, causes)) }
}

/// `pods/log`: text as it comes, also as messages of a WebSocket.
pub async fn log(server: &ApiServer, call: &Call<'_>, upgrade: Option<OnUpgrade>) -> Answer {
    check_log_options(call)?;
    let pod = find(server, call)?;
    let request = call.request;
    let container = container(&pod, request.query.get("container"))?;
    let Some(name) = pod["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()) else {
        // Nobody has said anything yet, and nobody could.
        let none = http::Response::builder().status(204).body(body::full(Bytes::new()));
        return none.map_err(|e| Status::internal(&e.to_string()));
    };
    let agent = node::agent(server, name)?;
    let given = |key: &str| Some((key.to_owned(), request.query.get(key)?.to_owned()));
    let path = format!(
        "/containerLogs/{}/{}/{container}{}",
        request.namespace,
        request.name,
        query(LOG_PARAMETERS.iter().filter_map(|k| given(k)))
    );
    let message = |e: Status| Status::internal(&format!("Get \"https://{}{path}\": {}", agent.authority(), e.message));
    let stream = node::connect(server, &agent).await.map_err(message)?;
    let outgoing = Request::get(&path).header("host", agent.authority()).body(Full::default());
    let response = forward(stream, outgoing.map_err(|e| Status::internal(&e.to_string()))?, None).await?;
    if !response.status().is_success() {
        return refused(response).await;
    }
    if log_socket::is_wanted(call.headers) { log_socket::answer(call.headers, upgrade, response) } else { Ok(response) }
}

/// An agent's refusal is text; clients of the API expect a Status.
async fn refused(response: http::Response<keelson_client::Body>) -> Answer {
    use http_body_util::{BodyExt, Limited};
    let code = response.status().as_u16();
    let text = Limited::new(response.into_body(), 64 << 10).collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let message = String::from_utf8_lossy(&text).trim().to_owned();
    let base = match code {
        400 => Status::bad_request(message),
        404 => Status { code: 404, reason: "NotFound".into(), ..Status::bad_request(message) },
        _ => Status { code, ..Status::internal(&message) },
    };
    Err(base)
}

/// `pods/exec` and `pods/attach`.
pub async fn run(server: &ApiServer, call: &Call<'_>, upgrade: Option<OnUpgrade>) -> Answer {
    let pod = find(server, call)?;
    let request = call.request;
    let verb = request.subresource.as_str();
    if let Some(phase @ ("Succeeded" | "Failed")) = pod["status"]["phase"].as_str() {
        let what = if verb == "exec" { "exec into" } else { "attach to" };
        return Err(Status::bad_request(format!(
            "cannot {what} a container in a completed pod; current phase is {phase}"
        )));
    }
    let container = container(&pod, request.query.get("container"))?;
    if verb == "exec" && request.query.all("command").is_empty() {
        return Err(Status::bad_request("you must specify at least 1 command for the container"));
    }
    let mut pairs: Vec<(String, String)> = STREAM_PARAMETERS
        .iter()
        .filter(|(theirs, _)| request.query.flag(theirs))
        .map(|(_, ours)| ((*ours).to_owned(), "1".to_owned()))
        .collect();
    if pairs.iter().all(|(k, _)| k == "tty") {
        return Err(Status::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
    }
    pairs.extend(request.query.all("command").iter().map(|c| ("command".to_owned(), c.clone())));
    let path = format!("/{verb}/{}/{}/{container}{}", request.namespace, request.name, query(pairs));
    to_agent(server, call, &pod, &path, upgrade).await
}

/// `pods/portforward`: the ports are said inside the stream, or in the query by old WebSocket clients.
pub async fn port_forward(server: &ApiServer, call: &Call<'_>, upgrade: Option<OnUpgrade>, uri: &Uri) -> Answer {
    let given = Query::parse(uri.query());
    let mut ports: Vec<(String, String)> = Vec::new();
    for port in given.all("ports").iter().flat_map(|p| p.split(',')) {
        integer::<i32>(port)?;
        ports.push(("port".to_owned(), port.to_owned()));
    }
    let pod = find(server, call)?;
    let path = format!("/portForward/{}/{}{}", call.request.namespace, call.request.name, query(ports));
    to_agent(server, call, &pod, &path, upgrade).await
}

async fn to_agent(server: &ApiServer, call: &Call<'_>, pod: &Value, path: &str, upgrade: Option<OnUpgrade>) -> Answer {
    let node = pod["spec"]["nodeName"].as_str().filter(|n| !n.is_empty());
    let name = &call.request.name;
    let node = node.ok_or_else(|| Status::bad_request(format!("pod {name} does not have a host assigned")))?;
    if upgrade.is_none() {
        return Err(Status::bad_request("Upgrade request required"));
    }
    let agent = node::agent(server, node)?;
    let stream = node::connect(server, &agent).await?;
    let method = if call.request.verb == "get" { Method::GET } else { Method::POST };
    let mut outgoing = Request::builder()
        .method(method)
        .uri(path)
        .body(Full::default())
        .map_err(|e| Status::internal(&e.to_string()))?;
    *outgoing.headers_mut() = passed_on(call.headers, true);
    let host = agent.authority().parse().map_err(|_| Status::internal("the node's address is not one"))?;
    outgoing.headers_mut().insert(http::header::HOST, host);
    forward(stream, outgoing, upgrade).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_container_is_meant() {
        let pod = |main: &[&str], init: &[&str]| {
            let list = |names: &[&str]| names.iter().map(|n| json!({"name": n})).collect::<Vec<_>>();
            json!({"metadata": {"name": "p"}, "spec": {"containers": list(main), "initContainers": list(init)}})
        };
        for (pod, wanted, expected) in [
            (pod(&["a"], &[]), None, Ok("a")),
            (pod(&["a"], &["i"]), None, Ok("a")),
            (pod(&["a"], &["i"]), Some(""), Ok("a")),
            (pod(&["a", "b"], &["i"]), Some("i"), Ok("i")),
            (pod(&["a"], &[]), Some("x"), Err("container x is not valid for pod p")),
            (pod(&[], &[]), None, Err("a container name must be specified for pod p")),
            (
                pod(&["a", "b"], &["i"]),
                None,
                Err("a container name must be specified for pod p, choose one of: [i a b]"),
            ),
        ] {
            let got = container(&pod, wanted);
            assert_eq!(got.as_deref().map_err(|e| e.message.as_str()), expected);
        }
    }

    #[test]
    fn parameters_are_encoded() {
        let pairs = [("command".to_owned(), "a b&c".to_owned()), ("tty".to_owned(), "1".to_owned())];
        assert_eq!(query(pairs), "?command=a%20b%26c&tty=1");
        assert_eq!(query([]), "");
    }
}
