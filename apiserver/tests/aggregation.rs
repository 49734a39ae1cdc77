//! An API server behind this one: a small TLS server of the test's own that trusts the front proxy's certificate alone.

mod support;

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use support::hook::{Answer, Asked, Hook, told};
use support::{Cluster, user};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

const SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";

fn resources(version: &str) -> Value {
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": format!("far.example/{version}"), "resources": [
        {"name": "stars", "singularName": "star", "namespaced": false, "kind": "Star", "verbs": ["get", "list", "watch"],
            "shortNames": ["st"]}]})
}

/// Its OpenAPI of version 2: version v1 alone, and a type that the API server knows too.
fn explained() -> Value {
    let answer = json!({"200": {"description": "OK", "schema": {"$ref": "#/definitions/example.far.v1.Star"}}});
    json!({"swagger": "2.0", "info": {"title": "far", "version": "1"},
        "paths": {
            "/apis/far.example/v1/stars": {"get": {"operationId": "listStars", "produces": ["application/json"], "responses": answer,
                "x-kubernetes-action": "list", "x-kubernetes-group-version-kind": {"group": "far.example", "version": "v1", "kind": "Star"}}},
            "/version/": {"get": {"operationId": "theirs", "responses": {}}}},
        "definitions": {
            "example.far.v1.Star": {"type": "object", "properties": {"metadata": {"$ref": "#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"},
                "brightness": {"type": "integer", "description": "How bright it is."}},
                "x-kubernetes-group-version-kind": [{"group": "far.example", "version": "v1", "kind": "Star"}]},
            "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta": {"type": "object", "description": "theirs"},
            "unused": {"type": "object"}}})
}

/// The server behind: discovery, OpenAPI, a watch whose second event waits, an upgrade that echoes, and else who asked.
struct Far {
    more: Arc<Notify>,
    documents: Mutex<u32>,
}

impl Far {
    fn answer(&self, request: &mut Request<Incoming>, asked: &Asked, certificate: &str) -> Answer {
        let text =
            |name: &str| request.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        match asked.path.as_str() {
            "/apis/far.example/v1" => return told(&resources("v1")),
            "/apis/far.example/v2" => return told(&resources("v2")),
            "/openapi/v2" => {
                *self.documents.lock() += 1;
                return told(&explained());
            }
            "/openapi/v3" => {
                return told(
                    &json!({"paths": {"apis/far.example/v2": {"serverRelativeURL": "/openapi/v3/apis/far.example/v2?hash=THEIRS"}}}),
                );
            }
            path if path.contains("watch=") => return self.watch(),
            path if path.ends_with("/stars?limit=500") => {
                let star =
                    |name: &str| json!({"kind": "Star", "apiVersion": "far.example/v2", "metadata": {"name": name}});
                return told(&json!({"kind": "StarList", "apiVersion": "far.example/v2", "metadata": {},
                    "items": [star("sirius"), star("vega")]}));
            }
            path if path.ends_with("/speak") => return echo(request),
            _ => {}
        }
        let groups: Vec<_> = request.headers().get_all("x-remote-group").iter().map(|v| v.to_str().unwrap()).collect();
        told(
            &json!({"path": request.uri().to_string(), "user": text("x-remote-user"), "groups": groups, "by": certificate,
            "authorization": text("authorization"), "host": text("host")}),
        )
    }

    fn watch(&self) -> Answer {
        let more = self.more.clone();
        let events = futures::stream::unfold(0, move |index| {
            let more = more.clone();
            async move {
                let event = match index {
                    0 => "{\"type\":\"ADDED\"}\n",
                    1 => {
                        more.notified().await;
                        "{\"type\":\"DELETED\"}\n"
                    }
                    _ => return None,
                };
                Some((Ok(Frame::data(Bytes::from(event))), index + 1))
            }
        });
        Response::new(BodyExt::boxed(StreamBody::new(events)))
    }
}

