//! One pod in a real container of an own containerd. Skipped, with the reason, without root, containerd and busybox.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use http_body_util::{BodyExt, Full, StreamBody};
use keelson_client::{Body, Client, Transport};
use keelson_nodeagent::{Agent, AgentConfig};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often something awaited is looked at before the test fails.
const LOOKS: u32 = 600;

struct Containerd {
    process: Child,
    dir: tempfile::TempDir,
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn can_run() -> Result<(), &'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Err("not root");
    }
    for (path, why) in
        [("/usr/bin/containerd", "no containerd"), ("/usr/bin/ctr", "no ctr"), ("/bin/busybox", "no busybox")]
    {
        if !Path::new(path).exists() {
            return Err(why);
        }
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// One file of a tar archive.
fn entry(name: &str, mode: u32, content: &[u8]) -> Vec<u8> {
    let mut header = [0u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    for (at, text) in [(100, format!("{mode:07o}")), (108, "0000000".into()), (116, "0000000".into())] {
        header[at..at + 7].copy_from_slice(text.as_bytes());
    }
    header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
    header[136..147].copy_from_slice(b"00000000000");
    header[148..156].fill(b' ');
    header[156] = b'0';
    header[257..263].copy_from_slice(b"ustar\0");
    header[263..265].copy_from_slice(b"00");
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let mut out = header.to_vec();
    out.extend_from_slice(content);
    out.resize(out.len().next_multiple_of(512), 0);
    out
}

/// An image archive whose only file is busybox.
fn image(name: &str) -> std::io::Result<Vec<u8>> {
    let layer = [entry("bin/busybox", 0o755, &std::fs::read("/bin/busybox")?), vec![0; 1024]].concat();
    let config = json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/busybox", "sleep", "99999"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex(&layer))]}});
    let config = config.to_string();
    let config_name = format!("{}.json", hex(config.as_bytes()));
    let manifest = json!([{"Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"]}]).to_string();
    let files = [
        entry(&config_name, 0o644, config.as_bytes()),
        entry("layer.tar", 0o644, &layer),
        entry("manifest.json", 0o644, manifest.as_bytes()),
        vec![0; 1024],
    ];
    Ok(files.concat())
}

impl Containerd {
    fn start() -> std::io::Result<Self> {
        let dir = tempfile::tempdir()?;
        let at = |name: &str| dir.path().join(name).display().to_string();
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\n[grpc]\naddress = {:?}\n[plugins.\"io.containerd.grpc.v1.cri\"]\n\
             sandbox_image = \"keelson.test/box:1\"\nrestrict_oom_score_adj = true\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/usr/lib/cni\"\nconf_dir = {:?}\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"native\"\n\
             [plugins.\"io.containerd.internal.v1.opt\"]\npath = {:?}\n",
            at("root"),
            at("state"),
            at("sock"),
            at("net.d"),
            at("opt"),
        );
        std::fs::create_dir_all(dir.path().join("net.d"))?;
        std::fs::write(dir.path().join("config.toml"), config)?;
        let log = std::fs::File::create(dir.path().join("log"))?;
        let process = Command::new("/usr/bin/containerd")
            .args(["--config", &at("config.toml")])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        Ok(Self { process, dir })
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("sock")
    }

    async fn import(&self) {
        let archive = self.dir.path().join("box.tar");
        std::fs::write(&archive, image("keelson.test/box:1").unwrap()).unwrap();
        for _ in 0..LOOKS {
            let mut ctr = Command::new("ctr");
            ctr.arg("--address").arg(self.socket()).args([
                "-n",
                "k8s.io",
                "images",
                "import",
                "--snapshotter",
                "native",
            ]);
            let output = ctr.arg(&archive).output().unwrap();
            if output.status.success() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{}", std::fs::read_to_string(self.dir.path().join("log")).unwrap());
    }
}

/// An API with one pod; what is written to it can be read.
struct OnePod(watch::Sender<Value>);

fn answer(code: u16, value: &Value) -> http::Response<Body> {
    let body = Full::new(Bytes::from(value.to_string())).map_err(|e| match e {}).boxed_unsync();
    http::Response::builder().status(code).body(body).unwrap()
}

impl Transport for OnePod {
    fn call(&self, request: http::Request<Bytes>) -> BoxFuture<'_, std::io::Result<http::Response<Body>>> {
        let path = request.uri().to_string();
        let sent: Value = serde_json::from_slice(request.body()).unwrap_or_default();
        async move {
            let is_pod = path.contains("/pods");
            Ok(match request.method().as_str() {
                "GET" if is_pod && path.contains("watch=true") => {
                    let stream = tokio_stream(self.0.subscribe());
                    http::Response::new(StreamBody::new(stream).boxed_unsync())
                }
                "GET" if is_pod => {
                    answer(200, &json!({"metadata": {"resourceVersion": "1"}, "items": [self.0.borrow().clone()]}))
                }
                "GET" if path.contains("watch=true") => {
                    http::Response::new(StreamBody::new(futures::stream::pending()).boxed_unsync())
                }
                "GET"
                    if ["/nodes", "/services"]
                        .iter()
                        .any(|list| path.contains(&format!("{list}?")) || path.ends_with(list)) =>
                {
                    answer(200, &json!({"metadata": {}, "items": []}))
                }
                "GET" => answer(404, &json!({"kind": "Status", "code": 404})),
                "PUT" if is_pod => {
                    self.0.send_modify(|pod| pod["status"] = sent["status"].clone());
                    answer(200, &self.0.borrow())
                }
                "DELETE" if is_pod => {
                    self.0.send_modify(|pod| pod["gone"] = true.into());
                    answer(200, &json!({}))
                }
                _ => answer(200, &sent),
            })
        }
        .boxed()
    }
}

fn tokio_stream(
    changes: watch::Receiver<Value>,
) -> impl futures::Stream<Item = Result<http_body::Frame<Bytes>, std::io::Error>> {
    futures::stream::unfold(changes, |mut changes| async {
        changes.changed().await.ok()?;
        let line = json!({"type": "MODIFIED", "object": *changes.borrow_and_update()}).to_string() + "\n";
        Some((Ok(http_body::Frame::data(line.into())), changes))
    })
    .boxed()
}

async fn until(pod: &watch::Sender<Value>, what: &str, holds: impl Fn(&Value) -> bool) {
    for _ in 0..LOOKS {
        if holds(&pod.borrow()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{what}: {:#}", *pod.borrow());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_runs_fails_over_an_agent_and_ends() {
    if let Err(why) = can_run() {
        eprintln!("skipped: {why}");
        return;
    }
    let runtime = Containerd::start().unwrap();
    runtime.import().await;
    let script = "echo hello $NAME; cat /data/x 2>/dev/null; exec /bin/busybox sleep 1000";
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "namespace": "default", "uid": "11111111-aaaa", "resourceVersion": "1"},
        "spec": {"nodeName": "n", "hostNetwork": true, "restartPolicy": "Always", "volumes": [{"name": "d", "emptyDir": {}}],
            "containers": [{"name": "c", "image": "keelson.test/box:1", "command": ["/bin/busybox", "sh", "-c", script],
                "env": [{"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "volumeMounts": [{"name": "d", "mountPath": "/data"}]}]}});
    let (sender, _keep) = watch::channel(pod);
    let config = AgentConfig {
        node_name: "n".into(),
        client: Client::new(Arc::new(OnePod(sender.clone())), "test"),
        runtime_socket: runtime.socket(),
        data_dir: runtime.dir.path().join("data"),
        log_dir: runtime.dir.path().join("logs"),
        cni_conf_dir: runtime.dir.path().join("net.d"),
        node_ip: [127, 0, 0, 1].into(),
        port: 10250,
        credentials: None,
        cluster_cidr: "10.244.0.0/16".into(),
        resolv_conf: "/etc/resolv.conf".into(),
        cluster_dns: None,
        serve_dns: false,
        cluster_domain: "cluster.local".into(),
        proxy: false,
    };
    let first = CancellationToken::new();
    let agent = tokio::spawn(Agent::run(config.clone(), first.clone()));
    until(&sender, "runs", |p| p["status"]["containerStatuses"][0]["ready"] == true).await;
    let id = sender.borrow()["status"]["containerStatuses"][0]["containerID"].clone();
    let log = runtime.dir.path().join("logs/default_p_11111111-aaaa/c/0.log");
    assert!(std::fs::read_to_string(log).unwrap().contains("hello p"));
    first.cancel();
    agent.await.unwrap().unwrap();

    let second = CancellationToken::new();
    sender.send_modify(|p| p["status"] = json!({}));
    let agent = tokio::spawn(Agent::run(config, second.clone()));
    until(&sender, "is recognised", |p| p["status"]["containerStatuses"][0]["containerID"] == id).await;
    sender.send_modify(|p| {
        p["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        p["metadata"]["deletionGracePeriodSeconds"] = 1.into();
    });
    until(&sender, "is confirmed as deleted", |p| p["gone"] == true).await;
    second.cancel();
    agent.await.unwrap().unwrap();
}
