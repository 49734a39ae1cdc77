//! What controllers had begun when their leader died: the next leader ends it, and at no time there is too much or too little.
//!
//! In turn a leader is killed, and frozen until the next one has ended the work: what the frozen one had on its way when it
//! wakes is refused.
//!
//! `KEELSON_HANDOVERS=50` does that fifty times instead of twice.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::members::{join_flags, member, until_whole};
use support::{PATIENCE, Server, free_port, keelson, kubectl_is_there};

/// Replicas of the Deployment, and how many more and fewer there may be during a roll-out.
const REPLICAS: usize = 10;
const SURGE: usize = 3;
const UNAVAILABLE: usize = 2;
/// Most pods that the namespace may have.
const QUOTA: usize = 50;
/// Pretended nodes, and so pods of each DaemonSet.
const NODES: usize = 3;
/// Replicas of the StatefulSet that is rolled over.
const ROLLED: usize = 3;
/// Pods of the Job, and how many at a time.
const COMPLETIONS: usize = 6;
const PARALLELISM: usize = 3;

/// How many pods the StatefulSet and the ReplicationController, which are scaled, have in a round.
fn scaled(round: usize) -> usize {
    if round % 2 == 1 { 4 } else { 2 }
}

fn manifest(round: usize) -> String {
    orderly(round) + &further(round)
}

/// The quota, the Deployment, the StatefulSets and the Job.
fn orderly(round: usize) -> String {
    let replicas = scaled(round);
    let mode = if round % 4 < 2 { "Indexed" } else { "NonIndexed" };
    format!(
        r#"
apiVersion: v1
kind: ResourceQuota
metadata: {{name: quota}}
spec: {{hard: {{pods: "{QUOTA}"}}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: roll}}
spec:
  replicas: {REPLICAS}
  strategy: {{rollingUpdate: {{maxSurge: {SURGE}, maxUnavailable: {UNAVAILABLE}}}}}
  selector: {{matchLabels: {{app: roll}}}}
  template:
    metadata: {{labels: {{app: roll, round: "{round}"}}}}
    spec: {{terminationGracePeriodSeconds: 0, containers: [{{name: c, image: "i:{round}"}}]}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: set}}
spec:
  replicas: {replicas}
  serviceName: set
  selector: {{matchLabels: {{app: set}}}}
  template:
    metadata: {{labels: {{app: set}}}}
    spec: {{terminationGracePeriodSeconds: 0, containers: [{{name: c, image: i}}]}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: ordered}}
spec:
  replicas: {ROLLED}
  serviceName: set
  selector: {{matchLabels: {{app: ordered}}}}
  template:
    metadata: {{labels: {{app: ordered, round: "{round}"}}}}
    spec: {{terminationGracePeriodSeconds: 0, containers: [{{name: c, image: "i:{round}"}}]}}
---
apiVersion: batch/v1
kind: Job
metadata: {{name: "job-{round}"}}
spec:
  completionMode: {mode}
  completions: {COMPLETIONS}
  parallelism: {PARALLELISM}
  template:
    metadata: {{labels: {{app: "job-{round}"}}}}
    spec: {{restartPolicy: Never, containers: [{{name: c, image: i}}]}}
"#
    )
}

/// The ReplicationController and the DaemonSets.
fn further(round: usize) -> String {
    let replicas = scaled(round);
    format!(
        r#"
---
apiVersion: v1
kind: ReplicationController
metadata: {{name: rc}}
spec:
  replicas: {replicas}
  selector: {{app: rc}}
  template:
    metadata: {{labels: {{app: rc}}}}
    spec: {{terminationGracePeriodSeconds: 0, containers: [{{name: c, image: i}}]}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: agent}}
spec:
  selector: {{matchLabels: {{app: agent}}}}
  updateStrategy: {{rollingUpdate: {{maxUnavailable: 1}}}}
  template:
    metadata: {{labels: {{app: agent, round: "{round}"}}}}
    spec: {{terminationGracePeriodSeconds: 0, containers: [{{name: c, image: "i:{round}"}}]}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: surge}}
