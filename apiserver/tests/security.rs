//! What an adversary tries: stolen and stale tokens, tricks with paths, rights that are not theirs, races, hooks that hang,
//! and bodies made to hurt. Each test says what the server answers.

mod support;

use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use keelson_pki::service_account::{Bound, Claims, ISSUER, Kubernetes};
use serde_json::{Value, json};
use support::{Cluster, admin, user};

async fn review(cluster: &Cluster, token: &str, audiences: &[&str]) -> Value {
    let review = json!({"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1",
        "spec": {"token": token, "audiences": audiences}});
    cluster.make("/apis/authentication.k8s.io/v1/tokenreviews", &review).await["status"].clone()
}

fn account(name: &str) -> Value {
    json!({"kind": "ServiceAccount", "apiVersion": "v1", "metadata": {"name": name}})
}

#[tokio::test]
async fn tokens_are_good_for_their_audience_and_time_and_die_with_their_account() {
    let cluster = Cluster::new().await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    let made = cluster.make(accounts, account("robot")).await;
    let request =
        json!({"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "spec": {"audiences": ["vault"]}});
    let token = cluster.make(&format!("{accounts}/robot/token"), request).await["status"]["token"].clone();
    let token = token.as_str().unwrap();
    let status = review(&cluster, token, &["vault", "other"]).await;
    assert_eq!(status["authenticated"], true, "{status}");
    assert_eq!(status["audiences"], json!(["vault"]));
    assert_ne!(review(&cluster, token, &[ISSUER]).await["authenticated"], true, "another audience");
    let now = jiff::Timestamp::now().as_second();
    let bound = Bound { name: "robot".into(), uid: made["metadata"]["uid"].as_str().unwrap().into() };
    let claims = |exp: i64| Claims {
        aud: vec![ISSUER.into()],
        exp,
        iat: now - 7200,
        nbf: now - 7200,
        iss: ISSUER.into(),
        jti: "j".into(),
        sub: "system:serviceaccount:default:robot".into(),
        kubernetes: Kubernetes { namespace: "default".into(), serviceaccount: bound.clone(), ..Kubernetes::default() },
    };
    let keys = &cluster.pki.service_account;
    let fresh = keys.sign(&claims(now + 3600)).unwrap();
    assert_eq!(review(&cluster, &fresh, &[]).await["authenticated"], true);
    let stale = keys.sign(&claims(now - 3600)).unwrap();
    assert_ne!(review(&cluster, &stale, &[]).await["authenticated"], true, "expired");
    let foreign = keelson_pki::ClusterPki::create().unwrap().service_account.sign(&claims(now + 3600)).unwrap();
    assert_ne!(review(&cluster, &foreign, &[]).await["authenticated"], true, "another cluster's key");
    let (head, rest) = fresh.split_once('.').unwrap();
    let none = format!("eyJhbGciOiJub25lIn0.{}.", rest.split('.').next().unwrap());
    for forged in [none, format!("{head}.{rest}x"), String::from("..")] {
        assert_ne!(review(&cluster, &forged, &[]).await["authenticated"], true, "{forged}");
    }
    let (code, _) = cluster.call(admin(), "DELETE", &format!("{accounts}/robot"), Value::Null).await;
    assert_eq!(code, 200);
    assert_ne!(review(&cluster, &fresh, &[]).await["authenticated"], true, "the account is gone");
    cluster.make(accounts, account("robot")).await;
    assert_ne!(review(&cluster, &fresh, &[]).await["authenticated"], true, "another account of the same name");
}

#[tokio::test]
async fn no_trick_with_a_path_leads_where_the_user_may_not_go() {
    let cluster = Cluster::new().await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    let rules = json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list"]}]);
    cluster.make(&format!("{rbac}/roles"), json!({"kind": "Role", "apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "r"}, "rules": rules})).await;
    cluster
        .make(
            &format!("{rbac}/rolebindings"),
            json!({"kind": "RoleBinding", "apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "b"},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
                "subjects": [{"kind": "User", "name": "eve", "apiGroup": "rbac.authorization.k8s.io"}]}),
        )
        .await;
    let secret =
        json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "s"}, "stringData": {"k": "hidden"}});
    cluster.make("/api/v1/namespaces/kube-system/secrets", secret).await;
    let eve = || user("eve", &[]);
    assert_eq!(cluster.call(eve(), "GET", "/api/v1/namespaces/default/configmaps", Value::Null).await.0, 200);
    for path in [
        "/api/v1/namespaces/kube-system/secrets/s",
        "/api/v1/namespaces/default/configmaps/..%2f..%2fkube-system%2fsecrets%2fs",
        "/api/v1/namespaces/default/configmaps/../../kube-system/secrets/s",
        "/api/v1/namespaces/default%2f..%2fkube-system/secrets/s",
        "/api/v1//namespaces/kube-system//secrets/s",
        "/api/v1/namespaces/default/configmaps/%2e%2e/%2e%2e/kube-system/secrets/s",
        "/api/v1/secrets?fieldSelector=metadata.name=s",
        "/api/v1/namespaces/kube-system/secrets?watch=1&timeoutSeconds=1",
        "/api/v1/watch/namespaces/kube-system/secrets",
        "/api/v1/namespaces/default/configmaps%00/s",
    ] {
        let (code, answer) = cluster.call(eve(), "GET", path, Value::Null).await;
        assert!(matches!(code, 400 | 403 | 404), "{path}: {code}");
        assert!(!answer.to_string().contains("aGlkZGVu"), "{path}");
    }
    // A group or name with what separates them in headers is one name, not several.
    let request = Request::builder()
        .uri("/api/v1/namespaces/kube-system/secrets")
        .header("impersonate-user", "admin")
        .header("impersonate-group", "system:masters")
        .body(Bytes::new())
        .unwrap();
    assert_eq!(cluster.server.call(eve(), request).await.status(), 403, "nobody acts as another without the right");
}

#[tokio::test]
async fn nobody_gives_out_what_they_do_not_have() {
    let cluster = Cluster::new().await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let version = "rbac.authorization.k8s.io/v1";
    let rules = json!([{"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["*"], "verbs": ["create", "update", "patch"]}]);
    cluster
        .make(
            &format!("{rbac}/clusterroles"),
            json!({"kind": "ClusterRole", "apiVersion": version, "metadata": {"name": "w"}, "rules": rules}),
        )
        .await;
    let binding = |name: &str, role: &str| {
        json!({"kind": "ClusterRoleBinding", "apiVersion": version, "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "User", "name": "mallory", "apiGroup": "rbac.authorization.k8s.io"}]})
    };
    cluster.make(&format!("{rbac}/clusterrolebindings"), binding("w", "w")).await;
    let mallory = || user("mallory", &[]);
    let all = json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]);
    for (path, object) in [
        (
            "clusterroles",
            json!({"kind": "ClusterRole", "apiVersion": version, "metadata": {"name": "all"}, "rules": all}),
        ),
        (
            "clusterroles",
            json!({"kind": "ClusterRole", "apiVersion": version, "metadata": {"name": "agg"},
                "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]}}),
        ),
        ("clusterrolebindings", binding("up", "cluster-admin")),
    ] {
        let (code, answer) = cluster.call(mallory(), "POST", &format!("{rbac}/{path}"), object).await;
        assert_eq!(code, 403, "{answer}");
    }
    let (code, _) = cluster.call(mallory(), "PATCH", &format!("{rbac}/clusterroles/w"), json!({"rules": all})).await;
    assert_eq!(code, 403, "by changing a role that one has");
}

#[tokio::test]
async fn a_kubelet_is_kept_to_its_own_node() {
    let cluster = Cluster::new().await;
    cluster.node("one", Value::Null).await;
    cluster.node("two", Value::Null).await;
    let one = || user("system:node:one", &["system:nodes"]);
    let labels = |key: &str| json!({"metadata": {"labels": {key: "x"}}});
    for (method, path, body, expected) in [
        ("PATCH", "/api/v1/nodes/one", labels("kubernetes.io/arch"), 200),
        ("PATCH", "/api/v1/nodes/one", labels("node-restriction.kubernetes.io/x"), 403),
        ("PATCH", "/api/v1/nodes/two", labels("kubernetes.io/arch"), 403),
        ("PATCH", "/api/v1/nodes/one", json!({"spec": {"taints": []}}), 403),
        ("GET", "/api/v1/namespaces/kube-system/secrets", Value::Null, 403),
        ("POST", "/api/v1/namespaces/default/serviceaccounts/default/token", json!({}), 403),
        ("DELETE", "/api/v1/nodes/two", Value::Null, 403),
    ] {
        let (code, answer) = cluster.call(one(), method, path, body).await;
        assert_eq!(code, expected, "{method} {path}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_is_never_exceeded_by_sixty_four_clients() {
    let cluster = Arc::new(Cluster::new().await);
    let quotas = "/api/v1/namespaces/default/resourcequotas";
    let hard = json!({"count/configmaps": "10"});
    cluster
        .make(
            quotas,
            json!({"kind": "ResourceQuota", "apiVersion": "v1", "metadata": {"name": "q"}, "spec": {"hard": hard}}),
        )
        .await;
    let status = json!({"status": {"hard": hard, "used": {"count/configmaps": "0"}}});
    assert_eq!(cluster.call(admin(), "PATCH", &format!("{quotas}/q/status"), status).await.0, 200);
    let clients = (0..64).map(|i| {
        let cluster = cluster.clone();
        tokio::spawn(async move {
            let map = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": format!("m{i}")}});
            cluster.call(admin(), "POST", "/api/v1/namespaces/default/configmaps", map).await.0
        })
    });
    let mut codes = Vec::new();
    for client in clients.collect::<Vec<_>>() {
        codes.push(client.await.unwrap());
    }
    assert_eq!(codes.iter().filter(|code| **code == 201).count(), 10, "{codes:?}");
    assert_eq!(codes.iter().filter(|code| **code == 403).count(), 54, "{codes:?}");
    let (_, quota) = cluster.call(admin(), "GET", &format!("{quotas}/q"), Value::Null).await;
    assert_eq!(quota["status"]["used"]["count/configmaps"], "10");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_hangs_costs_its_timeout_and_can_be_taken_away() {
    let cluster = Cluster::new().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let keeper = tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            open.push(stream);
        }
    });
    let hooks = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
    let hook = |policy: &str| {
        json!({"kind": "ValidatingWebhookConfiguration", "apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": "h"},
            "webhooks": [{"name": "h.example.com", "clientConfig": {"url": format!("https://127.0.0.1:{port}/")},
                "rules": [{"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": ["*"]}],
                "failurePolicy": policy, "timeoutSeconds": 1, "sideEffects": "None", "admissionReviewVersions": ["v1"]}]})
    };
    let map = |name: &str| json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name}});
    let maps = "/api/v1/namespaces/default/configmaps";
    cluster.make(hooks, hook("Ignore")).await;
    cluster.make(maps, map("ignored")).await;
    assert_eq!(cluster.call(admin(), "DELETE", &format!("{hooks}/h"), Value::Null).await.0, 200);
    cluster.make(hooks, hook("Fail")).await;
    let (code, answer) = cluster.call(admin(), "POST", maps, map("refused")).await;
    assert_eq!((code, answer["reason"].as_str()), (500, Some("InternalError")));
    assert!(answer["message"].as_str().unwrap().contains("failed calling webhook \"h.example.com\""), "{answer}");
    // The webhook is not asked about itself.
    assert_eq!(cluster.call(admin(), "DELETE", &format!("{hooks}/h"), Value::Null).await.0, 200);
    cluster.make(maps, map("refused")).await;
    keeper.abort();
}

#[tokio::test]
async fn bodies_made_to_hurt_are_refused() {
    let cluster = Cluster::new().await;
    let maps = "/api/v1/namespaces/default/configmaps";
    let deep = |open: &str, close: &str| {
        format!(
            "{{\"kind\":\"ConfigMap\",\"apiVersion\":\"v1\",\"data\":{}1{}}}",
            open.repeat(50_000),
            close.repeat(50_000)
        )
    };
    let bomb = "a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\n\
                c: &c [*b, *b, *b, *b, *b, *b, *b, *b, *b]\nd: &d [*c, *c, *c, *c, *c, *c, *c, *c, *c]\n\
                e: &e [*d, *d, *d, *d, *d, *d, *d, *d, *d]\nf: &f [*e, *e, *e, *e, *e, *e, *e, *e, *e]\n\
                g: &g [*f, *f, *f, *f, *f, *f, *f, *f, *f]\nh: [*g, *g, *g, *g, *g, *g, *g, *g, *g]\n";
    for (kind, body) in [
        ("application/json", deep("[", "]")),
        ("application/json", deep("{\"a\":", "}")),
        ("application/yaml", bomb.to_owned()),
        ("application/json", "{\"kind\":".repeat(1000)),
        ("application/json", "\u{0}".repeat(100)),
    ] {
        let (code, _) = cluster.raw(admin(), "POST", maps, kind, body.into_bytes()).await;
        assert!((400..500).contains(&code), "{kind}: {code}");
    }
}

#[tokio::test]
async fn expressions_cannot_run_for_long() {
    let cluster = Cluster::new().await;
    let rule = "self.all(x, x.all(y, self.all(z, z.exists(w, w.contains(y)))))";
    let schema = json!({"type": "object", "properties": {"a": {"type": "array",
        "items": {"type": "array", "items": {"type": "string"}}, "x-kubernetes-validations": [{"rule": rule}]}}});
    let definition = json!({"kind": "CustomResourceDefinition", "apiVersion": "apiextensions.k8s.io/v1", "metadata": {"name": "bombs.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "bombs", "kind": "Bomb"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}});
    let (code, answer) =
        cluster.call(admin(), "POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition).await;
    assert_eq!(code, 422);
    assert!(answer["message"].as_str().unwrap().contains("exceeds budget"), "{answer}");
    let ten = "[0,1,2,3,4,5,6,7,8,9]";
    let nested = (0..9).fold("true".to_owned(), |inner, i| format!("{ten}.all(v{i}, {inner})"));
    let registration = "/apis/admissionregistration.k8s.io/v1";
    let policy = json!({"kind": "ValidatingAdmissionPolicy", "apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": "p"},
        "spec": {"matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}]},
            "validations": [{"expression": nested}]}});
    cluster.make(&format!("{registration}/validatingadmissionpolicies"), policy).await;
    let binding = json!({"kind": "ValidatingAdmissionPolicyBinding", "apiVersion": "admissionregistration.k8s.io/v1",
        "metadata": {"name": "b"}, "spec": {"policyName": "p", "validationActions": ["Deny"]}});
    cluster.make(&format!("{registration}/validatingadmissionpolicybindings"), binding).await;
    let map = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "m"}});
    let (code, answer) = cluster.call(admin(), "POST", "/api/v1/namespaces/default/configmaps", map).await;
    assert_eq!(code, 422, "{answer}");
    assert!(answer["message"].as_str().unwrap().contains("actual cost limit exceeded"), "{answer}");
}
