//! What the server does to objects by their kind, through requests: addresses with objects of their own, admin access to
//! devices, profiles of annotations, subresources that take a part.

mod support;

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::BodyExt;
use keelson_apiserver::sweep_addresses;
use serde_json::{Value, json};
use support::Cluster;

const DEFAULT: &str = "/api/v1/namespaces/default";

fn revision(object: &Value) -> i64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn an_address_is_an_object_of_its_own() {
    let cluster = Cluster::new().await;
    let services = format!("{DEFAULT}/services");
    let service =
        |name: &str, ip: &str| json!({"metadata": {"name": name}, "spec": {"clusterIP": ip, "ports": [{"port": 80}]}});
    let (code, made) = cluster.json("POST", &services, &service("a", "10.96.0.9")).await;
    assert_eq!(code, 201, "{made}");
    let path = "/apis/networking.k8s.io/v1/ipaddresses/10.96.0.9";
    let (code, address) = cluster.json("GET", path, &Value::Null).await;
    assert_eq!((code, &address["spec"]["parentRef"]["name"]), (200, &json!("a")));
    assert!(revision(&address) < revision(&made), "it is written before the Service");
    // A name that is taken takes no address.
    let (code, _) = cluster.json("POST", &services, &service("a", "10.96.0.10")).await;
    assert_eq!(code, 409);
    let (code, _) = cluster.json("GET", "/apis/networking.k8s.io/v1/ipaddresses/10.96.0.10", &Value::Null).await;
    assert_eq!(code, 404);
    // An address that is taken is refused.
    let (code, refused) = cluster.json("POST", &services, &service("b", "10.96.0.9")).await;
    assert_eq!(code, 422);
    assert!(refused["message"].as_str().unwrap().contains("provided IP is already allocated"), "{refused}");
    let (code, _) = cluster.json("DELETE", &format!("{services}/a"), &Value::Null).await;
    assert_eq!(code, 200);
    assert_eq!(cluster.json("GET", path, &Value::Null).await.0, 404, "it goes with the Service");
}

#[tokio::test]
async fn addresses_without_a_service_are_given_back() {
    let cluster = Cluster::new().await;
    let path = "/apis/networking.k8s.io/v1/ipaddresses";
    let address = |name: &str, by: &str| {
        json!({"metadata": {"name": name, "labels": {"ipaddress.kubernetes.io/managed-by": by}},
            "spec": {"parentRef": {"resource": "services", "namespace": "default", "name": "none"}}})
    };
    for (name, by) in [("10.96.0.20", "ipallocator.k8s.io"), ("10.96.0.21", "me")] {
        assert_eq!(cluster.json("POST", path, &address(name, by)).await.0, 201);
    }
    let kv = cluster.kv.clone();
    let now = jiff::Timestamp::now();
    assert_eq!(sweep_addresses(kv.as_ref(), now).await.unwrap(), 0, "their Services may be on their way");
    assert_eq!(sweep_addresses(kv.as_ref(), now + jiff::SignedDuration::from_secs(120)).await.unwrap(), 1);
    assert_eq!(cluster.json("GET", &format!("{path}/10.96.0.20"), &Value::Null).await.0, 404);
    assert_eq!(cluster.json("GET", &format!("{path}/10.96.0.21"), &Value::Null).await.0, 200, "not the allocator's");
}

#[tokio::test]
async fn admin_access_is_for_namespaces_that_may_have_it() {
    let cluster = Cluster::new().await;
    let devices = json!({"requests": [{"name": "r", "exactly": {"deviceClassName": "c", "adminAccess": true}}]});
    let claim = json!({"metadata": {"generateName": "c-"}, "spec": {"devices": devices}});
    let template = json!({"metadata": {"generateName": "t-"}, "spec": {"spec": {"devices": devices}}});
    for (plural, object) in [("resourceclaims", &claim), ("resourceclaimtemplates", &template)] {
        let path = format!("/apis/resource.k8s.io/v1/namespaces/default/{plural}");
        for (label, expected) in [("false", 422), ("true", 201)] {
            let labels = json!({"metadata": {"labels": {"resource.kubernetes.io/admin-access": label}}});
            assert_eq!(cluster.json("PATCH", DEFAULT, &labels).await.0, 200);
            let (code, answer) = cluster.json("POST", &path, object).await;
            assert_eq!(code, expected, "{plural} {label}: {answer}");
        }
    }
}

/// A request and what is told beside its answer.
async fn warnings(cluster: &Cluster, path: &str, object: &Value) -> (u16, Value, Vec<String>) {
    let request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
    let response = cluster.send(request.body(Bytes::from(object.to_string())).unwrap()).await;
    let told = response.headers().get_all(header::WARNING).iter().map(|v| v.to_str().unwrap().to_owned()).collect();
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (code, serde_json::from_slice(&bytes).unwrap(), told)
}

