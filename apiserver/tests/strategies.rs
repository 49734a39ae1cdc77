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
    for (query, expected) in [
        ("tailLines=-1", "tailLines: Invalid value: -1: must be greater than or equal to 0"),
        ("stream=Stdout", "stream: Forbidden: may not be specified"),
        ("sinceSeconds=0&limitBytes=0", "sinceSeconds: Invalid value: 0: must be greater than 0"),
    ] {
        let (code, refused) = cluster.json("GET", &format!("{DEFAULT}/pods/p/log?{query}"), &Value::Null).await;
        assert_eq!(code, 422, "{query}");
        assert!(refused["message"].as_str().unwrap().contains(expected), "{query}: {refused}");
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
