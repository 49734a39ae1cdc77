//! Admission plugins that an operator turns on, in one real server with the real kubectl: what a service says of images, and
//! presets and policies of pods as earlier releases had them. And what is recorded meanwhile: stages, files that are full, posts.

#[path = "../../apiserver/tests/support/hook.rs"]
#[allow(dead_code)]
mod hook;
mod support;

use std::path::Path;
use std::time::Instant;

use hook::{Answer, Asked, Hook, told};
use http::Request;
use hyper::body::Incoming;
use serde_json::{Value, json};
use support::{PATIENCE, Server, free_port, keelson, kubectl_is_there};

fn write(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_string_lossy().into_owned()
}

/// Images of one registry are good; audit events are taken.
fn answer(_: &mut Request<Incoming>, asked: &Asked, _: &str) -> Answer {
    let images = asked.body["spec"]["containers"].as_array().into_iter().flatten();
    let bad = images.filter_map(|c| c["image"].as_str()).find(|image| !image.starts_with("good.example/"));
    let status = match bad {
        Some(image) => json!({"allowed": false, "reason": format!("{image} is not ours")}),
        None => json!({"allowed": true}),
    };
    told(&json!({"kind": "ImageReview", "apiVersion": "imagepolicy.k8s.io/v1alpha1", "status": status}))
}

const OBJECTS: &str = r#"
apiVersion: settings.k8s.io/v1alpha1
kind: PodPreset
metadata: {name: database}
spec:
  selector: {matchLabels: {role: frontend}}
  env: [{name: DB_PORT, value: "6379"}]
  volumeMounts: [{mountPath: /cache, name: cache}]
  volumes: [{name: cache, emptyDir: {}}]
---
apiVersion: policy/v1beta1
kind: PodSecurityPolicy
metadata: {name: restricted}
spec:
  privileged: false
  allowPrivilegeEscalation: false
  seLinux: {rule: RunAsAny}
  supplementalGroups: {rule: RunAsAny}
  runAsUser: {rule: RunAsAny}
  fsGroup: {rule: RunAsAny}
  volumes: ["*"]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: restricted}
rules:
- {apiGroups: [policy], resources: [podsecuritypolicies], resourceNames: [restricted], verbs: [use]}
- {apiGroups: [""], resources: [pods], verbs: [create, get]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: restricted}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: restricted}
subjects: [{kind: User, apiGroup: rbac.authorization.k8s.io, name: jane}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: pods}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: edit}
subjects: [{kind: User, apiGroup: rbac.authorization.k8s.io, name: joe}]
"#;

fn pod(name: &str, image: &str, privileged: bool) -> String {
    let security = if privileged { "securityContext: {privileged: true}, " } else { "" };
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{role: frontend}}}}\nspec:\n  \
         containers: [{{name: c, {security}image: \"{image}\"}}]\n"
    )
}

struct World {
    server: Server,
    hook: Hook,
    dir: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

const RECORDED: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
rules:
- {level: RequestResponse, resources: [{group: "", resources: [configmaps]}]}
- {level: None}
"#;

impl World {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let hook = runtime.block_on(Hook::start(&["127.0.0.1"], "", answer));
        let kubeconfig = |name: &str| {
            let path = dir.path().join(name);
            hook.kubeconfig(&path, &format!("/{name}"));
            path.to_string_lossy().into_owned()
        };
        let images = json!({"imagePolicy": {"kubeConfigFile": kubeconfig("images"), "allowTTL": 50, "denyTTL": 50,
            "retryBackoff": 500, "defaultAllow": false}});
        let config = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AdmissionConfiguration",
            "plugins": [{"name": "ImagePolicyWebhook", "configuration": images}]});
        let file = |name: &str, text: &str| write(dir.path(), name, text);
        let mut flags = vec!["--no-controllers".to_owned(), "--no-scheduler".into()];
        let log = dir.path().join("audit").join("audit.log");
        for (flag, value) in [
            ("--enable-admission-plugins", "ImagePolicyWebhook,PodPreset,PodSecurityPolicy".into()),
            ("--disable-admission-plugins", "ServiceAccount".into()),
            ("--admission-control-config-file", file("admission.json", &config.to_string())),
            ("--audit-policy-file", file("audit.yaml", RECORDED)),
            ("--audit-log-path", log.to_string_lossy().into_owned()),
            ("--audit-log-maxsize", "1".into()),
            ("--audit-log-maxbackup", "2".into()),
            ("--audit-webhook-config-file", kubeconfig("events")),
            ("--audit-webhook-batch-max-wait", "1s".into()),
        ] {
            flags.extend([flag.to_owned(), value]);
        }
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let server = Server::start(&dir.path().join("data"), free_port(), &flags);
        Self { server, hook, dir, _runtime: runtime }
    }

    /// Makes a pod as somebody; what kubectl said.
    fn make(&self, who: &str, pod: &str) -> (bool, String) {
        let file = write(self.dir.path(), "pod.yaml", pod);
        let output = self.server.kubectl(&["create", "-f", &file, "--as", who]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.success(), said)
    }
}

