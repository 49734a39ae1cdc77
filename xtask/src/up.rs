//! `cargo xtask up` and `cargo xtask down`: a highly available cluster on this machine, and its removal.
//!
//! Both can be repeated: `up` creates what is missing of the cluster, `down` removes whatever is there.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use keelson_testbed::{Api, Host, Plan, Role, Start, Testbed, image, until};
use serde_json::{Value, json};

use crate::platform::Platform;
use crate::shell::{self, command, run, step};
use crate::{setup, test};

/// How long the sample may take to run.
const SAMPLE: Duration = Duration::from_secs(120);
/// Pods of the sample.
const REPLICAS: u64 = 3;

/// Which cluster.
#[derive(Args, Clone, Debug)]
pub struct Where {
    /// Name of the cluster: its namespaces and interfaces start with it
    #[arg(long, default_value = "keelson")]
    name: String,
    /// Where it keeps its files (default: /var/lib/NAME-up)
    #[arg(long)]
    dir: Option<PathBuf>,
}

impl Where {
    fn dir(&self) -> PathBuf {
        self.dir.clone().unwrap_or_else(|| PathBuf::from(format!("/var/lib/{}-up", self.name)))
    }
}

/// Flags of `cargo xtask up`.
#[derive(Args, Clone, Debug)]
pub struct UpArgs {
    #[command(flatten)]
    place: Where,
    /// Servers
    #[arg(long, default_value_t = 3)]
    servers: u8,
    /// Agents, each with its own containerd
    #[arg(long, default_value_t = 2)]
    agents: u8,
    /// Nodes without containers that the first server pretends to have
    #[arg(long, default_value_t = 0)]
    hollow: u32,
    /// Run this binary instead of building one for release
    #[arg(long)]
    keelson: Option<PathBuf>,
    /// Do not deploy the sample
    #[arg(long)]
    no_sample: bool,
}

/// Brings the cluster up.
pub fn up(args: &UpArgs) -> Result<()> {
    let started = Instant::now();
    root()?;
    setup::packages(test::CLUSTER_PACKAGES)?;
    let binary = binary(args)?;
    let dir = args.place.dir();
    let plan = Plan { name: args.place.name.clone(), servers: args.servers, agents: args.agents };
    step(&format!("hosts: {} servers and {} agents as network namespaces", args.servers, args.agents));
    let testbed = Testbed::create(&dir, plan)?;
    testbed.install(&binary)?;
    let hosts = testbed.hosts()?;
    let mut start = Start::default();
    if args.hollow > 0 {
        start.first_flags.extend(["--hollow".into(), args.hollow.to_string()]);
    }
    testbed.bring_up(&start, &step)?;
    let api = hosts.first().context("no server")?.api()?;
    if !args.no_sample && (args.agents > 0 || args.hollow > 0) {
        sample(&api)?;
    }
    println!("\nThe cluster is up after {:.0} s.\n", started.elapsed().as_secs_f64());
    println!("{}", what_to_try(args, &hosts));
    Ok(())
}

/// Takes the cluster down.
pub fn down(place: &Where) -> Result<()> {
    root()?;
    let dir = place.dir();
    step(&format!("removing what {} names", dir.join("journal").display()));
    if Testbed::remove(&dir)? {
        println!("The cluster and all its files are gone.");
    } else {
        println!("There is no cluster in {}: nothing to remove.", dir.display());
    }
    Ok(())
}

fn root() -> Result<()> {
    if shell::is_root() {
        return Ok(());
    }
    bail!(
        "hosts are network namespaces, which need root: run `sudo -E env PATH=$PATH cargo xtask up`.\n\
         Without root, a cluster of one server with pretended nodes: \
         cargo run --release -p keelson -- server --hollow 3"
    )
}

fn binary(args: &UpArgs) -> Result<PathBuf> {
    if let Some(given) = &args.keelson {
        return Ok(given.clone());
    }
    setup::run(&Platform::default())?;
    step("building for release");
    run(&mut command("cargo", &["build", "--release", "--package", "keelson"]))?;
    Ok(shell::target_dir()?.join("release/keelson"))
}

fn sample(api: &Api) -> Result<()> {
    step("a sample: Deployment and Service `web`");
    until("the namespace has its account", SAMPLE, || {
        api.get("/api/v1/namespaces/default/serviceaccounts/default").map(Some)
    })?;
    api.create("/apis/apps/v1/namespaces/default/deployments", &deployment())?;
    api.create("/api/v1/namespaces/default/services", &service())?;
    let path = "/apis/apps/v1/namespaces/default/deployments/web";
    until("the sample runs", SAMPLE, || {
        let ready = api.get(path)?["status"]["availableReplicas"].as_u64().unwrap_or_default();
        Ok((ready >= REPLICAS).then_some(()))
    })
    .with_context(|| pods(api))
}

/// Pods with their state, for the message when they do not run.
fn pods(api: &Api) -> String {
    let list = api.get("/api/v1/namespaces/default/pods").unwrap_or_default();
    let line = |pod: &Value| {
        let (name, status) = (&pod["metadata"]["name"], &pod["status"]);
        format!("{name} {} {} {}", status["phase"], status["conditions"], status["containerStatuses"])
    };
    list["items"].as_array().into_iter().flatten().map(line).collect::<Vec<_>>().join("\n")
}

fn deployment() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "labels": {"app": "web"}},
        "spec": {
            "replicas": REPLICAS,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{
                    "name": "web", "image": image::WEB[0], "ports": [{"containerPort": image::WEB_PORT}],
                }]},
            },
        },
    })
}

fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": image::WEB_PORT}]},
    })
}

fn what_to_try(args: &UpArgs, hosts: &[Host<'_>]) -> String {
    let kubeconfig = hosts.first().map(Host::kubeconfig).unwrap_or_default();
    let mut text = format!("  export KUBECONFIG={}\n", kubeconfig.display());
    let mut line = |command: &str, about: &str| text += &format!("  {command:<58} # {about}\n");
    line("kubectl get nodes,pods -o wide", "what runs where");
    line("kubectl scale deployment web --replicas=6", "more of it");
    line(&format!("kubectl set image deployment/web web={}", image::WEB[1]), "a rolling update");
    line("kubectl rollout undo deployment/web", "and back");
    if args.agents > 0 {
        line("kubectl logs -f deployment/web", "a container's log");
        line("kubectl exec -it deployment/web -- sh", "a shell in a container");
    }
    for host in hosts.iter().filter(|h| h.role() == Role::Server).take(2) {
        line(&format!("kubectl --server {} get nodes", host.url()), "any server will do");
    }
    if let Some(host) = hosts.first() {
        line(&format!("sudo ip netns exec {} sh", host.namespace()), "a shell in a host's network");
        line(&format!("less {}", host.log("keelson").display()), "its log");
    }
    line(&format!("cargo xtask up{}", flags(&args.place)), "starts again what you killed");
    line(&format!("cargo xtask down{}", flags(&args.place)), "removes all of it");
    if !on_path("kubectl") {
        text += "\nkubectl is not installed: https://kubernetes.io/docs/tasks/tools/\n";
    }
    text
}

/// The flags that name a cluster other than the default.
fn flags(place: &Where) -> String {
    let mut flags = String::new();
    if place.name != "keelson" {
        flags += &format!(" --name {}", place.name);
    }
    if let Some(dir) = &place.dir {
        flags += &format!(" --dir {}", dir.display());
    }
    flags
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| Path::new(&dir).join(program).exists())
}
