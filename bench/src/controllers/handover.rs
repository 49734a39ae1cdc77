//! The leader of three servers is killed, and frozen: when there is another one, when it takes writes, when a controller has
//! acted there, and when a pod runs.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::Options;
use crate::load::{Connection, percentile};
use crate::process::{Server, free_port};
use crate::report::Report;

/// Leaders that are killed, and as many that are frozen.
const ROUNDS: usize = 10;
/// What has not happened by then never will.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pause between two looks at what the servers say.
const PAUSE: Duration = Duration::from_millis(2);
/// How long the servers are left alone before a leader dies.
const REST: Duration = Duration::from_secs(1);

const NAMES: [&str; 3] = ["a", "b", "c"];
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const SETS: &str = "/apis/apps/v1/namespaces/default/replicasets?watch=true";
const PODS: &str = "/api/v1/namespaces/default/pods?watch=true";

/// What a server says when it leads the members, and when its controllers run.
const ELECTED: &str = "this member leads";
const WORKING: &str = "leading component=\"controllers\"";

/// The steps after a leader's end.
const STEPS: [&str; 5] = ["leader", "controllers lead", "client's write", "controller's write", "pod ready"];

/// Measures both ways to end.
pub async fn run(options: &Options, report: &mut Report) -> Result<()> {
    let mut cluster = Cluster::start(options).await?;
    for frozen in [false, true] {
        let mut times: [Vec<Duration>; 5] = Default::default();
        for round in 0..options.amount(ROUNDS) {
            let name = format!("{}-{round}", if frozen { "frozen" } else { "killed" });
            let took = cluster.lose_leader(&name, frozen).await.context(name)?;
            times.iter_mut().zip(took).for_each(|(all, one)| all.push(one));
        }
        let mut figures = Vec::new();
        for (step, mut times) in STEPS.into_iter().zip(times) {
            times.sort_unstable();
            let millis = |percent| percentile(&times, percent).as_millis();
            figures.push((step, format!("{} ms, at most {}", millis(50.0), millis(100.0))));
        }
        let how = if frozen { "frozen" } else { "killed" };
        report.add(format!("a leader is {how}, {} times", options.amount(ROUNDS)), figures);
    }
    Ok(())
}

struct Cluster {
    /// The first one has the pretended nodes and is what clients ask; it never leads when a leader is lost.
    servers: Vec<Server>,
    options: Options,
}

impl Cluster {
    async fn start(options: &Options) -> Result<Self> {
        let peer = || anyhow::Ok(format!("127.0.0.1:{}", free_port()?));
        let first = ["--name", NAMES[0], "--peer-address", &peer()?, "--cluster-init", "--hollow", "3"];
        let mut cluster =
            Self { servers: vec![Server::start(&options.keelson, &first).await?], options: options.clone() };
        let join = cluster.keelson(&["token", "create", "--print-join-command", "--server"]).await?;
        let join: Vec<&str> = join.split_whitespace().skip(2).collect();
        for name in &NAMES[1..] {
            let peer = peer()?;
            let flags = [&["--name", name, "--peer-address", &peer], join.as_slice()].concat();
            cluster.servers.push(Server::start(&options.keelson, &flags).await?);
        }
        cluster.leader().await?;
        Ok(cluster)
    }

    /// What a command says about the cluster.
    async fn keelson(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.options.keelson);
        let output = command.args(args).arg("--kubeconfig").arg(self.servers[0].kubeconfig()).output().await?;
        if !output.status.success() {
            bail!("{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Who leads, once all are voters that answer.
    async fn leader(&self) -> Result<usize> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let members = self.keelson(&["member", "list", "--output", "json"]).await;
            if let Ok(members) = &members {
                let members: Value = serde_json::from_str(members)?;
                let members = members.as_array().context("no list of members")?;
                let whole = |m: &Value| m["role"] != "learner" && m.get("error").is_none();
                let leader = members.iter().find(|m| m["role"] == "leader");
                let leader = leader.and_then(|m| NAMES.iter().position(|name| m["name"] == *name));
                if let Some(leader) = leader.filter(|_| members.len() == NAMES.len() && members.iter().all(whole)) {
                    return Ok(leader);
                }
            }
            if Instant::now() > deadline {
                bail!("the servers do not come together: {members:?}");
            }
            tokio::time::sleep(PAUSE * 10).await;
        }
    }

