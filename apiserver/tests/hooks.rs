//! Servers that the API server asks, each a TLS server of the test's own: conversion of custom resources, the word on images,
//! audit events in batches, admission with the real kubectl.

mod support;

use std::process::Command;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Request;
use hyper::body::Incoming;
use keelson_apiserver::{Settings, admission, audit};
use serde_json::{Value, json};
use support::hook::{Answer, Asked, Hook, told};
use support::{Cluster, PATIENCE};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const PODS: &str = "/api/v1/namespaces/default/pods";

/// Converts by telling the version in a field.
fn convert(_: &mut Request<Incoming>, asked: &Asked, _: &str) -> Answer {
    let request = &asked.body["request"];
    let version = &request["desiredAPIVersion"];
    let converted = request["objects"].as_array().into_iter().flatten().map(|object| {
        let mut object = object.clone();
        object["spec"]["from"] = object["apiVersion"].clone();
        object["apiVersion"] = version.clone();
        object
    });
    told(&json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1", "response": {
        "uid": request["uid"], "result": {"status": "Success"}, "convertedObjects": converted.collect::<Vec<_>>()}}))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_objects_are_converted_in_one_question() {
    let cluster = Cluster::new().await;
    let hook = Hook::start(&["127.0.0.1"], "", convert).await;
    let version = |name: &str, storage: bool| {
        json!({"name": name, "served": true, "storage": storage, "schema": {"openAPIV3Schema": {"type": "object",
            "properties": {"spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}})
    };
    let definition = json!({"kind": "CustomResourceDefinition", "apiVersion": "apiextensions.k8s.io/v1",
        "metadata": {"name": "coins.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "coins", "kind": "Coin"}, "versions": [version("v1", true), version("v2", false)],
            "conversion": {"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"], "clientConfig": hook.at("/convert")}}}});
    cluster.make(DEFINITIONS, definition).await;
    let coins = "/apis/example.com/v1/namespaces/default/coins";
    cluster.until(coins, |code, _| code == 200).await;
    for index in 0..40 {
        let coin = json!({"kind": "Coin", "apiVersion": "example.com/v1", "metadata": {"name": format!("c{index}")}, "spec": {"n": index}});
        cluster.make(coins, coin).await;
    }
    assert!(hook.asked().is_empty(), "what is written as it is stored is not converted");
    let (code, list) = cluster.json("GET", "/apis/example.com/v2/namespaces/default/coins", Value::Null).await;
    assert_eq!(code, 200, "{list}");
    let items = list["items"].as_array().unwrap();
    assert_eq!(items.len(), 40);
    for item in items {
        assert_eq!((&item["apiVersion"], &item["spec"]["from"]), (&json!("example.com/v2"), &json!("example.com/v1")));
    }
    let asked = hook.asked();
    assert_eq!(asked.len(), 1, "one question for all");
    assert_eq!(asked[0].body["request"]["objects"].as_array().unwrap().len(), 40);
    let (code, one) = cluster.json("GET", "/apis/example.com/v2/namespaces/default/coins/c7", Value::Null).await;
    assert_eq!((code, &one["spec"]["n"]), (200, &json!(7)));
    assert_eq!(hook.asked().len(), 2);
}

/// Images of one registry are good.
fn judge_images(_: &mut Request<Incoming>, asked: &Asked, _: &str) -> Answer {
    let spec = &asked.body["spec"];
    let images = spec["containers"].as_array().into_iter().flatten();
    let bad = images.filter_map(|c| c["image"].as_str()).find(|image| !image.starts_with("good.example/"));
    let broken = spec["annotations"]["x.image-policy.k8s.io/break-glass"].is_string();
    let status = match bad {
        Some(image) if !broken => json!({"allowed": false, "reason": format!("{image} is not ours")}),
        _ => json!({"allowed": true, "auditAnnotations": {"policy": "p1"}}),
    };
    told(&json!({"kind": "ImageReview", "apiVersion": "imagepolicy.k8s.io/v1alpha1", "status": status}))
}

fn pod(name: &str, image: &str, annotations: Value) -> Value {
    json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": name, "annotations": annotations},
        "spec": {"containers": [{"name": "c", "image": image}]}})
}

/// Settings with a plugin and its configuration.
fn plugin(directory: &std::path::Path, name: &str, config: &Value) -> Settings {
    let file = directory.join("admission.yaml");
    let whole = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AdmissionConfiguration",
        "plugins": [{"name": name, "configuration": config}]});
    std::fs::write(&file, whole.to_string()).unwrap();
    let disabled = vec!["ServiceAccount".into()];
    Settings {
        admission: admission::Settings { enabled: vec![name.into()], disabled, config: Some(file) },
        ..Settings::default()
    }
}

