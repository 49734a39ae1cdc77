//! Walks many command lines of the real kubectl against a server with hollow nodes: what each must say.

mod support;

use support::{Server, free_port, kubectl_is_there};

/// A line, split at spaces (`_` stands for a space inside a word), and what its output must contain.
type Line = (&'static str, &'static str);

/// Makes one of everything that `kubectl create` and its like can make.
const CREATE: &[Line] = &[
    ("create deployment web --image=nginx --replicas=2", "deployment.apps/web created"),
    ("create configmap cm --from-literal=a=b --from-literal=c=d", "configmap/cm created"),
    ("create secret generic s --from-literal=p=q", "secret/s created"),
    (
        "create secret docker-registry reg --docker-username=u --docker-password=p --docker-server=r",
        "secret/reg created",
    ),
    ("create serviceaccount sa", "serviceaccount/sa created"),
    ("create token sa", "ey"),
    ("create namespace n2", "namespace/n2 created"),
    ("create quota q --hard=pods=10,cpu=2 -n n2", "resourcequota/q created"),
    ("create job j --image=busybox -- echo hi", "job.batch/j created"),
    ("create cronjob cj --image=busybox --schedule=*/5_*_*_*_* -- echo hi", "cronjob.batch/cj created"),
    ("create job j2 --from=cronjob/cj", "job.batch/j2 created"),
    ("create role r --verb=get,list --resource=pods", "role.rbac.authorization.k8s.io/r created"),
    ("create rolebinding rb --role=r --serviceaccount=default:sa", "rolebinding.rbac.authorization.k8s.io/rb created"),
    ("create clusterrole cr --verb=get --resource=nodes", "clusterrole.rbac.authorization.k8s.io/cr created"),
    (
        "create clusterrolebinding crb --clusterrole=cr --user=bob",
        "clusterrolebinding.rbac.authorization.k8s.io/crb created",
    ),
    ("create service clusterip svc1 --tcp=80:8080", "service/svc1 created"),
    ("create service nodeport svc2 --tcp=80:8080", "service/svc2 created"),
    ("create service externalname svc3 --external-name=example.com", "service/svc3 created"),
    ("create service loadbalancer svc4 --tcp=80", "service/svc4 created"),
    ("create ingress ing --rule=a.example/*=web:80 --class=nginx", "ingress.networking.k8s.io/ing created"),
    ("create poddisruptionbudget pdb --selector=app=web --min-available=1", "poddisruptionbudget.policy/pdb created"),
    ("create priorityclass pc --value=100", "priorityclass.scheduling.k8s.io/pc created"),
    ("expose deployment web --port=80", "service/web exposed"),
    ("run p1 --image=nginx --labels=a=b", "pod/p1 created"),
    ("autoscale deployment web --min=1 --max=3 --cpu-percent=80", "horizontalpodautoscaler.autoscaling/web autoscaled"),
    ("rollout status deployment web --timeout=60s", "successfully rolled out"),
    ("wait --for=jsonpath={.status.phase}=Running pod/p1 --timeout=60s", "condition met"),
];

/// Looks at it in all forms.
const LOOK: &[Line] = &[
    ("get all", "deployment.apps/web"),
    ("get pods p1 -o wide", "NOMINATED NODE"),
    ("get deployment web", "UP-TO-DATE"),
    ("get deployment web -o wide", "SELECTOR"),
    ("get pods p1 -o json", "\"kind\": \"Pod\""),
    ("get pods p1 -o yaml", "kind: Pod"),
    ("get pods -o name", "pod/p1"),
    ("get pods -o jsonpath={.items[*].metadata.name}", "p1"),
    ("get pods -o custom-columns=N:.metadata.name,P:.status.phase", "p1"),
    ("get pods --sort-by=.metadata.creationTimestamp", "p1"),
    ("get pods --field-selector=status.phase=Running", "p1"),
    ("get pods -l app=web --show-labels", "pod-template-hash"),
    ("get pods -A -L app", "NAMESPACE"),
    ("get nodes -o wide", "CONTAINER-RUNTIME"),
    ("get svc,endpointslices", "80:"),
    ("get hpa", "Deployment/web"),
    ("get pdb", "ALLOWED DISRUPTIONS"),
    ("get ingress", "a.example"),
    ("get cronjob", "*/5 * * * *"),
    ("get secrets", "kubernetes.io/dockerconfigjson"),
    ("get clusterroles cr", "CREATED AT"),
    ("get rolebindings -o wide", "default/sa"),
    ("get quota -n n2", "REQUEST"),
    ("get leases -A", "HOLDER"),
    ("get flowschemas", "system-leader-election"),
    ("get cs", "etcd-0"),
    ("get events", "Scheduled"),
    ("get deployment web --subresource=scale", "DESIRED"),
    ("get --raw /version", "v1.36"),
    ("get --raw /metrics", "apiserver_request_total"),
    ("get --raw /livez?verbose", "livez check passed"),
    ("api-versions", "apps/v1"),
    ("api-resources --categories=all", "deployments"),
    ("api-resources --verbs=create --namespaced=false -o name", "nodes"),
    ("describe pod p1", "Successfully assigned"),
    ("describe deployment web", "RollingUpdateStrategy"),
    ("describe node hollow-0", "Allocatable"),
    ("describe svc web", "Endpoints"),
    ("describe hpa web", "Deployment/web"),
    ("describe ingress ing", "a.example"),
    ("describe quota q -n n2", "Resource"),
    ("explain pod.spec.containers", "FIELD: containers <[]Container>"),
    ("explain deployment --recursive", "maxUnavailable"),
    ("explain ingress.spec.rules.http.paths.pathType", "ENUM"),
    ("top nodes", "MEMORY(bytes)"),
    ("auth can-i create pods", "yes"),
    ("auth whoami", "system:masters"),
];