#[tokio::test]
async fn pods_are_completed_and_told_of() {
    let cluster = Cluster::new().await;
    let (code, _) =
        cluster.json("POST", &format!("{DEFAULT}/serviceaccounts"), &json!({"metadata": {"name": "default"}})).await;
    assert!(code == 201 || code == 409);
    let key = "container.apparmor.security.beta.kubernetes.io/c";
    let pod = json!({"metadata": {"name": "p", "annotations": {key: "runtime/default"}}, "spec": {
        "schedulingGroup": {"podGroupName": "g"},
        "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 1}, {"containerPort": 1}]}]}});
    let (code, made, told) = warnings(&cluster, &format!("{DEFAULT}/pods"), &pod).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(made["spec"]["containers"][0]["securityContext"]["appArmorProfile"]["type"], "RuntimeDefault");
    assert_eq!(made["spec"].get("schedulingGroup"), None, "its gate is closed");
    assert!(told.iter().any(|text| text.contains("use the \\\"appArmorProfile\\\" field instead")), "{told:?}");
    assert!(told.iter().any(|text| text.contains("duplicate port definition")), "{told:?}");
    let resize = json!({"spec": {"containers": [{"name": "other", "image": "i"}]}});
    let (code, refused) = cluster.json("PATCH", &format!("{DEFAULT}/pods/p/resize"), &resize).await;
    assert_eq!(code, 422);
    assert!(refused["message"].as_str().unwrap().contains("may not be renamed or reordered on resize"), "{refused}");
    for (query, status, expected) in [
        ("log?tailLines=-1", 422, "tailLines: Invalid value: -1: must be greater than or equal to 0"),
        ("log?stream=Stdout", 422, "stream: Forbidden: may not be specified"),
        ("log?sinceSeconds=0&limitBytes=0", 422, "sinceSeconds: Invalid value: 0: must be greater than 0"),
        ("log?sinceSeconds=5&sinceTime=", 422, "at most one of `sinceTime` or `sinceSeconds` may be specified"),
        ("log?sinceTime=now", 400, "cannot parse \"now\" as \"2006\""),
        ("log?tailLines=x", 400, "strconv.ParseInt: parsing \"x\": invalid syntax"),
        ("portforward?ports=80,x", 400, "strconv.ParseInt: parsing \"x\": invalid syntax"),
        ("portforward?ports=2147483648", 400, "strconv.ParseInt: parsing \"2147483648\": value out of range"),
    ] {
        let (code, refused) = cluster.json("GET", &format!("{DEFAULT}/pods/p/{query}"), &Value::Null).await;
        assert_eq!(code, status, "{query}");
        assert!(refused["message"].as_str().unwrap().contains(expected), "{query}: {refused}");
    }
}

/// Who enforces a level and says nothing of warnings is warned of it: of a Deployment nothing else would be told.
#[tokio::test]
async fn what_is_enforced_is_warned_of() {
    let cluster = Cluster::new().await;
    for (name, labels, expected) in [
        ("only", json!({"enforce": "baseline"}), Some("baseline:latest")),
        ("of-version", json!({"enforce": "baseline", "enforce-version": "v1.30"}), Some("baseline:v1.30")),
        ("other-version", json!({"enforce": "baseline", "warn-version": "v1.30"}), Some("baseline:v1.30")),
        ("silent", json!({"enforce": "baseline", "warn": "privileged"}), None),
        ("stricter", json!({"enforce": "privileged", "warn": "baseline"}), Some("baseline:latest")),
        ("none", json!({"audit": "baseline"}), None),
    ] {
        let labels: serde_json::Map<String, Value> = labels
            .as_object()
            .unwrap()
            .iter()
            .map(|(key, value)| (format!("pod-security.kubernetes.io/{key}"), value.clone()))
            .collect();
        cluster.make("/api/v1/namespaces", json!({"metadata": {"name": name, "labels": labels}})).await;
        let deployment = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}},
                "spec": {"hostPID": true, "containers": [{"name": "c", "image": "i"}]}}}});
        let path = format!("/apis/apps/v1/namespaces/{name}/deployments");
        let (code, made, told) = warnings(&cluster, &path, &deployment).await;
        assert_eq!(code, 201, "{made}");
        let expected = expected.map(|policy| {
            format!("299 - \"would violate PodSecurity \\\"{policy}\\\": host namespaces (hostPID=true)\"")
        });
        assert_eq!(told, Vec::from_iter(expected), "{name}");
    }
}

#[tokio::test]
async fn counts_can_be_begun_anew() {
    let cluster = Cluster::new().await;
    let text = async |method: &str| {
        let request = Request::builder().method(method).uri("/metrics").body(Bytes::new()).unwrap();
        let bytes = cluster.send(request).await.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(bytes.to_vec()).unwrap()
    };
    assert_eq!(cluster.json("GET", DEFAULT, &Value::Null).await.0, 200);
    let counted = |text: &str| text.lines().any(|line| line.starts_with("apiserver_request_total{"));
    assert!(counted(&text("GET").await));
    assert_eq!(text("DELETE").await, "metrics reset\n");
    assert!(!counted(&text("GET").await));
}

