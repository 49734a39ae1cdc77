//! Services with addresses of both families: taken, given back, refused.

mod support;

use serde_json::{Value, json};
use support::Cluster;

const SERVICES: &str = "/api/v1/namespaces/default/services";
const ADDRESSES: &str = "/apis/networking.k8s.io/v1/ipaddresses";

fn service(name: &str, more: Value) -> Value {
    let mut spec = json!({"ports": [{"port": 80}], "selector": {"a": "b"}});
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

async fn taken(cluster: &Cluster) -> Vec<String> {
    let (_, list) = cluster.json("GET", ADDRESSES, &Value::Null).await;
    let names =
        list["items"].as_array().unwrap().iter().map(|one| one["metadata"]["name"].as_str().unwrap().to_owned());
    names.collect()
}

#[tokio::test]
async fn addresses_come_and_go_with_the_policy() {
    let cluster = Cluster::with_services_in("10.96.0.0/16,fd00:96::/112").await;
    let asked = service("both", json!({"ipFamilyPolicy": "PreferDualStack"}));
    let (code, made) = cluster.json("POST", SERVICES, &asked).await;
    assert_eq!(code, 201, "{made}");
    let ips: Vec<String> = serde_json::from_value(made["spec"]["clusterIPs"].clone()).unwrap();
    assert!(ips[0].starts_with("10.96.") && ips[1].starts_with("fd00:96::"), "{ips:?}");
    assert_eq!((&made["spec"]["clusterIP"], &made["spec"]["ipFamilies"]), (&json!(ips[0]), &json!(["IPv4", "IPv6"])));
    let mut expected = ips.clone();
    expected.sort();
    assert_eq!(taken(&cluster).await, expected);
    let (_, second) = cluster.json("GET", &format!("{ADDRESSES}/{}", ips[1]), &Value::Null).await;
    assert_eq!(second["metadata"]["labels"]["ipaddress.kubernetes.io/ip-family"], "IPv6");

    let path = format!("{SERVICES}/both");
    let single = json!({"spec": {"ipFamilyPolicy": "SingleStack"}});
    let (code, smaller) = cluster.json("PATCH", &path, &single).await;
    assert_eq!((code, &smaller["spec"]["clusterIPs"]), (200, &json!([ips[0]])), "{smaller}");
    assert_eq!(taken(&cluster).await, [ips[0].clone()], "the second address is free again");

    let dual = json!({"spec": {"ipFamilyPolicy": "RequireDualStack"}});
    let (code, larger) = cluster.json("PATCH", &path, &dual).await;
    assert_eq!((code, &larger["spec"]["clusterIPs"][0]), (200, &json!(ips[0])), "{larger}");
    assert_eq!(taken(&cluster).await.len(), 2);

    assert_eq!(cluster.json("DELETE", &path, &Value::Null).await.0, 200);
    assert!(taken(&cluster).await.is_empty());
}

#[tokio::test]
async fn an_address_is_one_services_however_it_is_written() {
    let cluster = Cluster::with_services_in("fd00:96::/112,10.96.0.0/16").await;
    let first = service("first", json!({"clusterIP": "fd00:96::0:5"}));
    let (code, made) = cluster.json("POST", SERVICES, &first).await;
    assert_eq!((code, &made["spec"]["ipFamilies"]), (201, &json!(["IPv6"])), "{made}");
    assert_eq!(taken(&cluster).await, ["fd00:96::5"]);
    for (spec, part) in [
        (json!({"clusterIP": "fd00:96::5"}), "provided IP is already allocated"),
        (json!({"clusterIP": "fd00:97::5"}), "the provided network does not match the current range"),
        (json!({"clusterIP": "10.97.0.1"}), "the provided network does not match the current range"),
    ] {
        let (code, refused) = cluster.json("POST", SERVICES, &service("second", spec.clone())).await;
        assert_eq!(code, 422, "{spec}: {refused}");
        assert!(refused["message"].as_str().unwrap().contains(part), "{refused}");
    }
}

#[tokio::test]
async fn a_cluster_of_one_family_refuses_two() {
    let cluster = Cluster::new().await;
    for (spec, code, part) in [
        (json!({"ipFamilyPolicy": "RequireDualStack"}), 422, "this cluster is not configured for dual-stack services"),
        (json!({"ipFamilies": ["IPv6"]}), 422, "not configured on this cluster"),
        (json!({"ipFamilyPolicy": "PreferDualStack"}), 201, ""),
    ] {
        let (found, answer) = cluster.json("POST", SERVICES, &service("s", spec.clone())).await;
        assert_eq!(found, code, "{spec}: {answer}");
        assert!(answer["message"].as_str().unwrap_or_default().contains(part), "{answer}");
    }
}
