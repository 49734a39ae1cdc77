//! Whatever extends the server is read or refused: definitions with any schema and rule, what webhooks answer, and the
//! operator's files. Nothing panics, and nothing that makes no sense is let through.

mod support;

use std::sync::Arc;

use keelson_apiserver::{audit, authn, authz, objects};
use parking_lot::Mutex;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::{Value, json};
use support::Cluster;
use support::hook::{Hook, told};

/// Cases of each kind.
const CASES: u32 = 300;

fn run<S: Strategy>(strategy: &S, check: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha)).run(strategy, check).unwrap();
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Documents whose fields have these names and whose texts are often these.
fn document(keys: &'static [&'static str], words: &'static [&'static str]) -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        6 => select(words).prop_map(Value::from),
        1 => Just(Value::Null),
        1 => any::<bool>().prop_map(Value::from),
        1 => any::<i64>().prop_map(Value::from),
        1 => any::<f64>().prop_map(Value::from),
        1 => "\\PC{0,10}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 48, 5, move |inner| {
        let fields = prop::collection::btree_map(select(keys).prop_map(str::to_owned), inner.clone(), 0..6);
        prop_oneof![
            1 => prop::collection::vec(inner, 0..4).prop_map(Value::from),
            3 => fields.prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

const SCHEMA_KEYS: &[&str] = &[
    "type",
    "properties",
    "items",
    "additionalProperties",
    "required",
    "default",
    "enum",
    "pattern",
    "format",
    "minimum",
    "maximum",
    "multipleOf",
    "maxLength",
    "maxItems",
    "nullable",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "x-kubernetes-validations",
    "rule",
    "message",
    "messageExpression",
    "fieldPath",
    "reason",
    "optionalOldSelf",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-map-type",
    "x-kubernetes-int-or-string",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-embedded-resource",
    "a",
    "spec",
    "metadata",
    "$ref",
];
const SCHEMA_WORDS: &[&str] = &[
    "object",
    "array",
    "string",
    "integer",
    "number",
    "boolean",
    "null",
    "a",
    "set",
    "map",
    "atomic",
    "date-time",
    "self == oldSelf",
    "self.a.all(x, x > 1)",
    "self.a[0].b + 1u",
    "[self].map(x, x)[0]",
    "[1,2].map(x, x, [x])",
    "'a'.matches('(')",
    "has(self.a) ? self.a : optional.none()",
    "((((((",
    "{'a': 1}.a",
    "\"\\u12",
    ".spec.a[",
    "quantity('1').add(self)",
    "^(a+)+$",
    "(",
    "FieldValueInvalid",
    "timestamp(self) - duration('1h')",
];

#[test]
fn every_schema_and_rule_is_judged() {
    let (runtime, path) = (runtime(), "/apis/apiextensions.k8s.io/v1/customresourcedefinitions?dryRun=All");
    let cluster = runtime.block_on(Cluster::new());
    let rule = json!([{"rule": "self.spec == oldSelf.spec"}]);
    run(&(document(SCHEMA_KEYS, SCHEMA_WORDS), any::<bool>()), |(schema, rooted)| {
        let schema = match rooted {
            true => json!({"type": "object", "properties": {"spec": schema}, "x-kubernetes-validations": rule}),
            false => schema,
        };
        let definition = json!({"kind": "CustomResourceDefinition", "apiVersion": "apiextensions.k8s.io/v1", "metadata": {"name": "things.example.com"},
            "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}});
        let (code, answer) = runtime.block_on(cluster.json("POST", path, definition));
        prop_assert!(matches!(code, 201 | 400 | 422), "{}: {}", code, answer);
        prop_assert!(!answer.to_string().contains("panicked"), "{}", answer);
        Ok(())
    });
}

const REVIEW_KEYS: &[&str] = &[
    "response",
    "uid",
    "allowed",
    "status",
    "message",
    "code",
    "patch",
    "patchType",
    "warnings",
    "kind",
    "apiVersion",
    "auditAnnotations",
];
const REVIEW_WORDS: &[&str] = &[
    "AdmissionReview",
    "admission.k8s.io/v1",
    "admission.k8s.io/v1beta1",
    "JSONPatch",
    "not base64",
    "e30=",
    "W10=",
    // A patch that gives a label, one that takes the metadata away, one without an operation, one for nothing.
    "W3sib3AiOiJhZGQiLCJwYXRoIjoiL21ldGFkYXRhL2xhYmVscyIsInZhbHVlIjp7ImEiOiJiIn19XQ==",
    "W3sib3AiOiJyZW1vdmUiLCJwYXRoIjoiL21ldGFkYXRhIn1d",
    "W3sicGF0aCI6Ii9hIn1d",
    "W3sib3AiOiJyZW1vdmUiLCJwYXRoIjoiL25vdGhpbmcvYXQvYWxsIn1d",
];

#[test]
fn what_webhooks_answer_is_taken_or_refused() {
    let runtime = runtime();
    let answer: Arc<Mutex<Value>> = Arc::default();
    let told_now = answer.clone();
    let (cluster, _hook) = runtime.block_on(async {
        let cluster = Cluster::new().await;
        let hook = Hook::start(&["127.0.0.1"], "", move |_: &mut http::Request<_>, asked: &support::hook::Asked, _: &str| {
            let mut answer = told_now.lock().clone();
            // Without the request's own uid nothing further is looked at.
            if answer["response"].is_object() && answer["response"]["uid"].is_null() {
                answer["response"]["uid"] = asked.body["request"]["uid"].clone();
            }
            told(&answer)
        })
        .await;
        let hooks = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
        cluster
            .make(
                hooks,
                json!({"kind": "MutatingWebhookConfiguration", "apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": "h"},
                    "webhooks": [{"name": "h.example.com", "clientConfig": hook.at("/"), "sideEffects": "None", "admissionReviewVersions": ["v1"],
                        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}]}]}),
            )
            .await;
        (cluster, hook)
    });
    let of_form = (document(REVIEW_KEYS, REVIEW_WORDS), any::<bool>()).prop_map(|(inner, rooted)| match rooted {
        true => json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": inner}),
        false => inner,
    });
    run(&of_form, |review| {
        *answer.lock() = review.clone();
        let map = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "m"}});
        let (code, told) =
            runtime.block_on(cluster.json("POST", "/api/v1/namespaces/default/configmaps?dryRun=All", map));
        prop_assert!(
            (200..600).contains(&code) && !told.to_string().contains("panicked"),
            "{}: {} {}",
            review,
            code,
            told
        );
        // Only a review that says so lets anything in.
        let allows = review["kind"] == "AdmissionReview" && review["response"]["allowed"] == true;
        prop_assert!(code != 201 || allows, "{}: {}", review, told);
        Ok(())
    });
}

