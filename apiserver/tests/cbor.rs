//! CBOR through the whole pipeline, with its gate open: bodies, applied configurations, answers, lists, watches, refusals, custom
//! resources; and what has none. The gate is the process's, so these tests are a binary of their own.

mod support;

use bytes::Bytes;
use futures::StreamExt;
use http::{Request, Response, header};
use http_body_util::BodyExt;
use keelson_apiserver::Settings;
use keelson_apiserver::access::UserInfo;
use keelson_client::Body;
use keelson_machinery::cbor::{self, APPLY_TYPE, MEDIA_TYPE, SEQUENCE_TYPE};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::{Value, json};
use support::{Cluster, admin, user};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const METADATA: &str = "application/cbor;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
const METADATA_LIST: &str = "application/cbor;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
const TABLE: &str = "application/cbor;as=Table;g=meta.k8s.io;v=v1";
/// Bodies of each kind that are sent at random.
const CASES: u32 = 300;

async fn open() -> Cluster {
    Cluster::with(Settings { feature_gates: vec!["CBORServingAndStorage=true".into()], ..Settings::default() }).await
}

async fn call(
    cluster: &Cluster,
    who: UserInfo,
    method: &str,
    path: &str,
    (accept, kind): (&str, &str),
    body: Vec<u8>,
) -> Response<Body> {
    let request = Request::builder().method(method).uri(path).header(header::ACCEPT, accept);
    let request = request.header(header::CONTENT_TYPE, kind).body(Bytes::from(body)).unwrap();
    cluster.server.call(who, request).await
}

/// A request of an admin that sends CBOR and wants it.
async fn send(cluster: &Cluster, method: &str, path: &str, body: Vec<u8>) -> Response<Body> {
    call(cluster, admin(), method, path, (MEDIA_TYPE, MEDIA_TYPE), body).await
}

fn content_type(response: &Response<Body>) -> &str {
    response.headers()[header::CONTENT_TYPE].to_str().unwrap()
}

async fn raw(response: Response<Body>) -> Bytes {
    response.into_body().collect().await.unwrap().to_bytes()
}

/// The code of an answer in CBOR, and what it says.
async fn told(response: Response<Body>) -> (u16, Value) {
    assert_eq!(content_type(&response), MEDIA_TYPE);
    let code = response.status().as_u16();
    let bytes = raw(response).await;
    assert!(bytes.starts_with(&cbor::SELF_DESCRIBED));
    (code, cbor::decode(&bytes).unwrap())
}

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"a": name}}, "data": {"a": "b"}})
}

#[tokio::test]
async fn objects_go_in_and_out() {
    let cluster = open().await;
    let (code, created) = told(send(&cluster, "POST", MAPS, cbor::encode(&map("x"))).await).await;
    assert_eq!((code, &created["data"]), (201, &json!({"a": "b"})));
    let path = format!("{MAPS}/x");
    assert_eq!(told(send(&cluster, "GET", &path, vec![]).await).await, (200, created.clone()));
    assert_eq!(cluster.json("GET", &path, Value::Null).await, (200, created.clone()));
    let mut changed = created.clone();
    changed["data"]["c"] = "d".into();
    let (code, put) = told(send(&cluster, "PUT", &path, cbor::encode(&changed)).await).await;
    assert_eq!((code, &put["data"]), (200, &json!({"a": "b", "c": "d"})));
    let old = told(send(&cluster, "PUT", &path, cbor::encode(&created)).await).await;
    assert_eq!((old.0, &old.1["kind"], &old.1["reason"]), (409, &"Status".into(), &"Conflict".into()));
    let merged = call(
        &cluster,
        admin(),
        "PATCH",
        &path,
        (MEDIA_TYPE, "application/merge-patch+json"),
        b"{\"data\":null}".into(),
    );
    assert_eq!(told(merged.await).await.1.get("data"), None);
    // A Status, a review and options.
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "metadata": {},
        "spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}});
    let reviews = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let (code, answer) = told(send(&cluster, "POST", reviews, cbor::encode(&review)).await).await;
    assert_eq!((code, &answer["status"]["allowed"]), (201, &true.into()));
    let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": "other"}});
    assert_eq!(told(send(&cluster, "DELETE", &path, cbor::encode(&options)).await).await.0, 409);
    let (code, gone) =
        told(send(&cluster, "DELETE", &path, cbor::encode(&json!({"propagationPolicy": "Background"}))).await).await;
    assert_eq!((code, &gone["status"]), (200, &"Success".into()));
    // What a kind calls bytes are bytes.
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"k": "AAECAwQ="}});
    let secrets = "/api/v1/namespaces/default/secrets";
    let bytes = raw(send(&cluster, "POST", secrets, cbor::encode(&secret)).await).await;
    assert!(bytes.windows(7).any(|w| w == [0xd6, 0x45, 0, 1, 2, 3, 4]), "{bytes:02x?}");
    assert_eq!(cluster.json("GET", &format!("{secrets}/s"), Value::Null).await.1["data"], secret["data"]);
}

