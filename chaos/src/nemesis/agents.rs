//! Faults of agents' hosts.

use anyhow::Result;
use keelson_testbed::Host;
use nix::sys::signal::Signal;
use rand::RngExt;
use rand::rngs::StdRng;

use super::{Victims, network};

/// What runs containers.
const CONTAINERD: &str = "containerd";

fn any<'v>(victims: &'v Victims<'_>, rng: &mut StdRng) -> &'v Host<'v> {
    &victims.agents[rng.random_range(0..victims.agents.len())]
}

pub(super) fn kill(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    let agent = any(victims, rng);
    agent.kill(victims.system.process)?;
    Ok(format!("kill -9 {}", agent.name()))
}

pub(super) fn start_all(victims: &Victims<'_>) -> Result<()> {
    victims.agents.iter().try_for_each(|agent| victims.system.start_agent(victims.program, agent, victims.hosts))
}

pub(super) fn pause(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    let agent = any(victims, rng);
    agent.signal(victims.system.process, Signal::SIGSTOP)?;
    Ok(format!("SIGSTOP {}", agent.name()))
}

pub(super) fn resume_all(victims: &Victims<'_>) -> Result<()> {
    victims.agents.iter().try_for_each(|agent| agent.signal(victims.system.process, Signal::SIGCONT))
}

pub(super) fn isolate(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    let agent = any(victims, rng);
    network::deafen(agent, &victims.hosts.iter().collect::<Vec<_>>(), 100)?;
    for host in victims.hosts {
        network::deafen(host, &[agent], 100)?;
    }
    Ok(format!("{} and the servers do not hear each other", agent.name()))
}

pub(super) fn kill_containerd(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    let agent = any(victims, rng);
    agent.kill(CONTAINERD)?;
    Ok(format!("kill -9 containerd of {}", agent.name()))
}
