//! Runs the real binary with the files that say who may ask, what is recorded and how it is stored, and looks at what
//! comes of them.

mod support;

use std::path::Path;

use serde_json::Value;
use support::{Server, free_port, keelson, kubectl_is_there};

fn write(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_string_lossy().into_owned()
}

const POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: Metadata, resources: [{group: "", resources: [secrets]}]}
- {level: RequestResponse, namespaces: [default], resources: [{group: "", resources: [configmaps]}], omitManagedFields: true}
- {level: None}
"#;

#[test]
fn requests_are_recorded_as_the_policy_says() {
    if !kubectl_is_there() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let policy = write(dir.path(), "policy.yaml", POLICY);
    let log = dir.path().join("audit.log").to_string_lossy().into_owned();
    let flags = ["--no-controllers", "--no-scheduler", "--audit-policy-file", &policy, "--audit-log-path", &log];
    let server = Server::start(&dir.path().join("data"), free_port(), &flags);
    server.run(&["create", "secret", "generic", "s", "--from-literal=password=hidden-from-all"]);
    server.run(&["create", "configmap", "c", "--from-literal=a=b"]);
    server.run(&["delete", "configmap", "c"]);
    assert!(!server.kubectl(&["get", "secrets", "--as", "eve"]).status.success());
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(!text.contains("hidden-from-all") && !text.contains("managedFields"), "{text}");
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(events.iter().all(|e| e["kind"] == "Event" && e["stage"] == "ResponseComplete"), "{text}");
    let find = |verb: &str, resource: &str| {
        let found = events.iter().find(|e| e["verb"] == verb && e["objectRef"]["resource"] == resource);
        found.unwrap_or_else(|| panic!("no {verb} of {resource}: {text}"))
    };
    let secret = find("create", "secrets");
    assert_eq!((&secret["level"], &secret["objectRef"]["name"]), (&"Metadata".into(), &"s".into()));
    assert_eq!(secret["responseStatus"]["code"], 201);
    assert_eq!(secret["annotations"]["authorization.k8s.io/decision"], "allow");
    assert_eq!(secret["user"]["username"], "admin");
    assert_eq!(secret["sourceIPs"], serde_json::json!(["127.0.0.1"]));
    let map = find("create", "configmaps");
    assert_eq!(map["requestObject"]["data"]["a"], "b");
    assert!(map["responseObject"]["metadata"]["uid"].is_string(), "{map}");
    let deleted = find("delete", "configmaps");
    assert_eq!(deleted["responseStatus"]["status"], "Success", "{deleted}");
    let refused = find("list", "secrets");
    assert_eq!(refused["impersonatedUser"]["username"], "eve");
    assert_eq!(refused["responseStatus"]["reason"], "Forbidden");
    assert_eq!(refused["annotations"]["authorization.k8s.io/decision"], "forbid");
}

#[test]
fn files_that_cannot_be_meant_stop_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data").to_string_lossy().into_owned();
    let port = free_port().to_string();
    let policy = write(dir.path(), "policy.yaml", "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: All}]\n");
    for (flags, expected) in [
        (["--audit-policy-file", &policy], "rules[0].level: Unsupported value: \"All\""),
        (["--audit-policy-file", "/nowhere.yaml"], "loading audit policy file /nowhere.yaml"),
    ] {
        let head = ["server", "--bind-address", "127.0.0.1", "--secure-port", &port, "--data-dir", &data];
        let (success, said) = keelson(&[&head[..], &flags[..]].concat());
        assert!(!success && said.contains(expected), "{flags:?}: {said}");
    }
}