#[tokio::test]
async fn bodies_that_cannot_be_read_are_refused() {
    let cluster = open().await;
    let handled = "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: ";
    let unknown = "cbor: found unknown field at map element index 0";
    for (query, body, code, why) in [
        ("", &b""[..], 400, "the object provided is unrecognized (must be of type ConfigMap): unable to determine \
            group/version/kind: EOF (<empty>)".to_owned()),
        ("", b"\xa1\x44kind", 400, "the object provided is unrecognized (must be of type ConfigMap): unable to determine \
            group/version/kind: unexpected EOF (a1446b696e64)".to_owned()),
        ("", b"\xa2\x44data\xa2\x41a\x40\x41a\x40\x48metadata\xa1\x44name\x41z", 400,
            format!("{handled}cbor: found duplicate map key \"a\" at map element index 1")),
        ("", b"\xa1\x44data\xa1\x41a\x01", 400,
            format!("{handled}cbor: cannot unmarshal positive integer into Go struct field v1.ConfigMap.data of type string")),
        ("", b"\xa2\x44kind\x43Pod\x4aapiVersion\x42v1", 400,
            "Pod in version \"v1\" cannot be handled as a ConfigMap: converting (v1.Pod) to (core.ConfigMap): unknown conversion".to_owned()),
        ("?fieldValidation=Strict", b"\xa2\x41z\x01\x48metadata\xa1\x44name\x41z", 400, format!("{handled}strict decoding error: {unknown}")),
    ] {
        let (was, status) = told(send(&cluster, "POST", &format!("{MAPS}{query}"), body.to_vec()).await).await;
        assert_eq!((was, status["message"].as_str().unwrap()), (code, &why[..]));
    }
    let odd = b"\xa2\x41z\x01\x48metadata\xa1\x44name\x41z".to_vec();
    for (query, warned) in [("?dryRun=All", true), ("?dryRun=All&fieldValidation=Ignore", false)] {
        let answer = send(&cluster, "POST", &format!("{MAPS}{query}"), odd.clone()).await;
        let warning = answer.headers().get(header::WARNING).map(|value| value.to_str().unwrap().to_owned());
        assert_eq!((answer.status().as_u16(), warning), (201, warned.then(|| format!("299 - \"{unknown}\""))));
    }
    let (code, status) = told(call(&cluster, admin(), "POST", MAPS, (MEDIA_TYPE, "text/x"), vec![]).await).await;
    let types = "application/json, application/yaml, application/vnd.kubernetes.protobuf, application/cbor";
    assert_eq!(code, 415);
    assert!(status["message"].as_str().unwrap().ends_with(types), "{status}");
    // Patches are JSON; there is no other form of them.
    for kind in [
        "application/merge-patch+cbor",
        "application/strategic-merge-patch+cbor",
        "application/json-patch+cbor",
        MEDIA_TYPE,
    ] {
        let refused =
            call(&cluster, admin(), "PATCH", &format!("{MAPS}/x"), (MEDIA_TYPE, kind), b"\xa0".to_vec()).await;
        assert_eq!(refused.status(), 415, "{kind}");
    }
}