fn echo(request: &mut Request<Incoming>) -> Answer {
    let upgrade = hyper::upgrade::on(request);
    tokio::spawn(async move {
        let mut stream = TokioIo::new(upgrade.await.unwrap());
        let mut buffer = [0; 5];
        stream.read_exact(&mut buffer).await.unwrap();
        buffer.reverse();
        stream.write_all(&buffer).await.unwrap();
        stream.shutdown().await.unwrap();
    });
    let switched = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS).header("connection", "upgrade");
    switched.header("upgrade", "spdy/3.1").body(Full::default().boxed()).unwrap()
}

/// A cluster with a server behind it, which serves two versions.
async fn behind() -> (Cluster, Hook, Arc<Notify>) {
    let cluster = Cluster::new().await;
    let more = Arc::new(Notify::new());
    let far = Far { more: more.clone(), documents: Mutex::new(0) };
    let proxies = cluster.pki.cluster.certificate();
    let answers = move |request: &mut Request<Incoming>, asked: &Asked, name: &str| far.answer(request, asked, name);
    let hook = Hook::start(&["far.default.svc"], &proxies, answers).await;
    let service = json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": "far"},
        "spec": {"type": "ExternalName", "externalName": "127.0.0.1", "ports": [{"port": hook.port}]}});
    cluster.make("/api/v1/namespaces/default/services", &service).await;
    for version in ["v1", "v2"] {
        let name = format!("{version}.far.example");
        let made = json!({"kind": "APIService", "apiVersion": "apiregistration.k8s.io/v1", "metadata": {"name": name},
            "spec": {"group": "far.example", "version": version, "groupPriorityMinimum": 100, "versionPriority": 10,
                "caBundle": hook.bundle(), "service": {"name": "far", "namespace": "default", "port": hook.port}}});
        cluster.make(SERVICES, &made).await;
    }
    for version in ["v1", "v2"] {
        let path = format!("{SERVICES}/{version}.far.example");
        cluster.until(&path, |_, now| now["status"]["conditions"][0]["reason"] == "Passed").await;
        // What the condition says counts as soon as it has been seen here.
        cluster.until(&format!("/apis/far.example/{version}/stars"), |code, _| code == 200).await;
    }
    (cluster, hook, more)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_handed_on_with_who_asks() {
    let (cluster, hook, _) = behind().await;
    let path = "/apis/far.example/v1/stars/sun?pretty=1";
    let (code, told) = cluster.json("GET", path, &Value::Null).await;
    assert_eq!((code, told["path"].as_str()), (200, Some(path)));
    assert_eq!((&told["user"], &told["by"]), (&json!("admin"), &json!("front-proxy-client")));
    assert_eq!(told["groups"], json!(["system:masters", "system:authenticated"]));
    assert_eq!(told["host"], format!("far.default.svc:{}", hook.port));
    let (code, refused) = cluster.call(user("eve", &[]), "GET", path, &Value::Null).await;
    assert_eq!(code, 403, "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn discovery_and_openapi_tell_of_the_groups_behind() {
    let (cluster, ..) = behind().await;
    let (_, groups) = cluster.call(user("eve", &[]), "GET", "/apis", &Value::Null).await;
    let listed = groups["groups"].as_array().unwrap().iter().find(|g| g["name"] == "far.example").unwrap();
    assert_eq!(listed["versions"].as_array().unwrap().len(), 2, "{listed}");
    let request =
        Request::get("/apis").header("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList");
    let response = cluster.send(request.body(Bytes::new()).unwrap()).await;
    let all: Value = serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap();
    let group = all["items"].as_array().unwrap().iter().find(|g| g["metadata"]["name"] == "far.example").unwrap();
    assert_eq!(group["versions"][0]["resources"][0]["responseKind"]["kind"], "Star", "{group}");
    assert_eq!(group["versions"][0]["freshness"], "Current");

    // Version 2 is one document for all.
    let whole = cluster.until("/openapi/v2", |_, all| all["definitions"]["example.far.v1.Star"].is_object()).await;
    let list = &whole["paths"]["/apis/far.example/v1/stars"]["get"];
    assert_eq!(list["operationId"], "listStars");
    assert_ne!(
        whole["paths"]["/version/"]["get"]["operationId"], "theirs",
        "of others' paths only their group's count"
    );
    let meta = &whole["definitions"]["io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"];
    assert_ne!(meta["description"], "theirs", "what is known here is not replaced");
    assert!(whole["definitions"]["unused"].is_null());
    assert!(whole["paths"]["/api/v1/pods"].is_object() && whole["parameters"].is_object());

    // Version 3: v2's document is the server's own, v1's is made of its version 2.
    let (_, root) = cluster.json("GET", "/openapi/v3", &Value::Null).await;
    let own = root["paths"]["apis/far.example/v2"]["serverRelativeURL"].as_str().unwrap();
    assert!(own.ends_with("?hash=THEIRS"), "{own}");
    let (_, handed) = cluster.json("GET", own, &Value::Null).await;
    assert_eq!(handed["path"], own, "asked of the server itself");
    let made = root["paths"]["apis/far.example/v1"]["serverRelativeURL"].as_str().unwrap();
    let (code, made) = cluster.json("GET", made, &Value::Null).await;
    assert_eq!(code, 200, "{made}");
    let star = &made["components"]["schemas"]["example.far.v1.Star"];
    assert_eq!(star["properties"]["brightness"]["description"], "How bright it is.");
    let answer = &made["paths"]["/apis/far.example/v1/stars"]["get"]["responses"]["200"]["content"]["application/json"];
    assert_eq!(answer["schema"]["$ref"], "#/components/schemas/example.far.v1.Star", "{made}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_and_upgrades_go_through() {
    let (cluster, _hook, more) = behind().await;
    let response = cluster.send(Request::get("/apis/far.example/v1/stars?watch=1").body(Bytes::new()).unwrap()).await;
    let mut body = response.into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(&first[..], b"{\"type\":\"ADDED\"}\n", "an event comes while the next one is not there yet");
    more.notify_one();
    let second = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(&second[..], b"{\"type\":\"DELETED\"}\n");
    assert!(body.frame().await.is_none(), "it ends when the server behind ends it");

    let door = cluster.listen().await;
    let admin = door.pki.cluster.issue_client("admin", &["system:masters"]).unwrap();
    let mut client = door.client(Some(&admin)).await;
    let request = Request::post("/apis/far.example/v1/stars/sun/speak").header("host", "localhost");
    let request = request.header("connection", "Upgrade").header("upgrade", "SPDY/3.1").body(Full::default()).unwrap();
    let mut response = client.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let mut stream = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    stream.write_all(b"hello").await.unwrap();
    let mut echoed = Vec::new();
    stream.read_to_end(&mut echoed).await.unwrap();
    assert_eq!(echoed, b"olleh");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_sees_what_is_behind() {
    if std::process::Command::new("kubectl").args(["version", "--client"]).output().is_err() {
        eprintln!("SKIPPED: kubectl is not installed");
        return;
    }
    let (cluster, _hook, _) = behind().await;
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = directory.path().join("kubeconfig");
    cluster.listen().await.kubeconfig(&kubeconfig);
    let run = async |args: &[&str]| {
        let mut command = std::process::Command::new("kubectl");
        // What it keeps of discovery is its own, so that it asks.
        command.env("HOME", directory.path()).arg("--kubeconfig").arg(&kubeconfig).args(args);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let kinds = run(&["api-resources", "--api-group", "far.example", "--no-headers"]).await;
    let words: Vec<&str> = kinds.split_whitespace().collect();
    assert_eq!((words.first(), words.get(1), words.last()), (Some(&"stars"), Some(&"st"), Some(&"Star")), "{kinds}");
    assert_eq!(run(&["get", "st", "-o", "name"]).await, "star.far.example/sirius\nstar.far.example/vega\n");
    let services = run(&["get", "apiservice", "v1.far.example", "--no-headers"]).await;
    assert!(services.contains("default/far") && services.contains("True"), "{services}");
    let explained = run(&["explain", "stars.brightness", "--api-version", "far.example/v1"]).await;
    assert!(explained.contains("How bright it is."), "{explained}");
}
