//! A whole cluster for the harness: servers one after another, then agents.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use keelson_testbed::{Host, until};
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::context::Shared;
use crate::kube::{Cluster, Kube, NODES};
use crate::reach::{Reach, Servers};
use crate::system::{self, Program, System};

/// How long a server or agent may take to be there.
const READY: Duration = Duration::from_secs(180);

fn is_ready(node: &Value) -> bool {
    let conditions = node.pointer("/status/conditions").and_then(Value::as_array);
    conditions.into_iter().flatten().any(|found| found["type"] == "Ready" && found["status"] == "True")
}

/// Starts servers and agents and waits until they serve.
pub fn servers(
    runtime: &Runtime,
    system: &'static System,
    program: &Program,
    hosts: &[Host<'_>],
    agents: &[Host<'_>],
    seed: u64,
) -> Result<(Arc<dyn Reach>, Shared)> {
    let _guard = runtime.enter();
    let mut reach = Servers { kubes: Vec::new(), names: Vec::new() };
    for (member, host) in hosts.iter().enumerate() {
        system.start(program, host, hosts)?;
        let path = system::kubeconfig(host);
        until(&format!("{} has a kubeconfig", host.name()), READY, || Ok(path.exists().then_some(())))
            .with_context(|| host.log_end(system.service))?;
        reach.kubes.push(Kube::new(path)?);
        reach.names.push(host.name());
        until(&format!("{} takes a write", host.name()), READY, || runtime.block_on(reach.serves(member)).map(Some))
            .with_context(|| host.log_end(system.service))?;
        system::formed(host)?;
        println!("==> {} serves", host.name());
    }
    agents.iter().try_for_each(|agent| system.start_agent(program, agent, hosts))?;
    let wanted = agents.len() * program.nodes_of_agent();
    until(&format!("{wanted} nodes are ready"), READY, || {
        let list = runtime.block_on(reach.kubes[0].get(&NODES.path("", "")));
        let list = list.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
        let ready = list["items"].as_array().into_iter().flatten().filter(|node| is_ready(node)).count();
        Ok((ready >= wanted).then_some(()))
    })
    .with_context(|| agents.first().map(|agent| agent.log_end("agent")).unwrap_or_default())?;
    let mut shared = Shared::new(Box::new(|| Ok(Vec::new())), seed);
    shared.cluster = Some(Cluster::new(reach.kubes.clone()));
    Ok((Arc::new(reach), shared))
}