#[tokio::test]
async fn configurations_are_applied() {
    let cluster = open().await;
    let apply = |path: String, body: Vec<u8>| {
        let cluster = &cluster;
        async move { told(call(cluster, admin(), "PATCH", &path, (MEDIA_TYPE, APPLY_TYPE), body).await).await }
    };
    let path = |name: &str, manager: &str| format!("{MAPS}/{name}?fieldManager={manager}");
    let (code, made) = apply(path("a", "one"), cbor::encode(&map("a"))).await;
    assert_eq!((code, &made["metadata"]["managedFields"][0]["manager"]), (201, &"one".into()));
    let mut other = map("a");
    other["data"]["a"] = "c".into();
    let (code, conflict) = apply(path("a", "two"), cbor::encode(&other)).await;
    assert_eq!((code, &conflict["details"]["causes"][0]["field"]), (409, &".data.a".into()));
    let (code, forced) = apply(format!("{}&force=true", path("a", "two")), cbor::encode(&other)).await;
    assert_eq!((code, &forced["data"]["a"]), (200, &"c".into()));
    // The same as YAML.
    let of_two = path("a", "two");
    let yaml = call(
        &cluster,
        admin(),
        "PATCH",
        &of_two,
        (MEDIA_TYPE, "application/apply-patch+yaml"),
        other.to_string().into(),
    );
    assert_eq!(told(yaml.await).await.1["metadata"]["resourceVersion"], forced["metadata"]["resourceVersion"]);
    for (body, why) in [
        (&b"\xa0"[..], "invalid object type: /, Kind="),
        (b"\xf6", "invalid object type: /, Kind="),
        (b"\xa2\x41a\x01\x41a\x01", "error decoding YAML: cbor: found duplicate map key \"a\" at map element index 1"),
        (b"\x80", "error decoding YAML: cbor: cannot unmarshal array into Go value of type map[string]interface {}"),
        (b"", "error decoding YAML: EOF"),
    ] {
        let (code, status) = apply(path("a", "one"), body.to_vec()).await;
        assert_eq!((code, status["message"].as_str().unwrap()), (400, why));
    }
}

#[tokio::test]
async fn lists_are_the_same_in_every_form() {
    let cluster = open().await;
    for index in 0..300 {
        let mut map = map(&format!("m-{index:03}"));
        map["data"]["long"] = "x".repeat(1 << 10).into();
        map["metadata"]["labels"]["even"] = (index % 2 == 0).to_string().into();
        cluster.make(MAPS, map).await;
    }
    for query in [
        "",
        "?limit=7",
        "?labelSelector=even=true",
        "?labelSelector=even=none",
        "?resourceVersion=0&limit=3",
        "?pretty=true",
    ] {
        let path = format!("{MAPS}{query}");
        let (_, expected) = cluster.json("GET", &path, Value::Null).await;
        let answer = send(&cluster, "GET", &path, vec![]).await;
        assert_eq!((answer.status().as_u16(), content_type(&answer)), (200, MEDIA_TYPE));
        let written: Vec<Bytes> = answer.into_body().into_data_stream().map(Result::unwrap).collect().await;
        let list = cbor::decode(&written.concat()).unwrap();
        assert_eq!(list, expected, "{query}");
        // What is written while it is read is written as the whole would be.
        assert!(written.concat() == cbor::encode(&list), "{query}");
        assert!(written.iter().all(|piece| piece.len() < 140 << 10), "{query}");
        let only = call(&cluster, admin(), "GET", &path, (METADATA_LIST, MEDIA_TYPE), vec![]).await;
        let (code, only) = told(only).await;
        assert_eq!(
            (code, &only["kind"], &only["apiVersion"]),
            (200, &"PartialObjectMetadataList".into(), &"meta.k8s.io/v1".into())
        );
        let metadata = |list: &Value| -> Vec<Value> {
            list["items"].as_array().unwrap().iter().map(|item| item["metadata"].clone()).collect()
        };
        assert_eq!((metadata(&only), &only["metadata"]), (metadata(&expected), &expected["metadata"]));
    }
    let (code, one) =
        told(call(&cluster, admin(), "GET", &format!("{MAPS}/m-001"), (METADATA, MEDIA_TYPE), vec![]).await).await;
    assert_eq!((code, &one["kind"], one.get("data")), (200, &"PartialObjectMetadata".into(), None));
    // A table is not to be had as CBOR; as what else it may be is as good.
    let refused = call(&cluster, admin(), "GET", MAPS, (TABLE, MEDIA_TYPE), vec![]).await;
    assert_eq!((refused.status().as_u16(), content_type(&refused)), (406, "application/json"));
    let table = format!("{TABLE},application/json;as=Table;g=meta.k8s.io;v=v1");
    let answer = call(&cluster, admin(), "GET", MAPS, (&table, MEDIA_TYPE), vec![]).await;
    assert_eq!((answer.status().as_u16(), content_type(&answer)), (200, "application/json"));
    let (code, deleted) =
        told(send(&cluster, "DELETE", &format!("{MAPS}?labelSelector=even=true"), vec![]).await).await;
    assert_eq!((code, deleted["items"].as_array().unwrap().len()), (200, 150));
}

