//! What strangers get who knock at the door itself: over TLS, with credentials of others, with requests that are no requests.
//! Each test says what the server answers.

mod support;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use keelson_machinery::resource::{ResourceDef, Scope};
use keelson_machinery::resources::RESOURCES;
use keelson_pki::Authority;
use serde_json::{Value, json};
use support::{Cluster, PATIENCE, ask};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Largest body that is read.
const MAX_BODY_BYTES: usize = 3 << 20;

/// Method and path of a verb on a row.
fn request_of(def: &ResourceDef, verb: &str) -> (&'static str, String) {
    let root = if def.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", def.group) };
    let namespace = if def.scope == Scope::Namespaced { "/namespaces/default" } else { "" };
    let all = format!("{root}/{}{namespace}/{}", def.version, def.plural);
    match verb {
        "list" => ("GET", all),
        "watch" => ("GET", format!("{all}?watch=1&timeoutSeconds=1")),
        "create" => ("POST", all),
        "deletecollection" => ("DELETE", all),
        "get" => ("GET", format!("{all}/x")),
        "update" => ("PUT", format!("{all}/x")),
        "patch" => ("PATCH", format!("{all}/x")),
        _ => ("DELETE", format!("{all}/x")),
    }
}

/// Reviews of oneself that everybody may make.
const FOR_ALL: [&str; 3] = ["selfsubjectaccessreviews", "selfsubjectrulesreviews", "selfsubjectreviews"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_and_verb_refuses_strangers_and_bad_credentials() {
    let cluster = Cluster::new().await;
    let door = cluster.listen().await;
    let stranger = door.pki.cluster.issue_client("stranger", &[]).unwrap();
    let (mut known, mut unknown) = (door.client(Some(&stranger)).await, door.client(None).await);
    let mut asked = 0;
    for def in RESOURCES.iter().filter(|def| !def.is_optional()) {
        for verb in def.verbs {
            let (method, path) = request_of(def, verb);
            let bad = [("authorization", "Bearer not-a-token")];
            let (code, told) = ask(&mut unknown, method, &path, &bad).await;
            assert_eq!(
                (code, told["reason"].as_str()),
                (StatusCode::UNAUTHORIZED, Some("Unauthorized")),
                "{method} {path}"
            );
            if FOR_ALL.contains(&def.plural) {
                continue;
            }
            let (code, told) = ask(&mut known, method, &path, &[]).await;
            assert_eq!(code, StatusCode::FORBIDDEN, "{method} {path}: {told}");
            assert!(told["message"].as_str().unwrap().contains("User \"stranger\" cannot "), "{told}");
            let (code, told) = ask(&mut unknown, method, &path, &[]).await;
            assert_eq!(code, StatusCode::FORBIDDEN, "{method} {path}: {told}");
            assert!(told["message"].as_str().unwrap().contains("User \"system:anonymous\" cannot "), "{told}");
            asked += 1;
        }
    }
    assert!(asked > 400, "{asked}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_of_another_authority_are_not_let_in() {
    let cluster = Cluster::new().await;
    let door = cluster.listen().await;
    let own = door.pki.cluster.issue_client("admin", &["system:masters"]).unwrap();
    let (code, _) = ask(&mut door.client(Some(&own)).await, "GET", "/api/v1/namespaces", &[]).await;
    assert_eq!(code, StatusCode::OK, "the cluster's own authority vouches for its admin");
    let foreign = Authority::create("elsewhere").unwrap();
    let forged = foreign.issue_client("admin", &["system:masters"]).unwrap();
    // The handshake fails; with TLS 1.3 the client learns of it when it reads.
    let read = async {
        let mut stream = door.stream(Some(&forged)).await?;
        stream.write_all(b"GET /api/v1/namespaces HTTP/1.1\r\nHost: localhost\r\n\r\n").await?;
        let mut first = [0; 1];
        stream.read_exact(&mut first).await
    };
    let refused = read.await.unwrap_err().to_string();
    assert!(refused.contains("UnknownCA") || refused.contains("alert"), "{refused}");
    // A certificate for servers says nothing of users.
    let server = door.pki.cluster.issue_server("admin", &["localhost".to_owned()]).unwrap();
    let read = async {
        let mut stream = door.stream(Some(&server)).await?;
        stream.write_all(b"GET /api/v1/namespaces HTTP/1.1\r\nHost: localhost\r\n\r\n").await?;
        let mut first = [0; 1];
        stream.read_exact(&mut first).await
    };
    assert!(read.await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_do_not_make_anybody_somebody_else() {
    let cluster = Cluster::new().await;
    let door = cluster.listen().await;
    let mut stranger = door.client(None).await;
    // Each row: headers, and the answer to a list of namespaces.
    for (headers, code) in [
        // No proxy is trusted here, whatever it says.
        (&[("x-remote-user", "admin"), ("x-remote-group", "system:masters")][..], StatusCode::FORBIDDEN),
        (&[("impersonate-user", "admin"), ("impersonate-group", "system:masters")], StatusCode::FORBIDDEN),
        (&[("impersonate-group", "system:masters")], StatusCode::INTERNAL_SERVER_ERROR),
        (&[("authorization", "Basic YWRtaW46YWRtaW4=")], StatusCode::FORBIDDEN),
        (&[("authorization", "Bearer ")], StatusCode::FORBIDDEN),
        (&[("authorization", "Bearer a b")], StatusCode::UNAUTHORIZED),
        (&[("authorization", "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJzeXN0ZW06YWRtaW4ifQ.")], StatusCode::UNAUTHORIZED),
        (&[("x-forwarded-for", "127.0.0.1"), ("x-original-url", "/healthz")], StatusCode::FORBIDDEN),
        (&[("x-http-method-override", "GET")], StatusCode::FORBIDDEN),
    ] {
        let (got, told) = ask(&mut stranger, "GET", "/api/v1/namespaces", headers).await;
        assert!(got == code || (code.is_server_error() && !got.is_success()), "{headers:?}: {got} {told}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_request_is_not_two() {
    let cluster = Cluster::new().await;
    let door = cluster.listen().await;
    let hidden = "GET /version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    // Each row: a request that two readers could understand differently. It is refused, and what hides in it is not answered.
    for head in [
        format!(
            "POST /api HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nContent-Length: {}\r\n\r\n{hidden}",
            hidden.len()
        ),
        format!("POST /api HTTP/1.1\r\nHost: h\r\nContent-Length: +{}\r\n\r\n{hidden}", hidden.len()),
        format!("POST /api HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{hidden}"),
        format!("POST /api HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{hidden}"),
        format!("POST /api HTTP/1.1\r\nHost: h\r\nX-A: b\r\n c\r\n\r\n{hidden}"),
        format!("GET /api HTTP/1.1\r\nHost : h\r\n\r\n{hidden}"),
        format!("GET /a b HTTP/1.1\r\nHost: h\r\n\r\n{hidden}"),
        format!("GET /api HTTP/1.1\r\nHost: h\r\nX-A: \u{0}\r\n\r\n{hidden}"),
    ] {
        let answer = door.raw(&head).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{head:?}: {answer}");
        assert!(!answer.contains("gitVersion"), "{head:?}: {answer}");
    }
    // Of both ways to say how long a body is only one counts, and the connection ends with it.
    let both = "POST /api HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\nConnection: close\r\n\r\n0\r\n\r\n";
    let answer = door.raw(&format!("{both}{hidden}")).await;
    assert!(!answer.contains("gitVersion"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_versions_of_tls_are_refused() {
    let cluster = Cluster::new().await;
    let door = cluster.listen().await;
    for minor in [0, 1, 2] {
        // A hello of SSL 3.0, TLS 1.0 and TLS 1.1: version, random bytes, no session, one cipher, no compression.
        let mut hello = vec![3, minor];
        hello.extend([7; 32]);
        hello.extend([0, 0, 2, 0x00, 0x2f, 1, 0]);
        let mut record = vec![0x16, 3, minor];
        record.extend((hello.len() as u16 + 4).to_be_bytes());
        record.extend([1, 0]);
        record.extend((hello.len() as u16).to_be_bytes());
        record.extend(hello);
        let mut tcp = TcpStream::connect(door.address).await.unwrap();
        tcp.write_all(&record).await.unwrap();
        let mut answer = Vec::new();
        let _ = tcp.read_to_end(&mut answer).await;
        // A fatal alert, or nothing at all; never a server's hello.
        assert!(answer.is_empty() || (answer[0] == 0x15 && answer[5] == 2), "3.{minor}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_never_finish_keep_nobody_out() {
    let cluster = Cluster::new().await;
    let door = cluster.listen().await;
    let mut held = Vec::new();
    for index in 0..60 {
        let mut tcp = TcpStream::connect(door.address).await.unwrap();
        if index % 3 == 0 {
            // Not even a handshake, or the start of one.
            let _ = tcp.write_all(&[0x16, 3]).await;
            held.push(Some(tcp));
        }
        let mut stream = door.stream(None).await.unwrap();
        let part: &[u8] = match index % 2 {
            0 => b"GET /version HTTP/1.1\r\nHost: loc",
            _ => b"POST /api/v1/namespaces HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n{",
        };
        stream.write_all(part).await.unwrap();
        held.push(Some(stream.into_inner().0));
    }
    let (code, told) = ask(&mut door.client(None).await, "GET", "/version", &[]).await;
    assert_eq!((code, told["major"].as_str()), (StatusCode::OK, Some("1")));
    assert!(held.iter().all(Option::is_some));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_too_large_is_refused() {
    let cluster = Cluster::new().await;
    let door = cluster.listen().await;
    let admin = door.pki.cluster.issue_client("admin", &["system:masters"]).unwrap();
    // One byte more than may be, and as much as may be: that one is read, and is no object.
    for (bytes, code) in
        [(MAX_BODY_BYTES + 1, StatusCode::PAYLOAD_TOO_LARGE), (MAX_BODY_BYTES, StatusCode::BAD_REQUEST)]
    {
        let mut client = door.client(Some(&admin)).await;
        let request = Request::post("/api/v1/namespaces").header("host", "localhost");
        let request = request.header("content-type", "application/json").body(vec![b' '; bytes].into()).unwrap();
        let response = client.send_request(request).await.unwrap();
        assert_eq!(response.status(), code, "{bytes}");
    }
}

/// A level whose seats are all taken by answers that nobody reads refuses the next request at once, and says when to come again;
/// seats that are given back are had again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_saturated_level_says_when_to_come_again() {
    const FLOW: &str = "/apis/flowcontrol.apiserver.k8s.io/v1";
    const MAPS: &str = "/api/v1/namespaces/default/configmaps";
    // More than all buffers between the two sides hold.
    const OBJECTS: usize = 300;
    const OBJECT_BYTES: usize = 100 << 10;
    // All seats of the level, and then some.
    const MOST: usize = 50;
    let cluster = Cluster::new().await;
    let text = "x".repeat(OBJECT_BYTES);
    for index in 0..OBJECTS {
        cluster.make(MAPS, json!({"metadata": {"name": format!("m-{index}")}, "data": {"k": text}})).await;
    }
    let level = json!({"metadata": {"name": "narrow"}, "spec": {"type": "Limited",
        "limited": {"nominalConcurrencyShares": 1, "lendablePercent": 0, "borrowingLimitPercent": 0,
                    "limitResponse": {"type": "Reject"}}}});
    cluster.make(&format!("{FLOW}/prioritylevelconfigurations"), level).await;
    let schema = json!({"metadata": {"name": "crowd"}, "spec": {"matchingPrecedence": 2,
        "priorityLevelConfiguration": {"name": "narrow"}, "rules": [{
        "subjects": [{"kind": "User", "user": {"name": "crowd"}}],
        "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"]}]}]}});
    cluster.make(&format!("{FLOW}/flowschemas"), schema).await;
    let binding = json!({"metadata": {"name": "crowd"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io",
        "kind": "ClusterRole", "name": "view"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "crowd"}]});
    cluster.make("/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings", binding).await;
    let door = cluster.listen().await;
    let crowd = door.pki.cluster.issue_client("crowd", &[]).unwrap();
    let list = || Request::get(MAPS).header("host", "localhost").body(Full::<Bytes>::default()).unwrap();
    let mut unread = Vec::new();
    let refused = loop {
        assert!(unread.len() < MOST, "nobody was refused");
        let mut sender = door.client(Some(&crowd)).await;
        let response = sender.send_request(list()).await.unwrap();
        if response.status() != 200 {
            break response;
        }
        unread.push((sender, response));
    };
    assert!(!unread.is_empty(), "nobody got a seat");
    assert_eq!(
        (refused.status(), &refused.headers()["retry-after"]),
        (StatusCode::TOO_MANY_REQUESTS, &"1".parse().unwrap())
    );
    let schema = cluster.json("GET", &format!("{FLOW}/flowschemas/crowd"), Value::Null).await.1;
    assert_eq!(refused.headers()["x-kubernetes-pf-flowschema-uid"], schema["metadata"]["uid"].as_str().unwrap());
    // It is refused before it comes to its resource, and so by no Status.
    assert_eq!(refused.headers()["content-type"], "text/plain; charset=utf-8");
    let told = refused.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(told, "Too many requests, please try again later.\n");
    // Others are not in that level.
    let admin = door.pki.cluster.issue_client("admin", &["system:masters"]).unwrap();
    assert_eq!(ask(&mut door.client(Some(&admin)).await, "GET", MAPS, &[]).await.0, StatusCode::OK);
    drop(unread);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut sender = door.client(Some(&crowd)).await;
    while ask(&mut sender, "GET", &format!("{MAPS}/m-0"), &[]).await.0 != StatusCode::OK {
        assert!(tokio::time::Instant::now() < deadline, "the seats were not given back");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// A request whose answer the client would not take is refused before anything is done.
#[tokio::test]
async fn what_cannot_be_told_is_not_done() {
    const MAPS: &str = "/api/v1/namespaces/default/configmaps";
    let cluster = Cluster::new().await;
    cluster.make(MAPS, json!({"metadata": {"name": "there"}, "data": {"a": "b"}})).await;
    let html = "text/html";
    let table = "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io";
    let object = |name: &str| json!({"metadata": {"name": name}, "data": {"a": "c"}}).to_string();
    for (method, path, accept, kind, body) in [
        ("POST", MAPS.to_owned(), html, "application/json", object("new")),
        ("POST", MAPS.to_owned(), table, "application/json", object("new")),
        ("PUT", format!("{MAPS}/there"), html, "application/json", object("there")),
        ("PATCH", format!("{MAPS}/there"), html, "application/merge-patch+json", object("there")),
        ("PATCH", format!("{MAPS}/new?fieldManager=m"), table, "application/apply-patch+yaml", object("new")),
        ("DELETE", format!("{MAPS}/there"), html, "application/json", String::new()),
        ("DELETE", MAPS.to_owned(), html, "application/json", String::new()),
        (
            "POST",
            "/api/v1/namespaces/default/serviceaccounts/default/token".into(),
            html,
            "application/json",
            "{}".into(),
        ),
        ("GET", "/api/v1/namespaces/default/pods/x/log".into(), html, "application/json", String::new()),
        ("GET", "/apis/apps/v1/namespaces/default/deployments/x/scale".into(), html, "application/json", String::new()),
    ] {
        let request =
            Request::builder().method(method).uri(&path).header("accept", accept).header("content-type", kind);
        let answer = cluster.send(request.body(body.into()).unwrap()).await;
        assert_eq!(answer.status(), StatusCode::NOT_ACCEPTABLE, "{method} {path}");
    }
    // A patch is refused for its own form first; all else for what the client accepts.
    for (method, path, kind, expected) in [
        ("PATCH", format!("{MAPS}/there"), "text/html", StatusCode::UNSUPPORTED_MEDIA_TYPE),
        ("PATCH", format!("{MAPS}/there"), "application/json", StatusCode::UNSUPPORTED_MEDIA_TYPE),
        ("PATCH", format!("{MAPS}/none/status"), "text/html", StatusCode::NOT_FOUND),
        ("PATCH", "/api/v1/namespaces/default/pods/x/status".into(), "text/html", StatusCode::UNSUPPORTED_MEDIA_TYPE),
        (
            "PATCH",
            "/apis/apps/v1/namespaces/default/deployments/x/scale".into(),
            "text/html",
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
        ),
        ("PATCH", MAPS.into(), "text/html", StatusCode::METHOD_NOT_ALLOWED),
        ("POST", MAPS.into(), "text/html", StatusCode::NOT_ACCEPTABLE),
        ("PUT", format!("{MAPS}/there"), "text/html", StatusCode::NOT_ACCEPTABLE),
        ("DELETE", format!("{MAPS}/there"), "text/html", StatusCode::NOT_ACCEPTABLE),
    ] {
        let request = Request::builder().method(method).uri(&path).header("accept", html).header("content-type", kind);
        let answer = cluster.send(request.body("{}".into()).unwrap()).await;
        assert_eq!(answer.status(), expected, "{method} {path} {kind}");
    }
    let (_, list) = cluster.json("GET", MAPS, Value::Null).await;
    let maps: Vec<_> =
        list["items"].as_array().unwrap().iter().map(|map| (&map["metadata"]["name"], &map["data"]["a"])).collect();
    assert!(maps.contains(&(&"there".into(), &"b".into())) && !maps.iter().any(|(name, _)| *name == "new"), "{maps:?}");
}

/// An HTTP/2 connection of an admin, on which a stream that is not read takes a small part of the connection's window.
async fn in_streams(door: &support::Door) -> http2::SendRequest<Full<Bytes>> {
    let admin = door.pki.cluster.issue_client("admin", &["system:masters"]).unwrap();
    let stream = door.stream_of(Some(&admin), "h2").await.unwrap();
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(64 << 10).initial_connection_window_size(64 << 20);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn get(sender: &mut http2::SendRequest<Full<Bytes>>, path: &str) -> http::Response<Incoming> {
    let request = Request::get(format!("https://localhost{path}")).body(Full::default()).unwrap();
    sender.send_request(request).await.unwrap()
}

/// The names in the next `count` events of a watch.
async fn names(body: &mut Incoming, count: usize) -> Vec<String> {
    let mut text = Vec::new();
    while text.iter().filter(|byte| **byte == b'\n').count() < count {
        text.extend(body.frame().await.unwrap().unwrap().into_data().unwrap());
    }
    let events = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let events = events.map(|line| serde_json::from_slice::<Value>(line).unwrap());
    events.map(|event| event["object"]["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_of_one_connection_do_not_hold_one_another_up() {
    const PATH: &str = "/api/v1/namespaces/default/configmaps";
    let cluster = Cluster::new().await;
    let door = cluster.listen().await;
    let mut sender = in_streams(&door).await;
    let mut watches = Vec::new();
    for _ in 0..60 {
        watches.push(get(&mut sender, &format!("{PATH}?watch=1")).await.into_body());
    }
    // Nobody reads the first: its window is full before all events are written.
    let idle = watches.remove(0);
    let made: Vec<String> = (0..40).map(|index| format!("map-{index}")).collect();
    for name in &made {
        let (code, told) =
            cluster.json("POST", PATH, json!({"metadata": {"name": name}, "data": {"a": "x".repeat(10_000)}})).await;
        assert_eq!(code, 201, "{told}");
    }
    for watch in &mut watches {
        assert_eq!(tokio::time::timeout(PATIENCE, names(watch, made.len())).await.unwrap(), made);
    }
    // What is not a watch is answered between them, and a watch that is given up is no more.
    let one = get(&mut sender, &format!("{PATH}/map-7")).await;
    assert_eq!(one.status(), StatusCode::OK);
    assert!(one.into_body().collect().await.unwrap().to_bytes().len() > 10_000);
    drop(watches.split_off(30));
    let (code, _) = cluster.json("POST", PATH, json!({"metadata": {"name": "last"}})).await;
    assert_eq!(code, 201);
    for watch in &mut watches {
        assert_eq!(tokio::time::timeout(PATIENCE, names(watch, 1)).await.unwrap(), ["last"]);
    }
    let mut late = idle;
    let all = tokio::time::timeout(PATIENCE, names(&mut late, made.len() + 1)).await.unwrap();
    assert_eq!((all[..made.len()].to_vec(), all[made.len()].as_str()), (made, "last"));
}