    /// How often any server has said something.
    fn said(&self, what: &str) -> usize {
        self.servers.iter().map(|server| server.log().matches(what).count()).sum()
    }

    async fn until_said(&self, what: &str, before: usize, since: Instant) -> Result<Duration> {
        while self.said(what) <= before {
            if since.elapsed() > PATIENCE {
                let members = self.keelson(&["member", "list"]).await;
                let logs: Vec<String> = self.servers.iter().map(Server::log).collect();
                bail!("nobody says {what:?}: {members:?}\n{}", logs.join("\n"));
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(since.elapsed())
    }

    /// Ends a leader and measures to each step; then it comes back.
    async fn lose_leader(&mut self, name: &str, frozen: bool) -> Result<[Duration; 5]> {
        let mut leader = self.leader().await?;
        loop {
            if leader == 0 {
                // It may refuse if another change is under way; then it is asked again.
                let _ = self.keelson(&["member", "transfer-leader", NAMES[1]]).await;
            }
            tokio::time::sleep(REST).await;
            // On a busy machine members may elect another one by themselves.
            let before = std::mem::replace(&mut leader, self.leader().await?);
            if leader == before && leader != 0 {
                break;
            }
        }
        let mut sets = Watch::open(&self.servers[0], SETS).await?;
        let mut pods = Watch::open(&self.servers[0], PODS).await?;
        let mut client = self.servers[0].target()?.connect().await?;
        let before = [ELECTED, WORKING].map(|what| self.said(what));
        if frozen {
            self.servers[leader].freeze(true)?;
        } else {
            self.servers[leader].kill()?;
        }
        let since = Instant::now();
        let (elected, working, written, acted, ready) = tokio::try_join!(
            self.until_said(ELECTED, before[0], since),
            self.until_said(WORKING, before[1], since),
            write(&mut client, name, since),
            sets.until(name, since, |_| true),
            pods.until(name, since, is_ready),
        )?;
        if frozen {
            self.servers[leader].freeze(false)?;
        } else {
            self.servers[leader].start_again().await?;
        }
        Ok([elected, working, written, acted, ready])
    }
}

/// Creates a Deployment, however often it takes.
async fn write(client: &mut Connection, name: &str, since: Instant) -> Result<Duration> {
    let labels = json!({"app": name});
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels},
            "spec": {"containers": [{"name": "c", "image": "example.test/one"}]}}}});
    let body = deployment.to_string();
    loop {
        let answer = client.call("POST", DEPLOYMENTS, body.clone()).await?;
        // One that was on its way when the leader died may be there although nobody could say so.
        if matches!(answer.status, 200..300 | 409) {
            return Ok(since.elapsed());
        }
        if since.elapsed() > PATIENCE {
            bail!("a write is refused: {}", String::from_utf8_lossy(&answer.body));
        }
    }
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// A watch of a server.
struct Watch {
    body: Incoming,
    pending: Vec<u8>,
}

impl Watch {
    async fn open(server: &Server, path: &str) -> Result<Self> {
        let mut connection = server.target()?.connect().await?;
        let response = connection.open("GET", path, "").await?;
        if response.status() != 200 {
            bail!("watch: {}", response.status());
        }
        Ok(Self { body: response.into_body(), pending: Vec::new() })
    }

    /// When an object whose name begins so is as it should.
    async fn until(&mut self, name: &str, since: Instant, holds: impl Fn(&Value) -> bool) -> Result<Duration> {
        let seen = async {
            loop {
                let frame = self.body.frame().await.context("the watch ended")??;
                let Ok(data) = frame.into_data() else { continue };
                self.pending.extend_from_slice(&data);
                while let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = self.pending.drain(..=end).collect();
                    let event: Value = serde_json::from_slice(&line)?;
                    let object = &event["object"];
                    let meant = object["metadata"]["name"].as_str().is_some_and(|n| n.starts_with(&format!("{name}-")));
                    if meant && holds(object) {
                        return anyhow::Ok(since.elapsed());
                    }
                }
            }
        };
        tokio::time::timeout(PATIENCE, seen).await.context("no event")?
    }
}
