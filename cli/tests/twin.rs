//! kubectl's twin beside the real one: the same command lines against the same server, the same output and exit code.

mod support;

use std::process::Command;

use support::{Server, free_port, kubectl_is_there};

/// Command lines, in the shell's words. None changes anything, so that both programs see the same.
const SAME: &str = r#"
get pods
get pods -o wide
get pods -A
get deploy,rs,pods
get all
get nodes -o wide
get nodes -o name
get deploy web -o yaml
get deploy web -o json
get pods -o yaml
get pods -o json
get svc -o yaml
get cm cm -o yaml --show-managed-fields
get pods -o jsonpath='{.items[*].metadata.name}'
get pods -o jsonpath='{range .items[*]}{.metadata.name}{"\t"}{.status.phase}{"\n"}{end}'
get pods -o custom-columns=NAME:.metadata.name,NODE:.spec.nodeName,X:.metadata.labels
get pods --show-labels
get pods -L app
get pods -l app=web
get pods -l app=nothing
get pods -l 'app in (web,x)'
get pods --sort-by=.metadata.name
get pods --no-headers
get pods --field-selector status.phase=Running
get nothing
get pod nothing
get pod nothing --ignore-not-found
get pods,svc nothing
get
get pods extra/arg
get --raw /healthz
get ns -o name
get clusterroles
get clusterrole view -o yaml
get pods --as=bob
api-versions
api-resources
api-resources --no-headers -o name
api-resources --namespaced=false
api-resources -o wide
cluster-info
auth can-i get pods
auth can-i get pods --as=bob
auth can-i '*' '*'
auth can-i list nodes --as=bob
auth whoami
config view
config current-context
config get-contexts
config get-contexts -o name
config get-clusters
config get-users
config view --minify -o jsonpath='{.clusters[0].name}'
config use-context nothing
create deployment x --image=nginx:1 --port=80 --replicas=3 --dry-run=client -o yaml -- sleep 5
create configmap c --from-literal=a=1 --from-literal=b=x --dry-run=client -o yaml
create secret generic s --from-literal=a=1 --dry-run=client -o yaml
create namespace n --dry-run=client -o yaml
create serviceaccount n --dry-run=client -o yaml
create role r --verb=get,list --resource=pods,deployments.apps --dry-run=client -o yaml
create clusterrole r --verb=get --non-resource-url=/x --dry-run=client -o yaml
create rolebinding r --clusterrole=view --user=u --serviceaccount=a:b --dry-run=client -o yaml
create clusterrolebinding r --clusterrole=view --group=g --dry-run=client -o yaml
create service clusterip s --tcp=80:8080 --dry-run=client -o yaml
create service nodeport s --tcp=80 --dry-run=client -o yaml
create service externalname s --external-name=x.y --dry-run=client -o yaml
create ingress i --rule=h.x/p*=svc:80,tls=sec --dry-run=client -o yaml
create quota q --hard=cpu=1,pods=2 --dry-run=client -o yaml
create pdb p --selector=app=x --min-available=1 --dry-run=client -o yaml
create priorityclass p --value=10 --dry-run=client -o yaml
run p --image=x --dry-run=client -o yaml
run p --image=x --port=80 --env=A=b --labels=a=b --dry-run=client -o yaml -- a b
expose deployment web --port=80 --target-port=8080 --dry-run=client -o yaml
expose deployment web
scale deploy nothing --replicas=1
scale deploy/web --replicas=2 --current-replicas=5
rollout status deploy/web
rollout history deploy/web
set image deploy/web web=nginx:2 --dry-run=client
set image deploy/web zzz=nginx:2
set env deploy/web A=b --dry-run=client
patch cm cm -p '{"data":{"b":"2"}}' --dry-run=server
patch cm cm --type=foo -p '{}'
patch cm cm
wait --for=condition=Available deploy/web --timeout=10s
wait --for=condition=Nothing deploy/web --timeout=1s
wait --for=delete pod/nothing --timeout=1s
wait --for=condition=Ready pod -l app=web --timeout=10s
delete pod nothing
delete pod nothing --ignore-not-found
delete cm a b
logs nothing
exec nothing
exec nothing -- ls
"#;

const SETUP: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: cm, labels: {a: b}}
data: {a: "1", text: "one\ntwo\n"}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: "example:1"}]}
"#;

