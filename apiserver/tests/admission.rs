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

/// A quota whose usage is told as a controller would.
async fn quota(cluster: &Cluster, spec: Value, used: Value) {
    let path = "/api/v1/namespaces/default/resourcequotas";
    cluster.make(path, json!({"metadata": {"name": "q"}, "spec": spec})).await;
    let status = json!({"status": {"hard": spec["hard"], "used": used}});
    assert_eq!(cluster.json("PATCH", &format!("{path}/q/status"), status).await.0, 200);
}

#[tokio::test]
async fn quotas_say_what_is_too_much() {
    let service = |kind: &str| json!({"metadata": {"name": "s"}, "spec": {"type": kind, "ports": [{"port": 80}]}});
    let claim = json!({"metadata": {"name": "c"}, "spec": {"storageClassName": "gold", "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "2Gi"}}}});
    let asks = |requests: Value| {
        pod(
            "p",
            json!({"containers": [{"name": "c", "image": "i", "resources": {"requests": requests, "limits": requests}}]}),
        )
    };
    let gold = "gold.storageclass.storage.k8s.io/requests.storage";
    let gpu = "requests.example.com/gpu";
    let refused = |kind: &str, name: &str, why: &str| format!("{kind} \"{name}\" is forbidden: {why}");
    for (spec, used, path, object, expected) in [
        (
            json!({"hard": {"pods": "1", "cpu": "2", "secrets": "1"}}),
            json!({"pods": "0", "secrets": "0"}),
            "pods",
            asks(json!({"cpu": "1"})),
            refused("pods", "p", "status unknown for quota: q, resources: cpu,pods"),
        ),
        (
            json!({"hard": {gpu: "1", "requests.ephemeral-storage": "1Gi"}}),
            json!({gpu: "0", "requests.ephemeral-storage": "512Mi"}),
            "pods",
            asks(json!({"example.com/gpu": "2", "ephemeral-storage": "1Gi"})),
            refused(
                "pods",
                "p",
                &format!(
                    "exceeded quota: q, requested: requests.ephemeral-storage=1Gi,{gpu}=2, \
                          used: requests.ephemeral-storage=512Mi,{gpu}=0, limited: requests.ephemeral-storage=1Gi,{gpu}=1"
                ),
            ),
        ),
        (
            json!({"hard": {gold: "1Gi"}}),
            json!({gold: "0"}),
            "persistentvolumeclaims",
            claim,
            refused(
                "persistentvolumeclaims",
                "c",
                &format!("exceeded quota: q, requested: {gold}=2Gi, used: {gold}=0, limited: {gold}=1Gi"),
            ),
        ),
        (
            json!({"hard": {"pods": "0"}, "scopeSelector": {"matchExpressions": [
                {"scopeName": "PriorityClass", "operator": "NotIn", "values": ["system-node-critical"]}]}}),
            json!({"pods": "0"}),
            "pods",
            asks(json!({"cpu": "1"})),
            refused("pods", "p", "exceeded quota: q, requested: pods=1, used: pods=0, limited: pods=0"),
        ),
        (json!({"hard": {"count/events": "0"}}), json!({}), "services", service("ClusterIP"), String::new()),
    ] {
        let cluster = with_account(Settings::default()).await;
        quota(&cluster, spec, used).await;
        let (code, answer) = cluster.json("POST", &format!("/api/v1/namespaces/default/{path}"), object).await;
        assert_eq!((code, message(&answer)), (if expected.is_empty() { 201 } else { 403 }, expected.as_str()));
    }
}

#[tokio::test]
async fn what_is_less_is_given_back_when_it_is_counted_anew() {
    let cluster = Cluster::new().await;
    let service = |kind: &str| json!({"metadata": {"name": "s"}, "spec": {"type": kind, "ports": [{"port": 80}]}});
    quota(&cluster, json!({"hard": {"services.nodeports": "1"}}), json!({"services.nodeports": "0"})).await;
    let services = "/api/v1/namespaces/default/services";
    cluster.make(services, service("NodePort")).await;
    let plain = json!({"spec": {"type": "ClusterIP"}});
    assert_eq!(cluster.json("PATCH", &format!("{services}/s"), &plain).await.0, 200);
    let (code, answer) = cluster.json("PATCH", &format!("{services}/s"), json!({"spec": {"type": "NodePort"}})).await;
    let why =
        "exceeded quota: q, requested: services.nodeports=1, used: services.nodeports=1, limited: services.nodeports=1";
    assert_eq!((code, message(&answer)), (403, format!("services \"s\" is forbidden: {why}").as_str()));
}

#[tokio::test]
async fn each_range_of_limits_is_held_to() {
    let cluster = with_account(Settings::default()).await;
    let range = |name: &str, limit: Value| json!({"metadata": {"name": name}, "spec": {"limits": [limit]}});
    let ranges = "/api/v1/namespaces/default/limitranges";
    cluster
        .make(ranges, range("a", json!({"type": "Container", "max": {"cpu": "1"}, "defaultRequest": {"cpu": "1m"}})))
        .await;
    cluster
        .make(ranges, range("b", json!({"type": "Container", "min": {"memory": "1Gi"}, "default": {"memory": "2Gi"}})))
        .await;
    let made =
        |limits: Value| pod("p", json!({"containers": [{"name": "c", "image": "i", "resources": {"limits": limits}}]}));
    for (limits, expected) in [
        (
            json!({"cpu": "2", "memory": "1Mi"}),
            "pods \"p\" is forbidden: maximum cpu usage per Container is 1, but limit is 2",
        ),
        (
            json!({"cpu": "1", "memory": "1Mi"}),
            "pods \"p\" is forbidden: minimum memory usage per Container is 1Gi, but request is 1Mi",
        ),
    ] {
        let (code, answer) = cluster.json("POST", PODS, made(limits)).await;
        assert_eq!((code, message(&answer)), (403, expected));
    }
    let kept = cluster.make(PODS, made(json!({}))).await;
    let told = "LimitRanger plugin set: memory request for container c; memory limit for container c";
    assert_eq!(kept["metadata"]["annotations"]["kubernetes.io/limit-ranger"], told);
    assert_eq!(kept["spec"]["containers"][0]["resources"]["limits"], json!({"cpu": "1", "memory": "2Gi"}));
}

#[tokio::test]
async fn pods_bring_the_volume_of_their_token() {
    let cluster = with_account(Settings::default()).await;
    let mount = "/var/run/secrets/kubernetes.io/serviceaccount";
    let volume = json!({"name": "kube-api-access-abcde", "emptyDir": {}});
    let mounted = json!([{"name": "kube-api-access-abcde", "mountPath": mount}]);
    let made = pod(
        "p",
        json!({"automountServiceAccountToken": true, "volumes": [volume],
        "containers": [{"name": "a", "image": "i", "volumeMounts": mounted}, {"name": "b", "image": "i"}]}),
    );
    let kept = cluster.make(PODS, made).await;
    assert_eq!(kept["spec"]["volumes"], json!([volume]));
    assert_eq!(kept["spec"]["containers"][1]["volumeMounts"][0]["name"], "kube-api-access-abcde");
}

#[tokio::test]
async fn accounts_bound_the_secrets_of_added_containers() {
    let cluster = with_account(Settings::default()).await;
    let account = "/api/v1/namespaces/default/serviceaccounts/default";
    cluster.make(PODS, pod("p", json!({}))).await;
    let debug = json!({"spec": {"ephemeralContainers": [{"name": "d", "image": "i",
        "envFrom": [{"secretRef": {"name": "hidden"}}]}]}});
    let path = format!("{PODS}/p/ephemeralcontainers?dryRun=All");
    for (enforce, expected) in [
        ("no", (200, "")),
        (
            "1",
            (
                403,
                "pods \"p\" is forbidden: ephemeral container d with envFrom referencing secret.secretName=\"hidden\" is not allowed \
                 because service account default does not reference that secret",
            ),
        ),
    ] {
        let enforced = json!({"metadata": {"annotations": {"kubernetes.io/enforce-mountable-secrets": enforce}}});
        assert_eq!(cluster.json("PATCH", account, enforced).await.0, 200);
        let (code, answer) = cluster.json("PATCH", &path, &debug).await;
        assert_eq!((code, message(&answer)), expected, "{enforce}");
    }
}

#[tokio::test]
async fn an_update_may_leave_out_what_was_filled_in() {
    let cluster = with_account(Settings::default()).await;
    let class = json!({"metadata": {"name": "high"}, "value": 7, "preemptionPolicy": "Never"});
    cluster.make("/apis/scheduling.k8s.io/v1/priorityclasses", class).await;
    let toleration = json!({"key": "node.kubernetes.io/not-ready", "operator": "Exists"});
    let made = cluster.make(PODS, pod("p", json!({"priorityClassName": "high", "tolerations": [toleration]}))).await;
    let mut left_out = made.clone();
    for key in ["priority", "preemptionPolicy"] {
        left_out["spec"].as_object_mut().unwrap().remove(key);
    }
    left_out["spec"]["tolerations"] = json!([toleration]);
    left_out["metadata"]["labels"] = json!({"a": "b"});
    let (code, answer) = cluster.json("PUT", &format!("{PODS}/p"), left_out).await;
    assert_eq!((code, message(&answer)), (200, ""));
    assert_eq!(answer["spec"], made["spec"]);
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
