//! From empty hosts to a cluster: servers that join the first, agents with their containerd.

use anyhow::{Context, Result};

use crate::{Host, Role, ServerOptions, Testbed};

/// What a cluster is started with beside its plan.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// Further flags of every server.
    pub server_flags: Vec<String>,
    /// Further flags of the first server only.
    pub first_flags: Vec<String>,
    /// Further flags of every agent.
    pub agent_flags: Vec<String>,
}

impl Testbed {
    /// Starts what does not run of the cluster and waits until all of it is ready. `step` is told what comes next.
    pub fn bring_up(&self, start: &Start, step: &dyn Fn(&str)) -> Result<()> {
        let hosts = self.hosts()?;
        let (servers, agents): (Vec<&Host<'_>>, Vec<&Host<'_>>) = hosts.iter().partition(|h| h.role() == Role::Server);
        start_servers(start, &servers, step)?;
        start_agents(start, &agents, servers[0], step)
    }
}

/// The first server makes the cluster, the others join it one after another.
fn start_servers(start: &Start, servers: &[&Host<'_>], step: &dyn Fn(&str)) -> Result<()> {
    let (first, others) = servers.split_first().context("no server")?;
    step(&format!("{}: {}", first.name(), first.url()));
    let flags = [start.server_flags.as_slice(), &start.first_flags].concat();
    first.start_server(&ServerOptions { join: None, flags })?;
    first.wait_ready()?;
    for server in others {
        step(&format!("{}: {} joins", server.name(), server.url()));
        server.start_server(&ServerOptions {
            join: Some(first.join_command(Role::Server)?),
            flags: start.server_flags.clone(),
        })?;
        server.wait_ready()?;
    }
    Ok(())
}

fn start_agents(start: &Start, agents: &[&Host<'_>], server: &Host<'_>, step: &dyn Fn(&str)) -> Result<()> {
    if agents.is_empty() {
        return Ok(());
    }
    let join = server.join_command(Role::Agent)?;
    for agent in agents {
        step(&format!("{}: containerd, images, agent", agent.name()));
        agent.start_containerd()?;
        agent.start_agent(&join, &start.agent_flags)?;
    }
    let api = server.api()?;
    agents.iter().try_for_each(|agent| agent.wait_node_ready(&api))
}
