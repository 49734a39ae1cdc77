//! What the agent of a node may read, write and ask tokens for, over TLS with its certificate: upstream's words for what it may not.

mod support;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use serde_json::{Value, json};
use support::Cluster;

const HERE: &str = "/api/v1/namespaces/default";

/// A pod on a node that uses objects whose names begin with `own`.
fn pod(name: &str, node: &str, own: &str) -> Value {
    json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": name}, "spec": {
    "nodeName": node, "serviceAccountName": format!("{own}-account"), "imagePullSecrets": [{"name": format!("{own}-pull")}],
    "containers": [{"name": "c", "image": "i:1", "envFrom": [{"secretRef": {"name": format!("{own}-env")}}],
        "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": format!("{own}-key"), "key": "k"}}}]}],
    "volumes": [
        {"name": "s", "secret": {"secretName": format!("{own}-volume")}},
        {"name": "p", "projected": {"sources": [{"configMap": {"name": format!("{own}-projected")}},
            {"serviceAccountToken": {"path": "t", "audience": "vault"}}]}},
        {"name": "c", "persistentVolumeClaim": {"claimName": format!("{own}-claim")}},
        {"name": "driver", "csi": {"driver": "csi.example.com"}},
    ]}})
}

/// A pod's objects are there.
async fn furnish(cluster: &Cluster, own: &str) {
    let object = |kind: &str, name: &str| json!({"kind": kind, "apiVersion": "v1", "metadata": {"name": format!("{own}-{name}")}});
    cluster.make(&format!("{HERE}/serviceaccounts"), object("ServiceAccount", "account")).await;
    for name in ["pull", "env", "volume"] {
        cluster.make(&format!("{HERE}/secrets"), object("Secret", name)).await;
    }
    for name in ["key", "projected"] {
        cluster.make(&format!("{HERE}/configmaps"), object("ConfigMap", name)).await;
    }
    let volume = json!({"kind": "PersistentVolume", "apiVersion": "v1", "metadata": {"name": format!("{own}-volume")}, "spec": {
        "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "claimRef": {"namespace": "default", "name": format!("{own}-claim")},
        "csi": {"driver": "csi.example.com", "volumeHandle": "h", "nodeStageSecretRef": {"namespace": "default", "name": format!("{own}-stage")}}}});
    cluster.make("/api/v1/persistentvolumes", volume).await;
    let mut claim = object("PersistentVolumeClaim", "claim");
    claim["spec"] = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "volumeName": format!("{own}-volume")});
    cluster.make(&format!("{HERE}/persistentvolumeclaims"), claim).await;
    cluster.make(&format!("{HERE}/secrets"), object("Secret", "stage")).await;
}

type Connection = SendRequest<Full<Bytes>>;

async fn ask(connection: &mut Connection, method: &str, path: &str, body: &Value) -> (u16, Value) {
    connection.ready().await.unwrap();
    let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let bytes = if body.is_null() { Bytes::new() } else { body.to_string().into() };
    let request =
        Request::builder().method(method).uri(path).header("host", "localhost").header(header::CONTENT_TYPE, kind);
    let response = connection.send_request(request.body(Full::new(bytes)).unwrap()).await.unwrap();
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (code, serde_json::from_slice(&bytes).unwrap_or_default())
}

/// A cluster with two nodes, a pod on each, and the connection of the first one's agent.
async fn with_agent() -> (Cluster, Connection) {
    let cluster = Cluster::new().await;
    for (node, own) in [("one", "mine"), ("two", "theirs")] {
        cluster.node(node, Value::Null).await;
        furnish(&cluster, own).await;
        cluster.make(&format!("{HERE}/pods"), pod(&format!("{own}-pod"), node, own)).await;
    }
    let driver = json!({"kind": "CSIDriver", "apiVersion": "storage.k8s.io/v1", "metadata": {"name": "csi.example.com"},
        "spec": {"tokenRequests": [{"audience": "storage"}]}});
    cluster.make("/apis/storage.k8s.io/v1/csidrivers", driver).await;
    let certificate = cluster.pki.cluster.issue_client("system:node:one", &["system:nodes"]).unwrap();
    let connection = cluster.listen().await.client(Some(&certificate)).await;
    (cluster, connection)
}

const UNRELATED: &str = "no relationship found between node 'one' and this object";

