//! What strangers get who knock at the door itself: over TLS, with credentials of others, with requests that are no requests.
//! Each test says what the server answers.

mod support;

use http::{Request, StatusCode};
use keelson_machinery::resource::{ResourceDef, Scope};
use keelson_machinery::resources::RESOURCES;
use keelson_pki::Authority;
use support::{Cluster, ask};
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
    for def in RESOURCES.iter().filter(|def| !def.is_alpha()) {
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