/// Changes it in all ways.
const CHANGE: &[Line] = &[
    ("label pod p1 x=y", "pod/p1 labeled"),
    ("label pod p1 x=z --overwrite", "pod/p1 labeled"),
    ("label pod p1 x-", "pod/p1 unlabeled"),
    ("annotate pod p1 note=hello", "pod/p1 annotated"),
    ("set image deployment/web nginx=nginx:2", "image updated"),
    ("set env deployment/web A=B", "env updated"),
    ("set resources deployment web --limits=cpu=200m,memory=512Mi", "resource requirements updated"),
    ("set serviceaccount deployment web sa", "serviceaccount updated"),
    ("set selector svc svc1 app=web", "selector updated"),
    ("set subject rolebinding rb --user=alice", "subjects updated"),
    ("scale deployment web --replicas=3", "scaled"),
    ("rollout restart deployment web", "restarted"),
    ("rollout pause deployment web", "paused"),
    ("rollout resume deployment web", "resumed"),
    ("rollout history deployment web", "REVISION"),
    ("rollout undo deployment web", "rolled back"),
    ("wait --for=condition=Available deployment/web --timeout=60s", "condition met"),
    (r#"patch cm cm -p {"data":{"e":"f"}}"#, "patched"),
    (r#"patch cm cm --type=merge -p {"data":{"c":null}}"#, "patched"),
    (r#"patch cm cm --type=json -p [{"op":"replace","path":"/data/a","value":"z"}]"#, "patched"),
    ("get cm cm -o jsonpath={.data}", r#"{"a":"z","e":"f"}"#),
    (r#"patch deployment web --subresource=scale --type=merge -p {"spec":{"replicas":2}}"#, "patched"),
    ("cordon hollow-1", "cordoned"),
    ("uncordon hollow-1", "uncordoned"),
    ("taint nodes hollow-1 a=b:NoSchedule", "tainted"),
    ("taint nodes hollow-1 a-", "untainted"),
    ("delete pod p1 --grace-period=0 --force", "force deleted"),
    ("delete deployment web", "deleted"),
    ("delete ns n2 --timeout=60s", "deleted"),
];

/// What is refused, and how.
const REFUSED: &[Line] = &[
    ("get pods nothing", "pods \"nothing\" not found"),
    ("get nothing", "the server doesn't have a resource type \"nothing\""),
    ("create configmap cm", "configmaps \"cm\" already exists"),
    ("create configmap Bad", "Invalid value: \"Bad\""),
    ("get pods --field-selector=spec.nothing=x", "field label not supported: spec.nothing"),
];

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(|word| word.replace('_', " ")).collect()
}

fn walk(server: &Server, lines: &[Line]) {
    for (line, expected) in lines {
        let words = words(line);
        let said = server.run(&words.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(said.contains(expected), "kubectl {line}: {said}");
    }
}

const MAP: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: applied}\ndata: {a: \"VALUE\"}\n";

/// What needs a file.
fn files(server: &Server, dir: &std::path::Path) {
    let file = dir.join("map.yaml");
    let path = file.to_string_lossy().into_owned();
    let write = |value: &str| std::fs::write(&file, MAP.replace("VALUE", value)).unwrap();
    let run = |args: &[&str], expected: &str| {
        let said = server.run(&[args, &["-f", &path]].concat());
        assert!(said.contains(expected), "kubectl {args:?}: {said}");
    };
    write("1");
    run(&["apply", "--validate=strict"], "created");
    run(&["apply"], "unchanged");
    write("2");
    let differs = server.kubectl(&["diff", "-f", &path]);
    assert_eq!(differs.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&differs.stdout).contains("+  a: \"2\""));
    run(&["apply", "--dry-run=server"], "server dry run");
    run(&["apply"], "configured");
    assert_eq!(server.kubectl(&["diff", "-f", &path]).status.code(), Some(0));
    write("3");
    run(&["apply", "--server-side", "--force-conflicts"], "serverside-applied");
    write("4");
    run(&["replace"], "replaced");
    run(&["replace", "--force"], "replaced");
    run(&["delete"], "deleted");
    std::fs::write(&file, MAP.replace("\ndata:", "\ndatas:")).unwrap();
    let refused = server.kubectl(&["apply", "--validate=strict", "-f", &path]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("unknown field \"datas\""), "{said}");
}

#[test]
fn command_lines_do_what_they_do_elsewhere() {
    if !kubectl_is_there() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), free_port(), &["--hollow", "3"]);
    let account = ["get", "serviceaccount", "default", "-o", "name"];
    server.until("the namespace has its account", &account, |out| out == "serviceaccount/default");
    walk(&server, CREATE);
    walk(&server, LOOK);
    files(&server, dir.path());
    walk(&server, CHANGE);
    for (line, expected) in REFUSED {
        let words = words(line);
        let output = server.kubectl(&words.iter().map(String::as_str).collect::<Vec<_>>());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(expected), "kubectl {line}: {said}");
    }
}
