//! What a new cluster holds from the start: namespaces, roles and bindings, priority classes.

use keelson_machinery::resources;
use keelson_machinery::status::Status;
use serde_json::{Value, json};

use crate::objects::{Extra, Objects, WriteError};
use crate::strategy;

const RBAC: &str = "rbac.authorization.k8s.io";
const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["create", "delete", "deletecollection", "patch", "update"];
const ALL: &[&str] = &["*"];

fn rule(groups: &[&str], resources: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": groups, "resources": resources, "verbs": verbs})
}

fn paths(urls: &[&str]) -> Value {
    json!({"nonResourceURLs": urls, "verbs": ["get"]})
}

/// Cluster roles with their rules.
fn cluster_roles() -> Vec<(&'static str, Vec<Value>)> {
    let workloads = [
        "deployments",
        "deployments/scale",
        "replicasets",
        "replicasets/scale",
        "statefulsets",
        "statefulsets/scale",
        "daemonsets",
    ];
    let core = [
        "configmaps",
        "endpoints",
        "persistentvolumeclaims",
        "pods",
        "replicationcontrollers",
        "replicationcontrollers/scale",
        "serviceaccounts",
        "services",
    ];
    let looked_at = [
        "bindings",
        "events",
        "limitranges",
        "namespaces",
        "pods/log",
        "pods/status",
        "resourcequotas",
        "namespaces/status",
    ];
    let view = vec![
        rule(&[""], &core, READ),
        rule(&[""], &looked_at, READ),
        rule(&["apps"], &workloads, READ),
        rule(&["batch"], &["cronjobs", "jobs"], READ),
        rule(&["autoscaling"], &["horizontalpodautoscalers"], READ),
        rule(&["networking.k8s.io"], &["ingresses", "networkpolicies"], READ),
        rule(&["policy"], &["poddisruptionbudgets"], READ),
        rule(&["discovery.k8s.io"], &["endpointslices"], READ),
    ];
    let mut edit = view.clone();
    edit.extend([
        rule(&[""], &["pods/attach", "pods/exec", "pods/portforward", "pods/proxy", "secrets", "services/proxy"], READ),
        rule(&[""], &["serviceaccounts"], &["impersonate"]),
        rule(&[""], &["pods", "pods/attach", "pods/exec", "pods/portforward", "pods/proxy", "secrets"], WRITE),
        rule(&[""], &["pods/eviction", "serviceaccounts/token"], &["create"]),
        rule(&[""], &core, WRITE),
        rule(&["apps"], &workloads, WRITE),
        rule(&["batch"], &["cronjobs", "jobs"], WRITE),
        rule(&["autoscaling"], &["horizontalpodautoscalers"], WRITE),
        rule(&["networking.k8s.io"], &["ingresses", "networkpolicies"], WRITE),
        rule(&["policy"], &["poddisruptionbudgets"], WRITE),
    ]);
    let mut admin = edit.clone();
    admin.push(rule(&[RBAC], &["roles", "rolebindings"], &[READ, WRITE].concat()));
    admin.push(rule(&["authorization.k8s.io"], &["localsubjectaccessreviews"], &["create"]));
    vec![
        ("cluster-admin", vec![rule(ALL, ALL, ALL), json!({"nonResourceURLs": ["*"], "verbs": ["*"]})]),
        ("admin", admin),
        ("edit", edit),
        ("view", view),
        (
            "system:discovery",
            vec![paths(&[
                "/api",
                "/api/*",
                "/apis",
                "/apis/*",
                "/healthz",
                "/livez",
                "/openapi",
                "/openapi/*",
                "/readyz",
                "/version",
                "/version/",
            ])],
        ),
        ("system:public-info-viewer", vec![paths(&["/healthz", "/livez", "/readyz", "/version", "/version/"])]),
        (
            "system:basic-user",
            vec![
                rule(&["authorization.k8s.io"], &["selfsubjectaccessreviews", "selfsubjectrulesreviews"], &["create"]),
                rule(&["authentication.k8s.io"], &["selfsubjectreviews"], &["create"]),
            ],
        ),
        (
            "system:service-account-issuer-discovery",
            vec![paths(&["/.well-known/openid-configuration", "/openid/v1/jwks"])],
        ),
        (
            "system:node-bootstrapper",
            vec![rule(&["certificates.k8s.io"], &["certificatesigningrequests"], &["create", "get", "list", "watch"])],
        ),
    ]
}

/// Cluster role bindings: name, role, groups.
const BINDINGS: &[(&str, &str, &[&str])] = &[
    ("cluster-admin", "cluster-admin", &["system:masters"]),
    ("system:discovery", "system:discovery", &["system:authenticated"]),
    ("system:public-info-viewer", "system:public-info-viewer", &["system:authenticated", "system:unauthenticated"]),
    ("system:basic-user", "system:basic-user", &["system:authenticated"]),
    ("system:service-account-issuer-discovery", "system:service-account-issuer-discovery", &["system:serviceaccounts"]),
];

/// Creates what is missing. What is there stays as it is, so that an administrator's changes last.
pub async fn run(objects: &Objects) -> Result<(), Status> {
    for name in ["default", "kube-node-lease", "kube-public", "kube-system"] {
        ensure(objects, "", "namespaces", json!({"metadata": {"name": name}})).await?;
    }
    let labelled = |name: &str| json!({"name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}, "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"}});
    for (name, rules) in cluster_roles() {
        ensure(objects, RBAC, "clusterroles", json!({"metadata": labelled(name), "rules": rules})).await?;
    }
    for (name, role, groups) in BINDINGS {
        let subjects: Vec<Value> =
            groups.iter().map(|g| json!({"kind": "Group", "apiGroup": RBAC, "name": g})).collect();
        let role_ref = json!({"kind": "ClusterRole", "apiGroup": RBAC, "name": role});
        ensure(
            objects,
            RBAC,
            "clusterrolebindings",
            json!({"metadata": labelled(name), "subjects": subjects, "roleRef": role_ref}),
        )
        .await?;
    }
    for (name, value, description) in [
        (
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
        (
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
    ] {
        let class = json!({"metadata": {"name": name}, "value": value, "description": description, "preemptionPolicy": "PreemptLowerPriority"});
        ensure(objects, "scheduling.k8s.io", "priorityclasses", class).await?;
    }
    Ok(())
}

async fn ensure(objects: &Objects, group: &str, plural: &str, mut object: Value) -> Result<(), Status> {
    let def = resources::find(group, "v1", plural).ok_or_else(Status::no_such_path)?;
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    if objects.find(def, "", &name).is_some() {
        return Ok(());
    }
    object["kind"] = def.kind.into();
    object["apiVersion"] = def.api_version().into();
    strategy::prepare_create(def, &mut object)?;
    match objects.put(def, &object, 0, None, Extra::default()).await {
        // Another member created it at the same moment.
        Ok(_) | Err(WriteError::Changed) => Ok(()),
        Err(WriteError::Status(status)) => Err(status),
    }
}