/// The items of a sequence.
fn sequence(bytes: &[u8]) -> Vec<Value> {
    let mut starts: Vec<usize> =
        (0..bytes.len().saturating_sub(8)).filter(|at| bytes[*at..].starts_with(b"\xd9\xd9\xf7\xa2\x44type")).collect();
    starts.push(bytes.len());
    starts.windows(2).map(|pair| cbor::decode(&bytes[pair[0]..pair[1]]).unwrap()).collect()
}

#[tokio::test]
async fn watches_are_sequences() {
    let cluster = open().await;
    let made = cluster.make(MAPS, map("a")).await;
    let path = format!("{MAPS}?watch=1&resourceVersion=0&labelSelector=a=a&timeoutSeconds=600");
    for (accept, kind) in
        [(MEDIA_TYPE, "ConfigMap"), ("application/cbor;stream=watch", "ConfigMap"), (METADATA, "PartialObjectMetadata")]
    {
        let watch = call(&cluster, admin(), "GET", &path, (accept, MEDIA_TYPE), vec![]).await;
        assert_eq!((watch.status().as_u16(), content_type(&watch)), (200, SEQUENCE_TYPE));
        let mut pieces = watch.into_body().into_data_stream();
        let first = sequence(&pieces.next().await.unwrap().unwrap());
        assert_eq!((first.len(), &first[0]["type"], &first[0]["object"]["kind"]), (1, &"ADDED".into(), &kind.into()));
        if kind == "ConfigMap" {
            assert_eq!(first[0]["object"]["metadata"]["uid"], made["metadata"]["uid"]);
        }
        let (_, changed) = cluster.json("PATCH", &format!("{MAPS}/a"), json!({"data": {"x": accept}})).await;
        let event = sequence(&pieces.next().await.unwrap().unwrap()).remove(0);
        assert_eq!((&event["type"], &event["object"]["metadata"]), (&"MODIFIED".into(), &changed["metadata"]));
    }
    let old = send(&cluster, "GET", &format!("{MAPS}?watch=1&resourceVersion=1&timeoutSeconds=1"), vec![]).await;
    assert_eq!(content_type(&old), SEQUENCE_TYPE);
    let only = call(&cluster, admin(), "GET", &path, (SEQUENCE_TYPE, MEDIA_TYPE), vec![]).await;
    assert_eq!((only.status().as_u16(), content_type(&only)), (406, "application/json"));
}

#[tokio::test]
async fn refusals_are_in_the_form_that_there_is() {
    let cluster = open().await;
    let nobody = || user("nobody", &[]);
    for (who, method, path, code, kind) in [
        (admin(), "GET", "/api/v1/namespaces/default/configmaps/none", 404, MEDIA_TYPE),
        (admin(), "GET", "/api/v1/namespaces/default/configmaps?limit=x", 400, MEDIA_TYPE),
        // What stands before resources, and what is no resource, has no CBOR in v1.36.
        (nobody(), "GET", MAPS, 403, "application/json"),
        (admin(), "GET", "/apis/none.example/v1/things", 404, "text/plain; charset=utf-8"),
        (admin(), "GET", "/api/v1", 406, "application/json"),
        (admin(), "GET", "/apis", 406, "application/json"),
    ] {
        let answer = call(&cluster, who, method, path, (MEDIA_TYPE, MEDIA_TYPE), vec![]).await;
        assert_eq!((answer.status().as_u16(), content_type(&answer)), (code, kind), "{path}");
    }
    let apis =
        call(&cluster, admin(), "GET", "/apis", ("application/cbor,application/json;q=0.5", MEDIA_TYPE), vec![]).await;
    assert_eq!((apis.status().as_u16(), content_type(&apis)), (200, "application/json"));
    let (code, document) = cluster.json("GET", "/openapi/v3/api/v1", Value::Null).await;
    assert_eq!(code, 200);
    let path = &document["paths"]["/api/v1/namespaces/{namespace}/configmaps/{name}"];
    assert!(path["patch"]["requestBody"]["content"][APPLY_TYPE].is_object());
    assert!(path["get"]["responses"]["200"]["content"][MEDIA_TYPE].is_object());
}

