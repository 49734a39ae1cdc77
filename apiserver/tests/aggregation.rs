//! An API server behind this one: a small TLS server of the test's own that trusts the front proxy's certificate alone.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use keelson_apiserver::access::UserInfo;
use keelson_apiserver::{ApiServer, Config, bootstrap};
use keelson_pki::{Authority, CertificateSlot, ClusterPki};
use keelson_store::{Kv, LocalKv};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// How long anything may take; far more than it needs.
const PATIENCE: Duration = Duration::from_secs(60);

fn user(name: &str, groups: &[&str]) -> UserInfo {
    let groups = groups.iter().map(|g| (*g).to_owned()).collect();
    UserInfo { name: name.into(), groups, ..UserInfo::default() }
}

async fn call(server: &ApiServer, who: UserInfo, method: &str, path: &str, body: Value) -> (u16, Value) {
    let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
    let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    let response = server.call(who, request.body(body).unwrap()).await;
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let text = || Value::from(String::from_utf8_lossy(&bytes).into_owned());
    (code, serde_json::from_slice(&bytes).unwrap_or_else(|_| text()))
}

/// Answers discovery, and for all else who asked for what.
fn answer(certificate: &str, request: &Request<Incoming>) -> Value {
    let text = |name: &str| request.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    if request.uri().path() == "/apis/far.example/v1" {
        return json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "far.example/v1", "resources": [
            {"name": "stars", "singularName": "star", "namespaced": false, "kind": "Star", "verbs": ["get", "list"]}]});
    }
    let groups: Vec<_> = request.headers().get_all("x-remote-group").iter().map(|v| v.to_str().unwrap()).collect();
    json!({"path": request.uri().to_string(), "user": text("x-remote-user"), "groups": groups, "by": certificate,
        "authorization": text("authorization"), "host": text("host")})
}

async fn behind(listener: TcpListener, tls: Arc<rustls::ServerConfig>) {
    let acceptor = tokio_rustls::TlsAcceptor::from(tls);
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
            let name = certificates.first().map(|c| keelson_pki::subject_of(c).unwrap().0).unwrap_or_default();
            let service = service_fn(move |request: Request<Incoming>| {
                let told = answer(&name, &request).to_string();
                async move { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(told)))) }
            });
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

#[tokio::test]
async fn requests_are_handed_on_with_who_asks() {
    let directory = tempfile::tempdir().unwrap();
    let kv: Arc<dyn Kv> = Arc::new(LocalKv::open(directory.path()).unwrap());
    bootstrap::ensure(kv.as_ref(), bootstrap::objects()).await.unwrap();
    let pki = Arc::new(ClusterPki::create().unwrap());
    let stop = CancellationToken::new();
    let server = ApiServer::new(Config {
        kv,
        pki: pki.clone(),
        service_cidr: "10.96.0.0/16".into(),
        extensions: Vec::new(),
        settings: Default::default(),
        stop: stop.clone(),
    })
    .unwrap();
    let own = Authority::create("far").unwrap();
    let issued = own.issue_server("far", &["far.default.svc".into()]).unwrap();
    let tls = keelson_pki::server_config(CertificateSlot::new(&issued).unwrap(), &pki.cluster.certificate()).unwrap();
    let listener = TcpListener::bind("localhost:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(behind(listener, tls));

    let admin = || user("admin", &["system:masters"]);
    let service = json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": "far"},
        "spec": {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": port}]}});
    assert_eq!(call(&server, admin(), "POST", "/api/v1/namespaces/default/services", service).await.0, 201);
    use base64::Engine;
    let bundle = base64::engine::general_purpose::STANDARD.encode(own.certificate().as_bytes());
    let made = json!({"kind": "APIService", "apiVersion": "apiregistration.k8s.io/v1", "metadata": {"name": "v1.far.example"},
        "spec": {"group": "far.example", "version": "v1", "groupPriorityMinimum": 100, "versionPriority": 10, "caBundle": bundle,
            "service": {"name": "far", "namespace": "default", "port": port}}});
    let services = "/apis/apiregistration.k8s.io/v1/apiservices";
    assert_eq!(call(&server, admin(), "POST", services, made).await.0, 201);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (_, now) = call(&server, admin(), "GET", &format!("{services}/v1.far.example"), Value::Null).await;
        if now["status"]["conditions"][0]["reason"] == "Passed" {
            break;
        }
        assert!(Instant::now() < deadline, "{now}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // What the condition says counts as soon as it has been seen here.
    let path = "/apis/far.example/v1/stars/sun?pretty=1";
    let told = loop {
        let (code, told) = call(&server, admin(), "GET", path, Value::Null).await;
        if code == 200 {
            break told;
        }
        assert!(Instant::now() < deadline, "{code} {told}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(told["path"], path);
    assert_eq!((&told["user"], &told["by"]), (&json!("admin"), &json!("front-proxy-client")));
    assert_eq!(told["groups"], json!(["system:masters"]));
    assert_eq!(told["host"], format!("far.default.svc:{port}"));
    let eve = || user("eve", &["system:authenticated"]);
    let (code, refused) = call(&server, eve(), "GET", path, Value::Null).await;
    assert_eq!(code, 403, "{refused}");
    let (_, groups) = call(&server, eve(), "GET", "/apis", Value::Null).await;
    let listed = groups["groups"].as_array().unwrap().iter().find(|g| g["name"] == "far.example");
    assert_eq!(listed.unwrap()["preferredVersion"]["version"], "v1");
    stop.cancel();
}
