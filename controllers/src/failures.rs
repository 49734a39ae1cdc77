//! Tests of all controllers alike: what the API refuses is tried again, and what is gone is no reason to write.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use keelson_client::{Body, Client, Transport};
use serde_json::{Value, json};

use crate::CONTROLLERS;
use crate::context::Context;
use crate::runtime::{Outcome, Work};

/// An API that answers every request with the same refusal.
struct Refusing {
    code: u16,
    reason: &'static str,
    asked: AtomicUsize,
}

impl Transport for Refusing {
    fn call(&self, _: http::Request<bytes::Bytes>) -> BoxFuture<'_, std::io::Result<http::Response<Body>>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "refused",
            "reason": self.reason, "code": self.code});
        let body = Full::new(bytes::Bytes::from(status.to_string())).map_err(|never| match never {}).boxed_unsync();
        let answer = http::Response::builder().status(self.code).header("content-type", "application/json").body(body);
        Box::pin(async move { answer.map_err(std::io::Error::other) })
    }
}

fn refusing(code: u16, reason: &'static str) -> Arc<Refusing> {
    Arc::new(Refusing { code, reason, asked: AtomicUsize::new(0) })
}

async fn look(name: &str, context: Arc<Context>, key: (&str, &str)) -> Outcome {
    let controller = CONTROLLERS.iter().find(|c| c.name == name).unwrap();
    let Work::Keyed { reconcile, .. } = controller.work else { panic!("{name} looks at no keys") };
    reconcile(context, (key.0.to_owned(), key.1.to_owned())).await
}

/// A context with one object in the cache of its kind.
macro_rules! with {
    ($api:expr, $($field:ident: $object:expr),+) => {{
        let mut context = Context::of_client(Client::new($api, "test"));
        $(context.cache.$field = keelson_client::Informer::of(
            vec![serde_json::from_value(whole($object)).unwrap()], &[]);)+
        Arc::new(context)
    }};
}

/// The object with what each has.
fn whole(object: Value) -> Value {
    let mut all = json!({"metadata": {"name": "o", "namespace": "d", "uid": "u", "resourceVersion": "1", "generation": 1,
        "creationTimestamp": "2026-01-01T00:00:00Z"}});
    keelson_machinery::patch::merge(&mut all, &object);
    all
}

/// Each controller with an object about which there is something to write.
fn cases(api: &Arc<Refusing>) -> Vec<(&'static str, Arc<Context>, (&'static str, &'static str))> {
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
}

#[tokio::test]
async fn what_the_api_refuses_is_tried_again() {
    for (code, reason) in
        [(409, "Conflict"), (500, "InternalError"), (503, "ServiceUnavailable"), (429, "TooManyRequests")]
    {
        let api = refusing(code, reason);
        for (name, context, key) in cases(&api) {
            let before = api.asked.load(Ordering::SeqCst);
            let outcome = look(name, context, key).await;
            assert!(api.asked.load(Ordering::SeqCst) > before, "{name} had nothing to ask for");
            assert!(outcome.is_err(), "{name} is content with {code}: {outcome:?}");
        }
    }
}

#[tokio::test]
async fn nothing_is_written_for_what_is_gone() {
    let api = refusing(500, "InternalError");
    for (name, _, key) in cases(&api) {
        let context = Arc::new(Context::of_client(Client::new(api.clone(), "test")));
        let outcome = look(name, context, key).await;
        assert!(matches!(outcome, Ok(None)), "{name}: {outcome:?}");
    }
    assert_eq!(api.asked.load(Ordering::SeqCst), 0);
}
