//! What plugins of the admission chain answer, case by case, and that each can be switched.

mod support;

use keelson_apiserver::Settings;
use serde_json::{Value, json};
use support::{Cluster, admin, user};

const PODS: &str = "/api/v1/namespaces/default/pods";

/// Settings with these plugins on and off.
fn plugins(on: &[&str], off: &[&str]) -> Settings {
    let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
    let mut settings = Settings::default();
    (settings.admission.enabled, settings.admission.disabled) = (names(on), names(off));
    settings
}

fn pod(name: &str, spec: Value) -> Value {
    let mut made = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "i:1", "imagePullPolicy": "IfNotPresent"}], "automountServiceAccountToken": false}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        made["spec"][key] = value.clone();
    }
    made
}

/// A cluster with the account that pods have when they name none.
async fn with_account(settings: Settings) -> Cluster {
    let cluster = Cluster::with(settings).await;
    let account = json!({"kind": "ServiceAccount", "apiVersion": "v1", "metadata": {"name": "default"}});
    cluster.make("/api/v1/namespaces/default/serviceaccounts", account).await;
    cluster
}

/// A message without what differs from run to run.
fn message(answer: &Value) -> &str {
    answer["message"].as_str().unwrap_or_default()
}

/// A request and why it is refused.
type Refused = (&'static str, String, Value, &'static str);

/// A reference to the node `one` as the owner of a pod, with these fields instead.
fn owner(uid: &Value, change: Value) -> Value {
    let mut owner = json!({"apiVersion": "v1", "kind": "Node", "name": "one", "uid": uid, "controller": true});
    for (key, value) in change.as_object().into_iter().flatten() {
        owner[key] = value.clone();
    }
    owner
}