/// Writers that admission let in before the end of the namespace began must not leave anything in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_left_in_a_namespace_that_went() {
    let cluster = Arc::new(Cluster::new().await);
    for round in 0..20 {
        let (name, path) = (format!("n{round}"), format!("/api/v1/namespaces/n{round}"));
        cluster.make("/api/v1/namespaces", json!({"metadata": {"name": name}})).await;
        let write = |writer: usize| {
            let (cluster, path) = (cluster.clone(), format!("{path}/configmaps"));
            async move {
                for i in 0.. {
                    let object = json!({"metadata": {"name": format!("c{writer}-{i}")}});
                    match cluster.json("POST", &path, object).await {
                        (201, _) => {}
                        (403 | 404, _) => return,
                        // It was looked at while it changed, again and again.
                        (409, refused) => assert_eq!(refused["details"]["kind"], "namespaces", "{refused}"),
                        other => panic!("{other:?}"),
                    }
                }
            }
        };
        let writers: Vec<_> = (0..4).map(|writer| tokio::spawn(write(writer))).collect();
        cluster.until(&format!("{path}/configmaps"), |_, list| list["items"][0].is_object()).await;
        assert_eq!(cluster.json("DELETE", &path, Value::Null).await.0, 200);
        assert_eq!(cluster.json("DELETE", &format!("{path}/configmaps"), Value::Null).await.0, 200);
        let (_, mut namespace) = cluster.json("GET", &path, Value::Null).await;
        namespace["spec"]["finalizers"] = json!([]);
        assert_eq!(cluster.json("PUT", &format!("{path}/finalize"), &namespace).await.0, 200);
        for writer in writers {
            writer.await.unwrap();
        }
        assert_eq!(cluster.json("GET", &path, Value::Null).await.0, 404);
        let (_, list) = cluster.json("GET", &format!("{path}/configmaps"), Value::Null).await;
        assert_eq!(list["items"], json!([]), "round {round}");
    }
}

/// A Deployment and a pod that nobody runs.
async fn with_workloads() -> Cluster {
    let cluster = Cluster::new().await;
    let account = json!({"metadata": {"name": "default"}});
    let (code, _) = cluster.json("POST", &format!("{DEFAULT}/serviceaccounts"), &account).await;
    assert!(code == 201 || code == 409);
    let pod = json!({"containers": [{"name": "c", "image": "i"}]});
    cluster
        .make(
            DEPLOYMENTS,
            json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod}}}),
        )
        .await;
    cluster.make(&format!("{DEFAULT}/pods"), json!({"metadata": {"name": "p"}, "spec": pod})).await;
    cluster
}

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

/// A request and its refusal: method, path, query, body, code, part of the message.
type Refused<'a> = (&'a str, &'a str, &'a str, Value, u16, &'a str);

async fn all_refused(cluster: &Cluster, rows: impl IntoIterator<Item = Refused<'_>>) {
    for (method, path, query, body, code, told) in rows {
        let (found, answer) = cluster.json(method, &format!("{path}{query}"), &body).await;
        assert_eq!(found, code, "{path}{query} {body}: {answer}");
        assert!(answer["message"].as_str().unwrap().contains(told), "{path}{query} {body}: {answer}");
    }
}

#[tokio::test]
async fn bodies_of_scales_are_held_to_their_form() {
    let cluster = with_workloads().await;
    let (scale, strict) = (format!("{DEPLOYMENTS}/d/scale"), "?fieldValidation=Strict");
    let rows: [Refused<'_>; 7] = [
        (
            "PUT",
            &scale,
            strict,
            json!({"metadata": {"name": "d"}, "spec": {"replicas": 1, "x": 1}}),
            400,
            "Scale in version \"v1\" cannot be handled as a Scale: strict decoding error: unknown field \"spec.x\"",
        ),
        ("PATCH", &scale, strict, json!({"spec": {"x": 1}}), 422, "strict decoding error: unknown field \"spec.x\""),
        ("PATCH", &scale, "", json!({"spec": {"replicas": "x"}}), 422, "cannot unmarshal string into Go struct field"),
        (
            "PUT",
            &scale,
            "",
            json!({"metadata": {"name": "d", "labels": {"-": "b"}}, "spec": {"replicas": -1}}),
            422,
            "Scale.autoscaling \"d\" is invalid: [metadata.labels: Invalid value: \"-\"",
        ),
        (
            "PUT",
            &scale,
            "",
            json!({"metadata": {"name": "d", "uid": "u"}, "spec": {"replicas": 1}}),
            409,
            "Operation cannot be fulfilled on deployments.apps \"d\": StorageError: invalid object, Code: 4",
        ),
        (
            "PATCH",
            &scale,
            "",
            json!({"metadata": {"uid": "u"}}),
            409,
            "on deployments/scale.apps \"d\": Precondition failed: UID in precondition: u, UID in object meta: ",
        ),
        ("PATCH", &scale, "", json!({"metadata": {"resourceVersion": "x"}}), 500, "parsing \"x\": invalid syntax"),
    ];
    all_refused(&cluster, rows).await;
}