/// Output and exit code, without what a moment changes: ages, and the null times that older clients write.
fn said(server: &Server, program: &str, line: &str) -> String {
    let output = Command::new("sh")
        .args(["-c", &format!("{program} {line} 2>&1")])
        .env("KUBECONFIG", server.kubeconfig())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let age = |word: &str| {
        let digits = word.trim_end_matches(['s', 'm', 'h']);
        digits.len() < word.len()
            && !digits.is_empty()
            && digits.chars().all(|c| c.is_ascii_digit() || c == 'm' || c == 'h')
    };
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().map(|w| if age(w) { "AGE" } else { w }).collect();
        // Where an age has another length, the columns after it move.
        if words.contains(&"AGE") { words.join(" ") } else { line.trim_end().to_owned() }
    };
    let lines: Vec<String> = text.lines().filter(|l| l.trim() != "creationTimestamp: null").map(line).collect();
    format!("{}\nexit {}", lines.join("\n"), output.status.code().unwrap_or(-1))
}

#[test]
fn the_twin_says_what_kubectl_says() {
    if !kubectl_is_there() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), free_port(), &["--hollow", "2"]);
    server.apply(SETUP);
    let running = ["get", "deployment", "web", "-o", "jsonpath={.status.availableReplicas}"];
    server.until("pods run", &running, |out| out == "2");
    let twin = format!("{} kubectl", env!("CARGO_BIN_EXE_keelson"));
    let mut wrong = Vec::new();
    for line in SAME.lines().filter(|line| !line.is_empty()) {
        let (real, own) = (said(&server, "kubectl", line), said(&server, &twin, line));
        if real != own {
            wrong.push(format!("kubectl {line}\n--- kubectl\n{real}\n--- twin\n{own}"));
        }
    }
    assert!(wrong.is_empty(), "{} of the lines differ:\n{}", wrong.len(), wrong.join("\n\n"));
}

#[test]
fn what_the_twin_changes_is_changed() {
    if !kubectl_is_there() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), free_port(), &["--hollow", "2"]);
    let twin = format!("{} kubectl", env!("CARGO_BIN_EXE_keelson"));
    let file = dir.path().join("cm.yaml");
    let file = file.to_string_lossy();
    for (line, expected) in [
        ("create deployment web --image=example:1 --replicas=2".to_owned(), "deployment.apps/web created"),
        ("rollout status deployment/web --timeout=60s".into(), "successfully rolled out"),
        ("scale deployment web --replicas=3".into(), "deployment.apps/web scaled"),
        ("set image deployment/web example=example:2".into(), "deployment.apps/web image updated"),
        ("rollout status deployment/web --timeout=60s".into(), "successfully rolled out"),
        ("rollout undo deployment/web".into(), "deployment.apps/web rolled back"),
        ("rollout history deployment/web".into(), "REVISION  CHANGE-CAUSE\n2         <none>\n3         <none>"),
        ("label deployment web tier=front".into(), "deployment.apps/web labeled"),
        ("label deployment web tier=back".into(), "'tier' already has a value (front), and --overwrite is false"),
        ("annotate deployment web note=x".into(), "deployment.apps/web annotated"),
        (format!("apply -f {file}"), "configmap/cm created"),
        (format!("apply -f {file}"), "configmap/cm unchanged"),
        ("patch configmap cm --type=merge -p '{\"data\":{\"b\":\"2\"}}'".into(), "configmap/cm patched"),
        (format!("apply -f {file}"), "configmap/cm unchanged"),
        (format!("apply --server-side --force-conflicts -f {file}"), "configmap/cm serverside-applied"),
        ("get configmap cm -o jsonpath='{.data}'".into(), "{\"a\":\"1\",\"b\":\"2\"}"),
        (format!("delete -f {file}"), "configmap \"cm\" deleted"),
        ("cordon hollow-1".into(), "node/hollow-1 cordoned"),
        ("drain hollow-1 --force".into(), "node/hollow-1 drained"),
        ("uncordon hollow-1".into(), "node/hollow-1 uncordoned"),
        ("taint nodes hollow-1 a=b:NoSchedule".into(), "node/hollow-1 tainted"),
        ("taint nodes hollow-1 a-".into(), "node/hollow-1 untainted"),
        ("delete deployment web".into(), "deployment.apps \"web\" deleted"),
        ("wait --for=delete pod -l app=web --timeout=60s".into(), ""),
    ] {
        std::fs::write(file.as_ref(), "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: cm}\ndata: {a: '1'}\n")
            .unwrap();
        let said = said(&server, &twin, &line);
        assert!(said.contains(expected), "{line}: {said}");
    }
}