/// A pod that the node `one` mirrors.
fn mirror(owners: Vec<Value>, spec: Value) -> Value {
    let mut made = pod("mirror", spec);
    made["spec"]["nodeName"] = "one".into();
    made["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
    made["metadata"]["ownerReferences"] = owners.into();
    made
}

/// Pods that a node may not mirror.
fn mirrored(uid: &Value) -> Vec<Refused> {
    let good = |uid: &Value| vec![owner(uid, json!({}))];
    let volume = |mut source: Value| {
        source["name"] = "v".into();
        json!({"volumes": [source]})
    };
    vec![
        (
            "POST",
            PODS.to_owned(),
            mirror(vec![], json!({})),
            "node \"one\" can only create pods with an owner reference set to itself",
        ),
        (
            "POST",
            PODS.to_owned(),
            mirror(vec![owner(uid, json!({})), owner(uid, json!({"uid": "x", "controller": false}))], json!({})),
            "node \"one\" can only create pods with a single owner reference set to itself",
        ),
        (
            "POST",
            PODS.to_owned(),
            mirror(vec![owner(uid, json!({"name": "two"}))], json!({})),
            "node \"one\" can only create pods with an owner reference set to itself",
        ),
        (
            "POST",
            PODS.to_owned(),
            mirror(vec![owner(uid, json!({"controller": false}))], json!({})),
            "node \"one\" can only create pods with a controller owner reference set to itself",
        ),
        (
            "POST",
            PODS.to_owned(),
            mirror(vec![owner(uid, json!({"blockOwnerDeletion": true}))], json!({})),
            "node \"one\" must not set blockOwnerDeletion on an owner reference",
        ),
        (
            "POST",
            PODS.to_owned(),
            mirror(good(uid), json!({"serviceAccountName": "default"})),
            "a mirror pod may not reference service accounts",
        ),
        (
            "POST",
            PODS.to_owned(),
            mirror(good(uid), json!({"imagePullSecrets": [{"name": "s"}]})),
            "a mirror pod may not reference secrets",
        ),
        (
            "POST",
            PODS.to_owned(),
            mirror(good(uid), volume(json!({"configMap": {"name": "c"}}))),
            "node \"one\" can not create pods that reference configmaps",
        ),
        (
            "POST",
            PODS.to_owned(),
            mirror(good(uid), volume(json!({"persistentVolumeClaim": {"claimName": "c"}}))),
            "node \"one\" can not create pods that reference persistentvolumeclaims",
        ),
    ]
}

/// What a node may not do to what is there.
fn written() -> Vec<Refused> {
    let one = "/api/v1/nodes/one";
    vec![
        (
            "DELETE",
            format!("{PODS}/foreign"),
            json!({}),
            "node \"one\" can only delete pods with spec.nodeName set to itself",
        ),
        (
            "PATCH",
            format!("{PODS}/foreign/status"),
            json!({"status": {"phase": "Running"}}),
            "node \"one\" can only update pod status for pods with spec.nodeName set to itself",
        ),
        (
            "PATCH",
            format!("{PODS}/own/status"),
            json!({"metadata": {"labels": {"a": "b"}}}),
            "node \"one\" cannot update labels through pod status",
        ),
        (
            "PATCH",
            one.to_owned(),
            json!({"metadata": {"labels": {"node-restriction.kubernetes.io/a": "b"}}}),
            "is not allowed to modify labels: node-restriction.kubernetes.io/a",
        ),
    ]
}

#[tokio::test]
async fn a_node_is_told_why_it_may_not() {
    let cluster = with_account(Settings::default()).await;
    let node = cluster.node("one", Value::Null).await;
    let uid = &node["metadata"]["uid"];
    cluster.make(PODS, pod("foreign", json!({"nodeName": "two"}))).await;
    cluster.make(PODS, pod("own", json!({"nodeName": "one"}))).await;
    for (method, path, body, told) in mirrored(uid).into_iter().chain(written()) {
        let (code, answer) = cluster.call(user("system:node:one", &["system:nodes"]), method, &path, &body).await;
        assert_eq!(code, 403, "{method} {path} {body}: {answer}");
        assert!(message(&answer).ends_with(&format!("is forbidden: {told}")), "{told}: {answer}");
    }
    let kubelet = || user("system:node:one", &["system:nodes"]);
    let (code, answer) = cluster.call(kubelet(), "POST", PODS, mirror(vec![owner(uid, json!({}))], json!({}))).await;
    assert_eq!(code, 201, "{answer}");
    let (code, _) =
        cluster.call(kubelet(), "PATCH", &format!("{PODS}/own/status"), json!({"status": {"phase": "Running"}})).await;
    assert_eq!(code, 200);
    let labelled = json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": "three", "labels": {"node-restriction.kubernetes.io/a": "b"}}});
    let (_, answer) =
        cluster.call(user("system:node:three", &["system:nodes"]), "POST", "/api/v1/nodes", labelled).await;
    assert!(
        message(&answer)
            .ends_with("node \"three\" is not allowed to set the following labels: node-restriction.kubernetes.io/a"),
        "{answer}"
    );
}

#[tokio::test]
async fn pods_get_the_labels_of_their_nodes_place() {
    for (off, expected) in [
        (&[][..], json!({"topology.kubernetes.io/zone": "z", "own": "x"})),
        (&["PodTopologyLabels"], json!({"own": "x"})),
    ] {
        let cluster = with_account(plugins(&[], off)).await;
        let labels = json!({"topology.kubernetes.io/zone": "z", "other": "y"});
        cluster.node("n", labels).await;
        let mut waits = pod("waits", json!({}));
        waits["metadata"]["labels"] = json!({"own": "x"});
        cluster.make(PODS, &waits).await;
        let binding = json!({"kind": "Binding", "apiVersion": "v1", "metadata": {"name": "waits"}, "target": {"kind": "Node", "name": "n"}});
        cluster.make(&format!("{PODS}/waits/binding"), binding).await;
        let (_, bound) = cluster.json("GET", &format!("{PODS}/waits"), Value::Null).await;
        assert_eq!(bound["metadata"]["labels"], expected, "{off:?}");
        waits["metadata"]["name"] = "placed".into();
        waits["spec"]["nodeName"] = "n".into();
        assert_eq!(cluster.make(PODS, waits).await["metadata"]["labels"], expected, "{off:?}");
    }
}

#[tokio::test]
async fn pods_grow_within_what_their_node_has() {
    let cluster = with_account(plugins(&[], &[])).await;
    for (name, os) in [("linux", "linux"), ("other", "plan9")] {
        cluster.node(name, json!({"kubernetes.io/os": os})).await;
        let status = json!({"status": {"allocatable": {"cpu": "2", "memory": "1Ki"}}});
        assert_eq!(cluster.json("PATCH", &format!("/api/v1/nodes/{name}/status"), status).await.0, 200);
    }
    for (node, cpu, expected) in [
        ("", "9", None),
        ("linux", "2", None),
        (
            "linux",
            "2001m",
            Some((
                "Node didn't have enough allocatable resources: cpu, requested: 2001, allocatable: 2000",
                "NodeCapacity",
            )),
        ),
        (
            "other",
            "2",
            Some(("pod resize is only supported on linux nodes, node \"other\" is \"plan9\"", "UnsupportedPlatform")),
        ),
        ("gone", "2", Some(("node \"gone\" not found", ""))),
    ] {
        let containers = |cpu: &str| json!([{"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}}]);
        let name = format!("on-{node}-{cpu}x");
        cluster.make(PODS, pod(&name, json!({"nodeName": node, "containers": containers("1")}))).await;
        let larger = json!({"spec": {"containers": containers(cpu)}}).to_string().into_bytes();
        let path = format!("{PODS}/{name}/resize");
        let (code, answer) =
            cluster.raw(admin(), "PATCH", &path, "application/strategic-merge-patch+json", larger).await;
        let Some((why, cause)) = expected else {
            assert_eq!(code, 200, "{answer}");
            continue;
        };
        assert_eq!((code, &answer["message"]), (403, &json!(format!("pods \"{name}\" is forbidden: {why}"))));
        let causes = if cause.is_empty() { Value::Null } else { json!([{"reason": cause}]) };
        assert_eq!(answer["details"]["causes"], causes);
    }
}

#[tokio::test]
async fn pods_change_as_their_node_declares() {
    let cluster = with_account(plugins(&[], &[])).await;
    cluster.node("n", json!({"kubernetes.io/os": "linux"})).await;
    let spec = |pod: &str, start: &str| {
        let asks = |cpu: &str| json!({"requests": {"cpu": cpu}});
        json!({"nodeName": "n", "resources": asks(pod), "containers": [{"name": "c", "image": "i"}],
            "initContainers": [{"name": "s", "image": "i", "resources": asks(start)}]})
    };
    cluster.make(PODS, pod("p", spec("1", "100m"))).await;
    let (whole, start) = ("InPlacePodLevelResourcesVerticalScaling", "InPlacePodVerticalScalingInitContainers");
    for (declared, wanted, lacks) in [
        (json!([]), spec("2", "100m"), Some(whole.to_owned())),
        (json!([]), spec("2", "200m"), Some(format!("{whole}, {start}"))),
        (json!([whole]), spec("2", "200m"), Some(start.to_owned())),
        (json!([whole, start]), spec("2", "200m"), None),
    ] {
        let status = json!({"status": {"allocatable": {"cpu": "4"}, "declaredFeatures": declared}});
        assert_eq!(cluster.json("PATCH", "/api/v1/nodes/n/status", &status).await.0, 200);
        let body = json!({"spec": wanted}).to_string().into_bytes();
        let path = format!("{PODS}/p/resize");
        let (code, answer) = cluster.raw(admin(), "PATCH", &path, "application/merge-patch+json", body).await;
        let Some(lacks) = lacks else {
            assert_eq!(code, 200, "{answer}");
            continue;
        };
        let why = format!("pod update requires features {lacks} which are not available on node \"n\"");
        assert_eq!((code, &answer["message"]), (403, &json!(format!("pods \"p\" is forbidden: {why}"))), "{declared}");
    }
}

/// Binds pods of the namespace `default` in one request; what is told of each.
async fn bind(cluster: &Cluster, pairs: &[(&str, &str)]) -> Vec<Value> {
    let list = pairs.iter().map(|(name, node)| json!({"namespace": "default", "name": name, "node": node}));
    let (code, answer) = cluster.json("POST", "/keelson/v1/bindings", Value::from_iter(list)).await;
    assert_eq!(code, 200, "{answer}");
    answer.as_array().unwrap().clone()
}

#[tokio::test]
async fn many_bindings_are_admitted_as_one_would_be() {
    let cluster = with_account(Settings::default()).await;
    for zone in ["y", "z"] {
        let labels = json!({"topology.kubernetes.io/zone": zone, "other": "x"});
        cluster.node(&format!("in-{zone}"), labels).await;
    }
    for name in ["a", "b", "c", "d"] {
        cluster.make(PODS, pod(name, json!({}))).await;
    }
    let told = bind(&cluster, &[("a", "in-y"), ("b", "in-z"), ("gone", "in-y"), ("c", "")]).await;
    assert_eq!(told[..2], [Value::Null, Value::Null]);
    assert_eq!((message(&told[2]), message(&told[3])), ("pods \"gone\" not found", "target.name: Required value"));
    for (name, zone) in [("a", "y"), ("b", "z")] {
        let (_, bound) = cluster.json("GET", &format!("{PODS}/{name}"), Value::Null).await;
        assert_eq!(bound["spec"]["nodeName"], format!("in-{zone}"));
        assert_eq!(bound["metadata"]["labels"], json!({"topology.kubernetes.io/zone": zone}));
    }
    // A policy that wants to see each binding sees each.
    let policies = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
    let rules =
        json!([{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods/binding"]}]);
    let spec = json!({"matchConstraints": {"resourceRules": rules}, "validations": [{"expression": "object.target.name != 'in-z'"}]});
    let kind = |kind: &str, spec: Value| json!({"kind": kind, "apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": "p"}, "spec": spec});
    cluster.make(policies, kind("ValidatingAdmissionPolicy", spec)).await;
    let binding = json!({"policyName": "p", "validationActions": ["Deny"]});
    let binding = kind("ValidatingAdmissionPolicyBinding", binding);
    cluster.make("/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings", binding).await;
    let told = bind(&cluster, &[("c", "in-z"), ("d", "in-y")]).await;
    assert!(message(&told[0]).ends_with("failed expression: object.target.name != 'in-z'"), "{told:?}");
    assert_eq!(told[1], Value::Null);
}

#[tokio::test]
async fn images_are_always_pulled() {
    let always = with_account(plugins(&["AlwaysPullImages"], &[])).await;
    let made = always.make(PODS, pod("p", json!({}))).await;
    assert_eq!(made["spec"]["containers"][0]["imagePullPolicy"], "Always");
    let (code, changed) = always.json("PATCH", &format!("{PODS}/p"), json!({"metadata": {"labels": {"a": "b"}}})).await;
    assert_eq!((code, &changed["spec"]["containers"][0]["imagePullPolicy"]), (200, &"Always".into()), "{changed}");
}

#[tokio::test]
async fn namespaces_say_what_their_pods_tolerate() {
    let cluster = with_account(plugins(&["PodTolerationRestriction"], &[])).await;
    let annotate = async |key: &str, value: Value| {
        let key = format!("scheduler.alpha.kubernetes.io/{key}");
        let change = json!({"metadata": {"annotations": {key: value.to_string()}}});
        assert_eq!(cluster.json("PATCH", "/api/v1/namespaces/default", change).await.0, 200);
    };
    annotate("defaultTolerations", json!([{"key": "team", "operator": "Exists", "effect": "NoSchedule"}])).await;
    let requests = json!({"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "1"}}}]});
    let made = cluster.make(PODS, pod("p", requests)).await;
    let keys: Vec<&str> =
        made["spec"]["tolerations"].as_array().unwrap().iter().map(|t| t["key"].as_str().unwrap()).collect();
    assert!(keys.contains(&"team") && keys.contains(&"node.kubernetes.io/memory-pressure"), "{keys:?}");
    annotate("tolerationsWhitelist", json!([{"key": "team", "operator": "Exists", "effect": "NoSchedule"}, {"operator": "Exists", "effect": "NoExecute"}])).await;
    cluster.make(PODS, pod("allowed", json!({}))).await;
    let asks = json!({"tolerations": [{"key": "other", "operator": "Exists"}]});
    let (code, answer) = cluster.json("POST", PODS, pod("refused", asks)).await;
    assert_eq!(code, 500);
    let told =
        "pod tolerations (possibly merged with namespace default tolerations) conflict with its namespace whitelist";
    assert_eq!(message(&answer), told);
}

#[tokio::test]
async fn only_who_may_hold_up_an_owner_does() {
    let cluster = Cluster::with(plugins(&["OwnerReferencesPermissionEnforcement"], &[])).await;
    let definition = json!({"kind": "CustomResourceDefinition", "apiVersion": "apiextensions.k8s.io/v1", "metadata": {"name": "things.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"}, "versions": [
            {"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}});
    cluster.make("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition).await;
    cluster.until("/apis/example.com/v1/things", |code, _| code == 200).await;
    let version = "rbac.authorization.k8s.io/v1";
    let rules = json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create", "patch", "get"]}]);
    cluster
        .make(
            "/apis/rbac.authorization.k8s.io/v1/clusterroles",
            json!({"kind": "ClusterRole", "apiVersion": version, "metadata": {"name": "w"}, "rules": rules}),
        )
        .await;
    cluster.make("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", json!({"kind": "ClusterRoleBinding", "apiVersion": version, "metadata": {"name": "w"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "w"}, "subjects": [{"kind": "User", "name": "eve", "apiGroup": "rbac.authorization.k8s.io"}]})).await;
    let map = |name: &str, owner: Value| json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name, "ownerReferences": [owner]}});
    let owner = |kind: &str, blocks: bool| json!({"apiVersion": "example.com/v1", "kind": kind, "name": "t", "uid": "u", "blockOwnerDeletion": blocks});
    let maps = "/api/v1/namespaces/default/configmaps";
    for (name, owner, told) in [
        ("free", owner("Thing", false), ""),
        (
            "holds",
            owner("Thing", true),
            "cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on: , <nil>",
        ),
        (
            "lost",
            owner("Nothing", true),
            "cannot find RESTMapping for APIVersion example.com/v1 Kind Nothing: no matches for kind \"Nothing\" in version \"example.com/v1\"",
        ),
    ] {
        let (code, answer) = cluster.call(user("eve", &[]), "POST", maps, map(name, owner)).await;
        assert_eq!(code, if told.is_empty() { 201 } else { 403 }, "{answer}");
        assert!(message(&answer).ends_with(told), "{answer}");
    }
    let change = json!({"metadata": {"ownerReferences": []}});
    let (_, answer) = cluster.call(user("eve", &[]), "PATCH", &format!("{maps}/free"), &change).await;
    assert!(message(&answer).contains("cannot set an ownerRef on a resource you can't delete"), "{answer}");
    assert_eq!(cluster.call(admin(), "PATCH", &format!("{maps}/free"), &change).await.0, 200);
}

#[tokio::test]
async fn quotas_count_unless_they_are_off() {
    for (off, expected) in [(&[][..], 403), (&["ResourceQuota", "ClusterTrustBundleAttest"], 201)] {
        let cluster = Cluster::with(plugins(&[], off)).await;
        let quotas = "/api/v1/namespaces/default/resourcequotas";
        let hard = json!({"count/configmaps": "0"});
        cluster
            .make(
                quotas,
                json!({"kind": "ResourceQuota", "apiVersion": "v1", "metadata": {"name": "q"}, "spec": {"hard": hard}}),
            )
            .await;
        let status = json!({"status": {"hard": hard, "used": {"count/configmaps": "0"}}});
        assert_eq!(cluster.json("PATCH", &format!("{quotas}/q/status"), status).await.0, 200);
        let map = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "m"}});
        assert_eq!(cluster.json("POST", "/api/v1/namespaces/default/configmaps", map).await.0, expected, "{off:?}");
    }
}

#[tokio::test]
async fn apis_that_are_off_are_not_there() {
    let settings = Settings {
        runtime_config: vec!["apps/v1=false".into(), "batch/v1/cronjobs=false".into()],
        ..Settings::default()
    };
    let cluster = Cluster::with(settings).await;
    for (path, expected) in [
        ("/apis/apps/v1/deployments", 404),
        ("/apis/apps/v1", 404),
        ("/apis/apps", 404),
        ("/apis/batch/v1/cronjobs", 404),
        ("/apis/batch/v1/jobs", 200),
        ("/openapi/v3/apis/apps/v1", 404),
        ("/openapi/v3/apis/batch/v1", 200),
    ] {
        assert_eq!(cluster.json("GET", path, Value::Null).await.0, expected, "{path}");
    }
    let (_, groups) = cluster.json("GET", "/apis", Value::Null).await;
    let names: Vec<&str> = groups["groups"].as_array().unwrap().iter().map(|g| g["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"batch") && !names.contains(&"apps"), "{names:?}");
}