#[tokio::test]
async fn an_agent_reads_what_its_pods_use() {
    let (_cluster, mut agent) = with_agent().await;
    let one = "can only get individual resources of this type";
    for (path, refusal) in [
        ("secrets/mine-pull", None),
        ("secrets/mine-env", None),
        ("secrets/mine-volume", None),
        ("secrets/mine-stage", None),
        ("configmaps/mine-key", None),
        ("configmaps/mine-projected", None),
        ("persistentvolumeclaims/mine-claim", None),
        ("serviceaccounts/mine-account", None),
        ("pods/mine-pod", None),
        ("pods?fieldSelector=spec.nodeName%3Done", None),
        ("secrets?fieldSelector=metadata.name%3Dmine-env", None),
        ("secrets/theirs-pull", Some(UNRELATED)),
        ("secrets/theirs-env", Some(UNRELATED)),
        ("secrets/theirs-volume", Some(UNRELATED)),
        ("secrets/theirs-stage", Some(UNRELATED)),
        ("configmaps/theirs-key", Some(UNRELATED)),
        ("configmaps/theirs-projected", Some(UNRELATED)),
        ("persistentvolumeclaims/theirs-claim", Some(UNRELATED)),
        ("pods/theirs-pod", Some(UNRELATED)),
        ("secrets/absent", Some(UNRELATED)),
        ("secrets?fieldSelector=metadata.name%3Dtheirs-env", Some(UNRELATED)),
        ("secrets", Some("No Object name found")),
        ("configmaps", Some("No Object name found")),
        ("persistentvolumeclaims", Some(one)),
        ("pods", Some("can only list/watch pods with spec.nodeName field selector")),
        ("pods?fieldSelector=spec.nodeName%3Dtwo", Some("can only list/watch pods with spec.nodeName field selector")),
    ] {
        let (code, answer) = ask(&mut agent, "GET", &format!("{HERE}/{path}"), &Value::Null).await;
        let Some(refusal) = refusal else {
            assert_eq!(code, 200, "{path}: {answer}");
            continue;
        };
        assert_eq!(code, 403, "{path}: {answer}");
        let told = answer["message"].as_str().unwrap();
        assert!(told.starts_with(&path[..path.find(['?', '/']).unwrap_or(path.len())]), "{path}: {told}");
        assert!(told.contains("User \"system:node:one\" cannot ") && told.ends_with(refusal), "{path}: {told}");
    }
    for (path, code) in [
        ("/api/v1/persistentvolumes/mine-volume", 200),
        ("/api/v1/persistentvolumes/theirs-volume", 403),
        ("/api/v1/persistentvolumes", 403),
        ("/api/v1/nodes/one", 200),
        ("/api/v1/nodes/two", 403),
        ("/api/v1/secrets", 403),
        ("/apis/rbac.authorization.k8s.io/v1/clusterroles", 403),
        ("/api/v1/namespaces/kube-node-lease/leases/two", 403),
    ] {
        let (found, answer) = ask(&mut agent, "GET", path, &Value::Null).await;
        assert_eq!(found, code, "{path}: {answer}");
    }
}

#[tokio::test]
async fn what_a_pod_used_is_closed_when_it_is_gone() {
    let (cluster, mut agent) = with_agent().await;
    let path = format!("{HERE}/secrets/mine-env");
    assert_eq!(ask(&mut agent, "GET", &path, &Value::Null).await.0, 200);
    let (code, answer) =
        cluster.json("DELETE", &format!("{HERE}/pods/mine-pod?gracePeriodSeconds=0"), Value::Null).await;
    assert_eq!(code, 200, "{answer}");
    let (code, answer) = ask(&mut agent, "GET", &path, &Value::Null).await;
    assert_eq!(code, 403, "{answer}");
}

/// A request for a token for audiences, bound to a pod.
fn wanted(audiences: &[&str], pod: &Value) -> Value {
    let (name, uid) = (&pod["metadata"]["name"], &pod["metadata"]["uid"]);
    json!({"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "spec": {"audiences": audiences,
        "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": name, "uid": uid}}})
}