#[test]
fn plugins_that_are_turned_on_judge_and_change() {
    if !kubectl_is_there() {
        return;
    }
    let world = World::start();
    world.server.apply(OBJECTS);
    let (good, said) = world.make("jane", &pod("good", "good.example/app:1", false));
    assert!(good, "{said}");
    let made: Value = serde_json::from_str(&world.server.run(&["get", "pod", "good", "-o", "json"])).unwrap();
    let container = &made["spec"]["containers"][0];
    assert_eq!(container["env"], json!([{"name": "DB_PORT", "value": "6379"}]));
    assert_eq!(container["volumeMounts"], json!([{"mountPath": "/cache", "name": "cache"}]));
    let notes = &made["metadata"]["annotations"];
    assert!(notes["podpreset.admission.kubernetes.io/podpreset-database"].is_string(), "{notes}");
    assert_eq!(notes["kubernetes.io/psp"], "restricted");
    assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], false);
    for (who, name, image, privileged, expected) in [
        ("jane", "bad-image", "evil.example/app:1", false, "evil.example/app:1 is not ours"),
        ("jane", "privileged", "good.example/app:1", true, "Privileged containers are not allowed"),
        ("joe", "no-policy", "good.example/app:1", false, "PodSecurityPolicy: unable to admit pod: []"),
    ] {
        let (good, said) = world.make(who, &pod(name, image, privileged));
        assert!(!good && said.contains("Error from server (Forbidden)") && said.contains(expected), "{name}: {said}");
    }
    an_absent_webhook_is_told_of(&world);
    stages_are_recorded(&world);
    full_files_are_kept_apart(&world);
}

/// Nobody is where a webhook should be: what it is to judge is refused, and the report on the cluster says why.
fn an_absent_webhook_is_told_of(world: &World) {
    let port = free_port();
    world.server.apply(&format!(
        "apiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingWebhookConfiguration\nmetadata: {{name: away}}\nwebhooks:\n\
         - name: away.example.com\n  clientConfig: {{url: \"https://127.0.0.1:{port}/x\"}}\n  failurePolicy: Fail\n  sideEffects: None\n  \
         admissionReviewVersions: [v1]\n  rules: [{{operations: [CREATE], apiGroups: [\"\"], apiVersions: [v1], resources: [secrets]}}]\n"
    ));
    let make = || world.server.kubectl(&["create", "secret", "generic", "s"]);
    let refused = make();
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && why.contains("failed calling webhook \"away.example.com\""), "{why}");
    let deadline = Instant::now() + PATIENCE;
    let expected = format!("cannot reach the webhook 127.0.0.1:{port}: 1 call failed");
    loop {
        // A report may be a moment old.
        let (_, said) = keelson(&["status", "--kubeconfig", &world.server.kubeconfig()]);
        if said.contains(&expected) && said.contains("kubectl delete") {
            break;
        }
        assert!(Instant::now() < deadline, "{said}");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    world.server.run(&["delete", "validatingwebhookconfiguration", "away"]);
    assert!(make().status.success());
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn stages_are_recorded(world: &World) {
    world.server.run(&["create", "configmap", "seen", "--from-literal=a=b"]);
    world.server.run(&["get", "--raw", "/api/v1/namespaces/default/configmaps?watch=true&timeoutSeconds=1"]);
    let log = world.dir.path().join("audit").join("audit.log");
    let deadline = Instant::now() + PATIENCE;
    // Others may write and watch, too.
    let of = |events: &[Value], uri: &str| -> Vec<Value> {
        let asked = |event: &&Value| event["requestURI"].as_str().is_some_and(|asked| asked.contains(uri));
        events.iter().filter(asked).cloned().collect()
    };
    let stages = |events: &[Value]| -> Vec<String> {
        events.iter().map(|event| event["stage"].as_str().unwrap_or_default().to_owned()).collect()
    };
    // The end of a watch is recorded after its client has left.
    let (made, watched) = loop {
        let events = lines(&log);
        let made = of(&events, "/configmaps?fieldManager=");
        let made: Vec<Value> = made.into_iter().filter(|event| event["user"]["username"] == "admin").collect();
        let watched = of(&events, "timeoutSeconds=1");
        if made.len() >= 2 && watched.len() >= 3 {
            break (made, watched);
        }
        assert!(Instant::now() < deadline, "{events:?}");
        std::thread::sleep(std::time::Duration::from_millis(100));
    };
    assert_eq!(stages(&made), ["RequestReceived", "ResponseComplete"]);
    assert_eq!(stages(&watched), ["RequestReceived", "ResponseStarted", "ResponseComplete"]);
    let (received, complete) = (&made[0], &made[1]);
    assert_eq!(received["auditID"], complete["auditID"]);
    assert!(received["responseStatus"].is_null() && received["responseObject"].is_null(), "{received}");
    assert_eq!(complete["responseObject"]["data"]["a"], "b");
    // The same events are posted.
    let ids: Vec<&str> = made.iter().chain(&watched).filter_map(|event| event["auditID"].as_str()).collect();
    loop {
        let posts = world.hook.asked();
        let posted = posts.iter().filter(|post| post.path.starts_with("/events"));
        let posted: Vec<Value> =
            posted.flat_map(|post| post.body["items"].as_array().cloned().unwrap_or_default()).collect();
        if ids.iter().all(|id| posted.iter().any(|event| event["auditID"] == *id)) {
            break;
        }
        assert!(Instant::now() < deadline, "posted: {posted:?}");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

fn full_files_are_kept_apart(world: &World) {
    let large = write(world.dir.path(), "large", &"x".repeat(400_000));
    for index in 0..5 {
        let name = format!("large-{index}");
        world.server.run(&["create", "configmap", &name, &format!("--from-file=k={large}")]);
    }
    let dir = world.dir.path().join("audit");
    let mut files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert_eq!(files.len(), 3, "the file and two older ones: {files:?}");
    for file in &files {
        use std::os::unix::fs::PermissionsExt;
        let about = std::fs::metadata(file).unwrap();
        assert_eq!(about.permissions().mode() & 0o777, 0o600, "{file:?}");
        assert!(about.len() <= 1 << 20, "{file:?}: {}", about.len());
        assert!(!lines(file).is_empty());
    }
}