#[tokio::test]
async fn custom_resources_and_scales_have_it() {
    let cluster = open().await;
    let schema = json!({"type": "object", "properties": {
        "spec": {"type": "object", "properties": {"replicas": {"type": "integer"}, "share": {"type": "number"}, "raw": {"type": "string"}}},
        "status": {"type": "object", "properties": {"replicas": {"type": "integer"}}}}});
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.a.example"}, "spec": {"group": "a.example", "scope": "Namespaced",
        "names": {"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema},
            "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}}}]}});
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    assert_eq!(told(send(&cluster, "POST", definitions, cbor::encode(&definition)).await).await.0, 201);
    let things = "/apis/a.example/v1/namespaces/default/things";
    cluster.until(things, |code, _| code == 200).await;
    let thing = json!({"apiVersion": "a.example/v1", "kind": "Thing", "metadata": {"name": "t"},
        "spec": {"replicas": 2, "share": 0.5, "raw": "x", "more": 1}});
    let (code, refused) =
        told(send(&cluster, "POST", &format!("{things}?fieldValidation=Strict"), cbor::encode(&thing)).await).await;
    assert_eq!(code, 400);
    assert!(refused["message"].as_str().unwrap().ends_with("unknown field \"spec.more\""), "{refused}");
    // Bytes that say what they become are that in a resource without a type for bytes.
    let body = [
        &b"\xd9\xd9\xf7\xa4\x4aapiVersion\x4ca.example/v1\x44kind\x45Thing\x48metadata\xa1\x44name\x41t\x44spec\xa3\
        \x48replicas\x02\x45share\xf9\x38\x00\x43raw\xd6"[..],
        &[0x42, 0xff, 0xfe],
    ]
    .concat();
    let (code, made) = told(send(&cluster, "POST", things, body).await).await;
    assert_eq!((code, &made["spec"]), (201, &json!({"replicas": 2, "share": 0.5, "raw": "//4="})));
    let (_, list) = told(send(&cluster, "GET", things, vec![]).await).await;
    assert_eq!((&list["kind"], &list["items"][0]), (&"ThingList".into(), &made));
    let scale = format!("{things}/t/scale");
    let (code, mut seen) = told(send(&cluster, "GET", &scale, vec![]).await).await;
    assert_eq!((code, &seen["spec"]["replicas"]), (200, &2.into()));
    seen["spec"]["replicas"] = 5.into();
    assert_eq!(told(send(&cluster, "PUT", &scale, cbor::encode(&seen)).await).await.1["spec"]["replicas"], 5);
    let applied =
        json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "t"}, "spec": {"replicas": 6}});
    let path = format!("{scale}?fieldManager=m&force=true");
    let answer = call(&cluster, admin(), "PATCH", &path, (MEDIA_TYPE, APPLY_TYPE), cbor::encode(&applied)).await;
    assert_eq!(told(answer).await.1["spec"]["replicas"], 6);
    let one = format!("{things}/t");
    let refused =
        call(&cluster, admin(), "PATCH", &one, (MEDIA_TYPE, "application/strategic-merge-patch+json"), vec![]);
    let (code, refused) = told(refused.await).await;
    assert_eq!(code, 415);
    assert!(
        refused["message"].as_str().unwrap().ends_with("application/apply-patch+yaml, application/apply-patch+cbor"),
        "{refused}"
    );
}

/// Whatever is sent as CBOR is answered, and what is made of it can be read.
#[test]
fn any_body_is_answered() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let cluster = runtime.block_on(open());
    let pod = cbor::encode(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}], "resources": {"limits": {"cpu": "1"}}}]}}));
    let broken =
        (prop::collection::vec((0..pod.len(), any::<u8>()), 0..4), 0..=pod.len()).prop_map(move |(changes, end)| {
            let mut bytes = pod.clone();
            changes.into_iter().for_each(|(at, byte)| bytes[at] = byte);
            bytes.truncate(end.max(8));
            bytes
        });
    let body = prop_oneof![3 => broken, 1 => prop::collection::vec(any::<u8>(), 0..64)];
    let methods = prop::sample::select(&["POST", "PUT", "PATCH", "DELETE"][..]);
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let strategy = (methods, prop::sample::select(&["pods", "secrets", "configmaps"][..]), body);
    let run = runner.run(&strategy, |(method, plural, body)| {
        let path = match method {
            "POST" => format!("/api/v1/namespaces/default/{plural}"),
            _ => format!("/api/v1/namespaces/default/{plural}/x?fieldManager=m"),
        };
        let kind = if method == "PATCH" { APPLY_TYPE } else { MEDIA_TYPE };
        let (code, bytes) = runtime.block_on(async {
            let answer = call(&cluster, admin(), method, &path, (MEDIA_TYPE, kind), body).await;
            (answer.status().as_u16(), raw(answer).await)
        });
        let told = cbor::decode(&bytes).map_err(TestCaseError::fail)?;
        prop_assert!(code < 500 && told["kind"].is_string(), "{}: {}", code, told);
        Ok(())
    });
    run.unwrap();
}
