//! Runs the real binary with the files that say who may ask, what is recorded and how it is stored, and looks at what
//! comes of them.

mod support;

use std::path::Path;

use serde_json::Value;
use support::{Server, free_port, is_on_disk, keelson, kubectl_is_there};

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

const KEYS: &str = r#"
apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources: [secrets]
  providers:
"#;
const FIRST: &str = "  - aesgcm: {keys: [{name: key1, secret: c2VjcmV0IGlzIHNlY3VyZQ==}]}\n";
const SECOND: &str = "  - secretbox: {keys: [{name: key2, secret: YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXoxMjM0NTY=}]}\n";
const PLAIN: &str = "  - identity: {}\n";

#[test]
fn secrets_are_sealed_in_all_files_and_keys_can_be_turned() {
    if !kubectl_is_there() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let (port, quiet) = (free_port(), ["--no-controllers", "--no-scheduler", "--encryption-provider-config"]);
    let start = |name: &str, providers: &str| {
        let config = write(dir.path(), name, &format!("{KEYS}{providers}"));
        Server::start(&data, port, &[&quiet[..], &[&config]].concat())
    };
    let read = |server: &Server, name: &str| server.run(&["get", "secret", name, "-o", "jsonpath={.data.a}"]);
    let plain = |text: &str| {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.encode(text)
    };
    let server = start("first.yaml", &format!("{FIRST}{PLAIN}"));
    server.run(&["create", "secret", "generic", "s", "--from-literal=a=sealed-from-the-start"]);
    server.run(&["create", "configmap", "c", "--from-literal=a=in-plain-as-ever"]);
    assert_eq!(read(&server, "s"), plain("sealed-from-the-start"));
    assert!(server.run(&["get", "secrets"]).contains("s      Opaque"), "lists are opened too");
    drop(server);
    assert!(is_on_disk(&data, b"in-plain-as-ever"), "what is not listed is as it was");
    assert!(is_on_disk(&data, b"k8s:enc:aesgcm:v1:key1:"));
    for text in ["sealed-from-the-start", &plain("sealed-from-the-start")] {
        assert!(!is_on_disk(&data, text.as_bytes()), "{text}");
    }

    // The second key comes first: new values are sealed with it, old ones are still read, and written again on request.
    let server = start("second.yaml", &format!("{SECOND}{FIRST}"));
    assert_eq!(read(&server, "s"), plain("sealed-from-the-start"));
    let all = server.run(&["get", "secret", "s", "-o", "json"]);
    let file = write(dir.path(), "all.json", &all);
    server.run(&["replace", "-f", &file]);
    drop(server);
    let server = start("third.yaml", SECOND);
    assert_eq!(read(&server, "s"), plain("sealed-from-the-start"), "the first key is needed no more");
}