#[tokio::test]
async fn an_agent_asks_tokens_for_whom_its_pods_name() {
    let (cluster, mut agent) = with_agent().await;
    let (_, mine) = cluster.json("GET", &format!("{HERE}/pods/mine-pod"), Value::Null).await;
    let (_, theirs) = cluster.json("GET", &format!("{HERE}/pods/theirs-pod"), Value::Null).await;
    let mut unbound = wanted(&["vault"], &mine);
    unbound["spec"]["boundObjectRef"] = Value::Null;
    let mut nameless = wanted(&["vault"], &mine);
    nameless["spec"]["boundObjectRef"]["uid"] = "".into();
    let stranger = "audience \"elsewhere\" not found in pod spec volume, system:node:one is not authorized to request tokens for this audience";
    for (account, request, refusal) in [
        ("mine-account", wanted(&["vault"], &mine), None),
        ("mine-account", wanted(&["storage"], &mine), None),
        // The account's own volume, which admission adds, names nobody.
        ("mine-account", wanted(&[], &mine), None),
        ("mine-account", wanted(&["elsewhere"], &mine), Some(stranger)),
        ("mine-account", wanted(&["vault", "storage"], &mine), Some("node may only request 0 or 1 audiences")),
        ("mine-account", unbound, Some("node requested token not bound to a pod")),
        ("mine-account", nameless, Some("node requested token with a pod binding without a uid")),
        (
            "mine-account",
            wanted(&["vault"], &theirs),
            Some("node requested token bound to a pod scheduled on a different node"),
        ),
        ("theirs-account", wanted(&["vault"], &theirs), Some(UNRELATED)),
    ] {
        let (code, answer) =
            ask(&mut agent, "POST", &format!("{HERE}/serviceaccounts/{account}/token"), &request).await;
        match refusal {
            None => assert_eq!(code, 201, "{request}: {answer}"),
            Some(refusal) => {
                assert_eq!(code, 403, "{request}: {answer}");
                let told = answer["message"].as_str().unwrap();
                assert!(told.starts_with("serviceaccounts ") && told.ends_with(refusal), "{request}: {told}");
            }
        }
    }
    // A right of its own opens an audience that no pod names.
    let roles = "/apis/rbac.authorization.k8s.io/v1";
    let rules = json!([{"apiGroups": [""], "resources": ["elsewhere"], "verbs": ["request-serviceaccounts-token-audience"],
        "resourceNames": ["mine-account"]}]);
    let role = json!({"kind": "ClusterRole", "apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "audience"}, "rules": rules});
    cluster.make(&format!("{roles}/clusterroles"), role).await;
    let binding = json!({"kind": "ClusterRoleBinding", "apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "audience"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "audience"},
        "subjects": [{"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": "system:nodes"}]});
    cluster.make(&format!("{roles}/clusterrolebindings"), binding).await;
    let path = format!("{HERE}/serviceaccounts/mine-account/token");
    let (code, answer) = ask(&mut agent, "POST", &path, &wanted(&["elsewhere"], &mine)).await;
    assert_eq!(code, 201, "{answer}");
    let (code, _) = cluster.json("DELETE", "/apis/storage.k8s.io/v1/csidrivers/csi.example.com", Value::Null).await;
    assert_eq!(code, 200);
    let (code, answer) = ask(&mut agent, "POST", &path, &wanted(&["storage"], &mine)).await;
    let told = "serviceaccounts \"mine-account\" is forbidden: error validating audience \"storage\": csidriver.storage.k8s.io \"csi.example.com\" not found";
    assert_eq!((code, answer["message"].as_str().unwrap()), (403, told));
}

#[tokio::test]
async fn an_agent_asks_certificates_in_its_own_name() {
    let (_cluster, mut agent) = with_agent().await;
    let path = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    for (index, (signer, of, code)) in [
        ("kubernetes.io/kube-apiserver-client-kubelet", "one", 201),
        ("kubernetes.io/kube-apiserver-client-kubelet", "two", 403),
        ("kubernetes.io/kubelet-serving", "two", 403),
        ("example.com/other", "two", 201),
    ]
    .into_iter()
    .enumerate()
    {
        use base64::Engine;
        let (request, _) =
            keelson_pki::certificate_request(&format!("system:node:{of}"), &["system:nodes"], &[]).unwrap();
        let request = base64::engine::general_purpose::STANDARD.encode(request);
        let object = json!({"kind": "CertificateSigningRequest", "apiVersion": "certificates.k8s.io/v1", "metadata": {"name": format!("r{index}")},
            "spec": {"request": request, "signerName": signer, "usages": ["digital signature", "client auth"]}});
        let (found, answer) = ask(&mut agent, "POST", path, &object).await;
        assert_eq!(found, code, "{signer} {of}: {answer}");
        if code == 403 {
            let told = answer["message"].as_str().unwrap();
            assert!(told.ends_with("is forbidden: can only create a node CSR with CN=system:node:one"), "{told}");
        }
    }
}

#[tokio::test]
async fn an_agent_taints_and_labels_its_node_within_limits() {
    let (_cluster, mut agent) = with_agent().await;
    let labels = |key: &str| json!({"metadata": {"labels": {key: "x"}}});
    let one = "/api/v1/nodes/one";
    for (method, path, body, refusal) in [
        ("PATCH", one, labels("example.com/mine"), None),
        ("PATCH", one, labels("node.kubernetes.io/mine"), None),
        ("PATCH", one, labels("kubelet.kubernetes.io/mine"), None),
        (
            "PATCH",
            one,
            labels("node-restriction.kubernetes.io/x"),
            Some("is not allowed to modify labels: node-restriction.kubernetes.io/x"),
        ),
        (
            "PATCH",
            one,
            labels("node-role.kubernetes.io/control-plane"),
            Some("is not allowed to modify labels: node-role.kubernetes.io/control-plane"),
        ),
        (
            "PATCH",
            one,
            json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}}),
            Some("node \"one\" is not allowed to modify taints"),
        ),
        (
            "PATCH",
            one,
            json!({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"}]}}),
            Some("node \"one\" is not allowed to modify ownerReferences"),
        ),
        ("PATCH", one, json!({"metadata": {"ownerReferences": []}}), None),
        ("PATCH", "/api/v1/nodes/two", labels("a"), Some("node \"one\" is not allowed to modify node \"two\"")),
        (
            "PATCH",
            "/api/v1/nodes/two/status",
            json!({"status": {}}),
            Some("node \"one\" is not allowed to modify node \"two\""),
        ),
        ("DELETE", one, Value::Null, Some("")),
    ] {
        let (code, answer) = ask(&mut agent, method, path, &body).await;
        assert_eq!(code, if refusal.is_some() { 403 } else { 200 }, "{method} {path} {body}: {answer}");
        let told = answer["message"].as_str().unwrap_or_default();
        assert!(told.ends_with(refusal.unwrap_or_default()), "{method} {path} {body}: {told}");
    }
}
