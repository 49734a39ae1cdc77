//! Changes the files that a running server was given, and waits until what they say holds: without a restart.

mod support;

use std::path::Path;
use std::process::Command;

use support::{Server, free_port, kubectl_is_there};

fn write(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    // A file appears whole.
    let draft = dir.join(format!("{name}.new"));
    std::fs::write(&draft, text).unwrap();
    std::fs::rename(&draft, &path).unwrap();
    path.to_string_lossy().into_owned()
}

fn authorizers(last: &str) -> String {
    format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\nauthorizers:\n- {{type: Node, name: node}}\n- {{type: RBAC, name: rbac}}\n{last}"
    )
}

fn anonymous(enabled: bool) -> String {
    format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\nanonymous: {{enabled: {enabled}}}\n"
    )
}

fn audited(level: &str) -> String {
    format!(
        "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n- {{level: {level}, verbs: [create], resources: [{{group: \"\", resources: [configmaps]}}]}}\n- {{level: None}}\n"
    )
}

const SEALED: &str = "- resources: [secrets]\n  providers: [{aesgcm: {keys: [{name: k1, secret: c2VjcmV0IGlzIHNlY3VyZQ==}]}}, {identity: {}}]\n";
const CONFIG_MAPS: &str = "- resources: [configmaps]\n  providers: [{aesgcm: {keys: [{name: k1, secret: c2VjcmV0IGlzIHNlY3VyZQ==}]}}, {identity: {}}]\n";

fn encryption(entries: &str) -> String {
    format!("apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n{entries}")
}

/// Writes the files that a server starts with, and gives the flags that name them.
fn files(dir: &Path, authority: &str, log: &str) -> Vec<String> {
    let mut flags = vec!["--no-controllers".to_owned(), "--no-scheduler".into(), "--audit-log-path".into(), log.into()];
    for (flag, name, text) in [
        ("--token-auth-file", "tokens.csv", "token-of-ann,ann,1\n"),
        ("--client-ca-file", "clients.crt", authority),
        ("--authentication-config", "authentication.yaml", &anonymous(true)),
        ("--authorization-config", "authorization.yaml", &authorizers("")),
        ("--audit-policy-file", "audit.yaml", &audited("Metadata")),
        ("--encryption-provider-config", "encryption.yaml", &encryption(SEALED)),
    ] {
        flags.extend([flag.to_owned(), write(dir, name, text)]);
    }
    flags
}

/// Makes objects until one is recorded with its request and cannot be found on disk.
fn new_policies_hold(server: &Server, data: &Path, log: &str) {
    let deadline = std::time::Instant::now() + support::PATIENCE;
    let (mut number, mut seen, mut hidden) = (0, false, false);
    while !(seen && hidden) {
        assert!(std::time::Instant::now() < deadline, "audit policy: {seen}, encryption: {hidden}");
        number += 1;
        let mark = format!("mark-of-{number}-in-plain");
        server.run(&["create", "configmap", &format!("after-{number}"), &format!("--from-literal=k={mark}")]);
        seen = std::fs::read_to_string(log).unwrap_or_default().contains("requestObject");
        // What is written is on disk at once; sealed, it cannot be found there.
        hidden = !support::is_on_disk(data, mark.as_bytes());
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
}

#[test]
fn changed_files_hold_without_a_restart() {
    if !kubectl_is_there() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| write(dir.path(), name, text);
    let first = keelson_pki::Authority::create("first").unwrap();
    let second = keelson_pki::Authority::create("second").unwrap();
    let log = dir.path().join("audit.log").to_string_lossy().into_owned();
    let flags = files(dir.path(), &first.certificate(), &log);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let server = Server::start(&dir.path().join("data"), free_port(), &flags);
    let whoami = ["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"];
    let jane = second.issue_client("jane", &["team-a", "team-b"]).unwrap();
    let (certificate, key) = (file("jane.crt", &jane.certificate), file("jane.key", &jane.key));
    // The admin's kubeconfig without its certificate, so that others can say who they are.
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(server.kubeconfig()).unwrap()).unwrap();
    config["users"][0]["user"] = serde_json::json!({});
    let nobody = file("nobody.kubeconfig", &config.to_string());
    let as_ = |who: &[&str], args: &[&str]| server.kubectl(&[&["--kubeconfig", &nobody], who, args].concat());
    let out = |output: std::process::Output| String::from_utf8_lossy(&output.stdout).into_owned();
    let until = |what: &str, good: &dyn Fn() -> bool| {
        let deadline = std::time::Instant::now() + support::PATIENCE;
        while !good() {
            assert!(std::time::Instant::now() < deadline, "{what}");
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
    };
    let by_certificate = ["--client-certificate", &certificate, "--client-key", &key];

    assert_eq!(out(as_(&["--token", "token-of-ann"], &whoami)), "ann");
    assert!(!as_(&["--token", "token-of-bob"], &whoami).status.success());
    assert!(!as_(&by_certificate, &whoami).status.success(), "an authority that is not in the file");
    let version = format!("{}/version", config["clusters"][0]["cluster"]["server"].as_str().unwrap());
    let stranger = || {
        let asked = Command::new("curl").args(["-sk", "-o", "/dev/null", "-w", "%{http_code}", &version]).output();
        asked.ok().map(out)
    };
    assert!(stranger().is_none_or(|code| code == "200"));
    let list = ["get", "configmaps"];
    assert!(!as_(&["--token", "token-of-ann"], &list).status.success());
    server.run(&["create", "configmap", "before", "--from-literal=k=plain-before"]);
    assert!(!std::fs::read_to_string(&log).unwrap_or_default().contains("requestObject"));

    file("tokens.csv", "token-of-bob,bob,2\n");
    file("clients.crt", &(first.certificate().to_string() + &second.certificate()));
    file("authentication.yaml", &anonymous(false));
    file("authorization.yaml", &authorizers("- {type: AlwaysAllow, name: all}\n"));
    file("audit.yaml", &audited("Request"));
    file("encryption.yaml", &encryption(&format!("{SEALED}{CONFIG_MAPS}")));
    until("a new token", &|| out(as_(&["--token", "token-of-bob"], &whoami)) == "bob");
    assert!(!as_(&["--token", "token-of-ann"], &whoami).status.success(), "a token that is no longer in the file");
    until("a new authority", &|| out(as_(&by_certificate, &whoami)) == "jane");
    let groups = out(as_(&by_certificate, &["auth", "whoami", "-o", "jsonpath={.status.userInfo.groups}"]));
    assert_eq!(groups, r#"["team-a","team-b","system:authenticated"]"#);
    until("nobody is let in any more", &|| stranger().is_none_or(|code| code == "401"));
    until("another authorizer", &|| as_(&["--token", "token-of-bob"], &list).status.success());
    new_policies_hold(&server, &dir.path().join("data"), &log);
    assert!(support::is_on_disk(&dir.path().join("data"), b"plain-before"), "what was written before stays as it is");
    file("tokens.csv", "token\n");
    file("authorization.yaml", "nonsense");
    until("the refusal is told of", &|| {
        let text = std::fs::read_to_string(dir.path().join("data").join("log")).unwrap();
        text.matches("changed files cannot be used").count() >= 2
    });
    assert_eq!(out(as_(&["--token", "token-of-bob"], &whoami)), "bob");
    assert!(as_(&["--token", "token-of-bob"], &list).status.success());
}