#[tokio::test]
async fn bodies_of_other_subresources_and_reviews_are_held_to_their_form() {
    let cluster = with_workloads().await;
    let (token, strict) = (format!("{DEFAULT}/serviceaccounts/default/token"), "?fieldValidation=Strict");
    let (binding, eviction) = (format!("{DEFAULT}/pods/p/binding"), format!("{DEFAULT}/pods/p/eviction"));
    let bindings = format!("{DEFAULT}/bindings");
    let review = "/apis/authorization.k8s.io/v1/subjectaccessreviews".to_owned();
    let rows: [Refused<'_>; 13] = [
        (
            "POST",
            &token,
            "",
            json!({"apiVersion": "apps/v1", "kind": "Deployment"}),
            400,
            "Deployment in version \"v1\" cannot be handled as a TokenRequest: converting (v1.Deployment) to (authentication.TokenRequest): unknown conversion",
        ),
        (
            "POST",
            &token,
            "",
            json!({"apiVersion": "x.io/v2", "kind": "X"}),
            400,
            "X in version \"v2\" cannot be handled as a TokenRequest: no kind \"X\" is registered for version \"x.io/v2\" in scheme",
        ),
        ("POST", &bindings, "", json!({"target": {"name": "n"}}), 400, "Name parameter required."),
        (
            "POST",
            &token,
            "",
            json!({"metadata": {"uid": "x"}}),
            409,
            "the UID in the token request (x) does not match the UID of the service account (",
        ),
        ("POST", &token, "?timeout=1ns", json!({}), 504, "request did not complete within the allotted timeout"),
        (
            "POST",
            &token,
            strict,
            json!({"spec": {"x": 1}}),
            400,
            "TokenRequest in version \"v1\" cannot be handled as a TokenRequest: strict decoding error",
        ),
        ("POST", &token, "?dryRun=x", json!({}), 422, "CreateOptions.meta.k8s.io \"\" is invalid: dryRun"),
        ("POST", &review, strict, json!({"spec": {"x": 1}}), 400, "unknown field \"spec.x\""),
        ("POST", &review, "", json!({"spec": {"user": 1}}), 400, "cannot unmarshal number into Go struct field"),
        ("POST", &eviction, strict, json!({"metadata": {"name": "p"}, "x": 1}), 400, "unknown field \"x\""),
        ("POST", &binding, strict, json!({"metadata": {"name": "p"}, "x": 1}), 400, "unknown field \"x\""),
        (
            "POST",
            &binding,
            "",
            json!({"metadata": {"name": "p"}, "target": {"kind": "Pod"}}),
            500,
            "[target.kind: Unsupported value: \"Pod\": supported values: \"Node\", \"<empty>\", target.name: Required value]",
        ),
        (
            "POST",
            &binding,
            "",
            json!({"metadata": {"name": "p", "resourceVersion": "1"}, "target": {"name": "n"}}),
            409,
            "Precondition failed: ResourceVersion in precondition: 1, ResourceVersion in object meta: ",
        ),
    ];
    all_refused(&cluster, rows).await;
}

#[tokio::test]
async fn evictions_keep_to_their_options() {
    let cluster = with_workloads().await;
    let (eviction, evicted) = (format!("{DEFAULT}/pods/p/eviction"), json!({"name": "p"}));
    let rows: [Refused<'_>; 4] = [
        (
            "POST",
            &eviction,
            "",
            json!({"metadata": evicted, "deleteOptions": {"dryRun": ["Some"]}}),
            422,
            "DeleteOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: [\"Some\"]",
        ),
        (
            "POST",
            &eviction,
            "",
            json!({"metadata": evicted, "deleteOptions": {"propagationPolicy": "Some"}}),
            422,
            "propagationPolicy: Unsupported value: \"Some\"",
        ),
        (
            "POST",
            &eviction,
            "",
            json!({"metadata": evicted, "deleteOptions": {"preconditions": {"resourceVersion": "1"}}}),
            409,
            "on Pod \"p\": the ResourceVersion in the precondition (1) does not match the ResourceVersion in record (",
        ),
        (
            "POST",
            &eviction,
            "?dryRun=All",
            json!({"metadata": {"name": "p"}, "deleteOptions": {"dryRun": ["Some"]}}),
            500,
            "Non-matching dry-run options in request and content: [All] and [Some]",
        ),
    ];
    all_refused(&cluster, rows).await;
    // Who names a version means the one that the pod had before it is noted in it why it goes.
    let (_, pod) = cluster.json("GET", &format!("{DEFAULT}/pods/p"), &Value::Null).await;
    let version = &pod["metadata"]["resourceVersion"];
    let given = json!({"metadata": evicted, "deleteOptions": {"preconditions": {"resourceVersion": version}}});
    let (code, answer) = cluster.json("POST", &eviction, &given).await;
    assert_eq!(code, 201, "{answer}");
}

