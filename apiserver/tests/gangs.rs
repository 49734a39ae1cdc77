//! Groups of pods where their gate is open: kinds of an alpha version that is asked for, what they are held to, who may name
//! what, and the field of pods. All tests of this file share one process, whose gates are open.

mod support;

use keelson_apiserver::Settings;
use keelson_machinery::features::{self, Feature, Gates};
use serde_json::{Value, json};
use support::Cluster;

const GROUPS: &str = "/apis/scheduling.k8s.io/v1alpha2/namespaces/default/podgroups";
const WORKLOADS: &str = "/apis/scheduling.k8s.io/v1alpha2/namespaces/default/workloads";

async fn cluster(runtime_config: &[&str]) -> Cluster {
    features::install(Gates::default().with(Feature::GenericWorkload, true));
    let runtime_config = runtime_config.iter().map(|pair| (*pair).to_owned()).collect();
    Cluster::with(Settings { runtime_config, ..Settings::default() }).await
}

fn group(name: &str, spec: Value) -> Value {
    json!({"metadata": {"name": name}, "spec": spec})
}

#[tokio::test]
async fn an_alpha_version_is_served_if_it_is_asked_for() {
    let cluster = cluster(&[]).await;
    let (code, _) = cluster.json("GET", GROUPS, Value::Null).await;
    assert_eq!(code, 404, "nobody asked for it");
    let (_, group) = cluster.json("GET", "/apis/scheduling.k8s.io", Value::Null).await;
    assert_eq!(group["versions"].as_array().unwrap().len(), 1, "{group}");

    let cluster = self::cluster(&["scheduling.k8s.io/v1alpha2=true"]).await;
    let (_, group) = cluster.json("GET", "/apis/scheduling.k8s.io", Value::Null).await;
    assert_eq!(group["preferredVersion"]["version"], "v1", "{group}");
    let (_, list) = cluster.json("GET", "/apis/scheduling.k8s.io/v1alpha2", Value::Null).await;
    let names: Vec<&str> = list["resources"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["podgroups", "podgroups/status", "workloads"]);
    let (code, document) = cluster.json("GET", "/openapi/v3/apis/scheduling.k8s.io/v1alpha2", Value::Null).await;
    assert_eq!(code, 200);
    let policy = &document["components"]["schemas"]["io.k8s.api.scheduling.v1alpha2.PodGroupSchedulingPolicy"];
    assert!(policy["x-kubernetes-unions"].is_array(), "{policy}");
    cluster
        .until("/apis/apiregistration.k8s.io/v1/apiservices/v1alpha2.scheduling.k8s.io", |code, _| code == 200)
        .await;
}

#[tokio::test]
async fn groups_have_a_spec_that_stays_and_a_status_of_its_own() {
    let cluster = cluster(&["scheduling.k8s.io/v1alpha2=true"]).await;
    let spec = json!({"schedulingPolicy": {"gang": {"minCount": 3}}, "schedulingConstraints": {"topology": [{"key": "k"}]},
        "priorityClassName": "p", "disruptionMode": "Pod"});
    let mut object = group("g", spec);
    object["status"] = json!({"conditions": [{"type": "X", "status": "True"}]});
    let made = cluster.make(GROUPS, &object).await;
    assert_eq!(made["spec"], json!({"schedulingPolicy": {"gang": {"minCount": 3}}}), "other gates are closed");
    assert!(made["status"].get("conditions").is_none() && made["metadata"].get("generation").is_none(), "{made}");
    assert_eq!(made["metadata"]["finalizers"], json!(["scheduling.k8s.io/podgroup-protection"]));

    let patch = json!({"spec": {"schedulingPolicy": {"gang": {"minCount": 4}}}});
    let (code, refused) = cluster.json("PATCH", &format!("{GROUPS}/g"), &patch).await;
    assert_eq!(code, 422);
    let why = "PodGroup.scheduling.k8s.io \"g\" is invalid: spec.schedulingPolicy: Invalid value: \
               {\"Basic\":null,\"Gang\":{\"MinCount\":4}}: field is immutable";
    assert_eq!(refused["message"], why);

    // The scheduler's way to write a condition: others of the list stay.
    let condition = |kind: &str, status: &str| {
        json!({"status": {"conditions": [{"type": kind, "status": status, "reason": "R", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}]}})
    };
    let kind = "application/strategic-merge-patch+json";
    for (name, status, expected) in [("A", "False", 1), ("PodGroupScheduled", "False", 2), ("A", "True", 2)] {
        let body = condition(name, status).to_string().into_bytes();
        let path = format!("{GROUPS}/g/status");
        let (code, patched) = cluster.raw(support::admin(), "PATCH", &path, kind, body).await;
        assert_eq!(
            (code, patched["status"]["conditions"].as_array().map(Vec::len)),
            (200, Some(expected)),
            "{patched}"
        );
    }
    let (code, refused) = cluster.json("POST", GROUPS, group("h", json!({}))).await;
    assert_eq!(code, 422);
    assert!(refused["message"].as_str().unwrap().ends_with("must specify one of: `basic`, `gang`"), "{refused}");
    cluster.make(GROUPS, group("basic", json!({"schedulingPolicy": {"basic": {}}}))).await;
    let (_, kept) = cluster.json("GET", &format!("{GROUPS}/basic"), Value::Null).await;
    assert_eq!(kept["spec"], json!({"schedulingPolicy": {"basic": {}}}));
    let (code, going) = cluster.json("DELETE", &format!("{GROUPS}/basic"), Value::Null).await;
    assert_eq!(code, 200, "{going}");
    let (_, held) = cluster.json("GET", &format!("{GROUPS}/basic"), Value::Null).await;
    assert!(held["metadata"]["deletionTimestamp"].is_string(), "its finalizer holds it: {held}");
}

