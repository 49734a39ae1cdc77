//! Whatever comes over the network is answered: requests, tokens and certificate requests made of parts that mean something and
//! parts that do not. Nothing panics, and nobody becomes somebody by it.

mod support;

use std::sync::OnceLock;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::Request;
use http_body_util::BodyExt;
use keelson_machinery::resources::RESOURCES;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::{Value, json};
use support::{Cluster, admin};

/// Requests of each kind.
const CASES: u32 = 400;

fn part() -> impl Strategy<Value = String> {
    static PLURALS: OnceLock<Vec<String>> = OnceLock::new();
    const KNOWN: &[&str] =
        &["api", "apis", "v1", "apps", "namespaces", "default", "watch", "status", "scale", "proxy", "log", "x"];
    const ODD: &[&str] =
        &["", "..", ".", "%2f", "%2e%2e", "%00", "%", "%zz", "a%2Fb", "ä", "*", "~", "a b", "{name}", "\u{202e}"];
    let plurals = PLURALS.get_or_init(|| RESOURCES.iter().map(|row| row.plural.to_owned()).collect());
    prop_oneof![
        4 => select(KNOWN).prop_map(str::to_owned),
        3 => select(&plurals[..]),
        2 => select(ODD).prop_map(str::to_owned),
        1 => "\\PC{0,8}",
    ]
}

fn query() -> impl Strategy<Value = String> {
    const KEYS: &[&str] = &[
        "watch",
        "limit",
        "continue",
        "resourceVersion",
        "resourceVersionMatch",
        "labelSelector",
        "fieldSelector",
        "dryRun",
        "fieldManager",
        "force",
        "pretty",
        "fieldValidation",
        "propagationPolicy",
        "gracePeriodSeconds",
        "sendInitialEvents",
        "allowWatchBookmarks",
        "orphanDependents",
        "container",
        "hash",
    ];
    const VALUES: &[&str] = &[
        "",
        "0",
        "1",
        "-1",
        "true",
        "All",
        "99999999999999999999",
        "a=b,c in (d)",
        "!(",
        "metadata.name=x",
        "a==",
        "%00",
        "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6LTEsInN0YXJ0IjoiYSJ9",
        "NotOlderThan",
        "Exact",
        "Strict",
    ];
    let value = prop_oneof![select(VALUES).prop_map(str::to_owned), "\\PC{0,12}"];
    prop::collection::vec((select(KEYS), value), 0..4).prop_map(|pairs| {
        // A watch ends soon.
        let pairs: Vec<String> = pairs.into_iter().map(|(key, value)| format!("{key}={value}")).collect();
        format!("{}&timeoutSeconds=1", pairs.join("&"))
    })
}

fn json_of(depth: u32) -> impl Strategy<Value = Value> {
    const KEYS: &[&str] =
        &["metadata", "spec", "name", "kind", "apiVersion", "data", "containers", "labels", "status", "items", "0"];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,10}".prop_map(Value::from),
    ];
    leaf.prop_recursive(depth, 32, 4, move |inner| {
        let fields = prop::collection::btree_map(select(KEYS).prop_map(str::to_owned), inner.clone(), 0..4);
        prop_oneof![
            prop::collection::vec(inner, 0..4).prop_map(Value::from),
            fields.prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    const YAML: &[&str] = &["a: &a [*a]", "- - - -", "? {}", "%YAML 9", "a: !!binary x", "---\n---\n", "\t"];
    prop_oneof![
        3 => json_of(4).prop_map(|value| value.to_string().into_bytes()),
        2 => json_of(3).prop_map(|value| {
            let row = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "x"}, "data": value});
            row.to_string().into_bytes()
        }),
        1 => json_of(3).prop_map(|value| json!([{"op": "replace", "path": "/metadata/name", "value": value}]).to_string().into_bytes()),
        1 => select(YAML).prop_map(|text| text.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..64).prop_map(|bytes| [&b"k8s\0"[..], &bytes].concat()),
        1 => prop::collection::vec(any::<u8>(), 0..64),
    ]
}

/// A server, and what runs many cases against it: the same ones each time.
struct Bench {
    runtime: tokio::runtime::Runtime,
    cluster: Cluster,
}