#[tokio::test]
async fn reviews_say_all_that_is_wrong_in_upstreams_order() {
    let cluster = Cluster::new().await;
    let group = "/apis/authorization.k8s.io/v1";
    let everyone = format!("{group}/subjectaccessreviews");
    let local = format!("{group}/namespaces/default/localsubjectaccessreviews");
    let asked = |more: Value| json!({"spec": {"user": "u", "resourceAttributes": more}});
    let both = json!({"resourceAttributes": {"namespace": "x"}, "nonResourceAttributes": {}});
    for (path, body, code, expected) in [
        (&everyone, json!({"spec": {}}), 422, &["spec.resourceAttributes: Invalid", "spec.user: Invalid"][..]),
        (
            &everyone,
            asked(json!({"fieldSelector": {}})),
            422,
            &[
                "requirements: Required value: when spec.resourceAttributes.fieldSelector is specified, requirements or rawSelector",
            ],
        ),
        (
            &everyone,
            asked(json!({"fieldSelector": {"requirements": [{"operator": "Near"}]}})),
            422,
            &["[0].key: Required"],
        ),
        (&everyone, asked(json!({"labelSelector": {"requirements": [{"key": "a", "operator": "Near"}]}})), 201, &[]),
        (
            &everyone,
            asked(json!({"labelSelector": {"requirements": [{"key": "-", "operator": "In", "values": ["a b"]}]}})),
            422,
            &["[0].key: Invalid", "[0].values[0]: Invalid"],
        ),
        (
            &local,
            json!({"metadata": {"name": "x"}, "spec": both}),
            422,
            &[
                "spec.nonResourceAttributes: Invalid",
                "spec.user: Invalid",
                "must be empty except for namespace",
                "spec.resourceAttributes.namespace: Invalid",
                "disallowed on this kind of request",
            ],
        ),
        (&local, json!({"metadata": {"namespace": "x"}, "spec": both}), 400, &["does not match the namespace sent"]),
    ] {
        let (found, answer) = cluster.json("POST", path, &body).await;
        assert_eq!(found, code, "{body}: {answer}");
        let mut rest = answer["message"].as_str().unwrap_or_default();
        for part in expected {
            let at = rest.find(part).unwrap_or_else(|| panic!("{part} is not in order in {answer}"));
            rest = &rest[at + part.len()..];
        }
    }
}

