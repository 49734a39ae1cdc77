//! Each controller with an object about which it has something to write.

use std::sync::Arc;

use keelson_client::Client;
use serde_json::{Value, json};

use super::Refusing;
use crate::context::Context;

/// A context with one object in the cache of its kind.
macro_rules! with {
    ($api:expr, $($field:ident: $object:expr),+) => {{
        let context = Context::of_client(Client::new($api, "test"));
        $(context.cache.$field.hold(serde_json::from_value($crate::failures::cases::whole($object)).unwrap());)+
        Arc::new(context)
    }};
}
pub(super) use with;

/// The object with what each has.
pub(super) fn whole(object: Value) -> Value {
    let mut all = json!({"metadata": {"name": "o", "namespace": "d", "uid": "u", "resourceVersion": "1", "generation": 1,
        "creationTimestamp": "2026-01-01T00:00:00Z"}});
    keelson_machinery::patch::merge(&mut all, &object);
    all
}

/// A controller, what it sees, and the key that it looks at.
pub(super) type Case = (&'static str, Arc<Context>, (&'static str, &'static str));

/// Each controller with an object about which there is something to write.
pub(super) fn cases(api: &Arc<Refusing>) -> Vec<Case> {
    let (own, cluster) = (("d", "o"), ("", "o"));
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let selector = json!({"matchLabels": {"a": "b"}});
    let sized = json!({"spec": {"replicas": 1, "selector": selector, "template": template}});
    let set = json!({"spec": {"replicas": 1, "serviceName": "s", "selector": selector, "template": template}});
    let job = json!({"spec": {"parallelism": 1, "completions": 1, "selector": selector, "template": template}});
    let done = json!({"spec": {"ttlSecondsAfterFinished": 1, "template": template}, "status": {"conditions": [
        {"type": "Complete", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    let cron = json!({"spec": {"schedule": "* * * * *", "jobTemplate": {"spec": {"template": template}}}});
    let node = json!({"metadata": {"namespace": null}});
    let cidr = json!({"metadata": {"namespace": null}, "spec": {"cidrs": ["10.0.0.0/24"]}});
    let namespace = json!({"metadata": {"namespace": null}, "status": {"phase": "Active"}});
    let service = json!({"spec": {"selector": {"a": "b"}, "ports": [{"port": 80}]}});
    let claim = json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    let volume = json!({"metadata": {"namespace": null}, "spec": {"capacity": {"storage": "1Gi"}}});
    let policy = json!({"metadata": {"namespace": null}, "spec": {"validations": [{"expression": "true"}]}});
    let scaler = json!({"spec": {"scaleTargetRef": {"kind": "Deployment", "name": "t"}, "maxReplicas": 3}});
    vec![
        ("deployment-controller", with!(api.clone(), deployments: sized.clone()), own),
        ("replicaset-controller", with!(api.clone(), replica_sets: sized), own),
        (
            "replicationcontroller-controller",
            with!(api.clone(), replication_controllers: json!({"spec": {"replicas": 1,
            "selector": {"a": "b"}, "template": template}})),
            own,
        ),
        ("statefulset-controller", with!(api.clone(), stateful_sets: set.clone()), own),
        ("daemonset-controller", with!(api.clone(), daemon_sets: set), own),
        ("job-controller", with!(api.clone(), jobs: job), own),
        ("cronjob-controller", with!(api.clone(), cron_jobs: cron), own),
        ("ttl-after-finished-controller", with!(api.clone(), jobs: done), own),
        ("horizontal-pod-autoscaler-controller", with!(api.clone(), autoscalers: scaler), own),
        (
            "disruption-controller",
            with!(api.clone(), budgets: json!({"spec": {"selector": {}, "minAvailable": 1}})),
            own,
        ),
        ("resourcequota-controller", with!(api.clone(), quotas: json!({"spec": {"hard": {"pods": "1"}}})), own),
        ("endpoints-controller", with!(api.clone(), services: service.clone()), own),
        ("endpointslice-controller", with!(api.clone(), services: service), own),
        ("service-cidr-controller", with!(api.clone(), service_cidrs: cidr), cluster),
        ("validatingadmissionpolicy-status-controller", with!(api.clone(), policies: policy), cluster),
        ("persistentvolumeclaim-binder-controller", with!(api.clone(), claims: claim.clone()), own),
        ("persistentvolumeclaim-protection-controller", with!(api.clone(), claims: claim), own),
        ("persistentvolume-binder-controller", with!(api.clone(), volumes: volume.clone()), cluster),
        ("persistentvolume-protection-controller", with!(api.clone(), volumes: volume), cluster),
        ("node-ipam-controller", with!(api.clone(), nodes: node), cluster),
        ("root-ca-certificate-publisher-controller", with!(api.clone(), namespaces: namespace.clone()), cluster),
        ("serviceaccount-controller", with!(api.clone(), namespaces: namespace), cluster),
    ]
    .into_iter()
    .chain([("podgroup-protection-controller", with_group(api), own)])
    .chain([("storage-version-migrator-controller", with_migration(api), ("", "secrets"))])
    .chain(further(api))
    .chain(housekeeping(api))
    .collect()
}

/// A context with a storage version migration.
fn with_migration(api: &Arc<Refusing>) -> Arc<Context> {
    let context = Context::of_client(Client::new(api.clone(), "test"));
    let migration =
        json!({"metadata": {"namespace": null}, "spec": {"resource": {"group": "", "resource": "secrets"}}});
    if let Some(migrations) = &context.storage_migrations {
        migrations.hold(serde_json::from_value(whole(migration)).unwrap());
    }
    Arc::new(context)
}

/// A context with a group of pods.
fn with_group(api: &Arc<Refusing>) -> Arc<Context> {
    let mut context = Context::of_client(Client::new(api.clone(), "test"));
    let group = whole(json!({"spec": {"schedulingPolicy": {"basic": {}}}}));
    context.pod_groups = Some(keelson_client::Informer::of(vec![serde_json::from_value(group).unwrap()], &[]));
    Arc::new(context)
}

/// An object of the whole cluster.
fn global(rest: Value) -> Value {
    let mut whole = json!({"metadata": {"namespace": null}});
    keelson_machinery::patch::merge(&mut whole, &rest);
    whole
}

/// Those that have to do with nodes, volumes and devices.
fn further(api: &Arc<Refusing>) -> Vec<Case> {
    let (own, cluster) = (("d", "o"), ("", "o"));
    let running = json!({"spec": {"nodeName": "o", "containers": [{"name": "c"}]}});
    let tainted = global(json!({"spec": {"taints": [{"key": "k", "effect": "NoExecute"}]}}));
    let disrupted = json!({"spec": {"containers": []}, "status": {"conditions": [
        {"type": "DisruptionTarget", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    let endpoints = json!({"subsets": [{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}]}]});
    let bare = json!({"spec": {"ports": [{"port": 80}]}});
    let names =
        json!({"metadata": {"name": "kube-dns", "namespace": "kube-system"}, "spec": {"ports": [{"port": 53}]}});
    let template = json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    let scratch =
        json!({"spec": {"containers": [], "volumes": [{"name": "v", "ephemeral": {"volumeClaimTemplate": template}}]}});
    let device =
        json!({"spec": {"containers": [], "resourceClaims": [{"name": "c", "resourceClaimTemplateName": "t"}]}});
    let reserved = json!({"spec": {}, "status": {"reservedFor": [{"resource": "pods", "name": "gone", "uid": "x"}]}});
    // Its name is that of the volume "h" of the driver "a" on the node "o".
    let unclaimed = global(json!({
        "metadata": {"name": "csi-1b7e4d30d9a4e7ed2fe245235ee428af9a1b166b7ac562bd1007c037576a5425"},
        "spec": {"attacher": "a", "nodeName": "o",
            "source": {"inlineVolumeSpec": {"csi": {"driver": "a", "volumeHandle": "h"}}}},
        "status": {"attached": true}}));
    let claims = json!({"spec": {"nodeName": "n", "containers": [], "resourceClaims": [{"name": "c", "resourceClaimName": "o"}]}});
    let allocated = json!({"spec": {}, "status": {"reservedFor": [{"resource": "pods", "name": "o", "uid": "u"}],
        "allocation": {"devices": {"results": [{"driver": "d", "pool": "p", "device": "v", "request": "r"}]}}}});
    let slice = global(json!({"spec": {"driver": "d", "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1},
        "devices": [{"name": "v", "taints": [{"key": "k", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"}]}]}}));
    vec![
        (
            "device-taint-eviction-controller",
            with!(api.clone(), pods: claims, resource_claims: allocated, resource_slices: slice),
            own,
        ),
        ("stale-disruption-controller", with!(api.clone(), pods: disrupted), own),
        ("endpointslice-mirroring-controller", with!(api.clone(), endpoints: endpoints, services: bare), own),
        (
            "name-service-controller",
            with!(api.clone(), services: names, nodes: global(json!({"metadata": {"annotations": {
                "keelson.dev/name-server": "10.0.0.1:53"}}}))),
            ("kube-system", "kube-dns"),
        ),
        (
            "volumeattributesclass-protection-controller",
            with!(api.clone(), attributes_classes: global(json!({"driverName": "d"}))),
            cluster,
        ),
        ("persistentvolume-attach-detach-controller", with!(api.clone(), attachments: unclaimed), cluster),
        ("ephemeral-volume-controller", with!(api.clone(), pods: scratch), own),
        ("resourceclaim-controller", with!(api.clone(), pods: device), own),
        ("resourceclaim-release-controller", with!(api.clone(), resource_claims: reserved), own),
        ("ttl-controller", with!(api.clone(), nodes: global(json!({}))), cluster),
        ("taint-eviction-controller", with!(api.clone(), pods: running, nodes: tainted), own),
    ]
}

/// Those that keep house.
fn housekeeping(api: &Arc<Refusing>) -> Vec<Case> {
    let (own, cluster) = (("d", "o"), ("", "o"));
    let going = global(json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"finalizers": ["kubernetes"]}}));
    let orphan = json!({"type": "kubernetes.io/service-account-token", "metadata": {
        "annotations": {"kubernetes.io/service-account.name": "gone"}}});
    let aggregate = global(json!({"aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]},
        "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]}));
    let encoded = |text: &str| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text);
    let expired = json!({"type": "bootstrap.kubernetes.io/token", "metadata": {"namespace": "kube-system"},
        "data": {"expiration": encoded("2026-01-01T00:00:00Z")}});
    let info = json!({"metadata": {"name": "cluster-info", "namespace": "kube-public"},
        "data": {"kubeconfig": "k", "jws-kubeconfig-abcdef": "old"}});
    let request = |conditions: Value| {
        global(json!({"metadata": {"creationTimestamp": "2020-01-01T00:00:00Z"}, "spec": {"request": "eA==",
            "signerName": "kubernetes.io/kube-apiserver-client", "usages": ["server auth"]},
            "status": {"conditions": conditions}}))
    };
    let approved = request(json!([{"type": "Approved", "status": "True"}]));
    vec![
        (
            "legacy-serviceaccount-token-cleaner-controller",
            with!(api.clone(), account_secrets: orphan.clone()),
            ("", ""),
        ),
        ("namespace-controller", with!(api.clone(), namespaces: going), cluster),
        ("serviceaccount-token-controller", with!(api.clone(), account_secrets: orphan), own),
        (
            "serviceaccount-token-reference-controller",
            with!(api.clone(), service_accounts: json!({"secrets": [{"name": "s"}]})),
            ("d", "o/s"),
        ),
        ("clusterrole-aggregation-controller", with!(api.clone(), cluster_roles: aggregate), cluster),
        ("bootstrap-signer-controller", with!(api.clone(), cluster_info: info), ("kube-public", "cluster-info")),
        ("token-cleaner-controller", with!(api.clone(), tokens: expired), ("kube-system", "o")),
        (
            "certificatesigningrequest-approving-and-signing-controller",
            with!(api.clone(), requests: approved.clone()),
            cluster,
        ),
        ("certificatesigningrequest-cleaner-controller", with!(api.clone(), requests: request(json!([]))), cluster),
    ]
}