impl Bench {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let cluster = runtime.block_on(Cluster::new());
        Self { runtime, cluster }
    }

    fn run<S: Strategy>(&self, strategy: &S, check: impl Fn(S::Value) -> Result<(), TestCaseError>) {
        let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
        TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
            .run(strategy, check)
            .unwrap();
    }
}

#[test]
fn every_request_is_answered() {
    let bench = Bench::new();
    const METHODS: &[&str] = &["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE"];
    const KINDS: &[&str] = &[
        "application/json",
        "application/yaml",
        "application/vnd.kubernetes.protobuf",
        "application/json-patch+json",
        "application/merge-patch+json",
        "application/strategic-merge-patch+json",
        "application/apply-patch+yaml",
        "text/x",
        "",
    ];
    const ACCEPTED: &[&str] = &[
        "",
        "application/json;as=Table;g=meta.k8s.io;v=v1",
        "application/yaml",
        "application/vnd.kubernetes.protobuf",
        ";q=,",
        "*/*",
    ];
    let path = prop::collection::vec(part(), 1..8).prop_map(|parts| format!("/{}", parts.join("/")));
    let strategy = (select(METHODS), path, query(), (select(KINDS), select(ACCEPTED)), body());
    bench.run(&strategy, |(method, path, query, (kind, accept), body)| {
        let text = format!("{path}?{query}");
        // What is no URI does not come through HTTP.
        let Ok(uri) = text.parse::<http::Uri>() else { return Ok(()) };
        let request = Request::builder().method(method).uri(uri).header("content-type", kind).header("accept", accept);
        let request = request.body(body.into()).unwrap();
        let code = bench.runtime.block_on(async {
            let response = bench.cluster.server.call(admin(), request).await;
            let code = response.status().as_u16();
            let bytes = response.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
            (code, String::from_utf8_lossy(&bytes).into_owned())
        });
        prop_assert!(!code.1.contains("the request panicked"), "{method} {text}: {code:?}");
        prop_assert!((200..600).contains(&code.0));
        Ok(())
    });
}

#[test]
fn tokens_made_up_are_nobodys() {
    let bench = Bench::new();
    let segment = prop_oneof![
        json_of(3).prop_map(|value| URL_SAFE_NO_PAD.encode(value.to_string())),
        Just(URL_SAFE_NO_PAD.encode(r#"{"alg":"none","kid":"x"}"#)),
        Just(URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256"}"#)),
        Just(URL_SAFE_NO_PAD.encode(r#"{"iss":"https://kubernetes.default.svc","sub":"system:serviceaccount:default:default","aud":["x"],"exp":99999999999}"#)),
        "[A-Za-z0-9_=-]{0,20}",
    ];
    let strategy = prop::collection::vec(segment, 1..5).prop_map(|parts| parts.join("."));
    bench.run(&strategy, |token| {
        let review = json!({"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "spec": {"token": token}});
        let path = "/apis/authentication.k8s.io/v1/tokenreviews";
        let (_, answer) = bench.runtime.block_on(bench.cluster.json("POST", path, review));
        prop_assert_ne!(&answer["status"]["authenticated"], &Value::Bool(true), "{}", token);
        prop_assert!(!answer.to_string().contains("panicked"), "{} {}", token, answer);
        Ok(())
    });
}

#[test]
fn broken_certificate_requests_are_refused() {
    let bench = Bench::new();
    let (pem, _) = keelson_pki::certificate_request("jane", &["a", "b"], &["x".into()]).unwrap();
    let text: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let der = STANDARD.decode(text).unwrap();
    let strategy = prop::collection::vec((0..der.len(), any::<u8>()), 1..4);
    bench.run(&strategy, |changes| {
        let mut broken = der.clone();
        changes.iter().for_each(|(at, byte)| broken[*at] = *byte);
        if broken == der {
            return Ok(());
        }
        let pem = format!("-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n", STANDARD.encode(&broken));
        let object = json!({"kind": "CertificateSigningRequest", "apiVersion": "certificates.k8s.io/v1", "metadata": {"generateName": "r-"},
            "spec": {"request": STANDARD.encode(pem), "signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"]}});
        let path = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
        let (code, answer) = bench.runtime.block_on(bench.cluster.json("POST", path, object));
        prop_assert_eq!(code, 422, "{}", answer);
        Ok(())
    });
}