const FILE_KEYS: &[&str] = &[
    "apiVersion",
    "kind",
    "jwt",
    "issuer",
    "url",
    "audiences",
    "certificateAuthority",
    "claimMappings",
    "username",
    "claim",
    "prefix",
    "expression",
    "groups",
    "extra",
    "key",
    "valueExpression",
    "claimValidationRules",
    "userValidationRules",
    "anonymous",
    "enabled",
    "conditions",
    "path",
    "authorizers",
    "type",
    "name",
    "webhook",
    "timeout",
    "failurePolicy",
    "connectionInfo",
    "kubeConfigFile",
    "matchConditions",
    "rules",
    "level",
    "resources",
    "group",
    "users",
    "verbs",
    "namespaces",
    "nonResourceURLs",
    "omitStages",
    "spec",
    "user",
    "resource",
    "readonly",
];
const FILE_WORDS: &[&str] = &[
    "apiserver.config.k8s.io/v1",
    "AuthenticationConfiguration",
    "AuthorizationConfiguration",
    "audit.k8s.io/v1",
    "Policy",
    "abac.authorization.kubernetes.io/v1beta1",
    "https://issuer.example",
    "claims.sub",
    "claims.",
    "user.username == 'a'",
    "Webhook",
    "RBAC",
    "Node",
    "Deny",
    "KubeConfigFile",
    "10s",
    "RequestResponse",
    "Metadata",
    "*",
    "/healthz*",
    "RequestReceived",
    "",
];

#[test]
fn the_operators_files_are_read_or_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    let store = tempfile::tempdir().unwrap();
    let replica = objects::Objects { kv: Arc::new(keelson_store::LocalKv::open(store.path()).unwrap()) };
    let pki = Arc::new(keelson_pki::ClusterPki::create().unwrap());
    let heads = select(
        &[
            ("apiserver.config.k8s.io/v1", "AuthenticationConfiguration"),
            ("apiserver.config.k8s.io/v1", "AuthorizationConfiguration"),
            ("audit.k8s.io/v1", "Policy"),
            ("abac.authorization.kubernetes.io/v1beta1", "Policy"),
        ][..],
    );
    let text = prop_oneof![
        8 => (document(FILE_KEYS, FILE_WORDS), heads).prop_map(|(mut document, (version, kind))| {
            if let Some(map) = document.as_object_mut() {
                map.insert("apiVersion".into(), version.into());
                map.insert("kind".into(), kind.into());
            }
            document.to_string()
        }),
        1 => "\\PC{0,40}",
        1 => select(&["a: &a [*a]", "---\n---", "{", "\t", "- - -", "a: b: c"][..]).prop_map(str::to_owned),
    ];
    run(&text, |text| {
        std::fs::write(&path, &text).unwrap();
        let file = Some(path.clone());
        // A panic is what fails; what is read and what is refused say the tests of each file's own rules.
        let users = authn::Settings { config: file.clone(), ..authn::Settings::default() };
        let read = authn::Authentication::load(replica.clone(), pki.clone(), &users);
        prop_assert!(read.is_err() || text.contains("AuthenticationConfiguration"), "{}", text);
        let rights = authz::Settings { config: file.clone(), ..authz::Settings::default() };
        prop_assert!(rights.load().is_err() || text.contains("AuthorizationConfiguration"), "{}", text);
        let says_nothing = text.lines().all(|line| line.trim().is_empty() || line.trim().starts_with('#'));
        let policies =
            authz::Settings { modes: vec!["ABAC".into()], abac_file: file.clone(), ..authz::Settings::default() };
        prop_assert!(policies.load().is_err() || says_nothing || text.contains("abac"), "{}", text);
        let records = audit::Settings { policy: file, ..audit::Settings::default() };
        prop_assert!(audit::Auditor::load(&records).is_err() || text.contains("audit.k8s.io"), "{}", text);
        Ok(())
    });
}
