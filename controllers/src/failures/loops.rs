//! The same for the controllers that look at everything again and again: they go on, whatever the API says.

use std::sync::Arc;
use std::time::Duration;

use keelson_client::Client;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::cases::with;
use super::{Refusing, is_bound};
use crate::CONTROLLERS;
use crate::context::Context;
use crate::runtime::Work;

/// How long a loop runs, by a clock that only goes while all wait: several times as long as any pause.
const SPAN: Duration = Duration::from_secs(300);

/// An API with one kind, of which there is what `objects` are, that refuses all but questions for them.
fn api(code: u16, reason: &'static str, objects: &[Value]) -> Arc<Refusing> {
    let kind = json!({"name": "configmaps", "singularName": "configmap", "kind": "ConfigMap", "namespaced": true,
        "verbs": ["delete", "get", "list", "patch", "watch"]});
    let list = json!({"metadata": {"resourceVersion": "5"}, "items": objects});
    let answers = vec![
        ("/apis", Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": []}))),
        ("/api/v1", Some(json!({"kind": "APIResourceList", "groupVersion": "v1", "resources": [kind]}))),
        ("/api/v1/configmaps", Some(list)),
        ("/api/v1/namespaces/d/configmaps/o", objects.first().cloned()),
        ("/api/v1/namespaces/d/configmaps/gone", None),
    ];
    Arc::new(Refusing { code, reason, answers, asked: Mutex::default() })
}

/// What has lost its owner.
fn dangling() -> Value {
    json!({"metadata": {"name": "o", "namespace": "d", "uid": "u", "resourceVersion": "1", "ownerReferences": [
        {"apiVersion": "v1", "kind": "ConfigMap", "name": "gone", "uid": "x"}]}})
}

/// Each loop with something to write.
pub(super) fn cases(api: &Arc<Refusing>) -> Vec<(&'static str, Arc<Context>)> {
    let silent = json!({"metadata": {"namespace": null}, "status": {"conditions": [{"type": "Ready", "status": "True",
        "reason": "KubeletReady", "lastHeartbeatTime": "2026-01-01T00:00:00Z"}]}});
    let never_started = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"containers": []}});
    vec![
        ("node-lifecycle-controller", with!(api.clone(), nodes: silent)),
        ("pod-garbage-collector-controller", with!(api.clone(), pods: never_started)),
        ("garbage-collector-controller", Arc::new(Context::of_client(Client::new(api.clone(), "test")))),
        ("local-path-provisioner", Arc::new(Context::of_client(Client::new(api.clone(), "test")))),
    ]
}

/// Runs a loop for a while; tells whether it ended.
async fn ends(name: &str, context: Arc<Context>) -> bool {
    let controller = CONTROLLERS.iter().find(|c| c.name == name).unwrap();
    let Work::Loop(body) = controller.work else { panic!("{name} is no loop") };
    let ended = tokio::time::timeout(SPAN, body(context.clone())).await.is_ok();
    context.stop.cancel();
    ended
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_is_tried_again_and_again() {
    for (code, reason) in [(409, "Conflict"), (500, "InternalError"), (429, "TooManyRequests")] {
        let api = api(code, reason, &[dangling()]);
        for (name, context) in cases(&api) {
            api.take();
            assert!(!ends(name, context).await, "{name} ended after {code}");
            let writes: Vec<_> = api.take().into_iter().filter(|asked| !asked.method.is_safe()).collect();
            assert!(writes.len() > 1, "{name} is content with {code}: {writes:?}");
            assert!(writes.iter().all(is_bound), "{name}: {writes:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_gone_does_no_harm() {
    let api = api(404, "NotFound", &[dangling()]);
    for (name, context) in cases(&api) {
        api.take();
        assert!(!ends(name, context).await, "{name} ended");
        assert!(api.take().iter().all(is_bound), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn for_nothing_nothing_is_written() {
    let api = api(500, "InternalError", &[]);
    for (name, _) in cases(&api) {
        api.take();
        // A class is made only where there is none.
        let class = json!({"metadata": {"namespace": null}, "provisioner": "p"});
        assert!(!ends(name, with!(api.clone(), storage_classes: class)).await, "{name} ended");
        let writes: Vec<_> = api.take().into_iter().filter(|asked| !asked.method.is_safe()).collect();
        assert!(writes.is_empty(), "{name}: {writes:?}");
    }
}
