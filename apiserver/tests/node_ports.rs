//! What a Service keeps, loses and gives back when it changes: node ports, the state of its load balancer, its Endpoints; and
//! what is said to those who ask for what is behind it.

mod support;

use serde_json::{Value, json};
use support::Cluster;

const SERVICES: &str = "/api/v1/namespaces/default/services";

async fn made(cluster: &Cluster, name: &str, kind: &str, ports: Value) -> Value {
    let spec = json!({"type": kind, "ports": ports});
    cluster.make(SERVICES, json!({"metadata": {"name": name}, "spec": spec})).await
}

#[tokio::test]
async fn node_ports_stay_by_the_names_of_their_ports() {
    let cluster = Cluster::new().await;
    let path = format!("{SERVICES}/s");
    let service = made(&cluster, "s", "NodePort", json!([{"port": 80}])).await;
    let first = service["spec"]["ports"][0]["nodePort"].as_i64().unwrap();
    let put = |spec: Value| json!({"metadata": {"name": "s"}, "spec": spec});
    let rows = [
        (json!([{"port": 8080}]), 200, ""),
        (json!([{"name": "a", "port": 80, "nodePort": first}, {"name": "b", "port": 81}]), 200, ""),
        // What one port has, another does not get back by its name.
        (json!([{"name": "b", "port": 81, "nodePort": first}, {"name": "a", "port": 80}]), 200, ""),
        (
            json!([{"name": "a", "port": 80, "nodePort": first}, {"name": "b", "port": 81, "nodePort": first}]),
            500,
            "duplicate nodePort: {TCP ",
        ),
        (
            json!([{"name": "a", "port": 80, "nodePort": first}, {"name": "b", "port": 81, "nodePort": 20000}]),
            422,
            "spec.ports[1].nodePort: Invalid value: 20000: provided port is not in the valid range",
        ),
    ];
    for (ports, expected, part) in rows {
        let body = put(json!({"type": "NodePort", "ports": ports}));
        let (code, answer) = cluster.json("PUT", &path, body).await;
        assert_eq!(code, expected, "{ports}: {answer}");
        if code == 200 {
            let numbers: Vec<i64> =
                answer["spec"]["ports"].as_array().unwrap().iter().map(|p| p["nodePort"].as_i64().unwrap()).collect();
            assert_eq!(numbers[0], first, "{answer}");
            assert!(numbers.len() == 1 || numbers[1] != first, "{answer}");
        } else {
            assert!(answer["message"].as_str().unwrap().contains(part), "{answer}");
        }
    }
    // Of a Service that needs none any more they go, though some of its ports went with the same update.
    let (_, now) = cluster.json("GET", &path, Value::Null).await;
    let left = json!([now["spec"]["ports"][1]]);
    let (code, answer) = cluster.json("PUT", &path, put(json!({"type": "ClusterIP", "ports": left}))).await;
    assert_eq!((code, &answer["spec"]["ports"][0]["nodePort"]), (200, &Value::Null), "{answer}");
    let free = made(&cluster, "t", "NodePort", json!([{"port": 80, "nodePort": first}])).await;
    assert_eq!(free["spec"]["ports"][0]["nodePort"], first);
}

#[tokio::test]
async fn a_service_that_goes_takes_its_endpoints_along() {
    let cluster = Cluster::new().await;
    made(&cluster, "s", "ClusterIP", json!([{"port": 80}])).await;
    let endpoints = "/api/v1/namespaces/default/endpoints";
    cluster.make(endpoints, json!({"metadata": {"name": "s"}})).await;
    let path = format!("{SERVICES}/s");
    assert_eq!(cluster.json("DELETE", &format!("{path}?dryRun=All"), Value::Null).await.0, 200);
    assert_eq!(cluster.json("GET", &format!("{endpoints}/s"), Value::Null).await.0, 200);
    assert_eq!(cluster.json("DELETE", &path, Value::Null).await.0, 200);
    assert_eq!(cluster.json("GET", &format!("{endpoints}/s"), Value::Null).await.0, 404);
}

#[tokio::test]
async fn a_balancer_is_told_of_only_where_there_is_one() {
    let cluster = Cluster::new().await;
    made(&cluster, "s", "LoadBalancer", json!([{"port": 80}])).await;
    let path = format!("{SERVICES}/s");
    let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.4"}]}}});
    let (code, answer) = cluster.json("PATCH", &format!("{path}/status"), status).await;
    assert_eq!((code, &answer["status"]["loadBalancer"]["ingress"][0]["ip"]), (200, &json!("192.0.2.4")), "{answer}");
    let (code, answer) = cluster.json("PATCH", &path, json!({"spec": {"type": "ClusterIP"}})).await;
    assert_eq!((code, &answer["status"]["loadBalancer"]), (200, &json!({})), "{answer}");
}

#[tokio::test]
async fn who_asks_for_what_is_behind_a_service_is_told_what_is_missing() {
    let cluster = Cluster::new().await;
    made(&cluster, "s", "ClusterIP", json!([{"port": 80}])).await;
    for (name, expected, part) in [
        ("none", 404, "services \"none\" not found"),
        ("s", 503, "no endpoints available for service \"s\""),
        ("s:81", 503, "no service port 81 found for service \"s\""),
        ("https:s:80", 503, "no endpoints available for service \"https:s:80\""),
        ("ftp:s:80", 400, "invalid service request \"ftp:s:80\""),
    ] {
        let (code, answer) = cluster.json("GET", &format!("{SERVICES}/{name}/proxy/"), Value::Null).await;
        assert_eq!(code, expected, "{name}: {answer}");
        assert_eq!(answer["message"], part, "{name}");
    }
}
