//! RBAC over the default objects: who may, and above all who may not.

use std::sync::Arc;

use keelson_store::{Kv, LocalKv};
use serde_json::json;

use super::*;
use crate::bootstrap;

async fn authorization() -> (tempfile::TempDir, Authorization) {
    let dir = tempfile::tempdir().unwrap();
    let kv: Arc<dyn Kv> = Arc::new(LocalKv::open(dir.path()).unwrap());
    assert!(bootstrap::ensure(kv.as_ref(), bootstrap::objects()).await.unwrap() > 100);
    assert_eq!(bootstrap::ensure(kv.as_ref(), bootstrap::objects()).await.unwrap(), 0, "done once");
    (dir, Authorization::new(Objects { kv }))
}

fn user(name: &str, groups: &[&str]) -> UserInfo {
    UserInfo { name: name.into(), groups: groups.iter().map(|g| (*g).into()).collect(), ..UserInfo::default() }
}

fn ask(verb: &str, group: &str, resource: &str, namespace: &str, name: &str) -> Attributes {
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    Attributes {
        verb: verb.into(),
        group: group.into(),
        version: "v1".into(),
        resource: resource.into(),
        subresource: subresource.into(),
        namespace: namespace.into(),
        name: name.into(),
        ..Attributes::default()
    }
}

#[tokio::test]
async fn a_matrix_of_users() {
    let (_dir, authorization) = authorization().await;
    let stranger = user("stranger", &["system:authenticated"]);
    for verb in ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection", "impersonate"] {
        for resource in ["pods", "secrets", "nodes", "pods/exec"] {
            let decision = authorization.authorize(&stranger, &ask(verb, "", resource, "default", "x"));
            assert_eq!(decision, Decision::NoOpinion(String::new()), "{verb} {resource}");
        }
    }
    let node = user("system:node:a", &["system:nodes"]);
    let rows = [
        (user("root", &["system:masters"]), ask("delete", "", "nodes", "", "x"), true),
        (user("system:kube-scheduler", &[]), ask("create", "", "pods/binding", "default", "x"), true),
        (user("system:kube-scheduler", &[]), ask("delete", "", "secrets", "default", "x"), false),
        (
            user("system:bootstrap:abcdef", &["system:bootstrappers"]),
            ask("create", "certificates.k8s.io", "certificatesigningrequests", "", ""),
            true,
        ),
        (
            user("system:anonymous", &["system:unauthenticated"]),
            ask("get", "", "configmaps", "kube-public", "cluster-info"),
            true,
        ),
        (
            user("system:anonymous", &["system:unauthenticated"]),
            ask("list", "", "configmaps", "kube-public", ""),
            false,
        ),
        // Before its certificates are replaced.
        (node.clone(), ask("get", "", "configmaps", "kube-public", "cluster-info"), true),
        (node.clone(), ask("get", "", "configmaps", "kube-public", "other"), false),
        (node.clone(), ask("update", "", "nodes/status", "", "a"), true),
        // Whose it is, admission sees.
        (node.clone(), ask("update", "", "nodes/status", "", "b"), true),
        (node.clone(), ask("get", "", "nodes", "", "b"), false),
        (node.clone(), ask("list", "", "pods", "", ""), false),
        (
            node.clone(),
            Attributes { fields: vec![("spec.nodeName".into(), "a".into())], ..ask("list", "", "pods", "", "") },
            true,
        ),
        (
            node.clone(),
            Attributes { fields: vec![("spec.nodeName".into(), "b".into())], ..ask("list", "", "pods", "", "") },
            false,
        ),
        (node.clone(), ask("update", "coordination.k8s.io", "leases", "kube-node-lease", "a"), true),
        (node.clone(), ask("update", "coordination.k8s.io", "leases", "kube-node-lease", "b"), false),
        (node.clone(), ask("get", "", "secrets", "default", "s"), false),
        (user("system:node:a", &[]), ask("update", "", "nodes/status", "", "a"), false),
    ];
    for (who, what, may) in rows {
        let decision = authorization.authorize(&who, &what);
        assert_eq!(decision == Decision::Allow, may, "{who:?} {what:?} {decision:?}");
    }
}

#[tokio::test]
async fn a_new_binding_counts_at_once_and_aggregation_works() {
    let (_dir, authorization) = authorization().await;
    let jane = user("jane", &[]);
    let what = ask("create", "apps", "deployments", "default", "");
    assert_ne!(authorization.authorize(&jane, &what), Decision::Allow);
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": "b", "namespace": "default"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "admin"},
        "subjects": [{"kind": "User", "name": "jane"}]});
    bootstrap::ensure(authorization.objects.kv.as_ref(), vec![binding]).await.unwrap();
    assert_eq!(authorization.authorize(&jane, &what), Decision::Allow);
    assert_ne!(authorization.authorize(&jane, &ask("create", "apps", "deployments", "other", "")), Decision::Allow);
    let def = keelson_machinery::resources::find("rbac.authorization.k8s.io", "v1", "roles").unwrap();
    let role = |resource: &str| {
        json!({"metadata": {"name": "r"},
        "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": [resource]}]})
    };
    assert!(authorization.check_escalation(&jane, def, "default", &role("pods"), None).is_ok());
    assert!(authorization.check_escalation(&jane, def, "default", &role("nodes"), None).is_err());
    assert!(authorization.check_escalation(&jane, def, "other", &role("pods"), None).is_err());
}

#[test]
fn refusals_read_as_upstream() {
    let message = refusal(&user("jane", &[]), &ask("list", "", "pods", "default", ""), "").message;
    assert_eq!(
        message,
        r#"pods is forbidden: User "jane" cannot list resource "pods" in API group "" in the namespace "default""#
    );
}
