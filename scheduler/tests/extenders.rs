//! An extender that is asked who may be pushed out: what it is sent, and that its word counts.

use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use keelson_client::{Body, Client, Transport};
use keelson_scheduler::config::Config;
use keelson_scheduler::core::{Act, Change, Core};
use keelson_scheduler::extender::consult;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// An API that has one pod.
struct Api;

impl Transport for Api {
    fn call(&self, _: Request<Bytes>) -> BoxFuture<'_, std::io::Result<Response<Body>>> {
        let body = Full::new(Bytes::from_static(br#"{"metadata":{"name":"high","namespace":"d"}}"#));
        let body = body.map_err(|never| match never {}).boxed_unsync();
        async move { Ok(Response::new(body)) }.boxed()
    }
}

/// Two nodes, each full with a pod of low priority, and one of high priority that waits.
fn core(url: &str) -> Core {
    let config = json!({"apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration",
        "extenders": [{"urlPrefix": url, "preemptVerb": "preempt", "nodeCacheCapable": true}]});
    let mut core = Core::new(|syms| Config::parse(config, syms), 1).unwrap();
    for name in ["n1", "n2"] {
        let node =
            json!({"metadata": {"name": name}, "status": {"allocatable": {"cpu": "1", "memory": "1Gi", "pods": "10"}}});
        core.apply(Change::Node(Box::new(serde_json::from_value(node).unwrap())), 0);
    }
    for (name, priority, node) in [("low-1", 0, "n1"), ("low-2", 0, "n2"), ("high", 10, "")] {
        let pod = json!({"metadata": {"name": name, "uid": format!("uid-{name}"), "namespace": "d"},
            "spec": {"schedulerName": "default-scheduler", "priority": priority, "nodeName": node,
                "containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "1"}}}]}});
        core.apply(Change::Pod(Box::new(serde_json::from_value(pod).unwrap())), 0);
    }
    core
}

/// Answers one request with `answer`; gives what was asked.
async fn extender(listener: TcpListener, answer: Value) -> Value {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut read = Vec::new();
    let body = loop {
        let mut piece = [0; 4096];
        let count = stream.read(&mut piece).await.unwrap();
        read.extend_from_slice(&piece[..count]);
        let text = String::from_utf8_lossy(&read).into_owned();
        assert!(text.starts_with("POST /x/preempt "), "{text}");
        let Some((_, body)) = text.split_once("\r\n\r\n") else { continue };
        if let Ok(body) = serde_json::from_str(body) {
            break body;
        }
    };
    let answer = answer.to_string();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", answer.len());
    stream.write_all((head + &answer).as_bytes()).await.unwrap();
    body
}

#[tokio::test]
async fn the_word_of_an_extender_counts_in_preemption() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut core = core(&format!("http://{}/x", listener.local_addr().unwrap()));
    let Some(Act::Consult { pod, candidates }) = core.next(0) else { panic!("the extender is to be asked") };
    assert_eq!(candidates.len(), 2);
    let answer = json!({"NodeNameToMetaVictims": {"n2": {"Pods": [{"UID": "uid-low-2"}], "NumPDBViolations": 0}}});
    let asked = tokio::spawn(extender(listener, answer));
    let client = Client::new(Arc::new(Api), "test");
    let kept = consult(&client, core.extenders(), &pod, candidates).await.unwrap();
    let asked = asked.await.unwrap();
    assert_eq!(asked["Pod"]["metadata"]["name"], "high");
    assert_eq!(asked["NodeNameToMetaVictims"]["n1"], json!({"Pods": [{"UID": "uid-low-1"}], "NumPDBViolations": 0}));
    let Some(Act::Fail { nominate, victims, .. }) = core.consulted("uid-high", Ok(kept), 0) else {
        panic!("no decision")
    };
    assert_eq!(nominate.as_deref(), Some("n2"));
    assert_eq!(victims.iter().map(|v| &*v.name).collect::<Vec<_>>(), ["low-2"]);
}

#[test]
fn nobody_goes_if_no_extender_lets_them() {
    for answer in [Ok(Vec::new()), Err("extender a:1: refused".to_owned())] {
        let mut core = core("http://127.0.0.1:1/x");
        assert!(matches!(core.next(0), Some(Act::Consult { .. })));
        assert!(core.next(0).is_none(), "the pod is not tried while the extender is asked");
        let Some(Act::Fail { victims, nominate, .. }) = core.consulted("uid-high", answer, 0) else {
            panic!("no decision")
        };
        assert!(victims.is_empty() && nominate.is_none());
    }
}
