//! Protobuf through the whole pipeline: bodies, answers, lists, watches and refusals.

mod support;

use bytes::Bytes;
use futures::StreamExt;
use http::{Request, Response, header};
use http_body_util::BodyExt;
use keelson_client::Body;
use keelson_machinery::protobuf::{self, MEDIA_TYPE};
use serde_json::{Value, json};
use support::Cluster;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// A request that sends and, unless `accept` says otherwise, wants protobuf.
async fn call(cluster: &Cluster, method: &str, path: &str, accept: &str, body: Vec<u8>) -> Response<Body> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::ACCEPT, accept)
        .header(header::CONTENT_TYPE, MEDIA_TYPE)
        .body(Bytes::from(body))
        .unwrap();
    cluster.send(request).await
}

fn content_type(response: &Response<Body>) -> &str {
    response.headers()[header::CONTENT_TYPE].to_str().unwrap()
}

async fn decoded(response: Response<Body>) -> Value {
    assert_eq!(content_type(&response), MEDIA_TYPE);
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    protobuf::decode(&bytes, ("", "")).unwrap()
}

fn map(name: &str) -> Vec<u8> {
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "b"}});
    protobuf::encode(&object).unwrap()
}

#[tokio::test]
async fn objects_go_in_and_out() {
    let cluster = Cluster::new().await;
    let created = decoded(call(&cluster, "POST", MAPS, MEDIA_TYPE, map("x")).await).await;
    assert_eq!(created["data"], json!({"a": "b"}));
    assert!(created["metadata"]["uid"].is_string());
    let got = decoded(call(&cluster, "GET", &format!("{MAPS}/x"), MEDIA_TYPE, vec![]).await).await;
    assert_eq!(got, created);
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "metadata": {},
        "spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}});
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let answer = decoded(call(&cluster, "POST", path, MEDIA_TYPE, protobuf::encode(&review).unwrap()).await).await;
    assert_eq!(answer["status"]["allowed"], true);
    let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": "other"}});
    let path = format!("{MAPS}/x");
    let refused = call(&cluster, "DELETE", &path, MEDIA_TYPE, protobuf::encode(&options).unwrap()).await;
    assert_eq!(refused.status(), 409);
    assert_eq!(decoded(refused).await["kind"], "Status");
    assert_eq!(decoded(call(&cluster, "DELETE", &path, MEDIA_TYPE, vec![]).await).await["status"], "Success");
}

#[tokio::test]
async fn lists_and_metadata_are_encoded() {
    let cluster = Cluster::new().await;
    for name in ["x", "y"] {
        assert_eq!(call(&cluster, "POST", MAPS, MEDIA_TYPE, map(name)).await.status(), 201);
    }
    let list =
        call(&cluster, "GET", &format!("{MAPS}?limit=1"), "application/vnd.kubernetes.protobuf,*/*", vec![]).await;
    assert_eq!(content_type(&list), MEDIA_TYPE);
    let bytes = list.into_body().collect().await.unwrap().to_bytes();
    assert!(bytes.windows(13).any(|w| w == b"ConfigMapList"));
    let only = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
    let partial = decoded(call(&cluster, "GET", &format!("{MAPS}/x"), only, vec![]).await).await;
    assert_eq!((&partial["kind"], partial.get("data")), (&"PartialObjectMetadata".into(), None));
    let only = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
    let list = call(&cluster, "GET", MAPS, only, vec![]).await;
    assert_eq!(content_type(&list), MEDIA_TYPE);
    let bytes = list.into_body().collect().await.unwrap().to_bytes();
    assert!(bytes.windows(25).any(|w| w == b"PartialObjectMetadataList"));
    let html = call(&cluster, "GET", MAPS, "text/html", vec![]).await;
    assert_eq!((html.status().as_u16(), content_type(&html)), (406, "application/json"));
    let garbage = call(&cluster, "POST", MAPS, MEDIA_TYPE, b"k8s\0\xff".to_vec()).await;
    assert!(decoded(garbage).await["message"].as_str().unwrap().contains("unexpected EOF (6b387300ff)"));
}

#[tokio::test]
async fn watches_are_framed() {
    let cluster = Cluster::new().await;
    let path = format!("{MAPS}?watch=1&resourceVersion=0");
    let watch = call(&cluster, "GET", &path, "application/vnd.kubernetes.protobuf;stream=watch", vec![]).await;
    assert_eq!(content_type(&watch), "application/vnd.kubernetes.protobuf;stream=watch");
    let mut frames = watch.into_body().into_data_stream();
    assert_eq!(call(&cluster, "POST", MAPS, MEDIA_TYPE, map("x")).await.status(), 201);
    let frame = frames.next().await.unwrap().unwrap();
    let (length, event) = frame.split_first_chunk::<4>().unwrap();
    assert_eq!(u32::from_be_bytes(*length) as usize, event.len());
    // Field 1 is the kind of event; the object is in its envelope.
    assert_eq!(&event[..7], b"\x0a\x05ADDED");
    let at = event.windows(4).position(|w| w == protobuf::MAGIC).unwrap();
    assert_eq!(protobuf::decode(&event[at..], ("", "")).unwrap()["metadata"]["name"], "x");
}