spec:
  selector: {{matchLabels: {{app: surge}}}}
  updateStrategy: {{rollingUpdate: {{maxUnavailable: 0, maxSurge: 1}}}}
  template:
    metadata: {{labels: {{app: surge, round: "{round}"}}}}
    spec: {{terminationGracePeriodSeconds: 0, containers: [{{name: c, image: "i:{round}"}}]}}
"#
    )
}

/// The pods at one revision, by the label `app`; those that go are left out of it.
struct Pods {
    by_app: BTreeMap<String, Vec<Value>>,
    /// Those that count for the quota: not ended, going or not.
    counted: usize,
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Objects of these kinds, if they can be read now.
fn read(server: &Server, kinds: &str) -> Option<Vec<Value>> {
    let output = server.kubectl(&["get", kinds, "-o", "json"]);
    let list: Value = serde_json::from_slice(&output.stdout).ok().filter(|_| output.status.success())?;
    list["items"].as_array().cloned()
}

impl Pods {
    fn read(server: &Server) -> Option<Self> {
        let mut by_app: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        let mut counted = 0;
        for pod in read(server, "pods")? {
            counted += usize::from(!matches!(text(&pod["status"]["phase"]), "Succeeded" | "Failed"));
            if pod["metadata"]["deletionTimestamp"].is_null() {
                let app = pod["metadata"]["labels"]["app"].as_str()?.to_owned();
                by_app.entry(app).or_default().push(pod);
            }
        }
        Some(Self { by_app, counted })
    }

    fn of(&self, app: &str) -> &[Value] {
        self.by_app.get(app).map_or(&[], Vec::as_slice)
    }

    fn ready(&self, app: &str) -> usize {
        let ready = |pod: &&Value| {
            let conditions = pod["status"]["conditions"].as_array();
            conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
        };
        self.of(app).iter().filter(ready).count()
    }

    /// The most pods of an app that one node has.
    fn most_on_a_node(&self, app: &str) -> usize {
        let mut nodes: BTreeMap<&str, usize> = BTreeMap::new();
        for pod in self.of(app) {
            let terms = &pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
            *nodes.entry(text(&terms["nodeSelectorTerms"][0]["matchFields"][0]["values"][0])).or_default() += 1;
        }
        nodes.into_values().max().unwrap_or_default()
    }

    /// What must hold at all times of the DaemonSets and of the StatefulSet that is rolled over.
    fn check_rolled(&self) {
        for (app, least, on_a_node) in [("agent", NODES - 1, 1), ("surge", NODES, 2)] {
            let (ready, most) = (self.ready(app), self.most_on_a_node(app));
            assert!(ready >= least && most <= on_a_node, "DaemonSet {app}: {ready} ready, {most} on a node");
        }
        let (there, ready) = (self.of("ordered").len(), self.ready("ordered"));
        assert!(there <= ROLLED && ready >= ROLLED - 1, "StatefulSet ordered: {there} pods, {ready} ready");
    }

    /// What must hold at all times. `made` are the Job's pods so far.
    fn check(&self, round: usize, made: &mut BTreeSet<String>) {
        let there = self.of("roll").len();
        assert!(there <= REPLICAS + SURGE, "{there} pods of the Deployment");
        let ready = self.ready("roll");
        assert!(ready >= REPLICAS - UNAVAILABLE, "only {ready} pods of the Deployment are ready");
        let mut ordinals: Vec<usize> = self.of("set").iter().filter_map(ordinal).collect();
        ordinals.sort_unstable();
        // Each once, and none before those below it.
        assert!(
            ordinals.iter().copied().eq(0..ordinals.len()),
            "not each of the StatefulSet's pods once: {ordinals:?}"
        );
        self.check_rolled();
        let (copies, wanted) = (self.of("rc").len(), scaled(round));
        let (least, most) = (wanted.min(scaled(round - 1)), wanted.max(scaled(round - 1)));
        assert!((least..=most).contains(&copies), "{copies} pods of the ReplicationController");
        let job = self.of(&format!("job-{round}"));
        let indexes: Vec<&str> = job.iter().filter_map(completion_index).collect();
        let once: BTreeSet<&str> = indexes.iter().copied().collect();
        assert_eq!(once.len(), indexes.len(), "an index of the Job twice: {indexes:?}");
        let active = job.iter().filter(|p| p["status"]["phase"] != "Succeeded").count();
        made.extend(job.iter().map(|p| text(&p["metadata"]["uid"]).to_owned()));
        assert!(made.len() <= COMPLETIONS && active <= PARALLELISM, "{} pods of the Job, {active} active", made.len());
        assert!(self.counted <= QUOTA, "{} pods in spite of the quota", self.counted);
    }