#[tokio::test]
async fn a_pod_that_is_nowhere_has_no_log() {
    let cluster = Cluster::new().await;
    cluster.make(&format!("{DEFAULT}/serviceaccounts"), json!({"metadata": {"name": "default"}})).await;
    let pod = json!({"metadata": {"name": "nowhere"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    cluster.make(&format!("{DEFAULT}/pods"), pod).await;
    for (query, code) in
        [("", 204), ("?sinceTime=2026-01-02T03:04:05Z", 204), ("?sinceTime=null", 204), ("?sinceTime=x", 400)]
    {
        let path = format!("{DEFAULT}/pods/nowhere/log{query}");
        let request = Request::get(&path).body(Bytes::new()).unwrap();
        assert_eq!(cluster.send(request).await.status(), code, "{path}");
    }
}

#[tokio::test]
async fn an_update_without_a_change_brings_an_object_into_the_storage_version() {
    let cluster = with_workloads().await;
    let version = |name: &str, storage: bool| {
        json!({"name": name, "served": true, "storage": storage,
            "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}})
    };
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let definition = |first: bool| {
        json!({"metadata": {"name": "foos.x.io"}, "spec": {"group": "x.io", "scope": "Cluster",
            "names": {"plural": "foos", "kind": "Foo"}, "versions": [version("v1", first), version("v2", !first)]}})
    };
    cluster.make(definitions, definition(true)).await;
    let (foos, foo) = ("/apis/x.io/v1/foos", "/apis/x.io/v1/foos/f");
    cluster.until(foos, |code, _| code == 200).await;
    let made =
        cluster.make(foos, json!({"apiVersion": "x.io/v1", "kind": "Foo", "metadata": {"name": "f"}, "a": 1})).await;
    let (_, same) = cluster.json("PUT", foo, &made).await;
    assert_eq!(same["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);

    let path = format!("{definitions}/foos.x.io");
    let (code, changed) = cluster.json("PATCH", &path, definition(false)).await;
    assert_eq!((code, &changed["status"]["storedVersions"]), (200, &json!(["v1", "v2"])), "{changed}");
    // The server takes a definition over soon after.
    let (mut last, mut writes) = (made, 0);
    for _ in 0..100 {
        let (code, now) = cluster.json("PUT", foo, &last).await;
        assert_eq!(code, 200, "{now}");
        writes += usize::from(now["metadata"]["resourceVersion"] != last["metadata"]["resourceVersion"]);
        last = now;
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(writes, 1, "once, and then it is stored so");
}

#[tokio::test]
async fn an_update_is_for_the_version_that_it_names_or_for_any() {
    let cluster = with_workloads().await;
    let definition = json!({"metadata": {"name": "foos.x.io"}, "spec": {"group": "x.io", "scope": "Namespaced",
        "names": {"plural": "foos", "kind": "Foo"}, "versions": [{"name": "v1", "served": true, "storage": true,
        "schema": {"openAPIV3Schema": {"type": "object"}}}]}});
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    cluster.make(definitions, definition.clone()).await;
    let required = "metadata.resourceVersion: Invalid value: 0: must be specified for an update";
    for (collection, name, version, code, told) in [
        (DEPLOYMENTS, "d", json!("0"), 200, ""),
        (DEPLOYMENTS, "d", json!(null), 200, ""),
        (DEPLOYMENTS, "d", json!("1"), 409, "the object has been modified"),
        (DEPLOYMENTS, "d", json!("x"), 500, "strconv.ParseUint: parsing \"x\": invalid syntax"),
        (definitions, "foos.x.io", json!("0"), 422, required),
        (definitions, "foos.x.io", json!(null), 422, required),
    ] {
        let path = format!("{collection}/{name}");
        let (_, mut object) = cluster.json("GET", &path, &Value::Null).await;
        let patch = json!({"metadata": {"resourceVersion": version, "labels": {"a": "b"}}});
        object["metadata"]["resourceVersion"] = version.clone();
        for (method, body) in [("PUT", &object), ("PATCH", &patch)] {
            let (found, answer) = cluster.json(method, &path, body).await;
            assert_eq!(found, code, "{method} {path} {version}: {answer}");
            assert!(answer["message"].as_str().unwrap_or_default().contains(told), "{method} {path}: {answer}");
        }
        if version.is_null() {
            continue;
        }
        let config = json!({"apiVersion": object["apiVersion"], "kind": object["kind"],
            "metadata": {"resourceVersion": version, "annotations": {"a": "b"}}});
        let (path, kind) = (format!("{path}?fieldManager=m"), "application/apply-patch+yaml");
        let request = Request::patch(&path).header(header::CONTENT_TYPE, kind);
        let response = cluster.send(request.body(Bytes::from(config.to_string())).unwrap()).await;
        assert_eq!(response.status().as_u16(), code, "{path} {version}");
    }
}

#[tokio::test]
async fn who_tells_of_a_pod_does_not_own_its_owners() {
    let cluster = with_workloads().await;
    let owners = json!([{"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u"}]);
    let patch = json!({"metadata": {"ownerReferences": owners}, "status": {"reason": "r"}});
    let path = format!("{DEFAULT}/pods/p/status?fieldManager=writer");
    let (code, answer) = cluster.json("PATCH", &path, &patch).await;
    assert_eq!(code, 200, "{answer}");
    assert_eq!(answer["metadata"].get("ownerReferences"), None);
    let entries = answer["metadata"]["managedFields"].as_array().unwrap();
    let own = entries.iter().find(|e| e["manager"] == "writer").unwrap();
    assert_eq!(own["fieldsV1"], json!({"f:status": {"f:reason": {}}}));
}

#[tokio::test]
async fn what_is_of_the_cluster_has_no_namespace_whatever_is_said() {
    let cluster = Cluster::new().await;
    let classes = "/apis/scheduling.k8s.io/v1/priorityclasses";
    let class = |namespace: &str| {
        json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
            "metadata": {"name": "c", "namespace": namespace}, "value": 5})
    };
    let made = cluster.make(classes, class("default")).await;
    assert_eq!(made["metadata"].get("namespace"), None);
    let path = format!("{classes}/c");
    let patch = json!({"metadata": {"namespace": "other", "labels": {"a": "b"}}});
    for (method, path, kind, body) in [
        ("PUT", path.clone(), "application/json", class("x")),
        ("PATCH", path.clone(), "application/merge-patch+json", patch),
        ("PATCH", format!("{path}?fieldManager=m&force=true"), "application/apply-patch+yaml", class("y")),
        ("PATCH", format!("{classes}/d?fieldManager=m"), "application/apply-patch+yaml", {
            let mut other = class("z");
            other["metadata"]["name"] = "d".into();
            other
        }),
    ] {
        let request = Request::builder().method(method).uri(&path).header(header::CONTENT_TYPE, kind);
        let response = cluster.send(request.body(Bytes::from(body.to_string())).unwrap()).await;
        assert!(response.status().is_success(), "{method} {path}: {}", response.status());
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let object: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(object["metadata"].get("namespace"), None, "{method} {path}");
    }
}

#[tokio::test]
async fn a_patch_that_is_null_changes_nothing() {
    let cluster = with_workloads().await;
    let path = format!("{DEPLOYMENTS}/d");
    for (kind, code) in [
        ("application/json-patch+json", 200),
        ("application/strategic-merge-patch+json", 200),
        ("application/merge-patch+json", 400),
    ] {
        let request = Request::patch(&path).header(header::CONTENT_TYPE, kind).body(Bytes::from("null")).unwrap();
        assert_eq!(cluster.send(request).await.status().as_u16(), code, "{kind}");
    }
}

#[tokio::test]
async fn a_deletion_answers_what_became_of_the_object() {
    let cluster = Cluster::new().await;
    let maps = format!("{DEFAULT}/configmaps");
    for (name, finalizers) in [("held", json!(["a.b/c"])), ("free", json!([]))] {
        let map = json!({"metadata": {"name": name, "finalizers": finalizers}});
        assert_eq!(cluster.json("POST", &maps, &map).await.0, 201);
    }
    for (query, options, code) in [
        ("held?uid=other", Value::Null, 409),
        ("held?resourceVersion=1", Value::Null, 409),
        ("held?resourceVersion=", json!({"dryRun": ["All"], "orphanDependents": true}), 200),
        ("held", json!({"orphanDependents": false}), 202),
        ("held", json!({"propagationPolicy": "Foreground"}), 200),
        ("free", json!({"orphanDependents": false}), 200),
        ("free", Value::Null, 404),
    ] {
        let (told, answer) = cluster.json("DELETE", &format!("{maps}/{query}"), &options).await;
        assert_eq!(told, code, "{query} {options}: {answer}");
    }
}

#[tokio::test]
async fn a_page_of_a_collection_is_deleted_alone() {
    let cluster = Cluster::new().await;
    let maps = format!("{DEFAULT}/configmaps");
    for name in ["x1", "x2", "x3"] {
        let map = json!({"metadata": {"name": name, "labels": {"t": "x"}}});
        assert_eq!(cluster.json("POST", &maps, &map).await.0, 201);
    }
    let chosen = format!("{maps}?labelSelector=t%3Dx");
    let names = |list: &Value| -> Vec<String> {
        let items = list["items"].as_array().unwrap().iter();
        items.map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    };
    let (code, page) = cluster.json("DELETE", &format!("{chosen}&limit=2"), &Value::Null).await;
    assert_eq!((code, names(&page)), (200, vec!["x1".to_owned(), "x2".to_owned()]));
    let next = page["metadata"]["continue"].as_str().unwrap();
    assert_eq!(names(&cluster.json("GET", &chosen, &Value::Null).await.1), ["x3"]);
    let (code, rest) = cluster.json("DELETE", &format!("{chosen}&continue={next}"), &Value::Null).await;
    assert_eq!((code, names(&rest)), (200, vec!["x3".to_owned()]));
    assert!(names(&cluster.json("GET", &chosen, &Value::Null).await.1).is_empty());
}

#[tokio::test]
async fn a_scale_is_that_of_the_object_in_the_path() {
    let cluster = Cluster::new().await;
    let sets = "/apis/apps/v1/namespaces/default/replicasets";
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let set =
        json!({"metadata": {"name": "s"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}});
    assert_eq!(cluster.json("POST", sets, &set).await.0, 201);
    for (metadata, told) in [
        (json!({}), "the name of the object (s based on URL) was undeterminable: name must be provided"),
        (json!({"name": "t"}), "the name of the object (t) does not match the name on the URL (s)"),
        (
            json!({"name": "s", "namespace": "other"}),
            "the namespace of the provided object does not match the namespace sent on the request",
        ),
    ] {
        let scale = json!({"metadata": metadata, "spec": {"replicas": 2}});
        let (code, answer) = cluster.json("PUT", &format!("{sets}/s/scale"), &scale).await;
        assert_eq!((code, answer["message"].as_str()), (400, Some(told)));
    }
}

const APPLY: &str = "application/apply-patch+yaml";
const STRATEGIC: &str = "application/strategic-merge-patch+json";

#[tokio::test]
async fn what_was_merged_is_of_the_form_of_its_kind() {
    let cluster = with_workloads().await;
    let path = format!("{DEPLOYMENTS}/d?fieldManager=m&force=true");
    let config =
        |spec: Value| json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": spec});
    let limits = json!({"template": {"spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "x"}}}]}}});
    for (kind, body, code, told) in [
        (
            APPLY,
            config(json!({"replicas": 1.5})),
            500,
            "failed to convert new object (/d; apps/v1, Kind=Deployment) to proper version: unable to convert unstructured object to apps/v1, Kind=Deployment: cannot convert float64 to int32",
        ),
        (APPLY, config(limits), 500, "Kind=Deployment: quantities must match the regular expression"),
        (APPLY, json!({"apiVersion": "a/b/c", "kind": "Deployment"}), 400, "invalid object type: /, Kind="),
        (STRATEGIC, json!({"spec": {"replicas": "x"}}), 422, "unrecognized type: int32"),
        (STRATEGIC, json!({"spec": {"paused": 1}}), 422, "unrecognized type: bool"),
        (STRATEGIC, json!({"kind": "Pod", "apiVersion": "v1"}), 200, ""),
    ] {
        let path = if kind == APPLY { &path } else { path.split('?').next().unwrap() };
        let (found, answer) = cluster.raw(support::admin(), "PATCH", path, kind, body.to_string().into_bytes()).await;
        assert_eq!(found, code, "{body}: {answer}");
        assert!(answer["message"].as_str().unwrap_or_default().contains(told), "{body}: {answer}");
        assert!(code != 200 || answer["kind"] == "Deployment", "{body}: {answer}");
    }
}

#[tokio::test]
async fn what_an_applier_takes_back_from_a_custom_resource_leaves_nothing_or_is_refused() {
    let cluster = Cluster::new().await;
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "map": {"type": "object", "additionalProperties": {"type": "string"}},
        "free": {"type": "object", "nullable": true, "properties": {"a": {"type": "string"}}},
        "whole": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true}}}}});
    let definition = json!({"metadata": {"name": "foos.x.io"}, "spec": {"group": "x.io", "scope": "Cluster",
        "names": {"plural": "foos", "kind": "Foo"}, "versions": [{"name": "v1", "served": true, "storage": true,
        "schema": {"openAPIV3Schema": schema}}]}});
    cluster.make("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition).await;
    let foos = "/apis/x.io/v1/foos";
    cluster.until(foos, |code, _| code == 200).await;
    let foo = |spec: Value| json!({"apiVersion": "x.io/v1", "kind": "Foo", "metadata": {"name": "f"}, "spec": spec});
    cluster.make(foos, foo(json!({"map": {}}))).await;
    for (spec, code, expected) in [
        (json!({"map": {"a": "b"}, "free": {"a": "b"}}), 200, json!({"map": {"a": "b"}, "free": {"a": "b"}})),
        // The first owner has the map, empty; the applier has the null.
        (json!({"free": null}), 200, json!({"map": {}, "free": {}})),
        (json!({"map": {"a": null}}), 422, json!("spec.map.a: Invalid value: \"null\"")),
    ] {
        let path = format!("{foos}/f?fieldManager=m");
        let body = foo(spec).to_string().into_bytes();
        let (found, answer) = cluster.raw(support::admin(), "PATCH", &path, APPLY, body).await;
        assert_eq!(found, code, "{answer}");
        match expected.as_str() {
            Some(told) => assert!(answer["message"].as_str().unwrap().contains(told), "{answer}"),
            None => assert_eq!(answer["spec"], expected),
        }
    }
    let whole = foo(json!({"whole": {"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": {"a": 1}}}}));
    let (code, answer) = cluster.json("POST", foos, &whole).await;
    assert_eq!(code, 400, "{answer}");
    assert!(answer["message"].as_str().unwrap().contains("spec.whole.metadata: Invalid value"), "{answer}");
}

#[tokio::test]
async fn messages_show_what_was_said_empty() {
    let cluster = with_workloads().await;
    let ingresses = "/apis/networking.k8s.io/v1/namespaces/default/ingresses";
    let labels = |labels: Value| {
        json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {
            "metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
    };
    let one = format!("{DEPLOYMENTS}/d");
    let (empty, none) = ("Invalid value: {}: `selector`", "Invalid value: null: `selector`");
    let rules = |spec: Value| json!({"metadata": {"name": "i"}, "spec": spec});
    all_refused(
        &cluster,
        [
            ("POST", DEPLOYMENTS, "", labels(json!({})), 422, empty),
            ("POST", DEPLOYMENTS, "", labels(json!(null)), 422, none),
            ("PUT", &one, "", labels(json!({})), 422, empty),
            ("PUT", &one, "", labels(json!(null)), 422, none),
            ("POST", ingresses, "", rules(json!({"rules": []})), 422, "spec: Invalid value: []: either"),
            ("POST", ingresses, "", rules(json!({})), 422, "spec: Invalid value: null: either"),
        ],
    )
    .await;
    let backend = json!({"service": {"name": "s", "port": {"number": 80}}});
    let good = json!({"metadata": {"name": "i"}, "spec": {"rules": [], "defaultBackend": backend}});
    let (code, made) = cluster.json("POST", ingresses, &good).await;
    assert_eq!((code, made["spec"].get("rules")), (201, None), "what is empty is not kept: {made}");
    let ingress = |name: &str, spec: Value| json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": name}, "spec": spec});
    let merge = |spec: Value| json!({"spec": spec});
    let operations = |last: Value| json!([{"op": "remove", "path": "/spec/defaultBackend"}, last]);
    let rules = json!({"op": "add", "path": "/spec/rules", "value": []});
    for (kind, name, body, shown) in [
        ("merge-patch+json", "i", merge(json!({"rules": [], "defaultBackend": null})), "[]"),
        ("merge-patch+json", "i", merge(json!({"defaultBackend": null})), "null"),
        ("strategic-merge-patch+json", "i", merge(json!({"rules": [], "defaultBackend": null})), "[]"),
        ("json-patch+json", "i", operations(rules), "[]"),
        ("json-patch+json", "i", operations(json!({"op": "test", "path": "/kind", "value": "Ingress"})), "null"),
        ("apply-patch+yaml", "new", ingress("new", json!({"rules": []})), "[]"),
        ("apply-patch+yaml", "new", ingress("new", json!({})), "null"),
    ] {
        let path = format!("{ingresses}/{name}?fieldManager=m");
        let request = Request::builder().method("PATCH").uri(&path);
        let request = request.header(header::CONTENT_TYPE, format!("application/{kind}"));
        let response = cluster.send(request.body(Bytes::from(body.to_string())).unwrap()).await;
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let answer: Value = serde_json::from_slice(&bytes).unwrap();
        let told = answer["details"]["causes"][0]["message"].as_str().unwrap_or_default();
        assert!(told.starts_with(&format!("Invalid value: {shown}: either")), "{kind} {body}: {answer}");
    }
}