/// Answers with what the path says: a status code, and a body of text or of something else.
fn refuse(_: &mut Request<Incoming>, asked: &Asked, _: &str) -> Answer {
    let mut parts = asked.path.trim_start_matches('/').split(['/', '?']);
    let mut answer = told(&json!({"told": "nothing"}));
    *answer.status_mut() = parts.next().and_then(|code| code.parse().ok()).unwrap_or_default();
    let kind = parts.next().unwrap_or_default();
    answer.headers_mut().insert("content-type", format!("{kind}/x").parse().unwrap());
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_webhook_says_instead_of_an_answer_is_told_however_often_it_says_it() {
    let cluster = Cluster::new().await;
    let hook = Hook::start(&["127.0.0.1"], "", refuse).await;
    let hooks = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
    let maps = "/api/v1/namespaces/default/configmaps";
    let dead = json!({"url": "https://127.0.0.1:1/"});
    for (client, expected) in [
        (
            hook.at("/500/text"),
            "an error on the server (\"{\\\"told\\\":\\\"nothing\\\"}\") has prevented the request from succeeding",
        ),
        (hook.at("/502/application"), "an error on the server (\"unknown\") has prevented the request from succeeding"),
        (hook.at("/404/text"), "the server could not find the requested resource"),
        (hook.at("/503/text"), "the server is currently unable to handle the request"),
        (dead, "Post \"https://127.0.0.1:1/?timeout=10s\": dial tcp 127.0.0.1:1: connect: connection refused"),
    ] {
        let configuration = json!({"metadata": {"name": "h"}, "webhooks": [{"name": "h.example.com", "clientConfig": client,
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["*"], "resources": ["configmaps"]}],
            "sideEffects": "None", "admissionReviewVersions": ["v1"]}]});
        cluster.make(hooks, configuration).await;
        // More often than calls go on without a pause.
        for _ in 0..if expected.starts_with("Post") { 8 } else { 1 } {
            let (code, answer) = cluster.json("POST", maps, json!({"metadata": {"name": "m"}})).await;
            let told = format!(
                "Internal error occurred: failed calling webhook \"h.example.com\": failed to call webhook: {expected}"
            );
            assert_eq!((code, answer["message"].as_str().unwrap_or_default()), (500, told.as_str()));
        }
        assert_eq!(cluster.json("DELETE", &format!("{hooks}/h"), Value::Null).await.0, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_says_which_images_are_good() {
    let directory = tempfile::tempdir().unwrap();
    let hook = Hook::start(&["127.0.0.1"], "", judge_images).await;
    let kubeconfig = directory.path().join("hook.kubeconfig");
    hook.kubeconfig(&kubeconfig, "/images");
    let config = |allow: bool| json!({"imagePolicy": {"kubeConfigFile": kubeconfig, "defaultAllow": allow}});
    let cluster = Cluster::with(plugin(directory.path(), "ImagePolicyWebhook", &config(false))).await;
    for (name, image, annotations, code) in [
        ("a", "good.example/a", json!({}), 201),
        ("b", "bad.example/b", json!({}), 403),
        ("c", "bad.example/b", json!({"x.image-policy.k8s.io/break-glass": "1"}), 201),
    ] {
        let (got, answer) = cluster.json("POST", PODS, pod(name, image, annotations)).await;
        assert_eq!(got, code, "{name}: {answer}");
        if code == 403 {
            let told = "pods \"b\" is forbidden: image policy webhook backend denied one or more images: bad.example/b is not ours";
            assert_eq!(answer["message"], told);
        }
    }
    let asked = hook.asked();
    assert_eq!((asked[0].path.as_str(), &asked[0].body["kind"]), ("/images", &json!("ImageReview")));
    // The same question is not asked twice.
    cluster.make(PODS, pod("d", "good.example/a", json!({}))).await;
    assert_eq!(hook.asked().len(), asked.len());
    // A service that is not there: refused, or let in with a note.
    let nowhere = directory.path().join("nowhere.kubeconfig");
    let text = std::fs::read_to_string(&kubeconfig).unwrap().replace(&format!(":{}", hook.port), ":1");
    std::fs::write(&nowhere, text).unwrap();
    for (allow, code) in [(false, 403), (true, 201)] {
        let config = json!({"imagePolicy": {"kubeConfigFile": nowhere, "defaultAllow": allow}});
        let cluster = Cluster::with(plugin(directory.path(), "ImagePolicyWebhook", &config)).await;
        let (got, answer) = cluster.json("POST", PODS, pod("e", "x", json!({}))).await;
        assert_eq!(got, code, "{answer}");
        if allow {
            assert_eq!(answer["metadata"]["annotations"]["alpha.image-policy.k8s.io/failed-open"], "true");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audit_events_are_posted_in_batches_and_none_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    // The first post fails; what was in it comes again.
    let failed = std::sync::atomic::AtomicBool::new(false);
    let answers = move |_: &mut Request<Incoming>, _: &Asked, _: &str| {
        let mut answer = told(&json!({}));
        if !failed.swap(true, std::sync::atomic::Ordering::SeqCst) {
            *answer.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
        }
        answer
    };
    let hook = Hook::start(&["127.0.0.1"], "", answers).await;
    let kubeconfig = directory.path().join("hook.kubeconfig");
    hook.kubeconfig(&kubeconfig, "/events");
    let policy = directory.path().join("policy.yaml");
    let rules = json!({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": [
        {"level": "Metadata", "verbs": ["create"], "resources": [{"group": "", "resources": ["configmaps"]}]}, {"level": "None"}]});
    std::fs::write(&policy, rules.to_string()).unwrap();
    let webhook = audit::WebhookSettings {
        kubeconfig,
        mode: audit::Mode::Batch,
        backoff: Duration::from_millis(50),
        max_batch: 20,
        max_wait: Duration::from_millis(500),
    };
    let settings = audit::Settings { policy: Some(policy), webhook: Some(webhook), ..audit::Settings::default() };
    let cluster = Cluster::with(Settings { audit: settings, ..Settings::default() }).await;
    let maps = "/api/v1/namespaces/default/configmaps";
    for index in 0..100 {
        let map = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": format!("m{index}")}});
        cluster.make(maps, map).await;
    }
    let deadline = Instant::now() + PATIENCE;
    let names = loop {
        let posts = hook.asked();
        let events = posts.iter().flat_map(|post| post.body["items"].as_array().cloned().unwrap_or_default());
        let mut names: Vec<String> =
            events.filter_map(|e| e["objectRef"]["name"].as_str().map(str::to_owned)).collect();
        names.sort();
        names.dedup();
        if names.len() == 100 {
            break posts;
        }
        assert!(Instant::now() < deadline, "{} of 100 events came", names.len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(names.iter().all(|post| post.body["kind"] == "EventList" && post.path.starts_with("/events")));
    let sizes: Vec<usize> = names.iter().map(|post| post.body["items"].as_array().unwrap().len()).collect();
    assert!(sizes.iter().all(|size| *size <= 20), "{sizes:?}");
    assert!(sizes.iter().any(|size| *size > 1), "events go together: {sizes:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn presets_are_put_into_pods() {
    let admission = admission::Settings {
        enabled: vec!["PodPreset".into()],
        disabled: vec!["ServiceAccount".into()],
        ..admission::Settings::default()
    };
    let cluster = Cluster::with(Settings { admission, ..Settings::default() }).await;
    let preset = json!({"kind": "PodPreset", "apiVersion": "settings.k8s.io/v1alpha1", "metadata": {"name": "p"},
        "spec": {"selector": {"matchLabels": {"app": "a"}}, "env": [{"name": "E", "value": "1"}],
            "volumes": [{"name": "v", "emptyDir": {}}], "volumeMounts": [{"name": "v", "mountPath": "/v"}]}});
    cluster.make("/apis/settings.k8s.io/v1alpha1/namespaces/default/podpresets", preset).await;
    let mut chosen = pod("chosen", "i", json!({}));
    chosen["metadata"]["labels"] = json!({"app": "a"});
    let made = cluster.make(PODS, chosen).await;
    assert_eq!(made["spec"]["containers"][0]["env"][0]["name"], "E", "{made}");
    assert_eq!(made["spec"]["volumes"][0]["name"], "v");
    assert!(made["metadata"]["annotations"]["podpreset.admission.kubernetes.io/podpreset-p"].is_string());
    let other = cluster.make(PODS, pod("other", "i", json!({}))).await;
    assert!(other["spec"]["containers"][0]["env"].is_null());
}

/// Adds a label to what is made, and refuses what is named so; a warning and an audit annotation go with both.
fn review(_: &mut Request<Incoming>, asked: &Asked, _: &str) -> Answer {
    let request = &asked.body["request"];
    let mut response = json!({"uid": request["uid"], "allowed": true, "warnings": [format!("{} was looked at", request["name"])],
        "auditAnnotations": {"seen": "yes"}});
    if asked.path.starts_with("/mutate") {
        let patch = json!([{"op": "add", "path": "/metadata/labels", "value": {"hooked": "yes"}}]);
        response["patchType"] = "JSONPatch".into();
        response["patch"] = STANDARD.encode(patch.to_string()).into();
    } else if request["name"] == "refused" {
        response["allowed"] = false.into();
        response["status"] = json!({"message": "this name is not liked", "code": 418, "reason": "Teapot"});
    }
    told(&json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response}))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn kubectl_meets_webhooks_at_a_url_and_behind_a_service() {
    if Command::new("kubectl").args(["version", "--client"]).output().is_err() {
        eprintln!("skipped: there is no kubectl here");
        return;
    }
    let cluster = Cluster::new().await;
    let door = cluster.listen().await;
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = directory.path().join("kubeconfig");
    door.kubeconfig(&kubeconfig);
    let hook = Hook::start(&["127.0.0.1", "hook.default.svc"], "", review).await;
    let service = json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": "hook"},
        "spec": {"type": "ExternalName", "externalName": "127.0.0.1", "ports": [{"port": hook.port}]}});
    cluster.make("/api/v1/namespaces/default/services", service).await;
    let registration = |kind: &str, client: Value, side_effects: &str| {
        json!({"kind": format!("{kind}WebhookConfiguration"), "apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": "h"},
            "webhooks": [{"name": "h.example.com", "clientConfig": client, "sideEffects": side_effects, "admissionReviewVersions": ["v1"],
                "matchConditions": [{"name": "not-mine", "expression": "object.metadata.name != 'skipped'"}],
                "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}]}]})
    };
    let behind = json!({"caBundle": hook.bundle(), "service": {"name": "hook", "namespace": "default", "port": hook.port, "path": "/mutate"}});
    let files = [
        ("mutating.json", registration("Mutating", behind, "NoneOnDryRun")),
        ("validating.json", registration("Validating", hook.at("/validate"), "None")),
    ];
    let kubectl = |arguments: &[&str]| {
        let out = Command::new("kubectl").env("KUBECONFIG", &kubeconfig).args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&[&out.stdout[..], &out.stderr[..]].concat()).into_owned();
        (out.status.success(), said)
    };
    let run = async |arguments: &[&str]| tokio::task::block_in_place(|| kubectl(arguments));
    for (name, object) in files {
        let file = directory.path().join(name);
        std::fs::write(&file, object.to_string()).unwrap();
        let (good, said) = run(&["apply", "-f", file.to_str().unwrap()]).await;
        assert!(good, "{said}");
    }
    let (good, said) = run(&["create", "configmap", "made"]).await;
    assert!(good && said.contains("Warning: \"made\" was looked at"), "{said}");
    let (_, label) = run(&["get", "configmap", "made", "-o", "jsonpath={.metadata.labels.hooked}"]).await;
    assert_eq!(label, "yes");
    let (good, said) = run(&["create", "configmap", "refused"]).await;
    assert!(
        !good && said.contains("admission webhook \"h.example.com\" denied the request: this name is not liked"),
        "{said}"
    );
    let before = hook.asked().len();
    let (good, said) = run(&["create", "configmap", "skipped"]).await;
    assert!(good, "{said}");
    assert_eq!(hook.asked().len(), before, "a condition that does not hold keeps it from being asked");
    let (good, said) = run(&["create", "configmap", "tried", "--dry-run=server"]).await;
    assert!(good && said.contains("(server dry run)"), "{said}");
    let tried = hook.asked().split_off(before);
    assert!(!tried.is_empty() && tried.iter().all(|asked| asked.body["request"]["dryRun"] == true), "{tried:?}");
    let paths: Vec<String> = hook.asked().into_iter().map(|asked| asked.path).collect();
    assert!(
        paths.iter().any(|path| path == "/mutate?timeout=10s")
            && paths.iter().any(|path| path == "/validate?timeout=10s"),
        "{paths:?}"
    );
}

/// Answers by path: labels what is made, says nothing but yes, patches whatever comes, or forgets what a patch is.
fn by_path(_: &mut Request<Incoming>, asked: &Asked, _: &str) -> Answer {
    let mut response = json!({"uid": asked.body["request"]["uid"], "allowed": true});
    let patch = json!([{"op": "add", "path": "/metadata/labels", "value": {"hooked": "yes"}}]).to_string();
    match asked.path.split('?').next().unwrap_or_default() {
        "/label" => {
            response["patchType"] = "JSONPatch".into();
            response["patch"] = STANDARD.encode(patch).into();
        }
        "/broken" => {
            response["patchType"] = "JSONPatch".into();
            response["patch"] = STANDARD.encode("[").into();
        }
        "/old" => return told(&json!({"response": {"allowed": true, "patch": STANDARD.encode(patch)}})),
        _ => {}
    }
    told(&json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response}))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn webhooks_see_what_earlier_ones_made_and_the_log_names_their_places() {
    let directory = tempfile::tempdir().unwrap();
    let (policy, log) = (directory.path().join("policy.yaml"), directory.path().join("audit.log"));
    let rules = json!({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
        "rules": [{"level": "Request", "verbs": ["create"], "resources": [{"group": "", "resources": ["configmaps"]}]}, {"level": "None"}]});
    std::fs::write(&policy, rules.to_string()).unwrap();
    let settings = audit::Settings { policy: Some(policy), log: Some(log.clone()), ..audit::Settings::default() };
    let cluster = Cluster::with(Settings { audit: settings, ..Settings::default() }).await;
    let hook = Hook::start(&["127.0.0.1"], "", by_path).await;
    let webhook = |name: &str, path: &str, version: &str, selector: Value| {
        json!({"name": format!("{name}.example.com"), "clientConfig": hook.at(path), "sideEffects": "None",
            "admissionReviewVersions": [version], "objectSelector": selector, "failurePolicy": "Ignore",
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "DELETE"], "resources": ["configmaps"]}]})
    };
    let hooked = json!({"matchLabels": {"hooked": "yes"}});
    let never = json!({"matchLabels": {"never": "there"}});
    let registration = json!({"kind": "MutatingWebhookConfiguration", "apiVersion": "admissionregistration.k8s.io/v1",
        "metadata": {"name": "h"}, "webhooks": [
            webhook("first", "/plain", "v1", never), webhook("second", "/label", "v1", json!({})),
            webhook("third", "/plain", "v1", hooked.clone()), webhook("fourth", "/broken", "v1", json!({})),
            webhook("fifth", "/old", "v1beta1", hooked)]});
    cluster.make("/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations", registration).await;
    let maps = "/api/v1/namespaces/default/configmaps";
    let made = cluster.make(maps, json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "m"}})).await;
    assert_eq!(made["metadata"]["labels"]["hooked"], "yes");
    // The server makes maps of its own as it starts.
    let its = hook.asked().into_iter().filter(|asked| asked.body["request"]["name"] == "m");
    let paths: Vec<String> = its.map(|asked| asked.path.split('?').next().unwrap().to_owned()).collect();
    assert_eq!(paths, ["/label", "/plain", "/broken", "/old"], "one that wants the label is asked after it is there");
    let deadline = Instant::now() + PATIENCE;
    let event = loop {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        match events.into_iter().find(|event| event["objectRef"]["name"] == "m") {
            Some(event) => break event,
            None => assert!(Instant::now() < deadline, "no event was written"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let told = |index: usize, name: &str, mutated: bool| {
        let value = format!(r#"{{"configuration":"h","webhook":"{name}.example.com","mutated":{mutated}}}"#);
        (format!("mutation.webhook.admission.k8s.io/round_0_index_{index}"), value)
    };
    let patch = r#"{"configuration":"h","webhook":"second.example.com","patch":[{"op":"add","path":"/metadata/labels","value":{"hooked":"yes"}}],"patchType":"JSONPatch"}"#;
    let fifth = patch.replace("second", "fifth");
    for (key, value) in [
        told(1, "second", true),
        told(2, "third", false),
        told(3, "fourth", false),
        told(4, "fifth", false),
        ("patch.webhook.admission.k8s.io/round_0_index_1".into(), patch.to_owned()),
        ("patch.webhook.admission.k8s.io/round_0_index_4".into(), fifth),
        ("failed-open.mutation.webhook.admission.k8s.io/round_0_index_3".into(), "fourth.example.com".into()),
    ] {
        assert_eq!(event["annotations"][&key], value, "{event}");
    }
    // There is nothing that could be changed about what goes, whatever is thought of failures.
    let (code, refused) = cluster.json("DELETE", &format!("{maps}/m"), Value::Null).await;
    let why = "admission webhook \"second.example.com\" attempted to modify the object, which is not supported for this operation";
    assert!(code == 500 && refused["message"].as_str().unwrap().ends_with(why), "{refused}");
}