    /// Names and versions of all pods: they change when something goes on.
    fn mark(&self) -> Vec<[String; 2]> {
        let pods = self.by_app.values().flatten();
        let mark = |p: &Value| [&p["metadata"]["name"], &p["metadata"]["resourceVersion"]].map(|v| text(v).to_owned());
        pods.map(mark).collect()
    }
}

fn completion_index(pod: &Value) -> Option<&str> {
    pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"].as_str()
}

fn ordinal(pod: &Value) -> Option<usize> {
    pod["metadata"]["name"].as_str()?.strip_prefix("set-")?.parse().ok()
}

/// Whether all but the Job have the pods of the round's manifest, and nothing is left of the round before.
fn rolled(round: usize, pods: &Pods) -> bool {
    let label = round.to_string();
    let new = |p: &Value| p["metadata"]["labels"]["round"].as_str() == Some(&label);
    let exactly = |app: &str, wanted: usize| pods.of(app).len() == wanted && pods.ready(app) == wanted;
    let renewed = [("roll", REPLICAS), ("ordered", ROLLED), ("agent", NODES), ("surge", NODES)];
    renewed.iter().all(|(app, wanted)| exactly(app, *wanted) && pods.of(app).iter().all(new))
        && ["set", "rc"].iter().all(|app| exactly(app, scaled(round)))
        && pods.of(&format!("job-{}", round - 1)).is_empty()
}

/// Whether all is as the round's manifest has it.
fn done(server: &Server, round: usize, pods: &Pods) -> bool {
    let job = format!("job-{round}");
    let succeeded =
        server.kubectl(&["get", "job", &job, "-o", "jsonpath={.status.succeeded},{.status.completionTime}"]);
    let succeeded = String::from_utf8_lossy(&succeeded.stdout).into_owned();
    let finished = succeeded.split_once(',').is_some_and(|(n, at)| n == COMPLETIONS.to_string() && !at.is_empty());
    rolled(round, pods) && finished
}

/// Whether the quota's count is the number of pods.
fn counted(server: &Server, pods: &Pods) -> bool {
    let used = server.kubectl(&["get", "resourcequota", "quota", "-o", "jsonpath={.status.used.pods}"]);
    String::from_utf8_lossy(&used.stdout) == pods.counted.to_string()
}

/// Whether everything that names an owner has one.
fn owned(server: &Server) -> bool {
    let kinds = "pods,replicasets,statefulsets,daemonsets,replicationcontrollers,jobs,deployments,controllerrevisions";
    let Some(all) = read(server, kinds) else { return false };
    let uids: BTreeSet<&str> = all.iter().map(|o| text(&o["metadata"]["uid"])).collect();
    let mut owners = all.iter().flat_map(|o| o["metadata"]["ownerReferences"].as_array().into_iter().flatten());
    owners.all(|owner| uids.contains(text(&owner["uid"])))
}

/// Watches a round to its end; `since`: when the leader died. Returns the longest time in which nothing went on although
/// controllers had something to do: not while only the Job's pods run, two seconds each.
fn watch(server: &Server, round: usize, since: Instant, made: &mut BTreeSet<String>) -> Duration {
    let deadline = since + PATIENCE;
    let (mut mark, mut moved, mut waits, mut longest) = (Vec::new(), since, true, Duration::ZERO);
    loop {
        if let Some(pods) = Pods::read(server) {
            pods.check(round, made);
            if pods.mark() != mark {
                longest = longest.max(if waits { moved.elapsed() } else { Duration::ZERO });
                (mark, moved, waits) = (pods.mark(), Instant::now(), !rolled(round, &pods));
            }
            if done(server, round, &pods) && counted(server, &pods) && owned(server) {
                assert_eq!(made.len(), COMPLETIONS, "pods of the Job");
                return longest;
            }
        }
        if Instant::now() >= deadline {
            let kinds = "deployments,statefulsets,daemonsets,replicationcontrollers,jobs,resourcequotas";
            let owners = server.run(&["get", kinds, "-o", "yaml"]);
            panic!("round {round} does not end: {owners}");
        }
    }
}

#[test]
fn a_dead_leader_loses_and_doubles_nothing() {
    if !kubectl_is_there() {
        return;
    }
    let rounds: usize = std::env::var("KEELSON_HANDOVERS").ok().and_then(|n| n.parse().ok()).unwrap_or(2);
    // What the servers said in a long run is kept for who has to find out why it failed.
    let dir = tempfile::Builder::new().disable_cleanup(rounds > 2).tempdir().unwrap();
    let ports = [(); 3].map(|()| (free_port(), free_port()));
    let names = ["a", "b", "c"];
    // The pretended nodes are in the first server, which is never the one that dies.
    let hollow = ["--cluster-init", "--hollow", &NODES.to_string()].map(str::to_owned);
    let first = member(dir.path(), "a", ports[0], &hollow);
    let flags = join_flags(&first, true);
    let mut others: Vec<Server> = (1..3).map(|at| member(dir.path(), names[at], ports[at], &flags)).collect();
    until_whole(&first, &names);
    let file = dir.path().join("manifest.yaml");
    std::fs::write(&file, manifest(0)).unwrap();
    succeed(&first, &["apply", "-f", file.to_str().unwrap()]);
    until_there(&first);
    for round in 1..=rounds {
        let victim = round % 2;
        lead(&first, names[victim + 1], &names);
        std::fs::write(&file, manifest(round)).unwrap();
        succeed(&first, &["apply", "-f", file.to_str().unwrap()]);
        // Its pods are for the garbage collector, whose leader dies as well.
        let before = format!("job-{}", round - 1);
        succeed(&first, &["delete", "job", &before, "--wait=false", "--ignore-not-found"]);
        let freeze = round % 4 < 2;
        let since = Instant::now();
        if freeze {
            others[victim].freeze(true);
        } else {
            drop(others.remove(victim));
        }
        let mut made = BTreeSet::new();
        let pause = watch(&first, round, since, &mut made);
        let how = if freeze { "frozen" } else { "killed" };
        eprintln!("round {round}, {how}: the longest time in which no pod changed was {} ms", pause.as_millis());
        if freeze {
            others[victim].freeze(false);
        } else {
            others.insert(victim, member(dir.path(), names[victim + 1], ports[victim + 1], &[]));
        }
        until_whole(&first, &names);
        // What the old leader had begun changes nothing any more.
        watch(&first, round, Instant::now(), &mut made);
    }
    // Nothing is left that belongs to nobody: one set of each roll-out, pods of existing owners only.
    let sets = first.run(&["get", "replicasets", "-o", "jsonpath={.items[*].spec.replicas}"]);
    assert_eq!(sets.split(' ').filter(|n| *n != "0").collect::<Vec<_>>(), [REPLICAS.to_string()]);
}

/// Runs a command until it succeeds: a machine that is busy elects leaders of its own accord.
fn succeed(server: &Server, args: &[&str]) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let output = server.kubectl(args);
        if output.status.success() {
            return;
        }
        assert!(Instant::now() < deadline, "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Waits until everything of the first manifest is ready.
fn until_there(server: &Server) {
    for (what, path, wanted) in [
        ("deployment/roll", "{.status.readyReplicas}", REPLICAS),
        ("statefulset/set", "{.status.readyReplicas}", scaled(0)),
        ("statefulset/ordered", "{.status.readyReplicas}", ROLLED),
        ("replicationcontroller/rc", "{.status.readyReplicas}", scaled(0)),
        ("daemonset/agent", "{.status.numberReady}", NODES),
        ("daemonset/surge", "{.status.numberReady}", NODES),
    ] {
        let path = format!("jsonpath={path}");
        server.until(what, &["get", what, "-o", &path], |out| out == wanted.to_string());
    }
}

/// Makes a member the leader.
fn lead(server: &Server, name: &str, names: &[&str]) {
    let deadline = Instant::now() + PATIENCE;
    while until_whole(server, names) != name {
        let (_, said) = keelson(&["member", "transfer-leader", name, "--kubeconfig", &server.kubeconfig()]);
        assert!(Instant::now() < deadline, "{name} does not become the leader: {said}");
    }
}