#[tokio::test]
async fn a_group_of_a_template_needs_the_template() {
    let cluster = cluster(&["api/alpha=true"]).await;
    let of = |workload: &str, template: &str| {
        json!({"schedulingPolicy": {"basic": {}}, "podGroupTemplateRef": {"workload": {
            "workloadName": workload, "podGroupTemplateName": template}}})
    };
    let templates = json!([{"name": "t", "schedulingPolicy": {"gang": {"minCount": 2}}}]);
    cluster.make(WORKLOADS, group("w", json!({"podGroupTemplates": templates}))).await;
    for (workload, template, why) in [
        ("none", "t", "PodGroup rejected: Workload \"none\" not found"),
        ("w", "none", "PodGroup rejected: PodGroupTemplate \"none\" not found in Workload \"w\""),
    ] {
        let (code, refused) = cluster.json("POST", GROUPS, group("g", of(workload, template))).await;
        assert_eq!(code, 403, "{refused}");
        assert_eq!(refused["message"], format!("podgroups.scheduling.k8s.io \"g\" is forbidden: {why}"));
    }
    cluster.make(GROUPS, group("g", of("w", "t"))).await;
    let (code, refused) = cluster.json("POST", WORKLOADS, group("x", json!({}))).await;
    assert_eq!((code, &refused["details"]["causes"][0]["field"]), (422, &json!("spec.podGroupTemplates")), "{refused}");
}

#[tokio::test]
async fn pods_name_their_group_once() {
    let cluster = cluster(&[]).await;
    let path = "/api/v1/namespaces/default";
    let (code, _) =
        cluster.json("POST", &format!("{path}/serviceaccounts"), json!({"metadata": {"name": "default"}})).await;
    assert!(code == 201 || code == 409);
    let pod = |group: Value| json!({"metadata": {"name": "p"}, "spec": {"schedulingGroup": group, "containers": [{"name": "c", "image": "i"}]}});
    let (code, refused) = cluster.json("POST", &format!("{path}/pods"), pod(json!({"podGroupName": "A"}))).await;
    assert_eq!(code, 422);
    assert!(refused["message"].as_str().unwrap().contains("spec.schedulingGroup.podGroupName: Invalid value: \"A\""));
    let made = cluster.make(&format!("{path}/pods"), pod(json!({"podGroupName": "a"}))).await;
    assert_eq!(made["spec"]["schedulingGroup"], json!({"podGroupName": "a"}));
    let patch = json!({"spec": {"schedulingGroup": {"podGroupName": "b"}}});
    let (code, refused) = cluster.json("PATCH", &format!("{path}/pods/p"), &patch).await;
    assert_eq!(code, 422, "{refused}");
    assert!(refused["message"].as_str().unwrap().contains("pod updates may not change fields"), "{refused}");
}
