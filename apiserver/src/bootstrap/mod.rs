//! What a cluster has from the start: namespaces, default RBAC, priority classes, the `cluster-info` of joining
//! machines and bootstrap tokens. Every object is created only if it is absent, so this can run at every start.

mod bindings;
mod cluster_info;
mod flow;
mod roles;
mod table;
mod token_secret;

use std::collections::HashMap;

use keelson_machinery::features::{self, Feature};
use keelson_machinery::resource::ResourceDef;
use keelson_machinery::resources::find;
use keelson_machinery::stored::encode;
use keelson_store::{Compare, Kv, KvError, Op, PutRequest, Txn};
use serde_json::{Value, json};

use crate::ownership;
use crate::request::ResourceRequest;

pub use cluster_info::{cluster_info, extension_authentication};
pub use token_secret::BootstrapTokenSecret;

/// Why the first objects could not be written.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The store refused.
    #[error("the store refused a first object: {0}")]
    Store(#[from] KvError),
    /// The resource table has no row for it, or it cannot be encoded.
    #[error("cannot write {0}")]
    Object(String),
}

/// Who is said to have written the first flow schemas and priority levels.
const FLOW_MANAGER: &str = "api-priority-and-fairness-config-producer-v1";
/// Namespaces of every cluster.
pub const NAMESPACES: [&str; 4] = ["default", "kube-node-lease", "kube-public", "kube-system"];

/// Every object that a cluster starts with, the namespaces first.
pub fn objects() -> Vec<Value> {
    let mut objects: Vec<Value> = NAMESPACES.iter().map(|name| namespace(name)).collect();
    objects.extend([
        priority_class(
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
        priority_class(
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
    ]);
    objects.extend(roles::CLUSTER_ROLES.iter().map(|role| role.to_value("")));
    objects.push(roles::metrics_reader());
    objects.extend(roles::ROLES.iter().map(|(namespace, role)| role.to_value(namespace)));
    objects.extend(bindings::BINDINGS.iter().map(binding));
    objects.extend(flow::objects());
    objects.extend(crate::aggregation::built_in());
    if features::is_open(Feature::GenericWorkload) {
        objects.extend(roles::POD_GROUP_ROLES.iter().map(|role| role.to_value("")));
        objects.extend(bindings::POD_GROUP_BINDINGS.iter().map(binding));
    }
    if features::is_open(Feature::StorageVersionMigrator) {
        objects.push(roles::STORAGE_MIGRATOR.to_value(""));
        objects.push(binding(&bindings::STORAGE_MIGRATOR));
    }
    objects
}

/// The ranges of addresses that Services get when nothing else is said: one, or one of each family behind a comma.
pub fn service_cidr(cidrs: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": cidrs.split(',').map(str::trim).collect::<Vec<_>>()},
        "status": {"conditions": [{
            "type": "Ready", "status": "True", "reason": "", "lastTransitionTime": now(),
            "message": "Kubernetes default Service CIDR is ready",
        }]},
    })
}

fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

pub(crate) fn namespace(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
        "spec": {"finalizers": ["kubernetes"]},
        "status": {"phase": "Active"},
    })
}

fn priority_class(name: &str, value: i64, description: &str) -> Value {
    json!({
        "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
        "metadata": {"name": name, "generation": 1},
        "value": value, "description": description, "preemptionPolicy": "PreemptLowerPriority",
    })
}

fn binding((namespace, name, role_kind, role, subjects): &bindings::Binding) -> Value {
    let subject = |text: &&str| {
        let (kind, rest) = text.split_once(':').unwrap_or(("user", text));
        match (kind, rest.split_once('/')) {
            ("account", Some((home, name))) => json!({"kind": "ServiceAccount", "name": name, "namespace": home}),
            ("group", _) => json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": rest}),
            _ => json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": rest}),
        }
    };
    let mut object = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": if namespace.is_empty() { "ClusterRoleBinding" } else { "RoleBinding" },
        "metadata": table::metadata(namespace, name),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": role_kind, "name": role},
    });
    if !subjects.is_empty() {
        object["subjects"] = subjects.iter().map(subject).collect();
    }
    object
}

/// Creates the objects that are absent; returns how many were. Members may do this at the same time.
pub async fn ensure(kv: &dyn Kv, objects: Vec<Value>) -> Result<usize, BootstrapError> {
    kv.barrier().await?;
    let mut created = 0;
    for object in objects {
        created += usize::from(create_if_absent(kv, object).await?);
    }
    Ok(created)
}

/// Creates one object unless its key is taken; returns whether it did.
pub async fn create_if_absent(kv: &dyn Kv, mut object: Value) -> Result<bool, BootstrapError> {
    let def = row(&object)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let key = def.key(&text(&object["metadata"]["namespace"]), &text(&object["metadata"]["name"]));
    if kv.view().get(key.as_bytes()).is_some() {
        return Ok(false);
    }
    object["metadata"]["uid"] = uuid::Uuid::new_v4().to_string().into();
    object["metadata"]["creationTimestamp"] = now().into();
    own(def, &mut object);
    let value = encode(def, &object).map_err(|e| BootstrapError::Object(format!("{key}: {e}")))?;
    let sealed = crate::encryption::seal(def, key.as_bytes(), value);
    let value = sealed.map_err(|status| BootstrapError::Object(status.message))?;
    let txn = Txn {
        compare: vec![Compare::mod_revision(key.clone(), 0)],
        success: vec![Op::Put(PutRequest::new(key, value))],
        failure: Vec::new(),
    };
    Ok(kv.txn(txn).await?.succeeded)
}

/// Notes who wrote a first object.
fn own(def: &'static ResourceDef, object: &mut Value) {
    let manager = match def.group {
        "flowcontrol.apiserver.k8s.io" => FLOW_MANAGER,
        _ => ownership::SERVER,
    };
    let request = ResourceRequest::about(def, object);
    ownership::track_as(&request, "", manager, None, object);
    if object["status"]["conditions"].is_array()
        && !["flowcontrol.apiserver.k8s.io", "apiregistration.k8s.io"].contains(&def.group)
    {
        let mut before = object.clone();
        before["status"] = json!({});
        ownership::track_as(&request, "status", manager, Some(&before), object);
    }
}

fn row(object: &Value) -> Result<&'static ResourceDef, BootstrapError> {
    let plurals = HashMap::from([
        ("Namespace", "namespaces"),
        ("PriorityClass", "priorityclasses"),
        ("ClusterRole", "clusterroles"),
        ("ClusterRoleBinding", "clusterrolebindings"),
        ("Role", "roles"),
        ("RoleBinding", "rolebindings"),
        ("ConfigMap", "configmaps"),
        ("Secret", "secrets"),
        ("APIService", "apiservices"),
        ("FlowSchema", "flowschemas"),
        ("ServiceCIDR", "servicecidrs"),
        ("PriorityLevelConfiguration", "prioritylevelconfigurations"),
    ]);
    let api = object["apiVersion"].as_str().unwrap_or_default();
    let (group, version) = api.split_once('/').unwrap_or(("", api));
    let kind = object["kind"].as_str().unwrap_or_default();
    plurals
        .get(kind)
        .and_then(|plural| find(group, version, plural))
        .ok_or_else(|| BootstrapError::Object(format!("{api} {kind}: there is no such resource")))
}
